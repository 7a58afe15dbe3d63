//! Doors for the fuzz targets of `fuzz/`: each takes bytes a peer could send.
//! Compiled for them, and for the tests, which replay the corpus.

use std::time::{Duration, Instant};

use crate::transfer::{Caps, MAX_WINDOW_BLOCKS, Send, Terms, Transfer};
use crate::wire::{Ask, MAX_OPTIONS, Packet, normalise, readable};

/// A door: bytes in, nothing out.
pub type Door = fn(&[u8]);

/// All doors, by the names of their targets and corpora.
pub const DOORS: [(&str, Door); 2] = [("tftp", packet), ("transfer", transfer)];

/// A datagram; what it means is the same after it was written and read again.
pub fn packet(bytes: &[u8]) {
    let Ok(packet) = Packet::parse(bytes) else {
        return;
    };
    let mut again = Vec::new();
    packet.emit(&mut again);
    assert_eq!(Packet::parse(&again).as_ref(), Ok(&packet));
    match &packet {
        Packet::Read(Ask { name, options, .. }) | Packet::Write(Ask { name, options, .. }) => {
            assert!(options.len() <= MAX_OPTIONS);
            if let Ok(name) = normalise(name) {
                let is_inside = |part: &str| !matches!(part, "" | "." | "..");
                assert!(name.split('/').all(is_inside), "{name} leads elsewhere");
            }
            let caps = Caps {
                block_bytes: 1468,
                window_blocks: 16,
            };
            let terms = Terms::negotiate(options, 1 << 20, caps);
            assert!((8..=1468).contains(&terms.block_bytes));
            assert!((1..=16).contains(&terms.window_blocks));
        }
        Packet::Error { message, .. } => drop(readable(message)),
        _ => {}
    }
}

/// A client's part of one transfer: a request, then packets with the time
/// between them. Each is led by two bytes: how long it is, and after how many
/// times 16 ms it comes. However the client behaves, a transfer stays within
/// its window, sends only what the file has, and ends.
pub fn transfer(bytes: &[u8]) {
    const SIZE_BYTES: u64 = 3 * 512 + 100;
    let mut steps = bytes;
    let mut next = || -> Option<(&[u8], Duration)> {
        let (&[length, pause], rest) = steps.split_first_chunk()?;
        let (packet, rest) = rest.split_at_checked(usize::from(length))?;
        steps = rest;
        Some((packet, Duration::from_millis(u64::from(pause) * 16)))
    };
    let Some((request, _)) = next() else { return };
    let Ok(Packet::Read(ask)) = Packet::parse(request) else {
        return;
    };
    let caps = Caps {
        block_bytes: 1468,
        window_blocks: MAX_WINDOW_BLOCKS,
    };
    let terms = Terms::negotiate(&ask.options, SIZE_BYTES, caps);
    let window = usize::from(terms.window_blocks);
    let mut now = Instant::now();
    let mut transfer = Transfer::new(terms, SIZE_BYTES, now);
    let send = |transfer: &mut Transfer, now| {
        let mut count = 0;
        while let Some(send) = transfer.next_send(now) {
            count += 1;
            assert!(count <= window, "more than a window at once");
            if let Send::Data {
                offset_bytes,
                length_bytes,
                ..
            } = send
            {
                assert!(offset_bytes + length_bytes as u64 <= SIZE_BYTES);
            }
        }
    };
    send(&mut transfer, now);
    while let Some((packet, pause)) = next() {
        now += pause;
        if now >= transfer.deadline() {
            transfer.wake(now);
            send(&mut transfer, now);
        }
        if let Ok(packet) = Packet::parse(packet) {
            transfer.receive(&packet, now);
        } else {
            let _ = transfer.repeat(now);
        }
        send(&mut transfer, now);
    }
    for _ in 0..32 {
        if transfer.outcome().is_some() {
            return;
        }
        now = now.max(transfer.deadline());
        transfer.wake(now);
        send(&mut transfer, now);
    }
    panic!("a silent client keeps its place");
}

#[cfg(test)]
#[path = "../../../fuzz/src/corpus.rs"]
mod corpus;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_is_survived() {
        corpus::replay(&DOORS);
    }
}
