//! Own disks that machines boot from: written in place, over all generations.
//!
//! Which generation writes which disk is put down durably at the switch, with
//! a note whether writes may have been answered that are not flushed. The note
//! is what tells, after the loss of the host, whether the page cache of a
//! machine that lived on still matches its disk.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, bail};
use disk::{Access, Disk, DiskError, Durability, Extent, Geometry, Segment, SharedDisk, Space};
use uuid::Uuid;

use crate::inventory::{DirectBoot, Inventory, Machine, OwnDisk};

/// The own disks of machines.
pub(super) struct OwnDisks {
    inventory: Arc<Inventory>,
}

impl OwnDisks {
    pub(super) fn new(inventory: Arc<Inventory>) -> OwnDisks {
        OwnDisks { inventory }
    }

    /// Whether a disk that nobody has open can be opened.
    pub(super) fn check(&self, disk: &OwnDisk) -> anyhow::Result<()> {
        self.open(disk).map(drop)
    }

    fn open(&self, disk: &OwnDisk) -> anyhow::Result<SharedDisk> {
        self.inventory
            .open_own_disk(disk, Access::ReadWrite)
            .with_context(|| format!("opening disk {}", disk.name))
    }

    /// Opens a machine's disk for a boot generation. May come again for the
    /// same generation, after a crash or an error.
    pub(super) fn begin(
        &self,
        machine: &Machine,
        fact: &OwnDisk,
        generation: u64,
    ) -> anyhow::Result<Direct> {
        let disk = self.open(fact)?;
        // What the last generation wrote is what this one reads: durable first.
        disk.flush()
            .with_context(|| format!("flushing disk {}", fact.name))?;
        let boot = DirectBoot {
            disk: fact.id,
            generation,
            unflushed_in: None,
        };
        self.inventory.put_direct_boot(machine.id, &boot)?;
        self.direct(machine, disk, boot)
    }

    /// Opens the disk that the current generation writes, whatever is assigned
    /// to the machine by now; `None` when it writes none.
    pub(super) fn reopen(
        &self,
        machine: &Machine,
        generation: u64,
    ) -> anyhow::Result<Option<(OwnDisk, Direct)>> {
        let boot = self.inventory.direct_boot(machine.id)?;
        let Some(boot) = boot.filter(|boot| boot.generation == generation) else {
            return Ok(None);
        };
        // What the machine holds in its page cache must still match its disk.
        if boot
            .unflushed_in
            .is_some_and(|kernel| kernel_boot().ok() != Some(kernel))
        {
            bail!(
                "the server itself went down under boot generation {generation}, \
                 and writes it had answered may be gone; the machine must boot again"
            );
        }
        let fact = self.inventory.own_disk_of(boot.disk)?;
        let disk = self.open(&fact)?;
        let direct = self.direct(machine, disk, boot)?;
        Ok(Some((fact, direct)))
    }

    fn direct(
        &self,
        machine: &Machine,
        disk: SharedDisk,
        boot: DirectBoot,
    ) -> anyhow::Result<Direct> {
        Ok(Direct {
            disk,
            note: Note {
                inventory: Arc::clone(&self.inventory),
                machine: machine.id,
                boot,
                kernel: kernel_boot().context("asking which boot of the kernel this is")?,
            },
            settled: RwLock::new(()),
            is_settled: AtomicBool::new(boot.unflushed_in.is_none()),
        })
    }
}

/// An own disk in the hands of one boot generation.
pub(super) struct Direct {
    disk: SharedDisk,
    note: Note,
    /// Shared by who writes, held alone by who changes the note.
    settled: RwLock<()>,
    /// Whether the note says that nothing is unflushed.
    is_settled: AtomicBool,
}

/// What is durably known of the boot that writes the disk.
struct Note {
    inventory: Arc<Inventory>,
    machine: Uuid,
    boot: DirectBoot,
    kernel: [u8; 16],
}

impl Note {
    fn put(&self, unflushed_in: Option<[u8; 16]>) -> Result<(), DiskError> {
        let boot = DirectBoot {
            unflushed_in,
            ..self.boot
        };
        self.inventory
            .put_direct_boot(self.machine, &boot)
            .map_err(|error| DiskError::Io {
                context: "noting that the disk is written".to_owned(),
                source: std::io::Error::other(error.to_string()),
            })
    }
}

impl Direct {
    /// Makes everything durable that was answered, and notes it. The next write
    /// pays for that with one `fdatasync`.
    pub(super) fn settle(&self) -> Result<(), DiskError> {
        if self.is_settled.load(Ordering::Acquire) {
            return Ok(());
        }
        // The long part, beside writers; then what they added meanwhile.
        self.disk.flush()?;
        let _alone = self.settled.write().unwrap_or_else(PoisonError::into_inner);
        self.disk.flush()?;
        self.note.put(None)?;
        self.is_settled.store(true, Ordering::Release);
        Ok(())
    }

    /// Does what changes the disk, once it is noted that it is being changed.
    fn change(
        &self,
        change: impl FnOnce(&dyn Disk) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        loop {
            let _shared = self.settled.read().unwrap_or_else(PoisonError::into_inner);
            if !self.is_settled.load(Ordering::Acquire) {
                return change(&*self.disk);
            }
            drop(_shared);
            let _alone = self.settled.write().unwrap_or_else(PoisonError::into_inner);
            if self.is_settled.load(Ordering::Acquire) {
                self.note.put(Some(self.note.kernel))?;
                self.is_settled.store(false, Ordering::Release);
            }
        }
    }
}

impl Disk for Direct {
    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn access(&self) -> Access {
        self.disk.access()
    }

    fn durability(&self) -> Durability {
        self.disk.durability()
    }

    fn is_thin(&self) -> bool {
        self.disk.is_thin()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.disk.read(offset, buffer)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.change(|disk| disk.write(offset, data))
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.disk.flush()
    }

    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.change(|disk| disk.unmap(offset, bytes))
    }

    fn segments<'a>(
        &'a self,
        offset: u64,
        bytes: u64,
        segments: &mut Vec<Segment<'a>>,
    ) -> Result<bool, DiskError> {
        self.disk.segments(offset, bytes, segments)
    }

    fn extent(&self, offset: u64, bytes: u64) -> Result<Extent, DiskError> {
        self.disk.extent(offset, bytes)
    }

    fn space(&self) -> Option<Space> {
        self.disk.space()
    }

    fn atomic_write_bytes(&self) -> u64 {
        self.disk.atomic_write_bytes()
    }

    fn will_need(&self, offset: u64, bytes: u64) {
        self.disk.will_need(offset, bytes);
    }
}

/// Which boot of the kernel this is; another one has another page cache.
fn kernel_boot() -> std::io::Result<[u8; 16]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let id = Uuid::parse_str(text.trim()).map_err(std::io::Error::other)?;
    Ok(id.into_bytes())
}

#[cfg(test)]
mod tests;
