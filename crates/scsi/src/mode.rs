//! MODE SENSE (SPC-4 sections 6.11 and 7.5, SBC-3 section 6.4).

use disk::{Access, Durability, Geometry};

use crate::command::ModeSense;
use crate::{Sense, truncated};

/// What the pages speak of.
pub(crate) struct Facts {
    pub(crate) geometry: Geometry,
    pub(crate) access: Access,
    pub(crate) durability: Durability,
}

/// Pages there are, ascending.
const PAGES: [u8; 4] = [0x01, 0x08, 0x0a, 0x1c];

/// Answers MODE SENSE.
pub(crate) fn sense(asked: &ModeSense, facts: &Facts) -> Result<Vec<u8>, Sense> {
    if asked.control == 3 {
        return Err(Sense::SAVING_PARAMETERS_NOT_SUPPORTED);
    }
    // Subpages: none of our own; FFh asks for whatever there is.
    if asked.subpage != 0 && asked.subpage != 0xff {
        return Err(Sense::invalid_cdb_field(3, 7));
    }
    let mut pages = Vec::new();
    for code in PAGES {
        if asked.page == 0x3f || asked.page == code {
            pages.extend_from_slice(&page(code, asked.control == 1, facts));
        }
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
    if facts.access == Access::ReadOnly {
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

/// One page; with `mask`, which of its bits MODE SELECT can change: none.
fn page(code: u8, mask: bool, facts: &Facts) -> Vec<u8> {
    let length: u8 = match code {
        0x08 => 0x12,
        _ => 0x0a,
    };
    let mut page = vec![0u8; usize::from(length) + 2];
    page[0] = code;
    page[1] = length;
    if mask {
        return page;
    }
    match code {
        0x08 if facts.durability != Durability::WriteThrough => page[2] = 0x04, // WCE
        0x0a => {
            page[3] = 0x10; // QUEUE ALGORITHM MODIFIER: unrestricted reordering
            page[8] = 0xff; // BUSY TIMEOUT PERIOD: unlimited
            page[9] = 0xff;
        }
        _ => {}
    }
    page
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
    fn saved_pages_and_unknown_pages_are_refused() {
        assert_eq!(
            sense(&six(0x08, 3, 255), &facts()),
            Err(Sense::SAVING_PARAMETERS_NOT_SUPPORTED)
        );
        assert!(sense(&six(0x2a, 0, 255), &facts()).is_err());
    }
}
