//! Headers read back as they were written, and as others wrote them.

use proptest::prelude::*;

use super::*;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex
        .chars()
        .filter_map(|c| c.to_digit(16))
        .map(|d| u8::try_from(d).unwrap())
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

fn bhs(hex: &str) -> Bhs {
    let mut bhs = [0; BHS_BYTES];
    let bytes = bytes(hex);
    bhs[..bytes.len()].copy_from_slice(&bytes);
    bhs
}

#[test]
fn the_login_of_ipxe_is_read() {
    let header = bhs("4381000000 00006D 400027235836 0000 18AE0001 00000000 00000000 00000001");
    assert_eq!(Lengths::parse(&header).data_bytes, 109);
    assert_eq!(Lengths::parse(&header).pdu_bytes(), 48 + 112);
    let Ok(Request::Login(login)) = Request::parse(&header) else {
        panic!("no login");
    };
    assert!(login.transit && !login.continues);
    assert_eq!((login.current_stage, login.next_stage), (0, 1));
    assert_eq!(login.isid, [0x40, 0, 0x27, 0x23, 0x58, 0x36]);
}

#[test]
fn an_r2t_is_written_as_tgt_wrote_it() {
    let expected = bhs(
        "3180000000000000 0001000000000000 21D5F232 E02BA112 0000000F 62FE177F 62FE17FF \
         00000000 00002000 0001E000",
    );
    let r2t = R2t {
        lun: [0, 1, 0, 0, 0, 0, 0, 0],
        itt: 0x21d5_f232,
        ttt: 0xe02b_a112,
        numbers: Numbers {
            stat_sn: 15,
            exp_cmd_sn: 0x62fe_177f,
            max_cmd_sn: 0x62fe_17ff,
        },
        r2t_sn: 0,
        buffer_offset: 0x2000,
        desired_bytes: 0x1e000,
    };
    assert_eq!(r2t.emit(), expected);
}

#[test]
fn data_in_with_status_is_written_as_tgt_wrote_it() {
    let expected =
        bhs("2581000000000008 0000000000000000 18AE0004 FFFFFFFF 00000006 00000003 00000083");
    let data_in = DataIn {
        is_final: true,
        status: Some(Residual::None),
        itt: 0x18ae_0004,
        numbers: Numbers {
            stat_sn: 6,
            exp_cmd_sn: 3,
            max_cmd_sn: 0x83,
        },
        data_sn: 0,
        buffer_offset: 0,
    };
    assert_eq!(data_in.emit(8), expected);
}

#[test]
fn a_check_condition_is_written_as_tgt_wrote_it() {
    let expected =
        bhs("2180000200000014 0000000000000000 18AE0002 00000000 00000004 00000001 00000081");
    let response = ScsiResponse {
        status: 2,
        itt: 0x18ae_0002,
        numbers: Numbers {
            stat_sn: 4,
            exp_cmd_sn: 1,
            max_cmd_sn: 0x81,
        },
        exp_data_sn: 0,
        residual: Residual::None,
    };
    assert_eq!(response.emit(20), expected);
}

#[test]
fn opcodes_of_targets_and_unknown_ones_are_no_requests() {
    for opcode in (0x07..0x10).chain(0x11..0x40) {
        let mut header = [0; BHS_BYTES];
        header[0] = opcode;
        assert_eq!(Request::parse(&header), Err(PduError::Opcode));
    }
}

#[test]
fn serial_numbers_wrap() {
    assert!(is_before(0xffff_ffff, 0));
    assert!(!is_before(0, 0xffff_ffff));
    assert!(!is_before(5, 5));
}

#[test]
fn padding_fills_up_to_four() {
    assert_eq!([0, 1, 2, 3, 4].map(padding), [0, 3, 2, 1, 0]);
}

prop_compose! {
    fn any_command()(
        immediate: bool, is_final: bool, reads: bool, writes: bool, attribute in 0u8..8,
        lun: [u8; 8], itt: u32, expected_bytes: u32, cmd_sn: u32, exp_stat_sn: u32, cdb: [u8; 16],
    ) -> Request {
        Request::ScsiCommand(ScsiCommand {
            immediate, is_final, reads, writes, attribute, lun, itt, expected_bytes, cmd_sn,
            exp_stat_sn, cdb,
        })
    }
}

prop_compose! {
    fn any_login()(
        (transit, continues) in prop_oneof![Just((false, false)), Just((true, false)), Just((false, true))],
        current_stage in 0u8..4, next_stage in 0u8..4, version_min: u8, isid: [u8; 6], tsih: u16,
        itt: u32, cid: u16, cmd_sn: u32, exp_stat_sn: u32,
    ) -> Request {
        Request::Login(LoginRequest {
            transit, continues, current_stage, next_stage, version_min, isid, tsih, itt, cid,
            cmd_sn, exp_stat_sn,
        })
    }
}

prop_compose! {
    fn any_data_out()(
        is_final: bool, lun: [u8; 8], itt: u32, ttt: u32, exp_stat_sn: u32, data_sn: u32,
        buffer_offset: u32,
    ) -> Request {
        Request::DataOut(DataOut {
            is_final, lun, itt, ttt, exp_stat_sn, data_sn, buffer_offset,
        })
    }
}

prop_compose! {
    fn any_other()(
        which in 0..5, immediate: bool, is_final: bool, lun: [u8; 8], itt: u32, ttt: u32,
        cmd_sn: u32, exp_stat_sn: u32, small in 0u8..128, cid: u16, ref_cmd_sn: u32,
    ) -> Request {
        match which {
            0 => Request::NopOut(NopOut { immediate, lun, itt, ttt, cmd_sn, exp_stat_sn }),
            1 => Request::TaskManagement(TaskManagement {
                immediate, function: small, lun, itt, referenced_tag: ttt, cmd_sn, exp_stat_sn,
                ref_cmd_sn,
            }),
            2 => Request::Text(TextRequest {
                immediate, is_final, continues: !is_final, lun, itt, ttt, cmd_sn, exp_stat_sn,
            }),
            3 => Request::Logout(LogoutRequest {
                immediate, reason: small, itt, cid, cmd_sn, exp_stat_sn,
            }),
            _ => Request::Snack { itt },
        }
    }
}

proptest! {
    #[test]
    fn a_request_reads_back_as_it_was_written(
        request in prop_oneof![any_command(), any_login(), any_data_out(), any_other()],
        data_bytes in 0usize..0x100_0000,
    ) {
        let header = request.emit(data_bytes);
        prop_assert_eq!(Request::parse(&header), Ok(request));
        prop_assert_eq!(Lengths::parse(&header), Lengths { ahs_bytes: 0, data_bytes });
    }

    #[test]
    fn no_header_makes_the_parser_panic(high: [u8; 24], low: [u8; 24]) {
        let mut header = [0; BHS_BYTES];
        header[..24].copy_from_slice(&high);
        header[24..].copy_from_slice(&low);
        let _ = Request::parse(&header);
        let _ = Lengths::parse(&header);
    }
}
