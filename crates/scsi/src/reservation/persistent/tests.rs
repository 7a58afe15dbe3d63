//! Persistent reservations by the tables of SPC-4, and against a model that
//! shares nothing with them.

use proptest::prelude::*;

use super::*;

fn nexus(n: usize) -> NexusName {
    NexusName {
        initiator: format!("iqn.2026-01.test:{n}"),
        isid: [0x80, 0, 0, 0, 0, 1],
    }
}

/// Nexuses 0 and 1 with keys 100 and 101.
fn two_registered() -> Persistent {
    let mut state = Persistent::default();
    for n in 0..2 {
        state = done(&state, n, &register(0, 100 + n as u64)).next;
    }
    state
}

/// The same, and nexus 0 has reserved.
fn reserved(kind: Kind) -> Persistent {
    let state = two_registered();
    done(&state, 0, &Change::Reserve { key: 100, kind }).next
}

fn register(key: u64, new_key: u64) -> Change {
    Change::Register {
        key,
        new_key,
        others: None,
        all_target_ports: false,
        is_kept: false,
    }
}

fn ignore(new_key: u64) -> Change {
    Change::RegisterAndIgnore {
        new_key,
        all_target_ports: false,
        is_kept: false,
    }
}

fn preempt(key: u64, victim: u64, kind: Kind) -> Change {
    Change::Preempt {
        key,
        victim,
        kind,
        aborts: false,
    }
}

fn done(state: &Persistent, by: usize, change: &Change) -> Outcome {
    state.changed(&nexus(by), change, &[]).unwrap()
}

fn refused(state: &Persistent, by: usize, change: &Change) -> Refusal {
    state.changed(&nexus(by), change, &[]).unwrap_err()
}

const CONFLICT: Refusal = Refusal::ReservationConflict;

#[test]
fn access_is_as_in_the_table() {
    // (type, registered reads, registered writes, stranger reads, stranger writes)
    let table = [
        (1, true, false, true, false),
        (3, false, false, false, false),
        (5, true, true, true, false),
        (6, true, true, false, false),
        (7, true, true, true, false),
        (8, true, true, false, false),
    ];
    for (code, registered_reads, registered_writes, stranger_reads, stranger_writes) in table {
        let state = reserved(Kind::parse(code).unwrap());
        let allows = |n: usize, class| state.allows(&nexus(n), class);
        for class in [Class::Read, Class::Write, Class::Free, Class::Always] {
            assert!(allows(0, class), "type {code}: the holder, {class:?}");
        }
        for who in 0..3 {
            assert!(allows(who, Class::Free) && allows(who, Class::Persistent));
        }
        assert_eq!(allows(1, Class::Read), registered_reads, "type {code}");
        assert_eq!(allows(1, Class::Write), registered_writes, "type {code}");
        assert_eq!(allows(2, Class::Read), stranger_reads, "type {code}");
        assert_eq!(allows(2, Class::Write), stranger_writes, "type {code}");
    }
}

#[test]
fn registrations_alone_keep_nobody_out() {
    let state = two_registered();
    assert!(state.allows(&nexus(2), Class::Write));
}

#[test]
fn reserve_6_is_humoured_for_those_who_have_access_by_registration() {
    for (code, kind) in Kind::ALL {
        let state = reserved(kind);
        assert!(state.humours(&nexus(0)), "type {code}: the holder");
        assert_eq!(state.humours(&nexus(1)), code >= 5, "type {code}");
        assert!(!state.humours(&nexus(2)), "type {code}: a stranger");
    }
    assert!(!two_registered().humours(&nexus(0)), "nothing is reserved");
}

#[test]
fn register_from_a_stranger_wants_key_0() {
    let state = Persistent::default();
    assert_eq!(refused(&state, 0, &register(5, 7)), CONFLICT);
    assert_eq!(done(&state, 0, &register(0, 0)).next, state);
    let next = done(&state, 0, &register(0, 7)).next;
    assert_eq!((next.key_of(&nexus(0)), next.generation), (Some(7), 1));
}

#[test]
fn register_again_wants_the_key_it_has() {
    let state = two_registered();
    assert_eq!(refused(&state, 0, &register(0, 7)), CONFLICT);
    assert_eq!(refused(&state, 0, &register(101, 7)), CONFLICT);
    let next = done(&state, 0, &register(100, 7)).next;
    assert_eq!(next.key_of(&nexus(0)), Some(7));
    let gone = done(&next, 0, &register(7, 0)).next;
    assert_eq!((gone.key_of(&nexus(0)), gone.generation), (None, 4));
}

#[test]
fn register_and_ignore_asks_for_no_key() {
    let state = two_registered();
    assert_eq!(done(&state, 0, &ignore(7)).next.key_of(&nexus(0)), Some(7));
    assert_eq!(done(&state, 0, &ignore(0)).next.key_of(&nexus(0)), None);
    assert_eq!(done(&state, 2, &ignore(9)).next.key_of(&nexus(2)), Some(9));
}

#[test]
fn whoever_is_not_registered_with_the_key_can_change_nothing() {
    let kind = Kind::WriteExclusive;
    let state = reserved(kind);
    for key in [0, 100, 101] {
        for change in [
            Change::Reserve { key, kind },
            Change::Release { key, kind },
            Change::Clear { key },
            preempt(key, 100, kind),
        ] {
            assert_eq!(refused(&state, 2, &change), CONFLICT, "{change:?}");
        }
    }
    assert_eq!(refused(&state, 1, &Change::Clear { key: 100 }), CONFLICT);
}

#[test]
fn a_reservation_is_taken_again_only_as_it_is() {
    for (code, kind) in Kind::ALL {
        let state = reserved(kind);
        let again = Change::Reserve { key: 100, kind };
        assert_eq!(done(&state, 0, &again).next, state, "type {code}");
        let other = Kind::ALL[usize::from(code == 1)].1;
        let change = Change::Reserve {
            key: 100,
            kind: other,
        };
        assert_eq!(refused(&state, 0, &change), CONFLICT, "type {code}");
        let from_1 = Change::Reserve { key: 101, kind };
        match kind.is_of_all_registrants() {
            true => assert_eq!(done(&state, 1, &from_1).next, state, "type {code}"),
            false => assert_eq!(refused(&state, 1, &from_1), CONFLICT, "type {code}"),
        }
    }
}

#[test]
fn release_tells_the_others_of_types_that_let_them_in() {
    for (code, kind) in Kind::ALL {
        let state = reserved(kind);
        let outcome = done(&state, 0, &Change::Release { key: 100, kind });
        assert_eq!(outcome.next.reservation, None);
        assert_eq!(outcome.next.generation, state.generation, "type {code}");
        let told = vec![(nexus(1), Sense::RESERVATIONS_RELEASED)];
        let expected = if code >= 5 { told } else { vec![] };
        assert_eq!(outcome.attentions, expected, "type {code}");
    }
}

#[test]
fn release_of_another_type_is_invalid_and_of_anothers_reservation_nothing() {
    let state = reserved(Kind::WriteExclusive);
    let kind = Kind::ExclusiveAccess;
    assert_eq!(
        refused(&state, 0, &Change::Release { key: 100, kind }),
        Sense::INVALID_RELEASE_OF_PERSISTENT_RESERVATION.into()
    );
    let outcome = done(&state, 1, &Change::Release { key: 101, kind });
    assert_eq!(outcome, Outcome::quiet(state));
}

#[test]
fn a_holder_that_unregisters_releases() {
    for (code, kind) in Kind::ALL {
        let outcome = done(&reserved(kind), 0, &register(100, 0));
        let is_released = outcome.next.reservation.is_none();
        assert_eq!(is_released, code < 7, "type {code}");
        let told = vec![(nexus(1), Sense::RESERVATIONS_RELEASED)];
        let expected = if [5, 6].contains(&code) { told } else { vec![] };
        assert_eq!(outcome.attentions, expected, "type {code}");
        let last = done(&outcome.next, 1, &register(101, 0)).next;
        assert_eq!((last.reservation, last.registrations), (None, vec![]));
    }
}

#[test]
fn clear_leaves_nothing_and_tells_the_others() {
    let outcome = done(
        &reserved(Kind::ExclusiveAccess),
        1,
        &Change::Clear { key: 101 },
    );
    assert_eq!(outcome.next.registrations, vec![]);
    assert_eq!(outcome.next.reservation, None);
    assert_eq!(outcome.next.generation, 3);
    let told = vec![(nexus(0), Sense::RESERVATIONS_PREEMPTED)];
    assert_eq!(outcome.attentions, told);
}

#[test]
fn preempting_the_holder_takes_the_reservation_over() {
    let state = reserved(Kind::WriteExclusive);
    let state = done(&state, 2, &register(0, 102)).next;
    let outcome = done(&state, 1, &preempt(101, 100, Kind::ExclusiveAccess));
    assert!(outcome.next.is_holder(&nexus(1)));
    assert_eq!(outcome.next.key_of(&nexus(0)), None);
    let told = vec![
        (nexus(0), Sense::REGISTRATIONS_PREEMPTED),
        (nexus(2), Sense::RESERVATIONS_RELEASED), // the type has changed
    ];
    assert_eq!(outcome.attentions, told);
    assert_eq!(outcome.next.generation, state.generation + 1);
}

#[test]
fn preempting_somebody_else_only_removes_its_registration() {
    let state = reserved(Kind::WriteExclusive);
    let outcome = done(&state, 0, &preempt(100, 101, Kind::ExclusiveAccess));
    assert_eq!(outcome.next.reservation, state.reservation);
    assert_eq!(outcome.next.key_of(&nexus(1)), None);
    let nobody = preempt(100, 999, Kind::WriteExclusive);
    assert_eq!(refused(&state, 0, &nobody), CONFLICT);
}

#[test]
fn preempting_key_0_means_all_registrants_or_nothing() {
    let kind = Kind::WriteExclusive;
    let refusal = refused(&reserved(kind), 1, &preempt(101, 0, kind));
    assert_eq!(refusal, Sense::INVALID_FIELD_IN_PARAMETER_LIST.into());
    let all = reserved(Kind::WriteExclusiveAllRegistrants);
    let outcome = done(&all, 1, &preempt(101, 0, kind));
    assert!(outcome.next.is_holder(&nexus(1)));
    assert_eq!(outcome.next.registrations.len(), 1);
}

#[test]
fn one_key_of_all_registrants_goes_without_the_reservation() {
    let all = reserved(Kind::ExclusiveAccessAllRegistrants);
    let outcome = done(&all, 1, &preempt(101, 100, Kind::WriteExclusive));
    assert_eq!(outcome.next.reservation, all.reservation);
    assert_eq!(outcome.next.key_of(&nexus(0)), None);
    let last = done(&outcome.next, 1, &preempt(101, 101, Kind::WriteExclusive));
    assert_eq!(last.next.reservation, None, "the last registrant has gone");
}

#[test]
fn a_holder_preempts_itself_and_stays() {
    let state = reserved(Kind::WriteExclusive);
    let outcome = done(&state, 0, &preempt(100, 100, Kind::ExclusiveAccess));
    assert!(outcome.next.is_holder(&nexus(0)));
    assert_eq!(outcome.next.key_of(&nexus(0)), Some(100));
    assert!(!outcome.next.allows(&nexus(1), Class::Read));
}

#[test]
fn only_preempt_and_abort_ends_tasks() {
    let kind = Kind::WriteExclusive;
    let state = reserved(kind);
    assert_eq!(done(&state, 1, &preempt(101, 100, kind)).ended, vec![]);
    let aborts = Change::Preempt {
        key: 101,
        victim: 100,
        kind,
        aborts: true,
    };
    assert_eq!(done(&state, 1, &aborts).ended, vec![nexus(0)]);
}

#[test]
fn ports_are_registered_together_or_not_at_all() {
    let with = |others: Vec<TransportId>| Change::Register {
        key: 0,
        new_key: 7,
        others: Some(others),
        all_target_ports: false,
        is_kept: false,
    };
    let state = two_registered();
    let next = done(
        &state,
        2,
        &with(vec![
            TransportId::Port(nexus(0)),
            TransportId::Port(nexus(3)),
        ]),
    )
    .next;
    assert_eq!(next.key_of(&nexus(0)), Some(100), "keeps its own key");
    assert_eq!(next.key_of(&nexus(2)), Some(7));
    assert_eq!(next.key_of(&nexus(3)), Some(7));
    assert_eq!(next.generation, state.generation + 1);
    let device = with(vec![TransportId::Device(nexus(3).initiator)]);
    assert_eq!(
        refused(&state, 2, &device),
        Sense::INVALID_FIELD_IN_PARAMETER_LIST.into(),
        "no port of it is known"
    );
    let known = state.changed(&nexus(2), &device, &[nexus(1), nexus(3)]);
    assert_eq!(known.unwrap().next.key_of(&nexus(3)), Some(7));
    assert_eq!(
        refused(
            &state,
            0,
            &Change::Register {
                key: 100,
                new_key: 7,
                others: Some(vec![]),
                all_target_ports: false,
                is_kept: false
            }
        ),
        Sense::INVALID_FIELD_IN_PARAMETER_LIST.into()
    );
}

#[test]
fn more_registrations_than_the_limit_are_refused() {
    let mut state = Persistent::default();
    for n in 0..MAX_REGISTRATIONS {
        state = done(&state, n, &ignore(1)).next;
    }
    let refusal = refused(&state, MAX_REGISTRATIONS, &ignore(1));
    assert_eq!(refusal, Sense::INSUFFICIENT_REGISTRATION_RESOURCES.into());
    assert!(state.changed(&nexus(0), &ignore(2), &[]).is_ok());
}

#[test]
fn a_holder_moves_its_reservation() {
    let moves = |unregisters| Change::Move {
        key: 100,
        new_key: 55,
        to: nexus(2),
        unregisters,
        is_kept: false,
    };
    let state = reserved(Kind::ExclusiveAccess);
    let next = done(&state, 0, &moves(false)).next;
    assert!(next.is_holder(&nexus(2)) && !next.is_holder(&nexus(0)));
    assert_eq!(next.key_of(&nexus(2)), Some(55));
    assert_eq!(next.key_of(&nexus(0)), Some(100));
    assert_eq!(done(&state, 0, &moves(true)).next.key_of(&nexus(0)), None);
    let all = reserved(Kind::ExclusiveAccessAllRegistrants);
    assert_eq!(refused(&all, 0, &moves(false)), CONFLICT);
    let to_itself = Change::Move {
        key: 100,
        new_key: 55,
        to: nexus(0),
        unregisters: false,
        is_kept: false,
    };
    assert_eq!(
        refused(&state, 0, &to_itself),
        Sense::INVALID_FIELD_IN_PARAMETER_LIST.into()
    );
    assert!(
        two_registered()
            .changed(&nexus(0), &moves(false), &[])
            .is_err()
    );
}

/// Three nexuses and one reservation, told anew: key 0 is no registration,
/// the holder is a number, 9 stands for all.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    keys: [u64; 3],
    kind: u8,
    holder: usize,
    generation: u32,
}

/// What the model was told to say.
#[derive(Debug, PartialEq)]
enum Said {
    Good,
    Conflict,
    BadList,
    BadRelease,
}

impl Model {
    /// What SPC-4 says of action `action` by `n`; attentions as (who, ASCQ).
    fn act(
        &mut self,
        n: usize,
        action: u8,
        rk: u64,
        sk: u64,
        kind: u8,
    ) -> (Said, Vec<(usize, u8)>) {
        let before = self.clone();
        let mine = before.keys[n];
        let others = |keys: [u64; 3]| (0..3).filter(move |m| *m != n && keys[*m] != 0);
        let tell = |keys, code: u8| others(keys).map(|m| (m, code)).collect::<Vec<_>>();
        let i_hold = before.kind != 0 && mine != 0 && (before.holder == n || before.holder == 9);
        if action != 0 && action != 6 && (mine == 0 || mine != rk) || action == 0 && mine != rk {
            return (Said::Conflict, vec![]);
        }
        match action {
            0 | 6 => {
                if mine != 0 || sk != 0 {
                    self.generation += 1;
                }
                self.keys[n] = sk;
                let alone = i_hold && before.holder == n;
                let last = before.holder == 9 && self.keys == [0; 3];
                if sk == 0 && before.kind != 0 && (alone || last) {
                    (self.kind, self.holder) = (0, 0);
                    if [5, 6].contains(&before.kind) {
                        return (Said::Good, tell(self.keys, 4));
                    }
                }
            }
            1 if before.kind == 0 => {
                (self.kind, self.holder) = (kind, if kind > 6 { 9 } else { n });
            }
            1 if i_hold && before.kind == kind => {}
            1 => return (Said::Conflict, vec![]),
            2 if !i_hold => {}
            2 if before.kind != kind => return (Said::BadRelease, vec![]),
            2 => {
                (self.kind, self.holder) = (0, 0);
                if kind >= 5 {
                    return (Said::Good, tell(self.keys, 4));
                }
            }
            3 => {
                *self = Model {
                    generation: before.generation + 1,
                    ..Model::default()
                };
                return (Said::Good, tell(before.keys, 3));
            }
            _ => {
                let of_all = before.kind != 0 && before.holder == 9;
                if sk == 0 && !of_all {
                    return (Said::BadList, vec![]);
                }
                let hits_holder = before.kind != 0 && !of_all && before.keys[before.holder] == sk;
                let takes = hits_holder || of_all && sk == 0;
                let mut told = vec![];
                for m in 0..3 {
                    let key = before.keys[m];
                    let hit = key != 0 && (key == sk || of_all && sk == 0);
                    if hit && !(takes && m == n) {
                        self.keys[m] = 0;
                        if m != n {
                            told.push((m, 5));
                        }
                    }
                }
                if !takes && self.keys == before.keys {
                    return (Said::Conflict, vec![]);
                }
                self.generation += 1;
                if takes {
                    if kind != before.kind {
                        told.extend(tell(self.keys, 4));
                    }
                    (self.kind, self.holder) = (kind, if kind > 6 { 9 } else { n });
                } else if self.keys == [0; 3] {
                    (self.kind, self.holder) = (0, 0);
                }
                told.sort_unstable();
                return (Said::Good, told);
            }
        }
        (Said::Good, vec![])
    }
}

/// What a state looks like to the model.
fn seen(state: &Persistent) -> Model {
    let number = |name: &NexusName| (0..3).find(|n| nexus(*n) == *name).unwrap();
    Model {
        keys: [0, 1, 2].map(|n| state.key_of(&nexus(n)).unwrap_or(0)),
        kind: state.reservation.as_ref().map_or(0, |r| r.kind.code()),
        holder: state
            .reservation
            .as_ref()
            .map_or(0, |r| r.holder.as_ref().map_or(9, number)),
        generation: state.generation,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn any_sequence_ends_as_the_model_says(
        steps in proptest::collection::vec(
            (0usize..3, 0u8..7, 0u64..3, 0u64..3, 0usize..6, any::<bool>()),
            1..60,
        ),
    ) {
        let mut state = Persistent::default();
        let mut model = Model::default();
        for (n, action, rk, sk, kind, knows_key) in steps {
            let (code, kind) = Kind::ALL[kind];
            // Often enough the right key, or little would ever happen.
            let rk = if knows_key { model.keys[n] } else { rk };
            let change = match action {
                0 => register(rk, sk),
                1 => Change::Reserve { key: rk, kind },
                2 => Change::Release { key: rk, kind },
                3 => Change::Clear { key: rk },
                4 | 5 => Change::Preempt { key: rk, victim: sk, kind, aborts: action == 5 },
                _ => ignore(sk),
            };
            let (said, told) = model.act(n, action, rk, sk, code);
            let result = state.changed(&nexus(n), &change, &[]);
            let (got_said, mut got_told) = match result {
                Ok(outcome) => {
                    state = outcome.next;
                    let number = |name: &NexusName| (0..3).find(|n| nexus(*n) == *name).unwrap();
                    let told = outcome.attentions.iter().map(|(name, s)| (number(name), s.ascq));
                    (Said::Good, told.collect::<Vec<_>>())
                }
                Err(CONFLICT) => (Said::Conflict, vec![]),
                Err(Refusal::CheckCondition(Sense { ascq: 0x04, .. })) => (Said::BadRelease, vec![]),
                Err(_) => (Said::BadList, vec![]),
            };
            got_told.sort_unstable();
            prop_assert_eq!((got_said, got_told), (said, told), "{:?} by {}", change, n);
            prop_assert_eq!(seen(&state), model.clone(), "{:?} by {}", change, n);
        }
    }
}
