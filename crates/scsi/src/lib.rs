//! SCSI logical units over disks (SAM-5, SPC-4, SBC-3).

/// A logical unit: a disk that answers commands.
pub struct LogicalUnit {}
