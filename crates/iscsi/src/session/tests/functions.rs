//! RFC 7143 sections 11.5 and 11.6, RFC 7144: functions that end or ask for
//! tasks, and logout (11.14).

use super::*;

impl Lab {
    /// What a function is answered with.
    fn response(&mut self, function: u8, tag: u32) -> u8 {
        self.manage(function, tag);
        let heard = self.heard();
        let answer = heard.last().unwrap();
        assert_eq!((answer.opcode, answer.itt), (0x22, 77));
        answer.bytes[0]
    }

    fn of_rfc_7144() -> Lab {
        let mut shape = Shape::default();
        shape.parameters.protocol_level = 2;
        Lab::shaped(shape)
    }

    fn log_out_because(&mut self, reason: u8, cid: u16) -> (Next, Heard) {
        let request = Request::Logout(LogoutRequest {
            immediate: true,
            reason,
            itt: 9,
            cid,
            cmd_sn: self.cmd_sn,
            exp_stat_sn: 0,
        });
        let next = self.send(&request, &[]);
        (next, self.heard().remove(0))
    }

    /// ABORT TASK of a command that never came.
    fn abort_unseen(&mut self, ref_cmd_sn: u32, cmd_sn: u32) -> u8 {
        let request = Request::TaskManagement(TaskManagement {
            immediate: true,
            function: 1,
            lun: LUN,
            itt: 77,
            referenced_tag: 0x4444,
            cmd_sn,
            exp_stat_sn: 0,
            ref_cmd_sn,
        });
        self.send(&request, &[]);
        self.heard()[0].bytes[0]
    }
}

#[test]
fn the_functions_of_rfc_7144_are_known_where_they_were_agreed_on() {
    for function in [9, 10, 11, 12] {
        assert_eq!(Lab::new().response(function, 0), 5);
        assert_eq!(Lab::of_rfc_7144().response(function, 0), 0);
    }
    assert_eq!(Lab::of_rfc_7144().response(13, 0), 5);
}

#[test]
fn tasks_are_found_by_tag_and_by_unit() {
    let mut lab = Lab::of_rfc_7144();
    let r2t = lab.command(&write10(50, 8), 4096, 0xa0, &[]).remove(0);
    assert_eq!(lab.response(9, r2t.itt), 7);
    assert_eq!(lab.response(9, r2t.itt + 1), 0);
    assert_eq!(lab.response(10, 0), 7);
    lab.data_out(&r2t, 0, 0, &[1; 4096], true);
    lab.heard();
    assert_eq!(lab.response(10, 0), 0);
    // One on a worker is a task as well.
    lab.command(&FLUSH, 0, 0x80, &[]);
    assert_eq!(lab.response(10, 0), 7);
}

#[test]
fn an_attention_that_waits_is_told_without_being_taken() {
    let mut lab = Lab::of_rfc_7144();
    lab.target.unit(0).unwrap().reset();
    lab.manage(12, 0);
    lab.out.flush().unwrap();
    let bytes = lab.wire.0.take();
    assert_eq!((bytes[0], bytes[2]), (0x22, 7));
    assert_eq!(bytes[8..11], [0x16, 0x29, 0x03], "depth 1, key 6");
    assert_eq!(lab.command(&[0; 6], 0, 0x80, &[])[0].sense(), (6, 0x29, 3));
    assert_eq!(lab.response(12, 0), 0);
}

#[test]
fn a_nexus_reset_ends_the_sessions_tasks_and_says_so_at_every_unit() {
    let mut lab = Lab::of_rfc_7144();
    let r2t = lab.command(&write10(50, 8), 4096, 0xa0, &[]).remove(0);
    assert_eq!(lab.response(11, 0), 0);
    lab.data_out(&r2t, 0, 0, &[1; 4096], true);
    assert!(lab.heard().is_empty());
    assert_eq!(lab.command(&[0; 6], 0, 0x80, &[])[0].sense(), (6, 0x29, 7));
    assert!(lab.command(&[0; 6], 0, 0x80, &[])[0].is_good());
}

#[test]
fn functions_for_a_unit_that_is_not_there_say_so() {
    for function in [2, 4, 5, 9, 10, 12] {
        let mut lab = Lab::of_rfc_7144();
        lab.target.detach(0).unwrap();
        lab.move_on();
        assert_eq!(lab.response(function, 0), 2, "{function}");
    }
}

#[test]
fn a_command_that_was_aborted_before_it_came_leaves_no_hole() {
    let mut lab = Lab::new();
    let next = lab.cmd_sn;
    // The second of two on their way, then the first of them comes.
    assert_eq!(
        lab.abort_unseen(next.wrapping_add(1), next.wrapping_add(2)),
        0
    );
    assert!(lab.command(&[0; 6], 0, 0x80, &[])[0].is_good());
    lab.cmd_sn = lab.cmd_sn.wrapping_add(1);
    let heard = lab.command(&[0; 6], 0, 0x80, &[]);
    assert!(heard[0].is_good());
    assert_eq!(heard[0].exp_cmd_sn, next.wrapping_add(3));
    // What was aborted comes after all: it is old.
    let late = lab.cmd_sn;
    lab.cmd_sn = next.wrapping_add(1);
    assert!(lab.command(&[0; 6], 0, 0x80, &[]).is_empty());
    lab.cmd_sn = late;
    assert!(lab.session.given_up.is_empty());
}

#[test]
fn a_number_outside_the_window_or_not_older_names_no_task() {
    let mut lab = Lab::new();
    let next = lab.cmd_sn;
    assert_eq!(lab.abort_unseen(next.wrapping_sub(1), next), 1);
    assert_eq!(lab.abort_unseen(next, next), 1);
    assert_eq!(
        lab.abort_unseen(next.wrapping_add(8), next.wrapping_add(9)),
        1
    );
    assert!(lab.command(&[0; 6], 0, 0x80, &[])[0].is_good());
}

#[test]
fn a_connection_is_logged_out_by_its_own_number_only() {
    let mut lab = Lab::new();
    let (next, heard) = lab.log_out_because(1, 2);
    assert_eq!(
        (next, heard.opcode, heard.bytes[0]),
        (Next::Continue, 0x26, 1)
    );
    let (next, heard) = lab.log_out_because(2, 1);
    assert_eq!((next, heard.bytes[0]), (Next::Continue, 2));
    let (next, heard) = lab.log_out_because(3, 1);
    assert_eq!((next, heard.opcode), (Next::Continue, 0x3f));
    assert_eq!(heard.bytes[0], reason::INVALID_FIELD);
    let (next, heard) = lab.log_out_because(1, 1);
    assert_eq!((next, heard.bytes[0]), (Next::Close, 0));
}

#[test]
fn an_aborted_write_gets_no_response_and_its_data_is_dropped() {
    let mut lab = Lab::new();
    let r2t = lab.command(&write10(50, 16), 8192, 0xa0, &[]).remove(0);
    assert_eq!(lab.manage(1, r2t.itt), Next::Continue);
    let heard = lab.heard();
    assert_eq!(
        (heard[0].opcode, heard[0].bytes[0], heard.len()),
        (0x22, 0, 1)
    );
    lab.data_out(&r2t, 0, 0, &[1; 8192], true);
    assert!(lab.heard().is_empty());
    assert_eq!(lab.disk(50, 1), block(50));
    // Nothing is there any more.
    lab.manage(1, r2t.itt);
    assert_eq!(lab.heard()[0].bytes[0], 1);
}

#[test]
fn a_reset_by_another_session_ends_tasks_silently_and_tells_everybody() {
    let mut lab = Lab::new();
    let r2t = lab.command(&write10(50, 8), 4096, 0xa0, &[]).remove(0);
    lab.target.unit(0).unwrap().reset();
    lab.data_out(&r2t, 0, 0, &[1; 4096], true);
    assert!(lab.heard().is_empty());
    assert_eq!(lab.disk(50, 1), block(50), "nothing of it reaches the disk");
    assert_eq!(lab.command(&[0; 6], 0, 0x80, &[])[0].sense(), (6, 0x29, 3));
}

#[test]
fn functions_nobody_knows_are_said_to_be_unsupported() {
    let mut lab = Lab::new();
    for (function, response) in [(8, 4), (3, 5), (9, 5), (12, 5)] {
        lab.manage(function, 0);
        assert_eq!(lab.heard()[0].bytes[0], response);
    }
}

#[test]
fn an_aborted_flush_is_abandoned_and_an_aborted_unmap_is_waited_for() {
    let mut lab = Lab::new();
    lab.command(&FLUSH, 0, 0x80, &[]);
    let itt = lab.cmd_sn.wrapping_sub(1).wrapping_add(1000);
    lab.manage(1, itt);
    assert_eq!(lab.heard()[0].bytes[0], 0);
    lab.help();
    assert!(lab.heard().is_empty());

    let list = [0; 24];
    let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    lab.command(&unmap, 24, 0xa0, &list);
    let itt = lab.cmd_sn.wrapping_sub(1).wrapping_add(1000);
    lab.manage(1, itt);
    assert!(lab.heard().is_empty(), "it may still change the disk");
    lab.help();
    let heard = lab.heard();
    assert_eq!(
        (heard.len(), heard[0].opcode, heard[0].bytes[0]),
        (1, 0x22, 0)
    );
}

#[test]
fn a_later_function_also_waits_for_what_an_earlier_one_has_aborted() {
    let mut lab = Lab::new();
    let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    lab.command(&unmap, 24, 0xa0, &[0; 24]);
    let itt = lab.cmd_sn.wrapping_sub(1).wrapping_add(1000);
    for function in [1, 1, 5] {
        lab.manage(function, itt);
        assert!(lab.heard().is_empty(), "it may still change the disk");
    }
    lab.help();
    // Aborted; aborted before; nothing left of it.
    let responses: Vec<_> = lab.heard().iter().map(|h| h.bytes[0]).collect();
    assert_eq!(responses, [0, 1, 0]);
}

#[test]
fn functions_that_wait_are_few() {
    let mut lab = Lab::new();
    let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    lab.command(&unmap, 24, 0xa0, &[0; 24]);
    (0..100).for_each(|_| {
        lab.manage(5, 0);
    });
    let heard = lab.heard();
    assert!(heard.iter().all(|h| h.bytes[0] == 255), "rejected");
    assert_eq!(heard.len() + lab.session.resolving.len(), 100);
    assert_eq!(lab.session.resolving.len(), 16);
}

#[test]
fn logout_is_answered_and_closes() {
    let mut lab = Lab::new();
    let request = Request::Logout(LogoutRequest {
        immediate: true,
        reason: 0,
        itt: 9,
        cid: 0,
        cmd_sn: lab.cmd_sn,
        exp_stat_sn: 0,
    });
    assert_eq!(lab.send(&request, &[]), Next::Close);
    assert_eq!((lab.heard()[0].opcode), 0x26);
}

#[test]
fn what_a_nexus_held_is_free_when_its_logout_is_answered() {
    let mut lab = Lab::new();
    let unit = lab.target.unit(0).unwrap();
    let other = unit.connect(&NexusName {
        initiator: "iqn.a:other".into(),
        isid: [1; 6],
    });
    assert!(lab.command(&[0x16, 0, 0, 0, 0, 0], 0, 0x80, &[])[0].is_good());
    let mut statuses = vec![];
    for _ in 0..2 {
        let refusal = unit.admit(&other, &[0; 6]).err();
        statuses.push(refusal.map(|refusal| refusal.status()));
    }
    let request = Request::Logout(LogoutRequest {
        immediate: true,
        reason: 0,
        itt: 9,
        cid: 0,
        cmd_sn: lab.cmd_sn,
        exp_stat_sn: 0,
    });
    assert_eq!(lab.send(&request, &[]), Next::Close);
    let refusal = unit.admit(&other, &[0; 6]).err();
    statuses.push(refusal.map(|refusal| refusal.status()));
    assert_eq!(statuses, [Some(0x02), Some(0x18), None]);
}
