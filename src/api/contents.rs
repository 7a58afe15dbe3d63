//! `/machines/{machine}/contents`, `/images/{image}/contents`: what lies inside
//! a disk, and which Linux boots from it.

use axum::Json;
use axum::extract::State;
use disk::SharedDisk;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Path;
use super::{Api, ApiError, ErrorBody};
use crate::inventory::{self, ImageRef};

/// What lies inside a disk.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = DiskContents)]
pub(crate) struct Contents {
    /// "gpt", "gpt-copy" (the primary is damaged), "mbr" or "none".
    pub(crate) table: String,
    /// Its partitions; the whole disk, with number 0, where there is no table.
    pub(crate) partitions: Vec<Part>,
    /// The Linux that boots from it.
    pub(crate) linux: Option<Linux>,
    /// Why none was found.
    pub(crate) why_not: Option<String>,
}

/// A partition.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = PartitionContents)]
pub(crate) struct Part {
    /// As Linux numbers it.
    pub(crate) number: u32,
    /// Where it begins on the disk.
    pub(crate) start_bytes: u64,
    /// Its length.
    pub(crate) size_bytes: u64,
    /// What it holds: "ext4", "FAT", "XFS", "unknown".
    pub(crate) format: String,
    /// UUID of its file system.
    pub(crate) uuid: Option<String>,
    /// Label of its file system.
    pub(crate) label: Option<String>,
}

/// A Linux, and what it boots.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = LinuxContents)]
pub(crate) struct Linux {
    /// What it calls itself: "Debian GNU/Linux 12 (bookworm)".
    pub(crate) name: String,
    /// ID of its os-release: "debian".
    pub(crate) id: String,
    /// The boot entry, as its menu shows it.
    pub(crate) title: Option<String>,
    /// The file that names the kernel; none where the newest was taken.
    pub(crate) source: Option<String>,
    /// Number of the partition its kernel is on.
    pub(crate) boot_partition: u32,
    /// The kernel.
    pub(crate) kernel: BootFile,
    /// What is handed to it.
    pub(crate) initrds: Vec<BootFile>,
    /// The rest of its command line.
    pub(crate) arguments: String,
}

/// A file inside a disk.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct BootFile {
    /// Its path on its partition.
    pub(crate) path: String,
    /// Its length.
    pub(crate) size_bytes: u64,
}

/// Shows what a machine's next boot finds on its disk.
#[utoipa::path(get, path = "/machines/{machine}/contents", tag = "machines",
    operation_id = "show_machine_contents",
    params(("machine" = String, Path, description = "name or MAC")),
    responses((status = 200, description = "partitions, and the Linux that boots", body = Contents),
        (status = 404, description = "no such machine", body = ErrorBody),
        (status = 409, description = "it boots no disk, or it cannot be read now",
            body = ErrorBody)))]
pub(super) async fn of_machine(
    State(api): State<Api>,
    Path(machine): Path<String>,
) -> Result<Json<Contents>, ApiError> {
    api.work(move |api| {
        let machine = super::machines::found(api, &machine)?;
        let disk = api
            .live
            .machine_disk(&machine)
            .map_err(ApiError::conflict)?;
        Ok(Json(look(&disk)?))
    })
    .await
}

/// Shows what lies inside an image.
#[utoipa::path(get, path = "/images/{image}/contents", tag = "images",
    operation_id = "show_image_contents",
    params(("image" = String, Path, description = "name, or name@version")),
    responses((status = 200, description = "partitions, and the Linux that boots", body = Contents),
        (status = 404, description = "there is none", body = ErrorBody)))]
pub(super) async fn of_image(
    State(api): State<Api>,
    Path(image): Path<String>,
) -> Result<Json<Contents>, ApiError> {
    api.work(move |api| {
        let image = api.inventory.image(&ImageRef::parse(&image)?)?;
        Ok(Json(look(&inventory::open_image(&image)?)?))
    })
    .await
}

fn look(disk: &SharedDisk) -> Result<Contents, ApiError> {
    let unreadable = |error: contents::Error| ApiError::conflict(error.to_string());
    let found = contents::Partitions::read(&**disk).map_err(unreadable)?;
    let mut partitions = Vec::new();
    for partition in &found.list {
        let content = contents::identify(&partition.volume(disk)).map_err(unreadable)?;
        let said = |text: String| Some(text).filter(|text| !text.is_empty());
        partitions.push(Part {
            number: partition.number,
            start_bytes: partition.start,
            size_bytes: partition.size_bytes,
            format: content.format.name().to_owned(),
            uuid: said(content.uuid),
            label: said(content.label),
        });
    }
    let (linux, why_not) = match contents::linux_boot(disk) {
        Ok(boot) => (Some(shown(boot)), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let table = match found.table {
        contents::TableKind::Gpt => "gpt",
        contents::TableKind::GptCopy => "gpt-copy",
        contents::TableKind::Mbr => "mbr",
        contents::TableKind::Bare => "none",
    };
    Ok(Contents {
        table: table.to_owned(),
        partitions,
        linux,
        why_not,
    })
}

fn shown(boot: contents::LinuxBoot) -> Linux {
    let file = |file: &contents::ReadableFile| BootFile {
        path: file.path().to_owned(),
        size_bytes: file.size_bytes(),
    };
    Linux {
        name: boot.distribution.name,
        id: boot.distribution.id,
        title: boot.title,
        source: match boot.source {
            contents::Source::Grub(path) | contents::Source::LoaderEntry(path) => Some(path),
            contents::Source::Newest => None,
        },
        boot_partition: boot.boot_partition,
        kernel: file(&boot.kernel),
        initrds: boot.initrds.iter().map(file).collect(),
        arguments: boot.arguments,
    }
}
