//! Disks for tests, made by the tools that make them everywhere.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use disk::{Access, Opening, SharedDisk};
use tempfile::TempDir;

/// A directory for one test, gone with it.
pub(crate) struct Bench {
    directory: TempDir,
}

pub(crate) const MIB: u64 = 1 << 20;

impl Bench {
    pub(crate) fn new() -> Bench {
        Bench {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A file of zeros.
    pub(crate) fn blank(&self, name: &str, size_bytes: u64) -> PathBuf {
        let path = self.path(name);
        let file = fs::File::create(&path).unwrap();
        file.set_len(size_bytes).unwrap();
        path
    }

    /// Puts a file into the tree `tree`; a target in place of bytes makes a
    /// link.
    pub(crate) fn put(&self, path: &str, bytes: impl AsRef<[u8]>) -> &Bench {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        self
    }

    pub(crate) fn link(&self, path: &str, target: &str) -> &Bench {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(target, path).unwrap();
        self
    }

    /// An ext file system with what the tree `tree` holds.
    pub(crate) fn ext(&self, tree: &str, kind: &str, options: &[&str]) -> Option<PathBuf> {
        let image = self.blank(&format!("{tree}.img"), 48 * MIB);
        let tree = self.path(tree);
        fs::create_dir_all(&tree).unwrap();
        let mut arguments = vec!["-q", "-F", "-t", kind, "-d", shown(&tree)];
        arguments.extend(options);
        arguments.push(shown(&image));
        tool("mkfs.ext4", &arguments, "")?;
        Some(image)
    }

    /// A FAT file system of so many bits with what the tree `tree` holds.
    pub(crate) fn fat(&self, tree: &str, bits: &str, options: &[&str]) -> Option<PathBuf> {
        let size_bytes = if bits == "12" { 4 * MIB } else { 40 * MIB };
        let image = self.blank(&format!("{tree}.img"), size_bytes);
        let mut arguments = vec!["-F", bits, "-i", "1234abcd", "-n", "MARK"];
        arguments.extend(options);
        arguments.push(shown(&image));
        tool("mkfs.vfat", &arguments, "")?;
        for entry in fs::read_dir(self.path(tree)).unwrap() {
            let path = entry.unwrap().path();
            tool(
                "mcopy",
                &["-i", shown(&image), "-s", shown(&path), "::"],
                "",
            )?;
        }
        Some(image)
    }

    /// A disk by a script of sfdisk's, with images put into its partitions.
    pub(crate) fn disk(&self, script: &str, parts: &[(u64, &Path)]) -> Option<PathBuf> {
        let disk = self.blank("disk.img", 256 * MIB);
        tool("sfdisk", &["-q", shown(&disk)], script)?;
        let mut file = fs::OpenOptions::new().write(true).open(&disk).unwrap();
        for (at, image) in parts {
            std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(*at)).unwrap();
            std::io::copy(&mut fs::File::open(image).unwrap(), &mut file).unwrap();
        }
        Some(disk)
    }
}

/// A file as a disk, read-only.
pub(crate) fn open(path: &Path) -> SharedDisk {
    let opening = Opening {
        format: Some(disk::probe::Format::Raw),
        ..Opening::new(Access::ReadOnly)
    };
    disk::open(path, &opening).unwrap()
}

pub(crate) fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What a tool says; `None` where it is not installed.
pub(crate) fn tool(program: &str, arguments: &[&str], input: &str) -> Option<String> {
    let child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C.UTF-8")
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("MTOOLS_SKIP_CHECK", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let ci = std::env::var("CI").is_ok_and(|value| value == "true");
            assert!(!ci, "{program} is missing: install what lab/setup.sh names");
            eprintln!("skipped: {program} is not installed");
            return None;
        }
        child => child.unwrap(),
    };
    // One that wants no input may have ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}
