//! Imports: a disk file, a block device, a stream or a download becomes the next
//! version of an image.
//!
//! A copy that leaves holes where the source has zeros; on a file system that
//! can, the blocks are shared with the source instead (reflink) and only read.
//! Either way every byte passes through SHA-256 and a CRC for each MiB. The
//! version is built in a temporary directory and appears by one rename, so an
//! import that fails, is cancelled or dies changes nothing.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::download::{Address, download};
use super::image::{CRC_CHUNK_BYTES, Content, Images, LOGICAL_BLOCK_BYTES, Part, VersionWriter};
use super::job::{Job, JobKind, Outcome, Progress};
use super::source::{Hole, Source};
use super::spool::{Becomes, Spool};
use super::{Error, Image, Inventory, Name, Result, comment};

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

impl Inventory {
    /// Starts an import; what can be refused at once is.
    pub(crate) fn start_import(&self, request: ImportRequest) -> Result<Job> {
        comment::check(&request.comment)?;
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
                Found::Elsewhere(address) => {
                    let spool = fetch(&address, Becomes::Image, &images, progress)?;
                    Source::spooled(spool)?
                }
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
pub(super) fn fetch(
    address: &Address,
    becomes: Becomes,
    images: &Images,
    progress: &Progress,
) -> Result<Spool> {
    let directory = images.temporary_directory()?;
    let mut spool = Spool::in_directory(directory, address.to_string(), becomes)?;
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
        let opened = match is_there {
            true => File::options().write(true).open(&path),
            false => File::create_new(&path),
        };
        let disk =
            opened.map_err(|e| Error::Failed(format!("cannot write {}: {e}", path.display())))?;
        let has_blocks = is_there || source.share_blocks(&disk);
        let size_bytes = source
            .size_bytes()
            .next_multiple_of(u64::from(LOGICAL_BLOCK_BYTES));
        let subject = format!("the import of {}", source.shown());
        let mut writer = VersionWriter::new(disk, directory, size_bytes, subject)?;
        let mut chunk = vec![0_u8; CRC_CHUNK_BYTES];
        let mut hole = Hole::default();
        loop {
            let bytes = writer.chunk_bytes();
            if bytes == 0 {
                break;
            }
            let chunk = &mut chunk[..bytes];
            let is_hole = hole.covers(source, writer.offset(), bytes as u64);
            if is_hole {
                chunk.fill(0);
            } else {
                source.read(writer.offset(), chunk)?;
            }
            let part = match is_hole || has_blocks {
                true => Part::There,
                false => Part::Sparse,
            };
            writer.push(chunk, [(part, bytes)])?;
            progress.advance(writer.offset().min(source.size_bytes()))?;
        }
        source.require_unchanged()?;
        let (sha256, checksums) = writer.finish()?;
        Ok(Content {
            name: self.name.clone(),
            size_bytes,
            sha256,
            checksums,
            parent: None,
            comment: self.comment.clone(),
        })
    }
}

#[cfg(test)]
mod tests;
