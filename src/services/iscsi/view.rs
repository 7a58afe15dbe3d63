//! The disk that a machine's next boot begins with, read from outside: for who
//! looks for a kernel in it.
//!
//! A `reset` machine begins with its image, a `keep` machine with its overlay
//! as it stands (of an open one the open handle is read), a `direct` machine
//! with its own disk. What is opened for a reader is closed before anybody
//! else opens it, and when nobody has read for a while.

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use disk::{Access, Disk, DiskError, Durability, Geometry, SharedDisk};
use uuid::Uuid;

use super::overlays::Beginning;
use super::{MachineDisks, Medium, lock};
use crate::boot::{BootPlan, plan};
use crate::inventory::{Machine, Overlay};

/// How long a disk that was opened for a reader stays open without being read.
const UNREAD_BEFORE_CLOSE: Duration = Duration::from_secs(10);

/// What is open for readers of a machine's disk, and nobody else.
#[derive(Default)]
pub(super) struct Opened {
    open: Option<(Uuid, SharedDisk)>,
    read: Option<Instant>,
}

/// The place of a machine's [`Opened`]. It may be locked while a slot is, and
/// no slot is locked while it is.
pub(super) type Place = Arc<Mutex<Opened>>;

impl MachineDisks {
    /// The disk the machine's next boot begins with, read-only. Holds nothing
    /// that a login, a commit or a removal would wait for; after one of them it
    /// shows what is there then.
    pub(crate) fn view(self: &Arc<Self>, machine: &Machine) -> anyhow::Result<SharedDisk> {
        let what = match plan(machine) {
            BootPlan::Clone { image, mode } => {
                match self.overlays.beginning(machine, &image, mode)? {
                    Beginning::Image(golden) => return Ok(golden),
                    Beginning::Overlay(overlay) => What::Overlay(overlay),
                }
            }
            BootPlan::Direct(disk) => What::Own(disk),
            BootPlan::Unknown | BootPlan::Unassigned => {
                bail!("nothing is assigned to {}", machine.name)
            }
        };
        let mut view = View {
            disks: Arc::downgrade(self),
            machine: machine.id,
            what,
            geometry: Geometry {
                size_bytes: 0,
                logical_block_bytes: 512,
                physical_block_bytes: 512,
            },
        };
        view.geometry = view.with(&mut |disk| Ok(disk.geometry()))?;
        Ok(Arc::new(view))
    }

    /// Closes what was opened for readers of a machine's disk.
    pub(super) fn close_view(&self, machine: Uuid) {
        let place = lock(&self.views).get(&machine).cloned();
        if let Some(place) = place {
            lock(&place).open = None;
        }
    }

    /// Closes an own disk that was opened for readers, of any machine.
    pub(super) fn close_view_of(&self, disk: Uuid) {
        let places: Vec<Place> = lock(&self.views).values().cloned().collect();
        for place in places {
            lock(&place).open.take_if(|(id, _)| *id == disk);
        }
    }

    /// Closes what nobody has read for a while.
    pub(super) fn tend_views(&self, now: Instant) {
        let mut views = lock(&self.views);
        views.retain(|_, place| {
            let mut opened = lock(place);
            let is_read = opened
                .read
                .is_some_and(|read| now.saturating_duration_since(read) < UNREAD_BEFORE_CLOSE);
            if !is_read {
                opened.open = None;
            }
            drop(opened);
            is_read || Arc::strong_count(place) > 1
        });
    }

    fn view_place(&self, machine: Uuid) -> Place {
        Arc::clone(lock(&self.views).entry(machine).or_default())
    }
}

enum What {
    Overlay(Overlay),
    Own(Uuid),
}

/// A machine's disk as a reader sees it.
struct View {
    /// A reader does not keep the program's disks open.
    disks: Weak<MachineDisks>,
    machine: Uuid,
    what: What,
    geometry: Geometry,
}

impl View {
    fn id(&self) -> Uuid {
        match &self.what {
            What::Overlay(fact) => fact.uuid,
            What::Own(id) => *id,
        }
    }

    /// Does `work` with the disk: the one that is open for the machine, or one
    /// that is opened for readers.
    fn with<R>(
        &self,
        work: &mut dyn FnMut(&dyn Disk) -> Result<R, DiskError>,
    ) -> anyhow::Result<R> {
        let Some(disks) = self.disks.upgrade() else {
            bail!("the server is being stopped");
        };
        let place = disks.view_place(self.machine);
        {
            let mut opened = lock(&place);
            if let Some((id, disk)) = &opened.open
                && *id == self.id()
            {
                let done = work(&**disk)?;
                opened.read = Some(Instant::now());
                return Ok(done);
            }
        }
        let slot = disks.slot(self.machine);
        let Some(slot) = disks.lock_in_turn(&slot) else {
            bail!("the machine's disk is being opened: try again");
        };
        match slot.open.as_ref().map(|open| &open.medium) {
            Some(Medium::Overlay { fact, overlay }) if fact.uuid == self.id() => {
                return Ok(work(&**overlay)?);
            }
            Some(Medium::Own { fact, disk }) if fact.id == self.id() => {
                return Ok(work(&**disk)?);
            }
            _ => {}
        }
        let mut opened = lock(&place);
        // Another view of this machine may have been quicker, or have been of
        // what was assigned to it before.
        if opened.open.as_ref().is_none_or(|(id, _)| *id != self.id()) {
            opened.open = None;
            opened.open = Some((self.id(), self.open(&disks)?));
        }
        let Some((_, disk)) = &opened.open else {
            bail!("the machine's disk was closed");
        };
        let done = work(&**disk)?;
        opened.read = Some(Instant::now());
        Ok(done)
    }

    fn open(&self, disks: &MachineDisks) -> anyhow::Result<SharedDisk> {
        let inventory = &disks.site.inventory;
        match &self.what {
            What::Overlay(fact) => disks.overlays.view(fact),
            What::Own(id) => {
                let fact = inventory.own_disk_of(*id)?;
                inventory
                    .open_own_disk(&fact, Access::ReadOnly)
                    .with_context(|| format!("opening disk {}", fact.name))
            }
        }
    }

    fn refuse(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        let size_bytes = self.geometry.size_bytes;
        match offset.checked_add(bytes) {
            Some(end) if end <= size_bytes => Err(DiskError::ReadOnly),
            _ => Err(DiskError::OutOfRange {
                offset,
                bytes,
                size_bytes,
            }),
        }
    }
}

impl Disk for View {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn access(&self) -> Access {
        Access::ReadOnly
    }

    fn durability(&self) -> Durability {
        Durability::WriteBack
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let read = self.with(&mut |disk| disk.read(offset, buffer));
        read.map_err(|error| match error.downcast::<DiskError>() {
            Ok(error) => error,
            Err(other) => DiskError::Io {
                context: "reading a machine's disk from outside".to_owned(),
                source: std::io::Error::other(anyhow!("{other:#}")),
            },
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.refuse(offset, data.len() as u64)
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.refuse(offset, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{OverlayMode, note};
    use crate::services::tests::{Lab, read, write};

    /// The byte a block is filled with.
    fn byte(view: &SharedDisk, block: u64) -> u8 {
        let mut buffer = [0; 4096];
        view.read(block * 4096, &mut buffer).unwrap();
        assert!(buffer.iter().all(|byte| *byte == buffer[0]));
        buffer[0]
    }

    fn lab(mode: OverlayMode) -> (Lab, Machine) {
        let lab = Lab::new();
        lab.image("debian", 1);
        let pc = lab.machine("pc1", 1, "debian", mode);
        (lab, pc)
    }

    fn view(lab: &Lab, pc: &Machine) -> SharedDisk {
        lab.disks().view(pc).unwrap()
    }

    #[test]
    fn a_reset_machine_begins_with_its_image_whatever_it_has_written() {
        let (lab, pc) = lab(OverlayMode::Reset);
        assert_eq!(byte(&view(&lab, &pc), 3), 1);
        let (_, session) = lab.boot(&pc);
        write(&session, 3, 7);
        assert_eq!(byte(&view(&lab, &pc), 3), 1);
        lab.image("debian", 2);
        assert_eq!(byte(&view(&lab, &pc), 3), 2, "the newest version");
    }

    #[test]
    fn a_kept_overlay_is_read_as_it_is_open_or_closed() {
        let (mut lab, pc) = lab(OverlayMode::Keep);
        assert_eq!(byte(&view(&lab, &pc), 3), 1, "it has none yet");
        let (_, session) = lab.boot(&pc);
        write(&session, 3, 7);
        let seen = view(&lab, &pc);
        assert_eq!((byte(&seen, 3), byte(&seen, 4)), (7, 1));
        write(&session, 4, 8);
        assert_eq!(byte(&seen, 4), 8);
        drop((seen, session));
        lab.restart();
        lab.image("debian", 2);
        let seen = view(&lab, &pc);
        assert_eq!(
            (byte(&seen, 3), byte(&seen, 5)),
            (7, 1),
            "on its own version"
        );
    }

    #[test]
    fn a_reader_is_in_nobodys_way() {
        let (mut lab, pc) = lab(OverlayMode::Keep);
        let (script, session) = lab.boot(&pc);
        write(&session, 3, 7);
        drop(session);
        lab.restart();
        let seen = view(&lab, &pc);
        assert_eq!(byte(&seen, 3), 7);
        // A further login of its generation, and the next boot.
        let session = lab.log_in(&script).unwrap_or_else(|why| panic!("{why:?}"));
        write(&session, 3, 8);
        assert_eq!(byte(&seen, 3), 8);
        drop(session);
        let (_, session) = lab.boot(&pc);
        assert_eq!((read(&session, 3), byte(&seen, 3)), (8, 8));
        drop(session);
        // Whoever needs it closed.
        lab.restart();
        let seen = view(&lab, &pc);
        assert_eq!(byte(&seen, 3), 8);
        let fact = lab
            .inventory()
            .overlay_of(pc.id, "debian")
            .unwrap()
            .unwrap();
        let directory = lab.inventory().overlay_directory(fact.uuid);
        lab.disks().with_overlay(&fact, &mut |open| {
            assert!(open.is_none());
            let golden = crate::inventory::open_image(&lab.inventory().images()[0]).unwrap();
            let base = disk::Overlay::inspect(&directory).unwrap().base;
            let caching = disk::overlay::Caching::WriteBack;
            let overlay = disk::Overlay::open(&directory, golden, base, caching).unwrap();
            overlay.point(note("by a command", false).unwrap()).unwrap();
        });
        assert_eq!(byte(&seen, 3), 8);
        lab.disks().while_closed(&pc, &mut || {
            disk::Overlay::remove(&directory).unwrap();
        });
        assert!(seen.read(0, &mut [0; 512]).is_err(), "it is gone");
    }

    #[test]
    fn what_nobody_reads_is_closed() {
        let (mut lab, pc) = lab(OverlayMode::Keep);
        drop(lab.boot(&pc));
        lab.restart();
        let seen = view(&lab, &pc);
        let place = lab.disks().view_place(pc.id);
        let now = Instant::now();
        lab.disks().tend(now);
        assert!(lock(&place).open.is_some());
        lab.disks().tend(now + 2 * UNREAD_BEFORE_CLOSE);
        assert!(lock(&place).open.is_none());
        assert_eq!(byte(&seen, 3), 1);
    }

    #[test]
    fn nothing_can_be_written() {
        let (mut lab, pc) = lab(OverlayMode::Keep);
        drop(lab.boot(&pc));
        lab.restart();
        let seen = view(&lab, &pc);
        assert!(matches!(seen.write(0, &[1; 512]), Err(DiskError::ReadOnly)));
        assert!(matches!(seen.unmap(0, 512), Err(DiskError::ReadOnly)));
        assert_eq!(seen.access(), Access::ReadOnly);
        assert_eq!(byte(&seen, 0), 1);
    }
}
