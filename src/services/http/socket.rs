//! A connection's socket, which sends pieces of files without a copy
//! (sendfile(2)) and counts what moves.
//!
//! hyper writes what a body hands it, and knows bytes only. A body that sends
//! a file leaves the [`Piece`] with the connection and hands over so many
//! bytes of a [`MARK`] in its place: memory that nobody reads. The socket
//! knows the mark by where it lies, and sends the piece. hyper queues a
//! body's buffers and never copies them where the socket takes vectored
//! writes, which this one always does; a test holds it to that.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// Longest piece: what one call of sendfile(2) may be asked for.
pub(crate) const PIECE_BYTES: usize = 256 * 1024;

/// Stands for bytes that lie in a file; never read, and so without memory.
static MARK: LazyLock<Bytes> = LazyLock::new(|| Bytes::from(vec![0; PIECE_BYTES]));

/// Some bytes of a file.
struct Piece {
    file: Arc<File>,
    offset: u64,
    bytes: usize,
}

/// The pieces one connection is about to send, in order.
#[derive(Clone, Default)]
pub(crate) struct Pieces(Arc<Mutex<VecDeque<Piece>>>);

impl Pieces {
    /// Adds a piece of at most [`PIECE_BYTES`]; answers what to hand to hyper
    /// in its place.
    pub(crate) fn push(&self, file: &Arc<File>, offset: u64, bytes: usize) -> Bytes {
        let bytes = bytes.min(PIECE_BYTES);
        let piece = Piece {
            file: Arc::clone(file),
            offset,
            bytes,
        };
        let mut pieces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pieces.push_back(piece);
        MARK.slice(..bytes)
    }

    /// Sends some of the first piece, which must be as long as its mark.
    fn send(&self, stream: &TcpStream, marked: usize) -> io::Result<usize> {
        let mut pieces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let piece = match pieces.front_mut() {
            Some(piece) if piece.bytes == marked => piece,
            _ => {
                return Err(io::Error::other(
                    "a piece of a file is not where it belongs",
                ));
            }
        };
        let sent = rustix::fs::sendfile(stream, &*piece.file, Some(&mut piece.offset), marked)?;
        if sent == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file became shorter while it was sent",
            ));
        }
        piece.bytes -= sent;
        if piece.bytes == 0 {
            pieces.pop_front();
        }
        Ok(sent)
    }
}

fn is_mark(buffer: &[u8]) -> bool {
    MARK.as_ptr_range().contains(&buffer.as_ptr())
}

/// The socket.
pub(super) struct Socket {
    stream: TcpStream,
    pieces: Pieces,
    /// Bytes read and written.
    moved: Arc<AtomicU64>,
}

impl Socket {
    pub(super) fn new(stream: TcpStream, pieces: Pieces, moved: Arc<AtomicU64>) -> Socket {
        Socket {
            stream,
            pieces,
            moved,
        }
    }

    /// Calls `send` when the stream takes something, until it does.
    fn poll_send(
        &self,
        context: &mut Context<'_>,
        send: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            match self
                .stream
                .try_io(Interest::WRITABLE, || send(&self.stream))
            {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => {
                    if let Ok(bytes) = sent {
                        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
                    }
                    return Poll::Ready(sent);
                }
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = buffer.filled().len() - before;
        self.moved.fetch_add(read as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(buffer)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = buffers.iter().position(|buffer| !buffer.is_empty());
        let Some(buffers) = first.and_then(|first| buffers.get(first..)) else {
            return Poll::Ready(Ok(0));
        };
        let plain = buffers.iter().position(|buffer| is_mark(buffer));
        match plain {
            Some(0) => {
                let marked = buffers.first().map_or(0, |buffer| buffer.len());
                self.poll_send(context, |stream| self.pieces.send(stream, marked))
            }
            plain => {
                // A head goes into one segment with what follows it.
                let (flags, count) = match plain {
                    Some(count) => (SendFlags::MORE, count),
                    None => (SendFlags::empty(), buffers.len()),
                };
                let flags = flags | SendFlags::NOSIGNAL;
                let buffers = buffers.get(..count).unwrap_or_default();
                self.poll_send(context, |stream| {
                    let mut control = SendAncillaryBuffer::default();
                    Ok(sendmsg(stream, buffers, &mut control, flags)?)
                })
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
