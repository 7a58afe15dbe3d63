//! Whether what machines are told of their network fits the network.

use std::net::Ipv4Addr;

use super::{Finding, Served};
use crate::config::{Dhcp, DhcpMode};

/// Compares `[dhcp]` with the interface served. `addresses` is what
/// `ip -4 -o addr show` says of it; empty when nobody knows.
pub(super) fn judge(dhcp: &Dhcp, chosen: &Served, addresses: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if dhcp.mode != DhcpMode::Full {
        if !dhcp.pool.is_empty() {
            findings.push(Finding::note(
                "dhcp.pool is set, but addresses are lent in full mode only",
                "set dhcp.mode = \"full\" where there is no other DHCP server, or take dhcp.pool out",
            ));
        }
        return findings;
    }
    let subnet = Subnet {
        address: chosen.address,
        mask: chosen.netmask,
    };
    if dhcp.pool.is_empty() {
        findings.push(Finding::warning(
            "dhcp.mode is \"full\" and dhcp.pool is empty: only machines with a fixed address get one",
            format!("set dhcp.pool, as in {}", subnet.suggestion()),
        ));
    }
    let lan = format!("the network of {}", chosen.interface);
    findings.extend(judge_ranges(
        (&dhcp.pool, "dhcp.pool"),
        (dhcp.router, "dhcp.router"),
        (&subnet, &lan),
        Some(chosen.address),
    ));
    if is_dynamic(addresses, chosen.address) {
        findings.push(Finding::warning(
            format!(
                "dhcp.mode is \"full\" and {} has its own address {} from a DHCP server: there is another one on this LAN",
                chosen.interface, chosen.address
            ),
            "set dhcp.mode = \"proxy\" to work beside it; or turn that server off and give this interface a fixed address",
        ));
    }
    findings
}

/// Compares ranges and a router, each with the name of its key, with the
/// network they are for.
fn judge_ranges(
    (pool, pool_key): (&[(Ipv4Addr, Ipv4Addr)], &str),
    (router, router_key): (Option<Ipv4Addr>, &str),
    (subnet, lan): (&Subnet, &str),
    own: Option<Ipv4Addr>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for &(first, last) in pool {
        let range = format!("the range {first}-{last} of {pool_key}");
        let holds = |address: Ipv4Addr| first <= address && address <= last;
        if !subnet.holds(first) || !subnet.holds(last) {
            findings.push(Finding::error(
                format!("{range} is not inside {subnet}, {lan}"),
                format!(
                    "choose a range of that network, as in {}",
                    subnet.suggestion()
                ),
            ));
            continue;
        }
        if let Some(own) = own.filter(|&own| holds(own)) {
            findings.push(Finding::error(
                format!("{range} holds this server's own address {own}"),
                format!("leave that address out of {pool_key}; two ranges do it"),
            ));
        }
        if subnet.mask.to_bits().count_ones() <= 30
            && (holds(subnet.network()) || holds(subnet.broadcast()))
        {
            findings.push(Finding::error(
                format!("{range} holds the network's own address or its broadcast address"),
                format!("leave {} and {} out", subnet.network(), subnet.broadcast()),
            ));
        }
        if let Some(router) = router.filter(|&router| holds(router) && own != Some(router)) {
            findings.push(Finding::error(
                format!("{range} holds the router {router}"),
                format!("leave that address out of {pool_key}; two ranges do it"),
            ));
        }
    }
    if let Some(router) = router.filter(|&router| !subnet.holds(router)) {
        findings.push(Finding::warning(
            format!("{router_key} {router} is not inside {subnet}: machines cannot reach it"),
            "name the router's address on the machines' LAN",
        ));
    }
    findings
}

/// What of `[dhcp]` and its networks is nowhere: a range of no interface's
/// network, a network that neither an interface nor a relay is in; and what
/// does not fit a network behind a relay.
pub(super) fn strays(dhcp: &Dhcp, chosen: &[Served]) -> Vec<Finding> {
    let is_served = |network: Ipv4Addr, mask: Ipv4Addr| {
        let mut own = chosen.iter();
        own.any(|one| one.netmask == mask && one.address & mask == network)
    };
    let mut findings = Vec::new();
    for subnet in &dhcp.subnets {
        let Some((network, mask)) = subnet.network else {
            continue;
        };
        let width = mask.to_bits().count_ones();
        match (is_served(network, mask), subnet.relayed) {
            (false, false) => findings.push(Finding::error(
                format!("no interface that is served has an address in {network}/{width}"),
                "name its interface in network.interfaces; or set relayed = true in its [[dhcp.subnet]] where a relay brings its requests",
            )),
            (true, true) => findings.push(Finding::error(
                format!("{network}/{width} is the network of an interface that is served, and its [[dhcp.subnet]] says relayed = true"),
                "take relayed = true out",
            )),
            (false, true) if dhcp.mode == DhcpMode::Full => {
                let behind = Subnet {
                    address: network,
                    mask,
                };
                if subnet.pool.is_empty() {
                    findings.push(Finding::warning(
                        format!("the [[dhcp.subnet]] of {behind} has no pool: only machines with a fixed address get one"),
                        format!("set its pool, as in {}", behind.suggestion()),
                    ));
                }
                findings.extend(judge_ranges(
                    (&subnet.pool, "its [[dhcp.subnet]]"),
                    (subnet.router, "the router"),
                    (&behind, "a network behind a relay"),
                    None,
                ));
            }
            _ => {}
        }
    }
    for (first, last) in dhcp.pool.iter().filter(|_| chosen.len() > 1) {
        let holds = |one: &Served| first & one.netmask == one.address & one.netmask;
        if !chosen.iter().any(holds) {
            findings.push(Finding::error(
                format!("the range {first}-{last} of dhcp.pool is in no network that is served"),
                "choose a range of one of them",
            ));
        }
    }
    findings
}

/// Whether `ip -4 -o addr show` calls the address dynamic (it ends some day).
fn is_dynamic(addresses: &str, address: Ipv4Addr) -> bool {
    let start = format!("{address}/");
    addresses.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.any(|word| word == "inet")
            && words.next().is_some_and(|word| word.starts_with(&start))
            && words.any(|word| word == "dynamic")
    })
}

/// A network, by an address in it.
struct Subnet {
    address: Ipv4Addr,
    mask: Ipv4Addr,
}

impl Subnet {
    fn network(&self) -> Ipv4Addr {
        self.address & self.mask
    }

    fn broadcast(&self) -> Ipv4Addr {
        self.address | !self.mask
    }

    fn holds(&self, address: Ipv4Addr) -> bool {
        address & self.mask == self.network()
    }

    /// The upper half of the network, as a value for `dhcp.pool`, without our
    /// own address if that is possible in one range.
    fn suggestion(&self) -> String {
        let (network, broadcast) = (self.network().to_bits(), self.broadcast().to_bits());
        let own = self.address.to_bits();
        let middle = (network + (broadcast - network) / 2).saturating_add(1);
        let last = broadcast.saturating_sub(1);
        let (first, last) = if own < middle || own > last {
            (middle, last)
        } else if last - own >= own - middle {
            (own + 1, last)
        } else {
            (middle, own - 1)
        };
        if first > last {
            return "[] (the network is too small)".to_owned();
        }
        format!("[\"{}-{}\"]", Ipv4Addr::from(first), Ipv4Addr::from(last))
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.network(), self.mask.to_bits().count_ones())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, SubnetConfig};

    const fn lan(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 1, last)
    }

    fn chosen() -> Served {
        Served {
            interface: "eth1".to_owned(),
            address: lan(10),
            netmask: Ipv4Addr::new(255, 255, 255, 0),
        }
    }

    fn full(pool: &[(Ipv4Addr, Ipv4Addr)]) -> Dhcp {
        Dhcp {
            mode: DhcpMode::Full,
            pool: pool.to_vec(),
            ..Config::default().dhcp
        }
    }

    /// What is said, joined; empty when all is well.
    fn said(dhcp: &Dhcp) -> String {
        judge(dhcp, &chosen(), "")
            .iter()
            .map(Finding::to_string)
            .collect()
    }

    #[test]
    fn a_pool_inside_the_network_is_well() {
        assert_eq!(said(&full(&[(lan(100), lan(200))])), "");
    }

    #[test]
    fn a_pool_of_another_network_is_an_error() {
        let other = Ipv4Addr::new(192, 168, 2, 100);
        assert!(said(&full(&[(other, other)])).contains("not inside 192.168.1.0/24"));
        assert!(said(&full(&[(lan(100), other)])).contains("not inside 192.168.1.0/24"));
    }

    #[test]
    fn a_pool_with_an_address_that_is_taken_is_an_error() {
        assert!(said(&full(&[(lan(5), lan(20))])).contains("own address 192.168.1.10"));
        assert!(said(&full(&[(lan(200), lan(255))])).contains("broadcast"));
        let dhcp = Dhcp {
            router: Some(lan(150)),
            ..full(&[(lan(100), lan(200))])
        };
        assert!(said(&dhcp).contains("the router 192.168.1.150"));
    }

    #[test]
    fn a_network_behind_a_relay_is_looked_at_too() {
        let far = |last| Ipv4Addr::new(10, 20, 0, last);
        let said = |pool: &[(Ipv4Addr, Ipv4Addr)]| -> String {
            let subnet = SubnetConfig {
                network: Some((far(0), Ipv4Addr::new(255, 255, 255, 0))),
                relayed: true,
                pool: pool.to_vec(),
                router: Some(far(1)),
                ..SubnetConfig::default()
            };
            let dhcp = Dhcp {
                subnets: vec![subnet],
                ..full(&[(lan(100), lan(200))])
            };
            let findings = strays(&dhcp, &[chosen()]);
            findings.iter().map(Finding::to_string).collect()
        };
        assert_eq!(said(&[(far(10), far(99))]), "");
        assert!(said(&[(lan(10), lan(20))]).contains("not inside 10.20.0.0/24"));
        assert!(said(&[(far(1), far(20))]).contains("the router 10.20.0.1"));
        assert!(said(&[]).contains("has no pool"));
    }

    #[test]
    fn a_router_nobody_can_reach_is_a_warning() {
        let dhcp = Dhcp {
            router: Some(Ipv4Addr::new(10, 0, 0, 1)),
            ..full(&[(lan(100), lan(200))])
        };
        assert!(said(&dhcp).starts_with("warning: dhcp.router 10.0.0.1"));
    }

    #[test]
    fn full_without_a_pool_suggests_one_that_fits() {
        assert!(said(&full(&[])).contains("[\"192.168.1.128-192.168.1.254\"]"));
        let small = Served {
            address: lan(200),
            ..chosen()
        };
        let findings = judge(&full(&[]), &small, "");
        assert!(
            findings[0]
                .what_to_do
                .contains("[\"192.168.1.128-192.168.1.199\"]"),
            "{findings:?}"
        );
    }

    #[test]
    fn a_network_of_two_addresses_makes_nobody_panic() {
        for bits in [30, 31, 32] {
            let netmask = Ipv4Addr::from(u32::MAX << (32 - bits));
            judge(
                &full(&[]),
                &Served {
                    netmask,
                    ..chosen()
                },
                "",
            );
        }
        judge(
            &full(&[]),
            &Served {
                netmask: Ipv4Addr::UNSPECIFIED,
                ..chosen()
            },
            "",
        );
        let last = Ipv4Addr::BROADCAST;
        judge(
            &full(&[]),
            &Served {
                netmask: last,
                address: last,
                interface: String::new(),
            },
            "",
        );
    }

    #[test]
    fn a_pool_without_full_mode_is_only_noted() {
        let dhcp = Dhcp {
            mode: DhcpMode::Proxy,
            ..full(&[(lan(100), lan(200))])
        };
        assert!(said(&dhcp).starts_with("note: dhcp.pool"));
    }

    #[test]
    fn an_address_from_another_dhcp_server_is_seen() {
        let addresses = "2: eth1    inet 192.168.1.10/24 brd 192.168.1.255 scope global dynamic eth1\\       valid_lft 2000sec preferred_lft 2000sec\n\
                         2: eth1    inet 192.168.1.11/24 brd 192.168.1.255 scope global secondary eth1\\       valid_lft forever preferred_lft forever\n";
        assert!(is_dynamic(addresses, lan(10)));
        assert!(!is_dynamic(addresses, lan(11)));
        assert!(!is_dynamic(addresses, lan(1)));
        let findings = judge(&full(&[(lan(100), lan(200))]), &chosen(), addresses);
        assert!(
            findings[0].what.contains("another one on this LAN"),
            "{findings:?}"
        );
    }
}
