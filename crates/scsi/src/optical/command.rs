//! The commands that only a CD or DVD drive knows, parsed (MMC-6 section 6).

use crate::Sense;
use crate::command::{self, Blocks};

/// A parsed command of a drive's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// READ TOC/PMA/ATIP.
    ReadToc {
        /// Which table.
        form: TocForm,
        /// How its addresses are spelt.
        addresses: Addresses,
        /// Allocation length.
        allocation: u16,
    },
    /// GET CONFIGURATION.
    GetConfiguration {
        /// Which features (RT).
        scope: Scope,
        /// STARTING FEATURE NUMBER.
        first: u16,
        /// Allocation length.
        allocation: u16,
    },
    /// GET EVENT STATUS NOTIFICATION, polled.
    GetEventStatus {
        /// NOTIFICATION CLASS REQUEST, one bit each.
        classes: u8,
        /// Allocation length.
        allocation: u16,
    },
    /// READ DISC INFORMATION, standard.
    ReadDiscInformation {
        /// Allocation length.
        allocation: u16,
    },
    /// READ TRACK INFORMATION.
    ReadTrackInformation {
        /// Which track.
        of: TrackAddress,
        /// Allocation length.
        allocation: u16,
    },
    /// READ DISC STRUCTURE of a DVD.
    ReadDvdStructure {
        /// LAYER NUMBER.
        layer: u8,
        /// FORMAT CODE.
        format: u8,
        /// Allocation length.
        allocation: u16,
    },
    /// REPORT KEY of the DVD key class.
    ReportKey {
        /// KEY FORMAT.
        format: u8,
        /// Allocation length.
        allocation: u16,
    },
    /// MECHANISM STATUS.
    MechanismStatus {
        /// Allocation length.
        allocation: u16,
    },
    /// GET PERFORMANCE.
    GetPerformance(GetPerformance),
    /// SEEK(10), and READ CD that wants no data.
    Seek {
        /// Address that must be on the disc.
        lba: u32,
    },
    /// SET CD SPEED.
    SetCdSpeed,
    /// SET STREAMING.
    SetStreaming {
        /// Parameter list length.
        list_bytes: u16,
    },
}

impl Command {
    /// Bytes of the parameter list the command needs from the initiator.
    pub(crate) fn list_bytes(&self) -> u16 {
        match self {
            Command::SetStreaming { list_bytes } => *list_bytes,
            _ => 0,
        }
    }
}

/// Which table READ TOC asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TocForm {
    /// 0: the tracks from this one on, and the lead-out.
    Tracks {
        /// First track; AAh is the lead-out alone.
        from: u8,
    },
    /// 1: where the last session begins.
    Sessions,
    /// 2: all that stands in the lead-in, from this session on.
    Raw {
        /// First session.
        from: u8,
    },
}

/// How addresses are spelt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// Logical block addresses.
    Lba,
    /// Minute, second, frame (1/75 s), from two seconds before block 0.
    Msf,
}

/// Which features GET CONFIGURATION asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All.
    All,
    /// Those that are current.
    Current,
    /// One.
    One,
}

/// How READ TRACK INFORMATION names a track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackAddress {
    /// By a block of it.
    Lba(u32),
    /// By its number.
    Track(u32),
    /// As the first of a session.
    Session(u32),
}

/// GET PERFORMANCE's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetPerformance {
    /// What is asked for.
    pub subject: Subject,
    /// MAXIMUM NUMBER OF DESCRIPTORS.
    pub max_descriptors: u16,
}

/// What GET PERFORMANCE is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// How fast the disc is read.
    Read,
    /// How fast it is written.
    Write,
    /// Where it is read (false) or written (true) slower than that.
    Exceptions {
        /// When writing.
        write: bool,
    },
    /// At which speeds it can be written.
    WriteSpeeds,
}

/// READ CD's byte 9 for user data alone.
const USER_DATA: u8 = 0x10;

/// Parses a CDB as a drive understands it: its own commands, and of those of
/// disks the ones that [`OPCODES`](super::OPCODES) lists.
pub(crate) fn parse(
    cdb: &[u8; 16],
    as_disk: impl FnOnce() -> Result<command::Command, Sense>,
) -> Result<command::Command, Sense> {
    let own = match cdb[0] {
        0x2b => Command::Seek {
            lba: u32_at(cdb, 2),
        },
        0x43 => read_toc(cdb)?,
        0x46 => Command::GetConfiguration {
            scope: match cdb[1] & 0x03 {
                0 => Scope::All,
                1 => Scope::Current,
                2 => Scope::One,
                _ => return Err(Sense::invalid_cdb_field(1, 1)),
            },
            first: u16_at(cdb, 2),
            allocation: u16_at(cdb, 7),
        },
        // Nobody is notified later: iSCSI has no such thing.
        0x4a if cdb[1] & 0x01 == 0 => return Err(Sense::invalid_cdb_field(1, 0)),
        0x4a => Command::GetEventStatus {
            classes: cdb[4],
            allocation: u16_at(cdb, 7),
        },
        0x51 if cdb[1] & 0x07 != 0 => return Err(Sense::invalid_cdb_field(1, 2)),
        0x51 => Command::ReadDiscInformation {
            allocation: u16_at(cdb, 7),
        },
        0x52 => read_track_information(cdb)?,
        0xa4 if cdb[7] != 0 => return Err(Sense::invalid_cdb_field(7, 7)), // key class
        0xa4 => Command::ReportKey {
            format: cdb[10] & 0x3f,
            allocation: u16_at(cdb, 8),
        },
        0xac => get_performance(cdb)?,
        0xad if cdb[1] & 0x0f != 0 => return Err(Sense::invalid_cdb_field(1, 3)), // not a DVD's
        0xad => Command::ReadDvdStructure {
            layer: cdb[6],
            format: cdb[7],
            allocation: u16_at(cdb, 8),
        },
        0xb6 => Command::SetStreaming {
            list_bytes: u16_at(cdb, 9),
        },
        0xbb => Command::SetCdSpeed,
        0xbd => Command::MechanismStatus {
            allocation: u16_at(cdb, 8),
        },
        0xbe => return read_cd(cdb),
        code => {
            let action = u16::from(cdb[1] & 0x1f);
            let is_shared = super::OPCODES.iter().any(|known| {
                known.code == code && known.service_action.is_none_or(|known| known == action)
            });
            return match is_shared {
                true => as_disk(),
                false => Err(Sense::INVALID_OPCODE),
            };
        }
    };
    Ok(command::Command::Optical(own))
}

fn read_toc(cdb: &[u8; 16]) -> Result<Command, Sense> {
    // Where SFF 8020 had the format, and Linux still writes it.
    let format = match cdb[2] & 0x0f {
        0 => cdb[9] >> 6,
        format => format,
    };
    let addresses = match cdb[1] & 0x02 {
        0 => Addresses::Lba,
        _ => Addresses::Msf,
    };
    let form = match (format, cdb[6]) {
        (0, from @ (0 | 1 | 0xaa)) => TocForm::Tracks { from },
        (0, _) => return Err(Sense::invalid_cdb_field(6, 7)),
        (1, _) => TocForm::Sessions,
        (2, from @ (0 | 1)) => TocForm::Raw { from },
        (2, _) => return Err(Sense::invalid_cdb_field(6, 7)),
        _ => return Err(Sense::invalid_cdb_field(2, 3)),
    };
    Ok(Command::ReadToc {
        form,
        addresses,
        allocation: u16_at(cdb, 7),
    })
}

fn read_track_information(cdb: &[u8; 16]) -> Result<Command, Sense> {
    let address = u32_at(cdb, 2);
    Ok(Command::ReadTrackInformation {
        of: match cdb[1] & 0x03 {
            0 => TrackAddress::Lba(address),
            1 => TrackAddress::Track(address),
            2 => TrackAddress::Session(address),
            _ => return Err(Sense::invalid_cdb_field(1, 1)),
        },
        allocation: u16_at(cdb, 7),
    })
}

/// READ CD (MMC-6 section 6.17): the user data of mode 1, which is all that a
/// DVD and an ISO have.
fn read_cd(cdb: &[u8; 16]) -> Result<command::Command, Sense> {
    // Expected sector type: any, or mode 1.
    if !matches!((cdb[1] >> 2) & 0x07, 0 | 2) {
        return Err(Sense::ILLEGAL_MODE_FOR_THIS_TRACK);
    }
    if cdb[10] & 0x07 != 0 {
        return Err(Sense::invalid_cdb_field(10, 2)); // sub-channel
    }
    let lba = u32_at(cdb, 2);
    match cdb[9] {
        USER_DATA => Ok(command::Command::Read(Blocks {
            lba: u64::from(lba),
            count: u32::from_be_bytes([0, cdb[6], cdb[7], cdb[8]]),
        })),
        0 => Ok(command::Command::Optical(Command::Seek { lba })),
        _ => Err(Sense::invalid_cdb_field(9, 7)),
    }
}

fn get_performance(cdb: &[u8; 16]) -> Result<Command, Sense> {
    let write = cdb[1] & 0x04 != 0;
    let subject = match (cdb[10], cdb[1] & 0x03) {
        (0x00, 0 | 1) if write => Subject::Write,
        (0x00, 0 | 1) => Subject::Read,
        (0x00, 2) => Subject::Exceptions { write },
        (0x00, _) => return Err(Sense::invalid_cdb_field(1, 1)),
        (0x03, _) => Subject::WriteSpeeds,
        _ => return Err(Sense::invalid_cdb_field(10, 7)),
    };
    Ok(Command::GetPerformance(GetPerformance {
        subject,
        max_descriptors: u16_at(cdb, 8),
    }))
}

fn u16_at(cdb: &[u8; 16], at: usize) -> u16 {
    u16::from_be_bytes([cdb[at], cdb[at + 1]])
}

fn u32_at(cdb: &[u8; 16], at: usize) -> u32 {
    (u32::from(u16_at(cdb, at)) << 16) | u32::from(u16_at(cdb, at + 2))
}
