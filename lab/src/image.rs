//! Disk images that boot, made by the scripts in `lab/images`, and what a lab
//! needs of this machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::state::run;

/// Programs and files of the packages `lab/setup.sh` installs.
const PROGRAMS: [&str; 14] = [
    "ip",
    "setpriv",
    "qemu-system-x86_64",
    "dnsmasq",
    "debootstrap",
    "mke2fs",
    "e2fsck",
    "mkfs.fat",
    "mcopy",
    "sfdisk",
    "cpio",
    "zstd",
    "curl",
    "xorriso",
];
const FILES: [&str; 5] = [
    "/usr/share/OVMF/OVMF_CODE_4M.fd",
    "/usr/share/OVMF/OVMF_VARS_4M.ms.fd",
    "/usr/lib/ipxe/undionly.kpxe",
    "/usr/lib/ipxe/qemu/pxe-virtio.rom",
    "/usr/share/seabios/bios-256k.bin",
];

/// The repository's root.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// Where images are kept between runs: `$DISKLESS_LAB`, or `.lab` in the repository.
pub(crate) fn lab_directory() -> Result<PathBuf> {
    let directory = match std::env::var_os("DISKLESS_LAB") {
        Some(directory) if !directory.is_empty() => PathBuf::from(directory),
        _ => repository().join(".lab"),
    };
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("making {}", directory.display()))?;
    Ok(directory.canonicalize()?)
}

/// What this machine lacks for a lab, as a sentence; `None` when nothing.
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some(
            "network namespaces need root (make test asks for it through sudo)".to_owned(),
        );
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let found = |program: &str| {
        path.split(':')
            .chain(["/usr/sbin", "/sbin"])
            .any(|directory| Path::new(directory).join(program).exists())
    };
    let programs = PROGRAMS.iter().filter(|program| !found(program));
    let files = FILES.iter().filter(|file| !Path::new(file).exists());
    let lacking: Vec<&str> = programs.chain(files).copied().collect();
    (!lacking.is_empty()).then(|| {
        format!(
            "missing: {} (lab/setup.sh installs what brings them)",
            lacking.join(", ")
        )
    })
}

/// The tiny guest's image, built now if there is none of this version.
///
/// # Errors
/// When it cannot be built; the script has said why on standard error.
pub fn tiny() -> Result<PathBuf> {
    build("tiny-guest.sh")
}

/// The initiator guest's directory of kernel and initramfs, built now if there
/// is none of this version.
///
/// # Errors
/// When it cannot be built; the script has said why on standard error.
pub fn initiator() -> Result<PathBuf> {
    build("initiator-guest.sh")
}

/// The Debian image, built now (some minutes) if there is none of this version.
///
/// # Errors
/// When it cannot be built; the script has said why on standard error.
pub fn debian() -> Result<PathBuf> {
    build("debian.sh")
}

/// The directory of Debian's signed chains (see `lab/images/chain.sh`), fetched
/// now if they are not there.
///
/// # Errors
/// When they cannot be fetched; the script has said why on standard error.
pub fn chain() -> Result<PathBuf> {
    build("chain.sh")
}

fn build(script: &str) -> Result<PathBuf> {
    let script = repository().join("lab/images").join(script);
    // One at a time, also when several test processes start together.
    let lock = std::fs::File::create(lab_directory()?.join("images.lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    let output = Command::new("sh")
        .arg(&script)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("running {}", script.display()))?;
    if !output.status.success() {
        bail!("{} could not build its image", script.display());
    }
    let path = String::from_utf8(output.stdout).context("an image's path")?;
    Ok(PathBuf::from(path.trim_end()))
}

/// SHA-256 of a file, as `sha256sum` prints it.
///
/// # Errors
/// When the file cannot be read.
pub fn sha256(file: &Path) -> Result<String> {
    let output = run("sha256sum", &["-b", "--", &file.to_string_lossy()])?;
    Ok(output
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned())
}
