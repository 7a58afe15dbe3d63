//! What fits through the way to a client in one piece.
//!
//! Asked of the kernel per transfer: it knows the MTU of the interface and
//! of the route, and what routers on the way have said (path MTU discovery,
//! RFC 1191). Many ROMs cannot put fragments together.

use std::io;
use std::net::{SocketAddrV4, UdpSocket};

use rustix::net::sockopt;
use tracing::debug;

use crate::transfer::{DEFAULT_BLOCK_BYTES, HEADERS_BYTES};

/// The largest block for this client: `most_bytes`, or less where the way is
/// narrower; never less than RFC 1350's 512, which a client may count on.
pub(super) fn block_bytes(local: SocketAddrV4, client: SocketAddrV4, most_bytes: u16) -> u16 {
    match mtu_bytes(local, client) {
        Ok(mtu) => fitting(mtu, most_bytes),
        Err(error) => {
            debug!(%client, %error, "the MTU to a client is not known");
            most_bytes
        }
    }
}

fn fitting(mtu_bytes: u32, most_bytes: u16) -> u16 {
    let room = mtu_bytes.saturating_sub(u32::from(HEADERS_BYTES));
    let room = u16::try_from(room).unwrap_or(u16::MAX);
    most_bytes.min(room.max(DEFAULT_BLOCK_BYTES))
}

/// A socket of its own is connected, which sends nothing: the transfer's must
/// go on hearing strangers, to tell them that they are wrong there.
fn mtu_bytes(local: SocketAddrV4, client: SocketAddrV4) -> io::Result<u32> {
    let socket = UdpSocket::bind((*local.ip(), 0))?;
    socket.connect(client)?;
    Ok(sockopt::ip_mtu(&socket)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_with_its_headers_fills_the_frame() {
        for (mtu, most, block) in [
            (1500, 1468, 1468),
            (1492, 1468, 1460), // PPPoE
            (1496, 1468, 1464), // a VLAN tag where the card has no room for it
            (1500, 65464, 1468),
            (9000, 65464, 8968), // jumbo frames
            (9000, 1468, 1468),
            (68, 1468, 512),
            (0, 1468, 512),
            (65536, 65464, 65464),
        ] {
            assert_eq!(fitting(mtu, most), block, "MTU {mtu}");
        }
    }
}
