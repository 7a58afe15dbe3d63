//! Execution: what a command does once all its data-out is there.

use std::sync::atomic::{AtomicBool, Ordering};

use disk::Access;

use super::{LogicalUnit, MAX_TRANSFER_BYTES, Pace, Work};
use crate::attention::Nexus;
use crate::command::{Command, Compare};
use crate::conditions::Condition;
use crate::copy::CopyCommand;
use crate::opcodes::Family;
use crate::provisioning::{lba_status, parse_unmap};
use crate::{Refusal, Sense, inquiry, log, mode, opcodes, optical, reports, truncated};

/// How much a long command does before it looks whether it was called off.
const STEP_BYTES: u64 = 1 << 20;

impl LogicalUnit {
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
        // Who ends the tasks of this nexus waits until it lets go.
        // (A copy does so in every step.)
        let is_copy = matches!(work.command, Command::Copy(_));
        let _hold = (work.finish_changes_disk() && !is_copy).then(|| nexus.hold());
        let is_over = || called_off.load(Ordering::Relaxed) || self.is_void(nexus, work);
        Ok(match work.command {
            Command::RequestSense { format, allocation } => {
                let sense = nexus.take().unwrap_or_else(|| self.pollable());
                truncated(sense.emit(format), u32::from(allocation))
            }
            Command::Inquiry { page, allocation } => {
                let facts = inquiry::Facts {
                    device: self.shape().device,
                    geometry: self.geometry,
                    medium: self.shape().medium,
                    max_atomic_bytes: self.max_atomic_bytes(),
                    tells_space: self.space().is_some(),
                    erases: self.offers(Family::Thin),
                    is_thin: self.is_thin(),
                };
                inquiry::answer(self.identity(), &facts, page, allocation)?
            }
            Command::ModeSense(asked) if self.is_optical() => {
                optical::mode_sense(&asked, &self.drive())?
            }
            Command::ModeSense(asked) => mode::sense(&asked, &self.mode_facts())?,
            Command::ModeSelect { ten, .. } => {
                self.select_mode(nexus, ten, data)?;
                vec![]
            }
            Command::LogSense(asked) => log::sense(&asked, self.space())?,
            Command::PreventAllow { prevent } => {
                nexus.prevent_removal(prevent);
                vec![]
            }
            Command::ReadCapacity10 => self.capacity10(),
            Command::ReadCapacity16 { allocation } => truncated(self.capacity16(), allocation),
            Command::GetLbaStatus { lba, allocation } => {
                lba_status(&*self.disk, self.is_thin(), lba, allocation).map_err(Sense::from)?
            }
            Command::ReportSupportedOpcodes(asked) if self.is_optical() => {
                opcodes::report_of(optical::OPCODES, &asked, |_| true)?
            }
            Command::ReportSupportedOpcodes(asked) => {
                opcodes::report(&asked, |family| self.offers(family))?
            }
            Command::ReportSupportedFunctions {
                extended,
                allocation,
            } => reports::task_management_functions(extended, allocation),
            Command::ReportTargetPortGroups {
                extended,
                allocation,
            } => reports::target_port_groups(extended, allocation),
            Command::ReadDefectData(asked) => reports::defects(&asked),
            Command::Write { fua, .. } | Command::OrWrite { fua, .. } => self.flush_change(fua)?,
            Command::CompareAndWrite { fua, .. } => {
                self.compare_and_write(work, data, &is_over)?;
                self.flush_change(fua)?
            }
            Command::WriteAtomic { fua, .. } => {
                self.write_atomic(work, data, &is_over)?;
                self.flush_change(fua)?
            }
            Command::WriteAndVerify { .. } | Command::SynchronizeCache(_) => self.flush_if(true)?,
            Command::StartStopUnit {
                load_eject,
                power_condition,
                start,
                ..
            } => {
                self.flush_if(work.pace == Pace::Slow)?;
                if load_eject && power_condition == 0 && !is_over() {
                    match start {
                        true => self.load(nexus),
                        false => self.eject(),
                    }
                }
                vec![]
            }
            Command::Sanitize(asked) => {
                if is_over() {
                    // Nobody hears, and nothing may go on: the unit may be
                    // at another one.
                    return Err(Sense::INTERNAL_TARGET_FAILURE.into());
                }
                self.sanitize(&asked, data)?;
                vec![]
            }
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
                self.flush_change(false)?
            }
            Command::Unmap { .. } => {
                self.unmap_ranges(data, &is_over)?;
                self.flush_change(false)?
            }
            Command::Copy(CopyCommand::Copy { .. }) => {
                self.copy(nexus, data, &is_over)?;
                vec![]
            }
            Command::Copy(command) => nexus.copies().answer(command, self.sense_format())?,
            // Nobody hears, so nobody may be kept out by it.
            Command::Reservation(_) if is_over() => {
                return Err(Sense::INTERNAL_TARGET_FAILURE.into());
            }
            Command::Reservation(command) => {
                let state = &self.state;
                let (reservations, attentions) = (&state.reservations, &state.attentions);
                let answer = reservations.perform(nexus, command, data, attentions)?;
                if command.ends_tasks() {
                    self.outlast_changes();
                }
                answer
            }
            Command::TestUnitReady | Command::Read(_) => vec![],
            Command::Optical(command) => {
                optical::answer(&command, &self.drive(), || nexus.take_media_event())?
            }
            // Answered by the session, which knows all units.
            Command::ReportLuns { .. } => return Err(Sense::INTERNAL_TARGET_FAILURE.into()),
        })
    }

    fn flush_if(&self, wanted: bool) -> Result<Vec<u8>, Sense> {
        if wanted && self.access() == Access::ReadWrite {
            self.disk.flush().map_err(Sense::while_writing)?;
            self.watch_space();
        }
        Ok(vec![])
    }

    /// What REQUEST SENSE says when no attention waits.
    fn pollable(&self) -> Sense {
        match self.is(Condition::SANITIZING) {
            true => self.sanitizing(),
            false => Sense::NONE,
        }
    }

    /// Flushes what a command has changed, if it has asked for that (FUA) or
    /// every change is flushed (WCE off).
    pub(super) fn flush_change(&self, fua: bool) -> Result<Vec<u8>, Sense> {
        self.flush_if(fua || self.is(Condition::WRITE_THROUGH))
    }

    fn mode_facts(&self) -> mode::Facts {
        mode::Facts {
            geometry: self.geometry,
            access: self.access(),
            durability: self.disk.durability(),
            settings: self.state.conditions.now(),
            tells_space: self.space().is_some(),
        }
    }

    /// Does what MODE SELECT's list says; every other nexus is told when that
    /// is a change.
    fn select_mode(&self, by: &Nexus, ten: bool, list: &[u8]) -> Result<(), Sense> {
        let facts = self.mode_facts();
        let settings = mode::select(ten, list, &facts)?;
        if settings != facts.settings {
            let conditions = &self.state.conditions;
            conditions.replace(Condition::SETTINGS, settings);
            let attentions = &self.state.attentions;
            attentions.raise(Sense::MODE_PARAMETERS_CHANGED, Some(by));
        }
        Ok(())
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

    /// Writes the second half of `data` where the disk holds the first.
    fn compare_and_write(
        &self,
        work: &Work,
        data: &[u8],
        is_over: &impl Fn() -> bool,
    ) -> Result<(), Sense> {
        let (expected, wanted) = data.split_at(data.len() / 2);
        if usize::try_from(work.bytes) != Ok(expected.len()) {
            return Err(Sense::INCORRECT_AMOUNT_OF_DATA);
        }
        let _alone = self.alone()?;
        if is_over() {
            return Ok(());
        }
        self.compare(work.offset, expected, 0)?;
        let written = self.disk.write(work.offset, wanted);
        written.map_err(Sense::while_writing)
    }

    /// Writes all of `data` in one go.
    fn write_atomic(
        &self,
        work: &Work,
        data: &[u8],
        is_over: &impl Fn() -> bool,
    ) -> Result<(), Sense> {
        if usize::try_from(work.bytes) != Ok(data.len()) {
            return Err(Sense::INCORRECT_AMOUNT_OF_DATA);
        }
        let _alone = self.alone()?;
        if is_over() {
            return Ok(());
        }
        let written = self.disk.write(work.offset, data);
        written.map_err(Sense::while_writing)
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
                self.unmap(offset, bytes)
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

    fn unmap_ranges(&self, list: &[u8], is_over: &impl Fn() -> bool) -> Result<(), Sense> {
        for range in parse_unmap(list, self.block_count())? {
            let offset = range.lba * self.block_bytes();
            let bytes = u64::from(range.count) * self.block_bytes();
            for_each_step(offset, bytes, is_over, |offset, bytes| {
                self.unmap(offset, bytes)
            })?;
        }
        Ok(())
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
        if self.is_thin() {
            data[14] = 0xc0; // LBPME, LBPRZ
        }
        data
    }

    fn last_lba(&self) -> u64 {
        self.block_count().saturating_sub(1)
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
