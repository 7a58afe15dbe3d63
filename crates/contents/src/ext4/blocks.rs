//! Which blocks are a file's: a tree of extents, or the map that was before it.

use super::inode::Inode;
use super::{Ext4, damaged};
use crate::Error;
use crate::bytes::{u16_at, u32_at};
use crate::file::Stretch;

/// Magic of a node of a tree of extents (struct ext4_extent_header).
const EXTENTS_MAGIC: u16 = 0xf30a;
/// Entries and the header of a node have this length each.
const EXTENT_BYTES: usize = 12;
/// A tree is at most so deep.
const MAX_DEPTH: u16 = 5;
/// Nodes of one tree that are read.
const MAX_NODES: u32 = 4096;
/// An extent longer than this one was never written, and reads as zeros.
const MAX_WRITTEN: u16 = 32768;
/// Blocks of one map that are looked at: 8 GiB of a file, with blocks of 4 KiB.
const MAX_MAPPED: u64 = 1 << 21;
/// Blocks an inode names itself, before those that name others.
const DIRECT: usize = 12;

impl Ext4 {
    /// Where the bytes of an inode's file lie, in whole blocks.
    pub(super) fn stretches(&self, inode: &Inode) -> Result<Vec<Stretch>, Error> {
        let mut stretches = Vec::new();
        let blocks = inode.size_bytes.div_ceil(self.superblock.block_bytes);
        if blocks == 0 {
            return Ok(stretches);
        }
        if inode.has_extents() {
            let mut walk = ExtentWalk {
                file_system: self,
                inode: inode.number,
                blocks,
                next: 0,
                nodes: 0,
                stretches: &mut stretches,
            };
            let depth = u16_at(inode.block(), 6);
            if depth > MAX_DEPTH {
                return Err(walk.wrong("eh_depth"));
            }
            walk.node(inode.block(), depth)?;
        } else {
            let mut map = MapWalk {
                file_system: self,
                blocks,
                next: 0,
                looked_at: 0,
                stretches: &mut stretches,
            };
            for index in 0..DIRECT {
                map.pointer(u32_at(inode.block(), 4 * index), 0)?;
            }
            for level in 1..=3 {
                let index = DIRECT - 1 + level as usize;
                map.pointer(u32_at(inode.block(), 4 * index), level)?;
            }
        }
        Ok(stretches)
    }
}

struct ExtentWalk<'a> {
    file_system: &'a Ext4,
    inode: u32,
    /// Blocks the file has; what lies behind them is not of it.
    blocks: u64,
    /// The first block of the file that no extent has named yet.
    next: u64,
    nodes: u32,
    stretches: &'a mut Vec<Stretch>,
}

impl ExtentWalk<'_> {
    fn wrong(&self, field: &str) -> Error {
        damaged(format!("the extents of inode {}: {field}", self.inode))
    }

    fn node(&mut self, node: &[u8], depth: u16) -> Result<(), Error> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(Error::TooMuch {
                what: "nodes of the extents of one file",
                limit: u64::from(MAX_NODES),
            });
        }
        if u16_at(node, 0) != EXTENTS_MAGIC || u16_at(node, 6) != depth {
            return Err(self.wrong("eh_magic, eh_depth"));
        }
        let count = usize::from(u16_at(node, 2));
        let entries = node
            .get(EXTENT_BYTES..EXTENT_BYTES * (count + 1))
            .ok_or_else(|| self.wrong("eh_entries"))?;
        for entry in entries.chunks_exact(EXTENT_BYTES) {
            let at = u64::from(u32_at(entry, 0));
            if at >= self.blocks {
                // Allocated ahead of what will be written.
                return Ok(());
            }
            if depth > 0 {
                let child = u64::from(u16_at(entry, 8)) << 32 | u64::from(u32_at(entry, 4));
                let child = self.file_system.block(child)?;
                self.node(&child, depth - 1)?;
            } else if at < self.next {
                return Err(self.wrong("they are not in order"));
            } else {
                self.extent(at, entry)?;
            }
        }
        Ok(())
    }

    fn extent(&mut self, at: u64, entry: &[u8]) -> Result<(), Error> {
        let length = u16_at(entry, 4);
        let first = u64::from(u16_at(entry, 6)) << 32 | u64::from(u32_at(entry, 8));
        let is_written = length <= MAX_WRITTEN;
        let length = match is_written {
            true => u64::from(length),
            false => u64::from(length - MAX_WRITTEN),
        };
        if length == 0 {
            return Err(self.wrong("ee_len"));
        }
        self.next = at + length;
        let length = length.min(self.blocks - at);
        match is_written {
            true => self
                .file_system
                .add_blocks(self.stretches, at, first, length),
            false => Ok(()),
        }
    }
}

struct MapWalk<'a> {
    file_system: &'a Ext4,
    blocks: u64,
    /// The block of the file whose pointer comes next.
    next: u64,
    looked_at: u64,
    stretches: &'a mut Vec<Stretch>,
}

impl MapWalk<'_> {
    /// A pointer to a block of the file (`level` 0), or to a block of pointers.
    fn pointer(&mut self, block: u32, level: u32) -> Result<(), Error> {
        if self.next >= self.blocks {
            return Ok(());
        }
        let per_block = self.file_system.superblock.block_bytes / 4;
        self.looked_at += 1;
        if self.looked_at > MAX_MAPPED {
            return Err(Error::TooMuch {
                what: "blocks of one file's map",
                limit: MAX_MAPPED,
            });
        }
        if block == 0 {
            self.next = self.next.saturating_add(per_block.saturating_pow(level));
            return Ok(());
        }
        let block = u64::from(block);
        if level == 0 {
            let at = self.next;
            self.next += 1;
            return self.file_system.add_blocks(self.stretches, at, block, 1);
        }
        let pointers = self.file_system.block(block)?;
        for pointer in pointers.chunks_exact(4) {
            self.pointer(u32_at(pointer, 0), level - 1)?;
        }
        Ok(())
    }
}
