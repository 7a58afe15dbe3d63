//! A disk in memory, for tests and tiny uses.
//!
//! Dies with the process: of the duties of [`Disk`] it keeps all but that one.
//! Takes memory for what is written to it, and gives back what is unmapped.

use std::ops::Range;
use std::sync::{PoisonError, RwLock};

use crate::{Access, Allocation, Disk, DiskError, Durability, Extent, Geometry, range};

/// Memory is taken and given back in pages of this size.
const PAGE_BYTES: usize = 4096;

/// A disk in memory.
#[derive(Debug)]
pub struct Ram {
    pages: RwLock<Vec<Option<Page>>>,
    geometry: Geometry,
    access: Access,
}

/// What is stored for a page; nothing is for one of zeros.
type Page = Box<[u8; PAGE_BYTES]>;

impl Ram {
    /// A disk of `size_bytes` zeros, a multiple of 512, with blocks of 512.
    pub fn new(size_bytes: usize) -> Self {
        let size_bytes = size_bytes.next_multiple_of(512);
        let pages = vec![None; size_bytes.div_ceil(PAGE_BYTES)];
        Ram {
            pages: RwLock::new(pages),
            geometry: Geometry {
                size_bytes: size_bytes as u64,
                logical_block_bytes: 512,
                physical_block_bytes: 512,
            },
            access: Access::ReadWrite,
        }
    }

    /// A disk that holds `bytes`, padded to whole blocks of 512.
    pub fn with_contents(bytes: Vec<u8>) -> Self {
        let ram = Ram::new(bytes.len());
        let mut pages = ram.pages.write().unwrap_or_else(PoisonError::into_inner);
        write(&mut pages, 0, &bytes);
        drop(pages);
        ram
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
        change: impl FnOnce(&mut [Option<Page>], Range<usize>),
    ) -> Result<(), DiskError> {
        let range = range::in_memory(offset, bytes, self.geometry.size_bytes)?;
        if self.access == Access::ReadOnly {
            return Err(DiskError::ReadOnly);
        }
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut pages, range);
        Ok(())
    }
}

/// The pages of a range: which one, what part of it, and where that lies in
/// the range.
fn parts(range: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let (page, from) = (at / PAGE_BYTES, at % PAGE_BYTES);
        let length = (PAGE_BYTES - from).min(range.end - at);
        let done = at - range.start;
        at += length;
        Some((page, from..from + length, done..done + length))
    })
}

fn write(pages: &mut [Option<Page>], offset: usize, data: &[u8]) {
    for (page, part, of_data) in parts(offset..offset + data.len()) {
        let page = pages[page].get_or_insert_with(|| Box::new([0; PAGE_BYTES]));
        page[part].copy_from_slice(&data[of_data]);
    }
}

fn unmap(pages: &mut [Option<Page>], range: Range<usize>) {
    for (page, part, _) in parts(range) {
        match &mut pages[page] {
            Some(stored) if part.len() < PAGE_BYTES => stored[part].fill(0),
            whole => *whole = None,
        }
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

    fn is_thin(&self) -> bool {
        self.access == Access::ReadWrite
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let range = range::in_memory(offset, buffer.len() as u64, self.geometry.size_bytes)?;
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        for (page, part, of_buffer) in parts(range) {
            match &pages[page] {
                Some(stored) => buffer[of_buffer].copy_from_slice(&stored[part]),
                None => buffer[of_buffer].fill(0),
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.change(offset, data.len() as u64, |pages, range| {
            write(pages, range.start, data);
        })
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.change(offset, bytes, unmap)
    }

    fn extent(&self, offset: u64, bytes: u64) -> Result<Extent, DiskError> {
        let range = range::in_memory(offset, bytes, self.geometry.size_bytes)?;
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        let mut parts = parts(range).map(|(page, part, _)| (pages[page].is_some(), part.len()));
        let Some((is_stored, first)) = parts.next() else {
            return Ok(Extent {
                bytes: 0,
                allocation: Allocation::Mapped,
            });
        };
        let alike = parts.take_while(|(stored, _)| *stored == is_stored);
        let bytes = first + alike.map(|(_, bytes)| bytes).sum::<usize>();
        Ok(Extent {
            bytes: bytes as u64,
            allocation: match is_stored {
                true => Allocation::Mapped,
                false => Allocation::Deallocated,
            },
        })
    }

    fn atomic_write_bytes(&self) -> u64 {
        self.geometry.size_bytes // under one lock, and nothing of it outlives the process
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
    fn memory_is_taken_for_what_is_written_and_given_back() {
        let ram = Ram::new(1 << 20);
        let extent = |offset| {
            let found = ram.extent(offset, (1 << 20) - offset).unwrap();
            (found.bytes, found.allocation)
        };
        assert_eq!(extent(0), (1 << 20, Allocation::Deallocated));
        ram.write(5000, &[1; 4000]).unwrap();
        assert_eq!(extent(0), (4096, Allocation::Deallocated));
        assert_eq!(extent(4096), (8192, Allocation::Mapped));
        ram.unmap(4096, 4096).unwrap();
        assert_eq!(extent(4096), (4096, Allocation::Deallocated));
        assert_eq!(extent(8192), (4096, Allocation::Mapped));
    }

    #[test]
    fn a_read_only_ram_disk_keeps_the_contract() {
        Subject::new(|| Arc::new(Ram::with_contents(vec![7; 1 << 20]).read_only()) as _).check();
    }
}
