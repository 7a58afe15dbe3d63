//! Claims about several networks: relays, what they say of their clients, and
//! the options of each network and machine.

use super::*;
use crate::option::{self, Value};

const RELAY: Ipv4Addr = Ipv4Addr::new(10, 3, 0, 254);
const OVERRIDE: Ipv4Addr = Ipv4Addr::new(10, 3, 0, 253);

/// 10.0.0.0/24 at our interface, 10.3.0.0/24 and 10.4.0.0/24 behind relays.
fn lab() -> Lab {
    let mut lab = Lab::full();
    for third in [3, 4] {
        let address = |last| Ipv4Addr::new(10, third, 0, last);
        lab.settings.subnets.push(Subnet {
            ranges: vec![(address(10), address(20))],
            routers: vec![address(1)],
            ..Subnet::new(address(0), Ipv4Addr::new(255, 255, 255, 0))
        });
    }
    lab
}

fn relayed(mut message: Message, words: &[u8]) -> Message {
    message.giaddr = RELAY;
    message.options.set(code::RELAY, words);
    message
}

#[test]
fn a_relay_may_select_another_network_than_its_own() {
    let words = [&b"\x01\x02p7"[..], &[5, 4, 10, 4, 0, 0]].concat();
    let offer = lab().broadcast(&relayed(discover(1), &words)).unwrap();
    assert_eq!(offer.message.yiaddr.octets()[..3], [10, 4, 0]);
    assert_eq!(
        offer.to,
        Destination::Address(SocketAddrV4::new(RELAY, SERVER_PORT))
    );
    let (last, echoed) = offer.message.options.iter().last().unwrap();
    assert_eq!((last, echoed), (code::RELAY, words.as_slice()));
    let elsewhere = relayed(discover(1), &[5, 4, 10, 99, 0, 0]);
    assert_eq!(lab().broadcast(&elsewhere), None, "not served");
}

#[test]
fn a_network_behind_a_relay_may_lie_in_that_of_an_interface() {
    let mut lab = lab();
    lab.settings.subnets[0].netmask = Ipv4Addr::new(255, 0, 0, 0);
    let behind = lab.broadcast(&relayed(discover(1), &[])).unwrap().message;
    assert_eq!(behind.yiaddr.octets()[..3], [10, 3, 0]);
    let here = lab.broadcast(&discover(2)).unwrap().message;
    assert_eq!(here.yiaddr.octets()[..3], [10, 0, 0]);
}

#[test]
fn without_a_relay_option_82_selects_nothing() {
    let mut message = discover(1);
    message.options.set(code::RELAY, [5, 4, 10, 4, 0, 0]);
    let offer = lab().broadcast(&message).unwrap().message;
    assert_eq!(offer.yiaddr.octets()[..3], [10, 0, 0]);
}

#[test]
fn a_client_may_select_its_network_and_is_told_so() {
    let mut message = discover(1);
    message.options.set(code::SUBNET_SELECTION, [10, 3, 0, 0]);
    let offer = lab().broadcast(&message).unwrap().message;
    assert_eq!(offer.yiaddr.octets()[..3], [10, 3, 0]);
    assert_eq!(
        offer.options.address(code::SUBNET_SELECTION),
        Some(Ipv4Addr::new(10, 3, 0, 0))
    );
}

#[test]
fn a_relay_that_stands_for_us_is_named_in_our_place() {
    let mut lab = lab();
    let words = [&[11, 4][..], &OVERRIDE.octets()].concat();
    let discover = relayed(discover(1), &words);
    let offer = lab.broadcast(&discover).unwrap().message;
    assert_eq!(offer.options.address(code::SERVER_ID), Some(OVERRIDE));
    let mut request = selecting(&discover, offer.yiaddr);
    request.options.set(code::SERVER_ID, OVERRIDE.octets());
    let ack = lab.broadcast(&request).unwrap().message;
    assert_eq!(ack.message_type(), Some(MessageType::Ack));
    assert_eq!(ack.options.address(code::SERVER_ID), Some(OVERRIDE));
}

#[test]
fn a_request_for_the_offer_of_another_interface_of_ours_withdraws_nothing() {
    let mut lab = lab();
    let offer = lab.broadcast(&discover(1)).unwrap().message;
    let mut elsewhere = selecting(&discover(1), offer.yiaddr);
    let own = OWN_ELSEWHERE.octets();
    elsewhere.options.set(code::SERVER_ID, own);
    assert_eq!(lab.broadcast(&elsewhere), None);
    let foreign = |seen: &Observation| matches!(seen, Observation::ForeignServer { .. });
    assert!(!lab.site.observations().iter().any(foreign));
    assert_eq!(
        kind(lab.broadcast(&selecting(&discover(1), offer.yiaddr))),
        Some(MessageType::Ack)
    );
}

#[test]
fn a_network_has_its_own_lease_time() {
    let mut lab = lab();
    lab.settings.subnets[1].lease_time = Some(Duration::from_secs(600));
    let offer = lab.broadcast(&relayed(discover(1), &[])).unwrap().message;
    assert_eq!(
        offer.options.get(code::LEASE_TIME),
        Some(&600u32.to_be_bytes()[..])
    );
}

fn options(given: &[(&str, &str)]) -> Vec<option::Setting> {
    let given: Vec<(String, Value)> = given
        .iter()
        .map(|(name, text)| ((*name).to_owned(), Value::Text((*text).to_owned())))
        .collect();
    option::read(&given).unwrap()
}

#[test]
fn a_networks_boot_options_are_for_clients_that_we_do_not_boot() {
    let mut lab = lab();
    lab.settings.subnets[0].options = options(&[
        ("tftp-server-name", "phones.lan"),
        ("pxelinux-path-prefix", "x/"),
    ]);
    let phone = lab.broadcast(&discover(1)).unwrap().message;
    assert_eq!(
        phone.options.text(code::TFTP_SERVER).as_deref(),
        Some("phones.lan")
    );
    let pc = lab
        .broadcast(&recorded("ovmf-pxe-discover"))
        .unwrap()
        .message;
    assert_eq!(
        pc.options.text(code::TFTP_SERVER).as_deref(),
        Some("10.0.0.1")
    );
    assert_eq!(pc.options.text(210).as_deref(), Some("x/"));
}

#[test]
fn a_machines_options_go_before_its_networks_and_ours() {
    let mut lab = lab();
    lab.settings.subnets[0].options = options(&[("210", "network/")]);
    let discover = recorded("ovmf-pxe-discover");
    let promise = Promise {
        options: options(&[("210", "machine/"), ("67", "own.efi"), ("66", "10.0.0.9")]),
        ..Promise::default()
    };
    let mac = Mac(*discover.chaddr.first_chunk().unwrap());
    lab.site.promises.lock().unwrap().insert(mac, promise);
    let offer = lab.broadcast(&discover).unwrap().message;
    assert_eq!(offer.options.text(210).as_deref(), Some("machine/"));
    assert_eq!((file(&offer), offer.siaddr), ("own.efi", host(9)));
}

#[test]
fn routes_without_a_default_one_get_the_router_of_the_network() {
    let mut lab = lab();
    lab.settings.subnets[0].options = options(&[("121", "10.9.0.0/16 10.0.0.7")]);
    let offer = lab.broadcast(&discover(1)).unwrap().message;
    assert_eq!(
        offer.options.get(code::ROUTES),
        Some(&[16, 10, 9, 10, 0, 0, 7, 0, 10, 0, 0, 254][..])
    );
}

#[test]
fn what_grows_too_long_goes_into_the_fields_of_the_header() {
    let mut lab = lab();
    lab.settings.subnets[0].domain = Some("d".repeat(110));
    lab.settings.subnets[0].ntp = vec![host(3); 12];
    lab.settings.subnets[0].options = options(&[("210", &"p".repeat(120))]);
    let reply = lab.broadcast(&discover(1)).unwrap();
    assert!(reply.message.emit().len() > 548 && reply.limit_bytes == 548);
    let bytes = reply.message.emit_within(reply.limit_bytes);
    assert!(bytes.len() <= 548, "{}", bytes.len());
    assert_eq!(bytes[240..243], [53, 1, 2], "the message type is the first");
    let read = Message::parse(&bytes).unwrap();
    for (code, data) in reply.message.options.iter() {
        assert_eq!(read.options.get(code), Some(data), "{code}");
    }
}

#[test]
fn a_known_machine_gets_an_address_though_strangers_were_offered_all_of_them() {
    let mut lab = lab();
    let ours = mac(200);
    lab.site.promises.lock().unwrap().insert(
        ours,
        Promise {
            is_known: true,
            ..Promise::default()
        },
    );
    for number in 0..60 {
        let offer = lab.broadcast(&discover(number));
        assert_eq!(offer.is_some(), number < 50, "{number}");
    }
    let (address, _) = lab.bind(&discover(200));
    assert!(lab.settings.subnets[0].lends(address));
    assert_eq!(lab.leases.all().len(), 1, "offers write nothing");
    assert_eq!(lab.broadcast(&discover(99)), None, "a stranger waits");
}

/// Has `number` go through DISCOVER to ACK: whether it was lent an address.
fn is_lent(lab: &mut Lab, discover: &Message) -> bool {
    let Some(offer) = lab.broadcast(discover) else {
        return false;
    };
    let answer = lab.broadcast(&selecting(discover, offer.message.yiaddr));
    answer.is_some_and(|reply| reply.message.message_type() == Some(MessageType::Ack))
}

fn limits_said(lab: &Lab) -> Vec<Observation> {
    let mut said = lab.site.observations();
    said.retain(|observation| matches!(observation, Observation::PortLimit { .. }));
    said
}

fn know(lab: &Lab, number: u8) {
    let promise = Promise {
        is_known: true,
        ..Promise::default()
    };
    let mut promises = lab.site.promises.lock().unwrap();
    promises.insert(mac(number), promise);
}

#[test]
fn strangers_that_take_all_they_are_offered_leave_room_for_known_machines() {
    let mut lab = lab();
    know(&lab, 200);
    // 50 addresses, an eighth of them for the site's machines.
    let lent = (0..100).filter(|&number| is_lent(&mut lab, &discover(number)));
    assert_eq!(lent.count(), 44);
    let limit = Observation::PortLimit {
        mac: mac(99),
        relay: SERVER,
    };
    let said = limits_said(&lab);
    assert_eq!((said.len(), said.last()), (56, Some(&limit)));
    assert!(is_lent(&mut lab, &discover(200)));
    assert!(is_lent(&mut lab, &discover(3)), "it has an address");
    lab.now = 2 * LEASE_TIME.as_secs();
    assert!(is_lent(&mut lab, &discover(99)), "the others ran out");
}

#[test]
fn one_port_of_a_relay_is_lent_so_many_addresses_and_others_go_on() {
    let mut lab = lab();
    lab.settings.subnets[1].ranges =
        vec![(Ipv4Addr::new(10, 3, 0, 1), Ipv4Addr::new(10, 3, 0, 200))];
    know(&lab, 200);
    let at_port = |number, port: &[u8]| relayed(discover(number), &[&[1, 2][..], port].concat());
    let lent = (0..100).filter(|&number| is_lent(&mut lab, &at_port(number, b"p1")));
    assert_eq!(lent.count(), crate::lease::PORT_ADDRESSES_MAX);
    let limit = Observation::PortLimit {
        mac: mac(99),
        relay: RELAY,
    };
    assert_eq!(limits_said(&lab).last(), Some(&limit));
    assert!(is_lent(&mut lab, &at_port(99, b"p2")));
    assert!(is_lent(&mut lab, &at_port(200, b"p1")), "a known machine");
    lab.now = 2 * LEASE_TIME.as_secs();
    assert!(is_lent(&mut lab, &at_port(98, b"p1")), "the others ran out");
}
