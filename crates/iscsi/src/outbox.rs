//! What is to be sent, gathered until it is worth a system call.
//!
//! Headers and read data lie in one arena; bytes of a disk that are mapped
//! are only pointed at. Whatever a receive buffer led to goes out with one
//! vectored send, unless it grows past a limit first.

use scsi::disk::Segment;
use scsi::{LogicalUnit, Work};

use crate::wire::{Bhs, padding};

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
            arena: Vec::new(),
            used: 0,
            pieces: Vec::new(),
            parts: Vec::new(),
            reads: Vec::new(),
            segments: Vec::new(),
            gone: None,
        }
    }

    /// Sends everything, and lets go of all it points at.
    pub(crate) fn let_go<'n>(mut self) -> Outbox<'n> {
        let _ = self.flush();
        Outbox {
            sink: self.sink,
            arena: self.arena,
            used: 0,
            pieces: Vec::new(),
            parts: self.parts,
            reads: Vec::new(),
            segments: Vec::new(),
            gone: self.gone,
        }
    }

    /// Appends a PDU without data, or the header of one.
    pub(crate) fn header(&mut self, bhs: &Bhs) {
        self.bytes(bhs);
    }

    /// Appends a PDU with its data segment.
    pub(crate) fn pdu(&mut self, bhs: &Bhs, data: &[u8]) {
        self.bytes(bhs);
        self.bytes(data);
        self.pad(data.len());
    }

    /// Appends the padding of a data segment.
    pub(crate) fn pad(&mut self, data_bytes: usize) {
        self.bytes(&PADDING[..padding(data_bytes)]);
    }

    /// Appends bytes.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
    }

    /// Appends `bytes` bytes for the caller to fill. They hold anything.
    pub(crate) fn room(&mut self, bytes: usize) -> &mut [u8] {
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

    /// Takes back the last `bytes` bytes: all in the arena, in one piece.
    pub(crate) fn take_back(&mut self, bytes: usize) {
        self.used -= bytes;
        if let Some(Piece::Arena(length)) = self.pieces.last_mut() {
            *length -= bytes;
        }
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
