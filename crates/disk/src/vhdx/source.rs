//! The file below a VHDX, read as it is once its log has been replayed.
//!
//! Every structure is fetched through here, so that a refusal names file,
//! field and offset. A file that is only read, and whose log was never
//! replayed, is patched in memory: not a byte of it is written.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::OpenError;
use crate::files::File;
use crate::health::trouble;

/// An open file, its name, and what its log changes in it.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// In the order in which they are to be made.
    patches: Vec<Patch>,
    /// Length of the file with the patches made, when it was opened.
    length: u64,
}

/// A change that a log holds.
#[derive(Clone, Debug)]
pub(super) enum Patch {
    /// A sector of 4 KiB.
    Data(u64, Box<[u8; 4096]>),
    /// Zeros: from where, how many.
    Zeros(u64, u64),
}

impl Source {
    pub(super) fn new(file: File, path: &Path) -> Result<Source, OpenError> {
        let metadata = file.inner().metadata();
        let metadata = metadata.map_err(|e| trouble(format!("reading {}", path.display()), e))?;
        Ok(Source {
            file,
            path: path.to_owned(),
            patches: Vec::new(),
            length: metadata.len(),
        })
    }

    /// Reads from now on as if `patches` had been written, and the file were
    /// at least `length` long.
    pub(super) fn patch(&mut self, patches: Vec<Patch>, length: u64) {
        self.patches = patches;
        self.length = self.length.max(length);
    }

    /// Whether reading differs from what lies in the file.
    pub(super) fn is_patched(&self) -> bool {
        !self.patches.is_empty()
    }

    /// Length when it was opened, or patched.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if self.patches.is_empty() {
            return self.file.read_exact_at(buffer, offset);
        }
        let end = offset.saturating_add(buffer.len() as u64);
        if end > self.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < buffer.len() {
            match self
                .file
                .inner()
                .read_at(&mut buffer[done..], offset + done as u64)
            {
                Ok(0) => break, // The log makes the file longer, with zeros.
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer[done..].fill(0);
        for patch in &self.patches {
            let (start, bytes) = match patch {
                Patch::Data(start, data) => (*start, data.len() as u64),
                Patch::Zeros(start, bytes) => (*start, *bytes),
            };
            let from = start.max(offset);
            let to = start.saturating_add(bytes).min(end);
            if from >= to {
                continue;
            }
            let target = &mut buffer[index(from - offset)..index(to - offset)];
            match patch {
                Patch::Data(_, data) => {
                    target.copy_from_slice(&data[index(from - start)..index(to - start)]);
                }
                Patch::Zeros(..) => target.fill(0),
            }
        }
        Ok(())
    }

    /// Reads a structure; a file that ends before it is malformed in `field`.
    pub(super) fn fetch(
        &self,
        field: &'static str,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), OpenError> {
        self.read_exact_at(buffer, offset).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                let reason = format!("the file ends before it, with {} bytes", self.length);
                self.malformed(field, offset, reason)
            } else {
                self.trouble("reading", error)
            }
        })
    }

    /// The file says in `field`, at byte `offset`, what cannot be.
    pub(super) fn malformed(
        &self,
        field: &'static str,
        offset: u64,
        reason: impl Into<String>,
    ) -> OpenError {
        OpenError::Malformed {
            path: self.path.clone(),
            field,
            offset,
            reason: reason.into(),
        }
    }

    pub(super) fn unsupported(&self, what: impl Into<String>) -> OpenError {
        OpenError::Unsupported {
            path: self.path.clone(),
            what: what.into(),
        }
    }

    /// The system refused to do `what` with it.
    pub(super) fn trouble(&self, what: &str, error: io::Error) -> OpenError {
        trouble(self.context(what), error).into()
    }

    pub(super) fn context(&self, what: &str) -> String {
        format!("{what} {}", self.path.display())
    }
}

/// Offsets into something that lies in memory.
pub(super) fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// `N` bytes at `at`, which the caller knows to be there.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

pub(super) fn guid_at(bytes: &[u8], at: usize) -> uuid::Uuid {
    uuid::Uuid::from_bytes_le(array(bytes, at))
}

pub(super) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

/// CRC32C of a structure whose own checksum, at byte 4, counts as zero.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&bytes[..4]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &bytes[8..])
}
