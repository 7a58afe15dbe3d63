//! The header of a qcow2 file and its extensions.

use crate::fault::Fault;

/// "QFI\xfb".
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Header of version 3 without the compression type: what we write.
pub(super) const HEADER_BYTES: usize = 104;

/// Length of a version 2 header.
const OLD_HEADER_BYTES: usize = 72;

/// Cluster sizes that qemu allows: 512 bytes to 2 MiB.
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// Longest backing file name.
const NAME_MAX_BYTES: usize = 1023;

/// Largest first-level table, as qemu has it.
const L1_MAX_ENTRIES: u64 = (32 << 20) / 8;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xE279_2ACA;

/// Incompatible features we may meet.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// What a header says, as far as a reader must know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    pub(super) size_bytes: u64,
    pub(super) l1_offset: u64,
    /// As many as the size needs.
    pub(super) l1_entries: u64,
    pub(super) snapshots: u32,
    /// Its refcounts may be wrong; nothing a reader looks at.
    pub(super) is_dirty: bool,
    pub(super) backing: Option<Backing>,
}

/// What lies below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Backing {
    pub(super) name: String,
    /// As qemu names it, where the file says it.
    pub(super) format: Option<String>,
}

/// Why a header was refused.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It says what cannot be.
    Fault(Fault),
    /// It is right, and of a kind that is not read here: what it is.
    Foreign(&'static str),
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Refusal {
        Refusal::Fault(fault)
    }
}

impl Header {
    /// Reads the first cluster of a file, or as much of it as there is.
    pub(super) fn parse(bytes: &[u8]) -> Result<Header, Refusal> {
        let fields = Fields(bytes);
        if bytes.get(..4) != Some(&MAGIC) {
            return Err(Fault::new("magic", 0, "is no \"QFI\\xfb\"").into());
        }
        let version = fields.word("version", 4)?;
        match version {
            2 | 3 => {}
            1 => return Err(Refusal::Foreign("a qcow file of version 1")),
            _ => return Err(Fault::new("version", 4, format!("{version} is unknown")).into()),
        }
        let backing_offset = fields.long("backing_file_offset", 8)?;
        let backing_bytes = fields.word("backing_file_size", 16)?;
        let cluster_bits = fields.word("cluster_bits", 20)?;
        if !CLUSTER_BITS.contains(&cluster_bits) {
            let reason = format!("{cluster_bits}, which is not between 9 and 21");
            return Err(Fault::new("cluster_bits", 20, reason).into());
        }
        let size_bytes = fields.long("size", 24)?;
        if size_bytes == 0 || !size_bytes.is_multiple_of(512) || i64::try_from(size_bytes).is_err()
        {
            let reason = format!("a disk of {size_bytes} bytes; it must be in sectors of 512");
            return Err(Fault::new("size", 24, reason).into());
        }
        if fields.word("crypt_method", 32)? != 0 {
            return Err(Refusal::Foreign("an encrypted qcow2 file"));
        }
        let l1_said = u64::from(fields.word("l1_size", 36)?);
        let l1_offset = fields.long("l1_table_offset", 40)?;
        let snapshots = fields.word("nb_snapshots", 60)?;
        let (mut incompatible, mut header_bytes) = (0, OLD_HEADER_BYTES);
        if version == 3 {
            incompatible = fields.long("incompatible_features", 72)?;
            let length = fields.word("header_length", 100)?;
            header_bytes = usize::try_from(length).unwrap_or(usize::MAX);
            if header_bytes < HEADER_BYTES || header_bytes > bytes.len() {
                let reason = format!("{length}, which is too short or leaves the first cluster");
                return Err(Fault::new("header_length", 100, reason).into());
            }
        }
        is_plain(incompatible)?;
        if incompatible & COMPRESSION_TYPE != 0 && bytes.get(104) != Some(&0) {
            return Err(Refusal::Foreign("a qcow2 file compressed with zstd"));
        }
        let header = Header {
            version,
            cluster_bits,
            size_bytes,
            l1_offset,
            l1_entries: l1_entries(size_bytes, cluster_bits),
            snapshots,
            is_dirty: incompatible & DIRTY != 0,
            backing: backing(fields, backing_offset, backing_bytes, header_bytes)?,
        };
        let needed = header.l1_entries;
        if needed > L1_MAX_ENTRIES || needed > l1_said {
            let reason = format!(
                "{l1_said} entries; a disk of {size_bytes} bytes needs {needed}, \
                 and {L1_MAX_ENTRIES} are the most"
            );
            return Err(Fault::new("l1_size", 36, reason).into());
        }
        if !l1_offset.is_multiple_of(header.cluster_bytes()) {
            let reason = format!("{l1_offset} is not where a cluster begins");
            return Err(Fault::new("l1_table_offset", 40, reason).into());
        }
        Ok(header)
    }

    pub(super) fn cluster_bytes(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Entries of a second-level table.
    pub(super) fn l2_entries(&self) -> u64 {
        self.cluster_bytes() / 8
    }
}

/// First-level entries a disk needs.
pub(super) fn l1_entries(size_bytes: u64, cluster_bits: u32) -> u64 {
    size_bytes.div_ceil(1 << (2 * cluster_bits - 3))
}

/// Refuses features that change where data lies.
fn is_plain(incompatible: u64) -> Result<(), Refusal> {
    for (bit, what) in [
        (CORRUPT, "a qcow2 file marked as corrupt"),
        (EXTERNAL_DATA, "a qcow2 file whose data lies in another one"),
        (EXTENDED_L2, "a qcow2 file with extended L2 entries"),
    ] {
        if incompatible & bit != 0 {
            return Err(Refusal::Foreign(what));
        }
    }
    if incompatible & !(DIRTY | COMPRESSION_TYPE) != 0 {
        return Err(Refusal::Foreign("a qcow2 file with features unknown here"));
    }
    Ok(())
}

/// The backing file's name, and its format from the extensions.
fn backing(
    fields: Fields<'_>,
    offset: u64,
    bytes: u32,
    header_bytes: usize,
) -> Result<Option<Backing>, Fault> {
    if offset == 0 {
        return Ok(None);
    }
    let outside = |reason: String| Fault::new("backing_file_offset", 8, reason);
    let length = usize::try_from(bytes).unwrap_or(usize::MAX);
    if length > NAME_MAX_BYTES {
        return Err(Fault::new(
            "backing_file_size",
            16,
            format!("{bytes}, and {NAME_MAX_BYTES} are the most"),
        ));
    }
    let name = usize::try_from(offset)
        .ok()
        .and_then(|start| fields.0.get(start..start.checked_add(length)?))
        .ok_or_else(|| outside(format!("{offset}+{bytes} leaves the first cluster")))?;
    let name = std::str::from_utf8(name)
        .map_err(|_| outside("the name there is not UTF-8".to_owned()))?
        .to_owned();

    let mut format = None;
    let mut at = header_bytes;
    // Extensions end before the name at the latest.
    let end = usize::try_from(offset).unwrap_or(usize::MAX);
    while at.saturating_add(8) <= end {
        let kind = fields.word("header extension", at)?;
        let length = fields.word("header extension", at + 4)?;
        if kind == EXTENSION_END {
            break;
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let data = (at + 8)
            .checked_add(length)
            .and_then(|end| fields.0.get(at + 8..end));
        let Some(data) = data else {
            let reason = format!("{length} bytes long: leaves the first cluster");
            return Err(Fault::new("header extension", at, reason));
        };
        if kind == EXTENSION_BACKING_FORMAT {
            format = Some(String::from_utf8_lossy(data).into_owned());
        }
        at += 8 + length.next_multiple_of(8);
    }
    Ok(Some(Backing { name, format }))
}

/// Big-endian fields of the first cluster.
#[derive(Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn word(self, field: &'static str, at: usize) -> Result<u32, Fault> {
        let bytes = self.0.get(at..at.saturating_add(4));
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(u32::from_be_bytes)
            .ok_or_else(|| cut_off(field, at))
    }

    fn long(self, field: &'static str, at: usize) -> Result<u64, Fault> {
        let bytes = self.0.get(at..at.saturating_add(8));
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes
            .map(u64::from_be_bytes)
            .ok_or_else(|| cut_off(field, at))
    }
}

fn cut_off(field: &'static str, at: usize) -> Fault {
    Fault::new(field, at, "the file ends before it")
}

/// A header of version 3 as we write it.
pub(super) struct NewHeader {
    pub(super) cluster_bits: u32,
    pub(super) size_bytes: u64,
    pub(super) l1_offset: u64,
    pub(super) l1_entries: u32,
    pub(super) refcount_table_offset: u64,
    pub(super) refcount_table_clusters: u32,
}

impl NewHeader {
    /// Its bytes, with the end of the (absent) extensions.
    pub(super) fn emit(&self) -> [u8; HEADER_BYTES + 8] {
        let mut bytes = [0; HEADER_BYTES + 8];
        let mut put = |at: usize, field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
        };
        put(0, &MAGIC);
        put(4, &3_u32.to_be_bytes());
        put(20, &self.cluster_bits.to_be_bytes());
        put(24, &self.size_bytes.to_be_bytes());
        put(36, &self.l1_entries.to_be_bytes());
        put(40, &self.l1_offset.to_be_bytes());
        put(48, &self.refcount_table_offset.to_be_bytes());
        put(56, &self.refcount_table_clusters.to_be_bytes());
        put(96, &4_u32.to_be_bytes()); // refcount_order: 16 bits
        put(100, &104_u32.to_be_bytes()); // header_length
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let header = NewHeader {
            cluster_bits: 16,
            size_bytes: 10 << 20,
            l1_offset: 3 << 16,
            l1_entries: 1,
            refcount_table_offset: 1 << 16,
            refcount_table_clusters: 1,
        };
        let mut bytes = header.emit().to_vec();
        bytes.resize(1 << 16, 0);
        bytes
    }

    #[test]
    fn what_we_write_reads_back() {
        let header = Header::parse(&sample()).unwrap();
        assert_eq!(
            (header.version, header.cluster_bits, header.size_bytes),
            (3, 16, 10 << 20)
        );
        assert_eq!((header.l1_offset, header.l1_entries), (3 << 16, 1));
        assert_eq!(header.backing, None);
    }

    #[test]
    fn a_field_that_cannot_be_is_named_with_its_offset() {
        for (at, bytes, field) in [
            (4, &9_u32.to_be_bytes()[..], "version"),
            (20, &40_u32.to_be_bytes()[..], "cluster_bits"),
            (24, &513_u64.to_be_bytes()[..], "size"),
            (24, &0_u64.to_be_bytes()[..], "size"),
            (24, &u64::MAX.to_be_bytes()[..], "size"),
            (24, &(1_u64 << 60).to_be_bytes()[..], "l1_size"),
            (36, &0_u32.to_be_bytes()[..], "l1_size"),
            (40, &5_u64.to_be_bytes()[..], "l1_table_offset"),
            (100, &8_u32.to_be_bytes()[..], "header_length"),
            (100, &u32::MAX.to_be_bytes()[..], "header_length"),
            (8, &u64::MAX.to_be_bytes()[..], "backing_file_offset"),
        ] {
            let mut header = sample();
            header[at..at + bytes.len()].copy_from_slice(bytes);
            let Err(Refusal::Fault(fault)) = Header::parse(&header) else {
                panic!("{field} was believed");
            };
            assert_eq!(fault.field, field);
        }
    }

    #[test]
    fn features_that_change_where_data_lies_are_refused() {
        for (bits, what) in [
            (CORRUPT, "corrupt"),
            (EXTERNAL_DATA, "another"),
            (EXTENDED_L2, "extended"),
            (1 << 9, "unknown"),
        ] {
            let mut header = sample();
            header[72..80].copy_from_slice(&bits.to_be_bytes());
            let Err(Refusal::Foreign(said)) = Header::parse(&header) else {
                panic!("{what} was read");
            };
            assert!(said.contains(what), "{said}");
        }
    }

    #[test]
    fn a_header_that_is_cut_off_is_refused_at_any_length() {
        let header = sample();
        for length in 0..HEADER_BYTES {
            assert!(Header::parse(&header[..length]).is_err(), "{length}");
        }
    }
}
