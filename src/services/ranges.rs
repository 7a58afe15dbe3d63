//! A content sent over HTTP, whole or in parts (RFC 9110 sections 13 and 14).
//!
//! A range with an `If-Range` that does not match any more gets the whole
//! content, so that a resumed download never splices two versions. Several
//! ranges get a `multipart/byteranges`.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use bytes::Bytes;
use tftp::Readable;

use super::http::Pieces;
use asked::Asked;
use body::{Content, Part, Parts};

mod asked;
mod body;
#[cfg(test)]
mod tests;

/// A time of change tells two versions apart once this many seconds are over
/// in which nothing changed (section 8.8.2.2).
const STRONG_AFTER_SECONDS: i64 = 2;

/// A content that can be sent.
pub(crate) struct Source {
    content: Content,
    size_bytes: u64,
    /// Quoted.
    etag: String,
    /// Seconds since 1970.
    modified: Option<i64>,
}

impl Source {
    /// An open regular file.
    pub(crate) fn file(file: File) -> io::Result<Source> {
        let metadata = file.metadata()?;
        Ok(Source {
            content: Content::File(Arc::new(file)),
            size_bytes: metadata.len(),
            etag: format!(
                "\"{:x}-{:x}-{:x}-{:x}\"",
                metadata.ino(),
                metadata.len(),
                metadata.mtime(),
                metadata.mtime_nsec()
            ),
            modified: Some(metadata.mtime()),
        })
    }

    /// Anything else that can be read, of the version that `tag` names: two
    /// contents that differ have two tags, of letters, digits and `-`.
    pub(crate) fn readable(readable: Arc<dyn Readable>, tag: &str) -> Source {
        Source {
            size_bytes: readable.size_bytes(),
            content: Content::Readable(readable),
            etag: format!("\"{tag}\""),
            modified: None,
        }
    }

    /// The same, of the version that `tag` names.
    pub(crate) fn tagged(self, tag: &str) -> Source {
        Source {
            etag: format!("\"{tag}\""),
            ..self
        }
    }
}

/// What is asked of a content.
pub(crate) struct Question<'r> {
    method: &'r Method,
    headers: &'r HeaderMap,
    pieces: Option<Pieces>,
}

impl<'r> Question<'r> {
    pub(crate) fn of(request: &'r Request) -> Question<'r> {
        Question {
            method: request.method(),
            headers: request.headers(),
            pieces: request.extensions().get().cloned(),
        }
    }

    fn header(&self, name: HeaderName) -> Option<&'r HeaderValue> {
        self.headers.get(name)
    }

    /// The answer where the client's copy decides (section 13.2.2).
    fn condition(&self, source: &Source) -> Option<StatusCode> {
        let modified = source.modified;
        let unchanged_since = |name| {
            let at = seconds(self.header(name)?)?;
            Some(modified? <= at)
        };
        let is_as_expected = match self.header(header::IF_MATCH) {
            Some(_) => lists(
                self.headers,
                &header::IF_MATCH,
                &source.etag,
                Comparison::Strong,
            ),
            None => unchanged_since(header::IF_UNMODIFIED_SINCE).unwrap_or(true),
        };
        if !is_as_expected {
            return Some(StatusCode::PRECONDITION_FAILED);
        }
        let has_it = match self.header(header::IF_NONE_MATCH) {
            Some(_) => lists(
                self.headers,
                &header::IF_NONE_MATCH,
                &source.etag,
                Comparison::Weak,
            ),
            None => unchanged_since(header::IF_MODIFIED_SINCE).unwrap_or(false),
        };
        has_it.then_some(StatusCode::NOT_MODIFIED)
    }

    /// What is asked for of it.
    fn asked(&self, source: &Source) -> Asked {
        match self.header(header::RANGE) {
            // Section 14.2: of GET only.
            Some(range) if self.method == Method::GET && self.if_range_holds(source) => {
                asked::parse(range, source.size_bytes)
            }
            _ => Asked::Whole,
        }
    }

    fn if_range_holds(&self, source: &Source) -> bool {
        let Some(value) = self.header(header::IF_RANGE) else {
            return true;
        };
        if value.as_bytes() == source.etag.as_bytes() {
            return true;
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        source.modified.is_some_and(|modified| {
            seconds(value) == Some(modified) && now - modified >= STRONG_AFTER_SECONDS
        })
    }
}

/// How tags are compared (section 8.8.3.2).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

/// Whether a header lists this tag.
fn lists(headers: &HeaderMap, name: &HeaderName, etag: &str, comparison: Comparison) -> bool {
    let listed = |tag: &str| {
        let tag = tag.trim();
        let tag = match comparison {
            Comparison::Weak => tag.strip_prefix("W/").unwrap_or(tag),
            Comparison::Strong => tag,
        };
        tag == etag || tag == "*"
    };
    // Tags of ours hold no comma.
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(listed))
}

/// Answers GET or HEAD for a content.
pub(crate) fn respond(question: &Question<'_>, source: Source, name: &str) -> Response<Body> {
    let kind = content_type(name);
    let mut head = HeaderMap::new();
    head.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Ok(etag) = HeaderValue::from_str(&source.etag) {
        head.insert(header::ETAG, etag);
    }
    let modified = source.modified.map(http_date);
    if let Some(modified) = modified.and_then(|date| HeaderValue::from_str(&date).ok()) {
        head.insert(header::LAST_MODIFIED, modified);
    }
    if let Some(status) = question.condition(&source) {
        return answer(status, head, Body::empty());
    }
    let size = source.size_bytes;
    let (status, parts) = match question.asked(&source) {
        Asked::Whole => (StatusCode::OK, vec![Part::Content(0, size)]),
        Asked::Unsatisfiable => {
            head.insert(header::CONTENT_RANGE, words(format!("bytes */{size}")));
            (StatusCode::RANGE_NOT_SATISFIABLE, Vec::new())
        }
        Asked::Parts(ranges) => match ranges.as_slice() {
            &[(start, end)] => {
                head.insert(header::CONTENT_RANGE, content_range(start, end, size));
                (StatusCode::PARTIAL_CONTENT, vec![Part::Content(start, end)])
            }
            ranges => {
                let boundary = format!("{:016x}", getrandom::u64().unwrap_or_default());
                let of_several = words(format!("multipart/byteranges; boundary={boundary}"));
                head.insert(header::CONTENT_TYPE, of_several);
                let parts = multipart(ranges, size, kind, &boundary);
                (StatusCode::PARTIAL_CONTENT, parts)
            }
        },
    };
    head.entry(header::CONTENT_TYPE)
        .or_insert(HeaderValue::from_static(kind));
    let length: u64 = parts.iter().map(Part::bytes).sum();
    head.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    let body = if question.method == Method::HEAD || length == 0 {
        Body::empty()
    } else {
        Body::new(Parts::new(source.content, parts, question.pieces.clone()))
    };
    answer(status, head, body)
}

fn answer(status: StatusCode, head: HeaderMap, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = head;
    response
}

/// The parts of a `multipart/byteranges` (section 14.6).
fn multipart(ranges: &[(u64, u64)], size: u64, kind: &str, boundary: &str) -> Vec<Part> {
    let mut parts = Vec::with_capacity(2 * ranges.len() + 1);
    for &(start, end) in ranges {
        let last = end - 1;
        parts.push(Part::Words(Bytes::from(format!(
            "\r\n--{boundary}\r\ncontent-type: {kind}\r\ncontent-range: bytes {start}-{last}/{size}\r\n\r\n"
        ))));
        parts.push(Part::Content(start, end));
    }
    parts.push(Part::Words(Bytes::from(format!("\r\n--{boundary}--\r\n"))));
    parts
}

fn content_range(start: u64, end: u64, size: u64) -> HeaderValue {
    words(format!("bytes {start}-{}/{size}", end.saturating_sub(1)))
}

/// A header value of our own making, which is ASCII.
fn words(text: String) -> HeaderValue {
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))
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

fn http_date(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .and_then(|at| jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&at))
        .unwrap_or_else(|_| "Thu, 01 Jan 1970 00:00:00 GMT".into())
}

/// Seconds since 1970 of a date as everybody writes it today.
fn seconds(date: &HeaderValue) -> Option<i64> {
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date.to_str().ok()?);
    Some(date.ok()?.as_second())
}

/// UEFI HTTP Boot decides by the content type, then by the suffix.
fn content_type(name: &str) -> &'static str {
    let suffix = name.rsplit_once('.').map(|(_, suffix)| suffix);
    match suffix.map(str::to_ascii_lowercase).as_deref() {
        Some("efi") => "application/efi",
        Some("iso") => "application/vnd.efi-iso",
        Some("img") => "application/vnd.efi-img",
        Some("ipxe" | "cfg" | "txt") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}
