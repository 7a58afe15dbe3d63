//! Claims about the codec: recorded packets, round trips, rubbish, and a
//! second opinion.

use dhcproto::{Decodable, Encodable};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;

/// A recorded packet of `src/vectors`.
pub(crate) fn vector(name: &str) -> Vec<u8> {
    let path = format!("{}/src/vectors/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits
        .chunks_exact(2)
        .map(|pair| u8::try_from(pair[0] << 4 | pair[1]).unwrap())
        .collect()
}

/// A header with a cookie, then `options`.
fn packet(options: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    (bytes[0], bytes[1], bytes[2]) = (1, 1, 6);
    bytes.extend(MAGIC_COOKIE);
    bytes.extend(options);
    bytes
}

#[test]
fn the_discover_of_ovmf_is_read_field_by_field() {
    let bytes = vector("ovmf-pxe-discover");
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(bytes.len(), 347);
    assert_eq!(message.xid, 0x5b01_3f9c);
    assert_eq!(message.flags, BROADCAST_FLAG);
    assert_eq!(message.message_type(), Some(MessageType::Discover));
    assert_eq!(message.options.number(code::MAX_SIZE), Some(1472));
    assert_eq!(message.options.number(code::ARCHITECTURE), Some(7));
    assert_eq!(
        message.options.text(code::VENDOR_CLASS).unwrap(),
        "PXEClient:Arch:00007:UNDI:003000"
    );
    assert_eq!(message.options.get(code::PARAMETERS).unwrap().len(), 35);
}

#[test]
fn recorded_packets_come_out_as_they_went_in() {
    for name in [
        "ovmf-pxe-discover",
        "ovmf-pxe-request",
        "ovmf-http-discover",
        "ipxe2019-bios-discover",
    ] {
        let bytes = vector(name);
        assert_eq!(Message::parse(&bytes).unwrap().emit(), bytes, "{name}");
    }
}

#[test]
fn a_short_message_is_padded_to_300_bytes() {
    let bytes = Message::new(Op::Reply).emit();
    assert_eq!(bytes.len(), MIN_BYTES);
    assert_eq!(bytes[240], code::END);
}

#[test]
fn options_in_overloaded_fields_are_read_file_before_sname() {
    for (overload, expected) in [
        (1u8, &b"optsfile"[..]),
        (2, b"optssname"),
        (3, b"optsfilesname"),
    ] {
        let mut bytes = packet(&[224, 4, b'o', b'p', b't', b's', 52, 1, overload, 255]);
        bytes[44..52].copy_from_slice(b"\xe0\x05sname\xff");
        bytes[108..115].copy_from_slice(b"\xe0\x04file\xff");
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(
            message.options.get(224),
            Some(expected),
            "overload {overload}"
        );
        assert_eq!(message.options.get(code::OVERLOAD), None);
        assert_eq!(message.file.is_empty(), overload & 1 != 0);
        assert_eq!(message.sname.is_empty(), overload & 2 != 0);
    }
}

#[test]
fn an_overload_inside_an_overloaded_field_means_nothing() {
    let mut bytes = packet(&[52, 1, 1, 255]);
    bytes[44..47].copy_from_slice(b"abc");
    bytes[108..112].copy_from_slice(&[52, 1, 2, 255]);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.sname, b"abc");
}

#[test]
fn a_long_option_is_split_and_joined() {
    let mut message = Message::new(Op::Reply);
    let long: Vec<u8> = (0..=255).cycle().take(600).collect();
    message.options.set(code::BOOT_FILE, long.clone());
    message.options.set(code::DOMAIN, "lan");
    let bytes = message.emit();
    assert_eq!(bytes[240..242], [67, 255]);
    assert_eq!(bytes[240 + 257..240 + 259], [67, 255]);
    assert_eq!(bytes[240 + 514..240 + 516], [67, 90]);
    assert_eq!(Message::parse(&bytes).unwrap(), message);
}

#[test]
fn what_cannot_be_read_is_dropped_with_its_reason() {
    let whole = packet(&[53, 1, 1, 255]);
    let with = |at: usize, byte: u8| {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        bytes
    };
    for (bytes, reason) in [
        (Vec::new(), Malformed::TooShort(0)),
        (whole[..239].to_vec(), Malformed::TooShort(239)),
        (with(0, 3), Malformed::Op(3)),
        (with(2, 17), Malformed::HardwareLength(17)),
        (with(236, 0), Malformed::MagicCookie),
        (packet(&[12]), Malformed::Truncated(12)),
        (packet(&[12, 4, b'p', b'c']), Malformed::Truncated(12)),
        (packet(&[52, 1, 4, 255]), Malformed::Overload(4)),
        (packet(&[53, 1, 10, 255]), Malformed::MessageType(10)),
    ] {
        assert_eq!(Message::parse(&bytes), Err(reason));
    }
    assert_eq!(
        Malformed::Truncated(12).to_string(),
        "option 12 is longer than the field it stands in"
    );
}

#[test]
fn options_without_an_end_are_read() {
    let message = Message::parse(&packet(&[53, 1, 3])).unwrap();
    assert_eq!(message.message_type(), Some(MessageType::Request));
}

#[test]
fn inner_options_stop_where_they_stop_making_sense() {
    let data = [0, 6, 1, 8, 0, 0, 71, 4, 0x80, 0, 0, 0, 9, 200, 1];
    let found: Vec<(u8, &[u8])> = inner_options(&data).collect();
    assert_eq!(found, [(6, &[8][..]), (71, &[0x80, 0, 0, 0][..])]);
}

fn messages() -> impl Strategy<Value = Message> {
    let numbers = (
        any::<u8>(),
        0u8..=16,
        any::<u8>(),
        any::<u32>(),
        any::<u16>(),
        any::<u16>(),
    );
    let addresses = (
        any::<[u8; 4]>(),
        any::<[u8; 4]>(),
        any::<[u8; 4]>(),
        any::<[u8; 4]>(),
    );
    let texts = (
        any::<[u8; 16]>(),
        vec(1u8.., 0..=SNAME_BYTES),
        vec(1u8.., 0..=FILE_BYTES),
    );
    let codes = (1u8..255).prop_filter("not overload, not type", |code| !matches!(code, 52 | 53));
    let options = btree_map(codes, vec(any::<u8>(), 0..600), 0..8);
    (
        any::<bool>(),
        numbers,
        addresses,
        texts,
        options,
        proptest::option::of(1u8..=8),
    )
        .prop_map(
            |(is_reply, numbers, addresses, (chaddr, sname, file), options, message_type)| {
                let mut message = Message::new(if is_reply { Op::Reply } else { Op::Request });
                (
                    message.htype,
                    message.hlen,
                    message.hops,
                    message.xid,
                    message.secs,
                    message.flags,
                ) = numbers;
                message.ciaddr = addresses.0.into();
                message.yiaddr = addresses.1.into();
                message.siaddr = addresses.2.into();
                message.giaddr = addresses.3.into();
                (message.chaddr, message.sname, message.file) = (chaddr, sname, file);
                if let Some(number) = message_type {
                    message.options.set(code::MESSAGE_TYPE, [number]);
                }
                for (code, data) in options {
                    message.options.set(code, data);
                }
                message
            },
        )
}

/// Messages that the second opinion reads as well: an Ethernet client, and
/// options whose data has the form their RFCs ask for.
fn sane_messages() -> impl Strategy<Value = Message> {
    let raw = btree_map(
        prop_oneof![
            Just(43u8),
            Just(60),
            Just(61),
            Just(67),
            Just(77),
            Just(97),
            224u8..255
        ],
        vec(any::<u8>(), 1..400),
        0..6,
    );
    let texts = btree_map(
        prop_oneof![Just(12u8), Just(15), Just(17), Just(66)],
        "[a-z0-9.:/-]{1,60}",
        0..4,
    );
    (
        messages(),
        raw,
        texts,
        vec(any::<[u8; 4]>(), 1..5),
        any::<u32>(),
    )
        .prop_map(|(mut message, raw, texts, addresses, seconds)| {
            (message.htype, message.hlen) = (1, 6);
            message.chaddr[6..].fill(0);
            // There an empty field and one of 64 bytes without NUL are told
            // apart from ours.
            message.sname.truncate(SNAME_BYTES - 1);
            message.file.truncate(FILE_BYTES - 1);
            message.options = Options::default();
            message.options.set(code::MESSAGE_TYPE, [5]);
            message.options.set(code::SERVER_ID, addresses[0]);
            message.options.set(code::LEASE_TIME, seconds.to_be_bytes());
            message.options.set(code::ROUTERS, addresses.concat());
            for (code, text) in texts {
                message.options.set(code, text);
            }
            for (code, data) in raw {
                message.options.set(code, data);
            }
            message
        })
}

fn sorted(message: &Message) -> Vec<(u8, Vec<u8>)> {
    let mut options: Vec<_> = message
        .options
        .iter()
        .map(|(code, data)| (code, data.to_vec()))
        .collect();
    options.sort();
    options
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_emitted_is_parsed_back(message in messages()) {
        let bytes = message.emit();
        prop_assert!(bytes.len() >= MIN_BYTES);
        prop_assert_eq!(Message::parse(&bytes), Ok(message));
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..700)) {
        let _ = Message::parse(&bytes);
        inner_options(&bytes).count();
    }

    #[test]
    fn random_options_never_panic_and_what_parses_survives_a_round_trip(options in vec(any::<u8>(), 0..700)) {
        let bytes = packet(&options);
        if let Ok(message) = Message::parse(&bytes) {
            prop_assert_eq!(Message::parse(&message.emit()), Ok(message.clone()));
            let _ = crate::Client::describe(&message);
        }
    }

    #[test]
    fn a_changed_byte_of_a_recorded_packet_never_panics(at in 0usize..400, byte in any::<u8>()) {
        let mut bytes = vector("ipxe2019-bios-discover");
        bytes[at] = byte;
        if let Ok(message) = Message::parse(&bytes) {
            let _ = crate::Client::describe(&message);
        }
    }

    #[test]
    fn dhcproto_reads_what_we_emit_and_we_what_it_emits(message in sane_messages()) {
        let theirs = dhcproto::v4::Message::decode(&mut dhcproto::Decoder::new(&message.emit())).unwrap();
        prop_assert_eq!(theirs.xid(), message.xid);
        prop_assert_eq!(theirs.yiaddr(), message.yiaddr);
        prop_assert_eq!(theirs.siaddr(), message.siaddr);
        prop_assert_eq!(theirs.giaddr(), message.giaddr);
        prop_assert_eq!(theirs.ciaddr(), message.ciaddr);
        prop_assert_eq!(theirs.chaddr(), &message.chaddr[..6]);
        prop_assert_eq!(text(theirs.fname().unwrap_or_default()), message.file.clone());
        prop_assert_eq!(text(theirs.sname().unwrap_or_default()), message.sname.clone());

        let back = Message::parse(&theirs.to_vec().unwrap()).unwrap();
        prop_assert_eq!(sorted(&back), sorted(&message));
        prop_assert_eq!(&back.file, &message.file);
        prop_assert_eq!(back.flags, message.flags);
    }
}
