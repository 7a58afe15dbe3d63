//! EXTENDED COPY as a unit does it: in steps, from any unit of its target to
//! any other or to itself.

use std::sync::Arc;

use disk::{Allocation, DiskError};

use super::LogicalUnit;
use crate::attention::Nexus;
use crate::conditions::Condition;
use crate::copy::{CopyList, Extent, MAX_SEGMENT_BYTES, Segment, THIS_UNIT, TargetDescriptor};
use crate::reservation::Class;
use crate::{Sense, inquiry};

/// How much is copied before it is asked whether the copy still may.
const STEP_BYTES: u64 = 1 << 20;

/// A segment in bytes, between units that are there.
struct Range<'a> {
    source: &'a LogicalUnit,
    destination: &'a LogicalUnit,
    source_offset: u64,
    destination_offset: u64,
    bytes: u64,
}

/// A copy under way.
struct Copier<'a> {
    nexus: &'a Nexus,
    list: &'a CopyList,
    is_over: &'a dyn Fn() -> bool,
    segments: u16,
    bytes: u64,
}

impl LogicalUnit {
    /// Copies what a list says, as far as it goes.
    pub(super) fn copy(
        &self,
        nexus: &Nexus,
        list: &[u8],
        is_over: &dyn Fn() -> bool,
    ) -> Result<(), Sense> {
        if list.is_empty() {
            return Ok(());
        }
        let list = CopyList::parse(list)?;
        let peers = nexus.peers();
        let targets: Vec<_> = list
            .targets
            .iter()
            .map(|target| self.find_target(&peers, target))
            .collect();
        if let Some(id) = list.id {
            nexus.copies().begin(id)?;
        }
        let mut copier = Copier {
            nexus,
            list: &list,
            is_over,
            segments: 0,
            bytes: 0,
        };
        let result = self.copy_segments(&mut copier, &targets);
        if let Some(id) = list.id {
            // Called off, it has not been done.
            let result = match is_over() {
                true => Err(Sense::COPY_ABORTED),
                false => result,
            };
            nexus.copies().end(id, result, list.is_kept);
        }
        result
    }

    fn copy_segments(
        &self,
        copier: &mut Copier<'_>,
        targets: &[Result<&LogicalUnit, Sense>],
    ) -> Result<(), Sense> {
        let find = |place: u16| match place {
            THIS_UNIT => Ok(self),
            place => {
                let target = targets.get(usize::from(place));
                *target.unwrap_or(&Err(Sense::COPY_TARGET_NOT_REACHABLE))
            }
        };
        for segment in &copier.list.segments {
            let (source, destination) = (find(segment.source)?, find(segment.destination)?);
            let range = Range::new(segment, source, destination)?;
            range.copy(copier)?;
            copier.segments += 1;
            copier.tell();
        }
        Ok(())
    }

    /// The unit a target descriptor names.
    fn find_target<'a>(
        &'a self,
        peers: &'a [Arc<LogicalUnit>],
        target: &TargetDescriptor,
    ) -> Result<&'a LogicalUnit, Sense> {
        // The unit itself first: of it we have the disk of this moment.
        let mut units = std::iter::once(self).chain(peers.iter().map(Arc::as_ref));
        let unit = units
            .find(|unit| inquiry::is_named(unit.identity(), &target.designator))
            .ok_or(Sense::COPY_TARGET_NOT_REACHABLE)?;
        let is_as_said = target.device_type == unit.shape().device.code()
            && [0, unit.geometry.logical_block_bytes].contains(&target.block_bytes);
        match is_as_said {
            true => Ok(unit),
            false => Err(Sense::INCORRECT_COPY_TARGET),
        }
    }
}

impl Copier<'_> {
    fn tell(&self) {
        if let Some(id) = self.list.id {
            let copies = self.nexus.copies();
            copies.advance(id, self.segments, self.bytes);
        }
    }
}

impl<'a> Range<'a> {
    fn new(
        segment: &Segment,
        source: &'a LogicalUnit,
        destination: &'a LogicalUnit,
    ) -> Result<Range<'a>, Sense> {
        let offset = |unit: &LogicalUnit, lba: u64| lba.checked_mul(unit.block_bytes());
        let (mut from, mut to) = (0, 0);
        let bytes = match segment.extent {
            Extent::SourceBlocks(blocks) => u64::from(blocks) * source.block_bytes(),
            Extent::DestinationBlocks(blocks) => u64::from(blocks) * destination.block_bytes(),
            Extent::Bytes {
                bytes,
                source_offset,
                destination_offset,
            } => {
                (from, to) = (u64::from(source_offset), u64::from(destination_offset));
                u64::from(bytes)
            }
        };
        let is_whole = matches!(segment.extent, Extent::Bytes { .. })
            || bytes.is_multiple_of(source.block_bytes())
                && bytes.is_multiple_of(destination.block_bytes());
        if !is_whole || bytes > u64::from(MAX_SEGMENT_BYTES) {
            return Err(Sense::UNEXPECTED_INEXACT_SEGMENT);
        }
        let place = |unit: &LogicalUnit, lba: u64, within: u64| {
            let start = offset(unit, lba)?.checked_add(within)?;
            let end = start.checked_add(bytes)?;
            (end <= unit.geometry.size_bytes).then_some(start)
        };
        // What lies past the end cannot be reached.
        let past_end = Sense::COPY_TARGET_NOT_REACHABLE;
        Ok(Range {
            source_offset: place(source, segment.source_lba, from).ok_or(past_end)?,
            destination_offset: place(destination, segment.destination_lba, to).ok_or(past_end)?,
            source,
            destination,
            bytes,
        })
    }

    /// Copies it, as `copy_within` would: what overlaps is right, too. What
    /// is not stored in the source takes no space in a thin destination.
    fn copy(&self, copier: &mut Copier<'_>) -> Result<(), Sense> {
        let resets = (self.source.resets(), self.destination.resets());
        let is_backward = Arc::ptr_eq(&self.source.state, &self.destination.state)
            && self.source_offset < self.destination_offset;
        let mut buffer = vec![0u8; usize::try_from(self.bytes.min(STEP_BYTES)).unwrap_or(0)];
        let mut done = 0;
        while done < self.bytes {
            let longest = (self.bytes - done).min(STEP_BYTES);
            let at = match is_backward {
                true => self.bytes - done - longest,
                false => done,
            };
            // Who ends the tasks of this nexus waits until the step is done.
            let _hold = copier.nexus.hold();
            if (copier.is_over)() {
                return Ok(()); // nobody hears
            }
            let may_go_on = || {
                if resets != (self.source.resets(), self.destination.resets()) {
                    return Err(Sense::COPY_ABORTED);
                }
                self.check_access(copier.nexus)
            };
            may_go_on()?;
            let step = self.step(at, longest, is_backward, &mut buffer, &may_go_on)?;
            done += step;
            copier.bytes += step;
            copier.tell();
        }
        let durable = self.destination.flush_change(false);
        durable.map_err(|_| Sense::THIRD_PARTY_DEVICE_FAILURE)?;
        Ok(())
    }

    /// Copies at most `longest` bytes, all of them when the end comes first;
    /// how many it were.
    fn step(
        &self,
        at: u64,
        longest: u64,
        is_backward: bool,
        buffer: &mut [u8],
        may_go_on: &dyn Fn() -> Result<(), Sense>,
    ) -> Result<u64, Sense> {
        let (from, to) = (self.source_offset + at, self.destination_offset + at);
        let (source, destination) = (self.source, self.destination);
        let extent = source.disk.extent(from, longest).map_err(failed)?;
        let step = match is_backward {
            true => longest,
            false => extent.bytes.clamp(1, longest),
        };
        let is_hole = extent.allocation == Allocation::Deallocated && extent.bytes >= step;
        let frees = is_hole && destination.is_thin();
        let buffer = &mut buffer[..usize::try_from(step).unwrap_or(0)];
        if !frees {
            source.disk.read(from, buffer).map_err(failed)?;
        }
        // Who takes away what is asked for from here on waits for the change.
        let among_others = destination.among_others();
        let _among_others = among_others.map_err(|_| Sense::THIRD_PARTY_DEVICE_FAILURE)?;
        may_go_on()?;
        let changed = match frees {
            true => destination.disk.unmap(to, step),
            false => destination.disk.write(to, buffer),
        };
        changed.map_err(failed)?;
        Ok(step)
    }

    /// Reservations and write protection of both ends.
    fn check_access(&self, nexus: &Nexus) -> Result<(), Sense> {
        let allows = |unit: &LogicalUnit, class| {
            let reservations = &unit.state.reservations;
            !unit.is(Condition::UNREADY) && reservations.allows(nexus.name(), class)
        };
        let may_both = allows(self.source, Class::Read) && allows(self.destination, Class::Write);
        match may_both && self.destination.check_writable().is_ok() {
            true => Ok(()),
            false => Err(Sense::THIRD_PARTY_DEVICE_FAILURE),
        }
    }
}

/// What the initiator hears of an end's disk; the log hears the rest.
fn failed(error: DiskError) -> Sense {
    let _ = Sense::from(error);
    Sense::THIRD_PARTY_DEVICE_FAILURE
}
