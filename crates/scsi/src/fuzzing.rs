//! Doors for the fuzz targets of `fuzz/`: each takes bytes an initiator could
//! send, in memory. Compiled for them, and for the tests, which replay the
//! corpus. A door panics when what must always hold does not.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use disk::{Access, Disk, DiskError, Durability, Geometry, Ram};

use crate::{
    Command, DataOut, Device, Identity, LogicalUnit, Lun, Medium, NexusName, Provisioning, Refusal,
    SenseFormat, Shape, answer_for_absent, report_luns,
};

/// A door: bytes in, nothing out.
pub type Door = fn(&[u8]);

/// All doors, by the names of their targets and corpora.
pub const DOORS: [(&str, Door); 3] = [("cdb", cdb), ("commands", commands), ("lun", lun)];

/// Small: what goes over a whole disk is to be quick.
const DISK_BYTES: usize = 64 << 10;
/// Longest data-in of anything but a READ: lists and pages.
const LONGEST_ANSWER_BYTES: usize = 1 << 20;
/// A READ is looked at in pieces.
const PIECE_BYTES: usize = 64 << 10;

/// A disk in memory that gives space back.
struct Thin(Ram);

impl Disk for Thin {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    fn access(&self) -> Access {
        self.0.access()
    }
    fn durability(&self) -> Durability {
        self.0.durability()
    }
    fn is_thin(&self) -> bool {
        true
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.0.read(offset, buffer)
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.0.write(offset, data)
    }
    fn flush(&self) -> Result<(), DiskError> {
        self.0.flush()
    }
    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.0.unmap(offset, bytes)
    }
}

/// One unit of every kind.
fn units() -> [LogicalUnit; 4] {
    let unit = |disk: Ram, number: u8, shape: Shape| {
        let identity = Identity::new([number; 16], "FUZZED");
        LogicalUnit::shaped(Arc::new(Thin(disk)), identity, shape)
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

/// A refusal can be told.
fn refused(refusal: &Refusal) {
    if let Some(sense) = refusal.sense() {
        assert!(sense.key != 0, "a refusal says why");
        assert_eq!(sense.emit(SenseFormat::Fixed).len(), 18);
        assert!(sense.emit(SenseFormat::Descriptor).len() <= 252);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every input of the corpus, and each cut off and with a bit turned
    /// here and there.
    #[test]
    fn the_corpus_is_survived() {
        for (name, door) in DOORS {
            let folder = format!("{}/../../fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
            let mut count = 0;
            for entry in std::fs::read_dir(&folder).unwrap() {
                let bytes = std::fs::read(entry.unwrap().path()).unwrap();
                door(&bytes);
                for at in (0..bytes.len()).step_by(19) {
                    door(&bytes[..at]);
                    let mut turned = bytes.clone();
                    turned[at] ^= 1 << (at % 8);
                    door(&turned);
                }
                count += 1;
            }
            assert!(count > 0, "{folder} is empty");
        }
    }
}
