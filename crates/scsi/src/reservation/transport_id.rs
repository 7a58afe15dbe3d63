//! Names of initiator ports in parameter lists: the TransportID of iSCSI
//! (SPC-4 section 7.6.4.6).

use crate::Sense;
use crate::attention::NexusName;

/// Protocol identifier of iSCSI.
const ISCSI: u8 = 0x05;
/// TPID FORMAT: a name alone; a name and an ISID.
const DEVICE: u8 = 0b00;
const PORT: u8 = 0b01;
/// What stands between a name and its ISID.
const SEPARATOR: &str = ",i,0x";
/// The longest iSCSI name (RFC 7143 section 4.2.7.1).
pub(crate) const MAX_NAME_BYTES: usize = 223;
/// Shortest name field.
const MIN_FIELD_BYTES: usize = 20;
/// Name field of a name alone of [`MAX_NAME_BYTES`] with an ISID and its NUL.
const MAX_FIELD_BYTES: usize = 244;

/// Who a TransportID names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TransportId {
    /// One initiator port.
    Port(NexusName),
    /// Every port of an initiator.
    Device(String),
}

impl TransportId {
    /// Reads the first of a list; gives what follows it.
    pub(crate) fn parse(bytes: &[u8]) -> Result<(TransportId, &[u8]), Sense> {
        const REFUSED: Sense = Sense::INVALID_FIELD_IN_PARAMETER_LIST;
        let (head, rest) = bytes.split_at_checked(4).ok_or(REFUSED)?;
        let field_bytes = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let is_sound = field_bytes.is_multiple_of(4)
            && (MIN_FIELD_BYTES..=MAX_FIELD_BYTES).contains(&field_bytes);
        if head[0] & 0x0f != ISCSI || !is_sound {
            return Err(REFUSED);
        }
        let (field, rest) = rest.split_at_checked(field_bytes).ok_or(REFUSED)?;
        let end = field.iter().position(|byte| *byte == 0).ok_or(REFUSED)?;
        if field[end..].iter().any(|byte| *byte != 0) {
            return Err(REFUSED);
        }
        let text = str::from_utf8(&field[..end]).map_err(|_| REFUSED)?;
        let found = match head[0] >> 6 {
            DEVICE => TransportId::Device(name(text).ok_or(REFUSED)?),
            PORT => {
                let (initiator, isid) = text.split_once(SEPARATOR).ok_or(REFUSED)?;
                TransportId::Port(NexusName {
                    initiator: name(initiator).ok_or(REFUSED)?,
                    isid: parse_isid(isid).ok_or(REFUSED)?,
                })
            }
            _ => return Err(REFUSED),
        };
        Ok((found, rest))
    }
}

/// Writes the TransportID of a port.
pub(crate) fn emit(nexus: &NexusName) -> Vec<u8> {
    let mut field = nexus.initiator.clone().into_bytes();
    field.extend_from_slice(SEPARATOR.as_bytes());
    field.extend_from_slice(emit_isid(nexus.isid).as_bytes());
    field.push(0); // always ends with NUL
    let padded = field.len().next_multiple_of(4).max(MIN_FIELD_BYTES);
    field.resize(padded, 0);
    let [high, low] = u16::try_from(padded).unwrap_or(u16::MAX).to_be_bytes();
    let mut bytes = vec![PORT << 6 | ISCSI, 0, high, low];
    bytes.extend_from_slice(&field);
    bytes
}

/// A name as sessions carry it: in lower case.
pub(crate) fn name(text: &str) -> Option<String> {
    let is_sound = (1..=MAX_NAME_BYTES).contains(&text.len())
        && !text.chars().any(|c| c.is_whitespace() || c.is_control());
    is_sound.then(|| text.to_ascii_lowercase())
}

pub(crate) fn emit_isid(isid: [u8; 6]) -> String {
    isid.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn parse_isid(text: &str) -> Option<[u8; 6]> {
    let is_hex = text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = u64::from_str_radix(text, 16).ok().filter(|_| is_hex)?;
    let [_, _, isid @ ..] = number.to_be_bytes();
    Some(isid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_port_is_written_with_its_nul_and_a_whole_number_of_words() {
        let nexus = NexusName {
            initiator: "iqn.a:b".to_owned(),
            isid: [0x40, 0x00, 0x27, 0x23, 0x58, 0x36],
        };
        let mut expected = vec![0x45, 0, 0, 0x1c];
        expected.extend_from_slice(b"iqn.a:b,i,0x400027235836\0\0\0\0");
        assert_eq!(emit(&nexus), expected);
        assert_eq!(
            TransportId::parse(&expected),
            Ok((TransportId::Port(nexus), &[][..]))
        );
    }

    #[test]
    fn the_name_of_a_device_has_no_isid() {
        let mut bytes = vec![0x05, 0, 0, 20];
        bytes.extend_from_slice(b"IQN.2026-01.a:b\0\0\0\0\0");
        bytes.push(7);
        let device = TransportId::Device("iqn.2026-01.a:b".to_owned());
        assert_eq!(TransportId::parse(&bytes), Ok((device, &[7][..])));
    }

    #[test]
    fn a_name_without_its_nul_is_refused() {
        let mut bytes = vec![0x05, 0, 0, 20];
        bytes.extend_from_slice(b"iqn.2026-01.abcd:efg");
        assert!(TransportId::parse(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(initiator in "[a-z0-9.:-]{1,223}", isid: [u8; 6]) {
            let nexus = NexusName { initiator, isid };
            let bytes = emit(&nexus);
            let (read, rest) = TransportId::parse(&bytes).unwrap();
            prop_assert_eq!(read, TransportId::Port(nexus));
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn no_bytes_make_the_parser_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            words in 0u8..62,
        ) {
            let mut bytes = bytes;
            if let [first, _, high, low, ..] = &mut bytes[..] {
                *first = *first & 0xc0 | ISCSI;
                (*high, *low) = (0, words * 4);
            }
            let _ = TransportId::parse(&bytes);
        }
    }
}
