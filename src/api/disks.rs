//! `/disks`: own disks, written in place.

use std::path::PathBuf;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use disk::Access;
use disk::gpt::Followed;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::error::{Body, Path, Query};
use super::exports::ExportDisk;
use super::jobs::{self, Begun, Job};
use super::{Api, ApiError, ErrorBody, streams};
use crate::inventory::{
    self, Address, Becomes, DiskFormat, DiskKind, Name, NewOwnDisk, Origin, OwnDisk,
};

/// A disk file that is written in place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Disk {
    /// Never changes; what initiators recognise the disk by.
    #[schema(value_type = String, format = "uuid")]
    pub(crate) id: Uuid,
    /// Unique: a to z, 0 to 9 and "-".
    pub(crate) name: String,
    /// The file or block device.
    pub(crate) file: String,
    /// Whether it lies outside the data directory, where somebody keeps it.
    pub(crate) in_place: bool,
    /// What the file is.
    pub(crate) kind: Kind,
    /// Size of the disk, where it can be told now.
    pub(crate) size_bytes: Option<u64>,
    /// What the file takes of its file system.
    pub(crate) stored_bytes: Option<u64>,
    /// The disk below, of a differencing disk.
    pub(crate) parent: Option<String>,
    /// Machines that boot it, LUNs that serve it, disks that stand on it.
    pub(crate) users: Vec<String>,
    /// Why it cannot be opened.
    pub(crate) trouble: Option<String>,
    /// The operator's words.
    pub(crate) comment: String,
    /// When it was made or taken in.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) created: Timestamp,
}

/// What a disk file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[schema(as = DiskKind)]
pub(crate) enum Kind {
    /// The bytes of the disk, or a block device.
    Raw,
    /// VHD of any kind.
    Vhd,
    /// VHDX of any kind.
    Vhdx,
}

/// What a new disk file is made as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
#[schema(as = DiskFormat)]
pub(crate) enum Format {
    /// The bytes of the disk, sparse.
    Raw,
    /// VHD that grows as it is written.
    Vhd,
    /// VHD with all its space.
    VhdFixed,
    /// VHDX that grows as it is written.
    Vhdx,
    /// VHDX with all its space.
    VhdxFixed,
}

/// A disk to make.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AddDisk {
    /// Unique: a to z, 0 to 9 and "-".
    pub(crate) name: String,
    /// Its size; a disk above a parent has the parent's.
    pub(crate) size_bytes: Option<u64>,
    /// What its file is; without it, raw, or what its parent is.
    pub(crate) format: Option<Format>,
    /// A disk it stands on, which is never written again.
    pub(crate) parent: Option<String>,
    /// The operator's words.
    #[serde(default)]
    pub(crate) comment: String,
}

/// A file to take in where it lies.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RegisterDisk {
    /// Unique: a to z, 0 to 9 and "-".
    pub(crate) name: String,
    /// Raw, VHD or VHDX file, or block device, on the server, from "/".
    pub(crate) file: String,
    /// What it is; without it, the file is asked.
    pub(crate) kind: Option<Kind>,
    /// The operator's words.
    #[serde(default)]
    pub(crate) comment: String,
}

/// A disk file to copy.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImportDisk {
    /// Unique: a to z, 0 to 9 and "-".
    pub(crate) name: String,
    /// Disk file of any format, or block device, on the server, from "/"; or a
    /// URL.
    pub(crate) source: String,
    /// What the disk's own file is; without it, raw.
    pub(crate) format: Option<Format>,
    /// The operator's words.
    #[serde(default)]
    pub(crate) comment: String,
}

/// A copy to make.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CloneDisk {
    /// Unique: a to z, 0 to 9 and "-".
    pub(crate) name: String,
    /// The operator's words.
    #[serde(default)]
    pub(crate) comment: String,
}

/// What a disk's file is to become.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConvertDisk {
    /// As in a disk that is made.
    pub(crate) format: Format,
}

/// A change of a disk.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResizeDisk {
    /// Make it so large: no less than it is.
    pub(crate) size_bytes: u64,
}

/// A disk that was made larger.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct ResizedDisk {
    /// As it is now.
    pub(crate) disk: Disk,
    /// What became of its partition table.
    pub(crate) partition_table: PartitionTable,
}

/// What became of a partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PartitionTable {
    /// A GPT, which knows of the new space now.
    Moved,
    /// A GPT that knew of it already.
    AtTheEnd,
    /// No GPT: the system that uses the disk sees to it.
    NoGpt,
}

/// Lists every own disk, by name.
#[utoipa::path(get, path = "/disks", tag = "disks", operation_id = "list_disks",
    responses((status = 200, description = "every disk", body = Vec<Disk>)))]
pub(super) async fn list(State(api): State<Api>) -> Result<Json<Vec<Disk>>, ApiError> {
    api.work(|api| {
        let disks = api.inventory.own_disks()?;
        let shown = disks.iter().map(|disk| shown(api, disk));
        Ok(Json(shown.collect::<Result<_, _>>()?))
    })
    .await
}

/// Makes an empty disk, or one above a parent.
#[utoipa::path(post, path = "/disks", tag = "disks", operation_id = "add_disk",
    request_body = AddDisk,
    responses((status = 201, description = "the disk made", body = Disk),
        (status = 400, description = "it makes no sense", body = ErrorBody),
        (status = 404, description = "no such parent", body = ErrorBody),
        (status = 409, description = "the name is taken, or the parent is written",
            body = ErrorBody)))]
pub(super) async fn add(
    State(api): State<Api>,
    Body(add): Body<AddDisk>,
) -> Result<(StatusCode, Json<Disk>), ApiError> {
    api.work(move |api| {
        let new = NewOwnDisk {
            name: Name::parse(&add.name)?,
            comment: add.comment,
        };
        let format = add.format.map(DiskFormat::from);
        let disk = match (add.parent, add.size_bytes) {
            (Some(_), Some(_)) => {
                return Err(ApiError::invalid(
                    "a disk above a parent has the parent's size: name one of the two",
                ));
            }
            (Some(parent), None) => {
                let parent = api.inventory.own_disk(&parent)?;
                require_closed(api, &parent)?;
                api.inventory.create_own_disk_above(new, format, &parent)?
            }
            (None, Some(size_bytes)) => {
                let format = format.unwrap_or_default();
                api.inventory.create_own_disk(new, format, size_bytes)?
            }
            (None, None) => {
                return Err(ApiError::invalid("a disk needs a size, or a parent"));
            }
        };
        tracing::info!(disk = %disk.name, "disk made");
        Ok((StatusCode::CREATED, Json(shown(api, &disk)?)))
    })
    .await
}

/// Takes a file or block device in where it lies.
#[utoipa::path(post, path = "/disks/in-place", tag = "disks", operation_id = "register_disk",
    request_body = RegisterDisk,
    responses((status = 201, description = "the disk taken in", body = Disk),
        (status = 400, description = "it cannot be written in place", body = ErrorBody),
        (status = 409, description = "the name is taken, or somebody has the file open",
            body = ErrorBody)))]
pub(super) async fn register(
    State(api): State<Api>,
    Body(register): Body<RegisterDisk>,
) -> Result<(StatusCode, Json<Disk>), ApiError> {
    api.work(move |api| {
        let new = NewOwnDisk {
            name: Name::parse(&register.name)?,
            comment: register.comment,
        };
        let file = PathBuf::from(register.file);
        let kind = register.kind.map(DiskKind::from);
        let disk = api.inventory.register_own_disk(new, &file, kind)?;
        tracing::info!(disk = %disk.name, file = %file.display(), "disk taken in");
        Ok((StatusCode::CREATED, Json(shown(api, &disk)?)))
    })
    .await
}

/// Starts to copy a disk file to a new disk: a job, whose result is the disk.
#[utoipa::path(post, path = "/disks/imports", tag = "disks", operation_id = "import_disk",
    request_body = ImportDisk,
    responses((status = 202, description = "the import, begun", body = Job),
        (status = 400, description = "not a disk", body = ErrorBody),
        (status = 409, description = "the name is taken, or too many jobs are running",
            body = ErrorBody)))]
pub(super) async fn import(
    State(api): State<Api>,
    Body(import): Body<ImportDisk>,
) -> Result<Begun, ApiError> {
    api.work(move |api| {
        let new = NewOwnDisk {
            name: Name::parse(&import.name)?,
            comment: import.comment,
        };
        let format = import.format.map(DiskFormat::from).unwrap_or_default();
        let origin = match import.source {
            url if url.contains("://") => Origin::Url(Address::parse(&url)?),
            path => Origin::File(PathBuf::from(path)),
        };
        let job = api.inventory.import_own_disk(new, format, origin)?;
        Ok(jobs::begun(api, job))
    })
    .await
}

/// What to make of a stream.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ImportDiskStream {
    /// What the disk's file is; without it, raw.
    format: Option<Format>,
    /// The operator's words.
    #[serde(default)]
    comment: String,
}

/// Starts to make a new disk of the body, of any format: a job, whose result is
/// the disk.
#[utoipa::path(post, path = "/disks/{disk}/stream", tag = "disks",
    operation_id = "import_disk_stream",
    params(("disk" = String, Path, description = "name of the new disk"), ImportDiskStream),
    request_body(content_type = "application/octet-stream"),
    responses((status = 202, description = "the import, begun", body = Job),
        (status = 400, description = "not a disk", body = ErrorBody),
        (status = 409, description = "the name is taken, or too many jobs are running",
            body = ErrorBody)))]
pub(super) async fn import_stream(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(how): Query<ImportDiskStream>,
    body: axum::body::Body,
) -> Result<Begun, ApiError> {
    let new = NewOwnDisk {
        name: Name::parse(&name)?,
        comment: how.comment,
    };
    // Before gigabytes have come in for a name that is taken.
    let new = api
        .work(move |api| Ok(api.inventory.check_new(&new).map(|()| new)?))
        .await?;
    let spool = streams::receive(&api, body, Becomes::Disk).await?;
    api.work(move |api| {
        let format = how.format.map(DiskFormat::from).unwrap_or_default();
        let origin = Origin::Stream(spool);
        let job = api.inventory.import_own_disk(new, format, origin)?;
        Ok(jobs::begun(api, job))
    })
    .await
}

/// Starts to copy a disk that nobody writes: a job, whose result is the copy.
#[utoipa::path(post, path = "/disks/{disk}/clones", tag = "disks", operation_id = "clone_disk",
    request_body = CloneDisk,
    params(("disk" = String, Path, description = "name")),
    responses((status = 202, description = "the clone, begun", body = Job),
        (status = 404, description = "there is no such disk", body = ErrorBody),
        (status = 409, description = "it is in use, or the name is taken", body = ErrorBody)))]
pub(super) async fn duplicate(
    State(api): State<Api>,
    Path(disk): Path<String>,
    Body(clone): Body<CloneDisk>,
) -> Result<Begun, ApiError> {
    api.work(move |api| {
        let disk = api.inventory.own_disk(&disk)?;
        require_closed(api, &disk)?;
        let new = NewOwnDisk {
            name: Name::parse(&clone.name)?,
            comment: clone.comment,
        };
        Ok(jobs::begun(api, api.inventory.clone_own_disk(&disk, new)?))
    })
    .await
}

/// Starts to make a disk that nobody writes one of another format: a job, whose
/// result is the disk.
#[utoipa::path(post, path = "/disks/{disk}/conversions", tag = "disks",
    operation_id = "convert_disk", request_body = ConvertDisk,
    params(("disk" = String, Path, description = "name")),
    responses((status = 202, description = "the conversion, begun", body = Job),
        (status = 400, description = "it lies in place", body = ErrorBody),
        (status = 404, description = "there is no such disk", body = ErrorBody),
        (status = 409, description = "it is in use", body = ErrorBody)))]
pub(super) async fn convert(
    State(api): State<Api>,
    Path(disk): Path<String>,
    Body(convert): Body<ConvertDisk>,
) -> Result<Begun, ApiError> {
    api.work(move |api| {
        let disk = api.inventory.own_disk(&disk)?;
        require_closed(api, &disk)?;
        let format = DiskFormat::from(convert.format);
        let job = api.inventory.convert_own_disk(&disk, format)?;
        Ok(jobs::begun(api, job))
    })
    .await
}

/// Makes a disk that nobody uses larger; a GPT on it knows of the new space
/// then.
#[utoipa::path(patch, path = "/disks/{disk}", tag = "disks", operation_id = "resize_disk",
    request_body = ResizeDisk,
    params(("disk" = String, Path, description = "name")),
    responses((status = 200, description = "the disk as it is now", body = ResizedDisk),
        (status = 400, description = "it would shrink, or does not grow", body = ErrorBody),
        (status = 404, description = "there is no such disk", body = ErrorBody),
        (status = 409, description = "it is in use, or its partition table is damaged",
            body = ErrorBody)))]
pub(super) async fn resize(
    State(api): State<Api>,
    Path(disk): Path<String>,
    Body(resize): Body<ResizeDisk>,
) -> Result<Json<ResizedDisk>, ApiError> {
    api.work(move |api| {
        let disk = api.inventory.own_disk(&disk)?;
        require_closed(api, &disk)?;
        let followed = api.inventory.resize_own_disk(&disk, resize.size_bytes)?;
        tracing::info!(disk = %disk.name, size_bytes = resize.size_bytes, "disk resized");
        Ok(Json(ResizedDisk {
            disk: shown(api, &disk)?,
            partition_table: match followed {
                Followed::Moved => PartitionTable::Moved,
                Followed::AtTheEnd => PartitionTable::AtTheEnd,
                Followed::NoGpt => PartitionTable::NoGpt,
            },
        }))
    })
    .await
}

/// Starts to export a disk that nobody writes: a job, whose result is the file.
#[utoipa::path(post, path = "/disks/{disk}/export", tag = "disks",
    operation_id = "export_disk", request_body = ExportDisk,
    params(("disk" = String, Path, description = "name")),
    responses((status = 202, description = "the export, begun", body = Job),
        (status = 400, description = "it cannot be written there", body = ErrorBody),
        (status = 404, description = "there is no such disk", body = ErrorBody),
        (status = 409, description = "it is in use, or a file is there already",
            body = ErrorBody)))]
pub(super) async fn export(
    State(api): State<Api>,
    Path(disk): Path<String>,
    Body(body): Body<ExportDisk>,
) -> Result<Begun, ApiError> {
    api.work(move |api| {
        let disk = api.inventory.own_disk(&disk)?;
        require_closed(api, &disk)?;
        let job = api.inventory.export_own_disk(&disk, body.into())?;
        Ok(jobs::begun(api, job))
    })
    .await
}

/// The bytes of a disk that nobody writes.
#[utoipa::path(get, path = "/disks/{disk}/content", tag = "disks",
    operation_id = "disk_content",
    params(("disk" = String, Path, description = "name")),
    responses((status = 200, description = "the disk, raw",
            content_type = "application/octet-stream"),
        (status = 404, description = "there is no such disk", body = ErrorBody),
        (status = 409, description = "it is in use", body = ErrorBody)))]
pub(super) async fn content(
    State(api): State<Api>,
    Path(disk): Path<String>,
) -> Result<Response, ApiError> {
    let disk = api
        .work(move |api| {
            let disk = api.inventory.own_disk(&disk)?;
            require_closed(api, &disk)?;
            Ok(api.inventory.open_own_disk(&disk, Access::ReadOnly)?)
        })
        .await?;
    Ok(streams::pour(disk))
}

/// Shows one disk.
#[utoipa::path(get, path = "/disks/{disk}", tag = "disks", operation_id = "show_disk",
    params(("disk" = String, Path, description = "name")),
    responses((status = 200, description = "the disk as it is now", body = Disk),
        (status = 404, description = "there is none", body = ErrorBody)))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(disk): Path<String>,
) -> Result<Json<Disk>, ApiError> {
    api.work(move |api| {
        let disk = api.inventory.own_disk(&disk)?;
        Ok(Json(shown(api, &disk)?))
    })
    .await
}

/// Removes a disk, with its file; the file of one in place stays. One in use is
/// refused.
#[utoipa::path(delete, path = "/disks/{disk}", tag = "disks", operation_id = "remove_disk",
    params(("disk" = String, Path, description = "name")),
    responses((status = 204, description = "removed"),
        (status = 404, description = "there is none", body = ErrorBody),
        (status = 409, description = "somebody uses it", body = ErrorBody)))]
pub(super) async fn remove(
    State(api): State<Api>,
    Path(disk): Path<String>,
) -> Result<StatusCode, ApiError> {
    api.work(move |api| {
        let disk = api.inventory.own_disk(&disk)?;
        require_closed(api, &disk)?;
        api.inventory.remove_own_disk(disk.id)?;
        tracing::info!(disk = %disk.name, "disk removed");
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

/// Refuses a disk that a machine has open; closes one that nobody uses any
/// more.
pub(super) fn require_closed(api: &Api, disk: &OwnDisk) -> Result<(), ApiError> {
    api.live.release_own_disk(disk.id).map_err(|user| {
        ApiError::conflict(format!(
            "{user} has disk {} open: shut it down first",
            disk.name
        ))
    })
}

pub(super) fn shown(api: &Api, disk: &OwnDisk) -> Result<Disk, ApiError> {
    let parent = disk.parent.map(|id| api.inventory.own_disk_of(id));
    let path = api.inventory.own_disk_path(disk);
    let (size_bytes, trouble) = match api.inventory.own_disk_size(disk) {
        Ok(size_bytes) => (size_bytes, None),
        Err(error) => (None, Some(error.to_string())),
    };
    Ok(Disk {
        id: disk.id,
        name: disk.name.to_string(),
        file: path.display().to_string(),
        in_place: disk.is_in_place(),
        kind: disk.kind.into(),
        size_bytes,
        stored_bytes: inventory::stored_bytes(&path),
        parent: parent.transpose()?.map(|parent| parent.name.to_string()),
        users: api.inventory.own_disk_users(disk.id)?,
        trouble,
        comment: disk.comment.clone(),
        created: disk.created,
    })
}

impl From<DiskKind> for Kind {
    fn from(kind: DiskKind) -> Kind {
        match kind {
            DiskKind::Raw => Kind::Raw,
            DiskKind::Vhd | DiskKind::VhdFixed => Kind::Vhd,
            DiskKind::Vhdx => Kind::Vhdx,
        }
    }
}

impl From<Kind> for DiskKind {
    fn from(kind: Kind) -> DiskKind {
        match kind {
            Kind::Raw => DiskKind::Raw,
            Kind::Vhd => DiskKind::Vhd,
            Kind::Vhdx => DiskKind::Vhdx,
        }
    }
}

impl From<Format> for DiskFormat {
    fn from(format: Format) -> DiskFormat {
        match format {
            Format::Raw => DiskFormat::Raw,
            Format::Vhd => DiskFormat::Vhd,
            Format::VhdFixed => DiskFormat::VhdFixed,
            Format::Vhdx => DiskFormat::Vhdx,
            Format::VhdxFixed => DiskFormat::VhdxFixed,
        }
    }
}
