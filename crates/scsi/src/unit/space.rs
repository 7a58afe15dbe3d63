//! The space a thin unit takes, and the warning that little is left (SBC-3
//! section 4.7.3.7).

use std::sync::atomic::Ordering;

use super::LogicalUnit;
use crate::Sense;
use crate::disk::Space;
use crate::provisioning::low_space_bytes;

impl LogicalUnit {
    /// What the disk takes and what is left; `None` unless blocks take space
    /// as they are written, and the disk can tell.
    pub(super) fn space(&self) -> Option<Space> {
        match self.is_thin() {
            true => self.disk.space(),
            false => None,
        }
    }

    /// Warns every nexus when less space is left than the threshold, once
    /// until there is more again. Called after each flush; for whoever watches
    /// the disks as well.
    pub fn watch_space(&self) {
        let Some(space) = self.space() else {
            return;
        };
        let is_low = space.free_bytes < low_space_bytes(self.geometry.size_bytes);
        let was_low = self.state.is_low.swap(is_low, Ordering::AcqRel);
        if is_low && !was_low {
            let attentions = &self.state.attentions;
            attentions.raise(Sense::THIN_PROVISIONING_SOFT_THRESHOLD_REACHED, None);
        }
    }
}
