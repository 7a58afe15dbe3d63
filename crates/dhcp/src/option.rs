//! Options as people write them: a name or a number, and a value that becomes
//! bytes (RFC 2132, 3397, 3442, 4578, 5071, 5859; PXE 2.1 section 2.2; iPXE's
//! `dhcp.h`).
//!
//! What the server itself must say (addresses, times, the words of the
//! protocol) cannot be set here, and what has a key of its own is refused with
//! the name of that key.

use std::net::Ipv4Addr;

use crate::wire::code;

/// Longest data of one option, in bytes: what clients put together of split
/// ones (RFC 3396) has to find room in one packet.
const DATA_BYTES_MAX: usize = 1024;

/// Longest data of an option that is never split, in bytes.
const WHOLE_BYTES_MAX: usize = 255;

/// Longest name in a search list, in bytes (RFC 1035 section 2.3.4).
const NAME_BYTES_MAX: usize = 253;

/// A value as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `"text"`.
    Text(String),
    /// `17`.
    Integer(i64),
    /// `true`.
    Boolean(bool),
    /// `["10.0.0.1", "10.0.0.2"]`.
    List(Vec<Value>),
}

/// An option to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its number.
    pub code: u8,
    /// Its data.
    pub data: Vec<u8>,
}

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Address,
    Addresses,
    Byte,
    Short,
    Long,
    Signed,
    Flag,
    Names,
    Routes,
    /// Whatever the value looks like.
    Any,
    /// A number inside option 43 or 175.
    Inner(u8),
    /// A multicast address inside option 43.
    Group,
    Menu,
    Prompt,
}

impl Kind {
    fn allowed(self) -> &'static str {
        match self {
            Kind::Text => "a text",
            Kind::Address => "an IPv4 address, as in \"192.168.1.1\"",
            Kind::Group => "a multicast address, as in \"239.1.2.3\"",
            Kind::Addresses => "a list of IPv4 addresses, as in [\"192.168.1.1\"]",
            Kind::Byte | Kind::Inner(_) => "a number from 0 to 255",
            Kind::Short => "a number from 0 to 65535",
            Kind::Long => "a number from 0 to 4294967295",
            Kind::Signed => "a number from -2147483648 to 2147483647",
            Kind::Flag => "true or false",
            Kind::Names => "a list of domain names, as in [\"lab.example.org\", \"example.org\"]",
            Kind::Routes => "a list of routes, as in [\"10.1.0.0/16 192.168.1.254\"]",
            Kind::Any => {
                "a text, a number, a list of addresses, a list of bytes, or \"hex:0a1b2c\""
            }
            Kind::Menu => {
                "a list of items, each a type, the addresses of its servers and words, as in [\"32768 192.168.1.10 Install\", \"0 Local disk\"]"
            }
            Kind::Prompt => "seconds and words, as in \"10 Press F8 for the menu\"",
        }
    }
}

/// Options that may be set, by number.
const KNOWN: &[(u8, &str, Kind)] = &[
    (2, "time-offset", Kind::Signed),
    (4, "time-servers", Kind::Addresses),
    (5, "name-servers", Kind::Addresses),
    (7, "log-servers", Kind::Addresses),
    (9, "lpr-servers", Kind::Addresses),
    (13, "boot-file-size", Kind::Short),
    (16, "swap-server", Kind::Address),
    (17, "root-path", Kind::Text),
    (19, "ip-forwarding", Kind::Flag),
    (23, "ttl", Kind::Byte),
    (33, "static-routes", Kind::Addresses),
    (40, "nis-domain", Kind::Text),
    (41, "nis-servers", Kind::Addresses),
    (44, "netbios-name-servers", Kind::Addresses),
    (46, "netbios-node-type", Kind::Byte),
    (47, "netbios-scope", Kind::Text),
    (60, "vendor-class", Kind::Text),
    (66, "tftp-server-name", Kind::Text),
    (67, "boot-file-name", Kind::Text),
    (69, "smtp-servers", Kind::Addresses),
    (100, "posix-timezone", Kind::Text),
    (101, "tzdb-timezone", Kind::Text),
    (114, "captive-portal", Kind::Text),
    (119, "domain-search", Kind::Names),
    (120, "sip-servers", Kind::Any),
    (121, "classless-routes", Kind::Routes),
    (138, "capwap-controllers", Kind::Addresses),
    (150, "tftp-servers", Kind::Addresses),
    (203, "initiator-name", Kind::Text),
    (209, "pxelinux-config-file", Kind::Text),
    (210, "pxelinux-path-prefix", Kind::Text),
    (211, "pxelinux-reboot-time", Kind::Long),
    (249, "ms-classless-routes", Kind::Routes),
    (252, "wpad", Kind::Text),
    // Whole, or by the names below.
    (43, "vendor-options", Kind::Any),
    (175, "ipxe-options", Kind::Any),
    // Inside option 43 (PXE 2.1 table 2-1).
    (43, "pxe-discovery-control", Kind::Inner(6)),
    (43, "pxe-multicast-address", Kind::Group),
    (43, "pxe-menu", Kind::Menu),
    (43, "pxe-prompt", Kind::Prompt),
    // Inside option 175.
    (175, "ipxe-priority", Kind::Inner(1)),
    (175, "ipxe-keep-san", Kind::Inner(8)),
    (175, "ipxe-skip-san-boot", Kind::Inner(9)),
    (175, "ipxe-no-pxedhcp", Kind::Inner(176)),
];

/// Options that have a key of their own, or belong to the protocol.
const REFUSED: &[(u8, &str, &str)] = &[
    (0, "pad", "it is no option, but filler"),
    (1, "netmask", "it follows from the network"),
    (3, "routers", "it has a key of its own: router"),
    (6, "dns-servers", "it has a key of its own: dns"),
    (
        12,
        "host-name",
        "it is the machine's name: diskless machine set NAME --name NEW",
    ),
    (15, "domain-name", "it has a key of its own: domain"),
    (26, "interface-mtu", "it has a key of its own: mtu"),
    (28, "broadcast-address", "it follows from the network"),
    (42, "ntp-servers", "it has a key of its own: ntp"),
    (50, "requested-address", "only clients say it"),
    (51, "lease-time", "it has a key of its own: lease"),
    (
        52,
        "overload",
        "the server says it where a reply grows too large",
    ),
    (53, "message-type", "the protocol says it"),
    (54, "server-identifier", "it is the server's own address"),
    (55, "parameter-list", "only clients say it"),
    (56, "message", "the server says it when it refuses"),
    (57, "max-message-size", "only clients say it"),
    (58, "renewal-time", "it follows from the lease: half of it"),
    (
        59,
        "rebinding-time",
        "it follows from the lease: seven eighths of it",
    ),
    (61, "client-identifier", "only clients say it"),
    (77, "user-class", "only clients say it"),
    (
        81,
        "client-fqdn",
        "it answers what a client says, and no names are kept here",
    ),
    (
        82,
        "relay-agent-information",
        "relays say it, and get it back",
    ),
    (90, "authentication", "keys are not kept here"),
    (93, "architecture", "only clients say it"),
    (94, "network-interface", "only clients say it"),
    (97, "machine-uuid", "the client's own goes back to it"),
    (118, "subnet-selection", "the client's own goes back to it"),
    (255, "end", "it is no option, but the end of them"),
];

/// Reads options by name (`domain-search`, `domain_search`) or number
/// (`119`). What stands inside options 43 and 175 comes together in one.
///
/// # Errors
/// For each that is wrong its place in the list and a sentence.
pub fn read(given: &[(String, Value)]) -> Result<Vec<Setting>, Vec<(usize, String)>> {
    let mut settings: Vec<(Setting, &str, Kind)> = Vec::new();
    let mut wrong = Vec::new();
    for (at, (name, value)) in given.iter().enumerate() {
        match read_one(name, value) {
            Err(why) => wrong.push((at, why)),
            Ok((setting, kind)) => {
                let code = setting.code;
                match settings.iter_mut().find(|(other, ..)| other.code == code) {
                    None => settings.push((setting, name, kind)),
                    Some((old, _, old_kind)) if is_part(code, kind) && is_part(code, *old_kind) => {
                        old.data.extend(setting.data);
                    }
                    Some((_, old_name, _)) => wrong.push((
                        at,
                        format!("{name} and {old_name} both set option {code}; keep one of them"),
                    )),
                }
            }
        }
    }
    for (setting, name, kind) in &mut settings {
        if setting.code == code::VENDOR && is_part(setting.code, *kind) {
            setting.data.push(code::END); // many ROMs require it
        }
        let limit = if may_be_split(setting.code) {
            DATA_BYTES_MAX
        } else {
            WHOLE_BYTES_MAX
        };
        if setting.data.len() > limit {
            let at = given.iter().position(|(other, _)| other == name);
            wrong.push((
                at.unwrap_or_default(),
                format!(
                    "option {} has {} bytes; {limit} is the most that clients take",
                    setting.code,
                    setting.data.len()
                ),
            ));
        }
    }
    if wrong.is_empty() {
        Ok(settings.into_iter().map(|(setting, ..)| setting).collect())
    } else {
        Err(wrong)
    }
}

/// Lays options above others: one of the same number takes the other's place.
pub fn overlay(below: &[Setting], above: &[Setting]) -> Vec<Setting> {
    let is_covered = |setting: &&Setting| above.iter().all(|over| over.code != setting.code);
    below
        .iter()
        .filter(is_covered)
        .chain(above)
        .cloned()
        .collect()
}

/// Adds a default route to the data of option 121 that has none: clients that
/// take 121 do not look at the router of option 3 (RFC 3442).
pub(crate) fn with_default_route(data: &[u8], router: Option<Ipv4Addr>) -> Vec<u8> {
    let mut routes = data.to_vec();
    let mut rest = data;
    while let Some((&width, tail)) = rest.split_first() {
        if width == 0 {
            return routes;
        }
        let Some(next) = tail.get(usize::from(width.div_ceil(8)) + 4..) else {
            return routes;
        };
        rest = next;
    }
    if let Some(router) = router {
        routes.push(0);
        routes.extend(router.octets());
    }
    routes
}

/// Clients put long ones together where a list may be long (RFC 3396); ROMs
/// do not.
fn may_be_split(code: u8) -> bool {
    matches!(code, 119 | 120 | 121 | 249)
}

/// Whether it is one of the options inside 43 or 175.
fn is_part(code: u8, kind: Kind) -> bool {
    matches!(code, code::VENDOR | code::IPXE) && kind != Kind::Any
}

fn read_one(name: &str, value: &Value) -> Result<(Setting, Kind), String> {
    let plain = name.trim().to_ascii_lowercase().replace('_', "-");
    let number: Option<u8> = match plain.parse::<u32>() {
        Ok(number) => {
            Some(u8::try_from(number).map_err(|_| format!("{name}: options end at 254"))?)
        }
        Err(_) => None,
    };
    if let Some((code, known, why)) = REFUSED
        .iter()
        .find(|(code, known, _)| number == Some(*code) || plain == *known)
    {
        return Err(format!("option {code} ({known}) cannot be set: {why}"));
    }
    let known = KNOWN
        .iter()
        .find(|(code, known, _)| number == Some(*code) || plain == *known);
    let (code, kind) = match (known, number) {
        (Some((code, _, kind)), _) => (*code, *kind),
        (None, Some(code)) => (code, Kind::Any),
        (None, None) => return Err(unknown(name, &plain)),
    };
    let data = data(kind, value)
        .ok_or_else(|| format!("{name} (option {code}) takes {}", kind.allowed()))?;
    if data.is_empty() {
        return Err(format!("{name} (option {code}) is empty"));
    }
    Ok((Setting { code, data }, kind))
}

fn unknown(name: &str, plain: &str) -> String {
    let words: Vec<&str> = plain.split('-').collect();
    let near: Vec<&str> = KNOWN
        .iter()
        .map(|(_, known, _)| *known)
        .filter(|known| known.split('-').any(|word| words.contains(&word)))
        .take(3)
        .collect();
    let hint = if near.is_empty() {
        String::new()
    } else {
        format!(" (there are {})", near.join(", "))
    };
    format!("no option is called {name}{hint}; any may be given by its number")
}

/// A value's bytes; `None` where it is not of its kind.
fn data(kind: Kind, value: &Value) -> Option<Vec<u8>> {
    if let Value::Text(text) = value
        && let Some(digits) = text.strip_prefix("hex:")
    {
        return match kind {
            Kind::Inner(_) | Kind::Menu | Kind::Prompt | Kind::Group => None,
            _ => hex(digits),
        };
    }
    match kind {
        Kind::Text => match value {
            Value::Text(text) if !text.contains('\0') => Some(text.clone().into_bytes()),
            _ => None,
        },
        Kind::Group => {
            let group = address(value).filter(Ipv4Addr::is_multicast)?;
            Some(inner(7, &group.octets()))
        }
        Kind::Address => Some(address(value)?.octets().to_vec()),
        Kind::Addresses => addresses(value),
        Kind::Byte => Some(vec![u8::try_from(integer(value)?).ok()?]),
        Kind::Short => Some(u16::try_from(integer(value)?).ok()?.to_be_bytes().to_vec()),
        Kind::Long => Some(u32::try_from(integer(value)?).ok()?.to_be_bytes().to_vec()),
        Kind::Signed => Some(i32::try_from(integer(value)?).ok()?.to_be_bytes().to_vec()),
        Kind::Flag => match value {
            Value::Boolean(flag) => Some(vec![u8::from(*flag)]),
            _ => None,
        },
        Kind::Names => names(&texts(value)?),
        Kind::Routes => {
            let routes: Option<Vec<Vec<u8>>> = texts(value)?.into_iter().map(route).collect();
            Some(routes?.concat())
        }
        Kind::Any => any(value),
        Kind::Inner(code) => {
            let byte = match value {
                Value::Boolean(flag) => u8::from(*flag),
                other => u8::try_from(integer(other)?).ok()?,
            };
            Some(inner(code, &[byte]))
        }
        Kind::Menu => menu(&texts(value)?),
        Kind::Prompt => {
            let Value::Text(text) = value else {
                return None;
            };
            let (seconds, words) = text.split_once(' ')?;
            let mut data = vec![seconds.parse().ok()?];
            data.extend(words.as_bytes());
            (data.len() <= WHOLE_BYTES_MAX).then(|| inner(10, &data))
        }
    }
}

/// An option inside an option.
fn inner(code: u8, data: &[u8]) -> Vec<u8> {
    let length = u8::try_from(data.len()).unwrap_or(u8::MAX);
    let mut bytes = vec![code, length];
    bytes.extend(data.iter().take(length.into()));
    bytes
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = digits
        .chars()
        .filter(|c| !matches!(c, ':' | ' ' | '-'))
        .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()?;
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    Some(
        digits
            .chunks_exact(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect(),
    )
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Integer(number) => Some(*number),
        _ => None,
    }
}

fn address(value: &Value) -> Option<Ipv4Addr> {
    match value {
        Value::Text(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn addresses(value: &Value) -> Option<Vec<u8>> {
    let octets = |value| address(value).map(|address| address.octets().to_vec());
    match value {
        Value::List(items) => Some(
            items
                .iter()
                .map(octets)
                .collect::<Option<Vec<_>>>()?
                .concat(),
        ),
        one => octets(one),
    }
}

/// A list of texts; a lone one is a list of one.
fn texts(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::Text(text) => Some(vec![text]),
        Value::List(items) => items
            .iter()
            .map(|item| match item {
                Value::Text(text) => Some(text.as_str()),
                _ => None,
            })
            .collect(),
        _ => None,
    }
}

/// By its looks: numbers in as few bytes as hold them, lists of addresses or
/// of bytes.
fn any(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::Text(text) => Some(text.clone().into_bytes()),
        Value::Boolean(flag) => Some(vec![u8::from(*flag)]),
        Value::Integer(number) => {
            let number = u32::try_from(*number).ok()?;
            Some(match (u8::try_from(number), u16::try_from(number)) {
                (Ok(byte), _) => vec![byte],
                (_, Ok(short)) => short.to_be_bytes().to_vec(),
                _ => number.to_be_bytes().to_vec(),
            })
        }
        Value::List(items) => {
            let bytes: Option<Vec<u8>> = items
                .iter()
                .map(|item| u8::try_from(integer(item)?).ok())
                .collect();
            bytes.or_else(|| addresses(value))
        }
    }
}

/// Names as in RFC 1035 section 4.1.4, with pointers to what was written
/// before (RFC 3397 section 2).
fn names(names: &[&str]) -> Option<Vec<u8>> {
    let mut data: Vec<u8> = Vec::new();
    let mut written: Vec<(String, usize)> = Vec::new();
    for name in names {
        let name = name.trim().trim_end_matches('.').to_ascii_lowercase();
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return None;
        }
        let mut rest = name.as_str();
        loop {
            let known = written.iter().find(|(suffix, _)| suffix == rest);
            if let Some((_, at)) = known {
                let pointer = 0xc000 | u16::try_from(*at).ok()?;
                data.extend(pointer.to_be_bytes());
                break;
            }
            // Pointers have 14 bits.
            if data.len() < 0x4000 {
                written.push((rest.to_owned(), data.len()));
            }
            let (label, tail) = rest.split_once('.').unwrap_or((rest, ""));
            let is_label = (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
            if !is_label {
                return None;
            }
            data.push(u8::try_from(label.len()).ok()?);
            data.extend(label.as_bytes());
            if tail.is_empty() {
                data.push(0);
                break;
            }
            rest = tail;
        }
    }
    Some(data)
}

/// `10.1.0.0/16 192.168.1.254`, `default 192.168.1.1` (RFC 3442).
fn route(text: &str) -> Option<Vec<u8>> {
    let mut words = text.split_whitespace().filter(|word| *word != "via");
    let (network, router) = (words.next()?, words.next()?);
    if words.next().is_some() {
        return None;
    }
    let (address, width) = match network {
        "default" => (Ipv4Addr::UNSPECIFIED, 0),
        network => {
            let (address, width) = network.split_once('/')?;
            (address.parse::<Ipv4Addr>().ok()?, width.parse::<u8>().ok()?)
        }
    };
    let mask = u32::MAX
        .checked_shl(32u32.checked_sub(width.into())?)
        .unwrap_or(0);
    if address.to_bits() & !mask != 0 {
        return None;
    }
    let mut data = vec![width];
    data.extend(&address.octets()[..width.div_ceil(8).into()]);
    data.extend(router.parse::<Ipv4Addr>().ok()?.octets());
    Some(data)
}

/// Boot servers (8) and the menu that names them (9) (PXE 2.1 table 2-1).
fn menu(items: &[&str]) -> Option<Vec<u8>> {
    let (mut servers, mut lines) = (Vec::new(), Vec::new());
    for item in items {
        let (kind, rest) = item.trim().split_once(' ')?;
        let kind: u16 = kind.parse().ok()?;
        let (first, tail) = rest.split_once(' ').unwrap_or((rest, ""));
        let list: Option<Vec<Ipv4Addr>> = first
            .split(',')
            .map(|address| address.parse().ok())
            .collect();
        let words = match list {
            Some(list) => {
                servers.extend(kind.to_be_bytes());
                servers.push(u8::try_from(list.len()).ok()?);
                servers.extend(list.iter().flat_map(Ipv4Addr::octets));
                tail.trim()
            }
            // Type 0 boots what is there.
            None => rest.trim(),
        };
        if words.is_empty() {
            return None;
        }
        lines.extend(kind.to_be_bytes());
        lines.push(u8::try_from(words.len()).ok()?);
        lines.extend(words.as_bytes());
    }
    if lines.is_empty() || lines.len() > WHOLE_BYTES_MAX || servers.len() > WHOLE_BYTES_MAX {
        return None;
    }
    let mut data = Vec::new();
    if !servers.is_empty() {
        data.extend(inner(8, &servers));
    }
    data.extend(inner(9, &lines));
    Some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::Text(text.into())
    }

    fn list(items: &[&str]) -> Value {
        Value::List(items.iter().map(|item| text(item)).collect())
    }

    fn one(name: &str, value: Value) -> Setting {
        let mut read = read(&[(name.into(), value)]).unwrap();
        assert_eq!(read.len(), 1);
        read.remove(0)
    }

    fn refusal(name: &str, value: Value) -> String {
        let mut wrong = read(&[(name.into(), value)]).unwrap_err();
        assert_eq!(wrong.len(), 1);
        wrong.remove(0).1
    }

    #[test]
    fn a_name_in_either_spelling_and_a_number_mean_the_same_option() {
        let prefix = Setting {
            code: 210,
            data: b"pxe/".to_vec(),
        };
        for name in ["pxelinux-path-prefix", "pxelinux_path_prefix", "210"] {
            assert_eq!(one(name, text("pxe/")), prefix, "{name}");
        }
    }

    #[test]
    fn a_search_list_points_back_to_what_was_written_before() {
        // The example of RFC 3397 section 2, "eng.apple.com" and
        // "marketing.apple.com".
        let found = one(
            "domain-search",
            list(&["eng.apple.com.", "marketing.apple.com"]),
        );
        let mut data = b"\x03eng\x05apple\x03com\x00\x09marketing".to_vec();
        data.extend([0xc0, 4]);
        assert_eq!((found.code, found.data), (119, data));
    }

    #[test]
    fn routes_have_only_the_bytes_that_mean_something() {
        let found = one(
            "classless-routes",
            list(&[
                "10.0.0.0/8 10.0.0.1",
                "10.17.8.0/22 via 10.0.0.2",
                "default 10.0.0.3",
            ]),
        );
        assert_eq!(
            found.data,
            [
                8, 10, 10, 0, 0, 1, 22, 10, 17, 8, 10, 0, 0, 2, 0, 10, 0, 0, 3
            ]
        );
        assert!(refusal("121", text("10.0.0.1/8 10.0.0.1")).contains("a list of routes"));
        assert!(refusal("121", text("10.0.0.0/33 10.0.0.1")).contains("a list of routes"));
    }

    #[test]
    fn a_default_route_is_added_where_there_is_none() {
        let router = Ipv4Addr::new(10, 0, 0, 254);
        let routes = [8, 11, 10, 0, 0, 1];
        assert_eq!(
            with_default_route(&routes, Some(router)),
            [8, 11, 10, 0, 0, 1, 0, 10, 0, 0, 254]
        );
        let whole = with_default_route(&routes, Some(router));
        assert_eq!(with_default_route(&whole, Some(router)), whole);
        assert_eq!(with_default_route(&routes, None), routes);
        assert_eq!(with_default_route(&[32, 1], Some(router)), [32, 1]);
    }

    #[test]
    fn a_menu_comes_together_in_option_43() {
        // Vector T3 of a one-item menu.
        let found = read(&[
            ("pxe-discovery-control".into(), Value::Integer(3)),
            ("pxe-menu".into(), list(&["32768 192.168.1.5 Boot"])),
            ("pxe-prompt".into(), text("0 PXE")),
        ])
        .unwrap();
        let data = b"\x06\x01\x03\x08\x07\x80\x00\x01\xc0\xa8\x01\x05\x09\x07\x80\x00\x04Boot\x0a\x04\x00PXE\xff";
        assert_eq!(
            found,
            [Setting {
                code: 43,
                data: data.to_vec()
            }]
        );
    }

    #[test]
    fn a_multicast_address_goes_into_option_43_and_is_one() {
        let name = "pxe-multicast-address";
        let found = one(name, text("239.1.2.3"));
        assert_eq!(
            (found.code, found.data),
            (43, vec![7, 4, 239, 1, 2, 3, 255])
        );
        for wrong in ["hex:ef010203", "10.0.0.1"] {
            assert!(refusal(name, text(wrong)).contains("takes a multicast address"));
        }
    }

    #[test]
    fn ipxes_own_options_come_together_in_option_175() {
        let found = read(&[
            ("ipxe-no-pxedhcp".into(), Value::Boolean(true)),
            ("ipxe-keep-san".into(), Value::Integer(1)),
        ])
        .unwrap();
        assert_eq!(found[0].data, [176, 1, 1, 8, 1, 1]);
        assert_eq!((found.len(), found[0].code), (1, 175));
    }

    #[test]
    fn any_number_is_sent_as_its_value_looks() {
        for (value, data) in [
            (text("10.0.0.1"), b"10.0.0.1".to_vec()),
            (
                list(&["10.0.0.1", "10.0.0.2"]),
                vec![10, 0, 0, 1, 10, 0, 0, 2],
            ),
            (Value::Integer(7), vec![7]),
            (Value::Integer(300), vec![1, 44]),
            (Value::Integer(70_000), vec![0, 1, 17, 112]),
            (Value::Boolean(true), vec![1]),
            (text("hex:0a:1B 2c"), vec![10, 27, 44]),
            (
                Value::List(vec![Value::Integer(1), Value::Integer(255)]),
                vec![1, 255],
            ),
        ] {
            let found = one("224", value.clone());
            assert_eq!((found.code, found.data), (224, data), "{value:?}");
        }
        assert!(refusal("224", text("hex:0a1")).contains("takes a text, a number"));
        assert!(refusal("224", Value::Integer(-1)).contains("takes a text, a number"));
    }

    #[test]
    fn what_the_server_says_itself_or_has_a_key_is_refused_with_a_sentence() {
        assert_eq!(
            refusal("3", list(&["10.0.0.1"])),
            "option 3 (routers) cannot be set: it has a key of its own: router"
        );
        assert!(refusal("message-type", Value::Integer(5)).contains("the protocol says it"));
        assert!(refusal("256", text("x")).contains("options end at 254"));
        assert!(refusal("82", text("x")).contains("relays say it"));
    }

    #[test]
    fn one_option_set_twice_is_refused() {
        let wrong = read(&[
            ("tftp-server-name".into(), text("a")),
            ("66".into(), text("b")),
        ])
        .unwrap_err();
        assert_eq!(
            wrong,
            [(
                1,
                "66 and tftp-server-name both set option 66; keep one of them".to_owned()
            )]
        );
        let both = read(&[
            ("43".into(), text("hex:0601ff")),
            ("pxe-discovery-control".into(), Value::Integer(8)),
        ]);
        assert!(both.unwrap_err()[0].1.contains("both set option 43"));
    }

    #[test]
    fn a_name_nobody_knows_is_told_what_there_is() {
        let why = refusal("domain-serch", list(&["a"]));
        assert!(
            why.starts_with("no option is called domain-serch (there are "),
            "{why}"
        );
        assert!(refusal("domain-search", list(&["a..b"])).contains("a list of domain names"));
        assert!(refusal("150", Value::Integer(1)).contains("a list of IPv4 addresses"));
    }

    #[test]
    fn what_clients_cannot_put_together_is_refused_where_it_is_too_long() {
        let long = "x".repeat(256);
        assert!(refusal("210", text(&long)).contains("256 bytes; 255 is the most"));
        let names: Vec<String> = (0..30)
            .map(|n| format!("host{n:02}.lab{n:02}.org"))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(one("119", list(&names)).data.len() > 255);
    }

    #[test]
    fn an_option_above_takes_the_place_of_the_one_below() {
        let set = |code, byte| Setting {
            code,
            data: vec![byte],
        };
        assert_eq!(
            overlay(&[set(1, 1), set(2, 2)], &[set(2, 9), set(3, 3)]),
            [set(1, 1), set(2, 9), set(3, 3)]
        );
    }
}
