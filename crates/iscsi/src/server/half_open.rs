//! Connections that have not logged in, and how many of them there may be.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::{Shared, count};
use crate::login::{MAX_LOGIN_DATA_BYTES, Negotiation};
use crate::wire::{BHS_BYTES, Bhs, Lengths};

/// A connection that has not logged in.
pub(super) struct HalfOpen {
    pub(super) stream: TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) deadline: Instant,
    pub(super) negotiation: Negotiation,
    /// One PDU, as far as it has come.
    pub(super) buffer: Vec<u8>,
    pub(super) closed: bool,
    /// None once closed.
    pub(super) place: Option<Place>,
}

pub(super) enum Whole {
    No,
    Yes,
}

pub(super) enum ReadError {
    Gone,
    NoLogin,
}

impl HalfOpen {
    /// Reads what is there of the next PDU, and nothing behind it.
    pub(super) fn read(&mut self) -> Result<Whole, ReadError> {
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
    pub(super) fn drop_for(self, error: ReadError, shared: &Shared) {
        if let ReadError::NoLogin = error {
            tracing::debug!(peer = %self.peer, "sent what is no login PDU");
            count(&shared.counters.malformed_pdus);
        }
    }

    /// Reads until the next PDU is whole, but waits no longer than `deadline`.
    pub(super) fn read_until(&mut self, deadline: Instant) -> Result<Whole, ReadError> {
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
pub(super) struct Places(Mutex<HashMap<IpAddr, usize>>);

impl Places {
    pub(super) fn count(&self) -> usize {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        taken.values().sum()
    }

    pub(super) fn take(
        places: &Arc<Places>,
        ip: IpAddr,
        limit: usize,
        per_ip: usize,
    ) -> Option<Place> {
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
pub(super) struct Place {
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
