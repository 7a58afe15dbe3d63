//! The boot plan of one machine: facts in, decision out.

use crate::inventory::{Assignment, Machine, MachineState};

/// What a machine boots, as decided from its facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BootPlan {
    /// Nobody has said what this machine is: it is told so on its screen, and
    /// asks again.
    Unknown,
    /// A known machine that nothing is assigned to: told so, asks again.
    Unassigned,
    /// A golden image through the machine's own overlay.
    Clone(Assignment),
}

/// Decides what `machine` boots.
pub(crate) fn plan(machine: &Machine) -> BootPlan {
    match (&machine.state, &machine.assignment) {
        (MachineState::Pending, _) => BootPlan::Unknown,
        (MachineState::Known, None) => BootPlan::Unassigned,
        (MachineState::Known, Some(assignment)) => BootPlan::Clone(assignment.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{ImageRef, Name, OverlayMode};

    fn machine(state: MachineState, image: Option<&str>) -> Machine {
        Machine {
            id: uuid::Uuid::nil(),
            name: Name::parse("pc1").unwrap(),
            mac: dhcp::Mac([2, 0, 0, 0, 0, 1]),
            uuid: None,
            serial: None,
            state,
            assignment: image.map(|image| Assignment {
                image: ImageRef::parse(image).unwrap(),
                mode: OverlayMode::Reset,
            }),
            address: None,
            loader: None,
            created: jiff::Timestamp::UNIX_EPOCH,
            last_seen: None,
        }
    }

    #[test]
    fn a_pending_machine_boots_nothing_whatever_stands_beside_its_name() {
        for image in [None, Some("debian")] {
            let pending = machine(MachineState::Pending, image);
            assert_eq!(plan(&pending), BootPlan::Unknown);
        }
    }

    #[test]
    fn a_known_machine_boots_what_is_assigned_to_it() {
        let known = machine(MachineState::Known, Some("debian@3"));
        let assignment = known.assignment.clone().unwrap();
        assert_eq!(plan(&known), BootPlan::Clone(assignment));
        let known = machine(MachineState::Known, None);
        assert_eq!(plan(&known), BootPlan::Unassigned);
    }
}
