//! Plain targets from outside: the real program, with libiscsi's and QEMU's
//! tools as judges.
//!
//! A judge that is not installed says so and is skipped; with `CI=true` it
//! fails.

// A test: what fails may panic.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use rustix::process::{Pid, Signal, kill_process};

mod kept;
mod killed;
mod own;
mod serve;

const DISKLESS: &str = env!("CARGO_BIN_EXE_diskless");

/// A program that runs beside the test, ended with it.
struct Program {
    child: Child,
    /// Reads the log as it comes, so that the program never waits for us.
    log: Option<JoinHandle<String>>,
}

impl Program {
    fn start(command: &mut Command) -> Program {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = child.stderr.take().map(|mut stderr: ChildStderr| {
            thread::spawn(move || {
                let mut text = String::new();
                let _ = stderr.read_to_string(&mut text);
                text
            })
        });
        Program { child, log }
    }

    /// The next `count` lines it says; fewer when it ends before.
    fn lines(&mut self, count: usize) -> Vec<String> {
        let stdout = self.child.stdout.as_mut().unwrap();
        let lines = BufReader::with_capacity(1 << 16, stdout).lines();
        lines.take(count).map(Result::unwrap).collect()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    /// Ends it in order, and gives its log.
    fn end(mut self, signal: Signal) -> (ExitStatus, String) {
        self.signal(signal);
        let status = self.child.wait().unwrap();
        let log = self.log.take().unwrap().join().unwrap();
        (status, log)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A sparse file of `mib` MiB.
fn sparse(directory: &Path, name: &str, mib: u64) -> PathBuf {
    let path = directory.join(name);
    File::create(&path).unwrap().set_len(mib << 20).unwrap();
    path
}

/// Bytes of a file at an offset, read past any target.
fn bytes_at(path: &Path, offset: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    File::open(path)
        .unwrap()
        .read_exact_at(&mut bytes, offset)
        .unwrap();
    bytes
}

/// Bytes the file takes on its disk.
fn allocated(path: &Path) -> u64 {
    let file = File::open(path).unwrap();
    file.sync_all().unwrap();
    file.metadata().unwrap().blocks() * 512
}

/// Runs a judge; `None` where it is not installed.
fn judge(program: &str, arguments: &[&str]) -> Option<(bool, String)> {
    match Command::new(program).args(arguments).output() {
        Ok(output) => Some((output.status.success(), text(&output))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let ci = std::env::var("CI").is_ok_and(|value| value == "true");
            assert!(!ci, "{program} is missing: install what lab/setup.sh names");
            eprintln!("skipped: {program} is not installed");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

/// What a judge that must be content says.
fn content(program: &str, arguments: &[&str]) -> Option<String> {
    let (is_content, said) = judge(program, arguments)?;
    assert!(is_content, "{program} {arguments:?}: {said}");
    Some(said)
}

fn text(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    format!("{out}{}", String::from_utf8_lossy(&output.stderr))
}

/// A scratch directory that a test fills.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Removes a file's permission to be written, and says whether that means
/// anything to this user.
fn forbid_writing(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
    File::options().write(true).open(path).is_err()
}
