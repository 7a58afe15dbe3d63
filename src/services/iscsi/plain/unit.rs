//! Files and drives as logical units: how they are opened, and what is wrong
//! with one that cannot be.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use disk::{Access, Disk, DiskError, OpenError, Opening, Raw, RawOptions, SharedDisk, probe};
use iscsi::{Device, Identity, LogicalUnit, Medium, Provisioning, Shape};

use crate::inventory::{UnitFormat, UnitKind};

/// Block of a CD or DVD.
const OPTICAL_BLOCK_BYTES: u32 = 2048;

/// How a file becomes a unit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UnitOptions {
    /// What it is shown as.
    pub(crate) kind: UnitKind,
    /// Logical blocks; `None`: what the kind, or the device, has.
    pub(crate) block_bytes: Option<u32>,
    /// What it is; `None`: it is looked at.
    pub(crate) format: Option<UnitFormat>,
}

/// A file or drive, open.
pub(super) struct Backing {
    /// What is served.
    pub(super) disk: SharedDisk,
    /// The same, where its bytes are the disk's: such a one grows while it is
    /// open.
    pub(super) raw: Option<Arc<Raw>>,
    /// What it is.
    pub(super) format: UnitFormat,
}

impl Backing {
    pub(super) fn of_raw(raw: Raw) -> Backing {
        let raw = Arc::new(raw);
        Backing {
            disk: Arc::clone(&raw) as SharedDisk,
            raw: Some(raw),
            format: UnitFormat::Raw,
        }
    }
}

/// Opens a file or drive as a logical unit. What is wrong is said with what to
/// do about it.
pub(crate) fn open_unit(
    path: &Path,
    options: UnitOptions,
    identity: Identity,
) -> anyhow::Result<LogicalUnit> {
    let backing = open_disk(path, options, &[])?;
    Ok(shaped(backing.disk, options.kind, identity))
}

/// A unit of a kind over a disk.
pub(super) fn shaped(disk: SharedDisk, kind: UnitKind, identity: Identity) -> LogicalUnit {
    LogicalUnit::shaped(disk, identity, shape(kind))
}

/// Product name of a kind of unit, as operating systems show it.
pub(crate) fn product(kind: UnitKind) -> &'static str {
    match kind {
        UnitKind::Optical => "VIRTUAL DVD",
        _ => crate::services::iscsi::PRODUCT,
    }
}

fn shape(kind: UnitKind) -> Shape {
    let full = Shape {
        provisioning: Provisioning::Full,
        ..Shape::default()
    };
    match kind {
        UnitKind::Disk => full,
        UnitKind::Thin => Shape::default(),
        UnitKind::ReadOnly => Shape {
            access: Access::ReadOnly,
            ..full
        },
        UnitKind::Removable => Shape {
            medium: Medium::Removable,
            ..full
        },
        UnitKind::Optical => Shape {
            device: Device::Optical,
            medium: Medium::Removable,
            access: Access::ReadOnly,
            ..full
        },
    }
}

/// Opens a file or drive. Parents of a differencing disk are looked for beside
/// it and in `parent_roots`. What is wrong is said with what to do about it.
pub(super) fn open_disk(
    path: &Path,
    options: UnitOptions,
    parent_roots: &[PathBuf],
) -> anyhow::Result<Backing> {
    let shown = path.display();
    let kind = match fs::metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
            "{shown} does not exist: to make an empty disk of 10 GiB, truncate -s 10G {shown}"
        ),
        Err(error) => return Err(error).with_context(|| shown.to_string()),
    };
    if kind.is_dir() {
        bail!("{shown} is a directory: name a disk image, an ISO or a block device");
    }
    if !kind.is_file() && !kind.is_block_device() {
        bail!("{shown} is neither a file nor a block device");
    }
    let format = match options.format {
        Some(format) => format,
        None => {
            let found = probe::probe(path).map_err(|error| explained(path, error))?;
            match UnitFormat::of_format(found) {
                Some(format) => format,
                None => bail!("{}", found.advice(path).unwrap_or_default()),
            }
        }
    };
    let access = match options.kind.is_writable() {
        true => Access::ReadWrite,
        false => Access::ReadOnly,
    };
    if format != UnitFormat::Raw {
        return open_container(path, format, access, options, parent_roots);
    }
    let block_bytes = match options.kind {
        UnitKind::Optical => Some(OPTICAL_BLOCK_BYTES),
        _ => options.block_bytes,
    };
    let raw = Raw::open_with(
        path,
        RawOptions {
            access,
            logical_block_bytes: block_bytes,
        },
    )
    .map_err(|error| explained(path, error))?;
    if raw.geometry().size_bytes == 0 {
        bail!("{shown} is empty: to make it a disk of 10 GiB, truncate -s 10G {shown}");
    }
    Ok(Backing::of_raw(raw))
}

/// Opens a VHD, VHDX or qcow2.
fn open_container(
    path: &Path,
    format: UnitFormat,
    access: Access,
    options: UnitOptions,
    parent_roots: &[PathBuf],
) -> anyhow::Result<Backing> {
    let (shown, word) = (path.display(), format.word());
    if options.kind == UnitKind::Optical {
        bail!("{shown} is a {word} file, and the disc of a CD or DVD drive is an ISO");
    }
    if options.block_bytes.is_some() {
        bail!("{shown} is a {word} file, which says itself how large its blocks are");
    }
    if format == UnitFormat::Qcow2 && access == Access::ReadWrite {
        bail!(
            "{shown} is a qcow2 file, which is only read: serve it read-only (--read-only), or \
             make a disk of it (diskless disk import NAME {shown}, or qemu-img convert -O raw \
             {shown} {})",
            path.with_extension("raw").display()
        );
    }
    let opening = Opening {
        format: Some(format.format()),
        access,
        parent_roots: parent_roots.to_vec(),
    };
    let disk = disk::open(path, &opening).map_err(|error| match error {
        OpenError::Disk(error) => explained(path, error),
        OpenError::InUse { path } => in_use(&path),
        other => other.into(),
    })?;
    Ok(Backing {
        disk,
        raw: None,
        format,
    })
}

/// What a disk's refusal to open means to an operator.
fn explained(path: &Path, error: DiskError) -> anyhow::Error {
    let shown = path.display();
    let DiskError::Io { source, .. } = &error else {
        return error.into();
    };
    let what_to_do = match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            if fs::File::open(path).is_ok() =>
        {
            "it may be read and not written: change its permissions, or serve it read-only \
             (--read-only)"
        }
        io::ErrorKind::PermissionDenied => "this user may not read it: change its permissions",
        io::ErrorKind::ResourceBusy => {
            return in_use(path);
        }
        _ if source.raw_os_error() == Some(rustix::io::Errno::NOMEDIUM.raw_os_error()) => {
            "there is no disc in the drive"
        }
        _ => return error.into(),
    };
    anyhow::anyhow!("{shown}: {source}: {what_to_do}")
}

fn in_use(path: &Path) -> anyhow::Error {
    anyhow::anyhow!(
        "{} is in use: another program or target writes it, or reads what would be written here; \
         end that one, or serve it read-only in both (--read-only)",
        path.display()
    )
}
