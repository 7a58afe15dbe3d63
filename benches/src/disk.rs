//! Overlays and disk formats beside a raw file on the same file system: what
//! reads, writes, restore points and clones cost, without a network.
//!
//! Everything is a ratio of two that took turns within one run, so that what
//! disturbs the one disturbs the other.

use std::io;
use std::path::Path;
use std::time::Instant;

use crate::Options;
use crate::process;
use crate::report::median;

mod clones;
mod operations;
mod sink;
mod stage;
mod table;
mod transfers;

/// Measures everything, or what holds the text of `--cells`.
pub(crate) fn compare(options: &Options) -> io::Result<()> {
    let home = tempfile::Builder::new()
        .prefix("bench-disk-")
        .tempdir_in(&options.home)?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    let mut found = Found::default();
    type Section = fn(&Path, usize, &mut Found) -> io::Result<()>;
    let sections: [(&str, Section); 6] = [
        ("reads", transfers::reads),
        ("formats", transfers::formats),
        ("writes", transfers::writes),
        ("operations", operations::operations),
        ("memory", operations::memory),
        ("clones", clones::clones),
    ];
    for (name, section) in sections {
        if name.contains(&options.cells) {
            let home = home.path().join(name);
            std::fs::create_dir(&home)?;
            section(&home, options.rounds, &mut found)?;
            std::fs::remove_dir_all(&home)?;
        }
    }
    let markdown = table::markdown((options.rounds, &load), &found);
    println!("{markdown}");
    if let Some(out) = &options.out {
        std::fs::create_dir_all(out)?;
        std::fs::write(out.join("disk.md"), markdown)?;
        std::fs::write(out.join("disk.json"), table::json(&found))?;
    }
    Ok(())
}

/// What was measured.
#[derive(Default)]
struct Found {
    cells: Vec<Cell>,
    checks: Vec<Check>,
}

impl Found {
    fn cell(&mut self, cell: Cell) {
        eprintln!("{}", table::progress(&cell));
        self.cells.push(cell);
    }

    fn check(&mut self, check: Check) {
        eprintln!("{}: {}", check.name, check.found);
        self.checks.push(check);
    }
}

/// One thing against another.
struct Cell {
    name: String,
    against: &'static str,
    goal: Goal,
    /// The other, then the thing.
    samples: Vec<[Cost; 2]>,
}

/// The most a thing may cost of what the other costs.
#[derive(Clone, Copy)]
enum Goal {
    Cpu(f64),
    Wall(f64),
    /// It is only told.
    None,
}

impl Cell {
    fn ratio(&self, of: fn(&Cost) -> f64) -> f64 {
        median(
            self.samples
                .iter()
                .map(|[other, this]| of(this) / of(other)),
        )
    }

    fn median(&self, which: usize, of: fn(&Cost) -> f64) -> f64 {
        median(self.samples.iter().map(|sample| of(&sample[which])))
    }

    fn is_reached(&self) -> Option<bool> {
        match self.goal {
            Goal::Cpu(most) => Some(self.ratio(Cost::cpu) <= most),
            Goal::Wall(most) => Some(self.ratio(Cost::wall) <= most),
            Goal::None => None,
        }
    }
}

/// A question with one answer.
struct Check {
    name: String,
    goal: String,
    found: String,
    is_reached: bool,
}

/// What some operations took: µs for each.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Cost {
    cpu: f64,
    wall: f64,
}

impl Cost {
    /// Does something that counts as `count` operations. The CPU time is that
    /// of the whole process, which does nothing else.
    fn of(count: u32, work: impl FnOnce() -> io::Result<()>) -> io::Result<Cost> {
        let (before, begun) = (cpu_us()?, Instant::now());
        work()?;
        let wall = begun.elapsed().as_secs_f64() * 1e6;
        let cpu = cpu_us()? - before;
        let count = f64::from(count);
        Ok(Cost {
            cpu: cpu / count,
            wall: wall / count,
        })
    }

    fn cpu(&self) -> f64 {
        self.cpu
    }

    fn wall(&self) -> f64 {
        self.wall
    }
}

/// CPU time of this process, in µs. The kernel brings a thread's account up to
/// date when it yields.
fn cpu_us() -> io::Result<f64> {
    std::thread::yield_now();
    Ok(process::cpu_of_threads(std::process::id())?.as_secs_f64() * 1e6)
}

/// Something that takes turns with others: its name, and one turn, numbered.
type Player<'a> = (String, Box<dyn FnMut(u32) -> io::Result<Cost> + 'a>);

/// Lets the players take `turns` turns each, one after the other and beginning
/// with another each time; what each turn cost, by player.
fn take_turns(players: &mut [Player<'_>], turns: u32) -> io::Result<Vec<Vec<Cost>>> {
    let mut costs = vec![Vec::new(); players.len()];
    for turn in 0..turns {
        for at in 0..players.len() {
            let number = (at + turn as usize) % players.len();
            let (_, play) = &mut players[number];
            costs[number].push(play(turn)?);
        }
    }
    Ok(costs)
}

/// The samples of one player beside those of another.
fn beside(other: &[Cost], this: &[Cost]) -> Vec<[Cost; 2]> {
    let pairs = other.iter().zip(this);
    pairs.map(|(other, this)| [*other, *this]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn players_take_turns_and_a_goal_is_reached_by_the_median_of_pairs() {
        let mut order = Vec::new();
        let log = std::cell::RefCell::new(&mut order);
        let player = |name: &'static str, cpu: f64| -> Player<'_> {
            let log = &log;
            let play = move |turn: u32| {
                log.borrow_mut().push(name);
                // The second turn is disturbed, for both.
                let cpu = cpu * if turn == 1 { 50.0 } else { 1.0 };
                Ok(Cost { cpu, wall: cpu })
            };
            (name.to_owned(), Box::new(play))
        };
        let mut players = [player("raw", 10.0), player("overlay", 11.0)];
        let costs = take_turns(&mut players, 3).unwrap();
        drop(players);
        let cell = |goal| Cell {
            name: String::new(),
            against: "raw",
            goal,
            samples: beside(&costs[0], &costs[1]),
        };
        assert_eq!(cell(Goal::Cpu(1.11)).is_reached(), Some(true));
        assert_eq!(cell(Goal::Wall(1.09)).is_reached(), Some(false));
        let turns = ["raw", "overlay", "overlay", "raw", "raw", "overlay"];
        assert_eq!(order, turns);
    }
}
