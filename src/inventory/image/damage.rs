//! The file `damaged` beside a version: which MiB of its disk are not what was
//! published, so that they are refused after a restart too.
//!
//! One range a line: `FIRST-LAST`, MiB counted from 0. It is written when a
//! verification or the scrub has found something, and removed by the
//! verification that finds all of it right again.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::path::Path;

use disk::image::Damage;

use super::manifest::CRC_CHUNK_BYTES;
use crate::inventory::{Error, Result, sync_directory};

const FILE: &str = "damaged";

/// Ranges kept; what comes behind so many counts as damaged to the end.
const RANGES_MAX: usize = 65_536;

/// Longest file read: so many ranges of two long numbers.
const FILE_MAX_BYTES: u64 = 4 * 1024 * 1024;

const MIB: u64 = CRC_CHUNK_BYTES as u64;

/// What is known to be damaged of the version in `directory`. A file that says
/// what cannot be makes all of it damaged: never silently none.
pub(super) fn read(directory: &Path, size_bytes: u64) -> Damage {
    let damage = Damage::default();
    let path = directory.join(FILE);
    let mut text = String::new();
    match File::open(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return damage,
        file => {
            let read = file.and_then(|file| file.take(FILE_MAX_BYTES).read_to_string(&mut text));
            let ranges = read.ok().and_then(|_| parse(&text, size_bytes));
            damage.set(ranges.unwrap_or_else(|| {
                tracing::error!(
                    "{} cannot be read: the whole image counts as damaged; verify it",
                    path.display()
                );
                std::iter::once(0..size_bytes).collect()
            }));
        }
    }
    damage
}

/// Puts down, durably, what was found of the version in `directory`.
pub(super) fn write(directory: &Path, found: &[Range<u64>]) -> Result<()> {
    let path = directory.join(FILE);
    let new = directory.join(format!("{FILE}.new"));
    let failed =
        |e: std::io::Error| Error::Failed(format!("cannot note damage in {}: {e}", path.display()));
    if found.is_empty() {
        return match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(failed(e)),
            _ => sync_directory(directory).map_err(failed),
        };
    }
    let mut text = String::new();
    for range in found {
        let (first, last) = (range.start / MIB, (range.end - 1) / MIB);
        text.push_str(&format!("{first}-{last}\n"));
    }
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        sync_directory(directory)
    };
    write().map_err(failed)
}

/// Ranges of bytes from MiB that were found wrong, in order; bounded.
#[derive(Default)]
pub(super) struct Found(Vec<Range<u64>>);

impl Found {
    /// The bytes `offset..end` are wrong. Said in order.
    pub(super) fn add(&mut self, offset: u64, end: u64) {
        let full = self.0.len() == RANGES_MAX;
        match self.0.last_mut() {
            Some(last) if full || last.end == offset => last.end = end,
            _ => self.0.push(offset..end),
        }
    }

    pub(super) fn into_ranges(self) -> Vec<Range<u64>> {
        self.0
    }
}

fn parse(text: &str, size_bytes: u64) -> Option<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    for line in text.lines() {
        let (first, last) = line.split_once('-')?;
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        let start = first.checked_mul(MIB)?;
        let end = last.checked_add(1)?.checked_mul(MIB)?.min(size_bytes);
        if start >= end {
            return None;
        }
        ranges.push(start..end);
    }
    (!ranges.is_empty()).then_some(ranges)
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_found_again_as_it_was_noted() {
        let directory = tempfile::tempdir().unwrap();
        let ranges = [0..MIB, 5 * MIB..7 * MIB + 512];
        write(directory.path(), &ranges).unwrap();
        assert_eq!(read(directory.path(), 7 * MIB + 512).ranges(), ranges);
        write(directory.path(), &[]).unwrap();
        assert!(read(directory.path(), 7 * MIB + 512).is_none());
    }

    #[test]
    fn a_note_that_cannot_be_read_condemns_the_whole_image() {
        let directory = tempfile::tempdir().unwrap();
        for bad in ["", "x", "1", "2-1", "9-9", "1-18446744073709551615", "-\n"] {
            fs::write(directory.path().join(FILE), bad).unwrap();
            let all = read(directory.path(), 4 * MIB).ranges();
            assert_eq!(all, [0..4 * MIB], "{bad:?}");
        }
    }

    #[test]
    fn what_is_found_is_bounded_and_never_too_little() {
        let mut found = Found::default();
        for at in 0..100_000 {
            found.add(2 * at * MIB, (2 * at + 1) * MIB);
        }
        let ranges = found.into_ranges();
        assert_eq!(ranges.len(), RANGES_MAX);
        assert_eq!(ranges.last().unwrap().end, (2 * 99_999 + 1) * MIB);
    }
}
