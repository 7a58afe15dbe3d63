//! Which version of an image is the current one: the highest, unless the
//! operator has gone back to an earlier one.
//!
//! `DATA/images/NAME/current` then names it. An image published afterwards
//! becomes current again.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use crate::inventory::{Error, Result, sync_directory};

const FILE: &str = "current";

/// The version chosen for the image in `home`, `DATA/images/NAME`. One that
/// cannot be read is [`UNREADABLE`]: no machine is given another version than
/// the one chosen.
pub(super) fn read(home: &Path) -> Option<u32> {
    let path = home.join(FILE);
    let mut text = String::new();
    match File::open(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        file => {
            let read = file.and_then(|file| file.take(64).read_to_string(&mut text));
            let version = read.ok().and_then(|_| text.trim().parse().ok());
            Some(version.unwrap_or_else(|| {
                tracing::error!("{} cannot be read: choose a version", path.display());
                UNREADABLE
            }))
        }
    }
}

/// What no version has.
pub(super) const UNREADABLE: u32 = 0;

/// Puts down durably which version is chosen; `None`: the highest.
pub(super) fn write(home: &Path, version: Option<u32>) -> Result<()> {
    let path = home.join(FILE);
    let failed = |e: std::io::Error| Error::Failed(format!("cannot write {}: {e}", path.display()));
    let Some(version) = version else {
        return match fs::remove_file(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.and_then(|()| sync_directory(home)).map_err(failed),
        };
    };
    let new = home.join(format!("{FILE}.new"));
    let write = || {
        let mut file = File::create(&new)?;
        writeln!(file, "{version}")?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        sync_directory(home)
    };
    write().map_err(failed)
}
