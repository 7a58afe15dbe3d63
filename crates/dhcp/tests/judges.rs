//! The server on a LAN of network namespaces, judged by programs that know
//! nothing of it: dhclient, busybox's udhcpc, dnsmasq, dhcrelay.
//!
//! Needs root. Without it, or without a tool, a test says so and passes; in
//! CI (`CI=true`) it fails.
//!
//! `unsafe` stands here for setns(2): each party of a LAN lives in its own
//! namespace, and no safe interface enters one.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used)] // clippy sees no test outside of #[test] functions

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dhcp::wire::{Message, MessageType, Op, code};
use dhcp::{
    Arch, Boot, Client, Firmware, InterfaceConfig, Lease, LeaseStore, Mac, Mode, Observation,
    Policy, Promise, Server, Settings, Subnet, look_for_other_servers,
};

const US: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 2);
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
const SCRIPT: &str = "http://10.66.0.1/boot.ipxe";

#[test]
fn dhclient_takes_an_address_renews_it_gives_it_back_and_gets_it_again() {
    let Some(lan) = Lan::new("dhclient", &["dhclient"]) else {
        return;
    };
    let served = lan.serve(Mode::Full, Duration::from_secs(8));
    let dhclient = Dhclient::start(&lan);
    let address = lan
        .client_address()
        .expect("dhclient configures its address");
    assert!(is_of_pool(address), "{address}");
    let is_bound = |observation: &Observation| matches!(observation, Observation::Bound { address: bound, .. } if *bound == address);
    wait_for("a renewal", || served.site.count(is_bound) >= 2);
    assert_eq!(lan.client_address(), Some(address));

    // Ended without a release, it begins with the address it remembers.
    let discovers = |observation: &Observation| matches!(observation, Observation::Asked(_));
    let before = served.site.count(discovers);
    drop(dhclient);
    let dhclient = Dhclient::start(&lan);
    assert_eq!(lan.client_address(), Some(address));
    assert_eq!(
        served.site.count(discovers),
        before,
        "INIT-REBOOT needs no DISCOVER"
    );

    dhclient.release();
    wait_for("the end of the lease", || {
        served
            .leases()
            .iter()
            .all(|lease| lease.expires <= std::time::SystemTime::now())
    });
    let again = Dhclient::start(&lan);
    assert_eq!(lan.client_address(), Some(address));
    again.release();
}

#[test]
fn udhcpc_gets_one_address_under_any_client_identifier_and_over_a_restart() {
    let Some(lan) = Lan::new("udhcpc", &["busybox"]) else {
        return;
    };
    let served = lan.serve(Mode::Full, Duration::from_secs(600));
    let address = lan.udhcpc(&[]).expect("a lease");
    assert!(is_of_pool(address), "{address}");
    for arguments in [
        &["-C"][..],
        &["-x", "0x3d:00112233445566778899aabbccddeeff00"],
        &["-B"],
        &["-r", "10.66.0.140"],
    ] {
        assert_eq!(lan.udhcpc(arguments), Some(address), "{arguments:?}");
    }
    assert_eq!(served.leases().len(), 1);

    let store = served.store.clone();
    served.stop();
    assert_eq!(lan.udhcpc(&[]), None, "stopped is stopped");
    let served = lan.serve_with(Mode::Full, Duration::from_secs(600), store);
    assert_eq!(served.leases()[0].address, address);
    assert_eq!(lan.udhcpc(&[]), Some(address));
}

#[test]
fn only_a_client_that_asks_for_broadcasts_is_answered_before_everybody() {
    let Some(lan) = Lan::new("frames", &["busybox"]) else {
        return;
    };
    let _served = lan.serve(Mode::Full, Duration::from_secs(600));
    let bystander = within(&lan.other, || firmware_socket(68)).unwrap();
    bystander.set_nonblocking(true).unwrap();
    let mut buffer = [0; 1500];
    assert!(lan.udhcpc(&[]).is_some());
    let overheard = bystander.recv(&mut buffer);
    assert_eq!(overheard.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert!(lan.udhcpc(&["-B"]).is_some());
    assert!(bystander.recv(&mut buffer).is_ok());
}

#[test]
fn the_observer_sends_nothing_holds_no_port_and_reports_both_sides() {
    let Some(lan) = Lan::new("observe", &["busybox", "dnsmasq"]) else {
        return;
    };
    let served = lan.serve(Mode::Observe, Duration::from_secs(600));
    let holder = within(&lan.us, || UdpSocket::bind("0.0.0.0:67"));
    assert!(holder.is_ok(), "port 67 is free: {holder:?}");
    let _dnsmasq = lan.dnsmasq(&lan.other, OTHER);
    let class = "PXEClient:Arch:00007:UNDI:003000";
    let address = lan.udhcpc(&["-B", "-V", class]).expect("dnsmasq's lease");
    assert!(!is_of_pool(address), "{address}");

    let is_asked = |observation: &Observation| {
        matches!(observation, Observation::Asked(client)
            if client.firmware == Firmware::UefiPxe(Arch::X64) && client.vendor_class.as_deref() == Some(class))
    };
    let is_bound = |observation: &Observation| matches!(observation, Observation::Bound { address: bound, .. } if *bound == address);
    wait_for("the client", || served.site.count(is_asked) >= 1);
    wait_for("its address", || served.site.count(is_bound) >= 1);
    let is_foreign =
        |observation: &Observation| *observation == Observation::ForeignServer { server: OTHER };
    wait_for("the other server", || served.site.count(is_foreign) == 1);
    let counters = served.server().counters();
    assert_eq!((counters.answered, counters.received), (0, 0));
    assert!(counters.heard >= 2);
}

#[test]
fn the_proxy_speaks_beside_dnsmasq_to_firmware_and_is_silent_to_systems() {
    let Some(lan) = Lan::new("proxy", &["busybox", "dnsmasq", "ip"]) else {
        return;
    };
    let served = lan.serve(Mode::Proxy, Duration::from_secs(600));
    let _dnsmasq = lan.dnsmasq(&lan.other, OTHER);

    let leased = lan.udhcpc(&[]).expect("dnsmasq's lease");
    assert!(!is_of_pool(leased));
    assert_eq!(served.server().counters().answered, 0, "silent to a system");

    let mine = Ipv4Addr::new(10, 66, 0, 250);
    ip(&[
        "-n",
        &lan.client,
        "addr",
        "add",
        "10.66.0.250/24",
        "dev",
        "eth0",
    ]);
    let socket = within(&lan.client, || firmware_socket(68)).unwrap();
    let discover = recorded("ovmf-pxe-discover");
    socket
        .send_to(&discover.emit(), (Ipv4Addr::BROADCAST, 67))
        .unwrap();
    let offers = replies(&socket, discover.xid, 2);
    let theirs = &offers[&OTHER];
    assert_ne!(theirs.yiaddr, Ipv4Addr::UNSPECIFIED);
    let ours = &offers[&US];
    assert_eq!((ours.yiaddr, ours.siaddr), (Ipv4Addr::UNSPECIFIED, US));
    assert_eq!(ours.file, b"snponly.efi");
    assert_eq!(
        ours.options.text(code::VENDOR_CLASS).as_deref(),
        Some("PXEClient")
    );

    // The second question of EDK2, from and to port 4011.
    let boot_socket = within(&lan.client, || firmware_socket(4011)).unwrap();
    let mut request = discover.clone();
    request
        .options
        .set(code::MESSAGE_TYPE, [MessageType::Request.number()]);
    (request.xid, request.ciaddr, request.flags) = (7, mine, 0);
    boot_socket.send_to(&request.emit(), (US, 4011)).unwrap();
    let acks = replies(&boot_socket, 7, 1);
    assert_eq!(acks[&US].message_type(), Some(MessageType::Ack));
    assert_eq!(acks[&US].file, b"snponly.efi");

    let ipxe = recorded("ipxe2019-bios-discover");
    socket
        .send_to(&ipxe.emit(), (Ipv4Addr::BROADCAST, 67))
        .unwrap();
    let mut buffer = [0; 1500];
    let script = loop {
        let (length, from) = socket.recv_from(&mut buffer).expect("an offer to iPXE");
        assert_eq!(from.port(), 67);
        let message = Message::parse(&buffer[..length]).unwrap();
        if message.xid == ipxe.xid && message.options.address(code::SERVER_ID) == Some(US) {
            break message.options.text(code::BOOT_FILE).unwrap();
        }
    };
    assert_eq!(script, SCRIPT);
    wait_for("the count of three", || {
        served.server().counters().answered == 3
    });
}

#[test]
fn another_server_is_found_on_a_lan_even_beside_a_running_dhclient() {
    let Some(lan) = Lan::new("probe", &["dnsmasq", "dhclient"]) else {
        return;
    };
    let timeout = Duration::from_secs(5);
    let look = |timeout| {
        within(&lan.client, || {
            block_on(look_for_other_servers("eth0", timeout)).unwrap()
        })
    };
    assert!(look(Duration::from_millis(300)).is_empty());
    let _dnsmasq = lan.dnsmasq(&lan.other, OTHER);
    assert_eq!(look(timeout), [OTHER]);
    let dhclient = Dhclient::start(&lan);
    assert_eq!(look(timeout), [OTHER]);
    dhclient.release();
    let served = lan.serve(Mode::Full, Duration::from_secs(600));
    let both = || look(timeout) == [US, OTHER];
    wait_for("both servers", both);
    let ours = within(&lan.us, || {
        block_on(look_for_other_servers("eth0", timeout)).unwrap()
    });
    assert_eq!(ours, [OTHER], "we are not another server");
    drop(served);
    let error = within(&lan.client, || {
        block_on(look_for_other_servers("eth9", timeout)).unwrap_err()
    });
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_port_that_another_program_holds_is_named_and_a_stopped_server_leaves_none_held() {
    let Some(lan) = Lan::new("taken", &["dnsmasq"]) else {
        return;
    };
    let settings = settings(Mode::Full, Duration::from_secs(600));
    let dnsmasq = lan.dnsmasq(&lan.us, US);
    let start = || {
        within(&lan.us, || {
            Server::start(
                vec![interface(US)],
                settings.clone(),
                Arc::new(Site::default()),
                Arc::new(Memory::default()),
            )
        })
    };
    let error = start().expect_err("port 67 is dnsmasq's");
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(
        error
            .to_string()
            .contains("UDP port 67 of 10.66.0.1 on eth0"),
        "{error}"
    );
    drop(dnsmasq);
    for _ in 0..2 {
        block_on(start().expect("the port is free").stop());
    }
    let server = start().unwrap();
    let error = start().expect_err("twice on one interface");
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    block_on(server.stop());

    let elsewhere = within(&lan.us, || {
        Server::start(
            vec![interface(OTHER)],
            settings.clone(),
            Arc::new(Site::default()),
            Arc::new(Memory::default()),
        )
    });
    let error = elsewhere.expect_err("not our address");
    assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable, "{error}");
}

/// The asker is Linux itself, under the address of a recorded iPXE.
#[test]
fn a_machine_seen_as_ipxe_is_told_that_no_router_is_here_and_nobody_else_is() {
    let Some(lan) = Lan::new("router", &["ip"]) else {
        return;
    };
    let _served = lan.serve(Mode::Full, Duration::from_secs(600));
    let socket = within(&lan.client, || firmware_socket(68)).unwrap();
    let ipxe = recorded("ipxe2019-bios-discover");
    socket
        .send_to(&ipxe.emit(), (Ipv4Addr::BROADCAST, 67))
        .unwrap();
    let mac = Mac(*ipxe.chaddr.first_chunk().unwrap()).to_string();
    let restart = |namespace: &str, mac: &str| {
        ip(&["-n", namespace, "link", "set", "eth0", "down"]);
        if !mac.is_empty() {
            ip(&["-n", namespace, "link", "set", "eth0", "address", mac]);
        }
        ip(&["-n", namespace, "link", "set", "eth0", "up"]);
    };
    // The stranger first: it has been left alone by the time the other was told.
    restart(&lan.other, "");
    wait_for("the stranger's question", || {
        icmp6(&lan.other, "Icmp6OutRouterSolicits") > 0
    });
    restart(&lan.client, &mac);
    wait_for("an answer to the machine", || {
        icmp6(&lan.client, "Icmp6InRouterAdvertisements") > 0
    });
    assert_eq!(icmp6(&lan.other, "Icmp6InRouterAdvertisements"), 0);
    // Linux took it for what it is.
    assert_eq!(icmp6(&lan.client, "Icmp6InErrors"), 0);
    let shows = |arguments: &[&str]| {
        let mut command = Command::new("ip");
        let shown = command.args(["-6", "-n", &lan.client]).args(arguments);
        String::from_utf8(shown.output().unwrap().stdout).unwrap()
    };
    assert_eq!(shows(&["route", "show", "default"]), "");
    assert_eq!(shows(&["addr", "show", "scope", "global"]), "");
}

/// A counter of Linux's own.
fn icmp6(namespace: &str, counter: &str) -> u64 {
    let text = within(namespace, || {
        std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap()
    });
    let mut words = text.split_ascii_whitespace();
    words.find(|word| *word == counter).expect("the counter");
    words.next().unwrap().parse().unwrap()
}

#[test]
fn malformed_packets_are_counted_told_once_and_harm_nothing() {
    let Some(lan) = Lan::new("rubbish", &["busybox", "ip"]) else {
        return;
    };
    let served = lan.serve(Mode::Full, Duration::from_secs(600));
    ip(&[
        "-n",
        &lan.client,
        "addr",
        "add",
        "10.66.0.250/24",
        "dev",
        "eth0",
    ]);
    let socket = within(&lan.client, || firmware_socket(68)).unwrap();
    for length in 0..100 {
        socket
            .send_to(&vec![1; length], (Ipv4Addr::BROADCAST, 67))
            .unwrap();
    }
    wait_for("all of them", || {
        served.server().counters().malformed == 100
    });
    let is_malformed =
        |observation: &Observation| matches!(observation, Observation::Malformed { .. });
    assert!((1..10).contains(&served.site.count(is_malformed)));
    assert!(lan.udhcpc(&[]).is_some());
}

#[test]
fn an_address_somebody_took_for_himself_is_not_lent_and_no_offer_waits_for_that() {
    let Some(lan) = Lan::new("conflict", &["busybox"]) else {
        return;
    };
    // Four of the six addresses of the pool are taken.
    for last in 102..106 {
        let address = format!("10.66.0.{last}/24");
        ip(&["-n", &lan.other, "addr", "add", &address, "dev", "eth0"]);
    }
    let mut settings = settings(Mode::Full, Duration::from_secs(600));
    let pool = (Ipv4Addr::new(10, 66, 0, 102), Ipv4Addr::new(10, 66, 0, 107));
    settings.subnets[0].ranges = vec![pool];
    let served = lan.serve_settings(settings, Arc::new(Memory::default()));
    let is_conflict = |observation: &Observation| {
        matches!(
            observation,
            Observation::Conflict {
                holder: Some(_),
                ..
            }
        )
    };
    wait_for("the four addresses taken", || {
        served.site.count(is_conflict) == 4
    });
    let address = lan.udhcpc(&[]).expect("a lease");
    assert!(address >= Ipv4Addr::new(10, 66, 0, 106), "{address}");
}

#[test]
fn behind_a_real_relay_a_client_is_lent_an_address_of_its_network() {
    let Some(lan) = Lan::new("relay", &["busybox", "dnsmasq"]) else {
        return;
    };
    // The client's second interface hangs on the relay alone.
    ip(&[
        "-n",
        &lan.other,
        "link",
        "add",
        "down0",
        "type",
        "veth",
        "peer",
        "name",
        "eth1",
        "netns",
        &lan.client,
    ]);
    ip(&[
        "-n",
        &lan.other,
        "addr",
        "add",
        "10.67.0.1/24",
        "dev",
        "down0",
    ]);
    ip(&["-n", &lan.other, "link", "set", "down0", "up"]);
    ip(&["-n", &lan.client, "link", "set", "eth1", "up"]);
    ip(&[
        "-n",
        &lan.us,
        "route",
        "add",
        "10.67.0.0/24",
        "via",
        "10.66.0.2",
    ]);
    let mut settings = settings(Mode::Full, Duration::from_secs(600));
    settings.subnets.push(Subnet {
        ranges: vec![(Ipv4Addr::new(10, 67, 0, 10), Ipv4Addr::new(10, 67, 0, 20))],
        ..Subnet::new(Ipv4Addr::new(10, 67, 0, 0), NETMASK)
    });
    let served = lan.serve_settings(settings, Arc::new(Memory::default()));
    let dnsmasq = "dnsmasq --keep-in-foreground --conf-file=/dev/null --port=0 --user=root \
        --pid-file= --dhcp-relay=10.67.0.1,10.66.0.1";
    // With option 82; not in lab/setup.sh, for its package starts a daemon.
    let dhcrelay = "dhcrelay -4 -d -a -id down0 -iu eth0 10.66.0.1";
    let is_there = |command: &&str| can_judge(&[command.split(' ').next().unwrap()]).is_ok();
    for command in [dnsmasq, dhcrelay].iter().copied().filter(is_there) {
        let mut words = command.split_whitespace();
        let mut relay = in_namespace(&lan.other, words.next().unwrap());
        relay.args(words).stderr(Stdio::null());
        let _relay = Running(relay.spawn().expect("a relay"));
        let ask = |arguments: &[&str]| lan.udhcpc_on("eth1", arguments);
        wait_for(command, || ask(&[]).is_some());
        let address = served.leases()[0].address;
        assert_eq!(address.octets()[..3], [10, 67, 0], "{command}: {address}");
        assert_eq!(ask(&["-B"]), Some(address), "{command}");
        assert_eq!(served.leases().len(), 1);
    }
}

/// How often a machine repeats itself that hears nothing.
const REPEAT: Duration = Duration::from_secs(2);

#[test]
fn a_thousand_machines_switched_on_at_once_all_get_addresses_of_their_own() {
    const MACHINES: u32 = 1000;
    let Some(lan) = Lan::new("thousand", &[]) else {
        return;
    };
    let mut settings = settings(Mode::Full, Duration::from_secs(600));
    settings.subnets[0].netmask = Ipv4Addr::new(255, 255, 0, 0);
    settings.subnets[0].ranges =
        vec![(Ipv4Addr::new(10, 66, 16, 1), Ipv4Addr::new(10, 66, 20, 255))];
    let served = lan.serve_settings(settings, Arc::new(Memory::default()));
    let socket = within(&lan.client, || firmware_socket(68)).unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 16 << 20).unwrap();
    let discover = recorded("ovmf-pxe-discover");
    let mut says: Vec<Message> = (0..MACHINES)
        .map(|number| {
            let mut message = discover.clone();
            message.xid = number;
            message.flags = 0x8000; // to hear the answers on one socket
            message.chaddr[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0]);
            message.chaddr[2..6].copy_from_slice(&number.to_be_bytes());
            message
        })
        .collect();
    let say = |message: &Message| {
        socket
            .send_to(&message.emit(), (Ipv4Addr::BROADCAST, 67))
            .unwrap();
    };
    let start = Instant::now();
    says.iter().for_each(say);
    let mut lent: HashMap<u32, Ipv4Addr> = HashMap::new();
    let mut repeated = Instant::now();
    let mut buffer = [0; 1500];
    socket.set_read_timeout(Some(REPEAT / 10)).unwrap();
    while lent.len() < says.len() {
        let waited = start.elapsed();
        assert!(
            waited < Duration::from_secs(40),
            "{} of {MACHINES}",
            lent.len()
        );
        if repeated.elapsed() > REPEAT {
            says.iter()
                .filter(|message| !lent.contains_key(&message.xid))
                .for_each(say);
            repeated = Instant::now();
        }
        let Ok((length, _)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let reply = Message::parse(&buffer[..length]).unwrap();
        let message = &mut says[reply.xid as usize];
        match reply.message_type() {
            Some(MessageType::Offer) if message.message_type() == Some(MessageType::Discover) => {
                let request = [MessageType::Request.number()];
                message.options.set(code::MESSAGE_TYPE, request);
                message.options.set(code::SERVER_ID, US.octets());
                let address = reply.yiaddr.octets();
                message.options.set(code::REQUESTED_ADDRESS, address);
                say(message);
            }
            Some(MessageType::Offer) => {}
            Some(MessageType::Ack) => drop(lent.insert(reply.xid, reply.yiaddr)),
            other => panic!("{other:?} for machine {}", reply.xid),
        }
    }
    let different: std::collections::HashSet<_> = lent.values().collect();
    assert_eq!(different.len(), says.len());
    assert_eq!(served.store.0.lock().unwrap().len(), says.len(), "kept");
    eprintln!("{MACHINES} machines in {:?}", start.elapsed());
}

// The LAN.

/// Four namespaces: a switch, and behind it us, a client and another server.
struct Lan {
    switch: String,
    us: String,
    client: String,
    other: String,
}

impl Lan {
    /// Builds it, or says why not.
    fn new(tag: &str, tools: &[&str]) -> Option<Lan> {
        if let Err(reason) = can_judge(tools) {
            let is_ci = std::env::var("CI").is_ok_and(|value| value == "true");
            assert!(!is_ci, "{tag} cannot be judged: {reason}");
            eprintln!("{tag} is not judged: {reason}");
            return None;
        }
        let name = |party: &str| format!("dhcp{}-{tag}-{party}", std::process::id());
        let lan = Lan {
            switch: name("sw"),
            us: name("us"),
            client: name("cl"),
            other: name("ot"),
        };
        for namespace in lan.namespaces() {
            ip(&["netns", "add", namespace]);
            ip(&["-n", namespace, "link", "set", "lo", "up"]);
        }
        ip(&["-n", &lan.switch, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &lan.switch, "link", "set", "br0", "up"]);
        for (port, namespace) in [("p0", &lan.us), ("p1", &lan.client), ("p2", &lan.other)] {
            ip(&[
                "-n",
                &lan.switch,
                "link",
                "add",
                port,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                namespace,
            ]);
            ip(&[
                "-n",
                &lan.switch,
                "link",
                "set",
                port,
                "master",
                "br0",
                "up",
            ]);
            ip(&["-n", namespace, "link", "set", "eth0", "up"]);
        }
        for (namespace, address) in [(&lan.us, US), (&lan.other, OTHER)] {
            ip(&[
                "-n",
                namespace,
                "addr",
                "add",
                &format!("{address}/24"),
                "dev",
                "eth0",
            ]);
        }
        Some(lan)
    }

    fn namespaces(&self) -> [&str; 4] {
        [&self.switch, &self.us, &self.client, &self.other]
    }

    fn serve(&self, mode: Mode, lease_time: Duration) -> Served {
        self.serve_with(mode, lease_time, Arc::new(Memory::default()))
    }

    fn serve_with(&self, mode: Mode, lease_time: Duration, store: Arc<Memory>) -> Served {
        self.serve_settings(settings(mode, lease_time), store)
    }

    fn serve_settings(&self, settings: Settings, store: Arc<Memory>) -> Served {
        let site = Arc::new(Site::default());
        let server = within(&self.us, || {
            Server::start(vec![interface(US)], settings, site.clone(), store.clone())
        });
        Served {
            server: Some(server.expect("a server")),
            site,
            store,
        }
    }

    /// dnsmasq as a DHCP server with the addresses .200 to .210; returns when
    /// it serves.
    fn dnsmasq(&self, namespace: &str, address: Ipv4Addr) -> Running {
        let listen = format!("--listen-address={address}");
        let mut command = in_namespace(namespace, "dnsmasq");
        command.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--port=0",
            "--no-ping",
            "--user=root",
        ]);
        command.args([
            "--interface=eth0",
            "--bind-interfaces",
            "--leasefile-ro",
            "--pid-file=",
        ]);
        command.args([
            "--dhcp-authoritative",
            "--dhcp-range=10.66.0.200,10.66.0.210,1h",
            &listen,
        ]);
        let running = Running(command.stderr(Stdio::null()).spawn().expect("dnsmasq"));
        wait_for("dnsmasq", || {
            within(namespace, || UdpSocket::bind("0.0.0.0:67"))
                .is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
        });
        running
    }

    /// Runs udhcpc once: the address it was lent.
    fn udhcpc(&self, arguments: &[&str]) -> Option<Ipv4Addr> {
        self.udhcpc_on("eth0", arguments)
    }

    fn udhcpc_on(&self, interface: &str, arguments: &[&str]) -> Option<Ipv4Addr> {
        let mut command = in_namespace(&self.client, "busybox");
        command.args([
            "udhcpc",
            "-i",
            interface,
            "-f",
            "-n",
            "-q",
            "-s",
            "/bin/true",
            "-t",
            "4",
            "-T",
            "1",
        ]);
        let output = command.args(arguments).output().expect("busybox");
        let said = String::from_utf8_lossy(&output.stderr);
        let (_, rest) = said.split_once("lease of ")?;
        rest.split_whitespace().next()?.parse().ok()
    }

    /// The address configured on the client's interface.
    fn client_address(&self) -> Option<Ipv4Addr> {
        let output = Command::new("ip")
            .args(["-n", &self.client, "-4", "-o", "addr", "show", "eth0"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let (_, rest) = text.split_once("inet ")?;
        rest.split('/').next()?.parse().ok()
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(dhclient_file(self, "leases"));
        for namespace in self.namespaces() {
            let _ = Command::new("ip")
                .args(["netns", "del", namespace])
                .status();
        }
    }
}

/// Our server on a LAN.
struct Served {
    server: Option<Server>,
    site: Arc<Site>,
    store: Arc<Memory>,
}

impl Served {
    fn server(&self) -> &Server {
        self.server.as_ref().expect("not stopped")
    }

    fn leases(&self) -> Vec<Lease> {
        self.server().leases()
    }

    fn stop(mut self) {
        block_on(self.server.take().expect("not stopped").stop());
    }
}

/// A process that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A dhclient that has its lease and runs on.
struct Dhclient {
    namespace: String,
    leases: String,
    pid: String,
}

impl Dhclient {
    fn start(lan: &Lan) -> Dhclient {
        let file =
            |suffix: &str| format!("{}/{}.{suffix}", std::env::temp_dir().display(), lan.client);
        let dhclient = Dhclient {
            namespace: lan.client.clone(),
            leases: file("leases"),
            pid: file("pid"),
        };
        assert!(dhclient.run(&["-1"]), "dhclient got no lease");
        dhclient
    }

    fn release(self) {
        assert!(self.run(&["-r"]));
    }

    fn run(&self, arguments: &[&str]) -> bool {
        let mut command = in_namespace(&self.namespace, "dhclient");
        command
            .args(["-cf", "/dev/null", "-lf", &self.leases, "-pf", &self.pid])
            .args(arguments)
            .arg("eth0");
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }
}

impl Drop for Dhclient {
    fn drop(&mut self) {
        // `-x` ends the one of our pid file; after a release there is none.
        if std::path::Path::new(&self.pid).exists() {
            self.run(&["-x"]);
        }
        let _ = std::fs::remove_file(&self.pid);
    }
}

fn dhclient_file(lan: &Lan, suffix: &str) -> String {
    format!("{}/{}.{suffix}", std::env::temp_dir().display(), lan.client)
}

fn can_judge(tools: &[&str]) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("network namespaces need root".into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places: Vec<_> = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .collect();
    match tools
        .iter()
        .chain(&["ip"])
        .find(|tool| !places.iter().any(|place| place.join(tool).exists()))
    {
        Some(tool) => Err(format!("{tool} is missing")),
        None => Ok(()),
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("ip");
    assert!(
        output.status.success(),
        "ip {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn in_namespace(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, program]);
    command
}

/// Does something on a thread inside a namespace; sockets and threads made
/// there stay there.
fn within<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let file =
                std::fs::File::open(format!("/run/netns/{namespace}")).expect("the namespace");
            // SAFETY: setns changes the namespace of this thread only; the
            // descriptor is open.
            let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "setns: {}", io::Error::last_os_error());
            work()
        });
        inside.join().expect("no panic inside the namespace")
    })
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// A claim about time on a busy machine: within 15 s.
fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_there() {
        assert!(
            start.elapsed() < Duration::from_secs(15),
            "waited in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn interface(address: Ipv4Addr) -> InterfaceConfig {
    InterfaceConfig {
        name: "eth0".into(),
        address,
        netmask: NETMASK,
    }
}

/// Nothing in it makes dhclient's script write outside its namespace: no
/// name servers, no domain.
fn settings(mode: Mode, lease_time: Duration) -> Settings {
    let subnet = Subnet {
        network: US,
        netmask: NETMASK,
        ranges: vec![(Ipv4Addr::new(10, 66, 0, 100), Ipv4Addr::new(10, 66, 0, 150))],
        routers: Vec::new(),
        dns: Vec::new(),
        domain: None,
        ntp: Vec::new(),
        mtu: None,
        lease_time: None,
        options: Vec::new(),
    };
    Settings {
        mode,
        lease_time,
        subnets: vec![subnet],
    }
}

fn is_of_pool(address: Ipv4Addr) -> bool {
    (Ipv4Addr::new(10, 66, 0, 100)..=Ipv4Addr::new(10, 66, 0, 150)).contains(&address)
}

fn recorded(name: &str) -> Message {
    let path = format!("{}/src/vectors/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    let bytes: Vec<u8> = digits
        .chunks_exact(2)
        .map(|pair| u8::try_from(pair[0] << 4 | pair[1]).unwrap())
        .collect();
    Message::parse(&bytes).unwrap()
}

/// A socket as a firmware's: one port, may broadcast, waits 5 s.
fn firmware_socket(port: u16) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    socket.bind_device(Some(b"eth0"))?; // no route is needed then
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    let socket = UdpSocket::from(socket);
    socket.set_broadcast(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

/// The replies of `count` servers to one transaction, by server.
fn replies(socket: &UdpSocket, xid: u32, count: usize) -> HashMap<Ipv4Addr, Message> {
    let mut replies = HashMap::new();
    let mut buffer = [0; 1500];
    while replies.len() < count {
        let (length, _) = socket.recv_from(&mut buffer).expect("a reply within 5 s");
        let message = Message::parse(&buffer[..length]).unwrap();
        if message.op == Op::Reply && message.xid == xid {
            replies.insert(message.options.address(code::SERVER_ID).unwrap(), message);
        }
    }
    replies
}

#[derive(Default)]
struct Site {
    observed: Mutex<Vec<Observation>>,
}

impl Site {
    fn count(&self, is_meant: impl Fn(&Observation) -> bool) -> usize {
        self.observed
            .lock()
            .unwrap()
            .iter()
            .filter(|observation| is_meant(observation))
            .count()
    }
}

impl Policy for Site {
    fn boot(&self, client: &Client, server: Ipv4Addr) -> Option<Boot> {
        match client.firmware {
            Firmware::UefiPxe(_) => Some(Boot::Tftp {
                server,
                file: "snponly.efi".into(),
            }),
            Firmware::Ipxe(_) => Some(Boot::Url(SCRIPT.into())),
            _ => None,
        }
    }

    fn promise(&self, _mac: Mac) -> Promise {
        Promise::default()
    }

    fn is_in_use(&self, _address: Ipv4Addr) -> bool {
        false
    }

    fn observe(&self, observation: &Observation) {
        self.observed.lock().unwrap().push(observation.clone());
    }
}

#[derive(Default)]
struct Memory(Mutex<HashMap<Mac, Lease>>);

impl LeaseStore for Memory {
    fn load(&self) -> Result<Vec<Lease>, String> {
        Ok(self.0.lock().unwrap().values().cloned().collect())
    }

    fn save(&self, lease: &Lease) -> Result<(), String> {
        self.0.lock().unwrap().insert(lease.mac, lease.clone());
        Ok(())
    }

    fn remove(&self, mac: Mac) -> Result<(), String> {
        self.0.lock().unwrap().remove(&mac);
        Ok(())
    }
}
