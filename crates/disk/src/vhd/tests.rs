//! VHDs held to the contract, to qemu's opinion, and to bad input.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use super::footer::FOOTER_BYTES;
use super::*;
use crate::contract::Subject;
use crate::files::Files;
use crate::{NewDisk, NewFormat, OpenError, Opening, SharedDisk};

mod differencing;
mod growth;
mod hostile;
mod judges;

const SIZE_BYTES: u64 = (9 << 20) + 512 * 3;

fn make(path: &Path, format: NewFormat, size_bytes: u64) -> Result<Vhd, OpenError> {
    let new = NewDisk {
        format,
        size_bytes,
        logical_block_bytes: 512,
    };
    create_on(&Files::real().unwrap(), path, &new)
}

fn opened(path: &Path, access: Access) -> Result<Vhd, OpenError> {
    open_on(&Files::real().unwrap(), path, &Opening::new(access))
}

fn contents(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(disk.geometry().size_bytes).unwrap()];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

/// Changes some bytes of a file.
fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

/// A fresh disk of a kind, again and again.
struct Kinds {
    dir: tempfile::TempDir,
    format: NewFormat,
}

impl Kinds {
    fn of(format: NewFormat) -> Kinds {
        Kinds {
            dir: tempfile::tempdir().unwrap(),
            format,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk.vhd")
    }

    fn fresh(&self) -> SharedDisk {
        let _ = fs::remove_file(self.path());
        Arc::new(make(&self.path(), self.format.clone(), SIZE_BYTES).unwrap())
    }

    fn again(&self, access: Access) -> SharedDisk {
        Arc::new(opened(&self.path(), access).unwrap())
    }
}

#[test]
fn every_kind_keeps_the_contract() {
    for format in [NewFormat::VhdFixed, NewFormat::VhdDynamic] {
        let kinds = Kinds::of(format);
        Subject::new(|| kinds.fresh())
            .reopened_by(|| kinds.again(Access::ReadWrite))
            .check();
        Subject::new(|| kinds.again(Access::ReadOnly)).check();
    }
}

#[test]
fn a_dynamic_disk_takes_what_is_written_and_no_room_when_it_is_closed() {
    let kinds = Kinds::of(NewFormat::VhdDynamic);
    let disk = kinds.fresh();
    disk.write(5 << 20, &[1; 512]).unwrap();
    assert!(
        fs::metadata(kinds.path()).unwrap().len() > 4 << 20,
        "no room was made"
    );
    drop(disk);
    let length = fs::metadata(kinds.path()).unwrap().len();
    assert_eq!(length, 4096 + 4096 + (2 << 20) + 512);
    let description = crate::describe(&kinds.path(), &Opening::new(Access::ReadOnly)).unwrap();
    assert_eq!(description.allocated_bytes, Some(2 << 20));
    assert_eq!(description.unit_bytes, Some(2 << 20));
    assert_eq!(description.name, "dynamic VHD");
    assert!(description.stored_bytes.unwrap() < 1 << 20);
    assert!(description.notes.is_empty());
    check(&kinds.path(), &Opening::new(Access::ReadOnly)).unwrap();
}

/// The death of a process leaves room behind the last block; what is in it is
/// looked at before it is used.
#[test]
fn room_that_was_left_is_used_and_what_lies_in_it_is_not() {
    let kinds = Kinds::of(NewFormat::VhdDynamic);
    let disk = kinds.fresh();
    disk.write(0, &[1; 512]).unwrap();
    let copy = kinds.dir.path().join("copy.vhd");
    // With its holes.
    let mut cp = Command::new("cp");
    cp.arg("--sparse=always").arg(kinds.path()).arg(&copy);
    assert!(cp.status().unwrap().success());
    let length = fs::metadata(&copy).unwrap().len();
    // A block that came as far as its lead and some data.
    let torn = 4096 + 4096 + (2 << 20);
    patch(&copy, torn, &[0xff; 4096]);
    patch(&copy, torn + 9000, &[7; 512]);
    let again = opened(&copy, Access::ReadWrite).unwrap();
    again.write(2 << 20, &[2; 512]).unwrap();
    again.write(4 << 20, &[3; 512]).unwrap();
    assert_eq!(
        fs::metadata(&copy).unwrap().len(),
        length,
        "the room was enough"
    );
    let seen = contents(&again);
    assert_eq!(seen.iter().filter(|&&b| b != 0).count(), 3 * 512);
}

#[test]
fn a_lost_footer_is_repaired_from_the_copy_and_the_copy_from_it() {
    let kinds = Kinds::of(NewFormat::VhdDynamic);
    let disk = kinds.fresh();
    disk.write(0, &[9; 8192]).unwrap();
    drop(disk);
    let whole = fs::read(kinds.path()).unwrap();
    let tail = whole.len() as u64 - FOOTER_BYTES as u64;
    for damaged in [0, tail] {
        patch(&kinds.path(), damaged + 40, &[0xaa; 8]);
        let disk = opened(&kinds.path(), Access::ReadOnly).unwrap();
        assert!(disk.notes[0].ends_with("not repaired"), "{:?}", disk.notes);
        assert_eq!(contents(&disk)[..8192], [9; 8192]);
        drop(disk);
        let disk = opened(&kinds.path(), Access::ReadWrite).unwrap();
        assert!(disk.notes[0].contains("repaired from"), "{:?}", disk.notes);
        drop(disk);
        let disk = opened(&kinds.path(), Access::ReadOnly).unwrap();
        assert!(disk.notes.is_empty());
        // A footer at the end that is lost is written behind what is there.
        let now = fs::read(kinds.path()).unwrap();
        assert!(now[..512] == whole[..512]);
        assert!(now[now.len() - 512..] == whole[..512]);
    }
}

#[test]
fn an_old_footer_of_511_bytes_is_read_and_written_over() {
    let kinds = Kinds::of(NewFormat::VhdFixed);
    drop(kinds.fresh());
    let file = fs::OpenOptions::new()
        .write(true)
        .open(kinds.path())
        .unwrap();
    file.set_len(SIZE_BYTES + 511).unwrap();
    let disk = opened(&kinds.path(), Access::ReadWrite).unwrap();
    assert_eq!(disk.geometry().size_bytes, SIZE_BYTES);
    disk.write(SIZE_BYTES - 512, &[5; 512]).unwrap();
    drop(disk);
    let disk = opened(&kinds.path(), Access::ReadOnly).unwrap();
    assert_eq!(contents(&disk)[usize::try_from(SIZE_BYTES).unwrap() - 1], 5);
}

#[test]
fn a_vhd_that_is_written_has_one_opener() {
    let kinds = Kinds::of(NewFormat::VhdDynamic);
    let disk = kinds.fresh();
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let answer = opened(&kinds.path(), access);
        assert!(matches!(answer, Err(OpenError::InUse { .. })));
    }
    drop(disk);
    let _reader = kinds.again(Access::ReadOnly);
    let _other = kinds.again(Access::ReadOnly);
    let answer = opened(&kinds.path(), Access::ReadWrite);
    assert!(matches!(answer, Err(OpenError::InUse { .. })));
}

#[test]
fn the_largest_vhd_is_made_and_a_larger_one_is_to_be_a_vhdx() {
    let dir = tempfile::tempdir().unwrap();
    for format in [NewFormat::VhdFixed, NewFormat::VhdDynamic] {
        let path = dir.path().join(format!("{format:?}.vhd"));
        // Not every file system has files of this size; a dynamic one is small.
        let disk = match make(&path, format.clone(), 2040 << 30) {
            Err(_) if format == NewFormat::VhdFixed => continue,
            disk => disk.unwrap(),
        };
        disk.write((2040 << 30) - 700, &[1; 700]).unwrap();
        let mut seen = [0; 701];
        disk.read((2040 << 30) - 701, &mut seen).unwrap();
        assert_eq!((seen[0], seen[1], seen[700]), (0, 1, 1));
        drop(disk);
        fs::remove_file(&path).unwrap();
        let refusal = make(&path, format, (2040 << 30) + 512).err().unwrap();
        assert!(refusal.to_string().contains("make it a VHDX"), "{refusal}");
        assert!(!path.exists());
    }
}
