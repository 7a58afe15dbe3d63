//! What a volume holds, told by the bytes each format begins with.

use crate::bytes::{array, text, u16_at, u32_at, uuid};
use crate::{Error, Volume, fat};

/// What a volume holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Its format.
    pub format: Format,
    /// UUID as `/etc/fstab` writes it; empty where there is none.
    pub uuid: String,
    /// Label; empty where there is none.
    pub label: String,
}

/// The formats that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// ext2, ext3, ext4: read here.
    Ext,
    /// FAT12, FAT16, FAT32: read here.
    Fat,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// A physical volume of LVM.
    Lvm,
    /// An encrypted volume.
    Luks,
    /// A member of a Linux RAID.
    Raid,
    /// NTFS.
    Ntfs,
    /// A volume that Windows encrypted.
    BitLocker,
    /// ReFS.
    ReFs,
    /// exFAT.
    ExFat,
    /// F2FS.
    F2fs,
    /// Bcachefs.
    Bcachefs,
    /// JFS.
    Jfs,
    /// ReiserFS.
    Reiser,
    /// Squashfs.
    Squashfs,
    /// EROFS.
    Erofs,
    /// The file system of CDs.
    Iso9660,
    /// Swap space.
    Swap,
    /// Nothing that is known.
    Unknown,
}

impl Format {
    /// Its name, as its users write it.
    pub fn name(self) -> &'static str {
        match self {
            Format::Ext => "ext4",
            Format::Fat => "FAT",
            Format::Xfs => "XFS",
            Format::Btrfs => "Btrfs",
            Format::Lvm => "LVM",
            Format::Luks => "LUKS",
            Format::Raid => "Linux RAID",
            Format::Ntfs => "NTFS",
            Format::BitLocker => "BitLocker",
            Format::ReFs => "ReFS",
            Format::ExFat => "exFAT",
            Format::F2fs => "F2FS",
            Format::Bcachefs => "bcachefs",
            Format::Jfs => "JFS",
            Format::Reiser => "ReiserFS",
            Format::Squashfs => "Squashfs",
            Format::Erofs => "EROFS",
            Format::Iso9660 => "ISO 9660",
            Format::Swap => "swap",
            Format::Unknown => "unknown",
        }
    }

    /// Whether its files are read here.
    pub fn is_read(self) -> bool {
        matches!(self, Format::Ext | Format::Fat)
    }

    /// Why its files are not read here.
    pub(crate) fn refusal(self) -> String {
        match self {
            Format::Unknown => "no file system that is known".to_owned(),
            Format::Luks | Format::BitLocker => {
                format!("{}: what is encrypted is not read", self.name())
            }
            _ => format!("{}: only ext4 (ext2, ext3) and FAT are read", self.name()),
        }
    }
}

/// As far as any format's mark lies, and a little.
const FRONT_BYTES: usize = 68 << 10;

/// Tells what a volume holds.
pub fn identify(volume: &Volume) -> Result<Content, Error> {
    let length = usize::try_from(volume.size_bytes()).unwrap_or(usize::MAX);
    let mut front = vec![0; length.min(FRONT_BYTES)];
    volume.read(0, &mut front)?;
    Ok(tell(&front))
}

fn tell(front: &[u8]) -> Content {
    let is = |at: usize, mark: &[u8]| front.get(at..).is_some_and(|rest| rest.starts_with(mark));
    let found = |format, uuid: String, label: String| Content {
        format,
        uuid,
        label,
    };
    let plain = |format| found(format, String::new(), String::new());
    let uuid_at = |at| array(front, at).map(uuid).unwrap_or_default();
    let text_at = |at: usize, bytes: usize| front.get(at..at + bytes).map(text).unwrap_or_default();
    let lvm =
        (0..4).find(|sector| is(512 * sector, b"LABELONE") && is(512 * sector + 24, b"LVM2 001"));

    if is(0, b"LUKS\xba\xbe") {
        return found(Format::Luks, text_at(168, 40), String::new());
    }
    if lvm.is_some() {
        return plain(Format::Lvm);
    }
    if is(4096, &0xa92b_4efc_u32.to_le_bytes()) || is(0, &0xa92b_4efc_u32.to_le_bytes()) {
        return plain(Format::Raid);
    }
    if is(0, b"XFSB") {
        return found(Format::Xfs, uuid_at(32), text_at(108, 12));
    }
    if is(0x10040, b"_BHRfS_M") {
        return found(Format::Btrfs, uuid_at(0x10020), text_at(0x1012b, 256));
    }
    if u16_at(front, 1080) == 0xef53 {
        return found(Format::Ext, uuid_at(1024 + 0x68), text_at(1024 + 0x78, 16));
    }
    for (at, mark, format) in [
        (3, &b"NTFS    "[..], Format::Ntfs),
        (3, b"-FVE-FS-", Format::BitLocker),
        (3, b"ReFS\0", Format::ReFs),
        (3, b"EXFAT   ", Format::ExFat),
        (0, b"hsqs", Format::Squashfs),
        (0x8000, b"JFS1", Format::Jfs),
        (0x10034, b"ReIsEr", Format::Reiser),
        (32769, b"CD001", Format::Iso9660),
    ] {
        if is(at, mark) {
            return plain(format);
        }
    }
    match u32_at(front, 1024) {
        0xf2f5_2010 => return plain(Format::F2fs),
        0xe0f5_e1e2 => return plain(Format::Erofs),
        _ => {}
    }
    // BCHFS_MAGIC and its older sibling.
    if is(4096 + 24, &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca])
        || is(4096 + 24, &[0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9])
    {
        return plain(Format::Bcachefs);
    }
    if is(4086, b"SWAPSPACE2") {
        return found(Format::Swap, uuid_at(1036), text_at(1052, 16));
    }
    if let Some((uuid, label)) = fat::marks(front) {
        return found(Format::Fat, uuid, label);
    }
    plain(Format::Unknown)
}
