//! Files that lie, are cut off or were made to harm.

use uuid::Uuid;

use super::*;

/// A dynamic disk of 5.5 MiB with two blocks, as bytes: BAT at 3 MiB,
/// metadata at 2 MiB, the blocks from 4 MiB on.
fn specimen(site: &Site) -> Vec<u8> {
    let disk = site.create("disk.vhdx", NewFormat::VhdxDynamic, 5 * MIB + MIB / 2, 512);
    disk.write(0, &[1; 512]).unwrap();
    disk.write(3 * MIB, &[2; 512]).unwrap();
    drop(disk);
    std::fs::read(site.path("disk.vhdx")).unwrap()
}

/// Why a file is refused, whichever way it is opened; nothing is written.
fn refusal(site: &Site, bytes: &[u8]) -> OpenError {
    let path = site.path("disk.vhdx");
    std::fs::write(&path, bytes).unwrap();
    let [error, _] = [Access::ReadWrite, Access::ReadOnly].map(|access| {
        let error = site.try_open("disk.vhdx", access).expect_err("refused");
        assert!(
            std::fs::read(&path).unwrap() == bytes,
            "something was written"
        );
        error
    });
    error
}

const HEADERS: [usize; 2] = [64 << 10, 128 << 10];
const TABLES: [usize; 2] = [192 << 10, 256 << 10];
const METADATA: usize = 2 << 20;
const BAT: usize = 3 << 20;

/// The same bytes changed in both copies of a structure, and the checksums
/// with them.
fn with(bytes: &[u8], copies: [usize; 2], length: usize, at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for copy in copies {
        let structure = &mut bytes[copy..copy + length];
        source::put(structure, at, value);
        let crc = source::checksum(structure);
        source::put(structure, 4, &crc.to_le_bytes());
    }
    bytes
}

fn with_header(bytes: &[u8], at: usize, value: &[u8]) -> Vec<u8> {
    with(bytes, HEADERS, 4096, at, value)
}

fn with_table(bytes: &[u8], at: usize, value: &[u8]) -> Vec<u8> {
    with(bytes, TABLES, 64 << 10, at, value)
}

fn with_bytes(bytes: &[u8], at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    source::put(&mut bytes, at, value);
    bytes
}

#[test]
fn a_lie_is_refused_by_field_and_offset() {
    let site = Site::new();
    let bytes = specimen(&site);
    let header = |at, value: &[u8]| with_header(&bytes, at, value);
    let table = |at, value: &[u8]| with_table(&bytes, at, value);
    let item = |at: usize, value: &[u8]| with_bytes(&bytes, METADATA + at, value);
    let items = METADATA + (64 << 10);
    let entry =
        |block: usize, value: u64| with_bytes(&bytes, BAT + 8 * block, &value.to_le_bytes());
    let damaged = |copies: [usize; 2]| {
        let bytes = with_bytes(&bytes, copies[0] + 3000, &[9]);
        with_bytes(&bytes, copies[1] + 3000, &[9])
    };
    let second = source::u64_at(&bytes, BAT + 3 * 8);
    let mib = |n: u64| (n << 20).to_le_bytes();
    for (bytes, field, offset) in [
        (vec![], "file type identifier", 0),
        (vec![0; 100], "file type identifier", 0),
        (bytes[..70_000].to_vec(), "header", 128 << 10),
        (bytes[..200_000].to_vec(), "log offset", 131_072 + 72),
        (damaged(HEADERS), "header", 64 << 10),
        (header(68, &[0; 4]), "log length", (128 << 10) + 68),
        (header(68, &[0xff; 4]), "log length", (128 << 10) + 68),
        (header(72, &mib(1000)), "log offset", (128 << 10) + 72),
        (header(72, &[0xff; 8]), "log offset", (128 << 10) + 72),
        (header(72, &mib(2)), "region offset", 2 << 20),
        (damaged(TABLES), "region table", 192 << 10),
        (table(8, &[0xff; 4]), "region entry count", (192 << 10) + 8),
        (table(8, &[1, 0, 0, 0]), "region table", 192 << 10),
        (table(32, &[0xff; 8]), "region offset", (192 << 10) + 32),
        (table(32, &mib(1 << 30)), "region offset", (192 << 10) + 32),
        (table(40, &[1, 0, 0, 0]), "region offset", (192 << 10) + 32),
        (table(32, &mib(2)), "region offset", 2 << 20),
        (item(0, b"x"), "metadata table", METADATA as u64),
        (
            item(10, &[0xff; 2]),
            "metadata entry count",
            METADATA as u64 + 10,
        ),
        (item(10, &[4, 0]), "physical sector size", METADATA as u64),
        (
            item(32 + 16, &[0xff; 4]),
            "file parameters",
            METADATA as u64 + 48,
        ),
        (
            item(32 + 16, &[0; 4]),
            "file parameters",
            METADATA as u64 + 48,
        ),
        (
            item(32 + 20, &[7, 0, 0, 0]),
            "file parameters",
            items as u64,
        ),
        (
            item(64 << 10, &[0, 0, 0x30, 0]),
            "file parameters",
            items as u64,
        ),
        (
            item(64 << 10, &[0, 0, 0, 0x20]),
            "file parameters",
            items as u64,
        ),
        (
            item((64 << 10) + 8, &[0; 8]),
            "virtual disk size",
            items as u64 + 8,
        ),
        (
            item((64 << 10) + 8, &[1]),
            "virtual disk size",
            items as u64 + 8,
        ),
        (
            item((64 << 10) + 8, &[0xff; 8]),
            "virtual disk size",
            items as u64 + 8,
        ),
        (
            item((64 << 10) + 8, &mib(64 << 20)),
            "BAT region",
            BAT as u64,
        ),
        (
            item((64 << 10) + 32, &[0, 4]),
            "logical sector size",
            items as u64 + 32,
        ),
        (
            item((64 << 10) + 4, &[2]),
            "parent locator",
            METADATA as u64,
        ),
        (entry(1, 4), "BAT entry", BAT as u64 + 8),
        (entry(1, 6), "BAT entry", BAT as u64 + 8),
        (entry(1, (1 << 20) | 6), "BAT entry", BAT as u64 + 8),
        (entry(1, (3 << 20) | 6), "BAT entry", BAT as u64 + 8),
        (entry(1, (1 << 40) | 6), "BAT entry", BAT as u64 + 8),
        (entry(1, !7 | 6), "BAT entry", BAT as u64 + 8),
        (entry(1, second), "BAT entry", BAT as u64 + 24),
        (entry(1, (9 << 20) | 7), "BAT entry", BAT as u64 + 8),
    ] {
        let error = refusal(&site, &bytes);
        let said = error.to_string();
        let OpenError::Malformed {
            field: seen,
            offset: at,
            ..
        } = error
        else {
            panic!("{said}, not {field} at {offset}");
        };
        assert_eq!((seen, at), (field, offset), "{said}");
    }
}

#[test]
fn what_is_newer_than_us_is_refused() {
    let site = Site::new();
    let bytes = specimen(&site);
    let table = with_table(&bytes, 16, &[9]);
    let item = with_bytes(&bytes, METADATA + 32 + 4 * 32, &[9]);
    for (bytes, what) in [
        (with_header(&bytes, 66, &[2, 0]), "version 2"),
        (table, "required region"),
        (item, "required metadata item"),
    ] {
        let error = refusal(&site, &bytes);
        assert!(matches!(error, OpenError::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn one_good_copy_of_header_and_table_is_enough() {
    let site = Site::new();
    let bytes = specimen(&site);
    let path = site.path("disk.vhdx");
    for copy in HEADERS.into_iter().chain(TABLES) {
        std::fs::write(&path, with_bytes(&bytes, copy + 3000, &[9])).unwrap();
        let disk = site.open("disk.vhdx", Access::ReadWrite);
        let mut byte = [0];
        disk.read(3 * MIB, &mut byte).unwrap();
        assert_eq!(byte, [2]);
    }
}

#[test]
fn a_log_that_leads_out_of_the_file_is_refused() {
    let site = Site::new();
    let bytes = specimen(&site);
    let log = Uuid::from_bytes([3; 16]);
    let page = || Box::new([0; 4096]);
    let far = u64::MAX / 4096 * 4096;
    for (file_bytes, offset, field) in [
        (1 << 40, 3 << 20, "log entry flushed file offset"),
        (6 << 20, far, "log entry"),
        (6 << 20, FILE_BYTES_MAX, "log entry"),
    ] {
        let entry = log::emit(log, 1, 0, file_bytes, &[(offset, page())].into());
        let bytes = with_bytes(&bytes, 1 << 20, &entry);
        let error = refusal(&site, &with_header(&bytes, 48, log.as_bytes()));
        assert!(
            matches!(&error, OpenError::Malformed { field: seen, .. } if *seen == field),
            "{error}"
        );
    }
    // One that changes what describes the file is looked at as it changes it.
    let entry = log::emit(log, 1, 0, 6 << 20, &[(2 << 20, page())].into());
    let bytes = with_bytes(&bytes, 1 << 20, &entry);
    let error = refusal(&site, &with_header(&bytes, 48, log.as_bytes()));
    let said = error.to_string();
    assert!(said.contains("metadata table (at byte 2097152)"), "{said}");
}

#[test]
fn a_file_that_is_cut_off_below_us_is_corrupt_not_zeros() {
    let site = Site::new();
    specimen(&site);
    let disk = site.open("disk.vhdx", Access::ReadOnly);
    let file = std::fs::File::options()
        .write(true)
        .open(site.path("disk.vhdx"));
    file.unwrap().set_len(5 * MIB).unwrap();
    let error = disk.read(3 * MIB, &mut [0; 512]).err().unwrap();
    assert!(matches!(error, DiskError::Corrupt(_)), "{error}");
    let extent = disk.extent(3 * MIB, 512).unwrap();
    assert_eq!(extent.allocation, Allocation::Mapped, "no hole");
}

/// Found by the fuzzer: what such records said was read, and written nowhere.
#[test]
fn records_without_an_entry_of_the_log_are_nobodys() {
    let site = Site::new();
    let disk = site.create("disk", NewFormat::VhdxDynamic, 20 * MIB, 512);
    disk.write(0, &[7; 4096]).unwrap();
    let log_at = disk.journal.log().headers.current.log_offset;
    disk.source.file.write_all_at(b"gone", log_at).unwrap();
    kill(disk);
    for _ in 0..2 {
        let disk = site.open("disk", Access::ReadWrite);
        let mut seen = [1; 4096];
        disk.read(0, &mut seen).unwrap();
        assert!(seen == [0; 4096], "believed");
        disk.write(8 * MIB, &[9; 4096]).unwrap();
        disk.close().unwrap();
    }
}

/// A log of 64 MiB in which each entry says that it ends a sequence which the
/// middle of the log breaks off: read in one pass, and not in one for each.
#[test]
fn the_newest_whole_sequence_of_a_long_log_is_found() {
    const COUNT: u64 = 16 << 10;
    let site = Site::new();
    let mut bytes = specimen(&site);
    let log = Uuid::from_bytes([3; 16]);
    let at = bytes.len().next_multiple_of(1 << 20);
    bytes.resize(at, 0);
    let length = bytes.len() as u64 + COUNT * 4096;
    for nth in 0..COUNT {
        let sequence = if nth < COUNT / 2 { 1 + nth } else { 2 + nth };
        let updates = match nth == COUNT / 2 - 1 {
            true => [(4 * MIB, Box::new([9; 4096]))].into(),
            false => log::Updates::new(),
        };
        // That one has a sector more, for its data.
        if nth != COUNT / 2 {
            bytes.extend(log::emit(log, sequence, 0, length, &updates));
        }
    }
    let bytes = with_header(&bytes, 68, &(64_u32 << 20).to_le_bytes());
    let bytes = with_header(&bytes, 72, &(at as u64).to_le_bytes());
    let bytes = with_header(&bytes, 48, log.as_bytes());
    std::fs::write(site.path("disk.vhdx"), &bytes).unwrap();
    let disk = site.open("disk.vhdx", Access::ReadOnly);
    let mut seen = [0; 512];
    disk.read(0, &mut seen).unwrap();
    assert!(seen == [9; 512], "it was not replayed");
}

#[test]
fn a_log_of_updates_without_number_is_refused() {
    let site = Site::new();
    let bytes = specimen(&site);
    let log = Uuid::from_bytes([3; 16]);
    let descriptors = 40_000;
    let mut entry = vec![0; (64 + 32 * descriptors as usize).next_multiple_of(4096)];
    let length = u32::try_from(entry.len()).unwrap();
    source::put(&mut entry, 0, b"loge");
    source::put(&mut entry, 8, &length.to_le_bytes());
    source::put(&mut entry, 16, &1_u64.to_le_bytes());
    source::put(&mut entry, 24, &u32::to_le_bytes(descriptors));
    source::put(&mut entry, 32, &log.to_bytes_le());
    source::put(&mut entry, 56, &(bytes.len() as u64).to_le_bytes());
    for nth in 0..descriptors as usize {
        let at = 64 + 32 * nth;
        source::put(&mut entry, at, b"zero");
        source::put(&mut entry, at + 8, &4096_u64.to_le_bytes());
        source::put(&mut entry, at + 16, &(4 * MIB).to_le_bytes());
        source::put(&mut entry, at + 24, &1_u64.to_le_bytes());
    }
    let crc = source::checksum(&entry);
    source::put(&mut entry, 4, &crc.to_le_bytes());
    // At the end of the file, where there is room for it.
    let at = bytes.len().next_multiple_of(1 << 20);
    let mut bytes = bytes;
    bytes.resize(at, 0);
    bytes.extend(&entry);
    bytes.resize(at + (2 << 20), 0);
    let bytes = with_header(&bytes, 68, &(2_u32 << 20).to_le_bytes());
    let bytes = with_header(&bytes, 72, &(at as u64).to_le_bytes());
    let error = refusal(&site, &with_header(&bytes, 48, log.as_bytes()));
    let said = error.to_string();
    assert!(said.contains("log entry descriptor count"), "{said}");
}
