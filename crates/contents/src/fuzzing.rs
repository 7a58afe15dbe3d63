//! The door for the fuzz target of `fuzz/`: a disk as anybody could have made
//! it, looked through from end to end. Compiled for it, and for the tests, which
//! replay the corpus (file systems of mkfs's, and menus in them).
//!
//! An input is the size of the disk in KiB (big-endian, 2 bytes), and pieces of
//! it: place (4 bytes), length (2 bytes), bytes. The rest of the disk is zeros.

use disk::{Disk, Ram, SharedDisk};

use std::sync::Arc;

use crate::{NodeKind, Partitions, ReadableFile, Tree, linux_boot};

/// A door: bytes in, nothing out.
pub type Door = fn(&[u8]);

/// All doors, by the names of their targets and corpora.
pub const DOORS: [(&str, Door); 1] = [("contents", contents)];

/// Entries of a directory that are followed, and how deep.
const MAX_FOLLOWED: usize = 8;
const MAX_DEPTH: usize = 4;
/// What is read of a file, at its beginning and at its end.
const READ_BYTES: usize = 4096;

/// A disk.
pub fn contents(bytes: &[u8]) {
    look(bytes);
}

/// The same, and whether a Linux was found that boots.
fn look(bytes: &[u8]) -> bool {
    let Some(disk) = parse(bytes) else {
        return false;
    };
    if let Ok(found) = Partitions::read(&*disk) {
        for partition in found.list.iter().take(MAX_FOLLOWED) {
            if let Ok(tree) = Tree::open(&partition.volume(&disk)) {
                follow(&tree, "", 0);
            }
        }
    }
    let Ok(boot) = linux_boot(&disk) else {
        return false;
    };
    assert!(!boot.arguments.contains(char::is_control));
    for file in boot.initrds.iter().chain([&boot.kernel]) {
        read(file);
    }
    true
}

fn parse(bytes: &[u8]) -> Option<SharedDisk> {
    let (size, mut rest) = bytes.split_first_chunk::<2>()?;
    let disk = Ram::new(usize::from(u16::from_be_bytes(*size)) << 10);
    while let Some((place, more)) = rest.split_first_chunk::<4>() {
        let (length, more) = more.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_be_bytes(*length)).min(more.len());
        let (piece, more) = more.split_at(length);
        disk.write(u64::from(u32::from_be_bytes(*place)), piece)
            .ok()?;
        rest = more;
    }
    Some(Arc::new(disk))
}

fn follow(tree: &Tree, path: &str, depth: usize) {
    let Ok(list) = tree.list(if path.is_empty() { "/" } else { path }) else {
        return;
    };
    for entry in list.iter().take(MAX_FOLLOWED) {
        let path = format!("{path}/{}", entry.name);
        match entry.kind {
            NodeKind::Directory if depth < MAX_DEPTH => follow(tree, &path, depth + 1),
            NodeKind::Link => {
                let _ = tree.read_link(&path);
            }
            _ => {}
        }
        if let Ok(file) = tree.open_file(&path) {
            read(&file);
        }
    }
}

fn read(file: &ReadableFile) {
    let mut buffer = [0; READ_BYTES];
    let size_bytes = file.size_bytes();
    for at in [0, size_bytes.saturating_sub(100), size_bytes / 2] {
        if let Ok(length) = file.read_at(at, &mut buffer) {
            let expected = (size_bytes - at).min(READ_BYTES as u64);
            assert_eq!(length as u64, expected);
        }
    }
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
    fn what_the_corpus_holds_boots() {
        let folder = format!("{}/../../fuzz/corpus/contents", env!("CARGO_MANIFEST_DIR"));
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            assert!(look(&std::fs::read(&path).unwrap()), "{}", path.display());
        }
    }
}
