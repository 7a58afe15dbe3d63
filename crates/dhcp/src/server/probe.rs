//! The question whether another DHCP server is on a LAN.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::MAX_PACKET_BYTES;
use super::packet::PacketSocket;
use crate::answer::{CLIENT_PORT, SERVER_PORT};
use crate::wire::{BROADCAST_FLAG, Message, MessageType, Op, code};
use crate::{Mac, frame};

/// How the probe names itself in option 60.
const PROBE_CLASS: &str = "diskless-check";

/// Between two DISCOVERs of a probe.
const REPEAT: Duration = Duration::from_millis(1500);

/// After the first answer, for the others'.
const LINGER: Duration = Duration::from_millis(500);

/// Asks the LAN behind an interface for DHCP servers: sends DISCOVERs and
/// returns who offers within `timeout`, sooner when one does. Some servers
/// look whether an address is free before they offer it (dnsmasq: 3 s): 5 s
/// is a good timeout.
///
/// Needs a tokio runtime and `CAP_NET_RAW`, but no port and no address on the
/// interface; it works beside a running dhclient. Servers on this very
/// machine are not seen: they hold port 67.
///
/// # Errors
/// `NotFound`: no such interface. `PermissionDenied`: neither root nor
/// `CAP_NET_RAW`. Else what the interface says (`NetworkDown`).
pub async fn look_for_other_servers(
    interface: &str,
    timeout: Duration,
) -> io::Result<Vec<Ipv4Addr>> {
    let socket = PacketSocket::open(interface)?.register()?;
    let discover = discover();
    let mut deadline = Instant::now() + timeout;
    let mut servers = BTreeSet::new();
    let mut buffer = vec![0; MAX_PACKET_BYTES];
    while Instant::now() < deadline {
        let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT);
        let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT);
        socket
            .send(Mac([0xff; 6]), from, to, &discover.emit())
            .map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("asking on {interface} for DHCP servers: {error}"),
                )
            })?;
        let repeat = (Instant::now() + REPEAT).min(deadline);
        while let Ok(received) = timeout_at(repeat.min(deadline), socket.receive(&mut buffer)).await
        {
            let length = match received {
                Ok(length) => length,
                Err(error) => {
                    tracing::debug!(interface, %error, "while looking for other servers");
                    sleep_until(repeat).await;
                    break;
                }
            };
            if let Some(server) = buffer
                .get(..length)
                .and_then(|packet| offering_server(packet, discover.xid))
            {
                if servers.is_empty() {
                    deadline = deadline.min(Instant::now() + LINGER);
                }
                servers.insert(server);
            }
        }
    }
    Ok(servers.into_iter().collect())
}

/// A DISCOVER of nobody: an address of the locally administered range that
/// differs each time, the answer to be broadcast.
fn discover() -> Message {
    let [a, b, c, d, e, f, g, h] = RandomState::new()
        .hash_one(std::process::id())
        .to_be_bytes();
    let mut message = Message::new(Op::Request);
    message.xid = u32::from_be_bytes([e, f, g, h]);
    message.flags = BROADCAST_FLAG;
    message.chaddr[..6].copy_from_slice(&[0x02, a, b, c, d, e]);
    message
        .options
        .set(code::MESSAGE_TYPE, [MessageType::Discover.number()]);
    message.options.set(code::VENDOR_CLASS, PROBE_CLASS);
    message
        .options
        .set(code::PARAMETERS, [code::NETMASK, code::ROUTERS, code::DNS]);
    message
}

/// Who offers an address in this packet.
fn offering_server(packet: &[u8], xid: u32) -> Option<Ipv4Addr> {
    let (source, destination, payload) = frame::parse(packet)?;
    let message = Message::parse(payload).ok()?;
    let is_offer = message.op == Op::Reply
        && message.xid == xid
        && destination.port() == CLIENT_PORT
        && !message.yiaddr.is_unspecified();
    is_offer.then(|| {
        message
            .options
            .address(code::SERVER_ID)
            .unwrap_or(*source.ip())
    })
}
