//! An operator's words about a version or a disk.

use super::{Error, Result};

/// Longest comment.
const COMMENT_MAX_BYTES: usize = 1000;

/// Refuses a comment that is too long to be kept.
pub(super) fn check(comment: &str) -> Result<()> {
    if comment.len() > COMMENT_MAX_BYTES {
        return Err(Error::Invalid(format!(
            "the comment is too long: {COMMENT_MAX_BYTES} bytes at most"
        )));
    }
    Ok(())
}
