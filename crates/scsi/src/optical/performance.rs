//! GET PERFORMANCE (MMC-6 section 6.8) and the drive's speed.

use super::command::{GetPerformance, Subject};
use super::{Disc, Kind};
use crate::Sense;

/// What it says of its speed, in kB/s: CD at 48x, DVD at 16x. Some players
/// choose how they read by it.
pub(super) fn read_speed(kind: Kind) -> u16 {
    match kind {
        Kind::CdRom => 48 * 176,
        Kind::DvdRom => 16 * 1385,
    }
}

pub(super) fn get(asked: &GetPerformance, disc: Disc) -> Result<Vec<u8>, Sense> {
    let mut data = vec![0u8; 8];
    match asked.subject {
        // As fast at its end as at its beginning.
        Subject::Read if asked.max_descriptors > 0 => {
            let speed = u32::from(read_speed(disc.kind()));
            for field in [0, speed, disc.last_lba(), speed] {
                data.extend_from_slice(&field.to_be_bytes());
            }
        }
        Subject::Read | Subject::WriteSpeeds => {}
        Subject::Write => data[4] = 0x02,
        Subject::Exceptions { write } => data[4] = 0x01 | u8::from(write) << 1,
    }
    let length = u32::try_from(data.len() - 4).unwrap_or(u32::MAX);
    data[..4].copy_from_slice(&length.to_be_bytes()); // performance data length
    Ok(data)
}
