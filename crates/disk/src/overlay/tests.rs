//! The overlay as its users see it.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

pub(crate) mod crash;
mod kill;
mod points;

use super::*;
use crate::contract::Subject;
use crate::{Ram, Raw};

/// An odd size: the last block is short.
const SIZE: u64 = (1 << 20) + 3 * 512;

fn base_id(version: u8) -> BaseId {
    BaseId {
        uuid: [version; 16],
        sha256: [7; 32],
        size_bytes: SIZE,
    }
}

/// A data directory with one image and any number of overlays.
struct Site {
    home: tempfile::TempDir,
    count: std::cell::Cell<u32>,
}

impl Site {
    fn new() -> Site {
        Site::at(tempfile::tempdir().unwrap())
    }

    /// Where a sync costs nothing, for those that make many.
    fn quick() -> Site {
        Site::at(crate::tests::crash::scratch())
    }

    fn at(home: tempfile::TempDir) -> Site {
        let site = Site {
            home,
            count: Default::default(),
        };
        std::fs::write(site.image_path(), Site::image_bytes()).unwrap();
        site
    }

    fn image_path(&self) -> PathBuf {
        self.home.path().join("disk.raw")
    }

    fn image_bytes() -> Vec<u8> {
        (0..SIZE).map(|at| (at / 512 % 251) as u8 + 1).collect()
    }

    fn image(&self) -> SharedDisk {
        Arc::new(Raw::open(&self.image_path(), Access::ReadOnly).unwrap())
    }

    /// Where the overlay made last lies.
    fn dir(&self) -> PathBuf {
        self.home
            .path()
            .join(format!("overlay{}", self.count.get()))
    }

    fn create(&self, mode: OverlayMode) -> Overlay {
        self.create_with(mode, Caching::WriteBack)
    }

    fn create_with(&self, mode: OverlayMode, caching: Caching) -> Overlay {
        self.count.set(self.count.get() + 1);
        Overlay::create(&self.dir(), self.image(), base_id(1), mode, 1, caching).unwrap()
    }

    fn open(&self) -> Overlay {
        self.try_open(base_id(1)).unwrap()
    }

    fn try_open(&self, id: BaseId) -> Result<Overlay, OpenError> {
        Overlay::open(&self.dir(), self.image(), id, Caching::WriteBack)
    }
}

fn byte(disk: &dyn Disk, offset: u64) -> u8 {
    let mut bytes = [0];
    disk.read(offset, &mut bytes).unwrap();
    bytes[0]
}

const BOTH: [OverlayMode; 2] = [OverlayMode::Reset, OverlayMode::Keep];

#[test]
fn a_keep_overlay_keeps_the_contract() {
    let site = Site::new();
    Subject::new(|| Arc::new(site.create(OverlayMode::Keep)))
        .reopened_by(|| Arc::new(site.open()))
        .check();
}

#[test]
fn a_reset_overlay_keeps_the_contract() {
    let site = Site::new();
    Subject::new(|| Arc::new(site.create(OverlayMode::Reset)))
        .reopened_by(|| Arc::new(site.open()))
        .check();
}

#[test]
fn an_overlay_sends_all_of_its_bytes_from_mappings() {
    let site = Site::new();
    let overlay = site.create(OverlayMode::Keep);
    overlay.write(8192, &[9; 8192]).unwrap();
    overlay.unmap(32768, 65536).unwrap();
    let mut segments = Vec::new();
    assert!(overlay.segments(0, SIZE, &mut segments).unwrap());
    assert!(crate::files::gather(&segments).unwrap()[8192..16384] == [9; 8192]);
    assert_eq!(
        segments.iter().map(crate::Segment::len).sum::<usize>() as u64,
        SIZE
    );
}

#[test]
fn extents_tell_the_image_the_overlay_and_the_holes_of_both() {
    use crate::Allocation::{Deallocated, Mapped};
    let site = Site::new();
    let overlay = site.create(OverlayMode::Keep);
    overlay.write(8192, &[9; 8192]).unwrap();
    overlay.unmap(32_768, 65_536).unwrap();
    let extent = |offset| {
        let found = overlay.extent(offset, SIZE - offset).unwrap();
        (found.bytes, found.allocation)
    };
    assert_eq!(extent(0), (8192, Mapped), "the image");
    assert_eq!(extent(9000), (16_384 - 9000, Mapped), "our own");
    assert_eq!(extent(32_768), (65_536, Deallocated));
    assert_eq!(extent(40_960), (57_344, Deallocated));
    assert_eq!(extent(98_304), (SIZE - 98_304, Mapped));
}

#[test]
fn a_write_leaves_the_golden_image_and_other_overlays_untouched() {
    let site = Site::new();
    for mode in BOTH {
        let one = site.create(mode);
        let other = site.create(mode);
        one.write(0, &vec![0xee; Site::image_bytes().len()])
            .unwrap();
        other.unmap(0, SIZE).unwrap();
        one.flush().unwrap();
        other.flush().unwrap();
        assert_eq!((byte(&one, 700), byte(&other, 700)), (0xee, 0));
        assert!(std::fs::read(site.image_path()).unwrap() == Site::image_bytes());
    }
}

#[test]
fn an_overlay_that_is_open_is_not_opened_twice() {
    let site = Site::new();
    let overlay = site.create(OverlayMode::Keep);
    let error = site.try_open(base_id(1)).err().unwrap();
    assert!(matches!(error, OpenError::InUse { .. }));
    assert!(error.to_string().contains("in use by another"), "{error}");
    assert!(matches!(
        Overlay::remove(&site.dir()),
        Err(OpenError::InUse { .. })
    ));
    overlay.close().unwrap();
    assert!(site.try_open(base_id(1)).is_err(), "until it is dropped");
    drop(overlay);
    site.open();
}

#[test]
fn an_overlay_is_not_opened_above_another_image() {
    let site = Site::new();
    drop(site.create(OverlayMode::Keep));
    let error = site.try_open(base_id(2)).err().unwrap();
    assert!(matches!(error, OpenError::OtherBase { .. }), "{error}");
    let mut changed = base_id(1);
    changed.sha256[31] = 0;
    assert!(matches!(
        site.try_open(changed),
        Err(OpenError::OtherBase { .. })
    ));
    let smaller: SharedDisk = Arc::new(Ram::new(4096));
    let answer = Overlay::open(&site.dir(), smaller, base_id(1), Caching::WriteBack);
    let error = answer.err().unwrap();
    assert!(error.to_string().contains("4096 bytes"), "{error}");
    site.open();
}

#[test]
fn what_is_there_is_not_created_and_what_is_not_there_not_opened() {
    let site = Site::new();
    drop(site.create(OverlayMode::Keep));
    let again = Overlay::create(
        &site.dir(),
        site.image(),
        base_id(1),
        OverlayMode::Keep,
        1,
        Caching::WriteBack,
    );
    assert!(matches!(again, Err(OpenError::Exists { .. })));
    Overlay::remove(&site.dir()).unwrap();
    assert!(!site.dir().exists());
    let missing = |error| matches!(error, Err(OpenError::Missing { .. }));
    assert!(missing(site.try_open(base_id(1)).map(drop)));
    assert!(missing(Overlay::remove(&site.dir())));
    assert!(missing(Overlay::inspect(&site.dir()).map(drop)));
}

#[test]
fn a_switch_empties_a_reset_overlay_and_keeps_a_keep_overlay() {
    let site = Site::new();
    for mode in BOTH {
        let old = site.create(mode);
        old.write(512, &[0xee; 512]).unwrap();
        let new = old.switch(2).unwrap();
        let expected = match mode {
            OverlayMode::Reset => 2,
            OverlayMode::Keep => 0xee,
        };
        assert_eq!(byte(&new, 600), expected);
        assert_eq!(new.generation(), 2);
        new.write(512, &[0xdd; 512]).unwrap();
        // The old generation can neither write nor flush any more.
        for answer in [
            old.write(0, &[1]),
            old.unmap(0, 4096),
            old.flush(),
            old.settle(),
            old.close(),
        ] {
            assert!(matches!(answer, Err(DiskError::Failed(_))));
        }
        assert!(old.switch(3).is_err());
        new.flush().unwrap();
        drop((old, new));
        let found = site.open();
        assert_eq!((byte(&found, 600), found.generation()), (0xdd, 2));
        assert_eq!(found.host_loss(), HostLoss::None);
        let layers = Overlay::inspect(&site.dir()).unwrap().layers;
        let kept = std::fs::read_dir(site.dir()).unwrap();
        let dirs = kept.filter(|e| e.as_ref().unwrap().path().is_dir()).count();
        assert_eq!(dirs, layers.len(), "the old layer is gone");
    }
}

#[test]
fn nobody_writes_through_the_old_handle_once_a_switch_has_returned() {
    let site = Site::new();
    for mode in BOTH {
        let old = site.create(mode);
        let answered = AtomicBool::new(false);
        let new = std::thread::scope(|scope| {
            for writer in 0..3_u64 {
                let (old, answered) = (&old, &answered);
                scope.spawn(move || {
                    for round in 0_u64.. {
                        let fill = u8::try_from(round % 200 + 50).unwrap();
                        let offset = (writer * 60 + round % 60) * 4096 + 512 * writer;
                        match old.write(offset, &[fill; 3000]) {
                            Ok(()) => answered.store(true, Ordering::Relaxed),
                            Err(DiskError::Failed(_)) => return,
                            Err(other) => panic!("{other}"),
                        }
                    }
                });
            }
            while !answered.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            let new = old.switch(2).unwrap();
            let mut before = vec![0; 1 << 20];
            new.read(0, &mut before).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
            let mut after = vec![0; 1 << 20];
            new.read(0, &mut after).unwrap();
            assert!(before == after);
            new
        });
        if mode == OverlayMode::Reset {
            assert_eq!(new.usage().unwrap().own_blocks, 0);
        }
    }
}

#[test]
fn a_restart_takes_another_version_of_another_size() {
    let site = Site::new();
    let overlay = site.create(OverlayMode::Reset);
    overlay.write(0, &[1; 4096]).unwrap();
    drop(overlay);
    let image: SharedDisk = Arc::new(Ram::with_contents(vec![3; 2 << 20]));
    let id = BaseId {
        size_bytes: 2 << 20,
        ..base_id(2)
    };
    let caching = Caching::WriteBack;
    let restarted = Overlay::restart(
        &site.dir(),
        image.clone(),
        id,
        OverlayMode::Keep,
        9,
        caching,
    )
    .unwrap();
    assert_eq!(byte(&restarted, 0), 3);
    restarted.write((2 << 20) - 1, &[4]).unwrap();
    drop(restarted);
    let summary = Overlay::inspect(&site.dir()).unwrap();
    assert_eq!(
        (summary.mode, summary.generation, summary.base),
        (OverlayMode::Keep, 9, id)
    );
    let found = Overlay::open(&site.dir(), image, id, caching).unwrap();
    assert_eq!(byte(&found, (2 << 20) - 1), 4);
}

#[test]
fn a_reset_of_a_keep_overlay_starts_afresh() {
    let site = Site::new();
    let old = site.create(OverlayMode::Keep);
    old.write(0, &[0xee; 9000]).unwrap();
    old.flush().unwrap();
    let new = old.reset(2).unwrap();
    assert_eq!(byte(&new, 0), 1);
    assert_eq!(new.usage().unwrap().own_blocks, 0);
    // Who still holds the old one reads what it held.
    assert_eq!(byte(&old, 0), 0xee);
}

#[test]
fn usage_counts_blocks_and_unmapped_ones_give_their_space_back() {
    let site = Site::new();
    for mode in BOTH {
        let overlay = site.create(mode);
        let before = overlay.usage().unwrap();
        assert_eq!((before.own_blocks, before.zero_blocks), (0, 0));
        overlay.write(100, &vec![1; 256 << 10]).unwrap();
        overlay.flush().unwrap();
        let full = overlay.usage().unwrap();
        assert_eq!((full.own_blocks, full.zero_blocks), (65, 0));
        overlay.unmap(0, 256 << 10).unwrap();
        overlay.flush().unwrap();
        let empty = overlay.usage().unwrap();
        assert_eq!((empty.own_blocks, empty.zero_blocks), (1, 64));
        let data = std::fs::File::options()
            .read(true)
            .write(true)
            .open(overlay.store.dir().join("000/data"))
            .unwrap();
        if crate::files::can_punch(&data) {
            data.sync_all().unwrap();
            assert!(data.metadata().unwrap().blocks() * 512 < 64 << 10);
        }
    }
}

#[test]
fn an_overlay_of_a_newer_version_is_left_to_it() {
    let site = Site::new();
    drop(site.create(OverlayMode::Keep));
    for name in ["head.a", "head.b"] {
        let path = site.dir().join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[8] = 3;
        let crc = crc32c::crc32c(&bytes[..4092]).to_le_bytes();
        bytes[4092..].copy_from_slice(&crc);
        std::fs::write(&path, bytes).unwrap();
    }
    let error = site.try_open(base_id(1)).err().unwrap();
    assert!(matches!(error, OpenError::Unsupported { .. }), "{error}");
}

#[test]
fn an_overlay_of_version_1_is_opened_and_goes_on() {
    let site = Site::new();
    for mode in BOTH {
        let overlay = site.create(mode);
        overlay.write(5000, &[9; 9000]).unwrap();
        overlay.close().unwrap();
        drop(overlay);
        for name in ["head.a", "head.b"] {
            let path = site.dir().join(name);
            let mut bytes = std::fs::read(&path).unwrap();
            // The version; nothing said of a fresh top; the layer's number.
            bytes[8] = 1;
            bytes[14] = 0;
            bytes[96..100].copy_from_slice(&0_u32.to_le_bytes());
            let crc = crc32c::crc32c(&bytes[..4092]).to_le_bytes();
            bytes[4092..].copy_from_slice(&crc);
            std::fs::write(&path, bytes).unwrap();
        }
        let overlay = site.open();
        assert_eq!((byte(&overlay, 5000), byte(&overlay, 700)), (9, 2));
        overlay.write(100_000, &[8; 700]).unwrap();
        overlay.flush().unwrap();
        drop(overlay);
        let overlay = site.open();
        assert_eq!((byte(&overlay, 5000), byte(&overlay, 100_000)), (9, 8));
    }
}

#[test]
fn a_torn_head_leaves_the_one_before_it() {
    let site = Site::new();
    let overlay = site.create(OverlayMode::Keep);
    overlay.write(0, &[0xee; 512]).unwrap();
    overlay.close().unwrap();
    drop(overlay);
    let sequence = Head::read(&site.dir()).unwrap().sequence;
    let newest = ["head.a", "head.b"][usize::from(sequence % 2 == 1)];
    let path = site.dir().join(newest);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100..600].fill(0xaa);
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(Head::read(&site.dir()).unwrap().sequence, sequence - 1);
    assert_eq!(byte(&site.open(), 0), 0xee);
}

#[test]
fn a_sweep_removes_what_was_left_halfway_and_nothing_else() {
    let site = Site::new();
    drop(site.create(OverlayMode::Keep));
    for left in ["a.new", "b.gone"] {
        std::fs::create_dir_all(site.home.path().join(left).join("000")).unwrap();
    }
    sweep(site.home.path()).unwrap();
    assert!(!site.home.path().join("a.new").exists());
    assert!(!site.home.path().join("b.gone").exists());
    site.open();
}

#[test]
fn modes_promise_what_they_keep() {
    let site = Site::new();
    for (mode, caching, promise) in [
        (OverlayMode::Reset, Caching::WriteBack, Durability::Volatile),
        (
            OverlayMode::Reset,
            Caching::WriteThrough,
            Durability::Volatile,
        ),
        (OverlayMode::Keep, Caching::WriteBack, Durability::WriteBack),
        (
            OverlayMode::Keep,
            Caching::WriteThrough,
            Durability::WriteThrough,
        ),
    ] {
        assert_eq!(site.create_with(mode, caching).durability(), promise);
    }
}
