//! Which process holds a port that we need (proc_net_tcp(5), proc_pid_fd(5)).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::path::Path;

use super::{Door, Finding, Transport};

/// `st` of a TCP socket that listens.
const TCP_LISTEN: &str = "0A";

/// Tries every door on this machine.
pub(super) fn look(doors: &[Door]) -> Vec<Finding> {
    doors
        .iter()
        .filter_map(|door| look_at(door, Path::new("/proc")))
        .collect()
}

fn look_at(door: &Door, proc: &Path) -> Option<Finding> {
    let is_dhcp = door.key.is_empty();
    // The DHCP server binds to its interface: a plain attempt would collide
    // with a server that is bound to another one, and say nothing.
    if !is_dhcp && !is_taken(door) {
        return None;
    }
    let inodes = inodes(door, proc);
    match holders(&inodes, proc).first() {
        Some(holder) => Some(judge(door, holder)),
        None if is_dhcp && inodes.is_empty() => None,
        None => Some(Finding::error(
            format!("{door} is taken by a process that cannot be seen from here"),
            "run diskless check as root to see which",
        )),
    }
}

fn is_taken(door: &Door) -> bool {
    let address = SocketAddrV4::new(door.address, door.port);
    let error = match door.transport {
        Transport::Udp => UdpSocket::bind(address).err(),
        Transport::Tcp => TcpListener::bind(address).err(),
    };
    error.is_some_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// A process with a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holder {
    pid: u32,
    /// Its short name.
    name: String,
    /// Its arguments, joined by blanks.
    command: String,
}

fn judge(door: &Door, holder: &Holder) -> Finding {
    let Holder { pid, name, command } = holder;
    let what = format!("{door} is held by {name} (pid {pid})");
    let is_dhcp = door.key.is_empty();
    // Programs that bring a DHCP server for a network of their own, which
    // they bind to its bridge: no collision.
    let private = [
        "libvirt",
        "lxc",
        "lxd",
        "incus",
        "networkmanager",
        "podman",
        "aardvark",
    ];
    let of = private
        .iter()
        .find(|program| command.to_ascii_lowercase().contains(*program));
    if name == "diskless" {
        return Finding::error(
            what,
            "diskless runs already: see `diskless status`, or stop it first",
        );
    }
    if let (true, Some(program)) = (is_dhcp, of) {
        return Finding::warning(
            format!("{what}, which belongs to {program}"),
            "nothing, as long as it serves only a bridge of its own and not the machines' LAN",
        );
    }
    let what_to_do = match (name.as_str(), is_dhcp) {
        ("dnsmasq", true) => {
            "stop it (systemctl disable --now dnsmasq), or take its DHCP away (no-dhcp-interface= in its configuration); \
             if it is the LAN's DHCP server and must stay, run diskless with dhcp.mode = \"proxy\" on another machine"
                .to_owned()
        }
        (_, true) => {
            "stop it; or, if it is the LAN's DHCP server and must stay, run diskless with dhcp.mode = \"proxy\" on another machine"
                .to_owned()
        }
        ("dnsmasq", false) => "take `enable-tftp` out of its configuration, or set tftp.enabled = false".to_owned(),
        ("in.tftpd" | "tftpd" | "atftpd" | "inetd" | "xinetd", false) => {
            "stop that TFTP server, or set tftp.enabled = false".to_owned()
        }
        (_, false) if door.key == "tftp.port" => {
            "stop it, or set tftp.enabled = false: firmware knows no other port".to_owned()
        }
        ("tgtd" | "iscsi_tgt" | "istgt", false) => {
            format!("stop it, or choose another port with {}", door.key)
        }
        ("systemd", false) => format!("a socket unit holds it: systemctl list-sockets; or choose another port with {}", door.key),
        _ => format!("stop it, or choose another port with {}", door.key),
    };
    Finding::error(what, what_to_do)
}

/// The sockets that hold `door`'s port on its address or on all.
fn inodes(door: &Door, proc: &Path) -> Vec<u64> {
    let files = match door.transport {
        Transport::Udp => ["net/udp", "net/udp6"],
        Transport::Tcp => ["net/tcp", "net/tcp6"],
    };
    let mut inodes = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(proc.join(file)).unwrap_or_default();
        inodes.extend(inodes_of(&text, door));
    }
    inodes
}

/// The processes that have one of these sockets open.
fn holders(inodes: &[u64], proc: &Path) -> Vec<Holder> {
    let mut holders: Vec<Holder> = Vec::new();
    if inodes.is_empty() {
        return holders;
    }
    let links: Vec<String> = inodes
        .iter()
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let Ok(entries) = std::fs::read_dir(proc) else {
        return holders;
    };
    for entry in entries.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let Ok(files) = std::fs::read_dir(entry.path().join("fd")) else {
            continue;
        };
        let holds = files.flatten().any(|file| {
            std::fs::read_link(file.path()).is_ok_and(|target| {
                target
                    .to_str()
                    .is_some_and(|target| links.iter().any(|link| link == target))
            })
        });
        if holds {
            let text = |file: &str| {
                let bytes = std::fs::read(entry.path().join(file)).unwrap_or_default();
                String::from_utf8_lossy(&bytes)
                    .replace('\0', " ")
                    .trim()
                    .to_owned()
            };
            holders.push(Holder {
                pid,
                name: text("comm"),
                command: text("cmdline"),
            });
        }
    }
    // A socket handed on by systemd is held by it, too: the other one is meant.
    holders.sort_by_key(|holder| (holder.pid == 1, holder.pid));
    holders
}

/// The inodes of the sockets in a table that are in the way of `door`.
fn inodes_of(table: &str, door: &Door) -> Vec<u64> {
    let inode = |line: &str| -> Option<u64> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (address, port) = fields.get(1)?.split_once(':')?;
        if u16::from_str_radix(port, 16).ok()? != door.port {
            return None;
        }
        if door.transport == Transport::Tcp && *fields.get(3)? != TCP_LISTEN {
            return None;
        }
        let address = parse_address(address)?;
        // On its interface the DHCP server listens to all addresses.
        let is_in_the_way =
            address.is_unspecified() || address == door.address || door.key.is_empty();
        is_in_the_way.then(|| fields.get(9)?.parse().ok())?
    };
    table.lines().skip(1).filter_map(inode).collect()
}

/// An address as these tables write it: each 32 bits of the address in
/// network order, printed as a number of this machine. `None`: an IPv6
/// address that no IPv4 packet reaches.
fn parse_address(hex: &str) -> Option<Ipv4Addr> {
    let words: Option<Vec<u32>> = hex
        .as_bytes()
        .chunks(8)
        .map(|word| {
            u32::from_str_radix(std::str::from_utf8(word).ok()?, 16)
                .ok()
                .map(u32::from_be)
        })
        .collect();
    match words?.as_slice() {
        [word] => Some(Ipv4Addr::from(*word)),
        &[a, b, c, d] => {
            let bits = [a, b, c, d]
                .iter()
                .fold(0, |bits, &word| bits << 32 | u128::from(word));
            let address = Ipv6Addr::from_bits(bits);
            if address.is_unspecified() {
                Some(Ipv4Addr::UNSPECIFIED)
            } else {
                address.to_ipv4_mapped()
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n";

    fn door(transport: Transport, port: u16, key: &'static str) -> Door {
        Door {
            name: "test",
            transport,
            address: Ipv4Addr::new(192, 168, 1, 10),
            port,
            key,
        }
    }

    fn holder(name: &str, command: &str) -> Holder {
        Holder {
            pid: 812,
            name: name.to_owned(),
            command: command.to_owned(),
        }
    }

    #[test]
    fn addresses_of_the_tables_are_read() {
        let native = |address: Ipv4Addr| format!("{:08X}", u32::from_ne_bytes(address.octets()));
        assert_eq!(
            parse_address(&native(Ipv4Addr::new(127, 0, 0, 1))),
            Some(Ipv4Addr::LOCALHOST)
        );
        assert_eq!(
            parse_address("00000000000000000000000000000000"),
            Some(Ipv4Addr::UNSPECIFIED)
        );
        let mapped = format!(
            "0000000000000000{}{}",
            if cfg!(target_endian = "little") {
                "FFFF0000"
            } else {
                "0000FFFF"
            },
            native(Ipv4Addr::LOCALHOST)
        );
        assert_eq!(parse_address(&mapped), Some(Ipv4Addr::LOCALHOST));
        assert_eq!(
            parse_address("00000000000000000000000001000000"),
            None,
            "::1"
        );
        assert_eq!(parse_address("xyz"), None);
    }

    /// Lines of a Debian 12 with libvirt, `dnsmasq` on one address, and a web
    /// server.
    #[test]
    fn sockets_in_the_way_are_told_from_others() {
        let udp = HEAD.to_owned()
            + "  101: 00000000:0045 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1001 2 0000000000000000 0\n"
            + "  102: 017AA8C0:0045 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1002 2 0000000000000000 0\n"
            + "  103: 0A01A8C0:0045 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1003 2 0000000000000000 0\n"
            + "  104: 00000000:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1004 2 0000000000000000 0\n";
        assert_eq!(
            inodes_of(&udp, &door(Transport::Udp, 69, "tftp.port")),
            [1001, 1003]
        );
        let tcp = HEAD.to_owned()
            + "   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2001 1 0000000000000000 100 0 0 10 0\n"
            + "   1: 0A01A8C0:0050 0B01A8C0:D431 01 00000000:00000000 00:00000000 00000000     0        0 2002 1 0000000000000000 100 0 0 10 0\n";
        assert_eq!(
            inodes_of(&tcp, &door(Transport::Tcp, 80, "http.port")),
            [2001],
            "a connection is in nobody's way"
        );
    }

    #[test]
    fn torn_lines_are_skipped() {
        let table = HEAD.to_owned() + "garbage\n\n 1: zz:zz 0 0\n 2: 00000000:0045\n";
        assert_eq!(
            inodes_of(&table, &door(Transport::Udp, 69, "tftp.port")),
            [] as [u64; 0]
        );
    }

    #[test]
    fn a_process_is_found_by_its_socket() {
        let proc = tempfile::tempdir().unwrap();
        let root = proc.path();
        std::fs::create_dir_all(root.join("net")).unwrap();
        std::fs::create_dir_all(root.join("812/fd")).unwrap();
        std::fs::create_dir_all(root.join("1/fd")).unwrap();
        let line = "  101: 00000000:0043 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4242 2 0 0\n";
        std::fs::write(root.join("net/udp"), HEAD.to_owned() + line).unwrap();
        for pid in ["1", "812"] {
            std::os::unix::fs::symlink("socket:[4242]", root.join(pid).join("fd/4")).unwrap();
        }
        std::fs::write(root.join("812/comm"), "dnsmasq\n").unwrap();
        std::fs::write(root.join("812/cmdline"), "/usr/sbin/dnsmasq\0-k\0").unwrap();
        let door = Door {
            name: "DHCP",
            ..door(Transport::Udp, 67, "")
        };
        assert_eq!(
            holders(&inodes(&door, root), root)[0],
            holder("dnsmasq", "/usr/sbin/dnsmasq -k")
        );
        let finding = look_at(&door, root).unwrap();
        assert_eq!(
            finding.what,
            "port 67/udp (DHCP) is held by dnsmasq (pid 812)"
        );
        assert!(
            finding.what_to_do.contains("dhcp.mode = \"proxy\""),
            "{finding}"
        );
    }

    #[test]
    fn a_holder_that_may_not_be_seen_is_still_an_error() {
        let proc = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(proc.path().join("net")).unwrap();
        let door = door(Transport::Udp, 67, "");
        assert_eq!(look_at(&door, proc.path()), None);
        let line = "  101: 00000000:0043 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4242 2 0 0\n";
        std::fs::write(proc.path().join("net/udp"), HEAD.to_owned() + line).unwrap();
        let finding = look_at(&door, proc.path()).unwrap();
        assert!(finding.what_to_do.contains("as root"), "{finding}");
    }

    #[test]
    fn libvirts_dnsmasq_is_no_error() {
        let holder = holder(
            "dnsmasq",
            "/usr/sbin/dnsmasq --conf-file=/var/lib/libvirt/dnsmasq/default.conf",
        );
        let finding = judge(&door(Transport::Udp, 67, ""), &holder);
        assert_eq!(finding.severity, super::super::Severity::Warning);
        assert!(finding.what.contains("libvirt"), "{finding}");
    }

    #[test]
    fn another_diskless_is_called_by_its_name() {
        let finding = judge(
            &door(Transport::Tcp, 3260, "iscsi.port"),
            &holder("diskless", "diskless serve"),
        );
        assert!(finding.what_to_do.contains("diskless status"), "{finding}");
    }

    #[test]
    fn a_port_with_a_key_can_be_moved() {
        let finding = judge(
            &door(Transport::Tcp, 80, "http.port"),
            &holder("nginx", "nginx: master process"),
        );
        assert!(finding.what_to_do.contains("http.port"), "{finding}");
    }

    /// The real thing: this very process holds the port.
    #[test]
    fn a_port_held_by_this_process_is_found_and_named() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let ports = [
            (Transport::Tcp, tcp.local_addr().unwrap().port()),
            (Transport::Udp, udp.local_addr().unwrap().port()),
        ];
        for (transport, port) in ports {
            let door = Door {
                name: "test",
                transport,
                address: Ipv4Addr::LOCALHOST,
                port,
                key: "http.port",
            };
            let findings = look(&[door]);
            let pid = std::process::id();
            assert_eq!(findings.len(), 1);
            assert!(
                findings[0].what.contains(&format!("(pid {pid})")),
                "{findings:?}"
            );
        }
    }

    #[test]
    fn a_free_port_is_nothing_to_speak_of() {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let door = Door {
            name: "test",
            transport: Transport::Tcp,
            address: Ipv4Addr::LOCALHOST,
            port,
            key: "http.port",
        };
        assert_eq!(look(&[door]), []);
    }
}
