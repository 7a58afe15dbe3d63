//! Doors for the fuzz targets of `fuzz/`: each takes bytes a peer could send.
//! Compiled for them, and for the tests, which replay the corpus.

use crate::transfer::{Caps, Terms};
use crate::wire::{Ask, MAX_OPTIONS, Packet, normalise, readable};

/// A door: bytes in, nothing out.
pub type Door = fn(&[u8]);

/// All doors, by the names of their targets and corpora.
pub const DOORS: [(&str, Door); 1] = [("tftp", packet)];

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
