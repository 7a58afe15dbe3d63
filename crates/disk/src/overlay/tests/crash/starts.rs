//! Overlays that are created or begun afresh while the world ends.

use std::io;
use std::sync::atomic::AtomicUsize;

use super::*;

#[test]
fn a_reset_can_be_interrupted_at_each_step() {
    for mode in [OverlayMode::Keep, OverlayMode::Reset] {
        let site = site(mode);
        site.write(0, 30).unwrap();
        site.flush().unwrap();
        site.write(40, 30).unwrap();
        let before = site.recorder.moment();
        let new = site.disk().reset(2).unwrap();
        assert!(sectors(&new)[0] == sector_of(IMAGE, 0));
        let old = site.disk();
        assert!(matches!(old.write(0, &[1; 512]), Err(DiskError::Failed(_))));
        assert!(matches!(old.flush(), Err(DiskError::Failed(_))));
        site.started(new, before);
        site.write(100, 8).unwrap();
        site.flush().unwrap();
        for moment in before..=site.recorder.moment() {
            site.lose_power_variously(moment, 17, 3);
        }
    }
}

#[test]
fn a_process_that_dies_in_a_reset_leaves_the_old_overlay_or_the_new_one() {
    for mode in [OverlayMode::Keep, OverlayMode::Reset] {
        for moment in 0.. {
            let site = site(mode);
            site.write(0, 30).unwrap();
            let left = AtomicUsize::new(moment);
            site.recorder.set_hook(move |_, _| {
                let before = left.load(Ordering::Relaxed);
                left.store(before.saturating_sub(1), Ordering::Relaxed);
                match before {
                    0 => Err(io::Error::other("dead")),
                    _ => Ok(()),
                }
            });
            let answer = site.disk().reset(2).map(drop);
            site.recorder.clear_hook();
            site.reopen().unwrap();
            let found = site.disk();
            let stamp = match found.generation() {
                1 => 1,
                _ => IMAGE,
            };
            assert!(sectors(&found)[0] == sector_of(stamp, 0), "step {moment}");
            // Whichever it was is there after a loss of power too.
            for seed in 0..2 {
                let left = scratch();
                let mut dice = Dice(seed);
                let now = site.recorder.moment();
                let mut fate = || seed > 0 && dice.below(2) == 0;
                site.recorder.remake(now, left.path(), &mut fate);
                let files = site.files.in_another_boot();
                let dir = left.path().join("ov");
                let again = Store::open(files, &dir, image(), Caching::WriteBack).unwrap();
                assert_eq!(again.generation(), found.generation(), "step {moment}");
            }
            if answer.is_ok() {
                assert_eq!(found.generation(), 2);
                // Removing the old layer is no part of the answer.
                if moment > 60 {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_create_that_is_interrupted_leaves_no_half_overlay() {
    let site = site(OverlayMode::Keep);
    for moment in 0..site.recorder.moment() {
        for seed in 0..6 {
            let left = scratch();
            let mut dice = Dice(seed << 8 | moment as u64);
            site.recorder
                .remake(moment, left.path(), &mut || dice.below(2) == 0);
            let dir = left.path().join("ov");
            let files = site.files.in_another_boot();
            store::sweep(&files, left.path()).unwrap();
            if dir.exists() {
                Store::open(files, &dir, image(), Caching::WriteBack).unwrap();
            } else {
                let mode = OverlayMode::Keep;
                Store::create(files, &dir, image(), mode, 1, Caching::WriteBack).unwrap();
            }
        }
    }
}

#[test]
fn a_process_that_dies_in_a_create_leaves_all_or_nothing() {
    for moment in 0..60 {
        let home = scratch();
        let recorder = Recorder::new(home.path());
        let files = Files::real().unwrap().recorded_by(&recorder);
        let left = AtomicUsize::new(moment);
        recorder.set_hook(move |_, _| {
            let before = left.load(Ordering::Relaxed);
            left.store(before.saturating_sub(1), Ordering::Relaxed);
            match before {
                0 => Err(io::Error::other("dead")),
                _ => Ok(()),
            }
        });
        let dir = home.path().join("ov");
        let caching = Caching::WriteBack;
        let create = || Store::create(files.clone(), &dir, image(), OverlayMode::Keep, 1, caching);
        let _ = create().map(drop);
        recorder.clear_hook();
        store::sweep(&files, home.path()).unwrap();
        let store = match dir.exists() {
            true => Store::open(files.clone(), &dir, image(), caching).unwrap(),
            false => create().unwrap(),
        };
        let overlay = Overlay::over(store);
        overlay.write(0, &[0xee; 512]).unwrap();
        overlay.flush().unwrap();
        let left = scratch();
        recorder.remake(recorder.moment(), left.path(), &mut || false);
        let files = files.in_another_boot();
        let found = Store::open(files, &left.path().join("ov"), image(), caching).unwrap();
        assert!(sectors(&Overlay::over(found)) == sectors(&overlay));
    }
}
