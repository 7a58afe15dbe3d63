//! The full feature phase of one session (RFC 7143 sections 4.2, 7 and 11):
//! command numbering, tasks, data transfer, task management.
//!
//! Owns no socket, no thread and no clock: requests come in through
//! [`Session::receive`], slow work goes out through [`Session::jobs`] and
//! comes back through [`Session::finish`], PDUs go out through an
//! [`Outbox`]. One connection a session, error recovery level 0.
//!
//! Invariant: after the response to a task management function, no response
//! of a task it ended is sent.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use scsi::disk::Segment;
use scsi::{Command, LogicalUnit, Lun, Nexus, Pace, Sense, SenseFormat, Work};

use crate::keys::{self, Parameters};
use crate::outbox::Outbox;
use crate::server::Stats;
use crate::task::{Burst, Done, Job, Refusal, Running, Task};
use crate::wire::{
    Bhs, DataIn, DataOut, LogoutRequest, LogoutResponse, NO_TAG, NopIn, NopOut, Numbers, PduError,
    R2t, Reject, Request, Residual, ScsiCommand, ScsiResponse, TaskManagement,
    TaskManagementResponse, TextRequest, TextResponse, is_before,
};
use crate::{Login, Target, Targets, discovery};

/// Data-out asked for and not yet come, over all tasks of a session.
const MAX_SOLICITED_BYTES: u32 = 8 << 20;
/// Immediate commands beyond the window.
const MAX_IMMEDIATE_TASKS: usize = 8;
/// Text one Text Request may bring, over all its PDUs.
const MAX_TEXT_BYTES: usize = 64 << 10;

/// SCSI status codes (SAM-5 section 5.3.1).
const GOOD: u8 = 0x00;
const CHECK_CONDITION: u8 = 0x02;

/// Reject reasons (RFC 7143 section 11.17.1).
mod reason {
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

/// One session.
pub(crate) struct Session<'t> {
    login: &'t Login,
    parameters: Parameters,
    target: Option<&'t Target>,
    targets: &'t dyn Targets,
    /// One for every unit of the target.
    nexuses: Vec<Nexus>,
    stats: &'t Stats,
    window: u32,
    stat_sn: u32,
    exp_cmd_sn: u32,
    max_cmd_sn: u32,
    /// Commands that wait for data, by initiator task tag.
    tasks: HashMap<u32, Task<'t>>,
    /// Tasks that want an R2T and must wait for others' data.
    unasked: VecDeque<u32>,
    solicited_bytes: u32,
    next_ttt: u32,
    /// Commands on workers, by job.
    running: HashMap<u64, Running>,
    next_job: u64,
    jobs: Vec<Job>,
    /// Task management that waits for workers to let go.
    resolving: Vec<Resolving>,
    text: Option<TextExchange>,
    segments: Vec<Segment<'t>>,
    commands: u64,
    bytes_read: u64,
    bytes_written: u64,
    rejects: u64,
}

/// A task management function whose tasks are still running.
struct Resolving {
    itt: u32,
    jobs: Vec<u64>,
}

/// Text that takes more than one PDU, either way.
#[derive(Default)]
struct TextExchange {
    ttt: u32,
    request: Vec<u8>,
    response: VecDeque<u8>,
}

/// What a session starts from.
pub(crate) struct Start<'t> {
    pub(crate) login: &'t Login,
    pub(crate) parameters: Parameters,
    /// `None` in a discovery session.
    pub(crate) target: Option<&'t Target>,
    pub(crate) targets: &'t dyn Targets,
    pub(crate) stats: &'t Stats,
    pub(crate) window: u32,
    pub(crate) stat_sn: u32,
    pub(crate) exp_cmd_sn: u32,
}

impl<'t> Session<'t> {
    pub(crate) fn new(start: Start<'t>) -> Session<'t> {
        let units = start.target.map_or(&[][..], |target| &target.units);
        Session {
            nexuses: units.iter().map(|unit| unit.connect()).collect(),
            max_cmd_sn: start.exp_cmd_sn.wrapping_add(start.window).wrapping_sub(1),
            login: start.login,
            parameters: start.parameters,
            target: start.target,
            targets: start.targets,
            stats: start.stats,
            window: start.window,
            stat_sn: start.stat_sn,
            exp_cmd_sn: start.exp_cmd_sn,
            tasks: HashMap::new(),
            unasked: VecDeque::new(),
            solicited_bytes: 0,
            next_ttt: 1,
            running: HashMap::new(),
            next_job: 0,
            jobs: Vec::new(),
            resolving: Vec::new(),
            text: None,
            segments: Vec::new(),
            commands: 0,
            bytes_read: 0,
            bytes_written: 0,
            rejects: 0,
        }
    }

    /// Takes one PDU.
    pub(crate) fn receive(&mut self, bhs: &Bhs, data: &[u8], out: &mut Outbox<'t>) -> Next {
        let request = match Request::parse(bhs) {
            Ok(request) => request,
            Err(error) => return self.refuse_pdu(bhs, error, out),
        };
        match request {
            Request::ScsiCommand(pdu) => match self.number(pdu.immediate, pdu.cmd_sn) {
                Order::Now => self.command(&pdu, bhs, data, out),
                Order::Ignore => Next::Continue,
                Order::Hole => HOLE,
            },
            Request::DataOut(pdu) => self.data_out(&pdu, data, out),
            Request::NopOut(pdu) => self.nop_out(&pdu, data, out),
            Request::TaskManagement(pdu) => match self.number(pdu.immediate, pdu.cmd_sn) {
                Order::Now => self.task_management(&pdu, bhs, out),
                Order::Ignore => Next::Continue,
                Order::Hole => HOLE,
            },
            Request::Text(pdu) => match self.number(pdu.immediate, pdu.cmd_sn) {
                Order::Now => self.text(&pdu, bhs, data, out),
                Order::Ignore => Next::Continue,
                Order::Hole => HOLE,
            },
            Request::Logout(pdu) => match self.number(pdu.immediate, pdu.cmd_sn) {
                Order::Now => self.logout(&pdu, out),
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
        !self.running.is_empty() || !self.tasks.is_empty()
    }

    /// Takes back a job.
    pub(crate) fn finish(&mut self, done: Done, out: &mut Outbox<'t>) {
        let Some(running) = self.running.remove(&done.id) else {
            return;
        };
        let unit = self.unit(running.lun).map(|(unit, _)| unit);
        let reset = unit.is_some_and(|unit| unit.resets() != running.resets);
        if !running.aborted && !reset {
            let answered = Answered {
                itt: running.itt,
                expected_bytes: running.expected_bytes,
                reads: running.reads,
                data_sn: running.r2t_sn,
            };
            let format = sense_format(unit.map(Arc::as_ref));
            match done.result {
                Ok(data) => self.answer(&answered, &running.work, &data, out),
                Err(sense) => self.fail(&answered, sense.into(), format, out),
            }
        }
        let mut resolved = Vec::new();
        self.resolving.retain_mut(|waiting| {
            waiting.jobs.retain(|job| *job != done.id);
            if waiting.jobs.is_empty() {
                resolved.push(waiting.itt);
            }
            !waiting.jobs.is_empty()
        });
        for itt in resolved {
            self.respond_task_management(itt, 0, out);
        }
    }

    /// Calls off everything: the session is over.
    pub(crate) fn call_off(&mut self) {
        for running in self.running.values() {
            running.called_off.store(true, Ordering::Relaxed);
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

    // Numbering.

    /// Places a request in the order of commands.
    fn number(&mut self, immediate: bool, cmd_sn: u32) -> Order {
        if immediate {
            return Order::Now;
        }
        if is_before(self.max_cmd_sn, cmd_sn) || is_before(cmd_sn, self.exp_cmd_sn) {
            return Order::Ignore;
        }
        if cmd_sn != self.exp_cmd_sn {
            return Order::Hole;
        }
        self.exp_cmd_sn = cmd_sn.wrapping_add(1);
        Order::Now
    }

    /// The numbers of a PDU that does not consume a StatSN.
    fn numbers(&mut self) -> Numbers {
        let busy = u32::try_from(self.tasks.len() + self.running.len()).unwrap_or(u32::MAX);
        let free = self.window.saturating_sub(busy);
        let max_cmd_sn = self.exp_cmd_sn.wrapping_add(free).wrapping_sub(1);
        if is_before(self.max_cmd_sn, max_cmd_sn) {
            self.max_cmd_sn = max_cmd_sn; // it never shrinks
        }
        Numbers {
            stat_sn: self.stat_sn,
            exp_cmd_sn: self.exp_cmd_sn,
            max_cmd_sn: self.max_cmd_sn,
        }
    }

    /// The numbers of a PDU that carries status.
    fn status_numbers(&mut self) -> Numbers {
        let numbers = self.numbers();
        self.stat_sn = self.stat_sn.wrapping_add(1);
        numbers
    }

    // Commands.

    fn unit(&self, lun: [u8; 8]) -> Option<(&'t Arc<LogicalUnit>, Nexus)> {
        let index = usize::from(Lun::parse(lun)?.0);
        let unit = self.target?.units.get(index)?;
        Some((unit, self.nexuses.get(index)?.clone()))
    }

    fn command(&mut self, pdu: &ScsiCommand, bhs: &Bhs, data: &[u8], out: &mut Outbox<'t>) -> Next {
        if self.target.is_none() {
            self.reject(reason::PROTOCOL_ERROR, bhs, out);
            return Next::Continue;
        }
        let known = self.tasks.contains_key(&pdu.itt)
            || self
                .running
                .values()
                .any(|r| r.itt == pdu.itt && !r.aborted);
        if known {
            self.reject(reason::TASK_IN_PROGRESS, bhs, out);
            return Next::Continue;
        }
        let limit = usize::try_from(self.window).unwrap_or(usize::MAX);
        let busy = self.tasks.len() + self.running.len();
        if pdu.immediate && busy >= limit.saturating_add(MAX_IMMEDIATE_TASKS) {
            self.reject(reason::IMMEDIATE_REJECTED, bhs, out);
            return Next::Continue;
        }
        if let Err(broken) = self.check_unsolicited(pdu, data) {
            return Next::Broken(broken);
        }
        let answered = Answered {
            itt: pdu.itt,
            expected_bytes: pdu.expected_bytes,
            reads: pdu.reads,
            data_sn: 0,
        };
        // REPORT LUNS is about the target, and answered at every number.
        if pdu.cdb[0] == 0xa0 {
            let result = self.report_luns(pdu);
            self.answer_or_fail(&answered, result, None, out);
            return Next::Continue;
        }
        let Some((unit, nexus)) = self.unit(pdu.lun) else {
            let result = scsi::answer_for_absent(&pdu.cdb);
            self.answer_or_fail(&answered, result, None, out);
            return Next::Continue;
        };
        let work = match unit.admit(&nexus, &pdu.cdb) {
            Ok(work) => work,
            Err(sense) => {
                // Data that still comes finds no task and is dropped.
                self.fail(&answered, sense.into(), unit.sense_format(), out);
                return Next::Continue;
            }
        };
        if work.read_bytes().is_some() {
            self.read(&answered, unit, work, out);
            return Next::Continue;
        }
        let mut task = Task::new(pdu.itt, pdu.lun, (unit, nexus), work, pdu.expected_bytes);
        let offered = if pdu.writes { pdu.expected_bytes } else { 0 };
        match unit.fit(&work, u64::from(offered)) {
            Some(takes) if !(pdu.reads && pdu.writes) => {
                task.wanted = u32::try_from(takes).unwrap_or(u32::MAX);
            }
            _ => {
                let refusal = Refusal {
                    sense: Sense::INVALID_FIELD_IN_COMMAND_IU,
                    wanted: Some(task.wanted),
                };
                self.fail(&answered, refusal, unit.sense_format(), out);
                return Next::Continue;
            }
        }
        self.bytes_written += u64::try_from(data.len()).unwrap_or(0);
        task.take(data);
        if pdu.writes && !pdu.is_final {
            task.unsolicited = Some(0);
        }
        self.advance(task, pdu.reads, out);
        Next::Continue
    }

    /// Whether the data that comes with a command, or is announced to follow,
    /// may come.
    fn check_unsolicited(&self, pdu: &ScsiCommand, data: &[u8]) -> Result<(), &'static str> {
        let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let limit = pdu.expected_bytes.min(self.parameters.first_burst_length);
        if bytes > 0 && (!pdu.writes || !self.parameters.immediate_data || bytes > limit) {
            return Err("immediate data that was not agreed on");
        }
        if pdu.writes && !pdu.is_final && self.parameters.initial_r2t {
            return Err("unsolicited data that was not agreed on");
        }
        Ok(())
    }

    fn report_luns(&self, pdu: &ScsiCommand) -> Result<Vec<u8>, Sense> {
        let Command::ReportLuns { select, allocation } = Command::parse(&pdu.cdb)? else {
            return Err(Sense::INVALID_OPCODE);
        };
        let count = self.target.map_or(0, |target| target.units.len());
        let luns = (0..count).filter_map(|n| u16::try_from(n).ok()).map(Lun);
        scsi::report_luns(select, allocation, luns)
    }

    /// Moves a task as far as it goes without further data.
    fn advance(&mut self, mut task: Task<'t>, reads: bool, out: &mut Outbox<'t>) {
        if !task.is_complete() {
            let itt = task.itt;
            let wants_r2t = task.unsolicited.is_none() && task.burst.is_none();
            if wants_r2t {
                task.settle();
            }
            self.tasks.insert(itt, task);
            if wants_r2t {
                self.unasked.push_back(itt);
                self.solicit(out);
            }
            return;
        }
        task.settle();
        if task.unit.resets() != task.resets {
            return; // ended by a reset that another session asked for
        }
        let answered = Answered {
            itt: task.itt,
            expected_bytes: task.expected_bytes,
            reads,
            data_sn: task.r2t_sn,
        };
        let format = task.unit.sense_format();
        if let Some(refusal) = task.failed {
            self.fail(&answered, refusal, format, out);
            return;
        }
        let called_off = Arc::new(AtomicBool::new(false));
        if task.work.pace() == Pace::Slow {
            let id = self.next_job;
            self.next_job += 1;
            self.running.insert(
                id,
                Running {
                    itt: task.itt,
                    lun: task.lun,
                    work: task.work,
                    expected_bytes: task.expected_bytes,
                    reads,
                    r2t_sn: task.r2t_sn,
                    called_off: called_off.clone(),
                    aborted: false,
                    resets: task.resets,
                },
            );
            self.jobs.push(task.job(id, called_off));
            return;
        }
        let data = task.gathered();
        let result = task
            .unit
            .finish(&task.nexus, &task.work, &data, &called_off);
        match result {
            Ok(data) => self.answer(&answered, &task.work, &data, out),
            Err(sense) => self.fail(&answered, sense.into(), format, out),
        }
    }

    /// Asks for data as long as not too much of it is on its way.
    fn solicit(&mut self, out: &mut Outbox<'t>) {
        while let Some(itt) = self.unasked.front().copied() {
            let waiting = self.tasks.get_mut(&itt);
            let waiting = waiting.filter(|task| task.unsolicited.is_none() && task.burst.is_none());
            let Some(task) = waiting else {
                self.unasked.pop_front(); // aborted meanwhile, its tag perhaps in use again
                continue;
            };
            let left = task.wanted.saturating_sub(task.received);
            let bytes = left.min(self.parameters.max_burst_length);
            if self.solicited_bytes > 0 && self.solicited_bytes + bytes > MAX_SOLICITED_BYTES {
                return;
            }
            self.unasked.pop_front();
            let ttt = self.next_ttt;
            self.next_ttt = match ttt.wrapping_add(1) {
                NO_TAG => 0,
                next => next,
            };
            task.burst = Some(Burst {
                ttt,
                end: task.received + bytes,
                bytes,
                next_data_sn: 0,
            });
            let r2t_sn = task.r2t_sn;
            task.r2t_sn += 1;
            let (lun, buffer_offset) = (task.lun, task.received);
            self.solicited_bytes += bytes;
            let numbers = self.numbers();
            let r2t = R2t {
                lun,
                itt,
                ttt,
                numbers,
                r2t_sn,
                buffer_offset,
                desired_bytes: bytes,
            };
            out.header(&r2t.emit());
        }
    }

    fn data_out(&mut self, pdu: &DataOut, data: &[u8], out: &mut Outbox<'t>) -> Next {
        // Data of a task that was answered or aborted is dropped.
        let Some(mut task) = self.tasks.remove(&pdu.itt) else {
            return Next::Continue;
        };
        let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
        self.bytes_written += u64::from(bytes);
        let end = pdu.buffer_offset.checked_add(bytes);
        let in_order = pdu.buffer_offset == task.received;
        let fits = if pdu.ttt == NO_TAG {
            let limit = task.expected_bytes.min(self.parameters.first_burst_length);
            task.unsolicited
                .is_some_and(|data_sn| data_sn == pdu.data_sn)
                && in_order
                && end.is_some_and(|end| end <= limit)
        } else {
            task.burst.as_ref().is_some_and(|burst| {
                burst.ttt == pdu.ttt
                    && burst.next_data_sn == pdu.data_sn
                    && end.is_some_and(|end| end <= burst.end && (end == burst.end) == pdu.is_final)
            }) && in_order
        };
        if !fits {
            self.release(&task);
            self.solicit(out);
            let sense = match task.burst.is_none() && task.unsolicited.is_none() {
                true => Sense::UNEXPECTED_UNSOLICITED_DATA,
                false => Sense::INCORRECT_AMOUNT_OF_DATA,
            };
            let answered = Answered {
                itt: task.itt,
                expected_bytes: task.expected_bytes,
                reads: false,
                data_sn: task.r2t_sn,
            };
            let format = task.unit.sense_format();
            self.fail(&answered, sense.into(), format, out);
            return Next::Continue;
        }
        task.take(data);
        if pdu.is_final {
            self.release(&task);
            task.unsolicited = None;
            task.burst = None;
            self.advance(task, false, out);
            self.solicit(out);
            return Next::Continue;
        }
        if let Some(data_sn) = &mut task.unsolicited {
            *data_sn += 1;
        }
        if let Some(burst) = &mut task.burst {
            burst.next_data_sn += 1;
        }
        self.tasks.insert(pdu.itt, task);
        Next::Continue
    }

    /// Takes back what a task was allowed to have on its way.
    fn release(&mut self, task: &Task<'t>) {
        if let Some(burst) = &task.burst {
            self.solicited_bytes = self.solicited_bytes.saturating_sub(burst.bytes);
        }
    }

    // Answers.

    fn answer_or_fail(
        &mut self,
        answered: &Answered,
        result: Result<Vec<u8>, Sense>,
        unit: Option<&LogicalUnit>,
        out: &mut Outbox<'t>,
    ) {
        match result {
            Ok(data) => {
                let actual = u32::try_from(data.len()).unwrap_or(u32::MAX);
                self.data_in(answered, actual, &data, out);
            }
            Err(sense) => self.fail(answered, sense.into(), sense_format(unit), out),
        }
    }

    /// GOOD, with the data of a command that is no READ.
    fn answer(&mut self, answered: &Answered, work: &Work, data: &[u8], out: &mut Outbox<'t>) {
        let moved = match work.data_out() {
            scsi::DataOut::None => u64::try_from(data.len()).unwrap_or(u64::MAX),
            scsi::DataOut::Streamed(bytes) | scsi::DataOut::Gathered(bytes) => bytes,
        };
        let actual = u32::try_from(moved).unwrap_or(u32::MAX);
        self.data_in(answered, actual, data, out);
    }

    /// GOOD; `actual` is what the command moved, or would have moved.
    fn data_in(&mut self, answered: &Answered, actual: u32, data: &[u8], out: &mut Outbox<'t>) {
        self.commands += 1;
        let residual = residual(answered.expected_bytes, actual);
        let room = match answered.reads {
            true => usize::try_from(answered.expected_bytes).unwrap_or(usize::MAX),
            false => 0,
        };
        let data = &data[..data.len().min(room)];
        if data.is_empty() {
            self.respond(answered, GOOD, residual, &[], out);
            return;
        }
        self.bytes_read += u64::try_from(data.len()).unwrap_or(0);
        let mut at = 0;
        for step in self.steps(data.len()) {
            let header = self.data_in_header(answered, &step, residual);
            out.pdu(&header, &data[at..at + step.bytes]);
            at += step.bytes;
        }
    }

    /// A READ: status and all.
    fn read(
        &mut self,
        answered: &Answered,
        unit: &'t LogicalUnit,
        work: Work,
        out: &mut Outbox<'t>,
    ) {
        let bytes = work.read_bytes().unwrap_or(0);
        let actual = u32::try_from(bytes).unwrap_or(u32::MAX);
        let residual = residual(answered.expected_bytes, actual);
        let total = match answered.reads {
            true => actual.min(answered.expected_bytes),
            false => 0,
        };
        if total == 0 {
            self.commands += 1;
            self.respond(answered, GOOD, residual, &[], out);
            return;
        }
        self.segments.clear();
        let mut segments = std::mem::take(&mut self.segments);
        let mapped = unit.segments(&work, 0, u64::from(total), &mut segments);
        let sent = match mapped {
            Ok(true) => {
                out.will_read(unit, work);
                self.send_mapped(answered, residual, total, &segments, out);
                Ok(())
            }
            Ok(false) => self.send_copied(answered, residual, total, (unit, &work), out),
            Err(sense) => Err((sense, 0)),
        };
        segments.clear();
        self.segments = segments;
        match sent {
            Ok(()) => {
                self.commands += 1;
                self.bytes_read += u64::from(total);
            }
            Err((sense, data_sn)) => {
                let answered = Answered {
                    data_sn,
                    ..*answered
                };
                self.fail(&answered, sense.into(), unit.sense_format(), out);
            }
        }
    }

    /// Sends a READ's data from where it lies mapped.
    fn send_mapped(
        &mut self,
        answered: &Answered,
        residual: Residual,
        total: u32,
        segments: &[Segment<'t>],
        out: &mut Outbox<'t>,
    ) {
        let mut segments = segments.iter().copied();
        let mut rest: Option<Segment<'t>> = None;
        for step in self.steps(usize::try_from(total).unwrap_or(usize::MAX)) {
            let header = self.data_in_header(answered, &step, residual);
            out.header(&header);
            let mut left = step.bytes;
            while left > 0 {
                let Some(segment) = rest.take().or_else(|| segments.next()) else {
                    break; // the disk owes the whole range; see below
                };
                let (now, later) = segment.split_at(left);
                left -= now.len();
                out.mapped(now);
                rest = Some(later).filter(|later| !later.is_empty());
            }
            // A disk that mapped less than it said: zeros keep the stream
            // whole, and this cannot happen to one that passed its contract.
            out.room(left).fill(0);
            out.pad(step.bytes);
            out.relieve();
        }
    }

    /// Sends a READ's data through a buffer. On failure, how many Data-In
    /// PDUs had gone.
    fn send_copied(
        &mut self,
        answered: &Answered,
        residual: Residual,
        total: u32,
        (unit, work): (&LogicalUnit, &Work),
        out: &mut Outbox<'t>,
    ) -> Result<(), (Sense, u32)> {
        for step in self.steps(usize::try_from(total).unwrap_or(usize::MAX)) {
            // The header is made once the data is there: it carries status.
            let header = [0; crate::wire::BHS_BYTES];
            let room = out.room(header.len() + step.bytes);
            let offset = u64::from(step.offset);
            let read = unit.read(work, offset, &mut room[header.len()..]);
            if let Err(sense) = read {
                out.take_back(header.len() + step.bytes);
                return Err((sense, step.data_sn));
            }
            let header = self.data_in_header(answered, &step, residual);
            room[..header.len()].copy_from_slice(&header);
            out.pad(step.bytes);
            out.relieve();
        }
        Ok(())
    }

    /// How `total` bytes of Data-In are cut into PDUs and sequences.
    fn steps(&self, total: usize) -> Steps {
        let size = |bytes: u32| usize::try_from(bytes).unwrap_or(usize::MAX);
        Steps {
            total,
            segment: size(self.parameters.max_send_data_segment_length),
            burst: size(self.parameters.max_burst_length),
            at: 0,
            in_burst: 0,
            data_sn: 0,
        }
    }

    fn data_in_header(&mut self, answered: &Answered, step: &Step, residual: Residual) -> Bhs {
        let numbers = if step.is_last {
            self.status_numbers()
        } else {
            let mut numbers = self.numbers();
            // Reserved without status; iPXE copies it all the same, and is
            // best served with the last one sent.
            numbers.stat_sn = numbers.stat_sn.wrapping_sub(1);
            numbers
        };
        let data_in = DataIn {
            is_final: step.ends_sequence,
            status: step.is_last.then_some(residual),
            itt: answered.itt,
            numbers,
            data_sn: step.data_sn,
            buffer_offset: step.offset,
        };
        data_in.emit(step.bytes)
    }

    /// CHECK CONDITION.
    fn fail(
        &mut self,
        answered: &Answered,
        refusal: Refusal,
        format: SenseFormat,
        out: &mut Outbox<'t>,
    ) {
        self.commands += 1;
        let sense = refusal.sense.emit(format);
        let [high, low] = u16::try_from(sense.len()).unwrap_or(0).to_be_bytes();
        let mut data = vec![high, low]; // SenseLength
        data.extend_from_slice(&sense);
        let residual = residual(answered.expected_bytes, refusal.wanted.unwrap_or(0));
        self.respond(answered, CHECK_CONDITION, residual, &data, out);
    }

    fn respond(
        &mut self,
        answered: &Answered,
        status: u8,
        residual: Residual,
        data: &[u8],
        out: &mut Outbox<'t>,
    ) {
        let response = ScsiResponse {
            status,
            itt: answered.itt,
            numbers: self.status_numbers(),
            exp_data_sn: answered.data_sn,
            residual,
        };
        out.pdu(&response.emit(data.len()), data);
        out.relieve();
    }

    // Everything that is no command.

    fn nop_out(&mut self, pdu: &NopOut, data: &[u8], out: &mut Outbox<'t>) -> Next {
        self.stats.answers_pings.store(true, Ordering::Relaxed);
        match self.number(pdu.immediate, pdu.cmd_sn) {
            Order::Now => {}
            Order::Ignore => return Next::Continue,
            Order::Hole => return HOLE,
        }
        if pdu.itt == NO_TAG {
            return Next::Continue; // wants no answer
        }
        let longest = usize::try_from(self.parameters.max_send_data_segment_length);
        let data = &data[..data.len().min(longest.unwrap_or(usize::MAX))];
        let nop_in = NopIn {
            lun: [0; 8],
            itt: pdu.itt,
            ttt: NO_TAG,
            numbers: self.status_numbers(),
        };
        out.pdu(&nop_in.emit(data.len()), data);
        Next::Continue
    }

    fn task_management(&mut self, pdu: &TaskManagement, bhs: &Bhs, out: &mut Outbox<'t>) -> Next {
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
    fn end_tasks(&mut self, which: impl Fn(u32, [u8; 8]) -> bool) -> (usize, Vec<u64>) {
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

    fn respond_task_management(&mut self, itt: u32, response: u8, out: &mut Outbox<'t>) {
        let response = TaskManagementResponse {
            response,
            itt,
            numbers: self.status_numbers(),
        };
        out.header(&response.emit());
    }

    fn logout(&mut self, pdu: &LogoutRequest, out: &mut Outbox<'t>) -> Next {
        let response = match pdu.reason {
            0 | 1 => 0, // there is one connection: it is the session
            2 => 2,     // recovery is not supported
            _ => 3,
        };
        let closes = response == 0;
        if closes {
            self.end_tasks(|_, _| true);
        }
        let response = LogoutResponse {
            response,
            itt: pdu.itt,
            numbers: self.status_numbers(),
        };
        out.header(&response.emit());
        if closes { Next::Close } else { Next::Continue }
    }

    fn text(&mut self, pdu: &TextRequest, bhs: &Bhs, data: &[u8], out: &mut Outbox<'t>) -> Next {
        let mut exchange = match (self.text.take(), pdu.ttt) {
            (_, NO_TAG) => TextExchange {
                ttt: pdu.itt & 0x7fff_ffff,
                ..TextExchange::default()
            },
            (Some(exchange), ttt) if exchange.ttt == ttt => exchange,
            _ => {
                self.reject(reason::INVALID_FIELD, bhs, out);
                return Next::Continue;
            }
        };
        exchange.request.extend_from_slice(data);
        if exchange.request.len() > MAX_TEXT_BYTES {
            return Next::Broken("more text than anyone needs");
        }
        if !pdu.continues && !exchange.request.is_empty() {
            let request = std::mem::take(&mut exchange.request);
            let Ok(pairs) = keys::parse(&request) else {
                self.reject(reason::PROTOCOL_ERROR, bhs, out);
                return Next::Continue;
            };
            let known = discovery::Known {
                own: self.target.map(|target| target.name.as_str()),
                all: &|| self.targets.discover(self.login),
                portal: self.login.portal,
            };
            exchange.response = discovery::answer(&pairs, &known).into();
        }
        let longest = usize::try_from(self.parameters.max_send_data_segment_length);
        let now = exchange.response.len().min(longest.unwrap_or(usize::MAX));
        let text: Vec<u8> = exchange.response.drain(..now).collect();
        let continues = !exchange.response.is_empty();
        let is_final = !continues && !pdu.continues && pdu.is_final;
        let response = TextResponse {
            is_final,
            continues,
            lun: pdu.lun,
            itt: pdu.itt,
            ttt: if is_final { NO_TAG } else { exchange.ttt },
            numbers: self.status_numbers(),
        };
        out.pdu(&response.emit(text.len()), &text);
        if !is_final {
            self.text = Some(exchange);
        }
        Next::Continue
    }

    /// Answers bytes that are no request.
    fn refuse_pdu(&mut self, bhs: &Bhs, error: PduError, out: &mut Outbox<'t>) -> Next {
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

    fn reject(&mut self, reason: u8, bhs: &Bhs, out: &mut Outbox<'t>) {
        self.rejects += 1;
        let reject = Reject {
            reason,
            numbers: self.status_numbers(),
        };
        out.pdu(&reject.emit(bhs.len()), bhs);
    }
}

/// A hole in the command numbers: on one connection without recovery nothing
/// can fill it.
const HOLE: Next = Next::Broken("a command number was left out");

/// Where a request stands in the order of commands.
enum Order {
    Now,
    Ignore,
    Hole,
}

/// What a response says of its command.
#[derive(Clone, Copy)]
struct Answered {
    itt: u32,
    expected_bytes: u32,
    /// R: the initiator takes data.
    reads: bool,
    /// Data-In and R2T PDUs sent so far.
    data_sn: u32,
}

/// Cuts Data-In into PDUs.
struct Steps {
    total: usize,
    segment: usize,
    burst: usize,
    at: usize,
    in_burst: usize,
    data_sn: u32,
}

/// One Data-In PDU.
struct Step {
    offset: u32,
    bytes: usize,
    data_sn: u32,
    ends_sequence: bool,
    is_last: bool,
}

impl Iterator for Steps {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.at >= self.total {
            return None;
        }
        let left = self.total - self.at;
        let bytes = left.min(self.segment).min(self.burst - self.in_burst);
        let is_last = bytes == left;
        self.in_burst += bytes;
        let ends_sequence = is_last || self.in_burst == self.burst;
        if ends_sequence {
            self.in_burst = 0;
        }
        let step = Step {
            offset: u32::try_from(self.at).unwrap_or(u32::MAX),
            bytes,
            data_sn: self.data_sn,
            ends_sequence,
            is_last,
        };
        self.at += bytes;
        self.data_sn += 1;
        Some(step)
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

fn sense_format(unit: Option<&LogicalUnit>) -> SenseFormat {
    unit.map_or(SenseFormat::Fixed, LogicalUnit::sense_format)
}

#[cfg(test)]
mod tests;
