//! The data path of an overlay: read, write, unmap, and where bytes lie mapped.
//!
//! Reads take no lock. A write or unmap holds the lock of one group of blocks
//! at a time: data first, then the mark.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::layer::BLOCK_BYTES;
use super::super::live::{GROUP_BLOCKS, Mark};
use super::super::{OverlayMode, check_retired};
use super::Store;
use crate::health::trouble;
use crate::zeros::zeros;
use crate::{Allocation, DiskError, Durability, Extent, Segment, Space, files, range};

/// Bytes whose marks share a stripe's lock.
const GROUP_BYTES: u64 = GROUP_BLOCKS * BLOCK_BYTES;

impl Store {
    pub(in crate::overlay) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
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

    pub(in crate::overlay) fn segments<'a>(
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

    pub(in crate::overlay) fn space(&self) -> Option<Space> {
        files::space(self.layer.data.inner())
    }

    pub(in crate::overlay) fn extent(&self, offset: u64, bytes: u64) -> Result<Extent, DiskError> {
        let mut found = Extent {
            bytes: 0,
            allocation: Allocation::Mapped,
        };
        self.runs(offset, bytes, |mark, run| {
            let bytes = run.end - run.start;
            found = match mark {
                Mark::Below => self.base.extent(run.start, bytes)?,
                Mark::Own => Extent {
                    bytes,
                    allocation: Allocation::Mapped,
                },
                Mark::Zero => Extent {
                    bytes,
                    allocation: Allocation::Deallocated,
                },
            };
            Ok(false) // the first run is all
        })?;
        Ok(found)
    }

    pub(in crate::overlay) fn will_need(&self, offset: u64, bytes: u64) {
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

    pub(in crate::overlay) fn write(
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

    pub(in crate::overlay) fn unmap(
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
