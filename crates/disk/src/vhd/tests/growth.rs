//! VHDs made larger.

use super::super::footer::Footer;
use super::super::grow::grow_on;
use super::*;
use crate::files::recorder::Recorder;

fn grown(path: &Path, size_bytes: u64) -> Result<(), OpenError> {
    crate::grow(path, &Opening::new(Access::ReadOnly), size_bytes)
}

#[test]
fn what_a_disk_holds_stays_and_what_is_new_is_zeros() {
    for format in [NewFormat::VhdFixed, NewFormat::VhdDynamic] {
        let kinds = Kinds::of(format);
        let disk = kinds.fresh();
        disk.write(1000, &[1; 5000]).unwrap();
        disk.write(SIZE_BYTES - 512, &[2; 512]).unwrap();
        let mut model = contents(&*disk);
        drop(disk);
        // Within a sector of the table, past it, and past what a table at the
        // end of the file has room for.
        for size_bytes in [SIZE_BYTES + 512, 20 << 20, 600 << 20, (3 << 30) + 512] {
            grown(&kinds.path(), size_bytes).unwrap();
            let disk = kinds.again(Access::ReadWrite);
            assert_eq!(disk.geometry().size_bytes, size_bytes);
            let mut seen = vec![1; 22 << 20];
            let length = seen.len().min(usize::try_from(size_bytes).unwrap());
            disk.read(0, &mut seen[..length]).unwrap();
            assert!(seen[..model.len()] == model);
            assert!(seen[model.len()..length].iter().all(|&b| b == 0));
            // All of it can be written.
            disk.write(size_bytes - 512, &[3; 512]).unwrap();
            if size_bytes < 22 << 20 {
                model = contents(&*disk);
            }
        }
        let description = crate::describe(&kinds.path(), &Opening::new(Access::ReadOnly)).unwrap();
        assert!(description.notes.is_empty());
        let refusal = grown(&kinds.path(), 1 << 20).unwrap_err().to_string();
        assert!(refusal.contains("cannot grow"), "{refusal}");
        let refusal = grown(&kinds.path(), (2040 << 30) + 512).unwrap_err();
        assert!(refusal.to_string().contains("VHDX"), "{refusal}");
        let _open = kinds.again(Access::ReadOnly);
        let refusal = grown(&kinds.path(), 4 << 30);
        assert!(matches!(refusal, Err(OpenError::InUse { .. })));
    }
}

/// Others write behind the end of a disk whose size is no multiple of a block,
/// or end the file right there.
#[test]
fn what_lies_behind_the_disk_in_its_last_block_does_not_show() {
    for is_short in [false, true] {
        let kinds = Kinds::of(NewFormat::VhdDynamic);
        let disk = kinds.fresh();
        disk.write(SIZE_BYTES - 512, &[2; 512]).unwrap();
        let model = contents(&*disk);
        drop(disk);
        let mut bytes = fs::read(kinds.path()).unwrap();
        let sector = u32::from_be_bytes(bytes[1536 + 4 * 4..][..4].try_into().unwrap());
        let behind = usize::try_from(sector).unwrap() * 512 + 512 + (1 << 20) + 512 * 3;
        bytes[behind..][..8192].fill(7);
        if is_short {
            let footer = bytes[..FOOTER_BYTES].to_vec();
            bytes.truncate(behind);
            bytes.extend(footer);
        }
        fs::write(kinds.path(), bytes).unwrap();
        grown(&kinds.path(), 12 << 20).unwrap();
        let disk = kinds.again(Access::ReadWrite);
        let seen = contents(&*disk);
        assert!(seen[..model.len()] == model);
        assert!(seen[model.len()..].iter().all(|&b| b == 0), "{is_short}");
        disk.write((10 << 20) - 512, &[3; 1024]).unwrap();
        drop(disk);
        assert_eq!(contents(&*kinds.again(Access::ReadOnly))[(10 << 20) - 1], 3);
    }
}

/// One that goes by the geometry would not see the new size.
#[test]
fn a_disk_of_qemus_has_the_size_that_was_asked_for() {
    let kinds = Kinds::of(NewFormat::VhdFixed);
    drop(kinds.fresh());
    let mut footer = Footer::new(Kind::Fixed, 1_079_296, 0, [1; 16]);
    footer.creator = *b"qemu";
    patch(&kinds.path(), SIZE_BYTES, &footer.emit());
    let disk = kinds.again(Access::ReadWrite);
    assert_eq!(disk.geometry().size_bytes, 1_079_296);
    drop(disk);
    // What lay behind the disk does not show in it.
    patch(&kinds.path(), 2 << 20, &[7; 512]);
    grown(&kinds.path(), 10 << 20).unwrap();
    let disk = kinds.again(Access::ReadWrite);
    assert_eq!(disk.geometry().size_bytes, 10 << 20);
    assert!(contents(&*disk).iter().all(|&b| b == 0));
}

#[test]
fn a_differencing_disk_becomes_larger_than_its_parent() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.vhd");
    let child = dir.path().join("child.vhd");
    let disk = make(&base, NewFormat::VhdDynamic, 3 << 20).unwrap();
    disk.write((3 << 20) - 1000, &[5; 1000]).unwrap();
    drop(disk);
    drop(make(&child, NewFormat::VhdDifferencing { parent: base }, 0).unwrap());
    grown(&child, 9 << 20).unwrap();
    let disk = opened(&child, Access::ReadWrite).unwrap();
    disk.write((3 << 20) + 100, &[6; 100]).unwrap();
    let seen = contents(&disk);
    assert_eq!(seen.len(), 9 << 20);
    assert_eq!(seen.iter().filter(|&&b| b == 5).count(), 1000);
    assert_eq!(seen.iter().filter(|&&b| b == 6).count(), 100);
    assert_eq!(seen.iter().filter(|&&b| b == 0).count(), (9 << 20) - 1100);
    let mut segments = Vec::new();
    assert!(
        disk.segments((3 << 20) - 4096, 1 << 16, &mut segments)
            .unwrap()
    );
}

/// Power lost before any step: the disk is of the old size or the new one,
/// holds what it held, and can be grown again.
#[test]
fn a_growth_that_was_cut_off_leaves_the_old_size_or_the_new_one() {
    const OLD_BYTES: u64 = 640 << 10;
    // Of a dynamic one, more than the table has room for where it is.
    let kinds = [
        (NewFormat::VhdFixed, 700 << 10),
        (NewFormat::VhdDynamic, 1200 << 20),
    ];
    for (format, new_bytes) in kinds {
        let home = crate::tests::crash::scratch();
        let recorder = Recorder::new(home.path());
        let files = Files::real().unwrap().recorded_by(&recorder);
        let new = NewDisk {
            format,
            size_bytes: OLD_BYTES,
            logical_block_bytes: 512,
        };
        let path = home.path().join("disk.vhd");
        let disk = create_on(&files, &path, &new).unwrap();
        disk.write(OLD_BYTES - 700, &[4; 700]).unwrap();
        drop(disk);
        // What the end of the last session left is durable, as after a while.
        files.open_file(&path).unwrap().sync_data().unwrap();
        let before = recorder.moment();
        grow_on(&files, &path, &Opening::new(Access::ReadWrite), new_bytes).unwrap();
        let mut model = vec![0; usize::try_from(OLD_BYTES).unwrap() + (60 << 10)];
        model[usize::try_from(OLD_BYTES).unwrap() - 700..][..700].fill(4);
        for moment in before..=recorder.moment() {
            for fates in 0..12 {
                let left = crate::tests::crash::scratch();
                let mut dice = crate::tests::crash::Dice(fates);
                recorder.remake(moment, left.path(), &mut || match fates {
                    0 => false,
                    1 => true,
                    _ => dice.below(2) == 0,
                });
                let path = left.path().join("disk.vhd");
                let disk = opened(&path, Access::ReadWrite).unwrap();
                let size_bytes = disk.geometry().size_bytes;
                assert!([OLD_BYTES, new_bytes].contains(&size_bytes));
                let length = usize::try_from(size_bytes).unwrap().min(model.len());
                let mut seen = vec![9; length];
                disk.read(0, &mut seen).unwrap();
                assert!(seen == model[..length], "event {moment}, fates {fates}");
                drop(disk);
                grown(&path, new_bytes).unwrap();
                let disk = opened(&path, Access::ReadOnly).unwrap();
                let mut seen = vec![9; model.len()];
                disk.read(0, &mut seen).unwrap();
                assert!(seen == model, "event {moment}, fates {fates}, again");
            }
        }
    }
}
