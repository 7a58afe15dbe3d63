//! States by the thousand: every kind of disk, random work, and a loss of
//! power at random moments of it.
//!
//! `STATES` says how many (`make crash STATES=1000000`); `ONLY` names the kinds
//! of disk, and `SEED` the first piece of work: what is lost says both.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::formats::{VhdOf, VhdxOf};
use super::{
    BROKEN, Dice, FULL, Site, Subject, die_at, die_everywhere, fail_everywhere, work, work_together,
};
use crate::NewFormat;
use crate::overlay::OverlayMode;
use crate::overlay::tests::crash::OverlayOf;
use crate::overlay::tests::crash::layered::Layered;

/// States of one piece of work.
const BATCH: u64 = 40;

/// What is run when nobody says how many.
const STATES: u64 = 10_000;

/// Steps of one piece of work.
const STEPS: usize = 60;

/// States that go on: opened under a recorder, worked on, lost again.
const SECOND_LIVES_IN: u64 = 8;

/// What is said in full of what was lost.
const REPORTS: usize = 10;

/// A kind of disk, and how to make some states of one.
type Kind = (&'static str, Box<dyn Fn(u64) -> Tally + Sync>);

fn kinds() -> Vec<Kind> {
    vec![
        kind("overlay-keep", OverlayOf(OverlayMode::Keep)),
        kind("overlay-reset", OverlayOf(OverlayMode::Reset)),
        kind("overlay-layers", Layered::new()),
        kind("overlay-quota", Layered::with_quota()),
        kind("vhd-dynamic", VhdOf(NewFormat::VhdDynamic)),
        kind("vhd-differencing", VhdOf::differencing()),
        kind("vhd-fixed", VhdOf(NewFormat::VhdFixed)),
        kind("vhdx-dynamic", VhdxOf::Dynamic),
        kind("vhdx-fixed", VhdxOf::Fixed),
        kind("vhdx-differencing", VhdxOf::Differencing),
    ]
}

fn kind<S: Subject>(name: &'static str, subject: S) -> Kind {
    (name, Box::new(move |seed| batch(&subject, seed)))
}

/// What became of some states.
#[derive(Default)]
struct Tally {
    states: u64,
    lost: Vec<String>,
}

impl Tally {
    fn note<T>(&mut self, what: impl FnOnce() -> Result<T, String>) -> Option<T> {
        self.states += 1;
        // A panic of ours on what was left is a loss too.
        let answer = catch_unwind(AssertUnwindSafe(what))
            .unwrap_or_else(|panic| Err(format!("panicked: {}", words_of(&*panic))));
        answer.map_err(|error| self.lost.push(error)).ok()
    }
}

fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
    text.unwrap_or_default()
}

/// One piece of work, and power lost at moments of it.
fn batch<S: Subject>(subject: &S, seed: u64) -> Tally {
    let mut tally = Tally::default();
    let mut dice = Dice(seed);
    let site = Site::new(subject.clone());
    match seed % 4 {
        0 | 1 => work(&site, seed, STEPS).unwrap(),
        2 => work_together(&site, seed, STEPS),
        _ => {
            // A death of the process comes first.
            let operation = dice.below(4 * STEPS);
            tally.note(|| die_at(&site, seed, STEPS / 2, operation));
            if tally.lost.is_empty() {
                work(&site, !seed, STEPS / 2).unwrap();
            }
        }
    }
    lose(&site, &mut dice, BATCH, &mut tally);
    tally
}

/// Loses power `states` times, at random moments of its work.
fn lose<S: Subject>(site: &Arc<Site<S>>, dice: &mut Dice, states: u64, tally: &mut Tally) {
    for number in 0..states {
        let moment = site.born + dice.below(site.recorder.moment() - site.born + 1);
        let kept_in_16 = [0, 16, 8, 2, 14][dice.below(5)];
        let seed = dice.below(usize::MAX) as u64;
        let fate = move || -> Box<dyn FnMut() -> bool> {
            let mut dice = Dice(seed);
            Box::new(move || dice.below(16) < kept_in_16)
        };
        if states < BATCH || number % SECOND_LIVES_IN > 0 {
            tally.note(|| site.try_lose_power(moment, &mut fate()).map(drop));
            continue;
        }
        let Some(second) = tally.note(|| site.second_life(moment, fate)) else {
            continue;
        };
        if tally
            .note(|| work(&second, seed, STEPS / 6).map_err(|e| e.to_string()))
            .is_some()
        {
            lose(&second, dice, 2, tally);
        }
    }
}

fn asked(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[test]
fn no_state_that_a_loss_of_power_leaves_has_lost_anything() {
    let number = |name: &str| asked(name).map(|n| n.parse().expect("a number"));
    let states = number("STATES").unwrap_or(STATES);
    let seed = number("SEED").unwrap_or(1);
    let only = asked("ONLY").unwrap_or_default();
    let mut kinds = kinds();
    kinds.retain(|(name, _)| only.is_empty() || only.split(' ').any(|o| name.starts_with(o)));
    assert!(!kinds.is_empty(), "ONLY names no kind of disk");

    let next = AtomicU64::new(0);
    let done: Mutex<BTreeMap<&str, Tally>> = Mutex::default();
    let total = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while total.load(Ordering::Relaxed) < states {
                    let piece = next.fetch_add(1, Ordering::Relaxed);
                    let turn = usize::try_from(piece).unwrap() % kinds.len();
                    let (name, run) = &kinds[turn];
                    let seed = seed + piece / kinds.len() as u64;
                    let tally = catch_unwind(AssertUnwindSafe(|| run(seed)));
                    let tally = tally.unwrap_or_else(|panic| Tally {
                        states: 1,
                        lost: vec![format!("panicked at work: {}", words_of(&*panic))],
                    });
                    total.fetch_add(tally.states, Ordering::Relaxed);
                    let mut done = done.lock().unwrap();
                    let sum = done.entry(name).or_default();
                    sum.states += tally.states;
                    let lost = tally.lost.into_iter();
                    sum.lost
                        .extend(lost.map(|what| format!("SEED={seed} ONLY={name}: {what}")));
                }
            });
        }
    });
    let done = done.into_inner().unwrap();
    for line in done.values().flat_map(|tally| &tally.lost).take(REPORTS) {
        println!("{line}");
    }
    for (name, tally) in &done {
        println!("{name}: {} states, {} lost", tally.states, tally.lost.len());
    }
    let lost: usize = done.values().map(|tally| tally.lost.len()).sum();
    let made: u64 = done.values().map(|tally| tally.states).sum();
    println!("{made} states, {lost} lost");
    assert_eq!(lost, 0, "what is lost is said above");
}

/// The short forms, in every test, take a sample of the operations.
fn everywhere<S: Subject>(subject: &S) {
    for seed in 1..=3 {
        fail_everywhere(subject, FULL, seed, 40, 1);
        fail_everywhere(subject, BROKEN, seed, 40, 1);
        die_everywhere(subject, seed, 40, 1);
    }
}

#[test]
#[ignore = "minutes, in the long form of the proofs"]
fn no_overlay_breaks_at_any_operation_that_is_refused_or_the_last() {
    everywhere(&OverlayOf(OverlayMode::Keep));
    everywhere(&OverlayOf(OverlayMode::Reset));
    everywhere(&Layered::new());
}

#[test]
#[ignore = "minutes, in the long form of the proofs"]
fn no_vhd_breaks_at_any_operation_that_is_refused_or_the_last() {
    everywhere(&VhdOf(NewFormat::VhdFixed));
    everywhere(&VhdOf(NewFormat::VhdDynamic));
    everywhere(&VhdOf::differencing());
}

#[test]
#[ignore = "minutes, in the long form of the proofs"]
fn no_vhdx_breaks_at_any_operation_that_is_refused_or_the_last() {
    everywhere(&VhdxOf::Fixed);
    everywhere(&VhdxOf::Dynamic);
    everywhere(&VhdxOf::Differencing);
}
