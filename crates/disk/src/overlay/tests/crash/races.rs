//! The races between writes, flushes and punches, each a case of its own: it fails when its
//! guard is removed.

use super::*;

#[test]
fn a_late_punch_never_destroys_a_newer_write() {
    let site = site(OverlayMode::Keep);
    site.write(80, 16).unwrap();
    site.flush().unwrap();
    site.unmap(80, 16).unwrap();
    // The write comes once the unmap is on its way into the log, before the
    // hole is punched.
    site.interrupt(
        |op, name| is_sync_of(op, name, "log"),
        |site| site.write(80, 8).unwrap(),
    );
    site.flush().unwrap();
    site.recorder.clear_hook();
    let newest = site.history().newest();
    assert!(site.holds(80, newest));
    site.flush().unwrap();
    let moment = site.recorder.moment();
    let found = site.lose_power(moment, &mut || false);
    assert!(found.holds(80, newest));
    assert!(found.holds(88, ZEROS));
}

#[test]
fn a_hole_is_punched_only_once_the_log_says_zero() {
    let site = site(OverlayMode::Keep);
    site.write(80, 16).unwrap();
    site.flush().unwrap();
    site.unmap(80, 16).unwrap();
    let before = site.recorder.moment();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noted = seen.clone();
    site.recorder.set_hook(move |op, name| {
        let name = name.split('.').next().unwrap();
        let what = match op {
            Op::Write(..) => "write",
            Op::Sync(_) => "sync",
            Op::Punch(..) => "punch",
            _ => "other",
        };
        noted.lock().unwrap().push(format!("{what} {name}"));
        Ok(())
    });
    site.flush().unwrap();
    site.recorder.clear_hook();
    // The data was not written since it was synced last.
    let order = ["write log", "sync log", "punch data"];
    assert_eq!(*seen.lock().unwrap(), order);
    for moment in before..=site.recorder.moment() {
        site.lose_power_variously(moment, 5, 9);
    }
}

#[test]
fn a_write_through_overlay_has_flushed_what_it_answered() {
    let site = site(OverlayMode::Keep);
    let dir = site.home.path().join("through");
    let create = |caching| {
        let files = site.files.clone();
        Store::create(files, &dir, image(), OverlayMode::Keep, 1, caching).map(Overlay::over)
    };
    let overlay = create(Caching::WriteThrough).unwrap();
    overlay.write(0, &[0xee; 700]).unwrap();
    overlay.unmap(8192, 4096).unwrap();
    let before = sectors(&overlay);
    let left = scratch();
    let moment = site.recorder.moment();
    site.recorder.remake(moment, left.path(), &mut || false);
    let files = site.files.in_another_boot();
    let dir = left.path().join("through");
    let found = Store::open(files, &dir, image(), Caching::WriteThrough).unwrap();
    assert!(sectors(&Overlay::over(found)) == before);
}

#[test]
fn a_record_names_only_writes_that_ended_before_the_data_was_synced() {
    let site = site(OverlayMode::Keep);
    // The first flush writes a checkpoint, the next ones records.
    site.flush_once();
    site.write(0, 8).unwrap();
    // One write comes after the sync of the data began.
    site.interrupt(
        |op, name| is_sync_of(op, name, "data"),
        |site| site.write(160, 8).unwrap(),
    );
    site.flush().unwrap();
    let found = site.lose_power(site.recorder.moment(), &mut || false);
    assert!(found.holds(0, 2));
    assert!(found.holds(160, IMAGE));
}

#[test]
fn a_write_that_is_under_way_is_in_no_record() {
    let site = site(OverlayMode::Keep);
    // The first flush writes a checkpoint, the next ones records.
    site.flush_once();
    site.write(0, 8).unwrap();
    // A whole flush comes while this write has not reached its file.
    site.interrupt(
        |op, name| matches!(op, Op::Write(..)) && name == "data",
        |site| site.flush().unwrap(),
    );
    site.write(160, 8).unwrap();
    let found = site.lose_power(site.recorder.moment(), &mut || false);
    assert!(found.holds(0, 2));
    assert!(found.holds(160, IMAGE));
}

#[test]
fn a_checkpoint_speaks_only_of_data_that_is_durable() {
    let site = site(OverlayMode::Keep);
    site.write(0, 8).unwrap();
    site.reopen().unwrap();
    // The first flush after a death writes a checkpoint of all marks; a write
    // comes after the marks were taken, before the data is synced.
    site.interrupt(
        |op, name| is_sync_of(op, name, "data"),
        |site| site.write(160, 8).unwrap(),
    );
    site.flush().unwrap();
    site.recorder.clear_hook();
    site.lose_power(site.recorder.moment(), &mut || false);
    site.flush().unwrap();
    let found = site.lose_power(site.recorder.moment(), &mut || false);
    assert!(found.holds(160, 2));
}

#[test]
fn live_marks_written_back_early_are_void_after_a_power_loss() {
    let site = site(OverlayMode::Keep);
    site.write(0, 64).unwrap();
    // Nothing was flushed; the marks reached the disk all the same.
    let found = site.lose_power(site.recorder.moment(), &mut || false);
    assert!(found.holds(0, IMAGE));
}

#[test]
fn a_torn_tail_of_the_log_is_ignored() {
    let site = site(OverlayMode::Keep);
    site.write(0, 1).unwrap();
    site.flush().unwrap();
    // Every other block: a record of several sectors, in a log that is there.
    site.unmap(8, 8).unwrap();
    site.flush().unwrap();
    for block in (1..40).step_by(2) {
        site.write(block * 8, 8).unwrap();
    }
    for block in (2..40).step_by(2) {
        site.unmap(block * 8, 8).unwrap();
    }
    let before = site.recorder.moment();
    site.flush().unwrap();
    for moment in before..=site.recorder.moment() {
        site.lose_power_variously(moment, 3, 12);
    }
}

#[test]
fn a_checkpoint_can_be_interrupted_at_each_step() {
    let site = site(OverlayMode::Keep);
    let mut checkpoints = 0;
    for round in 0..60 {
        site.write(round * 5 % SECTORS, 3).unwrap();
        site.unmap((round * 7 % 39) * 8, 8).unwrap();
        let before = site.recorder.moment();
        let map = || newest_map(&site.dir());
        let old = map();
        site.flush().unwrap();
        if map() != old {
            checkpoints += 1;
            let fates = if checkpoints < 3 { 2 } else { 0 };
            for moment in before..=site.recorder.moment() {
                site.lose_power_variously(moment, 11, fates);
            }
        }
    }
    assert!(checkpoints >= 3, "{checkpoints} checkpoints seen");
}
