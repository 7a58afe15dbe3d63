//! Golden images: immutable, versioned disks under `DATA/images`.
//!
//! `NAME/vNNN/disk.raw` (read-only) and what is known of it beside it
//! (`manifest`); no database is needed to find them. A version is built in a
//! temporary directory and published by one rename. Published, it never
//! changes; what is found to have changed all the same is refused (`damage`).

mod current;
mod damage;
mod manifest;
mod verify;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use disk::BaseId;
use disk::image::Damage;
use jiff::Timestamp;
use uuid::Uuid;

use super::machine::nearest;
use super::{Assignment, Error, Inventory, Name, Result, held, now, sync_directory};
#[cfg(test)]
pub(crate) use manifest::crcs;
pub(crate) use manifest::{CRC_CHUNK_BYTES, Checksums, hex};
use manifest::{Manifest, read_image};
pub(crate) use verify::{ScrubPace, Verification};
#[cfg(test)]
pub(super) use writer::HOLE_BYTES;
pub(super) use writer::{Part, VersionWriter, write_sparse};

/// One version of a golden image.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// Name, shared by its versions.
    pub(crate) name: Name,
    /// Version, from 1.
    pub(crate) version: u32,
    /// Of this version; an overlay's head names it.
    pub(crate) uuid: Uuid,
    /// Size of the disk, a multiple of `logical_block_bytes`.
    pub(crate) size_bytes: u64,
    /// The unit in which the disk is addressed.
    pub(crate) logical_block_bytes: u32,
    /// The version it was committed from, if it was.
    pub(crate) parent: Option<u32>,
    /// SHA-256 of the whole content.
    pub(crate) sha256: [u8; 32],
    /// The operator's words.
    pub(crate) comment: String,
    /// When it was published.
    pub(crate) created: Timestamp,
    /// Its directory, `DATA/images/NAME/vNNN`.
    pub(crate) directory: PathBuf,
    /// What of it is no longer what was published.
    pub(crate) damage: Arc<Damage>,
}

/// A version is known by its UUID.
impl PartialEq for Image {
    fn eq(&self, other: &Image) -> bool {
        (&self.name, self.version, self.uuid) == (&other.name, other.version, other.uuid)
    }
}

impl Image {
    /// The read-only raw disk.
    pub(crate) fn disk_path(&self) -> PathBuf {
        disk::image::disk_path(&self.directory)
    }

    /// How an overlay's head names it.
    pub(crate) fn base_id(&self) -> BaseId {
        BaseId {
            uuid: *self.uuid.as_bytes(),
            sha256: self.sha256,
            size_bytes: self.size_bytes,
        }
    }

    /// What it takes of the file system: less than its size, being sparse.
    pub(crate) fn stored_bytes(&self) -> u64 {
        fs::metadata(self.disk_path()).map_or(0, |found| found.blocks() * 512)
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

/// `win11` (its current version) or `win11@3`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ImageRef {
    /// Image.
    pub(crate) name: Name,
    /// Version; `None` is the current one.
    pub(crate) version: Option<u32>,
}

impl ImageRef {
    /// Reads `NAME` or `NAME@VERSION`.
    pub(crate) fn parse(text: &str) -> Result<ImageRef> {
        let (name, version) = match text.split_once('@') {
            None => (text, None),
            Some((name, version)) => {
                let number = version.strip_prefix('v').unwrap_or(version);
                let number = number
                    .parse()
                    .ok()
                    .filter(|number| *number > 0)
                    .ok_or_else(|| {
                        Error::Invalid(format!(
                            "{text:?} names no version: write {name}@3 for version 3, \
                             or {name} for the current one"
                        ))
                    })?;
                (name, Some(number))
            }
        };
        Ok(ImageRef {
            name: Name::parse(name)?,
            version,
        })
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some(version) => write!(f, "{}@{version}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

impl Inventory {
    /// Every version of every image, by name and version.
    pub(crate) fn images(&self) -> Vec<Arc<Image>> {
        let found = self.images.hold();
        let all = found.0.values();
        all.flat_map(|of_name| of_name.all.values().cloned())
            .collect()
    }

    /// Every version of an image, the lowest first.
    pub(crate) fn versions(&self, name: &Name) -> Result<Vec<Arc<Image>>> {
        let found = self.images.hold();
        Ok(found.of_name(name)?.all.values().cloned().collect())
    }

    /// Makes a version the current one; `None` is the one before the current.
    /// Machines follow at their next boot. Answers it, and which it was.
    pub(crate) fn make_current(
        &self,
        name: &Name,
        version: Option<u32>,
    ) -> Result<(Arc<Image>, Option<u32>)> {
        let _changing = held(&self.images.changing);
        let (image, was) = {
            let found = self.images.hold();
            let versions = found.of_name(name)?;
            let was = versions.current();
            let version = match version {
                Some(version) => version,
                None => versions.before(was).ok_or_else(|| {
                    Error::Conflict(format!(
                        "image {name} has no version before the current one: name the version \
                         you mean (`diskless image versions {name}` shows them)"
                    ))
                })?,
            };
            (found.version(name, version)?, was)
        };
        current::write(&self.images.root.join(name.as_str()), Some(image.version))?;
        self.images.choose(name, Some(image.version));
        Ok((image, was))
    }

    /// The image meant: the version named, or the current one; a sentence when
    /// there is none.
    pub(crate) fn image(&self, meant: &ImageRef) -> Result<Arc<Image>> {
        self.images.hold().resolve(meant)
    }

    /// Removes one version, or every version; refused while a machine or an
    /// overlay uses it. Answers what was removed.
    pub(crate) fn remove_image(&self, meant: &ImageRef) -> Result<Vec<Arc<Image>>> {
        let _changing = held(&self.images.changing);
        let removed: Vec<Arc<Image>> = {
            let mut found = self
                .images
                .found
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            let versions = match meant.version {
                Some(_) => vec![found.resolve(meant)?],
                None => found.of_name(&meant.name)?.all.values().cloned().collect(),
            };
            self.require_unused(&found, &versions)?;
            // Nobody finds it from here on, so nobody begins to use it.
            for image in &versions {
                found.forget(image);
            }
            versions
        };
        for image in &removed {
            self.images.remove_files(image)?;
        }
        Ok(removed)
    }

    /// Refuses when a machine or an overlay uses one of `versions`.
    fn require_unused(&self, found: &Found, versions: &[Arc<Image>]) -> Result<()> {
        let (machines, overlays) = self
            .store
            .read(|facts| Ok((facts.machines()?, facts.overlays()?)))?;
        let heads = self.overlay_heads()?;
        for image in versions {
            let assigned = machines.iter().find(|machine| {
                let meant = machine.assignment.as_ref().and_then(Assignment::image);
                meant.is_some_and(|meant| found.resolve(meant).is_ok_and(|i| i == *image))
            });
            if let Some(machine) = assigned {
                return Err(Error::Conflict(format!(
                    "{image} is in use: machine {name} boots it; give {name} another image with \
                     `diskless machine set {name} --image OTHER`, then remove it",
                    name = machine.name
                )));
            }
            let above = overlays
                .iter()
                .find(|o| o.image == image.name && o.version == image.version);
            if let Some(overlay) = above {
                let whose = machines
                    .iter()
                    .find(|machine| machine.id == overlay.machine)
                    .map_or("a removed machine", |machine| machine.name.as_str());
                return Err(Error::Conflict(format!(
                    "{image} is in use: an overlay of machine {whose} lies above it; remove that \
                     first with `diskless overlay remove {}`",
                    overlay.uuid
                )));
            }
            // Also one that is moving to this version, or that is all that is
            // left of a lost database.
            let uuid = *image.uuid.as_bytes();
            if let Some((path, _)) = heads.iter().find(|(_, base)| base.uuid == uuid) {
                return Err(Error::Conflict(format!(
                    "{image} is in use: {} lies above it; remove that first",
                    path.display()
                )));
            }
        }
        Ok(())
    }
}

/// The images found under `DATA/images`.
pub(super) struct Images {
    root: PathBuf,
    found: RwLock<Found>,
    /// Held while directories of versions are made or removed.
    changing: Mutex<()>,
}

/// Every version of every image.
#[derive(Default)]
pub(super) struct Found(BTreeMap<Name, Versions>);

/// The versions of one image.
#[derive(Default)]
struct Versions {
    all: BTreeMap<u32, Arc<Image>>,
    /// The one the operator went back to; it need not be there.
    chosen: Option<u32>,
}

impl Versions {
    fn current(&self) -> Option<u32> {
        self.chosen.or_else(|| self.all.keys().next_back().copied())
    }

    /// The highest below `version`.
    fn before(&self, version: Option<u32>) -> Option<u32> {
        self.all.range(..version?).next_back().map(|(v, _)| *v)
    }
}

impl Found {
    fn add(&mut self, image: Arc<Image>) {
        let versions = self.0.entry(image.name.clone()).or_default();
        versions.all.insert(image.version, image);
    }

    fn forget(&mut self, image: &Image) {
        if let Some(versions) = self.0.get_mut(&image.name) {
            versions.all.remove(&image.version);
            if versions.chosen == Some(image.version) {
                versions.chosen = None;
            }
            if versions.all.is_empty() {
                self.0.remove(&image.name);
            }
        }
    }

    /// The versions of an image; a sentence when there are none.
    fn of_name(&self, name: &Name) -> Result<&Versions> {
        self.0.get(name).ok_or_else(|| {
            let near = nearest(name, self.0.keys().map(Name::as_str));
            Error::NotFound(format!(
                "there is no image {:?}{}",
                name.as_str(),
                near.map_or_else(
                    || ": `diskless image list` shows them".to_owned(),
                    |near| format!("; did you mean {near}?")
                )
            ))
        })
    }

    /// The image meant; a sentence when there is none.
    pub(super) fn resolve(&self, meant: &ImageRef) -> Result<Arc<Image>> {
        let versions = self.of_name(&meant.name)?;
        let version = meant.version.or_else(|| versions.current());
        let image = version.and_then(|version| versions.all.get(&version));
        image.cloned().ok_or_else(|| {
            let have: Vec<String> = versions.all.keys().map(u32::to_string).collect();
            let (name, have) = (&meant.name, have.join(", "));
            Error::NotFound(match (meant.version, version) {
                (None, Some(chosen)) => format!(
                    "the current version of image {name} ({chosen}) is not there: put it back, or \
                     choose another of {have} with `diskless image rollback {name} VERSION`"
                ),
                _ => format!("there is no {meant}: image {name} has version {have}"),
            })
        })
    }

    /// One version of an image.
    pub(super) fn version(&self, name: &Name, version: u32) -> Result<Arc<Image>> {
        self.resolve(&ImageRef {
            name: name.clone(),
            version: Some(version),
        })
    }

    /// Refuses an image that has been removed meanwhile.
    pub(super) fn require(&self, image: &Image) -> Result<()> {
        let found = self.version(&image.name, image.version)?;
        if found.uuid != image.uuid {
            return Err(Error::Conflict(format!(
                "{image} has been replaced meanwhile"
            )));
        }
        Ok(())
    }
}

/// Beginning of the name of a directory that is being made or removed.
const TEMPORARY_PREFIX: &str = ".tmp-";

impl Images {
    /// Finds the images under `root`; removes what an interrupted import or
    /// removal left. A version that cannot be read is said in the log and left
    /// alone.
    pub(super) fn open(root: PathBuf) -> Result<Images> {
        let mut found = Found::default();
        for directory in directories(&root)? {
            let file_name = file_name(&directory);
            if file_name.starts_with(TEMPORARY_PREFIX) {
                fs::remove_dir_all(&directory).map_err(|e| {
                    Error::Failed(format!("cannot remove {}: {e}", directory.display()))
                })?;
                continue;
            }
            let Ok(name) = Name::parse(&file_name) else {
                tracing::warn!("{} is no image: left alone", directory.display());
                continue;
            };
            for version in directories(&directory)? {
                match read_image(&name, &version) {
                    Ok(image) => found.add(Arc::new(image)),
                    Err(error) => tracing::warn!("image left out: {error}"),
                }
            }
            let chosen = current::read(&directory);
            if let Some(versions) = found.0.get_mut(&name) {
                versions.chosen = chosen;
            }
        }
        Ok(Images {
            root,
            found: RwLock::new(found),
            changing: Mutex::new(()),
        })
    }

    /// The images, unchanged while the answer is held.
    pub(super) fn hold(&self) -> RwLockReadGuard<'_, Found> {
        self.found.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes which version was chosen.
    fn choose(&self, name: &Name, version: Option<u32>) {
        let mut found = self.found.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(versions) = found.0.get_mut(name) {
            versions.chosen = version;
        }
    }

    /// Makes a directory to build a version in; gone at the next start unless
    /// it is published.
    pub(super) fn temporary_directory(&self) -> Result<PathBuf> {
        let path = self
            .root
            .join(format!("{TEMPORARY_PREFIX}{}", Uuid::new_v4()));
        fs::create_dir(&path)
            .map_err(|e| Error::Failed(format!("cannot make {}: {e}", path.display())))?;
        Ok(path)
    }

    /// Publishes what was built in `directory` (a synced `disk.raw`, read-only)
    /// as the next version of its image, which becomes the current one.
    pub(super) fn publish(&self, directory: &Path, content: Content) -> Result<Arc<Image>> {
        let _changing = held(&self.changing);
        let home = self.root.join(content.name.as_str());
        let failed = |what: &Path, e: io::Error| {
            Error::Failed(format!("cannot publish {}: {e}", what.display()))
        };
        let made_home = match fs::create_dir(&home) {
            Ok(()) => true,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => false,
            Err(e) => return Err(failed(&home, e)),
        };
        let publish = || {
            // Damaged versions, which are not in the list, keep their numbers too.
            let last = directories(&home)?
                .iter()
                .filter_map(|path| version_of(path))
                .max();
            let version = last.unwrap_or(0) + 1;
            let target = home.join(format!("v{version:03}"));
            let image = Image {
                name: content.name.clone(),
                version,
                uuid: Uuid::new_v4(),
                size_bytes: content.size_bytes,
                logical_block_bytes: LOGICAL_BLOCK_BYTES,
                parent: content.parent,
                sha256: content.sha256,
                comment: content.comment.clone(),
                created: now(),
                directory: target.clone(),
                damage: Arc::default(),
            };
            Manifest::of(&image, content.checksums).write(directory)?;
            sync_directory(directory)
                .and_then(|()| fs::rename(directory, &target))
                .and_then(|()| sync_directory(&home))
                .and_then(|()| sync_directory(&self.root))
                .map_err(|e| failed(&target, e))?;
            let image = Arc::new(read_image(&content.name, &target)?);
            let mut found = self.found.write().unwrap_or_else(PoisonError::into_inner);
            found.add(Arc::clone(&image));
            // What is published is current, also after the operator had gone back.
            match (current::write(&home, None), found.0.get_mut(&content.name)) {
                (Ok(()), Some(versions)) => versions.chosen = None,
                (Err(error), _) => tracing::error!(
                    %image, %error,
                    "published, but an earlier version stays current: `diskless image rollback \
                     {} {}` makes it current",
                    image.name, image.version
                ),
                (Ok(()), None) => {}
            }
            Ok(image)
        };
        let published = publish();
        if published.is_err() && made_home {
            // Fails when something is in it, which is right.
            let _ = fs::remove_dir(&home);
        }
        published
    }

    /// Removes the files of a version that has been forgotten.
    fn remove_files(&self, image: &Image) -> Result<()> {
        let failed = |e: io::Error| {
            Error::Failed(format!("cannot remove {}: {e}", image.directory.display()))
        };
        let aside = self
            .root
            .join(format!("{TEMPORARY_PREFIX}{}", Uuid::new_v4()));
        if let Err(e) = fs::rename(&image.directory, &aside) {
            let mut found = self.found.write().unwrap_or_else(PoisonError::into_inner);
            found.add(Arc::new(image.clone()));
            return Err(failed(e));
        }
        if let Some(home) = image.directory.parent() {
            if current::read(home) == Some(image.version) {
                current::write(home, None)?;
            }
            // Fails while other versions are in it, which is right.
            let _ = fs::remove_dir(home);
        }
        sync_directory(&self.root).map_err(failed)?;
        if let Err(e) = fs::remove_dir_all(&aside) {
            tracing::warn!("cannot remove {} yet: {e}", aside.display());
        }
        Ok(())
    }
}

/// What is published: what the copy of a disk has found out about it.
pub(super) struct Content {
    /// Image it becomes a version of.
    pub(super) name: Name,
    /// A multiple of [`LOGICAL_BLOCK_BYTES`].
    pub(super) size_bytes: u64,
    /// Of the whole content.
    pub(super) sha256: [u8; 32],
    /// Of each [`CRC_CHUNK_BYTES`]; the last may cover less.
    pub(super) checksums: Checksums,
    /// The version it was committed from, if it was.
    pub(super) parent: Option<u32>,
    /// The operator's words.
    pub(super) comment: String,
}

/// Blocks of golden images, as every PC's firmware can read them.
pub(super) const LOGICAL_BLOCK_BYTES: u32 = 512;

/// The version a directory `vNNN` is.
fn version_of(directory: &Path) -> Option<u32> {
    file_name(directory)
        .strip_prefix('v')?
        .parse()
        .ok()
        .filter(|version| *version > 0)
}

/// The directories inside one.
fn directories(parent: &Path) -> Result<Vec<PathBuf>> {
    let read = || -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(parent)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                found.push(entry.path());
            }
        }
        Ok(found)
    };
    read().map_err(|e| Error::Failed(format!("cannot read {}: {e}", parent.display())))
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
