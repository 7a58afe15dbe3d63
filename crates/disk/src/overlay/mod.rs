//! Overlays: one machine's private writes above a golden image.
//!
//! A directory of our own (its layout: docs/overlay-format.md): a sparse data file that
//! holds block k at offset k * 4096, two bits a block that say where its bytes
//! are, and, for `keep`, a log of those bits. Two promises:
//!
//! - *Process death*: everything **answered** is there afterwards. The bytes
//!   are in the page cache, the marks in a shared mapping.
//! - *Power loss* (`keep`): everything **flushed** is there, and nothing that
//!   was not written. The mapping is void then; checkpoint and log speak.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use self::head::Head;
use self::store::Store;
use crate::files::Files;
use crate::health::trouble;
use crate::{
    Access, BaseId, Disk, DiskError, Durability, Extent, Geometry, OpenError, Segment, SharedDisk,
    Space,
};

mod branch;
mod calendar;
mod data;
mod frozen;
mod head;
mod journal;
mod layer;
mod live;
mod lock;
mod map;
mod owners;
mod point;
mod room;
pub(crate) mod rounds;
mod stack;
mod store;
#[cfg(test)]
pub(crate) mod tests;

pub use self::branch::{Origin, View};
pub use self::calendar::thinning;
pub use self::point::{COMMENT_BYTES_MAX, Note, POINTS_MAX, Point, PointId};

/// What becomes of an overlay at the next boot generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverlayMode {
    /// It starts afresh; it lives through a death of the process, not through
    /// one of the host. A flush costs nothing ([`Durability::Volatile`]).
    Reset,
    /// It lives on.
    Keep,
}

/// When a write to a `keep` overlay is answered; a `reset` overlay is always
/// [`Durability::Volatile`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Caching {
    /// Once it survives the process ([`Durability::WriteBack`]).
    #[default]
    WriteBack,
    /// Once it survives the loss of power ([`Durability::WriteThrough`]).
    WriteThrough,
}

/// What the host's death did to an overlay, for the boot generation that is in
/// its head. Asked at a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostLoss {
    /// The host lived on since the overlay was last open: every answered write
    /// is there.
    None,
    /// The host was lost while nothing was unflushed: every answered write is
    /// there all the same.
    Clean,
    /// The host was lost, and with it writes that may have been answered (of a
    /// `reset` overlay: all of them). A machine of this generation must not be
    /// let in again, its page cache no longer matches: it must boot. Stays
    /// until the generation changes.
    LostWrites,
}

/// What an overlay's head says, told without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// What becomes of it at the next boot generation.
    pub mode: OverlayMode,
    /// The boot generation whose writes it holds.
    pub generation: u64,
    /// The image it lies on.
    pub base: BaseId,
    /// Its layers, lowest first.
    pub layers: Vec<u32>,
    /// The most its layers may hold.
    pub quota_bytes: Option<u64>,
}

/// What an overlay holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Blocks of 4 KiB that lie in the overlay.
    pub own_blocks: u64,
    /// Blocks of 4 KiB that read as zeros, whatever the image holds.
    pub zero_blocks: u64,
    /// Space its files take in the host's file system.
    pub allocated_bytes: u64,
}

/// One machine's private writes above a golden image, open and locked.
///
/// Shared by every session of one boot generation. Dropping it is the death of
/// a process (nothing is lost, all of it is found again); [`close`](Self::close)
/// is the orderly end.
pub struct Overlay {
    store: Arc<Store>,
    /// Another handle has taken over, or this one was closed.
    retired: AtomicBool,
}

impl Overlay {
    /// Creates the directory `dir` (its parent exists) with an empty overlay
    /// above `base`, and opens it.
    pub fn create(
        dir: &Path,
        base: SharedDisk,
        base_id: BaseId,
        mode: OverlayMode,
        generation: u64,
        caching: Caching,
    ) -> Result<Overlay, OpenError> {
        let below = Below::new(base, base_id)?;
        Store::create(real_files()?, dir, below, mode, generation, caching).map(Overlay::over)
    }

    /// Opens the overlay in `dir` and locks it.
    ///
    /// Refuses when it is open elsewhere, or when its head names another image
    /// than `base_id`. After the host was lost a `reset` overlay is found
    /// empty and a `keep` overlay holds what was flushed: see
    /// [`host_loss`](Self::host_loss).
    pub fn open(
        dir: &Path,
        base: SharedDisk,
        base_id: BaseId,
        caching: Caching,
    ) -> Result<Overlay, OpenError> {
        let below = Below::new(base, base_id)?;
        Store::open(real_files()?, dir, below, caching).map(Overlay::over)
    }

    /// Makes the closed overlay in `dir` an empty one: of another boot
    /// generation, and perhaps on another version of the image or of another
    /// mode. Atomic: after a loss of power it is the old one or the new one.
    pub fn restart(
        dir: &Path,
        base: SharedDisk,
        base_id: BaseId,
        mode: OverlayMode,
        generation: u64,
        caching: Caching,
    ) -> Result<Overlay, OpenError> {
        let below = Below::new(base, base_id)?;
        Store::restart(real_files()?, dir, below, mode, generation, caching).map(Overlay::over)
    }

    /// What the overlay in `dir` says of itself; takes no lock.
    pub fn inspect(dir: &Path) -> Result<Summary, OpenError> {
        let head = Head::read(dir)?;
        Ok(Summary {
            mode: head.mode,
            generation: head.generation,
            base: head.base,
            layers: head.layers.iter().map(|layer| layer.number).collect(),
            quota_bytes: head.quota_bytes,
        })
    }

    /// Removes the overlay in `dir` and all it holds; refuses while it is open.
    pub fn remove(dir: &Path) -> Result<(), OpenError> {
        store::remove(&real_files()?, dir)
    }

    /// Begins another boot generation: a `reset` overlay starts afresh, a
    /// `keep` overlay lives on.
    ///
    /// This handle is retired: every later write, unmap and flush through it
    /// fails with [`DiskError::Failed`], so that a session of the old
    /// generation can no longer touch what the new one sees. The new
    /// generation works through the handle that is returned. After an error
    /// this handle goes on.
    pub fn switch(&self, generation: u64) -> Result<Overlay, OpenError> {
        match self.mode() {
            OverlayMode::Reset => self.reset(generation),
            OverlayMode::Keep => {
                self.store.begin_generation(&self.retired, generation)?;
                Ok(Overlay::over(self.store.clone()))
            }
        }
    }

    /// Starts afresh for `generation`, whatever the mode; retires this handle
    /// as [`switch`](Self::switch) does.
    pub fn reset(&self, generation: u64) -> Result<Overlay, OpenError> {
        self.store
            .reset(&self.retired, generation)
            .map(Overlay::over)
    }

    /// Makes a restore point: flushes, and freezes what was written so far.
    ///
    /// Costs the same however much was written, and may come while the overlay
    /// is in use: writes wait for the few syncs it takes, reads for nothing.
    /// What a point of a `reset` overlay promises is what its mode promises.
    pub fn point(&self, note: Note) -> Result<Point, OpenError> {
        self.store.point(&self.retired, note)
    }

    /// The restore points of the overlay in `dir`, oldest first; neither opens
    /// nor locks it.
    pub fn points(dir: &Path) -> Result<Vec<Point>, OpenError> {
        branch::points(dir)
    }

    /// Whether anything was written since the newest restore point.
    pub fn has_changed(&self) -> bool {
        self.store.has_changed()
    }

    /// Takes restore points away: durably at once, then their layers are
    /// merged with those above. That copies what the smaller of two holds, so
    /// it is for a thread that may take its time; reads and writes go on
    /// meanwhile, and [`tend`](Self::tend) goes on with what was interrupted.
    ///
    /// Points that are gone already are passed over. Layers that another
    /// overlay stands on too stay as they are.
    pub fn drop_points(&self, points: &[PointId]) -> Result<(), OpenError> {
        self.forget_points(points)?;
        self.tend()
    }

    /// The first half of [`drop_points`](Self::drop_points), which is quick:
    /// nobody can go back to them any more. Their layers stay until
    /// [`tend`](Self::tend) merges them.
    pub fn forget_points(&self, points: &[PointId]) -> Result<(), OpenError> {
        self.store.forget_points(&self.retired, points)
    }

    /// Sets the most its layers may hold, or nothing of the kind; kept in its
    /// head. Past it (and past the pool's reserve) a write that needs fresh
    /// blocks is refused with [`DiskError::NoSpace`] before anything of it is
    /// done; overwriting goes on, and so does unmapping, which gives room back.
    pub fn set_quota(&self, quota_bytes: Option<u64>) -> Result<(), OpenError> {
        self.live()?;
        self.store.set_quota(quota_bytes)
    }

    /// The most its layers may hold.
    pub fn quota(&self) -> Option<u64> {
        self.store.quota()
    }

    /// Sets what is to stay free of the file system it lies on. To be said
    /// after each opening: it is the pool's, not the overlay's.
    pub fn set_reserve(&self, bytes: u64) {
        self.store.set_reserve(bytes);
    }

    /// What can wait: gives the files back that a frozen layer needs no more,
    /// goes on with merges, lets go of what readers may have held. For a
    /// background thread, after restore points came or went. Ends soon, with
    /// an error, when the overlay is closed meanwhile.
    pub fn tend(&self) -> Result<(), OpenError> {
        self.tend_while(&|| true)
    }

    /// The same as long as `go_on` says so; it is asked before each piece that
    /// is copied, of at most 1 MiB, and a sync comes between 64 MiB of them.
    pub fn tend_while(&self, go_on: &dyn Fn() -> bool) -> Result<(), OpenError> {
        self.store.tend(&self.retired, go_on)
    }

    /// Makes in `dir` a new overlay that begins where the overlay in `source`
    /// was at a restore point; not opened. The source may be in use.
    ///
    /// The layers are shared, the restore points up to `at` with them: whatever
    /// becomes of the one overlay, the other goes on. A `keep` branch of a
    /// `reset` overlay makes what it stands on durable, which takes a while.
    pub fn branch(
        source: &Path,
        at: PointId,
        dir: &Path,
        mode: OverlayMode,
        generation: u64,
    ) -> Result<(), OpenError> {
        branch::branch(&real_files()?, source, at, dir, mode, generation)
    }

    /// The overlay in `dir` as it was at a restore point, to be read, also
    /// while it is in use; or as it is now, which locks it.
    pub fn view(
        dir: &Path,
        at: Option<PointId>,
        base: SharedDisk,
        base_id: BaseId,
    ) -> Result<View, OpenError> {
        let below = Below::new(base, base_id)?;
        View::open(real_files()?, dir, at, below)
    }

    /// What becomes of it at the next boot generation.
    pub fn mode(&self) -> OverlayMode {
        self.store.mode()
    }

    /// The boot generation whose writes it holds.
    pub fn generation(&self) -> u64 {
        self.store.generation()
    }

    /// The image it lies on.
    pub fn base_id(&self) -> BaseId {
        self.store.base_id()
    }

    /// What the host's death did to the generation that is in the head.
    pub fn host_loss(&self) -> HostLoss {
        self.store.host_loss()
    }

    /// Blocks and bytes it holds; walks the marks, so not for every command.
    pub fn usage(&self) -> Result<Usage, DiskError> {
        self.store.usage()
    }

    /// Flushes and notes durably that nothing is unflushed, unless a write is
    /// under way: for moments of rest (the last session ended, a quiet
    /// minute). The next write takes the note back, at the cost of one
    /// `fdatasync`. Does nothing for `reset`.
    pub fn settle(&self) -> Result<(), DiskError> {
        self.live()?;
        self.store.settle(&self.retired)
    }

    /// The orderly end: flushes, writes a checkpoint, settles and retires this
    /// handle. The lock is given back when the last owner drops it.
    pub fn close(&self) -> Result<(), DiskError> {
        self.live()?;
        self.store.close(&self.retired)
    }

    fn over(store: Arc<Store>) -> Overlay {
        Overlay {
            store,
            retired: AtomicBool::new(false),
        }
    }

    /// Refuses once this handle is retired.
    fn live(&self) -> Result<(), DiskError> {
        check_retired(&self.retired)
    }
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlay")
            .field("dir", &self.store.dir())
            .field("generation", &self.generation())
            .finish_non_exhaustive()
    }
}

impl Disk for Overlay {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.store.size_bytes(),
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
        }
    }

    fn access(&self) -> Access {
        Access::ReadWrite
    }

    fn durability(&self) -> Durability {
        self.store.durability()
    }

    fn is_thin(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.store.disk.read(offset, buffer)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.store.write(&self.retired, offset, data)
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.live()?;
        self.store.flush()
    }

    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.store.unmap(&self.retired, offset, bytes)
    }

    fn segments<'a>(
        &'a self,
        offset: u64,
        bytes: u64,
        segments: &mut Vec<Segment<'a>>,
    ) -> Result<bool, DiskError> {
        self.store.disk.segments(offset, bytes, segments)
    }

    fn space(&self) -> Option<Space> {
        self.store.space()
    }

    fn extent(&self, offset: u64, bytes: u64) -> Result<Extent, DiskError> {
        self.store.disk.extent(offset, bytes)
    }

    fn will_need(&self, offset: u64, bytes: u64) {
        self.store.disk.will_need(offset, bytes);
    }
}

/// Removes what an interrupted [`Overlay::create`] or [`Overlay::remove`] left
/// in the directory that holds the overlays; for the program's start.
pub fn sweep(overlays_dir: &Path) -> Result<(), OpenError> {
    store::sweep(&real_files()?, overlays_dir)
}

/// What lies below an overlay: the image, and which one it is.
struct Below {
    disk: SharedDisk,
    id: BaseId,
}

impl Below {
    /// Refuses an image whose size is not the one its identity names.
    fn new(disk: SharedDisk, id: BaseId) -> Result<Below, OpenError> {
        let size_bytes = disk.geometry().size_bytes;
        if size_bytes != id.size_bytes || !size_bytes.is_multiple_of(512) {
            return Err(OpenError::Disk(DiskError::Corrupt(format!(
                "the image has {size_bytes} bytes, published with {}",
                id.size_bytes
            ))));
        }
        Ok(Below { disk, id })
    }
}

fn check_retired(retired: &AtomicBool) -> Result<(), DiskError> {
    if retired.load(Ordering::Acquire) {
        return Err(DiskError::Failed(
            "the overlay was closed, or a newer boot generation has taken over".into(),
        ));
    }
    Ok(())
}

fn real_files() -> Result<Files, OpenError> {
    Files::real().map_err(|e| trouble("asking which boot of the kernel this is".into(), e).into())
}

/// `N` bytes at `at` of something that was checked to be long enough; zeros
/// where it is not.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    if let Some(found) = bytes.get(at..at + N) {
        field.copy_from_slice(found);
    }
    field
}
