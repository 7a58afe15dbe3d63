//! The header of a dynamic or differencing disk (VHD 1.0, "Dynamic Disk Header
//! Format"), and where it says its parent lies.

use super::footer::{SECTOR_BYTES, checksum, field, u32_at, u64_at};
use crate::fault::Fault;

/// Length of the header.
pub(super) const HEADER_BYTES: usize = 1024;
/// Blocks of a new disk, as everybody makes them.
pub(super) const DEFAULT_BLOCK_BYTES: u32 = 2 << 20;
/// The largest block read: what VHDX allows, and many times what anybody makes.
const MAX_BLOCK_BYTES: u32 = 256 << 20;
/// How many parent locators a header has room for.
pub(super) const LOCATORS: usize = 8;

const COOKIE: &[u8; 8] = b"cxsparse";
const VERSION: u32 = 0x0001_0000;
const CHECKSUM_AT: usize = 36;
const NAME_AT: usize = 64;
const NAME_BYTES: usize = 512;
pub(super) const LOCATORS_AT: usize = 576;
pub(super) const LOCATOR_BYTES: usize = 24;

/// A dynamic disk header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Where the BAT lies.
    pub(super) bat_offset: u64,
    pub(super) max_bat_entries: u32,
    pub(super) block_bytes: u32,
    pub(super) parent_uuid: [u8; 16],
    /// When the parent's file was changed last, in seconds since 2000.
    pub(super) parent_timestamp: u32,
    /// The parent's name; no path is promised.
    pub(super) parent_name: String,
    pub(super) locators: [Locator; LOCATORS],
}

/// Where to find the path of a parent, and in whose words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Locator {
    pub(super) code: [u8; 4],
    /// Sectors, but several writers store bytes: never trusted.
    pub(super) space: u32,
    pub(super) length_bytes: u32,
    pub(super) offset: u64,
}

impl Header {
    /// Parses the 1024 bytes of a header.
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Header, Fault> {
        if !bytes.starts_with(COOKIE) {
            let reason = "a dynamic disk header begins with \"cxsparse\"";
            return Err(Fault::new("Cookie", 0, reason));
        }
        let stored = u32_at(bytes, CHECKSUM_AT);
        let computed = checksum(bytes, CHECKSUM_AT);
        if stored != computed {
            let reason = format!("it is {stored:#010x}, the bytes sum up to {computed:#010x}");
            return Err(Fault::new("Checksum", CHECKSUM_AT, reason));
        }
        let version = u32_at(bytes, 24);
        if version >> 16 != VERSION >> 16 {
            let reason = format!("it is {version:#010x}; version 1 can be read");
            return Err(Fault::new("Header Version", 24, reason));
        }
        let block_bytes = u32_at(bytes, 32);
        let least = 512;
        if !block_bytes.is_power_of_two() || !(least..=MAX_BLOCK_BYTES).contains(&block_bytes) {
            let reason = format!(
                "it is {block_bytes}; a power of two from {least} to {MAX_BLOCK_BYTES} can be"
            );
            return Err(Fault::new("Block Size", 32, reason));
        }
        let bat_offset = u64_at(bytes, 16);
        if !bat_offset.is_multiple_of(SECTOR_BYTES) {
            let reason = format!("it is {bat_offset}, no multiple of {SECTOR_BYTES}");
            return Err(Fault::new("Table Offset", 16, reason));
        }
        Ok(Header {
            bat_offset,
            max_bat_entries: u32_at(bytes, 28),
            block_bytes,
            parent_uuid: field(bytes, 40),
            parent_timestamp: u32_at(bytes, 56),
            parent_name: name(&bytes[NAME_AT..NAME_AT + NAME_BYTES], u16::from_be_bytes),
            locators: std::array::from_fn(|at| {
                let locator = &bytes[LOCATORS_AT + at * LOCATOR_BYTES..];
                Locator {
                    code: field(locator, 0),
                    space: u32_at(locator, 4),
                    length_bytes: u32_at(locator, 8),
                    offset: u64_at(locator, 16),
                }
            }),
        })
    }

    /// The header as it is written.
    pub(super) fn emit(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(COOKIE);
        bytes[8..16].fill(0xff); // data offset: nothing follows
        bytes[16..24].copy_from_slice(&self.bat_offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&VERSION.to_be_bytes());
        bytes[28..32].copy_from_slice(&self.max_bat_entries.to_be_bytes());
        bytes[32..36].copy_from_slice(&self.block_bytes.to_be_bytes());
        bytes[40..56].copy_from_slice(&self.parent_uuid);
        bytes[56..60].copy_from_slice(&self.parent_timestamp.to_be_bytes());
        let units = self.parent_name.encode_utf16().take(NAME_BYTES / 2);
        for (place, unit) in bytes[NAME_AT..].chunks_mut(2).zip(units) {
            place.copy_from_slice(&unit.to_be_bytes());
        }
        for (at, locator) in self.locators.iter().enumerate() {
            let place = &mut bytes[LOCATORS_AT + at * LOCATOR_BYTES..][..LOCATOR_BYTES];
            place[..4].copy_from_slice(&locator.code);
            place[4..8].copy_from_slice(&locator.space.to_be_bytes());
            place[8..12].copy_from_slice(&locator.length_bytes.to_be_bytes());
            place[16..24].copy_from_slice(&locator.offset.to_be_bytes());
        }
        let sum = checksum(&bytes, CHECKSUM_AT);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}

/// A name in UTF-16 up to its NUL, if it has one.
pub(super) fn name(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> String {
    let units: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|pair| unit([pair[0], pair[1]]))
        .take_while(|&unit| unit != 0)
        .collect();
    String::from_utf16_lossy(&units)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            bat_offset: 1536,
            max_bat_entries: 6,
            block_bytes: DEFAULT_BLOCK_BYTES,
            parent_uuid: [0; 16],
            parent_timestamp: 0,
            parent_name: String::new(),
            locators: [Locator::default(); LOCATORS],
        }
    }

    /// Checksums of headers by qemu-img 10.0.2.
    #[test]
    fn a_header_is_what_qemu_makes_of_the_same_disk() {
        let bytes = header().emit();
        let front = [
            &b"cxsparse"[..],
            &[0xff; 8],
            &[0, 0, 0, 0, 0, 0, 6, 0],
            &[0, 1, 0, 0, 0, 0, 0, 6, 0, 0x20, 0, 0],
            &[0xff, 0xff, 0xf4, 0x71],
        ];
        assert_eq!(bytes[..40], front.concat());
        let smaller = Header {
            max_bat_entries: 5,
            ..header()
        };
        assert_eq!(u32_at(&smaller.emit(), CHECKSUM_AT), 0xffff_f472);
        assert_eq!(Header::parse(&bytes).unwrap(), header());
    }

    #[test]
    fn a_header_keeps_its_parent() {
        let mut header = header();
        header.parent_uuid = [7; 16];
        header.parent_timestamp = 77;
        header.parent_name = "bäse.vhd".into();
        header.locators[0] = Locator {
            code: *b"W2ru",
            space: 1,
            length_bytes: 20,
            offset: 1536,
        };
        assert_eq!(Header::parse(&header.emit()).unwrap(), header);
    }

    #[test]
    fn blocks_of_no_power_of_two_are_refused() {
        for block_bytes in [0, 1, 256, 3 << 20, 512 << 20, u32::MAX] {
            let header = Header {
                block_bytes,
                ..header()
            };
            let fault = Header::parse(&header.emit()).unwrap_err();
            assert_eq!(fault.field, "Block Size", "{block_bytes}");
        }
    }
}
