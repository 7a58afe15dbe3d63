//! Golden images: a version's `disk.raw`, opened read-only.
//!
//! The manifest beside it is the program's; what an overlay must know of its
//! image comes in as a [`BaseId`]. The program also finds out which parts of
//! an image are no longer what was published, and says so in its [`Damage`]:
//! those are refused, never handed out as if they were right.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::{
    Access, Disk, DiskError, Durability, Extent, Geometry, OpenError, Raw, Segment, Space,
};

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

/// Opens the disk of the version in `version_dir` (`DATA/images/NAME/vNNN`),
/// of which `damage` says what is not to be read.
///
/// Refuses when it is missing or its size is not the one `id` names; its bytes
/// are checked by a scrub, not here.
pub fn open(version_dir: &Path, id: &BaseId, damage: Arc<Damage>) -> Result<Golden, OpenError> {
    let path = disk_path(version_dir);
    let raw = match Raw::open(&path, Access::ReadOnly) {
        Err(DiskError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(OpenError::Missing { path });
        }
        other => other?,
    };
    let size_bytes = raw.geometry().size_bytes;
    if size_bytes != id.size_bytes {
        return Err(OpenError::Disk(DiskError::Corrupt(format!(
            "{} has {size_bytes} bytes, published with {}",
            path.display(),
            id.size_bytes
        ))));
    }
    Ok(Golden { raw, damage })
}

/// Which bytes of an image are not what was published.
///
/// Shared by everybody who has the image open: what is found while machines run
/// is refused to them from then on.
#[derive(Debug, Default)]
pub struct Damage {
    /// Whether there is any: all that a read of a sound image asks.
    any: AtomicBool,
    /// Sorted, and apart from each other.
    ranges: RwLock<Vec<Range<u64>>>,
}

impl Damage {
    /// Replaces what is known; ranges may come in any order and touch.
    pub fn set(&self, mut found: Vec<Range<u64>>) {
        found.retain(|range| !range.is_empty());
        found.sort_by_key(|range| range.start);
        let mut apart: Vec<Range<u64>> = Vec::with_capacity(found.len());
        for range in found {
            match apart.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => apart.push(range),
            }
        }
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        self.any.store(!apart.is_empty(), Ordering::Relaxed);
        *ranges = apart;
    }

    /// What is known to be damaged, in order.
    pub fn ranges(&self) -> Vec<Range<u64>> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        ranges.clone()
    }

    /// Whether nothing is known to be damaged.
    pub fn is_none(&self) -> bool {
        !self.any.load(Ordering::Relaxed)
    }

    /// The first damage a range touches.
    fn first_in(&self, offset: u64, bytes: u64) -> Option<Range<u64>> {
        if self.is_none() || bytes == 0 {
            return None;
        }
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let at = ranges.partition_point(|range| range.end <= offset);
        let first = ranges.get(at)?;
        (first.start < offset.saturating_add(bytes)).then(|| first.clone())
    }
}

/// A golden image's disk: read-only, and refused where it is damaged.
#[derive(Debug)]
pub struct Golden {
    raw: Raw,
    damage: Arc<Damage>,
}

impl Golden {
    fn require_sound(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        match self.damage.first_in(offset, bytes) {
            None => Ok(()),
            Some(damaged) => Err(DiskError::Corrupt(format!(
                "bytes {}..{} of {} are not what was published",
                damaged.start,
                damaged.end,
                self.raw.path().display()
            ))),
        }
    }
}

impl Disk for Golden {
    fn geometry(&self) -> Geometry {
        self.raw.geometry()
    }

    fn access(&self) -> Access {
        self.raw.access()
    }

    fn durability(&self) -> Durability {
        self.raw.durability()
    }

    fn is_thin(&self) -> bool {
        self.raw.is_thin()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.require_sound(offset, buffer.len() as u64)?;
        self.raw.read(offset, buffer)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.raw.write(offset, data)
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.raw.flush()
    }

    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.raw.unmap(offset, bytes)
    }

    fn segments<'a>(
        &'a self,
        offset: u64,
        bytes: u64,
        segments: &mut Vec<Segment<'a>>,
    ) -> Result<bool, DiskError> {
        self.require_sound(offset, bytes)?;
        self.raw.segments(offset, bytes, segments)
    }

    fn extent(&self, offset: u64, bytes: u64) -> Result<Extent, DiskError> {
        self.raw.extent(offset, bytes)
    }

    fn space(&self) -> Option<Space> {
        self.raw.space()
    }

    fn will_need(&self, offset: u64, bytes: u64) {
        self.raw.will_need(offset, bytes);
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;
    use crate::contract::Subject;

    fn id(size_bytes: u64) -> BaseId {
        BaseId {
            uuid: [1; 16],
            sha256: [2; 32],
            size_bytes,
        }
    }

    fn version_of(bytes: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(disk_path(dir.path()), bytes).unwrap();
        dir
    }

    fn damaged(ranges: &[Range<u64>]) -> (Golden, tempfile::TempDir) {
        let dir = version_of(&[7; 1 << 20]);
        let damage = Arc::new(Damage::default());
        let golden = open(dir.path(), &id(1 << 20), Arc::clone(&damage)).unwrap();
        // Found while it is open.
        damage.set(ranges.to_vec());
        (golden, dir)
    }

    #[test]
    fn a_golden_image_keeps_the_contract() {
        let dir = version_of(&[7; 1 << 20]);
        let open = || Arc::new(open(dir.path(), &id(1 << 20), Arc::default()).unwrap()) as _;
        Subject::new(open).check();
    }

    #[test]
    fn a_missing_image_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            open(dir.path(), &id(4096), Arc::default()),
            Err(OpenError::Missing { .. })
        ));
    }

    #[test]
    fn an_image_of_another_size_than_published_is_refused() {
        let dir = version_of(&[0; 8192]);
        assert!(open(dir.path(), &id(8192), Arc::default()).is_ok());
        let error = open(dir.path(), &id(4096), Arc::default()).err().unwrap();
        assert!(error.to_string().contains("published with 4096"), "{error}");
    }

    #[test]
    fn a_read_that_touches_damage_is_corrupt_and_others_are_not() {
        let (golden, _dir) = damaged(&[8192..12288]);
        let mut buffer = [0; 4096];
        for offset in [0, 4096, 12288, (1 << 20) - 4096] {
            golden.read(offset, &mut buffer).unwrap();
        }
        for offset in [4097, 8192, 12287] {
            let error = golden.read(offset, &mut buffer).unwrap_err();
            assert!(matches!(error, DiskError::Corrupt(_)), "{offset}: {error}");
            assert!(error.to_string().contains("8192..12288"), "{error}");
        }
        golden.read(8192, &mut []).unwrap();
    }

    #[test]
    fn segments_of_damage_are_refused() {
        let (golden, _dir) = damaged(&[8192..12288]);
        let mut segments = Vec::new();
        assert!(golden.segments(0, 1 << 20, &mut segments).is_err());
        assert!(segments.is_empty());
        assert!(golden.segments(0, 8192, &mut segments).unwrap());
    }

    #[test]
    fn damage_that_was_found_right_is_read_again() {
        let (golden, _dir) = damaged(&[0..4096]);
        golden.damage.set(Vec::new());
        golden.read(0, &mut [0; 4096]).unwrap();
    }

    #[test]
    fn ranges_of_damage_are_kept_in_order_and_apart() {
        let damage = Damage::default();
        damage.set(vec![30..40, 0..10, 10..20, 5..7, 25..25, 39..50]);
        assert_eq!(damage.ranges(), [0..20, 30..50]);
        assert!(damage.first_in(20, 10).is_none());
        assert_eq!(damage.first_in(20, 11), Some(30..50));
        assert_eq!(damage.first_in(0, u64::MAX), Some(0..20));
    }
}
