//! What comes in as a stream (standard input, a download), kept in a file until
//! it is whole and one can tell what it is.
//!
//! The file lies under `DATA/images` in a directory of its own with a temporary
//! name: it goes with this value, or at the next start. Zeros become holes.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use disk::probe::{Format, probe};
use rustix::fs::fstatvfs;

use super::image::write_sparse;
use super::{Error, Inventory, Result};

/// Bytes gathered before they are written.
const PIECE_BYTES: usize = 1 << 20;

/// Written between two looks at the space that is left, and two syncs.
const LOOK_BYTES: u64 = 64 << 20;

/// Never taken by a stream: overlays of running machines live on it. A
/// sixteenth of a file system, and at most this.
const RESERVE_MAX_BYTES: u64 = 1 << 30;

/// What a stream is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Becomes {
    /// A version of an image.
    Image,
    /// An own disk.
    Disk,
}

impl Becomes {
    /// The command that takes the stream.
    fn command(self) -> &'static str {
        match self {
            Becomes::Image => "diskless image import NAME -",
            Becomes::Disk => "diskless disk import NAME -",
        }
    }
}

/// A stream that is kept.
#[derive(Debug)]
pub(crate) struct Spool {
    shown: String,
    becomes: Becomes,
    /// `None` when it was handed on.
    directory: Option<PathBuf>,
    path: PathBuf,
    file: File,
    /// What has come in and is not written yet.
    pending: Vec<u8>,
    written_bytes: u64,
    looked_at: u64,
}

impl Inventory {
    /// Begins to keep a stream, `shown` to people as that.
    pub(crate) fn spool(&self, shown: impl Into<String>, becomes: Becomes) -> Result<Spool> {
        Spool::in_directory(self.images.temporary_directory()?, shown.into(), becomes)
    }
}

impl Spool {
    /// In a directory that goes with it.
    pub(super) fn in_directory(
        directory: PathBuf,
        shown: String,
        becomes: Becomes,
    ) -> Result<Spool> {
        let path = disk::image::disk_path(&directory);
        let made = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path);
        let file = match made {
            Ok(file) => file,
            Err(e) => {
                let _ = fs::remove_dir(&directory);
                return Err(Error::Failed(format!(
                    "cannot make {}: {e}",
                    path.display()
                )));
            }
        };
        Ok(Spool {
            shown,
            becomes,
            directory: Some(directory),
            path,
            file,
            pending: Vec::new(),
            written_bytes: 0,
            looked_at: 0,
        })
    }

    /// As people know it.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses a stream of that many bytes when there is no room for it.
    pub(crate) fn require_room(&self, bytes: u64) -> Result<()> {
        let Ok(system) = fstatvfs(&self.file) else {
            return Ok(());
        };
        let all = system.f_blocks.saturating_mul(system.f_frsize);
        let free = system.f_bavail.saturating_mul(system.f_frsize);
        let reserve = (all / 16).min(RESERVE_MAX_BYTES);
        if bytes > free.saturating_sub(reserve) {
            return Err(self.no_room(bytes));
        }
        Ok(())
    }

    /// Takes the next bytes.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = PIECE_BYTES - self.pending.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() == PIECE_BYTES {
                self.write_pending()?;
            }
        }
        Ok(())
    }

    /// The stream is whole. Refused when it is compressed.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.write_pending()?;
        let length = self.file.set_len(self.written_bytes);
        length
            .and_then(|()| self.file.sync_data())
            .map_err(|e| self.unwritten(&e))
    }

    /// Its directory, which is the caller's from here on.
    pub(super) fn keep(mut self) -> PathBuf {
        self.directory.take().unwrap_or_default()
    }

    fn write_pending(&mut self) -> Result<()> {
        let is_first = self.written_bytes == 0;
        write_sparse(&self.file, self.written_bytes, &self.pending)
            .map_err(|e| self.unwritten(&e))?;
        self.written_bytes += self.pending.len() as u64;
        self.pending.clear();
        if is_first {
            self.require_unpacked()?;
        }
        if self.written_bytes - self.looked_at >= LOOK_BYTES {
            self.looked_at = self.written_bytes;
            self.require_room(0)?;
            self.file.sync_data().map_err(|e| self.unwritten(&e))?;
        }
        Ok(())
    }

    /// Refuses what is compressed at its beginning, not after hours.
    fn require_unpacked(&self) -> Result<()> {
        let format = probe(&self.path).map_err(|e| Error::Failed(e.to_string()))?;
        let Format::Compressed(compression) = format else {
            return Ok(());
        };
        Err(Error::Invalid(format!(
            "{} is compressed: unpack it on its way, as in `{} | {}`",
            self.shown,
            compression.pipe(),
            self.becomes.command()
        )))
    }

    fn unwritten(&self, e: &io::Error) -> Error {
        match e.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => self.no_room(self.written_bytes),
            _ => Error::Failed(format!("cannot write {}: {e}", self.path.display())),
        }
    }

    fn no_room(&self, bytes: u64) -> Error {
        Error::Failed(format!(
            "no space left for {} ({} MiB or more) under the data directory; nothing was kept",
            self.shown,
            bytes.div_ceil(1 << 20)
        ))
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if let Some(directory) = &self.directory
            && let Err(e) = fs::remove_dir_all(directory)
        {
            tracing::warn!("cannot remove {} yet: {e}", directory.display());
        }
    }
}
