//! What must not cost more the more an overlay holds: opening it, a restore
//! point, a branch; and the memory it takes while it is open.

use std::io;
use std::path::Path;

use disk::{Disk, Overlay};

use super::stage::{BLOCK_BYTES, Stage, sparse_file};
use super::{Cell, Check, Cost, Found, Goal, Player, beside, take_turns};
use crate::initiator::Order;
use crate::peer::point;
use crate::process;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// An overlay that holds much, and one that holds little: size and marks.
const LARGE: (u64, u64) = (64 * GIB, 20 * GIB);
const SMALL: (u64, u64) = (GIB, 20 * MIB);
/// What is marked lies in stretches of this size, evenly over the disk.
const STRETCH_BYTES: u64 = 64 << 10;
/// One stretch of so many is written; the others are unmapped, which takes the
/// same marks and no data.
const WRITTEN_OF: u64 = 256;
/// Turns of a round.
const TURNS: u32 = 8;
/// Overlays of a round whose first restore point is made.
const FIRSTS: u32 = 4;
/// Reads behind an opening.
const READS: u32 = 1000;
/// Restore points of the overlay whose memory is looked at.
const POINTS: u32 = 16;
/// What the owner table covers with a page, and what it may take in all.
const PAGE_COVERS_BYTES: u64 = 64 * MIB;
const MEMORY_GOAL_BYTES: u64 = 32 * MIB;

/// A large overlay beside a small one.
pub(super) fn operations(home: &Path, rounds: usize, found: &mut Found) -> io::Result<()> {
    let large = staged(home, "large", LARGE.0)?;
    let small = staged(home, "small", SMALL.0)?;
    let stages = [(&small, SMALL.1), (&large, LARGE.1)];
    let mut all: [Vec<Vec<Cost>>; 5] = std::array::from_fn(|_| vec![Vec::new(); 2]);
    for round in 0..rounds {
        let names: Vec<String> = (0..FIRSTS)
            .map(|n| format!("{n} of round {round}"))
            .collect();
        for name in &names {
            for (stage, bytes) in stages {
                let overlay = stage.create(name)?;
                mark(&overlay, bytes)?;
                overlay.close().map_err(io::Error::other)?;
            }
        }
        let name = &names[0];
        let mut players = stages.map(|(stage, _)| opening(stage, name, 0));
        gather(&mut all[0], take_turns(&mut players, TURNS)?);
        let mut players = stages.map(|(stage, _)| opening(stage, name, READS));
        gather(&mut all[1], take_turns(&mut players, TURNS / 2)?);
        let mut players = stages.map(|(stage, _)| first_points(stage, &names));
        gather(&mut all[2], take_turns(&mut players, FIRSTS)?);
        let overlays = [small.open(name)?, large.open(name)?];
        let mut players = overlays.each_ref().map(|overlay| pointing(overlay, 1));
        gather(&mut all[3], take_turns(&mut players, TURNS)?);
        let mut players = stages.map(|(stage, _)| branching(stage, name));
        gather(&mut all[4], take_turns(&mut players, TURNS)?);
    }
    let cells = [
        ("open", Goal::Wall(3.0)),
        ("open, then 1,000 random reads", Goal::None),
        ("restore point above all it holds", Goal::Wall(1.2)),
        ("restore point above one block", Goal::Wall(1.2)),
        ("clone of a restore point", Goal::Wall(1.2)),
    ];
    for ((name, goal), costs) in cells.into_iter().zip(&all) {
        found.cell(Cell {
            name: format!("{name}: 64 GiB, 20 GiB in it"),
            against: "1 GiB, 20 MiB in it",
            goal,
            samples: beside(&costs[0], &costs[1]),
        });
    }
    Ok(())
}

/// Memory of an open overlay of 64 GiB when every page of its owner table is
/// in use.
pub(super) fn memory(home: &Path, _: usize, found: &mut Found) -> io::Result<()> {
    let stage = staged(home, "large", LARGE.0)?;
    let overlay = stage.create("overlay")?;
    for number in 0..POINTS {
        for at in (0..LARGE.0).step_by(usize::try_from(PAGE_COVERS_BYTES).unwrap_or(1)) {
            let at = at + u64::from(number) * BLOCK_BYTES;
            overlay.unmap(at, BLOCK_BYTES).map_err(io::Error::other)?;
        }
        point(&overlay, number)?;
    }
    overlay.close().map_err(io::Error::other)?;
    drop(overlay);
    let me = std::process::id();
    let before = process::memory(me)?;
    let overlay = stage.open("overlay")?;
    let opened = process::memory(me)?;
    let mut block = [0; 4096];
    for at in (0..LARGE.0).step_by(usize::try_from(PAGE_COVERS_BYTES).unwrap_or(1)) {
        overlay.read(at, &mut block).map_err(io::Error::other)?;
    }
    let used = process::memory(me)?;
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    let taken = used.private.saturating_sub(before.private);
    found.check(Check {
        name: format!(
            "private memory of an open overlay of 64 GiB with {POINTS} restore points, read everywhere"
        ),
        goal: format!("<= {} MiB", mib(MEMORY_GOAL_BYTES)),
        found: format!(
            "{:.1} MiB ({:.1} MiB before the first read)",
            mib(taken),
            mib(opened.private.saturating_sub(before.private))
        ),
        is_reached: taken <= MEMORY_GOAL_BYTES,
    });
    Ok(())
}

fn staged(home: &Path, name: &str, bytes: u64) -> io::Result<Stage> {
    let dir = home.join(name);
    std::fs::create_dir(&dir)?;
    let image = dir.join("image.raw");
    sparse_file(&image, bytes)?;
    Stage::new(&dir, &image)
}

/// Has an overlay hold `bytes`, as far as its marks say.
fn mark(overlay: &Overlay, bytes: u64) -> io::Result<()> {
    let stretches = bytes / STRETCH_BYTES;
    let spacing = overlay.geometry().size_bytes / stretches / BLOCK_BYTES * BLOCK_BYTES;
    let data = vec![7; usize::try_from(STRETCH_BYTES).map_err(io::Error::other)?];
    for number in 0..stretches {
        let at = number * spacing;
        let done = match number % WRITTEN_OF {
            0 => overlay.write(at, &data),
            _ => overlay.unmap(at, STRETCH_BYTES),
        };
        done.map_err(io::Error::other)?;
    }
    Ok(())
}

fn gather(all: &mut [Vec<Cost>], costs: Vec<Vec<Cost>>) {
    for (all, costs) in all.iter_mut().zip(costs) {
        all.extend(costs);
    }
}

/// Opens an overlay, and reads some of it.
fn opening<'a>(stage: &'a Stage, name: &'a str, reads: u32) -> Player<'a> {
    let places = u32::try_from(stage.size_bytes() / BLOCK_BYTES).unwrap_or(u32::MAX);
    let play = move |turn: u32| {
        let mut opened = None;
        let mut block = [0; 4096];
        let mut order = Order::Random(u64::from(turn));
        Cost::of(1, || {
            let overlay = opened.insert(stage.open(name)?);
            for _ in 0..reads {
                let place = order.next(places).unwrap_or(0);
                overlay
                    .read(u64::from(place) * BLOCK_BYTES, &mut block)
                    .map_err(io::Error::other)?;
            }
            Ok(())
        })
    };
    (name.to_owned(), Box::new(play))
}

/// Makes the first restore point of one overlay after the other, just opened.
fn first_points<'a>(stage: &'a Stage, names: &'a [String]) -> Player<'a> {
    let play = move |turn: u32| {
        let overlay = stage.open(&names[turn as usize])?;
        pointing(&overlay, 0).1(0)
    };
    (String::new(), Box::new(play))
}

/// Makes restore points, numbered from `first` on, each above one more block.
fn pointing(overlay: &Overlay, first: u32) -> Player<'_> {
    let play = move |turn: u32| {
        let at = u64::from(first + turn) * BLOCK_BYTES;
        overlay.write(at, &[9; 4096]).map_err(io::Error::other)?;
        Cost::of(1, || point(overlay, first + turn))
    };
    (String::new(), Box::new(play))
}

/// Clones the first restore point.
fn branching<'a>(stage: &'a Stage, name: &'a str) -> Player<'a> {
    let play = move |turn: u32| {
        let clone = format!("{name}, clone {turn}");
        Cost::of(1, || stage.branch(name, 0, &clone))
    };
    (name.to_owned(), Box::new(play))
}
