//! Sessions in memory: exact PDUs in, exact PDUs out.

// The test disk's mapped bytes are read through the pointers a kernel would
// get.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Mutex;

use proptest::prelude::*;
use scsi::Identity;
use scsi::disk::{Access, Disk, DiskError, Durability, Geometry, Ram, Segment};

use super::data_out::{MAX_SOLICITED_BYTES, MAX_STAGED_BYTES};
use super::*;
use crate::outbox::{Gone, Part, Sink};
use crate::wire::{BHS_BYTES, DataOut, LoginRequest, TaskManagement, TextRequest, padding};
use crate::{Attachment, Authentication, ChapSecrets, LoginRefusal};

mod attributes;
mod digests;
mod functions;
mod pings;
mod reservations;

const CHECK_CONDITION: u8 = 0x02;

/// 1 MiB, every byte of a block its number.
const BLOCKS: usize = 2048;

/// A disk in memory; the mapped one gives segments of 12 KiB.
struct Memory {
    bytes: Mutex<Vec<u8>>,
    is_mapped: bool,
    /// Bytes that the segments of a range leave out, against the contract.
    withheld: u64,
    durability: Durability,
}

impl Disk for Memory {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: (BLOCKS * 512) as u64,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
        }
    }
    fn access(&self) -> Access {
        Access::ReadWrite
    }
    fn durability(&self) -> Durability {
        self.durability
    }
    fn is_thin(&self) -> bool {
        true
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        // One block cannot be read.
        let bad = 1000 * 512;
        if offset <= bad && bad < offset + buffer.len() as u64 {
            return Err(DiskError::Corrupt("block 1000".into()));
        }
        let at = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.bytes.lock().unwrap()[at..at + buffer.len()]);
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let at = usize::try_from(offset).unwrap();
        self.bytes.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }
    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.write(offset, &vec![0; usize::try_from(bytes).unwrap()])
    }
    fn segments<'a>(
        &'a self,
        offset: u64,
        bytes: u64,
        segments: &mut Vec<Segment<'a>>,
    ) -> Result<bool, DiskError> {
        if !self.is_mapped {
            return Ok(false);
        }
        let start = self.bytes.lock().unwrap().as_ptr();
        let (mut at, end) = (offset, offset + bytes - self.withheld.min(bytes));
        while at < end {
            let now = (end - at).min(12 << 10);
            let now = usize::try_from(now).unwrap();
            segments.push(Segment::new(
                start.wrapping_add(usize::try_from(at).unwrap()),
                now,
            ));
            at += now as u64;
        }
        Ok(true)
    }
}

struct NoTargets;

impl Targets for NoTargets {
    fn authentication(&self, _: &Login) -> Authentication {
        Authentication::None
    }
    fn chap_secret(&self, _: &Login, _: &str) -> Option<ChapSecrets> {
        None
    }
    fn open(&self, _: &Login) -> Result<Attachment, LoginRefusal> {
        Err(LoginRefusal::NotFound)
    }
    fn discover(&self, _: &Login) -> Vec<String> {
        (0..200)
            .map(|n| format!("iqn.2026-01.lab:target-{n:03}"))
            .collect()
    }
}

/// Keeps what was sent.
#[derive(Clone, Default)]
struct Wire(Rc<RefCell<Vec<u8>>>);

impl Sink for Wire {
    fn send(&mut self, parts: &mut [Part]) -> Result<(), Gone> {
        for part in parts {
            // SAFETY: an outbox points at bytes that stay during the call.
            let bytes = unsafe { std::slice::from_raw_parts(part.start(), part.len()) };
            self.0.borrow_mut().extend_from_slice(bytes);
        }
        Ok(())
    }
}

/// A response, as far as tests look at it.
#[derive(Clone, Debug)]
struct Heard {
    opcode: u8,
    flags: u8,
    /// Response and status.
    bytes: [u8; 2],
    itt: u32,
    ttt: u32,
    stat_sn: u32,
    exp_cmd_sn: u32,
    max_cmd_sn: u32,
    data_sn: u32,
    offset: u32,
    last: u32,
    data: Vec<u8>,
}

struct Lab {
    session: Session<'static>,
    out: Outbox<'static>,
    wire: Wire,
    target: &'static Arc<Target>,
    units: &'static Units,
    cmd_sn: u32,
}

const LUN: [u8; 8] = [0; 8];
const FIRST_CMD_SN: u32 = 0xffff_fffe; // wraps early

struct Shape {
    parameters: Parameters,
    is_mapped: bool,
    withheld: u64,
    durability: Durability,
}

impl Default for Shape {
    fn default() -> Shape {
        Shape {
            parameters: Parameters {
                max_send_data_segment_length: 8192,
                max_burst_length: 16384,
                first_burst_length: 4096,
                initial_r2t: false,
                ..Parameters::default()
            },
            is_mapped: true,
            withheld: 0,
            durability: Durability::WriteBack,
        }
    }
}

impl Lab {
    fn new() -> Lab {
        Lab::shaped(Shape::default())
    }

    fn shaped(shape: Shape) -> Lab {
        let bytes = (0..BLOCKS).flat_map(block).collect();
        let disk = Memory {
            bytes: Mutex::new(bytes),
            is_mapped: shape.is_mapped,
            withheld: shape.withheld,
            durability: shape.durability,
        };
        let unit = LogicalUnit::new(Arc::new(disk), Identity::new([1; 16], "TEST"));
        let target = Target::of_one("iqn.2026-01.lab:t", Arc::new(unit));
        let target: &'static Arc<Target> = Box::leak(Box::new(Arc::new(target)));
        let mut lab = Lab::on(Some(target), shape.parameters);
        lab.target = target;
        lab.move_on();
        // The first command hears of the new session.
        let heard = lab.command(&[0; 6], 0, 0x80, &[]);
        assert_eq!(heard[0].sense(), (6, 0x29, 0));
        lab
    }

    fn on(target: Option<&'static Arc<Target>>, parameters: Parameters) -> Lab {
        let login: &'static Login = Box::leak(Box::new(Login {
            initiator: "iqn.a:b".into(),
            target: target.map(|t| t.name.clone()),
            isid: [0; 6],
            peer: "127.0.0.1:1".parse().unwrap(),
            portal: "127.0.0.1:3260".parse().unwrap(),
            chap_name: None,
        }));
        let wire = Wire::default();
        Lab {
            session: Session::new(Start {
                login,
                parameters,
                target,
                targets: &NoTargets,
                portals: &[],
                stats: Box::leak(Box::default()),
                cid: 1,
                window: 8,
                stat_sn: 100,
                exp_cmd_sn: FIRST_CMD_SN,
            }),
            out: Outbox::new(wire.clone()),
            wire,
            target: Box::leak(Box::new(Arc::new(Target::new("", []).unwrap()))),
            units: Box::leak(Box::new(Units::none())),
            cmd_sn: FIRST_CMD_SN,
        }
    }

    fn send(&mut self, request: &Request, data: &[u8]) -> Next {
        let bhs = request.emit(data.len());
        self.session
            .receive(self.units, &bhs, Data::Intact(data), &mut self.out)
    }

    /// Moves on to the target's units as they are now.
    fn move_on(&mut self) {
        let units: &'static Units = Box::leak(Box::new(self.target.snapshot()));
        self.session.move_on(self.units, units, &mut self.out);
        self.units = units;
    }

    /// Everything sent since the last call.
    fn heard(&mut self) -> Vec<Heard> {
        self.out.flush().unwrap();
        let bytes = self.wire.0.take();
        let mut rest = &bytes[..];
        let mut heard = Vec::new();
        while !rest.is_empty() {
            let bhs: Bhs = rest[..BHS_BYTES].try_into().unwrap();
            let word = |at: usize| u32::from_be_bytes(bhs[at..at + 4].try_into().unwrap());
            let length = usize::try_from(word(4) & 0xff_ffff).unwrap();
            let end = BHS_BYTES + length;
            heard.push(Heard {
                opcode: bhs[0],
                flags: bhs[1],
                bytes: [bhs[2], bhs[3]],
                itt: word(16),
                ttt: word(20),
                stat_sn: word(24),
                exp_cmd_sn: word(28),
                max_cmd_sn: word(32),
                data_sn: word(36),
                offset: word(40),
                last: word(44),
                data: rest[BHS_BYTES..end].to_vec(),
            });
            assert!(
                rest[end..end + padding(length)]
                    .iter()
                    .all(|byte| *byte == 0)
            );
            rest = &rest[end + padding(length)..];
        }
        heard
    }

    fn request(&mut self, cdb: &[u8], expected_bytes: u32, flags: u8) -> Request {
        let mut padded = [0; 16];
        padded[..cdb.len()].copy_from_slice(cdb);
        let request = Request::ScsiCommand(ScsiCommand {
            immediate: false,
            is_final: flags & 0x80 != 0,
            reads: flags & 0x40 != 0,
            writes: flags & 0x20 != 0,
            attribute: 1,
            lun: LUN,
            itt: self.cmd_sn.wrapping_add(1000),
            expected_bytes,
            cmd_sn: self.cmd_sn,
            exp_stat_sn: 0,
            cdb: padded,
        });
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        request
    }

    /// Sends a command and gives back what came.
    fn command(&mut self, cdb: &[u8], expected: u32, flags: u8, data: &[u8]) -> Vec<Heard> {
        let request = self.request(cdb, expected, flags);
        assert_eq!(self.send(&request, data), Next::Continue);
        self.heard()
    }

    /// Answers an R2T with one Data-Out PDU.
    fn data_out(&mut self, r2t: &Heard, data_sn: u32, offset: u32, data: &[u8], last: bool) {
        let request = Request::DataOut(DataOut {
            is_final: last,
            lun: LUN,
            itt: r2t.itt,
            ttt: r2t.ttt,
            exp_stat_sn: 0,
            data_sn,
            buffer_offset: offset,
        });
        assert_eq!(self.send(&request, data), Next::Continue);
    }

    /// Runs every job there is, as workers would.
    fn help(&mut self) -> usize {
        let jobs = self.session.jobs();
        let count = jobs.len();
        for job in jobs {
            self.session.finish(self.units, job.run(), &mut self.out);
        }
        count
    }

    fn disk(&self, lba: u64, blocks: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(blocks * 512).unwrap()];
        let unit = self.target.unit(0).unwrap();
        unit.disk().read(lba * 512, &mut bytes).unwrap();
        bytes
    }

    fn manage(&mut self, function: u8, tag: u32) -> Next {
        let request = Request::TaskManagement(TaskManagement {
            immediate: true,
            function,
            lun: LUN,
            itt: 77,
            referenced_tag: tag,
            cmd_sn: self.cmd_sn,
            exp_stat_sn: 0,
            ref_cmd_sn: 0,
        });
        self.send(&request, &[])
    }
}

impl Heard {
    fn sense(&self) -> (u8, u8, u8) {
        assert_eq!((self.opcode, self.bytes[1]), (0x21, CHECK_CONDITION));
        assert_eq!(self.data[..2], [0, 18]);
        (self.data[4] & 0x0f, self.data[14], self.data[15])
    }

    fn is_good(&self) -> bool {
        self.opcode == 0x21 && self.bytes == [0, GOOD]
    }
}

fn read10(lba: u32, blocks: u16) -> [u8; 10] {
    let [a, b, c, d] = lba.to_be_bytes();
    let [e, f] = blocks.to_be_bytes();
    [0x28, 0, a, b, c, d, 0, e, f, 0]
}

fn write10(lba: u32, blocks: u16) -> [u8; 10] {
    let mut cdb = read10(lba, blocks);
    cdb[0] = 0x2a;
    cdb
}

const FLUSH: [u8; 10] = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn block(number: usize) -> Vec<u8> {
    vec![u8::try_from(number % 251).unwrap(); 512]
}

// RFC 7143 section 11.7: SCSI Data-In.

#[test]
fn a_read_is_cut_to_the_initiators_segments_and_bursts_with_status_in_the_last() {
    for is_mapped in [true, false] {
        let mut lab = Lab::shaped(Shape {
            is_mapped,
            ..Shape::default()
        });
        // 20 KiB: a sequence of 16 KiB in two PDUs, and one of 4 KiB.
        let heard = lab.command(&read10(7, 40), 40 * 512, 0xc0, &[]);
        let shape: Vec<_> = heard
            .iter()
            .map(|h| (h.flags, h.data.len(), h.offset, h.data_sn))
            .collect();
        assert_eq!(
            shape,
            [
                (0x00, 8192, 0, 0),
                (0x80, 8192, 8192, 1),
                (0x81, 4096, 16384, 2)
            ]
        );
        let data: Vec<u8> = heard.iter().flat_map(|h| h.data.clone()).collect();
        let expected: Vec<u8> = (7..47).flat_map(block).collect();
        assert_eq!(data, expected);
        // Without status the last StatSN sent, with it the next one.
        let numbers: Vec<_> = heard.iter().map(|h| h.stat_sn).collect();
        assert_eq!(numbers, [100, 100, 101]);
    }
}

#[test]
fn a_disk_that_maps_less_than_it_says_is_read_and_no_byte_made_up() {
    let mut lab = Lab::shaped(Shape {
        withheld: 512,
        ..Shape::default()
    });
    let heard = lab.command(&read10(7, 40), 40 * 512, 0xc0, &[]);
    let data: Vec<u8> = heard.iter().flat_map(|h| h.data.clone()).collect();
    let expected: Vec<u8> = (7..47).flat_map(block).collect();
    assert_eq!(data, expected);
}

#[test]
fn data_that_is_no_multiple_of_four_is_padded() {
    let mut lab = Lab::new();
    let heard = lab.command(&[0x12, 0, 0, 0, 5, 0], 5, 0xc0, &[]);
    assert_eq!((heard[0].data.len(), heard[0].flags), (5, 0x81));
}

#[test]
fn a_read_that_fails_midway_ends_with_sense_and_no_status_before() {
    let mut lab = Lab::shaped(Shape {
        is_mapped: false,
        ..Shape::default()
    });
    let heard = lab.command(&read10(980, 40), 40 * 512, 0xc0, &[]);
    assert_eq!((heard[0].opcode, heard[0].flags & 1), (0x25, 0));
    let last = heard.last().unwrap();
    assert_eq!(last.sense(), (3, 0x11, 0));
    assert_eq!(last.data_sn, 1, "ExpDataSN counts what was sent");
    // The stream is whole: the next command is answered.
    assert!(lab.command(&[0; 6], 0, 0x80, &[])[0].is_good());
}

// RFC 7143 section 11.4.5: residuals.

#[test]
fn a_read_shorter_or_longer_than_expected_says_by_how_much() {
    let mut lab = Lab::new();
    let heard = lab.command(&read10(0, 1), 1000, 0xc0, &[]);
    assert_eq!(
        (heard[0].flags, heard[0].last, heard[0].data.len()),
        (0x83, 488, 512)
    );
    let heard = lab.command(&read10(0, 2), 600, 0xc0, &[]);
    assert_eq!(
        (heard[0].flags, heard[0].last, heard[0].data.len()),
        (0x85, 424, 600)
    );
    let heard = lab.command(&read10(0, 1), 0, 0x80, &[]);
    assert!(heard[0].is_good());
    assert_eq!((heard[0].flags, heard[0].last), (0x84, 512));
}

#[test]
fn a_write_with_a_short_expected_length_writes_whole_blocks_only() {
    let mut lab = Lab::new();
    let data = [9; 1000];
    let heard = lab.command(&write10(3, 2), 1000, 0xa0, &data);
    assert!(heard[0].is_good());
    assert_eq!((heard[0].flags, heard[0].last), (0x84, 24));
    assert_eq!(lab.disk(3, 1), [9; 512]);
    assert_eq!(lab.disk(4, 1), block(4));
}

// RFC 7143 sections 11.7.1 and 11.8: Data-Out and R2T.

#[test]
fn immediate_unsolicited_and_solicited_data_make_one_write() {
    let mut lab = Lab::new();
    let data: Vec<u8> = (0..40 * 512u32).map(|i| i.to_be_bytes()[3]).collect();
    let request = lab.request(&write10(50, 40), 40 * 512, 0x20);
    assert_eq!(lab.send(&request, &data[..1024]), Next::Continue);
    assert!(lab.heard().is_empty(), "unsolicited data is still to come");
    let itt = FIRST_CMD_SN.wrapping_add(1001);
    let unasked = Heard {
        itt,
        ttt: NO_TAG,
        ..blank()
    };
    lab.data_out(&unasked, 0, 1024, &data[1024..4096], true);
    // 16 KiB left: one burst.
    let heard = lab.heard();
    let r2t = &heard[0];
    assert_eq!((r2t.opcode, r2t.offset, r2t.last), (0x31, 4096, 16384));
    assert_eq!((heard.len(), r2t.stat_sn, r2t.data_sn), (1, 101, 0));
    // Pieces small and large, as iPXE and Linux send them.
    let (mut at, mut data_sn) = (4096, 0);
    for bytes in [512, 512, 7168, 8192] {
        let end = at + bytes;
        let offset = u32::try_from(at).unwrap();
        lab.data_out(r2t, data_sn, offset, &data[at..end], end == data.len());
        (at, data_sn) = (end, data_sn + 1);
    }
    let heard = lab.heard();
    assert!(heard.len() == 1 && heard[0].is_good());
    assert_eq!(heard[0].stat_sn, 101, "an R2T does not consume a StatSN");
    assert_eq!(heard[0].data_sn, 1, "ExpDataSN counts the R2T");
    assert_eq!(lab.disk(50, 40), data);
}

fn blank() -> Heard {
    Heard {
        opcode: 0,
        flags: 0,
        bytes: [0; 2],
        itt: 0,
        ttt: 0,
        stat_sn: 0,
        exp_cmd_sn: 0,
        max_cmd_sn: 0,
        data_sn: 0,
        offset: 0,
        last: 0,
        data: vec![],
    }
}

#[test]
fn a_write_longer_than_a_burst_is_asked_for_burst_by_burst() {
    let mut lab = Lab::new();
    let data: Vec<u8> = (0..80 * 512u32)
        .map(|i| u8::try_from(i % 253).unwrap())
        .collect();
    let mut heard = lab.command(&write10(50, 80), 80 * 512, 0xa0, &[]);
    let mut asked = vec![];
    while heard[0].opcode == 0x31 {
        let r2t = heard[0].clone();
        asked.push((r2t.data_sn, r2t.offset, r2t.last));
        let at = usize::try_from(r2t.offset).unwrap();
        let end = at + usize::try_from(r2t.last).unwrap();
        lab.data_out(&r2t, 0, r2t.offset, &data[at..end], true);
        heard = lab.heard();
    }
    assert_eq!(asked, [(0, 0, 16384), (1, 16384, 16384), (2, 32768, 8192)]);
    assert!(heard[0].is_good());
    assert_eq!(lab.disk(50, 80), data);
}

#[test]
fn small_pieces_held_back_are_bounded_over_all_tasks() {
    let mut shape = Shape::default();
    shape.parameters.max_burst_length = 1 << 20;
    let mut lab = Lab::shaped(shape);
    let r2ts: Vec<_> = (0..3)
        .map(|_| {
            lab.command(&write10(0, 2000), 2000 * 512, 0xa0, &[])
                .remove(0)
        })
        .collect();
    for n in 0..1999u32 {
        let fill = [u8::try_from(n % 7).unwrap(); 512];
        for r2t in &r2ts {
            lab.data_out(r2t, n, n * 512, &fill, false);
        }
    }
    let staged: usize = lab.session.tasks.values().map(Task::staged_bytes).sum();
    assert!(0 < staged && staged <= MAX_STAGED_BYTES, "{staged}");
    for r2t in &r2ts {
        lab.data_out(r2t, 1999, 1999 * 512, &[8; 512], true);
        assert!(lab.heard()[0].is_good());
    }
    let expected: Vec<u8> = (0..1999u32)
        .flat_map(|n| [u8::try_from(n % 7).unwrap(); 512])
        .chain([8; 512])
        .collect();
    // Block 1000 cannot be read.
    assert_eq!(lab.disk(0, 1000), expected[..1000 * 512]);
    assert_eq!(lab.disk(1001, 999), expected[1001 * 512..]);
}

#[test]
fn data_out_of_order_fails_the_write_and_spares_the_session() {
    for (data_sn, offset) in [(1, 0), (27, 0), (u32::MAX, 0), (0, 512)] {
        let mut lab = Lab::new();
        let r2t = lab.command(&write10(50, 2), 1024, 0xa0, &[]).remove(0);
        lab.data_out(&r2t, data_sn, offset, &[1; 512], false);
        let heard = lab.heard();
        assert_eq!(heard[0].sense(), (0xb, 0x0c, 0x0d));
        // What still comes is dropped.
        lab.data_out(&r2t, 1, 512, &[1; 512], true);
        assert!(lab.heard().is_empty());
        assert!(lab.command(&[0; 6], 0, 0x80, &[])[0].is_good());
    }
}

#[test]
fn more_data_than_was_asked_for_fails_the_write() {
    let mut lab = Lab::new();
    let r2t = lab.command(&write10(50, 2), 1024, 0xa0, &[]).remove(0);
    lab.data_out(&r2t, 0, 0, &[1; 2048], true);
    assert_eq!(lab.heard()[0].sense(), (0xb, 0x0c, 0x0d));
    assert_eq!(lab.disk(50, 1), block(50));
}

#[test]
fn data_that_was_not_agreed_on_breaks_the_session() {
    let mut shape = Shape::default();
    shape.parameters.immediate_data = false;
    shape.parameters.initial_r2t = true;
    let mut lab = Lab::shaped(shape);
    let request = lab.request(&write10(0, 1), 512, 0xa0);
    assert!(matches!(lab.send(&request, &[1; 512]), Next::Broken(_)));
    let mut shape = Shape::default();
    shape.parameters.initial_r2t = true;
    let mut lab = Lab::shaped(shape);
    let request = lab.request(&write10(0, 9), 9 * 512, 0x20);
    assert!(matches!(lab.send(&request, &[]), Next::Broken(_)));
    // More than the first burst.
    let mut lab = Lab::new();
    let request = lab.request(&write10(0, 16), 8192, 0xa0);
    assert!(matches!(lab.send(&request, &[1; 8192]), Next::Broken(_)));
}

// RFC 7143 section 4.2.2.1: command numbering.

#[test]
fn commands_outside_the_window_are_ignored_and_a_hole_breaks_the_session() {
    let mut lab = Lab::new();
    let right = lab.cmd_sn;
    for wrong in [right.wrapping_sub(1), right.wrapping_add(100)] {
        lab.cmd_sn = wrong;
        assert!(lab.command(&[0; 6], 0, 0x80, &[]).is_empty(), "{wrong}");
    }
    lab.cmd_sn = right;
    assert!(lab.command(&[0; 6], 0, 0x80, &[])[0].is_good());
    lab.cmd_sn = lab.cmd_sn.wrapping_add(1);
    let request = lab.request(&[0; 6], 0, 0x80);
    assert!(matches!(lab.send(&request, &[]), Next::Broken(_)));
}

#[test]
fn the_window_closes_as_tasks_wait_and_never_shrinks() {
    let mut lab = Lab::new();
    let mut highest = None;
    for n in 0..8u32 {
        let heard = lab.command(&write10(0, 16), 8192, 0xa0, &[]);
        let h = &heard[0];
        assert_eq!(h.opcode, 0x31);
        if let Some(highest) = highest {
            assert!(!is_before(h.max_cmd_sn, highest));
        }
        highest = Some(h.max_cmd_sn);
        let room = h.max_cmd_sn.wrapping_sub(h.exp_cmd_sn).wrapping_add(1);
        assert!(room <= 8 - n, "{room} free with {n} tasks waiting");
    }
    // Full: one more is outside the window.
    assert!(lab.command(&[0; 6], 0, 0x80, &[]).is_empty());
}

#[test]
fn a_tag_in_use_is_rejected_and_leaves_no_hole() {
    let mut lab = Lab::new();
    lab.command(&write10(0, 16), 8192, 0xa0, &[]);
    let Request::ScsiCommand(mut again) = lab.request(&[0; 6], 0, 0x80) else {
        unreachable!();
    };
    again.itt = again.itt.wrapping_sub(1);
    lab.send(&Request::ScsiCommand(again), &[]);
    let heard = lab.heard();
    assert_eq!(
        (heard[0].opcode, heard[0].bytes[0]),
        (0x3f, reason::TASK_IN_PROGRESS)
    );
    assert_eq!(heard[0].data.len(), BHS_BYTES);
    assert!(lab.command(&[0; 6], 0, 0x80, &[])[0].is_good());
}

// RFC 7143 section 11.18: NOP-Out.

#[test]
fn a_ping_comes_back_with_its_own_data() {
    let mut lab = Lab::new();
    let mut ping = NopOut {
        immediate: true,
        lun: LUN,
        itt: 5,
        ttt: NO_TAG,
        cmd_sn: lab.cmd_sn,
        exp_stat_sn: 0,
    };
    lab.send(&Request::NopOut(ping.clone()), b"hello");
    let heard = lab.heard();
    assert_eq!(
        (heard[0].opcode, heard[0].itt, heard[0].ttt),
        (0x20, 5, NO_TAG)
    );
    assert_eq!(heard[0].data, b"hello");
    ping.itt = NO_TAG;
    lab.send(&Request::NopOut(ping), b"");
    assert!(lab.heard().is_empty());
}

// RFC 7143 section 11.5: task management.

#[test]
fn an_aborted_write_gets_no_response_and_its_data_is_dropped() {
    let mut lab = Lab::new();
    let r2t = lab.command(&write10(50, 16), 8192, 0xa0, &[]).remove(0);
    assert_eq!(lab.manage(1, r2t.itt), Next::Continue);
    let heard = lab.heard();
    assert_eq!(
        (heard[0].opcode, heard[0].bytes[0], heard.len()),
        (0x22, 0, 1)
    );
    lab.data_out(&r2t, 0, 0, &[1; 8192], true);
    assert!(lab.heard().is_empty());
    assert_eq!(lab.disk(50, 1), block(50));
    // Nothing is there any more.
    lab.manage(1, r2t.itt);
    assert_eq!(lab.heard()[0].bytes[0], 1);
}

#[test]
fn data_on_its_way_is_bounded_and_a_tag_used_again_is_not_asked_twice() {
    let mut shape = Shape::default();
    shape.parameters.max_burst_length = 5 << 20;
    let mut lab = Lab::shaped(shape);
    // The disk is 1 MiB: 12 writes of 1 MiB, of which 8 fit the window and
    // the limit.
    let first = lab.command(&write10(0, 2048), 1 << 20, 0xa0, &[]).remove(0);
    for _ in 0..7 {
        let heard = lab.command(&write10(0, 2048), 1 << 20, 0xa0, &[]);
        assert_eq!(heard[0].opcode, 0x31);
    }
    assert_eq!(lab.session.solicited_bytes, MAX_SOLICITED_BYTES);
    let Request::ScsiCommand(mut ninth) = lab.request(&write10(0, 16), 8192, 0xa0) else {
        unreachable!();
    };
    ninth.immediate = true;
    lab.cmd_sn = lab.cmd_sn.wrapping_sub(1);
    ninth.itt = 0x9999;
    lab.send(&Request::ScsiCommand(ninth.clone()), &[]);
    assert!(lab.heard().is_empty(), "it has to wait");
    lab.manage(1, 0x9999);
    assert_eq!(lab.heard()[0].bytes[0], 0);
    // The same tag again, with unsolicited data under way.
    ninth.is_final = false;
    lab.send(&Request::ScsiCommand(ninth), &[]);
    lab.manage(1, first.itt);
    let heard = lab.heard();
    assert!(heard.iter().all(|h| h.opcode != 0x31), "{heard:?}");
}

#[test]
fn a_reset_by_another_session_ends_tasks_silently_and_tells_everybody() {
    let mut lab = Lab::new();
    let r2t = lab.command(&write10(50, 8), 4096, 0xa0, &[]).remove(0);
    lab.target.unit(0).unwrap().reset();
    lab.data_out(&r2t, 0, 0, &[1; 4096], true);
    assert!(lab.heard().is_empty());
    assert_eq!(lab.disk(50, 1), block(50), "nothing of it reaches the disk");
    assert_eq!(lab.command(&[0; 6], 0, 0x80, &[])[0].sense(), (6, 0x29, 3));
}

#[test]
fn functions_nobody_knows_are_said_to_be_unsupported() {
    let mut lab = Lab::new();
    for (function, response) in [(8, 4), (3, 5), (9, 5), (12, 5)] {
        lab.manage(function, 0);
        assert_eq!(lab.heard()[0].bytes[0], response);
    }
}

// Slow commands.

#[test]
fn pings_are_answered_while_a_flush_runs() {
    let mut lab = Lab::new();
    assert!(lab.command(&FLUSH, 0, 0x80, &[]).is_empty());
    assert_eq!(lab.session.running(), 1);
    assert!(lab.command(&[0; 6], 0, 0x80, &[])[0].is_good());
    assert_eq!(lab.help(), 1);
    assert!(lab.heard()[0].is_good());
    assert!(!lab.session.is_busy());
}

#[test]
fn a_flush_of_a_volatile_disk_is_answered_at_once() {
    let mut lab = Lab::shaped(Shape {
        durability: Durability::Volatile,
        ..Shape::default()
    });
    assert!(lab.command(&FLUSH, 0, 0x80, &[])[0].is_good());
}

#[test]
fn an_aborted_flush_is_abandoned_and_an_aborted_unmap_is_waited_for() {
    let mut lab = Lab::new();
    lab.command(&FLUSH, 0, 0x80, &[]);
    let itt = lab.cmd_sn.wrapping_sub(1).wrapping_add(1000);
    lab.manage(1, itt);
    assert_eq!(lab.heard()[0].bytes[0], 0);
    lab.help();
    assert!(lab.heard().is_empty());

    let list = [0; 24];
    let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    lab.command(&unmap, 24, 0xa0, &list);
    let itt = lab.cmd_sn.wrapping_sub(1).wrapping_add(1000);
    lab.manage(1, itt);
    assert!(lab.heard().is_empty(), "it may still change the disk");
    lab.help();
    let heard = lab.heard();
    assert_eq!(
        (heard.len(), heard[0].opcode, heard[0].bytes[0]),
        (1, 0x22, 0)
    );
}

#[test]
fn a_later_function_also_waits_for_what_an_earlier_one_has_aborted() {
    let mut lab = Lab::new();
    let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    lab.command(&unmap, 24, 0xa0, &[0; 24]);
    let itt = lab.cmd_sn.wrapping_sub(1).wrapping_add(1000);
    for function in [1, 1, 5] {
        lab.manage(function, itt);
        assert!(lab.heard().is_empty(), "it may still change the disk");
    }
    lab.help();
    // Aborted; aborted before; nothing left of it.
    let responses: Vec<_> = lab.heard().iter().map(|h| h.bytes[0]).collect();
    assert_eq!(responses, [0, 1, 0]);
}

#[test]
fn functions_that_wait_are_few() {
    let mut lab = Lab::new();
    let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    lab.command(&unmap, 24, 0xa0, &[0; 24]);
    (0..100).for_each(|_| {
        lab.manage(5, 0);
    });
    let heard = lab.heard();
    assert!(heard.iter().all(|h| h.bytes[0] == 255), "rejected");
    assert_eq!(heard.len() + lab.session.resolving.len(), 100);
    assert_eq!(lab.session.resolving.len(), 16);
}

#[test]
fn a_write_with_fua_is_answered_after_its_flush() {
    let mut lab = Lab::new();
    let mut fua = write10(50, 1);
    fua[1] = 0x08;
    assert!(lab.command(&fua, 512, 0xa0, &[7; 512]).is_empty());
    assert_eq!(lab.disk(50, 1), [7; 512]);
    lab.help();
    assert!(lab.heard()[0].is_good());
}

// RFC 7143 sections 11.10, 11.14, 11.17.

#[test]
fn send_targets_longer_than_a_segment_comes_in_pieces() {
    let mut lab = Lab::on(None, Parameters::default());
    let (mut text, mut ttt) = (Vec::new(), NO_TAG);
    let mut pieces = 0;
    loop {
        let request = Request::Text(TextRequest {
            immediate: true,
            is_final: true,
            continues: false,
            lun: LUN,
            itt: 3,
            ttt,
            cmd_sn: lab.cmd_sn,
            exp_stat_sn: 0,
        });
        let data: &[u8] = if ttt == NO_TAG {
            b"SendTargets=All\0"
        } else {
            b""
        };
        assert_eq!(lab.send(&request, data), Next::Continue);
        let heard = lab.heard().remove(0);
        assert!(heard.data.len() <= 8192);
        text.extend_from_slice(&heard.data);
        pieces += 1;
        if heard.flags & 0x80 != 0 {
            assert_eq!((heard.flags, heard.ttt), (0x80, NO_TAG));
            break;
        }
        assert_eq!(heard.flags, 0x40);
        ttt = heard.ttt;
    }
    let text = String::from_utf8(text).unwrap();
    assert_eq!(text.matches("TargetName=").count(), 200);
    assert!(pieces > 1);
}

#[test]
fn a_discovery_session_takes_no_commands() {
    let mut lab = Lab::on(None, Parameters::default());
    let heard = lab.command(&[0; 6], 0, 0x80, &[]);
    assert_eq!(
        (heard[0].opcode, heard[0].bytes[0]),
        (0x3f, reason::PROTOCOL_ERROR)
    );
}

#[test]
fn answers_are_sent_before_they_pile_up() {
    // 200 targets in answer to 20 bytes, and the peer takes long segments.
    let mut lab = Lab::on(
        None,
        Parameters {
            max_send_data_segment_length: 1 << 20,
            ..Parameters::default()
        },
    );
    let request = Request::Text(TextRequest {
        immediate: true,
        is_final: true,
        continues: false,
        lun: LUN,
        itt: 3,
        ttt: NO_TAG,
        cmd_sn: lab.cmd_sn,
        exp_stat_sn: 0,
    });
    let mut waiting = 0;
    for n in 1..=500 {
        lab.send(&request, b"SendTargets=All\0");
        waiting = n * 10_000 - lab.wire.0.borrow().len().min(n * 10_000);
    }
    assert!(waiting < 2 << 20, "{waiting} bytes wait");
}

#[test]
fn logout_is_answered_and_closes() {
    let mut lab = Lab::new();
    let request = Request::Logout(LogoutRequest {
        immediate: true,
        reason: 0,
        itt: 9,
        cid: 0,
        cmd_sn: lab.cmd_sn,
        exp_stat_sn: 0,
    });
    assert_eq!(lab.send(&request, &[]), Next::Close);
    assert_eq!((lab.heard()[0].opcode), 0x26);
}

#[test]
fn what_a_nexus_held_is_free_when_its_logout_is_answered() {
    let mut lab = Lab::new();
    let unit = lab.target.unit(0).unwrap();
    let other = unit.connect(&NexusName {
        initiator: "iqn.a:other".into(),
        isid: [1; 6],
    });
    assert!(lab.command(&[0x16, 0, 0, 0, 0, 0], 0, 0x80, &[])[0].is_good());
    let mut statuses = vec![];
    for _ in 0..2 {
        let refusal = unit.admit(&other, &[0; 6]).err();
        statuses.push(refusal.map(|refusal| refusal.status()));
    }
    let request = Request::Logout(LogoutRequest {
        immediate: true,
        reason: 0,
        itt: 9,
        cid: 0,
        cmd_sn: lab.cmd_sn,
        exp_stat_sn: 0,
    });
    assert_eq!(lab.send(&request, &[]), Next::Close);
    let refusal = unit.admit(&other, &[0; 6]).err();
    statuses.push(refusal.map(|refusal| refusal.status()));
    assert_eq!(statuses, [Some(0x02), Some(0x18), None]);
}

#[test]
fn an_unknown_opcode_is_rejected_and_leaves_no_hole() {
    let mut lab = Lab::new();
    let mut bhs = [0; BHS_BYTES];
    bhs[0] = 0x1c;
    bhs[24..28].copy_from_slice(&lab.cmd_sn.to_be_bytes());
    assert_eq!(
        lab.session
            .receive(lab.units, &bhs, Data::Intact(&[]), &mut lab.out),
        Next::Continue
    );
    lab.cmd_sn = lab.cmd_sn.wrapping_add(1);
    let heard = lab.heard();
    assert_eq!(heard[0].bytes[0], reason::COMMAND_NOT_SUPPORTED);
    assert_eq!(heard[0].data, bhs);
    assert!(lab.command(&[0; 6], 0, 0x80, &[])[0].is_good());
}

#[test]
fn absent_units_answer_report_luns_and_nothing_else() {
    let mut lab = Lab::new();
    let mut ask = |cdb: &[u8]| {
        let Request::ScsiCommand(mut command) = lab.request(cdb, 512, 0xc0) else {
            unreachable!();
        };
        command.lun = [0, 3, 0, 0, 0, 0, 0, 0];
        lab.send(&Request::ScsiCommand(command), &[]);
        lab.heard().remove(0)
    };
    let luns = ask(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!(luns.data, [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(ask(&[0x12, 0, 0, 0, 36, 0]).data[0], 0x7f);
    assert_eq!(ask(&read10(0, 1)).sense(), (5, 0x25, 0));
}

fn arbitrary_request() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let header = proptest::collection::vec(any::<u8>(), BHS_BYTES);
    let data = proptest::collection::vec(any::<u8>(), 0..600);
    (header, data)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Mostly well-numbered garbage, so that it gets somewhere.
    #[test]
    fn no_sequence_of_pdus_makes_a_session_panic(
        pdus in proptest::collection::vec((arbitrary_request(), 0u8..8, 0u32..4, any::<bool>()), 0..60),
    ) {
        let mut lab = Lab::new();
        for ((header, data), opcode, tag, numbered) in pdus {
            let mut bhs: Bhs = header.try_into().unwrap();
            bhs[0] = (bhs[0] & 0x40) | opcode;
            bhs[8..16].fill(0);
            bhs[16..20].copy_from_slice(&tag.to_be_bytes());
            if numbered && opcode != 5 {
                bhs[24..28].copy_from_slice(&lab.session.exp_cmd_sn.to_be_bytes());
            }
            if opcode == 5 {
                bhs[20..24].copy_from_slice(&[0, 0, 0, 1]);
                bhs[36..44].fill(0);
            }
            let next = lab.session.receive(lab.units, &bhs, Data::Intact(&data), &mut lab.out);
            lab.help();
            lab.heard();
            if next != Next::Continue {
                break;
            }
        }
    }
}

#[test]
fn login_in_the_full_feature_phase_breaks_the_session() {
    let mut lab = Lab::new();
    let request = Request::Login(LoginRequest {
        transit: true,
        continues: false,
        current_stage: 1,
        next_stage: 3,
        version_min: 0,
        isid: [0; 6],
        tsih: 0,
        itt: 0,
        cid: 0,
        cmd_sn: 0,
        exp_stat_sn: 0,
    });
    assert!(matches!(lab.send(&request, &[]), Next::Broken(_)));
}

// Units that come and go (SPC-4 section 6.33, SAM-5 section 5.14).

const LUN_300: [u8; 8] = [0x41, 0x2c, 0, 0, 0, 0, 0, 0];

fn ram(bytes: usize) -> Arc<LogicalUnit> {
    let identity = Identity::new([3; 16], "TEST");
    Arc::new(LogicalUnit::new(Arc::new(Ram::new(bytes)), identity))
}

impl Lab {
    /// Sends a command to a unit and gives back what came.
    fn ask(&mut self, lun: [u8; 8], cdb: &[u8], expected: u32, flags: u8) -> Vec<Heard> {
        let Request::ScsiCommand(mut command) = self.request(cdb, expected, flags) else {
            unreachable!();
        };
        command.lun = lun;
        assert_eq!(
            self.send(&Request::ScsiCommand(command), &[]),
            Next::Continue
        );
        self.heard()
    }
}

#[test]
fn a_unit_attached_later_is_told_of_and_answers() {
    let mut lab = Lab::new();
    lab.target.attach(300, ram(1 << 20)).unwrap();
    assert_eq!(lab.ask(LUN_300, &[0; 6], 0, 0x80)[0].sense(), (5, 0x25, 0));
    lab.move_on();
    // Who knows the target is told that it has changed, once.
    assert_eq!(lab.ask(LUN, &[0; 6], 0, 0x80)[0].sense(), (6, 0x3f, 0x0e));
    assert!(lab.ask(LUN, &[0; 6], 0, 0x80)[0].is_good());
    assert_eq!(lab.ask(LUN_300, &[0; 6], 0, 0x80)[0].sense(), (6, 0x29, 0));
    assert!(lab.ask(LUN_300, &[0; 6], 0, 0x80)[0].is_good());
}

#[test]
fn who_has_asked_for_the_numbers_is_not_told_that_they_have_changed() {
    let mut lab = Lab::new();
    lab.target.attach(300, ram(1 << 20)).unwrap();
    lab.move_on();
    let luns = lab.ask(LUN, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0], 512, 0xc0);
    assert_eq!(luns[0].data[8..24], [LUN, LUN_300].concat());
    assert!(lab.ask(LUN, &[0; 6], 0, 0x80)[0].is_good());
}

#[test]
fn a_detached_unit_fails_its_writes_and_is_let_go_of() {
    let mut lab = Lab::new();
    lab.target.attach(300, ram(1 << 20)).unwrap();
    lab.move_on();
    lab.ask(LUN_300, &[0; 6], 0, 0x80);
    let r2t = lab.ask(LUN_300, &write10(0, 8), 4096, 0xa0).remove(0);
    assert_eq!(r2t.opcode, 0x31);
    let mut unit = lab.target.detach(300).unwrap();
    lab.move_on();
    let heard = lab.heard();
    assert_eq!((heard[0].itt, heard[0].sense()), (r2t.itt, (5, 0x25, 0)));
    assert_eq!(lab.session.solicited_bytes, 0);
    lab.data_out(&r2t, 0, 0, &[1; 4096], true);
    assert!(lab.heard().is_empty());
    assert_eq!(lab.ask(LUN_300, &[0; 6], 0, 0x80)[0].sense(), (5, 0x25, 0));
    // Older units are leaked by this lab, but for those no map has any more.
    assert!(Arc::get_mut(&mut unit).is_none());
    assert_eq!(Arc::strong_count(&unit), 2, "the lab's older map has it");
}

#[test]
fn a_unit_that_has_grown_says_so_and_its_tasks_go_on() {
    let mut lab = Lab::new();
    lab.target.attach(300, ram(1 << 20)).unwrap();
    lab.move_on();
    lab.ask(LUN_300, &[0; 6], 0, 0x80);
    lab.ask(LUN, &[0; 6], 0, 0x80);
    let r2t = lab.ask(LUN_300, &write10(0, 8), 4096, 0xa0).remove(0);
    let old = lab.target.unit(300).unwrap();
    let grown = old.with_disk(Arc::new(Ram::new(2 << 20)));
    lab.target.replace(300, Arc::new(grown)).unwrap();
    lab.move_on();
    lab.data_out(&r2t, 0, 0, &[7; 4096], true);
    assert!(lab.heard()[0].is_good());
    let mut byte = [0; 512];
    old.disk().read(0, &mut byte).unwrap();
    assert_eq!(byte[0], 7, "a task ends over the disk it began with");
    assert_eq!(lab.ask(LUN_300, &[0; 6], 0, 0x80)[0].sense(), (6, 0x2a, 9));
    let capacity = lab.ask(LUN_300, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8, 0xc0);
    assert_eq!(capacity[0].data[..4], 4095u32.to_be_bytes());
    // The same numbers as before: nobody has to look again.
    assert!(lab.ask(LUN, &[0; 6], 0, 0x80)[0].is_good());
}

#[test]
fn a_number_that_gets_another_unit_is_a_new_nexus() {
    let mut lab = Lab::new();
    lab.target.replace(0, ram(1 << 20)).unwrap();
    lab.move_on();
    assert_eq!(lab.ask(LUN, &[0; 6], 0, 0x80)[0].sense(), (6, 0x29, 0));
}

#[test]
fn a_target_without_lun_0_answers_there_that_it_is_one() {
    let mut lab = Lab::new();
    lab.target.attach(300, ram(1 << 20)).unwrap();
    lab.target.detach(0).unwrap();
    lab.move_on();
    let inquiry = lab.ask(LUN, &[0x12, 0, 0, 0, 36, 0], 36, 0xc0);
    assert_eq!(inquiry[0].data[0], 0x3f);
    let luns = lab.ask(LUN, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0], 512, 0xc0);
    assert_eq!(luns[0].data[..4], 8u32.to_be_bytes());
    assert_eq!(luns[0].data[8..], LUN_300);
}
