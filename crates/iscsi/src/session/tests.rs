//! Sessions in memory: exact PDUs in, exact PDUs out.

// The test disk's mapped bytes are read through the pointers a kernel would
// get.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Mutex;

use proptest::prelude::*;
use scsi::disk::{Access, Disk, DiskError, Durability, Geometry, Ram, Segment};
use scsi::{Identity, LogicalUnit};

use super::data_out::{MAX_GATHERED_BYTES, MAX_SOLICITED_BYTES, MAX_STAGED_BYTES};
use super::*;
use crate::outbox::{Gone, Part, Sink};
use crate::task::Task;
use crate::wire::{
    BHS_BYTES, DataOut, LoginRequest, LogoutRequest, NO_TAG, NopOut, ScsiCommand, TaskManagement,
    TextRequest, padding,
};
use crate::{Attachment, Authentication, ChapSecrets, LoginRefusal};

mod attributes;
mod data_in;
mod data_out;
mod digests;
mod functions;
mod numbering;
mod pings;
mod reservations;
mod text;
mod units;
mod workers;

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
