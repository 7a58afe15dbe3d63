//! Workers: a few threads that run slow commands, so that a connection goes
//! on answering pings and task management.
//!
//! Jobs are taken in the order they came, but a unit whose disk hangs keeps
//! only some of the workers: the others go on serving the other machines. What
//! may take hours gets a thread of its own.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};

use crate::target::Bell;
use crate::task::{Done, Job};

/// Of so many workers, one may work for the same unit.
const WORKERS_FOR_ONE_OF_A_UNIT: usize = 4;

/// The pool. Its threads end after it, when nothing is left to do.
pub(super) struct Workers {
    pool: Arc<Pool>,
}

impl Workers {
    pub(super) fn start(threads: usize) -> io::Result<Workers> {
        let pool = Arc::new(Pool {
            work: Mutex::default(),
            changed: Condvar::new(),
            per_unit: (threads / WORKERS_FOR_ONE_OF_A_UNIT).max(1),
        });
        let workers = Workers { pool };
        for _ in 0..threads.max(1) {
            let pool = workers.pool.clone();
            thread::Builder::new()
                .name("iscsi-worker".into())
                .spawn(move || pool.serve())?;
        }
        Ok(workers)
    }

    /// Runs a job; its end is told to `mailbox`. The queue is as long as the
    /// sessions' windows together, at most.
    pub(super) fn run(&self, job: Job, mailbox: &Arc<Mailbox>) {
        mailbox.expect(&job);
        self.pool.lock().waiting.push_back((job, mailbox.clone()));
        self.pool.changed.notify_one();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.pool.lock().closed = true;
        self.pool.changed.notify_all();
    }
}

struct Pool {
    work: Mutex<Queue>,
    changed: Condvar,
    /// Most workers that serve one unit at once.
    per_unit: usize,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Job, Arc<Mailbox>)>,
    /// Workers at work, by unit.
    busy: HashMap<usize, usize>,
    closed: bool,
}

impl Pool {
    fn serve(self: &Arc<Pool>) {
        while let Some((job, mailbox)) = self.next() {
            match job.takes_long() {
                true => self.perform_apart(job, &mailbox),
                false => self.perform(job, &mailbox),
            }
        }
    }

    fn perform(&self, job: Job, mailbox: &Mailbox) {
        let (id, unit, changes_disk) = (job.id, job.unit(), job.changes_disk());
        // A disk that panics costs its command, not the pool.
        let run = AssertUnwindSafe(|| job.run());
        let done = catch_unwind(run).unwrap_or_else(|_| Done::failed(id));
        let goes_on = done.result.is_ok();
        self.release(unit);
        mailbox.deliver(done, changes_disk);
        if goes_on {
            // Nobody waits for this, and no session's end stops it.
            let _ = catch_unwind(AssertUnwindSafe(|| job.go_on()));
        }
    }

    /// Gives a job a thread of its own: a few of these would take the workers
    /// from every other unit.
    fn perform_apart(self: &Arc<Pool>, job: Job, mailbox: &Arc<Mailbox>) {
        let (id, unit, changes_disk) = (job.id, job.unit(), job.changes_disk());
        let (pool, theirs) = (self.clone(), mailbox.clone());
        let spawned = thread::Builder::new()
            .name("iscsi-sanitize".into())
            .spawn(move || pool.perform(job, &theirs));
        if let Err(error) = spawned {
            tracing::warn!(%error, "a slow command got no thread");
            self.release(unit);
            mailbox.deliver(Done::failed(id), changes_disk);
        }
    }

    /// Waits for a job that may be begun; `None` at the end.
    fn next(&self) -> Option<(Job, Arc<Mailbox>)> {
        let mut queue = self.lock();
        loop {
            let is_free = |unit| {
                queue
                    .busy
                    .get(&unit)
                    .is_none_or(|busy| *busy < self.per_unit)
            };
            let first = queue
                .waiting
                .iter()
                .position(|(job, _)| is_free(job.unit()));
            if let Some((job, mailbox)) = first.and_then(|first| queue.waiting.remove(first)) {
                *queue.busy.entry(job.unit()).or_insert(0) += 1;
                return Some((job, mailbox));
            }
            if queue.closed {
                return None; // what still waits is for those who are at work
            }
            queue = self
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the work of one thread for a unit.
    fn release(&self, unit: usize) {
        let mut queue = self.lock();
        if let Some(busy) = queue.busy.get_mut(&unit) {
            *busy -= 1;
            if *busy == 0 {
                queue.busy.remove(&unit);
            }
        }
        if !queue.waiting.is_empty() {
            self.changed.notify_one(); // it may have waited for this unit
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a connection finds its finished jobs.
pub(super) struct Mailbox {
    state: Mutex<State>,
    changed: Condvar,
    bell: OwnedFd,
}

#[derive(Default)]
struct State {
    outstanding: usize,
    /// Of these, jobs that change what is read from the disk.
    changing: usize,
    done: Vec<Done>,
}

impl Mailbox {
    pub(super) fn new() -> io::Result<Mailbox> {
        Ok(Mailbox {
            state: Mutex::default(),
            changed: Condvar::new(),
            bell: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        })
    }

    /// Readable when something was delivered.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Everything delivered so far.
    pub(super) fn collect(&self) -> Vec<Done> {
        let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
        std::mem::take(&mut self.lock().done)
    }

    /// Waits until no job is under way.
    pub(super) fn wait_until_idle(&self) {
        self.wait_while(|state| state.outstanding > 0);
    }

    /// Waits until no job changes the disk any more; a flush may go on.
    pub(super) fn wait_until_harmless(&self) {
        self.wait_while(|state| state.changing > 0);
    }

    fn wait_while(&self, goes_on: impl Fn(&State) -> bool) {
        let mut state = self.lock();
        while goes_on(&state) {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn expect(&self, job: &Job) {
        let mut state = self.lock();
        state.outstanding += 1;
        state.changing += usize::from(job.changes_disk());
    }

    fn deliver(&self, done: Done, changed_disk: bool) {
        let mut state = self.lock();
        state.done.push(done);
        state.outstanding -= 1;
        state.changing -= usize::from(changed_disk);
        drop(state);
        self.changed.notify_all();
        self.ring();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bell for Mailbox {
    fn ring(&self) {
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::{Duration, Instant};

    use scsi::disk::{Access, Disk, DiskError, Durability, Geometry, Ram};
    use scsi::{Identity, LogicalUnit, NexusName};

    use super::*;
    use crate::task::Task;

    /// A disk that stores nothing while a test holds its gate.
    struct Gated {
        ram: Ram,
        gate: Arc<Mutex<()>>,
    }

    impl Disk for Gated {
        fn geometry(&self) -> Geometry {
            self.ram.geometry()
        }
        fn access(&self) -> Access {
            Access::ReadWrite
        }
        fn durability(&self) -> Durability {
            self.ram.durability()
        }
        fn is_thin(&self) -> bool {
            true
        }
        fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
            self.ram.read(offset, buffer)
        }
        fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
            let _gate = self.gate.lock().unwrap();
            self.ram.write(offset, data)
        }
        fn flush(&self) -> Result<(), DiskError> {
            self.ram.flush()
        }
        fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
            let _gate = self.gate.lock().unwrap();
            self.ram.unmap(offset, bytes)
        }
    }

    /// A job for a new unit over `disk`.
    fn job(id: u64, disk: Arc<dyn Disk>, cdb: &[u8]) -> Job {
        let unit = Arc::new(LogicalUnit::new(disk, Identity::new([3; 16], "TEST")));
        let nexus = unit.connect(&NexusName {
            initiator: "iqn.2026-01.test:pc".to_owned(),
            isid: [0x80, 0, 0, 0, 0, 1],
        });
        assert!(unit.admit(&nexus, &[0; 6]).is_err(), "its first attention");
        let work = unit.admit(&nexus, cdb).unwrap();
        Task::new(1, [0; 8], (unit, nexus), work, 0).job(id, Arc::default())
    }

    #[test]
    fn sanitizing_keeps_no_worker_from_other_units() {
        const ERASE: [u8; 10] = [0x48, 0x02, 0, 0, 0, 0, 0, 0, 0, 0];
        const ERASE_LATER: [u8; 10] = [0x48, 0x82, 0, 0, 0, 0, 0, 0, 0, 0];
        const TEST_UNIT_READY: [u8; 6] = [0; 6];
        let gate = Arc::new(Mutex::new(()));
        let gated = Arc::new(Gated {
            ram: Ram::new(1 << 20),
            gate: gate.clone(),
        });
        let held = gate.lock().unwrap();
        let workers = Workers::start(1).unwrap();
        let mailbox = Arc::new(Mailbox::new().unwrap());
        workers.run(job(1, gated.clone(), &ERASE), &mailbox);
        workers.run(job(2, gated, &ERASE_LATER), &mailbox);
        workers.run(
            job(3, Arc::new(Ram::new(1 << 20)), &TEST_UNIT_READY),
            &mailbox,
        );
        let (begun, mut done) = (Instant::now(), vec![]);
        while done.len() < 2 {
            assert!(begun.elapsed() < Duration::from_secs(20), "it has to wait");
            done.extend(mailbox.collect().iter().map(|done| done.id));
            thread::sleep(Duration::from_millis(1));
        }
        done.sort_unstable();
        assert_eq!(done, [2, 3]);
        drop(held);
        mailbox.wait_until_idle();
        assert_eq!(mailbox.collect().len(), 1);
    }

    #[test]
    fn an_immediate_sanitize_goes_on_after_its_answer_and_its_session() {
        let identity = Identity::new([3; 16], "TEST");
        let unit = Arc::new(LogicalUnit::new(Arc::new(Ram::new(1 << 20)), identity));
        unit.disk().write(0, &[7; 4096]).unwrap();
        let name = NexusName {
            initiator: "iqn.2026-01.test:pc".to_owned(),
            isid: [0x80, 0, 0, 0, 0, 1],
        };
        let nexus = unit.connect(&name);
        assert!(unit.admit(&nexus, &[0; 6]).is_err(), "its first attention");
        let erase = [0x48, 0x82, 0, 0, 0, 0, 0, 0, 0, 0];
        let work = unit.admit(&nexus, &erase).unwrap();
        let mut task = Task::new(1, [0; 8], (unit.clone(), nexus), work, 0);
        let called_off = Arc::new(AtomicBool::new(false));
        let job = task.job(1, called_off.clone());
        drop(task);
        let workers = Workers::start(1).unwrap();
        let mailbox = Arc::new(Mailbox::new().unwrap());
        workers.run(job, &mailbox);
        mailbox.wait_until_idle();
        let done = mailbox.collect();
        assert_eq!(
            done.iter().map(|d| d.result.is_ok()).collect::<Vec<_>>(),
            [true]
        );
        called_off.store(true, std::sync::atomic::Ordering::Relaxed);
        drop(workers);
        // Once the unit is ready again, nothing is stored.
        let nexus = unit.connect(&name);
        let _attention = unit.admit(&nexus, &[0; 6]);
        let begun = Instant::now();
        while unit.admit(&nexus, &[0; 6]).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it stopped");
            thread::yield_now();
        }
        let mut bytes = [1; 4096];
        unit.disk().read(0, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 4096]);
    }
}
