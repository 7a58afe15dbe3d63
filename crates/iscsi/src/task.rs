//! A SCSI command under way: the data it waits for, or the worker it waits
//! for.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use scsi::{Command, DataOut, LogicalUnit, Nexus, Refusal, Sense, Work};

/// Pieces of data-out from this size on go to the disk as they come; smaller
/// ones are put together first.
const DIRECT_BYTES: usize = 4096;

/// A command whose data-out has not all come.
pub(crate) struct Task {
    pub(crate) itt: u32,
    pub(crate) lun: [u8; 8],
    pub(crate) unit: Arc<LogicalUnit>,
    pub(crate) nexus: Nexus,
    pub(crate) work: Work,
    pub(crate) expected_bytes: u32,
    /// Data-out the command takes.
    pub(crate) wanted: u32,
    /// Data-out that has come, in order, from offset 0 on.
    pub(crate) received: u32,
    /// The initiator is still sending what nobody asked for; next DataSN.
    pub(crate) unsolicited: Option<u32>,
    /// What it was asked for and is sending.
    pub(crate) burst: Option<Burst>,
    pub(crate) r2t_sn: u32,
    /// Data that waits for more: all of a gathered command, or small pieces.
    staged: Vec<u8>,
    staged_at: u32,
    /// The answer is known; what still comes is thrown away.
    pub(crate) failed: Option<Failure>,
}

/// Why a command fails, and the residual that goes with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    pub(crate) refusal: Refusal,
    /// Data the command would have moved, when that matters.
    pub(crate) wanted: Option<u32>,
}

impl<R: Into<Refusal>> From<R> for Failure {
    fn from(refusal: R) -> Failure {
        Failure {
            refusal: refusal.into(),
            wanted: None,
        }
    }
}

/// A stretch of data-out that was asked for (R2T).
pub(crate) struct Burst {
    pub(crate) ttt: u32,
    /// Where it ends in the command's data.
    pub(crate) end: u32,
    pub(crate) bytes: u32,
    pub(crate) next_data_sn: u32,
}

/// What a response says of its command.
#[derive(Clone, Copy)]
pub(crate) struct Answered {
    pub(crate) itt: u32,
    pub(crate) expected_bytes: u32,
    /// R: the initiator takes data.
    pub(crate) reads: bool,
    /// Data-In and R2T PDUs sent so far.
    pub(crate) data_sn: u32,
}

/// What a slow command is doing on a worker.
pub(crate) struct Running {
    pub(crate) answered: Answered,
    pub(crate) unit: Arc<LogicalUnit>,
    pub(crate) nexus: Nexus,
    pub(crate) work: Work,
    pub(crate) called_off: Arc<AtomicBool>,
    /// Aborted: nobody hears the answer.
    pub(crate) aborted: bool,
}

impl Running {
    /// Whether it may still touch the disk, as far as anybody cares.
    pub(crate) fn goes_on(&self) -> bool {
        !self.aborted || self.work.finish_changes_disk()
    }
}

/// A slow command, for a worker.
pub(crate) struct Job {
    pub(crate) id: u64,
    unit: Arc<LogicalUnit>,
    nexus: Nexus,
    work: Work,
    data: Vec<u8>,
    called_off: Arc<AtomicBool>,
}

/// What became of a [`Job`].
pub(crate) struct Done {
    pub(crate) id: u64,
    pub(crate) result: Result<Vec<u8>, Refusal>,
}

impl Done {
    /// A job that came to no end of its own.
    pub(crate) fn failed(id: u64) -> Done {
        Done {
            id,
            result: Err(Sense::INTERNAL_TARGET_FAILURE.into()),
        }
    }
}

impl Job {
    /// Names the unit it is for, as long as the job is there.
    pub(crate) fn unit(&self) -> usize {
        Arc::as_ptr(&self.unit).addr()
    }

    /// Whether it changes what is read from the disk.
    pub(crate) fn changes_disk(&self) -> bool {
        self.work.finish_changes_disk()
    }

    /// Whether it may take hours: SANITIZE writes a whole disk.
    pub(crate) fn takes_long(&self) -> bool {
        matches!(self.work.command(), Command::Sanitize(_))
    }

    /// Does what is still to be done once it is answered; takes its time.
    pub(crate) fn go_on(self) {
        drop(self.nexus); // it may have to end before this does
        self.unit.go_on(&self.work, &self.data);
    }

    /// Does it; takes its time.
    pub(crate) fn run(&self) -> Done {
        let result = self
            .unit
            .finish(&self.nexus, &self.work, &self.data, &self.called_off);
        Done {
            id: self.id,
            result,
        }
    }
}

impl Task {
    pub(crate) fn new(
        itt: u32,
        lun: [u8; 8],
        (unit, nexus): (Arc<LogicalUnit>, Nexus),
        work: Work,
        expected_bytes: u32,
    ) -> Task {
        let wanted = match work.data_out() {
            DataOut::None => 0,
            DataOut::Streamed(bytes) | DataOut::Gathered(bytes) => {
                u32::try_from(bytes).unwrap_or(u32::MAX)
            }
        };
        Task {
            itt,
            lun,
            unit,
            nexus,
            work,
            expected_bytes,
            wanted,
            received: 0,
            unsolicited: None,
            burst: None,
            r2t_sn: 0,
            staged: Vec::new(),
            staged_at: 0,
            failed: None,
        }
    }

    /// What its response says of it.
    pub(crate) fn answered(&self, reads: bool) -> Answered {
        Answered {
            itt: self.itt,
            expected_bytes: self.expected_bytes,
            reads,
            data_sn: self.r2t_sn,
        }
    }

    /// Takes data that continues what has come; what the command does not
    /// want is dropped. At most `room` bytes of it are held back to be put
    /// together with more.
    pub(crate) fn take(&mut self, data: &[u8], room: usize) {
        let at = self.received;
        let bytes = u32::try_from(data.len()).unwrap_or(u32::MAX);
        self.received = at.saturating_add(bytes);
        let useful = usize::try_from(self.wanted.saturating_sub(at)).unwrap_or(usize::MAX);
        let data = &data[..useful.min(data.len())];
        if data.is_empty() || self.failed.is_some() {
            return;
        }
        let streams = matches!(self.work.data_out(), DataOut::Streamed(_));
        let is_long = self.staged.is_empty() && data.len() >= DIRECT_BYTES;
        if streams && (is_long || data.len() > room) {
            self.settle();
            self.put(at, data);
            return;
        }
        if self.staged.is_empty() {
            self.staged_at = at;
        }
        self.staged.extend_from_slice(data);
    }

    /// Hands pieces that were put together to the disk: a burst has ended.
    pub(crate) fn settle(&mut self) {
        if matches!(self.work.data_out(), DataOut::Streamed(_)) && !self.staged.is_empty() {
            let staged = std::mem::take(&mut self.staged);
            self.put(self.staged_at, &staged);
        }
    }

    /// Data held back.
    pub(crate) fn staged_bytes(&self) -> usize {
        self.staged.len()
    }

    /// Whether another session has ended the task (a reset, PREEMPT AND
    /// ABORT): nobody hears of it, and nothing of it may reach the disk any more.
    pub(crate) fn is_void(&self) -> bool {
        self.unit.is_void(&self.nexus, &self.work)
    }

    fn put(&mut self, at: u32, data: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        let result = {
            let _hold = self.nexus.hold();
            if self.is_void() {
                return;
            }
            self.unit.put(&self.work, u64::from(at), data)
        };
        if let Err(sense) = result {
            self.failed = Some(sense.into());
        }
    }

    /// Whether nothing more is to come.
    pub(crate) fn is_complete(&self) -> bool {
        let idle = self.unsolicited.is_none() && self.burst.is_none();
        idle && (self.failed.is_some() || self.received >= self.wanted)
    }

    /// The data of a gathered command.
    pub(crate) fn gathered(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.staged)
    }

    /// The work left, for a worker.
    pub(crate) fn job(&mut self, id: u64, called_off: Arc<AtomicBool>) -> Job {
        Job {
            id,
            unit: self.unit.clone(),
            nexus: self.nexus.clone(),
            work: self.work,
            data: self.gathered(),
            called_off,
        }
    }
}
