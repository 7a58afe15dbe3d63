//! The server: sockets, clock and thread (RFC 2131, PXE 2.1).
//!
//! Per interface, in `proxy` and `full` mode, two UDP sockets on each of the
//! ports 67 and 4011, bound to the device: one for what is broadcast, one on
//! our address, for what is sent to us alone (a renewal, not a rebinding) and
//! so that replies come from the server identifier. Beside them, in every
//! mode, a packet socket: it reaches clients that have no address yet and
//! hears other servers. `observe` mode has nothing but that, and so no port.
//! Where we serve, one more ends iPXE's wait for an IPv6 router, and where we
//! lend, a last one asks by ARP whose an address is.
//!
//! All of it runs on one thread of its own, so that a site whose answers come
//! from a database does not hold up anybody else's runtime.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant, SystemTime};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

mod advert;
mod conflict;
mod interfaces;
mod packet;
mod probe;

pub use interfaces::{Interface, InterfaceKind, interfaces};
pub use probe::look_for_other_servers;

use crate::advert::Booting;
use crate::answer::{Arrival, CLIENT_PORT, Destination, Port, Reply, answer, watch};
use crate::lease::{Leases, RENEW_INTERVAL};
use crate::wire::{Message, MessageType, Op};
use crate::{
    Boot, Client, Lease, LeaseStore, Mac, Mode, Observation, Policy, Promise, Settings, Style,
    Subnet, frame,
};
use conflict::{Asker, RegisteredAsker};
use packet::{AsyncPacketSocket, PacketSocket};

/// The largest packet looked at: more than an Ethernet frame holds.
const MAX_PACKET_BYTES: usize = 4096;

/// Requests answered at once, before any of the answers is sent: what they
/// lend is kept together, with one `fsync`.
const BATCH: usize = 256;

/// Receive buffer of each socket, in bytes: a thousand machines switched on at
/// once ask within a few milliseconds, and a kernel's packet counts for 1280.
const RECEIVE_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// After an error of a socket (the interface went down), before the next try.
const ERROR_PAUSE: Duration = Duration::from_secs(1);

/// How often one foreign server is told to the site.
const FOREIGN_PAUSE: Duration = Duration::from_secs(60);

/// How often malformed packets are told to the site.
const MALFORMED_PAUSE: Duration = Duration::from_secs(1);

/// How often the site is told that strangers find no address left; of its own
/// machines it is told each time.
const EXHAUSTED_PAUSE: Duration = Duration::from_secs(10);

/// Foreign servers remembered; whoever invents more is not told more often.
const MAX_FOREIGN_SERVERS: usize = 64;

/// An interface to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceConfig {
    /// Its name, for instance `enp3s0`.
    pub name: String,
    /// Its address: the server identifier, and what its clients see us under.
    pub address: Ipv4Addr,
    /// The mask of its network.
    pub netmask: Ipv4Addr,
}

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests received on our ports; none in observe mode.
    pub received: u64,
    /// Requests heard on the wire, in every mode and whether a firewall let
    /// them through to our ports or not: many more than `received` means that
    /// it does not.
    pub heard: u64,
    /// Packets dropped because they could not be read.
    pub malformed: u64,
    /// Replies sent.
    pub answered: u64,
}

/// A running server.
pub struct Server {
    shared: Arc<Shared>,
    /// Dropped or sent to: the thread ends.
    stop: oneshot::Sender<()>,
    /// Ends with the thread.
    stopped: oneshot::Receiver<()>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Opens the sockets of every interface and starts to answer.
    ///
    /// # Errors
    /// `AddrInUse`: another program holds port 67 or 4011 of an interface
    /// (never in observe mode, which holds no port). `NotFound`: no such
    /// interface. `AddrNotAvailable`: the interface has no such address.
    /// `PermissionDenied`: neither root nor `CAP_NET_RAW` and
    /// `CAP_NET_BIND_SERVICE`. `InvalidInput`: settings that contradict
    /// themselves. The message names interface and port. `Other`: leases that
    /// cannot be loaded.
    pub fn start(
        interfaces: Vec<InterfaceConfig>,
        settings: Settings,
        policy: Arc<dyn Policy>,
        leases: Arc<dyn LeaseStore>,
    ) -> io::Result<Server> {
        check(&interfaces, &settings)?;
        let links: Vec<Link> = interfaces
            .iter()
            .map(|config| Link::open(config, settings.mode))
            .collect::<io::Result<_>>()?;
        let mut leases = Leases::open(leases, SystemTime::now())
            .map_err(|error| io::Error::other(format!("leases cannot be loaded: {error}")))?;
        if links.iter().any(|link| link.asker.is_some()) {
            leases.begin_probing();
        }
        let own = interfaces.iter().map(|config| config.address).collect();
        let shared = Arc::new(Shared {
            settings,
            policy: Calm {
                policy,
                own,
                booting: Mutex::default(),
                foreign: Mutex::default(),
                malformed: Mutex::default(),
                exhausted: Mutex::default(),
            },
            leases: Mutex::new(leases),
            received: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        });

        let (stop, stop_asked) = oneshot::channel();
        let (has_stopped, stopped) = oneshot::channel();
        let (started, has_started) = mpsc::channel();
        let of_thread = shared.clone();
        std::thread::Builder::new()
            .name("dhcp".into())
            .spawn(move || {
                let _has_stopped: oneshot::Sender<()> = has_stopped;
                let runtime = match tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(started.send(Err(error))),
                };
                runtime.block_on(async {
                    let tasks = links
                        .into_iter()
                        .map(Link::register)
                        .collect::<io::Result<Vec<_>>>()
                        .map(|links| of_thread.spawn(links));
                    match tasks {
                        Ok(_tasks) => {
                            let _ = started.send(Ok(()));
                            let _ = stop_asked.await;
                        }
                        Err(error) => drop(started.send(Err(error))),
                    }
                });
            })?;
        has_started
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the DHCP thread ended at once")))?;
        Ok(Server {
            shared,
            stop,
            stopped,
        })
    }

    /// All leases, expired ones included, by address.
    pub fn leases(&self) -> Vec<Lease> {
        self.shared.leases().all()
    }

    /// What was counted since the start.
    pub fn counters(&self) -> Counters {
        Counters {
            received: self.shared.received.load(Ordering::Relaxed),
            heard: self.shared.heard.load(Ordering::Relaxed),
            malformed: self.shared.malformed.load(Ordering::Relaxed),
            answered: self.shared.answered.load(Ordering::Relaxed),
        }
    }

    /// Stops answering and closes the sockets; returns when they are closed.
    /// Dropping does the same without waiting.
    pub async fn stop(self) {
        drop(self.stop);
        let _ = self.stopped.await;
    }
}

/// What contradicts itself in the settings.
fn check(interfaces: &[InterfaceConfig], settings: &Settings) -> io::Result<()> {
    let invalid = |text: String| Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    if interfaces.is_empty() {
        return invalid("no interface to serve".into());
    }
    if settings.mode != Mode::Full {
        return Ok(());
    }
    if settings.lease_time < Duration::from_secs(1) {
        return invalid("a lease time of nothing".into());
    }
    for subnet in &settings.subnets {
        let Subnet {
            network,
            netmask,
            ranges,
            ..
        } = subnet;
        let mask = netmask.to_bits();
        if mask.leading_ones() + mask.trailing_zeros() != 32 {
            return invalid(format!("{netmask} is no netmask"));
        }
        for (first, last) in ranges {
            if first > last || !subnet.contains(*first) || !subnet.contains(*last) {
                return invalid(format!(
                    "the pool {first} to {last} does not lie in {network} / {netmask}"
                ));
            }
        }
    }
    for InterfaceConfig { name, address, .. } in interfaces {
        if !settings
            .subnets
            .iter()
            .any(|subnet| subnet.contains(*address))
        {
            return invalid(format!(
                "no subnet is declared for {address} of interface {name}"
            ));
        }
    }
    Ok(())
}

/// What all tasks of a server share.
struct Shared {
    settings: Settings,
    policy: Calm,
    leases: Mutex<Leases>,
    received: AtomicU64,
    heard: AtomicU64,
    malformed: AtomicU64,
    answered: AtomicU64,
}

impl Shared {
    fn spawn(self: &Arc<Self>, links: Vec<RegisteredLink>) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for link in links {
            let link = Arc::new(link);
            for port in [Port::Dhcp, Port::BootServer] {
                for is_unicast in [false, true] {
                    if link.ports.is_some() {
                        tasks.spawn(self.clone().serve(link.clone(), port, is_unicast));
                    }
                }
            }
            if link.ports.is_some() {
                tasks.spawn(self.clone().advertise(link.config.name.clone()));
            }
            tasks.spawn(self.clone().watch_addresses(link.clone()));
            tasks.spawn(self.clone().listen(link));
        }
        tasks.spawn(self.clone().renew());
        tasks
    }

    /// Answers what comes to one socket.
    async fn serve(self: Arc<Self>, link: Arc<RegisteredLink>, port: Port, is_unicast: bool) {
        let Some(ports) = &link.ports else { return };
        let socket = ports.socket(port, is_unicast);
        let mut buffer = vec![0; MAX_PACKET_BYTES];
        loop {
            let ready = socket.readable().await;
            let replies = ready.and_then(|()| {
                let receive = |buffer: &mut [u8]| socket.try_recv_from(buffer);
                self.answer_waiting(receive, &mut buffer, (port, is_unicast), &link)
            });
            match replies {
                Ok(replies) => {
                    for reply in replies {
                        self.send(&link, &reply).await;
                    }
                    // The other sockets have their turn.
                    tokio::task::yield_now().await;
                }
                Err(error) => {
                    tracing::debug!(interface = link.config.name, %error, "receiving");
                    tokio::time::sleep(ERROR_PAUSE).await;
                }
            }
        }
    }

    /// Answers what waits in a socket, [`BATCH`] requests at most; what they
    /// lend is in the store when this returns.
    fn answer_waiting(
        &self,
        mut receive: impl FnMut(&mut [u8]) -> io::Result<(usize, SocketAddr)>,
        buffer: &mut [u8],
        (port, is_unicast): (Port, bool),
        link: &RegisteredLink,
    ) -> io::Result<Vec<Reply>> {
        let mut leases = self.leases();
        leases.begin_batch();
        let mut replies = Vec::new();
        let mut result = Ok(());
        for _ in 0..BATCH {
            match receive(buffer) {
                Ok((length, SocketAddr::V4(source))) => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    let way = (port, is_unicast, source);
                    replies.extend(self.reply_to(bytes, way, &link.config, &mut leases));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        if let Some(asker) = &link.asker {
            let is_reached = |address| link.config.reaches(address);
            asker.ask(&leases.take_wanted_probes(is_reached, SystemTime::now()));
        }
        if let Err(error) = leases.commit() {
            tracing::error!(error, "leases not kept, so not lent");
            let lends = |reply: &Reply| {
                let kind = reply.message.message_type();
                matches!(kind, Some(MessageType::Ack) | None) && reply.from == Port::Dhcp
            };
            replies.retain(|reply| !lends(reply));
        }
        match result {
            // What was received before is answered all the same.
            Err(error) if replies.is_empty() => Err(error),
            _ => Ok(replies),
        }
    }

    fn reply_to(
        &self,
        bytes: &[u8],
        (port, is_unicast, source): (Port, bool, SocketAddrV4),
        config: &InterfaceConfig,
        leases: &mut Leases,
    ) -> Option<Reply> {
        self.received.fetch_add(1, Ordering::Relaxed);
        let message = self.parse(bytes, source)?;
        let arrival = Arrival {
            message: &message,
            port,
            is_unicast,
            source,
            server: config.address,
            netmask: config.netmask,
            own: &self.policy.own,
        };
        answer(
            &arrival,
            &self.settings,
            leases,
            &self.policy,
            SystemTime::now(),
        )
    }

    fn parse(&self, bytes: &[u8], source: SocketAddrV4) -> Option<Message> {
        match Message::parse(bytes) {
            Ok(message) => Some(message),
            Err(reason) => {
                self.malformed.fetch_add(1, Ordering::Relaxed);
                self.policy.observe(&Observation::Malformed {
                    reason: format!("from {source}: {reason}"),
                });
                None
            }
        }
    }

    async fn send(&self, link: &RegisteredLink, reply: &Reply) {
        let Some(ports) = &link.ports else { return };
        let socket = ports.socket(reply.from, true);
        let bytes = reply.message.emit_within(reply.limit_bytes);
        let broadcast = SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT);
        let sent = match reply.to {
            Destination::Address(to) => socket.send_to(&bytes, to).await.map(drop),
            Destination::Broadcast => socket.send_to(&bytes, broadcast).await.map(drop),
            Destination::Client { mac, address } => {
                let source = SocketAddrV4::new(link.config.address, reply.from.number());
                let to = SocketAddrV4::new(address, CLIENT_PORT);
                let framed = match &link.packets {
                    Some(packets) => packets.send(mac, source, to, &bytes),
                    None => Err(io::ErrorKind::Unsupported.into()),
                };
                match framed {
                    Ok(()) => Ok(()),
                    // Everybody hears it, but the client does too.
                    Err(_) => socket.send_to(&bytes, broadcast).await.map(drop),
                }
            }
        };
        match sent {
            Ok(()) => {
                self.answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::debug!(interface = link.config.name, to = ?reply.to, %error, "reply not sent");
            }
        }
    }

    /// Hears what is not meant for us: in observe mode everything, else what
    /// other servers answer.
    async fn listen(self: Arc<Self>, link: Arc<RegisteredLink>) {
        let Some(packets) = &link.packets else { return };
        let mut buffer = vec![0; MAX_PACKET_BYTES];
        let is_observer = self.settings.mode == Mode::Observe;
        loop {
            let length = match packets.receive(&mut buffer).await {
                Ok(length) => length,
                Err(error) => {
                    tracing::debug!(interface = link.config.name, %error, "listening");
                    tokio::time::sleep(ERROR_PAUSE).await;
                    continue;
                }
            };
            let Some((source, destination, payload)) = buffer.get(..length).and_then(frame::parse)
            else {
                continue;
            };
            if destination.port() != CLIENT_PORT {
                self.heard.fetch_add(1, Ordering::Relaxed);
                if !is_observer {
                    continue;
                }
            }
            // What comes to our ports is judged there.
            let message = if is_observer {
                self.parse(payload, source)
            } else {
                Message::parse(payload).ok()
            };
            let Some(message) = message else { continue };
            if is_observer || message.op == Op::Reply {
                watch(
                    &message,
                    link.config.address,
                    link.config.netmask,
                    &self.policy,
                );
            }
        }
    }

    /// Renews the leases of live sessions, for ever.
    async fn renew(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(RENEW_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Err(error) = self.leases().renew_in_use(&self.policy, SystemTime::now()) {
                tracing::error!(error, "renewed leases not kept");
            }
        }
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The site's policy, told no more often than it can bear of what strangers
/// can trigger at will.
struct Calm {
    policy: Arc<dyn Policy>,
    /// Our addresses: no foreign servers.
    own: Vec<Ipv4Addr>,
    /// Whom we tell that there is no IPv6 router.
    booting: Mutex<Booting>,
    foreign: Mutex<HashMap<Ipv4Addr, Instant>>,
    malformed: Mutex<Option<Instant>>,
    exhausted: Mutex<Option<Instant>>,
}

/// Whether it was last told longer ago than `pause`; then it is told now.
fn is_due(told: &Mutex<Option<Instant>>, pause: Duration) -> bool {
    let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
    let is_due = told.is_none_or(|told| told.elapsed() >= pause);
    if is_due {
        *told = Some(Instant::now());
    }
    is_due
}

impl Calm {
    fn is_worth_telling(&self, observation: &Observation) -> bool {
        match observation {
            Observation::ForeignServer { server } => {
                let mut foreign = self.foreign.lock().unwrap_or_else(PoisonError::into_inner);
                let is_fresh = foreign
                    .get(server)
                    .is_some_and(|told| told.elapsed() < FOREIGN_PAUSE);
                if is_fresh || self.own.contains(server) {
                    return false;
                }
                foreign.retain(|_, told| told.elapsed() < FOREIGN_PAUSE);
                let has_room = foreign.len() < MAX_FOREIGN_SERVERS;
                if has_room {
                    foreign.insert(*server, Instant::now());
                }
                has_room
            }
            Observation::Malformed { .. } => is_due(&self.malformed, MALFORMED_PAUSE),
            Observation::PoolExhausted { mac } => {
                self.policy.promise(*mac).is_known || is_due(&self.exhausted, EXHAUSTED_PAUSE)
            }
            _ => true,
        }
    }
}

impl Policy for Calm {
    fn boot(&self, client: &Client, server: Ipv4Addr) -> Option<Boot> {
        self.policy.boot(client, server)
    }

    fn style(&self, client: &Client, server: Ipv4Addr) -> Style {
        self.policy.style(client, server)
    }

    fn promise(&self, mac: Mac) -> Promise {
        self.policy.promise(mac)
    }

    fn promised_to(&self, address: Ipv4Addr) -> Option<Mac> {
        self.policy.promised_to(address)
    }

    fn is_in_use(&self, address: Ipv4Addr) -> bool {
        self.policy.is_in_use(address)
    }

    fn observe(&self, observation: &Observation) {
        if let Observation::Asked(client) = observation {
            let mut booting = self.booting.lock().unwrap_or_else(PoisonError::into_inner);
            booting.asked(client, Instant::now());
        }
        if self.is_worth_telling(observation) {
            self.policy.observe(observation);
        }
    }
}

/// The sockets of one interface, before they enter the runtime.
struct Link {
    config: InterfaceConfig,
    ports: Option<[(Socket, Socket); 2]>,
    packets: Option<PacketSocket>,
    asker: Option<Asker>,
}

/// The sockets of one interface.
struct RegisteredLink {
    config: InterfaceConfig,
    /// None in observe mode.
    ports: Option<Ports>,
    /// None where the right to it is missing: then clients without an address
    /// are answered by broadcast, and other servers are not heard.
    packets: Option<AsyncPacketSocket>,
    /// Only where we lend.
    asker: Option<RegisteredAsker>,
}

struct Ports {
    dhcp: (UdpSocket, UdpSocket),
    boot_server: (UdpSocket, UdpSocket),
}

impl Ports {
    /// The one for broadcasts, or the one on our address.
    fn socket(&self, port: Port, is_unicast: bool) -> &UdpSocket {
        let (broadcast, unicast) = match port {
            Port::Dhcp => &self.dhcp,
            Port::BootServer => &self.boot_server,
        };
        if is_unicast { unicast } else { broadcast }
    }
}

impl Link {
    fn open(config: &InterfaceConfig, mode: Mode) -> io::Result<Link> {
        let name = &config.name;
        packet::interface_index(name)?;
        let packets = match PacketSocket::open(name) {
            Ok(packets) => Some(packets),
            Err(error)
                if error.kind() == io::ErrorKind::PermissionDenied && mode != Mode::Observe =>
            {
                tracing::warn!(
                    interface = name,
                    "no right to packet sockets (CAP_NET_RAW): replies are broadcast, other servers are not heard"
                );
                None
            }
            Err(error) => {
                let text = format!("packet socket on {name}: {error}");
                return Err(io::Error::new(error.kind(), text));
            }
        };
        let ports = match mode {
            Mode::Observe => None,
            Mode::Proxy | Mode::Full => Some([
                bind_pair(config, Port::Dhcp)?,
                bind_pair(config, Port::BootServer)?,
            ]),
        };
        let asker = match mode {
            Mode::Observe | Mode::Proxy => None,
            Mode::Full => Asker::open(name)
                .map_err(|error| io::Error::new(error.kind(), format!("ARP on {name}: {error}")))?,
        };
        Ok(Link {
            config: config.clone(),
            ports,
            packets,
            asker,
        })
    }

    /// Enters the runtime.
    fn register(self) -> io::Result<RegisteredLink> {
        let pair = |(broadcast, unicast): (Socket, Socket)| {
            io::Result::Ok((
                UdpSocket::from_std(broadcast.into())?,
                UdpSocket::from_std(unicast.into())?,
            ))
        };
        let ports = match self.ports {
            Some([dhcp, boot_server]) => Some(Ports {
                dhcp: pair(dhcp)?,
                boot_server: pair(boot_server)?,
            }),
            None => None,
        };
        let packets = self.packets.map(PacketSocket::register).transpose()?;
        let asker = self.asker.map(Asker::register).transpose()?;
        Ok(RegisteredLink {
            config: self.config,
            ports,
            packets,
            asker,
        })
    }
}

/// Gives a socket room for a burst: beyond the system's limit where we may.
fn enlarge(socket: &Socket) {
    let forced =
        rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, RECEIVE_BUFFER_BYTES);
    if forced.is_err() {
        // As much as the system lets us; a machine that is not heard asks again.
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES);
    }
}

/// Two sockets on one port of an interface: for broadcasts, and on our
/// address. Nobody else can have held the port, or take it later: address
/// reuse is allowed only while the second joins the first.
fn bind_pair(config: &InterfaceConfig, port: Port) -> io::Result<(Socket, Socket)> {
    let number = port.number();
    let InterfaceConfig { name, address, .. } = config;
    let named = |error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => " (is another DHCP or TFTP/PXE server running here?)",
            io::ErrorKind::PermissionDenied => " (root or CAP_NET_BIND_SERVICE is needed)",
            io::ErrorKind::AddrNotAvailable => " (the interface has no such address)",
            _ => "",
        };
        io::Error::new(
            error.kind(),
            format!("UDP port {number} of {address} on {name}: {error}{hint}"),
        )
    };
    let open = || {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        socket.set_broadcast(true)?;
        socket.bind_device(Some(name.as_bytes()))?;
        enlarge(&socket);
        io::Result::Ok(socket)
    };
    let pair = || {
        let broadcast = open()?;
        broadcast.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, number)).into())?;
        broadcast.set_reuse_address(true)?;
        let unicast = open()?;
        unicast.set_reuse_address(true)?;
        unicast.bind(&SocketAddr::from((*address, number)).into())?;
        unicast.set_reuse_address(false)?;
        broadcast.set_reuse_address(false)?;
        io::Result::Ok((broadcast, unicast))
    };
    pair().map_err(named)
}

#[cfg(test)]
mod tests;
