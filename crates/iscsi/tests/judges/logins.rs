//! Logins over real sockets: CHAP both ways, redirects, connections that come
//! back, discovery, and floods of those that never log in.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::*;

const SECRET: &str = "judges-secret";

fn with_chap(mutual: Option<(&'static str, &'static str)>) -> Lab {
    Lab::shaped(Shape {
        chap: Some(("judge", SECRET)),
        mutual,
        ..Shape::default()
    })
}

// CHAP (RFC 7143 sections 9.2.1 and 12.1.3).

#[test]
fn libiscsis_tools_want_our_proof_and_know_a_wrong_one() {
    let lab = with_chap(Some(("server", "servers-secret")));
    let url = |secret: &str| {
        let portal = lab.portal;
        format!(
            "iscsi://judge%{SECRET}@{portal}/{IQN}/0?target_user=server&target_password={secret}"
        )
    };
    let Some((passed, said)) = run("iscsi-inq", &[&url("servers-secret")]) else {
        return;
    };
    assert!(passed && said.contains("DISKLESS"), "{said}");
    let (passed, said) = run("iscsi-inq", &[&url("another-secret")]).unwrap();
    assert!(!passed && !said.contains("DISKLESS"), "{said}");
    // One that we cannot give.
    let lab = with_chap(None);
    let url = format!(
        "iscsi://judge%{SECRET}@{}/{IQN}/0?target_user=server&target_password=servers-secret",
        lab.portal
    );
    let (passed, said) = run("iscsi-inq", &[&url]).unwrap();
    assert!(!passed && !said.contains("DISKLESS"), "{said}");
}

#[test]
fn qemu_logs_in_with_chap() {
    let lab = with_chap(None);
    let url = format!("iscsi://judge%{SECRET}@{}/{IQN}/0", lab.portal);
    let Some((passed, said)) = run("qemu-img", &["info", &url]) else {
        return;
    };
    if said.contains("Unknown protocol 'iscsi'") {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{said}");
        eprintln!("QEMU has no iSCSI (package qemu-block-extra): this judge was not heard");
        return;
    }
    assert!(passed && said.contains("4 MiB"), "{said}");
    let (passed, _) = run("qemu-img", &["info", &lab.url()]).unwrap();
    assert!(!passed, "without a secret");
}

// Redirects (section 11.13.5).

#[test]
fn libiscsi_follows_to_where_a_target_has_moved() {
    let here = with_chap(None);
    let ask = |permanently| {
        let moved = Lab::shaped(Shape {
            redirect: Some(Redirect {
                to: here.portal.to_string(),
                permanently,
            }),
            ..Shape::default()
        });
        let url = format!("iscsi://judge%{SECRET}@{}/{IQN}/0", moved.portal);
        let heard = run("iscsi-inq", &[&url]);
        assert_eq!(moved.server().counters().logins, 0);
        heard
    };
    let Some((passed, said)) = ask(false) else {
        return;
    };
    assert!(passed && said.contains("DISKLESS"), "{said}");
    assert_eq!(here.server().counters().logins, 1);
    // This one it understands and does not follow.
    let (_, said) = ask(true).unwrap();
    assert!(said.contains("Target moved permanently"), "{said}");
}

// Discovery (section 4.3 and appendix C).

#[test]
fn discovery_shows_every_portal_in_reach() {
    let disk: Arc<dyn Disk> = Arc::new(Ram::new(1 << 20));
    let lab = Lab::over(
        vec![disk],
        "127.0.0.1:0 127.0.0.1:0 [::1]:0",
        Shape::default(),
    );
    let [first, second, third] = lab.server().portals() else {
        panic!("three portals");
    };
    for (asked, other) in [(first, second), (second, first)] {
        let Some((passed, said)) = run("iscsi-ls", &[&format!("iscsi://{asked}")]) else {
            return;
        };
        assert!(passed && said.contains(IQN), "{said}");
        assert!(said.contains(&format!("{asked},1")), "{said}");
        assert!(said.contains(&format!("{other},1")), "{said}");
        assert!(!said.contains(&third.to_string()), "{said}");
    }
}

// Connection reinstatement (section 6.3.4).

/// Logs in for a session that there is; status and handle.
fn log_in_again(lab: &Lab, qualifier: u8, tsih: u16, cid: u16) -> (Initiator, [u8; 2], u16) {
    let mut initiator = Initiator::connect(lab.portal, qualifier);
    let mut login = Initiator::login_bytes(qualifier, initiator.cmd_sn);
    login[14..16].copy_from_slice(&tsih.to_be_bytes());
    login[20..22].copy_from_slice(&cid.to_be_bytes());
    initiator.stream.write_all(&login).unwrap();
    let answer = initiator.receive().unwrap().bhs;
    let handle = u16::from_be_bytes([answer[14], answer[15]]);
    (initiator, [answer[36], answer[37]], handle)
}

#[test]
fn a_connection_that_comes_back_takes_its_own_place_and_no_other() {
    let lab = Lab::new();
    let (mut old, status, tsih) = log_in_again(&lab, 1, 0, 5);
    assert_eq!(status, [0, 0]);
    assert_ne!(tsih, 0);
    for (qualifier, tsih, cid, status) in [
        (1, tsih, 6, [2, 6]),
        (1, tsih + 1, 5, [2, 0x0a]),
        (2, tsih, 5, [2, 0x0a]),
    ] {
        assert_eq!(log_in_again(&lab, qualifier, tsih, cid).1, status);
    }
    assert_eq!(old.command(&[0; 6], &[], 0).status, 2, "undisturbed");
    let (mut new, status, handle) = log_in_again(&lab, 1, tsih, 5);
    assert_eq!((status, handle), ([0, 0], tsih));
    assert!(old.is_closed());
    new.command(&[0; 6], &[], 0);
    assert_eq!(new.command(&[0; 6], &[], 0).status, 0);
    assert_eq!(lab.server().sessions().list().len(), 1);
    // Another handle after a new login: the old one names nothing any more.
    let (_newest, _, newest) = log_in_again(&lab, 1, 0, 5);
    assert_ne!(newest, tsih);
    assert_eq!(log_in_again(&lab, 1, tsih, 5).1, [2, 0x0a]);
}

#[test]
fn a_session_that_has_ended_is_no_session_to_come_back_to() {
    // It ends while the login is on its way.
    let lab = Lab::new();
    let (old, _, tsih) = log_in_again(&lab, 1, 0, 5);
    let mut late = Initiator::connect(lab.portal, 1);
    let mut login = Initiator::login_bytes(1, late.cmd_sn);
    login[1] = 0x81;
    login[14..16].copy_from_slice(&tsih.to_be_bytes());
    login[20..22].copy_from_slice(&5u16.to_be_bytes());
    late.stream.write_all(&login).unwrap();
    let answer = late.receive().unwrap().bhs;
    assert_eq!((answer[1], answer[37]), (0x81, 0), "so far it is there");
    drop(old);
    Lab::eventually("it has ended", || lab.server().sessions().count() == 0);
    let mut header = [0; 48];
    header.copy_from_slice(&login[..48]);
    header[1] = 0x87;
    late.send(header, &[]);
    assert_eq!(late.login_answer(), Some([2, 0x0a]));

    // It has ended, but for its flush.
    let (disk, gate) = trouble::gated();
    let lab = Lab::over(vec![disk], "127.0.0.1:0", Shape::default());
    let _open = trouble::OpenAtLast(gate.clone());
    let (mut old, _, tsih) = log_in_again(&lab, 1, 0, 5);
    old.command(&[0; 6], &[], 0);
    old.start(&FLUSH, &[], 0);
    Lab::eventually("the flush has begun", || gate.has_comers());
    drop(old);
    Lab::eventually("it leaves", || lab.server().sessions().list().is_empty());
    assert_eq!(lab.server().sessions().count(), 1);
    assert_eq!(log_in_again(&lab, 1, tsih, 5).1, [2, 0x0a]);
}

// Threads.

#[test]
fn sessions_that_come_and_go_share_their_threads() {
    const SESSIONS: u8 = 60;
    let lab = Lab::new();
    let mut threads = HashSet::new();
    for qualifier in 0..SESSIONS {
        let mut initiator = lab.initiator(qualifier);
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        threads.extend(tasks.map(|task| task.unwrap().file_name()));
        initiator.log_out();
        assert!(initiator.receive().is_ok());
        Lab::eventually("it has ended", || lab.server().sessions().count() == 0);
    }
    assert!(threads.len() < usize::from(SESSIONS), "{}", threads.len());
}

#[test]
fn a_login_may_take_its_time_between_two_bytes() {
    let lab = Lab::new();
    let mut initiator = Initiator::connect(lab.portal, 1);
    for piece in Initiator::login_bytes(1, initiator.cmd_sn).chunks(29) {
        thread::sleep(Duration::from_millis(3));
        initiator.stream.write_all(piece).unwrap();
    }
    assert_eq!(initiator.login_answer(), Some([0, 0]));
}

// Half-open logins.

/// Files this process may open, as far as the system lets it.
fn open_many_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.unwrap_or(u64::MAX).min(8192);
    let raised = Rlimit {
        current: Some(wanted.max(limit.current.unwrap_or(0))),
        maximum: limit.maximum,
    };
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current.unwrap_or(8192)
}

/// Connects from an address of the loopback network.
fn connect_from(last: u8, portal: SocketAddr) -> Option<TcpStream> {
    let domain = socket2::Domain::IPV4;
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).ok()?;
    let source = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, last), 0);
    socket.bind(&SocketAddr::V4(source).into()).ok()?;
    socket.connect(&portal.into()).ok()?;
    Some(socket.into())
}

#[test]
fn thousands_of_half_open_logins_disturb_no_session_and_keep_nobody_out() {
    let many = usize::try_from(open_many_files() / 3).unwrap().min(2000);
    let lab = Lab::new();
    let mut session = lab.initiator(1);
    let mut half_open = Vec::new();
    let begun = &Initiator::login_bytes(9, 0)[..60];
    for n in 0..many {
        let source = u8::try_from(2 + n % 50).unwrap();
        let mut stream = connect_from(source, lab.portal).unwrap();
        // Some say nothing, some half a login, some what is none.
        let _ = stream.write_all([&[][..], begun, &[0xff; 48]][n % 3]);
        half_open.push(stream);
        if n % 100 == 0 {
            assert_eq!(session.command(&[0; 6], &[], 0).status, 0);
        }
    }
    Lab::eventually("all have been accepted", || {
        lab.server().counters().connections > many as u64
    });
    let counters = lab.server().counters();
    assert!(counters.connections_refused > 0, "{counters:?}");
    assert_eq!(session.command(&write10(0, 1), &[7; 512], 0).status, 0);
    let mut new = lab.initiator(2);
    assert_eq!(new.command(&read10(0, 1), &[], 512).data, [7; 512]);
    assert_eq!(lab.server().sessions().count(), 2);
}
