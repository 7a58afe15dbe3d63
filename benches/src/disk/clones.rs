//! A thousand clones beside a thousand bare creations of as many files, each
//! of them synced.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use disk::Disk;

use super::stage::{Stage, sparse_file};
use super::{Cell, Check, Cost, Found, Goal, Player, beside, take_turns};
use crate::peer::point;

const CLONES: u32 = 1000;
/// Clones of one turn.
const AT_ONCE: u32 = 50;
/// What all of them may take.
const SPACE_GOAL_BYTES: u64 = 20_000_000;
const IMAGE_BYTES: u64 = 64 << 30;
/// Bytes of a bare file.
const BARE_BYTES: usize = 4096;

/// Clones of an image, and of a restore point.
pub(super) fn clones(home: &Path, _: usize, found: &mut Found) -> io::Result<()> {
    let image = home.join("image.raw");
    sparse_file(&image, IMAGE_BYTES)?;
    let stage = Stage::new(home, &image)?;
    let source = stage.create("source")?;
    source.write(0, &[1; 65536]).map_err(io::Error::other)?;
    point(&source, 0)?;
    for (name, is_of_point) in [("an image", false), ("a restore point", true)] {
        let dir = home.join(name.replace(' ', "-"));
        fs::create_dir(&dir)?;
        let clone = |number: u32| {
            let path = format!("{}/{number}", dir.display());
            match is_of_point {
                true => stage.branch("source", 0, &path),
                false => stage.create(&path).map(drop),
            }
        };
        clone(CLONES)?; // one more, to see what it consists of
        let (files, _) = taken(&dir.join(CLONES.to_string()))?;
        let bare = home.join(format!("bare-{}", name.replace(' ', "-")));
        fs::create_dir(&bare)?;
        let mut players: [Player<'_>; 2] = [
            (
                "bare".to_owned(),
                Box::new(|turn| many(turn, |number| create(&bare.join(number.to_string()), files))),
            ),
            ("clones".to_owned(), Box::new(|turn| many(turn, &clone))),
        ];
        let costs = take_turns(&mut players, CLONES / AT_ONCE)?;
        drop(players);
        found.cell(Cell {
            name: format!("clone of {name}, of {CLONES}"),
            against: "as many files, created and synced",
            goal: Goal::Wall(2.0),
            samples: beside(&costs[0], &costs[1]),
        });
        let (_, bytes) = taken(&dir)?;
        let per_clone = bytes / u64::from(CLONES + 1);
        found.check(Check {
            name: format!("space of {CLONES} clones of {name}"),
            goal: format!("< {} MB", SPACE_GOAL_BYTES / 1_000_000),
            found: format!(
                "{:.1} MB ({files} files of its own in each, {:.1} KB)",
                (per_clone * u64::from(CLONES)) as f64 / 1e6,
                per_clone as f64 / 1e3
            ),
            is_reached: per_clone * u64::from(CLONES) < SPACE_GOAL_BYTES,
        });
    }
    Ok(())
}

fn many(turn: u32, mut one: impl FnMut(u32) -> io::Result<()>) -> io::Result<Cost> {
    Cost::of(AT_ONCE, || {
        (0..AT_ONCE).try_for_each(|number| one(turn * AT_ONCE + number))
    })
}

/// A directory of `files` synced files.
fn create(dir: &Path, files: u64) -> io::Result<()> {
    fs::create_dir(dir)?;
    for number in 0..files {
        let mut file = File::create_new(dir.join(number.to_string()))?;
        file.write_all(&[1; BARE_BYTES])?;
        file.sync_all()?;
    }
    Ok(())
}

/// Files below `dir` that nobody else has a link to, and the space all takes
/// that is nobody else's, directories included.
fn taken(dir: &Path) -> io::Result<(u64, u64)> {
    let (mut files, mut bytes) = (0, fs::metadata(dir)?.blocks() * 512);
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            let (more, space) = taken(&entry.path())?;
            files += more;
            bytes += space;
        } else if metadata.nlink() == 1 {
            files += 1;
            bytes += metadata.blocks() * 512;
        }
    }
    Ok((files, bytes))
}
