//! The program beside other servers on LANs of its own: DHCP beside dnsmasq
//! and Kea, loaders over TFTP beside dnsmasq and tftpd-hpa, ranges of a disc
//! over HTTP beside nginx.
//!
//! Each server has a network namespace with a cable to the clients', which
//! are all in this process, in a namespace of its own. Everything is a ratio
//! of two that took turns within one round.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::Options;
use crate::report::median;

mod delay;
mod lan;
mod loaders;
mod machines;
mod morning;
mod readers;
mod subject;
mod table;
mod usage;

/// Set in the copy of this program that has a network of its own.
const INSIDE: &str = "BENCH_NET_INSIDE";

/// Measures everything, or what holds the text of `--cells`.
pub(crate) fn compare(options: &Options) -> io::Result<()> {
    if std::env::var_os(INSIDE).is_none() {
        let error = Command::new("unshare")
            .arg("--net")
            .arg(std::env::current_exe()?)
            .args(std::env::args_os().skip(1))
            .env(INSIDE, "yes")
            .exec();
        return Err(io::Error::new(error.kind(), format!("unshare: {error}")));
    }
    let home = tempfile::Builder::new()
        .prefix("bench-net-")
        .tempdir_in(&options.home)?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    let mut found = Found::default();
    type Section = fn(&subject::Place, usize, &mut Found) -> io::Result<()>;
    let sections: [(&str, Section); 3] = [
        ("machines", morning::morning),
        ("loaders", loaders::loaders),
        ("ranges", readers::ranges),
    ];
    for (name, section) in sections {
        if name.contains(&options.cells) {
            let home = home.path().join(name);
            std::fs::create_dir(&home)?;
            let place = subject::Place {
                home: home.canonicalize()?,
                program: options.program.clone(),
                tools: options.tools.clone(),
            };
            section(&place, options.rounds, &mut found)?;
            std::fs::remove_dir_all(&home)?;
        }
    }
    let markdown = table::markdown((options.rounds, &load), &found);
    println!("{markdown}");
    if let Some(out) = &options.out {
        std::fs::create_dir_all(out)?;
        std::fs::write(out.join("net.md"), markdown)?;
        std::fs::write(out.join("net.json"), table::json(&found))?;
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

/// One figure of ours beside another's; more is better.
struct Cell {
    name: &'static str,
    against: &'static str,
    unit: &'static str,
    /// What ours is to be of the other's.
    goal: f64,
    /// The other's and ours, by round.
    rounds: Vec<[f64; 2]>,
}

impl Cell {
    fn ratio(&self) -> f64 {
        median(self.rounds.iter().map(|[other, ours]| ours / other))
    }

    fn median(&self, which: usize) -> f64 {
        median(self.rounds.iter().map(|round| round[which]))
    }

    fn is_reached(&self) -> bool {
        self.ratio() >= self.goal
    }
}

/// The rounds of two subjects, side by side.
fn beside(other: &[f64], ours: &[f64]) -> Vec<[f64; 2]> {
    let pairs = other.iter().zip(ours);
    pairs.map(|(other, ours)| [*other, *ours]).collect()
}

/// A question with one answer.
struct Check {
    name: String,
    goal: &'static str,
    found: String,
    /// `None` where it is only told.
    is_reached: Option<bool>,
}
