//! Raw files and block devices.
//!
//! The bytes of the file are the bytes of the disk. Reads go through `pread`,
//! or straight from a mapping of the whole file ([`Disk::segments`]), which is
//! safe against disk errors and truncation as long as only the kernel touches
//! it. Writes go through `pwrite`, never through the mapping.
//!
//! Locked with `flock`: shared when read-only, exclusive when not, so that no
//! golden image is ever written under its readers.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::fs::{FlockOperation, SeekFrom, flock, seek};

use crate::health::{Health, trouble};
use crate::{
    Access, Allocation, Disk, DiskError, Durability, Extent, Geometry, OpenError, Segment, Space,
    doubt, files, range,
};

/// A raw file or block device.
#[derive(Debug)]
pub struct Raw {
    /// Shared with what [`measured`](Raw::measured) made of this disk, and with
    /// it the lock.
    file: Arc<File>,
    path: PathBuf,
    geometry: Geometry,
    access: Access,
    /// None where the file system cannot map.
    mapping: Option<MmapRaw>,
    health: Arc<Health>,
}

/// Blocks of a CD or DVD.
const DISC_BLOCK_BYTES: u32 = 2048;

/// How to open a raw file.
#[derive(Clone, Copy, Debug)]
pub struct RawOptions {
    /// Read-only, or in place.
    pub access: Access,
    /// 512, 2048 (for an ISO) or 4096; a block device knows its own.
    pub logical_block_bytes: Option<u32>,
}

impl Raw {
    /// Opens a file with blocks of 512 (4096 physical), or a block device with
    /// its own.
    pub fn open(path: &Path, access: Access) -> Result<Raw, DiskError> {
        Raw::open_with(
            path,
            RawOptions {
                access,
                logical_block_bytes: None,
            },
        )
    }

    /// Makes the file `path`, which does not exist yet, `size_bytes` of zeros,
    /// durable under its name, and opens it to be written.
    pub fn create(path: &Path, size_bytes: u64) -> Result<Raw, OpenError> {
        let failed = |e| trouble(format!("creating {}", path.display()), e);
        let file = match File::create_new(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(OpenError::Exists {
                    path: path.to_owned(),
                });
            }
            file => file.map_err(failed)?,
        };
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let made = (|| {
            file.set_len(size_bytes)?;
            file.sync_all()?;
            File::open(directory)?.sync_all()
        })();
        let opened = made
            .map_err(failed)
            .and_then(|()| Raw::open(path, Access::ReadWrite));
        if opened.is_err() {
            let _ = std::fs::remove_file(path);
        }
        Ok(opened?)
    }

    /// Opens a file or block device.
    ///
    /// Refuses when the size is not a whole number of blocks, or when another
    /// opener holds a lock that excludes this one. Of a disc (read-only, blocks
    /// of 2048) what is less than a block at its end is left out: no file
    /// system of a disc can hold it.
    pub fn open_with(path: &Path, options: RawOptions) -> Result<Raw, DiskError> {
        let context = |what: &str| format!("{what} {}", path.display());
        let writable = options.access == Access::ReadWrite;
        let file = OpenOptions::new()
            .read(true)
            .write(writable)
            .open(path)
            .map_err(|e| trouble(context("opening"), e))?;
        let kind = file
            .metadata()
            .map_err(|e| trouble(context("reading"), e))?
            .file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(trouble(
                context("opening"),
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "neither a file nor a block device",
                ),
            ));
        }
        let lock = if writable {
            FlockOperation::NonBlockingLockExclusive
        } else {
            FlockOperation::NonBlockingLockShared
        };
        flock(&file, lock).map_err(|e| match e {
            rustix::io::Errno::WOULDBLOCK => trouble(
                context("locking"),
                io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "in use by another process or session",
                ),
            ),
            other => trouble(context("locking"), other.into()),
        })?;

        if writable && kind.is_file() {
            doubt::boot_id()
                .and_then(|boot_id| doubt::settle(path, boot_id))
                .map_err(|e| trouble(context("reading"), e))?;
        }
        let (mut logical, mut physical) = (512, 4096);
        if kind.is_block_device() {
            let geometry = |e: rustix::io::Errno| trouble(context("asking"), e.into());
            logical = rustix::fs::ioctl_blksszget(&file).map_err(geometry)?;
            physical = rustix::fs::ioctl_blkpbszget(&file).map_err(geometry)?;
        }
        if let Some(asked) = options.logical_block_bytes {
            logical = asked;
        }
        let physical = physical.max(logical);
        if !matches!(logical, 512 | 1024 | 2048 | 4096) || physical % logical != 0 {
            return Err(trouble(
                context("opening"),
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("blocks of {logical} (physical {physical}) bytes are not supported"),
                ),
            ));
        }
        let raw = Raw {
            file: Arc::new(file),
            path: path.to_owned(),
            geometry: Geometry {
                size_bytes: 0,
                logical_block_bytes: logical,
                physical_block_bytes: physical,
            },
            access: options.access,
            mapping: None,
            health: Arc::default(),
        };
        Ok(raw.measured()?.unwrap_or(raw))
    }

    /// The same disk with the size the file or device has now, when that is
    /// another one. Both share the lock, and whether it has failed.
    pub fn measured(&self) -> Result<Option<Raw>, DiskError> {
        let logical = self.geometry.logical_block_bytes;
        let mut size_bytes = seek(&*self.file, SeekFrom::End(0))
            .map_err(|e| trouble(self.context("measuring"), e.into()))?;
        let rest = size_bytes % u64::from(logical);
        let is_disc = logical == DISC_BLOCK_BYTES && self.access == Access::ReadOnly;
        if is_disc && rest != 0 && size_bytes > rest {
            tracing::warn!(
                path = %self.path.display(),
                left_out_bytes = rest,
                "not a whole number of blocks of {logical}: is it cut off?"
            );
            size_bytes -= rest;
        }
        if size_bytes == self.geometry.size_bytes {
            return Ok(None);
        }
        if size_bytes % u64::from(logical) != 0 {
            return Err(DiskError::Corrupt(format!(
                "{} has {size_bytes} bytes, not a whole number of blocks of {logical}: \
                 is it cut off? (truncate -s %{logical} pads it)",
                self.path.display()
            )));
        }
        let mapping = match usize::try_from(size_bytes) {
            Ok(length) if length > 0 => {
                let mapped = MmapOptions::new()
                    .len(length)
                    .map_raw_read_only(&*self.file);
                let path = self.path.display();
                mapped
                    .inspect_err(|error| tracing::debug!(%path, %error, "not mapped"))
                    .ok()
            }
            _ => None,
        };
        Ok(Some(Raw {
            file: Arc::clone(&self.file),
            path: self.path.clone(),
            geometry: Geometry {
                size_bytes,
                ..self.geometry
            },
            access: self.access,
            mapping,
            health: Arc::clone(&self.health),
        }))
    }

    /// Makes the file `size_bytes` long, with a hole at its end, and gives the
    /// disk of that size, as [`measured`](Raw::measured) does. Never shorter,
    /// and never a device.
    pub fn grown(&self, size_bytes: u64) -> Result<Raw, DiskError> {
        self.writable(0, 0)?;
        let refused = |why: String| {
            let source = io::Error::new(io::ErrorKind::InvalidInput, why);
            trouble(self.context("growing"), source)
        };
        let metadata = self.file.metadata();
        let metadata = metadata.map_err(|e| trouble(self.context("reading"), e))?;
        if !metadata.is_file() {
            return Err(refused("only a file grows on request".to_owned()));
        }
        let logical = self.geometry.logical_block_bytes;
        if size_bytes <= metadata.len() || !size_bytes.is_multiple_of(u64::from(logical)) {
            return Err(refused(format!(
                "it has {} bytes, and grows to more of them, by whole blocks of {logical}",
                metadata.len()
            )));
        }
        self.file
            .set_len(size_bytes)
            .and_then(|()| self.file.sync_all())
            .map_err(|e| trouble(self.context("growing"), e))?;
        let grown = self.measured()?;
        grown.ok_or_else(|| refused("it did not grow".to_owned()))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn writable(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        range::check(offset, bytes, self.geometry.size_bytes)?;
        if self.access == Access::ReadOnly {
            return Err(DiskError::ReadOnly);
        }
        self.health.check()
    }

    /// Whether the file still has its bytes up to `end`.
    fn reaches(&self, end: u64) -> bool {
        seek(&self.file, SeekFrom::End(0)).is_ok_and(|size_bytes| size_bytes >= end)
    }

    fn context(&self, what: &str) -> String {
        format!("{what} {}", self.path.display())
    }
}

impl Disk for Raw {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn access(&self) -> Access {
        self.access
    }

    fn durability(&self) -> Durability {
        Durability::WriteBack
    }

    fn is_thin(&self) -> bool {
        self.access == Access::ReadWrite
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        range::check(offset, buffer.len() as u64, self.geometry.size_bytes)?;
        self.file.read_exact_at(buffer, offset).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                DiskError::Corrupt(format!(
                    "{} is shorter than the {} bytes it was opened with",
                    self.path.display(),
                    self.geometry.size_bytes
                ))
            } else {
                trouble(self.context("reading"), error)
            }
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.writable(offset, data.len() as u64)?;
        self.file
            .write_all_at(data, offset)
            .map_err(|error| self.health.write_failed(self.context("writing"), error))
    }

    fn flush(&self) -> Result<(), DiskError> {
        if self.access == Access::ReadOnly {
            return Ok(());
        }
        self.health.check()?;
        self.file.sync_data().map_err(|error| {
            if let Ok(boot_id) = doubt::boot_id() {
                doubt::raise(&self.file, boot_id);
            }
            self.health.sync_failed(self.context("flushing"), error)
        })
    }

    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.writable(offset, bytes)?;
        files::zero_range(&self.file, offset, bytes)
            .map_err(|error| self.health.write_failed(self.context("unmapping"), error))
    }

    fn segments<'a>(
        &'a self,
        offset: u64,
        bytes: u64,
        segments: &mut Vec<Segment<'a>>,
    ) -> Result<bool, DiskError> {
        let range = range::in_memory(offset, bytes, self.geometry.size_bytes)?;
        let Some(mapping) = &self.mapping else {
            return Ok(range.is_empty());
        };
        if !range.is_empty() {
            let start = mapping.as_ptr().wrapping_add(range.start);
            segments.push(Segment::new(start, range.len()));
        }
        Ok(true)
    }

    fn extent(&self, offset: u64, bytes: u64) -> Result<Extent, DiskError> {
        range::check(offset, bytes, self.geometry.size_bytes)?;
        let end = offset + bytes;
        let data = match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) => data,
            // A hole up to the end, unless the file has been cut off: past
            // that there is nothing, and a read says so.
            Err(rustix::io::Errno::NXIO) if self.reaches(end) => end,
            Err(_) => offset, // no holes are told here
        };
        if data > offset {
            return Ok(Extent {
                bytes: data.min(end) - offset,
                allocation: Allocation::Deallocated,
            });
        }
        let hole = seek(&self.file, SeekFrom::Hole(offset)).unwrap_or(end);
        let bytes = match hole > offset {
            true => hole.min(end) - offset,
            false => bytes, // the file changed between the two questions
        };
        Ok(Extent {
            bytes,
            allocation: Allocation::Mapped,
        })
    }

    fn space(&self) -> Option<Space> {
        files::space(&self.file)
    }

    fn will_need(&self, offset: u64, bytes: u64) {
        if let Some(mapping) = &self.mapping
            && let Ok(range) = range::in_memory(offset, bytes, self.geometry.size_bytes)
            && !range.is_empty()
        {
            // Only advice: a refusal changes nothing.
            let _ = mapping.advise_range(Advice::WillNeed, range.start, range.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::Subject;

    fn file_of(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn a_raw_file_keeps_the_contract() {
        let file = file_of(&[0x5a; 2 << 20]);
        let open = || Arc::new(Raw::open(file.path(), Access::ReadWrite).unwrap()) as _;
        Subject::new(open).reopened_by(open).check();
    }

    #[test]
    fn a_read_only_raw_file_keeps_the_contract() {
        let file = file_of(&[0x5a; 1 << 20]);
        Subject::new(|| Arc::new(Raw::open(file.path(), Access::ReadOnly).unwrap()) as _).check();
    }

    #[test]
    fn a_file_that_is_written_in_place_has_one_opener() {
        let file = file_of(&[0; 4096]);
        let reader = Raw::open(file.path(), Access::ReadOnly).unwrap();
        let _second_reader = Raw::open(file.path(), Access::ReadOnly).unwrap();
        let error = Raw::open(file.path(), Access::ReadWrite).err().unwrap();
        assert!(error.to_string().contains("in use"), "{error}");
        drop((reader, _second_reader));
        let _writer = Raw::open(file.path(), Access::ReadWrite).unwrap();
        assert!(Raw::open(file.path(), Access::ReadOnly).is_err());
    }

    #[test]
    fn a_file_cut_off_below_us_is_corrupt_not_zeros() {
        let file = file_of(&[1; 8192]);
        let disk = Raw::open(file.path(), Access::ReadOnly).unwrap();
        file.as_file().set_len(4096).unwrap();
        let error = disk.read(4096, &mut [0; 512]).err().unwrap();
        assert!(matches!(error, DiskError::Corrupt(_)), "{error}");
        for offset in [4096, 4608] {
            let extent = disk.extent(offset, 512).unwrap();
            assert_eq!(extent.allocation, Allocation::Mapped, "not a hole");
        }
    }

    #[test]
    fn a_size_that_is_no_whole_number_of_blocks_is_refused() {
        let file = file_of(&[0; 1000]);
        let error = Raw::open(file.path(), Access::ReadOnly).err().unwrap();
        assert!(error.to_string().contains("1000 bytes"), "{error}");
    }

    #[test]
    fn the_end_of_a_disc_that_is_no_whole_block_is_left_out() {
        let open = |bytes: usize, access| {
            let file = file_of(&vec![7; bytes]);
            let options = RawOptions {
                access,
                logical_block_bytes: Some(2048),
            };
            let disk = Raw::open_with(file.path(), options);
            disk.map(|disk| disk.geometry().size_bytes)
        };
        assert_eq!(open(5000, Access::ReadOnly).unwrap(), 4096);
        assert!(open(5000, Access::ReadWrite).is_err());
        assert!(open(2047, Access::ReadOnly).is_err());
    }

    #[test]
    fn a_file_grows_under_its_lock_and_the_disk_before_stays_what_it_was() {
        let file = file_of(&[7; 8192]);
        let before = Raw::open(file.path(), Access::ReadWrite).unwrap();
        let after = before.grown(1 << 20).unwrap();
        assert_eq!(before.geometry().size_bytes, 8192);
        assert_eq!(after.geometry().size_bytes, 1 << 20);
        after.write((1 << 20) - 512, &[3; 512]).unwrap();
        let mut bytes = [9; 1024];
        after.read(8192 - 512, &mut bytes).unwrap();
        assert_eq!(bytes, [[7; 512], [0; 512]].concat()[..]);
        assert!(before.read(8192, &mut [0; 512]).is_err());
        let mut segments = Vec::new();
        assert!(after.segments(0, 1 << 20, &mut segments).unwrap());
        drop(before);
        assert!(Raw::open(file.path(), Access::ReadWrite).is_err());
    }

    #[test]
    fn a_file_that_others_made_longer_is_measured_again() {
        let file = file_of(&[7; 4096]);
        let disk = Raw::open(file.path(), Access::ReadOnly).unwrap();
        assert!(disk.measured().unwrap().is_none());
        file.as_file().set_len(12288).unwrap();
        let longer = disk.measured().unwrap().unwrap();
        assert_eq!(longer.geometry().size_bytes, 12288);
        file.as_file().set_len(12289).unwrap();
        assert!(matches!(longer.measured(), Err(DiskError::Corrupt(_))));
    }

    #[test]
    fn nothing_shrinks_and_what_is_read_only_does_not_grow() {
        let file = file_of(&[7; 8192]);
        let disk = Raw::open(file.path(), Access::ReadWrite).unwrap();
        for size_bytes in [0, 4096, 8192, 8193] {
            assert!(disk.grown(size_bytes).is_err(), "{size_bytes}");
        }
        drop(disk);
        let disk = Raw::open(file.path(), Access::ReadOnly).unwrap();
        assert!(matches!(disk.grown(16384), Err(DiskError::ReadOnly)));
        assert_eq!(std::fs::metadata(file.path()).unwrap().len(), 8192);
    }

    #[test]
    fn a_disk_that_has_failed_has_failed_at_every_size() {
        let file = file_of(&[7; 8192]);
        let disk = Raw::open(file.path(), Access::ReadWrite).unwrap();
        let grown = disk.grown(16384).unwrap();
        disk.health.fail("test".to_owned());
        assert!(matches!(
            grown.write(0, &[0; 512]),
            Err(DiskError::Failed(_))
        ));
    }

    #[test]
    fn a_file_tells_the_space_it_takes_and_what_is_left() {
        let file = file_of(&[9; 1 << 20]);
        let disk = Raw::open(file.path(), Access::ReadWrite).unwrap();
        disk.flush().unwrap();
        let space = disk.space().unwrap();
        assert!(space.used_bytes >= 1 << 20 && space.free_bytes > 0);
    }

    #[test]
    fn an_unmapped_range_gives_its_space_back() {
        let file = file_of(&[9; 1 << 20]);
        let disk = Raw::open(file.path(), Access::ReadWrite).unwrap();
        if !files::can_punch(file.as_file()) {
            return; // Zeros are written here; the contract has checked those.
        }
        let blocks = || {
            use std::os::unix::fs::MetadataExt;
            disk.flush().unwrap();
            file.as_file().metadata().unwrap().blocks()
        };
        let before = blocks();
        disk.unmap(64 << 10, 512 << 10).unwrap();
        assert!(blocks() + 1000 <= before);
        let extent = disk.extent(64 << 10, 600 << 10).unwrap();
        let hole = Extent {
            bytes: 512 << 10,
            allocation: Allocation::Deallocated,
        };
        assert_eq!(extent, hole);
    }
}
