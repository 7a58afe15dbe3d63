//! Copies by their lists and limits, and as initiators see them: through
//! units, read back from the disks.

use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use disk::{Disk, DiskError, Durability, Geometry, Ram, SharedDisk};
use proptest::prelude::*;

use super::*;
use crate::attention::{Nexus, NexusName};
use crate::{Identity, Refusal};

const BLOCKS: u64 = 4096;

/// Two units of one target, the first with a pattern; one initiator.
struct Lab {
    disks: [SharedDisk; 2],
    target: Arc<Two>,
    nexuses: [Nexus; 2],
}

struct Two([Arc<LogicalUnit>; 2]);

impl Peers for Two {
    fn units(&self) -> Vec<Arc<LogicalUnit>> {
        self.0.to_vec()
    }
}

fn name(n: u8) -> NexusName {
    NexusName {
        initiator: format!("iqn.2026-01.test:{n}"),
        isid: [0x80, 0, 0, 0, 0, 1],
    }
}

fn pattern() -> Vec<u8> {
    let blocks = (0..BLOCKS).map(|lba| [u8::try_from(lba % 251).unwrap(); 512]);
    let mut bytes = blocks.collect::<Vec<_>>().concat();
    // Within a block no two places are alike either.
    bytes
        .iter_mut()
        .zip((0..=255u8).cycle())
        .for_each(|(byte, n)| *byte ^= n);
    bytes
}

impl Lab {
    fn new() -> Lab {
        let disks = [Ram::with_contents(pattern()), Ram::new(2 << 20)];
        Lab::over(disks)
    }

    fn over(disks: [Ram; 2]) -> Lab {
        Lab::of(disks.map(|disk| Arc::new(disk) as SharedDisk))
    }

    fn of(disks: [SharedDisk; 2]) -> Lab {
        let unit = |n: usize| Arc::new(LogicalUnit::new(disks[n].clone(), identity(n)));
        let target = Arc::new(Two([unit(0), unit(1)]));
        let nexuses = [0, 1].map(|n: usize| {
            let nexus = target.0[n].connect(&name(1));
            nexus.take();
            let weak: Weak<dyn Peers> = Arc::downgrade(&(target.clone() as Arc<dyn Peers>));
            nexus.join(weak);
            nexus
        });
        Lab {
            disks,
            target,
            nexuses,
        }
    }

    /// Has unit 0 make a copy.
    fn copy(&self, list: &[u8]) -> Result<(), Refusal> {
        let bytes = u8::try_from(list.len() / 256).unwrap();
        let rest = u8::try_from(list.len() % 256).unwrap();
        let cdb = [0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, bytes, rest, 0, 0];
        self.run(&cdb, list).map(drop)
    }

    fn results(&self, action: u8, list_id: u8) -> Result<Vec<u8>, Refusal> {
        let cdb = [0x84, action, list_id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        self.run(&cdb, &[])
    }

    fn run(&self, cdb: &[u8], list: &[u8]) -> Result<Vec<u8>, Refusal> {
        let unit = &self.target.0[0];
        let work = unit.admit(&self.nexuses[0], cdb)?;
        unit.finish(&self.nexuses[0], &work, list, &AtomicBool::new(false))
    }

    /// What a disk holds, asked past the units.
    fn stored(&self, n: usize, lba: usize, blocks: usize) -> Vec<u8> {
        let mut bytes = vec![0; blocks * 512];
        self.disks[n].read(lba as u64 * 512, &mut bytes).unwrap();
        bytes
    }
}

fn identity(n: usize) -> Identity {
    Identity::new([u8::try_from(n).unwrap() + 1; 16], "TEST")
}

/// The target descriptor of unit `n`, by its NAA.
fn target(n: usize) -> Vec<u8> {
    let page = crate::inquiry::designators(&identity(n));
    let mut descriptor = vec![0xe4, 0, 0, 0];
    descriptor.extend_from_slice(&page[..12]); // NAA of 8 bytes
    descriptor.resize(28, 0);
    descriptor.extend_from_slice(&[0, 0, 2, 0]); // 512
    descriptor
}

fn segment(source: u8, destination: u8, blocks: u16, from: u64, to: u64) -> Vec<u8> {
    let mut descriptor = vec![0x02, 0, 0, 0x18, 0, source, 0, destination, 0, 0];
    descriptor.extend_from_slice(&blocks.to_be_bytes());
    descriptor.extend_from_slice(&from.to_be_bytes());
    descriptor.extend_from_slice(&to.to_be_bytes());
    descriptor
}

fn list(id: u8, usage: u8, targets: &[Vec<u8>], segments: &[Vec<u8>]) -> Vec<u8> {
    let (targets, segments) = (targets.concat(), segments.concat());
    let mut list = vec![0u8; 16];
    (list[0], list[1]) = (id, usage << 3);
    list[2..4].copy_from_slice(&u16::try_from(targets.len()).unwrap().to_be_bytes());
    list[8..12].copy_from_slice(&u32::try_from(segments.len()).unwrap().to_be_bytes());
    [list, targets, segments].concat()
}

fn sense(result: Result<(), Refusal>) -> Sense {
    result.unwrap_err().sense().unwrap()
}

#[test]
fn a_range_is_copied_to_another_unit_and_nothing_else_changes() {
    let lab = Lab::new();
    let copied = list(1, 0, &[target(0), target(1)], &[segment(0, 1, 100, 7, 50)]);
    lab.copy(&copied).unwrap();
    assert_eq!(lab.stored(1, 50, 100), lab.stored(0, 7, 100));
    assert_eq!(lab.stored(1, 49, 1), vec![0; 512]);
    assert_eq!(lab.stored(1, 150, 1), vec![0; 512]);
    assert_eq!(lab.stored(0, 0, 4096), pattern());
}

#[test]
fn segments_are_copied_in_their_order() {
    let lab = Lab::new();
    let segments = [segment(0, 1, 10, 0, 0), segment(1, 0, 10, 0, 2000)];
    lab.copy(&list(1, 0, &[target(0), target(1)], &segments))
        .unwrap();
    assert_eq!(lab.stored(0, 2000, 10), pattern()[..5120]);
}

#[test]
fn the_unit_that_copies_needs_no_descriptor() {
    let lab = Lab::new();
    let mut within = segment(0, 0, 10, 0, 2000);
    (within[4], within[5], within[6], within[7]) = (0xff, 0xff, 0xff, 0xff);
    lab.copy(&list(1, 0, &[], &[within])).unwrap();
    assert_eq!(lab.stored(0, 2000, 10), pattern()[..5120]);
}

#[test]
fn a_segment_in_bytes_begins_and_ends_within_blocks() {
    let lab = Lab::new();
    let mut bytes = segment(0, 1, 0, 3, 9);
    (bytes[0], bytes[3]) = (0x0a, 0x1c);
    bytes[8..12].copy_from_slice(&1000u32.to_be_bytes());
    bytes.extend_from_slice(&[0, 100, 0, 200]);
    lab.copy(&list(1, 0, &[target(0), target(1)], &[bytes]))
        .unwrap();
    let expected = &pattern()[3 * 512 + 100..][..1000];
    assert_eq!(lab.stored(1, 9, 4)[200..1200], *expected);
    assert_eq!(lab.stored(1, 9, 1)[..200], [0; 200]);
    assert_eq!(lab.stored(1, 9, 4)[1200..1300], [0; 100]);
}

#[test]
fn blocks_are_counted_where_dc_says() {
    let lab = Lab::over([
        Ram::with_contents(pattern()),
        Ram::new(2 << 20).with_block_bytes(4096, 4096),
    ]);
    let mut large = target(1);
    large[28..].copy_from_slice(&[0, 0, 0x10, 0]);
    let targets = [target(0), large];
    let mut of_destination = segment(0, 1, 2, 0, 1);
    of_destination[1] = 0x02; // DC
    lab.copy(&list(1, 0, &targets, &[of_destination])).unwrap();
    assert_eq!(lab.stored(1, 8, 16), pattern()[..8192]);
    let odd = list(2, 0, &targets, &[segment(0, 1, 3, 0, 1)]);
    assert_eq!(sense(lab.copy(&odd)), Sense::UNEXPECTED_INEXACT_SEGMENT);
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let lab = Lab::new();
    let whole = list(1, 0, &[target(0)], &[segment(0, 0, 1, 0, 1)]);
    assert_eq!(lab.copy(&[]), Ok(()));
    for length in [1, 15, 16 + 31, whole.len() - 1] {
        let error = sense(lab.copy(&whole[..length]));
        assert_eq!(error, Sense::PARAMETER_LIST_LENGTH_ERROR, "{length}");
    }
    let mut lying = whole.clone();
    lying[8] = 0xff; // the segments are said to be longer than any list
    let error = sense(lab.copy(&lying));
    assert_eq!(error, Sense::PARAMETER_LIST_LENGTH_ERROR);
    let mut inline = whole;
    inline[15] = 1;
    assert_eq!(sense(lab.copy(&inline)), Sense::INLINE_DATA_LENGTH_EXCEEDED);
}

#[test]
fn too_many_descriptors_and_unknown_ones_are_told_apart() {
    let lab = Lab::new();
    let one = segment(0, 0, 1, 0, 1);
    let refused =
        |targets: &[Vec<u8>], segments: &[Vec<u8>]| sense(lab.copy(&list(1, 0, targets, segments)));
    let targets = vec![target(0); usize::from(MAX_TARGETS) + 1];
    let error = refused(&targets, std::slice::from_ref(&one));
    assert_eq!(error, Sense::TOO_MANY_TARGET_DESCRIPTORS);
    let segments = vec![one.clone(); usize::from(MAX_SEGMENTS) + 1];
    let error = refused(&[target(0)], &segments);
    assert_eq!(error, Sense::TOO_MANY_SEGMENT_DESCRIPTORS);
    let mut fibre_channel = target(0);
    fibre_channel[0] = 0xe0;
    let error = refused(&[fibre_channel], std::slice::from_ref(&one));
    assert_eq!(error, Sense::UNSUPPORTED_TARGET_DESCRIPTOR);
    let mut stream = one;
    stream[0] = 0x03;
    let error = refused(&[target(0)], &[stream]);
    assert_eq!(error, Sense::UNSUPPORTED_SEGMENT_DESCRIPTOR);
    // As many as the limits name fit into the longest list.
    let targets = vec![target(0); usize::from(MAX_TARGETS)];
    let segments = vec![segment(7, 7, 1, 0, 1); usize::from(MAX_SEGMENTS)];
    assert_eq!(lab.copy(&list(1, 0, &targets, &segments)), Ok(()));
}

#[test]
fn what_cannot_be_reached_aborts_the_copy() {
    let lab = Lab::new();
    let targets = [target(0), target(1)];
    let mut stranger = target(1);
    stranger[15] ^= 1;
    for (targets, segment) in [
        (&targets[..], segment(0, 2, 1, 0, 0)),
        (&targets[..], segment(0, 1, 2, 0, 4095)),
        (&targets[..], segment(0, 1, 2, u64::MAX, 0)),
        (&[target(0), stranger][..], segment(0, 1, 1, 0, 0)),
    ] {
        let error = sense(lab.copy(&list(1, 0, targets, &[segment])));
        assert_eq!(error, Sense::COPY_TARGET_NOT_REACHABLE);
    }
    let mut optical = target(1);
    optical[1] = 5;
    let error = sense(lab.copy(&list(
        1,
        0,
        &[target(0), optical],
        &[segment(0, 1, 1, 0, 0)],
    )));
    assert_eq!(error, Sense::INCORRECT_COPY_TARGET);
}

#[test]
fn a_reservation_of_either_end_is_respected() {
    for (place, kind, other) in [(1, 1, "destination"), (0, 3, "source")] {
        let lab = Lab::new();
        let unit = &lab.target.0[place];
        let holder = unit.connect(&name(2));
        holder.take();
        let mut keys = [0u8; 24];
        keys[15] = 7;
        let out = |action: u8, keys: &[u8]| {
            let cdb = [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0];
            let work = unit.admit(&holder, &cdb).unwrap();
            let never = AtomicBool::new(false);
            unit.finish(&holder, &work, keys, &never).unwrap();
        };
        out(0, &keys);
        keys.swap(7, 15);
        out(1, &keys);
        // Asked of the unit that is free.
        let (asked, nexus) = (&lab.target.0[1 - place], &lab.nexuses[1 - place]);
        let copied = list(1, 0, &[target(0), target(1)], &[segment(0, 1, 1, 0, 0)]);
        let length = u8::try_from(copied.len()).unwrap();
        let cdb = [0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, length, 0, 0];
        let work = asked.admit(nexus, &cdb).unwrap();
        let result = asked.finish(nexus, &work, &copied, &AtomicBool::new(false));
        let error = sense(result.map(drop));
        assert_eq!(error, Sense::THIRD_PARTY_DEVICE_FAILURE, "{other}");
        assert_eq!(lab.stored(1, 0, 1), [0; 512]);
    }
}

#[test]
fn a_read_only_destination_stays_as_it_is() {
    let lab = Lab::over([Ram::with_contents(pattern()), Ram::new(2 << 20).read_only()]);
    let copied = list(1, 0, &[target(0), target(1)], &[segment(0, 1, 1, 0, 0)]);
    let error = sense(lab.copy(&copied));
    assert_eq!(error, Sense::THIRD_PARTY_DEVICE_FAILURE);
}

#[test]
fn a_copy_can_be_asked_about_by_its_name() {
    let lab = Lab::new();
    let unknown = Err(Sense::invalid_cdb_field(2, 7).into());
    assert_eq!(lab.results(0, 1), unknown);
    let segments = [segment(0, 1, 10, 0, 0), segment(0, 1, 10, 0, 100)];
    let targets = [target(0), target(1)];
    lab.copy(&list(1, 0, &targets, &segments)).unwrap();
    let done = [0, 0, 0, 8, 1, 0, 2, 0, 0, 0, 0x28, 0];
    assert_eq!(lab.results(0, 1).unwrap(), done);
    assert_eq!(lab.results(0, 1).unwrap(), done, "and again");
    assert_eq!(lab.results(4, 1).unwrap(), [0; 4], "it has not failed");
    for usage in [2, 3] {
        lab.copy(&list(5, usage, &targets, &segments)).unwrap();
        assert_eq!(lab.results(0, 5), unknown, "usage {usage}");
    }
}

#[test]
fn a_copy_that_failed_tells_why_once() {
    let lab = Lab::new();
    let segments = [segment(0, 1, 10, 0, 0), segment(0, 9, 10, 0, 100)];
    let error = lab.copy(&list(1, 0, &[target(0), target(1)], &segments));
    assert_eq!(sense(error), Sense::COPY_TARGET_NOT_REACHABLE);
    assert_eq!(lab.results(0, 1).unwrap()[4..7], [2, 0, 1]);
    let details = lab.results(4, 1).unwrap();
    assert_eq!(details[..4], [0, 0, 0, 74]);
    assert_eq!((details[56], details[59]), (2, 18));
    assert_eq!((details[62], details[72], details[73]), (0xa, 0x0d, 2));
    assert!(lab.results(4, 1).is_err(), "told");
}

#[test]
fn only_so_many_copies_are_remembered() {
    let copies = Copies::default();
    for id in 0..=u8::try_from(MAX_KEPT).unwrap() {
        copies.begin(id).unwrap();
        copies.end(id, Ok(()), true);
    }
    assert!(copies.status(0).is_err(), "the oldest is forgotten");
    assert!(copies.status(1).is_ok());
    for id in 100..100 + MAX_RUNNING {
        copies.begin(id).unwrap();
    }
    assert_eq!(copies.begin(100), Err(Sense::OPERATION_IN_PROGRESS));
    assert_eq!(copies.begin(200), Err(Sense::INSUFFICIENT_RESOURCES));
}

#[test]
fn more_bytes_than_a_count_holds_are_counted_in_larger_units() {
    let copies = Copies::default();
    copies.begin(1).unwrap();
    copies.advance(1, 1, 5 << 40);
    let status = copies.status(1).unwrap();
    assert_eq!(
        (status[7], &status[8..]),
        (2, &(5u32 << 20).to_be_bytes()[..])
    );
}

/// Counts writes, and stops the copy at the second.
struct Stopping {
    inner: Ram,
    writes: AtomicU64,
    called_off: Arc<AtomicBool>,
}

impl Disk for Stopping {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }
    fn access(&self) -> disk::Access {
        self.inner.access()
    }
    fn durability(&self) -> Durability {
        self.inner.durability()
    }
    fn is_thin(&self) -> bool {
        self.inner.is_thin()
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.inner.read(offset, buffer)
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        if self.writes.fetch_add(1, Ordering::Relaxed) == 1 {
            self.called_off.store(true, Ordering::Relaxed);
        }
        self.inner.write(offset, data)
    }
    fn flush(&self) -> Result<(), DiskError> {
        self.inner.flush()
    }
    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.inner.unmap(offset, bytes)
    }
}

#[test]
fn a_copy_that_is_called_off_stops_between_steps() {
    let called_off = Arc::new(AtomicBool::new(false));
    let disk = Arc::new(Stopping {
        inner: Ram::new(16 << 20),
        writes: AtomicU64::new(0),
        called_off: called_off.clone(),
    });
    let shared: SharedDisk = disk.clone();
    let unit = LogicalUnit::new(shared, identity(0));
    let nexus = unit.connect(&name(1));
    nexus.take();
    let copied = list(1, 0, &[target(0)], &[segment(0, 0, 16384, 0, 16384)]);
    let length = u8::try_from(copied.len()).unwrap();
    let cdb = [0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, length, 0, 0];
    let work = unit.admit(&nexus, &cdb).unwrap();
    let _ = unit.finish(&nexus, &work, &copied, &called_off);
    assert_eq!(disk.writes.load(Ordering::Relaxed), 2);
    let status = nexus.copies().status(1).unwrap();
    assert_eq!((status[4], &status[8..]), (2, &[0, 0x20, 0, 0][..]));
}

/// A disk whose first write ends when it is let go, or when its patience does.
struct Lingering {
    inner: Ram,
    begun: SyncSender<()>,
    let_go: Mutex<Receiver<()>>,
    /// Whether somebody let a write go, and did not wait for it.
    was_let_go: AtomicBool,
}

impl Disk for Lingering {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }
    fn access(&self) -> disk::Access {
        self.inner.access()
    }
    fn durability(&self) -> Durability {
        self.inner.durability()
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.inner.read(offset, buffer)
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let _ = self.begun.try_send(());
        let patience = Duration::from_millis(200);
        if self.let_go.lock().unwrap().recv_timeout(patience).is_ok() {
            self.was_let_go.store(true, Ordering::Relaxed);
        }
        self.inner.write(offset, data)
    }
    fn flush(&self) -> Result<(), DiskError> {
        self.inner.flush()
    }
    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.inner.unmap(offset, bytes)
    }
}

#[test]
fn preempt_and_abort_waits_for_what_a_copy_from_elsewhere_writes() {
    let (begun, has_begun) = sync_channel(1);
    let (release, let_go) = sync_channel(1);
    let slow = Arc::new(Lingering {
        inner: Ram::new(2 << 20),
        begun,
        let_go: Mutex::new(let_go),
        was_let_go: AtomicBool::new(false),
    });
    let source = Arc::new(Ram::with_contents(pattern()));
    let lab = Lab::of([source, slow.clone()]);
    let destination = &lab.target.0[1];
    let out = |nexus: &Nexus, action: u8, key: u8, new_key: u8| {
        let mut keys = [0u8; 24];
        (keys[7], keys[15]) = (key, new_key);
        let cdb = [0x5f, action, 5, 0, 0, 0, 0, 0, 24, 0];
        let work = destination.admit(nexus, &cdb).unwrap();
        let never = AtomicBool::new(false);
        destination.finish(nexus, &work, &keys, &never).unwrap();
    };
    let fencing = destination.connect(&name(2));
    fencing.take();
    out(&lab.nexuses[1], 0, 0, 1);
    out(&fencing, 0, 0, 2);
    out(&lab.nexuses[1], 1, 1, 0);
    std::thread::scope(|scope| {
        let copied = list(1, 0, &[target(0), target(1)], &[segment(0, 1, 4096, 0, 0)]);
        let lab = &lab;
        let copy = scope.spawn(move || lab.copy(&copied));
        has_begun.recv().unwrap();
        out(&fencing, 5, 2, 1);
        let _ = release.send(());
        assert!(copy.join().unwrap().is_err(), "the rest may not be written");
    });
    assert!(!slow.was_let_go.load(Ordering::Relaxed));
    assert_eq!(lab.nexuses[1].take(), Some(Sense::REGISTRATIONS_PREEMPTED));
}

#[test]
fn what_overlaps_is_copied_as_if_it_did_not() {
    // Each block holds its number; the range is longer than two steps.
    let numbers = (0u64..8192).flat_map(|lba| [lba; 64]);
    let before: Vec<u8> = numbers.flat_map(u64::to_ne_bytes).collect();
    for (from, to) in [(0usize, 1000usize), (1000, 0), (500, 500), (0, 3000)] {
        let lab = Lab::over([Ram::with_contents(before.clone()), Ram::new(512)]);
        let within = segment(0, 0, 5000, from as u64, to as u64);
        lab.copy(&list(1, 3, &[target(0)], &[within])).unwrap();
        let mut expected = before.clone();
        expected.copy_within(from * 512..(from + 5000) * 512, to * 512);
        assert!(lab.stored(0, 0, 8192) == expected, "{from} to {to}");
    }
}

#[test]
fn what_the_source_does_not_store_takes_no_space_in_the_copy() {
    const BYTES: usize = 4 << 20;
    let lab = Lab::over([Ram::new(BYTES), Ram::with_contents(vec![0xff; BYTES])]);
    for at in [5000, 3 << 20] {
        lab.disks[0].write(at, &[7; 10_000]).unwrap();
    }
    let whole = segment(0, 1, 8192, 0, 0);
    lab.copy(&list(1, 0, &[target(0), target(1)], &[whole]))
        .unwrap();
    assert!(lab.stored(1, 0, 8192) == lab.stored(0, 0, 8192));
    assert_eq!(lab.results(0, 1).unwrap()[8..], 0x40_0000u32.to_be_bytes());
    let mut at = 0;
    while at < BYTES as u64 {
        let [of_source, of_copy] = [0, 1].map(|n| {
            let extent = lab.disks[n].extent(at, BYTES as u64 - at);
            extent.unwrap()
        });
        assert_eq!(of_copy, of_source, "from byte {at}");
        at += of_copy.bytes;
    }
}

#[test]
fn the_operating_parameters_and_the_page_agree() {
    let data = Lab::new().results(3, 0).unwrap();
    assert_eq!(data[..4], [0, 0, 0, 43]);
    assert_eq!(data[43..], [3, 0x02, 0x0a, 0xe4]);
    let page = third_party_copy();
    let mut kinds = vec![];
    let mut rest = &page[..];
    while let Some((head, _)) = rest.split_first_chunk::<4>() {
        kinds.push(u16::from_be_bytes([head[0], head[1]]));
        let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
        assert!(length.is_multiple_of(4));
        if kinds.last() == Some(&0x0004) {
            assert_eq!(rest[8..16], data[8..16], "the same limits");
        }
        rest = &rest[4 + length..];
    }
    assert_eq!(kinds, [0x0001, 0x0004, 0x0008, 0x000c, 0x8001]);
}

proptest! {
    #[test]
    fn no_list_makes_the_parser_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        targets in 0u16..4, segments in 0u32..100,
    ) {
        let mut bytes = bytes;
        if bytes.len() >= 16 {
            bytes[2..4].copy_from_slice(&(targets * 32).to_be_bytes());
            bytes[8..12].copy_from_slice(&segments.to_be_bytes());
            for at in (16..bytes.len()).step_by(32).take(usize::from(targets)) {
                bytes[at] = 0xe4;
            }
        }
        let _ = CopyList::parse(&bytes);
    }
}
