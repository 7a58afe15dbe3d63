//! The boot plan of one machine: facts in, decision out.

use uuid::Uuid;

use crate::inventory::{Assignment, ImageRef, Machine, MachineState, OverlayMode};

/// What a machine boots, as decided from its facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BootPlan {
    /// Nobody has said what this machine is: it is told so on its screen, and
    /// asks again.
    Unknown,
    /// A known machine that nothing is assigned to: told so, asks again.
    Unassigned,
    /// A golden image through the machine's own overlay.
    Clone {
        /// Which.
        image: ImageRef,
        /// What becomes of its writes.
        mode: OverlayMode,
    },
    /// An own disk, written in place.
    Direct(Uuid),
}

/// Decides what `machine` boots.
pub(crate) fn plan(machine: &Machine) -> BootPlan {
    match (&machine.state, &machine.assignment) {
        (MachineState::Pending, _) => BootPlan::Unknown,
        (MachineState::Known, None) => BootPlan::Unassigned,
        (MachineState::Known, Some(Assignment::Image { image, mode })) => BootPlan::Clone {
            image: image.clone(),
            mode: *mode,
        },
        (MachineState::Known, Some(Assignment::Disk(disk))) => BootPlan::Direct(*disk),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Name;

    fn clone_of(image: &str) -> Assignment {
        Assignment::Image {
            image: ImageRef::parse(image).unwrap(),
            mode: OverlayMode::Reset,
        }
    }

    fn machine(state: MachineState, assignment: Option<Assignment>) -> Machine {
        Machine {
            id: uuid::Uuid::nil(),
            name: Name::parse("pc1").unwrap(),
            mac: dhcp::Mac([2, 0, 0, 0, 0, 1]),
            uuid: None,
            serial: None,
            state,
            assignment,
            address: None,
            loader: None,
            created: jiff::Timestamp::UNIX_EPOCH,
            last_seen: None,
        }
    }

    #[test]
    fn a_pending_machine_boots_nothing_whatever_stands_beside_its_name() {
        for assignment in [None, Some(clone_of("debian"))] {
            let pending = machine(MachineState::Pending, assignment);
            assert_eq!(plan(&pending), BootPlan::Unknown);
        }
    }

    #[test]
    fn a_known_machine_boots_what_is_assigned_to_it() {
        let known = machine(MachineState::Known, Some(clone_of("debian@3")));
        let clone = BootPlan::Clone {
            image: ImageRef::parse("debian@3").unwrap(),
            mode: OverlayMode::Reset,
        };
        assert_eq!(plan(&known), clone);
        let disk = Uuid::from_bytes([7; 16]);
        let known = machine(MachineState::Known, Some(Assignment::Disk(disk)));
        assert_eq!(plan(&known), BootPlan::Direct(disk));
        let known = machine(MachineState::Known, None);
        assert_eq!(plan(&known), BootPlan::Unassigned);
    }
}
