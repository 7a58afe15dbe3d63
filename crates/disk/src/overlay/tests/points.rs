//! Restore points: what they keep, what stands on them, and how they go.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use super::*;

fn note(number: u8) -> Note {
    Note {
        id: PointId([number; 16]),
        created: 1_800_000_000 + u64::from(number),
        automatic: number >= 100,
        comment: format!("number {number}"),
    }
}

fn contents(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

impl Site {
    fn view(&self, number: u8) -> Result<View, OpenError> {
        let at = Some(PointId([number; 16]));
        Overlay::view(&self.dir(), at, self.image(), base_id(1))
    }

    fn points(&self) -> Vec<u8> {
        let points = Overlay::points(&self.dir()).unwrap();
        points.iter().map(|point| point.note.id.0[0]).collect()
    }

    /// A branch beside the overlay made last, opened.
    fn branch(&self, number: u8, mode: OverlayMode) -> (PathBuf, Overlay) {
        let dir = self.home.path().join(format!("branch{number}"));
        let at = PointId([number; 16]);
        Overlay::branch(&self.dir(), at, &dir, mode, 7).unwrap();
        let overlay = Overlay::open(&dir, self.image(), base_id(1), Caching::WriteBack).unwrap();
        (dir, overlay)
    }
}

/// Layers a directory holds.
fn layers_in(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).unwrap();
    entries
        .filter(|e| e.as_ref().unwrap().path().is_dir())
        .count()
}

#[test]
fn an_overlay_with_points_keeps_the_contract() {
    let site = Site::quick();
    for mode in BOTH {
        Subject::new(|| {
            let overlay = site.create(mode);
            for number in 1..5 {
                overlay
                    .write(u64::from(number) * 9000, &[number; 20_000])
                    .unwrap();
                overlay.unmap(u64::from(number) * 40_960, 16_384).unwrap();
                overlay.point(note(number)).unwrap();
            }
            Arc::new(overlay)
        })
        .reopened_by(|| Arc::new(site.open()))
        .check();
    }
}

#[test]
fn a_view_keeps_the_contract_of_a_disk_that_is_only_read() {
    let site = Site::new();
    let overlay = site.create(OverlayMode::Keep);
    overlay.write(5000, &[9; 30_000]).unwrap();
    overlay.unmap(100_000, 50_000).unwrap();
    overlay.point(note(1)).unwrap();
    Subject::new(|| Arc::new(site.view(1).unwrap())).check();
    drop(overlay);
    let whole = || Overlay::view(&site.dir(), None, site.image(), base_id(1)).unwrap();
    Subject::new(|| Arc::new(whole())).check();
}

/// Random work with points, all of it held against plain bytes.
#[test]
fn every_point_shows_what_was_written_before_it_whatever_becomes_of_the_others() {
    for mode in BOTH {
        for seed in 1..=3_u64 {
            let site = Site::quick();
            let mut overlay = site.create(mode);
            let mut model = Site::image_bytes();
            let mut kept: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
            let mut dice = seed;
            let mut below = |limit: u64| {
                dice = dice
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (dice >> 33) % limit
            };
            for number in 1..=60_u8 {
                for _ in 0..below(5) {
                    let offset = below(SIZE);
                    let bytes = (1 + below(30_000)).min(SIZE - offset);
                    let range =
                        usize::try_from(offset).unwrap()..usize::try_from(offset + bytes).unwrap();
                    if below(3) == 0 {
                        overlay.unmap(offset, bytes).unwrap();
                        model[range].fill(0);
                    } else {
                        overlay.write(offset, &vec![number; range.len()]).unwrap();
                        model[range].fill(number);
                    }
                }
                match below(8) {
                    0..=2 => {
                        overlay.point(note(number)).unwrap();
                        kept.insert(number, model.clone());
                    }
                    3..=4 if !kept.is_empty() => {
                        let nth = usize::try_from(below(kept.len() as u64)).unwrap();
                        let victim = *kept.keys().nth(nth).unwrap();
                        overlay.drop_points(&[PointId([victim; 16])]).unwrap();
                        kept.remove(&victim);
                    }
                    5 => {
                        drop(overlay);
                        overlay = site.open();
                    }
                    6 => overlay.tend().unwrap(),
                    _ => overlay.flush().unwrap(),
                }
                assert!(contents(&overlay) == model, "{mode:?} {seed} {number}");
            }
            assert!(kept.keys().copied().eq(site.points()));
            for (number, expected) in &kept {
                let view = site.view(*number).unwrap();
                assert!(
                    contents(&view) == *expected,
                    "{mode:?} {seed} point {number}"
                );
            }
            // Merged as far as it goes: one layer a point, and what is above.
            overlay.tend().unwrap();
            let layers = Overlay::inspect(&site.dir()).unwrap().layers.len();
            assert!(layers <= kept.len() + 2, "{layers} layers");
            assert!(contents(&overlay) == model);
        }
    }
}

#[test]
fn a_point_says_what_was_noted_and_what_it_takes() {
    let site = Site::new();
    let overlay = site.create(OverlayMode::Keep);
    assert!(!overlay.has_changed());
    overlay.write(0, &vec![1; 256 << 10]).unwrap();
    assert!(overlay.has_changed());
    let made = overlay.point(note(1)).unwrap();
    assert!(!overlay.has_changed());
    overlay.point(note(2)).unwrap();
    let points = Overlay::points(&site.dir()).unwrap();
    let notes: Vec<_> = points.iter().map(|point| point.note.clone()).collect();
    assert_eq!(notes, [note(1), note(2)]);
    assert_eq!(made.note, note(1));
    assert!((256 << 10..2 << 20).contains(&points[0].stored_bytes));
    assert!(points[1].stored_bytes < 8192, "nothing was written for it");
    overlay.tend().unwrap();
    let sealed = Overlay::points(&site.dir()).unwrap();
    assert!(sealed[0].stored_bytes < made.stored_bytes);
    let mut long = note(3);
    long.comment = "x".repeat(COMMENT_BYTES_MAX + 1);
    let error = overlay.point(long).err().unwrap();
    assert!(matches!(error, OpenError::TooMany { .. }), "{error}");
}

#[test]
fn a_point_past_the_limit_is_refused_with_words_and_harms_nothing() {
    let site = Site::quick();
    let overlay = site.create(OverlayMode::Reset);
    for number in 0..POINTS_MAX {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(number as u64).to_le_bytes());
        let mut note = note(1);
        note.id = PointId(id);
        if number % 16 == 0 {
            overlay.write(number as u64 * 4096, &[5; 4096]).unwrap();
        }
        overlay.point(note).unwrap();
    }
    let error = overlay.point(note(1)).err().unwrap();
    assert!(
        error.to_string().contains("at most 256 restore points"),
        "{error}"
    );
    drop(overlay);
    let overlay = site.open();
    assert_eq!(byte(&overlay, 240 * 4096), 5);
    assert_eq!(byte(&overlay, 16 * 4096), 5);
}

#[test]
fn a_branch_and_its_source_go_their_own_ways() {
    let site = Site::new();
    for (number, from, to) in [
        (1, OverlayMode::Keep, OverlayMode::Keep),
        (2, OverlayMode::Keep, OverlayMode::Reset),
        (3, OverlayMode::Reset, OverlayMode::Keep),
    ] {
        let source = site.create(from);
        source.write(0, &[1; 9000]).unwrap();
        source.point(note(9)).unwrap();
        source.write(4096, &[2; 4096]).unwrap();
        source.point(note(number)).unwrap();
        source.write(0, &[3; 20_000]).unwrap();
        let (dir, branch) = site.branch(number, to);
        assert_eq!((branch.generation(), branch.mode()), (7, to));
        assert_eq!((byte(&branch, 0), byte(&branch, 5000)), (1, 2));
        branch.write(8192, &[4; 4096]).unwrap();
        // The source gives up what the branch stands on, and is then removed.
        let points: Vec<_> = [9, number].map(|n| PointId([n; 16])).into();
        source.drop_points(&points).unwrap();
        assert!(site.points().is_empty());
        assert_eq!((byte(&source, 0), byte(&source, 8192)), (3, 3));
        drop(source);
        assert_eq!(byte(&site.open(), 0), 3);
        Overlay::remove(&site.dir()).unwrap();
        branch.flush().unwrap();
        drop(branch);
        let caching = Caching::WriteBack;
        let branch = Overlay::open(&dir, site.image(), base_id(1), caching).unwrap();
        assert_eq!((byte(&branch, 0), byte(&branch, 5000)), (1, 2));
        assert_eq!((byte(&branch, 8192), byte(&branch, 20_000)), (4, 40));
        let kept = Overlay::points(&dir).unwrap();
        assert_eq!(kept.len(), 2, "the points it came with");
        // Alone now, it may merge.
        branch.drop_points(&points).unwrap();
        assert_eq!(layers_in(&dir), 1);
        assert_eq!((byte(&branch, 0), byte(&branch, 5000)), (1, 2));
        assert_eq!(byte(&branch, 8192), 4);
    }
}

#[test]
fn layers_that_others_stand_on_are_never_written() {
    let site = Site::new();
    let source = site.create(OverlayMode::Keep);
    for number in 1..=4 {
        source.write(4096, &[number; 40_000]).unwrap();
        source.unmap(u64::from(number) * 4096, 4096).unwrap();
        source.point(note(number)).unwrap();
    }
    let before: Vec<_> = (1..=4).map(|n| contents(&site.view(n).unwrap())).collect();
    let (_, branch) = site.branch(2, OverlayMode::Keep);
    let view = site.view(3).unwrap();
    // By their files, whatever becomes of their names.
    let file = |n: u32| std::fs::File::open(site.dir().join(format!("{n:03}/data"))).unwrap();
    let files: Vec<_> = (0..3).map(file).collect();
    let data = |file: &std::fs::File| {
        let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
        std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, 0).unwrap();
        bytes
    };
    let shared: Vec<_> = files.iter().map(data).collect();
    assert_eq!(
        std::fs::metadata(site.dir().join("000/data"))
            .unwrap()
            .nlink(),
        3
    );
    let all: Vec<_> = (1..=4).map(|n| PointId([n; 16])).collect();
    source.drop_points(&all).unwrap();
    source.write(0, &vec![9; 100_000]).unwrap();
    assert!(contents(&branch) == before[1]);
    assert!(contents(&view) == before[2]);
    assert!(files.iter().map(data).eq(shared), "a layer was written");
    drop((branch, view));
    Overlay::remove(&site.home.path().join("branch2")).unwrap();
    source.tend().unwrap();
    assert!(layers_in(&site.dir()) <= 2, "alone again, all is merged");
    assert_eq!(byte(&source, 0), 9);
}

#[test]
fn what_one_overlay_still_sends_from_a_layer_no_other_writes() {
    let site = Site::quick();
    let overlay = site.create(OverlayMode::Keep);
    overlay.write(0, &[1; 4096]).unwrap();
    overlay.point(note(1)).unwrap();
    let (_, branch) = site.branch(1, OverlayMode::Keep);
    let mut segments = Vec::new();
    assert!(overlay.segments(0, 4096, &mut segments).unwrap());
    // The source gives the layer up, so that the branch is alone with it.
    overlay.write(8192, &[2; 4096]).unwrap();
    overlay.point(note(2)).unwrap();
    overlay.drop_points(&[PointId([1; 16])]).unwrap();
    assert_eq!(site.points(), [2]);
    branch.write(0, &[3; 4096]).unwrap();
    branch.point(note(3)).unwrap();
    branch.drop_points(&[PointId([1; 16])]).unwrap();
    branch.tend().unwrap();
    assert!(crate::files::gather(&segments).unwrap() == [1; 4096]);
    assert_eq!(byte(&branch, 0), 3);
    assert_eq!(byte(&overlay, 0), 1);
    // Nobody sends from it any more.
    drop(segments);
    drop(overlay);
    let layers = |overlay: &Overlay| overlay.store.disk.stack().frozen().len();
    let before = layers(&branch);
    branch.tend().unwrap();
    assert_eq!((before, layers(&branch)), (2, 1));
    assert_eq!(byte(&branch, 0), 3);
}

#[test]
fn readers_and_writers_go_on_while_points_come_and_go() {
    let site = Site::quick();
    let overlay = Arc::new(site.create(OverlayMode::Keep));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (overlay, stop) = (&overlay, &stop);
        let mut workers = Vec::new();
        for worker in 0..2_u64 {
            workers.push(scope.spawn(move || {
                for round in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return round;
                    }
                    let fill = u8::try_from(round % 200 + 50).unwrap();
                    let offset = (worker * 100 + round % 97) * 4096 + 1024 * (round % 4);
                    overlay.write(offset, &[fill; 3000]).unwrap();
                    let mut seen = [0; 3000];
                    overlay.read(offset, &mut seen).unwrap();
                    assert!(seen == [fill; 3000], "round {round}");
                    if round % 50 == 0 {
                        let mut segments = Vec::new();
                        assert!(overlay.segments(offset, 3000, &mut segments).unwrap());
                        assert!(crate::files::gather(&segments).unwrap() == [fill; 3000]);
                    }
                }
                0
            }));
        }
        for number in 1..=40_u8 {
            overlay.point(note(number)).unwrap();
            if number % 3 == 0 {
                let old = [number - 2, number - 1].map(|n| PointId([n; 16]));
                overlay.drop_points(&old).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            assert!(worker.join().unwrap() > 0);
        }
    });
    let before = contents(&*overlay);
    overlay.flush().unwrap();
    drop(overlay);
    assert!(contents(&site.open()) == before);
}

#[test]
fn a_view_tells_where_its_bytes_come_from_and_leaves_nothing_behind() {
    let site = Site::new();
    let overlay = site.create(OverlayMode::Keep);
    overlay.write(8192, &[9; 8192]).unwrap();
    overlay.point(note(1)).unwrap();
    overlay.unmap(12_288, 8192).unwrap();
    overlay.point(note(2)).unwrap();
    overlay.write(0, &[1; 4096]).unwrap();
    let view = site.view(2).unwrap();
    let origin = |at| view.origin(at, SIZE - at).unwrap();
    assert_eq!(origin(0), (Origin::Image, 8192));
    assert_eq!(origin(8192), (Origin::Overlay, 4096));
    assert_eq!(origin(12_288), (Origin::Zeros, 8192));
    assert_eq!(origin(20_480), (Origin::Image, SIZE - 20_480));
    // A sweep lets be what is looked at, and removes what was left.
    sweep(site.home.path()).unwrap();
    assert_eq!(byte(&view, 8192), 9);
    let names = || std::fs::read_dir(site.home.path()).unwrap().count();
    let with_view = names();
    drop(view);
    assert_eq!(names(), with_view - 1);
    let error = site.view(3).err().unwrap();
    assert!(matches!(error, OpenError::NoPoint { .. }), "{error}");
    let whole = Overlay::view(&site.dir(), None, site.image(), base_id(1));
    assert!(matches!(whole.err().unwrap(), OpenError::InUse { .. }));
    assert_eq!(names(), with_view - 1);
}

#[test]
fn a_new_overlay_takes_two_heads_and_nothing_more() {
    let site = Site::new();
    for mode in BOTH {
        let overlay = site.create(mode);
        drop(overlay);
        let overlay = site.open();
        assert_eq!(byte(&overlay, 700), 2);
        overlay.flush().unwrap();
        overlay.settle().unwrap();
        overlay.close().unwrap();
        drop(overlay);
        let mut names: Vec<_> = std::fs::read_dir(site.dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["head.a", "head.b"]);
    }
}

/// Blocks that can be written before there is no room, one at a time.
fn room_of(overlay: &Overlay, from: u64) -> u64 {
    (0..)
        .take_while(
            |block| match overlay.write((from + block) * 4096, &[9; 4096]) {
                Ok(()) => true,
                Err(DiskError::NoSpace(_)) => false,
                Err(other) => panic!("{other}"),
            },
        )
        .count() as u64
}

#[test]
fn a_quota_counts_all_layers_and_ends_with_no_space_never_with_a_lost_overlay() {
    let site = Site::new();
    for mode in BOTH {
        let overlay = site.create(mode);
        overlay.write(0, &[1; 4096 * 10]).unwrap();
        overlay.flush().unwrap();
        overlay.set_quota(Some(4096 * 20)).unwrap();
        assert_eq!(overlay.space().unwrap().free_bytes, 4096 * 10);
        assert_eq!(room_of(&overlay, 100), 10);
        // All or nothing, and what is ours already can be written.
        assert!(overlay.write(108 * 4096, &[2; 4096 * 4]).is_err());
        assert_eq!(byte(&overlay, 108 * 4096), 9);
        overlay.write(0, &[3; 4096 * 10]).unwrap();
        overlay.unmap(4096 * 4, 4096 * 6).unwrap();
        overlay.flush().unwrap();
        assert_eq!(room_of(&overlay, 120), 6);
        // A point frees nothing; another process counts the same.
        overlay.point(note(1)).unwrap();
        assert_eq!(room_of(&overlay, 0), 0);
        drop(overlay);
        let overlay = site.open();
        assert_eq!(overlay.quota(), Some(4096 * 20));
        assert_eq!(
            Overlay::inspect(&site.dir()).unwrap().quota_bytes,
            Some(4096 * 20)
        );
        assert_eq!(room_of(&overlay, 0), 0);
        assert_eq!(overlay.space().unwrap().free_bytes, 0);
        overlay.set_quota(Some(4096 * 22)).unwrap();
        assert_eq!(room_of(&overlay, 0), 2);
        // Merged, the block that both layers held counts once.
        overlay.drop_points(&[PointId([1; 16])]).unwrap();
        assert_eq!(room_of(&overlay, 140), 2);
        overlay.set_quota(None).unwrap();
        overlay.write(0, &vec![1; 1 << 20]).unwrap();
        assert!(overlay.set_quota(Some(0)).is_err());
    }
}

#[test]
fn what_an_unmap_gives_back_at_the_quota_is_room_for_its_own_ends() {
    for mode in BOTH {
        let site = Site::new();
        let overlay = site.create(mode);
        let image = contents(&overlay);
        overlay.set_quota(Some(4096 * 8)).unwrap();
        overlay.write(4096, &[1; 4096 * 8]).unwrap();
        assert!(overlay.write(0, &[1; 512]).is_err(), "it is full");
        overlay.unmap(512, 4096 * 9).unwrap();
        let mut bytes = vec![0; 4096 * 10];
        overlay.read(0, &mut bytes).unwrap();
        assert!(bytes[512..4096 * 9 + 512].iter().all(|&b| b == 0));
        assert_eq!(bytes[..512], image[..512]);
        assert_eq!(bytes[4096 * 9 + 512..], image[4096 * 9 + 512..4096 * 10]);
        // Ends that find no room leave what lies between them unmapped.
        overlay.set_quota(Some(4096 * 2)).unwrap();
        overlay.unmap(512, 1024).unwrap();
        assert!(overlay.unmap(4096 * 12 + 512, 4096 * 3).is_err());
        overlay.read(4096 * 13, &mut bytes[..8192]).unwrap();
        assert!(bytes[..8192].iter().all(|&b| b == 0));
    }
}

#[test]
fn a_damaged_note_hides_no_other_point_and_keeps_its_layer() {
    let site = Site::new();
    let overlay = site.create(OverlayMode::Keep);
    for number in 1..=4 {
        let offset = u64::from(number) * 8192;
        overlay.write(offset, &[number; 4096]).unwrap();
        overlay.point(note(number)).unwrap();
    }
    let before = contents(&overlay);
    let path = site.dir().join("001/point");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(site.points(), [1, 3, 4]);
    assert!(contents(&site.view(4).unwrap()) == before);
    assert!(matches!(site.view(2), Err(OpenError::NoPoint { .. })));
    // Thinning goes on around it.
    overlay.drop_points(&[note(1).id, note(3).id]).unwrap();
    assert_eq!(site.points(), [4]);
    assert_eq!(layers_in(&site.dir()), 3, "what cannot be named is kept");
    assert!(contents(&overlay) == before);
    drop(overlay);
    assert!(contents(&site.open()) == before);
}

#[test]
fn the_reserve_of_the_pool_is_kept_and_told() {
    let site = Site::new();
    let overlay = site.create(OverlayMode::Keep);
    overlay.write(0, &[1; 4096]).unwrap();
    let free = overlay.space().unwrap().free_bytes;
    overlay.set_reserve(free / 2);
    assert!(overlay.space().unwrap().free_bytes <= free / 2 + (free >> 4));
    overlay.write(8192, &[1; 4096]).unwrap();
    overlay.set_reserve(u64::MAX);
    assert_eq!(overlay.space().unwrap().free_bytes, 0);
    let error = overlay.write(16_384, &[1; 4096]).err().unwrap();
    assert!(error.to_string().contains("in reserve"), "{error}");
    overlay.write(8192, &[2; 4096]).unwrap();
    overlay.flush().unwrap();
    overlay.set_reserve(0);
    overlay.write(16_384, &[1; 4096]).unwrap();
}

#[test]
fn a_merge_ends_when_its_overlay_is_closed_and_goes_on_at_the_next_opening() {
    let site = Site::quick();
    let recorder = crate::files::recorder::Recorder::new(site.home.path());
    let files = Files::real().unwrap().recorded_by(&recorder);
    let dir = site.home.path().join("closed");
    let below = || Below::new(site.image(), base_id(1)).unwrap();
    let (mode, caching) = (OverlayMode::Keep, Caching::WriteBack);
    let store = Store::create(files.clone(), &dir, below(), mode, 1, caching);
    let overlay = Arc::new(Overlay::over(store.unwrap()));
    for number in 1..=2 {
        for block in 0..40 {
            overlay.write(block * 8192, &[number; 4096]).unwrap();
        }
        overlay.point(note(number)).unwrap();
    }
    overlay.tend().unwrap();
    let before = contents(&*overlay);
    // Closed at the first piece that is copied.
    let closing = Arc::downgrade(&overlay);
    recorder.set_hook(move |op, name| {
        if let (crate::files::recorder::Op::Write(..), "data") = (op, name)
            && let Some(overlay) = closing.upgrade()
        {
            overlay.retired.store(true, Ordering::Release);
        }
        Ok(())
    });
    let answer = overlay.drop_points(&[PointId([1; 16])]);
    assert!(answer.is_err(), "it went on to the end");
    recorder.clear_hook();
    assert_eq!(layers_in(&dir), 2);
    drop(overlay);
    let overlay = Overlay::over(Store::open(files, &dir, below(), caching).unwrap());
    assert!(contents(&overlay) == before);
    overlay.tend().unwrap();
    assert_eq!(layers_in(&dir), 1);
    assert!(contents(&overlay) == before);
}

#[test]
fn a_merge_gives_way_when_it_is_told_and_is_done_later() {
    let site = Site::new();
    let overlay = site.create(OverlayMode::Keep);
    for point in 1..=2 {
        for block in (0..40).step_by(4) {
            overlay.write(block * 4096, &[point; 4096]).unwrap();
        }
        overlay.write(u64::from(point) * 4096, &[9; 4096]).unwrap();
        overlay.point(note(point)).unwrap();
    }
    let before = contents(&overlay);
    overlay.forget_points(&[note(1).id]).unwrap();
    assert_eq!(site.points(), [2], "it was given up at once");
    let layers = layers_in(&site.dir());
    for pieces in 0..4 {
        let asked = std::cell::Cell::new(0);
        let go_on = || asked.replace(asked.get() + 1) < pieces;
        overlay.tend_while(&go_on).unwrap();
        assert_eq!(asked.get(), pieces + 1);
        assert_eq!(layers_in(&site.dir()), layers, "merged all the same");
        assert!(contents(&overlay) == before);
    }
    overlay.tend().unwrap();
    assert_eq!(layers_in(&site.dir()), layers - 1);
    assert!(contents(&overlay) == before);
    assert!(contents(&site.view(2).unwrap()) == before);
}

#[test]
fn frozen_layers_are_read_right_when_no_more_files_may_be_held_open() {
    let site = Site::quick();
    let overlay = site.create(OverlayMode::Keep);
    for number in 1..=6_u8 {
        let offset = u64::from(number) * 16_384;
        overlay.write(offset, &[number; 9000]).unwrap();
        overlay.point(note(number)).unwrap();
    }
    let expected = contents(&overlay);
    drop(overlay);
    let overlay = site.open();
    let is_mapped = || {
        let mut segments = Vec::new();
        let mapped = overlay.segments(16_384, 4096, &mut segments).unwrap();
        assert_eq!(mapped, !segments.is_empty());
        mapped
    };
    let held = data::take_all_files();
    assert!(contents(&overlay) == expected);
    assert!(!is_mapped(), "nothing is sent from a file that is not held");
    drop(held);
    assert!(contents(&overlay) == expected);
    assert!(is_mapped());
}
