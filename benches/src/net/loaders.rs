//! A loader of 1 MiB over TFTP to a client that does as EDK2 does, 2 ms away:
//! ours beside dnsmasq and tftpd-hpa.
//!
//! EDK2 asks for the size, aborts, and asks again from another port for
//! blocks of 1468 bytes in windows of 4. It acknowledges a window at its end,
//! and says what it has for every block that is not the next
//! (`Mtftp4RrqHandleData`).

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::delay::{DelayedSocket, Way};
use super::subject::{Place, Running, Subject};
use super::{Cell, Found, beside};

const LOADER_BYTES: usize = 1 << 20;
const NAME: &str = "loader.efi";
const DELAY: Duration = Duration::from_millis(2);
const BLOCK_BYTES: usize = 1468;
const WINDOW_BLOCKS: u64 = 4;
/// How long EDK2 waits before it says its last words again.
const PATIENCE: Duration = Duration::from_secs(4);
const TRIES: u32 = 6;
/// How often a server that starts is asked whether it is there.
const STARTS: u32 = 200;
const SUBJECTS: [Subject; 3] = [Subject::DnsmasqTftp, Subject::TftpdHpa, Subject::Ours];
/// Loads with losses per round: one alone is a matter of luck.
const LOSSY_LOADS: u64 = 3;

/// Measures `rounds` loads from each, and ours with losses.
pub(super) fn loaders(place: &Place, rounds: usize, found: &mut Found) -> io::Result<()> {
    let files = place.home.join("files");
    std::fs::create_dir_all(&files)?;
    let loader: Vec<u8> = (0..LOADER_BYTES as u64 / 8)
        .flat_map(|n| (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes())
        .collect();
    std::fs::write(files.join(NAME), &loader)?;
    let mut running = Vec::new();
    for (number, subject) in (71..).zip(SUBJECTS) {
        let server = Running::start(subject, place, number)?;
        await_start(&server, subject)?;
        running.push(server);
    }
    let clear = Way {
        delay: DELAY,
        losses: None,
    };
    let mut rates: [Vec<f64>; 3] = Default::default();
    let mut lossy_rates = Vec::new();
    for round in 0..rounds {
        for at in 0..SUBJECTS.len() {
            let number = (at + round) % SUBJECTS.len();
            let seconds = load(&running[number], clear, &loader)?;
            eprintln!(
                "round {}: {}: {seconds:.2} s",
                round + 1,
                SUBJECTS[number].name()
            );
            rates[number].push(LOADER_BYTES as f64 / 1024.0 / seconds);
        }
        let mut seconds = 0.0;
        for number in 0..LOSSY_LOADS {
            let losses = (round as u64 * LOSSY_LOADS + number + 1) * 7919;
            let lossy = Way {
                losses: Some(losses),
                ..clear
            };
            seconds += load(&running[2], lossy, &loader)? / LOSSY_LOADS as f64;
        }
        eprintln!("round {}: diskless, 1% lost: {seconds:.2} s", round + 1);
        lossy_rates.push(LOADER_BYTES as f64 / 1024.0 / seconds);
    }
    for number in 0..2 {
        found.cell(Cell {
            name: "loader of 1 MiB to EDK2, 2 ms away",
            against: SUBJECTS[number].name(),
            unit: "KiB/s",
            goal: 3.0,
            rounds: beside(&rates[number], &rates[2]),
        });
    }
    found.cell(Cell {
        name: "the same with 1% of the packets lost",
        against: "ours without",
        unit: "KiB/s",
        goal: 0.5,
        rounds: beside(&rates[2], &lossy_rates),
    });
    Ok(())
}

fn await_start(server: &Running, subject: Subject) -> io::Result<()> {
    let way = Way {
        delay: Duration::ZERO,
        losses: None,
    };
    for _ in 0..STARTS {
        let mut socket = DelayedSocket::bind(Ipv4Addr::UNSPECIFIED, way)?;
        let port = SocketAddr::from((server.lan.server(), 69));
        socket.send(&request(&[("tsize", "0")]), port);
        let deadline = Instant::now() + Duration::from_millis(100);
        // Nobody at the port yet is an error of the socket, too.
        if let Ok(Some((answer, from))) = socket.receive(deadline)
            && answer.starts_with(&[0, 6])
        {
            socket.send(ABORT, from);
            let _ = socket.receive(Instant::now());
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(io::Error::other(format!(
        "{} does not serve the loader:\n{}",
        subject.name(),
        server.last_words()
    )))
}

const ABORT: &[u8] = b"\0\x05\0\x08User aborted the transfer\0";

fn request(options: &[(&str, &str)]) -> Vec<u8> {
    let mut datagram = format!("\0\x01{NAME}\0octet\0").into_bytes();
    for (name, value) in options {
        datagram.extend(format!("{name}\0{value}\0").into_bytes());
    }
    datagram
}

/// One load as EDK2 does it, in seconds; what comes is compared.
fn load(server: &Running, way: Way, loader: &[u8]) -> io::Result<f64> {
    let begun = Instant::now();
    let port = SocketAddr::from((server.lan.server(), 69));
    let size = size(port, way)?;
    if size != loader.len() {
        return Err(io::Error::other(format!("a loader of {size} bytes")));
    }
    let mut client = Client {
        socket: DelayedSocket::bind(Ipv4Addr::UNSPECIFIED, way)?,
        server: port,
        received: Vec::with_capacity(size),
        block_bytes: 512,
        window_blocks: 1,
        in_order: 0,
        acked: 0,
        last_words: Vec::new(),
    };
    client.run()?;
    let seconds = begun.elapsed().as_secs_f64();
    match client.received == loader {
        true => Ok(seconds),
        false => Err(io::Error::other("another loader than there is")),
    }
}

/// The size probe: the OACK's tsize, and the abort.
fn size(port: SocketAddr, way: Way) -> io::Result<usize> {
    let mut socket = DelayedSocket::bind(Ipv4Addr::UNSPECIFIED, way)?;
    let options = [("tsize", "0"), ("blksize", "1468"), ("windowsize", "4")];
    socket.send(&request(&options), port);
    let Some((answer, from)) = socket.receive(Instant::now() + PATIENCE)? else {
        return Err(io::Error::other("no answer to the size probe"));
    };
    socket.send(ABORT, from);
    socket.receive(Instant::now() + way.delay)?; // so that it goes out
    let size = option(&answer, "tsize").ok_or_else(|| io::Error::other("no size"))?;
    usize::try_from(size).map_err(io::Error::other)
}

/// A number of an OACK.
fn option(datagram: &[u8], name: &str) -> Option<u64> {
    let words: Vec<&[u8]> = datagram.get(2..)?.split(|&byte| byte == 0).collect();
    let pair = words.chunks(2).find(|pair| pair[0] == name.as_bytes())?;
    std::str::from_utf8(pair.get(1)?).ok()?.parse().ok()
}

/// The second step.
struct Client {
    socket: DelayedSocket,
    /// Its port, then the transfer's.
    server: SocketAddr,
    received: Vec<u8>,
    block_bytes: usize,
    window_blocks: u64,
    /// Blocks received in order.
    in_order: u64,
    /// Where the window acknowledged last ended.
    acked: u64,
    last_words: Vec<u8>,
}

impl Client {
    fn run(&mut self) -> io::Result<()> {
        let (block, window) = (BLOCK_BYTES.to_string(), WINDOW_BLOCKS.to_string());
        self.say(request(&[("blksize", &block), ("windowsize", &window)]));
        let mut tries = 0;
        let mut deadline = Instant::now() + PATIENCE;
        loop {
            let Some((datagram, from)) = self.socket.receive(deadline)? else {
                tries += 1;
                if tries == TRIES {
                    return Err(io::Error::other("the server fell silent"));
                }
                self.say(self.last_words.clone());
                deadline = Instant::now() + PATIENCE;
                continue;
            };
            let before = self.in_order;
            match datagram.as_slice() {
                [0, 6, ..] if self.in_order == 0 => {
                    self.server = from;
                    let block_bytes = option(&datagram, "blksize").unwrap_or(512);
                    self.block_bytes = usize::try_from(block_bytes).map_err(io::Error::other)?;
                    self.window_blocks = option(&datagram, "windowsize").unwrap_or(1);
                    self.say(ack(0));
                }
                [0, 3, high, low, payload @ ..] => {
                    let block = u16::from_be_bytes([*high, *low]);
                    if self.take(block, payload) {
                        // The last ACK goes out, too.
                        self.socket.receive(Instant::now() + DELAY)?;
                        return Ok(());
                    }
                }
                [0, 5, ..] => return Err(io::Error::other("the server gave up")),
                _ => {}
            }
            if self.in_order > before {
                tries = 0;
                deadline = Instant::now() + PATIENCE;
            }
        }
    }

    /// Takes a block; true when it was the last.
    fn take(&mut self, block: u16, payload: &[u8]) -> bool {
        let [.., high, low] = (self.in_order + 1).to_be_bytes();
        if block != u16::from_be_bytes([high, low]) {
            self.say(ack(self.in_order));
            return false;
        }
        self.in_order += 1;
        self.received.extend_from_slice(payload);
        let is_last = payload.len() < self.block_bytes;
        if is_last || self.in_order == self.acked + self.window_blocks {
            self.acked = self.in_order;
            self.say(ack(self.in_order));
        }
        is_last
    }

    fn say(&mut self, words: Vec<u8>) {
        self.socket.send(&words, self.server);
        self.last_words = words;
    }
}

fn ack(block: u64) -> Vec<u8> {
    let [.., high, low] = block.to_be_bytes();
    vec![0, 4, high, low]
}
