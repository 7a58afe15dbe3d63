//! Where loader files are found: the user's directory first, then where
//! distributions put iPXE.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::chains::Chains;

mod below;
pub(super) mod raspberry;

use below::open_exactly;
pub(crate) use below::{directory_below, open_below};

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
        self.open_own(name).is_ok()
    }

    /// Opens a file of the user's own directory alone, as [`Loaders::open`]
    /// does.
    pub(crate) fn open_own(&self, name: &str) -> io::Result<File> {
        open_below(self.own.as_slice(), name)
    }

    /// Whether a loader of exactly this name is there. Asked for every DHCP
    /// packet.
    pub(crate) fn is_installed(&self, name: &str) -> bool {
        open_exactly(&self.directories, name)
            .or_else(|_| self.chains.open(name))
            .is_ok()
    }

    /// Opens a loader by its relative name; `NotFound` for anything that is
    /// not a regular file below one of the directories. What a Raspberry Pi has
    /// not for itself is the common one.
    pub(crate) fn open(&self, name: &str) -> io::Result<File> {
        open_below(&self.directories, name)
            .or_else(|error| match raspberry::common(name) {
                Some(common) => open_below(&self.directories, common),
                None => Err(error),
            })
            .or_else(|_| self.chains.open(name))
    }

    /// Forgets the system's directories.
    #[cfg(test)]
    pub(crate) fn only_own(&mut self) {
        self.directories.truncate(self.own.iter().len());
    }

    /// The signed chains of this server.
    pub(crate) fn chains(&self) -> &Chains {
        &self.chains
    }
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
    fn a_raspberry_pis_own_file_goes_before_the_common_one() {
        let own = tempfile::tempdir().unwrap();
        let tree = own.path().join("tree");
        std::fs::create_dir_all(tree.join("8a5b1c2d")).unwrap();
        for file in ["8a5b1c2d/cmdline.txt", "cmdline.txt", "start4.elf"] {
            std::fs::write(tree.join(file), file).unwrap();
        }
        std::fs::write(own.path().join("secret"), "x").unwrap();
        let loaders = Loaders::new(Some(&tree));
        for (name, file) in [
            ("8a5b1c2d/cmdline.txt", Some("8a5b1c2d/cmdline.txt")),
            ("8a5b1c2d/start4.elf", Some("start4.elf")),
            ("00000001/cmdline.txt", Some("cmdline.txt")),
            ("dc-a6-32-01-02-03/start4.elf", Some("start4.elf")),
            ("8a5b1c2d/bootsig.bin", None),
            ("other/start4.elf", None),
            ("8a5b1c2d/../secret", None),
            ("8a5b1c2d/../../secret", None),
            ("8a5b1c2d/", None),
            ("8a5b1c2d//start4.elf", None),
        ] {
            let text = loaders.open(name).and_then(io::read_to_string).ok();
            assert_eq!(text.as_deref(), file, "{name}");
        }
    }
}
