//! The medium of a removable unit: loaded, ejected, kept in (SBC-3 section
//! 4.12, START STOP UNIT and PREVENT ALLOW MEDIUM REMOVAL).

use super::LogicalUnit;
use crate::attention::Nexus;
use crate::command::Command;
use crate::conditions::Condition;
use crate::optical::{Disc, Drive, MediaEvent, Tray};
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
        let before = self.state.conditions.set(Condition::EJECTED, true);
        if !before.has(Condition::EJECTED) {
            self.state.attentions.tell(MediaEvent::MediaRemoval);
        }
    }

    /// Puts the medium in, if there is one; every other nexus is told.
    pub(crate) fn load(&self, by: &Nexus) {
        if self.block_count() == 0 {
            return;
        }
        let before = self.state.conditions.set(Condition::EJECTED, false);
        if before.has(Condition::EJECTED) {
            let attentions = &self.state.attentions;
            attentions.raise(Sense::MEDIUM_MAY_HAVE_CHANGED, Some(by));
            attentions.tell(MediaEvent::NewMedia);
        }
    }

    /// Refuses what a unit in one of the conditions of not being ready does
    /// not take.
    #[cold]
    pub(super) fn check_ready(&self, now: Condition, command: &Command) -> Result<(), Sense> {
        self.check_sanitized(now, command)?;
        if !now.has(Condition::EJECTED) || !command.needs_medium() {
            return Ok(());
        }
        Err(match self.is_optical() {
            true => self.drive().no_disc(),
            false => Sense::MEDIUM_NOT_PRESENT,
        })
    }

    /// An optical drive as it is now. An initiator that ejects the disc opens
    /// the tray; a drive without a disc is closed.
    pub(crate) fn drive(&self) -> Drive {
        let is_out = self.is(Condition::EJECTED);
        Drive {
            disc: (!is_out).then(|| Disc::new(self.geometry.size_bytes)),
            tray: match is_out && self.block_count() > 0 {
                true => Tray::Open,
                false => Tray::Closed,
            },
            is_locked: self.state.attentions.prevent_removal(),
        }
    }
}
