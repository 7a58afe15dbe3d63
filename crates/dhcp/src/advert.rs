//! "There is no router here" for firmware that waits for one (RFC 4861).
//!
//! iPXE asks for an IPv6 router beside its DHCP, and boots only when both have
//! ended: 16 s (4 s since 2020) on a LAN where nobody answers. Any router
//! advertisement ends the wait. Ours has a router lifetime of 0, no prefix and
//! no flag: it makes nobody a router and configures nothing. It goes to the
//! asking machine alone, and only when this machine has just been seen to boot
//! from the network.
//!
//! A real router comes first: it has [`ROUTER_DELAY`] to answer, and where one
//! was heard we are silent.

use std::collections::{HashMap, VecDeque};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use crate::frame::checksum;
use crate::{Client, Mac};

/// How long a router may take to answer (RFC 4861 section 10,
/// MAX_RA_DELAY_TIME: 0.5 s), and a little more.
pub(crate) const ROUTER_DELAY: Duration = Duration::from_millis(600);

/// After its last DISCOVER, how long a machine counts as booting: longer than
/// iPXE asks, and short enough for the system that comes after it.
const BOOTING: Duration = Duration::from_secs(30);

/// How long we are silent where a router was heard: the default lifetime of
/// what it said (RFC 4861 section 6.2.1).
const ROUTER_HEARD: Duration = Duration::from_secs(1800);

/// Machines remembered as booting, and answers due at once; further ones wait
/// for themselves.
const MAX_MACHINES: usize = 4096;

/// Between two looks, while it is full, for machines that have booted: so that
/// a flood is not answered with one each.
const SWEEP: Duration = Duration::from_secs(1);

const IP_BYTES: usize = 40;
const ICMP: u8 = 58;
/// Neighbour discovery comes from the link itself: a router would have made
/// it 254.
const HOP_LIMIT: u8 = 255;
const SOLICITATION: u8 = 133;
const SOLICITATION_BYTES: usize = 8;
const ADVERTISEMENT: u8 = 134;
const ADVERTISEMENT_BYTES: usize = 16;
const SOURCE_LINK_ADDRESS: u8 = 1;
/// Options are counted in these.
const OPTION_UNIT: usize = 8;

/// A packet of router discovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Somebody asks for a router.
    Solicitation(Solicitation),
    /// A router, or who says that it is none.
    Advertisement,
}

/// Who asks for a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Solicitation {
    /// Its link-local address.
    pub(crate) source: Ipv6Addr,
    /// Its source link-layer address option.
    pub(crate) mac: Mac,
}

/// Reads an IPv6 packet; `None` for whatever is no router discovery, is not
/// valid (RFC 4861 sections 6.1.1 and 6.1.2), or cannot be answered to one
/// machine alone.
pub(crate) fn parse(packet: &[u8]) -> Option<Heard> {
    let (header, rest) = packet.split_first_chunk::<IP_BYTES>()?;
    if header[0] >> 4 != 6 || header[6] != ICMP || header[7] != HOP_LIMIT {
        return None;
    }
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let message = rest.get(..length)?;
    let source = Ipv6Addr::from_bits(u128::from_be_bytes(*header[8..].first_chunk()?));
    let pseudo = u32::from(ICMP) + u32::try_from(length).ok()?;
    let addresses = ones_sum(header.get(8..)?);
    if !source.is_unicast_link_local() || checksum(message, pseudo + addresses) != 0 {
        return None;
    }
    match (message.first()?, message.get(1)?) {
        (&SOLICITATION, 0) => {
            let mac = source_link_address(message.get(SOLICITATION_BYTES..)?)?;
            Some(Heard::Solicitation(Solicitation { source, mac }))
        }
        (&ADVERTISEMENT, 0) if length >= ADVERTISEMENT_BYTES => Some(Heard::Advertisement),
        _ => None,
    }
}

/// The option of an Ethernet; `None` too where the options are broken.
fn source_link_address(mut options: &[u8]) -> Option<Mac> {
    let mut found = None;
    while let Some((&kind, rest)) = options.split_first() {
        let length = usize::from(*rest.first()?) * OPTION_UNIT;
        if length == 0 {
            return None;
        }
        let option = options.get(..length)?;
        if kind == SOURCE_LINK_ADDRESS && length == OPTION_UNIT {
            found = found.or(option[2..].first_chunk().copied().map(Mac));
        }
        options = &options[length..];
    }
    // A multicast address is nobody's.
    found.filter(|mac| mac.0[0] & 1 == 0)
}

/// The IPv6 packet that says to who asks that we, at `mac` and `source`, are
/// no router.
pub(crate) fn emit(mac: Mac, source: Ipv6Addr, to: &Solicitation) -> Vec<u8> {
    const MESSAGE_BYTES: u8 = 24; // the advertisement and one option
    let mut packet = Vec::with_capacity(IP_BYTES + usize::from(MESSAGE_BYTES));
    packet.extend([0x60, 0, 0, 0]); // version 6; no class, no flow
    packet.extend([0, MESSAGE_BYTES, ICMP, HOP_LIMIT]);
    packet.extend(source.octets());
    packet.extend(to.source.octets());
    packet.extend([ADVERTISEMENT, 0, 0, 0]); // code 0, checksum
    packet.extend([0, 0]); // hop limit not said; neither M nor O
    packet.extend([0, 0]); // router lifetime: not a default router
    packet.extend([0; 8]); // reachable time, retransmission timer: not said
    packet.extend([SOURCE_LINK_ADDRESS, 1]);
    packet.extend(mac.0);
    let sum = checksum(&packet[8..], u32::from(ICMP) + u32::from(MESSAGE_BYTES));
    packet[IP_BYTES + 2..IP_BYTES + 4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// The link-local address an interface gives itself from its Ethernet address
/// (RFC 4291 appendix A).
pub(crate) fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0.map(u16::from);
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        (a ^ 2) << 8 | b,
        c << 8 | 0xff,
        0xfe00 | d,
        e << 8 | f,
    )
}

/// A sum to begin [`checksum`] at: its result is the complement.
fn ones_sum(bytes: &[u8]) -> u32 {
    u32::from(!checksum(bytes, 0))
}

/// Machines that were seen to boot from the network a moment ago.
#[derive(Debug, Default)]
pub(crate) struct Booting {
    asked: HashMap<Mac, Instant>,
    /// When those that have booted were last forgotten.
    swept: Option<Instant>,
}

impl Booting {
    /// A client has asked for an address: firmware counts from now, an
    /// operating system not any longer.
    pub(crate) fn asked(&mut self, client: &Client, now: Instant) {
        if !client.firmware.is_network_boot() {
            self.asked.remove(&client.mac);
            return;
        }
        let is_full = self.asked.len() >= MAX_MACHINES;
        if is_full && self.swept.is_none_or(|swept| now - swept >= SWEEP) {
            self.asked.retain(|_, asked| now - *asked < BOOTING);
            self.swept = Some(now);
        }
        if self.asked.len() < MAX_MACHINES || self.asked.contains_key(&client.mac) {
            self.asked.insert(client.mac, now);
        }
    }

    /// Whether it boots still.
    pub(crate) fn contains(&self, mac: Mac, now: Instant) -> bool {
        self.asked
            .get(&mac)
            .is_some_and(|asked| now - *asked < BOOTING)
    }
}

/// The answers due on one interface.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// In the order they are due.
    due: VecDeque<(Instant, Solicitation)>,
    router_heard: Option<Instant>,
}

impl Pending {
    /// Takes what was heard.
    pub(crate) fn hear(&mut self, heard: Heard, now: Instant) {
        match heard {
            Heard::Advertisement => {
                self.router_heard = Some(now);
                self.due.clear();
            }
            Heard::Solicitation(asked) => {
                let has_router = self
                    .router_heard
                    .is_some_and(|heard| now - heard < ROUTER_HEARD);
                let is_due = self.due.iter().any(|(_, due)| due.mac == asked.mac);
                if !has_router && !is_due && self.due.len() < MAX_MACHINES {
                    self.due.push_back((now + ROUTER_DELAY, asked));
                }
            }
        }
    }

    /// When to look for an answer.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.due.front().map(|(due, _)| *due)
    }

    /// Who is to be answered now.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<Solicitation> {
        if self.next_due()? > now {
            return None;
        }
        self.due.pop_front().map(|(_, asked)| asked)
    }
}

#[cfg(test)]
mod tests;
