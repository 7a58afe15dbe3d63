//! Instructions per operation, counted by valgrind: a judge without noise.
//!
//! Each count is the difference between two runs of a whole target, one with
//! operations and one without, over their number. The initiator sends batches
//! and waits for all of a batch, so the target meets the same receive buffers
//! in every run. The kernel's part is not in it, and no disk in memory: what the
//! C library takes to copy a block depends on the processor.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::process::Command;

use crate::cells::log_in;
use crate::initiator::{Direction, Load, Order};
use crate::peer::{self, Running, Subject};

/// Operations of a run: so many that the noise of the start is lost in them.
const OPERATIONS: u64 = 8192;
/// How many a batch has: a batch is one segment.
const BATCH: u32 = 8;
/// How far a count may be from the recorded one: compilers differ, and a
/// feature may cost a little.
const TOLERANCE: f64 = 0.25;
/// Large enough for every place, small enough to be made at once.
const DISK_BYTES: usize = 32 << 20;

const SUBJECTS: [Subject; 3] = [Subject::Raw, Subject::Overlay, Subject::Layered];
const OPERATIONS_COUNTED: [(&str, Direction, u32); 3] = [
    ("4 KiB read", Direction::Read, 4 << 10),
    ("4 KiB write", Direction::Write, 4 << 10),
    ("256 KiB read", Direction::Read, 256 << 10),
];

/// What is to be done with the counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Compare them with those recorded.
    Check,
    /// Record them.
    Update,
}

/// Counts, and compares with or writes `record`.
pub(crate) fn run(purpose: Purpose, record: &Path) -> io::Result<()> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        if std::env::var("CI").is_ok_and(|ci| ci == "true") {
            return Err(io::Error::other("valgrind is missing"));
        }
        eprintln!("bench: valgrind is missing, so instructions are not counted");
        return Ok(());
    }
    let found = count()?;
    if purpose == Purpose::Update {
        let text = serde_json::to_string_pretty(&found).map_err(io::Error::other)?;
        return std::fs::write(record, text + "\n");
    }
    let text = std::fs::read_to_string(record)?;
    let recorded: BTreeMap<String, u64> = serde_json::from_str(&text).map_err(io::Error::other)?;
    let mut complaints = Vec::new();
    for (name, found) in &found {
        let before = recorded.get(name).copied().unwrap_or(0);
        let change = *found as f64 / before as f64 - 1.0;
        println!("{name}: {found} instructions, recorded {before}");
        if change.is_nan() || change.abs() > TOLERANCE {
            complaints.push(format!("{name}: {before} -> {found}"));
        }
    }
    match complaints.as_slice() {
        [] => Ok(()),
        _ => Err(io::Error::other(format!(
            "instructions per operation have changed (for the better or worse, `make \
             instructions` records it):\n{}",
            complaints.join("\n")
        ))),
    }
}

fn count() -> io::Result<BTreeMap<String, u64>> {
    let home = tempfile::tempdir()?;
    for path in [peer::disk_path(home.path()), peer::image_path(home.path())] {
        std::fs::write(path, vec![1; DISK_BYTES])?;
    }
    let mut counts = BTreeMap::new();
    for subject in SUBJECTS {
        let idle = instructions(subject, home.path(), None)?;
        for (name, direction, bytes) in OPERATIONS_COUNTED {
            let load = Load {
                direction,
                bytes,
                depth: BATCH,
                order: Order::Random(1),
                until: None,
                count: Some(OPERATIONS),
                in_step: true,
            };
            let busy = instructions(subject, home.path(), Some(&load))?;
            let name = format!("{}: {name}", subject.name());
            counts.insert(name, busy.saturating_sub(idle) / OPERATIONS);
        }
    }
    Ok(counts)
}

/// Instructions of a target from its start to its end, with a load or none.
fn instructions(subject: Subject, home: &Path, load: Option<&Load>) -> io::Result<u64> {
    let out = home.join("callgrind.out");
    let option = format!("--callgrind-out-file={}", out.display());
    let wrapper = ["valgrind", "-q", "--tool=callgrind", &option];
    let running = Running::start(subject, home, &wrapper)?;
    let mut initiator = log_in(&running.address, 0)?;
    if let Some(load) = load {
        initiator.run(load)?;
    }
    initiator.log_out()?;
    running.end()?;
    let text = std::fs::read_to_string(out)?;
    let totals = text.lines().find_map(|line| line.strip_prefix("totals:"));
    let count = totals.and_then(|totals| totals.trim().parse().ok());
    count.ok_or_else(|| io::Error::other("callgrind told no totals"))
}
