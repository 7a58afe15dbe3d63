//! A way between a client and a server with a delay in it, and with loss.
//!
//! This kernel has no netem. So the client's end holds every datagram back
//! for the time it would have been under way, in both directions: the same
//! for whatever server is at the other end.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// One way in a hundred is lost.
const LOST_OF: u64 = 100;

/// How the way is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// Time for one direction.
    pub(super) delay: Duration,
    /// Where the losses come from; `None`: nothing is lost.
    pub(super) losses: Option<u64>,
}

/// A socket at the client's end of it.
pub(super) struct DelayedSocket {
    socket: UdpSocket,
    delay: Duration,
    dice: Option<Dice>,
    /// Under way, and when they arrive.
    outward: VecDeque<(Instant, Vec<u8>, SocketAddr)>,
    inward: VecDeque<(Instant, Vec<u8>, SocketAddr)>,
}

impl DelayedSocket {
    pub(super) fn bind(address: Ipv4Addr, way: Way) -> io::Result<DelayedSocket> {
        let socket = UdpSocket::bind((address, 0))?;
        socket.set_nonblocking(true)?;
        Ok(DelayedSocket {
            socket,
            delay: way.delay,
            dice: way.losses.map(Dice),
            outward: VecDeque::new(),
            inward: VecDeque::new(),
        })
    }

    pub(super) fn send(&mut self, datagram: &[u8], to: SocketAddr) {
        if !self.is_lost(datagram) {
            let due = Instant::now() + self.delay;
            self.outward.push_back((due, datagram.to_vec(), to));
        }
    }

    /// Lets the network work until something arrives, or until `deadline`.
    pub(super) fn receive(
        &mut self,
        deadline: Instant,
    ) -> io::Result<Option<(Vec<u8>, SocketAddr)>> {
        let mut buffer = [0; 2048];
        loop {
            let now = Instant::now();
            while let Some((due, datagram, to)) = self.outward.front() {
                if *due > now {
                    break;
                }
                self.socket.send_to(datagram, to)?;
                self.outward.pop_front();
            }
            loop {
                match self.socket.recv_from(&mut buffer) {
                    Ok((length, from)) => {
                        let datagram = buffer[..length].to_vec();
                        if !self.is_lost(&datagram) {
                            let due = Instant::now() + self.delay;
                            self.inward.push_back((due, datagram, from));
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            let now = Instant::now();
            if let Some((due, ..)) = self.inward.front()
                && *due <= now
            {
                return Ok(self
                    .inward
                    .pop_front()
                    .map(|(_, datagram, from)| (datagram, from)));
            }
            if now >= deadline {
                return Ok(None);
            }
            let next = [self.outward.front(), self.inward.front()];
            let next = next.into_iter().flatten().map(|(due, ..)| *due).min();
            let until = next.unwrap_or(deadline).min(deadline);
            let wait = Timespec::try_from(until.saturating_duration_since(now))
                .map_err(io::Error::other)?;
            poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&wait))?;
        }
    }

    /// Requests and their first answers come through: how long a client waits
    /// for those is its own affair, and would drown what is measured.
    fn is_lost(&mut self, datagram: &[u8]) -> bool {
        let is_data_or_ack = matches!(datagram, [0, 3 | 4, ..]);
        is_data_or_ack && self.dice.as_mut().is_some_and(Dice::falls)
    }
}

/// xorshift64*: the same losses for everybody who begins with the same.
struct Dice(u64);

impl Dice {
    fn falls(&mut self) -> bool {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32).is_multiple_of(LOST_OF)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_a_hundred_is_lost() {
        let mut dice = Dice(7);
        let lost = (0..100_000).filter(|_| dice.falls()).count();
        assert!((900..1100).contains(&lost), "{lost}");
    }
}
