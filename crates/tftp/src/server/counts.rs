//! What the server counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// What has happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Read requests that began a transfer or were refused by the site.
    pub requests: u64,
    /// Requests that came again for a transfer that runs.
    pub repeated: u64,
    /// Transfers that ended complete.
    pub complete: u64,
    /// Size probes.
    pub probed: u64,
    /// Requests the site refused, or whose name climbs.
    pub refused: u64,
    /// Transfers ended by the client's ERROR.
    pub aborted: u64,
    /// Transfers whose client fell silent.
    pub timed_out: u64,
    /// Transfers that we could not go on with.
    pub failed: u64,
    /// Datagrams that are no TFTP packet, or none that begins anything.
    pub malformed: u64,
    /// Write requests refused.
    pub writes_refused: u64,
    /// Requests sent to a broadcast or multicast address, or from an
    /// impossible one; dropped.
    pub not_unicast: u64,
    /// Requests dropped because all places were taken.
    pub over_limit: u64,
    /// Blocks sent more than once.
    pub resent_blocks: u64,
    /// Payload sent, in bytes, resends included.
    pub sent_bytes: u64,
    /// Transfers running now.
    pub running: u64,
}

macro_rules! counts {
    ($($name:ident),*) => {
        /// [`Counters`] that grow.
        #[derive(Debug, Default)]
        pub(super) struct Counts { $(pub(super) $name: AtomicU64),* }

        impl Counts {
            pub(super) fn read(&self, running: usize) -> Counters {
                Counters {
                    $($name: self.$name.load(Ordering::Relaxed),)*
                    running: running as u64,
                }
            }
        }
    };
}
counts!(
    requests,
    repeated,
    complete,
    probed,
    refused,
    aborted,
    timed_out,
    failed,
    malformed,
    writes_refused,
    not_unicast,
    over_limit,
    resent_blocks,
    sent_bytes
);

pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}
