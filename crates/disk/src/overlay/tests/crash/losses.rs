//! What is said of a host that was lost.

use super::*;

#[test]
fn a_settled_overlay_loses_nothing_with_its_host() {
    let site = site(OverlayMode::Keep);
    site.write(0, 8).unwrap();
    site.disk().settle().unwrap();
    let settled = site.recorder.moment();
    let found = site.lose_power(settled, &mut || false);
    assert_eq!(found.disk.host_loss(), HostLoss::Clean);
    assert!(found.holds(0, 1));
    // The next write takes the note back before it is answered.
    site.write(0, 8).unwrap();
    let found = site.lose_power(site.recorder.moment(), &mut || false);
    assert_eq!(found.disk.host_loss(), HostLoss::LostWrites);
}

#[test]
fn an_overlay_does_not_settle_over_a_write_that_came_meanwhile() {
    let site = site(OverlayMode::Keep);
    site.flush_once();
    site.write(0, 8).unwrap();
    site.interrupt(
        |op, name| is_sync_of(op, name, "data"),
        |site| site.write(160, 8).unwrap(),
    );
    site.disk().settle().unwrap();
    site.recorder.clear_hook();
    // The check in it says that what is lost must be said.
    let found = site.lose_power(site.recorder.moment(), &mut || false);
    assert!(found.holds(160, IMAGE));
}

#[test]
fn lost_writes_are_said_until_the_generation_changes() {
    let site = site(OverlayMode::Keep);
    site.write(0, 8).unwrap();
    let found = site.lose_power(site.recorder.moment(), &mut || false);
    let Found { disk, home, .. } = found;
    let (overlay, dir) = (disk, home.path().join("ov"));
    // Neither settling nor a new process makes them forgotten.
    overlay.settle().unwrap();
    overlay.write(0, &[1; 512]).unwrap();
    overlay.settle().unwrap();
    overlay.close().unwrap();
    drop(overlay);
    let files = site.files.in_another_boot();
    let open = || Store::open(files.clone(), &dir, image(), Caching::WriteBack).map(Overlay::over);
    let overlay = open().unwrap();
    assert_eq!(overlay.host_loss(), HostLoss::LostWrites);
    let booted = overlay.switch(2).unwrap();
    assert_eq!(booted.host_loss(), HostLoss::None);
    drop((overlay, booted));
    assert_eq!(open().unwrap().host_loss(), HostLoss::None);
}

#[test]
fn a_reset_overlay_is_void_after_its_host_was_lost() {
    let site = site(OverlayMode::Reset);
    site.write(0, 8).unwrap();
    site.flush().unwrap();
    let found = site.lose_power(site.recorder.moment(), &mut || true);
    assert_eq!(found.disk.host_loss(), HostLoss::LostWrites);
    assert!(found.holds(0, IMAGE));
    // And stays so for this generation.
    let Found { disk, home, .. } = found;
    let (overlay, dir) = (disk, home.path().join("ov"));
    drop(overlay);
    let files = site.files.in_another_boot();
    let store = Store::open(files, &dir, image(), Caching::WriteBack).unwrap();
    let overlay = Overlay::over(store);
    assert_eq!(overlay.host_loss(), HostLoss::LostWrites);
    assert_eq!(overlay.switch(2).unwrap().host_loss(), HostLoss::None);
}
