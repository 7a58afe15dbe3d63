//! SCSI logical units over disks (SAM-5, SPC-4, SBC-3).
//!
//! Knows no transport: a session hands in a command descriptor block and
//! data, and gets back data or [`Sense`].

mod inquiry;
mod sense;
mod unit;

pub use inquiry::Identity;
pub use sense::{Sense, SenseFormat};
pub use unit::LogicalUnit;

pub use disk;
