//! A network card without an address, as a firmware drives it: it hears what
//! is sent to its MAC or to all, whatever IP address that bears.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, UdpSocket};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dhcp::wire::{Message, Op};
use lab::Host;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with};

/// ETH_P_IP, in the order of the network.
const IPV4_FRAMES: u32 = 0x0800_u16.to_be() as u32;
const UDP: u8 = 17;

/// A card; its methods are called inside its host.
pub(crate) struct Nic {
    frames: OwnedFd,
    pub(crate) mac: [u8; 6],
}

/// A DHCP message that came.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) message: Message,
    /// Who sent it.
    pub(crate) from: Ipv4Addr,
    /// The port it was sent from.
    pub(crate) source_port: u16,
    /// The port it was sent to.
    pub(crate) port: u16,
    /// How long its payload is.
    pub(crate) bytes: usize,
}

/// Gives the card of a host a MAC and takes its addresses away.
pub(crate) fn prepare(host: &Host<'_>, mac: [u8; 6]) -> Result<()> {
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    host.run(&["ip", "link", "set", "eth0", "down"])?;
    host.run(&["ip", "address", "flush", "dev", "eth0"])?;
    host.run(&["ip", "link", "set", "eth0", "address", &mac])?;
    host.run(&["ip", "link", "set", "eth0", "up"])?;
    host.run(&["ip", "route", "replace", "default", "dev", "eth0"])?;
    Ok(())
}

impl Nic {
    pub(crate) fn open(mac: [u8; 6]) -> Result<Nic> {
        let protocol = NonZeroU32::new(IPV4_FRAMES).map(Protocol::from_raw);
        let frames = socket_with(
            AddressFamily::PACKET,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            protocol,
        );
        let frames = frames.context("a packet socket")?;
        Ok(Nic { frames, mac })
    }

    /// Sends a message from a port of the client's to a server.
    pub(crate) fn send(&self, message: &Message, from: u16, to: (Ipv4Addr, u16)) -> Result<()> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, from)).context("a client's port")?;
        socket.set_broadcast(true)?;
        let sent = socket.send_to(&message.emit(), to);
        sent.with_context(|| format!("sending to {}:{}", to.0, to.1))?;
        Ok(())
    }

    /// The next reply to `xid` before `deadline`.
    pub(crate) fn hear(&self, xid: u32, deadline: Instant) -> Result<Option<Heard>> {
        let mut frame = [0; 2048];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let left = left.max(Duration::from_millis(1));
            set_socket_timeout(&self.frames, Timeout::Recv, Some(left))?;
            let length = match recv(&self.frames, &mut frame, RecvFlags::empty()) {
                Ok((length, _)) => length,
                Err(error) if std::io::Error::from(error).kind() == ErrorKind::WouldBlock => {
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let Some((from, source_port, port, payload)) = datagram(&frame[..length]) else {
                continue;
            };
            if !matches!(port, 68 | 4011) {
                continue;
            }
            let message = Message::parse(payload)
                .with_context(|| format!("what {from} sent cannot be read"))?;
            if message.op == Op::Reply && message.xid == xid && message.chaddr[..6] == self.mac {
                ensure!(message.hlen == 6, "a MAC of {} bytes", message.hlen);
                return Ok(Some(Heard {
                    message,
                    from,
                    source_port,
                    port,
                    bytes: payload.len(),
                }));
            }
        }
    }
}

/// Source, both ports and payload of a UDP datagram in an IP packet.
fn datagram(packet: &[u8]) -> Option<(Ipv4Addr, u16, u16, &[u8])> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    if *packet.get(9)? != UDP {
        return None;
    }
    let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    let udp = packet.get(header..)?;
    let number = |at: usize| Some(u16::from_be_bytes(udp.get(at..at + 2)?.try_into().ok()?));
    let length = usize::from(number(4)?);
    let payload = udp.get(8..length)?;
    Some((source.into(), number(0)?, number(2)?, payload))
}
