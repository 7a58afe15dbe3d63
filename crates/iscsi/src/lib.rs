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

pub use login::LoginStatus;
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

    /// Where this login has to go instead. Asked before it has proved
    /// anything, so the answer must be one that anybody may hear.
    fn redirect(&self, login: &Login) -> Option<Redirect> {
        let _ = login;
        None
    }

    /// Which authentication this login must pass. Asked before anything about
    /// the target is revealed; for an unknown target answer what a known one
    /// would get.
    fn authentication(&self, login: &Login) -> Authentication;

    /// The CHAP algorithms this login may use; the initiator's order decides
    /// among them.
    fn chap_algorithms(&self, login: &Login) -> Vec<ChapAlgorithm> {
        let _ = login;
        ChapAlgorithm::ALL.to_vec()
    }

    /// The CHAP secrets for `chap_name` and this login; `None` refuses with
    /// 0201. Only asked when `authentication` did not say
    /// [`Authentication::None`].
    fn chap_secret(&self, login: &Login, chap_name: &str) -> Option<ChapSecrets>;

    /// Opens the target for a login that has authenticated. May close other
    /// sessions first (through [`Sessions`]).
    fn open(&self, login: &Login) -> Result<Attachment, LoginRefusal>;

    /// The targets this initiator may know of (SendTargets).
    fn discover(&self, login: &Login) -> Vec<String>;

    /// Told of every login that was refused once its names were known, but
    /// for those that `open` refused. Anybody may bring that about, as often
    /// as he likes.
    fn refused(&self, login: &Login, refused: &Refused<'_>) {
        let _ = (login, refused);
    }
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
    /// CHAP; mutual when the initiator asks for that.
    Chap,
    /// CHAP when the initiator offers it before nothing: a discovery, which
    /// shows more to who has proved more.
    Offered,
}

/// A hash that CHAP uses (RFC 7143 section 12.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChapAlgorithm {
    /// CHAP_A 5; every initiator has it.
    Md5,
    /// CHAP_A 6.
    Sha1,
    /// CHAP_A 7.
    Sha256,
    /// CHAP_A 8.
    Sha3_256,
}

impl ChapAlgorithm {
    /// All of them, the oldest first.
    pub const ALL: [ChapAlgorithm; 4] = [
        ChapAlgorithm::Md5,
        ChapAlgorithm::Sha1,
        ChapAlgorithm::Sha256,
        ChapAlgorithm::Sha3_256,
    ];
}

/// What proves both sides of a login. `Secret::into` makes one that proves
/// the initiator only.
#[derive(Clone, Debug)]
pub struct ChapSecrets {
    /// The initiator's.
    pub initiator: Secret,
    /// Our own CHAP name and secret, for an initiator that asks for our proof
    /// (mutual CHAP); without them it gets 0201. Must be another secret than
    /// the initiator's (RFC 7143 section 9.2.1): equal ones refuse the login.
    pub target: Option<(String, Secret)>,
}

impl From<Secret> for ChapSecrets {
    fn from(initiator: Secret) -> ChapSecrets {
        ChapSecrets {
            initiator,
            target: None,
        }
    }
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
    /// 0204.
    Removed,
    /// 0101 or 0102.
    Moved(Redirect),
    /// 0301: try again later (the disk is being prepared).
    ServiceUnavailable,
    /// 0300, with what happened, for the log.
    TargetError(String),
}

/// Where a login has to go instead (RFC 7143 sections 11.13.5 and 13.8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `HOST:PORT`, or `[ADDRESS]:PORT` of IPv6. iPXE needs the port.
    pub to: String,
    /// 0102, which an initiator may remember, instead of 0101.
    pub permanently: bool,
}

/// A login that was refused: what the initiator was told, and what it was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused<'a> {
    /// What the initiator was told.
    pub status: LoginStatus,
    /// CHAP_N as the initiator claimed it; not proved.
    pub claimed_name: Option<&'a str>,
    /// Why, for an operator: `wrong CHAP secret`.
    pub reason: &'a str,
}

/// What one server lets its peers use up. Every field has a sane default.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Sessions at once, a quarter of them for discovery at most; one more
    /// gets 0302. A session holds 130 KiB while it is quiet and 9 MiB at most:
    /// data that came and waits for more (1 MiB), for its turn (1 MiB), or for
    /// the rest of a command that is taken as a whole (4 MiB), a receive
    /// buffer (520 KiB), answers on their way (2 MiB) and text. Who comes back
    /// takes its own place again, even while a flush of its old session hangs.
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
    /// of them at most; one login more waits 2 seconds for its turn, and is
    /// then told to come back (0301). Who has logged in keeps its thread, and
    /// another one takes its place here.
    pub login_threads: usize,
    /// Threads that run flushes and other slow commands; one unit gets a
    /// quarter of them at most.
    pub worker_threads: usize,
    /// Commands a session may have under way: its CmdSN window.
    pub tasks_per_session: u32,
    /// How long a peer may take nothing of what we send.
    pub send_timeout: Duration,
    /// How long an initiator may be quiet before it is pinged.
    pub ping_interval: Duration,
    /// How long one that has answered a ping before may take for the next.
    pub ping_timeout: Duration,
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
            ping_interval: Duration::from_secs(30),
            ping_timeout: Duration::from_secs(30),
            silence: Duration::from_secs(30),
        }
    }
}
