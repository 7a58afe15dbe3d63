//! `make demo`: a PC without any disk reaches Debian's login prompt.
//!
//! Serves with `diskless` alone inside namespaces of its own, powers on a QEMU
//! PC, shows its console, and prints the machine's boot timeline. Ends with an
//! error when the login prompt does not come.

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use lab::{Deadline, Dhcp, Ends, Firmware, Lab, Lan, Pc, Power, Server, Settings};

/// A hang ends here; on two idle cores it takes about three minutes.
const BOOT_SECONDS: u64 = 900;
/// Between two progress lines where they cannot be written over each other.
const QUIET_PROGRESS: Duration = Duration::from_secs(15);
/// The machine's name, and so the host name at its login prompt.
const MACHINE: &str = "pc1";
const IMAGE: &str = "debian";

/// What the console shows when a stage is reached, and what happens from then on.
const STAGES: [(&str, &str); 11] = [
    ("Booting from ROM", "the network card's boot ROM starts"),
    ("Start PXE over IPv4", "UEFI's PXE asks for an address"),
    ("Downloading NBP file", "UEFI fetches our loader"),
    ("initialising devices", "iPXE starts"),
    ("Configuring (net0", "iPXE asks for an address"),
    ("boot.ipxe", "iPXE has fetched this machine's script"),
    (
        "Registered SAN device",
        "iPXE has logged in to the machine's disk",
    ),
    (
        "Welcome to GRUB",
        "GRUB loads kernel and initramfs from that disk",
    ),
    ("Loading, please wait", "Linux logs in to the same disk"),
    ("Begin: Running", "Linux mounts its root"),
    ("Welcome to", "systemd starts Debian"),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match demo(&arguments.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(arguments: &[&str]) -> Result<ExitCode> {
    if !is_root() {
        return as_root();
    }
    match arguments {
        ["console"] => console().map(|()| ExitCode::SUCCESS),
        ["clean"] => {
            let removed = lab::clean()?;
            println!("demo: removed {removed} left over");
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            let mut firmware = Firmware::Bios;
            let mut keep = false;
            for argument in arguments {
                match *argument {
                    "--firmware=bios" => firmware = Firmware::Bios,
                    "--firmware=uefi" => firmware = Firmware::Uefi,
                    "--keep" => keep = true,
                    other => bail!(
                        "{other} is none of --firmware=bios, --firmware=uefi, --keep, console, clean"
                    ),
                }
            }
            boot(firmware, keep).map(|()| ExitCode::SUCCESS)
        }
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs this again through sudo.
fn as_root() -> Result<ExitCode> {
    eprintln!(
        "demo: network namespaces, tap interfaces and debootstrap belong to root: asking sudo for it"
    );
    let status = Command::new("sudo")
        .arg("-E")
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .status();
    let status = status.context("sudo is not here: run this as root")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn boot(firmware: Firmware, keep: bool) -> Result<()> {
    if let Some(missing) = lab::missing() {
        bail!("{missing}");
    }
    if keep && !Lab::kept()?.is_empty() {
        bail!("one is kept already: `make console` attaches to it, `make clean-demo` ends it");
    }
    let begun = Instant::now();
    let say = |what: &str| println!("demo: [{:3} s] {what}", begun.elapsed().as_secs());
    let image = lab::debian()?;
    say(&format!("image {}", image.display()));

    let lab = Lab::new(if keep {
        Ends::WhenCleaned
    } else {
        Ends::WithOwner
    })?;
    let lan = Lan::new(&lab)?;
    let host = lan.add_host("server", Ipv4Addr::new(10, 77, 0, 1))?;
    let server = Server::start(&host, &program()?, &Settings::new(Dhcp::Full))?;
    say(&format!(
        "diskless serves {} in namespace {}",
        host.address(),
        host.namespace()
    ));
    server.cli(&["image", "import", IMAGE, &image.to_string_lossy()])?;
    let pc = Pc::new(1, firmware);
    server.cli(&[
        "machine", "add", MACHINE, "--mac", &pc.mac, "--image", IMAGE, "--mode", "keep",
    ])?;
    say(&format!("image imported; machine {MACHINE} is {}", pc.mac));

    let mut power = pc.power_on(&lan)?;
    say(&format!(
        "power on: a PC with {firmware:?} firmware, one network card and no disk"
    ));
    let watched = watch(&mut power);
    if lab::interrupted() {
        bail!("interrupted; namespaces and processes are removed");
    }
    if watched.is_err() {
        eprintln!("demo: what diskless said last:\n{}", server.log());
        eprintln!(
            "demo: the machine's timeline:\n{}",
            server
                .cli(&["machine", "timeline", MACHINE])
                .unwrap_or_default()
        );
    }
    watched?;
    say("login prompt");
    println!("\n{}", server.cli(&["machine", "timeline", MACHINE])?);

    if keep {
        std::fs::write(
            lab.sockets().join("console"),
            power.console_socket().as_os_str().as_encoded_bytes(),
        )?;
        lab.keep()?;
        let inside = format!(
            "ip netns exec {} {} --api {}",
            host.namespace(),
            program()?.display(),
            server.socket().display()
        );
        println!(
            "It keeps running.\n\
             \x20 log in:      make console       (root, password diskless; Ctrl-] leaves)\n\
             \x20 look at it:  sudo {inside} status\n\
             \x20              sudo {inside} machine timeline {MACHINE}\n\
             \x20 its logs:    {}\n\
             \x20 stop it:     make clean-demo",
            lab.work().display()
        );
        power.release();
        server.release();
    }
    Ok(())
}

/// The `diskless` built beside this program.
fn program() -> Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name("diskless");
    if !program.exists() {
        bail!(
            "{} is not there: build it first (make demo does)",
            program.display()
        );
    }
    Ok(program)
}

/// Shows the console until the login prompt.
fn watch(power: &mut Power<'_>) -> Result<()> {
    let begun = Instant::now();
    let deadline = Deadline::seconds(BOOT_SECONDS);
    let mut screen = Screen {
        live: std::io::stdout().is_terminal(),
        said: Instant::now(),
        progress: false,
    };
    let mut shown = 0;
    let mut stage = "the firmware starts";
    loop {
        let (new, _) = power.console().text_from(shown);
        // Whole lines only; the prompt, which has no end, is looked for in all.
        let whole = new.rfind('\n').map_or(0, |end| end + 1);
        for line in new[..whole].lines().filter(|line| !line.trim().is_empty()) {
            screen.line(line);
            if let Some((_, what)) = STAGES.iter().find(|(sign, _)| line.contains(sign)) {
                stage = what;
            }
        }
        shown += whole;
        let rest = &new[whole..];
        if rest.contains(" login:") {
            screen.line(rest);
            return Ok(());
        }
        if let Some((_, what)) = STAGES.iter().find(|(sign, _)| rest.contains(sign)) {
            stage = what;
        }
        screen.progress(begun.elapsed(), stage);
        if let Err(error) = deadline.pause() {
            screen.clear();
            bail!(
                "{error} after {} s, while {stage}; the console ends:\n{}",
                begun.elapsed().as_secs(),
                power.console().tail()
            );
        }
    }
}

/// Our terminal: the PC's lines, and under them one that tells the time.
struct Screen {
    /// A terminal, where a line can be written over.
    live: bool,
    said: Instant,
    progress: bool,
}

impl Screen {
    fn line(&mut self, line: &str) {
        self.clear();
        println!("  | {}", line.trim_end());
        self.said = Instant::now();
    }

    fn progress(&mut self, elapsed: Duration, stage: &str) {
        let text = format!("    {:3} s, waiting: {stage}", elapsed.as_secs());
        if self.live {
            print!("\r\x1b[K{text}");
            // A terminal that has gone is noticed by the next println.
            let _ = std::io::stdout().flush();
            self.progress = true;
        } else if self.said.elapsed() > QUIET_PROGRESS {
            println!("{text}");
            self.said = Instant::now();
        }
    }

    fn clear(&mut self) {
        if self.progress {
            print!("\r\x1b[K");
            self.progress = false;
        }
    }
}

/// Joins this terminal to the console of the PC that was kept.
fn console() -> Result<()> {
    let kept = Lab::kept()?;
    let Some(record) = kept.first() else {
        bail!("no demo was kept: `make demo KEEP=1` keeps one")
    };
    let socket = PathBuf::from(
        std::fs::read_to_string(record.join("console")).context("the kept demo has no console")?,
    );
    let stream = UnixStream::connect(Path::new(&socket))
        .context("connecting to its console: is another `make console` open?")?;
    println!("demo: joined to {MACHINE}'s console; Ctrl-] leaves; press Enter for a prompt");
    let _raw = Raw::terminal();
    let mut from = stream.try_clone()?;
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let count = from.read(&mut buffer).unwrap_or(0);
            let mut out = std::io::stdout();
            if count == 0
                || out
                    .write_all(&buffer[..count])
                    .and_then(|()| out.flush())
                    .is_err()
            {
                return;
            }
        }
    });
    let mut to = stream;
    let mut keys = [0; 256];
    loop {
        let count = std::io::stdin().read(&mut keys)?;
        // Ctrl-]
        if count == 0 || keys[..count].contains(&0x1d) {
            return Ok(());
        }
        to.write_all(&keys[..count]).context("the PC went off")?;
    }
}

/// A terminal that hands over every key; as it was when this is dropped.
struct Raw;

impl Raw {
    fn terminal() -> Option<Raw> {
        let done = Command::new("stty").args(["raw", "-echo"]).status();
        done.is_ok_and(|status| status.success()).then_some(Raw)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = Command::new("stty").arg("sane").status();
        println!();
    }
}
