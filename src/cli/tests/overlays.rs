//! Overlays and restore points, from the command line.

use ::disk::Disk;
use ::disk::overlay::Caching;

use super::*;
use crate::inventory::{Inventory, OverlayMode};

/// A running API with a machine `pc1` that has an overlay with writes.
async fn with_overlay() -> (Running, Arc<Inventory>) {
    let running = Running::start().await;
    let source = running.directory.path().join("a.raw");
    fs::write(&source, vec![7; 2 << 20]).unwrap();
    let line = format!("image import debian {}", source.display());
    running.answer(&line).await.unwrap();
    for line in [
        "machine add pc1 --mac 52:54:00:00:00:01 --image debian --mode keep",
        "machine add pc2 --mac 52:54:00:00:00:02",
    ] {
        running.answer(line).await.unwrap();
    }
    let inventory = Arc::clone(&running.inventory);
    let pc = inventory.machine_by_name("pc1").unwrap();
    let image = inventory.images()[0].clone();
    let fact = inventory
        .add_overlay(pc.id, &image, OverlayMode::Keep)
        .unwrap();
    let golden = ::disk::image::open(&image.directory, &image.base_id(), Arc::default());
    let overlay = ::disk::Overlay::create(
        &inventory.overlay_directory(fact.uuid),
        Arc::new(golden.unwrap()),
        image.base_id(),
        OverlayMode::Keep,
        1,
        Caching::WriteBack,
    );
    overlay.unwrap().close().unwrap();
    write(&inventory, 1);
    (running, inventory)
}

/// Writes to `pc1`'s overlay.
fn write(inventory: &Inventory, byte: u8) {
    let pc = inventory.machine_by_name("pc1").unwrap();
    let fact = inventory.overlay_of(pc.id, "debian").unwrap().unwrap();
    let open = inventory.open_overlay(&fact).unwrap();
    open.write(0, &[byte; 4096]).unwrap();
    open.close().unwrap();
}

#[tokio::test]
async fn a_machine_goes_back_to_a_point_and_forth_again() {
    let (running, inventory) = with_overlay().await;
    let said = running.answer("overlay points pc1").await.unwrap();
    assert!(said.contains("no restore points"), "{said}");
    let said = running
        .answer("overlay point pc1 --comment good")
        .await
        .unwrap();
    assert!(said.starts_with("restore point "), "{said}");
    write(&inventory, 2);
    let said = running.answer("overlay restore pc1 latest").await.unwrap();
    assert!(said.contains("what it has written since is kept"), "{said}");
    let back = said
        .split('`')
        .nth(1)
        .unwrap()
        .strip_prefix("diskless ")
        .unwrap();
    let said = running.answer("overlay points pc1").await.unwrap();
    assert!(
        said.contains("by hand") && said.contains("former state"),
        "{said}"
    );
    let said = running.answer(back).await.unwrap();
    let remove = said
        .rsplit('`')
        .nth(1)
        .unwrap()
        .strip_prefix("diskless ")
        .unwrap();
    running.answer(remove).await.unwrap();
    let said = running.answer("overlay list").await.unwrap();
    assert_eq!(said.matches("former").count(), 1, "{said}");
    let said = running
        .answer("machine timeline pc1")
        .await
        .unwrap_or_default();
    assert!(said.is_empty() || said.contains("went back"), "{said}");
}

#[tokio::test]
async fn another_machine_begins_from_a_point() {
    let (running, _) = with_overlay().await;
    running.answer("overlay point pc1").await.unwrap();
    let said = running
        .answer("overlay branch pc1 latest --to pc2")
        .await
        .unwrap();
    assert!(said.starts_with("pc2 begins from there"), "{said}");
    let said = running.answer("overlay show pc2").await.unwrap();
    assert!(said.contains("debian@1"), "{said}");
    let refusal = running
        .answer("overlay branch pc1 latest --to pc2")
        .await
        .unwrap_err();
    assert!(
        refusal.contains("pc2 has an overlay above debian already"),
        "{refusal}"
    );
}

#[tokio::test]
async fn an_overlay_has_a_quota_until_it_has_none() {
    let (running, _) = with_overlay().await;
    let said = running.answer("overlay quota pc1 20G").await.unwrap();
    assert!(said.starts_with("pc1 may hold 20.00 GiB"), "{said}");
    assert!(
        running
            .answer("overlay list")
            .await
            .unwrap()
            .contains("20.00 GiB")
    );
    let said = running.answer("overlay quota pc1 none").await.unwrap();
    assert_eq!(said, "pc1 has no quota");
}

#[tokio::test]
async fn points_are_given_up_and_overlays_reset() {
    let (running, _) = with_overlay().await;
    running.answer("overlay point pc1").await.unwrap();
    running
        .answer("overlay point pc1 --remove latest")
        .await
        .unwrap();
    let said = running.answer("overlay points pc1").await.unwrap();
    assert!(said.contains("no restore points"), "{said}");
    let refusal = running
        .answer("overlay restore pc1 latest")
        .await
        .unwrap_err();
    assert!(refusal.contains("there is no restore point"), "{refusal}");
    running.answer("overlay reset pc1").await.unwrap();
    let refusal = running.answer("overlay show pc1").await.unwrap_err();
    assert!(refusal.contains("has no overlay"), "{refusal}");
}

#[tokio::test]
async fn an_overlay_goes_out_as_it_was_at_a_point() {
    let (running, _) = with_overlay().await;
    let target = running.directory.path().join("pc1.raw");
    let export = format!("overlay export pc1 latest {}", target.display());
    let refusal = running.answer(&export).await.unwrap_err();
    assert!(refusal.contains("there is no restore point"), "{refusal}");
    running.answer("overlay point pc1").await.unwrap();
    let said = running.answer(&export).await.unwrap();
    assert!(said.starts_with("pc1: 2.00 MiB exported to"), "{said}");
    let mut disk = vec![7; 2 << 20];
    disk[..4096].fill(1);
    assert!(fs::read(&target).unwrap() == disk);
    let client = Client::new(running.socket.clone());
    let mut seen = Vec::new();
    let content = client.receive("/overlays/pc1/points/latest/content", |_, piece| {
        seen.extend_from_slice(piece);
        Ok(())
    });
    content.await.unwrap();
    assert!(seen == disk);
}

#[tokio::test]
async fn an_overlay_becomes_the_next_version_of_its_image() {
    let (running, inventory) = with_overlay().await;
    let said = running
        .answer("overlay commit pc1 --comment office")
        .await
        .unwrap();
    assert!(said.starts_with("debian@2 is current"), "{said}");
    assert!(!said.contains("made from"), "{said}");
    let image = inventory
        .image(&crate::inventory::ImageRef::parse("debian").unwrap())
        .unwrap();
    let mut disk = vec![7; 2 << 20];
    disk[..4096].fill(1);
    assert!(fs::read(image.disk_path()).unwrap() == disk);
    assert_eq!((image.parent, image.comment.as_str()), (Some(1), "office"));
    running.answer("image verify debian").await.unwrap();
    // The overlay stays where it was: a second commit leaves out what @2 brought.
    let said = running.answer("overlay commit pc1").await.unwrap();
    assert!(said.contains("made from @1"), "{said}");
    let said = running
        .answer("overlay commit pc1 --as office")
        .await
        .unwrap();
    assert!(said.starts_with("office@1 is current"), "{said}");
}
