//! What restore points, clones and deep stacks cost, in milliseconds and
//! microseconds of wall time.
//!
//! `cargo run --release -p disk --example layer_cost [DIRECTORY [GIB]]`: an
//! overlay of 64 GiB with GIB (5) written all over it beside one of 1 GiB with
//! 20 MiB; 1,000 clones beside 1,000 bare creations of as many files; reads at
//! 1, 16 and 256 restore points.

use std::error::Error;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use disk::overlay::{Caching, Note, OverlayMode, PointId};
use disk::{Access, BaseId, Disk, Overlay, Raw, SharedDisk};

type Outcome<T> = Result<T, Box<dyn Error>>;

const KEEP: OverlayMode = OverlayMode::Keep;
const PIECE: usize = 256 << 10;
const CLONES: u32 = 1000;
const READS: u64 = 200_000;

fn main() -> Outcome<()> {
    let mut arguments = std::env::args_os().skip(1);
    let parent = arguments
        .next()
        .map_or_else(std::env::temp_dir, PathBuf::from);
    let gib: u64 = match arguments.next().and_then(|a| a.into_string().ok()) {
        Some(text) => text.parse()?,
        None => 5,
    };
    let home = tempfile::tempdir_in(parent)?;
    let small = Written::new(&home.path().join("small"), 1 << 30, 20 << 20)?;
    let large = Written::new(&home.path().join("large"), 64 << 30, gib << 30)?;
    let mut times = [const { [const { Vec::new() }; 3] }; 2];
    for round in 0..31 {
        // In turn, so that both meet the same weather.
        for (overlay, times) in [&small, &large].into_iter().zip(&mut times) {
            for (time, times) in overlay.cost(round)?.into_iter().zip(times) {
                times.push(time);
            }
        }
    }
    let [small, large] = times.map(|times| times.map(median));
    for (what, (small, large)) in ["open", "restore point", "clone"]
        .iter()
        .zip(small.into_iter().zip(large))
    {
        let ratio = large.as_secs_f64() / small.as_secs_f64();
        println!("{what}: {small:.2?} of 1 GiB, {large:.2?} of 64 GiB: {ratio:.2}x");
    }
    clones(&home.path().join("clones"))?;
    depths(&home.path().join("depths"))
}

fn image(dir: &Path, size_bytes: u64) -> Outcome<(SharedDisk, BaseId)> {
    fs::create_dir_all(dir)?;
    let path = dir.join("disk.raw");
    if !path.exists() {
        fs::File::create(&path)?.set_len(size_bytes)?;
    }
    let id = BaseId {
        uuid: [1; 16],
        sha256: [2; 32],
        size_bytes,
    };
    Ok((Arc::new(Raw::open(&path, Access::ReadOnly)?), id))
}

fn note(number: u32) -> Note {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&number.to_le_bytes());
    Note {
        id: PointId(id),
        created: u64::from(number),
        automatic: true,
        comment: String::new(),
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// An overlay somebody has written to, closed.
struct Written {
    dir: PathBuf,
    disk: SharedDisk,
    id: BaseId,
}

impl Written {
    fn new(dir: &Path, size: u64, written: u64) -> Outcome<Written> {
        let (disk, id) = image(dir, size)?;
        let at = dir.join("overlay");
        let overlay = Overlay::create(&at, disk.clone(), id, KEEP, 1, Caching::WriteBack)?;
        let pieces = written / PIECE as u64;
        let data = vec![7; PIECE];
        for piece in 0..pieces {
            let offset = piece * (size / pieces) / 4096 * 4096;
            overlay.write(offset.min(size - PIECE as u64), &data)?;
        }
        overlay.flush()?;
        overlay.close()?;
        let dir = dir.to_owned();
        Ok(Written { dir, disk, id })
    }

    /// What opening takes, a restore point, and a clone of it.
    fn cost(&self, round: u32) -> Outcome<[Duration; 3]> {
        let at = self.dir.join("overlay");
        let begun = Instant::now();
        let overlay = Overlay::open(&at, self.disk.clone(), self.id, Caching::WriteBack)?;
        let opened = begun.elapsed();
        overlay.write(0, &[1; 4096])?;
        overlay.flush()?;
        let begun = Instant::now();
        overlay.point(note(round))?;
        let pointed = begun.elapsed();
        let clone = self.dir.join("clone");
        let begun = Instant::now();
        Overlay::branch(&at, note(round).id, &clone, KEEP, 1)?;
        let cloned = begun.elapsed();
        Overlay::remove(&clone)?;
        overlay.drop_points(&[note(round).id])?;
        overlay.close()?;
        Ok([opened, pointed, cloned])
    }
}

fn stored(dir: &Path) -> Outcome<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let found = entry.metadata()?;
        if found.nlink() == 1 || found.is_dir() {
            bytes += found.blocks() * 512;
        }
        if found.is_dir() {
            bytes += stored(&entry.path())?;
        }
    }
    Ok(bytes)
}

/// Clones of an image and of a restore point, beside bare files.
fn clones(dir: &Path) -> Outcome<()> {
    let (disk, id) = image(dir, 64 << 30)?;
    let caching = Caching::WriteBack;
    let bare = dir.join("bare");
    fs::create_dir_all(&bare)?;
    let begun = Instant::now();
    for number in 0..2 * CLONES {
        let file = fs::File::create_new(bare.join(number.to_string()))?;
        std::io::Write::write_all(&mut &file, &[7; 4096])?;
        file.sync_data()?;
    }
    let bare = begun.elapsed();
    println!("{} bare files: {bare:.2?}", 2 * CLONES);
    let made = dir.join("made");
    fs::create_dir_all(&made)?;
    let begun = Instant::now();
    for number in 0..CLONES {
        let at = made.join(number.to_string());
        drop(Overlay::create(&at, disk.clone(), id, KEEP, 1, caching)?);
    }
    report("clones of an image", begun.elapsed(), bare, stored(&made)?);
    let source = dir.join("source");
    let overlay = Overlay::create(&source, disk.clone(), id, KEEP, 1, caching)?;
    overlay.write(0, &vec![7; 20 << 20])?;
    overlay.point(note(1))?;
    overlay.tend()?;
    let branches = dir.join("branches");
    fs::create_dir_all(&branches)?;
    let begun = Instant::now();
    for number in 0..CLONES {
        let at = branches.join(number.to_string());
        Overlay::branch(&source, note(1).id, &at, KEEP, 1)?;
    }
    report(
        "clones of a point",
        begun.elapsed(),
        bare,
        stored(&branches)?,
    );
    Ok(())
}

fn report(what: &str, time: Duration, bare: Duration, bytes: u64) {
    let ratio = time.as_secs_f64() / bare.as_secs_f64();
    let mb = bytes as f64 / 1e6;
    println!("{CLONES} {what}: {time:.2?}, {ratio:.2}x of bare, {mb:.1} MB");
}

/// Reads of 4 KiB all over, the same data at several depths.
fn depths(dir: &Path) -> Outcome<()> {
    let size = 1_u64 << 30;
    let (disk, id) = image(dir, size)?;
    let mut overlays = Vec::new();
    for points in [1_u32, 16, 256] {
        let at = dir.join(points.to_string());
        let overlay = Overlay::create(&at, disk.clone(), id, KEEP, 1, Caching::WriteBack)?;
        let blocks = size / 4096;
        for number in 0..points {
            for block in (u64::from(number)..blocks / 4).step_by(points as usize) {
                overlay.write(block * 4 * 4096, &[7; 4096])?;
            }
            overlay.point(note(number))?;
        }
        overlay.tend()?;
        overlays.push((points, overlay));
    }
    for what in ["read", "segments"] {
        for round in 0..4 {
            for (points, overlay) in &overlays {
                let (mut dice, mut block, mut segments) = (1_u64, [0; 4096], Vec::new());
                let begun = Instant::now();
                for _ in 0..READS {
                    dice = dice
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let offset = (dice >> 33) % (size / 4096 / 4) * 4 * 4096;
                    if what == "read" {
                        overlay.read(offset, &mut block)?;
                    } else {
                        segments.clear();
                        overlay.segments(offset, 4096, &mut segments)?;
                    }
                }
                if round > 0 {
                    let each = begun.elapsed().as_secs_f64() * 1e6 / READS as f64;
                    println!("{what} at {points} points: {each:.3} µs");
                }
            }
        }
    }
    Ok(())
}
