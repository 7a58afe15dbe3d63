//! A CD or DVD drive with one disc in it, or none (MMC-6).
//!
//! Here stands what a drive says about its disc, its tray and itself; blocks
//! are read as those of any disk. The disc is a data disc of one session and
//! one track, as every ISO is, and nobody can write it.

mod command;
mod configuration;
mod disc;
mod event;
mod mode;
mod opcodes;
mod performance;
mod toc;

pub(crate) use command::{Command, parse};
pub(crate) use event::MediaEvent;
pub(crate) use mode::sense as mode_sense;
pub(crate) use opcodes::OPCODES;

use crate::{Sense, truncated};

/// Bytes of every block of a disc.
pub(crate) const BLOCK_BYTES: u32 = 2048;
/// Blocks of the longest CD: 99 minutes of 75 blocks a second, less the first
/// two seconds. A longer disc is a DVD.
const MAX_CD_BLOCKS: u32 = 99 * 60 * 75 - 150;

/// A drive at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Drive {
    /// What can be read.
    pub(crate) disc: Option<Disc>,
    pub(crate) tray: Tray,
    /// Whether some initiator prevents the disc's removal.
    pub(crate) is_locked: bool,
}

/// Where the tray is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tray {
    Closed,
    Open,
}

/// A disc that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Disc {
    /// How many blocks; also the address at which the lead-out begins.
    blocks: u32,
}

/// What kind of disc; its size says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    CdRom,
    DvdRom,
}

impl Disc {
    /// A disc of so many bytes.
    pub(crate) fn new(size_bytes: u64) -> Disc {
        Disc {
            blocks: u32::try_from(size_bytes / u64::from(BLOCK_BYTES)).unwrap_or(u32::MAX),
        }
    }

    fn kind(self) -> Kind {
        match self.blocks > MAX_CD_BLOCKS {
            true => Kind::DvdRom,
            false => Kind::CdRom,
        }
    }

    fn last_lba(self) -> u32 {
        self.blocks.saturating_sub(1)
    }

    /// Refuses an address that is not on the disc.
    fn check(self, lba: u32) -> Result<(), Sense> {
        match lba < self.blocks {
            true => Ok(()),
            false => Err(Sense::LBA_OUT_OF_RANGE),
        }
    }
}

impl Drive {
    /// The disc, or why there is none.
    fn disc(&self) -> Result<Disc, Sense> {
        self.disc.ok_or(self.no_disc())
    }

    /// Why nothing can be read when there is no disc (2/3A/01, 2/3A/02).
    pub(crate) fn no_disc(&self) -> Sense {
        match self.tray {
            Tray::Closed => Sense::MEDIUM_NOT_PRESENT_TRAY_CLOSED,
            Tray::Open => Sense::MEDIUM_NOT_PRESENT_TRAY_OPEN,
        }
    }
}

/// Answers a command of the drive's own; `take_event` takes what has happened
/// to the disc since this nexus last asked.
pub(crate) fn answer(
    command: &Command,
    drive: &Drive,
    take_event: impl FnOnce() -> MediaEvent,
) -> Result<Vec<u8>, Sense> {
    let (data, allocation) = match *command {
        Command::ReadToc {
            form,
            addresses,
            allocation,
        } => (toc::read(form, addresses, drive.disc()?)?, allocation),
        Command::GetConfiguration {
            scope,
            first,
            allocation,
        } => (configuration::get(scope, first, drive), allocation),
        Command::GetEventStatus {
            classes,
            allocation,
        } => (event::status(classes, drive, take_event), allocation),
        Command::ReadDiscInformation { allocation } => {
            drive.disc()?;
            (disc::information(), allocation)
        }
        Command::ReadTrackInformation { of, allocation } => {
            (disc::track_information(of, drive.disc()?)?, allocation)
        }
        Command::ReadDvdStructure {
            layer,
            format,
            allocation,
        } => (
            disc::dvd_structure(layer, format, drive.disc()?)?,
            allocation,
        ),
        Command::ReportKey { format, allocation } => (disc::report_key(format)?, allocation),
        Command::MechanismStatus { allocation } => (mechanism_status(drive), allocation),
        Command::GetPerformance(asked) => (performance::get(&asked, drive.disc()?)?, u16::MAX),
        Command::Seek { lba } => {
            drive.disc()?.check(lba)?;
            (vec![], 0)
        }
        // A speed is only advice to something that does not rotate.
        Command::SetCdSpeed | Command::SetStreaming { .. } => (vec![], 0),
    };
    Ok(truncated(data, u32::from(allocation)))
}

/// MECHANISM STATUS (MMC-6 section 6.11): one slot, not a changer.
fn mechanism_status(drive: &Drive) -> Vec<u8> {
    let mut data = vec![0u8; 8];
    if drive.tray == Tray::Open {
        data[1] = 0x10; // door open
    }
    data[5] = 1; // number of slots available
    data
}

#[cfg(test)]
mod tests;
