//! DHCP messages as bytes (RFC 2131 section 2, RFC 2132, RFC 3396).
//!
//! [`Message::parse`] drops what cannot be read and says why; it follows
//! overloaded fields (option 52) and joins split options. [`Message::emit`]
//! pads to the 300 bytes that BOOTP clients and relays expect.
//!
//! Invariant: `parse(emit(x)) == x` for every message whose text fields fit.

use std::net::Ipv4Addr;

/// Shorter replies are dropped by some ROMs and relays (RFC 1542 section 2.1).
pub const MIN_BYTES: usize = 300;

/// Everything before the magic cookie.
const HEADER_BYTES: usize = 236;

/// Longest `sname` field.
pub const SNAME_BYTES: usize = 64;

/// Longest `file` field.
pub const FILE_BYTES: usize = 128;

/// Begins the options (RFC 2131 section 3).
const MAGIC_COOKIE: [u8; 4] = [99, 130, 83, 99];

/// The client wants its reply broadcast; the other bits of `flags` are zero.
pub const BROADCAST_FLAG: u16 = 0x8000;

/// Longest data of one option on the wire; longer ones are split (RFC 3396).
const OPTION_BYTES: usize = 255;

/// Options that never leave the options field.
const KEPT_IN_PLACE: [u8; 12] = [
    code::MESSAGE_TYPE,
    code::SERVER_ID,
    code::LEASE_TIME,
    code::NETMASK,
    code::ROUTERS,
    code::VENDOR_CLASS,
    code::VENDOR,
    code::BOOT_FILE,
    code::TFTP_SERVER,
    code::IPXE,
    code::UUID,
    code::RELAY,
];

/// Option codes (RFC 2132 unless said otherwise).
pub mod code {
    /// Filler without a length.
    pub const PAD: u8 = 0;
    /// Subnet mask.
    pub const NETMASK: u8 = 1;
    /// Routers.
    pub const ROUTERS: u8 = 3;
    /// Name servers.
    pub const DNS: u8 = 6;
    /// Host name.
    pub const HOST_NAME: u8 = 12;
    /// Domain name.
    pub const DOMAIN: u8 = 15;
    /// Root path; for iPXE `iscsi:...` (RFC 4173).
    pub const ROOT_PATH: u8 = 17;
    /// Interface MTU.
    pub const MTU: u8 = 26;
    /// Broadcast address.
    pub const BROADCAST: u8 = 28;
    /// NTP servers.
    pub const NTP: u8 = 42;
    /// Vendor-specific: PXE's own options, when option 60 says so.
    pub const VENDOR: u8 = 43;
    /// Requested address.
    pub const REQUESTED_ADDRESS: u8 = 50;
    /// Lease time in seconds.
    pub const LEASE_TIME: u8 = 51;
    /// Whether `sname` and `file` hold options.
    pub const OVERLOAD: u8 = 52;
    /// Message type.
    pub const MESSAGE_TYPE: u8 = 53;
    /// Server identifier.
    pub const SERVER_ID: u8 = 54;
    /// Parameter request list.
    pub const PARAMETERS: u8 = 55;
    /// Text of a NAK.
    pub const TEXT: u8 = 56;
    /// Longest message the client takes.
    pub const MAX_SIZE: u8 = 57;
    /// When to renew, in seconds.
    pub const T1: u8 = 58;
    /// When to rebind, in seconds.
    pub const T2: u8 = 59;
    /// Vendor class identifier.
    pub const VENDOR_CLASS: u8 = 60;
    /// Client identifier.
    pub const CLIENT_ID: u8 = 61;
    /// TFTP server name.
    pub const TFTP_SERVER: u8 = 66;
    /// Boot file.
    pub const BOOT_FILE: u8 = 67;
    /// User class (RFC 3004).
    pub const USER_CLASS: u8 = 77;
    /// Relay agent information (RFC 3046).
    pub const RELAY: u8 = 82;
    /// Client architecture (RFC 4578).
    pub const ARCHITECTURE: u8 = 93;
    /// Client machine identifier (RFC 4578).
    pub const UUID: u8 = 97;
    /// Subnet selection (RFC 3011).
    pub const SUBNET_SELECTION: u8 = 118;
    /// Classless static routes (RFC 3442).
    pub const ROUTES: u8 = 121;
    /// Etherboot/iPXE's own options.
    pub const IPXE: u8 = 175;
    /// iSCSI initiator name (iPXE).
    pub const INITIATOR_NAME: u8 = 203;
    /// End of the options.
    pub const END: u8 = 255;
}

/// A DHCP or BOOTP message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Direction.
    pub op: Op,
    /// Hardware type: 1 is Ethernet.
    pub htype: u8,
    /// Length of the hardware address in `chaddr`, at most 16.
    pub hlen: u8,
    /// Relays passed.
    pub hops: u8,
    /// Transaction, chosen by the client.
    pub xid: u32,
    /// Seconds since the client began; iPXE keeps other things there.
    pub secs: u16,
    /// [`BROADCAST_FLAG`] and zeros.
    pub flags: u16,
    /// The address the client has and answers to.
    pub ciaddr: Ipv4Addr,
    /// "Your" address: the one lent.
    pub yiaddr: Ipv4Addr,
    /// The TFTP server.
    pub siaddr: Ipv4Addr,
    /// The relay.
    pub giaddr: Ipv4Addr,
    /// The client's hardware address, then zeros.
    pub chaddr: [u8; 16],
    /// Server name, without NUL; empty when the field held options. No more
    /// than [`SNAME_BYTES`] are emitted.
    pub sname: Vec<u8>,
    /// Boot file, without NUL; empty when the field held options. No more
    /// than [`FILE_BYTES`] are emitted.
    pub file: Vec<u8>,
    /// The options of all three fields, split ones joined.
    pub options: Options,
}

/// Direction of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// From a client.
    Request,
    /// From a server.
    Reply,
}

/// Option 53.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageType {
    /// Who lends me an address?
    Discover,
    /// I do, this one.
    Offer,
    /// I take it, or want to keep it.
    Request,
    /// It is somebody else's already.
    Decline,
    /// It is yours.
    Ack,
    /// It is not.
    Nak,
    /// I give it back.
    Release,
    /// I have an address; tell me the rest.
    Inform,
}

impl MessageType {
    fn from_number(number: u8) -> Option<MessageType> {
        Some(match number {
            1 => MessageType::Discover,
            2 => MessageType::Offer,
            3 => MessageType::Request,
            4 => MessageType::Decline,
            5 => MessageType::Ack,
            6 => MessageType::Nak,
            7 => MessageType::Release,
            8 => MessageType::Inform,
            _ => return None,
        })
    }

    /// As in option 53.
    pub fn number(self) -> u8 {
        match self {
            MessageType::Discover => 1,
            MessageType::Offer => 2,
            MessageType::Request => 3,
            MessageType::Decline => 4,
            MessageType::Ack => 5,
            MessageType::Nak => 6,
            MessageType::Release => 7,
            MessageType::Inform => 8,
        }
    }
}

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Malformed {
    /// Ends inside the header.
    #[error("{0} bytes are too short for a DHCP message")]
    TooShort(usize),
    /// Neither request nor reply.
    #[error("op is {0}, neither request (1) nor reply (2)")]
    Op(u8),
    /// No room for such an address in `chaddr`.
    #[error("hardware address of {0} bytes, more than 16")]
    HardwareLength(u8),
    /// No DHCP or BOOTP of RFC 1497.
    #[error("no magic cookie before the options")]
    MagicCookie,
    /// Ends inside an option.
    #[error("option {0} is longer than the field it stands in")]
    Truncated(u8),
    /// Option 52 has no such value.
    #[error("option 52 (overload) is {0}, not 1, 2 or 3")]
    Overload(u8),
    /// A message type no RFC gives to clients and servers.
    #[error("option 53 (message type) is {0}")]
    MessageType(u8),
}

impl Message {
    /// An empty message of this direction for an Ethernet client.
    pub fn new(op: Op) -> Message {
        Message {
            op,
            htype: 1,
            hlen: 6,
            hops: 0,
            xid: 0,
            secs: 0,
            flags: 0,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            siaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::UNSPECIFIED,
            chaddr: [0; 16],
            sname: Vec::new(),
            file: Vec::new(),
            options: Options::default(),
        }
    }

    /// Reads a UDP payload.
    pub fn parse(bytes: &[u8]) -> Result<Message, Malformed> {
        let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else {
            return Err(Malformed::TooShort(bytes.len()));
        };
        let Some((cookie, fields)) = rest.split_at_checked(MAGIC_COOKIE.len()) else {
            return Err(Malformed::TooShort(bytes.len()));
        };
        let op = match header[0] {
            1 => Op::Request,
            2 => Op::Reply,
            other => return Err(Malformed::Op(other)),
        };
        let hlen = header[2];
        if hlen > 16 {
            return Err(Malformed::HardwareLength(hlen));
        }
        if cookie != MAGIC_COOKIE {
            return Err(Malformed::MagicCookie);
        }

        let (sname, file) = (&header[44..108], &header[108..236]);
        let mut options = Options::default();
        options.parse_field(fields)?;
        // Only the options field itself may say that the others hold more.
        let overload = options
            .take(code::OVERLOAD)
            .map_or(0, |value| value.first().copied().unwrap_or(0));
        let (file_holds_options, sname_holds_options) = match overload {
            0 => (false, false),
            1 => (true, false),
            2 => (false, true),
            3 => (true, true),
            other => return Err(Malformed::Overload(other)),
        };
        if file_holds_options {
            options.parse_field(file)?;
        }
        if sname_holds_options {
            options.parse_field(sname)?;
        }
        options.take(code::OVERLOAD);
        if let Some(number) = options.byte(code::MESSAGE_TYPE)
            && MessageType::from_number(number).is_none()
        {
            return Err(Malformed::MessageType(number));
        }

        let mut chaddr = [0; 16];
        chaddr.copy_from_slice(&header[28..44]);
        Ok(Message {
            op,
            htype: header[1],
            hlen,
            hops: header[3],
            xid: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            secs: u16::from_be_bytes([header[8], header[9]]),
            flags: u16::from_be_bytes([header[10], header[11]]),
            ciaddr: address(&header[12..16]),
            yiaddr: address(&header[16..20]),
            siaddr: address(&header[20..24]),
            giaddr: address(&header[24..28]),
            chaddr,
            sname: if sname_holds_options {
                Vec::new()
            } else {
                text(sname)
            },
            file: if file_holds_options {
                Vec::new()
            } else {
                text(file)
            },
            options,
        })
    }

    /// The UDP payload, of [`MIN_BYTES`] at least.
    pub fn emit(&self) -> Vec<u8> {
        self.emit_within(usize::MAX)
    }

    /// The same in `limit` bytes where that is possible: what is too long for
    /// the options field goes into the `file` and `sname` fields, if they are
    /// empty (option 52, RFC 2131 section 4.1). Never the first options, which
    /// some ROMs look for in their place, never what says what to boot, and
    /// never a relay's own words (RFC 3046 section 2.1).
    pub fn emit_within(&self, limit: usize) -> Vec<u8> {
        let whole = self.emit_fields(&Options::default(), &Options::default(), &self.options);
        if whole.len() <= limit {
            return whole;
        }
        let mut options = self.options.clone();
        let (mut file, mut sname) = (Options::default(), Options::default());
        // What an option is longer for that says so.
        let mut excess = whole.len() + 3 - limit;
        let mut movable: Vec<u8> = options.iter().map(|(code, _)| code).collect();
        movable.retain(|code| !KEPT_IN_PLACE.contains(code));
        for code in movable.into_iter().rev() {
            if excess == 0 {
                break;
            }
            let Some(bytes) = options.get(code).map(|data| data.len() + 2) else {
                continue;
            };
            let (field, width) = if self.file.is_empty() && file.bytes() + bytes < FILE_BYTES {
                (&mut file, FILE_BYTES)
            } else {
                (&mut sname, SNAME_BYTES)
            };
            let is_free = width == FILE_BYTES || self.sname.is_empty();
            if is_free
                && field.bytes() + bytes < width
                && let Some(data) = options.take(code)
            {
                field.set(code, data);
                excess = excess.saturating_sub(bytes);
            }
        }
        let overload = u8::from(!file.0.is_empty()) | u8::from(!sname.0.is_empty()) << 1;
        if overload == 0 {
            return whole;
        }
        options.0.insert(0, (code::OVERLOAD, vec![overload]));
        // The message type stays the first.
        if let Some(kind) = options.take(code::MESSAGE_TYPE) {
            options.0.insert(0, (code::MESSAGE_TYPE, kind));
        }
        self.emit_fields(&file, &sname, &options)
    }

    fn emit_fields(&self, file: &Options, sname: &Options, options: &Options) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2 * MIN_BYTES);
        bytes.push(match self.op {
            Op::Request => 1,
            Op::Reply => 2,
        });
        bytes.extend([self.htype, self.hlen, self.hops]);
        bytes.extend(self.xid.to_be_bytes());
        bytes.extend(self.secs.to_be_bytes());
        bytes.extend(self.flags.to_be_bytes());
        for address in [self.ciaddr, self.yiaddr, self.siaddr, self.giaddr] {
            bytes.extend(address.octets());
        }
        bytes.extend(self.chaddr);
        for (field, inside, width) in [
            (&self.sname, sname, SNAME_BYTES),
            (&self.file, file, FILE_BYTES),
        ] {
            let end = bytes.len() + width;
            if inside.0.is_empty() {
                bytes.extend(field.iter().take(width));
            } else {
                inside.emit_into(&mut bytes);
                bytes.push(code::END);
            }
            bytes.resize(end, 0);
        }
        bytes.extend(MAGIC_COOKIE);
        options.emit_into(&mut bytes);
        bytes.push(code::END);
        if bytes.len() < MIN_BYTES {
            bytes.resize(MIN_BYTES, code::PAD);
        }
        bytes
    }

    /// Option 53; `None` is BOOTP.
    pub fn message_type(&self) -> Option<MessageType> {
        MessageType::from_number(self.options.byte(code::MESSAGE_TYPE)?)
    }
}

fn address(bytes: &[u8]) -> Ipv4Addr {
    match bytes {
        [a, b, c, d, ..] => Ipv4Addr::new(*a, *b, *c, *d),
        _ => Ipv4Addr::UNSPECIFIED,
    }
}

/// A field's text: up to the first NUL, or all of it.
fn text(field: &[u8]) -> Vec<u8> {
    field
        .iter()
        .copied()
        .take_while(|&byte| byte != 0)
        .collect()
}

/// Options in the order they first appeared, each code once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(Vec<(u8, Vec<u8>)>);

impl Options {
    /// An option's data.
    pub fn get(&self, code: u8) -> Option<&[u8]> {
        let (_, data) = self.0.iter().find(|(other, _)| *other == code)?;
        Some(data)
    }

    /// The first byte of an option.
    pub fn byte(&self, code: u8) -> Option<u8> {
        self.get(code)?.first().copied()
    }

    /// The first two bytes of an option as a number.
    pub fn number(&self, code: u8) -> Option<u16> {
        self.get(code)?
            .first_chunk()
            .copied()
            .map(u16::from_be_bytes)
    }

    /// The first address in an option.
    pub fn address(&self, code: u8) -> Option<Ipv4Addr> {
        self.get(code)?
            .first_chunk::<4>()
            .copied()
            .map(Ipv4Addr::from)
    }

    /// An option as text, without trailing NULs; bytes that are no UTF-8 are
    /// replaced.
    pub fn text(&self, code: u8) -> Option<String> {
        let text = String::from_utf8_lossy(self.get(code)?);
        Some(text.trim_end_matches('\0').to_owned())
    }

    /// Sets an option: in its old place, or behind the others. PAD and END
    /// are no options and stay out.
    pub fn set(&mut self, code: u8, data: impl Into<Vec<u8>>) {
        if matches!(code, code::PAD | code::END) {
            return;
        }
        match self.0.iter_mut().find(|(other, _)| *other == code) {
            Some((_, old)) => *old = data.into(),
            None => self.0.push((code, data.into())),
        }
    }

    /// Removes an option.
    pub fn take(&mut self, code: u8) -> Option<Vec<u8>> {
        let at = self.0.iter().position(|(other, _)| *other == code)?;
        Some(self.0.remove(at).1)
    }

    /// Puts them in the order of these codes, then the others as they stood,
    /// then those of `last`.
    pub(crate) fn arrange(&mut self, first: &[u8], last: &[u8]) {
        self.0.sort_by_key(|(code, _)| {
            let rank = |list: &[u8]| list.iter().position(|other| other == code);
            match (rank(first), rank(last)) {
                (Some(at), _) => at,
                (None, None) => first.len(),
                (None, Some(at)) => first.len() + 1 + at,
            }
        });
    }

    /// How long they are on the wire, unsplit.
    fn bytes(&self) -> usize {
        self.iter().map(|(_, data)| data.len() + 2).sum()
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &[u8])> {
        self.0.iter().map(|(code, data)| (*code, data.as_slice()))
    }

    /// Reads one field; an option met before is continued (RFC 3396
    /// section 7).
    fn parse_field(&mut self, mut field: &[u8]) -> Result<(), Malformed> {
        while let Some((&code, rest)) = field.split_first() {
            match code {
                code::PAD => field = rest,
                code::END => break,
                code => {
                    let (&length, rest) = rest.split_first().ok_or(Malformed::Truncated(code))?;
                    let (data, rest) = rest
                        .split_at_checked(length.into())
                        .ok_or(Malformed::Truncated(code))?;
                    match self.0.iter_mut().find(|(other, _)| *other == code) {
                        Some((_, old)) => old.extend_from_slice(data),
                        None => self.0.push((code, data.to_vec())),
                    }
                    field = rest;
                }
            }
        }
        Ok(())
    }

    fn emit_into(&self, bytes: &mut Vec<u8>) {
        for (code, data) in &self.0 {
            if data.is_empty() {
                bytes.extend([*code, 0]);
            }
            for part in data.chunks(OPTION_BYTES) {
                bytes.push(*code);
                bytes.push(u8::try_from(part.len()).unwrap_or(u8::MAX));
                bytes.extend(part);
            }
        }
    }
}

/// The options inside an option (43, 82, 175), up to the first one that does
/// not fit: what follows it has no meaning.
pub fn inner_options(data: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = data;
    std::iter::from_fn(move || {
        while let Some((&code::PAD, tail)) = rest.split_first() {
            rest = tail;
        }
        let (&code, tail) = rest.split_first().filter(|(code, _)| **code != code::END)?;
        let (&length, tail) = tail.split_first()?;
        let (data, tail) = tail.split_at_checked(length.into())?;
        rest = tail;
        Some((code, data))
    })
}

#[cfg(test)]
pub(crate) mod tests;
