//! Leases, as saved.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dhcp::{Lease, Mac};
use rusqlite::{OptionalExtension, Row, params};

use super::{Facts, read_word};
use crate::inventory::Result;

/// Leases.
impl Facts<'_> {
    /// Every lease, by address.
    pub(in crate::inventory) fn leases(&self) -> Result<Vec<Lease>> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT mac, address, expires, uuid, host_name FROM leases")?;
        let rows = statement.query_map([], read_lease)?;
        let mut leases: Vec<Lease> = rows.collect::<rusqlite::Result<_>>()?;
        leases.sort_by_key(|lease| lease.address);
        Ok(leases)
    }

    /// The lease of a MAC.
    pub(in crate::inventory) fn lease(&self, mac: Mac) -> Result<Option<Lease>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT mac, address, expires, uuid, host_name FROM leases WHERE mac = ?1",
        )?;
        Ok(statement.query_row([mac.0], read_lease).optional()?)
    }

    /// Puts a lease down, in place of the one of the same MAC.
    pub(in crate::inventory) fn put_lease(&self, lease: &Lease) -> Result<()> {
        // A time before 1970 or past the year 292,277 has long ended, or never will.
        let expires = match lease.expires.duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
            Err(_) => 0,
        };
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO leases VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![
                lease.mac.0,
                lease.address.to_string(),
                expires,
                lease.uuid,
                lease.host_name,
            ])?;
        Ok(())
    }

    /// Forgets the lease of a MAC.
    pub(in crate::inventory) fn remove_lease(&self, mac: Mac) -> Result<()> {
        self.connection
            .prepare_cached("DELETE FROM leases WHERE mac = ?1")?
            .execute([mac.0])?;
        Ok(())
    }
}

fn read_lease(row: &Row<'_>) -> rusqlite::Result<Lease> {
    let expires = row.get::<_, i64>(2)?;
    Ok(Lease {
        mac: Mac(row.get(0)?),
        address: read_word(row, 1, |text| text.parse().ok())?,
        expires: u64::try_from(expires)
            .ok()
            .and_then(|micros| SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(micros)))
            .unwrap_or(UNIX_EPOCH),
        uuid: row.get(3)?,
        host_name: row.get(4)?,
    })
}
