//! DHCP and PXE server: RFC 2131, RFC 2132, RFC 4578, PXE 2.1.
//!
//! `wire` turns bytes into messages, `client` reads who asks, `lease` lends
//! addresses, `answer` decides (request + leases + policy + now -> reply),
//! `server` owns the sockets. What a client boots is asked through
//! [`Policy`].

use std::net::Ipv4Addr;
use std::time::SystemTime;

/// What the server asks its site.
pub trait Policy: Send + Sync + 'static {
    /// What this client boots, with `server` the address it sees us under;
    /// `None`: nothing from us (it still gets an address in `full` mode).
    fn boot(&self, client: &Client, server: Ipv4Addr) -> Option<Boot>;

    /// What is promised to this MAC: a fixed address, a host name.
    fn promise(&self, mac: Mac) -> Promise;

    /// Whether a live iSCSI session uses this address (its lease is renewed,
    /// and the address is never lent to another MAC).
    fn is_in_use(&self, address: Ipv4Addr) -> bool;

    /// Something happened that the site may want to remember.
    fn observe(&self, observation: &Observation);
}

/// Where leases are kept so that they survive a restart.
pub trait LeaseStore: Send + Sync + 'static {
    /// All leases kept, expired ones included.
    fn load(&self) -> Result<Vec<Lease>, String>;
    /// Keeps one lease, in place of an earlier one of the same MAC.
    fn save(&self, lease: &Lease) -> Result<(), String>;
    /// Forgets the lease of a MAC.
    fn remove(&self, mac: Mac) -> Result<(), String>;
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

/// An address lent to a MAC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Whose; leases are keyed by MAC, whatever option 61 says.
    pub mac: Mac,
    /// The address.
    pub address: Ipv4Addr,
    /// When it ends.
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
    /// Option 97, unless it is all zeros or all ones.
    pub uuid: Option<[u8; 16]>,
    /// What runs there.
    pub firmware: Firmware,
    /// Option 60 as sent, for people to read.
    pub vendor_class: Option<String>,
    /// Option 12 as sent.
    pub host_name: Option<String>,
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
    /// Not booting from the network: an operating system.
    System,
    /// Boots from the network, of an architecture we do not serve; the number
    /// is option 93's.
    Other(u16),
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

/// What is promised to a MAC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promise {
    /// Fixed address.
    pub address: Option<Ipv4Addr>,
    /// Option 12.
    pub host_name: Option<String>,
}

/// What the server saw or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// A client asked (DISCOVER, or a REQUEST to port 4011).
    Asked(Client),
    /// It was offered an address or, by the proxy, boot information.
    Offered {
        /// Who.
        client: Client,
        /// The address, unless the offer was a proxy's.
        address: Option<Ipv4Addr>,
        /// What it was told to boot.
        boot: Option<Boot>,
    },
    /// An address was acknowledged (by us or, seen in proxy mode, learned
    /// from option 50 of the client's REQUEST to another server).
    Bound {
        /// Who.
        client: Client,
        /// Its address.
        address: Ipv4Addr,
    },
    /// Another DHCP server answered on this LAN.
    ForeignServer {
        /// Its address.
        server: Ipv4Addr,
    },
    /// A UUID changed under a MAC (a shared dock?).
    UuidChanged {
        /// Who.
        mac: Mac,
    },
    /// The pool is used up.
    PoolExhausted {
        /// Who asked in vain.
        mac: Mac,
    },
    /// A packet that could not be read was dropped.
    Malformed {
        /// Why, for people to read.
        reason: String,
    },
}
