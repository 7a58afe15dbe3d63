//! One layer: its data file, mapped to be read, and its marks.

use std::io;
use std::path::{Path, PathBuf};

use memmap2::{Advice, MmapOptions, MmapRaw};

use super::OverlayMode;
use super::journal::{self, Journal};
use super::live::Live;
use crate::files::{File, Files};

/// Blocks of the overlay: one mark each.
pub(super) const BLOCK_BYTES: u64 = 4096;

/// A layer, open.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) dir: PathBuf,
    /// Block k at offset k * 4096; sparse.
    pub(super) data: File,
    pub(super) live: Live,
    /// The data, to send from; None where the file system cannot map.
    mapping: Option<MmapRaw>,
}

impl Layer {
    /// Creates an empty layer, durable but for its name in `overlay_dir`.
    ///
    /// Whatever an interrupted creation of the same number left is removed.
    pub(super) fn create(
        files: &Files,
        overlay_dir: &Path,
        number: u32,
        size_bytes: u64,
        mode: OverlayMode,
    ) -> io::Result<(Layer, Journal)> {
        let dir = layer_dir(overlay_dir, number);
        files.remove_tree(&dir)?;
        files.create_dir(&dir)?;
        let blocks = size_bytes.div_ceil(BLOCK_BYTES);
        let data = files.create_file(&dir.join("data"))?;
        data.set_len(blocks * BLOCK_BYTES)?;
        data.sync_data()?;
        let live = Live::create(files, &dir.join("live"), number, blocks)?;
        let mut journal = Journal::new(&dir);
        if mode == OverlayMode::Keep {
            journal.checkpoint(files, &live, || Ok(()))?;
        }
        files.sync_dir(&dir)?;
        let layer = Layer {
            mapping: map(&data, blocks),
            dir,
            data,
            live,
        };
        Ok((layer, journal))
    }

    /// Opens a layer whose marks are those of this boot of the kernel; `None`
    /// when they are void.
    pub(super) fn open(
        files: &Files,
        overlay_dir: &Path,
        number: u32,
        size_bytes: u64,
    ) -> io::Result<Option<Layer>> {
        let dir = layer_dir(overlay_dir, number);
        let blocks = size_bytes.div_ceil(BLOCK_BYTES);
        match Live::open(files, &dir.join("live"), number, blocks)? {
            None => Ok(None),
            Some(live) => Layer::over(files, dir, live).map(Some),
        }
    }

    /// Opens a layer after the host was lost: checkpoint and log say what is
    /// in it.
    pub(super) fn recover(
        files: &Files,
        overlay_dir: &Path,
        number: u32,
        size_bytes: u64,
    ) -> io::Result<Layer> {
        let dir = layer_dir(overlay_dir, number);
        let blocks = size_bytes.div_ceil(BLOCK_BYTES);
        let (new, path) = (dir.join("live.new"), dir.join("live"));
        match files.remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let live = Live::create(files, &new, number, blocks)?;
        journal::replay(files, &dir, &live)?;
        // Only whole marks get the name; they need not be durable.
        files.rename(&new, &path)?;
        Layer::over(files, dir, live)
    }

    fn over(files: &Files, dir: PathBuf, live: Live) -> io::Result<Layer> {
        let data = files.open_file(&dir.join("data"))?;
        let length = data.inner().metadata()?.len();
        if length != live.block_count() * BLOCK_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} has {length} bytes", dir.join("data").display()),
            ));
        }
        Ok(Layer {
            mapping: map(&data, live.block_count()),
            dir,
            data,
            live,
        })
    }

    /// Where the data of a range lies, if it is mapped at all.
    pub(super) fn address(&self, offset: u64) -> Option<*const u8> {
        let offset = usize::try_from(offset).ok()?;
        let mapping = self.mapping.as_ref()?;
        Some(mapping.as_ptr().wrapping_add(offset))
    }

    /// Starts read-ahead of a range of the data.
    pub(super) fn will_need(&self, offset: u64, bytes: u64) {
        if let (Some(mapping), Ok(offset), Ok(bytes)) = (
            &self.mapping,
            usize::try_from(offset),
            usize::try_from(bytes),
        ) {
            // Only advice: a refusal changes nothing.
            let _ = mapping.advise_range(Advice::WillNeed, offset, bytes);
        }
    }
}

/// Directory of a layer: its number, three digits or more.
pub(super) fn layer_dir(overlay_dir: &Path, number: u32) -> PathBuf {
    overlay_dir.join(format!("{number:03}"))
}

fn map(data: &File, blocks: u64) -> Option<MmapRaw> {
    let length = usize::try_from(blocks * BLOCK_BYTES).ok()?;
    if length == 0 {
        return None;
    }
    MmapOptions::new()
        .len(length)
        .map_raw_read_only(data.inner())
        .inspect_err(|error| tracing::debug!(%error, "overlay data not mapped"))
        .ok()
}
