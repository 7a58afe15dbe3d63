//! The layer that is written: its data file and its marks.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::OverlayMode;
use super::data::Data;
use super::journal::{self, Journal};
use super::live::Live;
use crate::files::Files;

/// Blocks of the overlay: one mark each.
pub(super) const BLOCK_BYTES: u64 = 4096;

/// A layer, open to be written.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) dir: PathBuf,
    /// Block k at offset k * 4096; sparse.
    pub(super) data: Arc<Data>,
    pub(super) live: Arc<Live>,
}

/// The highest layer of an overlay: made when something is written to it.
#[derive(Debug)]
pub(super) struct Top {
    pub(super) number: u32,
    layer: OnceLock<Layer>,
    /// The journal that was begun with the layer, until the next flush takes
    /// it.
    begun: Mutex<Option<Journal>>,
}

impl Top {
    /// A top nothing was written to.
    pub(super) fn fresh(number: u32) -> Top {
        Top {
            number,
            layer: OnceLock::new(),
            begun: Mutex::new(None),
        }
    }

    /// A top that was found.
    pub(super) fn found(number: u32, layer: Layer) -> Top {
        let top = Top::fresh(number);
        let _ = top.layer.set(layer);
        top
    }

    /// The layer, once something is written to it.
    pub(super) fn layer(&self) -> Option<&Layer> {
        self.layer.get()
    }

    /// The layer, once something is written to it, and `journal` is its own
    /// then: the first write may have come since the journal was locked, and
    /// its marks are noted in no other.
    pub(super) fn layer_with(&self, journal: &mut Journal) -> Option<&Layer> {
        let layer = self.layer()?;
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(begun) = begun.take() {
            *journal = begun;
        }
        Some(layer)
    }

    /// From here on it is written, with the journal that was begun for it;
    /// called once.
    pub(super) fn begin(&self, layer: Layer, journal: Journal) {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        *begun = Some(journal);
        let _ = self.layer.set(layer);
    }
}

impl Layer {
    /// Makes an empty layer, durable with its name, and begins its journal
    /// where the mode keeps one.
    ///
    /// Whatever an interrupted attempt left under the number is removed.
    pub(super) fn make(
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
        let live = Live::create(files, &dir.join("live"), files.boot_id(), number, blocks)?;
        let journal = match mode {
            OverlayMode::Keep => Journal::begin(files, &dir, blocks)?,
            OverlayMode::Reset => Journal::none(),
        };
        files.sync_dir(&dir)?;
        files.sync_dir(overlay_dir)?;
        let layer = Layer {
            data: Arc::new(Data::of_top(data, blocks * BLOCK_BYTES)),
            live: Arc::new(live),
            dir,
        };
        Ok((layer, journal))
    }

    /// Opens a layer whose marks are those of this boot of the kernel; `None`
    /// when they are void: the host was lost, or a sync of the data failed.
    pub(super) fn open(
        files: &Files,
        overlay_dir: &Path,
        number: u32,
        size_bytes: u64,
    ) -> io::Result<Option<Layer>> {
        let dir = layer_dir(overlay_dir, number);
        let blocks = size_bytes.div_ceil(BLOCK_BYTES);
        let boot_id = files.settled(&dir.join("data"))?;
        match Live::open(files, &dir.join("live"), boot_id, number, blocks)? {
            None => Ok(None),
            Some(live) => Layer::over(files, dir, live).map(Some),
        }
    }

    /// Opens a layer whose marks are void: checkpoint and log say what is in
    /// it.
    pub(super) fn recover(
        files: &Files,
        overlay_dir: &Path,
        number: u32,
        size_bytes: u64,
    ) -> io::Result<Layer> {
        let dir = layer_dir(overlay_dir, number);
        let blocks = size_bytes.div_ceil(BLOCK_BYTES);
        let new = dir.join("live.new");
        let live = replayed(files, &dir, &new, number, blocks)?;
        // Only whole marks get the name; they need not be durable.
        files.rename(&new, &dir.join("live"))?;
        Layer::over(files, dir, live)
    }

    fn over(files: &Files, dir: PathBuf, live: Live) -> io::Result<Layer> {
        let bytes = live.block_count() * BLOCK_BYTES;
        let data = files.open_file(&dir.join("data"))?;
        Data::check(&data, &dir, bytes)?;
        Ok(Layer {
            data: Arc::new(Data::of_top(data, bytes)),
            live: Arc::new(live),
            dir,
        })
    }
}

/// Marks in a new file at `new`, as checkpoint and log in `dir` say.
pub(super) fn replayed(
    files: &Files,
    dir: &Path,
    new: &Path,
    number: u32,
    block_count: u64,
) -> io::Result<Live> {
    match files.remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let boot_id = files.boot_of(&dir.join("data"))?;
    let live = Live::create(files, new, boot_id, number, block_count)?;
    journal::replay(files, dir, &live)?;
    Ok(live)
}

/// Directory of a layer: its number, three digits or more.
pub(super) fn layer_dir(overlay_dir: &Path, number: u32) -> PathBuf {
    overlay_dir.join(format!("{number:03}"))
}
