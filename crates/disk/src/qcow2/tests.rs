//! Tests of qcow2 files: read as qemu writes them, written as qemu reads them.

use std::fs;
use std::ops::ControlFlow;
use std::process::Command;
use std::sync::Arc;

use super::*;
use crate::contract::Subject;
use crate::tests::qemu;
use crate::{CopyError, Ram, Raw, open as open_any};

const MIB: u64 = 1 << 20;

fn qemu_img(dir: &Path, arguments: &str) -> String {
    let mut command = Command::new("qemu-img");
    qemu::run(command.args(arguments.split(' ')).current_dir(dir))
}

/// 20 MiB with data that packs, data that does not, and holes of all sizes.
fn content() -> Vec<u8> {
    let mut bytes = vec![0; 20 << 20];
    for (at, length) in [(0, 5), (65_536 - 7, 20), (MIB, 300_000), (9 * MIB, 70_000)] {
        let at = usize::try_from(at).unwrap();
        bytes[at..at + length].fill(0xa5);
    }
    let mut seed = 7_u64;
    for byte in &mut bytes[12 << 20..13 << 20] {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        *byte = seed.to_le_bytes()[7];
    }
    let last = bytes.len() - 512;
    bytes[last..].fill(0x77);
    bytes
}

fn read_only() -> Opening {
    Opening::new(Access::ReadOnly)
}

fn whole(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![1; usize::try_from(disk.geometry().size_bytes).unwrap()];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

/// A disk's bytes must be these, in one read and in many that match nothing.
fn expect(disk: &dyn Disk, bytes: &[u8]) {
    assert!(whole(disk) == bytes);
    let mut piece = vec![0; 100_003];
    for (index, expected) in bytes.chunks(piece.len()).enumerate() {
        let part = &mut piece[..expected.len()];
        disk.read(index as u64 * 100_003, part).unwrap();
        assert!(part == expected, "piece {index}");
    }
}

fn refusal(path: &Path) -> String {
    open(path, &read_only()).err().unwrap().to_string()
}

#[test]
fn what_qemu_writes_reads_back_right() {
    if !qemu::is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bytes = content();
    fs::write(dir.path().join("a.raw"), &bytes).unwrap();
    for options in [
        "",
        "-c ",
        "-o compat=0.10 ",
        "-c -o compat=0.10 ",
        "-o cluster_size=512 ",
        "-c -o cluster_size=2M ",
        "-o preallocation=metadata ",
        "-o lazy_refcounts=on ",
    ] {
        qemu_img(
            dir.path(),
            &format!("convert -O qcow2 {options}a.raw a.qcow2"),
        );
        let disk = open_any(&dir.path().join("a.qcow2"), &read_only()).unwrap();
        expect(&*disk, &bytes);
    }
}

#[test]
fn the_contract_holds_for_qcow2() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.qcow2");
    export(&Ram::with_contents(content()), &path, &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    Subject::new(|| open_any(&path, &read_only()).unwrap()).check();
    if qemu::is_here() {
        qemu_img(dir.path(), "convert -c -O qcow2 a.qcow2 b.qcow2");
        let packed = dir.path().join("b.qcow2");
        Subject::new(|| open_any(&packed, &read_only()).unwrap()).check();
    }
}

#[test]
fn a_chain_reads_as_qemu_reads_it() {
    if !qemu::is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.raw"), content()).unwrap();
    qemu_img(dir.path(), "create -q -f qcow2 -b a.raw -F raw b.qcow2 30M");
    qemu_img(
        dir.path(),
        "create -q -f qcow2 -b b.qcow2 -F qcow2 c.qcow2 25M",
    );
    for (file, command) in [
        ("b.qcow2", "write -P 0x11 1M 1M"),
        ("b.qcow2", "write -P 0x12 29M 512"),
        ("b.qcow2", "write -z 9M 64k"),
        ("c.qcow2", "write -P 0x13 1100k 3k"),
        ("c.qcow2", "discard 12M 512k"),
    ] {
        let done = Command::new("qemu-io")
            .args(["-f", "qcow2", "-c", command, file])
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert!(done.status.success());
    }
    let path = dir.path().join("c.qcow2");
    let disk = open(&path, &read_only()).unwrap();
    qemu_img(dir.path(), "convert -O raw c.qcow2 expected.raw");
    let expected = fs::read(dir.path().join("expected.raw")).unwrap();
    expect(&disk, &expected);
    assert_eq!(disk.describe().parents.len(), 2);
    Subject::new(|| open_any(&path, &read_only()).unwrap()).check();
}

#[test]
fn qemu_reads_what_we_export() {
    if !qemu::is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut odd = content();
    odd.truncate((10 << 20) + 512 * 3);
    // Several second-level tables, the first of them with nothing.
    let far = Raw::create(&dir.path().join("far.raw"), 1300 * MIB).unwrap();
    far.write(600 * MIB, &[5; 4096]).unwrap();
    far.write(1024 * MIB - 4096, &[6; 3 << 16]).unwrap();
    let disks: [(&str, Arc<dyn Disk>); 4] = [
        ("plain", Arc::new(Ram::with_contents(content()))),
        ("odd", Arc::new(Ram::with_contents(odd))),
        ("empty", Arc::new(Ram::new(1 << 20))),
        ("far", Arc::new(far)),
    ];
    for (name, disk) in disks {
        let path = dir.path().join(name);
        export(&*disk, &path, &mut |_| ControlFlow::Continue(())).unwrap();
        let said = qemu_img(dir.path(), &format!("check -f qcow2 {name}"));
        assert!(said.contains("No errors were found"), "{said}");
        let raw = dir.path().join("expected.raw");
        let _ = fs::remove_file(&raw);
        let size_bytes = disk.geometry().size_bytes;
        let expected = Raw::create(&raw, size_bytes).unwrap();
        crate::copy(&*disk, &expected, &mut |_| ControlFlow::Continue(())).unwrap();
        drop(expected);
        qemu_img(
            dir.path(),
            &format!("compare -f qcow2 -F raw {name} expected.raw"),
        );
        let info = qemu_img(dir.path(), &format!("info --output=json {name}"));
        assert!(
            info.contains(&format!("\"virtual-size\": {size_bytes}")),
            "{info}"
        );
        let ours = open(&path, &read_only()).unwrap();
        assert_eq!(ours.geometry().size_bytes, size_bytes);
        if name != "far" {
            assert!(whole(&ours) == whole(&*disk), "{name}");
        }
    }
}

/// 64 TiB, of which nothing is stored; many file systems have no such files.
struct Nothing;

impl Disk for Nothing {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: 64 << 40,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
        }
    }

    fn access(&self) -> Access {
        Access::ReadOnly
    }

    fn durability(&self) -> Durability {
        Durability::WriteBack
    }

    fn read(&self, _offset: u64, _buffer: &mut [u8]) -> Result<(), DiskError> {
        panic!("nothing is there to be read");
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn unmap(&self, _offset: u64, _bytes: u64) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }

    fn extent(&self, _offset: u64, bytes: u64) -> Result<Extent, DiskError> {
        Ok(Extent {
            bytes,
            allocation: Allocation::Deallocated,
        })
    }
}

#[test]
fn an_empty_disk_of_64_tib_costs_its_tables_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.qcow2");
    export(&Nothing, &path, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(fs::metadata(&path).unwrap().len() < 2 * MIB);
    let disk = open(&path, &read_only()).unwrap();
    assert_eq!(disk.geometry().size_bytes, 64 << 40);
    let first = disk.extent(0, 64 << 40).unwrap();
    assert_eq!(first.allocation, Allocation::Deallocated);
    disk.read((64 << 40) - 512, &mut [1; 512]).unwrap();
}

#[test]
fn an_export_that_is_told_to_stop_stops() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.qcow2");
    let disk = Ram::with_contents(content());
    let answer = export(&disk, &path, &mut |_| ControlFlow::Break(()));
    assert!(matches!(answer, Err(CopyError::Cancelled)));
    assert!(open(&path, &read_only()).is_err(), "no header yet");
}

#[test]
fn a_backing_file_is_looked_for_in_its_own_directory_and_the_roots_only() {
    if !qemu::is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let pool = dir.path().join("pool");
    let library = dir.path().join("library");
    fs::create_dir_all(&pool).unwrap();
    fs::create_dir_all(&library).unwrap();
    fs::write(library.join("base.raw"), content()).unwrap();
    let top = pool.join("top.qcow2");
    qemu_img(
        &pool,
        "create -q -f qcow2 -b ../library/base.raw -F raw top.qcow2",
    );
    let refused = refusal(&top);
    assert!(refused.contains("which does not lie in"), "{refused}");
    let allowed = Opening {
        parent_roots: vec![library.clone()],
        ..read_only()
    };
    expect(&open(&top, &allowed).unwrap(), &content());

    // Nor below it: a file somebody put into a home would name what is in it.
    qemu_img(
        dir.path(),
        "create -q -f qcow2 -b library/base.raw -F raw above.qcow2",
    );
    let refused = refusal(&dir.path().join("above.qcow2"));
    assert!(refused.contains("which does not lie in"), "{refused}");

    std::os::unix::fs::symlink(library.join("base.raw"), pool.join("inside.raw")).unwrap();
    qemu_img(
        &pool,
        "create -q -f qcow2 -b inside.raw -F raw linked.qcow2",
    );
    let refused = refusal(&pool.join("linked.qcow2"));
    assert!(refused.contains("which does not lie in"), "{refused}");

    fs::remove_file(library.join("base.raw")).unwrap();
    let refused = open(&top, &allowed).err().unwrap().to_string();
    assert!(refused.contains("which is not there"), "{refused}");
}

#[test]
fn a_chain_that_leads_back_to_itself_is_refused() {
    if !qemu::is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    qemu_img(dir.path(), "create -q -f qcow2 b.qcow2 1M");
    qemu_img(dir.path(), "create -q -f qcow2 -b b.qcow2 -F qcow2 a.qcow2");
    qemu_img(dir.path(), "rebase -u -f qcow2 -b a.qcow2 -F qcow2 b.qcow2");
    let refused = refusal(&dir.path().join("a.qcow2"));
    assert!(refused.contains("leads back"), "{refused}");
}

#[test]
fn a_chain_with_more_tables_than_memory_is_for_is_refused() {
    if !qemu::is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let create = "create -q -f qcow2 -o cluster_size=512";
    qemu_img(dir.path(), &format!("{create} 0.qcow2 1G"));
    for nth in 1..5 {
        let below = nth - 1;
        let backing = format!("-b {below}.qcow2 -F qcow2");
        qemu_img(dir.path(), &format!("{create} {backing} {nth}.qcow2"));
    }
    let options = Opening::new(Access::ReadOnly);
    assert!(open(&dir.path().join("3.qcow2"), &options).is_ok());
    let refused = refusal(&dir.path().join("4.qcow2"));
    assert!(
        refused.contains("l1_size") && refused.contains("0.qcow2"),
        "{refused}"
    );
}

#[test]
fn what_is_not_read_here_is_refused_with_the_command_that_converts_it() {
    if !qemu::is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.qcow2");
    for (options, what) in [
        ("-o extended_l2=on,cluster_size=128k", "extended L2"),
        ("-o data_file=a.data", "in another one"),
        ("-o compression_type=zstd", "zstd"),
    ] {
        qemu_img(
            dir.path(),
            &format!("create -q -f qcow2 {options} a.qcow2 1M"),
        );
        let refused = refusal(&path);
        assert!(refused.contains(what), "{refused}");
        assert!(refused.contains("qemu-img convert -O raw"), "{refused}");
    }
    let written = Opening::new(Access::ReadWrite);
    let refused = open(&path, &written).err().unwrap().to_string();
    assert!(refused.contains("written in place"), "{refused}");
}

#[test]
fn a_table_that_points_nowhere_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.qcow2");
    export(&Ram::with_contents(content()), &path, &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let l1_at = 1 << 16;
    let mut l1 = [0; 8];
    File::open(&path)
        .unwrap()
        .read_exact_at(&mut l1, l1_at)
        .unwrap();
    let l2_at = u64::from_be_bytes(l1) & OFFSET_MASK;
    for (at, entry, what) in [
        (l2_at, COPIED | (1 << 40), "L2 entry (at byte"),
        (l2_at, COPIED | 512, "middle of a cluster"),
        (l2_at, COMPRESSED | (1 << 40), "compressed cluster"),
        (l2_at, COMPRESSED | 512, "cannot be decompressed"),
        (l2_at, COMPRESSED | OFFSET_MASK, "compressed cluster"),
        (l1_at, COPIED | (1 << 40), "L1 entry (at byte 65536)"),
        (l1_at, COPIED | 512, "L1 entry"),
    ] {
        file.write_all_at(&entry.to_be_bytes(), at).unwrap();
        let disk = open(&path, &read_only()).unwrap();
        let error = disk.read(0, &mut [0; 512]).unwrap_err();
        assert!(matches!(error, DiskError::Corrupt(_)), "{error}");
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn a_file_that_is_cut_off_is_refused_or_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.qcow2");
    export(&Ram::with_contents(content()), &path, &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let length = file.metadata().unwrap().len();
    for length in [length - (3 << 16), length / 2, 65_544, 65_536, 100, 10, 0] {
        file.set_len(length).unwrap();
        let said = match open(&path, &read_only()) {
            Err(error) => error.to_string(),
            Ok(disk) => disk
                .read(0, &mut vec![0; 20 << 20])
                .unwrap_err()
                .to_string(),
        };
        assert!(said.contains("a.qcow2"), "{said}");
    }
}
