//! Trees of the user's files, and golden images where that is allowed.
//!
//! `/files/` is `DATA/files`, `/iso/` is `DATA/isos`; a directory is listed.
//! `/images/NAME@VERSION` is a whole disk, with every secret that is on it:
//! off, unless `http.images` says otherwise.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, Response, StatusCode, header};

use super::{note, send, text_response};
use crate::inventory::{self, ImageRef};
use crate::services::{Site, loaders, ranges};
use crate::timeline::Stage;

/// Entries a listing shows; a directory with more says that there are more.
const LISTED_MAX: usize = 10_000;

/// `/files` without a slash, and every other directory asked for so.
pub(super) async fn with_slash(request: Request) -> Response<Body> {
    to_directory(request.uri().path())
}

/// Links of a listing are relative: they need the slash.
fn to_directory(path: &str) -> Response<Body> {
    let mut response = text_response(StatusCode::MOVED_PERMANENTLY, format!("{path}/\n"));
    if let Ok(location) = HeaderValue::from_str(&format!("{path}/")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

pub(super) async fn files(
    State(site): State<Arc<Site>>,
    name: Option<Path<String>>,
    request: Request,
) -> Response<Body> {
    let root = site.files.clone();
    of_tree(&site, root, name, &request)
}

pub(super) async fn isos(
    State(site): State<Arc<Site>>,
    name: Option<Path<String>>,
    request: Request,
) -> Response<Body> {
    let root = site.isos.clone();
    of_tree(&site, root, name, &request)
}

fn of_tree(
    site: &Site,
    root: PathBuf,
    name: Option<Path<String>>,
    request: &Request,
) -> Response<Body> {
    let name = name.map(|Path(name)| name).unwrap_or_default();
    let directory = match name.strip_suffix('/') {
        Some(directory) if !directory.is_empty() => Some(directory),
        _ => name.is_empty().then_some(""),
    };
    if let Some(directory) = directory {
        let listed = loaders::directory_below(&root, directory)
            .and_then(|directory| listing(&directory, request.uri().path()));
        return match listed {
            Ok(page) => page,
            Err(_) => missing(),
        };
    }
    let opened = loaders::open_below(std::slice::from_ref(&root), &name);
    if opened.is_err() && loaders::directory_below(&root, &name).is_ok() {
        return to_directory(request.uri().path());
    }
    let sent = send(opened, request, &name);
    note(site, request, &sent, Stage::FileSent, &name);
    sent
}

fn missing() -> Response<Body> {
    text_response(StatusCode::NOT_FOUND, "there is no such file here\n".into())
}

/// A page of links to what a directory holds, by name; what begins with a dot
/// is not shown.
fn listing(directory: &FilePath, title: &str) -> io::Result<Response<Body>> {
    let mut names = Vec::new();
    let mut has_more = false;
    for entry in std::fs::read_dir(directory)? {
        let Ok(mut name) = entry?.file_name().into_string() else {
            continue; // no URL names it
        };
        let Ok(metadata) = std::fs::metadata(directory.join(&name)) else {
            continue;
        };
        if name.starts_with('.') || !(metadata.is_dir() || metadata.is_file()) {
            continue;
        }
        if names.len() >= LISTED_MAX {
            has_more = true;
            break;
        }
        if metadata.is_dir() {
            name.push('/');
        }
        names.push((name, metadata.is_file().then_some(metadata.len())));
    }
    names.sort();
    let title = escaped(title);
    let mut page = format!(
        "<!DOCTYPE html>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n<h1>{title}</h1>\n<pre>\n<a href=\"../\">../</a>\n"
    );
    for (name, bytes) in names {
        let _ = write!(
            page,
            "<a href=\"./{}\">{}</a>",
            encoded(&name),
            escaped(&name)
        );
        let _ = match bytes {
            Some(bytes) => writeln!(page, "  {bytes}"),
            None => writeln!(page),
        };
    }
    page.push_str(if has_more {
        "and more\n</pre>\n"
    } else {
        "</pre>\n"
    });
    let mut response = Response::new(Body::from(page));
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, html);
    Ok(response)
}

/// Text in a page.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// A name in a URL (RFC 3986 section 2.3).
fn encoded(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(byte));
            }
            byte => {
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    text
}

/// A golden image as the bytes of its disk.
pub(super) async fn image(
    State(site): State<Arc<Site>>,
    Path(name): Path<String>,
    request: Request,
) -> Response<Body> {
    if !site.serves_images {
        return text_response(
            StatusCode::NOT_FOUND,
            "images are not served here: whoever reads one has every secret on it (http.images)\n"
                .into(),
        );
    }
    match open_image(&site, &name) {
        Ok(source) => ranges::respond(&ranges::Question::of(&request), source, ""),
        Err((status, words)) => text_response(status, format!("{words}\n")),
    }
}

fn open_image(site: &Site, name: &str) -> Result<ranges::Source, (StatusCode, String)> {
    let image = ImageRef::parse(name)
        .and_then(|meant| site.inventory.image(&meant))
        .map_err(|error| match error {
            inventory::Error::Invalid(_) => (StatusCode::BAD_REQUEST, error.to_string()),
            error => (StatusCode::NOT_FOUND, error.to_string()),
        })?;
    if !image.damage.is_none() {
        let words = format!("{}@{} is damaged", image.name, image.version);
        return Err((StatusCode::SERVICE_UNAVAILABLE, words));
    }
    let tag: String = image
        .sha256
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    File::open(image.disk_path())
        .and_then(ranges::Source::file)
        .map(|source| source.tagged(&tag))
        .map_err(|error| {
            tracing::warn!(name, %error, "sending an image");
            let words = "the image cannot be read".to_owned();
            (StatusCode::INTERNAL_SERVER_ERROR, words)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_a_page_and_in_its_links() {
        assert_eq!(escaped("a<b>&\"c\""), "a&lt;b&gt;&amp;&quot;c&quot;");
        assert_eq!(encoded("a b/%\"ü.iso"), "a%20b/%25%22%C3%BC.iso");
    }
}
