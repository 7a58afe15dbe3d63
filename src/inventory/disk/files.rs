//! The files of own disks, in `DATA/disks`.
//!
//! A file is written as `.new-ID` and gets its name once the fact is put down;
//! one that goes steps aside as `.removed-ID-NAME` before its fact changes. So
//! a crash anywhere in between is undone, or done to its end, at the next
//! start ([`Disks::tidy`]), and nothing half-made has a real name.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::{FlockOperation, OFlags, SeekFrom, flock, seek};
use uuid::Uuid;

use super::{DiskKind, NewOwnDisk, OwnDisk, has_child, require_new, require_unused};
use crate::inventory::store::{Store, Survives};
use crate::inventory::{Error, Result, held, now, sync_directory};

/// Begins the name of a file that is being written.
const UNFINISHED_PREFIX: &str = ".new-";
/// Begins the name of a file that is being removed.
const ASIDE_PREFIX: &str = ".removed-";

/// Own disks: their files and the facts that go with them.
pub(in crate::inventory) struct Disks {
    root: PathBuf,
    store: Arc<Store>,
    /// Disks that are being made anew.
    busy: Mutex<BTreeSet<Uuid>>,
}

/// Keeps everybody else from making a disk anew.
pub(super) struct Busy {
    disks: Arc<Disks>,
    id: Uuid,
}

impl Drop for Busy {
    fn drop(&mut self) {
        held(&self.disks.busy).remove(&self.id);
    }
}

impl Disks {
    /// The disks in `root`; ends what a crash has interrupted.
    pub(in crate::inventory) fn open(root: PathBuf, store: Arc<Store>) -> Result<Disks> {
        let disks = Disks {
            root,
            store,
            busy: Mutex::default(),
        };
        disks.tidy()?;
        Ok(disks)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Where a disk's file lies.
    pub(super) fn path(&self, disk: &OwnDisk) -> PathBuf {
        // A path from the root stays as it is.
        self.root.join(&disk.file)
    }

    /// Where a file is written before it has its name.
    pub(super) fn unfinished_path(&self, id: Uuid) -> PathBuf {
        self.root.join(format!("{UNFINISHED_PREFIX}{id}"))
    }

    /// How long a disk's file or device is.
    pub(super) fn length(&self, disk: &OwnDisk) -> Result<u64> {
        let path = self.path(disk);
        let failed = |e: io::Error| Error::Failed(format!("cannot open {}: {e}", path.display()));
        let file = File::open(&path).map_err(failed)?;
        seek(&file, SeekFrom::End(0)).map_err(|e| failed(e.into()))
    }

    fn aside_path(&self, disk: &OwnDisk) -> PathBuf {
        let name = disk.file.display();
        self.root.join(format!("{ASIDE_PREFIX}{}-{name}", disk.id))
    }

    /// A disk that is to lie here.
    pub(super) fn draft(&self, new: NewOwnDisk, kind: DiskKind, parent: Option<Uuid>) -> OwnDisk {
        OwnDisk {
            id: Uuid::new_v4(),
            file: file_name(&new.name, kind),
            name: new.name,
            kind,
            parent,
            comment: new.comment,
            created: now(),
        }
    }

    /// Puts a new disk down, durably; above `parent` as it was found.
    pub(super) fn put_new(&self, disk: &OwnDisk, parent: Option<&OwnDisk>) -> Result<()> {
        self.store.write(Survives::Power, |facts| {
            require_new(facts, &disk.name)?;
            if let Some(parent) = parent {
                if facts.disk(parent.id)?.as_ref() != Some(parent) {
                    return Err(changed(parent));
                }
                if let Some(writer) = super::writers(facts, parent.id)?.first() {
                    return Err(Error::Conflict(format!(
                        "{writer} has begun to write {}: take it away there first",
                        parent.name
                    )));
                }
            }
            facts.put_disk(disk)
        })
    }

    /// Gives a finished file its name, with the fact that goes with it; refused,
    /// the file goes.
    pub(super) fn publish(&self, disk: &OwnDisk, parent: Option<&OwnDisk>) -> Result<()> {
        let put = self
            .require_free_name(disk)
            .and_then(|()| self.put_new(disk, parent));
        if put.is_err() {
            self.discard(disk.id);
        }
        put.and_then(|()| self.finish(disk))
    }

    fn require_free_name(&self, disk: &OwnDisk) -> Result<()> {
        let path = self.path(disk);
        if path.symlink_metadata().is_ok() {
            return Err(Error::Conflict(format!(
                "{path} is there and belongs to no disk: take it in with \
                 `diskless disk import {name} {path} --in-place`, or remove it",
                path = path.display(),
                name = disk.name
            )));
        }
        Ok(())
    }

    /// The file's name, once the fact is down: what is left undone here, the
    /// next start does.
    fn finish(&self, disk: &OwnDisk) -> Result<()> {
        let path = self.path(disk);
        fs::rename(self.unfinished_path(disk.id), &path)
            .and_then(|()| sync_directory(&self.root))
            .map_err(|e| {
                Error::Failed(format!(
                    "cannot write {}: {e}; the next start of the server does it",
                    path.display()
                ))
            })
    }

    /// Removes a file that was not finished.
    pub(super) fn discard(&self, id: Uuid) {
        let path = self.unfinished_path(id);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                tracing::warn!("cannot remove {} yet: {e}", path.display());
            }
            _ => {}
        }
    }

    /// Forgets a disk that nobody uses, and removes its file where it is ours.
    pub(super) fn remove(&self, disk: &OwnDisk) -> Result<()> {
        let forget = || {
            self.store.write(Survives::Power, |facts| {
                require_unused(facts, disk)?;
                facts.remove_disk(disk.id)
            })
        };
        if disk.is_in_place() {
            return forget();
        }
        let (path, aside) = (self.path(disk), self.aside_path(disk));
        let failed = |e: io::Error| Error::Failed(format!("cannot remove {}: {e}", path.display()));
        let stepped = match fs::rename(&path, &aside) {
            Ok(()) => sync_directory(&self.root).map(|()| true).map_err(failed)?,
            Err(e) if e.kind() == ErrorKind::NotFound => false,
            Err(e) => return Err(failed(e)),
        };
        if let Err(error) = forget() {
            if stepped && let Err(e) = fs::rename(&aside, &path) {
                tracing::error!("cannot put {} back: {e}", path.display());
            }
            return Err(error);
        }
        if stepped && let Err(e) = fs::remove_file(&aside) {
            // Forgotten already; the next start removes it.
            tracing::warn!("cannot remove {} yet: {e}", aside.display());
        }
        Ok(())
    }

    /// Gives a disk another file, finished under its id; the old one goes.
    /// Refused, the new one does.
    pub(super) fn switch(&self, old: &OwnDisk, new: &OwnDisk) -> Result<()> {
        let aside = self.aside_path(old);
        if let Err(error) = self.switch_fact(old, new, &aside) {
            self.discard(old.id);
            return Err(error);
        }
        self.finish(new)?;
        if let Err(e) = fs::remove_file(&aside) {
            tracing::warn!("cannot remove {} yet: {e}", aside.display());
        }
        Ok(())
    }

    /// Lets the old file step aside, and puts the new one down.
    fn switch_fact(&self, old: &OwnDisk, new: &OwnDisk, aside: &Path) -> Result<()> {
        let path = self.path(old);
        self.require_free_name(new)?;
        let failed =
            |e: io::Error| Error::Failed(format!("cannot replace {}: {e}", path.display()));
        fs::rename(&path, aside)
            .and_then(|()| sync_directory(&self.root))
            .map_err(failed)?;
        let switched = self.store.write(Survives::Power, |facts| {
            if facts.disk(old.id)?.as_ref() != Some(old) {
                return Err(changed(old));
            }
            // It would not find what it stands on any more.
            if let Some(above) = facts.disks_above(old.id)?.first() {
                return Err(has_child(old, above));
            }
            facts.put_disk(new)
        });
        if switched.is_err() {
            fs::rename(aside, &path).map_err(failed)?;
        }
        switched
    }

    /// Lets one at a time make a disk anew.
    pub(super) fn occupy(self: &Arc<Self>, id: Uuid) -> Result<Busy> {
        if !held(&self.busy).insert(id) {
            return Err(Error::Conflict(
                "the disk is being changed: `diskless job list` shows how far it is".to_owned(),
            ));
        }
        Ok(Busy {
            disks: Arc::clone(self),
            id,
        })
    }

    /// Excludes everybody else from a disk's file, as who writes it does; `None`
    /// where the file is gone.
    pub(super) fn lock(&self, disk: &OwnDisk) -> Result<Option<File>> {
        let path = self.path(disk);
        let file = match File::open(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            file => {
                file.map_err(|e| Error::Failed(format!("cannot open {}: {e}", path.display())))?
            }
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Conflict(format!(
                "disk {} is in use: a machine or a target has {} open",
                disk.name,
                path.display()
            ))),
            Err(e) => Err(Error::Failed(format!(
                "cannot lock {}: {e}",
                path.display()
            ))),
        }
    }

    /// Undoes, or does to its end, what a crash has interrupted. Files nobody
    /// knows are left alone: they may be all that is left of a lost state.db.
    fn tidy(&self) -> Result<()> {
        let failed =
            |e: io::Error| Error::Failed(format!("cannot tidy up {}: {e}", self.root.display()));
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(failed)? {
            names.extend(entry.map_err(failed)?.file_name().into_string());
        }
        let known = |id: Uuid| self.store.read(|facts| facts.disk(id));
        // What stepped aside goes first: where it came from may become free.
        for name in &names {
            let Some((id, from)) = name.strip_prefix(ASIDE_PREFIX).and_then(aside) else {
                continue;
            };
            let here = self.root.join(name);
            match known(id)? {
                // Its fact still names it: it was not to go yet.
                Some(disk) if disk.file == Path::new(from) && !self.path(&disk).exists() => {
                    fs::rename(&here, self.path(&disk)).map_err(failed)?;
                }
                // Nor is there another file in its place: it stays.
                Some(disk) if !self.path(&disk).exists() && !self.unfinished_path(id).exists() => {
                    tracing::warn!(
                        "disk {} has no file; {} may be it",
                        disk.name,
                        here.display()
                    );
                }
                _ => fs::remove_file(&here).map_err(failed)?,
            }
        }
        for name in &names {
            let id = name.strip_prefix(UNFINISHED_PREFIX);
            let Some(id) = id.and_then(|id| Uuid::parse_str(id).ok()) else {
                continue;
            };
            match known(id)? {
                Some(disk) if !self.path(&disk).exists() => self.finish(&disk)?,
                _ => fs::remove_file(self.root.join(name)).map_err(failed)?,
            }
        }
        Ok(())
    }
}

/// What a file takes of its file system; a device does not tell.
pub(crate) fn stored_bytes(path: &Path) -> Option<u64> {
    let found = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some(found.blocks() * 512)
}

fn changed(disk: &OwnDisk) -> Error {
    Error::Conflict(format!(
        "disk {} has been changed meanwhile: try again",
        disk.name
    ))
}

/// The name of a disk's file here.
pub(super) fn file_name(name: &str, kind: DiskKind) -> PathBuf {
    PathBuf::from(format!("{name}.{}", kind.suffix()))
}

/// The disk and the file name in the name of a file that stepped aside.
fn aside(rest: &str) -> Option<(Uuid, &str)> {
    const UUID_CHARS: usize = 36;
    let (id, name) = rest.split_at_checked(UUID_CHARS)?;
    Some((Uuid::parse_str(id).ok()?, name.strip_prefix('-')?))
}

/// Refuses what is neither a file nor a block device; `true` for the latter.
/// Asked before it is opened: opening a pipe would wait for a writer.
pub(super) fn require_disk(path: &Path) -> Result<bool> {
    let failed = |e: io::Error| Error::Invalid(format!("cannot open {}: {e}", path.display()));
    let kind = fs::metadata(path).map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Error::Invalid(format!(
            "{} is neither a file nor a block device",
            path.display()
        )));
    }
    Ok(kind.is_block_device())
}

/// Refuses what is no disk, and a block device that the kernel has in use:
/// mounted, swapped to, or part of another device.
pub(super) fn require_free(path: &Path) -> Result<()> {
    if !require_disk(path)? {
        return Ok(());
    }
    let exclusive = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::EXCL.bits().cast_signed())
        .open(path);
    match exclusive {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == ErrorKind::ResourceBusy => Err(Error::Conflict(format!(
            "{} is in use by this host: a file system on it is mounted, it is swapped to, or it \
             is part of another device (lsblk {} shows which)",
            path.display(),
            path.display()
        ))),
        Err(e) => Err(Error::Invalid(format!(
            "cannot open {}: {e}",
            path.display()
        ))),
    }
}
