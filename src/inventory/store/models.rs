//! Models of firmware, as saved.

use rusqlite::params;

use super::{Facts, read_time, read_word};
use crate::inventory::model::{style_of_word, style_word};
use crate::inventory::{Model, ModelKey, Result, ServerRole};

/// Models.
impl Facts<'_> {
    /// Every model.
    pub(in crate::inventory) fn models(&self) -> Result<Vec<Model>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT number, firmware, class, maker, role, style, loader, learned FROM models",
        )?;
        let models = statement.query_map([], |row| {
            let class: String = row.get(2)?;
            let style = row.get::<_, Option<String>>(5)?;
            Ok(Model {
                number: row.get::<_, i64>(0)?.cast_unsigned(),
                key: ModelKey::new(row.get(1)?, &class, row.get(3)?),
                role: read_word(row, 4, ServerRole::of_word)?,
                // One that only another version of the program knew is none.
                style: style.as_deref().and_then(style_of_word),
                loader: row.get(6)?,
                learned: read_time(7, row.get(7)?)?,
            })
        })?;
        Ok(models.collect::<rusqlite::Result<_>>()?)
    }

    /// Puts down a model.
    pub(in crate::inventory) fn put_model(&self, model: &Model) -> Result<()> {
        self.connection
            .prepare_cached(
                "INSERT OR REPLACE INTO models VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                model.number.cast_signed(),
                model.key.firmware(),
                model.key.class(),
                model.key.maker(),
                model.role.word(),
                model.style.map(style_word),
                model.loader,
                model.learned.as_microsecond(),
            ])?;
        Ok(())
    }

    /// Forgets a model.
    pub(in crate::inventory) fn remove_model(&self, number: u64) -> Result<()> {
        self.connection
            .prepare_cached("DELETE FROM models WHERE number = ?1")?
            .execute([number.cast_signed()])?;
        Ok(())
    }
}
