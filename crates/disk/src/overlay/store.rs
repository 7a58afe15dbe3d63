//! An open overlay: its creation, opening, changes of generation and end.
//!
//! The data path is in `store/data.rs`, the flush in `store/flush.rs`.
//!
//! Locks, in the order they are taken: the journal (one flush at a time), the
//! stripes in order of their index, the situation (head), the pending marks.
//! Reads take none.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::flush::{Pending, no_checkpoint};
use super::head::{Head, Rest};
use super::journal::{Journal, StepError};
use super::layer::{Layer, layer_dir};
use super::lock::Lock;
use super::rounds::Rounds;
use super::{Below, Caching, HostLoss, OverlayMode, Usage, check_retired};
use crate::files::Files;
use crate::health::{Health, trouble};
use crate::{BaseId, DiskError, Durability, OpenError, SharedDisk};

mod data;
mod flush;

/// Locks that writers of the same group of blocks share.
const STRIPES: usize = 64;

/// An open overlay, whoever holds it.
pub(super) struct Store {
    dir: PathBuf,
    files: Files,
    lock: Arc<Lock>,
    base: SharedDisk,
    base_id: BaseId,
    mode: OverlayMode,
    caching: Caching,
    layer: Layer,
    situation: Mutex<Situation>,
    /// Says what the head says: the next write must take it back first.
    /// Changes only under the stripes.
    settled: AtomicBool,
    stripes: [Mutex<()>; STRIPES],
    /// Data was written since the last `fdatasync` of it began.
    unsynced: AtomicBool,
    pending: Mutex<Pending>,
    journal: Mutex<Journal>,
    rounds: Rounds,
    health: Health,
}

/// The head as it is on the disk, and what opening found.
struct Situation {
    head: Head,
    loss: HostLoss,
}

/// Creation, opening, changes of generation.
impl Store {
    pub(super) fn create(
        files: Files,
        dir: &Path,
        below: Below,
        mode: OverlayMode,
        generation: u64,
        caching: Caching,
    ) -> Result<Arc<Store>, OpenError> {
        if dir.exists() {
            return Err(OpenError::Exists {
                path: dir.to_owned(),
            });
        }
        // Made under another name, so that what has the name is whole.
        let new = beside(dir, "new");
        let failed = |e| trouble(format!("creating {}", dir.display()), e);
        files
            .remove_tree(&new)
            .and_then(|()| files.create_dir(&new))
            .map_err(failed)?;
        let lock = Lock::take(&new)?;
        let number = 0;
        let made = (|| {
            let size_bytes = below.id.size_bytes;
            let (_, journal) = Layer::create(&files, &new, number, size_bytes, mode)?;
            let mut head = Head {
                sequence: 0,
                mode,
                rest: Rest::at_birth(mode),
                generation,
                base: below.id,
                layers: vec![number],
            };
            // Both, so that later heads only overwrite.
            head.write(&files, &new)?;
            head.write(&files, &new)?;
            files.sync_dir(&new)?;
            files.rename(&new, dir)?;
            files.sync_dir(parent(dir))?;
            drop(journal);
            Ok(head)
        })();
        let head = match made {
            Ok(head) => head,
            Err(error) => {
                let _ = files.remove_tree(&new);
                return Err(failed(error).into());
            }
        };
        let opened = Layer::open(&files, dir, number, below.id.size_bytes);
        let layer = opened.and_then(|l| l.ok_or_else(|| io::Error::other("its marks are gone")));
        let layer = layer.map_err(failed)?;
        let journal = match mode {
            OverlayMode::Reset => Journal::new(&layer.dir),
            OverlayMode::Keep => Journal::open(&files, &layer.dir).map_err(failed)?,
        };
        let parts = (lock.into(), layer, journal, head, HostLoss::None);
        Ok(Store::over(files, dir, below, caching, parts))
    }

    pub(super) fn open(
        files: Files,
        dir: &Path,
        below: Below,
        caching: Caching,
    ) -> Result<Arc<Store>, OpenError> {
        let lock = Lock::take(dir)?;
        let mut head = Store::read_head(&files, dir)?;
        if head.base != below.id {
            return Err(OpenError::OtherBase {
                path: dir.to_owned(),
                expected: head.base.to_string(),
                offered: below.id.to_string(),
            });
        }
        let &[number] = head.layers.as_slice() else {
            return Err(OpenError::Unsupported {
                path: dir.to_owned(),
                what: format!("{} layers (restore points)", head.layers.len()),
            });
        };
        let failed = |e| opening_failed(dir, e);
        let size_bytes = head.base.size_bytes;
        let mut loss = match head.rest {
            Rest::Lost => HostLoss::LostWrites,
            Rest::Settled | Rest::Written => HostLoss::None,
        };
        let found = Layer::open(&files, dir, number, size_bytes).map_err(failed)?;
        let (layer, journal) = match (found, head.mode) {
            (Some(layer), OverlayMode::Reset) => {
                let journal = Journal::new(&layer.dir);
                (layer, journal)
            }
            (Some(layer), OverlayMode::Keep) => {
                let journal = Journal::open(&files, &layer.dir).map_err(failed)?;
                (layer, journal)
            }
            (None, OverlayMode::Reset) => {
                // Void, and noted so together with the layer that replaces it.
                loss = HostLoss::LostWrites;
                head.rest = Rest::Lost;
                replace_layers(&files, dir, &mut head).map_err(|e| failed(e.into()))?
            }
            (None, OverlayMode::Keep) => {
                match head.rest {
                    Rest::Settled => loss = HostLoss::Clean,
                    Rest::Lost => {}
                    Rest::Written => {
                        // Noted before the marks become those of this boot: a
                        // death in between must not hide the loss.
                        loss = HostLoss::LostWrites;
                        head.rest = Rest::Lost;
                        head.write(&files, dir).map_err(failed)?;
                    }
                }
                let layer = Layer::recover(&files, dir, number, size_bytes).map_err(failed)?;
                let journal = Journal::open(&files, &layer.dir).map_err(failed)?;
                (layer, journal)
            }
        };
        let parts = (lock.into(), layer, journal, head, loss);
        Ok(Store::over(files, dir, below, caching, parts))
    }

    pub(super) fn restart(
        files: Files,
        dir: &Path,
        below: Below,
        mode: OverlayMode,
        generation: u64,
        caching: Caching,
    ) -> Result<Arc<Store>, OpenError> {
        let lock = Lock::take(dir)?;
        let head = Store::read_head(&files, dir)?;
        let lock = lock.into();
        Store::afresh(files, dir, lock, head, below, mode, generation, caching)
            .map_err(|e| opening_failed(dir, e.into()))
    }

    /// The head of an overlay that was just locked, once what it says is
    /// durable; what it does not name is removed.
    fn read_head(files: &Files, dir: &Path) -> Result<Head, OpenError> {
        let head = Head::read(dir)?;
        Head::sync(files, dir)
            .and_then(|()| files.sync_dir(parent(dir)))
            .and_then(|()| remove_orphans(files, dir, &head))
            .map_err(|e| opening_failed(dir, e))?;
        Ok(head)
    }

    /// An empty layer for all there are, in one step of the head.
    #[allow(clippy::too_many_arguments)]
    fn afresh(
        files: Files,
        dir: &Path,
        lock: Arc<Lock>,
        old: Head,
        below: Below,
        mode: OverlayMode,
        generation: u64,
        caching: Caching,
    ) -> Result<Arc<Store>, StepError> {
        let mut head = Head {
            mode,
            rest: Rest::at_birth(mode),
            generation,
            base: below.id,
            ..old
        };
        let (layer, journal) = replace_layers(&files, dir, &mut head)?;
        let parts = (lock, layer, journal, head, HostLoss::None);
        Ok(Store::over(files, dir, below, caching, parts))
    }

    fn over(
        files: Files,
        dir: &Path,
        below: Below,
        caching: Caching,
        (lock, layer, journal, head, loss): (Arc<Lock>, Layer, Journal, Head, HostLoss),
    ) -> Arc<Store> {
        // A process that died left marks that are in no log: those of anybody
        // who found the head unsettled may be such.
        let unknown = head.mode == OverlayMode::Keep && head.rest != Rest::Settled;
        Arc::new(Store {
            dir: dir.to_owned(),
            files,
            lock,
            base: below.disk,
            base_id: below.id,
            mode: head.mode,
            caching,
            layer,
            settled: AtomicBool::new(head.rest == Rest::Settled),
            situation: Mutex::new(Situation { head, loss }),
            stripes: std::array::from_fn(|_| Mutex::new(())),
            unsynced: AtomicBool::new(unknown),
            pending: Mutex::new(Pending {
                runs: Vec::new(),
                everything: unknown,
            }),
            journal: Mutex::new(journal),
            rounds: Rounds::default(),
            health: Health::default(),
        })
    }

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
                let path = self.dir.clone();
                Err(OpenError::InUse { path })
            }
            Err(error) => {
                retired.store(false, Ordering::Release);
                Err(error.into())
            }
        }
    }

    /// An empty layer under another generation; retires the handle.
    pub(super) fn reset(
        &self,
        retired: &AtomicBool,
        generation: u64,
    ) -> Result<Arc<Store>, OpenError> {
        self.retire(retired)?;
        // No flush and no change of the head is under way, and none will be
        // by anybody who looks at the handle again.
        let _journal = self.journal();
        let below = Below {
            disk: self.base.clone(),
            id: self.base_id,
        };
        let new = Store::afresh(
            self.files.clone(),
            &self.dir,
            self.lock.clone(),
            self.situation().head.clone(),
            below,
            self.mode,
            generation,
            self.caching,
        );
        let context = || self.context("starting afresh");
        match new {
            Ok(new) => {
                // This store's head is no longer the newest: nobody may write it.
                self.health.close("the overlay was started afresh");
                Ok(new)
            }
            Err(StepError::Abandoned(error)) => {
                retired.store(false, Ordering::Release);
                Err(trouble(context(), error).into())
            }
            Err(StepError::Failed(error)) => Err(self.health.sync_failed(context(), error).into()),
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
        if self.mode == OverlayMode::Reset || self.settled.load(Ordering::Acquire) {
            return Ok(());
        }
        self.flush()?;
        check_retired(retired)?;
        self.settle_as(Head::settle).map(|_| ())
    }

    pub(super) fn close(&self, retired: &AtomicBool) -> Result<(), DiskError> {
        self.retire(retired)?;
        if self.mode == OverlayMode::Reset {
            return Ok(());
        }
        self.flush()?;
        let mut journal = self.journal();
        if journal.has_records() {
            match self.checkpoint(&mut journal, Pending::default()) {
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
        self.change_head(change)?;
        Ok(true)
    }

    /// Takes back durably that everything answered is durable; the caller
    /// holds a stripe, so no [`settle_as`](Self::settle_as) is under way.
    fn unsettle(&self) -> Result<(), DiskError> {
        self.change_head(|head| {
            if head.rest == Rest::Settled {
                head.rest = Rest::Written;
            }
        })
    }

    fn change_head(&self, change: impl FnOnce(&mut Head)) -> Result<(), DiskError> {
        let mut situation = self.situation();
        let mut head = situation.head.clone();
        change(&mut head);
        if head != situation.head {
            let generation = situation.head.generation;
            head.write(&self.files, &self.dir).map_err(|error| {
                self.health
                    .sync_failed(format!("writing the head of {}", self.dir.display()), error)
            })?;
            if head.generation != generation {
                situation.loss = HostLoss::None;
            }
            situation.head = head;
        }
        let settled = situation.head.rest == Rest::Settled;
        self.settled.store(settled, Ordering::Release);
        Ok(())
    }
}

/// What it is and what it holds.
impl Store {
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.base_id.size_bytes
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

    pub(super) fn usage(&self) -> Result<Usage, DiskError> {
        use std::os::unix::fs::MetadataExt;
        let (own_blocks, zero_blocks) = self.layer.live.count();
        let mut allocated_bytes = 0;
        let mut add = |dir: &Path| -> io::Result<()> {
            for entry in std::fs::read_dir(dir)? {
                // A checkpoint may replace its predecessor meanwhile.
                if let Ok(found) = entry?.metadata()
                    && found.is_file()
                {
                    allocated_bytes += found.blocks() * 512;
                }
            }
            Ok(())
        };
        add(&self.dir)
            .and_then(|()| add(&self.layer.dir))
            .map_err(|e| trouble(self.context("measuring"), e))?;
        Ok(Usage {
            own_blocks,
            zero_blocks,
            allocated_bytes,
        })
    }

    fn context(&self, what: &str) -> String {
        format!("{what} overlay {}", self.dir.display())
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

    fn journal(&self) -> MutexGuard<'_, Journal> {
        held(&self.journal)
    }
}

impl Rest {
    /// Of an overlay nobody has written: a `reset` one never survives its
    /// host, so it is never settled.
    fn at_birth(mode: OverlayMode) -> Rest {
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

/// Removes a closed overlay.
pub(super) fn remove(files: &Files, dir: &Path) -> Result<(), OpenError> {
    let _lock = Lock::take(dir)?;
    let failed = |e| trouble(format!("removing {}", dir.display()), e);
    // First out of its name: what has the name is whole.
    let gone = beside(dir, "gone");
    files
        .remove_tree(&gone)
        .and_then(|()| files.rename(dir, &gone))
        .and_then(|()| files.sync_dir(parent(dir)))
        .and_then(|()| files.remove_tree(&gone))
        .map_err(failed)?;
    Ok(())
}

/// Removes what interrupted creations and removals left.
pub(super) fn sweep(files: &Files, overlays_dir: &Path) -> Result<(), OpenError> {
    let failed = |e| trouble(format!("sweeping {}", overlays_dir.display()), e);
    for name in files.names(overlays_dir).map_err(failed)? {
        if name.ends_with(".new") || name.ends_with(".gone") {
            let path = overlays_dir.join(name);
            let _lock = Lock::take(&path)?;
            files.remove_tree(&path).map_err(failed)?;
        }
    }
    Ok(())
}

/// Puts one empty layer in the place of those in `head`, with one write of the
/// head; until then the old ones are valid, afterwards the new one.
fn replace_layers(
    files: &Files,
    dir: &Path,
    head: &mut Head,
) -> Result<(Layer, Journal), StepError> {
    let newest = head.layers.iter().max().copied().unwrap_or(0);
    let number = newest.checked_add(1).ok_or_else(|| {
        let error = io::Error::other("no more numbers for layers");
        StepError::Abandoned(error)
    })?;
    let made = Layer::create(files, dir, number, head.base.size_bytes, head.mode)
        .and_then(|made| files.sync_dir(dir).map(|()| made))
        .map_err(StepError::Abandoned)?;
    head.layers = vec![number];
    head.write(files, dir).map_err(StepError::Failed)?;
    if let Err(error) = remove_orphans(files, dir, head) {
        // Found again and removed at the next opening.
        tracing::debug!(dir = %dir.display(), %error, "old layer stays");
    }
    Ok(made)
}

/// Removes directories of layers that no head names: a layer that did not come
/// to be, or one that was replaced.
fn remove_orphans(files: &Files, dir: &Path, head: &Head) -> io::Result<()> {
    for name in files.names(dir)? {
        if let Ok(number) = name.parse::<u32>()
            && !head.layers.contains(&number)
            && layer_dir(dir, number) == dir.join(&name)
        {
            files.remove_tree(&dir.join(name))?;
        }
    }
    Ok(())
}

fn opening_failed(dir: &Path, error: io::Error) -> OpenError {
    let context = format!("opening overlay {}", dir.display());
    OpenError::Disk(match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            DiskError::Corrupt(format!("{context}: {error}"))
        }
        _ => trouble(context, error),
    })
}

/// `NAME.suffix` in the same directory.
fn beside(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    dir.with_file_name(name)
}

fn parent(dir: &Path) -> &Path {
    match dir.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
