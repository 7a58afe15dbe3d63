//! Exports: a disk of ours becomes a file of somebody else's.
//!
//! Written under a temporary name beside the target, synced, and given its name
//! at the end: what fails or is cancelled leaves nothing, and what dies with the
//! program is removed at its next start ([`unfinished`]). The file belongs to
//! whoever owns the directory it lies in, and only its owner reads it: it holds
//! what the disk holds.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::{CopyError, Disk, DiskError, NewDisk, NewFormat, SharedDisk};
use rustix::fs::{CWD, OFlags, RenameFlags, ioctl_ficlone, renameat_with};
use rustix::process::geteuid;

pub(super) use unfinished::{NOTES, tidy};

use super::job::{Job, JobKind, Outcome, Progress};
use super::source::named;
use super::{Error, Image, ImageRef, Inventory, Result, sync_directory};
use unfinished::Unfinished;

mod unfinished;

/// Where a disk is to go.
#[derive(Clone, Debug)]
pub(crate) struct Export {
    /// The file, from the root.
    pub(crate) path: PathBuf,
    /// As what; `None` asks its suffix.
    pub(crate) format: Option<ExportFormat>,
    /// What becomes of a file that is there.
    pub(crate) existing: Existing,
}

/// What becomes of a file that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    /// It stays, and the export is refused.
    Stays,
    /// The export takes its place.
    IsReplaced,
}

/// The formats of exported files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExportFormat {
    /// Bytes as they are, sparse.
    Raw,
    /// VHD that holds what is not zero.
    Vhd,
    /// VHD with everything at its place; what Azure takes.
    VhdFixed,
    /// VHDX that holds what is not zero.
    Vhdx,
    /// qcow2 of version 3.
    Qcow2,
}

impl ExportFormat {
    /// What a file's suffix says.
    fn of_suffix(path: &Path) -> Option<ExportFormat> {
        let suffix = path.extension()?.to_str()?.to_ascii_lowercase();
        match suffix.as_str() {
            "raw" | "img" => Some(ExportFormat::Raw),
            "vhd" => Some(ExportFormat::Vhd),
            "vhdx" => Some(ExportFormat::Vhdx),
            "qcow2" => Some(ExportFormat::Qcow2),
            _ => None,
        }
    }
}

/// A file that was written.
#[derive(Clone, Debug)]
pub(crate) struct Exported {
    /// Where.
    pub(crate) path: PathBuf,
    /// As what.
    pub(crate) format: ExportFormat,
    /// Size of the disk.
    pub(crate) size_bytes: u64,
    /// What the file takes.
    pub(crate) stored_bytes: u64,
}

impl Inventory {
    /// Starts to export a version of an image.
    pub(crate) fn export_image(&self, meant: &ImageRef, export: Export) -> Result<Job> {
        let image = self.image(meant)?;
        let disk = open_image(&image)?;
        // What is damaged is only found by reading.
        let plain = image.damage.is_none().then(|| image.disk_path());
        self.start_export(image.to_string(), disk, plain, export)
    }

    /// Starts to export a disk as it is; nobody may write it meanwhile. `plain`
    /// is the file whose bytes are the disk's, where there is one: a raw export
    /// shares its blocks where the file system can.
    pub(crate) fn start_export(
        &self,
        subject: impl Into<String>,
        disk: SharedDisk,
        plain: Option<PathBuf>,
        export: Export,
    ) -> Result<Job> {
        let target = Target::check(self.data(), export)?;
        self.start_job(JobKind::Export, subject, move |progress| {
            target.write(&*disk, plain.as_deref(), progress)?;
            target.publish()?;
            Ok(Outcome::Exported(Exported {
                stored_bytes: fs::metadata(&target.path).map_or(0, |m| m.blocks() * 512),
                size_bytes: disk.geometry().size_bytes,
                path: target.path,
                format: target.format,
            }))
        })
    }
}

/// Opens the disk of an image, read-only.
pub(crate) fn open_image(image: &Image) -> Result<SharedDisk> {
    let disk = disk::image::open(
        &image.directory,
        &image.base_id(),
        Arc::clone(&image.damage),
    )
    .map_err(|e| Error::Failed(format!("cannot open {image}: {e}")))?;
    Ok(Arc::new(disk))
}

/// An export that may begin.
struct Target {
    path: PathBuf,
    directory: PathBuf,
    /// What it is until it is whole.
    unfinished: Unfinished,
    format: ExportFormat,
    existing: Existing,
}

impl Target {
    fn check(data: &Path, export: Export) -> Result<Target> {
        let Export {
            path,
            format,
            existing,
        } = export;
        let shown = path.display();
        if !path.is_absolute() {
            return Err(Error::Invalid(format!(
                "{shown} must begin with \"/\": the server has a working directory of its own"
            )));
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Error::Invalid(format!("{shown} is no name of a file")));
        };
        let Some(format) = format.or_else(|| ExportFormat::of_suffix(&path)) else {
            return Err(Error::Invalid(format!(
                "{shown} does not say what it is to be: end it with .raw, .vhd, .vhdx or .qcow2, \
                 or name a format (--format)"
            )));
        };
        let directory = parent
            .canonicalize()
            .map_err(|e| Error::Invalid(format!("cannot write into {}: {e}", parent.display())))?;
        if directory.starts_with(data) {
            return Err(Error::Invalid(format!(
                "{shown} lies in the data directory: export to another place"
            )));
        }
        match fs::symlink_metadata(&path) {
            Ok(found) if !found.is_file() => {
                return Err(Error::Invalid(format!(
                    "{shown} is there and is no file (to write a drive, export to - and pipe it)"
                )));
            }
            Ok(_) if existing == Existing::Stays => return Err(is_there(&path)),
            _ => {}
        }
        Ok(Target {
            unfinished: Unfinished::begin(&data.join(NOTES), &directory, name)?,
            path: directory.join(name),
            directory,
            format,
            existing,
        })
    }

    /// Writes the whole disk under the temporary name, durably.
    fn write(&self, disk: &dyn Disk, plain: Option<&Path>, progress: &Progress) -> Result<()> {
        let geometry = disk.geometry();
        progress.begin("writing", Some(geometry.size_bytes));
        let format = match self.format {
            ExportFormat::Raw => NewFormat::Raw,
            ExportFormat::Vhd => NewFormat::VhdDynamic,
            ExportFormat::VhdFixed => NewFormat::VhdFixed,
            ExportFormat::Vhdx => NewFormat::VhdxDynamic,
            ExportFormat::Qcow2 => {
                let path = self.unfinished.path();
                let written = disk::export_qcow2(disk, path, &mut |done| progress.heard(done));
                return written.map_err(|e| self.unwritten(e, progress));
            }
        };
        let new = NewDisk {
            format,
            size_bytes: geometry.size_bytes,
            logical_block_bytes: match geometry.logical_block_bytes {
                4096 => 4096,
                _ => 512,
            },
        };
        let copy = disk::create(self.unfinished.path(), &new).map_err(|e| self.uncreated(&e))?;
        if self.format == ExportFormat::Raw
            && let Some(plain) = plain
            && share_blocks(plain, self.unfinished.path()).is_ok()
        {
            return Ok(());
        }
        disk::copy(disk, &*copy, &mut |done| progress.heard(done))
            .map_err(|e| self.unwritten(e, progress))
    }

    /// Gives the file its owner, its mode and its name.
    fn publish(&self) -> Result<()> {
        let failed =
            |e: io::Error| Error::Failed(format!("cannot write {}: {e}", self.path.display()));
        let owner = fs::metadata(&self.directory).map_err(failed)?;
        let file = self.finished()?;
        let mode = fs::Permissions::from_mode(0o600);
        file.set_permissions(mode).map_err(failed)?;
        // Only root may; for anyone else the file is theirs already.
        let _ = fchown(&file, Some(owner.uid()), Some(owner.gid()));
        file.sync_all().map_err(failed)?;
        match self.existing {
            Existing::IsReplaced => {
                fs::rename(self.unfinished.path(), &self.path).map_err(failed)?
            }
            Existing::Stays => self.rename_to_new().map_err(|e| match e.kind() {
                io::ErrorKind::AlreadyExists => is_there(&self.path),
                _ => failed(e),
            })?,
        }
        sync_directory(&self.directory).map_err(failed)
    }

    /// The file that was written. Whoever owns the directory may have put
    /// another into its place, or a link to one that is not theirs: that is
    /// never given to them.
    fn finished(&self) -> Result<File> {
        let path = self.unfinished.path().display();
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = File::options()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(self.unfinished.path())
            .map_err(|e| Error::Failed(format!("cannot finish {path}: {e}")))?;
        let found = file
            .metadata()
            .map_err(|e| Error::Failed(format!("cannot finish {path}: {e}")))?;
        if !found.is_file() || found.nlink() != 1 || found.uid() != geteuid().as_raw() {
            return Err(Error::Conflict(format!(
                "{path} is not the file that was written: export to a directory where nobody \
                 else writes"
            )));
        }
        Ok(file)
    }

    /// Fails when the name has been taken meanwhile.
    fn rename_to_new(&self) -> io::Result<()> {
        let flags = RenameFlags::NOREPLACE;
        match renameat_with(CWD, self.unfinished.path(), CWD, &self.path, flags) {
            // The file system cannot tell; a second name is as exclusive.
            Err(rustix::io::Errno::INVAL) => {
                fs::hard_link(self.unfinished.path(), &self.path)?;
                fs::remove_file(self.unfinished.path())
            }
            renamed => Ok(renamed?),
        }
    }

    fn uncreated(&self, error: &disk::OpenError) -> Error {
        let shown = self.path.display().to_string();
        Error::Failed(named(error, self.unfinished.path(), &shown))
    }

    fn unwritten(&self, error: CopyError, progress: &Progress) -> Error {
        match error {
            CopyError::Cancelled => progress.cancellation(),
            CopyError::Target(DiskError::NoSpace(_)) => Error::Failed(format!(
                "no space left in {}; nothing was kept",
                self.directory.display()
            )),
            error => Error::Failed(error.to_string()),
        }
    }
}

fn is_there(path: &Path) -> Error {
    Error::Conflict(format!(
        "{} is there already: name another file, or replace it (--force)",
        path.display()
    ))
}

/// Makes the blocks of `source` those of `target` too, durably.
fn share_blocks(source: &Path, target: &Path) -> io::Result<()> {
    let target = File::options().write(true).open(target)?;
    ioctl_ficlone(&target, File::open(source)?)?;
    target.sync_all()
}

#[cfg(test)]
mod tests;
