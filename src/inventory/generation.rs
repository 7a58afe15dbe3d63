//! Boot generations: one boot of a machine, from the script that prepares it to
//! the script that prepares the next.
//!
//! A boot is not a login (there are two to four in one) and not a script fetch
//! (iPXE retries, anyone can ask): the script *prepares* the next generation,
//! and the first login that proves it is of that generation *switches* to it.
//! Preparing therefore harms nothing that runs.

use jiff::Timestamp;
use uuid::Uuid;

use super::{Error, Inventory, Machine, Result};

/// A machine's boot generations.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct Generations {
    /// The generation that runs, or ran last; 0 before the first.
    pub(crate) current: u64,
    /// Its CHAP secret; `None` before the first.
    pub(crate) current_secret: Option<String>,
    /// The one a script was made for and nobody has logged in with yet.
    pub(crate) prepared: Option<Prepared>,
}

/// A generation that a script was made for.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Prepared {
    /// Its number.
    pub(crate) number: u64,
    /// Its CHAP secret: 32 hex digits, 128 random bits.
    pub(crate) secret: String,
    /// When it was prepared first.
    pub(crate) at: Timestamp,
}

/// What a switch did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    /// The generation was prepared and is current now.
    Switched,
    /// It was current already.
    Current,
}

impl Inventory {
    /// A machine's generations.
    pub(crate) fn generations(&self, machine: Uuid) -> Result<Generations> {
        todo!()
    }

    /// Prepares the machine's next generation; the same one, number and secret,
    /// until it is switched to.
    pub(crate) fn prepare_generation(&self, machine: Uuid) -> Result<Prepared> {
        todo!()
    }

    /// Makes a prepared generation the current one, atomically and durably; the
    /// secret of the one before is void then. Any other number than the
    /// prepared or the current one is refused.
    pub(crate) fn switch_generation(&self, machine: Uuid, number: u64) -> Result<Switch> {
        todo!()
    }
}

/// The CHAP name of a machine's generation: `pc07.12`.
pub(crate) fn chap_name(machine: &Machine, number: u64) -> String {
    format!("{}.{number}", machine.name)
}

/// Machine name and generation of a CHAP name.
pub(crate) fn parse_chap_name(text: &str) -> Option<(&str, u64)> {
    let (name, number) = text.rsplit_once('.')?;
    Some((name, number.parse().ok()?))
}
