//! Restore points: freezing the top layer, above which another begins.

use std::io;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::OverlayMode;
use super::super::check_retired;
use super::super::frozen::Frozen;
use super::super::head::{Entry, LAYERS_MAX, Rest};
use super::super::journal::Journal;
use super::super::layer::{BLOCK_BYTES, Layer, Top, layer_dir};
use super::super::live::Mark;
use super::super::point::{COMMENT_BYTES_MAX, Note, POINTS_MAX, Point};
use super::flush::Pending;
use super::{Store, held, stored_bytes};
use crate::health::trouble;
use crate::{DiskError, OpenError};

impl Store {
    pub(in crate::overlay) fn point(
        &self,
        retired: &AtomicBool,
        note: Note,
    ) -> Result<Point, OpenError> {
        let _layers = held(&self.layers);
        let refused = |limit, what| OpenError::TooMany {
            path: self.dir().to_owned(),
            limit,
            what,
        };
        if note.comment.len() > COMMENT_BYTES_MAX {
            return Err(refused(COMMENT_BYTES_MAX, "bytes in the comment"));
        }
        let entries = self.situation().head.layers.clone();
        let points = entries.iter().filter(|entry| entry.is_point).count();
        if points >= POINTS_MAX {
            return Err(refused(POINTS_MAX, "restore points"));
        }
        let number = self.freeze(retired, Some(&note))?;
        let dir = layer_dir(self.dir(), number);
        let stored = stored_bytes(&dir).map_err(|e| trouble(self.context("measuring"), e))?;
        Ok(Point {
            note,
            stored_bytes: stored,
        })
    }

    /// Freezes the top, with a note when a restore point is to be at its end,
    /// and answers its number. The caller holds the layers.
    ///
    /// Everything written before is durable then (of a `keep` overlay), so the
    /// head is settled; the new top has no files until it is written.
    pub(super) fn freeze(
        &self,
        retired: &AtomicBool,
        note: Option<&Note>,
    ) -> Result<u32, OpenError> {
        check_retired(retired)?;
        if self.situation().head.layers.len() >= LAYERS_MAX {
            return Err(OpenError::TooMany {
                path: self.dir().to_owned(),
                limit: LAYERS_MAX,
                what: "layers",
            });
        }
        // Most of the work before anybody has to wait for it.
        if self.mode == OverlayMode::Keep {
            self.flush()?;
        }
        let top = self.disk.stack().top.clone();
        let mut noted = false;
        if let (Some(layer), Some(note)) = (top.layer(), note) {
            self.note(layer, note)?;
            noted = true;
        }
        let mut journal = self.journal();
        let stripes = self.all_stripes();
        check_retired(retired)?;
        self.health.check()?;
        let durable = match top.layer_with(&mut journal) {
            Some(layer) => self.freeze_layer(&mut journal, layer, note.filter(|_| !noted))?,
            None => {
                self.freeze_nothing(top.number, note)?;
                Pending::default()
            }
        };
        self.begin_top(&top, note.is_some())?;
        *journal = Journal::none();
        drop((stripes, journal));
        if let Some(layer) = top.layer() {
            punch_zeroed(layer, durable);
        }
        Ok(top.number)
    }

    /// Makes the rest of a layer durable, which nobody writes meanwhile.
    fn freeze_layer(
        &self,
        journal: &mut MutexGuard<'_, Journal>,
        layer: &Layer,
        note: Option<&Note>,
    ) -> Result<Pending, DiskError> {
        if let Some(note) = note {
            self.note(layer, note)?;
        }
        match self.mode {
            OverlayMode::Keep => self.make_durable(journal, layer),
            OverlayMode::Reset => Ok(Pending::default()),
        }
    }

    /// A layer nobody has written: its directory holds nothing but the note.
    fn freeze_nothing(&self, number: u32, note: Option<&Note>) -> Result<(), DiskError> {
        let dir = layer_dir(self.dir(), number);
        let made = (|| {
            self.files.remove_tree(&dir)?;
            self.files.create_dir(&dir)?;
            if let Some(note) = note {
                note.write(&self.files, &dir)?;
            }
            self.files.sync_dir(self.dir())
        })();
        made.map_err(|e: io::Error| trouble(self.context("noting a restore point of"), e))
    }

    fn note(&self, layer: &Layer, note: &Note) -> Result<(), DiskError> {
        note.write(&self.files, &layer.dir)
            .map_err(|e| trouble(self.context("noting a restore point of"), e))
    }

    /// Another top above the one that is frozen; the caller holds the stripes.
    fn begin_top(&self, old: &Top, is_point: bool) -> Result<(), DiskError> {
        let mut situation = self.situation();
        let next = situation.head.next_number();
        let next = next.map_err(|e| trouble(self.context("numbering a layer of"), e))?;
        self.change_head(&mut situation, |head| {
            if let Some(entry) = head.layers.last_mut() {
                entry.is_point = is_point;
                entry.is_empty = head.is_fresh;
            }
            head.layers.push(Entry::new(next));
            head.is_fresh = true;
            if head.mode == OverlayMode::Keep && head.rest == Rest::Written {
                head.rest = Rest::Settled;
            }
        })?;
        let stack = self.disk.stack();
        let block_count = self.size_bytes().div_ceil(BLOCK_BYTES);
        let frozen = match old.layer() {
            Some(layer) => Frozen::of_top(&self.files, old.number, layer),
            None => Frozen::empty(&self.files, self.dir(), old.number, block_count),
        };
        self.disk.replace(stack.frozen_as(frozen, Top::fresh(next)));
        self.ready.store(false, Ordering::Release);
        self.unsynced.store(false, Ordering::Release);
        Ok(())
    }
}

/// Gives back what zeroed blocks take of a layer that is frozen now, so that
/// no write can come. Lets be what the file system refuses.
fn punch_zeroed(layer: &Layer, durable: Pending) {
    for run in durable.runs {
        let mut at = run.blocks.start;
        while at < run.blocks.end {
            let (mark, end) = layer.live.run(at, run.blocks.end);
            if mark == Mark::Zero {
                let (offset, bytes) = (at * BLOCK_BYTES, (end - at) * BLOCK_BYTES);
                if let Err(error) = layer.data.file.punch_hole(offset, bytes) {
                    tracing::debug!(dir = %layer.dir.display(), %error, "hole not punched");
                }
            }
            at = end;
        }
    }
}
