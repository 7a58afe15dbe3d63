//! Writing an overlay: everything goes to the top layer.
//!
//! A write or unmap holds the lock of one group of blocks at a time: data
//! first, then the mark.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::layer::{BLOCK_BYTES, Layer};
use super::super::live::{GROUP_BLOCKS, Mark};
use super::super::{OverlayMode, check_retired};
use super::Store;
use crate::zeros::zeros;
use crate::{DiskError, Durability, range};

/// Bytes whose marks share a stripe's lock.
const GROUP_BYTES: u64 = GROUP_BLOCKS * BLOCK_BYTES;

impl Store {
    pub(in crate::overlay) fn write(
        &self,
        retired: &AtomicBool,
        offset: u64,
        data: &[u8],
    ) -> Result<(), DiskError> {
        range::check(offset, data.len() as u64, self.size_bytes())?;
        self.check_room(offset, data.len() as u64)?;
        let mut rest = data;
        self.by_group(retired, offset, data.len() as u64, |top, run| {
            let length = usize::try_from(run.end - run.start).unwrap_or(usize::MAX);
            let (part, behind) = rest.split_at(length);
            rest = behind;
            self.write_group(top, run.start, part)
        })?;
        self.write_through()
    }

    pub(in crate::overlay) fn unmap(
        &self,
        retired: &AtomicBool,
        offset: u64,
        bytes: u64,
    ) -> Result<(), DiskError> {
        range::check(offset, bytes, self.size_bytes())?;
        let end = offset + bytes;
        // The last block of the disk may be short: it is whole when the range
        // reaches the end of the disk.
        let first = offset.next_multiple_of(BLOCK_BYTES);
        let last = match end == self.size_bytes() {
            true => end,
            false => end / BLOCK_BYTES * BLOCK_BYTES,
        };
        let zero =
            |at, end| self.by_group(retired, at, end - at, |top, run| self.zero_part(top, run));
        if first >= last {
            zero(offset, end)?;
            return self.write_through();
        }
        // Whole blocks first: they give room, and the rest of others may need
        // some.
        self.by_group(retired, first, last - first, |top, run| {
            self.unmap_blocks(top, run);
            Ok(())
        })?;
        zero(offset, first)?;
        zero(last, end)?;
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
        mut part: impl FnMut(&Layer, Range<u64>) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let end = offset + bytes;
        let mut at = offset;
        while at < end {
            let next = ((at / GROUP_BYTES + 1) * GROUP_BYTES).min(end);
            let _stripe = self.stripe(at / GROUP_BYTES);
            check_retired(retired)?;
            self.health.check()?;
            if !self.ready.load(Ordering::Acquire) {
                self.make_ready()?;
            }
            let stack = self.disk.stack();
            let Some(top) = stack.top.layer() else {
                let reason = "the overlay is ready to be written without a layer";
                return Err(self.health.fail(reason.into()));
            };
            part(top, at..next)?;
            at = next;
        }
        Ok(())
    }

    /// Writes a range inside one group whose lock is held.
    fn write_group(&self, top: &Layer, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let end = offset + data.len() as u64;
        let blocks = offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        // A block that is not ours yet is written whole: what the range leaves
        // of it comes from where the block is now.
        let start = match is_own(top, blocks.start) {
            true => offset,
            false => blocks.start * BLOCK_BYTES,
        };
        let whole_end = (blocks.end * BLOCK_BYTES).min(self.size_bytes());
        let stop = match is_own(top, blocks.end - 1) {
            true => end,
            false => whole_end,
        };
        let taken = self.take_room(top, blocks.clone())?;
        let written = if start == offset && stop == end {
            top.data.file.write_all_at(data, offset)
        } else {
            let length = usize::try_from(stop - start).unwrap_or(usize::MAX);
            let mut whole = vec![0; length];
            let front = usize::try_from(offset - start).unwrap_or(usize::MAX);
            let behind = front + data.len();
            whole[front..behind].copy_from_slice(data);
            self.disk
                .read(start, &mut whole[..front])
                .and_then(|()| self.disk.read(end, &mut whole[behind..]))
                .inspect_err(|_| self.room.give_back(taken))?;
            top.data.file.write_all_at(&whole, start)
        };
        written.map_err(|error| {
            self.room.give_back(taken);
            self.health.write_failed(self.context("writing"), error)
        })?;
        // In this order: whoever finds a mark in `pending` also finds that
        // data is to be synced, and data that is there.
        self.unsynced.store(true, Ordering::Release);
        self.mark(top, blocks, Mark::Own);
        Ok(())
    }

    /// Unmaps whole blocks inside one group whose lock is held.
    fn unmap_blocks(&self, top: &Layer, range: Range<u64>) {
        let (first, last) = (range.start / BLOCK_BYTES, range.end.div_ceil(BLOCK_BYTES));
        let mut own = Vec::new();
        let mut at = first;
        while at < last {
            let (mark, run_end) = top.live.run(at, last);
            if mark == Mark::Own {
                own.push(at..run_end);
            }
            at = run_end;
        }
        self.mark(top, first..last, Mark::Zero);
        if self.mode == OverlayMode::Reset {
            // No log must say it first: a lost host voids all of this.
            for blocks in own {
                self.punch(top, blocks);
            }
        }
    }

    /// Zeros a part of one block, or of two that touch.
    fn zero_part(&self, top: &Layer, range: Range<u64>) -> Result<(), DiskError> {
        let mut at = range.start;
        while at < range.end {
            let next = ((at / BLOCK_BYTES + 1) * BLOCK_BYTES).min(range.end);
            let block = at / BLOCK_BYTES;
            if top.live.run(block, block + 1).0 != Mark::Zero {
                self.write_group(top, at, zeros(next - at))?;
            }
            at = next;
        }
        Ok(())
    }

    /// Marks blocks whose group's lock is held, and notes for the next flush
    /// which of them changed.
    fn mark(&self, top: &Layer, blocks: Range<u64>, mark: Mark) {
        let mut at = blocks.start;
        while at < blocks.end {
            let (old, run_end) = top.live.run(at, blocks.end);
            if old != mark {
                top.live.set(at..run_end, mark);
                if old == Mark::Own {
                    self.room.give_back((run_end - at) * BLOCK_BYTES);
                }
                if self.mode == OverlayMode::Keep {
                    self.pending().push(at..run_end, mark);
                }
            }
            at = run_end;
        }
    }
}

fn is_own(top: &Layer, block: u64) -> bool {
    top.live.run(block, block + 1).0 == Mark::Own
}
