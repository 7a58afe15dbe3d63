//! Doors for the fuzz targets of `fuzz/`: each takes a disk file as anybody
//! could have made it, and work to be done on it. Compiled for them, and for
//! the tests, which replay the corpus. A door panics when what must always hold
//! does not.
//!
//! An input is a byte of settings, the pages of a hole in the file (big-endian,
//! 2 bytes), the number of steps, six bytes for each (kind, position, length),
//! and the file: its last 512 bytes stand behind the hole.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::probe::{Format, VhdKind};
use crate::{Access, Disk, Opening, describe, open, vhd, vhdx};

/// A door: bytes in, nothing out.
pub type Door = fn(&[u8]);

/// All doors, by the names of their targets and corpora.
pub const DOORS: [(&str, Door); 3] = [("vhd", vhd), ("vhdx", vhdx), ("qcow2", qcow2)];

const PAGE_BYTES: u64 = 4096;
const TAIL_BYTES: usize = 512;
const MAX_STEPS: usize = 24;
/// Longest read or write of a step.
const STEP_BYTES: usize = 64 << 10;
/// What is compared from the beginning of a disk.
const FRONT_BYTES: usize = 128 << 10;
/// A block of a differencing disk may be copied whole: larger ones only cost
/// time.
const MAX_COPIED_BYTES: u64 = 1 << 20;

/// A VHD: fixed, dynamic, or differencing with a parent beside it. The lowest
/// setting makes the checksums right, so that one gets past them.
pub fn vhd(bytes: &[u8]) {
    try_vhd(bytes);
}

/// The same, and whether it could be opened.
fn try_vhd(bytes: &[u8]) -> bool {
    let Some(mut input) = Input::parse(bytes) else {
        return false;
    };
    if input.settings & 1 != 0 {
        vhd::seal(&mut input.head, &mut input.tail);
    }
    let site = Site::new();
    let parent = vhd::specimen_of_a_parent();
    site.put("parent.vhd", &parent);
    let path = site.put_with_hole("disk.vhd", &input);
    let is_open = work(&path, Format::Vhd(VhdKind::Unknown), &input.steps);
    let seen = fs::read(site.dir.join("parent.vhd")).unwrap_or_default();
    assert!(seen == parent, "a parent was written");
    assert_eq!(site.names(), 2, "something was made beside it");
    is_open
}

/// A VHDX: fixed, dynamic, or differencing with a parent beside it, with or
/// without a log. Of its file, which is long, an input holds pieces; the lowest
/// setting makes the checksums right.
pub fn vhdx(bytes: &[u8]) {
    try_vhdx(bytes);
}

/// The same, and whether it could be opened.
fn try_vhdx(bytes: &[u8]) -> bool {
    let Some((settings, steps, file)) = vhdx::fuzzed::parse(bytes) else {
        return false;
    };
    let site = Site::new();
    let parent_path = site.dir.join("parent.vhdx");
    vhdx::fuzzed::make_parent(&parent_path);
    let parent = stamp(&parent_path);
    let path = site.dir.join("disk.vhdx");
    file.write(&path, settings & 1 != 0);
    let is_open = work(&path, Format::Vhdx, &steps);
    assert_eq!(stamp(&parent_path), parent, "a parent was written");
    assert_eq!(site.names(), 2, "something was made beside it");
    is_open
}

/// A qcow2 file, alone or above `parent.raw`, which is only read.
pub fn qcow2(bytes: &[u8]) {
    try_qcow2(bytes);
}

/// The same, and whether it could be opened.
fn try_qcow2(bytes: &[u8]) -> bool {
    let Some(input) = Input::parse(bytes) else {
        return false;
    };
    let site = Site::new();
    site.put("parent.raw", &[0x5a; 8192]);
    let path = site.put_with_hole("disk.qcow2", &input);
    let before = stamp(&path);
    let is_open = work(&path, Format::Qcow2, &input.steps);
    assert_eq!(stamp(&path), before, "a qcow2 file was written");
    assert_eq!(site.names(), 2, "something was made beside it");
    is_open
}

/// An input in its parts.
struct Input {
    settings: u8,
    hole_bytes: u64,
    steps: Vec<[u8; 6]>,
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Input {
    fn parse(bytes: &[u8]) -> Option<Input> {
        let ([settings, high, low, count], rest) = bytes.split_first_chunk::<4>()?;
        let count = usize::from(*count).min(MAX_STEPS);
        let (steps, file) = rest.split_at_checked(6 * count)?;
        let (head, tail) = file.split_at(file.len().saturating_sub(TAIL_BYTES));
        Some(Input {
            settings: *settings,
            hole_bytes: u64::from(u16::from_be_bytes([*high, *low])) * PAGE_BYTES,
            steps: steps
                .chunks_exact(6)
                .filter_map(|step| step.try_into().ok())
                .collect(),
            head: head.to_vec(),
            tail: tail.to_vec(),
        })
    }
}

/// A directory that goes when it is dropped.
struct Site {
    dir: PathBuf,
}

impl Site {
    fn new() -> Site {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let shared = Path::new("/dev/shm");
        let home = match shared.is_dir() {
            true => shared.to_owned(),
            false => std::env::temp_dir(),
        };
        let dir = home.join(format!("diskless-fuzz-{}-{number}", std::process::id()));
        fs::create_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        Site { dir }
    }

    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.join(name);
        fs::write(&path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    fn put_with_hole(&self, name: &str, input: &Input) -> PathBuf {
        let path = self.put(name, &input.head);
        let at = input.head.len() as u64 + input.hole_bytes;
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|file| file.write_all_at(&input.tail, at))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    fn names(&self) -> usize {
        fs::read_dir(&self.dir).map_or(0, Iterator::count)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Opens the file, works on it, and holds it to its contract; `false` when it
/// was refused.
fn work(path: &Path, format: Format, steps: &[[u8; 6]]) -> bool {
    let before = stamp(path);
    let opening = |access| Opening {
        format: Some(format),
        ..Opening::new(access)
    };
    let Ok(description) = describe(path, &opening(Access::ReadOnly)) else {
        let refused = open(path, &opening(Access::ReadWrite));
        assert!(refused.is_err(), "only a reader was refused");
        assert_eq!(stamp(path), before, "a file that was refused was written");
        return false;
    };
    assert_eq!(stamp(path), before, "a reader wrote");
    if !description.parents.is_empty() && description.unit_bytes > Some(MAX_COPIED_BYTES) {
        return true;
    }
    let access = match format {
        Format::Qcow2 => Access::ReadOnly,
        _ => Access::ReadWrite,
    };
    let open_again = || open(path, &opening(access));
    let Ok(mut disk) = open_again() else {
        return false;
    };
    assert_eq!(disk.geometry(), description.geometry);
    for step in steps {
        if step[0] % 8 == 7 {
            let seen = front(&*disk);
            drop(disk);
            disk = match open_again() {
                Ok(disk) => disk,
                Err(error) => panic!("what was open does not open again: {error}"),
            };
            assert!(front(&*disk) == seen, "something was lost");
        } else {
            one(&*disk, step);
        }
    }
    let _ = disk.flush();
    true
}

/// One step of work.
fn one(disk: &dyn Disk, [kind, position @ .., length]: &[u8; 6]) {
    let size_bytes = disk.geometry().size_bytes;
    // Sectors at the beginning, or anywhere.
    let position = u64::from(u32::from_be_bytes(*position));
    let offset = match kind & 0x80 {
        0 => position % size_bytes,
        _ => position * 512 % size_bytes,
    };
    let left = usize::try_from(size_bytes - offset).unwrap_or(usize::MAX);
    let length = (usize::from(*length) * 257).min(STEP_BYTES).min(left);
    let bytes = length as u64;
    let mut seen = vec![0; length];
    match kind % 8 {
        0..=2 => {
            let data = vec![kind | 1; length];
            if disk.write(offset, &data).is_ok() && disk.read(offset, &mut seen).is_ok() {
                assert!(seen == data, "a write was not kept");
            }
        }
        3 => {
            if disk.unmap(offset, bytes).is_ok() && disk.read(offset, &mut seen).is_ok() {
                assert!(seen.iter().all(|&b| b == 0), "unmapped are zeros");
            }
        }
        4 => {
            let mut segments = Vec::new();
            if let Ok(true) = disk.segments(offset, bytes, &mut segments) {
                let total: usize = segments.iter().map(crate::Segment::len).sum();
                assert_eq!(total, length);
            }
            disk.will_need(offset, bytes);
            let _ = disk.read(offset, &mut seen);
        }
        5 => {
            if let Ok(extent) = disk.extent(offset, bytes) {
                assert!(extent.bytes <= bytes && (extent.bytes > 0 || bytes == 0));
            }
        }
        _ => {
            let _ = disk.flush();
        }
    }
}

/// The beginning of a disk.
fn front(disk: &dyn Disk) -> Vec<u8> {
    let size_bytes = usize::try_from(disk.geometry().size_bytes).unwrap_or(usize::MAX);
    let mut seen = vec![0; size_bytes.min(FRONT_BYTES)];
    let _ = disk.read(0, &mut seen);
    seen
}

/// Length and time of a file.
fn stamp(path: &Path) -> Option<(u64, std::time::SystemTime)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().ok()?))
}

#[cfg(test)]
#[path = "../../../fuzz/src/corpus.rs"]
mod corpus;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_is_survived() {
        corpus::replay(&DOORS);
    }

    /// Else nothing but refusals would be tried.
    #[test]
    fn what_the_corpus_holds_can_be_opened() {
        type Opens = fn(&[u8]) -> bool;
        let doors = [
            ("vhd", try_vhd as Opens),
            ("vhdx", try_vhdx),
            ("qcow2", try_qcow2),
        ];
        for (name, door) in doors {
            let folder = format!("{}/../../fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                assert!(door(&fs::read(&path).unwrap()), "{}", path.display());
            }
        }
    }
}
