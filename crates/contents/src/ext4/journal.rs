//! The journal of an ext3 or ext4 file system (Linux: fs/jbd2), read without
//! being recovered: which blocks it holds newer bytes of.
//!
//! Of changes that a fast commit alone holds (a feature that is off unless
//! somebody asks for it), what the last full commit says is seen.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Ext4, damaged};
use crate::Error;
use crate::bytes::be32_at;
use crate::file::Stretch;

/// h_magic, big-endian as all of a journal is.
pub(super) const MAGIC: u32 = 0xc03b_3998;

/// Blocks that have newer bytes in the journal than in place.
#[derive(Default)]
pub(super) struct Journal {
    newer: BTreeMap<u64, Place>,
}

/// Where the newest bytes of a block lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) block: u64,
    /// Its first four bytes are [`MAGIC`], which a journal does not store.
    pub(super) is_escaped: bool,
}

/// Blocks of a journal that are looked through: 2 GiB of 4 KiB.
const MAX_BLOCKS: u32 = 1 << 19;
/// Revocations that are kept in mind.
const MAX_REVOKED: usize = 1 << 20;

/// h_blocktype
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_V1: u32 = 3;
const SUPERBLOCK_V2: u32 = 4;
const REVOKE: u32 = 5;

/// s_feature_incompat
const BIT64: u32 = 0x2;
const CSUM_V2: u32 = 0x8;
const CSUM_V3: u32 = 0x10;
const FAST_COMMIT: u32 = 0x20;
/// Revocations and asynchronous commits besides.
const READ: u32 = 0x1 | BIT64 | 0x4 | CSUM_V2 | CSUM_V3 | FAST_COMMIT;
/// Blocks for fast commits, where the superblock says nothing else.
const FAST_COMMIT_BLOCKS: u32 = 256;

/// Flags of a tag.
const ESCAPED: u32 = 0x1;
const SAME_UUID: u32 = 0x2;
const LAST_TAG: u32 = 0x8;

/// Length of the header that every block of a journal's own begins with.
const HEADER_BYTES: usize = 12;

impl Journal {
    /// Where the newest bytes of a block lie.
    pub(super) fn place(&self, block: u64) -> Place {
        self.newer.get(&block).copied().unwrap_or(Place {
            block,
            is_escaped: false,
        })
    }

    /// Those of `blocks` that it has newer bytes of.
    pub(super) fn places(&self, blocks: Range<u64>) -> impl Iterator<Item = (u64, Place)> {
        let newer = self.newer.range(blocks);
        newer.map(|(block, place)| (*block, *place))
    }

    /// Reads the journal of a file system that was not unmounted.
    pub(super) fn read(file_system: &Ext4) -> Result<Journal, Error> {
        let inode = file_system.inode(file_system.superblock.journal_inode)?;
        let stretches = file_system.stretches(&inode)?;
        let log = Log::open(file_system, &stretches)?;
        let mut journal = Journal::default();
        if log.start == 0 {
            return Ok(journal); // nothing is in it
        }
        // Two passes, as a recovery makes them: a revocation of a later
        // transaction counts for the earlier ones.
        let mut revoked = Revoked::default();
        let end = log.each(&mut |sequence, record| match record {
            Record::Revoke(blocks) => revoked.add(sequence, blocks),
            Record::Newer(..) => Ok(()),
        })?;
        log.each(&mut |sequence, record| {
            let Record::Newer(block, place) = record else {
                return Ok(());
            };
            // What is not committed does not count.
            let is_committed = is_later(end, sequence);
            let is_revoked = revoked
                .last(block)
                .is_some_and(|last| is_later(end, last) && !is_later(sequence, last));
            if is_committed && !is_revoked {
                journal.newer.insert(block, place);
            }
            Ok(())
        })?;
        Ok(journal)
    }
}

/// Whether a sequence number, which wraps around, is after another.
fn is_later(sequence: u32, than: u32) -> bool {
    let ahead = sequence.wrapping_sub(than);
    ahead != 0 && ahead < 1 << 31
}

/// The last transaction that revoked a block, for each that was.
#[derive(Default)]
struct Revoked(BTreeMap<u64, u32>);

impl Revoked {
    /// Adds those of one block of a journal; refuses them once there are too
    /// many, before they are kept.
    fn add(&mut self, sequence: u32, blocks: Vec<u64>) -> Result<(), Error> {
        if self.0.len() + blocks.len() > MAX_REVOKED {
            return Err(Error::TooMuch {
                what: "revocations in a journal",
                limit: MAX_REVOKED as u64,
            });
        }
        for block in blocks {
            let last = self.0.entry(block).or_insert(sequence);
            if is_later(sequence, *last) {
                *last = sequence;
            }
        }
        Ok(())
    }

    fn last(&self, block: u64) -> Option<u32> {
        self.0.get(&block).copied()
    }
}

/// What a journal says.
enum Record {
    /// Newer bytes of a block.
    Newer(u64, Place),
    /// Older bytes of these blocks are of no use any more.
    Revoke(Vec<u64>),
}

/// Sees what a transaction says, by its number.
type See<'a> = dyn FnMut(u32, Record) -> Result<(), Error> + 'a;

/// The blocks of a journal, from its superblock on.
struct Log<'a> {
    file_system: &'a Ext4,
    /// Which block of the volume each of it is.
    blocks: Vec<u64>,
    /// The first block of transactions, and one behind the last.
    first: u32,
    end: u32,
    /// Where the oldest transaction begins, and its number.
    start: u32,
    sequence: u32,
    incompatible: u32,
    /// What checksums start from, where there are any.
    seed: Option<u32>,
}

impl Log<'_> {
    fn open<'a>(file_system: &'a Ext4, stretches: &[Stretch]) -> Result<Log<'a>, Error> {
        let block_bytes = file_system.superblock.block_bytes;
        let mut blocks = Vec::new();
        for stretch in stretches {
            if stretch.at != blocks.len() as u64 * block_bytes {
                return Err(damaged("its journal has a hole"));
            }
            let first = stretch.from / block_bytes;
            for block in first..first + stretch.bytes / block_bytes {
                if blocks.len() >= MAX_BLOCKS as usize {
                    return Err(Error::TooMuch {
                        what: "blocks of a journal",
                        limit: u64::from(MAX_BLOCKS),
                    });
                }
                blocks.push(block);
            }
        }
        let Some(&head) = blocks.first() else {
            return Err(damaged("its journal is empty"));
        };
        let head = file_system.block_in_place(head)?;
        let kind = be32_at(&head, 4);
        if be32_at(&head, 0) != MAGIC || !matches!(kind, SUPERBLOCK_V1 | SUPERBLOCK_V2) {
            return Err(damaged("its journal's superblock"));
        }
        let incompatible = match kind {
            SUPERBLOCK_V2 => be32_at(&head, 0x28),
            _ => 0,
        };
        if incompatible & !READ != 0 {
            return Err(Error::Foreign(format!(
                "ext4 whose journal has feature {:#x}, which is not read: mount it once, so that \
                 it is recovered",
                incompatible & !READ
            )));
        }
        let is_summed = incompatible & (CSUM_V2 | CSUM_V3) != 0;
        if is_summed {
            let mut summed = head[..1024].to_vec();
            summed[0xfc..0x100].fill(0);
            if !crc32c::crc32c(&summed) != be32_at(&head, 0xfc) {
                return Err(damaged("its journal's superblock: s_checksum"));
            }
        }
        let fast = match (incompatible & FAST_COMMIT, be32_at(&head, 0x54)) {
            (0, _) => 0,
            (_, 0) => FAST_COMMIT_BLOCKS,
            (_, count) => count,
        };
        // The blocks of fast commits come last.
        let stored = u32::try_from(blocks.len()).unwrap_or(MAX_BLOCKS);
        let end = be32_at(&head, 0x10).min(stored).saturating_sub(fast);
        let first = be32_at(&head, 0x14);
        let start = be32_at(&head, 0x1c);
        let is_sound = first >= 1 && first < end && (start == 0 || (first..end).contains(&start));
        if u64::from(be32_at(&head, 0xc)) != block_bytes || !is_sound {
            return Err(damaged(
                "its journal's superblock: s_blocksize, s_first, s_start",
            ));
        }
        Ok(Log {
            file_system,
            blocks,
            first,
            end,
            start,
            sequence: be32_at(&head, 0x18),
            incompatible,
            seed: is_summed.then(|| crc32c::crc32c(&head[0x30..0x40])),
        })
    }

    /// Goes through all transactions, until `see` refuses; gives the number of
    /// the first that was not committed.
    fn each(&self, see: &mut See<'_>) -> Result<u32, Error> {
        let mut at = self.start;
        let mut sequence = self.sequence;
        // A journal is gone round once at most.
        let mut left = self.end - self.first;
        while left > 0 {
            let block = self.block(at)?;
            if be32_at(&block, 0) != MAGIC || be32_at(&block, 8) != sequence {
                break;
            }
            let mut passed = 1;
            match be32_at(&block, 4) {
                DESCRIPTOR if self.is_whole(&block, block.len() - 4) => {
                    passed += self.tags(&block, at, left - 1, &mut |block, place| {
                        see(sequence, Record::Newer(block, place))
                    })?;
                }
                REVOKE if self.is_whole(&block, block.len() - 4) => {
                    see(sequence, Record::Revoke(self.revoked(&block)))?;
                }
                // h_chksum[0]
                COMMIT if self.is_whole(&block, 0x10) => sequence = sequence.wrapping_add(1),
                _ => break,
            }
            at = self.after(at, passed);
            left -= passed;
        }
        Ok(sequence)
    }

    /// The block that is `by` blocks behind another, round the end.
    fn after(&self, at: u32, by: u32) -> u32 {
        let length = self.end - self.first;
        self.first + (at - self.first + by) % length
    }

    fn block(&self, at: u32) -> Result<Vec<u8>, Error> {
        self.file_system.block_in_place(self.place(at))
    }

    fn place(&self, at: u32) -> u64 {
        let index = usize::try_from(at).unwrap_or(usize::MAX);
        self.blocks.get(index).copied().unwrap_or(u64::MAX)
    }

    /// Whether the checksum at `at` in a block is right, where there is one.
    fn is_whole(&self, block: &[u8], at: usize) -> bool {
        let Some(seed) = self.seed else {
            return true;
        };
        let mut zeroed = block.to_vec();
        zeroed[at..at + 4].fill(0);
        // Linux leaves out the last inversion of a crc32c.
        !crc32c::crc32c_append(seed, &zeroed) == be32_at(block, at)
    }

    /// Goes through the tags of a descriptor, each for the block that follows
    /// in its turn, and at most `left`; gives how many there were.
    fn tags(
        &self,
        block: &[u8],
        at: u32,
        left: u32,
        see: &mut dyn FnMut(u64, Place) -> Result<(), Error>,
    ) -> Result<u32, Error> {
        let has = |feature| self.incompatible & feature != 0;
        let tag_bytes = match (has(CSUM_V3), has(BIT64)) {
            (true, _) => 16,
            (false, true) => 12,
            (false, false) => 8,
        };
        // Those of the second version are two bytes longer than they need be.
        let tag_bytes = tag_bytes + if has(CSUM_V2) && !has(CSUM_V3) { 2 } else { 0 };
        let tail = if self.seed.is_some() { 4 } else { 0 };
        let tags = &block[..block.len() - tail];
        let mut offset = HEADER_BYTES;
        let mut count = 0;
        while let Some(tag) = tags.get(offset..offset + tag_bytes)
            && count < left
        {
            let flags = match has(CSUM_V3) {
                true => be32_at(tag, 4),
                false => be32_at(tag, 4) & 0xffff,
            };
            let high = match has(BIT64) {
                true => u64::from(be32_at(tag, 8)) << 32,
                false => 0,
            };
            count += 1;
            let place = Place {
                block: self.place(self.after(at, count)),
                is_escaped: flags & ESCAPED != 0,
            };
            see(high | u64::from(be32_at(tag, 0)), place)?;
            if flags & LAST_TAG != 0 {
                break;
            }
            offset += tag_bytes + if flags & SAME_UUID == 0 { 16 } else { 0 };
        }
        Ok(count)
    }

    fn revoked(&self, block: &[u8]) -> Vec<u64> {
        let end = usize::try_from(be32_at(block, 0xc)).unwrap_or(0);
        let entries = block.get(HEADER_BYTES + 4..end).unwrap_or_default();
        match self.incompatible & BIT64 {
            0 => entries
                .chunks_exact(4)
                .map(|entry| u64::from(be32_at(entry, 0)))
                .collect(),
            _ => entries
                .chunks_exact(8)
                .map(|entry| u64::from(be32_at(entry, 0)) << 32 | u64::from(be32_at(entry, 4)))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_revocations_are_kept_than_there_may_be() {
        // A block of 64 KiB holds so many of 64 bits.
        let per_block = 8190;
        let mut revoked = Revoked::default();
        let refused = (0..1000).find_map(|number| {
            let blocks = (number * per_block..(number + 1) * per_block).collect();
            revoked.add(1, blocks).err()
        });
        assert!(matches!(refused, Some(Error::TooMuch { .. })));
        assert!(revoked.0.len() <= MAX_REVOKED);
    }
}
