//! RFC 7143 sections 4.2.2.1 and 11.17: command numbering, and what is rejected.

use super::*;
use crate::wire::is_before;

#[test]
fn commands_outside_the_window_are_ignored_and_a_hole_breaks_the_session() {
    let mut lab = Lab::new();
    let right = lab.cmd_sn;
    for wrong in [right.wrapping_sub(1), right.wrapping_add(100)] {
        lab.cmd_sn = wrong;
        assert!(lab.command(&[0; 6], 0, 0x80, &[]).is_empty(), "{wrong}");
    }
    lab.cmd_sn = right;
    assert!(lab.command(&[0; 6], 0, 0x80, &[])[0].is_good());
    lab.cmd_sn = lab.cmd_sn.wrapping_add(1);
    let request = lab.request(&[0; 6], 0, 0x80);
    assert!(matches!(lab.send(&request, &[]), Next::Broken(_)));
}

#[test]
fn the_window_closes_as_tasks_wait_and_never_shrinks() {
    let mut lab = Lab::new();
    let mut highest = None;
    for n in 0..8u32 {
        let heard = lab.command(&write10(0, 16), 8192, 0xa0, &[]);
        let h = &heard[0];
        assert_eq!(h.opcode, 0x31);
        if let Some(highest) = highest {
            assert!(!is_before(h.max_cmd_sn, highest));
        }
        highest = Some(h.max_cmd_sn);
        let room = h.max_cmd_sn.wrapping_sub(h.exp_cmd_sn).wrapping_add(1);
        assert!(room <= 8 - n, "{room} free with {n} tasks waiting");
    }
    // Full: one more is outside the window.
    assert!(lab.command(&[0; 6], 0, 0x80, &[]).is_empty());
}

#[test]
fn a_tag_in_use_is_rejected_and_leaves_no_hole() {
    let mut lab = Lab::new();
    lab.command(&write10(0, 16), 8192, 0xa0, &[]);
    let Request::ScsiCommand(mut again) = lab.request(&[0; 6], 0, 0x80) else {
        unreachable!();
    };
    again.itt = again.itt.wrapping_sub(1);
    lab.send(&Request::ScsiCommand(again), &[]);
    let heard = lab.heard();
    assert_eq!(
        (heard[0].opcode, heard[0].bytes[0]),
        (0x3f, reason::TASK_IN_PROGRESS)
    );
    assert_eq!(heard[0].data.len(), BHS_BYTES);
    assert!(lab.command(&[0; 6], 0, 0x80, &[])[0].is_good());
}

#[test]
fn a_discovery_session_takes_no_commands() {
    let mut lab = Lab::on(None, Parameters::default());
    let heard = lab.command(&[0; 6], 0, 0x80, &[]);
    assert_eq!(
        (heard[0].opcode, heard[0].bytes[0]),
        (0x3f, reason::PROTOCOL_ERROR)
    );
}

#[test]
fn an_unknown_opcode_is_rejected_and_leaves_no_hole() {
    let mut lab = Lab::new();
    let mut bhs = [0; BHS_BYTES];
    bhs[0] = 0x1c;
    bhs[24..28].copy_from_slice(&lab.cmd_sn.to_be_bytes());
    assert_eq!(
        lab.session
            .receive(lab.units, &bhs, Data::Intact(&[]), &mut lab.out),
        Next::Continue
    );
    lab.cmd_sn = lab.cmd_sn.wrapping_add(1);
    let heard = lab.heard();
    assert_eq!(heard[0].bytes[0], reason::COMMAND_NOT_SUPPORTED);
    assert_eq!(heard[0].data, bhs);
    assert!(lab.command(&[0; 6], 0, 0x80, &[])[0].is_good());
}

fn arbitrary_request() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let header = proptest::collection::vec(any::<u8>(), BHS_BYTES);
    let data = proptest::collection::vec(any::<u8>(), 0..600);
    (header, data)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Mostly well-numbered garbage, so that it gets somewhere.
    #[test]
    fn no_sequence_of_pdus_makes_a_session_panic(
        pdus in proptest::collection::vec((arbitrary_request(), 0u8..8, 0u32..4, any::<bool>()), 0..60),
    ) {
        let mut lab = Lab::new();
        for ((header, data), opcode, tag, numbered) in pdus {
            let mut bhs: Bhs = header.try_into().unwrap();
            bhs[0] = (bhs[0] & 0x40) | opcode;
            bhs[8..16].fill(0);
            bhs[16..20].copy_from_slice(&tag.to_be_bytes());
            if numbered && opcode != 5 {
                bhs[24..28].copy_from_slice(&lab.session.exp_cmd_sn.to_be_bytes());
            }
            if opcode == 5 {
                bhs[20..24].copy_from_slice(&[0, 0, 0, 1]);
                bhs[36..44].fill(0);
            }
            let next = lab.session.receive(lab.units, &bhs, Data::Intact(&data), &mut lab.out);
            lab.help();
            lab.heard();
            if next != Next::Continue {
                break;
            }
        }
    }
}

#[test]
fn login_in_the_full_feature_phase_breaks_the_session() {
    let mut lab = Lab::new();
    let request = Request::Login(LoginRequest {
        transit: true,
        continues: false,
        current_stage: 1,
        next_stage: 3,
        version_min: 0,
        isid: [0; 6],
        tsih: 0,
        itt: 0,
        cid: 0,
        cmd_sn: 0,
        exp_stat_sn: 0,
    });
    assert!(matches!(lab.send(&request, &[]), Next::Broken(_)));
}
