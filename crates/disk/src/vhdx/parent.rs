//! The parent of a differencing VHDX: found by the locator of its child,
//! known by its "DataWriteGuid" (MS-VHDX 2.6.2.6).

use std::sync::Arc;

use super::{Parent, Vhdx};
use crate::files::Files;
use crate::health::trouble;
use crate::parents::{self, Chain};
use crate::{Access, Disk, OpenError, Opening};

/// Opens the parent of `child` read-only, if it has one; `chain` are the disks
/// down to `child`.
pub(super) fn open(
    child: &Vhdx,
    opening: &Opening,
    chain: &Chain,
) -> Result<Option<Parent>, OpenError> {
    let Some(locator) = &child.metadata.parent else {
        return Ok(None);
    };
    let source = &child.source;
    let refused =
        |reason: String| source.malformed("parent locator", child.metadata.locator_at, reason);
    let linkages = locator.linkages();
    if linkages.is_empty() {
        return Err(refused("no parent_linkage".to_owned()));
    }
    let files = Files::real().map_err(|e| trouble(source.context("opening"), e))?;
    let opening = Opening {
        format: None,
        access: Access::ReadOnly,
        parent_roots: opening.parent_roots.clone(),
    };
    let mut other = None;
    for path in parents::find(&source.path, &locator.paths(), &opening.parent_roots)? {
        let parent = match Vhdx::open_above(&files, &path, &opening, chain) {
            Ok(parent) => parent,
            Err(error) => {
                other.get_or_insert(error);
                continue;
            }
        };
        let found = parent.journal.log().headers.current.data_write;
        if !linkages.contains(&found) {
            other.get_or_insert(OpenError::OtherBase {
                path: source.path.clone(),
                expected: format!("data write GUID {}", linkages[0].braced()),
                offered: format!("{} with {}", path.display(), found.braced()),
            });
            continue;
        }
        if parent.metadata.logical_bytes != child.metadata.logical_bytes {
            return Err(refused(format!(
                "{} has sectors of {} bytes, this file of {}",
                path.display(),
                parent.metadata.logical_bytes,
                child.metadata.logical_bytes
            )));
        }
        let mut paths = vec![path];
        paths.extend(parent.parent.iter().flat_map(|above| above.paths.clone()));
        return Ok(Some(Parent {
            size_bytes: parent.geometry().size_bytes,
            disk: Arc::new(parent),
            paths,
        }));
    }
    Err(other.unwrap_or_else(|| refused("it names no file".to_owned())))
}
