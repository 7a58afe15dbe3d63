//! Why a command ends with a status other than GOOD (SAM-5 section 5.3).

use crate::Sense;

/// Why a command is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// CHECK CONDITION, with sense data.
    CheckCondition(Sense),
    /// RESERVATION CONFLICT: another nexus has reserved the unit.
    ReservationConflict,
}

impl Refusal {
    /// The status code.
    pub fn status(&self) -> u8 {
        match self {
            Refusal::CheckCondition(_) => 0x02,
            Refusal::ReservationConflict => 0x18,
        }
    }

    /// The sense data that goes with the status.
    pub fn sense(&self) -> Option<Sense> {
        match self {
            Refusal::CheckCondition(sense) => Some(*sense),
            Refusal::ReservationConflict => None,
        }
    }
}

impl From<Sense> for Refusal {
    fn from(sense: Sense) -> Refusal {
        Refusal::CheckCondition(sense)
    }
}
