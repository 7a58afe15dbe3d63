//! GUID Partition Tables (UEFI 2.10 section 5.3), read, and made to fit a disk
//! that grew.

use crate::{Disk, DiskError};

/// A GPT that is whole, as it lies on its disk.
#[derive(Clone, Debug)]
pub struct Table {
    /// The unit of every LBA in it.
    pub block_bytes: u64,
    /// Length of one entry in `entries`: 128 times a power of two.
    pub entry_bytes: usize,
    /// PartitionEntryArray.
    pub entries: Vec<u8>,
    /// Which of the two was read.
    pub place: Place,
}

/// The two places a GPT lies at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At the beginning.
    Primary,
    /// At the end: the primary is damaged.
    Backup,
}

/// Reads a disk's GPT: the primary, or its copy at the end where that is
/// damaged; `None` where the first block protects none.
pub fn read(disk: &dyn Disk) -> Result<Option<Table>, GptError> {
    let geometry = disk.geometry();
    if geometry.size_bytes < MBR_BYTES as u64 {
        return Ok(None);
    }
    let mut mbr = [0; MBR_BYTES];
    disk.read(0, &mut mbr)?;
    if !is_protected(&mbr) {
        return Ok(None);
    }
    let logical_bytes = u64::from(geometry.logical_block_bytes);
    let mut why = GptError::Damaged {
        what: "Signature of the primary header",
        offset: logical_bytes,
    };
    // The guest may have seen other blocks than the file says.
    let mut sizes = vec![logical_bytes, 512, 4096];
    sizes.dedup();
    sizes.retain(|block_bytes| geometry.size_bytes >= 6 * block_bytes);
    for place in [Place::Primary, Place::Backup] {
        for &block_bytes in &sizes {
            let lba = match place {
                Place::Primary => 1,
                Place::Backup => geometry.size_bytes / block_bytes - 1,
            };
            let mut signature = [0; 8];
            disk.read(lba * block_bytes, &mut signature)?;
            if signature != SIGNATURE {
                continue;
            }
            match Table::read(disk, block_bytes, lba, place) {
                Ok(table) => return Ok(Some(table)),
                Err(GptError::Disk(error)) => return Err(error.into()),
                // What is wrong with the primary is said.
                Err(damaged) if place == Place::Primary => why = damaged,
                Err(_) => {}
            }
        }
    }
    Err(why)
}

impl Table {
    fn read(disk: &dyn Disk, block_bytes: u64, lba: u64, place: Place) -> Result<Table, GptError> {
        let header = Header::read(disk, block_bytes, lba)?;
        Ok(Table {
            block_bytes,
            entries: header.entries(disk)?,
            entry_bytes: usize::try_from(header.u32(ENTRY_SIZE)).unwrap_or(usize::MAX),
            place,
        })
    }
}

/// What became of a disk's partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// The copy lies at the end now.
    Moved,
    /// It lay there already.
    AtTheEnd,
    /// There is no GPT: an MBR, another table, or none.
    NoGpt,
}

/// Why a partition table was left as it is.
#[derive(Debug, thiserror::Error)]
pub enum GptError {
    /// It is damaged; says where and how it is repaired.
    #[error(
        "the partition table is damaged ({what}, at byte {offset}) and was left as it is: \
         repair it with gdisk (sgdisk -v shows what is wrong), then grow the disk again"
    )]
    Damaged {
        /// The field, by the name its specification uses.
        what: &'static str,
        /// Where on the disk it lies.
        offset: u64,
    },
    /// The disk refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// Moves the copy of a GPT to the end of its disk.
///
/// A GPT keeps a copy of itself in the last blocks of its disk. When the disk
/// grows, that copy lies somewhere inside, and the table says that the space
/// behind it is none of its own. Partitions stay as they are.
///
/// Each step leaves a table that is whole: the new copy is written and flushed
/// before the primary header names it, and the old copy goes last.
pub fn follow_end(disk: &dyn Disk) -> Result<Followed, GptError> {
    let geometry = disk.geometry();
    // The guest may have seen other blocks than the file says.
    let sizes = [u64::from(geometry.logical_block_bytes), 512, 4096];
    for block_bytes in sizes {
        if geometry.size_bytes < 6 * block_bytes {
            continue;
        }
        let mut signature = [0; 8];
        disk.read(block_bytes, &mut signature)?;
        if signature == SIGNATURE {
            return move_copy(disk, block_bytes, geometry.size_bytes);
        }
    }
    let mut mbr = [0; MBR_BYTES];
    if geometry.size_bytes >= mbr.len() as u64 {
        disk.read(0, &mut mbr)?;
    }
    if protective_record(&mbr).is_some() {
        return Err(GptError::Damaged {
            what: "Signature of the primary header",
            offset: u64::from(geometry.logical_block_bytes),
        });
    }
    Ok(Followed::NoGpt)
}

const SIGNATURE: [u8; 8] = *b"EFI PART";
/// A header's size as of revision 1.0; later ones may be larger, up to a block.
const HEADER_MIN_BYTES: usize = 92;
/// Entries have 128 bytes times a power of two.
const ENTRY_MIN_BYTES: u32 = 128;
/// Largest array of entries that is handled: 64 times the usual.
const ENTRIES_MAX_BYTES: u64 = 1 << 20;
const MBR_BYTES: usize = 512;
/// The four records of an MBR.
const RECORDS_AT: usize = 446;
const RECORD_BYTES: usize = 16;
/// OS type of the record that protects a GPT.
const PROTECTIVE: u8 = 0xee;

fn move_copy(disk: &dyn Disk, block_bytes: u64, size_bytes: u64) -> Result<Followed, GptError> {
    let primary = Header::read(disk, block_bytes, 1)?;
    let entries = primary.entries(disk)?;
    let last = size_bytes / block_bytes - 1;
    match primary.alternate_lba() {
        at if at == last => return Ok(Followed::AtTheEnd),
        at if at > last || at <= primary.last_usable_lba() => {
            return Err(primary.damaged("AlternateLBA", ALTERNATE_LBA));
        }
        _ => {}
    }
    let entry_blocks = (entries.len() as u64).div_ceil(block_bytes);
    let copy_lba = last - entry_blocks;
    if copy_lba <= primary.last_usable_lba() {
        // Less than the copy was added: there is no room behind the partitions.
        return Err(primary.damaged("LastUsableLBA", LAST_USABLE_LBA));
    }
    let old_lba = primary.alternate_lba();

    let mut backup = primary.clone();
    backup.put_u64(MY_LBA, last);
    backup.put_u64(ALTERNATE_LBA, 1);
    backup.put_u64(LAST_USABLE_LBA, copy_lba - 1);
    backup.put_u64(ENTRY_LBA, copy_lba);
    backup.seal();
    let mut padded = entries;
    padded.resize(usize::try_from(entry_blocks * block_bytes).unwrap_or(0), 0);
    disk.write(copy_lba * block_bytes, &padded)?;
    disk.write(last * block_bytes, &backup.block)?;
    disk.flush()?;

    let mut moved = primary;
    moved.put_u64(ALTERNATE_LBA, last);
    moved.put_u64(LAST_USABLE_LBA, copy_lba - 1);
    moved.seal();
    disk.write(block_bytes, &moved.block)?;
    disk.flush()?;

    protect(disk, last)?;
    // What is not at the end is no copy any more; nobody should find it. Where
    // little was added, the new copy lies over it.
    let mut old = [0; 8];
    disk.read(old_lba * block_bytes, &mut old)?;
    if old == SIGNATURE && old_lba < copy_lba {
        disk.write(old_lba * block_bytes, &vec![0; moved.block.len()])?;
    }
    disk.flush()?;
    Ok(Followed::Moved)
}

/// Lets the protective MBR cover the disk as it is now. A hybrid one, which
/// names partitions besides, is its maker's.
fn protect(disk: &dyn Disk, last_lba: u64) -> Result<(), DiskError> {
    let mut mbr = [0; MBR_BYTES];
    disk.read(0, &mut mbr)?;
    if let Some(at) = protective_record(&mbr) {
        // SizeInLBA: all but the MBR itself, as far as 32 bits go.
        let blocks = u32::try_from(last_lba).unwrap_or(u32::MAX);
        mbr[at + 12..at + 16].copy_from_slice(&blocks.to_le_bytes());
        disk.write(0, &mbr)?;
    }
    Ok(())
}

/// Where the only record of a protective MBR lies.
fn protective_record(mbr: &[u8; MBR_BYTES]) -> Option<usize> {
    if mbr[510..] != [0x55, 0xaa] {
        return None;
    }
    let records = (0..4).map(|record| RECORDS_AT + record * RECORD_BYTES);
    let mut used = records.filter(|at| mbr[at + 4] != 0);
    let only = used.next()?;
    (used.next().is_none() && mbr[only + 4] == PROTECTIVE).then_some(only)
}

/// Whether a record, perhaps of a hybrid MBR, protects a GPT.
fn is_protected(mbr: &[u8; MBR_BYTES]) -> bool {
    let mut records = (0..4).map(|record| RECORDS_AT + record * RECORD_BYTES);
    mbr[510..] == [0x55, 0xaa] && records.any(|at| mbr[at + 4] == PROTECTIVE)
}

/// Fields of a header, by where they lie in its block.
const HEADER_SIZE: usize = 12;
const HEADER_CRC32: usize = 16;
const MY_LBA: usize = 24;
const ALTERNATE_LBA: usize = 32;
const FIRST_USABLE_LBA: usize = 40;
const LAST_USABLE_LBA: usize = 48;
const ENTRY_LBA: usize = 72;
const ENTRY_COUNT: usize = 80;
const ENTRY_SIZE: usize = 84;
const ENTRIES_CRC32: usize = 88;

/// A header that was checked, with the block it fills.
#[derive(Clone)]
struct Header {
    block: Vec<u8>,
    lba: u64,
}

impl Header {
    fn read(disk: &dyn Disk, block_bytes: u64, lba: u64) -> Result<Header, GptError> {
        let mut block = vec![0; usize::try_from(block_bytes).unwrap_or(0)];
        disk.read(lba * block_bytes, &mut block)?;
        let header = Header { block, lba };
        let size = header.size();
        if !(HEADER_MIN_BYTES..=header.block.len()).contains(&size) {
            return Err(header.damaged("HeaderSize", HEADER_SIZE));
        }
        if header.u32(HEADER_CRC32) != header.crc32() {
            return Err(header.damaged("HeaderCRC32", HEADER_CRC32));
        }
        if header.u64(MY_LBA) != lba {
            return Err(header.damaged("MyLBA", MY_LBA));
        }
        if header.u64(FIRST_USABLE_LBA) > header.last_usable_lba() {
            return Err(header.damaged("FirstUsableLBA", FIRST_USABLE_LBA));
        }
        Ok(header)
    }

    /// The array of entries it names.
    fn entries(&self, disk: &dyn Disk) -> Result<Vec<u8>, GptError> {
        let (count, size) = (self.u32(ENTRY_COUNT), self.u32(ENTRY_SIZE));
        let bytes = u64::from(count) * u64::from(size);
        let is_size = size >= ENTRY_MIN_BYTES && (size / ENTRY_MIN_BYTES).is_power_of_two();
        if !is_size || !size.is_multiple_of(ENTRY_MIN_BYTES) || bytes > ENTRIES_MAX_BYTES {
            return Err(self.damaged("SizeOfPartitionEntry", ENTRY_SIZE));
        }
        let block_bytes = self.block.len() as u64;
        let blocks = bytes.div_ceil(block_bytes);
        let first = self.u64(ENTRY_LBA);
        let end = first.checked_add(blocks);
        let (after, before) = match self.lba {
            1 => (1, self.u64(FIRST_USABLE_LBA)),
            copy => (self.last_usable_lba(), copy),
        };
        if first <= after || end.is_none_or(|end| end > before) {
            return Err(self.damaged("PartitionEntryLBA", ENTRY_LBA));
        }
        let mut entries = vec![0; usize::try_from(bytes).unwrap_or(0)];
        let at = first.saturating_mul(block_bytes);
        disk.read(at, &mut entries)?;
        if crc32(&entries) != self.u32(ENTRIES_CRC32) {
            return Err(self.damaged("PartitionEntryArrayCRC32", ENTRIES_CRC32));
        }
        Ok(entries)
    }

    fn alternate_lba(&self) -> u64 {
        self.u64(ALTERNATE_LBA)
    }

    fn last_usable_lba(&self) -> u64 {
        self.u64(LAST_USABLE_LBA)
    }

    fn size(&self) -> usize {
        usize::try_from(self.u32(HEADER_SIZE)).unwrap_or(usize::MAX)
    }

    /// Of the header with zeros where it will stand.
    fn crc32(&self) -> u32 {
        let mut header = self.block[..self.size()].to_vec();
        header[HEADER_CRC32..HEADER_CRC32 + 4].fill(0);
        crc32(&header)
    }

    fn seal(&mut self) {
        let crc32 = self.crc32();
        self.block[HEADER_CRC32..HEADER_CRC32 + 4].copy_from_slice(&crc32.to_le_bytes());
    }

    fn put_u64(&mut self, at: usize, value: u64) {
        self.block[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn u32(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.block[at..at + 4]);
        u32::from_le_bytes(bytes)
    }

    fn u64(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.block[at..at + 8]);
        u64::from_le_bytes(bytes)
    }

    fn damaged(&self, what: &'static str, field: usize) -> GptError {
        GptError::Damaged {
            what,
            offset: self.lba * self.block.len() as u64 + field as u64,
        }
    }
}

/// CRC-32 as in IEEE 802.3 and zip: reflected, polynomial 0x04C11DB7.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    };
    !bytes.iter().fold(u32::MAX, step)
}

#[cfg(test)]
mod tests;
