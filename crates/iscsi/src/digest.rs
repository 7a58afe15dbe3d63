//! CRC32C over parts of PDUs (RFC 7143 section 13.1), in the full feature
//! phase, each part and connection for itself.

use crate::keys::{Digest, Parameters};

/// Length of a digest on the wire.
pub(crate) const DIGEST_BYTES: usize = 4;

/// Which parts of a connection's PDUs are protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digests {
    /// The header, additional segments included.
    pub(crate) header: bool,
    /// The data segment and its padding, where there is one.
    pub(crate) data: bool,
}

impl Digests {
    pub(crate) fn of(parameters: &Parameters) -> Digests {
        Digests {
            header: parameters.header_digest == Digest::Crc32c,
            data: parameters.data_digest == Digest::Crc32c,
        }
    }

    /// What follows a header.
    pub(crate) fn header_bytes(self) -> usize {
        if self.header { DIGEST_BYTES } else { 0 }
    }

    /// What follows a data segment of `data_bytes`.
    pub(crate) fn data_bytes(self, data_bytes: usize) -> usize {
        match self.data && data_bytes > 0 {
            true => DIGEST_BYTES,
            false => 0,
        }
    }
}

/// The digest of `bytes`, as it goes over the wire.
pub(crate) fn digest(bytes: &[u8]) -> [u8; DIGEST_BYTES] {
    crc32c::crc32c(bytes).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_rfc_3720_appendix_b_4() {
        assert_eq!(digest(&[0; 32]), [0xaa, 0x36, 0x91, 0x8a]);
        assert_eq!(digest(&[0xff; 32]), [0x43, 0xab, 0xa8, 0x62]);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(digest(&ascending), [0x4e, 0x79, 0xdd, 0x46]);
        let mut read10 = [0; 48];
        read10[..2].copy_from_slice(&[0x01, 0xc0]);
        (read10[16], read10[22], read10[27], read10[31]) = (0x14, 0x04, 0x14, 0x18);
        (read10[32], read10[40]) = (0x28, 0x02);
        assert_eq!(digest(&read10), [0x56, 0x3a, 0x96, 0xd9]);
    }
}
