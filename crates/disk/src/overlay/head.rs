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

const MAGIC: &[u8; 8] = b"DLOVHEAD";

/// Version of the whole overlay format.
const VERSION: u32 = 1;

/// Restore points and thinning keep below this (storage.md).
const LAYERS_MAX: usize = 256;

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

/// The head's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Counts the writes of heads; even ones lie in `head.a`.
    pub(super) sequence: u64,
    pub(super) mode: OverlayMode,
    pub(super) rest: Rest,
    pub(super) generation: u64,
    pub(super) base: BaseId,
    /// Numbers of the layers, lowest first; never empty.
    pub(super) layers: Vec<u32>,
}

impl Head {
    /// Reads the newest valid head in `dir`.
    pub(super) fn read(dir: &Path) -> Result<Head, OpenError> {
        let mut newest: Option<Head> = None;
        let mut found = false;
        for name in ["head.a", "head.b"] {
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

    /// Makes durable what [`read`](Self::read) found: a process that died may
    /// have written the newest head and not synced it. Until then neither the
    /// other head may be overwritten nor anything removed that it names.
    pub(super) fn sync(files: &Files, dir: &Path) -> io::Result<()> {
        for name in ["head.a", "head.b"] {
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
        let name = ["head.a", "head.b"][usize::from(self.sequence % 2 == 1)];
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
        bytes.extend([0; 2]); // reserved
        bytes.extend(self.sequence.to_le_bytes());
        bytes.extend(self.generation.to_le_bytes());
        bytes.extend(self.base.size_bytes.to_le_bytes());
        bytes.extend(self.base.uuid);
        bytes.extend(self.base.sha256);
        bytes.extend((self.layers.len() as u64).to_le_bytes());
        for layer in &self.layers {
            bytes.extend(layer.to_le_bytes());
        }
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
        if version != VERSION {
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
        if count == 0 || count > LAYERS_MAX {
            return Err(Unread::Newer(format!("{count} layers")));
        }
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
            layers: (0..count)
                .map(|i| u32::from_le_bytes(field(bytes, 96 + 4 * i)))
                .collect(),
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
            prop::collection::vec(any::<u32>(), 1..=LAYERS_MAX),
        )
            .prop_map(
                |((sequence, keep, rest, generation), (uuid, sha256, size_bytes), layers)| Head {
                    sequence,
                    mode: [OverlayMode::Reset, OverlayMode::Keep][usize::from(keep)],
                    rest: [Rest::Settled, Rest::Written, Rest::Lost][usize::from(rest % 3)],
                    generation,
                    base: BaseId {
                        uuid,
                        sha256,
                        size_bytes,
                    },
                    layers,
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
        fn foreign_bytes_are_no_head(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
            prop_assert!(Head::parse(&bytes).is_err());
        }
    }
}
