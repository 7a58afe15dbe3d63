//! The overlay as its users see it.

use super::*;
use crate::Ram;
use crate::contract::Subject;

/// An odd size: the last block is short.
const SIZE: u64 = (1 << 20) + 3 * 512;

fn image_bytes() -> Vec<u8> {
    (0..SIZE).map(|at| (at / 512 % 251) as u8 + 1).collect()
}

fn image() -> (SharedDisk, BaseId) {
    let disk = Ram::with_contents(image_bytes()).read_only();
    (Arc::new(disk), base_id(1))
}

fn base_id(version: u8) -> BaseId {
    BaseId {
        uuid: [version; 16],
        sha256: [7; 32],
        size_bytes: SIZE,
    }
}

struct Site {
    home: tempfile::TempDir,
    count: std::cell::Cell<u32>,
}

impl Site {
    fn new() -> Site {
        Site {
            home: tempfile::tempdir().unwrap(),
            count: Default::default(),
        }
    }

    fn dir(&self) -> std::path::PathBuf {
        self.home
            .path()
            .join(format!("overlay{}", self.count.get()))
    }

    fn create(&self, mode: OverlayMode, caching: Caching) -> Overlay {
        self.count.set(self.count.get() + 1);
        let (disk, id) = image();
        Overlay::create(&self.dir(), disk, id, mode, 1, caching).unwrap()
    }

    fn open(&self) -> Overlay {
        self.try_open().unwrap()
    }

    fn try_open(&self) -> Result<Overlay, OpenError> {
        let (disk, id) = image();
        Overlay::open(&self.dir(), disk, id, Caching::WriteBack)
    }
}

fn contents(disk: &dyn Disk) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn a_keep_overlay_keeps_the_contract() {
    let site = Site::new();
    Subject::new(|| Arc::new(site.create(OverlayMode::Keep, Caching::WriteBack)))
        .reopened_by(|| Arc::new(site.open()))
        .check();
}

#[test]
fn a_reset_overlay_keeps_the_contract() {
    let site = Site::new();
    Subject::new(|| Arc::new(site.create(OverlayMode::Reset, Caching::WriteBack)))
        .reopened_by(|| Arc::new(site.open()))
        .check();
}
