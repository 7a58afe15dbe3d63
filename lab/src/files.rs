//! `diskless target serve` on a host of the LAN: files as disks, without any
//! configuration.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::state::Process;
use crate::{Deadline, Host};

/// Time to start on a busy machine.
const START_SECONDS: u64 = 60;

/// A `diskless target serve`; dropped, it is killed.
#[derive(Debug)]
pub struct FileServer {
    process: Process,
}

impl FileServer {
    /// Starts `program target serve ARGUMENTS` on a host, listening on `portal`,
    /// and waits until it says that its disks can be opened.
    ///
    /// # Errors
    /// When it ends or says nothing; with its last words.
    pub fn start(
        host: &Host<'_>,
        program: &Path,
        portal: &str,
        arguments: &[&str],
    ) -> Result<FileServer> {
        let program = program.to_string_lossy();
        let serve = [&*program, "target", "serve", "--listen", portal];
        let name = format!("target-{}", portal.replace([':', '.'], "-"));
        let process = host.spawn(&name, &[&serve[..], arguments].concat())?;
        let mut server = FileServer { process };
        let line = format!("iscsi://{portal}/");
        Deadline::seconds(START_SECONDS)
            .wait(|| {
                if let Some(status) = server.process.ended()? {
                    bail!("diskless target serve ended ({status}):\n{}", server.log());
                }
                Ok(server.log().contains(&line).then_some(()))
            })
            .context("starting diskless target serve")?;
        Ok(server)
    }

    /// The end of what it said.
    pub fn log(&self) -> String {
        self.process.last_words()
    }
}
