//! CPU time of a server over a stretch of the benchmark.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::time::Duration;

use crate::process;

/// What a process has used up to a moment.
pub(super) struct Usage {
    pid: u32,
    /// To the nanosecond, by thread.
    threads: BTreeMap<String, u64>,
    /// Of the whole process with the threads that ended, to 10 ms.
    total: Duration,
}

impl Usage {
    /// Up to now.
    pub(super) fn of(pid: u32) -> io::Result<Usage> {
        let mut threads = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?;
            // A thread may end while we look.
            if let Ok(text) = fs::read_to_string(task.path().join("schedstat")) {
                let nanoseconds = text.split_whitespace().next().and_then(|w| w.parse().ok());
                let name = task.file_name().to_string_lossy().into_owned();
                threads.insert(name, nanoseconds.unwrap_or(0));
            }
        }
        Ok(Usage {
            pid,
            threads,
            total: process::cpu_of_process(pid)?,
        })
    }

    /// CPU time since then, in seconds.
    pub(super) fn seconds_since(&self) -> io::Result<f64> {
        let now = Usage::of(self.pid)?;
        let all_live = self.threads.keys().all(|id| now.threads.contains_key(id));
        let since = match all_live {
            true => {
                let sum = |usage: &Usage| usage.threads.values().sum::<u64>();
                Duration::from_nanos(sum(&now).saturating_sub(sum(self)))
            }
            false => now.total.saturating_sub(self.total),
        };
        Ok(since.as_secs_f64().max(1e-6))
    }
}
