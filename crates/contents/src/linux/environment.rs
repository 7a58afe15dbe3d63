//! GRUB's environment block, `grubenv`: names and values that outlive a boot.

use super::{MAX_TEXT_BYTES, text};
use crate::{ReadableFile, Tree};

/// Names and values, in order.
pub(super) type Environment = Vec<(String, String)>;

/// Values that are kept in mind.
const MAX_VALUES: usize = 1024;

/// Reads an environment block; empty where there is none.
pub(super) fn read(tree: &Tree, path: &str) -> Environment {
    text(tree, path)
        .map(|text| parse(&text))
        .unwrap_or_default()
}

/// The same of a file that is open.
pub(super) fn of(file: &ReadableFile) -> Environment {
    let bytes = file.read_all(MAX_TEXT_BYTES).unwrap_or_default();
    parse(&String::from_utf8_lossy(&bytes))
}

fn parse(text: &str) -> Environment {
    if !text.starts_with("# GRUB Environment Block") {
        return Vec::new();
    }
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let values = lines.filter_map(|line| line.split_once('='));
    values
        .take(MAX_VALUES)
        .map(|(name, value)| (name.to_owned(), unescape(value)))
        .collect()
}

/// A backslash stands before one that is part of the value.
fn unescape(value: &str) -> String {
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => plain.extend(chars.next()),
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_up_to_the_padding() {
        let block = "# GRUB Environment Block\nsaved_entry=a\\\\b\nkernelopts=root=/dev/x ro\n####";
        let expected = [("saved_entry", "a\\b"), ("kernelopts", "root=/dev/x ro")];
        let found = parse(block);
        let found: Vec<_> = found
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        assert_eq!(found, expected);
        assert!(parse("saved_entry=0\n").is_empty());
    }
}
