//! What a unit reports of itself and what never changes: task management
//! functions (SPC-4 section 6.36), target port groups (section 6.37) and
//! defects (SBC-3 sections 5.10 and 5.11).

use crate::command::ReadDefects;
use crate::truncated;

/// The one target port group all ports are in; VPD page 83h names it too.
pub(crate) const TARGET_PORT_GROUP: u16 = 1;
/// The relative target port of every portal.
pub(crate) const RELATIVE_TARGET_PORT: u16 = 1;

/// ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET and TARGET
/// RESET, as the transport does them.
const FUNCTIONS: u8 = 0x80 | 0x40 | 0x10 | 0x08 | 0x02;

/// The data of REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS.
pub(crate) fn task_management_functions(extended: bool, allocation: u32) -> Vec<u8> {
    let mut data = vec![FUNCTIONS, 0, 0, 0];
    if extended {
        data[3] = 12; // additional length
        data.resize(16, 0); // no timeouts are promised
    }
    truncated(data, allocation)
}

/// The data of REPORT TARGET PORT GROUPS: one group, active/optimized.
pub(crate) fn target_port_groups(extended: bool, allocation: u32) -> Vec<u8> {
    let mut body = Vec::new();
    if extended {
        body.extend_from_slice(&[0x10, 0, 0, 0]); // format; no transition time
    }
    let [group_high, group_low] = TARGET_PORT_GROUP.to_be_bytes();
    let [port_high, port_low] = RELATIVE_TARGET_PORT.to_be_bytes();
    // Active/optimized; no other state is supported; no status; one port.
    body.extend_from_slice(&[0x00, 0x01, group_high, group_low, 0, 0, 0, 1]);
    body.extend_from_slice(&[0, 0, port_high, port_low]);
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut data = length.to_be_bytes().to_vec(); // return data length
    data.extend_from_slice(&body);
    truncated(data, allocation)
}

/// The data of READ DEFECT DATA: lists of nothing, in the format asked for. A
/// file has no defects; what its host cannot read is told when it is read.
pub(crate) fn defects(asked: &ReadDefects) -> Vec<u8> {
    let data = match asked.twelve {
        true => vec![0, asked.lists, 0, 0, 0, 0, 0, 0],
        false => vec![0, asked.lists, 0, 0],
    };
    truncated(data, asked.allocation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_group_is_active_and_its_length_counts_it() {
        let data = target_port_groups(false, 255);
        assert_eq!(data, [0, 0, 0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]);
        let data = target_port_groups(true, 255);
        assert_eq!(data[..8], [0, 0, 0, 16, 0x10, 0, 0, 0]);
        assert_eq!(target_port_groups(false, 4), [0, 0, 0, 12]);
    }

    #[test]
    fn the_defect_lists_are_empty_and_echo_what_was_asked_for() {
        let asked = ReadDefects {
            twelve: false,
            lists: 0x1d,
            allocation: 32,
        };
        assert_eq!(defects(&asked), [0, 0x1d, 0, 0]);
        let asked = ReadDefects {
            twelve: true,
            ..asked
        };
        assert_eq!(defects(&asked), [0, 0x1d, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn the_functions_are_told_short_and_long() {
        assert_eq!(task_management_functions(false, 255), [0xda, 0, 0, 0]);
        let long = task_management_functions(true, 255);
        assert_eq!((long.len(), long[3]), (16, 12));
    }
}
