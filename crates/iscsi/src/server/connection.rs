//! A logged-in connection: one thread that blocks on its socket, the one that
//! has run its login.
//!
//! Everything a receive brought is handled before one vectored send. Only
//! while a worker works for the connection does it wait for two things.
//!
//! What it surprises with: a read whose bytes are not in memory waits for the
//! medium here, in the send, and its connection answers nothing meanwhile
//! (pings included); other connections go on. A medium that needs longer than
//! an initiator waits for its ping is a medium that fails.

// `sendmsg` of memory mappings: no safe interface takes bytes that may change
// or vanish while the kernel reads them.
#![allow(unsafe_code)]

use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::TcpKeepalive;

use super::pulse::{Beat, Pulse};
use super::registry::{Entered, HangUp, ThreadCount};
use super::workers::Mailbox;
use super::{LOGOUT_WAIT, Shared, count};
use crate::digest::Digests;
use crate::inbox::Inbox;
use crate::keys::Parameters;
use crate::login::{Entrance, LoginStatus};
use crate::outbox::{Gone, Outbox, Part, Sink};
use crate::session::{Next, Session, Start};
use crate::target::{Bell, Units};
use crate::{Attachment, Limits, Target};

/// How long a connection may be quiet before large buffers are given back,
/// and before it waits where a bell can wake it as well.
const QUIET: Duration = Duration::from_secs(2);
/// Keepalive probes before a silent peer counts as gone.
const KEEPALIVE_PROBES: u32 = 3;
/// How long bytes are taken for cold after one send found some of them so:
/// asking costs a warm read a tenth of its price, not asking makes a cold batch
/// wait for one read after the other.
const COLD_SENDS: u32 = 1024;
/// How long a peer that has logged out may go on sending before it closes.
const LAST_READ: Duration = Duration::from_secs(1);
/// Peers that have logged out and are waited for at once; another is not.
const MAX_DEPARTING: usize = 64;

/// Sets what every connection of a listening socket inherits (`accept(2)`).
pub(super) fn configure(listener: &socket2::Socket, limits: &Limits) -> io::Result<()> {
    listener.set_tcp_nodelay(true)?;
    listener.set_read_timeout(Some(QUIET))?;
    listener.set_write_timeout(Some(limits.send_timeout))?;
    // Idle for half the time, then probes over the other half.
    let half = limits.silence.max(Duration::from_secs(2)) / 2;
    let keepalive = TcpKeepalive::new()
        .with_time(half)
        .with_interval((half / KEEPALIVE_PROBES).max(Duration::from_secs(1)))
        .with_retries(KEEPALIVE_PROBES);
    listener.set_tcp_keepalive(&keepalive)?;
    listener.set_tcp_user_timeout(Some(limits.silence))
}

/// A login that has agreed on everything: what a thread serves next.
///
/// Dropped in this order: the target is let go of, then the session leaves the
/// list, then whoever waits for its end hears.
pub(super) struct LoggedIn {
    connection: Connection,
    parameters: Parameters,
    cid: u16,
    stat_sn: u32,
    exp_cmd_sn: u32,
    entered: Entered,
    _guard: Option<Box<dyn Send + Sync>>,
    _thread_count: ThreadCount,
}

impl LoggedIn {
    /// Makes the session visible.
    pub(super) fn begin(
        shared: &Arc<Shared>,
        stream: &Arc<TcpStream>,
        entrance: &Entrance,
        entered: Entered,
        attachment: Option<Attachment>,
    ) -> Result<LoggedIn, LoginStatus> {
        let mailbox = Mailbox::new().map_err(|error| {
            tracing::warn!(%error, "a connection could not be set up");
            LoginStatus::OUT_OF_RESOURCES
        })?;
        let mailbox = Arc::new(mailbox);
        let theirs = stream.clone();
        let bell = mailbox.clone();
        let hang_up = move |how| {
            let how = match how {
                HangUp::Now => Shutdown::Both,
                HangUp::WhenIdle => Shutdown::Read,
                HangUp::Asked => return bell.ring(),
            };
            let _ = theirs.shutdown(how);
        };
        if !entered.establish(Box::new(hang_up)) {
            return Err(LoginStatus::SERVICE_UNAVAILABLE);
        }
        count(&shared.counters.logins);
        let window = shared.limits.tasks_per_session.max(1);
        let (answer, stat_sn) = entrance.accept(entered.tsih, window);
        let (target, guard) = match attachment {
            Some(Attachment { target, guard }) => (Some(target), Some(guard)),
            None => (None, None),
        };
        Ok(LoggedIn {
            connection: Connection {
                shared: shared.clone(),
                stream: stream.clone(),
                mailbox,
                login: entrance.login.clone(),
                answer,
                digests: Digests::of(&entrance.parameters),
                target,
            },
            parameters: entrance.parameters.clone(),
            cid: entrance.cid(),
            stat_sn,
            exp_cmd_sn: entrance.exp_cmd_sn,
            entered,
            _guard: guard,
            _thread_count: shared.sessions.thread(),
        })
    }

    /// Serves the session to its end.
    pub(super) fn serve(self) {
        let connection = &self.connection;
        let shared = connection.shared.clone();
        let start = Start {
            login: &connection.login,
            parameters: self.parameters.clone(),
            target: connection.target.as_ref(),
            targets: &*shared.targets,
            portals: &shared.portals,
            stats: &self.entered.stats,
            cid: self.cid,
            window: shared.limits.tasks_per_session.max(1),
            stat_sn: self.stat_sn,
            exp_cmd_sn: self.exp_cmd_sn,
        };
        let login = &connection.login;
        tracing::debug!(session = %self.entered.id, initiator = login.initiator,
            target = login.target, peer = %login.peer, "logged in");
        let end = connection.run(Session::new(start), &self.entered);
        tracing::debug!(session = %self.entered.id, initiator = login.initiator,
            reason = end.reason(), "session ended");
        if end == End::LoggedOut {
            let stream = connection.stream.clone();
            drop(self);
            linger(&shared, &stream);
        }
    }
}

/// Lets a peer that has logged out close first, so that our last response is
/// not lost. Nothing of the session is left meanwhile.
fn linger(shared: &Shared, mut stream: &TcpStream) {
    if shared.departing.fetch_add(1, Ordering::Relaxed) < MAX_DEPARTING {
        let deadline = Instant::now() + LAST_READ;
        let mut scrap = [0; 512];
        while matches!(stream.read(&mut scrap), Ok(1..)) && Instant::now() < deadline {}
    }
    shared.departing.fetch_sub(1, Ordering::Relaxed);
}

/// How a connection has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    LoggedOut,
    For(&'static str),
}

impl End {
    fn reason(self) -> &'static str {
        match self {
            End::LoggedOut => "logged out",
            End::For(reason) => reason,
        }
    }
}

struct Connection {
    shared: Arc<Shared>,
    stream: Arc<TcpStream>,
    mailbox: Arc<Mailbox>,
    login: crate::Login,
    /// The last login response.
    answer: Vec<u8>,
    digests: Digests,
    /// `None` in a discovery session.
    target: Option<Arc<Target>>,
}

impl Connection {
    /// Serves the connection to its end.
    fn run(&self, mut session: Session<'_>, entered: &Entered) -> End {
        let _idle = IdleAtLast(&self.mailbox);
        if let Some(target) = &self.target {
            let bell: Weak<Mailbox> = Arc::downgrade(&self.mailbox);
            target.attend(bell);
        }
        let limits = &self.shared.limits;
        let mut inbox = Inbox::new(self.digests);
        let mut pulse = Pulse::new(limits.ping_interval, limits.ping_timeout);
        let mut outbox = Outbox::new(Socket::new(self.stream.as_raw_fd()));
        outbox.bytes(&self.answer);
        outbox.protect(self.digests);
        let mut units = Arc::new(Units::none());
        let end = loop {
            let older = std::mem::replace(&mut units, self.units());
            let mut out = outbox;
            session.move_on(&older, &units, &mut out);
            drop(older);
            let input = (&mut inbox, &mut pulse);
            let served = self.serve(&units, input, &mut session, &mut out);
            outbox = out.let_go();
            if let ControlFlow::Break(end) = served {
                break end;
            }
        };
        session.call_off();
        session.publish();
        let rejects = &self.shared.counters.rejects;
        rejects.fetch_add(session.rejects(), Ordering::Relaxed);
        let rest = match end {
            End::LoggedOut => Shutdown::Write,
            End::For(_) => Shutdown::Both,
        };
        let _ = self.stream.shutdown(rest);
        self.mailbox.wait_until_harmless();
        entered.leave();
        end
    }

    /// The units of the target, as they are now.
    fn units(&self) -> Arc<Units> {
        match &self.target {
            Some(target) => target.snapshot(),
            None => Arc::new(Units::none()),
        }
    }

    /// Serves until the connection ends, or until the target has other units.
    fn serve<'u>(
        &self,
        units: &'u Units,
        (inbox, pulse): (&mut Inbox, &mut Pulse),
        session: &mut Session<'_>,
        out: &mut Outbox<'u>,
    ) -> ControlFlow<End> {
        loop {
            let next = self.handle(units, inbox, session, out);
            let stays = next == Next::Continue;
            if stays && self.shared.asks_for_logout.load(Ordering::Acquire) {
                let seconds = u16::try_from(LOGOUT_WAIT.as_secs()).unwrap_or(u16::MAX);
                session.request_logout(seconds, out);
            }
            self.send_jobs(session);
            session.publish();
            if let Err(gone) = out.flush() {
                return ControlFlow::Break(End::For(self.lose(units, gone)));
            }
            if next != Next::Continue {
                return ControlFlow::Break(self.end(units, next, session, out));
            }
            if self.shared.is_draining() && !session.is_busy() {
                return ControlFlow::Break(End::For("the server is going"));
            }
            if let Err(reason) = self.wait(units, (inbox, pulse), session, out) {
                return ControlFlow::Break(End::For(reason));
            }
            let target = self.target.as_ref();
            if target.is_some_and(|target| target.has_changed_since(units)) {
                return ControlFlow::Continue(());
            }
        }
    }

    /// Ends the connection as the session says.
    fn end<'u>(
        &self,
        units: &'u Units,
        next: Next,
        session: &mut Session<'_>,
        out: &mut Outbox<'u>,
    ) -> End {
        match next {
            Next::Continue | Next::Close => End::LoggedOut,
            Next::CloseTarget => {
                // The response may have to wait for workers to let go.
                self.mailbox.wait_until_harmless();
                self.settle(units, session, out);
                if let Some(target) = &self.login.target {
                    self.shared.sessions.hang_up_target(target);
                }
                End::For("the target was reset")
            }
            Next::Broken(how) => {
                count(&self.shared.counters.malformed_pdus);
                End::For(how)
            }
        }
    }

    /// Handles every whole PDU there is.
    fn handle<'u>(
        &self,
        units: &'u Units,
        inbox: &mut Inbox,
        session: &mut Session<'_>,
        out: &mut Outbox<'u>,
    ) -> Next {
        loop {
            let (bhs, data) = match inbox.next_pdu() {
                Ok(Some(pdu)) => pdu,
                Ok(None) => return Next::Continue,
                Err(how) => return Next::Broken(how),
            };
            match session.receive(units, &bhs, data, out) {
                Next::Continue => {}
                end => return end,
            }
        }
    }

    fn send_jobs(&self, session: &mut Session<'_>) {
        for job in session.jobs() {
            self.shared.workers.run(job, &self.mailbox);
        }
    }

    /// Waits for input; for workers where some are at work; once it is quiet,
    /// for the bell and the time of the next ping.
    fn wait<'u>(
        &self,
        units: &'u Units,
        (inbox, pulse): (&mut Inbox, &mut Pulse),
        session: &mut Session<'_>,
        out: &mut Outbox<'u>,
    ) -> Result<(), &'static str> {
        loop {
            if pulse.is_quiet() || session.running() > 0 {
                let patience = match pulse.beat(Instant::now(), session.has_answered_ping()) {
                    Beat::Wait(None) if pulse.is_quiet() => None,
                    Beat::Wait(time) => Some(time.unwrap_or(QUIET)),
                    Beat::Dead => return Err("it answers no ping any more"),
                    Beat::Ping => {
                        session.ping(out);
                        return Ok(());
                    }
                };
                let mut fds = [
                    PollFd::new(&*self.stream, PollFlags::IN),
                    PollFd::from_borrowed_fd(self.mailbox.bell(), PollFlags::IN),
                ];
                let patience = patience.and_then(|time| Timespec::try_from(time).ok());
                match poll(&mut fds, patience.as_ref()) {
                    Ok(0) => {
                        pulse.is_quiet_since(Instant::now());
                        continue;
                    }
                    Ok(_) => {}
                    Err(_) => continue, // interrupted
                }
                let is_readable = !fds[0].revents().is_empty();
                for done in self.mailbox.collect() {
                    session.finish(units, done, out);
                }
                if !is_readable {
                    return Ok(());
                }
            }
            match inbox.receive(&*self.stream) {
                Ok(0) => return Err(self.hear_out(units, session, out)),
                Ok(_) => {
                    pulse.heard();
                    return Ok(());
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        pulse.is_quiet_since(Instant::now());
                        inbox.shrink();
                        out.shrink();
                    }
                    _ => return Err("the connection broke"),
                },
            }
        }
    }

    /// The peer sends no more (or we are draining): what it has sent is still
    /// answered when the server is going, and called off when the peer is.
    fn hear_out<'u>(
        &self,
        units: &'u Units,
        session: &mut Session<'_>,
        out: &mut Outbox<'u>,
    ) -> &'static str {
        if !self.shared.is_draining() {
            return "the connection was closed";
        }
        while session.running() > 0 {
            self.mailbox.wait_until_idle();
            self.settle(units, session, out);
            self.send_jobs(session); // of commands that have waited for these
        }
        "the server is going"
    }

    /// Sends what the workers have brought.
    fn settle<'u>(&self, units: &'u Units, session: &mut Session<'_>, out: &mut Outbox<'u>) {
        for done in self.mailbox.collect() {
            session.finish(units, done, out);
        }
        let _ = out.flush();
    }

    /// Says why nothing can be sent any more.
    fn lose(&self, units: &Units, gone: Gone) -> &'static str {
        match gone {
            Gone::Peer => "the connection broke",
            Gone::Mapping => {
                tracing::error!(target = self.login.target, peer = %self.login.peer,
                    "mapped data is not there: has an image file become shorter, or does its \
                     medium fail? its reads go through buffers from now on");
                for (_, unit) in units.list() {
                    unit.lose_mapping();
                }
                "mapped data is not there"
            }
        }
    }
}

/// Waits for the connection's workers before anything of it is let go.
struct IdleAtLast<'a>(&'a Mailbox);

impl Drop for IdleAtLast<'_> {
    fn drop(&mut self) {
        self.0.wait_until_idle();
    }
}

/// The sending side of a socket.
struct Socket {
    socket: RawFd,
    /// Page faults of this thread that had to wait for a medium.
    major_faults: libc::c_long,
    /// For so many sends more, bytes are taken for cold.
    cold_sends: u32,
}

impl Socket {
    fn new(socket: RawFd) -> Socket {
        Socket {
            socket,
            major_faults: 0,
            cold_sends: COLD_SENDS,
        }
    }

    /// Notes whether a send had to wait for a medium.
    fn take_temperature(&mut self) {
        // SAFETY: all zeros is a valid rusage.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: fills the struct it is given; no safe interface has it.
        let result = unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
        if result == 0 && usage.ru_majflt != self.major_faults {
            self.major_faults = usage.ru_majflt;
            self.cold_sends = COLD_SENDS;
        }
    }
}

impl Sink for Socket {
    fn is_cold(&self) -> bool {
        self.cold_sends > 0
    }

    fn send(&mut self, parts: &mut [Part]) -> Result<(), Gone> {
        let mut first = 0;
        let points_at_mappings = parts.len() > 2;
        while first < parts.len() {
            let rest = &mut parts[first..];
            // SAFETY: all zeros is a valid msghdr (null pointers, lengths 0).
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            // `Part` is a transparent iovec.
            message.msg_iov = rest.as_mut_ptr().cast();
            message.msg_iovlen = rest.len() as _;
            // SAFETY: the message and its iovecs live during the call, and
            // the kernel only reads what they point at. Memory that a mapping
            // has lost makes it answer EFAULT, not fault. A safe interface
            // would need `&[u8]` of bytes that may change.
            let sent =
                unsafe { libc::sendmsg(self.socket, &raw const message, libc::MSG_NOSIGNAL) };
            let Ok(mut sent) = usize::try_from(sent) else {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                tracing::debug!(%error, "sending failed");
                return Err(match error.raw_os_error() {
                    Some(libc::EFAULT) => Gone::Mapping,
                    _ => Gone::Peer, // EAGAIN: it has not read for the send timeout
                });
            };
            while first < parts.len() && sent >= parts[first].len() {
                sent -= parts[first].len();
                first += 1;
            }
            if sent > 0 {
                parts[first].advance(sent);
            }
        }
        if points_at_mappings {
            self.cold_sends = self.cold_sends.saturating_sub(1);
            self.take_temperature();
        }
        Ok(())
    }
}
