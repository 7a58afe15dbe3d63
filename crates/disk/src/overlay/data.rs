//! The data file of a layer, open to be read: by `pread`, or from a mapping.
//!
//! There may be many layers below many machines, so what is held of frozen
//! ones is bounded for the whole process: open files, mappings, and the
//! addresses these take. Past a bound a read opens the file for itself, and
//! nothing is sent from a mapping.

use std::fmt;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Advice, MmapOptions, MmapRaw};

use crate::files::File;

/// Data files of frozen layers that are held open, in the whole process.
const FILES_MAX: u64 = 8192;

/// Mappings of data files, in the whole process (`vm.max_map_count` is 65,530
/// on most hosts).
const MAPPINGS_MAX: u64 = 16_384;

/// Addresses all mappings take: half of what a process has.
const MAPPED_BYTES_MAX: u64 = 64 << 40;

static FILES: Budget = Budget::new(FILES_MAX);
static MAPPINGS: Budget = Budget::new(MAPPINGS_MAX);
static MAPPED_BYTES: Budget = Budget::new(MAPPED_BYTES_MAX);

/// A data file, open.
pub(super) struct Data {
    /// Block k at offset k * 4096; sparse. Written only while it is the top's.
    pub(super) file: File,
    bytes: u64,
    /// None where nothing can be mapped.
    mapping: OnceLock<Option<Mapping>>,
    _held: Option<Share>,
}

impl Data {
    /// The data of the layer that is written.
    pub(super) fn of_top(file: File, bytes: u64) -> Data {
        Data {
            file,
            bytes,
            mapping: OnceLock::new(),
            _held: None,
        }
    }

    /// The data of a frozen layer, and whether it may be held open; if not it
    /// is not mapped either.
    pub(super) fn of_frozen(file: File, bytes: u64) -> (Data, bool) {
        let held = FILES.take(1);
        let is_held = held.is_some();
        let mapping = OnceLock::new();
        if !is_held {
            let _ = mapping.set(None);
        }
        let data = Data {
            file,
            bytes,
            mapping,
            _held: held,
        };
        (data, is_held)
    }

    /// Refuses a file of another length.
    pub(super) fn check(file: &File, dir: &Path, bytes: u64) -> io::Result<()> {
        let length = file.inner().metadata()?.len();
        if length == bytes {
            return Ok(());
        }
        let path = dir.join("data");
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{} has {length} bytes, not {bytes}", path.display()),
        ))
    }

    /// Where the data from an offset on lies, if it is mapped at all.
    pub(super) fn address(&self, offset: u64) -> Option<*const u8> {
        let offset = usize::try_from(offset).ok()?;
        let mapping = self.mapping()?;
        Some(mapping.raw.as_ptr().wrapping_add(offset))
    }

    /// Starts read-ahead of a range.
    pub(super) fn will_need(&self, offset: u64, bytes: u64) {
        if let (Some(mapping), Ok(offset), Ok(bytes)) = (
            self.mapping(),
            usize::try_from(offset),
            usize::try_from(bytes),
        ) {
            // Only advice: a refusal changes nothing.
            let _ = mapping.raw.advise_range(Advice::WillNeed, offset, bytes);
        }
    }

    fn mapping(&self) -> Option<&Mapping> {
        let map = || Mapping::new(&self.file, self.bytes);
        self.mapping.get_or_init(map).as_ref()
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Data({:?})", self.file)
    }
}

struct Mapping {
    raw: MmapRaw,
    _shares: (Share, Share),
}

impl Mapping {
    fn new(file: &File, bytes: u64) -> Option<Mapping> {
        let length = usize::try_from(bytes).ok().filter(|&length| length > 0)?;
        let shares = (MAPPINGS.take(1)?, MAPPED_BYTES.take(bytes)?);
        let raw = MmapOptions::new()
            .len(length)
            .map_raw_read_only(file.inner())
            .inspect_err(|error| tracing::debug!(%error, "overlay data not mapped"))
            .ok()?;
        Some(Mapping {
            raw,
            _shares: shares,
        })
    }
}

/// The data of a layer, for one use.
pub(super) enum Held<'l> {
    /// Open as long as the layer is.
    Open(&'l Data),
    /// Open for this use alone.
    Once(Box<Data>),
}

impl Deref for Held<'_> {
    type Target = Data;

    fn deref(&self) -> &Data {
        match self {
            Held::Open(data) => data,
            Held::Once(data) => data,
        }
    }
}

/// Takes all the files that may be held open still.
#[cfg(test)]
pub(super) fn take_all_files() -> Share {
    loop {
        let left = FILES.most - FILES.used.load(Ordering::Relaxed);
        if let Some(share) = FILES.take(left) {
            return share;
        }
    }
}

/// What the process may hold of something.
struct Budget {
    used: AtomicU64,
    most: u64,
}

impl Budget {
    const fn new(most: u64) -> Budget {
        Budget {
            used: AtomicU64::new(0),
            most,
        }
    }

    fn take(&'static self, amount: u64) -> Option<Share> {
        let fits = |used: u64| used.checked_add(amount).filter(|&used| used <= self.most);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .ok()?;
        Some(Share {
            budget: self,
            amount,
        })
    }
}

/// A part of a budget, until it is dropped.
pub(super) struct Share {
    budget: &'static Budget,
    amount: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.amount, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_never_overdrawn_and_comes_back() {
        static TEN: Budget = Budget::new(10);
        let first = TEN.take(7).unwrap();
        assert!(TEN.take(4).is_none());
        assert!(TEN.take(u64::MAX).is_none());
        let second = TEN.take(3).unwrap();
        drop(first);
        assert!(TEN.take(8).is_none());
        assert!(TEN.take(7).is_some());
        drop(second);
        assert_eq!(TEN.used.load(Ordering::Relaxed), 0);
    }
}
