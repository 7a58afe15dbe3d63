//! Leases: the DHCP server's, kept in the store so that they survive a restart.

use dhcp::{Change, Lease, LeaseStore, Mac};

use super::{Inventory, Result, Store, Survives};

impl LeaseStore for Store {
    fn load(&self) -> Result<Vec<Lease>, String> {
        self.read(|facts| facts.leases()).map_err(|e| e.to_string())
    }

    /// A new binding survives the loss of power before it is answered
    /// (RFC 2131 section 4.3.1: "recorded in stable storage"). A renewal only
    /// survives the process: clients send them at will, and each would cost an
    /// `fsync`.
    fn save(&self, lease: &Lease) -> Result<(), String> {
        let renews = self
            .read(|facts| facts.lease(lease.mac))
            .map_err(|e| e.to_string())?
            .is_some_and(|old| old.address == lease.address);
        let survives = if renews {
            Survives::Process
        } else {
            Survives::Power
        };
        self.write(survives, |facts| facts.put_lease(lease))
            .map_err(|e| e.to_string())
    }

    /// One transaction: one `fsync` for all the bindings in it.
    fn apply(&self, changes: &[Change]) -> Result<(), String> {
        let binds = |change: &Change| matches!(change, Change::Bind(_));
        let survives = if changes.iter().any(binds) {
            Survives::Power
        } else {
            Survives::Process
        };
        self.write(survives, |facts| {
            changes.iter().try_for_each(|change| match change {
                Change::Bind(lease) | Change::Renew(lease) => facts.put_lease(lease),
                Change::End(mac) => facts.remove_lease(*mac),
            })
        })
        .map_err(|e| e.to_string())
    }

    fn remove(&self, mac: Mac) -> Result<(), String> {
        self.write(Survives::Process, |facts| facts.remove_lease(mac))
            .map_err(|e| e.to_string())
    }
}

impl Inventory {
    /// Every lease kept, expired ones included, by address.
    pub(crate) fn leases(&self) -> Result<Vec<Lease>> {
        self.store.read(|facts| facts.leases())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::inventory::Limits;

    fn lease(mac: u8, address: [u8; 4], minutes: u64) -> Lease {
        Lease {
            mac: Mac([2, 0, 0, 0, 0, mac]),
            address: address.into(),
            expires: SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000 + 60 * minutes),
            uuid: Some([7; 16]),
            host_name: Some("pc07".into()),
        }
    }

    #[test]
    fn leases_survive_a_restart() {
        let data = tempfile::tempdir().unwrap();
        let kept = lease(1, [10, 0, 0, 5], 10);
        {
            let inventory = Inventory::open(data.path(), Limits::default()).unwrap();
            inventory.store().save(&kept).unwrap();
        }
        let inventory = Inventory::open(data.path(), Limits::default()).unwrap();
        assert_eq!(inventory.store().load().unwrap(), [kept]);
    }

    #[test]
    fn a_mac_has_one_lease_the_last_one_saved() {
        let data = tempfile::tempdir().unwrap();
        let inventory = Inventory::open(data.path(), Limits::default()).unwrap();
        let store = inventory.store();
        store.save(&lease(1, [10, 0, 0, 5], 1)).unwrap();
        store.save(&lease(1, [10, 0, 0, 5], 9)).unwrap();
        store.save(&lease(2, [10, 0, 0, 4], 1)).unwrap();
        let expected = [lease(2, [10, 0, 0, 4], 1), lease(1, [10, 0, 0, 5], 9)];
        assert_eq!(inventory.leases().unwrap(), expected);
        LeaseStore::remove(&*store, Mac([2, 0, 0, 0, 0, 2])).unwrap();
        assert_eq!(inventory.leases().unwrap(), expected[1..]);
    }
}
