//! Claims about router discovery: its bytes, and who is answered when.

use proptest::prelude::*;

use super::*;
use crate::{Arch, Firmware};

const US: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
const PC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

fn client(firmware: Firmware) -> Client {
    Client {
        mac: PC,
        uuid: None,
        firmware,
        vendor_class: None,
        host_name: None,
        xid: 0,
    }
}

fn asked(mac: Mac) -> Solicitation {
    Solicitation {
        source: link_local(mac),
        mac,
    }
}

/// What iPXE sends: a solicitation to all routers with its own address.
fn solicitation(mac: Mac) -> Vec<u8> {
    packet(
        link_local(mac),
        &[
            &[SOLICITATION, 0, 0, 0, 0, 0, 0, 0, SOURCE_LINK_ADDRESS, 1][..],
            &mac.0,
        ]
        .concat(),
    )
}

fn packet(source: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, u8::try_from(message.len()).unwrap()];
    packet.extend([ICMP, HOP_LIMIT]);
    packet.extend(source.octets());
    packet.extend(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2).octets());
    packet.extend(message);
    let length = u32::try_from(message.len()).unwrap();
    let sum = checksum(&packet[8..], u32::from(ICMP) + length);
    packet[42..44].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[test]
fn ipxes_question_is_read_and_what_does_not_verify_is_not() {
    let question = solicitation(PC);
    assert_eq!(parse(&question), Some(Heard::Solicitation(asked(PC))));
    // Ethernet pads; what the length does not count is not looked at.
    let padded = [&question[..], &[7; 9]].concat();
    assert_eq!(parse(&padded), parse(&question));
    for at in [4, 7, 20, 42, 50, 55] {
        let mut broken = question.clone();
        broken[at] ^= 1;
        assert_eq!(parse(&broken), None, "byte {at}");
    }
}

#[test]
fn who_cannot_be_answered_alone_is_not_heard() {
    let bare = [SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(parse(&packet(link_local(PC), &bare)), None, "no address");
    assert_eq!(
        parse(&packet(Ipv6Addr::UNSPECIFIED, &bare)),
        None,
        "an address still tried"
    );
    let global = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    let question = &solicitation(PC)[IP_BYTES..];
    let message = [&question[..2], &[0, 0], &question[4..]].concat();
    assert_eq!(parse(&packet(global, &message)), None);
    let mut everybody = message.clone();
    everybody[10] |= 1;
    assert_eq!(parse(&packet(link_local(PC), &everybody)), None);
    let mut endless = message;
    endless[9] = 0;
    assert_eq!(parse(&packet(link_local(PC), &endless)), None);
}

#[test]
fn the_answer_names_no_router_and_configures_nothing() {
    let answer = emit(US, link_local(US), &asked(PC));
    assert_eq!(parse(&answer), Some(Heard::Advertisement));
    assert_eq!(answer[24..40], link_local(PC).octets());
    let message = &answer[IP_BYTES..];
    assert_eq!(message[..2], [ADVERTISEMENT, 0]);
    assert_eq!(message[4..16], [0; 12], "flags, lifetime, timers");
    assert_eq!(message[16..18], [SOURCE_LINK_ADDRESS, 1]);
    assert_eq!(message[18..], US.0, "and no further option");
}

#[test]
fn a_link_local_address_is_made_as_every_system_makes_it() {
    assert_eq!(link_local(PC).to_string(), "fe80::5054:ff:fe12:3456");
}

#[test]
fn firmware_counts_as_booting_for_a_while_and_until_its_system_asks() {
    let start = Instant::now();
    let mut booting = Booting::default();
    assert!(!booting.contains(PC, start), "a stranger");
    booting.asked(&client(Firmware::Ipxe(Some(Arch::X64))), start);
    assert!(booting.contains(PC, start + BOOTING / 2));
    assert!(!booting.contains(PC, start + BOOTING));
    booting.asked(&client(Firmware::BiosPxe), start);
    booting.asked(&client(Firmware::System), start);
    assert!(!booting.contains(PC, start));
}

#[test]
fn more_booting_machines_than_are_remembered_push_nobody_out() {
    let start = Instant::now();
    let mut booting = Booting::default();
    let mut other = client(Firmware::BiosPxe);
    booting.asked(&other, start);
    for number in 0..10_000_u16 {
        let [high, low] = number.to_be_bytes();
        other.mac = Mac([2, 0, 0, 0, high, low]);
        booting.asked(&other, start);
    }
    assert!(booting.contains(PC, start));
    assert_eq!(booting.asked.len(), MAX_MACHINES);
    booting.asked(&other, start + BOOTING);
    assert_eq!(booting.asked.len(), 1, "the others have booted");
}

#[test]
fn a_router_is_waited_for_and_then_the_machine_is_answered_once() {
    let start = Instant::now();
    let mut pending = Pending::default();
    pending.hear(Heard::Solicitation(asked(PC)), start);
    pending.hear(Heard::Solicitation(asked(PC)), start + ROUTER_DELAY / 2);
    assert_eq!(pending.take_due(start + ROUTER_DELAY / 2), None);
    assert_eq!(pending.next_due(), Some(start + ROUTER_DELAY));
    assert_eq!(pending.take_due(start + ROUTER_DELAY), Some(asked(PC)));
    assert_eq!(pending.next_due(), None);
}

#[test]
fn where_a_router_is_we_are_silent() {
    let start = Instant::now();
    let mut pending = Pending::default();
    pending.hear(Heard::Solicitation(asked(PC)), start);
    pending.hear(Heard::Advertisement, start + ROUTER_DELAY / 2);
    assert_eq!(pending.next_due(), None, "it answered");
    pending.hear(Heard::Solicitation(asked(PC)), start + ROUTER_HEARD / 2);
    assert_eq!(pending.next_due(), None, "it is remembered");
    let later = start + ROUTER_HEARD + ROUTER_DELAY;
    pending.hear(Heard::Solicitation(asked(PC)), later);
    assert!(pending.next_due().is_some(), "it is gone");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(mut message in proptest::collection::vec(any::<u8>(), 8..120), raw in any::<bool>()) {
        if !raw {
            message[0] = SOLICITATION;
            message[1..4].fill(0);
            let _ = parse(&packet(link_local(PC), &message));
        }
        let _ = parse(&message);
    }
}
