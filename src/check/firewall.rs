//! Whether a firewall here is likely to drop what machines send.
//!
//! A best effort: rules are read as text, and a door counts as open when some
//! accepting rule may be meant for it. Silence is not a promise.

use super::{Door, Finding, Transport, output};

/// Asks the firewalls there are, the friendliest first: one that manages the
/// kernel's rules is the one to talk to.
pub(super) fn look(doors: &[Door], interface: &str) -> Option<Finding> {
    if let Some(status) = output("ufw", &["status"])
        && status.contains("Status: active")
    {
        return of_ufw(&status, doors, interface);
    }
    if output("firewall-cmd", &["--state"]).is_some_and(|state| state.trim() == "running") {
        let zone = output(
            "firewall-cmd",
            &[&format!("--get-zone-of-interface={interface}")],
        )
        .or_else(|| output("firewall-cmd", &["--get-default-zone"]))?;
        let zone = zone.trim();
        let listing = output("firewall-cmd", &[&format!("--zone={zone}"), "--list-all"])?;
        return of_firewalld(&listing, zone, doors);
    }
    let nft =
        output("nft", &["list", "ruleset"]).and_then(|rules| of_nft(&rules, doors, interface));
    nft.or_else(|| of_iptables(&output("iptables", &["-S"])?, doors, interface))
}

/// From `ufw status`.
fn of_ufw(status: &str, doors: &[Door], interface: &str) -> Option<Finding> {
    let allows = |door: &Door| {
        status.lines().any(|line| {
            let Some((to, _)) = line.split_once("ALLOW") else {
                return false;
            };
            let (target, on) = match to.split_once(" on ") {
                Some((target, on)) => (target.trim(), on.trim()),
                None => (to.trim(), interface),
            };
            let (ports, transport) = target
                .split_once('/')
                .unwrap_or((target, door.transport.word()));
            on == interface
                && transport == door.transport.word()
                && (ports == "Anywhere" || names(ports, door))
        })
    };
    let commands = |transport: Transport, ports: &str| {
        format!(
            "ufw allow in on {interface} to any port {ports} proto {}",
            transport.word()
        )
    };
    closed(doors, allows).map(|closed| {
        finding(
            "ufw",
            &closed,
            &per_transport(&closed, ",", commands).join("\n"),
        )
    })
}

/// From `firewall-cmd --list-all`.
fn of_firewalld(listing: &str, zone: &str, doors: &[Door]) -> Option<Finding> {
    let words = |key: &str| {
        let line = listing
            .lines()
            .find_map(|line| line.trim().strip_prefix(key));
        line.unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let (ports, services, target) = (words("ports:"), words("services:"), words("target:"));
    let allows = |door: &Door| {
        target.iter().any(|target| target == "ACCEPT")
            || services
                .iter()
                .any(|service| service_name(door) == Some(service.as_str()))
            || ports.iter().any(|port| {
                port.split_once('/').is_some_and(|(ports, transport)| {
                    transport == door.transport.word() && names(ports, door)
                })
            })
    };
    closed(doors, allows).map(|closed| {
        let ports: Vec<String> = closed
            .iter()
            .map(|door| format!("--add-port={}/{}", door.port, door.transport.word()))
            .collect();
        let command = format!(
            "firewall-cmd --permanent --zone={zone} {} && firewall-cmd --reload",
            ports.join(" ")
        );
        finding(&format!("firewalld (zone {zone})"), &closed, &command)
    })
}

/// From `nft list ruleset`. Only chains that are hooked into `input` and drop
/// what nobody accepts can close a door; a rule that accepts it may stand in
/// any chain of the same table, for they jump to each other.
fn of_nft(rules: &str, doors: &[Door], interface: &str) -> Option<Finding> {
    let mut tables: Vec<Vec<&str>> = Vec::new();
    for line in rules.lines() {
        if line.starts_with("table ") {
            tables.push(Vec::new());
        }
        if let Some(table) = tables.last_mut() {
            table.push(line.trim());
        }
    }
    let mut shut: Vec<Door> = Vec::new();
    for table in tables.iter().filter(|table| drops_input(table)) {
        let allows = |door: &Door| table.iter().any(|rule| nft_accepts(rule, door, interface));
        for door in closed(doors, allows).unwrap_or_default() {
            if !shut.contains(&door) {
                shut.push(door);
            }
        }
    }
    if shut.is_empty() {
        return None;
    }
    let rule = |transport: Transport, ports: &str| {
        format!(
            "iifname \"{interface}\" {} dport {{ {ports} }} accept",
            transport.word()
        )
    };
    let rules = per_transport(&shut, ", ", rule).join("\n");
    Some(finding(
        "nftables",
        &shut,
        &format!("add to the input chain (often in /etc/nftables.conf):\n{rules}"),
    ))
}

/// Whether a chain hooked into `input` drops or rejects by policy, or by a
/// last rule without a condition.
fn drops_input(table: &[&str]) -> bool {
    let mut inside = false;
    for line in table {
        if line.starts_with("chain ") {
            inside = false;
        }
        if line.contains("hook input") {
            inside = true;
            if line.contains("policy drop") {
                return true;
            }
        }
        let bare = line.trim_start_matches("counter ").trim_start();
        let bare = bare.strip_prefix("packets").map_or(bare, |rest| {
            rest.find("drop")
                .or_else(|| rest.find("reject"))
                .map_or(rest, |at| &rest[at..])
        });
        if inside && (bare == "drop" || bare.starts_with("reject")) {
            return true;
        }
    }
    false
}

fn nft_accepts(rule: &str, door: &Door, interface: &str) -> bool {
    if !rule.contains("accept")
        || rule.contains("hook ")
        || rule.contains("ct state") && !rule.contains("dport")
    {
        return false;
    }
    let of_other_interface = ["iifname", "iif"].iter().any(|key| {
        let named = rule
            .split_whitespace()
            .skip_while(|word| word != key)
            .nth(1);
        named.is_some_and(|name| {
            !name.starts_with('{')
                && !name.starts_with('@')
                && !is_name_of(name.trim_matches('"'), interface)
        })
    });
    if of_other_interface {
        return false;
    }
    match rule.split_once("dport") {
        Some((before, ports)) => {
            let transport = before.split_whitespace().last().unwrap_or_default();
            let fits = transport == door.transport.word() || transport == "th";
            let ports = ports.split("accept").next().unwrap_or_default();
            // A set or a map by name: what is in it is not looked up.
            fits && (ports.contains('@') || names(ports, door))
        }
        // Without a port: everything from that interface, or from anywhere.
        None => {
            let condition = rule.split("accept").next().unwrap_or_default();
            let narrows = [
                "icmp", "ip saddr", "ip daddr", "ip6", "sport", "ct ", "meta", "protocol", "mark",
            ];
            !narrows.iter().any(|word| condition.contains(word))
        }
    }
}

/// From `iptables -S`.
fn of_iptables(rules: &str, doors: &[Door], interface: &str) -> Option<Finding> {
    let drops = rules.lines().any(|line| {
        line == "-P INPUT DROP"
            || line == "-A INPUT -j DROP"
            || line.starts_with("-A INPUT -j REJECT")
    });
    if !drops {
        return None;
    }
    let accepts = |rule: &str, door: &Door| {
        let word_after = |flag: &str| {
            rule.split_whitespace()
                .skip_while(|&word| word != flag)
                .nth(1)
        };
        if !rule.ends_with("-j ACCEPT")
            || rule.starts_with("-A FORWARD")
            || rule.starts_with("-A OUTPUT")
        {
            return false;
        }
        if word_after("-i").is_some_and(|name| !is_name_of(name, interface)) {
            return false;
        }
        if word_after("-p").is_some_and(|transport| transport != door.transport.word()) {
            return false;
        }
        match word_after("--dport").or_else(|| word_after("--dports")) {
            Some(ports) => names(ports, door),
            None => ![
                "-s ",
                "-d ",
                "-m conntrack",
                "-m state",
                "-m icmp",
                "--sport",
                "-m mark",
            ]
            .iter()
            .any(|word| rule.contains(word)),
        }
    };
    let allows = |door: &Door| rules.lines().any(|rule| accepts(rule, door));
    let commands = |transport: Transport, ports: &str| {
        let transport = transport.word();
        format!(
            "iptables -I INPUT -i {interface} -p {transport} -m multiport --dports {ports} -j ACCEPT"
        )
    };
    closed(doors, allows).map(|closed| {
        finding(
            "iptables",
            &closed,
            &per_transport(&closed, ",", commands).join("\n"),
        )
    })
}

/// Whether an interface pattern (`eth*` in nftables, `eth+` in iptables) is
/// for this interface.
fn is_name_of(pattern: &str, interface: &str) -> bool {
    match pattern.strip_suffix(['*', '+']) {
        Some(prefix) => interface.starts_with(prefix),
        None => pattern == interface,
    }
}

/// Whether a list of ports, ranges and service names holds the door's port.
fn names(ports: &str, door: &Door) -> bool {
    ports.split([',', '{', '}', ' ', '\t']).any(|part| {
        let (first, last) = part.split_once(['-', ':']).unwrap_or((part, part));
        match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&door.port),
            _ => {
                !part.is_empty()
                    && service_names(door).contains(&part.to_ascii_lowercase().as_str())
            }
        }
    })
}

/// What `/etc/services` and rulesets call these ports.
fn service_names(door: &Door) -> &'static [&'static str] {
    match door.port {
        67 => &["bootps", "dhcps", "dhcp"],
        69 => &["tftp"],
        80 => &["http", "www", "www-http"],
        3260 => &["iscsi-target", "iscsi"],
        4011 => &["altserviceboot", "pxe", "proxy-dhcp"],
        _ => &[],
    }
}

/// firewalld's own name for a service on its usual port.
fn service_name(door: &Door) -> Option<&'static str> {
    match door.port {
        67 => Some("dhcp"),
        69 => Some("tftp"),
        80 => Some("http"),
        3260 => Some("iscsi-target"),
        4011 => Some("proxy-dhcp"),
        _ => None,
    }
}

fn closed(doors: &[Door], allows: impl Fn(&Door) -> bool) -> Option<Vec<Door>> {
    let closed: Vec<Door> = doors.iter().filter(|door| !allows(door)).copied().collect();
    (!closed.is_empty()).then_some(closed)
}

fn per_transport(
    doors: &[Door],
    separator: &str,
    line: impl Fn(Transport, &str) -> String,
) -> Vec<String> {
    [Transport::Udp, Transport::Tcp]
        .into_iter()
        .filter_map(|transport| {
            let ports: Vec<String> = doors
                .iter()
                .filter(|door| door.transport == transport)
                .map(|door| door.port.to_string())
                .collect();
            (!ports.is_empty()).then(|| line(transport, &ports.join(separator)))
        })
        .collect()
}

fn finding(firewall: &str, closed: &[Door], what_to_do: &str) -> Finding {
    let names: Vec<String> = closed.iter().map(Door::to_string).collect();
    Finding::warning(
        format!(
            "{firewall} is likely to drop what machines send to {}",
            names.join(", ")
        ),
        what_to_do,
    )
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn doors() -> Vec<Door> {
        let door = |transport, port| Door {
            name: "test",
            transport,
            address: Ipv4Addr::LOCALHOST,
            port,
            key: "",
        };
        let udp = [67, 4011, 69].map(|port| door(Transport::Udp, port));
        let tcp = [80, 3260].map(|port| door(Transport::Tcp, port));
        [udp.as_slice(), &tcp].concat()
    }

    /// The ports a finding speaks of.
    fn ports(finding: Option<Finding>) -> Vec<u16> {
        let what = finding.map_or_else(String::new, |finding| finding.what);
        what.split("port ")
            .skip(1)
            .map(|rest| rest.split('/').next().unwrap().parse().unwrap())
            .collect()
    }

    // Debian's own example of a workstation, nftables(8).
    const NFT: &str = r#"table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		iif "lo" accept
		ip protocol icmp accept
		tcp dport { 22, 80, 443 } accept
		iifname "eth1" udp dport { 67, 69 } counter packets 5 bytes 300 accept
		iifname "eth9" udp dport 4011 accept
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
	}
}
"#;

    #[test]
    fn nftables_that_drop_by_policy_are_read() {
        let finding = of_nft(NFT, &doors(), "eth1").unwrap();
        assert!(
            finding
                .what_to_do
                .contains("iifname \"eth1\" udp dport { 4011 } accept"),
            "{finding}"
        );
        assert!(
            finding
                .what_to_do
                .contains("iifname \"eth1\" tcp dport { 3260 } accept"),
            "{finding}"
        );
        assert_eq!(ports(Some(finding)), [4011, 3260]);
        assert_eq!(ports(of_nft(NFT, &doors(), "eth2")), [67, 4011, 69, 3260]);
    }

    #[test]
    fn nftables_without_a_dropping_input_chain_are_quiet() {
        assert_eq!(
            of_nft(
                &NFT.replacen("policy drop", "policy accept", 1),
                &doors(),
                "eth1"
            ),
            None
        );
        assert_eq!(of_nft("", &doors(), "eth1"), None);
    }

    #[test]
    fn a_last_rule_that_rejects_is_as_good_as_a_policy() {
        for last in [
            "drop",
            "reject with icmpx admin-prohibited",
            "counter packets 1 bytes 2 drop",
        ] {
            let rules = format!(
                "table ip filter {{\n\tchain INPUT {{\n\t\ttype filter hook input priority 0; policy accept;\n\t\ttcp dport ssh accept\n\t\t{last}\n\t}}\n}}\n"
            );
            assert_eq!(ports(of_nft(&rules, &doors(), "eth1")).len(), 5, "{last}");
        }
    }

    #[test]
    fn a_rule_that_lets_a_whole_interface_in_opens_every_door() {
        for rule in [
            "iifname \"eth1\" accept",
            "iifname \"eth*\" counter packets 1 bytes 1 accept",
            "iif \"eth1\" accept",
        ] {
            let rules = NFT.replace("iif \"lo\" accept", rule);
            assert_eq!(of_nft(&rules, &doors(), "eth1"), None, "{rule}");
        }
    }

    #[test]
    fn names_and_ranges_of_ports_are_understood() {
        let rules = NFT
            .replace("{ 22, 80, 443 }", "{ http, iscsi-target }")
            .replace("{ 67, 69 }", "{ bootps, tftp, 4000-4100 }");
        assert_eq!(of_nft(&rules, &doors(), "eth1"), None);
    }

    const IPTABLES: &str = "-P INPUT DROP\n-P FORWARD DROP\n-P OUTPUT ACCEPT\n\
        -A INPUT -i lo -j ACCEPT\n\
        -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
        -A INPUT -p tcp -m tcp --dport 80 -j ACCEPT\n\
        -A INPUT -i eth1 -p udp -m multiport --dports 67,69 -j ACCEPT\n\
        -A FORWARD -p tcp -m tcp --dport 3260 -j ACCEPT\n";

    #[test]
    fn iptables_that_drop_are_read() {
        assert_eq!(ports(of_iptables(IPTABLES, &doors(), "eth1")), [4011, 3260]);
        assert_eq!(
            ports(of_iptables(IPTABLES, &doors(), "eth2")),
            [67, 4011, 69, 3260]
        );
        let whole = IPTABLES.to_owned() + "-A INPUT -i eth+ -j ACCEPT\n";
        assert_eq!(of_iptables(&whole, &doors(), "eth1"), None);
    }

    #[test]
    fn iptables_that_accept_by_policy_are_quiet() {
        let open = IPTABLES.replace("-P INPUT DROP", "-P INPUT ACCEPT");
        assert_eq!(of_iptables(&open, &doors(), "eth1"), None);
        let closed = open + "-A INPUT -j REJECT --reject-with icmp-host-prohibited\n";
        assert_eq!(ports(of_iptables(&closed, &doors(), "eth1")), [4011, 3260]);
    }

    #[test]
    fn ufw_is_read_and_told_what_to_type() {
        let status = "Status: active\n\nTo                         Action      From\n--                         ------      ----\n\
            22/tcp                     ALLOW       Anywhere\n\
            80                         ALLOW       Anywhere\n\
            67,69/udp on eth1          ALLOW       Anywhere\n\
            4011/udp on eth2           ALLOW       Anywhere\n\
            3260/tcp                   DENY        Anywhere\n";
        let finding = of_ufw(status, &doors(), "eth1").unwrap();
        let commands = "ufw allow in on eth1 to any port 4011 proto udp\nufw allow in on eth1 to any port 3260 proto tcp";
        assert_eq!(finding.what_to_do, commands);
        assert_eq!(ports(Some(finding)), [4011, 3260]);
        let open = status.to_owned() + "Anywhere on eth1           ALLOW       Anywhere\n";
        assert_eq!(of_ufw(&open, &doors(), "eth1"), None);
    }

    #[test]
    fn firewalld_is_read_and_told_what_to_type() {
        let listing = "public (active)\n  target: default\n  interfaces: eth1\n  services: dhcpv6-client ssh tftp http\n  ports: 60-70/udp 3260/udp\n";
        let finding = of_firewalld(listing, "public", &doors()).unwrap();
        assert!(
            finding.what_to_do.starts_with(
                "firewall-cmd --permanent --zone=public --add-port=4011/udp --add-port=3260/tcp &&"
            ),
            "{finding}"
        );
        assert_eq!(ports(Some(finding)), [4011, 3260]);
        assert_eq!(
            of_firewalld("trusted (active)\n  target: ACCEPT\n", "trusted", &doors()),
            None
        );
    }
}
