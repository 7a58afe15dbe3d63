//! Disks: anything that holds blocks, behind one trait.
//!
//! Formats and the overlay implement [`Disk`] and stack. This crate knows no
//! SCSI, no network and no configuration; paths come in as arguments.

use std::sync::Arc;

pub mod contract;
mod description;
mod doubt;
mod error;
mod fault;
mod files;
mod formats;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod gpt;
mod health;
pub mod image;
pub mod overlay;
mod parents;
pub mod probe;
mod qcow2;
mod ram;
mod range;
mod raw;
#[cfg(test)]
mod tests;
mod vhd;
mod vhdx;
mod zeros;

pub use description::{Description, describe};
pub use error::{DiskError, OpenError};
pub use formats::{CopyError, NewDisk, NewFormat, Opening, copy, create, grow, open};
pub use image::BaseId;
pub use overlay::Overlay;
pub use qcow2::export as export_qcow2;
pub use ram::Ram;
pub use raw::{Raw, RawOptions};

/// A disk: `size_bytes` bytes, addressed by offset.
///
/// Duties of every implementation (held by the contract suite):
/// - `read`, `write` and `unmap` take any offset and length inside the disk
///   (not only whole blocks) and refuse with [`DiskError::OutOfRange`],
///   touching nothing, when the range leaves it; an empty range inside the
///   disk, or at its end, is fine.
/// - A `write` or `unmap` that returned is seen by every later `read` of any
///   thread, and survives the death of this process.
/// - After `flush` returned, every write and unmap that had returned before
///   `flush` began survives the loss of power (unless
///   [`Durability::Volatile`]).
/// - Bytes never written, or unmapped, read as zeros (or as the golden image
///   below, where there is one and nothing was unmapped).
/// - Once a write or flush failed for a reason that may have lost data, every
///   later write and flush fails with [`DiskError::Failed`]: never
///   "retried, fine".
pub trait Disk: Send + Sync {
    /// Size and block sizes; these never change while the disk is open.
    fn geometry(&self) -> Geometry;

    /// Whether writes are possible at all.
    fn access(&self) -> Access;

    /// What an answered write has been promised.
    fn durability(&self) -> Durability;

    /// Whether the disk gives space back (`unmap` frees) and starts sparse.
    fn is_thin(&self) -> bool {
        false
    }

    /// Fills `buffer` from `offset`.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError>;

    /// Writes all of `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError>;

    /// Makes every completed write durable.
    fn flush(&self) -> Result<(), DiskError>;

    /// Makes `bytes` bytes from `offset` read as zeros, giving space back
    /// where the implementation can.
    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError>;

    /// Appends to `segments` where the bytes of a range lie mapped, in order
    /// and without gaps, so that a server can send them without a copy.
    ///
    /// `false`, with `segments` as it was: some of the range is not mapped;
    /// use `read`. The bytes of a segment may change while it is held (as the
    /// bytes of any disk may): only hand them to the kernel. And do it soon: a
    /// disk that rearranges what it stores keeps an old mapping for ten minutes,
    /// then the kernel answers `EFAULT`.
    fn segments<'a>(
        &'a self,
        offset: u64,
        bytes: u64,
        segments: &mut Vec<Segment<'a>>,
    ) -> Result<bool, DiskError> {
        let _ = (offset, bytes, segments);
        Ok(false)
    }

    /// How far from `offset` on, and at most for `bytes` bytes, the disk stores
    /// something, or nothing: at least one byte of a range that is not empty.
    ///
    /// Bytes of which nothing is stored read as zeros, and were not written
    /// since they were last unmapped.
    fn extent(&self, offset: u64, bytes: u64) -> Result<Extent, DiskError> {
        range::check(offset, bytes, self.geometry().size_bytes)?;
        Ok(Extent {
            bytes,
            allocation: Allocation::Mapped,
        })
    }

    /// What it takes where it is stored, and what is left there; `None` when
    /// that says nothing about how much more can be written.
    fn space(&self) -> Option<Space> {
        None
    }

    /// The longest `write` that is all or nothing, for every reader and after
    /// every kind of death the disk survives; 0 when there is no such promise.
    fn atomic_write_bytes(&self) -> u64 {
        0
    }

    /// Says that a range will be read soon; starts read-ahead, never waits.
    fn will_need(&self, offset: u64, bytes: u64) {
        let _ = (offset, bytes);
    }
}

/// A disk that several owners share.
pub type SharedDisk = Arc<dyn Disk>;

/// Size and block sizes of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size, a multiple of `logical_block_bytes`.
    pub size_bytes: u64,
    /// The unit in which the disk is addressed: 512, 2048 (ISO) or 4096.
    pub logical_block_bytes: u32,
    /// The unit that is written without a read before it; a multiple of
    /// `logical_block_bytes`.
    pub physical_block_bytes: u32,
}

/// A stretch of a disk that is alike in what is stored for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its length.
    pub bytes: u64,
    /// Whether anything is stored for it.
    pub allocation: Allocation,
}

/// What a disk takes where it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes it takes.
    pub used_bytes: u64,
    /// Bytes that are left, to it and to whatever shares them.
    pub free_bytes: u64,
}

/// Whether anything is stored for some bytes of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// They are stored, or may be.
    Mapped,
    /// Nothing is; they read as zeros.
    Deallocated,
}

/// Whether a disk can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Every write is refused.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// What is promised for an answered write (`flush` included).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// An answered write survives the process; a flushed one survives the
    /// loss of power.
    WriteBack,
    /// An answered write survives the loss of power.
    WriteThrough,
    /// An answered write survives the process; `flush` adds nothing, the disk
    /// dies with the host.
    Volatile,
}

/// Bytes of a disk that lie in a memory mapping.
///
/// Holds the disk borrowed, so that the mapping stays; the bytes may change at
/// any time, hence no `&[u8]`.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    start: *const u8,
    bytes: usize,
    disk: std::marker::PhantomData<&'a [u8]>,
}

impl<'a> Segment<'a> {
    /// A segment at `start`, `bytes` long, in a mapping that lives for `'a`.
    pub fn new(start: *const u8, bytes: usize) -> Self {
        Segment {
            start,
            bytes,
            disk: std::marker::PhantomData,
        }
    }

    /// Address of the first byte, for an `iovec`.
    pub fn as_ptr(&self) -> *const u8 {
        self.start
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether the segment holds nothing.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The first `at` bytes and the rest; `at` is at most `len`.
    pub fn split_at(&self, at: usize) -> (Segment<'a>, Segment<'a>) {
        let at = at.min(self.bytes);
        let rest = Segment::new(self.start.wrapping_add(at), self.bytes - at);
        (Segment::new(self.start, at), rest)
    }
}
