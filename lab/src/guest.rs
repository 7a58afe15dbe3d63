//! The tiny guest (`lab/images/tiny-init`), spoken to over its console; the
//! initiator guest (`lab/images/initiator-init`) answers in the same way.

use anyhow::{Result, bail};

use crate::{Deadline, Power};

/// Time for one command; the emulated disk may be waiting for its server.
const COMMAND_SECONDS: u64 = 90;

/// A PC whose tiny guest is up and listening. Blocks are 4 KiB, counted in the
/// guest's data partition; a block's text is its tag (four characters at
/// most) and its number, so that no two are alike.
#[derive(Debug)]
pub struct Guest<'p, 'a> {
    pc: &'p mut Power<'a>,
    number: u32,
}

impl<'p, 'a> Guest<'p, 'a> {
    /// Waits until the guest says that it has its disk.
    ///
    /// # Errors
    /// When it says it has failed, or nothing within the deadline.
    pub fn wait(pc: &'p mut Power<'a>, deadline: Deadline) -> Result<Guest<'p, 'a>> {
        if pc
            .console()
            .wait_for_any(&["TINY: ready ", "TINY: failed ", "Kernel panic"], deadline)?
            != 0
        {
            bail!("the guest did not get its disk:\n{}", pc.console().tail());
        }
        pc.console().rest_of_line(deadline)?;
        Ok(Guest { pc, number: 0 })
    }

    /// What it said about itself when it came up: the value of `key=`.
    pub fn fact(&mut self, key: &str) -> Option<String> {
        let text = self.pc.console().text();
        let key = format!("{key}=");
        let mut facts = text
            .lines()
            .filter(|line| line.starts_with("TINY: "))
            .flat_map(str::split_whitespace);
        facts
            .rfind(|word| word.starts_with(&key))
            .map(|word| word[key.len()..].to_owned())
    }

    /// Gives a command and returns its answer without the leading `ok`.
    ///
    /// # Errors
    /// When it failed, or there is no answer in time.
    pub fn command(&mut self, command: &str) -> Result<String> {
        self.command_within(command, Deadline::seconds(COMMAND_SECONDS))
    }

    /// As [`Guest::command`], with one's own deadline.
    ///
    /// # Errors
    /// When it failed, or there is no answer in time.
    pub fn command_within(&mut self, command: &str, deadline: Deadline) -> Result<String> {
        self.number += 1;
        let number = self.number;
        let console = self.pc.console();
        console.send(&format!("{number} {command}\n"))?;
        console.wait_for(&format!("TINY: #{number} "), deadline)?;
        let answer = console.rest_of_line(deadline)?;
        match answer.strip_prefix("ok") {
            Some(rest) => Ok(rest.trim().to_owned()),
            None => bail!("the guest's answer to `{command}`: {answer}"),
        }
    }

    /// Writes one block and returns when the target has answered.
    ///
    /// # Errors
    /// When the write failed.
    pub fn write(&mut self, block: u32, tag: &str) -> Result<()> {
        self.command(&format!("write {block} {tag}")).map(|_| ())
    }

    /// The text of a block, `None` when it is all zeros.
    ///
    /// # Errors
    /// When the read failed.
    pub fn read(&mut self, block: u32) -> Result<Option<String>> {
        let text = self.command(&format!("read {block}"))?;
        Ok((text != "empty").then_some(text))
    }

    /// Checks every byte of blocks written under a tag.
    ///
    /// # Errors
    /// When a block is not as written; names the first such.
    pub fn verify(&mut self, tag: &str, first: u32, count: u32) -> Result<()> {
        self.command(&format!("verify {tag} {first} {count}"))
            .map(|_| ())
    }

    /// Starts to write one block after the other in the background.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn start_writer(&mut self, tag: &str, first: u32) -> Result<()> {
        self.command(&format!("writer start {tag} {first}"))
            .map(|_| ())
    }

    /// Stops the writer and returns the first block it has not written.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn stop_writer(&mut self) -> Result<u32> {
        let answer = self.command("writer stop")?;
        match answer
            .strip_prefix("next=")
            .and_then(|next| next.parse().ok())
        {
            Some(next) => Ok(next),
            None => bail!("the guest's answer to `writer stop`: {answer}"),
        }
    }

    /// The last block the writer said was answered.
    pub fn last_written(&mut self) -> Option<u32> {
        let text = self.pc.console().text();
        // The last line may be half there.
        let (whole, _) = text.rsplit_once('\n')?;
        whole
            .lines()
            .rev()
            .find_map(|line| line.strip_prefix("TINY: wrote ")?.trim().parse().ok())
    }

    /// Waits until the writer has been answered for this block.
    ///
    /// # Errors
    /// When that does not happen in time, or the writer failed.
    pub fn wait_written(&mut self, block: u32, deadline: Deadline) -> Result<u32> {
        let waited = deadline.wait(|| {
            if self.pc.console().text().contains("TINY: writer failed") {
                bail!("a write failed:\n{}", self.pc.console().tail());
            }
            Ok(self.last_written().filter(|last| *last >= block))
        });
        match waited {
            Ok(last) => Ok(last),
            Err(error) => bail!(
                "{error}: block {block} was not written:\n{}",
                self.pc.console().tail()
            ),
        }
    }

    /// The PC it runs on.
    pub fn pc(&mut self) -> &mut Power<'a> {
        self.pc
    }
}
