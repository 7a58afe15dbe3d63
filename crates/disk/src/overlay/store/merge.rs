//! The end of restore points: their layers are merged with those above.
//!
//! A layer whose point was taken away is told by the head, durably, before
//! anything else happens; from then on it is only ever read below the layer
//! above it. So data can be copied from the one to the other block by block:
//! *down* into blocks that the upper layer covers, or *up* into blocks it does
//! not have. Then the marks of both become those of one layer, then the head
//! forgets the other. Each state in between reads the same, and whatever was
//! interrupted is simply done again.
//!
//! A data file that another overlay is linked to is never written: that is
//! asked before each piece that is copied, under a lock that whoever links a
//! layer holds as well (`branch.rs`). Layers of which both are shared stay.

use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::super::frozen::{Frozen, mark_in, words};
use super::super::head::Head;
use super::super::journal;
use super::super::layer::{BLOCK_BYTES, layer_dir};
use super::super::live::{Live, Mark, PAGE_BLOCKS};
use super::super::map::PAGE_BYTES;
use super::super::point::{Note, PointId};
use super::super::{OverlayMode, check_retired};
use super::{Store, held};
use crate::files::File;
use crate::health::trouble;
use crate::{DiskError, OpenError};

/// What is copied before it is looked again whether the file is shared.
const COPY_BLOCKS: u64 = 256;

/// Copied, at most, between two syncs: the last one is short then, and whoever
/// stops a merge or flushes beside it waits for no more than this.
const SYNC_BYTES: usize = 64 << 20;

/// How long the mapping of a layer that is no more stays, for who was told to
/// send from it: far longer than any send may take.
const GRACE: Duration = Duration::from_secs(600);

/// A merge was told to stop; what it copied is copied again.
#[derive(Debug, thiserror::Error)]
#[error("told to stop")]
struct Stopped;

fn is_stopped(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Stopped>())
}

/// Layers that are no more.
#[derive(Default)]
pub(super) struct Retired(Vec<Gone>);

/// A layer that is no more, but that somebody may still send from.
struct Gone {
    since: Instant,
    _layer: Arc<Frozen>,
    /// Its data, locked: another overlay that is alone with it now must not
    /// write it yet.
    _data: Option<File>,
}

/// Which of two layers takes the other in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Down,
    Up,
}

impl Store {
    pub(in crate::overlay) fn forget_points(
        &self,
        retired: &AtomicBool,
        points: &[PointId],
    ) -> Result<(), OpenError> {
        {
            let _layers = held(&self.layers);
            check_retired(retired)?;
            self.health.check()?;
            let entries = self.situation().head.layers.clone();
            let mut dropped = Vec::new();
            for entry in entries.iter().filter(|entry| entry.is_point) {
                let note = Note::read_whole(&layer_dir(self.dir(), entry.number))
                    .map_err(|e| trouble(self.context("reading a restore point of"), e))?;
                if note.is_some_and(|note| points.contains(&note.id)) {
                    dropped.push(entry.number);
                }
            }
            self.change_head(&mut self.situation(), |head| {
                for entry in &mut head.layers {
                    entry.is_point &= !dropped.contains(&entry.number);
                }
            })?;
            // The newest one: what it stands on is merged with what was
            // written since, which has to be frozen for it.
            let head = self.situation().head.clone();
            let newest = head.frozen().last();
            if !head.is_fresh && newest.is_some_and(|entry| dropped.contains(&entry.number)) {
                self.freeze(retired, None)?;
            }
        }
        Ok(())
    }

    /// Seals and merges until there is nothing left to do, or `go_on` says no:
    /// it is asked before each piece that is copied.
    pub(in crate::overlay) fn tend(
        &self,
        retired: &AtomicBool,
        go_on: &dyn Fn() -> bool,
    ) -> Result<(), OpenError> {
        {
            let mut layers = held(&self.layers);
            layers.0.retain(|gone| gone.since.elapsed() < GRACE);
        }
        let mut passed = 0;
        loop {
            // Others get their turn between two steps.
            let mut layers = held(&self.layers);
            check_retired(retired)?;
            self.health.check()?;
            if !go_on() {
                return Ok(());
            }
            let stack = self.disk.stack();
            let frozen: Vec<_> = stack.frozen().cloned().collect();
            if self.mode == OverlayMode::Keep
                && let Some(layer) = frozen.iter().find(|layer| !layer.is_sealed())
            {
                layer.seal().map_err(|e| self.unmerged("sealing", e))?;
                continue;
            }
            let entries = self.situation().head.layers.clone();
            let next = (passed..frozen.len().saturating_sub(1)).find(|&i| !entries[i].is_point);
            let Some(lower) = next else {
                return Ok(());
            };
            match self.merge(retired, go_on, &mut layers, lower, &frozen) {
                Ok(true) => {
                    passed = lower;
                    self.recount()?;
                }
                Ok(false) => passed = lower + 1,
                Err(error) if is_stopped(&error) => return Ok(()),
                Err(error) => return Err(self.unmerged("merging", error).into()),
            }
        }
    }

    fn unmerged(&self, what: &str, error: io::Error) -> DiskError {
        trouble(self.context(&format!("{what} layers of")), error)
    }

    /// Merges a layer with the one above it; `false` when both are shared, or
    /// the note of the point at their end is damaged.
    fn merge(
        &self,
        retired: &AtomicBool,
        go_on: &dyn Fn() -> bool,
        gone_layers: &mut Retired,
        at: usize,
        frozen: &[Arc<Frozen>],
    ) -> io::Result<bool> {
        let (lower, upper) = (&frozen[at], &frozen[at + 1]);
        if self.situation().head.layers[at + 1].is_point && Note::read_whole(&upper.dir)?.is_none()
        {
            return Ok(false);
        }
        // Without files on one side there is nothing to copy.
        let way = match (lower.is_empty(), upper.is_empty()) {
            (true, _) => Way::Up,
            (false, true) => Way::Down,
            (false, false) => match self.copy_data(retired, go_on, lower, upper)? {
                Some(way) => way,
                None => return Ok(false),
            },
        };
        let (kept, gone) = match way {
            Way::Down => (lower, upper),
            Way::Up => (upper, lower),
        };
        if way == Way::Down && self.situation().head.layers[at + 1].is_point {
            Note::read(&gone.dir)?.write(&self.files, &kept.dir)?;
        }
        let data = match gone.is_empty() {
            true => None,
            false => {
                let data = self.files.open_to_read(&gone.dir.join("data"))?;
                flock(data.inner(), FlockOperation::LockShared)?;
                Some(data)
            }
        };
        self.change_head(&mut self.situation(), |head| forget(head, at, way))
            .map_err(io::Error::other)?;
        let layer = match lower.is_empty() || upper.is_empty() {
            true => kept.clone(),
            false => Arc::new(Frozen::merged(kept)),
        };
        self.disk.replace(self.disk.stack().merged(at, layer));
        gone_layers.0.push(Gone {
            since: Instant::now(),
            _layer: gone.clone(),
            _data: data,
        });
        if way == Way::Down
            && let Err(error) = self.punch_covered(kept, gone)
        {
            tracing::debug!(dir = %kept.dir.display(), %error, "holes not punched");
        }
        if let Err(error) = self.files.remove_tree(&gone.dir) {
            // Found again and removed at the next opening.
            tracing::debug!(dir = %gone.dir.display(), %error, "a merged layer stays");
        }
        Ok(true)
    }

    /// Copies the data of one of two layers into the other, and makes the
    /// marks of both those of the other; which one, or `None` when both are
    /// shared.
    fn copy_data(
        &self,
        retired: &AtomicBool,
        go_on: &dyn Fn() -> bool,
        lower: &Frozen,
        upper: &Frozen,
    ) -> io::Result<Option<Way>> {
        let open = |layer: &Frozen| self.files.open_file(&layer.dir.join("data"));
        let (lower_file, upper_file) = (open(lower)?, open(upper)?);
        let way = match (is_sole(&lower_file)?, is_sole(&upper_file)?) {
            (false, false) => return Ok(None),
            (true, false) => Way::Down,
            (false, true) => Way::Up,
            (true, true) if upper.counts()?.0 <= lower.counts()?.0 => Way::Down,
            (true, true) => Way::Up,
        };
        let (from, to, to_layer) = match way {
            Way::Down => (upper.data()?, lower_file, lower),
            Way::Up => (lower.data()?, upper_file, upper),
        };
        let sync = || {
            to.sync_data().map_err(|error| {
                let failed = self
                    .health
                    .sync_failed(self.context("merging layers of"), error);
                io::Error::other(failed)
            })
        };
        let (mut piece, mut unsynced_bytes) = (Vec::new(), 0);
        for page in 0..lower.block_count.div_ceil(PAGE_BLOCKS) {
            let (below, above) = (lower.page(page)?, upper.page(page)?);
            let wanted = |at| {
                Ok::<bool, io::Error>(match way {
                    Way::Down => mark_in(above.as_ref(), at)? == Mark::Own,
                    Way::Up => {
                        mark_in(below.as_ref(), at)? == Mark::Own
                            && mark_in(above.as_ref(), at)? == Mark::Below
                    }
                })
            };
            for blocks in runs(page, lower.block_count, wanted)? {
                // Whoever closes the overlay does not wait for gigabytes.
                check_retired(retired).map_err(io::Error::other)?;
                if !go_on() {
                    return Err(io::Error::other(Stopped));
                }
                piece.resize(bytes_of(blocks.end - blocks.start), 0);
                from.file
                    .read_exact_at(&mut piece, blocks.start * BLOCK_BYTES)?;
                let written =
                    while_sole(&to, || to.write_all_at(&piece, blocks.start * BLOCK_BYTES))?;
                if written.is_none() {
                    return Ok(None);
                }
                unsynced_bytes += piece.len();
                if unsynced_bytes >= SYNC_BYTES {
                    sync()?;
                    unsynced_bytes = 0;
                }
            }
        }
        sync()?;
        journal::seal(&self.files, &to_layer.dir, to_layer.block_count, |page| {
            Ok(merged_page(
                lower.page(page)?.as_ref(),
                upper.page(page)?.as_ref(),
            ))
        })?;
        Ok(Some(way))
    }

    /// Gives back what the lower layer has below zeros of the upper one.
    fn punch_covered(&self, kept: &Frozen, gone: &Frozen) -> io::Result<()> {
        if gone.is_empty() {
            return Ok(());
        }
        let file = self.files.open_file(&kept.dir.join("data"))?;
        for page in 0..kept.block_count.div_ceil(PAGE_BLOCKS) {
            let above = gone.page(page)?;
            let zero = |at| Ok(mark_in(above.as_ref(), at)? == Mark::Zero);
            for blocks in runs(page, kept.block_count, zero)? {
                let (offset, bytes) = (
                    blocks.start * BLOCK_BYTES,
                    (blocks.end - blocks.start) * BLOCK_BYTES,
                );
                while_sole(&file, || file.punch_hole(offset, bytes))?;
            }
        }
        Ok(())
    }
}

/// Takes the layer that was taken in out of the head.
fn forget(head: &mut Head, lower: usize, way: Way) {
    match way {
        Way::Up => {
            head.layers.remove(lower);
        }
        Way::Down => {
            let upper = head.layers.remove(lower + 1);
            head.layers[lower].is_point = upper.is_point;
        }
    }
}

/// Whether no other overlay is linked to a file.
fn is_sole(file: &File) -> io::Result<bool> {
    Ok(file.inner().metadata()?.nlink() == 1)
}

/// Does something to a file unless another overlay is linked to it, was so of
/// late, or is about to be; nobody links it meanwhile.
fn while_sole<T>(file: &File, act: impl FnOnce() -> io::Result<T>) -> io::Result<Option<T>> {
    match flock(file.inner(), FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(None),
        locked => locked?,
    }
    let answer = match is_sole(file) {
        Ok(true) => act().map(Some),
        Ok(false) => Ok(None),
        Err(error) => Err(error),
    };
    flock(file.inner(), FlockOperation::Unlock)?;
    answer
}

/// Runs of blocks of a page that are wanted, none longer than a piece.
fn runs(
    page: u64,
    block_count: u64,
    wanted: impl Fn(usize) -> io::Result<bool>,
) -> io::Result<Vec<Range<u64>>> {
    let start = page * PAGE_BLOCKS;
    let mut runs: Vec<Range<u64>> = Vec::new();
    for (block, at) in (start..block_count.min(start + PAGE_BLOCKS)).zip(0_usize..) {
        if !wanted(at)? {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.end == block && run.end - run.start < COPY_BLOCKS => run.end += 1,
            _ => runs.push(block..block + 1),
        }
    }
    Ok(runs)
}

/// The marks of an upper layer over those of a lower one.
fn merged_page(
    lower: Option<&[u8; PAGE_BYTES]>,
    upper: Option<&[u8; PAGE_BYTES]>,
) -> Option<Vec<u8>> {
    let (lower, upper) = match (lower, upper) {
        (None, None) => return None,
        (Some(one), None) | (None, Some(one)) => return Some(one.to_vec()),
        (Some(lower), Some(upper)) => (lower, upper),
    };
    let merged = words(lower).zip(words(upper)).map(|(lower, upper)| {
        let marked = (upper | upper >> 1) & Live::LOW_BITS;
        let covered = marked | marked << 1;
        (upper & covered) | (lower & !covered)
    });
    Some(merged.flat_map(u64::to_le_bytes).collect())
}

fn bytes_of(blocks: u64) -> usize {
    usize::try_from(blocks * BLOCK_BYTES).unwrap_or(usize::MAX)
}
