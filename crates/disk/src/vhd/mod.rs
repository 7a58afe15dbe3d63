//! Microsoft's VHD (Virtual Hard Disk Image Format Specification 1.0): fixed,
//! dynamic and differencing disks, read and written in place.
//!
//! A fixed disk is raw bytes and a footer. A dynamic one is blocks (2 MiB)
//! which a table, the BAT, finds in the file. An entry of the table only ever
//! goes from absent to a place, so reads take no lock.
//!
//! Why no write waits for a sync: a new block is taken where the file durably
//! has nothing but zeros, and an absent block reads as zeros too. So it does
//! not matter which of the table's entry and the block's data reaches the disk
//! first: after a loss of power each sector is what was written or what was
//! there before. All of a write is in the page cache when it is answered, so a
//! process that dies loses nothing; a flush is one `fdatasync`.
//!
//! The sector bitmaps of a dynamic disk are written (all ones) and never read:
//! so do all other programs. Data of new blocks is aligned to 4 KiB.
//!
//! What a differencing disk does not hold, its parent does; there a sector
//! counts only once it is durable ([`differences`]). A parent is opened
//! read-only and locked for readers. Nothing in a file says that it is a
//! parent: who opens one to write breaks the disks above it.

use std::io;
use std::ops::Range;
use std::path::PathBuf;

use memmap2::{Advice, MmapRaw};

use self::blocks::Blocks;
use self::differences::Differences;
use self::footer::{EPOCH_SECONDS, Footer, Kind};
use crate::description::Description;
use crate::files::{self, File};
use crate::health::{Health, trouble};
use crate::probe::{Format, VhdKind};
use crate::zeros::zeros;
use crate::{
    Access, Allocation, Disk, DiskError, Durability, Extent, Geometry, Segment, Space, range,
};

mod blocks;
mod create;
mod differences;
mod footer;
mod grow;
mod header;
mod open;
mod parent;
#[cfg(any(test, fuzzing))]
mod specimen;
#[cfg(test)]
mod tests;

pub(crate) use create::create;
pub(crate) use grow::grow;
pub(crate) use open::open;
#[cfg(any(test, fuzzing))]
pub(crate) use specimen::{seal, specimen_of_a_parent};
#[cfg(test)]
pub(crate) use {create::create_on, open::open_on};

/// More pieces than this are not worth gathering: `read` copies them.
const MAX_SEGMENTS: usize = 64;

/// The end of a note on damage that was left.
const NOT_REPAIRED: &str = "; not repaired";

/// A VHD.
pub(crate) struct Vhd {
    path: PathBuf,
    file: File,
    access: Access,
    geometry: Geometry,
    footer: Footer,
    /// None for a fixed disk.
    blocks: Option<Blocks>,
    /// As far as the file may grow; None where the file system cannot map.
    mapping: Option<MmapRaw>,
    health: Health,
    /// What opening had to say, as sentences.
    notes: Vec<String>,
}

/// Where some bytes of the disk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the file, from this offset on.
    Stored(u64),
    /// In no block: zeros, or what the parent holds.
    Absent,
    /// In a block, but it is the parent's sectors that count.
    Below,
}

impl Vhd {
    /// What the file is and holds.
    pub(crate) fn describe(&self) -> Description {
        let kind = match self.footer.kind {
            Kind::Fixed => VhdKind::Fixed,
            Kind::Dynamic => VhdKind::Dynamic,
            Kind::Differencing => VhdKind::Differencing,
        };
        let creator = self.footer.creator;
        let creator = String::from_utf8_lossy(&creator);
        let version = self.footer.creator_version;
        Description {
            format: Format::Vhd(kind),
            name: Format::Vhd(kind).to_string(),
            geometry: self.geometry,
            stored_bytes: self.space().map(|space| space.used_bytes),
            unit_bytes: self.blocks.as_ref().map(|b| b.block_bytes),
            allocated_bytes: self.blocks.as_ref().map(Blocks::allocated_bytes),
            uuid: Some(self.footer.uuid),
            creator: Some(format!(
                "{} {}.{}",
                creator.trim_end_matches(['\0', ' ']),
                version >> 16,
                version & 0xffff
            )),
            created_unix_seconds: Some(EPOCH_SECONDS + u64::from(self.footer.timestamp)),
            parents: self.parents(),
            notes: self.notes.clone(),
        }
    }

    /// Where the parents lie, the nearest first.
    fn parents(&self) -> Vec<PathBuf> {
        let parent = |vhd: &Vhd| Some(vhd.differences()?.parent.clone());
        let chain = std::iter::successors(parent(self), |vhd| parent(vhd));
        chain.map(|vhd| vhd.path.clone()).collect()
    }

    /// Calls `part` with each part of a range that lies in one piece, in
    /// order, until it answers `false`; that is then the answer.
    fn runs(
        &self,
        offset: u64,
        bytes: u64,
        mut part: impl FnMut(Place, Range<u64>) -> Result<bool, DiskError>,
    ) -> Result<bool, DiskError> {
        range::check(offset, bytes, self.geometry.size_bytes)?;
        let end = offset + bytes;
        let Some(blocks) = &self.blocks else {
            return match bytes {
                0 => Ok(true),
                _ => part(Place::Stored(offset), offset..end),
            };
        };
        let mut at = offset;
        while at < end {
            let mut next = blocks.end_of_block(at).min(end);
            let mut place = blocks.place(at);
            if let Some(differences) = &blocks.differences {
                let is_own = match place {
                    Place::Stored(_) => {
                        let (is_own, run_end) = self.own_run(blocks, differences, at, next)?;
                        next = run_end;
                        is_own
                    }
                    _ => false,
                };
                if !is_own {
                    place = Place::Below;
                }
            }
            if !part(place, at..next)? {
                return Ok(false);
            }
            at = next;
        }
        Ok(true)
    }

    fn differences(&self) -> Option<&Differences> {
        self.blocks.as_ref()?.differences.as_ref()
    }

    fn writable(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        range::check(offset, bytes, self.geometry.size_bytes)?;
        if self.access == Access::ReadOnly {
            return Err(DiskError::ReadOnly);
        }
        self.health.check()
    }

    fn read_stored(&self, at: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.file
            .read_exact_at(buffer, at)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    DiskError::Corrupt(format!("{} was cut off", self.path.display()))
                }
                _ => trouble(self.context("reading"), error),
            })
    }

    fn write_stored(&self, data: &[u8], at: u64) -> Result<(), DiskError> {
        self.file
            .write_all_at(data, at)
            .map_err(|error| self.health.write_failed(self.context("writing"), error))
    }

    /// Makes a part of the file zeros, and gives its space back where that can
    /// be done.
    fn zero_stored(&self, at: u64, bytes: u64) -> Result<(), DiskError> {
        let failed = |error| self.health.write_failed(self.context("unmapping"), error);
        if bytes == 0 || self.file.punch_hole(at, bytes).map_err(failed)? {
            return Ok(());
        }
        let end = at + bytes;
        let mut at = at;
        while at < end {
            let piece = zeros(end - at);
            self.write_stored(piece, at)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), DiskError> {
        self.file
            .sync_data()
            .map_err(|error| self.health.sync_failed(self.context("flushing"), error))
    }

    /// How much of a stored range is alike, and whether it takes space.
    fn stored_extent(&self, at: u64, bytes: u64) -> Extent {
        let mapped = |bytes| Extent {
            bytes,
            allocation: Allocation::Mapped,
        };
        match self.file.next_data(at..at + bytes) {
            Ok(Some(data)) if data.start > at => Extent {
                bytes: data.start - at,
                allocation: Allocation::Deallocated,
            },
            // The file may change between two questions: never nothing.
            Ok(Some(data)) if data.end > at => mapped(data.end - at),
            // A hole, unless the file was cut off: then a read says so.
            Ok(None) if self.reaches(at + bytes) => Extent {
                bytes,
                allocation: Allocation::Deallocated,
            },
            _ => mapped(bytes),
        }
    }

    fn reaches(&self, end: u64) -> bool {
        let metadata = self.file.inner().metadata();
        metadata.is_ok_and(|metadata| metadata.len() >= end)
    }

    fn context(&self, what: &str) -> String {
        format!("{what} {}", self.path.display())
    }
}

/// Holds the structures of a closed file against each other: footers, header,
/// and a table whose blocks lie in the file and on nothing else.
#[cfg(test)]
pub(crate) fn check(path: &std::path::Path, opening: &crate::Opening) -> Result<(), String> {
    let opening = crate::Opening {
        access: Access::ReadOnly,
        ..opening.clone()
    };
    let disk = open(path, &opening).map_err(|error| error.to_string())?;
    match disk.notes.iter().find(|note| note.ends_with(NOT_REPAIRED)) {
        None => Ok(()),
        Some(note) => Err(format!("{}: {note}", path.display())),
    }
}

impl Disk for Vhd {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn access(&self) -> Access {
        self.access
    }

    fn durability(&self) -> Durability {
        Durability::WriteBack
    }

    fn is_thin(&self) -> bool {
        self.access == Access::ReadWrite
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let mut rest = buffer;
        self.runs(offset, rest.len() as u64, |place, run| {
            let length = usize::try_from(run.end - run.start).unwrap_or(usize::MAX);
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(length);
            rest = behind;
            match place {
                Place::Stored(at) => self.read_stored(at, part)?,
                Place::Absent => part.fill(0),
                Place::Below => {
                    if let Some(differences) = self.differences() {
                        differences.read_below(run.start, part)?;
                    }
                }
            }
            Ok(true)
        })
        .map(|_| ())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.writable(offset, data.len() as u64)?;
        let Some(blocks) = &self.blocks else {
            return self.write_stored(data, offset);
        };
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let next = blocks.end_of_block(at);
            let length = usize::try_from(next - at).unwrap_or(usize::MAX);
            let (part, behind) = rest.split_at(length.min(rest.len()));
            match &blocks.differences {
                None => self.write_stored(part, self.allocated(blocks, at)?)?,
                Some(differences) => self.write_own(blocks, differences, at, part)?,
            }
            (at, rest) = (next, behind);
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DiskError> {
        if self.access == Access::ReadOnly {
            return Ok(());
        }
        self.health.check()?;
        match &self.blocks {
            Some(blocks) if let Some(differences) = &blocks.differences => {
                self.flush_own(blocks, differences)
            }
            _ => self.sync(),
        }
    }

    /// Gives the space back to the file system. The blocks keep their places
    /// in the file: one that is freed could only be used again after a sync.
    /// A differencing disk has zeros of its own where its parent has something.
    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.writable(offset, bytes)?;
        if let Some(blocks) = &self.blocks
            && let Some(differences) = &blocks.differences
        {
            let end = offset + bytes;
            let mut at = offset;
            while at < end {
                let next = blocks.end_of_block(at).min(end);
                self.unmap_own(blocks, differences, at, next)?;
                at = next;
            }
            return Ok(());
        }
        self.runs(offset, bytes, |place, run| {
            if let Place::Stored(at) = place {
                self.zero_stored(at, run.end - run.start)?;
            }
            Ok(true)
        })
        .map(|_| ())
    }

    fn segments<'a>(
        &'a self,
        offset: u64,
        bytes: u64,
        segments: &mut Vec<Segment<'a>>,
    ) -> Result<bool, DiskError> {
        let before = segments.len();
        let answer = self.runs(offset, bytes, |place, run| {
            let mut left = run.end - run.start;
            match place {
                Place::Stored(at) => {
                    let Some(mapping) = &self.mapping else {
                        return Ok(false);
                    };
                    let Ok(place) = range::in_memory(at, left, mapping.len() as u64) else {
                        return Ok(false);
                    };
                    let start = mapping.as_ptr().wrapping_add(place.start);
                    segments.push(Segment::new(start, place.len()));
                }
                Place::Absent => {
                    while left > 0 && segments.len() - before <= MAX_SEGMENTS {
                        let piece = zeros(left);
                        segments.push(Segment::new(piece.as_ptr(), piece.len()));
                        left -= piece.len() as u64;
                    }
                }
                Place::Below => {
                    let Some(differences) = self.differences() else {
                        return Ok(false);
                    };
                    if !differences.segments_below(run.start, left, segments)? {
                        return Ok(false);
                    }
                }
            }
            Ok(segments.len() - before <= MAX_SEGMENTS)
        });
        if !matches!(answer, Ok(true)) {
            segments.truncate(before);
        }
        answer
    }

    fn extent(&self, offset: u64, bytes: u64) -> Result<Extent, DiskError> {
        let mut found = Extent {
            bytes: 0,
            allocation: Allocation::Deallocated,
        };
        self.runs(offset, bytes, |place, run| {
            let length = run.end - run.start;
            match place {
                Place::Stored(at) if found.bytes == 0 => {
                    found = self.stored_extent(at, length);
                    Ok(false)
                }
                Place::Stored(_) => Ok(false),
                Place::Absent => {
                    found.bytes += length;
                    Ok(true)
                }
                Place::Below => {
                    if let Some(differences) = self.differences() {
                        found = differences.extent_below(run.start, length)?;
                    }
                    Ok(false)
                }
            }
        })?;
        Ok(found)
    }

    fn space(&self) -> Option<Space> {
        files::space(self.file.inner())
    }

    fn will_need(&self, offset: u64, bytes: u64) {
        // A range that leaves the disk is refused when it is read, and this is
        // only advice: a refusal changes nothing.
        let _ = self.runs(offset, bytes, |place, run| {
            let length = run.end - run.start;
            match (place, &self.mapping, self.differences()) {
                (Place::Stored(at), Some(mapping), _) => {
                    if let Ok(place) = range::in_memory(at, length, mapping.len() as u64) {
                        let _ = mapping.advise_range(Advice::WillNeed, place.start, place.len());
                    }
                }
                (Place::Below, _, Some(differences)) => {
                    differences.will_need_below(run.start, length);
                }
                _ => {}
            }
            Ok(true)
        });
    }
}

impl Drop for Vhd {
    /// Takes back the room that was made for blocks to come.
    fn drop(&mut self) {
        if let Some(blocks) = &self.blocks
            && self.health.check().is_ok()
            && let Err(error) = blocks.give_room_back(&self.file, &self.footer)
        {
            let path = self.path.display();
            tracing::debug!(%path, %error, "the end of the file was left as it is");
        }
    }
}
