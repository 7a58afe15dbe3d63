//! New VHDs.

use std::io;
use std::path::Path;
use std::time::SystemTime;

use super::blocks::ABSENT;
use super::footer::{FOOTER_BYTES, Footer, MAX_SIZE_BYTES, SECTOR_BYTES};
use super::header::{DEFAULT_BLOCK_BYTES, HEADER_BYTES, Header};
use super::open::open_on;
use super::parent::{Naming, seconds_since_2000};
use super::{Kind, Vhd};
use crate::files::{File, Files};
use crate::health::trouble;
use crate::parents::directory;
use crate::{Access, NewDisk, NewFormat, OpenError, Opening};

/// Copy of the footer, and header: what stands in front of everything else.
const FRONT_BYTES: u64 = (FOOTER_BYTES + HEADER_BYTES) as u64;

/// Makes the file `path`, which does not exist yet, an empty disk, durable
/// under its name, and opens it to be written.
pub(crate) fn create(path: &Path, new: &NewDisk) -> Result<Vhd, OpenError> {
    let files = Files::real().map_err(|e| trouble("asking for the boot's id".to_owned(), e))?;
    create_on(&files, path, new)
}

pub(crate) fn create_on(files: &Files, path: &Path, new: &NewDisk) -> Result<Vhd, OpenError> {
    let refused = |why: String| OpenError::Foreign {
        advice: format!("{} cannot be made: {why}", path.display()),
    };
    let mut opening = Opening::new(Access::ReadWrite);
    let (kind, parent) = match &new.format {
        NewFormat::VhdFixed => (Kind::Fixed, None),
        NewFormat::VhdDynamic => (Kind::Dynamic, None),
        NewFormat::VhdDifferencing { parent } => {
            let parent = open_on(files, parent, &Opening::new(Access::ReadOnly))?;
            opening.parent_roots.push(directory(&parent.path));
            (Kind::Differencing, Some(parent))
        }
        other => return Err(refused(format!("{other:?} is no VHD"))),
    };
    let size_bytes = match &parent {
        None => new.size_bytes,
        Some(parent) => parent.geometry.size_bytes,
    };
    if parent.is_some() && ![0, size_bytes].contains(&new.size_bytes) {
        return Err(refused(format!(
            "it has the {size_bytes} bytes of its parent, not {}",
            new.size_bytes
        )));
    }
    check_size(size_bytes).map_err(refused)?;
    let uuid = uuid::Uuid::new_v4().into_bytes();
    let footer = Footer::new(
        kind,
        size_bytes,
        seconds_since_2000(SystemTime::now()),
        uuid,
    );
    // The parent's names before the file: one that cannot be said makes none.
    let naming = parent
        .as_ref()
        .map(|parent| Naming::of(path, parent, FRONT_BYTES))
        .transpose()
        .map_err(|error| refused(error.to_string()))?;
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
        Kind::Dynamic | Kind::Differencing => write_blocks(&file, &footer, naming),
    };
    let made = made
        .and_then(|()| file.sync_data())
        .and_then(|()| files.sync_dir(&directory(path)))
        .map_err(|e| trouble(format!("creating {}", path.display()), e).into());
    drop((file, parent));
    let opened = made.and_then(|()| open_on(files, path, &opening));
    if opened.is_err() {
        let _ = files.remove_file(path);
    }
    opened
}

/// Why a disk of this size cannot be.
fn check_size(size_bytes: u64) -> Result<(), String> {
    if size_bytes > MAX_SIZE_BYTES {
        return Err(format!(
            "a VHD holds up to {} GiB, and {size_bytes} bytes were asked for: make it a VHDX",
            MAX_SIZE_BYTES >> 30
        ));
    }
    if size_bytes == 0 || !size_bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(format!(
            "{size_bytes} bytes are no whole number of sectors of {SECTOR_BYTES}"
        ));
    }
    Ok(())
}

/// Nothing but the footer is written: the rest is a hole.
fn write_fixed(file: &File, footer: &Footer) -> io::Result<()> {
    file.write_all_at(&footer.emit(), footer.current_bytes)
}

fn write_blocks(file: &File, footer: &Footer, naming: Option<Naming>) -> io::Result<()> {
    let entries = footer
        .current_bytes
        .div_ceil(u64::from(DEFAULT_BLOCK_BYTES));
    let naming = naming.unwrap_or_default();
    let bat_offset = FRONT_BYTES + naming.data.len() as u64;
    let header = Header {
        bat_offset,
        max_bat_entries: u32::try_from(entries).unwrap_or(u32::MAX),
        block_bytes: DEFAULT_BLOCK_BYTES,
        parent_uuid: naming.uuid,
        parent_timestamp: naming.timestamp,
        parent_name: naming.name,
        locators: naming.locators,
    };
    let bat_bytes = (4 * entries).next_multiple_of(SECTOR_BYTES);
    let table = ABSENT
        .to_be_bytes()
        .repeat(usize::try_from(bat_bytes / 4).unwrap_or(0));
    file.write_all_at(&footer.emit(), 0)?;
    file.write_all_at(&header.emit(), FOOTER_BYTES as u64)?;
    file.write_all_at(&naming.data, FRONT_BYTES)?;
    file.write_all_at(&table, bat_offset)?;
    file.write_all_at(&footer.emit(), bat_offset + bat_bytes)
}
