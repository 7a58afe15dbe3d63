//! Making a VHD larger, while nobody has it open.
//!
//! Each step is durable before the next, and each state in between is a disk
//! of the old size or of the new one.

use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::blocks::{ABSENT, Blocks};
use super::differences::SHADOW_HEAD_BYTES;
use super::footer::{Chs, FOOTER_BYTES, Footer, MAX_SIZE_BYTES, SECTOR_BYTES};
use super::header::{HEADER_BYTES, Header};
use super::open::open_on;
use super::{Place, Vhd};
use crate::fault::Fault;
use crate::files::Files;
use crate::health::trouble;
use crate::{Access, OpenError, Opening};

/// Makes the disk in `path` `size_bytes` large; what is new are zeros. Never
/// smaller. A differencing disk may become larger than its parent.
pub(crate) fn grow(path: &Path, opening: &Opening, size_bytes: u64) -> Result<(), OpenError> {
    let files = Files::real().map_err(|e| trouble("asking for the boot's id".to_owned(), e))?;
    grow_on(&files, path, opening, size_bytes)
}

pub(crate) fn grow_on(
    files: &Files,
    path: &Path,
    opening: &Opening,
    size_bytes: u64,
) -> Result<(), OpenError> {
    let opening = Opening {
        access: Access::ReadWrite,
        ..opening.clone()
    };
    let disk = open_on(files, path, &opening)?;
    let refused = |why: String| {
        let advice = format!("{} cannot grow: {why}", path.display());
        Err(OpenError::Foreign { advice })
    };
    let old_bytes = disk.geometry.size_bytes;
    if size_bytes == old_bytes {
        return Ok(());
    }
    if size_bytes < old_bytes {
        return refused(format!("it has {old_bytes} bytes, more than {size_bytes}"));
    }
    if size_bytes > MAX_SIZE_BYTES || !size_bytes.is_multiple_of(SECTOR_BYTES) {
        return refused(format!(
            "a VHD holds up to {} GiB, in sectors of {SECTOR_BYTES}: \
             for {size_bytes} bytes make it a VHDX",
            MAX_SIZE_BYTES >> 30
        ));
    }
    let footer = disk.footer.of_size(size_bytes);
    match &disk.blocks {
        None => disk.grow_fixed(&footer),
        Some(blocks)
            if size_bytes.div_ceil(blocks.block_bytes) > Blocks::most_entries(footer.kind) =>
        {
            refused(format!(
                "in blocks of {} bytes its table would be too long",
                blocks.block_bytes
            ))
        }
        Some(blocks) => disk.grow_blocks(blocks, &footer),
    }
}

impl Footer {
    /// The footer of the same disk with another size, which is the size to
    /// whoever reads it.
    fn of_size(&self, size_bytes: u64) -> Footer {
        let mut footer = Footer {
            current_bytes: size_bytes,
            chs: Chs::of(size_bytes),
            ..self.clone()
        };
        if footer.size_bytes() != size_bytes {
            // Made by somebody who goes by the geometry.
            footer.creator = Footer::new(self.kind, 0, 0, [0; 16]).creator;
        }
        footer
    }
}

impl Vhd {
    /// A fixed disk has no second footer: a new one first, of the old size;
    /// then what lies behind the disk becomes zeros; then the new size.
    fn grow_fixed(&self, footer: &Footer) -> Result<(), OpenError> {
        let end = self.file.inner().metadata();
        let end = end.map_err(|e| trouble(self.context("reading"), e))?.len();
        let old_bytes = self.geometry.size_bytes;
        let at = footer.current_bytes.max(end.next_multiple_of(SECTOR_BYTES));
        self.write_stored(&self.footer.emit(), at)?;
        self.sync()?;
        self.zero_stored(old_bytes, end - old_bytes)?;
        self.sync()?;
        self.write_stored(&footer.emit(), at)?;
        Ok(self.sync()?)
    }

    /// The table first, then the size: in the footer at the end, then in its
    /// copy.
    fn grow_blocks(&self, blocks: &Blocks, footer: &Footer) -> Result<(), OpenError> {
        self.clear_tail(blocks)?;
        let entries = footer.current_bytes.div_ceil(blocks.block_bytes);
        let footer_at = self.grow_table(blocks, entries)?;
        for at in [footer_at, 0] {
            self.write_stored(&footer.emit(), at)?;
            self.sync()?;
        }
        Ok(())
    }

    /// Makes zeros of what lies behind the end of the disk in its last block.
    fn clear_tail(&self, blocks: &Blocks) -> Result<(), OpenError> {
        let used = self.geometry.size_bytes % blocks.block_bytes;
        let last = self.geometry.size_bytes - used;
        let Place::Stored(data) = blocks.place(last) else {
            return Ok(());
        };
        let (start, end) = (data + used, data + blocks.block_bytes);
        let places = blocks.bat.iter().map(|entry| entry.load(Ordering::Relaxed));
        let mut places = places.map(|sector| u64::from(sector) * SECTOR_BYTES);
        let table_end = blocks.bat_offset + 4 * blocks.bat.len() as u64;
        let locators = self.header()?.locators;
        let mut locators = locators.iter().filter_map(|l| l.range_in(u64::MAX));
        let header_end = self.footer.data_offset + HEADER_BYTES as u64;
        // Only of the part that the disk has is it known to be nobody else's.
        if places.any(|at| (start..end).contains(&at))
            || start < table_end && blocks.bat_offset < end
            || start < header_end && self.footer.data_offset < end
            || locators.any(|path| start < path.end && path.start < end)
        {
            let advice = format!(
                "{} cannot grow: something else lies in the part of its last block behind the \
                 end of the disk: make it new (`diskless disk convert`)",
                self.path.display()
            );
            return Err(OpenError::Foreign { advice });
        }
        let mut tail = blocks.tail.lock().unwrap_or_else(PoisonError::into_inner);
        if end > tail.footer_at {
            // The block is longer than the file: the footer goes behind it.
            let footer_at = end.next_multiple_of(SECTOR_BYTES);
            self.write_stored(&self.footer.emit(), footer_at)?;
            self.sync()?;
            tail.footer_at = footer_at;
            tail.file_end = footer_at + FOOTER_BYTES as u64;
        }
        self.zero_stored(start, end - start)?;
        Ok(self.sync()?)
    }

    fn header(&self) -> Result<Header, OpenError> {
        let at = self.footer.data_offset;
        let mut bytes = [0; HEADER_BYTES];
        self.read_stored(at, &mut bytes)?;
        Header::parse(&bytes).map_err(|fault: Fault| fault.of(&self.path, at))
    }

    /// Makes the table longer: where it is, if nothing lies behind it, or at
    /// the end of the file. Answers where the footer is then.
    fn grow_table(&self, blocks: &Blocks, entries: u64) -> Result<u64, OpenError> {
        let tail = blocks.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let header_at = self.footer.data_offset;
        let mut header = self.header()?;
        let old_entries = blocks.bat.len() as u64;
        let behind = |at: &u64| *at >= header.bat_offset + 4 * old_entries;
        let starts = blocks.bat.iter().map(|entry| entry.load(Ordering::Relaxed));
        // With its shadow, where there is room for one behind the table.
        let leads = starts.filter(|&sector| sector != ABSENT).map(|sector| {
            let start = u64::from(sector) * SECTOR_BYTES;
            let lead = start.saturating_sub(SHADOW_HEAD_BYTES + blocks.bitmap_bytes);
            if behind(&lead) { lead } else { start }
        });
        let locators = header.locators.iter().filter(|l| l.length_bytes > 0);
        let next = leads
            .chain(locators.map(|locator| locator.offset))
            .chain([header_at, tail.footer_at])
            .filter(behind)
            .min();
        let bat_bytes = (4 * entries).next_multiple_of(SECTOR_BYTES);
        let absent = |count: u64| {
            let count = usize::try_from(count).unwrap_or(0);
            ABSENT.to_be_bytes().repeat(count)
        };
        let mut footer_at = tail.footer_at;
        if next.is_some_and(|next| header.bat_offset + bat_bytes <= next) {
            let more = bat_bytes / 4 - old_entries;
            self.write_stored(&absent(more), header.bat_offset + 4 * old_entries)?;
        } else {
            let at = self.first_free(&tail)?;
            let mut table = Vec::new();
            for entry in &blocks.bat {
                table.extend(entry.load(Ordering::Relaxed).to_be_bytes());
            }
            table.extend(absent(bat_bytes / 4 - old_entries));
            if at + bat_bytes > footer_at {
                footer_at = at + bat_bytes;
                self.write_stored(&self.footer.emit(), footer_at)?;
            }
            self.write_stored(&table, at)?;
            header.bat_offset = at;
        }
        self.sync()?;
        header.max_bat_entries = header
            .max_bat_entries
            .max(u32::try_from(entries).unwrap_or(u32::MAX));
        self.write_stored(&header.emit(), header_at)?;
        self.sync()?;
        Ok(footer_at)
    }
}
