//! Jobs: everything that takes long, on a thread of its own.
//!
//! An import, an export, a verification: begun by one request, asked about by
//! others, told to stop by any. A job lives in memory only: what it leaves
//! behind appears by one rename at its end, so one that fails, is cancelled or
//! dies with the program has changed nothing.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use jiff::Timestamp;
use uuid::Uuid;

use super::{Error, Exported, Image, Inventory, OwnDisk, Result, Verification, held, now};

/// A job as it stood when it was asked about.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// Its id.
    pub(crate) id: Uuid,
    /// What it does.
    pub(crate) kind: JobKind,
    /// To what: an image, a disk, a machine, by the name people know.
    pub(crate) subject: String,
    /// What it is at, where a job has several steps (`downloading`).
    pub(crate) step: &'static str,
    /// Bytes of this step, once they are known.
    pub(crate) total_bytes: Option<u64>,
    /// Bytes of this step that are done.
    pub(crate) done_bytes: u64,
    /// How it stands.
    pub(crate) state: JobState,
    /// When it was begun.
    pub(crate) started: Timestamp,
    /// When it ended, if it did.
    pub(crate) ended: Option<Timestamp>,
}

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobKind {
    /// Something from outside becomes an image or a disk.
    Import,
    /// A disk becomes a file of somebody else's.
    Export,
    /// An overlay becomes a version of an image.
    Commit,
    /// A disk becomes two.
    Clone,
    /// A disk becomes one of another format.
    Conversion,
    /// An image is held against what was published.
    Verification,
}

impl JobKind {
    /// As it is shown, a noun that stands after "the".
    pub(crate) fn noun(self) -> &'static str {
        match self {
            JobKind::Import => "import",
            JobKind::Export => "export",
            JobKind::Commit => "commit",
            JobKind::Clone => "clone",
            JobKind::Conversion => "conversion",
            JobKind::Verification => "verification",
        }
    }
}

/// How a job stands.
#[derive(Clone, Debug)]
pub(crate) enum JobState {
    /// At work.
    Running,
    /// Ended as it should.
    Done(Outcome),
    /// Given up; nothing was changed.
    Failed(String),
    /// Told to stop; nothing was changed.
    Cancelled,
}

/// What a job has made or found out.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// A version of an image.
    Image(Arc<Image>),
    /// A file.
    Exported(Exported),
    /// An own disk.
    Disk(OwnDisk),
    /// What was found of a version.
    Verification(Arc<Image>, Verification),
}

/// Jobs that run at once; each keeps a disk and a core busy.
const RUNNING_MAX: usize = 4;

/// Ended jobs one can still ask about.
const ENDED_MAX: usize = 32;

impl Inventory {
    /// Starts `work` on a thread of its own. It asks `progress` often whether
    /// it was told to stop, and then ends with any error, having removed what
    /// it made. Refused when too many run.
    pub(crate) fn start_job(
        &self,
        kind: JobKind,
        subject: impl Into<String>,
        work: impl FnOnce(&Progress) -> Result<Outcome> + Send + 'static,
    ) -> Result<Job> {
        let entry = Arc::new(Entry {
            id: Uuid::new_v4(),
            kind,
            subject: subject.into(),
            started: now(),
            progress: Progress::new(kind),
            state: Mutex::new((JobState::Running, None)),
        });
        let mut jobs = held(&self.jobs.0);
        make_room(&mut jobs)?;
        let thread = thread::Builder::new().name(kind.noun().into()).spawn({
            let entry = Arc::clone(&entry);
            move || entry.run(work)
        });
        let thread = thread.map_err(|e| {
            Error::Failed(format!(
                "cannot start a thread for the {}: {e}",
                kind.noun()
            ))
        })?;
        let job = entry.shown();
        jobs.push((entry, Some(thread)));
        Ok(job)
    }

    /// A job started in this run of the program.
    pub(crate) fn job(&self, id: Uuid) -> Result<Job> {
        self.jobs.find(id).map(|entry| entry.shown())
    }

    /// Every job of this run that is still remembered, oldest first.
    pub(crate) fn jobs(&self) -> Vec<Job> {
        let jobs = held(&self.jobs.0);
        jobs.iter().map(|(entry, _)| entry.shown()).collect()
    }

    /// Tells a job to stop; it has when it is no longer running.
    pub(crate) fn cancel_job(&self, id: Uuid) -> Result<()> {
        self.jobs.find(id)?.progress.cancel();
        Ok(())
    }

    /// Stops every job and waits for them; for the end of the program.
    pub(crate) fn stop_jobs(&self) {
        let threads: Vec<JoinHandle<()>> = held(&self.jobs.0)
            .iter_mut()
            .filter_map(|(entry, thread)| {
                entry.progress.cancel();
                thread.take()
            })
            .collect();
        for thread in threads {
            // A job may be the last to hold the inventory.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

/// How far a job is, and whether it is to stop: shared by its thread and those
/// who ask.
#[derive(Debug)]
pub(crate) struct Progress {
    kind: JobKind,
    step: Mutex<&'static str>,
    /// 0 as long as nobody knows.
    total_bytes: AtomicU64,
    done_bytes: AtomicU64,
    cancelled: AtomicBool,
}

impl Progress {
    fn new(kind: JobKind) -> Progress {
        Progress {
            kind,
            step: Mutex::new(""),
            total_bytes: AtomicU64::new(0),
            done_bytes: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
        }
    }

    /// Of a job that nobody watches.
    #[cfg(test)]
    pub(super) fn for_tests() -> Progress {
        Progress::new(JobKind::Import)
    }

    /// Begins a step, of as many bytes as that, where it is known.
    pub(crate) fn begin(&self, step: &'static str, total_bytes: Option<u64>) {
        *held(&self.step) = step;
        self.done_bytes.store(0, Ordering::Relaxed);
        let total_bytes = total_bytes.unwrap_or(0);
        self.total_bytes.store(total_bytes, Ordering::Relaxed);
    }

    /// Says how many bytes of the step are done; an error when the job is to
    /// stop.
    pub(crate) fn advance(&self, done_bytes: u64) -> Result<()> {
        self.done_bytes.store(done_bytes, Ordering::Relaxed);
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(self.cancellation());
        }
        Ok(())
    }

    /// The same, as [`disk::copy`] asks it.
    pub(crate) fn heard(&self, done_bytes: u64) -> ControlFlow<()> {
        match self.advance(done_bytes) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }

    /// What a job that was told to stop ends with.
    pub(crate) fn cancellation(&self) -> Error {
        Error::Conflict(format!("the {} was cancelled", self.kind.noun()))
    }

    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

/// The jobs of this run of the program, oldest first.
#[derive(Default)]
pub(super) struct Jobs(Mutex<Vec<Kept>>);

type Kept = (Arc<Entry>, Option<JoinHandle<()>>);

impl Jobs {
    fn find(&self, id: Uuid) -> Result<Arc<Entry>> {
        let jobs = held(&self.0);
        let entry = jobs.iter().find(|(entry, _)| entry.id == id);
        entry.map(|(entry, _)| Arc::clone(entry)).ok_or_else(|| {
            Error::NotFound(format!(
                "there is no job {id}: it ended long ago, or the program was restarted"
            ))
        })
    }
}

/// Refuses when too many run; forgets the oldest that have ended when too many
/// are remembered.
fn make_room(jobs: &mut Vec<Kept>) -> Result<()> {
    let running = jobs.iter().filter(|(entry, _)| entry.is_running()).count();
    if running >= RUNNING_MAX {
        return Err(Error::Conflict(format!(
            "{running} jobs are running already: wait until one has ended (`diskless job list` \
             shows them)"
        )));
    }
    while jobs.len() - running >= ENDED_MAX {
        let Some(oldest) = jobs.iter().position(|(entry, _)| !entry.is_running()) else {
            break;
        };
        jobs.remove(oldest);
    }
    Ok(())
}

/// One job, shared by its thread and those who ask.
struct Entry {
    id: Uuid,
    kind: JobKind,
    subject: String,
    started: Timestamp,
    progress: Progress,
    state: Mutex<(JobState, Option<Timestamp>)>,
}

impl Entry {
    fn is_running(&self) -> bool {
        matches!(held(&self.state).0, JobState::Running)
    }

    fn shown(&self) -> Job {
        let (state, ended) = held(&self.state).clone();
        let total_bytes = self.progress.total_bytes.load(Ordering::Relaxed);
        Job {
            id: self.id,
            kind: self.kind,
            subject: self.subject.clone(),
            step: *held(&self.progress.step),
            total_bytes: (total_bytes > 0).then_some(total_bytes),
            done_bytes: self.progress.done_bytes.load(Ordering::Relaxed),
            state,
            started: self.started,
            ended,
        }
    }

    fn run(&self, work: impl FnOnce(&Progress) -> Result<Outcome>) {
        let (kind, subject) = (self.kind.noun(), self.subject.as_str());
        // A panic is already in the log; here it is one job that failed.
        let ended = catch_unwind(AssertUnwindSafe(|| work(&self.progress)));
        let state = match ended {
            Ok(Ok(outcome)) => {
                tracing::info!(subject, "{kind} done");
                JobState::Done(outcome)
            }
            Ok(Err(_)) if self.progress.cancelled.load(Ordering::Relaxed) => {
                tracing::info!(subject, "{kind} cancelled");
                JobState::Cancelled
            }
            Ok(Err(error)) => {
                tracing::warn!(subject, "{kind} failed: {error}");
                JobState::Failed(error.to_string())
            }
            Err(_) => JobState::Failed(format!("the {kind} failed inside: see the server's log")),
        };
        *held(&self.state) = (state, Some(now()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::inventory::tests::Site;

    /// A job that waits until `told` speaks or the job is to stop.
    fn waiting(site: &Site, told: mpsc::Receiver<()>) -> Result<Job> {
        let image = site.new_image("debian");
        site.start_job(JobKind::Import, "debian", move |progress| {
            progress.begin("waiting", Some(100));
            loop {
                progress.advance(50)?;
                if told
                    .recv_timeout(std::time::Duration::from_millis(1))
                    .is_ok()
                {
                    return Ok(Outcome::Image(image));
                }
            }
        })
    }

    #[test]
    fn a_job_tells_how_far_it_is_and_what_it_made() {
        let site = Site::new();
        let (tell, told) = mpsc::channel();
        let job = waiting(&site, told).unwrap();
        while site.job(job.id).unwrap().done_bytes == 0 {
            thread::yield_now();
        }
        let half = site.job(job.id).unwrap();
        assert_eq!((half.step, half.total_bytes), ("waiting", Some(100)));
        assert!(half.ended.is_none() && matches!(half.state, JobState::Running));
        tell.send(()).unwrap();
        let outcome = site.ended(job.id).unwrap();
        assert!(matches!(outcome, Outcome::Image(image) if image.version == 1));
        assert!(site.job(job.id).unwrap().ended.is_some());
    }

    #[test]
    fn a_job_that_is_told_to_stop_is_cancelled_not_failed() {
        let site = Site::new();
        let (_tell, told) = mpsc::channel();
        let job = waiting(&site, told).unwrap();
        site.cancel_job(job.id).unwrap();
        site.stop_jobs();
        let state = site.job(job.id).unwrap().state;
        assert!(matches!(state, JobState::Cancelled), "{state:?}");
    }

    #[test]
    fn a_job_that_panics_has_failed() {
        let site = Site::new();
        let job = site
            .start_job(JobKind::Import, "debian", |_| panic!("a defect"))
            .unwrap();
        let why = site.ended(job.id).unwrap_err();
        assert!(why.contains("failed inside"), "{why}");
    }

    #[test]
    fn too_many_jobs_at_once_are_refused() {
        let site = Site::new();
        for _ in 0..RUNNING_MAX {
            let work = |progress: &Progress| loop {
                progress.advance(0)?;
                thread::sleep(std::time::Duration::from_millis(1));
            };
            site.start_job(JobKind::Import, "debian", work).unwrap();
        }
        let refusal = site
            .start_job(JobKind::Import, "debian", |p| Err(p.cancellation()))
            .unwrap_err();
        assert!(refusal.to_string().contains("4 jobs"), "{refusal}");
    }

    #[test]
    fn only_the_last_ended_jobs_are_remembered() {
        let site = Site::new();
        let first = site
            .start_job(JobKind::Import, "debian", |p| Err(p.cancellation()))
            .unwrap();
        for _ in 0..ENDED_MAX {
            let job = site
                .start_job(JobKind::Import, "debian", |p| Err(p.cancellation()))
                .unwrap();
            site.ended(job.id).unwrap_err();
        }
        assert!(site.jobs().len() <= ENDED_MAX);
        let refusal = site.job(first.id).unwrap_err().to_string();
        assert!(refusal.contains("there is no job"), "{refusal}");
    }
}
