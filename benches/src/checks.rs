//! What is asked of our target beside the cells: cold reads, rest, fairness.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};

use crate::cells::{log_in, percentile};
use crate::initiator::{Direction, Initiator, Load, Order};
use crate::peer::{self, Running, Subject};
use crate::process;
use crate::report::median;

/// Cold reads of 4 KiB in one run, no place twice.
const COLD_READS: u32 = 16_384;
const COLD_DEPTH: u32 = 32;
/// Part of a local libaio's rate that cold reads reach.
const COLD_GOAL: f64 = 0.7;
/// Sessions that do nothing.
const IDLE_SESSIONS: usize = 100;
/// How long they are watched.
const IDLE_TIME: Duration = Duration::from_secs(10);
/// Private memory they may add.
const IDLE_GOAL_MIB: f64 = 25.0;
/// How much another's load may raise a p99.
const FAIRNESS_GOAL: f64 = 3.0;

/// A question and its answer.
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) goal: String,
    pub(crate) found: String,
    pub(crate) reached: bool,
}

/// All checks; figures are medians of `rounds`.
pub(crate) fn all(
    home: &Path,
    cold_home: &Path,
    rounds: usize,
    time: Duration,
) -> io::Result<Vec<Check>> {
    let mut checks = vec![cold_reads(cold_home, rounds)?];
    checks.extend(rest(home)?);
    for (name, bytes, depth) in [
        ("4 KiB reads, depth 32", 4096, 32),
        ("1 MiB reads, depth 8", 1 << 20, 8),
    ] {
        checks.push(fairness(home, name, (bytes, depth), rounds, time)?);
    }
    Ok(checks)
}

/// Random reads of a file that is in no page cache, against fio on the same.
fn cold_reads(home: &Path, rounds: usize) -> io::Result<Check> {
    let disk = peer::disk_path(home);
    let mut ratios = Vec::new();
    let (mut ours, mut local) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        forget(&disk)?;
        let running = Running::start(Subject::Raw, home, &[])?;
        let mut initiator = log_in(&running.address, 0)?;
        let outcome = initiator.run(&Load {
            direction: Direction::Read,
            bytes: 4096,
            depth: COLD_DEPTH,
            order: Order::shuffled(65536, u64::try_from(round).unwrap_or(0)),
            until: None,
            count: Some(u64::from(COLD_READS)),
            in_step: false,
        })?;
        initiator.log_out()?;
        running.end()?;
        forget(&disk)?;
        ours.push(outcome.operations as f64 / outcome.seconds);
        local.push(libaio_rate(&disk)?);
        ratios.push(ours[round] / local[round]);
        eprintln!(
            "cold reads: {:.0}/s, libaio {:.0}/s",
            ours[round], local[round]
        );
    }
    let ratio = median(ratios.into_iter());
    Ok(Check {
        name: format!("cold 4 KiB random reads, depth {COLD_DEPTH}, against a local libaio"),
        goal: format!(">= {COLD_GOAL}x"),
        found: format!(
            "{ratio:.2}x ({:.0}/s, {:.0}/s)",
            median(ours.into_iter()),
            median(local.into_iter())
        ),
        reached: ratio >= COLD_GOAL,
    })
}

/// Drops a file from the page cache.
fn forget(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    fadvise(&file, 0, None, Advice::DontNeed)?;
    Ok(())
}

/// The same reads by fio.
fn libaio_rate(disk: &Path) -> io::Result<f64> {
    let output = Command::new("fio")
        .args([
            "--name=cold",
            "--ioengine=libaio",
            "--direct=1",
            "--rw=randread",
        ])
        .args(["--bs=4k", "--output-format=json", "--randrepeat=0"])
        .arg(format!("--iodepth={COLD_DEPTH}"))
        .arg(format!("--number_ios={COLD_READS}"))
        .arg(format!("--filename={}", disk.display()))
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    // A note may stand before the JSON.
    let json = text.find('{').map_or("", |at| &text[at..]);
    let value: serde_json::Value = serde_json::from_str(json).map_err(io::Error::other)?;
    let rate = value["jobs"][0]["read"]["iops"].as_f64();
    rate.ok_or_else(|| io::Error::other("fio told no rate"))
}

/// What sessions cost that do nothing.
fn rest(home: &Path) -> io::Result<[Check; 2]> {
    let running = Running::start(Subject::Raw, home, &[])?;
    // The first session brings what all share.
    let first = log_in(&running.address, 0)?;
    thread::sleep(Duration::from_millis(500));
    let before = process::memory(running.pid)?.private;
    let sessions: Vec<Initiator> = (1..=IDLE_SESSIONS)
        .map(|number| log_in(&running.address, number))
        .collect::<io::Result<_>>()?;
    thread::sleep(Duration::from_millis(500));
    let after = process::memory(running.pid)?.private;
    let cpu = process::cpu_of_threads(running.pid)?;
    thread::sleep(IDLE_TIME);
    let cpu = process::cpu_of_threads(running.pid)? - cpu;
    let mib = after.saturating_sub(before) as f64 / f64::from(1 << 20);
    for session in sessions.into_iter().chain([first]) {
        session.log_out()?;
    }
    Ok([
        Check {
            name: format!("private memory of {IDLE_SESSIONS} idle sessions"),
            goal: format!("< {IDLE_GOAL_MIB} MiB"),
            found: format!("{mib:.1} MiB"),
            reached: mib < IDLE_GOAL_MIB,
        },
        Check {
            name: format!(
                "CPU time of a server with {IDLE_SESSIONS} idle sessions, in {} s",
                IDLE_TIME.as_secs()
            ),
            goal: "none".to_owned(),
            found: format!("{} µs", cpu.as_micros()),
            reached: cpu < Duration::from_millis(1),
        },
    ])
}

/// How the p99 of one initiator's 4 KiB reads at depth 1 stands another's
/// load.
fn fairness(
    home: &Path,
    name: &str,
    (bytes, depth): (u32, u32),
    rounds: usize,
    time: Duration,
) -> io::Result<Check> {
    let running = Running::start(Subject::Raw, home, &[])?;
    let mut quiet = log_in(&running.address, 0)?;
    let mut loud = log_in(&running.address, 1)?;
    let load = |bytes, depth, until| Load {
        direction: Direction::Read,
        bytes,
        depth,
        order: Order::Random(depth.into()),
        until: Some(until),
        count: None,
        in_step: false,
    };
    let p99 = |quiet: &mut Initiator| -> io::Result<f64> {
        let mut latencies = quiet.run(&load(4096, 1, Instant::now() + time))?.latencies;
        latencies.sort_unstable();
        Ok(percentile(&latencies, 0.99))
    };
    let mut ratios = Vec::new();
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        alone.push(p99(&mut quiet)?);
        let until = Instant::now() + time + Duration::from_millis(50);
        let disturbed = thread::scope(|scope| {
            let other = scope.spawn(|| loud.run(&load(bytes, depth, until)));
            let p99 = p99(&mut quiet);
            let other = other.join();
            other.unwrap_or_else(|_| Err(io::Error::other("an initiator panicked")))?;
            p99
        })?;
        beside.push(disturbed);
        ratios.push(beside[round] / alone[round]);
    }
    let ratio = median(ratios.into_iter());
    Ok(Check {
        name: format!("p99 of 4 KiB reads, depth 1, beside another's {name}"),
        goal: format!("<= {FAIRNESS_GOAL}x"),
        found: format!(
            "{ratio:.1}x ({:.0} µs alone, {:.0} µs beside)",
            median(alone.into_iter()),
            median(beside.into_iter())
        ),
        reached: ratio <= FAIRNESS_GOAL,
    })
}
