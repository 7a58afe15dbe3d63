//! Logical unit numbers (SAM-5 section 4.7), REPORT LUNS, and what a number
//! nobody stands behind answers.

use crate::command::Command;
use crate::{Sense, truncated};

/// First number that needs flat addressing: peripheral addressing has 8 bits.
const FIRST_FLAT: u16 = 256;

/// A logical unit number of one level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lun(pub u16);

impl Lun {
    /// Reads the 8-byte form: peripheral (bus 0) or flat addressing, one
    /// level. `None` for any other form: no unit of ours has such a number.
    pub fn parse(bytes: [u8; 8]) -> Option<Lun> {
        if bytes[2..] != [0; 6] {
            return None;
        }
        let number = u16::from_be_bytes([bytes[0], bytes[1]]);
        match number >> 14 {
            0b00 if number < FIRST_FLAT => Some(Lun(number)),
            0b01 => Some(Lun(number & 0x3fff)),
            _ => None,
        }
    }

    /// Writes the 8-byte form: peripheral below 256, flat from there on.
    pub fn emit(self) -> [u8; 8] {
        let number = if self.0 < FIRST_FLAT {
            self.0
        } else {
            0x4000 | (self.0 & 0x3fff)
        };
        let [high, low] = number.to_be_bytes();
        [high, low, 0, 0, 0, 0, 0, 0]
    }
}

/// The data of REPORT LUNS (SPC-4 section 6.33).
pub fn report_luns(
    select: u8,
    allocation: u32,
    luns: impl Iterator<Item = Lun>,
) -> Result<Vec<u8>, Sense> {
    let mut data = vec![0u8; 8];
    match select {
        0x00 | 0x02 => luns.for_each(|lun| data.extend_from_slice(&lun.emit())),
        0x01 => {} // well-known logical units only: there is none
        _ => return Err(Sense::invalid_cdb_field(2, 7)),
    }
    let list_bytes = u32::try_from(data.len() - 8).unwrap_or(u32::MAX);
    data[..4].copy_from_slice(&list_bytes.to_be_bytes()); // LUN list length
    Ok(truncated(data, allocation))
}

/// What a number without a unit answers, or an address that is none. REPORT
/// LUNS is not asked here: it is answered at any number.
pub fn answer_for_absent(lun: Option<Lun>, cdb: &[u8]) -> Result<Vec<u8>, Sense> {
    match Command::parse(cdb) {
        Ok(Command::Inquiry {
            page: None,
            allocation,
        }) => {
            let mut data = vec![0u8; 36];
            data[0] = match lun {
                // A unit could be here; who looks for a target asks number 0.
                Some(Lun(0)) => 0x3f,
                _ => 0x7f, // no device can be here, type unknown
            };
            data[2] = 0x06; // SPC-4
            data[3] = 0x02; // response data format
            data[4] = 31; // additional length
            Ok(truncated(data, u32::from(allocation)))
        }
        Ok(Command::RequestSense { format, allocation }) => {
            let sense = Sense::LOGICAL_UNIT_NOT_SUPPORTED.emit(format);
            Ok(truncated(sense, u32::from(allocation)))
        }
        _ => Err(Sense::LOGICAL_UNIT_NOT_SUPPORTED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peripheral_and_flat_addresses_name_the_same_unit() {
        assert_eq!(Lun::parse([0, 1, 0, 0, 0, 0, 0, 0]), Some(Lun(1)));
        assert_eq!(Lun::parse([0x40, 1, 0, 0, 0, 0, 0, 0]), Some(Lun(1)));
        assert_eq!(Lun::parse([0x41, 0, 0, 0, 0, 0, 0, 0]), Some(Lun(256)));
        assert_eq!(Lun::parse([0xc1, 1, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(Lun::parse([0, 1, 0, 1, 0, 0, 0, 0]), None);
    }

    #[test]
    fn report_luns_lists_0_1_and_256() {
        let data = report_luns(0, 4096, [0, 1, 256].map(Lun).into_iter()).unwrap();
        let mut expected = vec![0, 0, 0, 0x18, 0, 0, 0, 0];
        expected.extend_from_slice(&[0; 8]);
        expected.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
        expected.extend_from_slice(&[0x41, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(data, expected);
    }

    #[test]
    fn a_short_allocation_cuts_the_list_and_not_its_length() {
        let data = report_luns(0, 4, [0, 1].map(Lun).into_iter()).unwrap();
        assert_eq!(data, [0, 0, 0, 16]);
    }

    #[test]
    fn an_absent_unit_says_so_in_inquiry_and_in_sense() {
        let inquiry = [0x12, 0, 0, 0, 36, 0];
        let absent = |lun| answer_for_absent(lun, &inquiry).unwrap();
        assert_eq!((absent(Some(Lun(3)))[0], absent(None)[0]), (0x7f, 0x7f));
        assert_eq!(absent(Some(Lun(0)))[0], 0x3f, "there is a target");
        assert_eq!(absent(None).len(), 36);
        let sense = answer_for_absent(None, &[0x03, 0, 0, 0, 18, 0]).unwrap();
        assert_eq!((sense[2], sense[12]), (5, 0x25));
        assert_eq!(
            answer_for_absent(Some(Lun(0)), &[0; 6]),
            Err(Sense::LOGICAL_UNIT_NOT_SUPPORTED)
        );
    }
}
