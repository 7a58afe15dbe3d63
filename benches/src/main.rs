//! Benchmarks: the iSCSI target side by side with tgt, overlays and formats
//! beside a raw file, the program beside other servers on a LAN, and
//! instructions per operation.
//!
//! `bench iscsi [--rounds N] [--seconds S] [--cells TEXT] [--home DIR] [--cold-home
//! DIR] [--pinned yes] [--out DIR]`:
//! ours and tgt in turn, as `make bench-iscsi` does; needs root.
//! `bench disk [--rounds N] [--cells TEXT] [--home DIR] [--out DIR]`: overlays and
//! formats, as `make bench-disk` does.
//! `bench net --program FILE --tools DIR [--rounds N] [--cells TEXT] [--home DIR]
//! [--out DIR]`: DHCP, TFTP and HTTP, as `make bench-net` does; needs root.
//! `bench instructions check|update FILE`: counts against those recorded.
//! `bench serve raw|overlay|layered HOME`: the target of ours that is measured.
//! `bench load PORTAL TARGET LUN read|write BYTES DEPTH SECONDS`: one load on
//! any target, to profile it.

mod cells;
mod checks;
mod disk;
mod floor;
mod initiator;
mod instructions;
mod net;
mod peer;
mod process;
mod report;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use cells::{CELLS, Measurement};
use initiator::{Address, Direction, Load, Order};
use instructions::Purpose;
use peer::{Running, Subject};
use report::Row;

/// What the disk holds, all of it in the page cache.
const DISK_BYTES: usize = 256 << 20;
/// The core of the targets, and that of the initiators.
const TARGET_CORE: &str = "0";
const INITIATOR_CORE: &str = "1";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["serve", subject, home] => peer::serve(subject, Path::new(home)),
        ["iscsi", options @ ..] => Options::parse(options).and_then(|options| compare(&options)),
        ["disk", options @ ..] => {
            Options::parse(options).and_then(|options| disk::compare(&options))
        }
        ["net", options @ ..] => Options::parse(options).and_then(|options| net::compare(&options)),
        ["instructions", "check", file] => instructions::run(Purpose::Check, Path::new(file)),
        ["instructions", "update", file] => instructions::run(Purpose::Update, Path::new(file)),
        ["load", load @ ..] => run_load(load),
        _ => Err(io::Error::other(
            "iscsi [OPTIONS] | disk [OPTIONS] | net [OPTIONS] | instructions check|update FILE | serve SUBJECT HOME | load ...",
        )),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One load on a target that runs already.
fn run_load(words: &[&str]) -> io::Result<()> {
    let &[portal, target, lun, direction, bytes, depth, seconds] = words else {
        return Err(io::Error::other(
            "load PORTAL TARGET LUN read|write BYTES DEPTH SECONDS",
        ));
    };
    let bad = |word: &str| io::Error::other(format!("{word}: not what was expected"));
    let address = Address {
        portal: portal.parse().map_err(|_| bad(portal))?,
        target: target.to_owned(),
        lun: lun.parse().map_err(|_| bad(lun))?,
    };
    let seconds = seconds.parse::<f64>().map_err(|_| bad(seconds))?;
    let load = Load {
        direction: match direction {
            "read" => Direction::Read,
            "write" => Direction::Write,
            _ => return Err(bad(direction)),
        },
        bytes: bytes.parse().map_err(|_| bad(bytes))?,
        depth: depth.parse().map_err(|_| bad(depth))?,
        order: Order::Random(1),
        until: Some(Instant::now() + Duration::from_secs_f64(seconds.clamp(0.1, 3600.0))),
        count: None,
        in_step: false,
    };
    let mut initiator = cells::log_in(&address, 0)?;
    let mut outcome = initiator.run(&load)?;
    initiator.log_out()?;
    outcome.latencies.sort_unstable();
    println!(
        "{:.0}/s, p50 {:.1} µs, p99 {:.1} µs",
        outcome.operations as f64 / outcome.seconds,
        cells::percentile(&outcome.latencies, 0.5),
        cells::percentile(&outcome.latencies, 0.99)
    );
    Ok(())
}

struct Options {
    rounds: usize,
    time: Duration,
    /// Only cells whose name holds this.
    cells: String,
    /// Targets on one core, initiators on another.
    pinned: bool,
    /// Where the disks are made.
    home: PathBuf,
    /// Where the disk of the cold reads is made: on a medium.
    cold_home: PathBuf,
    out: Option<PathBuf>,
    /// The program of ours, for the comparison on a LAN.
    program: PathBuf,
    /// Where the packages of others were unpacked.
    tools: PathBuf,
}

impl Options {
    fn parse(words: &[&str]) -> io::Result<Options> {
        let mut options = Options {
            rounds: 5,
            time: Duration::from_secs(1),
            cells: String::new(),
            pinned: false,
            home: std::env::temp_dir(),
            cold_home: std::env::temp_dir(),
            out: None,
            program: PathBuf::from("diskless"),
            tools: PathBuf::from("/"),
        };
        for pair in words.chunks(2) {
            let &[name, value] = pair else {
                return Err(io::Error::other(format!("{} needs a value", pair[0])));
            };
            let bad = |_| io::Error::other(format!("{name} {value}: not a number"));
            match name {
                "--rounds" => options.rounds = value.parse::<usize>().map_err(|_| bad(()))?.max(1),
                "--seconds" => {
                    let seconds = value.parse::<f64>().map_err(|_| bad(()))?;
                    options.time = Duration::from_secs_f64(seconds.clamp(0.1, 60.0));
                }
                "--cells" => value.clone_into(&mut options.cells),
                "--pinned" => options.pinned = value == "yes",
                "--home" => options.home = PathBuf::from(value),
                "--cold-home" => options.cold_home = PathBuf::from(value),
                "--program" => options.program = PathBuf::from(value),
                "--tools" => options.tools = PathBuf::from(value),
                "--out" => options.out = Some(PathBuf::from(value)),
                _ => return Err(io::Error::other(format!("unknown option {name}"))),
            }
        }
        Ok(options)
    }
}

/// Every cell, every subject, in turn.
fn compare(options: &Options) -> io::Result<()> {
    const SUBJECTS: [Subject; 3] = [Subject::Tgt, Subject::Raw, Subject::Overlay];
    let home = tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(&options.home)?;
    make_disk(home.path())?;
    let wrapper: &[&str] = match options.pinned {
        true => {
            pin_initiators()?;
            &["taskset", "-c", TARGET_CORE]
        }
        false => &[],
    };
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    let cells = CELLS
        .iter()
        .filter(|cell| cell.name.contains(&options.cells));
    let mut rows: Vec<Row> = cells.map(Row::new).collect();
    for round in 0..options.rounds {
        if rows.is_empty() {
            break;
        }
        let mut running = Vec::new();
        for subject in SUBJECTS {
            running.push(Running::start(subject, home.path(), wrapper)?);
        }
        for row in &mut rows {
            let mut measured = [Measurement::default(); 3];
            for turn in 0..SUBJECTS.len() {
                let number = (turn + round) % SUBJECTS.len();
                let measurement = row.cell.measure(&running[number], options.time)?;
                measured[number] = measurement;
            }
            eprintln!("{}", report::progress(round, row.cell, &measured));
            row.rounds.push(measured);
            row.floors
                .extend(floor::cpu(&row.cell.kind, home.path(), options.time / 2)?);
        }
    }
    let mut checks = Vec::new();
    if options.cells.is_empty() || options.cells == "checks" {
        let cold_home = tempfile::Builder::new()
            .prefix("bench-")
            .tempdir_in(&options.cold_home)?;
        make_disk(cold_home.path())?;
        checks = checks::all(home.path(), cold_home.path(), options.rounds, options.time)?;
    }
    let markdown = report::markdown((options.rounds, &load), &rows, &checks);
    println!("{markdown}");
    if let Some(out) = &options.out {
        std::fs::create_dir_all(out)?;
        std::fs::write(out.join("iscsi.md"), markdown)?;
        std::fs::write(out.join("iscsi.json"), report::json(&rows, &checks))?;
    }
    Ok(())
}

/// Keeps this process to its core.
fn pin_initiators() -> io::Result<()> {
    let pid = std::process::id().to_string();
    let output = Command::new("taskset")
        .args(["-a", "-p", "-c", INITIATOR_CORE, &pid])
        .output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other("taskset: two cores are needed")),
    }
}

/// The disk of all subjects, in the page cache, every byte of it written; and
/// beside it the same as an image.
///
/// Written 4 KiB at a time: where the page cache holds large folios, ext4 looks
/// at every block of one for each small write, which costs all targets alike
/// four times what they do themselves.
fn make_disk(home: &Path) -> io::Result<()> {
    for path in [peer::disk_path(home), peer::image_path(home)] {
        let mut file = File::create(path)?;
        let mut dice: u64 = 1;
        let mut block = [0; 4096];
        for _ in 0..DISK_BYTES / block.len() {
            for word in block.chunks_exact_mut(8) {
                dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                word.copy_from_slice(&dice.to_le_bytes());
            }
            file.write_all(&block)?;
        }
        file.sync_all()?;
    }
    Ok(())
}
