//! SAM-5 section 8.9: task attributes.

use super::*;

const UNTAGGED: u8 = 0;
const SIMPLE: u8 = 1;
const ORDERED: u8 = 2;
const HEAD_OF_QUEUE: u8 = 3;
const ACA: u8 = 4;

impl Lab {
    /// Sends a command with an attribute, and gives back its tag and what
    /// came.
    fn attributed(&mut self, attribute: u8, cdb: &[u8], flags: u8) -> (u32, Vec<Heard>) {
        let Request::ScsiCommand(mut command) = self.request(cdb, 512, flags) else {
            unreachable!();
        };
        command.attribute = attribute;
        let itt = command.itt;
        assert_eq!(
            self.send(&Request::ScsiCommand(command), &[]),
            Next::Continue
        );
        (itt, self.heard())
    }

    /// Sends a write that waits for its data, and gives back its R2T.
    fn writing(&mut self, attribute: u8) -> Heard {
        let r2t = self
            .attributed(attribute, &write10(50, 1), 0xa0)
            .1
            .remove(0);
        assert_eq!(r2t.opcode, 0x31);
        r2t
    }

    fn read(&mut self, attribute: u8) -> (u32, Vec<Heard>) {
        self.attributed(attribute, &read10(50, 1), 0xc0)
    }
}

fn tags(heard: &[Heard]) -> Vec<u32> {
    heard.iter().map(|heard| heard.itt).collect()
}

#[test]
fn an_ordered_command_waits_for_everything_older_and_is_waited_for() {
    let mut lab = Lab::new();
    let (first, second) = (lab.writing(SIMPLE), lab.writing(UNTAGGED));
    let (ordered, heard) = lab.read(ORDERED);
    assert!(heard.is_empty());
    let (younger, heard) = lab.read(SIMPLE);
    assert!(heard.is_empty());
    lab.data_out(&second, 0, 0, &[1; 512], true);
    assert_eq!(tags(&lab.heard()), [second.itt], "another is still older");
    lab.data_out(&first, 0, 0, &[2; 512], true);
    let heard = lab.heard();
    assert_eq!(tags(&heard), [first.itt, ordered, younger]);
    assert_eq!(heard[1].data, [2; 512], "it reads what was written before");
    // All is over: simple commands begin as they come.
    assert_eq!(lab.read(SIMPLE).1.len(), 1);
    assert!(!lab.session.sequence.matters());
}

#[test]
fn what_comes_after_an_ordered_command_waits_while_that_goes_on() {
    for attribute in [ORDERED, HEAD_OF_QUEUE] {
        let mut lab = Lab::new();
        let r2t = lab.writing(attribute);
        let (simple, heard) = lab.read(SIMPLE);
        assert!(heard.is_empty(), "{attribute}");
        let (ordered, heard) = lab.read(ORDERED);
        assert!(heard.is_empty(), "{attribute}");
        lab.data_out(&r2t, 0, 0, &[1; 512], true);
        assert_eq!(tags(&lab.heard()), [r2t.itt, simple, ordered]);
    }
}

#[test]
fn a_worker_is_waited_for_as_well() {
    let mut lab = Lab::new();
    assert!(lab.command(&FLUSH, 0, 0x80, &[]).is_empty());
    let (ordered, heard) = lab.read(ORDERED);
    assert!(heard.is_empty());
    lab.help();
    let heard = lab.heard();
    assert_eq!((heard.len(), heard[1].itt), (2, ordered));
}

#[test]
fn the_head_of_the_queue_waits_for_nobody() {
    let mut lab = Lab::new();
    let first = lab.writing(SIMPLE);
    lab.read(ORDERED);
    assert_eq!(lab.read(HEAD_OF_QUEUE).1.len(), 1);
    lab.data_out(&first, 0, 0, &[1; 512], true);
    assert_eq!(lab.heard().len(), 2);
}

#[test]
fn other_units_do_not_wait() {
    let mut lab = Lab::new();
    lab.target.attach(300, ram(1 << 20)).unwrap();
    lab.move_on();
    lab.ask(LUN_300, &[0; 6], 0, 0x80);
    lab.ask(LUN, &[0; 6], 0, 0x80);
    lab.writing(SIMPLE);
    lab.read(ORDERED);
    assert!(lab.ask(LUN_300, &[0; 6], 0, 0x80)[0].is_good());
}

#[test]
fn the_aca_attribute_is_refused_where_there_is_no_such_condition() {
    let mut lab = Lab::new();
    for attribute in [ACA, 5, 7] {
        assert_eq!(lab.read(attribute).1[0].sense(), (0xb, 0x49, 0));
    }
}

#[test]
fn unsolicited_data_of_a_write_that_waits_is_kept_for_it() {
    let mut lab = Lab::new();
    let first = lab.writing(SIMPLE);
    let Request::ScsiCommand(mut write) = lab.request(&write10(60, 3), 1536, 0x20) else {
        unreachable!();
    };
    write.attribute = ORDERED;
    let unasked = Heard {
        itt: write.itt,
        ttt: NO_TAG,
        ..blank()
    };
    lab.send(&Request::ScsiCommand(write), &[3; 512]);
    lab.data_out(&unasked, 0, 512, &[4; 512], false);
    assert!(lab.heard().is_empty());
    assert_eq!(lab.disk(60, 1), block(60));
    lab.data_out(&first, 0, 0, &[1; 512], true);
    assert_eq!(tags(&lab.heard()), [first.itt]);
    lab.data_out(&unasked, 1, 1024, &[5; 512], true);
    assert!(lab.heard()[0].is_good());
    assert_eq!(lab.disk(60, 3), [[3; 512], [4; 512], [5; 512]].concat());
}

#[test]
fn data_of_commands_that_wait_is_bounded() {
    let mut lab = Lab::new();
    lab.writing(SIMPLE);
    let mut full = 0;
    for _ in 0..6 {
        let Request::ScsiCommand(mut write) = lab.request(&write10(0, 8), 4096, 0x20) else {
            unreachable!();
        };
        write.attribute = ORDERED;
        write.expected_bytes = 1 << 20;
        lab.session.parameters.first_burst_length = 1 << 20;
        lab.send(&Request::ScsiCommand(write), &vec![1; 300 << 10]);
        full += lab
            .heard()
            .iter()
            .filter(|h| h.bytes[1] == TASK_SET_FULL)
            .count();
    }
    assert_eq!(full, 3, "three times 300 KiB is all that is kept");
}

#[test]
fn what_waits_is_aborted_reset_and_found_like_any_other_task() {
    let mut lab = Lab::new();
    lab.session.parameters.protocol_level = 2;
    let first = lab.writing(SIMPLE);
    let (ordered, _) = lab.read(ORDERED);
    lab.manage(9, ordered);
    assert_eq!(lab.heard()[0].bytes[0], 7, "it is there");
    lab.manage(1, ordered);
    assert_eq!(lab.heard()[0].bytes[0], 0);
    let (ordered, _) = lab.read(ORDERED);
    lab.target.unit(0).unwrap().reset();
    lab.manage(1, first.itt);
    let heard = lab.heard();
    assert_eq!(heard.len(), 1, "nobody hears of {ordered}: {heard:?}");
}

#[test]
fn a_write_that_waits_fails_when_data_of_it_came_to_damage() {
    let mut lab = Lab::new();
    let first = lab.writing(SIMPLE);
    let Request::ScsiCommand(mut write) = lab.request(&write10(60, 2), 1024, 0x20) else {
        unreachable!();
    };
    write.attribute = ORDERED;
    let piece = |data_sn: u32| {
        Request::DataOut(DataOut {
            is_final: data_sn == 1,
            lun: LUN,
            itt: write.itt,
            ttt: NO_TAG,
            exp_stat_sn: 0,
            data_sn,
            buffer_offset: data_sn * 512,
        })
    };
    lab.send(&Request::ScsiCommand(write.clone()), &[]);
    let bhs = piece(0).emit(512);
    let damaged = Data::Damaged(&[4; 512]);
    lab.session.receive(lab.units, &bhs, damaged, &mut lab.out);
    assert_eq!(lab.heard()[0].opcode, 0x3f);
    // What it waited for ends before the rest of its data comes.
    lab.data_out(&first, 0, 0, &[1; 512], true);
    assert_eq!(tags(&lab.heard()), [first.itt]);
    lab.send(&piece(1), &[5; 512]);
    let heard = lab.heard();
    assert_eq!(
        (heard[0].itt, heard[0].sense()),
        (write.itt, (0xb, 0x47, 0x05))
    );
    assert_eq!(lab.disk(60, 2), [block(60), block(61)].concat());
    assert!(lab.command(&[0; 6], 0, 0x80, &[])[0].is_good());
}

#[test]
fn what_waits_for_a_command_of_a_detached_unit_waits_no_longer() {
    let mut lab = Lab::new();
    let first = lab.writing(SIMPLE);
    let (ordered, _) = lab.read(ORDERED);
    lab.target.detach(0).unwrap();
    lab.move_on();
    let heard = lab.heard();
    assert_eq!(tags(&heard), [first.itt, ordered]);
    assert_eq!(heard[1].sense(), (5, 0x25, 0));
}
