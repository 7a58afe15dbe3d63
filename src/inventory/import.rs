//! Imports: a raw file or block device becomes the next version of an image.

use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;

use super::{Error, Image, Inventory, Name, Result};

/// What to import.
#[derive(Clone, Debug)]
pub(crate) struct ImportRequest {
    /// Image it becomes a version of.
    pub(crate) name: Name,
    /// Raw file or block device.
    pub(crate) source: PathBuf,
    /// The operator's words.
    pub(crate) comment: String,
}

/// An import, running or ended.
#[derive(Clone, Debug)]
pub(crate) struct Import {
    /// Its id.
    pub(crate) id: Uuid,
    /// Image it becomes a version of.
    pub(crate) name: Name,
    /// Raw file or block device.
    pub(crate) source: PathBuf,
    /// Bytes of the source.
    pub(crate) total_bytes: u64,
    /// Bytes read, or skipped as a hole, so far.
    pub(crate) done_bytes: u64,
    /// How it stands.
    pub(crate) state: ImportState,
}

/// How an import stands.
#[derive(Clone, Debug)]
pub(crate) enum ImportState {
    /// At work.
    Running,
    /// Published.
    Done(Arc<Image>),
    /// Given up; nothing was changed.
    Failed(String),
}

impl Inventory {
    /// Starts an import on a thread of its own; what can be refused at once is.
    pub(crate) fn start_import(&self, request: ImportRequest) -> Result<Import> {
        todo!()
    }

    /// An import started in this run of the program.
    pub(crate) fn import(&self, id: Uuid) -> Result<Import> {
        todo!()
    }

    /// Tells an import to stop; it removes what it has written.
    pub(crate) fn cancel_import(&self, id: Uuid) -> Result<()> {
        todo!()
    }

    /// Stops every import and waits for them; for the end of the program.
    pub(crate) fn stop_imports(&self) {
        todo!()
    }
}

/// The imports of this run of the program.
pub(super) struct Imports {}
