//! Tests of `machine`.

use super::*;
use crate::inventory::Limits;
use crate::inventory::tests::{Site, mac};

fn new_machine(name: &str, mac: Mac) -> NewMachine {
    NewMachine {
        name: Name::parse(name).unwrap(),
        mac,
        uuid: None,
        serial: None,
        assignment: None,
        address: None,
        loader: None,
    }
}

fn assignment(image: &str) -> Assignment {
    Assignment::Image {
        image: ImageRef::parse(image).unwrap(),
        mode: OverlayMode::Keep,
    }
}

#[test]
fn a_machine_survives_a_restart_with_all_its_facts() {
    let mut site = Site::new();
    site.new_image("debian");
    let added = site
        .add_machine(NewMachine {
            uuid: Some([9; 16]),
            serial: Some("ABC-123".into()),
            assignment: Some(assignment("debian@1")),
            address: Some(Ipv4Addr::new(10, 0, 0, 7)),
            loader: Some("snponly.efi".into()),
            ..new_machine("pc07", mac(7))
        })
        .unwrap();
    site.restart();
    assert_eq!(site.machine(added.id).unwrap(), added);
}

impl Site {
    fn refusal(&self, new: NewMachine) -> String {
        let before = self.machines().unwrap();
        let refusal = self.add_machine(new).unwrap_err().to_string();
        assert_eq!(self.machines().unwrap(), before, "nothing changed");
        refusal
    }
}

#[test]
fn a_mac_given_twice_is_refused_with_the_machine_that_has_it() {
    let site = Site::new();
    site.new_machine("pc07", 7);
    let refusal = site.refusal(new_machine("pc08", mac(7)));
    assert!(
        refusal.contains("52:54:00:00:00:07 is machine pc07 already"),
        "{refusal}"
    );
    assert!(refusal.contains("diskless machine set pc07"), "{refusal}");
}

#[test]
fn a_name_given_twice_is_refused_with_the_machine_that_has_it() {
    let site = Site::new();
    site.new_machine("pc07", 7);
    let refusal = site.refusal(new_machine("pc07", mac(8)));
    assert!(
        refusal.contains("pc07 already (52:54:00:00:00:07)"),
        "{refusal}"
    );
}

#[test]
fn a_fixed_address_given_twice_is_refused_with_the_machine_that_has_it() {
    let site = Site::new();
    let address = Some(Ipv4Addr::new(10, 0, 0, 7));
    let with_address = |name, mac| NewMachine {
        address,
        ..new_machine(name, mac)
    };
    site.add_machine(with_address("pc07", mac(7))).unwrap();
    let refusal = site.refusal(with_address("pc08", mac(8)));
    assert!(refusal.contains("promised to machine pc07"), "{refusal}");
}

#[test]
fn an_image_nobody_has_cannot_be_assigned() {
    let site = Site::new();
    let refusal = site.refusal(NewMachine {
        assignment: Some(assignment("debian")),
        ..new_machine("pc07", mac(7))
    });
    assert!(refusal.contains("no image \"debian\""), "{refusal}");
}

#[test]
fn a_group_address_is_nobodys_mac() {
    let site = Site::new();
    site.refusal(new_machine("pc07", Mac([0xff; 6])));
    site.refusal(new_machine("pc07", Mac([0; 6])));
    assert!(site.enrol(Mac([1, 0, 0x5e, 0, 0, 1]), None, None).is_err());
}

#[test]
fn enrolling_twice_is_one_pending_machine_named_after_its_mac() {
    let site = Site::new();
    let first = site.enrol(mac(7), Some([3; 16]), None).unwrap();
    let second = site.enrol(mac(7), Some([3; 16]), Some("S1")).unwrap();
    assert_eq!(first.name.as_str(), "new-525400000007");
    assert_eq!(first.state, MachineState::Pending);
    assert_eq!(second.id, first.id);
    assert_eq!(second.serial.as_deref(), Some("S1"), "learned later");
    assert_eq!(site.machines().unwrap().len(), 1);
}

#[test]
fn a_pending_name_that_is_taken_gets_a_number() {
    let site = Site::new();
    site.new_machine("new-525400000007", 1);
    let pending = site.enrol(mac(7), None, None).unwrap();
    assert_eq!(pending.name.as_str(), "new-525400000007-2");
}

#[test]
fn the_oldest_pending_machine_goes_when_there_are_too_many() {
    let site = Site::limited(Limits {
        pending_machines: 3,
    });
    site.new_machine("pc99", 99);
    for last in 1..=5 {
        site.enrol(mac(last), None, None).unwrap();
    }
    let macs: Vec<Mac> = site.machines().unwrap().iter().map(|m| m.mac).collect();
    assert_eq!(macs, [mac(3), mac(4), mac(5), mac(99)]);
}

#[test]
fn a_limit_of_none_enrols_nobody() {
    let site = Site::limited(Limits {
        pending_machines: 0,
    });
    assert!(site.enrol(mac(1), None, None).is_err());
    assert!(site.machines().unwrap().is_empty());
}

#[test]
fn made_up_macs_are_enrolled_no_faster_than_the_bucket_fills() {
    let mut enrolments = Enrolments::default();
    let start = Instant::now();
    let at_once = (0..1000).filter(|_| enrolments.admit(start)).count();
    assert_eq!(at_once, ENROLMENT_BURST as usize);
    let later = start + ENROLMENT_INTERVAL * 3;
    assert_eq!((0..1000).filter(|_| enrolments.admit(later)).count(), 3);
    let much_later = start + Duration::from_secs(100_000);
    let refilled = (0..1000).filter(|_| enrolments.admit(much_later)).count();
    assert_eq!(refilled, ENROLMENT_BURST as usize);
}

#[test]
fn a_pending_machine_that_is_added_keeps_its_id_and_what_it_said() {
    let site = Site::new();
    let pending = site.enrol(mac(7), Some([3; 16]), None).unwrap();
    let added = site.add_machine(new_machine("pc07", mac(7))).unwrap();
    assert_eq!(added.id, pending.id);
    assert_eq!(added.uuid, Some([3; 16]));
    assert_eq!(added.state, MachineState::Known);
    assert_eq!(site.machines().unwrap().len(), 1);
}

#[test]
fn a_pending_machine_becomes_known_by_a_name_or_an_image() {
    let site = Site::new();
    site.new_image("debian");
    let by_image = site.enrol(mac(1), None, None).unwrap();
    let change = MachineChange {
        assignment: Some(Some(assignment("debian"))),
        ..MachineChange::default()
    };
    let set = site.set_machine(by_image.id, change).unwrap();
    assert_eq!(set.state, MachineState::Known);
    let by_name = site.enrol(mac(2), None, None).unwrap();
    let change = MachineChange {
        name: Some(Name::parse("pc02").unwrap()),
        ..MachineChange::default()
    };
    let set = site.set_machine(by_name.id, change).unwrap();
    assert_eq!(
        (set.state, set.name.as_str()),
        (MachineState::Known, "pc02")
    );
}

#[test]
fn a_change_leaves_alone_what_it_does_not_name() {
    let site = Site::new();
    let pc = site
        .add_machine(NewMachine {
            address: Some(Ipv4Addr::new(10, 0, 0, 7)),
            loader: Some("ipxe.efi".into()),
            ..new_machine("pc07", mac(7))
        })
        .unwrap();
    let change = MachineChange {
        address: Some(None),
        ..MachineChange::default()
    };
    let set = site.set_machine(pc.id, change).unwrap();
    assert_eq!(set.address, None);
    assert_eq!(set.loader.as_deref(), Some("ipxe.efi"));
}

#[test]
fn a_new_network_card_that_has_asked_already_is_taken_over() {
    let site = Site::new();
    let pc = site.new_machine("pc07", 7);
    site.enrol(mac(8), None, None).unwrap();
    let change = MachineChange {
        mac: Some(mac(8)),
        ..MachineChange::default()
    };
    site.set_machine(pc.id, change).unwrap();
    assert_eq!(site.machine_by_mac(mac(8)).unwrap().unwrap().id, pc.id);
    assert_eq!(site.machines().unwrap().len(), 1);
}

#[test]
fn a_mac_decides_before_a_uuid() {
    let site = Site::new();
    let pc = NewMachine {
        uuid: Some([3; 16]),
        ..new_machine("pc07", mac(7))
    };
    site.add_machine(pc).unwrap();
    let other_card = Identity {
        mac: Some(mac(8)),
        uuid: Some([3; 16]),
        serial: None,
    };
    assert_eq!(site.find(&other_card).unwrap(), None);
}

#[test]
fn a_uuid_or_serial_that_several_machines_share_finds_none() {
    let site = Site::new();
    let shares = |name, mac| NewMachine {
        uuid: Some([3; 16]),
        serial: Some("S1".into()),
        ..new_machine(name, mac)
    };
    let pc = site.add_machine(shares("pc07", mac(7))).unwrap();
    let by_uuid = Identity {
        uuid: Some([3; 16]),
        ..Identity::default()
    };
    let by_serial = Identity {
        serial: Some("S1".into()),
        ..Identity::default()
    };
    assert_eq!(site.find(&by_uuid).unwrap().unwrap().id, pc.id);
    assert_eq!(site.find(&by_serial).unwrap().unwrap().id, pc.id);
    site.add_machine(shares("pc08", mac(8))).unwrap();
    assert_eq!(site.find(&by_uuid).unwrap(), None);
    assert_eq!(site.find(&by_serial).unwrap(), None);
}

#[test]
fn what_firmware_says_for_want_of_a_uuid_or_serial_is_not_kept() {
    let site = Site::new();
    let pc = site
        .enrol(mac(7), Some([0xff; 16]), Some("To Be Filled By O.E.M."))
        .unwrap();
    assert_eq!((pc.uuid, pc.serial), (None, None));
}

#[test]
fn when_a_machine_was_seen_is_known_at_once_and_saved_with_the_batch() {
    let mut site = Site::new();
    let pc = site.new_machine("pc07", 7);
    assert_eq!(pc.last_seen, None);
    site.machine_seen(pc.id);
    let seen = site.machine(pc.id).unwrap().last_seen.unwrap();
    site.save_seen().unwrap();
    site.restart();
    assert_eq!(site.machine(pc.id).unwrap().last_seen, Some(seen));
}

#[test]
fn removing_a_machine_removes_its_overlays_files_and_generations() {
    let site = Site::new();
    let (pc, image) = (site.new_machine("pc07", 7), site.new_image("debian"));
    site.prepare_generation(pc.id).unwrap();
    let overlay = site.add_overlay(pc.id, &image, OverlayMode::Keep).unwrap();
    let directory = site.overlay_directory(overlay.uuid);
    std::fs::create_dir(&directory).unwrap();
    site.remove_machine(pc.id).unwrap();
    assert!(!directory.exists());
    assert_eq!(site.overlays().unwrap(), []);
    assert!(site.generations(pc.id).unwrap().prepared.is_none());
    assert!(site.remove_machine(pc.id).is_err());
}

#[test]
fn a_name_nobody_has_is_refused_with_the_nearest() {
    let site = Site::new();
    site.new_machine("pc07", 7);
    let refusal = site.machine_by_name("pc7").unwrap_err().to_string();
    assert!(refusal.contains("did you mean pc07?"), "{refusal}");
}

#[test]
fn a_mac_is_read_in_the_spellings_of_people() {
    for text in ["52:54:00:12:34:5f", "52-54-00-12-34-5F", "52540012345f"] {
        assert_eq!(
            parse_mac(text).unwrap(),
            Mac([0x52, 0x54, 0, 0x12, 0x34, 0x5f])
        );
    }
    for text in [
        "",
        "52:54:00:12:34",
        "52:54-00:12:34:56",
        "52:54:00:12:34:5g",
        "5254001234567",
        "ä2540012345",
    ] {
        assert!(parse_mac(text).is_err(), "{text}");
    }
    assert_eq!(show_mac(mac(7)), "52:54:00:00:00:07");
}

#[test]
fn a_loader_outside_the_loader_directories_is_refused() {
    assert!(require_loader("x86_64/snponly.efi").is_ok());
    for bad in ["", "/etc/passwd", "../x", "a/../b", "a//b", "a b"] {
        assert!(require_loader(bad).is_err(), "{bad}");
    }
}
