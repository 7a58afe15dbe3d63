//! Proof of the two promises for the overlay: the general one
//! ([`crate::tests::crash`]), and its own races one by one.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use super::super::*;
use crate::Ram;
use crate::files::recorder::{Op, Recorder};
use crate::tests::crash::{
    Dice, Found, IMAGE, SECTOR, Site, Subject, ZEROS, die_everywhere, fail_everywhere, is_sync_of,
    scratch, sector_of,
};

mod faults;
pub(crate) mod layered;
mod losses;
mod races;
mod starts;

/// 40 blocks of 4 KiB and a short one.
const SECTORS: usize = 40 * 8 + 3;

fn image() -> Below {
    static DISK: OnceLock<SharedDisk> = OnceLock::new();
    let disk = DISK.get_or_init(|| {
        let bytes = (0..SECTORS).flat_map(|at| sector_of(IMAGE, at)).collect();
        Arc::new(Ram::with_contents(bytes).read_only())
    });
    let id = BaseId {
        uuid: [1; 16],
        sha256: [2; 32],
        size_bytes: (SECTORS * SECTOR) as u64,
    };
    Below::new(disk.clone(), id).unwrap()
}

/// An overlay of some mode, in the directory `ov`.
#[derive(Clone)]
pub(crate) struct OverlayOf(pub(crate) OverlayMode);

impl Subject for OverlayOf {
    type Disk = Overlay;

    fn places(&self) -> Vec<std::ops::Range<usize>> {
        std::iter::once(0..SECTORS).collect()
    }

    fn create(&self, files: &Files, root: &Path) -> Result<Overlay, OpenError> {
        let (dir, caching) = (root.join("ov"), Caching::WriteBack);
        Store::create(files.clone(), &dir, image(), self.0, 1, caching).map(Overlay::over)
    }

    fn open(&self, files: &Files, root: &Path) -> Result<Overlay, OpenError> {
        let (dir, caching) = (root.join("ov"), Caching::WriteBack);
        Store::open(files.clone(), &dir, image(), caching).map(Overlay::over)
    }

    fn untouched(&self) -> u32 {
        IMAGE
    }

    fn is_volatile(&self) -> bool {
        self.0 == OverlayMode::Reset
    }

    fn takes_writes_in_a_flush(&self) -> bool {
        true
    }

    fn epoch(&self, overlay: &Overlay) -> u64 {
        overlay.generation()
    }

    fn act(&self, site: &Site<Self>, dice: &mut Dice) -> Result<(), DiskError> {
        let _ = dice;
        site.disk().settle()
    }

    fn close(&self, overlay: &Overlay) -> Result<(), DiskError> {
        overlay.close()
    }

    fn judge_death(&self, site: &Site<Self>) -> Result<(), String> {
        match site.disk().host_loss() {
            HostLoss::None => Ok(()),
            other => Err(format!("{other:?} of a host that lived on")),
        }
    }

    fn judge_failed_sync(&self, site: &Site<Self>, lost: bool) -> Result<(), String> {
        is_said(&site.disk(), lost)
    }

    fn judge(
        &self,
        _: &Site<Self>,
        found: &Found<Self>,
        _: usize,
        lost: bool,
    ) -> Result<(), String> {
        is_said(&found.disk, lost)
    }
}

/// Lost writes are never passed over in silence.
fn is_said(overlay: &Overlay, lost: bool) -> Result<(), String> {
    let said = overlay.host_loss() == HostLoss::LostWrites;
    match lost && !said {
        true => Err("answered writes are gone, and nobody says so".into()),
        false => Ok(()),
    }
}

type OverlaySite = Site<OverlayOf>;

fn site(mode: OverlayMode) -> Arc<OverlaySite> {
    Site::new(OverlayOf(mode))
}

impl OverlaySite {
    fn dir(&self) -> PathBuf {
        self.home.path().join("ov")
    }

    /// A write and a flush, so that there is a log.
    fn flush_once(&self) {
        self.write(300, 1).unwrap();
        self.flush().unwrap();
    }
}

fn sectors(overlay: &Overlay) -> Vec<[u8; SECTOR]> {
    let mut bytes = vec![0; SECTORS * SECTOR];
    overlay.read(0, &mut bytes).unwrap();
    bytes
        .chunks(SECTOR)
        .map(|s| s.try_into().unwrap())
        .collect()
}

#[test]
fn answered_is_there_after_a_death_at_any_step_of_a_keep_overlay() {
    for seed in 1..=3 {
        die_everywhere(&OverlayOf(OverlayMode::Keep), seed, 50, 5);
    }
}

#[test]
fn answered_is_there_after_a_death_at_any_step_of_a_reset_overlay() {
    die_everywhere(&OverlayOf(OverlayMode::Reset), 1, 60, 2);
}

fn newest_map(dir: &Path) -> Option<u64> {
    let names = std::fs::read_dir(dir.join("000")).unwrap();
    names
        .filter_map(|n| {
            n.unwrap()
                .file_name()
                .to_str()?
                .strip_prefix("map.")?
                .parse()
                .ok()
        })
        .max()
}
