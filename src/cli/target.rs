//! `diskless target`.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};

use crate::config::{Chap, DEFAULT_PORTAL, DEFAULT_TARGET, ServedFiles, UnitKind};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Serve files as disks at once, without configuration or state, until
    /// Ctrl-C or SIGTERM
    ///
    /// Prints one line iscsi://ADDR:PORT/IQN/LUN for each file and portal once
    /// they can be opened. The log goes to stderr.
    Serve(Serve),
}

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Raw images, ISOs or block devices: LUN 0, 1, 2 and so on
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Where to listen, may be repeated; port 0 is any free one
    #[arg(long, value_name = "ADDR:PORT", default_values_t = [DEFAULT_PORTAL])]
    listen: Vec<SocketAddr>,

    /// Name of the target
    #[arg(long, value_name = "NAME", default_value = DEFAULT_TARGET, value_parser = iscsi::Iqn::parse)]
    iqn: iscsi::Iqn,

    #[command(flatten)]
    kind: Kind,

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

/// What a file is shown as: a fixed, fully provisioned disk, or one of these.
#[derive(Clone, Copy, Debug, Args)]
#[group(multiple = false)]
pub(super) struct Kind {
    /// A thinly provisioned disk: initiators give space back, and the file gets
    /// holes
    #[arg(long)]
    thin: bool,
    /// A disk that nobody writes; the file is opened read-only
    #[arg(long)]
    read_only: bool,
    /// A disk whose medium can be ejected
    #[arg(long)]
    removable: bool,
    /// A DVD drive with the file (an ISO) as its disc
    #[arg(long)]
    cdrom: bool,
}

impl Kind {
    fn named(self) -> UnitKind {
        match self {
            Kind { thin: true, .. } => UnitKind::Thin,
            Kind {
                read_only: true, ..
            } => UnitKind::ReadOnly,
            Kind {
                removable: true, ..
            } => UnitKind::Removable,
            Kind { cdrom: true, .. } => UnitKind::Optical,
            _ => UnitKind::Disk,
        }
    }
}

impl Serve {
    /// What is to be served; reads the secret.
    pub(super) fn files(self) -> anyhow::Result<ServedFiles> {
        let chap = match (&self.chap_file, &self.chap) {
            (Some(path), _) => {
                let context = || format!("the CHAP file {}", path.display());
                let text = fs::read_to_string(path).with_context(context)?;
                let line = text.lines().next().unwrap_or_default();
                Some(Chap::parse(line).with_context(context)?)
            }
            (None, Some(chap)) => Some(Chap::parse(chap)?),
            (None, None) => None,
        };
        let mut portals = self.listen;
        portals.dedup();
        if self.files.len() > MAX_FILES {
            bail!(
                "{} files are more than one target has LUNs ({MAX_FILES})",
                self.files.len()
            );
        }
        Ok(ServedFiles {
            files: self.files,
            portals,
            target: self.iqn,
            kind: self.kind.named(),
            block_bytes: self.block_size,
            chap,
            as_it_is: self.raw,
            log_level: self.log_level,
        })
    }
}

/// LUNs of one target: what flat addressing has numbers for.
const MAX_FILES: usize = 1 << 14;

fn block_bytes(text: &str) -> Result<u32, String> {
    match text {
        "512" => Ok(512),
        "4096" | "4k" | "4K" => Ok(4096),
        _ => Err("512 or 4096".to_owned()),
    }
}
