//! The target over real sockets: a small initiator of our own, and foreign
//! judges (libiscsi's tools, QEMU's; its conformance tests judge the whole
//! program, from `tests/conformance/`). What goes wrong on purpose (disks that
//! hang, peers that vanish, sites that panic) lies in `trouble`, what peers do
//! on purpose in `abuse`.
//!
//! A judge that is not installed says so and is skipped; with `CI=true` it
//! fails.

// A test: what fails may panic, our own initiator included.
#![allow(clippy::unwrap_used)]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use disk::{Access, Disk, DiskError, Durability, Geometry, Ram};
use iscsi::{
    Attachment, Authentication, ChapSecrets, Identity, Limits, LogicalUnit, Login, LoginRefusal,
    Redirect, Secret, Server, Sessions, Target, Targets,
};

mod abuse;
mod logins;
mod silence;
mod trouble;
mod units;

const IQN: &str = "iqn.2026-01.lab:judges";

// The site under test.

/// A flush that takes so long panics instead.
const BROKEN: Duration = Duration::from_secs(3600);

/// A thin disk in memory whose flush takes as long as a test says.
struct TestDisk {
    ram: Ram,
    flush_time: Duration,
}

impl Disk for TestDisk {
    fn geometry(&self) -> Geometry {
        self.ram.geometry()
    }
    fn access(&self) -> Access {
        Access::ReadWrite
    }
    fn durability(&self) -> Durability {
        Durability::WriteBack
    }
    fn is_thin(&self) -> bool {
        true
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.ram.read(offset, buffer)
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.ram.write(offset, data)
    }
    fn flush(&self) -> Result<(), DiskError> {
        assert!(self.flush_time < BROKEN, "this disk is broken");
        thread::sleep(self.flush_time);
        self.ram.flush()
    }
    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.ram.unmap(offset, bytes)
    }
}

/// One target; what `open` does first is up to the test.
struct Site {
    target: Arc<Target>,
    sessions: OnceLock<Sessions>,
    chap: Option<(&'static str, &'static str)>,
    /// Our own name and secret.
    mutual: Option<(&'static str, &'static str)>,
    redirect: Option<Redirect>,
    /// Close everybody else before letting anybody in.
    is_exclusive: AtomicBool,
    /// Panic instead of opening anything.
    is_broken: AtomicBool,
    /// Guards alive: sessions that have not ended.
    attached: Arc<AtomicU32>,
    /// A lock held in `open` and taken by the end of a session, as a site's
    /// machine lock would be.
    machine: Arc<Mutex<()>>,
}

struct Guard {
    attached: Arc<AtomicU32>,
    machine: Arc<Mutex<()>>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _machine = self.machine.lock().unwrap();
        self.attached.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Targets for Site {
    fn serving(&self, sessions: Sessions) {
        let _ = self.sessions.set(sessions);
    }
    fn authentication(&self, _: &Login) -> Authentication {
        match self.chap {
            Some(_) => Authentication::Chap,
            None => Authentication::None,
        }
    }
    fn chap_secret(&self, _: &Login, chap_name: &str) -> Option<ChapSecrets> {
        let (name, secret) = self.chap?;
        (name == chap_name).then(|| ChapSecrets {
            initiator: Secret::new(secret),
            target: self
                .mutual
                .map(|(name, secret)| (name.to_owned(), Secret::new(secret))),
        })
    }
    fn redirect(&self, _: &Login) -> Option<Redirect> {
        self.redirect.clone()
    }
    fn open(&self, login: &Login) -> Result<Attachment, LoginRefusal> {
        if login.target.as_deref() != Some(IQN) {
            return Err(LoginRefusal::NotFound);
        }
        assert!(
            !self.is_broken.load(Ordering::SeqCst),
            "this site is broken"
        );
        let _machine = self.machine.lock().unwrap();
        if self.is_exclusive.load(Ordering::SeqCst) {
            self.sessions.get().unwrap().close_where(|_| true);
        }
        self.attached.fetch_add(1, Ordering::SeqCst);
        Ok(Attachment {
            target: self.target.clone(),
            guard: Box::new(Guard {
                attached: self.attached.clone(),
                machine: self.machine.clone(),
            }),
        })
    }
    fn discover(&self, _: &Login) -> Vec<String> {
        vec![IQN.to_owned()]
    }
}

/// A server on a port of its own.
struct Lab {
    server: Option<Server>,
    site: Arc<Site>,
    portal: SocketAddr,
}

#[derive(Default)]
struct Shape {
    disk_bytes: Option<usize>,
    flush_time: Duration,
    chap: Option<(&'static str, &'static str)>,
    mutual: Option<(&'static str, &'static str)>,
    redirect: Option<Redirect>,
    limits: Limits,
}

impl Lab {
    fn new() -> Lab {
        Lab::shaped(Shape::default())
    }

    fn shaped(shape: Shape) -> Lab {
        let disk = TestDisk {
            ram: Ram::new(shape.disk_bytes.unwrap_or(4 << 20)).with_block_bytes(512, 4096),
            flush_time: shape.flush_time,
        };
        Lab::over(vec![Arc::new(disk)], "127.0.0.1:0", shape)
    }

    /// A target with these disks at these portals; of the shape, no disk is
    /// made.
    fn over(disks: Vec<Arc<dyn Disk>>, portal: &str, shape: Shape) -> Lab {
        let unit = |disk| Arc::new(LogicalUnit::new(disk, Identity::new([5; 16], "JUDGED")));
        let site = Arc::new(Site {
            target: Arc::new(Target::new(IQN, (0..).zip(disks.into_iter().map(unit))).unwrap()),
            sessions: OnceLock::new(),
            chap: shape.chap,
            mutual: shape.mutual,
            redirect: shape.redirect,
            is_exclusive: AtomicBool::new(false),
            is_broken: AtomicBool::new(false),
            attached: Arc::default(),
            machine: Arc::default(),
        });
        let portals: Vec<SocketAddr> = portal.split(' ').map(|p| p.parse().unwrap()).collect();
        let server = Server::bind(&portals, site.clone(), shape.limits).unwrap();
        Lab {
            portal: server.portals()[0],
            server: Some(server),
            site,
        }
    }

    fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    fn initiator(&self, qualifier: u8) -> Initiator {
        let mut initiator = Initiator::connect(self.portal, qualifier);
        assert_eq!(initiator.login(), [0, 0]);
        // The first command hears that the session is new.
        assert_eq!(initiator.command(&[0; 6], &[], 0).status, 2);
        initiator
    }

    fn url(&self) -> String {
        format!("iscsi://{}/{IQN}/0", self.portal)
    }

    /// Waits until `done`, which takes a moment on a busy machine.
    fn eventually(what: &str, done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(20), "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

// A small initiator: one command at a time, immediate data only.

struct Initiator {
    stream: TcpStream,
    qualifier: u8,
    lun: u8,
    cmd_sn: u32,
    itt: u32,
}

struct Pdu {
    bhs: [u8; 48],
    data: Vec<u8>,
}

struct Answer {
    status: u8,
    data: Vec<u8>,
}

impl Initiator {
    fn connect(portal: SocketAddr, qualifier: u8) -> Initiator {
        let stream = TcpStream::connect(portal).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Initiator {
            stream,
            qualifier,
            lun: 0,
            cmd_sn: 1496,
            itt: 0,
        }
    }

    fn pdu(mut bhs: [u8; 48], data: &[u8]) -> Vec<u8> {
        let length = u32::try_from(data.len()).unwrap().to_be_bytes();
        bhs[5..8].copy_from_slice(&length[1..]);
        let mut pdu = bhs.to_vec();
        pdu.extend_from_slice(data);
        pdu.resize(pdu.len().next_multiple_of(4), 0);
        pdu
    }

    fn send(&mut self, bhs: [u8; 48], data: &[u8]) {
        // A server that has closed is noticed when its answer is missing.
        let _ = self.stream.write_all(&Initiator::pdu(bhs, data));
    }

    fn receive(&mut self) -> io::Result<Pdu> {
        let mut bhs = [0; 48];
        self.stream.read_exact(&mut bhs)?;
        let length = u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]) as usize;
        let mut data = vec![0; length.next_multiple_of(4)];
        self.stream.read_exact(&mut data)?;
        data.truncate(length);
        Ok(Pdu { bhs, data })
    }

    /// Logs in without authentication; the status.
    fn login(&mut self) -> [u8; 2] {
        self.try_login().unwrap()
    }

    /// The same; `None` when the server closed instead.
    fn try_login(&mut self) -> Option<[u8; 2]> {
        self.start_login();
        self.login_answer()
    }

    fn start_login(&mut self) {
        let login = Initiator::login_bytes(self.qualifier, self.cmd_sn);
        let _ = self.stream.write_all(&login);
    }

    fn login_bytes(qualifier: u8, cmd_sn: u32) -> Vec<u8> {
        let text = format!(
            "InitiatorName=iqn.2026-01.lab:i\0TargetName={IQN}\0InitialR2T=No\0\
             MaxRecvDataSegmentLength=262144\0"
        );
        let mut bhs = [0; 48];
        (bhs[0], bhs[1]) = (0x43, 0x87);
        bhs[8..14].copy_from_slice(&[0, 2, 0x3d, 0, 0, qualifier]);
        bhs[24..28].copy_from_slice(&cmd_sn.to_be_bytes());
        Initiator::pdu(bhs, text.as_bytes())
    }

    fn login_answer(&mut self) -> Option<[u8; 2]> {
        let answer = self.receive().ok()?;
        Some([answer.bhs[36], answer.bhs[37]])
    }

    /// Sends a command; `expected` bytes are to be read, or `data` written.
    fn start(&mut self, cdb: &[u8], data: &[u8], expected: usize) {
        self.itt += 1;
        let mut bhs = [0; 48];
        bhs[0] = 0x01;
        bhs[1] =
            0x80 | if expected > 0 { 0x40 } else { 0 } | if data.is_empty() { 0 } else { 0x20 };
        bhs[9] = self.lun;
        bhs[16..20].copy_from_slice(&self.itt.to_be_bytes());
        let length = u32::try_from(expected.max(data.len())).unwrap();
        bhs[20..24].copy_from_slice(&length.to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        bhs[32..32 + cdb.len()].copy_from_slice(cdb);
        self.cmd_sn += 1;
        self.send(bhs, data);
    }

    /// The answer of a command that was started.
    fn answer(&mut self) -> io::Result<Answer> {
        let mut read = Vec::new();
        loop {
            let pdu = self.receive()?;
            match pdu.bhs[0] {
                0x25 => {
                    read.extend_from_slice(&pdu.data);
                    if pdu.bhs[1] & 1 != 0 {
                        return Ok(Answer {
                            status: pdu.bhs[3],
                            data: read,
                        });
                    }
                }
                0x21 => {
                    return Ok(Answer {
                        status: pdu.bhs[3],
                        data: pdu.data,
                    });
                }
                other => panic!("opcode {other:02x} is no answer"),
            }
        }
    }

    fn command(&mut self, cdb: &[u8], data: &[u8], expected: usize) -> Answer {
        self.start(cdb, data, expected);
        self.answer().unwrap()
    }

    fn ping(&mut self) {
        let mut bhs = [0; 48];
        (bhs[0], bhs[1]) = (0x40, 0x80);
        bhs[16..24].copy_from_slice(&[0, 0, 0, 99, 0xff, 0xff, 0xff, 0xff]);
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        self.send(bhs, b"ping");
    }

    /// Whether the server has closed.
    fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0; 1]), Ok(0) | Err(_))
    }
}

fn read10(lba: u32, blocks: u16) -> [u8; 10] {
    let [a, b, c, d] = lba.to_be_bytes();
    let [e, f] = blocks.to_be_bytes();
    [0x28, 0, a, b, c, d, 0, e, f, 0]
}

fn write10(lba: u32, blocks: u16) -> [u8; 10] {
    let mut cdb = read10(lba, blocks);
    cdb[0] = 0x2a;
    cdb
}

const FLUSH: [u8; 10] = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];

// Claims.

#[test]
fn what_one_session_writes_another_reads() {
    let lab = Lab::new();
    let (mut a, mut b) = (lab.initiator(1), lab.initiator(2));
    let data: Vec<u8> = (0..128 * 512u32).map(|i| (i % 251) as u8).collect();
    assert_eq!(a.command(&write10(8, 128), &data, 0).status, 0);
    assert_eq!(b.command(&read10(8, 128), &[], data.len()).data, data);
    let list = lab.server().sessions().list();
    assert_eq!(list.len(), 2);
    assert_eq!(list[0].bytes_written, data.len() as u64);
    assert_eq!(list[0].initiator, "iqn.2026-01.lab:i");
    Lab::eventually("b's bytes are counted", || {
        let list = lab.server().sessions().list();
        list[1].bytes_read == data.len() as u64 && !list[1].answers_pings
    });
}

#[test]
fn the_same_nexus_again_ends_the_old_session_and_another_isid_does_not() {
    let lab = Lab::new();
    let (mut old, mut other) = (lab.initiator(1), lab.initiator(2));
    let mut new = lab.initiator(1);
    assert!(old.is_closed());
    assert_eq!(new.command(&[0; 6], &[], 0).status, 0);
    assert_eq!(other.command(&[0; 6], &[], 0).status, 0);
    Lab::eventually("the old guard is dropped", || {
        lab.site.attached.load(Ordering::SeqCst) == 2
    });
}

#[test]
fn open_may_close_all_other_sessions_and_waits_until_they_have_let_go() {
    let lab = Lab::new();
    let mut old: Vec<_> = (1..5).map(|n| lab.initiator(n)).collect();
    lab.site.is_exclusive.store(true, Ordering::SeqCst);
    // The guards take a lock that `open` holds: they must not be waited for.
    let mut new = lab.initiator(9);
    assert_eq!(lab.server().sessions().list().len(), 1);
    assert!(old.iter_mut().all(Initiator::is_closed));
    assert_eq!(new.command(&[0; 6], &[], 0).status, 0);
    Lab::eventually("all old guards are dropped", || {
        lab.site.attached.load(Ordering::SeqCst) == 1
    });
}

#[test]
fn close_ends_one_session() {
    let lab = Lab::new();
    let (mut a, mut b) = (lab.initiator(1), lab.initiator(2));
    let sessions = lab.server().sessions();
    let first = sessions.list()[0].id;
    assert!(sessions.close(first));
    assert!(!sessions.close(first));
    assert!(a.is_closed());
    assert_eq!(b.command(&[0; 6], &[], 0).status, 0);
}

#[test]
fn pings_are_answered_while_a_flush_takes_its_time() {
    let lab = Lab::shaped(Shape {
        flush_time: Duration::from_millis(1500),
        ..Shape::default()
    });
    let mut initiator = lab.initiator(1);
    let start = Instant::now();
    initiator.start(&FLUSH, &[], 0);
    initiator.ping();
    let pong = initiator.receive().unwrap();
    assert_eq!((pong.bhs[0], pong.data.as_slice()), (0x20, &b"ping"[..]));
    assert!(start.elapsed() < Duration::from_millis(1400));
    assert_eq!(initiator.answer().unwrap().status, 0);
    assert!(start.elapsed() >= Duration::from_millis(1500));
    assert!(lab.server().sessions().list()[0].answers_pings);
}

#[test]
fn a_disk_that_panics_costs_its_command_and_not_the_workers() {
    let limits = Limits {
        worker_threads: 1,
        ..Limits::default()
    };
    let lab = Lab::shaped(Shape {
        flush_time: BROKEN,
        limits,
        ..Shape::default()
    });
    let mut initiator = lab.initiator(1);
    for _ in 0..2 {
        let answer = initiator.command(&FLUSH, &[], 0);
        assert_eq!((answer.status, answer.data[4]), (2, 4), "hardware error");
    }
}

#[test]
fn shutdown_answers_what_has_come_and_then_closes() {
    let mut lab = Lab::shaped(Shape {
        flush_time: Duration::from_millis(300),
        ..Shape::default()
    });
    let (mut busy, mut idle) = (lab.initiator(1), lab.initiator(2));
    busy.start(&FLUSH, &[], 0);
    assert_eq!(busy.command(&[0; 6], &[], 0).status, 0);
    let start = Instant::now();
    lab.server.take().unwrap().shutdown(Duration::from_secs(20));
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "nobody was waited for in vain"
    );
    assert_eq!(busy.answer().unwrap().status, 0);
    assert!(busy.is_closed() && idle.is_closed());
    assert!(TcpStream::connect(lab.portal).is_err());
    assert_eq!(lab.site.attached.load(Ordering::SeqCst), 0);
}

#[test]
fn a_peer_that_does_not_read_is_given_up() {
    let lab = Lab::shaped(Shape {
        limits: Limits {
            send_timeout: Duration::from_millis(300),
            ..Limits::default()
        },
        ..Shape::default()
    });
    let mut initiator = lab.initiator(1);
    for _ in 0..100 {
        initiator.start(&read10(0, 4096), &[], 4096 * 512);
    }
    Lab::eventually("the session ends", || {
        lab.server().sessions().list().is_empty()
    });
}

#[test]
fn a_login_that_says_nothing_is_given_up() {
    let lab = Lab::shaped(Shape {
        limits: Limits {
            login_deadline: Duration::from_millis(100),
            ..Limits::default()
        },
        ..Shape::default()
    });
    let mut silent: Vec<_> = (0..3).map(|n| Initiator::connect(lab.portal, n)).collect();
    assert!(silent.iter_mut().all(Initiator::is_closed));
    assert_eq!(lab.server().counters().logins_refused, 3);
}

#[test]
fn half_open_logins_of_one_address_are_few_and_leave_room_when_they_go() {
    let lab = Lab::shaped(Shape {
        limits: Limits {
            half_open_logins_per_address: 3,
            ..Limits::default()
        },
        ..Shape::default()
    });
    let silent: Vec<_> = (0..3).map(|n| Initiator::connect(lab.portal, n)).collect();
    Lab::eventually("all are accepted", || {
        lab.server().counters().connections == 3
    });
    assert!(Initiator::connect(lab.portal, 9).is_closed());
    Lab::eventually("one is counted as refused", || {
        lab.server().counters().connections_refused == 1
    });
    drop(silent);
    Lab::eventually("there is room again", || {
        Initiator::connect(lab.portal, 1).try_login() == Some([0, 0])
    });
}

#[test]
fn many_that_say_nothing_do_not_keep_out_one_that_logs_in() {
    let lab = Lab::shaped(Shape {
        limits: Limits {
            half_open_logins: 3,
            ..Limits::default()
        },
        ..Shape::default()
    });
    let mut silent: Vec<_> = (0..3).map(|n| Initiator::connect(lab.portal, n)).collect();
    Lab::eventually("all are accepted", || {
        lab.server().counters().connections == 3
    });
    // Login threads wait a moment for each before it is one that may give way.
    thread::sleep(Duration::from_millis(200));
    lab.initiator(9);
    assert!(silent[0].is_closed(), "the oldest gave way");
    assert_eq!(silent[2].login(), [0, 0]);
}

#[test]
fn a_login_over_the_limit_of_sessions_is_told_to_come_back() {
    let lab = Lab::shaped(Shape {
        limits: Limits {
            sessions: 1,
            ..Limits::default()
        },
        ..Shape::default()
    });
    let _first = lab.initiator(1);
    assert_eq!(Initiator::connect(lab.portal, 2).login(), [3, 2]);
    // The same nexus takes its own place.
    lab.initiator(1);
}

#[test]
fn malformed_pdus_cost_their_connection_and_are_counted() {
    let lab = Lab::new();
    let mut other = lab.initiator(7);
    // Before the login: what is no login, and a login of 16 MiB.
    for (byte, length) in [(0x01, 0), (0x43, 0xff)] {
        let mut initiator = Initiator::connect(lab.portal, 1);
        let mut bhs = [0; 48];
        (bhs[0], bhs[5]) = (byte, length);
        initiator.stream.write_all(&bhs).unwrap();
        assert!(initiator.is_closed());
    }
    // After it: a data segment too long, additional headers, a second login.
    for (at, value) in [(5, 0xff), (4, 0x01), (0, 0x43)] {
        let mut initiator = lab.initiator(1);
        let mut bhs = [0; 48];
        bhs[at] = value;
        initiator.stream.write_all(&bhs).unwrap();
        assert!(initiator.is_closed());
    }
    Lab::eventually("all are counted", || {
        lab.server().counters().malformed_pdus == 5
    });
    assert_eq!(other.command(&[0; 6], &[], 0).status, 0);
}

// Foreign judges.

/// Runs a tool; `None`, and a sentence, when it is not installed.
fn run(tool: &str, arguments: &[&str]) -> Option<(bool, String)> {
    match Command::new("timeout")
        .arg("30")
        .arg(tool)
        .args(arguments)
        .output()
    {
        Ok(output) if output.status.code() != Some(127) => {
            let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.push_str(&String::from_utf8_lossy(&output.stderr));
            Some((output.status.success(), text))
        }
        _ => {
            let sentence = format!("{tool} is not installed: this judge was not heard");
            assert!(std::env::var("CI").as_deref() != Ok("true"), "{sentence}");
            eprintln!("{sentence}");
            None
        }
    }
}

#[test]
fn libiscsis_tools_find_the_target_with_chap_and_not_without() {
    let lab = Lab::shaped(Shape {
        chap: Some(("judge", "judges-secret")),
        ..Shape::default()
    });
    let with = format!("iscsi://judge%25judges-secret@{}/{IQN}/0", lab.portal);
    let with = with.replace("%25", "%");
    let Some((passed, said)) = run("iscsi-inq", &[&with]) else {
        return;
    };
    assert!(passed && said.contains("DISKLESS"), "{said}");
    let wrong = with.replace("judges-secret", "judges-secrets");
    for url in [&lab.url(), &wrong] {
        let (passed, said) = run("iscsi-inq", &[url]).unwrap();
        assert!(!passed && !said.contains("DISKLESS"), "{said}");
    }
    let portal = format!("iscsi://judge%judges-secret@{}", lab.portal);
    let (_, said) = run("iscsi-ls", &[&portal]).unwrap();
    assert!(said.contains(IQN), "{said}");
}

#[test]
fn qemus_tools_write_compare_and_discard() {
    let lab = Lab::shaped(Shape {
        disk_bytes: Some(32 << 20),
        ..Shape::default()
    });
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.raw");
    // Every 4 bytes say where they are, and some of it is empty.
    let mut bytes: Vec<u8> = (0..8u32 << 20).flat_map(u32::to_be_bytes).collect();
    bytes[5 << 20..9 << 20].fill(0);
    std::fs::write(&image, &bytes).unwrap();
    let (image, url) = (image.to_str().unwrap(), lab.url());
    let convert = ["convert", "-n", "-f", "raw", "-O", "raw", image, &url];
    let Some((passed, said)) = run("qemu-img", &convert) else {
        return;
    };
    if said.contains("Unknown protocol 'iscsi'") {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{said}");
        eprintln!("QEMU has no iSCSI (package qemu-block-extra): this judge was not heard");
        return;
    }
    assert!(passed, "{said}");
    let compare = ["compare", "-f", "raw", "-F", "raw", image, &url];
    let (passed, said) = run("qemu-img", &compare).unwrap();
    assert!(passed && said.contains("identical"), "{said}");
    let io = [
        "-f",
        "raw",
        "-c",
        "write -P 0xab 1M 3M",
        "-c",
        "flush",
        "-c",
        "read -P 0xab 1M 3M",
        "-c",
        "discard 1M 1M",
        "-c",
        "read -P 0 1M 1M",
        "-c",
        "read -P 0xab 2M 2M",
        "-c",
        "read -P 0 5M 4M",
        &url,
    ];
    let (passed, said) = run("qemu-io", &io).unwrap();
    assert!(passed && !said.contains("failed"), "{said}");
    // And not everything is identical to everything.
    let (passed, _) = run("qemu-img", &compare).unwrap();
    assert!(!passed);
}
