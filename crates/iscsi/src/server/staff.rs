//! The threads that run logins, and then the sessions these lead to.
//!
//! A thread that has taken a connection through its login stays with it: no
//! hand-over, no new stack. Another takes its place among those that run
//! logins, and once its session has ended it comes back, unless enough wait
//! already.

use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Threads that wait for logins beyond those a server begins with: sessions
/// that come and go share these, instead of a new thread for each.
const SPARE_THREADS: usize = 8;

/// Logins that wait for a thread, and the threads. A channel's receiver behind
/// a lock would wake two threads for each login: the one that takes it, and
/// the next in line.
pub(super) struct Staff<L> {
    /// Logins under way at once, and threads that are there for them.
    limit: usize,
    state: Mutex<State<L>>,
    changed: Condvar,
}

struct State<L> {
    waiting: VecDeque<L>,
    /// Threads that are not in a session.
    threads: usize,
    /// Of these, threads in a login.
    busy: usize,
    closed: bool,
}

impl<L> Staff<L> {
    /// A staff for so many logins at once. Who makes it brings as many
    /// threads.
    pub(super) fn new(limit: usize) -> Staff<L> {
        Staff {
            limit,
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                threads: limit,
                busy: 0,
                closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Has a thread take `login`, now or later.
    pub(super) fn push(&self, login: L) {
        self.lock().waiting.push_back(login);
        self.changed.notify_one();
    }

    /// Has a thread take `login`, if one is free this moment; else gives it
    /// back.
    pub(super) fn offer(&self, login: L) -> Result<(), L> {
        let mut state = self.lock();
        if state.busy + state.waiting.len() >= self.limit {
            return Err(login);
        }
        state.waiting.push_back(login);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Waits for a login; `None` once closed and empty. For threads that are
    /// in none.
    pub(super) fn next(&self) -> Option<(L, Duty<'_, L>)> {
        let mut state = self.lock();
        loop {
            if state.busy < self.limit
                && let Some(login) = state.waiting.pop_front()
            {
                state.busy += 1;
                let duty = Duty {
                    staff: self,
                    is_relieved: false,
                };
                return Some((login, duty));
            }
            if state.closed && state.waiting.is_empty() {
                // Others may wait, since something did when it was closed.
                self.changed.notify_all();
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Sends the threads home, once nothing waits.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<L>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a thread of the staff does since it has taken a login.
pub(super) struct Duty<'a, L> {
    staff: &'a Staff<L>,
    is_relieved: bool,
}

impl<L> Duty<'_, L> {
    /// Lets the thread go on from its login to a session. `hire` brings a new
    /// thread where too few would be left.
    pub(super) fn relieve(&mut self, hire: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let mut state = self.staff.lock();
        state.threads -= 1;
        let is_short = state.threads < self.staff.limit;
        if is_short {
            state.threads += 1; // the new one
            drop(state);
            hire()?; // else the count is of this one again
            state = self.staff.lock();
        }
        state.busy -= 1;
        self.is_relieved = true;
        let (waits, closed) = (!state.waiting.is_empty(), state.closed);
        drop(state);
        match closed {
            true => self.staff.changed.notify_all(),
            false if waits => self.staff.changed.notify_one(),
            false => {}
        }
        Ok(())
    }

    /// Ends it; `false` when the staff has no place left for the thread.
    pub(super) fn end(self) -> bool {
        let mut state = self.staff.lock();
        if !self.is_relieved {
            state.busy -= 1;
            return true;
        }
        let has_place = !state.closed && state.threads < self.staff.limit + SPARE_THREADS;
        state.threads += usize::from(has_place);
        has_place
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::{Duration, Instant};

    fn nobody() -> io::Result<()> {
        panic!("somebody was hired")
    }

    #[test]
    fn no_more_logins_are_under_way_than_the_limit_says() {
        let staff = Staff::new(2);
        for login in 1..=3 {
            staff.push(login);
        }
        let (first, duty) = staff.next().unwrap();
        let (second, _) = staff.next().unwrap();
        assert_eq!((first, second), (1, 2));
        assert_eq!(staff.offer(4), Err(4));
        assert_eq!(staff.lock().waiting.len(), 1);
        assert!(duty.end());
        assert_eq!(staff.next().unwrap().0, 3);
    }

    #[test]
    fn who_goes_to_a_session_is_replaced_and_comes_back_while_there_is_room() {
        let staff = Staff::new(1);
        let mut sessions = Vec::new();
        for login in 0..SPARE_THREADS + 2 {
            staff.push(login);
            let (_, mut duty) = staff.next().unwrap();
            let mut hired = 0;
            duty.relieve(|| {
                hired += 1;
                Ok(())
            })
            .unwrap();
            assert_eq!(hired, 1);
            sessions.push(duty);
        }
        let back: Vec<bool> = sessions.into_iter().map(Duty::end).collect();
        assert_eq!(back.iter().filter(|back| **back).count(), SPARE_THREADS);
        assert!(!back[SPARE_THREADS], "there are enough");
        staff.push(0);
        let (_, mut duty) = staff.next().unwrap();
        duty.relieve(nobody).unwrap();
    }

    #[test]
    fn who_cannot_be_replaced_stays() {
        let staff = Staff::new(1);
        staff.push(());
        let ((), mut duty) = staff.next().unwrap();
        assert!(
            duty.relieve(|| Err(io::Error::other("no threads")))
                .is_err()
        );
        assert!(duty.end());
        staff.push(());
        assert!(staff.next().is_some());
    }

    #[test]
    fn what_waits_is_taken_before_all_go_home() {
        let staff = Staff::new(1);
        staff.push(());
        staff.close();
        let ((), mut duty) = staff.next().unwrap();
        duty.relieve(|| Ok(())).unwrap();
        assert!(!duty.end());
        assert!(staff.next().is_none());
    }
    #[test]
    fn nobody_stays_when_all_go_home() {
        let staff = Staff::new(1);
        staff.push(1);
        let (_, duty) = staff.next().unwrap();
        staff.push(2);
        staff.close();
        thread::scope(|scope| {
            // It finds a login in the queue, and one too many under way.
            let spare = scope.spawn(|| staff.next().is_none());
            thread::sleep(Duration::from_millis(50));
            assert!(duty.end());
            let mut mine = 0;
            while let Some((_, duty)) = staff.next() {
                mine += 1;
                duty.end();
            }
            let begun = Instant::now();
            while !spare.is_finished() && begun.elapsed() < Duration::from_secs(10) {
                thread::sleep(Duration::from_millis(1));
            }
            let has_gone = spare.is_finished();
            staff.changed.notify_all(); // or the scope would not end
            assert!(mine == 1 && has_gone, "{mine}");
        });
    }
}
