//! A disk in memory, for tests and tiny uses.
//!
//! Dies with the process: of the duties of [`Disk`] it keeps all but that one.

use std::sync::{PoisonError, RwLock};

use crate::{Access, Disk, DiskError, Durability, Geometry, range};

/// A disk in memory.
#[derive(Debug)]
pub struct Ram {
    bytes: RwLock<Vec<u8>>,
    geometry: Geometry,
    access: Access,
}

impl Ram {
    /// A disk of `size_bytes` zeros, a multiple of 512, with blocks of 512.
    pub fn new(size_bytes: usize) -> Self {
        Self::with_contents(vec![0; size_bytes.next_multiple_of(512)])
    }

    /// A disk that holds `bytes`, padded to whole blocks of 512.
    pub fn with_contents(mut bytes: Vec<u8>) -> Self {
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let geometry = Geometry {
            size_bytes: bytes.len() as u64,
            logical_block_bytes: 512,
            physical_block_bytes: 512,
        };
        Ram {
            bytes: RwLock::new(bytes),
            geometry,
            access: Access::ReadWrite,
        }
    }

    /// The same disk with other block sizes; the size must be a multiple of
    /// the logical one.
    pub fn with_block_bytes(mut self, logical: u32, physical: u32) -> Self {
        self.geometry.logical_block_bytes = logical;
        self.geometry.physical_block_bytes = physical;
        self
    }

    /// The same disk, read-only from here on.
    pub fn read_only(mut self) -> Self {
        self.access = Access::ReadOnly;
        self
    }

    fn change(
        &self,
        offset: u64,
        bytes: u64,
        change: impl FnOnce(&mut [u8]),
    ) -> Result<(), DiskError> {
        let range = range::in_memory(offset, bytes, self.geometry.size_bytes)?;
        if self.access == Access::ReadOnly {
            return Err(DiskError::ReadOnly);
        }
        let mut held = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut held[range]);
        Ok(())
    }
}

impl Disk for Ram {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn access(&self) -> Access {
        self.access
    }

    fn durability(&self) -> Durability {
        Durability::Volatile
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let range = range::in_memory(offset, buffer.len() as u64, self.geometry.size_bytes)?;
        let held = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        buffer.copy_from_slice(&held[range]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.change(offset, data.len() as u64, |place| {
            place.copy_from_slice(data);
        })
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.change(offset, bytes, |place| place.fill(0))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::contract::Subject;

    #[test]
    fn ram_keeps_the_contract() {
        Subject::new(|| Arc::new(Ram::new(3 << 20)) as _).check();
    }

    #[test]
    fn a_read_only_ram_disk_keeps_the_contract() {
        Subject::new(|| Arc::new(Ram::with_contents(vec![7; 1 << 20]).read_only()) as _).check();
    }
}
