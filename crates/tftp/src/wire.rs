//! TFTP packets (RFC 1350 section 5, RFC 2347): bytes to [`Packet`] and back.
//!
//! Borrows from the datagram; allocates only the list of options, which has a
//! limit. Names are bytes here; [`normalise`] makes of them what the site is
//! asked for.
//!
//! Lenient where real firmware is sloppy: an ERROR without its final NUL, an
//! ACK with bytes after it, zero padding after the options of a request.

use thiserror::Error;

/// Longest request accepted. RFC 2347 section 2 says 512; firmware with long
/// HTTP-like paths has been seen above it, and a page is no burden.
pub const MAX_REQUEST_BYTES: usize = 1024;

/// Most options in one request or OACK; six are known to exist.
pub const MAX_OPTIONS: usize = 16;

/// Longest error message kept; people read it, nothing else does.
pub const MAX_MESSAGE_BYTES: usize = 256;

/// Bytes of a DATA packet before its payload.
pub const DATA_HEADER_BYTES: usize = 4;

const READ: u16 = 1;
const WRITE: u16 = 2;
const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OPTION_ACK: u16 = 6;

/// One datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// RRQ: the client wants to read.
    Read(Ask<'a>),
    /// WRQ: the client wants to write.
    Write(Ask<'a>),
    /// DATA.
    Data {
        /// Number of the block; 16 bits that wrap to 0.
        block: u16,
        /// Its bytes; fewer than the block size mark the last block.
        payload: &'a [u8],
    },
    /// ACK.
    Ack {
        /// Number of the last block received in order.
        block: u16,
    },
    /// ERROR: the end of a transfer, never answered.
    Error {
        /// RFC 1350 section 5; 8 is RFC 2347's.
        code: u16,
        /// Words for people.
        message: &'a [u8],
    },
    /// OACK: the options the server accepted.
    OptionAck(Vec<TransferOption<'a>>),
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask<'a> {
    /// The file's name as sent; never empty.
    pub name: &'a [u8],
    /// How the bytes are to be sent.
    pub mode: Mode,
    /// Options in the order sent.
    pub options: Vec<TransferOption<'a>>,
}

/// One option: a name, in any case, and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferOption<'a> {
    /// For instance `blksize`; never empty.
    pub name: &'a [u8],
    /// Decimal digits in all options known.
    pub value: &'a [u8],
}

/// Transfer mode (RFC 1350 section 1); `mail` is obsolete and refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Bytes as they are.
    Octet,
    /// Text with CR LF line ends, and CR NUL for a bare CR.
    Netascii,
}

/// Why a datagram is not a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// It ends too early, or a string has no NUL.
    #[error("the packet ends in the middle of a field")]
    Short,
    /// A request longer than [`MAX_REQUEST_BYTES`].
    #[error("the request is longer than {MAX_REQUEST_BYTES} bytes")]
    Long,
    /// An opcode that nobody defined.
    #[error("opcode {0} is not known")]
    Opcode(u16),
    /// No file name, or nothing but junk.
    #[error("the file name is empty")]
    Name,
    /// A mode other than `octet` and `netascii`.
    #[error("the mode is neither octet nor netascii")]
    Mode,
    /// An option without a name, or more than [`MAX_OPTIONS`].
    #[error("the options are not pairs of name and value")]
    Options,
}

impl<'a> Packet<'a> {
    /// Reads one datagram.
    pub fn parse(bytes: &'a [u8]) -> Result<Packet<'a>, Malformed> {
        let (opcode, rest) = take_u16(bytes)?;
        match opcode {
            READ | WRITE if bytes.len() > MAX_REQUEST_BYTES => Err(Malformed::Long),
            READ => Ok(Packet::Read(Ask::parse(rest)?)),
            WRITE => Ok(Packet::Write(Ask::parse(rest)?)),
            DATA => {
                let (block, payload) = take_u16(rest)?;
                Ok(Packet::Data { block, payload })
            }
            ACK => {
                let (block, _) = take_u16(rest)?;
                Ok(Packet::Ack { block })
            }
            ERROR => {
                let (code, rest) = take_u16(rest)?;
                let end = rest
                    .iter()
                    .position(|&byte| byte == 0)
                    .unwrap_or(rest.len());
                Ok(Packet::Error {
                    code,
                    message: &rest[..end],
                })
            }
            OPTION_ACK => Ok(Packet::OptionAck(parse_options(rest)?)),
            other => Err(Malformed::Opcode(other)),
        }
    }

    /// Appends the datagram to `out`. Strings must hold no NUL.
    pub fn emit(&self, out: &mut Vec<u8>) {
        match self {
            Packet::Read(ask) => ask.emit(READ, out),
            Packet::Write(ask) => ask.emit(WRITE, out),
            Packet::Data { block, payload } => {
                put_u16(DATA, out);
                put_u16(*block, out);
                out.extend_from_slice(payload);
            }
            Packet::Ack { block } => {
                put_u16(ACK, out);
                put_u16(*block, out);
            }
            Packet::Error { code, message } => {
                put_u16(ERROR, out);
                put_u16(*code, out);
                put_string(message, out);
            }
            Packet::OptionAck(options) => {
                put_u16(OPTION_ACK, out);
                emit_options(options, out);
            }
        }
    }
}

impl<'a> Ask<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Ask<'a>, Malformed> {
        let (name, rest) = take_string(bytes)?;
        if name.is_empty() {
            return Err(Malformed::Name);
        }
        let (mode, rest) = take_string(rest)?;
        let mode = if mode.eq_ignore_ascii_case(b"octet") {
            Mode::Octet
        } else if mode.eq_ignore_ascii_case(b"netascii") {
            Mode::Netascii
        } else {
            return Err(Malformed::Mode);
        };
        let options = parse_options(rest)?;
        Ok(Ask {
            name,
            mode,
            options,
        })
    }

    fn emit(&self, opcode: u16, out: &mut Vec<u8>) {
        put_u16(opcode, out);
        put_string(self.name, out);
        put_string(
            match self.mode {
                Mode::Octet => b"octet",
                Mode::Netascii => b"netascii",
            },
            out,
        );
        emit_options(&self.options, out);
    }
}

impl TransferOption<'_> {
    /// The value as a number; `None` when it is anything but decimal digits.
    pub fn number(&self) -> Option<u64> {
        if self.value.is_empty() || !self.value.iter().all(u8::is_ascii_digit) {
            return None;
        }
        std::str::from_utf8(self.value).ok()?.parse().ok()
    }
}

/// Why a name is not passed on to the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadName {
    /// Nothing is left of it.
    #[error("nothing is left of the file name")]
    Empty,
    /// It climbs out with `..`.
    #[error("the file name has a `..` in it")]
    Climbs,
}

/// The name as the site is asked for it: forward slashes, none in front and
/// none doubled, no drive letter, no `tftp://server/`, no `.` or `..`, no
/// control characters, no blanks at the end.
///
/// Some ROMs hand on DHCP's option 67 with what followed it in the packet:
/// the name ends at the first byte that is 0xFF or a control character.
pub fn normalise(name: &[u8]) -> Result<String, BadName> {
    let junk = |&byte: &u8| byte == 0xff || byte.is_ascii_control();
    let end = name.iter().position(junk).unwrap_or(name.len());
    let text = String::from_utf8_lossy(&name[..end]).replace('\\', "/");
    let mut rest = text.trim();
    if let Some((scheme, after)) = rest.split_once("://")
        && scheme.eq_ignore_ascii_case("tftp")
    {
        rest = after.split_once('/').map_or("", |(_server, path)| path);
    }
    if let [letter, b':', ..] = rest.as_bytes()
        && letter.is_ascii_alphabetic()
    {
        rest = &rest[2..];
    }
    let mut clean = String::with_capacity(rest.len());
    for part in rest.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(BadName::Climbs),
            part => {
                if !clean.is_empty() {
                    clean.push('/');
                }
                clean.push_str(part);
            }
        }
    }
    if clean.is_empty() {
        Err(BadName::Empty)
    } else {
        Ok(clean)
    }
}

/// An error message for people: at most [`MAX_MESSAGE_BYTES`], without
/// control characters.
pub fn readable(message: &[u8]) -> String {
    let end = message.len().min(MAX_MESSAGE_BYTES);
    String::from_utf8_lossy(&message[..end])
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Text as netascii sends it (RFC 764): LF becomes CR LF, CR becomes CR NUL.
pub fn to_netascii(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 16);
    for &byte in text {
        match byte {
            b'\n' => out.extend_from_slice(b"\r\n"),
            b'\r' => out.extend_from_slice(b"\r\0"),
            byte => out.push(byte),
        }
    }
    out
}

fn parse_options(mut rest: &[u8]) -> Result<Vec<TransferOption<'_>>, Malformed> {
    let mut options = Vec::new();
    while !rest.is_empty() {
        if rest.iter().all(|&byte| byte == 0) {
            break; // padding
        }
        let (name, after) = take_string(rest)?;
        let (value, after) = take_string(after)?;
        if name.is_empty() || options.len() == MAX_OPTIONS {
            return Err(Malformed::Options);
        }
        options.push(TransferOption { name, value });
        rest = after;
    }
    Ok(options)
}

fn emit_options(options: &[TransferOption<'_>], out: &mut Vec<u8>) {
    for option in options {
        put_string(option.name, out);
        put_string(option.value, out);
    }
}

fn take_u16(bytes: &[u8]) -> Result<(u16, &[u8]), Malformed> {
    match bytes {
        [high, low, rest @ ..] => Ok((u16::from_be_bytes([*high, *low]), rest)),
        _ => Err(Malformed::Short),
    }
}

fn take_string(bytes: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .ok_or(Malformed::Short)?;
    Ok((&bytes[..end], &bytes[end + 1..]))
}

fn put_u16(value: u16, out: &mut Vec<u8>) {
    out.extend_from_slice(&value.to_be_bytes());
}

fn put_string(text: &[u8], out: &mut Vec<u8>) {
    debug_assert!(!text.contains(&0), "a NUL would end the string early");
    out.extend_from_slice(text);
    out.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn option<'a>(name: &'a str, value: &'a str) -> TransferOption<'a> {
        TransferOption {
            name: name.as_bytes(),
            value: value.as_bytes(),
        }
    }

    fn bytes_of(packet: &Packet<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        packet.emit(&mut out);
        out
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
        let pairs = digits.chunks(2);
        pairs
            .map(|p| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap())
            .collect()
    }

    /// OVMF 2022.11 asking for the size, from a capture.
    #[test]
    fn edk2s_size_probe_is_understood() {
        let bytes = hex(
            "0001 697078652E656669 00 6F63746574 00 7473697A65 00 30 00 \
             626C6B73697A65 00 31343638 00 77696E646F7773697A65 00 34 00",
        );
        let packet = Packet::parse(&bytes).unwrap();
        let options = vec![
            option("tsize", "0"),
            option("blksize", "1468"),
            option("windowsize", "4"),
        ];
        assert_eq!(
            packet,
            Packet::Read(Ask {
                name: b"ipxe.efi",
                mode: Mode::Octet,
                options
            })
        );
        assert_eq!(bytes_of(&packet), bytes);
    }

    /// iPXE 2019, from a capture.
    #[test]
    fn ipxes_request_is_understood() {
        let bytes = hex(
            "0001 73616E2E69707865 00 6F63746574 00 626C6B73697A65 00 31343332 00 7473697A65 00 30 00",
        );
        let Packet::Read(ask) = Packet::parse(&bytes).unwrap() else {
            panic!("not a read request")
        };
        assert_eq!(
            ask.options,
            [option("blksize", "1432"), option("tsize", "0")]
        );
    }

    #[test]
    fn edk2s_abort_is_understood() {
        let bytes = hex("0005 0008 557365722061626F7274656420746865207472616E73666572 00");
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(
            packet,
            Packet::Error {
                code: 8,
                message: b"User aborted the transfer"
            }
        );
    }

    #[test]
    fn file_not_found_is_spelled_as_everybody_does() {
        let packet = Packet::Error {
            code: 1,
            message: b"File not found",
        };
        assert_eq!(
            bytes_of(&packet),
            hex("0005 0001 46696C65206E6F7420666F756E6400")
        );
    }

    #[test]
    fn mode_is_read_in_any_case() {
        let Packet::Read(ask) = Packet::parse(b"\0\x01a\0OcTeT\0").unwrap() else {
            panic!()
        };
        assert_eq!(ask.mode, Mode::Octet);
    }

    #[test]
    fn broken_requests_are_told_apart() {
        let cases: [(&[u8], Malformed); 9] = [
            (b"", Malformed::Short),
            (b"\0", Malformed::Short),
            (b"\0\x01", Malformed::Short),
            (b"\0\x01name", Malformed::Short),
            (b"\0\x01name\0octet", Malformed::Short),
            (b"\0\x01\0octet\0", Malformed::Name),
            (b"\0\x01name\0mail\0", Malformed::Mode),
            (b"\0\x01name\0octet\0blksize\0", Malformed::Short),
            (b"\0\x09name\0octet\0", Malformed::Opcode(9)),
        ];
        for (bytes, error) in cases {
            assert_eq!(Packet::parse(bytes), Err(error), "{bytes:?}");
        }
    }

    #[test]
    fn a_request_is_bounded_in_length_and_in_options() {
        let mut long = b"\0\x01".to_vec();
        long.extend([b'a'; MAX_REQUEST_BYTES]);
        long.extend(b"\0octet\0");
        assert_eq!(Packet::parse(&long), Err(Malformed::Long));
        let mut many = b"\0\x01a\0octet\0".to_vec();
        many.extend(b"x\x001\0".repeat(MAX_OPTIONS));
        assert!(Packet::parse(&many).is_ok());
        many.extend(b"x\x001\0");
        assert_eq!(Packet::parse(&many), Err(Malformed::Options));
    }

    #[test]
    fn zero_padding_after_a_request_is_harmless() {
        let Packet::Read(ask) = Packet::parse(b"\0\x01a\0octet\0tsize\x000\0\0\0\0").unwrap()
        else {
            panic!()
        };
        assert_eq!(ask.options.len(), 1);
    }

    #[test]
    fn option_values_are_digits_and_nothing_else() {
        assert_eq!(option("blksize", "1468").number(), Some(1468));
        for bad in ["", "+5", "-1", " 5", "0x10", "99999999999999999999999"] {
            assert_eq!(option("blksize", bad).number(), None, "{bad:?}");
        }
    }

    #[test]
    fn names_are_normalised() {
        let cases: [(&[u8], &str); 14] = [
            (b"ipxe.efi", "ipxe.efi"),
            (b"/ipxe.efi", "ipxe.efi"),
            (b"//boot///ipxe.efi", "boot/ipxe.efi"),
            (b"\\Boot\\BCD", "Boot/BCD"),
            (b"C:\\Boot\\BCD", "Boot/BCD"),
            (b"./a/./b", "a/b"),
            (b"tftp://10.0.0.1/undionly.kpxe", "undionly.kpxe"),
            (b"TFTP://10.0.0.1//x/undionly.kpxe", "x/undionly.kpxe"),
            (b"pxelinux.0\xff", "pxelinux.0"),
            (b"pxelinux.0\xff\x80\x04abcd", "pxelinux.0"),
            (b"pxelinux.0\x0d\x0a", "pxelinux.0"),
            (b"ipxe.efi   ", "ipxe.efi"),
            (b"a..b/c...", "a..b/c..."),
            ("h\u{e9}.cfg".as_bytes(), "h\u{e9}.cfg"),
        ];
        for (sent, asked) in cases {
            assert_eq!(normalise(sent).as_deref(), Ok(asked), "{sent:?}");
        }
    }

    #[test]
    fn names_that_climb_or_vanish_are_refused() {
        for name in [
            &b"../etc/passwd"[..],
            b"a/../../b",
            b"a\\..\\b",
            b"..",
            b"/boot/..",
        ] {
            assert_eq!(normalise(name), Err(BadName::Climbs), "{name:?}");
        }
        for name in [&b"/"[..], b"\xff", b"  ", b".", b"C:", b"tftp://10.0.0.1"] {
            assert_eq!(normalise(name), Err(BadName::Empty), "{name:?}");
        }
    }

    #[test]
    fn netascii_doubles_line_ends() {
        assert_eq!(to_netascii(b"a\nb\rc\r\n"), b"a\r\nb\r\0c\r\0\r\n");
    }

    #[test]
    fn a_clients_words_are_cut_and_cleaned() {
        assert_eq!(readable(b"a\x1b[2Jb\n"), "a [2Jb ");
        assert_eq!(readable(&[b'x'; 1000]).len(), MAX_MESSAGE_BYTES);
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        vec(1_u8..=255, 0..20)
    }

    fn pairs() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
        vec((vec(1_u8..=255, 1..20), text()), 0..=MAX_OPTIONS)
    }

    fn options(pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<TransferOption<'_>> {
        pairs
            .iter()
            .map(|(name, value)| TransferOption { name, value })
            .collect()
    }

    proptest! {
        #[test]
        fn what_is_emitted_is_parsed_as_it_was(
            name in vec(1_u8..=255, 1..60), netascii: bool, number: u16,
            payload in vec(any::<u8>(), 0..1500), message in text(), pairs in pairs(),
        ) {
            let mode = if netascii { Mode::Netascii } else { Mode::Octet };
            let ask = Ask { name: &name, mode, options: options(&pairs) };
            for packet in [
                Packet::Read(ask.clone()),
                Packet::Write(ask),
                Packet::Data { block: number, payload: &payload },
                Packet::Ack { block: number },
                Packet::Error { code: number, message: &message },
                Packet::OptionAck(options(&pairs)),
            ] {
                let bytes = bytes_of(&packet);
                prop_assert_eq!(Packet::parse(&bytes), Ok(packet));
            }
        }

        #[test]
        fn no_bytes_make_the_parser_panic(opcode in 0_u8..8, rest in vec(any::<u8>(), 0..600)) {
            let mut bytes = vec![0, opcode];
            bytes.extend(rest);
            if let Ok(packet) = Packet::parse(&bytes) {
                let again = bytes_of(&packet);
                prop_assert_eq!(Packet::parse(&again), Ok(packet));
            }
        }

        #[test]
        fn a_normalised_name_is_safe(name in vec(any::<u8>(), 0..60)) {
            if let Ok(clean) = normalise(&name) {
                let parts: Vec<&str> = clean.split('/').collect();
                prop_assert!(parts.iter().all(|part| !["", ".", ".."].contains(part)));
                prop_assert!(!clean.contains(['\\', '\0']));
            }
        }
    }
}
