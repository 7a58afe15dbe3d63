//! Golden images: immutable, versioned disks under `DATA/images`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use jiff::Timestamp;
use uuid::Uuid;

use super::{Error, Inventory, Name, Result};

/// One version of a golden image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    /// Name, shared by its versions.
    pub(crate) name: Name,
    /// Version, from 1.
    pub(crate) version: u32,
    /// Of this version; an overlay's head names it.
    pub(crate) uuid: Uuid,
    /// Size of the disk, a multiple of `logical_block_bytes`.
    pub(crate) size_bytes: u64,
    /// The unit in which the disk is addressed.
    pub(crate) logical_block_bytes: u32,
    /// The version it was committed from, if it was.
    pub(crate) parent: Option<u32>,
    /// SHA-256 of the whole content.
    pub(crate) sha256: [u8; 32],
    /// The operator's words.
    pub(crate) comment: String,
    /// When it was published.
    pub(crate) created: Timestamp,
    /// Its directory, `DATA/images/NAME/vNNN`.
    pub(crate) directory: PathBuf,
}

impl Image {
    /// The read-only raw disk.
    pub(crate) fn disk_path(&self) -> PathBuf {
        self.directory.join("disk.raw")
    }
}

/// `win11` (its current version) or `win11@3`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ImageRef {
    /// Image.
    pub(crate) name: Name,
    /// Version; `None` is the highest there is.
    pub(crate) version: Option<u32>,
}

impl ImageRef {
    /// Reads `NAME` or `NAME@VERSION`.
    pub(crate) fn parse(text: &str) -> Result<ImageRef> {
        todo!()
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some(version) => write!(f, "{}@{version}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

impl Inventory {
    /// Every version of every image, by name and version.
    pub(crate) fn images(&self) -> Vec<Arc<Image>> {
        todo!()
    }

    /// The image meant: the version named, or the current one; a sentence when
    /// there is none.
    pub(crate) fn image(&self, meant: &ImageRef) -> Result<Arc<Image>> {
        todo!()
    }

    /// Removes one version, or every version; refused while a machine or an
    /// overlay uses it. Answers what was removed.
    pub(crate) fn remove_image(&self, meant: &ImageRef) -> Result<Vec<Arc<Image>>> {
        todo!()
    }
}

/// The images found under `DATA/images`.
pub(super) struct Images {
    found: RwLock<BTreeMap<Name, BTreeMap<u32, Arc<Image>>>>,
}
