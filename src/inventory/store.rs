//! How facts are saved: SQLite in `DATA/state.db`. The only file that knows.
//!
//! One writer and one reader connection, each behind a mutex; write-ahead log.
//! A change is one transaction over [`Facts`], promised either to survive the
//! loss of power (`synchronous=FULL`, one `fsync`) or only the death of the
//! process (`NORMAL`: no `fsync`, the page cache holds it), see [`Survives`].
//! What a peer can cause at will is promised no more than the latter.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::net::Ipv4Addr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dhcp::{Lease, Mac};
use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;

use super::{
    Assignment, Chap, Error, Generations, ImageRef, Machine, MachineState, Name, Overlay,
    OverlayMode, PlainTarget, Prepared, Proof, Result, Sharing, Unit, UnitKind, held,
    machine::{mode_of_word, mode_word},
};

/// The schema, one step for each version: step n leads from version n to n+1.
/// A step that has been released is never edited.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE machines (
        id        BLOB PRIMARY KEY,
        name      TEXT NOT NULL UNIQUE,
        mac       BLOB NOT NULL UNIQUE,
        uuid      BLOB,
        serial    TEXT,
        state     TEXT NOT NULL,
        image     TEXT,               -- with mode: the assignment
        version   INTEGER,            -- NULL: the current one
        mode      TEXT,
        address   TEXT UNIQUE,
        loader    TEXT,
        created   INTEGER NOT NULL,   -- all times: microseconds since 1970
        last_seen INTEGER
    ) STRICT;
    CREATE INDEX machines_uuid ON machines (uuid);
    CREATE INDEX machines_serial ON machines (serial);
    CREATE TABLE generations (
        machine         BLOB PRIMARY KEY REFERENCES machines (id) ON DELETE CASCADE,
        current         INTEGER NOT NULL,
        current_secret  TEXT,
        prepared        INTEGER,
        prepared_secret TEXT,
        prepared_at     INTEGER
    ) STRICT;
    CREATE TABLE overlays (
        uuid    BLOB PRIMARY KEY,
        machine BLOB NOT NULL REFERENCES machines (id) ON DELETE CASCADE,
        image   TEXT NOT NULL,
        version INTEGER NOT NULL,
        mode    TEXT NOT NULL,
        created INTEGER NOT NULL,
        UNIQUE (machine, image)
    ) STRICT;
    CREATE TABLE leases (
        mac       BLOB PRIMARY KEY,
        address   TEXT NOT NULL,
        expires   INTEGER NOT NULL,
        uuid      BLOB,
        host_name TEXT
    ) STRICT;
    CREATE TABLE events (
        mac        BLOB NOT NULL,
        number     INTEGER NOT NULL,
        at         INTEGER NOT NULL,
        generation INTEGER,
        stage      TEXT NOT NULL,
        detail     TEXT NOT NULL,
        count      INTEGER NOT NULL,
        PRIMARY KEY (mac, number)
    ) STRICT, WITHOUT ROWID;
",
    "
    CREATE TABLE targets (
        id            BLOB PRIMARY KEY,
        name          TEXT NOT NULL UNIQUE,
        iqn           TEXT NOT NULL UNIQUE,
        chap_name     TEXT,           -- with chap_secret
        chap_secret   TEXT,
        mutual_name   TEXT,           -- with mutual_secret
        mutual_secret TEXT,
        created       INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE units (
        id          BLOB PRIMARY KEY,
        target      BLOB NOT NULL REFERENCES targets (id) ON DELETE CASCADE,
        lun         INTEGER NOT NULL,
        file        BLOB NOT NULL,    -- a path need not be UTF-8
        kind        TEXT NOT NULL,
        shared      INTEGER NOT NULL,
        block_bytes INTEGER,
        created     INTEGER NOT NULL,
        UNIQUE (target, lun)
    ) STRICT;
",
];

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
        })
    }

    /// Reads facts, as of the last change.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Facts<'_>) -> Result<T>) -> Result<T> {
        let reader = held(&self.reader);
        read(&Facts {
            connection: &reader,
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
        let answer = change(&Facts {
            connection: &transaction,
        })?;
        transaction.commit()?;
        Ok(answer)
    }
}

/// The facts, inside one transaction.
pub(crate) struct Facts<'a> {
    connection: &'a Connection,
}

const MACHINE_COLUMNS: &str = "id, name, mac, uuid, serial, state, image, version, mode, \
                               address, loader, created, last_seen";

/// Machines.
impl Facts<'_> {
    /// Every machine, by name.
    pub(super) fn machines(&self) -> Result<Vec<Machine>> {
        self.machines_where("1 = 1 ORDER BY name", [])
    }

    /// The machine of an id.
    pub(super) fn machine(&self, id: Uuid) -> Result<Option<Machine>> {
        Ok(self.machines_where("id = ?1", [id.into_bytes()])?.pop())
    }

    /// The machine of a name.
    pub(super) fn machine_by_name(&self, name: &str) -> Result<Option<Machine>> {
        Ok(self.machines_where("name = ?1", [name])?.pop())
    }

    /// The machine of a MAC.
    pub(super) fn machine_by_mac(&self, mac: Mac) -> Result<Option<Machine>> {
        Ok(self.machines_where("mac = ?1", [mac.0])?.pop())
    }

    /// The machine of a fixed address.
    pub(super) fn machine_by_address(&self, address: Ipv4Addr) -> Result<Option<Machine>> {
        Ok(self
            .machines_where("address = ?1", [address.to_string()])?
            .pop())
    }

    /// At most two of the machines with an SMBIOS UUID.
    pub(super) fn machines_by_uuid(&self, uuid: [u8; 16]) -> Result<Vec<Machine>> {
        self.machines_where("uuid = ?1 LIMIT 2", [uuid])
    }

    /// At most two of the machines with a serial number.
    pub(super) fn machines_by_serial(&self, serial: &str) -> Result<Vec<Machine>> {
        self.machines_where("serial = ?1 LIMIT 2", [serial])
    }

    /// Pending machines, the one enrolled first first.
    pub(super) fn pending_machines(&self) -> Result<Vec<Machine>> {
        self.machines_where("state = 'pending' ORDER BY created, id", [])
    }

    fn machines_where(
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
    pub(super) fn put_machine(&self, machine: &Machine) -> Result<()> {
        let assignment = machine.assignment.as_ref();
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO machines (id, name, mac, uuid, serial, state, image, version, mode, \
                                   address, loader, created, last_seen)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
             ON CONFLICT (id) DO UPDATE SET
                 name = ?2, mac = ?3, uuid = ?4, serial = ?5, state = ?6, image = ?7,
                 version = ?8, mode = ?9, address = ?10, loader = ?11, last_seen = ?13",
        )?;
        statement.execute(params![
            machine.id.into_bytes(),
            machine.name.as_str(),
            machine.mac.0,
            machine.uuid,
            machine.serial,
            machine.state.word(),
            assignment.map(|a| a.image.name.as_str()),
            assignment.and_then(|a| a.image.version),
            assignment.map(|a| mode_word(a.mode)),
            machine.address.map(|a| a.to_string()),
            machine.loader,
            machine.created.as_microsecond(),
            machine.last_seen.map(Timestamp::as_microsecond),
        ])?;
        Ok(())
    }

    /// Puts down when a machine was last heard of.
    pub(super) fn put_seen(&self, machine: Uuid, at: Timestamp) -> Result<()> {
        self.connection
            .prepare_cached("UPDATE machines SET last_seen = ?2 WHERE id = ?1")?
            .execute(params![machine.into_bytes(), at.as_microsecond()])?;
        Ok(())
    }

    /// Forgets a machine, its generations and its overlays.
    pub(super) fn remove_machine(&self, id: Uuid) -> Result<()> {
        self.connection
            .prepare_cached("DELETE FROM machines WHERE id = ?1")?
            .execute([id.into_bytes()])?;
        Ok(())
    }
}

/// Boot generations.
impl Facts<'_> {
    /// A machine's generations.
    pub(super) fn generations(&self, machine: Uuid) -> Result<Generations> {
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
    pub(super) fn put_generations(&self, machine: Uuid, generations: &Generations) -> Result<()> {
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

/// Overlays.
impl Facts<'_> {
    /// Every overlay, oldest first.
    pub(super) fn overlays(&self) -> Result<Vec<Overlay>> {
        self.overlays_where("1 = 1", [])
    }

    /// A machine's overlays, oldest first.
    pub(super) fn overlays_of(&self, machine: Uuid) -> Result<Vec<Overlay>> {
        self.overlays_where("machine = ?1", [machine.into_bytes()])
    }

    /// The overlay of a UUID.
    pub(super) fn overlay(&self, uuid: Uuid) -> Result<Option<Overlay>> {
        Ok(self.overlays_where("uuid = ?1", [uuid.into_bytes()])?.pop())
    }

    fn overlays_where(
        &self,
        condition: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<Vec<Overlay>> {
        let sql = format!(
            "SELECT uuid, machine, image, version, mode, created FROM overlays
             WHERE {condition} ORDER BY created, uuid"
        );
        let mut statement = self.connection.prepare_cached(&sql)?;
        let rows = statement.query_map(parameters, |row| {
            Ok(Overlay {
                uuid: Uuid::from_bytes(row.get(0)?),
                machine: Uuid::from_bytes(row.get(1)?),
                image: read_name(row, 2)?,
                version: row.get(3)?,
                mode: read_mode(row, 4)?,
                created: read_time(5, row.get(5)?)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Puts an overlay down, in place of the one of the same UUID.
    pub(super) fn put_overlay(&self, overlay: &Overlay) -> Result<()> {
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
    pub(super) fn remove_overlay(&self, uuid: Uuid) -> Result<()> {
        self.connection
            .prepare_cached("DELETE FROM overlays WHERE uuid = ?1")?
            .execute([uuid.into_bytes()])?;
        Ok(())
    }
}

/// Plain targets.
impl Facts<'_> {
    /// Every plain target with its units, by name.
    pub(super) fn targets(&self) -> Result<Vec<PlainTarget>> {
        self.targets_where("1 = 1 ORDER BY name", [])
    }

    /// The plain target of an id.
    pub(super) fn target(&self, id: Uuid) -> Result<Option<PlainTarget>> {
        Ok(self.targets_where("id = ?1", [id.into_bytes()])?.pop())
    }

    /// The plain target of a name.
    pub(super) fn target_by_name(&self, name: &str) -> Result<Option<PlainTarget>> {
        Ok(self.targets_where("name = ?1", [name])?.pop())
    }

    /// The plain target of an iSCSI name.
    pub(super) fn target_by_iqn(&self, iqn: &str) -> Result<Option<PlainTarget>> {
        Ok(self.targets_where("iqn = ?1", [iqn])?.pop())
    }

    /// How many plain targets there are.
    pub(super) fn target_count(&self) -> Result<u32> {
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
            "SELECT id, lun, file, kind, shared, block_bytes, created
             FROM units WHERE target = ?1 ORDER BY lun",
        )?;
        let rows = statement.query_map([target.into_bytes()], read_unit)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Puts a new target down; its units are put down one by one.
    pub(super) fn put_target(&self, target: &PlainTarget) -> Result<()> {
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
    pub(super) fn remove_target(&self, id: Uuid) -> Result<()> {
        self.connection
            .prepare_cached("DELETE FROM targets WHERE id = ?1")?
            .execute([id.into_bytes()])?;
        Ok(())
    }

    /// Puts a new unit down.
    pub(super) fn put_unit(&self, target: Uuid, unit: &Unit) -> Result<()> {
        self.connection
            .prepare_cached("INSERT INTO units VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?
            .execute(params![
                unit.id.into_bytes(),
                target.into_bytes(),
                unit.lun,
                unit.file.as_os_str().as_bytes(),
                unit.kind.word(),
                unit.sharing == Sharing::Many,
                unit.block_bytes,
                unit.created.as_microsecond(),
            ])?;
        Ok(())
    }

    /// Forgets a unit.
    pub(super) fn remove_unit(&self, id: Uuid) -> Result<()> {
        self.connection
            .prepare_cached("DELETE FROM units WHERE id = ?1")?
            .execute([id.into_bytes()])?;
        Ok(())
    }
}

/// Leases.
impl Facts<'_> {
    /// Every lease, by address.
    pub(super) fn leases(&self) -> Result<Vec<Lease>> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT mac, address, expires, uuid, host_name FROM leases")?;
        let rows = statement.query_map([], read_lease)?;
        let mut leases: Vec<Lease> = rows.collect::<rusqlite::Result<_>>()?;
        leases.sort_by_key(|lease| lease.address);
        Ok(leases)
    }

    /// The lease of a MAC.
    pub(super) fn lease(&self, mac: Mac) -> Result<Option<Lease>> {
        let mut statement = self.connection.prepare_cached(
            "SELECT mac, address, expires, uuid, host_name FROM leases WHERE mac = ?1",
        )?;
        Ok(statement.query_row([mac.0], read_lease).optional()?)
    }

    /// Puts a lease down, in place of the one of the same MAC.
    pub(super) fn put_lease(&self, lease: &Lease) -> Result<()> {
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
    pub(super) fn remove_lease(&self, mac: Mac) -> Result<()> {
        self.connection
            .prepare_cached("DELETE FROM leases WHERE mac = ?1")?
            .execute([mac.0])?;
        Ok(())
    }
}

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

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Error {
        Error::Failed(format!("state.db: {error}"))
    }
}

fn read_machine(row: &Row<'_>) -> rusqlite::Result<Machine> {
    let image = row.get::<_, Option<String>>(6)?;
    let assignment = match image {
        Some(_) => Some(Assignment {
            image: ImageRef {
                name: read_name(row, 6)?,
                version: row.get(7)?,
            },
            mode: read_mode(row, 8)?,
        }),
        None => None,
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
    })
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
