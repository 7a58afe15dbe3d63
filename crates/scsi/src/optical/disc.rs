//! What is known of the disc: READ DISC INFORMATION, READ TRACK INFORMATION,
//! READ DISC STRUCTURE, REPORT KEY (MMC-6 sections 6.21, 6.26, 6.22, 6.28).

use super::command::TrackAddress;
use super::{Disc, Kind};
use crate::Sense;

/// Bytes of the longest DVD structures, after their length field.
const STRUCTURE_BYTES: usize = 2050;

/// One complete session of one track, never to be added to.
pub(super) fn information() -> Vec<u8> {
    let mut data = vec![0u8; 34];
    data[1] = 32; // disc information length
    data[2] = 0x0e; // last session complete, disc complete
    data[3] = 1; // first track on the disc
    data[4] = 1; // sessions
    data[5] = 1; // first track of the last session
    data[6] = 1; // its last track
    data[7] = 0x20; // URU: for unrestricted use
    data
}

pub(super) fn track_information(of: TrackAddress, disc: Disc) -> Result<Vec<u8>, Sense> {
    match of {
        TrackAddress::Lba(lba) => disc.check(lba)?,
        TrackAddress::Track(1) | TrackAddress::Session(1) => {}
        TrackAddress::Track(_) | TrackAddress::Session(_) => {
            return Err(Sense::invalid_cdb_field(2, 7));
        }
    }
    let mut data = vec![0u8; 36];
    data[1] = 34; // track information length
    data[2] = 1; // track
    data[3] = 1; // session
    data[5] = 0x04; // track mode: data
    data[6] = 0x01; // data mode 1
    data[7] = 0x02; // LRA_V
    data[24..28].copy_from_slice(&disc.blocks.to_be_bytes()); // track size
    data[28..32].copy_from_slice(&disc.last_lba().to_be_bytes()); // last recorded address
    Ok(data)
}

/// READ DISC STRUCTURE of a DVD of one layer, without copy protection.
pub(super) fn dvd_structure(layer: u8, format: u8, disc: Disc) -> Result<Vec<u8>, Sense> {
    if disc.kind() != Kind::DvdRom {
        return Err(Sense::INCOMPATIBLE_FORMAT);
    }
    if layer != 0 {
        return Err(Sense::invalid_cdb_field(6, 7));
    }
    let body = match format {
        0x00 => physical_format(disc),
        0x01 => vec![0, 0, 0, 0, 0, 0], // copyright: none, all regions
        0x04 => vec![0; STRUCTURE_BYTES], // disc manufacturing
        0xff => structures(),
        _ => return Err(Sense::invalid_cdb_field(7, 7)),
    };
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut data = length.to_be_bytes().to_vec();
    data.extend_from_slice(&body);
    Ok(data)
}

/// The control data of the lead-in (ECMA-267 section 16).
fn physical_format(disc: Disc) -> Vec<u8> {
    let mut body = vec![0u8; STRUCTURE_BYTES];
    body[2] = 0x01; // DVD-ROM, version 1
    body[3] = 0x0f; // 120 mm, maximum rate not specified
    body[4] = 0x01; // one layer, embossed
    let first = FIRST_SECTOR.to_be_bytes();
    body[7..10].copy_from_slice(&first[1..]);
    let last = FIRST_SECTOR
        .saturating_add(disc.last_lba())
        .min(0xff_ffff)
        .to_be_bytes();
    body[11..14].copy_from_slice(&last[1..]); // last sector of the data area
    body[15..18].copy_from_slice(&last[1..]); // and of layer 0
    body
}

/// Physical address of block 0 of every DVD.
const FIRST_SECTOR: u32 = 0x03_0000;

/// The list of structures that can be read (SDS) and of those only; none can be sent.
fn structures() -> Vec<u8> {
    let mut body = vec![0, 0];
    for (format, bytes) in [(0x00u8, 2052u16), (0x01, 8), (0x04, 2052)] {
        let [high, low] = bytes.to_be_bytes();
        body.extend_from_slice(&[format, 0x40, high, low]); // RDS
    }
    body
}

/// REPORT KEY: the disc has no keys, the drive no region.
pub(super) fn report_key(format: u8) -> Result<Vec<u8>, Sense> {
    match format {
        // AGID, challenge, key 1, title key.
        0x00 | 0x01 | 0x02 | 0x04 => Err(Sense::KEY_NOT_PRESENT),
        // RPC state: no region was ever set (FFh), 4 resets by the vendor and 5
        // changes by the user are left; regions are not enforced (scheme 0).
        0x08 => Ok(vec![0, 6, 0, 0, 0x25, 0xff, 0x00, 0]),
        0x3f => Ok(vec![]), // invalidates an AGID nobody was given
        _ => Err(Sense::invalid_cdb_field(10, 5)),
    }
}
