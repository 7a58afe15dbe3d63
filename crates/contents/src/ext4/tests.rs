//! Claims about file systems that were not unmounted, judged by e2fsck, and
//! about those that are not whole.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::tests::{Bench, open, shown, tool};
use crate::{Error, NodeKind, Tree, Volume};

const BLOCK: usize = 1024;

fn tree(image: &Path) -> Tree {
    Tree::open(&Volume::whole(&open(image))).unwrap()
}

fn read(image: &Path, path: &str) -> Vec<u8> {
    let file = tree(image).open_file(path).unwrap();
    file.read_all(1 << 20).unwrap()
}

/// Runs commands of debugfs's, which may write.
fn debugfs(bench: &Bench, image: &Path, commands: &str) {
    let script = bench.path("commands");
    fs::write(&script, commands).unwrap();
    tool("debugfs", &["-w", "-f", shown(&script), shown(image)], "").unwrap();
}

/// The blocks in which two images differ, but for the superblock's.
fn changed(before: &Path, after: &Path) -> Vec<usize> {
    let (before, after) = (fs::read(before).unwrap(), fs::read(after).unwrap());
    let blocks = before.chunks(BLOCK).zip(after.chunks(BLOCK)).enumerate();
    let changed = blocks.filter(|(number, (before, after))| *number != 1 && before != after);
    changed.map(|(number, _)| number).collect()
}

/// An image whose journal alone holds what was done to it: a new file, a longer
/// old one, a directory, a link. `None` where tools are missing.
fn unmounted_not(bench: &Bench, features: &str, journal: &str) -> Option<(PathBuf, Vec<usize>)> {
    bench.put("t/boot/old", "old").put("t/other", "other");
    let image = bench.ext("t", "ext4", &["-b", "1024", "-O", features])?;
    let after = bench.path("after.img");
    fs::copy(&image, &after).unwrap();
    let lines: String = (0..20_000).map(|line| format!("{line}\n")).collect();
    bench.put("new", lines).put("longer", "longer than it was");
    let [new, longer] = ["new", "longer"].map(|name| bench.path(name));
    let commands = format!(
        "rm boot/old\nwrite {} boot/new\nwrite {} boot/old\nmkdir dir\nsymlink link boot/new\n",
        shown(&new),
        shown(&longer)
    );
    debugfs(bench, &after, &commands);
    let blocks = changed(&image, &after);
    let bytes = fs::read(&after).unwrap();
    let written: Vec<u8> = blocks
        .iter()
        .flat_map(|block| bytes[block * BLOCK..(block + 1) * BLOCK].to_vec())
        .collect();
    bench.put("written", written);
    let list: Vec<String> = blocks.iter().map(usize::to_string).collect();
    let (list, file) = (list.join(","), bench.path("written"));
    let commands = format!("jo {journal}\njw -b {list} {}\njc\n", shown(&file));
    debugfs(bench, &image, &commands);
    Some((image, blocks))
}

#[test]
fn what_only_the_journal_holds_is_seen_as_a_recovery_leaves_it() {
    for (features, journal) in [
        ("^metadata_csum,^64bit", ""),
        ("^metadata_csum,64bit", ""),
        ("metadata_csum,64bit", "-c -v 3"),
        ("metadata_csum,^64bit", "-c -v 2"),
        ("metadata_csum,64bit", "-c -v 2"),
    ] {
        let bench = Bench::new();
        let Some((image, _)) = unmounted_not(&bench, features, journal) else {
            return;
        };
        let recovered = bench.path("recovered.img");
        fs::copy(&image, &recovered).unwrap();
        let before = fs::read(&image).unwrap();
        tool(
            "e2fsck",
            &["-y", "-E", "journal_only", shown(&recovered)],
            "",
        );
        for image in [&image, &recovered] {
            let words = format!("{features} {journal} {}", image.display());
            assert_eq!(
                read(image, "/boot/new"),
                fs::read(bench.path("new")).unwrap(),
                "{words}"
            );
            assert_eq!(
                read(image, "/link"),
                fs::read(bench.path("new")).unwrap(),
                "{words}"
            );
            assert_eq!(read(image, "/boot/old"), b"longer than it was", "{words}");
            assert_eq!(tree(image).kind("/dir").unwrap(), Some(NodeKind::Directory));
            assert_eq!(read(image, "/other"), b"other", "{words}");
        }
        assert!(fs::read(&image).unwrap() == before, "nothing was written");
    }
}

#[test]
fn what_was_revoked_or_not_committed_is_not_seen() {
    for journal in ["", "-c -v 3"] {
        let bench = Bench::new();
        let Some((image, blocks)) = unmounted_not(&bench, "metadata_csum,64bit", journal) else {
            return;
        };
        let list: Vec<String> = blocks.iter().map(usize::to_string).collect();
        // In a transaction that was not committed, nothing counts.
        let open_end = bench.path("open.img");
        fs::copy(&image, &open_end).unwrap();
        let revoke = format!("jo\njw -r {} -c\njc\n", list.join(","));
        debugfs(&bench, &open_end, &revoke);
        assert_eq!(read(&open_end, "/boot/old"), b"longer than it was");
        debugfs(&bench, &image, &revoke.replace(" -c\n", "\n"));
        assert_eq!(read(&image, "/boot/old"), b"old");
        assert_eq!(tree(&image).kind("/boot/new").unwrap(), None);
    }
}

#[test]
fn a_transaction_whose_commit_is_torn_is_not_seen() {
    let bench = Bench::new();
    let Some((image, _)) = unmounted_not(&bench, "metadata_csum,64bit", "-c -v 3") else {
        return;
    };
    let bytes = fs::read(&image).unwrap();
    // A commit of the first transaction: magic, type 2, sequence.
    let is_commit = |block: &[u8]| block.starts_with(&[0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 2]);
    let commit = bytes.chunks(BLOCK).position(is_commit).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.write_all_at(&[0xff; 4], (commit * BLOCK + 0x100) as u64)
        .unwrap();
    assert_eq!(read(&image, "/boot/old"), b"old");
}

#[test]
fn encrypted_directories_are_refused_by_name() {
    let bench = Bench::new();
    bench.put("t/secret/file", "x");
    let Some(image) = bench.ext("t", "ext4", &["-O", "encrypt,^metadata_csum"]) else {
        return;
    };
    debugfs(
        &bench,
        &image,
        "sif secret flags 0x80800\nsif secret/file flags 0x80800\n",
    );
    let refused = tree(&image).open_file("/secret/file").unwrap_err();
    assert!(matches!(&refused, Error::Foreign(words) if words.contains("encrypted (fscrypt)")));
}

#[test]
fn a_file_system_larger_than_its_partition_is_refused() {
    let bench = Bench::new();
    bench.put("t/file", "x");
    let Some(image) = bench.ext("t", "ext4", &[]) else {
        return;
    };
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len(20 << 20).unwrap();
    let refused = Tree::open(&Volume::whole(&open(&image)))
        .err()
        .unwrap()
        .to_string();
    assert!(refused.contains("s_blocks_count says"), "{refused}");
}
