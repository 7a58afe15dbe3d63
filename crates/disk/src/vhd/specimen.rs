//! VHDs made by hand, for the fuzz door: small, and with checksums that are
//! right whatever else is wrong.

use super::footer::{FOOTER_BYTES, Footer, Kind, checksum, u64_at};
use super::header::HEADER_BYTES;

/// The identity of the parent that a differencing input may name.
const PARENT_UUID: [u8; 16] = [7; 16];
const PARENT_BYTES: usize = 8 << 10;

/// A fixed disk of 8 KiB, to be a parent.
pub(crate) fn specimen_of_a_parent() -> Vec<u8> {
    let mut bytes = vec![0xba; PARENT_BYTES];
    bytes[PARENT_BYTES / 2..].fill(0);
    let footer = Footer::new(Kind::Fixed, PARENT_BYTES as u64, 0, PARENT_UUID);
    bytes.extend(footer.emit());
    bytes
}

/// Makes the checksums right: of the footer at the front of `head` and of the
/// header it names, and of the footer that is `tail`.
pub(crate) fn seal(head: &mut [u8], tail: &mut [u8]) {
    let header_at = match head.get(..FOOTER_BYTES) {
        Some(footer) => usize::try_from(u64_at(footer, 16)).unwrap_or(usize::MAX),
        None => usize::MAX,
    };
    let footer = head.get_mut(..FOOTER_BYTES);
    for footer in footer.into_iter().chain(tail.get_mut(..FOOTER_BYTES)) {
        let sum = checksum(footer, 64).to_be_bytes();
        footer[64..68].copy_from_slice(&sum);
    }
    let header_end = header_at.saturating_add(HEADER_BYTES);
    if let Some(header) = head.get_mut(header_at..header_end) {
        let sum = checksum(header, 36).to_be_bytes();
        header[36..40].copy_from_slice(&sum);
    }
}
