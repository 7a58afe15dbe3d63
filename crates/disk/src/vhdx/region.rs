//! Region table (MS-VHDX 2.2.3): where BAT and metadata lie.

use uuid::{Uuid, uuid};

use super::source::{Source, checksum, guid_at, index, put, u32_at, u64_at};
use crate::OpenError;

/// Where the two copies of the table lie.
pub(super) const COPIES: [u64; 2] = [192 << 10, 256 << 10];

/// Length of a copy.
pub(super) const TABLE_BYTES: usize = 64 << 10;

const ENTRIES_MAX: u32 = 2047;

const BAT: Uuid = uuid!("2DC27766-F623-4200-9D64-115E9BFD4A08");
const METADATA: Uuid = uuid!("8B7CA206-4790-4B9A-B8FE-575F050F886E");

/// A part of the file, in whole MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) offset: u64,
    pub(super) bytes: u32,
}

impl Region {
    pub(super) fn end(self) -> u64 {
        self.offset + u64::from(self.bytes)
    }
}

/// The regions that we know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Regions {
    pub(super) bat: Region,
    pub(super) metadata: Region,
    /// Not required ones of others, which stay where they are.
    pub(super) foreign: Vec<Region>,
}

impl Regions {
    /// Reads the first copy that is valid.
    pub(super) fn open(source: &Source) -> Result<Regions, OpenError> {
        let mut bytes = vec![0; TABLE_BYTES];
        for offset in COPIES {
            source.fetch("region table", offset, &mut bytes)?;
            if &bytes[..4] == b"regi" && u32_at(&bytes, 4) == checksum(&bytes) {
                return Regions::parse(source, offset, &bytes);
            }
        }
        let reason = "neither of the two copies has a valid checksum";
        Err(source.malformed("region table", COPIES[0], reason))
    }

    fn parse(source: &Source, table: u64, bytes: &[u8]) -> Result<Regions, OpenError> {
        let count = u32_at(bytes, 8);
        if count > ENTRIES_MAX {
            let reason = format!("{count} entries, at most {ENTRIES_MAX} fit");
            return Err(source.malformed("region entry count", table + 8, reason));
        }
        let (mut bat, mut metadata, mut foreign) = (None, None, Vec::new());
        for entry in 0..index(count.into()) {
            let at = 16 + entry * 32;
            let place = table + at as u64;
            let id = guid_at(bytes, at);
            let region = Region {
                offset: u64_at(bytes, at + 16),
                bytes: u32_at(bytes, at + 24),
            };
            let required = u32_at(bytes, at + 28) & 1 != 0;
            let whole = region.offset.is_multiple_of(1 << 20)
                && region.bytes.is_multiple_of(1 << 20)
                && region.offset >= 1 << 20
                && region.bytes > 0;
            let end = region.offset.checked_add(region.bytes.into());
            if !whole || end.is_none_or(|end| end > source.length()) {
                let reason = format!(
                    "{} bytes at {} are no whole MiB inside a file of {} bytes",
                    region.bytes,
                    region.offset,
                    source.length()
                );
                return Err(source.malformed("region offset", place + 16, reason));
            }
            let known = match id {
                BAT => &mut bat,
                METADATA => &mut metadata,
                other if required => {
                    let what = format!("the required region {}", other.braced());
                    return Err(source.unsupported(what));
                }
                _ => {
                    foreign.push(region);
                    continue;
                }
            };
            if known.replace(region).is_some() {
                return Err(source.malformed("region entry", place, "the region stands twice"));
            }
        }
        let missing = |name: &str| {
            source.malformed("region table", table, format!("it names no {name} region"))
        };
        let bat = bat.ok_or_else(|| missing("BAT"))?;
        let metadata = metadata.ok_or_else(|| missing("metadata"))?;
        Ok(Regions {
            bat,
            metadata,
            foreign,
        })
    }

    /// Changes where a table, of which the first page holds the entry, says
    /// that the BAT lies.
    pub(super) fn move_bat(bytes: &mut [u8], bat: Region) {
        let count = index(u32_at(bytes, 8).into());
        let at = (0..count).map(|entry| 16 + entry * 32);
        if let Some(at) = at.into_iter().find(|at| guid_at(bytes, *at) == BAT) {
            put(bytes, at + 16, &bat.offset.to_le_bytes());
            put(bytes, at + 24, &bat.bytes.to_le_bytes());
        }
        let crc = checksum(bytes);
        put(bytes, 4, &crc.to_le_bytes());
    }

    /// A table that names `bat` and `metadata`.
    pub(super) fn emit(bat: Region, metadata: Region) -> Vec<u8> {
        let mut bytes = vec![0; TABLE_BYTES];
        put(&mut bytes, 0, b"regi");
        put(&mut bytes, 8, &2_u32.to_le_bytes()); // entry count
        for (entry, (id, region)) in [(BAT, bat), (METADATA, metadata)].into_iter().enumerate() {
            let at = 16 + entry * 32;
            put(&mut bytes, at, &id.to_bytes_le());
            put(&mut bytes, at + 16, &region.offset.to_le_bytes());
            put(&mut bytes, at + 24, &region.bytes.to_le_bytes());
            put(&mut bytes, at + 28, &1_u32.to_le_bytes()); // required
        }
        let crc = checksum(&bytes);
        put(&mut bytes, 4, &crc.to_le_bytes());
        bytes
    }
}
