//! Ctrl-C and SIGTERM, remembered so that waits end and `Drop` can clean up.
//!
//! Unsafe, because the standard library installs no signal handlers; the one
//! installed here only stores to an atomic.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn remember(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Lets Ctrl-C, SIGTERM and a closed terminal end waits instead of the
/// process. Asking twice changes nothing.
pub fn catch_signals() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let handler = remember as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: `remember` has the signature of a handler and is
        // async-signal-safe: one relaxed store to a static.
        unsafe {
            libc::signal(signal, handler);
        }
    }
}

/// Whether somebody wants this process to end.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
