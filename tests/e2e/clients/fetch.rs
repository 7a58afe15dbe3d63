//! How the clients fetch what they were told of: TFTP (RFC 1350, 2347, 2348,
//! 2349, 7440) and HTTP/1.1, in each one's own manner.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

/// How long a client waits for a packet before it asks again.
const PATIENCE: Duration = Duration::from_secs(4);
/// How often it asks.
const TRIES: u32 = 4;
/// The longest file there is in these tests.
const FILE_MAX_BYTES: usize = 8 << 20;

const RRQ: u8 = 1;
const DATA: u8 = 3;
const ACK: u8 = 4;
const ERROR: u8 = 5;
const OACK: u8 = 6;

/// A client's way of asking for a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// Asks for the size first, and breaks that off.
    pub(crate) asks_size_first: bool,
    /// Options of the request, in order.
    pub(crate) options: &'static [(&'static str, &'static str)],
}

/// EDK2 of 2022: as recorded (`ovmf2022-pxe-tftp-head.pcap`).
pub(crate) const EDK2: Manner = Manner {
    asks_size_first: true,
    options: &[("blksize", "1468"), ("windowsize", "4")],
};
/// Intel's boot agent, and other ROMs.
pub(crate) const ROM: Manner = Manner {
    asks_size_first: true,
    options: &[("blksize", "1456")],
};
/// iPXE of 2019: as recorded (`ipxe2019-bios-dhcp-tftp-iscsi-tcp3361.pcap`).
pub(crate) const IPXE: Manner = Manner {
    asks_size_first: false,
    options: &[("blksize", "1432"), ("tsize", "0")],
};
/// The boot ROM of a Raspberry Pi, and U-Boot without options.
pub(crate) const PLAIN: Manner = Manner {
    asks_size_first: false,
    options: &[],
};

/// What TFTP answered.
#[derive(Debug)]
pub(crate) enum Answer {
    File(Vec<u8>),
    /// RFC 1350 "Error Codes".
    Refused(u16),
}

impl Answer {
    /// The file, which must be there.
    pub(crate) fn file(self) -> Result<Vec<u8>> {
        match self {
            Answer::File(bytes) => Ok(bytes),
            Answer::Refused(code) => bail!("TFTP error {code}"),
        }
    }
}

/// Fetches a file by TFTP.
pub(crate) fn tftp(server: Ipv4Addr, name: &str, manner: Manner) -> Result<Answer> {
    let fetched = || -> Result<Answer> {
        let mut said = None;
        if manner.asks_size_first {
            let socket = socket()?;
            ask(
                &socket,
                server,
                name,
                &[("tsize", "0"), ("blksize", "1468")],
            )?;
            let (packet, from) = reply(&socket, server)?;
            if packet[1] == ERROR {
                return Ok(Answer::Refused(code(&packet)));
            }
            let size = option(&packet, "tsize").context("the size was not answered")?;
            said = Some(size.parse::<usize>()?);
            socket.send_to(&[0, ERROR, 0, 8, b'n', b'o', 0], from)?;
        }
        let socket = socket()?;
        ask(&socket, server, name, manner.options)?;
        let answer = receive(&socket, server)?;
        if let (Answer::File(bytes), Some(said)) = (&answer, said) {
            let length = bytes.len();
            ensure!(
                length == said,
                "{length} bytes came of the {said} that were said"
            );
        }
        Ok(answer)
    };
    fetched().with_context(|| format!("fetching {name:?} by TFTP from {server}"))
}

fn socket() -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn ask(socket: &UdpSocket, server: Ipv4Addr, name: &str, options: &[(&str, &str)]) -> Result<()> {
    let mut packet = vec![0, RRQ];
    let words = [(name, "octet")].into_iter().chain(options.iter().copied());
    for (word, value) in words {
        for text in [word, value] {
            packet.extend(text.as_bytes());
            packet.push(0);
        }
    }
    socket.send_to(&packet, (server, 69))?;
    Ok(())
}

fn reply(socket: &UdpSocket, server: Ipv4Addr) -> Result<(Vec<u8>, SocketAddr)> {
    let mut buffer = [0; 65_536];
    let (length, from) = socket.recv_from(&mut buffer).context("no answer")?;
    ensure!(from.ip() == server, "an answer from {from}");
    ensure!(length >= 4, "a packet of {length} bytes");
    Ok((buffer[..length].to_vec(), from))
}

fn receive(socket: &UdpSocket, server: Ipv4Addr) -> Result<Answer> {
    let (mut block_bytes, mut window) = (512, 1_u16);
    let (mut file, mut expected, mut since_ack) = (Vec::new(), 1_u16, 0);
    let mut peer = None;
    let mut tries = 0;
    loop {
        let (packet, from) = match reply(socket, server) {
            Ok(came) => came,
            Err(_) if peer.is_some() && tries < TRIES => {
                tries += 1;
                acknowledge(socket, expected.wrapping_sub(1), peer)?;
                continue;
            }
            Err(error) => return Err(error),
        };
        peer = Some(from);
        let number = code(&packet);
        match packet[1] {
            ERROR => return Ok(Answer::Refused(number)),
            OACK => {
                let value = |name| option(&packet, name).and_then(|text| text.parse().ok());
                block_bytes = value("blksize").unwrap_or(block_bytes);
                window =
                    value("windowsize").map_or(window, |w: usize| u16::try_from(w).unwrap_or(1));
                acknowledge(socket, 0, peer)?;
            }
            DATA if number == expected => {
                file.extend(&packet[4..]);
                ensure!(file.len() <= FILE_MAX_BYTES, "it does not end");
                expected = expected.wrapping_add(1);
                since_ack += 1;
                let is_last = packet.len() - 4 < block_bytes;
                if is_last || since_ack >= window {
                    acknowledge(socket, number, peer)?;
                    since_ack = 0;
                }
                if is_last {
                    return Ok(Answer::File(file));
                }
            }
            DATA => {
                acknowledge(socket, expected.wrapping_sub(1), peer)?;
                since_ack = 0;
            }
            other => bail!("opcode {other}"),
        }
    }
}

fn acknowledge(socket: &UdpSocket, block: u16, peer: Option<SocketAddr>) -> Result<()> {
    let [high, low] = block.to_be_bytes();
    if let Some(peer) = peer {
        socket.send_to(&[0, ACK, high, low], peer)?;
    }
    Ok(())
}

fn code(packet: &[u8]) -> u16 {
    u16::from_be_bytes([packet[2], packet[3]])
}

/// The value of an option in an OACK.
fn option(packet: &[u8], name: &str) -> Option<String> {
    let mut words = packet.get(2..)?.split(|&byte| byte == 0);
    loop {
        let word = words.next()?;
        let value = words.next()?;
        if word.eq_ignore_ascii_case(name.as_bytes()) {
            return String::from_utf8(value.to_vec()).ok();
        }
    }
}

/// Asks for a URL; the status, the head in lower case, and the body.
pub(crate) fn http(method: &str, url: &str) -> Result<(u16, String, Vec<u8>)> {
    let asked = || -> Result<(u16, String, Vec<u8>)> {
        let rest = url.strip_prefix("http://").context("not an http:// URL")?;
        let (host, path) = rest.split_once('/').context("no path in it")?;
        // What has no name server can look no name up.
        let address: Ipv4Addr = match host.split_once(':') {
            Some((address, _)) => address.parse(),
            None => host.parse(),
        }?;
        let port = host
            .split_once(':')
            .map_or(Ok(80), |(_, port)| port.parse())?;
        let mut stream = TcpStream::connect((address, port))?;
        stream.set_read_timeout(Some(TRIES * PATIENCE))?;
        write!(
            stream,
            "{method} /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        )?;
        let mut bytes = Vec::new();
        stream.take(FILE_MAX_BYTES as u64).read_to_end(&mut bytes)?;
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let body = bytes.split_off(end.context("no end of the head")? + 4);
        let head = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        let status = head
            .split_whitespace()
            .nth(1)
            .context("no status")?
            .parse()?;
        Ok((status, head, body))
    };
    asked().with_context(|| format!("{method} {url}"))
}
