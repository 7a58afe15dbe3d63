//! Ranges checked once, before anything is touched.

use std::ops::Range;

use crate::DiskError;

/// `Ok` when `offset..offset + bytes` lies inside a disk of `size_bytes`.
pub(crate) fn check(offset: u64, bytes: u64, size_bytes: u64) -> Result<(), DiskError> {
    match offset.checked_add(bytes) {
        Some(end) if end <= size_bytes => Ok(()),
        _ => Err(DiskError::OutOfRange {
            offset,
            bytes,
            size_bytes,
        }),
    }
}

/// The same range as indices of a slice that holds the whole disk.
pub(crate) fn in_memory(
    offset: u64,
    bytes: u64,
    size_bytes: u64,
) -> Result<Range<usize>, DiskError> {
    check(offset, bytes, size_bytes)?;
    let outside = || DiskError::OutOfRange {
        offset,
        bytes,
        size_bytes,
    };
    let start = usize::try_from(offset).map_err(|_| outside())?;
    let length = usize::try_from(bytes).map_err(|_| outside())?;
    Ok(start..start + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_range_at_the_end_is_inside() {
        assert!(check(512, 0, 512).is_ok());
    }

    #[test]
    fn a_range_that_wraps_around_is_outside() {
        assert!(matches!(
            check(u64::MAX, 2, 512),
            Err(DiskError::OutOfRange { .. })
        ));
    }
}
