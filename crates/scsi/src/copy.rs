//! Copies that the target makes itself: EXTENDED COPY(LID1) and RECEIVE COPY
//! RESULTS (SPC-4 sections 5.17, 6.4 and 6.18 to 6.21), pure.
//!
//! What is read and written is the unit's affair; here are the commands, the
//! lists, the limits and what is told of a copy.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{LogicalUnit, Sense, SenseFormat, truncated};

mod list;

pub(crate) use list::{CopyList, Extent, Segment, TargetDescriptor};

/// Most copy targets one list names.
const MAX_TARGETS: u16 = 8;
/// Most segments one list copies.
const MAX_SEGMENTS: u16 = 16;
/// Target and segment descriptors together.
const MAX_LIST_BYTES: u32 = 1024;
/// What stands before the descriptors.
const HEADER_BYTES: u32 = 16;
/// The most one segment copies.
pub(crate) const MAX_SEGMENT_BYTES: u32 = 32 << 20;
/// Copies of one nexus that run at once and can be asked about.
const MAX_RUNNING: u8 = 4;
/// Copies of one nexus that can be asked about, those that have ended
/// included.
const MAX_KEPT: usize = 16;
/// DATA SEGMENT GRANULARITY: 512 bytes.
const GRANULARITY: u8 = 9;
/// The descriptors we know, ascending: block to block, the same with offsets,
/// identification.
const DESCRIPTORS: [u8; 3] = [
    list::BLOCKS,
    list::BLOCKS_WITH_OFFSETS,
    list::IDENTIFICATION,
];
/// The CSCD identifier of the unit that makes the copy.
pub(crate) const THIS_UNIT: u16 = 0xffff;

/// The units an EXTENDED COPY can reach beside the one that makes it.
pub trait Peers: Send + Sync {
    /// The units of the same target.
    fn units(&self) -> Vec<Arc<LogicalUnit>>;
}

/// A command about copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyCommand {
    /// EXTENDED COPY(LID1).
    Copy {
        /// Parameter list length.
        list_bytes: u32,
    },
    /// RECEIVE COPY STATUS(LID1).
    Status {
        /// Which copy.
        list_id: u8,
        /// Allocation length.
        allocation: u32,
    },
    /// RECEIVE COPY OPERATING PARAMETERS.
    Parameters {
        /// Allocation length.
        allocation: u32,
    },
    /// RECEIVE COPY FAILURE DETAILS(LID1).
    Failure {
        /// Which copy.
        list_id: u8,
        /// Allocation length.
        allocation: u32,
    },
}

impl CopyCommand {
    /// Parses a CDB, padded with zeros, of operation code 83h or 84h.
    pub(crate) fn parse(cdb: &[u8; 16]) -> Result<CopyCommand, Sense> {
        let length = u32::from_be_bytes([cdb[10], cdb[11], cdb[12], cdb[13]]);
        let list_id = cdb[2];
        match (cdb[0], cdb[1] & 0x1f) {
            (0x83, 0) => {
                let fits = HEADER_BYTES..=HEADER_BYTES + MAX_LIST_BYTES;
                match length == 0 || fits.contains(&length) {
                    true => Ok(CopyCommand::Copy { list_bytes: length }),
                    false => Err(Sense::PARAMETER_LIST_LENGTH_ERROR),
                }
            }
            (0x84, 0) => Ok(CopyCommand::Status {
                list_id,
                allocation: length,
            }),
            (0x84, 3) => Ok(CopyCommand::Parameters { allocation: length }),
            (0x84, 4) => Ok(CopyCommand::Failure {
                list_id,
                allocation: length,
            }),
            _ => Err(Sense::invalid_cdb_field(1, 4)),
        }
    }
}

/// The copies of one nexus that can be asked about.
#[derive(Debug, Default)]
pub(crate) struct Copies(Mutex<Vec<Copy>>);

#[derive(Clone, Debug)]
struct Copy {
    list_id: u8,
    state: State,
    segments: u16,
    bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Done,
    Failed(Sense),
}

impl State {
    /// COPY COMMAND STATUS.
    fn code(self) -> u8 {
        match self {
            State::Running => 0,
            State::Done => 1,
            State::Failed(_) => 2,
        }
    }
}

impl Copies {
    /// A copy begins; it takes the place of one that has ended under the
    /// same name.
    pub(crate) fn begin(&self, list_id: u8) -> Result<(), Sense> {
        let mut all = self.lock();
        let running = || all.iter().filter(|copy| copy.state == State::Running);
        if running().any(|copy| copy.list_id == list_id) {
            return Err(Sense::OPERATION_IN_PROGRESS);
        }
        if running().count() >= usize::from(MAX_RUNNING) {
            return Err(Sense::INSUFFICIENT_RESOURCES);
        }
        all.retain(|copy| copy.list_id != list_id);
        if all.len() >= MAX_KEPT
            && let Some(oldest) = all.iter().position(|copy| copy.state != State::Running)
        {
            all.remove(oldest);
        }
        all.push(Copy {
            list_id,
            state: State::Running,
            segments: 0,
            bytes: 0,
        });
        Ok(())
    }

    /// How far a copy has come.
    pub(crate) fn advance(&self, list_id: u8, segments: u16, bytes: u64) {
        if let Some(copy) = self.lock().iter_mut().find(|c| c.list_id == list_id) {
            (copy.segments, copy.bytes) = (segments, bytes);
        }
    }

    /// A copy has ended; `keeps` what it was.
    pub(crate) fn end(&self, list_id: u8, result: Result<(), Sense>, keeps: bool) {
        let mut all = self.lock();
        if !keeps {
            all.retain(|copy| copy.list_id != list_id);
        } else if let Some(copy) = all.iter_mut().find(|c| c.list_id == list_id) {
            copy.state = result.map_or_else(State::Failed, |()| State::Done);
        }
    }

    /// Answers RECEIVE COPY RESULTS.
    pub(crate) fn answer(
        &self,
        command: CopyCommand,
        format: SenseFormat,
    ) -> Result<Vec<u8>, Sense> {
        match command {
            CopyCommand::Status {
                list_id,
                allocation,
            } => Ok(truncated(self.status(list_id)?, allocation)),
            CopyCommand::Failure {
                list_id,
                allocation,
            } => Ok(truncated(self.failure(list_id, format)?, allocation)),
            CopyCommand::Parameters { allocation } => Ok(truncated(parameters(), allocation)),
            CopyCommand::Copy { .. } => Err(Sense::INTERNAL_TARGET_FAILURE),
        }
    }

    fn find(&self, list_id: u8) -> Result<Copy, Sense> {
        let all = self.lock();
        let found = all.iter().find(|copy| copy.list_id == list_id);
        found.cloned().ok_or(Sense::invalid_cdb_field(2, 7))
    }

    fn status(&self, list_id: u8) -> Result<Vec<u8>, Sense> {
        let copy = self.find(list_id)?;
        // TRANSFER COUNT UNITS: bytes, KiB, MiB, and so on.
        let mut unit = 0u8;
        let mut count = copy.bytes;
        while count > u64::from(u32::MAX) {
            (unit, count) = (unit + 1, count >> 10);
        }
        let count = u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes();
        let [high, low] = copy.segments.to_be_bytes();
        let mut data = vec![0, 0, 0, 8, copy.state.code(), high, low, unit];
        data.extend_from_slice(&count);
        Ok(data)
    }

    /// Nothing when the copy has not failed; once told, it is forgotten.
    fn failure(&self, list_id: u8, format: SenseFormat) -> Result<Vec<u8>, Sense> {
        let copy = self.find(list_id)?;
        let State::Failed(sense) = copy.state else {
            return Ok(vec![0; 4]);
        };
        self.lock().retain(|copy| copy.list_id != list_id);
        let sense = sense.emit(format);
        let sense_bytes = u16::try_from(sense.len()).unwrap_or(u16::MAX);
        let mut data = vec![0u8; 60];
        data[56] = 0x02; // EXTENDED COPY COMMAND STATUS: CHECK CONDITION
        data[58..60].copy_from_slice(&sense_bytes.to_be_bytes());
        data.extend_from_slice(&sense);
        let available = u32::try_from(data.len() - 4).unwrap_or(u32::MAX);
        data[..4].copy_from_slice(&available.to_be_bytes());
        Ok(data)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Copy>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// RECEIVE COPY OPERATING PARAMETERS (SPC-4 section 6.19).
fn parameters() -> Vec<u8> {
    let mut data = vec![0u8; 44];
    data[4] = 0x01; // SNLID: a copy may go without a name
    data[8..10].copy_from_slice(&MAX_TARGETS.to_be_bytes());
    data[10..12].copy_from_slice(&MAX_SEGMENTS.to_be_bytes());
    data[12..16].copy_from_slice(&MAX_LIST_BYTES.to_be_bytes());
    data[16..20].copy_from_slice(&MAX_SEGMENT_BYTES.to_be_bytes());
    data[35] = MAX_RUNNING; // total concurrent copies
    data[36] = MAX_RUNNING; // maximum concurrent copies
    data[37] = GRANULARITY;
    data[43] = u8::try_from(DESCRIPTORS.len()).unwrap_or(0);
    data.extend_from_slice(&DESCRIPTORS);
    let available = u32::try_from(data.len() - 4).unwrap_or(u32::MAX);
    data[..4].copy_from_slice(&available.to_be_bytes());
    data
}

/// VPD page 8Fh: what the copy manager can do (SPC-4 section 7.8.17).
pub(crate) fn third_party_copy() -> Vec<u8> {
    let mut page = Vec::new();
    // Supported commands: operation code, service actions.
    describe(&mut page, 0x0001, &[8, 0x83, 1, 0, 0x84, 3, 0, 3, 4]);
    let mut parameters = vec![0u8; 28];
    parameters[4..6].copy_from_slice(&MAX_TARGETS.to_be_bytes());
    parameters[6..8].copy_from_slice(&MAX_SEGMENTS.to_be_bytes());
    parameters[8..12].copy_from_slice(&MAX_LIST_BYTES.to_be_bytes());
    describe(&mut page, 0x0004, &parameters);
    let [block, with_offsets, identification] = DESCRIPTORS;
    describe(&mut page, 0x0008, &[3, block, with_offsets, identification]);
    let [high, low] = THIS_UNIT.to_be_bytes();
    describe(&mut page, 0x000c, &[0, 2, high, low]); // supported CSCD identifiers
    let mut general = vec![0u8; 32];
    general[3] = MAX_RUNNING; // total concurrent copies
    general[7] = MAX_RUNNING; // maximum identified concurrent copies
    general[8..12].copy_from_slice(&MAX_SEGMENT_BYTES.to_be_bytes());
    general[12] = GRANULARITY;
    describe(&mut page, 0x8001, &general);
    page
}

/// Adds a third-party copy descriptor, padded to whole words.
fn describe(page: &mut Vec<u8>, kind: u16, body: &[u8]) {
    let padded = body.len().next_multiple_of(4);
    page.extend_from_slice(&kind.to_be_bytes());
    page.extend_from_slice(&u16::try_from(padded).unwrap_or(u16::MAX).to_be_bytes());
    page.extend_from_slice(body);
    page.resize(page.len() + padded - body.len(), 0);
}

#[cfg(test)]
mod tests;
