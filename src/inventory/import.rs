//! Imports: a raw file or block device becomes the next version of an image.
//!
//! A copy that leaves holes where the source has zeros; on a file system that
//! can, the blocks are shared with the source instead (reflink) and only read.
//! Either way every byte passes through SHA-256 and a CRC for each MiB. The
//! version is built in a temporary directory and appears by one rename, so an
//! import that fails, is cancelled or dies changes nothing.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use sha2::{Digest, Sha256};

use super::image::{CRC_CHUNK_BYTES, Content, Images, LOGICAL_BLOCK_BYTES};
use super::job::{Job, JobKind, Outcome, Progress};
use super::{Error, Image, Inventory, Name, Result};

/// What to import.
#[derive(Clone, Debug)]
pub(crate) struct ImportRequest {
    /// Image it becomes a version of.
    pub(crate) name: Name,
    /// Raw file or block device, from the root.
    pub(crate) source: PathBuf,
    /// The operator's words.
    pub(crate) comment: String,
}

/// Longest comment.
const COMMENT_MAX_BYTES: usize = 1000;

/// Granularity of the holes that are left: the block of most file systems.
const HOLE_BYTES: usize = 4096;

/// Written, at most, between two syncs, so that the last one is short and other
/// writers of this host are not held up.
const SYNC_BYTES: u64 = 64 * 1024 * 1024;

impl Inventory {
    /// Starts an import; what can be refused at once is.
    pub(crate) fn start_import(&self, request: ImportRequest) -> Result<Job> {
        if request.comment.len() > COMMENT_MAX_BYTES {
            return Err(Error::Invalid(format!(
                "the comment is too long: {COMMENT_MAX_BYTES} bytes at most"
            )));
        }
        let source = Source::open(&request.source)?;
        let images = Arc::clone(&self.images);
        let subject = request.name.to_string();
        self.start_job(JobKind::Import, subject, move |progress| {
            progress.begin("reading", Some(source.size_bytes));
            let image = import(&request, &source, &images, progress)?;
            Ok(Outcome::Image(image))
        })
    }
}

fn import(
    request: &ImportRequest,
    source: &Source,
    images: &Images,
    progress: &Progress,
) -> Result<Arc<Image>> {
    let directory = images.temporary_directory()?;
    let imported = copy(request, source, &directory, progress)
        .and_then(|content| images.publish(&directory, content));
    if imported.is_err()
        && let Err(e) = fs::remove_dir_all(&directory)
    {
        tracing::warn!("cannot remove {} yet: {e}", directory.display());
    }
    imported
}

/// Copies the source to a synced, read-only `disk.raw` in `directory`.
fn copy(
    request: &ImportRequest,
    source: &Source,
    directory: &Path,
    progress: &Progress,
) -> Result<Content> {
    let path = disk::image::disk_path(directory);
    let unwritten = |e: io::Error| match e.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::Failed(format!(
            "no space left to import {}: it needs up to {} MiB under the data directory; \
             nothing was kept",
            request.source.display(),
            source.size_bytes.div_ceil(1 << 20)
        )),
        _ => Error::Failed(format!("cannot write {}: {e}", path.display())),
    };
    let disk = File::create_new(&path).map_err(unwritten)?;
    let shares_blocks = source.is_file && ioctl_ficlone(&disk, &source.file).is_ok();
    let size_bytes = source
        .size_bytes
        .next_multiple_of(u64::from(LOGICAL_BLOCK_BYTES));
    disk.set_len(size_bytes).map_err(unwritten)?;

    let mut sha256 = Sha256::new();
    let mut crc32c = Vec::new();
    let mut chunk = vec![0_u8; CRC_CHUNK_BYTES];
    let mut hole = Hole::default();
    let (mut offset, mut unsynced_bytes) = (0, 0);
    while offset < size_bytes {
        let chunk_bytes = (size_bytes - offset).min(CRC_CHUNK_BYTES as u64);
        let chunk = &mut chunk[..usize::try_from(chunk_bytes).unwrap_or(CRC_CHUNK_BYTES)];
        if hole.covers(source, offset, chunk_bytes) {
            chunk.fill(0);
        } else {
            source.read(offset, chunk)?;
            if !shares_blocks {
                unsynced_bytes += write_sparse(&disk, offset, chunk).map_err(unwritten)?;
            }
        }
        sha256.update(&*chunk);
        crc32c.push(crc32c::crc32c(chunk));
        offset += chunk_bytes;
        if unsynced_bytes >= SYNC_BYTES {
            disk.sync_data().map_err(unwritten)?;
            unsynced_bytes = 0;
        }
        progress.advance(offset.min(source.size_bytes))?;
    }
    source.require_unchanged()?;
    disk.set_permissions(fs::Permissions::from_mode(0o444))
        .and_then(|()| disk.sync_all())
        .map_err(unwritten)?;
    Ok(Content {
        name: request.name.clone(),
        size_bytes,
        sha256: sha256.finalize().into(),
        crc32c,
        comment: request.comment.clone(),
    })
}
/// Writes what is not zero, in whole runs; answers how much that was.
fn write_sparse(disk: &File, offset: u64, chunk: &[u8]) -> io::Result<u64> {
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

/// What is imported, open for reading.
struct Source {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    /// A file, not a block device.
    is_file: bool,
    modified: Option<std::time::SystemTime>,
}

impl Source {
    /// Opens a raw file or block device; refuses anything else with what to do.
    fn open(path: &Path) -> Result<Source> {
        if !path.is_absolute() {
            return Err(Error::Invalid(format!(
                "{} must begin with \"/\": the server has a working directory of its own",
                path.display()
            )));
        }
        let unread = |e: io::Error| Error::Invalid(format!("cannot read {}: {e}", path.display()));
        // Asked before it is opened: opening a pipe would wait for a writer.
        let found = fs::metadata(path).map_err(unread)?;
        let is_file = found.file_type().is_file();
        if !is_file && !found.file_type().is_block_device() {
            return Err(Error::Invalid(format!(
                "{} is neither a file nor a block device: import a raw disk image",
                path.display()
            )));
        }
        let format = disk::probe::probe(path).map_err(|e| Error::Invalid(e.to_string()))?;
        if let Some(advice) = format.advice(path) {
            return Err(Error::Invalid(advice));
        }
        let file = File::open(path).map_err(unread)?;
        let size_bytes = seek(&file, SeekFrom::End(0)).map_err(|e| unread(e.into()))?;
        if size_bytes == 0 {
            return Err(Error::Invalid(format!("{} is empty", path.display())));
        }
        Ok(Source {
            path: path.to_owned(),
            file,
            size_bytes,
            is_file,
            modified: found.modified().ok(),
        })
    }

    /// Fills `chunk` from `offset`; zeros past the end.
    fn read(&self, offset: u64, chunk: &mut [u8]) -> Result<()> {
        let there = usize::try_from(self.size_bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (inside, past) = chunk.split_at_mut(there.min(chunk.len()));
        past.fill(0);
        self.file
            .read_exact_at(inside, offset)
            .map_err(|e| match e.kind() {
                ErrorKind::UnexpectedEof => self.changed(),
                _ => Error::Failed(format!(
                    "cannot read {} at byte {offset}: {e}",
                    self.path.display()
                )),
            })
    }

    /// Refuses a file that was written while it was read.
    fn require_unchanged(&self) -> Result<()> {
        if !self.is_file {
            return Ok(());
        }
        let now = self
            .file
            .metadata()
            .map_err(|e| Error::Failed(format!("cannot read {}: {e}", self.path.display())))?;
        if now.len() != self.size_bytes || now.modified().ok() != self.modified {
            return Err(self.changed());
        }
        Ok(())
    }

    fn changed(&self) -> Error {
        Error::Conflict(format!(
            "{} changed while it was read: make sure that nothing writes to it \
             (is a virtual machine running from it?) and import it again",
            self.path.display()
        ))
    }
}

/// The hole of the source that was found last.
#[derive(Default)]
struct Hole {
    /// Where data begins at or after `asked`.
    data: u64,
    asked: u64,
}

impl Hole {
    /// Whether a range of the source is all hole. Unsure is no.
    fn covers(&mut self, source: &Source, offset: u64, bytes: u64) -> bool {
        if !source.is_file {
            return false;
        }
        if offset < self.asked || offset >= self.data {
            self.asked = offset;
            self.data = match seek(&source.file, SeekFrom::Data(offset)) {
                Ok(data) => data,
                // No data to the end.
                Err(rustix::io::Errno::NXIO) => u64::MAX,
                // The file system knows no holes.
                Err(_) => offset,
            };
        }
        self.data >= offset.saturating_add(bytes)
    }
}

#[cfg(test)]
mod tests;
