//! A unit over a small disk in memory.

use std::sync::{Arc, Mutex};

use disk::{Disk, DiskError, Durability};
use proptest::prelude::*;

use super::*;
use crate::Refusal;

mod effects;
mod nexuses;
mod sanitizing;

/// A thin disk in memory.
struct Memory {
    bytes: Mutex<Vec<u8>>,
    access: Access,
    is_thin: bool,
}

impl Memory {
    fn range(&self, offset: u64, bytes: u64) -> Result<std::ops::Range<usize>, DiskError> {
        let size_bytes = self.bytes.lock().unwrap().len() as u64;
        match offset.checked_add(bytes) {
            Some(end) if end <= size_bytes => {
                Ok(usize::try_from(offset).unwrap()..usize::try_from(end).unwrap())
            }
            _ => Err(DiskError::OutOfRange {
                offset,
                bytes,
                size_bytes,
            }),
        }
    }
}

impl Disk for Memory {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.bytes.lock().unwrap().len() as u64,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
        }
    }
    fn access(&self) -> Access {
        self.access
    }
    fn durability(&self) -> Durability {
        Durability::WriteBack
    }
    fn is_thin(&self) -> bool {
        self.is_thin
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let range = self.range(offset, buffer.len() as u64)?;
        buffer.copy_from_slice(&self.bytes.lock().unwrap()[range]);
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let range = self.range(offset, data.len() as u64)?;
        self.bytes.lock().unwrap()[range].copy_from_slice(data);
        Ok(())
    }
    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }
    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        let range = self.range(offset, bytes)?;
        self.bytes.lock().unwrap()[range].fill(0);
        Ok(())
    }
}

const BLOCKS: u64 = 4096;

/// A unit and one nexus that has seen its first unit attention.
struct Lab {
    unit: LogicalUnit,
    nexus: Nexus,
}

impl Lab {
    fn new(access: Access, is_thin: bool) -> Lab {
        let disk = Memory {
            bytes: Mutex::new(vec![0xaa; usize::try_from(BLOCKS * 512).unwrap()]),
            access,
            is_thin,
        };
        Lab::shaped(Arc::new(disk), Shape::default())
    }

    fn shaped(disk: SharedDisk, shape: Shape) -> Lab {
        let unit = LogicalUnit::shaped(disk, Identity::new([7; 16], "TEST"), shape);
        let nexus = unit.connect(&name());
        nexus.take();
        Lab { unit, nexus }
    }

    fn thin() -> Lab {
        Lab::new(Access::ReadWrite, true)
    }

    /// Runs a command as a session would and gives back its data-in.
    fn command(&self, cdb: &[u8], data_out: &[u8]) -> Result<Vec<u8>, Sense> {
        let work = self.unit.admit(&self.nexus, cdb).map_err(sense_of)?;
        let never = AtomicBool::new(false);
        match work.data_out() {
            DataOut::Streamed(bytes) => {
                assert_eq!(bytes, data_out.len() as u64);
                for (at, piece) in data_out.chunks(700).enumerate() {
                    self.unit.put(&work, 700 * at as u64, piece)?;
                }
            }
            DataOut::Gathered(bytes) => assert_eq!(bytes, data_out.len() as u64),
            DataOut::None => {}
        }
        let finished = self.unit.finish(&self.nexus, &work, data_out, &never);
        let mut data = finished.map_err(sense_of)?;
        if let Some(bytes) = work.read_bytes() {
            data = vec![0; usize::try_from(bytes).unwrap()];
            self.unit.read(&work, 0, &mut data)?;
        }
        Ok(data)
    }
}

fn name() -> NexusName {
    NexusName {
        initiator: "iqn.2026-01.test:pc".to_owned(),
        isid: [0x80, 0, 0, 0, 0, 1],
    }
}

fn sense_of(refusal: Refusal) -> Sense {
    refusal.sense().unwrap()
}

fn read10(lba: u32, count: u16) -> [u8; 10] {
    let [a, b, c, d] = lba.to_be_bytes();
    let [e, f] = count.to_be_bytes();
    [0x28, 0, a, b, c, d, 0, e, f, 0]
}

fn write10(lba: u32, count: u16) -> [u8; 10] {
    let mut cdb = read10(lba, count);
    cdb[0] = 0x2a;
    cdb
}

#[test]
fn what_is_written_is_read_back_and_nothing_else_changes() {
    let lab = Lab::thin();
    let data: Vec<u8> = (0..1024u32).map(|i| i.to_be_bytes()[3]).collect();
    lab.command(&write10(8, 2), &data).unwrap();
    assert_eq!(lab.command(&read10(8, 2), &[]), Ok(data));
    assert_eq!(lab.command(&read10(7, 1), &[]), Ok(vec![0xaa; 512]));
    assert_eq!(lab.command(&read10(10, 1), &[]), Ok(vec![0xaa; 512]));
}

#[test]
fn a_read_past_the_end_is_refused_with_lba_out_of_range() {
    let lab = Lab::thin();
    assert!(lab.command(&read10(4095, 1), &[]).is_ok());
    assert!(lab.command(&read10(4096, 0), &[]).is_ok());
    for (lba, count) in [(4096, 1), (4095, 2), (4097, 0), (u32::MAX, 0), (0, 4097)] {
        let answer = lab.command(&read10(lba, count), &[]);
        assert_eq!(answer, Err(Sense::LBA_OUT_OF_RANGE), "{lba}+{count}");
    }
    let huge = [
        0x88, 0, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 1, 0, 0,
    ];
    assert_eq!(lab.command(&huge, &[]), Err(Sense::LBA_OUT_OF_RANGE));
}

#[test]
fn a_new_session_hears_one_unit_attention_and_inquiry_does_not_take_it() {
    let lab = Lab::thin();
    let lab = Lab {
        nexus: lab.unit.connect(&name()),
        unit: lab.unit,
    };
    assert!(lab.command(&[0x12, 0, 0, 0, 36, 0], &[]).is_ok());
    assert_eq!(lab.command(&[0; 6], &[]), Err(Sense::RESET_OCCURRED));
    assert!(lab.command(&[0; 6], &[]).is_ok());
}

#[test]
fn request_sense_takes_the_attention_as_data() {
    let lab = Lab::thin();
    lab.unit.reset();
    let data = lab.command(&[0x03, 0, 0, 0, 18, 0], &[]).unwrap();
    assert_eq!((data[2], data[12], data[13]), (6, 0x29, 3));
    assert!(lab.command(&[0; 6], &[]).is_ok());
}

#[test]
fn every_write_to_a_read_only_disk_is_refused_as_protected() {
    let lab = Lab::new(Access::ReadOnly, true);
    let same = [0x93, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0];
    let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    let verify = [0x2e, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    for cdb in [&write10(0, 1)[..], &same, &unmap, &verify] {
        assert_eq!(lab.command(cdb, &[]), Err(Sense::WRITE_PROTECTED));
    }
    let flush = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert!(lab.command(&flush, &[]).is_ok());
}

#[test]
fn an_unmapped_range_reads_as_zeros_and_its_neighbours_stay() {
    let lab = Lab::thin();
    let mut list = vec![0, 0x16, 0, 0x10, 0, 0, 0, 0];
    list.extend_from_slice(&3u64.to_be_bytes());
    list.extend_from_slice(&[0, 0, 0, 2, 0, 0, 0, 0]);
    lab.command(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], &list)
        .unwrap();
    let mut expected = vec![0xaa; 512];
    expected.extend_from_slice(&[0; 1024]);
    expected.extend_from_slice(&[0xaa; 512]);
    assert_eq!(lab.command(&read10(2, 4), &[]), Ok(expected));
}

#[test]
fn a_disk_that_is_not_thin_knows_no_unmap() {
    let lab = Lab::new(Access::ReadWrite, false);
    let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    assert_eq!(lab.command(&unmap, &[0; 24]), Err(Sense::INVALID_OPCODE));
    let same = [0x41, 8, 0, 0, 0, 0, 0, 0, 1, 0];
    assert_eq!(
        lab.command(&same, &[0; 512]),
        Err(Sense::invalid_cdb_field(1, 3))
    );
}

#[test]
fn write_same_repeats_its_block_and_0_blocks_means_to_the_end() {
    let lab = Lab::thin();
    let block: Vec<u8> = (0..512u32).map(|i| i.to_be_bytes()[3]).collect();
    lab.command(&[0x41, 0, 0, 0, 0, 4, 0, 0, 3, 0], &block)
        .unwrap();
    assert_eq!(lab.command(&read10(4, 3), &[]), Ok(block.repeat(3)));
    assert_eq!(lab.command(&read10(7, 1), &[]), Ok(vec![0xaa; 512]));
    lab.command(&[0x41, 8, 0, 0, 0x0f, 0xfe, 0, 0, 0, 0], &[0; 512])
        .unwrap();
    assert_eq!(
        lab.command(&read10(4093, 3), &[]).unwrap()[..512],
        [0xaa; 512]
    );
    assert_eq!(lab.command(&read10(4094, 2), &[]), Ok(vec![0; 1024]));
}

#[test]
fn verify_tells_where_the_first_difference_is() {
    let lab = Lab::thin();
    let mut data = vec![0xaa; 1024];
    let verify = [0x2f, 2, 0, 0, 0, 0, 0, 0, 2, 0];
    assert!(lab.command(&verify, &data).is_ok());
    data[900] = 0;
    assert_eq!(lab.command(&verify, &data), Err(Sense::miscompare_at(900)));
    let one = [0x2f, 6, 0, 0, 0, 0, 0, 0, 2, 0];
    assert!(lab.command(&one, &[0xaa; 512]).is_ok());
    assert_eq!(
        lab.command(&one, &[0xab; 512]),
        Err(Sense::miscompare_at(0))
    );
}

#[test]
fn a_transfer_over_the_limit_is_refused() {
    let lab = Lab::thin();
    let mut cdb = [0u8; 16];
    cdb[0] = 0x88;
    cdb[10..14].copy_from_slice(&65537u32.to_be_bytes());
    assert_eq!(lab.command(&cdb, &[]), Err(Sense::INVALID_FIELD_IN_CDB));
}

#[test]
fn capacity_is_told_with_4k_physical_blocks_and_thin() {
    let lab = Lab::thin();
    let cdb = [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0];
    let mut expected = vec![0, 0, 0, 0, 0, 0, 0x0f, 0xff, 0, 0, 2, 0, 0, 3, 0xc0, 0];
    expected.extend_from_slice(&[0; 16]);
    assert_eq!(lab.command(&cdb, &[]), Ok(expected));
    let ten = lab.command(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]);
    assert_eq!(ten, Ok(vec![0, 0, 0x0f, 0xff, 0, 0, 2, 0]));
}

#[test]
fn a_short_offer_cuts_a_write_to_whole_blocks_and_refuses_write_same() {
    let lab = Lab::thin();
    let work = lab.unit.admit(&lab.nexus, &write10(0, 2)).unwrap();
    let takes = |offered| lab.unit.fit(&work, offered);
    assert_eq!([0, 200, 512, 1000].map(takes), [0, 0, 512, 512].map(Ok));
    assert_eq!([1024, 9000].map(takes), [1024, 1024].map(Ok));
    let same = [0x41, 0, 0, 0, 0, 4, 0, 0, 3, 0];
    let work = lab.unit.admit(&lab.nexus, &same).unwrap();
    assert_eq!(lab.unit.fit(&work, 512), Ok(512));
    let refusal = Sense::INVALID_FIELD_IN_COMMAND_IU;
    assert_eq!(lab.unit.fit(&work, 256), Err(refusal));
    assert_eq!(lab.unit.fit(&work, 1024), Err(refusal));
}

#[test]
fn a_command_admitted_before_a_reset_changes_nothing_after_it() {
    let lab = Lab::thin();
    let same = [0x41, 0, 0, 0, 0, 0, 0, 1, 0, 0];
    let work = lab.unit.admit(&lab.nexus, &same).unwrap();
    lab.unit.reset();
    let never = AtomicBool::new(false);
    let _ = lab.unit.finish(&lab.nexus, &work, &[1; 512], &never);
    assert_eq!(lab.nexus.take(), Some(Sense::DEVICE_RESET_OCCURRED));
    assert_eq!(lab.command(&read10(0, 1), &[]), Ok(vec![0xaa; 512]));
}

#[test]
fn an_unmap_list_longer_than_any_we_take_is_refused_before_it_comes() {
    let lab = Lab::thin();
    let unmap = |bytes: u16| {
        let [high, low] = bytes.to_be_bytes();
        lab.unit
            .admit(&lab.nexus, &[0x42, 0, 0, 0, 0, 0, 0, high, low, 0])
    };
    assert!(unmap(8 + 256 * 16).is_ok());
    assert_eq!(
        unmap(8 + 256 * 16 + 1).unwrap_err(),
        Refusal::from(Sense::invalid_cdb_field(7, 7))
    );
}

#[test]
fn a_command_that_was_called_off_stops_between_steps() {
    let lab = Lab::thin();
    let cdb = [0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0];
    let work = lab.unit.admit(&lab.nexus, &cdb).unwrap();
    assert_eq!(work.pace(), Pace::Slow);
    let called_off = AtomicBool::new(true);
    lab.unit
        .finish(&lab.nexus, &work, &[1; 512], &called_off)
        .unwrap();
    assert_eq!(lab.command(&read10(0, 1), &[]), Ok(vec![0xaa; 512]));
}

proptest! {
    #[test]
    fn no_cdb_makes_a_unit_panic(cdb in proptest::collection::vec(any::<u8>(), 0..17), data in proptest::collection::vec(any::<u8>(), 0..64)) {
        let lab = Lab::thin();
        if let Ok(work) = lab.unit.admit(&lab.nexus, &cdb) {
            let never = AtomicBool::new(false);
            let _ = lab.unit.put(&work, 0, &data);
            let _ = lab.unit.finish(&lab.nexus, &work, &data, &never);
        }
    }
}

/// A disk far larger than memory, that notes the longest stretch it was asked
/// about.
struct Vast(AtomicU64);

impl Disk for Vast {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: 1 << 50,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
        }
    }
    fn access(&self) -> Access {
        Access::ReadWrite
    }
    fn durability(&self) -> Durability {
        Durability::WriteBack
    }
    fn is_thin(&self) -> bool {
        true
    }
    fn read(&self, _offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        buffer.fill(0);
        Ok(())
    }
    fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }
    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }
    fn unmap(&self, _offset: u64, _bytes: u64) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }
    fn extent(&self, _offset: u64, bytes: u64) -> Result<disk::Extent, DiskError> {
        self.0.fetch_max(bytes, Ordering::Relaxed);
        Ok(disk::Extent {
            bytes,
            allocation: disk::Allocation::Deallocated,
        })
    }
}

#[test]
fn get_lba_status_walks_no_vast_disk_at_once_and_in_nobodys_way() {
    let disk = Arc::new(Vast(AtomicU64::new(0)));
    let lab = Lab::shaped(disk.clone(), Shape::default());
    let cdb = [0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0];
    assert_eq!(lab.unit.admit(&lab.nexus, &cdb).unwrap().pace(), Pace::Slow);
    let data = lab.command(&cdb, &[]).unwrap();
    assert_eq!((&data[16..20], data[20]), (&[0xff; 4][..], 1));
    assert_eq!(disk.0.load(Ordering::Relaxed), 1 << 30);
}
