//! What can come between two steps of a restore point, a merge or a branch.

use super::*;

fn layered() -> Arc<LayeredSite> {
    Site::new(Layered::new())
}

/// The layers of two points with something in both, and something above.
fn with_two_points() -> Arc<LayeredSite> {
    let site = layered();
    site.write(0, 80).unwrap();
    site.point().unwrap();
    site.write(40, 16).unwrap();
    site.unmap(8, 8).unwrap();
    site.point().unwrap();
    site.write(100, 8).unwrap();
    site.flush().unwrap();
    site
}

fn drop_first(site: &LayeredSite) {
    let id = site.id_of(0);
    let overlay = site.disk();
    site.give_up(&[0], || overlay.drop_points(&[id])).unwrap();
}

#[test]
fn a_write_in_the_middle_of_a_point_is_no_less_durable_than_the_point_says() {
    let site = layered();
    site.write(0, 8).unwrap();
    // After the flush, before writes have to wait.
    site.interrupt(
        |op, name| is_sync_of(op, name, "point"),
        |site| site.write(160, 8).unwrap(),
    );
    site.point().unwrap();
    site.recorder.clear_hook();
    // The head says that nothing can be lost.
    let found = site.lose_power(site.recorder.moment(), &mut || false);
    let newest = site.history().newest();
    assert!(found.holds(160, newest));
}

#[test]
fn a_point_can_be_interrupted_at_each_step() {
    let site = layered();
    site.write(0, 30).unwrap();
    let before = site.recorder.moment();
    site.point().unwrap();
    // And the first write above it, which makes a layer.
    site.write(16, 30).unwrap();
    site.flush().unwrap();
    for moment in before..=site.recorder.moment() {
        site.lose_power_variously(moment, 23, 1);
    }
}

#[test]
fn a_merge_can_be_interrupted_at_each_step() {
    // Down, then up: into the layer that holds more.
    for lower_is_larger in [true, false] {
        let site = layered();
        site.write(0, if lower_is_larger { 80 } else { 16 })
            .unwrap();
        site.point().unwrap();
        site.unmap(8, 8).unwrap();
        site.write(4, if lower_is_larger { 8 } else { 100 })
            .unwrap();
        site.point().unwrap();
        site.write(0, 2).unwrap();
        site.flush().unwrap();
        let before = site.recorder.moment();
        drop_first(&site);
        for moment in before..=site.recorder.moment() {
            site.lose_power_variously(moment, 29, 0);
        }
        site.read_kept().unwrap();
    }
}

#[test]
fn a_layer_that_a_branch_links_in_the_middle_of_a_merge_is_as_the_branch_needs_it() {
    let site = with_two_points();
    // All is copied, nobody says so yet.
    site.interrupt(
        |op, name| is_sync_of(op, name, "data"),
        |site| site.branch(1).unwrap(),
    );
    drop_first(&site);
    site.recorder.clear_hook();
    site.read_kept().unwrap();
    // And whatever its source does from here on.
    site.write(0, 200).unwrap();
    let (points, _) = site.live();
    let ids: Vec<_> = points.iter().map(|point| site.id_of(*point)).collect();
    let overlay = site.disk();
    site.give_up(&points, || overlay.drop_points(&ids)).unwrap();
    site.read_kept().unwrap();
}

#[test]
fn a_branch_of_a_point_that_is_taken_away_meanwhile_is_refused_and_leaves_nothing() {
    for linked in ["point", "live", "map.1"] {
        let site = with_two_points();
        site.interrupt(
            move |op, name| matches!(op, Op::Names(_)) && name == linked,
            drop_first,
        );
        let dir = site.home.path().join("late");
        let (source, id) = (site.home.path().join("ov"), site.id_of(0));
        let made = branch(&site.files, &source, id, &dir, OverlayMode::Keep, 1);
        site.recorder.clear_hook();
        assert!(
            matches!(made, Err(OpenError::NoPoint { .. })),
            "linking {linked}: {made:?}"
        );
        assert!(!dir.exists() && !site.home.path().join("late.new").exists());
        site.read_kept().unwrap();
    }
}
