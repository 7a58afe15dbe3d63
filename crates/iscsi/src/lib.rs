//! iSCSI target (RFC 7143): login, sessions, tasks, and the one file with a
//! socket, `server`.
//!
//! Which targets exist, who may log in and with which secret is asked through
//! [`Targets`], at login only.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

mod chap;
mod digest;
mod discovery;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod inbox;
mod keys;
mod login;
mod name;
mod outbox;
mod server;
mod session;
mod target;
mod task;
mod wire;

pub use name::{Iqn, NameError};
pub use scsi::{Device, Identity, LogicalUnit, Medium, Provisioning, Shape, disk};
pub use scsi::{ReservationFile, ReservationKeeper};
pub use server::{Counters, Server, SessionId, SessionInfo, Sessions};
pub use target::{LunError, Target};

/// What the target asks its site. Asked at login, never per command; called
/// on login threads, so an answer may take its time, but other logins wait.
pub trait Targets: Send + Sync + 'static {
    /// Called once by [`Server::bind`], before the first login, with the
    /// handle through which `open` may close sessions.
    fn serving(&self, sessions: Sessions) {
        let _ = sessions;
    }

    /// Which authentication this login must pass. Asked before anything about
    /// the target is revealed; for an unknown target answer what a known one
    /// would get.
    fn authentication(&self, login: &Login) -> Authentication;

    /// The CHAP secret of `chap_name` for this login; `None` refuses with
    /// 0201. Only asked when `authentication` said [`Authentication::Chap`].
    fn chap_secret(&self, login: &Login, chap_name: &str) -> Option<Secret>;

    /// Opens the target for a login that has authenticated. May close other
    /// sessions first (through [`Sessions`]).
    fn open(&self, login: &Login) -> Result<Attachment, LoginRefusal>;

    /// The targets this initiator may know of (SendTargets).
    fn discover(&self, login: &Login) -> Vec<String>;
}

/// One login, as far as it has come.
#[derive(Clone, Debug)]
pub struct Login {
    /// InitiatorName, lower-cased and checked.
    pub initiator: String,
    /// TargetName, lower-cased and checked; `None` in a discovery session.
    pub target: Option<String>,
    /// The initiator's session identifier.
    pub isid: [u8; 6],
    /// The initiator's address.
    pub peer: SocketAddr,
    /// The portal it connected to.
    pub portal: SocketAddr,
    /// The CHAP name it has proved, once it has.
    pub chap_name: Option<String>,
}

/// What a login must prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authentication {
    /// Nothing.
    None,
    /// CHAP (one-way).
    Chap,
}

/// A CHAP secret; not shown by `Debug`.
#[derive(Clone)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// A secret of these bytes. RFC 7143 section 9.2.1 wants at least 12;
    /// the site checks that where it is configured.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Secret {
        Secret(bytes.into())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// An open target, handed to a session. `guard` is dropped when the session
/// has ended, whatever ended it.
pub struct Attachment {
    /// Logical units by number. Sessions of one machine share it.
    pub target: Arc<Target>,
    /// Dropped at the end of the session.
    pub guard: Box<dyn Send + Sync>,
}

/// Why the site refused a login; the status class and detail of RFC 7143
/// section 11.13.5.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoginRefusal {
    /// 0201.
    AuthenticationFailure,
    /// 0202.
    AuthorizationFailure,
    /// 0203.
    NotFound,
    /// 0301: try again later (the disk is being prepared).
    ServiceUnavailable,
    /// 0300, with what happened, for the log.
    TargetError(String),
}

/// What one server lets its peers use up. Every field has a sane default.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Sessions at once, discovery sessions included; one more gets 0302. A
    /// session holds 130 KiB while it is quiet and 5 MiB at most: data that
    /// came and waits for more (1 MiB, and 4 KiB for each UNMAP under way),
    /// a receive buffer (520 KiB), answers on their way (2 MiB) and text. Who
    /// comes back takes its own place again, even while a flush of its old
    /// session hangs.
    pub sessions: usize,
    /// The same, of one target. An initiator that comes back again and again
    /// without a logout (iPXE) must not take the others' places.
    pub sessions_per_target: usize,
    /// Connections at once that have not finished their login; for one more
    /// the oldest that waits for its initiator is closed.
    pub half_open_logins: usize,
    /// The same, of one address; one more is closed at once.
    pub half_open_logins_per_address: usize,
    /// From connect to the end of the login.
    pub login_deadline: Duration,
    /// Threads that run logins, and so ask [`Targets`]. One target gets half
    /// of them at most; one login more is told to come back (0301).
    pub login_threads: usize,
    /// Threads that run flushes and other slow commands; one unit gets a
    /// quarter of them at most.
    pub worker_threads: usize,
    /// Commands a session may have under way: its CmdSN window.
    pub tasks_per_session: u32,
    /// How long a peer may take nothing of what we send.
    pub send_timeout: Duration,
    /// How long a peer may be silent on the TCP level (keepalive probes and
    /// unacknowledged data) before it counts as gone.
    pub silence: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            sessions: 1024,
            sessions_per_target: 64,
            half_open_logins: 512,
            half_open_logins_per_address: 128,
            login_deadline: Duration::from_secs(15),
            login_threads: 8,
            worker_threads: 8,
            tasks_per_session: 128,
            send_timeout: Duration::from_secs(30),
            silence: Duration::from_secs(30),
        }
    }
}
