//! Reception: accepts connections and takes them through their login.
//!
//! Half-open connections are only watched; when a whole login PDU has come, a
//! login thread gets the connection. It stays a moment for the next PDU, which
//! most initiators send at once, before it gives the connection back. A
//! thousand connections that say nothing cost a thousand file descriptors and
//! no thread.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::clerk::{Clerk, Turn};
use super::half_open::{HalfOpen, Places, Whole};
use super::staff::Staff;
use super::{Shared, count};
use crate::login::Negotiation;

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
