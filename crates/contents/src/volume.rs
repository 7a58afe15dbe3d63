//! A stretch of a disk: a partition, or all of it.

use std::sync::Arc;

use disk::SharedDisk;

use crate::Error;

/// A stretch of a disk that may hold a file system.
#[derive(Clone)]
pub struct Volume {
    disk: SharedDisk,
    start: u64,
    size_bytes: u64,
}

impl Volume {
    /// The bytes `start..start + size_bytes` of a disk, as far as it has them.
    pub fn new(disk: &SharedDisk, start: u64, size_bytes: u64) -> Volume {
        let end = disk.geometry().size_bytes;
        let start = start.min(end);
        Volume {
            disk: Arc::clone(disk),
            start,
            size_bytes: size_bytes.min(end - start),
        }
    }

    /// The whole disk.
    pub fn whole(disk: &SharedDisk) -> Volume {
        Volume::new(disk, 0, u64::MAX)
    }

    /// Its length.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Fills `buffer` from `offset` on.
    pub fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.size_bytes) {
            return Err(Error::damaged(
                "the file system",
                format!("it reaches to byte {offset} and beyond its partition's end"),
            ));
        }
        Ok(self.disk.read(self.start + offset, buffer)?)
    }
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Volume({}..+{})", self.start, self.size_bytes)
    }
}
