//! Plain targets that the inventory keeps: what an operator adds is there at
//! once, for sessions that run as well, and after a restart.
//!
//! A unit whose file cannot be served (a disk that is not mounted yet) keeps
//! its place and says why; `rescan` tries again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use disk::{Access, Disk, DiskError, Raw};
use iscsi::{Identity, Iqn, LogicalUnit, ReservationFile, Sessions, Target};
use uuid::Uuid;

use super::unit::{Backing, open_disk, shaped};
use super::{PlainTargets, UnitOptions, product};
use crate::inventory::{
    Error, Inventory, Name, NewUnit, PlainTarget, Proof, Result, Unit, UnitFormat, UnitKind,
};
use crate::services::iscsi::lock;

/// Plain targets that the inventory keeps, being served.
pub(crate) struct KeptTargets {
    inventory: Arc<Inventory>,
    door: Arc<PlainTargets>,
    /// What iSCSI names of this site begin with.
    prefix: String,
    sessions: OnceLock<Sessions>,
    /// One change at a time. Never held by who only looks.
    changes: Mutex<()>,
    /// By the target's id.
    served: Mutex<BTreeMap<Uuid, Served>>,
}

struct Served {
    name: Name,
    target: Arc<Target>,
    /// By LUN.
    units: BTreeMap<u16, Opened>,
}

/// The file of a unit.
enum Opened {
    Disk {
        backing: Backing,
        file: FileId,
    },
    /// Why it is not served.
    Trouble(String),
}

/// A unit as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UnitState {
    /// It is served, and so large.
    Served {
        /// Of the file.
        size_bytes: u64,
    },
    /// It is not, for this reason.
    Trouble(String),
}

/// Which file it is, whatever it is called.
#[derive(Clone, Copy, PartialEq, Eq)]
struct FileId {
    is_device: bool,
    device: u64,
    inode: u64,
}

impl KeptTargets {
    /// Opens what the inventory has. What cannot be served is logged, and left
    /// out.
    pub(crate) fn restore(
        inventory: Arc<Inventory>,
        door: Arc<PlainTargets>,
        prefix: &str,
    ) -> Result<KeptTargets> {
        let targets = inventory.targets()?;
        let kept = KeptTargets {
            inventory,
            door,
            prefix: prefix.to_owned(),
            sessions: OnceLock::new(),
            changes: Mutex::default(),
            served: Mutex::default(),
        };
        for target in &targets {
            kept.serve(target)?;
            for unit in &target.units {
                if let Err(error) = kept.open_unit(target, unit) {
                    tracing::error!(
                        target_name = target.iqn,
                        lun = unit.lun,
                        %error,
                        "not served; `diskless target lun rescan` tries again"
                    );
                }
            }
            kept.heed_sharing(target);
        }
        Ok(kept)
    }

    /// The handle through which sessions are ended.
    pub(crate) fn serving(&self, sessions: Sessions) {
        let _ = self.sessions.set(sessions);
    }

    /// Adds a target without units. Without an iSCSI name it gets one of this
    /// site's.
    pub(crate) fn add_target(
        &self,
        name: Name,
        iqn: Option<&str>,
        proof: Option<Proof>,
    ) -> Result<PlainTarget> {
        let _change = lock(&self.changes);
        let iqn = self.check_iqn(&name, iqn)?;
        let target = self.inventory.add_target(name, iqn, proof)?;
        self.serve(&target)?;
        tracing::info!(target_name = target.iqn, "target added");
        Ok(target)
    }

    /// Forgets a target. Its sessions are ended with `force`, and a reason to
    /// refuse without.
    pub(crate) fn remove_target(&self, name: &str, force: bool) -> Result<()> {
        let _change = lock(&self.changes);
        let target = self.inventory.target(name)?;
        self.require_unused(&target, force)?;
        self.inventory.remove_target(target.id)?;
        self.door.remove(&target.iqn);
        if let Some(sessions) = self.sessions.get() {
            sessions.close_where(|session| session.target == target.iqn);
        }
        if let Some(served) = lock(&self.served).remove(&target.id) {
            for opened in served.units.into_values() {
                flush(opened);
            }
        }
        target
            .units
            .iter()
            .for_each(|unit| self.forget_reservations(unit));
        tracing::info!(target_name = target.iqn, "target removed");
        Ok(())
    }

    /// Adds a unit. Every session hears of it.
    pub(crate) fn add_unit(&self, target: &str, new: NewUnit) -> Result<Unit> {
        let _change = lock(&self.changes);
        let target = self.inventory.target(target)?;
        let (file, format) = match new.disk {
            Some(disk) => {
                let disk = self.inventory.own_disk_of(disk)?;
                let format = UnitFormat::of_format(disk.kind.format());
                (self.inventory.own_disk_path(&disk), format)
            }
            None => {
                let file = fs::canonicalize(&new.file).unwrap_or(new.file.clone());
                self.inventory.check_unit_file(&file, new.kind)?;
                (file, new.format)
            }
        };
        let options = UnitOptions {
            kind: new.kind,
            block_bytes: new.block_bytes,
            format,
        };
        let opened = self.open(&file, options, new.disk)?;
        let format = Some(opened.0.format);
        let is_exclusive = new.kind.is_exclusive(new.sharing);
        if is_exclusive {
            let alone = self.door.set_exclusive(&target.iqn, true);
            alone.map_err(|guests| several(&target, &guests))?;
        }
        let added = self.inventory.add_unit(
            target.id,
            NewUnit {
                file,
                format,
                ..new
            },
        );
        let unit = match added {
            Ok(unit) => unit,
            Err(error) => {
                self.heed_sharing(&target);
                return Err(error);
            }
        };
        self.attach(&target, &unit, opened)?;
        let file = unit.file.display();
        tracing::info!(target_name = target.iqn, lun = unit.lun, %file, "unit added");
        Ok(unit)
    }

    /// Forgets a unit; its file stays. Sessions of its target are a reason to
    /// refuse without `force`.
    pub(crate) fn remove_unit(&self, target: &str, lun: u16, force: bool) -> Result<()> {
        let _change = lock(&self.changes);
        let target = self.inventory.target(target)?;
        let unit = target.unit(lun)?;
        self.require_unused(&target, force)?;
        self.inventory.remove_unit(unit.id)?;
        let opened = match lock(&self.served).get_mut(&target.id) {
            Some(served) => {
                served.target.detach(lun);
                served.units.remove(&lun)
            }
            None => None,
        };
        if let Some(opened) = opened {
            flush(opened);
        }
        self.forget_reservations(unit);
        self.heed_sharing(&self.inventory.target(&target.name)?);
        tracing::info!(target_name = target.iqn, lun, "unit removed");
        Ok(())
    }

    /// Makes a unit's file larger. Every session hears of it.
    pub(crate) fn resize_unit(&self, target: &str, lun: u16, size_bytes: u64) -> Result<()> {
        let _change = lock(&self.changes);
        let target = self.inventory.target(target)?;
        let unit = target.unit(lun)?;
        let Some(raw) = self.raw(&target, unit)? else {
            return Err(Error::Conflict(format!(
                "{} is a {} file, and only a raw one grows while it is served: remove the LUN, \
                 make the file larger, and add it again",
                unit.file.display(),
                unit.format.word()
            )));
        };
        let now_bytes = raw.geometry().size_bytes;
        if size_bytes < now_bytes {
            return Err(Error::Invalid(format!(
                "LUN {lun} has {now_bytes} bytes: it can grow, and not shrink, for what is at its \
                 end would be lost"
            )));
        }
        if size_bytes > now_bytes {
            let grown = raw.grown(size_bytes).map_err(failed)?;
            self.replace(&target, unit, grown)?;
        }
        Ok(())
    }

    /// Looks how large a unit's file or drive is now, and opens one that could
    /// not be served. Every session hears of what has changed.
    pub(crate) fn rescan_unit(&self, target: &str, lun: u16) -> Result<()> {
        let _change = lock(&self.changes);
        let target = self.inventory.target(target)?;
        let unit = target.unit(lun)?;
        let raw = match self.raw(&target, unit) {
            Ok(Some(raw)) => raw,
            // A container says when it is opened how large it is.
            Ok(None) => return Ok(()),
            Err(_) => return self.open_unit(&target, unit),
        };
        if let Some(measured) = raw.measured().map_err(failed)? {
            if measured.geometry().size_bytes == 0 {
                return Err(Error::Conflict(format!(
                    "{} is empty now: there is nothing to serve",
                    unit.file.display()
                )));
            }
            self.replace(&target, unit, measured)?;
        }
        Ok(())
    }

    /// A unit as it is now.
    pub(crate) fn unit_state(&self, target: Uuid, lun: u16) -> UnitState {
        let served = lock(&self.served);
        match served
            .get(&target)
            .and_then(|served| served.units.get(&lun))
        {
            Some(Opened::Disk { backing, .. }) => UnitState::Served {
                size_bytes: backing.disk.geometry().size_bytes,
            },
            Some(Opened::Trouble(why)) => UnitState::Trouble(why.clone()),
            None => UnitState::Trouble("it has been removed".to_owned()),
        }
    }

    /// The name of the target with this iSCSI name.
    pub(crate) fn name_of(&self, iqn: &str) -> Option<String> {
        let served = lock(&self.served);
        let found = served.values().find(|served| served.target.name == iqn);
        found.map(|served| served.name.to_string())
    }

    /// How many sessions a target has.
    pub(crate) fn sessions(&self, target: &PlainTarget) -> usize {
        self.door.sessions(&target.iqn)
    }

    /// Makes durable what was written; for the end of the program, after the
    /// sessions'.
    pub(crate) fn close_all(&self) {
        for served in std::mem::take(&mut *lock(&self.served)).into_values() {
            self.door.remove(&served.target.name);
            for opened in served.units.into_values() {
                flush(opened);
            }
        }
    }

    fn check_iqn(&self, name: &Name, wanted: Option<&str>) -> Result<String> {
        // Machines' names have no dot: this is no machine's target.
        let own = format!("{}:target.{name}", self.prefix);
        let Some(wanted) = wanted else {
            return Ok(own);
        };
        let iqn = Iqn::parse(wanted)
            .map_err(|error| Error::Invalid(format!("{wanted:?}: {error}")))?
            .to_string();
        let is_machines = iqn
            .strip_prefix(&self.prefix)
            .is_some_and(|rest| rest.starts_with(':'));
        if is_machines && iqn != own {
            return Err(Error::Invalid(format!(
                "names that begin with {}: belong to machines: take another, or none, which gives \
                 {own}",
                self.prefix
            )));
        }
        Ok(iqn)
    }

    fn require_unused(&self, target: &PlainTarget, force: bool) -> Result<()> {
        match self.door.sessions(&target.iqn) {
            0 => Ok(()),
            _ if force => Ok(()),
            sessions => Err(Error::Conflict(format!(
                "{} is in use by {sessions} session{}: log out there first, or take it away from \
                 under them with --force",
                target.name,
                if sessions == 1 { "" } else { "s" }
            ))),
        }
    }

    /// Lets in one initiator at a time where a disk wants that. Nobody more is
    /// in: a target becomes exclusive before it has such a disk.
    fn heed_sharing(&self, target: &PlainTarget) {
        let is_exclusive = target.units.iter().any(Unit::is_exclusive);
        let _ = self.door.set_exclusive(&target.iqn, is_exclusive);
    }

    /// Lets a target be opened, without units yet.
    fn serve(&self, target: &PlainTarget) -> Result<()> {
        let served = Target::new(&target.iqn, []).map_err(|e| Error::Failed(e.to_string()))?;
        let served = Arc::new(served);
        self.door.add(Arc::clone(&served), target.proof.clone());
        lock(&self.served).insert(
            target.id,
            Served {
                name: target.name.clone(),
                target: served,
                units: BTreeMap::new(),
            },
        );
        Ok(())
    }

    /// Opens and attaches a unit the inventory has; on an error its place says
    /// why it is not served.
    fn open_unit(&self, target: &PlainTarget, unit: &Unit) -> Result<()> {
        let options = UnitOptions {
            kind: unit.kind,
            block_bytes: unit.block_bytes,
            format: Some(unit.format),
        };
        let opened = self
            .file_of(unit)
            .and_then(|file| self.open(&file, options, unit.disk));
        let attached = opened.and_then(|opened| self.attach(target, unit, opened));
        if let (Err(error), Some(served)) = (&attached, lock(&self.served).get_mut(&target.id)) {
            let trouble = Opened::Trouble(error.to_string());
            served.units.insert(unit.lun, trouble);
        }
        attached
    }

    /// Where a unit's file lies now.
    fn file_of(&self, unit: &Unit) -> Result<PathBuf> {
        if let Some(disk) = unit.disk {
            let disk = self.inventory.own_disk_of(disk)?;
            return Ok(self.inventory.own_disk_path(&disk));
        }
        // It may have become a link since.
        let file = fs::canonicalize(&unit.file).unwrap_or(unit.file.clone());
        self.inventory.check_unit_file(&file, unit.kind)?;
        Ok(file)
    }

    fn open(
        &self,
        file: &Path,
        options: UnitOptions,
        disk: Option<Uuid>,
    ) -> Result<(Backing, FileId)> {
        let id = FileId::of(file);
        if let Some(other) = id.and_then(|id| self.user_of(id, options.kind)) {
            return Err(Error::Conflict(format!(
                "{} is {other} already: two LUNs over one file destroy what is in it, unless both \
                 are read-only (for several initiators of one LUN: --shared)",
                file.display()
            )));
        }
        let parent_roots = match disk {
            Some(disk) => self.inventory.own_disk_parents(disk)?,
            None => Vec::new(),
        };
        let backing = open_disk(file, options, &parent_roots)
            .map_err(|e| Error::Conflict(format!("{e:#}")))?;
        let id = id.ok_or_else(|| Error::Conflict(format!("{} is gone", file.display())))?;
        Ok((backing, id))
    }

    /// Who has the file open in a way that excludes a unit of this kind.
    fn user_of(&self, file: FileId, kind: UnitKind) -> Option<String> {
        let served = lock(&self.served);
        served.values().find_map(|served| {
            let clashes = |opened: &&Opened| match opened {
                Opened::Disk {
                    backing,
                    file: other,
                } => {
                    let writes = backing.disk.access() == Access::ReadWrite;
                    *other == file && (writes || kind.is_writable())
                }
                Opened::Trouble(_) => false,
            };
            let (lun, _) = served.units.iter().find(|(_, opened)| clashes(opened))?;
            Some(format!("LUN {lun} of {}", served.target.name))
        })
    }

    fn attach(&self, target: &PlainTarget, unit: &Unit, opened: (Backing, FileId)) -> Result<()> {
        let (backing, file) = opened;
        // An own disk is recognised wherever it goes.
        let id = unit.disk.unwrap_or(unit.id);
        let identity = Identity::new(*id.as_bytes(), product(unit.kind));
        let logical_unit = shaped(Arc::clone(&backing.disk), unit.kind, identity);
        self.keep_reservations(unit, &logical_unit)?;
        let mut all = lock(&self.served);
        let served = all.get_mut(&target.id).ok_or_else(gone)?;
        served
            .target
            .attach(unit.lun, Arc::new(logical_unit))
            .map_err(|error| Error::Conflict(error.to_string()))?;
        served
            .units
            .insert(unit.lun, Opened::Disk { backing, file });
        Ok(())
    }

    /// Goes on with the reservations of before a restart (APTPL). One whose
    /// members were kept apart by them is not served without.
    fn keep_reservations(&self, unit: &Unit, logical_unit: &LogicalUnit) -> Result<()> {
        let path = self.inventory.reservations_path(unit.id);
        let file = ReservationFile::at(&path);
        let saved = file.load().map_err(|error| error.to_string());
        let kept = saved
            .and_then(|saved| logical_unit.keep_reservations(Arc::new(file), saved.as_deref()));
        kept.map_err(|why| {
            Error::Conflict(format!(
                "its reservations in {} cannot be read ({why}): if no cluster uses it any more, \
                 remove that file",
                path.display()
            ))
        })
    }

    /// Forgets the reservations of a unit that is no more.
    fn forget_reservations(&self, unit: &Unit) {
        let path = self.inventory.reservations_path(unit.id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "not removed");
            }
            _ => {}
        }
    }

    /// Puts a disk of another size in a unit's place.
    fn replace(&self, target: &PlainTarget, unit: &Unit, raw: Raw) -> Result<()> {
        let backing = Backing::of_raw(raw);
        let size_bytes = backing.disk.geometry().size_bytes;
        let mut all = lock(&self.served);
        let served = all.get_mut(&target.id).ok_or_else(gone)?;
        let before = served.target.unit(unit.lun).ok_or_else(gone)?;
        let now: LogicalUnit = before.with_disk(Arc::clone(&backing.disk));
        served
            .target
            .replace(unit.lun, Arc::new(now))
            .map_err(|error| Error::Conflict(error.to_string()))?;
        if let Some(Opened::Disk { backing: place, .. }) = served.units.get_mut(&unit.lun) {
            *place = backing;
        }
        tracing::info!(
            target_name = target.iqn,
            lun = unit.lun,
            size_bytes,
            "unit resized"
        );
        Ok(())
    }

    /// The raw disk of a unit that is served; `None` when it has another format.
    fn raw(&self, target: &PlainTarget, unit: &Unit) -> Result<Option<Arc<Raw>>> {
        let served = lock(&self.served);
        let units = served.get(&target.id).map(|served| &served.units);
        match units.and_then(|units| units.get(&unit.lun)) {
            Some(Opened::Disk { backing, .. }) => Ok(backing.raw.clone()),
            Some(Opened::Trouble(why)) => Err(Error::Conflict(format!(
                "LUN {} is not served: {why}",
                unit.lun
            ))),
            None => Err(gone()),
        }
    }
}

impl FileId {
    fn of(file: &Path) -> Option<FileId> {
        let metadata = fs::metadata(file).ok()?;
        let is_device = metadata.file_type().is_block_device();
        Some(match is_device {
            true => FileId {
                is_device,
                device: metadata.rdev(),
                inode: 0,
            },
            false => FileId {
                is_device,
                device: metadata.dev(),
                inode: metadata.ino(),
            },
        })
    }
}

fn several(target: &PlainTarget, guests: &[String]) -> Error {
    Error::Conflict(format!(
        "{} is open in several initiators ({}), which would destroy each other's file system: log \
         out all but one, or add the disk with --shared for a cluster that keeps its members apart",
        target.name,
        guests.join(", ")
    ))
}

fn flush(opened: Opened) {
    if let Opened::Disk { backing, .. } = opened
        && let Err(error) = backing.disk.flush()
    {
        tracing::error!(%error, "flushing a disk");
    }
}

fn failed(error: DiskError) -> Error {
    Error::Conflict(error.to_string())
}

fn gone() -> Error {
    Error::NotFound("it has been removed meanwhile".to_owned())
}
