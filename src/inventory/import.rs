//! Imports: a disk file, a block device, a stream or a download becomes the next
//! version of an image.
//!
//! A copy that leaves holes where the source has zeros; on a file system that
//! can, the blocks are shared with the source instead (reflink) and only read.
//! Either way every byte passes through SHA-256 and a CRC for each MiB. The
//! version is built in a temporary directory and appears by one rename, so an
//! import that fails, is cancelled or dies changes nothing.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::download::{Address, download};
use super::image::{CRC_CHUNK_BYTES, ChecksumsWriter, Content, Images, LOGICAL_BLOCK_BYTES};
use super::job::{Job, JobKind, Outcome, Progress};
use super::source::{Hole, Source};
use super::spool::Spool;
use super::{Error, Image, Inventory, Name, Result};

/// What to import.
#[derive(Debug)]
pub(crate) struct ImportRequest {
    /// Image it becomes a version of.
    pub(crate) name: Name,
    /// Where it comes from.
    pub(crate) origin: Origin,
    /// The operator's words.
    pub(crate) comment: String,
}

/// Where something comes from.
#[derive(Debug)]
pub(crate) enum Origin {
    /// A disk file of any format, or a block device, from the root.
    File(PathBuf),
    /// A stream that has come in.
    Stream(Spool),
    /// What is at a URL.
    Url(Address),
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
        let origin = match request.origin {
            Origin::File(path) => Found::Here(Source::open(&path)?),
            Origin::Stream(spool) => Found::Here(Source::spooled(spool)?),
            Origin::Url(address) => Found::Elsewhere(address),
        };
        let images = Arc::clone(&self.images);
        let subject = request.name.to_string();
        let import = Import {
            name: request.name,
            comment: request.comment,
        };
        self.start_job(JobKind::Import, subject, move |progress| {
            let source = match origin {
                Found::Here(source) => source,
                Found::Elsewhere(address) => Source::spooled(fetch(&address, &images, progress)?)?,
            };
            Ok(Outcome::Image(import.run(source, &images, progress)?))
        })
    }
}

/// An origin that may be read.
enum Found {
    Here(Source),
    Elsewhere(Address),
}

/// Keeps what is at a URL.
pub(super) fn fetch(address: &Address, images: &Images, progress: &Progress) -> Result<Spool> {
    let mut spool = Spool::in_directory(images.temporary_directory()?, address.to_string())?;
    download(address, &mut spool, progress)?;
    spool.finish()?;
    Ok(spool)
}

/// An import under way.
struct Import {
    name: Name,
    comment: String,
}

impl Import {
    fn run(&self, mut source: Source, images: &Images, progress: &Progress) -> Result<Arc<Image>> {
        progress.begin("reading", Some(source.size_bytes()));
        let raw = source.take_raw();
        let is_there = raw.is_some();
        let directory = match raw {
            Some(directory) => directory,
            None => images.temporary_directory()?,
        };
        let imported = self
            .copy(&source, &directory, is_there, progress)
            .and_then(|content| images.publish(&directory, content));
        if imported.is_err()
            && let Err(e) = fs::remove_dir_all(&directory)
        {
            tracing::warn!("cannot remove {} yet: {e}", directory.display());
        }
        imported
    }

    /// Copies the source to a synced, read-only `disk.raw` in `directory`;
    /// where it `is_there` already, it is only read.
    fn copy(
        &self,
        source: &Source,
        directory: &Path,
        is_there: bool,
        progress: &Progress,
    ) -> Result<Content> {
        let path = disk::image::disk_path(directory);
        let unwritten = |e: io::Error| match e.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::Failed(format!(
                "no space left to import {}: it needs up to {} MiB under the data directory; \
                 nothing was kept",
                source.shown(),
                source.size_bytes().div_ceil(1 << 20)
            )),
            _ => Error::Failed(format!("cannot write {}: {e}", path.display())),
        };
        let opened = match is_there {
            true => File::options().write(true).open(&path),
            false => File::create_new(&path),
        };
        let disk = opened.map_err(unwritten)?;
        let has_blocks = is_there || source.share_blocks(&disk);
        let size_bytes = source
            .size_bytes()
            .next_multiple_of(u64::from(LOGICAL_BLOCK_BYTES));
        disk.set_len(size_bytes).map_err(unwritten)?;

        let mut sha256 = Sha256::new();
        let mut checksums = ChecksumsWriter::create(directory)?;
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
                if !has_blocks {
                    unsynced_bytes += write_sparse(&disk, offset, chunk).map_err(unwritten)?;
                }
            }
            sha256.update(&*chunk);
            checksums.push(crc32c::crc32c(chunk))?;
            offset += chunk_bytes;
            if unsynced_bytes >= SYNC_BYTES {
                disk.sync_data().map_err(unwritten)?;
                unsynced_bytes = 0;
            }
            progress.advance(offset.min(source.size_bytes()))?;
        }
        source.require_unchanged()?;
        disk.set_permissions(fs::Permissions::from_mode(0o444))
            .and_then(|()| disk.sync_all())
            .map_err(unwritten)?;
        Ok(Content {
            name: self.name.clone(),
            size_bytes,
            sha256: sha256.finalize().into(),
            checksums: checksums.finish()?,
            parent: None,
            comment: self.comment.clone(),
        })
    }
}

/// Writes what is not zero, in whole runs; answers how much that was.
pub(super) fn write_sparse(disk: &File, offset: u64, chunk: &[u8]) -> io::Result<u64> {
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
mod tests;
