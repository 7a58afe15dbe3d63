//! `/etc/fstab`: which file system is mounted where.

use super::text;
use crate::Tree;

/// A line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) what: Name,
    pub(super) at: String,
}

/// How a file system is named.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    Uuid(String),
    Label(String),
    PartUuid(String),
    PartLabel(String),
    /// `/dev/sda2`: the partition of the disk, which has another name now.
    Number(u32),
    /// A volume of LVM, a share, no partition of this disk.
    Other,
}

/// Lines that are looked at.
const MAX_LINES: usize = 1024;

/// What the fstab of a root file system says; nothing where there is none.
pub(super) fn read(root: &Tree) -> Vec<Mount> {
    let text = text(root, "/etc/fstab").unwrap_or_default();
    text.lines().take(MAX_LINES).filter_map(parse).collect()
}

fn parse(line: &str) -> Option<Mount> {
    let mut fields = line.split_whitespace();
    let what = fields.next().filter(|first| !first.starts_with('#'))?;
    let at = fields.next()?;
    let at = match at.trim_end_matches('/') {
        "" if at.starts_with('/') => "/",
        at => at,
    };
    Some(Mount {
        what: name(what),
        at: at.to_owned(),
    })
}

fn name(what: &str) -> Name {
    let tagged = what.split_once('=');
    let (tag, value) = tagged.unwrap_or(("", what));
    let value = value.trim_matches('"');
    match tag.to_ascii_uppercase().as_str() {
        "UUID" => return Name::Uuid(value.to_owned()),
        "LABEL" => return Name::Label(unescape(value, "\\")),
        "PARTUUID" => return Name::PartUuid(value.to_owned()),
        "PARTLABEL" => return Name::PartLabel(unescape(value, "\\")),
        _ => {}
    }
    for (directory, make) in [
        ("/dev/disk/by-uuid/", Name::Uuid as fn(String) -> Name),
        ("/dev/disk/by-label/", Name::Label),
        ("/dev/disk/by-partuuid/", Name::PartUuid),
        ("/dev/disk/by-partlabel/", Name::PartLabel),
    ] {
        if let Some(name) = what.strip_prefix(directory) {
            return make(unescape(name, "\\x"));
        }
    }
    partition_number(what).map_or(Name::Other, Name::Number)
}

/// `/dev/sda2`, `/dev/vdb1`, `/dev/nvme0n1p3`.
fn partition_number(device: &str) -> Option<u32> {
    let name = device.strip_prefix("/dev/")?;
    let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (disk, number) = name.split_at(name.len() - digits);
    let number = number.parse().ok()?;
    let is_disk = |kinds: &[&str], end: &str| {
        let disk = disk.strip_suffix(end);
        disk.is_some_and(|disk| kinds.iter().any(|kind| disk.starts_with(kind)))
    };
    let is_known = is_disk(&["sd", "vd", "hd", "xvd"], "") || is_disk(&["nvme", "mmcblk"], "p");
    is_known.then_some(number)
}

/// `\040` and, by udev, `\x20`: spaces and the like.
fn unescape(name: &str, mark: &str) -> String {
    let (digits, radix) = if mark == "\\x" { (2, 16) } else { (3, 8) };
    let mut plain = Vec::new();
    let mut rest = name;
    while let Some(at) = rest.find(mark) {
        plain.extend_from_slice(&rest.as_bytes()[..at]);
        let code = rest.get(at + mark.len()..at + mark.len() + digits);
        match code.and_then(|code| u8::from_str_radix(code, radix).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &rest[at + mark.len() + digits..];
            }
            None => {
                plain.extend_from_slice(mark.as_bytes());
                rest = &rest[at + mark.len()..];
            }
        }
    }
    plain.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_name_a_file_system_is_known() {
        let named = |what: &str| {
            parse(&format!("{what} /boot ext4 defaults 0 2"))
                .unwrap()
                .what
        };
        assert_eq!(named("UUID=1234-abcd"), Name::Uuid("1234-abcd".into()));
        assert_eq!(named("UUID=\"1234\""), Name::Uuid("1234".into()));
        assert_eq!(named("LABEL=my\\040boot"), Name::Label("my boot".into()));
        assert_eq!(named("PARTUUID=1-02"), Name::PartUuid("1-02".into()));
        assert_eq!(named("PARTLABEL=boot"), Name::PartLabel("boot".into()));
        assert_eq!(named("/dev/disk/by-uuid/1234"), Name::Uuid("1234".into()));
        let label = named("/dev/disk/by-label/my\\x20boot");
        assert_eq!(label, Name::Label("my boot".into()));
        for device in ["/dev/sda12", "/dev/vdb12", "/dev/nvme0n1p12"] {
            assert_eq!(named(device), Name::Number(12), "{device}");
        }
        for device in ["/dev/mapper/vg-boot", "/dev/sda", "server:/boot", "tmpfs"] {
            assert_eq!(named(device), Name::Other, "{device}");
        }
    }

    #[test]
    fn what_is_no_mount_is_passed_over() {
        assert_eq!(parse("# UUID=1 /boot ext4"), None);
        assert_eq!(parse("   "), None);
        assert_eq!(parse("UUID=1"), None);
        assert_eq!(parse("UUID=1 /").unwrap().at, "/");
        assert_eq!(parse("UUID=1 /boot/ ext4").unwrap().at, "/boot");
    }
}
