//! Events grouped into boots.

use std::time::Duration;

use jiff::Timestamp;

use super::Event;

/// One boot of a machine, as far as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Boot {
    /// Its boot generation, once a door knew it.
    pub(crate) generation: Option<u64>,
    /// When the first packet came.
    pub(crate) began: Timestamp,
    /// What happened, oldest first.
    pub(crate) events: Vec<Event>,
}
