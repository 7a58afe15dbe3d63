//! Proof of the two promises for any disk that writes through
//! [`Files`](crate::files::Files): a workload under a recorder, and the states
//! that a loss of power or a death of the process may leave of it.
//!
//! Power loss: flushed is a subset of visible is a subset of written, in every
//! sector. Process death: what was answered is there.

use std::path::Path;

use crate::files::Files;
use crate::{Disk, DiskError, OpenError};

mod faults;
mod formats;
mod history;
mod site;
mod states;
mod workload;

pub(crate) use faults::{BROKEN, FULL, fail_everywhere};
pub(crate) use history::{IMAGE, SECTOR, ZEROS, sector_of};
pub(crate) use site::{Found, Site, is_sync_of, scratch};
use workload::{die_at, work, work_together};
pub(crate) use workload::{die_everywhere, meanwhile};

/// A kind of disk that is put to the proof.
pub(crate) trait Subject: Clone + Send + Sync + 'static {
    /// What it opens as.
    type Disk: Disk + 'static;

    /// The sectors that are worked on, in pieces that do not touch; all others
    /// stay as they are.
    fn places(&self) -> Vec<std::ops::Range<usize>>;

    /// Makes it below `root`, an empty directory, durably under its name.
    fn create(&self, files: &Files, root: &Path) -> Result<Self::Disk, OpenError>;

    /// Opens what lies below `root`.
    fn open(&self, files: &Files, root: &Path) -> Result<Self::Disk, OpenError>;

    /// Who is found in a sector that nobody wrote: [`IMAGE`] or [`ZEROS`].
    fn untouched(&self) -> u32;

    /// Whether a loss of power takes everything ([`crate::Durability::Volatile`]).
    fn is_volatile(&self) -> bool {
        false
    }

    /// How often it was begun afresh, on purpose.
    fn epoch(&self, disk: &Self::Disk) -> u64 {
        let _ = disk;
        0
    }

    /// One step of work that only this kind of disk can do.
    fn act(&self, site: &Site<Self>, dice: &mut Dice) -> Result<(), DiskError> {
        let _ = dice;
        site.flush()
    }

    /// The orderly end.
    fn close(&self, disk: &Self::Disk) -> Result<(), DiskError> {
        disk.flush()
    }

    /// Whether it may refuse a write for want of room, at any time.
    fn has_quota(&self) -> bool {
        false
    }

    /// Whether a write can be answered while a flush waits for a sync.
    fn takes_writes_in_a_flush(&self) -> bool {
        false
    }

    /// Holds the structures of what lies below `root`, and is closed, against
    /// each other.
    fn check(&self, root: &Path) -> Result<(), String> {
        let _ = root;
        Ok(())
    }

    /// What else must be true of a disk found after a death of the process.
    fn judge_death(&self, site: &Site<Self>) -> Result<(), String> {
        let _ = site;
        Ok(())
    }

    /// What else must be true of a disk found in the same boot after a sync of
    /// one of its files failed; `lost` says that answered writes are gone.
    fn judge_failed_sync(&self, site: &Site<Self>, lost: bool) -> Result<(), String> {
        let _ = (site, lost);
        Ok(())
    }

    /// What else must be true of a disk found after a loss of power before
    /// event `moment`; `lost` says that answered writes are gone.
    fn judge(
        &self,
        site: &Site<Self>,
        found: &Found<Self>,
        moment: usize,
        lost: bool,
    ) -> Result<(), String> {
        let _ = (site, found, moment, lost);
        Ok(())
    }
}

/// Random numbers that are the same every time (SplitMix64).
#[derive(Clone)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % limit as u64).unwrap()
    }
}
