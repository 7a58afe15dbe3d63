//! Where a transfer's bytes come from: memory, or a file or the like that is
//! read a piece ahead.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use crate::{Content, Readable, wire};

/// Bytes of a file read at once, so that the disk is not asked per block.
const READ_AHEAD_BYTES: usize = 64 * 1024;
/// Largest file that is turned into netascii, which is done in memory. The
/// mode is for text; nobody boots with it.
const MAX_NETASCII_BYTES: u64 = 1024 * 1024;

/// Where a transfer's bytes come from.
pub(super) enum Source {
    Memory(Bytes),
    Storage {
        storage: Arc<dyn Readable>,
        size_bytes: u64,
        /// The piece read last, and where it begins.
        ahead: Vec<u8>,
        ahead_offset: u64,
    },
}

impl Source {
    /// May block: a site's own [`Readable`] is asked for its size.
    pub(super) fn of(content: Content) -> Source {
        let size_bytes = content.size_bytes();
        let storage: Arc<dyn Readable> = match content {
            Content::Bytes(bytes) => return Source::Memory(bytes),
            Content::File { file, .. } => Arc::new(Opened { file, size_bytes }),
            Content::Readable(readable) => readable,
        };
        Source::Storage {
            storage,
            size_bytes,
            ahead: Vec::new(),
            ahead_offset: 0,
        }
    }

    /// The whole content as netascii; an error when it is too large for that
    /// or cannot be read. May block.
    pub(super) fn in_netascii(content: Content) -> io::Result<Source> {
        let size_bytes = content.size_bytes();
        if size_bytes > MAX_NETASCII_BYTES {
            return Err(io::Error::other(
                "too large for netascii; ask in mode octet",
            ));
        }
        let text = match Source::of(content) {
            Source::Memory(bytes) => bytes,
            Source::Storage { storage, .. } => {
                let mut text = vec![0; usize::try_from(size_bytes).map_err(io::Error::other)?];
                storage.read_at(0, &mut text)?;
                Bytes::from(text)
            }
        };
        Ok(Source::Memory(Bytes::from(wire::to_netascii(&text))))
    }

    pub(super) fn size_bytes(&self) -> u64 {
        match self {
            Source::Memory(bytes) => bytes.len() as u64,
            Source::Storage { size_bytes, .. } => *size_bytes,
        }
    }

    /// Appends `length_bytes` from `offset_bytes` on to `out`; an error when
    /// the file has shrunk below that.
    pub(super) async fn read(
        &mut self,
        offset_bytes: u64,
        length_bytes: usize,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        match self {
            Source::Memory(bytes) => {
                let piece = slice(bytes, offset_bytes, length_bytes);
                out.extend_from_slice(piece.ok_or(io::ErrorKind::UnexpectedEof)?);
            }
            Source::Storage {
                storage,
                size_bytes,
                ahead,
                ahead_offset,
            } => {
                let inside = offset_bytes
                    .checked_sub(*ahead_offset)
                    .and_then(|from| slice(ahead, from, length_bytes));
                if let Some(piece) = inside {
                    out.extend_from_slice(piece);
                    return Ok(());
                }
                let left =
                    usize::try_from(size_bytes.saturating_sub(offset_bytes)).unwrap_or(usize::MAX);
                let mut buffer = std::mem::take(ahead);
                buffer.resize(left.min(READ_AHEAD_BYTES), 0);
                let storage = Arc::clone(storage);
                let reading = tokio::task::spawn_blocking(move || -> io::Result<Vec<u8>> {
                    storage.read_at(offset_bytes, &mut buffer)?;
                    Ok(buffer)
                });
                *ahead = reading.await.map_err(io::Error::other)??;
                *ahead_offset = offset_bytes;
                let piece = slice(ahead, 0, length_bytes);
                out.extend_from_slice(piece.ok_or(io::ErrorKind::UnexpectedEof)?);
            }
        }
        Ok(())
    }
}

/// [`Content::File`].
struct Opened {
    file: Arc<File>,
    size_bytes: u64,
}

impl Readable for Opened {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset_bytes)
    }
}

fn slice(bytes: &[u8], offset: u64, length: usize) -> Option<&[u8]> {
    let from = usize::try_from(offset).ok()?;
    bytes.get(from..from.checked_add(length)?)
}
