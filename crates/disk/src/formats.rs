//! Disk files by their format: opened, made, copied.
//!
//! A new format is a module of its own and one line in each of [`open`] and
//! [`create`]; the contract suite says when it is done.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::probe::{Format, probe};
use crate::raw::{Raw, RawOptions};
use crate::{Access, Allocation, Disk, DiskError, OpenError, SharedDisk, qcow2, vhd, vhdx};

/// How a disk file is to be opened.
#[derive(Clone, Debug)]
pub struct Opening {
    /// What it is; `None` asks the file itself.
    pub format: Option<Format>,
    /// Read-only, or written in place.
    pub access: Access,
    /// Directories that the parents of a differencing disk (or the backing
    /// files of a qcow2) may lie in, besides the file's own. A locator that
    /// leads anywhere else is refused: it is the file that names them.
    pub parent_roots: Vec<PathBuf>,
}

impl Opening {
    /// Whatever the file is, with parents beside it only.
    pub fn new(access: Access) -> Opening {
        Opening {
            format: None,
            access,
            parent_roots: Vec::new(),
        }
    }
}

/// Opens a disk file or block device as the disk it holds.
pub fn open(path: &Path, opening: &Opening) -> Result<SharedDisk, OpenError> {
    let format = match opening.format {
        Some(format) => format,
        None => probe(path)?,
    };
    let raw = |logical_block_bytes| -> Result<SharedDisk, OpenError> {
        let options = RawOptions {
            access: opening.access,
            logical_block_bytes,
        };
        Ok(Arc::new(Raw::open_with(path, options)?))
    };
    match format {
        Format::Raw => raw(None),
        Format::Iso9660 if opening.access == Access::ReadOnly => raw(Some(2048)),
        Format::Iso9660 => raw(None),
        Format::Vhd(_) => Ok(Arc::new(vhd::open(path, opening)?)),
        Format::Vhdx => Ok(Arc::new(vhdx::open(path, opening)?)),
        Format::Qcow2 => Ok(Arc::new(qcow2::open(path, opening)?)),
        other => Err(OpenError::Foreign {
            advice: other.advice(path).unwrap_or_default(),
        }),
    }
}

/// A disk file to be made.
#[derive(Clone, Debug)]
pub struct NewDisk {
    /// As what.
    pub format: NewFormat,
    /// A multiple of `logical_block_bytes`; of a disk above a parent the
    /// parent's size, or 0 for whatever that is.
    pub size_bytes: u64,
    /// 512 or 4096, where the format can say it.
    pub logical_block_bytes: u32,
}

/// The formats a disk file can be made in, to be written in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewFormat {
    /// Bytes as they are, sparse.
    Raw,
    /// VHD, all space at its place from the start (sparse on the host).
    VhdFixed,
    /// VHD, allocated as it is written.
    VhdDynamic,
    /// VHD above a parent, whose size it has.
    VhdDifferencing {
        /// The parent, itself a VHD.
        parent: PathBuf,
    },
    /// VHDX, all space at its place from the start (sparse on the host).
    VhdxFixed,
    /// VHDX, allocated as it is written.
    VhdxDynamic,
    /// VHDX above a parent, whose size it has.
    VhdxDifferencing {
        /// The parent, itself a VHDX.
        parent: PathBuf,
    },
}

/// Makes the file `path`, which does not exist yet, an empty disk, durable
/// under its name, and opens it to be written.
pub fn create(path: &Path, new: &NewDisk) -> Result<SharedDisk, OpenError> {
    match &new.format {
        NewFormat::Raw => Ok(Arc::new(Raw::create(path, new.size_bytes)?)),
        NewFormat::VhdFixed | NewFormat::VhdDynamic | NewFormat::VhdDifferencing { .. } => {
            Ok(Arc::new(vhd::create(path, new)?))
        }
        NewFormat::VhdxFixed | NewFormat::VhdxDynamic | NewFormat::VhdxDifferencing { .. } => {
            Ok(Arc::new(vhdx::create(path, new)?))
        }
    }
}

/// Makes the disk in `path` larger while nobody has it open; what is new reads
/// as zeros. Never smaller, and what it holds stays as it is.
///
/// `opening` says what it is and where its parents may lie; it is written
/// whatever `opening` says of that. When this fails, or the power, the disk has
/// the old size or the new one.
pub fn grow(path: &Path, opening: &Opening, size_bytes: u64) -> Result<(), OpenError> {
    let format = match opening.format {
        Some(format) => format,
        None => probe(path)?,
    };
    match format {
        Format::Raw | Format::Iso9660 => {
            let disk = Raw::open(path, Access::ReadWrite)?;
            if disk.geometry().size_bytes != size_bytes {
                disk.grown(size_bytes)?;
            }
            Ok(())
        }
        Format::Vhd(_) => vhd::grow(path, opening, size_bytes),
        Format::Vhdx => vhdx::grow(path, opening, size_bytes),
        other => Err(OpenError::Foreign {
            advice: format!("{} is {other}, which is not grown in place", path.display()),
        }),
    }
}

/// Bytes a copy reads at a time.
const COPY_BYTES: u64 = 1 << 20;

/// The granularity in which a copy leaves zeros out.
const ZERO_BYTES: usize = 4096;

/// Copies all of `source` to `target`, which reads as zeros everywhere and is
/// at least as large; what is zero is not written. Flushes at the end.
///
/// `progress` hears how many bytes of the source are done, again and again;
/// [`ControlFlow::Break`] ends the copy with [`CopyError::Cancelled`].
pub fn copy(
    source: &dyn Disk,
    target: &dyn Disk,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<(), CopyError> {
    let size_bytes = source.geometry().size_bytes;
    let mut chunk = vec![0_u8; usize::try_from(COPY_BYTES.min(size_bytes)).unwrap_or(0)];
    let mut at = 0;
    while at < size_bytes {
        if progress(at).is_break() {
            return Err(CopyError::Cancelled);
        }
        let extent = source
            .extent(at, size_bytes - at)
            .map_err(CopyError::Source)?;
        if extent.allocation == Allocation::Deallocated {
            at += extent.bytes;
            continue;
        }
        let end = at + extent.bytes.min(COPY_BYTES);
        source.will_need(end, COPY_BYTES.min(size_bytes - end));
        let part = &mut chunk[..usize::try_from(end - at).unwrap_or(0)];
        source.read(at, part).map_err(CopyError::Source)?;
        write_what_is_not_zero(target, at, part).map_err(CopyError::Target)?;
        at = end;
    }
    target.flush().map_err(CopyError::Target)?;
    // The end is heard too, and is past stopping.
    let _ = progress(size_bytes);
    Ok(())
}

/// Writes the runs of `bytes` that hold something.
fn write_what_is_not_zero(target: &dyn Disk, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
    static ZEROS: [u8; ZERO_BYTES] = [0; ZERO_BYTES];
    let is_zero = |block: &&[u8]| **block == ZEROS[..block.len()];
    let mut at = 0;
    while at < bytes.len() {
        let run: usize = bytes[at..]
            .chunks(ZERO_BYTES)
            .take_while(|block| !is_zero(block))
            .map(<[u8]>::len)
            .sum();
        if run > 0 {
            target.write(offset + at as u64, &bytes[at..at + run])?;
        }
        // The block that ended the run is zeros.
        at += run + ZERO_BYTES;
    }
    Ok(())
}

/// Why a copy ended early.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The disk that was read refused.
    #[error(transparent)]
    Source(DiskError),
    /// The disk that was written refused.
    #[error(transparent)]
    Target(DiskError),
    /// It was told to stop.
    #[error("cancelled")]
    Cancelled,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ram;

    #[test]
    fn a_raw_file_is_made_whole_and_only_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new.raw");
        let new = NewDisk {
            format: NewFormat::Raw,
            size_bytes: 3 << 20,
            logical_block_bytes: 512,
        };
        let disk = create(&path, &new).unwrap();
        assert_eq!(disk.geometry().size_bytes, 3 << 20);
        disk.write(512, &[1]).unwrap();
        drop(disk);
        assert!(matches!(create(&path, &new), Err(OpenError::Exists { .. })));
        let again = open(&path, &Opening::new(Access::ReadOnly)).unwrap();
        let mut seen = [0];
        again.read(512, &mut seen).unwrap();
        assert_eq!(seen, [1]);
    }

    #[test]
    fn a_copy_is_the_same_and_leaves_zeros_out() {
        let mut bytes = vec![0; 4 << 20];
        bytes[5000..9000].fill(7);
        bytes[(3 << 20) + 1] = 9;
        let source = Ram::with_contents(bytes.clone());
        let target = Ram::new(4 << 20);
        let mut heard = Vec::new();
        copy(&source, &target, &mut |done| {
            heard.push(done);
            ControlFlow::Continue(())
        })
        .unwrap();
        let mut seen = vec![1; 4 << 20];
        target.read(0, &mut seen).unwrap();
        assert!(seen == bytes);
        assert_eq!(heard.last(), Some(&(4 << 20)));
        let first = target.extent(0, 4 << 20).unwrap();
        assert_eq!(
            (first.allocation, first.bytes),
            (Allocation::Deallocated, 4096)
        );
    }

    #[test]
    fn a_copy_that_is_told_to_stop_stops() {
        let disk = Ram::new(4 << 20);
        let answer = copy(&disk, &Ram::new(4 << 20), &mut |_| ControlFlow::Break(()));
        assert!(matches!(answer, Err(CopyError::Cancelled)));
    }
}
