//! The sockets, the clock and the tasks of the TFTP server.
//!
//! One task listens per address. Every request gets a task and a fresh port
//! of its own (RFC 1350 section 4), bound to the address the request came to:
//! firmware drops answers from any other.
//!
//! Invariant: a client's port has one transfer at a time; a request repeated
//! from it goes to that transfer.
//!
//! When all places are taken a request is dropped in silence: an ERROR would
//! make a ROM give up and boot something else, silence makes it ask again.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, trace, warn};

use crate::transfer::{ETHERNET_BLOCK_BYTES, MAX_WINDOW_BLOCKS};
use crate::wire::{self, Ask, MAX_REQUEST_BYTES, Packet};
use crate::{ErrorCode, Files, Request};

mod arrival;
mod counts;
mod errand;
mod path;
mod source;

pub use counts::Counters;

use counts::{Counts, add};
use errand::{Errand, refuse};

/// Repeated requests that may wait for a transfer to look at them.
const MAX_REPEATS_WAITING: usize = 4;

/// Time that running transfers are given when the server stops.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Time between two warnings of the same kind that a peer can trigger.
const WARNING_SPACING: Duration = Duration::from_secs(10);

/// How much the server does at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Transfers at once.
    pub transfers: usize,
    /// Transfers at once to one address.
    pub transfers_per_client: usize,
    /// Largest block granted, in bytes. 1468 fits an Ethernet frame of 1500;
    /// where the way to a client takes less, less is granted.
    pub max_block_bytes: u16,
    /// Largest window granted, in blocks (1 to 64).
    pub max_window_blocks: u16,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            transfers: 256,
            transfers_per_client: 16,
            max_block_bytes: ETHERNET_BLOCK_BYTES,
            max_window_blocks: MAX_WINDOW_BLOCKS,
        }
    }
}

/// A running TFTP server. Dropping it ends everything at once.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddrV4>,
    listeners: Vec<JoinHandle<()>>,
}

impl Server {
    /// Listens on every address given; 0.0.0.0 means all of the machine's.
    /// Call it inside a tokio runtime. An error names the address.
    pub fn start(
        addresses: &[SocketAddrV4],
        files: Arc<dyn Files>,
        limits: Limits,
    ) -> io::Result<Server> {
        let mut sockets = Vec::new();
        for &address in addresses {
            let socket = listen(address).map_err(|error| {
                io::Error::new(error.kind(), format!("TFTP on {address}: {error}"))
            })?;
            sockets.push(socket);
        }
        let shared = Arc::new(Shared {
            files,
            limits,
            counts: Counts::default(),
            running: Mutex::new(HashMap::new()),
            places: Arc::new(Semaphore::new(limits.transfers.min(Semaphore::MAX_PERMITS))),
            cut: watch::Sender::new(false),
            last_warning: Mutex::new(None),
        });
        let mut server = Server {
            shared,
            addresses: Vec::new(),
            listeners: Vec::new(),
        };
        for socket in sockets {
            if let SocketAddr::V4(address) = socket.local_addr()? {
                server.addresses.push(address);
            }
            server
                .listeners
                .push(tokio::spawn(attend(socket, Arc::clone(&server.shared))));
        }
        Ok(server)
    }

    /// Where it listens, with the ports that were chosen where 0 was asked.
    pub fn local_addresses(&self) -> &[SocketAddrV4] {
        &self.addresses
    }

    /// What has happened since the start.
    pub fn counters(&self) -> Counters {
        self.shared.counts.read(lock(&self.shared.running).len())
    }

    /// Stops listening, gives running transfers 5 seconds to end, and tells
    /// the clients of the others.
    pub async fn stop(mut self) {
        for listener in self.listeners.drain(..) {
            listener.abort();
            let _ = listener.await;
        }
        let all = u32::try_from(self.shared.limits.transfers).unwrap_or(u32::MAX);
        let places = Arc::clone(&self.shared.places);
        if tokio::time::timeout(DRAIN_TIME, places.acquire_many(all))
            .await
            .is_err()
        {
            self.shared.cut.send_replace(true);
            let _ = tokio::time::timeout(DRAIN_TIME, places.acquire_many(all)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for listener in &self.listeners {
            listener.abort();
        }
        self.shared.cut.send_replace(true);
    }
}

/// What all tasks of a server share.
struct Shared {
    files: Arc<dyn Files>,
    limits: Limits,
    counts: Counts,
    /// The transfers by their client's and our address.
    running: Mutex<HashMap<Key, mpsc::Sender<Incoming>>>,
    places: Arc<Semaphore>,
    /// True: transfers end now.
    cut: watch::Sender<bool>,
    last_warning: Mutex<Option<Instant>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Client, and the address it sent its request to.
type Key = (SocketAddrV4, Ipv4Addr);

/// A read request on its way to its task.
#[derive(Clone, Debug)]
struct Incoming {
    request: Request,
    /// The datagram: at most [`MAX_REQUEST_BYTES`], known to parse.
    datagram: Vec<u8>,
}

/// What is behind the lock stays whole when a holder panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn listen(address: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    arrival::enable(socket.as_fd())?;
    UdpSocket::from_std(socket)
}

/// Takes requests from one listening socket, for ever.
async fn attend(socket: UdpSocket, shared: Arc<Shared>) {
    let port = socket.local_addr().map_or(0, |address| address.port());
    let mut buffer = vec![0; MAX_REQUEST_BYTES + 1]; // one more, so that too long is seen
    loop {
        let received = socket
            .async_io(Interest::READABLE, || {
                arrival::receive(socket.as_fd(), &mut buffer)
            })
            .await;
        let arrival = match received {
            Ok(arrival) => arrival,
            Err(error) => {
                debug!(%error, "receiving TFTP requests");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let client = arrival.client;
        let ip = client.ip();
        let impossible =
            client.port() == 0 || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast();
        if arrival.sent_to != arrival.local || impossible {
            add(&shared.counts.not_unicast, 1);
            trace!(%client, sent_to = %arrival.sent_to, "not for us alone, dropped");
            continue;
        }
        let datagram = &buffer[..arrival.length_bytes];
        let local = SocketAddrV4::new(arrival.local, port);
        match Packet::parse(datagram) {
            Ok(Packet::Read(ask)) => admit(&shared, &ask, client, local, datagram),
            Ok(Packet::Write(_)) => {
                add(&shared.counts.writes_refused, 1);
                debug!(%client, "write request refused");
                refuse(local, client, ErrorCode::AccessViolation);
            }
            Ok(_) => {
                add(&shared.counts.malformed, 1);
                trace!(%client, "a packet that begins nothing, dropped");
            }
            Err(error) => {
                add(&shared.counts.malformed, 1);
                debug!(%client, %error, "malformed packet dropped");
            }
        }
    }
}

/// Hands a read request to its transfer, new or running.
fn admit(
    shared: &Arc<Shared>,
    ask: &Ask<'_>,
    client: SocketAddrV4,
    local: SocketAddrV4,
    datagram: &[u8],
) {
    let name = match wire::normalise(ask.name) {
        Ok(name) => name,
        Err(error) => {
            add(&shared.counts.refused, 1);
            debug!(%client, name = %wire::readable(ask.name), %error, "refused");
            refuse(local, client, ErrorCode::NotFound);
            return;
        }
    };
    let incoming = Incoming {
        request: Request {
            name,
            client,
            local,
        },
        datagram: datagram.to_vec(),
    };
    let key = (client, *local.ip());
    let mut running = lock(&shared.running);
    if let Some(transfer) = running.get(&key) {
        add(&shared.counts.repeated, 1);
        let _ = transfer.try_send(incoming); // full: enough of them wait already
        return;
    }
    let of_client = running
        .keys()
        .filter(|(other, _)| other.ip() == client.ip())
        .count();
    let place = match Arc::clone(&shared.places).try_acquire_owned() {
        Ok(place) if of_client < shared.limits.transfers_per_client => place,
        _ => {
            drop(running);
            add(&shared.counts.over_limit, 1);
            warn_of_limit(shared, client);
            return;
        }
    };
    let (repeats, inbox) = mpsc::channel(MAX_REPEATS_WAITING);
    running.insert(key, repeats);
    drop(running);
    tokio::spawn(
        Errand {
            shared: Arc::clone(shared),
            key,
            inbox,
            _place: place,
        }
        .run(incoming),
    );
}

fn warn_of_limit(shared: &Shared, client: SocketAddrV4) {
    let now = Instant::now();
    let mut last = lock(&shared.last_warning);
    if last.is_none_or(|last| now.duration_since(last) >= WARNING_SPACING) {
        *last = Some(now);
        let Limits {
            transfers,
            transfers_per_client,
            ..
        } = shared.limits;
        warn!(%client, transfers, transfers_per_client, "TFTP requests are dropped: all places are taken");
    }
}
