//! The full feature phase of one session (RFC 7143 sections 4.2, 7 and 11):
//! command numbering, tasks, and the answers to them. Data transfer, task
//! management and text have files of their own below.
//!
//! Owns no socket, no thread and no clock: requests come in through
//! [`Session::receive`], slow work goes out through [`Session::jobs`] and
//! comes back through [`Session::finish`], PDUs go out through an
//! [`Outbox`]. One connection a session, error recovery level 0.
//!
//! Invariant: after the response to a task management function, no response
//! of a task it ended is sent.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use scsi::{Lun, Nexus, NexusName, Sense};

use crate::keys::Parameters;
use crate::outbox::Outbox;
use crate::server::Stats;
use crate::target::Units;
use crate::task::{Done, Job, Running, Task};
use crate::wire::{Bhs, PduError, Reject, Request, Residual};
use crate::{Login, Target, Targets};

mod attributes;
mod command;
mod data_in;
mod data_out;
mod management;
mod numbering;
mod presence;
mod text;

use attributes::Sequence;
use management::Resolving;
use numbering::{HOLE, Order};
use text::TextExchange;

/// Immediate commands beyond the window.
const MAX_IMMEDIATE_TASKS: usize = 8;

/// SCSI status codes (SAM-5 section 5.3.1).
const GOOD: u8 = 0x00;
const TASK_SET_FULL: u8 = 0x28;

/// Events of an Asynchronous Message (RFC 7143 section 11.9.1).
mod async_event {
    pub(super) const REQUEST_LOGOUT: u8 = 1;
}

/// Reject reasons (RFC 7143 section 11.17.1).
mod reason {
    pub(super) const DATA_DIGEST: u8 = 0x02;
    pub(super) const SNACK: u8 = 0x03;
    pub(super) const PROTOCOL_ERROR: u8 = 0x04;
    pub(super) const COMMAND_NOT_SUPPORTED: u8 = 0x05;
    pub(super) const IMMEDIATE_REJECTED: u8 = 0x06;
    pub(super) const TASK_IN_PROGRESS: u8 = 0x07;
    pub(super) const INVALID_FIELD: u8 = 0x09;
}

/// What the connection does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Goes on.
    Continue,
    /// Closes, once everything is sent.
    Close,
    /// The same, and with it all connections of the target (cold reset).
    CloseTarget,
    /// Closes: the initiator broke the protocol, as said.
    Broken(&'static str),
}

/// The data segment of a PDU.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Data<'d> {
    /// As it was sent.
    Intact(&'d [u8]),
    /// Not what its digest was made of.
    Damaged(&'d [u8]),
}

/// One session.
pub(crate) struct Session<'t> {
    login: &'t Login,
    parameters: Parameters,
    target: Option<&'t Arc<Target>>,
    targets: &'t dyn Targets,
    /// Where the server listens.
    portals: &'t [SocketAddr],
    name: NexusName,
    /// One for every unit of the target, in their order, from the first
    /// command to it on.
    nexuses: Vec<Option<Nexus>>,
    stats: &'t Stats,
    window: u32,
    stat_sn: u32,
    exp_cmd_sn: u32,
    max_cmd_sn: u32,
    /// Numbers of commands on their way that were aborted before they came.
    given_up: Vec<u32>,
    cid: u16,
    has_answered_ping: bool,
    is_asked_to_leave: bool,
    /// Commands that wait for data, by initiator task tag.
    tasks: HashMap<u32, Task>,
    /// Tasks that want an R2T and must wait for others' data.
    unasked: VecDeque<u32>,
    solicited_bytes: u32,
    next_ttt: u32,
    /// Commands on workers, by job.
    running: HashMap<u64, Running>,
    /// Where the order of commands matters.
    sequence: Sequence,
    next_job: u64,
    jobs: Vec<Job>,
    /// Task management that waits for workers to let go.
    resolving: Vec<Resolving>,
    text: Option<TextExchange>,
    commands: u64,
    bytes_read: u64,
    bytes_written: u64,
    rejects: u64,
}

/// What a session starts from.
pub(crate) struct Start<'t> {
    pub(crate) login: &'t Login,
    pub(crate) parameters: Parameters,
    /// `None` in a discovery session.
    pub(crate) target: Option<&'t Arc<Target>>,
    pub(crate) targets: &'t dyn Targets,
    pub(crate) portals: &'t [SocketAddr],
    pub(crate) stats: &'t Stats,
    pub(crate) cid: u16,
    pub(crate) window: u32,
    pub(crate) stat_sn: u32,
    pub(crate) exp_cmd_sn: u32,
}

impl<'t> Session<'t> {
    pub(crate) fn new(start: Start<'t>) -> Session<'t> {
        Session {
            name: NexusName {
                initiator: start.login.initiator.clone(),
                isid: start.login.isid,
            },
            nexuses: Vec::new(),
            max_cmd_sn: start.exp_cmd_sn.wrapping_add(start.window).wrapping_sub(1),
            login: start.login,
            parameters: start.parameters,
            target: start.target,
            targets: start.targets,
            portals: start.portals,
            stats: start.stats,
            window: start.window,
            stat_sn: start.stat_sn,
            exp_cmd_sn: start.exp_cmd_sn,
            tasks: HashMap::new(),
            unasked: VecDeque::new(),
            solicited_bytes: 0,
            next_ttt: 1,
            running: HashMap::new(),
            sequence: Sequence::default(),
            given_up: Vec::new(),
            cid: start.cid,
            has_answered_ping: false,
            is_asked_to_leave: false,
            next_job: 0,
            jobs: Vec::new(),
            resolving: Vec::new(),
            text: None,
            commands: 0,
            bytes_read: 0,
            bytes_written: 0,
            rejects: 0,
        }
    }

    /// Moves from the units `old` (at first [`Units::none`]) to `new`.
    pub(crate) fn move_on<'u>(&mut self, old: &Units, new: &'u Units, out: &mut Outbox<'u>) {
        let mut nexuses = Vec::with_capacity(new.list().len());
        let mut stayed = 0;
        for (lun, unit) in new.list() {
            let before = old.find(*lun).filter(|(_, old)| old.is_same_unit(unit));
            stayed += usize::from(before.is_some());
            let nexus = before.and_then(|(place, _)| self.nexuses.get_mut(place)?.take());
            nexuses.push(nexus);
        }
        self.nexuses = nexuses;
        if stayed < old.list().len() || stayed < new.list().len() {
            for nexus in self.nexuses.iter().flatten() {
                nexus.raise(Sense::REPORTED_LUNS_DATA_HAS_CHANGED);
            }
        }
        let lun = |lun: [u8; 8]| Lun::parse(lun).and_then(|lun| new.find(lun.0));
        let is_gone = |task: &Task| lun(task.lun).is_none_or(|(_, u)| !u.is_same_unit(&task.unit));
        let gone: Vec<Task> = self
            .tasks
            .extract_if(|_, task| is_gone(task))
            .map(|(_, t)| t)
            .collect();
        for task in gone {
            self.release(&task);
            let failure = Sense::LOGICAL_UNIT_NOT_SUPPORTED.into();
            self.fail(
                &task.answered(false),
                failure,
                task.unit.sense_format(),
                out,
            );
        }
        self.solicit(out);
        if self.sequence.holds_any() {
            self.begin_held(new, out);
        }
    }

    /// Takes one PDU. `units` are those it last [moved on](Session::move_on)
    /// to.
    pub(crate) fn receive<'u>(
        &mut self,
        units: &'u Units,
        bhs: &Bhs,
        data: Data<'_>,
        out: &mut Outbox<'u>,
    ) -> Next {
        let next = self.take(units, bhs, data, out);
        if self.sequence.holds_any() {
            self.begin_held(units, out);
        }
        // A peer must not make us gather more answers than we like.
        out.relieve();
        next
    }

    fn take<'u>(
        &mut self,
        units: &'u Units,
        bhs: &Bhs,
        data: Data<'_>,
        out: &mut Outbox<'u>,
    ) -> Next {
        let request = match Request::parse(bhs) {
            Ok(request) => request,
            Err(error) => return self.refuse_pdu(bhs, error, out),
        };
        let data = match data {
            Data::Intact(data) => data,
            Data::Damaged(data) => return self.damaged(&request, bhs, data, out),
        };
        match request {
            Request::ScsiCommand(pdu) => match self.number(pdu.immediate, pdu.cmd_sn) {
                Order::Now => self.command(units, &pdu, bhs, data, out),
                Order::Ignore => Next::Continue,
                Order::Hole => HOLE,
            },
            Request::DataOut(pdu) => self.data_out(&pdu, data, None, out),
            Request::NopOut(pdu) => self.nop_out(&pdu, data, out),
            Request::TaskManagement(pdu) => match self.number(pdu.immediate, pdu.cmd_sn) {
                Order::Now => self.task_management(units, &pdu, bhs, out),
                Order::Ignore => Next::Continue,
                Order::Hole => HOLE,
            },
            Request::Text(pdu) => match self.number(pdu.immediate, pdu.cmd_sn) {
                Order::Now => self.text(&pdu, bhs, data, out),
                Order::Ignore => Next::Continue,
                Order::Hole => HOLE,
            },
            Request::Logout(pdu) => match self.number(pdu.immediate, pdu.cmd_sn) {
                Order::Now => self.logout(&pdu, bhs, out),
                Order::Ignore => Next::Continue,
                Order::Hole => HOLE,
            },
            Request::Snack { .. } => {
                self.reject(reason::SNACK, bhs, out);
                Next::Continue
            }
            Request::Login(_) => Next::Broken("login in the full feature phase"),
        }
    }

    /// Takes a PDU whose data segment is not what was sent (RFC 7143 section
    /// 7.8). Whatever it was, it has not come; but data of a task counts, and
    /// the task fails once all has come that it was asked for.
    fn damaged(&mut self, request: &Request, bhs: &Bhs, data: &[u8], out: &mut Outbox<'_>) -> Next {
        self.reject(reason::DATA_DIGEST, bhs, out);
        let Request::DataOut(pdu) = request else {
            return Next::Continue;
        };
        let damage = Some(Sense::PROTOCOL_SERVICE_CRC_ERROR.into());
        self.data_out(pdu, data, damage, out)
    }

    /// Work for workers that has come up since the last call.
    pub(crate) fn jobs(&mut self) -> Vec<Job> {
        std::mem::take(&mut self.jobs)
    }

    /// How many jobs have not come back.
    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }

    /// Whether a command has begun and not ended.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy() > 0
    }

    /// Takes back a job.
    pub(crate) fn finish<'u>(&mut self, units: &'u Units, done: Done, out: &mut Outbox<'u>) {
        let Some(running) = self.running.remove(&done.id) else {
            return;
        };
        let is_void = running.unit.is_void(&running.nexus, &running.work);
        if !running.aborted && !is_void {
            let answered = &running.answered;
            let format = running.unit.sense_format();
            match done.result {
                Ok(data) => self.answer(answered, &running.work, &data, out),
                Err(refusal) => self.fail(answered, refusal.into(), format, out),
            }
        }
        let mut resolved = Vec::new();
        self.resolving.retain_mut(|waiting| {
            waiting.jobs.retain(|job| *job != done.id);
            if waiting.jobs.is_empty() {
                resolved.push((waiting.itt, waiting.response));
            }
            !waiting.jobs.is_empty()
        });
        for (itt, response) in resolved {
            self.respond_task_management(itt, response, [0; 3], out);
        }
        if self.sequence.holds_any() {
            self.begin_held(units, out);
        }
        out.relieve();
    }

    /// Calls off everything: the session is over.
    pub(crate) fn call_off(&mut self) {
        for running in self.running.values() {
            running.called_off.store(true, Ordering::Relaxed);
        }
        self.leave();
    }

    /// I_T nexus loss: what the session held is free, though a command of it
    /// may still be on a worker.
    fn leave(&mut self) {
        for nexus in self.nexuses.drain(..).flatten() {
            nexus.leave();
        }
    }

    /// Publishes what was counted.
    pub(crate) fn publish(&self) {
        self.stats.commands.store(self.commands, Ordering::Relaxed);
        self.stats
            .bytes_read
            .store(self.bytes_read, Ordering::Relaxed);
        let written = self.bytes_written;
        self.stats.bytes_written.store(written, Ordering::Relaxed);
    }

    /// Reject PDUs sent.
    pub(crate) fn rejects(&self) -> u64 {
        self.rejects
    }

    /// Answers bytes that are no request.
    fn refuse_pdu(&mut self, bhs: &Bhs, error: PduError, out: &mut Outbox<'_>) -> Next {
        match error {
            PduError::Opcode => {
                // Its number counts, or the next command would leave a hole.
                let cmd_sn = u32::from_be_bytes([bhs[24], bhs[25], bhs[26], bhs[27]]);
                let immediate = bhs[0] & 0x40 != 0;
                if !immediate && cmd_sn == self.exp_cmd_sn {
                    self.exp_cmd_sn = cmd_sn.wrapping_add(1);
                }
                self.reject(reason::COMMAND_NOT_SUPPORTED, bhs, out);
                Next::Continue
            }
            PduError::Field => Next::Broken("flags that exclude each other"),
        }
    }

    fn reject(&mut self, reason: u8, bhs: &Bhs, out: &mut Outbox<'_>) {
        self.rejects += 1;
        let reject = Reject {
            reason,
            numbers: self.status_numbers(),
        };
        out.pdu(&reject.emit(bhs.len()), bhs);
    }
}

/// The difference between what was expected and what there was (RFC 7143
/// section 11.4.5).
fn residual(expected: u32, actual: u32) -> Residual {
    if actual < expected {
        Residual::Underflow(expected - actual)
    } else if actual > expected {
        Residual::Overflow(actual - expected)
    } else {
        Residual::None
    }
}

#[cfg(test)]
mod tests;
