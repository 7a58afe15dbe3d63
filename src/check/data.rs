//! Whether the data directory can keep disks.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use rustix::fs::{Access, FallocateFlags, FlockOperation, access, fallocate, flock, statfs};

use super::{Finding, existing};

/// Below this there is no room for a single installed system, in bytes.
const LITTLE_SPACE_BYTES: u64 = 5 * 1024 * 1024 * 1024;

const GIB: u64 = 1024 * 1024 * 1024;

/// What is known of a data directory.
#[derive(Debug)]
struct Facts {
    /// It is there already.
    is_there: bool,
    /// It, or the part of its path that is there, is a directory.
    is_directory: bool,
    /// Writing a file into it; the right to make it where it is not there.
    writing: io::Result<()>,
    /// Punching a hole into a file (UNMAP gives space back that way).
    punching: io::Result<()>,
    /// Locking a file.
    locking: io::Result<()>,
    /// `f_type` of statfs(2).
    file_system: i128,
    /// What is free for us, in bytes.
    free_bytes: u64,
}

/// Looks at the directory; writes a file there and removes it.
pub(super) fn look(directory: &Path) -> Vec<Finding> {
    let facts = facts(directory);
    match facts {
        Ok(facts) => judge(directory, &facts),
        Err(error) => vec![Finding::error(
            format!(
                "the data directory {} cannot be looked at: {error}",
                directory.display()
            ),
            "choose another with the key `data`",
        )],
    }
}

fn facts(directory: &Path) -> io::Result<Facts> {
    let part = existing(directory);
    let stat = statfs(part)?;
    let is_there = part == directory;
    let is_directory = part.is_dir();
    let mut facts = Facts {
        is_there,
        is_directory,
        writing: Ok(()),
        punching: Ok(()),
        locking: Ok(()),
        file_system: i128::from(stat.f_type),
        free_bytes: u64::try_from(i128::from(stat.f_bavail) * i128::from(stat.f_bsize))
            .unwrap_or(u64::MAX),
    };
    if !is_directory {
        return Ok(facts);
    }
    if !is_there {
        facts.writing = access(part, Access::WRITE_OK | Access::EXEC_OK).map_err(io::Error::from);
        return Ok(facts);
    }
    let probe = directory.join(format!(".diskless-check-{}", std::process::id()));
    match OpenOptions::new().write(true).create_new(true).open(&probe) {
        Ok(file) => {
            let _ = std::fs::remove_file(&probe);
            facts.writing = file.set_len(64 * 1024);
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            facts.punching = fallocate(&file, flags, 0, 4096).map_err(io::Error::from);
            facts.locking =
                flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from);
        }
        Err(error) => facts.writing = Err(error),
    }
    Ok(facts)
}

fn judge(directory: &Path, facts: &Facts) -> Vec<Finding> {
    let name = format!("the data directory {}", directory.display());
    let elsewhere = "choose another with the key `data`: it wants a local ext4, XFS or btrfs";
    if !facts.is_directory {
        return vec![Finding::error(
            format!("{name} is not a directory"),
            "choose another with the key `data`",
        )];
    }
    if let Err(error) = &facts.writing {
        let verb = if facts.is_there { "written to" } else { "made" };
        return vec![Finding::error(
            format!("{name} cannot be {verb}: {error}"),
            "run diskless as the user who owns it, or choose another with the key `data`",
        )];
    }
    let mut findings = Vec::new();
    if let Err(error) = &facts.locking {
        findings.push(Finding::error(
            format!("{name} cannot be locked: {error}"),
            elsewhere,
        ));
    }
    match kind(facts.file_system) {
        Kind::Local => {}
        Kind::Remote(what) => findings.push(Finding::warning(
            format!("{name} is on {what}: when that server is away, every machine loses its disk"),
            elsewhere,
        )),
        Kind::Fleeting(what) => findings.push(Finding::warning(
            format!("{name} is on {what}: all images and disks are gone when this computer restarts"),
            elsewhere,
        )),
        Kind::Poor(what) => findings.push(Finding::error(
            format!("{name} is on {what}, which has no sparse files: every disk would need its full size"),
            elsewhere,
        )),
    }
    if let Err(error) = &facts.punching {
        findings.push(Finding::warning(
            format!("{name} cannot punch holes ({error}): what machines delete is not given back"),
            elsewhere,
        ));
    }
    if facts.free_bytes < LITTLE_SPACE_BYTES {
        let tenths = facts.free_bytes * 10 / GIB;
        findings.push(Finding::warning(
            format!("{name} has only {}.{} GiB free", tenths / 10, tenths % 10),
            "make room, or choose another with the key `data`: an installed system takes 2 GiB and more",
        ));
    }
    findings
}

/// What a file system is good for.
enum Kind {
    Local,
    Remote(&'static str),
    Fleeting(&'static str),
    Poor(&'static str),
}

/// By the magic numbers of statfs(2) and linux/magic.h.
fn kind(file_system: i128) -> Kind {
    match file_system {
        0x6969 => Kind::Remote("NFS"),
        0xff53_4d42 | 0xfe53_4d42 | 0x517b => Kind::Remote("SMB"),
        0x00c3_6400 => Kind::Remote("CephFS"),
        0x0102_1994 => Kind::Fleeting("a tmpfs"),
        0x8584_58f6 => Kind::Fleeting("a ramfs"),
        0x4d44 => Kind::Poor("FAT"),
        0x2011_bab0 => Kind::Poor("exFAT"),
        _ => Kind::Local,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::*;

    const EXT4: i128 = 0xef53;

    fn well() -> Facts {
        Facts {
            is_there: true,
            is_directory: true,
            writing: Ok(()),
            punching: Ok(()),
            locking: Ok(()),
            file_system: EXT4,
            free_bytes: 100 * GIB,
        }
    }

    fn one(facts: &Facts) -> Finding {
        let findings = judge(Path::new("/srv/diskless"), facts);
        let [finding] = findings.as_slice() else {
            panic!("{findings:?}")
        };
        finding.clone()
    }

    #[test]
    fn a_local_directory_with_room_is_well() {
        assert_eq!(judge(Path::new("/srv/diskless"), &well()), []);
    }

    #[test]
    fn one_that_cannot_be_written_or_made_is_an_error() {
        let denied = || Err(io::Error::from(io::ErrorKind::PermissionDenied));
        let finding = one(&Facts {
            writing: denied(),
            ..well()
        });
        assert!(
            finding.what.contains("/srv/diskless cannot be written to"),
            "{finding}"
        );
        let finding = one(&Facts {
            writing: denied(),
            is_there: false,
            ..well()
        });
        assert!(finding.what.contains("cannot be made"), "{finding}");
    }

    #[test]
    fn file_systems_that_are_no_home_for_disks_are_told() {
        let severity = |file_system| {
            one(&Facts {
                file_system,
                ..well()
            })
            .severity
        };
        assert_eq!(severity(0x6969), Severity::Warning, "NFS");
        assert_eq!(severity(0x0102_1994), Severity::Warning, "tmpfs");
        assert_eq!(severity(0x4d44), Severity::Error, "FAT");
    }

    #[test]
    fn little_space_is_a_warning_with_the_figure() {
        let finding = one(&Facts {
            free_bytes: GIB * 5 / 2,
            ..well()
        });
        assert!(finding.what.contains("only 2.5 GiB free"), "{finding}");
    }

    #[test]
    fn a_file_in_its_place_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let findings = look(file.path());
        assert!(
            findings[0].what.contains("is not a directory"),
            "{findings:?}"
        );
        let findings = look(&file.path().join("below"));
        assert!(
            findings[0].what.contains("is not a directory"),
            "{findings:?}"
        );
    }

    #[test]
    fn looking_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let facts = facts(directory.path()).unwrap();
        assert!(
            facts.is_there && facts.writing.is_ok() && facts.locking.is_ok(),
            "{facts:?}"
        );
        assert!(facts.free_bytes > 0);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_is_still_to_be_made_is_not_made_by_looking() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        assert!(!facts(&path).unwrap().is_there);
        assert!(!directory.path().join("a").exists());
    }
}
