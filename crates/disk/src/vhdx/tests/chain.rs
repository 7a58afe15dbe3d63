//! Differencing disks and what they lie upon. No judge knows them, so their
//! structures are held to the specification byte by byte.

use super::*;

/// A child above a parent of 0x5a from byte 700 on, and the way to both.
fn child() -> (Site, Vhdx) {
    let site = Site::new();
    let format = site.parent(512);
    let disk = site.create("child.vhdx", format, 5 * MIB + MIB / 2, 512);
    (site, disk)
}

#[test]
fn a_child_shows_its_parent_but_for_what_was_written_or_unmapped() {
    let (site, disk) = child();
    let before = std::fs::read(site.path("parent.vhdx")).unwrap();
    let mut model = contents(&site.open("parent.vhdx", Access::ReadOnly));
    assert!(contents(&disk) == model);
    disk.write(2 * MIB - 100, &[1; 300]).unwrap();
    model[(2 << 20) - 100..][..300].fill(1);
    disk.unmap(0, MIB).unwrap();
    disk.unmap(MIB + 1000, 5000).unwrap();
    model[..1 << 20].fill(0);
    model[(1 << 20) + 1000..][..5000].fill(0);
    assert!(contents(&disk) == model);
    drop(disk);
    assert!(contents(&site.open("child.vhdx", Access::ReadOnly)) == model);
    // A write into what is zero brings nothing of the parent back.
    let disk = site.open("child.vhdx", Access::ReadWrite);
    disk.write(5000, &[2]).unwrap();
    model[5000] = 2;
    assert!(contents(&disk) == model);
    assert!(std::fs::read(site.path("parent.vhdx")).unwrap() == before);
}

#[test]
fn a_sector_of_a_child_stands_in_the_file_as_the_specification_says() {
    let (site, disk) = child();
    disk.write(2 * MIB + 9 * 512, &[7; 1024]).unwrap();
    drop(disk);
    let bytes = std::fs::read(site.path("child.vhdx")).unwrap();
    let word = |at: usize| source::u64_at(&bytes, at);
    // 2^23 sectors of 512 bytes in blocks of 1 MiB: 4096 blocks of a chunk,
    // then its bitmap. The BAT begins at 3 MiB.
    let (block, bitmap) = (word((3 << 20) + 2 * 8), word((3 << 20) + 4096 * 8));
    assert_eq!(
        (block & 7, bitmap & 7),
        (7, 6),
        "partially present, present"
    );
    let at = |entry: u64| usize::try_from(entry >> 20 << 20).unwrap();
    let sectors = &bytes[at(bitmap)..][..1 << 20];
    // Block 2 begins with sector 4096; bits from the least significant on.
    let set: Vec<(usize, u8)> = (0..)
        .zip(sectors.iter().copied())
        .filter(|(_, b)| *b != 0)
        .collect();
    assert_eq!(set, [(4096 / 8 + 1, 0b0000_0110)]);
    assert_eq!(bytes[at(block) + 9 * 512..][..1024], [7; 1024]);
    let locator = site
        .open("child.vhdx", Access::ReadOnly)
        .metadata
        .parent
        .clone();
    let parent = site.open("parent.vhdx", Access::ReadOnly);
    let linkage = parent.journal.log().headers.current.data_write;
    let expected = [
        ("parent_linkage", linkage.braced().to_string()),
        (
            "parent_linkage2",
            "{00000000-0000-0000-0000-000000000000}".to_owned(),
        ),
        ("relative_path", r".\parent.vhdx".to_owned()),
    ];
    let expected = expected.map(|(key, value)| (key.to_owned(), value));
    assert_eq!(locator.unwrap().entries, expected);
}

#[test]
fn a_parent_that_changed_is_refused_and_both_are_named() {
    let (site, disk) = child();
    drop(disk);
    site.open("parent.vhdx", Access::ReadWrite).flush().unwrap();
    assert!(
        site.try_open("child.vhdx", Access::ReadOnly).is_ok(),
        "only opened"
    );
    site.open("parent.vhdx", Access::ReadWrite)
        .write(0, &[1])
        .unwrap();
    let error = site.try_open("child.vhdx", Access::ReadOnly).err().unwrap();
    let said = error.to_string();
    assert!(matches!(error, OpenError::OtherBase { .. }), "{said}");
    assert!(
        said.contains("child.vhdx") && said.contains("parent.vhdx"),
        "{said}"
    );
}

#[test]
fn a_parent_is_not_written_while_a_child_is_open() {
    let (site, _disk) = child();
    let error = site
        .try_open("parent.vhdx", Access::ReadWrite)
        .err()
        .unwrap();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    assert!(site.try_open("parent.vhdx", Access::ReadOnly).is_ok());
}

#[test]
fn a_chain_is_read_to_its_end_and_one_without_end_is_refused() {
    let (site, disk) = child();
    disk.write(0, &[1; 4096]).unwrap();
    let size_bytes = disk.geometry().size_bytes;
    let mut model = contents(&disk);
    drop(disk);
    let format = NewFormat::VhdxDifferencing {
        parent: site.path("child.vhdx"),
    };
    let top = site.create("top.vhdx", format, size_bytes, 512);
    top.write(4096, &[2; 512]).unwrap();
    model[4096..4608].fill(2);
    assert!(contents(&top) == model);
    let paths = top.describe().parents;
    let names: Vec<_> = paths.iter().map(|p| p.file_name().unwrap()).collect();
    assert_eq!(names, ["child.vhdx", "parent.vhdx"]);
    drop(top);
    std::fs::copy(site.path("top.vhdx"), site.path("child.vhdx")).unwrap();
    let error = site.try_open("top.vhdx", Access::ReadOnly).err().unwrap();
    assert!(error.to_string().contains("its own ancestor"), "{error}");
}

#[test]
fn a_parent_elsewhere_is_found_where_parents_may_lie() {
    let (site, disk) = child();
    drop(disk);
    let elsewhere = site.path("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::rename(site.path("parent.vhdx"), elsewhere.join("parent.vhdx")).unwrap();
    let error = site.try_open("child.vhdx", Access::ReadOnly).err().unwrap();
    assert!(error.to_string().contains("parent.vhdx"), "{error}");
    let opening = Opening {
        parent_roots: vec![elsewhere],
        ..Opening::new(Access::ReadWrite)
    };
    let disk = Vhdx::open_on(&site.files, &site.path("child.vhdx"), &opening).unwrap();
    let mut byte = [0];
    disk.read(700, &mut byte).unwrap();
    assert_eq!(byte, [0x5a]);
}

#[test]
fn a_child_of_another_size_than_its_parent_is_not_made() {
    let site = Site::new();
    let format = site.parent(512);
    let new = NewDisk {
        format,
        size_bytes: 6 * MIB,
        logical_block_bytes: 512,
    };
    let error = create(&site.path("child.vhdx"), &new).err().unwrap();
    assert!(error.to_string().contains("parent.vhdx has"), "{error}");
    assert!(!site.path("child.vhdx").exists());
}
