//! Ranges of a disc over HTTP to 100 readers at once: ours beside nginx.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::subject::{Place, Running, Subject};
use super::usage::Usage;
use super::{Cell, Found, beside};

const DISC_BYTES: u64 = 256 << 20;
const RANGE_BYTES: u64 = 64 << 10;
const READERS: u8 = 100;
/// Ranges each reads over its one connection.
const RANGES: u64 = 100;
/// How often a server that starts is asked whether it is there, 50 ms apart.
const STARTS: u32 = 400;
const SUBJECTS: [Subject; 2] = [Subject::Nginx, Subject::Ours];

/// Measures `rounds` readings from each.
pub(super) fn ranges(place: &Place, rounds: usize, found: &mut Found) -> io::Result<()> {
    let files = place.home.join("files");
    std::fs::create_dir_all(&files)?;
    let mut disc = File::create(files.join("disc.iso"))?;
    for range in 0..DISC_BYTES / RANGE_BYTES {
        let words = (0..RANGE_BYTES / 8).flat_map(|word| (range << 32 | word).to_be_bytes());
        disc.write_all(&words.collect::<Vec<u8>>())?;
    }
    drop(disc);
    let mut running = Vec::new();
    for (number, subject) in (75..).zip(SUBJECTS) {
        let server = Running::start(subject, place, number)?;
        await_start(&server, subject)?;
        running.push(server);
    }
    let mut per_cpu: [Vec<f64>; 2] = Default::default();
    for round in 0..rounds {
        for at in 0..SUBJECTS.len() {
            let number = (at + round) % SUBJECTS.len();
            let before = Usage::of(running[number].pid)?;
            let begun = Instant::now();
            read_all(&running[number])?;
            let seconds = begun.elapsed().as_secs_f64();
            let cpu = before.seconds_since()?;
            let mib = ((u64::from(READERS) * RANGES * RANGE_BYTES) >> 20) as f64;
            eprintln!(
                "round {}: {}: {:.0} MiB per CPU second, {:.0} MiB/s",
                round + 1,
                SUBJECTS[number].name(),
                mib / cpu,
                mib / seconds
            );
            per_cpu[number].push(mib / cpu);
        }
    }
    found.cell(Cell {
        name: "ranges of 64 KiB of a disc, 100 readers at once",
        against: SUBJECTS[0].name(),
        unit: "MiB per CPU second",
        goal: 0.9,
        rounds: beside(&per_cpu[0], &per_cpu[1]),
    });
    Ok(())
}

fn await_start(server: &Running, subject: Subject) -> io::Result<()> {
    for _ in 0..STARTS {
        if Reader::connect(server, 1).is_ok() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    Err(io::Error::other(format!(
        "{} does not serve the disc:\n{}",
        subject.name(),
        server.last_words()
    )))
}

/// All readers, each a machine with an address of its own, at once.
fn read_all(server: &Running) -> io::Result<()> {
    let mut readers = Vec::new();
    for number in 1..=READERS {
        readers.push(Reader::connect(server, number)?);
    }
    thread::scope(|scope| {
        let reading: Vec<_> = readers
            .into_iter()
            .zip(1..)
            .map(|(mut reader, number)| {
                scope.spawn(move || (0..RANGES).try_for_each(|step| reader.read(number, step)))
            })
            .collect();
        for reader in reading {
            let read = reader.join();
            read.map_err(|_| io::Error::other("a reader broke"))??;
        }
        Ok(())
    })
}

/// A connection that is kept.
struct Reader {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Reader {
    fn connect(server: &Running, number: u8) -> io::Result<Reader> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((server.lan.client(number), 0)).into())?;
        socket.connect(&SocketAddr::from((server.lan.server(), 80)).into())?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Reader {
            stream,
            buffer: vec![0; 128 << 10],
        })
    }

    /// Reads one range, anywhere on the disc, and looks whether it is that.
    fn read(&mut self, reader: u64, step: u64) -> io::Result<()> {
        let place = (reader * RANGES + step).wrapping_mul(2_654_435_761) >> 4;
        let range = place % (DISC_BYTES / RANGE_BYTES);
        let (first, last) = (range * RANGE_BYTES, (range + 1) * RANGE_BYTES - 1);
        let request = format!(
            "GET /files/disc.iso HTTP/1.1\r\nHost: server\r\nRange: bytes={first}-{last}\r\n\r\n"
        );
        self.stream.write_all(request.as_bytes())?;
        let mut filled = 0;
        let body = loop {
            let length = self.stream.read(&mut self.buffer[filled..])?;
            if length == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            filled += length;
            let seen = &self.buffer[..filled];
            if let Some(end) = seen.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
        };
        if !self.buffer.starts_with(b"HTTP/1.1 206") {
            let said = String::from_utf8_lossy(&self.buffer[..body]).into_owned();
            return Err(io::Error::other(said));
        }
        let length = usize::try_from(RANGE_BYTES).map_err(io::Error::other)?;
        self.stream
            .read_exact(&mut self.buffer[filled..body + length])?;
        let is_right = self.buffer[body..body + 8] == (range << 32).to_be_bytes();
        match is_right {
            true => Ok(()),
            false => Err(io::Error::other("another range than was asked for")),
        }
    }
}
