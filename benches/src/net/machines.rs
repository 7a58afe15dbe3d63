//! Machines that boot: UEFI PXE firmware from its DISCOVER to the ACK, any
//! number of them behind one socket.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt;

/// How long a machine waits for an answer before it asks again, and again;
/// give or take a quarter (RFC 2131 section 4.1 wants that).
const PATIENCE: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];
/// What the socket may hold: the machines lose nothing on their side.
const RECEIVE_BUFFER_BYTES: usize = 16 << 20;
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;

/// The machines of one LAN.
pub(super) struct Machines {
    socket: UdpSocket,
    /// Transactions begun so far.
    begun: u32,
}

/// What became of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcome {
    pub(super) bound: usize,
    pub(super) failed: usize,
    /// Messages said again because nothing came.
    pub(super) repeated: usize,
    pub(super) seconds: f64,
}

/// One machine between DISCOVER and ACK.
struct Machine {
    number: u32,
    message: Vec<u8>,
    wanted: u8,
    tries: usize,
    due: Instant,
}

impl Machines {
    /// Behind the cable of this name.
    pub(super) fn on(cable: &str) -> io::Result<Machines> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
        socket.bind_device(Some(cable.as_bytes()))?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 68)).into())?;
        socket.set_broadcast(true)?;
        socket.set_nonblocking(true)?;
        sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES)?;
        Ok(Machines {
            socket: socket.into(),
            begun: 0,
        })
    }

    /// Boots these machines, so many at a time, until each has its address or
    /// has given up.
    pub(super) fn boot(
        &mut self,
        mut numbers: impl Iterator<Item = u32>,
        at_once: usize,
    ) -> io::Result<Outcome> {
        let begun = Instant::now();
        let mut outcome = Outcome::default();
        let mut booting: HashMap<u32, Machine> = HashMap::new();
        let mut looked = begun;
        let mut buffer = [0; 2048];
        loop {
            while booting.len() < at_once {
                let Some(number) = numbers.next() else { break };
                self.begun += 1;
                let xid = self.begun;
                let machine = Machine {
                    number,
                    message: message(number, xid, DISCOVER, None),
                    wanted: OFFER,
                    tries: 0,
                    due: Instant::now() + patience(number, 0),
                };
                self.say(&machine.message)?;
                booting.insert(xid, machine);
                // Answers are taken in between: nobody else's socket is
                // this one.
                self.hear(&mut buffer, &mut booting, &mut outcome)?;
            }
            if booting.is_empty() {
                break;
            }
            let wait = Timespec::try_from(Duration::from_millis(20)).map_err(io::Error::other)?;
            poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&wait))?;
            self.hear(&mut buffer, &mut booting, &mut outcome)?;
            let now = Instant::now();
            if now.duration_since(looked) >= Duration::from_millis(20) {
                looked = now;
                self.repeat(now, &mut booting, &mut outcome)?;
            }
        }
        outcome.seconds = begun.elapsed().as_secs_f64();
        Ok(outcome)
    }

    fn hear(
        &self,
        buffer: &mut [u8],
        booting: &mut HashMap<u32, Machine>,
        outcome: &mut Outcome,
    ) -> io::Result<()> {
        loop {
            let length = match self.socket.recv(buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let Some(reply) = Reply::parse(&buffer[..length]) else {
                continue;
            };
            let Some(machine) = booting.get_mut(&reply.xid) else {
                continue;
            };
            if reply.kind != machine.wanted {
                continue;
            }
            if reply.kind == OFFER {
                let chosen = Some((reply.address, reply.server));
                machine.message = message(machine.number, reply.xid, REQUEST, chosen);
                machine.wanted = ACK;
                machine.tries = 0;
                machine.due = Instant::now() + patience(machine.number, 0);
                self.say(&machine.message)?;
            } else {
                booting.remove(&reply.xid);
                outcome.bound += 1;
            }
        }
    }

    fn repeat(
        &self,
        now: Instant,
        booting: &mut HashMap<u32, Machine>,
        outcome: &mut Outcome,
    ) -> io::Result<()> {
        let mut given_up = Vec::new();
        for (xid, machine) in booting.iter_mut() {
            if machine.due > now {
                continue;
            }
            machine.tries += 1;
            if machine.tries == PATIENCE.len() {
                given_up.push(*xid);
                continue;
            }
            machine.due = now + patience(machine.number, machine.tries);
            outcome.repeated += 1;
            self.say(&machine.message)?;
        }
        outcome.failed += given_up.len();
        for xid in given_up {
            booting.remove(&xid);
        }
        Ok(())
    }

    /// Broadcasts; what the cable does not take is lost, as on any LAN.
    fn say(&self, message: &[u8]) -> io::Result<()> {
        match self.socket.send_to(message, (Ipv4Addr::BROADCAST, 67)) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }
}

/// How long a machine waits at its try of this number; each its own time.
fn patience(machine: u32, tries: usize) -> Duration {
    let [share, ..] = machine.wrapping_mul(2_654_435_761).to_be_bytes();
    PATIENCE[tries].mul_f64(0.75 + f64::from(share) / 512.0)
}

/// What UEFI PXE firmware says; a REQUEST takes the address and the server
/// that were offered.
fn message(number: u32, xid: u32, kind: u8, chosen: Option<(Ipv4Addr, Ipv4Addr)>) -> Vec<u8> {
    let mut bytes = vec![0; 236];
    bytes[0] = 1; // BOOTREQUEST
    bytes[1] = 1; // Ethernet
    bytes[2] = 6;
    bytes[4..8].copy_from_slice(&xid.to_be_bytes());
    bytes[10] = 0x80; // answers by broadcast
    let [a, b, c, d] = number.to_be_bytes();
    bytes[28..34].copy_from_slice(&[0x52, 0x54, a, b, c, d]);
    bytes.extend([99, 130, 83, 99]);
    let mut option = |code: u8, value: &[u8]| {
        bytes.push(code);
        bytes.push(u8::try_from(value.len()).unwrap_or(0)); // they are all short
        bytes.extend_from_slice(value);
    };
    option(53, &[kind]);
    option(57, &[5, 0xc0]); // 1472 bytes at most
    if let Some((address, server)) = chosen {
        option(50, &address.octets());
        option(54, &server.octets());
    }
    option(
        55,
        &[
            1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59,
            60, 66, 67, 97, 128, 129, 130, 131, 132, 133, 134, 135,
        ],
    );
    let mut uuid = [0x42; 17];
    uuid[0] = 0;
    uuid[1..5].copy_from_slice(&number.to_be_bytes());
    option(97, &uuid);
    option(94, &[1, 3, 16]);
    option(93, &[0, 7]); // UEFI x64
    option(60, b"PXEClient:Arch:00007:UNDI:003016");
    bytes.push(255);
    bytes
}

/// What a machine reads of an answer.
struct Reply {
    xid: u32,
    kind: u8,
    address: Ipv4Addr,
    server: Ipv4Addr,
}

impl Reply {
    fn parse(bytes: &[u8]) -> Option<Reply> {
        let field = |at: usize| -> Option<[u8; 4]> { bytes.get(at..at + 4)?.try_into().ok() };
        if bytes.first() != Some(&2) {
            return None;
        }
        let mut reply = Reply {
            xid: u32::from_be_bytes(field(4)?),
            kind: 0,
            address: Ipv4Addr::from(field(16)?),
            server: Ipv4Addr::UNSPECIFIED,
        };
        let mut rest = bytes.get(240..)?;
        loop {
            match rest {
                [0, after @ ..] => rest = after,
                [255, ..] | [] => return (reply.kind != 0).then_some(reply),
                [code, length, after @ ..] => {
                    let (value, after) = after.split_at_checked(usize::from(*length))?;
                    match (code, value) {
                        (53, &[kind]) => reply.kind = kind,
                        (54, &[a, b, c, d]) => reply.server = Ipv4Addr::new(a, b, c, d),
                        _ => {}
                    }
                    rest = after;
                }
                [_] => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_is_read_and_a_cut_one_is_not() {
        let mut offer = message(7, 0x0102_0304, OFFER, None);
        offer[0] = 2;
        offer[16..20].copy_from_slice(&[10, 70, 32, 1]);
        offer.pop();
        offer.extend([54, 4, 10, 70, 0, 1, 255]);
        let reply = Reply::parse(&offer).unwrap();
        assert_eq!((reply.xid, reply.kind), (0x0102_0304, OFFER));
        assert_eq!(reply.address, Ipv4Addr::new(10, 70, 32, 1));
        assert_eq!(reply.server, Ipv4Addr::new(10, 70, 0, 1));
        assert!(Reply::parse(&offer[..offer.len() - 3]).is_none());
        assert!(Reply::parse(&offer[..100]).is_none());
    }
}
