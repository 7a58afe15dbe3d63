//! What each command is to a reservation (SPC-4 tables 46 and 47, SBC-3 table
//! 13, SPC-2 section 5.5.1), by operation code.

use super::persistent::Class;

/// The class of a command. One that is not known changes things, for all we
/// know.
pub(super) fn class_of(cdb: &[u8]) -> Class {
    // A short CDB reads as zeros past its end, as in `Command::parse`.
    let byte = |at: usize| cdb.get(at).copied().unwrap_or(0);
    let action = byte(1) & 0x1f;
    match byte(0) {
        0x12 | 0xa0 | 0x03 => Class::Always, // INQUIRY, REPORT LUNS, REQUEST SENSE
        0x17 | 0x57 => Class::Always,        // RELEASE, which does nothing for others
        0x1e if byte(4) & 0x03 == 0 => Class::Always, // ALLOW MEDIUM REMOVAL
        0x5e | 0x5f => Class::Persistent,    // PERSISTENT RESERVE IN and OUT
        0x16 | 0x56 => Class::Free,          // RESERVE, with rules of its own
        0x00 | 0x4d => Class::Free,          // TEST UNIT READY, LOG SENSE
        0x25 => Class::Free,                 // READ CAPACITY(10)
        0x9e if action == 0x10 => Class::Free, // READ CAPACITY(16)
        0xa3 if action == 0x0a => Class::Free, // REPORT TARGET PORT GROUPS
        0x46 | 0x4a | 0xbd => Class::Free, // GET CONFIGURATION, GET EVENT STATUS, MECHANISM STATUS
        // START STOP UNIT that only makes the unit ready.
        0x1b if byte(4) & 0xf1 == 0x01 => Class::Free,
        0x08 | 0x28 | 0xa8 | 0x88 | 0xbe => Class::Read, // READ, READ CD
        0x2f | 0xaf | 0x8f => Class::Read,               // VERIFY
        0x34 | 0x90 => Class::Read,                      // PRE-FETCH
        0x37 | 0xb7 => Class::Read,                      // READ DEFECT DATA
        0x3c => Class::Read,                             // READ BUFFER
        0x1a | 0x5a => Class::Read,                      // MODE SENSE
        0x9e if action == 0x12 => Class::Read,           // GET LBA STATUS
        // REPORT SUPPORTED OPERATION CODES, TASK MANAGEMENT FUNCTIONS; TIMESTAMP
        0xa3 if matches!(action, 0x0c | 0x0d | 0x0f) => Class::Read,
        // READ TOC, DISC INFORMATION, TRACK INFORMATION, DVD STRUCTURE
        0x43 | 0x51 | 0x52 | 0xad => Class::Read,
        _ => Class::Write,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_stop_unit_is_free_only_to_make_ready() {
        assert_eq!(class_of(&[0x1b, 0, 0, 0, 0x01, 0]), Class::Free);
        assert_eq!(class_of(&[0x1b, 0, 0, 0, 0x00, 0]), Class::Write); // stop
        assert_eq!(class_of(&[0x1b, 0, 0, 0, 0x02, 0]), Class::Write); // eject
        assert_eq!(class_of(&[0x1b, 0, 0, 0, 0x31, 0]), Class::Write); // standby
    }

    #[test]
    fn removal_may_always_be_allowed_and_not_always_prevented() {
        assert_eq!(class_of(&[0x1e, 0, 0, 0, 0, 0]), Class::Always);
        assert_eq!(class_of(&[0x1e, 0, 0, 0, 1, 0]), Class::Write);
    }

    #[test]
    fn one_opcode_has_different_service_actions() {
        assert_eq!(class_of(&[0x9e, 0x10]), Class::Free);
        assert_eq!(class_of(&[0x9e, 0x12]), Class::Read);
        assert_eq!(class_of(&[0xa3, 0x0c]), Class::Read);
        assert_eq!(class_of(&[0xa3, 0x05]), Class::Write);
    }

    #[test]
    fn what_changes_the_medium_is_a_write() {
        for opcode in [
            0x0a, 0x2a, 0xaa, 0x8a, 0x2e, 0xae, 0x8e, 0x41, 0x93, 0x42, 0x48, 0x89, 0x8b, 0x9c,
            0x04, 0x15, 0x55, 0x4c, 0x35, 0x91, 0x83, 0x84, 0x3b, 0xff,
        ] {
            assert_eq!(class_of(&[opcode]), Class::Write, "{opcode:02x}");
        }
    }
}
