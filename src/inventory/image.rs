//! Golden images: immutable, versioned disks under `DATA/images`.

//!
//! `NAME/vNNN/disk.raw` (read-only) and `manifest`, which says all that is known
//! of it; no database is needed to find them. A version is built in a temporary
//! directory and published by one rename. Published, it never changes.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::machine::nearest;
use super::{Assignment, Error, Inventory, Name, Result, held, now, sync_directory};

/// One version of a golden image.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

impl Image {
    /// The read-only raw disk.
    pub(crate) fn disk_path(&self) -> PathBuf {
        disk::image::disk_path(&self.directory)
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
    /// Version; `None` is the highest there is.
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
        found.0.values().flat_map(|v| v.values().cloned()).collect()
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
            let named = found.resolve(meant)?;
            let versions = match meant.version {
                Some(_) => vec![named],
                None => found.0[&named.name].values().cloned().collect(),
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
pub(super) struct Found(BTreeMap<Name, BTreeMap<u32, Arc<Image>>>);

impl Found {
    fn add(&mut self, image: Arc<Image>) {
        let versions = self.0.entry(image.name.clone()).or_default();
        versions.insert(image.version, image);
    }

    fn forget(&mut self, image: &Image) {
        if let Some(versions) = self.0.get_mut(&image.name) {
            versions.remove(&image.version);
            if versions.is_empty() {
                self.0.remove(&image.name);
            }
        }
    }
}

impl Found {
    /// The image meant; a sentence when there is none.
    pub(super) fn resolve(&self, meant: &ImageRef) -> Result<Arc<Image>> {
        let all = &self.0;
        let Some(versions) = all.get(&meant.name) else {
            let near = nearest(&meant.name, all.keys().map(Name::as_str));
            return Err(Error::NotFound(format!(
                "there is no image {:?}{}",
                meant.name.as_str(),
                near.map_or_else(
                    || ": `diskless image list` shows them".to_owned(),
                    |near| format!("; did you mean {near}?")
                )
            )));
        };
        let image = match meant.version {
            Some(version) => versions.get(&version),
            None => versions.values().next_back(),
        };
        image.cloned().ok_or_else(|| {
            let have: Vec<String> = versions.keys().map(u32::to_string).collect();
            Error::NotFound(format!(
                "there is no {meant}: image {} has version {}",
                meant.name,
                have.join(", ")
            ))
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

/// Name of the manifest inside a version's directory.
const MANIFEST_FILE: &str = "manifest";

/// How much of the disk one CRC covers.
pub(super) const CRC_CHUNK_BYTES: usize = 1024 * 1024;

/// Largest manifest read: that of a disk of 64 TiB has CRCs of 512 MiB; larger
/// is not ours.
const MANIFEST_MAX_BYTES: u64 = 1024 * 1024 * 1024;

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
    /// as the next version of its image.
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
            let manifest = Manifest {
                format: MANIFEST_FORMAT,
                name: content.name.to_string(),
                version,
                uuid: Uuid::new_v4(),
                size_bytes: content.size_bytes,
                logical_block_bytes: LOGICAL_BLOCK_BYTES,
                parent: None,
                sha256: hex(&content.sha256),
                crc32c_chunk_bytes: CRC_CHUNK_BYTES as u64,
                crc32c: content
                    .crc32c
                    .iter()
                    .map(|crc| format!("{crc:08x}"))
                    .collect(),
                comment: content.comment.clone(),
                created: now(),
                boot_test: None,
            };
            manifest.write(&directory.join(MANIFEST_FILE))?;
            sync_directory(directory)
                .and_then(|()| fs::rename(directory, &target))
                .and_then(|()| sync_directory(&home))
                .and_then(|()| sync_directory(&self.root))
                .map_err(|e| failed(&target, e))?;
            let image = Arc::new(read_image(&content.name, &target)?);
            let mut found = self.found.write().unwrap_or_else(PoisonError::into_inner);
            found.add(Arc::clone(&image));
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
    pub(super) crc32c: Vec<u32>,
    /// The operator's words.
    pub(super) comment: String,
}

/// Blocks of golden images, as every PC's firmware can read them.
pub(super) const LOGICAL_BLOCK_BYTES: u32 = 512;

const MANIFEST_FORMAT: u32 = 1;

/// The manifest as it lies in the file, in JSON.
#[derive(Serialize, Deserialize)]
struct Manifest {
    /// Of this file.
    format: u32,
    name: String,
    version: u32,
    uuid: Uuid,
    size_bytes: u64,
    logical_block_bytes: u32,
    parent: Option<u32>,
    sha256: String,
    crc32c_chunk_bytes: u64,
    /// Eight hex digits for each chunk, one after the other.
    crc32c: String,
    comment: String,
    created: Timestamp,
    /// What a boot of it in a test machine showed, once there was one.
    boot_test: Option<String>,
}

impl Manifest {
    fn write(&self, path: &Path) -> Result<()> {
        let write = || -> io::Result<()> {
            let mut file = fs::File::create_new(path)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.write_all(b"\n")?;
            file.sync_all()
        };
        write().map_err(|e| Error::Failed(format!("cannot write {}: {e}", path.display())))
    }

    fn read(path: &Path) -> Result<Manifest> {
        let read = || -> io::Result<Manifest> {
            let mut text = Vec::new();
            fs::File::open(path)?
                .take(MANIFEST_MAX_BYTES)
                .read_to_end(&mut text)?;
            Ok(serde_json::from_slice(&text)?)
        };
        read().map_err(|e| Error::Failed(format!("cannot read {}: {e}", path.display())))
    }
}

/// Reads one version's manifest and holds it against what lies there.
fn read_image(name: &Name, directory: &Path) -> Result<Image> {
    let path = directory.join(MANIFEST_FILE);
    let manifest = Manifest::read(&path)?;
    let wrong = |what: &str| Error::Failed(format!("{}: {what}", path.display()));
    if manifest.format != MANIFEST_FORMAT {
        return Err(wrong("written by a newer diskless"));
    }
    if manifest.name != name.as_str() || Some(manifest.version) != version_of(directory) {
        return Err(wrong("is the manifest of another image or version"));
    }
    if manifest.logical_block_bytes == 0
        || !manifest
            .size_bytes
            .is_multiple_of(u64::from(manifest.logical_block_bytes))
    {
        return Err(wrong("the size is no multiple of the block size"));
    }
    let image = Image {
        name: name.clone(),
        version: manifest.version,
        uuid: manifest.uuid,
        size_bytes: manifest.size_bytes,
        logical_block_bytes: manifest.logical_block_bytes,
        parent: manifest.parent,
        sha256: unhex(&manifest.sha256).ok_or_else(|| wrong("the sha256 is not one"))?,
        comment: manifest.comment,
        created: manifest.created,
        directory: directory.to_owned(),
    };
    let disk = image.disk_path();
    let size_bytes = fs::metadata(&disk)
        .map_err(|e| Error::Failed(format!("cannot read {}: {e}", disk.display())))?
        .len();
    if size_bytes != image.size_bytes {
        return Err(wrong(&format!(
            "disk.raw has {size_bytes} bytes, published with {}",
            image.size_bytes
        )));
    }
    Ok(image)
}

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

/// Bytes as hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests::{Site, mac};
    use crate::inventory::{MachineChange, NewMachine, OverlayMode};

    fn meant(text: &str) -> ImageRef {
        ImageRef::parse(text).unwrap()
    }

    fn boots(image: &str) -> MachineChange {
        MachineChange {
            assignment: Some(Some(Assignment::Image {
                image: meant(image),
                mode: OverlayMode::Keep,
            })),
            ..MachineChange::default()
        }
    }

    #[test]
    fn an_image_reference_is_a_name_with_or_without_a_version() {
        assert_eq!(meant("win11").version, None);
        assert_eq!(meant("win11@3").version, Some(3));
        assert_eq!(meant("win11@v003").to_string(), "win11@3");
        for bad in ["", "@", "win11@", "win11@0", "win11@x", "win11@-1", "../x"] {
            assert!(ImageRef::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_current_version_is_the_highest() {
        let mut site = Site::new();
        for version in 1..=3 {
            assert_eq!(site.new_image("debian").version, version);
        }
        site.restart();
        assert_eq!(site.image(&meant("debian")).unwrap().version, 3);
        assert_eq!(site.image(&meant("debian@2")).unwrap().version, 2);
        let refusal = site.image(&meant("debian@9")).unwrap_err().to_string();
        assert!(refusal.contains("has version 1, 2, 3"), "{refusal}");
    }

    #[test]
    fn an_image_a_machine_boots_is_not_removed() {
        let site = Site::new();
        let pc = site.new_machine("pc07", 7);
        site.new_image("debian");
        site.new_image("debian");
        site.set_machine(pc.id, boots("debian")).unwrap();
        let refusal = site
            .remove_image(&meant("debian@2"))
            .unwrap_err()
            .to_string();
        assert!(refusal.contains("machine pc07 boots it"), "{refusal}");
        assert!(site.remove_image(&meant("debian")).is_err());
        assert_eq!(site.images().len(), 2, "nothing changed");
        // Version 1 is not what it boots.
        site.remove_image(&meant("debian@1")).unwrap();
    }

    #[test]
    fn an_image_below_an_overlay_is_not_removed() {
        let site = Site::new();
        let pc = site.new_machine("pc07", 7);
        let image = site.new_image("debian");
        let overlay = site.add_overlay(pc.id, &image, OverlayMode::Keep).unwrap();
        let refusal = site.remove_image(&meant("debian")).unwrap_err().to_string();
        assert!(refusal.contains("overlay of machine pc07"), "{refusal}");
        site.remove_overlay(overlay.uuid).unwrap();
        site.remove_image(&meant("debian")).unwrap();
        assert!(site.images().is_empty());
        assert!(!image.directory.exists());
        assert!(!image.directory.parent().unwrap().exists());
    }

    #[test]
    fn a_removed_image_takes_no_overlay_and_no_machine() {
        let site = Site::new();
        let pc = site.new_machine("pc07", 7);
        let image = site.new_image("debian");
        site.remove_image(&meant("debian")).unwrap();
        assert!(site.add_overlay(pc.id, &image, OverlayMode::Keep).is_err());
        assert!(site.set_machine(pc.id, boots("debian")).is_err());
        let new = site.new_image("debian");
        assert_eq!(new.version, 1);
        assert!(site.add_overlay(pc.id, &image, OverlayMode::Keep).is_err());
        assert!(site.add_overlay(pc.id, &new, OverlayMode::Keep).is_ok());
    }

    #[test]
    fn images_are_found_without_the_database() {
        let mut site = Site::new();
        let image = site.new_image("debian");
        site.close();
        for file in ["state.db", "state.db-wal", "state.db-shm"] {
            let _ = fs::remove_file(site.data_path().join(file));
        }
        site.restart();
        assert_eq!(site.images(), [image]);
    }

    #[test]
    fn a_damaged_version_is_left_out_and_its_number_not_used_again() {
        let mut site = Site::new();
        let image = site.new_image("debian");
        fs::write(image.directory.join(MANIFEST_FILE), "{").unwrap();
        site.restart();
        assert!(site.images().is_empty());
        assert_eq!(site.new_image("debian").version, 2);
        assert!(image.disk_path().exists());
    }

    #[test]
    fn a_disk_of_another_size_than_published_is_left_out() {
        let mut site = Site::new();
        let image = site.new_image("debian");
        fs::remove_file(image.disk_path()).unwrap();
        fs::write(image.disk_path(), [0; 512]).unwrap();
        site.restart();
        assert!(site.images().is_empty());
    }

    #[test]
    fn an_assignment_to_a_version_is_checked_when_it_is_made() {
        let site = Site::new();
        site.new_image("debian");
        let refused = site.add_machine(NewMachine {
            name: Name::parse("pc07").unwrap(),
            mac: mac(7),
            uuid: None,
            serial: None,
            assignment: boots("debian@2").assignment.unwrap(),
            address: None,
            loader: None,
        });
        assert!(refused.is_err());
    }
}
