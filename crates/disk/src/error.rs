//! Why a disk refused.

use std::io;

/// Why a disk refused; heard by `scsi`, which turns it into sense data in
/// exactly one place.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The range leaves the disk.
    #[error("range {offset}+{bytes} leaves the disk of {size_bytes} bytes")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// Length asked for.
        bytes: u64,
        /// Size of the disk.
        size_bytes: u64,
    },
    /// The disk cannot be written.
    #[error("the disk is read-only")]
    ReadOnly,
    /// No space left below the disk, or its quota is used up.
    #[error("no space left: {0}")]
    NoSpace(String),
    /// What is stored is not what was written; says where.
    #[error("corrupt: {0}")]
    Corrupt(String),
    /// The disk has failed earlier and stays failed until it is opened again.
    #[error("the disk has failed: {0}")]
    Failed(String),
    /// The host's file system refused.
    #[error("{context}: {source}")]
    Io {
        /// What was tried, on what.
        context: String,
        /// The system's answer.
        source: io::Error,
    },
}
