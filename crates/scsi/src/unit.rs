//! A logical unit: a disk that answers commands.

use disk::SharedDisk;

use crate::Identity;

/// A disk that answers commands.
pub struct LogicalUnit {
    disk: SharedDisk,
    identity: Identity,
}

impl LogicalUnit {
    /// A unit over `disk` that calls itself `identity`.
    pub fn new(disk: SharedDisk, identity: Identity) -> LogicalUnit {
        LogicalUnit { disk, identity }
    }

    /// The disk below.
    pub fn disk(&self) -> &SharedDisk {
        &self.disk
    }

    /// What the unit calls itself.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }
}
