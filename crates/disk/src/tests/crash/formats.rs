//! Disk files of the formats of others, put to the proof.

use std::iter::once;
use std::ops::Range;
use std::path::Path;

use super::{Dice, IMAGE, SECTOR, Site, Subject, ZEROS, sector_of};
use crate::files::Files;
use crate::vhd::{self, Vhd};
use crate::vhdx::{self, Vhdx};
use crate::{Access, Disk, DiskError, NewDisk, NewFormat, OpenError, Opening};

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
    site.reopen().map_err(|error| match error {
        OpenError::Disk(error) => error,
        other => DiskError::Failed(other.to_string()),
    })
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

    const PARENT: &str = "parent.vhd";

    /// Above a parent that holds the image's sectors and lies beside it.
    pub(crate) fn differencing() -> VhdOf {
        let parent = Self::PARENT.into();
        VhdOf(NewFormat::VhdDifferencing { parent })
    }

    fn make_parent(files: &Files, path: &Path) -> Result<(), OpenError> {
        let parent = VhdOf(NewFormat::VhdDynamic);
        let disk = vhd::create_on(files, path, &parent.new_disk())?;
        for place in parent.places() {
            let offset = (place.start * 512) as u64;
            let bytes: Vec<u8> = place.flat_map(|s| sector_of(IMAGE, s)).collect();
            disk.write(offset, &bytes)?;
        }
        disk.flush()?;
        Ok(())
    }

    fn opening() -> Opening {
        Opening::new(Access::ReadWrite)
    }

    fn new_disk(&self) -> NewDisk {
        NewDisk {
            format: self.0.clone(),
            size_bytes: (Self::SECTORS * 512) as u64,
            logical_block_bytes: 512,
        }
    }
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
        let mut new = self.new_disk();
        if let NewFormat::VhdDifferencing { parent } = &mut new.format {
            *parent = root.join(Self::PARENT);
            Self::make_parent(files, parent)?;
        }
        vhd::create_on(files, &root.join(Self::NAME), &new)
    }

    fn open(&self, files: &Files, root: &Path) -> Result<Vhd, OpenError> {
        vhd::open_on(files, &root.join(Self::NAME), &Self::opening())
    }

    fn untouched(&self) -> u32 {
        match self.0 {
            NewFormat::VhdDifferencing { .. } => IMAGE,
            _ => ZEROS,
        }
    }

    fn takes_writes_in_a_flush(&self) -> bool {
        true
    }

    fn act(&self, site: &Site<Self>, dice: &mut Dice) -> Result<(), DiskError> {
        reopen(site, dice)
    }

    fn check(&self, root: &Path) -> Result<(), String> {
        vhd::check(&root.join(Self::NAME), &Self::opening())
    }
}

/// A VHDX of some kind, in the file `disk.vhdx`; a differencing one lies on
/// `parent.vhdx`.
#[derive(Clone)]
pub(crate) enum VhdxOf {
    Fixed,
    Dynamic,
    Differencing,
}

impl VhdxOf {
    const BLOCK_SECTORS: usize = (1 << 20) / SECTOR;
    /// The last block is short, so that all of it is worked on: it comes and
    /// goes.
    const LAST: Range<usize> = 4 * Self::BLOCK_SECTORS..4 * Self::BLOCK_SECTORS + 40;
    const NAME: &str = "disk.vhdx";

    fn make(files: &Files, path: &Path, format: NewFormat) -> Result<Vhdx, OpenError> {
        let new = NewDisk {
            format,
            size_bytes: (Self::LAST.end * SECTOR) as u64,
            logical_block_bytes: 512,
        };
        let block_bytes = u32::try_from(Self::BLOCK_SECTORS * SECTOR).unwrap();
        Vhdx::create_with(files, path, &new, block_bytes)
    }
}

impl Subject for VhdxOf {
    type Disk = Vhdx;

    fn places(&self) -> Vec<Range<usize>> {
        let mut places = places_of(Self::LAST.start, Self::BLOCK_SECTORS, &[1, 2]);
        places.push(Self::LAST);
        places
    }

    fn create(&self, files: &Files, root: &Path) -> Result<Vhdx, OpenError> {
        let format = match self {
            VhdxOf::Fixed => NewFormat::VhdxFixed,
            VhdxOf::Dynamic => NewFormat::VhdxDynamic,
            VhdxOf::Differencing => {
                let path = root.join("parent.vhdx");
                let parent = Self::make(files, &path, NewFormat::VhdxDynamic)?;
                for place in self.places() {
                    let offset = (place.start * SECTOR) as u64;
                    let image: Vec<u8> = place.flat_map(|n| sector_of(IMAGE, n)).collect();
                    parent.write(offset, &image)?;
                }
                parent.close()?;
                NewFormat::VhdxDifferencing { parent: path }
            }
        };
        let disk = Self::make(files, &root.join(Self::NAME), format)?;
        disk.forsake();
        Ok(disk)
    }

    fn open(&self, files: &Files, root: &Path) -> Result<Vhdx, OpenError> {
        let opening = Opening::new(Access::ReadWrite);
        let disk = Vhdx::open_on(files, &root.join(Self::NAME), &opening)?;
        disk.forsake();
        Ok(disk)
    }

    fn untouched(&self) -> u32 {
        match self {
            VhdxOf::Differencing => IMAGE,
            VhdxOf::Fixed | VhdxOf::Dynamic => ZEROS,
        }
    }

    fn act(&self, site: &Site<Self>, dice: &mut Dice) -> Result<(), DiskError> {
        let last = site.sectors() - Self::LAST.len();
        match dice.below(4) {
            0 | 1 => site.unmap(last, Self::LAST.len()),
            2 => site.write(last, Self::LAST.len()),
            _ => reopen(site, dice),
        }
    }

    fn close(&self, disk: &Vhdx) -> Result<(), DiskError> {
        disk.close()
    }

    fn check(&self, root: &Path) -> Result<(), String> {
        vhdx::tests::check(&root.join(Self::NAME))
    }
}

mod vhdx_files {
    use std::sync::Arc;

    use super::super::{BROKEN, FULL, die_everywhere, fail_everywhere, is_sync_of};
    use super::*;
    use crate::files::recorder::Op;

    #[test]
    fn a_vhdx_that_is_refused_space_says_so_and_goes_on() {
        fail_everywhere(&VhdxOf::Dynamic, FULL, 1, 30, 2);
        fail_everywhere(&VhdxOf::Differencing, FULL, 2, 30, 5);
    }

    #[test]
    fn a_vhdx_on_a_broken_medium_fails_rather_than_lies() {
        fail_everywhere(&VhdxOf::Dynamic, BROKEN, 1, 30, 2);
        fail_everywhere(&VhdxOf::Differencing, BROKEN, 2, 30, 5);
        fail_everywhere(&VhdxOf::Fixed, BROKEN, 3, 30, 5);
    }

    #[test]
    fn answered_is_there_after_a_death_at_any_step_of_a_dynamic_vhdx() {
        die_everywhere(&VhdxOf::Dynamic, 1, 30, 7);
    }

    #[test]
    fn answered_is_there_after_a_death_at_any_step_of_a_differencing_vhdx() {
        die_everywhere(&VhdxOf::Differencing, 2, 30, 7);
    }

    /// The last block, written and durable; where it begins, and a sector that
    /// lies as far in a block that nobody has written.
    fn with_a_last_block() -> (Arc<Site<VhdxOf>>, usize, usize) {
        let site = Site::new(VhdxOf::Dynamic);
        let last = site.sectors() - VhdxOf::LAST.len();
        site.write(last, VhdxOf::LAST.len()).unwrap();
        site.flush().unwrap();
        // Behind the middle of the second border.
        (site, last, 40 + 24 + 12 + 8)
    }

    #[test]
    fn room_is_given_to_others_only_once_its_block_is_durably_gone() {
        let (site, last, fresh) = with_a_last_block();
        site.unmap(last, VhdxOf::LAST.len()).unwrap();
        site.write(fresh, 4).unwrap();
        for moment in [site.recorder.moment() - 1, site.recorder.moment()] {
            site.lose_power_variously(moment, 3, 30);
        }
    }

    #[test]
    fn room_is_not_given_to_others_by_a_death_either() {
        let (site, last, fresh) = with_a_last_block();
        site.unmap(last, VhdxOf::LAST.len()).unwrap();
        site.reopen().unwrap();
        site.write(fresh, 4).unwrap();
        site.lose_power_variously(site.recorder.moment(), 3, 30);
        site.flush().unwrap();
        site.write(0, 1).unwrap();
        let length = site.disk().file_bytes();
        assert_eq!(length, 6 << 20, "now it is");
    }

    #[test]
    fn a_late_hole_destroys_nothing_that_came_after() {
        let (site, last, fresh) = with_a_last_block();
        site.unmap(last, VhdxOf::LAST.len()).unwrap();
        let punches = |op: &Op, _: &str| matches!(op, Op::Punch(..));
        site.interrupt(punches, move |site| site.write(fresh, 4).unwrap());
        site.flush().unwrap();
        site.recorder.clear_hook();
        site.check_answered().unwrap();
        assert!(
            site.holds(fresh, site.history().newest()),
            "nothing was punched"
        );
    }

    #[test]
    fn a_note_whose_data_came_after_the_sync_waits_for_the_next_flush() {
        let (site, last, fresh) = with_a_last_block();
        site.write(last, 1).unwrap();
        site.unmap(last, VhdxOf::LAST.len()).unwrap();
        let syncs = |op: &Op, name: &str| is_sync_of(op, name, VhdxOf::NAME);
        site.interrupt(syncs, move |site| site.write(fresh, 4).unwrap());
        let begun = site.recorder.moment();
        site.flush().unwrap();
        site.recorder.clear_hook();
        for moment in begun..=site.recorder.moment() {
            site.lose_power_variously(moment, 5, 3);
        }
        site.check_answered().unwrap();
    }
}

mod vhd_files {
    use super::super::{BROKEN, FULL, die_everywhere, fail_everywhere, is_sync_of};
    use super::*;
    use crate::files::recorder::Op;

    #[test]
    fn answered_is_there_after_a_death_at_any_step_of_a_dynamic_vhd() {
        die_everywhere(&VhdOf(NewFormat::VhdDynamic), 1, 40, 3);
    }

    #[test]
    fn answered_is_there_after_a_death_at_any_step_of_a_differencing_vhd() {
        die_everywhere(&VhdOf::differencing(), 1, 40, 5);
    }

    #[test]
    fn a_vhd_that_is_refused_space_says_so_and_goes_on() {
        fail_everywhere(&VhdOf(NewFormat::VhdDynamic), FULL, 1, 30, 1);
        fail_everywhere(&VhdOf::differencing(), FULL, 2, 30, 2);
    }

    #[test]
    fn a_vhd_on_a_broken_medium_fails_rather_than_lies() {
        fail_everywhere(&VhdOf(NewFormat::VhdDynamic), BROKEN, 1, 30, 1);
        fail_everywhere(&VhdOf::differencing(), BROKEN, 2, 30, 2);
        fail_everywhere(&VhdOf(NewFormat::VhdFixed), BROKEN, 3, 30, 2);
    }
    /// Its bits are of data that the flush has not synced.
    #[test]
    fn a_sector_written_in_the_middle_of_a_flush_is_no_part_of_it() {
        let site = Site::new(VhdOf::differencing());
        site.write(0, 4).unwrap();
        let syncs = |op: &Op, name: &str| is_sync_of(op, name, VhdOf::NAME);
        site.interrupt(syncs, |site| site.write(8, 4).unwrap());
        let begun = site.recorder.moment();
        site.flush().unwrap();
        site.recorder.clear_hook();
        for moment in begun..=site.recorder.moment() {
            site.lose_power_variously(moment, 5, 10);
        }
        site.check_answered().unwrap();
    }
}
