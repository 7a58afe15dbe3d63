//! A pipelined iSCSI initiator that costs little: plain sockets, headers made
//! beforehand, everything received before one vectored send.
//!
//! Knows of RFC 7143 what two honest targets need, and checks status and
//! length of every answer; what it reads it does not look at.

use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const BHS_BYTES: usize = 48;
const BLOCK_BYTES: u32 = 512;
/// Longest data segment we take.
const MAX_RECV_BYTES: usize = 256 << 10;
/// Longest write of one command.
pub(crate) const MAX_WRITE_BYTES: usize = 1 << 20;
/// A target that says nothing for so long is stuck.
const PATIENCE: Duration = Duration::from_secs(30);

/// Opcodes of RFC 7143 section 11.1.
mod opcode {
    pub(super) const SCSI_COMMAND: u8 = 0x01;
    pub(super) const DATA_OUT: u8 = 0x05;
    pub(super) const NOP_IN: u8 = 0x20;
    pub(super) const SCSI_RESPONSE: u8 = 0x21;
    pub(super) const LOGIN_RESPONSE: u8 = 0x23;
    pub(super) const DATA_IN: u8 = 0x25;
    pub(super) const LOGOUT_RESPONSE: u8 = 0x26;
    pub(super) const R2T: u8 = 0x31;
    pub(super) const ASYNC: u8 = 0x32;
}

type Bhs = [u8; BHS_BYTES];

/// A target's address.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) portal: SocketAddr,
    pub(crate) target: String,
    pub(crate) lun: u8,
}

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// Where the next command goes.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    /// Anywhere, again and again: the state of a generator.
    Random(u64),
    /// Every place once, in a shuffled order; ends with the last.
    Shuffled(Vec<u32>),
}

impl Order {
    /// Every one of `places` once, in an order that `seed` says.
    pub(crate) fn shuffled(places: u32, seed: u64) -> Order {
        let mut order: Vec<u32> = (0..places).collect();
        let mut dice = seed;
        for last in (1..order.len()).rev() {
            order.swap(last, roll(&mut dice, last + 1));
        }
        Order::Shuffled(order)
    }

    /// The next place below `places`.
    pub(crate) fn next(&mut self, places: u32) -> Option<u32> {
        match self {
            Order::Random(dice) => {
                let places = usize::try_from(places).unwrap_or(usize::MAX);
                u32::try_from(roll(dice, places)).ok()
            }
            Order::Shuffled(order) => order.pop(),
        }
    }
}

/// A number below `below`, good enough to spread accesses.
fn roll(dice: &mut u64, below: usize) -> usize {
    *dice = dice
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    usize::try_from(*dice >> 33).unwrap_or(0) % below.max(1)
}

/// What is asked for, and how much at a time.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) direction: Direction,
    pub(crate) bytes: u32,
    pub(crate) depth: u32,
    pub(crate) order: Order,
    /// Ends at this moment, or
    pub(crate) until: Option<Instant>,
    /// after so many commands.
    pub(crate) count: Option<u64>,
    /// New commands only once all of the last batch were answered: what the
    /// target receives at once is then the same in every run.
    pub(crate) in_step: bool,
}

/// What came of a load.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) operations: u64,
    pub(crate) seconds: f64,
    /// Of each command, in nanoseconds.
    pub(crate) latencies: Vec<u32>,
}

/// What was agreed on.
#[derive(Clone, Copy, Debug)]
struct Agreed {
    max_send_bytes: usize,
    initial_r2t: bool,
    immediate_data: bool,
    first_burst_bytes: usize,
}

/// A session of one connection.
pub(crate) struct Initiator {
    stream: TcpStream,
    lun: u8,
    agreed: Agreed,
    cmd_sn: u32,
    exp_stat_sn: u32,
    size_bytes: u64,
}

impl Initiator {
    /// Connects and logs in as `name`.
    pub(crate) fn log_in(address: &Address, name: &str) -> io::Result<Initiator> {
        let stream = TcpStream::connect(address.portal)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut initiator = Initiator {
            stream,
            lun: address.lun,
            agreed: Agreed {
                max_send_bytes: 8192,
                initial_r2t: true,
                immediate_data: true,
                first_burst_bytes: 65536,
            },
            cmd_sn: 1,
            exp_stat_sn: 0,
            size_bytes: 0,
        };
        initiator.negotiate(&address.target, name)?;
        Ok(initiator)
    }

    /// Asks for the capacity, past the unit attentions of a new session.
    pub(crate) fn prepare(&mut self) -> io::Result<()> {
        for _ in 0..8 {
            let mut bhs = self.command(Direction::Read, 8);
            bhs[32] = 0x25; // READ CAPACITY(10)
            self.stream.write_all(&bhs)?;
            // tgt sends data, of zeros, with a command that fails, too.
            let mut data = Vec::new();
            let status = loop {
                let (answer, more) = self.pdu()?;
                match answer[0] & 0x3f {
                    opcode::DATA_IN => data = more,
                    opcode::SCSI_RESPONSE => break answer[3],
                    _ => {}
                }
                if answer[0] & 0x3f == opcode::DATA_IN && answer[1] & 1 != 0 {
                    break answer[3];
                }
            };
            if let (0, Some(last)) = (status, data.first_chunk()) {
                let last = u32::from_be_bytes(*last);
                self.size_bytes = (u64::from(last) + 1) * u64::from(BLOCK_BYTES);
                return Ok(());
            }
        }
        Err(strange("the unit does not tell its capacity"))
    }

    /// Runs a load to its end.
    pub(crate) fn run(&mut self, load: &Load) -> io::Result<Outcome> {
        Run::new(self, load.clone())?.go()
    }

    /// Waits until the target closes, having answered the logout.
    pub(crate) fn log_out(mut self) -> io::Result<()> {
        let mut bhs = [0; BHS_BYTES];
        bhs[0] = 0x46; // immediate, Logout Request
        bhs[1] = 0x80; // close the session
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        bhs[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
        self.stream.write_all(&bhs)?;
        loop {
            if self.pdu()?.0[0] & 0x3f == opcode::LOGOUT_RESPONSE {
                return Ok(());
            }
        }
    }

    fn negotiate(&mut self, target: &str, name: &str) -> io::Result<()> {
        let text = format!(
            "InitiatorName={name}\0TargetName={target}\0SessionType=Normal\0AuthMethod=None\0\
             HeaderDigest=None\0DataDigest=None\0InitialR2T=No\0ImmediateData=Yes\0\
             MaxRecvDataSegmentLength={MAX_RECV_BYTES}\0FirstBurstLength=262144\0\
             MaxBurstLength=1048576\0MaxConnections=1\0MaxOutstandingR2T=1\0\
             DefaultTime2Wait=2\0DefaultTime2Retain=0\0ErrorRecoveryLevel=0\0"
        );
        let mut text = text.into_bytes();
        // Straight to the operational stage; the second round asks for nothing.
        for _ in 0..8 {
            let mut bhs = [0; BHS_BYTES];
            bhs[0] = 0x43; // immediate, Login Request
            bhs[1] = 0x87; // T, operational to full feature
            set_data_bytes(&mut bhs, text.len());
            bhs[8..14].copy_from_slice(&[0x80, 0, 0, 0, 0, isid_of(name)]);
            bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
            bhs[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
            let mut pdu = bhs.to_vec();
            pdu.append(&mut text);
            pdu.resize(pdu.len().next_multiple_of(4), 0);
            self.stream.write_all(&pdu)?;
            let (answer, data) = self.pdu()?;
            if answer[0] & 0x3f != opcode::LOGIN_RESPONSE || answer[36] != 0 {
                return Err(strange(&format!(
                    "login refused with {:02x}{:02x}",
                    answer[36], answer[37]
                )));
            }
            self.heed(&data);
            if answer[1] & 0x83 == 0x83 {
                return Ok(());
            }
        }
        Err(strange("a login without an end"))
    }

    /// Takes in what the target answered or declared.
    fn heed(&mut self, text: &[u8]) {
        let text = String::from_utf8_lossy(text);
        for (key, value) in text.split('\0').filter_map(|pair| pair.split_once('=')) {
            let number = value.parse::<usize>();
            match (key, number) {
                ("MaxRecvDataSegmentLength", Ok(bytes)) => self.agreed.max_send_bytes = bytes,
                ("FirstBurstLength", Ok(bytes)) => self.agreed.first_burst_bytes = bytes,
                ("InitialR2T", _) => self.agreed.initial_r2t = value == "Yes",
                ("ImmediateData", _) => self.agreed.immediate_data = value == "Yes",
                _ => {}
            }
        }
    }

    /// One PDU, taken for itself.
    fn pdu(&mut self) -> io::Result<(Bhs, Vec<u8>)> {
        let mut bhs = [0; BHS_BYTES];
        self.stream.read_exact(&mut bhs)?;
        let mut data = vec![0; data_bytes(&bhs).next_multiple_of(4)];
        self.stream.read_exact(&mut data)?;
        data.truncate(data_bytes(&bhs));
        self.exp_stat_sn = word(&bhs, 24).wrapping_add(1);
        Ok((bhs, data))
    }

    /// The header of the next command, without its CDB.
    fn command(&mut self, direction: Direction, bytes: u32) -> Bhs {
        let mut bhs = [0; BHS_BYTES];
        bhs[0] = opcode::SCSI_COMMAND;
        bhs[1] = match direction {
            Direction::Read => 0xc1, // final, read, simple
            Direction::Write => 0xa1,
        };
        bhs[9] = self.lun;
        bhs[20..24].copy_from_slice(&bytes.to_be_bytes());
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        bhs[28..32].copy_from_slice(&self.exp_stat_sn.to_be_bytes());
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        bhs
    }
}

/// A load under way.
struct Run<'a> {
    initiator: &'a mut Initiator,
    load: Load,
    places: u32,
    /// When the command of each task tag was sent.
    sent_at: Vec<Instant>,
    free: Vec<u32>,
    issued: u64,
    outcome: Outcome,
    /// Headers on their way, each with so many bytes of `payload` behind it.
    out: Vec<(Bhs, usize)>,
    payload: Vec<u8>,
}

impl<'a> Run<'a> {
    fn new(initiator: &'a mut Initiator, load: Load) -> io::Result<Run<'a>> {
        let places = initiator.size_bytes / u64::from(load.bytes.max(1));
        let Ok(places @ 1..) = u32::try_from(places) else {
            return Err(strange(&format!(
                "a unit of {} bytes",
                initiator.size_bytes
            )));
        };
        Ok(Run {
            places,
            sent_at: vec![Instant::now(); usize::try_from(load.depth).unwrap_or(1)],
            free: (0..load.depth).collect(),
            issued: 0,
            outcome: Outcome {
                latencies: Vec::with_capacity(1 << 20),
                ..Outcome::default()
            },
            out: Vec::new(),
            // Not zeros: nobody may take them for holes.
            payload: (0..MAX_WRITE_BYTES)
                .map(|at| 1 | at.to_le_bytes()[1])
                .collect(),
            initiator,
            load,
        })
    }

    fn go(mut self) -> io::Result<Outcome> {
        let begun = Instant::now();
        let depth = self.free.len();
        let mut buffer = vec![0; MAX_RECV_BYTES];
        let (mut start, mut end) = (0, 0);
        // A header whose data has not all come, and how much is missing.
        let mut begun_pdu: Option<(Bhs, usize)> = None;
        self.issue(begun);
        self.send()?;
        while self.free.len() < depth {
            // A header that is not whole moves to the front.
            buffer.copy_within(start..end, 0);
            end -= start;
            start = 0;
            let got = self.initiator.stream.read(&mut buffer[end..])?;
            if got == 0 {
                return Err(strange("the target has closed the connection"));
            }
            end += got;
            let now = Instant::now();
            loop {
                let (bhs, missing) = match begun_pdu.take() {
                    Some(pdu) => pdu,
                    None => {
                        let Some(bhs) = buffer[start..end].first_chunk::<BHS_BYTES>() else {
                            break;
                        };
                        start += BHS_BYTES;
                        (*bhs, data_bytes(bhs).next_multiple_of(4))
                    }
                };
                let come = missing.min(end - start);
                start += come;
                if come < missing {
                    begun_pdu = Some((bhs, missing - come));
                    break;
                }
                self.take(&bhs, now)?;
            }
            if !self.load.in_step || self.free.len() == depth {
                self.issue(now);
            }
            self.send()?;
        }
        self.outcome.seconds = begun.elapsed().as_secs_f64();
        Ok(self.outcome)
    }

    /// Fills the pipeline.
    fn issue(&mut self, now: Instant) {
        if self.load.until.is_some_and(|until| now >= until) {
            return;
        }
        while let Some(tag) = self.free.pop() {
            let is_enough = self.load.count.is_some_and(|count| self.issued >= count);
            let place = match is_enough {
                true => None,
                false => self.load.order.next(self.places),
            };
            let Some(place) = place else {
                self.free.push(tag);
                return;
            };
            self.issued += 1;
            self.sent_at[index(tag)] = now;
            self.push_command(tag, place);
        }
    }

    fn push_command(&mut self, tag: u32, place: u32) {
        let bytes = self.load.bytes;
        let blocks = bytes / BLOCK_BYTES;
        let mut bhs = self.initiator.command(self.load.direction, bytes);
        bhs[16..20].copy_from_slice(&tag.to_be_bytes());
        bhs[32] = match self.load.direction {
            Direction::Read => 0x28, // READ(10)
            Direction::Write => 0x2a,
        };
        bhs[34..38].copy_from_slice(&(place * blocks).to_be_bytes());
        bhs[39..41].copy_from_slice(&blocks.to_be_bytes()[2..]);
        if self.load.direction == Direction::Read {
            self.out.push((bhs, 0));
            return;
        }
        let total = index(bytes);
        let agreed = self.initiator.agreed;
        let first_burst = agreed.first_burst_bytes.min(total);
        let immediate = match agreed.immediate_data {
            true => agreed.max_send_bytes.min(first_burst),
            false => 0,
        };
        let unsolicited = match agreed.initial_r2t {
            true => immediate,
            false => first_burst,
        };
        if immediate < unsolicited {
            bhs[1] &= 0x7f; // more follows unasked
        }
        set_data_bytes(&mut bhs, immediate);
        self.out.push((bhs, immediate));
        self.push_data(tag, u32::MAX, immediate..unsolicited);
    }

    /// Data-Out of a burst, cut as the target wants it.
    fn push_data(&mut self, tag: u32, ttt: u32, burst: std::ops::Range<usize>) {
        let mut at = burst.start;
        let mut data_sn: u32 = 0;
        while at < burst.end {
            let bytes = (burst.end - at).min(self.initiator.agreed.max_send_bytes);
            let mut bhs = [0; BHS_BYTES];
            bhs[0] = opcode::DATA_OUT;
            bhs[1] = if at + bytes == burst.end { 0x80 } else { 0 };
            set_data_bytes(&mut bhs, bytes);
            bhs[9] = self.initiator.lun;
            bhs[16..20].copy_from_slice(&tag.to_be_bytes());
            bhs[20..24].copy_from_slice(&ttt.to_be_bytes());
            bhs[28..32].copy_from_slice(&self.initiator.exp_stat_sn.to_be_bytes());
            bhs[36..40].copy_from_slice(&data_sn.to_be_bytes());
            bhs[40..44].copy_from_slice(&u32::try_from(at).unwrap_or(u32::MAX).to_be_bytes());
            self.out.push((bhs, bytes));
            at += bytes;
            data_sn += 1;
        }
    }

    /// Takes one header.
    fn take(&mut self, bhs: &Bhs, now: Instant) -> io::Result<()> {
        let tag = word(bhs, 16);
        match bhs[0] & 0x3f {
            opcode::DATA_IN if bhs[1] & 1 == 0 => Ok(()),
            opcode::DATA_IN | opcode::SCSI_RESPONSE => {
                let status = bhs[3];
                let residual = bhs[1] & 0x06;
                if status != 0 || residual != 0 || index(tag) >= self.sent_at.len() {
                    return Err(strange(&format!("a command failed, status {status:02x}")));
                }
                self.initiator.exp_stat_sn = word(bhs, 24).wrapping_add(1);
                let latency = now.duration_since(self.sent_at[index(tag)]).as_nanos();
                self.outcome.operations += 1;
                self.outcome
                    .latencies
                    .push(u32::try_from(latency).unwrap_or(u32::MAX));
                self.free.push(tag);
                Ok(())
            }
            opcode::R2T => {
                let start = index(word(bhs, 40));
                let end = start + index(word(bhs, 44));
                self.push_data(tag, word(bhs, 20), start..end.min(MAX_WRITE_BYTES));
                Ok(())
            }
            // A ping that wants an answer gets none: a run is short.
            opcode::NOP_IN | opcode::ASYNC => Ok(()),
            other => Err(strange(&format!("a PDU with opcode {other:02x}"))),
        }
    }

    fn send(&mut self) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        if self.load.direction == Direction::Read {
            let bytes: Vec<u8> = self.out.drain(..).flat_map(|(bhs, _)| bhs).collect();
            return self.initiator.stream.write_all(&bytes);
        }
        if self.load.in_step {
            let parts = self
                .out
                .iter()
                .flat_map(|(bhs, bytes)| [&bhs[..], &self.payload[..*bytes]]);
            let bytes = parts.collect::<Vec<_>>().concat();
            self.out.clear();
            return self.initiator.stream.write_all(&bytes);
        }
        // One send for each PDU that carries data, as Linux's initiator and
        // libiscsi do.
        for (bhs, bytes) in &self.out {
            let mut slices = [IoSlice::new(bhs), IoSlice::new(&self.payload[..*bytes])];
            let mut rest = &mut slices[..];
            while !rest.is_empty() {
                let sent = self.initiator.stream.write_vectored(rest)?;
                IoSlice::advance_slices(&mut rest, sent);
            }
        }
        self.out.clear();
        Ok(())
    }
}

/// Sessions of one initiator name differ in nothing; of several, in this.
fn isid_of(name: &str) -> u8 {
    name.bytes().fold(0, u8::wrapping_add)
}

fn set_data_bytes(bhs: &mut Bhs, bytes: usize) {
    let bytes = u32::try_from(bytes).unwrap_or(0).to_be_bytes();
    bhs[5..8].copy_from_slice(&bytes[1..]);
}

fn data_bytes(bhs: &Bhs) -> usize {
    index(u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]))
}

fn word(bhs: &Bhs, at: usize) -> u32 {
    u32::from_be_bytes([bhs[at], bhs[at + 1], bhs[at + 2], bhs[at + 3]])
}

fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn strange(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shuffled_order_visits_every_place_once() {
        let mut order = Order::shuffled(100, 7);
        let mut visited: Vec<u32> = std::iter::from_fn(|| order.next(100)).collect();
        assert_ne!(visited, (0..100).rev().collect::<Vec<_>>());
        visited.sort_unstable();
        assert_eq!(visited, (0..100).collect::<Vec<_>>());
    }
}
