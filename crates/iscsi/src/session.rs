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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use scsi::{Command, LogicalUnit, Lun, Nexus, NexusName, Pace, Sense, SenseFormat, Work};

use crate::keys::Parameters;
use crate::outbox::Outbox;
use crate::server::Stats;
use crate::target::Units;
use crate::task::{Answered, Done, Failure, Job, Running, Task};
use crate::wire::{
    AsyncMessage, Bhs, LogoutRequest, LogoutResponse, NO_TAG, NopIn, NopOut, Numbers, PduError,
    Reject, Request, Residual, ScsiCommand, ScsiResponse, is_before,
};
use crate::{Login, Target, Targets};

mod attributes;
mod data_in;
mod data_out;
mod management;
mod text;

use attributes::Sequence;
use management::Resolving;
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
    pub(crate) fn move_on(&mut self, old: &Units, new: &Units, out: &mut Outbox<'_>) {
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
        if !self.given_up.is_empty() {
            self.skip_given_up();
        }
        Order::Now
    }

    /// Counts commands that will not come as come.
    fn skip_given_up(&mut self) {
        let given_up = &mut self.given_up;
        while let Some(place) = given_up.iter().position(|sn| *sn == self.exp_cmd_sn) {
            given_up.swap_remove(place);
            self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
        }
        given_up.retain(|sn| !is_before(*sn, self.exp_cmd_sn));
    }

    /// Commands that have come and not ended.
    fn busy(&self) -> usize {
        self.tasks.len() + self.running.len() + self.sequence.len()
    }

    /// The numbers of a PDU that does not consume a StatSN.
    fn numbers(&mut self) -> Numbers {
        let busy = u32::try_from(self.busy()).unwrap_or(u32::MAX);
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

    /// The unit behind a number, and this session's view of it.
    fn unit<'u>(
        &mut self,
        units: &'u Units,
        lun: [u8; 8],
    ) -> Option<(&'u Arc<LogicalUnit>, &Nexus)> {
        let (place, unit) = units.find(Lun::parse(lun)?.0)?;
        let nexus = self.nexuses.get_mut(place)?;
        let connect = || connect(unit, &self.name, self.target);
        Some((unit, nexus.get_or_insert_with(connect)))
    }

    fn command<'u>(
        &mut self,
        units: &'u Units,
        pdu: &ScsiCommand,
        bhs: &Bhs,
        data: &[u8],
        out: &mut Outbox<'u>,
    ) -> Next {
        if self.target.is_none() {
            self.reject(reason::PROTOCOL_ERROR, bhs, out);
            return Next::Continue;
        }
        if self.has_task(pdu.itt) {
            self.reject(reason::TASK_IN_PROGRESS, bhs, out);
            return Next::Continue;
        }
        let limit = usize::try_from(self.window).unwrap_or(usize::MAX);
        if pdu.immediate && self.busy() >= limit.saturating_add(MAX_IMMEDIATE_TASKS) {
            self.reject(reason::IMMEDIATE_REJECTED, bhs, out);
            return Next::Continue;
        }
        if let Err(broken) = self.check_unsolicited(pdu, data) {
            return Next::Broken(broken);
        }
        let is_simple = pdu.attribute <= attributes::SIMPLE && !self.sequence.matters();
        if is_simple || !self.hold(units, pdu, data, out) {
            let unsolicited = (pdu.writes && !pdu.is_final).then_some(0);
            self.begin(units, pdu, data, unsolicited, out);
        }
        Next::Continue
    }

    /// Begins a command whose turn has come, with the data that there is; of
    /// unsolicited data that follows, `unsolicited` is the next DataSN.
    fn begin<'u>(
        &mut self,
        units: &'u Units,
        pdu: &ScsiCommand,
        data: &[u8],
        unsolicited: Option<u32>,
        out: &mut Outbox<'u>,
    ) {
        let answered = Answered {
            itt: pdu.itt,
            expected_bytes: pdu.expected_bytes,
            reads: pdu.reads,
            data_sn: 0,
        };
        // REPORT LUNS is about the target, and answered at every number.
        if pdu.cdb[0] == 0xa0 {
            let result = self.report_luns(units, pdu);
            self.answer_or_fail(&answered, result, None, out);
            return;
        }
        let Some((unit, nexus)) = self.unit(units, pdu.lun) else {
            let result = scsi::answer_for_absent(Lun::parse(pdu.lun), &pdu.cdb);
            self.answer_or_fail(&answered, result, None, out);
            return;
        };
        let work = match unit.admit(nexus, &pdu.cdb) {
            Ok(work) => work,
            Err(refusal) => {
                // Data that still comes finds no task and is dropped.
                self.fail(&answered, refusal.into(), unit.sense_format(), out);
                return;
            }
        };
        if work.read_bytes().is_some() {
            self.read(&answered, unit, work, out);
            return;
        }
        let behind = (unit.clone(), nexus.clone());
        let mut task = Task::new(pdu.itt, pdu.lun, behind, work, pdu.expected_bytes);
        let offered = if pdu.writes { pdu.expected_bytes } else { 0 };
        let fits = match pdu.reads && pdu.writes {
            true => Err(Sense::INVALID_FIELD_IN_COMMAND_IU), // no command does both
            false => unit.fit(&work, u64::from(offered)),
        };
        match fits {
            Ok(takes) => task.wanted = u32::try_from(takes).unwrap_or(u32::MAX),
            Err(sense) => {
                let failure = Failure {
                    refusal: sense.into(),
                    wanted: Some(task.wanted),
                };
                self.fail(&answered, failure, unit.sense_format(), out);
                return;
            }
        }
        self.bytes_written += u64::try_from(data.len()).unwrap_or(0);
        task.take(data, self.staging_room());
        task.unsolicited = unsolicited;
        self.advance(task, pdu.reads, out);
    }

    fn report_luns(&self, units: &Units, pdu: &ScsiCommand) -> Result<Vec<u8>, Sense> {
        let Command::ReportLuns { select, allocation } = Command::parse(&pdu.cdb)? else {
            return Err(Sense::INVALID_OPCODE);
        };
        let data = scsi::report_luns(select, allocation, units.luns())?;
        // Nobody has to be told any more (SPC-4 section 6.33).
        for nexus in self.nexuses.iter().flatten() {
            nexus.withdraw(Sense::REPORTED_LUNS_DATA_HAS_CHANGED);
        }
        Ok(data)
    }

    /// Moves a task as far as it goes without further data.
    fn advance(&mut self, mut task: Task, reads: bool, out: &mut Outbox<'_>) {
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
        if task.is_void() {
            return;
        }
        let answered = task.answered(reads);
        let format = task.unit.sense_format();
        if let Some(failure) = task.failed {
            self.fail(&answered, failure, format, out);
            return;
        }
        let called_off = Arc::new(AtomicBool::new(false));
        if task.work.pace() == Pace::Slow {
            let id = self.next_job;
            self.next_job += 1;
            self.running.insert(
                id,
                Running {
                    answered,
                    unit: task.unit.clone(),
                    nexus: task.nexus.clone(),
                    work: task.work,
                    called_off: called_off.clone(),
                    aborted: false,
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

    // Answers.

    fn answer_or_fail(
        &mut self,
        answered: &Answered,
        result: Result<Vec<u8>, Sense>,
        unit: Option<&LogicalUnit>,
        out: &mut Outbox<'_>,
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
    fn answer(&mut self, answered: &Answered, work: &Work, data: &[u8], out: &mut Outbox<'_>) {
        let moved = match work.data_out() {
            scsi::DataOut::None => u64::try_from(data.len()).unwrap_or(u64::MAX),
            scsi::DataOut::Streamed(bytes) | scsi::DataOut::Gathered(bytes) => bytes,
        };
        let actual = u32::try_from(moved).unwrap_or(u32::MAX);
        self.data_in(answered, actual, data, out);
    }

    /// A status other than GOOD.
    fn fail(
        &mut self,
        answered: &Answered,
        failure: Failure,
        format: SenseFormat,
        out: &mut Outbox<'_>,
    ) {
        self.commands += 1;
        let refusal = failure.refusal;
        let mut data = Vec::new();
        if let Some(sense) = refusal.sense() {
            let sense = sense.emit(format);
            let length = u16::try_from(sense.len()).unwrap_or(0);
            data.extend_from_slice(&length.to_be_bytes()); // SenseLength
            data.extend_from_slice(&sense);
        }
        let residual = residual(answered.expected_bytes, failure.wanted.unwrap_or(0));
        self.respond(answered, refusal.status(), residual, &data, out);
    }

    fn respond(
        &mut self,
        answered: &Answered,
        status: u8,
        residual: Residual,
        data: &[u8],
        out: &mut Outbox<'_>,
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

    fn nop_out(&mut self, pdu: &NopOut, data: &[u8], out: &mut Outbox<'_>) -> Next {
        self.stats.answers_pings.store(true, Ordering::Relaxed);
        self.has_answered_ping |= pdu.ttt != NO_TAG;
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

    /// Asks an initiator that says nothing whether it is there.
    pub(crate) fn ping(&mut self, out: &mut Outbox<'_>) {
        let nop_in = NopIn {
            lun: [0; 8],
            itt: NO_TAG,
            ttt: self.next_ttt(),
            numbers: self.numbers(),
        };
        out.header(&nop_in.emit(0));
    }

    /// Whether it has ever answered that.
    pub(crate) fn has_answered_ping(&self) -> bool {
        self.has_answered_ping
    }

    /// Asks the initiator, once, to log out within so many seconds (RFC 7143
    /// section 11.9.1); but not one that knows no pings, as iPXE.
    pub(crate) fn request_logout(&mut self, seconds: u16, out: &mut Outbox<'_>) {
        if self.is_asked_to_leave || !self.stats.answers_pings.load(Ordering::Relaxed) {
            return;
        }
        self.is_asked_to_leave = true;
        let message = AsyncMessage {
            event: async_event::REQUEST_LOGOUT,
            parameters: [0, 0, seconds],
            numbers: self.status_numbers(),
        };
        out.header(&message.emit());
    }

    fn logout(&mut self, pdu: &LogoutRequest, bhs: &Bhs, out: &mut Outbox<'_>) -> Next {
        let response = match pdu.reason {
            0 => 0,
            1 if pdu.cid == self.cid => 0, // the one connection is the session
            1 => 1,                        // there is no such connection
            2 => 2,                        // recovery is not supported
            _ => {
                self.reject(reason::INVALID_FIELD, bhs, out);
                return Next::Continue;
            }
        };
        let closes = response == 0;
        if closes {
            self.end_tasks(|_, _| true);
            // Who hears the response may count on it: no reservation is left.
            self.leave();
        }
        let response = LogoutResponse {
            response,
            itt: pdu.itt,
            numbers: self.status_numbers(),
        };
        out.header(&response.emit());
        if closes { Next::Close } else { Next::Continue }
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

/// A hole in the command numbers: on one connection without recovery nothing
/// can fill it.
const HOLE: Next = Next::Broken("a command number was left out");

/// Where a request stands in the order of commands.
enum Order {
    Now,
    Ignore,
    Hole,
}

/// A session's view of a unit, from now on.
fn connect(unit: &LogicalUnit, name: &NexusName, target: Option<&Arc<Target>>) -> Nexus {
    let nexus = unit.connect(name);
    if let Some(target) = target {
        let peers: Weak<Target> = Arc::downgrade(target);
        nexus.join(peers); // where EXTENDED COPY finds the others
    }
    nexus
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
