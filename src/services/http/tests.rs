//! Claims about what is answered over HTTP: through the router, and where the
//! connection matters over a socket.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::http::Method;
use dhcp::Mac;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::script::with_jitter;
use super::server::BUFFER_BYTES;
use super::*;
use crate::inventory::{Machine, MachineChange, MachineState, OverlayMode};
use crate::services::tests::{Lab, PC_ADDRESS};
use crate::services::tls::Authority;

const PC: &str = "/boot.ipxe?mac=52-54-00-00-00-01";

fn lab() -> (Lab, Machine) {
    let lab = Lab::new();
    lab.image("debian", 1);
    let pc = lab.machine("pc1", 1, "debian", OverlayMode::Keep);
    (lab, pc)
}

#[test]
fn a_machine_gets_a_script_that_boots_its_disk() {
    let (lab, _) = lab();
    let answer = lab.get(PC);
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers[header::CACHE_CONTROL], "no-store");
    assert!(answer.text.starts_with("#!ipxe\n"));
    for line in [
        "echo diskless: pc1 boots debian, keep",
        "set initiator-iqn iqn.2026-11.net.diskless:pc1.initiator",
        "set username pc1.1",
        "sanboot iscsi:10.0.0.1::3260:0:iqn.2026-11.net.diskless:pc1 || goto failed",
        "chain --replace http://10.0.0.1/boot.ipxe?mac=52-54-00-00-00-01 || goto again",
    ] {
        assert!(answer.text.lines().any(|l| l == line), "{}", answer.text);
    }
}

#[test]
fn who_fetches_a_script_is_known_by_its_address_from_then_on() {
    let (lab, pc) = lab();
    let sent = || lab.told(&pc, Stage::FileSent).len();
    std::fs::write(lab.files().join("a"), "a").unwrap();
    lab.get(PC);
    lab.get("/files/a");
    assert_eq!(sent(), 0, "it is nobody's neighbour");
    let entry = |mac| format!("{PC_ADDRESS} 0x1 0x2 {mac} * eth1\n");
    std::fs::write(lab.neighbours(), entry("52:54:00:00:00:02")).unwrap();
    lab.get(PC);
    lab.get("/files/a");
    assert_eq!(sent(), 0, "it is another neighbour");
    std::fs::write(lab.neighbours(), entry("52:54:00:00:00:01")).unwrap();
    lab.get(PC);
    lab.get("/files/a");
    assert_eq!(sent(), 1);
}

#[test]
fn every_spelling_of_a_mac_finds_its_machine() {
    let (lab, _) = lab();
    for mac in ["52:54:00:00:00:01", "525400000001", "52%3a54%3A00:00:00:01"] {
        let answer = lab.get(&format!("/boot.ipxe?mac={mac}"));
        assert!(answer.text.contains("echo diskless: pc1 boots"), "{mac}");
    }
}

#[test]
fn a_mac_that_is_none_is_refused_with_a_sentence() {
    let (lab, _) = lab();
    let long = "5".repeat(4000);
    for mac in [
        "rubbish",
        "52-54-00-00-00",
        "%",
        "%zz",
        "%ff%fe",
        "52-54-00-00-00-0g",
        "00-00-00-00-00-00",
        "ff-ff-ff-ff-ff-ff",
        long.as_str(),
    ] {
        let answer = lab.get(&format!("/boot.ipxe?mac={mac}"));
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{mac}");
        assert!(
            answer.text.ends_with('\n') && answer.text.len() < 200,
            "{}",
            answer.text
        );
    }
    let twice = lab.get("/boot.ipxe?mac=52-54-00-00-00-01&mac=52-54-00-00-00-02");
    assert_eq!(twice.status, StatusCode::BAD_REQUEST);
    assert_eq!(lab.inventory().machines().unwrap().len(), 1);
}

#[test]
fn head_is_answered_like_get_without_the_body() {
    let (lab, _) = lab();
    let (got, head) = (lab.get(PC), lab.ask(Method::HEAD, PC, &[]));
    assert_eq!(head.status, StatusCode::OK);
    assert!(head.text.is_empty());
    assert_eq!(
        head.headers[header::CONTENT_TYPE],
        got.headers[header::CONTENT_TYPE]
    );
    assert_eq!(
        lab.ask(Method::POST, PC, &[]).status,
        StatusCode::METHOD_NOT_ALLOWED
    );
}

#[test]
fn a_machine_nobody_knows_is_enrolled_and_told_its_mac() {
    let (lab, _) = lab();
    let text = lab.get("/boot.ipxe?mac=52-54-00-00-00-09").text;
    assert!(text.contains("this PC is not known here yet. MAC address 52:54:00:00:00:09"));
    assert!(text.contains("diskless machine set new-525400000009 "));
    let mac = Mac([0x52, 0x54, 0, 0, 0, 9]);
    let found = lab.inventory().machine_by_mac(mac).unwrap().unwrap();
    assert_eq!(found.state, MachineState::Pending);
}

#[test]
fn a_machine_nothing_is_assigned_to_is_told_so() {
    let (lab, pc) = lab();
    let change = MachineChange {
        assignment: Some(None),
        ..MachineChange::default()
    };
    lab.inventory().set_machine(pc.id, change).unwrap();
    let text = lab.get(PC).text;
    assert!(text.contains("nothing is assigned to pc1"), "{text}");
    assert!(!text.contains("sanboot"));
}

#[test]
fn a_machine_whose_image_is_missing_is_told_so_on_its_screen() {
    let (mut lab, pc) = lab();
    let image = lab.inventory().images()[0].clone();
    std::fs::rename(&image.directory, lab.files().join("v001")).unwrap();
    lab.restart();
    let answer = lab.get(PC);
    assert_eq!(answer.status, StatusCode::OK);
    assert!(
        answer.text.contains("echo there is no image \"debian\""),
        "{}",
        answer.text
    );
    assert!(lab.told(&pc, Stage::Problem)[0].contains("no image"));
    let generations = lab.inventory().generations(pc.id).unwrap();
    assert!(generations.prepared.is_none());
}

#[test]
fn machines_that_ask_all_at_once_are_told_to_wait_and_ask_again() {
    let (lab, pc) = lab();
    lab.inventory().use_up_enrolments();
    let told = lab.get("/boot.ipxe?mac=02-00-00-00-00-63");
    assert_eq!(told.status, StatusCode::OK);
    assert!(told.text.contains("too many machines"), "{}", told.text);
    assert!(told.text.contains("mac=02-00-00-00-00-63 || goto again"));
    // Whoever is known already is served.
    let known = lab.get(&format!("/boot.ipxe?mac={}", pc.mac)).text;
    assert!(known.contains("pc1 boots debian"), "{known}");
}

#[test]
fn who_does_not_say_who_it_is_is_asked() {
    let (lab, _) = lab();
    for query in [
        "",
        "?mac=",
        "?uuid=&serial=",
        "?uuid=rubbish",
        "?serial=none",
    ] {
        let text = lab.get(&format!("/boot.ipxe{query}")).text;
        assert!(text.contains("boot.ipxe?mac=${netX/mac:hexhyp}"), "{text}");
    }
}

#[test]
fn a_uuid_as_ipxe_prints_it_finds_the_machine_of_option_97() {
    let (lab, pc) = lab();
    // As the wire has it: the first three fields little-endian.
    let wire = [
        0x44, 0x33, 0x22, 0x11, 0x66, 0x55, 0x88, 0x77, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff,
        0x01,
    ];
    lab.inventory().enrol(pc.mac, Some(wire), None).unwrap();
    let text = lab
        .get("/boot.ipxe?uuid=11223344-5566-7788-99aa-bbccddeeff01")
        .text;
    assert!(text.contains("pc1 boots debian"), "{text}");
    // What the script's URL says is learned as DHCP would have it.
    lab.get("/boot.ipxe?mac=52-54-00-00-00-09&uuid=01020304-0506-0708-090a-0b0c0d0e0f10");
    let mac = Mac([0x52, 0x54, 0, 0, 0, 9]);
    let learned = lab.inventory().machine_by_mac(mac).unwrap().unwrap();
    assert_eq!(learned.uuid.unwrap()[..8], [4, 3, 2, 1, 6, 5, 8, 7]);
}

#[test]
fn a_serial_number_finds_the_one_machine_that_has_it() {
    let (lab, pc) = lab();
    lab.inventory()
        .enrol(pc.mac, None, Some("ABC 123"))
        .unwrap();
    let text = lab.get("/boot.ipxe?serial=ABC%20123").text;
    assert!(text.contains("pc1 boots debian"), "{text}");
    let other = Mac([0x52, 0x54, 0, 0, 0, 9]);
    lab.inventory().enrol(other, None, Some("ABC 123")).unwrap();
    let text = lab.get("/boot.ipxe?serial=ABC%20123").text;
    assert!(text.contains("${netX/mac:hexhyp}"), "{text}");
}

#[test]
fn a_file_is_served_in_parts_and_nothing_outside_its_directory() {
    let (lab, _) = lab();
    std::fs::create_dir(lab.files().join("iso")).unwrap();
    std::fs::write(lab.files().join("iso/a.iso"), b"0123456789").unwrap();
    let part = lab.ask(Method::GET, "/files/iso/a.iso", &[("range", "bytes=2-4")]);
    assert_eq!((part.status.as_u16(), part.text.as_str()), (206, "234"));
    for path in [
        "/files/../data/state.db",
        "/files/%2e%2e/data/state.db",
        "/files/iso/..%2f..%2fdata/state.db",
        "/files/..%5cdata/state.db",
        "/files/%252e%252e/data/state.db",
        "/files/..;/data/state.db",
        "/files/%2fetc/passwd",
        "/files//etc/passwd",
        "/files/a%00b",
        "/files/%2e%2e/",
        "/files/..%2fdata/",
        "/files//",
        "/iso/../data/state.db",
        "/iso/%2e%2e/%2e%2e/data/state.db",
        "/images/..%2fdebian",
        "/loader/../data/state.db",
    ] {
        assert_eq!(lab.get(path).status, StatusCode::NOT_FOUND, "{path}");
    }
    let bad = lab.get("/files/%ff%fe").status;
    assert!(bad.is_client_error(), "{bad}");
}

#[test]
fn the_users_own_document_is_sent_wherever_it_is_asked_for() {
    let (lab, _) = lab();
    std::fs::create_dir(lab.files().join("grub")).unwrap();
    std::fs::write(lab.files().join("grub/grub.cfg"), "echo mine").unwrap();
    std::fs::write(lab.files().join("snponly.efi"), "no document").unwrap();
    for path in [
        "/loader/grub/grub.cfg",
        "/loader//grub/grub.cfg",
        "/grub/grub.cfg",
        "//grub/grub.cfg",
        "/grub//grub.cfg",
    ] {
        let answer = lab.get(path);
        assert_eq!(
            (answer.status, answer.text.as_str()),
            (StatusCode::OK, "echo mine"),
            "{path}"
        );
    }
    for path in ["/snponly.efi", "/grub/../grub/grub.cfg"] {
        assert_eq!(lab.get(path).status, StatusCode::NOT_FOUND, "{path}");
    }
}

#[test]
fn a_directory_is_listed_and_its_links_lead_to_its_files() {
    let (lab, _) = lab();
    let directory = lab.files().join("isos/a b");
    std::fs::create_dir_all(directory.join("more")).unwrap();
    std::fs::write(directory.join("1&2.iso"), b"0123456789").unwrap();
    std::fs::write(directory.join(".hidden"), b"").unwrap();
    let page = lab.get("/iso/a%20b/");
    assert_eq!(
        page.headers[header::CONTENT_TYPE],
        "text/html; charset=utf-8"
    );
    let links = "<a href=\"./1%262.iso\">1&amp;2.iso</a>  10\n<a href=\"./more/\">more/</a>\n";
    assert!(page.text.contains(links), "{}", page.text);
    assert!(!page.text.contains("hidden"));
    assert_eq!(lab.get("/iso/a%20b/1%262.iso").text, "0123456789");
    assert!(lab.get("/files/").text.contains("<a href=\"./isos/\">"));
    for (path, location) in [("/iso/a%20b", "/iso/a%20b/"), ("/files", "/files/")] {
        let moved = lab.get(path);
        assert_eq!(moved.status, StatusCode::MOVED_PERMANENTLY, "{path}");
        assert_eq!(moved.headers[header::LOCATION], location);
    }
    assert_eq!(lab.get("/iso/none/").status, StatusCode::NOT_FOUND);
}

#[test]
fn a_golden_image_is_sent_only_where_that_is_allowed() {
    let (mut lab, _) = lab();
    let refused = lab.get("/images/debian@1");
    assert_eq!(refused.status, StatusCode::NOT_FOUND);
    assert!(refused.text.contains("http.images"), "{}", refused.text);
    lab.serve_images();
    let part = lab.ask(Method::GET, "/images/debian@1", &[("range", "bytes=-3")]);
    assert_eq!(
        (part.status.as_u16(), part.text.as_str()),
        (206, "\x01\x01\x01")
    );
    assert_eq!(
        lab.get("/images/debian").headers[header::ETAG],
        part.headers[header::ETAG]
    );
    assert_eq!(lab.get("/images/debian@7").status, StatusCode::NOT_FOUND);
    assert_eq!(lab.get("/images/debian@x").status, StatusCode::BAD_REQUEST);
    let image = lab.inventory().images()[0].clone();
    image.damage.set(std::iter::once(0..8192).collect());
    assert_eq!(
        lab.get("/images/debian@1").status,
        StatusCode::SERVICE_UNAVAILABLE
    );
}

#[test]
fn an_ipxe_that_cannot_say_which_part_it_wants_is_told_of_in_the_timeline() {
    let (lab, pc) = lab();
    lab.site().addresses.learn(PC_ADDRESS, pc.mac);
    std::fs::write(lab.files().join("a.iso"), b"0123456789").unwrap();
    let answer = lab.ask(Method::GET, "/files/a.iso", &[("range", "bytes=u-u")]);
    assert_eq!(answer.text, "0123456789");
    assert!(lab.told(&pc, Stage::Problem)[0].contains("another build"));
}

/// Reads one answer from a connection that stays open: head and body.
async fn answer(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    let head_bytes = loop {
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0);
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
    };
    let body = bytes.split_off(head_bytes);
    let head = String::from_utf8(bytes).unwrap();
    let mut body = body;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok())
        .expect("a length");
    while body.len() < length {
        assert_ne!(stream.read_buf(&mut body).await.unwrap(), 0);
    }
    assert_eq!(body.len(), length);
    (head, body)
}

#[tokio::test]
async fn files_come_whole_and_in_parts_over_one_connection_as_they_lie() {
    let (lab, _) = lab();
    let bytes: Vec<u8> = (0..3_000_000_u32)
        .flat_map(|n| n.to_le_bytes())
        .take(5_000_001)
        .collect();
    std::fs::write(lab.files().join("big.iso"), &bytes).unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = Server::start(&[address], None, Arc::clone(lab.site()))
        .await
        .unwrap();
    let mut stream = TcpStream::connect(server.addresses()[0]).await.unwrap();
    let mut ask = async |range: &str| {
        let request = format!("GET /files/big.iso HTTP/1.1\r\nHost: x\r\nRange: {range}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        answer(&mut stream).await
    };
    for (range, part) in [
        ("bytes=0-65535", &bytes[..65_536]),
        ("none", &bytes[..]),
        ("bytes=4999999-", &bytes[4_999_999..]),
        ("bytes=1000000-1000000", &bytes[1_000_000..1_000_001]),
        ("bytes=262143-1000000", &bytes[262_143..1_000_001]),
    ] {
        assert!(ask(range).await.1 == part, "{range}");
    }
    let (head, body) = ask("bytes=5-9,4000000-4999999").await;
    assert!(head.contains("multipart/byteranges"), "{head}");
    let contains = |part: &[u8]| body.windows(part.len()).any(|window| window == part);
    assert!(contains(&bytes[5..10]) && contains(&bytes[4_000_000..5_000_000]));
    server.stop().await;
}

#[tokio::test]
async fn a_file_that_shrinks_while_it_is_sent_ends_the_connection() {
    let (lab, _) = lab();
    let path = lab.files().join("big.iso");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = Server::start(&[address], None, Arc::clone(lab.site()))
        .await
        .unwrap();
    let mut stream = TcpStream::connect(server.addresses()[0]).await.unwrap();
    stream
        .write_all(b"GET /files/big.iso HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut bytes = vec![0; 1 << 16];
    stream.read_exact(&mut bytes).await.unwrap();
    file.set_len(0).unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(rest.len() < 64 << 20);
    server.stop().await;
}

/// So many at once, from four addresses: one alone would have its share.
#[tokio::test]
async fn two_thousand_connections_are_served_at_once() {
    const CONNECTIONS: usize = 2000;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        ..limit
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    if limit.maximum.is_some_and(|files| files < 20_000) {
        let is_ci = std::env::var("CI").is_ok_and(|value| value == "true");
        assert!(!is_ci, "too few descriptors (ulimit -Hn)");
        eprintln!("not tried: too few descriptors (ulimit -Hn)");
        return;
    }
    let (lab, _) = lab();
    std::fs::write(lab.files().join("a.iso"), vec![7; 100_000]).unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = Server::start(&[address], None, Arc::clone(lab.site()))
        .await
        .unwrap();
    let mut streams = Vec::new();
    for number in 0..CONNECTIONS {
        let socket = TcpSocket::new_v4().unwrap();
        let last = u8::try_from(number % 4 + 2).unwrap();
        socket
            .bind((Ipv4Addr::new(127, 0, 0, last), 0).into())
            .unwrap();
        let mut stream = socket.connect(server.addresses()[0]).await.unwrap();
        // All ask before anybody is read from.
        let request = b"GET /files/a.iso HTTP/1.1\r\nHost: x\r\nRange: bytes=9-4104\r\n\r\n";
        stream.write_all(request).await.unwrap();
        streams.push(stream);
    }
    for stream in &mut streams {
        assert!(answer(stream).await.1 == [7; 4096]);
    }
    // And nobody was sent away meanwhile.
    for stream in &mut streams {
        stream
            .write_all(b"HEAD /iso/ HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let mut head = [0; 15];
        stream.read_exact(&mut head).await.unwrap();
        assert!(head.starts_with(b"HTTP/1.1 "));
    }
    drop(streams);
    server.stop().await;
}

/// Curl judges: it knows the authority and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_enrolled_our_authority_reads_files_over_https_and_who_cannot_is_told_of() {
    let is_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    if std::process::Command::new("curl")
        .arg("--version")
        .output()
        .is_err()
    {
        assert!(!is_ci, "curl is missing");
        eprintln!("not judged: curl is missing");
        return;
    }
    let (lab, pc) = lab();
    lab.site().addresses.learn(Ipv4Addr::LOCALHOST, pc.mac);
    let bytes: Vec<u8> = (0..400_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(lab.files().join("big.iso"), &bytes).unwrap();
    let authority = Authority::open(lab.files()).unwrap();
    let identity = authority.certify(&[Ipv4Addr::LOCALHOST]).unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let tls = Tls {
        addresses: vec![address],
        acceptor: identity.acceptor().unwrap(),
    };
    let server = Server::start(&[address], Some(tls), Arc::clone(lab.site()))
        .await
        .unwrap();
    let url = format!("https://{}/files/big.iso", server.tls_addresses()[0]);
    let certificate = lab.files().join("tls/ca.pem");
    let curl = async |arguments: &[&str]| {
        let mut curl = tokio::process::Command::new("curl");
        curl.args(["--silent", "--max-time", "60"])
            .args(arguments)
            .arg(&url);
        curl.output().await.unwrap()
    };
    let cacert = ["--cacert", certificate.to_str().unwrap()];
    assert!(curl(&cacert).await.stdout == bytes);
    let part = [
        &cacert[..],
        &["--tls-max", "1.2", "--range", "1000000-1299999"],
    ]
    .concat();
    assert!(curl(&part).await.stdout == bytes[1_000_000..1_300_000]);
    assert!(!curl(&[]).await.status.success(), "a stranger's authority");
    // As firmware without elliptic curves: none of ours.
    let without = [&cacert[..], &["--tls-max", "1.2", "--curves", "secp521r1"]].concat();
    assert!(!curl(&without).await.status.success());
    let told = lab.told(&pc, Stage::Problem);
    assert!(
        told.iter().any(|words| words.contains("does not trust")),
        "{told:?}"
    );
    assert!(
        told.iter().any(|words| words.contains("http.tls_for")),
        "{told:?}"
    );
    server.stop().await;
}

#[test]
fn the_authoritys_certificate_is_there_for_whoever_enrols_it() {
    let (mut lab, _) = lab();
    assert_eq!(lab.get("/ca.pem").status, StatusCode::NOT_FOUND);
    let authority = Authority::open(lab.files()).unwrap();
    lab.authority(authority.certificate());
    assert_eq!(lab.get("/ca.pem").text, authority.certificate());
    let der = lab.get("/ca.cer");
    assert_eq!(
        der.headers[header::CONTENT_TYPE],
        "application/x-x509-ca-cert"
    );
    assert_eq!(lab.get("/tls/ca.key").status, StatusCode::NOT_FOUND);
}

/// A server on a socket, and what it answers to these bytes until it closes.
async fn over_socket(bytes: &[u8]) -> String {
    let (lab, _) = lab();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = Server::start(&[address], None, Arc::clone(lab.site()))
        .await
        .unwrap();
    let mut stream = TcpStream::connect(server.addresses()[0]).await.unwrap();
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    server.stop().await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_request_without_end_is_refused() {
    let mut endless = b"GET /boot.ipxe HTTP/1.1\r\nHost: x\r\nX-Long: ".to_vec();
    endless.resize(2 * BUFFER_BYTES, b'a');
    let answer = over_socket(&endless).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    let answer = over_socket(b"\x16\x03\x01\x02\0\x01\0\r\n\r\n").await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
        "{answer}"
    );
}

#[tokio::test]
async fn head_over_a_socket_says_the_length_of_the_script() {
    let head = format!("HEAD {PC} HTTP/1.1\r\nHost: x\r\n\r\n");
    let answer = over_socket(head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let length = answer
        .lines()
        // In this spelling: GRUB 2.12 knows no other.
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .unwrap();
    assert!(length.parse::<usize>().unwrap() > 100);
    assert!(answer.ends_with("\r\n\r\n"));
}

#[test]
fn pauses_lie_between_once_and_twice_what_is_set() {
    let pause = Duration::from_secs(5);
    for _ in 0..100 {
        assert!((pause..=2 * pause).contains(&with_jitter(pause)));
    }
}

#[tokio::test]
async fn a_script_names_the_address_it_was_fetched_from() {
    let answer = over_socket(b"GET /boot.ipxe HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(
        answer.contains("chain --replace http://127.0.0.1/boot.ipxe?"),
        "{answer}"
    );
}
