//! Limits of what machines unknown to the site are lent: a flood that takes
//! what it is offered leaves room for the machines of the site.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use super::{Leases, Place};
use crate::{Mac, Subnet};

/// Addresses lent at a time to machines unknown to the site behind one port
/// of a relay (option 82, circuit identifier).
pub const PORT_ADDRESSES_MAX: usize = 64;

/// The part of each pool that is lent to machines of the site only: one in so
/// many addresses.
pub const POOL_RESERVE_DIVISOR: usize = 8;

/// Ports whose guests are counted: more than a site has. Of ports invented
/// beyond it the network's reserve takes care.
const PORTS_MAX: usize = 4096;

/// How old a count may be that says that a limit is reached.
const RECOUNT: Duration = Duration::from_secs(1);

/// Where behind a relay a request came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RelayPort {
    /// giaddr.
    pub relay: Ipv4Addr,
    /// Sub-option 1 of option 82 (RFC 3046 section 3.1).
    pub circuit: Vec<u8>,
}

/// What machines unknown to the site hold.
#[derive(Default)]
pub(super) struct Guests {
    by_port: HashMap<RelayPort, Count<HashSet<Mac>>>,
    /// Addresses lent of each pool, to whomever.
    by_network: HashMap<Ipv4Addr, Count<usize>>,
}

struct Count<T> {
    at: SystemTime,
    of: T,
}

impl<T> Count<T> {
    fn is_fresh(&self, now: SystemTime) -> bool {
        now.duration_since(self.at).is_ok_and(|age| age < RECOUNT)
    }
}

impl Leases {
    /// Whether a machine may be lent an address it does not have yet; those
    /// of the site always may.
    pub fn has_room_for(&mut self, mac: Mac, port: Option<&RelayPort>, place: Place) -> bool {
        if is_of_site(place) || self.holds(mac, place.now) {
            return true;
        }
        port.is_none_or(|port| self.port_has_room(port, place.now))
            && self.pool_has_room(place.subnet, place.now)
    }

    /// Counts an address just lent, or prolonged where it is not new.
    pub fn count(&mut self, mac: Mac, is_new: bool, port: Option<&RelayPort>, place: Place) {
        let lent = self.guests.by_network.get_mut(&place.subnet.network);
        if let Some(lent) = lent.filter(|_| is_new) {
            lent.of += 1;
        }
        let Some(port) = port else { return };
        let ports = &mut self.guests.by_port;
        if is_of_site(place) {
            if let Some(held) = ports.get_mut(port) {
                held.of.remove(&mac);
            }
            return;
        }
        if ports.len() >= PORTS_MAX && !ports.contains_key(port) {
            let by_mac = &self.by_mac;
            ports.retain(|_, held| held.of.iter().any(|mac| is_lent(by_mac, *mac, place.now)));
            if ports.len() >= PORTS_MAX {
                return;
            }
        }
        let held = ports.entry(port.clone()).or_insert_with(|| Count {
            at: place.now,
            of: HashSet::new(),
        });
        held.of.insert(mac);
    }

    /// Whether the MAC has an address that has not run out.
    pub fn holds(&self, mac: Mac, now: SystemTime) -> bool {
        is_lent(&self.by_mac, mac, now)
    }

    fn port_has_room(&mut self, port: &RelayPort, now: SystemTime) -> bool {
        let Some(held) = self.guests.by_port.get_mut(port) else {
            return true;
        };
        if held.of.len() >= PORT_ADDRESSES_MAX && !held.is_fresh(now) {
            held.of.retain(|mac| is_lent(&self.by_mac, *mac, now));
            held.at = now;
        }
        held.of.len() < PORT_ADDRESSES_MAX
    }

    fn pool_has_room(&mut self, subnet: &Subnet, now: SystemTime) -> bool {
        let size = subnet.pool_size();
        let room = size - size / POOL_RESERVE_DIVISOR;
        if self.by_address.len() < room {
            return true;
        }
        let known = self.guests.by_network.get(&subnet.network);
        if let Some(lent) = known.filter(|lent| lent.is_fresh(now)) {
            return lent.of < room;
        }
        let held = self.by_mac.values().filter(|lease| {
            (lease.expires > now || self.is_guarded(lease.mac, now)) && subnet.lends(lease.address)
        });
        let lent = Count {
            at: now,
            of: held.count(),
        };
        let has_room = lent.of < room;
        self.guests.by_network.insert(subnet.network, lent);
        has_room
    }
}

fn is_of_site(place: Place) -> bool {
    place.promise.is_known || place.promise.address.is_some()
}

fn is_lent(by_mac: &HashMap<Mac, crate::Lease>, mac: Mac, now: SystemTime) -> bool {
    by_mac.get(&mac).is_some_and(|lease| lease.expires > now)
}
