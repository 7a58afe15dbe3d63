//! Exports: what images, disks and overlays have in common as they go out.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::inventory;

/// Where a disk is to go.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExportDisk {
    /// File on the server, from "/".
    pub(crate) path: String,
    /// As what; without it its suffix says so.
    pub(crate) format: Option<ExportFormat>,
    /// Whether a file that is there is replaced.
    #[serde(default)]
    pub(crate) replace: bool,
}

/// What an exported file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ExportFormat {
    /// The bytes of the disk, sparse.
    Raw,
    /// VHD that holds what is not zero.
    Vhd,
    /// VHD with everything at its place.
    VhdFixed,
    /// VHDX that holds what is not zero.
    Vhdx,
    /// qcow2 of version 3.
    Qcow2,
}

/// A file that was written.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Exported {
    /// Where.
    pub(crate) path: String,
    /// As what.
    pub(crate) format: ExportFormat,
    /// Size of the disk.
    pub(crate) size_bytes: u64,
    /// What the file takes.
    pub(crate) stored_bytes: u64,
}

impl From<ExportDisk> for inventory::Export {
    fn from(asked: ExportDisk) -> inventory::Export {
        inventory::Export {
            path: PathBuf::from(asked.path),
            format: asked.format.map(ExportFormat::inside),
            existing: match asked.replace {
                true => inventory::Existing::IsReplaced,
                false => inventory::Existing::Stays,
            },
        }
    }
}

impl ExportFormat {
    fn inside(self) -> inventory::ExportFormat {
        match self {
            ExportFormat::Raw => inventory::ExportFormat::Raw,
            ExportFormat::Vhd => inventory::ExportFormat::Vhd,
            ExportFormat::VhdFixed => inventory::ExportFormat::VhdFixed,
            ExportFormat::Vhdx => inventory::ExportFormat::Vhdx,
            ExportFormat::Qcow2 => inventory::ExportFormat::Qcow2,
        }
    }

    fn of(inside: inventory::ExportFormat) -> ExportFormat {
        match inside {
            inventory::ExportFormat::Raw => ExportFormat::Raw,
            inventory::ExportFormat::Vhd => ExportFormat::Vhd,
            inventory::ExportFormat::VhdFixed => ExportFormat::VhdFixed,
            inventory::ExportFormat::Vhdx => ExportFormat::Vhdx,
            inventory::ExportFormat::Qcow2 => ExportFormat::Qcow2,
        }
    }
}

pub(super) fn shown(exported: &inventory::Exported) -> Exported {
    Exported {
        path: exported.path.display().to_string(),
        format: ExportFormat::of(exported.format),
        size_bytes: exported.size_bytes,
        stored_bytes: exported.stored_bytes,
    }
}
