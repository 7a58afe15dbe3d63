//! Doubt about a file whose sync failed.
//!
//! After a failed `fdatasync` the kernel takes the pages for clean: it shows
//! bytes that the device never took, calls the next sync fine, and one day
//! reads the old bytes again. The process that heard of it fails its disk; but
//! the next one, in the same boot of the kernel, would trust those pages.
//!
//! So the failure is noted on the file itself, in an extended attribute that a
//! rename, a link and a death of the process leave alone. Who opens the file to
//! write it next makes the kernel forget what it holds of it, so that the
//! device speaks; and for this file that is another boot of the kernel
//! ([`settle`] answers its id): whatever counts for one boot only is void, as
//! it would be had the host been lost.
//!
//! Where the note cannot be written the file system has shut itself down, and
//! nobody writes it before it is mounted anew, with nothing in memory. A block
//! device needs no note: the kernel forgets its pages when nobody has it open.
//!
//! Unsafe stands here for `mincore`, which no safe crate offers.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use memmap2::MmapOptions;
use rustix::fs::{Advice, SeekFrom, XattrFlags, fadvise, fgetxattr, fsetxattr, getxattr, seek};
use rustix::io::Errno;

/// The attribute: the boot's id, how many syncs failed in it (4 bytes,
/// little-endian), 1 while the kernel may still hold what was lost.
const ATTRIBUTE: &str = "user.diskless.doubt";

const NOTE_BYTES: usize = 21;

/// What is asked about at once: whether it is in memory.
const WINDOW_BYTES: u64 = 1 << 30;

/// Where a mapping may begin, whatever the size of a page is.
const ALIGNMENT_BYTES: u64 = 64 << 10;

/// The smallest page there is.
const PAGE_BYTES: usize = 4096;

/// A boot of the kernel.
pub(crate) type BootId = [u8; 16];

/// The kernel's present boot.
pub(crate) fn boot_id() -> io::Result<BootId> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let boot_id = uuid::Uuid::parse_str(text.trim())
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    Ok(boot_id.into_bytes())
}

/// What is noted of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Doubt {
    /// Syncs that failed in this boot.
    pub(crate) failures: u32,
    /// The kernel may still hold what was lost.
    pub(crate) is_open: bool,
}

impl Doubt {
    /// One more sync has failed.
    pub(crate) fn more(self) -> Doubt {
        Doubt {
            failures: self.failures.saturating_add(1),
            is_open: true,
        }
    }

    /// The boot that what is in the file belongs to.
    pub(crate) fn boot_of(self, mut boot_id: BootId) -> BootId {
        for (byte, failures) in boot_id[12..].iter_mut().zip(self.failures.to_le_bytes()) {
            *byte ^= failures;
        }
        boot_id
    }

    fn emit(self, boot_id: BootId) -> [u8; NOTE_BYTES] {
        let mut bytes = [0; NOTE_BYTES];
        bytes[..16].copy_from_slice(&boot_id);
        bytes[16..20].copy_from_slice(&self.failures.to_le_bytes());
        bytes[20] = u8::from(self.is_open);
        bytes
    }

    /// What a note says in this boot; one of another boot says nothing, for
    /// its page cache is gone.
    fn parse(bytes: &[u8], boot_id: BootId) -> Doubt {
        match bytes.strip_prefix(&boot_id) {
            Some(&[a, b, c, d, is_open]) => Doubt {
                failures: u32::from_le_bytes([a, b, c, d]),
                is_open: is_open != 0,
            },
            _ => Doubt::default(),
        }
    }
}

/// Notes that a sync of `file` has failed.
pub(crate) fn raise(file: &File, boot_id: BootId) {
    let mut bytes = [0; NOTE_BYTES];
    let found = said(fgetxattr(file, ATTRIBUTE, &mut bytes), &bytes, boot_id);
    let noted = found.and_then(|doubt| {
        let note = doubt.more().emit(boot_id);
        Ok(fsetxattr(file, ATTRIBUTE, &note, XattrFlags::empty())?)
    });
    if let Err(error) = noted {
        tracing::error!(
            %error,
            "a failed sync cannot be noted on its file: mount its file system anew before the \
             disk is used again"
        );
    }
}

/// Makes the device speak if a sync of the file at `path` has failed, whose
/// owner holds its lock. Answers which boot what is in the file belongs to.
pub(crate) fn settle(path: &Path, boot_id: BootId) -> io::Result<BootId> {
    let doubt = of(path, boot_id)?;
    if doubt.is_open {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        // What is dirty goes to the device first; the rest can be forgotten.
        file.sync_data().inspect_err(|_| raise(&file, boot_id))?;
        forget(&file)?;
        let settled = Doubt {
            is_open: false,
            ..doubt
        };
        let note = settled.emit(boot_id);
        fsetxattr(&file, ATTRIBUTE, &note, XattrFlags::empty())?;
        warn(path);
    }
    Ok(doubt.boot_of(boot_id))
}

/// Says to the operator what has happened to a file.
fn warn(path: &Path) {
    tracing::warn!(
        path = %path.display(),
        "a sync of it had failed: it is read as the device has it, and what was not flushed \
         before is lost"
    );
}

/// What is noted of the file at `path`.
pub(crate) fn of(path: &Path, boot_id: BootId) -> io::Result<Doubt> {
    let mut bytes = [0; NOTE_BYTES];
    said(getxattr(path, ATTRIBUTE, &mut bytes), &bytes, boot_id)
}

fn said(
    answer: rustix::io::Result<usize>,
    bytes: &[u8; NOTE_BYTES],
    boot_id: BootId,
) -> io::Result<Doubt> {
    match answer {
        Ok(length) => Ok(Doubt::parse(bytes.get(..length).unwrap_or(&[]), boot_id)),
        // No note, no file, no such notes here; or one that is not ours.
        Err(Errno::NODATA | Errno::NOENT | Errno::OPNOTSUPP | Errno::RANGE) => Ok(Doubt::default()),
        Err(error) => Err(error.into()),
    }
}

/// Makes the kernel forget what it holds of a file that has nothing dirty.
fn forget(file: &File) -> io::Result<()> {
    fadvise(file, 0, None, Advice::DontNeed)?;
    match is_in_memory(file)? {
        false => Ok(()),
        true => Err(io::Error::other(
            "a sync has failed, and the kernel does not forget what it shows in place of what \
             the device has: mount the file system anew, or restart the host",
        )),
    }
}

/// Whether the kernel holds any page of a file.
fn is_in_memory(file: &File) -> io::Result<bool> {
    let end = file.metadata()?.len();
    let mut at = 0;
    while at < end {
        // Holes are long, and nothing is lost in them.
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start.min(end) / ALIGNMENT_BYTES * ALIGNMENT_BYTES,
            Err(Errno::NXIO) => return Ok(false),
            Err(_) => at, // no holes are told here
        };
        let stop = end.min(start + WINDOW_BYTES);
        let Ok(length) = usize::try_from(stop - start) else {
            return Ok(true);
        };
        if length == 0 {
            return Ok(false);
        }
        let window = MmapOptions::new()
            .offset(start)
            .len(length)
            .map_raw_read_only(file)?;
        let mut pages = vec![0_u8; length.div_ceil(PAGE_BYTES)];
        // SAFETY: the mapping begins at a page and is `length` long, and
        // `pages` has a byte for each of its pages; nothing of it is read.
        let answer = unsafe {
            libc::mincore(
                window.as_mut_ptr().cast(),
                length,
                pages.as_mut_ptr().cast(),
            )
        };
        if answer != 0 {
            return Err(io::Error::last_os_error());
        }
        if pages.iter().any(|page| page & 1 == 1) {
            return Ok(true);
        }
        at = stop;
    }
    Ok(false)
}

#[cfg(test)]
mod tests;
