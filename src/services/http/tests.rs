//! Claims about what is answered over HTTP: through the router, and where the
//! connection matters over a socket.

use std::net::{Ipv4Addr, SocketAddr};

use axum::http::Method;
use dhcp::Mac;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::inventory::{MachineChange, MachineState};
use crate::services::tests::Lab;

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
    let (lab, _) = lab();
    let asked: Vec<_> = (0..100)
        .map(|n| lab.get(&format!("/boot.ipxe?mac=02-00-00-00-00-{n:02x}")))
        .collect();
    let last = asked.last().unwrap();
    assert!(asked.iter().all(|answer| answer.status == StatusCode::OK));
    assert!(last.text.contains("too many machines"), "{}", last.text);
    assert!(last.text.contains("mac=02-00-00-00-00-63 || goto again"));
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
        "/files/%2fetc/passwd",
        "/files/iso",
        "/files/a%00b",
        "/loader/../data/state.db",
    ] {
        assert_eq!(lab.get(path).status, StatusCode::NOT_FOUND, "{path}");
    }
    let bad = lab.get("/files/%ff%fe").status;
    assert!(bad.is_client_error(), "{bad}");
}

/// A server on a socket, and what it answers to these bytes until it closes.
async fn over_socket(bytes: &[u8]) -> String {
    let (lab, _) = lab();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = Server::start(&[address], Arc::clone(lab.site()))
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
        .find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length: ")
                .map(str::to_owned)
        })
        .unwrap();
    assert!(length.parse::<usize>().unwrap() > 100);
    assert!(answer.ends_with("\r\n\r\n"));
}

#[test]
fn one_address_does_not_take_every_connection() {
    let callers = Callers::default();
    let (one, other) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
    let mut taken: Vec<_> = (0..CONNECTIONS_PER_ADDRESS_MAX)
        .map(|_| callers.admit(one.into()).unwrap())
        .collect();
    assert!(callers.admit(one.into()).is_none());
    assert!(callers.admit(other.into()).is_some());
    taken.pop();
    assert!(callers.admit(one.into()).is_some());
    drop(taken);
    assert!(callers.0.lock().unwrap().is_empty());
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
