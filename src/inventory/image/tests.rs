//! Tests of golden images and their versions.

use super::manifest::MANIFEST_FILE;
use super::*;
use crate::inventory::tests::{Site, mac};
use crate::inventory::{MachineChange, NewMachine, OverlayMode};

fn meant(text: &str) -> ImageRef {
    ImageRef::parse(text).unwrap()
}

fn boots(image: &str) -> MachineChange {
    MachineChange {
        assignment: Some(Some(Assignment::Image {
            image: meant(image),
            mode: OverlayMode::Keep,
        })),
        ..MachineChange::default()
    }
}

#[test]
fn an_image_reference_is_a_name_with_or_without_a_version() {
    assert_eq!(meant("win11").version, None);
    assert_eq!(meant("win11@3").version, Some(3));
    assert_eq!(meant("win11@v003").to_string(), "win11@3");
    for bad in ["", "@", "win11@", "win11@0", "win11@x", "win11@-1", "../x"] {
        assert!(ImageRef::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn the_current_version_is_the_highest() {
    let mut site = Site::new();
    for version in 1..=3 {
        assert_eq!(site.new_image("debian").version, version);
    }
    site.restart();
    assert_eq!(site.image(&meant("debian")).unwrap().version, 3);
    assert_eq!(site.image(&meant("debian@2")).unwrap().version, 2);
    let refusal = site.image(&meant("debian@9")).unwrap_err().to_string();
    assert!(refusal.contains("has version 1, 2, 3"), "{refusal}");
}

#[test]
fn an_image_a_machine_boots_is_not_removed() {
    let site = Site::new();
    let pc = site.new_machine("pc07", 7);
    site.new_image("debian");
    site.new_image("debian");
    site.set_machine(pc.id, boots("debian")).unwrap();
    let refusal = site
        .remove_image(&meant("debian@2"))
        .unwrap_err()
        .to_string();
    assert!(refusal.contains("machine pc07 boots it"), "{refusal}");
    assert!(site.remove_image(&meant("debian")).is_err());
    assert_eq!(site.images().len(), 2, "nothing changed");
    // Version 1 is not what it boots.
    site.remove_image(&meant("debian@1")).unwrap();
}

#[test]
fn an_image_below_an_overlay_is_not_removed() {
    let site = Site::new();
    let pc = site.new_machine("pc07", 7);
    let image = site.new_image("debian");
    let overlay = site.add_overlay(pc.id, &image, OverlayMode::Keep).unwrap();
    let refusal = site.remove_image(&meant("debian")).unwrap_err().to_string();
    assert!(refusal.contains("overlay of machine pc07"), "{refusal}");
    site.remove_overlay(overlay.uuid).unwrap();
    site.remove_image(&meant("debian")).unwrap();
    assert!(site.images().is_empty());
    assert!(!image.directory.exists());
    assert!(!image.directory.parent().unwrap().exists());
}

#[test]
fn a_removed_image_takes_no_overlay_and_no_machine() {
    let site = Site::new();
    let pc = site.new_machine("pc07", 7);
    let image = site.new_image("debian");
    site.remove_image(&meant("debian")).unwrap();
    assert!(site.add_overlay(pc.id, &image, OverlayMode::Keep).is_err());
    assert!(site.set_machine(pc.id, boots("debian")).is_err());
    let new = site.new_image("debian");
    assert_eq!(new.version, 1);
    assert!(site.add_overlay(pc.id, &image, OverlayMode::Keep).is_err());
    assert!(site.add_overlay(pc.id, &new, OverlayMode::Keep).is_ok());
}

#[test]
fn images_are_found_without_the_database() {
    let mut site = Site::new();
    let image = site.new_image("debian");
    site.close();
    for file in ["state.db", "state.db-wal", "state.db-shm"] {
        let _ = fs::remove_file(site.data_path().join(file));
    }
    site.restart();
    assert_eq!(site.images(), [image]);
}

#[test]
fn a_damaged_version_is_left_out_and_its_number_not_used_again() {
    let mut site = Site::new();
    let image = site.new_image("debian");
    fs::write(image.directory.join(MANIFEST_FILE), "{").unwrap();
    site.restart();
    assert!(site.images().is_empty());
    assert_eq!(site.new_image("debian").version, 2);
    assert!(image.disk_path().exists());
}

#[test]
fn a_disk_of_another_size_than_published_is_left_out() {
    let mut site = Site::new();
    let image = site.new_image("debian");
    fs::remove_file(image.disk_path()).unwrap();
    fs::write(image.disk_path(), [0; 512]).unwrap();
    site.restart();
    assert!(site.images().is_empty());
}

#[test]
fn an_assignment_to_a_version_is_checked_when_it_is_made() {
    let site = Site::new();
    site.new_image("debian");
    let refused = site.add_machine(NewMachine {
        name: Name::parse("pc07").unwrap(),
        mac: mac(7),
        uuid: None,
        serial: None,
        assignment: boots("debian@2").assignment.unwrap(),
        address: None,
        loader: None,
    });
    assert!(refused.is_err());
}

fn current(site: &Site) -> u32 {
    site.image(&meant("debian")).unwrap().version
}

#[test]
fn an_earlier_version_becomes_current_and_stays_so() {
    let mut site = Site::new();
    for _ in 1..=3 {
        site.new_image("debian");
    }
    let name = Name::parse("debian").unwrap();
    let (image, was) = site.make_current(&name, None).unwrap();
    assert_eq!((image.version, was), (2, Some(3)));
    // Found without the database.
    site.close();
    fs::remove_file(site.data_path().join("state.db")).unwrap();
    site.restart();
    assert_eq!(current(&site), 2);
    site.make_current(&name, None).unwrap();
    assert_eq!(current(&site), 1);
    assert!(
        site.make_current(&name, None).is_err(),
        "there is no older one"
    );
    assert!(site.make_current(&name, Some(9)).is_err());
    assert_eq!(current(&site), 1);
    site.make_current(&name, Some(3)).unwrap();
    assert_eq!(current(&site), 3);
}

#[test]
fn a_new_version_is_current_also_after_a_rollback() {
    let mut site = Site::new();
    site.new_image("debian");
    site.new_image("debian");
    site.make_current(&Name::parse("debian").unwrap(), Some(1))
        .unwrap();
    assert_eq!(site.new_image("debian").version, 3);
    assert_eq!(current(&site), 3);
    site.restart();
    assert_eq!(current(&site), 3);
}

#[test]
fn a_current_version_that_is_not_there_is_not_replaced_by_another() {
    let mut site = Site::new();
    let first = site.new_image("debian");
    site.new_image("debian");
    site.make_current(&first.name, Some(1)).unwrap();
    fs::remove_file(first.directory.join(MANIFEST_FILE)).unwrap();
    site.restart();
    let refusal = site.image(&meant("debian")).unwrap_err().to_string();
    assert!(refusal.contains("image rollback debian"), "{refusal}");
    site.make_current(&first.name, Some(2)).unwrap();
    assert_eq!(current(&site), 2);
}

#[test]
fn removing_the_version_gone_back_to_makes_the_highest_current() {
    let mut site = Site::new();
    let first = site.new_image("debian");
    site.new_image("debian");
    site.make_current(&first.name, Some(1)).unwrap();
    site.remove_image(&meant("debian@1")).unwrap();
    assert_eq!(current(&site), 2);
    site.restart();
    assert_eq!(current(&site), 2);
    site.remove_image(&meant("debian")).unwrap();
    assert!(!first.directory.parent().unwrap().exists());
}

#[test]
fn an_image_below_files_nobody_knows_is_not_removed() {
    let site = Site::new();
    let image = site.new_image("debian");
    let base: disk::SharedDisk =
        Arc::new(disk::image::open(&image.directory, &image.base_id(), Arc::default()).unwrap());
    let stray = site.overlay_directory(Uuid::new_v4());
    let made = disk::Overlay::create(
        &stray,
        base,
        image.base_id(),
        OverlayMode::Keep,
        1,
        disk::overlay::Caching::WriteBack,
    );
    drop(made.unwrap());
    let refusal = site.remove_image(&meant("debian")).unwrap_err().to_string();
    assert!(refusal.contains(&stray.display().to_string()), "{refusal}");
    disk::Overlay::remove(&stray).unwrap();
    site.remove_image(&meant("debian")).unwrap();
}
