//! Claims about answers: what each client of the wire is told, and where the
//! reply goes.

use std::sync::Arc;

use super::*;
use crate::lease::tests::{Memory, SERVER, Site, at, host, mac, subnet};
use crate::wire::tests::vector;
use crate::{Arch, Firmware, Promise};

mod networks;
mod styles;

const LEASE_TIME: Duration = Duration::from_secs(3600);
const OTHER_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// Ours, on another interface.
const OWN_ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const SCRIPT: &str = "http://10.0.0.1/boot.ipxe";
const LOADER: &str = "http://10.0.0.1/snponly.efi";

/// A server with its site, at a moment.
struct Lab {
    site: Site,
    settings: Settings,
    leases: Leases,
    now: u64,
}

impl Lab {
    fn new(mode: Mode) -> Lab {
        let tftp = |file: &str| Boot::Tftp {
            server: SERVER,
            file: file.into(),
        };
        let site = Site::with_boots(&[
            (Firmware::BiosPxe, tftp("undionly.kpxe")),
            (Firmware::UefiPxe(Arch::X64), tftp("snponly.efi")),
            (Firmware::UefiHttp(Arch::X64), Boot::Url(LOADER.into())),
            (Firmware::Ipxe(None), Boot::Url(SCRIPT.into())),
        ]);
        let settings = Settings {
            mode,
            lease_time: LEASE_TIME,
            subnets: vec![subnet(50)],
        };
        let leases = Leases::open(Arc::new(Memory::default()), at(0)).unwrap();
        Lab {
            site,
            settings,
            leases,
            now: 0,
        }
    }

    fn full() -> Lab {
        Lab::new(Mode::Full)
    }

    fn answer(
        &mut self,
        message: &Message,
        port: Port,
        is_unicast: bool,
        source: SocketAddrV4,
    ) -> Option<Reply> {
        let arrival = Arrival {
            message,
            port,
            is_unicast,
            source,
            server: SERVER,
            netmask: Ipv4Addr::new(255, 255, 255, 0),
            own: &[SERVER, OWN_ELSEWHERE],
        };
        answer(
            &arrival,
            &self.settings,
            &mut self.leases,
            &self.site,
            at(self.now),
        )
    }

    fn broadcast(&mut self, message: &Message) -> Option<Reply> {
        self.answer(
            message,
            Port::Dhcp,
            false,
            SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
        )
    }

    fn unicast(&mut self, message: &Message) -> Option<Reply> {
        self.answer(
            message,
            Port::Dhcp,
            true,
            SocketAddrV4::new(message.ciaddr, 68),
        )
    }

    fn boot_server(&mut self, message: &Message, source_port: u16) -> Option<Reply> {
        self.answer(
            message,
            Port::BootServer,
            true,
            SocketAddrV4::new(message.ciaddr, source_port),
        )
    }

    /// DISCOVER, OFFER, REQUEST, ACK: the address and the ACK.
    fn bind(&mut self, discover: &Message) -> (Ipv4Addr, Message) {
        let offer = self.broadcast(discover).expect("an offer").message;
        let ack = self
            .broadcast(&selecting(discover, offer.yiaddr))
            .expect("an answer")
            .message;
        assert_eq!(ack.message_type(), Some(MessageType::Ack));
        assert_eq!(ack.yiaddr, offer.yiaddr);
        (ack.yiaddr, ack)
    }
}

/// A message of an operating system.
fn message(kind: MessageType, number: u8) -> Message {
    let mut message = Message::new(Op::Request);
    message.xid = 0x1234_5678;
    message.chaddr[..6].copy_from_slice(&mac(number).0);
    message.options.set(code::MESSAGE_TYPE, [kind.number()]);
    message
}

fn discover(number: u8) -> Message {
    message(MessageType::Discover, number)
}

/// A recorded DISCOVER.
fn recorded(name: &str) -> Message {
    Message::parse(&vector(name)).unwrap()
}

/// The REQUEST that follows our OFFER.
fn selecting(discover: &Message, address: Ipv4Addr) -> Message {
    let mut request = discover.clone();
    request
        .options
        .set(code::MESSAGE_TYPE, [MessageType::Request.number()]);
    request.options.set(code::SERVER_ID, SERVER.octets());
    request
        .options
        .set(code::REQUESTED_ADDRESS, address.octets());
    request
}

fn init_reboot(number: u8, address: Ipv4Addr) -> Message {
    let mut request = message(MessageType::Request, number);
    request
        .options
        .set(code::REQUESTED_ADDRESS, address.octets());
    request
}

/// A REQUEST to renew (sent to us) or to rebind (broadcast).
fn prolonging(number: u8, address: Ipv4Addr) -> Message {
    let mut request = message(MessageType::Request, number);
    request.ciaddr = address;
    request
}

/// What EDK2 sends to port 4011 (captured: no option 54, 50 or 43).
fn edk2_boot_server_request(address: Ipv4Addr) -> Message {
    let mut request = recorded("ovmf-pxe-discover");
    request
        .options
        .set(code::MESSAGE_TYPE, [MessageType::Request.number()]);
    request.flags = 0;
    request.ciaddr = address;
    request
}

/// What a BIOS ROM sends to port 4011 with a boot item: xid 0 (captured).
fn rom_boot_item_request(address: Ipv4Addr) -> Message {
    let mut request = message(MessageType::Request, 7);
    request.xid = 0;
    request.ciaddr = address;
    request.flags = BROADCAST_FLAG;
    request.options.set(code::VENDOR_CLASS, "PXEClient");
    request.options.set(code::ARCHITECTURE, [0, 0]);
    request
        .options
        .set(code::VENDOR, *b"\x47\x04\x80\x00\x00\x00\xff");
    request
}

fn kind(reply: Option<Reply>) -> Option<MessageType> {
    reply.and_then(|reply| reply.message.message_type())
}

fn class(message: &Message) -> Option<String> {
    message.options.text(code::VENDOR_CLASS)
}

fn file(message: &Message) -> &str {
    std::str::from_utf8(&message.file).unwrap()
}

// The LAN's server: REQUEST in its variants (RFC 2131 section 4.3.2).

#[test]
fn an_operating_system_is_lent_an_address_with_its_network() {
    let mut lab = Lab::full();
    let (address, ack) = lab.bind(&discover(1));
    assert!(lab.settings.subnets[0].lends(address));
    let options = &ack.options;
    assert_eq!(options.address(code::SERVER_ID), Some(SERVER));
    assert_eq!(
        options.address(code::NETMASK),
        Some(Ipv4Addr::new(255, 255, 255, 0))
    );
    assert_eq!(options.address(code::ROUTERS), Some(host(254)));
    assert_eq!(options.address(code::DNS), Some(host(253)));
    assert_eq!(options.address(code::BROADCAST), Some(host(255)));
    assert_eq!(options.text(code::DOMAIN).as_deref(), Some("lan"));
    assert_eq!(
        options.get(code::LEASE_TIME),
        Some(&3600u32.to_be_bytes()[..])
    );
    assert_eq!(options.get(code::T1), Some(&1800u32.to_be_bytes()[..]));
    assert_eq!(options.get(code::T2), Some(&3150u32.to_be_bytes()[..]));
    assert_eq!(class(&ack), None, "nothing of PXE");
    assert_eq!(options.get(code::VENDOR), None);
    assert_eq!(options.get(code::UUID), None);
    let order: Vec<u8> = options.iter().map(|(code, _)| code).collect();
    assert_eq!(
        order[..3],
        [code::MESSAGE_TYPE, code::SERVER_ID, code::LEASE_TIME]
    );
}

#[test]
fn a_client_that_takes_another_servers_offer_is_left_alone_and_its_offer_freed() {
    let mut lab = Lab::full();
    lab.settings.subnets = vec![subnet(1)];
    lab.broadcast(&discover(1)).unwrap();
    assert_eq!(lab.broadcast(&discover(2)), None);
    let mut elsewhere = selecting(&discover(1), host(100));
    elsewhere
        .options
        .set(code::SERVER_ID, OTHER_SERVER.octets());
    assert_eq!(lab.broadcast(&elsewhere), None);
    assert!(
        lab.site
            .observations()
            .contains(&Observation::ForeignServer {
                server: OTHER_SERVER
            })
    );
    assert!(lab.broadcast(&discover(2)).is_some());
}

#[test]
fn selecting_an_address_that_is_not_the_clients_is_refused() {
    let mut lab = Lab::full();
    let (taken, _) = lab.bind(&discover(1));
    for address in [taken, host(9), Ipv4Addr::new(192, 168, 1, 5)] {
        let nak = lab.broadcast(&selecting(&discover(2), address)).unwrap();
        assert_eq!(
            nak.message.message_type(),
            Some(MessageType::Nak),
            "{address}"
        );
        assert_eq!(nak.message.yiaddr, Ipv4Addr::UNSPECIFIED);
        assert_eq!(nak.to, Destination::Broadcast);
        assert_eq!(nak.message.options.address(code::SERVER_ID), Some(SERVER));
        assert_eq!(nak.message.options.get(code::LEASE_TIME), None);
    }
}

#[test]
fn init_reboot_is_confirmed_refused_or_left_to_others() {
    let mut lab = Lab::full();
    let (address, _) = lab.bind(&discover(1));
    let other = host(if address == host(100) { 101 } else { 100 });
    let ask = |lab: &mut Lab, number, address| kind(lab.broadcast(&init_reboot(number, address)));
    assert_eq!(ask(&mut lab, 1, address), Some(MessageType::Ack), "its own");
    assert_eq!(
        ask(&mut lab, 1, other),
        Some(MessageType::Nak),
        "not the one it has"
    );
    assert_eq!(
        ask(&mut lab, 2, Ipv4Addr::new(192, 168, 1, 5)),
        Some(MessageType::Nak),
        "the wrong network"
    );
    assert_eq!(ask(&mut lab, 2, other), None, "a client nobody here knows");
    lab.now = 100_000;
    assert_eq!(
        ask(&mut lab, 1, address),
        Some(MessageType::Ack),
        "its own, ended, still free"
    );
}

#[test]
fn a_renewal_prolongs_and_goes_straight_to_the_client() {
    let mut lab = Lab::full();
    let (address, _) = lab.bind(&discover(1));
    lab.now = 1800;
    let ack = lab.unicast(&prolonging(1, address)).unwrap();
    assert_eq!(ack.message.message_type(), Some(MessageType::Ack));
    assert_eq!((ack.message.yiaddr, ack.message.ciaddr), (address, address));
    assert_eq!(ack.to, Destination::Address(SocketAddrV4::new(address, 68)));
    assert_eq!(
        lab.leases.of(mac(1)).unwrap().expires,
        at(1800) + LEASE_TIME
    );
}

#[test]
fn a_renewal_of_what_is_not_the_clients_is_refused() {
    let mut lab = Lab::full();
    let (address, _) = lab.bind(&discover(1));
    let nak = lab.unicast(&prolonging(2, address)).unwrap();
    assert_eq!(nak.message.message_type(), Some(MessageType::Nak));
    assert_eq!(nak.to, Destination::Broadcast);
}

#[test]
fn a_renewal_goes_on_though_the_store_was_lost_or_another_address_was_promised() {
    let mut lab = Lab::full();
    assert_eq!(
        kind(lab.unicast(&prolonging(1, host(110)))),
        Some(MessageType::Ack),
        "never heard of, and free"
    );
    lab.site.fix(mac(1), host(9));
    assert_eq!(
        kind(lab.unicast(&prolonging(1, host(110)))),
        Some(MessageType::Ack),
        "promised since"
    );
    assert_eq!(
        kind(lab.broadcast(&init_reboot(1, host(110)))),
        Some(MessageType::Nak),
        "but at the next boot"
    );
    assert_eq!(lab.bind(&discover(1)).0, host(9));
}

#[test]
fn rebinding_is_answered_where_the_client_is_known() {
    let mut lab = Lab::full();
    let (address, _) = lab.bind(&discover(1));
    assert_eq!(
        kind(lab.broadcast(&prolonging(1, address))),
        Some(MessageType::Ack)
    );
    assert_eq!(
        kind(lab.broadcast(&prolonging(2, host(140)))),
        None,
        "another server's client, perhaps"
    );
    assert_eq!(
        kind(lab.broadcast(&prolonging(2, Ipv4Addr::new(192, 168, 1, 5)))),
        Some(MessageType::Nak)
    );
}

#[test]
fn a_request_for_nothing_is_not_answered() {
    assert_eq!(
        Lab::full().broadcast(&message(MessageType::Request, 1)),
        None
    );
}

#[test]
fn a_release_frees_and_a_decline_rests() {
    let mut lab = Lab::full();
    lab.settings.subnets = vec![subnet(1)];
    let (address, _) = lab.bind(&discover(1));
    let mut release = message(MessageType::Release, 1);
    release.ciaddr = address;
    release.options.set(code::SERVER_ID, SERVER.octets());
    assert_eq!(lab.unicast(&release), None);
    assert_eq!(lab.bind(&discover(2)).0, address);

    let mut decline = message(MessageType::Decline, 2);
    decline
        .options
        .set(code::REQUESTED_ADDRESS, address.octets());
    decline.options.set(code::SERVER_ID, OTHER_SERVER.octets());
    assert_eq!(lab.broadcast(&decline), None);
    assert!(
        lab.broadcast(&discover(2)).is_some(),
        "declined to another server"
    );
    decline.options.set(code::SERVER_ID, SERVER.octets());
    assert_eq!(lab.broadcast(&decline), None);
    lab.site.observations();
    assert_eq!(lab.broadcast(&discover(2)), None);
    assert_eq!(
        lab.site.observations()[1],
        Observation::PoolExhausted { mac: mac(2) }
    );
}

#[test]
fn inform_is_told_the_network_and_no_times() {
    let mut lab = Lab::full();
    let mut inform = message(MessageType::Inform, 1);
    inform.ciaddr = host(7);
    let reply = lab.unicast(&inform).unwrap();
    assert_eq!(reply.message.message_type(), Some(MessageType::Ack));
    assert_eq!(reply.message.yiaddr, Ipv4Addr::UNSPECIFIED);
    assert_eq!(
        reply.message.options.address(code::ROUTERS),
        Some(host(254))
    );
    for code in [code::LEASE_TIME, code::T1, code::T2] {
        assert_eq!(reply.message.options.get(code), None);
    }
    assert_eq!(
        reply.to,
        Destination::Address(SocketAddrV4::new(host(7), 68))
    );
    assert_eq!(lab.leases.all(), []);
}

#[test]
fn bootp_gets_what_is_promised_in_300_bytes_and_nothing_else() {
    let mut lab = Lab::full();
    let mut request = discover(1);
    request.options.take(code::MESSAGE_TYPE);
    assert_eq!(lab.broadcast(&request), None);
    lab.site.fix(mac(1), host(9));
    let reply = lab.broadcast(&request).unwrap().message;
    assert_eq!(reply.yiaddr, host(9));
    assert_eq!(reply.options.get(code::MESSAGE_TYPE), None);
    assert_eq!(reply.options.get(code::LEASE_TIME), None);
    assert_eq!(
        reply.options.address(code::NETMASK),
        Some(Ipv4Addr::new(255, 255, 255, 0))
    );
    assert_eq!(reply.emit().len(), crate::wire::MIN_BYTES);
}

#[test]
fn the_replys_address_follows_the_table_of_rfc_2131() {
    let client = Destination::Client {
        mac: mac(1),
        address: host(100),
    };
    let to = |address, port| Destination::Address(SocketAddrV4::new(address, port));
    let none = Ipv4Addr::UNSPECIFIED;
    for (giaddr, ciaddr, flags, hlen, kind, expected) in [
        (host(99), none, 0, 6, MessageType::Offer, to(host(99), 67)),
        (
            host(99),
            host(7),
            BROADCAST_FLAG,
            6,
            MessageType::Nak,
            to(host(99), 67),
        ),
        (
            none,
            host(7),
            BROADCAST_FLAG,
            6,
            MessageType::Ack,
            to(host(7), 68),
        ),
        (
            none,
            host(7),
            0,
            6,
            MessageType::Nak,
            Destination::Broadcast,
        ),
        (none, none, 0, 6, MessageType::Nak, Destination::Broadcast),
        (
            none,
            none,
            BROADCAST_FLAG,
            6,
            MessageType::Offer,
            Destination::Broadcast,
        ),
        (none, none, 0, 0, MessageType::Offer, Destination::Broadcast),
        (none, none, 0, 6, MessageType::Offer, client),
    ] {
        let mut request = discover(1);
        (request.giaddr, request.ciaddr, request.flags, request.hlen) =
            (giaddr, ciaddr, flags, hlen);
        let mut reply = reply::begin(&request, Some(kind), SERVER);
        if kind != MessageType::Nak {
            reply.yiaddr = host(100);
        }
        assert_eq!(
            destination(&request, &reply),
            expected,
            "{giaddr} {ciaddr} {flags:x} {hlen} {kind:?}"
        );
    }
}

#[test]
fn a_relayed_client_gets_an_address_of_its_relays_network_and_the_relay_its_words_back() {
    let mut lab = Lab::full();
    let far = Ipv4Addr::new(10, 7, 0, 1);
    let mut request = discover(1);
    request.giaddr = far;
    request.options.set(code::RELAY, *b"\x01\x02p3");
    assert_eq!(lab.broadcast(&request), None, "a network nobody declared");
    let mut other = subnet(1);
    other.network = Ipv4Addr::new(10, 7, 0, 0);
    other.ranges = vec![(Ipv4Addr::new(10, 7, 0, 50), Ipv4Addr::new(10, 7, 0, 60))];
    lab.settings.subnets.push(other);
    let reply = lab.broadcast(&request).unwrap();
    assert_eq!(reply.message.yiaddr.octets()[..3], [10, 7, 0]);
    assert_eq!(reply.message.giaddr, far);
    assert_eq!(reply.to, Destination::Address(SocketAddrV4::new(far, 67)));
    let last = reply.message.options.iter().last().unwrap();
    assert_eq!(last, (code::RELAY, &b"\x01\x02p3"[..]));

    let mut wrong = init_reboot(1, host(100));
    wrong.giaddr = far;
    let nak = lab.broadcast(&wrong).unwrap().message;
    assert_eq!(nak.message_type(), Some(MessageType::Nak));
    assert_eq!(
        nak.flags & BROADCAST_FLAG,
        BROADCAST_FLAG,
        "so that the relay broadcasts it"
    );
    request.hops = 17;
    assert_eq!(lab.broadcast(&request), None);
}

// What each firmware boots.

#[test]
fn a_bios_rom_gets_its_file_in_every_place_it_may_look() {
    let mut lab = Lab::full();
    let mut rom = discover(7);
    rom.options
        .set(code::VENDOR_CLASS, "PXEClient:Arch:00000:UNDI:002001");
    rom.options.set(code::ARCHITECTURE, [0, 0]);
    rom.options.set(code::UUID, [&[0][..], &[7; 16]].concat());
    let (_, ack) = lab.bind(&rom);
    assert_eq!(ack.siaddr, SERVER);
    assert_eq!(file(&ack), "undionly.kpxe");
    assert_eq!(
        ack.options.get(code::BOOT_FILE),
        Some(&b"undionly.kpxe\0"[..])
    );
    assert_eq!(
        ack.options.text(code::TFTP_SERVER).as_deref(),
        Some("10.0.0.1")
    );
    assert_eq!(class(&ack).as_deref(), Some("PXEClient"));
    assert_eq!(ack.options.get(code::VENDOR), Some(&[6, 1, 8, 255][..]));
    assert_eq!(ack.options.get(code::UUID), rom.options.get(code::UUID));
}

#[test]
fn edk2_pxe_gets_an_offer_that_needs_no_second_question() {
    let mut lab = Lab::full();
    let discover = recorded("ovmf-pxe-discover");
    let offer = lab.broadcast(&discover).unwrap();
    assert_eq!(
        offer.to,
        Destination::Broadcast,
        "it sets the broadcast flag"
    );
    assert_eq!(class(&offer.message).as_deref(), Some("PXEClient"));
    assert_eq!(
        offer.message.options.get(code::VENDOR),
        Some(&[6, 1, 8, 255][..])
    );
    assert_eq!(file(&offer.message), "snponly.efi");
    assert_eq!(offer.message.siaddr, SERVER);
    let (_, ack) = lab.bind(&discover);
    assert_eq!(ack.file, offer.message.file);
}

#[test]
fn http_boot_gets_its_own_class_and_a_url_and_nothing_of_pxe() {
    let mut lab = Lab::full();
    let (_, ack) = lab.bind(&recorded("ovmf-http-discover"));
    assert_eq!(class(&ack).as_deref(), Some("HTTPClient"));
    assert_eq!(ack.options.text(code::BOOT_FILE).as_deref(), Some(LOADER));
    assert_eq!(ack.options.get(code::VENDOR), None);
    assert_eq!(file(&ack), "");
}

#[test]
fn ipxe_gets_its_script_and_need_not_wait_for_a_proxy() {
    let mut lab = Lab::full();
    let promise = Promise {
        initiator_name: Some("iqn.2025-01.lan:pc07".into()),
        root_path: Some("iscsi:10.0.0.1::::iqn.2025-01.lan:pc07".into()),
        ..Promise::default()
    };
    lab.site
        .promises
        .lock()
        .unwrap()
        .insert(Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]), promise);
    let discover = recorded("ipxe2019-bios-discover");
    let offer = lab.broadcast(&discover).unwrap();
    let Destination::Client { mac, .. } = offer.to else {
        panic!("{:?}", offer.to)
    };
    assert_eq!(mac.0, [0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    let message = offer.message;
    assert_eq!(message.options.get(code::IPXE), Some(&[0xb0, 1, 1][..]));
    assert_eq!(class(&message), None);
    assert_eq!(
        message.options.text(code::BOOT_FILE).as_deref(),
        Some(SCRIPT)
    );
    assert_eq!(file(&message), SCRIPT);
    assert_eq!(message.siaddr, SERVER);
    assert_eq!(
        message.options.text(code::INITIATOR_NAME).as_deref(),
        Some("iqn.2025-01.lan:pc07")
    );
    assert!(
        message
            .options
            .text(code::ROOT_PATH)
            .unwrap()
            .starts_with("iscsi:")
    );
}

#[test]
fn a_machine_keeps_its_address_from_the_rom_to_the_operating_system() {
    let mut lab = Lab::full();
    let ipxe = recorded("ipxe2019-bios-discover"); // option 61: 01 and the MAC
    let edk2 = recorded("ovmf-pxe-discover"); // no option 61
    let mut klibc = discover(0); // as seen: no 61, no 97, no 77
    klibc.chaddr = ipxe.chaddr;
    klibc.flags = BROADCAST_FLAG;
    klibc.options.set(code::VENDOR_CLASS, "Linux ipconfig");
    let mut duid = klibc.clone();
    duid.options
        .set(code::CLIENT_ID, [255, 1, 2, 3, 4, 0, 1, 0, 1]);
    let addresses: Vec<Ipv4Addr> = [&edk2, &ipxe, &klibc, &duid]
        .map(|discover| lab.bind(discover).0)
        .into();
    assert!(
        addresses.iter().all(|address| *address == addresses[0]),
        "{addresses:?}"
    );
    assert_eq!(lab.leases.all().len(), 1);
}

#[test]
fn what_a_firmware_cannot_use_is_not_sent_but_it_gets_its_address() {
    let mut lab = Lab::full();
    lab.site.boots = std::sync::Mutex::new(vec![(
        Firmware::UefiPxe(Arch::X64),
        Boot::Url(LOADER.into()),
    )]);
    let offer = lab
        .broadcast(&recorded("ovmf-pxe-discover"))
        .unwrap()
        .message;
    assert_eq!((class(&offer), file(&offer)), (None, ""));
    let observed = lab.site.observations();
    assert!(
        matches!(observed[1], Observation::Offered { boot: None, .. }),
        "{observed:?}"
    );
}

#[test]
fn a_reply_is_shortened_to_what_the_client_takes() {
    let mut lab = Lab::full();
    lab.settings.subnets[0].domain = Some("d".repeat(255));
    lab.settings.subnets[0].ntp = vec![host(3); 30];
    lab.site.boots =
        std::sync::Mutex::new(vec![(Firmware::Ipxe(None), Boot::Url("u".repeat(240)))]);
    let mut discover = recorded("ipxe2019-bios-discover");
    discover.options.take(code::PARAMETERS);
    let long = lab.broadcast(&discover).unwrap().message;
    assert!(long.emit().len() > 800);
    discover.options.take(code::MAX_SIZE);
    let short = lab.broadcast(&discover).unwrap();
    let bytes = short.message.emit_within(short.limit_bytes).len();
    assert!(bytes <= 548, "{bytes}");
    let short = short.message;
    assert_eq!(short.options.text(code::BOOT_FILE).unwrap().len(), 240);
    assert!(short.file.is_empty(), "too long for the header");
}

// Port 4011.

#[test]
fn edk2_on_port_4011_is_answered_there_in_both_modes() {
    for mode in [Mode::Proxy, Mode::Full] {
        let mut lab = Lab::new(mode);
        let reply = lab
            .boot_server(&edk2_boot_server_request(host(77)), 4011)
            .unwrap();
        assert_eq!(reply.from, Port::BootServer);
        assert_eq!(
            reply.to,
            Destination::Address(SocketAddrV4::new(host(77), 4011))
        );
        assert_eq!(reply.message.message_type(), Some(MessageType::Ack));
        assert_eq!(file(&reply.message), "snponly.efi");
        assert_eq!(reply.message.siaddr, SERVER);
        assert_eq!(class(&reply.message).as_deref(), Some("PXEClient"));
        assert_eq!(
            reply.message.options.get(code::VENDOR),
            None,
            "EDK2 asked for want of it"
        );
        assert_eq!(reply.message.options.get(code::LEASE_TIME), None);
        assert_eq!(lab.leases.all(), []);
        assert!(lab.site.observations().iter().any(
            |observation| matches!(observation, Observation::Bound { address, .. } if *address == host(77))
        ));
    }
}

#[test]
fn a_boot_item_request_with_xid_0_gets_its_own_item_back() {
    let mut lab = Lab::new(Mode::Proxy);
    let reply = lab
        .boot_server(&rom_boot_item_request(host(77)), 68)
        .unwrap();
    assert_eq!(
        reply.to,
        Destination::Address(SocketAddrV4::new(host(77), 68))
    );
    assert_eq!(reply.message.xid, 0);
    assert_eq!(
        reply.message.options.get(code::VENDOR),
        Some(&b"\x47\x04\x80\x00\x00\x00\xff"[..])
    );
    assert_eq!(file(&reply.message), "undionly.kpxe");
    assert_eq!(reply.message.yiaddr, host(77));
}

#[test]
fn a_broadcast_boot_item_request_is_answered_from_port_4011() {
    for mode in [Mode::Proxy, Mode::Full] {
        let reply = Lab::new(mode)
            .broadcast(&rom_boot_item_request(host(77)))
            .unwrap();
        assert_eq!(reply.from, Port::BootServer);
    }
}

#[test]
fn another_vendors_option_43_is_no_boot_item() {
    let mut lab = Lab::full();
    let mut system = discover(1);
    system.options.set(code::VENDOR_CLASS, "some phone");
    system
        .options
        .set(code::VENDOR, *b"\x47\x04\x80\x00\x00\x00\xff");
    lab.bind(&system);
}

#[test]
fn port_4011_is_silent_to_others_servers_clients_and_operating_systems() {
    let mut lab = Lab::full();
    let mut named = edk2_boot_server_request(host(77));
    named.options.set(code::SERVER_ID, OTHER_SERVER.octets());
    assert_eq!(lab.boot_server(&named, 4011), None);
    assert_eq!(lab.boot_server(&prolonging(1, host(77)), 68), None);
    assert_eq!(
        lab.boot_server(&recorded("ovmf-pxe-discover"), 68),
        None,
        "no DISCOVER there"
    );
}

#[test]
fn a_client_without_an_address_is_answered_by_broadcast_from_port_4011() {
    let mut lab = Lab::new(Mode::Proxy);
    let request = edk2_boot_server_request(Ipv4Addr::UNSPECIFIED);
    assert_eq!(
        lab.boot_server(&request, 68).unwrap().to,
        Destination::Broadcast
    );
}

// The proxy.

#[test]
fn the_proxy_tells_every_firmware_what_to_boot_and_nothing_of_addresses() {
    for (name, expected_class, expected) in [
        ("ovmf-pxe-discover", "PXEClient", "snponly.efi"),
        ("ovmf-http-discover", "HTTPClient", LOADER),
        ("ipxe2019-bios-discover", "PXEClient", SCRIPT),
    ] {
        let mut lab = Lab::new(Mode::Proxy);
        let offer = lab.broadcast(&recorded(name)).unwrap();
        assert_eq!(
            (offer.from, offer.to),
            (Port::Dhcp, Destination::Broadcast),
            "{name}"
        );
        let message = offer.message;
        assert_eq!(message.message_type(), Some(MessageType::Offer));
        assert_eq!(message.yiaddr, Ipv4Addr::UNSPECIFIED);
        assert_eq!(message.siaddr, SERVER, "{name}: iPXE drops what has none");
        assert_eq!(message.flags & BROADCAST_FLAG, BROADCAST_FLAG);
        assert_eq!(class(&message).as_deref(), Some(expected_class), "{name}");
        assert_eq!(
            message.options.text(code::BOOT_FILE).as_deref(),
            Some(expected),
            "{name}"
        );
        assert!(message.options.get(code::UUID).is_some());
        let pxe = (expected_class == "PXEClient").then_some(&[6, 1, 8, 255][..]);
        assert_eq!(message.options.get(code::VENDOR), pxe, "{name}");
        for code in [
            code::NETMASK,
            code::ROUTERS,
            code::DNS,
            code::LEASE_TIME,
            code::T1,
            code::T2,
        ] {
            assert_eq!(message.options.get(code), None, "{name}");
        }
        assert_eq!(lab.leases.all(), []);
    }
}

#[test]
fn the_proxy_is_silent_to_what_does_not_boot_from_the_network() {
    let mut lab = Lab::new(Mode::Proxy);
    let mut windows = discover(1);
    windows.options.set(code::VENDOR_CLASS, "MSFT 5.0");
    let mut inform = message(MessageType::Inform, 1);
    inform.ciaddr = host(7);
    for request in [
        windows,
        inform,
        prolonging(1, host(7)),
        init_reboot(1, Ipv4Addr::new(192, 168, 1, 1)),
    ] {
        assert_eq!(lab.broadcast(&request), None);
    }
}

#[test]
fn the_proxy_learns_addresses_from_requests_to_the_other_server() {
    let mut lab = Lab::new(Mode::Proxy);
    let mut request = selecting(&recorded("ovmf-pxe-discover"), host(189));
    request.options.set(code::SERVER_ID, OTHER_SERVER.octets());
    assert_eq!(lab.broadcast(&request), None);
    let observed = lab.site.observations();
    assert_eq!(
        observed[0],
        Observation::ForeignServer {
            server: OTHER_SERVER
        }
    );
    assert!(matches!(&observed[1], Observation::Bound { address, .. } if *address == host(189)));

    request
        .options
        .set(code::REQUESTED_ADDRESS, [192, 168, 1, 5]);
    lab.broadcast(&request);
    let observed = lab.site.observations();
    assert_eq!(
        observed,
        [Observation::ForeignServer {
            server: OTHER_SERVER
        }],
        "an address of elsewhere"
    );
}

// Observe mode, and rubbish.

#[test]
fn the_observer_answers_nothing_and_reports_who_asks_and_who_answers() {
    let mut lab = Lab::new(Mode::Observe);
    let discover = recorded("ovmf-pxe-discover");
    assert_eq!(lab.broadcast(&discover), None);
    assert_eq!(
        lab.boot_server(&edk2_boot_server_request(host(7)), 4011),
        None
    );
    let observed = lab.site.observations();
    assert!(
        matches!(&observed[0], Observation::Asked(client) if client.firmware == Firmware::UefiPxe(Arch::X64))
    );

    let netmask = Ipv4Addr::new(255, 255, 255, 0);
    let mut offer = reply::begin(&discover, Some(MessageType::Offer), OTHER_SERVER);
    watch(&offer, SERVER, netmask, &lab.site);
    assert_eq!(lab.site.observations(), [], "a ProxyDHCP's");
    offer.yiaddr = host(5);
    watch(&offer, SERVER, netmask, &lab.site);
    assert_eq!(
        lab.site.observations(),
        [Observation::ForeignServer {
            server: OTHER_SERVER
        }]
    );
    watch(&offer, OTHER_SERVER, netmask, &lab.site);
    assert_eq!(lab.site.observations(), [], "our own");
}

#[test]
fn servers_replies_are_never_answered() {
    let mut lab = Lab::full();
    let mut offer = discover(1);
    offer.op = Op::Reply;
    assert_eq!(lab.broadcast(&offer), None);
    assert_eq!(lab.broadcast(&message(MessageType::Offer, 1)), None);
    assert_eq!(lab.broadcast(&message(MessageType::Ack, 1)), None);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_packet_whatever_makes_an_answer_panic(
        options in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
        addresses in proptest::prelude::any::<[u8; 16]>(),
        mode in 0..3,
        kind in 1u8..=8,
        is_unicast: bool,
        is_boot_server: bool,
    ) {
        let mode = [Mode::Observe, Mode::Proxy, Mode::Full][usize::try_from(mode).unwrap()];
        let mut lab = Lab::new(mode);
        let mut bytes = discover(1).emit();
        bytes[12..28].copy_from_slice(&addresses);
        bytes.truncate(240);
        bytes.extend([53, 1, kind]);
        bytes.extend(options);
        if let Ok(message) = Message::parse(&bytes) {
            let port = if is_boot_server { Port::BootServer } else { Port::Dhcp };
            let source = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);
            if let Some(reply) = lab.answer(&message, port, is_unicast, source) {
                proptest::prop_assert!(mode != Mode::Observe);
                proptest::prop_assert_eq!(Message::parse(&reply.message.emit()), Ok(reply.message));
            }
        }
    }
}
