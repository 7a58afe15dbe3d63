//! What timelines keep, as saved.

use dhcp::Mac;
use jiff::Timestamp;
use rusqlite::params;

use super::{Facts, read_time};
use crate::inventory::Result;

/// One event of a timeline, as saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SavedEvent {
    /// To whom.
    pub(crate) mac: Mac,
    /// Order among all events.
    pub(crate) number: u64,
    /// When.
    pub(crate) at: Timestamp,
    /// Boot generation.
    pub(crate) generation: Option<u64>,
    /// What, in the timeline's own word.
    pub(crate) stage: String,
    /// In a few words.
    pub(crate) detail: String,
    /// How often in a row.
    pub(crate) count: u32,
}

/// Timelines.
impl Facts<'_> {
    /// Every event, oldest first.
    pub(crate) fn events(&self) -> Result<Vec<SavedEvent>> {
        let mut statement = self.connection.prepare(
            "SELECT mac, number, at, generation, stage, detail, count FROM events ORDER BY number",
        )?;
        let rows = statement.query_map([], |row| {
            Ok(SavedEvent {
                mac: Mac(row.get(0)?),
                number: row.get::<_, i64>(1)?.cast_unsigned(),
                at: read_time(2, row.get(2)?)?,
                generation: row.get::<_, Option<i64>>(3)?.map(i64::cast_unsigned),
                stage: row.get(4)?,
                detail: row.get(5)?,
                count: row.get(6)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Puts an event down, in place of the one of the same MAC and number.
    pub(crate) fn put_event(&self, event: &SavedEvent) -> Result<()> {
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO events VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
            .execute(params![
                event.mac.0,
                event.number.cast_signed(),
                event.at.as_microsecond(),
                event.generation.map(u64::cast_signed),
                event.stage,
                event.detail,
                event.count,
            ])?;
        Ok(())
    }

    /// Forgets a MAC's events of numbers below `number`.
    pub(crate) fn remove_events(&self, mac: Mac, number: u64) -> Result<()> {
        self.connection
            .prepare_cached("DELETE FROM events WHERE mac = ?1 AND number < ?2")?
            .execute(params![mac.0, i64::try_from(number).unwrap_or(i64::MAX),])?;
        Ok(())
    }
}
