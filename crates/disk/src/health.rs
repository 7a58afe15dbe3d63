//! Whether a disk has failed, and stays so.
//!
//! A failed `fdatasync` may mean that the kernel has dropped dirty pages; a
//! second one would answer "fine". So the first failure is kept.

use std::io;
use std::sync::OnceLock;

use rustix::io::Errno;

use crate::DiskError;

/// Sound until the first failure, failed for good afterwards.
#[derive(Debug, Default)]
pub(crate) struct Health {
    failure: OnceLock<String>,
}

impl Health {
    /// Refuses once the disk has failed.
    pub(crate) fn check(&self) -> Result<(), DiskError> {
        match self.failure.get() {
            None => Ok(()),
            Some(reason) => Err(DiskError::Failed(reason.clone())),
        }
    }

    /// Notes a failure for good, and answers with it.
    pub(crate) fn fail(&self, reason: String) -> DiskError {
        tracing::error!(reason, "disk failed");
        DiskError::Failed(self.failure.get_or_init(|| reason).clone())
    }

    /// Ends all writing without a failure.
    pub(crate) fn close(&self, reason: &str) {
        let _ = self.failure.set(reason.to_owned());
    }

    /// A write was refused: lack of space is temporary and the writer knows
    /// what it did not write; anything else is for good.
    pub(crate) fn write_failed(&self, context: String, source: io::Error) -> DiskError {
        match trouble(context, source) {
            DiskError::Io { context, source } => self.fail(format!("{context}: {source}")),
            other => other,
        }
    }

    /// A sync was refused: whatever the reason, written bytes may be gone.
    pub(crate) fn sync_failed(&self, context: String, source: io::Error) -> DiskError {
        self.fail(format!("{context}: {source}"))
    }
}

/// The system's answer in our words.
pub(crate) fn trouble(context: String, source: io::Error) -> DiskError {
    let no_space = [Errno::NOSPC, Errno::DQUOT].map(|e| Some(e.raw_os_error()));
    if no_space.contains(&source.raw_os_error()) {
        DiskError::NoSpace(format!("{context}: {source}"))
    } else {
        DiskError::Io { context, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_space_is_temporary_and_a_failed_sync_is_for_good() {
        let health = Health::default();
        let full = || io::Error::from(Errno::NOSPC);
        let error = health.write_failed("writing x".into(), full());
        assert!(matches!(error, DiskError::NoSpace(_)));
        assert!(health.check().is_ok());
        let error = health.sync_failed("flushing x".into(), full());
        assert!(matches!(error, DiskError::Failed(_)));
        assert!(matches!(health.check(), Err(DiskError::Failed(_))));
    }
}
