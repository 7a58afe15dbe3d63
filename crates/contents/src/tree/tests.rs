//! Claims about files by their paths, in every file system that is read.

use std::path::Path;

use super::*;
use crate::tests::{Bench, open, shown, tool};

fn tree(image: &Path) -> Tree {
    Tree::open(&Volume::whole(&open(image))).unwrap()
}

fn read(tree: &Tree, path: &str) -> Vec<u8> {
    let file = tree
        .open_file(path)
        .unwrap_or_else(|e| panic!("{path}: {e}"));
    file.read_all(u64::MAX).unwrap()
}

/// Bytes that are nowhere alike.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Features that mkfs may have been told to use, or that were all there was.
const KINDS: [(&str, &[&str]); 8] = [
    ("ext4", &[]),
    ("ext4", &["-O", "^metadata_csum,^64bit", "-b", "1024"]),
    ("ext4", &["-O", "inline_data", "-I", "512"]),
    (
        "ext4",
        &["-O", "meta_bg,^resize_inode", "-b", "1024", "-g", "1024"],
    ),
    ("ext4", &["-O", "sparse_super2,bigalloc", "-C", "16384"]),
    (
        "ext4",
        &["-O", "casefold,large_dir,ea_inode,mmp,encrypt,verity,quota"],
    ),
    ("ext3", &[]),
    ("ext2", &["-b", "1024", "-O", "^filetype", "-I", "128"]),
];

#[test]
fn every_kind_of_ext_gives_its_files_back() {
    let big = noise(2 << 20);
    for (index, (kind, options)) in KINDS.iter().enumerate() {
        let bench = Bench::new();
        bench
            .put("t/big", &big)
            .put("t/small", "hello")
            .put("t/empty", "");
        bench
            .put("t/a/b/c", noise(150))
            .put("t/medium", noise(9000));
        bench
            .link("t/short", "small")
            .link("t/far", &format!("{}small", "./".repeat(100)));
        for number in 0..300 {
            bench.put(&format!("t/many/a file with a longer name {number:04}"), "");
        }
        let Some(image) = bench.ext("t", kind, options) else {
            return;
        };
        let tree = tree(&image);
        assert_eq!(read(&tree, "/big"), big, "{index}");
        assert_eq!(read(&tree, "/small"), b"hello", "{index}");
        assert_eq!(read(&tree, "/a/b/c"), noise(150), "{index}");
        assert_eq!(read(&tree, "/medium"), noise(9000), "{index}");
        assert_eq!(read(&tree, "/empty"), b"", "{index}");
        assert_eq!(read(&tree, "/short"), b"hello", "{index}");
        assert_eq!(read(&tree, "/far"), b"hello", "{index}");
        assert_eq!(tree.list("/many").unwrap().len(), 300, "{index}");
        assert_eq!(
            tree.kind("/many/a file with a longer name 0299").unwrap(),
            Some(NodeKind::File)
        );
        assert_eq!(tree.kind("/many/none").unwrap(), None, "{index}");
        // The judge sees the same.
        let copy = bench.path("copy");
        let command = format!("dump /big {}", shown(&copy));
        tool("debugfs", &["-R", &command, shown(&image)], "").unwrap();
        assert_eq!(std::fs::read(&copy).unwrap(), big, "{index}");
    }
}

#[test]
fn every_kind_of_fat_gives_its_files_back() {
    let big = noise(600_000);
    let kinds: [(&str, &[&str]); 5] = [
        ("12", &[]),
        ("16", &[]),
        ("32", &["-s", "1"]),
        ("16", &["-S", "2048"]),
        ("12", &["-S", "4096"]),
    ];
    for (bits, options) in kinds {
        let bench = Bench::new();
        let long = "A rather long name, with spaces and umlauts äöü and a snowman ☃.conf";
        bench
            .put("t/BIG.BIN", &big)
            .put(&format!("t/dir/{long}"), "long");
        bench.put("t/loader/entries/x.conf", "x").put("t/empty", "");
        for number in 0..100 {
            bench.put(&format!("t/many/file number {number}"), "");
        }
        let Some(image) = bench.fat("t", bits, options) else {
            return;
        };
        let tree = tree(&image);
        assert_eq!(read(&tree, "/big.bin"), big, "{bits} {options:?}");
        assert_eq!(
            read(&tree, &format!("/DIR/{}", long.to_uppercase())),
            b"long"
        );
        assert_eq!(tree.list("/dir").unwrap()[0].name, long);
        assert_eq!(read(&tree, "/loader/entries/x.conf"), b"x");
        assert_eq!(read(&tree, "/empty"), b"");
        assert_eq!(tree.list("/many").unwrap().len(), 100);
        assert_eq!(tree.kind("/nothing").unwrap(), None);
    }
}

#[test]
fn a_file_is_read_from_anywhere_in_it() {
    let big = noise(300_000);
    let bench = Bench::new();
    bench.put("t/big", &big);
    let Some(image) = bench.ext("t", "ext4", &[]) else {
        return;
    };
    let file = tree(&image).open_file("/big").unwrap();
    assert_eq!(file.size_bytes(), 300_000);
    for (at, length) in [
        (0, 10),
        (4095, 2),
        (8192, 4096),
        (299_990, 10),
        (123, 200_000),
    ] {
        let mut buffer = vec![0; length];
        assert_eq!(file.read_at(at, &mut buffer).unwrap(), length);
        let at = usize::try_from(at).unwrap();
        assert_eq!(buffer, big[at..at + length]);
    }
    let mut buffer = [0; 20];
    assert_eq!(file.read_at(299_995, &mut buffer).unwrap(), 5);
    assert_eq!(file.read_at(300_000, &mut buffer).unwrap(), 0);
    assert_eq!(file.read_at(u64::MAX, &mut buffer).unwrap(), 0);
}

#[test]
fn a_hole_reads_as_zeros() {
    let bench = Bench::new();
    bench.put("t/x", "");
    let file = std::fs::File::create(bench.path("t/holes")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"end", 3 << 20).unwrap();
    for (kind, options) in [("ext4", vec![]), ("ext2", vec!["-b", "1024"])] {
        let Some(image) = bench.ext("t", kind, &options) else {
            return;
        };
        let bytes = read(&tree(&image), "/holes");
        assert_eq!(bytes.len(), (3 << 20) + 3);
        assert!(bytes.ends_with(b"\0end") && bytes[..3 << 20].iter().all(|&b| b == 0));
    }
}

#[test]
fn links_lead_anywhere_but_out_of_their_file_system() {
    let bench = Bench::new();
    bench
        .put("t/etc/real", "real")
        .put("t/usr/lib/deep/file", "file");
    bench.link("t/etc/up", "../../../../etc/real");
    bench
        .link("t/lib", "usr/lib")
        .link("t/abs", "/lib/deep/../deep/file");
    bench
        .link("t/a", "b")
        .link("t/b", "a")
        .link("t/dangling", "nowhere");
    let Some(image) = bench.ext("t", "ext4", &[]) else {
        return;
    };
    let tree = tree(&image);
    assert_eq!(read(&tree, "/etc/up"), b"real");
    assert_eq!(read(&tree, "/abs"), b"file");
    assert_eq!(tree.open_file("/abs").unwrap().path(), "/usr/lib/deep/file");
    assert_eq!(tree.read_link("/abs").unwrap(), "/lib/deep/../deep/file");
    assert!(matches!(tree.open_file("/a"), Err(Error::TooMuch { .. })));
    assert!(tree.open_file("/dangling").unwrap_err().is_missing());
    assert!(matches!(
        tree.open_file("/etc"),
        Err(Error::OtherKind { .. })
    ));
    assert!(tree.open_file("/etc/real/below").unwrap_err().is_missing());
    let long = "/etc/..".repeat(1000);
    assert!(matches!(tree.open_file(&long), Err(Error::TooMuch { .. })));
}
