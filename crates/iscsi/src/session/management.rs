//! Task management (RFC 7143 sections 11.5 and 11.6): ending tasks, and saying
//! so no earlier than they have let go of the disk.

use std::sync::atomic::Ordering;

use super::{Next, Session, reason};
use crate::outbox::Outbox;
use crate::wire::{Bhs, TaskManagement, TaskManagementResponse};

/// A task management function whose tasks are still running.
pub(super) struct Resolving {
    pub(super) itt: u32,
    pub(super) jobs: Vec<u64>,
}

impl<'t> Session<'t> {
    /// Does what a task management function asks for.
    pub(super) fn task_management(
        &mut self,
        pdu: &TaskManagement,
        bhs: &Bhs,
        out: &mut Outbox<'t>,
    ) -> Next {
        let Some(target) = self.target else {
            self.reject(reason::PROTOCOL_ERROR, bhs, out);
            return Next::Continue;
        };
        let unit = self.unit(pdu.lun);
        let (response, ended) = match (pdu.function, unit) {
            (1, _) => match self.end_tasks(|itt, _| itt == pdu.referenced_tag) {
                (0, _) => (1, vec![]), // no such task: it has been answered
                (_, jobs) => (0, jobs),
            },
            (2 | 4 | 5, None) => (2, vec![]), // no such unit
            (2, Some(_)) => (0, self.end_tasks(|_, lun| lun == pdu.lun).1),
            (4, Some((unit, nexus))) => {
                let jobs = self.end_tasks(|_, lun| lun == pdu.lun).1;
                unit.clear_tasks(&nexus);
                (0, jobs)
            }
            (5, Some((unit, _))) => {
                let jobs = self.end_tasks(|_, lun| lun == pdu.lun).1;
                unit.reset();
                (0, jobs)
            }
            (6 | 7, _) => {
                let jobs = self.end_tasks(|_, _| true).1;
                target.units.iter().for_each(|unit| unit.reset());
                (0, jobs)
            }
            (8, _) => (4, vec![]), // task reassignment needs error recovery level 2
            _ => (5, vec![]),      // not supported
        };
        if ended.is_empty() {
            self.respond_task_management(pdu.itt, response, out);
        } else {
            self.resolving.push(Resolving {
                itt: pdu.itt,
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
    /// that may be said.
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
            if running.aborted || !which(running.itt, running.lun) {
                continue;
            }
            count += 1;
            running.aborted = true;
            running.called_off.store(true, Ordering::Relaxed);
            if running.work.changes_disk() {
                jobs.push(*id);
            }
        }
        (count, jobs)
    }

    /// Says that a function is done, or why not.
    pub(super) fn respond_task_management(&mut self, itt: u32, response: u8, out: &mut Outbox<'t>) {
        let response = TaskManagementResponse {
            response,
            itt,
            numbers: self.status_numbers(),
        };
        out.header(&response.emit());
    }
}
