//! Overlays with restore points and branches: after each loss every point that
//! was made, and every branch, holds what it held.

use super::super::super::branch::{View, branch, points};
use super::super::super::point::{Note, PointId};
use super::*;
use crate::tests::crash::meanwhile;
use std::sync::atomic::AtomicUsize;

mod races;

/// A `keep` overlay that is given points, branches and thinning.
#[derive(Clone)]
pub(crate) struct Layered {
    overlay: OverlayOf,
    has_quota: bool,
}

type LayeredSite = Site<Layered>;

/// Later than any event, and before what was never answered.
const NOW: usize = usize::MAX - 1;

/// Kept moments that are live at the same time.
const LIVE_MAX: usize = 5;

impl Layered {
    pub(crate) fn new() -> Layered {
        Layered {
            overlay: OverlayOf(OverlayMode::Keep),
            has_quota: false,
        }
    }

    /// Its quota comes, changes and goes.
    pub(crate) fn with_quota() -> Layered {
        Layered {
            has_quota: true,
            ..Layered::new()
        }
    }

    /// Holds all points and branches below `root` against the history.
    fn check_kept(
        site: &LayeredSite,
        files: &Files,
        root: &Path,
        moment: usize,
    ) -> Result<(), String> {
        let said = |error: OpenError| error.to_string();
        let dir = root.join("ov");
        let found = points(&dir).map_err(said)?;
        let found: Vec<PointId> = found.iter().map(|point| point.note.id).collect();
        let kept = site.history().kept().to_vec();
        for (number, kept) in kept.iter().enumerate() {
            let branch_dir = root.join(site.branch_name(number));
            let is_there = found.contains(&site.id_of(number)) || branch_dir.exists();
            if kept.must_be(moment) && !is_there {
                return Err(format!("kept moment {number} is gone"));
            }
            if !is_there {
                continue;
            }
            if !kept.may_be(moment) {
                return Err(format!("moment {number} is kept still, or already"));
            }
            let contents = if branch_dir.exists() {
                let files = files.clone();
                let store = Store::open(files, &branch_dir, image(), Caching::WriteBack);
                site.contents(&Overlay::over(store.map_err(said)?))?
            } else {
                let id = Some(site.id_of(number));
                site.contents(&View::open(files.clone(), &dir, id, image()).map_err(said)?)?
            };
            site.history().check_kept(number, moment, &contents)?;
        }
        Ok(())
    }
}

/// What an operation on layers answered, as a disk would.
fn answer(result: Result<(), OpenError>) -> Result<(), DiskError> {
    result.map_err(|error| match error {
        OpenError::Disk(error) => error,
        other => DiskError::Failed(other.to_string()),
    })
}

impl LayeredSite {
    /// A point's id says which kept moment it is, of which life.
    fn id_of(&self, number: usize) -> PointId {
        let lives = u128::from(self.history().lives);
        PointId((lives << 64 | number as u128).to_le_bytes())
    }

    fn branch_name(&self, number: usize) -> String {
        format!("branch{}.{number}", self.history().lives)
    }

    /// Kept moments that nobody has given up: points, branches.
    fn live(&self) -> (Vec<usize>, Vec<usize>) {
        let kept = self.history().kept().to_vec();
        (0..kept.len())
            .filter(|number| kept[*number].must_be(NOW))
            .partition(|number| !self.home.path().join(self.branch_name(*number)).exists())
    }

    fn point(&self) -> Result<(), DiskError> {
        let begun = self.recorder.tick();
        let number = self.history().keep(begun, None);
        let note = Note {
            id: self.id_of(number),
            created: number as u64,
            automatic: number.is_multiple_of(2),
            comment: format!("moment {number}"),
        };
        answer(self.disk().point(note).map(drop))?;
        let answered = self.recorder.tick();
        let mut history = self.history();
        history.is_kept(number, answered);
        history.flushed(begun, answered);
        Ok(())
    }

    fn branch(&self, of: usize) -> Result<(), DiskError> {
        let begun = self.recorder.tick();
        let number = self.history().keep(begun, Some(of));
        let (source, dir) = (
            self.home.path().join("ov"),
            self.home.path().join(self.branch_name(number)),
        );
        answer(branch(
            &self.files,
            &source,
            self.id_of(of),
            &dir,
            OverlayMode::Keep,
            1,
        ))?;
        let answered = self.recorder.tick();
        self.history().is_kept(number, answered);
        Ok(())
    }

    /// Gives up some kept moments.
    fn give_up(
        &self,
        numbers: &[usize],
        how: impl FnOnce() -> Result<(), OpenError>,
    ) -> Result<(), DiskError> {
        let begun = self.recorder.tick();
        for number in numbers {
            self.history().leave(*number, begun);
        }
        answer(how())?;
        let answered = self.recorder.tick();
        for number in numbers {
            self.history().has_left(*number, answered);
        }
        Ok(())
    }

    /// Does something to the layers; a write, a flush or a branch comes in the
    /// middle of it, unless the file system refuses at will.
    fn amid<T>(&self, dice: &mut Dice, main: impl FnOnce() -> T) -> T {
        let left = AtomicUsize::new(dice.below(16));
        let (what, first) = (dice.below(4), dice.below(self.sectors()));
        if self.recorder.has_hook() {
            return main();
        }
        let (points, _) = self.live();
        let is_it = move |_: &Op, _: &str| left.fetch_sub(1, Ordering::Relaxed) == 0;
        let act = move |site: &LayeredSite| {
            // The point may be gone by now, and a branch is refused.
            let _ = match (what, points.first()) {
                (0, _) => site.flush(),
                (1, Some(of)) => site.branch(*of),
                _ => site.write(first, 9),
            };
        };
        meanwhile(self, is_it, act, main)
    }

    fn read_kept(&self) -> Result<(), DiskError> {
        let checked = Layered::check_kept(self, &self.files, self.home.path(), NOW);
        checked.map_err(DiskError::Corrupt)
    }
}

impl Subject for Layered {
    type Disk = Overlay;

    fn places(&self) -> Vec<std::ops::Range<usize>> {
        self.overlay.places()
    }

    fn create(&self, files: &Files, root: &Path) -> Result<Overlay, OpenError> {
        self.overlay.create(files, root)
    }

    fn open(&self, files: &Files, root: &Path) -> Result<Overlay, OpenError> {
        store::sweep(files, root)?;
        self.overlay.open(files, root)
    }

    fn untouched(&self) -> u32 {
        self.overlay.untouched()
    }

    fn has_quota(&self) -> bool {
        self.has_quota
    }

    fn takes_writes_in_a_flush(&self) -> bool {
        true
    }

    fn epoch(&self, overlay: &Overlay) -> u64 {
        overlay.generation()
    }

    fn act(&self, site: &LayeredSite, dice: &mut Dice) -> Result<(), DiskError> {
        let (points, branches) = site.live();
        let some = |dice: &mut Dice, of: &[usize]| of[dice.below(of.len())];
        match dice.below(10) {
            0 if self.has_quota => {
                let quota = [None, Some(8), Some(24), Some(80)][dice.below(4)];
                answer(
                    site.disk()
                        .set_quota(quota.map(|blocks: u64| blocks * 4096)),
                )
            }
            0 => site.disk().settle(),
            1 => site.amid(dice, || answer(site.disk().tend())),
            2 => answer(site.reopen()),
            // Not while the file system refuses at will.
            3 if !site.recorder.has_hook() => site.read_kept(),
            4 if !points.is_empty() && branches.len() < LIVE_MAX => {
                let of = some(dice, &points);
                site.branch(of)
            }
            5 if !branches.is_empty() => {
                let gone = some(dice, &branches);
                let dir = site.home.path().join(site.branch_name(gone));
                site.give_up(&[gone], || store::remove(&site.files, &dir))
            }
            6 if !points.is_empty() => {
                let mut gone = vec![some(dice, &points), some(dice, &points)];
                gone.dedup();
                let ids: Vec<PointId> = gone.iter().map(|number| site.id_of(*number)).collect();
                let overlay = site.disk();
                site.amid(dice, || site.give_up(&gone, || overlay.drop_points(&ids)))
            }
            _ if points.len() < LIVE_MAX => site.amid(dice, || site.point()),
            _ => site.flush(),
        }
    }

    fn close(&self, overlay: &Overlay) -> Result<(), DiskError> {
        overlay.close()
    }

    fn judge_death(&self, site: &LayeredSite) -> Result<(), String> {
        Layered::check_kept(site, &site.files, site.home.path(), NOW)?;
        match site.disk().host_loss() {
            HostLoss::None => Ok(()),
            other => Err(format!("{other:?} of a host that lived on")),
        }
    }

    fn judge_failed_sync(&self, site: &LayeredSite, lost: bool) -> Result<(), String> {
        Layered::check_kept(site, &site.files, site.home.path(), NOW)?;
        is_said(&site.disk(), lost)
    }

    fn judge(
        &self,
        site: &LayeredSite,
        found: &Found<Self>,
        moment: usize,
        lost: bool,
    ) -> Result<(), String> {
        is_said(&found.disk, lost)?;
        let files = site.files.in_another_boot();
        Layered::check_kept(site, &files, found.home.path(), moment)?;
        // What was interrupted goes on, and changes nothing that is read.
        found.disk.tend().map_err(|e| e.to_string())?;
        Layered::check_kept(site, &files, found.home.path(), moment)?;
        match site.contents(&found.disk)? == found.sectors {
            true => Ok(()),
            false => Err("merging layers has changed what is read".into()),
        }
    }
}

#[test]
fn a_write_that_comes_while_a_point_is_made_is_flushed_by_the_next_flush() {
    let site = Site::new(Layered::new());
    site.write(0, 8).unwrap();
    // Behind the flush of the point, before its layer is frozen.
    site.interrupt(
        |op, name| is_sync_of(op, name, "point"),
        |site| site.write(160, 8).unwrap(),
    );
    site.point().unwrap();
    site.recorder.clear_hook();
    site.lose_power(site.recorder.moment(), &mut || false);
    site.flush().unwrap();
    let found = site.lose_power(site.recorder.moment(), &mut || false);
    assert!(found.holds(160, 2));
}

#[test]
fn points_and_branches_are_there_after_a_death_at_any_step() {
    for seed in 1..=2 {
        die_everywhere(&Layered::new(), seed, 40, 7);
    }
}

#[test]
fn points_and_branches_stay_whole_when_the_file_system_refuses() {
    fail_everywhere(&Layered::new(), crate::tests::crash::FULL, 1, 40, 5);
    fail_everywhere(&Layered::new(), crate::tests::crash::BROKEN, 2, 40, 5);
}
