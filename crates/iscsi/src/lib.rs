//! iSCSI target (RFC 7143): login, sessions, tasks, and the one file with a
//! socket, `server`.
//!
//! Which targets exist, who may log in and with which secret is asked through
//! [`Targets`], at login only.

use std::net::SocketAddr;
use std::sync::Arc;

/// What the target asks its site. Asked at login, never per command; called
/// on login threads, so an answer may take its time, but other logins wait.
pub trait Targets: Send + Sync + 'static {
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

/// An open target, handed to a session. `guard` is dropped when the session
/// has ended, whatever ended it.
pub struct Attachment {
    /// Logical units by number. Sessions of one machine share it.
    pub target: Arc<Target>,
    /// Dropped at the end of the session.
    pub guard: Box<dyn Send + Sync>,
}

/// The logical units behind one target name.
pub struct Target {
    /// The target's IQN.
    pub name: String,
    /// Unit at index n is LUN n.
    pub units: Vec<Arc<scsi::LogicalUnit>>,
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
