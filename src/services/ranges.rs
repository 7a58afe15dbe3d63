//! A file sent over HTTP, whole or in part (RFC 9110 sections 13 and 14).
//!
//! One range per request, which is all that iPXE, firmware and download tools
//! ask; a request for several gets the whole file, as the RFC allows. A range
//! with an `If-Range` that does not match the file any more gets the whole
//! file too, so that a resumed download never splices two versions.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::channel::Channel;

/// What is read from the file and handed to the socket at a time.
const CHUNK_BYTES: u64 = 256 * 1024;
/// Chunks in flight per response.
const CHUNKS_AHEAD: usize = 2;

/// What a `Range` header asks of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Whole,
    /// First byte and one past the last.
    Part(u64, u64),
    Unsatisfiable,
}

/// Answers GET or HEAD for an open regular file.
pub(crate) fn respond(
    method: &Method,
    headers: &HeaderMap,
    file: File,
    name: &str,
) -> std::io::Result<Response<Body>> {
    let metadata = file.metadata()?;
    let size = metadata.len();
    let etag = format!(
        "\"{:x}-{:x}-{:x}-{:x}\"",
        metadata.ino(),
        size,
        metadata.mtime(),
        metadata.mtime_nsec()
    );
    let modified = http_date(metadata.mtime());
    let asked = match headers.get(header::RANGE) {
        // RFC 9110 section 14.2: of GET only.
        Some(range) if method == Method::GET && if_range_holds(headers, &etag, &modified) => {
            parse(range, size)
        }
        _ => Asked::Whole,
    };
    let mut builder = Response::builder()
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::ETAG, &etag)
        .header(header::LAST_MODIFIED, &modified)
        .header(header::CONTENT_TYPE, content_type(name));
    let (start, end) = match asked {
        Asked::Whole => (0, size),
        Asked::Part(start, end) => {
            builder = builder.status(StatusCode::PARTIAL_CONTENT).header(
                header::CONTENT_RANGE,
                format!("bytes {start}-{}/{size}", end - 1),
            );
            (start, end)
        }
        Asked::Unsatisfiable => {
            builder = builder
                .status(StatusCode::RANGE_NOT_SATISFIABLE)
                .header(header::CONTENT_RANGE, format!("bytes */{size}"));
            (0, 0)
        }
    };
    builder = builder.header(header::CONTENT_LENGTH, end - start);
    let body = if method == Method::HEAD || start == end {
        Body::empty()
    } else {
        stream(file, start, end)
    };
    builder.body(body).map_err(std::io::Error::other)
}

/// Answers GET or HEAD with what was made for this request alone: whole, and
/// not to be kept.
pub(crate) fn made(method: &Method, bytes: Bytes, name: &str) -> Response<Body> {
    let length = HeaderValue::from(bytes.len());
    let body = match *method {
        Method::HEAD => Body::empty(),
        _ => Body::from(bytes),
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static(content_type(name));
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(header::CONTENT_LENGTH, length);
    let no_store = HeaderValue::from_static("no-store");
    headers.insert(header::CACHE_CONTROL, no_store);
    response
}

/// The bytes of a file from `start` to `end`, read on a blocking thread. A
/// file that shrinks meanwhile ends the connection: a short body is never
/// passed off as a whole one.
fn stream(file: File, start: u64, end: u64) -> Body {
    let (mut sender, body) = Channel::<Bytes, std::io::Error>::new(CHUNKS_AHEAD);
    let file = Arc::new(file);
    tokio::spawn(async move {
        let mut offset = start;
        while offset < end {
            let bytes = (end - offset).min(CHUNK_BYTES);
            let reader = Arc::clone(&file);
            let chunk = tokio::task::spawn_blocking(move || {
                let mut chunk = vec![0; usize::try_from(bytes).unwrap_or(0)];
                reader.read_exact_at(&mut chunk, offset).map(|()| chunk)
            })
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error)));
            match chunk {
                Ok(chunk) => {
                    if sender.send_data(Bytes::from(chunk)).await.is_err() {
                        return; // the client has left
                    }
                }
                Err(error) => {
                    sender.abort(error);
                    return;
                }
            }
            offset += bytes;
        }
    });
    Body::new(body)
}

fn parse(range: &HeaderValue, size: u64) -> Asked {
    let Some(list) = range
        .to_str()
        .ok()
        .and_then(|text| text.trim().strip_prefix("bytes="))
    else {
        return Asked::Whole;
    };
    let Some((first, last)) = list.split_once('-') else {
        return Asked::Whole;
    };
    match (number(first), last.trim()) {
        // "bytes=a-" and "bytes=a-b"
        (Some(first), last) => {
            let end = match last {
                "" => size,
                last => match number(last) {
                    Some(last) if last >= first => last.saturating_add(1).min(size),
                    _ => return Asked::Whole,
                },
            };
            if first >= size {
                Asked::Unsatisfiable
            } else {
                Asked::Part(first, end)
            }
        }
        // "bytes=-n": the last n bytes
        (None, last) if first.trim().is_empty() => match number(last) {
            Some(0) => Asked::Unsatisfiable,
            Some(_) if size == 0 => Asked::Unsatisfiable,
            Some(n) => Asked::Part(size.saturating_sub(n), size),
            None => Asked::Whole,
        },
        _ => Asked::Whole,
    }
}

/// Digits and nothing else (`parse` alone takes a sign).
fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

fn if_range_holds(headers: &HeaderMap, etag: &str, modified: &str) -> bool {
    match headers.get(header::IF_RANGE) {
        None => true,
        Some(value) => {
            value.as_bytes() == etag.as_bytes() || value.as_bytes() == modified.as_bytes()
        }
    }
}

fn http_date(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .and_then(|at| jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&at))
        .unwrap_or_else(|_| "Thu, 01 Jan 1970 00:00:00 GMT".into())
}

/// UEFI HTTP Boot decides by the content type, then by the suffix.
fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, suffix)| suffix) {
        Some("efi") => "application/efi",
        Some("iso") => "application/vnd.efi-iso",
        Some("img") => "application/vnd.efi-img",
        Some("ipxe" | "cfg" | "txt") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::io::Write;

    async fn get(headers: &[(&str, &str)]) -> (StatusCode, HeaderMap, Vec<u8>) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: axum::http::HeaderName = name.parse().unwrap();
            map.insert(name, value.parse().unwrap());
        }
        let response = respond(&Method::GET, &map, file, "x.efi").unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        (parts.status, parts.headers, body)
    }

    #[tokio::test]
    async fn no_range_is_the_whole_file() {
        let (status, headers, body) = get(&[]).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(headers[header::CONTENT_LENGTH], "10");
        assert_eq!(headers[header::CONTENT_TYPE], "application/efi");
        assert_eq!(body, b"0123456789");
    }

    #[tokio::test]
    async fn a_range_is_inclusive_at_both_ends() {
        let (status, headers, body) = get(&[("range", "bytes=2-4")]).await;
        assert_eq!(status, StatusCode::PARTIAL_CONTENT);
        assert_eq!(headers[header::CONTENT_RANGE], "bytes 2-4/10");
        assert_eq!(body, b"234");
    }

    #[tokio::test]
    async fn open_and_suffix_ranges_reach_to_the_end() {
        assert_eq!(get(&[("range", "bytes=8-")]).await.2, b"89");
        assert_eq!(get(&[("range", "bytes=-3")]).await.2, b"789");
        assert_eq!(get(&[("range", "bytes=8-99")]).await.2, b"89");
    }

    #[tokio::test]
    async fn a_range_past_the_end_cannot_be_satisfied() {
        let (status, headers, body) = get(&[("range", "bytes=10-12")]).await;
        assert_eq!(status, StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(headers[header::CONTENT_RANGE], "bytes */10");
        assert!(body.is_empty());
    }

    #[tokio::test]
    async fn a_range_that_makes_no_sense_is_ignored() {
        for range in [
            "bytes=u-u",
            "bytes=4-2",
            "bytes=1-2,4-5",
            "lines=1-2",
            "bytes=+1-2",
            "bytes=-+2",
            "bytes=1-99999999999999999999",
            "bytes=",
        ] {
            assert_eq!(get(&[("range", range)]).await.0, StatusCode::OK, "{range}");
        }
    }

    #[tokio::test]
    async fn head_says_the_size_of_the_whole_and_sends_nothing() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, HeaderValue::from_static("bytes=2-4"));
        let response = respond(&Method::HEAD, &headers, file, "x.iso").unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[header::CONTENT_LENGTH], "10");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(body.is_empty());
    }

    #[tokio::test]
    async fn a_file_that_shrinks_breaks_the_body_off() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let response = respond(
            &Method::GET,
            &HeaderMap::new(),
            file.try_clone().unwrap(),
            "x",
        );
        file.set_len(300_000).unwrap();
        assert!(response.unwrap().into_body().collect().await.is_err());
    }

    #[tokio::test]
    async fn a_resumed_download_of_a_changed_file_starts_over() {
        let (status, _, body) = get(&[("range", "bytes=2-4"), ("if-range", "\"old\"")]).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(body.len(), 10);
    }
}
