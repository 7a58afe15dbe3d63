//! Why something inside a disk cannot be read.

use disk::DiskError;

/// Each is a sentence for whoever wants to boot from the disk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What lies there contradicts itself, or leads nowhere.
    #[error("{what} is damaged: {reason}")]
    Damaged {
        /// The structure.
        what: &'static str,
        /// The field, by its specification's name, and what it says.
        reason: String,
    },
    /// It may be whole, but is not read here; a sentence that names it.
    #[error("{0}")]
    Foreign(String),
    /// More of something than is looked through.
    #[error("{what}: more than {limit} are not read")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How many are.
        limit: u64,
    },
    /// No such file or directory.
    #[error("{path} is not there")]
    Missing {
        /// Within its file system.
        path: String,
    },
    /// Another thing than was asked for: a directory, a device.
    #[error("{path} is {found}")]
    OtherKind {
        /// Within its file system.
        path: String,
        /// What it is.
        found: &'static str,
    },
    /// The disk refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl Error {
    pub(crate) fn damaged(what: &'static str, reason: impl Into<String>) -> Error {
        Error::Damaged {
            what,
            reason: reason.into(),
        }
    }

    /// Whether it only says that something is not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Error::Missing { .. })
    }
}
