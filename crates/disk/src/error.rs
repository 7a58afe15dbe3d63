//! Why a disk refused.

use std::io;
use std::path::PathBuf;

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

/// Why an image or an overlay could not be opened, created, switched or
/// removed; heard by the program, which says it to the operator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another handle of this one, holds it.
    #[error("{} is in use by another process or session", path.display())]
    InUse {
        /// What is held.
        path: PathBuf,
    },
    /// Nothing is there.
    #[error("{} does not exist", path.display())]
    Missing {
        /// What was looked for.
        path: PathBuf,
    },
    /// Something is there already.
    #[error("{} exists already", path.display())]
    Exists {
        /// What was to be created.
        path: PathBuf,
    },
    /// The image below is not the one the overlay was made on.
    #[error(
        "{} was made on another image ({expected}; offered: {offered}): \
         put that image back, or start the overlay afresh", path.display()
    )]
    OtherBase {
        /// The overlay.
        path: PathBuf,
        /// The image its head names.
        expected: String,
        /// The image it was to be opened on.
        offered: String,
    },
    /// A disk file says what cannot be: cut off, damaged, or made to harm.
    #[error("{}: {field} (at byte {offset}): {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong in it, by the name its specification uses.
        field: &'static str,
        /// Where in the file it lies.
        offset: u64,
        /// What it says, and what it should.
        reason: String,
    },
    /// Not a format that can be served or made here; says what to do instead.
    #[error("{advice}")]
    Foreign {
        /// One sentence that names the file.
        advice: String,
    },
    /// No such restore point, or it was taken away.
    #[error("{} has no restore point {id}", path.display())]
    NoPoint {
        /// The overlay.
        path: PathBuf,
        /// The point that was asked for.
        id: crate::overlay::PointId,
    },
    /// A limit of the overlay's format is reached.
    #[error("{}: at most {limit} {what}; take some away first", path.display())]
    TooMany {
        /// The overlay.
        path: PathBuf,
        /// How many there can be.
        limit: usize,
        /// Of what.
        what: &'static str,
    },
    /// Written by a newer version, or uses what this one cannot read.
    #[error("{}: {what}: a newer version of this program is needed", path.display())]
    Unsupported {
        /// The overlay.
        path: PathBuf,
        /// What cannot be read.
        what: String,
    },
    /// The disk below, or the overlay's own files, refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}
