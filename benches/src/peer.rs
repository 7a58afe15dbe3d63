//! The targets that are compared: ours, on a raw file and on a golden image
//! with an overlay, and tgt on the raw file.

use std::io::{self, BufRead, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use disk::overlay::{Caching, Note, OverlayMode, PointId};
use disk::{Access, BaseId, Disk, Overlay, Raw};
use iscsi::{
    Attachment, Authentication, ChapSecrets, Identity, Limits, LogicalUnit, Login, LoginRefusal,
    Server, Target, Targets,
};

use crate::initiator::Address;

const OUR_TARGET: &str = "iqn.2026-01.bench:ours";
const TGT_TARGET: &str = "iqn.2026-01.bench:tgt";
/// Stretches of the disk that lie in the overlay and in the image by turns.
pub(crate) const STRETCH_BYTES: usize = 64 << 10;
/// Restore points of [`Subject::Layered`].
const POINTS: u32 = 16;
/// How often a server that starts is asked whether it is there, 20 ms apart.
const TRIES: u32 = 250;

/// A target under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The peer, on the raw file.
    Tgt,
    /// Ours, on the raw file.
    Raw,
    /// Ours, on a golden image with a `keep` overlay that holds every other
    /// [`STRETCH_BYTES`] of it.
    Overlay,
    /// The same, with [`POINTS`] restore points that share what it holds.
    Layered,
}

impl Subject {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Subject::Tgt => "tgt",
            Subject::Raw => "raw",
            Subject::Overlay => "overlay",
            Subject::Layered => "layered",
        }
    }
}

/// A running target; ended when it is dropped.
pub(crate) struct Running {
    child: Child,
    pub(crate) address: Address,
    /// Of the program itself, whatever it was started through.
    pub(crate) pid: u32,
}

impl Running {
    /// Starts `subject` on the disk in `home`, through `wrapper` (`taskset`,
    /// `valgrind`) where one is given.
    pub(crate) fn start(subject: Subject, home: &Path, wrapper: &[&str]) -> io::Result<Running> {
        match subject {
            Subject::Tgt => start_tgt(home, wrapper),
            _ => start_ours(subject, home, wrapper),
        }
    }

    /// Ends it in order, and waits until it has.
    pub(crate) fn end(mut self) -> io::Result<()> {
        drop(self.child.stdin.take()); // ours ends with its input
        match self.child.wait()?.success() {
            true => Ok(()),
            false => Err(io::Error::other("the target did not end well")),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the disk of all subjects lies.
pub(crate) fn disk_path(home: &Path) -> PathBuf {
    home.join("disk.raw")
}

/// Where the golden image lies that holds the same.
pub(crate) fn image_path(home: &Path) -> PathBuf {
    home.join("image.raw")
}

/// A command that runs through `wrapper`.
fn wrapped(wrapper: &[&str], program: &str) -> Command {
    match wrapper.split_first() {
        None => Command::new(program),
        Some((first, rest)) => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    }
}

fn start_ours(subject: Subject, home: &Path, wrapper: &[&str]) -> io::Result<Running> {
    let program = std::env::current_exe()?;
    let mut child = wrapped(wrapper, &program.to_string_lossy())
        .args(["serve", subject.name()])
        .arg(home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut line)?;
    }
    let pid = child.id();
    let portal = line.trim().parse();
    let running = |portal| Running {
        child,
        address: Address {
            portal,
            target: OUR_TARGET.to_owned(),
            lun: 0,
        },
        pid,
    };
    portal.map(running).map_err(io::Error::other)
}

fn start_tgt(home: &Path, wrapper: &[&str]) -> io::Result<Running> {
    // A port that was free a moment ago; tgt cannot choose one itself.
    let portal = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    // Its control socket is named by a number: ours is the process's.
    let control = std::process::id().to_string();
    let child = wrapped(wrapper, "tgtd")
        .args(["-f", "-C", &control, "--iscsi"])
        .arg(format!("portal={portal}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let pid = child.id();
    let running = Running {
        child,
        address: Address {
            portal,
            target: TGT_TARGET.to_owned(),
            lun: 1,
        },
        pid,
    };
    wait_for(portal)?;
    let tell = |arguments: &[&str]| {
        let output = Command::new("tgtadm")
            .args(["-C", &control, "--lld", "iscsi", "--op"])
            .args(arguments)
            .output()?;
        match output.status.success() {
            true => Ok(()),
            false => Err(io::Error::other(format!(
                "tgtadm {}: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            ))),
        }
    };
    let disk = disk_path(home);
    let disk = disk.to_string_lossy();
    tell(&["new", "--mode", "target", "--tid", "1", "-T", TGT_TARGET])?;
    tell(&[
        "new",
        "--mode",
        "logicalunit",
        "--tid",
        "1",
        "--lun",
        "1",
        "-b",
        &disk,
    ])?;
    tell(&["bind", "--mode", "target", "--tid", "1", "-I", "ALL"])?;
    Ok(running)
}

fn wait_for(portal: SocketAddr) -> io::Result<()> {
    for _ in 0..TRIES {
        if TcpStream::connect(portal).is_ok() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err(io::Error::other(format!("nothing answers at {portal}")))
}

/// Serves `subject` until the input ends: the other half of [`Running`].
pub(crate) fn serve(subject: &str, home: &Path) -> io::Result<()> {
    let disk: Arc<dyn Disk> = match subject {
        "raw" => {
            Arc::new(Raw::open(&disk_path(home), Access::ReadWrite).map_err(io::Error::other)?)
        }
        "overlay" => Arc::new(overlay(home, 0)?),
        "layered" => Arc::new(overlay(home, POINTS)?),
        _ => return Err(io::Error::other("serve raw|overlay|layered HOME")),
    };
    let unit = LogicalUnit::new(disk, Identity::new(*b"bench-the-target", "BENCH"));
    let target = Arc::new(Target::of_one(OUR_TARGET, Arc::new(unit)));
    let portal = SocketAddr::from(([127, 0, 0, 1], 0));
    let limits = Limits {
        sessions_per_target: 1024,
        ..Limits::default()
    };
    let server = Server::bind(&[portal], Arc::new(Site { target }), limits)?;
    println!("{}", server.portals()[0]);
    io::copy(&mut io::stdin(), &mut io::sink())?;
    server.shutdown(Duration::ZERO);
    Ok(())
}

/// A fresh overlay above the disk, half of it written, and that shared evenly
/// among restore points.
fn overlay(home: &Path, points: u32) -> io::Result<Overlay> {
    let image = Raw::open(&image_path(home), Access::ReadOnly).map_err(io::Error::other)?;
    let id = BaseId {
        uuid: [1; 16],
        sha256: [2; 32],
        size_bytes: image.geometry().size_bytes,
    };
    let dir = home.join("overlay");
    if dir.exists() {
        Overlay::remove(&dir).map_err(io::Error::other)?;
    }
    let image = Arc::new(image);
    let mode = OverlayMode::Keep;
    let overlay = Overlay::create(&dir, image.clone(), id, mode, 1, Caching::WriteBack)
        .map_err(io::Error::other)?;
    write_layers(&overlay, &*image, points)?;
    Ok(overlay)
}

/// Writes every other stretch of an image into the overlay above it, with
/// `points` restore points that share them evenly; whatever their number, it
/// reads the same.
pub(crate) fn write_layers(overlay: &Overlay, image: &dyn Disk, points: u32) -> io::Result<()> {
    let stretches = image.geometry().size_bytes / STRETCH_BYTES as u64 / 2;
    let mut stretch = vec![0; STRETCH_BYTES];
    let layers = points.max(1);
    for layer in 0..layers {
        let step = usize::try_from(layers).unwrap_or(1);
        for number in (u64::from(layer)..stretches).step_by(step) {
            let at = 2 * number * STRETCH_BYTES as u64;
            image.read(at, &mut stretch).map_err(io::Error::other)?;
            overlay.write(at, &stretch).map_err(io::Error::other)?;
        }
        if layer < points {
            point(overlay, layer)?;
        }
    }
    overlay.flush().map_err(io::Error::other)
}

/// Makes the restore point with this number.
pub(crate) fn point(overlay: &Overlay, number: u32) -> io::Result<()> {
    let note = Note {
        id: point_id(number),
        created: 1_700_000_000 + u64::from(number),
        automatic: false,
        comment: String::new(),
    };
    overlay.point(note).map(drop).map_err(io::Error::other)
}

/// What the restore point with this number is called.
pub(crate) fn point_id(number: u32) -> PointId {
    let mut id = [0x42; 16];
    id[..4].copy_from_slice(&number.to_be_bytes());
    PointId(id)
}

/// One target for everybody.
struct Site {
    target: Arc<Target>,
}

impl Targets for Site {
    fn authentication(&self, _: &Login) -> Authentication {
        Authentication::None
    }

    fn chap_secret(&self, _: &Login, _: &str) -> Option<ChapSecrets> {
        None
    }

    fn open(&self, login: &Login) -> Result<Attachment, LoginRefusal> {
        if login.target.as_ref() != Some(&self.target.name) {
            return Err(LoginRefusal::NotFound);
        }
        Ok(Attachment {
            target: self.target.clone(),
            guard: Box::new(()),
        })
    }

    fn discover(&self, _: &Login) -> Vec<String> {
        vec![self.target.name.clone()]
    }
}
