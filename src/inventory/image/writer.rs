//! A version of an image while it is built: its disk, written from front to
//! back, and what is found out about it on the way.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use sha2::{Digest, Sha256};

use super::manifest::{CRC_CHUNK_BYTES, Checksums, ChecksumsWriter};
use crate::inventory::{Error, Result};

/// Granularity of the holes that are left: the block of most file systems.
pub(in crate::inventory) const HOLE_BYTES: usize = 4096;

/// Written, at most, between two syncs, so that the last one is short and other
/// writers of this host are not held up.
const SYNC_BYTES: u64 = 64 * 1024 * 1024;

/// A `disk.raw` that is written, a [`CRC_CHUNK_BYTES`] at a time.
pub(in crate::inventory) struct VersionWriter {
    disk: File,
    path: PathBuf,
    /// What is to be read in the sentence for lack of space.
    subject: String,
    size_bytes: u64,
    sha256: Sha256,
    checksums: ChecksumsWriter,
    offset: u64,
    unsynced_bytes: u64,
}

/// Where a part of a chunk is to come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::inventory) enum Part {
    /// It lies in the file already.
    There,
    /// It is written; what is zero is left out, the file being new.
    Sparse,
    /// It is written over what lies in the file.
    Over,
    /// It is zeros, over what lies in the file.
    Hole,
}

impl VersionWriter {
    /// Over `disk`, the open `disk.raw` in `directory`, which becomes
    /// `size_bytes` long.
    pub(in crate::inventory) fn new(
        disk: File,
        directory: &Path,
        size_bytes: u64,
        subject: String,
    ) -> Result<VersionWriter> {
        let writer = VersionWriter {
            disk,
            path: disk::image::disk_path(directory),
            subject,
            size_bytes,
            sha256: Sha256::new(),
            checksums: ChecksumsWriter::create(directory)?,
            offset: 0,
            unsynced_bytes: 0,
        };
        let sized = writer.disk.set_len(size_bytes);
        sized.map_err(|e| writer.unwritten(e))?;
        Ok(writer)
    }

    /// Bytes of the next chunk; 0 at the end.
    pub(in crate::inventory) fn chunk_bytes(&self) -> usize {
        let left = self.size_bytes - self.offset;
        usize::try_from(left).map_or(CRC_CHUNK_BYTES, |left| left.min(CRC_CHUNK_BYTES))
    }

    /// Where the next chunk begins.
    pub(in crate::inventory) fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the next chunk, all of it; `parts` follow each other and say how
    /// many of its bytes are to be treated how.
    pub(in crate::inventory) fn push(
        &mut self,
        chunk: &[u8],
        parts: impl IntoIterator<Item = (Part, usize)>,
    ) -> Result<()> {
        self.sha256.update(chunk);
        self.checksums.push(crc32c::crc32c(chunk))?;
        let mut at = 0;
        for (part, bytes) in parts {
            let offset = self.offset + at as u64;
            let slice = &chunk[at..at + bytes];
            let written = match part {
                Part::There => Ok(0),
                Part::Sparse => write_sparse(&self.disk, offset, slice),
                Part::Over => {
                    let written = self.disk.write_all_at(slice, offset);
                    written.map(|()| bytes as u64)
                }
                Part::Hole => {
                    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    match fallocate(&self.disk, flags, offset, bytes as u64) {
                        Ok(()) => Ok(0),
                        // Where there are no holes, zeros do.
                        Err(_) => self.disk.write_all_at(slice, offset).map(|()| bytes as u64),
                    }
                }
            };
            self.unsynced_bytes += written.map_err(|e| self.unwritten(e))?;
            at += bytes;
        }
        self.offset += chunk.len() as u64;
        if self.unsynced_bytes >= SYNC_BYTES {
            let synced = self.disk.sync_data();
            synced.map_err(|e| self.unwritten(e))?;
            self.unsynced_bytes = 0;
        }
        Ok(())
    }

    /// Makes it read-only and durable; answers the SHA-256 of the whole and the
    /// CRCs.
    pub(in crate::inventory) fn finish(self) -> Result<([u8; 32], Checksums)> {
        let ended = self
            .disk
            .set_permissions(fs::Permissions::from_mode(0o444))
            .and_then(|()| self.disk.sync_all());
        ended.map_err(|e| self.unwritten(e))?;
        Ok((self.sha256.finalize().into(), self.checksums.finish()?))
    }

    fn unwritten(&self, error: io::Error) -> Error {
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::Failed(format!(
                "no space left for {}: it needs up to {} MiB under the data directory; \
                 nothing was kept",
                self.subject,
                self.size_bytes.div_ceil(1 << 20)
            )),
            ErrorKind::FileTooLarge => Error::Invalid(format!(
                "{} needs a file of {} GiB, and the file system of the data directory has none so \
                 large (ext4: 16 TiB): keep the data on XFS",
                self.subject,
                self.size_bytes.div_ceil(1 << 30)
            )),
            _ => Error::Failed(format!("cannot write {}: {error}", self.path.display())),
        }
    }
}

/// Writes what is not zero, in whole runs; answers how much that was.
pub(in crate::inventory) fn write_sparse(
    disk: &File,
    offset: u64,
    chunk: &[u8],
) -> io::Result<u64> {
    static ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];
    let mut written = 0;
    let mut at = 0;
    let is_zero = |block: &[u8]| *block == ZEROS[..block.len()];
    while at < chunk.len() {
        let run: usize = chunk[at..]
            .chunks(HOLE_BYTES)
            .take_while(|block| !is_zero(block))
            .map(<[u8]>::len)
            .sum();
        if run > 0 {
            disk.write_all_at(&chunk[at..at + run], offset + at as u64)?;
            written += run as u64;
        }
        // The block that ended the run is zeros.
        at += run + HOLE_BYTES;
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_too_large_for_the_file_system_is_refused_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let disk = File::create_new(directory.path().join("disk.raw")).unwrap();
        let subject = "the import of huge.qcow2".to_owned();
        let writer = VersionWriter::new(disk, directory.path(), 512, subject).unwrap();
        let refusal = writer.unwritten(ErrorKind::FileTooLarge.into());
        assert!(matches!(refusal, Error::Invalid(_)), "{refusal}");
        let words = refusal.to_string();
        assert!(
            words.contains("huge.qcow2") && words.contains("XFS"),
            "{words}"
        );
    }
}
