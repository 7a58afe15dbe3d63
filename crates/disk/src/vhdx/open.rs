//! A VHDX file opened: checked whole before anything is written, its log
//! replayed, what an earlier process had answered brought back.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, RwLock};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use uuid::Uuid;

use super::bat::{Bat, Layout, State};
use super::bitmap::{Bitmaps, CHUNK_SECTORS};
use super::header::Headers;
use super::journal::{Journal, Log, Note, Phase};
use super::log::{PLACE_BYTES, Replay};
use super::metadata::Metadata;
use super::region::Regions;
use super::source::{Patch, Source};
use super::space::Space;
use super::volatile::{Change, Owner, Zone};
use super::windows::Windows;
use super::{FILE_BYTES_MAX, STRIPES, Vhdx, log, parent};
use crate::doubt::BootId;
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
        let (file, boot_id) = open_locked(files, path, opening.access)?;
        Vhdx::read(boot_id, file, path, opening, &chain)
    }

    fn read(
        boot_id: BootId,
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
        let owner = Owner {
            boot_id,
            log: header.log,
        };
        // Its records came after an entry of the log; without one, whatever
        // stands there was not answered by us.
        let zone = match replay.head {
            None => None,
            Some(_) => Zone::open(&source, header.log_offset, owner),
        };
        // Everything is looked at as it will be, before any of it is written.
        source.patch(replay.patches.clone(), replay.file_bytes);
        let regions = Regions::open(&source)?;
        let metadata = Metadata::open(&source, regions.metadata)?;
        let layout = Layout::new(&metadata);
        let bat = Bat::open(&source, regions.bat, &layout)?;
        let vhdx = Vhdx {
            boot_id,
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
                unapplied: log::Updates::new(),
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
        vhdx.finish(&header, &regions, replay, zone, opening, chain)
    }

    fn finish(
        mut self,
        header: &super::header::Header,
        regions: &Regions,
        replay: Replay,
        zone: Option<(Zone, Vec<Change>)>,
        opening: &Opening,
        chain: &Chain,
    ) -> Result<Vhdx, OpenError> {
        // What the entries say that were changed and not flushed.
        let mut durable = BTreeMap::new();
        for change in zone.iter().flat_map(|(_, answered)| answered) {
            if let Change::Entry { entry, .. } = *change {
                durable.entry(entry).or_insert(self.bat.load(entry));
            }
            self.redo(*change)?;
        }
        let mut space = Space::new(self.source.length());
        self.take_structures(&mut space, header, regions)?;
        self.bat.check(&self.source, &self.layout, &mut space)?;
        let held = self.held(&durable, &mut space);
        self.gaps = Mutex::new(space.gaps());
        self.parent = parent::open(&self, opening, chain)?;
        if self.access == Access::ReadWrite && !header.log.is_nil() {
            self.recover(replay, zone, held)?;
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

    /// Takes the rooms that are free by what was answered, and are not by what
    /// is durable: nobody gets them before a flush.
    fn held(&self, durable: &BTreeMap<u64, u64>, space: &mut Space) -> Vec<(u64, u64)> {
        let room = |entry: u64, value: u64| match State::parse(value) {
            Some(State::Full(at) | State::Partial(at)) => Some((at, self.layout.room_of(entry))),
            _ => None,
        };
        let now: Vec<_> = durable
            .keys()
            .filter_map(|entry| room(*entry, self.bat.load(*entry)))
            .collect();
        let mut held: Vec<_> = durable
            .iter()
            .filter_map(|(entry, value)| room(*entry, *value))
            .filter(|room| !now.contains(room))
            .collect();
        held.retain(|(at, bytes)| {
            let end = at.checked_add(*bytes);
            end.is_some_and(|end| end <= self.source.length()) && space.take(*at, *bytes)
        });
        held
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

    /// Replays the log in the file.
    ///
    /// What a process of this boot of the kernel left goes on where it was
    /// killed: nothing is made durable that nobody has asked to be. Any other
    /// log is ended.
    fn recover(
        &mut self,
        replay: Replay,
        zone: Option<(Zone, Vec<Change>)>,
        held: Vec<(u64, u64)>,
    ) -> Result<(), OpenError> {
        let failed = |error| self.source.trouble("replaying the log of", error);
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
            Ok(())
        })();
        redone.map_err(failed)?;
        tracing::info!(
            path = %self.source.path.display(),
            updates = replay.patches.len(),
            answered = zone.as_ref().map_or(0, |(_, answered)| answered.len()),
            "log replayed"
        );
        let mut log = self.journal.log();
        if let (Some((zone, answered)), Some((sequence, place))) = (zone, replay.head) {
            log.sequence = sequence;
            // Never over the entry that counts.
            log.place = if place == 0 { PLACE_BYTES } else { 0 };
            let mut notes = self.journal.notes();
            notes.zone = Some(zone);
            let note = |change| Note {
                change,
                frees: Vec::new(),
            };
            notes.pending = answered.into_iter().map(note).collect();
            // Free once all of them are durable.
            if let Some(last) = notes.pending.last_mut() {
                last.frees = held;
            }
            self.journal.enter(Phase::Resumed);
        } else {
            file.sync_data().map_err(failed)?;
            log.headers
                .update(file, |header| {
                    header.file_write = Uuid::new_v4();
                    header.log = Uuid::nil();
                })
                .map_err(failed)?;
        }
        drop(log);
        self.source.patch(Vec::new(), 0);
        Ok(())
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

/// Opens the file, with the lock of its one writer or of its readers, and
/// answers the boot its records must be of.
fn open_locked(files: &Files, path: &Path, access: Access) -> Result<(File, BootId), OpenError> {
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
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(OpenError::InUse { path }),
        Err(error) => return Err(failed("locking", error.into()).into()),
    }
    let boot_id = match access {
        Access::ReadWrite => files.settled(&path),
        Access::ReadOnly => files.boot_of(&path),
    };
    Ok((file, boot_id.map_err(|e| failed("reading", e))?))
}
