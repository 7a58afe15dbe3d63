//! The network interfaces of this machine (getifaddrs(3), sysfs).
//!
//! `unsafe` stands here because the C library hands out a linked list.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use crate::Mac;

/// A network interface of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Whether it is up and has a carrier.
    pub is_up: bool,
    /// What it is.
    pub kind: InterfaceKind,
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// Its IPv4 addresses with their masks.
    pub addresses: Vec<(Ipv4Addr, Ipv4Addr)>,
}

/// What an interface is, for the question which one can be meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InterfaceKind {
    /// A network card with a cable, or what a virtual machine or a container
    /// has in its place.
    Wired,
    /// A wireless card.
    Wireless,
    /// The loopback interface.
    Loopback,
    /// A bridge somebody made for a LAN (`br0`).
    Bridge,
    /// Made by a container or VM program for itself (`docker0`, `virbr0`,
    /// `veth...`), or a tunnel.
    Internal,
    /// A VLAN, a bond or the like on top of another interface.
    Stacked,
}

/// How the names of interfaces begin that programs make for themselves.
const INTERNAL_NAMES: [&str; 25] = [
    "docker",
    "virbr",
    "veth",
    "vnet",
    "tap",
    "tun",
    "wg",
    "tailscale",
    "zt",
    "lxcbr",
    "lxdbr",
    "incusbr",
    "podman",
    "cni",
    "cali",
    "flannel",
    "cilium",
    "kube",
    "dummy",
    "ifb",
    "sit",
    "gre",
    "ip6",
    "vmnet",
    "vboxnet",
];

/// The network interfaces of this machine, by name.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let mut found: BTreeMap<String, Interface> = BTreeMap::new();
    let mut first = std::ptr::null_mut();
    // SAFETY: getifaddrs writes a pointer to a list it allocates, or fails.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut next = first;
    // SAFETY: `next` is null or an entry of the list, which lives until
    // freeifaddrs below.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        // SAFETY: the name of an entry is a C string of the list.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) }
            .to_string_lossy()
            .into_owned();
        let has = |flag: libc::c_int| {
            libc::c_int::try_from(entry.ifa_flags).is_ok_and(|flags| flags & flag != 0)
        };
        let interface = found.entry(name.clone()).or_insert_with(|| Interface {
            kind: kind(&name, has(libc::IFF_LOOPBACK)),
            is_up: has(libc::IFF_UP) && has(libc::IFF_RUNNING),
            name,
            mac: None,
            addresses: Vec::new(),
        });
        // SAFETY: as getifaddrs(3) says, `ifa_addr` and `ifa_netmask` are
        // null or point to a socket address of the list.
        unsafe {
            if let (Some(address), Some(mask)) = (ipv4(entry.ifa_addr), ipv4(entry.ifa_netmask)) {
                interface.addresses.push((address, mask));
            }
            interface.mac = interface.mac.or(ethernet(entry.ifa_addr));
        }
    }
    // SAFETY: the list came from getifaddrs; nothing borrowed from it is left.
    unsafe { libc::freeifaddrs(first) };
    Ok(found.into_values().collect())
}

/// # Safety
/// `address` is null or points to a socket address as large as its family
/// asks for.
unsafe fn ipv4(address: *const libc::sockaddr) -> Option<Ipv4Addr> {
    // SAFETY: the caller's promise.
    let family = unsafe { address.as_ref() }?.sa_family;
    if i32::from(family) != libc::AF_INET {
        return None;
    }
    // SAFETY: the family says which structure it is; read unaligned, for
    // nothing says how it is aligned.
    let address = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
    Some(Ipv4Addr::from_bits(u32::from_be(address.sin_addr.s_addr)))
}

/// # Safety
/// As of [`ipv4`].
unsafe fn ethernet(address: *const libc::sockaddr) -> Option<Mac> {
    // SAFETY: the caller's promise.
    let family = unsafe { address.as_ref() }?.sa_family;
    if i32::from(family) != libc::AF_PACKET {
        return None;
    }
    // SAFETY: as in `ipv4`.
    let address = unsafe { address.cast::<libc::sockaddr_ll>().read_unaligned() };
    let mac = Mac(*address.sll_addr.first_chunk()?);
    (address.sll_hatype == libc::ARPHRD_ETHER && address.sll_halen == 6).then_some(mac)
}

fn kind(name: &str, is_loopback: bool) -> InterfaceKind {
    let sysfs = Path::new("/sys/class/net").join(name);
    let has = |file: &str| sysfs.join(file).exists();
    let is_stacked = std::fs::read_to_string(sysfs.join("uevent")).is_ok_and(|text| {
        ["vlan", "bond", "team", "macvlan"]
            .iter()
            .any(|kind| text.contains(&format!("DEVTYPE={kind}\n")))
    });
    if is_loopback {
        InterfaceKind::Loopback
    } else if has("wireless") || has("phy80211") {
        InterfaceKind::Wireless
    } else if has("device") {
        InterfaceKind::Wired
    } else if is_internal(name) {
        InterfaceKind::Internal
    } else if has("bridge") {
        InterfaceKind::Bridge
    } else if is_stacked {
        InterfaceKind::Stacked
    } else {
        InterfaceKind::Wired
    }
}

/// By name; Docker's further bridges are `br-` and 12 hexadecimal digits.
fn is_internal(name: &str) -> bool {
    let is_docker_bridge = name
        .strip_prefix("br-")
        .is_some_and(|rest| rest.len() == 12 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
    is_docker_bridge || INTERNAL_NAMES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_listed_with_its_address() {
        let all = interfaces().unwrap();
        let loopback = all
            .iter()
            .find(|interface| interface.kind == InterfaceKind::Loopback)
            .unwrap();
        assert_eq!(loopback.name, "lo");
        assert_eq!(loopback.mac, None);
        if loopback.is_up {
            assert!(
                loopback
                    .addresses
                    .contains(&(Ipv4Addr::LOCALHOST, Ipv4Addr::new(255, 0, 0, 0)))
            );
        }
    }

    #[test]
    fn interfaces_of_container_programs_are_internal() {
        for name in ["docker0", "br-0123456789ab", "veth1a2b", "virbr0", "tun0"] {
            assert!(is_internal(name), "{name}");
        }
        for name in ["br0", "br-lan", "eth0", "enp3s0"] {
            assert!(!is_internal(name), "{name}");
        }
    }
}
