//! From verdicts to one line: `N passed, N failed, N skipped`.

use std::collections::{BTreeMap, BTreeSet};

use crate::verdict::Verdict;
use crate::{SHAPES, Test};

/// How the verdicts of the shapes become one.
const RULE: &str = "\
A test counts as failed when it fails, hangs or crashes on any shape; else as
passed when it passes on some shape; else as skipped. A failure that is the
test's own fault, with the proof below, makes neither.";
/// Lines of a failed test's output that are shown: the last ones tell.
const OUTPUT_LINES: usize = 60;

/// The verdicts of every test on every shape.
pub(crate) struct Report {
    verdicts: BTreeMap<Test, Vec<Option<Verdict>>>,
}

impl Report {
    pub(crate) fn new(tests: &[Test]) -> Report {
        let none = vec![None; SHAPES.len()];
        Report {
            verdicts: tests
                .iter()
                .map(|test| (test.clone(), none.clone()))
                .collect(),
        }
    }

    /// Enters what a test said of a shape.
    pub(crate) fn add(&mut self, test: &Test, shape: usize, verdict: Verdict) {
        if let Some(verdicts) = self.verdicts.get_mut(test) {
            verdicts[shape] = Some(verdict);
        }
    }

    pub(crate) fn passed(&self) -> usize {
        self.count(Sum::Passed)
    }

    pub(crate) fn failed(&self) -> usize {
        self.count(Sum::Failed)
    }

    fn count(&self, asked: Sum) -> usize {
        let sums = self.verdicts.values().map(|verdicts| sum(verdicts));
        sums.filter(|sum| *sum == asked).count()
    }

    /// Prints tables, reasons, outputs, and the figures last.
    pub(crate) fn print(&self, demanded: Option<usize>) {
        self.print_table();
        self.print_parts();
        self.print_faults();
        self.print_skips();
        self.print_failures();
        println!("\n{RULE}");
        if let Some(demanded) = demanded {
            println!("Demanded: at least {demanded} passed, none failed.");
        }
        println!(
            "{} passed, {} failed, {} skipped",
            self.passed(),
            self.failed(),
            self.count(Sum::Skipped)
        );
    }

    fn print_table(&self) {
        println!("passed/skipped/failed, own faults of tests under skipped\n");
        let row = |name: &str, cells: &[String]| {
            let cells: String = cells.iter().map(|cell| format!("{cell:>11}")).collect();
            println!("{name:<24}{cells}");
        };
        row("suite", &SHAPES.map(|shape| shape.name.to_owned()));
        let suites: BTreeSet<&str> = self.verdicts.keys().map(|t| t.suite.as_str()).collect();
        let cells = |suite: Option<&str>| {
            (0..SHAPES.len())
                .map(|shape| {
                    let mut figures = [0; 3];
                    for (test, verdicts) in &self.verdicts {
                        if suite.is_none_or(|suite| suite == test.suite) {
                            figures[sum(&verdicts[shape..=shape]) as usize] += 1;
                        }
                    }
                    let [passed, skipped, failed] = figures;
                    format!("{passed}/{skipped}/{failed}")
                })
                .collect::<Vec<_>>()
        };
        for suite in suites {
            row(suite, &cells(Some(suite)));
        }
        row("all", &cells(None));
    }

    /// Prints one line per test and word, with the shapes it was said of.
    fn print_said(
        &self,
        title: &str,
        said: impl Fn(&[Option<Verdict>], &Verdict) -> Option<String>,
    ) {
        let mut lines = Vec::new();
        for (test, verdicts) in &self.verdicts {
            let mut shapes: BTreeMap<String, Vec<&str>> = BTreeMap::new();
            for (verdict, shape) in verdicts.iter().zip(SHAPES) {
                if let Some(said) = verdict.as_ref().and_then(|it| said(verdicts, it)) {
                    shapes.entry(said).or_default().push(shape.name);
                }
            }
            for (said, shapes) in shapes {
                let (suite, name, shapes) = (&test.suite, &test.name, shapes.join(", "));
                lines.push(format!("  {suite}.{name} ({shapes}): {said}"));
            }
        }
        if !lines.is_empty() {
            println!("\n{title}\n{}", lines.join("\n"));
        }
    }

    fn print_parts(&self) {
        self.print_said(
            "Passed, with a part left out:",
            |_, verdict| match verdict {
                Verdict::PassedInPart(why) => Some(why.clone()),
                _ => None,
            },
        );
    }

    fn print_faults(&self) {
        self.print_said("The test's own fault:", |_, verdict| match verdict {
            Verdict::Excused(fault) => Some(fault.proof.to_owned()),
            _ => None,
        });
    }

    fn print_skips(&self) {
        self.print_said("Skipped on every shape:", |verdicts, verdict| {
            // What the read-only unit was spared says nothing about the others.
            let is_spared =
                |why: &str| why.contains("flag is not set") || why.contains("other shapes");
            let is_all_spared = verdicts.iter().flatten().all(|verdict| match verdict {
                Verdict::Skipped(why) => is_spared(why),
                _ => false,
            });
            match verdict {
                Verdict::Skipped(why) if sum(verdicts) == Sum::Skipped => {
                    (is_all_spared || !is_spared(why)).then(|| why.clone())
                }
                _ => None,
            }
        });
    }

    fn print_failures(&self) {
        for (test, verdicts) in &self.verdicts {
            let mut failures = verdicts.iter().zip(SHAPES).filter_map(|(verdict, shape)| {
                let Some(Verdict::Failed(said)) = verdict else {
                    return None;
                };
                Some((said, shape.name))
            });
            let Some((said, shape)) = failures.next() else {
                continue;
            };
            let others: String = failures.map(|(_, shape)| format!(", {shape}")).collect();
            let own = said
                .split_once("Suite: ")
                .map_or(said.as_str(), |(_, own)| own);
            let lines: Vec<&str> = own.lines().collect();
            let tail = lines[lines.len().saturating_sub(OUTPUT_LINES)..].join("\n");
            println!(
                "\nFailed: {}.{} ({shape}{others}):\n{tail}",
                test.suite, test.name
            );
        }
    }
}

/// What becomes of several verdicts; the order is the table's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sum {
    Passed,
    Skipped,
    Failed,
}

fn sum(verdicts: &[Option<Verdict>]) -> Sum {
    let mut sum = Sum::Skipped;
    for verdict in verdicts {
        match verdict {
            Some(Verdict::Failed(_)) | None => return Sum::Failed,
            Some(Verdict::Passed | Verdict::PassedInPart(_)) => sum = Sum::Passed,
            Some(Verdict::Skipped(_) | Verdict::Excused(_)) => {}
        }
    }
    sum
}
