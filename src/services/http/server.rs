//! Listeners, and one hyper connection for each who comes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::crowd::{self, Crowd, Guest};
use super::socket::{Pieces, Socket};
use super::{Peer, Reached, router};
use crate::services::Site;
use crate::timeline::Stage;

/// How long a client may take to send its request headers, and to begin with
/// the next ones.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest request headers.
pub(super) const BUFFER_BYTES: usize = 16 * 1024;
/// How long a client may leave what was sent unacknowledged.
const SEND_TIMEOUT_MILLIS: u32 = 60_000;
/// How long answers under way may take once the program ends.
const DRAIN: Duration = Duration::from_secs(3);
/// Connections that may wait in the listen queue; the kernel has its own limit
/// (net.core.somaxconn).
const LISTEN_QUEUE: u32 = 4096;

/// Encrypted doors.
pub(crate) struct Tls {
    /// Where they are.
    pub(crate) addresses: Vec<SocketAddr>,
    /// What we prove ourselves with.
    pub(crate) acceptor: TlsAcceptor,
}

/// A running HTTP server.
pub(crate) struct Server {
    addresses: Vec<SocketAddr>,
    tls_addresses: Vec<SocketAddr>,
    stop: watch::Sender<bool>,
    accepting: Vec<tokio::task::JoinHandle<()>>,
}

impl Server {
    /// Listens and serves until [`Server::stop`].
    pub(crate) async fn start(
        wished: &[SocketAddr],
        tls: Option<Tls>,
        site: Arc<Site>,
    ) -> io::Result<Server> {
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for address in wished {
            let listener = listen(*address)?;
            addresses.push(listener.local_addr()?);
            listeners.push((listener, None));
        }
        let mut tls_addresses = Vec::new();
        if let Some(tls) = tls {
            for address in tls.addresses {
                let listener = listen(address)?;
                tls_addresses.push(listener.local_addr()?);
                listeners.push((listener, Some(tls.acceptor.clone())));
            }
        }
        let (stop, stopped) = watch::channel(false);
        let (router, crowd) = (router(Arc::clone(&site)), Crowd::new());
        let mut accepting = vec![tokio::spawn(look_after(crowd.clone(), stopped.clone()))];
        accepting.extend(listeners.into_iter().map(|(listener, acceptor)| {
            let door = Door {
                router: router.clone(),
                site: Arc::clone(&site),
                acceptor,
            };
            tokio::spawn(accept(listener, door, crowd.clone(), stopped.clone()))
        }));
        Ok(Server {
            addresses,
            tls_addresses,
            stop,
            accepting,
        })
    }

    /// Where it listens.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where it listens for encrypted connections.
    pub(crate) fn tls_addresses(&self) -> &[SocketAddr] {
        &self.tls_addresses
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

/// What all connections of a listener come to.
#[derive(Clone)]
struct Door {
    router: Router,
    site: Arc<Site>,
    /// None: they are plain.
    acceptor: Option<TlsAcceptor>,
}

/// An error names the address.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let open = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // As std does: a restart does not wait for old connections to be forgotten.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(LISTEN_QUEUE)
    };
    open().map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))
}

async fn look_after(crowd: Crowd, mut stopped: watch::Receiver<bool>) {
    loop {
        tokio::select! {
            _ = stopped.changed() => return,
            () = tokio::time::sleep(crowd::LOOK) => crowd.look(),
        }
    }
}

async fn accept(
    listener: TcpListener,
    door: Door,
    crowd: Crowd,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let place = tokio::select! {
            _ = stopped.changed() => break,
            place = crowd.place() => place,
        };
        let accepted = tokio::select! {
            _ = stopped.changed() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(guest) = place.and_then(|place| crowd.admit(peer.ip(), place)) else {
                    tracing::debug!(%peer, "too many HTTP connections");
                    continue;
                };
                tokio::spawn(connection(
                    stream,
                    peer,
                    guest,
                    door.clone(),
                    stopped.clone(),
                ));
            }
            Err(error) => {
                // Out of descriptors, most likely: connections that end free some.
                tracing::warn!(%error, "accepting an HTTP connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    crowd.empty().await;
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    guest: Guest,
    door: Door,
    stopped: watch::Receiver<bool>,
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
    let set_up = rustix::net::sockopt::set_tcp_user_timeout(&stream, SEND_TIMEOUT_MILLIS)
        .map_err(io::Error::from)
        .and_then(|()| stream.set_nodelay(true));
    if let Err(error) = set_up {
        tracing::debug!(%peer, %error, "setting up an HTTP connection");
    }
    tokio::select! {
        ended = answer(stream, &guest, (peer, reached), door, stopped) => {
            if let Err(error) = ended {
                tracing::debug!(%peer, %error, "HTTP connection ended");
            }
        }
        () = guest.asked_to_leave() => {
            tracing::debug!(%peer, "HTTP connection closed: too slow, or still for too long");
        }
    }
}

/// Answers what is asked on one connection, encrypted where its door is.
async fn answer(
    stream: TcpStream,
    guest: &Guest,
    (peer, reached): (SocketAddr, Reached),
    Door {
        router,
        site,
        acceptor,
    }: Door,
    stopped: watch::Receiver<bool>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let pieces = Pieces::default();
    let socket = Socket::new(stream, pieces.clone(), guest.moved());
    let peer = Peer(peer);
    match acceptor {
        None => {
            let pieces = Some(pieces);
            let asked = Asked {
                peer,
                reached,
                pieces,
            };
            serve(socket, asked, router, stopped).await?;
        }
        Some(acceptor) => {
            let shaken = tokio::time::timeout(HEADER_TIMEOUT, acceptor.accept(socket)).await;
            let stream = shaken
                .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
                .inspect_err(|error| tell_why(&site, peer, error))?;
            let asked = Asked {
                peer,
                reached,
                pieces: None,
            };
            serve(stream, asked, router, stopped).await?;
        }
    }
    Ok(())
}

/// Firmware says nothing of a handshake that failed: the timeline does.
fn tell_why(site: &Site, Peer(peer): Peer, error: &io::Error) {
    let reason = error.get_ref().and_then(|error| error.downcast_ref());
    let words = match reason {
        Some(rustls::Error::PeerIncompatible(_)) => {
            "HTTPS: its TLS and ours have nothing in common (it knows no elliptic curves, or TLS 1.1 at most): \
             take \"firmware\" out of http.tls_for"
        }
        Some(rustls::Error::AlertReceived(_)) => {
            "HTTPS: it does not trust our certificate: enrol the authority there (diskless ca show)"
        }
        _ => return,
    };
    if let Some(mac) = site.addresses.mac_of(peer.ip()) {
        site.timeline.record(mac, Stage::Problem, words.to_owned());
    }
}

/// What the handlers are told of a connection.
#[derive(Clone)]
struct Asked {
    peer: Peer,
    reached: Reached,
    /// Where files can be sent as they lie.
    pieces: Option<Pieces>,
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    asked: Asked,
    router: Router,
    mut stopped: watch::Receiver<bool>,
) -> hyper::Result<()> {
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        let extensions = request.extensions_mut();
        extensions.insert(asked.peer);
        extensions.insert(asked.reached);
        if let Some(pieces) = &asked.pieces {
            extensions.insert(pieces.clone());
        }
        tower::ServiceExt::oneshot(router.clone(), request)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(BUFFER_BYTES)
        // A client that has said all it wants (nc does) still wants the answer.
        .half_close(true)
        // GRUB knows the names of headers in this spelling only.
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}
