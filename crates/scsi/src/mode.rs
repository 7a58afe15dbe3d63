//! MODE SENSE and MODE SELECT (SPC-4 sections 6.9 to 6.12 and 7.5, SBC-3
//! section 6.4).
//!
//! Three bits can be changed: WCE where the disk below caches writes, SWP and
//! D_SENSE. They are the unit's, not a nexus's, and none is saved.

use disk::{Access, Durability, Geometry};

use crate::command::ModeSense;
use crate::conditions::Condition;
use crate::provisioning::{THRESHOLD_SET_BYTES, low_space_bytes};
use crate::{Sense, truncated};

/// Longest parameter list of MODE SELECT: every page there is, twice.
pub(crate) const MAX_LIST_BYTES: u16 = 256;

/// What the pages speak of.
pub(crate) struct Facts {
    pub(crate) geometry: Geometry,
    pub(crate) access: Access,
    pub(crate) durability: Durability,
    pub(crate) settings: Condition,
    /// Whether there is a threshold of space.
    pub(crate) tells_space: bool,
}

/// Which values of a page: PC, and what MODE SELECT compares with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    Current,
    /// A bit is set that can be changed.
    Changeable,
    Default,
}

/// Pages there are, ascending.
const PAGES: [u8; 4] = [0x01, 0x08, 0x0a, 0x1c];

/// Answers MODE SENSE.
pub(crate) fn sense(asked: &ModeSense, facts: &Facts) -> Result<Vec<u8>, Sense> {
    let values = match asked.control {
        0 => Values::Current,
        1 => Values::Changeable,
        2 => Values::Default,
        _ => return Err(Sense::SAVING_PARAMETERS_NOT_SUPPORTED),
    };
    let has_threshold = asked.page == 0x1c && facts.tells_space;
    let mut pages = Vec::new();
    match asked.subpage {
        0x02 if has_threshold => {}
        // FFh asks for whatever there is.
        0x00 | 0xff => {
            for code in PAGES {
                if asked.page == 0x3f || asked.page == code {
                    pages.extend_from_slice(&page(code, values, facts));
                }
            }
        }
        _ => return Err(Sense::invalid_cdb_field(3, 7)),
    }
    if facts.tells_space && asked.subpage != 0 && matches!(asked.page, 0x1c | 0x3f) {
        pages.extend_from_slice(&threshold_page(values, facts));
    }
    if pages.is_empty() {
        return Err(Sense::invalid_cdb_field(2, 5));
    }
    let descriptor = match asked.no_block_descriptor {
        true => vec![],
        false => block_descriptor(facts),
    };
    let descriptor_bytes = u8::try_from(descriptor.len()).unwrap_or(0);
    let mut device_specific = 0x10; // DPOFUA
    if facts.access == Access::ReadOnly || facts.settings.has(Condition::PROTECTED) {
        device_specific |= 0x80; // WP
    }
    let total = descriptor.len() + pages.len();
    let mut data = if asked.ten {
        let [high, low] = u16::try_from(total + 6).unwrap_or(u16::MAX).to_be_bytes();
        vec![high, low, 0, device_specific, 0, 0, 0, descriptor_bytes]
    } else {
        let length = u8::try_from(total + 3).unwrap_or(u8::MAX);
        vec![length, 0, device_specific, descriptor_bytes]
    };
    data.extend_from_slice(&descriptor);
    data.extend_from_slice(&pages);
    Ok(truncated(data, u32::from(asked.allocation)))
}

/// The short block descriptor.
fn block_descriptor(facts: &Facts) -> Vec<u8> {
    let block_bytes = facts.geometry.logical_block_bytes;
    let blocks = facts.geometry.size_bytes / u64::from(block_bytes);
    let mut data = u32::try_from(blocks)
        .unwrap_or(u32::MAX)
        .to_be_bytes()
        .to_vec();
    data.extend_from_slice(&(block_bytes & 0x00ff_ffff).to_be_bytes()); // reserved byte, 3 bytes
    data
}

/// One page.
fn page(code: u8, values: Values, facts: &Facts) -> Vec<u8> {
    let length: u8 = match code {
        0x08 => 0x12,
        _ => 0x0a,
    };
    let mut page = vec![0u8; usize::from(length) + 2];
    page[0] = code;
    page[1] = length;
    let settings = match values {
        Values::Current => facts.settings,
        Values::Default => Condition::NONE,
        Values::Changeable => Condition::SETTINGS,
    };
    for (at, bit, condition) in bits(code, facts) {
        // WCE is the contrary of what it stands for.
        let is_set = match (values, *condition) {
            (Values::Changeable, _) => true,
            (_, Condition::WRITE_THROUGH) => !settings.has(*condition),
            _ => settings.has(*condition),
        };
        if is_set {
            page[*at] |= bit;
        }
    }
    if code == 0x0a && values != Values::Changeable {
        page[2] |= 0x02; // GLTSD: log parameters are not saved
        page[3] = 0x10; // QUEUE ALGORITHM MODIFIER: unrestricted reordering
        page[8] = 0xff; // BUSY TIMEOUT PERIOD: unlimited
        page[9] = 0xff;
    }
    if code == 0x08 && facts.durability == Durability::Volatile && values != Values::Changeable {
        page[2] |= 0x04; // WCE: no flush makes anything durable
    }
    page
}

/// The logical block provisioning page (1Ch, subpage 02h): the one threshold,
/// of what is left. It cannot be changed.
fn threshold_page(values: Values, facts: &Facts) -> Vec<u8> {
    let mut page = vec![0x5c, 0x02, 0, 20]; // SPF; page length
    page.resize(16, 0);
    let bytes = low_space_bytes(facts.geometry.size_bytes);
    let sets = u32::try_from(bytes.div_ceil(THRESHOLD_SET_BYTES)).unwrap_or(u32::MAX);
    // ENABLED, soft, armed when decreasing; available resources.
    page.extend_from_slice(&[0x81, 0x01, 0, 0]);
    page.extend_from_slice(&sets.to_be_bytes());
    if values == Values::Changeable {
        page[4..].fill(0);
    }
    page
}

/// The changeable bits of a page: byte, bit, and what it says. A cache can be
/// turned off where a flush would make a difference.
fn bits(code: u8, facts: &Facts) -> &'static [(usize, u8, Condition)] {
    match code {
        0x08 if facts.durability == Durability::WriteBack => {
            &[(2, 0x04, Condition::WRITE_THROUGH)] // WCE
        }
        0x0a => &[
            (2, 0x04, Condition::DESCRIPTOR_SENSE), // D_SENSE
            (4, 0x08, Condition::PROTECTED),        // SWP
        ],
        _ => &[],
    }
}

/// Reads MODE SELECT's list: the settings after it. Changes nothing, for
/// nothing may change when something in the list is wrong.
pub(crate) fn select(ten: bool, list: &[u8], facts: &Facts) -> Result<Condition, Sense> {
    if list.is_empty() {
        return Ok(facts.settings);
    }
    let header_bytes = if ten { 8 } else { 4 };
    let (head, rest) = list
        .split_at_checked(header_bytes)
        .ok_or(Sense::PARAMETER_LIST_LENGTH_ERROR)?;
    let descriptor_bytes = match ten {
        true => usize::from(u16::from_be_bytes([head[6], head[7]])),
        false => usize::from(head[3]),
    };
    let (descriptor, mut rest) = rest
        .split_at_checked(descriptor_bytes)
        .ok_or(Sense::PARAMETER_LIST_LENGTH_ERROR)?;
    // A disk cannot be formatted to other blocks.
    let block_bytes = facts.geometry.logical_block_bytes.to_be_bytes();
    match descriptor {
        [] => {}
        [_, _, _, _, _, length @ ..] if length == &block_bytes[1..] => {}
        _ => return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST),
    }
    let mut settings = facts.settings;
    while let [code, length, ..] = *rest {
        let page_bytes = 2 + usize::from(length);
        let (given, next) = rest
            .split_at_checked(page_bytes)
            .ok_or(Sense::PARAMETER_LIST_LENGTH_ERROR)?;
        rest = next;
        let code = code & 0x7f; // PS is reserved here; SPF names no page of ours
        if !PAGES.contains(&code) {
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST);
        }
        let current = page(code, Values::Current, facts);
        let mask = page(code, Values::Changeable, facts);
        let differs = |at: usize| (given[at] ^ current[at]) & !mask[at] != 0;
        if given.len() != current.len() || (2..current.len()).any(differs) {
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST);
        }
        for (at, bit, condition) in bits(code, facts) {
            let is_set = given[*at] & bit != 0;
            let is_in = is_set != (*condition == Condition::WRITE_THROUGH);
            settings = settings.with(*condition, is_in);
        }
    }
    match rest.is_empty() {
        true => Ok(settings),
        false => Err(Sense::PARAMETER_LIST_LENGTH_ERROR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            geometry: Geometry {
                size_bytes: 1 << 20,
                logical_block_bytes: 512,
                physical_block_bytes: 4096,
            },
            access: Access::ReadWrite,
            durability: Durability::WriteBack,
            settings: Condition::NONE,
            tells_space: false,
        }
    }

    fn six(page: u8, control: u8, allocation: u16) -> ModeSense {
        ModeSense {
            ten: false,
            no_block_descriptor: true,
            control,
            page,
            subpage: 0,
            allocation,
        }
    }

    #[test]
    fn the_caching_page_says_that_a_cache_is_on() {
        let mut expected = vec![0x17, 0, 0x10, 0, 0x08, 0x12, 0x04];
        expected.extend_from_slice(&[0; 17]);
        assert_eq!(sense(&six(0x08, 0, 255), &facts()), Ok(expected));
    }

    #[test]
    fn write_through_has_no_cache_and_a_read_only_disk_is_protected() {
        let facts = Facts {
            access: Access::ReadOnly,
            durability: Durability::WriteThrough,
            ..facts()
        };
        let data = sense(&six(0x08, 0, 255), &facts).unwrap();
        assert_eq!((data[2] & 0x80, data[6]), (0x80, 0));
    }

    #[test]
    fn all_pages_come_ascending_and_the_length_counts_them() {
        let data = sense(&six(0x3f, 0, 255), &facts()).unwrap();
        assert_eq!(usize::from(data[0]), data.len() - 1);
        let (mut codes, mut at) = (vec![], 4);
        while at < data.len() {
            codes.push(data[at]);
            at += 2 + usize::from(data[at + 1]);
        }
        assert_eq!(codes, PAGES);
    }

    #[test]
    fn the_ten_byte_form_has_its_own_header_and_block_descriptor() {
        let asked = ModeSense {
            ten: true,
            no_block_descriptor: false,
            ..six(0x0a, 0, 4096)
        };
        let data = sense(&asked, &facts()).unwrap();
        assert_eq!(u16::from_be_bytes([data[0], data[1]]), 26);
        assert_eq!(data[7], 8);
        assert_eq!(data[8..16], [0, 0, 8, 0, 0, 0, 2, 0]);
        assert_eq!(data[16], 0x0a);
    }

    #[test]
    fn the_threshold_stands_in_a_subpage_where_there_is_one() {
        let asked = ModeSense {
            subpage: 0x02,
            ..six(0x1c, 0, 255)
        };
        assert!(sense(&asked, &facts()).is_err());
        let mut facts = Facts {
            tells_space: true,
            ..facts()
        };
        facts.geometry.size_bytes = 1 << 30;
        let data = sense(&asked, &facts).unwrap();
        assert_eq!(data[4..8], [0x5c, 2, 0, 20]);
        assert_eq!(data[20..], [0x81, 1, 0, 0, 0, 0, 0, 103]);
        let all = ModeSense {
            subpage: 0xff,
            ..six(0x3f, 0, 255)
        };
        let data = sense(&all, &facts).unwrap();
        assert_eq!(data[data.len() - 8..], [0x81, 1, 0, 0, 0, 0, 0, 103]);
        assert_eq!(usize::from(data[0]), data.len() - 1);
    }

    #[test]
    fn saved_pages_and_unknown_pages_are_refused() {
        assert_eq!(
            sense(&six(0x08, 3, 255), &facts()),
            Err(Sense::SAVING_PARAMETERS_NOT_SUPPORTED)
        );
        assert!(sense(&six(0x2a, 0, 255), &facts()).is_err());
    }
}
