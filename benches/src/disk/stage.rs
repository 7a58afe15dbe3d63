//! What is measured: raw files, images, overlays with restore points.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::overlay::{Caching, OverlayMode};
use disk::{Access, BaseId, Disk, Overlay, Raw, SharedDisk};

use crate::peer::{point_id, write_layers};

/// A block of an overlay, and the unit of everything here.
pub(super) const BLOCK_BYTES: u64 = 4096;

/// Writes a file of `bytes` that holds no zeros, so that it is in the page
/// cache as a whole; 4 KiB at a time, as `make bench-iscsi` does.
pub(super) fn full_file(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut dice: u64 = 1;
    let mut block = [0; 4096];
    for _ in 0..bytes / BLOCK_BYTES {
        for word in block.chunks_exact_mut(8) {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            word.copy_from_slice(&dice.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    file.sync_all()
}

/// Makes a file of `bytes` that holds nothing.
pub(super) fn sparse_file(path: &Path, bytes: u64) -> io::Result<()> {
    File::create(path)?.set_len(bytes)
}

/// A golden image, and where the overlays above it lie.
pub(super) struct Stage {
    dir: PathBuf,
    image: SharedDisk,
    id: BaseId,
}

impl Stage {
    /// Over the image file `image`, which exists; overlays go into `dir`.
    pub(super) fn new(dir: &Path, image: &Path) -> io::Result<Stage> {
        let image = Raw::open(image, Access::ReadOnly).map_err(io::Error::other)?;
        let id = BaseId {
            uuid: [1; 16],
            sha256: [2; 32],
            size_bytes: image.geometry().size_bytes,
        };
        Ok(Stage {
            dir: dir.to_owned(),
            image: Arc::new(image),
            id,
        })
    }

    /// Where an overlay lies.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.id.size_bytes
    }

    pub(super) fn create(&self, name: &str) -> io::Result<Overlay> {
        let (path, image) = (self.path(name), self.image.clone());
        Overlay::create(
            &path,
            image,
            self.id,
            OverlayMode::Keep,
            1,
            Caching::WriteBack,
        )
        .map_err(io::Error::other)
    }

    pub(super) fn open(&self, name: &str) -> io::Result<Overlay> {
        let (path, image) = (self.path(name), self.image.clone());
        Overlay::open(&path, image, self.id, Caching::WriteBack).map_err(io::Error::other)
    }

    /// A new overlay that begins at the point `at` of `source`; not opened.
    pub(super) fn branch(&self, source: &str, at: u32, name: &str) -> io::Result<()> {
        let (source, path) = (self.path(source), self.path(name));
        Overlay::branch(&source, point_id(at), &path, OverlayMode::Keep, 1)
            .map_err(io::Error::other)
    }

    /// An overlay of every other stretch of the image, with `points` restore
    /// points that share them evenly; whatever their number, it reads the same.
    pub(super) fn with_points(&self, name: &str, points: u32) -> io::Result<Overlay> {
        let overlay = self.create(name)?;
        write_layers(&overlay, &*self.image, points)?;
        Ok(overlay)
    }
}
