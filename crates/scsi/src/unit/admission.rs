//! Admission: what is checked before any data moves (SAM-5 section 5.14).

use disk::{Access, Durability};

use super::{DataOut, LogicalUnit, MAX_TRANSFER_BYTES, Pace, Work};
use crate::attention::Nexus;
use crate::command::{Blocks, Command, Compare};
use crate::conditions::Condition;
use crate::copy::CopyCommand;
use crate::opcodes::Family;
use crate::provisioning::{MAX_UNMAP_LIST_BYTES, max_write_same_blocks};
use crate::reservation::ReservationCommand;
use crate::{Refusal, Sense, mode};

/// The most one COMPARE AND WRITE compares: it is held in memory.
const MAX_COMPARE_BYTES: u32 = 128 << 10;
/// UNMAP, WRITE SAME and VERIFY up to this size are done at once.
const SMALL_BYTES: u64 = 64 << 10;

impl LogicalUnit {
    /// Checks a command, in the order SAM-5 section 5.14 and SPC-4 want: unit
    /// attention, reservations, operation code, fields, write protection, range.
    pub fn admit(&self, nexus: &Nexus, cdb: &[u8]) -> Result<Work, Refusal> {
        // Before the check of reservations: who is preempted after it is void.
        let resets = self.resets_of(nexus);
        let exempt = matches!(cdb.first(), Some(0x12 | 0xa0 | 0x03));
        if !exempt && let Some(attention) = nexus.take() {
            return Err(attention.into());
        }
        self.state.reservations.admit(nexus, cdb)?;
        let command = Command::parse_as(self.shape().device, cdb)?;
        if !self.offers(command.family()) {
            let is_an_action = matches!(command, Command::Sanitize(_));
            return Err(match is_an_action && self.offers(Family::Sanitize) {
                true => Sense::invalid_cdb_field(1, 4).into(),
                false => Sense::INVALID_OPCODE.into(),
            });
        }
        let now = self.state.conditions.now();
        if now.has(Condition::UNREADY) {
            self.check_ready(now, &command)?;
        }
        let work = self.check(command)?;
        Ok(Work { resets, ..work })
    }

    /// Checks the fields of a command against the unit.
    fn check(&self, command: Command) -> Result<Work, Sense> {
        let plain = Work {
            command,
            offset: 0,
            bytes: 0,
            data_out: DataOut::None,
            pace: Pace::AtOnce,
            resets: 0,
        };
        match command {
            Command::Read(blocks) => {
                self.check_transfer(blocks)?;
                self.ranged(plain, blocks)
            }
            Command::Write { blocks, fua } | Command::OrWrite { blocks, fua } => {
                self.check_transfer(blocks)?;
                self.check_writable()?;
                let work = self.ranged(plain, blocks)?;
                Ok(Work {
                    data_out: DataOut::Streamed(work.bytes),
                    pace: self.flush_pace(fua || self.is(Condition::WRITE_THROUGH)),
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
            Command::CompareAndWrite { blocks, fua } => {
                if blocks.count > max_compare_blocks(self.geometry.logical_block_bytes) {
                    return Err(Sense::invalid_cdb_field(13, 7));
                }
                self.check_writable()?;
                let work = self.ranged(plain, blocks)?;
                Ok(Work {
                    // What is compared, then what is written.
                    data_out: DataOut::Gathered(2 * work.bytes),
                    pace: self.flush_pace(fua || self.is(Condition::WRITE_THROUGH)),
                    ..work
                })
            }
            Command::WriteAtomic {
                blocks,
                boundary,
                fua,
            } => {
                self.check_writable()?;
                let work = self.ranged(plain, blocks)?;
                if work.bytes > self.max_atomic_bytes() {
                    return Err(Sense::invalid_cdb_field(12, 7));
                }
                if boundary != 0 {
                    return Err(Sense::invalid_cdb_field(10, 7));
                }
                Ok(Work {
                    data_out: DataOut::Gathered(work.bytes),
                    pace: self.flush_pace(fua || self.is(Condition::WRITE_THROUGH)),
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
                if load_eject && power_condition == 0 {
                    self.check_removal()?;
                }
                let flushes = !start && power_condition == 0 && !no_flush;
                Ok(Work {
                    pace: self.flush_pace(flushes),
                    ..plain
                })
            }
            Command::Sanitize(asked) => {
                self.check_sanitize(&asked)?;
                Ok(Work {
                    data_out: DataOut::Gathered(u64::from(asked.list_bytes)),
                    pace: Pace::Slow,
                    ..plain
                })
            }
            Command::ModeSelect { ten: _, list_bytes } => {
                if list_bytes > mode::MAX_LIST_BYTES {
                    return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
                }
                Ok(Work {
                    data_out: DataOut::Gathered(u64::from(list_bytes)),
                    ..plain
                })
            }
            Command::WriteSame {
                blocks,
                unmap,
                no_data_out,
            } => self.admit_write_same(plain, blocks, unmap, no_data_out),
            Command::Unmap { list_bytes } => {
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
            Command::Optical(own) if own.list_bytes() > 0 => Ok(Work {
                data_out: DataOut::Gathered(u64::from(own.list_bytes())),
                ..plain
            }),
            Command::Copy(CopyCommand::Copy { list_bytes }) => Ok(Work {
                data_out: DataOut::Gathered(u64::from(list_bytes)),
                pace: Pace::Slow,
                ..plain
            }),
            Command::Reservation(command) => Ok(Work {
                data_out: match command {
                    ReservationCommand::Out { list_bytes, .. } => {
                        DataOut::Gathered(u64::from(list_bytes))
                    }
                    _ => DataOut::None,
                },
                pace: match self.state.reservations.is_slow(command) {
                    true => Pace::Slow,
                    false => Pace::AtOnce,
                },
                ..plain
            }),
            Command::GetLbaStatus { lba, .. } if lba >= self.block_count() => {
                Err(Sense::LBA_OUT_OF_RANGE)
            }
            // Thousands of questions to a file system, at most.
            Command::GetLbaStatus { .. } if self.is_thin() => Ok(Work {
                pace: Pace::Slow,
                ..plain
            }),
            _ => Ok(plain),
        }
    }

    /// How much data-out a command takes when the initiator offers `offered`
    /// bytes. Short of its length, a write takes the whole blocks there are.
    pub fn fit(&self, work: &Work, offered: u64) -> Result<u64, Sense> {
        let wanted = match work.data_out {
            DataOut::None => 0,
            DataOut::Streamed(bytes) | DataOut::Gathered(bytes) => bytes,
        };
        match work.command {
            // The length is the initiator's word for how much is compared.
            Command::CompareAndWrite { .. } if offered != wanted => {
                Err(Sense::invalid_cdb_field(13, 7))
            }
            // Exactly one block, no more and no less.
            Command::WriteSame { .. } if wanted > 0 && offered != wanted => {
                Err(Sense::INVALID_FIELD_IN_COMMAND_IU)
            }
            Command::Write { .. } | Command::OrWrite { .. } | Command::WriteAndVerify { .. }
                if offered < wanted =>
            {
                Ok(offered - offered % self.block_bytes())
            }
            _ if offered < wanted => Err(Sense::INVALID_FIELD_IN_COMMAND_IU),
            _ => Ok(wanted),
        }
    }

    /// Refuses more than [`MAX_TRANSFER_BYTES`].
    fn check_transfer(&self, blocks: Blocks) -> Result<(), Sense> {
        match u64::from(blocks.count) * self.block_bytes() > MAX_TRANSFER_BYTES {
            true => Err(Sense::INVALID_FIELD_IN_CDB),
            false => Ok(()),
        }
    }

    pub(super) fn check_writable(&self) -> Result<(), Sense> {
        match self.access() {
            Access::ReadOnly => Err(Sense::WRITE_PROTECTED),
            Access::ReadWrite if self.is(Condition::PROTECTED) => {
                Err(Sense::SOFTWARE_WRITE_PROTECTED)
            }
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
        self.check_writable()?;
        if unmap && !is_thin {
            return Err(Sense::invalid_cdb_field(1, 3));
        }
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
            pace: match self.is(Condition::WRITE_THROUGH) {
                true => Pace::Slow,
                false => pace_of(bytes),
            },
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
}

/// MAXIMUM COMPARE AND WRITE LENGTH in blocks, a field of one byte.
pub(crate) fn max_compare_blocks(block_bytes: u32) -> u32 {
    (MAX_COMPARE_BYTES / block_bytes).min(255)
}

fn pace_of(bytes: u64) -> Pace {
    match bytes > SMALL_BYTES {
        true => Pace::Slow,
        false => Pace::AtOnce,
    }
}
