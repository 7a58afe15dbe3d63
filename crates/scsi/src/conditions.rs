//! What a unit is in or set to at the moment, in one word: a READ looks at it
//! once.

use std::sync::atomic::{AtomicU8, Ordering};

/// A set of conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Condition(u8);

impl Condition {
    /// None of them.
    pub(crate) const NONE: Condition = Condition(0);
    /// The medium is out.
    pub(crate) const EJECTED: Condition = Condition(1);
    /// SWP: initiators have write-protected the unit.
    pub(crate) const PROTECTED: Condition = Condition(1 << 1);
    /// WCE is off: a write is answered when it is durable.
    pub(crate) const WRITE_THROUGH: Condition = Condition(1 << 2);
    /// D_SENSE: sense data has descriptors.
    pub(crate) const DESCRIPTOR_SENSE: Condition = Condition(1 << 3);

    /// A sanitize operation is under way.
    pub(crate) const SANITIZING: Condition = Condition(1 << 4);
    /// The last one failed.
    pub(crate) const SANITIZE_FAILED: Condition = Condition(1 << 5);
    /// EXIT FAILURE MODE may end that (AUSE).
    pub(crate) const FAILURE_EXIT: Condition = Condition(1 << 6);

    /// Any of these keeps commands from the medium.
    pub(crate) const UNREADY: Condition =
        Condition(Self::EJECTED.0 | Self::SANITIZING.0 | Self::SANITIZE_FAILED.0);
    /// What MODE SELECT sets.
    pub(crate) const SETTINGS: Condition =
        Condition(Self::PROTECTED.0 | Self::WRITE_THROUGH.0 | Self::DESCRIPTOR_SENSE.0);

    /// Whether any of `others` is among these.
    pub(crate) fn has(self, others: Condition) -> bool {
        self.0 & others.0 != 0
    }

    /// These, with `others` in or out.
    pub(crate) fn with(self, others: Condition, are_in: bool) -> Condition {
        match are_in {
            true => Condition(self.0 | others.0),
            false => Condition(self.0 & !others.0),
        }
    }
}

/// The conditions of a unit now.
#[derive(Debug, Default)]
pub(crate) struct Conditions(AtomicU8);

impl Conditions {
    pub(crate) fn now(&self) -> Condition {
        Condition(self.0.load(Ordering::Acquire))
    }

    /// Takes `which` in or out; what there was before.
    pub(crate) fn set(&self, which: Condition, is_in: bool) -> Condition {
        Condition(match is_in {
            true => self.0.fetch_or(which.0, Ordering::AcqRel),
            false => self.0.fetch_and(!which.0, Ordering::AcqRel),
        })
    }

    /// Sets those of `mask` to what they are in `to`.
    pub(crate) fn replace(&self, mask: Condition, to: Condition) {
        self.set(Condition(mask.0 & to.0), true);
        self.set(Condition(mask.0 & !to.0), false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replacing_settings_leaves_the_rest() {
        let conditions = Conditions::default();
        conditions.set(Condition::EJECTED, true);
        conditions.set(Condition::PROTECTED, true);
        let to = Condition::NONE.with(Condition::DESCRIPTOR_SENSE, true);
        conditions.replace(Condition::SETTINGS, to);
        let now = conditions.now();
        assert!(now.has(Condition::EJECTED) && now.has(Condition::DESCRIPTOR_SENSE));
        assert!(!now.has(Condition::PROTECTED));
    }
}
