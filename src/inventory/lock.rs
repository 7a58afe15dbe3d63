//! The lock on a data directory: one program at a time.

use std::fs::File;

/// Held while it lives; the kernel lets go of it when the process dies.
pub(super) struct DataLock {
    _file: File,
}
