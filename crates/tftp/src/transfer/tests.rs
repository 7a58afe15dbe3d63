//! A transfer with a hand on its clock, and against a client over a bad network.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const CAPS: Caps = Caps {
    block_bytes: ETHERNET_BLOCK_BYTES,
    window_blocks: MAX_WINDOW_BLOCKS,
};

fn terms(options: &[(&str, &str)], size_bytes: u64) -> Terms {
    let options: Vec<TransferOption<'_>> = options
        .iter()
        .map(|(name, value)| TransferOption {
            name: name.as_bytes(),
            value: value.as_bytes(),
        })
        .collect();
    Terms::negotiate(&options, size_bytes, CAPS)
}

/// The OACK as `name=value` pairs, for reading.
fn option_ack(terms: &Terms) -> Vec<String> {
    let Some(datagram) = &terms.option_ack else {
        return Vec::new();
    };
    let Ok(Packet::OptionAck(options)) = Packet::parse(datagram) else {
        panic!("not an OACK")
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    options
        .iter()
        .map(|o| format!("{}={}", text(o.name), text(o.value)))
        .collect()
}

/// A transfer with a hand on its clock.
struct Bench {
    transfer: Transfer,
    now: Instant,
}

impl Bench {
    fn new(options: &[(&str, &str)], size_bytes: u64) -> Bench {
        let now = Instant::now();
        Bench {
            transfer: Transfer::new(terms(options, size_bytes), size_bytes, now),
            now,
        }
    }

    /// Everything it sends now: block numbers, -1 for the OACK.
    fn sends(&mut self) -> Vec<i32> {
        let mut out = Vec::new();
        while let Some(send) = self.transfer.next_send(self.now) {
            out.push(match send {
                Send::OptionAck => -1,
                Send::Data { block, .. } => i32::from(block),
            });
        }
        out
    }

    fn ack(&mut self, block: u16) -> Vec<i32> {
        self.now += Duration::from_millis(1);
        self.transfer.receive(&Packet::Ack { block }, self.now);
        self.sends()
    }

    fn error(&mut self, code: u16) {
        self.transfer.receive(
            &Packet::Error {
                code,
                message: b"bye",
            },
            self.now,
        );
    }

    /// Waits for the deadline; what is sent then, and after how long.
    fn silence(&mut self) -> (Vec<i32>, Duration) {
        let waited = self.transfer.deadline().saturating_duration_since(self.now);
        self.now += waited;
        self.transfer.wake(self.now);
        (self.sends(), waited)
    }

    fn outcome(&self) -> Option<&Outcome> {
        self.transfer.outcome()
    }
}

// ---- options -------------------------------------------------------------

#[test]
fn edk2_gets_size_block_and_window() {
    let terms = terms(
        &[("tsize", "0"), ("blksize", "1468"), ("windowsize", "4")],
        850_528,
    );
    assert_eq!(
        option_ack(&terms),
        ["tsize=850528", "blksize=1468", "windowsize=4"]
    );
}

/// The best answer to EDK2's second request, byte for byte.
#[test]
fn an_option_ack_is_laid_out_as_in_the_sheet() {
    let terms = terms(&[("blksize", "1468"), ("windowsize", "4")], 850_528);
    let expected = b"\0\x06blksize\x001468\0windowsize\x004\0".to_vec();
    assert_eq!(terms.option_ack, Some(expected));
}

#[test]
fn blocks_are_capped_to_what_fits_a_frame() {
    assert_eq!(terms(&[("blksize", "65464")], 1).block_bytes, 1468);
    assert_eq!(terms(&[("blksize", "8")], 1).block_bytes, 8);
    let small = Caps {
        block_bytes: 1428,
        window_blocks: 1,
    };
    let asked = [TransferOption {
        name: b"blksize",
        value: b"1468",
    }];
    assert_eq!(
        option_ack(&Terms::negotiate(&asked, 1, small)),
        ["blksize=1428"]
    );
}

#[test]
fn windows_are_capped_to_64() {
    assert_eq!(
        option_ack(&terms(&[("windowsize", "65535")], 1)),
        ["windowsize=64"]
    );
}

#[test]
fn options_out_of_range_or_unknown_are_left_out() {
    for (name, value) in [
        ("blksize", "7"),
        ("blksize", "65465"),
        ("blksize", "many"),
        ("windowsize", "0"),
        ("windowsize", "65536"),
        ("timeout", "0"),
        ("timeout", "255"),
        ("timeout", "256"),
        ("tsize", ""),
        ("multicast", ""),
        ("msftwindow", "31416"),
    ] {
        assert_eq!(
            terms(&[(name, value)], 1).option_ack,
            None,
            "{name}={value}"
        );
    }
}

#[test]
fn option_names_are_echoed_in_their_own_case_and_only_once() {
    let terms = terms(
        &[("BlkSize", "1024"), ("blksize", "512"), ("TSIZE", "0")],
        9,
    );
    assert_eq!(option_ack(&terms), ["BlkSize=1024", "TSIZE=9"]);
    assert_eq!(terms.block_bytes, 1024);
}

#[test]
fn a_timeout_is_echoed_unchanged_and_obeyed() {
    assert_eq!(option_ack(&terms(&[("timeout", "5")], 1)), ["timeout=5"]);
    let mut bench = Bench::new(&[("timeout", "5")], 1);
    bench.sends();
    assert_eq!(bench.silence(), (vec![-1], Duration::from_secs(5)));
}

// ---- lock-step -----------------------------------------------------------

#[test]
fn an_empty_file_is_one_empty_block() {
    let mut bench = Bench::new(&[], 0);
    let send = bench.transfer.next_send(bench.now);
    assert_eq!(
        send,
        Some(Send::Data {
            block: 1,
            offset_bytes: 0,
            length_bytes: 0
        })
    );
    bench.ack(1);
    assert_eq!(bench.outcome(), Some(&Outcome::Complete { bytes: 0 }));
}

#[test]
fn a_file_of_one_whole_block_ends_with_an_empty_one() {
    let mut bench = Bench::new(&[], 512);
    let send = bench.transfer.next_send(bench.now);
    assert_eq!(
        send,
        Some(Send::Data {
            block: 1,
            offset_bytes: 0,
            length_bytes: 512
        })
    );
    bench.transfer.receive(&Packet::Ack { block: 1 }, bench.now);
    let send = bench.transfer.next_send(bench.now);
    assert_eq!(
        send,
        Some(Send::Data {
            block: 2,
            offset_bytes: 512,
            length_bytes: 0
        })
    );
}

/// 850,528 bytes in blocks of 1428: 595 full ones and one of 868.
#[test]
fn blocks_are_counted_as_in_the_capture() {
    let mut bench = Bench::new(&[("blksize", "1428")], 850_528);
    assert_eq!(bench.sends(), [-1]);
    let mut last = None;
    for block in 0..596 {
        bench.transfer.receive(&Packet::Ack { block }, bench.now);
        last = bench.transfer.next_send(bench.now);
    }
    assert_eq!(
        last,
        Some(Send::Data {
            block: 596,
            offset_bytes: 849_660,
            length_bytes: 868
        })
    );
    bench.ack(596);
    assert_eq!(bench.outcome(), Some(&Outcome::Complete { bytes: 850_528 }));
}

#[test]
fn no_block_goes_out_before_the_option_ack_is_answered() {
    let mut bench = Bench::new(&[("blksize", "1468"), ("windowsize", "64")], 1 << 20);
    assert_eq!(bench.sends(), [-1]);
    assert_eq!(bench.ack(1), [], "only ACK 0 answers an OACK");
    assert_eq!(bench.ack(0).len(), 64);
}

#[test]
fn a_repeated_ack_sends_nothing_in_lock_step() {
    let mut bench = Bench::new(&[], 5000);
    assert_eq!(bench.sends(), [1]);
    assert_eq!(bench.ack(1), [2]);
    assert_eq!(bench.ack(1), []);
    assert_eq!(bench.ack(0), []);
    assert_eq!(bench.ack(2), [3]);
}

#[test]
fn an_ack_of_a_block_never_sent_is_ignored() {
    let mut bench = Bench::new(&[], 5000);
    assert_eq!(bench.sends(), [1]);
    assert_eq!(bench.ack(2), []);
    assert_eq!(bench.ack(65535), []);
    assert_eq!(bench.outcome(), None);
}

#[test]
fn block_numbers_wrap_to_zero() {
    let size = 65_535 * 512; // 65535 full blocks and an empty one
    let mut bench = Bench::new(&[], size);
    assert_eq!(bench.sends(), [1]);
    for block in 1..65_535 {
        bench.transfer.receive(&Packet::Ack { block }, bench.now);
        bench.transfer.next_send(bench.now);
    }
    assert_eq!(bench.ack(65_535), [0]);
    bench.ack(0);
    assert_eq!(bench.outcome(), Some(&Outcome::Complete { bytes: size }));
}

// ---- windows -------------------------------------------------------------

#[test]
fn a_window_of_four_takes_ten_blocks_in_three_acks() {
    let mut bench = Bench::new(&[("windowsize", "4")], 9 * 512 + 1);
    assert_eq!(bench.sends(), [-1]);
    assert_eq!(bench.ack(0), [1, 2, 3, 4]);
    assert_eq!(bench.ack(4), [5, 6, 7, 8]);
    assert_eq!(bench.ack(8), [9, 10]);
    assert_eq!(bench.ack(10), []);
    assert!(matches!(bench.outcome(), Some(Outcome::Complete { .. })));
}

#[test]
fn an_ack_inside_the_window_resumes_behind_it() {
    let mut bench = Bench::new(&[("windowsize", "4")], 100 * 512);
    bench.sends();
    bench.ack(0);
    assert_eq!(bench.ack(2), [3, 4, 5, 6]);
}

#[test]
fn a_repeated_ack_resends_a_window_once() {
    let mut bench = Bench::new(&[("windowsize", "4")], 100 * 512);
    bench.sends();
    bench.ack(0);
    assert_eq!(bench.ack(4), [5, 6, 7, 8]);
    assert_eq!(bench.ack(4), [5, 6, 7, 8], "the client misses block 5");
    assert_eq!(bench.ack(4), []);
}

/// Sorcerer's Apprentice: every ACK doubled by the network must not double
/// every window.
#[test]
fn doubled_acks_do_not_double_the_transfer() {
    let mut bench = Bench::new(&[("windowsize", "4")], 1000 * 512);
    bench.sends();
    bench.ack(0);
    for block in (4..=996).step_by(4) {
        bench.ack(block);
        bench.ack(block);
    }
    assert!(
        bench.transfer.resent_blocks() <= 500,
        "{}",
        bench.transfer.resent_blocks()
    );
}

#[test]
fn windows_go_on_over_the_wrap() {
    let mut bench = Bench::new(&[("blksize", "8"), ("windowsize", "64")], 8 * 70_000);
    bench.sends();
    let mut acked = 0_u64;
    let mut sent = bench.ack(0);
    while bench.outcome().is_none() {
        acked += sent.len() as u64;
        assert_eq!(sent.last(), Some(&i32::from(on_the_wire(acked))));
        sent = bench.ack(on_the_wire(acked));
    }
    assert_eq!(acked, 70_001);
}

// ---- silence -------------------------------------------------------------

#[test]
fn resends_are_spaced_by_doubling_and_end() {
    let mut bench = Bench::new(&[("blksize", "1468")], 5000);
    assert_eq!(bench.sends(), [-1]);
    let mut waits = Vec::new();
    while bench.outcome().is_none() {
        let (sent, waited) = bench.silence();
        waits.push(waited.as_secs());
        assert!(sent == [-1] || bench.outcome().is_some());
    }
    assert_eq!(waits, [1, 2, 4, 8, 8, 8]);
    assert_eq!(bench.outcome(), Some(&Outcome::TimedOut { bytes: 0 }));
}

#[test]
fn a_silent_client_gets_its_block_again_and_goes_on() {
    let mut bench = Bench::new(&[], 5000);
    bench.sends();
    assert_eq!(bench.ack(1), [2]);
    let (sent, waited) = bench.silence();
    assert_eq!(sent, [2]);
    assert_eq!(
        waited, LEAST_PATIENCE,
        "the client answers in a millisecond"
    );
    assert_eq!(bench.ack(2), [3]);
}

/// Neither a steady client nor one that varies is hurried.
#[test]
fn patience_follows_the_clients_round_trip_and_how_it_varies() {
    let patience = |round_trips: [u64; 2]| {
        let mut bench = Bench::new(&[], 1 << 20);
        bench.sends();
        for block in 1..=100_u16 {
            let took = Duration::from_millis(round_trips[usize::from(block % 2)]);
            assert!(bench.now + took < bench.transfer.deadline(), "hurried");
            bench.now += took - Duration::from_millis(1); // ack() takes one
            bench.ack(block);
        }
        bench.silence().1
    };
    let (steady, varying) = (patience([150, 150]), patience([100, 200]));
    assert_eq!(steady.as_millis(), 300, "twice what it takes");
    assert!((300..=500).contains(&varying.as_millis()), "{varying:?}");
    assert_eq!(patience([900, 990]), FIRST_PATIENCE, "never more than that");
}

#[test]
fn a_client_that_vanishes_in_the_middle_is_given_up_after_half_a_minute() {
    let mut bench = Bench::new(&[], 5000);
    bench.sends();
    bench.ack(1);
    let begun = bench.now;
    while bench.outcome().is_none() {
        bench.silence();
    }
    assert_eq!(bench.outcome(), Some(&Outcome::TimedOut { bytes: 512 }));
    let waited = bench.now - begun;
    assert!(
        waited >= MAX_SILENCE && waited < Duration::from_secs(45),
        "{waited:?}"
    );
}

#[test]
fn a_missing_last_ack_is_no_failure() {
    let mut bench = Bench::new(&[("blksize", "1468"), ("windowsize", "4")], 5000);
    bench.sends();
    assert_eq!(bench.ack(0), [1, 2, 3, 4]);
    while bench.outcome().is_none() {
        bench.silence();
    }
    assert_eq!(bench.outcome(), Some(&Outcome::Complete { bytes: 5000 }));
}

#[test]
fn one_block_sent_to_nobody_is_not_complete() {
    let mut bench = Bench::new(&[], 100);
    bench.sends();
    while bench.outcome().is_none() {
        bench.silence();
    }
    assert_eq!(bench.outcome(), Some(&Outcome::TimedOut { bytes: 0 }));
}

#[test]
fn waking_too_early_does_nothing() {
    let mut bench = Bench::new(&[], 5000);
    bench.sends();
    bench.transfer.wake(bench.now);
    assert_eq!(bench.sends(), []);
}

// ---- errors and repeated requests ----------------------------------------

#[test]
fn an_error_right_after_the_option_ack_is_a_size_probe() {
    for code in [0, 8] {
        let mut bench = Bench::new(&[("tsize", "0"), ("blksize", "1468")], 5000);
        bench.sends();
        bench.error(code);
        assert_eq!(bench.outcome(), Some(&Outcome::Probed), "code {code}");
    }
}

#[test]
fn an_error_without_a_question_for_the_size_is_an_abort() {
    let mut bench = Bench::new(&[("blksize", "1468")], 5000);
    bench.sends();
    bench.error(8);
    let message = "bye".to_owned();
    assert_eq!(
        bench.outcome(),
        Some(&Outcome::Aborted {
            code: 8,
            message,
            bytes: 0
        })
    );
}

#[test]
fn an_error_in_the_middle_says_how_far_it_came() {
    let mut bench = Bench::new(&[("tsize", "0")], 5000);
    bench.sends();
    bench.ack(0);
    bench.ack(1);
    bench.error(3);
    let message = "bye".to_owned();
    assert_eq!(
        bench.outcome(),
        Some(&Outcome::Aborted {
            code: 3,
            message,
            bytes: 512
        })
    );
    assert_eq!(bench.ack(2), [], "nothing follows an ERROR");
}

#[test]
fn a_repeated_request_gets_the_first_answer_again() {
    let mut bench = Bench::new(&[("tsize", "0")], 5000);
    assert_eq!(bench.sends(), [-1]);
    assert_eq!(bench.transfer.repeat(bench.now), Repeat::Resent);
    assert_eq!(bench.sends(), [-1]);
    let mut bench = Bench::new(&[], 5000);
    assert_eq!(bench.sends(), [1]);
    assert_eq!(bench.transfer.repeat(bench.now), Repeat::Resent);
    assert_eq!(bench.sends(), [1]);
}

#[test]
fn a_late_copy_of_the_request_changes_nothing() {
    let mut bench = Bench::new(&[], 5000);
    bench.sends();
    bench.ack(1);
    assert_eq!(bench.transfer.repeat(bench.now), Repeat::Copy);
    assert_eq!(bench.sends(), []);
}

#[test]
fn a_request_after_a_second_of_silence_is_a_restart() {
    let mut bench = Bench::new(&[], 5000);
    bench.sends();
    bench.ack(1);
    bench.now += COPY_TIME;
    assert_eq!(bench.transfer.repeat(bench.now), Repeat::Restart);
}

// ---- against a client over a bad network ---------------------------------

/// A reading client as RFC 1350 and RFC 7440 want it: acknowledges at the end
/// of a window, at the last block, and at a gap: once per gap, and once more
/// after every silence.
struct Reader {
    window: u64,
    block_bytes: usize,
    received: Vec<u8>,
    /// Blocks received in order.
    in_order: u64,
    /// Where the window it acknowledged last ended.
    acked: u64,
    gap_reported: bool,
    done: bool,
}

impl Reader {
    fn ack(&mut self) -> u16 {
        self.acked = self.in_order;
        on_the_wire(self.in_order)
    }

    fn take(&mut self, block: u16, payload: &[u8]) -> Option<u16> {
        if block == on_the_wire(self.in_order + 1) && !self.done {
            self.received.extend_from_slice(payload);
            self.in_order += 1;
            self.gap_reported = false;
            self.done = payload.len() < self.block_bytes;
            let ends = self.done || self.in_order == self.acked + self.window;
            return ends.then(|| self.ack());
        }
        if self.window == 1 || self.done {
            return Some(self.ack()); // a block it has already
        }
        if self.gap_reported {
            return None;
        }
        self.gap_reported = true;
        Some(self.ack())
    }
}

/// What the network does with one packet.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Arrives,
    Lost,
    Doubled,
    /// Changes place with the next one.
    Late,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![8 => Just(Fate::Arrives), 1 => Just(Fate::Lost), 1 => Just(Fate::Doubled), 1 => Just(Fate::Late)]
}

/// Lets packets through a network with these fates, in turn for ever.
fn deliver<T: Clone>(packets: Vec<T>, fates: &mut dyn Iterator<Item = Fate>) -> Vec<T> {
    let mut out = Vec::new();
    let mut late = None;
    for packet in packets {
        match fates.next() {
            Some(Fate::Lost) => {}
            Some(Fate::Doubled) => out.extend([packet.clone(), packet]),
            Some(Fate::Late) if late.is_none() => {
                late = Some(packet);
                continue;
            }
            _ => out.push(packet),
        }
        out.extend(late.take());
    }
    out.extend(late);
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_file_comes_through_a_bad_network_whole(
        size in 0_usize..20_000, window in 1_u16..=64, block_bytes in 8_u16..600,
        fates in vec(fate(), 1..200), has_options: bool,
    ) {
        let file: Vec<u8> = (0..=250).cycle().step_by(7).take(size).collect();
        let (window_text, block_text) = (window.to_string(), block_bytes.to_string());
        let asked = [("blksize", block_text.as_str()), ("windowsize", window_text.as_str())];
        let options: &[(&str, &str)] = if has_options { &asked } else { &[] };
        let mut bench = Bench::new(options, size as u64);
        let agreed = bench.transfer.terms().clone();
        let mut reader = Reader {
            window: u64::from(agreed.window_blocks),
            block_bytes: usize::from(agreed.block_bytes),
            received: Vec::new(), in_order: 0, acked: 0, gap_reported: false, done: false,
        };
        let mut fates = fates.iter().copied().cycle();
        let mut clear = std::iter::repeat(Fate::Arrives);
        let (mut rounds, mut acked, mut stalled) = (0, 0, 0);
        while bench.outcome().is_none() {
            rounds += 1;
            prop_assert!(rounds < 100_000, "no end at block {}", reader.in_order);
            stalled = if bench.transfer.acked > acked { 0 } else { stalled + 1 };
            acked = bench.transfer.acked;
            // A network that loses everything is no network.
            let fates: &mut dyn Iterator<Item = Fate> = if stalled > 4 { &mut clear } else { &mut fates };
            let mut sent = Vec::new();
            while let Some(send) = bench.transfer.next_send(bench.now) {
                sent.push(send);
            }
            prop_assert!(sent.len() <= 64, "more than a window at once");
            let mut acks = Vec::new();
            for send in deliver(sent, fates) {
                match send {
                    Send::OptionAck => acks.push(0),
                    Send::Data { block, offset_bytes, length_bytes } => {
                        let offset = usize::try_from(offset_bytes).unwrap();
                        acks.extend(reader.take(block, &file[offset..offset + length_bytes]));
                    }
                }
            }
            bench.now += Duration::from_millis(3);
            let acks = deliver(acks, fates);
            if acks.is_empty() {
                bench.now = bench.now.max(bench.transfer.deadline());
                bench.transfer.wake(bench.now);
                reader.gap_reported = false; // its timer, too
            }
            for block in acks {
                bench.transfer.receive(&Packet::Ack { block }, bench.now);
            }
        }
        prop_assert_eq!(bench.outcome(), Some(&Outcome::Complete { bytes: size as u64 }));
        prop_assert!(reader.done, "complete, but the client has not got the end");
        prop_assert_eq!(&reader.received, &file);
    }
}
