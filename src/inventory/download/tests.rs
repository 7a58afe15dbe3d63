//! Tests of `download`, against a server that answers as it is told.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream as Peer};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use rustls::pki_types::pem::PemObject;

use super::*;
use crate::inventory::tests::Site;
use crate::inventory::{Becomes, ImportRequest, Name, Origin, Outcome};

/// A server on loopback. `answer` hears the request's number and its head, and
/// says what is sent before the connection is closed.
fn serve(answer: impl Fn(usize, &str) -> Vec<u8> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/a.raw", listener.local_addr().unwrap());
    thread::spawn(move || {
        for (number, peer) in listener.incoming().flatten().enumerate() {
            let head = head(&peer);
            let _ = (&peer).write_all(&answer(number, &head));
        }
    });
    url
}

fn head(peer: &Peer) -> String {
    let lines = BufReader::new(peer).lines().map_while(Result::ok);
    let lines: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    lines.join("\n").to_ascii_lowercase()
}

/// An answer with a body, all of it or its beginning.
fn answer(head: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 {head}\r\n\r\n").as_bytes(), body].concat()
}

fn whole(body: &[u8]) -> Vec<u8> {
    let length = body.len();
    answer(
        &format!("200 OK\r\nContent-Length: {length}\r\nETag: \"1\""),
        body,
    )
}

fn content() -> Vec<u8> {
    let mut bytes = vec![0; 3 << 20];
    bytes[..100].fill(1);
    bytes[(2 << 20) + 7..].fill(2);
    bytes
}

/// Fetches as a job does, impatiently; the bytes that came.
fn fetched(url: &str) -> Result<Vec<u8>, String> {
    fetched_with(url, None)
}

fn fetched_with(
    url: &str,
    trusted: Option<Vec<CertificateDer<'static>>>,
) -> Result<Vec<u8>, String> {
    let site = Site::new();
    let address = Address::parse(url).map_err(|e| e.to_string())?;
    let mut spool = site.spool(url, Becomes::Image).unwrap();
    let progress = Progress::for_tests();
    let download = Download {
        address: &address,
        spool: &mut spool,
        progress: &progress,
        trusted,
        done_bytes: 0,
        total_bytes: None,
        validator: None,
        looks_max: 8,
        resume_pause: Duration::from_millis(1),
    };
    download.run().map_err(|e| e.to_string())?;
    spool.finish().unwrap();
    Ok(fs::read(spool.path()).unwrap())
}

#[test]
fn what_is_at_a_url_becomes_an_image() {
    let site = Site::new();
    let url = serve(|_, _| whole(&content()));
    let request = ImportRequest {
        name: Name::parse("debian").unwrap(),
        origin: Origin::Url(Address::parse(&url).unwrap()),
        comment: String::new(),
    };
    let job = site.start_import(request).unwrap();
    let Outcome::Image(image) = site.ended(job.id).unwrap() else {
        panic!("no image");
    };
    assert!(fs::read(image.disk_path()).unwrap() == content());
    assert_eq!(fs::read_dir(site.data().join("images")).unwrap().count(), 1);
}

#[test]
fn a_download_that_fails_leaves_nothing() {
    let site = Site::new();
    let url = serve(|_, _| answer("404 Not Found\r\nContent-Length: 0", b""));
    let request = ImportRequest {
        name: Name::parse("debian").unwrap(),
        origin: Origin::Url(Address::parse(&url).unwrap()),
        comment: String::new(),
    };
    let job = site.start_import(request).unwrap();
    let why = site.ended(job.id).unwrap_err();
    assert!(why.contains("answers 404"), "{why}");
    assert_eq!(fs::read_dir(site.data().join("images")).unwrap().count(), 0);
}

#[test]
fn a_connection_that_breaks_off_is_taken_up_where_it_ended() {
    let (tell, told) = mpsc::channel();
    let url = serve(move |number, head| {
        tell.send(head.to_owned()).unwrap();
        let content = content();
        let half = 1 << 20;
        match number {
            0 => {
                let mut cut = whole(&content);
                cut.truncate(cut.len() - (content.len() - half));
                cut
            }
            1 => answer("503 Busy\r\nContent-Length: 0", b""),
            _ => answer(
                "206 Partial Content\r\nContent-Length: 2097152\r\n\
                 Content-Range: bytes 1048576-3145727/3145728",
                &content[half..],
            ),
        }
    });
    assert!(fetched(&url).unwrap() == content());
    let heads: Vec<String> = told.try_iter().collect();
    assert!(!heads[0].contains("range:"), "{}", heads[0]);
    for head in &heads[1..] {
        assert!(head.contains("range: bytes=1048576-"), "{head}");
        assert!(head.contains("if-range: \"1\""), "{head}");
    }
}

#[test]
fn a_file_that_changed_meanwhile_is_not_spliced() {
    let url = serve(|number, _| {
        let mut answer = whole(&content());
        if number == 0 {
            answer.truncate(answer.len() / 2);
        }
        answer
    });
    let why = fetched(&url).unwrap_err();
    assert!(why.contains("has changed since"), "{why}");
    let url = serve(|number, _| match number {
        0 => whole(&content())[..1 << 20].to_vec(),
        _ => answer(
            "206 Partial Content\r\nContent-Range: bytes 5-9/10\r\nContent-Length: 5",
            b"12345",
        ),
    });
    let why = fetched(&url).unwrap_err();
    assert!(why.contains("another place"), "{why}");
}

#[test]
fn what_cannot_be_taken_up_fails_and_says_why() {
    let cut = "200 OK\r\nContent-Length: 3000000";
    let url = serve(move |_, _| answer(cut, &content()[..1 << 20]));
    let why = fetched(&url).unwrap_err();
    assert!(why.contains("ended after 1 MiB"), "no validator: {why}");
    let url = serve(|_, _| answer("200 OK", &content()));
    let why = fetched(&url).unwrap_err();
    assert!(why.contains("does not say how long it is"), "{why}");
    let packed = "200 OK\r\nContent-Length: 3\r\nContent-Encoding: gzip";
    let url = serve(move |_, _| answer(packed, b"abc"));
    assert!(fetched(&url).unwrap_err().contains("sent compressed"));
    let huge = "200 OK\r\nContent-Length: 1152921504606846976";
    let url = serve(move |_, _| answer(huge, b""));
    assert!(fetched(&url).unwrap_err().contains("no space left"));
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
    let why = fetched(&format!("http://{}/", nobody.unwrap())).unwrap_err();
    assert!(why.contains("cannot connect"), "{why}");
}

#[test]
fn a_server_that_falls_silent_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let why = fetched(&url).unwrap_err();
    assert!(why.contains("nothing came for 2s"), "{why}");
}

#[test]
fn a_download_that_is_told_to_stop_stops() {
    let site = Site::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let request = ImportRequest {
        name: Name::parse("debian").unwrap(),
        origin: Origin::Url(Address::parse(&url).unwrap()),
        comment: String::new(),
    };
    let job = site.start_import(request).unwrap();
    site.cancel_job(job.id).unwrap();
    assert_eq!(site.ended(job.id).unwrap_err(), "cancelled");
    assert_eq!(fs::read_dir(site.data().join("images")).unwrap().count(), 0);
}

#[test]
fn redirects_are_followed_to_a_limit() {
    let url = serve(|number, head| match number {
        0 => answer(
            "302 Found\r\nLocation: other/b.raw\r\nContent-Length: 0",
            b"",
        ),
        _ => {
            assert!(head.starts_with("get /other/b.raw "), "{head}");
            whole(&content())
        }
    });
    assert!(fetched(&url).unwrap() == content());
    let url = serve(|_, _| answer("301 Moved\r\nLocation: /\r\nContent-Length: 0", b""));
    let why = fetched(&url).unwrap_err();
    assert!(why.contains("on and on"), "{why}");
}

#[test]
fn a_redirect_leads_where_it_says_and_never_out_of_tls() {
    let from = Address::parse("https://example.org:444/images/a.raw?x=1").unwrap();
    for (location, to) in [
        ("b.raw", "https://example.org:444/images/b.raw"),
        ("/b.raw?y", "https://example.org:444/b.raw?y"),
        ("//mirror.example.org/b", "https://mirror.example.org/b"),
        ("https://10.0.0.1/b", "https://10.0.0.1/b"),
    ] {
        assert_eq!(from.follow(location).unwrap().to_string(), to);
    }
    assert!(from.follow("http://example.org/b").is_err());
    assert!(from.follow("file:///etc/passwd").is_err());
}

#[test]
fn only_http_is_fetched_and_no_password_sent() {
    for text in [
        "ftp://example.org/a",
        "http:///a",
        "https://me:secret@example.org/a",
        "http://",
    ] {
        assert!(Address::parse(text).is_err(), "{text}");
    }
    let address = Address::parse("http://[::1]:8080/a").unwrap();
    assert_eq!((address.host.as_str(), address.port), ("::1", 8080));
    assert_eq!(Address::parse("https://example.org").unwrap().port, 443);
}

/// `openssl s_server`, which serves the files of a directory.
struct Secure(std::process::Child);

impl Drop for Secure {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_certificate_the_host_does_not_trust_is_refused() {
    let found = Command::new("openssl").arg("version").output().is_ok();
    if !found {
        assert!(std::env::var_os("CI").is_none(), "openssl is missing");
        eprintln!("skipped: openssl is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // It sends a file with the head that stands in it.
    fs::write(dir.path().join("a.raw"), whole(&content())).unwrap();
    let made = Command::new("openssl")
        .args("req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem -out cert.pem".split(' '))
        .args([
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
        ])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let mut server = Command::new("openssl")
        .args("s_server -accept 127.0.0.1:0 -cert cert.pem -key key.pem -HTTP".split(' '))
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map(Secure)
        .unwrap();
    let output = BufReader::new(server.0.stdout.take().unwrap());
    let mut lines = output.lines().map_while(Result::ok);
    let accepts = lines.find(|line| line.starts_with("ACCEPT")).unwrap();
    let port = accepts.rsplit(':').next().unwrap();
    let url = format!("https://localhost:{port}/a.raw");
    let why = fetched(&url).unwrap_err();
    assert!(why.contains("cannot trust localhost"), "{why}");
    let trusted = vec![CertificateDer::from_pem_file(dir.path().join("cert.pem")).unwrap()];
    assert!(fetched_with(&url, Some(trusted)).unwrap() == content());
}
