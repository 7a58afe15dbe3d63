//! ext4, and ext3 and ext2 before it (Linux: Documentation/filesystems/ext4).
//!
//! What a machine has running, or was cut off from, has changes in its journal
//! that are not in place yet: blocks are read through it ([`Journal`]), which is
//! what a recovery would write, without writing.

use self::inode::{Inode, Stored};
use self::journal::Journal;
use crate::bytes::{text, u16_at, u32_at};
use crate::file::{Bytes, Place, Stretch, add_stretch};
use crate::file_system::{
    Entry, FileSystem, MAX_DIRECTORY_BYTES, MAX_ENTRIES, Node, NodeKind, Search,
};
use crate::{Error, Volume};

mod blocks;
mod inode;
mod journal;

/// An ext4 file system.
pub(crate) struct Ext4 {
    volume: Volume,
    superblock: Superblock,
    journal: Journal,
    search: Search,
}

/// What the superblock says, checked.
#[derive(Clone)]
struct Superblock {
    block_bytes: u64,
    blocks: u64,
    first_data_block: u64,
    blocks_per_group: u64,
    groups: u64,
    inodes: u32,
    inodes_per_group: u32,
    inode_bytes: u64,
    descriptor_bytes: u64,
    /// Groups of descriptors from this one on lie in their own groups.
    first_meta_group: u64,
    compatible: u32,
    incompatible: u32,
    read_only_compatible: u32,
    backup_groups: [u32; 2],
    journal_inode: u32,
}

const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_BYTES: usize = 1024;
const ROOT_INODE: u32 = 2;

/// s_feature_compat
mod compatible {
    pub(super) const HAS_JOURNAL: u32 = 0x4;
    pub(super) const SPARSE_SUPER2: u32 = 0x200;
}

/// s_feature_ro_compat
mod read_only_compatible {
    pub(super) const SPARSE_SUPER: u32 = 0x1;
}

/// s_feature_incompat
mod incompatible {
    pub(super) const COMPRESSION: u32 = 0x1;
    pub(super) const RECOVER: u32 = 0x4;
    pub(super) const JOURNAL_DEV: u32 = 0x8;
    pub(super) const META_BG: u32 = 0x10;
    pub(super) const BIT64: u32 = 0x80;
    pub(super) const DIRDATA: u32 = 0x1000;
    pub(super) const LARGEDIR: u32 = 0x4000;
    /// What can be read: file types, recovery, meta groups, extents, 64 bits,
    /// multiple mount protection, flexible groups, attributes in inodes,
    /// checksum seed, large directories, inline data, encryption and case
    /// folding (where they are not used on the way).
    pub(super) const READ: u32 = 0x2
        | RECOVER
        | META_BG
        | 0x40
        | BIT64
        | 0x100
        | 0x200
        | 0x400
        | 0x2000
        | LARGEDIR
        | 0x8000
        | 0x1_0000
        | 0x2_0000;
}

fn damaged(reason: impl Into<String>) -> Error {
    Error::damaged("the ext4 file system", reason)
}

impl Superblock {
    fn parse(bytes: &[u8], volume_bytes: u64) -> Result<Superblock, Error> {
        let field = |at| u32_at(bytes, at);
        if u16_at(bytes, 0x38) != 0xef53 {
            return Err(damaged("s_magic"));
        }
        let incompatible = field(0x60);
        if incompatible & incompatible::JOURNAL_DEV != 0 {
            return Err(Error::Foreign(
                "the journal of an ext4 file system that lies elsewhere".into(),
            ));
        }
        let unknown = incompatible & !incompatible::READ;
        if unknown != 0 {
            let what = match unknown {
                incompatible::COMPRESSION => "compression".to_owned(),
                incompatible::DIRDATA => "dirdata".to_owned(),
                _ => format!("feature {unknown:#x}"),
            };
            return Err(Error::Foreign(format!(
                "ext4 with {what}, which is not read"
            )));
        }
        let log_block_bytes = field(0x18);
        if log_block_bytes > 6 {
            return Err(damaged(format!("s_log_block_size is {log_block_bytes}")));
        }
        let block_bytes = 1024_u64 << log_block_bytes;
        let is_64 = incompatible & incompatible::BIT64 != 0;
        let high = if is_64 {
            u64::from(field(0x150)) << 32
        } else {
            0
        };
        let blocks = high | u64::from(field(0x4));
        if blocks
            .checked_mul(block_bytes)
            .is_none_or(|bytes| bytes > volume_bytes)
        {
            return Err(damaged(format!(
                "s_blocks_count says {blocks} blocks of {block_bytes} bytes, and its partition \
                 has {volume_bytes} bytes"
            )));
        }
        let first_data_block = u64::from(field(0x14));
        let blocks_per_group = u64::from(field(0x20));
        let inodes_per_group = field(0x28);
        let is_dynamic = field(0x4c) > 0;
        let inode_bytes = if is_dynamic {
            u64::from(u16_at(bytes, 0x58))
        } else {
            128
        };
        let descriptor_bytes = if is_64 {
            u64::from(u16_at(bytes, 0xfe))
        } else {
            32
        };
        if blocks_per_group == 0 || inodes_per_group == 0 || first_data_block >= blocks {
            return Err(damaged("s_blocks_per_group, s_inodes_per_group"));
        }
        if !inode_bytes.is_power_of_two() || !(128..=block_bytes).contains(&inode_bytes) {
            return Err(damaged(format!("s_inode_size is {inode_bytes}")));
        }
        let least = if is_64 { 64 } else { 32 };
        if !descriptor_bytes.is_power_of_two() || !(least..=1024).contains(&descriptor_bytes) {
            return Err(damaged(format!("s_desc_size is {descriptor_bytes}")));
        }
        Ok(Superblock {
            block_bytes,
            blocks,
            first_data_block,
            blocks_per_group,
            groups: (blocks - first_data_block).div_ceil(blocks_per_group),
            inodes: field(0x0),
            inodes_per_group,
            inode_bytes,
            descriptor_bytes,
            first_meta_group: u64::from(field(0x104)),
            compatible: field(0x5c),
            incompatible,
            read_only_compatible: field(0x64),
            backup_groups: [field(0x24c), field(0x250)],
            journal_inode: field(0xe0),
        })
    }

    fn has(&self, feature: u32) -> bool {
        self.incompatible & feature != 0
    }

    /// Where the descriptor of a group lies: block, and place in it.
    fn descriptor(&self, group: u64) -> (u64, u64) {
        let per_block = self.block_bytes / self.descriptor_bytes;
        let meta_group = group / per_block;
        let within = group % per_block * self.descriptor_bytes;
        if !self.has(incompatible::META_BG) || meta_group < self.first_meta_group {
            let behind = SUPERBLOCK_AT / self.block_bytes + 1;
            return (behind + meta_group, within);
        }
        let first = meta_group * per_block;
        // With blocks of 1 KiB in clusters, the first group begins with block 0.
        let extra = first == 0 && self.block_bytes == 1024 && self.first_data_block == 0;
        let behind = u64::from(self.has_superblock(first)) + u64::from(extra);
        let block = self.first_data_block + first * self.blocks_per_group + behind;
        (block, within)
    }

    /// Whether a group begins with a copy of the superblock.
    fn has_superblock(&self, group: u64) -> bool {
        if group == 0 {
            return true;
        }
        if self.compatible & compatible::SPARSE_SUPER2 != 0 {
            return self.backup_groups.iter().any(|&g| u64::from(g) == group);
        }
        if group == 1 || self.read_only_compatible & read_only_compatible::SPARSE_SUPER == 0 {
            return true;
        }
        [3, 5, 7].iter().any(|&base| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        })
    }
}

impl Ext4 {
    pub(crate) fn open(volume: &Volume) -> Result<Ext4, Error> {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        volume.read(SUPERBLOCK_AT, &mut bytes)?;
        let superblock = Superblock::parse(&bytes, volume.size_bytes())?;
        let mut file_system = Ext4 {
            volume: volume.clone(),
            superblock,
            journal: Journal::default(),
            search: Search::new(),
        };
        let superblock = &file_system.superblock;
        let is_journaled = superblock.compatible & compatible::HAS_JOURNAL != 0;
        if is_journaled && superblock.has(incompatible::RECOVER) {
            file_system.journal = Journal::read(&file_system)?;
            // The superblock is a block like others.
            let block = SUPERBLOCK_AT / file_system.superblock.block_bytes;
            let whole = file_system.block(block)?;
            let at = SUPERBLOCK_AT % file_system.superblock.block_bytes;
            let at = usize::try_from(at).unwrap_or(0);
            if let Some(bytes) = whole.get(at..at + SUPERBLOCK_BYTES) {
                file_system.superblock = Superblock::parse(bytes, volume.size_bytes())?;
            }
        }
        Ok(file_system)
    }

    /// A block, as it will be when the journal is recovered.
    fn block(&self, number: u64) -> Result<Vec<u8>, Error> {
        let place = self.journal.place(number);
        let mut block = self.block_in_place(place.block)?;
        if place.is_escaped {
            block[..4].copy_from_slice(&journal::MAGIC.to_be_bytes());
        }
        Ok(block)
    }

    /// A block as it lies on the volume.
    fn block_in_place(&self, number: u64) -> Result<Vec<u8>, Error> {
        let superblock = &self.superblock;
        if number >= superblock.blocks {
            return Err(damaged(format!(
                "block {number} is named, and there is none"
            )));
        }
        let mut block = vec![0; usize::try_from(superblock.block_bytes).unwrap_or(0)];
        self.volume
            .read(number * superblock.block_bytes, &mut block)?;
        Ok(block)
    }

    fn inode(&self, number: u32) -> Result<Inode, Error> {
        let superblock = &self.superblock;
        if number == 0 || number > superblock.inodes {
            return Err(damaged(format!(
                "inode {number} is named, and there is none"
            )));
        }
        let group = u64::from((number - 1) / superblock.inodes_per_group);
        let index = u64::from((number - 1) % superblock.inodes_per_group);
        if group >= superblock.groups {
            return Err(damaged(format!("inode {number} is of no group")));
        }
        let (block, at) = superblock.descriptor(group);
        let block = self.block(block)?;
        let descriptor = &block[usize::try_from(at).unwrap_or(0)..];
        let high = match superblock.descriptor_bytes {
            64.. => u64::from(u32_at(descriptor, 0x28)) << 32,
            _ => 0,
        };
        let table = high | u64::from(u32_at(descriptor, 0x8));
        let offset = index * superblock.inode_bytes;
        let block = table
            .checked_add(offset / superblock.block_bytes)
            .ok_or_else(|| damaged("bg_inode_table"))?;
        let block = self.block(block)?;
        let at = usize::try_from(offset % superblock.block_bytes).unwrap_or(0);
        let length = usize::try_from(superblock.inode_bytes).unwrap_or(0);
        let has_large_dirs = superblock.has(incompatible::LARGEDIR);
        Ok(Inode::parse(
            number,
            &block[at..at + length],
            has_large_dirs,
        ))
    }

    /// The bytes of a directory, in pieces that each begin with an entry.
    fn directory(&self, inode: &Inode) -> Result<DirectoryPieces, Error> {
        if inode.is_encrypted() {
            return Err(Error::Foreign(format!(
                "the directory of inode {} is encrypted (fscrypt): it cannot be read",
                inode.number
            )));
        }
        match inode.stored()? {
            // The first four bytes are the directory above.
            Stored::Inline(bytes) => {
                let (body, more) = bytes.split_at(bytes.len().min(60));
                Ok(DirectoryPieces {
                    pieces: vec![body.get(4..).unwrap_or_default().to_vec(), more.to_vec()],
                    stretches: Vec::new(),
                })
            }
            Stored::Blocks => {
                if inode.size_bytes > MAX_DIRECTORY_BYTES {
                    return Err(Error::TooMuch {
                        what: "bytes of one directory",
                        limit: MAX_DIRECTORY_BYTES,
                    });
                }
                Ok(DirectoryPieces {
                    pieces: Vec::new(),
                    stretches: self.stretches(inode)?,
                })
            }
        }
    }

    /// Calls `see` with every entry of a directory until it says that it has
    /// seen enough.
    fn each_entry(&self, directory: Node, see: &mut See<'_>) -> Result<(), Error> {
        let inode = self.inode(u32::try_from(directory.id).unwrap_or(0))?;
        if inode.kind() != NodeKind::Directory {
            return Err(damaged(format!("inode {} is no directory", inode.number)));
        }
        let found = self.directory(&inode)?;
        for piece in &found.pieces {
            if entries(piece, see)? == Seen::Enough {
                return Ok(());
            }
        }
        for stretch in &found.stretches {
            let mut at = 0;
            while at < stretch.bytes {
                // Stretches are whole blocks, where the journal says they lie.
                let mut block = vec![0; usize::try_from(self.superblock.block_bytes).unwrap_or(0)];
                self.search.spend(block.len())?;
                self.volume.read(stretch.from + at, &mut block)?;
                if entries(&block, see)? == Seen::Enough {
                    return Ok(());
                }
                at += self.superblock.block_bytes;
            }
        }
        Ok(())
    }

    fn node(&self, number: u32) -> Result<Node, Error> {
        let inode = self.inode(number)?;
        Ok(Node {
            id: u64::from(number),
            kind: inode.kind(),
            size_bytes: inode.size_bytes,
        })
    }
}

struct DirectoryPieces {
    pieces: Vec<Vec<u8>>,
    stretches: Vec<Stretch>,
}

/// Sees an entry of a directory: its name, its inode, its file type.
type See<'a> = dyn FnMut(&[u8], u32, u8) -> Result<Seen, Error> + 'a;

/// Whether more entries are wanted.
#[derive(PartialEq, Eq)]
enum Seen {
    More,
    Enough,
}

/// Goes through the entries of one block (struct ext4_dir_entry_2): those of a
/// directory's index and its checksums have inode 0.
fn entries(block: &[u8], see: &mut See<'_>) -> Result<Seen, Error> {
    let mut rest = block;
    while rest.len() >= 8 {
        // A block of 64 KiB does not fit in 16 bits.
        let length = match u16_at(rest, 4) {
            0 | u16::MAX if rest.len() > 65_532 => rest.len(),
            length => usize::from(length),
        };
        let name_end = 8 + usize::from(rest[6]);
        if length < 8 || length > rest.len() {
            return Err(damaged(format!(
                "an entry of a directory has rec_len {length}"
            )));
        }
        let inode = u32_at(rest, 0);
        if inode != 0 {
            let name = rest[..length]
                .get(8..name_end)
                .ok_or_else(|| damaged("the name of an entry is longer than the entry"))?;
            if see(name, inode, rest[7])? == Seen::Enough {
                return Ok(Seen::Enough);
            }
        }
        rest = &rest[length..];
    }
    Ok(Seen::More)
}

impl FileSystem for Ext4 {
    fn volume(&self) -> &Volume {
        &self.volume
    }

    fn root(&self) -> Result<Node, Error> {
        self.node(ROOT_INODE)
    }

    /// Goes through the directory from end to end: its index is not needed for
    /// the few that are looked into.
    fn find(&self, directory: Node, name: &str) -> Result<Option<Node>, Error> {
        let mut found = None;
        self.each_entry(directory, &mut |entry, inode, _| {
            if entry == name.as_bytes() {
                found = Some(inode);
                return Ok(Seen::Enough);
            }
            Ok(Seen::More)
        })?;
        found.map(|inode| self.node(inode)).transpose()
    }

    fn list(&self, directory: Node) -> Result<Vec<Entry>, Error> {
        let mut list = Vec::new();
        self.each_entry(directory, &mut |name, inode, file_type| {
            if name == b"." || name == b".." {
                return Ok(Seen::More);
            }
            if list.len() >= MAX_ENTRIES {
                return Err(Error::TooMuch {
                    what: "entries of one directory",
                    limit: MAX_ENTRIES as u64,
                });
            }
            let kind = match file_type {
                1 => NodeKind::File,
                2 => NodeKind::Directory,
                7 => NodeKind::Link,
                // The directory does not say (ext2 without `filetype`).
                0 => self.inode(inode)?.kind(),
                _ => NodeKind::Other,
            };
            list.push(Entry {
                name: String::from_utf8_lossy(name).into_owned(),
                kind,
            });
            Ok(Seen::More)
        })?;
        Ok(list)
    }

    fn link(&self, link: Node) -> Result<String, Error> {
        /// PATH_MAX
        const MAX_TARGET_BYTES: u64 = 4096;
        let inode = self.inode(u32::try_from(link.id).unwrap_or(0))?;
        if inode.is_encrypted() {
            return Err(Error::Foreign(format!(
                "the link of inode {} is encrypted (fscrypt): it cannot be read",
                inode.number
            )));
        }
        if inode.size_bytes > MAX_TARGET_BYTES {
            return Err(damaged(format!(
                "the link of inode {} has {} bytes",
                inode.number, inode.size_bytes
            )));
        }
        let target = match inode.link_in_place() {
            Some(target) => target.to_vec(),
            None => {
                let bytes = self.bytes(link)?;
                let file = crate::ReadableFile::new("", &self.volume, bytes);
                file.read_all(MAX_TARGET_BYTES)?
            }
        };
        Ok(text(&target))
    }

    fn bytes(&self, file: Node) -> Result<Bytes, Error> {
        let inode = self.inode(u32::try_from(file.id).unwrap_or(0))?;
        if inode.is_encrypted() {
            return Err(Error::Foreign(format!(
                "the file of inode {} is encrypted (fscrypt): it cannot be read",
                inode.number
            )));
        }
        let place = match inode.stored()? {
            Stored::Inline(bytes) => Place::Inline(bytes),
            Stored::Blocks => Place::Stretches(self.stretches(&inode)?),
        };
        Ok(Bytes {
            size_bytes: inode.size_bytes,
            place,
        })
    }
}

impl Ext4 {
    /// Adds blocks of a file, each where the journal has its newest bytes.
    fn add_blocks(
        &self,
        stretches: &mut Vec<Stretch>,
        at_block: u64,
        first: u64,
        count: u64,
    ) -> Result<(), Error> {
        let block_bytes = self.superblock.block_bytes;
        let is_inside = first
            .checked_add(count)
            .is_some_and(|end| end <= self.superblock.blocks);
        if !is_inside || first == 0 {
            return Err(damaged(format!(
                "blocks {first} and {count} more are a file's"
            )));
        }
        let mut done = 0;
        for (number, place) in self.journal.places(first..first + count) {
            if place.is_escaped {
                return Err(Error::Foreign(
                    "a file's bytes lie escaped in the journal: mount it once, so that it is \
                     recovered"
                        .into(),
                ));
            }
            let before = number - first - done;
            self.add(stretches, at_block + done, first + done, before)?;
            add_stretch(
                stretches,
                Stretch {
                    at: (at_block + number - first) * block_bytes,
                    from: place.block * block_bytes,
                    bytes: block_bytes,
                },
            )?;
            done = number - first + 1;
        }
        self.add(stretches, at_block + done, first + done, count - done)
    }

    fn add(
        &self,
        stretches: &mut Vec<Stretch>,
        at_block: u64,
        first: u64,
        count: u64,
    ) -> Result<(), Error> {
        if count == 0 {
            return Ok(());
        }
        let block_bytes = self.superblock.block_bytes;
        add_stretch(
            stretches,
            Stretch {
                at: at_block * block_bytes,
                from: first * block_bytes,
                bytes: count * block_bytes,
            },
        )
    }
}

#[cfg(test)]
mod tests;
