//! A file inside a disk, of which only the places of its bytes are kept.

use std::sync::Arc;

use crate::{Error, Volume};

/// A file inside a disk, to be read from anywhere in it.
///
/// Holds where its bytes lay when it was opened: of a disk that is written
/// meanwhile it may read what is there now.
#[derive(Clone)]
pub struct ReadableFile {
    path: Arc<str>,
    volume: Volume,
    bytes: Arc<Bytes>,
}

/// Where the bytes of a file are.
pub(crate) struct Bytes {
    pub(crate) size_bytes: u64,
    pub(crate) place: Place,
}

pub(crate) enum Place {
    /// In order of `at`, without overlaps; what no stretch holds is zeros.
    Stretches(Vec<Stretch>),
    /// Stored within other structures.
    Inline(Vec<u8>),
}

/// Bytes of a file that lie in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// Where in the file.
    pub(crate) at: u64,
    /// Where in the volume.
    pub(crate) from: u64,
    pub(crate) bytes: u64,
}

/// Stretches of one file that are kept in mind, 24 bytes each.
pub(crate) const MAX_STRETCHES: usize = 1 << 17;

impl ReadableFile {
    pub(crate) fn new(path: &str, volume: &Volume, bytes: Bytes) -> ReadableFile {
        ReadableFile {
            path: path.into(),
            volume: volume.clone(),
            bytes: Arc::new(bytes),
        }
    }

    /// Where it lies within its file system, links resolved.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its length.
    pub fn size_bytes(&self) -> u64 {
        self.bytes.size_bytes
    }

    /// Fills `buffer` from `offset` on, as far as the file goes; gives how many
    /// bytes that were.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, Error> {
        let left = self.size_bytes().saturating_sub(offset);
        let length = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let buffer = &mut buffer[..length];
        buffer.fill(0);
        match &self.bytes.place {
            Place::Inline(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let bytes = bytes.get(start..).unwrap_or_default();
                let stored = bytes.len().min(length);
                buffer[..stored].copy_from_slice(&bytes[..stored]);
            }
            Place::Stretches(stretches) => {
                let end = offset + length as u64;
                let first = stretches.partition_point(|s| s.at + s.bytes <= offset);
                for stretch in &stretches[first..] {
                    if stretch.at >= end {
                        break;
                    }
                    let from = stretch.at.max(offset);
                    let to = (stretch.at + stretch.bytes).min(end);
                    let index = |at: u64| usize::try_from(at - offset).unwrap_or(usize::MAX);
                    let piece = &mut buffer[index(from)..index(to)];
                    self.volume
                        .read(stretch.from + (from - stretch.at), piece)?;
                }
            }
        }
        Ok(length)
    }

    /// All of it, where it is no longer than `limit_bytes`.
    pub fn read_all(&self, limit_bytes: u64) -> Result<Vec<u8>, Error> {
        if self.size_bytes() > limit_bytes {
            return Err(Error::Foreign(format!(
                "{} has {} bytes: more than {limit_bytes} are not read",
                self.path,
                self.size_bytes()
            )));
        }
        let mut bytes = vec![0; usize::try_from(self.size_bytes()).unwrap_or(0)];
        let length = self.read_at(0, &mut bytes)?;
        bytes.truncate(length);
        Ok(bytes)
    }
}

impl std::fmt::Debug for ReadableFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes)", self.path, self.size_bytes())
    }
}

/// Adds a stretch behind the others, as one with the last where they touch.
pub(crate) fn add_stretch(stretches: &mut Vec<Stretch>, next: Stretch) -> Result<(), Error> {
    if let Some(last) = stretches.last_mut()
        && last.at + last.bytes == next.at
        && last.from + last.bytes == next.from
    {
        last.bytes += next.bytes;
        return Ok(());
    }
    if stretches.len() >= MAX_STRETCHES {
        return Err(Error::TooMuch {
            what: "pieces of one file",
            limit: MAX_STRETCHES as u64,
        });
    }
    stretches.push(next);
    Ok(())
}
