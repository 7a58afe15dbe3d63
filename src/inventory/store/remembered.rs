//! Machines as they were read last: a LAN full of machines that ask for an
//! address is answered from memory, not from the database.
//!
//! Forgotten with every change of a machine. A read that began before such a
//! change is not remembered, so nothing old outlives it.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::Ipv4Addr;

use dhcp::Mac;

use super::{Facts, Store};
use crate::inventory::{Machine, Result, held};

/// MACs remembered, and as many addresses; of both also those that are
/// nobody's. Strangers can make up more, and wash out the others.
const REMEMBERED_MAX: usize = 4096;

/// What was read since the last change of a machine.
#[derive(Default)]
pub(super) struct Remembered {
    /// How often a machine was changed.
    changes: u64,
    by_mac: HashMap<Mac, Option<Machine>>,
    by_address: HashMap<Ipv4Addr, Option<Machine>>,
}

impl Remembered {
    pub(super) fn forget(&mut self) {
        self.changes += 1;
        self.by_mac.clear();
        self.by_address.clear();
    }
}

impl Store {
    /// The machine of a MAC.
    pub(in crate::inventory) fn machine_by_mac(&self, mac: Mac) -> Result<Option<Machine>> {
        self.recall(
            mac,
            |all| &mut all.by_mac,
            |facts| facts.machine_by_mac(mac),
        )
    }

    /// The machine of a fixed address.
    pub(in crate::inventory) fn machine_by_address(
        &self,
        address: Ipv4Addr,
    ) -> Result<Option<Machine>> {
        self.recall(
            address,
            |all| &mut all.by_address,
            |facts| facts.machine_by_address(address),
        )
    }

    fn recall<K: Eq + Hash>(
        &self,
        key: K,
        map: impl Fn(&mut Remembered) -> &mut HashMap<K, Option<Machine>>,
        read: impl FnOnce(&Facts<'_>) -> Result<Option<Machine>>,
    ) -> Result<Option<Machine>> {
        let changes = {
            let mut remembered = held(&self.remembered);
            if let Some(machine) = map(&mut remembered).get(&key) {
                return Ok(machine.clone());
            }
            remembered.changes
        };
        let machine = self.read(read)?;
        let mut remembered = held(&self.remembered);
        if remembered.changes == changes {
            let map = map(&mut remembered);
            if map.len() >= REMEMBERED_MAX {
                map.clear();
            }
            map.insert(key, machine.clone());
        }
        Ok(machine)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Survives;
    use super::*;
    use crate::inventory::{Error, Limits};

    fn open(directory: &std::path::Path) -> crate::inventory::Inventory {
        crate::inventory::Inventory::open(directory, Limits::default()).unwrap()
    }

    #[test]
    fn what_is_remembered_follows_every_change() {
        let directory = tempfile::tempdir().unwrap();
        let inventory = open(directory.path());
        let store = inventory.store();
        let mac = Mac([2; 6]);
        let address = Ipv4Addr::new(10, 0, 0, 9);
        for _ in 0..2 {
            assert_eq!(store.machine_by_mac(mac).unwrap(), None);
            assert_eq!(store.machine_by_address(address).unwrap(), None);
        }
        let mut machine = inventory.enrol(mac, None, None).unwrap();
        for _ in 0..2 {
            assert_eq!(store.machine_by_mac(mac).unwrap(), Some(machine.clone()));
        }
        machine.address = Some(address);
        let put = |facts: &Facts<'_>| facts.put_machine(&machine);
        store.write(Survives::Process, put).unwrap();
        assert_eq!(store.machine_by_mac(mac).unwrap(), Some(machine.clone()));
        let of_address = store.machine_by_address(address).unwrap();
        assert_eq!(of_address, Some(machine.clone()));

        let failed = store.write(Survives::Process, |facts| {
            facts.remove_machine(machine.id)?;
            Err::<(), _>(Error::Failed("later".into()))
        });
        assert!(failed.is_err());
        assert!(store.machine_by_mac(mac).unwrap().is_some());
        let remove = |facts: &Facts<'_>| facts.remove_machine(machine.id);
        store.write(Survives::Process, remove).unwrap();
        assert_eq!(store.machine_by_mac(mac).unwrap(), None);
        assert_eq!(store.machine_by_address(address).unwrap(), None);
    }

    #[test]
    fn strangers_do_not_fill_the_memory() {
        let directory = tempfile::tempdir().unwrap();
        let inventory = open(directory.path());
        let store = inventory.store();
        for number in 0..REMEMBERED_MAX + 10 {
            let [.., a, b] = number.to_be_bytes();
            store.machine_by_mac(Mac([2, 0, 0, 0, a, b])).unwrap();
        }
        assert_eq!(held(&store.remembered).by_mac.len(), 10);
    }
}
