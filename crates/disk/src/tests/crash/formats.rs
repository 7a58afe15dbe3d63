//! Disk files of the formats of others, put to the proof.

use std::iter::once;
use std::ops::Range;
use std::path::Path;

use super::{Dice, Site, Subject, ZEROS};
use crate::files::Files;
use crate::vhd::{self, Vhd};
use crate::{Access, DiskError, NewDisk, NewFormat, OpenError, Opening};

/// Sectors on either side of a border between two blocks.
const NEAR_SECTORS: usize = 12;

/// The beginning of a disk, some of its borders between blocks, and its end.
fn places_of(sectors: usize, block_sectors: usize, borders: &[usize]) -> Vec<Range<usize>> {
    let near = |border: &usize| {
        let at = border * block_sectors;
        at - NEAR_SECTORS..at + NEAR_SECTORS
    };
    once(0..40)
        .chain(borders.iter().map(near))
        .chain(once(sectors - NEAR_SECTORS..sectors))
        .collect()
}

/// Opens the disk again, sometimes in an orderly way.
fn reopen<S: Subject>(site: &Site<S>, dice: &mut Dice) -> Result<(), DiskError> {
    if dice.below(2) == 0 {
        site.flush()?;
    }
    site.reopen()
        .map_err(|error| DiskError::Failed(error.to_string()))
}

/// A VHD of some kind, in the file `disk.vhd`.
#[derive(Clone)]
pub(crate) struct VhdOf(pub(crate) NewFormat);

impl VhdOf {
    /// 12 blocks and a short one.
    const SECTORS: usize = 12 * Self::BLOCK_SECTORS + 333;
    const BLOCK_SECTORS: usize = (2 << 20) / 512;
    const OLD_FOOTER_SECTOR: usize = ((1 << 20) - (12 << 10)) / 512;
    const NAME: &str = "disk.vhd";
}

impl Subject for VhdOf {
    type Disk = Vhd;

    fn places(&self) -> Vec<Range<usize>> {
        let mut places = places_of(Self::SECTORS, Self::BLOCK_SECTORS, &[1, 2, 5, 8, 12]);
        // Where a block may come to lie over a footer: room is made for two
        // blocks and a half.
        places.extend((0..12).map(|block| {
            let at = block * Self::BLOCK_SECTORS + Self::OLD_FOOTER_SECTOR;
            at - 4..at + 4
        }));
        places.sort_by_key(|place| place.start);
        places
    }

    fn create(&self, files: &Files, root: &Path) -> Result<Vhd, OpenError> {
        let new = NewDisk {
            format: self.0.clone(),
            size_bytes: (Self::SECTORS * 512) as u64,
            logical_block_bytes: 512,
        };
        vhd::create_on(files, &root.join(Self::NAME), &new)
    }

    fn open(&self, files: &Files, root: &Path) -> Result<Vhd, OpenError> {
        let opening = Opening::new(Access::ReadWrite);
        vhd::open_on(files, &root.join(Self::NAME), &opening)
    }

    fn untouched(&self) -> u32 {
        ZEROS
    }

    fn act(&self, site: &Site<Self>, dice: &mut Dice) -> Result<(), DiskError> {
        reopen(site, dice)
    }

    fn check(&self, root: &Path) -> Result<(), String> {
        vhd::check(&root.join(Self::NAME))
    }
}

mod vhd_files {
    use super::super::die_everywhere;
    use super::*;

    #[test]
    fn answered_is_there_after_a_death_at_any_step_of_a_dynamic_vhd() {
        die_everywhere(&VhdOf(NewFormat::VhdDynamic), 1, 40, 3);
    }
}
