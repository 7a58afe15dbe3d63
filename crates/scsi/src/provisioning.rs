//! Giving space back: UNMAP's list, the limits of WRITE SAME, and what GET LBA
//! STATUS tells (SBC-3 sections 4.7, 5.9, 5.28 and 5.42).

use disk::{Allocation, Disk, DiskError, Extent};

use crate::{Sense, truncated};

/// Most blocks one UNMAP names.
pub(crate) const MAX_UNMAP_BLOCKS: u32 = 1 << 20;
/// Most ranges one UNMAP names.
pub(crate) const MAX_UNMAP_DESCRIPTORS: u32 = 256;
/// Longest parameter list of UNMAP: a header of 8 bytes, and 16 a range.
pub(crate) const MAX_UNMAP_LIST_BYTES: u16 = 8 + 256 * 16;
/// Most bytes one WRITE SAME fills when every one of them must be written.
const MAX_WRITE_SAME_BYTES: u64 = 64 << 20;
/// The same where zeros cost nothing.
const MAX_THIN_WRITE_SAME_BYTES: u64 = 2 << 30;

/// What the counts of space are in: a threshold set.
pub(crate) const THRESHOLD_SET_BYTES: u64 = 1 << 20;

/// THRESHOLD EXPONENT: blocks of a threshold set, as a power of two.
pub(crate) fn threshold_exponent(block_bytes: u32) -> u8 {
    let blocks = THRESHOLD_SET_BYTES / u64::from(block_bytes);
    u8::try_from(blocks.max(1).ilog2()).unwrap_or(0)
}

/// Initiators are warned when less than a tenth of a unit's size is left.
pub(crate) fn low_space_bytes(size_bytes: u64) -> u64 {
    size_bytes / 10
}

/// MAXIMUM WRITE SAME LENGTH in blocks.
pub(crate) fn max_write_same_blocks(is_thin: bool, block_bytes: u32) -> u64 {
    let bytes = if is_thin {
        MAX_THIN_WRITE_SAME_BYTES
    } else {
        MAX_WRITE_SAME_BYTES
    };
    bytes / u64::from(block_bytes)
}

/// One range of UNMAP's parameter list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnmapRange {
    pub(crate) lba: u64,
    pub(crate) count: u32,
}

/// Parses UNMAP's parameter list; every range lies on the disk.
pub(crate) fn parse_unmap(list: &[u8], block_count: u64) -> Result<Vec<UnmapRange>, Sense> {
    if list.is_empty() {
        return Ok(vec![]);
    }
    let Some((head, descriptors)) = list.split_at_checked(8) else {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    };
    let descriptor_bytes = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let descriptors = &descriptors[..descriptor_bytes.min(descriptors.len())];
    let (descriptors, _partial) = descriptors.as_chunks::<16>();
    if descriptors.len() > MAX_UNMAP_DESCRIPTORS as usize {
        return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST);
    }
    let mut ranges = Vec::with_capacity(descriptors.len());
    let mut total = 0u64;
    for descriptor in descriptors {
        let [lba @ .., _, _, _, _] = *descriptor;
        let [a, b, c, d, e, f, g, h, i, j, k, l] = lba;
        let range = UnmapRange {
            lba: u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            count: u32::from_be_bytes([i, j, k, l]),
        };
        total += u64::from(range.count);
        if total > u64::from(MAX_UNMAP_BLOCKS) {
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST);
        }
        let fits = range.lba <= block_count && u64::from(range.count) <= block_count - range.lba;
        if !fits {
            return Err(Sense::LBA_OUT_OF_RANGE);
        }
        ranges.push(range);
    }
    Ok(ranges)
}

/// Most stretches of a disk that one GET LBA STATUS looks at.
const MAX_EXTENTS: usize = 4096;
/// The longest of them: a disk over another walks its marks before it asks
/// the one below, each time.
const MAX_EXTENT_BYTES: u64 = 1 << 30;

/// The data of GET LBA STATUS from `lba` on: stretches that differ from their
/// neighbours, as many as there is room for, at least one.
pub(crate) fn lba_status(
    disk: &dyn Disk,
    is_thin: bool,
    lba: u64,
    allocation: u32,
) -> Result<Vec<u8>, DiskError> {
    let geometry = disk.geometry();
    let block_bytes = u64::from(geometry.logical_block_bytes);
    let room = usize::try_from(allocation.saturating_sub(8) / 16).unwrap_or(usize::MAX);
    let mut found: Vec<(u64, u64, Allocation)> = Vec::new(); // offset, bytes
    let mut offset = lba * block_bytes;
    for _ in 0..MAX_EXTENTS {
        let left = geometry.size_bytes - offset;
        if left == 0 {
            break;
        }
        let extent = match is_thin {
            true => disk.extent(offset, left.min(MAX_EXTENT_BYTES))?,
            false => Extent {
                bytes: left,
                allocation: Allocation::Mapped,
            },
        };
        // A block of which something is stored is mapped.
        let whole = extent.bytes - extent.bytes % block_bytes;
        let (bytes, state) = match extent.allocation {
            Allocation::Deallocated if whole > 0 => (whole, Allocation::Deallocated),
            _ => (
                extent.bytes.next_multiple_of(block_bytes),
                Allocation::Mapped,
            ),
        };
        let is_full = found.len() > room;
        match found.last_mut() {
            Some((_, so_far, same)) if *same == state => *so_far += bytes,
            _ if is_full => break,
            _ => found.push((offset, bytes, state)),
        }
        offset += bytes;
    }
    // One was looked at to see where the last ends.
    found.truncate(room.max(1));
    let mut data = vec![0; 8];
    for (offset, bytes, state) in found {
        let blocks = u32::try_from(bytes / block_bytes).unwrap_or(u32::MAX);
        data.extend_from_slice(&(offset / block_bytes).to_be_bytes());
        data.extend_from_slice(&blocks.to_be_bytes());
        let status = u8::from(state == Allocation::Deallocated);
        data.extend_from_slice(&[status, 0, 0, 0]); // provisioning status
        if blocks == u32::MAX {
            break; // what follows would leave a gap
        }
    }
    let length = u32::try_from(data.len() - 4).unwrap_or(u32::MAX);
    data[..4].copy_from_slice(&length.to_be_bytes()); // parameter data length
    Ok(truncated(data, allocation))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// UNMAP of 8 blocks at 100, from the fact sheet.
    const LIST: [u8; 24] = [
        0x00, 0x16, 0x00, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x64, 0, 0, 0, 8, 0, 0, 0, 0,
    ];

    /// First block, blocks and status of every descriptor.
    fn status(disk: &dyn Disk, is_thin: bool, lba: u64, room: u32) -> Vec<(u64, u32, u8)> {
        let data = lba_status(disk, is_thin, lba, 8 + 16 * room).unwrap();
        let length = u32::from_be_bytes(data[..4].try_into().unwrap());
        assert_eq!(usize::try_from(length).unwrap(), data.len() - 4);
        let (descriptors, []) = data[8..].as_chunks::<16>() else {
            panic!("half a descriptor");
        };
        let one = |d: &[u8; 16]| {
            let lba = u64::from_be_bytes(d[..8].try_into().unwrap());
            let blocks = u32::from_be_bytes(d[8..12].try_into().unwrap());
            (lba, blocks, d[12])
        };
        descriptors.iter().map(one).collect()
    }

    #[test]
    fn what_is_stored_is_mapped_and_the_rest_deallocated() {
        for block_bytes in [512, 4096, 8192] {
            let disk = disk::Ram::new(1 << 20).with_block_bytes(block_bytes, block_bytes);
            let per_block = u64::from(block_bytes);
            let blocks = u32::try_from((1 << 20) / per_block).unwrap();
            assert_eq!(status(&disk, true, 0, 9), [(0, blocks, 1)]);
            disk.write(64 << 10, &[1; 8192]).unwrap();
            disk.write(72 << 10, &[1; 8192]).unwrap();
            let at = (64 << 10) / per_block;
            let first = u32::try_from(at).unwrap();
            let stored = u32::try_from(16_384 / per_block).unwrap();
            let behind = at + u64::from(stored);
            let rest = blocks - first - stored;
            let all = [(0, first, 1), (at, stored, 0), (behind, rest, 1)];
            assert_eq!(status(&disk, true, 0, 9), all);
            assert_eq!(status(&disk, true, 0, 2), all[..2]);
            assert_eq!(status(&disk, true, at + 1, 1), [(at + 1, stored - 1, 0)]);
            assert_eq!(status(&disk, false, 1, 9), [(1, blocks - 1, 0)]);
        }
    }

    #[test]
    fn a_block_that_is_stored_in_part_is_mapped() {
        let disk = disk::Ram::new(1 << 20).with_block_bytes(8192, 8192);
        disk.write(8192 + 4096, &[1]).unwrap();
        assert_eq!(
            status(&disk, true, 0, 9),
            [(0, 1, 1), (1, 1, 0), (2, 126, 1)]
        );
    }

    #[test]
    fn a_list_of_one_range_is_read() {
        assert_eq!(
            parse_unmap(&LIST, 108),
            Ok(vec![UnmapRange { lba: 100, count: 8 }])
        );
        assert_eq!(parse_unmap(&LIST, 107), Err(Sense::LBA_OUT_OF_RANGE));
    }

    #[test]
    fn an_empty_list_is_fine_and_half_a_head_is_not() {
        assert_eq!(parse_unmap(&[], 1), Ok(vec![]));
        assert_eq!(
            parse_unmap(&LIST[..7], 200),
            Err(Sense::PARAMETER_LIST_LENGTH_ERROR)
        );
        assert_eq!(parse_unmap(&LIST[..23], 200), Ok(vec![]));
    }

    #[test]
    fn more_blocks_than_the_limit_are_refused_before_any_is_touched() {
        let mut list = LIST;
        list[16..20].copy_from_slice(&(MAX_UNMAP_BLOCKS + 1).to_be_bytes());
        assert_eq!(
            parse_unmap(&list, u64::MAX),
            Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST)
        );
    }
}
