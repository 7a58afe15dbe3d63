//! Which MAC has which address, learned from the DHCP packets we see.
//!
//! A TFTP or HTTP request carries an address only; this is how its events find
//! the right machine's timeline. It decides nothing.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, PoisonError};

use dhcp::Mac;

/// Addresses remembered at most; a /20 full of PCs.
const ADDRESSES_MAX: usize = 4096;

/// The addresses seen.
#[derive(Default)]
pub(crate) struct Addresses {
    seen: Mutex<HashMap<Ipv4Addr, Mac>>,
}

impl Addresses {
    /// Remembers that `mac` has `address`, in place of whoever had it before.
    pub(crate) fn learn(&self, address: Ipv4Addr, mac: Mac) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() >= ADDRESSES_MAX && !seen.contains_key(&address) {
            // Forgetting all costs a few timeline entries; what machines need
            // is learned again at their next packet.
            seen.clear();
        }
        seen.insert(address, mac);
    }

    /// Who has this address.
    pub(crate) fn mac_of(&self, address: IpAddr) -> Option<Mac> {
        let IpAddr::V4(address) = address.to_canonical() else {
            return None;
        };
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(&address).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_belongs_to_whoever_had_it_last() {
        let addresses = Addresses::default();
        let address = Ipv4Addr::new(10, 0, 0, 7);
        addresses.learn(address, Mac([1; 6]));
        addresses.learn(address, Mac([2; 6]));
        assert_eq!(addresses.mac_of(address.into()), Some(Mac([2; 6])));
    }

    #[test]
    fn strangers_cannot_make_it_grow_without_end() {
        let addresses = Addresses::default();
        for n in 0..10_000_u32 {
            addresses.learn(Ipv4Addr::from(n), Mac([0; 6]));
        }
        let seen = addresses.seen.lock().unwrap();
        assert!(seen.len() <= ADDRESSES_MAX);
    }
}
