//! Former overlays: what machines wrote on before they went back to a restore
//! point, as saved.

use rusqlite::params;
use uuid::Uuid;

use super::Facts;
use super::overlays::{COLUMNS, read_overlay};
use crate::inventory::machine::mode_word;
use crate::inventory::{Overlay, Result};

/// Former overlays.
impl Facts<'_> {
    /// A machine's, the one given up last first.
    pub(in crate::inventory) fn formers_of(&self, machine: Uuid) -> Result<Vec<Overlay>> {
        self.formers_where("machine = ?1", [machine.into_bytes()])
    }

    /// Every former overlay, the one given up last first.
    pub(in crate::inventory) fn formers(&self) -> Result<Vec<Overlay>> {
        self.formers_where("1 = 1", [])
    }

    /// The former overlay of a UUID.
    pub(in crate::inventory) fn former(&self, uuid: Uuid) -> Result<Option<Overlay>> {
        Ok(self.formers_where("uuid = ?1", [uuid.into_bytes()])?.pop())
    }

    fn formers_where(
        &self,
        condition: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<Vec<Overlay>> {
        let sql = format!(
            "SELECT {COLUMNS} FROM former_overlays
             WHERE {condition} ORDER BY replaced DESC, uuid"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let rows = statement.query_map(parameters, read_overlay)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Puts down that an overlay is a former one since `replaced`.
    pub(in crate::inventory) fn put_former(
        &self,
        overlay: &Overlay,
        replaced: jiff::Timestamp,
    ) -> Result<()> {
        self.connection
            .prepare_cached("INSERT INTO former_overlays VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
            .execute(params![
                overlay.uuid.into_bytes(),
                overlay.machine.into_bytes(),
                overlay.image.as_str(),
                overlay.version,
                mode_word(overlay.mode),
                overlay.created.as_microsecond(),
                replaced.as_microsecond(),
            ])?;
        Ok(())
    }

    /// Forgets a former overlay.
    pub(in crate::inventory) fn remove_former(&self, uuid: Uuid) -> Result<()> {
        self.connection
            .prepare_cached("DELETE FROM former_overlays WHERE uuid = ?1")?
            .execute([uuid.into_bytes()])?;
        Ok(())
    }
}
