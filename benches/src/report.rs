//! Tables of a comparison: for people, and as JSON.

use std::fmt::Write;

use crate::cells::{Cell, Measurement};
use crate::checks::Check;

/// What stands below the tables: why the goals that are missed are.
const LIMITS: &str = include_str!("limits.md");

/// A cell and what each round gave: tgt, ours on the raw file, ours on the
/// overlay.
pub(crate) struct Row {
    pub(crate) cell: &'static Cell,
    pub(crate) rounds: Vec<[Measurement; 3]>,
    /// CPU µs of the same transfer without a network, by round.
    pub(crate) floors: Vec<f64>,
}

/// What our two subjects are called, as they stand in a round.
const OURS: [(usize, &str); 2] = [(1, "raw"), (2, "overlay")];

/// Ours against tgt's: medians of the rounds' ratios, because what disturbs a
/// round disturbs its neighbours alike.
struct Ratios {
    rate: f64,
    cpu: f64,
    p50: f64,
}

impl Row {
    pub(crate) fn new(cell: &'static Cell) -> Row {
        Row {
            cell,
            rounds: Vec::new(),
            floors: Vec::new(),
        }
    }

    fn median(&self, number: usize, of: impl Fn(&Measurement) -> f64) -> f64 {
        median(self.rounds.iter().map(|round| of(&round[number])))
    }

    /// The same transfer without a network, against tgt.
    fn floor(&self) -> Option<f64> {
        let of_tgt = self.rounds.iter().map(|[tgt, ..]| tgt.cpu);
        let ratios = self
            .floors
            .iter()
            .zip(of_tgt)
            .map(|(floor, tgt)| floor / tgt);
        (!self.floors.is_empty()).then(|| median(ratios))
    }

    fn ratios(&self, number: usize) -> Ratios {
        let ratio = |of: fn(&Measurement) -> f64| {
            median(
                self.rounds
                    .iter()
                    .map(|round| of(&round[number]) / of(&round[0])),
            )
        };
        Ratios {
            rate: ratio(|m| m.rate),
            cpu: ratio(|m| m.cpu),
            p50: ratio(|m| m.p50),
        }
    }

    /// What falls short of the goal; nothing is good.
    fn shortfalls(&self, number: usize) -> Vec<&'static str> {
        let (ratios, goal) = (self.ratios(number), self.cell.goal);
        let checks = [
            ("rate", ratios.rate >= goal.rate),
            ("CPU", goal.cpu.is_none_or(|cpu| ratios.cpu <= cpu)),
            ("p50", goal.p50.is_none_or(|p50| ratios.p50 <= p50)),
        ];
        let short = checks.into_iter().filter(|(_, reached)| !reached);
        short.map(|(name, _)| name).collect()
    }

    fn verdict(&self, number: usize) -> String {
        match self.shortfalls(number).as_slice() {
            [] => "reached".to_owned(),
            short => format!("**missed: {}**", short.join(", ")),
        }
    }
}

/// The middle of some figures, or between the two in the middle.
pub(crate) fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    match figures.len() {
        0 => 0.0,
        count if count % 2 == 1 => figures[count / 2],
        count => f64::midpoint(figures[count / 2 - 1], figures[count / 2]),
    }
}

/// A line for whoever waits.
pub(crate) fn progress(round: usize, cell: &Cell, measured: &[Measurement; 3]) -> String {
    let [tgt, raw, overlay] = measured;
    let ratio = |m: &Measurement| {
        let (rate, cpu) = (m.rate / tgt.rate, m.cpu / tgt.cpu);
        format!("{rate:.2}x ({cpu:.3})")
    };
    format!(
        "round {}: {}: tgt {:.0}/s {:.1} µs; raw {}; overlay {}",
        round + 1,
        cell.name,
        tgt.rate,
        tgt.cpu,
        ratio(raw),
        ratio(overlay)
    )
}

/// The comparison as two tables: ratios, and what was measured.
pub(crate) fn markdown((rounds, load): (usize, &str), rows: &[Row], checks: &[Check]) -> String {
    let mut text = format!(
        "# Our iSCSI target beside tgt

Written by `make bench-iscsi`: {rounds} rounds, ours and tgt in turn, on the same 256 MiB of a file in the page
cache. *Raw file*: `disk::Raw`; *image + overlay*: a `keep` overlay that holds every other 64 KiB when a round
begins, the rest in the golden image; the cells stand in the order they run, reads before writes. *Floor*: the CPU
time of a bare local `pread` or `pwrite` of the same bytes, against tgt's; mapped reads may go below it, no write
through the page cache can. Nothing is pinned; the initiator's own CPU does not count. Ratios are medians of the rounds' ratios: absolute figures, and on a busy
machine rates too, mean little; CPU per operation stands. Load average when it began: {load}.

"
    );
    let mut line = |args: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{args}");
    };
    line(format_args!(
        "| cell | goal: rate, CPU per operation | raw file | verdict | image + overlay | verdict | floor |"
    ));
    line(format_args!("|---|---|---|---|---|---|---|"));
    for row in rows {
        let goal = row.cell.goal;
        let mut wanted = format!(">= {}x", goal.rate);
        if let Some(cpu) = goal.cpu {
            let _ = write!(wanted, ", <= {cpu}");
        }
        if let Some(p50) = goal.p50 {
            let _ = write!(wanted, ", p50 <= {p50}");
        }
        let mut columns = String::new();
        for (number, _) in OURS {
            let ratios = row.ratios(number);
            let _ = write!(columns, " {:.2}x, {:.3}", ratios.rate, ratios.cpu);
            if goal.p50.is_some() {
                let _ = write!(columns, ", p50 {:.2}", ratios.p50);
            }
            let _ = write!(columns, " | {} |", row.verdict(number));
        }
        let floor = row.floor().map(|floor| format!("{floor:.3}"));
        let floor = floor.unwrap_or_default();
        line(format_args!(
            "| {} | {wanted} |{columns} {floor} |",
            row.cell.name
        ));
    }
    line(format_args!(
        "\n| beside | goal | found | verdict |\n|---|---|---|---|"
    ));
    for check in checks {
        let verdict = if check.reached {
            "reached"
        } else {
            "**missed**"
        };
        let Check {
            name, goal, found, ..
        } = check;
        line(format_args!("| {name} | {goal} | {found} | {verdict} |"));
    }
    line(format_args!(""));
    line(format_args!(
        "| cell | target | operations/s | p50 µs | p99 µs | CPU µs per operation | resident MiB (anonymous) |"
    ));
    line(format_args!("|---|---|---|---|---|---|---|"));
    for row in rows {
        for (number, name) in std::iter::once((0, "tgt")).chain(OURS) {
            let of = |figure: fn(&Measurement) -> f64| row.median(number, figure);
            line(format_args!(
                "| {} | {name} | {:.0} | {:.1} | {:.1} | {:.2} | {:.1} ({:.1}) |",
                row.cell.name,
                of(|m| m.rate),
                of(|m| m.p50),
                of(|m| m.p99),
                of(|m| m.cpu),
                of(|m| m.resident),
                of(|m| m.anonymous),
            ));
        }
    }
    text + LIMITS
}

/// Everything that was measured.
pub(crate) fn json(rows: &[Row], checks: &[Check]) -> String {
    let measurement = |m: &Measurement| {
        serde_json::json!({
            "operations_per_second": rounded(m.rate), "p50_us": rounded(m.p50),
            "p99_us": rounded(m.p99), "cpu_us_per_operation": rounded(m.cpu),
            "resident_mib": rounded(m.resident), "anonymous_mib": rounded(m.anonymous),
        })
    };
    let cells = rows.iter().map(|row| {
        let ours = OURS.map(|(number, name)| {
            let ratios = row.ratios(number);
            serde_json::json!({
                "disk": name, "rate_ratio": rounded(ratios.rate), "cpu_ratio": rounded(ratios.cpu),
                "p50_ratio": rounded(ratios.p50), "missed": row.shortfalls(number),
            })
        });
        let rounds = row.rounds.iter().map(|[tgt, raw, overlay]| {
            serde_json::json!({
                "tgt": measurement(tgt), "raw": measurement(raw), "overlay": measurement(overlay),
            })
        });
        serde_json::json!({
            "cell": row.cell.name,
            "goal": {"rate": row.cell.goal.rate, "cpu": row.cell.goal.cpu, "p50": row.cell.goal.p50},
            "ours": ours,
            "floor_cpu_ratio": row.floor().map(rounded),
            "rounds": rounds.collect::<Vec<_>>(),
        })
    });
    let checks = checks.iter().map(|check| {
        serde_json::json!({
            "check": check.name, "goal": check.goal, "found": check.found, "reached": check.reached,
        })
    });
    let all = serde_json::json!({
        "cells": cells.collect::<Vec<_>>(),
        "checks": checks.collect::<Vec<_>>(),
    });
    format!("{all:#}\n")
}

fn rounded(figure: f64) -> f64 {
    (figure * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cells::CELLS;

    fn measurement(rate: f64, cpu: f64) -> Measurement {
        Measurement {
            rate,
            cpu,
            ..Measurement::default()
        }
    }

    #[test]
    fn a_goal_is_reached_by_the_median_of_the_rounds_ratios() {
        let mut row = Row::new(&CELLS[0]); // 10x, 0.06
        for (tgt, ours) in [(1.0, 11.0), (100.0, 1200.0), (1.0, 2.0)] {
            let round = [
                measurement(tgt, 100.0),
                measurement(ours, 5.0),
                measurement(ours, 7.0),
            ];
            row.rounds.push(round);
        }
        assert_eq!(row.verdict(1), "reached");
        assert_eq!(row.verdict(2), "**missed: CPU**");
    }
}
