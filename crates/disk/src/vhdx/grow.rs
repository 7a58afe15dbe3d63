//! A VHDX made larger, while nobody has it open.
//!
//! What is new is prepared where nothing points to it yet, and durable; then
//! one log entry changes the size, and with it where the BAT lies if it had to
//! move. So the disk has the old size or the new one at any moment.

use std::path::Path;

use super::Vhdx;
use super::bat::{Layout, State};
use super::log;
use super::metadata::SIZE_BYTES_MAX;
use super::region::{COPIES, Region, Regions, TABLE_BYTES};
use super::source::{index, put};
use crate::files::Files;
use crate::{Access, OpenError, Opening};

const MIB: u64 = 1 << 20;

/// Entries of the BAT that are written together.
const TOGETHER: u64 = 1 << 16;

pub(super) fn grow_on(
    files: &Files,
    path: &Path,
    opening: &Opening,
    size_bytes: u64,
) -> Result<(), OpenError> {
    let opening = Opening {
        access: Access::ReadWrite,
        ..opening.clone()
    };
    let mut disk = Vhdx::open_on(files, path, &opening)?;
    let refused = |why: String| {
        let advice = format!("{} cannot grow: {why}", path.display());
        Err(OpenError::Foreign { advice })
    };
    let old = disk.layout;
    let new = Layout { size_bytes, ..old };
    if size_bytes == old.size_bytes {
        return Ok(());
    }
    if size_bytes < old.size_bytes {
        let old_bytes = old.size_bytes;
        return refused(format!("it has {old_bytes} bytes, more than {size_bytes}"));
    }
    if size_bytes > SIZE_BYTES_MAX || !size_bytes.is_multiple_of(old.sector_bytes) {
        return refused(format!(
            "a VHDX holds up to 64 TiB in sectors of {}, not {size_bytes} bytes",
            old.sector_bytes
        ));
    }
    if disk
        .parent
        .as_ref()
        .is_some_and(|p| p.size_bytes > old.size_bytes)
    {
        return refused("its parent is larger, and would show in what is new".to_owned());
    }
    // What a killed process left comes first.
    disk.close()?;
    disk.begin()?;
    disk.grow_to(&new)?;
    disk.close()?;
    Ok(())
}

impl Vhdx {
    fn grow_to(&mut self, new: &Layout) -> Result<(), OpenError> {
        self.clear_tail()?;
        let bytes = (new.entries() * 8).next_multiple_of(MIB);
        let bat = match bytes <= self.bat.region.bytes.into() {
            true => self.bat.region,
            false => Region {
                offset: self.place(bytes)?,
                bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            },
        };
        self.write_entries(new, bat)?;
        self.synced()?;
        let mut log = self.journal.log();
        let mut updates = log::Updates::new();
        let reading = |e| self.write_failed("reading", e);
        let size = new.size_bytes.to_le_bytes();
        for (nth, byte) in (0..).zip(size) {
            let at = self.metadata.size_at + nth;
            let page = self.page(&mut updates, at / 4096 * 4096).map_err(reading)?;
            page[index(at % 4096)] = byte;
        }
        if bat != self.bat.region {
            for copy in COPIES {
                let mut table = vec![0; TABLE_BYTES];
                self.source
                    .read_exact_at(&mut table, copy)
                    .map_err(reading)?;
                Regions::move_bat(&mut table, bat);
                let page = self.page(&mut updates, copy).map_err(reading)?;
                page.copy_from_slice(&table[..4096]);
            }
        }
        let length = self.source.file.inner().metadata().map_err(reading)?.len();
        self.commit(&mut log, updates, length)?;
        self.apply(&mut log)?;
        Ok(())
    }

    /// Makes zeros of what lies behind the end of the disk in its last block.
    fn clear_tail(&self) -> Result<(), OpenError> {
        let last = self.layout.blocks() - 1;
        let used = self.layout.bytes_of(last);
        if let State::Full(at) | State::Partial(at) = self.bat.state(&self.layout, last) {
            // It may have been the last thing in a file that was cut to fit.
            let end = at + self.layout.block_bytes;
            let file = &self.source.file;
            let cleared = file.inner().metadata().and_then(|metadata| {
                if metadata.len() < end {
                    file.set_len(end)?;
                }
                self.zero(at + used, self.layout.block_bytes - used)
            });
            cleared.map_err(|e| self.write_failed("growing", e))?;
        }
        Ok(())
    }

    /// Writes the entries of the larger disk to `bat`: the old ones as they
    /// are, the new ones empty, or with a place for each block of a fixed disk.
    ///
    /// Where the table stays, nobody reads what is new, and what is old is
    /// written over with the same.
    fn write_entries(&self, new: &Layout, bat: Region) -> Result<(), OpenError> {
        let stays = bat == self.bat.region;
        let first = if stays {
            self.layout.entries() / 512 * 512
        } else {
            0
        };
        let mut start = first;
        while start < new.entries() {
            let end = (start + TOGETHER).min(new.entries());
            let mut bytes = vec![0; index((end - start) * 8)];
            for entry in start..end {
                let value = match new.block_of(entry) {
                    Some(block) if block < self.layout.blocks() => self.bat.load(entry),
                    Some(block) if self.metadata.is_fixed && block < new.blocks() => {
                        State::Full(self.place(new.block_bytes)?).emit()
                    }
                    None if entry < self.layout.entries() && new.has_parent => self.bat.load(entry),
                    _ => 0,
                };
                put(&mut bytes, index((entry - start) * 8), &value.to_le_bytes());
            }
            // Room that was just made is zeros.
            if stays || bytes.iter().any(|&b| b != 0) {
                self.source
                    .file
                    .write_all_at(&bytes, bat.offset + start * 8)
                    .map_err(|e| self.write_failed("growing", e))?;
            }
            start = end;
        }
        Ok(())
    }
}
