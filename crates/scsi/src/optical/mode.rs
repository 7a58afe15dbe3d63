//! MODE SENSE of a drive (MMC-6 section 7).

use super::performance::read_speed;
use super::{Drive, Kind};
use crate::command::ModeSense;
use crate::{Sense, truncated};

/// Pages there are, ascending: read error recovery, CD audio control, and
/// capabilities and mechanical status.
const PAGES: [u8; 3] = [0x01, 0x0e, 0x2a];
/// BUFFER SIZE SUPPORTED, in KiB.
const BUFFER_KIBIBYTES: u16 = 2048;

/// Answers MODE SENSE; there is never a block descriptor.
pub(crate) fn sense(asked: &ModeSense, drive: &Drive) -> Result<Vec<u8>, Sense> {
    if asked.control == 3 {
        return Err(Sense::SAVING_PARAMETERS_NOT_SUPPORTED);
    }
    if asked.subpage != 0 && asked.subpage != 0xff {
        return Err(Sense::invalid_cdb_field(3, 7));
    }
    let mut pages = Vec::new();
    for code in PAGES {
        if asked.page == 0x3f || asked.page == code {
            pages.extend_from_slice(&page(code, asked.control == 1, drive));
        }
    }
    if pages.is_empty() {
        return Err(Sense::invalid_cdb_field(2, 5));
    }
    let mut data = match asked.ten {
        true => {
            let length = u16::try_from(pages.len() + 6).unwrap_or(u16::MAX);
            let [high, low] = length.to_be_bytes();
            vec![high, low, 0, 0, 0, 0, 0, 0]
        }
        false => vec![u8::try_from(pages.len() + 3).unwrap_or(u8::MAX), 0, 0, 0],
    };
    data.extend_from_slice(&pages);
    Ok(truncated(data, u32::from(asked.allocation)))
}

/// One page; with `mask`, which of its bits MODE SELECT can change: none.
fn page(code: u8, mask: bool, drive: &Drive) -> Vec<u8> {
    let length: u8 = match code {
        0x0e => 0x0e,
        0x2a => 0x14,
        _ => 0x0a,
    };
    let mut page = vec![0u8; usize::from(length) + 2];
    page[0] = code;
    page[1] = length;
    if mask {
        return page;
    }
    match code {
        0x0e => {
            page[2] = 0x04; // IMMED, always set
            // Ports 0 and 1 are left and right, at full volume.
            page[8..12].copy_from_slice(&[1, 0xff, 2, 0xff]);
        }
        0x2a => {
            page[2] = 0x3b; // reads DVD-RAM, DVD-R, DVD-ROM, CD-RW, CD-R
            page[4] = 0x71; // multi-session, mode 2 forms 2 and 1, audio play
            page[6] = 0x29; // loads by a tray, ejects, locks
            if drive.is_locked {
                page[6] |= 0x02; // locked now
            }
            let speed = read_speed(Kind::DvdRom).to_be_bytes();
            page[8..10].copy_from_slice(&speed); // maximum
            page[12..14].copy_from_slice(&BUFFER_KIBIBYTES.to_be_bytes());
            page[14..16].copy_from_slice(&speed); // current
        }
        _ => {}
    }
    page
}
