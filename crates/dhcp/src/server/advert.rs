//! The answers to firmware that waits for an IPv6 router, on one interface.

use std::io;
use std::net::Ipv6Addr;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use super::packet::{Multicast, PacketSocket};
use super::{ERROR_PAUSE, MAX_PACKET_BYTES, Shared, interfaces};
use crate::Mac;
use crate::advert::{Pending, emit, link_local, parse};

/// The addresses of this machine's interfaces, of the network namespace this
/// thread is in (proc_net(5)).
const ADDRESSES: &str = "/proc/thread-self/net/if_inet6";

/// What neighbours say to routers and to everybody (RFC 4291 section 2.7.1).
const MULTICASTS: [Multicast; 2] = [
    Multicast([0x33, 0x33, 0, 0, 0, 1]),
    Multicast([0x33, 0x33, 0, 0, 0, 2]),
];

impl Shared {
    /// Tells machines that boot that there is no router; returns where this
    /// cannot be done.
    pub(super) async fn advertise(self: Arc<Self>, interface: String) {
        if let Err(error) = self.answer_solicitations(&interface).await {
            tracing::debug!(
                interface,
                %error,
                "iPXE will wait for an IPv6 router here"
            );
        }
    }

    async fn answer_solicitations(&self, interface: &str) -> io::Result<()> {
        let Some(mac) = mac_of(interface)? else {
            return Ok(());
        };
        let packets = PacketSocket::open_router_discovery(interface, &MULTICASTS)?.register()?;
        let mut pending = Pending::default();
        let mut buffer = vec![0; MAX_PACKET_BYTES];
        loop {
            let received = match pending.next_due() {
                Some(due) => {
                    tokio::time::timeout_at(due.into(), packets.receive(&mut buffer)).await
                }
                None => Ok(packets.receive(&mut buffer).await),
            };
            match received {
                Ok(Ok(length)) => {
                    if let Some(heard) = buffer.get(..length).and_then(parse) {
                        pending.hear(heard, Instant::now());
                    }
                }
                Ok(Err(error)) => {
                    tracing::debug!(interface, %error, "listening for solicitations");
                    tokio::time::sleep(ERROR_PAUSE).await;
                }
                Err(_elapsed) => {}
            }
            let now = Instant::now();
            while let Some(asked) = pending.take_due(now) {
                if !self.is_booting(asked.mac, now) {
                    continue;
                }
                let source = own_link_local(interface).unwrap_or_else(|| link_local(mac));
                match packets.send_packet(asked.mac, &emit(mac, source, &asked)) {
                    Ok(()) => {
                        tracing::debug!(interface, mac = %asked.mac, "told that no router is here")
                    }
                    Err(error) => tracing::debug!(interface, %error, "answering a solicitation"),
                }
            }
        }
    }

    fn is_booting(&self, mac: Mac, now: Instant) -> bool {
        let booting = &self.policy.booting;
        let booting = booting.lock().unwrap_or_else(PoisonError::into_inner);
        booting.contains(mac, now)
    }
}

fn mac_of(interface: &str) -> io::Result<Option<Mac>> {
    let all = interfaces()?;
    Ok(all
        .into_iter()
        .find(|one| one.name == interface)
        .and_then(|one| one.mac))
}

/// The address the kernel has given the interface, once it is known to be
/// ours alone; none where IPv6 is off.
fn own_link_local(interface: &str) -> Option<Ipv6Addr> {
    let text = std::fs::read_to_string(ADDRESSES).ok()?;
    text.lines().find_map(|line| parse_address(line, interface))
}

/// A line: address, index, prefix length, scope, flags, name.
fn parse_address(line: &str, interface: &str) -> Option<Ipv6Addr> {
    const SCOPE_LINK: &str = "20";
    const TENTATIVE_OR_FAILED: u32 = 0x40 | 0x08;
    let mut words = line.split_ascii_whitespace();
    let address = u128::from_str_radix(words.next()?, 16).ok()?;
    let scope = words.nth(2)?;
    let flags = u32::from_str_radix(words.next()?, 16).ok()?;
    let is_ours = words.next()? == interface;
    (is_ours && scope == SCOPE_LINK && flags & TENTATIVE_OR_FAILED == 0)
        .then(|| Ipv6Addr::from_bits(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_link_local_address_is_found_and_not_while_it_is_tried() {
        let line = "fe80000000000000505400fffe123456 02 40 20 80     eth0";
        let address = Some("fe80::5054:ff:fe12:3456".parse().unwrap());
        assert_eq!(parse_address(line, "eth0"), address);
        assert_eq!(parse_address(line, "eth1"), None);
        assert_eq!(parse_address(&line.replace("20 80", "20 40"), "eth0"), None);
        assert_eq!(parse_address(&line.replace("20 80", "00 80"), "eth0"), None);
        assert_eq!(parse_address("fe80 02", "eth0"), None);
    }
}
