//! What a disk file says of itself: its format, sizes, identity and parents.

use std::path::{Path, PathBuf};

use crate::formats::{Opening, open};
use crate::probe::{Format, probe};
use crate::{Access, Disk, Geometry, OpenError, qcow2, vhd, vhdx};

/// What a disk file is and holds.
#[derive(Clone, Debug)]
pub struct Description {
    /// Its format.
    pub format: Format,
    /// The same in words, with the kind: `dynamic VHD`.
    pub name: String,
    /// The disk's size and block sizes.
    pub geometry: Geometry,
    /// Bytes the file takes on its file system; a device does not tell.
    pub stored_bytes: Option<u64>,
    /// The unit in which the format allocates (a VHD's or VHDX's block, a
    /// qcow2's cluster); `None` where all has its place from the start.
    pub unit_bytes: Option<u64>,
    /// Bytes of the units that are allocated in this file, without its parents.
    pub allocated_bytes: Option<u64>,
    /// The disk's own identity, as its bytes stand in the file.
    pub uuid: Option<[u8; 16]>,
    /// The program that made it.
    pub creator: Option<String>,
    /// When it was made, in seconds since 1970.
    pub created_unix_seconds: Option<u64>,
    /// What it lies upon, the nearest first.
    pub parents: Vec<PathBuf>,
    /// What an operator should know besides, as sentences without a full stop:
    /// a footer that is lost, a log that waits.
    pub notes: Vec<String>,
}

/// Describes the file or block device at `path`. It is opened read-only,
/// whatever `opening` says.
pub fn describe(path: &Path, opening: &Opening) -> Result<Description, OpenError> {
    let format = match opening.format {
        Some(format) => format,
        None => probe(path)?,
    };
    let opening = Opening {
        format: Some(format),
        access: Access::ReadOnly,
        ..opening.clone()
    };
    match format {
        Format::Vhd(_) => Ok(vhd::open(path, &opening)?.describe()),
        Format::Vhdx => Ok(vhdx::open(path, &opening)?.describe()),
        Format::Qcow2 => Ok(qcow2::open(path, &opening)?.describe()),
        other => {
            let disk = open(path, &opening)?;
            Ok(plain(other, &*disk))
        }
    }
}

/// The description of a disk whose file says nothing more.
fn plain(format: Format, disk: &dyn Disk) -> Description {
    Description {
        format,
        name: format.to_string(),
        geometry: disk.geometry(),
        stored_bytes: disk.space().map(|space| space.used_bytes),
        unit_bytes: None,
        allocated_bytes: None,
        uuid: None,
        creator: None,
        created_unix_seconds: None,
        parents: Vec::new(),
        notes: Vec::new(),
    }
}
