//! The durable form of a layer's marks: a checkpoint and a log after it.
//!
//! `map.SEQ` holds all marks as of some moment, with a CRC32C for each page of
//! 4 KiB; `log.SEQ` the changes since, one record for each flush. The newest
//! map is the valid one: it appears under its name only when it is whole and
//! durable, and so is all data it speaks of.
//!
//! Nothing is ever appended to a log that another process began: whoever opens
//! a layer writes a checkpoint before the first record. So what lies behind a
//! torn tail can never be taken for a later record.

use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::field;
use super::live::{Live, Mark, PAGE_BLOCKS};
use super::map::{self, HEAD_BYTES, Map, PAGE_BYTES, corrupt, emit_head};
use crate::files::{File, Files};

/// Past this length of the log a flush writes a checkpoint (in tests soon, so
/// that they see many).
const LOG_BYTES: u64 = if cfg!(test) { 8 << 10 } else { 1 << 20 };

/// A log longer than this takes no more records: a checkpoint must succeed.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// Records start at multiples of this, so that a torn write of one never
/// touches a sector of the one before.
const RECORD_ALIGN: usize = 512;

const LOG_MAGIC: &[u8; 8] = b"DLOVLOG1";
const RECORD_MAGIC: &[u8; 8] = b"DLOVREC1";

/// Bytes of a record before its runs: magic, sequence, index, count.
const RECORD_HEAD_BYTES: usize = 32;

/// Bytes of a run: start, and length with the mark in its two highest bits.
const RUN_BYTES: usize = 16;

/// A run of blocks and the mark they got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) blocks: Range<u64>,
    pub(super) mark: Mark,
}

/// The log that records are appended to.
#[derive(Debug)]
pub(super) struct Journal {
    dir: PathBuf,
    sequence: u64,
    /// None until the first checkpoint of this opening.
    log: Option<Log>,
}

#[derive(Debug)]
struct Log {
    file: File,
    end: u64,
    records: u64,
}

impl Journal {
    /// The journal of a layer that keeps none, or of none yet: nothing can be
    /// noted in it.
    pub(super) fn none() -> Journal {
        Journal {
            dir: PathBuf::new(),
            sequence: 0,
            log: None,
        }
    }

    /// Begins the journal of a layer in which nothing is marked, durable but
    /// for its names.
    pub(super) fn begin(files: &Files, dir: &Path, block_count: u64) -> io::Result<Journal> {
        let sequence = 1;
        let log = begin_log(files, dir, sequence, block_count)?;
        let map = files.create_file(&dir.join(format!("map.{sequence}")))?;
        map::write_empty(&map, sequence, block_count)?;
        log.file.sync_data()?;
        map.sync_data()?;
        Ok(Journal {
            dir: dir.to_owned(),
            sequence,
            log: Some(log),
        })
    }

    /// The journal of a layer that is opened, whose marks are in `live` (after
    /// a death of the process) or were found by [`replay`].
    pub(super) fn open(files: &Files, dir: &Path) -> io::Result<Journal> {
        let Some(sequence) = newest(files, dir)? else {
            return Err(corrupt(dir, "has no checkpoint"));
        };
        // The name of the newest may not be durable yet; the older ones go
        // only once it is.
        files.sync_dir(dir)?;
        remove_outlived(files, dir, sequence)?;
        Ok(Journal {
            dir: dir.to_owned(),
            sequence,
            log: None,
        })
    }

    /// Whether the next flush must write a checkpoint, or had better.
    pub(super) fn wants_checkpoint(&self) -> bool {
        self.log.as_ref().is_none_or(|log| log.end > LOG_BYTES)
    }

    /// Whether a record can be appended at all.
    pub(super) fn takes_records(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.end < LOG_BYTES_MAX)
    }

    /// Whether anything was appended since the last checkpoint.
    pub(super) fn has_records(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.records > 0)
    }

    /// Appends one record; durable after [`sync`](Self::sync).
    ///
    /// After an error the next record takes the place of this one.
    pub(super) fn append(&mut self, runs: &[Run]) -> io::Result<()> {
        let Some(log) = &mut self.log else {
            return Err(io::Error::other("no log before the first checkpoint"));
        };
        let record = emit_record(self.sequence, log.records, runs);
        log.file.write_all_at(&record, log.end)?;
        log.end += record.len() as u64;
        log.records += 1;
        Ok(())
    }

    /// Makes the appended records durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.log.as_ref().map_or(Ok(()), |log| log.file.sync_data())
    }

    /// Writes the next checkpoint and begins its log.
    ///
    /// `sync_data` is called once every mark is taken, and must make all data
    /// durable whose write had ended before. On [`StepError::Abandoned`]
    /// the journal is as it was.
    pub(super) fn checkpoint(
        &mut self,
        files: &Files,
        live: &Live,
        sync_data: impl FnOnce() -> io::Result<()>,
    ) -> Result<(), StepError> {
        if self.dir.as_os_str().is_empty() {
            let reason = "marks have no journal to be noted in";
            return Err(StepError::Failed(io::Error::other(reason)));
        }
        let Some(sequence) = self.sequence.checked_add(1) else {
            let error = corrupt(&self.dir, "has no more numbers for checkpoints");
            return Err(StepError::Abandoned(error));
        };
        let log_path = self.dir.join(format!("log.{sequence}"));
        let map_path = self.dir.join(format!("map.{sequence}"));
        let new_path = self.dir.join(format!("map.{sequence}.new"));
        let made = (|| {
            for leftover in [&log_path, &new_path] {
                remove_if_there(files, leftover)?;
            }
            let log = begin_log(files, &self.dir, sequence, live.block_count())?;
            let map = files.create_file(&new_path)?;
            map::write(&map, sequence, live.block_count(), |page| {
                Ok(live.page(page))
            })?;
            Ok((log, map))
        })();
        let abandon = |error| {
            for path in [&log_path, &new_path] {
                let _ = remove_if_there(files, path);
            }
            Err(StepError::Abandoned(error))
        };
        let (log, map) = match made {
            Ok(made) => made,
            Err(error) => return abandon(error),
        };
        sync_data().map_err(StepError::Failed)?;
        if let Err(error) = log.file.sync_data().and_then(|()| map.sync_data()) {
            return abandon(error);
        }
        // From here on it is open which of the two checkpoints is found.
        files
            .rename(&new_path, &map_path)
            .and_then(|()| files.sync_dir(&self.dir))
            .map_err(StepError::Failed)?;
        let old = self.sequence;
        self.sequence = sequence;
        self.log = Some(log);
        // Garbage that is found and removed later if this is interrupted.
        for kind in ["map", "log"] {
            let path = self.dir.join(format!("{kind}.{old}"));
            if let Err(error) = remove_if_there(files, &path) {
                tracing::debug!(path = %path.display(), %error, "old checkpoint stays");
            }
        }
        Ok(())
    }
}

/// A log without records.
fn begin_log(files: &Files, dir: &Path, sequence: u64, block_count: u64) -> io::Result<Log> {
    let file = files.create_file(&dir.join(format!("log.{sequence}")))?;
    file.reserve(LOG_BYTES)?;
    file.write_all_at(&emit_head(LOG_MAGIC, sequence, block_count, 0, 0), 0)?;
    Ok(Log {
        file,
        end: HEAD_BYTES as u64,
        records: 0,
    })
}

/// Writes the last checkpoint of a layer that is not written any more, of what
/// `page` answers for each page, and removes what it outlives: older ones, logs
/// and live marks. All data it speaks of is durable.
pub(super) fn seal(
    files: &Files,
    dir: &Path,
    block_count: u64,
    page: impl FnMut(u64) -> io::Result<Option<Vec<u8>>>,
) -> io::Result<()> {
    let newest = newest(files, dir)?.unwrap_or(0);
    let sequence = newest
        .checked_add(1)
        .ok_or_else(|| corrupt(dir, "has no more numbers for checkpoints"))?;
    let new = dir.join(format!("map.{sequence}.new"));
    remove_if_there(files, &new)?;
    let made = files.create_file(&new).and_then(|map| {
        map::write(&map, sequence, block_count, page)?;
        map.sync_data()
    });
    if let Err(error) = made {
        let _ = remove_if_there(files, &new);
        return Err(error);
    }
    files.rename(&new, &dir.join(format!("map.{sequence}")))?;
    files.sync_dir(dir)?;
    sweep_sealed(files, dir, sequence)
}

/// Removes what a sealed layer does not need: all but its data, its newest
/// checkpoint and its note. The live marks first: once they are gone nobody
/// takes them for the newest.
fn sweep_sealed(files: &Files, dir: &Path, sequence: u64) -> io::Result<()> {
    for name in ["live", "live.new"] {
        remove_if_there(files, &dir.join(name))?;
    }
    remove_outlived(files, dir, sequence)
}

/// How a step from one durable state to the next did not come to be.
#[derive(Debug)]
pub(super) enum StepError {
    /// Nothing has changed; the old state goes on.
    Abandoned(io::Error),
    /// It is open which of the two will be found: the disk has failed.
    Failed(io::Error),
}

impl From<StepError> for io::Error {
    fn from(error: StepError) -> io::Error {
        let (StepError::Abandoned(error) | StepError::Failed(error)) = error;
        error
    }
}

/// Marks `live` (all [`Mark::Below`]) with what checkpoint and log in `dir`
/// say.
pub(super) fn replay(files: &Files, dir: &Path, live: &Live) -> io::Result<()> {
    let Some(sequence) = newest(files, dir)? else {
        return Err(corrupt(dir, "has no checkpoint"));
    };
    let map = Map::open(dir, sequence, live.block_count())?;
    for page in 0..live.page_count() {
        if let Some(bytes) = map.page(page)? {
            let damaged = |what: String| corrupt(&dir.join(format!("map.{sequence}")), &what);
            mark_page(live, page, &bytes).map_err(damaged)?;
        }
    }
    let log_path = dir.join(format!("log.{sequence}"));
    match std::fs::File::open(&log_path) {
        // Its name is durable before its first record is written.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        log => {
            let mut bytes = Vec::new();
            // One record may begin right below the limit.
            log?.take(2 * LOG_BYTES_MAX).read_to_end(&mut bytes)?;
            replay_log(&log_path, &bytes, sequence, live)?;
        }
    }
    Ok(())
}

/// Sequence of the newest checkpoint in `dir`.
pub(super) fn newest(files: &Files, dir: &Path) -> io::Result<Option<u64>> {
    let names = files.names(dir)?;
    Ok(names
        .iter()
        .filter_map(|name| name.strip_prefix("map.")?.parse().ok())
        .max())
}

/// Removes other checkpoints and logs than `sequence`.
fn remove_outlived(files: &Files, dir: &Path, sequence: u64) -> io::Result<()> {
    for name in files.names(dir)? {
        let number = name
            .strip_prefix("map.")
            .or_else(|| name.strip_prefix("log."));
        let outlived = match number.map(str::parse::<u64>) {
            Some(Ok(number)) => number != sequence,
            Some(Err(_)) => true, // map.SEQ.new
            None => false,
        };
        if outlived {
            files.remove_file(&dir.join(name))?;
        }
    }
    Ok(())
}

fn mark_page(live: &Live, page: u64, bytes: &[u8; PAGE_BYTES]) -> Result<(), String> {
    let start = page * PAGE_BLOCKS;
    let blocks = PAGE_BLOCKS.min(live.block_count().saturating_sub(start));
    let mut run: Option<Run> = None;
    for (block, at) in (start..start + blocks).zip(0_usize..) {
        let bits = (bytes[at / 4] >> (2 * (at % 4))) & 3;
        let mark = Mark::from_bits(u64::from(bits))
            .ok_or_else(|| format!("marks block {block} with 3"))?;
        match &mut run {
            Some(run) if run.mark == mark => run.blocks.end = block + 1,
            _ => {
                if let Some(done) = run.take() {
                    set(live, done);
                }
                run = Some(Run {
                    blocks: block..block + 1,
                    mark,
                });
            }
        }
    }
    if let Some(done) = run {
        set(live, done);
    }
    Ok(())
}

fn set(live: &Live, run: Run) {
    if run.mark != Mark::Below {
        live.set(run.blocks, run.mark);
    }
}

fn replay_log(path: &Path, bytes: &[u8], sequence: u64, live: &Live) -> io::Result<()> {
    let head = emit_head(LOG_MAGIC, sequence, live.block_count(), 0, 0);
    if !bytes.starts_with(&head) {
        // Synced before the checkpoint got its name: damaged, not torn.
        return Err(corrupt(path, "has a damaged head"));
    }
    let mut at = HEAD_BYTES;
    let mut index = 0;
    while let Some((runs, length)) = parse_record(&bytes[at..], sequence, index) {
        for run in runs {
            if run.blocks.end > live.block_count() {
                return Err(corrupt(path, "marks blocks behind the end"));
            }
            live.set(run.blocks, run.mark);
        }
        at += length;
        index += 1;
    }
    // A record is appended only once the one before it is durable: a later
    // one that is whole proves that this one was too.
    let later = bytes[at..]
        .chunks(RECORD_ALIGN)
        .zip((at..).step_by(RECORD_ALIGN))
        .any(|(_, at)| {
            bytes[at..].starts_with(RECORD_MAGIC)
                && bytes.len() - at >= RECORD_HEAD_BYTES
                && u64::from_le_bytes(field(bytes, at + 16)) > index
                && parse_record(
                    &bytes[at..],
                    sequence,
                    u64::from_le_bytes(field(bytes, at + 16)),
                )
                .is_some()
        });
    if later {
        return Err(corrupt(path, &format!("has a damaged record {index}")));
    }
    Ok(())
}

fn emit_record(sequence: u64, index: u64, runs: &[Run]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(RECORD_HEAD_BYTES + RUN_BYTES * runs.len() + 4);
    bytes.extend(RECORD_MAGIC);
    bytes.extend(sequence.to_le_bytes());
    bytes.extend(index.to_le_bytes());
    bytes.extend((runs.len() as u64).to_le_bytes());
    for run in runs {
        let length = run.blocks.end - run.blocks.start;
        bytes.extend(run.blocks.start.to_le_bytes());
        bytes.extend((length | (run.mark as u64) << 62).to_le_bytes());
    }
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(RECORD_ALIGN), 0);
    bytes
}

/// The runs of the record at the front of `bytes` and its padded length;
/// `None` when there is none, or not this one, or not all of it.
fn parse_record(bytes: &[u8], sequence: u64, index: u64) -> Option<(Vec<Run>, usize)> {
    if bytes.len() < RECORD_HEAD_BYTES || !bytes.starts_with(RECORD_MAGIC) {
        return None;
    }
    if field(bytes, 8) != sequence.to_le_bytes() || field(bytes, 16) != index.to_le_bytes() {
        return None;
    }
    let count = usize::try_from(u64::from_le_bytes(field(bytes, 24))).ok()?;
    let body = RECORD_HEAD_BYTES.checked_add(count.checked_mul(RUN_BYTES)?)?;
    let crc = bytes.get(body..body.checked_add(4)?)?;
    if crc != crc32c::crc32c(&bytes[..body]).to_le_bytes() {
        return None;
    }
    let mut runs = Vec::with_capacity(count);
    for run in bytes[RECORD_HEAD_BYTES..body].chunks_exact(RUN_BYTES) {
        let start = u64::from_le_bytes(field(run, 0));
        let packed = u64::from_le_bytes(field(run, 8));
        runs.push(Run {
            blocks: start..start.checked_add(packed & !(3 << 62))?,
            mark: Mark::from_bits(packed >> 62)?,
        });
    }
    let length = (body + 4).next_multiple_of(RECORD_ALIGN).min(bytes.len());
    Some((runs, length))
}

fn remove_if_there(files: &Files, path: &Path) -> io::Result<()> {
    match files.remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        answer => answer,
    }
}
