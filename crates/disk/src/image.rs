//! Golden images: a version's `disk.raw`, opened read-only.
//!
//! The manifest beside it is the program's; what an overlay must know of its
//! image comes in as a [`BaseId`].

use std::fmt;
use std::path::{Path, PathBuf};

use crate::{Access, Disk, DiskError, OpenError, Raw};

/// Name of the disk inside a version's directory.
pub const DISK_FILE: &str = "disk.raw";

/// Which image an overlay lies on: written in the overlay's head, compared
/// whenever it is opened.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BaseId {
    /// The version's own UUID.
    pub uuid: [u8; 16],
    /// SHA-256 of all its bytes.
    pub sha256: [u8; 32],
    /// Its size, a multiple of 512.
    pub size_bytes: u64,
}

impl fmt::Display for BaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, sha256 ", uuid::Uuid::from_bytes(self.uuid))?;
        for byte in &self.sha256[..6] {
            write!(f, "{byte:02x}")?;
        }
        write!(f, "…, {} bytes", self.size_bytes)
    }
}

impl fmt::Debug for BaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BaseId({self})")
    }
}

/// Where the disk of the version in `version_dir` lies.
pub fn disk_path(version_dir: &Path) -> PathBuf {
    version_dir.join(DISK_FILE)
}

/// Opens the disk of the version in `version_dir` (`DATA/images/NAME/vNNN`).
///
/// Refuses when it is missing or its size is not the one `id` names; its bytes
/// are checked by a scrub, not here.
pub fn open(version_dir: &Path, id: &BaseId) -> Result<Raw, OpenError> {
    let path = disk_path(version_dir);
    let disk = match Raw::open(&path, Access::ReadOnly) {
        Err(DiskError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(OpenError::Missing { path });
        }
        other => other?,
    };
    let size_bytes = disk.geometry().size_bytes;
    if size_bytes != id.size_bytes {
        return Err(OpenError::Disk(DiskError::Corrupt(format!(
            "{} has {size_bytes} bytes, published with {}",
            path.display(),
            id.size_bytes
        ))));
    }
    Ok(disk)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(size_bytes: u64) -> BaseId {
        BaseId {
            uuid: [1; 16],
            sha256: [2; 32],
            size_bytes,
        }
    }

    #[test]
    fn a_missing_image_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            open(dir.path(), &id(4096)),
            Err(OpenError::Missing { .. })
        ));
    }

    #[test]
    fn an_image_of_another_size_than_published_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(disk_path(dir.path()), vec![0; 8192]).unwrap();
        assert!(open(dir.path(), &id(8192)).is_ok());
        let error = open(dir.path(), &id(4096)).err().unwrap();
        assert!(error.to_string().contains("published with 4096"), "{error}");
    }
}
