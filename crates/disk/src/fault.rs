//! What is wrong in a structure of a disk file: a field, by the name its
//! specification uses, and where in the structure it lies.

use std::path::Path;

use crate::OpenError;

/// What is wrong in a structure, relative to its beginning.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) field: &'static str,
    pub(crate) offset: u64,
    pub(crate) reason: String,
}

impl Fault {
    pub(crate) fn new(field: &'static str, offset: usize, reason: impl Into<String>) -> Fault {
        Fault {
            field,
            offset: offset as u64,
            reason: reason.into(),
        }
    }

    /// The refusal of a file whose structure begins at `base`.
    pub(crate) fn of(self, path: &Path, base: u64) -> OpenError {
        OpenError::Malformed {
            path: path.to_owned(),
            field: self.field,
            offset: base.saturating_add(self.offset),
            reason: self.reason,
        }
    }
}
