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
mod tests {
    use super::*;

    /// Every input of the corpus, and each cut off and with a bit turned
    /// here and there.
    #[test]
    fn the_corpus_is_survived() {
        for (name, door) in DOORS {
            let folder = format!("{}/../../fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
            let mut count = 0;
            for entry in std::fs::read_dir(&folder).unwrap() {
                let bytes = std::fs::read(entry.unwrap().path()).unwrap();
                door(&bytes);
                for at in (0..bytes.len()).step_by(19) {
                    door(&bytes[..at]);
                    let mut turned = bytes.clone();
                    turned[at] ^= 1 << (at % 8);
                    door(&turned);
                }
                count += 1;
            }
            assert!(count > 0, "{folder} is empty");
        }
    }
}
