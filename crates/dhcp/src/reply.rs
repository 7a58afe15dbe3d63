//! Replies as clients want to read them (RFC 2132); `boot` is what a firmware
//! is told to boot.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::option::{Setting, with_default_route};
use crate::wire::{FILE_BYTES, Message, MessageType, Op, code};
use crate::{Promise, Subnet};

pub(crate) mod boot;

pub(crate) use boot::Role;

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

/// What the options of a reply begin with: some ROMs look for these in the
/// first bytes only.
const FIRST: [u8; 9] = [
    code::MESSAGE_TYPE,
    code::SERVER_ID,
    code::LEASE_TIME,
    code::NETMASK,
    code::VENDOR_CLASS,
    code::VENDOR,
    code::ROUTERS,
    code::T1,
    code::T2,
];

/// What they end with: EDK2 writes a NUL behind the boot file, and a relay's
/// own words go back to it last (RFC 3046 section 2.2).
const LAST: [u8; 2] = [code::BOOT_FILE, code::RELAY];

/// What firmware is told to boot: configured for a whole network it is meant
/// for clients that we do not boot (a telephone), or nothing would boot.
const BOOTING: [u8; 5] = [
    code::VENDOR,
    code::VENDOR_CLASS,
    code::TFTP_SERVER,
    code::BOOT_FILE,
    code::IPXE,
];

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
    // BOOTP has neither.
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

/// Adds options of the configuration: the network's where nothing else says
/// them, the machine's in place of whatever is there.
pub(crate) fn add_options(
    reply: &mut Message,
    subnet: &Subnet,
    promise: &Promise,
    is_booted: bool,
) {
    let router = subnet.routers.first().copied();
    let data = |setting: &Setting| match setting.code {
        code::ROUTES => with_default_route(&setting.data, router),
        _ => setting.data.clone(),
    };
    for setting in &subnet.options {
        let is_said = reply.options.get(setting.code).is_some();
        let is_for_others = is_booted && BOOTING.contains(&setting.code);
        if !is_said && !is_for_others {
            reply.options.set(setting.code, data(setting));
        }
    }
    for setting in &promise.options {
        reply.options.set(setting.code, data(setting));
        let text = std::str::from_utf8(&setting.data).unwrap_or_default();
        match setting.code {
            // For those that look only there.
            code::BOOT_FILE if text.len() < FILE_BYTES => reply.file = text.into(),
            code::TFTP_SERVER => {
                reply.siaddr = text.parse().unwrap_or(reply.siaddr);
            }
            _ => {}
        }
    }
}

/// The longest UDP payload the client takes, in bytes (option 57).
pub(crate) fn limit_bytes(request: &Message) -> usize {
    let limit = match request.options.number(code::MAX_SIZE) {
        Some(size) => size
            .min(1500)
            .saturating_sub(HEADERS_BYTES)
            .max(MIN_REPLY_BYTES),
        None => MIN_REPLY_BYTES,
    };
    limit.into()
}

/// Adds what is echoed, and shortens the reply to what the client takes.
pub(crate) fn finish(reply: &mut Message, request: &Message) {
    // ROMs compare it with their own; nobody else sends it.
    if let Some(uuid) = request.options.get(code::UUID) {
        reply.options.set(code::UUID, uuid);
    }
    for code in [code::SUBNET_SELECTION, code::RELAY] {
        if let Some(said) = request.options.get(code) {
            reply.options.set(code, said);
        }
    }
    reply.options.arrange(&FIRST, &LAST);
    let limit = limit_bytes(request);
    if reply.emit().len() <= limit {
        return;
    }
    let asked = request.options.get(code::PARAMETERS).unwrap_or_default();
    let is_ours = |code| FIRST.contains(&code) || LAST.contains(&code) || BOOTING.contains(&code);
    let unasked: Vec<u8> = reply
        .options
        .iter()
        .map(|(code, _)| code)
        .filter(|code| {
            let is_echoed = matches!(*code, code::UUID | code::SUBNET_SELECTION);
            !asked.contains(code) && !is_ours(*code) && !is_echoed && !DISPENSABLE.contains(code)
        })
        .collect();
    for code in unasked.into_iter().rev().chain(DISPENSABLE) {
        if reply.emit_within(limit).len() <= limit {
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
