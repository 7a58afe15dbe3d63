//! The corpus, replayed by an ordinary test of every engine that has doors.
//!
//! One file, which each engine's `fuzzing` takes in by its path: engines share
//! no room, and this is no room.

use std::fs;

/// A door's name, which is that of its corpus, and the door.
type Named = (&'static str, fn(&[u8]));

/// Puts every input of each door's corpus through it, and each cut off and
/// with a bit turned here and there.
pub(crate) fn replay(doors: &[Named]) {
    for (name, door) in doors {
        let folder = format!("{}/../../fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
        let mut count = 0;
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}")) {
            let bytes = fs::read(entry.unwrap().path()).unwrap();
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
