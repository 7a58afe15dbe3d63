//! The partitions of a disk: a GPT (UEFI 2.10 section 5.3), an MBR with its
//! chain of logical partitions, or none.

use disk::{Disk, SharedDisk, gpt};

use crate::bytes::{array, guid, u32_at, u64_at};
use crate::{Error, Volume};

/// The partitions of a disk.
#[derive(Clone, Debug)]
pub struct Partitions {
    /// What says so.
    pub table: TableKind,
    /// By their numbers. Those that reach beyond the disk are left out.
    pub list: Vec<Partition>,
}

/// What says where partitions lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// A GUID Partition Table.
    Gpt,
    /// The copy at the end of one whose primary is damaged.
    GptCopy,
    /// A master boot record.
    Mbr,
    /// Nothing: the whole disk is the only entry, number 0.
    Bare,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// As Linux numbers it: 5 and up for the logical ones of an MBR.
    pub number: u32,
    /// Where it begins on the disk, in bytes.
    pub start: u64,
    /// Its length.
    pub size_bytes: u64,
    /// What it was made for.
    pub partition_type: PartitionType,
    /// PARTUUID, in lower case; empty for a whole disk.
    pub uuid: String,
    /// PARTLABEL, which only a GPT has.
    pub name: String,
}

/// What a partition was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartitionType {
    /// PartitionTypeGUID, in lower case.
    Guid(String),
    /// The byte of an MBR.
    Byte(u8),
    /// No table says.
    Unsaid,
}

/// As many as are looked at, like Linux does.
const MAX_PARTITIONS: usize = 256;
/// Links of the chain of logical partitions that are followed.
const MAX_LOGICAL: u32 = 128;

const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
const MBR_BYTES: usize = 512;
const RECORDS_AT: usize = 446;
const RECORD_BYTES: usize = 16;
/// OS types of a record that holds a chain of logical partitions.
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

impl Partitions {
    /// Reads a disk's table.
    pub fn read(disk: &dyn Disk) -> Result<Partitions, Error> {
        let found = gpt::read(disk).map_err(|error| match error {
            gpt::GptError::Damaged { what, offset } => Error::damaged(
                "the partition table",
                format!("{what}, at byte {offset}, and so is its copy at the disk's end"),
            ),
            gpt::GptError::Disk(error) => Error::Disk(error),
        })?;
        match found {
            Some(table) => Ok(of_gpt(disk, &table)),
            None => of_mbr(disk),
        }
    }
}

impl Partition {
    /// Its bytes on `disk`.
    pub fn volume(&self, disk: &SharedDisk) -> Volume {
        Volume::new(disk, self.start, self.size_bytes)
    }

    /// Whether it was made for the loaders of a UEFI.
    pub fn is_esp(&self) -> bool {
        match &self.partition_type {
            PartitionType::Guid(guid) => guid == ESP,
            PartitionType::Byte(byte) => *byte == 0xef,
            PartitionType::Unsaid => false,
        }
    }
}

fn of_gpt(disk: &dyn Disk, table: &gpt::Table) -> Partitions {
    let size_bytes = disk.geometry().size_bytes;
    let mut list = Vec::new();
    for (number, entry) in (1..).zip(table.entries.chunks_exact(table.entry_bytes)) {
        let type_guid: [u8; 16] = array(entry, 0).unwrap_or_default();
        if type_guid == [0; 16] {
            continue;
        }
        let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
        let blocks = last.checked_sub(first).and_then(|more| more.checked_add(1));
        let start = first.checked_mul(table.block_bytes);
        let length = blocks.and_then(|blocks| blocks.checked_mul(table.block_bytes));
        let (Some(start), Some(length)) = (start, length) else {
            continue;
        };
        if start.checked_add(length).is_none_or(|end| end > size_bytes) {
            continue;
        }
        let name: Vec<u16> = entry[56..128]
            .chunks_exact(2)
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
            .take_while(|&unit| unit != 0)
            .collect();
        list.push(Partition {
            number,
            start,
            size_bytes: length,
            partition_type: PartitionType::Guid(guid(type_guid)),
            uuid: guid(array(entry, 16).unwrap_or_default()),
            name: String::from_utf16_lossy(&name),
        });
        if list.len() == MAX_PARTITIONS {
            break;
        }
    }
    Partitions {
        table: match table.place {
            gpt::Place::Primary => TableKind::Gpt,
            gpt::Place::Backup => TableKind::GptCopy,
        },
        list,
    }
}

/// A record of an MBR that is in use; its fields are in blocks.
#[derive(Clone, Copy)]
struct Record {
    kind: u8,
    first: u64,
    blocks: u64,
}

/// The four records of a block, empty ones too; `None` where it is no MBR.
fn records(block: &[u8; MBR_BYTES]) -> Option<[Record; 4]> {
    if block[510..] != [0x55, 0xaa] {
        return None;
    }
    let mut records = [Record {
        kind: 0,
        first: 0,
        blocks: 0,
    }; 4];
    for (record, bytes) in records
        .iter_mut()
        .zip(block[RECORDS_AT..].chunks(RECORD_BYTES))
    {
        // The first sector of a file system ends with the same two bytes, but
        // has other things where the boot indicators are.
        if bytes[0] & 0x7f != 0 {
            return None;
        }
        *record = Record {
            kind: bytes[4],
            first: u64::from(u32_at(bytes, 8)),
            blocks: u64::from(u32_at(bytes, 12)),
        };
    }
    Some(records)
}

fn of_mbr(disk: &dyn Disk) -> Result<Partitions, Error> {
    let geometry = disk.geometry();
    let block_bytes = u64::from(geometry.logical_block_bytes);
    let size_bytes = geometry.size_bytes;
    let block_at = |lba: u64| -> Result<Option<[Record; 4]>, Error> {
        let mut block = [0; MBR_BYTES];
        let at = lba.saturating_mul(block_bytes);
        if at > size_bytes.saturating_sub(MBR_BYTES as u64) {
            return Ok(None);
        }
        disk.read(at, &mut block)?;
        Ok(records(&block))
    };
    let is_inside = |record: &Record| {
        let end = (record.first + record.blocks) * block_bytes;
        record.kind != 0 && record.first > 0 && record.blocks > 0 && end <= size_bytes
    };
    let primary = match size_bytes < MBR_BYTES as u64 {
        true => None,
        false => block_at(0)?,
    };
    let Some(primary) = primary.filter(|records| records.iter().any(is_inside)) else {
        return Ok(Partitions {
            table: TableKind::Bare,
            list: vec![Partition {
                number: 0,
                start: 0,
                size_bytes,
                partition_type: PartitionType::Unsaid,
                uuid: String::new(),
                name: String::new(),
            }],
        });
    };
    let mut signature = [0; 4];
    disk.read(440, &mut signature)?;
    let signature = u32::from_le_bytes(signature);
    let partition = |number: u32, record: &Record| Partition {
        number,
        start: record.first * block_bytes,
        size_bytes: record.blocks * block_bytes,
        partition_type: PartitionType::Byte(record.kind),
        uuid: format!("{signature:08x}-{number:02x}"),
        name: String::new(),
    };
    let mut list = Vec::new();
    let mut chain = None;
    for (number, record) in (1..).zip(&primary) {
        if !is_inside(record) {
            continue;
        }
        if EXTENDED.contains(&record.kind) {
            chain.get_or_insert(record.first);
        } else {
            list.push(partition(number, record));
        }
    }
    // Each link names one logical partition, counted from the link, and the
    // next link, counted from the extended partition.
    let Some(extended) = chain else {
        return Ok(Partitions {
            table: TableKind::Mbr,
            list,
        });
    };
    let mut link = extended;
    let mut number = 5;
    for _ in 0..MAX_LOGICAL {
        let Some(records) = block_at(link)? else {
            break;
        };
        let mut next = None;
        for record in &records {
            if EXTENDED.contains(&record.kind) {
                next = next.or(Some(extended + record.first));
            } else if record.kind != 0 && record.blocks > 0 {
                let moved = Record {
                    first: link + record.first,
                    ..*record
                };
                if is_inside(&moved) {
                    list.push(partition(number, &moved));
                }
                number += 1;
                break;
            }
        }
        // The other records name the next link.
        let next = next.or_else(|| {
            let mut links = records.iter().filter(|r| EXTENDED.contains(&r.kind));
            links.next().map(|record| extended + record.first)
        });
        match next {
            Some(next) if next != link && next != extended => link = next,
            _ => break,
        }
    }
    list.truncate(MAX_PARTITIONS);
    Ok(Partitions {
        table: TableKind::Mbr,
        list,
    })
}

#[cfg(test)]
mod tests;
