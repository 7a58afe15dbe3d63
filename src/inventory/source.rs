//! What is imported: a file of any format, a block device, or what came in as
//! a stream ([`Spool`]).

use std::fmt::Display;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use disk::probe::Format;
use disk::{Access, Allocation, Opening, SharedDisk};
use rustix::fs::{SeekFrom, ioctl_blksszget, ioctl_ficlone, seek};

use super::image::LOGICAL_BLOCK_BYTES;
use super::spool::Spool;
use super::{Error, Result};

/// What is imported, open for reading.
pub(super) struct Source {
    /// As people know it: a path, `standard input`, a URL.
    shown: String,
    path: PathBuf,
    content: Content,
    size_bytes: u64,
    /// A file, not a block device.
    is_file: bool,
    stamp: Stamp,
    /// It came in as a stream: nobody else writes it.
    is_ours: bool,
    /// Keeps the file of a stream.
    spool: Option<Spool>,
}

/// Where the bytes of the disk are.
enum Content {
    /// They are those of the file.
    Plain(File),
    /// The format knows.
    Disk(SharedDisk),
}

impl Source {
    /// Opens a file or block device; refuses what holds no disk with what to
    /// do.
    pub(super) fn open(path: &Path) -> Result<Source> {
        if !path.is_absolute() {
            return Err(Error::Invalid(format!(
                "{} must begin with \"/\": the server has a working directory of its own",
                path.display()
            )));
        }
        Source::open_as(path, path.display().to_string())
    }

    /// Opens what has come in as a stream.
    pub(super) fn spooled(spool: Spool) -> Result<Source> {
        let source = Source::open_as(spool.path(), spool.shown().to_owned())?;
        Ok(Source {
            is_ours: true,
            spool: Some(spool),
            ..source
        })
    }

    fn open_as(path: &Path, shown: String) -> Result<Source> {
        let unread = |e: io::Error| Error::Invalid(format!("cannot read {shown}: {e}"));
        // Asked before it is opened: opening a pipe would wait for a writer.
        let found = fs::metadata(path).map_err(unread)?;
        let is_file = found.file_type().is_file();
        if !is_file && !found.file_type().is_block_device() {
            return Err(Error::Invalid(format!(
                "{shown} is neither a file nor a block device: import a disk image"
            )));
        }
        let refused = |e: &dyn Display| Error::Invalid(named(e, path, &shown));
        let format = disk::probe::probe(path).map_err(|e| refused(&e))?;
        let (content, size_bytes) = match format {
            Format::Raw | Format::Iso9660 => {
                let file = File::open(path).map_err(unread)?;
                let size_bytes = seek(&file, SeekFrom::End(0)).map_err(|e| unread(e.into()))?;
                if !is_file {
                    let bytes = ioctl_blksszget(&file).map_err(|e| unread(e.into()))?;
                    require_blocks(bytes, &shown)?;
                }
                (Content::Plain(file), size_bytes)
            }
            other => {
                let opening = Opening {
                    format: Some(other),
                    ..Opening::new(Access::ReadOnly)
                };
                let disk = disk::open(path, &opening).map_err(|e| refused(&e))?;
                let geometry = disk.geometry();
                require_blocks(geometry.logical_block_bytes, &shown)?;
                (Content::Disk(disk), geometry.size_bytes)
            }
        };
        if size_bytes == 0 {
            return Err(Error::Invalid(format!("{shown} is empty")));
        }
        Ok(Source {
            shown,
            path: path.to_owned(),
            content,
            size_bytes,
            is_file,
            stamp: Stamp::new(&found),
            is_ours: false,
            spool: None,
        })
    }

    /// As people know it.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// Size of the disk; of a raw file any number of bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The file of a raw disk that came in as a stream, to be kept as it is:
    /// the directory it lies in alone, which is the caller's from here on.
    pub(super) fn take_raw(&mut self) -> Option<PathBuf> {
        match (&self.content, self.spool.take()) {
            (Content::Plain(_), Some(spool)) => Some(spool.keep()),
            (_, spool) => {
                self.spool = spool;
                None
            }
        }
    }

    /// Makes the blocks of a raw file those of `disk`, an empty file, too:
    /// where the file system can.
    pub(super) fn share_blocks(&self, disk: &File) -> bool {
        match &self.content {
            Content::Plain(file) => self.is_file && ioctl_ficlone(disk, file).is_ok(),
            Content::Disk(_) => false,
        }
    }

    /// Fills `chunk` from `offset`; zeros past the end.
    pub(super) fn read(&self, offset: u64, chunk: &mut [u8]) -> Result<()> {
        let there = usize::try_from(self.size_bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (inside, past) = chunk.split_at_mut(there.min(chunk.len()));
        past.fill(0);
        let file = match &self.content {
            Content::Plain(file) => file,
            Content::Disk(disk) => {
                let read = disk.read(offset, inside);
                return read.map_err(|e| Error::Failed(format!("cannot read {}: {e}", self.shown)));
            }
        };
        file.read_exact_at(inside, offset)
            .map_err(|e| match e.kind() {
                ErrorKind::UnexpectedEof => changed(&self.shown),
                _ => Error::Failed(format!("cannot read {} at byte {offset}: {e}", self.shown)),
            })
    }

    /// Refuses a file that was written while it was read.
    pub(super) fn require_unchanged(&self) -> Result<()> {
        if !self.is_file || self.is_ours {
            return Ok(());
        }
        match &self.content {
            Content::Plain(file) => self.stamp.require_of(file.metadata(), &self.shown),
            Content::Disk(_) => self.stamp.require(&self.path, &self.shown),
        }
    }

    /// Where something is stored at or after `offset`; `None` to the end.
    fn data_after(&self, offset: u64) -> Option<u64> {
        match &self.content {
            // A device knows no holes.
            Content::Plain(_) if !self.is_file => Some(offset),
            Content::Plain(file) => match seek(file, SeekFrom::Data(offset)) {
                Ok(data) => Some(data),
                Err(rustix::io::Errno::NXIO) => None,
                // The file system knows no holes.
                Err(_) => Some(offset),
            },
            Content::Disk(disk) => {
                let left = self.size_bytes.saturating_sub(offset);
                match disk.extent(offset, left) {
                    Ok(extent) if extent.allocation == Allocation::Deallocated => {
                        Some(offset + extent.bytes)
                    }
                    // What is wrong there is for the read to say.
                    _ => Some(offset),
                }
            }
        }
    }
}

/// Refuses blocks that an image does not have.
fn require_blocks(bytes: u32, shown: &str) -> Result<()> {
    if bytes == LOGICAL_BLOCK_BYTES {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{shown} has blocks of {bytes} bytes, an image has {LOGICAL_BLOCK_BYTES}: its partition \
         table would not be found (`diskless disk import --format vhdx` keeps its blocks)"
    )))
}

/// How long a file is, and when it was last written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    bytes: u64,
    modified: Option<SystemTime>,
}

impl Stamp {
    /// Of the file at `path`.
    pub(super) fn of(path: &Path) -> io::Result<Stamp> {
        Ok(Stamp::new(&fs::metadata(path)?))
    }

    fn new(found: &Metadata) -> Stamp {
        Stamp {
            bytes: found.len(),
            modified: found.modified().ok(),
        }
    }

    /// Refuses when the file at `path` has another stamp by now.
    pub(super) fn require(&self, path: &Path, shown: &str) -> Result<()> {
        self.require_of(fs::metadata(path), shown)
    }

    fn require_of(&self, found: io::Result<Metadata>, shown: &str) -> Result<()> {
        match found {
            Err(e) => Err(Error::Failed(format!("cannot read {shown}: {e}"))),
            Ok(found) if Stamp::new(&found) != *self => Err(changed(shown)),
            Ok(_) => Ok(()),
        }
    }
}

fn changed(shown: &str) -> Error {
    Error::Conflict(format!(
        "{shown} changed while it was read: make sure that nothing writes to it \
         (is a virtual machine running from it?) and import it again"
    ))
}

/// What is wrong with a source, in words that name it as people know it.
pub(super) fn named(error: &dyn Display, path: &Path, shown: &str) -> String {
    error
        .to_string()
        .replace(&path.display().to_string(), shown)
}

/// The hole of a source that was found last.
#[derive(Default)]
pub(super) struct Hole {
    /// Where data begins at or after `asked`.
    data: u64,
    asked: u64,
}

impl Hole {
    /// Whether a range of the source is all hole. Unsure is no.
    pub(super) fn covers(&mut self, source: &Source, offset: u64, bytes: u64) -> bool {
        if offset < self.asked || offset >= self.data {
            self.asked = offset;
            self.data = source.data_after(offset).unwrap_or(u64::MAX);
        }
        self.data >= offset.saturating_add(bytes).min(source.size_bytes)
    }
}
