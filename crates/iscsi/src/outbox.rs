//! What is to be sent, gathered until it is worth a system call.
//!
//! Headers and read data lie in one arena; bytes of a disk that are mapped
//! are only pointed at. Whatever a receive buffer led to goes out with one
//! vectored send, unless it grows past a limit first.

use scsi::disk::Segment;
use scsi::{LogicalUnit, Work};

use crate::digest::{Digests, digest};
use crate::wire::{BHS_BYTES, Bhs, padding};

/// Arena bytes after which the outbox is sent without waiting for more.
const ARENA_FULL_BYTES: usize = 1 << 20;
/// An arena is never kept larger than this while nothing happens.
const ARENA_IDLE_BYTES: usize = 64 << 10;
/// Parts of one vectored send; Linux takes 1024 (IOV_MAX).
const MAX_PARTS: usize = 1024;
/// Zeros for the padding of a data segment.
const PADDING: [u8; 3] = [0; 3];

/// A stretch of bytes to send.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Part(libc::iovec);

impl Part {
    pub(crate) fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Drops the first `bytes`.
    pub(crate) fn advance(&mut self, bytes: usize) {
        let bytes = bytes.min(self.0.iov_len);
        self.0.iov_base = self.0.iov_base.wrapping_byte_add(bytes);
        self.0.iov_len -= bytes;
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn start(&self) -> *const u8 {
        self.0.iov_base.cast()
    }
}

/// Why the connection is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    /// The peer is gone, or takes nothing.
    Peer,
    /// Mapped bytes could not be read; half a PDU may be out.
    Mapping,
}

/// Where an outbox empties itself.
pub(crate) trait Sink {
    /// Sends all parts, in order. Every part points at bytes that stay where
    /// they are during the call.
    fn send(&mut self, parts: &mut [Part]) -> Result<(), Gone>;

    /// Whether mapped bytes may still have to come from a medium, so that
    /// asking for them beforehand is worth its price.
    fn is_cold(&self) -> bool {
        true
    }
}

/// PDUs on their way out.
pub(crate) struct Outbox<'t> {
    sink: Box<dyn Sink>,
    digests: Digests,
    arena: Vec<u8>,
    used: usize,
    pieces: Vec<Piece<'t>>,
    parts: Vec<Part>,
    /// Reads whose mapped bytes are pointed at.
    reads: Vec<(&'t LogicalUnit, Work)>,
    /// Room for the segments of one read.
    segments: Vec<Segment<'t>>,
    gone: Option<Gone>,
}

enum Piece<'t> {
    /// So many bytes of the arena.
    Arena(usize),
    Mapped(Segment<'t>),
}

impl<'t> Outbox<'t> {
    pub(crate) fn new(sink: impl Sink + 'static) -> Outbox<'t> {
        Outbox {
            sink: Box::new(sink),
            digests: Digests::default(),
            arena: Vec::new(),
            used: 0,
            pieces: Vec::new(),
            parts: Vec::new(),
            reads: Vec::new(),
            segments: Vec::new(),
            gone: None,
        }
    }

    /// Protects the PDUs from here on.
    pub(crate) fn protect(&mut self, digests: Digests) {
        self.digests = digests;
    }

    /// Whether data segments are protected: data must then not change
    /// between its digest and its sending, so that it cannot be pointed at.
    pub(crate) fn protects_data(&self) -> bool {
        self.digests.data
    }

    /// Sends everything, and lets go of all it points at.
    pub(crate) fn let_go<'n>(mut self) -> Outbox<'n> {
        let _ = self.flush();
        Outbox {
            sink: self.sink,
            digests: self.digests,
            arena: self.arena,
            used: 0,
            pieces: Vec::new(),
            parts: self.parts,
            reads: Vec::new(),
            segments: Vec::new(),
            gone: self.gone,
        }
    }

    /// What waits to be sent, but for what is pointed at.
    #[cfg(test)]
    pub(crate) fn gathered(&self) -> &[u8] {
        &self.arena[..self.used]
    }

    /// Appends a PDU without data, or the header of one.
    pub(crate) fn header(&mut self, bhs: &Bhs) {
        self.bytes(bhs);
        if self.digests.header {
            self.bytes(&digest(bhs));
        }
    }

    /// Appends a PDU with its data segment.
    pub(crate) fn pdu(&mut self, bhs: &Bhs, data: &[u8]) {
        self.header(bhs);
        self.bytes(data);
        self.end_data(data.len());
    }

    /// Appends room for a PDU whose header is not known yet: its data segment
    /// is what is given. [`fill_header`](Outbox::fill_header) comes next, or
    /// [`take_back`](Outbox::take_back).
    pub(crate) fn room(&mut self, data_bytes: usize) -> &mut [u8] {
        let header_bytes = BHS_BYTES + self.digests.header_bytes();
        &mut self.append(header_bytes + data_bytes)[header_bytes..]
    }

    /// Completes the PDU that [`room`](Outbox::room) was made for.
    pub(crate) fn fill_header(&mut self, bhs: &Bhs, data_bytes: usize) {
        let header_bytes = BHS_BYTES + self.digests.header_bytes();
        let start = self.used - data_bytes - header_bytes;
        let header = &mut self.arena[start..start + header_bytes];
        header[..BHS_BYTES].copy_from_slice(bhs);
        if self.digests.header {
            header[BHS_BYTES..].copy_from_slice(&digest(bhs));
        }
        self.end_data(data_bytes);
    }

    /// Takes back the room that was made last.
    pub(crate) fn take_back(&mut self, data_bytes: usize) {
        let bytes = BHS_BYTES + self.digests.header_bytes() + data_bytes;
        self.used -= bytes;
        if let Some(Piece::Arena(length)) = self.pieces.last_mut() {
            *length -= bytes;
        }
    }

    /// Appends the padding of a data segment that is pointed at.
    pub(crate) fn pad(&mut self, data_bytes: usize) {
        self.bytes(&PADDING[..padding(data_bytes)]);
    }

    /// Appends padding and digest of a data segment that ends the arena.
    fn end_data(&mut self, data_bytes: usize) {
        self.pad(data_bytes);
        if self.digests.data && data_bytes > 0 {
            let start = self.used - data_bytes - padding(data_bytes);
            let digest = digest(&self.arena[start..self.used]);
            self.bytes(&digest);
        }
    }

    /// Appends bytes.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.append(bytes.len()).copy_from_slice(bytes);
    }

    /// Appends `bytes` bytes, which hold anything.
    fn append(&mut self, bytes: usize) -> &mut [u8] {
        let (start, end) = (self.used, self.used + bytes);
        if end > self.arena.len() {
            self.arena.resize(end.next_power_of_two(), 0);
        }
        self.used = end;
        match self.pieces.last_mut() {
            Some(Piece::Arena(length)) => *length += bytes,
            _ => self.pieces.push(Piece::Arena(bytes)),
        }
        &mut self.arena[start..end]
    }

    /// Appends mapped bytes.
    pub(crate) fn mapped(&mut self, segment: Segment<'t>) {
        self.pieces.push(Piece::Mapped(segment));
    }

    /// Lends an empty list for the segments of one read.
    pub(crate) fn lend_segments(&mut self) -> Vec<Segment<'t>> {
        std::mem::take(&mut self.segments)
    }

    /// Takes the list back, to lend it again.
    pub(crate) fn return_segments(&mut self, mut segments: Vec<Segment<'t>>) {
        segments.clear();
        self.segments = segments;
    }

    /// Notes a read whose mapped bytes follow.
    pub(crate) fn will_read(&mut self, unit: &'t LogicalUnit, work: Work) {
        self.reads.push((unit, work));
    }

    /// Sends everything when there is much of it.
    pub(crate) fn relieve(&mut self) {
        if self.used >= ARENA_FULL_BYTES || self.pieces.len() >= MAX_PARTS - 1 {
            let _ = self.flush();
        }
    }

    /// Sends everything.
    pub(crate) fn flush(&mut self) -> Result<(), Gone> {
        if !self.pieces.is_empty() && self.gone.is_none() {
            // Ask for every page first: the send meets them one by one.
            if self.reads.len() > 1 && self.sink.is_cold() {
                for (unit, work) in &self.reads {
                    unit.will_need(work);
                }
            }
            self.gone = self.send_pieces().err();
        }
        self.used = 0;
        self.pieces.clear();
        self.reads.clear();
        self.gone.map_or(Ok(()), Err)
    }

    /// Gives memory back that only a burst needed.
    pub(crate) fn shrink(&mut self) {
        self.arena.truncate(ARENA_IDLE_BYTES);
        self.arena.shrink_to_fit();
    }

    fn send_pieces(&mut self) -> Result<(), Gone> {
        self.parts.clear();
        let mut at = 0;
        for piece in &self.pieces {
            let (start, bytes) = match piece {
                Piece::Arena(bytes) => {
                    let start = self.arena[at..].as_ptr();
                    at += bytes;
                    (start, *bytes)
                }
                Piece::Mapped(segment) => (segment.as_ptr(), segment.len()),
            };
            self.parts.push(Part(libc::iovec {
                iov_base: start.cast_mut().cast(),
                iov_len: bytes,
            }));
        }
        for parts in self.parts.chunks_mut(MAX_PARTS) {
            self.sink.send(parts)?;
        }
        Ok(())
    }
}
