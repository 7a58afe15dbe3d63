//! Golden images in use, each opened once for all machines.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use anyhow::Context;
use disk::{Disk, SharedDisk};
use uuid::Uuid;

use super::lock;
use crate::inventory::Image;

/// Golden images in use, by the UUID of their version.
#[derive(Default)]
pub(super) struct OpenImages {
    open: Mutex<HashMap<Uuid, Weak<dyn Disk>>>,
}

impl OpenImages {
    /// The image's disk, read-only. Closed when the last overlay above it is.
    pub(super) fn open(&self, image: &Image) -> anyhow::Result<SharedDisk> {
        if let Some(open) = lock(&self.open).get(&image.uuid).and_then(Weak::upgrade) {
            return Ok(open);
        }
        // Opened without the lock: a medium that is slow to answer holds up
        // nobody who boots another image.
        let golden = disk::image::open(
            &image.directory,
            &image.base_id(),
            Arc::clone(&image.damage),
        )
        .with_context(|| format!("opening image {image}"))?;
        let opened: SharedDisk = Arc::new(golden);
        let mut images = lock(&self.open);
        if let Some(open) = images.get(&image.uuid).and_then(Weak::upgrade) {
            return Ok(open); // another login was quicker
        }
        images.retain(|_, weak| weak.strong_count() > 0);
        images.insert(image.uuid, Arc::downgrade(&opened));
        Ok(opened)
    }
}
