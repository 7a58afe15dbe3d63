//! Where loader files are found: the user's directory first, then where
//! distributions put iPXE.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::chains::Chains;

/// Directories that Debian, Ubuntu, Fedora, SUSE and Arch install iPXE into.
const SYSTEM_DIRECTORIES: [&str; 4] = [
    "/usr/lib/ipxe",
    "/usr/share/ipxe",
    "/usr/share/ipxe/x86_64",
    "/usr/lib/ipxe/qemu",
];

/// The loader files of this server.
#[derive(Clone, Debug)]
pub(crate) struct Loaders {
    own: Option<PathBuf>,
    directories: Vec<PathBuf>,
    chains: Chains,
}

impl Loaders {
    /// The user's directory, where there is one, before the system's.
    pub(crate) fn new(own: Option<&Path>) -> Loaders {
        let mut directories: Vec<PathBuf> = own.map(Path::to_owned).into_iter().collect();
        directories.extend(SYSTEM_DIRECTORIES.iter().map(PathBuf::from));
        Loaders {
            own: own.map(Path::to_owned),
            directories,
            chains: Chains::new(own),
        }
    }

    /// Whether the user's own directory has a file of this name.
    pub(crate) fn has_own(&self, name: &str) -> bool {
        self.own
            .as_ref()
            .is_some_and(|own| open_below(std::slice::from_ref(own), name).is_ok())
    }

    /// Whether a loader of this name is there.
    pub(crate) fn is_installed(&self, name: &str) -> bool {
        self.open(name).is_ok()
    }

    /// Opens a loader by its relative name; `NotFound` for anything that is
    /// not a regular file below one of the directories.
    pub(crate) fn open(&self, name: &str) -> io::Result<File> {
        open_below(&self.directories, name).or_else(|_| self.chains.open(name))
    }

    /// The signed chains of this server.
    pub(crate) fn chains(&self) -> &Chains {
        &self.chains
    }
}

/// Opens the regular file `name` below the first of `directories` that has
/// it. A name with `..`, a backslash, NUL or an empty part is not found;
/// links that the administrator put there are followed.
pub(crate) fn open_below(directories: &[PathBuf], name: &str) -> io::Result<File> {
    if !is_plain(name) {
        return Err(io::ErrorKind::NotFound.into());
    }
    for directory in directories {
        let path = directory.join(name);
        // Looked at before it is opened: opening a FIFO would wait.
        if std::fs::metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            return File::open(path);
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// The directory `name` below `root`, which is `root` itself where the name is
/// empty; else as [`open_below`].
pub(crate) fn directory_below(root: &Path, name: &str) -> io::Result<PathBuf> {
    let path = match name {
        "" => root.to_owned(),
        name if is_plain(name) => root.join(name),
        _ => return Err(io::ErrorKind::NotFound.into()),
    };
    let is_directory = std::fs::metadata(&path).is_ok_and(|metadata| metadata.is_dir());
    let found = is_directory.then_some(path);
    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Whether a name stays below the directory it is looked for in.
fn is_plain(name: &str) -> bool {
    name.split('/')
        .all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_directory_goes_before_the_systems() {
        let own = tempfile::tempdir().unwrap();
        std::fs::write(own.path().join("undionly.kpxe"), b"mine").unwrap();
        let loaders = Loaders::new(Some(own.path()));
        let text = io::read_to_string(loaders.open("undionly.kpxe").unwrap()).unwrap();
        assert_eq!(text, "mine");
    }

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
}
