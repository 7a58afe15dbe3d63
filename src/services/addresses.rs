//! Which MAC has which address, learned from the DHCP packets we see, and from
//! what a machine says of itself where the kernel's neighbours bear it out.
//!
//! A TFTP or HTTP request carries an address only; this is how its events find
//! the right machine's timeline, and how a machine finds what is made for it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dhcp::Mac;

/// Addresses remembered at most; a /20 full of PCs.
const ADDRESSES_MAX: usize = 4096;

/// The kernel's ARP table (proc(5)): address, type, flags, MAC, mask, device.
const NEIGHBOURS: &str = "/proc/net/arp";

/// Flag of an entry whose MAC was answered (`ATF_COM`).
const COMPLETE: u32 = 2;

/// As much of the table is read: some 13 000 entries, more than the kernel
/// keeps unless told so (`gc_thresh3`).
const NEIGHBOURS_BYTES_MAX: u64 = 1024 * 1024;

/// The addresses seen.
pub(crate) struct Addresses {
    seen: Mutex<HashMap<Ipv4Addr, Mac>>,
    neighbours: PathBuf,
}

impl Default for Addresses {
    fn default() -> Addresses {
        Addresses::among(Path::new(NEIGHBOURS))
    }
}

impl Addresses {
    /// None seen yet; who is a neighbour stands in this ARP table.
    pub(crate) fn among(neighbours: &Path) -> Addresses {
        Addresses {
            seen: Mutex::default(),
            neighbours: neighbours.to_owned(),
        }
    }

    /// Remembers that `mac` has `address`, in place of whoever had it before.
    pub(crate) fn learn(&self, address: Ipv4Addr, mac: Mac) {
        let mut seen = self.held();
        if seen.len() >= ADDRESSES_MAX && !seen.contains_key(&address) {
            // Forgetting all costs a few timeline entries; what machines need
            // is learned again at their next packet.
            seen.clear();
        }
        seen.insert(address, mac);
    }

    /// Somebody says from `address` that its MAC is `mac`: believed where the
    /// kernel has that neighbour under this MAC. Whoever is behind a router has
    /// the router's, and is not.
    pub(crate) fn claimed(&self, address: IpAddr, mac: Mac) {
        let IpAddr::V4(address) = address.to_canonical() else {
            return;
        };
        if self.mac_of(address.into()) == Some(mac) {
            return;
        }
        match self.has_neighbour(address, mac) {
            Ok(true) => self.learn(address, mac),
            Ok(false) => tracing::debug!(%address, %mac, "not the neighbour it says it is"),
            Err(error) => {
                tracing::debug!(%error, table = %self.neighbours.display(), "reading neighbours");
            }
        }
    }

    /// Who has this address.
    pub(crate) fn mac_of(&self, address: IpAddr) -> Option<Mac> {
        let IpAddr::V4(address) = address.to_canonical() else {
            return None;
        };
        self.held().get(&address).copied()
    }

    fn has_neighbour(&self, address: Ipv4Addr, mac: Mac) -> io::Result<bool> {
        let table = File::open(&self.neighbours)?.take(NEIGHBOURS_BYTES_MAX);
        for line in BufReader::new(table).lines() {
            if neighbour(&line?) == Some((address, mac)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Ipv4Addr, Mac>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A complete entry of an ARP table.
fn neighbour(line: &str) -> Option<(Ipv4Addr, Mac)> {
    let mut fields = line.split_whitespace();
    let address = fields.next()?.parse().ok()?;
    let flags = fields.nth(1)?.strip_prefix("0x")?;
    let flags = u32::from_str_radix(flags, 16).ok()?;
    let mac = fields.next()?.parse().ok()?;
    (flags & COMPLETE != 0).then_some((address, mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PC: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);
    const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

    #[test]
    fn an_address_belongs_to_whoever_had_it_last() {
        let addresses = Addresses::default();
        addresses.learn(PC, Mac([1; 6]));
        addresses.learn(PC, Mac([2; 6]));
        assert_eq!(addresses.mac_of(PC.into()), Some(Mac([2; 6])));
    }

    #[test]
    fn strangers_cannot_make_it_grow_without_end() {
        let addresses = Addresses::default();
        for n in 0..10_000_u32 {
            addresses.learn(Ipv4Addr::from(n), Mac([0; 6]));
        }
        assert!(addresses.held().len() <= ADDRESSES_MAX);
    }

    #[test]
    fn a_machine_is_believed_what_the_neighbours_bear_out() {
        let table = tempfile::NamedTempFile::new().unwrap();
        let text = "IP address       HW type     Flags       HW address            Mask     Device\n\
             10.0.0.7         0x1         0x2         52:54:00:12:34:56     *        eth1\n\
             10.0.0.8         0x1         0x0         52:54:00:12:34:57     *        eth1\n";
        std::fs::write(table.path(), text).unwrap();
        let addresses = Addresses::among(table.path());
        let learned = |address: Ipv4Addr, mac| {
            addresses.claimed(address.into(), mac);
            addresses.mac_of(address.into())
        };
        let other = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x57]);
        assert_eq!(learned(PC, other), None, "another's MAC");
        assert_eq!(learned([10, 0, 0, 8].into(), other), None, "never answered");
        assert_eq!(learned([10, 0, 0, 9].into(), MAC), None, "no neighbour");
        assert_eq!(learned(PC, MAC), Some(MAC));
        assert_eq!(learned(PC, other), Some(MAC), "still the neighbour's");
        let mapped = IpAddr::V6(PC.to_ipv6_mapped());
        assert_eq!(addresses.mac_of(mapped), Some(MAC));
    }

    #[test]
    fn what_is_no_entry_of_the_table_is_no_neighbour() {
        for odd in [
            "",
            "10.0.0.7 0x1",
            "10.0.0.7 0x1 0x2",
            "10.0.0.7 0x1 2 52:54:00:12:34:56",
            "x 0x1 0x2 52:54:00:12:34:56",
            "10.0.0.7 0x20 0x2 80:00:02:08:fe:80:00:00 * ib0",
        ] {
            assert_eq!(neighbour(odd), None, "{odd:?}");
        }
        // A permanent entry (ATF_PERM).
        let permanent = "10.0.0.7 0x1 0x6 52:54:00:12:34:56 * eth1";
        assert_eq!(neighbour(permanent), Some((PC, MAC)));
    }

    #[test]
    fn a_table_that_is_not_there_is_no_reason_to_believe() {
        let addresses = Addresses::among(Path::new("/nonexistent/arp"));
        addresses.claimed(PC.into(), MAC);
        assert_eq!(addresses.mac_of(PC.into()), None);
    }
}
