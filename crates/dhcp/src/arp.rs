//! ARP over Ethernet (RFC 826), as far as the question whether an address is
//! somebody's needs it (RFC 5227).

use std::net::Ipv4Addr;

use crate::Mac;

const MESSAGE_BYTES: usize = 28;

/// Ethernet, IPv4, and the lengths of their addresses.
const HEAD: [u8; 6] = [0, 1, 8, 0, 6, 4];

const REQUEST: [u8; 2] = [0, 1];

/// Asks whose an address is, and says of us our hardware address only: nobody
/// learns anything wrong from it (RFC 5227 section 2.1.1).
pub(crate) fn probe(own: Mac, address: Ipv4Addr) -> Vec<u8> {
    let mut message = Vec::with_capacity(MESSAGE_BYTES);
    message.extend(HEAD);
    message.extend(REQUEST);
    message.extend(own.0);
    message.extend(Ipv4Addr::UNSPECIFIED.octets());
    message.extend([0; 6]);
    message.extend(address.octets());
    message
}

/// Who says, in a request or a reply, that it has which address; a probe says
/// nothing.
pub(crate) fn sender(message: &[u8]) -> Option<(Mac, Ipv4Addr)> {
    let message = message.first_chunk::<MESSAGE_BYTES>()?;
    let mac = Mac(*message[8..].first_chunk()?);
    let address = Ipv4Addr::from(*message[14..].first_chunk::<4>()?);
    (message[..6] == HEAD && !address.is_unspecified()).then_some((mac, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);

    #[test]
    fn a_probe_asks_for_the_address_and_claims_none() {
        let probe = probe(MAC, ADDRESS);
        assert_eq!(probe[..8], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert_eq!(probe[24..], [10, 0, 0, 9]);
        assert_eq!(sender(&probe), None);
    }

    #[test]
    fn a_reply_says_who_has_the_address_and_rubbish_says_nothing() {
        let mut reply = probe(MAC, Ipv4Addr::BROADCAST);
        reply[7] = 2;
        reply[14..18].copy_from_slice(&ADDRESS.octets());
        reply.extend([0; 18]); // Ethernet's padding
        assert_eq!(sender(&reply), Some((MAC, ADDRESS)));
        for length in 0..MESSAGE_BYTES {
            assert_eq!(sender(&reply[..length]), None);
        }
        reply[4] = 8;
        assert_eq!(sender(&reply), None);
    }
}
