//! The files of one file system, by path.

use crate::ext4::Ext4;
use crate::fat::Fat;
use crate::file_system::{Entry, FileSystem, Node, NodeKind};
use crate::magic::{Format, identify};
use crate::{Error, ReadableFile, Volume};

/// The files of one file system, read-only.
pub struct Tree {
    file_system: Box<dyn FileSystem>,
}

/// Links followed on the way to one file, as many as Linux follows.
const MAX_LINKS: usize = 40;
/// Names on the way to one file, those of links too.
const MAX_NAMES: usize = 256;

impl Tree {
    /// Opens the file system of a volume; refuses, with a sentence, what is
    /// none that is read here.
    pub fn open(volume: &Volume) -> Result<Tree, Error> {
        let content = identify(volume)?;
        let file_system: Box<dyn FileSystem> = match content.format {
            Format::Ext => Box::new(Ext4::open(volume)?),
            Format::Fat => Box::new(Fat::open(volume)?),
            other => return Err(Error::Foreign(other.refusal())),
        };
        Ok(Tree { file_system })
    }

    /// The file at `path`, with all links on the way and at the end followed.
    pub fn open_file(&self, path: &str) -> Result<ReadableFile, Error> {
        let (node, real) = self.walk(path)?;
        if node.kind != NodeKind::File {
            return Err(other_kind(path, node));
        }
        let bytes = self.file_system.bytes(node)?;
        Ok(ReadableFile::new(&real, self.file_system.volume(), bytes))
    }

    /// What the directory at `path` holds.
    pub fn list(&self, path: &str) -> Result<Vec<Entry>, Error> {
        let (node, _) = self.walk(path)?;
        if node.kind != NodeKind::Directory {
            return Err(other_kind(path, node));
        }
        self.file_system.list(node)
    }

    /// Where the link at `path` leads, as it is written.
    pub fn read_link(&self, path: &str) -> Result<String, Error> {
        let (node, _) = self.resolve(path, Last::Kept)?;
        if node.kind != NodeKind::Link {
            return Err(other_kind(path, node));
        }
        self.file_system.link(node)
    }

    /// What is at `path`, links followed; `None` where nothing is.
    pub fn kind(&self, path: &str) -> Result<Option<NodeKind>, Error> {
        match self.walk(path) {
            Ok((node, _)) => Ok(Some(node.kind)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn walk(&self, path: &str) -> Result<(Node, String), Error> {
        self.resolve(path, Last::Followed)
    }

    /// The node at `path`, and its path without links. What leads above the
    /// root stays there, as in a chroot.
    fn resolve(&self, path: &str, last: Last) -> Result<(Node, String), Error> {
        let missing = || Error::Missing {
            path: path.to_owned(),
        };
        let mut rest: Vec<String> = names(path);
        let mut way: Vec<(Node, String)> = Vec::new();
        let root = self.file_system.root()?;
        let mut links = 0;
        let mut steps = 0;
        while let Some(name) = rest.pop() {
            steps += 1;
            if steps > MAX_NAMES {
                return Err(Error::TooMuch {
                    what: "names on the way to one file",
                    limit: MAX_NAMES as u64,
                });
            }
            if name == ".." {
                way.pop();
                continue;
            }
            let here = way.last().map_or(root, |(node, _)| *node);
            if here.kind != NodeKind::Directory {
                return Err(missing());
            }
            let found = self.file_system.find(here, &name)?.ok_or_else(missing)?;
            if found.kind == NodeKind::Link && (last == Last::Followed || !rest.is_empty()) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Error::TooMuch {
                        what: "links on the way to one file",
                        limit: MAX_LINKS as u64,
                    });
                }
                let target = self.file_system.link(found)?;
                if target.starts_with('/') {
                    way.clear();
                }
                rest.extend(names(&target));
            } else {
                way.push((found, name));
            }
        }
        let real = way.iter().map(|(_, name)| format!("/{name}")).collect();
        Ok((way.last().map_or(root, |(node, _)| *node), real))
    }
}

/// What becomes of a link at the end of a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Followed,
    Kept,
}

/// The names of a path, the last one first.
fn names(path: &str) -> Vec<String> {
    let names = path.split('/').filter(|name| !matches!(*name, "" | "."));
    names.rev().map(str::to_owned).collect()
}

fn other_kind(path: &str, node: Node) -> Error {
    Error::OtherKind {
        path: path.to_owned(),
        found: node.kind.shown(),
    }
}

#[cfg(test)]
mod tests;
