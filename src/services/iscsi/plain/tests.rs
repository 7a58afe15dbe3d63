//! Claims about who may open and see a plain target, and about what the
//! inventory keeps.

use std::fs::File;
use std::path::{Path, PathBuf};

use iscsi::disk::Ram;
use iscsi::{Identity, LogicalUnit};

use super::*;
use crate::inventory::{Chap, Error, Inventory, Name, NewUnit, Sharing, UnitKind};
use crate::services::tests::login;

const OPEN: &str = "iqn.2026-01.lab:open";
const CLOSED: &str = "iqn.2026-01.lab:closed";

fn target(name: &str) -> Arc<Target> {
    let disk = Arc::new(Ram::new(1 << 20));
    let unit = LogicalUnit::new(disk, Identity::new([1; 16], "VIRTUAL DISK"));
    Arc::new(Target::of_one(name, Arc::new(unit)))
}

fn proof() -> Proof {
    Proof::new(Chap::new("me", "a secret of mine").unwrap(), None).unwrap()
}

/// A target for everybody, and one for who knows its secret.
fn targets() -> PlainTargets {
    let targets = PlainTargets::default();
    targets.add(target(OPEN), None);
    targets.add(target(CLOSED), Some(proof()));
    targets
}

fn discovery(chap_name: Option<&str>) -> Login {
    Login {
        target: None,
        ..login(OPEN, chap_name)
    }
}

fn by(initiator: &str, target: &str) -> Login {
    Login {
        initiator: format!("iqn.2026-01.lab:{initiator}"),
        ..login(target, None)
    }
}

#[test]
fn a_target_asks_for_its_own_secret_and_no_other() {
    let targets = targets();
    let ask = |target: &str| targets.authentication(&login(target, None));
    assert_eq!(ask(OPEN), Authentication::None);
    assert_eq!(ask(CLOSED), Authentication::Chap);
    let secret = |target: &str, name: &str| targets.chap_secret(&login(target, None), name);
    assert!(secret(CLOSED, "me").is_some());
    assert!(secret(CLOSED, "you").is_none());
    assert!(secret(OPEN, "me").is_none());
}

#[test]
fn a_target_proves_itself_to_initiators_that_ask() {
    let targets = PlainTargets::default();
    let mine = Chap::new("me", "a secret of mine").unwrap();
    let ours = Chap::new("us", "a secret of ours").unwrap();
    targets.add(target(CLOSED), Some(Proof::new(mine, Some(ours)).unwrap()));
    targets.add(target(OPEN), Some(proof()));
    let ours = |target: &str| {
        let secrets = targets.chap_secret(&login(target, None), "me");
        secrets.unwrap().target.map(|(name, _)| name)
    };
    assert_eq!(ours(CLOSED).as_deref(), Some("us"));
    assert_eq!(ours(OPEN), None);
}

#[test]
fn discovery_shows_what_may_be_opened() {
    let targets = targets();
    assert_eq!(targets.discover(&discovery(None)), [OPEN]);
    assert_eq!(targets.discover(&discovery(Some("me"))), [CLOSED, OPEN]);
    assert_eq!(targets.discover(&discovery(Some("you"))), [OPEN]);
}

#[test]
fn discovery_asks_for_a_secret_where_every_target_has_one() {
    let targets = PlainTargets::default();
    targets.add(target(CLOSED), Some(proof()));
    assert_eq!(
        targets.authentication(&discovery(None)),
        Authentication::Chap
    );
    assert!(targets.chap_secret(&discovery(None), "me").is_some());
    targets.add(target(OPEN), None);
    assert_eq!(
        targets.authentication(&discovery(None)),
        Authentication::Offered
    );
}

#[test]
fn a_target_nobody_added_is_not_found() {
    let targets = targets();
    let refusal = targets.open(&login("iqn.2026-01.lab:none", None)).err();
    assert_eq!(refusal, Some(LoginRefusal::NotFound));
    assert!(targets.open(&login(OPEN, None)).is_ok());
    targets.remove(OPEN);
    let refusal = targets.open(&login(OPEN, None)).err();
    assert_eq!(refusal, Some(LoginRefusal::NotFound));
}

#[test]
fn a_disk_that_is_not_shared_has_one_initiator_with_any_number_of_sessions() {
    let targets = targets();
    targets.set_exclusive(OPEN, true).unwrap();
    let first = targets.open(&by("one", OPEN)).unwrap();
    let second = targets.open(&by("one", OPEN)).unwrap();
    let refusal = targets.open(&by("two", OPEN)).err();
    assert_eq!(refusal, Some(LoginRefusal::ServiceUnavailable));
    assert_eq!(targets.sessions(OPEN), 2);
    drop(first);
    assert!(targets.open(&by("two", OPEN)).is_err());
    drop(second);
    let _other = targets.open(&by("two", OPEN)).unwrap();
    assert!(targets.open(&by("one", OPEN)).is_err());
}

#[test]
fn a_target_that_several_have_open_does_not_become_exclusive() {
    let targets = targets();
    let _one = targets.open(&by("one", OPEN)).unwrap();
    let two = targets.open(&by("two", OPEN)).unwrap();
    assert_eq!(targets.set_exclusive(OPEN, true).unwrap_err().len(), 2);
    let _three = targets.open(&by("three", OPEN)).unwrap();
    drop((two, _three));
    targets.set_exclusive(OPEN, true).unwrap();
}

// What the inventory keeps.

struct Lab {
    inventory: Option<Arc<Inventory>>,
    directory: tempfile::TempDir,
    door: Arc<PlainTargets>,
    kept: Option<KeptTargets>,
}

impl Lab {
    fn new() -> Lab {
        let directory = tempfile::tempdir().unwrap();
        let mut lab = Lab {
            inventory: None,
            directory,
            door: Arc::default(),
            kept: None,
        };
        lab.restart();
        lab
    }

    /// Ends the program as a kill does, and starts it again.
    fn restart(&mut self) {
        self.kept = None;
        self.inventory = None;
        let data = self.directory.path().join("data");
        let inventory = Inventory::open(&data, crate::inventory::Limits::default()).unwrap();
        let inventory = Arc::new(inventory);
        self.door = Arc::default();
        let kept = KeptTargets::restore(
            Arc::clone(&inventory),
            Arc::clone(&self.door),
            "iqn.2026-01.lab",
        );
        self.inventory = Some(inventory);
        self.kept = Some(kept.unwrap());
    }

    fn kept(&self) -> &KeptTargets {
        self.kept.as_ref().unwrap()
    }

    fn add(&self, name: &str) -> String {
        let name = Name::parse(name).unwrap();
        self.kept().add_target(name, None, None).unwrap().iqn
    }

    fn file(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        path
    }

    fn lun(&self, target: &str, file: &Path, kind: UnitKind) -> Result<u16, Error> {
        let new = NewUnit {
            lun: None,
            file: file.to_owned(),
            kind,
            sharing: Sharing::One,
            block_bytes: None,
            format: None,
            disk: None,
        };
        Ok(self.kept().add_unit(target, new)?.lun)
    }

    fn state(&self, target: &str, lun: u16) -> UnitState {
        let target = self.inventory.as_ref().unwrap().target(target).unwrap();
        self.kept().unit_state(target.id, lun)
    }

    fn attach(&self, iqn: &str) -> Attachment {
        self.door.open(&login(iqn, None)).unwrap()
    }
}

#[test]
fn what_was_added_is_there_after_a_restart_and_the_same_disk() {
    let mut lab = Lab::new();
    let iqn = lab.add("data");
    let file = lab.file("a.img");
    lab.lun("data", &file, UnitKind::Disk).unwrap();
    let identity = {
        let attachment = lab.attach(&iqn);
        let unit = attachment.target.unit(0).unwrap();
        unit.disk().write(0, &[7; 512]).unwrap();
        unit.identity().clone()
    };
    lab.restart();
    let unit = lab.attach(&iqn).target.unit(0).unwrap();
    assert_eq!(*unit.identity(), identity);
    let mut bytes = [0; 512];
    unit.disk().read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 512]);
}

#[test]
fn a_file_that_is_missing_keeps_its_place_until_it_is_there() {
    let mut lab = Lab::new();
    let iqn = lab.add("data");
    let file = lab.file("a.img");
    lab.lun("data", &file, UnitKind::Thin).unwrap();
    let away = lab.directory.path().join("away.img");
    std::fs::rename(&file, &away).unwrap();
    lab.restart();
    let UnitState::Trouble(why) = lab.state("data", 0) else {
        panic!("served");
    };
    assert!(why.contains("does not exist"), "{why}");
    let attachment = lab.attach(&iqn);
    assert!(attachment.target.unit(0).is_none());
    assert!(lab.kept().rescan_unit("data", 0).is_err());
    std::fs::rename(&away, &file).unwrap();
    lab.kept().rescan_unit("data", 0).unwrap();
    assert!(attachment.target.unit(0).is_some());
}

#[test]
fn one_file_is_written_by_one_lun_whatever_it_is_called() {
    let lab = Lab::new();
    lab.add("data");
    lab.add("other");
    let file = lab.file("a.img");
    let alias = lab.directory.path().join("alias.img");
    std::fs::hard_link(&file, &alias).unwrap();
    lab.lun("data", &file, UnitKind::Disk).unwrap();
    for kind in [UnitKind::Disk, UnitKind::ReadOnly] {
        let refusal = lab.lun("other", &alias, kind).unwrap_err().to_string();
        assert!(refusal.contains("LUN 0 of"), "{refusal}");
    }
    lab.kept().remove_unit("data", 0, false).unwrap();
    lab.lun("data", &file, UnitKind::ReadOnly).unwrap();
    lab.lun("other", &alias, UnitKind::ReadOnly).unwrap();
    assert!(lab.lun("data", &file, UnitKind::Disk).is_err());
}

#[test]
fn a_disk_somebody_else_has_open_is_not_served() {
    let lab = Lab::new();
    lab.add("data");
    let file = lab.file("a.img");
    let _user = iscsi::disk::Raw::open(&file, iscsi::disk::Access::ReadWrite).unwrap();
    let refusal = lab.lun("data", &file, UnitKind::Disk).unwrap_err();
    assert!(refusal.to_string().contains("is in use"), "{refusal}");
    assert!(
        lab.inventory
            .as_ref()
            .unwrap()
            .target("data")
            .unwrap()
            .units
            .is_empty()
    );
}

#[test]
fn what_looks_like_a_container_is_refused_once_and_not_at_the_next_start() {
    let mut lab = Lab::new();
    let iqn = lab.add("data");
    let file = lab.file("a.img");
    lab.lun("data", &file, UnitKind::Disk).unwrap();
    // An initiator may write what it likes.
    let unit = lab.attach(&iqn).target.unit(0).unwrap();
    unit.disk().write(0, b"QFI\xfb").unwrap();
    drop(unit);
    lab.restart();
    assert!(matches!(lab.state("data", 0), UnitState::Served { .. }));
    lab.kept().remove_unit("data", 0, false).unwrap();
    let refusal = lab.lun("data", &file, UnitKind::Disk).unwrap_err();
    assert!(
        refusal.to_string().contains("qemu-img convert"),
        "{refusal}"
    );
}

#[test]
fn a_target_in_use_goes_only_by_force() {
    let lab = Lab::new();
    let iqn = lab.add("data");
    let file = lab.file("a.img");
    lab.lun("data", &file, UnitKind::Disk).unwrap();
    let session = lab.attach(&iqn);
    for refused in [
        lab.kept().remove_unit("data", 0, false),
        lab.kept().remove_target("data", false),
    ] {
        let refused = refused.unwrap_err().to_string();
        assert!(
            refused.contains("1 session") && refused.contains("--force"),
            "{refused}"
        );
    }
    lab.kept().remove_unit("data", 0, true).unwrap();
    assert!(session.target.unit(0).is_none());
    lab.kept().remove_target("data", true).unwrap();
    assert!(!lab.door.has(&iqn));
}

#[test]
fn a_disk_for_one_initiator_is_not_added_under_two() {
    let lab = Lab::new();
    let iqn = lab.add("data");
    let _one = lab.door.open(&by("one", &iqn)).unwrap();
    let two = lab.door.open(&by("two", &iqn)).unwrap();
    let file = lab.file("a.img");
    let refusal = lab.lun("data", &file, UnitKind::Disk).unwrap_err();
    assert!(refusal.to_string().contains("--shared"), "{refusal}");
    lab.lun("data", &lab.file("b.img"), UnitKind::ReadOnly)
        .unwrap();
    drop(two);
    lab.lun("data", &file, UnitKind::Disk).unwrap();
    assert!(lab.door.open(&by("two", &iqn)).is_err());
    lab.kept().remove_unit("data", 1, true).unwrap();
    assert!(lab.door.open(&by("two", &iqn)).is_ok());
}

#[test]
fn a_unit_that_grows_is_the_same_unit_and_larger_for_who_has_it_open() {
    let lab = Lab::new();
    let iqn = lab.add("data");
    let file = lab.file("a.img");
    lab.lun("data", &file, UnitKind::Thin).unwrap();
    let session = lab.attach(&iqn);
    let before = session.target.unit(0).unwrap();
    lab.kept().resize_unit("data", 0, 2 << 20).unwrap();
    let now = session.target.unit(0).unwrap();
    assert_eq!(now.identity(), before.identity());
    assert_eq!(now.disk().geometry().size_bytes, 2 << 20);
    assert_eq!(
        lab.state("data", 0),
        UnitState::Served {
            size_bytes: 2 << 20
        }
    );
    assert!(lab.kept().resize_unit("data", 0, 1 << 20).is_err());
    lab.kept().resize_unit("data", 0, 2 << 20).unwrap();
}

#[test]
fn a_golden_image_is_read_and_never_written_whatever_it_is_called() {
    let mut machines = crate::services::tests::Lab::new();
    machines.image("debian", 1);
    let site = machines.site.take().unwrap();
    let inventory = Arc::clone(&site.inventory);
    let image = inventory.images()[0].disk_path();
    let link = image.with_file_name("../../../../alias.raw");
    std::fs::hard_link(&image, &link).unwrap();
    let link = std::fs::canonicalize(link).unwrap();
    assert!(!link.starts_with(inventory.data()));
    for path in [&image, &link] {
        let refusal = inventory.check_unit_file(path, UnitKind::Thin).unwrap_err();
        assert!(refusal.to_string().contains("never written"), "{refusal}");
        inventory.check_unit_file(path, UnitKind::ReadOnly).unwrap();
    }
}

#[test]
fn a_vhd_is_served_as_the_disk_it_holds_and_after_a_restart_too() {
    let mut lab = Lab::new();
    let iqn = lab.add("data");
    let file = lab.directory.path().join("a.vhd");
    let new = disk::NewDisk {
        format: disk::NewFormat::VhdDynamic,
        size_bytes: 64 << 20,
        logical_block_bytes: 512,
    };
    drop(disk::create(&file, &new).unwrap());
    lab.lun("data", &file, UnitKind::Thin).unwrap();
    let unit = lab.attach(&iqn).target.unit(0).unwrap();
    assert_eq!(unit.disk().geometry().size_bytes, 64 << 20);
    unit.disk().write(8 << 20, &[7; 512]).unwrap();
    drop(unit);
    let refusal = lab.kept().resize_unit("data", 0, 128 << 20).unwrap_err();
    assert!(refusal.to_string().contains("vhd file"), "{refusal}");
    lab.kept().rescan_unit("data", 0).unwrap();
    lab.restart();
    let unit = lab.attach(&iqn).target.unit(0).unwrap();
    let mut bytes = [0; 512];
    unit.disk().read(8 << 20, &mut bytes).unwrap();
    assert_eq!(bytes, [7; 512]);
}

#[test]
fn an_own_disk_is_one_luns_or_one_machines() {
    use crate::inventory::{Assignment, DiskFormat, MachineChange, NewOwnDisk};
    let mut lab = Lab::new();
    let iqn = lab.add("data");
    let inventory = Arc::clone(lab.inventory.as_ref().unwrap());
    let new = NewOwnDisk {
        name: Name::parse("win").unwrap(),
        comment: String::new(),
    };
    let own = inventory
        .create_own_disk(new, DiskFormat::Vhd, 64 << 20)
        .unwrap();
    // Not by its path: only its name says what it is.
    let path = inventory.own_disk_path(&own);
    let refusal = lab.lun("data", &path, UnitKind::Disk).unwrap_err();
    assert!(refusal.to_string().contains("--disk win"), "{refusal}");
    let lun = || NewUnit {
        lun: None,
        file: PathBuf::new(),
        kind: UnitKind::Disk,
        sharing: Sharing::One,
        block_bytes: None,
        format: None,
        disk: Some(own.id),
    };
    lab.kept().add_unit("data", lun()).unwrap();
    let refusal = lab.kept().add_unit("data", lun()).unwrap_err();
    assert!(refusal.to_string().contains("LUN 0 of"), "{refusal}");
    let machine = inventory
        .enrol(crate::inventory::tests::mac(1), None, None)
        .unwrap();
    let change = || MachineChange {
        assignment: Some(Some(Assignment::Disk(own.id))),
        ..MachineChange::default()
    };
    for refusal in [
        inventory.set_machine(machine.id, change()).map(drop),
        inventory.remove_own_disk(own.id).map(drop),
    ] {
        let refusal = refusal.unwrap_err().to_string();
        assert!(refusal.contains("LUN 0 of data"), "{refusal}");
    }
    drop(inventory);
    lab.restart();
    let unit = lab.attach(&iqn).target.unit(0).unwrap();
    assert_eq!(unit.disk().geometry().size_bytes, 64 << 20);
    drop(unit);
    lab.kept().remove_unit("data", 0, false).unwrap();
    let inventory = lab.inventory.as_ref().unwrap();
    inventory.set_machine(machine.id, change()).unwrap();
    let refusal = lab.kept().add_unit("data", lun()).unwrap_err().to_string();
    assert!(refusal.contains("the disk of machine"), "{refusal}");
}
