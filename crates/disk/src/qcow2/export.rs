//! A disk written once as a qcow2 file of version 3.
//!
//! Header and first-level table at the front, then clusters of data as they
//! come, each second-level table after the clusters it lists, the refcounts at
//! the end: every cluster of the file is used once. Written in order, never
//! read; whole only when it has been flushed.

use std::ops::ControlFlow;
use std::path::Path;

use super::header::{NewHeader, l1_entries};
use super::{COPIED, OFFSET_MASK};
use crate::files::{File, Files};
use crate::health::trouble;
use crate::{Allocation, CopyError, Disk, DiskError};

/// QEMU's own choice.
const CLUSTER_BITS: u32 = 16;
const CLUSTER_BYTES: u64 = 1 << CLUSTER_BITS;

/// Entries of a second-level table.
const L2_ENTRIES: u64 = CLUSTER_BYTES / 8;

/// Refcounts, of 16 bits, in one block.
const REFCOUNTS: u64 = CLUSTER_BYTES / 2;

/// Bytes read at a time, whole clusters.
const PIECE_BYTES: u64 = 16 * CLUSTER_BYTES;

/// Written, at most, between two syncs, so that the last one is short.
const SYNC_BYTES: u64 = 64 << 20;

/// Writes all of `source` to the new file `path`; clusters of zeros are left
/// out. Durable when it returns; what it leaves when it fails is no disk.
///
/// `progress` as in [`copy`](crate::copy).
pub fn export(
    source: &dyn Disk,
    path: &Path,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<(), CopyError> {
    let failed = |e| CopyError::Target(trouble(format!("creating {}", path.display()), e));
    let files = Files::real().map_err(failed)?;
    let file = files.create_file(path).map_err(failed)?;
    let size_bytes = source.geometry().size_bytes;
    let l1_clusters = (8 * l1_entries(size_bytes, CLUSTER_BITS)).div_ceil(CLUSTER_BYTES);
    let mut target = Target {
        path,
        file,
        size_bytes,
        l1: Vec::new(),
        l2: Vec::new(),
        // The header's cluster is the first.
        next: (1 + l1_clusters) * CLUSTER_BYTES,
        unsynced_bytes: 0,
    };
    let mut piece = vec![0; usize::try_from(PIECE_BYTES).unwrap_or(0)];
    let mut at = 0;
    while at < size_bytes {
        if progress(at).is_break() {
            return Err(CopyError::Cancelled);
        }
        let extent = source
            .extent(at, size_bytes - at)
            .map_err(CopyError::Source)?;
        // Only whole clusters may be left out.
        let end = at + extent.bytes;
        let skipped = end - end % CLUSTER_BYTES;
        if extent.allocation == Allocation::Deallocated && (skipped > at || end == size_bytes) {
            at = if end == size_bytes { end } else { skipped };
            continue;
        }
        let wanted = extent.bytes.next_multiple_of(CLUSTER_BYTES);
        let bytes = wanted.min(PIECE_BYTES).min(size_bytes - at);
        source.will_need(at + bytes, PIECE_BYTES.min(size_bytes - at - bytes));
        // The last cluster is filled up with zeros.
        let whole = bytes.next_multiple_of(CLUSTER_BYTES);
        let part = &mut piece[..usize::try_from(whole).unwrap_or(0)];
        let (read, rest) = part.split_at_mut(usize::try_from(bytes).unwrap_or(0));
        source.read(at, read).map_err(CopyError::Source)?;
        rest.fill(0);
        target.put(at, part).map_err(CopyError::Target)?;
        at += bytes;
    }
    target.finish().map_err(CopyError::Target)?;
    files
        .sync_dir(
            path.parent()
                .filter(|p| *p != Path::new(""))
                .unwrap_or(Path::new(".")),
        )
        .map_err(failed)?;
    let _ = progress(size_bytes);
    Ok(())
}

fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; 4096] = [0; 4096];
    bytes
        .chunks(ZEROS.len())
        .all(|part| *part == ZEROS[..part.len()])
}

/// The file as far as it is written.
struct Target<'a> {
    path: &'a Path,
    file: File,
    size_bytes: u64,
    /// Where the tables lie that are written; 0 where there is none.
    l1: Vec<u64>,
    /// The table that is being filled, the one of `l1.len()`; empty as long as
    /// nothing is in it.
    l2: Vec<u8>,
    /// Where the next cluster goes.
    next: u64,
    unsynced_bytes: u64,
}

impl Target<'_> {
    /// Takes whole clusters of the disk, in order.
    fn put(&mut self, offset: u64, clusters: &[u8]) -> Result<(), DiskError> {
        let cluster_bytes = usize::try_from(CLUSTER_BYTES).unwrap_or(usize::MAX);
        let mut at = 0;
        while at < clusters.len() {
            let rest = &clusters[at..];
            let run = rest
                .chunks(cluster_bytes)
                .take_while(|cluster| !is_zero(cluster))
                .count();
            let bytes = run * cluster_bytes;
            if run == 0 {
                at += cluster_bytes;
                continue;
            }
            let first = (offset + at as u64) / CLUSTER_BYTES;
            // A table that ends inside the run is written between its parts.
            let left = L2_ENTRIES - first % L2_ENTRIES;
            let run = (run as u64).min(left);
            let bytes = bytes.min(usize::try_from(run).unwrap_or(0) * cluster_bytes);
            self.begin_table(first / L2_ENTRIES)?;
            for index in 0..run {
                let entry = (self.next + index * CLUSTER_BYTES) | COPIED;
                let slot = usize::try_from((first + index) % L2_ENTRIES).unwrap_or(0);
                self.l2[8 * slot..8 * slot + 8].copy_from_slice(&entry.to_be_bytes());
            }
            self.append(&rest[..bytes])?;
            at += bytes;
        }
        Ok(())
    }

    /// Makes the table `index` the one that is filled.
    fn begin_table(&mut self, index: u64) -> Result<(), DiskError> {
        self.end_tables_before(index)?;
        if self.l2.is_empty() {
            self.l2 = vec![0; usize::try_from(CLUSTER_BYTES).unwrap_or(0)];
        }
        Ok(())
    }

    fn end_tables_before(&mut self, index: u64) -> Result<(), DiskError> {
        while (self.l1.len() as u64) < index {
            let table = std::mem::take(&mut self.l2);
            let at = if table.is_empty() { 0 } else { self.next };
            if at > 0 {
                self.append(&table)?;
            }
            self.l1.push(at);
        }
        Ok(())
    }

    /// Writes whole clusters behind the others.
    fn append(&mut self, clusters: &[u8]) -> Result<(), DiskError> {
        self.write(clusters, self.next)?;
        self.next += clusters.len() as u64;
        self.unsynced_bytes += clusters.len() as u64;
        if self.unsynced_bytes >= SYNC_BYTES {
            self.sync()?;
        }
        Ok(())
    }

    /// The last tables, the refcounts and the header.
    fn finish(&mut self) -> Result<(), DiskError> {
        let tables = l1_entries(self.size_bytes, CLUSTER_BITS);
        self.end_tables_before(tables)?;
        let l1: Vec<u8> = self
            .l1
            .iter()
            .flat_map(|at| {
                if *at == 0 {
                    0
                } else {
                    (at & OFFSET_MASK) | COPIED
                }
                .to_be_bytes()
            })
            .collect();
        self.write(&l1, CLUSTER_BYTES)?;

        // Refcounts count themselves, and the table that finds them.
        let used = self.next / CLUSTER_BYTES;
        let (mut blocks, mut table_clusters) = (0, 0);
        loop {
            let clusters = used + blocks + table_clusters;
            let needed = clusters.div_ceil(REFCOUNTS);
            let table_needed = (8 * needed).div_ceil(CLUSTER_BYTES);
            if (needed, table_needed) == (blocks, table_clusters) {
                break;
            }
            (blocks, table_clusters) = (needed, table_needed);
        }
        let refcounts_at = self.next;
        let mut left = used + blocks + table_clusters;
        let mut block = Vec::new();
        for _ in 0..blocks {
            block.clear();
            for _ in 0..left.min(REFCOUNTS) {
                block.extend(1_u16.to_be_bytes());
            }
            left -= left.min(REFCOUNTS);
            block.resize(usize::try_from(CLUSTER_BYTES).unwrap_or(0), 0);
            self.append(&block)?;
        }
        let table_at = self.next;
        let mut table: Vec<u8> = (0..blocks)
            .flat_map(|block| (refcounts_at + block * CLUSTER_BYTES).to_be_bytes())
            .collect();
        let table_bytes = table_clusters * CLUSTER_BYTES;
        table.resize(usize::try_from(table_bytes).unwrap_or(0), 0);
        self.append(&table)?;
        // All but the header; without it the file is no disk.
        self.sync()?;
        let header = NewHeader {
            cluster_bits: CLUSTER_BITS,
            size_bytes: self.size_bytes,
            l1_offset: CLUSTER_BYTES,
            l1_entries: u32::try_from(tables).unwrap_or(u32::MAX),
            refcount_table_offset: table_at,
            refcount_table_clusters: u32::try_from(table_clusters).unwrap_or(u32::MAX),
        };
        self.write(&header.emit(), 0)?;
        self.sync()
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<(), DiskError> {
        let written = self.file.write_all_at(bytes, at);
        written.map_err(|e| trouble(format!("writing {}", self.path.display()), e))
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        self.unsynced_bytes = 0;
        let synced = self.file.sync_data();
        synced.map_err(|e| trouble(format!("flushing {}", self.path.display()), e))
    }
}
