//! The host's file system refuses, at every call site in turn: space runs out,
//! a write fails, a sync fails.
//!
//! The refusal is heard in the right words, what failed stays failed rather
//! than wrong, and what is found afterwards keeps the promises.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;

use super::workload::step;
use super::{Dice, Site, Subject};
use crate::DiskError;
use crate::files::recorder::Op;

/// A fault, and how many operations from the first on meet it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    errno: Errno,
    operations: usize,
}

/// Space runs out, and comes back.
pub(crate) const FULL: Fault = Fault {
    errno: Errno::NOSPC,
    operations: 6,
};

/// The medium fails once.
pub(crate) const BROKEN: Fault = Fault {
    errno: Errno::IO,
    operations: 1,
};

/// Random work under a fault that comes with each (`stride`th) operation in
/// turn.
pub(crate) fn fail_everywhere<S: Subject>(
    subject: &S,
    fault: Fault,
    seed: u64,
    steps: usize,
    stride: usize,
) {
    for operation in (0..).step_by(stride) {
        let case = Case::new(subject, fault, operation);
        let failed = case
            .run(seed, steps)
            .unwrap_or_else(|error| panic!("{fault:?} at operation {operation}: {error}"));
        if !failed {
            return;
        }
    }
}

struct Case<S: Subject> {
    site: Arc<Site<S>>,
    fault: Fault,
    /// What met the fault first, and before which event.
    met: Arc<OnceLock<(Op, String, usize)>>,
}

impl<S: Subject> Case<S> {
    fn new(subject: &S, fault: Fault, operation: usize) -> Case<S> {
        let site = Site::new(subject.clone());
        let met = Arc::new(OnceLock::new());
        let seen = AtomicUsize::new(0);
        let (noted, recorder) = (met.clone(), Arc::downgrade(&site.recorder));
        site.recorder.set_hook(move |op, name| {
            let number = seen.fetch_add(1, Ordering::Relaxed);
            if !(operation..operation + fault.operations).contains(&number) {
                return Ok(());
            }
            let now = recorder.upgrade().unwrap().moment();
            noted.get_or_init(|| (op.clone(), name.to_owned(), now));
            // Zeros that cannot be punched and names that cannot be removed
            // fail like everything else.
            Err(fault.errno.into())
        });
        Case { site, fault, met }
    }

    /// Answers whether the fault was met at all.
    fn run(&self, seed: u64, steps: usize) -> Result<bool, String> {
        let site = &self.site;
        let mut dice = Dice(seed);
        let mut has_failed = false;
        for _ in 0..steps {
            let answer = step(site, &mut dice);
            if !site.is_open() {
                break;
            }
            has_failed = matches!(answer, Err(DiskError::Failed(_)));
            answer.or_else(|error| self.hear(error))?;
            // Opened again it would be another disk.
            if has_failed {
                break;
            }
        }
        let Some((op, name, met)) = self.met.get() else {
            return Ok(false);
        };
        let about = |error| format!("{} of {name}: {error}", word_of(op));
        site.recorder.clear_hook();
        if site.is_open() {
            site.check_answered()
                .map_err(|e| about(format!("before a death: {e}")))?;
            if has_failed {
                self.stays_failed().map_err(about)?;
            } else if let Err(error) = site.write(0, 9).and_then(|()| site.flush()) {
                return Err(about(format!("it does not go on: {error}")));
            }
        }
        let died = site.recorder.moment();
        site.kill();
        site.reopen()
            .map_err(|e| about(format!("cannot be opened again: {e}")))?;
        let found = match site.recorder.has_failed_sync() {
            false => site
                .check_answered()
                .and_then(|()| site.subject.judge_death(site)),
            // What was answered and not flushed may be gone, if that is said.
            true => site.check_after_a_failed_sync(),
        };
        found.map_err(|e| about(format!("after a death: {e}")))?;
        let moments = [*met, met + dice.below(died - met + 1), died];
        for moment in moments {
            let kept_in_16 = [0, 8, 16][dice.below(3)];
            site.try_lose_power(moment, &mut || dice.below(16) < kept_in_16)
                .map_err(&about)?;
        }
        // What dies with its host has nothing to keep.
        let goes_on = site.recorder.has_failed_sync() && !site.subject.is_volatile();
        match goes_on {
            true => self.go_on(&mut dice).map_err(about)?,
            false => self.lose_all(&mut dice).map_err(about)?,
        }
        Ok(true)
    }

    /// The next process keeps its promises on what it has found, which the
    /// device has.
    fn go_on(&self, dice: &mut Dice) -> Result<(), String> {
        let site = &self.site;
        site.begin_a_life()?;
        let answer = site.write(0, 9).and_then(|()| site.flush());
        answer.map_err(|e| format!("the next process does not go on: {e}"))?;
        site.check_answered()
            .map_err(|e| format!("in the next process: {e}"))?;
        self.lose_all(dice)
    }

    /// Loses power now.
    fn lose_all(&self, dice: &mut Dice) -> Result<(), String> {
        let kept_in_16 = [0, 8, 16][dice.below(3)];
        let mut fate = || dice.below(16) < kept_in_16;
        let now = self.site.recorder.moment();
        self.site.try_lose_power(now, &mut fate).map(drop)
    }

    /// Whether a refusal is the right one.
    fn hear(&self, refusal: DiskError) -> Result<(), String> {
        let Some((op, ..)) = self.met.get() else {
            return Err(format!("refused without a reason: {refusal}"));
        };
        let is_full = self.fault.errno == Errno::NOSPC;
        match (&refusal, op) {
            (DiskError::Failed(_), Op::Sync(_)) => Ok(()),
            (DiskError::NoSpace(_), _) if is_full => Ok(()),
            // One of the operations that meet it may be a sync.
            (DiskError::Failed(_), _) if is_full => Ok(()),
            (DiskError::Failed(_) | DiskError::Io { .. }, _) if !is_full => Ok(()),
            _ => Err(format!("{} was refused with {refusal:?}", word_of(op))),
        }
    }

    /// Never "retried, fine".
    fn stays_failed(&self) -> Result<(), String> {
        for (what, answer) in [
            ("a flush", self.site.flush()),
            ("a write", self.site.write(0, 1)),
            ("an unmap", self.site.unmap(0, 8)),
            ("a flush", self.site.flush()),
        ] {
            if !matches!(answer, Err(DiskError::Failed(_))) {
                return Err(format!("{what} of a failed disk was answered {answer:?}"));
            }
        }
        Ok(())
    }
}

fn word_of(op: &Op) -> &'static str {
    match op {
        Op::Names(_) => "a change of the name",
        Op::Write(..) => "a write",
        Op::Punch(..) => "a punch",
        Op::SetLen(..) => "a change of the length",
        Op::Reserve(..) => "a reservation",
        Op::Sync(_) | Op::SyncFailed(_) => "a sync",
        Op::WritebackError => "the question about writeback",
        Op::Forgotten(..) | Op::Tick => "nothing",
    }
}
