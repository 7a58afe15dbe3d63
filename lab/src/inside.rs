//! Work done inside a host's namespace by a thread of this process.
//!
//! Unsafe, because no safe interface enters a namespace: setns(2).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use anyhow::{Context as _, Result, bail};

use crate::Host;

impl Host<'_> {
    /// Does something on a thread of this host; sockets made there stay there.
    ///
    /// # Errors
    /// When the namespace cannot be entered, and those of the work.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let path = format!("/run/netns/{}", self.namespace());
        let namespace = File::open(&path).with_context(|| format!("opening {path}"))?;
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                // SAFETY: setns changes the namespace of this thread alone,
                // which ends with the work; the descriptor is open.
                let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
                if entered != 0 {
                    bail!("entering {path}: {}", io::Error::last_os_error());
                }
                work()
            });
            match inside.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}
