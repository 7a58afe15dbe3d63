//! The data of PERSISTENT RESERVE IN (SPC-4 section 6.15).

use super::command::{Asked, TARGET_PORT};
use super::persistent::{Kind, Persistent};
use super::transport_id;

/// Answers a service action. `can_keep`: whether APTPL is supported.
pub(super) fn answer(persistent: &Persistent, asked: Asked, can_keep: bool) -> Vec<u8> {
    match asked {
        Asked::Keys => {
            let keys = persistent.registrations.iter().map(|r| r.key.to_be_bytes());
            listed(persistent, &keys.collect::<Vec<_>>().concat())
        }
        Asked::Reservation => listed(persistent, &reservation(persistent)),
        Asked::Capabilities => capabilities(persistent, can_keep).to_vec(),
        Asked::FullStatus => {
            let all = &persistent.registrations;
            let status = all.iter().map(|r| {
                let is_holder = persistent.is_holder(&r.nexus);
                let id = transport_id::emit(&r.nexus);
                let mut data = vec![0u8; 24];
                data[..8].copy_from_slice(&r.key.to_be_bytes());
                data[12] = u8::from(r.all_target_ports) << 1 | u8::from(is_holder); // R_HOLDER
                let kind = persistent.reservation.as_ref().filter(|_| is_holder);
                data[13] = kind.map_or(0, |r| r.kind.code()); // scope 0, type
                data[18..20].copy_from_slice(&TARGET_PORT.to_be_bytes());
                let id_bytes = u32::try_from(id.len()).unwrap_or(u32::MAX);
                data[20..24].copy_from_slice(&id_bytes.to_be_bytes());
                data.extend_from_slice(&id);
                data
            });
            listed(persistent, &status.collect::<Vec<_>>().concat())
        }
    }
}

/// PRGENERATION and ADDITIONAL LENGTH before `body`.
fn listed(persistent: &Persistent, body: &[u8]) -> Vec<u8> {
    let body_bytes = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut data = persistent.generation.to_be_bytes().to_vec();
    data.extend_from_slice(&body_bytes.to_be_bytes());
    data.extend_from_slice(body);
    data
}

/// Nothing, or the one reservation there is. Held by all, it has key 0.
fn reservation(persistent: &Persistent) -> Vec<u8> {
    let Some(reservation) = &persistent.reservation else {
        return vec![];
    };
    let holder = reservation.holder.as_ref();
    let key = holder.and_then(|holder| persistent.key_of(holder));
    let mut body = vec![0u8; 16];
    body[..8].copy_from_slice(&key.unwrap_or(0).to_be_bytes());
    body[13] = reservation.kind.code(); // scope 0, type
    body
}

fn capabilities(persistent: &Persistent, can_keep: bool) -> [u8; 8] {
    let mut data = [0, 8, 0, 0x80, 0, 0, 0, 0]; // length; TMV
    data[2] = 0x1c | u8::from(can_keep); // CRH, SIP_C, ATP_C; PTPL_C
    data[3] |= u8::from(persistent.is_kept); // PTPL_A
    for (code, _) in Kind::ALL {
        match code {
            8 => data[5] |= 1,
            code => data[4] |= 1 << code,
        }
    }
    data
}

#[cfg(test)]
mod tests {
    use super::super::persistent::{Registration, Reservation};
    use super::*;
    use crate::attention::NexusName;

    fn nexus() -> NexusName {
        NexusName {
            initiator: "iqn.a:b".to_owned(),
            isid: [0x40, 0x00, 0x27, 0x23, 0x58, 0x36],
        }
    }

    fn registered(kind: Kind) -> Persistent {
        let holder = (!kind.is_of_all_registrants()).then(nexus);
        Persistent {
            generation: 7,
            registrations: vec![Registration {
                nexus: nexus(),
                key: 0xabcd,
                all_target_ports: false,
            }],
            reservation: Some(Reservation { kind, holder }),
            is_kept: false,
        }
    }

    #[test]
    fn capabilities_name_all_six_types() {
        let none = Persistent::default();
        assert_eq!(
            answer(&none, Asked::Capabilities, false),
            [0x00, 0x08, 0x1c, 0x80, 0xea, 0x01, 0x00, 0x00]
        );
        let kept = Persistent {
            is_kept: true,
            ..none
        };
        assert_eq!(answer(&kept, Asked::Capabilities, true)[2..4], [0x1d, 0x81]);
    }

    #[test]
    fn keys_and_reservation_carry_the_generation() {
        let state = registered(Kind::ExclusiveAccess);
        let keys = [0, 0, 0, 7, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0xab, 0xcd];
        assert_eq!(answer(&state, Asked::Keys, false), keys);
        let reservation = answer(&state, Asked::Reservation, false);
        assert_eq!(reservation[4..8], [0, 0, 0, 16]);
        assert_eq!(reservation[8..16], 0xabcdu64.to_be_bytes());
        assert_eq!(reservation[21], 3);
    }

    #[test]
    fn a_reservation_of_all_registrants_has_key_0() {
        let state = registered(Kind::WriteExclusiveAllRegistrants);
        assert_eq!(answer(&state, Asked::Reservation, false)[8..16], [0; 8]);
    }

    #[test]
    fn full_status_names_holder_port_and_initiator() {
        let data = answer(&registered(Kind::WriteExclusive), Asked::FullStatus, false);
        assert_eq!(data[4..8], [0, 0, 0, 24 + 32]);
        assert_eq!(data[20..22], [0x01, 0x01]); // R_HOLDER, type
        assert_eq!(data[26..28], [0, 1]);
        assert_eq!(data[28..32], [0, 0, 0, 32]);
        assert_eq!(data[32..], transport_id::emit(&nexus()));
    }
}
