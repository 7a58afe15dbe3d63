//! A VHDX file opened: checked whole before anything is written, its log
//! replayed, what an earlier process had answered brought back.

use std::path::Path;
use std::sync::{Mutex, RwLock};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use uuid::Uuid;

use super::bat::{Bat, Layout, State};
use super::bitmap::{Bitmaps, CHUNK_SECTORS};
use super::header::Headers;
use super::journal::{Journal, Log, Note};
use super::log::{PLACE_BYTES, Replay};
use super::metadata::Metadata;
use super::region::Regions;
use super::source::{Patch, Source};
use super::space::Space;
use super::volatile::{Change, Owner, Zone};
use super::windows::Windows;
use super::{FILE_BYTES_MAX, STRIPES, Vhdx, log, parent};
use crate::files::{File, Files};
use crate::health::{Health, trouble};
use crate::parents::Chain;
use crate::{Access, OpenError, Opening};

impl Vhdx {
    pub(crate) fn open_on(
        files: &Files,
        path: &Path,
        opening: &Opening,
    ) -> Result<Vhdx, OpenError> {
        Vhdx::open_above(files, path, opening, &Chain::default())
    }

    /// Opens a file to which the disks of `chain` led.
    pub(super) fn open_above(
        files: &Files,
        path: &Path,
        opening: &Opening,
        chain: &Chain,
    ) -> Result<Vhdx, OpenError> {
        let chain = chain.with(path)?;
        let file = open_locked(files, path, opening.access)?;
        Vhdx::read(files, file, path, opening, &chain)
    }

    fn read(
        files: &Files,
        file: File,
        path: &Path,
        opening: &Opening,
        chain: &Chain,
    ) -> Result<Vhdx, OpenError> {
        let mut source = Source::new(file, path)?;
        if source.length() > FILE_BYTES_MAX {
            let reason = format!("{} bytes, no VHDX is that long", source.length());
            return Err(source.malformed("file length", 0, reason));
        }
        let headers = Headers::open(&source)?;
        let header = headers.current.clone();
        let replay = log::read(&source, &header)?;
        let answered = if header.log.is_nil() {
            Vec::new()
        } else {
            let owner = Owner {
                boot_id: files.boot_id(),
                log: header.log,
            };
            Zone::read(&source, header.log_offset, owner)
        };
        // Everything is looked at as it will be, before any of it is written.
        source.patch(replay.patches.clone(), replay.file_bytes);
        let regions = Regions::open(&source)?;
        let metadata = Metadata::open(&source, regions.metadata)?;
        let layout = Layout::new(&metadata);
        let bat = Bat::open(&source, regions.bat, &layout)?;
        let vhdx = Vhdx {
            boot_id: files.boot_id(),
            access: opening.access,
            layout,
            bitmaps: Bitmaps::new(&layout),
            parent: None,
            stripes: (0..STRIPES).map(|_| RwLock::new(())).collect(),
            bitmap_placing: Mutex::default(),
            gaps: Mutex::new(Space::new(0).gaps()),
            journal: Journal::new(Log {
                headers,
                sequence: 0,
                place: 0,
                unapplied: std::collections::BTreeMap::new(),
            }),
            rounds: crate::overlay::rounds::Rounds::default(),
            health: Health::default(),
            windows: Windows::new((source.length() + layout.size_bytes).min(FILE_BYTES_MAX)),
            metadata,
            bat,
            source,
            #[cfg(test)]
            forsaken: std::sync::atomic::AtomicBool::new(false),
        };
        vhdx.finish(&header, &regions, replay, answered, opening, chain)
    }

    fn finish(
        mut self,
        header: &super::header::Header,
        regions: &Regions,
        replay: Replay,
        answered: Vec<Change>,
        opening: &Opening,
        chain: &Chain,
    ) -> Result<Vhdx, OpenError> {
        for change in &answered {
            self.redo(*change)?;
        }
        let mut space = Space::new(self.source.length());
        self.take_structures(&mut space, header, regions)?;
        self.bat.check(&self.source, &self.layout, &mut space)?;
        self.gaps = Mutex::new(space.gaps());
        self.parent = parent::open(&self, opening, chain)?;
        if self.access == Access::ReadWrite && !header.log.is_nil() {
            self.recover(replay, answered)?;
        }
        Ok(self)
    }

    /// Takes the space of log and regions, which must not lie in each other.
    fn take_structures(
        &self,
        space: &mut Space,
        header: &super::header::Header,
        regions: &Regions,
    ) -> Result<(), OpenError> {
        let known = [regions.bat, regions.metadata];
        let all = known.iter().chain(&regions.foreign);
        let all = all.map(|region| (region.offset, u64::from(region.bytes)));
        for (offset, bytes) in all.chain([(header.log_offset, u64::from(header.log_bytes))]) {
            if !space.take(offset, bytes) {
                let reason = "log and regions lie in each other";
                return Err(self.source.malformed("region offset", offset, reason));
            }
        }
        Ok(())
    }

    /// Makes a change in memory that an earlier process had answered.
    fn redo(&self, change: Change) -> Result<(), OpenError> {
        let refused = || {
            let place = self.bat.region.offset;
            let reason = format!("{change:?} was answered, and cannot be");
            self.source.malformed("volatile journal", place, reason)
        };
        match change {
            Change::Entry { entry, value } => {
                if entry >= self.layout.entries() || State::parse(value).is_none() {
                    return Err(refused());
                }
                self.bat.store(entry, value);
            }
            Change::Bits {
                first,
                count,
                value,
            } => {
                let sectors = self.layout.size_bytes / self.layout.sector_bytes;
                let end = first.checked_add(count).filter(|end| *end <= sectors);
                let end = end.ok_or_else(refused)?;
                if count == 0 || first / CHUNK_SECTORS != (end - 1) / CHUNK_SECTORS {
                    return Err(refused());
                }
                self.mark(first..end, value).map_err(|_| refused())?;
            }
        }
        Ok(())
    }

    /// Replays the log in the file, makes what was answered durable, and marks
    /// the file as one without a log.
    fn recover(&mut self, replay: Replay, answered: Vec<Change>) -> Result<(), OpenError> {
        let failed = |source: &Source, error| source.trouble("replaying the log of", error);
        let file = &self.source.file;
        let redone = (|| {
            if file.inner().metadata()?.len() < self.source.length() {
                file.set_len(self.source.length())?;
            }
            for patch in &replay.patches {
                match patch {
                    Patch::Data(offset, bytes) => file.write_all_at(&bytes[..], *offset)?,
                    Patch::Zeros(offset, bytes) => zero(file, *offset, *bytes)?,
                }
            }
            file.sync_data()
        })();
        redone.map_err(|e| failed(&self.source, e))?;
        if !replay.patches.is_empty() {
            tracing::info!(
                path = %self.source.path.display(),
                updates = replay.patches.len(),
                "log replayed"
            );
        }
        self.source.patch(Vec::new(), 0);
        if !answered.is_empty() {
            let (sequence, place) = replay.head.unwrap_or((0, PLACE_BYTES));
            let mut log = self.journal.log();
            log.sequence = sequence;
            // Never over the entry that counts.
            log.place = if place == 0 { PLACE_BYTES } else { 0 };
            drop(log);
            let notes = answered.into_iter().map(|change| Note {
                change,
                frees: None,
            });
            self.journal.notes().pending = notes.collect();
            self.round()?;
            self.source
                .file
                .sync_data()
                .map_err(|e| failed(&self.source, e))?;
        }
        let mut log = self.journal.log();
        if !log.unapplied.is_empty() {
            let full = std::io::Error::from(Errno::NOSPC);
            return Err(failed(&self.source, full));
        }
        log.headers
            .update(&self.source.file, |header| {
                header.file_write = Uuid::new_v4();
                header.log = Uuid::nil();
            })
            .map_err(|e| failed(&self.source, e))
    }
}

fn zero(file: &File, offset: u64, bytes: u64) -> std::io::Result<()> {
    let length = file.inner().metadata()?.len();
    let end = (offset + bytes).min(length);
    let mut at = offset.min(end);
    if at == end || file.punch_hole(at, end - at)? {
        return Ok(());
    }
    while at < end {
        let piece = crate::zeros::zeros(end - at);
        file.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// Opens the file, with the lock of its one writer or of its readers.
fn open_locked(files: &Files, path: &Path, access: Access) -> Result<File, OpenError> {
    let (file, lock) = match access {
        Access::ReadOnly => (
            files.open_to_read(path),
            FlockOperation::NonBlockingLockShared,
        ),
        Access::ReadWrite => (
            files.open_file(path),
            FlockOperation::NonBlockingLockExclusive,
        ),
    };
    let path = path.to_owned();
    let failed = |what: &str, error| trouble(format!("{what} {}", path.display()), error);
    let file = match file {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(OpenError::Missing { path });
        }
        file => file.map_err(|e| failed("opening", e))?,
    };
    match flock(file.inner(), lock) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(OpenError::InUse { path }),
        Err(error) => Err(failed("locking", error.into()).into()),
    }
}
