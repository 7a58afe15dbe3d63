//! Reception: accepts connections and takes them through their login.
//!
//! Half-open connections are only watched; when a whole login PDU has come, a
//! login thread gets the connection. It stays a moment for the next PDU, which
//! most initiators send at once, before it gives the connection back. A
//! thousand connections that say nothing cost a thousand file descriptors and
//! no thread.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::connection::LoggedIn;
use super::registry::{EnterError, Entered};
use super::staff::{Duty, Staff};
use super::{Shared, count};
use crate::login::{
    Entrance, LoginStatus, MAX_LOGIN_DATA_BYTES, Negotiation, Progress, Refusal, Site,
};
use crate::wire::{BHS_BYTES, Bhs, Lengths, Request};
use crate::{Attachment, Login, LoginRefusal, Refused};

/// How long to wait when there are no file descriptors left to accept with.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a login waits while as many of its target are under way as may be,
/// and how often it looks again: a hundred machines may boot from one target.
const CROWD_WAIT: Duration = Duration::from_secs(2);
const CROWD_PAUSE: Duration = Duration::from_millis(1);
/// How long a login thread waits for a PDU before it gives the connection
/// back: a few round trips of a local network, and so little that a flood of
/// connections that say nothing delays no login noticeably.
const PATIENCE: Duration = Duration::from_micros(500);

/// Wakes the reception thread.
pub(super) struct Wake(OwnedFd);

impl Wake {
    pub(super) fn new() -> io::Result<Wake> {
        Ok(Wake(eventfd(
            0,
            EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC,
        )?))
    }

    pub(super) fn wake(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

/// The reception thread.
pub(super) struct Reception {
    shared: Arc<Shared>,
    wake: Arc<Wake>,
    listeners: Vec<TcpListener>,
    waiting: Vec<HalfOpen>,
    places: Arc<Places>,
    staff: Arc<Staff<Turn>>,
    /// Where login threads put what they are done with.
    returned: Arc<Mutex<Vec<HalfOpen>>>,
    /// Accepting has failed, and that was said.
    cannot_accept: bool,
}

impl Reception {
    pub(super) fn new(
        shared: Arc<Shared>,
        wake: Arc<Wake>,
        listeners: Vec<TcpListener>,
    ) -> io::Result<Reception> {
        let limit = shared.limits.login_threads.max(1);
        let staff = Arc::new(Staff::new(limit));
        let returned = Arc::new(Mutex::new(Vec::new()));
        let reception = Reception {
            shared: shared.clone(),
            wake: wake.clone(),
            listeners,
            waiting: Vec::new(),
            places: Arc::default(),
            staff: staff.clone(),
            returned: returned.clone(),
            cannot_accept: false,
        };
        let clerk = Clerk {
            shared,
            wake,
            staff,
            returned,
        };
        for _ in 0..limit {
            clerk.hire()?;
        }
        Ok(reception)
    }

    /// Runs until the server drains.
    pub(super) fn run(mut self) {
        while !self.shared.is_draining() {
            let ready = self.wait();
            if ready.wake {
                self.wake.clear();
            }
            let returned = self.take_returned();
            self.expire();
            if ready.listeners {
                self.accept();
            }
            self.read(ready.connections);
            self.waiting.extend(returned);
        }
    }

    fn take_returned(&self) -> Vec<HalfOpen> {
        let mut returned = self.returned.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *returned)
    }

    /// Waits for anything to happen.
    fn wait(&self) -> Ready {
        let mut fds = vec![PollFd::new(&self.wake.0, PollFlags::IN)];
        for listener in &self.listeners {
            fds.push(PollFd::new(listener, PollFlags::IN));
        }
        for half_open in &self.waiting {
            fds.push(PollFd::from_borrowed_fd(
                half_open.stream.as_fd(),
                PollFlags::IN,
            ));
        }
        let timeout = self.next_deadline().map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            // A little late is better than a little early, and again.
            (left + Duration::from_millis(1)).min(Duration::from_secs(3600))
        });
        let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
        if poll(&mut fds, timeout.as_ref()).is_err() {
            return Ready::default(); // interrupted
        }
        let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let connections = 1 + self.listeners.len();
        Ready {
            wake: is_ready(&fds[0]),
            listeners: fds[1..connections].iter().any(is_ready),
            connections: fds[connections..].iter().map(is_ready).collect(),
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.waiting
            .iter()
            .map(|half_open| half_open.deadline)
            .min()
    }

    /// Closes the connections whose time is up.
    fn expire(&mut self) {
        // Their readiness is asked again by the next poll; here order must
        // stay, so they are only marked.
        let now = Instant::now();
        for half_open in &mut self.waiting {
            if half_open.deadline <= now && !half_open.closed {
                tracing::debug!(peer = %half_open.peer, "login timed out");
                count(&self.shared.counters.logins_refused);
                half_open.closed = true;
            }
        }
    }

    fn accept(&mut self) {
        for index in 0..self.listeners.len() {
            loop {
                match self.listeners[index].accept() {
                    Ok((stream, peer)) => {
                        self.cannot_accept = false;
                        count(&self.shared.counters.connections);
                        match self.admit(stream, peer) {
                            Some(half_open) => self.waiting.push(half_open),
                            None => count(&self.shared.counters.connections_refused),
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => {
                        // Said once: it may go on like this 20 times a second.
                        if !std::mem::replace(&mut self.cannot_accept, true) {
                            tracing::warn!(%error, "accepting a connection failed");
                        }
                        thread::sleep(ACCEPT_PAUSE);
                        break;
                    }
                }
            }
        }
    }

    fn admit(&mut self, stream: TcpStream, peer: SocketAddr) -> Option<HalfOpen> {
        if self.places.count() >= self.shared.limits.half_open_logins {
            self.evict();
        }
        let limits = &self.shared.limits;
        let place = Places::take(
            &self.places,
            peer.ip(),
            limits.half_open_logins,
            limits.half_open_logins_per_address,
        )?;
        let portal = stream.local_addr().ok()?;
        Some(HalfOpen {
            negotiation: Negotiation::new(peer, portal),
            stream,
            peer,
            deadline: Instant::now() + limits.login_deadline,
            buffer: Vec::new(),
            closed: false,
            place: Some(place),
        })
    }

    /// Closes the connection that has waited longest for its initiator: an
    /// initiator that means it takes milliseconds, and many that do not must
    /// not keep it out.
    fn evict(&mut self) {
        let waiting = self.waiting.iter_mut().filter(|waiting| !waiting.closed);
        if let Some(oldest) = waiting.min_by_key(|waiting| waiting.deadline) {
            tracing::debug!(peer = %oldest.peer, "its login gives way to another");
            count(&self.shared.counters.connections_refused);
            oldest.closed = true;
            oldest.place = None;
        }
    }

    /// Reads from the connections that have something, and passes whole PDUs
    /// on.
    fn read(&mut self, ready: Vec<bool>) {
        let mut ready = ready.into_iter();
        for mut half_open in std::mem::take(&mut self.waiting) {
            // Those accepted just now have not been polled yet.
            let polled = ready.next();
            let is_ready = polled.unwrap_or(true);
            if half_open.closed {
                continue;
            }
            if !is_ready {
                self.waiting.push(half_open);
                continue;
            }
            match half_open.read() {
                // Its first PDU is about to come.
                Ok(Whole::No) if polled.is_none() => {
                    let turn = Turn::Step(Box::new(half_open));
                    if let Err(Turn::Step(half_open)) = self.staff.offer(turn) {
                        self.waiting.push(*half_open);
                    }
                }
                Ok(Whole::No) => self.waiting.push(half_open),
                Ok(Whole::Yes) => self.staff.push(Turn::Step(Box::new(half_open))),
                Err(error) => half_open.drop_for(error, &self.shared),
            }
        }
    }
}

impl Drop for Reception {
    fn drop(&mut self) {
        self.staff.close();
    }
}

#[derive(Default)]
struct Ready {
    wake: bool,
    listeners: bool,
    /// In the order of the half-open connections.
    connections: Vec<bool>,
}

/// A connection that has not logged in.
struct HalfOpen {
    stream: TcpStream,
    peer: SocketAddr,
    deadline: Instant,
    negotiation: Negotiation,
    /// One PDU, as far as it has come.
    buffer: Vec<u8>,
    closed: bool,
    /// None once closed.
    place: Option<Place>,
}

/// What waits for a login thread.
enum Turn {
    /// A login, or its next PDU.
    Step(Box<HalfOpen>),
    /// One that has agreed on everything, when its target was crowded.
    Enter(Entering),
}

/// A login that has agreed on everything.
struct Entering {
    stream: TcpStream,
    entrance: Box<Entrance>,
    /// It may wait for its target until then.
    deadline: Instant,
    /// Kept while it waits.
    place: Option<Place>,
}

enum Whole {
    No,
    Yes,
}

enum ReadError {
    Gone,
    NoLogin,
}

impl HalfOpen {
    /// Reads what is there of the next PDU, and nothing behind it.
    fn read(&mut self) -> Result<Whole, ReadError> {
        loop {
            let wanted = match self.header() {
                None => BHS_BYTES,
                Some(bhs) => {
                    let lengths = Lengths::parse(&bhs);
                    let is_login = bhs[0] & 0x3f == 0x03;
                    let fits = lengths.data_bytes <= MAX_LOGIN_DATA_BYTES;
                    if !is_login || lengths.ahs_bytes > 0 || !fits {
                        return Err(ReadError::NoLogin);
                    }
                    lengths.pdu_bytes()
                }
            };
            if self.header().is_some() && self.buffer.len() == wanted {
                return Ok(Whole::Yes);
            }
            let have = self.buffer.len();
            self.buffer.resize(wanted, 0);
            let result = recv(&self.stream, &mut self.buffer[have..], RecvFlags::DONTWAIT);
            let got = result.map_or(0, |(got, _)| got);
            self.buffer.truncate(have + got);
            match result {
                Ok((0, _)) => return Err(ReadError::Gone),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Whole::No),
                Err(_) => return Err(ReadError::Gone),
            }
        }
    }

    /// Closes the connection, for a reason that may have to be counted.
    fn drop_for(self, error: ReadError, shared: &Shared) {
        if let ReadError::NoLogin = error {
            tracing::debug!(peer = %self.peer, "sent what is no login PDU");
            count(&shared.counters.malformed_pdus);
        }
    }

    /// Reads until the next PDU is whole, but waits no longer than `deadline`.
    fn read_until(&mut self, deadline: Instant) -> Result<Whole, ReadError> {
        loop {
            if let Whole::Yes = self.read()? {
                return Ok(Whole::Yes);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
            match Timespec::try_from(left) {
                Ok(left) if poll(&mut fds, Some(&left)) == Ok(1) => {}
                _ => return Ok(Whole::No), // time is up, or as good as that
            }
        }
    }

    fn header(&self) -> Option<Bhs> {
        self.buffer.first_chunk().copied()
    }
}

/// How many half-open connections there are.
#[derive(Default)]
struct Places(Mutex<HashMap<IpAddr, usize>>);

impl Places {
    fn count(&self) -> usize {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.values().sum()
    }

    fn take(places: &Arc<Places>, ip: IpAddr, limit: usize, per_ip: usize) -> Option<Place> {
        let mut taken = places.0.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.values().sum::<usize>() >= limit {
            return None;
        }
        let of_this = taken.entry(ip).or_insert(0);
        if *of_this >= per_ip {
            return None;
        }
        *of_this += 1;
        Some(Place {
            places: places.clone(),
            ip,
        })
    }
}

/// One of them.
struct Place {
    places: Arc<Places>,
    ip: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_this) = taken.get_mut(&self.ip) {
            *of_this -= 1;
            if *of_this == 0 {
                taken.remove(&self.ip);
            }
        }
    }
}

/// A login thread.
#[derive(Clone)]
struct Clerk {
    shared: Arc<Shared>,
    wake: Arc<Wake>,
    staff: Arc<Staff<Turn>>,
    returned: Arc<Mutex<Vec<HalfOpen>>>,
}

/// What one login PDU has led to: an answer, with the login going on, or its
/// end, which may be a session.
type Step = ControlFlow<Option<LoggedIn>, HalfOpen>;

impl Clerk {
    /// Another like this one.
    fn hire(&self) -> io::Result<()> {
        let clerk = self.clone();
        thread::Builder::new()
            .name("iscsi-session".into())
            .spawn(move || clerk.run())
            .map(drop)
    }

    fn run(&self) {
        while let Some((turn, mut duty)) = self.staff.next() {
            // A site that panics costs its login, not the pool.
            let login = || match turn {
                Turn::Step(half_open) => self.attend(*half_open, &mut duty),
                Turn::Enter(entering) => {
                    thread::sleep(CROWD_PAUSE);
                    self.enter(entering, &mut duty)
                }
            };
            match catch_unwind(AssertUnwindSafe(login)) {
                Ok(None) => {}
                Ok(Some(session)) => {
                    if catch_unwind(AssertUnwindSafe(|| session.serve())).is_err() {
                        tracing::error!("a session panicked");
                    }
                }
                Err(_) => tracing::error!("a login panicked"),
            }
            if !duty.end() {
                return;
            }
        }
    }

    /// Takes a login as far as its initiator goes at once; the session, when
    /// that is all the way.
    fn attend(&self, mut half_open: HalfOpen, duty: &mut Duty<'_, Turn>) -> Option<LoggedIn> {
        loop {
            match half_open.read_until(Instant::now() + PATIENCE) {
                Ok(Whole::Yes) => {}
                Ok(Whole::No) => {
                    self.give_back(half_open);
                    return None;
                }
                Err(error) => {
                    half_open.drop_for(error, &self.shared);
                    return None;
                }
            }
            match self.step(half_open, duty) {
                Step::Continue(next) => half_open = next,
                Step::Break(session) => return session,
            }
        }
    }

    /// Has reception watch a connection again.
    fn give_back(&self, half_open: HalfOpen) {
        let mut returned = self.returned.lock().unwrap_or_else(PoisonError::into_inner);
        returned.push(half_open);
        drop(returned);
        self.wake.wake();
    }

    /// Answers one login PDU.
    fn step(&self, half_open: HalfOpen, duty: &mut Duty<'_, Turn>) -> Step {
        let HalfOpen {
            stream,
            peer,
            deadline,
            negotiation,
            buffer,
            closed,
            place,
        } = half_open;
        let request = buffer.first_chunk().map(Request::parse);
        let Some(Ok(Request::Login(request))) = request else {
            count(&self.shared.counters.malformed_pdus);
            return Step::Break(None);
        };
        let text = &buffer[BHS_BYTES..BHS_BYTES + lengths(&buffer)];
        let shared = &self.shared;
        let site = Site {
            targets: &*shared.targets,
            challenges: &shared.challenges,
            rejoin: &|login, tsih, cid| shared.sessions.rejoin(login, tsih, cid),
            random: &|| {
                let mut bytes = [0; 17];
                getrandom::fill(&mut bytes).ok().map(|()| bytes)
            },
        };
        let who = negotiation.login().map(|login| login.initiator.clone());
        let (negotiation, progress) = negotiation.receive(&request, text, &site);
        match progress {
            Progress::Reply(answer) => match negotiation {
                Some(negotiation) if send_answer(&stream, &answer) => Step::Continue(HalfOpen {
                    stream,
                    peer,
                    deadline,
                    negotiation,
                    buffer: Vec::new(),
                    closed,
                    place,
                }),
                _ => Step::Break(None),
            },
            Progress::Refuse(answer, refusal) => {
                tracing::debug!(%peer, initiator = ?who, status = %refusal.status,
                    reason = refusal.reason, "login refused");
                count(&shared.counters.logins_refused);
                send_answer(&stream, &answer);
                Step::Break(None)
            }
            Progress::Enter(entrance) => {
                let entering = Entering {
                    stream,
                    entrance,
                    deadline: Instant::now() + CROWD_WAIT,
                    place,
                };
                Step::Break(self.enter(entering, duty))
            }
        }
    }

    /// Opens the target and begins the session; or has it wait in the queue,
    /// and not on this thread, while the target is crowded.
    fn enter(&self, entering: Entering, duty: &mut Duty<'_, Turn>) -> Option<LoggedIn> {
        if has_closed(&entering.stream) {
            return None; // it has given up
        }
        let shared = &self.shared;
        let entered = shared.sessions.enter(&entering.entrance);
        let is_crowded = matches!(entered, Err(EnterError::TooManyLogins));
        if is_crowded && Instant::now() < entering.deadline {
            self.staff.push(Turn::Enter(entering));
            return None;
        }
        let Entering {
            stream,
            entrance,
            place,
            ..
        } = entering;
        drop(place);
        let stream = Arc::new(stream);
        match self.try_enter(&stream, &entrance, entered, duty) {
            Ok(session) => Some(session),
            Err(refusal) => {
                let login = &entrance.login;
                tracing::debug!(peer = %login.peer, initiator = login.initiator,
                    target = login.target, status = %refusal.status,
                    reason = refusal.reason, "login refused");
                count(&shared.counters.logins_refused);
                send_answer(&stream, &entrance.refuse(&refusal));
                None
            }
        }
    }

    fn try_enter(
        &self,
        stream: &Arc<TcpStream>,
        entrance: &Entrance,
        entered: Result<Entered, EnterError>,
        duty: &mut Duty<'_, Turn>,
    ) -> Result<LoggedIn, Refusal> {
        let shared = &self.shared;
        let login = &entrance.login;
        let refuse = |refusal: Refusal| {
            let refused = Refused {
                status: refusal.status,
                claimed_name: login.chap_name.as_deref(),
                reason: refusal.reason,
            };
            shared.targets.refused(login, &refused);
            refusal
        };
        let entered = entered.map_err(|error| refuse(error.into()))?;
        let attachment = match &login.target {
            None => None,
            Some(_) => Some(self.open(login)?),
        };
        let relieved = duty.relieve(|| self.hire());
        let relieved = relieved.map_err(|error| {
            tracing::warn!(%error, "no thread can be started");
            LoginStatus::OUT_OF_RESOURCES
        });
        relieved
            .and_then(|()| LoggedIn::begin(shared, stream, entrance, entered, attachment))
            .map_err(|status| refuse(status.because("its session could not begin")))
    }

    fn open(&self, login: &Login) -> Result<Attachment, Refusal> {
        self.shared.targets.open(login).map_err(|refusal| {
            if let LoginRefusal::TargetError(reason) = &refusal {
                tracing::warn!(peer = %login.peer, initiator = login.initiator,
                    target = login.target, reason, "the target cannot be opened");
            }
            refusal.into()
        })
    }
}

/// What the initiator hears of a login that got no place.
impl From<EnterError> for Refusal {
    fn from(error: EnterError) -> Refusal {
        match error {
            EnterError::Full => {
                LoginStatus::OUT_OF_RESOURCES.because("the limit of sessions is reached")
            }
            EnterError::SessionGone => {
                LoginStatus::NO_SUCH_SESSION.because("the session it comes back to has ended")
            }
            EnterError::OldSessionBusy => {
                LoginStatus::SERVICE_UNAVAILABLE.because("its old session does not end")
            }
            EnterError::Superseded => {
                LoginStatus::SERVICE_UNAVAILABLE.because("it has begun another login since")
            }
            EnterError::TooManyLogins => LoginStatus::SERVICE_UNAVAILABLE
                .because("too many logins of its target are under way"),
            EnterError::ShuttingDown => {
                LoginStatus::SERVICE_UNAVAILABLE.because("the server is going")
            }
        }
    }
}

/// Sends a login answer; whether that worked. It always fits into an empty
/// send buffer.
fn send_answer(stream: &TcpStream, answer: &[u8]) -> bool {
    send(stream, answer, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) == Ok(answer.len())
}

/// Whether the peer sends no more.
fn has_closed(stream: &TcpStream) -> bool {
    let flags = RecvFlags::DONTWAIT | RecvFlags::PEEK;
    matches!(recv(stream, &mut [0u8; 1][..], flags), Ok((0, _)))
}

/// Data bytes of a whole PDU.
fn lengths(pdu: &[u8]) -> usize {
    pdu.first_chunk()
        .map_or(0, |bhs| Lengths::parse(bhs).data_bytes)
        .min(pdu.len().saturating_sub(BHS_BYTES))
}
