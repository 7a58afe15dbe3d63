//! Overlays: which there are, whose, and above what. Their files, under
//! `DATA/overlays/UUID`, are made and read by `disk`.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use disk::BaseId;
use jiff::Timestamp;
use uuid::Uuid;

use super::store::Facts;
use super::{Error, Image, Inventory, Name, OverlayMode, Result, Survives, now};

/// A machine's private writes above one version of an image.
///
/// It stays on that version: a `keep` overlay is never moved to a newer one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Overlay {
    /// Names its directory.
    pub(crate) uuid: Uuid,
    /// Whose.
    pub(crate) machine: Uuid,
    /// Image below.
    pub(crate) image: Name,
    /// Version below.
    pub(crate) version: u32,
    /// Thrown away at the next boot, or kept.
    pub(crate) mode: OverlayMode,
    /// When it was made.
    pub(crate) created: Timestamp,
}

impl Inventory {
    /// Every overlay, oldest first.
    pub(crate) fn overlays(&self) -> Result<Vec<Overlay>> {
        self.store.read(|facts| facts.overlays())
    }

    /// A machine's overlay above any version of an image; there is at most one.
    pub(crate) fn overlay_of(&self, machine: Uuid, image: &str) -> Result<Option<Overlay>> {
        let overlays = self.store.read(|facts| facts.overlays_of(machine))?;
        Ok(overlays.into_iter().find(|o| o.image.as_str() == image))
    }

    /// The overlay of a UUID.
    pub(crate) fn overlay(&self, uuid: Uuid) -> Result<Overlay> {
        self.store
            .read(|facts| facts.overlay(uuid))?
            .ok_or_else(|| no_overlay(uuid))
    }

    /// Puts down, durably, that a machine has a new overlay above `image`; its
    /// files are to be made afterwards, in [`Inventory::overlay_directory`].
    /// Refused while the machine has one above the same image already, or when
    /// the image has been removed meanwhile.
    pub(crate) fn add_overlay(
        &self,
        machine: Uuid,
        image: &Image,
        mode: OverlayMode,
    ) -> Result<Overlay> {
        // Held to the end: no image is removed under an overlay being made.
        let found = self.images.hold();
        found.require(image)?;
        self.store.write(Survives::Power, |facts| {
            let Some(owner) = facts.machine(machine)? else {
                return Err(Error::NotFound("this machine has been removed".to_owned()));
            };
            let others = facts.overlays_of(machine)?;
            if let Some(other) = others.iter().find(|o| o.image == image.name) {
                return Err(Error::Conflict(format!(
                    "{} has an overlay above {} already: remove it first with \
                     `diskless overlay remove {}`",
                    owner.name, image.name, other.uuid
                )));
            }
            let overlay = Overlay {
                uuid: Uuid::new_v4(),
                machine,
                image: image.name.clone(),
                version: image.version,
                mode,
                created: now(),
            };
            facts.put_overlay(&overlay)?;
            Ok(overlay)
        })
    }

    /// Changes what is known about an overlay: its mode, and for a `reset`
    /// overlay that starts afresh the version below.
    pub(crate) fn set_overlay(
        &self,
        uuid: Uuid,
        version: u32,
        mode: OverlayMode,
    ) -> Result<Overlay> {
        let found = self.images.hold();
        self.store.write(Survives::Power, |facts| {
            let mut overlay = facts.overlay(uuid)?.ok_or_else(|| no_overlay(uuid))?;
            found.version(&overlay.image, version)?;
            overlay.version = version;
            overlay.mode = mode;
            facts.put_overlay(&overlay)?;
            Ok(overlay)
        })
    }

    /// Forgets an overlay and removes its files. That nothing has it open is
    /// the caller's to make sure of.
    pub(crate) fn remove_overlay(&self, uuid: Uuid) -> Result<()> {
        self.overlay(uuid)?;
        self.remove_with_files(&[uuid], |facts| facts.remove_overlay(uuid))
    }

    /// Where an overlay's files lie: `DATA/overlays/UUID`.
    pub(crate) fn overlay_directory(&self, uuid: Uuid) -> PathBuf {
        self.data.join("overlays").join(uuid.to_string())
    }

    /// Every overlay's directory there is, known or not, and the image its head
    /// names.
    pub(super) fn overlay_heads(&self) -> Result<Vec<(PathBuf, BaseId)>> {
        let all = self.data.join("overlays");
        let failed =
            |e: std::io::Error| Error::Failed(format!("cannot read {}: {e}", all.display()));
        let mut heads = Vec::new();
        for entry in fs::read_dir(&all).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if let Ok(head) = disk::Overlay::inspect(&path) {
                heads.push((path, head.base));
            }
        }
        Ok(heads)
    }

    /// Forgets facts and removes the directories of overlays with them. The
    /// directories step aside first, so that a crash between the two leaves
    /// both or neither once [`Inventory::finish_removals`] has run.
    pub(super) fn remove_with_files(
        &self,
        overlays: &[Uuid],
        forget: impl FnOnce(&Facts<'_>) -> Result<()>,
    ) -> Result<()> {
        let all = self.data.join("overlays");
        let mut aside = Vec::new();
        let mut moved = Ok(());
        for uuid in overlays {
            let (from, to) = (self.overlay_directory(*uuid), all.join(aside_name(*uuid)));
            match fs::rename(&from, &to) {
                Ok(()) => aside.push((from, to)),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => {
                    moved = Err(Error::Failed(format!(
                        "cannot remove {}: {e}",
                        from.display()
                    )));
                    break;
                }
            }
        }
        let forgotten = moved.and_then(|()| self.store.write(Survives::Power, forget));
        if let Err(error) = forgotten {
            for (from, to) in aside {
                if let Err(e) = fs::rename(&to, &from) {
                    tracing::error!("cannot put {} back: {e}", from.display());
                }
            }
            return Err(error);
        }
        for (_, path) in aside {
            // Forgotten already; what cannot be removed now is at the next start.
            if let Err(e) = fs::remove_dir_all(&path) {
                tracing::warn!("cannot remove {} yet: {e}", path.display());
            }
        }
        Ok(())
    }

    /// Ends the removals a crash has interrupted. Directories of overlays nobody
    /// knows are left alone: they may be all that is left of a lost state.db.
    pub(super) fn finish_removals(&self) -> Result<()> {
        let all = self.data.join("overlays");
        let failed =
            |e: std::io::Error| Error::Failed(format!("cannot read {}: {e}", all.display()));
        for entry in fs::read_dir(&all).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let uuid = path
                .file_name()
                .and_then(|name| name.to_str()?.strip_prefix(ASIDE_PREFIX))
                .and_then(|uuid| Uuid::parse_str(uuid).ok());
            let Some(uuid) = uuid else { continue };
            let known = self
                .store
                .read(|facts| Ok(facts.overlay(uuid)?.or(facts.former(uuid)?)))?;
            let ended = match known {
                Some(_) => fs::rename(&path, self.overlay_directory(uuid)),
                None => fs::remove_dir_all(&path),
            };
            ended.map_err(|e| Error::Failed(format!("cannot tidy up {}: {e}", path.display())))?;
        }
        Ok(())
    }
}

/// Beginning of the name of a directory that is being removed.
const ASIDE_PREFIX: &str = ".removed-";

pub(super) fn aside_name(uuid: Uuid) -> String {
    format!("{ASIDE_PREFIX}{uuid}")
}

pub(super) fn no_overlay(uuid: Uuid) -> Error {
    Error::NotFound(format!(
        "there is no overlay {uuid}: `diskless overlay list` shows them"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests::Site;

    fn write_files(site: &Site, overlay: &Overlay) -> PathBuf {
        let directory = site.overlay_directory(overlay.uuid);
        fs::create_dir_all(directory.join("000")).unwrap();
        fs::write(directory.join("000/data"), b"mine").unwrap();
        directory
    }

    #[test]
    fn a_machine_has_one_overlay_above_an_image() {
        let site = Site::new();
        let (pc, image) = (site.new_machine("pc07", 7), site.new_image("debian"));
        let overlay = site.add_overlay(pc.id, &image, OverlayMode::Keep).unwrap();
        assert_eq!(site.overlay_of(pc.id, "debian").unwrap(), Some(overlay));
        assert!(site.add_overlay(pc.id, &image, OverlayMode::Keep).is_err());
    }

    #[test]
    fn a_kept_overlay_stays_on_its_version() {
        let mut site = Site::new();
        let (pc, image) = (site.new_machine("pc07", 7), site.new_image("debian"));
        site.add_overlay(pc.id, &image, OverlayMode::Keep).unwrap();
        assert_eq!(site.new_image("debian").version, 2);
        site.restart();
        let overlay = site.overlay_of(pc.id, "debian").unwrap().unwrap();
        assert_eq!((overlay.version, overlay.mode), (1, OverlayMode::Keep));
    }

    #[test]
    fn removing_an_overlay_removes_its_files() {
        let site = Site::new();
        let (pc, image) = (site.new_machine("pc07", 7), site.new_image("debian"));
        let overlay = site.add_overlay(pc.id, &image, OverlayMode::Reset).unwrap();
        let directory = write_files(&site, &overlay);
        site.remove_overlay(overlay.uuid).unwrap();
        assert!(!directory.exists());
        assert_eq!(site.overlays().unwrap(), []);
        assert_eq!(
            fs::read_dir(site.data().join("overlays")).unwrap().count(),
            0
        );
    }

    #[test]
    fn a_removal_cut_short_is_undone_or_ended_at_the_next_start() {
        let mut site = Site::new();
        let (pc, image) = (site.new_machine("pc07", 7), site.new_image("debian"));
        let overlay = site.add_overlay(pc.id, &image, OverlayMode::Keep).unwrap();
        let directory = write_files(&site, &overlay);
        // Cut short before the fact was forgotten.
        let aside = site.data().join("overlays").join(aside_name(overlay.uuid));
        fs::rename(&directory, &aside).unwrap();
        site.restart();
        assert!(directory.join("000/data").exists() && !aside.exists());
        // And after it.
        fs::rename(&directory, &aside).unwrap();
        site.store()
            .write(Survives::Power, |facts| facts.remove_overlay(overlay.uuid))
            .unwrap();
        site.restart();
        assert!(!directory.exists() && !aside.exists());
    }

    #[test]
    fn files_of_an_overlay_nobody_knows_are_left_alone() {
        let mut site = Site::new();
        let stray = site.overlay_directory(Uuid::new_v4());
        fs::create_dir(&stray).unwrap();
        site.restart();
        assert!(stray.exists());
    }
}
