//! Where an image, a disk or an overlay goes: a file, or standard output.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;

use super::client::Client;
use super::image::server_path;
use super::job::{self, Bar};
use super::show::{Answer, bytes};
use crate::api::exports::{ExportDisk, ExportFormat, Exported};
use crate::api::jobs::Job;

/// Where to.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// File on the server's host; - writes the raw disk to standard output
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
    /// What the file is [default: its suffix says so]
    #[arg(long)]
    format: Option<ExportFormat>,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
}

impl Target {
    /// Exports what lies at `noun` in the API (`/images/debian`), which has
    /// `/export` and `/content` below it; `subject` is its name.
    pub(super) async fn fill(
        self,
        client: &Client,
        noun: &str,
        subject: &str,
        json: bool,
    ) -> anyhow::Result<Answer> {
        if self.file == Path::new("-") {
            return self.pour(client, noun, subject, json).await;
        }
        let asked = ExportDisk {
            path: server_path(&self.file)?,
            format: self.format,
            replace: self.force,
        };
        let job: Job = client.add(&format!("{noun}/export"), &asked).await?;
        let exported: Exported = job::follow(client, job, json).await?;
        let text = format!(
            "{subject}: {} exported to {}, {} stored",
            bytes(exported.size_bytes),
            exported.path,
            bytes(exported.stored_bytes)
        );
        Answer::new(text, &exported)
    }

    async fn pour(
        self,
        client: &Client,
        noun: &str,
        subject: &str,
        json: bool,
    ) -> anyhow::Result<Answer> {
        if !matches!(self.format, None | Some(ExportFormat::Raw)) {
            bail!("only a raw disk can be written to a pipe: name a file");
        }
        if io::stdout().is_terminal() {
            bail!("a disk is nothing for a terminal: pipe it into something, or name a file");
        }
        let bar = Bar::new(subject, json)?;
        let mut output = io::stdout().lock();
        let mut done = 0;
        let path = format!("{noun}/content");
        client
            .receive(&path, |total, piece| {
                bar.step("", total);
                output.write_all(piece)?;
                done += piece.len() as u64;
                bar.at(done);
                Ok(())
            })
            .await?;
        output.flush()?;
        bar.clear();
        Ok(Answer::nothing())
    }
}
