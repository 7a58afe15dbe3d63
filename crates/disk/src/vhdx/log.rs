//! The log (MS-VHDX 2.3): metadata updates that are durable before they are
//! made in place.
//!
//! Reading follows the specification: any ring of entries, whoever wrote it.
//! What we write is a special case of it. Each entry is a sequence of its own
//! (its tail is itself), because the one before it is durable in place by
//! then; two places take turns, so that there is a whole entry at any moment: a
//! log GUID without one is a damaged file to some readers. The rest of the log belongs to [`volatile`](super::volatile).

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::header::Header;
use super::source::{Patch, Source, array, checksum, guid_at, index, put, u32_at, u64_at};
use crate::OpenError;

/// Unit of the log, and of the updates in it.
pub(super) const SECTOR_BYTES: u64 = SECTOR as u64;

/// Length of each of the two places our entries lie in, from the log's start.
pub(super) const PLACE_BYTES: u64 = 384 << 10;

/// Updates that are replayed: twice what the longest log has room for when all
/// of them are data. A disk that is only read looks through them at each read.
const PATCHES_MAX: usize = 1 << 15;

/// Updates that fit into one of our entries.
pub(super) const UPDATES_MAX: usize = (PLACE_BYTES / SECTOR_BYTES) as usize - 1;

const SECTOR: usize = 4096;
const HEADER_BYTES: usize = 64;
const DESCRIPTOR_BYTES: usize = 32;

/// Pages of metadata by their offset in the file.
pub(super) type Updates = BTreeMap<u64, Box<[u8; SECTOR]>>;

/// The newest state of a log.
#[derive(Debug, Default)]
pub(super) struct Replay {
    /// What is to be made, in order.
    pub(super) patches: Vec<Patch>,
    /// The file is at least this long then.
    pub(super) file_bytes: u64,
    /// Sequence number of the last entry, and where in the log it begins.
    pub(super) head: Option<(u64, u64)>,
}

/// A valid entry.
struct Entry {
    sequence: u64,
    sectors: usize,
    tail: usize,
    flushed_bytes: u64,
    file_bytes: u64,
    patches: Vec<Patch>,
}

/// Reads the log of `header`, and finds what must be replayed.
///
/// A log without a valid entry holds nothing: its writer died before the first
/// was whole, so the file is as it was.
pub(super) fn read(source: &Source, header: &Header) -> Result<Replay, OpenError> {
    if header.log.is_nil() {
        return Ok(Replay::default());
    }
    let mut ring = vec![0; index(header.log_bytes.into())];
    source.fetch("log", header.log_offset, &mut ring)?;
    let count = ring.len() / SECTOR;
    let entries: BTreeMap<usize, Entry> = (0..count)
        .filter_map(|at| Some((at, parse(&ring, at, header.log)?)))
        .collect();
    let runs = Runs::of(&entries, count);
    let mut heads: Vec<(u64, usize)> = entries.iter().map(|(at, e)| (e.sequence, *at)).collect();
    heads.sort_unstable();
    for (_, head) in heads.into_iter().rev() {
        if let Some(sequence) = runs.between(entries[&head].tail, head) {
            return replay(source, header, &entries, sequence);
        }
    }
    tracing::info!(path = %source.path.display(), "the log holds no whole entry");
    Ok(Replay::default())
}

/// Entries that lie right behind each other, each with the sequence number
/// after the one before. Entries have no sector in common, so each is in one
/// run, and all of them are found in one pass.
struct Runs {
    runs: Vec<Vec<usize>>,
    /// In which run an entry is, and where in it.
    places: BTreeMap<usize, (usize, usize)>,
}

impl Runs {
    fn of(entries: &BTreeMap<usize, Entry>, count: usize) -> Runs {
        let next = |at: usize| {
            let entry = entries.get(&at)?;
            let behind = (at + entry.sectors) % count;
            let next = entries.get(&behind)?;
            (Some(next.sequence) == entry.sequence.checked_add(1)).then_some(behind)
        };
        let continued: BTreeSet<usize> = entries.keys().filter_map(|at| next(*at)).collect();
        let mut runs = Runs {
            runs: Vec::new(),
            places: BTreeMap::new(),
        };
        for first in entries.keys().filter(|at| !continued.contains(at)) {
            let run: Vec<usize> = std::iter::successors(Some(*first), |at| next(*at)).collect();
            let nth = runs.runs.len();
            let places = run
                .iter()
                .enumerate()
                .map(|(place, at)| (*at, (nth, place)));
            runs.places.extend(places);
            runs.runs.push(run);
        }
        runs
    }

    /// The entries from `tail` to `head`, where those are one run.
    fn between(&self, tail: usize, head: usize) -> Option<&[usize]> {
        let ((run, first), (other, last)) = (self.places.get(&tail)?, self.places.get(&head)?);
        if run != other {
            return None;
        }
        self.runs.get(*run)?.get(*first..=*last)
    }
}

fn replay(
    source: &Source,
    header: &Header,
    entries: &BTreeMap<usize, Entry>,
    sequence: &[usize],
) -> Result<Replay, OpenError> {
    let mut replay = Replay::default();
    for at in sequence {
        let entry = &entries[at];
        let place = header.log_offset + *at as u64 * SECTOR_BYTES;
        if replay.patches.len() + entry.patches.len() > PATCHES_MAX {
            let reason = format!("more than {PATCHES_MAX} updates are to be made");
            return Err(source.malformed("log entry descriptor count", place + 24, reason));
        }
        if entry.flushed_bytes > source.length() {
            let reason = format!(
                "{} bytes were flushed, the file has {}: it is cut off",
                entry.flushed_bytes,
                source.length()
            );
            return Err(source.malformed("log entry flushed file offset", place + 48, reason));
        }
        replay.file_bytes = entry.file_bytes;
        replay.patches.extend(entry.patches.iter().cloned());
        replay.head = Some((entry.sequence, *at as u64 * SECTOR_BYTES));
    }
    // Nothing of ours lies further out, however long the disk.
    let longest = super::FILE_BYTES_MAX;
    let outside = |patch: &&Patch| {
        let (offset, bytes) = match patch {
            Patch::Data(offset, _) => (*offset, SECTOR_BYTES),
            Patch::Zeros(offset, bytes) => (*offset, *bytes),
        };
        offset.checked_add(bytes).is_none_or(|end| end > longest)
    };
    if replay.patches.iter().find(outside).is_some() || replay.file_bytes > longest {
        let reason = format!("an update lies behind {longest} bytes");
        return Err(source.malformed("log entry", header.log_offset, reason));
    }
    Ok(replay)
}

/// The entry that begins in sector `at` of the ring, if one does.
fn parse(ring: &[u8], at: usize, log: Uuid) -> Option<Entry> {
    let count = ring.len() / SECTOR;
    let sector = |nth: usize| {
        let start = (at + nth) % count * SECTOR;
        &ring[start..start + SECTOR]
    };
    let head = sector(0);
    if &head[..4] != b"loge" || guid_at(head, 32) != log {
        return None;
    }
    let entry_bytes = index(u32_at(head, 8).into());
    let tail = index(u32_at(head, 12).into());
    let sequence = u64_at(head, 16);
    let descriptors = index(u32_at(head, 24).into());
    let well_formed = entry_bytes.is_multiple_of(SECTOR)
        && (SECTOR..=ring.len()).contains(&entry_bytes)
        && tail.is_multiple_of(SECTOR)
        && tail < ring.len()
        && sequence > 0
        && descriptors <= entry_bytes / DESCRIPTOR_BYTES;
    if !well_formed {
        return None;
    }
    let sectors = entry_bytes / SECTOR;
    let table_sectors = (HEADER_BYTES + descriptors * DESCRIPTOR_BYTES).div_ceil(SECTOR);
    // Signatures first: sectors of two entries that lie in each other never
    // both pass, so no sector is summed more than once.
    if (1..sectors).any(|nth| &sector(nth)[..4] == b"loge") {
        return None;
    }
    let mut crc = crc32c::crc32c(&head[..4]);
    crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc = crc32c::crc32c_append(crc, &head[8..]);
    for nth in 1..sectors {
        crc = crc32c::crc32c_append(crc, sector(nth));
    }
    if crc != u32_at(head, 4) {
        return None;
    }
    let mut patches = Vec::new();
    let mut data = table_sectors;
    for nth in 0..descriptors {
        let place = HEADER_BYTES + nth * DESCRIPTOR_BYTES;
        let descriptor: [u8; DESCRIPTOR_BYTES] = array(sector(place / SECTOR), place % SECTOR);
        let offset = u64_at(&descriptor, 16);
        if u64_at(&descriptor, 24) != sequence || !offset.is_multiple_of(SECTOR_BYTES) {
            return None;
        }
        match &descriptor[..4] {
            b"desc" if data < sectors => {
                let found = sector(data);
                let halves = u64::from(u32_at(found, 4)) << 32 | u64::from(u32_at(found, 4092));
                if &found[..4] != b"data" || halves != sequence {
                    return None;
                }
                let mut bytes = Box::new([0; SECTOR]);
                bytes[..8].copy_from_slice(&descriptor[8..16]); // leading bytes
                bytes[8..4092].copy_from_slice(&found[8..4092]);
                bytes[4092..].copy_from_slice(&descriptor[4..8]); // trailing bytes
                patches.push(Patch::Data(offset, bytes));
                data += 1;
            }
            b"zero" => {
                let bytes = u64_at(&descriptor, 8);
                if !bytes.is_multiple_of(SECTOR_BYTES) {
                    return None;
                }
                patches.push(Patch::Zeros(offset, bytes));
            }
            _ => return None,
        }
    }
    Some(Entry {
        sequence,
        sectors,
        tail: tail / SECTOR,
        flushed_bytes: u64_at(head, 48),
        file_bytes: u64_at(head, 56),
        patches,
    })
}

/// An entry at `place` of the log that is a sequence of its own: `updates` by
/// their offset in the file, which has `file_bytes`, all durable.
pub(super) fn emit(
    log: Uuid,
    sequence: u64,
    place: u64,
    file_bytes: u64,
    updates: &Updates,
) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR * (1 + updates.len())];
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let tail = u32::try_from(place).unwrap_or(u32::MAX);
    let count = u32::try_from(updates.len()).unwrap_or(u32::MAX);
    put(&mut bytes, 0, b"loge");
    put(&mut bytes, 8, &length.to_le_bytes());
    put(&mut bytes, 12, &tail.to_le_bytes());
    put(&mut bytes, 16, &sequence.to_le_bytes());
    put(&mut bytes, 24, &count.to_le_bytes());
    put(&mut bytes, 32, &log.to_bytes_le());
    put(&mut bytes, 48, &file_bytes.to_le_bytes()); // flushed file offset
    put(&mut bytes, 56, &file_bytes.to_le_bytes()); // last file offset
    for (nth, (offset, update)) in updates.iter().enumerate() {
        let descriptor = HEADER_BYTES + nth * DESCRIPTOR_BYTES;
        put(&mut bytes, descriptor, b"desc");
        put(&mut bytes, descriptor + 4, &update[4092..]); // trailing bytes
        put(&mut bytes, descriptor + 8, &update[..8]); // leading bytes
        put(&mut bytes, descriptor + 16, &offset.to_le_bytes());
        put(&mut bytes, descriptor + 24, &sequence.to_le_bytes());
        let sector = SECTOR * (1 + nth);
        let [high, low] = [sequence >> 32, sequence & 0xffff_ffff];
        put(&mut bytes, sector, b"data");
        put(&mut bytes, sector + 4, &high.to_le_bytes()[..4]);
        put(&mut bytes, sector + 8, &update[8..4092]);
        put(&mut bytes, sector + 4092, &low.to_le_bytes()[..4]);
    }
    let crc = checksum(&bytes);
    put(&mut bytes, 4, &crc.to_le_bytes());
    bytes
}
