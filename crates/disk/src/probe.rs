//! What a file is, told from its bytes.
//!
//! Asked before an import or an in-place use, so that a format we do not read
//! is refused with the command that converts it. Signatures: VHD 1.0 (footer
//! `conectix`), MS-VHDX 2.1 (`vhdxfile`), qcow2 (`QFI\xfb`), VMDK (`KDMV`,
//! `# Disk DescriptorFile`), VDI (0xBEDA107F at 64), ISO 9660 (`CD001` at
//! 32769), gzip (RFC 1952), xz, zstd (RFC 8878), bzip2.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{SeekFrom, seek};

use crate::DiskError;

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// No signature known: bytes of a disk as they are.
    Raw,
    /// A CD or DVD image; as a disk it is raw with blocks of 2048.
    Iso9660,
    /// Microsoft's VHD.
    Vhd(VhdKind),
    /// Microsoft's VHDX.
    Vhdx,
    /// QEMU's qcow, version 1 to 3.
    Qcow2,
    /// VMware's VMDK.
    Vmdk,
    /// VirtualBox's VDI.
    Vdi,
    /// A compressed file, whatever is inside.
    Compressed(Compression),
}

/// The three kinds of a VHD (footer field "Disk Type").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VhdKind {
    /// Type 2: raw bytes, then the footer.
    Fixed,
    /// Type 3: allocated as it is written.
    Dynamic,
    /// Type 4: needs its parent.
    Differencing,
    /// Any other type.
    Unknown,
}

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// gzip, RFC 1952.
    Gzip,
    /// xz.
    Xz,
    /// zstd, RFC 8878.
    Zstd,
    /// bzip2.
    Bzip2,
}

/// Tells what the file or block device at `path` is.
pub fn probe(path: &Path) -> Result<Format, DiskError> {
    let failed = |source: io::Error| DiskError::Io {
        context: format!("reading {}", path.display()),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let size_bytes = seek(&file, SeekFrom::End(0)).map_err(|e| failed(e.into()))?;
    let at = |offset: u64, bytes: &mut [u8]| -> Result<bool, DiskError> {
        match file.read_exact_at(bytes, offset) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(failed(error)),
        }
    };

    let mut head = [0; 72];
    let head_bytes = if at(0, &mut head)? {
        head.len()
    } else {
        // Shorter than the head: what there is, for the shortest signatures.
        let length = usize::try_from(size_bytes).unwrap_or(0).min(head.len());
        at(0, &mut head[..length])?;
        length
    };
    let head = &head[..head_bytes];
    let signatures: [(&[u8], Format); 9] = [
        (b"vhdxfile", Format::Vhdx),
        (b"QFI\xfb", Format::Qcow2),
        (b"KDMV", Format::Vmdk),
        (b"COWD", Format::Vmdk),
        (b"# Disk DescriptorFile", Format::Vmdk),
        (b"\x1f\x8b\x08", Format::Compressed(Compression::Gzip)),
        (b"\xfd7zXZ\0", Format::Compressed(Compression::Xz)),
        (b"\x28\xb5\x2f\xfd", Format::Compressed(Compression::Zstd)),
        (b"BZh", Format::Compressed(Compression::Bzip2)),
    ];
    if let Some((_, format)) = signatures.iter().find(|(s, _)| head.starts_with(s)) {
        return Ok(*format);
    }
    if head.get(64..68) == Some(&[0x7f, 0x10, 0xda, 0xbe]) {
        return Ok(Format::Vdi);
    }

    // The footer is the last 512 bytes; very old writers left one byte off.
    for footer_bytes in [512, 511] {
        let mut footer = [0; 64];
        if let Some(offset) = u64::checked_sub(size_bytes, footer_bytes)
            && at(offset, &mut footer)?
            && footer.starts_with(b"conectix")
        {
            return Ok(Format::Vhd(vhd_kind(&footer)));
        }
    }
    // A dynamic VHD carries a copy of its footer at the front.
    if head.starts_with(b"conectix") {
        return Ok(Format::Vhd(vhd_kind(head)));
    }

    let mut descriptor = [0; 5];
    if at(32769, &mut descriptor)? && &descriptor == b"CD001" {
        return Ok(Format::Iso9660);
    }
    Ok(Format::Raw)
}

impl Format {
    /// The name `qemu-img` knows the format by, where it knows it.
    pub fn qemu_name(&self) -> Option<&'static str> {
        match self {
            Format::Raw | Format::Iso9660 => Some("raw"),
            Format::Vhd(_) => Some("vpc"),
            Format::Vhdx => Some("vhdx"),
            Format::Qcow2 => Some("qcow2"),
            Format::Vmdk => Some("vmdk"),
            Format::Vdi => Some("vdi"),
            Format::Compressed(_) => None,
        }
    }

    /// `None` when the bytes of the file are the bytes of a disk; else one
    /// sentence that says what `path` is and which command makes a disk of it.
    pub fn advice(&self, path: &Path) -> Option<String> {
        let shown = path.display();
        let target = path.with_extension("raw");
        let target = target.display();
        match self {
            Format::Raw | Format::Iso9660 => None,
            Format::Compressed(compression) => Some(format!(
                "{shown} is compressed: unpack it first ({} {shown})",
                compression.command()
            )),
            Format::Vhd(VhdKind::Differencing) => Some(format!(
                "{shown} is a differencing VHD and needs its parent beside it: \
                 flatten it first (qemu-img convert -f vpc -O raw {shown} {target})"
            )),
            other => Some(format!(
                "{shown} is {}, not a raw image: convert it first \
                 (qemu-img convert -f {} -O raw {shown} {target})",
                other.article_and_name(),
                other.qemu_name().unwrap_or("raw"),
            )),
        }
    }

    fn article_and_name(&self) -> &'static str {
        match self {
            Format::Raw => "a raw image",
            Format::Iso9660 => "an ISO 9660 image",
            Format::Vhd(VhdKind::Fixed) => "a fixed VHD",
            Format::Vhd(VhdKind::Dynamic) => "a dynamic VHD",
            Format::Vhd(VhdKind::Differencing) => "a differencing VHD",
            Format::Vhd(VhdKind::Unknown) => "a VHD of unknown type",
            Format::Vhdx => "a VHDX file",
            Format::Qcow2 => "a qcow2 file",
            Format::Vmdk => "a VMDK file",
            Format::Vdi => "a VDI file",
            Format::Compressed(_) => "a compressed file",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.article_and_name();
        f.write_str(name.split_once(' ').map_or(name, |(_, name)| name))
    }
}

impl Compression {
    /// The command that unpacks a file on its way through a pipe.
    pub fn pipe(self) -> &'static str {
        match self {
            Compression::Gzip => "zcat FILE.gz",
            Compression::Xz => "xzcat FILE.xz",
            Compression::Zstd => "zstdcat FILE.zst",
            Compression::Bzip2 => "bzcat FILE.bz2",
        }
    }

    fn command(self) -> &'static str {
        match self {
            Compression::Gzip => "gunzip -k",
            Compression::Xz => "unxz -k",
            Compression::Zstd => "unzstd",
            Compression::Bzip2 => "bunzip2 -k",
        }
    }
}

/// The kind in a footer: "Disk Type", big-endian, at 60.
fn vhd_kind(footer: &[u8]) -> VhdKind {
    match footer.get(60..64) {
        Some([0, 0, 0, 2]) => VhdKind::Fixed,
        Some([0, 0, 0, 3]) => VhdKind::Dynamic,
        Some([0, 0, 0, 4]) => VhdKind::Differencing,
        _ => VhdKind::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe_bytes(bytes: &[u8]) -> Format {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        probe(file.path()).unwrap()
    }

    fn with(size_bytes: usize, offset: usize, signature: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; size_bytes];
        bytes[offset..offset + signature.len()].copy_from_slice(signature);
        bytes
    }

    fn footer(kind: u8) -> Vec<u8> {
        let mut footer = with(512, 0, b"conectix");
        footer[63] = kind;
        footer
    }

    #[test]
    fn formats_are_told_by_their_signatures() {
        for (bytes, format) in [
            (vec![], Format::Raw),
            (vec![0x1f, 0x8b], Format::Raw),
            (vec![0; 1 << 20], Format::Raw),
            (with(4096, 510, &[0x55, 0xaa]), Format::Raw),
            (with(65536, 0, b"QFI\xfb"), Format::Qcow2),
            (with(65536, 0, b"vhdxfile"), Format::Vhdx),
            (with(65536, 0, b"KDMV"), Format::Vmdk),
            (with(65536, 64, &[0x7f, 0x10, 0xda, 0xbe]), Format::Vdi),
            (with(65536, 32769, b"CD001"), Format::Iso9660),
            (
                with(20, 0, b"\x1f\x8b\x08"),
                Format::Compressed(Compression::Gzip),
            ),
            (
                with(4096, 0, b"\xfd7zXZ\0"),
                Format::Compressed(Compression::Xz),
            ),
            (
                with(4096, 0, b"\x28\xb5\x2f\xfd"),
                Format::Compressed(Compression::Zstd),
            ),
        ] {
            assert_eq!(probe_bytes(&bytes), format);
        }
    }

    #[test]
    fn the_three_kinds_of_a_vhd_are_told_apart() {
        let mut fixed = vec![0; 8192];
        fixed.extend(footer(2));
        assert_eq!(probe_bytes(&fixed), Format::Vhd(VhdKind::Fixed));
        let mut dynamic = footer(3);
        dynamic.extend(vec![0; 8192]);
        assert_eq!(probe_bytes(&dynamic), Format::Vhd(VhdKind::Dynamic));
        assert_eq!(probe_bytes(&footer(4)), Format::Vhd(VhdKind::Differencing));
    }

    #[test]
    fn a_foreign_format_is_refused_with_the_command_that_converts_it() {
        let advice = Format::Qcow2.advice(Path::new("/srv/win11.qcow2")).unwrap();
        assert!(
            advice.contains("qemu-img convert -f qcow2 -O raw /srv/win11.qcow2 /srv/win11.raw"),
            "{advice}"
        );
        assert_eq!(Format::Raw.advice(Path::new("/srv/disk.raw")), None);
    }
}
