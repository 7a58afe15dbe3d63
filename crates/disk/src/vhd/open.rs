//! Opening a VHD: footers, header and BAT, all of them checked before anything
//! is believed, and what is repaired.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::blocks::{ABSENT, Blocks, Tail};
use super::differences::{Differences, SHADOW_HEAD_BYTES};
use super::footer::{FOOTER_BYTES, Footer, MAX_SIZE_BYTES, OLD_FOOTER_BYTES, SECTOR_BYTES};
use super::header::{HEADER_BYTES, Header, LOCATOR_BYTES, LOCATORS_AT};
use super::parent::Child;
use super::{Kind, NOT_REPAIRED, Vhd};
use crate::doubt::BootId;
use crate::fault::Fault;
use crate::files::{File, Files};
use crate::health::{Health, trouble};
use crate::parents::Chain;
use crate::probe::{Format, VhdKind};
use crate::{Access, Geometry, OpenError, Opening};

/// Entries of the BAT read at a time.
const TABLE_PIECE_BYTES: usize = 64 << 10;

/// Opens the VHD at `path`, locked: one writer, or readers.
pub(crate) fn open(path: &Path, opening: &Opening) -> Result<Vhd, OpenError> {
    let files = Files::real().map_err(|e| trouble("asking for the boot's id".to_owned(), e))?;
    open_on(&files, path, opening)
}

pub(crate) fn open_on(files: &Files, path: &Path, opening: &Opening) -> Result<Vhd, OpenError> {
    let chain = Chain::default().with(path)?;
    open_in(files, path, opening, &chain)
}

/// Opens the last disk of a chain, which leads to it.
pub(super) fn open_in(
    files: &Files,
    path: &Path,
    opening: &Opening,
    chain: &Chain,
) -> Result<Vhd, OpenError> {
    let access = opening.access;
    let (file, file_bytes, boot_id) = locked(files, path, access)?;
    let found = Found::read(path, &file, file_bytes)?;
    found.require_kind(path, opening.format)?;
    let size_bytes = found.footer.size_bytes();
    let size_field = |reason: String| OpenError::Malformed {
        path: path.to_owned(),
        field: "Current Size",
        offset: found.tail.start + 48,
        reason,
    };
    if size_bytes == 0 || !size_bytes.is_multiple_of(SECTOR_BYTES) || size_bytes > MAX_SIZE_BYTES {
        return Err(size_field(format!(
            "a disk of {size_bytes} bytes; up to {MAX_SIZE_BYTES} can be, in sectors of \
             {SECTOR_BYTES}"
        )));
    }
    let mut notes = Vec::new();
    let blocks = match found.footer.kind {
        Kind::Fixed if size_bytes > found.tail.start => {
            return Err(size_field(format!(
                "a disk of {size_bytes} bytes in a file that has {} before its footer: \
                 is it cut off?",
                found.tail.start
            )));
        }
        Kind::Fixed => None,
        Kind::Dynamic => {
            let (blocks, ..) = read_blocks(path, &file, &found, file_bytes, size_bytes, chain)?;
            Some(blocks)
        }
        Kind::Differencing => {
            let read = read_blocks(path, &file, &found, file_bytes, size_bytes, chain)?;
            let (mut blocks, header, roomy, chain) = read;
            let child = Child {
                files,
                path,
                file: &file,
                room_bytes: found.tail.start.min(file_bytes),
                header_at: found.footer.data_offset,
                header: &header,
            };
            let parent = child.open_parent(opening, &chain, &mut notes)?;
            let parent_bytes = parent.geometry.size_bytes;
            if parent_bytes > size_bytes {
                return Err(size_field(format!(
                    "a disk of {size_bytes} bytes, but its parent {} has {parent_bytes}",
                    parent.path.display()
                )));
            }
            blocks.differences = Some(Differences::above(Arc::new(parent), boot_id, roomy));
            Some(blocks)
        }
    };
    if found.footer.saved_state != 0 {
        notes.push("it belongs to a virtual machine whose state was saved".to_owned());
    }
    let found = match access {
        Access::ReadWrite => found.repair(path, &file, &mut notes)?,
        Access::ReadOnly => {
            notes.extend(
                found
                    .damage()
                    .map(|damage| format!("{damage}{NOT_REPAIRED}")),
            );
            found
        }
    };
    let reach = match (&blocks, access) {
        (Some(blocks), Access::ReadWrite) => {
            let end = found
                .tail
                .end
                .next_multiple_of(super::blocks::ALIGNMENT_BYTES);
            end + blocks.lead_bytes() + blocks.absent_bytes()
        }
        _ => file_bytes,
    };
    let mapping = map(path, &file, reach);
    if let Some(blocks) = &blocks {
        let mut tail = blocks.tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.footer_at = found.tail.start;
        tail.file_end = found.tail.end;
    }
    let vhd = Vhd {
        path: path.to_owned(),
        file,
        access,
        geometry: Geometry {
            size_bytes,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
        },
        footer: found.footer,
        blocks,
        mapping,
        health: Health::default(),
        notes,
    };
    if let (Some(blocks), Access::ReadWrite) = (&vhd.blocks, access)
        && let Some(differences) = &blocks.differences
    {
        vhd.find_shadows(blocks, differences)?;
    }
    Ok(vhd)
}

/// A mapping of the file as far as it may grow: what lies behind its end is
/// never looked at.
fn map(path: &Path, file: &File, bytes: u64) -> Option<MmapRaw> {
    let path = path.display();
    MmapOptions::new()
        .len(usize::try_from(bytes).ok()?)
        .map_raw_read_only(file.inner())
        .inspect_err(|error| tracing::debug!(%path, %error, "not mapped"))
        .ok()
}

/// The file, locked, its length, and the boot its shadows must be of.
fn locked(files: &Files, path: &Path, access: Access) -> Result<(File, u64, BootId), OpenError> {
    let context = |what: &str| format!("{what} {}", path.display());
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => OpenError::Missing {
            path: path.to_owned(),
        },
        _ => trouble(context("opening"), error).into(),
    };
    // Asked before it is opened: a pipe would wait for its other end.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(OpenError::Foreign {
            advice: format!("{} is no regular file: a VHD is one", path.display()),
        });
    }
    let (file, lock) = match access {
        Access::ReadWrite => (
            files.open_file(path),
            FlockOperation::NonBlockingLockExclusive,
        ),
        Access::ReadOnly => (
            files.open_to_read(path),
            FlockOperation::NonBlockingLockShared,
        ),
    };
    let file = file.map_err(failed)?;
    flock(file.inner(), lock).map_err(|error| match error {
        Errno::WOULDBLOCK => OpenError::InUse {
            path: path.to_owned(),
        },
        other => trouble(context("locking"), other.into()).into(),
    })?;
    let boot_id = match access {
        Access::ReadWrite => files.settled(path),
        Access::ReadOnly => files.boot_of(path),
    };
    let boot_id = boot_id.map_err(failed)?;
    let metadata = file.inner().metadata().map_err(failed)?;
    Ok((file, metadata.len(), boot_id))
}

/// The footers of a file.
struct Found {
    footer: Footer,
    /// Where the footer at the end of the file is, or is to be.
    tail: Range<u64>,
    /// Whether there is a good one.
    has_tail: bool,
    /// Whether the copy at the front is as good; a fixed disk has none.
    has_copy: bool,
}

impl Found {
    fn read(path: &Path, file: &File, file_bytes: u64) -> Result<Found, OpenError> {
        let read = |at: u64, bytes: usize| -> Result<Vec<u8>, OpenError> {
            let mut buffer = vec![0; bytes];
            file.read_exact_at(&mut buffer, at)
                .map_err(|e| trouble(format!("reading {}", path.display()), e))?;
            Ok(buffer)
        };
        let mut fault = None;
        for length in [FOOTER_BYTES, OLD_FOOTER_BYTES] {
            let Some(at) = file_bytes.checked_sub(length as u64) else {
                continue;
            };
            match Footer::parse(&read(at, length)?) {
                Ok(footer) => {
                    let has_copy = footer.kind == Kind::Fixed
                        || file_bytes >= FOOTER_BYTES as u64
                            && Footer::parse(&read(0, FOOTER_BYTES)?)
                                .is_ok_and(|copy| copy == footer);
                    return Ok(Found {
                        footer,
                        tail: at..file_bytes,
                        has_tail: true,
                        has_copy,
                    });
                }
                // What the first says is what the operator hears.
                Err(found) if fault.is_none() => fault = Some((found, at)),
                Err(_) => {}
            }
        }
        let Some((fault, at)) = fault else {
            let reason = format!("the file has {file_bytes} bytes, a footer has {FOOTER_BYTES}");
            return Err(Fault::new("Footer", 0, reason).of(path, 0));
        };
        if file_bytes >= FOOTER_BYTES as u64
            && let Ok(footer) = Footer::parse(&read(0, FOOTER_BYTES)?)
            && footer.kind != Kind::Fixed
        {
            let end = file_bytes.next_multiple_of(SECTOR_BYTES);
            return Ok(Found {
                footer,
                tail: end..end,
                has_tail: false,
                has_copy: true,
            });
        }
        Err(fault.of(path, at))
    }

    /// Refuses another kind of disk where a fixed one is known to be. Its first
    /// sector belongs to who writes the disk, and may look like the copy of a
    /// footer that says something else: it stands in for no footer.
    fn require_kind(&self, path: &Path, format: Option<Format>) -> Result<(), OpenError> {
        if format != Some(Format::Vhd(VhdKind::Fixed)) || self.footer.kind == Kind::Fixed {
            return Ok(());
        }
        let (field, at, reason) = match self.has_tail {
            true => ("Disk Type", self.tail.start, "it is no fixed disk any more"),
            false => ("Footer", self.tail.end, "that of a fixed disk is lost"),
        };
        Err(Fault::new(field, 0, reason).of(path, at))
    }

    /// What is damaged, as a sentence.
    fn damage(&self) -> Option<&'static str> {
        match (self.has_tail, self.has_copy) {
            (true, true) => None,
            (false, _) => Some("the footer at the end of the file was lost or damaged"),
            (true, false) => Some("the copy of the footer at the front was lost or damaged"),
        }
    }

    /// Writes the lost footer anew, from the other one.
    fn repair(self, path: &Path, file: &File, notes: &mut Vec<String>) -> Result<Found, OpenError> {
        let Some(damage) = self.damage() else {
            return Ok(self);
        };
        let at = match self.has_tail {
            true => 0,
            false => self.tail.start,
        };
        file.write_all_at(&self.footer.emit(), at)
            .and_then(|()| file.sync_data())
            .map_err(|e| trouble(format!("repairing {}", path.display()), e))?;
        tracing::warn!(path = %path.display(), damage, "repaired from the other copy");
        notes.push(format!("{damage}; repaired from the other copy"));
        let tail = match self.has_tail {
            true => self.tail,
            false => at..at + FOOTER_BYTES as u64,
        };
        Ok(Found {
            tail,
            has_tail: true,
            has_copy: true,
            ..self
        })
    }
}

/// The header and the BAT of a dynamic or differencing disk, a bit for each
/// block: whether it has (or will have) room for a shadow, and the chain with
/// this table in it.
fn read_blocks(
    path: &Path,
    file: &File,
    found: &Found,
    file_bytes: u64,
    size_bytes: u64,
    chain: &Chain,
) -> Result<(Blocks, Header, Vec<u64>, Chain), OpenError> {
    let end = found.tail.start.min(file_bytes);
    let footer_fault = |field, at: u64, reason: String| OpenError::Malformed {
        path: path.to_owned(),
        field,
        offset: found.tail.start + at,
        reason,
    };
    let header_at = found.footer.data_offset;
    let header_end = header_at.checked_add(HEADER_BYTES as u64);
    let header_end = header_end.filter(|&header_end| {
        header_end <= end && header_at >= FOOTER_BYTES as u64 && header_at.is_multiple_of(512)
    });
    let Some(header_end) = header_end else {
        let reason = format!("the dynamic header is said to be at {header_at}, of {end} bytes");
        return Err(footer_fault("Data Offset", 16, reason));
    };
    let mut bytes = [0; HEADER_BYTES];
    let failed = |e| OpenError::from(trouble(format!("reading {}", path.display()), e));
    file.read_exact_at(&mut bytes, header_at).map_err(failed)?;
    let header = Header::parse(&bytes).map_err(|fault| fault.of(path, header_at))?;
    let header_fault =
        |field, at, reason: String| Err(Fault::new(field, at, reason).of(path, header_at));

    let block_bytes = u64::from(header.block_bytes);
    let entries = size_bytes.div_ceil(block_bytes);
    if entries > u64::from(header.max_bat_entries) {
        let reason = format!(
            "a table of {} entries; a disk of {size_bytes} bytes in blocks of {block_bytes} \
             has {entries}",
            header.max_bat_entries
        );
        return header_fault("Max Table Entries", 28, reason);
    }
    let most = Blocks::most_entries(found.footer.kind);
    if entries > most {
        let reason = format!(
            "blocks of {block_bytes} bytes would need a table of {entries} entries; \
             up to {most} are read"
        );
        return header_fault("Block Size", 32, reason);
    }
    let bat_end = header.bat_offset.checked_add(4 * entries);
    let bat_end = bat_end.filter(|&bat_end| bat_end <= end && header.bat_offset >= 512);
    let Some(bat_end) = bat_end else {
        let at = header.bat_offset;
        let reason = format!("{entries} entries at {at} do not fit into {end} bytes");
        return header_fault("Table Offset", 16, reason);
    };
    if header.bat_offset < header_end && header_at < bat_end {
        let reason = format!("the table at {} lies over the header", header.bat_offset);
        return header_fault("Table Offset", 16, reason);
    }

    let chain = match chain.with_tables(4 * entries) {
        Ok(chain) => chain,
        Err(reason) => return header_fault("Max Table Entries", 28, reason),
    };
    let bat = read_table(file, header.bat_offset, entries).map_err(failed)?;
    let mut taken = vec![
        0..FOOTER_BYTES as u64,
        header_at..header_end,
        header.bat_offset..bat_end.next_multiple_of(SECTOR_BYTES),
    ];
    if found.footer.kind == Kind::Differencing {
        // Those that are followed; what lies of other code is not believed.
        for (number, locator) in header.locators.iter().enumerate() {
            let Some(path_at) = locator.range_in(end).filter(|_| locator.is_path()) else {
                continue;
            };
            let is_over = |t: &Range<u64>| t.start < path_at.end && path_at.start < t.end;
            if let Some(over) = taken[..3].iter().find(|t| is_over(t)) {
                let reason = format!(
                    "a path at {} lies over the footer, header or table at {}",
                    path_at.start, over.start
                );
                return header_fault(
                    "Parent Locator",
                    LOCATORS_AT + number * LOCATOR_BYTES,
                    reason,
                );
            }
            taken.push(path_at);
        }
    }
    let blocks = Blocks {
        block_bytes,
        bitmap_bytes: Blocks::bitmap_bytes(block_bytes),
        bat_offset: header.bat_offset,
        bat,
        allocated: AtomicU64::new(0),
        differences: None,
        tail: Mutex::new(Tail {
            next: None,
            used_end: 0,
            footer_at: 0,
            file_end: 0,
            has_room: false,
        }),
    };
    let roomy = check_blocks(&blocks, size_bytes, end, &taken)
        .map_err(|fault| fault.of(path, header.bat_offset))?;
    Ok((blocks, header, roomy, chain))
}

fn read_table(file: &File, offset: u64, entries: u64) -> io::Result<Vec<AtomicU32>> {
    let mut bat = Vec::new();
    let mut piece = vec![0; TABLE_PIECE_BYTES];
    let mut at = offset;
    let end = offset + 4 * entries;
    while at < end {
        let length = usize::try_from(end - at).map_or(piece.len(), |left| left.min(piece.len()));
        let part = &mut piece[..length];
        file.read_exact_at(part, at)?;
        bat.extend(
            part.chunks_exact(4)
                .map(|entry| AtomicU32::new(super::footer::u32_at(entry, 0))),
        );
        at += length as u64;
    }
    Ok(bat)
}

/// Refuses blocks that leave the file, or lie over each other or over what
/// describes them; notes where the used part of the file ends. Answers which
/// blocks have room for a shadow in front of them.
fn check_blocks(
    blocks: &Blocks,
    size_bytes: u64,
    end: u64,
    taken: &[Range<u64>],
) -> Result<Vec<u64>, Fault> {
    let mut roomy = vec![u64::MAX; blocks.bat.len().div_ceil(64)];
    let mut starts = Vec::new();
    for (block, entry) in blocks.bat.iter().enumerate() {
        let sector = entry.load(Ordering::Relaxed);
        if sector != ABSENT {
            starts.push((sector, block));
        }
    }
    starts.sort_unstable();
    let fault =
        |block: usize, reason: String| Err(Fault::new("Block Allocation Table", 4 * block, reason));
    let mut used_end = taken.iter().map(|range| range.end).max().unwrap_or(0);
    let mut before: Option<(u64, usize)> = None;
    let mut used_before = 0;
    for (sector, block) in &starts {
        let start = u64::from(*sector) * SECTOR_BYTES;
        // Of the last block only what the disk has is needed.
        let length = blocks
            .block_bytes
            .min(size_bytes - *block as u64 * blocks.block_bytes);
        let block_end = start + blocks.bitmap_bytes + length;
        if block_end > end {
            let reason = format!(
                "block {block} ends at {block_end}, the file's room for blocks at {end}: \
                 is it cut off?"
            );
            return fault(*block, reason);
        }
        if let Some(over) = taken.iter().find(|t| t.start < block_end && start < t.end) {
            let reason = format!(
                "block {block} at {start} lies over the footer, header or table at {}",
                over.start
            );
            return fault(*block, reason);
        }
        if let Some((_, other)) = before.filter(|(before_end, _)| *before_end > start) {
            let reason = format!("block {block} at {start} lies over block {other}");
            return fault(*block, reason);
        }
        let whole_end = start + blocks.bitmap_bytes + blocks.block_bytes;
        let room = SHADOW_HEAD_BYTES + blocks.bitmap_bytes;
        let is_taken =
            |from: u64| used_before > from || taken.iter().any(|t| t.start < start && from < t.end);
        if start.checked_sub(room).is_none_or(is_taken) {
            roomy[block / 64] &= !(1 << (block % 64));
        }
        before = Some((block_end, *block));
        used_before = whole_end;
        used_end = used_end.max(whole_end);
    }
    blocks
        .allocated
        .store(starts.len() as u64, Ordering::Relaxed);
    let mut tail = blocks.tail.lock().unwrap_or_else(PoisonError::into_inner);
    tail.used_end = used_end;
    Ok(roomy)
}
