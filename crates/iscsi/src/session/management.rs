//! Task management (RFC 7143 sections 11.5 and 11.6, RFC 7144): ending tasks,
//! and saying so no earlier than they have let go of the disk; asking for
//! them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use scsi::{LogicalUnit, Lun, Sense};

use super::command::connect;
use super::{Next, Session, reason};
use crate::outbox::Outbox;
use crate::target::Units;
use crate::wire::{Bhs, TaskManagement, TaskManagementResponse, is_before};

/// Functions that may wait for workers at once; one more is rejected.
const MAX_RESOLVING: usize = 16;
/// From this iSCSIProtocolLevel on the functions of RFC 7144 are known.
const LEVEL_OF_RFC_7144: u32 = 2;

/// Functions (RFC 7143 section 11.5.1, RFC 7144 section 6).
mod function {
    pub(super) const ABORT_TASK: u8 = 1;
    pub(super) const ABORT_TASK_SET: u8 = 2;
    pub(super) const CLEAR_TASK_SET: u8 = 4;
    pub(super) const LOGICAL_UNIT_RESET: u8 = 5;
    pub(super) const TARGET_WARM_RESET: u8 = 6;
    pub(super) const TARGET_COLD_RESET: u8 = 7;
    pub(super) const TASK_REASSIGN: u8 = 8;
    pub(super) const QUERY_TASK: u8 = 9;
    pub(super) const QUERY_TASK_SET: u8 = 10;
    pub(super) const I_T_NEXUS_RESET: u8 = 11;
    pub(super) const QUERY_ASYNC_EVENT: u8 = 12;
}

/// Responses (RFC 7143 section 11.6.1).
const COMPLETE: u8 = 0;
const NO_SUCH_TASK: u8 = 1;
const NO_SUCH_UNIT: u8 = 2;
const REASSIGNMENT_NOT_SUPPORTED: u8 = 4;
const NOT_SUPPORTED: u8 = 5;
/// RFC 7144: what was asked for is there.
const SUCCEEDED: u8 = 7;
const REJECTED: u8 = 255;

/// A task management function whose tasks are still running.
pub(super) struct Resolving {
    pub(super) itt: u32,
    pub(super) response: u8,
    pub(super) jobs: Vec<u64>,
}

/// What a function comes to.
#[derive(Default)]
struct Outcome {
    response: u8,
    /// Jobs that must let go before it may be said.
    jobs: Vec<u64>,
    /// Additional response information (RFC 7144).
    additional: [u8; 3],
}

impl Outcome {
    fn of(response: u8) -> Outcome {
        Outcome {
            response,
            ..Outcome::default()
        }
    }

    /// Complete, once these jobs have let go.
    fn after(jobs: Vec<u64>) -> Outcome {
        Outcome {
            jobs,
            ..Outcome::of(COMPLETE)
        }
    }

    /// Whether what was asked for is there.
    fn found(is_there: bool) -> Outcome {
        Outcome::of(if is_there { SUCCEEDED } else { COMPLETE })
    }
}

impl Session<'_> {
    /// Does what a task management function asks for.
    pub(super) fn task_management(
        &mut self,
        units: &Units,
        pdu: &TaskManagement,
        bhs: &Bhs,
        out: &mut Outbox<'_>,
    ) -> Next {
        if self.target.is_none() {
            self.reject(reason::PROTOCOL_ERROR, bhs, out);
            return Next::Continue;
        }
        let outcome = match self.resolving.len() < MAX_RESOLVING {
            true => self.perform(units, pdu),
            false => Outcome::of(REJECTED),
        };
        if outcome.jobs.is_empty() {
            self.respond_task_management(pdu.itt, outcome.response, outcome.additional, out);
        } else {
            self.resolving.push(Resolving {
                itt: pdu.itt,
                response: outcome.response,
                jobs: outcome.jobs,
            });
        }
        self.solicit(out);
        match pdu.function {
            function::TARGET_COLD_RESET if outcome.response == COMPLETE => Next::CloseTarget,
            _ => Next::Continue,
        }
    }

    fn perform(&mut self, units: &Units, pdu: &TaskManagement) -> Outcome {
        use function::*;
        if pdu.function >= QUERY_TASK && self.parameters.protocol_level < LEVEL_OF_RFC_7144 {
            return Outcome::of(NOT_SUPPORTED);
        }
        // What is about the whole target, or a task wherever it is.
        match pdu.function {
            ABORT_TASK => return self.abort_task(pdu),
            TARGET_WARM_RESET | TARGET_COLD_RESET => {
                let (_, jobs) = self.end_tasks(|_, _| true);
                units.list().iter().for_each(|(_, unit)| unit.reset());
                return Outcome::after(jobs);
            }
            TASK_REASSIGN => return Outcome::of(REASSIGNMENT_NOT_SUPPORTED), // needs level 2
            I_T_NEXUS_RESET => {
                let (_, jobs) = self.end_tasks(|_, _| true);
                self.lose_nexuses(units);
                return Outcome::after(jobs);
            }
            ABORT_TASK_SET | CLEAR_TASK_SET | LOGICAL_UNIT_RESET => {}
            QUERY_TASK | QUERY_TASK_SET | QUERY_ASYNC_EVENT => {}
            _ => return Outcome::of(NOT_SUPPORTED), // CLEAR ACA: there is none
        }
        let unit = Lun::parse(pdu.lun).and_then(|lun| units.find(lun.0));
        let Some((_, unit)) = unit else {
            return Outcome::of(NO_SUCH_UNIT);
        };
        match pdu.function {
            QUERY_TASK => Outcome::found(self.has_task(pdu.referenced_tag)),
            QUERY_TASK_SET => Outcome::found(self.has_task_of(unit)),
            QUERY_ASYNC_EVENT => self.query_async_event(units, pdu),
            function => {
                let (_, jobs) = self.end_tasks(|_, other| other.is_same_unit(unit));
                match function {
                    CLEAR_TASK_SET => {
                        if let Some((unit, nexus)) = self.unit(units, pdu.lun) {
                            unit.clear_tasks(nexus);
                        }
                    }
                    LOGICAL_UNIT_RESET => unit.reset(),
                    _ => {}
                }
                Outcome::after(jobs)
            }
        }
    }

    fn abort_task(&mut self, pdu: &TaskManagement) -> Outcome {
        let (count, jobs) = self.end_tasks(|itt, _| itt == pdu.referenced_tag);
        if count > 0 {
            return Outcome::after(jobs);
        }
        // A command that is still on its way is as good as received, and
        // nothing will come of it (RFC 7143 section 11.6.1).
        let number = pdu.ref_cmd_sn;
        let is_expected =
            !is_before(number, self.exp_cmd_sn) && !is_before(self.max_cmd_sn, number);
        if is_expected && is_before(number, pdu.cmd_sn) {
            if !self.given_up.contains(&number) {
                self.given_up.push(number);
            }
            self.skip_given_up();
            return Outcome::of(COMPLETE);
        }
        Outcome {
            response: NO_SUCH_TASK, // answered, or aborted before
            jobs,
            ..Outcome::default()
        }
    }

    /// Ends this session's nexuses: whatever they held is let go of, and
    /// every unit says so.
    fn lose_nexuses(&mut self, units: &Units) {
        for ((_, unit), nexus) in units.list().iter().zip(&mut self.nexuses) {
            if nexus.take().is_some() {
                let new = connect(unit, &self.name, self.target);
                new.withdraw(Sense::RESET_OCCURRED);
                new.raise(Sense::I_T_NEXUS_LOSS_OCCURRED);
                *nexus = Some(new);
            }
        }
    }

    fn query_async_event(&mut self, units: &Units, pdu: &TaskManagement) -> Outcome {
        let waiting = self.unit(units, pdu.lun).map(|(_, nexus)| nexus.waiting());
        let Some((count, Some(sense))) = waiting else {
            return Outcome::of(COMPLETE);
        };
        let depth = if count > 1 { 0b10 } else { 0b01 }; // UADE depth: more than one, one
        Outcome {
            additional: [depth << 4 | sense.key, sense.asc, sense.ascq],
            ..Outcome::of(SUCCEEDED)
        }
    }

    pub(super) fn has_task(&self, itt: u32) -> bool {
        let mut running = self.running.values();
        self.tasks.contains_key(&itt)
            || running.any(|running| running.answered.itt == itt && !running.aborted)
            || self.sequence.holds(itt)
    }

    fn has_task_of(&self, unit: &Arc<LogicalUnit>) -> bool {
        let mut running = self.running.values();
        self.tasks.values().any(|task| task.unit.is_same_unit(unit))
            || running.any(|running| running.unit.is_same_unit(unit) && !running.aborted)
            || self.sequence.holds_any_of(unit)
    }

    /// Ends tasks; how many there were, and the jobs that must let go before
    /// that may be said: also those of tasks that had been ended before.
    pub(super) fn end_tasks(
        &mut self,
        which: impl Fn(u32, &LogicalUnit) -> bool,
    ) -> (usize, Vec<u64>) {
        let mut count = self.sequence.end(&which);
        let mut released = 0;
        self.tasks.retain(|itt, task| {
            let ends = which(*itt, &task.unit);
            if ends {
                count += 1;
                released += task.burst.as_ref().map_or(0, |burst| burst.bytes);
            }
            !ends
        });
        self.solicited_bytes = self.solicited_bytes.saturating_sub(released);
        let tasks = &self.tasks;
        self.unasked.retain(|itt| tasks.contains_key(itt));
        let mut jobs = Vec::new();
        for (id, running) in &mut self.running {
            if !which(running.answered.itt, &running.unit) {
                continue;
            }
            if !running.aborted {
                count += 1;
                running.aborted = true;
                running.called_off.store(true, Ordering::Relaxed);
            }
            if running.work.finish_changes_disk() {
                jobs.push(*id);
            }
        }
        (count, jobs)
    }

    /// Says that a function is done, or why not.
    pub(super) fn respond_task_management(
        &mut self,
        itt: u32,
        response: u8,
        additional: [u8; 3],
        out: &mut Outbox<'_>,
    ) {
        let response = TaskManagementResponse {
            response,
            additional,
            itt,
            numbers: self.status_numbers(),
        };
        out.header(&response.emit());
    }
}
