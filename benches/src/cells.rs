//! The cells of the comparison, their goals against tgt, and one measurement.

use std::io;
use std::time::{Duration, Instant};

use crate::initiator::{Address, Direction, Initiator, Load, Order, Outcome};
use crate::peer::Running;
use crate::process;

/// What is measured side by side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) goal: Goal,
}

/// What the initiators do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// `sessions` of them, each `depth` commands deep.
    Transfer {
        direction: Direction,
        bytes: u32,
        depth: u32,
        sessions: u32,
    },
    /// One connects, logs in and logs out, again and again.
    Login,
}

/// Ours against tgt's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    /// At least this much of its rate.
    pub(crate) rate: f64,
    /// At most this much of its CPU time per operation.
    pub(crate) cpu: Option<f64>,
    /// At most this much of its median latency.
    pub(crate) p50: Option<f64>,
}

const fn transfer(direction: Direction, bytes: u32, depth: u32, sessions: u32) -> Kind {
    Kind::Transfer {
        direction,
        bytes,
        depth,
        sessions,
    }
}

const fn goal(rate: f64, cpu: f64) -> Goal {
    Goal {
        rate,
        cpu: Some(cpu),
        p50: None,
    }
}

const fn cell(name: &'static str, kind: Kind, goal: Goal) -> Cell {
    Cell { name, kind, goal }
}

const KIB: u32 = 1024;
use Direction::{Read, Write};

/// Reads before writes: a write moves blocks into the overlay.
pub(crate) const CELLS: [Cell; 11] = [
    cell(
        "4 KiB random read, depth 32",
        transfer(Read, 4 * KIB, 32, 1),
        goal(10.0, 0.06),
    ),
    cell(
        "4 KiB random read, depth 1",
        transfer(Read, 4 * KIB, 1, 1),
        Goal {
            rate: 2.9,
            cpu: Some(0.25),
            p50: Some(0.5),
        },
    ),
    cell(
        "128 KiB read, depth 8",
        transfer(Read, 128 * KIB, 8, 1),
        goal(2.5, 0.2),
    ),
    cell(
        "256 KiB read, depth 8",
        transfer(Read, 256 * KIB, 8, 1),
        goal(2.5, 0.2),
    ),
    cell(
        "1 MiB read, depth 8",
        transfer(Read, 1024 * KIB, 8, 1),
        goal(2.5, 0.2),
    ),
    cell(
        "8 sessions x 16 KiB read, depth 4",
        transfer(Read, 16 * KIB, 4, 8),
        goal(3.4, 0.15),
    ),
    cell(
        "connect + login + logout",
        Kind::Login,
        Goal {
            rate: 0.5,
            cpu: None,
            p50: None,
        },
    ),
    cell(
        "4 KiB random write, depth 32",
        transfer(Write, 4 * KIB, 32, 1),
        goal(4.0, 0.16),
    ),
    cell(
        "128 KiB write, depth 8",
        transfer(Write, 128 * KIB, 8, 1),
        goal(2.8, 0.2),
    ),
    cell(
        "256 KiB write, depth 8",
        transfer(Write, 256 * KIB, 8, 1),
        goal(2.8, 0.2),
    ),
    cell(
        "1 MiB write, depth 8",
        transfer(Write, 1024 * KIB, 8, 1),
        goal(2.8, 0.2),
    ),
];

/// One subject in one cell in one round.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measurement {
    /// Operations a second.
    pub(crate) rate: f64,
    /// Latencies, in microseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// CPU time of the target per operation, in microseconds.
    pub(crate) cpu: f64,
    /// Memory of the target at the end, in MiB.
    pub(crate) resident: f64,
    pub(crate) anonymous: f64,
}

impl Cell {
    /// Runs the cell for `time`.
    pub(crate) fn measure(&self, target: &Running, time: Duration) -> io::Result<Measurement> {
        let (outcome, cpu) = match self.kind {
            Kind::Login => {
                let before = process::cpu_of_process(target.pid)?;
                let outcome = logins(&target.address, time)?;
                (outcome, process::cpu_of_process(target.pid)? - before)
            }
            Kind::Transfer {
                direction,
                bytes,
                depth,
                sessions,
            } => {
                let load = |number| Load {
                    direction,
                    bytes,
                    depth,
                    order: Order::Random(number),
                    until: None,
                    count: None,
                    in_step: false,
                };
                let loads: Vec<Load> = (1..=u64::from(sessions)).map(load).collect();
                transfers(target, loads, time)?
            }
        };
        let memory = process::memory(target.pid)?;
        let mut latencies = outcome.latencies;
        latencies.sort_unstable();
        let operations = outcome.operations as f64;
        Ok(Measurement {
            rate: operations / outcome.seconds,
            p50: percentile(&latencies, 0.5),
            p99: percentile(&latencies, 0.99),
            cpu: cpu.as_secs_f64() * 1e6 / operations,
            resident: memory.resident as f64 / f64::from(1 << 20),
            anonymous: memory.anonymous as f64 / f64::from(1 << 20),
        })
    }
}

/// Runs loads at once, each in a session of its own, for `time`; their
/// operations and latencies together, and the target's CPU time meanwhile.
fn transfers(
    target: &Running,
    loads: Vec<Load>,
    time: Duration,
) -> io::Result<(Outcome, Duration)> {
    let mut initiators = Vec::new();
    for number in 0..loads.len() {
        initiators.push(log_in(&target.address, number)?);
    }
    let before = process::cpu_of_threads(target.pid)?;
    let until = Instant::now() + time;
    let outcomes = std::thread::scope(|scope| {
        let running: Vec<_> = initiators
            .iter_mut()
            .zip(loads)
            .map(|(initiator, load)| {
                let load = Load {
                    until: Some(until),
                    ..load
                };
                scope.spawn(move || initiator.run(&load))
            })
            .collect();
        let ended = running.into_iter().map(|run| {
            let outcome = run.join();
            outcome.unwrap_or_else(|_| Err(io::Error::other("an initiator panicked")))
        });
        ended.collect::<io::Result<Vec<Outcome>>>()
    })?;
    let cpu = process::cpu_of_threads(target.pid)?.saturating_sub(before);
    for initiator in initiators {
        initiator.log_out()?;
    }
    let mut total = Outcome::default();
    for outcome in outcomes {
        total.operations += outcome.operations;
        total.seconds = total.seconds.max(outcome.seconds);
        total.latencies.extend(outcome.latencies);
    }
    Ok((total, cpu))
}

/// A session of the `number`th initiator, its unit asked for its size.
pub(crate) fn log_in(address: &Address, number: usize) -> io::Result<Initiator> {
    let name = format!("iqn.2026-01.bench:initiator-{number}");
    let mut initiator = Initiator::log_in(address, &name)?;
    initiator.prepare()?;
    Ok(initiator)
}

fn logins(address: &Address, time: Duration) -> io::Result<Outcome> {
    let mut outcome = Outcome::default();
    let begun = Instant::now();
    while begun.elapsed() < time {
        let start = Instant::now();
        Initiator::log_in(address, "iqn.2026-01.bench:initiator")?.log_out()?;
        let latency = u32::try_from(start.elapsed().as_nanos());
        outcome.latencies.push(latency.unwrap_or(u32::MAX));
        outcome.operations += 1;
    }
    outcome.seconds = begun.elapsed().as_secs_f64();
    Ok(outcome)
}

/// In microseconds, of latencies in order.
pub(crate) fn percentile(latencies: &[u32], part: f64) -> f64 {
    let last = latencies.len().saturating_sub(1);
    // A percentile of as many as there can be needs no more than an f64 holds.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let at = (last as f64 * part).round() as usize;
    latencies
        .get(at)
        .map_or(0.0, |nanos| f64::from(*nanos) / 1e3)
}
