//! A disk with a recorder under it, and what is found of it after a loss.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::history::{History, SECTOR, Stamp, sector_of, stamp_of};
use super::{Dice, Subject};
use crate::files::Files;
use crate::files::recorder::{Op, Recorder};
use crate::{Disk, DiskError, OpenError};

/// One in so many of the states is checked, and opened twice.
const CHECKED_IN: usize = 8;

/// A directory without real syncs, where there is one: the recorder knows what
/// is durable.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// Whether an operation syncs the file (or one of the files) named `of`.
pub(crate) fn is_sync_of(op: &Op, name: &str, of: &str) -> bool {
    matches!(op, Op::Sync(_)) && name.starts_with(of)
}

/// A disk at work.
pub(crate) struct Site<S: Subject> {
    pub(crate) subject: S,
    pub(crate) home: tempfile::TempDir,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) files: Files,
    /// The first moment at which power can be lost.
    pub(crate) born: usize,
    disk: Mutex<Option<Arc<S::Disk>>>,
    history: Mutex<History>,
    /// Numbers of the sectors that are worked on.
    numbers: Vec<usize>,
}

impl<S: Subject> Site<S> {
    pub(crate) fn new(subject: S) -> Arc<Site<S>> {
        let home = scratch();
        let recorder = Recorder::new(home.path());
        let files = Files::real().unwrap().recorded_by(&recorder);
        let disk = subject.create(&files, home.path()).unwrap();
        let numbers: Vec<usize> = subject.places().into_iter().flatten().collect();
        let untouched = vec![subject.untouched(); numbers.len()];
        let history = History::new(untouched, 0, subject.epoch(&disk));
        Arc::new(Site {
            born: recorder.moment(),
            home,
            recorder,
            files,
            disk: Mutex::new(Some(Arc::new(disk))),
            history: Mutex::new(history),
            numbers,
            subject,
        })
    }

    /// Loses power before event `moment` and goes on with what is left, under
    /// a recorder of its own. Losing power again, at whatever step of opening
    /// it, must find the same.
    pub(crate) fn second_life(
        &self,
        moment: usize,
        fate: impl Fn() -> Box<dyn FnMut() -> bool>,
    ) -> Result<Arc<Site<S>>, String> {
        let first = self.try_lose_power(moment, &mut fate())?;
        let stamps = first
            .sectors
            .iter()
            .map(|(number, bytes)| stamp_of(bytes, *number));
        let stamps = stamps.map(|stamp| stamp.expect("was held against the history"));
        let newest = self.history().newest();
        let epoch = self.subject.epoch(&first.disk);
        let mut history = History::new(stamps.collect(), newest, epoch);
        history.lives = self.history().lives + 1;
        let home = scratch();
        self.recorder.remake(moment, home.path(), &mut fate());
        let recorder = Recorder::over(home.path());
        let born = recorder.moment();
        let files = self.files.in_another_boot().recorded_by(&recorder);
        let disk = (self.subject.open(&files, home.path()))
            .map_err(|error| format!("event {moment}: cannot be opened again: {error}"))?;
        Ok(Arc::new(Site {
            subject: self.subject.clone(),
            born,
            home,
            recorder,
            files,
            disk: Mutex::new(Some(Arc::new(disk))),
            history: Mutex::new(history),
            numbers: self.numbers.clone(),
        }))
    }

    /// Whether there is one: after a death it may refuse to be opened.
    pub(crate) fn is_open(&self) -> bool {
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        disk.is_some()
    }

    pub(crate) fn disk(&self) -> Arc<S::Disk> {
        let disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        disk.clone().expect("the disk is open")
    }

    pub(crate) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many sectors are worked on.
    pub(crate) fn sectors(&self) -> usize {
        self.numbers.len()
    }

    /// As many of `count` sectors from the `first` worked on as lie in one
    /// piece.
    fn piece(&self, first: usize, count: usize) -> std::ops::Range<usize> {
        let after = |at: &usize| self.numbers[at - 1] + 1 != self.numbers[*at];
        let limit = (first + count).min(self.numbers.len());
        let end = (first + 1..limit).find(after).unwrap_or(limit);
        first..end
    }

    fn change(&self, first: usize, count: usize, zeros: bool) -> Result<(), DiskError> {
        let range = self.piece(first, count);
        let (begun, stamp) = {
            let mut history = self.history();
            let begun = self.recorder.tick();
            (begun, history.begin(range.clone(), zeros, begun))
        };
        let offset = (self.numbers[first] * SECTOR) as u64;
        let answer = if zeros {
            self.disk().unmap(offset, (range.len() * SECTOR) as u64)
        } else {
            let numbers = &self.numbers[range.clone()];
            let data: Vec<u8> = numbers.iter().flat_map(|n| sector_of(stamp, *n)).collect();
            self.disk().write(offset, &data)
        };
        let ended = self.recorder.tick();
        self.history().end(range, begun, ended, answer.is_ok());
        match answer {
            // What was refused is neither promised nor forbidden.
            Err(DiskError::NoSpace(_)) if self.subject.has_quota() => Ok(()),
            answer => answer,
        }
    }

    /// Writes `count` of the sectors that are worked on.
    pub(crate) fn write(&self, first: usize, count: usize) -> Result<(), DiskError> {
        self.change(first, count, false)
    }

    pub(crate) fn unmap(&self, first: usize, count: usize) -> Result<(), DiskError> {
        self.change(first, count, true)
    }

    /// The disk says what it holds is durable now; `how` it is made so.
    pub(crate) fn flush_by(
        &self,
        how: impl FnOnce(&S::Disk) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let begun = self.recorder.tick();
        how(&*self.disk())?;
        let answered = self.recorder.tick();
        self.history().flushed(begun, answered);
        Ok(())
    }

    pub(crate) fn flush(&self) -> Result<(), DiskError> {
        self.flush_by(|disk| disk.flush())
    }

    pub(crate) fn close(&self) -> Result<(), DiskError> {
        self.flush_by(|disk| self.subject.close(disk))
    }

    /// The disk was begun afresh between event `begun` and now, as `new`.
    pub(crate) fn started(&self, new: S::Disk, begun: usize) {
        let epoch = self.subject.epoch(&new);
        *self.disk.lock().unwrap() = Some(Arc::new(new));
        let answered = self.recorder.moment();
        self.history().started(epoch, begun, answered);
    }

    /// Death of the process. The lock goes with the last owner.
    pub(crate) fn kill(&self) {
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Death of the process and a new one, in the same boot of the kernel.
    pub(crate) fn reopen(&self) -> Result<(), OpenError> {
        self.kill();
        let disk = self.subject.open(&self.files, self.home.path())?;
        *self.disk.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(disk));
        Ok(())
    }

    /// Calls `act` once, in the middle of the first operation that `is` the
    /// one.
    pub(crate) fn interrupt(
        self: &Arc<Self>,
        is: impl Fn(&Op, &str) -> bool + Send + Sync + 'static,
        act: impl Fn(&Site<S>) + Send + Sync + 'static,
    ) {
        let site = Arc::downgrade(self);
        let done = AtomicBool::new(false);
        self.recorder.set_hook(move |op, name| {
            if is(op, name) && !done.swap(true, Ordering::Relaxed) {
                act(&site.upgrade().unwrap());
            }
            Ok(())
        });
    }

    /// Loses power before event `moment`, opens what is left, and holds it
    /// against the promise.
    pub(crate) fn try_lose_power(
        &self,
        moment: usize,
        fate: &mut dyn FnMut() -> bool,
    ) -> Result<Found<S>, String> {
        let left = scratch();
        self.recorder.remake(moment, left.path(), fate);
        let files = self.files.in_another_boot();
        let disk = (self.subject.open(&files, left.path()))
            .map_err(|error| format!("event {moment}: cannot be opened: {error}"))?;
        let mut found = Found {
            disk,
            home: left,
            sectors: Vec::new(),
        };
        found.sectors = self.contents(&found.disk)?;
        if moment.is_multiple_of(CHECKED_IN) {
            found = self.open_again(found)?;
        }
        let epoch = self.subject.epoch(&found.disk);
        let lost = self.history().check_power_loss(
            moment,
            epoch,
            self.subject.is_volatile(),
            &found.sectors,
        )?;
        self.subject
            .judge(self, &found, moment, lost)
            .map_err(|error| format!("event {moment}: {error}"))?;
        Ok(found)
    }

    /// Closes what was found, checks its structures, and finds the same again.
    fn open_again(&self, found: Found<S>) -> Result<Found<S>, String> {
        drop(found.disk);
        self.subject.check(found.home.path())?;
        let files = self.files.in_another_boot();
        let again = self.subject.open(&files, found.home.path());
        let disk = again.map_err(|error| format!("cannot be opened again: {error}"))?;
        if self.contents(&disk)? != found.sectors {
            return Err("opened again, it holds something else".into());
        }
        Ok(Found { disk, ..found })
    }

    pub(crate) fn lose_power(&self, moment: usize, fate: &mut dyn FnMut() -> bool) -> Found<S> {
        self.try_lose_power(moment, fate)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same for a spread of fates: all lost, all kept, and mixtures.
    pub(crate) fn lose_power_variously(&self, moment: usize, seed: u64, mixtures: usize) {
        self.lose_power(moment, &mut || false);
        self.lose_power(moment, &mut || true);
        for mixture in 0..mixtures {
            let mut dice = Dice(seed ^ (moment as u64) << 20 ^ (mixture as u64) << 50);
            let kept_in_16 = [8, 2, 14][mixture % 3];
            self.lose_power(moment, &mut || dice.below(16) < kept_in_16);
        }
    }

    /// Everything answered is there now.
    pub(crate) fn check_answered(&self) -> Result<(), String> {
        let disk = self.disk();
        let contents = self.contents(&*disk)?;
        let epoch = self.subject.epoch(&disk);
        self.history().check_answered(epoch, &contents)
    }

    /// What a process finds in the same boot after a sync has failed: all that
    /// was answered, or what a loss of power leaves, and then it is said.
    pub(crate) fn check_after_a_failed_sync(&self) -> Result<(), String> {
        let disk = self.disk();
        let contents = self.contents(&*disk)?;
        let epoch = self.subject.epoch(&disk);
        let history = self.history();
        let lost = match history.check_answered(epoch, &contents) {
            Ok(()) => false,
            Err(_) => history.check_power_loss(
                self.recorder.moment(),
                epoch,
                self.subject.is_volatile(),
                &contents,
            )?,
        };
        drop(history);
        self.subject.judge_failed_sync(self, lost)
    }

    /// The history begins anew, with what is found.
    pub(crate) fn begin_a_life(&self) -> Result<(), String> {
        let disk = self.disk();
        let contents = self.contents(&*disk)?;
        let stamps = contents.iter().map(|(number, bytes)| {
            let stamp = stamp_of(bytes, *number);
            stamp.ok_or_else(|| format!("sector {number} is nobody's"))
        });
        let mut history = self.history();
        let (newest, lives) = (history.newest(), history.lives);
        *history = History::new(
            stamps.collect::<Result<_, _>>()?,
            newest,
            self.subject.epoch(&disk),
        );
        history.lives = lives + 1;
        Ok(())
    }

    /// The number and the bytes of each sector that is worked on.
    pub(crate) fn contents(&self, disk: &impl Disk) -> Result<Vec<(usize, [u8; SECTOR])>, String> {
        let mut contents = Vec::with_capacity(self.numbers.len());
        for place in self.subject.places() {
            let mut bytes = vec![0; place.len() * SECTOR];
            disk.read((place.start * SECTOR) as u64, &mut bytes)
                .map_err(|error| format!("cannot be read: {error}"))?;
            let sectors = bytes.chunks(SECTOR).map(|s| s.try_into().unwrap());
            contents.extend(place.zip(sectors));
        }
        Ok(contents)
    }

    /// Holds one sector of the disk against what was written by `stamp`.
    pub(crate) fn holds(&self, at: usize, stamp: Stamp) -> bool {
        let contents = self.contents(&*self.disk()).unwrap();
        contents[at].1 == sector_of(stamp, contents[at].0)
    }
}

/// A disk found after a loss.
pub(crate) struct Found<S: Subject> {
    pub(crate) disk: S::Disk,
    pub(crate) home: tempfile::TempDir,
    pub(crate) sectors: Vec<(usize, [u8; SECTOR])>,
}

impl<S: Subject> Found<S> {
    /// Whether a sector was found as it was written by `stamp`.
    pub(crate) fn holds(&self, at: usize, stamp: Stamp) -> bool {
        let (number, bytes) = &self.sectors[at];
        *bytes == sector_of(stamp, *number)
    }
}
