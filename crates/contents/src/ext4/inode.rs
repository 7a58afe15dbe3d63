//! Inodes (struct ext4_inode), and files stored within them.

use super::{NodeKind, damaged};
use crate::Error;
use crate::bytes::{u16_at, u32_at};

/// An inode.
pub(super) struct Inode {
    pub(super) number: u32,
    pub(super) size_bytes: u64,
    mode: u16,
    flags: u32,
    bytes: Vec<u8>,
}

/// How the bytes of an inode's file are stored.
pub(super) enum Stored {
    /// In blocks, which extents or a map name.
    Blocks,
    /// In the inode.
    Inline(Vec<u8>),
}

/// i_block, and where it lies.
const BLOCK_AT: usize = 0x28;
pub(super) const BLOCK_BYTES: usize = 60;
/// Where an inode's own part ends and that of i_extra_isize begins.
const EXTRA_AT: usize = 128;
/// i_flags
const ENCRYPTED: u32 = 0x800;
const EXTENTS: u32 = 0x8_0000;
const INLINE_DATA: u32 = 0x1000_0000;
/// h_magic of the attributes in an inode.
const ATTRIBUTES_MAGIC: u32 = 0xea02_0000;
/// e_name_index of `system.data`'s prefix.
const SYSTEM: u8 = 7;

impl Inode {
    /// Of the inode's `bytes`, at least 128 of them.
    pub(super) fn parse(number: u32, bytes: &[u8], has_large_dirs: bool) -> Inode {
        let mode = u16_at(bytes, 0);
        let low = u64::from(u32_at(bytes, 0x4));
        // A directory's upper half was something else once.
        let is_large = mode & 0xf000 != 0x4000 || has_large_dirs;
        let high = match is_large {
            true => u64::from(u32_at(bytes, 0x6c)) << 32,
            false => 0,
        };
        Inode {
            number,
            size_bytes: high | low,
            mode,
            flags: u32_at(bytes, 0x20),
            bytes: bytes.to_vec(),
        }
    }

    pub(super) fn kind(&self) -> NodeKind {
        match self.mode & 0xf000 {
            0x8000 => NodeKind::File,
            0x4000 => NodeKind::Directory,
            0xa000 => NodeKind::Link,
            _ => NodeKind::Other,
        }
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.flags & ENCRYPTED != 0
    }

    pub(super) fn has_extents(&self) -> bool {
        self.flags & EXTENTS != 0
    }

    /// i_block: the root of a tree of extents, a map, a link, or data.
    pub(super) fn block(&self) -> &[u8] {
        &self.bytes[BLOCK_AT..BLOCK_AT + BLOCK_BYTES]
    }

    /// A link that is short enough to lie in the inode.
    pub(super) fn link_in_place(&self) -> Option<&[u8]> {
        let length = usize::try_from(self.size_bytes).ok()?;
        let is_here = length < BLOCK_BYTES && self.flags & (EXTENTS | INLINE_DATA) == 0;
        is_here.then(|| &self.block()[..length])
    }

    pub(super) fn stored(&self) -> Result<Stored, Error> {
        if self.flags & INLINE_DATA == 0 {
            return Ok(Stored::Blocks);
        }
        let mut bytes = self.block().to_vec();
        bytes.extend(self.more_data()?);
        let length = usize::try_from(self.size_bytes).unwrap_or(usize::MAX);
        if bytes.len() < length {
            return Err(damaged(format!(
                "inode {} holds fewer than its {length} bytes",
                self.number
            )));
        }
        bytes.truncate(length);
        Ok(Stored::Inline(bytes))
    }

    /// What does not fit in i_block: the attribute `system.data`.
    fn more_data(&self) -> Result<&[u8], Error> {
        let wrong = || damaged(format!("the attributes of inode {}", self.number));
        let extra = usize::from(u16_at(&self.bytes, EXTRA_AT));
        let Some(attributes) = self.bytes.get(EXTRA_AT + extra..) else {
            return Ok(&[]);
        };
        if u32_at(attributes, 0) != ATTRIBUTES_MAGIC {
            return Ok(&[]);
        }
        // Values are counted from the first entry.
        let entries = &attributes[4..];
        let mut at = 0;
        while let Some(entry) = entries.get(at..).filter(|entry| entry.len() >= 16) {
            let name_bytes = usize::from(entry[0]);
            if u32_at(entry, 0) == 0 {
                break;
            }
            let name = entry.get(16..16 + name_bytes).ok_or_else(wrong)?;
            if entry[1] == SYSTEM && name == b"data" {
                let from = usize::from(u16_at(entry, 2));
                let length = usize::try_from(u32_at(entry, 8)).unwrap_or(usize::MAX);
                let end = from.checked_add(length).ok_or_else(wrong)?;
                return entries.get(from..end).ok_or_else(wrong);
            }
            at += (16 + name_bytes).next_multiple_of(4);
        }
        Ok(&[])
    }
}
