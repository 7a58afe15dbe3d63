//! The contract suite: what every [`Disk`] must do, run against each of them.
//!
//! For tests (it panics with the claim that does not hold). A new format is
//! done when [`Subject::check`] passes.

// A test suite: it panics on purpose, and is public only so that formats
// outside this crate can be held to it.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::{Access, Allocation, Disk, DiskError, SharedDisk};

type Maker<'a> = Box<dyn Fn() -> SharedDisk + 'a>;

/// A kind of disk under test.
pub struct Subject<'a> {
    make: Maker<'a>,
    reopen: Option<Maker<'a>>,
}

impl<'a> Subject<'a> {
    /// Disks come from `make`, one after the other, with any contents; at
    /// least 1 MiB each.
    pub fn new(make: impl Fn() -> SharedDisk + 'a) -> Self {
        Subject {
            make: Box::new(make),
            reopen: None,
        }
    }

    /// `reopen` opens the disk made last again, after it was dropped without a
    /// goodbye: the death of a process.
    pub fn reopened_by(mut self, reopen: impl Fn() -> SharedDisk + 'a) -> Self {
        self.reopen = Some(Box::new(reopen));
        self
    }

    /// Panics with the first claim that does not hold.
    pub fn check(&self) {
        let disk = (self.make)();
        geometry_is_sane(&*disk);
        a_range_that_leaves_the_disk_is_refused(&*disk);
        an_empty_range_is_fine(&*disk);
        segments_hold_what_read_answers(&*disk);
        what_is_not_stored_reads_as_zeros(&*disk);
        if disk.access() == Access::ReadOnly {
            a_read_only_disk_refuses_every_write(&*disk);
            return;
        }
        drop(disk);
        let fresh = |claim: fn(&dyn Disk)| claim(&*(self.make)());
        fresh(a_refused_range_touches_nothing);
        fresh(random_operations_read_back_as_written);
        fresh(what_is_unmapped_reads_as_zeros);
        fresh(the_last_block_is_like_any_other);
        fresh(what_was_written_is_never_told_deallocated);
        let disk = (self.make)();
        threads_never_see_each_others_blocks(&disk);
        drop(disk);
        if let Some(reopen) = &self.reopen {
            an_answered_write_survives_the_process(&*self.make, &**reopen);
        }
    }
}

fn geometry_is_sane(disk: &dyn Disk) {
    let geometry = disk.geometry();
    let logical = geometry.logical_block_bytes;
    assert!([512, 1024, 2048, 4096].contains(&logical));
    assert_eq!(geometry.physical_block_bytes % logical, 0);
    assert_eq!(geometry.size_bytes % u64::from(logical), 0);
    assert!(geometry.size_bytes >= 1 << 20, "the suite needs 1 MiB");
    assert_eq!(geometry, disk.geometry());
}

fn a_range_that_leaves_the_disk_is_refused(disk: &dyn Disk) {
    let size = disk.geometry().size_bytes;
    for (offset, bytes) in [(size, 1), (size - 1, 2), (size + 1, 0), (u64::MAX, 2)] {
        let mut buffer = vec![0xee; usize::try_from(bytes).unwrap_or(0)];
        let refused = |answer| matches!(answer, Err(DiskError::OutOfRange { .. }));
        assert!(refused(disk.read(offset, &mut buffer)), "read {offset}");
        assert!(refused(disk.write(offset, &buffer)), "write {offset}");
        assert!(refused(disk.unmap(offset, bytes)), "unmap {offset}");
        let mut segments = Vec::new();
        match disk.segments(offset, bytes, &mut segments) {
            Ok(mapped) => assert!(!mapped, "segments {offset}"),
            error => assert!(refused(error.map(|_| ())), "segments {offset}"),
        }
        assert!(segments.is_empty());
        let extent = disk.extent(offset, bytes);
        assert!(refused(extent.map(|_| ())), "extent {offset}");
        disk.will_need(offset, bytes);
        assert!(buffer.iter().all(|&b| b == 0xee), "a refused read wrote");
    }
}

fn an_empty_range_is_fine(disk: &dyn Disk) {
    for offset in [0, 513, disk.geometry().size_bytes] {
        assert!(disk.read(offset, &mut []).is_ok());
        disk.will_need(offset, 0);
        if disk.access() == Access::ReadWrite {
            assert!(disk.write(offset, &[]).is_ok());
            assert!(disk.unmap(offset, 0).is_ok());
        }
    }
}

fn a_read_only_disk_refuses_every_write(disk: &dyn Disk) {
    let before = contents(disk);
    assert!(matches!(disk.write(0, &[1]), Err(DiskError::ReadOnly)));
    assert!(matches!(disk.unmap(0, 4096), Err(DiskError::ReadOnly)));
    assert!(disk.flush().is_ok());
    assert!(contents(disk) == before);
}

fn a_refused_range_touches_nothing(disk: &dyn Disk) {
    let before = contents(disk);
    let size = disk.geometry().size_bytes;
    assert!(disk.write(size - 512, &[0x77; 1024]).is_err());
    assert!(disk.unmap(size - 512, 1024).is_err());
    assert!(contents(disk) == before);
}

fn random_operations_read_back_as_written(disk: &dyn Disk) {
    let mut model = contents(disk);
    let size = model.len();
    let mut dice = Dice(7);
    for round in 0..400 {
        let longest = [1, 700, 5000, 40_000][round % 4];
        let offset = dice.below(size);
        let bytes = (1 + dice.below(longest)).min(size - offset);
        let range = offset..offset + bytes;
        match dice.below(6) {
            0 => {
                disk.unmap(offset as u64, bytes as u64).unwrap();
                model[range.clone()].fill(0);
            }
            1 => disk.flush().unwrap(),
            2 => {
                // Whole blocks, as a file system unmaps.
                let range = (range.start / 4096 * 4096)..(range.end / 4096 * 4096);
                if !range.is_empty() {
                    let (offset, bytes) = (range.start as u64, range.len() as u64);
                    disk.unmap(offset, bytes).unwrap();
                    model[range].fill(0);
                }
            }
            _ => {
                let data = dice.bytes(bytes);
                disk.write(offset as u64, &data).unwrap();
                model[range.clone()].copy_from_slice(&data);
            }
        }
        let mut seen = vec![0; range.len()];
        disk.read(range.start as u64, &mut seen).unwrap();
        assert!(seen == model[range.clone()], "round {round}, {range:?}");
    }
    assert!(contents(disk) == model, "something else changed");
    segments_hold_what_read_answers(disk);
}

fn what_is_unmapped_reads_as_zeros(disk: &dyn Disk) {
    let size = disk.geometry().size_bytes;
    disk.write(0, &vec![0xff; 64 << 10]).unwrap();
    disk.unmap(0, size).unwrap();
    disk.flush().unwrap();
    assert!(contents(disk).iter().all(|&b| b == 0));
    // A write into what was unmapped brings none of the old bytes back.
    disk.write(5000, &[1]).unwrap();
    let seen = contents(disk);
    assert_eq!(seen[5000], 1);
    assert_eq!(seen.iter().filter(|&&b| b != 0).count(), 1);
}

/// The extents of a range, which follow each other without gaps.
fn extents(disk: &dyn Disk, offset: u64, bytes: u64) -> Vec<(u64, crate::Extent)> {
    let (mut found, mut at) = (Vec::new(), offset);
    while at < offset + bytes {
        let left = offset + bytes - at;
        let extent = disk.extent(at, left).unwrap();
        assert!((1..=left).contains(&extent.bytes), "extent at {at}");
        found.push((at, extent));
        at += extent.bytes;
    }
    found
}

fn what_is_not_stored_reads_as_zeros(disk: &dyn Disk) {
    for (offset, extent) in extents(disk, 0, disk.geometry().size_bytes) {
        if extent.allocation == Allocation::Deallocated {
            expect(
                disk,
                offset,
                &vec![0; usize::try_from(extent.bytes).unwrap()],
            );
        }
    }
}

fn what_was_written_is_never_told_deallocated(disk: &dyn Disk) {
    let is_stored = |offset, bytes| {
        let found = extents(disk, offset, bytes);
        found
            .iter()
            .all(|(_, e)| e.allocation == Allocation::Mapped)
    };
    disk.unmap(0, 256 << 10).unwrap();
    for (offset, bytes) in [(0, 1), (9000, 700), (65_536, 4096), (131_000, 9000)] {
        disk.write(offset, &vec![0; usize::try_from(bytes).unwrap()])
            .unwrap();
        assert!(is_stored(offset, bytes), "{offset}+{bytes}, even of zeros");
    }
    // Nor because a neighbour was unmapped, whole blocks or parts of them.
    disk.unmap(9700, 50_000).unwrap();
    disk.unmap(69_632, 4096).unwrap();
    assert!(is_stored(9000, 700) && is_stored(65_536, 4096));
    disk.flush().unwrap();
    assert!(is_stored(9000, 700) && is_stored(131_000, 9000));
    what_is_not_stored_reads_as_zeros(disk);
}

fn the_last_block_is_like_any_other(disk: &dyn Disk) {
    let size = disk.geometry().size_bytes;
    let before = contents(disk);
    disk.write(size - 1, &[0xa5]).unwrap();
    let seen = contents(disk);
    assert!(seen[..seen.len() - 1] == before[..before.len() - 1]);
    assert_eq!(seen.last(), Some(&0xa5));
    disk.unmap(size - 512, 512).unwrap();
    disk.flush().unwrap();
    let seen = contents(disk);
    assert!(seen[seen.len() - 512..].iter().all(|&b| b == 0));
}

/// Writers of neighbouring bytes of the same blocks, a flusher and an
/// unmapper: every writer reads its own bytes back, every time.
fn threads_never_see_each_others_blocks(disk: &SharedDisk) {
    const WRITERS: u64 = 4;
    let stop = Arc::new(AtomicBool::new(false));
    thread::scope(|scope| {
        let flusher = {
            let (disk, stop) = (disk.clone(), stop.clone());
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    disk.flush().unwrap();
                    thread::yield_now();
                }
            })
        };
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let disk = disk.clone();
                scope.spawn(move || {
                    let mut dice = Dice(writer + 1);
                    for round in 0..150_u64 {
                        // Each writer owns 1 KiB of every block of 4 KiB.
                        let block = dice.below(60) as u64;
                        let offset = block * 4096 + writer * 1024;
                        if round % 5 == 4 {
                            disk.unmap(offset, 1024).unwrap();
                            expect(&*disk, offset, &[0; 1024]);
                        } else {
                            let data = dice.bytes(1024);
                            disk.write(offset, &data).unwrap();
                            expect(&*disk, offset, &data);
                        }
                        // And whole blocks further up.
                        let offset = (64 + writer * 32 + block % 32) * 4096;
                        if round % 3 == 2 {
                            disk.unmap(offset, 4096).unwrap();
                            expect(&*disk, offset, &[0; 4096]);
                        } else {
                            let data = dice.bytes(4096);
                            disk.write(offset, &data).unwrap();
                            expect(&*disk, offset, &data);
                        }
                    }
                })
            })
            .collect();
        let failed = writers.into_iter().any(|writer| writer.join().is_err());
        stop.store(true, Ordering::Relaxed);
        assert!(flusher.join().is_ok() && !failed);
    });
    segments_hold_what_read_answers(&**disk);
}

fn an_answered_write_survives_the_process(
    make: &dyn Fn() -> SharedDisk,
    reopen: &dyn Fn() -> SharedDisk,
) {
    let disk = make();
    let mut model = contents(&*disk);
    let mut dice = Dice(99);
    for round in 0..60 {
        let offset = dice.below(model.len());
        let bytes = (1 + dice.below(9000)).min(model.len() - offset);
        if round % 4 == 3 {
            disk.unmap(offset as u64, bytes as u64).unwrap();
            model[offset..offset + bytes].fill(0);
        } else {
            let data = dice.bytes(bytes);
            disk.write(offset as u64, &data).unwrap();
            model[offset..offset + bytes].copy_from_slice(&data);
        }
        if round == 30 {
            disk.flush().unwrap();
        }
    }
    let geometry = disk.geometry();
    drop(disk);
    let disk = reopen();
    assert_eq!(disk.geometry(), geometry);
    assert!(contents(&*disk) == model, "an answered write is gone");
    disk.flush().unwrap();
    drop(disk);
    assert!(contents(&*reopen()) == model, "a flush lost something");
}

fn segments_hold_what_read_answers(disk: &dyn Disk) {
    let before = crate::Segment::new([0_u8; 3].as_ptr(), 3);
    let mut dice = Dice(3);
    let size = usize::try_from(disk.geometry().size_bytes).unwrap();
    for _ in 0..50 {
        let offset = dice.below(size);
        let bytes = dice.below(100_000).min(size - offset);
        let mut seen = vec![0; bytes];
        disk.read(offset as u64, &mut seen).unwrap();
        let mut segments = vec![before];
        if disk
            .segments(offset as u64, bytes as u64, &mut segments)
            .unwrap()
        {
            assert!(segments[1..].iter().all(|s| !s.is_empty()));
            let mapped = by_the_kernel(&segments[1..]);
            assert!(mapped == seen, "segments differ at {offset}+{bytes}");
        } else {
            assert_eq!(segments.len(), 1, "segments were left behind");
        }
    }
}

/// The bytes of segments, fetched as a server's are: by the kernel only.
fn by_the_kernel(segments: &[crate::Segment<'_>]) -> Vec<u8> {
    crate::files::gather(segments).unwrap()
}

fn expect(disk: &dyn Disk, offset: u64, data: &[u8]) {
    let mut seen = vec![0; data.len()];
    disk.read(offset, &mut seen).unwrap();
    assert!(seen == data, "bytes at {offset} are not the ones written");
}

fn contents(disk: &dyn Disk) -> Vec<u8> {
    let size = usize::try_from(disk.geometry().size_bytes).unwrap();
    let mut bytes = vec![0; size];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

/// Random numbers that are the same every time (SplitMix64).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap_or(0)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..length.div_ceil(8))
            .flat_map(|_| self.next().to_le_bytes())
            .collect();
        bytes.truncate(length);
        bytes
    }
}
