//! Plain targets and their units, as saved.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rusqlite::{Row, params};
use uuid::Uuid;

use super::{Facts, read_name, read_time, read_word};
use crate::inventory::{Chap, PlainTarget, Proof, Result, Sharing, Unit, UnitFormat, UnitKind};

/// Plain targets.
impl Facts<'_> {
    /// Every plain target with its units, by name.
    pub(in crate::inventory) fn targets(&self) -> Result<Vec<PlainTarget>> {
        self.targets_where("1 = 1 ORDER BY name", [])
    }

    /// The plain target of an id.
    pub(in crate::inventory) fn target(&self, id: Uuid) -> Result<Option<PlainTarget>> {
        Ok(self.targets_where("id = ?1", [id.into_bytes()])?.pop())
    }

    /// The plain target of a name.
    pub(in crate::inventory) fn target_by_name(&self, name: &str) -> Result<Option<PlainTarget>> {
        Ok(self.targets_where("name = ?1", [name])?.pop())
    }

    /// The plain target of an iSCSI name.
    pub(in crate::inventory) fn target_by_iqn(&self, iqn: &str) -> Result<Option<PlainTarget>> {
        Ok(self.targets_where("iqn = ?1", [iqn])?.pop())
    }

    /// How many plain targets there are.
    pub(in crate::inventory) fn target_count(&self) -> Result<u32> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT count(*) FROM targets")?;
        Ok(statement.query_row([], |row| row.get(0))?)
    }

    fn targets_where(
        &self,
        condition: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<Vec<PlainTarget>> {
        let sql = format!(
            "SELECT id, name, iqn, chap_name, chap_secret, mutual_name, mutual_secret, created
             FROM targets WHERE {condition}"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let rows = statement.query_map(parameters, read_target)?;
        let mut targets: Vec<PlainTarget> = rows.collect::<rusqlite::Result<_>>()?;
        for target in &mut targets {
            target.units = self.units(target.id)?;
        }
        Ok(targets)
    }

    fn units(&self, target: Uuid) -> Result<Vec<Unit>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT id, lun, file, kind, shared, block_bytes, created, format, disk
             FROM units WHERE target = ?1 ORDER BY lun",
        )?;
        let rows = statement.query_map([target.into_bytes()], read_unit)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Puts a new target down; its units are put down one by one.
    pub(in crate::inventory) fn put_target(&self, target: &PlainTarget) -> Result<()> {
        let chap = target.proof.as_ref().map(|proof| &proof.chap);
        let mutual = target
            .proof
            .as_ref()
            .and_then(|proof| proof.mutual.as_ref());
        self.connection
            .prepare_cached("INSERT INTO targets VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?
            .execute(params![
                target.id.into_bytes(),
                target.name.as_str(),
                target.iqn,
                chap.map(|chap| chap.name.as_str()),
                chap.map(|chap| chap.secret.as_str()),
                mutual.map(|chap| chap.name.as_str()),
                mutual.map(|chap| chap.secret.as_str()),
                target.created.as_microsecond(),
            ])?;
        Ok(())
    }

    /// Forgets a target and its units.
    pub(in crate::inventory) fn remove_target(&self, id: Uuid) -> Result<()> {
        self.connection
            .prepare_cached("DELETE FROM targets WHERE id = ?1")?
            .execute([id.into_bytes()])?;
        Ok(())
    }

    /// Puts a new unit down.
    pub(in crate::inventory) fn put_unit(&self, target: Uuid, unit: &Unit) -> Result<()> {
        self.connection
            .prepare_cached(
                "INSERT INTO units (id, target, lun, file, kind, shared, block_bytes, created, \
                                    format, disk)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?
            .execute(params![
                unit.id.into_bytes(),
                target.into_bytes(),
                unit.lun,
                unit.file.as_os_str().as_bytes(),
                unit.kind.word(),
                unit.sharing == Sharing::Many,
                unit.block_bytes,
                unit.created.as_microsecond(),
                unit.format.word(),
                unit.disk.map(Uuid::into_bytes),
            ])?;
        Ok(())
    }

    /// The LUNs that serve an own disk, in words.
    pub(in crate::inventory) fn units_of_disk(&self, disk: Uuid) -> Result<Vec<String>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT lun, name FROM units JOIN targets ON targets.id = units.target
             WHERE disk = ?1 ORDER BY name, lun",
        )?;
        let rows = statement.query_map([disk.into_bytes()], |row| {
            let (lun, target): (u16, String) = (row.get(0)?, row.get(1)?);
            Ok(format!("LUN {lun} of {target}"))
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Forgets a unit.
    pub(in crate::inventory) fn remove_unit(&self, id: Uuid) -> Result<()> {
        self.connection
            .prepare_cached("DELETE FROM units WHERE id = ?1")?
            .execute([id.into_bytes()])?;
        Ok(())
    }
}

fn read_target(row: &Row<'_>) -> rusqlite::Result<PlainTarget> {
    let chap = |name: usize| -> rusqlite::Result<Option<Chap>> {
        let name_and_secret = (row.get::<_, Option<_>>(name)?, row.get(name + 1)?);
        let (Some(name), Some(secret)) = name_and_secret else {
            return Ok(None);
        };
        Ok(Some(Chap { name, secret }))
    };
    let proof = match (chap(3)?, chap(5)?) {
        (Some(chap), mutual) => Some(Proof { chap, mutual }),
        (None, _) => None,
    };
    Ok(PlainTarget {
        id: Uuid::from_bytes(row.get(0)?),
        name: read_name(row, 1)?,
        iqn: row.get(2)?,
        proof,
        created: read_time(7, row.get(7)?)?,
        units: Vec::new(),
    })
}

fn read_unit(row: &Row<'_>) -> rusqlite::Result<Unit> {
    Ok(Unit {
        id: Uuid::from_bytes(row.get(0)?),
        lun: row.get(1)?,
        file: OsString::from_vec(row.get(2)?).into(),
        kind: read_word(row, 3, UnitKind::of_word)?,
        sharing: match row.get(4)? {
            true => Sharing::Many,
            false => Sharing::One,
        },
        block_bytes: row.get(5)?,
        created: read_time(6, row.get(6)?)?,
        format: read_word(row, 7, UnitFormat::of_word)?,
        disk: row.get::<_, Option<[u8; 16]>>(8)?.map(Uuid::from_bytes),
    })
}
