//! One opener of an overlay at a time.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::OpenError;
use crate::health::trouble;

/// The lock of an overlay's directory, held until it is dropped or the process
/// dies.
#[derive(Debug)]
pub(super) struct Lock {
    _dir: File,
}

impl Lock {
    /// Locks the directory, or says that somebody else holds it.
    pub(super) fn take(dir: &Path) -> Result<Lock, OpenError> {
        let failed = |error: io::Error| {
            OpenError::Disk(trouble(format!("locking {}", dir.display()), error))
        };
        let missing = || OpenError::Missing {
            path: dir.to_owned(),
        };
        let file = match File::open(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
            file => file.map_err(failed)?,
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(OpenError::InUse {
                    path: dir.to_owned(),
                });
            }
            Err(error) => return Err(failed(error.into())),
        }
        // It may have been removed between the two calls.
        let held = file.metadata().map_err(failed)?;
        match std::fs::metadata(dir) {
            Ok(named) if (named.dev(), named.ino()) == (held.dev(), held.ino()) => {
                Ok(Lock { _dir: file })
            }
            Ok(_) => Err(missing()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing()),
            Err(error) => Err(failed(error)),
        }
    }
}
