//! Who a logical unit says it is: INQUIRY and its vital product data (SPC-4
//! sections 6.6 and 7.8, SBC-3 section 6.5).

use disk::Geometry;

use crate::provisioning::MAX_UNMAP_BLOCKS;
use crate::provisioning::MAX_UNMAP_DESCRIPTORS;
use crate::provisioning::{max_write_same_blocks, threshold_exponent};
use crate::reports::{RELATIVE_TARGET_PORT, TARGET_PORT_GROUP};
use crate::unit::{MAX_TRANSFER_BYTES, max_compare_blocks};
use crate::{Device, Medium, Sense, copy, truncated};

/// Vendor of every unit, 8 characters.
const VENDOR: &[u8; 8] = b"DISKLESS";
/// Transfers of this size are a good choice: one burst on the wire.
const OPTIMAL_TRANSFER_BYTES: u64 = 256 * 1024;
/// Longest serial number; keeps VPD page 83h below 255 bytes, which is all
/// that some initiators ask for.
const MAX_SERIAL_BYTES: usize = 64;

/// What makes a logical unit recognisable; equal on every path to it and in
/// every session, for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Unit serial number (VPD page 80h), at most 64 printable ASCII
    /// characters.
    pub serial: String,
    /// The source of its NAA designator (VPD page 83h).
    pub uuid: [u8; 16],
    /// Product, at most 16 printable ASCII characters.
    pub product: String,
}

impl Identity {
    /// The identity that follows from a UUID: its serial is the UUID in hex.
    pub fn new(uuid: [u8; 16], product: &str) -> Identity {
        let serial = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
        Identity {
            serial,
            uuid,
            product: product.to_owned(),
        }
    }

    /// NAA 3h, locally assigned: 60 bits of the UUID. Those of its end, for
    /// a time-ordered UUID differs there.
    fn naa(&self) -> [u8; 8] {
        let mut naa = [0u8; 8];
        naa.copy_from_slice(&self.uuid[8..]);
        naa[0] = 0x30 | (self.uuid[8] & 0x0f);
        naa
    }

    fn serial_bytes(&self) -> Vec<u8> {
        printable(&self.serial).take(MAX_SERIAL_BYTES).collect()
    }
}

/// What INQUIRY says beside the identity.
pub(crate) struct Facts {
    pub(crate) device: Device,
    pub(crate) geometry: Geometry,
    pub(crate) medium: Medium,
    pub(crate) max_atomic_bytes: u64,
    /// Whether there is a threshold of space.
    pub(crate) tells_space: bool,
    /// Whether SANITIZE's BLOCK ERASE is known.
    pub(crate) erases: bool,
    pub(crate) is_thin: bool,
}

/// Answers INQUIRY.
pub(crate) fn answer(
    identity: &Identity,
    facts: &Facts,
    page: Option<u8>,
    allocation: u16,
) -> Result<Vec<u8>, Sense> {
    let data = match page {
        None => standard(identity, facts),
        Some(code) => {
            let body = vpd(identity, facts, code).ok_or(Sense::invalid_cdb_field(2, 7))?;
            let [high, low] = u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes();
            let mut data = vec![facts.device.code(), code, high, low];
            data.extend_from_slice(&body);
            data
        }
    };
    Ok(truncated(data, u32::from(allocation)))
}

fn standard(identity: &Identity, facts: &Facts) -> Vec<u8> {
    let mut data = vec![0u8; 96];
    data[0] = facts.device.code(); // connected
    if facts.medium == Medium::Removable {
        data[1] = 0x80; // RMB
    }
    data[2] = 0x06; // SPC-4
    data[3] = 0x12; // HISUP, response data format 2
    data[4] = 96 - 5; // additional length
    if facts.device == Device::Disk {
        data[5] = 0x18; // TPGS: implicit; 3PC
    }
    data[7] = 0x02; // CMDQUE
    data[8..16].copy_from_slice(VENDOR);
    padded(&mut data[16..32], &identity.product);
    padded(&mut data[32..36], "1");
    let commands = match facts.device {
        Device::Disk => 0x04c0,    // SBC-3
        Device::Optical => 0x04e0, // MMC-6
    };
    // SAM-5, iSCSI, SPC-4
    for (at, descriptor) in [0x00a0u16, 0x0960, 0x0460, commands]
        .into_iter()
        .enumerate()
    {
        data[58 + 2 * at..60 + 2 * at].copy_from_slice(&descriptor.to_be_bytes());
    }
    data
}

fn vpd(identity: &Identity, facts: &Facts, code: u8) -> Option<Vec<u8>> {
    Some(match code {
        0x00 if facts.device == Device::Optical => vec![0x00, 0x80, 0x83, 0x86],
        0x00 => vec![0x00, 0x80, 0x83, 0x86, 0x8f, 0xb0, 0xb1, 0xb2],
        0x80 => identity.serial_bytes(),
        0x83 => designators(identity),
        0x86 => {
            let mut body = vec![0u8; 0x3c];
            body[1] = 0x01; // SIMPSUP
            body
        }
        0x8f | 0xb0..=0xb2 if facts.device == Device::Optical => return None,
        0x8f => copy::third_party_copy(),
        0xb0 => block_limits(facts),
        0xb1 => {
            let mut body = vec![0u8; 0x3c];
            body[1] = 0x01; // medium rotation rate: does not rotate
            if facts.erases {
                body[3] = 0x40; // WABEREQ: what was erased can be read
            }
            body
        }
        0xb2 => match facts.is_thin {
            // Threshold exponent; LBPU LBPWS LBPWS10 LBPRZ; thin.
            true => {
                let exponent = match facts.tells_space {
                    true => threshold_exponent(facts.geometry.logical_block_bytes),
                    false => 0,
                };
                vec![exponent, 0xe4, 0x02, 0]
            }
            false => vec![0, 0x04, 0x00, 0], // LBPRZ; fully provisioned
        },
        _ => return None,
    })
}

/// NAA first: initiators that take only one take the first or the NAA.
pub(crate) fn designators(identity: &Identity) -> Vec<u8> {
    let naa = identity.naa();
    let mut body = vec![0x01, 0x03, 0, 8]; // binary; logical unit, NAA
    body.extend_from_slice(&naa);
    let serial = identity.serial_bytes();
    let length = u8::try_from(VENDOR.len() + serial.len()).unwrap_or(u8::MAX);
    body.extend_from_slice(&[0x02, 0x01, 0, length]); // ASCII; logical unit, T10 vendor
    body.extend_from_slice(VENDOR);
    body.extend_from_slice(&serial);
    for (kind, value) in [(0x14, RELATIVE_TARGET_PORT), (0x15, TARGET_PORT_GROUP)] {
        let [high, low] = value.to_be_bytes();
        body.extend_from_slice(&[0x01, kind, 0, 4, 0, 0, high, low]); // binary; target port
    }
    body
}

/// Whether `designator` is one of the unit's own, as VPD page 83h shows them.
pub(crate) fn is_named(identity: &Identity, designator: &[u8]) -> bool {
    let own = designators(identity);
    let mut rest = &own[..];
    while let Some((head, _)) = rest.split_first_chunk::<4>() {
        let (one, others) = rest.split_at(rest.len().min(4 + usize::from(head[3])));
        // Of the unit (association 0), and of the same code set and type.
        let is_units = head[1] & 0x30 == 0;
        if is_units && head_of(one) == head_of(designator) && one.get(4..) == designator.get(4..) {
            return true;
        }
        rest = others;
    }
    false
}

/// Code set; association and type; length.
fn head_of(designator: &[u8]) -> Option<[u8; 3]> {
    let [code_set, kind, _, length] = designator.first_chunk::<4>()?;
    Some([code_set & 0x0f, kind & 0x3f, *length])
}

fn block_limits(facts: &Facts) -> Vec<u8> {
    let block_bytes = u64::from(facts.geometry.logical_block_bytes);
    let blocks = |bytes: u64| u32::try_from(bytes / block_bytes).unwrap_or(u32::MAX);
    let per_physical = facts.geometry.physical_block_bytes / facts.geometry.logical_block_bytes;
    let mut page = vec![0u8; 0x40];
    let mut put = |at: usize, value: &[u8]| page[at..at + value.len()].copy_from_slice(value);
    let granularity = u16::try_from(per_physical).unwrap_or(1);
    let compare_blocks = max_compare_blocks(facts.geometry.logical_block_bytes);
    put(5, &[u8::try_from(compare_blocks).unwrap_or(u8::MAX)]); // maximum compare and write length
    put(6, &granularity.to_be_bytes()); // optimal transfer length granularity
    put(8, &blocks(MAX_TRANSFER_BYTES).to_be_bytes()); // maximum transfer length
    put(12, &blocks(OPTIMAL_TRANSFER_BYTES).to_be_bytes()); // optimal transfer length
    if facts.is_thin {
        put(20, &MAX_UNMAP_BLOCKS.to_be_bytes()); // maximum unmap LBA count
        put(24, &MAX_UNMAP_DESCRIPTORS.to_be_bytes()); // maximum unmap block descriptor count
        put(28, &per_physical.to_be_bytes()); // optimal unmap granularity
        put(32, &0x8000_0000u32.to_be_bytes()); // UGAVALID, alignment 0
    }
    let write_same = max_write_same_blocks(facts.is_thin, facts.geometry.logical_block_bytes);
    put(36, &write_same.to_be_bytes()); // maximum write same length
    put(44, &blocks(facts.max_atomic_bytes).to_be_bytes()); // maximum atomic transfer length
    page.split_off(4)
}

/// Fills `field` with `text`, cut or padded with blanks.
fn padded(field: &mut [u8], text: &str) {
    field.fill(b' ');
    for (place, byte) in field.iter_mut().zip(printable(text)) {
        *place = byte;
    }
}

/// `text` in the characters SPC-4 section 4.4.1 allows.
fn printable(text: &str) -> impl Iterator<Item = u8> + '_ {
    text.chars().map(|c| match c {
        ' '..='~' => u8::try_from(c).unwrap_or(b'?'),
        _ => b'?',
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts {
        device: Device::Disk,
        geometry: Geometry {
            size_bytes: 1 << 20,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
        },
        medium: Medium::Fixed,
        max_atomic_bytes: 0,
        tells_space: false,
        erases: true,
        is_thin: true,
    };

    fn identity() -> Identity {
        Identity::new(
            *b"\x01\x90\x12\x34\x56\x78\x70\x01\x80\x02\x03\x04\x05\x06\x07\x08",
            "DISK",
        )
    }

    #[test]
    fn standard_data_names_vendor_product_and_standards() {
        let data = answer(&identity(), &FACTS, None, 96).unwrap();
        assert_eq!(&data[8..36], b"DISKLESSDISK            1   ");
        assert_eq!(data[2], 6);
        assert_eq!(usize::from(data[4]), data.len() - 5);
    }

    #[test]
    fn every_listed_page_can_be_read_and_says_its_length() {
        let list = answer(&identity(), &FACTS, Some(0), 255).unwrap();
        for page in &list[4..] {
            let data = answer(&identity(), &FACTS, Some(*page), 4096).unwrap();
            assert_eq!(data[1], *page);
            let length = u16::from_be_bytes([data[2], data[3]]);
            assert_eq!(usize::from(length), data.len() - 4);
        }
        assert!(answer(&identity(), &FACTS, Some(0x84), 255).is_err());
    }

    #[test]
    fn the_designators_fit_into_255_bytes_with_the_longest_serial() {
        let mut identity = identity();
        identity.serial = "s".repeat(300);
        let data = answer(&identity, &FACTS, Some(0x83), 4096).unwrap();
        assert!(data.len() <= 255);
        assert_eq!(data[4..8], [0x01, 0x03, 0, 8]);
        assert_eq!(data[8] >> 4, 3);
    }

    #[test]
    fn two_uuids_give_two_naas() {
        let mut other = identity();
        other.uuid[15] ^= 1;
        assert_ne!(identity().naa(), other.naa());
    }

    #[test]
    fn thin_provisioning_is_told_as_tgt_tells_it() {
        let data = answer(&identity(), &FACTS, Some(0xb2), 255).unwrap();
        assert_eq!(data, [0x00, 0xb2, 0x00, 0x04, 0x00, 0xe4, 0x02, 0x00]);
    }

    #[test]
    fn a_threshold_set_is_a_mebibyte_of_blocks() {
        for (logical_block_bytes, exponent) in [(512, 11), (4096, 8)] {
            let geometry = Geometry {
                logical_block_bytes,
                ..FACTS.geometry
            };
            let facts = Facts {
                geometry,
                tells_space: true,
                ..FACTS
            };
            let data = answer(&identity(), &facts, Some(0xb2), 255).unwrap();
            assert_eq!(data[4], exponent);
        }
    }

    #[test]
    fn an_allocation_length_of_nothing_gives_nothing() {
        assert_eq!(answer(&identity(), &FACTS, None, 0), Ok(vec![]));
    }
}
