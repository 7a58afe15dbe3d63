//! All sessions: who is logged in, and how to end that.
//!
//! A login *enters* (after authentication, before its target is opened) and
//! is *established* once it has its target. Entering ends the sessions of the
//! same nexus first (session reinstatement, RFC 7143 section 6.3.5).
//!
//! A session that has ended *leaves*: nothing of it reaches the disk any more,
//! but a flush that hangs may keep it in the list. A new session of its nexus
//! does not wait for that; whoever closes sessions does.
//!
//! Invariant: nobody waits without a limit for a login that is still
//! entering, because that login may be waiting for the one who asks.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant, SystemTime};

use crate::keys::Parameters;
use crate::login::{Entrance, LoginStatus};
use crate::{Limits, Login};

/// How long a reinstating login waits for the old session to touch the disk
/// no more. It is told to come back then (0301): only a write that hangs, or
/// [`MAX_LEAVING`] flushes, makes it wait so long.
const REINSTATEMENT_WAIT: Duration = Duration::from_secs(10);
/// Old sessions of one nexus that may hang in a flush before a new one waits
/// for them.
const MAX_LEAVING: usize = 4;
/// Of so many sessions, one may be for discovery, which often proves nothing.
const DISCOVERY_SHARE: usize = 4;

/// Names one session, for ever (within one run of the program).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One established session, as it was a moment ago.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// Names the session.
    pub id: SessionId,
    /// InitiatorName.
    pub initiator: String,
    /// TargetName.
    pub target: String,
    /// The initiator's session identifier.
    pub isid: [u8; 6],
    /// The initiator's address.
    pub peer: SocketAddr,
    /// The portal it came to.
    pub portal: SocketAddr,
    /// The CHAP name it proved, if it had to.
    pub chap_name: Option<String>,
    /// When it was established.
    pub since: SystemTime,
    /// SCSI commands answered.
    pub commands: u64,
    /// Data-In payload sent.
    pub bytes_read: u64,
    /// Data-Out payload (immediate data included) received.
    pub bytes_written: u64,
    /// Whether it has ever sent a NOP-Out: a ping of its own, or the answer
    /// to one. iPXE never does.
    pub answers_pings: bool,
}

/// A handle on all sessions of a server.
#[derive(Clone)]
pub struct Sessions {
    shared: Arc<Shared>,
}

impl Sessions {
    /// The established sessions, oldest first. Discovery sessions are not
    /// among them.
    pub fn list(&self) -> Vec<SessionInfo> {
        let table = self.shared.lock();
        table
            .entries
            .iter()
            .filter_map(|(id, e)| e.info(*id))
            .collect()
    }

    /// Ends one session and waits until its thread has let go of its
    /// [`Target`](crate::Target); `false` when there is no such session.
    ///
    /// Must not be called by a [`Disk`](crate::disk::Disk) or a guard of the
    /// session itself.
    pub fn close(&self, id: SessionId) -> bool {
        self.close_where(|info| info.id == id) > 0
    }

    /// Ends the sessions `which` names and waits until none of their threads
    /// touches its [`Target`](crate::Target) any more; returns how many.
    ///
    /// May be called inside [`Targets::open`](crate::Targets::open). Another
    /// login that `which` names and that is inside `open` at this moment is
    /// not waited for: it is refused with 0301 when its `open` returns, and
    /// does not touch its target. An [`Attachment`](crate::Attachment)'s
    /// guard is dropped after the session has left this list, so a guard may
    /// take a lock that the caller of this holds.
    pub fn close_where(&self, which: impl Fn(&SessionInfo) -> bool) -> usize {
        let me = thread::current().id();
        let mut table = self.shared.lock();
        let mut closing = Vec::new();
        for (id, entry) in &mut table.entries {
            let named = which(&entry.describe(*id));
            match &entry.stage {
                Stage::Established { hang_up } if named && entry.target.is_some() => {
                    hang_up(HangUp::Now);
                    closing.push(*id);
                }
                Stage::Leaving if named && entry.target.is_some() => closing.push(*id),
                Stage::Entering(thread) if named && *thread != me => entry.doomed = true,
                _ => {}
            }
        }
        while closing.iter().any(|id| table.entries.contains_key(id)) {
            table = self.shared.wait(table);
        }
        closing.len()
    }

    /// How many sessions there are, discovery sessions included.
    pub fn count(&self) -> usize {
        self.shared.lock().entries.len()
    }

    pub(crate) fn new(limits: &Limits) -> Sessions {
        Sessions {
            shared: Arc::new(Shared {
                table: Mutex::new(Table {
                    entries: BTreeMap::new(),
                    next_id: 1,
                    next_tsih: 1,
                    arrivals: BTreeMap::new(),
                    next_arrival: 0,
                    limit: limits.sessions,
                    limit_per_target: limits.sessions_per_target,
                    limit_of_discovery: (limits.sessions / DISCOVERY_SHARE).max(1),
                    logins_per_target: (limits.login_threads / 2).max(1),
                    threads: 0,
                    closed: false,
                }),
                changed: Condvar::new(),
            }),
        }
    }

    /// Takes a place for an authenticated login, ending the sessions of the
    /// same nexus. Of two logins of one nexus the later wins: the initiator
    /// of the earlier one has given up.
    ///
    /// A login that takes the place of a session's connection (connection
    /// reinstatement, section 6.3.4) ends all of the old session's tasks as
    /// well, and goes on under its handle.
    pub(crate) fn enter(&self, entrance: &Entrance) -> Result<Entered, EnterError> {
        let login = &entrance.login;
        let mut table = self.shared.lock();
        let old_tsih = entrance.rejoins();
        if old_tsih != 0 && table.living(login, old_tsih).is_none() {
            return Err(EnterError::SessionGone);
        }
        let arrival = table.next_arrival;
        table.next_arrival += 1;
        table.arrivals.insert(arrival, login.clone());
        self.shared.changed.notify_all();
        let (mut table, result) = self.end_old(table, arrival, login);
        table.arrivals.remove(&arrival);
        result?;
        if table.is_full(login) {
            return Err(EnterError::Full);
        }
        let id = SessionId(table.next_id);
        table.next_id += 1;
        let tsih = match old_tsih {
            0 => table.free_tsih(),
            old => old,
        };
        let stats = Arc::new(Stats::default());
        let entry = Entry {
            login: login.clone(),
            target: login.target.clone(),
            tsih,
            cid: entrance.cid(),
            parameters: entrance.parameters.clone(),
            since: SystemTime::now(),
            stats: stats.clone(),
            doomed: false,
            stage: Stage::Entering(thread::current().id()),
        };
        table.entries.insert(id, entry);
        Ok(Entered {
            id,
            tsih,
            stats,
            sessions: self.clone(),
        })
    }

    /// Ends the sessions of the same nexus, and waits for that.
    fn end_old<'a>(
        &self,
        mut table: MutexGuard<'a, Table>,
        arrival: u64,
        login: &Login,
    ) -> (MutexGuard<'a, Table>, Result<(), EnterError>) {
        let deadline = Instant::now() + REINSTATEMENT_WAIT;
        if login.target.is_none() {
            let result = match table.closed {
                true => Err(EnterError::ShuttingDown),
                false => Ok(()),
            };
            return (table, result);
        }
        if table.logins_under_way(login) >= table.logins_per_target {
            return (table, Err(EnterError::TooManyLogins));
        }
        loop {
            if table.closed {
                return (table, Err(EnterError::ShuttingDown));
            }
            let mut later = table.arrivals.range(arrival + 1..);
            if later.any(|(_, later)| is_same_nexus(later, login)) {
                return (table, Err(EnterError::Superseded));
            }
            let (mut leaving, mut old) = (0, 0);
            for entry in table.entries.values_mut() {
                if !is_same_nexus(&entry.login, login) {
                    continue;
                }
                entry.doomed = true;
                match &entry.stage {
                    Stage::Leaving => leaving += 1,
                    Stage::Established { hang_up } => {
                        hang_up(HangUp::Now);
                        old += 1;
                    }
                    Stage::Entering(_) => old += 1,
                }
            }
            if old == 0 && leaving < MAX_LEAVING {
                return (table, Ok(()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return (table, Err(EnterError::OldSessionBusy));
            }
            table = self.shared.wait_for(table, left);
        }
    }

    /// What the session with this handle has agreed on, when a new connection
    /// of its nexus may take the place of its own.
    pub(crate) fn rejoin(
        &self,
        login: &Login,
        tsih: u16,
        cid: u16,
    ) -> Result<Parameters, LoginStatus> {
        let table = self.shared.lock();
        let entry = table.living(login, tsih);
        let entry = entry.ok_or(LoginStatus::NO_SUCH_SESSION)?;
        match () {
            // A discovery session is short; who wants another logs in again.
            () if login.target.is_none() => Err(LoginStatus::CANNOT_INCLUDE),
            () if entry.cid != cid => Err(LoginStatus::TOO_MANY_CONNECTIONS),
            () => Ok(entry.parameters.of_session()),
        }
    }

    /// Lets nobody in any more, asks every initiator that bears it (one that
    /// knows pings) to log out, and waits for those.
    pub(crate) fn ask_for_logouts(&self, time: Duration) {
        let deadline = Instant::now() + time;
        let mut table = self.shared.lock();
        table.closed = true;
        let mut asked = Vec::new();
        for (id, entry) in &table.entries {
            if let Stage::Established { hang_up } = &entry.stage
                && entry.target.is_some()
                && entry.stats.answers_pings.load(Ordering::Relaxed)
                && !time.is_zero()
            {
                hang_up(HangUp::Asked);
                asked.push(*id);
            }
        }
        while asked.iter().any(|id| table.entries.contains_key(id)) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            table = self.shared.wait_for(table, left);
        }
    }

    /// Lets nobody in any more, and hangs up on everybody.
    pub(crate) fn hang_up_all(&self, how: HangUp) {
        let mut table = self.shared.lock();
        table.closed = true;
        for entry in table.entries.values_mut() {
            entry.doomed = true;
            if let Stage::Established { hang_up } = &entry.stage {
                hang_up(how);
            }
        }
    }

    /// Hangs up on every session of a target; waits for none.
    pub(crate) fn hang_up_target(&self, name: &str) {
        let table = self.shared.lock();
        for entry in table.entries.values() {
            if let Stage::Established { hang_up } = &entry.stage
                && entry.target.as_deref() == Some(name)
            {
                hang_up(HangUp::Now);
            }
        }
    }

    /// Counts a session's thread among those that have not ended.
    pub(crate) fn thread(&self) -> ThreadCount {
        self.shared.lock().threads += 1;
        ThreadCount(self.clone())
    }

    /// Waits until all sessions are gone, their guards included; `false` when
    /// time ran out.
    pub(crate) fn wait_until_empty(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut table = self.shared.lock();
        while !table.entries.is_empty() || table.threads > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            table = self.shared.wait_for(table, left);
        }
        true
    }
}

/// How a session is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HangUp {
    /// Whatever it is doing.
    Now,
    /// Once the commands that have come are answered.
    WhenIdle,
    /// When the initiator logs out, which it is asked to do.
    Asked,
}

/// Why a login got no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EnterError {
    /// The limit of sessions is reached.
    Full,
    /// The session whose connection it wanted to replace has ended.
    SessionGone,
    /// The old session of this nexus did not end in time.
    OldSessionBusy,
    /// The same nexus has begun another login since.
    Superseded,
    /// As many logins of this target are under way as may take threads from
    /// those of the others.
    TooManyLogins,
    /// The server is going.
    ShuttingDown,
}

/// A place among the sessions; given back when dropped.
pub(crate) struct Entered {
    pub(crate) id: SessionId,
    pub(crate) tsih: u16,
    pub(crate) stats: Arc<Stats>,
    sessions: Sessions,
}

impl Entered {
    /// Makes the session visible; `false` when it has been doomed meanwhile.
    pub(crate) fn establish(&self, hang_up: Box<dyn Fn(HangUp) + Send>) -> bool {
        let mut table = self.sessions.shared.lock();
        let closed = table.closed;
        let Some(entry) = table.entries.get_mut(&self.id) else {
            return false;
        };
        if entry.doomed || closed {
            return false;
        }
        entry.since = SystemTime::now();
        entry.stage = Stage::Established { hang_up };
        true
    }

    /// Says that nothing of the session reaches the disk any more.
    pub(crate) fn leave(&self) {
        if let Some(entry) = self.sessions.shared.lock().entries.get_mut(&self.id) {
            entry.stage = Stage::Leaving;
        }
        self.sessions.shared.changed.notify_all();
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.sessions.shared.lock().entries.remove(&self.id);
        self.sessions.shared.changed.notify_all();
    }
}

/// A session's thread, until the last thing it does.
pub(crate) struct ThreadCount(Sessions);

impl Drop for ThreadCount {
    fn drop(&mut self) {
        self.0.shared.lock().threads -= 1;
        self.0.shared.changed.notify_all();
    }
}

/// What a session counts; written by its thread, read by anybody.
#[derive(Default)]
pub(crate) struct Stats {
    pub(crate) commands: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
    pub(crate) answers_pings: AtomicBool,
}

struct Shared {
    table: Mutex<Table>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, table: MutexGuard<'a, Table>) -> MutexGuard<'a, Table> {
        self.changed
            .wait(table)
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for<'a>(&self, table: MutexGuard<'a, Table>, time: Duration) -> MutexGuard<'a, Table> {
        match self.changed.wait_timeout(table, time) {
            Ok((table, _)) => table,
            Err(poisoned) => poisoned.into_inner().0,
        }
    }
}

struct Table {
    entries: BTreeMap<SessionId, Entry>,
    next_id: u64,
    next_tsih: u16,
    /// Logins that wait for old sessions of theirs to end, in their order.
    arrivals: BTreeMap<u64, Login>,
    next_arrival: u64,
    limit: usize,
    limit_per_target: usize,
    limit_of_discovery: usize,
    logins_per_target: usize,
    threads: usize,
    closed: bool,
}

impl Table {
    /// Whether there is no place for `login`. What hangs of its own nexus does
    /// not count: it is [`MAX_LEAVING`] sessions at most, and their place is
    /// the one that the new session takes over.
    fn is_full(&self, login: &Login) -> bool {
        let (mut all, mut of_target) = (0, 0);
        for entry in self.entries.values() {
            if matches!(entry.stage, Stage::Leaving) && is_same_nexus(&entry.login, login) {
                continue;
            }
            all += 1;
            of_target += usize::from(entry.target == login.target);
        }
        let limit_of_these = match login.target {
            Some(_) => self.limit_per_target,
            None => self.limit_of_discovery,
        };
        all >= self.limit || of_target >= limit_of_these
    }

    /// The established session of this nexus with this handle.
    fn living(&self, login: &Login, tsih: u16) -> Option<&Entry> {
        self.entries.values().find(|entry| {
            let is_living = matches!(entry.stage, Stage::Established { .. }) && !entry.doomed;
            is_living && entry.tsih == tsih && is_same_nexus(&entry.login, login)
        })
    }

    /// Login threads at work for the target of `login`, but for those that it
    /// supersedes.
    fn logins_under_way(&self, login: &Login) -> usize {
        let waiting = self
            .arrivals
            .values()
            .filter(|other| other.target == login.target && !is_same_nexus(other, login));
        let entering = self.entries.values().filter(|entry| {
            entry.target == login.target && matches!(entry.stage, Stage::Entering(_))
        });
        waiting.count() + entering.count()
    }

    /// A session handle no living session has; never 0.
    fn free_tsih(&mut self) -> u16 {
        loop {
            let tsih = self.next_tsih;
            self.next_tsih = tsih.checked_add(1).unwrap_or(1);
            if self.entries.len() >= usize::from(u16::MAX)
                || self.entries.values().all(|e| e.tsih != tsih)
            {
                return tsih;
            }
        }
    }
}

struct Entry {
    login: Login,
    target: Option<String>,
    tsih: u16,
    /// Of its only connection.
    cid: u16,
    parameters: Parameters,
    since: SystemTime,
    stats: Arc<Stats>,
    /// Ended while it entered.
    doomed: bool,
    stage: Stage,
}

enum Stage {
    /// Inside [`Targets::open`](crate::Targets::open), on that thread.
    Entering(ThreadId),
    Established {
        hang_up: Box<dyn Fn(HangUp) + Send>,
    },
    /// Over, but for a flush that it began.
    Leaving,
}

/// The I_T nexus: who, which of its sessions, to what. There is one portal
/// group.
fn is_same_nexus(a: &Login, b: &Login) -> bool {
    a.isid == b.isid && a.initiator == b.initiator && a.target == b.target
}

impl Entry {
    fn info(&self, id: SessionId) -> Option<SessionInfo> {
        let established = matches!(self.stage, Stage::Established { .. });
        (established && self.target.is_some()).then(|| self.describe(id))
    }

    fn describe(&self, id: SessionId) -> SessionInfo {
        SessionInfo {
            id,
            initiator: self.login.initiator.clone(),
            target: self.target.clone().unwrap_or_default(),
            isid: self.login.isid,
            peer: self.login.peer,
            portal: self.login.portal,
            chap_name: self.login.chap_name.clone(),
            since: self.since,
            commands: self.stats.commands.load(Ordering::Relaxed),
            bytes_read: self.stats.bytes_read.load(Ordering::Relaxed),
            bytes_written: self.stats.bytes_written.load(Ordering::Relaxed),
            answers_pings: self.stats.answers_pings.load(Ordering::Relaxed),
        }
    }
}
