//! The server under test and the tool that judges it, each a process.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::verdict::{self, Verdict};
use crate::{SLOW, Shape, Test, memory};

/// A unit the longest tests can get through, the largest transfers fit in.
const DISK_BYTES: u64 = 128 << 20;
/// Two, so that there are two paths to the unit.
const PORTALS: [&str; 2] = ["127.0.0.1:0", "127.0.0.2:0"];
/// No test takes ten seconds on an idle machine, but one that sleeps for a
/// minute.
const HANGS_AFTER: Duration = Duration::from_secs(150);
/// Output of one test that is kept: the longest writes 5 MB.
const OUTPUT_BYTES: u64 = 16 << 20;

/// Said of tests that are not run.
const WRITES: &str = "writes without asking: the --dataloss flag is not set";
const ELSEWHERE: &str = "judged on the other shapes";

/// A server of one unit over an empty disk, ended when dropped.
pub(crate) struct Server {
    _kind: Kind,
    /// One per portal.
    pub(crate) urls: Vec<String>,
}

enum Kind {
    /// `diskless target serve`.
    Program(#[expect(dead_code, reason = "held for its end")] Program),
    /// In this process.
    Memory(#[expect(dead_code, reason = "held for its end")] iscsi::Server),
}

/// A process and its files.
struct Program {
    process: Child,
    folder: PathBuf,
}

impl Server {
    pub(crate) fn start(shape: Shape) -> Server {
        let (kind, urls) = match shape.unit {
            Ok(arguments) => {
                let (program, urls) = Program::start(arguments);
                (Kind::Program(program), urls)
            }
            Err(mib_time) => {
                let (server, urls) = memory::serve(DISK_BYTES, mib_time, &PORTALS);
                (Kind::Memory(server), urls)
            }
        };
        Server { _kind: kind, urls }
    }
}

impl Program {
    fn start(arguments: &[&str]) -> (Program, Vec<String>) {
        static SERVERS: AtomicU32 = AtomicU32::new(0);
        let number = SERVERS.fetch_add(1, Ordering::Relaxed);
        let name = format!("diskless-conformance-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        let disk = folder.join("disk.img");
        File::create(&disk).unwrap().set_len(DISK_BYTES).unwrap();
        let log = File::create(folder.join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_diskless"));
        command.args(["target", "serve"]).arg(&disk);
        for portal in PORTALS {
            command.args(["--listen", portal]);
        }
        let mut process = command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let urls: Vec<String> = lines.by_ref().take(PORTALS.len()).flatten().collect();
        let program = Program { process, folder };
        assert!(
            urls.len() == PORTALS.len(),
            "the server did not start with {arguments:?}:\n{}",
            fs::read_to_string(program.folder.join("log")).unwrap_or_default()
        );
        (program, urls)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// All tests of the tool; `None` when it is not installed.
pub(crate) fn tests_of_the_tool() -> Option<Vec<Test>> {
    let Ok(output) = Command::new("iscsi-test-cu").arg("--list").output() else {
        eprintln!("iscsi-test-cu is missing (package libiscsi-bin): this judge was not heard");
        return None;
    };
    let list = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut tests: Vec<Test> = list
        .lines()
        .filter_map(|line| line.trim().strip_prefix("ALL."))
        .filter_map(|line| line.split_once('.'))
        .map(|(suite, name)| Test {
            suite: suite.to_owned(),
            name: name.to_owned(),
        })
        .collect();
    tests.sort();
    assert!(!tests.is_empty(), "iscsi-test-cu lists no tests:\n{list}");
    Some(tests)
}

/// What a test is let do to a unit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// All it likes.
    All,
    /// Nothing that may lose data.
    NoLoss,
    /// It would write without asking whether it may lose data.
    Nothing,
}

/// A unit that takes no writes is spared what wants them to succeed. The
/// tests of its refusals have leave, and those of reservations.
fn leave(test: &Test, shape: Shape) -> Leave {
    if !shape.is_read_only {
        return Leave::All;
    }
    let suite = test.suite.as_str();
    match (suite, test.name.as_str()) {
        ("ProutReserve", name) if name.starts_with("Access") => Leave::Nothing,
        ("WriteVerify10" | "WriteVerify12" | "WriteVerify16", "Dpo") => Leave::Nothing,
        ("ReadOnly" | "Reserve6", _) => Leave::All,
        _ if suite.starts_with("Prin") || suite.starts_with("Prout") => Leave::All,
        _ => Leave::NoLoss,
    }
}

/// Runs one test; what it says in the end.
pub(crate) fn run_tool(test: &Test, shape: Shape, urls: &[String]) -> Verdict {
    // Its OVERWRITE must take longer than five seconds.
    let is_long = (test.suite.as_str(), test.name.as_str()) == ("Sanitize", "Reset");
    if is_long != (shape.name == SLOW) {
        return Verdict::Skipped(ELSEWHERE.to_owned());
    }
    let mut command = Command::new("iscsi-test-cu");
    match leave(test, shape) {
        Leave::All => drop(command.args(["--dataloss", "--allow-sanitize"])),
        Leave::NoLoss => {}
        Leave::Nothing => return Verdict::Skipped(WRITES.to_owned()),
    }
    let name = format!("ALL.{}.{}", test.suite, test.name);
    command.args(["--verbose", "--Verbose-scsi", "--test", &name, &urls[0]]);
    if test.suite == "MultipathIO" {
        command.arg(&urls[1]);
    }
    let (reader, writer) = std::io::pipe().unwrap();
    let mut process = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().unwrap())
        .stderr(writer)
        .spawn()
        .unwrap();
    // The command holds the pipe's other end, and the reader waits for its end.
    drop(command);
    let listener = thread::spawn(move || {
        let mut said = Vec::new();
        let _ = reader.take(OUTPUT_BYTES).read_to_end(&mut said);
        String::from_utf8_lossy(&said).into_owned()
    });
    let start = Instant::now();
    let status = loop {
        match process.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if start.elapsed() > HANGS_AFTER => {
                let _ = process.kill();
                let _ = process.wait();
                break None;
            }
            None => thread::sleep(Duration::from_millis(3)),
        }
    };
    let said = listener.join().unwrap();
    match status {
        Some(status) => verdict::of(test, status.success(), &said),
        None => Verdict::Failed(format!("hung for {HANGS_AFTER:?}:\n{said}")),
    }
}
