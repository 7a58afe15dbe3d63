//! Whose each overlay is, as saved.

use rusqlite::{Row, params};
use uuid::Uuid;

use super::{Facts, read_mode, read_name, read_time};
use crate::inventory::machine::mode_word;
use crate::inventory::{Overlay, Result};

/// Columns of an overlay, as [`read_overlay`] reads them.
pub(super) const COLUMNS: &str = "uuid, machine, image, version, mode, created";

/// Overlays.
impl Facts<'_> {
    /// Every overlay, oldest first.
    pub(in crate::inventory) fn overlays(&self) -> Result<Vec<Overlay>> {
        self.overlays_where("1 = 1", [])
    }

    /// A machine's overlays, oldest first.
    pub(in crate::inventory) fn overlays_of(&self, machine: Uuid) -> Result<Vec<Overlay>> {
        self.overlays_where("machine = ?1", [machine.into_bytes()])
    }

    /// The overlay of a UUID.
    pub(in crate::inventory) fn overlay(&self, uuid: Uuid) -> Result<Option<Overlay>> {
        Ok(self.overlays_where("uuid = ?1", [uuid.into_bytes()])?.pop())
    }

    fn overlays_where(
        &self,
        condition: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<Vec<Overlay>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM overlays
             WHERE {condition} ORDER BY created, uuid"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let rows = statement.query_map(parameters, read_overlay)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Puts an overlay down, in place of the one of the same UUID.
    pub(in crate::inventory) fn put_overlay(&self, overlay: &Overlay) -> Result<()> {
        self.connection
            .prepare_cached(
                "INSERT INTO overlays (uuid, machine, image, version, mode, created)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (uuid) DO UPDATE SET version = ?4, mode = ?5",
            )?
            .execute(params![
                overlay.uuid.into_bytes(),
                overlay.machine.into_bytes(),
                overlay.image.as_str(),
                overlay.version,
                mode_word(overlay.mode),
                overlay.created.as_microsecond(),
            ])?;
        Ok(())
    }

    /// Forgets an overlay.
    pub(in crate::inventory) fn remove_overlay(&self, uuid: Uuid) -> Result<()> {
        self.connection
            .prepare_cached("DELETE FROM overlays WHERE uuid = ?1")?
            .execute([uuid.into_bytes()])?;
        Ok(())
    }
}

/// The overlay in a row of [`COLUMNS`].
pub(super) fn read_overlay(row: &Row<'_>) -> rusqlite::Result<Overlay> {
    Ok(Overlay {
        uuid: Uuid::from_bytes(row.get(0)?),
        machine: Uuid::from_bytes(row.get(1)?),
        image: read_name(row, 2)?,
        version: row.get(3)?,
        mode: read_mode(row, 4)?,
        created: read_time(5, row.get(5)?)?,
    })
}
