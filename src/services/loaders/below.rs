//! Files by their relative name below some directories, and never elsewhere.
//!
//! Windows' loaders write the names of their files in any case. So what is
//! not there as it is written is looked for a second time, part by part,
//! without regard to case.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Entries of one directory that a second look goes through; more than that
/// are no loaders.
const ENTRIES_MAX: usize = 10_000;
/// Parts of a name that is looked for a second time.
const PARTS_MAX: usize = 16;

/// Opens the regular file `name` below the first of `directories` that has
/// it as it is written, or else below the first that has it in another case.
/// A name with `..`, a backslash, NUL or an empty part is not found; links
/// that the administrator put there are followed.
pub(crate) fn open_below(directories: &[PathBuf], name: &str) -> io::Result<File> {
    match open_exactly(directories, name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_plain(name) => {}
        opened => return opened,
    }
    let parts: Vec<String> = name.split('/').map(str::to_lowercase).collect();
    if parts.len() > PARTS_MAX {
        return Err(not_found());
    }
    let mut found = directories
        .iter()
        .filter_map(|directory| in_any_case(directory, &parts));
    found.next().map_or_else(|| Err(not_found()), File::open)
}

/// Opens the regular file `name` as it is written below the first of
/// `directories` that has it, as [`open_below`] does.
pub(super) fn open_exactly(directories: &[PathBuf], name: &str) -> io::Result<File> {
    if !is_plain(name) {
        return Err(not_found());
    }
    let mut paths = directories.iter().map(|directory| directory.join(name));
    paths
        .find(|path| is_file(path))
        .map_or_else(|| Err(not_found()), File::open)
}

/// The directory `name` below `root`, which is `root` itself where the name is
/// empty; else as [`open_below`], but for the case.
pub(crate) fn directory_below(root: &Path, name: &str) -> io::Result<PathBuf> {
    let path = match name {
        "" => root.to_owned(),
        name if is_plain(name) => root.join(name),
        _ => return Err(not_found()),
    };
    let is_directory = fs::metadata(&path).is_ok_and(|metadata| metadata.is_dir());
    let found = is_directory.then_some(path);
    found.ok_or_else(not_found)
}

/// The regular file below `directory` whose parts are these but for the case.
fn in_any_case(directory: &Path, parts: &[String]) -> Option<PathBuf> {
    let (first, rest) = parts.split_first()?;
    let mut entries: Vec<PathBuf> = fs::read_dir(directory)
        .ok()?
        .take(ENTRIES_MAX)
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            name.to_str()
                .is_some_and(|name| name.to_lowercase() == *first)
        })
        .map(|entry| entry.path())
        .collect();
    entries.sort(); // so that the answer is the same each time
    let mut below = entries.into_iter().filter_map(|path| match rest {
        [] => is_file(&path).then_some(path),
        rest => in_any_case(&path, rest),
    });
    below.next()
}

/// Whether a name stays below the directory it is looked for in.
fn is_plain(name: &str) -> bool {
    name.split('/')
        .all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0']))
}

/// Looked at before it is opened: opening a FIFO would wait.
fn is_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_directory() {
        let own = tempfile::tempdir().unwrap();
        let inner = own.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(own.path().join("secret"), b"x").unwrap();
        for name in [
            "../secret",
            "/secret",
            "a/../../secret",
            "",
            ".",
            "..\\secret",
            "x\0",
        ] {
            let error = open_below(std::slice::from_ref(&inner), name).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{name:?}");
        }
    }

    #[test]
    fn a_directory_is_not_a_file() {
        let own = tempfile::tempdir().unwrap();
        std::fs::create_dir(own.path().join("d")).unwrap();
        assert!(open_below(&[own.path().to_owned()], "d").is_err());
    }

    #[test]
    fn a_name_in_another_case_is_found_part_by_part() {
        let own = tempfile::tempdir().unwrap();
        let fonts = own.path().join("Boot/Fonts");
        fs::create_dir_all(&fonts).unwrap();
        fs::write(fonts.join("wgl4_Boot.ttf"), b"font").unwrap();
        let directories = [own.path().to_owned()];
        for name in [
            "Boot/Fonts/wgl4_Boot.ttf",
            "boot/fonts/WGL4_BOOT.TTF",
            "BOOT/Fonts/wgl4_boot.ttf",
        ] {
            let text = io::read_to_string(open_below(&directories, name).unwrap());
            assert_eq!(text.unwrap(), "font", "{name}");
        }
        for name in ["boot", "boot/fonts", "boot/fonts/other", "BOOT/../Boot"] {
            assert!(open_below(&directories, name).is_err(), "{name}");
        }
        let exactly = open_exactly(&directories, "boot/fonts/WGL4_BOOT.TTF");
        assert!(exactly.is_err());
    }

    #[test]
    fn a_name_as_it_is_written_goes_before_one_in_another_case() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(first.path().join("BCD"), b"upper").unwrap();
        fs::write(second.path().join("bcd"), b"lower").unwrap();
        let directories = [first.path().to_owned(), second.path().to_owned()];
        for (name, expected) in [("BCD", "upper"), ("bcd", "lower"), ("Bcd", "upper")] {
            let text = io::read_to_string(open_below(&directories, name).unwrap());
            assert_eq!(text.unwrap(), expected, "{name}");
        }
    }
}
