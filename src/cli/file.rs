//! What a disk file says of itself, read without the server.

use std::path::{Path, PathBuf};

use disk::probe::Format;
use disk::{Access, Description, Opening};
use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::show::{Answer, bytes, details, time};

/// Describes the file or block device at `path`.
pub(super) fn info(path: &Path, parent_roots: Vec<PathBuf>) -> anyhow::Result<Answer> {
    let opening = Opening {
        parent_roots,
        ..Opening::new(Access::ReadOnly)
    };
    let found = disk::describe(path, &opening)?;
    let shape = json!({
        "path": path,
        "format": found.name,
        "size_bytes": found.geometry.size_bytes,
        "logical_block_bytes": found.geometry.logical_block_bytes,
        "physical_block_bytes": found.geometry.physical_block_bytes,
        "stored_bytes": found.stored_bytes,
        "unit_bytes": found.unit_bytes,
        "allocated_bytes": found.allocated_bytes,
        "uuid": uuid(&found),
        "creator": found.creator,
        "created": created(&found),
        "parents": found.parents,
        "notes": found.notes,
    });
    Answer::new(details(rows(path, &found)), &shape)
}

fn rows(path: &Path, found: &Description) -> Vec<(&'static str, String)> {
    let geometry = found.geometry;
    let mut rows = vec![
        ("file", path.display().to_string()),
        ("format", found.name.clone()),
        (
            "size",
            format!(
                "{} ({} bytes)",
                bytes(geometry.size_bytes),
                geometry.size_bytes
            ),
        ),
        (
            "blocks",
            format!(
                "{} bytes ({} physical)",
                geometry.logical_block_bytes, geometry.physical_block_bytes
            ),
        ),
    ];
    if let Some(stored) = found.stored_bytes {
        rows.push(("stored", bytes(stored)));
    }
    if let Some(unit) = found.unit_bytes {
        let allocated = found.allocated_bytes.map(bytes);
        rows.push((
            "allocated",
            match allocated {
                Some(allocated) => format!("{allocated}, in units of {}", bytes(unit)),
                None => format!("in units of {}", bytes(unit)),
            },
        ));
    }
    if let Some(uuid) = uuid(found) {
        rows.push(("uuid", uuid.to_string()));
    }
    if let Some(creator) = &found.creator {
        rows.push(("made by", creator.clone()));
    }
    if let Some(created) = created(found) {
        rows.push(("made", time(created)));
    }
    for parent in &found.parents {
        rows.push(("stands on", parent.display().to_string()));
    }
    for note in &found.notes {
        rows.push(("note", note.clone()));
    }
    rows
}

/// VHDX stores a GUID as Windows does, VHD as it is written.
fn uuid(found: &Description) -> Option<Uuid> {
    let bytes = found.uuid?;
    Some(match found.format {
        Format::Vhdx => Uuid::from_bytes_le(bytes),
        _ => Uuid::from_bytes(bytes),
    })
}

fn created(found: &Description) -> Option<Timestamp> {
    let seconds = i64::try_from(found.created_unix_seconds?).ok()?;
    Timestamp::from_second(seconds).ok()
}
