//! Where a transfer's bytes come from: memory, or a file that is read a piece
//! ahead.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use crate::{Content, wire};

/// Bytes of a file read at once, so that the disk is not asked per block.
const READ_AHEAD_BYTES: usize = 64 * 1024;
/// Largest file that is turned into netascii, which is done in memory. The
/// mode is for text; nobody boots with it.
const MAX_NETASCII_BYTES: u64 = 1024 * 1024;

/// Where a transfer's bytes come from.
pub(super) enum Source {
    Memory(Bytes),
    File {
        file: Arc<std::fs::File>,
        size_bytes: u64,
        /// The piece read last, and where it begins.
        ahead: Vec<u8>,
        ahead_offset: u64,
    },
}

impl Source {
    pub(super) fn of(content: Content) -> Source {
        match content {
            Content::Bytes(bytes) => Source::Memory(bytes),
            Content::File { file, size_bytes } => Source::File {
                file,
                size_bytes,
                ahead: Vec::new(),
                ahead_offset: 0,
            },
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        match self {
            Source::Memory(bytes) => bytes.len() as u64,
            Source::File { size_bytes, .. } => *size_bytes,
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
            Source::File {
                file,
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
                let file = Arc::clone(file);
                let reading = tokio::task::spawn_blocking(move || -> io::Result<Vec<u8>> {
                    std::os::unix::fs::FileExt::read_exact_at(&*file, &mut buffer, offset_bytes)?;
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

fn slice(bytes: &[u8], offset: u64, length: usize) -> Option<&[u8]> {
    let from = usize::try_from(offset).ok()?;
    bytes.get(from..from.checked_add(length)?)
}

/// The whole content as netascii; an error when it is too large for that or
/// cannot be read.
pub(super) fn in_netascii(content: &Content) -> io::Result<Source> {
    let text = match content {
        Content::Bytes(bytes) => bytes.clone(),
        Content::File { size_bytes, .. } if *size_bytes > MAX_NETASCII_BYTES => {
            return Err(io::Error::other(
                "too large for netascii; ask in mode octet",
            ));
        }
        Content::File { file, size_bytes } => {
            let mut buffer = vec![0; usize::try_from(*size_bytes).map_err(io::Error::other)?];
            std::os::unix::fs::FileExt::read_exact_at(&**file, &mut buffer, 0)?;
            Bytes::from(buffer)
        }
    };
    Ok(Source::Memory(Bytes::from(wire::to_netascii(&text))))
}
