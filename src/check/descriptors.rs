//! Whether this process may open as many files as it would (setrlimit(2)).

use rustix::process::{Resource, getrlimit};

use super::Finding;
use crate::services::http::{CONNECTIONS_MAX, places};

/// Looks at this process's hard limit: `serve` raises its own to it.
pub(super) fn look() -> Vec<Finding> {
    judge(getrlimit(Resource::Nofile).maximum)
}

fn judge(open_files: Option<u64>) -> Vec<Finding> {
    let places = places(open_files);
    let Some(open_files) = open_files.filter(|_| places < CONNECTIONS_MAX) else {
        return Vec::new();
    };
    vec![Finding::note(
        format!(
            "{open_files} files may be open at once: so HTTP serves {places} connections, not {CONNECTIONS_MAX}"
        ),
        "with more than a few hundred machines, raise it: LimitNOFILE=65536 in the service's unit, or ulimit -Hn 65536 as root",
    )]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_costs_connections_is_said() {
        assert!(judge(None).is_empty());
        assert!(judge(Some(65536)).is_empty());
        let findings = judge(Some(4096));
        assert!(findings[0].what.contains("HTTP serves 1792 connections"));
    }
}
