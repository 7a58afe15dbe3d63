//! Listens to every write, sync and rename of an overlay, and remakes what a
//! loss of power may leave of them.
//!
//! The rule is POSIX's, not a file system's: what was not synced may be there
//! or not, in any combination and torn at every 512 bytes; names that were not
//! synced may be the old or the new ones.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A file as an inode: it keeps its number through renames.
pub(crate) type FileId = usize;

/// One operation, as it is asked for or as it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Create {
        path: PathBuf,
    },
    CreateDir {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    RemoveFile {
        path: PathBuf,
    },
    RemoveDir {
        path: PathBuf,
    },
    SyncDir {
        path: PathBuf,
    },
    SyncedDir {
        path: PathBuf,
    },
    Write {
        file: FileId,
        offset: u64,
        bytes: Vec<u8>,
    },
    Punch {
        file: FileId,
        offset: u64,
        bytes: u64,
    },
    SetLen {
        file: FileId,
        bytes: u64,
    },
    /// The write or punch before it on the same file has ended.
    Wrote {
        file: FileId,
    },
    Sync {
        file: FileId,
    },
    Synced {
        file: FileId,
    },
    /// A question, which changes nothing.
    WritebackError {
        file: FileId,
    },
}
