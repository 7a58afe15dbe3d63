//! Where reads go as the server's do: from a disk's mappings, by one call of
//! the kernel's, which copies them out. A socket would cost both sides of a
//! comparison the same besides.
//!
//! Unsafe stands here for a write from memory that may change while the kernel
//! reads it; no safe crate offers it.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use disk::{Disk, Segment};
use rustix::fs::{MemfdFlags, memfd_create};

/// Takes what is read, and keeps none of it.
pub(super) struct Sink {
    file: File,
    pieces: Vec<libc::iovec>,
}

impl Sink {
    pub(super) fn new() -> io::Result<Sink> {
        let file = File::from(memfd_create("sink", MemfdFlags::CLOEXEC)?);
        let pieces = Vec::new();
        Ok(Sink { file, pieces })
    }

    /// Reads a range; an error where it is not mapped.
    pub(super) fn take(&mut self, disk: &dyn Disk, offset: u64, bytes: u64) -> io::Result<()> {
        let mut segments: Vec<Segment<'_>> = Vec::with_capacity(4);
        let is_mapped = disk.segments(offset, bytes, &mut segments);
        if !is_mapped.map_err(io::Error::other)? {
            return Err(io::Error::other("the disk is not mapped"));
        }
        self.pieces.clear();
        self.pieces
            .extend(segments.iter().map(|segment| libc::iovec {
                iov_base: segment.as_ptr().cast_mut().cast(),
                iov_len: segment.len(),
            }));
        let count = libc::c_int::try_from(self.pieces.len()).map_err(io::Error::other)?;
        // SAFETY: the kernel alone reads the memory, which stays mapped while
        // the segments borrow their disk; the pieces are as many as are told.
        let written =
            unsafe { libc::pwritev(self.file.as_raw_fd(), self.pieces.as_ptr(), count, 0) };
        match u64::try_from(written) {
            Ok(written) if written == bytes => Ok(()),
            Ok(_) => Err(io::Error::other("the disk's mapping is cut off")),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }
}
