//! VHDX files made larger.

use super::super::grow::grow_on;
use super::*;
use crate::files::recorder::Recorder;
use crate::tests::crash::{Dice, scratch};

const OLD_BYTES: u64 = 5 * MIB + MIB / 2;

fn grown(site: &Site, size_bytes: u64) -> Result<(), OpenError> {
    let opening = Opening::new(Access::ReadOnly);
    crate::grow(&site.path("disk.vhdx"), &opening, size_bytes)
}

#[test]
fn what_a_disk_holds_stays_and_what_is_new_is_zeros() {
    type Kind = fn(&Site) -> NewFormat;
    let kinds: [(Kind, u64); 3] = [
        (|_| NewFormat::VhdxDynamic, 300 << 30),
        (|site| site.parent(512), 300 << 30),
        (|_| NewFormat::VhdxFixed, 40 << 20),
    ];
    for (kind, largest) in kinds {
        let site = Site::new();
        let format = kind(&site);
        let disk = site.create("disk.vhdx", format, OLD_BYTES, 512);
        disk.write(1000, &[1; 5000]).unwrap();
        disk.write(OLD_BYTES - 512, &[2; 512]).unwrap();
        let mut model = contents(&disk);
        let describe = disk.describe().name;
        // What lies behind the end in the last block does not show.
        if let State::Full(at) | State::Partial(at) = disk.bat.state(&disk.layout, 5) {
            let file = &disk.source.file;
            file.write_all_at(&[9; 4096], at + MIB / 2 + 512).unwrap();
        }
        drop(disk);
        // Within the last block, within the table, past it: with blocks of
        // 1 MiB, 128 GiB need another.
        for size_bytes in [OLD_BYTES + 8192, 20 << 20, largest] {
            grown(&site, size_bytes).unwrap();
            check(&site.path("disk.vhdx")).unwrap();
            let disk = site.open("disk.vhdx", Access::ReadWrite);
            assert_eq!(disk.geometry().size_bytes, size_bytes);
            assert_eq!(disk.describe().name, describe);
            let length = size_bytes.min(20 << 20);
            model.resize(index(length), 0);
            let mut seen = vec![9; index(length)];
            disk.read(0, &mut seen).unwrap();
            assert!(seen == model, "{describe} of {size_bytes}");
            disk.write(size_bytes - 512, &[3; 512]).unwrap();
            if size_bytes == length {
                model[index(length) - 512..].fill(3);
            }
        }
        for (size_bytes, why) in [(MIB, "more than"), ((64 << 40) + 512, "64 TiB")] {
            let refusal = grown(&site, size_bytes).unwrap_err().to_string();
            assert!(
                refusal.contains("cannot grow") && refusal.contains(why),
                "{refusal}"
            );
        }
        let _open = site.open("disk.vhdx", Access::ReadOnly);
        assert!(matches!(
            grown(&site, 400 << 30),
            Err(OpenError::InUse { .. })
        ));
    }
}

/// Power lost before any step: the disk is of the old size or the new one,
/// holds what it held, and can be grown again.
#[test]
fn a_growth_that_was_cut_off_leaves_the_old_size_or_the_new_one() {
    const NEW_BYTES: u64 = 130 << 30;
    let home = scratch();
    let recorder = Recorder::new(home.path());
    let mut site = Site::new();
    site.files = Files::real().unwrap().recorded_by(&recorder);
    site.dir = home;
    let disk = site.create("disk.vhdx", NewFormat::VhdxDynamic, OLD_BYTES, 512);
    disk.write(OLD_BYTES - 700, &[4; 700]).unwrap();
    disk.close().unwrap();
    drop(disk);
    let before = recorder.moment();
    let path = site.path("disk.vhdx");
    grow_on(
        &site.files,
        &path,
        &Opening::new(Access::ReadWrite),
        NEW_BYTES,
    )
    .unwrap();
    let mut model = vec![0; 6 << 20];
    model[index(OLD_BYTES) - 700..][..700].fill(4);
    let mut sizes = [0, 0];
    for moment in before..=recorder.moment() {
        for fates in 0..3 {
            let left = Site::new();
            let mut dice = Dice(fates);
            recorder.remake(moment, left.dir.path(), &mut || match fates {
                0 => false,
                1 => true,
                _ => dice.below(2) == 0,
            });
            let left = Site {
                files: left.files.in_another_boot(),
                dir: left.dir,
            };
            let disk = left.open("disk.vhdx", Access::ReadWrite);
            let size_bytes = disk.geometry().size_bytes;
            assert!([OLD_BYTES, NEW_BYTES].contains(&size_bytes));
            sizes[usize::from(size_bytes == NEW_BYTES)] += 1;
            drop(disk);
            check(&left.path("disk.vhdx")).unwrap();
            grown(&left, NEW_BYTES).unwrap();
            let disk = left.open("disk.vhdx", Access::ReadOnly);
            let mut seen = vec![9; model.len()];
            disk.read(0, &mut seen).unwrap();
            assert!(seen == model, "event {moment}, fates {fates}");
        }
    }
    assert!(sizes[0] > 0 && sizes[1] > 0, "{sizes:?}");
}
