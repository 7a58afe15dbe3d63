//! What `target serve` takes.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::{KindFlags, block_bytes, first_line};
use crate::config::{Chap, DEFAULT_PORTAL, DEFAULT_TARGET, ServedFiles, UnitFormat};

#[derive(Debug, Args)]
pub(in crate::cli) struct Serve {
    /// Disk images (raw, VHD, VHDX; qcow2 with --read-only), ISOs or block
    /// devices: LUN 0, 1, 2 and so on
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Where to listen, may be repeated; port 0 is any free one
    #[arg(long, value_name = "ADDR:PORT", default_values_t = [DEFAULT_PORTAL])]
    listen: Vec<SocketAddr>,

    /// Name of the target
    #[arg(long, value_name = "NAME", default_value = DEFAULT_TARGET, value_parser = iscsi::Iqn::parse)]
    iqn: iscsi::Iqn,

    #[command(flatten)]
    kind: KindFlags,

    /// Logical blocks of 512 or 4096 bytes [default: 512, a block device's
    /// own, 2048 for --cdrom]
    #[arg(long, value_name = "BYTES", value_parser = block_bytes, conflicts_with = "cdrom")]
    block_size: Option<u32>,

    /// Let in only who proves this by CHAP. Other users of this host see
    /// command lines: better the variable, or --chap-file
    #[arg(
        long,
        value_name = "NAME:SECRET",
        env = "DISKLESS_TARGET_CHAP",
        hide_env_values = true
    )]
    chap: Option<String>,

    /// The same, from the first line of a file
    #[arg(long, value_name = "FILE")]
    chap_file: Option<PathBuf>,

    /// Serve a file's bytes as they are, even where it looks like a qcow2,
    /// VHD or compressed image
    #[arg(long)]
    raw: bool,

    /// Level of the log: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
}

impl Serve {
    /// What is to be served; reads the secret.
    pub(in crate::cli) fn files(self) -> anyhow::Result<ServedFiles> {
        let chap = match (&self.chap_file, &self.chap) {
            (Some(path), _) => {
                let line = first_line(path)?;
                let chap = Chap::parse(&line);
                Some(chap.with_context(|| format!("the CHAP file {}", path.display()))?)
            }
            (None, Some(chap)) => Some(Chap::parse(chap)?),
            (None, None) => None,
        };
        let mut portals = self.listen;
        portals.dedup();
        Ok(ServedFiles {
            files: self.files,
            portals,
            target: self.iqn,
            kind: self.kind.kind().into(),
            block_bytes: self.block_size,
            chap,
            format: self.raw.then_some(UnitFormat::Raw),
            log_level: self.log_level,
        })
    }
}
