//! The questions whose an address is, on one interface (RFC 5227).

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::{Instant, timeout_at};

use super::packet::{AsyncPacketSocket, PacketSocket};
use super::{ERROR_PAUSE, InterfaceConfig, MAX_PACKET_BYTES, RegisteredLink, Shared, interfaces};
use crate::lease::PROBE_WAIT;
use crate::{Mac, Policy, arp};

/// Where everybody hears it.
const EVERYBODY: Mac = Mac([0xff; 6]);

/// What asks on one interface, before it enters the runtime.
pub(super) struct Asker {
    own: Mac,
    packets: PacketSocket,
}

/// What asks on one interface.
pub(super) struct RegisteredAsker {
    own: Mac,
    packets: AsyncPacketSocket,
}

impl Asker {
    /// None on an interface without Ethernet addresses, or without the right
    /// to packet sockets: there nobody is asked.
    pub(super) fn open(interface: &str) -> io::Result<Option<Asker>> {
        let all = interfaces()?;
        let named = all.into_iter().find(|one| one.name == interface);
        let Some(own) = named.and_then(|one| one.mac) else {
            return Ok(None);
        };
        match PacketSocket::open_arp(interface) {
            Ok(packets) => Ok(Some(Asker { own, packets })),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Enters the runtime.
    pub(super) fn register(self) -> io::Result<RegisteredAsker> {
        Ok(RegisteredAsker {
            own: self.own,
            packets: self.packets.register()?,
        })
    }
}

impl RegisteredAsker {
    /// Asks for each address; does not wait.
    pub(super) fn ask(&self, addresses: &[Ipv4Addr]) {
        for address in addresses {
            let probe = arp::probe(self.own, *address);
            if let Err(error) = self.packets.send_packet(EVERYBODY, &probe) {
                tracing::debug!(%address, %error, "asking whose an address is");
                return;
            }
        }
    }
}

impl InterfaceConfig {
    /// Whether ARP reaches an address from here.
    pub(super) fn reaches(&self, address: Ipv4Addr) -> bool {
        (address.to_bits() ^ self.address.to_bits()) & self.netmask.to_bits() == 0
    }
}

impl Shared {
    /// Keeps addresses asked for, and hears who has them.
    pub(super) async fn watch_addresses(self: Arc<Self>, link: Arc<RegisteredLink>) {
        let Some(asker) = &link.asker else { return };
        let mut buffer = vec![0; MAX_PACKET_BYTES];
        let mut due = Instant::now();
        loop {
            if Instant::now() >= due {
                asker.ask(&self.next_to_ask(&link.config));
                due = Instant::now() + PROBE_WAIT;
            }
            match timeout_at(due, asker.packets.receive(&mut buffer)).await {
                Ok(Ok(length)) => {
                    if let Some((mac, address)) = buffer.get(..length).and_then(arp::sender) {
                        self.hear(mac, address);
                    }
                }
                Ok(Err(error)) => {
                    tracing::debug!(interface = link.config.name, %error, "hearing ARP");
                    tokio::time::sleep(ERROR_PAUSE).await;
                }
                Err(_elapsed) => {}
            }
        }
    }

    fn next_to_ask(&self, config: &InterfaceConfig) -> Vec<Ipv4Addr> {
        let now = SystemTime::now();
        let subnet = self
            .settings
            .subnets
            .iter()
            .find(|subnet| subnet.contains(config.address));
        let is_reached = |address| config.reaches(address) && address != config.address;
        subnet
            .map(|subnet| {
                let mut leases = self.leases();
                leases.probe_ahead(subnet, is_reached, &self.policy, now)
            })
            .unwrap_or_default()
    }

    fn hear(&self, mac: Mac, address: Ipv4Addr) {
        let heard = self
            .leases()
            .hear(mac, address, &self.policy, SystemTime::now());
        if let Some(conflict) = heard {
            self.policy.observe(&conflict);
        }
    }
}
