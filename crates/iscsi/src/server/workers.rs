//! Workers: a few threads that run slow commands, so that a connection goes
//! on answering pings and task management.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::event::{EventfdFlags, eventfd};

use crate::task::{Done, Job};

/// The pool.
pub(super) struct Workers {
    queue: Sender<(Job, Arc<Mailbox>)>,
}

impl Workers {
    pub(super) fn start(threads: usize) -> io::Result<Workers> {
        let (queue, jobs) = mpsc::channel();
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..threads.max(1) {
            let jobs = jobs.clone();
            thread::Builder::new()
                .name("iscsi-worker".into())
                .spawn(move || work(&jobs))?;
        }
        Ok(Workers { queue })
    }

    /// Runs a job; its end is told to `mailbox`.
    pub(super) fn run(&self, job: Job, mailbox: &Arc<Mailbox>) {
        mailbox.lock().outstanding += 1;
        // Cannot fail: workers live as long as the pool.
        if self.queue.send((job, mailbox.clone())).is_err() {
            mailbox.lock().outstanding -= 1;
        }
    }
}

fn work(jobs: &Mutex<Receiver<(Job, Arc<Mailbox>)>>) {
    loop {
        let next = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((job, mailbox)) = next else {
            return; // the server is gone
        };
        let id = job.id;
        // A disk that panics costs its command, not the pool.
        let run = AssertUnwindSafe(|| job.run());
        let done = catch_unwind(run).unwrap_or_else(|_| Done::failed(id));
        mailbox.deliver(done);
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
        let mut state = self.lock();
        while state.outstanding > 0 {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn deliver(&self, done: Done) {
        let mut state = self.lock();
        state.done.push(done);
        state.outstanding -= 1;
        drop(state);
        self.changed.notify_all();
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
