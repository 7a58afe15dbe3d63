//! RFC 7143 sections 11.10 and 11.11: text.

use super::*;

#[test]
fn send_targets_longer_than_a_segment_comes_in_pieces() {
    let mut lab = Lab::on(None, Parameters::default());
    let (mut text, mut ttt) = (Vec::new(), NO_TAG);
    let mut pieces = 0;
    loop {
        let request = Request::Text(TextRequest {
            immediate: true,
            is_final: true,
            continues: false,
            lun: LUN,
            itt: 3,
            ttt,
            cmd_sn: lab.cmd_sn,
            exp_stat_sn: 0,
        });
        let data: &[u8] = if ttt == NO_TAG {
            b"SendTargets=All\0"
        } else {
            b""
        };
        assert_eq!(lab.send(&request, data), Next::Continue);
        let heard = lab.heard().remove(0);
        assert!(heard.data.len() <= 8192);
        text.extend_from_slice(&heard.data);
        pieces += 1;
        if heard.flags & 0x80 != 0 {
            assert_eq!((heard.flags, heard.ttt), (0x80, NO_TAG));
            break;
        }
        assert_eq!(heard.flags, 0x40);
        ttt = heard.ttt;
    }
    let text = String::from_utf8(text).unwrap();
    assert_eq!(text.matches("TargetName=").count(), 200);
    assert!(pieces > 1);
}

#[test]
fn answers_are_sent_before_they_pile_up() {
    // 200 targets in answer to 20 bytes, and the peer takes long segments.
    let mut lab = Lab::on(
        None,
        Parameters {
            max_send_data_segment_length: 1 << 20,
            ..Parameters::default()
        },
    );
    let request = Request::Text(TextRequest {
        immediate: true,
        is_final: true,
        continues: false,
        lun: LUN,
        itt: 3,
        ttt: NO_TAG,
        cmd_sn: lab.cmd_sn,
        exp_stat_sn: 0,
    });
    let mut waiting = 0;
    for n in 1..=500 {
        lab.send(&request, b"SendTargets=All\0");
        waiting = n * 10_000 - lab.wire.0.borrow().len().min(n * 10_000);
    }
    assert!(waiting < 2 << 20, "{waiting} bytes wait");
}

#[test]
fn a_key_that_comes_twice_in_one_text_is_a_protocol_error() {
    // Else 64 KiB of SendTargets would be answered with a list for each.
    let mut lab = Lab::on(None, Parameters::default());
    let request = Request::Text(TextRequest {
        immediate: true,
        is_final: true,
        continues: false,
        lun: LUN,
        itt: 3,
        ttt: NO_TAG,
        cmd_sn: lab.cmd_sn,
        exp_stat_sn: 0,
    });
    let text = b"SendTargets=All\0SendTargets=All\0";
    assert_eq!(lab.send(&request, text), Next::Continue);
    let heard = lab.heard();
    assert_eq!(
        (heard[0].opcode, heard[0].bytes[0]),
        (0x3f, reason::PROTOCOL_ERROR)
    );
    assert!(lab.session.text.is_none());
    lab.send(&request, b"SendTargets=All\0");
    assert_eq!(lab.heard()[0].opcode, 0x24, "the next request is heard");
}
