//! A layer that is not written any more: what a restore point stands on.
//!
//! Its files may be linked into other overlays, so they are never written
//! while they are (`store/merge.rs`), and what replaces one comes by a rename.
//! Opened when they are needed.
//!
//! As it was when it froze (`live`, `map.SEQ`, `log.SEQ`), or *sealed*: one
//! `map.SEQ` says all.

use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use super::data::{Data, Held};
use super::head::Entry;
use super::journal;
use super::layer::{BLOCK_BYTES, Layer, layer_dir, replayed};
use super::live::{Live, Mark, PAGE_BLOCKS};
use super::map::{Map, PAGE_BYTES, corrupt};
use crate::files::Files;

/// A frozen layer.
#[derive(Debug)]
pub(super) struct Frozen {
    files: Files,
    pub(super) number: u32,
    pub(super) dir: PathBuf,
    pub(super) block_count: u64,
    data: OnceLock<Arc<Data>>,
    marks: RwLock<Marks>,
    counts: OnceLock<(u64, u64)>,
    stored: OnceLock<u64>,
}

/// Where the marks of a frozen layer are.
#[derive(Debug)]
enum Marks {
    /// Nothing was ever written: there are no files.
    Empty,
    /// As they were when it froze, in this process.
    Live(Arc<Live>),
    /// The same, in one before.
    LiveFile(std::fs::File),
    /// In its map, once that was needed.
    Sealed(Option<Arc<Map>>),
}

/// A frozen layer as it was found.
pub(super) enum Found {
    Whole(Frozen),
    /// Its marks went with the host, and nothing else tells them.
    Void,
}

impl Frozen {
    /// A layer in which nothing was ever written.
    pub(super) fn empty(
        files: &Files,
        overlay_dir: &Path,
        number: u32,
        block_count: u64,
    ) -> Frozen {
        Frozen {
            files: files.clone(),
            number,
            dir: layer_dir(overlay_dir, number),
            block_count,
            data: OnceLock::new(),
            marks: RwLock::new(Marks::Empty),
            counts: OnceLock::new(),
            stored: OnceLock::new(),
        }
    }

    /// The top as it is, from here on not written any more.
    pub(super) fn of_top(files: &Files, number: u32, top: &Layer) -> Frozen {
        Frozen {
            files: files.clone(),
            number,
            dir: top.dir.clone(),
            block_count: top.live.block_count(),
            data: OnceLock::from(top.data.clone()),
            marks: RwLock::new(Marks::Live(top.live.clone())),
            counts: OnceLock::new(),
            stored: OnceLock::new(),
        }
    }

    /// What has taken the place of two layers that were merged into `kept`,
    /// the one whose directory goes on.
    pub(super) fn merged(kept: &Frozen) -> Frozen {
        Frozen {
            files: kept.files.clone(),
            number: kept.number,
            dir: kept.dir.clone(),
            block_count: kept.block_count,
            data: kept.data.clone(),
            marks: RwLock::new(Marks::Sealed(None)),
            counts: OnceLock::new(),
            stored: OnceLock::new(),
        }
    }

    /// Finds a layer of an overlay that is opened; seals it if only its log
    /// tells its newest marks.
    pub(super) fn find(
        files: &Files,
        overlay_dir: &Path,
        entry: Entry,
        size_bytes: u64,
    ) -> io::Result<Found> {
        let block_count = size_bytes.div_ceil(BLOCK_BYTES);
        let layer = Frozen::empty(files, overlay_dir, entry.number, block_count);
        if entry.is_empty {
            return Ok(Found::Whole(layer));
        }
        let dir = &layer.dir;
        // Told now, not to a machine that reads it next week.
        let length = std::fs::metadata(dir.join("data"))?.len();
        if length != block_count * BLOCK_BYTES {
            let what = format!("has {length} bytes, not {}", block_count * BLOCK_BYTES);
            return Err(corrupt(&dir.join("data"), &what));
        }
        let boot_id = files.settled(&dir.join("data"))?;
        let names = files.names(dir)?;
        let live = dir.join("live");
        if names.iter().any(|name| name == "live")
            && let Some(file) = Live::current(&live, boot_id, entry.number, block_count)?
        {
            *layer.write_marks() = Marks::LiveFile(file);
            return Ok(Found::Whole(layer));
        }
        if !names.iter().any(|name| name.starts_with("map.")) {
            return Ok(Found::Void);
        }
        *layer.write_marks() = Marks::Sealed(None);
        if names.iter().any(|name| name.starts_with("log.")) {
            let scratch = dir.join("live.new");
            let marks = replayed(files, dir, &scratch, entry.number, block_count)?;
            journal::seal(files, dir, block_count, |page| Ok(marks.page(page)))?;
        }
        Ok(Found::Whole(layer))
    }

    /// Whether nothing was ever written to it.
    pub(super) fn is_empty(&self) -> bool {
        matches!(*self.read_marks(), Marks::Empty)
    }

    /// Whether its map says all.
    pub(super) fn is_sealed(&self) -> bool {
        matches!(*self.read_marks(), Marks::Sealed(_) | Marks::Empty)
    }

    /// Asks whether the kernel failed to write back data of a layer that was
    /// never made durable: as long as it is not sealed, and its file is held
    /// open from when it was written.
    pub(super) fn writeback_error(&self) -> io::Result<()> {
        match (self.is_sealed(), self.data.get()) {
            (false, Some(data)) => data.file.writeback_error(),
            _ => Ok(()),
        }
    }

    /// Makes its map say all, durably, and gives the rest back.
    pub(super) fn seal(&self) -> io::Result<()> {
        if self.is_sealed() {
            return Ok(());
        }
        // Nothing to do after a flush, but a reset overlay has none.
        self.files.open_file(&self.dir.join("data"))?.sync_data()?;
        journal::seal(&self.files, &self.dir, self.block_count, |page| {
            Ok(self.page(page)?.map(|bytes| bytes.to_vec()))
        })?;
        *self.write_marks() = Marks::Sealed(None);
        Ok(())
    }

    /// Its data, to be read.
    pub(super) fn data(&self) -> io::Result<Held<'_>> {
        if let Some(data) = self.data.get() {
            return Ok(Held::Open(data));
        }
        let bytes = self.block_count * BLOCK_BYTES;
        let file = self.files.open_to_read(&self.dir.join("data"))?;
        Data::check(&file, &self.dir, bytes)?;
        let (data, may_stay) = Data::of_frozen(file, bytes);
        match may_stay {
            true => Ok(Held::Open(self.data.get_or_init(|| Arc::new(data)))),
            false => Ok(Held::Once(Box::new(data))),
        }
    }

    /// A page of marks; `None` when nothing is marked in it.
    pub(super) fn page(&self, page: u64) -> io::Result<Option<[u8; PAGE_BYTES]>> {
        let map = match &*self.read_marks() {
            Marks::Empty => return Ok(None),
            Marks::Live(live) => {
                return Ok(live.page(page).map(|bytes| super::field(&bytes, 0)));
            }
            Marks::LiveFile(file) => {
                let mut bytes = [0; PAGE_BYTES];
                file.read_exact_at(&mut bytes, Live::page_at(page))?;
                let any = bytes.iter().any(|&byte| byte != 0);
                return Ok(any.then_some(bytes));
            }
            Marks::Sealed(map) => map.clone(),
        };
        let map = match map {
            Some(map) => map,
            None => self.map(None)?,
        };
        match map.page(page) {
            // Sealed anew by a merge whose stack is not there yet. The new marks
            // are right beside the other layer's, too: the data was copied before.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.map(Some(&map))?.page(page)
            }
            read => read,
        }
    }

    /// How many blocks are marked [`Mark::Own`] and [`Mark::Zero`].
    pub(super) fn counts(&self) -> io::Result<(u64, u64)> {
        if let Some(&counts) = self.counts.get() {
            return Ok(counts);
        }
        let (mut own, mut zero) = (0, 0);
        for page in 0..self.block_count.div_ceil(PAGE_BLOCKS) {
            if let Some(bytes) = self.page(page)? {
                for word in words(&bytes) {
                    own += u64::from((word & Live::LOW_BITS).count_ones());
                    zero += u64::from((word & !Live::LOW_BITS).count_ones());
                }
            }
        }
        Ok(*self.counts.get_or_init(|| (own, zero)))
    }

    /// Space its data takes; asked once.
    pub(super) fn stored_bytes(&self) -> io::Result<u64> {
        if let Some(&bytes) = self.stored.get() {
            return Ok(bytes);
        }
        let bytes = match self.is_empty() {
            true => 0,
            false => self.data()?.file.inner().metadata()?.blocks() * 512,
        };
        Ok(*self.stored.get_or_init(|| bytes))
    }

    /// Its newest checkpoint: not `gone`, whose file is not there any more.
    fn map(&self, gone: Option<&Arc<Map>>) -> io::Result<Arc<Map>> {
        let mut marks = self.write_marks();
        if let Marks::Sealed(Some(map)) = &*marks
            && gone.is_none_or(|gone| !Arc::ptr_eq(gone, map))
        {
            return Ok(map.clone());
        }
        let newest = journal::newest(&self.files, &self.dir)?;
        let newest = newest.ok_or_else(|| corrupt(&self.dir, "has no checkpoint"))?;
        let map = Arc::new(Map::open(&self.dir, newest, self.block_count)?);
        *marks = Marks::Sealed(Some(map.clone()));
        Ok(map)
    }

    fn read_marks(&self) -> std::sync::RwLockReadGuard<'_, Marks> {
        self.marks.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_marks(&self) -> std::sync::RwLockWriteGuard<'_, Marks> {
        self.marks.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The words of a page of marks.
pub(super) fn words(page: &[u8; PAGE_BYTES]) -> impl Iterator<Item = u64> + '_ {
    page.chunks_exact(8)
        .map(|word| u64::from_le_bytes(super::field(word, 0)))
}

/// The mark of a block of a page, counted from the page's first.
pub(super) fn mark_in(page: Option<&[u8; PAGE_BYTES]>, at: usize) -> io::Result<Mark> {
    let Some(page) = page else {
        return Ok(Mark::Below);
    };
    let bits = (page[at / 4] >> (2 * (at % 4))) & 3;
    Mark::from_bits(u64::from(bits)).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "a layer holds marks that nobody writes",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_while_a_merge_seals_the_layer_anew() {
        let home = tempfile::tempdir().unwrap();
        let files = Files::real().unwrap();
        let layer = Frozen::empty(&files, home.path(), 1, PAGE_BLOCKS);
        files.create_dir(&layer.dir).unwrap();
        let seal = |mark: u8| {
            let page = |_| Ok(Some(vec![mark; PAGE_BYTES]));
            journal::seal(&files, &layer.dir, PAGE_BLOCKS, page).unwrap();
        };
        seal(0b01);
        *layer.write_marks() = Marks::Sealed(None);
        assert_eq!(layer.page(0).unwrap(), Some([0b01; PAGE_BYTES]));
        seal(0b10);
        assert_eq!(layer.page(0).unwrap(), Some([0b10; PAGE_BYTES]));
    }
}
