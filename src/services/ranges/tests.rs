//! Claims about conditions, ranges and bodies of a content.

use http_body_util::BodyExt;
use std::io::Write;

use super::*;

struct Answered {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answered {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

fn ten_bytes() -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"0123456789").unwrap();
    // Long unchanged, so that its date tells it from another version.
    let long_ago = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
    file.set_modified(long_ago).unwrap();
    file
}

async fn ask(source: Source, method: Method, headers: &[(&str, &str)]) -> Answered {
    let mut request = Request::builder().method(method).uri("/");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::empty()).unwrap();
    let response = respond(&Question::of(&request), source, "x.efi");
    let (parts, body) = response.into_parts();
    Answered {
        status: parts.status,
        headers: parts.headers,
        body: body.collect().await.unwrap().to_bytes().to_vec(),
    }
}

async fn get(headers: &[(&str, &str)]) -> Answered {
    ask(Source::file(ten_bytes()).unwrap(), Method::GET, headers).await
}

#[tokio::test]
async fn no_range_is_the_whole_content() {
    let answer = get(&[]).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers[header::CONTENT_LENGTH], "10");
    assert_eq!(answer.headers[header::CONTENT_TYPE], "application/efi");
    assert_eq!(answer.text(), "0123456789");
    assert_eq!(get(&[("range", "bytes=u-u")]).await.text(), "0123456789");
}

#[tokio::test]
async fn one_range_is_sent_alone() {
    let answer = get(&[("range", "bytes=2-4")]).await;
    assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT);
    assert_eq!(answer.headers[header::CONTENT_RANGE], "bytes 2-4/10");
    assert_eq!(answer.headers[header::CONTENT_TYPE], "application/efi");
    assert_eq!(answer.text(), "234");
}

#[tokio::test]
async fn several_ranges_are_sent_as_parts_that_say_where_they_lie() {
    let answer = get(&[("range", "bytes=0-1,-2")]).await;
    assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT);
    assert!(!answer.headers.contains_key(header::CONTENT_RANGE));
    let kind = answer.headers[header::CONTENT_TYPE].to_str().unwrap();
    let boundary = kind
        .strip_prefix("multipart/byteranges; boundary=")
        .unwrap();
    let part = |range: &str, bytes: &str| {
        format!(
            "\r\n--{boundary}\r\ncontent-type: application/efi\r\ncontent-range: bytes {range}/10\r\n\r\n{bytes}"
        )
    };
    let expected = part("0-1", "01") + &part("8-9", "89") + &format!("\r\n--{boundary}--\r\n");
    assert_eq!(answer.text(), expected);
    let length = answer.headers[header::CONTENT_LENGTH].to_str().unwrap();
    assert_eq!(length, expected.len().to_string());
}

#[tokio::test]
async fn a_range_past_the_end_cannot_be_satisfied() {
    let answer = get(&[("range", "bytes=10-12")]).await;
    assert_eq!(answer.status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(answer.headers[header::CONTENT_RANGE], "bytes */10");
    assert_eq!(answer.headers[header::CONTENT_LENGTH], "0");
    assert!(answer.body.is_empty());
}

#[tokio::test]
async fn head_says_the_size_of_the_whole_and_sends_nothing() {
    let source = Source::file(ten_bytes()).unwrap();
    let answer = ask(source, Method::HEAD, &[("range", "bytes=2-4")]).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers[header::CONTENT_LENGTH], "10");
    assert!(answer.body.is_empty());
}

#[tokio::test]
async fn a_resumed_download_of_a_changed_file_starts_over() {
    let known = get(&[]).await.headers;
    let date = known[header::LAST_MODIFIED].to_str().unwrap();
    for (if_range, status) in [
        ("\"old\"", StatusCode::OK),
        ("Thu, 01 Jan 1970 00:00:00 GMT", StatusCode::OK),
        (date, StatusCode::PARTIAL_CONTENT),
    ] {
        let asked = [("range", "bytes=2-4"), ("if-range", if_range)];
        assert_eq!(get(&asked).await.status, status, "{if_range}");
    }
    let source = || Source::file(ten_bytes()).unwrap().tagged("v1");
    let asked = [("range", "bytes=2-4"), ("if-range", "\"v1\"")];
    assert_eq!(ask(source(), Method::GET, &asked).await.text(), "234");
    let asked = [("range", "bytes=2-4"), ("if-range", "W/\"v1\"")];
    assert_eq!(ask(source(), Method::GET, &asked).await.body.len(), 10);
}

#[tokio::test]
async fn a_date_of_just_now_does_not_tell_two_versions_apart() {
    let fresh = || {
        let file = ten_bytes();
        file.set_modified(SystemTime::now()).unwrap();
        Source::file(file).unwrap()
    };
    let source = fresh();
    let date = http_date(source.modified.unwrap());
    let asked = [("range", "bytes=2-4"), ("if-range", date.as_str())];
    let answer = ask(source, Method::GET, &asked).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn who_has_this_version_is_told_so() {
    let source = || Source::file(ten_bytes()).unwrap().tagged("v1");
    let date = http_date(1_700_000_000);
    let before = http_date(1_699_999_999);
    for (name, value, status) in [
        ("if-none-match", "\"v1\"", 304),
        ("if-none-match", "\"v0\", W/\"v1\"", 304),
        ("if-none-match", "*", 304),
        ("if-none-match", "\"v0\"", 200),
        ("if-modified-since", date.as_str(), 304),
        ("if-modified-since", before.as_str(), 200),
        ("if-modified-since", "yesterday", 200),
        ("if-match", "\"v1\"", 200),
        ("if-match", "W/\"v1\"", 412),
        ("if-unmodified-since", before.as_str(), 412),
        ("if-unmodified-since", date.as_str(), 200),
    ] {
        let answer = ask(source(), Method::GET, &[(name, value)]).await;
        assert_eq!(answer.status.as_u16(), status, "{name}: {value}");
        assert_eq!(answer.headers[header::ETAG], "\"v1\"");
        assert_eq!(answer.body.is_empty(), status != 200, "{name}: {value}");
    }
    // The tag goes before the date.
    let both = [
        ("if-none-match", "\"v0\""),
        ("if-modified-since", date.as_str()),
    ];
    assert_eq!(
        ask(source(), Method::GET, &both).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn a_file_that_shrinks_breaks_the_body_off() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let source = Source::file(file.try_clone().unwrap()).unwrap();
    let request = Request::new(Body::empty());
    let response = respond(&Question::of(&request), source, "x");
    file.set_len(300_000).unwrap();
    assert!(response.into_body().collect().await.is_err());
}

struct Letters;

impl Readable for Letters {
    fn size_bytes(&self) -> u64 {
        1 << 20
    }

    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        for (byte, at) in buffer.iter_mut().zip(offset_bytes..) {
            *byte = b'a' + u8::try_from(at % 26).unwrap();
        }
        Ok(())
    }
}

#[tokio::test]
async fn what_is_no_file_is_sent_in_parts_too() {
    let source = || Source::readable(Arc::new(Letters), "abc");
    let answer = ask(source(), Method::GET, &[("range", "bytes=26-28")]).await;
    assert_eq!(answer.text(), "abc");
    assert_eq!(answer.headers[header::ETAG], "\"abc\"");
    let whole = ask(source(), Method::GET, &[]).await.body;
    assert_eq!(whole.len(), 1 << 20);
    assert_eq!(whole[700_000], b'a' + u8::try_from(700_000 % 26).unwrap());
}
