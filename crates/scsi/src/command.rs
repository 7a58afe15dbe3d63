//! Command descriptor blocks, parsed (SPC-4, SBC-3).
//!
//! Past [`Command::parse`] no CDB byte is looked at again. What depends on
//! the unit (its size, whether it can be written) is checked by the unit.

use crate::copy::CopyCommand;
use crate::reservation::ReservationCommand;
use crate::{Device, Sanitize, SanitizeAction, Sense, SenseFormat, optical};

/// A parsed command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// TEST UNIT READY.
    TestUnitReady,
    /// REQUEST SENSE.
    RequestSense {
        /// Layout asked for (DESC).
        format: SenseFormat,
        /// Allocation length.
        allocation: u8,
    },
    /// INQUIRY.
    Inquiry {
        /// Vital product data page, or standard data.
        page: Option<u8>,
        /// Allocation length.
        allocation: u16,
    },
    /// MODE SENSE(6) or (10).
    ModeSense(ModeSense),
    /// MODE SELECT(6) or (10).
    ModeSelect {
        /// MODE SELECT(10), with its longer header.
        ten: bool,
        /// Parameter list length.
        list_bytes: u16,
    },
    /// LOG SENSE.
    LogSense(LogSense),
    /// PREVENT ALLOW MEDIUM REMOVAL.
    PreventAllow {
        /// Keeps the medium in.
        prevent: bool,
    },
    /// START STOP UNIT.
    StartStopUnit {
        /// Load or eject the medium.
        load_eject: bool,
        /// Start rather than stop.
        start: bool,
        /// POWER CONDITION.
        power_condition: u8,
        /// Stop without a flush.
        no_flush: bool,
    },
    /// READ CAPACITY(10).
    ReadCapacity10,
    /// READ CAPACITY(16).
    ReadCapacity16 {
        /// Allocation length.
        allocation: u32,
    },
    /// READ of any length of CDB.
    Read(Blocks),
    /// WRITE of any length of CDB.
    Write {
        /// What is written.
        blocks: Blocks,
        /// Answered only when durable.
        fua: bool,
    },
    /// WRITE AND VERIFY of any length of CDB.
    WriteAndVerify {
        /// What is written.
        blocks: Blocks,
        /// Read back and compared.
        compare: bool,
    },
    /// ORWRITE(16).
    OrWrite {
        /// What is read, combined and written.
        blocks: Blocks,
        /// Answered only when durable.
        fua: bool,
    },
    /// COMPARE AND WRITE.
    CompareAndWrite {
        /// What is compared, and written when it is equal.
        blocks: Blocks,
        /// Answered only when durable.
        fua: bool,
    },
    /// WRITE ATOMIC(16).
    WriteAtomic {
        /// What is written, all or nothing.
        blocks: Blocks,
        /// Where it may be split; 0 nowhere.
        boundary: u16,
        /// Answered only when durable.
        fua: bool,
    },
    /// SANITIZE.
    Sanitize(Sanitize),
    /// VERIFY of any length of CDB.
    Verify {
        /// What is verified.
        blocks: Blocks,
        /// Against what.
        compare: Compare,
    },
    /// PRE-FETCH(10) or (16).
    PreFetch(Blocks),
    /// SYNCHRONIZE CACHE(10) or (16).
    SynchronizeCache(Blocks),
    /// WRITE SAME(10) or (16).
    WriteSame {
        /// What is written; 0 blocks means up to the end.
        blocks: Blocks,
        /// May be unmapped instead.
        unmap: bool,
        /// No data-out: zeros.
        no_data_out: bool,
    },
    /// UNMAP.
    Unmap {
        /// Parameter list length.
        list_bytes: u16,
    },
    /// GET LBA STATUS.
    GetLbaStatus {
        /// First block asked about.
        lba: u64,
        /// Allocation length.
        allocation: u32,
    },
    /// PERSISTENT RESERVE IN and OUT, RESERVE, RELEASE.
    Reservation(ReservationCommand),
    /// EXTENDED COPY, RECEIVE COPY RESULTS.
    Copy(CopyCommand),
    /// REPORT LUNS.
    ReportLuns {
        /// SELECT REPORT.
        select: u8,
        /// Allocation length.
        allocation: u32,
    },
    /// REPORT SUPPORTED OPERATION CODES.
    ReportSupportedOpcodes(ReportOpcodes),
    /// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS.
    ReportSupportedFunctions {
        /// REPD: the long form.
        extended: bool,
        /// Allocation length.
        allocation: u32,
    },
    /// REPORT TARGET PORT GROUPS.
    ReportTargetPortGroups {
        /// The extended header.
        extended: bool,
        /// Allocation length.
        allocation: u32,
    },
    /// READ DEFECT DATA(10) or (12).
    ReadDefectData(ReadDefects),
    /// A command that only a CD or DVD drive knows.
    Optical(optical::Command),
}

impl Command {
    /// Whether the command speaks of the medium, and so needs one.
    pub(crate) fn needs_medium(&self) -> bool {
        !matches!(
            self,
            Command::RequestSense { .. }
                | Command::Inquiry { .. }
                | Command::ModeSense(_)
                | Command::ModeSelect { .. }
                | Command::LogSense(_)
                | Command::PreventAllow { .. }
                | Command::StartStopUnit { .. }
                | Command::ReportLuns { .. }
                | Command::ReportSupportedOpcodes(_)
                | Command::ReportSupportedFunctions { .. }
                | Command::ReportTargetPortGroups { .. }
                | Command::Reservation(_)
                // A copy may be between other units; of itself it asks then.
                | Command::Copy(_)
                // Of these each knows for itself.
                | Command::Optical(_)
        )
    }
}

/// A range of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// First block.
    pub lba: u64,
    /// How many.
    pub count: u32,
}

/// What VERIFY compares with (BYTCHK).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// Nothing: the medium must be readable.
    Medium,
    /// Data-out of the whole length.
    Data,
    /// One block of data-out, for every block.
    OneBlock,
}

/// MODE SENSE's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeSense {
    /// MODE SENSE(10), with its longer header.
    pub ten: bool,
    /// DBD: no block descriptor.
    pub no_block_descriptor: bool,
    /// PC: 0 current, 1 changeable, 2 default, 3 saved.
    pub control: u8,
    /// Page code.
    pub page: u8,
    /// Subpage code.
    pub subpage: u8,
    /// Allocation length.
    pub allocation: u16,
}

/// REPORT SUPPORTED OPERATION CODES' fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportOpcodes {
    /// RCTD: with timeouts.
    pub timeouts: bool,
    /// REPORTING OPTIONS.
    pub options: u8,
    /// REQUESTED OPERATION CODE.
    pub opcode: u8,
    /// REQUESTED SERVICE ACTION.
    pub service_action: u16,
    /// Allocation length.
    pub allocation: u32,
}

/// LOG SENSE's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSense {
    /// Page code.
    pub page: u8,
    /// Subpage code.
    pub subpage: u8,
    /// PARAMETER POINTER: the first parameter wanted.
    pub pointer: u16,
    /// Allocation length.
    pub allocation: u16,
}

/// READ DEFECT DATA's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadDefects {
    /// READ DEFECT DATA(12), with its longer header.
    pub twelve: bool,
    /// REQ_PLIST, REQ_GLIST and DEFECT LIST FORMAT, as they are echoed.
    pub lists: u8,
    /// Allocation length.
    pub allocation: u32,
}

/// DPO and FUA in byte 1.
const FUA: u8 = 0x08;
/// RDPROTECT, WRPROTECT, VRPROTECT in byte 1: no unit has protection.
const PROTECT: u8 = 0xe0;
/// NACA in the CONTROL byte; the vendor's bits 7 and 6 are ignored.
const NACA: u8 = 0x04;

impl Command {
    /// Parses a CDB as a disk understands it; `bytes` may be longer than the
    /// command (iSCSI always carries 16).
    pub fn parse(bytes: &[u8]) -> Result<Command, Sense> {
        Command::parse_as(Device::Disk, bytes)
    }

    /// Parses a CDB as a device of this type understands it.
    pub fn parse_as(device: Device, bytes: &[u8]) -> Result<Command, Sense> {
        let Some(&opcode) = bytes.first() else {
            return Err(Sense::INVALID_OPCODE);
        };
        // The group code says how long the CDB is; CONTROL is its last byte.
        let control: u8 = match opcode >> 5 {
            0 => 5,
            1 | 2 => 9,
            4 => 15,
            5 => 11,
            _ => return Err(Sense::INVALID_OPCODE),
        };
        let length = usize::from(control) + 1;
        // A short CDB reads as zeros past its end.
        let mut cdb = [0u8; 16];
        let given = bytes.len().min(length);
        cdb[..given].copy_from_slice(&bytes[..given]);
        let command = match device {
            Device::Disk => Cdb(cdb).command()?,
            Device::Optical => optical::parse(&cdb, || Cdb(cdb).command())?,
        };
        if cdb[usize::from(control)] & NACA != 0 {
            return Err(Sense::invalid_cdb_field(control, 2));
        }
        Ok(command)
    }
}

/// A CDB, padded with zeros.
struct Cdb([u8; 16]);

impl Cdb {
    fn command(&self) -> Result<Command, Sense> {
        let cdb = &self.0;
        Ok(match cdb[0] {
            0x00 => Command::TestUnitReady,
            0x03 => Command::RequestSense {
                format: if cdb[1] & 1 != 0 {
                    SenseFormat::Descriptor
                } else {
                    SenseFormat::Fixed
                },
                allocation: cdb[4],
            },
            0x08 => Command::Read(self.blocks6()),
            0x0a => Command::Write {
                blocks: self.blocks6(),
                fua: false,
            },
            0x12 => self.inquiry()?,
            0x1a => self.mode_sense(false),
            0x5a => self.mode_sense(true),
            0x15 => self.mode_select(false)?,
            0x55 => self.mode_select(true)?,
            0x1e => match cdb[4] & 0x03 {
                prevent @ (0 | 1) => Command::PreventAllow {
                    prevent: prevent == 1,
                },
                _ => return Err(Sense::invalid_cdb_field(4, 1)),
            },
            0x1b => Command::StartStopUnit {
                power_condition: cdb[4] >> 4,
                no_flush: cdb[4] & 0x04 != 0,
                load_eject: cdb[4] & 0x02 != 0,
                start: cdb[4] & 0x01 != 0,
            },
            0x25 => {
                // LBA and PMI are obsolete and must be 0.
                if cdb[8] & 1 != 0 || cdb[2..6] != [0; 4] {
                    return Err(Sense::invalid_cdb_field(2, 7));
                }
                Command::ReadCapacity10
            }
            0x28 | 0x88 | 0xa8 => Command::Read(self.protected_blocks()?),
            0x2a | 0x8a | 0xaa => Command::Write {
                blocks: self.protected_blocks()?,
                fua: cdb[1] & FUA != 0,
            },
            0x89 => Command::CompareAndWrite {
                blocks: Blocks {
                    count: u32::from(cdb[13]),
                    ..self.protected_blocks()?
                },
                fua: cdb[1] & FUA != 0,
            },
            0x8b => Command::OrWrite {
                blocks: self.protected_blocks()?,
                fua: cdb[1] & FUA != 0,
            },
            0x48 => self.sanitize()?,
            0x4d => match cdb[1] & 0x03 {
                0 => Command::LogSense(LogSense {
                    page: cdb[2] & 0x3f,
                    subpage: cdb[3],
                    pointer: self.u16_at(5),
                    allocation: self.u16_at(7),
                }),
                _ => return Err(Sense::invalid_cdb_field(1, 1)), // PPC, SP
            },
            0x9c => Command::WriteAtomic {
                blocks: Blocks {
                    count: u32::from(self.u16_at(12)),
                    ..self.protected_blocks()?
                },
                boundary: self.u16_at(10),
                fua: cdb[1] & FUA != 0,
            },
            0x2e | 0x8e | 0xae => {
                let blocks = self.protected_blocks()?;
                let compare = match (cdb[1] >> 1) & 3 {
                    0 => false,
                    1 => true,
                    _ => return Err(Sense::invalid_cdb_field(1, 2)),
                };
                Command::WriteAndVerify { blocks, compare }
            }
            0x2f | 0x8f | 0xaf => {
                let blocks = self.protected_blocks()?;
                let compare = match (cdb[1] >> 1) & 3 {
                    0 => Compare::Medium,
                    1 => Compare::Data,
                    3 => Compare::OneBlock,
                    _ => return Err(Sense::invalid_cdb_field(1, 2)),
                };
                Command::Verify { blocks, compare }
            }
            0x34 | 0x90 => Command::PreFetch(self.blocks()),
            0x35 | 0x91 => Command::SynchronizeCache(self.blocks()),
            0x37 => Command::ReadDefectData(ReadDefects {
                twelve: false,
                lists: cdb[2] & 0x1f,
                allocation: u32::from(self.u16_at(7)),
            }),
            0xb7 => Command::ReadDefectData(ReadDefects {
                twelve: true,
                lists: cdb[1] & 0x1f,
                allocation: self.u32_at(6),
            }),
            0x41 | 0x93 => self.write_same()?,
            0x42 => {
                if cdb[1] & 1 != 0 {
                    return Err(Sense::invalid_cdb_field(1, 0)); // ANCHOR
                }
                Command::Unmap {
                    list_bytes: self.u16_at(7),
                }
            }
            0x83 | 0x84 => Command::Copy(CopyCommand::parse(cdb)?),
            0x16 | 0x17 | 0x56 | 0x57 | 0x5e | 0x5f => {
                Command::Reservation(ReservationCommand::parse(cdb)?)
            }
            0x9e => match cdb[1] & 0x1f {
                0x10 => Command::ReadCapacity16 {
                    allocation: self.u32_at(10),
                },
                0x12 => Command::GetLbaStatus {
                    lba: self.blocks().lba,
                    allocation: self.u32_at(10),
                },
                _ => return Err(Sense::INVALID_OPCODE),
            },
            0xa0 => Command::ReportLuns {
                select: cdb[2],
                allocation: self.u32_at(6),
            },
            0xa3 => match cdb[1] & 0x1f {
                0x0a => Command::ReportTargetPortGroups {
                    extended: match cdb[1] >> 5 {
                        0 => false,
                        1 => true,
                        _ => return Err(Sense::invalid_cdb_field(1, 7)),
                    },
                    allocation: self.u32_at(6),
                },
                0x0d => Command::ReportSupportedFunctions {
                    extended: cdb[2] & 0x80 != 0,
                    allocation: self.u32_at(6),
                },
                0x0c => Command::ReportSupportedOpcodes(ReportOpcodes {
                    timeouts: cdb[2] & 0x80 != 0,
                    options: cdb[2] & 0x07,
                    opcode: cdb[3],
                    service_action: self.u16_at(4),
                    allocation: self.u32_at(6),
                }),
                _ => return Err(Sense::INVALID_OPCODE),
            },
            _ => return Err(Sense::INVALID_OPCODE),
        })
    }

    fn inquiry(&self) -> Result<Command, Sense> {
        let [_, flags, page, ..] = self.0;
        let page = match (flags & 1 != 0, page) {
            (true, page) => Some(page),
            (false, 0) => None,
            (false, _) => return Err(Sense::invalid_cdb_field(2, 7)),
        };
        Ok(Command::Inquiry {
            page,
            allocation: self.u16_at(3),
        })
    }

    fn mode_sense(&self, ten: bool) -> Command {
        let cdb = &self.0;
        Command::ModeSense(ModeSense {
            ten,
            no_block_descriptor: cdb[1] & 0x08 != 0,
            control: cdb[2] >> 6,
            page: cdb[2] & 0x3f,
            subpage: cdb[3],
            allocation: if ten {
                self.u16_at(7)
            } else {
                u16::from(cdb[4])
            },
        })
    }

    fn sanitize(&self) -> Result<Command, Sense> {
        let flags = self.0[1];
        let action = match flags & 0x1f {
            0x01 => SanitizeAction::Overwrite,
            0x02 => SanitizeAction::BlockErase,
            0x1f => SanitizeAction::ExitFailureMode,
            _ => return Err(Sense::invalid_cdb_field(1, 4)),
        };
        if flags & 0x40 != 0 {
            return Err(Sense::invalid_cdb_field(1, 6)); // ZNR: no zones here
        }
        if let Some(at) = (2u8..7).find(|at| self.0[usize::from(*at)] != 0) {
            return Err(Sense::invalid_cdb_field(at, 7));
        }
        Ok(Command::Sanitize(Sanitize {
            action,
            immediate: flags & 0x80 != 0,
            unrestricted_exit: flags & 0x20 != 0,
            list_bytes: self.u16_at(7),
        }))
    }

    fn mode_select(&self, ten: bool) -> Result<Command, Sense> {
        let list_bytes = match ten {
            true => self.u16_at(7),
            false => u16::from(self.0[4]),
        };
        // Pages as the standard has them (PF), and none saved (SP).
        if self.0[1] & 0x10 == 0 && list_bytes > 0 {
            return Err(Sense::invalid_cdb_field(1, 4));
        }
        if self.0[1] & 0x01 != 0 {
            return Err(Sense::invalid_cdb_field(1, 0));
        }
        Ok(Command::ModeSelect { ten, list_bytes })
    }

    fn write_same(&self) -> Result<Command, Sense> {
        let flags = self.0[1];
        if flags & PROTECT != 0 {
            return Err(Sense::invalid_cdb_field(1, 7));
        }
        if flags & 0x10 != 0 {
            return Err(Sense::invalid_cdb_field(1, 4)); // ANCHOR
        }
        let no_data_out = self.0[0] == 0x93 && flags & 1 != 0; // NDOB
        Ok(Command::WriteSame {
            blocks: self.blocks(),
            unmap: flags & 0x08 != 0,
            no_data_out,
        })
    }

    /// LBA and length where READ(6) has them; 0 blocks means 256.
    fn blocks6(&self) -> Blocks {
        let cdb = &self.0;
        Blocks {
            lba: u64::from(u32::from_be_bytes([0, cdb[1] & 0x1f, cdb[2], cdb[3]])),
            count: match cdb[4] {
                0 => 256,
                count => u32::from(count),
            },
        }
    }

    /// LBA and length where the long forms have them.
    fn blocks(&self) -> Blocks {
        match self.0[0] >> 5 {
            4 => Blocks {
                lba: (u64::from(self.u32_at(2)) << 32) | u64::from(self.u32_at(6)),
                count: self.u32_at(10),
            },
            5 => Blocks {
                lba: u64::from(self.u32_at(2)),
                count: self.u32_at(6),
            },
            _ => Blocks {
                lba: u64::from(self.u32_at(2)),
                count: u32::from(self.u16_at(7)),
            },
        }
    }

    /// The same, when no protection information is asked for.
    fn protected_blocks(&self) -> Result<Blocks, Sense> {
        if self.0[1] & PROTECT != 0 {
            return Err(Sense::invalid_cdb_field(1, 7));
        }
        Ok(self.blocks())
    }

    fn u16_at(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.0[at], self.0[at + 1]])
    }

    fn u32_at(&self, at: usize) -> u32 {
        (u32::from(self.u16_at(at)) << 16) | u32::from(self.u16_at(at + 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn read_6_of_0_blocks_reads_256() {
        assert_eq!(
            Command::parse(&[0x08, 0x1f, 0xff, 0xff, 0, 0]),
            Ok(Command::Read(Blocks {
                lba: 0x1f_ffff,
                count: 256
            }))
        );
    }

    #[test]
    fn the_four_lengths_of_write_name_the_same_blocks() {
        let blocks = Blocks {
            lba: 0x1234,
            count: 8,
        };
        let plain = Ok(Command::Write { blocks, fua: false });
        assert_eq!(Command::parse(&[0x0a, 0, 0x12, 0x34, 8, 0]), plain);
        let fua = Ok(Command::Write { blocks, fua: true });
        assert_eq!(
            Command::parse(&[0x2a, 8, 0, 0, 0x12, 0x34, 0, 0, 8, 0]),
            fua
        );
        assert_eq!(
            Command::parse(&[0xaa, 8, 0, 0, 0x12, 0x34, 0, 0, 0, 8, 0, 0]),
            fua
        );
        assert_eq!(
            Command::parse(&[0x8a, 8, 0, 0, 0, 0, 0, 0, 0x12, 0x34, 0, 0, 0, 8, 0, 0]),
            fua
        );
    }

    #[test]
    fn protection_is_refused_in_every_shape() {
        for protect in 1..=7u8 {
            let cdb = [0x28, protect << 5, 0, 0, 0, 0, 0, 0, 1, 0];
            let sense = Command::parse(&cdb).unwrap_err();
            assert_eq!((sense.asc, sense.ascq), (0x24, 0));
        }
    }

    #[test]
    fn naca_is_refused_and_the_vendor_bits_of_control_are_not() {
        assert!(Command::parse(&[0, 0, 0, 0, 0, 0xc0]).is_ok());
        assert_eq!(
            Command::parse(&[0, 0, 0, 0, 0, 0x04]),
            Err(Sense::invalid_cdb_field(5, 2))
        );
    }

    #[test]
    fn a_page_without_evpd_is_refused() {
        let cdb = [0x12, 0, 0x80, 0, 255, 0];
        assert_eq!(Command::parse(&cdb), Err(Sense::invalid_cdb_field(2, 7)));
    }

    proptest! {
        #[test]
        fn no_cdb_makes_the_parser_panic(cdb in proptest::collection::vec(any::<u8>(), 0..20)) {
            let _ = Command::parse(&cdb);
        }
    }
}
