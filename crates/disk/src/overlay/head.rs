//! The head of an overlay: what it lies on, whose writes it holds, its layers.
//!
//! Two files of 4 KiB, written in turn; the newest valid one wins, so a torn
//! write leaves the older. All integers little-endian.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::{OverlayMode, field};
use crate::files::Files;
use crate::health::trouble;
use crate::{BaseId, DiskError, OpenError};

/// Length of one head.
const HEAD_BYTES: usize = 4096;

/// Written in turn.
const HEAD_FILES: [&str; 2] = ["head.a", "head.b"];

const MAGIC: &[u8; 8] = b"DLOVHEAD";

/// Version of the whole overlay format.
const VERSION: u32 = 2;

/// The version before: one layer, always there, and no quota.
const VERSION_OF_ONE_LAYER: u32 = 1;

/// What a head has room for; restore points keep well below.
pub(super) const LAYERS_MAX: usize = 512;

/// Where the quota stands.
const QUOTA_AT: usize = 4080;

/// The highest number of a layer; the bits above are its flags.
const NUMBER_MAX: u32 = (1 << 30) - 1;
const IS_NO_POINT: u32 = 1 << 31;
const IS_EMPTY: u32 = 1 << 30;

/// Whether anything answered could be lost with the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Everything answered is durable. Written only while no write can be
    /// answered, taken back durably before the next one is.
    Settled,
    /// Writes may have been answered that no flush has covered.
    Written,
    /// The host was lost in `Written`, or with a `reset` overlay. Stays until
    /// the boot generation changes.
    Lost,
}

/// A layer as the head names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) number: u32,
    /// A restore point is at its end; never of the top layer.
    pub(super) is_point: bool,
    /// Nothing was ever written to it: it has no files but its note.
    pub(super) is_empty: bool,
}

impl Entry {
    /// The top layer, or one whose point is gone.
    pub(super) fn new(number: u32) -> Entry {
        Entry {
            number,
            is_point: false,
            is_empty: false,
        }
    }
}

/// The head's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Counts the writes of heads; even ones lie in `head.a`.
    pub(super) sequence: u64,
    pub(super) mode: OverlayMode,
    pub(super) rest: Rest,
    pub(super) generation: u64,
    pub(super) base: BaseId,
    /// The layers, lowest first; never empty. The last one is the top, the
    /// only one that is written.
    pub(super) layers: Vec<Entry>,
    /// Nothing was written to the top yet: its files are not there, or are
    /// what is left of an interrupted attempt.
    pub(super) is_fresh: bool,
    /// The most its layers may hold.
    pub(super) quota_bytes: Option<u64>,
}

impl Head {
    /// Reads the newest valid head in `dir`.
    pub(super) fn read(dir: &Path) -> Result<Head, OpenError> {
        let mut newest: Option<Head> = None;
        let mut found = false;
        for name in HEAD_FILES {
            let bytes = match read_at_most(&dir.join(name), HEAD_BYTES + 1) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(
                        trouble(format!("reading {}", dir.join(name).display()), error).into(),
                    );
                }
            };
            found = true;
            match Head::parse(&bytes) {
                Ok(head) => {
                    if newest
                        .as_ref()
                        .is_none_or(|other| other.sequence < head.sequence)
                    {
                        newest = Some(head);
                    }
                }
                Err(Unread::Torn) => {}
                Err(Unread::Newer(what)) => {
                    return Err(OpenError::Unsupported {
                        path: dir.to_owned(),
                        what,
                    });
                }
            }
        }
        newest.ok_or_else(|| {
            if found {
                let reason = format!("no valid head in {}", dir.display());
                OpenError::Disk(DiskError::Corrupt(reason))
            } else {
                OpenError::Missing {
                    path: dir.to_owned(),
                }
            }
        })
    }

    /// Reads the newest head that the device has: one whose sync failed was
    /// never there, and the next one would take the place of the one before.
    /// The caller holds the lock.
    pub(super) fn settled(files: &Files, dir: &Path) -> Result<Head, OpenError> {
        for name in HEAD_FILES {
            let path = dir.join(name);
            let context = || format!("reading {}", path.display());
            files.settled(&path).map_err(|e| trouble(context(), e))?;
        }
        Head::read(dir)
    }

    /// Makes durable what [`read`](Self::read) found: a process that died may
    /// have written the newest head and not synced it. Until then neither the
    /// other head may be overwritten nor anything removed that it names.
    pub(super) fn sync(files: &Files, dir: &Path) -> io::Result<()> {
        for name in HEAD_FILES {
            match files.open_file(&dir.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                file => file?.sync_data()?,
            }
        }
        files.sync_dir(dir)
    }

    /// Writes this head durably, as the successor of the one it was made from.
    ///
    /// An error leaves open which of the two will be read.
    pub(super) fn write(&mut self, files: &Files, dir: &Path) -> io::Result<()> {
        self.sequence = self
            .sequence
            .checked_add(1)
            .ok_or_else(|| io::Error::other("no more heads"))?;
        let name = HEAD_FILES[usize::from(self.sequence % 2 == 1)];
        let path = dir.join(name);
        let bytes = self.emit();
        match files.open_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = files.create_file(&path)?;
                file.write_all_at(&bytes, 0)?;
                file.sync_data()?;
                files.sync_dir(dir)
            }
            file => {
                let file = file?;
                file.write_all_at(&bytes, 0)?;
                file.sync_data()
            }
        }
    }

    /// Writes the first two heads, durable but for their names.
    pub(super) fn write_first(&mut self, files: &Files, dir: &Path) -> io::Result<()> {
        let mut written = Vec::new();
        for (sequence, name) in [(0, "head.a"), (1, "head.b")] {
            self.sequence = sequence;
            let file = files.create_file(&dir.join(name))?;
            file.write_all_at(&self.emit(), 0)?;
            written.push(file);
        }
        written.iter().try_for_each(crate::files::File::sync_data)
    }

    /// The number of the next layer.
    pub(super) fn next_number(&self) -> io::Result<u32> {
        let newest = self.layers.iter().map(|l| l.number).max().unwrap_or(0);
        match newest < NUMBER_MAX {
            true => Ok(newest + 1),
            false => Err(io::Error::other("no more numbers for layers")),
        }
    }

    /// The layers below the top.
    pub(super) fn frozen(&self) -> &[Entry] {
        self.layers.split_last().map_or(&[], |(_, frozen)| frozen)
    }

    /// Number of the layer that is written.
    pub(super) fn top(&self) -> u32 {
        self.layers.last().map_or(0, |top| top.number)
    }

    fn emit(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.push(match self.mode {
            OverlayMode::Reset => 0,
            OverlayMode::Keep => 1,
        });
        bytes.push(match self.rest {
            Rest::Settled => 0,
            Rest::Written => 1,
            Rest::Lost => 2,
        });
        bytes.push(u8::from(self.is_fresh));
        bytes.push(0); // reserved
        bytes.extend(self.sequence.to_le_bytes());
        bytes.extend(self.generation.to_le_bytes());
        bytes.extend(self.base.size_bytes.to_le_bytes());
        bytes.extend(self.base.uuid);
        bytes.extend(self.base.sha256);
        bytes.extend((self.layers.len() as u64).to_le_bytes());
        for layer in &self.layers {
            let no_point = if layer.is_point { 0 } else { IS_NO_POINT };
            let empty = if layer.is_empty { IS_EMPTY } else { 0 };
            bytes.extend((layer.number | no_point | empty).to_le_bytes());
        }
        bytes.resize(QUOTA_AT, 0);
        bytes.extend(self.quota_bytes.unwrap_or(0).to_le_bytes());
        bytes.resize(HEAD_BYTES - 4, 0);
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Head, Unread> {
        if bytes.len() != HEAD_BYTES || !bytes.starts_with(MAGIC) {
            return Err(Unread::Torn);
        }
        let (body, crc) = bytes.split_at(HEAD_BYTES - 4);
        if crc != crc32c::crc32c(body).to_le_bytes() {
            return Err(Unread::Torn);
        }
        let version = u32::from_le_bytes(field(bytes, 8));
        if ![VERSION_OF_ONE_LAYER, VERSION].contains(&version) {
            return Err(Unread::Newer(format!("format version {version}")));
        }
        let mode = match bytes[12] {
            0 => OverlayMode::Reset,
            1 => OverlayMode::Keep,
            other => return Err(Unread::Newer(format!("mode {other}"))),
        };
        let rest = match bytes[13] {
            0 => Rest::Settled,
            1 => Rest::Written,
            2 => Rest::Lost,
            other => return Err(Unread::Newer(format!("rest {other}"))),
        };
        let count = u64::from_le_bytes(field(bytes, 88));
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let most = match version {
            VERSION => LAYERS_MAX,
            _ => 1,
        };
        if count == 0 || count > most {
            return Err(Unread::Newer(format!("{count} layers")));
        }
        let layers = (0..count).map(|i| {
            let word = u32::from_le_bytes(field(bytes, 96 + 4 * i));
            Entry {
                number: word & NUMBER_MAX,
                is_point: version == VERSION && word & IS_NO_POINT == 0,
                is_empty: version == VERSION && word & IS_EMPTY != 0,
            }
        });
        let quota = u64::from_le_bytes(field(bytes, QUOTA_AT));
        Ok(Head {
            sequence: u64::from_le_bytes(field(bytes, 16)),
            mode,
            rest,
            generation: u64::from_le_bytes(field(bytes, 24)),
            base: BaseId {
                size_bytes: u64::from_le_bytes(field(bytes, 32)),
                uuid: field(bytes, 40),
                sha256: field(bytes, 56),
            },
            layers: layers.collect(),
            is_fresh: version == VERSION && bytes[14] == 1,
            quota_bytes: (version == VERSION && quota != 0).then_some(quota),
        })
    }
}

fn read_at_most(path: &Path, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(limit as u64)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Why a head was not read.
#[derive(Debug, PartialEq, Eq)]
enum Unread {
    /// Not valid: written halfway, or damaged.
    Torn,
    /// Valid, but says what this version does not know.
    Newer(String),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_head() -> impl Strategy<Value = Head> {
        (
            any::<(u64, bool, u8, u64)>(),
            any::<([u8; 16], [u8; 32], u64)>(),
            prop::collection::vec((0..=NUMBER_MAX, any::<(bool, bool)>()), 1..=LAYERS_MAX),
            any::<(bool, u64)>(),
        )
            .prop_map(
                |(
                    (sequence, keep, rest, generation),
                    (uuid, sha256, size_bytes),
                    layers,
                    (is_fresh, quota),
                )| Head {
                    sequence,
                    mode: [OverlayMode::Reset, OverlayMode::Keep][usize::from(keep)],
                    rest: [Rest::Settled, Rest::Written, Rest::Lost][usize::from(rest % 3)],
                    generation,
                    base: BaseId {
                        uuid,
                        sha256,
                        size_bytes,
                    },
                    layers: layers
                        .into_iter()
                        .map(|(number, (is_point, is_empty))| Entry {
                            number,
                            is_point,
                            is_empty,
                        })
                        .collect(),
                    is_fresh,
                    quota_bytes: (quota != 0).then_some(quota),
                },
            )
    }

    proptest! {
        #[test]
        fn a_head_reads_back_as_written(head in any_head()) {
            prop_assert_eq!(Head::parse(&head.emit()), Ok(head));
        }

        #[test]
        fn a_damaged_head_is_never_taken_for_a_valid_one(
            head in any_head(), at in 0..HEAD_BYTES, flip in 1..=255_u8,
        ) {
            let mut bytes = head.emit();
            bytes[at] ^= flip;
            prop_assert_eq!(Head::parse(&bytes), Err(Unread::Torn));
        }

        #[test]
        fn a_head_of_version_1_names_one_layer_that_is_there(head in any_head()) {
            let mut head = Head { layers: vec![Entry::new(head.top())], ..head };
            head.is_fresh = false;
            head.quota_bytes = None;
            let mut bytes = head.emit();
            bytes[8] = 1;
            bytes[96..100].copy_from_slice(&head.top().to_le_bytes());
            let crc = crc32c::crc32c(&bytes[..HEAD_BYTES - 4]);
            bytes[HEAD_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
            prop_assert_eq!(Head::parse(&bytes), Ok(head));
        }

        #[test]
        fn foreign_bytes_are_no_head(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
            prop_assert!(Head::parse(&bytes).is_err());
        }
    }
}
