//! Boot generations, as saved.

use rusqlite::{OptionalExtension, params};
use uuid::Uuid;

use super::{Facts, read_time};
use crate::inventory::{Generations, Prepared, Result};

/// Boot generations.
impl Facts<'_> {
    /// A machine's generations.
    pub(in crate::inventory) fn generations(&self, machine: Uuid) -> Result<Generations> {
        let mut statement = self.connection.prepare_cached(
            "SELECT current, current_secret, prepared, prepared_secret, prepared_at
             FROM generations WHERE machine = ?1",
        )?;
        let generations = statement
            .query_row([machine.into_bytes()], |row| {
                let prepared = match (
                    row.get::<_, Option<i64>>(2)?,
                    row.get::<_, Option<String>>(3)?,
                    row.get::<_, Option<i64>>(4)?,
                ) {
                    (Some(number), Some(secret), Some(at)) => Some(Prepared {
                        number: number.cast_unsigned(),
                        secret,
                        at: read_time(4, at)?,
                    }),
                    _ => None,
                };
                Ok(Generations {
                    current: row.get::<_, i64>(0)?.cast_unsigned(),
                    current_secret: row.get(1)?,
                    prepared,
                })
            })
            .optional()?;
        Ok(generations.unwrap_or_default())
    }

    /// Puts down a machine's generations.
    pub(in crate::inventory) fn put_generations(
        &self,
        machine: Uuid,
        generations: &Generations,
    ) -> Result<()> {
        let prepared = generations.prepared.as_ref();
        self.connection
            .prepare_cached("INSERT OR REPLACE INTO generations VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
            .execute(params![
                machine.into_bytes(),
                generations.current.cast_signed(),
                generations.current_secret,
                prepared.map(|p| p.number.cast_signed()),
                prepared.map(|p| p.secret.as_str()),
                prepared.map(|p| p.at.as_microsecond()),
            ])?;
        Ok(())
    }
}
