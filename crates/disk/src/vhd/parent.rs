//! The parent of a differencing disk: where its child says it lies, and whether
//! it is the one (VHD 1.0, "Parent Locator Entry").

use std::ops::Range;
use std::path::Path;
use std::time::SystemTime;

use super::Vhd;
use super::footer::{EPOCH_SECONDS, SECTOR_BYTES};
use super::header::{Header, LOCATOR_BYTES, LOCATORS, LOCATORS_AT, Locator, name};
use super::open::open_in;
use crate::fault::Fault;
use crate::files::{File, Files};
use crate::health::trouble;
use crate::parents::{self, Chain};
use crate::{Access, OpenError, Opening};

/// A relative path, in UTF-16.
const RELATIVE: [u8; 4] = *b"W2ru";
/// A whole path, in UTF-16.
const ABSOLUTE: [u8; 4] = *b"W2ku";
/// The longest path there is on Windows.
const MAX_PATH_BYTES: u32 = 64 << 10;
/// What a file system may round a time to.
const TIME_GRAIN_SECONDS: u32 = 2;

impl Locator {
    /// Whether it is one of those that are followed.
    pub(super) fn is_path(&self) -> bool {
        [RELATIVE, ABSOLUTE].contains(&self.code)
    }

    /// Where its path lies, if that is in the first `room_bytes` of the file
    /// and can be a path.
    pub(super) fn range_in(&self, room_bytes: u64) -> Option<Range<u64>> {
        let end = self.offset.checked_add(u64::from(self.length_bytes))?;
        let is_path = end <= room_bytes && self.length_bytes <= MAX_PATH_BYTES;
        is_path.then_some(self.offset..end)
    }
}

/// A differencing disk that looks for its parent.
pub(super) struct Child<'a> {
    pub(super) files: &'a Files,
    pub(super) path: &'a Path,
    pub(super) file: &'a File,
    /// What there is before the footer.
    pub(super) room_bytes: u64,
    pub(super) header_at: u64,
    pub(super) header: &'a Header,
}

impl Child<'_> {
    /// The parent, opened read-only; what is odd about it goes to `notes`.
    pub(super) fn open_parent(
        &self,
        opening: &Opening,
        chain: &Chain,
        notes: &mut Vec<String>,
    ) -> Result<Vhd, OpenError> {
        let opening = Opening {
            format: None,
            access: Access::ReadOnly,
            parent_roots: opening.parent_roots.clone(),
        };
        let mut other = None;
        for path in parents::find(self.path, &self.names()?, &opening.parent_roots)? {
            let opened = chain
                .with(&path)
                .and_then(|chain| open_in(self.files, &path, &opening, &chain));
            match opened {
                Ok(parent) if parent.footer.uuid == self.header.parent_uuid => {
                    self.compare_times(&parent, notes);
                    return Ok(parent);
                }
                Ok(parent) => {
                    let reason = format!(
                        "{} was made on the disk {}, and {} is the disk {}: \
                         its parent was changed or replaced, put it back as it was",
                        self.path.display(),
                        uuid::Uuid::from_bytes(self.header.parent_uuid),
                        path.display(),
                        uuid::Uuid::from_bytes(parent.footer.uuid),
                    );
                    let fault = Fault::new("Parent Unique ID", 40, reason);
                    other.get_or_insert(fault.of(self.path, self.header_at));
                }
                Err(error) => {
                    other.get_or_insert(error);
                }
            }
        }
        Err(other.unwrap_or_else(|| OpenError::Missing {
            path: self.path.to_owned(),
        }))
    }

    /// What the parent may be called, the best first: relative paths, whole
    /// paths, and the name that promises no place.
    fn names(&self) -> Result<Vec<String>, OpenError> {
        let mut names = Vec::new();
        for code in [RELATIVE, ABSOLUTE] {
            for (at, locator) in self.header.locators.iter().enumerate() {
                if locator.code == code {
                    names.push(self.read_name(at, locator)?);
                }
            }
        }
        names.push(self.header.parent_name.clone());
        names.retain(|name| !name.is_empty());
        Ok(names)
    }

    fn read_name(&self, at: usize, locator: &Locator) -> Result<String, OpenError> {
        if locator.range_in(self.room_bytes).is_none() {
            let reason = format!(
                "a path of {} bytes at {}, in a file with {} before its footer",
                locator.length_bytes, locator.offset, self.room_bytes
            );
            let at = LOCATORS_AT + at * LOCATOR_BYTES;
            return Err(Fault::new("Parent Locator", at, reason).of(self.path, self.header_at));
        }
        let mut bytes = vec![0; usize::try_from(locator.length_bytes).unwrap_or(0)];
        self.file
            .read_exact_at(&mut bytes, locator.offset)
            .map_err(|e| trouble(format!("reading {}", self.path.display()), e))?;
        Ok(name(&bytes, u16::from_le_bytes))
    }

    /// A copy of a file is younger than it, so a younger parent is only noted.
    fn compare_times(&self, parent: &Vhd, notes: &mut Vec<String>) {
        let stored = self.header.parent_timestamp;
        if stored != 0 && changed(parent).abs_diff(stored) > TIME_GRAIN_SECONDS {
            notes.push(format!(
                "the file of its parent {} has another time than when this disk was made on it: \
                 if anything was written to it since, this disk is void",
                parent.path.display()
            ));
        }
    }
}

/// When the file of a disk was changed last, in seconds since 2000.
fn changed(disk: &Vhd) -> u32 {
    let metadata = disk.file.inner().metadata();
    let time = metadata.and_then(|metadata| metadata.modified()).ok();
    time.map_or(0, seconds_since_2000)
}

/// A time as a VHD writes it.
pub(super) fn seconds_since_2000(time: SystemTime) -> u32 {
    let unix = time.duration_since(SystemTime::UNIX_EPOCH);
    let seconds = unix.map_or(0, |unix| unix.as_secs());
    u32::try_from(seconds.saturating_sub(EPOCH_SECONDS)).unwrap_or(u32::MAX)
}

/// What a child that is made says of its parent; nothing where there is none.
#[derive(Default)]
pub(super) struct Naming {
    pub(super) uuid: [u8; 16],
    pub(super) timestamp: u32,
    pub(super) name: String,
    pub(super) locators: [Locator; LOCATORS],
    /// The paths, to be written from the place on they were laid out for.
    pub(super) data: Vec<u8>,
}

impl Naming {
    /// Lays the paths out from byte `offset` of the file on.
    pub(super) fn of(path: &Path, parent: &Vhd, offset: u64) -> std::io::Result<Naming> {
        let mut naming = Naming {
            uuid: parent.footer.uuid,
            timestamp: changed(parent),
            name: parents::name(&parent.path)?,
            locators: [Locator::default(); LOCATORS],
            data: Vec::new(),
        };
        let paths = [
            (RELATIVE, parents::relative(path, &parent.path)?),
            (ABSOLUTE, parents::absolute(&parent.path)?),
        ];
        for (locator, (code, path)) in naming.locators.iter_mut().zip(paths) {
            let bytes: Vec<u8> = path.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let length_bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let sectors = bytes
                .len()
                .div_ceil(usize::try_from(SECTOR_BYTES).unwrap_or(512));
            *locator = Locator {
                code,
                space: u32::try_from(sectors).unwrap_or(u32::MAX),
                length_bytes,
                offset: offset + naming.data.len() as u64,
            };
            naming.data.extend_from_slice(&bytes);
            let padded = naming.data.len().next_multiple_of(512);
            naming.data.resize(padded, 0);
        }
        Ok(naming)
    }
}
