//! Block allocation table (MS-VHDX 2.5): where each block lies.
//!
//! In memory stand the pages of 512 entries that hold any; the file's own
//! table is behind them until a flush.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::metadata::Metadata;
use super::region::Region;
use super::source::{Source, index, u64_at};
use super::space::Space;
use crate::OpenError;

/// Entries, or words of a bitmap, in 4 KiB of file.
pub(super) const PAGE_WORDS: u64 = WORDS as u64;

const WORDS: usize = 512;

/// 4 KiB of a table, as it is answered.
pub(super) type Page = [AtomicU64; WORDS];

/// Bits of an entry that hold the offset, in MiB from bit 20 on.
const OFFSET_BITS: u64 = !((1 << 20) - 1);

/// "PAYLOAD_BLOCK_ZERO", without an offset.
pub(super) const ZERO: u64 = 2;

/// Bytes of the table that are looked at together.
const PIECE_BYTES: u64 = 1 << 20;

/// How a disk is cut into blocks, and blocks into chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) size_bytes: u64,
    pub(super) block_bytes: u64,
    pub(super) sector_bytes: u64,
    /// Whether there are sector bitmaps, and state 7.
    pub(super) has_parent: bool,
}

/// Where the bytes of a block are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// In the parent, if there is one; else they are zeros.
    NotPresent,
    /// Nowhere: zeros (states 1, 2 and 3).
    Zero,
    /// All in the file, from this offset on.
    Full(u64),
    /// From this offset on, and in the parent: the sector bitmap says.
    Partial(u64),
}

impl State {
    /// Reads an entry; `None` for the states that are reserved.
    pub(super) fn parse(entry: u64) -> Option<State> {
        let offset = entry & OFFSET_BITS;
        match entry & 7 {
            0 => Some(State::NotPresent),
            1..=3 => Some(State::Zero),
            6 => Some(State::Full(offset)),
            7 => Some(State::Partial(offset)),
            _ => None,
        }
    }

    pub(super) fn emit(self) -> u64 {
        match self {
            State::NotPresent => 0,
            State::Zero => ZERO,
            State::Full(offset) => offset | 6,
            State::Partial(offset) => offset | 7,
        }
    }
}

impl Layout {
    pub(super) fn new(metadata: &Metadata) -> Layout {
        Layout {
            size_bytes: metadata.size_bytes,
            block_bytes: metadata.block_bytes.into(),
            sector_bytes: metadata.logical_bytes.into(),
            has_parent: metadata.parent.is_some(),
        }
    }

    /// Payload blocks of a chunk: those that share a block of sector bitmaps.
    pub(super) fn ratio(&self) -> u64 {
        (self.sector_bytes << 23) / self.block_bytes
    }

    pub(super) fn blocks(&self) -> u64 {
        self.size_bytes.div_ceil(self.block_bytes)
    }

    pub(super) fn chunks(&self) -> u64 {
        self.blocks().div_ceil(self.ratio())
    }

    /// How many entries the table has.
    pub(super) fn entries(&self) -> u64 {
        if self.has_parent {
            self.chunks() * (self.ratio() + 1)
        } else {
            self.blocks() + (self.blocks() - 1) / self.ratio()
        }
    }

    /// The entry of a block.
    pub(super) fn entry_of(&self, block: u64) -> u64 {
        block + block / self.ratio()
    }

    /// The entry of a chunk's sector bitmaps.
    pub(super) fn bitmap_entry_of(&self, chunk: u64) -> u64 {
        (chunk + 1) * self.ratio() + chunk
    }

    /// Whose entry it is.
    fn owner_of(&self, entry: u64) -> Owner {
        let (chunk, nth) = (entry / (self.ratio() + 1), entry % (self.ratio() + 1));
        if nth == self.ratio() {
            Owner::Bitmap(chunk)
        } else {
            Owner::Block(chunk * self.ratio() + nth)
        }
    }

    /// The block whose entry it is; `None` if it is a sector bitmap's.
    pub(super) fn block_of(&self, entry: u64) -> Option<u64> {
        match self.owner_of(entry) {
            Owner::Block(block) => Some(block),
            Owner::Bitmap(_) => None,
        }
    }

    /// What the thing takes in the file whose entry it is.
    pub(super) fn room_of(&self, entry: u64) -> u64 {
        match self.owner_of(entry) {
            Owner::Block(_) => self.block_bytes,
            Owner::Bitmap(_) => BITMAP_BYTES,
        }
    }

    /// Bytes of the disk that a block holds: fewer at the end.
    pub(super) fn bytes_of(&self, block: u64) -> u64 {
        let start = block * self.block_bytes;
        self.block_bytes.min(self.size_bytes.saturating_sub(start))
    }
}

enum Owner {
    Block(u64),
    Bitmap(u64),
}

/// The table.
#[derive(Debug)]
pub(super) struct Bat {
    pages: Box<[OnceLock<Box<Page>>]>,
    /// Where it lies.
    pub(super) region: Region,
}

/// Length of the sector bitmaps of a chunk.
pub(super) const BITMAP_BYTES: u64 = 1 << 20;

impl Bat {
    /// Reads the table of a disk.
    pub(super) fn open(source: &Source, region: Region, layout: &Layout) -> Result<Bat, OpenError> {
        let bytes = layout.entries() * 8;
        if bytes > region.bytes.into() {
            let reason = format!(
                "{} bytes, the {} entries of the disk take {bytes}",
                region.bytes,
                layout.entries()
            );
            return Err(source.malformed("BAT region", region.offset, reason));
        }
        let page_count = layout.entries().div_ceil(PAGE_WORDS);
        let bat = Bat {
            pages: (0..page_count).map(|_| OnceLock::new()).collect(),
            region,
        };
        let end = region.offset + page_count * 4096;
        let mut at = region.offset;
        let mut piece = vec![0; index(PIECE_BYTES.min(end - at))];
        while at < end {
            // A table of terabytes is mostly a hole.
            if !source.is_patched() {
                match source.file.next_data(at..end) {
                    Ok(Some(data)) => at = data.start.max(at) / 4096 * 4096,
                    Ok(None) => break,
                    Err(error) => return Err(source.trouble("reading", error)),
                }
            }
            let piece = &mut piece[..index(PIECE_BYTES.min(end - at))];
            source.fetch("BAT", at, piece)?;
            for (nth, bytes) in (0_u64..).zip(piece.chunks_exact(4096)) {
                if bytes.iter().any(|&b| b != 0) {
                    let page = (at - region.offset) / 4096 + nth;
                    let words = std::array::from_fn(|w| AtomicU64::new(u64_at(bytes, w * 8)));
                    let _ = bat.pages[index(page)].set(Box::new(words));
                }
            }
            at += piece.len() as u64;
        }
        Ok(bat)
    }

    pub(super) fn load(&self, entry: u64) -> u64 {
        let page = self.pages.get(index(entry / PAGE_WORDS));
        let page = page.and_then(OnceLock::get);
        page.map_or(0, |page| {
            page[index(entry % PAGE_WORDS)].load(Ordering::Acquire)
        })
    }

    /// Who sees the entry sees what was written before it was stored.
    pub(super) fn store(&self, entry: u64, value: u64) {
        if let Some(page) = self.pages.get(index(entry / PAGE_WORDS)) {
            let page = page.get_or_init(|| Box::new(std::array::from_fn(|_| AtomicU64::new(0))));
            page[index(entry % PAGE_WORDS)].store(value, Ordering::Release);
        }
    }

    /// Where the bytes of `block` are.
    pub(super) fn state(&self, layout: &Layout, block: u64) -> State {
        // Reserved states are refused when the file is opened.
        State::parse(self.load(layout.entry_of(block))).unwrap_or(State::Zero)
    }

    /// Where the sector bitmaps of `chunk` lie, if it has any.
    pub(super) fn bitmap_at(&self, layout: &Layout, chunk: u64) -> Option<u64> {
        match State::parse(self.load(layout.bitmap_entry_of(chunk))) {
            Some(State::Full(offset)) => Some(offset),
            _ => None,
        }
    }

    /// Where in the file an entry stands.
    pub(super) fn place_of(&self, entry: u64) -> u64 {
        self.region.offset + entry * 8
    }

    /// How many blocks are stored in the file.
    pub(super) fn stored_blocks(&self, layout: &Layout) -> u64 {
        let is_stored = |(entry, value): &(u64, u64)| {
            let block = layout.block_of(*entry);
            block.is_some_and(|block| block < layout.blocks())
                && matches!(
                    State::parse(*value),
                    Some(State::Full(_) | State::Partial(_))
                )
        };
        self.present().filter(is_stored).count() as u64
    }

    /// Checks every entry, and takes the space of every block.
    pub(super) fn check(
        &self,
        source: &Source,
        layout: &Layout,
        space: &mut Space,
    ) -> Result<(), OpenError> {
        for (entry, value) in self.present() {
            if entry < layout.entries() {
                self.check_entry(source, layout, space, entry, value)?;
            }
        }
        Ok(())
    }

    /// The entries that say anything, and what.
    fn present(&self) -> impl Iterator<Item = (u64, u64)> {
        let pages = (0_u64..).zip(&self.pages);
        let pages = pages.filter_map(|(page, words)| Some((page, words.get()?)));
        pages
            .flat_map(|(page, words)| {
                let entries = page * PAGE_WORDS..;
                entries.zip(words.iter().map(|word| word.load(Ordering::Acquire)))
            })
            .filter(|(_, value)| *value != 0)
    }

    fn check_entry(
        &self,
        source: &Source,
        layout: &Layout,
        space: &mut Space,
        entry: u64,
        value: u64,
    ) -> Result<(), OpenError> {
        let refused = |reason: String| {
            let reason = format!("entry {entry} is {value:#x}: {reason}");
            Err(source.malformed("BAT entry", self.place_of(entry), reason))
        };
        let Some(state) = State::parse(value) else {
            return refused(format!("state {} is reserved", value & 7));
        };
        let (bytes, used) = match layout.owner_of(entry) {
            Owner::Block(block) if block < layout.blocks() => {
                if let State::Partial(_) = state {
                    let chunk = block / layout.ratio();
                    if !layout.has_parent {
                        return refused("partially present, in a disk without a parent".to_owned());
                    }
                    if self.bitmap_at(layout, chunk).is_none() {
                        return refused(format!(
                            "partially present, and its sector bitmap (entry {}) is not",
                            layout.bitmap_entry_of(chunk)
                        ));
                    }
                }
                (layout.block_bytes, layout.bytes_of(block))
            }
            Owner::Bitmap(chunk) if layout.has_parent && chunk < layout.chunks() => {
                if !matches!(state, State::Full(_) | State::NotPresent) {
                    return refused("a sector bitmap is present or not".to_owned());
                }
                (BITMAP_BYTES, BITMAP_BYTES)
            }
            // Nobody's: what stands there means nothing.
            Owner::Block(_) | Owner::Bitmap(_) => return Ok(()),
        };
        let (State::Full(offset) | State::Partial(offset)) = state else {
            return Ok(());
        };
        let end = offset.checked_add(used);
        if offset < 1 << 20 || end.is_none_or(|end| end > source.length()) {
            return refused(format!(
                "{used} bytes at {offset} leave the file of {} bytes",
                source.length()
            ));
        }
        if !space.take(offset, bytes) {
            return refused(format!(
                "what lies at {offset} belongs to something else too"
            ));
        }
        Ok(())
    }
}
