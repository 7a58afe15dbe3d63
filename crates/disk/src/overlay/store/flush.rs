//! The flush of an overlay: which marks it makes durable, in which order.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::super::OverlayMode;
use super::super::journal::{Journal, Run, StepError};
use super::super::layer::{BLOCK_BYTES, Layer};
use super::super::live::{GROUP_BLOCKS, Mark};
use super::Store;
use crate::DiskError;

/// Runs of marks remembered for the next flush (2 MiB of them; in tests few);
/// past this it writes a checkpoint instead of a record.
const PENDING_RUNS: usize = if cfg!(test) { 48 } else { 1 << 16 };

/// Marks made since the last flush took them, in order.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) runs: Vec<Run>,
    /// More than are in `runs`: all marks that there are.
    pub(super) everything: bool,
}

impl Pending {
    pub(super) fn push(&mut self, blocks: Range<u64>, mark: Mark) {
        if self.everything {
            return;
        }
        if let Some(last) = self.runs.last_mut()
            && last.mark == mark
            && last.blocks.end == blocks.start
        {
            last.blocks.end = blocks.end;
        } else if self.runs.len() < PENDING_RUNS {
            self.runs.push(Run { blocks, mark });
        } else {
            self.runs = Vec::new();
            self.everything = true;
        }
    }

    /// Gives back what a flush took and could not note.
    pub(super) fn restore(&mut self, mut taken: Pending) {
        taken.everything |= self.everything;
        for run in self.runs.drain(..) {
            taken.push(run.blocks, run.mark);
        }
        *self = taken;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty() && !self.everything
    }
}

impl Store {
    /// Returns once everything answered before the call is as durable as the
    /// mode promises.
    pub(in crate::overlay) fn flush(&self) -> Result<(), DiskError> {
        self.health.check()?;
        match self.mode {
            OverlayMode::Keep => self.rounds.join(|| self.round()),
            // Nothing to make durable; but data the kernel could not write
            // back would be lost without a word.
            OverlayMode::Reset => {
                let stack = self.disk.stack();
                let top = stack
                    .top
                    .layer()
                    .map_or(Ok(()), |top| top.data.file.writeback_error());
                top.and_then(|()| stack.frozen().try_for_each(|layer| layer.writeback_error()))
                    .map_err(|error| self.health.sync_failed(self.context("writing back"), error))
            }
        }
    }

    /// One round of the group commit.
    fn round(&self) -> Result<(), DiskError> {
        self.note_all(&mut self.journal())
    }

    fn note_all(&self, journal: &mut Journal) -> Result<(), DiskError> {
        self.health.check()?;
        let stack = self.disk.stack();
        let Some(top) = stack.top.layer_with(journal) else {
            return Ok(());
        };
        let durable = self.make_durable(journal, top)?;
        self.punch_durable(top, durable);
        if journal.wants_checkpoint() && journal.has_records() {
            // The flush is done; lack of space only makes the log longer.
            match self.checkpoint(journal, top) {
                Err(DiskError::NoSpace(reason)) => no_checkpoint(&reason),
                answer => answer?,
            }
        }
        Ok(())
    }

    /// Makes all marks durable that are pending, and answers which they were.
    pub(super) fn make_durable(
        &self,
        journal: &mut Journal,
        top: &Layer,
    ) -> Result<Pending, DiskError> {
        // In this order: a write syncs, marks, pends. A mark that is taken here
        // is one whose data was written before `unsynced` is asked, so either
        // this `fdatasync` covers it or an earlier one has.
        let taken = std::mem::take(&mut *self.pending());
        if taken.everything || (!taken.is_empty() && !journal.takes_records()) {
            let answer = self.checkpoint(journal, top);
            if let Err(DiskError::NoSpace(_)) = answer {
                self.pending().restore(taken);
                return answer.map(|()| Pending::default());
            }
            return answer.map(|()| taken);
        }
        if self.unsynced.swap(false, Ordering::AcqRel) {
            top.data
                .file
                .sync_data()
                .map_err(|error| self.health.sync_failed(self.context("flushing"), error))?;
        }
        if taken.is_empty() {
            return Ok(taken);
        }
        if let Err(error) = journal.append(&taken.runs) {
            self.pending().restore(taken);
            return Err(self
                .health
                .write_failed(self.context("writing the log of"), error));
        }
        journal.sync().map_err(|error| {
            self.health
                .sync_failed(self.context("flushing the log of"), error)
        })?;
        Ok(taken)
    }

    /// Writes a checkpoint: all marks there are.
    pub(super) fn checkpoint(&self, journal: &mut Journal, top: &Layer) -> Result<(), DiskError> {
        let context = || self.context("writing a checkpoint of");
        let answer = journal.checkpoint(&self.files, &top.live, || {
            self.unsynced.store(false, Ordering::Release);
            top.data.file.sync_data()
        });
        match answer {
            Ok(()) => Ok(()),
            Err(StepError::Abandoned(error)) => Err(self.health.write_failed(context(), error)),
            Err(StepError::Failed(error)) => Err(self.health.sync_failed(context(), error)),
        }
    }

    /// Gives back the space of blocks that are durably not ours.
    fn punch_durable(&self, top: &Layer, durable: Pending) {
        if durable.everything {
            self.punch_what_is_not_own(top, 0..top.live.block_count());
        }
        for run in durable.runs {
            if run.mark == Mark::Zero {
                self.punch_what_is_not_own(top, run.blocks);
            }
        }
    }

    /// Gives back what blocks take of the data file that are not ours: zero,
    /// or never marked because the host was lost first.
    ///
    /// A write may have come since the marks were made durable, and a late
    /// punch would destroy it: so it is looked again under the blocks' lock.
    /// Lets be what the file system refuses; the marks say what is read.
    fn punch_what_is_not_own(&self, top: &Layer, blocks: Range<u64>) {
        let end = blocks.end * BLOCK_BYTES;
        let mut at = blocks.start * BLOCK_BYTES;
        while at < end {
            // Most of a large range takes no space, and needs no punch.
            let found = match top.data.file.next_data(at..end) {
                Ok(Some(found)) => found,
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(dir = %self.dir().display(), %error, "holes not punched");
                    return;
                }
            };
            let mut block = found.start / BLOCK_BYTES;
            let last = found.end.div_ceil(BLOCK_BYTES);
            while block < last {
                let group = block / GROUP_BLOCKS;
                let group_end = ((group + 1) * GROUP_BLOCKS).min(last);
                let _stripe = self.stripe(group);
                while block < group_end {
                    let (mark, run_end) = top.live.run(block, group_end);
                    if mark != Mark::Own {
                        self.punch(top, block..run_end);
                    }
                    block = run_end;
                }
            }
            at = last * BLOCK_BYTES;
        }
    }

    pub(super) fn punch(&self, top: &Layer, blocks: Range<u64>) {
        let offset = blocks.start * BLOCK_BYTES;
        let bytes = (blocks.end - blocks.start) * BLOCK_BYTES;
        if let Err(error) = top.data.file.punch_hole(offset, bytes) {
            tracing::debug!(dir = %self.dir().display(), %error, "hole not punched");
        }
    }
}

/// The log says the same, only longer.
pub(super) fn no_checkpoint(reason: &str) {
    tracing::warn!(reason, "no checkpoint for lack of space");
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::super::{BaseId, Caching, Overlay};
    use super::*;
    use crate::{Disk, Ram};

    #[test]
    fn a_first_write_beside_a_flush_is_noted_in_its_own_log_and_in_no_other() {
        let home = tempfile::tempdir().unwrap();
        let base = BaseId {
            uuid: [1; 16],
            sha256: [2; 32],
            size_bytes: 1 << 20,
        };
        let image = Arc::new(Ram::with_contents(vec![1; 1 << 20]).read_only());
        let (dir, mode) = (home.path().join("overlay"), OverlayMode::Keep);
        let overlay = Overlay::create(&dir, image, base, mode, 1, Caching::WriteBack).unwrap();
        let store = overlay.store.clone();
        for round in 0..2 {
            // The flush has the journal; the first write makes the layer now.
            let mut journal = store.journal();
            overlay.write(round * 4096, &[7; 4096]).unwrap();
            store.note_all(&mut journal).unwrap();
            assert!(journal.has_records());
            drop(journal);
            store.freeze(&overlay.retired, None).unwrap();
        }
    }
}
