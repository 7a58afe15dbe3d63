//! Leases: the DHCP server's, kept in the store so that they survive a restart.

use dhcp::{Lease, LeaseStore, Mac};

use super::{Inventory, Result, Store};

impl LeaseStore for Store {
    fn load(&self) -> Result<Vec<Lease>, String> {
        todo!()
    }

    fn save(&self, lease: &Lease) -> Result<(), String> {
        todo!()
    }

    fn remove(&self, mac: Mac) -> Result<(), String> {
        todo!()
    }
}

impl Inventory {
    /// Every lease kept, expired ones included, by address.
    pub(crate) fn leases(&self) -> Result<Vec<Lease>> {
        todo!()
    }
}
