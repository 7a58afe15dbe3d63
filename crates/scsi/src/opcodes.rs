//! Which commands a unit knows, bit by bit, and REPORT SUPPORTED OPERATION
//! CODES (SPC-4 section 6.35).

use crate::command::ReportOpcodes;
use crate::{Command, SanitizeAction, Sense, truncated};

/// Commands that a unit knows together or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Known to every device (SPC-4).
    Primary,
    /// Known to disks (SBC-3).
    Disk,
    /// Known to disks that give space back.
    Thin,
    /// Known to disks whose writes can be all or nothing.
    Atomic,
    /// Known to disks whose overwriting means something.
    Overwrite,
    /// Known to disks that can be sanitized in any way.
    Sanitize,
    /// Known to units whose medium can be taken out.
    Removable,
}

impl Command {
    /// Which family the command belongs to.
    pub(crate) fn family(&self) -> Family {
        match self {
            Command::TestUnitReady
            | Command::RequestSense { .. }
            | Command::Inquiry { .. }
            | Command::ModeSense(_)
            | Command::ModeSelect { .. }
            | Command::Reservation(_)
            | Command::ReportLuns { .. }
            | Command::ReportSupportedOpcodes(_)
            | Command::ReportSupportedFunctions { .. } => Family::Primary,
            Command::Unmap { .. } => Family::Thin,
            Command::WriteAtomic { .. } => Family::Atomic,
            Command::Sanitize(asked) => match asked.action {
                SanitizeAction::Overwrite => Family::Overwrite,
                SanitizeAction::BlockErase => Family::Thin,
                SanitizeAction::ExitFailureMode => Family::Sanitize,
            },
            Command::PreventAllow { .. } => Family::Removable,
            _ => Family::Disk,
        }
    }
}

/// One command a unit knows.
pub(crate) struct Opcode {
    /// Operation code, also the first byte of the usage map.
    pub(crate) code: u8,
    pub(crate) service_action: Option<u16>,
    family: Family,
    /// Which CDB bits are looked at.
    usage: &'static [u8],
}

pub(crate) const fn plain(family: Family, usage: &'static [u8]) -> Opcode {
    Opcode {
        code: usage[0],
        service_action: None,
        family,
        usage,
    }
}

pub(crate) const fn action(service_action: u16, family: Family, usage: &'static [u8]) -> Opcode {
    Opcode {
        service_action: Some(service_action),
        ..plain(family, usage)
    }
}

use Family::{Atomic, Disk, Overwrite, Primary, Removable, Sanitize, Thin};

/// All of them, ascending. A command is known when it stands here *and*
/// [`Command`](crate::Command) parses it: a test compares the two.
#[rustfmt::skip]
const OPCODES: &[Opcode] = &[
    plain(Primary, &[0x00, 0, 0, 0, 0, 0]),
    plain(Primary, &[0x03, 0x01, 0, 0, 0xff, 0]),
    plain(Disk, &[0x08, 0x1f, 0xff, 0xff, 0xff, 0]),
    plain(Disk, &[0x0a, 0x1f, 0xff, 0xff, 0xff, 0]),
    plain(Primary, &[0x12, 0x01, 0xff, 0xff, 0xff, 0]),
    plain(Primary, &[0x15, 0x11, 0, 0, 0xff, 0]),
    plain(Primary, &[0x16, 0x1f, 0, 0, 0, 0]),
    plain(Primary, &[0x17, 0x1f, 0, 0, 0, 0]),
    plain(Primary, &[0x1a, 0x08, 0xff, 0xff, 0xff, 0]),
    plain(Disk, &[0x1b, 0x01, 0, 0, 0xf7, 0]),
    plain(Removable, &[0x1e, 0, 0, 0, 0x03, 0]),
    plain(Disk, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    plain(Disk, &[0x28, 0x18, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    plain(Disk, &[0x2a, 0x18, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    plain(Disk, &[0x2e, 0x12, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    plain(Disk, &[0x2f, 0x16, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    plain(Disk, &[0x34, 0x02, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    plain(Disk, &[0x35, 0x02, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    plain(Disk, &[0x37, 0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0]),
    plain(Disk, &[0x41, 0x08, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0]),
    plain(Thin, &[0x42, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    action(0x01, Overwrite, &[0x48, 0xbf, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    action(0x02, Thin, &[0x48, 0xbf, 0, 0, 0, 0, 0, 0, 0, 0]),
    action(0x1f, Sanitize, &[0x48, 0x9f, 0, 0, 0, 0, 0, 0, 0, 0]),
    plain(Disk, &[0x4d, 0, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    plain(Primary, &[0x55, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    plain(Primary, &[0x56, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    plain(Primary, &[0x57, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    plain(Primary, &[0x5a, 0x08, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0]),
    action(0x00, Primary, &[0x5e, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    action(0x01, Primary, &[0x5e, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    action(0x02, Primary, &[0x5e, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    action(0x03, Primary, &[0x5e, 0x1f, 0, 0, 0, 0, 0, 0xff, 0xff, 0]),
    action(0x00, Primary, &[0x5f, 0x1f, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(0x01, Primary, &[0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(0x02, Primary, &[0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(0x03, Primary, &[0x5f, 0x1f, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(0x04, Primary, &[0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(0x05, Primary, &[0x5f, 0x1f, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(0x06, Primary, &[0x5f, 0x1f, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(0x07, Primary, &[0x5f, 0x1f, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0]),
    action(0x00, Disk, &[0x83, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    action(0x00, Disk, &[0x84, 0x1f, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    action(0x03, Disk, &[0x84, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    action(0x04, Disk, &[0x84, 0x1f, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(Disk, &[0x88, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(Disk, &[0x89, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0, 0]),
    plain(Disk, &[0x8a, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(Disk, &[0x8b, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(Disk, &[0x8e, 0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(Disk, &[0x8f, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(Disk, &[0x90, 0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(Disk, &[0x91, 0x02, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(Disk, &[0x93, 0x09, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(Atomic, &[0x9c, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    action(0x10, Disk, &[0x9e, 0x1f, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    action(0x12, Disk, &[0x9e, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(Primary, &[0xa0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    action(0x0a, Disk, &[0xa3, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    action(0x0c, Primary, &[0xa3, 0x1f, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    action(0x0d, Primary, &[0xa3, 0x1f, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(Disk, &[0xa8, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(Disk, &[0xaa, 0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(Disk, &[0xae, 0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(Disk, &[0xaf, 0x16, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
    plain(Disk, &[0xb7, 0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]),
];

/// Answers REPORT SUPPORTED OPERATION CODES for a unit that `offers` families.
pub(crate) fn report(
    asked: &ReportOpcodes,
    offers: impl Fn(Family) -> bool,
) -> Result<Vec<u8>, Sense> {
    report_of(OPCODES, asked, offers)
}

/// The same from another list, which ascends too.
pub(crate) fn report_of(
    list: &[Opcode],
    asked: &ReportOpcodes,
    offers: impl Fn(Family) -> bool,
) -> Result<Vec<u8>, Sense> {
    let known = || list.iter().filter(|known| offers(known.family));
    if asked.options == 0 {
        return Ok(all(known(), asked));
    }
    let mut with_code = known()
        .filter(|known| known.code == asked.opcode)
        .peekable();
    let has_actions = with_code
        .peek()
        .is_some_and(|known| known.service_action.is_some());
    let is_known = with_code.peek().is_some();
    let found = match asked.options {
        1 if has_actions => return Err(Sense::invalid_cdb_field(2, 2)),
        1 => with_code.next(),
        2 if is_known && !has_actions => return Err(Sense::invalid_cdb_field(2, 2)),
        2 => with_code.find(|known| known.service_action == Some(asked.service_action)),
        // 3: as 1 or 2, whichever fits, and never an error.
        3 if has_actions => {
            with_code.find(|known| known.service_action == Some(asked.service_action))
        }
        3 => with_code.next().filter(|_| asked.service_action == 0),
        _ => return Err(Sense::invalid_cdb_field(2, 2)),
    };
    Ok(one(found, asked))
}

/// The all_commands format.
fn all<'a>(known: impl Iterator<Item = &'a Opcode>, asked: &ReportOpcodes) -> Vec<u8> {
    let mut data = vec![0u8; 4];
    for opcode in known {
        let [sa_high, sa_low] = opcode.service_action.unwrap_or(0).to_be_bytes();
        let mut flags = u8::from(opcode.service_action.is_some()); // SERVACTV
        if asked.timeouts {
            flags |= 0x02; // CTDP
        }
        let length = cdb_length(opcode);
        data.extend_from_slice(&[opcode.code, 0, sa_high, sa_low, 0, flags, 0, length]);
        if asked.timeouts {
            data.extend_from_slice(&TIMEOUTS);
        }
    }
    let list_bytes = u32::try_from(data.len() - 4).unwrap_or(u32::MAX);
    data[..4].copy_from_slice(&list_bytes.to_be_bytes()); // command data length
    truncated(data, asked.allocation)
}

/// The one_command format.
fn one(found: Option<&Opcode>, asked: &ReportOpcodes) -> Vec<u8> {
    let Some(opcode) = found else {
        return truncated(vec![0, 1, 0, 0], asked.allocation); // not supported
    };
    let mut data = vec![0, 3, 0, cdb_length(opcode)]; // supported as the standard says
    data.extend_from_slice(opcode.usage);
    if let Some(action) = opcode.service_action {
        // A service action's bits are given as its own value.
        data[5] = (data[5] & !0x1f) | action.to_be_bytes()[1];
    }
    if asked.timeouts {
        data[1] |= 0x80; // CTDP
        data.extend_from_slice(&TIMEOUTS);
    }
    truncated(data, asked.allocation)
}

/// A command timeouts descriptor that promises nothing.
const TIMEOUTS: [u8; 12] = [0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn cdb_length(opcode: &Opcode) -> u8 {
    u8::try_from(opcode.usage.len()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Command;

    #[test]
    fn what_is_reported_is_what_is_parsed() {
        for code in 0..=255u8 {
            for action in 0..=0x1f {
                let mut cdb = [0u8; 16];
                cdb[0] = code;
                let reported = OPCODES.iter().filter(|known| known.code == code);
                let has_actions = reported.clone().any(|k| k.service_action.is_some());
                if has_actions {
                    cdb[1] = u8::try_from(action).unwrap();
                } else if action != 0 {
                    continue;
                }
                let is_reported = reported
                    .clone()
                    .any(|known| known.service_action.is_none_or(|a| a == action));
                let parsed = Command::parse(&cdb);
                // An unknown service action is an invalid field to some.
                let unknown = [Sense::INVALID_OPCODE, Sense::invalid_cdb_field(1, 4)];
                let is_parsed = !unknown.map(Err).contains(&parsed);
                assert_eq!(is_reported, is_parsed, "{code:02x}/{action:02x}");
                if let Ok(command) = parsed {
                    let known = reported
                        .clone()
                        .find(|known| known.service_action.is_none_or(|a| a == action));
                    let family = known.map(|known| known.family);
                    assert_eq!(Some(command.family()), family, "{code:02x}/{action:02x}");
                }
            }
        }
    }

    #[test]
    fn one_command_shows_its_usage_map() {
        let asked = ReportOpcodes {
            timeouts: false,
            options: 1,
            opcode: 0x12,
            service_action: 0,
            allocation: 100,
        };
        let data = report(&asked, |_| true).unwrap();
        assert_eq!(data, [0, 3, 0, 6, 0x12, 0x01, 0xff, 0xff, 0xff, 0]);
        let gone = report(
            &ReportOpcodes {
                opcode: 0x42,
                ..asked
            },
            |family| family != Thin,
        )
        .unwrap();
        assert_eq!(gone, [0, 1, 0, 0]);
    }

    #[test]
    fn options_that_do_not_fit_the_opcode_are_refused() {
        let asked = ReportOpcodes {
            timeouts: false,
            options: 1,
            opcode: 0x9e,
            service_action: 0x10,
            allocation: 100,
        };
        assert!(report(&asked, |_| true).is_err());
        assert!(
            report(
                &ReportOpcodes {
                    options: 2,
                    ..asked
                },
                |_| true
            )
            .is_ok()
        );
        assert!(
            report(
                &ReportOpcodes {
                    options: 2,
                    opcode: 0x12,
                    ..asked
                },
                |_| true
            )
            .is_err()
        );
    }
}
