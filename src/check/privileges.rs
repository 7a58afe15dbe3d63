//! Whether this process may open what it needs (capabilities(7)).

use super::{Door, Finding};

/// Bits of `CapEff`.
const CAP_NET_BIND_SERVICE: u32 = 10;
const CAP_NET_RAW: u32 = 13;

/// The first port anybody may open, where the kernel does not say.
const UNPRIVILEGED_PORTS: u16 = 1024;

/// Looks at this process.
pub(super) fn look(doors: &[Door]) -> Vec<Finding> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let first = first
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(UNPRIVILEGED_PORTS);
    judge(doors, &status, first)
}

fn judge(doors: &[Door], status: &str, first_unprivileged: u16) -> Vec<Finding> {
    let Some(capabilities) = effective(status) else {
        return Vec::new();
    };
    let has = |bit: u32| capabilities >> bit & 1 == 1;
    let mut lacks = Vec::new();
    let low: Vec<String> = doors
        .iter()
        .filter(|door| door.port < first_unprivileged)
        .map(|door| door.port.to_string())
        .collect();
    if !low.is_empty() && !has(CAP_NET_BIND_SERVICE) {
        lacks.push((
            "CAP_NET_BIND_SERVICE",
            format!("open the ports {}", low.join(", ")),
        ));
    }
    // Every mode listens to raw packets: observing hears them all, and a
    // client without an address is answered by them.
    if !has(CAP_NET_RAW) {
        lacks.push(("CAP_NET_RAW", "hear and answer DHCP".to_owned()));
    }
    lacks
        .into_iter()
        .map(|(capability, purpose)| {
            Finding::error(
                format!("this user may not {purpose} ({capability} is missing)"),
                "run it as root, or as the service that the package installs, which has just these rights",
            )
        })
        .collect()
}

fn effective(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::Transport;
    use super::*;

    fn findings(capabilities: &str, port: u16, first: u16) -> Vec<Finding> {
        let door = Door {
            name: "HTTP",
            transport: Transport::Tcp,
            address: Ipv4Addr::LOCALHOST,
            port,
            key: "http.port",
        };
        let status =
            format!("Name:\tdiskless\nCapPrm:\t0000000000000000\nCapEff:\t{capabilities}\n");
        judge(&[door], &status, first)
    }

    #[test]
    fn root_lacks_nothing() {
        assert_eq!(findings("000001ffffffffff", 80, 1024), []);
    }

    #[test]
    fn a_plain_user_is_told_both_rights() {
        let findings = findings("0000000000000000", 80, 1024);
        assert!(
            findings[0].what.contains("open the ports 80"),
            "{findings:?}"
        );
        assert!(findings[1].what.contains("CAP_NET_RAW"), "{findings:?}");
    }

    #[test]
    fn two_rights_are_enough() {
        assert_eq!(findings("0000000000002400", 80, 1024), []);
    }

    #[test]
    fn high_ports_and_kernels_that_let_anybody_need_one_less() {
        assert_eq!(findings("0000000000002000", 8080, 1024), []);
        assert_eq!(findings("0000000000002000", 80, 0), []);
    }
}
