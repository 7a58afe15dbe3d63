//! New VHDs.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use super::blocks::{ABSENT, MAX_ENTRIES};
use super::footer::{EPOCH_SECONDS, FOOTER_BYTES, Footer, MAX_SIZE_BYTES, SECTOR_BYTES};
use super::header::{DEFAULT_BLOCK_BYTES, HEADER_BYTES, Header, Locator};
use super::open::open_on;
use super::{Kind, Vhd};
use crate::files::{File, Files};
use crate::health::trouble;
use crate::parents::directory;
use crate::{Access, NewDisk, NewFormat, OpenError, Opening};

/// Makes the file `path`, which does not exist yet, an empty disk, durable
/// under its name, and opens it to be written.
pub(crate) fn create(path: &Path, new: &NewDisk) -> Result<Vhd, OpenError> {
    let files = Files::real().map_err(|e| trouble("asking for the boot's id".to_owned(), e))?;
    create_on(&files, path, new)
}

pub(crate) fn create_on(files: &Files, path: &Path, new: &NewDisk) -> Result<Vhd, OpenError> {
    let size_bytes = new.size_bytes;
    let kind = match &new.format {
        NewFormat::VhdFixed => Kind::Fixed,
        NewFormat::VhdDynamic => Kind::Dynamic,
        other => {
            return Err(OpenError::Foreign {
                advice: format!("{} cannot be made as {other:?} yet", path.display()),
            });
        }
    };
    check_size(path, size_bytes)?;
    let uuid = uuid::Uuid::new_v4().into_bytes();
    let footer = Footer::new(kind, size_bytes, now(), uuid);
    let file = files
        .create_file(path)
        .map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => OpenError::Exists {
                path: path.to_owned(),
            },
            _ => trouble(format!("creating {}", path.display()), error).into(),
        })?;
    let made = match kind {
        Kind::Fixed => write_fixed(&file, &footer),
        Kind::Dynamic | Kind::Differencing => write_dynamic(&file, &footer),
    };
    let made = made
        .and_then(|()| file.sync_data())
        .and_then(|()| files.sync_dir(&directory(path)))
        .map_err(|e| trouble(format!("creating {}", path.display()), e).into());
    drop(file);
    let opened = made.and_then(|()| open_on(files, path, &Opening::new(Access::ReadWrite)));
    if opened.is_err() {
        let _ = files.remove_file(path);
    }
    opened
}

fn check_size(path: &Path, size_bytes: u64) -> Result<(), OpenError> {
    let refused = |why: String| {
        Err(OpenError::Foreign {
            advice: format!("{} cannot be made: {why}", path.display()),
        })
    };
    if size_bytes > MAX_SIZE_BYTES {
        return refused(format!(
            "a VHD holds up to {} GiB, and {size_bytes} bytes were asked for: make it a VHDX",
            MAX_SIZE_BYTES >> 30
        ));
    }
    if size_bytes == 0 || !size_bytes.is_multiple_of(SECTOR_BYTES) {
        return refused(format!(
            "{size_bytes} bytes are no whole number of sectors of {SECTOR_BYTES}"
        ));
    }
    Ok(())
}

/// Nothing but the footer is written: the rest is a hole.
fn write_fixed(file: &File, footer: &Footer) -> io::Result<()> {
    file.write_all_at(&footer.emit(), footer.current_bytes)
}

fn write_dynamic(file: &File, footer: &Footer) -> io::Result<()> {
    let entries = footer
        .current_bytes
        .div_ceil(u64::from(DEFAULT_BLOCK_BYTES));
    debug_assert!(entries <= MAX_ENTRIES);
    let bat_offset = (FOOTER_BYTES + HEADER_BYTES) as u64;
    let header = Header {
        bat_offset,
        max_bat_entries: u32::try_from(entries).unwrap_or(u32::MAX),
        block_bytes: DEFAULT_BLOCK_BYTES,
        parent_uuid: [0; 16],
        parent_timestamp: 0,
        parent_name: String::new(),
        locators: [Locator::default(); 8],
    };
    let bat_bytes = (4 * entries).next_multiple_of(SECTOR_BYTES);
    let table = ABSENT
        .to_be_bytes()
        .repeat(usize::try_from(bat_bytes / 4).unwrap_or(0));
    file.write_all_at(&footer.emit(), 0)?;
    file.write_all_at(&header.emit(), FOOTER_BYTES as u64)?;
    file.write_all_at(&table, bat_offset)?;
    file.write_all_at(&footer.emit(), bat_offset + bat_bytes)
}

/// The time, in seconds since 2000.
fn now() -> u32 {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seconds = unix.map_or(0, |unix| unix.as_secs());
    u32::try_from(seconds.saturating_sub(EPOCH_SECONDS)).unwrap_or(u32::MAX)
}
