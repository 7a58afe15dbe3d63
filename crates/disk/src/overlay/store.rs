//! An open overlay: what it holds, and how its head changes.
//!
//! How one comes to be is in `store/opening.rs`, writing in `store/writing.rs`,
//! the flush in `store/flush.rs`, restore points in `store/points.rs`, the end
//! of restore points in `store/merge.rs`.
//!
//! Locks, in the order they are taken: the layers (one change of them at a
//! time), the journal (one flush at a time), the stripes in order of their
//! index, the situation (head), the pending marks. Reads take none of them.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::flush::{Pending, no_checkpoint};
use self::merge::Retired;
pub(super) use self::opening::{opening_failed, parent, put_in_place, remove, sweep};
use super::head::{Head, Rest};
use super::journal::Journal;
use super::layer::Layer;
use super::lock::Lock;
use super::room::Room;
use super::rounds::Rounds;
use super::stack::Stacked;
use super::{Caching, HostLoss, OverlayMode, Usage, check_retired};
use crate::files::Files;
use crate::health::{Health, trouble};
use crate::{BaseId, DiskError, Durability, OpenError};

mod flush;
mod merge;
mod opening;
mod points;
mod space;
mod writing;

/// Locks that writers of the same group of blocks share.
const STRIPES: usize = 64;

/// An open overlay, whoever holds it.
pub(super) struct Store {
    files: Files,
    lock: Arc<Lock>,
    base_id: BaseId,
    mode: OverlayMode,
    caching: Caching,
    /// What is read: the image and the layers.
    pub(super) disk: Stacked,
    /// One change of the layers at a time.
    layers: Mutex<Retired>,
    situation: Mutex<Situation>,
    /// The head allows writes: it says neither that all is settled nor that
    /// there is no top. Changes only under the stripes.
    ready: AtomicBool,
    stripes: [Mutex<()>; STRIPES],
    /// Data was written since the last `fdatasync` of it began.
    unsynced: AtomicBool,
    pending: Mutex<Pending>,
    journal: Mutex<Journal>,
    rounds: Rounds,
    health: Health,
    room: Room,
}

/// The head as it is on the disk, and what opening found.
struct Situation {
    head: Head,
    loss: HostLoss,
}

/// Changes of the head.
impl Store {
    /// A `keep` overlay under another generation; retires the handle.
    pub(super) fn begin_generation(
        &self,
        retired: &AtomicBool,
        generation: u64,
    ) -> Result<(), OpenError> {
        self.retire(retired)?;
        let begun = self.flush().and_then(|()| {
            self.settle_as(|head| {
                head.generation = generation;
                head.rest = Rest::Settled;
            })
        });
        match begun {
            Ok(true) => Ok(()),
            Ok(false) => {
                retired.store(false, Ordering::Release);
                let path = self.dir().to_owned();
                Err(OpenError::InUse { path })
            }
            Err(error) => {
                retired.store(false, Ordering::Release);
                Err(error.into())
            }
        }
    }

    /// Ends all writing through a handle: none is under way afterwards.
    fn retire(&self, retired: &AtomicBool) -> Result<(), DiskError> {
        let _stripes = self.all_stripes();
        check_retired(retired)?;
        retired.store(true, Ordering::Release);
        Ok(())
    }

    pub(super) fn settle(&self, retired: &AtomicBool) -> Result<(), DiskError> {
        if self.mode == OverlayMode::Reset || self.situation().head.rest == Rest::Settled {
            return Ok(());
        }
        self.flush()?;
        check_retired(retired)?;
        self.settle_as(Head::settle).map(|_| ())
    }

    pub(super) fn close(&self, retired: &AtomicBool) -> Result<(), DiskError> {
        self.retire(retired)?;
        // A merge that is under way ends at its next piece.
        let _layers = held(&self.layers);
        if self.mode == OverlayMode::Reset {
            return Ok(());
        }
        self.flush()?;
        let mut journal = self.journal();
        let stack = self.disk.stack();
        if let Some(top) = stack.top.layer_with(&mut journal)
            && journal.has_records()
        {
            match self.checkpoint(&mut journal, top) {
                Err(DiskError::NoSpace(reason)) => no_checkpoint(&reason),
                answer => answer?,
            }
        }
        drop(journal);
        self.settle_as(Head::settle).map(|_| ())
    }

    /// Changes the head while nothing is unflushed and no write is under way;
    /// `false` when something is.
    fn settle_as(&self, change: impl FnOnce(&mut Head)) -> Result<bool, DiskError> {
        let _journal = self.journal();
        let _stripes = self.all_stripes();
        self.health.check()?;
        if self.unsynced.load(Ordering::Acquire) || !self.pending().is_empty() {
            return Ok(false);
        }
        self.change_head(&mut self.situation(), change)?;
        Ok(true)
    }

    /// Makes the overlay ready to be written, durably, before the first write
    /// is answered: the top is there, and nobody says that all is settled. The
    /// caller holds a stripe, so the head says neither in the meantime.
    fn make_ready(&self) -> Result<(), DiskError> {
        let mut situation = self.situation();
        let stack = self.disk.stack();
        let made = match situation.head.is_fresh {
            false => None,
            true => {
                let number = situation.head.top();
                let made = Layer::make(
                    &self.files,
                    self.dir(),
                    number,
                    self.size_bytes(),
                    self.mode,
                );
                let context = || self.context("making a layer of");
                Some(made.map_err(|error| self.health.write_failed(context(), error))?)
            }
        };
        if situation.head.is_fresh || situation.head.rest == Rest::Settled {
            self.change_head(&mut situation, |head| {
                head.is_fresh = false;
                if head.rest == Rest::Settled {
                    head.rest = Rest::Written;
                }
            })?;
        }
        if let Some((layer, journal)) = made {
            stack.top.begin(layer, journal);
        }
        self.ready.store(true, Ordering::Release);
        Ok(())
    }

    /// Writes the head as `change` leaves it, durably.
    fn change_head(
        &self,
        situation: &mut Situation,
        change: impl FnOnce(&mut Head),
    ) -> Result<(), DiskError> {
        let mut head = situation.head.clone();
        change(&mut head);
        if head != situation.head {
            let generation = situation.head.generation;
            head.write(&self.files, self.dir()).map_err(|error| {
                self.health
                    .sync_failed(self.context("writing the head of"), error)
            })?;
            if head.generation != generation {
                situation.loss = HostLoss::None;
            }
            situation.head = head;
        }
        if situation.head.rest == Rest::Settled || situation.head.is_fresh {
            self.ready.store(false, Ordering::Release);
        }
        Ok(())
    }
}

/// What it is and what it holds.
impl Store {
    pub(super) fn dir(&self) -> &Path {
        &self.disk.dir
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.disk.size_bytes
    }

    pub(super) fn mode(&self) -> OverlayMode {
        self.mode
    }

    pub(super) fn base_id(&self) -> BaseId {
        self.base_id
    }

    pub(super) fn generation(&self) -> u64 {
        self.situation().head.generation
    }

    pub(super) fn host_loss(&self) -> HostLoss {
        self.situation().loss
    }

    pub(super) fn durability(&self) -> Durability {
        match (self.mode, self.caching) {
            (OverlayMode::Reset, _) => Durability::Volatile,
            (OverlayMode::Keep, Caching::WriteBack) => Durability::WriteBack,
            (OverlayMode::Keep, Caching::WriteThrough) => Durability::WriteThrough,
        }
    }

    /// Whether anything was written since the newest restore point.
    pub(super) fn has_changed(&self) -> bool {
        let situation = self.situation();
        let frozen = situation.head.frozen();
        let after_point = frozen.iter().rev().take_while(|layer| !layer.is_point);
        !situation.head.is_fresh || after_point.into_iter().any(|layer| !layer.is_empty)
    }

    pub(super) fn usage(&self) -> Result<Usage, DiskError> {
        let _layers = held(&self.layers);
        let stack = self.disk.stack();
        let failed = |e| trouble(self.context("measuring"), e);
        let mut usage = Usage {
            allocated_bytes: stored_bytes(self.dir()).map_err(failed)?,
            ..Usage::default()
        };
        let mut add = |(own, zero): (u64, u64), dir: &Path| {
            usage.own_blocks += own;
            usage.zero_blocks += zero;
            usage.allocated_bytes += stored_bytes(dir).map_err(failed)?;
            Ok::<(), DiskError>(())
        };
        for layer in stack.frozen() {
            add(layer.counts().map_err(failed)?, &layer.dir)?;
        }
        if let Some(top) = stack.top.layer() {
            add(top.live.count(), &top.dir)?;
        }
        Ok(usage)
    }

    fn context(&self, what: &str) -> String {
        self.disk.context(what)
    }

    fn stripe(&self, group: u64) -> MutexGuard<'_, ()> {
        let index = usize::try_from(group % STRIPES as u64).unwrap_or(0);
        held(&self.stripes[index])
    }

    fn all_stripes(&self) -> Vec<MutexGuard<'_, ()>> {
        self.stripes.iter().map(held).collect()
    }

    fn situation(&self) -> MutexGuard<'_, Situation> {
        held(&self.situation)
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        held(&self.pending)
    }

    /// The journal, of the top once [`Top::layer_with`] has seen it.
    fn journal(&self) -> MutexGuard<'_, Journal> {
        held(&self.journal)
    }
}

impl Rest {
    /// Of an overlay nobody has written: a `reset` one never survives its
    /// host, so it is never settled.
    pub(super) fn at_birth(mode: OverlayMode) -> Rest {
        match mode {
            OverlayMode::Reset => Rest::Written,
            OverlayMode::Keep => Rest::Settled,
        }
    }
}

impl Head {
    /// Everything answered is durable; what a lost host took stays lost.
    fn settle(&mut self) {
        if self.rest == Rest::Written {
            self.rest = Rest::Settled;
        }
    }
}

/// Space that the files in a directory take.
pub(super) fn stored_bytes(dir: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        // A checkpoint may replace its predecessor meanwhile.
        if let Ok(found) = entry?.metadata()
            && found.is_file()
        {
            bytes += found.blocks() * 512;
        }
    }
    Ok(bytes)
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
