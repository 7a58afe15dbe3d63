//! The CDBs and parameter lists of PERSISTENT RESERVE IN and OUT, RESERVE and
//! RELEASE (SPC-4 sections 6.15 and 6.16, SPC-2 sections 7.21 to 7.24).

use super::persistent::{Change, Kind};
use super::transport_id::TransportId;
use crate::Sense;

/// Parameter list of every service action without TransportIDs.
const PLAIN_LIST_BYTES: u32 = 24;
/// Longest parameter list: a few dozen TransportIDs.
const MAX_LIST_BYTES: u32 = 4096;
/// The one target port a unit has here, as VPD page 83h says.
pub(super) const TARGET_PORT: u16 = 1;

/// A command about reservations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservationCommand {
    /// RESERVE(6) or (10).
    Reserve,
    /// RELEASE(6) or (10).
    Release,
    /// PERSISTENT RESERVE IN.
    In {
        /// What is asked for.
        asked: Asked,
        /// Allocation length.
        allocation: u16,
    },
    /// PERSISTENT RESERVE OUT.
    Out {
        /// What is to be done.
        action: Action,
        /// TYPE; of no meaning to some actions.
        kind: u8,
        /// Parameter list length.
        list_bytes: u32,
    },
}

/// The service actions of PERSISTENT RESERVE IN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// READ KEYS.
    Keys,
    /// READ RESERVATION.
    Reservation,
    /// REPORT CAPABILITIES.
    Capabilities,
    /// READ FULL STATUS.
    FullStatus,
}

/// The service actions of PERSISTENT RESERVE OUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// REGISTER.
    Register,
    /// RESERVE.
    Reserve,
    /// RELEASE.
    Release,
    /// CLEAR.
    Clear,
    /// PREEMPT.
    Preempt,
    /// PREEMPT AND ABORT.
    PreemptAndAbort,
    /// REGISTER AND IGNORE EXISTING KEY.
    RegisterAndIgnore,
    /// REGISTER AND MOVE.
    Move,
}

impl ReservationCommand {
    /// Whether it ends tasks of others (PREEMPT AND ABORT).
    pub(crate) fn ends_tasks(self) -> bool {
        let aborts = Action::PreemptAndAbort;
        matches!(self, ReservationCommand::Out { action, .. } if action == aborts)
    }

    /// Parses a CDB, padded with zeros, of one of their operation codes.
    pub(crate) fn parse(cdb: &[u8; 16]) -> Result<ReservationCommand, Sense> {
        match cdb[0] {
            0x16 | 0x17 | 0x56 | 0x57 => {
                // Third parties, extents and long identifiers are obsolete.
                if cdb[1] & 0x1f != 0 {
                    return Err(Sense::invalid_cdb_field(1, 4));
                }
                let is_ten = cdb[0] >= 0x56;
                if is_ten && cdb[7..9] != [0; 2] {
                    return Err(Sense::invalid_cdb_field(7, 7));
                }
                Ok(match cdb[0] & 1 {
                    0 => ReservationCommand::Reserve,
                    _ => ReservationCommand::Release,
                })
            }
            0x5e => Ok(ReservationCommand::In {
                asked: match cdb[1] & 0x1f {
                    0 => Asked::Keys,
                    1 => Asked::Reservation,
                    2 => Asked::Capabilities,
                    3 => Asked::FullStatus,
                    _ => return Err(Sense::invalid_cdb_field(1, 4)),
                },
                allocation: u16::from_be_bytes([cdb[7], cdb[8]]),
            }),
            0x5f => parse_out(cdb),
            _ => Err(Sense::INVALID_OPCODE),
        }
    }
}

fn parse_out(cdb: &[u8; 16]) -> Result<ReservationCommand, Sense> {
    let action = match cdb[1] & 0x1f {
        0 => Action::Register,
        1 => Action::Reserve,
        2 => Action::Release,
        3 => Action::Clear,
        4 => Action::Preempt,
        5 => Action::PreemptAndAbort,
        6 => Action::RegisterAndIgnore,
        7 => Action::Move,
        _ => return Err(Sense::invalid_cdb_field(1, 4)),
    };
    let has_kind = matches!(
        action,
        Action::Reserve | Action::Release | Action::Preempt | Action::PreemptAndAbort
    );
    if has_kind && cdb[2] >> 4 != 0 {
        return Err(Sense::invalid_cdb_field(2, 7)); // SCOPE: the unit as a whole
    }
    if has_kind && Kind::parse(cdb[2] & 0x0f).is_none() {
        return Err(Sense::invalid_cdb_field(2, 3));
    }
    let list_bytes = u32::from_be_bytes([cdb[5], cdb[6], cdb[7], cdb[8]]);
    let fits = match action {
        Action::Register => (PLAIN_LIST_BYTES..=MAX_LIST_BYTES).contains(&list_bytes),
        Action::Move => (PLAIN_LIST_BYTES + 1..=MAX_LIST_BYTES).contains(&list_bytes),
        _ => list_bytes == PLAIN_LIST_BYTES,
    };
    match fits {
        true => Ok(ReservationCommand::Out {
            action,
            kind: cdb[2] & 0x0f,
            list_bytes,
        }),
        false => Err(Sense::PARAMETER_LIST_LENGTH_ERROR),
    }
}

impl Change {
    /// Reads the parameter list that came with an action.
    pub(super) fn parse(action: Action, kind: u8, list: &[u8]) -> Result<Change, Sense> {
        let (head, rest) = list
            .split_first_chunk::<24>()
            .ok_or(Sense::PARAMETER_LIST_LENGTH_ERROR)?;
        let kind = Kind::parse(kind).ok_or(Sense::invalid_cdb_field(2, 3));
        let key = u64_at(head, 0);
        let action_key = u64_at(head, 8);
        let flags = head[20];
        let is_kept = flags & 0x01 != 0; // APTPL
        let all_target_ports = flags & 0x04 != 0; // ALL_TG_PT
        let specifies_ports = flags & 0x08 != 0; // SPEC_I_PT
        if action == Action::Move {
            return parse_move(head, rest);
        }
        if specifies_ports && action != Action::Register {
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST);
        }
        Ok(match action {
            Action::Register => Change::Register {
                key,
                new_key: action_key,
                others: match (specifies_ports, rest) {
                    (true, rest) => Some(parse_ports(rest)?),
                    (false, []) => None,
                    (false, _) => return Err(Sense::PARAMETER_LIST_LENGTH_ERROR),
                },
                all_target_ports,
                is_kept,
            },
            Action::RegisterAndIgnore => Change::RegisterAndIgnore {
                new_key: action_key,
                all_target_ports,
                is_kept,
            },
            Action::Reserve => Change::Reserve { key, kind: kind? },
            Action::Release => Change::Release { key, kind: kind? },
            Action::Clear => Change::Clear { key },
            Action::Preempt | Action::PreemptAndAbort => Change::Preempt {
                key,
                victim: action_key,
                kind: kind?,
                aborts: action == Action::PreemptAndAbort,
            },
            Action::Move => return Err(Sense::INTERNAL_TARGET_FAILURE),
        })
    }

    /// What the initiator wants of APTPL, when it says so.
    pub(super) fn is_kept(&self) -> Option<bool> {
        match self {
            Change::Register { is_kept, .. }
            | Change::RegisterAndIgnore { is_kept, .. }
            | Change::Move { is_kept, .. } => Some(*is_kept),
            _ => None,
        }
    }
}

/// The list of SPEC_I_PT.
fn parse_ports(list: &[u8]) -> Result<Vec<TransportId>, Sense> {
    let (length, mut rest) = list
        .split_first_chunk::<4>()
        .ok_or(Sense::PARAMETER_LIST_LENGTH_ERROR)?;
    if usize::try_from(u32::from_be_bytes(*length)) != Ok(rest.len()) {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    }
    let mut ports = Vec::new();
    while !rest.is_empty() {
        let (port, after) = TransportId::parse(rest)?;
        ports.push(port);
        rest = after;
    }
    Ok(ports)
}

fn parse_move(head: &[u8; 24], rest: &[u8]) -> Result<Change, Sense> {
    let id_bytes = u32::from_be_bytes([head[20], head[21], head[22], head[23]]);
    if usize::try_from(id_bytes) != Ok(rest.len()) {
        return Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
    }
    // A reservation moves to one port, and there is one port to reach it by.
    let (TransportId::Port(to), []) = TransportId::parse(rest)? else {
        return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST);
    };
    if u16::from_be_bytes([head[18], head[19]]) != TARGET_PORT {
        return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST);
    }
    Ok(Change::Move {
        key: u64_at(head, 0),
        new_key: u64_at(head, 8),
        to,
        unregisters: head[17] & 0x02 != 0,
        is_kept: head[17] & 0x01 != 0,
    })
}

fn u64_at(list: &[u8; 24], at: usize) -> u64 {
    let bytes = list.iter().skip(at).take(8);
    bytes.fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn out(action: u8, scope_and_kind: u8, list_bytes: u8) -> Result<ReservationCommand, Sense> {
        let mut cdb = [0u8; 16];
        (cdb[0], cdb[1], cdb[2], cdb[8]) = (0x5f, action, scope_and_kind, list_bytes);
        ReservationCommand::parse(&cdb)
    }

    #[test]
    fn an_action_has_exactly_its_list() {
        for action in 1..7 {
            assert!(out(action, 1, 24).is_ok(), "{action}");
            let error = Err(Sense::PARAMETER_LIST_LENGTH_ERROR);
            assert_eq!((out(action, 1, 23), out(action, 1, 25)), (error, error));
        }
    }

    #[test]
    fn scope_and_type_matter_only_where_something_is_reserved() {
        for action in [1, 2, 4, 5] {
            assert!(out(action, 0x11, 24).is_err(), "{action}"); // another scope
            assert!(out(action, 0x02, 24).is_err(), "{action}"); // an obsolete type
        }
        for action in [0, 3, 6] {
            assert!(out(action, 0xff, 24).is_ok(), "{action}");
        }
    }

    #[test]
    fn ports_are_specified_for_register_alone() {
        let mut list = vec![0u8; 24];
        list[20] = 0x08;
        let refused = Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST);
        assert_eq!(Change::parse(Action::RegisterAndIgnore, 0, &list), refused);
        assert_eq!(Change::parse(Action::Clear, 0, &list), refused);
        list.extend_from_slice(&[0; 4]);
        let register = Change::parse(Action::Register, 0, &list).unwrap();
        assert!(
            matches!(register, Change::Register { others: Some(ports), .. } if ports.is_empty())
        );
    }

    #[test]
    fn a_list_of_ports_that_lies_about_its_length_is_refused() {
        let mut list = vec![0u8; 28];
        list[20] = 0x08;
        list[27] = 4;
        assert_eq!(
            Change::parse(Action::Register, 0, &list),
            Err(Sense::PARAMETER_LIST_LENGTH_ERROR)
        );
    }

    #[test]
    fn a_reservation_moves_to_a_port_that_has_a_name() {
        let mut list = vec![0u8; 24];
        list[19] = 1;
        let id = [&[0x45, 0, 0, 28][..], b"iqn.a:b,i,0x400027235836\0\0\0\0"].concat();
        list[23] = u8::try_from(id.len()).unwrap();
        list.extend_from_slice(&id);
        let change = Change::parse(Action::Move, 0, &list).unwrap();
        assert!(matches!(&change, Change::Move { to, .. } if to.initiator == "iqn.a:b"));
        list[19] = 2;
        assert!(
            Change::parse(Action::Move, 0, &list).is_err(),
            "no such port"
        );
    }

    proptest! {
        #[test]
        fn no_list_makes_the_parser_panic(
            list in proptest::collection::vec(any::<u8>(), 0..200),
            action in 0u8..8,
        ) {
            if let Ok(ReservationCommand::Out { action, kind, .. }) = out(action, 1, 24) {
                let _ = Change::parse(action, kind, &list);
            }
            let _ = Change::parse(Action::Move, 0, &list);
        }
    }
}
