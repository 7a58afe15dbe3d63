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

#[cfg(test)]
mod tests {
    use disk::DiskError;

    use super::*;
    use crate::inventory::OverlayMode;
    use crate::services::tests::{Lab, write};

    #[test]
    fn damage_found_while_a_machine_runs_is_refused_to_it() {
        let lab = Lab::new();
        let image = lab.image("debian", 1);
        let pc = lab.machine("pc1", 1, "debian", OverlayMode::Keep);
        let (_, session) = lab.boot(&pc);
        write(&session, 0, 7);
        image.damage.set(std::iter::once(0..8192).collect());
        let fact = lab.inventory().overlay_of(pc.id, "debian").unwrap();
        lab.disks().with_overlay(&fact.unwrap(), &mut |open| {
            let (open, mut buffer) = (open.unwrap(), [0; 4096]);
            let mut segments = Vec::new();
            // What it has written itself is its own.
            open.read(0, &mut buffer).unwrap();
            for offset in [4096, 4097, 0] {
                let mut both = [0; 8192];
                let error = open.read(offset, &mut both).unwrap_err();
                assert!(matches!(error, DiskError::Corrupt(_)), "{error}");
                let sent = open.segments(offset, 8192, &mut segments);
                assert!(!matches!(sent, Ok(true)) && segments.is_empty());
            }
            open.read(8192, &mut buffer).unwrap();
            // A whole block written over it is sound.
            open.write(4096, &buffer).unwrap();
            open.read(0, &mut [0; 8192]).unwrap();
        });
    }
}
