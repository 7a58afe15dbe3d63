//! What kind of unit stands over a disk.

use disk::Access;

/// What kind of unit a disk is shown as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The peripheral device type.
    pub device: Device,
    /// Whether the medium can be taken out.
    pub medium: Medium,
    /// Whether initiators may give space back.
    pub provisioning: Provisioning,
    /// Whether initiators may write; never more than the disk allows.
    pub access: Access,
}

impl Default for Shape {
    /// A fixed disk, as thin and as writable as what lies below.
    fn default() -> Shape {
        Shape {
            device: Device::Disk,
            medium: Medium::Fixed,
            provisioning: Provisioning::OfDisk,
            access: Access::ReadWrite,
        }
    }
}

/// The peripheral device type (SPC-4 section 6.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// A direct access block device (SBC-3).
    Disk,
    /// A CD or DVD drive (MMC-6): read-only, removable, blocks of 2048 bytes.
    Optical,
}

impl Device {
    /// PERIPHERAL DEVICE TYPE.
    pub(crate) fn code(self) -> u8 {
        match self {
            Device::Disk => 0x00,
            Device::Optical => 0x05,
        }
    }
}

/// Whether the medium can be taken out (RMB).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// It cannot.
    Fixed,
    /// START STOP UNIT loads and ejects it.
    Removable,
}

/// Whether UNMAP and its kin are offered (SBC-3 section 4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provisioning {
    /// Thin when the disk below gives space back.
    OfDisk,
    /// Fully provisioned, whatever lies below.
    Full,
}
