//! What every file system that is read here can do.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::file::Bytes;
use crate::{Error, Volume};

/// A file system, read node by node. Names and links are resolved above it.
pub(crate) trait FileSystem: Send + Sync {
    /// The volume its files' bytes lie on.
    fn volume(&self) -> &Volume;

    /// The directory everything lies below.
    fn root(&self) -> Result<Node, Error>;

    /// The entry of a directory by its name.
    fn find(&self, directory: Node, name: &str) -> Result<Option<Node>, Error>;

    /// All entries but `.` and `..`, in the order they are stored in.
    fn list(&self, directory: Node) -> Result<Vec<Entry>, Error>;

    /// Where a link leads.
    fn link(&self, link: Node) -> Result<String, Error>;

    /// Where a file's bytes lie.
    fn bytes(&self, file: Node) -> Result<Bytes, Error>;
}

/// Something a directory names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// Inode number, or first cluster.
    pub(crate) id: u64,
    pub(crate) kind: NodeKind,
    /// As its directory or inode says.
    pub(crate) size_bytes: u64,
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// Holds bytes.
    File,
    /// Holds names.
    Directory,
    /// Leads elsewhere.
    Link,
    /// A device, a socket, a pipe.
    Other,
}

impl NodeKind {
    pub(crate) fn shown(self) -> &'static str {
        match self {
            NodeKind::File => "a file",
            NodeKind::Directory => "a directory",
            NodeKind::Link => "a link",
            NodeKind::Other => "no ordinary file",
        }
    }
}

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name; what is not UTF-8 in it is replaced.
    pub name: String,
    /// What it is, as far as the directory says.
    pub kind: NodeKind,
}

/// Entries of one directory that are listed.
pub(crate) const MAX_ENTRIES: usize = 1 << 16;
/// Bytes of one directory that are looked through.
pub(crate) const MAX_DIRECTORY_BYTES: u64 = 16 << 20;
/// Bytes of all directories that are looked through, for one open file system.
const MAX_SEARCHED_BYTES: u64 = 256 << 20;

/// What may still be looked through.
pub(crate) struct Search {
    left_bytes: AtomicU64,
}

impl Search {
    pub(crate) fn new() -> Search {
        Search {
            left_bytes: AtomicU64::new(MAX_SEARCHED_BYTES),
        }
    }

    /// Goes on through `bytes` bytes more.
    pub(crate) fn spend(&self, bytes: usize) -> Result<(), Error> {
        let spend = |left: u64| left.checked_sub(bytes as u64);
        let spent = self
            .left_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend);
        match spent {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::TooMuch {
                what: "bytes of directories",
                limit: MAX_SEARCHED_BYTES,
            }),
        }
    }
}
