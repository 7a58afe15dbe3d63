//! Reads and writes of 4 KiB, all in the page cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use disk::{Access, Disk, NewDisk, NewFormat, Opening, Raw, SharedDisk};

use super::sink::Sink;
use super::stage::{BLOCK_BYTES, Stage, full_file, sparse_file};
use super::{Cell, Cost, Found, Goal, Player, beside, take_turns};
use crate::initiator::Order;
use crate::peer::STRETCH_BYTES;

/// The disk that is read.
const READ_BYTES: u64 = 256 << 20;
/// The disk that is written.
const WRITTEN_BYTES: u64 = 512 << 20;
/// Reads of one turn, and turns of a round.
const READS: u32 = 4_000;
const READ_TURNS: u32 = 10;
/// Writes of one turn; then comes a flush.
const WRITES: u32 = 500;
/// Turns of a round: as many of fresh writes, then of overwrites.
const WRITE_TURNS: u32 = 12;
/// Blocks of a stretch.
const STRETCH: u64 = STRETCH_BYTES as u64 / BLOCK_BYTES;
/// Restore points below what is read and written.
const POINTS: [u32; 3] = [1, 16, 256];

/// Reads through image and overlay, with restore points and without.
pub(super) fn reads(home: &Path, rounds: usize, found: &mut Found) -> io::Result<()> {
    let image = home.join("image.raw");
    full_file(&image, READ_BYTES)?;
    let raw = home.join("disk.raw");
    full_file(&raw, READ_BYTES)?;
    let raw: SharedDisk = Arc::new(Raw::open(&raw, Access::ReadWrite).map_err(io::Error::other)?);
    let stage = Stage::new(home, &image)?;
    let mut disks = vec![("raw".to_owned(), raw)];
    let overlay = Arc::new(stage.with_points("none", 0)?);
    disks.push(("image + overlay".to_owned(), overlay));
    for points in POINTS {
        let name = counted(points);
        let overlay = Arc::new(stage.with_points(&name, points)?);
        disks.push((name, overlay));
    }
    for (what, way, [most, among]) in [
        (
            "4 KiB random read",
            Way::Sent,
            [Goal::Cpu(1.15), Goal::Cpu(1.05)],
        ),
        (
            "4 KiB random `pread`",
            Way::Copied,
            [Goal::None, Goal::None],
        ),
    ] {
        let costs = read_in_turns(&disks, rounds, way)?;
        for (number, (name, _)) in disks.iter().enumerate().skip(1) {
            found.cell(Cell {
                name: format!("{what}, {name}"),
                against: "raw file",
                goal: most,
                samples: beside(&costs[0], &costs[number]),
            });
        }
        among_points(what, among, &costs[2..], found);
    }
    drop(disks);
    bare_reads(home, rounds, found)
}

/// How a read gets out of a disk.
#[derive(Clone, Copy)]
enum Way {
    /// Out of its mappings, as the server sends it.
    Sent,
    /// By `Disk::read`, as whoever needs a copy does it.
    Copied,
}

/// Reads of files as they are, which hold a disk in turn, as layers do: what
/// more files cost anybody.
fn bare_reads(home: &Path, rounds: usize, found: &mut Found) -> io::Result<()> {
    let mut players: Vec<Player<'_>> = Vec::new();
    for count in POINTS {
        let mut files = Vec::new();
        for number in 0..count {
            let path = home.join(format!("{number} of {count}"));
            files.push(File::create_new(&path)?);
            files.push(File::open(&path)?);
        }
        let mut block = vec![1; 4096];
        for place in
            (0..READ_BYTES / BLOCK_BYTES).filter(|place| (place / STRETCH).is_multiple_of(2))
        {
            let file = &files[2 * file_of(place, count)];
            file.write_all_at(&block, place * BLOCK_BYTES)?;
        }
        let play = move |turn: u32| {
            let mut order = Order::Random(u64::from(turn));
            let places = places(READ_BYTES / 2)?;
            Cost::of(READS, || {
                for _ in 0..READS {
                    let place = u64::from(order.next(places).unwrap_or(0));
                    let place = place / STRETCH * 2 * STRETCH + place % STRETCH;
                    let file = &files[2 * file_of(place, count) + 1];
                    file.read_exact_at(&mut block, place * BLOCK_BYTES)?;
                }
                Ok(())
            })
        };
        players.push((String::new(), Box::new(play)));
    }
    take_turns(&mut players, 1)?;
    let turns = READ_TURNS * u32::try_from(rounds).unwrap_or(1);
    let costs = take_turns(&mut players, turns)?;
    for (count, costs_of_more) in POINTS.iter().zip(&costs).skip(1) {
        found.cell(Cell {
            name: format!("4 KiB bare `pread`, out of {count} files"),
            against: "out of one",
            goal: Goal::None,
            samples: beside(&costs[0], costs_of_more),
        });
    }
    Ok(())
}

/// In which of `count` files a block lies: stretches take turns.
fn file_of(place: u64, count: u32) -> usize {
    usize::try_from(place / STRETCH / 2 % u64::from(count)).unwrap_or(0)
}

/// Reads of formats that are served in place.
pub(super) fn formats(home: &Path, rounds: usize, found: &mut Found) -> io::Result<()> {
    let raw = home.join("disk.raw");
    full_file(&raw, READ_BYTES)?;
    let raw: SharedDisk = Arc::new(Raw::open(&raw, Access::ReadOnly).map_err(io::Error::other)?);
    let mut disks = vec![("raw".to_owned(), raw.clone())];
    for (name, file, format) in [
        ("VHD fixed", "fixed.vhd", NewFormat::VhdFixed),
        ("VHD dynamic", "dynamic.vhd", NewFormat::VhdDynamic),
        ("VHDX fixed", "fixed.vhdx", NewFormat::VhdxFixed),
        ("VHDX dynamic", "dynamic.vhdx", NewFormat::VhdxDynamic),
    ] {
        let path = home.join(file);
        let new = NewDisk {
            format,
            size_bytes: READ_BYTES,
            logical_block_bytes: 512,
        };
        let disk = disk::create(&path, &new).map_err(io::Error::other)?;
        fill(&*raw, &*disk)?;
        drop(disk);
        let opening = Opening::new(Access::ReadOnly);
        let disk = disk::open(&path, &opening).map_err(io::Error::other)?;
        disks.push((name.to_owned(), disk));
    }
    let costs = read_in_turns(&disks, rounds, Way::Sent)?;
    for (number, (name, _)) in disks.iter().enumerate().skip(1) {
        found.cell(Cell {
            name: format!("4 KiB random read, {name}"),
            against: "raw file",
            goal: Goal::Cpu(1.2),
            samples: beside(&costs[0], &costs[number]),
        });
    }
    Ok(())
}

/// Fresh writes and overwrites, a flush behind every [`WRITES`] of them.
pub(super) fn writes(home: &Path, rounds: usize, found: &mut Found) -> io::Result<()> {
    let image = home.join("image.raw");
    full_file(&image, WRITTEN_BYTES)?;
    let full = home.join("full.raw");
    full_file(&full, WRITTEN_BYTES)?;
    let full: SharedDisk = Arc::new(Raw::open(&full, Access::ReadWrite).map_err(io::Error::other)?);
    let stage = Stage::new(home, &image)?;
    for points in POINTS {
        drop(stage.with_points(&format!("of {points}"), points)?);
    }
    let mut fresh: Vec<Vec<Cost>> = vec![Vec::new(); 3 + POINTS.len()];
    let mut over = fresh.clone();
    for round in 0..rounds {
        let sparse = home.join(format!("sparse-{round}.raw"));
        sparse_file(&sparse, WRITTEN_BYTES)?;
        let sparse = Raw::open(&sparse, Access::ReadWrite).map_err(io::Error::other)?;
        let mut disks: Vec<SharedDisk> = vec![
            full.clone(),
            Arc::new(sparse),
            Arc::new(stage.create(&format!("none, {round}"))?),
        ];
        for points in POINTS {
            let name = format!("{points}, {round}");
            stage.branch(&format!("of {points}"), points - 1, &name)?;
            disks.push(Arc::new(stage.open(&name)?));
        }
        let seed = u64::try_from(round).unwrap_or(0) + 1;
        let all = write_in_turns(&disks, seed)?;
        for (number, costs) in all.into_iter().enumerate() {
            let (first, second) = costs.split_at(WRITE_TURNS as usize);
            fresh[number].extend(first);
            over[number].extend(second);
        }
    }
    // A block that has no place yet, on neither side: the like of a fresh write
    // is one into a sparse file. What a place costs is told beside it.
    let (fresh_goals, over_goals) = (
        [Goal::None, Goal::Cpu(1.25)],
        [Goal::Cpu(1.1), Goal::Cpu(1.1)],
    );
    for (name, [beside_full, beside_sparse], costs) in [
        ("4 KiB random fresh write", fresh_goals, &fresh),
        ("4 KiB random overwrite", over_goals, &over),
    ] {
        let overlays = ["image + overlay".to_owned()].into_iter();
        let overlays = overlays.chain(POINTS.map(counted));
        for (what, this) in overlays.zip(&costs[2..]) {
            for (against, goal, other) in [
                ("raw file, all of it written", beside_full, &costs[0]),
                ("raw file, sparse", beside_sparse, &costs[1]),
            ] {
                found.cell(Cell {
                    name: format!("{name}, {what}"),
                    against,
                    goal,
                    samples: beside(other, this),
                });
            }
        }
        among_points(name, Goal::Cpu(1.05), &costs[3..], found);
    }
    Ok(())
}

/// More restore points against one.
fn among_points(what: &str, goal: Goal, costs: &[Vec<Cost>], found: &mut Found) {
    for (points, costs_of_more) in POINTS.iter().zip(costs).skip(1) {
        found.cell(Cell {
            name: format!("{what}, {}", counted(*points)),
            against: "1 restore point",
            goal,
            samples: beside(&costs[0], costs_of_more),
        });
    }
}

/// Random reads of all disks, which hold the same, by turns.
fn read_in_turns(
    disks: &[(String, SharedDisk)],
    rounds: usize,
    way: Way,
) -> io::Result<Vec<Vec<Cost>>> {
    let places = places(READ_BYTES)?;
    let player = |(name, disk): &(String, SharedDisk)| -> io::Result<Player<'_>> {
        let disk = disk.clone();
        let mut block = [0; 4096];
        let mut sink = Sink::new()?;
        let play = move |turn: u32| {
            let mut order = Order::Random(u64::from(turn));
            Cost::of(READS, || {
                for _ in 0..READS {
                    let at = u64::from(order.next(places).unwrap_or(0)) * BLOCK_BYTES;
                    match way {
                        Way::Sent => sink.take(&*disk, at, BLOCK_BYTES)?,
                        Way::Copied => disk.read(at, &mut block).map_err(io::Error::other)?,
                    }
                }
                Ok(())
            })
        };
        Ok((name.clone(), Box::new(play)))
    };
    let players: io::Result<Vec<Player<'_>>> = disks.iter().map(player).collect();
    let mut players = players?;
    let mut all = vec![Vec::new(); players.len()];
    for _ in 0..rounds {
        for (_, disk) in disks {
            warm(&**disk, way)?;
        }
        let costs = take_turns(&mut players, READ_TURNS)?;
        for (all, costs) in all.iter_mut().zip(costs) {
            all.extend(costs);
        }
    }
    Ok(all)
}

/// Brings a disk into the page cache, and its owner table into memory.
fn warm(disk: &dyn Disk, way: Way) -> io::Result<()> {
    let (mut piece, mut sink) = (vec![0; 64 << 10], Sink::new()?);
    for at in (0..disk.geometry().size_bytes).step_by(piece.len()) {
        disk.read(at, &mut piece).map_err(io::Error::other)?;
        if let Way::Sent = way {
            sink.take(disk, at, piece.len() as u64)?;
        }
    }
    Ok(())
}

fn counted(points: u32) -> String {
    match points {
        1 => "1 restore point".to_owned(),
        _ => format!("{points} restore points"),
    }
}

/// Writes every one of some places once, then every one again.
fn write_in_turns(disks: &[SharedDisk], seed: u64) -> io::Result<Vec<Vec<Cost>>> {
    let places = places(WRITTEN_BYTES)?;
    let mut order = Order::shuffled(places, seed);
    let mut next = || order.next(places).unwrap_or(0);
    let first: Vec<u32> = (0..WRITE_TURNS * WRITES).map(|_| next()).collect();
    // The same places, but those of one turn in many others.
    let mut second = first.clone();
    second.sort_unstable_by_key(|place| place.wrapping_mul(0x9e37_79b9));
    let turns: Vec<&[u32]> = [&first, &second]
        .into_iter()
        .flat_map(|places| places.chunks(WRITES as usize))
        .collect();
    let player = |disk: &SharedDisk| -> Player<'_> {
        let (disk, turns) = (disk.clone(), &turns);
        let play = move |turn: u32| {
            let block = [u8::try_from(turn % 251).unwrap_or(0) + 1; 4096];
            Cost::of(WRITES, || {
                for place in turns[turn as usize] {
                    disk.write(u64::from(*place) * BLOCK_BYTES, &block)
                        .map_err(io::Error::other)?;
                }
                disk.flush().map_err(io::Error::other)
            })
        };
        (String::new(), Box::new(play))
    };
    let mut players: Vec<Player<'_>> = disks.iter().map(player).collect();
    take_turns(&mut players, 2 * WRITE_TURNS)
}

fn places(bytes: u64) -> io::Result<u32> {
    u32::try_from(bytes / BLOCK_BYTES).map_err(io::Error::other)
}

/// Copies a disk, no zeros left out.
fn fill(source: &dyn Disk, target: &dyn Disk) -> io::Result<()> {
    let mut piece = vec![0; 4096];
    for at in (0..READ_BYTES).step_by(4096) {
        source.read(at, &mut piece).map_err(io::Error::other)?;
        target.write(at, &piece).map_err(io::Error::other)?;
    }
    target.flush().map_err(io::Error::other)
}
