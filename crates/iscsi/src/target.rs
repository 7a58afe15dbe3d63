//! A target: the logical units behind one name.

use std::sync::Arc;

use scsi::LogicalUnit;

/// The logical units behind one target name.
pub struct Target {
    /// The target's IQN.
    pub name: String,
    /// Unit at index n is LUN n.
    pub units: Vec<Arc<LogicalUnit>>,
}
