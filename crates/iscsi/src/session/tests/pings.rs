//! RFC 7143 sections 11.9, 11.18 and 11.19: what a target says unasked.

use super::*;

impl Lab {
    fn nop_out(&mut self, itt: u32, ttt: u32) {
        let request = Request::NopOut(NopOut {
            immediate: true,
            lun: LUN,
            itt,
            ttt,
            cmd_sn: self.cmd_sn,
            exp_stat_sn: 0,
        });
        assert_eq!(self.send(&request, &[]), Next::Continue);
    }
}

#[test]
fn a_ping_of_ours_takes_no_stat_sn_and_its_answer_is_not_answered() {
    let mut lab = Lab::new();
    lab.session.ping(&mut lab.out);
    let ping = lab.heard().remove(0);
    assert_eq!((ping.opcode, ping.flags, ping.itt), (0x20, 0x80, NO_TAG));
    assert_ne!(ping.ttt, NO_TAG);
    assert!(!lab.session.has_answered_ping());
    lab.nop_out(NO_TAG, ping.ttt);
    assert!(lab.heard().is_empty());
    assert!(lab.session.has_answered_ping());
    let next = lab.command(&[0; 6], 0, 0x80, &[]).remove(0);
    assert_eq!(next.stat_sn, ping.stat_sn);
}

#[test]
fn a_ping_of_the_initiators_is_no_answer_to_ours() {
    let mut lab = Lab::new();
    lab.nop_out(5, NO_TAG);
    assert!(!lab.session.has_answered_ping());
}

#[test]
fn who_knows_pings_is_asked_once_to_log_out_and_who_does_not_is_not() {
    let mut lab = Lab::new();
    lab.session.request_logout(3, &mut lab.out);
    assert!(lab.heard().is_empty());
    lab.nop_out(5, NO_TAG);
    lab.heard();
    lab.session.request_logout(3, &mut lab.out);
    lab.session.request_logout(3, &mut lab.out);
    lab.out.flush().unwrap();
    let bytes = lab.wire.0.take();
    assert_eq!(bytes.len(), BHS_BYTES);
    assert_eq!(bytes[..2], [0x32, 0x80]);
    assert_eq!(bytes[16..20], [0xff; 4]);
    assert_eq!(bytes[36..44], [1, 0, 0, 0, 0, 0, 0, 3]);
}

#[test]
fn a_ping_comes_back_with_its_own_data() {
    let mut lab = Lab::new();
    let mut ping = NopOut {
        immediate: true,
        lun: LUN,
        itt: 5,
        ttt: NO_TAG,
        cmd_sn: lab.cmd_sn,
        exp_stat_sn: 0,
    };
    lab.send(&Request::NopOut(ping.clone()), b"hello");
    let heard = lab.heard();
    assert_eq!(
        (heard[0].opcode, heard[0].itt, heard[0].ttt),
        (0x20, 5, NO_TAG)
    );
    assert_eq!(heard[0].data, b"hello");
    ping.itt = NO_TAG;
    lab.send(&Request::NopOut(ping), b"");
    assert!(lab.heard().is_empty());
}
