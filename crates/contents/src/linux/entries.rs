//! Entries of boot menus, and the files they name.

use std::cmp::Ordering;

use super::{Source, bls, grub, version};
use crate::{Error, NodeKind, ReadableFile, Tree};

/// What a menu says of one way to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) title: Option<String>,
    pub(super) source: Source,
    pub(super) kernel: String,
    pub(super) initrds: Vec<String>,
    pub(super) arguments: String,
}

/// An entry, and its files.
pub(super) struct Found {
    pub(super) entry: Entry,
    pub(super) kernel: ReadableFile,
    pub(super) initrds: Vec<ReadableFile>,
}

/// Where kernels and menus lie.
pub(super) struct Boot<'a> {
    tree: &'a Tree,
    /// What is `/boot` in the machine; empty where it is a partition.
    directory: &'static str,
    /// The root file system, where it is another one that can be read.
    root: Option<&'a Tree>,
}

/// More than anybody hands to a kernel.
const MAX_INITRDS: usize = 16;
/// Longer than Linux takes (COMMAND_LINE_SIZE is 2048 on x86).
const MAX_ARGUMENTS_BYTES: usize = 4096;
/// Vendors' directories in an EFI system partition that are looked into.
const MAX_VENDORS: usize = 64;

impl<'a> Boot<'a> {
    /// A /boot that is a partition of its own.
    pub(super) fn partition(tree: &'a Tree, root: Option<&'a Tree>) -> Boot<'a> {
        Boot {
            tree,
            directory: "",
            root,
        }
    }

    /// A /boot that is a directory of the root file system.
    pub(super) fn directory(tree: &'a Tree) -> Boot<'a> {
        Boot {
            tree,
            directory: "/boot",
            root: None,
        }
    }

    /// What is booted unless somebody at the machine chooses otherwise.
    pub(super) fn find(&self, esp: Option<&Tree>) -> Result<Found, Error> {
        let mut first_error = None;
        let mut keep = |error: Error| {
            first_error.get_or_insert(error);
        };
        for configuration in self.configurations(esp) {
            let chosen = grub::chosen(self, esp, &configuration);
            match chosen.and_then(|entry| self.files(self.tree, entry)) {
                Ok(found) => return Ok(found),
                Err(error) => keep(error),
            }
        }
        let entries = format!("{}/loader", self.directory);
        let places = [
            Some((self.tree, entries.as_str())),
            esp.map(|esp| (esp, "/loader")),
        ];
        for (tree, directory) in places.into_iter().flatten() {
            match bls::chosen(tree, directory) {
                None => {}
                Some(entry) => match self.files(tree, entry) {
                    Ok(found) => return Ok(found),
                    Err(error) => keep(error),
                },
            }
        }
        // What a menu names and is not there is no reason to guess.
        match first_error {
            Some(error) => Err(error),
            None => self.newest(),
        }
    }

    /// Configurations of GRUB, the likeliest first.
    fn configurations(&self, esp: Option<&Tree>) -> Vec<Configuration> {
        let mut found: Vec<Configuration> = ["grub2", "grub"]
            .iter()
            .map(|name| Configuration {
                path: format!("{}/{name}/grub.cfg", self.directory),
                is_on_esp: false,
            })
            .collect();
        let vendors = esp
            .and_then(|esp| esp.list("/EFI").ok())
            .unwrap_or_default();
        found.extend(
            vendors
                .iter()
                .take(MAX_VENDORS)
                .map(|vendor| Configuration {
                    path: format!("/EFI/{}/grub.cfg", vendor.name),
                    is_on_esp: true,
                }),
        );
        found.retain(|configuration| {
            let tree = match configuration.is_on_esp {
                true => esp,
                false => Some(self.tree),
            };
            tree.is_some_and(|tree| matches!(tree.kind(&configuration.path), Ok(Some(_))))
        });
        found
    }

    /// The file that a loader means by a path.
    pub(super) fn open(&self, path: &str) -> Result<ReadableFile, Error> {
        self.open_beside(self.tree, path)
    }

    /// The same for an entry in `tree`, which is this one or the ESP's.
    fn open_beside(&self, tree: &Tree, path: &str) -> Result<ReadableFile, Error> {
        // `(hd0,gpt2)/vmlinuz`: there is one place it can be.
        let path = match path.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some((_, path)) => path,
            None => path,
        };
        let missing = match tree.open_file(path) {
            Err(error) if error.is_missing() => error,
            other => return other,
        };
        let below = format!("{}{path}", self.directory);
        let above = path
            .strip_prefix("/boot")
            .filter(|rest| rest.starts_with('/'));
        let others = [
            (Some(self.tree), Some(below.as_str())),
            (Some(self.tree), above),
            (self.root, Some(path)),
        ];
        for (tree, path) in others {
            let (Some(tree), Some(path)) = (tree, path) else {
                continue;
            };
            match tree.open_file(path) {
                Err(error) if error.is_missing() => {}
                other => return other,
            }
        }
        Err(missing)
    }

    /// Its entries by the Boot Loader Specification.
    pub(super) fn loader_entries(&self) -> Vec<bls::LoaderEntry> {
        bls::entries(self.tree, &format!("{}/loader", self.directory))
    }

    /// The files an entry in `tree` names.
    fn files(&self, tree: &Tree, entry: Entry) -> Result<Found, Error> {
        if entry.initrds.len() > MAX_INITRDS {
            return Err(Error::TooMuch {
                what: "initrds of one boot entry",
                limit: MAX_INITRDS as u64,
            });
        }
        if entry.arguments.len() > MAX_ARGUMENTS_BYTES {
            return Err(Error::TooMuch {
                what: "bytes of a kernel's command line",
                limit: MAX_ARGUMENTS_BYTES as u64,
            });
        }
        let kernel = self.open_beside(tree, &entry.kernel)?;
        if kernel.size_bytes() == 0 {
            return Err(Error::damaged("the kernel", "its file is empty"));
        }
        let initrds = entry.initrds.iter();
        let initrds: Result<_, Error> = initrds.map(|path| self.open_beside(tree, path)).collect();
        Ok(Found {
            kernel,
            initrds: initrds?,
            entry,
        })
    }

    /// The newest kernel that has an initrd.
    fn newest(&self) -> Result<Found, Error> {
        let directory = match self.directory {
            "" => "/",
            directory => directory,
        };
        let list = self.tree.list(directory)?;
        let names: Vec<&str> = list
            .iter()
            .filter(|entry| entry.kind != NodeKind::Directory)
            .map(|entry| entry.name.as_str())
            .collect();
        let mut kernels: Vec<&&str> = names.iter().filter(|name| is_kernel(name)).collect();
        kernels.sort_by(|a, b| is_rescue(b).cmp(&is_rescue(a)).then(age(a, b)));
        let pair = kernels.iter().rev().find_map(|kernel| {
            let wanted = initrd_names(kernel);
            let initrd = wanted.iter().find(|name| names.contains(&name.as_str()));
            Some((**kernel, initrd?.clone()))
        });
        let Some((kernel, initrd)) = pair else {
            return Err(Error::Missing {
                path: format!("{}/vmlinuz with its initrd", self.directory),
            });
        };
        let path = |name: &str| format!("{}/{name}", self.directory);
        let entry = Entry {
            title: None,
            source: Source::Newest,
            kernel: path(kernel),
            initrds: vec![path(&initrd)],
            arguments: String::new(),
        };
        self.files(self.tree, entry)
    }
}

/// A configuration of GRUB.
pub(super) struct Configuration {
    pub(super) path: String,
    pub(super) is_on_esp: bool,
}

/// Whether a file is a kernel by its name.
pub(super) fn is_kernel(name: &str) -> bool {
    let version = ["vmlinuz", "vmlinux"]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix));
    let is_other = [".old", ".hmac", ".sig", ".xz", ".gz"]
        .iter()
        .any(|suffix| name.ends_with(suffix));
    version.is_some_and(|version| version.is_empty() || version.starts_with('-')) && !is_other
}

fn is_rescue(name: &str) -> bool {
    name.contains("rescue")
}

fn age(a: &str, b: &str) -> Ordering {
    version::compare(a, b)
}

/// The initrds a kernel may have, as Debian, Fedora, SUSE, Arch and Alpine name
/// them.
fn initrd_names(kernel: &str) -> [String; 4] {
    let version = kernel.split_once('-').map_or("", |(_, version)| version);
    match version {
        "" => ["initrd.img", "initramfs.img", "initrd", "initramfs"].map(str::to_owned),
        version => [
            format!("initrd.img-{version}"),
            format!("initramfs-{version}.img"),
            format!("initrd-{version}"),
            format!("initramfs-{version}"),
        ],
    }
}

/// A command line without what a loader adds itself, and on one line.
pub(super) fn arguments<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let of_loaders = ["BOOT_IMAGE=", "initrd="];
    let kept = words.filter(|word| !of_loaders.iter().any(|begins| word.starts_with(begins)));
    let kept: Vec<String> = kept
        .map(|word| word.chars().filter(|char| !char.is_control()).collect())
        .filter(|word: &String| !word.is_empty())
        .collect();
    kept.join(" ")
}

/// A title for one line of a screen.
pub(super) fn title(text: &str) -> String {
    let chars = text.chars().filter(|char| !char.is_control());
    chars.take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_known_by_its_name() {
        for name in [
            "vmlinuz",
            "vmlinuz-6.1.0-18-amd64",
            "vmlinuz-linux",
            "vmlinux-5",
        ] {
            assert!(is_kernel(name), "{name}");
        }
        for name in [
            "vmlinuz.old",
            "System.map-6",
            "vmlinuz-6.hmac",
            "vmlinuzx",
            "initrd",
        ] {
            assert!(!is_kernel(name), "{name}");
        }
    }

    #[test]
    fn what_a_loader_adds_itself_is_left_out() {
        let words = "BOOT_IMAGE=/vmlinuz root=UUID=1 initrd=/x ro quiet";
        assert_eq!(arguments(words.split(' ')), "root=UUID=1 ro quiet");
        assert_eq!(arguments(["a\nb", "\u{1b}", "c"].into_iter()), "ab c");
    }
}
