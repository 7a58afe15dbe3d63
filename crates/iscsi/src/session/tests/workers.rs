//! Slow commands, which workers run.

use super::*;

#[test]
fn pings_are_answered_while_a_flush_runs() {
    let mut lab = Lab::new();
    assert!(lab.command(&FLUSH, 0, 0x80, &[]).is_empty());
    assert_eq!(lab.session.running(), 1);
    assert!(lab.command(&[0; 6], 0, 0x80, &[])[0].is_good());
    assert_eq!(lab.help(), 1);
    assert!(lab.heard()[0].is_good());
    assert!(!lab.session.is_busy());
}

#[test]
fn a_flush_of_a_volatile_disk_is_answered_at_once() {
    let mut lab = Lab::shaped(Shape {
        durability: Durability::Volatile,
        ..Shape::default()
    });
    assert!(lab.command(&FLUSH, 0, 0x80, &[])[0].is_good());
}

#[test]
fn a_write_with_fua_is_answered_after_its_flush() {
    let mut lab = Lab::new();
    let mut fua = write10(50, 1);
    fua[1] = 0x08;
    assert!(lab.command(&fua, 512, 0xa0, &[7; 512]).is_empty());
    assert_eq!(lab.disk(50, 1), [7; 512]);
    lab.help();
    assert!(lab.heard()[0].is_good());
}
