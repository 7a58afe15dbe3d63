//! A logical unit: a disk that answers commands.
//!
//! A session first lets the unit [`admit`](LogicalUnit::admit) a CDB, which
//! checks all that can be checked before data moves, and gets [`Work`]. It
//! then moves data ([`put`](LogicalUnit::put), [`read`](LogicalUnit::read),
//! [`segments`](LogicalUnit::segments)) and [`finish`](LogicalUnit::finish)es.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use disk::{Access, Durability, Geometry, Segment, SharedDisk};

use crate::attention::{Attentions, Nexus, NexusName};
use crate::command::{Blocks, Command, Compare};
use crate::provisioning::{MAX_UNMAP_LIST_BYTES, lba_status, max_write_same_blocks, parse_unmap};
use crate::{
    Identity, Provisioning, Refusal, Sense, SenseFormat, Shape, inquiry, mode, opcodes, truncated,
};

/// MAXIMUM TRANSFER LENGTH: the most one READ, WRITE or VERIFY moves.
pub const MAX_TRANSFER_BYTES: u64 = 32 << 20;
/// How much a long command does before it looks whether it was called off.
const STEP_BYTES: u64 = 1 << 20;
/// UNMAP, WRITE SAME and VERIFY up to this size are done at once.
const SMALL_BYTES: u64 = 64 << 10;

/// A disk that answers commands.
pub struct LogicalUnit {
    disk: SharedDisk,
    geometry: Geometry,
    /// Mapped bytes were not there when they were to be sent.
    has_lost_mapping: AtomicBool,
    state: Arc<State>,
}

/// What stays when a unit gets another disk.
struct State {
    identity: Identity,
    shape: Shape,
    attentions: Attentions,
    resets: AtomicU64,
}

/// A command that has passed every check and now wants its data.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    command: Command,
    /// Where on the disk, in bytes.
    offset: u64,
    /// How much of the disk, in bytes.
    bytes: u64,
    data_out: DataOut,
    pace: Pace,
    /// How often the unit had been reset when it was admitted.
    resets: u64,
}

impl Work {
    /// The command.
    pub fn command(&self) -> &Command {
        &self.command
    }

    /// Which data the command needs from the initiator.
    pub fn data_out(&self) -> DataOut {
        self.data_out
    }

    /// Bytes of the disk that are to be sent: the data of a READ.
    pub fn read_bytes(&self) -> Option<u64> {
        matches!(self.command, Command::Read(_)).then_some(self.bytes)
    }

    /// How long [`finish`](LogicalUnit::finish) may take.
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// Whether [`finish`](LogicalUnit::finish) changes what is read from the
    /// disk, so that it must have ended before anybody may count on its abort.
    /// A write has changed it before: what is left of one is a flush.
    pub fn finish_changes_disk(&self) -> bool {
        matches!(
            self.command,
            Command::WriteSame { .. } | Command::Unmap { .. }
        )
    }
}

/// Which data a command needs from the initiator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataOut {
    /// None.
    None,
    /// So many bytes, each piece handed to [`LogicalUnit::put`] as it comes.
    Streamed(u64),
    /// So many bytes (a block, or a list of UNMAP), handed to [`LogicalUnit::finish`] as a
    /// whole.
    Gathered(u64),
}

/// How long finishing a command may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Done where one stands.
    AtOnce,
    /// May wait for the medium; others should be served meanwhile.
    Slow,
}

impl LogicalUnit {
    /// A fixed disk over `disk` that calls itself `identity`.
    pub fn new(disk: SharedDisk, identity: Identity) -> LogicalUnit {
        LogicalUnit::shaped(disk, identity, Shape::default())
    }

    /// A unit of any shape.
    pub fn shaped(disk: SharedDisk, identity: Identity, shape: Shape) -> LogicalUnit {
        let state = State {
            identity,
            shape,
            attentions: Attentions::default(),
            resets: AtomicU64::new(0),
        };
        LogicalUnit {
            geometry: disk.geometry(),
            disk,
            has_lost_mapping: AtomicBool::new(false),
            state: Arc::new(state),
        }
    }

    /// The same unit over another disk: a file that has grown, another
    /// medium. Every nexus is told when its capacity is another one. Tasks
    /// under way go on over the disk they began with.
    pub fn with_disk(&self, disk: SharedDisk) -> LogicalUnit {
        let geometry = disk.geometry();
        if geometry != self.geometry {
            let attentions = &self.state.attentions;
            attentions.raise(Sense::CAPACITY_DATA_HAS_CHANGED, None);
        }
        LogicalUnit {
            geometry,
            disk,
            has_lost_mapping: AtomicBool::new(false),
            state: self.state.clone(),
        }
    }

    /// The disk below.
    pub fn disk(&self) -> &SharedDisk {
        &self.disk
    }

    /// What the unit calls itself.
    pub fn identity(&self) -> &Identity {
        &self.state.identity
    }

    /// What kind of unit it is.
    pub fn shape(&self) -> Shape {
        self.state.shape
    }

    /// A new session's view of this unit.
    pub fn connect(&self, name: &NexusName) -> Nexus {
        self.state.attentions.connect(name)
    }

    /// Logical unit reset: every nexus is told, whoever asked for it. Tasks
    /// that began under an earlier [`resets`](LogicalUnit::resets) are void.
    pub fn reset(&self) {
        self.state.resets.fetch_add(1, Ordering::AcqRel);
        let attentions = &self.state.attentions;
        attentions.raise(Sense::DEVICE_RESET_OCCURRED, None);
    }

    /// Ends the tasks of every nexus and tells the others so (CLEAR TASK
    /// SET).
    pub fn clear_tasks(&self, by: &Nexus) {
        self.state.resets.fetch_add(1, Ordering::AcqRel);
        self.state
            .attentions
            .raise(Sense::COMMANDS_CLEARED_BY_ANOTHER_INITIATOR, Some(by));
    }

    /// How often all tasks of this unit have been made void.
    pub fn resets(&self) -> u64 {
        self.state.resets.load(Ordering::Acquire)
    }

    /// Checks a command, in the order SAM-5 section 5.14 and SPC-4 want: unit
    /// attention, operation code, fields, write protection, range.
    pub fn admit(&self, nexus: &Nexus, cdb: &[u8]) -> Result<Work, Refusal> {
        let exempt = matches!(cdb.first(), Some(0x12 | 0xa0 | 0x03));
        if !exempt && let Some(attention) = nexus.take() {
            return Err(attention.into());
        }
        Ok(self.check(Command::parse(cdb)?)?)
    }

    /// Checks the fields of a command against the unit.
    fn check(&self, command: Command) -> Result<Work, Sense> {
        let plain = Work {
            command,
            offset: 0,
            bytes: 0,
            data_out: DataOut::None,
            pace: Pace::AtOnce,
            resets: self.resets(),
        };
        match command {
            Command::Read(blocks) => {
                self.check_transfer(blocks)?;
                self.ranged(plain, blocks)
            }
            Command::Write { blocks, fua } => {
                self.check_transfer(blocks)?;
                self.check_writable()?;
                let work = self.ranged(plain, blocks)?;
                Ok(Work {
                    data_out: DataOut::Streamed(work.bytes),
                    pace: self.flush_pace(fua),
                    ..work
                })
            }
            Command::WriteAndVerify { blocks, .. } => {
                self.check_transfer(blocks)?;
                self.check_writable()?;
                let work = self.ranged(plain, blocks)?;
                Ok(Work {
                    data_out: DataOut::Streamed(work.bytes),
                    pace: self.flush_pace(true),
                    ..work
                })
            }
            Command::Verify { blocks, compare } => {
                let work = self.ranged(plain, blocks)?;
                let data_out = match compare {
                    Compare::Medium => DataOut::None,
                    Compare::Data => {
                        self.check_transfer(blocks)?;
                        DataOut::Streamed(work.bytes)
                    }
                    Compare::OneBlock if blocks.count == 0 => DataOut::None,
                    Compare::OneBlock => DataOut::Gathered(self.block_bytes()),
                };
                let pace = match compare {
                    Compare::Data => Pace::AtOnce,
                    _ => pace_of(work.bytes),
                };
                Ok(Work {
                    data_out,
                    pace,
                    ..work
                })
            }
            Command::PreFetch(blocks) => self.ranged(plain, blocks),
            Command::SynchronizeCache(blocks) => Ok(Work {
                pace: self.flush_pace(true),
                ..self.ranged(plain, blocks)?
            }),
            Command::StartStopUnit {
                load_eject,
                power_condition,
                start,
                no_flush,
            } => {
                // Nothing to load or eject: the medium is not removable.
                if load_eject && power_condition == 0 {
                    return Err(Sense::invalid_cdb_field(4, 1));
                }
                let flushes = !start && power_condition == 0 && !no_flush;
                Ok(Work {
                    pace: self.flush_pace(flushes),
                    ..plain
                })
            }
            Command::WriteSame {
                blocks,
                unmap,
                no_data_out,
            } => self.admit_write_same(plain, blocks, unmap, no_data_out),
            Command::Unmap { list_bytes } => {
                if !self.is_thin() {
                    return Err(Sense::INVALID_OPCODE);
                }
                self.check_writable()?;
                if list_bytes > MAX_UNMAP_LIST_BYTES {
                    return Err(Sense::invalid_cdb_field(7, 7));
                }
                Ok(Work {
                    data_out: DataOut::Gathered(u64::from(list_bytes)),
                    pace: Pace::Slow,
                    ..plain
                })
            }
            Command::GetLbaStatus { lba, .. } if lba >= self.block_count() => {
                Err(Sense::LBA_OUT_OF_RANGE)
            }
            _ => Ok(plain),
        }
    }

    /// How much data-out a command takes when the initiator offers `offered`
    /// bytes; `None` refuses (5/0E/03). Short of its length, a write takes
    /// the whole blocks there are.
    pub fn fit(&self, work: &Work, offered: u64) -> Option<u64> {
        let wanted = match work.data_out {
            DataOut::None => return Some(0),
            DataOut::Streamed(bytes) | DataOut::Gathered(bytes) => bytes,
        };
        match work.command {
            // Exactly one block, no more and no less.
            Command::WriteSame { .. } => (offered == wanted).then_some(wanted),
            Command::Write { .. } | Command::WriteAndVerify { .. } => match offered < wanted {
                true => Some(offered - offered % self.block_bytes()),
                false => Some(wanted),
            },
            _ => (offered >= wanted).then_some(wanted),
        }
    }

    /// Takes a piece of a streamed command's data, `offset` bytes into it.
    pub fn put(&self, work: &Work, offset: u64, data: &[u8]) -> Result<(), Sense> {
        let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
        if offset.checked_add(bytes).is_none_or(|end| end > work.bytes) {
            return Err(Sense::INCORRECT_AMOUNT_OF_DATA);
        }
        let at = work.offset + offset;
        match work.command {
            Command::Write { .. } => self.write(at, data),
            Command::WriteAndVerify { compare, .. } => {
                self.write(at, data)?;
                match compare {
                    true => self.compare(at, data, offset),
                    false => Ok(()),
                }
            }
            Command::Verify { .. } => self.compare(at, data, offset),
            _ => Err(Sense::INCORRECT_AMOUNT_OF_DATA),
        }
    }

    /// Fills `buffer` with data of a READ, from `offset` bytes into it.
    pub fn read(&self, work: &Work, offset: u64, buffer: &mut [u8]) -> Result<(), Sense> {
        Ok(self.disk.read(work.offset + offset, buffer)?)
    }

    /// Says that mapped bytes were not there when they were to be sent: a
    /// file has become shorter, or its medium fails. From now on every read
    /// goes through the disk, which can say so.
    pub fn lose_mapping(&self) {
        self.has_lost_mapping.store(true, Ordering::Relaxed);
    }

    /// Appends where data of a READ lies mapped; `false` when some does not.
    pub fn segments<'a>(
        &'a self,
        work: &Work,
        offset: u64,
        bytes: u64,
        segments: &mut Vec<Segment<'a>>,
    ) -> Result<bool, Sense> {
        if self.has_lost_mapping.load(Ordering::Relaxed) {
            return Ok(false);
        }
        Ok(self.disk.segments(work.offset + offset, bytes, segments)?)
    }

    /// Says that a READ's data will be sent soon.
    pub fn will_need(&self, work: &Work) {
        self.disk.will_need(work.offset, work.bytes);
    }

    /// Does what is left once all data-out is there, and gives the data-in of
    /// every command but READ. `data` is what a gathered command asked for. A
    /// long command gives up when `called_off`, or when the unit was reset
    /// after its admission; nobody hears its answer then.
    pub fn finish(
        &self,
        nexus: &Nexus,
        work: &Work,
        data: &[u8],
        called_off: &AtomicBool,
    ) -> Result<Vec<u8>, Refusal> {
        let is_over = || called_off.load(Ordering::Relaxed) || self.resets() != work.resets;
        Ok(match work.command {
            Command::RequestSense { format, allocation } => {
                let sense = nexus.take().unwrap_or(Sense::NONE);
                truncated(sense.emit(format), u32::from(allocation))
            }
            Command::Inquiry { page, allocation } => {
                let facts = inquiry::Facts {
                    geometry: self.geometry,
                    is_thin: self.is_thin(),
                };
                inquiry::answer(self.identity(), &facts, page, allocation)?
            }
            Command::ModeSense(asked) => {
                let facts = mode::Facts {
                    geometry: self.geometry,
                    access: self.access(),
                    durability: self.disk.durability(),
                };
                mode::sense(&asked, &facts)?
            }
            Command::ReadCapacity10 => self.capacity10(),
            Command::ReadCapacity16 { allocation } => truncated(self.capacity16(), allocation),
            Command::GetLbaStatus { lba, allocation } => {
                truncated(lba_status(lba, self.block_count()), allocation)
            }
            Command::ReportSupportedOpcodes(asked) => opcodes::report(&asked, self.is_thin())?,
            Command::Write { fua, .. } => self.flush_if(fua)?,
            Command::WriteAndVerify { .. } | Command::SynchronizeCache(_) => self.flush_if(true)?,
            Command::StartStopUnit { .. } => self.flush_if(work.pace == Pace::Slow)?,
            Command::PreFetch(_) => {
                let bytes = work.bytes.min(MAX_TRANSFER_BYTES);
                self.disk.will_need(work.offset, bytes);
                vec![]
            }
            Command::Verify { compare, .. } => {
                self.verify(work, compare, data, &is_over)?;
                vec![]
            }
            Command::WriteSame { .. } => {
                self.write_same(work, data, &is_over)?;
                vec![]
            }
            Command::Unmap { .. } => {
                self.unmap(data, &is_over)?;
                vec![]
            }
            Command::TestUnitReady | Command::Read(_) => vec![],
            // Answered by the session, which knows all units.
            Command::ReportLuns { .. } => return Err(Sense::INTERNAL_TARGET_FAILURE.into()),
        })
    }

    /// Which layout the sense of this unit travels in.
    pub fn sense_format(&self) -> SenseFormat {
        SenseFormat::Fixed
    }

    /// Whether initiators may give space back.
    fn is_thin(&self) -> bool {
        self.shape().provisioning == Provisioning::OfDisk && self.disk.is_thin()
    }

    /// Whether initiators may write.
    fn access(&self) -> Access {
        match self.shape().access {
            Access::ReadOnly => Access::ReadOnly,
            Access::ReadWrite => self.disk.access(),
        }
    }

    fn block_bytes(&self) -> u64 {
        u64::from(self.geometry.logical_block_bytes)
    }

    fn block_count(&self) -> u64 {
        self.geometry.size_bytes / self.block_bytes()
    }

    /// Refuses more than [`MAX_TRANSFER_BYTES`].
    fn check_transfer(&self, blocks: Blocks) -> Result<(), Sense> {
        match u64::from(blocks.count) * self.block_bytes() > MAX_TRANSFER_BYTES {
            true => Err(Sense::INVALID_FIELD_IN_CDB),
            false => Ok(()),
        }
    }

    fn check_writable(&self) -> Result<(), Sense> {
        match self.access() {
            Access::ReadOnly => Err(Sense::WRITE_PROTECTED),
            Access::ReadWrite => Ok(()),
        }
    }

    /// Turns blocks into bytes, here and nowhere else.
    fn ranged(&self, work: Work, blocks: Blocks) -> Result<Work, Sense> {
        let block_count = self.block_count();
        if blocks.lba > block_count || u64::from(blocks.count) > block_count - blocks.lba {
            return Err(Sense::LBA_OUT_OF_RANGE);
        }
        Ok(Work {
            offset: blocks.lba * self.block_bytes(),
            bytes: u64::from(blocks.count) * self.block_bytes(),
            ..work
        })
    }

    fn admit_write_same(
        &self,
        work: Work,
        blocks: Blocks,
        unmap: bool,
        no_data_out: bool,
    ) -> Result<Work, Sense> {
        let is_thin = self.is_thin();
        if unmap && !is_thin {
            return Err(Sense::invalid_cdb_field(1, 3));
        }
        self.check_writable()?;
        let work = self.ranged(work, blocks)?;
        let bytes = match blocks.count {
            0 => self.geometry.size_bytes - work.offset, // up to the end
            _ => work.bytes,
        };
        let limit = max_write_same_blocks(is_thin, self.geometry.logical_block_bytes);
        if bytes / self.block_bytes() > limit {
            return Err(Sense::INVALID_FIELD_IN_CDB);
        }
        Ok(Work {
            bytes,
            data_out: match no_data_out {
                true => DataOut::None,
                false => DataOut::Gathered(self.block_bytes()),
            },
            pace: pace_of(bytes),
            ..work
        })
    }

    /// How long a flush takes here.
    fn flush_pace(&self, flushes: bool) -> Pace {
        match flushes && self.disk.durability() != Durability::Volatile {
            true => Pace::Slow,
            false => Pace::AtOnce,
        }
    }

    fn flush_if(&self, wanted: bool) -> Result<Vec<u8>, Sense> {
        if wanted && self.access() == Access::ReadWrite {
            self.disk.flush().map_err(Sense::while_writing)?;
        }
        Ok(vec![])
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Sense> {
        self.disk.write(offset, data).map_err(Sense::while_writing)
    }

    /// Compares the disk at `offset` with `data`, which lies `at` bytes into
    /// the command's data.
    fn compare(&self, offset: u64, data: &[u8], at: u64) -> Result<(), Sense> {
        let mut stored = vec![0u8; data.len()];
        self.disk.read(offset, &mut stored)?;
        match stored.iter().zip(data).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(first) => Err(Sense::miscompare_at(at + u64::try_from(first).unwrap_or(0))),
        }
    }

    fn verify(
        &self,
        work: &Work,
        compare: Compare,
        block: &[u8],
        is_over: &impl Fn() -> bool,
    ) -> Result<(), Sense> {
        let expected = match compare {
            Compare::Data => return Ok(()), // compared as it came
            Compare::Medium => None,
            Compare::OneBlock => Some(repeated(block, work.bytes.min(STEP_BYTES))),
        };
        let mut buffer = buffer_of(work.bytes.min(STEP_BYTES));
        for_each_step(work.offset, work.bytes, is_over, |offset, bytes| {
            let done = offset - work.offset;
            let length = usize::try_from(bytes).unwrap_or(0);
            match &expected {
                Some(pattern) => self.compare(offset, &pattern[..length], done),
                None => Ok(self.disk.read(offset, &mut buffer[..length])?),
            }
        })
    }

    fn write_same(
        &self,
        work: &Work,
        block: &[u8],
        is_over: &impl Fn() -> bool,
    ) -> Result<(), Sense> {
        let is_zero = block.iter().all(|byte| *byte == 0);
        if is_zero && self.is_thin() {
            return for_each_step(work.offset, work.bytes, is_over, |offset, bytes| {
                self.disk.unmap(offset, bytes).map_err(Sense::while_writing)
            });
        }
        let step = work.bytes.min(STEP_BYTES);
        let pattern = match is_zero {
            true => buffer_of(step),
            false => repeated(block, step),
        };
        for_each_step(work.offset, work.bytes, is_over, |offset, bytes| {
            self.write(offset, &pattern[..usize::try_from(bytes).unwrap_or(0)])
        })
    }

    fn unmap(&self, list: &[u8], is_over: &impl Fn() -> bool) -> Result<(), Sense> {
        for range in parse_unmap(list, self.block_count())? {
            let offset = range.lba * self.block_bytes();
            let bytes = u64::from(range.count) * self.block_bytes();
            for_each_step(offset, bytes, is_over, |offset, bytes| {
                self.disk.unmap(offset, bytes).map_err(Sense::while_writing)
            })?;
        }
        Ok(())
    }

    fn last_lba(&self) -> u64 {
        self.block_count().saturating_sub(1)
    }

    fn capacity10(&self) -> Vec<u8> {
        let last = u32::try_from(self.last_lba()).unwrap_or(u32::MAX);
        let mut data = last.to_be_bytes().to_vec();
        data.extend_from_slice(&self.geometry.logical_block_bytes.to_be_bytes());
        data
    }

    fn capacity16(&self) -> Vec<u8> {
        let mut data = vec![0u8; 32];
        data[..8].copy_from_slice(&self.last_lba().to_be_bytes());
        data[8..12].copy_from_slice(&self.geometry.logical_block_bytes.to_be_bytes());
        let per_physical = self.geometry.physical_block_bytes / self.geometry.logical_block_bytes;
        data[13] = u8::try_from(per_physical.max(1).ilog2()).unwrap_or(0); // LBPPBE
        if self.disk.is_thin() {
            data[14] = 0xc0; // LBPME, LBPRZ
        }
        data
    }
}

fn pace_of(bytes: u64) -> Pace {
    match bytes > SMALL_BYTES {
        true => Pace::Slow,
        false => Pace::AtOnce,
    }
}

/// A buffer of zeros; `bytes` is at most [`STEP_BYTES`].
fn buffer_of(bytes: u64) -> Vec<u8> {
    vec![0u8; usize::try_from(bytes).unwrap_or(0)]
}

/// `block` again and again, `bytes` long.
fn repeated(block: &[u8], bytes: u64) -> Vec<u8> {
    let length = usize::try_from(bytes).unwrap_or(0);
    block.iter().copied().cycle().take(length).collect()
}

/// Does `step(offset, bytes)` for a range in pieces of [`STEP_BYTES`], until
/// it is over.
fn for_each_step(
    offset: u64,
    bytes: u64,
    is_over: &impl Fn() -> bool,
    mut step: impl FnMut(u64, u64) -> Result<(), Sense>,
) -> Result<(), Sense> {
    let mut done = 0;
    while done < bytes && !is_over() {
        let now = (bytes - done).min(STEP_BYTES);
        step(offset + done, now)?;
        done += now;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
