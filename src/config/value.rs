//! Values of settings: from what is written to what is meant.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::{DhcpMode, TlsFor};

/// Longest path of a Unix socket, in bytes (`sockaddr_un` less its NUL).
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Shortest lease: half of it is when machines ask again.
const MIN_LEASE: Duration = Duration::from_secs(2 * 60);

/// Longest lease, and longest time between two scrubs.
const MAX_LEASE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Shortest time between two scrubs of an image.
const MIN_SCRUB_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Slowest scrub, in bytes a second; slower would never come to an end.
const MIN_SCRUB_RATE: u64 = 64 * 1024;

/// Smallest quota; with less nothing boots.
const MIN_QUOTA_BYTES: u64 = 1024 * 1024;

/// Longest wait before a machine tries again; people stand before it.
const MAX_RETRY: Duration = Duration::from_secs(10 * 60);

/// Longest prefix of target names, in bytes; the rest of the 223 that RFC 7143
/// allows is for the machine's part.
const MAX_TARGET_PREFIX_BYTES: usize = 128;

/// Longest name of an interface in Linux, in bytes (IFNAMSIZ less its NUL).
const MAX_INTERFACE_BYTES: usize = 15;

/// A value as it was written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Given<'a> {
    /// A string of the file, or anything from a variable or a flag.
    Text(&'a str),
    Integer(i64),
    Boolean(bool),
    List(Vec<Given<'a>>),
    /// What no key takes: a table, a date, a number with a point.
    Other(&'static str),
}

/// Why a value is refused; `None` where what is allowed says it all.
pub(super) type Refusal = Option<String>;

impl<'a> Given<'a> {
    pub(super) fn of_toml(value: &'a toml::de::DeValue<'a>) -> Given<'a> {
        use toml::de::DeValue;
        match value {
            DeValue::String(text) => Given::Text(text),
            DeValue::Integer(number) => {
                let parsed = i64::from_str_radix(number.as_str(), number.radix());
                parsed.map_or(Given::Other("a number that large"), Given::Integer)
            }
            DeValue::Boolean(truth) => Given::Boolean(*truth),
            DeValue::Array(items) => Given::List(
                items
                    .iter()
                    .map(|item| Given::of_toml(item.get_ref()))
                    .collect(),
            ),
            DeValue::Float(_) => Given::Other("a number with a point"),
            DeValue::Datetime(_) => Given::Other("a date"),
            DeValue::Table(_) => Given::Other("a section"),
        }
    }

    /// As an option's value; `None` where no option takes it.
    pub(super) fn option_value(&self) -> Option<dhcp::option::Value> {
        use dhcp::option::Value;
        Some(match self {
            Given::Text(text) => Value::Text((*text).to_owned()),
            Given::Integer(number) => Value::Integer(*number),
            Given::Boolean(truth) => Value::Boolean(*truth),
            Given::List(items) => Value::List(
                items
                    .iter()
                    .map(Given::option_value)
                    .collect::<Option<_>>()?,
            ),
            Given::Other(_) => return None,
        })
    }

    fn text(&self) -> Result<&'a str, Refusal> {
        match self {
            Given::Text(text) => Ok(text),
            _ => Err(None),
        }
    }

    /// A number, written as one or as text (variables and flags know no
    /// other way).
    fn number<T: TryFrom<i64>>(&self) -> Result<T, Refusal> {
        let number = match self {
            Given::Integer(number) => *number,
            Given::Text(text) => text.trim().parse().map_err(|_| None)?,
            _ => return Err(None),
        };
        T::try_from(number).map_err(|_| None)
    }

    /// A list, written as one, or as text with commas. A lone text is a list
    /// of one.
    fn list<T>(&self, one: impl Fn(&str) -> Result<T, Refusal>) -> Result<Vec<T>, Refusal> {
        match self {
            Given::Text(text) => text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(one)
                .collect(),
            Given::List(items) => items.iter().map(|item| one(item.text()?)).collect(),
            _ => Err(None),
        }
    }
}

impl fmt::Display for Given<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Given::Text(text) => write!(f, "{text:?}"),
            Given::Integer(number) => write!(f, "{number}"),
            Given::Boolean(truth) => write!(f, "{truth}"),
            Given::List(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{item}")?;
                }
                f.write_str("]")
            }
            Given::Other(what) => f.write_str(what),
        }
    }
}

fn because<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Some(why.into()))
}

fn parse<T: FromStr>(text: &str) -> Result<T, Refusal> {
    text.trim().parse().map_err(|_| None)
}

pub(super) fn boolean(given: &Given<'_>) -> Result<bool, Refusal> {
    match given {
        Given::Boolean(truth) => Ok(*truth),
        Given::Text("true" | "yes" | "1") => Ok(true),
        Given::Text("false" | "no" | "0") => Ok(false),
        _ => Err(None),
    }
}

pub(super) fn port(given: &Given<'_>) -> Result<u16, Refusal> {
    given
        .number()
        .and_then(|port| if port == 0 { Err(None) } else { Ok(port) })
}

pub(super) fn port_or_none(given: &Given<'_>) -> Result<Option<u16>, Refusal> {
    if given.text().is_ok_and(str::is_empty) {
        return Ok(None);
    }
    port(given).map(Some)
}

pub(super) fn tls_for(given: &Given<'_>) -> Result<Vec<TlsFor>, Refusal> {
    given.list(|text| match text {
        "firmware" => Ok(TlsFor::Firmware),
        "ipxe" => Ok(TlsFor::Ipxe),
        other => because(format!("{other:?} is neither")),
    })
}

pub(super) fn block_bytes(given: &Given<'_>) -> Result<u16, Refusal> {
    let bytes = given.number()?;
    if (512..=65464).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(None)
    }
}

pub(super) fn pending_limit(given: &Given<'_>) -> Result<usize, Refusal> {
    let limit = given.number()?;
    if limit <= 10_000 {
        Ok(limit)
    } else {
        Err(None)
    }
}

pub(super) fn path(given: &Given<'_>) -> Result<PathBuf, Refusal> {
    match given.text()? {
        "" => Err(None),
        text if text.contains('\0') => Err(None),
        text => Ok(PathBuf::from(text)),
    }
}

pub(super) fn path_or_none(given: &Given<'_>) -> Result<Option<PathBuf>, Refusal> {
    if given.text()?.is_empty() {
        Ok(None)
    } else {
        path(given).map(Some)
    }
}

pub(super) fn socket(given: &Given<'_>) -> Result<Option<PathBuf>, Refusal> {
    let length = given.text()?.len();
    if length > MAX_SOCKET_PATH_BYTES {
        return because(format!("it has {length} bytes"));
    }
    path_or_none(given)
}

pub(super) fn loopback(given: &Given<'_>) -> Result<Option<SocketAddr>, Refusal> {
    let text = given.text()?;
    if text.is_empty() {
        return Ok(None);
    }
    let address: SocketAddr = parse(text)?;
    if !address.ip().is_loopback() {
        return because(
            "whoever reaches the API owns every disk, and it knows no password; to reach it from elsewhere use ssh -L",
        );
    }
    if address.port() == 0 {
        Err(None)
    } else {
        Ok(Some(address))
    }
}

pub(super) fn interface(given: &Given<'_>) -> Result<Option<String>, Refusal> {
    let name = given.text()?;
    if name.is_empty() {
        return Ok(None);
    }
    let fits = name.len() <= MAX_INTERFACE_BYTES
        && !name.contains(|c: char| c == '/' || c.is_whitespace());
    if fits {
        Ok(Some(name.to_owned()))
    } else {
        Err(None)
    }
}

pub(super) fn address_or_none(given: &Given<'_>) -> Result<Option<Ipv4Addr>, Refusal> {
    match given.text()? {
        "" => Ok(None),
        text => host(text).map(Some),
    }
}

/// Names of interfaces, or addresses of ours.
pub(super) fn interfaces(given: &Given<'_>) -> Result<Vec<String>, Refusal> {
    let names = given.list(|text| {
        let name = interface(&Given::Text(text))?;
        name.ok_or(None)
    })?;
    if let Some((at, name)) = names
        .iter()
        .enumerate()
        .find(|(at, name)| names[..*at].contains(name))
    {
        return because(format!(
            "{name} is there twice, the second time at place {}",
            at + 1
        ));
    }
    Ok(names)
}

/// `10.20.0.0/24`: its address and its mask.
pub(super) fn network(given: &Given<'_>) -> Result<Option<(Ipv4Addr, Ipv4Addr)>, Refusal> {
    let (address, width) = given.text()?.split_once('/').ok_or(None)?;
    let (address, width): (Ipv4Addr, u32) = (parse(address)?, parse(width)?);
    if !(8..=31).contains(&width) {
        return because("networks have 8 to 31 bits");
    }
    let mask = Ipv4Addr::from_bits(u32::MAX << (32 - width));
    if address & mask != address {
        return because(format!("the network is {}/{width}", address & mask));
    }
    Ok(Some((address, mask)))
}

pub(super) fn mtu(given: &Given<'_>) -> Result<Option<u16>, Refusal> {
    let bytes = given.number()?;
    if (576..=9000).contains(&bytes) {
        Ok(Some(bytes))
    } else {
        Err(None)
    }
}

pub(super) fn some_lease(given: &Given<'_>) -> Result<Option<Duration>, Refusal> {
    lease(given).map(Some)
}

pub(super) fn some_addresses(given: &Given<'_>) -> Result<Option<Vec<Ipv4Addr>>, Refusal> {
    addresses(given).map(Some)
}

/// A name or a MAC address, which is written one way inside.
pub(super) fn machine(given: &Given<'_>) -> Result<String, Refusal> {
    match given.text()?.trim() {
        "" => Err(None),
        text => Ok(text
            .parse::<dhcp::Mac>()
            .map_or_else(|_| text.to_owned(), |mac| mac.to_string())),
    }
}

pub(super) fn addresses(given: &Given<'_>) -> Result<Vec<Ipv4Addr>, Refusal> {
    given.list(host)
}

/// An address that a host can have.
fn host(text: &str) -> Result<Ipv4Addr, Refusal> {
    let address: Ipv4Addr = parse(text)?;
    if address.is_unspecified() || address.is_broadcast() || address.is_multicast() {
        return because(format!("no host has the address {address}"));
    }
    Ok(address)
}

pub(super) fn ranges(given: &Given<'_>) -> Result<Vec<(Ipv4Addr, Ipv4Addr)>, Refusal> {
    let ranges = given.list(range)?;
    for (index, a) in ranges.iter().enumerate() {
        if let Some(b) = ranges[..index].iter().find(|b| a.0 <= b.1 && b.0 <= a.1) {
            return because(format!("{}-{} and {}-{} overlap", b.0, b.1, a.0, a.1));
        }
    }
    Ok(ranges)
}

/// `first-last`, or a single address.
fn range(text: &str) -> Result<(Ipv4Addr, Ipv4Addr), Refusal> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (host(first)?, host(last)?);
    if first > last {
        return because(format!("{first} comes after {last}"));
    }
    Ok((first, last))
}

pub(super) fn domain(given: &Given<'_>) -> Result<Option<String>, Refusal> {
    let name = given.text()?;
    if name.is_empty() {
        return Ok(None);
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    let fits = name.len() <= 253 && name.split('.').all(label);
    if fits {
        Ok(Some(name.to_owned()))
    } else {
        Err(None)
    }
}

pub(super) fn mode(given: &Given<'_>) -> Result<DhcpMode, Refusal> {
    match given.text()? {
        "observe" => Ok(DhcpMode::Observe),
        "proxy" => Ok(DhcpMode::Proxy),
        "full" => Ok(DhcpMode::Full),
        _ => Err(None),
    }
}

pub(super) fn lease(given: &Given<'_>) -> Result<Duration, Refusal> {
    let lease = duration(given)?;
    if (MIN_LEASE..=MAX_LEASE).contains(&lease) {
        Ok(lease)
    } else {
        Err(None)
    }
}

pub(super) fn retry(given: &Given<'_>) -> Result<Duration, Refusal> {
    let retry = duration(given)?;
    if (Duration::from_secs(1)..=MAX_RETRY).contains(&retry) {
        Ok(retry)
    } else {
        Err(None)
    }
}

pub(super) fn scrub_interval(given: &Given<'_>) -> Result<Option<Duration>, Refusal> {
    if matches!(given, Given::Text("off")) {
        return Ok(None);
    }
    let interval = duration(given)?;
    if (MIN_SCRUB_INTERVAL..=MAX_LEASE).contains(&interval) {
        Ok(Some(interval))
    } else {
        Err(None)
    }
}

pub(super) fn scrub_rate(given: &Given<'_>) -> Result<u64, Refusal> {
    let rate = bytes(given)?;
    if rate >= MIN_SCRUB_RATE {
        Ok(rate)
    } else {
        Err(None)
    }
}

pub(super) fn calendar(given: &Given<'_>) -> Result<bool, Refusal> {
    match given.text()? {
        "calendar" => Ok(true),
        "off" => Ok(false),
        _ => Err(None),
    }
}

pub(super) fn quota(given: &Given<'_>) -> Result<Option<u64>, Refusal> {
    if matches!(given, Given::Text("none")) {
        return Ok(None);
    }
    match bytes(given)? {
        ..MIN_QUOTA_BYTES => Err(None),
        bytes => Ok(Some(bytes)),
    }
}

pub(super) fn reserve(given: &Given<'_>) -> Result<u64, Refusal> {
    bytes(given)
}

/// A number of bytes, with or without a unit: `64K`, `20M`, `50G`, `2T`.
fn bytes(given: &Given<'_>) -> Result<u64, Refusal> {
    let text = match given {
        Given::Text(text) => text.trim(),
        _ => return given.number(),
    };
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].trim() {
        "" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        "T" | "TiB" => 40,
        _ => return Err(None),
    };
    let count: u64 = digits.parse().map_err(|_| None)?;
    count.checked_mul(1 << shift).ok_or(None)
}

/// A number with its unit: `90s`, `10m`, `12h`, `7d`.
fn duration(given: &Given<'_>) -> Result<Duration, Refusal> {
    if matches!(given, Given::Integer(_)) {
        return because("the unit is missing: s, m, h or d");
    }
    let text = given.text()?.trim();
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let seconds_per_unit = match text[digits.len()..].trim() {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        "" => return because("the unit is missing: s, m, h or d"),
        _ => return Err(None),
    };
    let count: u64 = digits.parse().map_err(|_| None)?;
    count
        .checked_mul(seconds_per_unit)
        .map(Duration::from_secs)
        .ok_or(None)
}

/// `iqn.YYYY-MM.reversed.domain`, optionally `:` and more (RFC 7143 section
/// 4.2.7.3), lower case.
pub(super) fn iqn(given: &Given<'_>) -> Result<String, Refusal> {
    let text = given.text()?;
    let name = text.trim_end_matches([':', '.']);
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return because("iSCSI names are lower case");
    }
    if name.len() > MAX_TARGET_PREFIX_BYTES {
        return because(format!("it is longer than {MAX_TARGET_PREFIX_BYTES} bytes"));
    }
    let Some((date, authority)) = name
        .strip_prefix("iqn.")
        .and_then(|rest| rest.split_once('.'))
    else {
        return Err(None);
    };
    let digits =
        |text: &str, length| text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_date = date.split_once('-').is_some_and(|(year, month)| {
        digits(year, 4) && digits(month, 2) && ("01"..="12").contains(&month)
    });
    if !is_date {
        return because(
            "after iqn. stands the year and month in which the domain was yours, as in 2026-11",
        );
    }
    let (domain, more) = authority.split_once(':').unwrap_or((authority, ""));
    let letters = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    let is_domain = domain
        .split('.')
        .all(|label| !label.is_empty() && letters(label));
    let is_more = more.split([':', '.']).all(letters);
    if is_domain && is_more {
        Ok(name.to_owned())
    } else {
        Err(None)
    }
}

/// A level, or several with the part of the program each is for.
pub(super) fn level(given: &Given<'_>) -> Result<String, Refusal> {
    let text = given.text()?.trim();
    let is_level =
        |level: &str| ["off", "error", "warn", "info", "debug", "trace"].contains(&level);
    let is_target = |target: &str| {
        !target.is_empty()
            && target
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b':')
    };
    let fits = text.split(',').all(|part| match part.split_once('=') {
        Some((target, level)) => is_target(target) && is_level(level),
        None => is_level(part),
    });
    if fits { Ok(text.to_owned()) } else { Err(None) }
}
