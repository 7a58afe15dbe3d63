//! What every test needs: whether it is its turn, and a LAN with a server on it.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use lab::{Deadline, Ends, Guest, Host, Lab, Lan, Neighbour, Pc, Power, Server, Settings};

/// The program under test.
pub(crate) fn diskless() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_diskless"))
}
/// Our server's address.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The other DHCP server's, and what it lends: nothing of our pool.
pub(crate) const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const NEIGHBOUR_POOL: (Ipv4Addr, Ipv4Addr) =
    (Ipv4Addr::new(10, 77, 0, 200), Ipv4Addr::new(10, 77, 0, 250));
/// From power button to a guest with its disk. About 45 s on two idle cores in
/// software emulation; a hang ends here.
pub(crate) const BOOT_SECONDS: u64 = 480;
/// The image all tests boot.
pub(crate) const IMAGE: &str = "tiny";
/// The image of the tests that need a whole distribution.
pub(crate) const DEBIAN: &str = "debian";

/// When a test is run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Turn {
    /// Always.
    Always,
    /// In the short form by turns: the commit's hash says which of a pair.
    Pair(u32, Half),
}

/// Which of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    First,
    Second,
}

/// One at a time: emulated PCs share few cores with everything else. (nextest
/// runs each test in a process of its own and has its own means.)
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs a test on a LAN with our server, when it is its turn. A failure shows
/// the server's last words.
pub(crate) fn with_server(
    turn: Turn,
    settings: &Settings,
    test: impl FnOnce(&Lan<'_>, &mut Server<'_>) -> Result<()>,
) {
    with_lan(turn, |lan| {
        let host = lan.add_host("server", SERVER)?;
        let mut server = Server::start(&host, diskless(), settings)?;
        shown(&mut server, |server| test(lan, server))
    });
}

/// The same beside somebody else's DHCP server, which was there first.
pub(crate) fn with_server_and_neighbour(
    turn: Turn,
    settings: &Settings,
    test: impl FnOnce(&Lan<'_>, &mut Server<'_>, &Neighbour) -> Result<()>,
) {
    with_lan(turn, |lan| {
        let neighbour = neighbour(lan)?;
        let host = lan.add_host("server", SERVER)?;
        let mut server = Server::start(&host, diskless(), settings)?;
        let outcome = shown(&mut server, |server| test(lan, server, &neighbour));
        outcome.with_context(|| format!("the other DHCP server's log:\n{}", neighbour.log()))
    });
}

/// Runs a test on a LAN with a host on which nothing of ours runs yet.
pub(crate) fn with_host(turn: Turn, test: impl FnOnce(&Lan<'_>, &Host<'_>) -> Result<()>) {
    with_lan(turn, |lan| test(lan, &lan.add_host("server", SERVER)?));
}

/// The same with no server of ours yet, only the host it would run on.
pub(crate) fn with_neighbour(turn: Turn, test: impl FnOnce(&Host<'_>, &Neighbour) -> Result<()>) {
    with_lan(turn, |lan| {
        let neighbour = neighbour(lan)?;
        test(&lan.add_host("server", SERVER)?, &neighbour)
    });
}

fn neighbour(lan: &Lan<'_>) -> Result<Neighbour> {
    let router = lan.add_host("router", NEIGHBOUR)?;
    let (first, last) = NEIGHBOUR_POOL;
    Neighbour::start(&router, first, last)
}

fn shown(server: &mut Server<'_>, test: impl FnOnce(&mut Server<'_>) -> Result<()>) -> Result<()> {
    let outcome = test(server);
    outcome.with_context(|| format!("diskless's last words:\n{}", server.log()))
}

fn with_lan(turn: Turn, test: impl FnOnce(&Lan<'_>) -> Result<()>) {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(why) = skipped(turn) {
        eprintln!("skipped: {why}");
        return;
    }
    let run = || -> Result<()> {
        let lab = Lab::new(Ends::WithOwner)?;
        let lan = Lan::new(&lab)?;
        test(&lan)
    };
    if let Err(error) = run() {
        let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
        panic!("{}", causes.join("\n"));
    }
}

/// Why a test is not run now; panics when it should be and cannot.
fn skipped(turn: Turn) -> Option<String> {
    let wanted = std::env::var("DISKLESS_E2E").unwrap_or_default();
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    match wanted.as_str() {
        "all" | "short" => {}
        "" if ci => {}
        "" | "off" => {
            return Some("machines boot in `make test` (DISKLESS_E2E=short or all)".to_owned());
        }
        other => panic!("DISKLESS_E2E={other}: say short, all or off"),
    }
    if let Some(missing) = lab::missing() {
        panic!("{missing}");
    }
    match turn {
        Turn::Pair(number, half) if wanted != "all" && half != half_of_this_commit(number) => {
            Some(format!(
                "the other half of pair {number} has its turn at this commit; make test-all runs both"
            ))
        }
        _ => None,
    }
}

/// One bit of the commit's hash for each pair. Outside a repository: the first.
fn half_of_this_commit(pair: u32) -> Half {
    let head = Command::new("git")
        .args(["-c", "safe.directory=*", "rev-parse", "--short=8", "HEAD"])
        .current_dir(lab::repository())
        .output();
    let hash = head
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok());
    let hash = hash
        .and_then(|text| u32::from_str_radix(text.trim().get(..8)?, 16).ok())
        .unwrap_or(0);
    if hash >> pair & 1 == 0 {
        Half::First
    } else {
        Half::Second
    }
}

/// Imports the tiny guest and returns the golden file the server made of it.
pub(crate) fn import(server: &Server<'_>) -> Result<Golden> {
    let source = lab::tiny()?;
    server.cli(&["image", "import", IMAGE, &source.to_string_lossy()])?;
    let file =
        find(&server.data().join("images"), "disk.raw")?.context("the import left no disk.raw")?;
    let sha256 = lab::sha256(&file)?;
    ensure!(
        sha256 == lab::sha256(&source)?,
        "the golden image is not what was imported"
    );
    Ok(Golden { file, sha256 })
}

/// The golden image's file, as it was when it was imported.
pub(crate) struct Golden {
    file: PathBuf,
    sha256: String,
}

impl Golden {
    /// Nobody has written to it.
    pub(crate) fn is_untouched(&self) -> Result<()> {
        ensure!(
            lab::sha256(&self.file)? == self.sha256,
            "{} has changed",
            self.file.display()
        );
        Ok(())
    }
}

fn find(directory: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(directory).with_context(|| format!("{}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            if let Some(found) = find(&path, name)? {
                return Ok(Some(found));
            }
        } else if path.ends_with(name) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Imports the lab's Debian, whose kernel is signed.
pub(crate) fn import_debian(server: &Server<'_>) -> Result<Golden> {
    let source = lab::debian()?;
    server.cli(&["image", "import", DEBIAN, &source.to_string_lossy()])?;
    let file =
        find(&server.data().join("images"), "disk.raw")?.context("the import left no disk.raw")?;
    let sha256 = lab::sha256(&file)?;
    Ok(Golden { file, sha256 })
}

/// Tells the server of a machine.
pub(crate) fn add(server: &Server<'_>, name: &str, pc: &Pc, mode: &str) -> Result<()> {
    server.cli(&[
        "machine", "add", name, "--mac", &pc.mac, "--image", IMAGE, "--mode", mode,
    ])?;
    Ok(())
}

/// The guest of a PC that was just switched on.
pub(crate) fn booted<'p, 'a>(power: &'p mut Power<'a>) -> Result<Guest<'p, 'a>> {
    Guest::wait(power, Deadline::seconds(BOOT_SECONDS))
}

/// The guest writes; the server is killed with -9 under it and comes back; the
/// guest goes on, and every write that was answered is there.
pub(crate) fn killed_under_a_writer(
    server: &mut Server<'_>,
    guest: &mut Guest<'_, '_>,
    tag: &str,
    first: u32,
) -> Result<u32> {
    guest.start_writer(tag, first)?;
    guest.wait_written(first + 40, Deadline::seconds(120))?;
    server.kill();
    // Long enough for the guest to notice: it pings every 5 s.
    std::thread::sleep(std::time::Duration::from_secs(8));
    let before = guest.last_written().unwrap_or(first);
    server.restart()?;
    guest
        .wait_written(before + 40, Deadline::seconds(180))
        .context("the guest did not go on")?;
    let next = guest.stop_writer()?;
    guest
        .verify(tag, first, next - first)
        .context("an answered write is missing")?;
    Ok(next - first)
}

/// The URL of a machine's boot script.
pub(crate) fn script_url(pc: &Pc) -> String {
    format!("http://{SERVER}/boot.ipxe?mac={}", pc.mac.replace(':', "-"))
}

/// Fetching a running machine's script, from the server's own host and from the
/// machine's address, changes nothing for it.
pub(crate) fn script_is_fetched_by_others(
    server: &Server<'_>,
    guest: &mut Guest<'_, '_>,
    pc: &Pc,
) -> Result<()> {
    let url = script_url(pc);
    let script = server
        .host()
        .run(&["curl", "--silent", "--show-error", "--fail", &url])?;
    ensure!(script.starts_with("#!ipxe"), "{url} is no script: {script}");
    let answer = guest.command(&format!("fetch {url}"))?;
    if !answer.contains(" 200 ") {
        bail!("{url} from the machine itself: {answer}");
    }
    Ok(())
}
