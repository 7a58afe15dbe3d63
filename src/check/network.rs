//! Which interface is meant.

use std::net::Ipv4Addr;

use dhcp::{Interface, InterfaceKind};

use super::{Finding, Served};
use crate::config::Network;

/// The interface and address to serve: the one that was named, or the only
/// one that can be meant. Nothing is guessed: a DHCP server on the wrong LAN
/// is somebody else's bad day.
pub(super) fn choose(network: &Network, interfaces: &[Interface]) -> Result<Served, Finding> {
    let interface = match &network.interface {
        Some(name) => named(name, interfaces)?,
        None => only(network, interfaces)?,
    };
    let name = &interface.name;
    let (address, netmask) = match (network.address, interface.addresses.as_slice()) {
        (_, []) => {
            return Err(Finding::error(
                format!("interface {name} has no IPv4 address"),
                format!(
                    "give it one that no DHCP server lends, as in: ip addr add 192.168.77.1/24 dev {name}"
                ),
            ));
        }
        (None, [one]) => *one,
        (None, several) => {
            return Err(Finding::error(
                format!(
                    "interface {name} has several IPv4 addresses: {}",
                    list(several)
                ),
                "choose one of them with network.address",
            ));
        }
        (Some(wished), several) => *several
            .iter()
            .find(|(address, _)| *address == wished)
            .ok_or_else(|| {
                Finding::error(
                    format!(
                        "interface {name} has no address {wished}, but {}",
                        list(several)
                    ),
                    "correct network.address, or leave it out",
                )
            })?,
    };
    Ok(Served {
        interface: name.clone(),
        address,
        netmask,
    })
}

/// All interfaces to serve: those that were named, or the only one.
pub(super) fn choose_all(
    network: &Network,
    interfaces: &[Interface],
) -> Result<Vec<Served>, Finding> {
    if network.interfaces.is_empty() {
        return choose(network, interfaces).map(|one| vec![one]);
    }
    let mut chosen: Vec<Served> = Vec::new();
    for wished in &network.interfaces {
        let address: Option<Ipv4Addr> = wished.parse().ok();
        let holder = interfaces.iter().find(|interface| {
            let mut addresses = interface.addresses.iter();
            addresses.any(|(own, _)| Some(*own) == address)
        });
        let wish = Network {
            interface: Some(holder.map_or_else(|| wished.clone(), |held| held.name.clone())),
            interfaces: Vec::new(),
            address: holder.and(address),
        };
        let served = choose(&wish, interfaces)?;
        let is_same = |other: &&Served| {
            let mask = other.netmask & served.netmask;
            other.address & mask == served.address & mask
        };
        if let Some(other) = chosen.iter().find(is_same) {
            return Err(Finding::error(
                format!(
                    "{} of {} and {} of {} are in one network",
                    other.address, other.interface, served.address, served.interface
                ),
                "serve a network by one interface: take one of them out of network.interfaces",
            ));
        }
        chosen.push(served);
    }
    Ok(chosen)
}

/// What may be wrong with the interface chosen.
pub(super) fn judge(chosen: &Served, interfaces: &[Interface]) -> Vec<Finding> {
    let Some(interface) = interfaces
        .iter()
        .find(|interface| interface.name == chosen.interface)
    else {
        return Vec::new();
    };
    let name = &interface.name;
    let mut findings = Vec::new();
    if !interface.is_up {
        findings.push(Finding::warning(
            format!("interface {name} is down or has no carrier"),
            format!("plug in the cable; ip link set {name} up"),
        ));
    }
    match interface.kind {
        InterfaceKind::Wireless => findings.push(Finding::warning(
            format!("interface {name} is wireless: firmware does not boot over Wi-Fi, and access points often filter DHCP"),
            "serve a wired interface",
        )),
        InterfaceKind::Loopback => findings.push(Finding::warning(
            format!("interface {name} is the loopback: no other machine is there"),
            "name the interface of the machines' LAN in network.interface",
        )),
        InterfaceKind::Wired | InterfaceKind::Bridge | InterfaceKind::Internal | InterfaceKind::Stacked => {}
    }
    findings
}

fn named<'a>(name: &str, interfaces: &'a [Interface]) -> Result<&'a Interface, Finding> {
    interfaces
        .iter()
        .find(|interface| interface.name == name)
        .ok_or_else(|| {
            let near = interfaces
                .iter()
                .map(|interface| interface.name.as_str())
                .find(|other| strsim::levenshtein(other, name) <= 1)
                .map_or_else(String::new, |near| format!("; did you mean {near}?"));
            Finding::error(
                format!("there is no interface {name}{near}"),
                format!(
                    "set network.interface to one of those there are:\n{}",
                    table(interfaces)
                ),
            )
        })
}

fn only<'a>(network: &Network, interfaces: &'a [Interface]) -> Result<&'a Interface, Finding> {
    let fits = |interface: &&Interface| {
        let is_lan = matches!(
            interface.kind,
            InterfaceKind::Wired | InterfaceKind::Bridge | InterfaceKind::Stacked
        );
        let has_address = match network.address {
            Some(wished) => interface
                .addresses
                .iter()
                .any(|(address, _)| *address == wished),
            None => !interface.addresses.is_empty(),
        };
        is_lan && interface.is_up && has_address
    };
    let candidates: Vec<&Interface> = interfaces.iter().filter(fits).collect();
    match candidates.as_slice() {
        [one] => Ok(one),
        [] => Err(Finding::error(
            "there is no wired interface that is up and has an IPv4 address",
            format!(
                "name the interface of the machines' LAN in network.interface; there are:\n{}",
                table(interfaces)
            ),
        )),
        several => {
            let names: Vec<&str> = several
                .iter()
                .map(|interface| interface.name.as_str())
                .collect();
            Err(Finding::error(
                format!("more than one interface can be meant: {}", names.join(", ")),
                format!(
                    "name the one of the machines' LAN in network.interface; there are:\n{}",
                    table(interfaces)
                ),
            ))
        }
    }
}

fn list(addresses: &[(Ipv4Addr, Ipv4Addr)]) -> String {
    if addresses.is_empty() {
        return "no IPv4 address".to_owned();
    }
    let texts: Vec<String> = addresses
        .iter()
        .map(|(address, mask)| format!("{address}/{}", mask.to_bits().count_ones()))
        .collect();
    texts.join(", ")
}

fn table(interfaces: &[Interface]) -> String {
    let line = |interface: &Interface| {
        let kind = match interface.kind {
            InterfaceKind::Wired => "wired",
            InterfaceKind::Wireless => "wireless",
            InterfaceKind::Loopback => "loopback",
            InterfaceKind::Bridge => "bridge",
            InterfaceKind::Internal => "of containers or virtual machines",
            InterfaceKind::Stacked => "VLAN or bond",
        };
        let down = if interface.is_up { "" } else { ", down" };
        format!(
            "{} ({kind}{down}): {}",
            interface.name,
            list(&interface.addresses)
        )
    };
    interfaces.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);

    fn interface(name: &str, kind: InterfaceKind, addresses: &[[u8; 4]]) -> Interface {
        let addresses = addresses
            .iter()
            .map(|&address| (Ipv4Addr::from(address), MASK))
            .collect();
        Interface {
            name: name.to_owned(),
            is_up: true,
            kind,
            mac: None,
            addresses,
        }
    }

    fn usual() -> Vec<Interface> {
        vec![
            interface("docker0", InterfaceKind::Internal, &[[172, 17, 0, 1]]),
            interface("eth0", InterfaceKind::Wired, &[[192, 168, 1, 10]]),
            interface("lo", InterfaceKind::Loopback, &[[127, 0, 0, 1]]),
            interface("wlan0", InterfaceKind::Wireless, &[[192, 168, 2, 10]]),
        ]
    }

    fn wish(interface: Option<&str>, address: Option<[u8; 4]>) -> Network {
        Network {
            interface: interface.map(str::to_owned),
            interfaces: Vec::new(),
            address: address.map(Ipv4Addr::from),
        }
    }

    #[test]
    fn the_only_wired_interface_is_meant() {
        let chosen = choose(&wish(None, None), &usual()).unwrap();
        assert_eq!(
            (chosen.interface.as_str(), chosen.address),
            ("eth0", Ipv4Addr::new(192, 168, 1, 10))
        );
        assert_eq!(chosen.netmask, MASK);
    }

    #[test]
    fn two_that_can_be_meant_are_not_guessed_between() {
        let mut interfaces = usual();
        interfaces.push(interface("eth1", InterfaceKind::Wired, &[[10, 0, 0, 1]]));
        let finding = choose(&wish(None, None), &interfaces).unwrap_err();
        assert_eq!(
            finding.what,
            "more than one interface can be meant: eth0, eth1"
        );
        assert!(
            finding.what_to_do.contains("eth1 (wired): 10.0.0.1/24"),
            "{finding}"
        );
        let chosen = choose(&wish(None, Some([10, 0, 0, 1])), &interfaces).unwrap();
        assert_eq!(chosen.interface, "eth1", "its address says which");
    }

    #[test]
    fn an_interface_that_is_down_or_bare_is_not_meant() {
        let mut interfaces = usual();
        interfaces.push(interface("eth1", InterfaceKind::Wired, &[]));
        interfaces.push(Interface {
            is_up: false,
            ..interface("eth2", InterfaceKind::Wired, &[[10, 0, 0, 1]])
        });
        assert_eq!(
            choose(&wish(None, None), &interfaces).unwrap().interface,
            "eth0"
        );
    }

    #[test]
    fn without_a_wired_one_all_are_listed() {
        let interfaces = [interface(
            "wlan0",
            InterfaceKind::Wireless,
            &[[192, 168, 2, 10]],
        )];
        let finding = choose(&wish(None, None), &interfaces).unwrap_err();
        assert!(
            finding
                .what_to_do
                .contains("wlan0 (wireless): 192.168.2.10/24"),
            "{finding}"
        );
    }

    #[test]
    fn a_name_that_is_not_there_lists_those_that_are() {
        let finding = choose(&wish(Some("eth3"), None), &usual()).unwrap_err();
        assert_eq!(
            finding.what,
            "there is no interface eth3; did you mean eth0?"
        );
        assert!(
            finding
                .what_to_do
                .contains("docker0 (of containers or virtual machines): 172.17.0.1/24"),
            "{finding}"
        );
    }

    #[test]
    fn whatever_is_named_is_taken() {
        let chosen = choose(&wish(Some("docker0"), None), &usual()).unwrap();
        assert_eq!(chosen.address, Ipv4Addr::new(172, 17, 0, 1));
    }

    #[test]
    fn a_named_interface_without_an_address_is_an_error() {
        let interfaces = [interface("eth0", InterfaceKind::Wired, &[])];
        let finding = choose(&wish(Some("eth0"), None), &interfaces).unwrap_err();
        assert_eq!(finding.what, "interface eth0 has no IPv4 address");
    }

    #[test]
    fn of_several_addresses_one_must_be_named() {
        let interfaces = [interface(
            "eth0",
            InterfaceKind::Wired,
            &[[10, 0, 0, 1], [10, 1, 0, 1]],
        )];
        let finding = choose(&wish(Some("eth0"), None), &interfaces).unwrap_err();
        assert!(
            finding.what.contains("10.0.0.1/24, 10.1.0.1/24"),
            "{finding}"
        );
        let chosen = choose(&wish(Some("eth0"), Some([10, 1, 0, 1])), &interfaces).unwrap();
        assert_eq!(chosen.address, Ipv4Addr::new(10, 1, 0, 1));
        assert!(choose(&wish(Some("eth0"), Some([10, 2, 0, 1])), &interfaces).is_err());
    }

    #[test]
    fn several_are_named_by_name_or_by_address_and_never_twice_in_one_network() {
        let mut interfaces = usual();
        let vlans: [[u8; 4]; 2] = [[10, 20, 0, 1], [10, 21, 0, 1]];
        interfaces.push(interface("eth1.20", InterfaceKind::Stacked, &vlans));
        interfaces.push(interface(
            "eth2",
            InterfaceKind::Wired,
            &[[192, 168, 1, 11]],
        ));
        let choose_all = |names: &[&str]| {
            let interfaces_given = names.iter().map(|name| (*name).to_owned()).collect();
            let network = Network {
                interface: None,
                interfaces: interfaces_given,
                address: None,
            };
            choose_all(&network, &interfaces)
        };
        let chosen = choose_all(&["eth0", "10.21.0.1"]).unwrap();
        let names: Vec<_> = chosen
            .iter()
            .map(|served| served.interface.as_str())
            .collect();
        assert_eq!(names, ["eth0", "eth1.20"]);
        assert_eq!(chosen[1].address, Ipv4Addr::new(10, 21, 0, 1));
        assert!(choose_all(&["eth1.20"]).is_err(), "which of its addresses?");
        let finding = choose_all(&["eth0", "eth2"]).unwrap_err();
        assert!(finding.what.ends_with("are in one network"), "{finding}");
    }

    #[test]
    fn a_chosen_interface_that_is_down_is_a_warning() {
        let interfaces = [Interface {
            is_up: false,
            ..interface("eth0", InterfaceKind::Wired, &[[10, 0, 0, 1]])
        }];
        let chosen = choose(&wish(Some("eth0"), None), &interfaces).unwrap();
        let findings = judge(&chosen, &interfaces);
        assert!(findings[0].what.contains("is down"), "{findings:?}");
    }

    #[test]
    fn serving_wireless_is_a_warning_and_wired_is_not() {
        let interfaces = usual();
        let judged = |name| {
            judge(
                &choose(&wish(Some(name), None), &interfaces).unwrap(),
                &interfaces,
            )
            .len()
        };
        assert_eq!((judged("wlan0"), judged("eth0")), (1, 0));
    }
}
