//! RFC 7143 sections 11.7.1 and 11.8: SCSI Data-Out and R2T.

use super::*;

#[test]
fn immediate_unsolicited_and_solicited_data_make_one_write() {
    let mut lab = Lab::new();
    let data: Vec<u8> = (0..40 * 512u32).map(|i| i.to_be_bytes()[3]).collect();
    let request = lab.request(&write10(50, 40), 40 * 512, 0x20);
    assert_eq!(lab.send(&request, &data[..1024]), Next::Continue);
    assert!(lab.heard().is_empty(), "unsolicited data is still to come");
    let itt = FIRST_CMD_SN.wrapping_add(1001);
    let unasked = Heard {
        itt,
        ttt: NO_TAG,
        ..blank()
    };
    lab.data_out(&unasked, 0, 1024, &data[1024..4096], true);
    // 16 KiB left: one burst.
    let heard = lab.heard();
    let r2t = &heard[0];
    assert_eq!((r2t.opcode, r2t.offset, r2t.last), (0x31, 4096, 16384));
    assert_eq!((heard.len(), r2t.stat_sn, r2t.data_sn), (1, 101, 0));
    // Pieces small and large, as iPXE and Linux send them.
    let (mut at, mut data_sn) = (4096, 0);
    for bytes in [512, 512, 7168, 8192] {
        let end = at + bytes;
        let offset = u32::try_from(at).unwrap();
        lab.data_out(r2t, data_sn, offset, &data[at..end], end == data.len());
        (at, data_sn) = (end, data_sn + 1);
    }
    let heard = lab.heard();
    assert!(heard.len() == 1 && heard[0].is_good());
    assert_eq!(heard[0].stat_sn, 101, "an R2T does not consume a StatSN");
    assert_eq!(heard[0].data_sn, 1, "ExpDataSN counts the R2T");
    assert_eq!(lab.disk(50, 40), data);
}

#[test]
fn a_write_longer_than_a_burst_is_asked_for_burst_by_burst() {
    let mut lab = Lab::new();
    let data: Vec<u8> = (0..80 * 512u32)
        .map(|i| u8::try_from(i % 253).unwrap())
        .collect();
    let mut heard = lab.command(&write10(50, 80), 80 * 512, 0xa0, &[]);
    let mut asked = vec![];
    while heard[0].opcode == 0x31 {
        let r2t = heard[0].clone();
        asked.push((r2t.data_sn, r2t.offset, r2t.last));
        let at = usize::try_from(r2t.offset).unwrap();
        let end = at + usize::try_from(r2t.last).unwrap();
        lab.data_out(&r2t, 0, r2t.offset, &data[at..end], true);
        heard = lab.heard();
    }
    assert_eq!(asked, [(0, 0, 16384), (1, 16384, 16384), (2, 32768, 8192)]);
    assert!(heard[0].is_good());
    assert_eq!(lab.disk(50, 80), data);
}

#[test]
fn small_pieces_held_back_are_bounded_over_all_tasks() {
    let mut shape = Shape::default();
    shape.parameters.max_burst_length = 1 << 20;
    let mut lab = Lab::shaped(shape);
    let r2ts: Vec<_> = (0..3)
        .map(|_| {
            lab.command(&write10(0, 2000), 2000 * 512, 0xa0, &[])
                .remove(0)
        })
        .collect();
    for n in 0..1999u32 {
        let fill = [u8::try_from(n % 7).unwrap(); 512];
        for r2t in &r2ts {
            lab.data_out(r2t, n, n * 512, &fill, false);
        }
    }
    let staged: usize = lab.session.tasks.values().map(Task::staged_bytes).sum();
    assert!(0 < staged && staged <= MAX_STAGED_BYTES, "{staged}");
    for r2t in &r2ts {
        lab.data_out(r2t, 1999, 1999 * 512, &[8; 512], true);
        assert!(lab.heard()[0].is_good());
    }
    let expected: Vec<u8> = (0..1999u32)
        .flat_map(|n| [u8::try_from(n % 7).unwrap(); 512])
        .chain([8; 512])
        .collect();
    // Block 1000 cannot be read.
    assert_eq!(lab.disk(0, 1000), expected[..1000 * 512]);
    assert_eq!(lab.disk(1001, 999), expected[1001 * 512..]);
}

#[test]
fn data_out_of_order_fails_the_write_and_spares_the_session() {
    for (data_sn, offset) in [(1, 0), (27, 0), (u32::MAX, 0), (0, 512)] {
        let mut lab = Lab::new();
        let r2t = lab.command(&write10(50, 2), 1024, 0xa0, &[]).remove(0);
        lab.data_out(&r2t, data_sn, offset, &[1; 512], false);
        let heard = lab.heard();
        assert_eq!(heard[0].sense(), (0xb, 0x0c, 0x0d));
        // What still comes is dropped.
        lab.data_out(&r2t, 1, 512, &[1; 512], true);
        assert!(lab.heard().is_empty());
        assert!(lab.command(&[0; 6], 0, 0x80, &[])[0].is_good());
    }
}

#[test]
fn more_data_than_was_asked_for_fails_the_write() {
    let mut lab = Lab::new();
    let r2t = lab.command(&write10(50, 2), 1024, 0xa0, &[]).remove(0);
    lab.data_out(&r2t, 0, 0, &[1; 2048], true);
    assert_eq!(lab.heard()[0].sense(), (0xb, 0x0c, 0x0d));
    assert_eq!(lab.disk(50, 1), block(50));
}

#[test]
fn data_that_was_not_agreed_on_breaks_the_session() {
    let mut shape = Shape::default();
    shape.parameters.immediate_data = false;
    shape.parameters.initial_r2t = true;
    let mut lab = Lab::shaped(shape);
    let request = lab.request(&write10(0, 1), 512, 0xa0);
    assert!(matches!(lab.send(&request, &[1; 512]), Next::Broken(_)));
    let mut shape = Shape::default();
    shape.parameters.initial_r2t = true;
    let mut lab = Lab::shaped(shape);
    let request = lab.request(&write10(0, 9), 9 * 512, 0x20);
    assert!(matches!(lab.send(&request, &[]), Next::Broken(_)));
    // More than the first burst.
    let mut lab = Lab::new();
    let request = lab.request(&write10(0, 16), 8192, 0xa0);
    assert!(matches!(lab.send(&request, &[1; 8192]), Next::Broken(_)));
}

#[test]
fn data_on_its_way_is_bounded_and_a_tag_used_again_is_not_asked_twice() {
    let mut shape = Shape::default();
    shape.parameters.max_burst_length = 5 << 20;
    let mut lab = Lab::shaped(shape);
    // The disk is 1 MiB: 12 writes of 1 MiB, of which 8 fit the window and
    // the limit.
    let first = lab.command(&write10(0, 2048), 1 << 20, 0xa0, &[]).remove(0);
    for _ in 0..7 {
        let heard = lab.command(&write10(0, 2048), 1 << 20, 0xa0, &[]);
        assert_eq!(heard[0].opcode, 0x31);
    }
    assert_eq!(lab.session.solicited_bytes, MAX_SOLICITED_BYTES);
    let Request::ScsiCommand(mut ninth) = lab.request(&write10(0, 16), 8192, 0xa0) else {
        unreachable!();
    };
    ninth.immediate = true;
    lab.cmd_sn = lab.cmd_sn.wrapping_sub(1);
    ninth.itt = 0x9999;
    lab.send(&Request::ScsiCommand(ninth.clone()), &[]);
    assert!(lab.heard().is_empty(), "it has to wait");
    lab.manage(1, 0x9999);
    assert_eq!(lab.heard()[0].bytes[0], 0);
    // The same tag again, with unsolicited data under way.
    ninth.is_final = false;
    lab.send(&Request::ScsiCommand(ninth), &[]);
    lab.manage(1, first.itt);
    let heard = lab.heard();
    assert!(heard.iter().all(|h| h.opcode != 0x31), "{heard:?}");
}

#[test]
fn a_write_that_ended_is_in_no_queue_for_data() {
    let mut shape = Shape::default();
    shape.parameters.max_burst_length = 5 << 20;
    let mut lab = Lab::shaped(shape);
    for _ in 0..8 {
        let heard = lab.command(&write10(0, 2048), 1 << 20, 0xa0, &[]);
        assert_eq!(heard[0].opcode, 0x31);
    }
    let Request::ScsiCommand(mut write) = lab.request(&write10(0, 16), 8192, 0xa0) else {
        unreachable!();
    };
    write.immediate = true;
    // One that goes on waiting, and behind it others that do not.
    lab.send(&Request::ScsiCommand(write.clone()), &[]);
    write.itt = 0x9999;
    for _ in 0..100 {
        lab.send(&Request::ScsiCommand(write.clone()), &[]);
        lab.manage(1, write.itt);
    }
    assert_eq!(lab.heard().len(), 100);
    assert_eq!(lab.session.unasked.len(), 1);
}

#[test]
fn data_of_commands_that_are_taken_as_a_whole_is_bounded() {
    let mut lab = Lab::new();
    lab.session.window = 64;
    assert!(lab.command(&[0; 6], 0, 0x80, &[])[0].is_good());
    // COMPARE AND WRITE of 255 blocks, and as many to compare.
    let mut cdb = [0; 16];
    (cdb[0], cdb[13]) = (0x89, 255);
    let answers: Vec<Heard> = (0..20)
        .map(|_| lab.command(&cdb, 2 * 255 * 512, 0xa0, &[]).remove(0))
        .collect();
    let asked = answers.iter().filter(|heard| heard.opcode == 0x31).count();
    let full = answers
        .iter()
        .filter(|heard| heard.opcode == 0x21 && heard.bytes[1] == TASK_SET_FULL)
        .count();
    assert_eq!((asked, full), (16, 4));
    let room = MAX_GATHERED_BYTES / (2 * 255 * 512);
    assert_eq!(room, 16);
    // Once one has ended there is room for another.
    lab.manage(1, answers[0].itt);
    assert_eq!(lab.heard()[0].bytes[0], 0);
    assert_eq!(lab.command(&cdb, 2 * 255 * 512, 0xa0, &[])[0].opcode, 0x31);
}
