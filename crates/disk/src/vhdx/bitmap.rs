//! Sector bitmaps of a differencing disk (MS-VHDX 2.5.2): which sectors of a
//! partially present block are in this file, and not in the parent.
//!
//! A chunk's bitmaps fill a block of 1 MiB: bit n, from the least significant
//! on, is the chunk's sector n. Pages are read when they are first asked for.

use std::io;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::bat::{BITMAP_BYTES, Layout, PAGE_WORDS, Page};
use super::source::{Source, index, u64_at};

/// Sectors whose bits share a page of 4 KiB.
pub(super) const PAGE_SECTORS: u64 = PAGE_WORDS * 64;

/// Sectors of a chunk.
pub(super) const CHUNK_SECTORS: u64 = BITMAP_BYTES * 8;

type Chunk = Box<[OnceLock<Box<Page>>]>;

/// The bits of all chunks.
#[derive(Debug)]
pub(super) struct Bitmaps {
    chunks: Box<[OnceLock<Chunk>]>,
}

impl Bitmaps {
    pub(super) fn new(layout: &Layout) -> Bitmaps {
        let count = if layout.has_parent {
            layout.chunks()
        } else {
            0
        };
        Bitmaps {
            chunks: (0..count).map(|_| OnceLock::new()).collect(),
        }
    }

    /// The page of `sector` of the disk, in the bitmaps that lie at `at`.
    fn page(&self, source: &Source, at: u64, sector: u64) -> io::Result<&Page> {
        let outside = || io::Error::new(io::ErrorKind::InvalidInput, "no such sector bitmap");
        let chunk = self.chunks.get(index(sector / CHUNK_SECTORS));
        let chunk = chunk.ok_or_else(outside)?.get_or_init(|| {
            let count = CHUNK_SECTORS / PAGE_SECTORS;
            (0..count).map(|_| OnceLock::new()).collect()
        });
        let number = sector % CHUNK_SECTORS / PAGE_SECTORS;
        let page = &chunk[index(number)];
        if let Some(page) = page.get() {
            return Ok(page);
        }
        let mut bytes = [0; 4096];
        source.read_exact_at(&mut bytes, at + number * 4096)?;
        // If another thread was faster, its page is the one.
        Ok(page.get_or_init(|| {
            Box::new(std::array::from_fn(|w| {
                AtomicU64::new(u64_at(&bytes, w * 8))
            }))
        }))
    }

    /// Whether `sector` is in this file, and where the run of such sectors
    /// ends, at most `end`; both in one chunk.
    pub(super) fn run(
        &self,
        source: &Source,
        at: u64,
        sector: u64,
        end: u64,
    ) -> io::Result<(bool, u64)> {
        let mut first = None;
        let mut here = sector;
        while here < end {
            let page = self.page(source, at, here)?;
            let word = page[index(here % PAGE_SECTORS / 64)].load(Ordering::Acquire);
            let bits = word >> (here % 64);
            let is_set = *first.get_or_insert(bits & 1 == 1);
            let same = if is_set {
                bits.trailing_ones()
            } else {
                bits.trailing_zeros()
            };
            let left = 64 - here % 64;
            if u64::from(same) < left {
                return Ok((is_set, (here + u64::from(same)).min(end)));
            }
            here += left;
        }
        Ok((first.unwrap_or(false), end))
    }

    /// Sets or clears the bits of `sectors`, all of one chunk; nobody else
    /// does so for these sectors at the same time.
    pub(super) fn set(
        &self,
        source: &Source,
        at: u64,
        sectors: Range<u64>,
        value: bool,
    ) -> io::Result<()> {
        let mut here = sectors.start;
        while here < sectors.end {
            let page = self.page(source, at, here)?;
            let left = (64 - here % 64).min(sectors.end - here);
            let word = &page[index(here % PAGE_SECTORS / 64)];
            let mask = mask(here % 64, left);
            if value {
                word.fetch_or(mask, Ordering::Release);
            } else {
                word.fetch_and(!mask, Ordering::Release);
            }
            here += left;
        }
        Ok(())
    }
}

/// `count` bits from `first` on.
fn mask(first: u64, count: u64) -> u64 {
    match count {
        64 => u64::MAX,
        _ => ((1 << count) - 1) << first,
    }
}

/// The same change in 4 KiB of a bitmap as it lies in the file: bits
/// `range` of the page.
pub(super) fn set_in_page(page: &mut [u8; 4096], range: Range<u64>, value: bool) {
    for bit in range {
        let byte = &mut page[index(bit / 8)];
        if value {
            *byte |= 1 << (bit % 8);
        } else {
            *byte &= !(1 << (bit % 8));
        }
    }
}
