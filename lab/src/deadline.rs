//! A moment by which something must have happened.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::interrupted;

/// How often a wait looks again.
const LOOK: Duration = Duration::from_millis(50);

/// A moment by which something must have happened. Software emulation on a
/// busy machine is slow: deadlines are there to end a hang, not to judge speed.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
}

impl Deadline {
    /// This many seconds from now.
    pub fn seconds(seconds: u64) -> Deadline {
        Deadline {
            at: Instant::now() + Duration::from_secs(seconds),
        }
    }

    /// Time left; zero when it has passed.
    pub fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// Sleeps a moment; an error when the deadline has passed or the process
    /// was asked to end.
    pub fn pause(&self) -> Result<()> {
        if interrupted() {
            bail!("interrupted");
        }
        let left = self.left();
        if left.is_zero() {
            bail!("time is up");
        }
        std::thread::sleep(LOOK.min(left));
        Ok(())
    }

    /// Looks until `look` returns something.
    pub fn wait<T>(&self, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        loop {
            if let Some(found) = look()? {
                return Ok(found);
            }
            self.pause()?;
        }
    }
}
