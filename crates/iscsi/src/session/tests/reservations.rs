//! What one session does to another: reservations (SPC-4 section 5.12), and
//! copies between the units of a target.

use super::*;

impl Lab {
    /// The session of another initiator, logged in to the same target.
    fn second(&self) -> Lab {
        let mut lab = Lab::on(Some(self.target), Shape::default().parameters);
        lab.session.name.initiator = "iqn.a:c".into();
        lab.target = self.target;
        lab.move_on();
        assert_eq!(lab.command(&[0; 6], 0, 0x80, &[])[0].sense(), (6, 0x29, 0));
        lab
    }

    fn log_out(&mut self) -> Next {
        let request = Request::Logout(LogoutRequest {
            immediate: true,
            reason: 0,
            itt: 9,
            cid: 0,
            cmd_sn: self.cmd_sn,
            exp_stat_sn: 0,
        });
        self.send(&request, &[])
    }

    /// PERSISTENT RESERVE OUT: how it ended.
    fn reserve(&mut self, action: u8, kind: u8, keys: (u8, u8)) -> u8 {
        let mut list = [0u8; 24];
        (list[7], list[15]) = keys;
        let heard = self.command(&prout(action, kind), 24, 0xa0, &list);
        let heard = match self.help() {
            0 => heard,
            _ => self.heard(),
        };
        heard[0].bytes[1]
    }
}

fn prout(action: u8, kind: u8) -> [u8; 10] {
    [0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0]
}

const CONFLICT: u8 = 0x18;
const WRITE_EXCLUSIVE: u8 = 1;

#[test]
fn preempt_and_abort_ends_a_write_of_its_victim_without_a_word() {
    let mut lab = Lab::new();
    let mut victim = lab.second();
    assert_eq!(lab.reserve(0, 0, (0, 1)), GOOD);
    assert_eq!(victim.reserve(0, 0, (0, 2)), GOOD);
    let mine = lab.command(&write10(60, 2), 1024, 0xa0, &[]).remove(0);
    let theirs = victim.command(&write10(50, 2), 1024, 0xa0, &[]).remove(0);
    assert_eq!((mine.opcode, theirs.opcode), (0x31, 0x31), "both are asked");
    assert_eq!(lab.reserve(5, WRITE_EXCLUSIVE, (1, 2)), GOOD);

    victim.data_out(&theirs, 0, 0, &[9; 1024], true);
    assert!(victim.heard().is_empty());
    assert_eq!(lab.disk(50, 1), block(50));
    lab.data_out(&mine, 0, 0, &[9; 1024], true);
    assert!(lab.heard()[0].is_good());
    assert_eq!(lab.disk(60, 1), [9; 512]);

    let told = victim.command(&[0; 6], 0, 0x80, &[]);
    assert_eq!(told[0].sense(), (6, 0x2a, 5));
    assert_eq!(lab.reserve(1, WRITE_EXCLUSIVE, (1, 0)), GOOD);
    let refused = victim.command(&write10(50, 2), 1024, 0xa0, &[]);
    assert_eq!((refused[0].bytes[1], refused[0].data.len()), (CONFLICT, 0));
}

#[test]
fn preempt_and_abort_silences_a_flush_of_its_victim() {
    let mut lab = Lab::new();
    let mut victim = lab.second();
    assert_eq!(lab.reserve(0, 0, (0, 1)), GOOD);
    assert_eq!(victim.reserve(0, 0, (0, 2)), GOOD);
    assert!(victim.command(&FLUSH, 0, 0x80, &[]).is_empty());
    assert_eq!(lab.reserve(5, WRITE_EXCLUSIVE, (1, 2)), GOOD);
    assert_eq!(victim.help(), 1);
    assert!(victim.heard().is_empty());
}

#[test]
fn a_session_that_is_over_holds_nothing_while_its_flush_hangs() {
    for logs_out in [false, true] {
        holds_nothing_once_over(logs_out);
    }
}

fn holds_nothing_once_over(logs_out: bool) {
    let mut lab = Lab::new();
    let mut other = lab.second();
    assert!(lab.command(&[0x16, 0, 0, 0, 0, 0], 0, 0x80, &[])[0].is_good());
    assert!(lab.command(&FLUSH, 0, 0x80, &[]).is_empty());
    let hanging = lab.session.jobs();
    assert_eq!(hanging.len(), 1);
    assert_eq!(other.command(&[0; 6], 0, 0x80, &[])[0].bytes[1], CONFLICT);
    match logs_out {
        true => assert_eq!(lab.log_out(), Next::Close),
        false => lab.session.call_off(),
    }
    assert!(other.command(&[0; 6], 0, 0x80, &[])[0].is_good());
}

#[test]
fn a_copy_goes_to_another_unit_of_the_target() {
    let mut lab = Lab::new();
    lab.target.attach(300, ram(1 << 20)).unwrap();
    lab.move_on();
    lab.ask(LUN_300, &[0; 6], 0, 0x80);
    lab.ask(LUN, &[0; 6], 0, 0x80);
    let page = lab.ask(LUN_300, &[0x12, 1, 0x83, 0, 255, 0], 255, 0xc0);
    let naa = &page[0].data[4..16];
    let mut list = vec![0u8; 16 + 32 + 28];
    (list[3], list[11]) = (32, 28);
    list[16] = 0xe4;
    list[20..32].copy_from_slice(naa);
    list[46] = 2; // blocks of 512
    list[48..56].copy_from_slice(&[0x02, 0, 0, 0x18, 0xff, 0xff, 0, 0]);
    (list[59], list[67], list[75]) = (8, 7, 100);
    let mut cdb = [0u8; 16];
    (cdb[0], cdb[13]) = (0x83, 76);
    assert!(lab.command(&cdb, 76, 0xa0, &list).is_empty());
    assert_eq!(lab.help(), 1);
    assert!(lab.heard()[0].is_good());
    // Read back through the other unit.
    let read = lab.ask(LUN_300, &read10(100, 8), 4096, 0xc0);
    let expected: Vec<u8> = (7..15).flat_map(block).collect();
    assert_eq!(read[0].data, expected);
}
