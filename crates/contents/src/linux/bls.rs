//! Entries by the Boot Loader Specification: a file of each in
//! `loader/entries`.

use super::entries::{Entry, arguments, title};
use super::{Source, text, version};
use crate::Tree;

/// An entry, with variables of GRUB's still in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LoaderEntry {
    pub(super) path: String,
    /// Name of its file, without `.conf`.
    pub(super) id: String,
    pub(super) title: String,
    pub(super) linux: String,
    pub(super) initrds: Vec<String>,
    pub(super) options: String,
}

/// Entries of one directory that are read.
const MAX_ENTRIES: usize = 256;
/// Bytes of one of them.
const MAX_ENTRY_BYTES: u64 = 64 << 10;

/// The entries in `DIRECTORY/entries`, the newest first.
pub(super) fn entries(tree: &Tree, directory: &str) -> Vec<LoaderEntry> {
    let directory = format!("{directory}/entries");
    let list = tree.list(&directory).unwrap_or_default();
    let ids = list
        .iter()
        .filter_map(|entry| entry.name.strip_suffix(".conf"));
    let read = |id: &str| {
        let path = format!("{directory}/{id}.conf");
        let file = tree.open_file(&path).ok()?;
        let bytes = file.read_all(MAX_ENTRY_BYTES).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        Some(LoaderEntry {
            path,
            id: id.to_owned(),
            ..parse(&text)?
        })
    };
    let mut found: Vec<LoaderEntry> = ids.take(MAX_ENTRIES).filter_map(read).collect();
    found.sort_by(|a, b| version::compare(&b.id, &a.id).then_with(|| b.id.cmp(&a.id)));
    found
}

/// The entry that a loader which reads nothing else boots (`systemd-boot`):
/// that of `loader.conf`, or the newest.
pub(super) fn chosen(tree: &Tree, directory: &str) -> Option<Entry> {
    let entries = entries(tree, directory);
    let settings = text(tree, &format!("{directory}/loader.conf")).unwrap_or_default();
    let wanted = settings.lines().find_map(|line| {
        let (name, value) = line.trim().split_once(char::is_whitespace)?;
        (name == "default").then(|| value.trim().trim_end_matches(".conf").to_owned())
    });
    let by_name = wanted.and_then(|wanted| {
        let mut matching = entries.iter();
        matching.find(|entry| matches(&wanted, &entry.id))
    });
    let entry = by_name.or_else(|| entries.first())?;
    Some(Entry {
        title: Some(title(&entry.title)).filter(|title| !title.is_empty()),
        source: Source::LoaderEntry(entry.path.clone()),
        kernel: entry.linux.clone(),
        initrds: entry.initrds.clone(),
        arguments: arguments(entry.options.split_whitespace()),
    })
}

fn parse(text: &str) -> Option<LoaderEntry> {
    let mut entry = LoaderEntry::default();
    for line in text.lines() {
        let Some((name, value)) = line.trim().split_once(char::is_whitespace) else {
            continue;
        };
        let value = value.trim();
        match name {
            "title" => entry.title = value.to_owned(),
            "linux" => entry.linux = value.to_owned(),
            "initrd" => entry
                .initrds
                .extend(value.split_whitespace().map(str::to_owned)),
            "options" => {
                entry.options.push(' ');
                entry.options.push_str(value);
            }
            _ => {}
        }
    }
    entry.options = entry.options.trim().to_owned();
    (!entry.linux.is_empty()).then_some(entry)
}

/// Whether a name is what a pattern with `*` means.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty(); // no star
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_its_fields() {
        let text = "title Fedora Linux (6.5.6) 39\nversion 6.5.6\nlinux /vmlinuz-6.5.6\n\
                    initrd /microcode.img /initramfs-6.5.6.img\ninitrd $tuned_initrd\n\
                    options root=UUID=1 ro\noptions quiet\n# a comment\ngrub_class fedora\n";
        let entry = parse(text).unwrap();
        assert_eq!(entry.title, "Fedora Linux (6.5.6) 39");
        assert_eq!(entry.linux, "/vmlinuz-6.5.6");
        assert_eq!(
            entry.initrds,
            ["/microcode.img", "/initramfs-6.5.6.img", "$tuned_initrd"]
        );
        assert_eq!(entry.options, "root=UUID=1 ro quiet");
        assert_eq!(parse("title Windows\nefi /EFI/Microsoft/x.efi\n"), None);
    }

    #[test]
    fn a_star_stands_for_anything() {
        assert!(matches("*-6.5*", "abc-6.5.6"));
        assert!(matches("abc*", "abc"));
        assert!(matches("abc", "abc"));
        assert!(!matches("abc", "abcd"));
        assert!(!matches("*-6.5", "abc-6.5.6"));
        assert!(!matches("ab*bc", "abc"));
    }
}
