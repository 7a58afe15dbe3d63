//! VHDX against the contract, and with the death of its process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::NewFormat;
use crate::contract::Subject;

mod chain;
mod growth;
mod hostile;
mod judges;

const MIB: u64 = 1 << 20;

/// A directory in which files are made, opened and killed.
struct Site {
    dir: tempfile::TempDir,
    files: Files,
}

impl Site {
    fn new() -> Site {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Site {
            dir: dir.unwrap(),
            files: Files::real().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A fresh file with blocks of 1 MiB.
    fn create(&self, name: &str, format: NewFormat, size_bytes: u64, sector: u32) -> Vhdx {
        self.create_in_blocks(name, &format, size_bytes, sector, 1 << 20)
    }

    fn create_in_blocks(
        &self,
        name: &str,
        format: &NewFormat,
        size_bytes: u64,
        sector: u32,
        block_bytes: u32,
    ) -> Vhdx {
        let path = self.path(name);
        let _ = std::fs::remove_file(&path);
        let new = NewDisk {
            format: format.clone(),
            size_bytes,
            logical_block_bytes: sector,
        };
        Vhdx::create_with(&self.files, &path, &new, block_bytes).unwrap()
    }

    fn open(&self, name: &str, access: Access) -> Vhdx {
        self.try_open(name, access).unwrap()
    }

    fn try_open(&self, name: &str, access: Access) -> Result<Vhdx, OpenError> {
        Vhdx::open_on(&self.files, &self.path(name), &Opening::new(access))
    }

    /// A parent of 5.5 MiB with contents, and the format of a child.
    fn parent(&self, sector: u32) -> NewFormat {
        let size_bytes = 5 * MIB + MIB / 2;
        let parent = self.create("parent.vhdx", NewFormat::VhdxDynamic, size_bytes, sector);
        parent.write(700, &[0x5a; 3 << 20]).unwrap();
        NewFormat::VhdxDifferencing {
            parent: self.path("parent.vhdx"),
        }
    }
}

impl Vhdx {
    /// How long the file has become.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.gaps().file_bytes()
    }
}

/// Holds a file against itself, as it is after a loss of power: whatever a
/// reader checks, and that the two region tables agree.
pub(crate) fn check(path: &Path) -> Result<(), String> {
    let files = Files::real().unwrap().in_another_boot();
    let opening = Opening::new(Access::ReadOnly);
    let disk = Vhdx::open_on(&files, path, &opening).map_err(|error| error.to_string())?;
    let tables = region::COPIES.map(|at| {
        let mut table = vec![0; region::TABLE_BYTES];
        disk.source.read_exact_at(&mut table, at).unwrap();
        table
    });
    if tables[0] != tables[1] {
        return Err("the region tables differ".to_owned());
    }
    Ok(())
}

fn contents(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0; index(disk.geometry().size_bytes)];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

/// A process that dies with its disk open.
fn kill(disk: Vhdx) {
    disk.forsake();
}

/// Drops as a killed process does.
struct Killed(Vhdx);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.forsake();
    }
}

impl Disk for Killed {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    fn access(&self) -> Access {
        self.0.access()
    }
    fn durability(&self) -> Durability {
        self.0.durability()
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.0.read(offset, buffer)
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.0.write(offset, data)
    }
    fn flush(&self) -> Result<(), DiskError> {
        self.0.flush()
    }
    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.0.unmap(offset, bytes)
    }
    fn segments<'a>(
        &'a self,
        offset: u64,
        bytes: u64,
        segments: &mut Vec<Segment<'a>>,
    ) -> Result<bool, DiskError> {
        self.0.segments(offset, bytes, segments)
    }
    fn extent(&self, offset: u64, bytes: u64) -> Result<Extent, DiskError> {
        self.0.extent(offset, bytes)
    }
    fn will_need(&self, offset: u64, bytes: u64) {
        self.0.will_need(offset, bytes);
    }
}

fn keeps_the_contract(kind: fn(&Site, u32) -> NewFormat, sector: u32) {
    let site = Site::new();
    let format = kind(&site, sector);
    let size_bytes = 5 * MIB + MIB / 2;
    let make = || {
        let disk = site.create("disk.vhdx", format.clone(), size_bytes, sector);
        Arc::new(Killed(disk)) as SharedDisk
    };
    let reopen = || Arc::new(Killed(site.open("disk.vhdx", Access::ReadWrite))) as SharedDisk;
    Subject::new(make).reopened_by(reopen).check();
    let read = || Arc::new(site.open("disk.vhdx", Access::ReadOnly)) as SharedDisk;
    Subject::new(read).check();
}

#[test]
fn a_dynamic_disk_keeps_the_contract() {
    keeps_the_contract(|_, _| NewFormat::VhdxDynamic, 512);
    keeps_the_contract(|_, _| NewFormat::VhdxDynamic, 4096);
}

#[test]
fn a_fixed_disk_keeps_the_contract() {
    keeps_the_contract(|_, _| NewFormat::VhdxFixed, 512);
}

#[test]
fn a_differencing_disk_keeps_the_contract() {
    keeps_the_contract(Site::parent, 512);
    keeps_the_contract(Site::parent, 4096);
}

#[test]
fn a_killed_writer_loses_nothing_to_a_reader_that_writes_nothing() {
    let site = Site::new();
    let format = site.parent(512);
    let disk = site.create("disk.vhdx", format, 5 * MIB + MIB / 2, 512);
    disk.write(3, &[1; 100]).unwrap();
    disk.flush().unwrap();
    disk.write(4 * MIB - 5000, &[2; 10_000]).unwrap();
    disk.unmap(2 * MIB, MIB).unwrap();
    let expected = contents(&disk);
    kill(disk);
    let before = std::fs::read(site.path("disk.vhdx")).unwrap();
    let reader = site.open("disk.vhdx", Access::ReadOnly);
    assert!(contents(&reader) == expected);
    drop(reader);
    assert!(std::fs::read(site.path("disk.vhdx")).unwrap() == before);
    let writer = site.open("disk.vhdx", Access::ReadWrite);
    assert!(contents(&writer) == expected);
    drop(writer);
    let reader = site.open("disk.vhdx", Access::ReadOnly);
    assert!(reader.journal.log().headers.current.log.is_nil());
    assert!(contents(&reader) == expected);
}

#[test]
fn a_file_is_described_by_what_it_says() {
    let site = Site::new();
    let disk = site.create("disk.vhdx", NewFormat::VhdxDynamic, 20 * MIB, 4096);
    disk.write(0, &[1]).unwrap();
    disk.write(7 * MIB, &[1]).unwrap();
    drop(disk);
    let opening = Opening::new(Access::ReadOnly);
    let found = crate::describe(&site.path("disk.vhdx"), &opening).unwrap();
    assert_eq!(found.name, "dynamic VHDX");
    assert_eq!(found.geometry.logical_block_bytes, 4096);
    assert_eq!(
        (found.unit_bytes, found.allocated_bytes),
        (Some(MIB), Some(2 * MIB))
    );
    assert_eq!(found.creator.as_deref(), Some("diskless"));
    assert!(found.notes.is_empty() && found.parents.is_empty());
}

#[test]
fn the_largest_disk_costs_nothing_until_it_is_written() {
    let site = Site::new();
    for format in [NewFormat::VhdxDynamic, NewFormat::VhdxFixed] {
        let path = site.path("disk.vhdx");
        let _ = std::fs::remove_file(&path);
        let size_bytes = metadata::SIZE_BYTES_MAX;
        let new = NewDisk {
            format: format.clone(),
            size_bytes,
            logical_block_bytes: 512,
        };
        let disk = match create(&path, &new) {
            // Not every file system holds so long a file.
            Err(OpenError::Disk(DiskError::Io { source, .. }))
                if source.kind() == std::io::ErrorKind::FileTooLarge =>
            {
                continue;
            }
            disk => disk.unwrap(),
        };
        disk.write(size_bytes - 512, &[7; 512]).unwrap();
        disk.flush().unwrap();
        drop(disk);
        let disk = site.open("disk.vhdx", Access::ReadOnly);
        let mut last = [0; 512];
        disk.read(size_bytes - 512, &mut last).unwrap();
        assert_eq!(last, [7; 512]);
        // The table of a fixed disk names all its blocks: 16 MiB.
        let used = disk.space().unwrap().used_bytes;
        assert!(used < 20 << 20, "{format:?}: {used}");
    }
}
