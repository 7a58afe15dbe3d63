//! Group commit: flushes that wait together share one round of syncs.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::DiskError;

/// Rounds of one disk. A flush is done once a round that *began* after it
/// was asked for has succeeded.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    running: bool,
    /// Number of the last round that began.
    begun: u64,
    /// Number of the last round that succeeded; it did the work of all before.
    succeeded: u64,
}

impl Rounds {
    /// Returns once a round that began after this call has succeeded, or one
    /// that this caller ran itself has failed.
    pub(crate) fn join(
        &self,
        round: impl FnOnce() -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let mut state = self.lock();
        let needed = state.begun + 1;
        while state.running {
            state = self
                .ended
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            if state.succeeded >= needed {
                return Ok(());
            }
        }
        state.running = true;
        state.begun += 1;
        let number = state.begun;
        drop(state);
        let running = Running(self);
        let answer = round();
        let mut state = running.0.lock();
        if answer.is_ok() {
            state.succeeded = number;
        }
        drop(state);
        answer
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the round also when it panics, so that nobody waits for ever.
struct Running<'a>(&'a Rounds);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.lock().running = false;
        self.0.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn flushes_that_wait_together_share_one_round() {
        let rounds = Rounds::default();
        let count = AtomicU32::new(0);
        thread::scope(|scope| {
            let (go, gate) = mpsc::channel::<()>();
            let (begun, has_begun) = mpsc::channel();
            let (rounds, count) = (&rounds, &count);
            scope.spawn(move || {
                rounds.join(|| {
                    begun.send(()).unwrap();
                    gate.recv().unwrap();
                    count.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                })
            });
            has_begun.recv().unwrap();
            let waiting: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(move || {
                        rounds.join(|| {
                            count.fetch_add(1, Ordering::Relaxed);
                            Ok(())
                        })
                    })
                })
                .collect();
            // Those that come in time share one round; none uses the one that
            // ran when they came.
            thread::sleep(std::time::Duration::from_millis(50));
            go.send(()).unwrap();
            for flush in waiting {
                flush.join().unwrap().unwrap();
            }
        });
        let count = count.into_inner();
        assert!((2..=9).contains(&count), "{count} rounds");
    }

    #[test]
    fn a_failed_round_is_nobody_elses_success() {
        let rounds = Rounds::default();
        assert!(rounds.join(|| Err(DiskError::ReadOnly)).is_err());
        assert!(rounds.join(|| Err(DiskError::ReadOnly)).is_err());
        assert!(rounds.join(|| Ok(())).is_ok());
    }
}
