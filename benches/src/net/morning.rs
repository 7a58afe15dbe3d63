//! A school's morning: 1,000 machines ask for an address at once, and go on
//! booting. Ours beside dnsmasq and Kea.

use std::io;

use super::machines::{Machines, Outcome};
use super::subject::{Place, Running, Subject};
use super::usage::Usage;
use super::{Cell, Check, Found, beside};

const MACHINES: u32 = 1000;
/// Afterwards they boot again so often in all, so many at a time.
const AGAIN: u32 = 5;
const AT_ONCE: usize = 50;
/// The machine that asks whether the server is there; none of the thousand.
const FIRST: u32 = 1 << 20;
const SUBJECTS: [Subject; 3] = [Subject::DnsmasqDhcp, Subject::Kea, Subject::Ours];

/// What one subject gave in one round.
struct Turn {
    burst: Outcome,
    burst_cpu: f64,
    again: Outcome,
    again_cpu: f64,
}

/// Measures `rounds` mornings; every server begins each with nothing
/// remembered.
pub(super) fn morning(place: &Place, rounds: usize, found: &mut Found) -> io::Result<()> {
    std::fs::create_dir_all(place.home.join("files"))?;
    let mut turns: [Vec<Turn>; 3] = Default::default();
    for round in 0..rounds {
        for at in 0..SUBJECTS.len() {
            let number = (at + round) % SUBJECTS.len();
            let turn = play(SUBJECTS[number], place)?;
            let Turn { burst, again, .. } = &turn;
            eprintln!(
                "round {}: {}: {:.0} and {:.0} µs of CPU per machine; {} failed, {} repeated, {:.2} s; {:.0}/s",
                round + 1,
                SUBJECTS[number].name(),
                1e6 * turn.burst_cpu / f64::from(MACHINES),
                1e6 * turn.again_cpu / f64::from(MACHINES * AGAIN),
                burst.failed + again.failed,
                burst.repeated + again.repeated,
                burst.seconds,
                again.bound as f64 / again.seconds,
            );
            turns[number].push(turn);
        }
    }
    let burst = |turn: &Turn| turn.burst.bound as f64 / turn.burst_cpu;
    let again = |turn: &Turn| turn.again.bound as f64 / turn.again_cpu;
    type Figure<'a> = &'a dyn Fn(&Turn) -> f64;
    let figures: [(&'static str, Figure<'_>); 2] = [
        ("1,000 new machines at once", &burst),
        ("the same, booting again, 50 at a time", &again),
    ];
    for (name, figure) in figures {
        let of = |number: usize| turns[number].iter().map(figure).collect::<Vec<f64>>();
        for (number, goal) in [(0, 1.5), (1, 3.0)] {
            found.cell(Cell {
                name,
                against: SUBJECTS[number].name(),
                unit: "DORA per CPU second",
                goal,
                rounds: beside(&of(number), &of(2)),
            });
        }
    }
    for (number, subject) in SUBJECTS.into_iter().enumerate() {
        let sum = |of: fn(&Turn) -> usize| turns[number].iter().map(of).sum::<usize>();
        let failed = sum(|turn| turn.burst.failed + turn.again.failed);
        let repeated = sum(|turn| turn.burst.repeated + turn.again.repeated);
        let slowest = turns[number].iter().map(|turn| turn.burst.seconds);
        let slowest = slowest.fold(0.0, f64::max);
        let is_ours = subject == Subject::Ours;
        found.check(Check {
            name: format!("1,000 machines at once: {}", subject.name()),
            goal: if is_ours { "none fails" } else { "" },
            found: format!(
                "{failed} failed, {repeated} messages were said again, the last had its address, or had given up, after {slowest:.1} s"
            ),
            is_reached: is_ours.then_some(failed == 0),
        });
    }
    Ok(())
}

fn play(subject: Subject, place: &Place) -> io::Result<Turn> {
    let running = Running::start(subject, place, 70)?;
    let mut machines = Machines::on(&running.lan.cable())?;
    let first = machines.boot(std::iter::once(FIRST), 1)?;
    if first.bound == 0 {
        return Err(io::Error::other(format!(
            "{} lends nothing:\n{}",
            subject.name(),
            running.last_words()
        )));
    }
    let before = Usage::of(running.pid)?;
    let burst = machines.boot(0..MACHINES, MACHINES as usize)?;
    let burst_cpu = before.seconds_since()?;
    let before = Usage::of(running.pid)?;
    let again = machines.boot((0..MACHINES * AGAIN).map(|n| n % MACHINES), AT_ONCE)?;
    Ok(Turn {
        burst,
        burst_cpu,
        again,
        again_cpu: before.seconds_since()?,
    })
}
