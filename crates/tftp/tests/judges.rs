//! Real TFTP clients against the server, on loopback: tftp-hpa, curl,
//! busybox; and a hand-made client for what they do not do.
//!
//! A judge that is not installed is skipped with a sentence at home and is a
//! failure in CI (`CI=true`).
#![allow(clippy::unwrap_used)] // helpers of tests stand outside #[test] functions

use std::collections::HashMap;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tftp::wire::{Ask, Mode, Packet, TransferOption};
use tftp::{Content, Counters, ErrorCode, Files, Limits, Outcome, Readable, Request, Server};
use tokio::net::UdpSocket;
use tokio::process::Command;

/// A site with a few files that writes down what it was told.
#[derive(Default)]
struct Site {
    files: HashMap<String, Content>,
    asked: Mutex<Vec<Request>>,
    ended: Mutex<Vec<(Request, Outcome)>>,
}

impl Files for Site {
    fn open(&self, request: &Request) -> Result<Content, ErrorCode> {
        self.asked.lock().unwrap().push(request.clone());
        if request.name == "panic" {
            panic!("the site has a bug");
        }
        self.files
            .get(&request.name)
            .cloned()
            .ok_or(ErrorCode::NotFound)
    }

    fn ended(&self, request: &Request, outcome: &Outcome) {
        self.ended
            .lock()
            .unwrap()
            .push((request.clone(), outcome.clone()));
    }
}

/// [`pattern`] as something that is no file, broken from `sound_bytes` on.
struct Pattern {
    size_bytes: usize,
    sound_bytes: usize,
}

impl Readable for Pattern {
    fn size_bytes(&self) -> u64 {
        self.size_bytes as u64
    }

    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let from = usize::try_from(offset_bytes).unwrap();
        let end = from + buffer.len();
        assert!(end <= self.size_bytes, "asked for more than there is");
        if end > self.sound_bytes {
            return Err(std::io::Error::other("the disk is broken"));
        }
        buffer.copy_from_slice(&pattern(end)[from..]);
        Ok(())
    }
}

struct Lab {
    site: Arc<Site>,
    server: Server,
    directory: TempDir,
}

fn pattern(length: usize) -> Vec<u8> {
    (0..u32::MAX)
        .map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .take(length)
        .collect()
}

/// Large enough for many windows and for more than one read-ahead.
const LARGE: usize = 850_528;

impl Lab {
    fn new(limits: Limits) -> Lab {
        Lab::on(Ipv4Addr::LOCALHOST, limits)
    }

    fn on(address: Ipv4Addr, limits: Limits) -> Lab {
        let directory = TempDir::new().unwrap();
        let mut site = Site::default();
        let memory = |bytes: Vec<u8>| Content::Bytes(Bytes::from(bytes));
        site.files.insert("empty".to_owned(), memory(Vec::new()));
        site.files.insert("exact".to_owned(), memory(pattern(1024)));
        site.files
            .insert("text".to_owned(), memory(b"one\ntwo\n".to_vec()));
        let path = directory.path().join("large");
        std::fs::File::create(&path)
            .unwrap()
            .write_all(&pattern(LARGE))
            .unwrap();
        let file = Arc::new(std::fs::File::open(&path).unwrap());
        site.files.insert(
            "boot/large".to_owned(),
            Content::File {
                file: Arc::clone(&file),
                size_bytes: LARGE as u64,
            },
        );
        site.files.insert(
            "shrunk".to_owned(),
            Content::File {
                file,
                size_bytes: LARGE as u64 + 100_000,
            },
        );
        let readable = |size_bytes, sound_bytes| {
            Content::Readable(Arc::new(Pattern {
                size_bytes,
                sound_bytes,
            }))
        };
        site.files
            .insert("inside/large".to_owned(), readable(LARGE, LARGE));
        site.files
            .insert("inside/broken".to_owned(), readable(LARGE, LARGE / 2));
        let site = Arc::new(site);
        let files: Arc<dyn Files> = site.clone();
        let server = Server::start(&[SocketAddrV4::new(address, 0)], files, limits).unwrap();
        Lab {
            site,
            server,
            directory,
        }
    }

    fn port(&self) -> u16 {
        self.server.local_addresses()[0].port()
    }

    fn address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.port())
    }

    /// Outcomes, once there are `count` of them.
    async fn outcomes(&self, count: usize) -> Vec<Outcome> {
        let outcomes = || -> Vec<Outcome> {
            let ended = self.site.ended.lock().unwrap();
            ended.iter().map(|(_, outcome)| outcome.clone()).collect()
        };
        for _ in 0..500 {
            let ended = outcomes();
            if ended.len() >= count {
                return ended;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("only {:?} ended", outcomes());
    }

    /// Waits until the counters are as wished.
    async fn until(&self, wished: impl Fn(&Counters) -> bool) {
        for _ in 0..500 {
            if wished(&self.server.counters()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{:?}", self.server.counters());
    }
}

/// Runs a judge; `None` when it is not installed and that is allowed.
async fn judge(
    program: &str,
    arguments: &[&str],
    directory: &TempDir,
) -> Option<std::process::Output> {
    let spawned = Command::new(program)
        .args(arguments)
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let child = match spawned {
        Ok(child) => child,
        Err(error) if std::env::var("CI").is_ok_and(|ci| ci == "true") => {
            panic!("{program} is needed in CI: {error}")
        }
        Err(error) => {
            eprintln!("skipped: {program} is not installed ({error})");
            return None;
        }
    };
    let output = tokio::time::timeout(Duration::from_secs(20), child.wait_with_output()).await;
    Some(output.expect("the judge hangs").unwrap())
}

// ---- the judges ----------------------------------------------------------

#[tokio::test]
async fn tftp_hpa_reads_a_file_in_octet_mode() {
    let lab = Lab::new(Limits::default());
    let port = lab.port().to_string();
    let arguments = [
        "-m",
        "binary",
        "127.0.0.1",
        &port,
        "-c",
        "get",
        "\\Boot\\..x/large",
        "bad",
    ];
    let Some(_) = judge("tftp", &arguments, &lab.directory).await else {
        return;
    };
    let arguments = [
        "-m",
        "binary",
        "127.0.0.1",
        &port,
        "-c",
        "get",
        "/boot\\large",
        "copy",
    ];
    let output = judge("tftp", &arguments, &lab.directory).await.unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        std::fs::read(lab.directory.path().join("copy")).unwrap(),
        pattern(LARGE)
    );
    let outcomes = lab.outcomes(2).await;
    assert_eq!(outcomes[0], Outcome::Refused(ErrorCode::NotFound));
    assert_eq!(
        outcomes[1],
        Outcome::Complete {
            bytes: LARGE as u64
        }
    );
}

#[tokio::test]
async fn tftp_hpa_reads_text_in_netascii() {
    let lab = Lab::new(Limits::default());
    let port = lab.port().to_string();
    let arguments = [
        "-m",
        "ascii",
        "127.0.0.1",
        &port,
        "-c",
        "get",
        "text",
        "copy",
    ];
    let Some(output) = judge("tftp", &arguments, &lab.directory).await else {
        return;
    };
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        std::fs::read(lab.directory.path().join("copy")).unwrap(),
        b"one\ntwo\n"
    );
}

#[tokio::test]
async fn tftp_hpa_may_not_write() {
    let lab = Lab::new(Limits::default());
    let port = lab.port().to_string();
    std::fs::write(lab.directory.path().join("mine"), "x").unwrap();
    let arguments = [
        "-m",
        "binary",
        "127.0.0.1",
        &port,
        "-c",
        "put",
        "mine",
        "theirs",
    ];
    let Some(output) = judge("tftp", &arguments, &lab.directory).await else {
        return;
    };
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("code 2"), "{said}");
    assert_eq!(lab.server.counters().writes_refused, 1);
}

#[tokio::test]
async fn curl_reads_with_block_sizes_from_the_smallest_to_ours() {
    let lab = Lab::new(Limits::default());
    for (size, name, expected) in [
        ("8", "exact", pattern(1024)),
        ("512", "exact", pattern(1024)),
        ("1024", "exact", pattern(1024)),
        ("1468", "boot/large", pattern(LARGE)),
        ("65464", "boot/large", pattern(LARGE)),
    ] {
        let url = format!("tftp://127.0.0.1:{}/{name}", lab.port());
        let arguments = ["-s", "-S", "--tftp-blksize", size, "-o", "copy", &url];
        let Some(output) = judge("curl", &arguments, &lab.directory).await else {
            return;
        };
        assert!(output.status.success(), "{output:?}");
        assert_eq!(
            std::fs::read(lab.directory.path().join("copy")).unwrap(),
            expected,
            "blksize {size}"
        );
    }
}

#[tokio::test]
async fn curl_is_told_that_a_file_is_missing() {
    let lab = Lab::new(Limits::default());
    let url = format!("tftp://127.0.0.1:{}/nothing", lab.port());
    let Some(output) = judge("curl", &["-s", "-o", "copy", &url], &lab.directory).await else {
        return;
    };
    assert_eq!(
        output.status.code(),
        Some(68),
        "curl's code for a missing file"
    );
    assert_eq!(
        lab.outcomes(1).await,
        [Outcome::Refused(ErrorCode::NotFound)]
    );
}

#[tokio::test]
async fn busybox_reads_files_of_awkward_sizes() {
    let lab = Lab::new(Limits::default());
    let server = lab.port().to_string();
    for (block, name, expected) in [
        ("512", "empty", Vec::new()),
        ("512", "exact", pattern(1024)),
        ("1428", "boot/large", pattern(LARGE)),
        ("1428", "inside/large", pattern(LARGE)),
    ] {
        let arguments = [
            "tftp",
            "-g",
            "-b",
            block,
            "-r",
            name,
            "-l",
            "copy",
            "127.0.0.1",
            &server,
        ];
        let Some(output) = judge("busybox", &arguments, &lab.directory).await else {
            return;
        };
        assert!(output.status.success(), "{output:?}");
        assert_eq!(
            std::fs::read(lab.directory.path().join("copy")).unwrap(),
            expected,
            "{name}"
        );
    }
}

// ---- by hand -------------------------------------------------------------

/// A client that says exactly what a test tells it to.
struct Client {
    socket: UdpSocket,
    /// Where answers come from, once there was one.
    peer: Option<SocketAddr>,
}

impl Client {
    async fn new() -> Client {
        Client {
            socket: UdpSocket::bind("127.0.0.1:0").await.unwrap(),
            peer: None,
        }
    }

    async fn ask(&self, to: SocketAddrV4, name: &str, options: &[(&str, &str)]) {
        let options = options
            .iter()
            .map(|(n, v)| TransferOption {
                name: n.as_bytes(),
                value: v.as_bytes(),
            })
            .collect();
        let ask = Ask {
            name: name.as_bytes(),
            mode: Mode::Octet,
            options,
        };
        let mut datagram = Vec::new();
        Packet::Read(ask).emit(&mut datagram);
        self.socket.send_to(&datagram, to).await.unwrap();
    }

    async fn say(&self, packet: &Packet<'_>) {
        let mut datagram = Vec::new();
        packet.emit(&mut datagram);
        self.socket
            .send_to(&datagram, self.peer.unwrap())
            .await
            .unwrap();
    }

    /// The next datagram, or `None` after a fifth of a second.
    async fn hear(&mut self) -> Option<Vec<u8>> {
        self.hear_within(Duration::from_millis(200)).await
    }

    /// The next datagram that must come.
    async fn expect(&mut self) -> Vec<u8> {
        self.hear_within(Duration::from_secs(10))
            .await
            .expect("no answer")
    }

    async fn hear_within(&mut self, time: Duration) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 2048];
        let received = tokio::time::timeout(time, self.socket.recv_from(&mut buffer))
            .await
            .ok()?;
        let (length, from) = received.unwrap();
        self.peer = Some(from);
        buffer.truncate(length);
        Some(buffer)
    }
}

#[tokio::test]
async fn edk2s_two_steps_are_a_probe_and_a_transfer() {
    let lab = Lab::new(Limits::default());
    let mut probe = Client::new().await;
    probe
        .ask(
            lab.address(),
            "boot/large",
            &[("tsize", "0"), ("blksize", "1468"), ("windowsize", "4")],
        )
        .await;
    assert_eq!(
        probe.expect().await,
        b"\0\x06tsize\x00850528\0blksize\x001468\0windowsize\x004\0"
    );
    probe
        .say(&Packet::Error {
            code: 8,
            message: b"User aborted the transfer",
        })
        .await;
    let mut client = Client::new().await;
    client
        .ask(
            lab.address(),
            "boot/large",
            &[("blksize", "1468"), ("windowsize", "4")],
        )
        .await;
    assert_eq!(
        client.expect().await,
        b"\0\x06blksize\x001468\0windowsize\x004\0"
    );
    let mut received = Vec::new();
    let mut block: u16 = 0;
    client.say(&Packet::Ack { block }).await;
    while received.len() < LARGE {
        let datagram = client.expect().await;
        let Ok(Packet::Data {
            block: number,
            payload,
        }) = Packet::parse(&datagram)
        else {
            panic!("{datagram:?}")
        };
        if number != block + 1 {
            continue; // a resend on a busy machine
        }
        block = number;
        received.extend_from_slice(payload);
        if block.is_multiple_of(4) || payload.len() < 1468 {
            client.say(&Packet::Ack { block }).await;
        }
    }
    assert_eq!(received, pattern(LARGE));
    let outcomes = lab.outcomes(2).await;
    assert_eq!(
        outcomes,
        [
            Outcome::Probed,
            Outcome::Complete {
                bytes: LARGE as u64
            }
        ]
    );
}

/// Set in the copy of a test that runs in a network of its own.
const NARROW_BYTES: &str = "TFTP_TEST_NARROW_BYTES";

/// In a copy of this test whose network takes packets of 1492 bytes, as
/// PPPoE does.
#[tokio::test]
async fn blocks_fit_the_way_to_the_client() {
    if std::env::var_os(NARROW_BYTES).is_none() {
        let script = format!(
            "ip link set lo mtu 1492 up && {NARROW_BYTES}=1492 \"$0\" --exact blocks_fit_the_way_to_the_client"
        );
        let binary = std::env::current_exe().unwrap();
        let arguments = ["-rn", "sh", "-c", &script, binary.to_str().unwrap()];
        let directory = TempDir::new().unwrap();
        let Some(output) = judge("unshare", &arguments, &directory).await else {
            return;
        };
        if String::from_utf8_lossy(&output.stderr).contains("unshare failed") {
            assert!(std::env::var("CI").is_err(), "{output:?}");
            eprintln!("skipped: no namespace may be made here");
            return;
        }
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("1 passed"), "{output:?}");
        return;
    }
    let lab = Lab::new(Limits {
        max_block_bytes: 65464,
        ..Limits::default()
    });
    for (asked, granted) in [("1468", "1460"), ("65464", "1460"), ("1456", "1456")] {
        let mut client = Client::new().await;
        client
            .ask(lab.address(), "exact", &[("blksize", asked)])
            .await;
        let expected = format!("\0\x06blksize\0{granted}\0");
        assert_eq!(client.expect().await, expected.as_bytes(), "{asked}");
    }
}

#[tokio::test]
async fn a_request_repeated_from_its_port_starts_no_second_transfer() {
    let lab = Lab::new(Limits::default());
    let mut client = Client::new().await;
    client.ask(lab.address(), "exact", &[]).await;
    client.expect().await;
    let first = client.peer;
    client.ask(lab.address(), "exact", &[]).await;
    assert_eq!(client.expect().await[..4], [0, 3, 0, 1]);
    assert_eq!(client.peer, first, "the same transfer answers again");
    let counters = lab.server.counters();
    assert_eq!(
        (counters.requests, counters.repeated, counters.running),
        (1, 1, 1)
    );
}

#[tokio::test]
async fn another_file_from_the_same_port_replaces_the_transfer() {
    let lab = Lab::new(Limits::default());
    let mut client = Client::new().await;
    client.ask(lab.address(), "exact", &[]).await;
    client.expect().await;
    client.ask(lab.address(), "empty", &[]).await;
    assert_eq!(client.expect().await, [0, 3, 0, 1]);
    client.say(&Packet::Ack { block: 1 }).await;
    let outcomes = lab.outcomes(2).await;
    assert_eq!(
        outcomes,
        [
            Outcome::TimedOut { bytes: 0 },
            Outcome::Complete { bytes: 0 }
        ]
    );
}

#[tokio::test]
async fn a_silent_client_gets_its_block_again() {
    let lab = Lab::new(Limits::default());
    let mut client = Client::new().await;
    client.ask(lab.address(), "exact", &[]).await;
    let first = client.expect().await;
    assert_eq!(client.expect().await, first);
}

#[tokio::test]
async fn a_stranger_on_a_transfers_port_is_told_so_and_changes_nothing() {
    let lab = Lab::new(Limits::default());
    let mut client = Client::new().await;
    client.ask(lab.address(), "exact", &[]).await;
    client.expect().await;
    let mut stranger = Client::new().await;
    stranger.peer = client.peer;
    stranger.say(&Packet::Ack { block: 1 }).await;
    let answer = stranger.expect().await;
    assert!(
        matches!(Packet::parse(&answer), Ok(Packet::Error { code: 5, .. })),
        "{answer:?}"
    );
    client.say(&Packet::Ack { block: 1 }).await;
    assert_eq!(client.expect().await[..4], [0, 3, 0, 2]);
}

#[tokio::test]
async fn names_that_climb_are_not_found_and_never_asked_for() {
    let lab = Lab::new(Limits::default());
    let mut client = Client::new().await;
    client
        .ask(lab.address(), "../../etc/passwd", &[("tsize", "0")])
        .await;
    let answer = client.expect().await;
    assert!(
        matches!(Packet::parse(&answer), Ok(Packet::Error { code: 1, .. })),
        "{answer:?}"
    );
    assert!(lab.site.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_file_that_shrank_ends_with_an_error() {
    let lab = Lab::new(Limits {
        max_window_blocks: 1,
        ..Limits::default()
    });
    let mut client = Client::new().await;
    client
        .ask(lab.address(), "shrunk", &[("blksize", "1468")])
        .await;
    let last = loop {
        let answer = client.expect().await;
        match Packet::parse(&answer) {
            Ok(Packet::OptionAck(_)) => client.say(&Packet::Ack { block: 0 }).await,
            Ok(Packet::Data { block, .. }) => client.say(&Packet::Ack { block }).await,
            _ => break answer,
        }
    };
    assert!(
        matches!(Packet::parse(&last), Ok(Packet::Error { code: 0, .. })),
        "{last:?}"
    );
    assert!(matches!(lab.outcomes(1).await[0], Outcome::Failed { .. }));
}

#[tokio::test]
async fn what_cannot_be_read_ends_with_an_error_where_it_breaks() {
    let lab = Lab::new(Limits::default());
    let mut client = Client::new().await;
    let options = [("blksize", "1024"), ("tsize", "0")];
    client.ask(lab.address(), "inside/broken", &options).await;
    assert_eq!(
        client.expect().await,
        b"\0\x06blksize\x001024\0tsize\x00850528\0"
    );
    client.say(&Packet::Ack { block: 0 }).await;
    let last = loop {
        let answer = client.expect().await;
        match Packet::parse(&answer) {
            Ok(Packet::Data { block, .. }) => client.say(&Packet::Ack { block }).await,
            _ => break answer,
        }
    };
    assert!(
        matches!(Packet::parse(&last), Ok(Packet::Error { code: 0, .. })),
        "{last:?}"
    );
    let outcome = lab.outcomes(1).await.remove(0);
    let Outcome::Failed { reason, bytes } = &outcome else {
        panic!("{outcome:?}")
    };
    assert!(reason.contains("the disk is broken"), "{reason}");
    assert!(*bytes > LARGE as u64 / 2 - 128 * 1024, "{bytes}");
}

#[tokio::test]
async fn a_bug_in_the_site_is_an_error_and_the_server_goes_on() {
    let lab = Lab::new(Limits::default());
    let mut client = Client::new().await;
    client.ask(lab.address(), "panic", &[]).await;
    let answer = client.expect().await;
    assert!(
        matches!(Packet::parse(&answer), Ok(Packet::Error { code: 0, .. })),
        "{answer:?}"
    );
    let mut client = Client::new().await;
    client.ask(lab.address(), "empty", &[]).await;
    assert_eq!(client.expect().await, [0, 3, 0, 1]);
}

#[tokio::test]
async fn garbage_is_counted_and_gets_no_answer() {
    let lab = Lab::new(Limits::default());
    let mut client = Client::new().await;
    let garbage: [&[u8]; 5] = [b"", b"\0", b"\0\x01name", b"\0\x04\0\x01", &[0xff; 1400]];
    for datagram in garbage {
        client
            .socket
            .send_to(datagram, lab.address())
            .await
            .unwrap();
    }
    lab.until(|counters| counters.malformed == 5).await;
    assert_eq!(client.hear().await, None);
}

#[tokio::test]
async fn past_a_clients_places_requests_are_dropped_in_silence() {
    let lab = Lab::new(Limits {
        transfers_per_client: 2,
        ..Limits::default()
    });
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Client::new().await;
        client.ask(lab.address(), "exact", &[]).await;
        client.expect().await;
        clients.push(client);
    }
    let mut third = Client::new().await;
    third.ask(lab.address(), "exact", &[]).await;
    lab.until(|counters| counters.over_limit == 1).await;
    assert_eq!(third.hear().await, None);
    clients[0]
        .say(&Packet::Error {
            code: 0,
            message: b"enough",
        })
        .await;
    lab.until(|counters| counters.running == 1).await;
    third.ask(lab.address(), "exact", &[]).await;
    assert_eq!(third.expect().await[..4], [0, 3, 0, 1]);
}

#[tokio::test]
async fn past_all_places_requests_are_dropped_in_silence() {
    let lab = Lab::new(Limits {
        transfers: 1,
        ..Limits::default()
    });
    let mut first = Client::new().await;
    first.ask(lab.address(), "exact", &[]).await;
    first.expect().await;
    let second = Client::new().await;
    second.ask(lab.address(), "exact", &[]).await;
    lab.until(|counters| counters.over_limit == 1).await;
    assert_eq!(lab.server.counters().running, 1);
}

#[tokio::test]
async fn a_server_on_all_addresses_answers_from_the_one_it_was_asked_on() {
    let lab = Lab::on(Ipv4Addr::UNSPECIFIED, Limits::default());
    let mut client = Client::new().await;
    let asked = Ipv4Addr::new(127, 0, 0, 42);
    client
        .ask(SocketAddrV4::new(asked, lab.port()), "empty", &[])
        .await;
    client.expect().await;
    assert_eq!(client.peer.unwrap().ip(), asked);
    assert_eq!(*lab.site.asked.lock().unwrap()[0].local.ip(), asked);
}

#[tokio::test]
async fn a_broadcast_request_is_ignored() {
    let lab = Lab::on(Ipv4Addr::UNSPECIFIED, Limits::default());
    let mut client = Client::new().await;
    client.socket.set_broadcast(true).unwrap();
    client
        .ask(
            SocketAddrV4::new(Ipv4Addr::new(127, 255, 255, 255), lab.port()),
            "empty",
            &[],
        )
        .await;
    lab.until(|counters| counters.not_unicast == 1).await;
    assert_eq!(client.hear().await, None);
    assert!(lab.site.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_taken_port_is_an_error_that_names_it() {
    let lab = Lab::new(Limits::default());
    let files: Arc<dyn Files> = lab.site.clone();
    let error = Server::start(&[lab.address()], files, Limits::default()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(
        error.to_string().contains(&lab.address().to_string()),
        "{error}"
    );
}

#[tokio::test]
async fn stopping_lets_a_running_transfer_end() {
    let lab = Lab::new(Limits::default());
    let mut client = Client::new().await;
    client.ask(lab.address(), "empty", &[]).await;
    client.expect().await;
    let stopping = tokio::spawn(lab.server.stop());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!stopping.is_finished());
    client.say(&Packet::Ack { block: 1 }).await;
    tokio::time::timeout(Duration::from_secs(3), stopping)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        lab.site.ended.lock().unwrap()[0].1,
        Outcome::Complete { bytes: 0 }
    );
}

#[tokio::test]
async fn dropping_the_server_tells_its_clients() {
    let lab = Lab::new(Limits::default());
    let mut client = Client::new().await;
    client.ask(lab.address(), "exact", &[]).await;
    client.expect().await;
    drop(lab.server);
    let answer = client.expect().await;
    assert!(
        matches!(Packet::parse(&answer), Ok(Packet::Error { code: 0, .. })),
        "{answer:?}"
    );
}

/// Forty machines that boot at once, through the places of one server.
#[tokio::test]
async fn many_clients_at_once_are_all_served() {
    let lab = Lab::new(Limits {
        transfers_per_client: 64,
        ..Limits::default()
    });
    let address = lab.address();
    let mut machines = tokio::task::JoinSet::new();
    for _ in 0..40 {
        machines.spawn(async move {
            let mut client = Client::new().await;
            client.ask(address, "exact", &[]).await;
            let mut received = Vec::new();
            let mut expected = 1;
            loop {
                let datagram = client.expect().await;
                let Ok(Packet::Data { block, payload }) = Packet::parse(&datagram) else {
                    panic!()
                };
                client.say(&Packet::Ack { block }).await;
                if block == expected {
                    expected += 1;
                    received.extend_from_slice(payload);
                    if payload.len() < 512 {
                        return received;
                    }
                }
            }
        });
    }
    for received in machines.join_all().await {
        assert_eq!(received, pattern(1024));
    }
    lab.outcomes(40).await;
    assert_eq!(lab.server.counters().complete, 40);
}
