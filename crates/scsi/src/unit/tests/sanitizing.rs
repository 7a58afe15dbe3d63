//! SANITIZE, and a unit that is being sanitized.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use super::effects::OnFile;
use super::*;

/// OVERWRITE with one pass of `pattern`: CDB and list.
fn overwrite(flags: u8, pattern: &[u8]) -> ([u8; 10], Vec<u8>) {
    let [high, low] = u16::try_from(pattern.len() + 4).unwrap().to_be_bytes();
    let cdb = [0x48, flags | 1, 0, 0, 0, 0, 0, high, low, 0];
    let [high, low] = u16::try_from(pattern.len()).unwrap().to_be_bytes();
    (cdb, [&[1, 0, high, low], pattern].concat())
}

const ERASE: [u8; 10] = [0x48, 2, 0, 0, 0, 0, 0, 0, 0, 0];
const EXIT: [u8; 10] = [0x48, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn overwrite_fills_every_block_of_the_file_with_the_pattern() {
    OnFile::in_both_sizes(|on| {
        let (cdb, list) = overwrite(0, &[1, 2, 3, 4, 5]);
        on.lab.command(&cdb, &list).unwrap();
        let block: Vec<u8> = (1..=5u8).cycle().take(on.block_bytes).collect();
        let bytes = std::fs::read(on.file.path()).unwrap();
        assert!(bytes.chunks(on.block_bytes).all(|found| found == block));
    });
}

#[test]
fn block_erase_leaves_zeros_and_nothing_stored() {
    OnFile::in_both_sizes(|on| {
        on.lab.command(&ERASE, &[]).unwrap();
        let bytes = std::fs::read(on.file.path()).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
        let status = [0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        let data = on.lab.command(&status, &[]).unwrap();
        let extent = on.lab.unit.disk().extent(0, 1).unwrap();
        // One descriptor; deallocated where the file system can punch holes.
        assert_eq!(data.len(), 24);
        assert_eq!(
            data[20] == 1,
            extent.allocation == disk::Allocation::Deallocated
        );
    });
}

#[test]
fn fields_that_mean_nothing_here_are_refused() {
    let on = OnFile::new(512);
    let (cdb, list) = overwrite(0, &[7]);
    for (at, value) in [(1, 0x41), (1, 0x03), (1, 0x00), (1, 0x1e), (2, 1), (6, 1)] {
        let mut cdb = cdb;
        cdb[at] = value;
        let sense = on.lab.command(&cdb, &list).unwrap_err();
        assert_eq!((sense.key, sense.asc), (5, 0x24), "byte {at} = {value}");
    }
    for bytes in [0u16, 4, 512 + 5] {
        let mut cdb = cdb;
        cdb[7..9].copy_from_slice(&bytes.to_be_bytes());
        let refusal = Refusal::from(Sense::invalid_cdb_field(7, 7));
        assert_eq!(on.lab.unit.admit(&on.lab.nexus, &cdb).unwrap_err(), refusal);
    }
    let mut with_list = ERASE;
    with_list[8] = 8;
    assert!(on.lab.unit.admit(&on.lab.nexus, &with_list).is_err());
    on.holds(&[]);
}

#[test]
fn a_disk_in_memory_is_erased_and_not_overwritten() {
    let lab = Lab::shaped(Arc::new(disk::Ram::new(1 << 20)), Shape::default());
    let (cdb, list) = overwrite(0, &[7]);
    let refused = lab.command(&cdb, &list);
    assert_eq!(refused, Err(Sense::invalid_cdb_field(1, 4)));
    lab.command(&write10(3, 1), &[9; 512]).unwrap();
    lab.command(&ERASE, &[]).unwrap();
    assert_eq!(lab.command(&read10(3, 1), &[]), Ok(vec![0; 512]));
}

/// How long a write waits when the test has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A disk whose writes wait to be let through, and fail when they are not.
struct Gated {
    ram: disk::Ram,
    reached: SyncSender<()>,
    gate: Mutex<Receiver<bool>>,
}

impl Disk for Gated {
    fn geometry(&self) -> Geometry {
        self.ram.geometry()
    }
    fn access(&self) -> Access {
        self.ram.access()
    }
    fn durability(&self) -> Durability {
        Durability::WriteBack
    }
    fn is_thin(&self) -> bool {
        true
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.ram.read(offset, buffer)
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let _ = self.reached.send(());
        // Who comes while another waits has no business here.
        let word = self.gate.try_lock().map(|gate| gate.recv_timeout(PATIENCE));
        match word {
            Ok(Ok(true)) => self.ram.write(offset, data),
            _ => Err(DiskError::Failed("test".into())),
        }
    }
    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }
    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.ram.unmap(offset, bytes)
    }
}

/// A unit of 32 MiB over a gate; each write waits for a word, and each wait
/// is told.
fn gated() -> (Lab, SyncSender<bool>, Receiver<()>) {
    let (reached, waits) = sync_channel(64);
    let (open, gate) = sync_channel(64);
    let disk = Gated {
        ram: disk::Ram::new(32 << 20),
        reached,
        gate: Mutex::new(gate),
    };
    (Lab::shaped(Arc::new(disk), Shape::default()), open, waits)
}

#[test]
fn meanwhile_the_unit_takes_nothing_else_and_no_reset_ends_it() {
    let (lab, open, waits) = gated();
    let (cdb, list) = overwrite(0, &[0x5a]);
    let early = lab.unit.admit(&lab.nexus, &write10(0, 1)).unwrap();
    let work = lab.unit.admit(&lab.nexus, &cdb).unwrap();
    assert!(!work.finish_changes_disk(), "nobody waits for its abort");
    let called_off = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| lab.unit.finish(&lab.nexus, &work, &list, &called_off));
        // The first 16 of 32 MiB are through, the next wait.
        (0..16).for_each(|_| open.send(true).unwrap());
        (0..17).for_each(|_| waits.recv().unwrap());
        let busy = Sense {
            progress: Some(32_768),
            ..Sense::SANITIZE_IN_PROGRESS
        };
        for cdb in [&[0; 6][..], &read10(0, 1), &[0x1b, 0, 0, 0, 1, 0], &cdb] {
            assert_eq!(lab.command(cdb, &[]), Err(busy));
        }
        assert_eq!(lab.unit.put(&early, 0, &[1; 512]), Err(busy));
        assert!(lab.command(&[0x12, 0, 0, 0, 36, 0], &[]).is_ok());
        let sense = lab.command(&[3, 0, 0, 0, 18, 0], &[]).unwrap();
        assert_eq!((sense[2], sense[12], sense[13]), (2, 0x04, 0x1b));
        assert_eq!(sense[15..18], [0x80, 0x80, 0x00]);
        called_off.store(true, Ordering::Relaxed);
        lab.unit.reset();
        lab.nexus.take();
        assert_eq!(lab.command(&[0; 6], &[]), Err(busy));
        (0..16).for_each(|_| open.send(true).unwrap());
        assert_eq!(running.join().unwrap(), Ok(vec![]));
    });
    assert!(lab.command(&[0; 6], &[]).is_ok());
    assert_eq!(lab.command(&read10(65_535, 1), &[]), Ok(vec![0x5a; 512]));
}

#[test]
fn an_immediate_one_is_answered_when_it_has_begun() {
    let (lab, open, _waits) = gated();
    let (cdb, list) = overwrite(0x80, &[0x5a]);
    let work = lab.unit.admit(&lab.nexus, &cdb).unwrap();
    let never = AtomicBool::new(false);
    let answer = lab.unit.finish(&lab.nexus, &work, &list, &never);
    assert_eq!(answer, Ok(vec![]));
    assert_eq!(lab.command(&[0; 6], &[]).unwrap_err().ascq, 0x1b);
    (0..32).for_each(|_| open.send(true).unwrap());
    lab.unit.go_on(&work, &list);
    assert!(lab.command(&[0; 6], &[]).is_ok());
    assert_eq!(lab.command(&read10(7, 1), &[]), Ok(vec![0x5a; 512]));
}

#[test]
fn one_that_ended_before_it_began_does_not_go_on_with_another() {
    let (lab, _open, _waits) = gated();
    let (cdb, list) = overwrite(0x80, &[0x5a]);
    let works = [(); 3].map(|()| lab.unit.admit(&lab.nexus, &cdb).unwrap());
    let finish = |work, called_off| {
        let called_off = AtomicBool::new(called_off);
        lab.unit.finish(&lab.nexus, work, &list, &called_off)
    };
    assert!(finish(&works[0], false).is_ok(), "it has begun");
    // What goes on is what has succeeded.
    assert!(finish(&works[1], true).is_err(), "aborted");
    lab.unit.reset();
    assert!(finish(&works[2], false).is_err(), "void");
}

#[test]
fn one_that_fails_leaves_a_unit_that_must_be_sanitized_or_let_out() {
    let (lab, open, _waits) = gated();
    let fail = |flags| {
        let (cdb, list) = overwrite(flags, &[0x5a]);
        open.send(false).unwrap();
        assert_eq!(lab.command(&cdb, &list), Err(Sense::SANITIZE_FAILED));
        assert_eq!(lab.command(&[0; 6], &[]), Err(Sense::SANITIZE_FAILED));
    };
    fail(0);
    assert!(lab.command(&EXIT, &[]).is_err(), "AUSE was not set");
    fail(0x20);
    assert!(lab.command(&EXIT, &[]).is_ok());
    assert!(lab.command(&[0; 6], &[]).is_ok());
    fail(0);
    let (cdb, list) = overwrite(0, &[0x5a]);
    (0..32).for_each(|_| open.send(true).unwrap());
    lab.command(&cdb, &list).unwrap();
    assert!(lab.command(&[0; 6], &[]).is_ok());
}
