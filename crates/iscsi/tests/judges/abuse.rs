//! Peers that mean harm, over real sockets: each limit holds, and a witness
//! on the same target goes on reading and writing meanwhile.

use super::*;

/// A session that minds its own business.
struct Witness {
    initiator: Initiator,
    round: u8,
}

impl Witness {
    fn of(lab: &Lab) -> Witness {
        Witness {
            initiator: lab.initiator(200),
            round: 0,
        }
    }

    /// Writes and reads back, as if nothing was.
    fn works(&mut self) {
        self.round += 1;
        let data = vec![self.round; 8192];
        let written = self.initiator.command(&write10(4096, 16), &data, 0);
        assert_eq!(written.status, 0);
        let read = self.initiator.command(&read10(4096, 16), &[], 8192);
        assert!(read.status == 0 && read.data == data);
    }
}

/// Sends one login PDU with `flags` in byte 1; the answer, if any comes.
fn login_pdu(initiator: &mut Initiator, flags: u8, text: &[u8]) -> Option<[u8; 2]> {
    let mut bhs = [0; 48];
    (bhs[0], bhs[1]) = (0x43, flags);
    bhs[8..14].copy_from_slice(&[0, 2, 0x3d, 0, 0, 9]);
    initiator.send(bhs, text);
    initiator.login_answer()
}

/// Resident memory of this process, servers included.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[test]
fn text_of_a_login_is_bounded_in_bytes_and_in_pdus() {
    let lab = Lab::new();
    let mut witness = Witness::of(&lab);
    // 8 KiB a PDU, ever to be continued: 64 KiB are too much.
    let mut initiator = Initiator::connect(lab.portal, 1);
    let refusals: Vec<_> = (0..9)
        .map_while(|_| login_pdu(&mut initiator, 0x44, &[b'A'; 8192]))
        .filter(|status| *status != [0, 0])
        .collect();
    assert_eq!(refusals, [[2, 0]], "refused once");
    assert!(initiator.is_closed());
    // And so are 17 PDUs of nearly nothing.
    let mut initiator = Initiator::connect(lab.portal, 1);
    let answers: Vec<_> = (0..20)
        .map_while(|_| login_pdu(&mut initiator, 0x44, b"A"))
        .collect();
    assert_eq!((answers.len(), answers[16]), (17, [2, 0]));
    assert!(initiator.is_closed());
    witness.works();
}

#[test]
fn stages_that_cannot_be_end_the_login() {
    let lab = Lab::new();
    let mut witness = Witness::of(&lab);
    let names = format!("InitiatorName=iqn.2026-01.lab:i\0TargetName={IQN}\0");
    // T and C at once; the reserved stage; backwards; to where one is.
    for flags in [0xc7, 0x88, 0x8b, 0x82, 0x84, 0x85, 0x80, 0x0c, 0x8f] {
        let mut initiator = Initiator::connect(lab.portal, 1);
        let answer = login_pdu(&mut initiator, flags, names.as_bytes());
        assert!(
            answer.is_none_or(|status| status[0] == 2),
            "{flags:02x}: {answer:?}"
        );
        assert!(initiator.is_closed(), "{flags:02x}");
    }
    assert_eq!(lab.server().sessions().list().len(), 1);
    witness.works();
}

#[test]
fn text_without_an_end_ends_its_session() {
    let lab = Lab::new();
    let mut witness = Witness::of(&lab);
    let mut initiator = lab.initiator(1);
    let mut bhs = [0; 48];
    (bhs[0], bhs[1]) = (0x44, 0x40); // immediate; C: to be continued
    bhs[16..20].copy_from_slice(&[0, 0, 0, 7]);
    bhs[20..24].copy_from_slice(&[0xff; 4]);
    bhs[24..28].copy_from_slice(&initiator.cmd_sn.to_be_bytes());
    let mut pdus = 0;
    loop {
        initiator.send(bhs, &[b'A'; 16384]);
        let Ok(answer) = initiator.receive() else {
            break;
        };
        bhs[20..24].copy_from_slice(&answer.bhs[20..24]);
        pdus += 1;
        assert!(pdus < 16, "256 KiB of text were taken");
    }
    assert!(pdus >= 4, "64 KiB are taken");
    witness.works();
}

#[test]
fn numbers_outside_the_window_are_ignored_and_the_session_goes_on() {
    let lab = Lab::new();
    let mut initiator = lab.initiator(1);
    let good = initiator.cmd_sn;
    for wrong in [1 << 20, u32::MAX, 1 << 31] {
        initiator.cmd_sn = good.wrapping_add(wrong);
        initiator.start(&write10(0, 1), &[0xee; 512], 0);
    }
    initiator.cmd_sn = good;
    let read = initiator.command(&read10(0, 1), &[], 512);
    assert_eq!((read.status, read.data), (0, vec![0; 512]), "none was done");
}

#[test]
fn writes_that_are_never_sent_are_asked_for_within_bounds() {
    let lab = Lab::shaped(Shape {
        disk_bytes: Some(64 << 20),
        ..Shape::default()
    });
    let mut witness = Witness::of(&lab);
    let before = resident_bytes();
    let mut asked = 0;
    for n in 1..5 {
        let mut initiator = lab.initiator(n);
        // As many writes of 16 MiB as the window takes, and not a byte of them.
        for itt in 0..100u32 {
            let mut bhs = [0; 48];
            (bhs[0], bhs[1]) = (0x01, 0xa1);
            bhs[16..20].copy_from_slice(&(1000 + itt).to_be_bytes());
            bhs[20..24].copy_from_slice(&(16u32 << 20).to_be_bytes());
            bhs[24..28].copy_from_slice(&initiator.cmd_sn.to_be_bytes());
            bhs[32..42].copy_from_slice(&write10(0, 32768));
            initiator.cmd_sn += 1;
            initiator.send(bhs, &[]);
        }
        initiator.ping();
        let mut bytes = 0;
        loop {
            let pdu = initiator.receive().unwrap();
            match pdu.bhs[0] {
                0x31 => bytes += u32::from_be_bytes(pdu.bhs[44..48].try_into().unwrap()),
                0x20 => break,
                other => panic!("opcode {other:02x}"),
            }
        }
        assert!(bytes <= 8 << 20, "{bytes} bytes were asked for");
        asked += bytes;
        witness.works();
    }
    assert!(asked > 0);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more are resident");
}

#[test]
fn data_that_nobody_asked_for_costs_no_other_session_anything() {
    let lab = Lab::new();
    let mut witness = Witness::of(&lab);
    // A wrong transfer tag, a wrong task, an offset past the end, a DataSN
    // from elsewhere: to a task that waits for 4 KiB.
    for (at, value) in [(20, [9; 4]), (16, [8; 4]), (40, [0x7f; 4]), (36, [1; 4])] {
        let mut initiator = lab.initiator(1);
        let mut command = [0; 48];
        (command[0], command[1]) = (0x01, 0xa1);
        command[16..20].copy_from_slice(&[0, 0, 3, 0xe8]);
        command[20..24].copy_from_slice(&4096u32.to_be_bytes());
        command[24..28].copy_from_slice(&initiator.cmd_sn.to_be_bytes());
        command[32..42].copy_from_slice(&write10(0, 8));
        initiator.send(command, &[]);
        let r2t = initiator.receive().unwrap();
        assert_eq!(r2t.bhs[0], 0x31);
        let mut data_out = [0; 48];
        (data_out[0], data_out[1]) = (0x05, 0x80);
        data_out[16..24].copy_from_slice(&r2t.bhs[16..24]);
        data_out[at..at + 4].copy_from_slice(&value);
        initiator.send(data_out, &[0xee; 4096]);
        initiator.cmd_sn += 1;
        initiator.ping();
        // Closed, rejected or failed; never done.
        while let Ok(pdu) = initiator.receive() {
            assert!(pdu.bhs[0] != 0x21 || pdu.bhs[3] == 2, "{at}: {:?}", pdu.bhs);
            if pdu.bhs[0] == 0x20 {
                break;
            }
        }
        witness.works();
    }
    let read = witness.initiator.command(&read10(0, 8), &[], 4096);
    assert_eq!(read.data, vec![0; 4096]);
}

#[test]
fn half_open_logins_by_the_thousand_take_little_and_keep_nobody_out() {
    let lab = Lab::shaped(Shape {
        limits: Limits {
            half_open_logins: 64,
            half_open_logins_per_address: 10_000,
            ..Limits::default()
        },
        ..Shape::default()
    });
    let mut witness = Witness::of(&lab);
    let before = resident_bytes();
    let mut held = std::collections::VecDeque::new();
    for n in 0..2000 {
        let mut peer = Initiator::connect(lab.portal, 1);
        // Some say nothing, some begin a PDU, some promise text for ever.
        match n % 3 {
            0 => {}
            1 => drop(peer.stream.write_all(&[0x43, 0x87, 0])),
            _ => peer.send([0x43; 48], &[b'A'; 4096]),
        }
        held.push_back(peer);
        if held.len() > 300 {
            held.pop_front();
        }
        if n % 500 == 250 {
            witness.works();
            let mut late = lab.initiator(100);
            assert_eq!(late.command(&[0; 6], &[], 0).status, 0);
        }
    }
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes more are resident");
    witness.works();
}

#[test]
fn noise_ends_its_own_connection_only() {
    let lab = Lab::new();
    let mut witness = Witness::of(&lab);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for n in 0..60 {
        let mut peer = match n % 2 {
            0 => Initiator::connect(lab.portal, 1),
            _ => lab.initiator(1),
        };
        let mut bytes: Vec<u8> = (0..2048).flat_map(|_| noise().to_be_bytes()).collect();
        // Half of them begin like requests, with lengths that can be.
        let step = if n % 4 < 2 { 48 } else { bytes.len() };
        for at in (0..bytes.len() - 48).step_by(step) {
            bytes[at] &= 0x47;
            let end = bytes.len().min(at + 7);
            bytes[at + 4..end].fill(0);
        }
        let _ = peer.stream.write_all(&bytes);
        let _ = peer.stream.shutdown(std::net::Shutdown::Write);
        let _ = io::copy(&mut peer.stream, &mut io::sink());
        if n % 10 == 0 {
            witness.works();
        }
    }
    Lab::eventually("only the witness is left", || {
        lab.server().sessions().list().len() == 1
    });
    witness.works();
}
