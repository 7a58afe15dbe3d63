//! Claims about partition tables, as sfdisk makes them.

use std::fs;
use std::os::unix::fs::FileExt;

use super::*;
use crate::tests::{Bench, MIB, open};

/// Number, first MiB, MiB.
fn shape(found: &Partitions) -> Vec<(u32, u64, u64)> {
    let list = found.list.iter();
    list.map(|p| (p.number, p.start / MIB, p.size_bytes / MIB))
        .collect()
}

const GPT: &str = "label: gpt\nsize=20MiB, type=uefi, uuid=01234567-89ab-cdef-0123-456789abcdef\n\
                   size=30MiB, name=\"my root\"\n";

#[test]
fn a_gpt_says_where_its_partitions_lie_and_what_they_are_called() {
    let bench = Bench::new();
    let Some(path) = bench.disk(GPT, &[]) else {
        return;
    };
    let found = Partitions::read(&*open(&path)).unwrap();
    assert_eq!(found.table, TableKind::Gpt);
    assert_eq!(shape(&found), [(1, 1, 20), (2, 21, 30)]);
    assert!(found.list[0].is_esp() && !found.list[1].is_esp());
    assert_eq!(found.list[0].uuid, "01234567-89ab-cdef-0123-456789abcdef");
    assert_eq!(found.list[1].name, "my root");
}

#[test]
fn the_copy_at_the_end_is_read_where_the_primary_is_damaged() {
    let bench = Bench::new();
    let Some(path) = bench.disk(GPT, &[]) else {
        return;
    };
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0xff; 16], 1024 + 40).unwrap(); // an entry
    let found = Partitions::read(&*open(&path)).unwrap();
    assert_eq!(found.table, TableKind::GptCopy);
    assert_eq!(shape(&found), [(1, 1, 20), (2, 21, 30)]);
    // And where there is nothing left of the primary.
    file.write_all_at(&[0; 512], 512).unwrap();
    let found = Partitions::read(&*open(&path)).unwrap();
    assert_eq!(found.table, TableKind::GptCopy);
    file.write_all_at(&[0; 512], 256 * MIB - 512).unwrap();
    let refused = Partitions::read(&*open(&path)).unwrap_err().to_string();
    assert!(
        refused.contains("the partition table is damaged"),
        "{refused}"
    );
}

#[test]
fn a_gpt_of_4096_byte_blocks_is_read() {
    let bench = Bench::new();
    let Some(path) = bench.disk(&format!("sector-size: 4096\n{GPT}"), &[]) else {
        return;
    };
    let found = Partitions::read(&*open(&path)).unwrap();
    assert_eq!(shape(&found), [(1, 1, 20), (2, 21, 30)]);
}

#[test]
fn an_mbr_has_logical_partitions_too() {
    let bench = Bench::new();
    let script = "label: dos\nlabel-id: 0xc0ffee01\nsize=20MiB, type=83, bootable\n\
                  size=200MiB, type=5\nsize=10MiB, type=ef\nsize=20MiB\nsize=30MiB\nsize=40MiB\n";
    let Some(path) = bench.disk(script, &[]) else {
        return;
    };
    let found = Partitions::read(&*open(&path)).unwrap();
    assert_eq!(found.table, TableKind::Mbr);
    let sizes: Vec<_> = shape(&found).iter().map(|(n, _, mib)| (*n, *mib)).collect();
    assert_eq!(sizes, [(1, 20), (3, 10), (4, 20), (5, 30), (6, 40)]);
    assert!(found.list[1].is_esp());
    assert_eq!(found.list[3].uuid, "c0ffee01-05");
    // Where they lie, sfdisk says.
    let shown = path.to_str().unwrap();
    let dump = crate::tests::tool("sfdisk", &["-d", shown], "").unwrap();
    for partition in &found.list {
        let line = format!("start={:>12}", partition.start / 512);
        assert!(dump.contains(&line), "{partition:?}\n{dump}");
    }
}

#[test]
fn a_chain_of_logical_partitions_that_is_a_ring_ends() {
    let bench = Bench::new();
    let script = "label: dos\nsize=200MiB, type=5\nsize=1MiB\nsize=1MiB\nsize=1MiB\nsize=20MiB\n\
                  size=30MiB\n";
    let Some(path) = bench.disk(script, &[]) else {
        return;
    };
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let found = Partitions::read(&*open(&path)).unwrap();
    let second_link = found.list[4].start - MIB;
    let mut record = [0; 16];
    file.read_exact_at(&mut record, MIB + 462).unwrap();
    assert_eq!(record[4], 5, "the link to the second");
    file.write_all_at(&record, second_link + 462).unwrap();
    let found = Partitions::read(&*open(&path)).unwrap();
    assert_eq!(found.list.len(), 5);
}

#[test]
fn a_disk_without_a_table_is_one_partition() {
    let bench = Bench::new();
    bench.put("tree/a", "a");
    let Some(path) = bench.fat("tree", "16", &[]) else {
        return;
    };
    let found = Partitions::read(&*open(&path)).unwrap();
    assert_eq!(found.table, TableKind::Bare);
    assert_eq!(shape(&found), [(0, 0, 40)]);
    let blank = bench.blank("blank", MIB);
    let found = Partitions::read(&*open(&blank)).unwrap();
    assert_eq!(found.table, TableKind::Bare);
}

#[test]
fn partitions_beyond_the_disk_are_left_out() {
    let bench = Bench::new();
    let script = "label: dos\nsize=20MiB\nsize=30MiB\n";
    let Some(path) = bench.disk(script, &[]) else {
        return;
    };
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(40 * MIB).unwrap();
    let found = Partitions::read(&*open(&path)).unwrap();
    assert_eq!(shape(&found), [(1, 1, 20)]);
}
