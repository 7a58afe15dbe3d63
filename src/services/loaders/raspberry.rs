//! The directory a Raspberry Pi asks for its files in.
//!
//! A Pi asks for `SERIAL/start4.elf` (eight hex digits), a Pi 4 or 5 that is
//! set so in its EEPROM for `dc-a6-32-01-02-03/start4.elf`. What its own
//! directory does not have comes out of the common one, so that a Pi with a
//! `cmdline.txt` of its own needs nothing else there.

/// Hex digits of a serial number, as a Pi asks for it.
const SERIAL_DIGITS: usize = 8;

/// What a ROM looks for before `bootcode.bin` has run, and goes on without.
const SIGNATURE: &str = "bootsig.bin";

/// The name in the common directory, of a file in a Pi's own.
pub(crate) fn common(name: &str) -> Option<&str> {
    let (own, rest) = name.trim_start_matches('/').split_once('/')?;
    (is_serial(own) || is_mac(own)).then_some(rest)
}

/// Whether a Pi goes on without this file. It asks for the files of every model
/// and of every way to boot; without its firmware or `config.txt` it is stuck.
pub(crate) fn is_tried_only(name: &str) -> bool {
    match common(name) {
        Some(file) => !file.starts_with("start") && file != "config.txt",
        None => name.trim_start_matches('/') == SIGNATURE,
    }
}

fn is_serial(text: &str) -> bool {
    text.len() == SERIAL_DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_mac(text: &str) -> bool {
    let is_pair = |pair: &str| pair.len() == 2 && pair.bytes().all(|b| b.is_ascii_hexdigit());
    text.split('-').count() == 6 && text.split('-').all(is_pair)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_or_a_mac_is_a_pis_own_directory_and_nothing_else_is() {
        for (name, file) in [
            ("8a5b1c2d/start4.elf", Some("start4.elf")),
            ("/8a5b1c2d/overlays/a.dtbo", Some("overlays/a.dtbo")),
            ("dc-a6-32-01-02-03/config.txt", Some("config.txt")),
            ("8a5b1c2/x", None),
            ("8a5b1c2d0/x", None),
            ("8a5b1c2g/x", None),
            ("dc:a6:32:01:02:03/x", None),
            ("dc-a6-32-01-02/x", None),
            ("dc-a6-32-01-02-03-04/x", None),
            ("dca6-32-01-02-030/x", None),
            ("8a5b1c2d", None),
            ("x86_64-efi/snponly.efi", None),
        ] {
            assert_eq!(common(name), file, "{name}");
        }
    }

    #[test]
    fn only_what_stops_a_pi_is_missed() {
        for name in [
            "8a5b1c2d/dt-blob.bin",
            "8a5b1c2d/cmdline.txt",
            "bootsig.bin",
        ] {
            assert!(is_tried_only(name), "{name}");
        }
        for name in [
            "8a5b1c2d/start4.elf",
            "8a5b1c2d/config.txt",
            "bootcode.bin",
            "snponly.efi",
        ] {
            assert!(!is_tried_only(name), "{name}");
        }
    }
}
