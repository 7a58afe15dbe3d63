//! Zeros that cost no memory: a mapping of the kernel's one zero page.

use std::io;
use std::sync::OnceLock;

use memmap2::{Mmap, MmapOptions};

/// Length of [`zeros`]; longer ranges are made of several.
const ZEROS_BYTES: usize = 1 << 20;

/// Small, and in the program itself, for the machine that cannot map.
static FEW_ZEROS: [u8; 4096] = [0; 4096];

/// Up to `bytes` zeros, at least one block of 4 KiB if that many are wanted;
/// the caller loops.
pub(crate) fn zeros(bytes: u64) -> &'static [u8] {
    static ZEROS: OnceLock<Option<Mmap>> = OnceLock::new();
    let all: &[u8] = match ZEROS.get_or_init(|| map().ok()) {
        Some(mapping) => mapping,
        None => &FEW_ZEROS,
    };
    let length = usize::try_from(bytes).unwrap_or(ZEROS_BYTES);
    &all[..length.min(all.len())]
}

fn map() -> io::Result<Mmap> {
    MmapOptions::new()
        .len(ZEROS_BYTES)
        .map_anon()?
        .make_read_only()
}
