//! What an operation of an overlay costs, in microseconds of wall time.
//!
//! `cargo run --release -p disk --example overlay_cost [DIRECTORY]`: a sparse
//! image of 1 GiB, 20,000 random writes of 4 KiB with a flush every 500, twice
//! over, then 40,000 random reads; for `keep` and for `reset`.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use disk::overlay::{Caching, OverlayMode};
use disk::{Access, BaseId, Disk, Overlay, Raw};

const SIZE_BYTES: u64 = 1 << 30;
const WRITES: u64 = 20_000;
const READS: u64 = 40_000;
const FLUSH_EVERY: u64 = 500;

fn main() -> Result<(), Box<dyn Error>> {
    let parent = std::env::args_os()
        .nth(1)
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let home = tempfile::tempdir_in(parent)?;
    let path = home.path().join("disk.raw");
    std::fs::File::create(&path)?.set_len(SIZE_BYTES)?;
    let id = BaseId {
        uuid: [1; 16],
        sha256: [2; 32],
        size_bytes: SIZE_BYTES,
    };
    for mode in [OverlayMode::Keep, OverlayMode::Reset] {
        let image = Arc::new(Raw::open(&path, Access::ReadOnly)?);
        let dir = home.path().join(format!("{mode:?}"));
        let overlay = Overlay::create(&dir, image, id, mode, 1, Caching::WriteBack)?;
        for what in ["fresh write", "overwrite"] {
            per_operation(what, WRITES, |number, offset| {
                overlay.write(offset, &[7; 4096])?;
                if number % FLUSH_EVERY == 0 {
                    overlay.flush()?;
                }
                Ok(())
            })?;
        }
        let mut block = [0; 4096];
        per_operation("read", READS, |_, offset| {
            Ok(overlay.read(offset, &mut block)?)
        })?;
        let mut segments = Vec::new();
        per_operation("segments of 64 KiB", READS, |_, offset| {
            segments.clear();
            overlay.segments(offset.min(SIZE_BYTES - 65536), 65536, &mut segments)?;
            Ok(())
        })?;
        println!("{mode:?}: {:?}", overlay.usage()?);
    }
    Ok(())
}

fn per_operation(
    what: &str,
    count: u64,
    mut operation: impl FnMut(u64, u64) -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let begun = Instant::now();
    let mut dice = 1_u64;
    for number in 1..=count {
        dice = dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        operation(number, (dice >> 33) % (SIZE_BYTES / 4096) * 4096)?;
    }
    let micros = begun.elapsed().as_secs_f64() * 1e6 / count as f64;
    println!("{what}: {micros:.2} µs");
    Ok(())
}
