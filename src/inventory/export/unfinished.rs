//! Files that exports are writing, beside the name they are to have.
//!
//! They lie in directories of the operator's, which are never searched: a note
//! in `DATA/exports` names each, from before it is made until it has its name
//! or is gone. So what a killed program left is found at its next start.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::inventory::{Error, Result, sync_directory};

/// Where the notes lie, in the data directory.
pub(in crate::inventory) const NOTES: &str = "exports";

/// Longest path a note holds: Linux's PATH_MAX.
const PATH_MAX_BYTES: u64 = 4096;

/// A file that is being written; it goes with this value, unless it has another
/// name by then.
pub(super) struct Unfinished {
    path: PathBuf,
    note: PathBuf,
}

impl Unfinished {
    /// Puts down, durably, that a file which is to be `name` is written in
    /// `directory`. It is not made yet.
    pub(super) fn begin(notes: &Path, directory: &Path, name: &OsStr) -> Result<Unfinished> {
        let id = Uuid::new_v4().simple().to_string();
        let mut file = std::ffi::OsString::from(".");
        file.push(name);
        file.push(format!(".{id}"));
        let unfinished = Unfinished {
            path: directory.join(file),
            note: notes.join(id),
        };
        let note = || {
            let mut note = File::create_new(&unfinished.note)?;
            note.write_all(unfinished.path.as_os_str().as_bytes())?;
            note.sync_all()?;
            sync_directory(notes)
        };
        let noted = note();
        noted.map_err(|e| {
            let shown = unfinished.note.display();
            Error::Failed(format!("cannot write {shown}: {e}"))
        })?;
        Ok(unfinished)
    }

    /// Where it is written.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        remove(&self.path, &self.note);
    }
}

/// Removes what a program that was killed has left unfinished, and its notes.
pub(in crate::inventory) fn tidy(notes: &Path) -> Result<()> {
    let failed = |e: io::Error| Error::Failed(format!("cannot tidy up {}: {e}", notes.display()));
    for entry in fs::read_dir(notes).map_err(failed)? {
        let note = entry.map_err(failed)?.path();
        match noted(&note) {
            Ok(path) => remove(&path, &note),
            Err(e) => tracing::warn!("{} is no note of an export: {e}", note.display()),
        }
    }
    Ok(())
}

/// The path in a note: that of an unfinished file, or an error.
fn noted(note: &Path) -> io::Result<PathBuf> {
    let mut bytes = Vec::new();
    File::open(note)?
        .take(PATH_MAX_BYTES)
        .read_to_end(&mut bytes)?;
    let path = PathBuf::from(std::ffi::OsString::from_vec(bytes));
    let id = note.file_name().unwrap_or_default().as_bytes();
    let name = path.file_name().unwrap_or_default().as_bytes();
    match path.is_absolute() && name.starts_with(b".") && !id.is_empty() && name.ends_with(id) {
        true => Ok(path),
        false => Err(io::Error::new(
            ErrorKind::InvalidData,
            "it names no unfinished file",
        )),
    }
}

/// Removes the file, and then the note; the note stays while the file may still
/// be there, as on a disk that is not mounted.
fn remove(path: &Path, note: &Path) {
    match fs::remove_file(path) {
        Err(e) if e.kind() == ErrorKind::NotFound && is_reachable(path) => {}
        Err(e) => return tracing::warn!("cannot remove {} yet: {e}", path.display()),
        Ok(()) => tracing::info!("removed {}, an export that was interrupted", path.display()),
    }
    if let Err(e) = fs::remove_file(note) {
        tracing::warn!("cannot remove {} yet: {e}", note.display());
    }
}

fn is_reachable(path: &Path) -> bool {
    path.parent().is_some_and(Path::exists)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests::Site;

    /// An export of `a.vhd` that is at work when the program is killed.
    fn killed(site: &Site, directory: &Path) -> PathBuf {
        let notes = site.data().join(NOTES);
        let unfinished = Unfinished::begin(&notes, directory, OsStr::new("a.vhd")).unwrap();
        fs::write(unfinished.path(), [1; 512]).unwrap();
        let path = unfinished.path().to_owned();
        std::mem::forget(unfinished);
        path
    }

    fn notes(site: &Site) -> usize {
        fs::read_dir(site.data_path().join(NOTES)).unwrap().count()
    }

    #[test]
    fn what_a_killed_export_left_goes_at_the_next_start() {
        let mut site = Site::new();
        let left = killed(&site, site.directory());
        let other = left.with_file_name(".a.vhd.0123");
        fs::write(&other, [1; 512]).unwrap();
        site.restart();
        assert!(!left.exists());
        assert!(other.exists(), "it is nobody's");
        assert_eq!(notes(&site), 0);
    }

    #[test]
    fn what_lies_on_a_disk_that_is_not_mounted_goes_when_it_is() {
        let mut site = Site::new();
        let (here, away) = (site.directory().join("pool"), site.directory().join("away"));
        fs::create_dir(&here).unwrap();
        let left = killed(&site, &here);
        fs::rename(&here, &away).unwrap();
        site.restart();
        assert_eq!(notes(&site), 1);
        fs::rename(&away, &here).unwrap();
        site.restart();
        assert!(!left.exists());
        assert_eq!(notes(&site), 0);
    }

    #[test]
    fn a_note_leads_to_no_other_file() {
        let mut site = Site::new();
        let precious = site.directory().join("precious.vhd");
        fs::write(&precious, [1; 512]).unwrap();
        let id = Uuid::new_v4().simple().to_string();
        let note = site.data().join(NOTES).join(id);
        fs::write(&note, precious.as_os_str().as_bytes()).unwrap();
        site.restart();
        assert!(precious.exists() && note.exists());
    }
}
