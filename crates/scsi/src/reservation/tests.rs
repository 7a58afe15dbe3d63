//! Reservations as sessions meet them: through a unit.

use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::Duration;

use disk::Ram;

use super::*;
use crate::{Identity, LogicalUnit, Work};

fn unit() -> LogicalUnit {
    let disk = Ram::new(1 << 20);
    LogicalUnit::new(Arc::new(disk), Identity::new([7; 16], "TEST"))
}

fn name(n: u8) -> NexusName {
    NexusName {
        initiator: format!("iqn.2026-01.test:{n}"),
        isid: [0x80, 0, 0, 0, 0, 1],
    }
}

/// A nexus that has seen its first unit attention.
fn log_in(unit: &LogicalUnit, n: u8) -> Nexus {
    let nexus = unit.connect(&name(n));
    nexus.take();
    nexus
}

fn run(unit: &LogicalUnit, by: &Nexus, cdb: &[u8], list: &[u8]) -> Result<Vec<u8>, Refusal> {
    let work = unit.admit(by, cdb)?;
    unit.finish(by, &work, list, &AtomicBool::new(false))
}

fn out(
    unit: &LogicalUnit,
    by: &Nexus,
    action: u8,
    kind: u8,
    keys: (u64, u64),
    aptpl: u8,
) -> Result<(), Refusal> {
    let mut list = [0u8; 24];
    list[..8].copy_from_slice(&keys.0.to_be_bytes());
    list[8..16].copy_from_slice(&keys.1.to_be_bytes());
    list[20] = aptpl;
    run(unit, by, &[0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0], &list).map(drop)
}

const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
const EXCLUSIVE_ACCESS: u8 = 3;

const TEST_READY: &[u8] = &[0; 6];
const READ: &[u8] = &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
const MODE_SENSE: &[u8] = &[0x1a, 0, 0x3f, 0, 255, 0];
const INQUIRY: &[u8] = &[0x12, 0, 0, 0, 96, 0];
const READ_KEYS: &[u8] = &[0x5e, 0, 0, 0, 0, 0, 0, 1, 0, 0];
const RESERVE_6: &[u8] = &[0x16, 0, 0, 0, 0, 0];
const RELEASE_6: &[u8] = &[0x17, 0, 0, 0, 0, 0];
const CONFLICT: Refusal = Refusal::ReservationConflict;

#[test]
fn an_exclusive_reservation_lets_only_its_holder_read() {
    let unit = unit();
    let (one, two) = (log_in(&unit, 1), log_in(&unit, 2));
    out(&unit, &one, REGISTER, 0, (0, 7), 0).unwrap();
    out(&unit, &one, RESERVE, EXCLUSIVE_ACCESS, (7, 0), 0).unwrap();
    assert!(run(&unit, &one, READ, &[]).is_ok());
    assert_eq!(run(&unit, &two, READ, &[]), Err(CONFLICT));
    assert!(run(&unit, &two, INQUIRY, &[]).is_ok());
    assert!(run(&unit, &two, TEST_READY, &[]).is_ok());
    // Reservations come before the operation code, attentions before both.
    assert_eq!(run(&unit, &two, &[0xff; 10], &[]), Err(CONFLICT));
    let late = unit.connect(&name(3));
    assert_eq!(
        run(&unit, &late, READ, &[]),
        Err(Sense::RESET_OCCURRED.into())
    );
}

#[test]
fn a_persistent_reservation_survives_reset_and_a_new_session() {
    let unit = unit();
    let (one, two) = (log_in(&unit, 1), log_in(&unit, 2));
    out(&unit, &one, REGISTER, 0, (0, 7), 0).unwrap();
    out(&unit, &one, RESERVE, EXCLUSIVE_ACCESS, (7, 0), 0).unwrap();
    unit.reset();
    two.take();
    drop(one);
    assert_eq!(run(&unit, &two, READ, &[]), Err(CONFLICT));
    let again = log_in(&unit, 1);
    assert!(run(&unit, &again, READ, &[]).is_ok());
}

#[test]
fn who_is_preempted_hears_of_it() {
    let unit = unit();
    let (one, two) = (log_in(&unit, 1), log_in(&unit, 2));
    out(&unit, &one, REGISTER, 0, (0, 7), 0).unwrap();
    out(&unit, &two, REGISTER, 0, (0, 8), 0).unwrap();
    out(&unit, &two, PREEMPT, EXCLUSIVE_ACCESS, (8, 7), 0).unwrap();
    let told = run(&unit, &one, TEST_READY, &[]);
    assert_eq!(told, Err(Sense::REGISTRATIONS_PREEMPTED.into()));
    assert!(run(&unit, &two, TEST_READY, &[]).is_ok());
}

#[test]
fn reserve_6_shuts_out_all_but_a_few_commands() {
    let unit = unit();
    let (one, two) = (log_in(&unit, 1), log_in(&unit, 2));
    run(&unit, &one, RESERVE_6, &[]).unwrap();
    run(&unit, &one, RESERVE_6, &[]).unwrap();
    assert!(run(&unit, &one, READ, &[]).is_ok());
    for cdb in [TEST_READY, READ, MODE_SENSE, RESERVE_6, READ_KEYS] {
        assert_eq!(run(&unit, &two, cdb, &[]), Err(CONFLICT), "{:02x}", cdb[0]);
    }
    assert!(run(&unit, &two, INQUIRY, &[]).is_ok());
    run(&unit, &two, RELEASE_6, &[]).unwrap();
    assert_eq!(
        run(&unit, &two, READ, &[]),
        Err(CONFLICT),
        "not his to release"
    );
    assert_eq!(
        run(&unit, &one, READ_KEYS, &[]),
        Err(CONFLICT),
        "not even the holder"
    );
    run(&unit, &one, RELEASE_6, &[]).unwrap();
    assert!(run(&unit, &two, READ, &[]).is_ok());
}

#[test]
fn reserve_6_ends_with_its_session_and_with_a_reset() {
    let unit = unit();
    let two = log_in(&unit, 2);
    let one = log_in(&unit, 1);
    run(&unit, &one, RESERVE_6, &[]).unwrap();
    drop(one);
    assert!(
        run(&unit, &two, READ, &[]).is_ok(),
        "a session that is over"
    );
    let one = log_in(&unit, 1);
    run(&unit, &one, RESERVE_6, &[]).unwrap();
    let _again = log_in(&unit, 1);
    assert!(
        run(&unit, &two, READ, &[]).is_ok(),
        "one that was reinstated"
    );
    run(&unit, &one, RESERVE_6, &[]).unwrap();
    unit.reset();
    two.take();
    assert!(run(&unit, &two, READ, &[]).is_ok(), "a reset");
}

#[test]
fn reserve_6_and_registrations_exclude_each_other() {
    let unit = unit();
    let (one, two) = (log_in(&unit, 1), log_in(&unit, 2));
    out(&unit, &one, REGISTER, 0, (0, 7), 0).unwrap();
    assert_eq!(run(&unit, &two, RESERVE_6, &[]), Err(CONFLICT));
    assert_eq!(
        run(&unit, &one, RESERVE_6, &[]),
        Err(CONFLICT),
        "nothing is reserved"
    );
    out(&unit, &one, RESERVE, EXCLUSIVE_ACCESS, (7, 0), 0).unwrap();
    assert!(run(&unit, &one, RESERVE_6, &[]).is_ok(), "humoured");
    assert!(run(&unit, &one, RELEASE_6, &[]).is_ok());
    assert!(run(&unit, &one, READ_KEYS, &[]).is_ok(), "and nothing done");
}

/// A write that has been admitted and waits for its data.
fn admitted(unit: &LogicalUnit, by: &Nexus) -> Work {
    unit.admit(by, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0]).unwrap()
}

#[test]
fn preempt_and_abort_ends_the_tasks_of_its_victims_alone() {
    let unit = unit();
    let [one, two, three] = [1, 2, 3].map(|n| log_in(&unit, n));
    for (nexus, key) in [(&one, 7), (&two, 8), (&three, 9)] {
        out(&unit, nexus, REGISTER, 0, (0, key), 0).unwrap();
    }
    let works = [&one, &two, &three].map(|nexus| admitted(&unit, nexus));
    out(&unit, &two, PREEMPT, EXCLUSIVE_ACCESS, (8, 9), 0).unwrap();
    assert!(!unit.is_void(&three, &works[2]), "PREEMPT alone");
    out(&unit, &two, PREEMPT_AND_ABORT, EXCLUSIVE_ACCESS, (8, 7), 0).unwrap();
    assert!(unit.is_void(&one, &works[0]));
    assert!(!unit.is_void(&two, &works[1]));
    assert!(!unit.is_void(&three, &works[2]));
}

#[test]
fn preempt_and_abort_waits_for_a_write_that_has_begun() {
    let unit = &unit();
    let (one, two) = (log_in(unit, 1), log_in(unit, 2));
    out(unit, &one, REGISTER, 0, (0, 7), 0).unwrap();
    out(unit, &two, REGISTER, 0, (0, 8), 0).unwrap();
    let hold = one.hold();
    std::thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        scope.spawn(move || {
            out(unit, &two, PREEMPT_AND_ABORT, EXCLUSIVE_ACCESS, (8, 7), 0).unwrap();
            tell.send(()).unwrap();
        });
        // Too short a wait can only let a defect pass, never fail the test.
        assert!(told.recv_timeout(Duration::from_millis(100)).is_err());
        drop(hold);
        told.recv().unwrap();
    });
}

/// Keeps the last of what it is given; refuses when told to.
#[derive(Default)]
struct Shelf {
    saved: Mutex<Option<Vec<u8>>>,
    is_broken: AtomicBool,
}

impl ReservationKeeper for Shelf {
    fn save(&self, saved: &[u8]) -> Result<(), String> {
        if self.is_broken.load(Ordering::Relaxed) {
            return Err("broken".to_owned());
        }
        *lock(&self.saved) = Some(saved.to_vec());
        Ok(())
    }
}

#[test]
fn what_is_to_be_kept_is_there_when_the_unit_comes_back() {
    let shelf = Arc::new(Shelf::default());
    let first = unit();
    first.keep_reservations(shelf.clone(), None).unwrap();
    let one = log_in(&first, 1);
    out(&first, &one, REGISTER, 0, (0, 7), 1).unwrap();
    out(&first, &one, RESERVE, EXCLUSIVE_ACCESS, (7, 0), 0).unwrap();
    let saved = lock(&shelf.saved).clone();

    let second = unit();
    second
        .keep_reservations(shelf.clone(), saved.as_deref())
        .unwrap();
    let (one, two) = (log_in(&second, 1), log_in(&second, 2));
    assert_eq!(run(&second, &two, READ, &[]), Err(CONFLICT));
    assert!(run(&second, &one, READ, &[]).is_ok());
    // Not to be kept any longer: the next unit begins with nothing.
    out(&second, &one, REGISTER, 0, (7, 7), 0).unwrap();
    let saved = lock(&shelf.saved).clone();
    let third = unit();
    third.keep_reservations(shelf, saved.as_deref()).unwrap();
    assert!(run(&third, &log_in(&third, 2), READ, &[]).is_ok());
}

#[test]
fn what_cannot_be_kept_is_refused_and_not_done() {
    let shelf = Arc::new(Shelf::default());
    let unit = unit();
    unit.keep_reservations(shelf.clone(), None).unwrap();
    let one = log_in(&unit, 1);
    shelf.is_broken.store(true, Ordering::Relaxed);
    assert_eq!(
        out(&unit, &one, REGISTER, 0, (0, 7), 1),
        Err(Sense::INTERNAL_TARGET_FAILURE.into())
    );
    assert_eq!(run(&unit, &one, READ_KEYS, &[]), Ok(vec![0; 8]));
    assert!(
        out(&unit, &one, REGISTER, 0, (0, 7), 0).is_ok(),
        "without APTPL"
    );
}

#[test]
fn without_a_keeper_nothing_is_promised() {
    let unit = unit();
    let one = log_in(&unit, 1);
    assert_eq!(
        out(&unit, &one, REGISTER, 0, (0, 7), 1),
        Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.into())
    );
    let capabilities = run(&unit, &one, &[0x5e, 2, 0, 0, 0, 0, 0, 0, 8, 0], &[]).unwrap();
    assert_eq!(capabilities[2] & 1, 0, "PTPL_C");
}

#[test]
fn a_damaged_file_is_not_taken_for_an_empty_one() {
    let error = unit().keep_reservations(Arc::new(Shelf::default()), Some(b"nonsense"));
    assert!(error.is_err());
}

#[test]
fn a_reservation_that_was_called_off_is_not_made() {
    let unit = unit();
    let (one, two) = (log_in(&unit, 1), log_in(&unit, 2));
    let work = unit.admit(&one, RESERVE_6).unwrap();
    let called_off = AtomicBool::new(true);
    assert!(unit.finish(&one, &work, &[], &called_off).is_err());
    assert!(run(&unit, &two, READ, &[]).is_ok());
    let work = unit.admit(&one, RESERVE_6).unwrap();
    unit.reset();
    let never = AtomicBool::new(false);
    assert!(unit.finish(&one, &work, &[], &never).is_err());
    two.take();
    assert!(run(&unit, &two, READ, &[]).is_ok());
}

#[test]
fn while_ended_tasks_are_slow_to_end_others_still_change_reservations() {
    let unit = unit();
    let [one, two, three] = [1, 2, 3].map(|n| log_in(&unit, n));
    out(&unit, &one, REGISTER, 0, (0, 1), 0).unwrap();
    out(&unit, &two, REGISTER, 0, (0, 2), 0).unwrap();
    let (tell, told) = mpsc::channel();
    let on_the_disk = one.hold();
    std::thread::scope(|scope| {
        scope.spawn(|| out(&unit, &two, PREEMPT_AND_ABORT, 1, (2, 1), 0));
        while one.ended() == 0 {
            std::thread::yield_now();
        }
        let (unit, three) = (&unit, &three);
        scope.spawn(move || tell.send(out(unit, three, REGISTER, 0, (0, 3), 0)));
        let answer = told.recv_timeout(Duration::from_secs(20));
        drop(on_the_disk);
        assert_eq!(answer, Ok(Ok(())));
    });
}
