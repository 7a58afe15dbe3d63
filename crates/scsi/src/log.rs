//! LOG SENSE: the few pages a disk that is a file can fill truthfully (SPC-4
//! sections 6.7 and 7.3, SBC-3 section 6.3).

use disk::Space;

use crate::command::LogSense;
use crate::provisioning::THRESHOLD_SET_BYTES;
use crate::{Sense, truncated};

const SUPPORTED_PAGES: u8 = 0x00;
const BLOCK_PROVISIONING: u8 = 0x0c;
const INFORMATIONAL_EXCEPTIONS: u8 = 0x2f;
/// With page 00h: the pages with their subpages.
const ALL_SUBPAGES: u8 = 0xff;

/// A binary list parameter (FORMAT AND LINKING).
const LIST: u8 = 0x03;

/// Answers LOG SENSE; `space` is there where blocks are provisioned as they
/// are written, and the disk can tell.
pub(crate) fn sense(asked: &LogSense, space: Option<Space>) -> Result<Vec<u8>, Sense> {
    let mut pages = vec![SUPPORTED_PAGES];
    if space.is_some() {
        pages.push(BLOCK_PROVISIONING);
    }
    pages.push(INFORMATIONAL_EXCEPTIONS);
    if !pages.contains(&asked.page) {
        return Err(Sense::invalid_cdb_field(2, 5));
    }
    let (first, body) = match (asked.page, asked.subpage, space) {
        (SUPPORTED_PAGES, 0, _) => (SUPPORTED_PAGES, pages),
        (SUPPORTED_PAGES, ALL_SUBPAGES, _) => {
            let mut pairs = vec![SUPPORTED_PAGES, 0, SUPPORTED_PAGES, ALL_SUBPAGES];
            for page in &pages[1..] {
                pairs.extend_from_slice(&[*page, 0]);
            }
            (0x40, pairs) // SPF
        }
        (INFORMATIONAL_EXCEPTIONS, 0, _) => {
            // Nothing to report (ASC, ASCQ), and no thermometer.
            let general = parameter(asked, 0, &[0, 0, 0xff, 0])?;
            (INFORMATIONAL_EXCEPTIONS, general)
        }
        (BLOCK_PROVISIONING, 0, Some(space)) => (BLOCK_PROVISIONING, resources(asked, space)?),
        _ => return Err(Sense::invalid_cdb_field(3, 7)),
    };
    let [high, low] = u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut data = vec![first, asked.subpage, high, low]; // page length
    data.extend_from_slice(&body);
    Ok(truncated(data, u32::from(asked.allocation)))
}

/// How much more can be stored and how much is, in threshold sets.
fn resources(asked: &LogSense, space: Space) -> Result<Vec<u8>, Sense> {
    /// What is left is shared with whatever else lies there.
    const SHARED: u8 = 0x02;
    const DEDICATED: u8 = 0x01;
    let mut body = Vec::new();
    let counts = [
        (1, space.free_bytes, SHARED),
        (2, space.used_bytes, DEDICATED),
    ];
    for (code, bytes, scope) in counts {
        if code < asked.pointer {
            continue;
        }
        let sets = u32::try_from(bytes / THRESHOLD_SET_BYTES).unwrap_or(u32::MAX);
        let mut value = sets.to_be_bytes().to_vec();
        value.extend_from_slice(&[scope, 0, 0, 0]);
        let from_here = LogSense {
            pointer: code,
            ..*asked
        };
        body.extend_from_slice(&parameter(&from_here, code, &value)?);
    }
    match body.is_empty() {
        true => Err(Sense::invalid_cdb_field(5, 7)), // the pointer is past the last
        false => Ok(body),
    }
}

/// One log parameter, unless the pointer is past it.
fn parameter(asked: &LogSense, code: u16, value: &[u8]) -> Result<Vec<u8>, Sense> {
    if asked.pointer > code {
        return Err(Sense::invalid_cdb_field(5, 7));
    }
    let [high, low] = code.to_be_bytes();
    let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
    let mut parameter = vec![high, low, LIST, length];
    parameter.extend_from_slice(value);
    Ok(parameter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(page: u8, subpage: u8, pointer: u16) -> LogSense {
        LogSense {
            page,
            subpage,
            pointer,
            allocation: 255,
        }
    }

    const SPACE: Option<Space> = Some(Space {
        used_bytes: 5 << 20,
        free_bytes: 7 << 20,
    });

    #[test]
    fn every_listed_page_can_be_read_and_says_its_length() {
        for space in [None, SPACE] {
            let list = sense(&asked(0, 0, 0), space).unwrap();
            assert_eq!(list[4..].contains(&0x0c), space.is_some());
            for page in &list[4..] {
                let data = sense(&asked(*page, 0, 0), space).unwrap();
                assert_eq!(data[0], *page);
                let length = u16::from_be_bytes([data[2], data[3]]);
                assert_eq!(usize::from(length), data.len() - 4);
            }
            let pairs = sense(&asked(0, 0xff, 0), space).unwrap();
            assert_eq!(pairs[..2], [0x40, 0xff]);
            assert_eq!(pairs.len() - 4, 2 * (list.len() - 4) + 2);
        }
        assert!(sense(&asked(0x0d, 0, 0), SPACE).is_err());
        assert!(sense(&asked(0x0c, 0, 0), None).is_err());
        assert!(sense(&asked(0x2f, 1, 0), None).is_err());
    }

    #[test]
    fn space_is_counted_in_threshold_sets_from_the_pointer_on() {
        let mut expected = vec![0, 1, 3, 8, 0, 0, 0, 7, 2, 0, 0, 0];
        expected.extend_from_slice(&[0, 2, 3, 8, 0, 0, 0, 5, 1, 0, 0, 0]);
        let data = sense(&asked(0x0c, 0, 0), SPACE).unwrap();
        assert_eq!(data[4..], expected);
        let data = sense(&asked(0x0c, 0, 2), SPACE).unwrap();
        assert_eq!(data[4..], expected[12..]);
        assert!(sense(&asked(0x0c, 0, 3), SPACE).is_err());
    }
}
