//! Sockets, threads and the clock of the iSCSI target.
//!
//! One *reception* thread accepts connections and watches those that have not
//! logged in; a small staff runs logins; every logged-in connection keeps the
//! thread that has run its login, which blocks on its socket; a pool of workers
//! runs what would keep such a thread from answering pings.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::chap::Challenges;
use crate::{Limits, Targets};

mod clerk;
mod connection;
mod half_open;
mod pulse;
mod reception;
mod registry;
mod staff;
mod workers;

pub(crate) use registry::Stats;
pub use registry::{SessionId, SessionInfo, Sessions};

use reception::{Reception, Wake};
use registry::HangUp;
use workers::Workers;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;
/// How long an initiator may take to log out when it is asked to.
const LOGOUT_WAIT: Duration = Duration::from_secs(3);
/// How long a session that was hung up on may take to end at shutdown.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// A running iSCSI target. Dropping it ends every session at once.
pub struct Server {
    portals: Vec<SocketAddr>,
    shared: Arc<Shared>,
    wake: Arc<Wake>,
    reception: Option<JoinHandle<()>>,
}

/// What a server has seen since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// TCP connections accepted.
    pub connections: u64,
    /// Connections closed because too many were half open.
    pub connections_refused: u64,
    /// Logins that reached the full feature phase.
    pub logins: u64,
    /// Logins answered with a status other than success, or timed out.
    pub logins_refused: u64,
    /// PDUs that broke the protocol and cost their connection.
    pub malformed_pdus: u64,
    /// Reject PDUs sent.
    pub rejects: u64,
}

impl Server {
    /// Listens on `portals` and serves until [`shutdown`](Server::shutdown).
    pub fn bind(
        portals: &[SocketAddr],
        targets: Arc<dyn Targets>,
        limits: Limits,
    ) -> io::Result<Server> {
        let listeners = portals
            .iter()
            .map(|portal| listen(*portal, &limits))
            .collect::<io::Result<Vec<_>>>()?;
        let portals = listeners
            .iter()
            .map(TcpListener::local_addr)
            .collect::<io::Result<Vec<_>>>()?;
        let sessions = Sessions::new(&limits);
        targets.serving(sessions.clone());
        let shared = Arc::new(Shared {
            workers: Workers::start(limits.worker_threads)?,
            targets,
            sessions,
            limits,
            counters: Counts::default(),
            challenges: Challenges::default(),
            portals: portals.clone(),
            asks_for_logout: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            departing: AtomicUsize::new(0),
        });
        let wake = Arc::new(Wake::new()?);
        let reception = Reception::new(shared.clone(), wake.clone(), listeners)?;
        let reception = thread::Builder::new()
            .name("iscsi-reception".into())
            .spawn(move || reception.run())?;
        Ok(Server {
            portals,
            shared,
            wake,
            reception: Some(reception),
        })
    }

    /// Where it listens, port 0 replaced by the port it got.
    pub fn portals(&self) -> &[SocketAddr] {
        &self.portals
    }

    /// A handle on the sessions.
    pub fn sessions(&self) -> Sessions {
        self.shared.sessions.clone()
    }

    /// What has been seen since the start.
    pub fn counters(&self) -> Counters {
        let counts = &self.shared.counters;
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counters {
            connections: of(&counts.connections),
            connections_refused: of(&counts.connections_refused),
            logins: of(&counts.logins),
            logins_refused: of(&counts.logins_refused),
            malformed_pdus: of(&counts.malformed_pdus),
            rejects: of(&counts.rejects),
        }
    }

    /// Accepts no more, asks initiators that answer pings to log out, lets
    /// commands that have come finish for at most `drain`, and closes every
    /// session. No disk is flushed: whoever owns
    /// the disks does that when he closes them.
    pub fn shutdown(mut self, drain: Duration) {
        self.stop(drain);
    }

    fn stop(&mut self, drain: Duration) {
        let Some(reception) = self.reception.take() else {
            return;
        };
        let sessions = &self.shared.sessions;
        self.shared.asks_for_logout.store(true, Ordering::Release);
        sessions.ask_for_logouts(drain.min(LOGOUT_WAIT));
        self.shared.draining.store(true, Ordering::Release);
        self.wake.wake();
        if reception.join().is_err() {
            tracing::error!("the reception thread had panicked");
        }
        sessions.hang_up_all(HangUp::WhenIdle);
        if !sessions.wait_until_empty(drain) {
            sessions.hang_up_all(HangUp::Now);
            if !sessions.wait_until_empty(LAST_WAIT) {
                tracing::warn!(sessions = sessions.count(), "sessions did not end in time");
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop(Duration::ZERO);
    }
}

/// What all threads of a server share.
struct Shared {
    targets: Arc<dyn Targets>,
    sessions: Sessions,
    limits: Limits,
    counters: Counts,
    challenges: Challenges,
    portals: Vec<SocketAddr>,
    workers: Workers,
    /// Going soon: initiators that bear it are asked to log out.
    asks_for_logout: AtomicBool,
    /// Going: finish what has come and start nothing.
    draining: AtomicBool,
    /// Connections that have logged out and have yet to be closed.
    departing: AtomicUsize,
}

impl Shared {
    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}

/// [`Counters`], being counted.
#[derive(Default)]
struct Counts {
    connections: AtomicU64,
    connections_refused: AtomicU64,
    logins: AtomicU64,
    logins_refused: AtomicU64,
    malformed_pdus: AtomicU64,
    rejects: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn listen(portal: SocketAddr, limits: &Limits) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(portal);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if portal.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    connection::configure(&socket, limits)?;
    socket.bind(&portal.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
