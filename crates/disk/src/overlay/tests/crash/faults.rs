//! Syncs that fail, space that runs out, damage.

use super::*;
use crate::tests::crash::{BROKEN, FULL};

#[test]
fn an_overlay_that_is_refused_space_says_so_and_goes_on() {
    fail_everywhere(&OverlayOf(OverlayMode::Keep), FULL, 1, 40, 1);
    fail_everywhere(&OverlayOf(OverlayMode::Reset), FULL, 2, 40, 2);
}

#[test]
fn an_overlay_on_a_broken_medium_fails_rather_than_lies() {
    fail_everywhere(&OverlayOf(OverlayMode::Keep), BROKEN, 1, 40, 1);
    fail_everywhere(&OverlayOf(OverlayMode::Reset), BROKEN, 2, 40, 2);
}

#[test]
fn a_failed_sync_is_a_failed_overlay_for_good() {
    for target in ["data", "log"] {
        let site = site(OverlayMode::Keep);
        site.write(0, 8).unwrap();
        site.flush().unwrap();
        site.write(16, 8).unwrap();
        site.recorder.set_hook(move |op, name| match op {
            Op::Sync(_) if name.starts_with(target) => Err(rustix::io::Errno::IO.into()),
            _ => Ok(()),
        });
        assert!(
            matches!(site.flush(), Err(DiskError::Failed(_))),
            "{target}"
        );
        site.recorder.clear_hook();
        let failed = |answer| matches!(answer, Err(DiskError::Failed(_)));
        assert!(failed(site.flush()), "retried, fine");
        assert!(failed(site.write(0, 1)));
        assert!(failed(site.unmap(0, 8)));
        assert!(failed(site.disk().settle()));
        // What is in the page cache can still be read.
        assert!(site.holds(16, 2));
    }
}

#[test]
fn lost_writeback_fails_a_reset_overlay_at_its_next_flush() {
    for below_a_point in [false, true] {
        let site = site(OverlayMode::Reset);
        site.write(0, 8).unwrap();
        if below_a_point {
            let note = Note {
                id: PointId([1; 16]),
                created: 1,
                automatic: false,
                comment: String::new(),
            };
            site.disk().point(note).unwrap();
        }
        site.recorder.set_hook(|op, _| match op {
            Op::WritebackError => Err(rustix::io::Errno::IO.into()),
            _ => Ok(()),
        });
        assert!(matches!(site.flush(), Err(DiskError::Failed(_))));
        site.recorder.clear_hook();
        assert!(matches!(site.write(0, 1), Err(DiskError::Failed(_))));
    }
}

#[test]
fn no_space_is_said_and_passes() {
    for target in ["data", "log"] {
        let site = site(OverlayMode::Keep);
        site.write(0, 8).unwrap();
        site.flush().unwrap();
        site.recorder.set_hook(move |op, name| match op {
            Op::Write(..) if name.starts_with(target) => Err(rustix::io::Errno::NOSPC.into()),
            _ => Ok(()),
        });
        let answer = site.write(80, 8).and_then(|()| site.flush());
        assert!(matches!(answer, Err(DiskError::NoSpace(_))), "{target}");
        site.recorder.clear_hook();
        site.write(80, 8).unwrap();
        site.flush().unwrap();
        let found = site.lose_power(site.recorder.moment(), &mut || false);
        let newest = site.history().newest();
        assert!(found.holds(80, newest), "{target}");
    }
}

#[test]
fn a_checkpoint_without_space_leaves_the_log_in_charge() {
    let site = site(OverlayMode::Keep);
    site.write(0, 8).unwrap();
    site.flush().unwrap();
    site.recorder.set_hook(move |op, name| match op {
        Op::Reserve(..) if name.starts_with("log") => Err(rustix::io::Errno::NOSPC.into()),
        _ => Ok(()),
    });
    for round in 0..60 {
        site.write(round * 5 % 300, 3).unwrap();
        site.unmap((round * 7 % 39) * 8, 8).unwrap();
        site.flush().unwrap();
    }
    site.recorder.clear_hook();
    site.lose_power_variously(site.recorder.moment(), 1, 3);
}

#[test]
fn damage_in_a_checkpoint_or_a_log_is_corrupt_not_old_data() {
    for (file, at) in [("map", 0), ("map", 4096), ("map", 8192), ("log", 4096 + 40)] {
        let site = site(OverlayMode::Keep);
        for round in 0..5 {
            site.write(round * 20, 8).unwrap();
            site.flush().unwrap();
            if round == 0 {
                // The first flush of an opening writes a checkpoint.
                site.reopen().unwrap();
            }
        }
        let left = scratch();
        let moment = site.recorder.moment();
        site.recorder.remake(moment, left.path(), &mut || false);
        let dir = left.path().join("ov");
        let sequence = newest_map(&dir).unwrap();
        let path = dir.join(format!("000/{file}.{sequence}"));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let files = site.files.in_another_boot();
        let answer = Store::open(files, &dir, image(), Caching::WriteBack);
        assert!(
            matches!(answer, Err(OpenError::Disk(DiskError::Corrupt(_)))),
            "{file} at {at}"
        );
    }
}
