//! Changes that were answered and not yet flushed, for the case that this
//! process dies.
//!
//! A change of BAT or sector bitmap must not become durable before the data it
//! speaks of, so it goes to the real log only at a flush. Until then it stands
//! here, in the last 256 KiB of the log's first MiB, where nothing is an entry
//! to any reader of the format. It counts for the boot of the kernel and the
//! log GUID that its head names: after a loss of power, or after another
//! program wrote the file, it is void, and nobody needs to be told.
//!
//! Records are appended to one of two halves; when it is full, a flush makes
//! most of them needless, and the rest begins the other half.

use uuid::Uuid;

use super::log::PLACE_BYTES;
use super::source::{Source, array, put, u32_at, u64_at};
use crate::files::File;

/// Where in the log the two halves begin, behind the two places of entries.
const ZONE_AT: u64 = 2 * PLACE_BYTES;

const HALF_BYTES: usize = 128 << 10;
const MAGIC: &[u8; 8] = b"DLVHDXVJ";
const HEAD_BYTES: usize = 64;
const RECORD_BYTES: usize = 32;

/// Records that fit into a half.
pub(super) const RECORDS_MAX: usize = (HALF_BYTES - HEAD_BYTES) / RECORD_BYTES;

/// A change of the metadata, to be made again if need be: the last one of a
/// thing counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// An entry of the BAT.
    Entry {
        /// Its number.
        entry: u64,
        /// What it says then.
        value: u64,
    },
    /// Bits of sectors of the disk, all of one chunk.
    Bits {
        /// The first sector.
        first: u64,
        /// How many.
        count: u64,
        /// Whether they are in this file then.
        value: bool,
    },
}

/// Whom the records are for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    pub(super) boot_id: [u8; 16],
    pub(super) log: Uuid,
}

/// The half that is being written.
#[derive(Debug)]
pub(super) struct Zone {
    owner: Owner,
    /// Where in the file the log begins.
    log_at: u64,
    half: u64,
    epoch: u32,
    used: u32,
}

impl Zone {
    /// Begins a zone without records in the log at `log_at`.
    pub(super) fn create(file: &File, log_at: u64, owner: Owner) -> std::io::Result<Zone> {
        let mut zone = Zone {
            owner,
            log_at,
            half: 1,
            epoch: 0,
            used: 0,
        };
        // Both are written, so that no record needs space of the host's.
        for half in [0, 1] {
            file.write_all_at(&[0; HALF_BYTES], zone.at(half))?;
        }
        zone.restart(file, &mut std::iter::empty())?;
        Ok(zone)
    }

    fn at(&self, half: u64) -> u64 {
        self.log_at + ZONE_AT + half * HALF_BYTES as u64
    }

    /// How many more records fit.
    pub(super) fn left(&self) -> usize {
        RECORDS_MAX - self.used as usize
    }

    /// Appends a record.
    pub(super) fn append(&mut self, file: &File, change: &Change) -> std::io::Result<()> {
        let bytes = record(&self.owner, self.epoch, self.used, change);
        let at = HEAD_BYTES + self.used as usize * RECORD_BYTES;
        file.write_all_at(&bytes, self.at(self.half) + at as u64)?;
        self.used += 1;
        Ok(())
    }

    /// Begins the other half with these records; the present one counts until
    /// it is whole.
    pub(super) fn restart(
        &mut self,
        file: &File,
        changes: &mut dyn Iterator<Item = &Change>,
    ) -> std::io::Result<()> {
        let (half, epoch) = (1 - self.half, self.epoch.wrapping_add(1));
        let (mut bytes, mut used) = (Vec::new(), 0);
        for change in changes {
            bytes.extend(record(&self.owner, epoch, used, change));
            used += 1;
        }
        file.write_all_at(&bytes, self.at(half) + HEAD_BYTES as u64)?;
        file.write_all_at(&head(&self.owner, epoch), self.at(half))?;
        (self.half, self.epoch, self.used) = (half, epoch, used);
        Ok(())
    }

    /// The zone in the log at `log_at`, if it is this owner's, and the records
    /// in it, in order.
    pub(super) fn open(source: &Source, log_at: u64, owner: Owner) -> Option<(Zone, Vec<Change>)> {
        let mut newest: Option<(Zone, Vec<Change>)> = None;
        for half in [0, 1] {
            let mut bytes = vec![0; HALF_BYTES];
            let at = log_at + ZONE_AT + half * HALF_BYTES as u64;
            if source.read_exact_at(&mut bytes, at).is_err() {
                continue;
            }
            let epoch = u32_at(&bytes, 40);
            let is_newer = newest.as_ref().is_none_or(|(other, _)| epoch > other.epoch);
            if bytes[..HEAD_BYTES] != head(&owner, epoch) || !is_newer {
                continue;
            }
            let changes = (0..).zip(bytes[HEAD_BYTES..].chunks_exact(RECORD_BYTES));
            let changes = changes.map_while(|(nth, bytes)| parse(&owner, epoch, nth, bytes));
            let changes: Vec<Change> = changes.collect();
            let used = u32::try_from(changes.len()).ok()?;
            let zone = Zone {
                owner,
                log_at,
                half,
                epoch,
                used,
            };
            newest = Some((zone, changes));
        }
        newest
    }
}

fn head(owner: &Owner, epoch: u32) -> [u8; HEAD_BYTES] {
    let mut bytes = [0; HEAD_BYTES];
    put(&mut bytes, 0, MAGIC);
    put(&mut bytes, 8, &owner.boot_id);
    put(&mut bytes, 24, &owner.log.to_bytes_le());
    put(&mut bytes, 40, &epoch.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..60]);
    put(&mut bytes, 60, &crc.to_le_bytes());
    bytes
}

fn record(owner: &Owner, epoch: u32, nth: u32, change: &Change) -> [u8; RECORD_BYTES] {
    let (kind, key, value) = match *change {
        Change::Entry { entry, value } => (1, entry, value),
        Change::Bits {
            first,
            count,
            value: false,
        } => (2, first, count),
        Change::Bits { first, count, .. } => (3, first, count),
    };
    let mut bytes = [0; RECORD_BYTES];
    put(&mut bytes, 0, &key.to_le_bytes());
    put(&mut bytes, 8, &value.to_le_bytes());
    put(&mut bytes, 16, &epoch.to_le_bytes());
    put(&mut bytes, 20, &nth.to_le_bytes());
    bytes[24] = kind;
    let crc = record_checksum(owner, &bytes);
    put(&mut bytes, 28, &crc.to_le_bytes());
    bytes
}

fn record_checksum(owner: &Owner, bytes: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&owner.boot_id);
    let crc = crc32c::crc32c_append(crc, owner.log.as_bytes());
    crc32c::crc32c_append(crc, &bytes[..28])
}

fn parse(owner: &Owner, epoch: u32, nth: u32, bytes: &[u8]) -> Option<Change> {
    let bytes: [u8; RECORD_BYTES] = array(bytes, 0);
    let belongs = u32_at(&bytes, 28) == record_checksum(owner, &bytes)
        && u32_at(&bytes, 16) == epoch
        && u32_at(&bytes, 20) == nth;
    let (key, value) = (u64_at(&bytes, 0), u64_at(&bytes, 8));
    match bytes[24] {
        _ if !belongs => None,
        1 => Some(Change::Entry { entry: key, value }),
        kind @ (2 | 3) => Some(Change::Bits {
            first: key,
            count: value,
            value: kind == 3,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Files;

    fn owner() -> Owner {
        Owner {
            boot_id: [7; 16],
            log: Uuid::from_bytes([8; 16]),
        }
    }

    fn change(entry: u64) -> Change {
        Change::Entry { entry, value: 6 }
    }

    #[test]
    fn records_are_found_by_their_owner_only_and_across_halves() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("zone");
        let file = Files::real().unwrap().create_file(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        let mut zone = Zone::create(&file, 0, owner()).unwrap();
        let read = |owner| {
            let file = Files::real().unwrap().open_file(&path).unwrap();
            let zone = Zone::open(&Source::new(file, &path).unwrap(), 0, owner);
            zone.map(|(_, changes)| changes)
        };
        assert_eq!(read(owner()), Some(vec![]));
        let bits = Change::Bits {
            first: 9,
            count: 3,
            value: false,
        };
        zone.append(&file, &change(1)).unwrap();
        zone.append(&file, &bits).unwrap();
        assert_eq!(read(owner()), Some(vec![change(1), bits]));
        let rebooted = Owner {
            boot_id: [9; 16],
            ..owner()
        };
        assert_eq!(read(rebooted), None);
        let rewritten = Owner {
            log: Uuid::from_bytes([9; 16]),
            ..owner()
        };
        assert_eq!(read(rewritten), None);
        for entry in 2..5 {
            let kept = [change(entry)];
            zone.restart(&file, &mut kept.iter()).unwrap();
            zone.append(&file, &change(7)).unwrap();
            assert_eq!(read(owner()), Some(vec![change(entry), change(7)]));
        }
    }
}
