//! What `target serve` is told: all that a server without a configuration
//! needs.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::inventory::UnitKind;
pub(crate) use crate::inventory::{Chap, UnitFormat};

/// Where files are served when nobody says otherwise: to this host alone.
pub(crate) const DEFAULT_PORTAL: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 3260);

/// The target's name when nobody says otherwise.
pub(crate) const DEFAULT_TARGET: &str = "iqn.2026-11.net.diskless:files";

/// Files to serve as one target.
#[derive(Clone, Debug)]
pub(crate) struct ServedFiles {
    /// LUN 0, 1, 2 and so on.
    pub(crate) files: Vec<PathBuf>,
    /// Where to listen; port 0 is any free one.
    pub(crate) portals: Vec<SocketAddr>,
    /// The target's name.
    pub(crate) target: iscsi::Iqn,
    /// What each file is shown as.
    pub(crate) kind: UnitKind,
    /// 512 or 4096; `None`: what the kind has.
    pub(crate) block_bytes: Option<u32>,
    /// What initiators must prove; `None`: nothing.
    pub(crate) chap: Option<Chap>,
    /// What the files are; `None`: they are looked at.
    pub(crate) format: Option<UnitFormat>,
    /// Level of the log.
    pub(crate) log_level: String,
}
