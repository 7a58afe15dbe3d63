//! Addresses lent to MACs (RFC 2131 sections 3 and 4.3).
//!
//! Keyed by MAC, whatever option 61 says: the PXE ROM, iPXE and the operating
//! system of one machine name themselves differently and must all get the
//! same address, or the root disk's session dies. Owns no clock: `now` comes
//! in.
//!
//! Invariants: no address has two holders; a lease is in the store before it
//! is in memory, or by the end of its batch, and is in neither where that
//! fails; an address with a live iSCSI session is lent to nobody but its
//! holder.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

mod limit;
mod probe;

pub use limit::{POOL_RESERVE_DIVISOR, PORT_ADDRESSES_MAX, RelayPort};
pub use probe::{CONFLICTS_MAX, CONFLICTS_OF_ONE_MAX, PROBE_WAIT};

use crate::{Change, Client, Lease, LeaseStore, Mac, Policy, Promise, Subnet};

/// How long the server keeps an address for its MAC at least: after every
/// ACK, whatever the lease time, and after the loss of a live iSCSI session.
/// A kernel that found its root disk by the iBFT never renews, and must find
/// its address still its own; nor does iPXE while it loads.
pub const MIN_HOLD: Duration = Duration::from_secs(600);

/// How far beyond [`MIN_HOLD`] the lease of a live session is renewed each
/// time: more means fewer writes to the store.
const RENEW_SLACK: Duration = Duration::from_secs(300);

/// After this the system itself has written what nobody waited for. A lease
/// that ends sooner, or has ended, is renewed as a new one is lent: were power
/// lost, the store would say that the address is free.
const WRITTEN_BACK: Duration = Duration::from_secs(60);

/// The longest time between two calls of [`Leases::renew_in_use`]; a session
/// may have been lost right after one.
pub const RENEW_INTERVAL: Duration = Duration::from_secs(30);

/// How long an offered address is held. EDK2 collects offers for 5 s before
/// it takes one, and repeats its REQUEST.
pub const OFFER_HOLD: Duration = Duration::from_secs(15);

/// How long an address rests that a client found somebody else on (DECLINE).
pub const DECLINE_REST: Duration = Duration::from_secs(900);

/// After a restart live sessions come back within seconds, but the server
/// does not know yet which: leases that ended no longer ago than this are not
/// lent to others for [`MIN_HOLD`].
const RESTART_MEMORY: Duration = Duration::from_secs(24 * 3600);

/// Where a client asks, and what binds the choice of its address.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The network it is in.
    pub subnet: &'a Subnet,
    /// Our own address.
    pub server: Ipv4Addr,
    /// The site.
    pub policy: &'a dyn Policy,
    /// What is promised to the client.
    pub promise: &'a Promise,
    /// The time.
    pub now: SystemTime,
}

/// All leases and offers.
pub struct Leases {
    store: Arc<dyn LeaseStore>,
    /// Lent, not yet in the store; `None`: each goes there at once.
    batch: Option<Batch>,
    by_mac: HashMap<Mac, Lease>,
    by_address: HashMap<Ipv4Addr, Mac>,
    /// Offered, not yet asked for.
    offers: Offers,
    /// Declined addresses, and until when they rest.
    resting: HashMap<Ipv4Addr, SystemTime>,
    /// Leases that neither a RELEASE nor another client's need ends before
    /// this time.
    guarded: HashMap<Mac, SystemTime>,
    guests: limit::Guests,
    probes: probe::Probes,
}

/// Changes that reach the store together.
#[derive(Default)]
struct Batch {
    changes: Vec<Change>,
    /// What each MAC had before, the first change first.
    before: Vec<(Mac, Option<Lease>)>,
}

/// Addresses held for their MACs, each for a short while.
#[derive(Default)]
struct Offers {
    by_mac: HashMap<Mac, Offer>,
    by_address: HashMap<Ipv4Addr, Mac>,
}

#[derive(Clone, Copy)]
struct Offer {
    address: Ipv4Addr,
    until: SystemTime,
    /// Whether the MAC is one we know nothing of: its offer gives way to a
    /// machine of ours.
    is_strangers: bool,
}

impl Offers {
    fn of(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.by_mac.get(&mac).map(|offer| offer.address)
    }

    /// For whom an address is held now.
    fn holder(&self, address: Ipv4Addr, now: SystemTime) -> Option<Mac> {
        let mac = *self.by_address.get(&address)?;
        self.by_mac
            .get(&mac)
            .filter(|offer| offer.until > now)
            .map(|_| mac)
    }

    fn hold(&mut self, mac: Mac, address: Ipv4Addr, is_strangers: bool, now: SystemTime) {
        self.drop(mac);
        // Whoever had it before did not come in time.
        if let Some(late) = self.by_address.insert(address, mac) {
            self.by_mac.remove(&late);
        }
        self.by_mac.insert(
            mac,
            Offer {
                address,
                until: now + OFFER_HOLD,
                is_strangers,
            },
        );
    }

    fn drop(&mut self, mac: Mac) {
        if let Some(offer) = self.by_mac.remove(&mac) {
            self.by_address.remove(&offer.address);
        }
    }
}

/// What lending an address brought to light.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lent {
    /// Nothing.
    Plainly,
    /// The MAC had another UUID the last time.
    UuidChanged,
}

impl Leases {
    /// Takes up the leases kept in the store.
    pub fn open(store: Arc<dyn LeaseStore>, now: SystemTime) -> Result<Leases, String> {
        let mut leases = Leases {
            store,
            batch: None,
            by_mac: HashMap::new(),
            by_address: HashMap::new(),
            offers: Offers::default(),
            resting: HashMap::new(),
            guarded: HashMap::new(),
            guests: limit::Guests::default(),
            probes: probe::Probes::default(),
        };
        let mut kept = leases.store.load()?;
        // Should two hold one address, the younger lease is the true one.
        kept.sort_by_key(|lease| lease.expires);
        for lease in kept {
            if lease.expires + RESTART_MEMORY > now {
                leases.guarded.insert(lease.mac, now + MIN_HOLD);
            }
            leases.remember(lease);
        }
        Ok(leases)
    }

    /// From now on until [`commit`](Leases::commit) nothing goes to the store.
    pub fn begin_batch(&mut self) {
        self.batch.get_or_insert_default();
    }

    /// Keeps all that was lent since [`begin_batch`](Leases::begin_batch).
    ///
    /// # Errors
    /// The store's; nothing of it was lent then.
    pub fn commit(&mut self) -> Result<(), String> {
        let Some(batch) = self.batch.take().filter(|batch| !batch.changes.is_empty()) else {
            return Ok(());
        };
        self.store.apply(&batch.changes).inspect_err(|_| {
            for (mac, lease) in batch.before.into_iter().rev() {
                self.forget(mac);
                if let Some(lease) = lease {
                    self.remember(lease);
                }
            }
        })
    }

    /// Changes one MAC's lease, in the store now or at the end of the batch.
    fn change(&mut self, change: Change) -> Result<(), String> {
        let mac = match &change {
            Change::Bind(lease) | Change::Renew(lease) => lease.mac,
            Change::End(mac) => *mac,
        };
        match &mut self.batch {
            None => self.store.apply(std::slice::from_ref(&change))?,
            Some(batch) => {
                let before = self.by_mac.get(&mac).cloned();
                batch.before.push((mac, before));
                batch.changes.push(change.clone());
            }
        }
        match change {
            Change::Bind(lease) | Change::Renew(lease) => self.remember(lease),
            Change::End(mac) => self.forget(mac),
        }
        Ok(())
    }

    /// All leases, expired ones included, by address.
    pub fn all(&self) -> Vec<Lease> {
        let mut all: Vec<Lease> = self.by_mac.values().cloned().collect();
        all.sort_by_key(|lease| lease.address);
        all
    }

    /// The lease of a MAC, expired or not.
    pub fn of(&self, mac: Mac) -> Option<&Lease> {
        self.by_mac.get(&mac)
    }

    /// Chooses an address for a DISCOVER and holds it for [`OFFER_HOLD`];
    /// `None`: nothing is left.
    pub fn offer(
        &mut self,
        mac: Mac,
        requested: Option<Ipv4Addr>,
        place: Place,
    ) -> Option<Ipv4Addr> {
        let address = self.choose(mac, requested, place)?;
        let is_strangers = self.is_stranger(mac, place.promise);
        self.offers.hold(mac, address, is_strangers, place.now);
        self.want_probe(mac, address, place.now);
        Some(address)
    }

    /// Withdraws an offer: the client took another server's.
    pub fn withdraw(&mut self, mac: Mac) {
        self.offers.drop(mac);
    }

    /// Whether the client may have this address, of all addresses: it is the
    /// one a DISCOVER that asks for it would be offered.
    pub fn may_have(&self, mac: Mac, address: Ipv4Addr, place: Place) -> bool {
        self.choose(mac, Some(address), place) == Some(address)
    }

    /// Whether the client may go on with the address it has: as
    /// [`may_have`](Leases::may_have), but what it was lent is not taken away
    /// because something better was promised since.
    pub fn may_keep(&self, mac: Mac, address: Ipv4Addr, place: Place) -> bool {
        let is_lent = self.of(mac).is_some_and(|lease| lease.address == address);
        (is_lent && self.is_free(mac, address, place)) || self.may_have(mac, address, place)
    }

    /// Lends the address and writes that down; the caller has asked
    /// [`may_have`](Leases::may_have) or [`may_keep`](Leases::may_keep).
    ///
    /// # Errors
    /// The store's; nothing is lent then.
    pub fn lend(
        &mut self,
        client: &Client,
        address: Ipv4Addr,
        lease_time: Duration,
        now: SystemTime,
    ) -> Result<Lent, String> {
        if let Some(&former) = self.by_address.get(&address)
            && former != client.mac
        {
            self.change(Change::End(former))?;
        }
        self.offers.drop(client.mac);
        let old = self.by_mac.get(&client.mac);
        let old_uuid = old.and_then(|lease| lease.uuid);
        let renewed = old.filter(|lease| lease.address == address);
        let ends = now + lease_time.max(MIN_HOLD);
        let lease = Lease {
            mac: client.mac,
            address,
            // Never shortened: the hold of a lost session goes on.
            expires: renewed.map_or(now, |lease| lease.expires).max(ends),
            uuid: client.uuid.or(old_uuid),
            host_name: client.host_name.clone().or_else(|| old?.host_name.clone()),
        };
        if renewed != Some(&lease) {
            let change = match renewed {
                Some(old) if old.expires > now + WRITTEN_BACK => Change::Renew(lease),
                _ => Change::Bind(lease),
            };
            self.change(change)?;
        }
        self.probes.lent(address);
        match (old_uuid, client.uuid) {
            (Some(old), Some(new)) if old != new => Ok(Lent::UuidChanged),
            _ => Ok(Lent::Plainly),
        }
    }

    /// A client gives its address back (RELEASE). It keeps the record, to get
    /// the same address next time; the address of a live session, or of one
    /// lost less than [`MIN_HOLD`] ago, stays lent. Returns whether the lease
    /// ended.
    pub fn release(
        &mut self,
        mac: Mac,
        address: Ipv4Addr,
        policy: &dyn Policy,
        now: SystemTime,
    ) -> Result<bool, String> {
        let Some(lease) = self
            .by_mac
            .get(&mac)
            .filter(|lease| lease.address == address)
        else {
            return Ok(false);
        };
        if self.is_guarded(mac, now) || policy.is_in_use(address) {
            return Ok(false);
        }
        let lease = Lease {
            expires: now,
            ..lease.clone()
        };
        self.change(Change::Renew(lease))?;
        Ok(true)
    }

    /// A client found somebody else on the address it was lent (DECLINE): the
    /// address rests for [`DECLINE_REST`]. Returns whether it was the
    /// client's to decline.
    pub fn decline(
        &mut self,
        mac: Mac,
        address: Ipv4Addr,
        policy: &dyn Policy,
        now: SystemTime,
    ) -> Result<bool, String> {
        let is_lent = self.of(mac).is_some_and(|lease| lease.address == address);
        let is_offered = self.offers.of(mac) == Some(address);
        if !(is_lent || is_offered) || policy.is_in_use(address) {
            return Ok(false);
        }
        if is_lent {
            self.change(Change::End(mac))?;
        }
        self.offers.drop(mac);
        self.resting.retain(|_, until| *until > now);
        self.resting.insert(address, now + DECLINE_REST);
        Ok(true)
    }

    /// Renews the leases whose addresses have a live session, so that each
    /// has at least [`MIN_HOLD`] left when its session is lost. To be called
    /// every [`RENEW_INTERVAL`].
    ///
    /// # Errors
    /// The store's, after all leases were renewed in memory.
    pub fn renew_in_use(&mut self, policy: &dyn Policy, now: SystemTime) -> Result<(), String> {
        let in_use: Vec<Mac> = self
            .by_mac
            .values()
            .filter(|lease| policy.is_in_use(lease.address))
            .map(|lease| lease.mac)
            .collect();
        self.guarded.retain(|_, until| *until > now);
        let mut result = Ok(());
        for mac in in_use {
            self.guarded.insert(mac, now + MIN_HOLD + RENEW_INTERVAL);
            if let Some(lease) = self.by_mac.get_mut(&mac)
                && lease.expires < now + MIN_HOLD + RENEW_INTERVAL
            {
                lease.expires = now + MIN_HOLD + RENEW_INTERVAL + RENEW_SLACK;
                result = result.and(self.store.save(lease));
            }
        }
        result
    }

    /// Which address the client gets, best first: the one its live session
    /// has, the promised one, the one held for it, the one it had, the one it
    /// asks for, one that nobody had, the one unused for longest.
    fn choose(&self, mac: Mac, requested: Option<Ipv4Addr>, place: Place) -> Option<Ipv4Addr> {
        let lent = self.by_mac.get(&mac).map(|lease| lease.address);
        let held = self.offers.of(mac);
        if let Some(address) = lent
            && place.subnet.contains(address)
            && place.policy.is_in_use(address)
        {
            return Some(address);
        }
        if let Some(address) = place.promise.address
            && self.is_free(mac, address, place)
        {
            return Some(address);
        }
        for address in [held, lent].into_iter().flatten() {
            if place.subnet.lends(address) && self.is_free(mac, address, place) {
                return Some(address);
            }
        }
        let is_unheard_of = |address: &Ipv4Addr| !self.by_address.contains_key(address);
        if let Some(address) = requested
            && is_unheard_of(&address)
            && place.subnet.lends(address)
            && self.is_free(mac, address, place)
        {
            return Some(address);
        }
        place
            .subnet
            .pool_from(seed(mac))
            .filter(is_unheard_of)
            .find(|&address| self.is_free(mac, address, place))
            .map(|first| self.clean_or(first, mac, place))
            .or_else(|| self.unused_for_longest(mac, place))
            .or_else(|| self.oldest_offer_to_a_stranger(mac, place))
    }

    /// What a machine of ours takes over where strangers have been offered all
    /// there is: they have not come for it yet.
    fn oldest_offer_to_a_stranger(&self, mac: Mac, place: Place) -> Option<Ipv4Addr> {
        if self.is_stranger(mac, place.promise) {
            return None;
        }
        self.offers
            .by_mac
            .values()
            .filter(|offer| {
                offer.is_strangers
                    && place.subnet.lends(offer.address)
                    && self.is_free_but_for_offers(mac, offer.address, place)
            })
            .min_by_key(|offer| offer.until)
            .map(|offer| offer.address)
    }

    /// Whether this MAC is none of the site's, and has never had an address.
    pub fn is_stranger(&self, mac: Mac, promise: &Promise) -> bool {
        !promise.is_known && promise.address.is_none() && !self.by_mac.contains_key(&mac)
    }

    fn unused_for_longest(&self, mac: Mac, place: Place) -> Option<Ipv4Addr> {
        self.by_mac
            .values()
            .filter(|lease| {
                place.subnet.lends(lease.address) && self.is_free(mac, lease.address, place)
            })
            .min_by_key(|lease| lease.expires)
            .map(|lease| lease.address)
    }

    /// Whether nobody and nothing but this MAC has a claim on an address of
    /// the subnet.
    fn is_free(&self, mac: Mac, address: Ipv4Addr, place: Place) -> bool {
        let holder = self.offers.holder(address, place.now);
        holder.is_none_or(|holder| holder == mac)
            && self.is_free_but_for_offers(mac, address, place)
    }

    fn is_free_but_for_offers(&self, mac: Mac, address: Ipv4Addr, place: Place) -> bool {
        let Place {
            subnet,
            server,
            policy,
            promise,
            now,
        } = place;
        if !subnet.contains(address)
            || subnet.is_reserved(address)
            || address == server
            || self.resting.get(&address).is_some_and(|&until| until > now)
        {
            return false;
        }
        let holder = self.by_address.get(&address);
        if let Some(holder) = holder.filter(|&&holder| holder != mac) {
            let ended = self
                .by_mac
                .get(holder)
                .is_none_or(|lease| lease.expires <= now);
            if !ended || self.is_guarded(*holder, now) {
                return false;
            }
        }
        if policy
            .promised_to(address)
            .is_some_and(|other| other != mac)
        {
            return false;
        }
        let is_its_own = holder == Some(&mac) || promise.address == Some(address);
        is_its_own || !policy.is_in_use(address)
    }

    fn is_guarded(&self, mac: Mac, now: SystemTime) -> bool {
        self.guarded.get(&mac).is_some_and(|&until| until > now)
    }

    fn remember(&mut self, lease: Lease) {
        self.forget(lease.mac);
        if let Some(former) = self.by_address.insert(lease.address, lease.mac) {
            self.by_mac.remove(&former);
        }
        self.by_mac.insert(lease.mac, lease);
    }

    fn forget(&mut self, mac: Mac) {
        if let Some(lease) = self.by_mac.remove(&mac) {
            self.by_address.remove(&lease.address);
        }
    }
}

/// Where in the pool a MAC's search begins: always the same place, so that a
/// machine finds its old address even after the store was lost (FNV-1a).
fn seed(mac: Mac) -> u32 {
    mac.0.iter().fold(0x811c_9dc5, |hash, &byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

impl Subnet {
    /// Whether an address is of this network.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let mask = self.netmask.to_bits();
        address.to_bits() & mask == self.network.to_bits() & mask
    }

    /// Whether the pool has an address.
    pub fn lends(&self, address: Ipv4Addr) -> bool {
        self.ranges
            .iter()
            .any(|(first, last)| (first..=last).contains(&&address))
    }

    /// How many addresses the pool has.
    fn pool_size(&self) -> usize {
        let sizes = self.ranges.iter().map(|(first, last)| {
            let size = (u64::from(last.to_bits()) + 1).saturating_sub(first.to_bits().into());
            usize::try_from(size).unwrap_or(usize::MAX)
        });
        sizes.fold(0, usize::saturating_add)
    }

    /// The address that reaches all of the network (option 28).
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | !self.netmask.to_bits())
    }

    /// Whether the address is never a client's: the network's own, its
    /// broadcast address, a router.
    fn is_reserved(&self, address: Ipv4Addr) -> bool {
        let has_room = self.netmask.to_bits().count_ones() < 31;
        let is_edge = address.to_bits() == self.network.to_bits() & self.netmask.to_bits()
            || address == self.broadcast();
        (has_room && is_edge) || self.routers.contains(&address)
    }

    /// All addresses of the pool, from the one at `seed` round to it.
    fn pool_from(&self, seed: u32) -> impl Iterator<Item = Ipv4Addr> {
        let sizes = self.ranges.iter().map(|(first, last)| {
            (u64::from(last.to_bits()) + 1).saturating_sub(first.to_bits().into())
        });
        let total: u64 = sizes.clone().sum();
        let sizes: Vec<u64> = sizes.collect();
        let start = u64::from(seed) % total.max(1);
        (0..total).filter_map(move |step| {
            let mut offset = (start + step) % total;
            for ((first, _), size) in self.ranges.iter().zip(&sizes) {
                if offset < *size {
                    let bits = u64::from(first.to_bits()) + offset;
                    return u32::try_from(bits).ok().map(Ipv4Addr::from_bits);
                }
                offset -= size;
            }
            None
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
