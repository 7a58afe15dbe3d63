//! The HTTP door: boot scripts, loaders, files.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, Method, Response, StatusCode, header};
use axum::routing::get;
use dhcp::Mac;

use super::documents::{self, Asker as DocumentAsker, Document};
use super::{Site, ranges};
use crate::boot::ladder::Sign;
use crate::timeline::Stage;

mod authority;
mod crowd;
mod script;
mod server;
mod socket;
#[cfg(test)]
mod tests;
mod trees;

pub(crate) use crowd::{CONNECTIONS_MAX, places};
pub(crate) use server::{Server, Tls};
pub(crate) use socket::{PIECE_BYTES, Pieces};

/// The `Range` header of iPXE builds whose `printf` knows no such number.
const BROKEN_RANGE: &str = "bytes=u-u";

/// Who asks.
#[derive(Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// The address of ours that was asked: what an answer sends the client to.
#[derive(Clone, Copy)]
pub(super) struct Reached(pub(super) Ipv4Addr);

pub(super) fn router(site: Arc<Site>) -> Router {
    Router::new()
        .route("/boot.ipxe", get(script::boot_script))
        .route("/loader/{*name}", get(loader))
        .route("/files", get(trees::with_slash))
        .route("/files/", get(trees::files))
        .route("/files/{*name}", get(trees::files))
        .route("/iso", get(trees::with_slash))
        .route("/iso/", get(trees::isos))
        .route("/iso/{*name}", get(trees::isos))
        .route("/images/{name}", get(trees::image))
        .route("/ca.pem", get(authority::authority))
        .route("/ca.cer", get(authority::authority))
        .fallback(get(document))
        .with_state(site)
}

async fn loader(
    State(site): State<Arc<Site>>,
    Path(name): Path<String>,
    request: Request,
) -> Response<Body> {
    let name = documents::plain(&name).unwrap_or(name);
    let found = find_document(&site, asker_of(&site, &request), &name).await;
    if let Some(sent) = send_document(&site, found, &request, &name) {
        return sent;
    }
    let sent = send(site.loaders.open(&name), &request, &name);
    if let Some(mac) = mac_of(&site, &request) {
        // UEFI HTTP Boot asks for the size first (HEAD).
        let sign = match (request.method(), sent.status()) {
            (&Method::GET, StatusCode::OK) => Sign::Taken(&name),
            _ => Sign::FileAsked,
        };
        site.heard(mac, sign);
    }
    note(&site, &request, &sent, Stage::LoaderSent, &name);
    sent
}

/// What is asked for at the root: loaders look for their files there too.
async fn document(State(site): State<Arc<Site>>, request: Request) -> Response<Body> {
    let name = request.uri().path().trim_start_matches('/').to_owned();
    let found = find_document(&site, asker_of(&site, &request), &name).await;
    if let Some(sent) = send_document(&site, found, &request, &name) {
        return sent;
    }
    // The user's own goes before what is made here.
    if documents::stage_of(&name).is_some()
        && let Some(name) = documents::plain(&name)
        && let Ok(file) = site.loaders.open_own(&name)
    {
        let sent = send(Ok(file), &request, &name);
        note(&site, &request, &sent, Stage::LoaderSent, &name);
        return sent;
    }
    text_response(StatusCode::NOT_FOUND, "there is no such file here\n".into())
}

/// A document made for whoever asks, made where one may wait; its maker may
/// break.
type Found = Result<Option<Document>, tokio::task::JoinError>;

async fn find_document(site: &Arc<Site>, asker: Option<DocumentAsker>, name: &str) -> Found {
    let Some(asker) = asker else {
        return Ok(None);
    };
    let (site, name) = (Arc::clone(site), name.to_owned());
    tokio::task::spawn_blocking(move || documents::find(&site, &asker, &name)).await
}

fn send_document(
    site: &Site,
    found: Found,
    request: &Request,
    name: &str,
) -> Option<Response<Body>> {
    let sent = match found {
        Ok(Some(Document::Bytes(bytes))) => ranges::made(request.method(), bytes, name),
        Ok(Some(Document::Readable(file))) => {
            // Out of a disk that is another tomorrow: no two answers are taken
            // for one version.
            let tag = format!("{:016x}", getrandom::u64().unwrap_or_default());
            let source = ranges::Source::readable(file, &tag);
            ranges::respond(&ranges::Question::of(request), source, name)
        }
        Ok(None) => return None,
        Err(error) => {
            tracing::error!(name, %error, "making a document");
            text_response(
                StatusCode::INTERNAL_SERVER_ERROR,
                "something broke here\n".into(),
            )
        }
    };
    let stage = documents::stage_of(name).unwrap_or(Stage::FileSent);
    if let Some(mac) = mac_of(site, request)
        && request.method() == Method::GET
        && sent.status() == StatusCode::OK
    {
        let words = format!("{name} over HTTP");
        if stage == Stage::ScriptSent {
            site.heard(mac, Sign::Alive);
        }
        site.timeline.record(mac, stage, words);
    }
    Some(sent)
}

fn send(opened: io::Result<std::fs::File>, request: &Request, name: &str) -> Response<Body> {
    match opened.and_then(ranges::Source::file) {
        Ok(source) => ranges::respond(&ranges::Question::of(request), source, name),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            text_response(StatusCode::NOT_FOUND, "there is no such file here\n".into())
        }
        Err(error) => {
            tracing::warn!(name, %error, "sending a file");
            text_response(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the file cannot be read\n".into(),
            )
        }
    }
}

/// An entry in the timeline for a whole file, and for one that is not there;
/// the thousands of ranges of an ISO are not worth one each.
fn note(site: &Site, request: &Request, sent: &Response<Body>, stage: Stage, name: &str) {
    let Some(mac) = mac_of(site, request) else {
        return;
    };
    if request
        .headers()
        .get(header::RANGE)
        .is_some_and(|range| range == BROKEN_RANGE)
    {
        let words = format!(
            "{name}: this iPXE cannot say which part of a file it wants (it asks for {BROKEN_RANGE}), \
             and so boots no ISO over HTTP: use another build of it"
        );
        site.timeline.record(mac, Stage::Problem, words);
        return;
    }
    match sent.status() {
        StatusCode::OK if request.method() == Method::GET => {
            site.timeline
                .record(mac, stage, format!("{name} over HTTP"));
        }
        StatusCode::NOT_FOUND if !documents::is_tried_only(name) => {
            site.timeline.record(
                mac,
                Stage::Refused,
                format!("{name}: there is no such file for HTTP"),
            );
        }
        _ => {}
    }
}

fn mac_of(site: &Site, request: &Request) -> Option<Mac> {
    site.addresses.mac_of(peer_of(request)?)
}

/// Who asks for a document, and under which address of ours.
fn asker_of(site: &Site, request: &Request) -> Option<DocumentAsker> {
    let Reached(server) = request.extensions().get::<Reached>()?;
    Some(DocumentAsker::at(site, peer_of(request)?, *server))
}

/// The client's address.
fn peer_of(request: &Request) -> Option<IpAddr> {
    let Peer(peer) = request.extensions().get::<Peer>()?;
    Some(peer.ip())
}

fn text_response(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    // A script holds a secret and is made for one moment.
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
