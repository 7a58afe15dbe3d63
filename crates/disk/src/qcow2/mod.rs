//! QEMU's qcow2 (`docs/interop/qcow2` of QEMU, versions 2 and 3): read-only,
//! and written once as an export.
//!
//! Two levels of tables lead from a disk's clusters to the file's; a cluster
//! that is in neither is that of the backing file, or zeros. Tables are read
//! as they are asked for, a few entries at a time, from the page cache: an
//! open file costs its first-level table and one cluster, whatever its size.
//!
//! Snapshots inside the file are not looked at: the disk is its present state.
//! Refcounts neither; a file that is marked dirty therefore reads as any other.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use miniz_oxide::inflate::decompress_slice_iter_to_slice;
use rustix::fs::{Advice, FlockOperation, fadvise, flock};

use self::header::{Backing, Header, Refusal};
use crate::description::Description;
use crate::fault::Fault;
use crate::health::trouble;
use crate::probe::{Format, VhdKind, probe};
use crate::{
    Access, Allocation, Disk, DiskError, Durability, Extent, Geometry, OpenError, Opening,
    SharedDisk, Space, files, formats, range,
};

mod export;
mod header;
#[cfg(test)]
mod tests;

pub use export::export;

/// Longest chain of backing files.
const CHAIN_MAX: usize = 64;

/// First-level tables of a whole chain, which lie in memory: eight of the
/// longest; those of a chain over 2 TiB in clusters of 64 KiB have 2 MiB. In
/// tests little, so that it is used up.
const CHAIN_L1_MAX_BYTES: u64 = if cfg!(test) { 1 << 20 } else { 256 << 20 };

/// Entries of a second-level table that are read at a time.
const SLICE_ENTRIES: u64 = SLICE_BYTES as u64 / 8;
const SLICE_BYTES: usize = 4096;

/// Slices that one question after an extent looks at.
const EXTENT_SLICES_MAX: usize = 64;

/// Bits 9 to 55 of an entry: where a table or cluster lies.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ALL_ZEROS: u64 = 1;

/// A qcow2 file, read-only.
pub(crate) struct Qcow2 {
    path: PathBuf,
    file: File,
    file_bytes: u64,
    header: Header,
    l1: Vec<u64>,
    backing: Option<SharedDisk>,
    /// Files of the chain below, the nearest first.
    parents: Vec<PathBuf>,
    /// The cluster that was decompressed last, by its entry.
    inflated: Mutex<Option<(u64, Vec<u8>)>>,
}

/// Where some bytes of the disk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the file, from this offset on.
    Stored(u64),
    /// In a compressed cluster with this entry, from this byte of it on.
    Compressed(u64, u64),
    /// Nowhere: zeros.
    Zeros,
    /// Below, or zeros where nothing is.
    Below,
}

/// Opens the qcow2 file at `path` and the chain below it, read-only.
pub(crate) fn open(path: &Path, opening: &Opening) -> Result<Qcow2, OpenError> {
    open_above(path, opening, &mut Above::default())
}

/// The files that led to another.
#[derive(Default)]
struct Above {
    paths: Vec<PathBuf>,
    l1_bytes: u64,
}

/// The same; `above` are the files that led to this one.
fn open_above(path: &Path, opening: &Opening, above: &mut Above) -> Result<Qcow2, OpenError> {
    if opening.access == Access::ReadWrite {
        return Err(foreign(
            path,
            "a qcow2 file, which cannot be written in place",
        ));
    }
    let opened = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => OpenError::Missing {
            path: path.to_owned(),
        },
        _ => trouble(format!("opening {}", path.display()), e).into(),
    };
    // Asked before it is opened: a pipe would wait for its other end.
    let kind = std::fs::metadata(path).map_err(opened)?.file_type();
    if !kind.is_file() {
        return Err(foreign(path, "not a file"));
    }
    let file = File::open(path).map_err(opened)?;
    flock(&file, FlockOperation::NonBlockingLockShared).map_err(|e| match e {
        rustix::io::Errno::WOULDBLOCK => OpenError::InUse {
            path: path.to_owned(),
        },
        other => opened(other.into()),
    })?;
    let file_bytes = file.metadata().map_err(opened)?.len();
    let malformed = |fault: Fault| fault.of(path, 0);
    // Header, extensions and name lie in the first cluster, of 2 MiB at most.
    let first_bytes = file_bytes.min(2 << 20);
    let mut first = vec![0; usize::try_from(first_bytes).unwrap_or(0)];
    file.read_exact_at(&mut first, 0).map_err(opened)?;
    let header = Header::parse(&first).map_err(|refusal| match refusal {
        Refusal::Fault(fault) => malformed(fault),
        Refusal::Foreign(what) => foreign(path, what),
    })?;
    drop(first);
    let l1_bytes = 8 * header.l1_entries;
    if header.l1_offset.saturating_add(l1_bytes) > file_bytes {
        let reason = format!(
            "{}+{l1_bytes} leaves the file of {file_bytes} bytes: is it cut off?",
            header.l1_offset
        );
        return Err(malformed(Fault::new("l1_table_offset", 40, reason)));
    }
    above.l1_bytes += l1_bytes;
    if above.l1_bytes > CHAIN_L1_MAX_BYTES {
        let reason = format!(
            "with the files above it the tables have {} bytes, and {CHAIN_L1_MAX_BYTES} are read",
            above.l1_bytes
        );
        return Err(malformed(Fault::new("l1_size", 36, reason)));
    }
    let mut table = vec![0; usize::try_from(l1_bytes).unwrap_or(0)];
    file.read_exact_at(&mut table, header.l1_offset)
        .map_err(opened)?;
    let l1 = entries(&table).collect();
    // Not held while the files below are opened, each with one of its own.
    drop(table);
    let mut disk = Qcow2 {
        path: path.to_owned(),
        file,
        file_bytes,
        l1,
        header,
        backing: None,
        parents: Vec::new(),
        inflated: Mutex::default(),
    };
    if let Some(backing) = disk.header.backing.clone() {
        disk.open_backing(&backing, opening, above)?;
    }
    Ok(disk)
}

impl Qcow2 {
    fn open_backing(
        &mut self,
        backing: &Backing,
        opening: &Opening,
        above: &mut Above,
    ) -> Result<(), OpenError> {
        let refused = |why: String| OpenError::Foreign {
            advice: format!(
                "{} needs its backing file {:?}, {why}",
                self.path.display(),
                backing.name
            ),
        };
        let path =
            backing_path(&self.path, &backing.name, &opening.parent_roots).map_err(refused)?;
        let real = self
            .path
            .canonicalize()
            .unwrap_or_else(|_| self.path.clone());
        above.paths.push(real);
        if above.paths.contains(&path) {
            return Err(refused("which leads back to it".to_owned()));
        }
        if above.paths.len() > CHAIN_MAX {
            return Err(refused(format!("the {CHAIN_MAX}th of its chain: too many")));
        }
        let format = match backing.format.as_deref() {
            Some("raw") => Format::Raw,
            Some("qcow2") => Format::Qcow2,
            Some("vpc") => match probe(&path)? {
                vhd @ Format::Vhd(_) => vhd,
                // qemu knows no footer it was not told of.
                _ => Format::Vhd(VhdKind::Unknown),
            },
            Some("vhdx") => Format::Vhdx,
            None => probe(&path)?,
            Some(other) => return Err(refused(format!("of format {other:?}, not read here"))),
        };
        let opening = Opening {
            format: Some(format),
            access: Access::ReadOnly,
            parent_roots: opening.parent_roots.clone(),
        };
        self.parents.push(path.clone());
        if format == Format::Qcow2 {
            let below = open_above(&path, &opening, above)?;
            self.parents.extend(below.parents.iter().cloned());
            self.backing = Some(std::sync::Arc::new(below));
        } else {
            self.backing = Some(formats::open(&path, &opening)?);
        }
        Ok(())
    }

    /// What the file is and holds.
    pub(crate) fn describe(&self) -> Description {
        let mut notes = Vec::new();
        if self.header.snapshots > 0 {
            notes.push(format!(
                "its {} snapshots are not looked at",
                self.header.snapshots
            ));
        }
        if self.header.is_dirty {
            notes.push("it was not closed in order (qemu-img check -r all repairs it)".to_owned());
        }
        Description {
            format: Format::Qcow2,
            name: format!("{} (version {})", Format::Qcow2, self.header.version),
            geometry: self.geometry(),
            stored_bytes: self.space().map(|space| space.used_bytes),
            unit_bytes: Some(self.header.cluster_bytes()),
            allocated_bytes: None,
            uuid: None,
            creator: None,
            created_unix_seconds: None,
            parents: self.parents.clone(),
            notes,
        }
    }

    /// Where `offset` is, and for how many bytes on (at most `bytes`, at least
    /// one) it goes on like that.
    fn place(&self, offset: u64, bytes: u64) -> Result<(Place, u64), DiskError> {
        let cluster_bytes = self.header.cluster_bytes();
        let l2_entries = self.header.l2_entries();
        let cluster = offset / cluster_bytes;
        let inside = offset % cluster_bytes;
        let (l1_index, l2_index) = (cluster / l2_entries, cluster % l2_entries);
        let l1_entry = usize::try_from(l1_index)
            .ok()
            .and_then(|at| self.l1.get(at));
        let table = l1_entry.copied().unwrap_or(0) & OFFSET_MASK;
        if table == 0 {
            let end = (l1_index + 1) * l2_entries * cluster_bytes;
            return Ok((Place::Below, bytes.min(end - offset)));
        }
        if !table.is_multiple_of(cluster_bytes) {
            let at = self.header.l1_offset + 8 * l1_index;
            return Err(self.corrupt("L1 entry", at, "points into the middle of a cluster"));
        }
        // As many entries as the range needs, as the table and a slice have.
        let wanted = (inside.saturating_add(bytes)).div_ceil(cluster_bytes);
        let count = wanted.min(l2_entries - l2_index).clamp(1, SLICE_ENTRIES);
        let slice_at = table + 8 * l2_index;
        let mut slice = [0; SLICE_BYTES];
        let slice = &mut slice[..8 * usize::try_from(count).unwrap_or(1)];
        self.file
            .read_exact_at(slice, slice_at)
            .map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => {
                    let at = self.header.l1_offset + 8 * l1_index;
                    self.corrupt("L1 entry", at, "points past the end of the file")
                }
                _ => trouble(format!("reading {}", self.path.display()), e),
            })?;
        let mut places = entries(slice).zip(0..).map(|(entry, index)| {
            let place = self.cluster_place(entry);
            place.map_err(|reason| self.corrupt("L2 entry", slice_at + 8 * index, reason))
        });
        let first = places.next().unwrap_or(Ok(Place::Below))?;
        let mut clusters = 1;
        for place in places {
            // What is wrong further on is for whoever asks there.
            let goes_on = match (first, place) {
                (Place::Stored(at), Ok(Place::Stored(next))) => {
                    next == at + clusters * cluster_bytes
                }
                (Place::Zeros, Ok(Place::Zeros)) | (Place::Below, Ok(Place::Below)) => true,
                _ => false,
            };
            if !goes_on {
                break;
            }
            clusters += 1;
        }
        let place = match first {
            Place::Stored(at) => Place::Stored(at + inside),
            Place::Compressed(entry, _) => Place::Compressed(entry, inside),
            other => other,
        };
        Ok((place, bytes.min(clusters * cluster_bytes - inside)))
    }

    /// Where the cluster of an entry begins.
    fn cluster_place(&self, entry: u64) -> Result<Place, &'static str> {
        if entry & COMPRESSED != 0 {
            return Ok(Place::Compressed(entry, 0));
        }
        let host = entry & OFFSET_MASK;
        if entry & ALL_ZEROS != 0 && self.header.version >= 3 {
            return Ok(Place::Zeros);
        }
        if host == 0 {
            return Ok(Place::Below);
        }
        if !host.is_multiple_of(self.header.cluster_bytes()) {
            return Err("points into the middle of a cluster");
        }
        if host >= self.file_bytes {
            return Err("points past the end of the file");
        }
        Ok(Place::Stored(host))
    }

    /// Reads from the file; past its end, inside its last cluster, are zeros.
    fn read_stored(&self, at: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let there = usize::try_from(self.file_bytes.saturating_sub(at)).unwrap_or(usize::MAX);
        let (inside, past) = buffer.split_at_mut(there.min(buffer.len()));
        past.fill(0);
        self.file
            .read_exact_at(inside, at)
            .map_err(|e| match e.kind() {
                io::ErrorKind::UnexpectedEof => {
                    DiskError::Corrupt(format!("{} was cut off", self.path.display()))
                }
                _ => trouble(format!("reading {}", self.path.display()), e),
            })
    }

    /// Reads from the middle of a compressed cluster.
    fn read_compressed(&self, entry: u64, from: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let mut inflated = self.inflated.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster = match inflated.take() {
            Some((of, cluster)) if of == entry => cluster,
            other => self.inflate(entry, other.map(|(_, cluster)| cluster).unwrap_or_default())?,
        };
        let start = usize::try_from(from).unwrap_or(usize::MAX);
        let part = cluster.get(start..start.saturating_add(buffer.len()));
        if let Some(part) = part {
            buffer.copy_from_slice(part);
        }
        *inflated = Some((entry, cluster));
        Ok(())
    }

    /// Decompresses the cluster of an entry, into memory that is at hand.
    fn inflate(&self, entry: u64, mut cluster: Vec<u8>) -> Result<Vec<u8>, DiskError> {
        // A byte offset, then the number of sectors after the one it lies in.
        let offset_bits = 62 - (self.header.cluster_bits - 8);
        let at = entry & ((1 << offset_bits) - 1);
        let more_sectors = (entry & !(COMPRESSED | COPIED)) >> offset_bits;
        let end = ((at & !511) + 512 * (more_sectors + 1)).min(self.file_bytes);
        let wrong = |reason: &str| self.corrupt("compressed cluster", at, reason);
        let bytes = end
            .checked_sub(at)
            .and_then(|bytes| usize::try_from(bytes).ok())
            .ok_or_else(|| wrong("lies past the end of the file"))?;
        let mut packed = vec![0; bytes];
        self.read_stored(at, &mut packed)?;
        let cluster_bytes = usize::try_from(self.header.cluster_bytes()).unwrap_or(0);
        cluster.resize(cluster_bytes, 0);
        let unpacked =
            decompress_slice_iter_to_slice(&mut cluster, std::iter::once(&*packed), false, true);
        match unpacked {
            Ok(bytes) if bytes == cluster_bytes => Ok(cluster),
            _ => Err(wrong("cannot be decompressed")),
        }
    }

    /// Reads from below; past its end are zeros.
    fn read_below(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let size_bytes = self.below_bytes();
        let there = usize::try_from(size_bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (inside, past) = buffer.split_at_mut(there.min(buffer.len()));
        past.fill(0);
        match &self.backing {
            Some(below) if !inside.is_empty() => below.read(offset, inside),
            _ => Ok(()),
        }
    }

    fn below_bytes(&self) -> u64 {
        self.backing
            .as_ref()
            .map_or(0, |below| below.geometry().size_bytes)
    }

    fn corrupt(&self, field: &str, at: u64, reason: &str) -> DiskError {
        DiskError::Corrupt(format!(
            "{}: {field} (at byte {at}): {reason}",
            self.path.display()
        ))
    }
}

impl Disk for Qcow2 {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.header.size_bytes,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
        }
    }

    fn access(&self) -> Access {
        Access::ReadOnly
    }

    fn durability(&self) -> Durability {
        Durability::WriteBack
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        range::check(offset, buffer.len() as u64, self.header.size_bytes)?;
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let (place, bytes) = self.place(at, rest.len() as u64)?;
            let (part, after) = rest.split_at_mut(usize::try_from(bytes).unwrap_or(usize::MAX));
            match place {
                Place::Stored(host) => self.read_stored(host, part)?,
                Place::Compressed(entry, from) => self.read_compressed(entry, from, part)?,
                Place::Zeros => part.fill(0),
                Place::Below => self.read_below(at, part)?,
            }
            (at, rest) = (at + bytes, after);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        range::check(offset, data.len() as u64, self.header.size_bytes)?;
        Err(DiskError::ReadOnly)
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        range::check(offset, bytes, self.header.size_bytes)?;
        Err(DiskError::ReadOnly)
    }

    fn extent(&self, offset: u64, bytes: u64) -> Result<Extent, DiskError> {
        range::check(offset, bytes, self.header.size_bytes)?;
        let end = offset + bytes;
        let mut found: Option<Allocation> = None;
        let mut at = offset;
        for _ in 0..EXTENT_SLICES_MAX {
            if at == end {
                break;
            }
            let (place, mut bytes) = self.place(at, end - at)?;
            let allocation = match (place, &self.backing) {
                (Place::Stored(_) | Place::Compressed(..), _) => Allocation::Mapped,
                (Place::Below, Some(below)) if at < self.below_bytes() => {
                    let extent = below.extent(at, bytes.min(self.below_bytes() - at))?;
                    bytes = extent.bytes;
                    extent.allocation
                }
                _ => Allocation::Deallocated,
            };
            if *found.get_or_insert(allocation) != allocation {
                break;
            }
            at += bytes;
        }
        Ok(Extent {
            bytes: at - offset,
            allocation: found.unwrap_or(Allocation::Deallocated),
        })
    }

    fn space(&self) -> Option<Space> {
        files::space(&self.file)
    }

    fn will_need(&self, offset: u64, bytes: u64) {
        if range::check(offset, bytes, self.header.size_bytes).is_err() {
            return;
        }
        if let Ok((Place::Stored(at), bytes)) = self.place(offset, bytes.max(1)) {
            let bytes = std::num::NonZeroU64::new(bytes);
            let _ = fadvise(&self.file, at, bytes, Advice::WillNeed);
        }
    }
}

/// The refusal of a file that is right and not read here.
fn foreign(path: &Path, what: &str) -> OpenError {
    let shown = path.display();
    let target = path.with_extension("raw");
    OpenError::Foreign {
        advice: format!(
            "{shown} is {what}: convert it first (qemu-img convert -O raw {shown} {})",
            target.display()
        ),
    }
}

/// The file a backing name means: it must lie directly beside the file that
/// names it, or anywhere below one of `roots`, links resolved; else why not.
///
/// Not below its own directory too: a backing file is not asked who it is, and
/// one that came from anywhere would name the secrets of whoever's home it was
/// put into.
fn backing_path(above: &Path, name: &str, roots: &[PathBuf]) -> Result<PathBuf, String> {
    let name = name.strip_prefix("file:").unwrap_or(name);
    let real = above.canonicalize().map_err(|e| format!("but {e}"))?;
    let own = real.parent().unwrap_or(Path::new("/"));
    let path = own.join(name).canonicalize().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => "which is not there".to_owned(),
        _ => format!("which cannot be opened: {e}"),
    })?;
    let mut allowed = roots.iter().filter_map(|root| root.canonicalize().ok());
    if path.parent() == Some(own) || allowed.any(|root| path.starts_with(root)) {
        return Ok(path);
    }
    Err(format!(
        "which does not lie in {}: put both in one directory, or convert the upper one \
         (qemu-img convert -O raw)",
        own.display()
    ))
}

/// Big-endian entries of a table.
fn entries(table: &[u8]) -> impl Iterator<Item = u64> {
    table.chunks_exact(8).map(|entry| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(entry);
        u64::from_be_bytes(bytes)
    })
}
