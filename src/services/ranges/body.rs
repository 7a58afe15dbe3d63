//! The body of an answer: parts of a content, and words between them.
//!
//! A file goes out without a copy where the connection is plain; what is not
//! in the page cache is read on a blocking thread first, so that a slow disk
//! holds up nobody else. A file that shrinks meanwhile ends the connection: a
//! short body is never passed off as a whole one.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tftp::Readable;
use tokio::task::JoinHandle;

use crate::services::http::{PIECE_BYTES, Pieces};

/// What parts are read from.
#[derive(Clone)]
pub(super) enum Content {
    File(Arc<File>),
    Readable(Arc<dyn Readable>),
}

/// A part of a body.
pub(super) enum Part {
    /// Words of ours.
    Words(Bytes),
    /// Bytes of the content: the first, and one past the last.
    Content(u64, u64),
}

/// A body.
pub(super) struct Parts {
    content: Content,
    parts: VecDeque<Part>,
    /// Bytes still to hand over.
    left: u64,
    /// Where pieces of files are left; none on an encrypted connection.
    pieces: Option<Pieces>,
    reading: Option<JoinHandle<io::Result<Read>>>,
}

/// What a blocking thread brought.
enum Read {
    /// The bytes themselves.
    Bytes(Vec<u8>),
    /// They are in the page cache now.
    Cached { offset: u64, bytes: usize },
}

impl Parts {
    pub(super) fn new(content: Content, parts: Vec<Part>, pieces: Option<Pieces>) -> Parts {
        let left = parts.iter().map(Part::bytes).sum();
        Parts {
            content,
            parts: parts.into(),
            left,
            pieces,
            reading: None,
        }
    }

    /// The next bytes of the first part, if they can be had at once; else a
    /// thread has begun to read them.
    fn next_of(&mut self, offset: u64, bytes: usize) -> Option<Bytes> {
        let content = self.content.clone();
        let to_send = self.pieces.clone();
        match (&content, &to_send) {
            (Content::File(file), Some(pieces)) if is_cached(file, offset, bytes) => {
                return Some(pieces.push(file, offset, bytes));
            }
            (Content::File(file), None) => {
                if let Some(read) = read_cached(file, offset, bytes) {
                    return Some(Bytes::from(read));
                }
            }
            _ => {}
        }
        self.reading = Some(tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; bytes];
            match &content {
                Content::File(file) => file.read_exact_at(&mut buffer, offset)?,
                Content::Readable(readable) => readable.read_at(offset, &mut buffer)?,
            }
            Ok(match (content, to_send) {
                (Content::File(_), Some(_)) => Read::Cached { offset, bytes },
                _ => Read::Bytes(buffer),
            })
        }));
        None
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            if let Some(reading) = &mut self.reading {
                let read = ready!(Pin::new(reading).poll(context));
                self.reading = None;
                let read = read.unwrap_or_else(|error| Err(io::Error::other(error)));
                return Poll::Ready(Some(match read {
                    Ok(Read::Bytes(bytes)) => Ok(Bytes::from(bytes)),
                    Ok(Read::Cached { offset, bytes }) => match (&self.content, &self.pieces) {
                        (Content::File(file), Some(pieces)) => Ok(pieces.push(file, offset, bytes)),
                        _ => Err(io::ErrorKind::Unsupported.into()),
                    },
                    Err(error) => Err(error),
                }));
            }
            let (offset, bytes) = match self.parts.front_mut() {
                None => return Poll::Ready(None),
                Some(Part::Words(words)) => {
                    let words = std::mem::take(words);
                    self.parts.pop_front();
                    return Poll::Ready(Some(Ok(words)));
                }
                Some(Part::Content(start, end)) => {
                    let bytes = usize::try_from(*end - *start).unwrap_or(usize::MAX);
                    let (offset, bytes) = (*start, bytes.min(PIECE_BYTES));
                    *start += bytes as u64;
                    if *start == *end {
                        self.parts.pop_front();
                    }
                    (offset, bytes)
                }
            };
            if let Some(bytes) = self.next_of(offset, bytes) {
                return Poll::Ready(Some(Ok(bytes)));
            }
        }
    }
}

impl Part {
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Part::Words(words) => words.len() as u64,
            Part::Content(start, end) => end - start,
        }
    }
}

impl hyper::body::Body for Parts {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let next = ready!(self.poll_next(context));
        Poll::Ready(next.map(|next| {
            let bytes = next?;
            self.left = self.left.saturating_sub(bytes.len() as u64);
            Ok(Frame::data(bytes))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Whether the ends of these bytes can be had without waiting for a disk; what
/// lies between has come with them, or comes by read-ahead.
fn is_cached(file: &File, offset: u64, bytes: usize) -> bool {
    let is_there = |at| {
        let mut byte = [0];
        let read = preadv2(
            file,
            &mut [IoSliceMut::new(&mut byte)],
            at,
            ReadWriteFlags::NOWAIT,
        );
        // At the end of a file that shrank nothing is read, and sending says so.
        !matches!(read, Err(Errno::AGAIN | Errno::OPNOTSUPP))
    };
    is_there(offset) && is_there(offset + (bytes as u64).saturating_sub(1))
}

/// These bytes, if all can be had without waiting for a disk.
fn read_cached(file: &File, offset: u64, bytes: usize) -> Option<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    let into = &mut [IoSliceMut::new(&mut buffer)];
    let read = preadv2(file, into, offset, ReadWriteFlags::NOWAIT).ok()?;
    (read == bytes).then_some(buffer)
}
