//! Overlays: which there are, whose, and above what. Their files, under
//! `DATA/overlays/UUID`, are made and read by `disk`.

use std::path::PathBuf;

use jiff::Timestamp;
use uuid::Uuid;

use super::{Error, Image, Inventory, Name, OverlayMode, Result};

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
        todo!()
    }

    /// A machine's overlay above any version of an image; there is at most one.
    pub(crate) fn overlay_of(&self, machine: Uuid, image: &str) -> Result<Option<Overlay>> {
        todo!()
    }

    /// Puts down, durably, that a machine has a new overlay above `image`; its
    /// files are to be made afterwards, in [`Inventory::overlay_directory`].
    /// Refused while the machine has one above the same image already.
    pub(crate) fn add_overlay(
        &self,
        machine: Uuid,
        image: &Image,
        mode: OverlayMode,
    ) -> Result<Overlay> {
        todo!()
    }

    /// Changes what is known about an overlay: its mode, and for a `reset`
    /// overlay that starts afresh the version below.
    pub(crate) fn set_overlay(
        &self,
        uuid: Uuid,
        version: u32,
        mode: OverlayMode,
    ) -> Result<Overlay> {
        todo!()
    }

    /// Forgets an overlay and removes its files. That nothing has it open is
    /// the caller's to make sure of.
    pub(crate) fn remove_overlay(&self, uuid: Uuid) -> Result<()> {
        todo!()
    }

    /// Where an overlay's files lie: `DATA/overlays/UUID`.
    pub(crate) fn overlay_directory(&self, uuid: Uuid) -> PathBuf {
        self.data.join("overlays").join(uuid.to_string())
    }
}
