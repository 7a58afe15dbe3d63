//! What one run made on this machine, written down as it is made, so that a
//! later run can remove what a killed one left.
//!
//! `/run/diskless-lab/NAME/` holds sockets and the record; it vanishes with the
//! host, as processes and namespaces do. `.lab/run/NAME/` holds data, which may
//! be large. NAME is `dl-PID-N`; every namespace begins with it.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};

use crate::{Deadline, image, signal};

/// Records and sockets (a Unix socket's path has 107 bytes at most).
const RECORDS: &str = "/run/diskless-lab";
/// Grace between a request to end and a kill.
const GRACE_SECONDS: u64 = 10;

/// The mark of a lab that stays when its owner has ended.
const KEEP: &str = "keep";

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Whether what a lab makes ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// With its owner, however that ends.
    WithOwner,
    /// Its processes outlive an owner that was killed, and all of it an owner
    /// that asked so by [`Lab::keep`].
    WhenCleaned,
}

/// Everything one run makes on this machine.
#[derive(Debug)]
pub struct Lab {
    name: String,
    record: PathBuf,
    work: PathBuf,
    ends: Ends,
}

impl Lab {
    /// Makes an empty lab, after sweeping what killed runs left.
    ///
    /// # Errors
    /// Without root, or when its directories cannot be made.
    pub fn new(ends: Ends) -> Result<Lab> {
        if !rustix::process::geteuid().is_root() {
            bail!("network namespaces need root: run this as root or through sudo");
        }
        signal::catch_signals();
        sweep()?;
        let name = format!(
            "dl-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let record = Path::new(RECORDS).join(&name);
        let work = image::lab_directory()?.join("run").join(&name);
        for directory in [&record, &work] {
            fs::create_dir_all(directory)
                .with_context(|| format!("making {}", directory.display()))?;
        }
        let lab = Lab {
            name,
            record,
            work,
            ends,
        };
        let pid = std::process::id();
        fs::write(
            lab.record.join("owner"),
            format!("{pid} {}\n", start_time(pid).unwrap_or(0)),
        )?;
        fs::write(
            lab.record.join("work"),
            lab.work.as_os_str().as_encoded_bytes(),
        )?;
        Ok(lab)
    }

    /// Name; every namespace begins with it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Directory for sockets: its path is short.
    pub fn sockets(&self) -> &Path {
        &self.record
    }

    /// Directory for data and logs.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// Makes a namespace called `NAME-suffix` and returns its name.
    pub(crate) fn add_namespace(&self, suffix: &str) -> Result<String> {
        let namespace = format!("{}-{suffix}", self.name);
        self.note("namespaces", &namespace)?;
        run("ip", &["netns", "add", &namespace])?;
        Ok(namespace)
    }

    /// Starts a program in a namespace. Its output goes to `work()/NAME.log`.
    pub(crate) fn spawn(&self, namespace: &str, name: &str, program: &[&str]) -> Result<Process> {
        use std::os::unix::process::CommandExt as _;

        let log = self.work.join(format!("{name}.log"));
        let output = OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]);
        if self.ends == Ends::WithOwner {
            // Killed by the kernel when this thread ends without its destructors.
            command.args(["setpriv", "--pdeathsig", "KILL", "--"]);
        }
        // In a group of its own, so that Ctrl-C comes to us alone and the end is in order.
        command
            .args(program)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0);
        let child = command
            .spawn()
            .with_context(|| format!("starting {}", program.join(" ")))?;
        let pid = child.id();
        self.note(
            "processes",
            &format!("{pid} {} {name}", start_time(pid).unwrap_or(0)),
        )?;
        Ok(Process {
            child,
            name: name.to_owned(),
            log,
        })
    }

    fn note(&self, file: &str, line: &str) -> Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.record.join(file))?;
        writeln!(file, "{line}")?;
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.record.join(KEEP).exists() {
            return;
        }
        if std::thread::panicking() && std::env::var_os("DISKLESS_KEEP_LOGS").is_some() {
            let kept = self.work.with_extension("failed");
            if fs::rename(&self.work, &kept).is_ok() {
                eprintln!("lab: logs kept in {}", kept.display());
            }
        }
        remove(&self.record);
    }
}

/// A program of the lab's, killed when dropped (but for a lab that stays).
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// SIGKILL: no chance to say anything, as when the power goes.
    pub fn kill(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// When it does not end within the deadline (it is killed then).
    pub fn terminate(&mut self, deadline: Deadline) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        signal_process(self.pid(), rustix::process::Signal::TERM);
        let ended = deadline.wait(|| self.ended());
        if ended.is_err() {
            self.kill();
        }
        ended.with_context(|| {
            format!(
                "{} did not end after SIGTERM; its last words:\n{}",
                self.name,
                self.last_words()
            )
        })
    }

    /// The end of its output.
    pub fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Leaves it running when this is dropped.
    pub(crate) fn release(self) {
        std::mem::forget(self);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs a program to its end; its output, or an error with what it said.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {program}: is it installed? (lab/setup.sh)"))?;
    if !output.status.success() {
        bail!(
            "{program} {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Removes the labs whose owner has ended without cleaning up. What the demo
/// was told to keep (`KEEP=1`) stays.
fn sweep() -> Result<()> {
    for record in records()? {
        if !record.join(KEEP).exists() && owner(&record).is_none() {
            remove(&record);
        }
    }
    Ok(())
}

/// `make clean-demo`: removes every lab but those whose owner still runs, which
/// it names. Returns how many it removed.
///
/// # Errors
/// When the records cannot be read.
pub fn clean() -> Result<usize> {
    let mut removed = 0;
    for record in records()? {
        if let Some(pid) = owner(&record) {
            eprintln!(
                "lab: {} belongs to process {pid}, which is running: end that one",
                record.display()
            );
            continue;
        }
        remove(&record);
        removed += 1;
    }
    Ok(removed)
}

impl Lab {
    /// Marks this lab as one to keep after its owner's end.
    ///
    /// # Errors
    /// When the mark cannot be written.
    pub fn keep(&self) -> Result<()> {
        File::create(self.record.join(KEEP))?;
        Ok(())
    }

    /// The records of the labs that were kept.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub fn kept() -> Result<Vec<PathBuf>> {
        Ok(records()?
            .into_iter()
            .filter(|record| record.join(KEEP).exists())
            .collect())
    }
}

fn records() -> Result<Vec<PathBuf>> {
    let directory = match fs::read_dir(RECORDS) {
        Ok(directory) => directory,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(RECORDS),
    };
    let mut records = Vec::new();
    for entry in directory {
        records.push(entry?.path());
    }
    records.sort();
    Ok(records)
}

/// The owner's process id, while it runs.
fn owner(record: &Path) -> Option<u32> {
    let text = fs::read_to_string(record.join("owner")).ok()?;
    alive(&text)
}

/// `PID START ...` of a process that still is the one recorded.
fn alive(line: &str) -> Option<u32> {
    let mut words = line.split_whitespace();
    let pid: u32 = words.next()?.parse().ok()?;
    let start: u64 = words.next()?.parse().ok()?;
    (start_time(pid)? == start).then_some(pid)
}

/// Ends what a record names. Best effort: what is gone already is as wanted.
fn remove(record: &Path) {
    let lines = |file: &str| fs::read_to_string(record.join(file)).unwrap_or_default();
    let processes = lines("processes");
    let running = || processes.lines().filter_map(alive).collect::<Vec<u32>>();
    for pid in running() {
        signal_process(pid, rustix::process::Signal::TERM);
    }
    let grace = Deadline::seconds(GRACE_SECONDS);
    while !running().is_empty() && !grace.left().is_zero() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    for pid in running() {
        signal_process(pid, rustix::process::Signal::KILL);
    }
    for namespace in lines("namespaces").lines() {
        let _ = run("ip", &["netns", "del", namespace]);
    }
    let work = lines("work");
    if Path::new(&work).file_name() == record.file_name() {
        let _ = fs::remove_dir_all(&work);
    }
    let _ = fs::remove_dir_all(record);
}

fn signal_process(pid: u32, signal: rustix::process::Signal) {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// When a process started, in clock ticks since boot (proc(5), field 22); a
/// zombie has ended. Together with the id it names a process for good.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, field 2, may hold anything, even ")".
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut fields = after_name.split(' ');
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_process_is_known_again_by_its_start() {
        let pid = std::process::id();
        let start = start_time(pid).unwrap();
        assert_eq!(alive(&format!("{pid} {start} name")), Some(pid));
        assert_eq!(alive(&format!("{pid} {} name", start + 1)), None);
        assert_eq!(alive("no record"), None);
    }
}
