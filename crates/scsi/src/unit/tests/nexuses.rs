//! What one nexus does to a unit, as another one sees it.

use super::*;

/// A unit with two nexuses that have both seen their first attention.
fn two(shape: Shape) -> (Lab, Nexus) {
    let lab = Lab::shaped(Arc::new(disk::Ram::new(1 << 20)), shape);
    let other = lab.unit.connect(&name());
    other.take();
    (lab, other)
}

fn removable() -> Shape {
    Shape {
        medium: Medium::Removable,
        ..Shape::default()
    }
}

const READY: [u8; 6] = [0; 6];
const EJECT: [u8; 6] = [0x1b, 0, 0, 0, 2, 0];
const LOAD: [u8; 6] = [0x1b, 0, 0, 0, 3, 0];
const PREVENT: [u8; 6] = [0x1e, 0, 0, 0, 1, 0];
const ALLOW: [u8; 6] = [0x1e, 0, 0, 0, 0, 0];

#[test]
fn an_ejected_medium_is_missed_by_what_needs_it_alone() {
    let (lab, _other) = two(removable());
    lab.command(&EJECT, &[]).unwrap();
    for cdb in [
        &READY[..],
        &read10(0, 1),
        &write10(0, 1),
        &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        assert_eq!(lab.command(cdb, &[]), Err(Sense::MEDIUM_NOT_PRESENT));
    }
    for cdb in [
        [0x12, 0, 0, 0, 36, 0],
        [0x1a, 8, 0x3f, 0, 255, 0],
        EJECT,
        ALLOW,
    ] {
        assert!(lab.command(&cdb, &[]).is_ok());
    }
}

#[test]
fn who_loads_the_medium_knows_and_the_others_are_told() {
    let (lab, other) = two(removable());
    lab.command(&LOAD, &[]).unwrap();
    assert_eq!(other.take(), None, "it was in already");
    lab.command(&EJECT, &[]).unwrap();
    lab.command(&LOAD, &[]).unwrap();
    assert!(lab.command(&READY, &[]).is_ok());
    assert_eq!(other.take(), Some(Sense::MEDIUM_MAY_HAVE_CHANGED));
}

#[test]
fn a_medium_that_any_nexus_keeps_in_is_ejected_by_none() {
    let (lab, other) = two(removable());
    lab.command(&PREVENT, &[]).unwrap();
    let eject = lab.unit.admit(&other, &EJECT).unwrap_err();
    assert_eq!(eject, Refusal::from(Sense::MEDIUM_REMOVAL_PREVENTED));
    assert!(lab.command(&EJECT, &[]).is_err());
    lab.command(&ALLOW, &[]).unwrap();
    lab.command(&EJECT, &[]).unwrap();
    assert!(lab.command(&READY, &[]).is_err());
}

#[test]
fn what_keeps_the_medium_in_ends_with_its_nexus_and_with_a_reset() {
    let (lab, other) = two(removable());
    let prevent = |nexus: &Nexus| {
        let never = AtomicBool::new(false);
        let work = lab.unit.admit(nexus, &PREVENT).unwrap();
        lab.unit.finish(nexus, &work, &[], &never).unwrap();
    };
    prevent(&other);
    assert!(lab.command(&EJECT, &[]).is_err());
    drop(other);
    assert!(lab.command(&EJECT, &[]).is_ok());
    lab.command(&LOAD, &[]).unwrap();
    prevent(&lab.nexus);
    lab.unit.reset();
    lab.nexus.take();
    assert!(lab.command(&EJECT, &[]).is_ok());
}

#[test]
fn a_power_condition_moves_no_medium() {
    let (lab, _other) = two(removable());
    for condition in 1..16 {
        let stop = [0x1b, 0, 0, 0, condition << 4 | 2, 0];
        assert!(lab.command(&stop, &[]).is_ok());
        assert!(lab.command(&READY, &[]).is_ok());
    }
}

#[test]
fn a_fixed_disk_has_nothing_to_eject_or_keep_in() {
    let (lab, _other) = two(Shape::default());
    let refusal = Sense::invalid_cdb_field(4, 1);
    assert_eq!(lab.command(&EJECT, &[]), Err(refusal));
    assert_eq!(lab.command(&PREVENT, &[]), Err(Sense::INVALID_OPCODE));
}

/// Reads a mode page, changes a bit of it and writes it back.
fn select(lab: &Lab, page: u8, at: usize, bit: u8, is_set: bool) -> Result<Vec<u8>, Sense> {
    let data = lab.command(&[0x1a, 8, page, 0, 255, 0], &[])?;
    let mut list = data.clone();
    list[..4].fill(0);
    match is_set {
        true => list[4 + at] |= bit,
        false => list[4 + at] &= !bit,
    }
    let bytes = u8::try_from(list.len()).unwrap();
    lab.command(&[0x15, 0x10, 0, 0, bytes, 0], &list)
}

#[test]
fn software_write_protection_holds_for_every_nexus_and_the_others_are_told() {
    let (lab, other) = two(Shape::default());
    select(&lab, 0x0a, 4, 0x08, true).unwrap();
    assert_eq!(other.take(), Some(Sense::MODE_PARAMETERS_CHANGED));
    let refusal = Refusal::from(Sense::SOFTWARE_WRITE_PROTECTED);
    for nexus in [&lab.nexus, &other] {
        assert_eq!(lab.unit.admit(nexus, &write10(0, 1)).unwrap_err(), refusal);
        assert!(lab.unit.admit(nexus, &read10(0, 1)).is_ok());
    }
    let header = lab.command(&[0x1a, 8, 0x0a, 0, 255, 0], &[]).unwrap();
    assert_eq!(header[2] & 0x80, 0x80, "WP");
    select(&lab, 0x0a, 4, 0x08, false).unwrap();
    assert!(lab.unit.admit(&lab.nexus, &write10(0, 1)).is_ok());
    select(&lab, 0x0a, 4, 0x08, false).unwrap();
    assert_eq!(other.take(), Some(Sense::MODE_PARAMETERS_CHANGED));
    assert_eq!(other.take(), None, "nothing was changed");
}

#[test]
fn d_sense_chooses_the_layout_of_sense_until_a_reset() {
    let (lab, _other) = two(Shape::default());
    select(&lab, 0x0a, 2, 0x04, true).unwrap();
    assert_eq!(lab.unit.sense_format(), SenseFormat::Descriptor);
    lab.unit.reset();
    assert_eq!(lab.unit.sense_format(), SenseFormat::Fixed);
}

#[test]
fn with_the_cache_off_every_write_waits_for_its_flush() {
    let lab = Lab::thin(); // a disk that caches writes
    let pace = |cdb: &[u8]| lab.unit.admit(&lab.nexus, cdb).unwrap().pace();
    assert_eq!(pace(&write10(0, 1)), Pace::AtOnce);
    select(&lab, 0x08, 2, 0x04, false).unwrap();
    assert_eq!(pace(&write10(0, 1)), Pace::Slow);
    let data = lab.command(&[0x1a, 8, 0x08, 0, 255, 0], &[]).unwrap();
    assert_eq!(data[6] & 0x04, 0, "WCE");
    // Where nothing becomes durable, the cache cannot be turned off.
    let (ram, _other) = two(Shape::default());
    let refused = select(&ram, 0x08, 2, 0x04, false);
    assert_eq!(refused, Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST));
}

#[test]
fn a_list_with_anything_wrong_changes_nothing() {
    let (lab, other) = two(Shape::default());
    let page = lab.command(&[0x1a, 8, 0x0a, 0, 255, 0], &[]).unwrap();
    let mut good = vec![0, 0, 0, 0];
    good.extend_from_slice(&page[4..]);
    good[4 + 4] |= 0x08;
    let mut unchangeable = good.clone();
    unchangeable[4 + 2] ^= 0x02; // GLTSD
    let mut unknown = good.clone();
    unknown.extend_from_slice(&[0x2a, 0]);
    let mut cut = good.clone();
    cut.truncate(10);
    let field = Sense::INVALID_FIELD_IN_PARAMETER_LIST;
    let length = Sense::PARAMETER_LIST_LENGTH_ERROR;
    for (list, sense) in [(unchangeable, field), (unknown, field), (cut, length)] {
        let bytes = u8::try_from(list.len()).unwrap();
        let answer = lab.command(&[0x15, 0x10, 0, 0, bytes, 0], &list);
        assert_eq!(answer, Err(sense));
    }
    assert!(
        lab.command(&[0x15, 0x11, 0, 0, 16, 0], &good).is_err(),
        "SP"
    );
    assert!(lab.unit.admit(&other, &write10(0, 1)).is_ok());
}

#[test]
fn another_medium_is_told_to_all_and_a_grown_disk_as_well() {
    let (lab, other) = two(removable());
    lab.command(&EJECT, &[]).unwrap();
    let lab = Lab {
        unit: lab.unit.with_disk(Arc::new(disk::Ram::new(2 << 20))),
        nexus: lab.nexus,
    };
    assert_eq!(other.take(), Some(Sense::MEDIUM_MAY_HAVE_CHANGED));
    assert_eq!(
        lab.command(&READY, &[]),
        Err(Sense::MEDIUM_MAY_HAVE_CHANGED)
    );
    assert!(lab.command(&READY, &[]).is_ok());
    let (lab, other) = two(Shape::default());
    let _grown = lab.unit.with_disk(Arc::new(disk::Ram::new(2 << 20)));
    assert_eq!(other.take(), Some(Sense::CAPACITY_DATA_HAS_CHANGED));
    lab.unit.raise_luns_changed();
    assert_eq!(other.take(), Some(Sense::REPORTED_LUNS_DATA_HAS_CHANGED));
}

/// A thin disk of 1 MiB with as much space left as the test says.
struct Filling {
    ram: disk::Ram,
    free_bytes: AtomicU64,
}

impl Disk for Filling {
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
        self.ram.write(offset, data)
    }
    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }
    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.ram.unmap(offset, bytes)
    }
    fn space(&self) -> Option<disk::Space> {
        Some(disk::Space {
            used_bytes: 0,
            free_bytes: self.free_bytes.load(Ordering::Relaxed),
        })
    }
}

#[test]
fn every_nexus_is_warned_once_when_little_space_is_left() {
    const FLUSH: [u8; 10] = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let disk = Arc::new(Filling {
        ram: disk::Ram::new(1 << 20),
        free_bytes: AtomicU64::new(1 << 20),
    });
    let lab = Lab::shaped(disk.clone(), Shape::default());
    let other = lab.unit.connect(&name());
    other.take();
    let warning = Some(Sense::THIN_PROVISIONING_SOFT_THRESHOLD_REACHED);
    for (free_bytes, told) in [(1 << 20, None), (1000, warning), (900, None)] {
        disk.free_bytes.store(free_bytes, Ordering::Relaxed);
        lab.command(&FLUSH, &[]).unwrap();
        assert_eq!(lab.nexus.take(), told, "{free_bytes} bytes left");
        assert_eq!(other.take(), told);
    }
    disk.free_bytes.store(1 << 20, Ordering::Relaxed);
    lab.command(&FLUSH, &[]).unwrap();
    disk.free_bytes.store(0, Ordering::Relaxed);
    lab.unit.watch_space();
    assert_eq!(other.take(), warning, "armed again");
    let full = Shape {
        provisioning: Provisioning::Full,
        ..Shape::default()
    };
    let lab = Lab::shaped(disk, full);
    lab.command(&FLUSH, &[]).unwrap();
    assert_eq!(lab.nexus.take(), None, "a full disk takes no more space");
}
