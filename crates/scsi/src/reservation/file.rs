//! Reservations kept in a file, replaced as a whole.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::ReservationKeeper;
use super::saved::MAX_SAVED_BYTES;

/// Keeps the reservations of one unit in a file of its own.
#[derive(Debug)]
pub struct ReservationFile {
    path: PathBuf,
}

impl ReservationFile {
    /// The file at `path`. It is made when an initiator first asks for
    /// reservations that outlive the server (APTPL).
    pub fn at(path: impl Into<PathBuf>) -> ReservationFile {
        ReservationFile { path: path.into() }
    }

    /// What was saved last, for
    /// [`keep_reservations`](crate::LogicalUnit::keep_reservations); `None`
    /// when nothing ever was.
    pub fn load(&self) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut saved = Vec::new();
        // One byte more than there may be: a file too long is noticed.
        let longest = u64::try_from(MAX_SAVED_BYTES).unwrap_or(u64::MAX);
        file.take(longest + 1).read_to_end(&mut saved)?;
        Ok(Some(saved))
    }

    fn replace(&self, saved: &[u8]) -> io::Result<()> {
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        let mut file = File::create(&new)?;
        file.write_all(saved)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(directory)?.sync_all()
    }
}

impl ReservationKeeper for ReservationFile {
    fn save(&self, saved: &[u8]) -> Result<(), String> {
        let said = |error| format!("saving reservations in {}: {error}", self.path.display());
        self.replace(saved).map_err(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_last_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let file = ReservationFile::at(directory.path().join("lun0"));
        assert_eq!(file.load().unwrap(), None);
        file.save(b"first, and longer").unwrap();
        file.save(b"second").unwrap();
        assert_eq!(file.load().unwrap().as_deref(), Some(&b"second"[..]));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gone").join("lun0");
        let error = ReservationFile::at(&path).save(b"x").unwrap_err();
        assert!(error.contains("gone/lun0"), "{error}");
    }
}
