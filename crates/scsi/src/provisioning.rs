//! Giving space back: UNMAP's list and the limits of WRITE SAME (SBC-3
//! sections 4.7, 5.28 and 5.42).

use crate::Sense;

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

/// The data of GET LBA STATUS: everything from `lba` on is "mapped or
/// unknown" (SBC-4 table 60), for no disk is asked what it holds.
pub(crate) fn lba_status(lba: u64, block_count: u64) -> Vec<u8> {
    let mut data = vec![0, 0, 0, 20, 0, 0, 0, 0]; // parameter data length
    let blocks = u32::try_from(block_count - lba).unwrap_or(u32::MAX);
    data.extend_from_slice(&lba.to_be_bytes());
    data.extend_from_slice(&blocks.to_be_bytes());
    data.extend_from_slice(&[0, 0, 0, 0]); // provisioning status: mapped or unknown
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    /// UNMAP of 8 blocks at 100, from the fact sheet.
    const LIST: [u8; 24] = [
        0x00, 0x16, 0x00, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x64, 0, 0, 0, 8, 0, 0, 0, 0,
    ];

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
