//! The marks of a layer: two bits for each block of 4 KiB, in a shared mapping.
//!
//! A mark costs one store and survives SIGKILL, because the page it lies in is
//! the file's own. It does not survive the kernel: the head of the file names
//! the boot of the kernel it belongs to, and in any other boot it is void (the
//! kernel may have written a page of marks before the data they speak of).
//!
//! Ordering. A writer ends its `pwrite`, then stores the mark with `Release`;
//! a reader loads it with `Acquire`, then reads the data. So who sees a mark
//! sees the data. Marks of one word are stored only under one stripe's lock
//! ([`GROUP_BLOCKS`]); readers take no lock.
//!
//! Unsafe stands here because marks must be atomics that lie in a file's
//! mapping; no safe type offers that. The file is ours alone (the overlay's
//! lock), fully allocated (a store cannot run out of space), and never cut.

#![allow(unsafe_code)]

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

use crate::doubt::BootId;
use crate::files::Files;

/// Blocks whose marks share a stripe's lock: whole words of marks.
pub(super) const GROUP_BLOCKS: u64 = 64;

/// Blocks in a page of marks, the unit of a checkpoint's CRCs.
pub(super) const PAGE_BLOCKS: u64 = 4096 * 4;

/// Length of the file's head; the marks follow.
const HEAD_BYTES: usize = 4096;

const MAGIC: &[u8; 8] = b"DLOVLIVE";

/// Marks in a word of 64 bits.
const WORD_BLOCKS: u64 = 32;

/// The low bit of each mark of a word.
const LOW_BITS: u64 = Live::LOW_BITS;

/// Where the bytes of a block are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// In what lies below.
    Below = 0,
    /// In this layer's data.
    Own = 1,
    /// Nowhere: the block reads as zeros.
    Zero = 2,
    /// Nobody writes this: the marks are damaged.
    Broken = 3,
}

impl Mark {
    /// The mark of two bits, if it is one.
    pub(super) fn from_bits(bits: u64) -> Option<Mark> {
        match bits {
            0 => Some(Mark::Below),
            1 => Some(Mark::Own),
            2 => Some(Mark::Zero),
            _ => None,
        }
    }
}

/// The marks of one layer.
#[derive(Debug)]
pub(super) struct Live {
    mapping: MmapRaw,
    block_count: u64,
}

impl Live {
    /// The low bit of each mark of a word.
    pub(super) const LOW_BITS: u64 = 0x5555_5555_5555_5555;

    /// Creates the file at `path` with every mark [`Mark::Below`], valid in
    /// the boot of the kernel that the layer's data belongs to.
    pub(super) fn create(
        files: &Files,
        path: &Path,
        boot_id: BootId,
        layer: u32,
        block_count: u64,
    ) -> io::Result<Live> {
        let bytes = file_bytes(block_count)?;
        let file = files.create_file(path)?;
        file.reserve(bytes as u64)?;
        file.write_all_at(&head(boot_id, layer, block_count), 0)?;
        let mapping = MmapOptions::new().len(bytes).map_raw(file.inner())?;
        Ok(Live {
            mapping,
            block_count,
        })
    }

    /// Opens the file at `path`; `None` when it is missing, of another boot of
    /// the kernel, or not whole.
    pub(super) fn open(
        files: &Files,
        path: &Path,
        boot_id: BootId,
        layer: u32,
        block_count: u64,
    ) -> io::Result<Option<Live>> {
        let bytes = file_bytes(block_count)?;
        let file = match files.open_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        if !is_current(boot_id, file.inner(), layer, block_count)? {
            return Ok(None);
        }
        let mapping = MmapOptions::new().len(bytes).map_raw(file.inner())?;
        // Its marks are looked at when they are needed: opening a large disk
        // is no slower than opening a small one.
        Ok(Some(Live {
            mapping,
            block_count,
        }))
    }

    /// The file at `path`, to read the marks of a layer that is not written any
    /// more; `None` as for [`open`](Self::open).
    pub(super) fn current(
        path: &Path,
        boot_id: BootId,
        layer: u32,
        block_count: u64,
    ) -> io::Result<Option<std::fs::File>> {
        let file = std::fs::File::open(path)?;
        Ok(is_current(boot_id, &file, layer, block_count)?.then_some(file))
    }

    /// Where a page of marks lies in the file.
    pub(super) fn page_at(page: u64) -> u64 {
        HEAD_BYTES as u64 + page * 4096
    }

    /// How many blocks are marked.
    pub(super) fn block_count(&self) -> u64 {
        self.block_count
    }

    /// The mark of `block` and where the run of that mark ends, at most `end`.
    ///
    /// Who then reads what the mark says sees at least what was written before
    /// the mark was made.
    pub(super) fn run(&self, block: u64, end: u64) -> (Mark, u64) {
        let words = self.words();
        let word_of = |block: u64| words[index(block / WORD_BLOCKS)].load(Ordering::Acquire);
        let shift = 2 * (block % WORD_BLOCKS);
        let bits = (word_of(block) >> shift) & 3;
        let mark = Mark::from_bits(bits).unwrap_or(Mark::Broken);
        let same = bits * LOW_BITS;
        let mut at = block;
        while at < end {
            let shift = 2 * (at % WORD_BLOCKS);
            let differing = (word_of(at) ^ same) >> shift;
            if differing != 0 {
                return (
                    mark,
                    (at + u64::from(differing.trailing_zeros()) / 2).min(end),
                );
            }
            at += WORD_BLOCKS - at % WORD_BLOCKS;
        }
        (mark, end)
    }

    /// Marks a range of blocks; the caller holds the locks of their groups.
    ///
    /// Each word is stored once: whoever looks, and whoever finds the file
    /// after a kill, sees a block's old mark or its new one.
    pub(super) fn set(&self, blocks: Range<u64>, mark: Mark) {
        let words = self.words();
        let mut at = blocks.start;
        while at < blocks.end {
            let first = at % WORD_BLOCKS;
            let count = (WORD_BLOCKS - first).min(blocks.end - at);
            let ones = if count == WORD_BLOCKS {
                u64::MAX
            } else {
                (1 << (2 * count)) - 1
            };
            let mask = ones << (2 * first);
            let word = &words[index(at / WORD_BLOCKS)];
            let old = word.load(Ordering::Relaxed);
            let new = (old & !mask) | ((mark as u64 * LOW_BITS) & mask);
            word.store(new, Ordering::Release);
            at += count;
        }
    }

    /// A page of marks as a checkpoint holds it, little-endian; `None` when
    /// all of it is [`Mark::Below`].
    ///
    /// Every mark in it is true of data whose `pwrite` has ended.
    pub(super) fn page(&self, page: u64) -> Option<Vec<u8>> {
        let words = self.words();
        let start = index(page * (PAGE_BLOCKS / WORD_BLOCKS));
        let end = words.len().min(start + index(PAGE_BLOCKS / WORD_BLOCKS));
        let mut bytes = Vec::with_capacity(4096);
        let mut any = 0;
        for word in &words[start..end] {
            let word = word.load(Ordering::Acquire);
            any |= word;
            bytes.extend(word.to_le_bytes());
        }
        bytes.resize(4096, 0);
        (any != 0).then_some(bytes)
    }

    /// How many pages of marks there are.
    pub(super) fn page_count(&self) -> u64 {
        self.block_count.div_ceil(PAGE_BLOCKS)
    }

    /// How many blocks are marked [`Mark::Own`] and [`Mark::Zero`].
    pub(super) fn count(&self) -> (u64, u64) {
        self.words().iter().fold((0, 0), |(own, zero), word| {
            let word = word.load(Ordering::Relaxed);
            (
                own + u64::from((word & LOW_BITS).count_ones()),
                zero + u64::from((word & !LOW_BITS).count_ones()),
            )
        })
    }

    fn words(&self) -> &[AtomicU64] {
        let start = self.mapping.as_ptr().wrapping_add(HEAD_BYTES);
        let count = (self.mapping.len() - HEAD_BYTES) / 8;
        // SAFETY: the mapping is page-aligned, writable, longer than its head
        // and lives as long as `self`; its file is fully allocated and nobody
        // cuts it. All access to these bytes, by this or any other thread, is
        // through these atomics.
        unsafe { std::slice::from_raw_parts(start.cast::<AtomicU64>(), count) }
    }
}

/// Whether a file holds marks of the present boot of the kernel.
fn is_current(
    boot_id: BootId,
    file: &std::fs::File,
    layer: u32,
    block_count: u64,
) -> io::Result<bool> {
    if file.metadata()?.len() < file_bytes(block_count)? as u64 {
        return Ok(false);
    }
    let mut found = [0; HEAD_BYTES];
    file.read_exact_at(&mut found, 0)?;
    Ok(found == head(boot_id, layer, block_count))
}

fn head(boot_id: BootId, layer: u32, block_count: u64) -> [u8; HEAD_BYTES] {
    let mut bytes = [0; HEAD_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&1_u32.to_le_bytes()); // version
    bytes[12..16].copy_from_slice(&layer.to_le_bytes());
    bytes[16..24].copy_from_slice(&block_count.to_le_bytes());
    bytes[24..40].copy_from_slice(&boot_id);
    let crc = crc32c::crc32c(&bytes[..40]);
    bytes[40..44].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Whole pages, so that words and pages never end in the middle.
fn file_bytes(block_count: u64) -> io::Result<usize> {
    let pages = 1 + block_count.div_ceil(PAGE_BLOCKS);
    usize::try_from(pages * 4096)
        .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "disk too large to mark"))
}

/// A word's or page's index; the mapping exists, so it fits.
fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(block_count: u64) -> (tempfile::TempDir, Live) {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::real().unwrap();
        let live = Live::create(
            &files,
            &dir.path().join("live"),
            files.boot_id(),
            3,
            block_count,
        )
        .unwrap();
        (dir, live)
    }

    #[test]
    fn runs_end_where_marks_change() {
        let (_dir, live) = live(1000);
        live.set(10..200, Mark::Own);
        live.set(64..65, Mark::Zero);
        assert_eq!(live.run(0, 1000), (Mark::Below, 10));
        assert_eq!(live.run(10, 1000), (Mark::Own, 64));
        assert_eq!(live.run(64, 1000), (Mark::Zero, 65));
        assert_eq!(live.run(65, 1000), (Mark::Own, 200));
        assert_eq!(live.run(65, 100), (Mark::Own, 100));
        assert_eq!(live.run(200, 1000), (Mark::Below, 1000));
        assert_eq!(live.count(), (189, 1));
    }

    #[test]
    fn marks_agree_with_a_plain_list_of_marks() {
        let (_dir, live) = live(300);
        let mut model = vec![Mark::Below; 300];
        let mut seed = 1_usize;
        for _ in 0..2000 {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let start = (seed >> 33) % 300;
            let end = (start + (seed >> 20) % 70).min(300);
            let mark = [Mark::Below, Mark::Own, Mark::Zero][(seed >> 45) % 3];
            live.set(start as u64..end as u64, mark);
            model[start..end].fill(mark);
            let (seen, run_end) = live.run(start as u64, 300);
            let run = model[start..].iter().take_while(|&&m| m == model[start]);
            assert_eq!(
                (seen, run_end),
                (model[start], (start + run.count()) as u64)
            );
        }
    }

    #[test]
    fn marks_of_another_boot_of_the_kernel_are_void() {
        let (dir, live) = live(100);
        live.set(0..1, Mark::Own);
        drop(live);
        let path = dir.path().join("live");
        let files = Files::real().unwrap();
        let boot_id = files.boot_id();
        let open = |boot_id, layer| Live::open(&files, &path, boot_id, layer, 100).unwrap();
        assert_eq!(open(boot_id, 3).unwrap().run(0, 100), (Mark::Own, 1));
        assert!(open(files.in_another_boot().boot_id(), 3).is_none());
        assert!(open(boot_id, 4).is_none());
    }
}
