//! Mappings of a file that grows, made when they are first asked for.
//!
//! A window may reach behind the end of the file: only the kernel touches the
//! bytes, and what is behind the end is an error to it, not a crash.

use std::ops::Range;
use std::sync::OnceLock;

use memmap2::{MmapOptions, MmapRaw};

use super::source::index;
use crate::Segment;
use crate::files::File;

/// Length of a window: few mappings, and none of address space that a machine
/// might not have.
const WINDOW_BYTES: u64 = 64 << 30;

/// The windows of a file.
#[derive(Debug)]
pub(super) struct Windows {
    windows: Box<[OnceLock<Option<MmapRaw>>]>,
}

impl Windows {
    /// For a file that grows to at most `file_bytes`.
    pub(super) fn new(file_bytes: u64) -> Windows {
        let count = file_bytes.div_ceil(WINDOW_BYTES);
        Windows {
            windows: (0..count).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Appends where a range of the file is mapped; `false` if it is not.
    pub(super) fn segments<'a>(
        &'a self,
        file: &File,
        range: Range<u64>,
        segments: &mut Vec<Segment<'a>>,
    ) -> bool {
        let mut at = range.start;
        while at < range.end {
            let Some(window) = self.windows.get(index(at / WINDOW_BYTES)) else {
                return false;
            };
            let start = at / WINDOW_BYTES * WINDOW_BYTES;
            let mapping = window.get_or_init(|| {
                let length = index(WINDOW_BYTES);
                MmapOptions::new()
                    .len(length)
                    .offset(start)
                    .map_raw_read_only(file.inner())
                    .inspect_err(|error| tracing::debug!(%error, "not mapped"))
                    .ok()
            });
            let Some(mapping) = mapping else { return false };
            let end = range.end.min(start + WINDOW_BYTES);
            let first = mapping.as_ptr().wrapping_add(index(at - start));
            segments.push(Segment::new(first, index(end - at)));
            at = end;
        }
        true
    }
}
