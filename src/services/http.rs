//! The HTTP door: boot scripts, loaders, files.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use axum::routing::get;
use axum::{Extension, Router};
use dhcp::Mac;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::documents::{self, Asker as DocumentAsker, Document};
use super::{Site, loaders, ranges};
use crate::boot::script::{self, Doors, SanBoot, Waiting};
use crate::boot::{BootPlan, plan};
use crate::inventory::{self, Identity, Machine, OverlayMode, parse_mac};
use crate::timeline::Stage;

#[cfg(test)]
mod tests;

/// Connections served at once; further ones wait in the listen queue.
const CONNECTIONS_MAX: usize = 1024;
/// The same, of one address: a machine has one or two. Further ones are closed.
const CONNECTIONS_PER_ADDRESS_MAX: usize = 64;
/// How long a client may take to send its request headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest request headers, and what is buffered of an answer beside the chunk
/// being sent.
const BUFFER_BYTES: usize = 64 * 1024;
/// How long a client may take nothing of an answer, or leave it unacknowledged.
const SEND_TIMEOUT_MILLIS: u32 = 60_000;
/// How long answers under way may take once the program ends.
const DRAIN: Duration = Duration::from_secs(3);

/// A running HTTP server.
pub(crate) struct Server {
    addresses: Vec<SocketAddr>,
    stop: watch::Sender<bool>,
    accepting: Vec<tokio::task::JoinHandle<()>>,
}

impl Server {
    /// Listens and serves until [`Server::stop`].
    pub(crate) async fn start(wished: &[SocketAddr], site: Arc<Site>) -> io::Result<Server> {
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for address in wished {
            let listener = TcpListener::bind(address)
                .await
                .map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))?;
            addresses.push(listener.local_addr()?);
            listeners.push(listener);
        }
        let (stop, stopped) = watch::channel(false);
        let (router, crowd) = (router(site), Crowd::default());
        let accepting = listeners
            .into_iter()
            .map(|listener| {
                tokio::spawn(accept(
                    listener,
                    router.clone(),
                    crowd.clone(),
                    stopped.clone(),
                ))
            })
            .collect();
        Ok(Server {
            addresses,
            stop,
            accepting,
        })
    }

    /// Where it listens.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Accepts nothing more and lets answers under way end, for a while.
    pub(crate) async fn stop(self) {
        let _ = self.stop.send(true);
        let _ = tokio::time::timeout(DRAIN, async {
            for accepting in self.accepting {
                let _ = accepting.await;
            }
        })
        .await;
    }
}

/// Who is served, over all addresses we listen on.
#[derive(Clone)]
struct Crowd {
    places: Arc<Semaphore>,
    callers: Callers,
}

impl Default for Crowd {
    fn default() -> Crowd {
        Crowd {
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            callers: Callers::default(),
        }
    }
}

async fn accept(
    listener: TcpListener,
    router: Router,
    Crowd { places, callers }: Crowd,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let place = tokio::select! {
            _ = stopped.changed() => break,
            place = Arc::clone(&places).acquire_owned() => place,
        };
        let accepted = tokio::select! {
            _ = stopped.changed() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(caller) = callers.admit(peer.ip()) else {
                    tracing::debug!(%peer, "too many HTTP connections");
                    continue;
                };
                let router = router.clone();
                let stopped = stopped.clone();
                tokio::spawn(async move {
                    connection(stream, peer, router, stopped).await;
                    drop((place, caller));
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: connections that end free some.
                tracing::warn!(%error, "accepting an HTTP connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    let _ = places
        .acquire_many(u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX))
        .await;
}

/// How many connections each address has.
#[derive(Clone, Default)]
struct Callers(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Callers {
    /// Counts a connection until the answer is dropped; `None` when the address
    /// has its share already.
    fn admit(&self, address: IpAddr) -> Option<Caller> {
        let mut connections = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = connections.entry(address).or_default();
        if *count >= CONNECTIONS_PER_ADDRESS_MAX {
            return None;
        }
        *count += 1;
        Some(Caller {
            callers: self.clone(),
            address,
        })
    }
}

/// One connection of an address.
struct Caller {
    callers: Callers,
    address: IpAddr,
}

impl Drop for Caller {
    fn drop(&mut self) {
        let connections = &self.callers.0;
        let mut connections = connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = connections.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.address);
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    mut stopped: watch::Receiver<bool>,
) {
    let reached = match stream
        .local_addr()
        .map(|address| address.ip().to_canonical())
    {
        Ok(IpAddr::V4(address)) => Reached(address),
        Ok(IpAddr::V6(_)) | Err(_) => {
            tracing::debug!(%peer, "an HTTP connection to no IPv4 address");
            return;
        }
    };
    if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(&stream, SEND_TIMEOUT_MILLIS) {
        tracing::debug!(%peer, %error, "setting up an HTTP connection");
    }
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(peer));
        request.extensions_mut().insert(reached);
        tower::ServiceExt::oneshot(router.clone(), request)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(BUFFER_BYTES)
        // A client that has said all it wants (nc does) still wants the answer.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "HTTP connection ended");
    }
}

/// Who asks.
#[derive(Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// The address of ours that was asked: what an answer sends the client to.
#[derive(Clone, Copy)]
pub(super) struct Reached(pub(super) Ipv4Addr);

pub(super) fn router(site: Arc<Site>) -> Router {
    Router::new()
        .route("/boot.ipxe", get(boot_script))
        .route("/loader/{*name}", get(loader))
        .route("/files/{*name}", get(file))
        .fallback(get(document))
        .with_state(site)
}

/// What a machine says of itself in the script's URL.
#[derive(Debug, Default, Deserialize)]
struct Asker {
    mac: Option<String>,
    uuid: Option<String>,
    serial: Option<String>,
}

async fn boot_script(
    State(site): State<Arc<Site>>,
    Extension(Reached(server)): Extension<Reached>,
    asker: Result<Query<Asker>, QueryRejection>,
) -> Response<Body> {
    let asker = match asker {
        Ok(Query(asker)) => asker,
        Err(rejection) => {
            return text_response(
                StatusCode::BAD_REQUEST,
                format!("{}\n", rejection.body_text()),
            );
        }
    };
    // Enrolling and preparing write to the store, and wait for it.
    let answer =
        tokio::task::spawn_blocking(move || script_for(&site, &site.doors(server), &asker)).await;
    match answer {
        Ok(Ok(text)) => text_response(StatusCode::OK, text),
        Ok(Err(error @ inventory::Error::Invalid(_))) => {
            text_response(StatusCode::BAD_REQUEST, format!("{error}\n"))
        }
        Ok(Err(error)) => {
            tracing::error!(%error, "making a boot script");
            text_response(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n"))
        }
        Err(error) => {
            tracing::error!(%error, "making a boot script");
            text_response(
                StatusCode::INTERNAL_SERVER_ERROR,
                "something broke here\n".into(),
            )
        }
    }
}

fn script_for(site: &Site, doors: &Doors, asker: &Asker) -> inventory::Result<String> {
    let filled = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    let mac = filled(&asker.mac)
        .map(|text| parse_mac(&text))
        .transpose()?;
    // iPXE prints what the SMBIOS table holds with the byte order of its first
    // three fields turned, as dmidecode does; option 97 (to which iPXE turns
    // them back) and our facts have it as the table does.
    let uuid = filled(&asker.uuid)
        .and_then(|text| uuid::Uuid::parse_str(&text).ok())
        .map(|uuid| uuid.to_bytes_le());
    let serial = filled(&asker.serial);
    let Some(mac) = mac else {
        let found = site.inventory.find(&Identity {
            mac: None,
            uuid,
            serial,
        })?;
        return match found {
            Some(machine) => script_of(site, doors, &machine),
            None => Ok(script::who_are_you(doors)),
        };
    };
    let made = site
        .inventory
        .enrol(mac, uuid, serial.as_deref())
        .and_then(|machine| script_of(site, doors, &machine));
    match made {
        // It is told, and asks again: iPXE gives up at an HTTP error.
        Err(error) if !matches!(error, inventory::Error::Invalid(_)) => {
            tracing::warn!(%mac, %error, "making a boot script");
            let (mac, again) = (mac.to_string(), doors.script_url(mac));
            let words = error.to_string();
            let pause = with_jitter(site.retry);
            let reason = Waiting::Trouble;
            Ok(script::waiting(reason, &mac, &mac, &words, &again, pause))
        }
        made => made,
    }
}

/// The script of one machine: prepares its next boot generation where it can
/// boot, which harms nothing that runs.
fn script_of(site: &Site, doors: &Doors, machine: &Machine) -> inventory::Result<String> {
    let mac = machine.mac.to_string();
    let again = doors.script_url(machine.mac);
    let wait = |reason, words: &str| {
        let pause = with_jitter(site.retry);
        Ok(script::waiting(
            reason,
            &machine.name,
            &mac,
            words,
            &again,
            pause,
        ))
    };
    let boots = match plan(machine) {
        BootPlan::Unknown => {
            site.timeline.record(
                machine.mac,
                Stage::ScriptSent,
                "it is pending: told so on its screen",
            );
            return wait(Waiting::Unknown, "");
        }
        BootPlan::Unassigned => {
            site.timeline.record(
                machine.mac,
                Stage::ScriptSent,
                "nothing is assigned: told so on its screen",
            );
            return wait(Waiting::Unassigned, "");
        }
        BootPlan::Clone { image, mode } => {
            let mode = match mode {
                OverlayMode::Reset => "reset",
                OverlayMode::Keep => "keep",
            };
            let found = site.inventory.image(&image);
            found.map(|_| format!("{image}, {mode}"))
        }
        BootPlan::Direct(disk) => {
            let found = site.inventory.own_disk_of(disk);
            found.map(|disk| format!("disk {}", disk.name))
        }
    };
    let disk = match boots {
        Ok(disk) => disk,
        Err(error) => {
            let words = error.to_string();
            site.timeline
                .record(machine.mac, Stage::Problem, words.clone());
            return wait(Waiting::Trouble, &words);
        }
    };
    let prepared = site.inventory.prepare_generation(machine.id)?;
    let boot = SanBoot {
        machine: &machine.name,
        disk: &disk,
        target: &site.target_name(machine),
        initiator: &site.initiator_name(machine),
        chap_name: &inventory::chap_name(machine, prepared.number),
        secret: &prepared.secret,
    };
    site.timeline.record(
        machine.mac,
        Stage::ScriptSent,
        format!("{}, boot generation {}", boot.disk, prepared.number),
    );
    Ok(script::san_boot(
        doors,
        &boot,
        &again,
        with_jitter(site.retry),
    ))
}

/// `pause` to twice `pause`, so that a room of PCs does not ask in one voice.
fn with_jitter(pause: Duration) -> Duration {
    let share = getrandom::u32().unwrap_or_default();
    pause + pause.mul_f64(f64::from(share) / f64::from(u32::MAX))
}

async fn loader(
    State(site): State<Arc<Site>>,
    Path(name): Path<String>,
    method: Method,
    headers: HeaderMap,
    request: Request,
) -> Response<Body> {
    if let Some(sent) = document_of(&site, asker_of(&site, &request), &method, &name).await {
        return sent;
    }
    let opened = site.loaders.open(&name);
    let sent = send(opened, &method, &headers, &name);
    note(&site, &request, &sent, Stage::LoaderSent, &name);
    sent
}

/// What is asked for at the root: loaders look for their files there too.
async fn document(State(site): State<Arc<Site>>, request: Request) -> Response<Body> {
    let name = request.uri().path().trim_start_matches('/').to_owned();
    let (asker, method) = (asker_of(&site, &request), request.method().clone());
    if let Some(sent) = document_of(&site, asker, &method, &name).await {
        return sent;
    }
    text_response(StatusCode::NOT_FOUND, "there is no such file here\n".into())
}

/// A document made for whoever asks.
async fn document_of(
    site: &Arc<Site>,
    asker: Option<DocumentAsker>,
    method: &Method,
    name: &str,
) -> Option<Response<Body>> {
    let asker = asker?;
    let found = {
        let (site, name) = (Arc::clone(site), name.to_owned());
        tokio::task::spawn_blocking(move || documents::find(&site, &asker, &name)).await
    };
    let sent = match found {
        Ok(Some(Document::Bytes(bytes))) => ranges::made(method, bytes, name),
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
    if let Some(mac) = asker.mac
        && method == Method::GET
        && sent.status() == StatusCode::OK
    {
        let words = format!("{name} over HTTP");
        site.timeline.record(mac, stage, words);
    }
    Some(sent)
}

async fn file(
    State(site): State<Arc<Site>>,
    Path(name): Path<String>,
    method: Method,
    headers: HeaderMap,
    request: Request,
) -> Response<Body> {
    let opened = loaders::open_below(std::slice::from_ref(&site.files), &name);
    let sent = send(opened, &method, &headers, &name);
    note(&site, &request, &sent, Stage::FileSent, &name);
    sent
}

fn send(
    opened: io::Result<std::fs::File>,
    method: &Method,
    headers: &HeaderMap,
    name: &str,
) -> Response<Body> {
    match opened.and_then(|file| ranges::respond(method, headers, file, name)) {
        Ok(response) => response,
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
    match sent.status() {
        StatusCode::OK if request.method() == Method::GET => {
            site.timeline
                .record(mac, stage, format!("{name} over HTTP"));
        }
        StatusCode::NOT_FOUND => {
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
