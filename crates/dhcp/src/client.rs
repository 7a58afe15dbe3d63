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
            (41, Firmware::Other(41)),
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
