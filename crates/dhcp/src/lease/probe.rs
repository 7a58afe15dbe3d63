//! Addresses that somebody may have whom we did not lend them: which are asked
//! for, ahead of their need or when they are offered, and what was heard.
//!
//! No offer waits for an answer (ISC's and dnsmasq's take up to 3 s): it is
//! made of what was asked before, or withdrawn when an answer comes.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use super::{DECLINE_REST, Leases, Place};
use crate::{Change, Mac, Observation, Policy, Subnet};

/// How long an answer is waited for (RFC 5227 section 1.1 waits up to 2 s for
/// an address that is then kept for good).
pub const PROBE_WAIT: Duration = Duration::from_secs(1);

/// How long an address that nobody answered on counts as free.
const PROBE_FRESH: Duration = Duration::from_secs(600);

/// Addresses of one pool that are kept asked for.
const PROBED_AHEAD: usize = 256;

/// Addresses of a pool looked at in one step of that.
const STEP: u32 = 32;

/// Questions that wait to be sent.
const WANTED_MAX: usize = 1024;

/// Addresses at rest because somebody answered: whoever answers for all of
/// them does not take the pool away.
pub const CONFLICTS_MAX: usize = 64;

/// Those of one MAC: one that has more answers for others (proxy ARP).
pub const CONFLICTS_OF_ONE_MAX: usize = 4;

/// What was asked and heard.
#[derive(Default)]
pub(super) struct Probes {
    is_on: bool,
    /// Nobody answered, when asked then.
    clean: BTreeMap<Ipv4Addr, SystemTime>,
    /// Asked, not yet waited for long enough.
    asked: HashMap<Ipv4Addr, SystemTime>,
    /// To be asked at once.
    wanted: Vec<Ipv4Addr>,
    /// Who answered, and until when the address rests.
    conflicts: HashMap<Ipv4Addr, (Mac, SystemTime)>,
    /// Where in each network's pool the next step begins.
    cursors: HashMap<Ipv4Addr, u32>,
}

impl Probes {
    fn is_clean(&self, address: Ipv4Addr, now: SystemTime) -> bool {
        self.clean
            .get(&address)
            .is_some_and(|&at| is_younger(at, PROBE_FRESH, now))
    }

    fn is_heeded(&mut self, mac: Mac, now: SystemTime) -> bool {
        self.conflicts.retain(|_, (_, until)| *until > now);
        let of_one = self.conflicts.values().filter(|(other, _)| *other == mac);
        of_one.count() < CONFLICTS_OF_ONE_MAX && self.conflicts.len() < CONFLICTS_MAX
    }

    /// The address is somebody's now.
    pub(super) fn lent(&mut self, address: Ipv4Addr) {
        self.clean.remove(&address);
    }
}

fn is_younger(at: SystemTime, age: Duration, now: SystemTime) -> bool {
    now.duration_since(at).is_ok_and(|passed| passed < age)
}

impl Leases {
    /// From now on offered addresses are wanted to be asked for.
    pub fn begin_probing(&mut self) {
        self.probes.is_on = true;
    }

    /// An address for a newcomer that nobody is on, rather than the first one
    /// if that was not asked for.
    pub(super) fn clean_or(&self, first: Ipv4Addr, mac: Mac, place: Place) -> Ipv4Addr {
        if !self.probes.is_on || self.probes.is_clean(first, place.now) {
            return first;
        }
        let clean = self.probes.clean.keys().copied();
        clean
            .filter(|address| {
                place.subnet.lends(*address)
                    && self.probes.is_clean(*address, place.now)
                    && !self.by_address.contains_key(address)
            })
            .find(|address| self.is_free(mac, *address, place))
            .unwrap_or(first)
    }

    /// An offered address is to be asked for, unless that was done or the MAC
    /// has it already.
    pub(super) fn want_probe(&mut self, mac: Mac, address: Ipv4Addr, now: SystemTime) {
        let has_it = self.holds(mac, now) && self.by_address.get(&address) == Some(&mac);
        let probes = &mut self.probes;
        if probes.is_on
            && !has_it
            && probes.wanted.len() < WANTED_MAX
            && !probes.is_clean(address, now)
            && !probes.asked.contains_key(&address)
        {
            probes.wanted.push(address);
        }
    }

    /// The addresses to be asked for at once that an interface reaches.
    pub fn take_wanted_probes(
        &mut self,
        is_reached: impl Fn(Ipv4Addr) -> bool,
        now: SystemTime,
    ) -> Vec<Ipv4Addr> {
        let mut wanted = std::mem::take(&mut self.probes.wanted);
        wanted.retain(|address| is_reached(*address));
        self.probes
            .asked
            .extend(wanted.iter().map(|address| (*address, now)));
        wanted
    }

    /// The next addresses of a network's pool to be asked for ahead of their
    /// need; to be called every [`PROBE_WAIT`].
    pub fn probe_ahead(
        &mut self,
        subnet: &Subnet,
        is_reached: impl Fn(Ipv4Addr) -> bool,
        policy: &dyn Policy,
        now: SystemTime,
    ) -> Vec<Ipv4Addr> {
        let probes = &mut self.probes;
        for (address, at) in &probes.asked {
            if !is_younger(*at, PROBE_WAIT, now) && !self.by_address.contains_key(address) {
                probes.clean.insert(*address, *at);
            }
        }
        probes
            .asked
            .retain(|_, at| is_younger(*at, PROBE_WAIT, now));
        probes
            .clean
            .retain(|_, at| is_younger(*at, PROBE_FRESH, now));
        let ready = probes.clean.keys().chain(probes.asked.keys());
        let ready = ready.filter(|address| subnet.lends(**address)).count();
        let room = PROBED_AHEAD.saturating_sub(ready);
        if room == 0 {
            return Vec::new();
        }
        let cursor = probes.cursors.entry(subnet.network).or_default();
        let from = std::mem::replace(cursor, cursor.wrapping_add(STEP));
        let next: Vec<Ipv4Addr> = subnet
            .pool_from(from)
            .take(usize::try_from(STEP).unwrap_or_default())
            .filter(|address| {
                !self.by_address.contains_key(address)
                    && self.offers.holder(*address, now).is_none()
                    && self.resting.get(address).is_none_or(|until| *until <= now)
                    && !self.probes.clean.contains_key(address)
                    && !self.probes.asked.contains_key(address)
                    && !subnet.is_reserved(*address)
                    && is_reached(*address)
                    && policy.promised_to(*address).is_none()
            })
            .take(room)
            .collect();
        let asked = next.iter().map(|address| (*address, now));
        self.probes.asked.extend(asked);
        next
    }

    /// A MAC says that it has an address. Where we asked for that and it is
    /// not the one we offered it to, the address rests, and who was offered it
    /// is not lent it.
    pub fn hear(
        &mut self,
        mac: Mac,
        address: Ipv4Addr,
        policy: &dyn Policy,
        now: SystemTime,
    ) -> Option<Observation> {
        let is_meant =
            self.probes.asked.contains_key(&address) || self.probes.is_clean(address, now);
        let lent_to = self.by_address.get(&address).copied();
        let offered_to = self.offers.holder(address, now);
        if !is_meant || policy.is_in_use(address) {
            return None;
        }
        if Some(mac) == offered_to || (offered_to.is_none() && Some(mac) == lent_to) {
            return None;
        }
        if !self.probes.is_heeded(mac, now) {
            return None;
        }
        // It came for the offer before the answer did.
        let lent_to = lent_to.filter(|holder| *holder != mac && self.holds(*holder, now));
        if let Some(holder) = lent_to
            && let Err(error) = self.change(Change::End(holder))
        {
            tracing::error!(mac = %holder, %address, error, "lease of an address in conflict not forgotten");
            return None;
        }
        if let Some(waiting) = offered_to {
            self.offers.drop(waiting);
        }
        self.probes.asked.remove(&address);
        self.probes.clean.remove(&address);
        let until = now + DECLINE_REST;
        self.probes.conflicts.insert(address, (mac, until));
        self.resting.retain(|_, until| *until > now);
        self.resting.insert(address, until);
        Some(Observation::Conflict {
            address,
            holder: Some(mac),
            offered_to: offered_to.or(lent_to),
        })
    }
}

#[cfg(test)]
mod tests;
