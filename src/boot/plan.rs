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
