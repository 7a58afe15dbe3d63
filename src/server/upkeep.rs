//! What is done in the background, when nobody asks: the scrub of golden images,
//! restore points by the calendar.
//!
//! On threads of their own with the lowest priority, which the system's I/O
//! schedulers go by too.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;

use crate::config::Config;
use crate::inventory::{Inventory, ScrubPace};

/// How often it is asked whether a scrub is due.
const SCRUB_ROUND: Duration = Duration::from_secs(10 * 60);

/// How often it is asked whether a restore point is due.
const POINTS_ROUND: Duration = Duration::from_secs(60);

/// After the start machines boot, and want the disks for themselves.
const FIRST_ROUND: Duration = Duration::from_secs(2 * 60);

/// The lowest priority there is.
const NICE: i32 = 19;

/// The background work, while it runs.
pub(super) struct Upkeep {
    stopped: Arc<Stopped>,
    threads: Vec<JoinHandle<()>>,
}

impl Upkeep {
    /// Starts what the configuration asks for.
    /// `keep_points` is called once a minute, with the seconds since 1970.
    pub(super) fn start(
        inventory: Arc<Inventory>,
        config: &Config,
        keep_points: impl Fn(u64) + Send + 'static,
    ) -> anyhow::Result<Upkeep> {
        let stopped = Arc::new(Stopped::default());
        let mut threads = Vec::new();
        if let Some(interval) = config.images.scrub_interval {
            let pace = ScrubPace {
                interval,
                bytes_per_second: config.images.scrub_rate,
            };
            let stopped = Arc::clone(&stopped);
            let thread = thread::Builder::new()
                .name("scrub".into())
                .spawn(move || scrub(&inventory, pace, &stopped))
                .context("starting the scrub")?;
            threads.push(thread);
        }
        let thread = thread::Builder::new().name("points".into()).spawn({
            let stopped = Arc::clone(&stopped);
            move || {
                yield_to_all();
                while stopped.wait(POINTS_ROUND) {
                    keep_points(jiff::Timestamp::now().as_second().unsigned_abs());
                }
            }
        });
        threads.push(thread.context("starting the thread of restore points")?);
        Ok(Upkeep { stopped, threads })
    }

    /// Ends it; waits for what is in hand, which is little.
    pub(super) fn stop(self) {
        self.stopped.now.store(true, Ordering::Relaxed);
        // Held for a moment, so that nobody is between asking and waiting.
        drop(lock(&self.stopped.waiting));
        self.stopped.told.notify_all();
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("the upkeep panicked");
            }
        }
    }
}

/// Whether it is to end.
#[derive(Default)]
struct Stopped {
    now: AtomicBool,
    waiting: Mutex<()>,
    told: Condvar,
}

impl Stopped {
    fn is_now(&self) -> bool {
        self.now.load(Ordering::Relaxed)
    }

    /// Waits for `time`, or until it is to end; whether it is to go on.
    fn wait(&self, time: Duration) -> bool {
        let waiting = lock(&self.waiting);
        let _ = self
            .told
            .wait_timeout_while(waiting, time, |()| !self.is_now());
        !self.is_now()
    }
}

/// Gives this thread the lowest priority.
fn yield_to_all() {
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "the upkeep runs with the priority of all");
    }
}

fn scrub(inventory: &Inventory, pace: ScrubPace, stopped: &Stopped) {
    yield_to_all();
    let mut pause = FIRST_ROUND;
    while stopped.wait(pause) {
        pause = match inventory.scrub_one(pace, &|| stopped.is_now()) {
            Ok(true) => Duration::ZERO,
            Ok(false) => SCRUB_ROUND,
            Err(_) if stopped.is_now() => return,
            Err(error) => {
                tracing::warn!(%error, "scrubbing");
                SCRUB_ROUND
            }
        };
    }
}

fn lock(mutex: &Mutex<()>) -> std::sync::MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests::Site;

    #[test]
    fn upkeep_ends_at_once_when_it_is_told() {
        let (inventory, _directory) = Site::new().shared();
        let upkeep = Upkeep::start(Arc::clone(&inventory), &Config::default(), |_| {}).unwrap();
        assert_eq!(upkeep.threads.len(), 2);
        upkeep.stop();
        assert_eq!(Arc::strong_count(&inventory), 1);
    }

    #[test]
    fn without_an_interval_nothing_is_scrubbed() {
        let (inventory, _directory) = Site::new().shared();
        let mut config = Config::default();
        config.images.scrub_interval = None;
        let upkeep = Upkeep::start(inventory, &config, |_| {}).unwrap();
        assert_eq!(upkeep.threads.len(), 1, "that of the points");
        upkeep.stop();
    }
}
