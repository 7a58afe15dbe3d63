//! The kernel's own opinion of a failed sync: an ext4 whose device runs out of
//! room under it. What the kernel shows afterwards the device never took.
//!
//! As root, in a mount namespace that goes with the test.
#![allow(clippy::unwrap_used)] // clippy sees no test outside of #[test] functions

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use disk::overlay::{Caching, HostLoss, OverlayMode};
use disk::{
    Access, BaseId, Disk, DiskError, NewDisk, NewFormat, Opening, Overlay, Ram, SharedDisk,
};

const IN_OWN_MOUNTS: &str = "DISKLESS_IN_OWN_MOUNTS";

/// Where what is lost was written: a block that was written before, and one
/// that was not.
const PLACES: [u64; 2] = [0, 5 << 20];

const DISK_BYTES: usize = 16 << 20;

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|e| format!("{program}: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

/// A file system on a device that can be made to refuse what is new to it.
struct Sick {
    root: PathBuf,
}

impl Sick {
    /// In the namespace this process is in; a mount that cannot be made is
    /// told.
    fn new(root: &Path) -> Result<Sick, String> {
        let sick = Sick {
            root: root.to_owned(),
        };
        for dir in ["pool", "mnt"] {
            fs::create_dir(root.join(dir)).unwrap();
        }
        let (pool, image) = (sick.path("pool"), sick.path("pool/image"));
        run("mount", &["-t", "tmpfs", "-o", "size=64m", "pool", &pool])?;
        let file = fs::File::create(&image).unwrap();
        file.set_len(128 << 20).unwrap();
        // The journal and the tables have their room from the start.
        let lazy = "lazy_journal_init=0,lazy_itable_init=0,nodiscard";
        run("mkfs.ext4", &["-q", "-J", "size=4", "-E", lazy, &image])?;
        sick.mount()?;
        Ok(sick)
    }

    fn path(&self, name: &str) -> String {
        self.root.join(name).to_str().unwrap().to_owned()
    }

    fn mount(&self) -> Result<(), String> {
        let (image, mnt) = (self.path("pool/image"), self.path("mnt"));
        run("mount", &["-o", "loop", &image, &mnt])
    }

    /// The page cache of the file system goes with it.
    fn remount(&self) {
        run("umount", &[&self.path("mnt")]).unwrap();
        self.mount().unwrap();
    }

    /// Whatever is written to a place the device has no room for yet is lost
    /// when it is written back.
    fn refuse(&self) {
        let ballast = fs::File::create(self.path("pool/ballast")).unwrap();
        let mut at = 0;
        while std::os::unix::fs::FileExt::write_at(&ballast, &[1; 4096], at).is_ok() {
            at += 4096;
        }
    }

    fn recover(&self) {
        fs::remove_file(self.path("pool/ballast")).unwrap();
    }
}

/// Runs `judge` in a mount namespace of its own; a machine that lets nobody
/// mount skips at home and fails in CI.
fn in_own_mounts(test: &str, judge: impl FnOnce(Sick)) {
    if std::env::var_os(IN_OWN_MOUNTS).is_some() {
        let root = tempfile::tempdir().unwrap();
        judge(Sick::new(root.path()).unwrap());
        return;
    }
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(8 << 20).unwrap();
    let probe = "mkfs.ext4 -q \"$0\" && mount -o loop \"$0\" /mnt";
    let probe = ["--mount", "sh", "-c", probe, image.path().to_str().unwrap()];
    if let Err(error) = run("unshare", &probe) {
        assert!(std::env::var_os("CI").is_none(), "{error}");
        eprintln!("skipped: no file system can be mounted here: {error}");
        return;
    }
    let copy = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(IN_OWN_MOUNTS, "yes")
        .output()
        .unwrap();
    let said = [copy.stdout, copy.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(copy.status.success() && said.contains("1 passed"), "{said}");
}

fn contents(disk: &(impl Disk + ?Sized)) -> Vec<u8> {
    let mut bytes = vec![0; DISK_BYTES];
    disk.read(0, &mut bytes).unwrap();
    bytes
}

/// Loses a write to a failed sync, opens the disk anew, and holds what it then
/// holds, and calls durable, against what the device has.
fn judge<D: Deref<Target = impl Disk + ?Sized>>(
    sick: &Sick,
    disk: D,
    open: impl Fn() -> D,
    check: impl Fn(&D),
) {
    disk.write(0, &[0x11; 4096]).unwrap();
    disk.flush().unwrap();
    sick.refuse();
    for place in PLACES {
        disk.write(place, &[0x22; 256 << 10]).unwrap();
    }
    let answer = disk.flush();
    assert!(matches!(answer, Err(DiskError::Failed(_))), "{answer:?}");
    drop(disk);
    sick.recover();

    let disk = open();
    check(&disk);
    disk.write(9 << 20, &[0x33; 4096]).unwrap();
    disk.flush().unwrap();
    let shown = contents(&*disk);
    assert!(
        shown[8192..256 << 10].iter().any(|&b| b != 0x22),
        "nothing was lost"
    );
    drop(disk);
    sick.remount();
    assert!(contents(&*open()) == shown, "what was flushed is not there");
}

#[test]
fn a_disk_file_whose_sync_failed_is_read_as_the_device_has_it() {
    let test = "a_disk_file_whose_sync_failed_is_read_as_the_device_has_it";
    in_own_mounts(test, |sick| {
        for (number, format) in [
            NewFormat::Raw,
            NewFormat::VhdDynamic,
            NewFormat::VhdxDynamic,
        ]
        .into_iter()
        .enumerate()
        {
            let path = PathBuf::from(sick.path(&format!("mnt/disk{number}")));
            let new = NewDisk {
                format: format.clone(),
                size_bytes: DISK_BYTES as u64,
                logical_block_bytes: 512,
            };
            let open = || disk::open(&path, &Opening::new(Access::ReadWrite)).unwrap();
            judge(&sick, disk::create(&path, &new).unwrap(), open, |_| ());
        }
    });
}

#[test]
fn an_overlay_whose_sync_failed_has_lost_writes_and_says_so() {
    let test = "an_overlay_whose_sync_failed_has_lost_writes_and_says_so";
    in_own_mounts(test, |sick| {
        let base: SharedDisk = Arc::new(Ram::new(DISK_BYTES).read_only());
        let id = BaseId {
            uuid: [1; 16],
            sha256: [2; 32],
            size_bytes: DISK_BYTES as u64,
        };
        let dir = PathBuf::from(sick.path("mnt/overlay"));
        let caching = Caching::WriteBack;
        let overlay = Overlay::create(&dir, base.clone(), id, OverlayMode::Keep, 1, caching);
        let open = || Box::new(Overlay::open(&dir, base.clone(), id, caching).unwrap());
        judge(&sick, Box::new(overlay.unwrap()), open, |overlay| {
            assert_eq!(overlay.host_loss(), HostLoss::LostWrites);
        });
    });
}
