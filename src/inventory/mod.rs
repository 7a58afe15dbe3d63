//! FACTS: what this site has: machines, images, overlays, own disks, leases,
//! plain targets, models of firmware.
//!
//! [`Inventory`] is the one thing the rest of the program holds; each noun is a
//! file here and adds its own methods to it. Facts about machines, overlays,
//! leases and targets lie in `DATA/state.db` and are saved by `store` alone; facts about an
//! image lie beside its bytes, in its manifest, so that a copied DATA serves
//! every disk without a database.
//!
//! Every method blocks for as long as a file system takes: call them from
//! threads that may wait. Reads are answered from memory or from SQLite's page
//! cache (microseconds); writes that promise durability wait for one `fsync`.

mod comment;
mod commit;
mod disk;
mod download;
mod export;
mod generation;
mod image;
mod import;
mod job;
mod lease;
mod lock;
mod machine;
mod model;
mod name;
mod overlay;
mod point;
mod source;
mod spool;
mod store;
mod target;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use uuid::Uuid;

pub(crate) use self::disk::{DirectBoot, DiskFormat, DiskKind, NewOwnDisk, OwnDisk, stored_bytes};
pub(crate) use ::disk::overlay::OverlayMode;
pub(crate) use commit::CommitRequest;
pub(crate) use disk::unopened;
pub(crate) use download::Address;
pub(crate) use export::{Existing, Export, ExportFormat, Exported, open_image};
pub(crate) use generation::{Generations, Prepared, chap_name, parse_chap_name};
pub(crate) use image::{Image, ImageRef, ScrubPace, Verification, hex};
pub(crate) use import::{ImportRequest, Origin};
pub(crate) use job::{Job, JobState, Outcome};
pub(crate) use machine::{
    Assignment, Identity, Machine, MachineChange, MachineState, NewMachine, parse_mac, show_mac,
};
pub(crate) use model::{Finding, Learned, Model, ModelKey, ServerRole, style_word};
pub(crate) use name::Name;
pub(crate) use overlay::Overlay;
pub(crate) use point::{FoundPoint, note, short};
pub(crate) use spool::{Becomes, Spool};
pub(crate) use store::{SavedEvent, Store, Survives};
pub(crate) use target::{Chap, NewUnit, PlainTarget, Proof, Sharing, Unit, UnitFormat, UnitKind};

/// All facts of one data directory, held locked while this lives.
pub(crate) struct Inventory {
    data: PathBuf,
    limits: Limits,
    store: Arc<Store>,
    images: Arc<image::Images>,
    jobs: job::Jobs,
    disks: Arc<self::disk::Disks>,
    /// When each machine was last heard of, not yet saved.
    seen: Mutex<HashMap<Uuid, Timestamp>>,
    /// What works with which firmware.
    models: Mutex<model::Models>,
    /// How many machines nobody knows may still be enrolled just now.
    enrolments: Mutex<machine::Enrolments>,
    _lock: lock::DataLock,
}

/// How far the inventory may grow on a stranger's word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Pending machines kept; beyond it the one enrolled first is forgotten.
    pub(crate) pending_machines: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            // A school's computer rooms on their first morning.
            pending_machines: 256,
        }
    }
}

/// Why the inventory refused, as one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// What was asked makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// It contradicts what is there already.
    #[error("{0}")]
    Conflict(String),
    /// The host failed us (disk, database); not the asker's fault.
    #[error("{0}")]
    Failed(String),
}

impl Error {
    /// The same refusal in other words.
    fn reworded(self, reword: impl FnOnce(String) -> String) -> Error {
        match self {
            Error::Invalid(words) => Error::Invalid(reword(words)),
            Error::NotFound(words) => Error::NotFound(reword(words)),
            Error::Conflict(words) => Error::Conflict(reword(words)),
            Error::Failed(words) => Error::Failed(reword(words)),
        }
    }
}

/// What an inventory method answers.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl Inventory {
    /// Opens (making it where needed) the data directory, locks it, and removes
    /// what an interrupted import or removal left behind.
    pub(crate) fn open(data: &Path, limits: Limits) -> Result<Inventory> {
        let rooms =
            ["images", "overlays", "disks", "reservations", "exports"].map(|room| data.join(room));
        for directory in [data].into_iter().chain(rooms.iter().map(PathBuf::as_path)) {
            fs::create_dir_all(directory).map_err(|e| {
                Error::Failed(format!(
                    "cannot make the data directory {}: {e}",
                    directory.display()
                ))
            })?;
        }
        let data = data
            .canonicalize()
            .map_err(|e| Error::Failed(format!("cannot open {}: {e}", data.display())))?;
        let lock = lock::DataLock::take(&data)?;
        let store = Arc::new(Store::open(&data.join("state.db"))?);
        let images = image::Images::open(data.join("images"))?;
        let disks = self::disk::Disks::open(data.join("disks"), Arc::clone(&store))?;
        export::tidy(&data.join(export::NOTES))?;
        let models = model::Models::new(store.read(|facts| facts.models())?);
        let inventory = Inventory {
            data,
            limits,
            store,
            images: Arc::new(images),
            jobs: job::Jobs::default(),
            disks: Arc::new(disks),
            seen: Mutex::default(),
            models: Mutex::new(models),
            enrolments: Mutex::default(),
            _lock: lock,
        };
        inventory.finish_removals()?;
        Ok(inventory)
    }

    /// The data directory.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// The store: the DHCP server's keeper of leases, the timeline's of events.
    pub(crate) fn store(&self) -> Arc<Store> {
        Arc::clone(&self.store)
    }

    /// Saves what was only noted in memory (when machines were last heard of).
    /// The timeline calls it with each of its batches.
    pub(crate) fn save_seen(&self) -> Result<()> {
        let seen = held(&self.seen).clone();
        if seen.is_empty() {
            return Ok(());
        }
        self.store.write(Survives::Process, |facts| {
            seen.iter()
                .try_for_each(|(machine, at)| facts.put_seen(*machine, *at))
        })?;
        // Newer notes, made meanwhile, stay for the next batch.
        held(&self.seen).retain(|machine, at| seen.get(machine) != Some(at));
        Ok(())
    }
}

impl Drop for Inventory {
    fn drop(&mut self) {
        self.stop_jobs();
        if let Err(error) = self.save_seen() {
            tracing::warn!(%error, "when machines were last seen was not saved");
        }
    }
}

/// Locks a mutex; what it guards here is whole after each statement, so a
/// thread that panicked inside does no harm.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The time, to the microsecond: as it is saved.
pub(crate) fn now() -> Timestamp {
    let exact = Timestamp::now();
    Timestamp::from_microsecond(exact.as_microsecond()).unwrap_or(exact)
}

/// Makes names inside `directory` (a rename, a new file) survive the loss of
/// power.
fn sync_directory(directory: &Path) -> std::io::Result<()> {
    fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
pub(crate) mod tests;
