//! libiscsi's conformance tests (`iscsi-test-cu`, 230 of them) against
//! `diskless target serve`, on every shape of unit, and against units over
//! [`memory`], for what no file can be.
//!
//! One process per test: the tool dies with the first test that crashes, and
//! prints what it skipped as passed. So the verdict is read from its words
//! ([`verdict`]), and [`report`] says which rule makes one of the shapes'.
//!
//! No harness: `make conformance` shows the report as it is. It speaks enough
//! of the harness's language for `cargo nextest`. Arguments are parts of test
//! names (`Sanitize`, `Unmap.Vpd`): then only those run, and nothing is demanded
//! of their number. Without the tool it says so and is skipped; with `CI=true`
//! it fails.

// A test: what fails may panic.
#![allow(clippy::unwrap_used)]

mod memory;
mod report;
mod server;
mod verdict;

use std::collections::VecDeque;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use report::Report;
use server::{Server, run_tool, tests_of_the_tool};
use verdict::Verdict;

/// A test's name in the tool: family, suite, test.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Test {
    suite: String,
    name: String,
}

/// What a unit can be. The tests ask it, and skip what does not concern them.
#[derive(Clone, Copy, Debug)]
struct Shape {
    name: &'static str,
    /// Arguments of `diskless target serve`; without, a unit over memory, and
    /// how long it takes to write a MiB.
    unit: Result<&'static [&'static str], Duration>,
    /// It takes no writes.
    is_read_only: bool,
}

const fn served(name: &'static str, arguments: &'static [&'static str]) -> Shape {
    Shape {
        name,
        unit: Ok(arguments),
        is_read_only: false,
    }
}

const fn in_memory(name: &'static str, mib_time: Duration) -> Shape {
    Shape {
        name,
        unit: Err(mib_time),
        is_read_only: false,
    }
}

const SHAPES: [Shape; 7] = [
    // Overwriting all of it takes 10 s: for one test alone.
    in_memory(SLOW, Duration::from_millis(80)),
    served("normal", &[]),
    served("thin", &["--thin"]),
    served("thin-4k", &["--thin", "--block-size", "4096"]),
    served("removable", &["--removable"]),
    Shape {
        is_read_only: true,
        ..served("read-only", &["--read-only"])
    },
    in_memory("memory", Duration::ZERO),
];
const SLOW: &str = "slow";

/// As many as are to pass on some shape; the others' reasons are in the report.
const PASSED_AT_LEAST: usize = 225;
/// Servers at once, each with a shape and a disk of its own: one judge and its
/// server take turns, so two pairs keep two cores busy, and one is slow.
const SERVERS: usize = 3;

type Claim = (&'static str, fn() -> bool);
const CLAIMS: [Claim; 2] = [
    (
        "the_tools_words_are_read",
        verdict::the_tools_words_are_read,
    ),
    ("libiscsis_tests_pass_on_every_shape_of_unit", || judge(&[])),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let names: Vec<String> = arguments
        .iter()
        .filter(|argument| !argument.starts_with("--"))
        .filter(|argument| *argument != "terse")
        .cloned()
        .collect();
    let is_claim = |name: &String| CLAIMS.iter().any(|(claim, _)| claim == name);
    let is_well = if has("--list") {
        if !has("--ignored") {
            CLAIMS
                .iter()
                .for_each(|(claim, _)| println!("{claim}: test"));
        }
        true
    } else if names.is_empty() || names.iter().any(is_claim) {
        CLAIMS
            .iter()
            .filter(|(claim, _)| names.is_empty() || names.iter().any(|name| name == claim))
            .all(|(_, holds)| holds())
    } else {
        judge(&names)
    };
    match is_well {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Runs all tests, or those whose names contain one of `parts`; whether all is
/// as it should be.
fn judge(parts: &[String]) -> bool {
    let Some(mut tests) = tests_of_the_tool() else {
        return std::env::var("CI").as_deref() != Ok("true");
    };
    tests.retain(|test| {
        let name = format!("{}.{}", test.suite, test.name);
        parts.is_empty() || parts.iter().any(|part| name.contains(part.as_str()))
    });
    let waiting: Mutex<VecDeque<usize>> = Mutex::new((0..SHAPES.len()).collect());
    let report = Mutex::new(Report::new(&tests));
    thread::scope(|scope| {
        for _ in 0..SERVERS {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().unwrap().pop_front();
                    let Some(at) = next else { return };
                    for (test, verdict) in tests.iter().zip(judge_shape(&tests, SHAPES[at])) {
                        report.lock().unwrap().add(test, at, verdict);
                    }
                }
            });
        }
    });
    let report = report.into_inner().unwrap();
    report.print(parts.is_empty().then_some(PASSED_AT_LEAST));
    report.failed() == 0 && (!parts.is_empty() || report.passed() >= PASSED_AT_LEAST)
}

/// One verdict per test. Each suite meets a new server and an empty disk (one
/// expects zeros where another has written), and so does the test after a
/// failure: the unit may be in any state.
fn judge_shape(tests: &[Test], shape: Shape) -> Vec<Verdict> {
    let mut server: Option<(&str, Server)> = None;
    tests
        .iter()
        .map(|test| {
            let kept = server.take().filter(|(suite, _)| *suite == test.suite);
            let (_, running) = server.insert(kept.unwrap_or_else(|| {
                let started = Server::start(shape);
                (&test.suite, started)
            }));
            let verdict = run_tool(test, shape, &running.urls);
            if matches!(verdict, Verdict::Failed(_)) {
                server = None;
            }
            verdict
        })
        .collect()
}
