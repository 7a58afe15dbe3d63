//! QEMU's tools, which judge what is written here and write what is read here.

use std::process::Command;

/// Whether QEMU's tools are here; in CI they must be.
pub(crate) fn is_here() -> bool {
    let found = |tool: &str| Command::new(tool).arg("--version").output().is_ok();
    let missing = ["qemu-img", "qemu-io"]
        .into_iter()
        .find(|tool| !found(tool));
    if let Some(tool) = missing {
        assert!(std::env::var_os("CI").is_none(), "{tool} is missing");
        eprintln!("skipped: {tool} is not installed");
    }
    missing.is_none()
}

/// Runs a tool, which must succeed; what it said.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}{complaint}");
    said
}
