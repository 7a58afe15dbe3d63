//! Who asks: options 93, 97, 60, 77 and 175 become one [`Client`]
//! (RFC 4578, RFC 3004, iPXE's `dhcp.h`).
//!
//! Option 93 decides; option 60 is parsed for an architecture only where 93
//! is missing, for after a PXE answer iPXE's own option 60 shrinks to a bare
//! `PXEClient`.

use crate::wire::{Message, Op, code, inner_options};
use crate::{Arch, Client, Firmware, Mac};

/// How an option 60 of PXE begins, and all that a server's says.
pub const PXE_CLASS: &str = "PXEClient";

/// The same of UEFI HTTP Boot.
pub const HTTP_CLASS: &str = "HTTPClient";

/// iPXE's version inside option 175 (`DHCP_EB_VERSION`).
const IPXE_VERSION: u8 = 0xeb;

/// The boot item inside option 43 (PXE 2.1 table 2-1).
const BOOT_ITEM: u8 = 71;

/// Addresses of the makers of Raspberry Pis (IEEE's registry).
const RASPBERRY_PI_OUIS: [[u8; 3]; 6] = [
    [0xb8, 0x27, 0xeb],
    [0xdc, 0xa6, 0x32],
    [0xe4, 0x5f, 0x01],
    [0x28, 0xcd, 0xc1],
    [0xd8, 0x3a, 0xdd],
    [0x2c, 0xcf, 0x67],
];

/// How the UUID of a Raspberry Pi 4 and later begins, unless its EEPROM was
/// told another (`DHCP_OPTION97`).
const RASPBERRY_PI_UUID: &[u8] = b"RPi";

/// Option 93 of a Raspberry Pi that says what it is (IANA: ARM rpiboot).
const RPIBOOT: u16 = 41;

/// Longest text kept of what a client says of itself, in characters.
const TEXT_CHARS: usize = 255;

impl Client {
    /// Reads a client's request; `None` where it is a server's reply or has
    /// no Ethernet address to be known by.
    pub fn describe(message: &Message) -> Option<Client> {
        // 1 is Ethernet, 6 what some wireless bridges call it.
        if message.op != Op::Request || message.hlen != 6 || !matches!(message.htype, 1 | 6) {
            return None;
        }
        let mac = Mac(*message.chaddr.first_chunk()?);
        // A group address is nobody's.
        if mac.0[0] & 1 != 0 || mac == Mac([0; 6]) {
            return None;
        }
        Some(Client {
            mac,
            uuid: uuid(message),
            firmware: firmware(message),
            vendor_class: shown(message, code::VENDOR_CLASS),
            host_name: shown(message, code::HOST_NAME),
            xid: message.xid,
        })
    }
}

/// The boot item of a boot server request: type and layer, as sent.
pub fn boot_item(message: &Message) -> Option<[u8; 4]> {
    inner_options(message.options.get(code::VENDOR)?)
        .find(|(code, _)| *code == BOOT_ITEM)
        .and_then(|(_, data)| data.try_into().ok())
}

/// Option 97: a type of 0 and 16 bytes that mean something.
fn uuid(message: &Message) -> Option<[u8; 16]> {
    let (kind, uuid) = message.options.get(code::UUID)?.split_first()?;
    let uuid: [u8; 16] = uuid.try_into().ok()?;
    (*kind == 0 && uuid != [0; 16] && uuid != [0xff; 16]).then_some(uuid)
}

/// An option for people to read: no control characters, no end of its own.
fn shown(message: &Message, code: u8) -> Option<String> {
    let text = message.options.text(code)?;
    let text: String = text
        .chars()
        .filter(|c| !c.is_control())
        .take(TEXT_CHARS)
        .collect();
    (!text.is_empty()).then_some(text)
}

fn firmware(message: &Message) -> Firmware {
    let class = message.options.get(code::VENDOR_CLASS).unwrap_or_default();
    let says_http = class.starts_with(HTTP_CLASS.as_bytes());
    let says_pxe = class.starts_with(PXE_CLASS.as_bytes());
    let numbers = architectures(message);

    if is_ipxe(message) {
        return Firmware::Ipxe(numbers.into_iter().find_map(Arch::from_option_93));
    }
    if is_raspberry_pi(message, &numbers, says_pxe) {
        return Firmware::RaspberryPi;
    }
    let Some(&first) = numbers.first() else {
        return match (says_http, says_pxe) {
            // Nobody says HTTPClient without a number but by accident, and
            // then on the commonest machine.
            (true, _) => Firmware::UefiHttp(Arch::X64),
            (_, true) => Firmware::BiosPxe,
            _ => Firmware::System,
        };
    };
    numbers
        .iter()
        .find_map(|&number| match Arch::from_option_93(number) {
            // A client of HTTP takes no other answer, whatever its number.
            Some(arch) if says_http || (is_http(number) && !says_pxe) => {
                Some(Firmware::UefiHttp(arch))
            }
            Some(arch) => Some(Firmware::UefiPxe(arch)),
            None => (number == 0 && !says_http).then_some(Firmware::BiosPxe),
        })
        .unwrap_or(Firmware::Other(first))
}

/// A Raspberry Pi's ROM says in its DISCOVER that it is an x86 BIOS, and in
/// its REQUEST (EEPROM of 2020) nothing at all; then what it asks for tells it
/// from the operating system that runs on it later.
fn is_raspberry_pi(message: &Message, numbers: &[u16], says_pxe: bool) -> bool {
    if numbers.first() == Some(&RPIBOOT) {
        return true;
    }
    let is_pis_mac = (message.chaddr.first_chunk())
        .is_some_and(|maker: &[u8; 3]| RASPBERRY_PI_OUIS.contains(maker));
    let is_pis_uuid = || uuid(message).is_some_and(|uuid| uuid.starts_with(RASPBERRY_PI_UUID));
    if !is_pis_mac && !is_pis_uuid() {
        return false;
    }
    let wanted = message.options.get(code::PARAMETERS).unwrap_or_default();
    let wants_to_boot = || {
        [code::VENDOR, code::VENDOR_CLASS, code::BOOT_FILE]
            .iter()
            .all(|code| wanted.contains(code))
    };
    match numbers {
        [] => says_pxe || wants_to_boot(),
        numbers => numbers.contains(&0),
    }
}

/// Numbers of option 93 that boot by HTTP.
fn is_http(number: u16) -> bool {
    matches!(number, 15..=20 | 23 | 24 | 26 | 28 | 30 | 38 | 40)
}

/// All architectures the client names, best first: option 93, or the digits
/// of `PXEClient:Arch:00007:...`.
fn architectures(message: &Message) -> Vec<u16> {
    if let Some(data) = message.options.get(code::ARCHITECTURE) {
        let numbers: Vec<u16> = data
            .chunks_exact(2)
            .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
            .collect();
        if !numbers.is_empty() {
            return numbers;
        }
    }
    let Some(class) = message.options.text(code::VENDOR_CLASS) else {
        return Vec::new();
    };
    let mut words = class.split(':');
    let is_boot = matches!(words.next(), Some(PXE_CLASS | HTTP_CLASS));
    match (is_boot, words.next(), words.next().map(str::parse)) {
        (true, Some("Arch"), Some(Ok(number))) => vec![number],
        _ => Vec::new(),
    }
}

/// iPXE names itself in option 77, bare or in RFC 3004's list; where the
/// user class was changed, option 175 with a version gives it away. gPXE has
/// both and cannot do what our scripts ask: it is what option 93 says.
fn is_ipxe(message: &Message) -> bool {
    let class = message.options.get(code::USER_CLASS).unwrap_or_default();
    if user_classes(class).any(|class| class == b"iPXE") {
        return true;
    }
    if user_classes(class).any(|class| class == b"gPXE") {
        return false;
    }
    let features = message.options.get(code::IPXE).unwrap_or_default();
    inner_options(features).any(|(code, _)| code == IPXE_VERSION)
}

/// The user class as a whole, then as a list of RFC 3004.
fn user_classes(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = data;
    let list = std::iter::from_fn(move || {
        let (&length, tail) = rest.split_first()?;
        let (class, tail) = tail.split_at_checked(length.into())?;
        rest = tail;
        Some(class)
    });
    std::iter::once(data).chain(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tests::vector;

    fn request(options: &[(u8, &[u8])]) -> Message {
        let mut message = Message::new(Op::Request);
        message.chaddr[..6].copy_from_slice(&[0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        for (code, data) in options {
            message.options.set(*code, *data);
        }
        message
    }

    fn firmware_of(options: &[(u8, &[u8])]) -> Firmware {
        Client::describe(&request(options)).unwrap().firmware
    }

    #[test]
    fn recorded_clients_are_recognised() {
        for (name, firmware) in [
            ("ipxe2019-bios-discover", Firmware::Ipxe(None)),
            ("ovmf-pxe-discover", Firmware::UefiPxe(Arch::X64)),
            ("ovmf-http-discover", Firmware::UefiHttp(Arch::X64)),
            ("ovmf-pxe-request", Firmware::UefiPxe(Arch::X64)),
        ] {
            let client = Client::describe(&Message::parse(&vector(name)).unwrap()).unwrap();
            assert_eq!(client.firmware, firmware, "{name}");
            assert_eq!(client.mac.to_string(), "52:54:00:12:34:56", "{name}");
            assert_eq!(client.uuid, None, "{name}: all zeros are no UUID");
        }
    }

    #[test]
    fn each_architecture_of_option_93_has_its_firmware() {
        for (number, firmware) in [
            (0u16, Firmware::BiosPxe),
            (6, Firmware::UefiPxe(Arch::X86)),
            (7, Firmware::UefiPxe(Arch::X64)),
            (9, Firmware::UefiPxe(Arch::X64)),
            (10, Firmware::UefiPxe(Arch::Arm32)),
            (11, Firmware::UefiPxe(Arch::Arm64)),
            (15, Firmware::UefiHttp(Arch::X86)),
            (16, Firmware::UefiHttp(Arch::X64)),
            (17, Firmware::UefiHttp(Arch::X64)),
            (18, Firmware::UefiHttp(Arch::Arm32)),
            (19, Firmware::UefiHttp(Arch::Arm64)),
            (27, Firmware::UefiPxe(Arch::Riscv64)),
            (28, Firmware::UefiHttp(Arch::Riscv64)),
            (39, Firmware::UefiPxe(Arch::Loongarch64)),
            (40, Firmware::UefiHttp(Arch::Loongarch64)),
            (2, Firmware::Other(2)),
            (20, Firmware::Other(20)),
            (41, Firmware::RaspberryPi),
        ] {
            assert_eq!(
                firmware_of(&[(93, &number.to_be_bytes())]),
                firmware,
                "{number}"
            );
        }
    }

    #[test]
    fn option_93_decides_where_option_60_says_less_or_else() {
        let x64 = 7u16.to_be_bytes();
        assert_eq!(
            firmware_of(&[(93, &x64), (60, b"PXEClient")]),
            Firmware::UefiPxe(Arch::X64)
        );
        assert_eq!(
            firmware_of(&[(93, &x64), (60, b"PXEClient:Arch:00000:UNDI:002001")]),
            Firmware::UefiPxe(Arch::X64)
        );
        assert_eq!(
            firmware_of(&[(93, &x64), (60, b"HTTPClient")]),
            Firmware::UefiHttp(Arch::X64)
        );
    }

    #[test]
    fn option_60_is_parsed_where_option_93_is_missing() {
        assert_eq!(
            firmware_of(&[(60, b"PXEClient:Arch:00007:UNDI:003000")]),
            Firmware::UefiPxe(Arch::X64)
        );
        assert_eq!(
            firmware_of(&[(60, b"HTTPClient:Arch:00019:UNDI:003000")]),
            Firmware::UefiHttp(Arch::Arm64)
        );
        assert_eq!(firmware_of(&[(60, b"PXEClient")]), Firmware::BiosPxe);
        assert_eq!(firmware_of(&[(60, b"MSFT 5.0")]), Firmware::System);
        assert_eq!(firmware_of(&[(60, b"Linux ipconfig")]), Firmware::System);
        assert_eq!(firmware_of(&[]), Firmware::System);
    }

    #[test]
    fn the_first_architecture_that_can_be_served_counts() {
        assert_eq!(
            firmware_of(&[(93, &[0, 2, 0, 7])]),
            Firmware::UefiPxe(Arch::X64)
        );
    }

    #[test]
    fn ipxe_is_known_by_its_user_class_in_both_spellings_or_by_its_version() {
        let bios = (93, &[0u8, 0][..]);
        assert_eq!(firmware_of(&[bios, (77, b"iPXE")]), Firmware::Ipxe(None));
        assert_eq!(
            firmware_of(&[bios, (77, b"\x04iPXE")]),
            Firmware::Ipxe(None)
        );
        assert_eq!(
            firmware_of(&[bios, (77, b"\x03foo\x04iPXE")]),
            Firmware::Ipxe(None)
        );
        assert_eq!(
            firmware_of(&[bios, (77, b"mine"), (175, b"\xeb\x03\x01\x15\x01")]),
            Firmware::Ipxe(None)
        );
        assert_eq!(
            firmware_of(&[(93, &[0, 11]), (77, b"iPXE")]),
            Firmware::Ipxe(Some(Arch::Arm64))
        );
        assert_eq!(
            firmware_of(&[bios, (77, b"gPXE"), (175, b"\xeb\x03\x00\x09\x09")]),
            Firmware::BiosPxe
        );
    }

    fn pi(options: &[(u8, &[u8])]) -> Firmware {
        let mut message = request(options);
        message.chaddr[..3].copy_from_slice(&[0xdc, 0xa6, 0x32]);
        Client::describe(&message).unwrap().firmware
    }

    #[test]
    fn a_raspberry_pis_rom_is_told_from_a_bios_and_from_what_runs_on_it_later() {
        let class: (u8, &[u8]) = (60, b"PXEClient:Arch:00000:UNDI:002001");
        let bios: (u8, &[u8]) = (93, &[0, 0]);
        assert_eq!(pi(&[class, bios]), Firmware::RaspberryPi);
        // The REQUEST of an EEPROM of 2020.
        let wanted: (u8, &[u8]) = (55, &[1, 3, 43, 60, 66, 67, 128, 129]);
        assert_eq!(pi(&[wanted]), Firmware::RaspberryPi);
        assert_eq!(pi(&[(55, &[1, 3, 6, 12, 15, 26, 28])]), Firmware::System);
        assert_eq!(
            pi(&[(60, b"PXEClient:Arch:00011:UNDI:003000"), (93, &[0, 11])]),
            Firmware::UefiPxe(Arch::Arm64)
        );
        assert_eq!(pi(&[class, bios, (77, b"iPXE")]), Firmware::Ipxe(None));
        let uuid: (u8, &[u8]) = (97, b"\0RPi4\x11\x31\xc0\0abcdefgh");
        assert_eq!(firmware_of(&[class, bios, uuid]), Firmware::RaspberryPi);
        assert_eq!(firmware_of(&[class, bios]), Firmware::BiosPxe);
    }

    #[test]
    fn who_has_no_ethernet_address_is_nobody() {
        let mut infiniband = request(&[]);
        (infiniband.htype, infiniband.hlen) = (32, 0);
        assert_eq!(Client::describe(&infiniband), None);
        let mut group = request(&[]);
        group.chaddr[0] = 1;
        assert_eq!(Client::describe(&group), None);
        let mut reply = request(&[]);
        reply.op = Op::Reply;
        assert_eq!(Client::describe(&reply), None);
    }

    #[test]
    fn the_boot_item_of_a_boot_server_request_is_found() {
        let item = b"\x47\x04\x80\x00\x00\x00\xff";
        assert_eq!(boot_item(&request(&[(43, item)])), Some([0x80, 0, 0, 0]));
        assert_eq!(boot_item(&request(&[(43, b"\x06\x01\x08\xff")])), None);
        assert_eq!(boot_item(&request(&[(43, b"\x47\x04\x80")])), None);
    }

    #[test]
    fn what_a_client_says_of_itself_is_shown_without_control_characters() {
        let client = Client::describe(&request(&[(12, b"pc07\x1b[2J\0"), (60, b"")])).unwrap();
        assert_eq!(client.host_name.as_deref(), Some("pc07[2J"));
        assert_eq!(client.vendor_class, None);
    }
}
