//! RFC 7143 sections 7.8 and 13.1: digests.

use super::*;
use crate::digest::{DIGEST_BYTES, Digests, digest};

impl Lab {
    fn send_damaged(&mut self, request: &Request, data: &[u8]) -> Next {
        let bhs = request.emit(data.len());
        let data = Data::Damaged(data);
        self.session.receive(self.units, &bhs, data, &mut self.out)
    }
}

#[test]
fn reads_mapped_or_not_carry_the_digests_that_were_agreed_on() {
    for (header, data, is_mapped) in [
        (true, false, true),
        (true, true, true),
        (false, true, true),
        (true, true, false),
    ] {
        let mut lab = Lab::shaped(Shape {
            is_mapped,
            ..Shape::default()
        });
        let digests = Digests { header, data };
        lab.out.protect(digests);
        let request = lab.request(&read10(7, 40), 40 * 512, 0xc0);
        lab.send(&request, &[]);
        lab.out.flush().unwrap();
        let bytes = lab.wire.0.take();
        let mut rest = &bytes[..];
        let mut read = vec![];
        while let Some((bhs, after)) = rest.split_first_chunk::<BHS_BYTES>() {
            rest = after;
            if header {
                assert_eq!(rest[..DIGEST_BYTES], digest(bhs));
                rest = &rest[DIGEST_BYTES..];
            }
            let length = crate::wire::Lengths::parse(bhs).data_bytes;
            read.extend_from_slice(&rest[..length]);
            if data {
                assert_eq!(rest[length..][..DIGEST_BYTES], digest(&rest[..length]));
            }
            rest = &rest[length + digests.data_bytes(length)..];
        }
        let expected: Vec<u8> = (7..47).flat_map(block).collect();
        assert_eq!(read, expected);
    }
}

#[test]
fn a_read_that_fails_midway_leaves_the_stream_whole() {
    let mut lab = Lab::shaped(Shape {
        is_mapped: false,
        ..Shape::default()
    });
    lab.out.protect(Digests {
        header: true,
        data: false,
    });
    let request = lab.request(&read10(980, 40), 40 * 512, 0xc0);
    lab.send(&request, &[]);
    lab.out.flush().unwrap();
    let sent = lab.wire.0.take();
    let first = BHS_BYTES + DIGEST_BYTES + 8192;
    let response: [u8; BHS_BYTES] = sent[first..first + BHS_BYTES].try_into().unwrap();
    assert_eq!((response[0], response[3]), (0x21, CHECK_CONDITION));
    assert_eq!(sent[first + BHS_BYTES..][..DIGEST_BYTES], digest(&response));
    assert_eq!(sent.len(), first + BHS_BYTES + DIGEST_BYTES + 20);
}

#[test]
fn damaged_data_is_rejected_and_fails_its_write_once_all_has_come() {
    let mut lab = Lab::new();
    let r2t = lab.command(&write10(50, 2), 1024, 0xa0, &[]).remove(0);
    let piece = |data_sn: u32, is_final| {
        Request::DataOut(DataOut {
            is_final,
            lun: LUN,
            itt: r2t.itt,
            ttt: r2t.ttt,
            exp_stat_sn: 0,
            data_sn,
            buffer_offset: data_sn * 512,
        })
    };
    assert_eq!(
        lab.send_damaged(&piece(0, false), &[1; 512]),
        Next::Continue
    );
    let heard = lab.heard();
    assert_eq!(heard.len(), 1, "the task waits for what was asked for");
    assert_eq!(
        (heard[0].opcode, heard[0].bytes[0]),
        (0x3f, reason::DATA_DIGEST)
    );
    assert_eq!(heard[0].data, piece(0, false).emit(512));
    lab.send(&piece(1, true), &[1; 512]);
    let heard = lab.heard();
    assert_eq!(
        (heard[0].itt, heard[0].sense()),
        (r2t.itt, (0xb, 0x47, 0x05))
    );
    assert_eq!(lab.disk(50, 2), [block(50), block(51)].concat());
    assert!(lab.command(&[0; 6], 0, 0x80, &[])[0].is_good());
}

#[test]
fn a_command_with_damaged_immediate_data_has_not_come_and_may_come_again() {
    let mut lab = Lab::new();
    let request = lab.request(&write10(50, 1), 512, 0xa0);
    assert_eq!(lab.send_damaged(&request, &[1; 512]), Next::Continue);
    let heard = lab.heard();
    assert_eq!((heard.len(), heard[0].opcode), (1, 0x3f));
    assert_eq!(heard[0].exp_cmd_sn, lab.cmd_sn.wrapping_sub(1));
    assert_eq!(lab.disk(50, 1), block(50));
    // The same again, with the same number.
    lab.send(&request, &[1; 512]);
    assert!(lab.heard()[0].is_good());
    assert_eq!(lab.disk(50, 1), [1; 512]);
}
