//! Data-Out (RFC 7143 sections 11.7 and 11.8): what comes unasked, and what is
//! asked for with R2Ts, as much at a time as the session may have on its way.

use scsi::{Sense, Work};

use super::{Next, Session};
use crate::outbox::Outbox;
use crate::task::{Burst, Failure, Task};
use crate::wire::{DataOut, NO_TAG, R2t, ScsiCommand};

/// Data-out asked for and not yet come, over all tasks of a session.
pub(super) const MAX_SOLICITED_BYTES: u32 = 8 << 20;
/// Small pieces of data-out held back to be put together, over all tasks of a
/// session; past it they go to the disk one by one.
pub(super) const MAX_STAGED_BYTES: usize = 1 << 20;
/// Data-out of commands that are taken as a whole, over all of a session, from
/// their begin to their end; one more is refused (TASK SET FULL).
pub(super) const MAX_GATHERED_BYTES: u64 = 4 << 20;

impl Session<'_> {
    /// Whether the data that comes with a command, or is announced to follow,
    /// may come.
    pub(super) fn check_unsolicited(
        &self,
        pdu: &ScsiCommand,
        data: &[u8],
    ) -> Result<(), &'static str> {
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

    /// Asks for data as long as not too much of it is on its way.
    pub(super) fn solicit(&mut self, out: &mut Outbox<'_>) {
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
            let ttt = next_ttt(&mut self.next_ttt);
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

    /// A Target Transfer Tag that is not in use.
    pub(super) fn next_ttt(&mut self) -> u32 {
        next_ttt(&mut self.next_ttt)
    }

    /// Takes one Data-Out PDU; its data may have come to damage.
    pub(super) fn data_out(
        &mut self,
        pdu: &DataOut,
        data: &[u8],
        damage: Option<Failure>,
        out: &mut Outbox<'_>,
    ) -> Next {
        // Data of a task that was answered or aborted is dropped.
        let Some(mut task) = self.tasks.remove(&pdu.itt) else {
            if self.sequence.holds_any() {
                self.data_for_held(pdu, data, damage, out);
            }
            return Next::Continue;
        };
        task.failed = task.failed.or(damage);
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
            let answered = task.answered(false);
            let format = task.unit.sense_format();
            self.fail(&answered, sense.into(), format, out);
            return Next::Continue;
        }
        task.take(
            data,
            self.staging_room().saturating_sub(task.staged_bytes()),
        );
        if pdu.is_final {
            self.release(&task);
            task.unsolicited = None;
            task.burst = None;
            self.advance(task, false, out);
            self.solicit(out);
            return Next::Continue;
        }
        if let Some(data_sn) = &mut task.unsolicited {
            *data_sn = data_sn.wrapping_add(1);
        }
        if let Some(burst) = &mut task.burst {
            burst.next_data_sn = burst.next_data_sn.wrapping_add(1);
        }
        self.tasks.insert(pdu.itt, task);
        Next::Continue
    }

    /// Whether the data of a command may be kept until all of it is there and
    /// used; that of one alone always may.
    pub(super) fn may_gather(&self, work: &Work) -> bool {
        let gathered = |work: &Work| match work.data_out() {
            scsi::DataOut::Gathered(bytes) => bytes,
            _ => 0,
        };
        let more = gathered(work);
        if more == 0 {
            return true;
        }
        let coming: u64 = self.tasks.values().map(|t| gathered(&t.work)).sum();
        let there: u64 = self.running.values().map(|r| gathered(&r.work)).sum();
        coming + there == 0 || coming + there + more <= MAX_GATHERED_BYTES
    }

    /// How much more data-out may be held back. Gathered commands are not
    /// asked again.
    pub(super) fn staging_room(&self) -> usize {
        let staged: usize = self.tasks.values().map(Task::staged_bytes).sum();
        MAX_STAGED_BYTES.saturating_sub(staged)
    }

    /// Takes back what a task was allowed to have on its way.
    pub(super) fn release(&mut self, task: &Task) {
        if let Some(burst) = &task.burst {
            self.solicited_bytes = self.solicited_bytes.saturating_sub(burst.bytes);
        }
    }
}

/// Takes a tag from a counter.
fn next_ttt(next: &mut u32) -> u32 {
    let ttt = *next;
    *next = match ttt.wrapping_add(1) {
        NO_TAG => 0,
        next => next,
    };
    ttt
}
