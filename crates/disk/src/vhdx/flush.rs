//! The flush of a VHDX: which metadata it makes durable, in which order.
//!
//! 1. Data, and what the round before wrote in place.
//! 2. One log entry of all pages that the notes change. The flush is done.
//! 3. The same in place, durable at the next flush; until then the log speaks.
//! 4. The space of blocks that are durably gone is given back.

use std::collections::btree_map::Entry;
use std::io;

use uuid::Uuid;

use super::Vhdx;
use super::bitmap::{CHUNK_SECTORS, PAGE_SECTORS, set_in_page};
use super::header::Header;
use super::journal::{Log, NOTES_PER_PIECE, Note, Phase, Room};
use super::log::{self, PLACE_BYTES, UPDATES_MAX, Updates};
use super::source::{index, put};
use super::volatile::{Change, Owner, RECORDS_MAX, Zone};
use crate::DiskError;

/// Pages that one change may touch: the sector bits of 256 MiB, and one more
/// because they need not begin with a page.
const PAGES_PER_CHANGE: usize = 17;

impl Vhdx {
    /// Says in the headers that the file is being written, before it is.
    ///
    /// "FileWriteGuid" and "DataWriteGuid" change together: whoever writes
    /// metadata here does it because of data.
    pub(super) fn begin(&self) -> Result<(), DiskError> {
        if self.journal.is_in(Phase::Begun) {
            return Ok(());
        }
        let mut log = self.journal.log();
        if self.journal.is_in(Phase::Closed) {
            let zone = self.begin_log(&mut log)?;
            self.journal.notes().zone = Some(zone);
        } else if self.journal.is_in(Phase::Resumed) {
            // Who looked at the file since its writer was killed must see that
            // it goes on.
            self.renew(&mut log, |_| {})?;
        }
        self.journal.enter(Phase::Begun);
        Ok(())
    }

    /// Begins a log: an entry without updates, a zone without records, and
    /// then the headers that name them.
    fn begin_log(&self, log: &mut Log) -> Result<Zone, DiskError> {
        let owner = Owner {
            boot_id: self.boot_id,
            log: Uuid::new_v4(),
        };
        let log_at = log.headers.current.log_offset;
        let file = &self.source.file;
        let prepared = (|| {
            // The log speaks of lengths in whole MiB.
            let length = self.gaps().file_bytes();
            if file.inner().metadata()?.len() < length {
                file.set_len(length)?;
            }
            // A log GUID without an entry is a damaged file to some readers.
            let entry = log::emit(owner.log, 1, 0, length, &Updates::new());
            file.write_all_at(&entry, log_at)?;
            Zone::create(file, log_at, owner)
        })();
        let zone = prepared.map_err(|e| self.write_failed("writing the log of", e))?;
        self.synced()?;
        self.renew(log, |header| header.log = owner.log)?;
        log.sequence = 1;
        log.place = PLACE_BYTES;
        Ok(zone)
    }

    /// Says in the headers that somebody begins to write.
    fn renew(&self, log: &mut Log, change: impl FnOnce(&mut Header)) -> Result<(), DiskError> {
        let changed = log.headers.update(&self.source.file, |header| {
            header.file_write = Uuid::new_v4();
            header.data_write = Uuid::new_v4();
            change(header);
        });
        changed.map_err(|e| self.sync_failed("writing the headers of", e))
    }

    /// Makes everything durable and in place, and says in the headers that
    /// there is no log to replay: other programs open the file as it is.
    pub(crate) fn close(&self) -> Result<(), DiskError> {
        if self.journal.is_in(Phase::Closed) {
            return Ok(());
        }
        self.rounds.join(|| self.round())?;
        let mut log = self.journal.log();
        self.health.check()?;
        let mut notes = self.journal.notes();
        if !notes.pending.is_empty() || !log.unapplied.is_empty() {
            return Ok(()); // Somebody writes, or space is short: the log stays.
        }
        self.synced()?;
        let changed = log
            .headers
            .update(&self.source.file, |header| header.log = Uuid::nil());
        changed.map_err(|e| self.sync_failed("writing the headers of", e))?;
        notes.zone = None;
        self.journal.enter(Phase::Closed);
        Ok(())
    }

    /// Room for the notes of one change; flushes when there is none. No lock
    /// may be held.
    pub(super) fn room(&self) -> Result<Room<'_>, DiskError> {
        loop {
            {
                let mut notes = self.journal.notes();
                let promised = notes.reserved + NOTES_PER_PIECE;
                let left = notes.zone.as_ref().map_or(0, Zone::left);
                if left >= promised {
                    notes.reserved = promised;
                    return Ok(Room(&self.journal));
                }
            }
            self.rounds.join(|| self.round())?;
            let mut notes = self.journal.notes();
            // What was not flushed stays; if that is too much, another flush.
            let kept = notes.pending.len() + notes.reserved;
            if kept <= RECORDS_MAX / 2 {
                let notes = &mut *notes;
                if let Some(zone) = &mut notes.zone {
                    let mut changes = notes.pending.iter().map(|note| &note.change);
                    zone.restart(&self.source.file, &mut changes)
                        .map_err(|e| self.write_failed("writing the log of", e))?;
                }
            }
        }
    }

    /// Notes a change whose data is written: it survives this process from now
    /// on, and a loss of power from the next flush on.
    pub(super) fn note(&self, change: Change, frees: Option<(u64, u64)>) -> Result<(), DiskError> {
        let mut notes = self.journal.notes();
        if let Some(zone) = &mut notes.zone {
            zone.append(&self.source.file, &change)
                .map_err(|e| self.write_failed("writing the log of", e))?;
        }
        notes.pending.push(Note {
            change,
            frees: frees.into_iter().collect(),
        });
        Ok(())
    }

    /// One round of the group commit.
    pub(super) fn round(&self) -> Result<(), DiskError> {
        let mut log = self.journal.log();
        self.health.check()?;
        self.apply(&mut log)?;
        let mut taken = std::mem::take(&mut self.journal.notes().pending);
        // The data of a note was written before it was noted, and the length
        // of the file with it.
        let length = self.source.file.inner().metadata();
        let answer = length
            .map_err(|e| self.write_failed("reading", e))
            .and_then(|length| {
                self.synced()?;
                self.log_all(&mut log, &mut taken, length.len())
            });
        if !taken.is_empty() {
            let mut notes = self.journal.notes();
            taken.append(&mut notes.pending);
            notes.pending = taken;
        }
        answer
    }

    /// Makes notes durable, as many at a time as an entry holds; leaves those
    /// that were not.
    fn log_all(
        &self,
        log: &mut Log,
        taken: &mut Vec<Note>,
        file_bytes: u64,
    ) -> Result<(), DiskError> {
        while !taken.is_empty() {
            let mut updates = Updates::new();
            let mut count = 0;
            for note in taken.iter() {
                if updates.len() + PAGES_PER_CHANGE > UPDATES_MAX {
                    break;
                }
                self.change(&mut updates, note.change)
                    .map_err(|e| self.write_failed("reading", e))?;
                count += 1;
            }
            self.commit(log, updates, file_bytes)?;
            let done: Vec<Note> = taken.drain(..count).collect();
            let applied = self.apply(log);
            self.give_back(&done);
            if taken.is_empty() {
                // The flush is done; the next one asks again.
                return Ok(());
            }
            applied?;
            self.synced()?;
        }
        Ok(())
    }

    /// Makes `updates` durable with an entry of the log; they are to be applied.
    pub(super) fn commit(
        &self,
        log: &mut Log,
        updates: Updates,
        file_bytes: u64,
    ) -> Result<(), DiskError> {
        let header = &log.headers.current;
        let sequence = log.sequence + 1;
        let entry = log::emit(header.log, sequence, log.place, file_bytes, &updates);
        self.source
            .file
            .write_all_at(&entry, header.log_offset + log.place)
            .map_err(|e| self.write_failed("writing the log of", e))?;
        self.synced()?;
        log.sequence = sequence;
        log.place = PLACE_BYTES - log.place;
        log.unapplied = updates;
        Ok(())
    }

    /// Writes in place what the log holds.
    pub(super) fn apply(&self, log: &mut Log) -> Result<(), DiskError> {
        while let Some((offset, page)) = log.unapplied.first_key_value() {
            self.source
                .file
                .write_all_at(&page[..], *offset)
                .map_err(|e| self.write_failed("writing", e))?;
            log.unapplied.pop_first();
        }
        Ok(())
    }

    /// Makes a change in pages as they lie in the file, which are those of the
    /// last flush.
    fn change(&self, updates: &mut Updates, change: Change) -> io::Result<()> {
        match change {
            Change::Entry { entry, value } => {
                let at = self.bat.place_of(entry);
                let page = self.page(updates, at / 4096 * 4096)?;
                put(&mut page[..], index(at % 4096), &value.to_le_bytes());
            }
            Change::Bits {
                first,
                count,
                value,
            } => {
                let mut sector = first;
                while sector < first + count {
                    let within = sector % CHUNK_SECTORS;
                    let end = (first + count).min(sector - sector % PAGE_SECTORS + PAGE_SECTORS);
                    let at = self.bitmap_at(sector / CHUNK_SECTORS)?;
                    let page = self.page(updates, at + within / PAGE_SECTORS * 4096)?;
                    let bit = sector % PAGE_SECTORS;
                    set_in_page(page, bit..bit + (end - sector), value);
                    sector = end;
                }
            }
        }
        Ok(())
    }

    /// The page at `offset`, to be changed.
    pub(super) fn page<'a>(
        &self,
        updates: &'a mut Updates,
        offset: u64,
    ) -> io::Result<&'a mut [u8; 4096]> {
        match updates.entry(offset) {
            Entry::Occupied(found) => Ok(found.into_mut()),
            Entry::Vacant(place) => {
                let mut bytes = Box::new([0; 4096]);
                self.source.read_exact_at(&mut bytes[..], offset)?;
                Ok(place.insert(bytes))
            }
        }
    }

    /// Gives back the space of blocks that are durably not there any more.
    ///
    /// First the hole, then the room: the other way round a late hole would
    /// destroy what the next owner of the room has written.
    fn give_back(&self, done: &[Note]) {
        for (offset, bytes) in done.iter().flat_map(|note| note.frees.iter().copied()) {
            if let Err(error) = self.source.file.punch_hole(offset, bytes) {
                tracing::debug!(path = %self.source.path.display(), %error, "hole not punched");
            }
            self.gaps().give(offset, bytes);
        }
    }

    pub(super) fn synced(&self) -> Result<(), DiskError> {
        let synced = self.source.file.sync_data();
        synced.map_err(|e| self.sync_failed("flushing", e))
    }

    pub(super) fn write_failed(&self, what: &str, error: io::Error) -> DiskError {
        self.health.write_failed(self.source.context(what), error)
    }

    fn sync_failed(&self, what: &str, error: io::Error) -> DiskError {
        self.health.sync_failed(self.source.context(what), error)
    }
}
