//! Restore points: what is said of one, and the note that keeps it.
//!
//! The note lies in the directory of the layer that the point ends, and
//! becomes a point by the head that says so.

use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;

use uuid::Uuid;

use super::field;
use super::map::corrupt;
use crate::files::Files;

/// The most a comment may take, in bytes of UTF-8.
pub const COMMENT_BYTES_MAX: usize = 1024;

/// Restore points an overlay can have.
pub const POINTS_MAX: usize = 256;

/// Name of the note in its layer's directory.
pub(super) const NOTE_FILE: &str = "point";

const MAGIC: &[u8; 8] = b"DLOVPNT1";

/// Bytes of a note before its comment.
const NOTE_HEAD_BYTES: usize = 40;

/// Which restore point: a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PointId(pub [u8; 16]);

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_bytes(self.0).fmt(f)
    }
}

impl FromStr for PointId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<PointId, uuid::Error> {
        Ok(PointId(Uuid::parse_str(text)?.into_bytes()))
    }
}

/// What is noted of a restore point when it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Its name; nobody else's.
    pub id: PointId,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// Made by a schedule, so that it may be thinned; never one made by hand.
    pub automatic: bool,
    /// What its maker says of it, at most [`COMMENT_BYTES_MAX`].
    pub comment: String,
}

/// A moment of an overlay one can go back to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// What was noted when it was made.
    pub note: Note,
    /// Space of what was written between the point before and this one, shared
    /// with every overlay that stands on it.
    pub stored_bytes: u64,
}

impl Note {
    /// Writes it into a layer's directory, durably; one that is there, of an
    /// attempt that came to nothing, gives way.
    pub(super) fn write(&self, files: &Files, dir: &Path) -> io::Result<()> {
        let (new, path) = (dir.join("point.new"), dir.join(NOTE_FILE));
        match files.remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = files.create_file(&new)?;
        file.write_all_at(&self.emit(), 0)?;
        file.sync_data()?;
        files.rename(&new, &path)?;
        files.sync_dir(dir)
    }

    /// Reads the note in a layer's directory.
    pub(super) fn read(dir: &Path) -> io::Result<Note> {
        let path = dir.join(NOTE_FILE);
        let mut bytes = Vec::new();
        let limit = NOTE_HEAD_BYTES + COMMENT_BYTES_MAX + 5;
        std::fs::File::open(&path)?
            .take(limit as u64)
            .read_to_end(&mut bytes)?;
        Note::parse(&bytes).ok_or_else(|| corrupt(&path, "is damaged"))
    }

    /// The same; `None`, and a word in the log, when it is damaged.
    pub(super) fn read_whole(dir: &Path) -> io::Result<Option<Note>> {
        match Note::read(dir) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!(%error, "a restore point cannot be named: its layer is kept");
                Ok(None)
            }
            note => note.map(Some),
        }
    }

    fn emit(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(NOTE_HEAD_BYTES + self.comment.len() + 4);
        bytes.extend(MAGIC);
        bytes.extend(self.id.0);
        bytes.extend(self.created.to_le_bytes());
        bytes.extend(u32::from(self.automatic).to_le_bytes());
        let length = u32::try_from(self.comment.len()).unwrap_or(u32::MAX);
        bytes.extend(length.to_le_bytes());
        bytes.extend(self.comment.as_bytes());
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Note> {
        let (body, crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
        if !body.starts_with(MAGIC) || crc != crc32c::crc32c(body).to_le_bytes() {
            return None;
        }
        let length = usize::try_from(u32::from_le_bytes(field(body, 36))).ok()?;
        let comment = body.get(NOTE_HEAD_BYTES..)?;
        if comment.len() != length || length > COMMENT_BYTES_MAX {
            return None;
        }
        Some(Note {
            id: PointId(field(body, 8)),
            created: u64::from_le_bytes(field(body, 24)),
            automatic: match u32::from_le_bytes(field(body, 32)) {
                0 => false,
                1 => true,
                _ => return None,
            },
            comment: String::from_utf8(comment.to_vec()).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_note_reads_back_as_written(
            (id, created, automatic) in any::<([u8; 16], u64, bool)>(), comment in ".{0,200}",
        ) {
            let note = Note { id: PointId(id), created, automatic, comment };
            prop_assert_eq!(Note::parse(&note.emit()), Some(note));
        }

        #[test]
        fn damage_in_a_note_is_found(at in 0..60_usize, flip in 1..=255_u8) {
            let id = PointId([7; 16]);
            let note = Note { id, created: 9, automatic: false, comment: "before the update".into() };
            let mut bytes = note.emit();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            prop_assert_eq!(Note::parse(&bytes), None);
            prop_assert_eq!(Note::parse(&bytes[..at]), None);
        }
    }
}
