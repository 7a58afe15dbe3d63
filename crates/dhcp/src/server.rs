//! The server: sockets, clock and thread (RFC 2131, PXE 2.1).

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use crate::{Lease, LeaseStore, Mac, Policy, Settings};

/// An interface to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceConfig {
    /// Its name, for instance `enp3s0`.
    pub name: String,
    /// Its address: the server identifier, and what its clients see us under.
    pub address: Ipv4Addr,
    /// The mask of its network.
    pub netmask: Ipv4Addr,
}

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets received on the served ports.
    pub received: u64,
    /// Packets dropped because they could not be read.
    pub malformed: u64,
    /// Replies sent.
    pub answered: u64,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    counters: Counters,
}

impl Server {
    /// Opens the sockets of every interface and starts to answer.
    ///
    /// # Errors
    /// `AddrInUse`: another program holds port 67 or 4011 of an interface
    /// (never in observe mode, which holds no port). `NotFound`: no such
    /// interface. `PermissionDenied`: neither root nor `CAP_NET_RAW` and
    /// `CAP_NET_BIND_SERVICE`. `InvalidInput`: settings that contradict
    /// themselves. The message names interface and port.
    pub fn start(
        interfaces: Vec<InterfaceConfig>,
        settings: Settings,
        policy: Arc<dyn Policy>,
        leases: Arc<dyn LeaseStore>,
    ) -> io::Result<Server> {
        let _ = (interfaces, settings, policy, leases);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// All leases, expired ones included, by address.
    pub fn leases(&self) -> Vec<Lease> {
        Vec::new()
    }

    /// What was counted since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Stops answering and closes the sockets; dropping does the same
    /// without waiting.
    pub async fn stop(self) {}
}

/// A network interface of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Whether it is up and has a carrier.
    pub is_up: bool,
    /// What it is.
    pub kind: InterfaceKind,
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// Its IPv4 addresses with their masks.
    pub addresses: Vec<(Ipv4Addr, Ipv4Addr)>,
}

/// What an interface is, for the question which one can be meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InterfaceKind {
    /// A network card with a cable (or a virtual machine's).
    Wired,
    /// A wireless card.
    Wireless,
    /// The loopback interface.
    Loopback,
    /// A bridge somebody made for a LAN (`br0`).
    Bridge,
    /// Made by a container or VM program for itself (`docker0`, `virbr0`,
    /// `veth...`), or a tunnel.
    Internal,
    /// A VLAN, a bond or the like on top of another interface.
    Stacked,
}

/// The network interfaces of this machine, by name.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Asks the LAN behind an interface for DHCP servers: sends a DISCOVER and
/// returns who offers within `timeout`. Some servers look whether an address
/// is free before they offer it (dnsmasq: 3 s): 5 s is a good timeout.
///
/// Needs a tokio runtime, no port and no address on the interface; servers on
/// this very machine are not seen (they hold port 67).
pub async fn look_for_other_servers(
    interface: &str,
    timeout: Duration,
) -> io::Result<Vec<Ipv4Addr>> {
    let _ = (interface, timeout);
    Err(io::ErrorKind::Unsupported.into())
}
