//! The footer of a VHD (VHD 1.0, "Hard Disk Footer Format").
//!
//! 512 bytes at the end of the file, and once more at its front where the disk
//! is dynamic or differencing. Writers before 2004 left out the last byte.

use std::fmt;

use crate::fault::Fault;

/// Length of a footer.
pub(super) const FOOTER_BYTES: usize = 512;
/// Length of a footer of old writers.
pub(super) const OLD_FOOTER_BYTES: usize = 511;
/// The unit of everything in a VHD.
pub(super) const SECTOR_BYTES: u64 = 512;
/// The largest disk: what every reader takes (spec: 2 TiB and no more than a
/// BAT of sectors can address).
pub(super) const MAX_SIZE_BYTES: u64 = 2040 << 30;
/// 2000-01-01 00:00:00 UTC, in Unix seconds: zero of a VHD's clock.
pub(super) const EPOCH_SECONDS: u64 = 946_684_800;

const COOKIE: &[u8; 8] = b"conectix";
/// Only the reserved bit, which is always set.
const FEATURES: u32 = 2;
const VERSION: u32 = 0x0001_0000;
const CHECKSUM_AT: usize = 64;
/// qemu and Hyper-V take the current size of what bears this tag, not the
/// geometry.
const CREATOR: [u8; 4] = *b"win ";
/// Windows 7, as `CREATOR` writes it.
const CREATOR_VERSION: u32 = 0x0006_0001;
const CREATOR_OS: [u8; 4] = *b"Wi2k";

/// What kind of disk a file holds (footer field "Disk Type").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Raw bytes, then the footer.
    Fixed,
    /// Blocks, allocated as they are written.
    Dynamic,
    /// Blocks above a parent.
    Differencing,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Fixed => "fixed",
            Kind::Dynamic => "dynamic",
            Kind::Differencing => "differencing",
        })
    }
}

/// Cylinders, heads and sectors per track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chs {
    pub(super) cylinders: u16,
    pub(super) heads: u8,
    pub(super) sectors: u8,
}

impl Chs {
    /// The largest there is; says nothing about the size.
    const MAX: Chs = Chs {
        cylinders: 65535,
        heads: 16,
        sectors: 255,
    };

    /// The geometry of a disk (VHD 1.0, "CHS Calculation").
    pub(super) fn of(size_bytes: u64) -> Chs {
        let total = (size_bytes / SECTOR_BYTES).min(65535 * 16 * 255);
        let (mut sectors, mut heads, mut tracks);
        if total >= 65535 * 16 * 63 {
            (sectors, heads) = (255, 16);
            tracks = total / sectors;
        } else {
            sectors = 17;
            tracks = total / sectors;
            heads = tracks.div_ceil(1024).max(4);
            if tracks >= heads * 1024 || heads > 16 {
                (sectors, heads) = (31, 16);
                tracks = total / sectors;
            }
            if tracks >= heads * 1024 {
                (sectors, heads) = (63, 16);
                tracks = total / sectors;
            }
        }
        Chs {
            cylinders: u16::try_from(tracks / heads).unwrap_or(u16::MAX),
            heads: u8::try_from(heads).unwrap_or(16),
            sectors: u8::try_from(sectors).unwrap_or(255),
        }
    }

    fn size_bytes(self) -> u64 {
        let tracks = u64::from(self.cylinders) * u64::from(self.heads);
        tracks * u64::from(self.sectors) * SECTOR_BYTES
    }
}

/// A footer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) features: u32,
    /// Where the dynamic header lies; all ones for a fixed disk.
    pub(super) data_offset: u64,
    /// Seconds since 2000.
    pub(super) timestamp: u32,
    pub(super) creator: [u8; 4],
    pub(super) creator_version: u32,
    pub(super) creator_os: [u8; 4],
    pub(super) original_bytes: u64,
    pub(super) current_bytes: u64,
    pub(super) chs: Chs,
    pub(super) kind: Kind,
    pub(super) uuid: [u8; 16],
    pub(super) saved_state: u8,
}

impl Footer {
    /// The footer of a new disk.
    pub(super) fn new(kind: Kind, size_bytes: u64, timestamp: u32, uuid: [u8; 16]) -> Footer {
        Footer {
            features: FEATURES,
            data_offset: match kind {
                Kind::Fixed => u64::MAX,
                Kind::Dynamic | Kind::Differencing => FOOTER_BYTES as u64,
            },
            timestamp,
            creator: CREATOR,
            creator_version: CREATOR_VERSION,
            creator_os: CREATOR_OS,
            original_bytes: size_bytes,
            current_bytes: size_bytes,
            chs: Chs::of(size_bytes),
            kind,
            uuid,
            saved_state: 0,
        }
    }

    /// Parses a footer of 512 bytes, or of 511.
    pub(super) fn parse(bytes: &[u8]) -> Result<Footer, Fault> {
        let mut whole = [0; FOOTER_BYTES];
        let length = bytes.len().min(FOOTER_BYTES);
        whole[..length].copy_from_slice(&bytes[..length]);
        let bytes = &whole;
        if !bytes.starts_with(COOKIE) {
            return Err(Fault::new("Cookie", 0, "a footer begins with \"conectix\""));
        }
        let stored = u32_at(bytes, CHECKSUM_AT);
        let computed = checksum(bytes, CHECKSUM_AT);
        if stored != computed {
            let reason = format!("it is {stored:#010x}, the bytes sum up to {computed:#010x}");
            return Err(Fault::new("Checksum", CHECKSUM_AT, reason));
        }
        let version = u32_at(bytes, 12);
        if version >> 16 != VERSION >> 16 {
            let reason = format!("it is {version:#010x}; version 1 can be read");
            return Err(Fault::new("File Format Version", 12, reason));
        }
        let kind = match u32_at(bytes, 60) {
            2 => Kind::Fixed,
            3 => Kind::Dynamic,
            4 => Kind::Differencing,
            other => {
                let reason = format!("it is {other}; 2, 3 and 4 mean something");
                return Err(Fault::new("Disk Type", 60, reason));
            }
        };
        Ok(Footer {
            features: u32_at(bytes, 8),
            data_offset: u64_at(bytes, 16),
            timestamp: u32_at(bytes, 24),
            creator: field(bytes, 28),
            creator_version: u32_at(bytes, 32),
            creator_os: field(bytes, 36),
            original_bytes: u64_at(bytes, 40),
            current_bytes: u64_at(bytes, 48),
            chs: Chs {
                cylinders: u16::from_be_bytes(field(bytes, 56)),
                heads: bytes[58],
                sectors: bytes[59],
            },
            kind,
            uuid: field(bytes, 68),
            saved_state: bytes[84],
        })
    }

    /// The footer as it is written.
    pub(super) fn emit(&self) -> [u8; FOOTER_BYTES] {
        let mut bytes = [0; FOOTER_BYTES];
        let kind: u32 = match self.kind {
            Kind::Fixed => 2,
            Kind::Dynamic => 3,
            Kind::Differencing => 4,
        };
        bytes[..8].copy_from_slice(COOKIE);
        bytes[8..12].copy_from_slice(&self.features.to_be_bytes());
        bytes[12..16].copy_from_slice(&VERSION.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.data_offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.timestamp.to_be_bytes());
        bytes[28..32].copy_from_slice(&self.creator);
        bytes[32..36].copy_from_slice(&self.creator_version.to_be_bytes());
        bytes[36..40].copy_from_slice(&self.creator_os);
        bytes[40..48].copy_from_slice(&self.original_bytes.to_be_bytes());
        bytes[48..56].copy_from_slice(&self.current_bytes.to_be_bytes());
        bytes[56..58].copy_from_slice(&self.chs.cylinders.to_be_bytes());
        bytes[58] = self.chs.heads;
        bytes[59] = self.chs.sectors;
        bytes[60..64].copy_from_slice(&kind.to_be_bytes());
        bytes[68..84].copy_from_slice(&self.uuid);
        bytes[84] = self.saved_state;
        let sum = checksum(&bytes, CHECKSUM_AT);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// The size a guest sees. Virtual PC and qemu (by default) make it of the
    /// geometry, unless that is at its limit; everybody else writes it down.
    pub(super) fn size_bytes(&self) -> u64 {
        let by_geometry = [*b"vpc ", *b"qemu"].contains(&self.creator);
        match by_geometry && self.chs != Chs::MAX {
            true => self.chs.size_bytes(),
            false => self.current_bytes,
        }
    }
}

/// The checksum of a footer or a dynamic header: the ones' complement of the
/// sum of its bytes, but for the checksum's own.
pub(super) fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|&b| u32::from(b)).sum::<u32>();
    !(sum(bytes) - sum(&bytes[at..at + 4]))
}

/// A field of fixed length.
pub(super) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(field(bytes, at))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(field(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fixed disk of 10 MiB by qemu-img 10.0.2, up to the UUID's end.
    const QEMU_FIXED: &str = "636f6e6563746978 00000002 00010000 ffffffffffffffff \
        3295733d 71656d75 00050003 5769326b 0000000000a07000 0000000000a07000 \
        012e0411 00000002 ffffe70c 341050 9d853240438f334078f0b178a3";

    fn vector() -> Vec<u8> {
        let digits: Vec<u8> = QEMU_FIXED
            .chars()
            .filter_map(|c| c.to_digit(16))
            .map(|d| u8::try_from(d).unwrap())
            .collect();
        let mut bytes: Vec<u8> = digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect();
        bytes.resize(FOOTER_BYTES, 0);
        bytes
    }

    #[test]
    fn a_footer_of_qemu_is_read_and_written_the_same() {
        let footer = Footer::parse(&vector()).unwrap();
        assert_eq!(footer.kind, Kind::Fixed);
        assert_eq!(footer.size_bytes(), 10_514_432);
        assert_eq!(footer.data_offset, u64::MAX);
        assert_eq!(footer.emit()[..], vector());
    }

    #[test]
    fn any_turned_bit_of_a_footer_is_noticed() {
        let bytes = vector();
        for at in 0..85 {
            let mut turned = bytes.clone();
            turned[at] ^= 1;
            assert!(Footer::parse(&turned).is_err(), "byte {at}");
        }
    }

    #[test]
    fn an_old_footer_lacks_its_last_byte() {
        let footer = Footer::parse(&vector()[..OLD_FOOTER_BYTES]).unwrap();
        assert_eq!(footer.size_bytes(), 10_514_432);
    }

    /// Sizes and geometries as qemu-img 10.0.2 makes them.
    #[test]
    fn geometry_is_the_specifications() {
        for (size_bytes, cylinders, heads, sectors) in [
            (1_079_296, 31, 4, 17),
            (10_514_432, 302, 4, 17),
            (104_865_792, 1004, 12, 17),
            (133_171_200, 1020, 15, 17),
            (524_353_536, 1016, 16, 63),
            (1_073_995_776, 2081, 16, 63),
            (21_475_270_656, 41611, 16, 63),
            (136_365_219_840, 65279, 16, 255),
            (150_323_855_360, 65535, 16, 255),
        ] {
            let chs = Chs {
                cylinders,
                heads,
                sectors,
            };
            assert_eq!(Chs::of(size_bytes), chs, "{size_bytes}");
        }
    }

    #[test]
    fn the_size_is_the_geometrys_only_for_who_means_it() {
        let size_bytes = 10 << 20; // no multiple of a cylinder
        let mut footer = Footer::new(Kind::Dynamic, size_bytes, 0, [0; 16]);
        assert_eq!(footer.size_bytes(), size_bytes);
        for creator in [*b"vpc ", *b"qemu"] {
            footer.creator = creator;
            assert_eq!(footer.size_bytes(), footer.chs.size_bytes());
            assert!(footer.size_bytes() < size_bytes);
        }
        footer.chs = Chs::MAX;
        assert_eq!(footer.size_bytes(), size_bytes);
        footer.creator = *b"qem2";
        assert_eq!(footer.size_bytes(), size_bytes);
    }
}
