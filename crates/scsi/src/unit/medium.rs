//! The medium of a removable unit: loaded, ejected, kept in (SBC-3 section
//! 4.12, START STOP UNIT and PREVENT ALLOW MEDIUM REMOVAL).

use super::LogicalUnit;
use crate::attention::Nexus;
use crate::conditions::Condition;
use crate::{Medium, Sense};

impl LogicalUnit {
    /// Whether START STOP UNIT may load or eject the medium.
    pub(crate) fn check_removal(&self) -> Result<(), Sense> {
        if self.shape().medium == Medium::Fixed {
            return Err(Sense::invalid_cdb_field(4, 1)); // LOEJ
        }
        match self.state.attentions.prevent_removal() {
            true => Err(Sense::MEDIUM_REMOVAL_PREVENTED),
            false => Ok(()),
        }
    }

    /// Takes the medium out.
    pub(crate) fn eject(&self) {
        self.state.conditions.set(Condition::EJECTED, true);
    }

    /// Puts the medium in; every other nexus is told.
    pub(crate) fn load(&self, by: &Nexus) {
        let before = self.state.conditions.set(Condition::EJECTED, false);
        if before.has(Condition::EJECTED) {
            let attentions = &self.state.attentions;
            attentions.raise(Sense::MEDIUM_MAY_HAVE_CHANGED, Some(by));
        }
    }

    /// Why commands are kept from the medium.
    #[cold]
    pub(crate) fn unready(&self) -> Sense {
        Sense::MEDIUM_NOT_PRESENT
    }
}
