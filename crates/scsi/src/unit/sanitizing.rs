//! A unit that is being sanitized (SBC-3 section 4.11).
//!
//! The operation belongs to the unit, not to the task that asked for it:
//! neither aborts nor resets nor the end of the session stop it, and until it
//! has ended the unit does nothing else. It ends with the process, too: what
//! is begun again is not known to us.

use super::{LogicalUnit, Work};
use crate::command::Command;
use crate::conditions::Condition;
use crate::sanitize::{HEADER_BYTES, Overwrite, Sanitize, SanitizeAction};
use crate::{Sense, disk};

/// How much is written before it is flushed, and progress told.
const STEP_BYTES: u64 = 16 << 20;

/// How an operation does away with what is stored.
enum Method {
    /// Writes over all of it.
    Overwrite(Overwrite),
    /// Writes zeros over what is stored, and gives it back.
    Erase,
}

impl LogicalUnit {
    /// Checks SANITIZE's fields against the unit.
    pub(super) fn check_sanitize(&self, asked: &Sanitize) -> Result<(), Sense> {
        self.check_writable()?;
        let block_bytes = self.geometry.logical_block_bytes;
        let fits = match asked.action {
            SanitizeAction::Overwrite => {
                let pattern = asked.list_bytes.saturating_sub(HEADER_BYTES);
                pattern > 0 && u32::from(pattern) <= block_bytes
            }
            _ => asked.list_bytes == 0,
        };
        match fits {
            true => Ok(()),
            false => Err(Sense::invalid_cdb_field(7, 7)),
        }
    }

    /// Begins what SANITIZE asks for; does all of it unless it is immediate.
    pub(super) fn sanitize(&self, asked: &Sanitize, list: &[u8]) -> Result<(), Sense> {
        if asked.action == SanitizeAction::ExitFailureMode {
            return self.exit_failure_mode();
        }
        let method = self.method(asked, list)?;
        let alone = self.alone()?;
        let conditions = &self.state.conditions;
        conditions.set(Condition::SANITIZE_FAILED, false);
        conditions.set(Condition::FAILURE_EXIT, asked.unrestricted_exit);
        conditions.set(Condition::SANITIZING, true);
        let passes = match &method {
            Method::Overwrite(overwrite) => u64::from(overwrite.passes),
            Method::Erase => 1,
        };
        let total = self.geometry.size_bytes.saturating_mul(passes);
        self.state.sanitize_progress.begin(total);
        drop(alone);
        match asked.immediate {
            true => Ok(()),
            false => self.carry_out(&method),
        }
    }

    /// Does what is left of a command that was answered when it had begun: an
    /// immediate SANITIZE, and only when [`finish`](LogicalUnit::finish) has
    /// succeeded. Takes its time.
    pub fn go_on(&self, work: &Work, data: &[u8]) {
        if let Command::Sanitize(asked) = &work.command
            && asked.immediate
            && let Ok(method) = self.method(asked, data)
            && self.is(Condition::SANITIZING)
        {
            // Who asks later is told.
            let _ = self.carry_out(&method);
        }
    }

    /// Why a unit that is being sanitized, or could not be, takes no command;
    /// what it takes all the same passes.
    pub(super) fn check_sanitized(&self, now: Condition, command: &Command) -> Result<(), Sense> {
        let is_about_the_unit = matches!(
            command,
            Command::Inquiry { .. } | Command::RequestSense { .. } | Command::ReportLuns { .. }
        );
        if now.has(Condition::SANITIZING) && !is_about_the_unit {
            return Err(self.sanitizing());
        }
        let may_end_it = is_about_the_unit || matches!(command, Command::Sanitize(_));
        if now.has(Condition::SANITIZE_FAILED) && !may_end_it {
            return Err(Sense::SANITIZE_FAILED);
        }
        Ok(())
    }

    /// 2/04/1B and how far it is.
    pub(super) fn sanitizing(&self) -> Sense {
        Sense {
            progress: Some(self.state.sanitize_progress.now()),
            ..Sense::SANITIZE_IN_PROGRESS
        }
    }

    fn exit_failure_mode(&self) -> Result<(), Sense> {
        let conditions = &self.state.conditions;
        let now = conditions.now();
        if now.has(Condition::SANITIZE_FAILED) && !now.has(Condition::FAILURE_EXIT) {
            return Err(Sense::invalid_cdb_field(1, 4)); // only another one ends it
        }
        conditions.set(Condition::SANITIZE_FAILED, false);
        Ok(())
    }

    fn method(&self, asked: &Sanitize, list: &[u8]) -> Result<Method, Sense> {
        Ok(match asked.action {
            SanitizeAction::Overwrite => Method::Overwrite(Overwrite::parse(list)?),
            _ => Method::Erase,
        })
    }

    fn carry_out(&self, method: &Method) -> Result<(), Sense> {
        // A disk that panics has not been sanitized either.
        let ending = Ending(self);
        let done = match method {
            Method::Overwrite(overwrite) => self.overwrite(overwrite),
            Method::Erase => self.erase(),
        };
        done.map_err(|error| {
            tracing::warn!(%error, "the unit could not be sanitized");
            Sense::SANITIZE_FAILED
        })?;
        std::mem::forget(ending);
        self.state.conditions.set(Condition::SANITIZING, false);
        Ok(())
    }

    fn overwrite(&self, overwrite: &Overwrite) -> Result<(), disk::DiskError> {
        let block_bytes = usize::try_from(self.block_bytes()).unwrap_or(0);
        for pass in 0..overwrite.passes {
            let block = overwrite.block(pass, block_bytes);
            self.in_steps(|offset, bytes| self.fill(&block, offset, bytes))?;
        }
        Ok(())
    }

    fn erase(&self) -> Result<(), disk::DiskError> {
        let block = vec![0; usize::try_from(self.block_bytes()).unwrap_or(0)];
        self.in_steps(|offset, bytes| {
            let mut at = offset;
            while at < offset + bytes {
                let extent = self.disk.extent(at, offset + bytes - at)?;
                if extent.allocation == disk::Allocation::Mapped {
                    self.fill(&block, at, extent.bytes)?;
                }
                at += extent.bytes.max(1);
            }
            self.disk.flush()?; // the zeros are in the old place before that is given up
            self.disk.unmap(offset, bytes)
        })
    }

    /// Does `step(offset, bytes)` for all of the disk and flushes each.
    fn in_steps(
        &self,
        step: impl Fn(u64, u64) -> Result<(), disk::DiskError>,
    ) -> Result<(), disk::DiskError> {
        let mut offset = 0;
        while offset < self.geometry.size_bytes {
            let bytes = STEP_BYTES.min(self.geometry.size_bytes - offset);
            step(offset, bytes)?;
            self.disk.flush()?;
            self.state.sanitize_progress.advance(bytes);
            offset += bytes;
        }
        Ok(())
    }

    /// Writes `block` again and again.
    fn fill(&self, block: &[u8], offset: u64, bytes: u64) -> Result<(), disk::DiskError> {
        /// Blocks of up to 4096 bytes fill it exactly.
        const PIECE_BYTES: u64 = 1 << 20;
        let piece_bytes = usize::try_from(bytes.min(PIECE_BYTES)).unwrap_or(0);
        let piece: Vec<u8> = block.iter().copied().cycle().take(piece_bytes).collect();
        let mut done = 0;
        while done < bytes {
            let now = (bytes - done).min(PIECE_BYTES);
            let part = &piece[..usize::try_from(now).unwrap_or(0)];
            self.disk.write(offset + done, part)?;
            done += now;
        }
        Ok(())
    }
}

/// An operation that has not ended well.
struct Ending<'a>(&'a LogicalUnit);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let conditions = &self.0.state.conditions;
        conditions.set(Condition::SANITIZE_FAILED, true);
        conditions.set(Condition::SANITIZING, false);
    }
}
