//! What was answered and is not yet durable: the notes of a flush to come.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::header::Headers;
use super::log::Updates;
use super::volatile::{Change, Zone};

/// Notes that a change of one block may take.
pub(super) const NOTES_PER_PIECE: usize = 4;

/// A change, and what it frees in the file once it is durable.
#[derive(Clone, Debug)]
pub(super) struct Note {
    pub(super) change: Change,
    /// Offsets and lengths.
    pub(super) frees: Vec<(u64, u64)>,
}

/// Notes in order, and the records of the same.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) pending: Vec<Note>,
    /// There is one while the file is being written.
    pub(super) zone: Option<Zone>,
    /// Records that are promised.
    pub(super) reserved: usize,
}

/// Headers and log: whoever holds them writes them.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) headers: Headers,
    /// Sequence number of the last entry.
    pub(super) sequence: u64,
    /// Where in the log the next entry goes.
    pub(super) place: u64,
    /// What is durable in the log, and could not be written in place.
    pub(super) unapplied: Updates,
}

/// How far the file is into being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It is as its last writer left it: no log, nothing noted.
    Closed = 0,
    /// A killed process left a log and notes, which count on; nothing was
    /// written since.
    Resumed = 1,
    /// The headers say that it is being written.
    Begun = 2,
}

/// Locks in the order in which they are taken: the log's, the notes'.
#[derive(Debug)]
pub(super) struct Journal {
    phase: AtomicU8,
    log: Mutex<Log>,
    notes: Mutex<Notes>,
}

impl Journal {
    pub(super) fn new(log: Log) -> Journal {
        Journal {
            phase: AtomicU8::new(Phase::Closed as u8),
            log: Mutex::new(log),
            notes: Mutex::default(),
        }
    }

    pub(super) fn is_in(&self, phase: Phase) -> bool {
        self.phase.load(Ordering::Acquire) == phase as u8
    }

    /// Changed by who holds the log.
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Release);
    }

    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room for the records of one change, given back when it is over.
pub(super) struct Room<'a>(pub(super) &'a Journal);

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.0.notes().reserved -= NOTES_PER_PIECE;
    }
}
