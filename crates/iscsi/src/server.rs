//! Sockets, threads and the clock of the iSCSI target.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::{Limits, Sessions, Targets};

/// A running iSCSI target.
pub struct Server {
    portals: Vec<SocketAddr>,
    sessions: Sessions,
}

/// What a server has seen since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// TCP connections accepted.
    pub connections: u64,
    /// Connections closed at once because too many were half open.
    pub connections_refused: u64,
    /// Logins that reached the full feature phase.
    pub logins: u64,
    /// Logins answered with a status other than success, or timed out.
    pub logins_refused: u64,
    /// PDUs that broke the protocol.
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
        let sessions = Sessions::new(limits.sessions);
        targets.serving(sessions.clone());
        let _ = portals;
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }

    /// Where it listens, port 0 replaced by the port it got.
    pub fn portals(&self) -> &[SocketAddr] {
        &self.portals
    }

    /// A handle on the sessions.
    pub fn sessions(&self) -> Sessions {
        self.sessions.clone()
    }

    /// What has been seen since the start.
    pub fn counters(&self) -> Counters {
        Counters::default()
    }

    /// Accepts no more, lets commands in hand finish for at most `drain`,
    /// makes answered writes durable, and closes every session.
    pub fn shutdown(self, drain: Duration) {
        let _ = drain;
    }
}
