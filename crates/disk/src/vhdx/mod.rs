//! VHDX: Hyper-V's disk files, read and written in place (MS-VHDX 2).
//!
//! Fixed, dynamic and differencing. The promises are those of every disk here:
//!
//! - *Process death*: what was answered is in the page cache; which metadata
//!   it changed stands in [`volatile`].
//! - *Power loss*: metadata goes through the format's own log at a flush, after
//!   the data it speaks of ([`flush`]).
//!
//! A file that is only read is never written: a log that waits is replayed in
//! memory. Opening a disk as the parent of another does that too; nobody can
//! know a disk's children, so writing to a parent is the operator's mistake,
//! which the children notice and refuse.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use self::bat::{Bat, Layout, State};
use self::bitmap::{Bitmaps, CHUNK_SECTORS};
use self::journal::{Journal, Phase};
use self::metadata::Metadata;
use self::source::{Source, index};
use self::space::Gaps;
use self::windows::Windows;
use self::write::Content;
use crate::files::Files;
use crate::health::{Health, trouble};
use crate::overlay::rounds::Rounds;
use crate::probe::Format;
use crate::zeros::zeros;
use crate::{
    Access, Allocation, Description, Disk, DiskError, Durability, Extent, Geometry, NewDisk,
    OpenError, Opening, Segment, SharedDisk, Space, files, range,
};

mod bat;
mod bitmap;
mod create;
mod flush;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzed;
mod grow;
mod header;
mod journal;
mod log;
mod metadata;
mod open;
mod parent;
mod region;
mod source;
mod space;
#[cfg(test)]
pub(crate) mod tests;
mod volatile;
mod windows;
mod write;

/// The longest file there can be: the largest disk, its tables, and waste.
const FILE_BYTES_MAX: u64 = 96 << 40;

/// Locks that blocks share.
const STRIPES: u64 = 64;

/// A VHDX file.
#[derive(Debug)]
pub(crate) struct Vhdx {
    source: Source,
    boot_id: [u8; 16],
    access: Access,
    metadata: Metadata,
    layout: Layout,
    bat: Bat,
    bitmaps: Bitmaps,
    parent: Option<Parent>,
    /// Held while a block is read or written in place (shared), or while its
    /// entry or its sector bits change (alone).
    stripes: Box<[RwLock<()>]>,
    /// Held while a chunk gets its sector bitmaps.
    bitmap_placing: Mutex<()>,
    gaps: Mutex<Gaps>,
    journal: Journal,
    rounds: Rounds,
    health: Health,
    windows: Windows,
    /// Whether this process died, for a test.
    #[cfg(test)]
    forsaken: std::sync::atomic::AtomicBool,
}

/// What a differencing disk lies upon.
struct Parent {
    disk: SharedDisk,
    size_bytes: u64,
    /// The nearest first.
    paths: Vec<PathBuf>,
}

impl std::fmt::Debug for Parent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Parent({:?})", self.paths)
    }
}

/// Opens the VHDX file at `path`, and its parents read-only.
pub(crate) fn open(path: &Path, opening: &Opening) -> Result<Vhdx, OpenError> {
    Vhdx::open_on(&real(path)?, path, opening)
}

/// Makes the VHDX file `path`, which does not exist yet.
pub(crate) fn create(path: &Path, new: &NewDisk) -> Result<Vhdx, OpenError> {
    Vhdx::create_on(&real(path)?, path, new)
}

/// Makes the VHDX file at `path` larger; what is new reads as zeros.
pub(crate) fn grow(path: &Path, opening: &Opening, size_bytes: u64) -> Result<(), OpenError> {
    grow::grow_on(&real(path)?, path, opening, size_bytes)
}

fn real(path: &Path) -> Result<Files, OpenError> {
    Ok(Files::real().map_err(|e| trouble(format!("opening {}", path.display()), e))?)
}

/// A range inside one block.
struct Piece {
    block: u64,
    within: u64,
    /// Where it lies in the whole range.
    range: Range<usize>,
}

impl Vhdx {
    fn shared(&self, block: u64) -> RwLockReadGuard<'_, ()> {
        let stripe = &self.stripes[index(block % STRIPES)];
        stripe.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self, block: u64) -> RwLockWriteGuard<'_, ()> {
        let stripe = &self.stripes[index(block % STRIPES)];
        stripe.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn gaps(&self) -> MutexGuard<'_, Gaps> {
        self.gaps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A range of the disk, block by block.
    fn pieces(&self, offset: u64, bytes: u64) -> impl Iterator<Item = Piece> + use<> {
        let block_bytes = self.layout.block_bytes;
        let mut at = offset;
        std::iter::from_fn(move || {
            let left = offset + bytes - at;
            let within = at % block_bytes;
            let length = left.min(block_bytes - within);
            let start = index(at - offset);
            let piece = Piece {
                block: at / block_bytes,
                within,
                range: start..start + index(length),
            };
            at += length;
            (length > 0).then_some(piece)
        })
    }

    /// The sectors of the disk that a range of a block touches.
    fn sectors(&self, block: u64, within: u64, bytes: u64) -> Range<u64> {
        let start = block * self.layout.block_bytes + within;
        let sector_bytes = self.layout.sector_bytes;
        start / sector_bytes..(start + bytes).div_ceil(sector_bytes)
    }

    fn bitmap_at(&self, chunk: u64) -> std::io::Result<u64> {
        let found = self.bat.bitmap_at(&self.layout, chunk);
        found.ok_or_else(|| {
            let kind = std::io::ErrorKind::InvalidData;
            std::io::Error::new(kind, "a sector bitmap is missing")
        })
    }

    /// Whether the first of `sectors` (of one chunk) is in this file, and up
    /// to which sector that is so.
    fn bits(&self, sectors: Range<u64>) -> Result<(bool, u64), DiskError> {
        let run = self
            .bitmap_at(sectors.start / CHUNK_SECTORS)
            .and_then(|at| {
                self.bitmaps
                    .run(&self.source, at, sectors.start, sectors.end)
            });
        run.map_err(|e| trouble(self.source.context("reading the sector bitmap of"), e))
    }

    fn mark(&self, sectors: Range<u64>, value: bool) -> std::io::Result<()> {
        let at = self.bitmap_at(sectors.start / CHUNK_SECTORS)?;
        self.bitmaps.set(&self.source, at, sectors, value)
    }

    /// Calls `visit` with the parts of a range of `block`: where each is, and
    /// its range in the block. The block is held.
    fn visit(
        &self,
        block: u64,
        within: Range<u64>,
        visit: &mut dyn FnMut(Place, Range<u64>) -> Result<bool, DiskError>,
    ) -> Result<(), DiskError> {
        let at = match self.bat.state(&self.layout, block) {
            State::Full(at) => return visit(Place::File(at), within).map(drop),
            State::NotPresent if self.parent.is_some() => {
                return visit(Place::Parent, within).map(drop);
            }
            State::NotPresent | State::Zero => return visit(Place::Nowhere, within).map(drop),
            State::Partial(at) => at,
        };
        let sector_bytes = self.layout.sector_bytes;
        let start = block * self.layout.block_bytes;
        let mut here = within.start;
        while here < within.end {
            let sectors = self.sectors(block, here, within.end - here);
            let (is_here, end) = self.bits(sectors)?;
            let end = (end * sector_bytes - start).min(within.end);
            let place = if is_here {
                Place::File(at)
            } else {
                Place::Parent
            };
            if !visit(place, here..end)? {
                break;
            }
            here = end;
        }
        Ok(())
    }

    /// Reads a range of a block that is held.
    fn read_block(&self, block: u64, within: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let end = within + buffer.len() as u64;
        let start = block * self.layout.block_bytes;
        self.visit(block, within..end, &mut |place, range| {
            let buffer = &mut buffer[index(range.start - within)..index(range.end - within)];
            match (place, &self.parent) {
                (Place::File(at), _) => self.read_file(at + range.start, buffer)?,
                (Place::Parent, Some(parent)) => parent.read(start + range.start, buffer)?,
                (Place::Parent | Place::Nowhere, _) => buffer.fill(0),
            }
            Ok(true)
        })
    }

    fn read_file(&self, at: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.source.read_exact_at(buffer, at).map_err(|error| {
            if error.kind() == std::io::ErrorKind::UnexpectedEof {
                let path = self.source.path.display();
                DiskError::Corrupt(format!("{path} was cut off: it ends before byte {at}"))
            } else {
                trouble(self.source.context("reading"), error)
            }
        })
    }

    /// What the file says of itself.
    pub(crate) fn describe(&self) -> Description {
        let kind = match (self.metadata.is_fixed, &self.parent) {
            (_, Some(_)) => "differencing",
            (true, None) => "fixed",
            (false, None) => "dynamic",
        };
        let mut notes = Vec::new();
        if self.source.is_patched() {
            let note = "its log waits to be replayed: the next writer does it";
            notes.push(note.to_owned());
        }
        let block_bytes = self.layout.block_bytes;
        let is_dynamic = !self.metadata.is_fixed;
        Description {
            format: Format::Vhdx,
            name: format!("{kind} VHDX"),
            geometry: self.geometry(),
            stored_bytes: self.space().map(|space| space.used_bytes),
            unit_bytes: is_dynamic.then_some(block_bytes),
            allocated_bytes: is_dynamic.then(|| self.bat.stored_blocks(&self.layout) * block_bytes),
            uuid: Some(self.metadata.disk_id.to_bytes_le()),
            creator: header::creator(&self.source),
            created_unix_seconds: None,
            parents: self.parent.as_ref().map_or(Vec::new(), |p| p.paths.clone()),
            notes,
        }
    }

    fn writable(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        range::check(offset, bytes, self.layout.size_bytes)?;
        if self.access == Access::ReadOnly {
            return Err(DiskError::ReadOnly);
        }
        self.health.check()
    }

    /// Ends as the process does when it is killed: nothing more is written.
    #[cfg(test)]
    pub(crate) fn forsake(&self) {
        self.forsaken
            .store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Where bytes of a block are.
#[derive(Clone, Copy)]
enum Place {
    /// In a block that begins here.
    File(u64),
    Parent,
    /// They are zeros.
    Nowhere,
}

impl Parent {
    /// Reads from a disk that may be larger than its parent.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let inside = index(self.size_bytes.saturating_sub(offset)).min(buffer.len());
        let (below, beyond) = buffer.split_at_mut(inside);
        beyond.fill(0);
        if below.is_empty() {
            return Ok(());
        }
        self.disk.read(offset, below)
    }
}

impl Disk for Vhdx {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.layout.size_bytes,
            logical_block_bytes: self.metadata.logical_bytes,
            physical_block_bytes: self.metadata.physical_bytes,
        }
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
        range::check(offset, buffer.len() as u64, self.layout.size_bytes)?;
        for piece in self.pieces(offset, buffer.len() as u64) {
            let _shared = self.shared(piece.block);
            self.read_block(piece.block, piece.within, &mut buffer[piece.range])?;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.writable(offset, data.len() as u64)?;
        if data.is_empty() {
            return Ok(());
        }
        self.begin()?;
        for piece in self.pieces(offset, data.len() as u64) {
            self.put(
                piece.block,
                piece.within,
                Content::Bytes(&data[piece.range]),
            )?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.health.check()?;
        if self.journal.is_in(Phase::Closed) {
            return Ok(()); // Nothing was written since the file was whole.
        }
        self.rounds.join(|| self.round())
    }

    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.writable(offset, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        self.begin()?;
        for piece in self.pieces(offset, bytes) {
            let length = piece.range.len() as u64;
            let is_whole = piece.within == 0 && length == self.layout.bytes_of(piece.block);
            if is_whole && !self.metadata.is_fixed {
                self.drop_block(piece.block)?;
            } else {
                self.put(piece.block, piece.within, Content::Zeros(length))?;
            }
        }
        Ok(())
    }

    fn segments<'a>(
        &'a self,
        offset: u64,
        bytes: u64,
        segments: &mut Vec<Segment<'a>>,
    ) -> Result<bool, DiskError> {
        range::check(offset, bytes, self.layout.size_bytes)?;
        if self.source.is_patched() {
            return Ok(false);
        }
        let before = segments.len();
        let mut is_mapped = true;
        for piece in self.pieces(offset, bytes) {
            let _shared = self.shared(piece.block);
            let start = piece.block * self.layout.block_bytes;
            let within = piece.within..piece.within + piece.range.len() as u64;
            let visited = self.visit(piece.block, within, &mut |place, range| {
                is_mapped = match (place, &self.parent) {
                    (Place::File(at), _) => {
                        let range = at + range.start..at + range.end;
                        self.windows.segments(&self.source.file, range, segments)
                    }
                    (Place::Parent, Some(parent)) => {
                        let (from, to) = (start + range.start, start + range.end);
                        let inside = to.min(parent.size_bytes).max(from);
                        let mapped = inside == from
                            || parent.disk.segments(from, inside - from, segments)?;
                        if mapped {
                            zero_segments(to - inside, segments);
                        }
                        mapped
                    }
                    (Place::Parent | Place::Nowhere, _) => {
                        zero_segments(range.end - range.start, segments);
                        true
                    }
                };
                Ok(is_mapped)
            });
            if visited.is_err() || !is_mapped {
                segments.truncate(before);
                return visited.map(|()| false);
            }
        }
        Ok(true)
    }

    fn extent(&self, offset: u64, bytes: u64) -> Result<Extent, DiskError> {
        range::check(offset, bytes, self.layout.size_bytes)?;
        let mut found: Option<Extent> = None;
        for piece in self.pieces(offset, bytes) {
            let _shared = self.shared(piece.block);
            let start = piece.block * self.layout.block_bytes;
            let within = piece.within..piece.within + piece.range.len() as u64;
            let mut is_same = true;
            self.visit(piece.block, within, &mut |place, range| {
                let length = range.end - range.start;
                let here = match (place, &self.parent) {
                    (Place::File(at), _) => self.extent_of_file(at + range.start, length),
                    (Place::Parent, Some(parent)) => parent.extent(start + range.start, length)?,
                    (Place::Parent | Place::Nowhere, _) => Extent {
                        bytes: length,
                        allocation: Allocation::Deallocated,
                    },
                };
                match &mut found {
                    None => found = Some(here),
                    Some(found) if found.allocation == here.allocation => {
                        found.bytes += here.bytes;
                    }
                    Some(_) => is_same = false,
                }
                is_same &= here.bytes == length;
                Ok(is_same)
            })?;
            if !is_same {
                break;
            }
        }
        Ok(found.unwrap_or(Extent {
            bytes,
            allocation: Allocation::Mapped,
        }))
    }

    fn space(&self) -> Option<Space> {
        files::space(self.source.file.inner())
    }

    fn will_need(&self, offset: u64, bytes: u64) {
        if range::check(offset, bytes, self.layout.size_bytes).is_err() {
            return;
        }
        for piece in self.pieces(offset, bytes) {
            let length = piece.range.len() as u64;
            match (self.bat.state(&self.layout, piece.block), &self.parent) {
                (State::Full(at) | State::Partial(at), _) => {
                    // Only advice: a refusal changes nothing.
                    let _ = rustix::fs::fadvise(
                        self.source.file.inner(),
                        at + piece.within,
                        std::num::NonZeroU64::new(length),
                        rustix::fs::Advice::WillNeed,
                    );
                }
                (State::NotPresent, Some(parent)) => {
                    let start = piece.block * self.layout.block_bytes + piece.within;
                    let inside = parent.size_bytes.saturating_sub(start).min(length);
                    parent.disk.will_need(start.min(parent.size_bytes), inside);
                }
                (State::NotPresent | State::Zero, _) => {}
            }
        }
    }
}

impl Vhdx {
    /// What the host stores of a range of the file, from its start on.
    fn extent_of_file(&self, at: u64, bytes: u64) -> Extent {
        let mapped = |bytes| Extent {
            bytes,
            allocation: Allocation::Mapped,
        };
        // What a file has lost is no hole.
        let length = self.source.file.inner().metadata().map_or(0, |m| m.len());
        if self.source.is_patched() || at + bytes > length {
            return mapped(bytes);
        }
        let deallocated = |bytes| Extent {
            bytes,
            allocation: Allocation::Deallocated,
        };
        match self.source.file.next_data(at..at + bytes) {
            Ok(None) => deallocated(bytes),
            Ok(Some(data)) if data.start > at => deallocated(data.start - at),
            Ok(Some(data)) if data.end > at => mapped(data.end - at),
            // It changed between two questions, or nobody knows.
            Ok(Some(_)) | Err(_) => mapped(bytes),
        }
    }
}

impl Parent {
    fn extent(&self, offset: u64, bytes: u64) -> Result<Extent, DiskError> {
        let inside = self.size_bytes.saturating_sub(offset).min(bytes);
        if inside == 0 {
            return Ok(Extent {
                bytes,
                allocation: Allocation::Deallocated,
            });
        }
        self.disk.extent(offset, inside)
    }
}

impl Drop for Vhdx {
    fn drop(&mut self) {
        #[cfg(test)]
        if self.forsaken.load(std::sync::atomic::Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.close() {
            tracing::warn!(path = %self.source.path.display(), %error, "left with a log to replay");
        }
    }
}

fn zero_segments<'a>(bytes: u64, segments: &mut Vec<Segment<'a>>) {
    let mut left = bytes;
    while left > 0 {
        let piece = zeros(left);
        segments.push(Segment::new(piece.as_ptr(), piece.len()));
        left -= piece.len() as u64;
    }
}
