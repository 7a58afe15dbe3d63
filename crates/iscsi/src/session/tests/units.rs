//! Units that come and go (SPC-4 section 6.33, SAM-5 section 5.14).

use super::*;

#[test]
fn absent_units_answer_report_luns_and_nothing_else() {
    let mut lab = Lab::new();
    let mut ask = |cdb: &[u8]| {
        let Request::ScsiCommand(mut command) = lab.request(cdb, 512, 0xc0) else {
            unreachable!();
        };
        command.lun = [0, 3, 0, 0, 0, 0, 0, 0];
        lab.send(&Request::ScsiCommand(command), &[]);
        lab.heard().remove(0)
    };
    let luns = ask(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
    assert_eq!(luns.data, [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(ask(&[0x12, 0, 0, 0, 36, 0]).data[0], 0x7f);
    assert_eq!(ask(&read10(0, 1)).sense(), (5, 0x25, 0));
}

#[test]
fn a_unit_attached_later_is_told_of_and_answers() {
    let mut lab = Lab::new();
    lab.target.attach(300, ram(1 << 20)).unwrap();
    assert_eq!(lab.ask(LUN_300, &[0; 6], 0, 0x80)[0].sense(), (5, 0x25, 0));
    lab.move_on();
    // Who knows the target is told that it has changed, once.
    assert_eq!(lab.ask(LUN, &[0; 6], 0, 0x80)[0].sense(), (6, 0x3f, 0x0e));
    assert!(lab.ask(LUN, &[0; 6], 0, 0x80)[0].is_good());
    assert_eq!(lab.ask(LUN_300, &[0; 6], 0, 0x80)[0].sense(), (6, 0x29, 0));
    assert!(lab.ask(LUN_300, &[0; 6], 0, 0x80)[0].is_good());
}

#[test]
fn who_has_asked_for_the_numbers_is_not_told_that_they_have_changed() {
    let mut lab = Lab::new();
    lab.target.attach(300, ram(1 << 20)).unwrap();
    lab.move_on();
    let luns = lab.ask(LUN, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0], 512, 0xc0);
    assert_eq!(luns[0].data[8..24], [LUN, LUN_300].concat());
    assert!(lab.ask(LUN, &[0; 6], 0, 0x80)[0].is_good());
}

#[test]
fn a_detached_unit_fails_its_writes_and_is_let_go_of() {
    let mut lab = Lab::new();
    lab.target.attach(300, ram(1 << 20)).unwrap();
    lab.move_on();
    lab.ask(LUN_300, &[0; 6], 0, 0x80);
    let r2t = lab.ask(LUN_300, &write10(0, 8), 4096, 0xa0).remove(0);
    assert_eq!(r2t.opcode, 0x31);
    let mut unit = lab.target.detach(300).unwrap();
    lab.move_on();
    let heard = lab.heard();
    assert_eq!((heard[0].itt, heard[0].sense()), (r2t.itt, (5, 0x25, 0)));
    assert_eq!(lab.session.solicited_bytes, 0);
    lab.data_out(&r2t, 0, 0, &[1; 4096], true);
    assert!(lab.heard().is_empty());
    assert_eq!(lab.ask(LUN_300, &[0; 6], 0, 0x80)[0].sense(), (5, 0x25, 0));
    // Older units are leaked by this lab, but for those no map has any more.
    assert!(Arc::get_mut(&mut unit).is_none());
    assert_eq!(Arc::strong_count(&unit), 2, "the lab's older map has it");
}

#[test]
fn a_unit_that_has_grown_says_so_and_its_tasks_go_on() {
    let mut lab = Lab::new();
    lab.target.attach(300, ram(1 << 20)).unwrap();
    lab.move_on();
    lab.ask(LUN_300, &[0; 6], 0, 0x80);
    lab.ask(LUN, &[0; 6], 0, 0x80);
    let r2t = lab.ask(LUN_300, &write10(0, 8), 4096, 0xa0).remove(0);
    let old = lab.target.unit(300).unwrap();
    let grown = old.with_disk(Arc::new(Ram::new(2 << 20)));
    lab.target.replace(300, Arc::new(grown)).unwrap();
    lab.move_on();
    lab.data_out(&r2t, 0, 0, &[7; 4096], true);
    assert!(lab.heard()[0].is_good());
    let mut byte = [0; 512];
    old.disk().read(0, &mut byte).unwrap();
    assert_eq!(byte[0], 7, "a task ends over the disk it began with");
    assert_eq!(lab.ask(LUN_300, &[0; 6], 0, 0x80)[0].sense(), (6, 0x2a, 9));
    let capacity = lab.ask(LUN_300, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8, 0xc0);
    assert_eq!(capacity[0].data[..4], 4095u32.to_be_bytes());
    // The same numbers as before: nobody has to look again.
    assert!(lab.ask(LUN, &[0; 6], 0, 0x80)[0].is_good());
}

#[test]
fn a_number_that_gets_another_unit_is_a_new_nexus() {
    let mut lab = Lab::new();
    lab.target.replace(0, ram(1 << 20)).unwrap();
    lab.move_on();
    assert_eq!(lab.ask(LUN, &[0; 6], 0, 0x80)[0].sense(), (6, 0x29, 0));
}

#[test]
fn a_target_without_lun_0_answers_there_that_it_is_one() {
    let mut lab = Lab::new();
    lab.target.attach(300, ram(1 << 20)).unwrap();
    lab.target.detach(0).unwrap();
    lab.move_on();
    let inquiry = lab.ask(LUN, &[0x12, 0, 0, 0, 36, 0], 36, 0xc0);
    assert_eq!(inquiry[0].data[0], 0x3f);
    let luns = lab.ask(LUN, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0], 512, 0xc0);
    assert_eq!(luns[0].data[..4], 8u32.to_be_bytes());
    assert_eq!(luns[0].data[8..], LUN_300);
}
