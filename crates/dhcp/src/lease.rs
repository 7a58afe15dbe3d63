//! Addresses lent to MACs.
use std::time::Duration;

/// How long the server keeps an address for its MAC at least: after every
/// ACK, whatever the lease time, and after the loss of a live iSCSI session.
/// A kernel that found its root disk by the iBFT never renews, and must find
/// its address still its own.
pub const MIN_HOLD: Duration = Duration::from_secs(600);
