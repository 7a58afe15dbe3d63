//! Reception: accepts connections and takes them through their login.
//!
//! Half-open connections are only watched; when a whole login PDU has come, a
//! login thread gets the connection and gives it back with the answer sent. A
//! thousand connections that say nothing cost a thousand file descriptors and
//! no thread.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::registry::EnterError;
use super::{Shared, connection, count};
use crate::login::{
    Entrance, LoginStatus, MAX_LOGIN_DATA_BYTES, Negotiation, Progress, Refusal, Site,
};
use crate::wire::{BHS_BYTES, Bhs, Lengths, Request};
use crate::{Attachment, Login, LoginRefusal, Refused};

/// How long to wait when there are no file descriptors left to accept with.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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
    logins: Arc<Queue>,
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
        let logins = Arc::new(Queue::default());
        let returned = Arc::new(Mutex::new(Vec::new()));
        let reception = Reception {
            shared: shared.clone(),
            wake: wake.clone(),
            listeners,
            waiting: Vec::new(),
            places: Arc::default(),
            logins: logins.clone(),
            returned: returned.clone(),
            cannot_accept: false,
        };
        for _ in 0..shared.limits.login_threads.max(1) {
            let clerk = Clerk {
                shared: shared.clone(),
                wake: wake.clone(),
                logins: logins.clone(),
                returned: returned.clone(),
            };
            thread::Builder::new()
                .name("iscsi-login".into())
                .spawn(move || clerk.run())?;
        }
        Ok(reception)
    }

    /// Runs until the server drains.
    pub(super) fn run(mut self) {
        while !self.shared.is_draining() {
            let ready = self.wait();
            self.wake.clear();
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
        stream.set_nonblocking(true).ok()?;
        stream.set_nodelay(true).ok()?;
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
            let is_ready = ready.next().unwrap_or(true);
            if half_open.closed {
                continue;
            }
            if !is_ready {
                self.waiting.push(half_open);
                continue;
            }
            match half_open.read() {
                Ok(Whole::No) => self.waiting.push(half_open),
                Ok(Whole::Yes) => {
                    self.logins.push(half_open);
                }
                Err(ReadError::Gone) => {}
                Err(ReadError::NoLogin) => {
                    tracing::debug!(peer = %half_open.peer, "sent what is no login PDU");
                    count(&self.shared.counters.malformed_pdus);
                }
            }
        }
    }
}

impl Drop for Reception {
    fn drop(&mut self) {
        self.logins.close();
    }
}

/// Logins that wait for a thread. A channel's receiver behind a lock would
/// wake two threads for each: the one that takes it, and the next in line.
#[derive(Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    waiting: VecDeque<HalfOpen>,
    closed: bool,
}

impl Queue {
    fn push(&self, half_open: HalfOpen) {
        self.lock().waiting.push_back(half_open);
        self.changed.notify_one();
    }

    /// Waits for a login; `None` once closed and empty.
    fn next(&self) -> Option<HalfOpen> {
        let mut state = self.lock();
        loop {
            if let Some(half_open) = state.waiting.pop_front() {
                return Some(half_open);
            }
            if state.closed {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Ready {
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
            let result = self.stream.read(&mut self.buffer[have..]);
            let got = *result.as_ref().unwrap_or(&0);
            self.buffer.truncate(have + got);
            match result {
                Ok(0) => return Err(ReadError::Gone),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Whole::No),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(ReadError::Gone),
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
struct Clerk {
    shared: Arc<Shared>,
    wake: Arc<Wake>,
    logins: Arc<Queue>,
    returned: Arc<Mutex<Vec<HalfOpen>>>,
}

impl Clerk {
    fn run(&self) {
        while let Some(half_open) = self.logins.next() {
            // A site that panics costs its login, not the pool.
            if catch_unwind(AssertUnwindSafe(|| self.step(half_open))).is_err() {
                tracing::error!("a login panicked");
            }
        }
    }

    /// Answers one login PDU.
    fn step(&self, half_open: HalfOpen) {
        let HalfOpen {
            mut stream,
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
            return;
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
            Progress::Reply(answer) => {
                let Some(negotiation) = negotiation else {
                    return;
                };
                // A login answer always fits into an empty send buffer.
                if stream.write_all(&answer).is_err() {
                    return;
                }
                let half_open = HalfOpen {
                    stream,
                    peer,
                    deadline,
                    negotiation,
                    buffer: Vec::new(),
                    closed,
                    place,
                };
                let mut returned = self.returned.lock().unwrap_or_else(PoisonError::into_inner);
                returned.push(half_open);
                drop(returned);
                self.wake.wake();
            }
            Progress::Refuse(answer, refusal) => {
                tracing::debug!(%peer, initiator = ?who, status = %refusal.status,
                    reason = refusal.reason, "login refused");
                count(&shared.counters.logins_refused);
                let _ = stream.write_all(&answer);
            }
            Progress::Enter(entrance) => {
                drop(place);
                self.enter(stream, &entrance);
            }
        }
    }

    /// Opens the target and hands the connection to a thread of its own.
    fn enter(&self, mut stream: TcpStream, entrance: &Entrance) {
        let shared = &self.shared;
        if let Err(refusal) = self.try_enter(&stream, entrance) {
            let login = &entrance.login;
            tracing::debug!(peer = %login.peer, initiator = login.initiator,
                target = login.target, status = %refusal.status,
                reason = refusal.reason, "login refused");
            count(&shared.counters.logins_refused);
            let _ = stream.write_all(&entrance.refuse(&refusal));
        }
    }

    fn try_enter(&self, stream: &TcpStream, entrance: &Entrance) -> Result<(), Refusal> {
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
        let entered = shared.sessions.enter(entrance);
        let entered = entered.map_err(|error| refuse(error.into()))?;
        let attachment = match &login.target {
            None => None,
            Some(_) => Some(self.open(login)?),
        };
        connection::start(shared, stream, entrance, entered, attachment)
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

/// Data bytes of a whole PDU.
fn lengths(pdu: &[u8]) -> usize {
    pdu.first_chunk()
        .map_or(0, |bhs| Lengths::parse(bhs).data_bytes)
        .min(pdu.len().saturating_sub(BHS_BYTES))
}
