//! Pings, and the word before a server goes, over real sockets.

use super::*;

impl Initiator {
    /// Answers a ping of the target's.
    fn answer_ping(&mut self) {
        let ping = self.receive().unwrap();
        assert_eq!((ping.bhs[0], &ping.bhs[16..20]), (0x20, &[0xff; 4][..]));
        let mut bhs = [0; 48];
        (bhs[0], bhs[1]) = (0x40, 0x80);
        bhs[16..24].copy_from_slice(&ping.bhs[16..24]);
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        self.send(bhs, &[]);
    }

    pub(super) fn log_out(&mut self) {
        let mut bhs = [0; 48];
        (bhs[0], bhs[1]) = (0x46, 0x80);
        bhs[24..28].copy_from_slice(&self.cmd_sn.to_be_bytes());
        self.send(bhs, &[]);
    }
}

#[test]
fn who_answers_pings_no_more_is_given_up_and_who_never_did_is_not() {
    let lab = Lab::shaped(Shape {
        limits: Limits {
            ping_interval: Duration::from_millis(200),
            ping_timeout: Duration::from_millis(500),
            ..Limits::default()
        },
        ..Shape::default()
    });
    let (mut answers, mut never) = (lab.initiator(1), lab.initiator(2));
    answers.answer_ping();
    let last = answers.receive().unwrap();
    assert_eq!(last.bhs[0], 0x20, "the ping that is not answered");
    assert!(answers.is_closed());
    // The other gets three, and then no more.
    for _ in 0..3 {
        assert_eq!(never.receive().unwrap().bhs[0], 0x20);
    }
    assert_eq!(never.command(&[0; 6], &[], 0).status, 0);
}

#[test]
fn before_a_server_goes_it_asks_those_that_know_pings_to_log_out() {
    let mut lab = Lab::new();
    let (mut knows, mut knows_not) = (lab.initiator(1), lab.initiator(2));
    knows.ping();
    assert_eq!(knows.receive().unwrap().bhs[0], 0x20);
    let server = lab.server.take().unwrap();
    let going = std::thread::spawn(move || server.shutdown(Duration::from_secs(20)));
    let asked = knows.receive().unwrap();
    assert_eq!((asked.bhs[0], asked.bhs[36]), (0x32, 1));
    knows.log_out();
    assert_eq!(knows.receive().unwrap().bhs[0], 0x26);
    assert!(knows.is_closed());
    assert!(knows_not.is_closed());
    going.join().unwrap();
}

#[test]
fn nothing_comes_after_the_answer_to_a_logout() {
    for _ in 0..3 {
        let mut lab = Lab::new();
        let mut knows = lab.initiator(1);
        knows.ping();
        assert_eq!(knows.receive().unwrap().bhs[0], 0x20);
        let server = lab.server.take().unwrap();
        let going = std::thread::spawn(move || server.shutdown(Duration::from_secs(20)));
        // As a rule it has not been asked yet: its thread is still in a read.
        thread::sleep(Duration::from_millis(20));
        knows.log_out();
        while knows.receive().unwrap().bhs[0] != 0x26 {}
        assert!(knows.is_closed());
        drop(knows);
        going.join().unwrap();
    }
}
