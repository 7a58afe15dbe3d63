//! `kill -9` of the real server in a loop, under real iSCSI writers: whatever
//! was answered is there after each restart. One of the machines is given
//! restore points meanwhile: before a kill, or in the middle of it.
//!
//! `LOOPS` says how often (`make kill LOOPS=200`), `SEED` what is written.

use std::io::Write as _;
use std::time::Duration;

use super::kept::Site;
use super::*;

/// Kills when nobody says how many.
const LOOPS: u64 = 20;

const SECTOR: usize = 512;

/// Writers a disk.
const WRITERS: usize = 2;

/// Sectors each writer has for itself: some blocks of a VHD. Odd, so that
/// writers share blocks.
const REGION: usize = 12_003;
const SECTORS: usize = WRITERS * REGION;

/// What each writer has been answered before the server is killed, however
/// busy the machine is.
const ANSWERS_BEFORE_KILL: u64 = 10;

/// A writer that says nothing for so long is stuck.
const PATIENCE: Duration = Duration::from_secs(120);

/// Makes a restore point of the machine that keeps its writes.
const POINT: &str = "overlay point pc --comment kill";

/// What there is room for.
const POINTS_MAX: usize = 200;

/// What a kill may come after, once all writers write.
const LIFE_MILLIS: u64 = 150;

const PROMPT: &str = "qemu-io> ";

/// The machines, their MACs, and what becomes of their overlays.
const MACHINES: [(&str, &str, &str); 2] = [
    ("pc", "52-54-00-00-00-01", "keep"),
    ("kiosk", "52-54-00-00-00-02", "reset"),
];

/// A write: first sector, sectors, and the byte that fills them; a 0 is
/// written as zeros that may unmap.
type Piece = (usize, usize, u8);

/// What one writer does, the same for a seed each time (SplitMix64).
struct Script {
    dice: u64,
    writer: usize,
    writes: u64,
}

impl Script {
    fn below(&mut self, limit: usize) -> usize {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % limit as u64).unwrap()
    }

    /// The next write; `None` is a flush.
    fn next(&mut self) -> Option<Piece> {
        if self.below(40) == 0 {
            return None;
        }
        let first = self.below(REGION);
        let longest = [1, 8, 24, 128][self.below(4)];
        let count = (1 + self.below(longest)).min(REGION - first);
        self.writes += 1;
        let fill = match self.below(6) {
            0 => 0,
            // Neighbours in time are told apart.
            _ => u8::try_from(self.writes % 255).unwrap() + 1,
        };
        Some((self.writer * REGION + first, count, fill))
    }
}

/// QEMU's I/O tool, fed one command at a time.
struct Writer {
    child: Child,
    thread: JoinHandle<(Vec<Piece>, Option<Piece>)>,
}

impl Writer {
    /// Says on `answered` when a write was answered.
    fn start(mut command: Command, mut script: Script, answered: mpsc::Sender<usize>) -> Writer {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut commands = child.stdin.take().unwrap();
        let mut said = child.stdout.take().unwrap();
        let thread = thread::spawn(move || {
            let mut done = Vec::new();
            if until_prompt(&mut said).is_none() {
                return (done, None);
            }
            loop {
                let piece = script.next();
                let line = match piece {
                    None => "flush\n".to_owned(),
                    Some((first, count, fill)) => {
                        let how = match fill {
                            0 => "-z -u".to_owned(),
                            fill => format!("-P {fill}"),
                        };
                        format!("write {how} {} {}\n", first * SECTOR, count * SECTOR)
                    }
                };
                let is_asked = commands.write_all(line.as_bytes()).is_ok();
                let answer = is_asked.then(|| until_prompt(&mut said)).flatten();
                let is_answered =
                    answer.is_some_and(|said| !said.contains("failed") && !said.contains("rror"));
                if !is_answered {
                    return (done, piece);
                }
                if let Some(piece) = piece {
                    done.push(piece);
                    let _ = answered.send(script.writer);
                }
            }
        });
        Writer { child, thread }
    }

    /// Kills it: what was answered, and what was under way.
    fn kill(mut self) -> (Vec<Piece>, Option<Piece>) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.thread.join().unwrap()
    }
}

/// What is said until the tool asks for the next command; `None` when it ends.
fn until_prompt(said: &mut impl Read) -> Option<String> {
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    while !text.ends_with(PROMPT.as_bytes()) {
        match said.read(&mut piece) {
            Ok(0) | Err(_) => return None,
            Ok(length) => text.extend_from_slice(&piece[..length]),
        }
    }
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// A disk and what it must hold: the byte that fills each sector.
struct Disk {
    name: &'static str,
    url: String,
    fills: Vec<u8>,
}

impl Disk {
    /// Takes in what the writers did, given what is found, and counts the
    /// sectors that were lost.
    fn check(&mut self, done: Vec<(Vec<Piece>, Option<Piece>)>, found: &[u8]) -> usize {
        assert!(found.len() >= SECTORS * SECTOR, "{}", self.name);
        let is_filled = |sector: usize, fill: u8| {
            found[sector * SECTOR..(sector + 1) * SECTOR] == [fill; SECTOR]
        };
        for (answered, under_way) in done {
            for (first, count, fill) in answered {
                self.fills[first..first + count].fill(fill);
            }
            // Of the write that was under way each sector is old or new.
            if let Some((first, count, fill)) = under_way {
                for sector in first..first + count {
                    if is_filled(sector, fill) {
                        self.fills[sector] = fill;
                    }
                }
            }
        }
        let lost = |sector: &usize| !is_filled(*sector, self.fills[*sector]);
        let lost: Vec<usize> = (0..SECTORS).filter(lost).collect();
        for sector in lost.iter().take(5) {
            println!(
                "{}: sector {sector} is {}, answered was {}",
                self.name,
                found[sector * SECTOR],
                self.fills[*sector]
            );
        }
        lost.len()
    }
}

/// Plain targets of files of each format, and machines whose overlays lie on an
/// image.
fn disks(site: &Site) -> Vec<Disk> {
    let directory = site.directory.path();
    let raw = directory.join("plain.raw");
    File::create(&raw)
        .unwrap()
        .set_len((SECTORS * SECTOR) as u64)
        .unwrap();
    site.run("target add plain");
    site.run(&format!("target lun add plain {} --thin", raw.display()));
    let mut disks = vec![Disk {
        name: "a raw file",
        url: site.url("plain", 0),
        fills: vec![0; SECTORS],
    }];
    for (lun, name, options) in [
        (1, "vpc", "subformat=dynamic"),
        (2, "vhdx", "block_size=1M"),
    ] {
        let file = directory.join(format!("plain.{name}"));
        let file = file.to_str().unwrap();
        let create = ["create", "-f", name, "-o", options, file, "16M"];
        content("qemu-img", &create).expect("qemu-img is there");
        site.run(&format!("target lun add plain {file}"));
        disks.push(Disk {
            name,
            url: site.url("plain", lun),
            fills: vec![0; SECTORS],
        });
    }
    let fills: Vec<u8> = (0..SECTORS)
        .map(|sector| u8::try_from(sector % 200).unwrap() + 1)
        .collect();
    let image = directory.join("image.raw");
    let bytes: Vec<u8> = fills.iter().flat_map(|fill| [*fill; SECTOR]).collect();
    fs::write(&image, bytes).unwrap();
    site.run(&format!("image import golden {}", image.display()));
    for (machine, mac, mode) in MACHINES {
        site.run(&format!(
            "machine add {machine} --mac {} --image golden --mode {mode}",
            mac.replace('-', ":")
        ));
        disks.push(Disk {
            name: match mode {
                "keep" => "a keep overlay",
                _ => "a reset overlay",
            },
            url: machine_url(site, mac),
            fills: fills.clone(),
        });
    }
    disks
}

/// Where a machine's own boot script sends it, with its secret.
fn machine_url(site: &Site, mac: &str) -> String {
    let script = format!("http://127.0.0.1/boot.ipxe?mac={mac}");
    let output = site.inside("curl").args(["-sS", &script]).output().unwrap();
    let script = text(&output);
    let word = |before: &str| {
        let found = script.split(before).nth(1);
        let found = found.and_then(|rest| rest.split_whitespace().next());
        found.unwrap_or_else(|| panic!("no {before:?} in {script}"))
    };
    let (name, secret) = (word("set username "), word("set password "));
    let target = word("sanboot iscsi:127.0.0.1::3260:0:");
    format!("iscsi://{name}%{secret}@127.0.0.1:3260/{target}/0")
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty())?;
    Some(value.parse().expect("a number"))
}

#[test]
fn answered_writes_survive_kill_9_of_the_server() {
    let loops = number("LOOPS").unwrap_or(LOOPS);
    let first_seed = number("SEED").unwrap_or(1);
    if judge("qemu-io", &["--version"]).is_none() || judge("curl", &["--version"]).is_none() {
        return;
    }
    let Some(mut site) = Site::start() else {
        return;
    };
    let mut disks = disks(&site);
    let (mut answers, mut lost) = (0, 0);
    let mut points = 0;
    for seed in first_seed..first_seed + loops {
        let (answered, heard) = mpsc::channel();
        let writers: Vec<Vec<Writer>> = disks
            .iter()
            .enumerate()
            .map(|(disk, Disk { url, .. })| {
                let start = |writer| {
                    let mut command = site.inside("qemu-io");
                    command.args(["-f", "raw", "-d", "unmap", url]);
                    let number = disk * WRITERS + writer;
                    let dice = seed * 1000 + number as u64;
                    let script = Script {
                        dice,
                        writer,
                        writes: dice,
                    };
                    Writer::start(command, script, answered.clone())
                };
                (0..WRITERS).map(start).collect()
            })
            .collect();
        for _ in 0..ANSWERS_BEFORE_KILL * (disks.len() * WRITERS) as u64 {
            heard.recv_timeout(PATIENCE).expect("the writers write");
        }
        // Every other time a restore point is made, or is being made.
        let point = (seed % 4 == 1 && points < POINTS_MAX).then(|| site.begin(POINT));
        if seed % 4 == 3 && points < POINTS_MAX {
            site.run(POINT);
            points += 1;
        }
        thread::sleep(Duration::from_millis(seed * 37 % LIFE_MILLIS));
        site.kill();
        let is_made = point.is_some_and(|mut point| point.wait().unwrap().success());
        let done: Vec<_> = writers
            .into_iter()
            .map(|writers| writers.into_iter().map(Writer::kill).collect::<Vec<_>>())
            .collect();
        site.restart();
        let found = site.json("overlay points pc").as_array().unwrap().len();
        let possible = points + usize::from(is_made)..=points + usize::from(seed % 4 == 1);
        assert!(possible.contains(&found), "SEED={seed}: {found} points");
        points = found;
        for (disk, done) in disks.iter_mut().zip(done) {
            answers += done
                .iter()
                .map(|(answered, _)| answered.len())
                .sum::<usize>();
            let found = site.directory.path().join("found.raw");
            let convert = ["convert", "-f", "raw", "-O", "raw", &disk.url];
            let output = site.inside("qemu-img").args(convert).arg(&found).output();
            let output = output.unwrap();
            assert!(output.status.success(), "{}: {}", disk.name, text(&output));
            lost += disk.check(done, &fs::read(&found).unwrap());
            assert_eq!(lost, 0, "SEED={seed}: what was lost is said above");
        }
    }
    println!("{loops} kills, {points} points, {answers} answered writes, {lost} lost");
}
