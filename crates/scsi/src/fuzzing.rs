//! Doors for the fuzz targets of `fuzz/`: each takes bytes an initiator could
//! send, in memory. Compiled for them, and for the tests, which replay the
//! corpus. A door panics when what must always hold does not.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use disk::{Access, Ram};

use crate::{
    Command, DataOut, Device, Identity, LogicalUnit, Lun, Medium, Nexus, NexusName, Provisioning,
    Refusal, ReservationKeeper, SenseFormat, Shape, answer_for_absent, report_luns,
};

/// A door: bytes in, nothing out.
pub type Door = fn(&[u8]);

/// All doors, by the names of their targets and corpora.
pub const DOORS: [(&str, Door); 4] = [
    ("cdb", cdb),
    ("commands", commands),
    ("lun", lun),
    ("reservations", reservations),
];

/// Small: what goes over a whole disk is to be quick.
const DISK_BYTES: usize = 64 << 10;
/// Longest data-in of anything but a READ: lists and pages.
const LONGEST_ANSWER_BYTES: usize = 1 << 20;
/// A READ is looked at in pieces.
const PIECE_BYTES: usize = 64 << 10;

/// One unit of every kind.
fn units() -> [LogicalUnit; 4] {
    let unit = |disk: Ram, number: u8, shape: Shape| {
        let identity = Identity::new([number; 16], "FUZZED");
        LogicalUnit::shaped(Arc::new(disk), identity, shape)
    };
    let disk = || Ram::new(DISK_BYTES).with_block_bytes(512, 4096);
    let shape = Shape::default();
    [
        unit(disk(), 1, shape),
        unit(
            disk(),
            2,
            Shape {
                provisioning: Provisioning::Full,
                medium: Medium::Removable,
                ..shape
            },
        ),
        unit(
            Ram::new(DISK_BYTES).with_block_bytes(2048, 2048),
            3,
            Shape {
                device: Device::Optical,
                medium: Medium::Removable,
                access: Access::ReadOnly,
                ..shape
            },
        ),
        unit(
            Ram::new(DISK_BYTES)
                .with_block_bytes(4096, 4096)
                .read_only(),
            4,
            shape,
        ),
    ]
}

/// A command descriptor block.
pub fn cdb(bytes: &[u8]) {
    if let Err(sense) = Command::parse(bytes) {
        refused(&sense.into());
    }
    for absent in [None, Some(Lun(0)), Some(Lun(9))] {
        let _ = answer_for_absent(absent, bytes);
    }
}

/// A LUN, and REPORT LUNS over it.
pub fn lun(bytes: &[u8]) {
    let Some((lun, cdb)) = bytes.split_first_chunk::<8>() else {
        return;
    };
    if let Some(lun) = Lun::parse(*lun) {
        assert_eq!(Lun::parse(lun.emit()), Some(lun), "a LUN keeps its number");
    }
    if let Ok(Command::ReportLuns { select, allocation }) = Command::parse(cdb) {
        let _ = report_luns(select, allocation, [Lun(0), Lun(256)].into_iter());
    }
}

/// Commands of two initiators to one unit of every kind. Each is a byte (unit,
/// initiator, reset), 16 bytes of CDB, and a length and data-out.
pub fn commands(bytes: &[u8]) {
    let units = units();
    let nexuses: Vec<_> = (0..8u8)
        .map(|at| {
            let name = NexusName {
                initiator: format!("iqn.2026-01.lab:{}", at % 2),
                isid: [at % 2; 6],
            };
            units[usize::from(at / 2)].connect(&name)
        })
        .collect();
    let never = AtomicBool::new(false);
    let mut rest = bytes;
    while let Some(([control, cdb @ .., high, low], left)) = rest.split_first_chunk::<19>() {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (data, left) = left.split_at(length.min(left.len()));
        rest = left;
        let (unit, initiator) = (usize::from(control & 3), usize::from(control >> 2 & 1));
        let (unit, nexus) = (&units[unit], &nexuses[unit * 2 + initiator]);
        if control & 0x80 != 0 {
            unit.reset();
        }
        let work = match unit.admit(nexus, cdb) {
            Ok(work) => work,
            Err(refusal) => {
                refused(&refusal);
                continue;
            }
        };
        let Ok(wanted) = unit.fit(&work, u64::try_from(data.len()).unwrap_or(0)) else {
            continue;
        };
        let data = &data[..usize::try_from(wanted).unwrap_or(0)];
        if let DataOut::Streamed(_) = work.data_out() {
            let (first, second) = data.split_at(data.len() / 2);
            for (at, piece) in [(0, first), (first.len(), second)] {
                if !piece.is_empty() {
                    let _ = unit.put(&work, u64::try_from(at).unwrap_or(0), piece);
                }
            }
        }
        if let Some(bytes) = work.read_bytes() {
            let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(bytes).unwrap_or(PIECE_BYTES))];
            let _ = unit.read(&work, 0, &mut piece);
            let last = bytes - u64::try_from(piece.len()).unwrap_or(0);
            let _ = unit.read(&work, last, &mut piece);
        }
        match unit.finish(nexus, &work, data, &never) {
            Ok(answer) => assert!(answer.len() <= LONGEST_ANSWER_BYTES, "{}", answer.len()),
            Err(refusal) => refused(&refusal),
        }
    }
}

/// Keeps the last of what it is given.
#[derive(Default)]
struct Shelf(Mutex<Option<Vec<u8>>>);

impl ReservationKeeper for Shelf {
    fn save(&self, saved: &[u8]) -> Result<(), String> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved.to_vec());
        Ok(())
    }
}

/// PERSISTENT RESERVE OUT of three initiators to a unit that keeps what they
/// ask for. Each is a byte (initiator, service action), one of scope and
/// type, one of length, and the parameter list.
pub fn reservations(bytes: &[u8]) {
    let shelf = Arc::new(Shelf::default());
    let unit = |saved: Option<&[u8]>| {
        let identity = Identity::new([1; 16], "FUZZED");
        let unit = LogicalUnit::new(Arc::new(Ram::new(DISK_BYTES)), identity);
        let kept = unit.keep_reservations(shelf.clone(), saved);
        assert_eq!(kept, Ok(()), "what was saved can be read");
        unit
    };
    let first = unit(None);
    let nexuses = [0u8, 1, 2].map(|at| {
        first.connect(&NexusName {
            initiator: format!("iqn.2026-01.lab:{at}"),
            isid: [at; 6],
        })
    });
    let mut rest = bytes;
    while let Some(([control, kind, length], left)) = rest.split_first_chunk::<3>() {
        let (list, left) = left.split_at(usize::from(*length).min(left.len()));
        rest = left;
        let length = u8::try_from(list.len()).unwrap_or(u8::MAX);
        let cdb = [0x5f, control & 0x07, *kind, 0, 0, 0, 0, 0, length, 0];
        let nexus = &nexuses[usize::from(control >> 3) % 3];
        if let Err(refusal) = ask(&first, nexus, &cdb, list) {
            refused(&refusal);
        }
        let [keys, reservation, capabilities, status] = told(&first, &nexuses[0]);
        let holders = holders(&status);
        let is_reserved = reservation.len() > 8;
        assert_eq!(holders > 0, is_reserved, "who reserves is registered");
        let saved = shelf.0.lock().unwrap_or_else(PoisonError::into_inner);
        let saved = saved.clone();
        let second = unit(saved.as_deref());
        let other = second.connect(nexuses[0].name());
        let [other_keys, other_reservation, _, other_status] = told(&second, &other);
        let is_kept = capabilities[3] & 1 != 0; // PTPL_A
        if is_kept {
            // All but the generation is as it was.
            assert_eq!(other_keys[4..], keys[4..]);
            assert_eq!(other_reservation[4..], reservation[4..]);
            assert_eq!(other_status[4..], status[4..]);
        } else {
            assert_eq!(other_keys, [0; 8], "nothing was to be kept");
        }
    }
}

/// All that PERSISTENT RESERVE IN tells.
fn told(unit: &LogicalUnit, nexus: &Nexus) -> [Vec<u8>; 4] {
    [0u8, 1, 2, 3].map(|action| {
        let cdb = [0x5e, action, 0, 0, 0, 0, 0, 0xff, 0xff, 0];
        match ask(unit, nexus, &cdb, &[]) {
            Ok(data) => data,
            Err(refusal) => panic!("who asks is told: {refusal:?}"),
        }
    })
}

/// How many registered nexuses hold the reservation, of READ FULL STATUS.
fn holders(status: &[u8]) -> usize {
    let mut count = 0;
    let mut rest = &status[8..];
    while let Some((head, _)) = rest.split_first_chunk::<24>() {
        count += usize::from(head[12] & 1); // R_HOLDER
        let id = u32::from_be_bytes([head[20], head[21], head[22], head[23]]);
        rest = &rest[24 + usize::try_from(id).unwrap_or(usize::MAX)..];
    }
    count
}

/// Runs a command, past all attentions.
fn ask(unit: &LogicalUnit, nexus: &Nexus, cdb: &[u8], list: &[u8]) -> Result<Vec<u8>, Refusal> {
    let is_attention = |refusal: &Refusal| refusal.sense().is_some_and(|sense| sense.key == 6);
    let work = loop {
        match unit.admit(nexus, cdb) {
            Err(refusal) if is_attention(&refusal) => {}
            admitted => break admitted?,
        }
    };
    unit.finish(nexus, &work, list, &AtomicBool::new(false))
}

/// A refusal can be told.
fn refused(refusal: &Refusal) {
    if let Some(sense) = refusal.sense() {
        assert!(sense.key != 0, "a refusal says why");
        assert_eq!(sense.emit(SenseFormat::Fixed).len(), 18);
        assert!(sense.emit(SenseFormat::Descriptor).len() <= 252);
    }
}

#[cfg(test)]
#[path = "../../../fuzz/src/corpus.rs"]
mod corpus;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_is_survived() {
        corpus::replay(&DOORS);
    }
}
