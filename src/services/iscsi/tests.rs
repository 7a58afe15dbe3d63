//! Claims about boot generations and overlays, through [`Targets`] alone and,
//! where sessions must end, over a socket.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;

use disk::overlay::Caching;

use super::*;
use crate::inventory::OverlayMode::{self, Keep, Reset};
use crate::inventory::{Image, MachineChange, Name};
use crate::services::tests::{Lab, Script, login, read, write};

/// A lab with one image (every byte 1) and one machine.
fn lab(mode: OverlayMode) -> (Lab, Machine) {
    let lab = Lab::new();
    lab.image("debian", 1);
    let pc = lab.machine("pc1", 1, "debian", mode);
    (lab, pc)
}

fn generation(script: &Script) -> u64 {
    inventory::parse_chap_name(&script.chap_name).unwrap().1
}

/// Where the machine's overlay above `image` lies.
fn directory(lab: &Lab, machine: &Machine, image: &str) -> PathBuf {
    let overlay = lab.inventory().overlay_of(machine.id, image).unwrap();
    lab.inventory().overlay_directory(overlay.unwrap().uuid)
}

/// Why the login was refused, in words.
fn refusal(lab: &Lab, script: &Script) -> String {
    match lab.log_in(script) {
        Err(LoginRefusal::TargetError(words)) => words,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was let in"),
    }
}

#[test]
fn fetching_a_script_twice_gives_the_same_generation_and_secret() {
    let (lab, pc) = lab(Reset);
    assert_eq!(lab.fetch(&pc), lab.fetch(&pc));
}

#[test]
fn the_old_secret_is_void_after_the_switch() {
    let (lab, pc) = lab(Reset);
    let (old, session) = lab.boot(&pc);
    drop(session);
    let (new, _session) = lab.boot(&pc);
    assert_eq!(generation(&new), generation(&old) + 1);
    assert!(matches!(
        lab.log_in(&old),
        Err(LoginRefusal::AuthenticationFailure)
    ));
    // Also of a login that had proved it just before the switch.
    let late = login(&old.target, Some(&old.chap_name));
    assert!(matches!(
        lab.disks().open(&late),
        Err(LoginRefusal::AuthenticationFailure)
    ));
    assert!(lab.told(&pc, Stage::Refused)[0].contains("generation 1, which is over"));
}

#[test]
fn a_wrong_secret_is_in_the_timeline_of_the_machine_it_was_meant_for() {
    let (lab, pc) = lab(Reset);
    let script = lab.fetch(&pc);
    let asking = login(&script.target, None);
    let refuse = |name: &str, status| {
        let refused = Refused {
            status,
            claimed_name: Some(name),
            reason: "wrong CHAP secret",
        };
        lab.disks().refused(&asking, &refused);
    };
    refuse(&script.chap_name, LoginStatus::OUT_OF_RESOURCES);
    refuse("pc1.99", LoginStatus::AUTHENTICATION_FAILURE);
    refuse("pc2.1", LoginStatus::AUTHENTICATION_FAILURE);
    assert_eq!(lab.told(&pc, Stage::Refused), Vec::<String>::new());
    refuse(&script.chap_name, LoginStatus::AUTHENTICATION_FAILURE);
    assert_eq!(
        lab.told(&pc, Stage::Refused),
        ["login of boot generation 1: wrong CHAP secret"]
    );
}

#[test]
fn a_generation_nobody_prepared_has_no_secret() {
    let (lab, pc) = lab(Reset);
    let (mut script, _session) = lab.boot(&pc);
    for chap_name in ["pc1.0", "pc1.2", "pc1.99", "pc2.1", "pc1", ""] {
        script.chap_name = chap_name.into();
        assert!(lab.log_in(&script).is_err(), "{chap_name}");
    }
}

#[test]
fn fetching_a_running_machines_script_leaves_its_disk_and_secret_as_they_are() {
    let (lab, pc) = lab(Reset);
    let (running, session) = lab.boot(&pc);
    write(&session, 3, 7);
    let next = lab.fetch(&pc);
    assert_ne!(next.secret, running.secret);
    write(&session, 4, 8);
    let again = lab.log_in(&running).unwrap_or_else(|why| panic!("{why:?}"));
    assert_eq!((read(&again, 3), read(&again, 4)), (7, 8));
}

#[test]
fn a_reset_overlay_starts_afresh_at_the_switch_and_not_before() {
    let (mut lab, pc) = lab(Reset);
    let (script, session) = lab.boot(&pc);
    write(&session, 3, 7);
    // Not at a further login of its generation, nor after a restart.
    let second = lab.log_in(&script).unwrap_or_else(|why| panic!("{why:?}"));
    assert_eq!(read(&second, 3), 7);
    drop((session, second));
    lab.restart();
    let session = lab.log_in(&script).unwrap_or_else(|why| panic!("{why:?}"));
    assert_eq!(read(&session, 3), 7);
    drop(session);
    let (_, session) = lab.boot(&pc);
    assert_eq!(read(&session, 3), 1);
}

#[test]
fn a_keep_overlay_lives_on_over_boots_and_restarts() {
    let (mut lab, pc) = lab(Keep);
    let (_, session) = lab.boot(&pc);
    write(&session, 3, 7);
    drop(session);
    let (_, session) = lab.boot(&pc);
    assert_eq!(read(&session, 3), 7);
    write(&session, 4, 8);
    drop(session);
    lab.restart();
    let (_, session) = lab.boot(&pc);
    assert_eq!((read(&session, 3), read(&session, 4)), (7, 8));
    assert!(lab.told(&pc, Stage::OverlayPrepared)[0].contains("its writes kept"));
}

#[test]
fn a_keep_machine_stays_on_its_version_and_a_reset_machine_moves() {
    let (lab, kept) = lab(Keep);
    let reset = lab.machine("pc2", 2, "debian", Reset);
    drop((lab.boot(&kept), lab.boot(&reset)));
    lab.image("debian", 2);
    assert_eq!(read(&lab.boot(&kept).1, 0), 1);
    assert_eq!(read(&lab.boot(&reset).1, 0), 2);
    let overlay = lab.inventory().overlay_of(reset.id, "debian").unwrap();
    assert_eq!(overlay.unwrap().version, 2);
}

#[test]
fn two_machines_never_see_each_others_writes_and_the_image_stays() {
    let (lab, pc1) = lab(Keep);
    let pc2 = lab.machine("pc2", 2, "debian", Reset);
    let image = lab.inventory().images()[0].disk_path();
    let before = fs::read(&image).unwrap();
    let ((_, one), (_, two)) = (lab.boot(&pc1), lab.boot(&pc2));
    write(&one, 3, 7);
    write(&two, 4, 8);
    assert_eq!((read(&one, 3), read(&one, 4)), (7, 1));
    assert_eq!((read(&two, 3), read(&two, 4)), (1, 8));
    assert_eq!(fs::read(&image).unwrap(), before);
}

#[test]
fn another_machines_chap_name_cannot_open_this_target() {
    let (lab, pc1) = lab(Reset);
    let pc2 = lab.machine("pc2", 2, "debian", Reset);
    let (own, other) = (lab.fetch(&pc1), lab.fetch(&pc2));
    let crossed = Script {
        target: own.target.clone(),
        ..other.clone()
    };
    assert!(lab.log_in(&crossed).is_err());
    // Nor where CHAP had been proved without the target's being looked at.
    let proved = login(&own.target, Some(&other.chap_name));
    assert!(matches!(
        lab.disks().open(&proved),
        Err(LoginRefusal::AuthorizationFailure)
    ));
}

#[test]
fn discovery_shows_a_machine_its_own_target_and_a_stranger_none() {
    let (lab, pc) = lab(Reset);
    lab.machine("pc2", 2, "debian", Reset);
    let script = lab.fetch(&pc);
    let mut asking = login("", Some(&script.chap_name));
    asking.target = None;
    assert!(
        lab.disks()
            .chap_secret(&asking, &script.chap_name)
            .is_some()
    );
    assert_eq!(lab.disks().discover(&asking), [script.target]);
    asking.chap_name = None;
    assert!(lab.disks().discover(&asking).is_empty());
}

#[test]
fn an_assignment_changed_while_running_counts_from_the_next_boot() {
    let (mut lab, pc) = lab(Reset);
    lab.image("other", 9);
    let (script, session) = lab.boot(&pc);
    write(&session, 3, 7);
    lab.assign(&pc, "other", Keep);
    assert_eq!(read(&session, 3), 7);
    drop(session);
    lab.restart();
    let session = lab.log_in(&script).unwrap_or_else(|why| panic!("{why:?}"));
    assert_eq!((read(&session, 0), read(&session, 3)), (1, 7));
    drop(session);
    assert_eq!(read(&lab.boot(&pc).1, 3), 9);
}

#[test]
fn a_kept_overlay_survives_that_its_machine_boots_another_image() {
    let (lab, pc) = lab(Keep);
    lab.image("other", 9);
    write(&lab.boot(&pc).1, 3, 7);
    lab.assign(&pc, "other", Reset);
    assert_eq!(read(&lab.boot(&pc).1, 3), 9);
    lab.assign(&pc, "debian", Keep);
    assert_eq!(read(&lab.boot(&pc).1, 3), 7);
}

#[test]
fn a_mode_given_counts_from_the_next_boot() {
    let (lab, pc) = lab(Keep);
    write(&lab.boot(&pc).1, 3, 7);
    lab.assign(&pc, "debian", Reset);
    assert_eq!(read(&lab.boot(&pc).1, 3), 1);
    lab.assign(&pc, "debian", Keep);
    write(&lab.boot(&pc).1, 3, 8);
    assert_eq!(read(&lab.boot(&pc).1, 3), 8);
}

#[test]
fn an_idle_disk_is_closed_and_opened_again_without_loss() {
    let (lab, pc) = lab(Reset);
    let (script, session) = lab.boot(&pc);
    write(&session, 3, 7);
    let now = Instant::now();
    let is_open = || lock(&lab.disks().slot(pc.id)).open.is_some();
    // In use it stays open, however long.
    lab.disks().tend(now);
    lab.disks().tend(now + 2 * IDLE_BEFORE_CLOSE);
    assert!(is_open() && lab.disks().is_in_use(pc.id));
    drop(session);
    lab.disks().tend(now + 2 * IDLE_BEFORE_CLOSE);
    assert!(is_open() && !lab.disks().is_in_use(pc.id));
    lab.disks().tend(now + 3 * IDLE_BEFORE_CLOSE);
    assert!(!is_open());
    let session = lab.log_in(&script).unwrap_or_else(|why| panic!("{why:?}"));
    assert_eq!(read(&session, 3), 7);
}

#[test]
fn a_login_between_two_looks_begins_the_idle_time_anew() {
    let (lab, pc) = lab(Reset);
    let (script, session) = lab.boot(&pc);
    drop(session);
    let now = Instant::now();
    lab.disks().tend(now);
    drop(lab.log_in(&script));
    lab.disks().tend(now + IDLE_BEFORE_CLOSE);
    assert!(lock(&lab.disks().slot(pc.id)).open.is_some());
}

#[test]
fn two_logins_of_one_prepared_generation_share_one_disk() {
    let (lab, pc) = lab(Reset);
    let script = lab.fetch(&pc);
    let logins: Vec<Attachment> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| lab.log_in(&script).ok().unwrap()))
            .collect();
        running.into_iter().map(|r| r.join().unwrap()).collect()
    });
    assert!(
        logins
            .iter()
            .all(|other| Arc::ptr_eq(&other.target, &logins[0].target))
    );
    assert_eq!(lab.told(&pc, Stage::OverlayPrepared).len(), 1);
}

#[test]
fn a_machine_whose_disk_is_being_opened_holds_up_no_other() {
    let (lab, pc1) = lab(Reset);
    let pc2 = lab.machine("pc2", 2, "debian", Reset);
    let slot = lab.disks().slot(pc1.id);
    let _opening = lock(&slot);
    lab.disks().tend(Instant::now());
    assert_eq!(read(&lab.boot(&pc2).1, 0), 1);
    // Nor does it wait for ever itself, on a thread that others need.
    assert!(matches!(
        lab.log_in(&lab.fetch(&pc1)),
        Err(LoginRefusal::ServiceUnavailable)
    ));
}

#[test]
fn who_merges_layers_hears_that_a_login_waits() {
    let (lab, pc) = lab(Reset);
    let slot = lab.disks().slot(pc.id);
    let merging = lock(&slot);
    assert!(lab.disks().is_nobody_waiting());
    let script = lab.fetch(&pc);
    std::thread::scope(|scope| {
        let login = scope.spawn(|| lab.log_in(&script).map(|_| ()));
        while lab.disks().is_nobody_waiting() {
            assert!(!login.is_finished(), "it did not wait");
            std::thread::yield_now();
        }
        drop(merging);
        assert!(login.join().is_ok_and(|answer| answer.is_ok()));
    });
    assert!(lab.disks().is_nobody_waiting());
}

/// Switches the overlay as a program does that then dies before it notes so in
/// the store.
fn cut_short(lab: &Lab, pc: &Machine, image: &Image, mode: OverlayMode, generation: u64) {
    let directory = directory(lab, pc, "debian");
    let golden: SharedDisk =
        Arc::new(disk::image::open(&image.directory, &image.base_id(), Arc::default()).unwrap());
    let overlay = disk::Overlay::restart(
        &directory,
        golden,
        image.base_id(),
        mode,
        generation,
        Caching::WriteBack,
    );
    drop(overlay.unwrap());
}

#[test]
fn a_switch_cut_short_is_made_good_by_the_same_login() {
    let (mut lab, pc) = lab(Reset);
    let image = lab.inventory().images()[0].clone();
    let (old, session) = lab.boot(&pc);
    write(&session, 3, 7);
    drop(session);
    let script = lab.fetch(&pc);
    lab.restart();
    cut_short(&lab, &pc, &image, Reset, generation(&script));
    // The old generation's disk is gone, and nothing else is given for it.
    assert!(refusal(&lab, &old).contains("there is no overlay of boot generation 1"));
    let session = lab.log_in(&script).unwrap_or_else(|why| panic!("{why:?}"));
    assert_eq!(read(&session, 3), 1);
    assert_eq!(lab.inventory().generations(pc.id).unwrap().current, 2);
}

#[test]
fn a_kept_overlay_switched_before_a_crash_keeps_its_writes() {
    let (mut lab, pc) = lab(Keep);
    let image = lab.inventory().images()[0].clone();
    let (_, session) = lab.boot(&pc);
    write(&session, 3, 7);
    drop(session);
    let script = lab.fetch(&pc);
    lab.restart();
    let golden: SharedDisk =
        Arc::new(disk::image::open(&image.directory, &image.base_id(), Arc::default()).unwrap());
    let at = directory(&lab, &pc, "debian");
    let overlay = disk::Overlay::open(&at, golden, image.base_id(), Caching::WriteBack).unwrap();
    drop(overlay.switch(generation(&script)).unwrap());
    drop(overlay);
    let session = lab.log_in(&script).unwrap_or_else(|why| panic!("{why:?}"));
    assert_eq!(read(&session, 3), 7);
}

#[test]
fn a_change_of_mode_cut_short_leaves_the_mode_that_is_assigned() {
    for (before, cut, after) in [
        (Reset, Keep, Keep),
        (Reset, Keep, Reset),
        (Keep, Reset, Keep),
        (Keep, Reset, Reset),
    ] {
        let (mut lab, pc) = lab(before);
        drop(lab.boot(&pc));
        // To another version also, which the fact does not know yet.
        let image = lab.image("debian", 2);
        lab.assign(&pc, "debian", cut);
        let script = lab.fetch(&pc);
        lab.restart();
        cut_short(&lab, &pc, &image, cut, generation(&script));
        lab.assign(&pc, "debian", after);
        let session = lab.log_in(&script).unwrap_or_else(|why| panic!("{why:?}"));
        assert_eq!(read(&session, 3), 2);
        write(&session, 3, 7);
        drop(session);
        let fact = lab
            .inventory()
            .overlay_of(pc.id, "debian")
            .unwrap()
            .unwrap();
        assert_eq!((fact.version, fact.mode), (2, after));
        let lives_on = read(&lab.boot(&pc).1, 3) == 7;
        assert_eq!(lives_on, after == Keep, "{before:?}, {cut:?}, {after:?}");
    }
}

#[test]
fn an_overlay_put_down_and_never_made_is_made_by_the_same_login() {
    let (lab, pc) = lab(Keep);
    let script = lab.fetch(&pc);
    let image = lab.inventory().images()[0].clone();
    lab.inventory().add_overlay(pc.id, &image, Keep).unwrap();
    let session = lab.log_in(&script).unwrap_or_else(|why| panic!("{why:?}"));
    assert_eq!(read(&session, 3), 1);
}

#[test]
fn a_kept_overlay_whose_files_are_gone_is_refused_until_it_is_given_up() {
    let (mut lab, pc) = lab(Keep);
    write(&lab.boot(&pc).1, 3, 7);
    lab.restart();
    let at = directory(&lab, &pc, "debian");
    let elsewhere = at.with_extension("elsewhere");
    fs::rename(&at, &elsewhere).unwrap();
    let script = lab.fetch(&pc);
    let words = refusal(&lab, &script);
    assert!(
        words.contains("the kept overlay of pc1 cannot be opened"),
        "{words}"
    );
    assert!(words.contains("diskless overlay remove"), "{words}");
    assert!(!lab.told(&pc, Stage::Problem).is_empty());
    assert!(!at.exists());
    // Put back, it serves again.
    fs::rename(&elsewhere, &at).unwrap();
    let session = lab.log_in(&script).unwrap_or_else(|why| panic!("{why:?}"));
    assert_eq!(read(&session, 3), 7);
    drop(session);
    // Given up, the machine begins afresh.
    lab.disks().while_closed(&pc, &mut || {});
    let fact = lab
        .inventory()
        .overlay_of(pc.id, "debian")
        .unwrap()
        .unwrap();
    lab.inventory().remove_overlay(fact.uuid).unwrap();
    assert_eq!(read(&lab.boot(&pc).1, 3), 1);
}

#[test]
fn a_kept_overlay_that_cannot_be_read_is_left_as_it_is() {
    let (mut lab, pc) = lab(Keep);
    drop(lab.boot(&pc));
    lab.restart();
    let at = directory(&lab, &pc, "debian");
    for head in ["head.a", "head.b"] {
        fs::write(at.join(head), b"nothing").unwrap();
    }
    let words = refusal(&lab, &lab.fetch(&pc));
    assert!(words.contains("no valid head"), "{words}");
    assert_eq!(fs::read(at.join("head.a")).unwrap(), b"nothing");
}

#[test]
fn a_reset_overlay_that_cannot_be_read_costs_no_boot() {
    let (mut lab, pc) = lab(Reset);
    for broken in [true, false] {
        drop(lab.boot(&pc));
        lab.restart();
        let at = directory(&lab, &pc, "debian");
        if broken {
            fs::write(at.join("head.a"), b"nothing").unwrap();
            fs::write(at.join("head.b"), b"nothing").unwrap();
        } else {
            fs::remove_dir_all(&at).unwrap();
        }
        assert_eq!(read(&lab.boot(&pc).1, 3), 1);
    }
}

#[test]
fn a_kept_overlay_whose_image_is_gone_is_refused_with_its_name() {
    let (mut lab, pc) = lab(Keep);
    let image = lab.inventory().images()[0].clone();
    drop(lab.boot(&pc));
    lab.image("debian", 2);
    fs::rename(&image.directory, lab.files().join("v001")).unwrap();
    lab.restart();
    let words = refusal(&lab, &lab.fetch(&pc));
    assert!(
        words.contains("the kept overlay of pc1 lies on a version of image debian"),
        "{words}"
    );
}

#[test]
fn a_boot_that_cannot_be_served_leaves_the_running_disk_open() {
    let (lab, pc) = lab(Reset);
    let (script, session) = lab.boot(&pc);
    write(&session, 3, 7);
    let image = lab.image("debian", 2);
    fs::remove_file(image.disk_path()).unwrap();
    let words = refusal(&lab, &lab.fetch(&pc));
    assert!(words.contains("opening image debian@2"), "{words}");
    write(&session, 4, 8);
    let again = lab.log_in(&script).unwrap_or_else(|why| panic!("{why:?}"));
    assert_eq!((read(&again, 3), read(&again, 4)), (7, 8));
}

/// Makes the overlay's marks those of another boot of the kernel.
fn lose_the_host(lab: &Lab, pc: &Machine) {
    let live = directory(lab, pc, "debian").join("000/live");
    let mut marks = fs::read(&live).unwrap();
    marks[24] ^= 1;
    fs::write(&live, marks).unwrap();
}

#[test]
fn a_disk_at_rest_when_the_host_is_lost_costs_no_boot() {
    for at_rest in [true, false] {
        let (mut lab, pc) = lab(Keep);
        let (script, session) = lab.boot(&pc);
        write(&session, 3, 7);
        let now = Instant::now();
        lab.disks().tend(now);
        if at_rest {
            lab.disks().tend(now + QUIET_BEFORE_SETTLE);
        }
        drop(session);
        lab.restart();
        lose_the_host(&lab, &pc);
        let again = lab.log_in(&script);
        assert_eq!(again.is_ok(), at_rest);
        if let Ok(session) = again {
            assert_eq!(read(&session, 3), 7);
        }
    }
}

#[test]
fn a_fact_that_is_behind_costs_no_kept_write() {
    let (mut lab, pc) = lab(Keep);
    write(&lab.boot(&pc).1, 3, 7);
    lab.restart();
    // As a state.db from a backup may say.
    let fact = lab
        .inventory()
        .overlay_of(pc.id, "debian")
        .unwrap()
        .unwrap();
    lab.inventory().set_overlay(fact.uuid, 1, Reset).unwrap();
    assert_eq!(read(&lab.boot(&pc).1, 3), 7);
    let fact = lab
        .inventory()
        .overlay_of(pc.id, "debian")
        .unwrap()
        .unwrap();
    assert_eq!(fact.mode, Keep);
}

#[test]
fn a_generation_that_lost_writes_with_the_host_must_boot_again() {
    let (mut lab, pc) = lab(Reset);
    let (script, session) = lab.boot(&pc);
    write(&session, 3, 7);
    drop(session);
    lab.restart();
    lose_the_host(&lab, &pc);
    for _ in 0..2 {
        let words = refusal(&lab, &script);
        assert!(words.contains("the machine must boot again"), "{words}");
    }
    assert_eq!(read(&lab.boot(&pc).1, 3), 1);
}

#[test]
fn two_overlays_of_one_generation_are_not_guessed_between() {
    let (mut lab, pc) = lab(Keep);
    lab.image("other", 9);
    let image = lab
        .inventory()
        .image(&inventory::ImageRef::parse("debian").unwrap());
    drop(lab.boot(&pc));
    let script = lab.fetch(&pc);
    lab.restart();
    cut_short(&lab, &pc, &image.unwrap(), Keep, generation(&script));
    lab.assign(&pc, "other", Keep);
    drop(lab.log_in(&script).unwrap_or_else(|why| panic!("{why:?}")));
    lab.restart();
    assert!(refusal(&lab, &script).contains("more than one overlay"));
    assert_eq!(read(&lab.boot(&pc).1, 3), 9);
}

#[test]
fn a_machine_renamed_or_removed_meanwhile_is_not_let_in() {
    let (lab, pc) = lab(Reset);
    let (script, session) = lab.boot(&pc);
    drop(session);
    let change = MachineChange {
        name: Some(Name::parse("pc9").unwrap()),
        ..MachineChange::default()
    };
    let pc = lab.inventory().set_machine(pc.id, change).unwrap();
    assert!(lab.log_in(&script).is_err());
    let (script, session) = lab.boot(&pc);
    assert_eq!(script.chap_name, "pc9.2");
    drop(session);
    lab.disks().while_closed(&pc, &mut || {});
    lab.inventory().remove_machine(pc.id).unwrap();
    assert!(lab.log_in(&script).is_err());
}

#[test]
fn an_overlay_that_was_removed_is_not_shared_any_more() {
    let (lab, pc) = lab(Keep);
    let (script, session) = lab.boot(&pc);
    drop(session);
    let fact = lab
        .inventory()
        .overlay_of(pc.id, "debian")
        .unwrap()
        .unwrap();
    lab.inventory().remove_overlay(fact.uuid).unwrap();
    assert!(refusal(&lab, &script).contains("there is no overlay of boot generation"));
}

#[test]
fn closing_a_machines_disk_lets_its_generation_in_again() {
    let (lab, pc) = lab(Keep);
    let (script, session) = lab.boot(&pc);
    write(&session, 3, 7);
    drop(session);
    lab.disks().while_closed(&pc, &mut || {});
    assert!(!lab.disks().is_in_use(pc.id));
    let session = lab.log_in(&script).unwrap_or_else(|why| panic!("{why:?}"));
    assert_eq!(read(&session, 3), 7);
    drop(session);
    lab.disks().close_all();
    let session = lab.log_in(&script).unwrap_or_else(|why| panic!("{why:?}"));
    assert_eq!(read(&session, 3), 7);
}

/// Takes the initiator's name for the CHAP name it has proved, so that a test
/// needs no CHAP of its own.
struct Trusting(Arc<MachineDisks>);

impl Targets for Trusting {
    fn serving(&self, sessions: Sessions) {
        self.0.serving(sessions);
    }

    fn authentication(&self, _login: &Login) -> Authentication {
        Authentication::None
    }

    fn chap_secret(&self, _login: &Login, _chap_name: &str) -> Option<ChapSecrets> {
        None
    }

    fn open(&self, login: &Login) -> Result<Attachment, LoginRefusal> {
        let mut login = login.clone();
        login.chap_name = login.initiator.strip_prefix("iqn.2026-11.").map(Into::into);
        self.0.open(&login)
    }

    fn discover(&self, _login: &Login) -> Vec<String> {
        Vec::new()
    }
}

/// Logs in over a socket without CHAP (RFC 7143 section 11.12); the status
/// class and the connection.
fn log_in_over(portal: SocketAddr, script: &Script, session: u8) -> (u8, TcpStream) {
    let keys = format!(
        "InitiatorName=iqn.2026-11.{}\0TargetName={}\0SessionType=Normal\0",
        script.chap_name, script.target
    );
    let mut pdu = vec![0; 48];
    pdu[0] = 0x43; // Login Request, immediate
    pdu[1] = 0x87; // T, operational negotiation to full feature phase
    pdu[5..8].copy_from_slice(&u32::try_from(keys.len()).unwrap().to_be_bytes()[1..]);
    pdu[8..14].copy_from_slice(&[0, 2, 0x3d, 0, 0, session]);
    pdu.extend_from_slice(keys.as_bytes());
    pdu.resize(pdu.len().next_multiple_of(4), 0);
    let mut stream = TcpStream::connect(portal).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream.write_all(&pdu).unwrap();
    let mut answer = [0; 48];
    stream.read_exact(&mut answer).unwrap();
    let text = u32::from_be_bytes([0, answer[5], answer[6], answer[7]]);
    let mut text = vec![0; usize::try_from(text).unwrap().next_multiple_of(4)];
    stream.read_exact(&mut text).unwrap();
    (answer[36], stream)
}

#[test]
fn the_first_login_of_a_prepared_generation_ends_the_old_ones_sessions() {
    let (lab, pc) = lab(Reset);
    let targets = Arc::new(Trusting(Arc::clone(lab.disks())));
    let portal = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = iscsi::Server::bind(&[portal], targets, iscsi::Limits::default()).unwrap();
    let portal = server.portals()[0];
    let old = lab.fetch(&pc);
    let (first, mut one) = log_in_over(portal, &old, 1);
    let (second, mut two) = log_in_over(portal, &old, 2);
    assert_eq!((first, second), (0, 0));
    assert_eq!(server.sessions().list().len(), 2);
    let new = lab.fetch(&pc);
    let (third, _three) = log_in_over(portal, &new, 3);
    assert_eq!(third, 0);
    // The server has closed both.
    assert_eq!(one.read(&mut [0; 48]).unwrap_or(0), 0);
    assert_eq!(two.read(&mut [0; 48]).unwrap_or(0), 0);
    let left: Vec<String> = server
        .sessions()
        .list()
        .into_iter()
        .map(|session| session.initiator)
        .collect();
    assert_eq!(left, [format!("iqn.2026-11.{}", new.chap_name)]);
    // Initiator error: the old generation is void.
    assert_eq!(log_in_over(portal, &old, 4).0, 2);
    // Closing the machine's disk ends the sessions that are left.
    lab.disks().while_closed(&pc, &mut || {});
    assert_eq!(server.sessions().list().len(), 0);
    server.shutdown(Duration::from_secs(1));
}
