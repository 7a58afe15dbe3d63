//! Task management (RFC 7143 sections 11.5 and 11.6): ending tasks, and saying
//! so no earlier than they have let go of the disk.

use std::sync::atomic::Ordering;

use super::{Next, Session, reason};
use crate::outbox::Outbox;
use crate::target::Units;
use crate::wire::{Bhs, TaskManagement, TaskManagementResponse};

/// Functions that may wait for workers at once; one more is rejected.
const MAX_RESOLVING: usize = 16;

/// Responses (RFC 7143 section 11.6.1).
const COMPLETE: u8 = 0;
const NO_SUCH_TASK: u8 = 1;
const NO_SUCH_UNIT: u8 = 2;
const REASSIGNMENT_NOT_SUPPORTED: u8 = 4;
const NOT_SUPPORTED: u8 = 5;
const REJECTED: u8 = 255;

/// A task management function whose tasks are still running.
pub(super) struct Resolving {
    pub(super) itt: u32,
    pub(super) response: u8,
    pub(super) jobs: Vec<u64>,
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
        if self.resolving.len() >= MAX_RESOLVING {
            self.respond_task_management(pdu.itt, REJECTED, out);
            return Next::Continue;
        }
        let unit = self.unit(units, pdu.lun);
        let unit = unit.map(|(unit, nexus)| (unit, nexus.clone()));
        let (response, ended) = match (pdu.function, unit) {
            (1, _) => match self.end_tasks(|itt, _| itt == pdu.referenced_tag) {
                (0, jobs) => (NO_SUCH_TASK, jobs), // answered, or aborted before
                (_, jobs) => (COMPLETE, jobs),
            },
            (2 | 4 | 5, None) => (NO_SUCH_UNIT, vec![]),
            (2, Some(_)) => (COMPLETE, self.end_tasks(|_, lun| lun == pdu.lun).1),
            (4, Some((unit, nexus))) => {
                let jobs = self.end_tasks(|_, lun| lun == pdu.lun).1;
                unit.clear_tasks(&nexus);
                (COMPLETE, jobs)
            }
            (5, Some((unit, _))) => {
                let jobs = self.end_tasks(|_, lun| lun == pdu.lun).1;
                unit.reset();
                (COMPLETE, jobs)
            }
            (6 | 7, _) => {
                let jobs = self.end_tasks(|_, _| true).1;
                units.list().iter().for_each(|(_, unit)| unit.reset());
                (COMPLETE, jobs)
            }
            (8, _) => (REASSIGNMENT_NOT_SUPPORTED, vec![]), // needs error recovery level 2
            _ => (NOT_SUPPORTED, vec![]),
        };
        if ended.is_empty() {
            self.respond_task_management(pdu.itt, response, out);
        } else {
            self.resolving.push(Resolving {
                itt: pdu.itt,
                response,
                jobs: ended,
            });
        }
        self.solicit(out);
        match pdu.function {
            7 => Next::CloseTarget,
            _ => Next::Continue,
        }
    }

    /// Ends tasks; how many there were, and the jobs that must let go before
    /// that may be said: also those of tasks that had been ended before.
    pub(super) fn end_tasks(&mut self, which: impl Fn(u32, [u8; 8]) -> bool) -> (usize, Vec<u64>) {
        let mut count = 0;
        let mut released = 0;
        self.tasks.retain(|itt, task| {
            let ends = which(*itt, task.lun);
            if ends {
                count += 1;
                released += task.burst.as_ref().map_or(0, |burst| burst.bytes);
            }
            !ends
        });
        self.solicited_bytes = self.solicited_bytes.saturating_sub(released);
        let mut jobs = Vec::new();
        for (id, running) in &mut self.running {
            if !which(running.answered.itt, running.lun) {
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
    pub(super) fn respond_task_management(&mut self, itt: u32, response: u8, out: &mut Outbox<'_>) {
        let response = TaskManagementResponse {
            response,
            itt,
            numbers: self.status_numbers(),
        };
        out.header(&response.emit());
    }
}
