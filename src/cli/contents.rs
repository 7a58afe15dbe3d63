//! What lies inside a disk, shown.

use super::show::{bytes, details, or_dash, table};
use crate::api::contents::{BootFile, Contents};

/// Partitions in a table, and below it the Linux that boots, or why none does.
pub(super) fn text(contents: &Contents) -> String {
    let rows = contents.partitions.iter().map(|part| {
        [
            match part.number {
                0 => "-".to_owned(),
                number => number.to_string(),
            },
            bytes(part.size_bytes),
            part.format.clone(),
            or_dash(part.label.as_ref()),
            or_dash(part.uuid.as_ref()),
        ]
    });
    let header = ["PARTITION", "SIZE", "HOLDS", "LABEL", "UUID"];
    let mut text = table(header, &[0, 1], rows);
    text.push_str("\n\n");
    let Some(linux) = &contents.linux else {
        let why_not = contents.why_not.as_deref().unwrap_or_default();
        text.push_str(&format!("no Linux that boots: {why_not}"));
        return text;
    };
    let file = |file: &BootFile| format!("{} ({})", file.path, bytes(file.size_bytes));
    let mut facts = vec![
        ("Linux", linux.name.clone()),
        ("entry", or_dash(linux.title.as_ref())),
        ("said by", or_dash(linux.source.as_ref())),
        ("kernel", file(&linux.kernel)),
    ];
    facts.extend(linux.initrds.iter().map(|initrd| ("initrd", file(initrd))));
    facts.push(("arguments", linux.arguments.clone()));
    text.push_str(&details(facts));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::contents::{Linux, Part};

    #[test]
    fn a_disk_is_shown_with_its_linux_or_with_why_there_is_none() {
        let file = |path: &str| BootFile {
            path: path.into(),
            size_bytes: 3 << 20,
        };
        let mut contents = Contents {
            table: "gpt".into(),
            partitions: vec![Part {
                number: 2,
                start_bytes: 1 << 20,
                size_bytes: 1 << 30,
                format: "ext4".into(),
                uuid: Some("1234".into()),
                label: None,
            }],
            linux: Some(Linux {
                name: "Debian GNU/Linux 12 (bookworm)".into(),
                id: "debian".into(),
                title: None,
                source: Some("/boot/grub/grub.cfg".into()),
                boot_partition: 2,
                kernel: file("/boot/vmlinuz-6"),
                initrds: vec![file("/boot/initrd.img-6")],
                arguments: "root=UUID=1234 ro".into(),
            }),
            why_not: None,
        };
        let expected = "\
PARTITION      SIZE  HOLDS  LABEL  UUID
        2  1.00 GiB  ext4   -      1234

Linux      Debian GNU/Linux 12 (bookworm)
entry      -
said by    /boot/grub/grub.cfg
kernel     /boot/vmlinuz-6 (3.00 MiB)
initrd     /boot/initrd.img-6 (3.00 MiB)
arguments  root=UUID=1234 ro
";
        assert_eq!(text(&contents), expected);
        contents.linux = None;
        contents.why_not = Some("partition 2 holds XFS".into());
        let shown = text(&contents);
        assert!(
            shown.ends_with("no Linux that boots: partition 2 holds XFS"),
            "{shown}"
        );
    }
}
