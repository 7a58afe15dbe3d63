//! Machines, as saved.

use std::net::Ipv4Addr;

use dhcp::Mac;
use jiff::Timestamp;
use rusqlite::{Row, params};
use uuid::Uuid;

use super::{Facts, read_mode, read_name, read_time, read_word};
use crate::inventory::machine::mode_word;
use crate::inventory::{Assignment, ImageRef, Machine, MachineState, Result};

const MACHINE_COLUMNS: &str = "id, name, mac, uuid, serial, state, image, version, mode, \
                               address, loader, created, last_seen, disk";

/// Machines.
impl Facts<'_> {
    /// Every machine, by name.
    pub(in crate::inventory) fn machines(&self) -> Result<Vec<Machine>> {
        self.machines_where("1 = 1 ORDER BY name", [])
    }

    /// The machine of an id.
    pub(in crate::inventory) fn machine(&self, id: Uuid) -> Result<Option<Machine>> {
        Ok(self.machines_where("id = ?1", [id.into_bytes()])?.pop())
    }

    /// The machine of a name.
    pub(in crate::inventory) fn machine_by_name(&self, name: &str) -> Result<Option<Machine>> {
        Ok(self.machines_where("name = ?1", [name])?.pop())
    }

    /// The machine of a MAC.
    pub(in crate::inventory) fn machine_by_mac(&self, mac: Mac) -> Result<Option<Machine>> {
        Ok(self.machines_where("mac = ?1", [mac.0])?.pop())
    }

    /// The machine of a fixed address.
    pub(in crate::inventory) fn machine_by_address(
        &self,
        address: Ipv4Addr,
    ) -> Result<Option<Machine>> {
        Ok(self
            .machines_where("address = ?1", [address.to_string()])?
            .pop())
    }

    /// At most two of the machines with an SMBIOS UUID.
    pub(in crate::inventory) fn machines_by_uuid(&self, uuid: [u8; 16]) -> Result<Vec<Machine>> {
        self.machines_where("uuid = ?1 LIMIT 2", [uuid])
    }

    /// At most two of the machines with a serial number.
    pub(in crate::inventory) fn machines_by_serial(&self, serial: &str) -> Result<Vec<Machine>> {
        self.machines_where("serial = ?1 LIMIT 2", [serial])
    }

    /// Pending machines, the one enrolled first first.
    pub(in crate::inventory) fn pending_machines(&self) -> Result<Vec<Machine>> {
        self.machines_where("state = 'pending' ORDER BY created, id", [])
    }

    pub(super) fn machines_where(
        &self,
        condition: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<Vec<Machine>> {
        let sql = format!("SELECT {MACHINE_COLUMNS} FROM machines WHERE {condition}");
        let mut statement = self.connection.prepare_cached(&sql)?;
        let rows = statement.query_map(parameters, read_machine)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Puts a machine down, in place of the one of the same id.
    pub(in crate::inventory) fn put_machine(&self, machine: &Machine) -> Result<()> {
        self.machines_changed.set(true);
        let (image, mode, disk) = match &machine.assignment {
            Some(Assignment::Image { image, mode }) => (Some(image), Some(*mode), None),
            Some(Assignment::Disk(disk)) => (None, None, Some(disk.into_bytes())),
            None => (None, None, None),
        };
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO machines (id, name, mac, uuid, serial, state, image, version, mode, \
                                   address, loader, created, last_seen, disk)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
             ON CONFLICT (id) DO UPDATE SET
                 name = ?2, mac = ?3, uuid = ?4, serial = ?5, state = ?6, image = ?7,
                 version = ?8, mode = ?9, address = ?10, loader = ?11, last_seen = ?13,
                 disk = ?14",
        )?;
        statement.execute(params![
            machine.id.into_bytes(),
            machine.name.as_str(),
            machine.mac.0,
            machine.uuid,
            machine.serial,
            machine.state.word(),
            image.map(|image| image.name.as_str()),
            image.and_then(|image| image.version),
            mode.map(mode_word),
            machine.address.map(|a| a.to_string()),
            machine.loader,
            machine.created.as_microsecond(),
            machine.last_seen.map(Timestamp::as_microsecond),
            disk,
        ])?;
        Ok(())
    }

    /// Puts down when a machine was last heard of.
    pub(in crate::inventory) fn put_seen(&self, machine: Uuid, at: Timestamp) -> Result<()> {
        self.machines_changed.set(true);
        self.connection
            .prepare_cached("UPDATE machines SET last_seen = ?2 WHERE id = ?1")?
            .execute(params![machine.into_bytes(), at.as_microsecond()])?;
        Ok(())
    }

    /// Forgets a machine, its generations and its overlays.
    pub(in crate::inventory) fn remove_machine(&self, id: Uuid) -> Result<()> {
        self.machines_changed.set(true);
        self.connection
            .prepare_cached("DELETE FROM machines WHERE id = ?1")?
            .execute([id.into_bytes()])?;
        Ok(())
    }
}

fn read_machine(row: &Row<'_>) -> rusqlite::Result<Machine> {
    let image = row.get::<_, Option<String>>(6)?;
    let disk = row.get::<_, Option<[u8; 16]>>(13)?;
    let assignment = match (image, disk) {
        (_, Some(disk)) => Some(Assignment::Disk(Uuid::from_bytes(disk))),
        (Some(_), None) => Some(Assignment::Image {
            image: ImageRef {
                name: read_name(row, 6)?,
                version: row.get(7)?,
            },
            mode: read_mode(row, 8)?,
        }),
        (None, None) => None,
    };
    Ok(Machine {
        id: Uuid::from_bytes(row.get(0)?),
        name: read_name(row, 1)?,
        mac: Mac(row.get(2)?),
        uuid: row.get(3)?,
        serial: row.get(4)?,
        state: read_word(row, 5, MachineState::of_word)?,
        assignment,
        address: match row.get::<_, Option<String>>(9)? {
            Some(_) => Some(read_word(row, 9, |text| text.parse().ok())?),
            None => None,
        },
        loader: row.get(10)?,
        created: read_time(11, row.get(11)?)?,
        last_seen: row
            .get::<_, Option<i64>>(12)?
            .map(|at| read_time(12, at))
            .transpose()?,
    })
}
