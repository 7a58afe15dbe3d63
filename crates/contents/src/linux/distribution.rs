//! Which Linux it is (os-release(5)).

use super::text;
use crate::Tree;

/// A distribution, as it names itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Distribution {
    /// ID: `debian`, `ubuntu`, `fedora`, `rhel`, `opensuse-leap`; empty where
    /// nothing says.
    pub id: String,
    /// ID_LIKE: what it descends from, the nearest first.
    pub like: Vec<String>,
    /// PRETTY_NAME.
    pub name: String,
    /// VERSION_ID; one that is rolled on has none.
    pub version: Option<String>,
}

/// Distributions that boot in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Debian and what descends from it, but for Ubuntu.
    Debian,
    /// Ubuntu and what descends from it.
    Ubuntu,
    /// Fedora, RHEL and what descends from them.
    RedHat,
    /// openSUSE and SLES.
    Suse,
    /// Arch and what descends from it.
    Arch,
    /// Another, or nothing says.
    Other,
}

/// ID, what `/EFI/NAME` it installs its loaders in, and what the titles of its
/// entries begin with.
const KNOWN: [(&str, &str, &str); 13] = [
    ("debian", "debian", "Debian"),
    ("ubuntu", "ubuntu", "Ubuntu"),
    ("fedora", "fedora", "Fedora"),
    ("rhel", "redhat", "Red Hat Enterprise Linux"),
    ("centos", "centos", "CentOS"),
    ("rocky", "rocky", "Rocky Linux"),
    ("almalinux", "almalinux", "AlmaLinux"),
    ("ol", "redhat", "Oracle Linux"),
    ("opensuse-leap", "opensuse", "openSUSE Leap"),
    ("opensuse-tumbleweed", "opensuse", "openSUSE"),
    ("sles", "sles", "SLES"),
    ("sled", "sled", "SLED"),
    ("arch", "arch", "Arch Linux"),
];

impl Distribution {
    /// How it boots.
    pub fn family(&self) -> Family {
        let ids = std::iter::once(&self.id).chain(&self.like);
        for id in ids {
            let family = match id.as_str() {
                "ubuntu" => Family::Ubuntu,
                "debian" => Family::Debian,
                "fedora" | "rhel" | "centos" | "rocky" | "almalinux" | "ol" => Family::RedHat,
                "suse" | "sles" | "sled" => Family::Suse,
                "arch" => Family::Arch,
                id if id.starts_with("opensuse") => Family::Suse,
                _ => continue,
            };
            return family;
        }
        Family::Other
    }

    /// Whether it installs its loaders in `/EFI/NAME`.
    pub(super) fn is_esp(&self, name: &str) -> bool {
        let known = KNOWN.iter().find(|(id, ..)| *id == self.id);
        let esp = known.map_or(self.id.as_str(), |(_, esp, _)| esp);
        !esp.is_empty() && name.eq_ignore_ascii_case(esp)
    }

    /// The one that installs its loaders in `/EFI/NAME`.
    pub(super) fn by_esp(name: &str) -> Option<Distribution> {
        let known = KNOWN.iter();
        let mut known = known.filter(|(_, esp, _)| name.eq_ignore_ascii_case(esp));
        known
            .next()
            .map(|(id, _, title)| Distribution::known(id, title))
    }

    /// The one whose entries have such titles.
    pub(super) fn by_title(title: &str) -> Option<Distribution> {
        let title = title.trim_matches(['"', '\'']);
        let mut known = KNOWN.iter();
        let (id, ..) = known.find(|(.., begins)| title.starts_with(begins))?;
        Some(Distribution::known(id, title))
    }

    fn known(id: &str, name: &str) -> Distribution {
        Distribution {
            id: id.to_owned(),
            name: name.to_owned(),
            ..Distribution::default()
        }
    }
}

/// What a root file system says of itself.
pub(super) fn os_release(root: &Tree) -> Option<Distribution> {
    let text = text(root, "/etc/os-release").or_else(|| text(root, "/usr/lib/os-release"))?;
    parse(&text)
}

fn parse(text: &str) -> Option<Distribution> {
    let mut found = Distribution::default();
    for line in text.lines() {
        let Some((name, value)) = line.trim().split_once('=') else {
            continue;
        };
        let value = shown(&unquote(value));
        match name {
            "ID" => found.id = value,
            "ID_LIKE" => found.like = value.split_whitespace().map(str::to_owned).collect(),
            "PRETTY_NAME" => found.name = value,
            "NAME" if found.name.is_empty() => found.name = value,
            "VERSION_ID" => found.version = Some(value).filter(|value| !value.is_empty()),
            _ => {}
        }
    }
    (!found.id.is_empty()).then_some(found)
}

/// A value without its quotes and what they protect.
fn unquote(value: &str) -> String {
    let value = value.trim();
    for quote in ['"', '\''] {
        let inner = value
            .strip_prefix(quote)
            .and_then(|value| value.strip_suffix(quote));
        if let Some(inner) = inner {
            return match quote {
                '"' => inner
                    .replace("\\\"", "\"")
                    .replace("\\$", "$")
                    .replace("\\\\", "\\"),
                _ => inner.to_owned(),
            };
        }
    }
    value.to_owned()
}

/// No longer than anybody shows, and nothing that moves a cursor.
fn shown(value: &str) -> String {
    let chars = value.chars().filter(|char| !char.is_control());
    chars.take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_is_what_it_says_it_is() {
        let text = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\n\
                    VERSION_ID=\"12\"\nID=debian\n";
        let debian = parse(text).unwrap();
        assert_eq!(debian.name, "Debian GNU/Linux 12 (bookworm)");
        assert_eq!(debian.version.as_deref(), Some("12"));
        assert_eq!(debian.family(), Family::Debian);
        let rocky = parse("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n").unwrap();
        assert_eq!(rocky.family(), Family::RedHat);
        let mint = parse("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n").unwrap();
        assert_eq!(mint.family(), Family::Ubuntu);
        assert_eq!(parse("ID=opensuse-leap").unwrap().family(), Family::Suse);
        assert_eq!(parse("ID=void").unwrap().family(), Family::Other);
        assert_eq!(parse("nothing"), None);
    }

    #[test]
    fn a_value_is_shown_on_one_short_line() {
        let text = format!("ID=x\nPRETTY_NAME='a\u{1b}[2J{}'", "b".repeat(1000));
        let name = parse(&text).unwrap().name;
        assert!(name.starts_with("a[2Jb") && name.chars().count() == 128);
    }

    #[test]
    fn where_the_root_cannot_be_read_its_loaders_and_titles_tell() {
        let fedora = Distribution::by_title("Fedora Linux (6.5.6) 39 (Workstation)").unwrap();
        assert_eq!(
            (fedora.id.as_str(), fedora.family()),
            ("fedora", Family::RedHat)
        );
        assert_eq!(Distribution::by_esp("REDHAT").unwrap().id, "rhel");
        assert!(fedora.is_esp("fedora") && !fedora.is_esp("debian"));
        assert_eq!(Distribution::by_esp("BOOT"), None);
    }
}
