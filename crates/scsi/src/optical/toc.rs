//! READ TOC/PMA/ATIP: the table of contents of a disc with one session and
//! one data track (MMC-6 section 6.25).

use super::Disc;
use super::command::{Addresses, TocForm};
use crate::Sense;

/// The lead-out's track number.
const LEAD_OUT: u8 = 0xaa;
/// ADR: position; CONTROL: data track, copying prohibited.
const DATA_TRACK: u8 = 0x14;
/// Frames before block 0.
const LEAD_IN_FRAMES: u32 = 150;
/// The latest address minutes, seconds and frames can spell.
const LAST_MSF: [u8; 3] = [255, 59, 74];

pub(super) fn read(form: TocForm, addresses: Addresses, disc: Disc) -> Result<Vec<u8>, Sense> {
    let address = |lba| match addresses {
        Addresses::Lba => u32::to_be_bytes(lba),
        Addresses::Msf => {
            let [minute, second, frame] = msf(lba);
            [0, minute, second, frame]
        }
    };
    let mut data = vec![0, 0, 1, 1]; // length; first and last track, or session
    match form {
        TocForm::Tracks { from } => {
            if from != LEAD_OUT {
                data.extend_from_slice(&[0, DATA_TRACK, 1, 0]);
                data.extend_from_slice(&address(0));
            }
            data.extend_from_slice(&[0, DATA_TRACK, LEAD_OUT, 0]);
            data.extend_from_slice(&address(disc.blocks));
        }
        TocForm::Sessions => {
            data.extend_from_slice(&[0, DATA_TRACK, 1, 0]); // first track of the last session
            data.extend_from_slice(&address(0));
        }
        TocForm::Raw { .. } => {
            // Points A0h and A1h name the first and last track, A2h and 1 an address.
            for (point, position) in [
                (0xa0, [1, 0, 0]),
                (0xa1, [1, 0, 0]),
                (0xa2, msf(disc.blocks)),
                (0x01, msf(0)),
            ] {
                data.extend_from_slice(&[1, DATA_TRACK, 0, point, 0, 0, 0, 0]);
                data.extend_from_slice(&position);
            }
        }
    }
    let length = u16::try_from(data.len() - 2).unwrap_or(u16::MAX);
    data[..2].copy_from_slice(&length.to_be_bytes());
    Ok(data)
}

/// Minute, second and frame of a block; what lies beyond is the last there is,
/// as on every DVD of more than 2.3 GB.
fn msf(lba: u32) -> [u8; 3] {
    let frames = lba.saturating_add(LEAD_IN_FRAMES);
    let low = |value: u32| u8::try_from(value).unwrap_or(u8::MAX);
    match u8::try_from(frames / (60 * 75)) {
        Ok(minute) => [minute, low(frames / 75 % 60), low(frames % 75)],
        Err(_) => LAST_MSF,
    }
}
