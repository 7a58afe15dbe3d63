//! Own disks, and which boot writes one, as saved.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use rusqlite::{OptionalExtension, Row, params};
use uuid::Uuid;

use super::{Facts, read_name, read_time, read_word};
use crate::inventory::disk::{DirectBoot, DiskKind, OwnDisk};
use crate::inventory::{Machine, Result};

/// Own disks.
impl Facts<'_> {
    /// Every own disk, by name.
    pub(in crate::inventory) fn disks(&self) -> Result<Vec<OwnDisk>> {
        self.disks_where("1 = 1 ORDER BY name", [])
    }

    /// The own disk of an id.
    pub(in crate::inventory) fn disk(&self, id: Uuid) -> Result<Option<OwnDisk>> {
        Ok(self.disks_where("id = ?1", [id.into_bytes()])?.pop())
    }

    /// The own disk of a name.
    pub(in crate::inventory) fn disk_by_name(&self, name: &str) -> Result<Option<OwnDisk>> {
        Ok(self.disks_where("name = ?1", [name])?.pop())
    }

    /// The own disks whose parent is `id`, by name.
    pub(in crate::inventory) fn disks_above(&self, id: Uuid) -> Result<Vec<OwnDisk>> {
        self.disks_where("parent = ?1 ORDER BY name", [id.into_bytes()])
    }

    /// How many own disks there are.
    pub(in crate::inventory) fn disk_count(&self) -> Result<u32> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT count(*) FROM disks")?;
        Ok(statement.query_row([], |row| row.get(0))?)
    }

    fn disks_where(
        &self,
        condition: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<Vec<OwnDisk>> {
        let sql = format!(
            "SELECT id, name, file, kind, parent, comment, created FROM disks WHERE {condition}"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let rows = statement.query_map(parameters, read_disk)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Puts an own disk down, in place of the one of the same id.
    pub(in crate::inventory) fn put_disk(&self, disk: &OwnDisk) -> Result<()> {
        self.connection
            .prepare_cached(
                "INSERT INTO disks (id, name, file, kind, parent, comment, created)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (id) DO UPDATE SET
                     name = ?2, file = ?3, kind = ?4, parent = ?5, comment = ?6",
            )?
            .execute(params![
                disk.id.into_bytes(),
                disk.name.as_str(),
                disk.file.as_os_str().as_bytes(),
                disk.kind.word(),
                disk.parent.map(Uuid::into_bytes),
                disk.comment,
                disk.created.as_microsecond(),
            ])?;
        Ok(())
    }

    /// Forgets an own disk.
    pub(in crate::inventory) fn remove_disk(&self, id: Uuid) -> Result<()> {
        self.connection
            .prepare_cached("DELETE FROM disks WHERE id = ?1")?
            .execute([id.into_bytes()])?;
        Ok(())
    }

    /// The machine an own disk is assigned to.
    pub(in crate::inventory) fn machine_of_disk(&self, disk: Uuid) -> Result<Option<Machine>> {
        let machines = self.machines_where("disk = ?1", [disk.into_bytes()]);
        Ok(machines?.pop())
    }

    /// What a machine's boot is known to write.
    pub(in crate::inventory) fn direct_boot(&self, machine: Uuid) -> Result<Option<DirectBoot>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT disk, generation, unflushed_in FROM direct_boots WHERE machine = ?1",
        )?;
        let boot = statement.query_row([machine.into_bytes()], |row| {
            Ok(DirectBoot {
                disk: Uuid::from_bytes(row.get(0)?),
                generation: row.get::<_, i64>(1)?.cast_unsigned(),
                unflushed_in: row.get(2)?,
            })
        });
        Ok(boot.optional()?)
    }

    /// Puts down what a machine's boot writes; nobody else's does from then on.
    pub(in crate::inventory) fn put_direct_boot(
        &self,
        machine: Uuid,
        boot: &DirectBoot,
    ) -> Result<()> {
        self.connection
            .prepare_cached(
                "INSERT OR REPLACE INTO direct_boots (machine, disk, generation, unflushed_in)
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![
                machine.into_bytes(),
                boot.disk.into_bytes(),
                boot.generation.cast_signed(),
                boot.unflushed_in,
            ])?;
        Ok(())
    }
}

fn read_disk(row: &Row<'_>) -> rusqlite::Result<OwnDisk> {
    Ok(OwnDisk {
        id: Uuid::from_bytes(row.get(0)?),
        name: read_name(row, 1)?,
        file: PathBuf::from(OsString::from_vec(row.get(2)?)),
        kind: read_word(row, 3, DiskKind::of_word)?,
        parent: row.get::<_, Option<[u8; 16]>>(4)?.map(Uuid::from_bytes),
        comment: row.get(5)?,
        created: read_time(6, row.get(6)?)?,
    })
}
