//! Registrations and reservation as they are kept while no server runs
//! (APTPL, SPC-4 section 5.12.5): lines of text under a checksum.
//!
//! ```text
//! diskless-reservations 1
//! nexus 00000000deadbeef 400027235836 0 iqn.2026-01.test:one
//! held 5 0
//! crc32c 1f2e3d4c
//! ```
//! `nexus`: key, ISID, ALL_TG_PT, initiator name. `held`: type, and which
//! nexus (counted from 0) holds it, or `all`.

use std::fmt::Write;

use super::persistent::{Kind, MAX_REGISTRATIONS, Persistent, Registration, Reservation};
use super::transport_id::{emit_isid, name, parse_isid};
use crate::attention::NexusName;

const HEAD: &str = "diskless-reservations 1";
/// More than [`MAX_REGISTRATIONS`] lines of the longest names need.
pub(super) const MAX_SAVED_BYTES: usize = 128 << 10;

/// Writes what outlives the server: nothing at all when APTPL was not asked
/// for.
pub(super) fn emit(persistent: &Persistent) -> Vec<u8> {
    let mut text = format!("{HEAD}\n");
    if persistent.is_kept {
        for registration in &persistent.registrations {
            let _ = writeln!(
                text,
                "nexus {:016x} {} {} {}",
                registration.key,
                emit_isid(registration.nexus.isid),
                u8::from(registration.all_target_ports),
                registration.nexus.initiator
            );
        }
        if let Some(Reservation { kind, holder }) = &persistent.reservation {
            let all = &mut persistent.registrations.iter();
            let place = holder
                .as_ref()
                .and_then(|h| all.position(|r| r.nexus == *h));
            let place = place.map_or("all".to_owned(), |place| place.to_string());
            let _ = writeln!(text, "held {} {place}", kind.code());
        }
    }
    let _ = writeln!(text, "crc32c {:08x}", crc32c::crc32c(text.as_bytes()));
    text.into_bytes()
}

/// Reads it. The generation begins anew, as after a loss of power.
pub(super) fn parse(saved: &[u8]) -> Result<Persistent, String> {
    if saved.len() > MAX_SAVED_BYTES {
        return Err(format!("{} bytes are too many", saved.len()));
    }
    let text = str::from_utf8(saved).map_err(|_| "not a text".to_owned())?;
    let body_bytes = text.rfind("crc32c ").ok_or("no checksum at the end")?;
    let (body, tail) = text.split_at(body_bytes);
    let sum = tail
        .strip_prefix("crc32c ")
        .and_then(|t| t.strip_suffix('\n'));
    let sum = sum.and_then(|sum| u32::from_str_radix(sum, 16).ok());
    if sum != Some(crc32c::crc32c(body.as_bytes())) {
        return Err("the checksum does not match".to_owned());
    }
    let mut lines = body.lines();
    match lines.next() {
        Some(HEAD) => {}
        head => {
            let head = head.unwrap_or_default();
            return Err(format!("begins with \"{head}\" and not with \"{HEAD}\""));
        }
    }
    let mut persistent = Persistent::default();
    for line in lines {
        read_line(&mut persistent, line).ok_or_else(|| format!("cannot read \"{line}\""))?;
    }
    persistent.is_kept = !persistent.registrations.is_empty();
    Ok(persistent)
}

fn read_line(persistent: &mut Persistent, line: &str) -> Option<()> {
    let words: Vec<&str> = line.split(' ').collect();
    let all = &mut persistent.registrations;
    match words[..] {
        ["nexus", key, isid, all_target_ports, initiator] => {
            let registration = Registration {
                nexus: NexusName {
                    initiator: name(initiator)?,
                    isid: parse_isid(isid)?,
                },
                key: u64::from_str_radix(key, 16).ok().filter(|key| *key != 0)?,
                all_target_ports: match all_target_ports {
                    "0" => false,
                    "1" => true,
                    _ => return None,
                },
            };
            let is_new = all.iter().all(|r| r.nexus != registration.nexus);
            if !is_new || all.len() == MAX_REGISTRATIONS || persistent.reservation.is_some() {
                return None;
            }
            all.push(registration);
        }
        ["held", kind, place] if persistent.reservation.is_none() => {
            let kind = Kind::parse(kind.parse().ok()?)?;
            let holder = match place {
                "all" => None,
                place => Some(all.get(place.parse::<usize>().ok()?)?.nexus.clone()),
            };
            if holder.is_none() != kind.is_of_all_registrants() || all.is_empty() {
                return None;
            }
            persistent.reservation = Some(Reservation { kind, holder });
        }
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state(count: u8, kind: Option<usize>) -> Persistent {
        let registrations: Vec<_> = (0..count)
            .map(|n| Registration {
                nexus: NexusName {
                    initiator: format!("iqn.2026-01.test:{n}"),
                    isid: [0x80, 0, 0, 0, 1, n],
                },
                key: u64::from(n) + 1,
                all_target_ports: n.is_multiple_of(2),
            })
            .collect();
        let reservation = kind.map(|kind| {
            let kind = Kind::ALL[kind].1;
            let last = registrations.last().unwrap().nexus.clone();
            Reservation {
                kind,
                holder: (!kind.is_of_all_registrants()).then_some(last),
            }
        });
        Persistent {
            generation: 0,
            registrations,
            reservation,
            is_kept: true,
        }
    }

    #[test]
    fn what_is_written_is_read_for_every_type() {
        for kind in [None, Some(0), Some(1), Some(2), Some(3), Some(4), Some(5)] {
            for count in [1, 3] {
                let state = state(count, kind);
                assert_eq!(parse(&emit(&state)), Ok(state));
            }
        }
    }

    #[test]
    fn what_is_not_to_be_kept_leaves_nothing() {
        let state = Persistent {
            is_kept: false,
            ..state(3, Some(0))
        };
        assert_eq!(parse(&emit(&state)), Ok(Persistent::default()));
    }

    #[test]
    fn as_many_nexuses_with_the_longest_names_as_there_may_be_fit() {
        let mut long = state(1, None);
        for n in 1..MAX_REGISTRATIONS {
            let mut other = long.registrations[0].clone();
            other.nexus.initiator = format!("{n:0>223}");
            long.registrations.push(other);
        }
        let saved = emit(&long);
        assert_eq!(parse(&saved), Ok(long));
    }

    #[test]
    fn a_name_with_letters_outside_ascii_comes_back_as_it_was() {
        let mut state = state(1, None);
        state.registrations[0].nexus.initiator = "iqn.2026-01.test:É".to_owned();
        assert_eq!(parse(&emit(&state)), Ok(state));
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let saved = emit(&state(2, Some(1)));
        for at in 0..saved.len() - 1 {
            let mut broken = saved.clone();
            broken[at] ^= 1;
            assert!(parse(&broken).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_newer_version_is_not_guessed_at() {
        let mut text = "diskless-reservations 2\n".to_owned();
        let sum = crc32c::crc32c(text.as_bytes());
        text.push_str(&format!("crc32c {sum:08x}\n"));
        let error = parse(text.as_bytes()).unwrap_err();
        assert!(error.contains("diskless-reservations 2"), "{error}");
    }

    proptest! {
        #[test]
        fn no_lines_make_the_parser_panic(
            lines in proptest::collection::vec(
                "nexus [0-9a-f]{1,17} [0-9a-f]{11,13} [012] [a-z]{1,3}|held [0-9] ([0-9]|all)|[ -~]*",
                0..6,
            ),
        ) {
            let mut text = format!("{HEAD}\n{}\n", lines.join("\n"));
            let sum = crc32c::crc32c(text.as_bytes());
            text.push_str(&format!("crc32c {sum:08x}\n"));
            if let Ok(state) = parse(text.as_bytes()) {
                prop_assert_eq!(parse(&emit(&state)), Ok(state));
            }
        }
    }
}
