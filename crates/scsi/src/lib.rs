//! SCSI logical units over disks (SAM-5, SPC-4, SBC-3).
//!
//! Knows no transport: a session hands in a command descriptor block and
//! data, and gets back data or [`Sense`].

mod attention;
mod command;
mod conditions;
mod copy;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod inquiry;
mod log;
mod luns;
mod mode;
mod opcodes;
mod optical;
mod provisioning;
mod refusal;
mod reports;
mod reservation;
mod sanitize;
mod sense;
mod shape;
mod unit;

pub use attention::{Nexus, NexusName};
pub use command::{Command, Compare};
pub use copy::{CopyCommand, Peers};
pub use inquiry::Identity;
pub use luns::{Lun, answer_for_absent, report_luns};
pub use refusal::Refusal;
pub use reservation::{Action as ReservationAction, Asked as ReservationAsked};
pub use reservation::{ReservationCommand, ReservationFile, ReservationKeeper};
pub use sanitize::{Sanitize, SanitizeAction};
pub use sense::{Sense, SenseFormat};
pub use shape::{Device, Medium, Provisioning, Shape};
pub use unit::{DataOut, LogicalUnit, MAX_TRANSFER_BYTES, Pace, Work};

pub use disk;

/// Cuts `data` to the allocation length a CDB gave; lengths inside stay.
fn truncated(mut data: Vec<u8>, allocation: u32) -> Vec<u8> {
    data.truncate(usize::try_from(allocation).unwrap_or(usize::MAX));
    data
}
