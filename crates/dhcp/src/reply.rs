//! Replies as clients want to read them: what a firmware boots, in the form
//! it understands (RFC 2132, RFC 4578, PXE 2.1 section 2.2).
//!
//! What each firmware needs was seen on the wire of EDK2 2022.11 and of iPXE
//! 2019 and 2026.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::client::{HTTP_CLASS, PXE_CLASS};
use crate::wire::{FILE_BYTES, Message, MessageType, Op, code};
use crate::{Boot, Client, Firmware, Promise, Subnet};

/// Option 43 with discovery control (6) bit 3: take the boot file of this
/// very packet; no menu, no discovery, no request to port 4011. BIOS ROMs,
/// EDK2 and iPXE all go straight to TFTP on it.
const BOOT_FROM_HERE: [u8; 4] = [6, 1, 8, 255];

/// Option 175 with no-pxedhcp (176): iPXE does not wait 2 s for a ProxyDHCP.
const NO_PROXY: [u8; 3] = [176, 1, 1];

/// DHCP payload every client takes (RFC 2131 section 2: 576 bytes of IP).
const MIN_REPLY_BYTES: u16 = 548;

/// IP and UDP headers, which option 57 may or may not count: we do.
const HEADERS_BYTES: u16 = 28;

/// What a reply is shortened by when the client takes no more, first to go
/// first.
const DISPENSABLE: [u8; 11] = [
    code::NTP,
    code::BROADCAST,
    code::DOMAIN,
    code::HOST_NAME,
    code::MTU,
    code::T1,
    code::T2,
    code::TFTP_SERVER,
    code::ROOT_PATH,
    code::INITIATOR_NAME,
    code::DNS,
];

/// Whose answer the boot information goes into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The one that also lends the address.
    Server,
    /// One beside it, or on port 4011.
    Proxy,
}

/// A reply with what every reply has.
pub(crate) fn begin(request: &Message, kind: Option<MessageType>, server: Ipv4Addr) -> Message {
    let mut reply = Message {
        htype: request.htype,
        hlen: request.hlen,
        xid: request.xid,
        secs: request.secs,
        flags: request.flags,
        giaddr: request.giaddr,
        chaddr: request.chaddr,
        ..Message::new(Op::Reply)
    };
    // Some ROMs look for these in the first bytes only. BOOTP has neither.
    if let Some(kind) = kind {
        reply.options.set(code::MESSAGE_TYPE, [kind.number()]);
        reply.options.set(code::SERVER_ID, server.octets());
    }
    reply
}

/// Adds for how long the address is lent.
pub(crate) fn add_times(reply: &mut Message, lease_time: Duration) {
    let seconds = u32::try_from(lease_time.as_secs()).unwrap_or(u32::MAX);
    reply.options.set(code::LEASE_TIME, seconds.to_be_bytes());
    reply.options.set(code::T1, (seconds / 2).to_be_bytes());
    reply
        .options
        .set(code::T2, (seconds - seconds / 8).to_be_bytes());
}

/// Adds what clients are told of their network.
pub(crate) fn add_network(
    reply: &mut Message,
    request: &Message,
    subnet: &Subnet,
    promise: &Promise,
) {
    let wants = |code| {
        request
            .options
            .get(code::PARAMETERS)
            .is_none_or(|list| list.contains(&code))
    };
    let options = &mut reply.options;
    options.set(code::NETMASK, subnet.netmask.octets());
    if !subnet.routers.is_empty() {
        options.set(code::ROUTERS, octets(&subnet.routers));
    }
    if !subnet.dns.is_empty() {
        options.set(code::DNS, octets(&subnet.dns));
    }
    if wants(code::BROADCAST) {
        options.set(code::BROADCAST, subnet.broadcast().octets());
    }
    if let Some(name) = promise
        .host_name
        .as_deref()
        .filter(|_| wants(code::HOST_NAME))
    {
        options.set(code::HOST_NAME, name);
    }
    if let Some(domain) = subnet.domain.as_deref().filter(|_| wants(code::DOMAIN)) {
        options.set(code::DOMAIN, domain);
    }
    if !subnet.ntp.is_empty() && wants(code::NTP) {
        options.set(code::NTP, octets(&subnet.ntp));
    }
    if let Some(mtu) = subnet.mtu.filter(|_| wants(code::MTU)) {
        options.set(code::MTU, mtu.to_be_bytes());
    }
}

/// Adds what the client boots, and returns whether its firmware could make
/// something of it.
pub(crate) fn add_boot(
    reply: &mut Message,
    client: &Client,
    boot: &Boot,
    promise: &Promise,
    server: Ipv4Addr,
    role: Role,
) -> bool {
    match (client.firmware, boot) {
        (Firmware::System, _)
        | (Firmware::UefiHttp(_), Boot::Tftp { .. })
        | (Firmware::BiosPxe | Firmware::UefiPxe(_) | Firmware::Other(_), Boot::Url(_)) => {
            return false;
        }
        (Firmware::UefiHttp(_), Boot::Url(_)) => {
            reply.options.set(code::VENDOR_CLASS, HTTP_CLASS);
        }
        (Firmware::Ipxe(_), _) if role == Role::Server => {
            reply.options.set(code::IPXE, NO_PROXY);
        }
        (Firmware::BiosPxe | Firmware::UefiPxe(_) | Firmware::Other(_) | Firmware::Ipxe(_), _) => {
            reply.options.set(code::VENDOR_CLASS, PXE_CLASS);
            reply.options.set(code::VENDOR, BOOT_FROM_HERE);
        }
    }
    // siaddr always: without it EDK2 asks the server identifier, and iPXE
    // drops a proxy's answer even where the file is a URL.
    let name = match boot {
        Boot::Tftp { server, file } => {
            reply.siaddr = *server;
            reply.options.set(code::TFTP_SERVER, server.to_string());
            file
        }
        Boot::Url(url) => {
            reply.siaddr = server;
            url
        }
    };
    // The header for those that look only there, with room for a NUL. HTTP
    // Boot looks at the option first and no further.
    if name.len() < FILE_BYTES && !matches!(client.firmware, Firmware::UefiHttp(_)) {
        reply.file = name.as_bytes().to_vec();
    }
    // With a NUL: ROMs need one, and EDK2 would write its own over the code
    // of the next option.
    reply
        .options
        .set(code::BOOT_FILE, [name.as_bytes(), &[0]].concat());
    if matches!(client.firmware, Firmware::Ipxe(_)) {
        if let Some(path) = &promise.root_path {
            reply.options.set(code::ROOT_PATH, path.as_str());
        }
        if let Some(name) = &promise.initiator_name {
            reply.options.set(code::INITIATOR_NAME, name.as_str());
        }
    }
    true
}

/// Adds what is echoed, and shortens the reply to what the client takes.
pub(crate) fn finish(reply: &mut Message, request: &Message) {
    // ROMs compare it with their own; nobody else sends it.
    if let Some(uuid) = request.options.get(code::UUID) {
        reply.options.set(code::UUID, uuid);
    }
    // A relay's own words go back to it, last (RFC 3046 section 2.2).
    if let Some(relay) = request.options.get(code::RELAY) {
        reply.options.take(code::RELAY);
        reply.options.set(code::RELAY, relay);
    }
    let limit = match request.options.number(code::MAX_SIZE) {
        Some(size) => size
            .min(1500)
            .saturating_sub(HEADERS_BYTES)
            .max(MIN_REPLY_BYTES),
        None => MIN_REPLY_BYTES,
    };
    for code in DISPENSABLE {
        if reply.emit().len() <= limit.into() {
            break;
        }
        reply.options.take(code);
    }
}

/// What BOOTP clients find room for: 64 bytes of options, so those with the
/// network in them only.
pub(crate) fn strip_for_bootp(reply: &mut Message) {
    const FITTING: [u8; 4] = [code::NETMASK, code::ROUTERS, code::DNS, code::HOST_NAME];
    let others: Vec<u8> = reply
        .options
        .iter()
        .map(|(code, _)| code)
        .filter(|code| !FITTING.contains(code))
        .collect();
    for code in others {
        reply.options.take(code);
    }
    for code in FITTING.into_iter().rev() {
        if reply.emit().len() <= crate::wire::MIN_BYTES {
            break;
        }
        reply.options.take(code);
    }
}

fn octets(addresses: &[Ipv4Addr]) -> Vec<u8> {
    addresses
        .iter()
        .flat_map(|address| address.octets())
        .collect()
}
