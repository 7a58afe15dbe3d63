//! Doors for the fuzz targets of `fuzz/`: each takes bytes a peer could send.
//! Compiled for them, and for the tests, which replay the corpus.

use crate::wire::{Message, code, inner_options};

/// A door: bytes in, nothing out.
pub type Door = fn(&[u8]);

/// All doors, by the names of their targets and corpora.
pub const DOORS: [(&str, Door); 1] = [("dhcp", message)];

/// A message; what it means is the same after it was written and read again.
pub fn message(bytes: &[u8]) {
    let Ok(message) = Message::parse(bytes) else {
        return;
    };
    let _ = message.message_type();
    for (_, data) in message.options.iter() {
        let _ = inner_options(data).count();
    }
    let _ = message.options.text(code::HOST_NAME);
    assert_eq!(Message::parse(&message.emit()).as_ref(), Ok(&message));
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
