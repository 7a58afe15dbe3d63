//! All fuzz targets in one program: `FUZZ_DOOR` names the door that the bytes
//! go through (libFuzzer owns the command line). One program is one link and
//! one set of flags; `fuzz/run.sh` builds it and runs the doors in turn.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

static DOOR: OnceLock<fn(&[u8])> = OnceLock::new();

fn chosen() -> fn(&[u8]) {
    let wanted = std::env::var("FUZZ_DOOR").unwrap_or_default();
    let all = [
        &iscsi::fuzzing::DOORS[..],
        &scsi::fuzzing::DOORS[..],
        &dhcp::fuzzing::DOORS[..],
        &disk::fuzzing::DOORS[..],
        &tftp::fuzzing::DOORS[..],
        &contents::fuzzing::DOORS[..],
    ];
    let mut names = Vec::new();
    for (name, door) in all.into_iter().flatten() {
        if *name == wanted {
            return *door;
        }
        names.push(*name);
    }
    eprintln!("FUZZ_DOOR={wanted} is none of {}", names.join(", "));
    std::process::exit(2);
}

fuzz_target!(
    init: {
        let _ = DOOR.set(chosen());
    },
    |bytes: &[u8]| {
        if let Some(door) = DOOR.get() {
            door(bytes);
        }
    }
);
