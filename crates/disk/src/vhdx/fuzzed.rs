//! VHDX files as a fuzzer makes them: a few pieces in a long file.
//!
//! An input is a byte of settings, the length of the file in MiB (big-endian, 2
//! bytes), the number of steps, six bytes for each, and the pieces: where it
//! begins in units of 8 bytes (4 bytes), how long it is (2 bytes), its bytes.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::OnceLock;

use uuid::Uuid;

use super::Vhdx;
use super::region::{COPIES, TABLE_BYTES};
use super::source::{array, checksum, index, put, u32_at};
use crate::files::Files;
use crate::{Disk, NewDisk, NewFormat};

const MAX_STEPS: usize = 24;
const MIB: u64 = 1 << 20;

/// Size of the parent, and of the disks above it.
const PARENT_BYTES: u64 = 5 << 19;

/// What children of the parent know it by.
const LINKAGE: Uuid = Uuid::from_bytes([0x77; 16]);

/// The pieces of a file, and its length.
pub(crate) struct Pieces {
    length: u64,
    pieces: Vec<(u64, Vec<u8>)>,
}

/// An input in its parts: settings, steps, file.
pub(crate) fn parse(bytes: &[u8]) -> Option<(u8, Vec<[u8; 6]>, Pieces)> {
    let ([settings, high, low, count], rest) = bytes.split_first_chunk::<4>()?;
    let (steps, mut rest) = rest.split_at_checked(6 * usize::from(*count).min(MAX_STEPS))?;
    let mut pieces = Vec::new();
    while let Some((head, bytes)) = rest.split_first_chunk::<6>() {
        let at = u64::from(u32::from_be_bytes(array(head, 0))) * 8;
        let length = usize::from(u16::from_be_bytes(array(head, 4))).min(bytes.len());
        let (piece, left) = bytes.split_at(length);
        pieces.push((at, piece.to_vec()));
        rest = left;
    }
    let steps = steps.chunks_exact(6).map(|step| array(step, 0)).collect();
    let length = u64::from(u16::from_be_bytes([*high, *low])) * MIB;
    Some((*settings, steps, Pieces { length, pieces }))
}

impl Pieces {
    /// Writes the file; `seal` makes the checksums of headers, region tables
    /// and of log entries in the second MiB right.
    pub(crate) fn write(&self, path: &Path, seal: bool) {
        let write = || {
            let file = fs::File::options();
            let file = file
                .clone()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(path)?;
            file.set_len(self.length)?;
            for (at, bytes) in &self.pieces {
                let left = index(self.length.saturating_sub(*at));
                file.write_all_at(&bytes[..bytes.len().min(left)], *at)?;
            }
            if seal && self.length >= 2 * MIB {
                sealed(&file)?;
            }
            Ok(())
        };
        let written: std::io::Result<()> = write();
        written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

fn sealed(file: &fs::File) -> std::io::Result<()> {
    let seal = |at: u64, length: usize| {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, at)?;
        let crc = checksum(&bytes);
        put(&mut bytes, 4, &crc.to_le_bytes());
        file.write_all_at(&bytes[..8], at)
    };
    for header in [64 << 10, 128 << 10] {
        seal(header, 4096)?;
    }
    for table in COPIES {
        seal(table, TABLE_BYTES)?;
    }
    for at in (MIB..2 * MIB).step_by(4096) {
        let mut head = [0; 12];
        file.read_exact_at(&mut head, at)?;
        let length = u64::from(u32_at(&head, 8));
        if &head[..4] == b"loge" && length >= 64 && at + length <= 2 * MIB {
            seal(at, index(length))?;
        }
    }
    Ok(())
}

/// Makes the parent: a fixed content and a fixed "DataWriteGuid".
pub(crate) fn make_parent(path: &Path) {
    static PARENT: OnceLock<Pieces> = OnceLock::new();
    let parent = PARENT.get_or_init(|| {
        let bytes = make_parent_once(path)
            .and_then(|()| Ok(fs::read(path)?))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let pages = (0_u64..).step_by(4096).zip(bytes.chunks(4096));
        let pages = pages.filter(|(_, page)| page.iter().any(|&b| b != 0));
        Pieces {
            length: bytes.len() as u64,
            pieces: pages.map(|(at, page)| (at, page.to_vec())).collect(),
        }
    });
    parent.write(path, false);
}

fn make_parent_once(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let new = NewDisk {
        format: NewFormat::VhdxDynamic,
        size_bytes: PARENT_BYTES,
        logical_block_bytes: 512,
    };
    let parent = Vhdx::create_with(&Files::real()?, path, &new, 1 << 20)?;
    parent.write(0, &[0xba; 100_000])?;
    parent.close()?;
    let mut log = parent.journal.log();
    log.headers
        .update(&parent.source.file, |header| header.data_write = LINKAGE)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces of a file that are not zeros, as an input.
    fn input(path: &Path, steps: &[[u8; 6]]) -> Vec<u8> {
        let bytes = fs::read(path).unwrap();
        let length = u16::try_from(bytes.len().div_ceil(1 << 20)).unwrap();
        let mut input = vec![1];
        input.extend(length.to_be_bytes());
        input.push(u8::try_from(steps.len()).unwrap());
        input.extend(steps.concat());
        let mut at = 0;
        while at < bytes.len() {
            let is_zero = |from: usize| {
                bytes[from..bytes.len().min(from + 64)]
                    .iter()
                    .all(|b| *b == 0)
            };
            let mut end = at;
            while end < bytes.len() && end - at < 4096 && !is_zero(end) {
                end += 64;
            }
            if end > at {
                input.extend(u32::try_from(at / 8).unwrap().to_be_bytes());
                input.extend(u16::try_from(end - at).unwrap().to_be_bytes());
                input.extend(&bytes[at..end]);
            }
            at = end.max(at + 64);
        }
        input
    }

    #[test]
    fn what_was_taken_apart_is_the_same_put_together() {
        let dir = tempfile::tempdir().unwrap();
        let (path, again) = (dir.path().join("a"), dir.path().join("b"));
        make_parent(&path);
        let (settings, steps, file) = parse(&input(&path, &[[1; 6]])).unwrap();
        assert_eq!((settings, steps), (1, vec![[1; 6]]));
        file.write(&again, true);
        assert!(fs::read(&path).unwrap() == fs::read(&again).unwrap());
    }

    #[test]
    #[ignore = "writes the inputs that the fuzzer starts from"]
    fn the_corpus_is_made() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/vhdx");
        fs::create_dir_all(folder).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let parent = dir.path().join("parent.vhdx");
        make_parent(&parent);
        let steps = [
            [0, 0, 0, 0, 0, 9],
            [0x81, 0, 0, 8, 0, 40],
            [3, 0, 0, 0x10, 0, 3],
            [6, 0, 0, 0, 0, 0],
            [7, 0, 0, 0, 0, 0],
            [5, 0, 0, 0, 0, 255],
        ];
        let differencing = NewFormat::VhdxDifferencing {
            parent: parent.clone(),
        };
        for (name, format) in [
            ("dynamic", NewFormat::VhdxDynamic),
            ("differencing", differencing),
        ] {
            let path = dir.path().join("disk.vhdx");
            let _ = fs::remove_file(&path);
            let new = NewDisk {
                format,
                size_bytes: PARENT_BYTES,
                logical_block_bytes: 512,
            };
            let disk = Vhdx::create_with(&Files::real().unwrap(), &path, &new, 1 << 20).unwrap();
            disk.write(700, &[0x5a; 900]).unwrap();
            disk.write(PARENT_BYTES - 512, &[0x5b; 512]).unwrap();
            disk.flush().unwrap();
            // With a log to be replayed.
            disk.forsake();
            drop(disk);
            fs::write(format!("{folder}/{name}"), input(&path, &steps)).unwrap();
        }
    }
}
