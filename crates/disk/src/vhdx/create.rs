//! A new VHDX file: headers, log, metadata, BAT, then the blocks.

use std::path::Path;

use uuid::Uuid;

use super::Vhdx;
use super::bat::{Layout, State};
use super::header::{self, Header};
use super::metadata::{Locator, Metadata, SIZE_BYTES_MAX};
use super::region::{COPIES, Region, Regions};
use crate::files::{File, Files};
use crate::health::trouble;
use crate::parents;
use crate::{Access, Disk, NewDisk, NewFormat, OpenError, Opening};

const MIB: u64 = 1 << 20;

/// Blocks of a fixed disk, and of Windows' own: a small table.
const FIXED_BLOCK_BYTES: u32 = 32 << 20;

/// Blocks of a dynamic disk. Windows takes 32 MiB; a quarter of it wastes less
/// where a tool does not know holes, and 64 TiB still need a table of 64 MiB
/// only, itself a hole.
const DYNAMIC_BLOCK_BYTES: u32 = 8 << 20;

/// Blocks of a differencing disk, as Windows makes them: few sectors of a
/// block are ever its own.
const DIFFERENCING_BLOCK_BYTES: u32 = 2 << 20;

const LOG: Region = Region {
    offset: MIB,
    bytes: 1 << 20,
};

const METADATA: Region = Region {
    offset: 2 * MIB,
    bytes: 1 << 20,
};

const BAT_AT: u64 = 3 * MIB;

impl Vhdx {
    pub(crate) fn create_on(files: &Files, path: &Path, new: &NewDisk) -> Result<Vhdx, OpenError> {
        let block_bytes = match new.format {
            NewFormat::VhdxFixed => FIXED_BLOCK_BYTES,
            NewFormat::VhdxDifferencing { .. } => DIFFERENCING_BLOCK_BYTES,
            _ => DYNAMIC_BLOCK_BYTES,
        };
        Vhdx::create_with(files, path, new, block_bytes)
    }

    /// With blocks of another size, of which a test wants small ones.
    pub(crate) fn create_with(
        files: &Files,
        path: &Path,
        new: &NewDisk,
        block_bytes: u32,
    ) -> Result<Vhdx, OpenError> {
        let refused = |why: String| OpenError::Foreign {
            advice: format!("{} cannot be made: {why}", path.display()),
        };
        let logical_bytes = new.logical_block_bytes;
        if ![512, 4096].contains(&logical_bytes) {
            return Err(refused(format!(
                "a VHDX has sectors of 512 or 4096 bytes, not of {logical_bytes}"
            )));
        }
        let parent = match &new.format {
            NewFormat::VhdxDifferencing { parent } => Some(locate(path, parent, new)?),
            _ => None,
        };
        let whole = new.size_bytes.is_multiple_of(logical_bytes.into());
        if new.size_bytes == 0 || new.size_bytes > SIZE_BYTES_MAX || !whole {
            return Err(refused(format!(
                "{} bytes: a VHDX has whole sectors of {logical_bytes}, up to 64 TiB",
                new.size_bytes
            )));
        }
        let metadata = Metadata {
            block_bytes,
            is_fixed: new.format == NewFormat::VhdxFixed,
            size_bytes: new.size_bytes,
            disk_id: Uuid::new_v4(),
            logical_bytes,
            physical_bytes: 4096,
            parent,
            size_at: 0,
            locator_at: 0,
        };
        let failed = |e| trouble(format!("creating {}", path.display()), e);
        let file = match files.create_file(path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(OpenError::Exists {
                    path: path.to_owned(),
                });
            }
            file => file.map_err(failed)?,
        };
        let made = write(&file, &metadata)
            .and_then(|()| file.sync_data())
            .and_then(|()| files.sync_dir(&parents::directory(path)))
            .map_err(|e| failed(e).into());
        drop(file);
        // The file names its parent; whoever makes it may let it lie anywhere.
        let roots = match &new.format {
            NewFormat::VhdxDifferencing { parent } => parent
                .canonicalize()
                .ok()
                .and_then(|p| Some(p.parent()?.to_owned())),
            _ => None,
        };
        let opening = Opening {
            parent_roots: roots.into_iter().collect(),
            ..Opening::new(Access::ReadWrite)
        };
        let opened = made.and_then(|()| Vhdx::open_on(files, path, &opening));
        if opened.is_err() {
            let _ = files.remove_file(path);
        }
        opened
    }
}

/// Names `parent` as the child `path` will know it.
fn locate(path: &Path, parent: &Path, new: &NewDisk) -> Result<Locator, OpenError> {
    let above = super::open(parent, &Opening::new(Access::ReadOnly))?;
    let geometry = above.geometry();
    if (geometry.size_bytes, geometry.logical_block_bytes)
        != (new.size_bytes, new.logical_block_bytes)
    {
        return Err(OpenError::Foreign {
            advice: format!(
                "{} has {} bytes in sectors of {}: a disk above it has the same",
                parent.display(),
                geometry.size_bytes,
                geometry.logical_block_bytes
            ),
        });
    }
    let linkage = above.journal.log().headers.current.data_write;
    let relative = parents::relative(path, parent)
        .map_err(|e| trouble(format!("creating {}", path.display()), e))?;
    let entry = |key: &str, value: String| (key.to_owned(), value);
    Ok(Locator {
        entries: vec![
            entry("parent_linkage", linkage.braced().to_string()),
            entry("parent_linkage2", Uuid::nil().braced().to_string()),
            entry("relative_path", relative),
        ],
    })
}

fn write(file: &File, metadata: &Metadata) -> std::io::Result<()> {
    let layout = Layout::new(metadata);
    let bat_bytes = (layout.entries() * 8).next_multiple_of(MIB);
    let bat = Region {
        offset: BAT_AT,
        // 64 TiB in blocks of 1 MiB: 513 MiB.
        bytes: u32::try_from(bat_bytes).unwrap_or(u32::MAX),
    };
    let payload_bytes = match metadata.is_fixed {
        true => layout.blocks() * layout.block_bytes,
        false => 0,
    };
    file.set_len(bat.end() + payload_bytes)?;
    header::create(
        file,
        &Header {
            sequence: 1,
            file_write: Uuid::new_v4(),
            data_write: Uuid::new_v4(),
            log: Uuid::nil(),
            log_bytes: LOG.bytes,
            log_offset: LOG.offset,
        },
    )?;
    let regions = Regions::emit(bat, METADATA);
    for copy in COPIES {
        file.write_all_at(&regions, copy)?;
    }
    file.write_all_at(&metadata.emit(), METADATA.offset)?;
    if metadata.is_fixed {
        write_fixed_bat(file, &layout, bat)?;
    }
    Ok(())
}

/// All blocks in order, right behind the table.
fn write_fixed_bat(file: &File, layout: &Layout, bat: Region) -> std::io::Result<()> {
    /// Blocks of which the entries are written together.
    const TOGETHER: u64 = 1 << 16;
    let mut first = 0;
    while first < layout.blocks() {
        let end = (first + TOGETHER).min(layout.blocks());
        let start = layout.entry_of(first);
        let mut bytes = vec![0; super::index((layout.entry_of(end - 1) + 1 - start) * 8)];
        for block in first..end {
            let entry = State::Full(bat.end() + block * layout.block_bytes).emit();
            let at = super::index((layout.entry_of(block) - start) * 8);
            super::source::put(&mut bytes, at, &entry.to_le_bytes());
        }
        file.write_all_at(&bytes, bat.offset + start * 8)?;
        first = end;
    }
    Ok(())
}
