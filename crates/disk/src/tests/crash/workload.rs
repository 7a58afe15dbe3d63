//! Random work on a disk.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use super::{Dice, Site, Subject, is_sync_of};
use crate::DiskError;
use crate::files::recorder::Op;

const THREADS: usize = 3;

/// How long an operation waits for what may be waiting for it.
const PATIENCE: Duration = Duration::from_millis(1);

/// Random work, with writes that come in the middle of syncs; seven of eight
/// steps are the same for every kind of disk.
pub(crate) fn work<S: Subject>(
    site: &Arc<Site<S>>,
    seed: u64,
    steps: usize,
) -> Result<(), DiskError> {
    let mut dice = Dice(seed);
    for _ in 0..steps {
        let first = dice.below(site.sectors());
        // Mostly small, so that records have many runs; sometimes blocks.
        let count = [1, 3, 8, 16, 60][dice.below(5)];
        let aligned = first / 8 * 8;
        match dice.below(24) {
            0..=7 => site.write(first, count)?,
            8..=9 => site.write(aligned, count.next_multiple_of(8))?,
            10..=12 => site.unmap(aligned, count.next_multiple_of(8))?,
            13 => site.unmap(first, count)?,
            14 => {
                let sync = dice.below(5);
                let inner = dice.below(site.sectors());
                let unmaps = dice.below(3) == 0;
                let act = move |site: &Site<S>| {
                    let _ = match unmaps {
                        true => site.unmap(inner / 8 * 8, 16),
                        false => site.write(inner, 9),
                    };
                };
                flush_interrupted(site, sync, act)?;
            }
            15..=17 => site.flush()?,
            18..=20 => site.subject.act(site, &mut dice)?,
            _ => {
                site.write(first, 1)?;
                site.flush()?;
            }
        }
    }
    Ok(())
}

/// Flushes; `act` comes in the middle of one of its syncs.
fn flush_interrupted<S: Subject>(
    site: &Arc<Site<S>>,
    sync: usize,
    act: impl Fn(&Site<S>) + Send + Sync + 'static,
) -> Result<(), DiskError> {
    let left = AtomicUsize::new(sync);
    let is_it = move |op: &Op, name: &str| {
        is_sync_of(op, name, "") && left.fetch_sub(1, Ordering::Relaxed) == 0
    };
    if site.subject.takes_writes_in_a_flush() {
        site.interrupt(is_it, act);
        let answer = site.flush();
        site.recorder.clear_hook();
        return answer;
    }
    meanwhile(site, is_it, act, || site.flush())
}

/// Does something; in the middle of its first operation that `is_it`, another
/// thread begins to `act`, which may have to wait for the end.
pub(crate) fn meanwhile<S: Subject, T>(
    site: &Site<S>,
    is_it: impl Fn(&Op, &str) -> bool + Send + Sync + 'static,
    act: impl Fn(&Site<S>) + Send,
    main: impl FnOnce() -> T,
) -> T {
    let (begins, begin) = mpsc::channel();
    let (ends, end) = mpsc::channel();
    std::thread::scope(|scope| {
        let actor = scope.spawn(move || {
            if begin.recv().is_ok() {
                act(site);
                let _ = ends.send(());
            }
        });
        let (begins, end) = (Mutex::new(begins), Mutex::new(end));
        site.recorder.set_hook(move |op, name| {
            if is_it(op, name) {
                let _ = begins.lock().unwrap().send(());
                let _ = end.lock().unwrap().recv_timeout(PATIENCE);
            }
            Ok(())
        });
        let answer = main();
        // With the hook goes what the actor waits for.
        site.recorder.clear_hook();
        actor.join().unwrap();
        answer
    })
}

/// Random work without hooks of its own.
fn quiet_work<S: Subject>(site: &Site<S>, seed: u64, steps: usize) -> Result<(), DiskError> {
    let mut dice = Dice(seed);
    for _ in 0..steps {
        step(site, &mut dice)?;
    }
    site.close()
}

/// One step of it.
pub(super) fn step<S: Subject>(site: &Site<S>, dice: &mut Dice) -> Result<(), DiskError> {
    let first = dice.below(site.sectors());
    let count = [1, 3, 8, 16, 60][dice.below(5)];
    match dice.below(10) {
        0..=4 => site.write(first, count),
        5..=6 => site.unmap(first / 8 * 8, count.next_multiple_of(8)),
        7 => site.subject.act(site, dice),
        _ => site.flush(),
    }
}

/// Random work of several threads on all of the disk.
pub(crate) fn work_together<S: Subject>(site: &Site<S>, seed: u64, steps: usize) {
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let mut dice = Dice(seed ^ (thread as u64) << 32);
            scope.spawn(move || {
                for _ in 0..steps / THREADS {
                    let first = dice.below(site.sectors());
                    let count = [1, 3, 8, 16, 60][dice.below(5)];
                    match dice.below(10) {
                        0..=4 => site.write(first, count),
                        5..=6 => site.unmap(first / 8 * 8, count.next_multiple_of(8)),
                        _ => site.flush(),
                    }
                    .unwrap();
                }
            });
        }
    });
}

/// Kills the process before the operation of that number of some work, and
/// opens what it left: what was answered is there. Answers whether it came so
/// far.
pub(crate) fn die_at<S: Subject>(
    site: &Site<S>,
    seed: u64,
    steps: usize,
    operation: usize,
) -> Result<bool, String> {
    let left = AtomicUsize::new(operation);
    let dead = Arc::new(AtomicBool::new(false));
    let died = dead.clone();
    site.recorder.set_hook(move |_, _| {
        let before = left.load(Ordering::Relaxed);
        left.store(before.saturating_sub(1), Ordering::Relaxed);
        if before == 0 {
            died.store(true, Ordering::Relaxed);
            return Err(io::Error::other("dead"));
        }
        Ok(())
    });
    let _ = quiet_work(site, seed, steps);
    site.kill();
    site.recorder.clear_hook();
    site.reopen()
        .map_err(|e| format!("dead before operation {operation}: cannot be opened: {e}"))?;
    site.check_answered()
        .and_then(|()| site.subject.judge_death(site))
        .map_err(|e| format!("dead before operation {operation}: {e}"))?;
    Ok(dead.load(Ordering::Relaxed))
}

/// A death of the process before any of the operations (each `stride`th):
/// whatever was answered until then is there, in the same boot of the kernel,
/// and after a loss of power what was flushed.
pub(crate) fn die_everywhere<S: Subject>(subject: &S, seed: u64, steps: usize, stride: usize) {
    for operation in (1..).step_by(stride) {
        let site = Site::new(subject.clone());
        let died = die_at(&site, seed, steps, operation).unwrap_or_else(|e| panic!("{e}"));
        if !subject.is_volatile() {
            site.lose_power_variously(site.recorder.moment(), seed, 1);
            // And a flush makes all of it durable, the dead one's work too.
            site.flush().unwrap();
            let now = site.recorder.moment();
            site.lose_power(now, &mut || false);
        }
        if !died {
            return;
        }
    }
}
