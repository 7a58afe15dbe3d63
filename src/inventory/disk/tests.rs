//! Claims about own disks.

use std::os::unix::fs::FileExt;

use super::*;
use crate::inventory::tests::{Site, mac};
use crate::inventory::{Becomes, MachineChange, NewMachine, Origin, Outcome};

const GIB: u64 = 1 << 30;

fn named(name: &str) -> NewOwnDisk {
    NewOwnDisk {
        name: Name::parse(name).unwrap(),
        comment: String::new(),
    }
}

impl Site {
    fn own(&self, name: &str) -> OwnDisk {
        self.create_own_disk(named(name), DiskFormat::Raw, GIB)
            .unwrap()
    }

    fn assign_disk(&self, machine: &Machine, disk: &OwnDisk) -> Result<Machine> {
        let change = MachineChange {
            assignment: Some(Some(Assignment::Disk(disk.id))),
            ..MachineChange::default()
        };
        self.set_machine(machine.id, change)
    }

    fn names_in_disks(&self) -> Vec<String> {
        let entries = fs::read_dir(self.data_path().join("disks")).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn a_disk_survives_a_restart_and_takes_no_space_until_written() {
    let mut site = Site::new();
    let size_bytes = 4 << 40;
    let disk = site
        .create_own_disk(named("pc1"), DiskFormat::Raw, size_bytes)
        .unwrap();
    site.restart();
    assert_eq!(site.own_disk("pc1").unwrap(), disk);
    assert_eq!(site.own_disk_size(&disk).unwrap(), Some(size_bytes));
    assert!(stored_bytes(&site.own_disk_path(&disk)).unwrap() <= 64 << 10);
    assert_eq!(site.names_in_disks(), ["pc1.raw"]);
}

#[test]
fn a_size_no_disk_can_have_is_refused() {
    let site = Site::new();
    for size_bytes in [0, 4096, (64 << 40) + 4096, GIB + 512] {
        let made = site.create_own_disk(named("pc1"), DiskFormat::Raw, size_bytes);
        assert!(matches!(made, Err(Error::Invalid(_))), "{size_bytes}");
    }
    assert_eq!(site.names_in_disks(), Vec::<String>::new());
}

#[test]
fn one_machine_writes_a_disk() {
    let site = Site::new();
    let disk = site.own("win");
    let (one, two) = (site.new_machine("pc1", 1), site.new_machine("pc2", 2));
    site.assign_disk(&one, &disk).unwrap();
    site.assign_disk(&one, &disk).unwrap();
    let refusal = site.assign_disk(&two, &disk).unwrap_err().to_string();
    assert!(refusal.contains("machine pc1"), "{refusal}");
    let third = site.add_machine(NewMachine {
        name: Name::parse("pc3").unwrap(),
        mac: mac(3),
        uuid: None,
        serial: None,
        assignment: Some(Assignment::Disk(disk.id)),
        address: None,
        loader: None,
    });
    assert!(matches!(third, Err(Error::Conflict(_))));
    let none = MachineChange {
        assignment: Some(None),
        ..MachineChange::default()
    };
    site.set_machine(one.id, none).unwrap();
    site.assign_disk(&two, &disk).unwrap();
}

#[test]
fn a_disk_in_use_is_not_removed_and_says_by_whom() {
    let site = Site::new();
    let disk = site.own("win");
    let pc = site.new_machine("pc1", 1);
    site.assign_disk(&pc, &disk).unwrap();
    let refusal = site.remove_own_disk(disk.id).unwrap_err().to_string();
    assert!(refusal.contains("machine pc1"), "{refusal}");
    assert_eq!(site.names_in_disks(), ["win.raw"]);
    site.remove_machine(pc.id).unwrap();
    let open = site.open_own_disk(&disk, Access::ReadWrite).unwrap();
    assert!(site.remove_own_disk(disk.id).is_err());
    drop(open);
    site.remove_own_disk(disk.id).unwrap();
    assert_eq!(site.names_in_disks(), Vec::<String>::new());
    assert!(site.own_disk("win").is_err());
}

#[test]
fn a_file_in_place_is_taken_in_once_and_never_removed() {
    let site = Site::new();
    let file = site.directory().join("data.img");
    fs::write(&file, vec![7; 1 << 20]).unwrap();
    let disk = site.register_own_disk(named("data"), &file, None).unwrap();
    assert_eq!((disk.kind, disk.is_in_place()), (DiskKind::Raw, true));
    let link = site.directory().join("link.img");
    fs::hard_link(&file, &link).unwrap();
    let refusal = site.register_own_disk(named("again"), &link, None);
    assert!(refusal.unwrap_err().to_string().contains("disk data"));
    site.remove_own_disk(disk.id).unwrap();
    assert!(file.exists());
}

#[test]
fn a_machine_cannot_make_its_raw_disk_look_like_another_format() {
    let site = Site::new();
    let disk = site.own("win");
    let file = fs::File::options()
        .write(true)
        .open(site.own_disk_path(&disk))
        .unwrap();
    file.write_all_at(b"QFI\xfb", 0).unwrap();
    let open = site.open_own_disk(&disk, Access::ReadWrite).unwrap();
    let mut seen = [0; 4];
    open.read(0, &mut seen).unwrap();
    assert_eq!(&seen, b"QFI\xfb");
}

#[test]
fn what_is_no_disk_to_write_is_not_taken_in() {
    let site = Site::new();
    let directory = site.directory();
    let iso = directory.join("debian.iso");
    let mut bytes = vec![0; 1 << 20];
    bytes[32769..32774].copy_from_slice(b"CD001");
    fs::write(&iso, bytes).unwrap();
    let empty = directory.join("empty");
    fs::write(&empty, []).unwrap();
    let image = site.new_image("debian").disk_path();
    for (path, words) in [
        (iso.as_path(), "--cdrom"),
        (&empty, "is empty"),
        (&image, "golden image"),
        (&site.data_path().join("state.db"), "belongs to diskless"),
        (Path::new("data.img"), "begin with"),
        (directory, "neither a file"),
    ] {
        let refusal = site.register_own_disk(named("data"), path, None);
        let refusal = refusal.unwrap_err().to_string();
        assert!(refusal.contains(words), "{}: {refusal}", path.display());
    }
}

#[test]
fn a_stray_file_in_disks_is_left_alone_until_it_is_taken_in() {
    let mut site = Site::new();
    let stray = site.data_path().join("disks/win.raw");
    fs::write(&stray, vec![7; 1 << 20]).unwrap();
    site.restart();
    let refusal = site.create_own_disk(named("win"), DiskFormat::Raw, GIB);
    let refusal = refusal.unwrap_err().to_string();
    assert!(refusal.contains("--in-place"), "{refusal}");
    let disk = site.register_own_disk(named("win"), &stray, None).unwrap();
    assert_eq!(
        (disk.file.to_str(), disk.is_in_place()),
        (Some("win.raw"), false)
    );
    assert_eq!(site.names_in_disks(), ["win.raw"]);
}

#[test]
fn what_a_crash_cut_short_is_undone_or_ended_at_the_next_start() {
    let mut site = Site::new();
    let disk = site.own("win");
    let root = site.data_path().join("disks");
    let (real, new) = (root.join("win.raw"), root.join(format!(".new-{}", disk.id)));
    let aside = root.join(format!(".removed-{}-win.raw", disk.id));
    // Made, and its fact put down, and no name yet.
    fs::rename(&real, &new).unwrap();
    site.restart();
    assert_eq!(site.names_in_disks(), ["win.raw"]);
    // Made, and no fact yet.
    fs::write(root.join(format!(".new-{}", Uuid::new_v4())), b"half").unwrap();
    site.restart();
    assert_eq!(site.names_in_disks(), ["win.raw"]);
    // Stepped aside, its fact still there.
    fs::rename(&real, &aside).unwrap();
    site.restart();
    assert_eq!(site.names_in_disks(), ["win.raw"]);
    // And no more.
    fs::rename(&real, &aside).unwrap();
    let forget = |facts: &Facts<'_>| facts.remove_disk(disk.id);
    site.store().write(Survives::Power, forget).unwrap();
    site.restart();
    assert_eq!(site.names_in_disks(), Vec::<String>::new());
}

#[test]
fn a_copied_data_directory_has_the_same_disks() {
    let mut site = Site::new();
    let disk = site.own("win");
    site.close();
    let copy = Site::new_at_copy_of(&site.data_path());
    let found = copy.own_disk("win").unwrap();
    assert_eq!(found.id, disk.id);
    assert!(copy.own_disk_path(&found).starts_with(copy.data_path()));
    copy.open_own_disk(&found, Access::ReadWrite).unwrap();
}

/// What a finished job made.
fn made(site: &Site, job: Result<crate::inventory::Job>) -> Result<OwnDisk, String> {
    match site.ended(job.unwrap().id)? {
        Outcome::Disk(disk) => Ok(disk),
        other => panic!("{other:?}"),
    }
}

/// A disk with bytes near its front and at its end.
fn written(site: &Site, name: &str) -> OwnDisk {
    let disk = site.own(name);
    let open = site.open_own_disk(&disk, Access::ReadWrite).unwrap();
    open.write(5000, &[7; 9000]).unwrap();
    open.write(GIB - 4096, &[8; 4096]).unwrap();
    open.flush().unwrap();
    disk
}

fn holds_what_was_written(site: &Site, disk: &OwnDisk) {
    let open = site.open_own_disk(disk, Access::ReadWrite).unwrap();
    let mut seen = vec![1; 20_000];
    open.read(0, &mut seen).unwrap();
    let mut expected = vec![0; 20_000];
    expected[5000..14_000].fill(7);
    assert!(seen == expected);
    open.read(GIB - 4096, &mut seen[..4096]).unwrap();
    assert!(seen[..4096] == [8; 4096]);
}

#[test]
fn a_clone_holds_the_same_and_goes_its_own_way() {
    let site = Site::new();
    let disk = written(&site, "win");
    let clone = made(&site, site.clone_own_disk(&disk, named("copy"))).unwrap();
    assert_ne!(clone.id, disk.id);
    let open = site.open_own_disk(&clone, Access::ReadWrite).unwrap();
    open.write(GIB / 2, &[9; 512]).unwrap();
    drop(open);
    holds_what_was_written(&site, &clone);
    holds_what_was_written(&site, &disk);
    assert!(stored_bytes(&site.own_disk_path(&clone)).unwrap() < 1 << 20);
    assert_eq!(site.names_in_disks(), ["copy.raw", "win.raw"]);
}

#[test]
fn a_conversion_switches_the_file_and_keeps_the_disk() {
    let mut site = Site::new();
    let disk = written(&site, "win");
    for (format, file) in [
        (DiskFormat::Vhd, "win.vhd"),
        (DiskFormat::VhdFixed, "win.2.vhd"),
        (DiskFormat::Vhd, "win.vhd"),
        (DiskFormat::Raw, "win.raw"),
    ] {
        let now = site.own_disk("win").unwrap();
        let converted = made(&site, site.convert_own_disk(&now, format)).unwrap();
        assert_eq!(converted.id, disk.id);
        site.restart();
        assert_eq!(site.own_disk("win").unwrap(), converted);
        assert_eq!(site.names_in_disks(), [file]);
        assert_eq!(site.own_disk_size(&converted).unwrap(), Some(GIB));
        holds_what_was_written(&site, &converted);
    }
}

#[test]
fn a_disk_in_use_is_neither_cloned_nor_converted() {
    let site = Site::new();
    let disk = written(&site, "win");
    let _open = site.open_own_disk(&disk, Access::ReadWrite).unwrap();
    assert!(site.clone_own_disk(&disk, named("copy")).is_err());
    assert!(site.convert_own_disk(&disk, DiskFormat::Vhd).is_err());
    assert_eq!(site.names_in_disks(), ["win.raw"]);
    // Where it is known who has it open, that is said.
    let pc = site.new_machine("pc1", 1);
    site.assign_disk(&pc, &disk).unwrap();
    for refusal in [
        site.clone_own_disk(&disk, named("copy")).unwrap_err(),
        site.convert_own_disk(&disk, DiskFormat::Vhd).unwrap_err(),
        site.resize_own_disk(&disk, 2 * GIB).unwrap_err(),
    ] {
        assert!(refusal.to_string().contains("machine pc1"), "{refusal}");
    }
}

#[test]
fn an_import_copies_a_disk_of_another_format() {
    let site = Site::new();
    let disk = written(&site, "win");
    let vhd = made(&site, site.convert_own_disk(&disk, DiskFormat::Vhd)).unwrap();
    let file = site.directory().join("from.vhd");
    fs::copy(site.own_disk_path(&vhd), &file).unwrap();
    let import = site.import_own_disk(named("new"), DiskFormat::Raw, Origin::File(file.clone()));
    let imported = made(&site, import).unwrap();
    assert_eq!(imported.kind, DiskKind::Raw);
    holds_what_was_written(&site, &imported);
    assert!(file.exists());
}

#[test]
fn a_conversion_a_crash_cut_short_leaves_one_disk() {
    let mut site = Site::new();
    let disk = written(&site, "win");
    let root = site.data_path().join("disks");
    let (new, aside) = (
        root.join(format!(".new-{}", disk.id)),
        root.join(format!(".removed-{}-win.raw", disk.id)),
    );
    // While it is copied.
    fs::write(&new, b"half").unwrap();
    site.restart();
    assert_eq!(site.names_in_disks(), ["win.raw"]);
    // Before the fact is changed.
    fs::write(&new, b"whole").unwrap();
    fs::rename(root.join("win.raw"), &aside).unwrap();
    site.restart();
    assert_eq!(site.names_in_disks(), ["win.raw"]);
    holds_what_was_written(&site, &disk);
    // After it.
    fs::write(&new, b"whole").unwrap();
    fs::rename(root.join("win.raw"), &aside).unwrap();
    let switched = OwnDisk {
        file: "win.vhd".into(),
        kind: DiskKind::Vhd,
        ..disk
    };
    let put = |facts: &Facts<'_>| facts.put_disk(&switched);
    site.store().write(Survives::Power, put).unwrap();
    site.restart();
    assert_eq!(site.names_in_disks(), ["win.vhd"]);
    assert_eq!(fs::read(root.join("win.vhd")).unwrap(), b"whole");
}

#[test]
fn a_child_keeps_its_parent_from_being_written_and_removed() {
    let site = Site::new();
    let disk = written(&site, "base");
    let base = made(&site, site.convert_own_disk(&disk, DiskFormat::Vhd)).unwrap();
    let child = match site.create_own_disk_above(named("child"), None, &base) {
        Ok(child) => child,
        // Until the format can.
        Err(Error::Invalid(why)) if why.contains("cannot be made") => return,
        Err(error) => panic!("{error}"),
    };
    holds_what_was_written(&site, &child);
    let pc = site.new_machine("pc1", 1);
    assert!(site.assign_disk(&pc, &base).is_err());
    assert!(site.open_own_disk(&base, Access::ReadWrite).is_err());
    assert!(site.convert_own_disk(&base, DiskFormat::Raw).is_err());
    let refusal = site.remove_own_disk(base.id).unwrap_err().to_string();
    assert!(refusal.contains("disk child"), "{refusal}");
    site.assign_disk(&pc, &child).unwrap();
    assert!(
        site.create_own_disk_above(named("other"), None, &child)
            .is_err()
    );
}

#[test]
fn a_disk_that_another_came_to_stand_on_is_not_converted_any_more() {
    let site = Site::new();
    let disk = written(&site, "base");
    let base = made(&site, site.convert_own_disk(&disk, DiskFormat::Vhd)).unwrap();
    // The end of a conversion that had begun before the child was made.
    let converted = OwnDisk {
        file: "base.raw".into(),
        kind: DiskKind::Raw,
        ..base.clone()
    };
    fs::write(site.disks.unfinished_path(base.id), "converted").unwrap();
    let child = site
        .create_own_disk_above(named("child"), None, &base)
        .unwrap();
    let refusal = site.disks.switch(&base, &converted).unwrap_err();
    assert!(refusal.to_string().contains("child stands on"), "{refusal}");
    assert_eq!(site.names_in_disks(), ["base.vhd", "child.vhd"]);
    holds_what_was_written(&site, &child);
}

#[test]
fn nothing_comes_to_stand_on_a_disk_that_was_converted_meanwhile() {
    let site = Site::new();
    let disk = written(&site, "base");
    let base = made(&site, site.convert_own_disk(&disk, DiskFormat::Vhd)).unwrap();
    let child = site
        .disks
        .draft(named("child"), DiskKind::Vhd, Some(base.id));
    fs::write(site.disks.unfinished_path(child.id), "child").unwrap();
    made(&site, site.convert_own_disk(&base, DiskFormat::Raw)).unwrap();
    let refusal = site.disks.publish(&child, Some(&base)).unwrap_err();
    assert!(
        refusal.to_string().contains("changed meanwhile"),
        "{refusal}"
    );
    assert_eq!(site.names_in_disks(), ["base.raw"]);
}

#[test]
fn a_disk_grows_and_never_shrinks() {
    let site = Site::new();
    let disk = written(&site, "win");
    assert_eq!(
        site.resize_own_disk(&disk, 3 * GIB).unwrap(),
        Followed::NoGpt
    );
    assert_eq!(site.own_disk_size(&disk).unwrap(), Some(3 * GIB));
    holds_what_was_written(&site, &disk);
    let refusal = site.resize_own_disk(&disk, GIB).unwrap_err().to_string();
    assert!(refusal.contains("not shrink"), "{refusal}");
    let vhd = made(&site, site.convert_own_disk(&disk, DiskFormat::Vhd)).unwrap();
    site.resize_own_disk(&vhd, 5 * GIB).unwrap();
    assert_eq!(site.own_disk_size(&vhd).unwrap(), Some(5 * GIB));
    holds_what_was_written(&site, &vhd);
    let open = site.open_own_disk(&vhd, Access::ReadWrite).unwrap();
    let refusal = site.resize_own_disk(&vhd, 6 * GIB);
    assert!(matches!(refusal, Err(Error::Conflict(_))), "{refusal:?}");
    drop(open);
}

#[test]
fn a_stream_becomes_a_disk() {
    let site = Site::new();
    let mut spool = site.spool("standard input", Becomes::Disk).unwrap();
    spool.write(&vec![7; 1 << 20]).unwrap();
    spool.finish().unwrap();
    let origin = Origin::Stream(spool);
    let import = site.import_own_disk(named("new"), DiskFormat::Vhdx, origin);
    let disk = made(&site, import).unwrap();
    let open = site.open_own_disk(&disk, Access::ReadOnly).unwrap();
    let mut seen = vec![0; 1 << 20];
    open.read(0, &mut seen).unwrap();
    assert!(seen == vec![7; 1 << 20]);
    let left = fs::read_dir(site.data_path().join("images")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn a_stream_that_is_no_disk_is_refused_by_the_name_people_know() {
    let site = Site::new();
    for (bytes, what) in [(&b"vhdxfile"[..], "header"), (b"", "empty"), (b"x", "512")] {
        let mut spool = site.spool("standard input", Becomes::Disk).unwrap();
        spool.write(bytes).unwrap();
        spool.finish().unwrap();
        let origin = Origin::Stream(spool);
        let import = site.import_own_disk(named("new"), DiskFormat::Raw, origin);
        let refusal = import.unwrap_err().to_string();
        assert!(
            refusal.contains("standard input") && refusal.contains(what),
            "{refusal}"
        );
        assert!(!refusal.contains(".tmp"), "{refusal}");
    }
}

#[test]
fn a_compressed_stream_is_refused_with_the_command_it_was_sent_by() {
    let site = Site::new();
    let mut spool = site.spool("standard input", Becomes::Disk).unwrap();
    spool.write(b"\x1f\x8b\x08 and more of it").unwrap();
    let refusal = spool.finish().unwrap_err().to_string();
    assert!(
        refusal.contains("`zcat FILE.gz | diskless disk import NAME -`"),
        "{refusal}"
    );
}

#[test]
fn a_disk_that_its_format_cannot_hold_is_refused_by_its_name() {
    let site = Site::new();
    let source = site.directory().join("large.raw");
    fs::File::create(&source)
        .unwrap()
        .set_len(2041 << 30)
        .unwrap();
    let import = site.import_own_disk(named("large"), DiskFormat::Vhd, Origin::File(source));
    let imported = made(&site, import).unwrap_err();
    let created = site.create_own_disk(named("large"), DiskFormat::Vhd, 2041 << 30);
    for refusal in [imported, created.unwrap_err().to_string()] {
        assert!(
            refusal.starts_with("disk large cannot be made: a VHD holds up to 2040 GiB"),
            "{refusal}"
        );
    }
    assert_eq!(site.names_in_disks(), Vec::<String>::new());
}

#[test]
fn blocks_of_4096_bytes_are_kept_or_the_copy_is_refused() {
    let site = Site::new();
    let source = site.directory().join("a.vhdx");
    let new = NewDisk {
        format: NewFormat::VhdxDynamic,
        size_bytes: 12 << 20,
        logical_block_bytes: 4096,
    };
    drop(disk::create(&source, &new).unwrap());
    for format in [DiskFormat::Raw, DiskFormat::Vhd, DiskFormat::VhdFixed] {
        let origin = Origin::File(source.clone());
        let refusal = site.import_own_disk(named("a"), format, origin);
        let refusal = refusal.unwrap_err().to_string();
        assert!(
            refusal.contains("a.vhdx has blocks of 4096") && refusal.contains("--format vhdx"),
            "{refusal}"
        );
    }
    let import = site.import_own_disk(named("a"), DiskFormat::Vhdx, Origin::File(source));
    let disk = made(&site, import).unwrap();
    let open = site.open_own_disk(&disk, Access::ReadOnly).unwrap();
    assert_eq!(open.geometry().logical_block_bytes, 4096);
    drop(open);
    let refusal = made(&site, site.convert_own_disk(&disk, DiskFormat::Raw)).unwrap_err();
    assert!(refusal.contains("blocks of 4096"), "{refusal}");
}

/// Who writes a disk may write the copy of a dynamic disk's footer at its
/// front, and the one at its end may be lost.
#[test]
fn a_fixed_vhd_stays_one_whatever_is_written_to_it() {
    let mut site = Site::new();
    let small = |name, format| site.create_own_disk(named(name), format, 4 << 20).unwrap();
    let fixed = small("fixed", DiskFormat::VhdFixed);
    let dynamic = small("dynamic", DiskFormat::Vhd);
    let front = fs::read(site.own_disk_path(&dynamic)).unwrap();
    let open = site.open_own_disk(&fixed, Access::ReadWrite).unwrap();
    open.write(0, &front).unwrap();
    drop(open);
    let path = site.own_disk_path(&fixed);
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_len(4 << 20).unwrap();
    site.restart();
    let fixed = site.own_disk("fixed").unwrap();
    assert_eq!(fixed.kind, DiskKind::VhdFixed);
    let refusal = site.open_own_disk(&fixed, Access::ReadOnly);
    assert!(matches!(refusal, Err(Error::Invalid(_))), "believed");
}
