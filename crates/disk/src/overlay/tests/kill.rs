//! Proof of the first promise against a real SIGKILL: a child process writes,
//! says what was answered, and is killed; everything answered must be there.
//!
//! The child is this test binary, asked by its environment to be the writer.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::super::*;
use crate::Ram;

const DIR: &str = "DISK_KILL_DIR";
const SEED: &str = "DISK_KILL_SEED";

const SECTOR: usize = 512;
const THREADS: usize = 3;
/// Sectors that each thread has for itself; odd, so that threads share blocks.
const REGION: usize = 403;
const SIZE: usize = THREADS * REGION * SECTOR;

/// What a child has said before it may be killed, however busy the machine is.
const ANSWERS_BEFORE_KILL: u64 = 12;
/// Rounds of the short form.
const ROUNDS: u64 = 8;

fn image() -> (SharedDisk, BaseId) {
    let bytes = (0..SIZE)
        .map(|at| u8::try_from(at / SECTOR % 200).unwrap() + 1)
        .collect();
    let id = BaseId {
        uuid: [1; 16],
        sha256: [2; 32],
        size_bytes: SIZE as u64,
    };
    (Arc::new(Ram::with_contents(bytes).read_only()), id)
}

/// What a thread does next: first sector, sectors, and the byte that fills
/// them; 0 is an unmap, `None` a flush.
struct Script {
    dice: u64,
    thread: usize,
}

impl Script {
    fn new(seed: u64, thread: usize) -> Script {
        Script {
            dice: seed * 1000 + thread as u64,
            thread,
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % limit as u64).unwrap()
    }

    fn next(&mut self) -> Option<(usize, usize, u8)> {
        if self.below(40) == 0 {
            return None;
        }
        let first = self.below(REGION);
        let longest = [1, 8, 24, 64][self.below(4)];
        let count = (1 + self.below(longest)).min(REGION - first);
        let fill = match self.below(6) {
            0 => 0,
            _ => u8::try_from(self.below(255)).unwrap() + 1,
        };
        Some((self.thread * REGION + first, count, fill))
    }
}

/// The child: writes until it is killed.
#[test]
fn writer_of_the_kill_test() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    // A thread that fails ends the child, and the parent hears why.
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panicked| {
        tell(panicked);
        std::process::abort();
    }));
    let seed = std::env::var(SEED).unwrap().parse().unwrap();
    let (disk, id) = image();
    let overlay = Overlay::open(Path::new(&dir), disk, id, Caching::WriteBack).unwrap();
    thread::scope(|scope| {
        // Killed in the middle of restore points and merges, too.
        scope.spawn(|| points_come_and_go(&overlay, Path::new(&dir)));
        for number in 0..THREADS {
            let overlay = &overlay;
            scope.spawn(move || {
                let mut script = Script::new(seed, number);
                for done in 1_u64.. {
                    match script.next() {
                        None => overlay.flush().unwrap(),
                        Some((first, count, 0)) => overlay
                            .unmap((first * SECTOR) as u64, (count * SECTOR) as u64)
                            .unwrap(),
                        Some((first, count, fill)) => overlay
                            .write((first * SECTOR) as u64, &vec![fill; count * SECTOR])
                            .unwrap(),
                    }
                    // Answered: one write, so that lines never mix.
                    let line = format!("~{number} {done}\n");
                    let written = rustix::io::write(std::io::stdout(), line.as_bytes());
                    if written != Ok(line.len()) {
                        return;
                    }
                }
            });
        }
    });
}

/// Makes restore points, and takes away what is more than a few of them.
fn points_come_and_go(overlay: &Overlay, dir: &Path) {
    loop {
        let points = Overlay::points(dir).unwrap();
        let newest = points.iter().map(|point| point.note.created).max();
        let created = newest.unwrap_or(0) + 1;
        let note = Note {
            id: PointId(u128::from(created).to_le_bytes()),
            created,
            automatic: true,
            comment: String::new(),
        };
        overlay.point(note).unwrap();
        let ids: Vec<PointId> = points.iter().map(|point| point.note.id).collect();
        match ids.len() > 3 {
            true => overlay.drop_points(&ids[..2]).unwrap(),
            false => overlay.tend().unwrap(),
        }
    }
}

fn kill_in_a_loop(mode: OverlayMode, rounds: u64) {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("ov");
    let (disk, id) = image();
    let mut model = vec![0; SIZE];
    disk.read(0, &mut model).unwrap();
    let overlay = Overlay::create(&dir, disk.clone(), id, mode, 1, Caching::WriteBack).unwrap();
    drop(overlay);
    let mut answered_at_all = 0;
    for seed in 1..=rounds {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "overlay::tests::kill::writer_of_the_kill_test"])
            .args(["--nocapture", "--test-threads=1"])
            .env(DIR, &dir)
            .env(SEED, seed.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = child.stdout.take().unwrap();
        let (wrote, writing) = mpsc::channel();
        let reader = thread::spawn(move || {
            let mut answered = [0_u64; THREADS];
            for line in BufReader::new(said).lines() {
                let Ok(line) = line else { break };
                // The harness writes lines of its own in front.
                let Some((_, said)) = line.rsplit_once('~') else {
                    continue;
                };
                let (thread, done) = said.split_once(' ').unwrap();
                answered[thread.parse::<usize>().unwrap()] = done.parse().unwrap();
                let _ = wrote.send(());
            }
            answered
        });
        for _ in 0..ANSWERS_BEFORE_KILL {
            let said = writing.recv_timeout(Duration::from_secs(60));
            said.expect("the child writes");
        }
        thread::sleep(Duration::from_millis(seed * 37 % 120));
        child.kill().unwrap();
        child.wait().unwrap();
        let answered = reader.join().unwrap();
        answered_at_all += answered.iter().sum::<u64>();

        let overlay = Overlay::open(&dir, disk.clone(), id, Caching::WriteBack).unwrap();
        assert_eq!(overlay.host_loss(), HostLoss::None);
        let mut found = vec![0; SIZE];
        overlay.read(0, &mut found).unwrap();
        for (thread, answered) in answered.into_iter().enumerate() {
            let mut script = Script::new(seed, thread);
            for _ in 0..answered {
                if let Some((first, count, fill)) = script.next() {
                    model[first * SECTOR..(first + count) * SECTOR].fill(fill);
                }
            }
            // Of the operation that was under way each sector is old or new.
            if let Some((first, count, fill)) = script.next() {
                for sector in first..first + count {
                    let range = sector * SECTOR..(sector + 1) * SECTOR;
                    if found[range.clone()].iter().all(|&b| b == fill) {
                        model[range].fill(fill);
                    }
                }
            }
        }
        for (sector, (found, model)) in found.chunks(SECTOR).zip(model.chunks(SECTOR)).enumerate() {
            assert!(
                found == model,
                "round {seed}: sector {sector} is {}, answered was {}",
                found[0],
                model[0]
            );
        }
    }
    assert!(
        answered_at_all >= rounds * ANSWERS_BEFORE_KILL,
        "the children hardly wrote"
    );
    let _ = std::io::stdout().flush();
}

#[test]
fn answered_writes_of_a_keep_overlay_survive_kill_9() {
    kill_in_a_loop(OverlayMode::Keep, ROUNDS);
}

#[test]
fn answered_writes_of_a_reset_overlay_survive_kill_9() {
    kill_in_a_loop(OverlayMode::Reset, ROUNDS);
}

#[test]
#[ignore = "a minute; run it after a change of the overlay's order of writes"]
fn answered_writes_survive_kill_9_many_times() {
    kill_in_a_loop(OverlayMode::Keep, 300);
    kill_in_a_loop(OverlayMode::Reset, 300);
}
