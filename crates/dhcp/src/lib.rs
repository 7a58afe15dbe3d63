//! DHCP and PXE server: RFC 2131, RFC 2132, RFC 4578, PXE 2.1.
//!
//! `wire` turns bytes into messages, `client` reads who asks, `lease` lends
//! addresses, `answer` decides (request + leases + policy + now -> reply),
//! `proxy` does so beside another server, `server` owns the sockets. What a
//! client boots is asked through [`Policy`].

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

mod advert;
pub mod answer;
mod arp;
pub mod client;
mod frame;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod lease;
pub mod option;
mod proxy;
mod reply;
pub mod server;
pub mod wire;

pub use server::{
    Counters, Interface, InterfaceConfig, InterfaceKind, Server, interfaces, look_for_other_servers,
};

/// What the server asks its site. Called on the server's own thread, one
/// packet at a time: an answer that takes long delays everybody's, and one
/// that asks the [`Server`] back waits for ever.
pub trait Policy: Send + Sync + 'static {
    /// What this client boots, with `server` the address it sees us under;
    /// `None`: nothing from us (it still gets an address in `full` mode).
    ///
    /// A [`Boot::Url`] reaches only UEFI HTTP Boot and iPXE, a [`Boot::Tftp`]
    /// only those that boot by TFTP; what does not fit is not sent.
    fn boot(&self, client: &Client, server: Ipv4Addr) -> Option<Boot>;

    /// The form in which this client is told what it boots, asked after
    /// [`boot`](Policy::boot) for the same packet. HTTP Boot, iPXE and the
    /// Raspberry Pi know one form each, whatever is answered here.
    fn style(&self, client: &Client, server: Ipv4Addr) -> Style {
        let _ = (client, server);
        Style::default()
    }

    /// What is promised to this MAC: a fixed address, a host name.
    fn promise(&self, mac: Mac) -> Promise;

    /// Whose fixed address this is, so that nobody else is lent it; the
    /// inverse of [`promise`](Policy::promise).
    fn promised_to(&self, address: Ipv4Addr) -> Option<Mac> {
        let _ = address;
        None
    }

    /// Whether a live iSCSI session uses this address (its lease is renewed,
    /// and the address is never lent to another MAC).
    fn is_in_use(&self, address: Ipv4Addr) -> bool;

    /// Something happened that the site may want to remember.
    fn observe(&self, observation: &Observation);
}

/// Where leases are kept so that they survive a restart. Called as [`Policy`]
/// is.
pub trait LeaseStore: Send + Sync + 'static {
    /// All leases kept, expired ones included.
    fn load(&self) -> Result<Vec<Lease>, String>;
    /// Keeps one lease, in place of an earlier one of the same MAC. Called
    /// before the address is acknowledged: an error means no ACK.
    fn save(&self, lease: &Lease) -> Result<(), String>;
    /// Forgets the lease of a MAC.
    fn remove(&self, mac: Mac) -> Result<(), String>;

    /// Keeps several changes, in their order and all or none. Called before
    /// any of their addresses is acknowledged: what costs the same for many
    /// as for one (an `fsync`) is paid once.
    fn apply(&self, changes: &[Change]) -> Result<(), String> {
        changes.iter().try_for_each(|change| match change {
            Change::Bind(lease) | Change::Renew(lease) => self.save(lease),
            Change::End(mac) => self.remove(*mac),
        })
    }
}

/// A change of the leases kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An address new to its MAC, or one whose lease has ended or is about to:
    /// must survive the loss of power.
    Bind(Lease),
    /// The address it has, with another end.
    Renew(Lease),
    /// The lease is forgotten.
    End(Mac),
}

/// What the server does with the packets it sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Listens and reports; sends nothing and holds no port.
    #[default]
    Observe,
    /// ProxyDHCP: boot information beside another server's addresses, to
    /// clients that boot from the network only.
    Proxy,
    /// The LAN's DHCP server.
    Full,
}

/// What the server does and lends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Which role.
    pub mode: Mode,
    /// Option 51. The server itself keeps a lease for
    /// [`MIN_HOLD`](lease::MIN_HOLD) at least.
    pub lease_time: Duration,
    /// The networks addresses are lent in (`Mode::Full`); a client gets one
    /// of the network its packet came from.
    pub subnets: Vec<Subnet>,
}

/// A network, and what its clients are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// An address of it; host bits are ignored.
    pub network: Ipv4Addr,
    /// Option 1.
    pub netmask: Ipv4Addr,
    /// The pool, first and last address included; may be empty where only
    /// fixed addresses are given.
    pub ranges: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// Option 3.
    pub routers: Vec<Ipv4Addr>,
    /// Option 6.
    pub dns: Vec<Ipv4Addr>,
    /// Option 15.
    pub domain: Option<String>,
    /// Option 42.
    pub ntp: Vec<Ipv4Addr>,
    /// Option 26, in bytes.
    pub mtu: Option<u16>,
    /// Option 51, where it differs from [`Settings::lease_time`].
    pub lease_time: Option<Duration>,
    /// Further options, as [`option::read`] makes them. Those that say what to
    /// boot (43, 60, 66, 67, 175) go to clients that we do not boot.
    pub options: Vec<option::Setting>,
}

impl Subnet {
    /// A network that lends nothing and whose clients are told nothing.
    pub fn new(network: Ipv4Addr, netmask: Ipv4Addr) -> Subnet {
        Subnet {
            network,
            netmask,
            ranges: Vec::new(),
            routers: Vec::new(),
            dns: Vec::new(),
            domain: None,
            ntp: Vec::new(),
            mtu: None,
            lease_time: None,
            options: Vec::new(),
        }
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

/// `52:54:00:12:34:56`.
impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mac({self})")
    }
}

/// A text that is no Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a MAC address: write six bytes as 52:54:00:12:34:56")]
pub struct InvalidMac(String);

/// `52:54:00:12:34:56`, `52-54-00-12-34-56` or `525400123456`, in either
/// case.
impl FromStr for Mac {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, InvalidMac> {
        let invalid = || InvalidMac(text.chars().take(40).collect());
        let digits: Vec<u8> = match text.len() {
            12 => text.bytes().collect(),
            17 => {
                let separator = text.as_bytes()[2];
                let well_separated = text
                    .bytes()
                    .skip(2)
                    .step_by(3)
                    .all(|byte| byte == separator && matches!(byte, b':' | b'-'));
                if !well_separated {
                    return Err(invalid());
                }
                text.bytes().filter(|&byte| byte != separator).collect()
            }
            _ => return Err(invalid()),
        };
        if digits.len() != 12 {
            return Err(invalid());
        }
        let mut mac = [0; 6];
        for (byte, pair) in mac.iter_mut().zip(digits.chunks_exact(2)) {
            let (Some(high), Some(low)) = (hex_digit(pair[0]), hex_digit(pair[1])) else {
                return Err(invalid());
            };
            *byte = high << 4 | low;
        }
        Ok(Mac(mac))
    }
}

fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// An address lent to a MAC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Whose; leases are keyed by MAC, whatever option 61 says.
    pub mac: Mac,
    /// The address.
    pub address: Ipv4Addr,
    /// When it may be lent to another; never before the client thinks its
    /// lease ends, and often later.
    pub expires: SystemTime,
    /// Option 97, last seen.
    pub uuid: Option<[u8; 16]>,
    /// Option 12, last seen.
    pub host_name: Option<String>,
}

/// Who asks, as its packet describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// chaddr.
    pub mac: Mac,
    /// Option 97, unless it is all zeros or all ones. In the firmware's byte
    /// order: of the text `11223344-5566-7788-...` the first three fields
    /// stand reversed (44 33 22 11, 66 55, 88 77).
    pub uuid: Option<[u8; 16]>,
    /// What runs there.
    pub firmware: Firmware,
    /// Option 60 as sent, for people to read.
    pub vendor_class: Option<String>,
    /// Option 12 as sent.
    pub host_name: Option<String>,
    /// xid. A firmware that asks anew usually takes another one, and keeps it
    /// while it repeats itself.
    pub xid: u32,
}

/// What runs on the client, from options 93, 60, 77 and 175.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Firmware {
    /// An x86 BIOS with a PXE ROM.
    BiosPxe,
    /// UEFI that boots by PXE (TFTP).
    UefiPxe(Arch),
    /// UEFI HTTP Boot.
    UefiHttp(Arch),
    /// iPXE, on a BIOS (`None`) or a UEFI of some architecture.
    Ipxe(Option<Arch>),
    /// A Raspberry Pi's own ROM or EEPROM, which says that it is an x86 BIOS.
    RaspberryPi,
    /// Not booting from the network: an operating system.
    System,
    /// Boots from the network, of an architecture we do not serve; the number
    /// is option 93's.
    Other(u16),
}

impl Firmware {
    /// Whether it boots from the network; all others are none of a
    /// ProxyDHCP's business.
    pub fn is_network_boot(self) -> bool {
        self != Firmware::System
    }
}

/// For people: `UEFI PXE (x64)`.
impl fmt::Display for Firmware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Firmware::BiosPxe => write!(f, "BIOS PXE"),
            Firmware::UefiPxe(arch) => write!(f, "UEFI PXE ({arch})"),
            Firmware::UefiHttp(arch) => write!(f, "UEFI HTTP Boot ({arch})"),
            Firmware::Ipxe(None) => write!(f, "iPXE (BIOS)"),
            Firmware::Ipxe(Some(arch)) => write!(f, "iPXE (UEFI {arch})"),
            Firmware::RaspberryPi => write!(f, "Raspberry Pi"),
            Firmware::System => write!(f, "operating system"),
            Firmware::Other(number) => write!(f, "network boot, architecture {number}"),
        }
    }
}

/// Processor architecture of a UEFI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arch {
    /// IA32.
    X86,
    /// x86-64.
    X64,
    /// ARM, 32 bits.
    Arm32,
    /// ARM, 64 bits.
    Arm64,
    /// RISC-V, 64 bits.
    Riscv64,
    /// LoongArch, 64 bits.
    Loongarch64,
}

impl Arch {
    /// The UEFI architecture behind a number of option 93, whether it boots
    /// by PXE or by HTTP (RFC 4578 section 2.1 as the IANA registry corrects
    /// it: 9 and 17 are EBC on paper and x64 in the field).
    pub fn from_option_93(number: u16) -> Option<Arch> {
        match number {
            6 | 15 => Some(Arch::X86),
            7 | 9 | 16 | 17 => Some(Arch::X64),
            10 | 18 => Some(Arch::Arm32),
            11 | 19 => Some(Arch::Arm64),
            27 | 28 => Some(Arch::Riscv64),
            39 | 40 => Some(Arch::Loongarch64),
            _ => None,
        }
    }
}

/// As loaders are named: `x64`, `arm64`.
impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Arch::X86 => "ia32",
            Arch::X64 => "x64",
            Arch::Arm32 => "arm32",
            Arch::Arm64 => "arm64",
            Arch::Riscv64 => "riscv64",
            Arch::Loongarch64 => "loongarch64",
        })
    }
}

/// What a client boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Boot {
    /// A file by TFTP.
    Tftp {
        /// siaddr, and option 66 as an address.
        server: Ipv4Addr,
        /// Path on it.
        file: String,
    },
    /// A URL: for UEFI HTTP Boot, and the script for iPXE.
    Url(String),
}

/// The form of a reply to a PXE firmware. None suits them all: some fall
/// silent after one and boot with another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Style {
    /// Option 60, and an option 43 that says: take the file of this packet
    /// and ask nothing more. One exchange.
    #[default]
    Direct,
    /// File and server as BOOTP has them, without options 60 and 43. Nobody
    /// takes a proxy's answer for one without option 60: as `Direct` there.
    Plain,
    /// Option 60, file and server, no option 43: EDK2 takes it for a BINL
    /// server's and asks again on port 4011.
    Binl,
    /// Option 60 alone: file and server are told on port 4011.
    ClassOnly,
    /// Option 60, and an option 43 with a menu of one entry that is taken at
    /// once; its boot server is asked on port 4011.
    Menu,
}

/// What is promised to a MAC. Build it with `..Default::default()`: more is
/// going to be promised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promise {
    /// Fixed address.
    pub address: Option<Ipv4Addr>,
    /// Option 12.
    pub host_name: Option<String>,
    /// Option 203, the iSCSI initiator's name; sent to iPXE only.
    pub initiator_name: Option<String>,
    /// Option 17 (RFC 4173: `iscsi:...`); sent to iPXE only.
    pub root_path: Option<String>,
    /// Whether it is one of the site's machines: it gets its address even
    /// while strangers flood the network with requests.
    pub is_known: bool,
    /// Further options, above those of its subnet; these go before what we
    /// would say ourselves.
    pub options: Vec<option::Setting>,
}

/// What the server saw or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// A client asked (DISCOVER).
    Asked(Client),
    /// A client that was offered something asks a boot server for the rest (a
    /// REQUEST to port 4011, or one with a boot item).
    BootServerAsked(Client),
    /// It was offered an address or, by the proxy, boot information.
    Offered {
        /// Who.
        client: Client,
        /// The address, unless the offer was a proxy's.
        address: Option<Ipv4Addr>,
        /// What it was told to boot.
        boot: Option<Boot>,
    },
    /// An address was acknowledged (by us or, seen in observe and proxy mode,
    /// learned from the client's REQUEST to another server or to port 4011).
    Bound {
        /// Who.
        client: Client,
        /// Its address.
        address: Ipv4Addr,
    },
    /// Another DHCP server answered on this LAN. Said once a minute at most
    /// for each.
    ForeignServer {
        /// Its address.
        server: Ipv4Addr,
    },
    /// A UUID changed under a MAC (a shared dock?).
    UuidChanged {
        /// Who.
        mac: Mac,
    },
    /// A client says that somebody else already has the address it was lent
    /// (DECLINE); the address rests for a while.
    Declined {
        /// Who.
        mac: Mac,
        /// The address.
        address: Ipv4Addr,
    },
    /// The pool is used up.
    PoolExhausted {
        /// Who asked in vain.
        mac: Mac,
    },
    /// Somebody answers on an address that it was not lent: the address rests
    /// for a while, and its offer is withdrawn.
    Conflict {
        /// The address.
        address: Ipv4Addr,
        /// Who answers, where that could be seen.
        holder: Option<Mac>,
        /// To whom it had been offered or, a moment ago, lent.
        offered_to: Option<Mac>,
    },
    /// A machine unknown to the site got no address: behind its port of a
    /// relay such machines hold as many as they may
    /// ([`PORT_ADDRESSES_MAX`](lease::PORT_ADDRESSES_MAX)), or what is left of
    /// the pool is for machines of the site
    /// ([`POOL_RESERVE_DIVISOR`](lease::POOL_RESERVE_DIVISOR)).
    PortLimit {
        /// Who asked in vain.
        mac: Mac,
        /// The relay, or our own address where it came by none.
        relay: Ipv4Addr,
    },
    /// A packet that could not be read was dropped. Said once a second at
    /// most; [`Counters`](server::Counters) has them all.
    Malformed {
        /// Why, for people to read.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_read_in_its_three_spellings_and_shown_with_colons() {
        let mac = Mac([0x52, 0x54, 0x00, 0xab, 0xcd, 0xef]);
        for text in ["52:54:00:ab:cd:ef", "52-54-00-AB-CD-EF", "525400abcdef"] {
            assert_eq!(text.parse(), Ok(mac), "{text}");
        }
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:ef");
    }

    #[test]
    fn what_is_no_mac_is_refused() {
        for text in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:ef:00",
            "52:54:00-ab:cd:ef",
            "52.54.00.ab.cd.ef",
            "5254:00ab:cd:ef0",
            "::::::::::::52:54",
            "g2:54:00:ab:cd:ef",
            "+2:54:00:ab:cd:ef",
            "ääääää",
            "52:54:00:ab:cd:é",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    #[test]
    fn firmware_is_shown_for_people() {
        assert_eq!(Firmware::UefiPxe(Arch::X64).to_string(), "UEFI PXE (x64)");
        assert_eq!(Firmware::Ipxe(None).to_string(), "iPXE (BIOS)");
        assert_eq!(
            Firmware::Other(12).to_string(),
            "network boot, architecture 12"
        );
    }
}
