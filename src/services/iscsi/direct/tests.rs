//! Claims about machines that write an own disk.

use std::fs;

use crate::inventory::{
    Assignment, DirectBoot, DiskFormat, Machine, MachineChange, Name, NewOwnDisk, OverlayMode,
    OwnDisk,
};
use crate::services::tests::{Lab, Script, disk, read, write};
use ::iscsi::LoginRefusal;

/// A lab with a machine and the own disk it boots.
fn lab() -> (Lab, Machine, OwnDisk) {
    let lab = Lab::new();
    lab.image("debian", 1);
    let pc = lab.machine("pc1", 1, "debian", OverlayMode::Keep);
    let own = own(&lab, "win");
    assign(&lab, &pc, &own);
    (lab, pc, own)
}

fn own(lab: &Lab, name: &str) -> OwnDisk {
    let new = NewOwnDisk {
        name: Name::parse(name).unwrap(),
        comment: String::new(),
    };
    let made = lab
        .inventory()
        .create_own_disk(new, DiskFormat::Raw, 1 << 20);
    made.unwrap()
}

fn assign(lab: &Lab, machine: &Machine, own: &OwnDisk) {
    let change = MachineChange {
        assignment: Some(Some(Assignment::Disk(own.id))),
        ..MachineChange::default()
    };
    lab.inventory().set_machine(machine.id, change).unwrap();
}

fn refusal(lab: &Lab, script: &Script) -> String {
    match lab.log_in(script) {
        Err(LoginRefusal::TargetError(words)) => words,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it was let in"),
    }
}

fn note(lab: &Lab, machine: &Machine) -> DirectBoot {
    lab.inventory().direct_boot(machine.id).unwrap().unwrap()
}

/// As if the host had gone down and come back.
fn lose_the_host(lab: &Lab, machine: &Machine) {
    let note = note(lab, machine);
    let lost = DirectBoot {
        unflushed_in: note.unflushed_in.map(|_| [7; 16]),
        ..note
    };
    lab.inventory().put_direct_boot(machine.id, &lost).unwrap();
}

#[test]
fn writes_live_on_over_boots_and_restarts_in_the_file_itself() {
    let (mut lab, pc, own) = lab();
    let (_, session) = lab.boot(&pc);
    write(&session, 3, 7);
    drop(session);
    let (script, session) = lab.boot(&pc);
    assert_eq!(read(&session, 3), 7);
    write(&session, 4, 8);
    drop(session);
    lab.restart();
    let session = lab.log_in(&script).unwrap_or_else(|why| panic!("{why:?}"));
    assert_eq!((read(&session, 3), read(&session, 4)), (7, 8));
    let bytes = fs::read(lab.inventory().own_disk_path(&own)).unwrap();
    assert_eq!((bytes[3 * 4096], bytes[4 * 4096]), (7, 8));
}

#[test]
fn a_disk_is_recognised_whichever_machine_boots_it() {
    let (lab, pc, own) = lab();
    let (_, session) = lab.boot(&pc);
    let identity = session.target.unit(0).unwrap().identity().clone();
    drop(session);
    let other = lab.machine("pc2", 2, "debian", OverlayMode::Keep);
    lab.assign(&pc, "debian", OverlayMode::Keep);
    assign(&lab, &other, &own);
    // The first machine's is still open, though nobody uses it.
    let (_, session) = lab.boot(&other);
    assert_eq!(*session.target.unit(0).unwrap().identity(), identity);
}

#[test]
fn a_disk_is_never_open_in_two_machines() {
    let (lab, pc, own) = lab();
    let (running, session) = lab.boot(&pc);
    let other = lab.machine("pc2", 2, "debian", OverlayMode::Keep);
    lab.assign(&pc, "debian", OverlayMode::Keep);
    assign(&lab, &other, &own);
    let script = lab.fetch(&other);
    let words = refusal(&lab, &script);
    assert!(words.contains("machine pc1"), "{words}");
    // The one that runs goes on until it is shut down, and then never again.
    write(&session, 1, 1);
    drop(session);
    lab.log_in(&script).unwrap_or_else(|why| panic!("{why:?}"));
    let words = refusal(&lab, &running);
    assert!(words.contains("must boot again"), "{words}");
}

#[test]
fn the_generation_that_runs_keeps_its_disk_whatever_is_assigned() {
    let (mut lab, pc, _) = lab();
    let (script, session) = lab.boot(&pc);
    write(&session, 3, 7);
    lab.assign(&pc, "debian", OverlayMode::Keep);
    drop(session);
    lab.restart();
    let session = lab.log_in(&script).unwrap_or_else(|why| panic!("{why:?}"));
    assert_eq!(read(&session, 3), 7);
    drop(session);
    let (_, session) = lab.boot(&pc);
    assert_eq!(read(&session, 3), 1, "the image");
}

#[test]
fn the_old_generation_is_void_after_the_switch() {
    let (lab, pc, _) = lab();
    let (old, session) = lab.boot(&pc);
    drop(session);
    let (_, _session) = lab.boot(&pc);
    assert!(matches!(
        lab.log_in(&old),
        Err(LoginRefusal::AuthenticationFailure)
    ));
}

#[test]
fn after_the_loss_of_the_host_unflushed_writes_end_the_generation() {
    let (mut lab, pc, _) = lab();
    let (script, session) = lab.boot(&pc);
    write(&session, 3, 7);
    drop(session);
    lab.restart();
    lose_the_host(&lab, &pc);
    let words = refusal(&lab, &script);
    assert!(words.contains("must boot again"), "{words}");
    let (_, session) = lab.boot(&pc);
    assert_eq!(read(&session, 3), 7, "here nothing was lost");
}

#[test]
fn after_the_loss_of_the_host_a_generation_at_rest_goes_on() {
    let (mut lab, pc, _) = lab();
    let (script, session) = lab.boot(&pc);
    write(&session, 3, 7);
    drop(session);
    lab.disks().close_all();
    lab.restart();
    lose_the_host(&lab, &pc);
    let session = lab.log_in(&script).unwrap_or_else(|why| panic!("{why:?}"));
    assert_eq!(read(&session, 3), 7);
}

#[test]
fn a_write_is_noted_before_it_is_answered_and_once_only() {
    let (lab, pc, _) = lab();
    let (_, session) = lab.boot(&pc);
    assert_eq!(note(&lab, &pc).unflushed_in, None);
    read(&session, 3);
    disk(&session).flush().unwrap();
    assert_eq!(note(&lab, &pc).unflushed_in, None);
    disk(&session).unmap(4096, 4096).unwrap();
    assert!(note(&lab, &pc).unflushed_in.is_some());
    lose_the_host(&lab, &pc);
    write(&session, 3, 7);
    assert_eq!(
        note(&lab, &pc).unflushed_in,
        Some([7; 16]),
        "not noted again"
    );
}

#[test]
fn a_disk_whose_file_is_away_is_said_before_anybody_is_hurt() {
    let (lab, pc, own) = lab();
    lab.assign(&pc, "debian", OverlayMode::Keep);
    let (_, session) = lab.boot(&pc);
    write(&session, 3, 7);
    assign(&lab, &pc, &own);
    let path = lab.inventory().own_disk_path(&own);
    let away = path.with_extension("away");
    fs::rename(&path, &away).unwrap();
    let script = lab.fetch(&pc);
    let words = refusal(&lab, &script);
    assert!(words.contains("win.raw"), "{words}");
    assert_eq!(read(&session, 3), 7);
    fs::rename(&away, &path).unwrap();
    drop(session);
    let (_, session) = lab.boot(&pc);
    assert_eq!(read(&session, 3), 0);
}

#[test]
fn an_own_disk_in_a_machines_hands_keeps_the_contract() {
    let (lab, pc, own) = lab();
    let own_disks = super::OwnDisks::new(std::sync::Arc::clone(&lab.site().inventory));
    disk::contract::Subject::new(|| {
        std::sync::Arc::new(own_disks.begin(&pc, &own, 1).unwrap()) as disk::SharedDisk
    })
    .check();
}
