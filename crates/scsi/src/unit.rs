//! A logical unit: a disk that answers commands.
//!
//! A session first lets the unit [`admit`](LogicalUnit::admit) a CDB, which
//! checks all that can be checked before data moves, and gets [`Work`]. It
//! then moves data ([`put`](LogicalUnit::put), [`read`](LogicalUnit::read),
//! [`segments`](LogicalUnit::segments)) and [`finish`](LogicalUnit::finish)es.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use disk::{Access, Durability, Geometry, Segment, SharedDisk};

use crate::attention::{Attentions, Nexus, NexusName};
use crate::command::Command;
use crate::conditions::{Condition, Conditions};
use crate::copy::CopyCommand;
use crate::opcodes::Family;
use crate::optical::MediaEvent;
use crate::reservation::{ReservationKeeper, Reservations};
use crate::sanitize::Progress;
use crate::{Device, Identity, Medium, Provisioning, Sense, SenseFormat, Shape, optical};

mod admission;
mod copying;
mod execution;
mod medium;
mod sanitizing;
mod space;

pub(crate) use admission::max_compare_blocks;

/// MAXIMUM TRANSFER LENGTH: the most one READ, WRITE or VERIFY moves.
pub const MAX_TRANSFER_BYTES: u64 = 32 << 20;

/// MAXIMUM ATOMIC TRANSFER LENGTH, where the disk promises so much: it is held
/// in memory.
const MAX_ATOMIC_BLOCKS: u64 = 256;

/// A disk that answers commands.
pub struct LogicalUnit {
    disk: SharedDisk,
    geometry: Geometry,
    /// Mapped bytes were not there when they were to be sent.
    has_lost_mapping: AtomicBool,
    state: Arc<State>,
}

/// What stays when a unit gets another disk.
struct State {
    identity: Identity,
    shape: Shape,
    attentions: Attentions,
    reservations: Reservations,
    resets: AtomicU64,
    conditions: Conditions,
    sanitize_progress: Progress,
    /// Initiators have been warned that little space is left.
    is_low: AtomicBool,
    /// Held shared while the disk is changed, and alone by what reads and
    /// writes as one: nobody's change falls in between.
    exclusion: RwLock<()>,
}

/// A command that has passed every check and now wants its data.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    command: Command,
    /// Where on the disk, in bytes.
    offset: u64,
    /// How much of the disk, in bytes.
    bytes: u64,
    data_out: DataOut,
    pace: Pace,
    /// How often the unit had been reset when it was admitted.
    resets: u64,
}

impl Work {
    /// The command.
    pub fn command(&self) -> &Command {
        &self.command
    }

    /// Which data the command needs from the initiator.
    pub fn data_out(&self) -> DataOut {
        self.data_out
    }

    /// Bytes of the disk that are to be sent: the data of a READ.
    pub fn read_bytes(&self) -> Option<u64> {
        matches!(self.command, Command::Read(_)).then_some(self.bytes)
    }

    /// How long [`finish`](LogicalUnit::finish) may take.
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// Whether [`finish`](LogicalUnit::finish) changes what is read from the
    /// disk, so that it must have ended before anybody may count on its abort.
    /// A write has changed it before: what is left of one is a flush. And
    /// nobody need wait for SANITIZE: no abort ends it, and the unit says that
    /// it is under way.
    pub fn finish_changes_disk(&self) -> bool {
        matches!(
            self.command,
            Command::WriteSame { .. }
                | Command::Unmap { .. }
                | Command::CompareAndWrite { .. }
                | Command::WriteAtomic { .. }
                | Command::Copy(CopyCommand::Copy { .. })
        )
    }
}

/// Which data a command needs from the initiator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataOut {
    /// None.
    None,
    /// So many bytes, each piece handed to [`LogicalUnit::put`] as it comes.
    Streamed(u64),
    /// So many bytes (a block, or a list of UNMAP), handed to [`LogicalUnit::finish`] as a
    /// whole.
    Gathered(u64),
}

/// How long finishing a command may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Done where one stands.
    AtOnce,
    /// May wait for the medium; others should be served meanwhile.
    Slow,
}

impl LogicalUnit {
    /// A fixed disk over `disk` that calls itself `identity`.
    pub fn new(disk: SharedDisk, identity: Identity) -> LogicalUnit {
        LogicalUnit::shaped(disk, identity, Shape::default())
    }

    /// A unit of any shape. A disk of no bytes is none: the medium of a
    /// removable unit is out.
    pub fn shaped(disk: SharedDisk, identity: Identity, shape: Shape) -> LogicalUnit {
        let shape = match shape.device {
            Device::Disk => shape,
            Device::Optical => Shape {
                medium: Medium::Removable,
                access: Access::ReadOnly,
                ..shape
            },
        };
        let geometry = shown(disk.geometry(), shape.device);
        let conditions = Conditions::default();
        conditions.set(Condition::EJECTED, is_empty(geometry, shape));
        let state = State {
            identity,
            shape,
            attentions: Attentions::default(),
            reservations: Reservations::default(),
            resets: AtomicU64::new(0),
            conditions,
            sanitize_progress: Progress::default(),
            is_low: AtomicBool::new(false),
            exclusion: RwLock::new(()),
        };
        LogicalUnit {
            geometry,
            disk,
            has_lost_mapping: AtomicBool::new(false),
            state: Arc::new(state),
        }
    }

    /// The same unit over another disk: a file that has grown, another
    /// medium. Every nexus is told when its capacity is another one, or when
    /// the medium may be. Tasks under way go on over the disk they began with.
    pub fn with_disk(&self, disk: SharedDisk) -> LogicalUnit {
        let geometry = shown(disk.geometry(), self.shape().device);
        let attentions = &self.state.attentions;
        let conditions = &self.state.conditions;
        if is_empty(geometry, self.shape()) {
            conditions.set(Condition::EJECTED, true);
            attentions.tell(MediaEvent::MediaRemoval);
        } else if self.shape().medium == Medium::Removable {
            conditions.set(Condition::EJECTED, false);
            attentions.raise(Sense::MEDIUM_MAY_HAVE_CHANGED, None);
            attentions.tell(MediaEvent::NewMedia);
        } else if geometry != self.geometry {
            attentions.raise(Sense::CAPACITY_DATA_HAS_CHANGED, None);
        }
        LogicalUnit {
            geometry,
            disk,
            has_lost_mapping: AtomicBool::new(false),
            state: self.state.clone(),
        }
    }

    /// Tells every nexus that the target has other units than before.
    pub fn raise_luns_changed(&self) {
        let attentions = &self.state.attentions;
        attentions.raise(Sense::REPORTED_LUNS_DATA_HAS_CHANGED, None);
    }

    /// The disk below.
    pub fn disk(&self) -> &SharedDisk {
        &self.disk
    }

    /// What the unit calls itself.
    pub fn identity(&self) -> &Identity {
        &self.state.identity
    }

    /// What kind of unit it is.
    pub fn shape(&self) -> Shape {
        self.state.shape
    }

    /// Whether `other` is this unit, perhaps over another disk.
    pub fn is_same_unit(&self, other: &LogicalUnit) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    /// A new session's view of this unit.
    pub fn connect(&self, name: &NexusName) -> Nexus {
        self.state.reservations.lose(name);
        self.state.attentions.connect(name)
    }

    /// Logical unit reset: every nexus is told, whoever asked for it. Tasks
    /// that began under an earlier [`resets`](LogicalUnit::resets) are void,
    /// and what MODE SELECT and PREVENT ALLOW have set is as in the beginning.
    pub fn reset(&self) {
        self.state.resets.fetch_add(1, Ordering::AcqRel);
        let conditions = &self.state.conditions;
        conditions.replace(Condition::SETTINGS, Condition::NONE);
        let attentions = &self.state.attentions;
        attentions.allow_removal();
        attentions.raise(Sense::DEVICE_RESET_OCCURRED, None);
        self.state.reservations.reset();
    }

    /// Ends the tasks of every nexus and tells the others so (CLEAR TASK
    /// SET).
    pub fn clear_tasks(&self, by: &Nexus) {
        self.state.resets.fetch_add(1, Ordering::AcqRel);
        self.state
            .attentions
            .raise(Sense::COMMANDS_CLEARED_BY_ANOTHER_INITIATOR, Some(by));
    }

    /// How often all tasks of this unit have been made void.
    pub fn resets(&self) -> u64 {
        self.state.resets.load(Ordering::Acquire)
    }

    /// The same, and those of one nexus (PREEMPT AND ABORT).
    pub(crate) fn resets_of(&self, nexus: &Nexus) -> u64 {
        self.resets().wrapping_add(nexus.ended())
    }

    /// Whether somebody has ended a task of `nexus` since its admission:
    /// nobody hears of it, and nothing of it may reach the disk any more.
    pub fn is_void(&self, nexus: &Nexus, work: &Work) -> bool {
        self.resets_of(nexus) != work.resets
    }

    /// Keeps reservations that are to outlive the server (APTPL) with
    /// `keeper`, and goes on from what it saved last. For a unit that no
    /// session has used; the error says what is wrong with `saved`.
    pub fn keep_reservations(
        &self,
        keeper: Arc<dyn ReservationKeeper>,
        saved: Option<&[u8]>,
    ) -> Result<(), String> {
        self.state.reservations.keep(keeper, saved)
    }

    /// Takes a piece of a streamed command's data, `offset` bytes into it.
    pub fn put(&self, work: &Work, offset: u64, data: &[u8]) -> Result<(), Sense> {
        let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
        if offset.checked_add(bytes).is_none_or(|end| end > work.bytes) {
            return Err(Sense::INCORRECT_AMOUNT_OF_DATA);
        }
        let at = work.offset + offset;
        match work.command {
            Command::Write { .. } => self.write(at, data),
            Command::WriteAndVerify { compare, .. } => {
                self.write(at, data)?;
                match compare {
                    true => self.compare(at, data, offset),
                    false => Ok(()),
                }
            }
            Command::OrWrite { .. } => self.combine(at, data),
            Command::Verify { .. } => self.compare(at, data, offset),
            _ => Err(Sense::INCORRECT_AMOUNT_OF_DATA),
        }
    }

    /// Fills `buffer` with data of a READ, from `offset` bytes into it.
    pub fn read(&self, work: &Work, offset: u64, buffer: &mut [u8]) -> Result<(), Sense> {
        Ok(self.disk.read(work.offset + offset, buffer)?)
    }

    /// Says that mapped bytes were not there when they were to be sent: a
    /// file has become shorter, or its medium fails. From now on every read
    /// goes through the disk, which can say so.
    pub fn lose_mapping(&self) {
        self.has_lost_mapping.store(true, Ordering::Relaxed);
    }

    /// Appends where data of a READ lies mapped; `false` when some does not.
    pub fn segments<'a>(
        &'a self,
        work: &Work,
        offset: u64,
        bytes: u64,
        segments: &mut Vec<Segment<'a>>,
    ) -> Result<bool, Sense> {
        if self.has_lost_mapping.load(Ordering::Relaxed) {
            return Ok(false);
        }
        Ok(self.disk.segments(work.offset + offset, bytes, segments)?)
    }

    /// Says that a READ's data will be sent soon.
    pub fn will_need(&self, work: &Work) {
        self.disk.will_need(work.offset, work.bytes);
    }

    /// Which layout the sense of this unit travels in.
    pub fn sense_format(&self) -> SenseFormat {
        match self.is(Condition::DESCRIPTOR_SENSE) {
            true => SenseFormat::Descriptor,
            false => SenseFormat::Fixed,
        }
    }

    fn is(&self, condition: Condition) -> bool {
        self.state.conditions.now().has(condition)
    }

    /// Whether the unit knows the commands of a family.
    fn offers(&self, family: Family) -> bool {
        match family {
            // What a drive knows is decided when it is parsed.
            _ if self.is_optical() => true,
            Family::Primary => true,
            Family::Disk => true,
            Family::Atomic => self.shape().device == Device::Disk && self.max_atomic_bytes() > 0,
            // What is overwritten in memory is gone, and so is what is freed.
            Family::Overwrite => {
                let is_disk = self.shape().device == Device::Disk;
                is_disk && self.disk.durability() != Durability::Volatile
            }
            Family::Sanitize => self.offers(Family::Overwrite) || self.offers(Family::Thin),
            Family::Removable => self.shape().medium == Medium::Removable,
            Family::Thin => self.is_thin(),
        }
    }

    fn is_optical(&self) -> bool {
        self.shape().device == Device::Optical
    }

    /// The longest WRITE ATOMIC.
    fn max_atomic_bytes(&self) -> u64 {
        let limit = MAX_ATOMIC_BLOCKS * self.block_bytes();
        let atomic = self.disk.atomic_write_bytes().min(limit);
        atomic - atomic % self.block_bytes()
    }

    /// Whether initiators may give space back.
    fn is_thin(&self) -> bool {
        self.shape().provisioning == Provisioning::OfDisk && self.disk.is_thin()
    }

    /// Whether initiators may write.
    fn access(&self) -> Access {
        match self.shape().access {
            Access::ReadOnly => Access::ReadOnly,
            Access::ReadWrite => self.disk.access(),
        }
    }

    fn block_bytes(&self) -> u64 {
        u64::from(self.geometry.logical_block_bytes)
    }

    fn block_count(&self) -> u64 {
        self.geometry.size_bytes / self.block_bytes()
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), Sense> {
        let _among_others = self.among_others()?;
        self.disk.write(offset, data).map_err(Sense::while_writing)
    }

    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), Sense> {
        let _among_others = self.among_others()?;
        self.disk.unmap(offset, bytes).map_err(Sense::while_writing)
    }

    /// To be held while the disk is changed; refused while it is sanitized.
    fn among_others(&self) -> Result<RwLockReadGuard<'_, ()>, Sense> {
        let exclusion = &self.state.exclusion;
        let held = exclusion.read().unwrap_or_else(PoisonError::into_inner);
        match self.is(Condition::SANITIZING) {
            true => Err(self.sanitizing()),
            false => Ok(held),
        }
    }

    /// Until it is dropped, nobody else changes the disk.
    fn alone(&self) -> Result<RwLockWriteGuard<'_, ()>, Sense> {
        let exclusion = &self.state.exclusion;
        let held = exclusion.write().unwrap_or_else(PoisonError::into_inner);
        match self.is(Condition::SANITIZING) {
            true => Err(self.sanitizing()),
            false => Ok(held),
        }
    }

    /// Waits for the changes of the disk that are under way: those that begin
    /// later know what is so by now.
    fn outlast_changes(&self) {
        let exclusion = &self.state.exclusion;
        drop(exclusion.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Sets the bits of `data` that are set, and leaves the others (ORWRITE).
    fn combine(&self, offset: u64, data: &[u8]) -> Result<(), Sense> {
        let mut stored = vec![0u8; data.len()];
        let _alone = self.alone()?;
        self.disk.read(offset, &mut stored)?;
        for (stored, given) in stored.iter_mut().zip(data) {
            *stored |= given;
        }
        self.disk
            .write(offset, &stored)
            .map_err(Sense::while_writing)
    }

    /// Compares the disk at `offset` with `data`, which lies `at` bytes into
    /// the command's data.
    fn compare(&self, offset: u64, data: &[u8], at: u64) -> Result<(), Sense> {
        let mut stored = vec![0u8; data.len()];
        self.disk.read(offset, &mut stored)?;
        match stored.iter().zip(data).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(first) => Err(Sense::miscompare_at(at + u64::try_from(first).unwrap_or(0))),
        }
    }
}

/// What a disk looks like through a device of this type: the blocks of a drive
/// are of 2048 bytes whatever lies below, and what is less than one at its end
/// is not shown.
fn shown(disk: Geometry, device: Device) -> Geometry {
    match device {
        Device::Disk => disk,
        Device::Optical => Geometry {
            size_bytes: disk.size_bytes - disk.size_bytes % u64::from(optical::BLOCK_BYTES),
            logical_block_bytes: optical::BLOCK_BYTES,
            physical_block_bytes: optical::BLOCK_BYTES,
        },
    }
}

/// Whether what lies below a removable unit is no medium.
fn is_empty(geometry: Geometry, shape: Shape) -> bool {
    shape.medium == Medium::Removable && geometry.size_bytes == 0
}

#[cfg(test)]
mod tests;
