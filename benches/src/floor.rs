//! What the same transfers cost without any network: a local `pread` or
//! `pwrite` of the same file. No target that copies less than that exists.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::DISK_BYTES;
use crate::cells::Kind;
use crate::initiator::Direction;
use crate::peer;
use crate::process;

/// Transfers between two looks at the clock.
const BATCH: u64 = 64;

/// CPU time of one transfer, in µs; `None` where a cell transfers nothing.
pub(crate) fn cpu(kind: &Kind, home: &Path, time: Duration) -> io::Result<Option<f64>> {
    let &Kind::Transfer {
        direction, bytes, ..
    } = kind
    else {
        return Ok(None);
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(peer::disk_path(home))?;
    let mut buffer = vec![0x5a; usize::try_from(bytes).map_err(io::Error::other)?];
    let places = u64::try_from(DISK_BYTES).map_err(io::Error::other)? / u64::from(bytes);
    let (mut dice, mut count) = (1u64, 0u64);
    let (start, before) = (Instant::now(), process::cpu_of_threads(std::process::id())?);
    while start.elapsed() < time {
        for _ in 0..BATCH {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let offset = (dice >> 33) % places * u64::from(bytes);
            match direction {
                Direction::Read => file.read_exact_at(&mut buffer, offset)?,
                Direction::Write => file.write_all_at(&buffer, offset)?,
            }
        }
        count += BATCH;
    }
    let used = process::cpu_of_threads(std::process::id())?.saturating_sub(before);
    Ok(Some(used.as_secs_f64() * 1e6 / count as f64))
}
