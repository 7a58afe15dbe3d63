//! Data-In (RFC 7143 section 11.7): the answer of a command that reads, cut into
//! PDUs and sequences; status travels in the last.

use scsi::disk::Segment;
use scsi::{LogicalUnit, Sense, Work};

use super::{GOOD, Session, residual};
use crate::outbox::Outbox;
use crate::task::Answered;
use crate::wire::{Bhs, DataIn, Residual};

/// Longest data segment we send, whatever the initiator would take: what is
/// not mapped waits in memory.
const MAX_SEGMENT_BYTES: u32 = 256 << 10;

impl Session<'_> {
    /// GOOD; `actual` is what the command moved, or would have moved.
    pub(super) fn data_in(
        &mut self,
        answered: &Answered,
        actual: u32,
        data: &[u8],
        out: &mut Outbox<'_>,
    ) {
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
    pub(super) fn read<'u>(
        &mut self,
        answered: &Answered,
        unit: &'u LogicalUnit,
        work: Work,
        out: &mut Outbox<'u>,
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
        let mut segments = out.lend_segments();
        let mapped = match out.protects_data() {
            true => Ok(false),
            false => unit.segments(&work, 0, u64::from(total), &mut segments),
        };
        let sent = match mapped {
            Ok(true) if covers(&segments, total) => {
                out.will_read(unit, work);
                self.send_mapped(answered, residual, total, &segments, out);
                Ok(())
            }
            Ok(_) => self.send_copied(answered, residual, total, (unit, &work), out),
            Err(sense) => Err((sense, 0)),
        };
        out.return_segments(segments);
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
    fn send_mapped<'u>(
        &mut self,
        answered: &Answered,
        residual: Residual,
        total: u32,
        segments: &[Segment<'u>],
        out: &mut Outbox<'u>,
    ) {
        let mut segments = segments.iter().copied();
        let mut rest: Option<Segment<'u>> = None;
        for step in self.steps(usize::try_from(total).unwrap_or(usize::MAX)) {
            let header = self.data_in_header(answered, &step, residual);
            out.header(&header);
            let mut left = step.bytes;
            while left > 0 {
                let Some(segment) = rest.take().or_else(|| segments.next()) else {
                    break; // cannot be: they cover it all
                };
                let (now, later) = segment.split_at(left);
                left -= now.len();
                out.mapped(now);
                rest = Some(later).filter(|later| !later.is_empty());
            }
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
        out: &mut Outbox<'_>,
    ) -> Result<(), (Sense, u32)> {
        for step in self.steps(usize::try_from(total).unwrap_or(usize::MAX)) {
            // The header is made once the data is there: it carries status.
            let read = unit.read(work, u64::from(step.offset), out.room(step.bytes));
            if let Err(sense) = read {
                out.take_back(step.bytes);
                return Err((sense, step.data_sn));
            }
            let header = self.data_in_header(answered, &step, residual);
            out.fill_header(&header, step.bytes);
            out.relieve();
        }
        Ok(())
    }

    /// How `total` bytes of Data-In are cut into PDUs and sequences.
    fn steps(&self, total: usize) -> Steps {
        let size = |bytes: u32| usize::try_from(bytes).unwrap_or(usize::MAX);
        Steps {
            total,
            segment: size(
                self.parameters
                    .max_send_data_segment_length
                    .min(MAX_SEGMENT_BYTES),
            ),
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
}

/// Whether segments hold `total` bytes, as a disk that gives any promises.
fn covers(segments: &[Segment<'_>], total: u32) -> bool {
    let bytes: usize = segments.iter().map(Segment::len).sum();
    usize::try_from(total).is_ok_and(|total| bytes >= total)
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
