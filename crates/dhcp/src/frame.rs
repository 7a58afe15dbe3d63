//! IPv4 and UDP headers around a DHCP message (RFC 791, RFC 768): what a
//! packet socket sends to a client without an address, and what it hears.

use std::net::{Ipv4Addr, SocketAddrV4};

const IP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
const UDP: u8 = 17;
const TIME_TO_LIVE: u8 = 64;

/// An IPv4 packet with one UDP datagram in it; `None` where the payload is
/// longer than UDP can say.
pub(crate) fn emit(
    source: SocketAddrV4,
    destination: SocketAddrV4,
    payload: &[u8],
) -> Option<Vec<u8>> {
    let udp_length = u16::try_from(UDP_BYTES + payload.len()).ok()?;
    let total_length = udp_length.checked_add(20)?;

    let mut ip = Vec::with_capacity(total_length.into());
    ip.extend([0x45, 0]); // version 4, header of 5 words; no service class
    ip.extend(total_length.to_be_bytes());
    ip.extend([0, 0, 0x40, 0]); // identification 0: never fragmented
    ip.extend([TIME_TO_LIVE, UDP, 0, 0]);
    ip.extend(source.ip().octets());
    ip.extend(destination.ip().octets());
    let sum = checksum(&ip, 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    ip.extend(source.port().to_be_bytes());
    ip.extend(destination.port().to_be_bytes());
    ip.extend(udp_length.to_be_bytes());
    ip.extend([0, 0]);
    ip.extend(payload);
    // The pseudo header: addresses, protocol, length.
    let pseudo = u32::from(UDP) + u32::from(udp_length);
    let sum = match checksum(&ip[12..], pseudo) {
        0 => u16::MAX, // 0 would say that there is no checksum
        sum => sum,
    };
    ip[26..28].copy_from_slice(&sum.to_be_bytes());
    Some(ip)
}

/// A UDP datagram of an IPv4 packet: from, to, payload. Checksums are not
/// looked at: on virtual interfaces they are often still to be filled in.
pub(crate) fn parse(packet: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4, &[u8])> {
    let (&first, header) = (packet.first()?, packet.first_chunk::<IP_BYTES>()?);
    let header_bytes = usize::from(first & 0x0f) * 4;
    let total_length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let is_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    if first >> 4 != 4 || header_bytes < IP_BYTES || header[9] != UDP || is_fragment {
        return None;
    }
    let udp = packet.get(header_bytes..total_length.min(packet.len()))?;
    let (header_udp, rest) = udp.split_first_chunk::<UDP_BYTES>()?;
    let length = usize::from(u16::from_be_bytes([header_udp[4], header_udp[5]]));
    let payload = rest.get(..length.checked_sub(UDP_BYTES)?)?;
    let address =
        |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
    let port = |at: usize| u16::from_be_bytes([header_udp[at], header_udp[at + 1]]);
    Some((
        SocketAddrV4::new(address(12), port(0)),
        SocketAddrV4::new(address(16), port(2)),
        payload,
    ))
}

/// The ones' complement sum of RFC 1071, begun at `sum`.
pub(crate) fn checksum(bytes: &[u8], mut sum: u32) -> u16 {
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([pair[0], low]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_checksums_verify() {
        let source = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 67);
        let destination = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 9), 68);
        let packet = emit(source, destination, b"odd").unwrap();
        assert_eq!(checksum(&packet[..20], 0), 0);
        assert_eq!(checksum(&packet[12..], 17 + 11), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_datagram_comes_out_as_it_went_in(
            from in any::<([u8; 4], u16)>(),
            to in any::<([u8; 4], u16)>(),
            payload in proptest::collection::vec(any::<u8>(), 0..600),
        ) {
            let from = SocketAddrV4::new(from.0.into(), from.1);
            let to = SocketAddrV4::new(to.0.into(), to.1);
            let mut packet = emit(from, to, &payload).unwrap();
            packet.extend([0; 7]); // Ethernet's own padding
            prop_assert_eq!(parse(&packet), Some((from, to, payload.as_slice())));
        }

        #[test]
        fn random_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(&bytes);
            if let Some(first) = bytes.first_mut() {
                *first = 0x45;
            }
            if let Some(protocol) = bytes.get_mut(9) {
                *protocol = UDP;
            }
            let _ = parse(&bytes);
        }
    }
}
