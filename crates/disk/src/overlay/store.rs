//! An open overlay: the data path, the flush, the changes of generation.
//!
//! Locks, in the order they are taken: the journal (one flush at a time), the
//! stripes in order of their index, the situation (head), the pending marks.
//! Reads take none.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::head::{Head, Rest};
use super::journal::{Journal, Run, StepError};
use super::layer::{BLOCK_BYTES, Layer, layer_dir};
use super::live::{GROUP_BLOCKS, Mark};
use super::lock::Lock;
use super::rounds::Rounds;
use super::{Below, Caching, HostLoss, OverlayMode, Usage, check_retired};
use crate::files::Files;
use crate::health::{Health, trouble};
use crate::zeros::zeros;
use crate::{BaseId, DiskError, Durability, OpenError, Segment, SharedDisk, range};

/// Locks that writers of the same group of blocks share.
const STRIPES: usize = 64;

/// Bytes whose marks share a stripe's lock.
const GROUP_BYTES: u64 = GROUP_BLOCKS * BLOCK_BYTES;

/// Runs of marks remembered for the next flush (2 MiB of them; in tests few);
/// past this it writes a checkpoint instead of a record.
const PENDING_RUNS: usize = if cfg!(test) { 48 } else { 1 << 16 };

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

/// Marks made since the last flush took them, in order.
#[derive(Default)]
struct Pending {
    runs: Vec<Run>,
    /// More than are in `runs`: all marks that there are.
    everything: bool,
}

impl Pending {
    fn push(&mut self, blocks: Range<u64>, mark: Mark) {
        if self.everything {
            return;
        }
        if let Some(last) = self.runs.last_mut()
            && last.mark == mark
            && last.blocks.end == blocks.start
        {
            last.blocks.end = blocks.end;
        } else if self.runs.len() < PENDING_RUNS {
            self.runs.push(Run { blocks, mark });
        } else {
            self.runs = Vec::new();
            self.everything = true;
        }
    }

    /// Gives back what a flush took and could not note.
    fn restore(&mut self, mut taken: Pending) {
        taken.everything |= self.everything;
        for run in self.runs.drain(..) {
            taken.push(run.blocks, run.mark);
        }
        *self = taken;
    }

    fn is_empty(&self) -> bool {
        self.runs.is_empty() && !self.everything
    }
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

/// The data path.
impl Store {
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let mut rest = buffer;
        self.runs(offset, rest.len() as u64, |mark, run| {
            let length = usize::try_from(run.end - run.start).unwrap_or(usize::MAX);
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(length);
            rest = behind;
            match mark {
                Mark::Below => self.base.read(run.start, part)?,
                Mark::Own => self.read_own(run.start, part)?,
                Mark::Zero => part.fill(0),
            }
            Ok(true)
        })
        .map(|_| ())
    }

    pub(super) fn segments<'a>(
        &'a self,
        offset: u64,
        bytes: u64,
        segments: &mut Vec<Segment<'a>>,
    ) -> Result<bool, DiskError> {
        let before = segments.len();
        let answer = self.runs(offset, bytes, |mark, run| match mark {
            Mark::Below => self.base.segments(run.start, run.end - run.start, segments),
            Mark::Own => {
                let Some(start) = self.layer.address(run.start) else {
                    return Ok(false);
                };
                let length = usize::try_from(run.end - run.start).unwrap_or(usize::MAX);
                segments.push(Segment::new(start, length));
                Ok(true)
            }
            Mark::Zero => {
                let mut left = run.end - run.start;
                while left > 0 {
                    let piece = zeros(left);
                    segments.push(Segment::new(piece.as_ptr(), piece.len()));
                    left -= piece.len() as u64;
                }
                Ok(true)
            }
        });
        if !matches!(answer, Ok(true)) {
            segments.truncate(before);
        }
        answer
    }

    pub(super) fn will_need(&self, offset: u64, bytes: u64) {
        // A range that leaves the disk is refused when it is read.
        let _ = self.runs(offset, bytes, |mark, run| {
            match mark {
                Mark::Below => self.base.will_need(run.start, run.end - run.start),
                Mark::Own => self.layer.will_need(run.start, run.end - run.start),
                Mark::Zero => {}
            }
            Ok(true)
        });
    }

    pub(super) fn write(
        &self,
        retired: &AtomicBool,
        offset: u64,
        data: &[u8],
    ) -> Result<(), DiskError> {
        range::check(offset, data.len() as u64, self.size_bytes())?;
        let mut rest = data;
        self.by_group(retired, offset, data.len() as u64, |run| {
            let length = usize::try_from(run.end - run.start).unwrap_or(usize::MAX);
            let (part, behind) = rest.split_at(length);
            rest = behind;
            self.write_group(run.start, part)
        })?;
        self.write_through()
    }

    pub(super) fn unmap(
        &self,
        retired: &AtomicBool,
        offset: u64,
        bytes: u64,
    ) -> Result<(), DiskError> {
        range::check(offset, bytes, self.size_bytes())?;
        self.by_group(retired, offset, bytes, |run| self.unmap_group(run))?;
        self.write_through()
    }

    fn write_through(&self) -> Result<(), DiskError> {
        match self.durability() {
            Durability::WriteThrough => self.flush(),
            Durability::WriteBack | Durability::Volatile => Ok(()),
        }
    }

    /// Calls `part` with each part of a range that lies in one group of
    /// blocks, under the lock of that group.
    fn by_group(
        &self,
        retired: &AtomicBool,
        offset: u64,
        bytes: u64,
        mut part: impl FnMut(Range<u64>) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let end = offset + bytes;
        let mut at = offset;
        while at < end {
            let next = ((at / GROUP_BYTES + 1) * GROUP_BYTES).min(end);
            let _stripe = self.stripe(at / GROUP_BYTES);
            check_retired(retired)?;
            self.health.check()?;
            if self.settled.load(Ordering::Acquire) {
                self.unsettle()?;
            }
            part(at..next)?;
            at = next;
        }
        Ok(())
    }

    /// Writes a range inside one group whose lock is held.
    fn write_group(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let end = offset + data.len() as u64;
        let blocks = offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        // A block that is not ours yet is written whole: what the range leaves
        // of it comes from where the block is now.
        let start = match self.is_own(blocks.start) {
            true => offset,
            false => blocks.start * BLOCK_BYTES,
        };
        let whole_end = (blocks.end * BLOCK_BYTES).min(self.size_bytes());
        let stop = match self.is_own(blocks.end - 1) {
            true => end,
            false => whole_end,
        };
        let written = if start == offset && stop == end {
            self.layer.data.write_all_at(data, offset)
        } else {
            let length = usize::try_from(stop - start).unwrap_or(usize::MAX);
            let mut whole = vec![0; length];
            let front = usize::try_from(offset - start).unwrap_or(usize::MAX);
            let behind = front + data.len();
            self.read(start, &mut whole[..front])?;
            whole[front..behind].copy_from_slice(data);
            self.read(end, &mut whole[behind..])?;
            self.layer.data.write_all_at(&whole, start)
        };
        written.map_err(|error| self.health.write_failed(self.context("writing"), error))?;
        // In this order: whoever finds a mark in `pending` also finds that
        // data is to be synced, and data that is there.
        self.unsynced.store(true, Ordering::Release);
        self.mark(blocks, Mark::Own);
        Ok(())
    }

    /// Unmaps a range inside one group whose lock is held.
    fn unmap_group(&self, range: Range<u64>) -> Result<(), DiskError> {
        // The last block of the disk may be short: it is whole when the range
        // reaches the end of the disk.
        let first = range.start.div_ceil(BLOCK_BYTES);
        let last = match range.end == self.size_bytes() {
            true => range.end.div_ceil(BLOCK_BYTES),
            false => range.end / BLOCK_BYTES,
        };
        if first >= last {
            return self.zero_part(range);
        }
        self.zero_part(range.start..first * BLOCK_BYTES)?;
        if last * BLOCK_BYTES < range.end {
            self.zero_part(last * BLOCK_BYTES..range.end)?;
        }
        let mut own = Vec::new();
        let mut at = first;
        while at < last {
            let (mark, run_end) = self.layer.live.run(at, last);
            if mark == Mark::Own {
                own.push(at..run_end);
            }
            at = run_end;
        }
        self.mark(first..last, Mark::Zero);
        if self.mode == OverlayMode::Reset {
            // No log must say it first: a lost host voids all of this.
            for blocks in own {
                self.punch(blocks);
            }
        }
        Ok(())
    }

    /// Zeros a part of one block, or of two that touch.
    fn zero_part(&self, range: Range<u64>) -> Result<(), DiskError> {
        let mut at = range.start;
        while at < range.end {
            let next = ((at / BLOCK_BYTES + 1) * BLOCK_BYTES).min(range.end);
            let block = at / BLOCK_BYTES;
            if self.layer.live.run(block, block + 1).0 != Mark::Zero {
                self.write_group(at, zeros(next - at))?;
            }
            at = next;
        }
        Ok(())
    }

    /// Marks blocks whose group's lock is held, and notes for the next flush
    /// which of them changed.
    fn mark(&self, blocks: Range<u64>, mark: Mark) {
        let mut at = blocks.start;
        while at < blocks.end {
            let (old, run_end) = self.layer.live.run(at, blocks.end);
            if old != mark {
                self.layer.live.set(at..run_end, mark);
                if self.mode == OverlayMode::Keep {
                    self.pending().push(at..run_end, mark);
                }
            }
            at = run_end;
        }
    }

    /// Calls `part` with each part of a range whose blocks have one mark, in
    /// order, until it answers `false`; that is then the answer.
    fn runs(
        &self,
        offset: u64,
        bytes: u64,
        mut part: impl FnMut(Mark, Range<u64>) -> Result<bool, DiskError>,
    ) -> Result<bool, DiskError> {
        range::check(offset, bytes, self.size_bytes())?;
        let end = offset + bytes;
        let last = end.div_ceil(BLOCK_BYTES);
        let mut at = offset;
        while at < end {
            let (mark, run_end) = self.layer.live.run(at / BLOCK_BYTES, last);
            let next = (run_end * BLOCK_BYTES).min(end);
            if !part(mark, at..next)? {
                return Ok(false);
            }
            at = next;
        }
        Ok(true)
    }

    fn read_own(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.layer
            .data
            .read_exact_at(buffer, offset)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    DiskError::Corrupt(format!("the data of {} was cut off", self.dir.display()))
                }
                _ => trouble(self.context("reading"), error),
            })
    }

    fn is_own(&self, block: u64) -> bool {
        self.layer.live.run(block, block + 1).0 == Mark::Own
    }
}

/// The flush.
impl Store {
    /// Returns once everything answered before the call is as durable as the
    /// mode promises.
    pub(super) fn flush(&self) -> Result<(), DiskError> {
        self.health.check()?;
        match self.mode {
            OverlayMode::Keep => self.rounds.join(|| self.round()),
            // Nothing to make durable; but data the kernel could not write
            // back would be lost without a word.
            OverlayMode::Reset => self
                .layer
                .data
                .writeback_error()
                .map_err(|error| self.health.sync_failed(self.context("writing back"), error)),
        }
    }

    /// One round of the group commit.
    fn round(&self) -> Result<(), DiskError> {
        let mut journal = self.journal();
        self.health.check()?;
        // In this order: a write syncs, marks, pends. A mark that is taken here
        // is one whose data was written before `unsynced` is asked, so either
        // this `fdatasync` covers it or an earlier one has.
        let taken = std::mem::take(&mut *self.pending());
        if taken.everything || (!taken.is_empty() && !journal.takes_records()) {
            return self.checkpoint(&mut journal, taken);
        }
        if self.unsynced.swap(false, Ordering::AcqRel) {
            self.sync_data()?;
        }
        if taken.is_empty() {
            return Ok(());
        }
        if let Err(error) = journal.append(&taken.runs) {
            self.pending().restore(taken);
            return Err(self
                .health
                .write_failed(self.context("writing the log of"), error));
        }
        journal.sync().map_err(|error| {
            self.health
                .sync_failed(self.context("flushing the log of"), error)
        })?;
        self.punch_zeroed(taken.runs);
        if journal.wants_checkpoint() {
            // The flush is done; lack of space only makes the log longer.
            match self.checkpoint(&mut journal, Pending::default()) {
                Err(DiskError::NoSpace(reason)) => no_checkpoint(&reason),
                answer => answer?,
            }
        }
        Ok(())
    }

    /// Writes a checkpoint in place of a record of `taken`.
    fn checkpoint(&self, journal: &mut Journal, taken: Pending) -> Result<(), DiskError> {
        let answer = journal.checkpoint(&self.files, &self.layer.live, || {
            self.unsynced.store(false, Ordering::Release);
            self.layer.data.sync_data()
        });
        match answer {
            Ok(()) => {
                if taken.everything {
                    self.punch_what_is_not_own(0..self.layer.live.block_count());
                } else {
                    self.punch_zeroed(taken.runs);
                }
                Ok(())
            }
            Err(StepError::Abandoned(error)) => {
                self.pending().restore(taken);
                Err(self
                    .health
                    .write_failed(self.context("writing a checkpoint of"), error))
            }
            Err(StepError::Failed(error)) => Err(self
                .health
                .sync_failed(self.context("writing a checkpoint of"), error)),
        }
    }

    fn sync_data(&self) -> Result<(), DiskError> {
        self.layer
            .data
            .sync_data()
            .map_err(|error| self.health.sync_failed(self.context("flushing"), error))
    }

    /// Gives back the space of blocks that are durably zero.
    fn punch_zeroed(&self, runs: Vec<Run>) {
        for run in runs {
            if run.mark == Mark::Zero {
                self.punch_what_is_not_own(run.blocks);
            }
        }
    }

    /// Gives back what blocks take of the data file that are not ours: zero,
    /// or never marked because the host was lost first.
    ///
    /// A write may have come since the marks were made durable, and a late
    /// punch would destroy it: so it is looked again under the blocks' lock.
    /// Lets be what the file system refuses; the marks say what is read.
    fn punch_what_is_not_own(&self, blocks: Range<u64>) {
        let end = blocks.end * BLOCK_BYTES;
        let mut at = blocks.start * BLOCK_BYTES;
        while at < end {
            // Most of a large range takes no space, and needs no punch.
            let found = match self.layer.data.next_data(at..end) {
                Ok(Some(found)) => found,
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(dir = %self.dir.display(), %error, "holes not punched");
                    return;
                }
            };
            let mut block = found.start / BLOCK_BYTES;
            let last = found.end.div_ceil(BLOCK_BYTES);
            while block < last {
                let group = block / GROUP_BLOCKS;
                let group_end = ((group + 1) * GROUP_BLOCKS).min(last);
                let _stripe = self.stripe(group);
                while block < group_end {
                    let (mark, run_end) = self.layer.live.run(block, group_end);
                    if mark != Mark::Own {
                        self.punch(block..run_end);
                    }
                    block = run_end;
                }
            }
            at = last * BLOCK_BYTES;
        }
    }

    fn punch(&self, blocks: Range<u64>) {
        let offset = blocks.start * BLOCK_BYTES;
        let bytes = (blocks.end - blocks.start) * BLOCK_BYTES;
        if let Err(error) = self.layer.data.punch_hole(offset, bytes) {
            tracing::debug!(dir = %self.dir.display(), %error, "hole not punched");
        }
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

/// The log says the same, only longer.
fn no_checkpoint(reason: &str) {
    tracing::warn!(reason, "no checkpoint for lack of space");
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
