//! Tables of what was measured: for people, and as JSON.

use std::fmt::Write;

use super::{Cell, Found};

/// A line for whoever waits.
pub(super) fn progress(cell: &Cell) -> String {
    let Cell { name, against, .. } = cell;
    format!("{name}: {:.2}x of {against}", cell.ratio())
}

/// All of it as tables.
pub(super) fn markdown((rounds, load): (usize, &str), found: &Found) -> String {
    let mut text = format!(
        "# The program beside other servers on a LAN

Written by `make bench-net`: {rounds} rounds in which the servers took turns, each on a LAN of its own (a network namespace and a cable);
ratios are medians of the rounds' ratios. CPU time is that of the server's process alone. *diskless* is the whole program in full mode with a
configuration that names the pool, leases in its store. *dnsmasq*: `--no-ping`, `--quiet-dhcp`, leases in its file; *Kea*: memfile that
persists, no clean-up meanwhile, errors logged only; *nginx*: `sendfile`, one process, no log. The machines are UEFI PXE firmware that asks again after 1, 2,
4 seconds; every server begins a round with nothing remembered. The loader's client does as EDK2 does: size probe and abort, then blocks
of 1468 bytes, windows of 4, and 2 ms each way that the client's end puts in, the same for all. Ranges are random, over kept connections,
out of the page cache. Load average when it began: {load}.

| what | against | goal | ratio | verdict | ours | theirs | unit |
|---|---|---|---|---|---|---|---|
"
    );
    for cell in &found.cells {
        let _ = writeln!(
            text,
            "| {} | {} | >= {}x | {:.2}x | {} | {} | {} | {} |",
            cell.name,
            cell.against,
            cell.goal,
            cell.ratio(),
            verdict(cell.is_reached()),
            figure(cell.median(1)),
            figure(cell.median(0)),
            cell.unit,
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
            check.is_reached.map_or("", verdict)
        );
    }
    text
}

fn verdict(is_reached: bool) -> &'static str {
    match is_reached {
        true => "reached",
        false => "**missed**",
    }
}

fn figure(value: f64) -> String {
    match value {
        ..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// All of it, every round.
pub(super) fn json(found: &Found) -> String {
    let rounded = |figure: f64| (figure * 1000.0).round() / 1000.0;
    let cells = found.cells.iter().map(|cell| {
        let rounds = cell.rounds.iter();
        let rounds = rounds.map(|[theirs, ours]| [rounded(*theirs), rounded(*ours)]);
        serde_json::json!({
            "cell": cell.name, "against": cell.against, "unit": cell.unit, "goal": cell.goal,
            "ratio": rounded(cell.ratio()), "theirs_and_ours": rounds.collect::<Vec<_>>(),
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
    format!("{all:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_reached_by_the_median_of_the_rounds_ratios() {
        let mut cell = Cell {
            name: "x",
            against: "y",
            unit: "z",
            goal: 1.5,
            rounds: vec![[100.0, 160.0], [1.0, 1.6], [1.0, 9.0]],
        };
        assert!(cell.is_reached());
        assert!((cell.ratio() - 1.6).abs() < 1e-9);
        cell.rounds.push([1.0, 1.0]);
        cell.rounds.push([1.0, 1.0]);
        cell.rounds.push([1.0, 1.0]);
        assert!(!cell.is_reached());
    }
}
