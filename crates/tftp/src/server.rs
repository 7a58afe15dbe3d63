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
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, trace, warn};

use crate::transfer::{
    Caps, ETHERNET_BLOCK_BYTES, MAX_WINDOW_BLOCKS, Repeat, Send, Terms, Transfer,
};
use crate::wire::{self, Ask, DATA_HEADER_BYTES, MAX_REQUEST_BYTES, Mode, Packet};
use crate::{ErrorCode, Files, Outcome, Request};

mod arrival;
mod source;

use source::Source;

/// Repeated requests that may wait for a transfer to look at them.
const MAX_REPEATS_WAITING: usize = 4;

/// Packets from strangers that a transfer answers with error 5.
const MAX_STRANGERS_ANSWERED: u32 = 8;

/// Time that running transfers are given when the server stops.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Time between two warnings of the same kind that a peer can trigger.
const WARNING_SPACING: Duration = Duration::from_secs(10);

/// RFC 1350: unknown transfer ID.
const UNKNOWN_TRANSFER: u16 = 5;

/// How much the server does at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Transfers at once.
    pub transfers: usize,
    /// Transfers at once to one address.
    pub transfers_per_client: usize,
    /// Largest block granted, in bytes. 1468 fits an Ethernet frame of 1500;
    /// less is needed behind a VPN or PPPoE.
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

/// What has happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Read requests that began a transfer or were refused by the site.
    pub requests: u64,
    /// Requests that came again for a transfer that runs.
    pub repeated: u64,
    /// Transfers that ended complete.
    pub complete: u64,
    /// Size probes.
    pub probed: u64,
    /// Requests the site refused, or whose name climbs.
    pub refused: u64,
    /// Transfers ended by the client's ERROR.
    pub aborted: u64,
    /// Transfers whose client fell silent.
    pub timed_out: u64,
    /// Transfers that we could not go on with.
    pub failed: u64,
    /// Datagrams that are no TFTP packet, or none that begins anything.
    pub malformed: u64,
    /// Write requests refused.
    pub writes_refused: u64,
    /// Requests sent to a broadcast or multicast address, or from an
    /// impossible one; dropped.
    pub not_unicast: u64,
    /// Requests dropped because all places were taken.
    pub over_limit: u64,
    /// Blocks sent more than once.
    pub resent_blocks: u64,
    /// Payload sent, in bytes, resends included.
    pub sent_bytes: u64,
    /// Transfers running now.
    pub running: u64,
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

macro_rules! counts {
    ($($name:ident),*) => {
        /// [`Counters`] that grow.
        #[derive(Debug, Default)]
        struct Counts { $($name: AtomicU64),* }

        impl Counts {
            fn read(&self, running: usize) -> Counters {
                Counters {
                    $($name: self.$name.load(Ordering::Relaxed),)*
                    running: running as u64,
                }
            }
        }
    };
}
counts!(
    requests,
    repeated,
    complete,
    probed,
    refused,
    aborted,
    timed_out,
    failed,
    malformed,
    writes_refused,
    not_unicast,
    over_limit,
    resent_blocks,
    sent_bytes
);

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
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

/// Sends an ERROR from a fresh port and forgets about it (RFC 1350 section 7).
fn refuse(local: SocketAddrV4, client: SocketAddrV4, code: ErrorCode) {
    let send = || -> io::Result<()> {
        let socket = std::net::UdpSocket::bind((*local.ip(), 0))?;
        socket.set_nonblocking(true)?;
        socket.send_to(&error_packet(code.number(), code.message()), client)?;
        Ok(())
    };
    if let Err(error) = send() {
        debug!(%client, %error, "sending an ERROR");
    }
}

fn error_packet(code: u16, message: &str) -> Vec<u8> {
    let mut datagram = Vec::new();
    Packet::Error {
        code,
        message: message.as_bytes(),
    }
    .emit(&mut datagram);
    datagram
}

/// The task behind one client port.
struct Errand {
    shared: Arc<Shared>,
    key: Key,
    /// Requests that came again from that port.
    inbox: mpsc::Receiver<Incoming>,
    _place: OwnedSemaphorePermit,
}

impl Drop for Errand {
    fn drop(&mut self) {
        lock(&self.shared.running).remove(&self.key);
    }
}

impl Errand {
    /// Serves the request, and those the client restarts with from the same
    /// port.
    async fn run(mut self, first: Incoming) {
        let mut next = Some(first);
        while let Some(incoming) = next.take() {
            add(&self.shared.counts.requests, 1);
            let outcome;
            (outcome, next) = self.serve(&incoming).await;
            self.report(incoming.request, outcome).await;
        }
    }

    /// One request from opening to outcome; the request to go on with when
    /// the client has started anew.
    async fn serve(&mut self, incoming: &Incoming) -> (Outcome, Option<Incoming>) {
        let Request { client, local, .. } = incoming.request;
        let Ok(Packet::Read(ask)) = Packet::parse(&incoming.datagram) else {
            return (Outcome::Refused(ErrorCode::IllegalOperation), None); // it was parsed before
        };
        let mut source = match self.open(&incoming.request, ask.mode).await {
            Ok(source) => source,
            Err(code) => {
                refuse(local, client, code);
                return (Outcome::Refused(code), None);
            }
        };
        let socket = match UdpSocket::bind((*local.ip(), 0)).await {
            Ok(socket) => socket,
            Err(error) => {
                let reason = format!("no port for the transfer: {error}");
                return (Outcome::Failed { reason, bytes: 0 }, None);
            }
        };
        let caps = Caps {
            block_bytes: self.shared.limits.max_block_bytes,
            window_blocks: self.shared.limits.max_window_blocks,
        };
        let terms = Terms::negotiate(&ask.options, source.size_bytes(), caps);
        let mut transfer = Transfer::new(terms, source.size_bytes(), Instant::now());
        let next = self
            .transfer(incoming, &socket, &mut source, &mut transfer)
            .await;
        add(&self.shared.counts.resent_blocks, transfer.resent_blocks());
        let outcome = transfer.outcome().cloned();
        let unfinished = Outcome::Failed {
            reason: "the transfer was dropped".to_owned(),
            bytes: 0,
        };
        (outcome.unwrap_or(unfinished), next)
    }

    async fn transfer(
        &mut self,
        incoming: &Incoming,
        socket: &UdpSocket,
        source: &mut Source,
        transfer: &mut Transfer,
    ) -> Option<Incoming> {
        let client = incoming.request.client;
        let mut cut = self.shared.cut.subscribe();
        let mut buffer = [0; 1024];
        let mut datagram = Vec::new();
        let mut strangers = 0;
        loop {
            while let Some(send) = transfer.next_send(Instant::now()) {
                datagram.clear();
                match send {
                    Send::OptionAck => {
                        datagram.extend_from_slice(
                            transfer.terms().option_ack.as_deref().unwrap_or_default(),
                        );
                    }
                    Send::Data {
                        block,
                        offset_bytes,
                        length_bytes,
                    } => {
                        Packet::Data {
                            block,
                            payload: &[],
                        }
                        .emit(&mut datagram);
                        if let Err(error) =
                            source.read(offset_bytes, length_bytes, &mut datagram).await
                        {
                            tell(socket, client, &error_packet(0, "Read error")).await;
                            transfer.fail(format!("reading at byte {offset_bytes}: {error}"));
                            break;
                        }
                        let payload = datagram.len().saturating_sub(DATA_HEADER_BYTES);
                        add(&self.shared.counts.sent_bytes, payload as u64);
                    }
                }
                tell(socket, client, &datagram).await;
            }
            if transfer.outcome().is_some() {
                return None;
            }
            let deadline = tokio::time::Instant::from_std(transfer.deadline());
            tokio::select! {
                received = socket.recv_from(&mut buffer) => match received {
                    Ok((length, from)) if from == SocketAddr::V4(client) => {
                        match Packet::parse(&buffer[..length]) {
                            Ok(packet) => transfer.receive(&packet, Instant::now()),
                            Err(error) => {
                                add(&self.shared.counts.malformed, 1);
                                debug!(%client, %error, "malformed packet dropped");
                            }
                        }
                    }
                    Ok((length, SocketAddr::V4(stranger))) => {
                        let is_error = matches!(Packet::parse(&buffer[..length]), Ok(Packet::Error { .. }));
                        if !is_error && strangers < MAX_STRANGERS_ANSWERED {
                            strangers += 1;
                            tell(socket, stranger, &error_packet(UNKNOWN_TRANSFER, "Unknown transfer ID")).await;
                        }
                    }
                    Ok(_) => {}
                    Err(error) => {
                        trace!(%client, %error, "receiving");
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                },
                () = tokio::time::sleep_until(deadline) => transfer.wake(Instant::now()),
                Some(again) = self.inbox.recv() => {
                    let same = again.request.name == incoming.request.name;
                    if !same || transfer.repeat(Instant::now()) == Repeat::Restart {
                        transfer.abandon();
                        return Some(again);
                    }
                }
                () = async { drop(cut.wait_for(|&cut| cut).await) } => {
                    tell(socket, client, &error_packet(0, "Server is stopping")).await;
                    transfer.fail("the server was stopped");
                    return None;
                }
            }
        }
    }

    /// Asks the site, where it may block.
    async fn open(&self, request: &Request, mode: Mode) -> Result<Source, ErrorCode> {
        let (shared, request) = (Arc::clone(&self.shared), request.clone());
        let opened = tokio::task::spawn_blocking(move || {
            let content = shared.files.open(&request)?;
            match mode {
                Mode::Octet => Ok(Source::of(content)),
                Mode::Netascii => Source::in_netascii(content).map_err(|error| {
                    debug!(name = %request.name, client = %request.client, %error, "refused in netascii");
                    ErrorCode::IllegalOperation
                }),
            }
        });
        // A panic in there is the site's fault and must not look like a
        // missing file.
        opened.await.unwrap_or(Err(ErrorCode::Busy))
    }

    async fn report(&self, request: Request, outcome: Outcome) {
        let counts = &self.shared.counts;
        add(
            match &outcome {
                Outcome::Complete { .. } => &counts.complete,
                Outcome::Probed => &counts.probed,
                Outcome::Refused(_) => &counts.refused,
                Outcome::Aborted { .. } => &counts.aborted,
                Outcome::TimedOut { .. } => &counts.timed_out,
                Outcome::Failed { .. } => &counts.failed,
            },
            1,
        );
        debug!(client = %request.client, name = %request.name, ?outcome, "TFTP transfer ended");
        let shared = Arc::clone(&self.shared);
        let _ = tokio::task::spawn_blocking(move || shared.files.ended(&request, &outcome)).await;
    }
}

/// Sends a datagram; one that cannot be sent is one that was lost, and comes
/// again by the clock.
async fn tell(socket: &UdpSocket, client: SocketAddrV4, datagram: &[u8]) {
    if let Err(error) = socket.send_to(datagram, SocketAddr::V4(client)).await {
        debug!(%client, %error, "sending");
    }
}
