//! The parameter list of EXTENDED COPY(LID1) (SPC-4 section 6.4): all its
//! checks are made before anything is copied.

use super::{HEADER_BYTES, MAX_LIST_BYTES, MAX_SEGMENT_BYTES, MAX_SEGMENTS, MAX_TARGETS};
use crate::Sense;

/// Segment: blocks to blocks.
pub(super) const BLOCKS: u8 = 0x02;
/// Segment: blocks to blocks, by bytes and from offsets in them.
pub(super) const BLOCKS_WITH_OFFSETS: u8 = 0x0a;
/// Target: by one of its designators.
pub(super) const IDENTIFICATION: u8 = 0xe4;
/// Every target descriptor has this length.
const TARGET_BYTES: usize = 32;

/// A list that asks for nothing we cannot try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CopyList {
    /// LIST IDENTIFIER; `None` for a copy nobody may ask about.
    pub(crate) id: Option<u8>,
    /// Whether it may still be asked about when it has ended.
    pub(crate) is_kept: bool,
    pub(crate) targets: Vec<TargetDescriptor>,
    pub(crate) segments: Vec<Segment>,
}

/// A unit, by what its VPD page 83h calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TargetDescriptor {
    pub(crate) device_type: u8,
    /// Code set; association and type; reserved; length; the designator: as
    /// in the page.
    pub(crate) designator: Vec<u8>,
    /// What the initiator takes for the length of a block; 0 when it does not
    /// say.
    pub(crate) block_bytes: u32,
}

/// One range to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Which of the targets.
    pub(crate) source: u16,
    /// Which of the targets.
    pub(crate) destination: u16,
    pub(crate) extent: Extent,
    pub(crate) source_lba: u64,
    pub(crate) destination_lba: u64,
}

/// How much a segment copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Blocks of the source.
    SourceBlocks(u16),
    /// Blocks of the destination (DC).
    DestinationBlocks(u16),
    /// Bytes, from offsets in the first blocks.
    Bytes {
        bytes: u32,
        source_offset: u16,
        destination_offset: u16,
    },
}

impl CopyList {
    /// Reads a list that is not empty.
    pub(crate) fn parse(list: &[u8]) -> Result<CopyList, Sense> {
        let header_bytes = usize::try_from(HEADER_BYTES).unwrap_or(usize::MAX);
        let (head, body) = list
            .split_at_checked(header_bytes)
            .ok_or(Sense::PARAMETER_LIST_LENGTH_ERROR)?;
        let target_bytes = u32::from(u16::from_be_bytes([head[2], head[3]]));
        let segment_bytes = u32::from_be_bytes([head[8], head[9], head[10], head[11]]);
        let inline_bytes = u32::from_be_bytes([head[12], head[13], head[14], head[15]]);
        if target_bytes.saturating_add(segment_bytes) > MAX_LIST_BYTES {
            return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
        }
        let length = |bytes: u32| usize::try_from(bytes).unwrap_or(usize::MAX);
        let (targets, rest) = body
            .split_at_checked(length(target_bytes))
            .ok_or(Sense::PARAMETER_LIST_LENGTH_ERROR)?;
        let segments = rest
            .get(..length(segment_bytes))
            .ok_or(Sense::PARAMETER_LIST_LENGTH_ERROR)?;
        let targets = parse_targets(targets)?;
        let segments = parse_segments(segments)?;
        if inline_bytes != 0 {
            return Err(Sense::INLINE_DATA_LENGTH_EXCEEDED);
        }
        let (has_id, is_kept) = match head[1] >> 3 & 3 {
            0 => (true, true),   // held
            2 => (true, false),  // discarded at the end
            3 => (false, false), // no list identifier
            _ => return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST),
        };
        Ok(CopyList {
            id: has_id.then_some(head[0]),
            is_kept,
            targets,
            segments,
        })
    }
}

fn parse_targets(list: &[u8]) -> Result<Vec<TargetDescriptor>, Sense> {
    let (descriptors, rest) = list.as_chunks::<TARGET_BYTES>();
    if descriptors.len() > usize::from(MAX_TARGETS) {
        return Err(Sense::TOO_MANY_TARGET_DESCRIPTORS);
    }
    if !rest.is_empty() {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    }
    let parse = |bytes: &[u8; TARGET_BYTES]| {
        if bytes[0] != IDENTIFICATION {
            return Err(Sense::UNSUPPORTED_TARGET_DESCRIPTOR);
        }
        let designator = bytes[4..28].get(..4 + usize::from(bytes[7]));
        Ok(TargetDescriptor {
            device_type: bytes[1] & 0x1f,
            designator: designator
                .ok_or(Sense::INVALID_FIELD_IN_PARAMETER_LIST)?
                .to_vec(),
            block_bytes: u32::from_be_bytes([0, bytes[29], bytes[30], bytes[31]]),
        })
    };
    descriptors.iter().map(parse).collect()
}

fn parse_segments(mut list: &[u8]) -> Result<Vec<Segment>, Sense> {
    let mut segments = Vec::new();
    while let Some((kind, _)) = list.split_first() {
        if segments.len() == usize::from(MAX_SEGMENTS) {
            return Err(Sense::TOO_MANY_SEGMENT_DESCRIPTORS);
        }
        let descriptor_bytes = match *kind {
            BLOCKS => 0x1c,
            BLOCKS_WITH_OFFSETS => 0x20,
            _ => return Err(Sense::UNSUPPORTED_SEGMENT_DESCRIPTOR),
        };
        let (bytes, rest) = list
            .split_at_checked(descriptor_bytes)
            .ok_or(Sense::PARAMETER_LIST_LENGTH_ERROR)?;
        list = rest;
        segments.push(parse_segment(bytes)?);
    }
    Ok(segments)
}

/// Reads a segment as long as its type is.
fn parse_segment(bytes: &[u8]) -> Result<Segment, Sense> {
    let number = |at: usize, length: usize| {
        let bytes = bytes.iter().skip(at).take(length);
        bytes.fold(0u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let short = |at: usize| u16::try_from(number(at, 2)).unwrap_or(u16::MAX);
    if usize::from(short(2)) != bytes.len() - 4 {
        return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST);
    }
    let extent = match (bytes[0], bytes[1] & 0x02 != 0) {
        (BLOCKS, false) => Extent::SourceBlocks(short(10)),
        (BLOCKS, true) => Extent::DestinationBlocks(short(10)),
        _ => Extent::Bytes {
            bytes: u32::try_from(number(8, 4)).unwrap_or(u32::MAX),
            source_offset: short(28),
            destination_offset: short(30),
        },
    };
    match extent {
        Extent::Bytes { bytes, .. } if bytes > MAX_SEGMENT_BYTES => {
            Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST)
        }
        extent => Ok(Segment {
            source: short(4),
            destination: short(6),
            extent,
            source_lba: number(12, 8),
            destination_lba: number(20, 8),
        }),
    }
}
