//! DOORS: each engine's question answered from facts and decisions.
//!
//! One [`Site`] stands behind all of them, so that they cannot disagree about
//! what a machine boots.

mod addresses;
pub(crate) mod chains;
pub(crate) mod dhcp;
pub(crate) mod documents;
pub(crate) mod http;
pub(crate) mod iscsi;
pub(crate) mod ladders;
pub(crate) mod loaders;
mod ranges;
mod secure;
#[cfg(test)]
mod tests;
pub(crate) mod tftp;
pub(crate) mod tls;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use crate::boot::script::{Doors, Ports};
use crate::config::DhcpMode;
use crate::inventory::{Inventory, Machine};
use crate::timeline::Timeline;

pub(crate) use addresses::Addresses;
pub(crate) use ladders::Climbs;
pub(crate) use loaders::Loaders;
pub(crate) use secure::Systems;

/// What every door knows of this site.
pub(crate) struct Site {
    /// Facts.
    pub(crate) inventory: Arc<Inventory>,
    /// What happened.
    pub(crate) timeline: Arc<Timeline>,
    /// Loader files.
    pub(crate) loaders: Loaders,
    /// What is done about DHCP: not every loader finds us beside another server.
    pub(crate) dhcp_mode: DhcpMode,
    /// Which MAC has which address, as far as we have seen it.
    pub(crate) addresses: Addresses,
    /// Where machines stand on the ladders.
    pub(crate) climbs: Climbs,
    /// The ports machines reach us by.
    pub(crate) ports: Ports,
    /// Who opens machines' disks, once it is there.
    pub(crate) disks: OnceLock<Weak<iscsi::MachineDisks>>,
    /// Which distributions machines' disks hold.
    pub(crate) systems: Systems,
    /// IQN up to the colon before a machine's name.
    pub(crate) target_prefix: String,
    /// Files of the user's, served below `/files/`.
    pub(crate) files: PathBuf,
    /// Discs of the user's, served below `/iso/`.
    pub(crate) isos: PathBuf,
    /// Our own certificate authority, where HTTPS is proven by it: PEM.
    pub(crate) authority: Option<String>,
    /// Whether golden images are served below `/images/`.
    pub(crate) serves_images: bool,
    /// How long a machine that could not boot waits before it asks again, at
    /// least; jitter comes on top.
    pub(crate) retry: Duration,
}

impl Site {
    /// The target that holds a machine's disk.
    pub(crate) fn target_name(&self, machine: &Machine) -> String {
        format!("{}:{}", self.target_prefix, machine.name)
    }

    /// The name under which a machine logs in. Names of machines have no dot,
    /// so no machine's initiator is another machine's target.
    pub(crate) fn initiator_name(&self, machine: &Machine) -> String {
        format!("{}:{}.initiator", self.target_prefix, machine.name)
    }

    /// The machine's name in a target's name, if it is one of ours.
    pub(crate) fn machine_in<'a>(&self, target: &'a str) -> Option<&'a str> {
        target.strip_prefix(&self.target_prefix)?.strip_prefix(':')
    }

    /// Where a machine reaches us that came by this address of ours.
    pub(crate) fn doors(&self, server: Ipv4Addr) -> Doors {
        Doors::new(server, self.ports)
    }
}
