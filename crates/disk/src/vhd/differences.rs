//! The sectors a differencing disk has of its own, by the bitmap in front of
//! each block (VHD 1.0, "Data Blocks": the first sector is the highest bit).
//!
//! A bit must not reach the disk before its sector does, or a loss of power
//! would show what nobody wrote. So bits are written at a flush, after the sync
//! of the data. The death of a process must not lose them meanwhile: until then
//! they stand in a *shadow* in front of the bitmap, in room that no VHD uses,
//! which counts only within the boot of the kernel whose id it bears. Its bytes
//! are in the page cache; after a loss of power they mean nothing.
//!
//! A block that others have put where there is no room for a shadow is filled
//! up from the parent when it is first written in: one sync, and no bit is
//! needed any more.
//!
//! Locks, in the order they are taken: the flush, a stripe of blocks, the end
//! of the file. Reads take none for long.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::blocks::Blocks;
use super::footer::{SECTOR_BYTES, u32_at};
use super::{Place, Vhd};
use crate::zeros::zeros;
use crate::{Allocation, Disk, DiskError, Extent, Segment};

/// Locks that writers of the same blocks share.
const STRIPES: usize = 64;
/// What is copied from the parent at a time.
const FILL_BYTES: u64 = 1 << 20;
/// What stands in front of a shadow: the cookie, the boot's id, the block, the
/// sector its bitmap begins at, and the checksum of all that and the shadow.
pub(super) const SHADOW_HEAD_BYTES: u64 = 512;
const SHADOW_COOKIE: &[u8; 8] = b"dlshadow";

/// What makes a disk a differencing one.
pub(super) struct Differences {
    pub(super) parent: Arc<Vhd>,
    boot_id: [u8; 16],
    /// A bit for each block: whether there is room for a shadow.
    roomy: Vec<u64>,
    owned: RwLock<HashMap<u64, Owned>>,
    stripes: [Mutex<()>; STRIPES],
    /// Blocks with bits that are not in their bitmap yet.
    pending: Mutex<BTreeSet<u64>>,
    flushing: Mutex<()>,
}

/// Which sectors of a block are the disk's own.
#[derive(Clone)]
enum Owned {
    All,
    Some(Arc<[AtomicU8]>),
}

impl Owned {
    fn of(bits: &[u8]) -> Owned {
        match bits.iter().all(|&byte| byte == 0xff) {
            true => Owned::All,
            false => Owned::Some(bits.iter().map(|&byte| AtomicU8::new(byte)).collect()),
        }
    }

    /// Whether `sector` is the disk's own, and up to where (at most `limit`)
    /// it is the same.
    fn run(&self, sector: u64, limit: u64) -> (bool, u64) {
        let Owned::Some(bits) = self else {
            return (true, limit);
        };
        let byte_of = |sector: u64| {
            let byte = usize::try_from(sector / 8).ok().and_then(|at| bits.get(at));
            byte.map_or(0, |byte| byte.load(Ordering::Acquire))
        };
        let is_own = byte_of(sector) & 0x80 >> (sector % 8) != 0;
        let alike = if is_own { 0xff } else { 0 };
        let mut at = sector + 1;
        while at < limit {
            let byte = byte_of(at);
            if at.is_multiple_of(8) && byte == alike {
                at += 8;
            } else if (byte & 0x80 >> (at % 8) != 0) == is_own {
                at += 1;
            } else {
                break;
            }
        }
        (is_own, at.min(limit))
    }

    fn bits(&self, bytes: u64) -> Vec<u8> {
        match self {
            Owned::All => vec![0xff; usize::try_from(bytes).unwrap_or(0)],
            Owned::Some(bits) => bits.iter().map(|b| b.load(Ordering::Acquire)).collect(),
        }
    }
}

impl Differences {
    pub(super) fn above(parent: Arc<Vhd>, boot_id: [u8; 16], roomy: Vec<u64>) -> Differences {
        Differences {
            parent,
            boot_id,
            roomy,
            owned: RwLock::default(),
            stripes: std::array::from_fn(|_| Mutex::new(())),
            pending: Mutex::default(),
            flushing: Mutex::default(),
        }
    }

    /// A block is about to be there, with none of its sectors.
    pub(super) fn begin(&self, block: u64, bitmap_bytes: u64) {
        let none = vec![0; usize::try_from(bitmap_bytes).unwrap_or(0)];
        let mut owned = self.owned.write().unwrap_or_else(PoisonError::into_inner);
        owned.insert(block, Owned::of(&none));
    }

    fn stripe(&self, block: u64) -> MutexGuard<'_, ()> {
        let stripe = usize::try_from(block % STRIPES as u64).unwrap_or(0);
        hold(&self.stripes[stripe])
    }

    fn known(&self, block: u64) -> Option<Owned> {
        let owned = self.owned.read().unwrap_or_else(PoisonError::into_inner);
        owned.get(&block).cloned()
    }

    /// Whether a block has room in front of its bitmap, as the layout says.
    fn is_roomy(&self, block: u64) -> bool {
        match usize::try_from(block / 64) {
            Ok(word) => (self.roomy.get(word)).is_none_or(|w| w & 1 << (block % 64) != 0),
            Err(_) => false,
        }
    }

    /// What the parent holds; behind its end there are zeros.
    pub(super) fn read_below(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let there = self.length_below(offset, buffer.len() as u64);
        let there = usize::try_from(there).unwrap_or(usize::MAX);
        let (front, behind) = buffer.split_at_mut(there);
        behind.fill(0);
        match front.is_empty() {
            true => Ok(()),
            false => self.parent.read(offset, front),
        }
    }

    pub(super) fn segments_below<'a>(
        &'a self,
        offset: u64,
        bytes: u64,
        segments: &mut Vec<Segment<'a>>,
    ) -> Result<bool, DiskError> {
        let there = self.length_below(offset, bytes);
        if there > 0 && !self.parent.segments(offset, there, segments)? {
            return Ok(false);
        }
        let mut left = bytes - there;
        while left > 0 {
            let piece = zeros(left);
            segments.push(Segment::new(piece.as_ptr(), piece.len()));
            left -= piece.len() as u64;
        }
        Ok(true)
    }

    pub(super) fn extent_below(&self, offset: u64, bytes: u64) -> Result<Extent, DiskError> {
        match self.length_below(offset, bytes) {
            0 => Ok(Extent {
                bytes,
                allocation: Allocation::Deallocated,
            }),
            there => self.parent.extent(offset, there),
        }
    }

    pub(super) fn will_need_below(&self, offset: u64, bytes: u64) {
        let there = self.length_below(offset, bytes);
        self.parent.will_need(offset, there);
    }

    /// How much of a range the parent reaches.
    fn length_below(&self, offset: u64, bytes: u64) -> u64 {
        let end = self.parent.geometry().size_bytes;
        end.saturating_sub(offset).min(bytes)
    }
}

/// Reads.
impl Vhd {
    /// Whether the bytes at `at`, in a block that is there, are the disk's own;
    /// and up to where, at most `limit` in the same block, it is the same.
    pub(super) fn own_run(
        &self,
        blocks: &Blocks,
        differences: &Differences,
        at: u64,
        limit: u64,
    ) -> Result<(bool, u64), DiskError> {
        let block = at / blocks.block_bytes;
        let start = block * blocks.block_bytes;
        let owned = self.owned(blocks, differences, block)?;
        let last = (limit - start).div_ceil(SECTOR_BYTES);
        let (is_own, end) = owned.run((at - start) / SECTOR_BYTES, last);
        Ok((is_own, (start + end * SECTOR_BYTES).min(limit)))
    }

    /// Which sectors of a block that is there are the disk's own.
    fn owned(
        &self,
        blocks: &Blocks,
        differences: &Differences,
        block: u64,
    ) -> Result<Owned, DiskError> {
        if let Some(owned) = differences.known(block) {
            return Ok(owned);
        }
        let loaded = self.load(blocks, differences, block)?;
        let mut owned = (differences.owned.write()).unwrap_or_else(PoisonError::into_inner);
        // Somebody may have been quicker, and have set bits since.
        Ok(owned.entry(block).or_insert(loaded).clone())
    }

    /// A block's bits from the file: bitmap and, in this boot, shadow.
    fn load(
        &self,
        blocks: &Blocks,
        differences: &Differences,
        block: u64,
    ) -> Result<Owned, DiskError> {
        let (_, bitmap_at) = self.marks_at(blocks, block)?;
        let mut bits = vec![0; usize::try_from(blocks.bitmap_bytes).unwrap_or(0)];
        self.read_stored(bitmap_at, &mut bits)?;
        if let Room::Shadowed(shadow) = self.room(blocks, differences, block)? {
            for (bits, shadow) in bits.iter_mut().zip(shadow) {
                *bits |= shadow;
            }
            hold(&differences.pending).insert(block);
        }
        Ok(Owned::of(&bits))
    }

    /// Where the shadow and the bitmap of a block are.
    fn marks_at(&self, blocks: &Blocks, block: u64) -> Result<(u64, u64), DiskError> {
        match blocks.place(block * blocks.block_bytes) {
            Place::Stored(data) => {
                let bitmap_at = data - blocks.bitmap_bytes;
                let shadow_at = bitmap_at.checked_sub(SHADOW_HEAD_BYTES + blocks.bitmap_bytes);
                Ok((shadow_at.unwrap_or(0), bitmap_at))
            }
            _ => Err(DiskError::Corrupt(format!("block {block} is not there"))),
        }
    }

    /// What is in front of a block's bitmap.
    fn room(
        &self,
        blocks: &Blocks,
        differences: &Differences,
        block: u64,
    ) -> Result<Room, DiskError> {
        if !differences.is_roomy(block) {
            return Ok(Room::None);
        }
        let (shadow_at, bitmap_at) = self.marks_at(blocks, block)?;
        let mut bytes = vec![0; usize::try_from(bitmap_at - shadow_at).unwrap_or(0)];
        self.read_stored(shadow_at, &mut bytes)?;
        let (head, shadow) = bytes.split_at(usize::try_from(SHADOW_HEAD_BYTES).unwrap_or(0));
        let sector = u32::try_from(bitmap_at / SECTOR_BYTES).unwrap_or(0);
        if *head == shadow_head(differences.boot_id, block, sector, shadow) {
            return Ok(Room::Shadowed(shadow.to_vec()));
        }
        // Ours of another boot, or of another time; or nobody's.
        let is_ours = head.starts_with(SHADOW_COOKIE) && u32_at(head, 28) == sector;
        match is_ours || head.iter().all(|&b| b == 0) {
            true => Ok(Room::Free),
            false => Ok(Room::None),
        }
    }

    /// Looks at every block that is there, for shadows of a process that died.
    pub(super) fn find_shadows(
        &self,
        blocks: &Blocks,
        differences: &Differences,
    ) -> Result<(), DiskError> {
        for block in 0..blocks.bat.len() as u64 {
            if blocks.place(block * blocks.block_bytes) != Place::Absent
                && let Room::Shadowed(_) = self.room(blocks, differences, block)?
            {
                self.owned(blocks, differences, block)?;
            }
        }
        Ok(())
    }
}

/// Writes.
impl Vhd {
    /// Writes a range inside one block.
    pub(super) fn write_own(
        &self,
        blocks: &Blocks,
        differences: &Differences,
        offset: u64,
        data: &[u8],
    ) -> Result<(), DiskError> {
        let at = self.allocated(blocks, offset)?;
        let end = offset + data.len() as u64;
        if self.own_run(blocks, differences, offset, end)? == (true, end) {
            return self.write_stored(data, at);
        }
        let block = offset / blocks.block_bytes;
        let _stripe = differences.stripe(block);
        // A sector that is not ours yet is written whole.
        let is_own = |at: u64| Ok::<_, DiskError>(self.own_run(blocks, differences, at, at + 1)?.0);
        let start = match is_own(offset)? {
            true => offset,
            false => offset / SECTOR_BYTES * SECTOR_BYTES,
        };
        let stop = match is_own(end - 1)? {
            true => end,
            false => end.next_multiple_of(SECTOR_BYTES),
        };
        let at = at - (offset - start);
        if (start, stop) == (offset, end) {
            self.write_stored(data, at)?;
        } else {
            let mut whole = vec![0; usize::try_from(stop - start).unwrap_or(0)];
            let front = usize::try_from(offset - start).unwrap_or(0);
            let behind = front + data.len();
            self.read(start, &mut whole[..front])?;
            whole[front..behind].copy_from_slice(data);
            self.read(end, &mut whole[behind..])?;
            self.write_stored(&whole, at)?;
        }
        self.own(blocks, differences, start, stop)
    }

    /// Makes a range inside one block zeros of our own.
    pub(super) fn unmap_own(
        &self,
        blocks: &Blocks,
        differences: &Differences,
        offset: u64,
        end: u64,
    ) -> Result<(), DiskError> {
        // Nothing to hide: neither here nor below.
        if blocks.place(offset) == Place::Absent {
            let below = differences.extent_below(offset, end - offset)?;
            if below.allocation == Allocation::Deallocated && below.bytes == end - offset {
                return Ok(());
            }
        }
        let first = offset.next_multiple_of(SECTOR_BYTES);
        let last = end / SECTOR_BYTES * SECTOR_BYTES;
        if first >= last {
            let length = usize::try_from(end - offset).unwrap_or(0);
            return self.write_own(blocks, differences, offset, &vec![0; length]);
        }
        for (from, to) in [(offset, first), (last, end)] {
            if from < to {
                self.write_own(blocks, differences, from, zeros(to - from))?;
            }
        }
        let at = self.allocated(blocks, first)?;
        let _stripe = differences.stripe(first / blocks.block_bytes);
        self.zero_stored(at, last - first)?;
        self.own(blocks, differences, first, last)
    }

    /// Notes that a range of whole sectors inside one block, which are written,
    /// is ours. The caller holds the block's stripe.
    fn own(
        &self,
        blocks: &Blocks,
        differences: &Differences,
        start: u64,
        end: u64,
    ) -> Result<(), DiskError> {
        let block = start / blocks.block_bytes;
        let Owned::Some(owned) = self.owned(blocks, differences, block)? else {
            return Ok(());
        };
        let begin = block * blocks.block_bytes;
        let sectors = (start - begin) / SECTOR_BYTES..(end - begin).div_ceil(SECTOR_BYTES);
        let mut added = vec![0_u8; owned.len()];
        for sector in sectors {
            if let Some(byte) = usize::try_from(sector / 8)
                .ok()
                .and_then(|at| added.get_mut(at))
            {
                *byte |= 0x80 >> (sector % 8);
            }
        }
        let bits = || owned.iter().map(|byte| byte.load(Ordering::Acquire));
        if bits().zip(&added).all(|(old, added)| old & added == *added) {
            return Ok(());
        }
        if let Room::None = self.room(blocks, differences, block)? {
            return self.fill_up(blocks, differences, block, &added);
        }
        let shadow: Vec<u8> = bits().zip(&added).map(|(old, added)| old | added).collect();
        self.write_shadow(blocks, differences, block, &shadow)?;
        hold(&differences.pending).insert(block);
        for (byte, added) in owned.iter().zip(added) {
            byte.fetch_or(added, Ordering::AcqRel);
        }
        Ok(())
    }

    fn write_shadow(
        &self,
        blocks: &Blocks,
        differences: &Differences,
        block: u64,
        shadow: &[u8],
    ) -> Result<(), DiskError> {
        let (shadow_at, bitmap_at) = self.marks_at(blocks, block)?;
        let sector = u32::try_from(bitmap_at / SECTOR_BYTES).unwrap_or(0);
        let mut bytes = shadow_head(differences.boot_id, block, sector, shadow);
        bytes.extend_from_slice(shadow);
        self.write_stored(&bytes, shadow_at)
    }

    /// Gives a block all the sectors it lacks (but for those just `written`)
    /// from the parent, durably. The caller holds its stripe.
    fn fill_up(
        &self,
        blocks: &Blocks,
        differences: &Differences,
        block: u64,
        written: &[u8],
    ) -> Result<(), DiskError> {
        let begin = block * blocks.block_bytes;
        let end = (begin + blocks.block_bytes).min(self.geometry.size_bytes);
        let bits = self.owned(blocks, differences, block)?;
        let there: Vec<u8> = (bits.bits(blocks.bitmap_bytes).iter().zip(written))
            .map(|(old, written)| old | written)
            .collect();
        let there = Owned::of(&there);
        let mut buffer = vec![0; usize::try_from(FILL_BYTES.min(blocks.block_bytes)).unwrap_or(0)];
        let last = (end - begin) / SECTOR_BYTES;
        let mut sector = 0;
        while sector < last {
            let limit = last.min(sector + FILL_BYTES / SECTOR_BYTES);
            let (is_there, next) = there.run(sector, limit);
            if !is_there {
                let offset = begin + sector * SECTOR_BYTES;
                let length = usize::try_from((next - sector) * SECTOR_BYTES).unwrap_or(0);
                let part = &mut buffer[..length];
                differences.read_below(offset, part)?;
                if let Place::Stored(at) = blocks.place(offset) {
                    self.write_stored(part, at)?;
                }
            }
            sector = next;
        }
        self.sync()?;
        let (_, bitmap_at) = self.marks_at(blocks, block)?;
        let all = vec![0xff; usize::try_from(blocks.bitmap_bytes).unwrap_or(0)];
        self.write_stored(&all, bitmap_at)?;
        let mut owned = (differences.owned.write()).unwrap_or_else(PoisonError::into_inner);
        owned.insert(block, Owned::All);
        Ok(())
    }

    /// Makes data durable, then the bits that speak of it.
    pub(super) fn flush_own(
        &self,
        blocks: &Blocks,
        differences: &Differences,
    ) -> Result<(), DiskError> {
        let _flushing = hold(&differences.flushing);
        let pending = std::mem::take(&mut *hold(&differences.pending));
        if pending.is_empty() {
            return self.sync();
        }
        let answer = self.flush_blocks(blocks, differences, &pending);
        if answer.is_err() {
            hold(&differences.pending).extend(pending);
        }
        answer
    }

    fn flush_blocks(
        &self,
        blocks: &Blocks,
        differences: &Differences,
        pending: &BTreeSet<u64>,
    ) -> Result<(), DiskError> {
        // Bits whose data was written before the sync begins.
        let mut before = Vec::with_capacity(pending.len());
        for &block in pending {
            let _stripe = differences.stripe(block);
            let owned = self.owned(blocks, differences, block)?;
            before.push((block, owned.bits(blocks.bitmap_bytes)));
        }
        self.sync()?;
        for (block, bits) in before {
            let (shadow_at, bitmap_at) = self.marks_at(blocks, block)?;
            let _stripe = differences.stripe(block);
            // In this order: a process may die in between.
            self.write_stored(&bits, bitmap_at)?;
            let owned = self.owned(blocks, differences, block)?;
            if owned.bits(blocks.bitmap_bytes) == bits {
                self.write_stored(zeros(SHADOW_HEAD_BYTES), shadow_at)?;
                hold(&differences.pending).remove(&block);
                if bits.iter().all(|&byte| byte == 0xff) {
                    let mut owned =
                        (differences.owned.write()).unwrap_or_else(PoisonError::into_inner);
                    owned.insert(block, Owned::All);
                }
            }
        }
        self.sync()
    }
}

/// What is in front of a block's bitmap.
enum Room {
    /// Nothing that could hold a shadow.
    None,
    /// Room for one.
    Free,
    /// One that counts.
    Shadowed(Vec<u8>),
}

fn shadow_head(boot_id: [u8; 16], block: u64, sector: u32, shadow: &[u8]) -> Vec<u8> {
    let mut head = Vec::with_capacity(usize::try_from(SHADOW_HEAD_BYTES).unwrap_or(0));
    head.extend_from_slice(SHADOW_COOKIE);
    head.extend_from_slice(&boot_id);
    head.extend_from_slice(&u32::try_from(block).unwrap_or(u32::MAX).to_be_bytes());
    head.extend_from_slice(&sector.to_be_bytes());
    let sum = crc32c::crc32c_append(crc32c::crc32c(&head), shadow);
    head.extend_from_slice(&sum.to_be_bytes());
    head.resize(usize::try_from(SHADOW_HEAD_BYTES).unwrap_or(0), 0);
    head
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
