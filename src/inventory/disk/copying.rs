//! Own disks made from other disks: imports, clones, conversions. Each is a
//! job; the new file gets its name when it is whole.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::probe::Format;
use disk::{Access, Allocation, CopyError, Disk, DiskError, NewDisk, Opening, SharedDisk};
use rustix::fs::ioctl_ficlone;

use super::files::Busy;
use super::{DiskFormat, DiskKind, Disks, NewOwnDisk, OwnDisk, SIZE_STEP_BYTES, unmade, unopened};
use crate::inventory::import::{Origin, fetch};
use crate::inventory::job::{Job, JobKind, Outcome, Progress};
use crate::inventory::source::{Stamp, named};
use crate::inventory::spool::{Becomes, Spool};
use crate::inventory::{Error, Export, Inventory, Result};

/// Bytes compared at a time.
const COMPARE_BYTES: u64 = 1 << 20;

impl Inventory {
    /// Starts to copy a disk of any format, from a file, a block device, a
    /// stream or a URL, to a new disk.
    pub(crate) fn import_own_disk(
        &self,
        new: NewOwnDisk,
        format: DiskFormat,
        origin: Origin,
    ) -> Result<Job> {
        self.check_new(&new)?;
        match origin {
            Origin::File(path) if !path.is_absolute() => Err(Error::Invalid(format!(
                "{} must begin with \"/\": the server has a working directory of its own",
                path.display()
            ))),
            // What can be refused is refused at once.
            Origin::File(path) => {
                let source = Source::open(&path)?;
                source.require_blocks(format)?;
                self.start_copy(JobKind::Import, new, format, |_| Ok(source))
            }
            Origin::Stream(spool) => {
                let source = Source::spooled(spool)?;
                source.require_blocks(format)?;
                self.start_copy(JobKind::Import, new, format, |_| Ok(source))
            }
            Origin::Url(address) => {
                let images = Arc::clone(&self.images);
                self.start_copy(JobKind::Import, new, format, move |progress| {
                    Source::spooled(fetch(&address, Becomes::Disk, &images, progress)?)
                })
            }
        }
    }

    /// Starts to copy a disk that nobody writes to a new one of the same
    /// format; what it stands on is copied with it.
    pub(crate) fn clone_own_disk(&self, disk: &OwnDisk, new: NewOwnDisk) -> Result<Job> {
        self.check_new(&new)?;
        let path = self.disks.path(disk);
        let opened = self.open_own_disk(disk, Access::ReadOnly)?;
        let format = match disk.kind {
            DiskKind::Raw => DiskFormat::Raw,
            DiskKind::VhdFixed => DiskFormat::VhdFixed,
            DiskKind::Vhd if is_fixed(&path) => DiskFormat::VhdFixed,
            DiskKind::Vhd => DiskFormat::Vhd,
            DiskKind::Vhdx => DiskFormat::Vhdx,
        };
        let source = Source {
            file: (disk.kind == DiskKind::Raw).then_some(path),
            ..Source::of(opened)
        };
        self.start_copy(JobKind::Clone, new, format, |_| Ok(source))
    }

    fn start_copy(
        &self,
        kind: JobKind,
        new: NewOwnDisk,
        format: DiskFormat,
        source: impl FnOnce(&Progress) -> Result<Source> + Send + 'static,
    ) -> Result<Job> {
        let disks = Arc::clone(&self.disks);
        let disk = disks.draft(new, format.kind(), None);
        let subject = disk.name.to_string();
        self.start_job(kind, subject, move |progress| {
            let source = source(progress)?;
            let copied = source.copy_to(&disks, &disk, format, progress);
            if let Err(error) = copied {
                disks.discard(disk.id);
                return Err(error);
            }
            disks.publish(&disk, None)?;
            Ok(Outcome::Disk(disk))
        })
    }

    /// Starts to export a disk that nobody writes.
    pub(crate) fn export_own_disk(&self, disk: &OwnDisk, export: Export) -> Result<Job> {
        let opened = self.open_own_disk(disk, Access::ReadOnly)?;
        let plain = (disk.kind == DiskKind::Raw).then(|| self.disks.path(disk));
        self.start_export(disk.name.to_string(), opened, plain, export)
    }

    /// Starts to make a disk that nobody writes one of another format: a new
    /// file, compared with the old one, which then goes.
    pub(crate) fn convert_own_disk(&self, disk: &OwnDisk, format: DiskFormat) -> Result<Job> {
        if disk.is_in_place() {
            return Err(Error::Invalid(format!(
                "{} lies in place: `diskless disk import NEW {} --format ...` makes a disk of it",
                disk.name,
                disk.file.display()
            )));
        }
        if let Some(above) = self.store.read(|facts| facts.disks_above(disk.id))?.first() {
            return Err(Error::Conflict(format!(
                "disk {} stands on {}: it would not find it any more",
                above.name, disk.name
            )));
        }
        let busy = self.disks.occupy(disk.id)?;
        let opened = self.open_own_disk(disk, Access::ReadOnly)?;
        let mut file = super::files::file_name(&disk.name, format.kind());
        if file == disk.file {
            // Another file until the switch; names of disks have no dot.
            file = PathBuf::from(format!("{}.2.{}", disk.name, format.kind().suffix()));
        }
        let converted = OwnDisk {
            file,
            kind: format.kind(),
            parent: None,
            ..disk.clone()
        };
        let (disks, disk) = (Arc::clone(&self.disks), disk.clone());
        let subject = disk.name.to_string();
        self.start_job(JobKind::Conversion, subject, move |progress| {
            let _busy: Busy = busy;
            let source = Source::of(opened);
            let copied = source
                .copy_to(&disks, &disk, format, progress)
                .and_then(|copy| compare(&*source.disk, &*copy, progress));
            if let Err(error) = copied {
                disks.discard(disk.id);
                return Err(error);
            }
            // Nobody opens the old file meanwhile: the source holds its lock.
            disks.switch(&disk, &converted)?;
            Ok(Outcome::Disk(converted))
        })
    }
}

/// A disk that is copied; nobody writes it as long as it is open here.
struct Source {
    disk: SharedDisk,
    /// As people know it, where it is not one of ours.
    shown: Option<String>,
    /// The file whose bytes the disk's are, where blocks may be shared with it.
    file: Option<PathBuf>,
    /// A file that somebody may write although it is open here.
    stamp: Option<(PathBuf, Stamp)>,
    /// Keeps the file of a stream.
    _spool: Option<Spool>,
}

impl Source {
    /// A disk file of any format, or a block device.
    fn open(path: &Path) -> Result<Source> {
        Source::open_as(path, &path.display().to_string())
    }

    /// What has come in as a stream.
    fn spooled(spool: Spool) -> Result<Source> {
        let source = Source::open_as(spool.path(), spool.shown())?;
        Ok(Source {
            stamp: None,
            _spool: Some(spool),
            ..source
        })
    }

    /// `shown` is what people know it as.
    fn open_as(path: &Path, shown: &str) -> Result<Source> {
        let is_device = super::files::require_disk(path)?;
        let stamp =
            Stamp::of(path).map_err(|e| Error::Invalid(format!("cannot read {shown}: {e}")))?;
        let opened = disk::open(path, &Opening::new(Access::ReadOnly));
        let disk = opened.map_err(|e| unopened(e).reworded(|words| named(&words, path, shown)))?;
        if disk.geometry().size_bytes == 0 {
            return Err(Error::Invalid(format!(
                "{shown} is empty: there is no disk in it"
            )));
        }
        Ok(Source {
            shown: Some(shown.to_owned()),
            stamp: (!is_device).then(|| (path.to_owned(), stamp)),
            ..Source::of(disk)
        })
    }

    fn of(disk: SharedDisk) -> Source {
        Source {
            disk,
            shown: None,
            file: None,
            stamp: None,
            _spool: None,
        }
    }

    /// Refuses a format that cannot say how long this disk's blocks are: its
    /// partition table would not be found.
    fn require_blocks(&self, format: DiskFormat) -> Result<()> {
        let bytes = self.disk.geometry().logical_block_bytes;
        if bytes != 4096 || format.kind() == DiskKind::Vhdx {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "{} has blocks of {bytes} bytes, and a {} file does not say so: its partition table \
             would not be found (`diskless disk import NAME FILE --format vhdx` keeps its blocks)",
            self.shown.as_deref().unwrap_or("the disk"),
            format.kind().suffix()
        )))
    }

    /// Refuses a file that was written while it was read.
    fn require_unchanged(&self) -> Result<()> {
        let Some((path, stamp)) = &self.stamp else {
            return Ok(());
        };
        stamp.require(path, self.shown.as_deref().unwrap_or_default())
    }

    /// Copies it to the unfinished file of `made`, durably.
    fn copy_to(
        &self,
        disks: &Disks,
        made: &OwnDisk,
        format: DiskFormat,
        progress: &Progress,
    ) -> Result<SharedDisk> {
        self.require_blocks(format)?;
        let path = disks.unfinished_path(made.id);
        let geometry = self.disk.geometry();
        progress.begin("copying", Some(geometry.size_bytes));
        if let Some(file) = &self.file
            && let Some(clone) = share_blocks(file, &path)
        {
            return clone;
        }
        let new = NewDisk {
            format: format.alone(),
            size_bytes: geometry.size_bytes.next_multiple_of(SIZE_STEP_BYTES),
            // A disc becomes a disk of ordinary blocks.
            logical_block_bytes: match geometry.logical_block_bytes {
                4096 => 4096,
                _ => 512,
            },
        };
        let copy = disk::create(&path, &new).map_err(|e| unmade(e, &path, &made.name))?;
        let mut heard = |done_bytes| match progress.advance(done_bytes) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        };
        match disk::copy(&*self.disk, &*copy, &mut heard) {
            Ok(()) => self.require_unchanged().map(|()| copy),
            Err(CopyError::Cancelled) => Err(progress.cancellation()),
            Err(CopyError::Target(DiskError::NoSpace(_))) => Err(Error::Failed(
                "no space left under the data directory; nothing was kept".to_owned(),
            )),
            Err(error) => Err(Error::Failed(error.to_string())),
        }
    }
}

/// A copy that shares its blocks with a raw file; `None` where the file system
/// cannot.
fn share_blocks(source: &Path, target: &Path) -> Option<Result<SharedDisk>> {
    let from = File::open(source).ok()?;
    let to = File::create_new(target).ok()?;
    if ioctl_ficlone(&to, &from).is_err() {
        // What is made next is made anew.
        let _ = std::fs::remove_file(target);
        return None;
    }
    let opening = Opening {
        format: Some(Format::Raw),
        ..Opening::new(Access::ReadWrite)
    };
    let synced = to
        .sync_all()
        .map_err(|e| Error::Failed(format!("cannot write {}: {e}", target.display())));
    drop(to);
    Some(synced.and_then(|()| disk::open(target, &opening).map_err(unopened)))
}

/// Reads both disks and refuses where they differ.
fn compare(source: &dyn Disk, copy: &dyn Disk, progress: &Progress) -> Result<()> {
    let size_bytes = source.geometry().size_bytes;
    progress.begin("verifying", Some(size_bytes));
    let failed = |error: DiskError| Error::Failed(error.to_string());
    let length = usize::try_from(COMPARE_BYTES).unwrap_or(usize::MAX);
    let (mut one, mut other) = (vec![0; length], vec![0; length]);
    let mut at = 0;
    while at < size_bytes {
        progress.advance(at)?;
        let rest = size_bytes - at;
        let nothing = |disk: &dyn Disk| -> Result<u64> {
            let extent = disk.extent(at, rest).map_err(failed)?;
            Ok(match extent.allocation {
                Allocation::Deallocated => extent.bytes,
                Allocation::Mapped => 0,
            })
        };
        // Where neither holds anything, both are zeros.
        let skipped = nothing(source)?.min(nothing(copy)?);
        if skipped > 0 {
            at += skipped;
            continue;
        }
        let bytes = usize::try_from(rest.min(COMPARE_BYTES)).unwrap_or(length);
        source.read(at, &mut one[..bytes]).map_err(failed)?;
        copy.read(at, &mut other[..bytes]).map_err(failed)?;
        if one[..bytes] != other[..bytes] {
            return Err(Error::Failed(format!(
                "the copy differs from the disk near byte {at}: nothing was kept"
            )));
        }
        at += bytes as u64;
    }
    progress.advance(size_bytes)
}

fn is_fixed(path: &Path) -> bool {
    let format = disk::probe::probe(path);
    matches!(format, Ok(Format::Vhd(disk::probe::VhdKind::Fixed)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests::Site;

    #[test]
    fn a_source_that_is_written_while_it_is_copied_is_refused() {
        let site = Site::new();
        let path = site.directory().join("a.raw");
        std::fs::write(&path, vec![1; 1 << 20]).unwrap();
        let new = NewOwnDisk {
            name: crate::inventory::Name::parse("a").unwrap(),
            comment: String::new(),
        };
        let made = site.disks.draft(new, DiskKind::Raw, None);
        let source = Source::open(&path).unwrap();
        let progress = Progress::for_tests();
        let copy = || source.copy_to(&site.disks, &made, DiskFormat::Raw, &progress);
        copy().unwrap();
        site.disks.discard(made.id);
        let written = File::options().append(true).open(&path).unwrap();
        written.set_len((1 << 20) + 512).unwrap();
        let refusal = copy().err().unwrap().to_string();
        assert!(
            refusal.contains("a.raw changed while it was read"),
            "{refusal}"
        );
    }
}
