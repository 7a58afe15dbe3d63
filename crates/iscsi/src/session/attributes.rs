//! Task attributes (SAM-5 section 8.9): which command of a unit begins when,
//! among those of one session.
//!
//! A simple command begins as it comes, and as long as there are no others
//! that is all. An ordered one waits until everything older has ended, one
//! at the head of the queue for nothing; whatever is younger waits for both.

use std::collections::VecDeque;
use std::sync::Arc;

use scsi::{LogicalUnit, Lun, Sense};

use super::{Session, TASK_SET_FULL, residual};
use crate::outbox::Outbox;
use crate::target::Units;
use crate::task::{Answered, Failure};
use crate::wire::{DataOut, NO_TAG, ScsiCommand};

/// Data of commands that wait for their turn, over all of a session; a
/// command that brings more is refused (TASK SET FULL).
const MAX_HELD_BYTES: usize = 1 << 20;

/// The attributes (RFC 7143 section 11.3.1).
const UNTAGGED: u8 = 0;
pub(super) const SIMPLE: u8 = 1;
const ORDERED: u8 = 2;
const HEAD_OF_QUEUE: u8 = 3;

/// The order of a session's commands, where it matters.
#[derive(Default)]
pub(super) struct Sequence {
    /// Commands that may not begin yet, oldest first.
    held: VecDeque<Held>,
    /// Tags of ordered commands, and of those from the head of the queue,
    /// that have begun; some may have ended since.
    barriers: Vec<u32>,
}

/// A command that waits for its turn.
struct Held {
    pdu: ScsiCommand,
    unit: Arc<LogicalUnit>,
    /// How often the unit had been reset when the command came.
    resets: u64,
    /// Data that came with it, or unasked after it.
    data: Vec<u8>,
    /// The next DataSN of what comes unasked.
    data_sn: u32,
    failed: Option<Failure>,
}

impl Held {
    fn answered(&self) -> Answered {
        Answered {
            itt: self.pdu.itt,
            expected_bytes: self.pdu.expected_bytes,
            reads: self.pdu.reads,
            data_sn: 0,
        }
    }
}

impl Sequence {
    /// Whether the order of the next simple command has to be looked at.
    pub(super) fn matters(&self) -> bool {
        !self.held.is_empty() || !self.barriers.is_empty()
    }

    /// Whether any command waits for its turn.
    pub(super) fn holds_any(&self) -> bool {
        !self.held.is_empty()
    }

    /// How many commands wait for their turn.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether the command with this tag waits for its turn.
    pub(super) fn holds(&self, itt: u32) -> bool {
        self.held.iter().any(|held| held.pdu.itt == itt)
    }

    /// Whether a command of this unit waits for its turn.
    pub(super) fn holds_any_of(&self, unit: &LogicalUnit) -> bool {
        self.held.iter().any(|held| held.unit.is_same_unit(unit))
    }

    /// Ends commands that wait for their turn; how many.
    pub(super) fn end(&mut self, which: impl Fn(u32, &LogicalUnit) -> bool) -> usize {
        let before = self.held.len();
        self.held.retain(|held| !which(held.pdu.itt, &held.unit));
        before - self.held.len()
    }

    /// Whether an ordered command of `unit` is among the first `count` that
    /// wait.
    fn has_ordered(&self, unit: &LogicalUnit, count: usize) -> bool {
        let mut older = self.held.iter().take(count);
        older.any(|held| held.pdu.attribute == ORDERED && held.unit.is_same_unit(unit))
    }

    fn data_bytes(&self) -> usize {
        self.held.iter().map(|held| held.data.len()).sum()
    }
}

impl Session<'_> {
    /// Whether a command does not begin now: it waits, or was refused.
    pub(super) fn hold(
        &mut self,
        units: &Units,
        pdu: &ScsiCommand,
        data: &[u8],
        out: &mut Outbox<'_>,
    ) -> bool {
        let Some((_, unit)) = Lun::parse(pdu.lun).and_then(|lun| units.find(lun.0)) else {
            return false;
        };
        let held = Held {
            pdu: pdu.clone(),
            unit: unit.clone(),
            resets: unit.resets(),
            data: Vec::new(),
            data_sn: 0,
            failed: None,
        };
        self.drop_old_barriers();
        let waits = match pdu.attribute {
            UNTAGGED | SIMPLE => self.is_after_barrier(unit, self.sequence.len()),
            ORDERED => self.is_active(unit) || self.sequence.holds_any_of(unit),
            HEAD_OF_QUEUE => false,
            // ACA: there is no such condition to be in.
            _ => {
                let failure = Sense::INVALID_MESSAGE_ERROR.into();
                self.fail(&held.answered(), failure, unit.sense_format(), out);
                return true;
            }
        };
        if !waits {
            if matches!(pdu.attribute, ORDERED | HEAD_OF_QUEUE) {
                self.sequence.barriers.push(pdu.itt);
            }
            return false;
        }
        if self.sequence.data_bytes() + data.len() > MAX_HELD_BYTES {
            self.refuse_for_now(&held.answered(), out);
            return true;
        }
        self.sequence.held.push_back(Held {
            data: data.to_vec(),
            ..held
        });
        true
    }

    /// Begins what has had to wait and need not any more.
    pub(super) fn begin_held<'u>(&mut self, units: &'u Units, out: &mut Outbox<'u>) {
        loop {
            self.drop_old_barriers();
            let next = (0..self.sequence.len()).find(|place| self.may_begin(*place));
            let Some(held) = next.and_then(|place| self.sequence.held.remove(place)) else {
                return;
            };
            if held.unit.resets() != held.resets {
                continue; // ended by a reset: nobody hears of it
            }
            if held.pdu.attribute == ORDERED {
                self.sequence.barriers.push(held.pdu.itt);
            }
            let unsolicited = (held.pdu.writes && !held.pdu.is_final).then_some(held.data_sn);
            self.begin(units, &held.pdu, &held.data, unsolicited, out);
        }
    }

    /// Takes unsolicited data of a command that waits for its turn.
    pub(super) fn data_for_held(
        &mut self,
        pdu: &DataOut,
        data: &[u8],
        damage: Option<Failure>,
        out: &mut Outbox<'_>,
    ) {
        let room = MAX_HELD_BYTES.saturating_sub(self.sequence.data_bytes());
        let first_burst = self.parameters.first_burst_length;
        let place = self
            .sequence
            .held
            .iter()
            .position(|held| held.pdu.itt == pdu.itt);
        let Some((place, held)) = place.and_then(|n| Some((n, self.sequence.held.get_mut(n)?)))
        else {
            return; // answered or aborted
        };
        let limit = held.pdu.expected_bytes.min(first_burst);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let fits = pdu.ttt == NO_TAG
            && !held.pdu.is_final
            && pdu.data_sn == held.data_sn
            && usize::try_from(pdu.buffer_offset).is_ok_and(|offset| offset == held.data.len())
            && held.data.len() + data.len() <= limit;
        held.failed = held.failed.or(damage);
        held.data_sn = held.data_sn.wrapping_add(1);
        if fits && data.len() <= room && !(held.failed.is_some() && pdu.is_final) {
            held.data.extend_from_slice(data);
            held.pdu.is_final = pdu.is_final;
            return;
        }
        let (failed, answered) = (held.failed, held.answered());
        let format = held.unit.sense_format();
        self.sequence.held.remove(place);
        match failed {
            _ if !fits => {
                let failure = Sense::INCORRECT_AMOUNT_OF_DATA.into();
                self.fail(&answered, failure, format, out);
            }
            Some(failure) => self.fail(&answered, failure, format, out),
            None => self.refuse_for_now(&answered, out),
        }
    }

    fn may_begin(&self, place: usize) -> bool {
        let Some(held) = self.sequence.held.get(place) else {
            return false;
        };
        let mut older = self.sequence.held.iter().take(place);
        match held.pdu.attribute {
            _ if held.failed.is_some() => false, // the last of its data ends it
            ORDERED => {
                !self.is_active(&held.unit) && !older.any(|o| o.unit.is_same_unit(&held.unit))
            }
            _ => !self.is_after_barrier(&held.unit, place),
        }
    }

    /// Whether a command of `unit` that has begun has not ended.
    fn is_active(&self, unit: &LogicalUnit) -> bool {
        let mut running = self.running.values();
        let is_same = |other: &LogicalUnit| other.is_same_unit(unit);
        self.tasks.values().any(|task| is_same(&task.unit))
            || running.any(|running| running.goes_on() && is_same(&running.unit))
    }

    /// Whether a command of `unit` comes after one that it must wait for; of
    /// those that wait, `count` are older.
    fn is_after_barrier(&self, unit: &LogicalUnit, count: usize) -> bool {
        let is_same = |other: &LogicalUnit| other.is_same_unit(unit);
        let is_barrier = |itt: u32| {
            let task = self.tasks.get(&itt).is_some_and(|task| is_same(&task.unit));
            let mut running = self.running.values();
            task || running.any(|r| r.answered.itt == itt && r.goes_on() && is_same(&r.unit))
        };
        self.sequence.barriers.iter().any(|itt| is_barrier(*itt))
            || self.sequence.has_ordered(unit, count)
    }

    fn drop_old_barriers(&mut self) {
        let (tasks, running) = (&self.tasks, &self.running);
        self.sequence.barriers.retain(|itt| {
            let mut running = running.values();
            tasks.contains_key(itt) || running.any(|r| r.answered.itt == *itt && r.goes_on())
        });
    }

    /// TASK SET FULL: the initiator is to send it again.
    pub(super) fn refuse_for_now(&mut self, answered: &Answered, out: &mut Outbox<'_>) {
        self.commands += 1;
        let residual = residual(answered.expected_bytes, 0);
        self.respond(answered, TASK_SET_FULL, residual, &[], out);
    }
}
