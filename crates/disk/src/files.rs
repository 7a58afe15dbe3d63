//! Every touch of the host's file system that a crash could tear.
//!
//! The overlay does all its writing through [`Files`] and [`File`]. In the
//! program they are plain calls; in this crate's own tests a recorder listens,
//! so that every state a loss of power may leave can be made and opened.
//!
//! Unsafe stands here for two calls no safe crate offers: `sync_file_range`
//! and writing from memory that may change while the kernel reads it.

#![allow(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, FileType, SeekFrom, fallocate, fstat, fstatvfs, seek};
use rustix::io::Errno;

use crate::doubt::{self, BootId};
use crate::zeros::zeros;
use crate::{Segment, Space};

#[cfg(test)]
pub(crate) mod recorder;

/// The host's file system.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    boot_id: BootId,
    #[cfg(test)]
    recorder: Option<std::sync::Arc<recorder::Recorder>>,
}

impl Files {
    /// The file system as it is, in the kernel's present boot.
    pub(crate) fn real() -> io::Result<Files> {
        Ok(Files {
            boot_id: doubt::boot_id()?,
            #[cfg(test)]
            recorder: None,
        })
    }

    /// Which boot of the kernel this is; another one has another page cache.
    pub(crate) fn boot_id(&self) -> BootId {
        self.boot_id
    }

    /// Which boot of the kernel what is in a file belongs to: another one since
    /// a sync of it failed ([`doubt`]), after which it is read as the device
    /// has it. Asked by who holds its lock, before anything of it is read.
    pub(crate) fn settled(&self, path: &Path) -> io::Result<BootId> {
        #[cfg(test)]
        if let Some(recorder) = &self.recorder {
            let doubt = recorder.settle(path)?;
            return Ok(doubt.boot_of(self.boot_id));
        }
        doubt::settle(path, self.boot_id)
    }

    /// The same of a file that is only read, without a change of anything.
    pub(crate) fn boot_of(&self, path: &Path) -> io::Result<BootId> {
        #[cfg(test)]
        if let Some(recorder) = &self.recorder {
            return Ok(recorder.doubt(path).boot_of(self.boot_id));
        }
        Ok(doubt::of(path, self.boot_id)?.boot_of(self.boot_id))
    }

    /// Creates a file that is not there yet.
    pub(crate) fn create_file(&self, path: &Path) -> io::Result<File> {
        #[cfg(test)]
        let recorded = self.recorder.as_ref().map(|r| r.create(path)).transpose()?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        Ok(File {
            file,
            boot_id: self.boot_id,
            #[cfg(test)]
            recorded,
        })
    }

    /// Opens a file that is there.
    pub(crate) fn open_file(&self, path: &Path) -> io::Result<File> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(File {
            file,
            boot_id: self.boot_id,
            #[cfg(test)]
            recorded: self.recorder.as_ref().map(|r| r.open(path)),
        })
    }

    /// Opens a file that is there, never to be written.
    pub(crate) fn open_to_read(&self, path: &Path) -> io::Result<File> {
        Ok(File {
            file: fs::File::open(path)?,
            boot_id: self.boot_id,
            #[cfg(test)]
            recorded: None,
        })
    }

    /// Gives a file another name, in the same file system.
    pub(crate) fn hard_link(&self, file: &Path, name: &Path) -> io::Result<()> {
        #[cfg(test)]
        self.note(|r| r.hard_link(file, name))?;
        fs::hard_link(file, name)
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        #[cfg(test)]
        self.note(|r| r.rename(from, to))?;
        fs::rename(from, to)
    }

    pub(crate) fn remove_file(&self, path: &Path) -> io::Result<()> {
        #[cfg(test)]
        self.note(|r| r.remove(path))?;
        fs::remove_file(path)
    }

    pub(crate) fn create_dir(&self, path: &Path) -> io::Result<()> {
        #[cfg(test)]
        self.note(|r| r.create_dir(path))?;
        fs::create_dir(path)
    }

    pub(crate) fn remove_dir(&self, path: &Path) -> io::Result<()> {
        #[cfg(test)]
        self.note(|r| r.remove(path))?;
        fs::remove_dir(path)
    }

    /// Makes the names in a directory durable.
    pub(crate) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        #[cfg(test)]
        let noted = Noted::begin(
            self.recorder.as_ref().map(|r| r.dir(path)).as_ref(),
            recorder::Op::Sync,
        )?;
        fs::File::open(path)?.sync_all()?;
        #[cfg(test)]
        noted.end();
        Ok(())
    }

    /// Names in a directory, in order.
    pub(crate) fn names(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    /// Removes a directory of plain files and directories, if it is there.
    pub(crate) fn remove_tree(&self, path: &Path) -> io::Result<()> {
        let names = match self.names(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            names => names?,
        };
        for name in names {
            let inner = path.join(name);
            if fs::symlink_metadata(&inner)?.is_dir() {
                self.remove_tree(&inner)?;
            } else {
                self.remove_file(&inner)?;
            }
        }
        self.remove_dir(path)
    }

    #[cfg(test)]
    fn note(
        &self,
        op: impl FnOnce(&std::sync::Arc<recorder::Recorder>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.recorder.as_ref().map_or(Ok(()), op)
    }

    /// The same files after the host was lost and came back.
    #[cfg(test)]
    pub(crate) fn in_another_boot(&self) -> Files {
        let mut boot_id = self.boot_id;
        boot_id[0] = boot_id[0].wrapping_add(1);
        Files {
            boot_id,
            recorder: None,
        }
    }

    /// The same files with somebody who listens.
    #[cfg(test)]
    pub(crate) fn recorded_by(&self, recorder: &std::sync::Arc<recorder::Recorder>) -> Files {
        Files {
            boot_id: self.boot_id,
            recorder: Some(recorder.clone()),
        }
    }
}

/// An open file of an overlay.
#[derive(Debug)]
pub(crate) struct File {
    file: fs::File,
    boot_id: BootId,
    #[cfg(test)]
    recorded: Option<recorder::Recorded>,
}

impl File {
    /// The file itself, for mappings and questions; never to write.
    pub(crate) fn inner(&self) -> &fs::File {
        &self.file
    }

    pub(crate) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    pub(crate) fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        #[cfg(test)]
        let noted = Noted::begin(self.recorded.as_ref(), |file| {
            recorder::Op::Write(file, offset, bytes.to_vec())
        })?;
        self.file.write_all_at(bytes, offset)?;
        #[cfg(test)]
        noted.end();
        Ok(())
    }

    /// Makes what is in the file durable, its length included. That it failed
    /// is noted on the file, for who opens it next.
    pub(crate) fn sync_data(&self) -> io::Result<()> {
        self.synced().inspect_err(|error| self.doubt(error))
    }

    fn doubt(&self, error: &io::Error) {
        #[cfg(test)]
        if let Some(recorded) = &self.recorded {
            recorded.doubt(error);
            return;
        }
        tracing::debug!(%error, "noted on the file");
        doubt::raise(&self.file, self.boot_id);
    }

    fn synced(&self) -> io::Result<()> {
        #[cfg(test)]
        let noted = Noted::begin(self.recorded.as_ref(), recorder::Op::Sync)?;
        self.file.sync_data()?;
        #[cfg(test)]
        noted.end();
        Ok(())
    }

    pub(crate) fn set_len(&self, bytes: u64) -> io::Result<()> {
        #[cfg(test)]
        let noted = Noted::begin(self.recorded.as_ref(), |file| {
            recorder::Op::SetLen(file, bytes)
        })?;
        self.file.set_len(bytes)?;
        #[cfg(test)]
        noted.end();
        Ok(())
    }

    /// Makes a range read as zeros and gives its space back where the file
    /// system can. Where it cannot, nothing happens: `false`.
    pub(crate) fn punch_hole(&self, offset: u64, bytes: u64) -> io::Result<bool> {
        #[cfg(test)]
        let noted = Noted::begin(self.recorded.as_ref(), |file| {
            recorder::Op::Punch(file, offset, bytes)
        })?;
        let punched = punch(&self.file, offset, bytes)?;
        #[cfg(test)]
        noted.end();
        Ok(punched)
    }

    /// The first part of a range that takes space, as far as the file system
    /// says; at most all of it.
    pub(crate) fn next_data(&self, range: Range<u64>) -> io::Result<Option<Range<u64>>> {
        let start = match seek(&self.file, SeekFrom::Data(range.start)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            Err(error) if is_unsupported(error) => return Ok(Some(range)),
            Err(error) => return Err(error.into()),
        };
        if start >= range.end {
            return Ok(None);
        }
        let end = seek(&self.file, SeekFrom::Hole(start))?;
        Ok(Some(start..end.min(range.end)))
    }

    /// Reserves space, so that a store into a mapping cannot run out of it
    /// (it would raise SIGBUS). Bytes that are there stay.
    pub(crate) fn reserve(&self, bytes: u64) -> io::Result<()> {
        #[cfg(test)]
        let noted = Noted::begin(self.recorded.as_ref(), |file| {
            recorder::Op::Reserve(file, bytes)
        })?;
        match fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => {}
            Err(error) if is_unsupported(error) => {
                let mut at = self.file.metadata()?.len();
                while at < bytes {
                    let piece = zeros(bytes - at);
                    self.file.write_all_at(piece, at)?;
                    at += piece.len() as u64;
                }
            }
            Err(error) => return Err(error.into()),
        }
        #[cfg(test)]
        noted.end();
        Ok(())
    }

    /// Asks whether writeback has failed since the last question, without
    /// waiting for any: a wait for a byte behind the end of the file.
    pub(crate) fn writeback_error(&self) -> io::Result<()> {
        self.written_back().inspect_err(|error| self.doubt(error))
    }

    fn written_back(&self) -> io::Result<()> {
        #[cfg(test)]
        Noted::begin(self.recorded.as_ref(), |_| recorder::Op::WritebackError)?;
        let end = i64::try_from(self.file.metadata()?.len()).unwrap_or(i64::MAX - 1);
        // SAFETY: no memory is passed, the descriptor is open; rustix and std
        // have no such call.
        let answer = unsafe {
            libc::sync_file_range(
                self.file.as_raw_fd(),
                end,
                1,
                libc::SYNC_FILE_RANGE_WAIT_BEFORE,
            )
        };
        if answer == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        // Not every file system has the call; then nobody can say.
        let unknown = [libc::ENOSYS, libc::EINVAL, libc::ESPIPE, libc::EOPNOTSUPP];
        match error.raw_os_error() {
            Some(code) if unknown.contains(&code) => Ok(()),
            _ => Err(error),
        }
    }
}

/// An operation somebody listens to, between its begin and its end.
#[cfg(test)]
struct Noted(Option<(recorder::Recorded, usize)>);

#[cfg(test)]
impl Noted {
    fn begin(
        recorded: Option<&recorder::Recorded>,
        op: impl FnOnce(recorder::Node) -> recorder::Op,
    ) -> io::Result<Noted> {
        match recorded {
            Some(recorded) => {
                let event = recorded.begin(op)?;
                Ok(Noted(Some((recorded.clone(), event))))
            }
            None => Ok(Noted(None)),
        }
    }

    fn end(self) {
        if let Some((recorded, event)) = self.0 {
            recorded.ended(event);
        }
    }
}

/// What a regular file takes, and what its file system has left for us. A
/// block device does not tell.
pub(crate) fn space(file: &fs::File) -> Option<Space> {
    let found = fstat(file).ok()?;
    if !FileType::from_raw_mode(found.st_mode).is_file() {
        return None;
    }
    let system = fstatvfs(file).ok()?;
    Some(Space {
        used_bytes: u64::try_from(found.st_blocks).ok()?.checked_mul(512)?,
        free_bytes: system.f_bavail.checked_mul(system.f_frsize)?,
    })
}

/// What the file system below a path has left for us.
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let system = rustix::fs::statvfs(path).ok()?;
    system.f_bavail.checked_mul(system.f_frsize)
}

/// Makes a range of a file or block device read as zeros; gives the space back
/// where that can be done.
pub(crate) fn zero_range(file: &fs::File, offset: u64, bytes: u64) -> io::Result<()> {
    if bytes == 0 || punch(file, offset, bytes)? {
        return Ok(());
    }
    let mut at = offset;
    while at < offset + bytes {
        let piece = zeros(offset + bytes - at);
        file.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// Whether the file system below `file` can punch holes at all.
#[cfg(test)]
pub(crate) fn can_punch(file: &fs::File) -> bool {
    file.metadata()
        .is_ok_and(|m| punch(file, m.len().next_multiple_of(4096), 4096).unwrap_or(false))
}

fn punch(file: &fs::File, offset: u64, bytes: u64) -> io::Result<bool> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, flags, offset, bytes) {
        Ok(()) => Ok(true),
        Err(error) if is_unsupported(error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// A block device answers `INVAL` for a range that is no whole block.
fn is_unsupported(error: Errno) -> bool {
    [
        Errno::OPNOTSUPP,
        Errno::NOSYS,
        Errno::INVAL,
        Errno::NODEV,
        Errno::PERM,
    ]
    .contains(&error)
}

/// The bytes of segments, fetched by the kernel as a socket's are, so that
/// memory that changes or has lost its file is an error, not a crash.
pub(crate) fn gather(segments: &[Segment<'_>]) -> io::Result<Vec<u8>> {
    let carrier = fs::File::from(rustix::fs::memfd_create(
        "segments",
        rustix::fs::MemfdFlags::CLOEXEC,
    )?);
    let mut total = 0;
    for segment in segments {
        let mut done = 0;
        while done < segment.len() {
            let rest = segment.split_at(done).1;
            // SAFETY: the kernel alone reads the memory, which stays mapped
            // while the segment borrows its disk; std wants a `&[u8]`, which
            // memory that may change is not.
            let answer =
                unsafe { libc::write(carrier.as_raw_fd(), rest.as_ptr().cast(), rest.len()) };
            done += usize::try_from(answer).map_err(|_| io::Error::last_os_error())?;
        }
        total += segment.len();
    }
    let mut bytes = vec![0; total];
    carrier.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
