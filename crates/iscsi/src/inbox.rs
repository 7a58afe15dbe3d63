//! What has been received: whole PDUs, cut out of a buffer where they lie.
//!
//! Owns no socket: bytes come from any reader. A header is believed once its
//! digest is right, a data segment never longer than was agreed on.

use std::io::{self, Read};

use crate::digest::{DIGEST_BYTES, Digests, digest};
use crate::keys::OUR_MAX_RECV_DATA_SEGMENT_LENGTH;
use crate::session::Data;
use crate::wire::{BHS_BYTES, Bhs, Lengths, padding};

/// The buffer of a connection from which nothing much has come yet.
const FIRST_BUFFER_BYTES: usize = 4 << 10;
/// The buffer of a connection that moves little.
const SMALL_BUFFER_BYTES: usize = 64 << 10;
/// The buffer of one that is written to: two PDUs of full length.
const LARGE_BUFFER_BYTES: usize = 520 << 10;

/// The receive buffer of a connection.
pub(crate) struct Inbox {
    digests: Digests,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub(crate) fn new(digests: Digests) -> Inbox {
        Inbox {
            digests,
            buffer: vec![0; FIRST_BUFFER_BYTES],
            start: 0,
            end: 0,
        }
    }

    /// The next whole PDU: its header and data segment. An error says how the
    /// peer broke the protocol.
    pub(crate) fn next_pdu(&mut self) -> Result<Option<(Bhs, Data<'_>)>, &'static str> {
        let Some(bhs) = self.buffer[self.start..self.end].first_chunk::<BHS_BYTES>() else {
            return Ok(None);
        };
        let bhs = *bhs;
        let data = self.start + BHS_BYTES + self.digests.header_bytes();
        if self.digests.header {
            if data > self.end {
                return Ok(None);
            }
            if self.buffer[data - DIGEST_BYTES..data] != digest(&bhs) && bhs[4] == 0 {
                return Err("a header digest that does not match");
            }
        }
        let lengths = Lengths::parse(&bhs);
        let longest = usize::try_from(OUR_MAX_RECV_DATA_SEGMENT_LENGTH).unwrap_or(usize::MAX);
        if lengths.data_bytes > longest {
            return Err("a data segment longer than was agreed on");
        }
        if lengths.ahs_bytes > 0 {
            // Extended CDBs and bidirectional commands: no unit knows any.
            return Err("an additional header segment");
        }
        let end = self.start + self.pdu_bytes(&lengths);
        if end > self.end {
            return Ok(None);
        }
        self.start = end;
        let segment = &self.buffer[data..data + lengths.data_bytes];
        if self.digests.data && lengths.data_bytes > 0 {
            let padded = data + lengths.data_bytes + padding(lengths.data_bytes);
            if self.buffer[padded..padded + DIGEST_BYTES] != digest(&self.buffer[data..padded]) {
                return Ok(Some((bhs, Data::Damaged(segment))));
            }
        }
        Ok(Some((bhs, Data::Intact(segment))))
    }

    /// Reads once; how many bytes there were.
    pub(crate) fn receive(&mut self, mut reader: impl Read) -> io::Result<usize> {
        self.make_room();
        let got = reader.read(&mut self.buffer[self.end..])?;
        self.end += got;
        if self.end == FIRST_BUFFER_BYTES && self.buffer.len() == FIRST_BUFFER_BYTES {
            self.buffer.resize(SMALL_BUFFER_BYTES, 0); // there may be more
        }
        Ok(got)
    }

    /// Makes room for the rest of the PDU that has begun.
    fn make_room(&mut self) {
        let wanted = self.buffer[self.start..self.end]
            .first_chunk()
            .map_or(BHS_BYTES, |bhs| self.pdu_bytes(&Lengths::parse(bhs)));
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
        if self.buffer.len() - self.start >= wanted && self.end < self.buffer.len() {
            return;
        }
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let bytes = match wanted {
            ..=SMALL_BUFFER_BYTES => SMALL_BUFFER_BYTES,
            _ => LARGE_BUFFER_BYTES,
        };
        if bytes > self.buffer.len() {
            self.buffer.resize(bytes, 0);
        }
    }

    /// Gives memory back that only a burst needed.
    pub(crate) fn shrink(&mut self) {
        if self.start == self.end && self.buffer.len() > SMALL_BUFFER_BYTES {
            *self = Inbox::new(self.digests);
        }
    }

    /// A whole PDU on the wire.
    fn pdu_bytes(&self, lengths: &Lengths) -> usize {
        let digests = self.digests.header_bytes() + self.digests.data_bytes(lengths.data_bytes);
        lengths.pdu_bytes() + digests
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::{Gone, Outbox, Part, Sink};

    const BOTH: Digests = Digests {
        header: true,
        data: true,
    };

    struct Nobody;

    impl Sink for Nobody {
        fn send(&mut self, _: &mut [Part]) -> Result<(), Gone> {
            Ok(())
        }
    }

    /// A ping with `data`, as it goes over the wire.
    fn ping(digests: Digests, data: &[u8]) -> Vec<u8> {
        let mut bhs = [0; BHS_BYTES];
        (bhs[0], bhs[1]) = (0x40, 0x80);
        bhs[7] = u8::try_from(data.len()).unwrap();
        let mut out = Outbox::new(Nobody);
        out.protect(digests);
        out.pdu(&bhs, data);
        out.gathered().to_vec()
    }

    /// All data segments in `bytes`; `None` for a damaged one.
    fn take(digests: Digests, bytes: &[u8]) -> Result<Vec<Option<Vec<u8>>>, &'static str> {
        let mut inbox = Inbox::new(digests);
        let mut taken = Vec::new();
        // Byte by byte, so that no PDU is taken before it is whole.
        for byte in bytes {
            inbox.receive(&[*byte][..]).unwrap();
            while let Some((_, data)) = inbox.next_pdu()? {
                taken.push(match data {
                    Data::Intact(data) => Some(data.to_vec()),
                    Data::Damaged(_) => None,
                });
            }
        }
        Ok(taken)
    }

    #[test]
    fn what_an_outbox_sends_an_inbox_takes_with_any_digests() {
        for (header, data) in [(false, false), (true, false), (false, true), (true, true)] {
            let digests = Digests { header, data };
            let bytes = [
                ping(digests, b"hello"),
                ping(digests, b""),
                ping(digests, b"data"),
            ];
            let length = bytes.concat().len();
            let plain = 3 * BHS_BYTES + 8 + 4;
            let extra = 12 * usize::from(header) + 8 * usize::from(data);
            assert_eq!(length, plain + extra);
            let taken = take(digests, &bytes.concat()).unwrap();
            let expected = [&b"hello"[..], b"", b"data"].map(|data| Some(data.to_vec()));
            assert_eq!(taken, expected);
        }
    }

    #[test]
    fn one_bit_wrong_in_a_header_ends_the_connection() {
        for bit in 0..8 * (BHS_BYTES + DIGEST_BYTES) {
            let mut bytes = ping(BOTH, b"hello");
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(take(BOTH, &bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn one_bit_wrong_in_data_or_padding_damages_this_pdu_and_no_other() {
        let first = BHS_BYTES + DIGEST_BYTES;
        for bit in 8 * first..8 * (first + 8 + DIGEST_BYTES) {
            let mut bytes = ping(BOTH, b"hello");
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes.extend(ping(BOTH, b"data"));
            let taken = take(BOTH, &bytes).unwrap();
            assert_eq!(taken, [None, Some(b"data".to_vec())], "bit {bit}");
        }
    }
}
