//! Tests of `export`.

use std::process::Command;

use super::*;
use crate::inventory::Name;
use crate::inventory::tests::Site;

/// An image of 20 MiB with data in some places, and its bytes.
fn image(site: &Site) -> (ImageRef, Vec<u8>) {
    let mut bytes = vec![0; 20 << 20];
    for (at, length) in [(0, 512), (3_000_000, 70_000), (19 << 20, 1 << 20)] {
        bytes[at..at + length].fill(0x5a);
    }
    let source = site.directory().join("source.raw");
    fs::write(&source, &bytes).unwrap();
    site.import_and_wait("debian", &source).unwrap();
    let meant = ImageRef {
        name: Name::parse("debian").unwrap(),
        version: None,
    };
    (meant, bytes)
}

fn to(path: PathBuf) -> Export {
    Export {
        path,
        format: None,
        existing: Existing::Stays,
    }
}

fn export_and_wait(site: &Site, meant: &ImageRef, export: Export) -> Result<Exported, String> {
    let job = site
        .export_image(meant, export)
        .map_err(|e| e.to_string())?;
    match site.ended(job.id)? {
        Outcome::Exported(exported) => Ok(exported),
        other => panic!("{other:?}"),
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    entries.map(name).collect()
}

/// Whether `qemu-img` is here; in CI it must be.
fn qemu_is_here() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        assert!(std::env::var_os("CI").is_none(), "qemu-img is missing");
        eprintln!("skipped: qemu-img is not installed");
    }
    found
}

#[test]
fn every_format_holds_what_the_image_holds() {
    let site = Site::new();
    let (meant, bytes) = image(&site);
    let pool = site.directory().join("pool");
    fs::create_dir(&pool).unwrap();
    for (name, format, qemu) in [
        ("a.raw", None, "raw"),
        ("a.vhd", None, "vpc"),
        ("fixed.vhd", Some(ExportFormat::VhdFixed), "vpc"),
        ("a.vhdx", None, "vhdx"),
        ("a.qcow2", None, "qcow2"),
    ] {
        let export = Export {
            format,
            ..to(pool.join(name))
        };
        let exported = export_and_wait(&site, &meant, export).unwrap();
        assert_eq!(exported.path, pool.canonicalize().unwrap().join(name));
        assert_eq!(exported.size_bytes, 20 << 20);
        let image = site.import_and_wait("back", &exported.path).unwrap();
        assert!(fs::read(image.disk_path()).unwrap() == bytes, "{name}");
        if qemu_is_here() {
            let source = site.directory().join("source.raw");
            let judged = Command::new("qemu-img")
                .args(["compare", "-f", qemu, "-F", "raw"])
                .args([&exported.path, &source])
                .output()
                .unwrap();
            assert!(judged.status.success(), "{name}: {judged:?}");
        }
    }
    assert_eq!(names(&pool).len(), 5, "nothing else is left");
}

#[test]
fn a_file_that_is_there_stays_unless_it_is_to_be_replaced() {
    let site = Site::new();
    let (meant, _) = image(&site);
    let path = site.directory().join("a.qcow2");
    fs::write(&path, "precious").unwrap();
    let refusal = export_and_wait(&site, &meant, to(path.clone())).unwrap_err();
    assert!(refusal.contains("is there already"), "{refusal}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    let export = Export {
        existing: Existing::IsReplaced,
        ..to(path.clone())
    };
    export_and_wait(&site, &meant, export).unwrap();
    assert!(fs::read(&path).unwrap().starts_with(b"QFI\xfb"));
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn a_name_taken_meanwhile_is_not_written_over() {
    let site = Site::new();
    let path = site.directory().join("a.raw");
    let target = Target::check(site.data(), to(path.clone())).unwrap();
    fs::write(target.unfinished.path(), "new").unwrap();
    fs::write(&path, "precious").unwrap();
    let refusal = target.publish().unwrap_err().to_string();
    assert!(refusal.contains("is there already"), "{refusal}");
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_link_put_in_place_of_the_file_gives_nothing_away() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let site = Site::new();
    let victim = site.directory().join("victim");
    fs::write(&victim, "precious").unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o640)).unwrap();
    let make: [fn(&Path, &Path) -> io::Result<()>; 2] = [
        |victim, link| symlink(victim, link),
        |victim, link| fs::hard_link(victim, link),
    ];
    for make in make {
        let path = site.directory().join("a.raw");
        let target = Target::check(site.data(), to(path.clone())).unwrap();
        make(&victim, target.unfinished.path()).unwrap();
        let refusal = target.publish().unwrap_err();
        assert_eq!(
            fs::metadata(&victim).unwrap().mode() & 0o777,
            0o640,
            "{refusal}"
        );
        assert!(path.symlink_metadata().is_err());
        fs::remove_file(target.unfinished.path()).unwrap();
    }
}

#[test]
fn a_target_that_cannot_be_is_refused_at_once() {
    let site = Site::new();
    let (meant, _) = image(&site);
    for (path, what) in [
        (PathBuf::from("a.raw"), "must begin with"),
        (PathBuf::from("/"), "no name of a file"),
        (site.directory().join("a.disk"), "--format"),
        (
            PathBuf::from("/nowhere/a.raw"),
            "cannot write into /nowhere",
        ),
        (site.data().join("images/a.raw"), "data directory"),
        (
            site.data().join("images/debian/v001/disk.raw"),
            "data directory",
        ),
        (PathBuf::from("/dev/null.raw/a.raw"), "cannot write into"),
    ] {
        let refusal = site.export_image(&meant, to(path)).unwrap_err().to_string();
        assert!(refusal.contains(what), "{refusal}");
    }
    let device = Export {
        format: Some(ExportFormat::Raw),
        existing: Existing::IsReplaced,
        ..to(PathBuf::from("/dev/null"))
    };
    let refusal = site.export_image(&meant, device).unwrap_err().to_string();
    assert!(refusal.contains("is no file"), "{refusal}");
}

/// A disk that can be read up to a point.
struct Damaged;

impl Disk for Damaged {
    fn geometry(&self) -> disk::Geometry {
        disk::Geometry {
            size_bytes: 8 << 20,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
        }
    }

    fn access(&self) -> disk::Access {
        disk::Access::ReadOnly
    }

    fn durability(&self) -> disk::Durability {
        disk::Durability::WriteBack
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        if offset > 4 << 20 {
            return Err(DiskError::Corrupt("a bad block".to_owned()));
        }
        buffer.fill(1);
        Ok(())
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn unmap(&self, _offset: u64, _bytes: u64) -> Result<(), DiskError> {
        Err(DiskError::ReadOnly)
    }
}

#[test]
fn an_export_that_fails_leaves_nothing() {
    let site = Site::new();
    let pool = site.directory().join("pool");
    fs::create_dir(&pool).unwrap();
    for name in ["a.raw", "a.vhd", "a.vhdx", "a.qcow2"] {
        let export = to(pool.join(name));
        let job = site.start_export("bad", std::sync::Arc::new(Damaged), None, export);
        let why = site.ended(job.unwrap().id).unwrap_err();
        assert!(why.contains("a bad block"), "{why}");
        assert!(names(&pool).is_empty(), "{name}");
    }
}
