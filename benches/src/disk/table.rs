//! Tables of what was measured: for people, and as JSON.

use std::fmt::Write;

use super::{Cell, Cost, Found, Goal};

/// What stands below the tables: why the goals that are missed are.
const LIMITS: &str = include_str!("limits.md");

/// A line for whoever waits.
pub(super) fn progress(cell: &Cell) -> String {
    let (cpu, wall) = (cell.ratio(Cost::cpu), cell.ratio(Cost::wall));
    let against = cell.against;
    format!("{}: {cpu:.2}x CPU, {wall:.2}x time of {against}", cell.name)
}

/// All of it as tables.
pub(super) fn markdown((rounds, load): (usize, &str), found: &Found) -> String {
    let mut text = format!(
        "# Overlays and disk formats beside a raw file

Written by `make bench-disk`: {rounds} rounds in one process, without a network; the disks of a line took turns, and its ratios are
medians over the pairs of turns. CPU time is that of the process (what the kernel writes back later is not in it), time is what a clock
shows, with the medium's waits in it. Everything that is read lies in the page cache. A *read* goes out of the disk's mappings by one call of the
kernel's that copies it, as the server sends it; a *`pread`* is `Disk::read`, for whoever needs a copy. Writes are of 4 KiB, all over the disk, with a
flush (`fdatasync`) behind every 500; the like of a fresh one is a write into a raw file that is sparse. *Image + overlay*: a `keep` overlay; where it is read it holds every other 64 KiB, the rest comes from the image.
*Restore points*: the same, with what it holds shared evenly among that many layers. Of the 20 GiB in the large overlay one stretch of 64 KiB
in 256 is written and the others are unmapped, which takes the same marks without the data. Load average when it began: {load}.

| what | against | CPU | time | goal | verdict | µs: CPU, time | µs of the other |
|---|---|---|---|---|---|---|---|
"
    );
    for cell in &found.cells {
        let goal = match cell.goal {
            Goal::Cpu(most) => format!("CPU <= {most}x"),
            Goal::Wall(most) => format!("time <= {most}x"),
            Goal::None => String::new(),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {:.2}x | {:.2}x | {goal} | {} | {}, {} | {}, {} |",
            cell.name,
            cell.against,
            cell.ratio(Cost::cpu),
            cell.ratio(Cost::wall),
            cell.is_reached().map_or("", verdict),
            figure(cell.median(1, Cost::cpu)),
            figure(cell.median(1, Cost::wall)),
            figure(cell.median(0, Cost::cpu)),
            figure(cell.median(0, Cost::wall)),
        );
    }
    let _ = write!(
        text,
        "\n| beside | goal | found | verdict |\n|---|---|---|---|\n"
    );
    for check in &found.checks {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            check.name,
            check.goal,
            check.found,
            verdict(check.is_reached)
        );
    }
    text + LIMITS
}

fn verdict(is_reached: bool) -> &'static str {
    match is_reached {
        true => "reached",
        false => "**missed**",
    }
}

/// Three digits that mean something.
fn figure(us: f64) -> String {
    match us {
        ..10.0 => format!("{us:.2}"),
        ..100.0 => format!("{us:.1}"),
        _ => format!("{us:.0}"),
    }
}

/// All of it, every turn.
pub(super) fn json(found: &Found) -> String {
    let rounded = |figure: f64| (figure * 1000.0).round() / 1000.0;
    let costs = |cell: &Cell, which: usize| {
        let cost = |sample: &[Cost; 2]| [rounded(sample[which].cpu), rounded(sample[which].wall)];
        cell.samples.iter().map(cost).collect::<Vec<_>>()
    };
    let cells = found.cells.iter().map(|cell| {
        let (measure, most) = match cell.goal {
            Goal::Cpu(most) => (Some("cpu"), Some(most)),
            Goal::Wall(most) => (Some("time"), Some(most)),
            Goal::None => (None, None),
        };
        serde_json::json!({
            "what": cell.name, "against": cell.against,
            "cpu_ratio": rounded(cell.ratio(Cost::cpu)), "time_ratio": rounded(cell.ratio(Cost::wall)),
            "goal": {"of": measure, "most": most}, "reached": cell.is_reached(),
            "cpu_and_time_us": costs(cell, 1), "cpu_and_time_us_of_other": costs(cell, 0),
        })
    });
    let checks = found.checks.iter().map(|check| {
        serde_json::json!({
            "check": check.name, "goal": check.goal, "found": check.found, "reached": check.is_reached,
        })
    });
    let all = serde_json::json!({
        "cells": cells.collect::<Vec<_>>(),
        "checks": checks.collect::<Vec<_>>(),
    });
    format!("{all}\n")
}
