//! Files that lie, are cut off or were made to harm.

use super::super::footer::{Footer, checksum};
use super::*;

/// A dynamic disk with two blocks, as bytes.
fn specimen() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhd");
    let disk = make(&path, NewFormat::VhdDynamic, SIZE_BYTES).unwrap();
    disk.write(0, &[1; 512]).unwrap();
    disk.write(4 << 20, &[2; 512]).unwrap();
    drop(disk);
    let bytes = fs::read(&path).unwrap();
    (dir, path, bytes)
}

/// The field and the offset a file is refused for.
fn refusal(path: &Path, bytes: &[u8]) -> (&'static str, u64) {
    fs::write(path, bytes).unwrap();
    for access in [Access::ReadWrite, Access::ReadOnly] {
        let error = opened(path, access).err().unwrap();
        let OpenError::Malformed { field, offset, .. } = error else {
            panic!("{error}");
        };
        assert!(fs::read(path).unwrap() == bytes, "something was written");
        if access == Access::ReadOnly {
            return (field, offset);
        }
    }
    unreachable!()
}

/// A header field changed, and its checksum with it.
fn with_header(bytes: &[u8], at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[512 + at..512 + at + value.len()].copy_from_slice(value);
    let sum = checksum(&bytes[512..1536], 36).to_be_bytes();
    bytes[512 + 36..512 + 40].copy_from_slice(&sum);
    bytes
}

/// Both footers changed.
fn with_footers(bytes: &[u8], change: impl Fn(&mut Footer)) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut footer = Footer::parse(&bytes[..512]).unwrap();
    change(&mut footer);
    bytes[..512].copy_from_slice(&footer.emit());
    let tail = bytes.len() - 512;
    bytes[tail..].copy_from_slice(&footer.emit());
    bytes
}

#[test]
fn a_lie_is_refused_by_field_and_offset() {
    let (_dir, path, bytes) = specimen();
    let tail = bytes.len() as u64 - 512;
    let entry = |block: usize, value: u32| {
        let mut bytes = bytes.clone();
        bytes[1536 + 4 * block..][..4].copy_from_slice(&value.to_be_bytes());
        bytes
    };
    let table = "Block Allocation Table";
    let first = u32::from_be_bytes(bytes[1536..1540].try_into().unwrap());
    for (bytes, expected) in [
        (vec![], ("Footer", 0)),
        (vec![0; 100], ("Footer", 0)),
        (vec![0; 5000], ("Cookie", 5000 - 512)),
        (with_header(&bytes, 0, b"x"), ("Cookie", 512)),
        (with_header(&bytes, 24, &[0, 2]), ("Header Version", 536)),
        (with_header(&bytes, 16, &[0xff; 8]), ("Table Offset", 528)),
        (
            with_header(&bytes, 16, &512_u64.to_be_bytes()),
            ("Table Offset", 528),
        ),
        (
            with_header(&bytes, 28, &[0, 0, 0, 4]),
            ("Max Table Entries", 540),
        ),
        (
            with_header(&bytes, 32, &[0, 0x10, 0, 0]),
            ("Max Table Entries", 540),
        ),
        (with_header(&bytes, 32, &[0, 3, 0, 0]), ("Block Size", 544)),
        (
            with_footers(&bytes, |f| f.data_offset = 7),
            ("Data Offset", tail + 16),
        ),
        (
            with_footers(&bytes, |f| f.data_offset = u64::MAX - 100),
            ("Data Offset", tail + 16),
        ),
        (
            with_footers(&bytes, |f| f.current_bytes = 0),
            ("Current Size", tail + 48),
        ),
        (
            with_footers(&bytes, |f| f.current_bytes = 513),
            ("Current Size", tail + 48),
        ),
        (
            with_footers(&bytes, |f| f.current_bytes = u64::MAX - 511),
            ("Current Size", tail + 48),
        ),
        (
            with_footers(&bytes, |f| f.kind = Kind::Fixed),
            ("Current Size", tail + 48),
        ),
        (entry(1, 0), (table, 1540)),
        (entry(1, 1), (table, 1540)),
        (entry(1, 3), (table, 1540)),
        (entry(1, first), (table, 1540)),
        (entry(1, first + 1), (table, 1540)),
        (entry(1, u32::MAX - 1), (table, 1540)),
        (entry(2, first + 4096), (table, 1544)),
    ] {
        assert_eq!(refusal(&path, &bytes), expected);
    }
}

#[test]
fn a_file_that_was_cut_off_is_refused_wherever_it_was_cut() {
    let (_dir, path, bytes) = specimen();
    for length in [
        1,
        511,
        512,
        600,
        1536,
        1537,
        1600,
        2048,
        4096,
        8192,
        1 << 20,
        3 << 20,
    ] {
        refusal(&path, &bytes[..length]);
    }
    refusal(&path, &bytes[..bytes.len() - 513]);
    refusal(&path, &bytes[1..]);
    // Only of the footer itself nothing is missed that its copy does not say.
    for length in [bytes.len() - 1, bytes.len() - 512] {
        fs::write(&path, &bytes[..length]).unwrap();
        assert!(opened(&path, Access::ReadWrite).is_ok(), "{length}");
    }
}

#[test]
fn a_table_that_costs_memory_is_refused_before_it_is_read() {
    let (_dir, path, bytes) = specimen();
    let small = with_footers(&bytes, |f| f.current_bytes = 2040 << 30);
    let small = with_header(&small, 32, &512_u32.to_be_bytes());
    let small = with_header(&small, 28, &[0xff; 4]);
    assert_eq!(refusal(&path, &small), ("Block Size", 544));
}

#[test]
fn what_is_no_file_is_refused_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let error = opened(&path, Access::ReadOnly).err().unwrap();
    assert!(error.to_string().contains("no regular file"), "{error}");
    let missing = opened(&dir.path().join("none"), Access::ReadOnly);
    assert!(matches!(missing, Err(OpenError::Missing { .. })));
}

#[test]
fn a_fixed_disk_is_never_taken_for_what_its_first_sector_says() {
    let (_dir, path, dynamic) = specimen();
    let fixed = Opening {
        format: Some(Format::Vhd(VhdKind::Fixed)),
        ..Opening::new(Access::ReadOnly)
    };
    let open = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        crate::open(&path, &fixed).map(|disk| disk.geometry().size_bytes)
    };
    // Who writes the disk has put a dynamic one there, and the footer is lost.
    for (bytes, expected) in [
        (&dynamic[..dynamic.len() - 512], "Footer"),
        (&dynamic[..], "Disk Type"),
    ] {
        let error = open(bytes).unwrap_err();
        let is_expected =
            matches!(&error, OpenError::Malformed { field, .. } if *field == expected);
        assert!(is_expected, "{error}");
        let any = crate::open(&path, &Opening::new(Access::ReadOnly));
        assert!(any.is_ok(), "it is a disk to who does not know better");
    }
    let footer = Footer::new(Kind::Fixed, dynamic.len() as u64, 0, [1; 16]);
    let bytes = [&dynamic[..], &footer.emit()].concat();
    assert_eq!(open(&bytes).unwrap(), dynamic.len() as u64);
}

/// Found by reading: 4 million blocks of one sector wanted 2 GiB to be opened.
#[test]
fn a_differencing_disk_of_tiny_blocks_is_refused() {
    let (_dir, path, bytes) = specimen();
    let tiny = with_header(&bytes, 32, &512_u32.to_be_bytes());
    let tiny = with_header(&tiny, 28, &u32::MAX.to_be_bytes());
    let tiny = with_footers(&tiny, |f| {
        f.kind = Kind::Differencing;
        f.current_bytes = (512 << 20) + 512;
    });
    assert_eq!(refusal(&path, &tiny), ("Block Size", 544));
}
