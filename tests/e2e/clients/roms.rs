//! What each client takes, drops and does next: its rules, and its dialogue
//! with whoever answers.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use dhcp::wire::{Message, MessageType, code, inner_options};
use lab::Host;

use super::fetch::{self, Manner};
use super::nic::{Heard, Nic};

/// How long a client waits for an address before it asks again.
const PATIENCE: Duration = Duration::from_secs(8);
/// How often it asks.
const TRIES: u32 = 3;
/// How long it goes on to listen for others.
const WINDOW: Duration = Duration::from_millis(600);
/// RFC 2131: IP and UDP headers, which a message's longest size may count.
const HEADERS_BYTES: usize = 28;

const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
const BOOT_SERVER: u16 = 4011;

/// PXE 2.1 table 2-1, inside of option 43.
mod pxe {
    pub(super) const DISCOVERY_CONTROL: u8 = 6;
    pub(super) const BOOT_SERVERS: u8 = 8;
    pub(super) const MENU: u8 = 9;
    /// Bit 3 of discovery control: take the file of this packet.
    pub(super) const FILE_IS_HERE: u8 = 8;
}

/// How a client behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rules {
    /// Intel's boot agent, PXE 2.1.
    Rom,
    /// UefiPxeBcDxe.
    Edk2Pxe,
    /// HttpBootDxe.
    Edk2Http,
    /// iPXE, and gPXE before it.
    Ipxe,
    /// The boot ROM of a Raspberry Pi.
    RaspberryPi,
    /// An operating system: an address and nothing else.
    System,
    /// The first offer it sees, whatever it holds.
    UBoot,
}

/// How far a client came.
#[derive(Debug)]
pub(crate) struct Journey {
    pub(crate) address: Ipv4Addr,
    /// Who lent it.
    pub(crate) lender: Ipv4Addr,
    /// What it was told to fetch, from whom; `None`: nothing.
    pub(crate) file: Option<(Ipv4Addr, String)>,
    /// Whether it had to ask at port 4011.
    pub(crate) asked_twice: bool,
    /// Everybody who answered its DISCOVER.
    pub(crate) offered_by: Vec<Ipv4Addr>,
}

/// From DISCOVER to the name of the file.
pub(crate) fn walk(
    rules: Rules,
    nic: &Nic,
    host: &Host<'_>,
    discover: &Message,
) -> Result<Journey> {
    let offers = discovered(rules, nic, discover)?;
    let offered_by: Vec<Ipv4Addr> = offers.iter().map(|offer| offer.from).collect();
    let chosen = match rules {
        Rules::UBoot => offers.first(),
        Rules::Rom | Rules::RaspberryPi => rom_choice(&offers),
        Rules::Edk2Pxe => edk2_choice(&offers),
        Rules::Edk2Http => http_choice(&offers),
        Rules::Ipxe => offers.iter().rfind(|offer| has_address(offer)),
        Rules::System => offers.iter().find(|offer| has_address(offer)),
    };
    let said = || format!("offers: {}", shown(&offers));
    let chosen = chosen.with_context(|| format!("no offer it takes; {}", said()))?;
    let lease = requested(nic, discover, chosen)?;
    let address = lease.message.yiaddr;
    ensure!(
        address == chosen.message.yiaddr,
        "{address} was acknowledged, and {} offered",
        chosen.message.yiaddr
    );
    let taken = format!("{address}/24");
    host.run(&["ip", "address", "add", &taken, "dev", "eth0"])?;
    // The acknowledgement counts; a proxy has sent nothing but its offer.
    let proxies: Vec<&Heard> = offers.iter().filter(|offer| !has_address(offer)).collect();
    let mut journey = Journey {
        address,
        lender: lease.from,
        file: None,
        asked_twice: false,
        offered_by,
    };
    let told = match rules {
        Rules::System => return Ok(journey),
        Rules::UBoot => Some(&lease),
        Rules::Edk2Http => [&lease]
            .into_iter()
            .chain(proxies.iter().copied())
            .find(|heard| {
                is_class(&heard.message, "HTTPClient") && boot_file(&heard.message).is_some()
            }),
        Rules::RaspberryPi => [&lease]
            .into_iter()
            .chain(proxies.iter().copied())
            .find(|heard| is_raspberry_pis(&heard.message)),
        Rules::Rom | Rules::Edk2Pxe | Rules::Ipxe => [&lease]
            .into_iter()
            .chain(proxies.iter().copied())
            .find(|heard| tells(rules, heard)),
    };
    let Some(told) = told else {
        bail!("an address and no boot server; {}", said());
    };
    let mut told = told.clone();
    if must_ask_again(rules, &told.message) {
        told = asked_again(rules, nic, discover, address, &told)
            .with_context(|| format!("at port 4011; {}", said()))?;
        journey.asked_twice = true;
    }
    let server = boot_server(rules, &told);
    journey.file = boot_file(&told.message).map(|name| (server, name));
    Ok(journey)
}

/// Fetches what a client was told of, in its manner.
pub(crate) fn fetched(rules: Rules, journey: &Journey) -> Result<Vec<u8>> {
    let (server, name) = journey.file.as_ref().context("it was told of no file")?;
    match rules {
        Rules::Edk2Http => {
            let (status, head, _) = fetch::http("HEAD", name)?;
            ensure!(status == 200, "HEAD {name}: {status}");
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length:"));
            let length: usize = length.context("no Content-Length")?.trim().parse()?;
            let (status, _, body) = fetch::http("GET", name)?;
            ensure!(status == 200, "GET {name}: {status}");
            ensure!(body.len() == length, "{} bytes of {length}", body.len());
            Ok(body)
        }
        Rules::Ipxe if name.starts_with("http://") => {
            let (status, _, body) = fetch::http("GET", name)?;
            ensure!(status == 200, "GET {name}: {status}");
            Ok(body)
        }
        _ => fetch::tftp(*server, name, manner(rules))?.file(),
    }
}

fn manner(rules: Rules) -> Manner {
    match rules {
        Rules::Edk2Pxe | Rules::Edk2Http => fetch::EDK2,
        Rules::Rom => fetch::ROM,
        Rules::Ipxe => fetch::IPXE,
        Rules::RaspberryPi | Rules::System | Rules::UBoot => fetch::PLAIN,
    }
}

/// The offers of one DISCOVER, in the order in which they came, without those
/// that every client drops. Asked again while nobody offers an address.
fn discovered(rules: Rules, nic: &Nic, discover: &Message) -> Result<Vec<Heard>> {
    let mut offers: Vec<Heard> = Vec::new();
    for _ in 0..TRIES {
        nic.send(discover, DHCP_CLIENT, (Ipv4Addr::BROADCAST, DHCP_SERVER))?;
        let mut deadline = Instant::now() + PATIENCE;
        while let Some(heard) = nic.hear(discover.xid, deadline)? {
            check(discover, &heard, DHCP_SERVER)?;
            if heard.message.message_type() != Some(MessageType::Offer) {
                continue;
            }
            // U-Boot listens to nobody after the first; the test does.
            if rules == Rules::UBoot || has_address(&heard) {
                deadline = deadline.min(Instant::now() + WINDOW);
            }
            offers.push(heard);
        }
        if offers.iter().any(has_address) || rules == Rules::UBoot && !offers.is_empty() {
            return Ok(offers);
        }
    }
    bail!("nobody offers an address; offers: {}", shown(&offers))
}

/// What every client asks of every reply.
fn check(request: &Message, heard: &Heard, port: u16) -> Result<()> {
    let (message, from) = (&heard.message, heard.from);
    ensure!(
        heard.source_port == port,
        "{from} answered from port {}",
        heard.source_port
    );
    let longest = request.options.number(code::MAX_SIZE);
    let longest = longest.map_or(548, |size| usize::from(size).max(576) - HEADERS_BYTES);
    ensure!(
        heard.bytes <= longest,
        "{from} sent {} bytes where {longest} are taken",
        heard.bytes
    );
    let server = message.options.address(code::SERVER_ID);
    ensure!(server == Some(from), "{from} says it is {server:?}");
    if request.flags & dhcp::wire::BROADCAST_FLAG != 0 {
        ensure!(heard.port == DHCP_CLIENT, "sent to port {}", heard.port);
    }
    Ok(())
}

/// REQUEST to the server of an offer, until it acknowledges.
fn requested(nic: &Nic, discover: &Message, offer: &Heard) -> Result<Heard> {
    ensure!(
        has_address(offer),
        "the offer it takes has no address, so it would ask {} in vain",
        offer.from
    );
    let mut request = discover.clone();
    let server = offer.message.options.address(code::SERVER_ID);
    let server = server.context("an offer without a server")?;
    let kind = MessageType::Request.number();
    request.options.set(code::MESSAGE_TYPE, [kind]);
    request.options.set(code::SERVER_ID, server.octets());
    let address = offer.message.yiaddr.octets();
    request.options.set(code::REQUESTED_ADDRESS, address);
    nic.send(&request, DHCP_CLIENT, (Ipv4Addr::BROADCAST, DHCP_SERVER))?;
    let deadline = Instant::now() + PATIENCE;
    while let Some(heard) = nic.hear(request.xid, deadline)? {
        let is_from_it = heard.message.options.address(code::SERVER_ID) == Some(server);
        match heard.message.message_type() {
            Some(MessageType::Ack) if is_from_it => {
                check(&request, &heard, DHCP_SERVER)?;
                return Ok(heard);
            }
            Some(MessageType::Nak) => bail!("{} refused its request", heard.from),
            Some(MessageType::Ack) => bail!("{} acknowledged another's offer", heard.from),
            _ => {}
        }
    }
    bail!("{server} did not acknowledge")
}

/// The question to port 4011, and its answer.
fn asked_again(
    rules: Rules,
    nic: &Nic,
    discover: &Message,
    address: Ipv4Addr,
    told: &Heard,
) -> Result<Heard> {
    let mut request = discover.clone();
    request
        .options
        .set(code::MESSAGE_TYPE, [MessageType::Request.number()]);
    request.ciaddr = address;
    request.flags = 0;
    // EDK2 names no server, and asks from the port it asks at.
    let from = match rules {
        Rules::Edk2Pxe => BOOT_SERVER,
        _ => {
            let server = told.from.octets();
            request.options.set(code::SERVER_ID, server);
            DHCP_CLIENT
        }
    };
    let server = match told.message.siaddr {
        Ipv4Addr::UNSPECIFIED => told.from,
        server => server,
    };
    nic.send(&request, from, (server, BOOT_SERVER))?;
    let deadline = Instant::now() + PATIENCE;
    while let Some(heard) = nic.hear(request.xid, deadline)? {
        let is_reply = heard.source_port == BOOT_SERVER && heard.port == from;
        if !is_reply || heard.message.message_type() != Some(MessageType::Ack) {
            continue;
        }
        ensure!(
            is_class(&heard.message, "PXEClient"),
            "an answer without PXEClient"
        );
        ensure!(
            boot_file(&heard.message).is_some(),
            "an answer without a file"
        );
        return Ok(heard);
    }
    bail!("{server} did not answer")
}

/// PXE 2.1: an address, and PXEClient in the same offer or another's.
fn rom_choice(offers: &[Heard]) -> Option<&Heard> {
    let is_pxe = |offer: &&Heard| is_class(&offer.message, "PXEClient");
    let combined = offers
        .iter()
        .find(|offer| has_address(offer) && is_pxe(offer));
    let proxy = offers
        .iter()
        .find(|offer| !has_address(offer) && is_pxe(offer));
    let plain = offers.iter().find(|offer| has_address(offer));
    combined.or(proxy.and(plain))
}

/// What an offer is to EDK2 (PxeBcParseDhcp4Packet).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edk2Class {
    Pxe10,
    /// All of 43.1 to 5: discarded.
    Wfm11a,
    Binl,
    DhcpOnly,
}

fn edk2_class(message: &Message) -> Edk2Class {
    if !is_class(message, "PXEClient") {
        return Edk2Class::DhcpOnly;
    }
    let tags: Vec<u8> = vendor(message).map(|(tag, _)| tag).collect();
    if tags.iter().any(|tag| (6..=10).contains(tag)) {
        Edk2Class::Pxe10
    } else if (1..=5).all(|tag| tags.contains(&tag)) {
        Edk2Class::Wfm11a
    } else {
        Edk2Class::Binl
    }
}

/// The offer with an address that EDK2 takes, by its order of preference.
fn edk2_choice(offers: &[Heard]) -> Option<&Heard> {
    let of = |offer: &Heard| (has_address(offer), edk2_class(&offer.message));
    let is = |address, class| offers.iter().find(|offer| of(offer) == (address, class));
    let plain = is(true, Edk2Class::DhcpOnly);
    is(true, Edk2Class::Pxe10)
        .or(is(false, Edk2Class::Pxe10).and(plain))
        .or(is(true, Edk2Class::Binl))
        .or(is(false, Edk2Class::Binl).and(plain))
        .or(plain.filter(|offer| boot_file(&offer.message).is_some()))
}

/// The offer with an address that HttpBootDxe takes: a URL that needs no name
/// server comes with it, or from a proxy that says HTTPClient.
fn http_choice(offers: &[Heard]) -> Option<&Heard> {
    let has_url = |offer: &&Heard| {
        is_class(&offer.message, "HTTPClient")
            && boot_file(&offer.message).is_some_and(|url| {
                let host = url.strip_prefix("http://").unwrap_or_default();
                let host = host.split(['/', ':']).next().unwrap_or_default();
                host.parse::<Ipv4Addr>().is_ok()
            })
    };
    let combined = offers
        .iter()
        .find(|offer| has_address(offer) && has_url(offer));
    let proxy = offers
        .iter()
        .find(|offer| !has_address(offer) && has_url(offer));
    // An HTTPClient offer without a URL is dropped.
    let plain = offers
        .iter()
        .find(|offer| has_address(offer) && !is_class(&offer.message, "HTTPClient"));
    combined.or(proxy.and(plain))
}

/// Whether a client asks this one for its file.
fn tells(rules: Rules, heard: &Heard) -> bool {
    let message = &heard.message;
    match rules {
        // iPXE takes a file of a plain DHCP server too, and so does EDK2.
        Rules::Ipxe | Rules::Edk2Pxe if has_address(heard) => {
            is_class(message, "PXEClient") || boot_file(message).is_some()
        }
        _ => is_class(message, "PXEClient"),
    }
}

/// Whether a client asks at port 4011 before it fetches.
fn must_ask_again(rules: Rules, message: &Message) -> bool {
    let file_is_here = control(message) & pxe::FILE_IS_HERE != 0 && boot_file(message).is_some();
    let is_pxe = is_class(message, "PXEClient");
    match rules {
        Rules::Rom => is_pxe && !file_is_here,
        Rules::Edk2Pxe => is_pxe && !file_is_here,
        // "pxe options": a server and a file, or a menu.
        Rules::Ipxe => {
            let has_server = message.siaddr != Ipv4Addr::UNSPECIFIED;
            let has_menu = vendor(message).any(|(tag, _)| tag == pxe::MENU);
            is_pxe && !(has_server && boot_file(message).is_some() || has_menu)
        }
        Rules::Edk2Http | Rules::RaspberryPi | Rules::System | Rules::UBoot => false,
    }
}

/// Where a client fetches its file.
fn boot_server(rules: Rules, told: &Heard) -> Ipv4Addr {
    let message = &told.message;
    let listed = vendor(message)
        .find(|(tag, _)| *tag == pxe::BOOT_SERVERS)
        .filter(|_| rules == Rules::Edk2Pxe && control(message) & pxe::FILE_IS_HERE != 0)
        .and_then(|(_, list)| <[u8; 4]>::try_from(list.get(3..7)?).ok());
    match (listed, message.siaddr) {
        (Some(server), _) => server.into(),
        (None, Ipv4Addr::UNSPECIFIED) => told.from,
        (None, server) => server,
    }
}

/// A Raspberry Pi looks for these words in the menu and drops what has none.
fn is_raspberry_pis(message: &Message) -> bool {
    let words = b"Raspberry Pi Boot";
    is_class(message, "PXEClient")
        && vendor(message).any(|(tag, text)| {
            tag == pxe::MENU && text.windows(words.len()).any(|part| part == words)
        })
}

fn has_address(offer: &Heard) -> bool {
    offer.message.yiaddr != Ipv4Addr::UNSPECIFIED
}

fn is_class(message: &Message, class: &str) -> bool {
    let said = message.options.get(code::VENDOR_CLASS);
    said.is_some_and(|said| said.starts_with(class.as_bytes()))
}

/// Option 67, or the header's field.
fn boot_file(message: &Message) -> Option<String> {
    let option = message
        .options
        .get(code::BOOT_FILE)
        .filter(|name| !name.is_empty());
    let name = option.unwrap_or(&message.file);
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    let name = String::from_utf8(name.to_vec()).ok()?;
    (!name.is_empty()).then_some(name)
}

fn vendor(message: &Message) -> impl Iterator<Item = (u8, &[u8])> {
    inner_options(message.options.get(code::VENDOR).unwrap_or_default())
}

/// PXE discovery control.
fn control(message: &Message) -> u8 {
    let found = vendor(message).find(|(tag, _)| *tag == pxe::DISCOVERY_CONTROL);
    found
        .and_then(|(_, value)| value.first().copied())
        .unwrap_or(0)
}

fn shown(offers: &[Heard]) -> String {
    let one = |offer: &Heard| {
        let message = &offer.message;
        format!(
            "{} (address {}, siaddr {}, class {:?}, 43 {:02x?}, file {:?})",
            offer.from,
            message.yiaddr,
            message.siaddr,
            message.options.text(code::VENDOR_CLASS),
            message.options.get(code::VENDOR).unwrap_or_default(),
            boot_file(message)
        )
    };
    offers.iter().map(one).collect::<Vec<_>>().join("; ")
}
