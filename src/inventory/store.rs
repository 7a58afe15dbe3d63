//! How facts are saved: SQLite in `DATA/state.db`. The only room that knows:
//! the database here, each noun in a file of its own.
//!
//! One writer and one reader connection, each behind a mutex; write-ahead log.
//! A change is one transaction over [`Facts`], promised either to survive the
//! loss of power (`synchronous=FULL`, one `fsync`) or only the death of the
//! process (`NORMAL`: no `fsync`, the page cache holds it), see [`Survives`].
//! What a peer can cause at will is promised no more than the latter.

use std::cell::Cell;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, Row};

use self::remembered::Remembered;
use self::schema::MIGRATIONS;
use super::machine::mode_of_word;
use super::{Error, Name, OverlayMode, Result, held};

pub(crate) use events::SavedEvent;

mod disks;
mod events;
mod formers;
mod generations;
mod leases;
mod machines;
mod models;
mod overlays;
mod remembered;
mod schema;
mod targets;

/// How long a connection waits for the other before it gives up.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// What a change outlives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Survives {
    /// The death of this process.
    Process,
    /// The loss of power.
    Power,
}

/// The saved facts.
pub(crate) struct Store {
    writer: Mutex<Writer>,
    reader: Mutex<Connection>,
    remembered: Mutex<Remembered>,
}

struct Writer {
    connection: Connection,
    /// What `PRAGMA synchronous` says now.
    survives: Survives,
}

impl Store {
    /// Opens the database, making or migrating it where needed.
    pub(super) fn open(path: &Path) -> Result<Store> {
        let failed = |what: &str, why: &dyn std::fmt::Display| {
            Error::Failed(format!("cannot {what} {}: {why}", path.display()))
        };
        // It holds the machines' secrets; SQLite gives its other files the same mode.
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(|e| failed("open", &e))?;
        let open = || -> rusqlite::Result<Connection> {
            let connection = Connection::open(path)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.pragma_update(None, "foreign_keys", true)?;
            Ok(connection)
        };
        let mut writer = open().map_err(|e| failed("open", &e))?;
        writer
            .pragma_update(None, "journal_mode", "WAL")
            .and_then(|()| writer.pragma_update(None, "synchronous", "FULL"))
            .map_err(|e| failed("open", &e))?;
        let version = writer
            .pragma_query_value(None, "user_version", |row| row.get::<_, u32>(0))
            .map_err(|e| failed("read", &e))?;
        let version = usize::try_from(version).unwrap_or(usize::MAX);
        if version > MIGRATIONS.len() {
            return Err(Error::Conflict(format!(
                "{} was written by a newer diskless (schema {version}; this one knows {}): \
                 run that one",
                path.display(),
                MIGRATIONS.len()
            )));
        }
        for (step, sql) in MIGRATIONS.iter().enumerate().skip(version) {
            let migrate = |writer: &mut Connection| {
                let transaction = writer.transaction()?;
                transaction.execute_batch(sql)?;
                transaction.pragma_update(None, "user_version", (step + 1).to_string())?;
                transaction.commit()
            };
            migrate(&mut writer).map_err(|e| failed("migrate", &e))?;
        }
        let reader = open()
            .and_then(|reader| {
                reader.pragma_update(None, "query_only", true)?;
                Ok(reader)
            })
            .map_err(|e| failed("open", &e))?;
        Ok(Store {
            writer: Mutex::new(Writer {
                connection: writer,
                survives: Survives::Power,
            }),
            reader: Mutex::new(reader),
            remembered: Mutex::default(),
        })
    }

    /// Reads facts, as of the last change.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Facts<'_>) -> Result<T>) -> Result<T> {
        let reader = held(&self.reader);
        read(&Facts {
            connection: &reader,
            machines_changed: Cell::new(false),
        })
    }

    /// Changes facts in one transaction: all of it, or on an error nothing.
    pub(crate) fn write<T>(
        &self,
        survives: Survives,
        change: impl FnOnce(&Facts<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut writer = held(&self.writer);
        if writer.survives != survives {
            let level = match survives {
                Survives::Process => "NORMAL",
                Survives::Power => "FULL",
            };
            writer
                .connection
                .pragma_update(None, "synchronous", level)?;
            writer.survives = survives;
        }
        let transaction = writer.connection.transaction()?;
        let facts = Facts {
            connection: &transaction,
            machines_changed: Cell::new(false),
        };
        let answer = change(&facts)?;
        let machines_changed = facts.machines_changed.get();
        let committed = transaction.commit();
        if machines_changed {
            held(&self.remembered).forget();
        }
        committed?;
        Ok(answer)
    }
}

/// The facts, inside one transaction.
pub(crate) struct Facts<'a> {
    connection: &'a Connection,
    /// A machine was put down, or removed.
    machines_changed: Cell<bool>,
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Error {
        Error::Failed(format!("state.db: {error}"))
    }
}

fn read_name(row: &Row<'_>, column: usize) -> rusqlite::Result<Name> {
    read_word(row, column, |text| Name::parse(text).ok())
}

fn read_mode(row: &Row<'_>, column: usize) -> rusqlite::Result<OverlayMode> {
    read_word(row, column, mode_of_word)
}

fn read_time(column: usize, micros: i64) -> rusqlite::Result<Timestamp> {
    Timestamp::from_microsecond(micros)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Integer, Box::new(e)))
}

/// Reads a text column that must be one of a few words.
fn read_word<T>(
    row: &Row<'_>,
    column: usize,
    parse: impl FnOnce(&str) -> Option<T>,
) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    parse(text).ok_or_else(|| {
        let why = format!("{text:?} is no value for this column");
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, why.into())
    })
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use dhcp::{Lease, Mac};

    use super::*;

    fn synchronous(store: &Store, survives: Survives) -> u32 {
        let level = |facts: &Facts<'_>| {
            let level = |row: &Row<'_>| row.get(0);
            Ok(facts
                .connection
                .pragma_query_value(None, "synchronous", level)?)
        };
        store.write(survives, level).unwrap()
    }

    #[test]
    fn only_what_survives_the_loss_of_power_costs_a_sync() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state.db")).unwrap();
        const NORMAL: u32 = 1;
        const FULL: u32 = 2;
        assert_eq!(synchronous(&store, Survives::Power), FULL);
        assert_eq!(synchronous(&store, Survives::Process), NORMAL);
        assert_eq!(synchronous(&store, Survives::Power), FULL);
    }

    #[test]
    fn a_change_that_fails_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("state.db")).unwrap();
        let lease = Lease {
            mac: Mac([2; 6]),
            address: [10, 0, 0, 1].into(),
            expires: UNIX_EPOCH,
            uuid: None,
            host_name: None,
        };
        let failed: Result<()> = store.write(Survives::Power, |facts| {
            facts.put_lease(&lease)?;
            Err(Error::Failed("later".into()))
        });
        assert!(failed.is_err());
        assert_eq!(store.read(|facts| facts.leases()).unwrap(), []);
    }

    #[test]
    fn a_database_of_a_newer_program_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        drop(Store::open(&path).unwrap());
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
        drop(connection);
        let refusal = Store::open(&path).err().unwrap().to_string();
        assert!(refusal.contains("written by a newer diskless"), "{refusal}");
    }

    #[test]
    fn a_file_that_is_no_database_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.db");
        std::fs::write(&path, vec![b'x'; 8192]).unwrap();
        let refusal = Store::open(&path).err().unwrap().to_string();
        assert!(
            refusal.contains("state.db: file is not a database"),
            "{refusal}"
        );
    }
}
