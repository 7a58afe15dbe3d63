//! The blocks of a dynamic or differencing disk: the BAT in memory, and where
//! new blocks go (VHD 1.0, "Block Allocation Table and Data Blocks").
//!
//! New blocks go where the file durably holds zeros: into room made at its end
//! ahead of them, under one sync for many blocks. The room costs no space, and
//! is taken back when the disk is closed.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Place;
use super::Vhd;
use super::differences::{Differences, SHADOW_HEAD_BYTES};
use super::footer::{FOOTER_BYTES, Footer, Kind, SECTOR_BYTES};
use crate::DiskError;
use crate::files::File;

/// An entry of the BAT whose block is not there.
pub(super) const ABSENT: u32 = u32::MAX;
/// More entries than this are refused: 16 MiB of them, enough for the largest
/// disk in blocks of 512 KiB.
const MAX_ENTRIES: u64 = 1 << 22;
/// The same of a differencing disk, which remembers some 600 bytes of each
/// block that was asked for: enough for the largest in blocks of 2 MiB.
const MAX_DIFFERENCING_ENTRIES: u64 = 1 << 20;
/// Data of new blocks is aligned to this.
pub(super) const ALIGNMENT_BYTES: u64 = 4096;
/// Room made at the end of the file: an eighth of what is there, within these
/// (in tests little, so that it is used up).
const LEAST_ROOM_BYTES: u64 = if cfg!(test) { 5 << 20 } else { 64 << 20 };
const MOST_ROOM_BYTES: u64 = 1 << 30;
/// Stretches of data behind the last block that are looked behind before the
/// end of the file is taken instead.
const MAX_STRETCHES: usize = 64;

/// The blocks of a disk.
pub(super) struct Blocks {
    pub(super) block_bytes: u64,
    pub(super) bitmap_bytes: u64,
    pub(super) bat_offset: u64,
    /// Sectors at which the blocks begin, with their bitmaps.
    pub(super) bat: Vec<AtomicU32>,
    pub(super) allocated: AtomicU64,
    /// What a differencing disk has besides.
    pub(super) differences: Option<Differences>,
    pub(super) tail: Mutex<Tail>,
}

/// The end of the file.
#[derive(Debug)]
pub(super) struct Tail {
    /// Where the next block can go; None until it was looked for.
    pub(super) next: Option<u64>,
    /// Behind the last thing the file says something about.
    pub(super) used_end: u64,
    /// Where the footer is: so far the file durably reaches.
    pub(super) footer_at: u64,
    /// Where the file ends.
    pub(super) file_end: u64,
    /// Whether there is room that we made.
    pub(super) has_room: bool,
}

impl Blocks {
    /// The longest table that is read.
    pub(super) fn most_entries(kind: Kind) -> u64 {
        match kind {
            Kind::Differencing => MAX_DIFFERENCING_ENTRIES,
            Kind::Fixed | Kind::Dynamic => MAX_ENTRIES,
        }
    }

    /// Length of a block's sector bitmap.
    pub(super) fn bitmap_bytes(block_bytes: u64) -> u64 {
        (block_bytes / SECTOR_BYTES)
            .div_ceil(8)
            .next_multiple_of(SECTOR_BYTES)
    }

    /// What stands in front of a new block's data, so that it is aligned: at
    /// its end the bitmap, and in front of that room for a shadow.
    pub(super) fn lead_bytes(&self) -> u64 {
        (SHADOW_HEAD_BYTES + 2 * self.bitmap_bytes).next_multiple_of(ALIGNMENT_BYTES)
    }

    /// How much the file may grow by blocks that are not there yet.
    pub(super) fn absent_bytes(&self) -> u64 {
        let absent = self.bat.len() as u64 - self.allocated.load(Ordering::Relaxed);
        absent * (self.block_bytes + self.lead_bytes())
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed) * self.block_bytes
    }

    pub(super) fn end_of_block(&self, offset: u64) -> u64 {
        (offset / self.block_bytes + 1) * self.block_bytes
    }

    /// Where a byte of the disk is.
    pub(super) fn place(&self, offset: u64) -> Place {
        let sector = usize::try_from(offset / self.block_bytes)
            .ok()
            .and_then(|block| self.bat.get(block))
            .map_or(ABSENT, |entry| entry.load(Ordering::Acquire));
        match sector {
            ABSENT => Place::Absent,
            sector => Place::Stored(
                u64::from(sector) * SECTOR_BYTES + self.bitmap_bytes + offset % self.block_bytes,
            ),
        }
    }

    /// Cuts off the room that no block has taken. Without a sync: the footer's
    /// copy at the front of the file stands in for one that is lost.
    pub(super) fn give_room_back(&self, file: &File, footer: &Footer) -> io::Result<()> {
        let mut tail = self.tail();
        let (true, Some(next)) = (tail.has_room, tail.next) else {
            return Ok(());
        };
        tail.has_room = false;
        if next < tail.footer_at {
            file.write_all_at(&footer.emit(), next)?;
            file.set_len(next + FOOTER_BYTES as u64)?;
        }
        Ok(())
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vhd {
    /// Where a byte of the disk is stored, once its block is there.
    pub(super) fn allocated(&self, blocks: &Blocks, offset: u64) -> Result<u64, DiskError> {
        if let Place::Stored(at) = blocks.place(offset) {
            return Ok(at);
        }
        let mut tail = blocks.tail();
        if let Place::Stored(at) = blocks.place(offset) {
            return Ok(at);
        }
        let block = offset / blocks.block_bytes;
        let next = match tail.next {
            Some(next) => next,
            None => self.first_free(&tail)?,
        };
        tail.next = Some(next);
        let data = next + blocks.lead_bytes();
        let start = data - blocks.bitmap_bytes;
        let end = data + blocks.block_bytes;
        let full = || DiskError::NoSpace(format!("{} has reached 2 TiB", self.path.display()));
        let sector = u32::try_from(start / SECTOR_BYTES).map_err(|_| full())?;
        if sector == ABSENT {
            return Err(full());
        }
        if end > tail.footer_at {
            self.make_room(blocks, &mut tail, end)?;
        }
        let entry = usize::try_from(block).ok().and_then(|b| blocks.bat.get(b));
        let Some(entry) = entry else {
            return Err(DiskError::Corrupt(format!("block {block} is in no table")));
        };
        // The lead whole: a footer may have stood there once.
        let mut lead = vec![0; usize::try_from(data - next).unwrap_or(0)];
        let bitmap = lead.len() - usize::try_from(blocks.bitmap_bytes).unwrap_or(0);
        if let Some(differences) = &blocks.differences {
            differences.begin(block, blocks.bitmap_bytes);
        } else {
            lead[bitmap..].fill(0xff);
        }
        self.write_stored(&lead, next)?;
        self.write_stored(&sector.to_be_bytes(), blocks.bat_offset + 4 * block)?;
        entry.store(sector, Ordering::Release);
        blocks.allocated.fetch_add(1, Ordering::Relaxed);
        tail.next = Some(end);
        Ok(offset % blocks.block_bytes + data)
    }

    /// Where zeros begin that reach up to the footer. What others have left
    /// behind the last block stays: it may mean something to them.
    pub(super) fn first_free(&self, tail: &Tail) -> Result<u64, DiskError> {
        let mut at = tail.used_end;
        for _ in 0..MAX_STRETCHES {
            if at >= tail.footer_at {
                break;
            }
            let data = self.file.next_data(at..tail.footer_at);
            match data.map_err(|e| crate::health::trouble(self.context("reading"), e))? {
                None => return Ok(at.next_multiple_of(ALIGNMENT_BYTES)),
                Some(data) if data.end > at => at = data.end,
                Some(_) => break,
            }
        }
        Ok(tail.footer_at.max(at).next_multiple_of(ALIGNMENT_BYTES))
    }

    /// Moves the footer further back, so that a block that ends at `end` and
    /// more of them fit in front of it, durably.
    fn make_room(&self, blocks: &Blocks, tail: &mut Tail, end: u64) -> Result<(), DiskError> {
        let room = (end / 8)
            .clamp(LEAST_ROOM_BYTES, MOST_ROOM_BYTES)
            .min(blocks.absent_bytes());
        let footer_at = (end + room).next_multiple_of(ALIGNMENT_BYTES);
        self.write_stored(&self.footer.emit(), footer_at)?;
        // A block may come to lie over the old one, and begins as zeros.
        let old = usize::try_from(tail.file_end - tail.footer_at).unwrap_or(0);
        self.write_stored(&vec![0; old], tail.footer_at)?;
        self.sync()?;
        tail.footer_at = footer_at;
        tail.file_end = footer_at + FOOTER_BYTES as u64;
        tail.has_room = true;
        Ok(())
    }
}
