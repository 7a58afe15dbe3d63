//! What a process has used, as the kernel says under /proc.

use std::fs;
use std::io;
use std::time::Duration;

/// Ticks of /proc/PID/stat in a second (USER_HZ, the same everywhere).
const TICKS_PER_SECOND: u64 = 100;

/// Memory of a process, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// All of it, mapped files included.
    pub(crate) resident: u64,
    /// Of it, anonymous.
    pub(crate) anonymous: u64,
    /// Of it, nobody else's: what would come back if the process ended.
    pub(crate) private: u64,
}

/// CPU time of all threads there are, to the nanosecond; threads that ended
/// are not in it.
pub(crate) fn cpu_of_threads(pid: u32) -> io::Result<Duration> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while we look.
        if let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) {
            total += first_number(&text);
        }
    }
    Ok(Duration::from_nanos(total))
}

/// CPU time of the process and of every thread it ever had, to 10 ms.
pub(crate) fn cpu_of_process(pid: u32) -> io::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in brackets may hold anything.
    let behind = text.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = behind
        .split_whitespace()
        .skip(11) // utime, stime
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// Memory of a process.
pub(crate) fn memory(pid: u32) -> io::Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    Ok(Memory {
        resident: kilobytes(&status, "VmRSS:"),
        anonymous: kilobytes(&status, "RssAnon:"),
        private: kilobytes(&rollup, "Private_Clean:") + kilobytes(&rollup, "Private_Dirty:"),
    })
}

fn kilobytes(text: &str, field: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.map_or(0, first_number) * 1024
}

fn first_number(text: &str) -> u64 {
    let word = text.split_whitespace().next();
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}
