//! SCSI commands (RFC 7143 sections 11.3 and 11.4): from the request to the
//! response, through the unit, and through a worker where it takes its time.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};

use scsi::{Command, LogicalUnit, Lun, Nexus, NexusName, Pace, Sense, SenseFormat, Work};

use super::{MAX_IMMEDIATE_TASKS, Next, Session, attributes, reason, residual};
use crate::Target;
use crate::outbox::Outbox;
use crate::target::Units;
use crate::task::{Answered, Failure, Running, Task};
use crate::wire::{Bhs, Residual, ScsiCommand, ScsiResponse};

impl Session<'_> {
    /// The unit behind a number, and this session's view of it.
    pub(super) fn unit<'u>(
        &mut self,
        units: &'u Units,
        lun: [u8; 8],
    ) -> Option<(&'u Arc<LogicalUnit>, &Nexus)> {
        let (place, unit) = units.find(Lun::parse(lun)?.0)?;
        let nexus = self.nexuses.get_mut(place)?;
        let connect = || connect(unit, &self.name, self.target);
        Some((unit, nexus.get_or_insert_with(connect)))
    }

    pub(super) fn command<'u>(
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
    pub(super) fn begin<'u>(
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
        if !self.may_gather(&work) {
            self.refuse_for_now(&answered, out);
            return;
        }
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
    pub(super) fn advance(&mut self, mut task: Task, reads: bool, out: &mut Outbox<'_>) {
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
    pub(super) fn answer(
        &mut self,
        answered: &Answered,
        work: &Work,
        data: &[u8],
        out: &mut Outbox<'_>,
    ) {
        let moved = match work.data_out() {
            scsi::DataOut::None => u64::try_from(data.len()).unwrap_or(u64::MAX),
            scsi::DataOut::Streamed(bytes) | scsi::DataOut::Gathered(bytes) => bytes,
        };
        let actual = u32::try_from(moved).unwrap_or(u32::MAX);
        self.data_in(answered, actual, data, out);
    }

    /// A status other than GOOD.
    pub(super) fn fail(
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

    pub(super) fn respond(
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
}

/// A session's view of a unit, from now on.
pub(super) fn connect(unit: &LogicalUnit, name: &NexusName, target: Option<&Arc<Target>>) -> Nexus {
    let nexus = unit.connect(name);
    if let Some(target) = target {
        let peers: Weak<Target> = Arc::downgrade(target);
        nexus.join(peers); // where EXTENDED COPY finds the others
    }
    nexus
}

fn sense_format(unit: Option<&LogicalUnit>) -> SenseFormat {
    unit.map_or(SenseFormat::Fixed, LogicalUnit::sense_format)
}
