//! `/images`: golden images and their versions.

use std::ops::Range;
use std::path::PathBuf;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::error::{Body, Path, Query};
use super::exports::ExportDisk;
use super::jobs::{self, Begun, Job};
use super::{Api, ApiError, ErrorBody, streams};
use crate::inventory::{
    self, Address, Assignment, Becomes, ImageRef, ImportRequest, Machine, Name, Origin,
    OverlayMode, Verification, hex,
};

/// One version of an image.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Image {
    /// Shared by its versions.
    pub(crate) name: String,
    /// From 1.
    pub(crate) version: u32,
    /// Whether it is the one meant by the name alone.
    pub(crate) current: bool,
    /// Of this version.
    #[schema(value_type = String, format = "uuid")]
    pub(crate) uuid: Uuid,
    /// Size of the disk.
    pub(crate) size_bytes: u64,
    /// What it takes of the file system.
    pub(crate) stored_bytes: u64,
    /// Version it was committed from, if it was.
    pub(crate) parent: Option<u32>,
    /// Of the whole content, in hex.
    pub(crate) sha256: String,
    /// The operator's words.
    pub(crate) comment: String,
    /// When it was published.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) created: Timestamp,
    /// When it was last held against its checksums.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) checked: Option<Timestamp>,
    /// What of it is not what was published; reads of it are refused.
    pub(crate) damaged: Vec<Damaged>,
    /// Machines that boot it at their next boot.
    pub(crate) machines: Vec<String>,
    /// Overlays that lie above it.
    pub(crate) overlays: usize,
}

/// A damaged part of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Damaged {
    /// Its first byte.
    pub(crate) offset: u64,
    /// Its length.
    pub(crate) bytes: u64,
}

/// Which version to make the current one.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rollback {
    /// The one before the current one when it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<u32>,
}

/// What became of it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct RolledBack {
    /// The version that is current now.
    pub(crate) image: Image,
    /// The one that was.
    pub(crate) was: Option<u32>,
    /// Machines whose kept overlay stays on another version.
    pub(crate) staying: Vec<String>,
}

/// What to import.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImportImage {
    /// Image it becomes the next version of.
    pub(crate) name: String,
    /// Disk file of any format, or block device, on the server, from "/"; or a
    /// URL (http, https), which the server fetches.
    pub(crate) source: String,
    /// The operator's words.
    #[serde(default)]
    pub(crate) comment: String,
}

/// Lists every version of every image, by name and version.
#[utoipa::path(get, path = "/images", tag = "images", operation_id = "list_images",
    responses((status = 200, description = "every version", body = Vec<Image>)))]
pub(super) async fn list(State(api): State<Api>) -> Result<Json<Vec<Image>>, ApiError> {
    api.work(|api| {
        let uses = Uses::of(api)?;
        let images = api.inventory.images();
        let shown = images.iter().map(|image| uses.shown(api, image));
        Ok(Json(shown.collect()))
    })
    .await
}

/// Lists the versions of an image, the lowest first.
#[utoipa::path(get, path = "/images/{name}/versions", tag = "images",
    operation_id = "list_versions",
    params(("name" = String, Path, description = "NAME")),
    responses((status = 200, description = "its versions", body = Vec<Image>),
        (status = 404, description = "there is none", body = ErrorBody)))]
pub(super) async fn versions(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<Vec<Image>>, ApiError> {
    api.work(move |api| {
        let uses = Uses::of(api)?;
        let versions = api.inventory.versions(&Name::parse(&name)?)?;
        let shown = versions.iter().map(|image| uses.shown(api, image));
        Ok(Json(shown.collect()))
    })
    .await
}

/// Makes a version of an image the current one. Machines follow at their next
/// boot, but for those with a kept overlay, which stays on its version.
#[utoipa::path(put, path = "/images/{name}/current", tag = "images",
    operation_id = "roll_back_image",
    params(("name" = String, Path, description = "NAME")),
    request_body = Rollback,
    responses((status = 200, description = "the version that is current now", body = RolledBack),
        (status = 404, description = "there is none", body = ErrorBody),
        (status = 409, description = "there is none before the current one", body = ErrorBody)))]
pub(super) async fn roll_back(
    State(api): State<Api>,
    Path(name): Path<String>,
    Body(body): Body<Rollback>,
) -> Result<Json<RolledBack>, ApiError> {
    api.work(move |api| {
        let name = Name::parse(&name)?;
        let (image, was) = api.inventory.make_current(&name, body.version)?;
        tracing::info!(%image, was, "made current");
        let staying = staying(api, &image)?;
        Ok(Json(RolledBack {
            image: shown(api, &image)?,
            was,
            staying,
        }))
    })
    .await
}

/// What a verification has found.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Verified {
    /// As in "win11@3".
    pub(crate) image: String,
    /// Whether it is what was published.
    pub(crate) sound: bool,
    /// What is not; reads of it are refused from now on.
    pub(crate) damaged: Vec<Damaged>,
    /// Whether the CRCs beside it are what was published.
    pub(crate) checksums_sound: bool,
}

/// Holds a version of an image against what was published: a job, whose result
/// says what is wrong.
#[utoipa::path(post, path = "/images/{image}/verification", tag = "images",
    operation_id = "verify_image",
    params(("image" = String, Path, description = "NAME (its current version) or NAME@VERSION")),
    responses((status = 202, description = "the verification, begun", body = Job),
        (status = 404, description = "there is none", body = ErrorBody),
        (status = 409, description = "too many jobs are running", body = ErrorBody)))]
pub(super) async fn verify(
    State(api): State<Api>,
    Path(image): Path<String>,
) -> Result<Begun, ApiError> {
    api.work(move |api| {
        let image = api.inventory.image(&ImageRef::parse(&image)?)?;
        Ok(jobs::begun(api, api.inventory.start_verification(image)?))
    })
    .await
}

/// A verification as it is shown.
pub(super) fn verified(image: &inventory::Image, found: &Verification) -> Verified {
    Verified {
        image: image.to_string(),
        sound: found.is_sound(),
        damaged: damaged(&found.damaged),
        checksums_sound: found.checksums_sound,
    }
}

fn damaged(ranges: &[Range<u64>]) -> Vec<Damaged> {
    let shown = |range: &Range<u64>| Damaged {
        offset: range.start,
        bytes: range.end - range.start,
    };
    ranges.iter().map(shown).collect()
}

/// Machines that boot the current version of an image, and have a kept overlay
/// on another one than `image`.
fn staying(api: &Api, image: &inventory::Image) -> Result<Vec<String>, ApiError> {
    let overlays = api.inventory.overlays()?;
    let stays = |machine: &Machine| {
        matches!(&machine.assignment, Some(Assignment::Image { image: meant, mode })
            if *mode == OverlayMode::Keep && meant.name == image.name && meant.version.is_none())
            && overlays.iter().any(|o| {
                o.machine == machine.id
                    && o.image == image.name
                    && o.mode == OverlayMode::Keep
                    && o.version != image.version
            })
    };
    let machines = api.inventory.machines()?;
    let staying = machines.iter().filter(|machine| stays(machine));
    Ok(staying.map(|machine| machine.name.to_string()).collect())
}

/// Starts an import: a job, whose result is the image.
#[utoipa::path(post, path = "/images", tag = "images", operation_id = "import_image",
    request_body = ImportImage,
    responses((status = 202, description = "the import, begun", body = Job),
        (status = 400, description = "not a disk image", body = ErrorBody),
        (status = 409, description = "too many jobs are running", body = ErrorBody)))]
pub(super) async fn import(
    State(api): State<Api>,
    Body(body): Body<ImportImage>,
) -> Result<Begun, ApiError> {
    api.work(move |api| {
        let job = api.inventory.start_import(ImportRequest {
            name: Name::parse(&body.name)?,
            origin: match body.source {
                url if url.contains("://") => Origin::Url(Address::parse(&url)?),
                path => Origin::File(PathBuf::from(path)),
            },
            comment: body.comment,
        })?;
        Ok(jobs::begun(api, job))
    })
    .await
}

/// What to remember about a stream.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct ImportStream {
    /// The operator's words.
    #[serde(default)]
    comment: String,
}

/// Starts an import of the body, a disk image of any format; answers when it
/// has come in.
#[utoipa::path(post, path = "/images/{image}/stream", tag = "images",
    operation_id = "import_image_stream",
    params(("image" = String, Path, description = "NAME"), ImportStream),
    request_body(content_type = "application/octet-stream"),
    responses((status = 202, description = "the import, begun", body = Job),
        (status = 400, description = "not a disk image", body = ErrorBody),
        (status = 409, description = "too many jobs are running", body = ErrorBody)))]
pub(super) async fn import_stream(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<ImportStream>,
    body: axum::body::Body,
) -> Result<Begun, ApiError> {
    let name = Name::parse(&name)?;
    let spool = streams::receive(&api, body, Becomes::Image).await?;
    api.work(move |api| {
        let job = api.inventory.start_import(ImportRequest {
            name,
            origin: Origin::Stream(spool),
            comment: query.comment,
        })?;
        Ok(jobs::begun(api, job))
    })
    .await
}

/// Shows one version of an image.
#[utoipa::path(get, path = "/images/{image}", tag = "images", operation_id = "show_image",
    params(("image" = String, Path, description = "NAME (its current version) or NAME@VERSION")),
    responses((status = 200, description = "the version", body = Image),
        (status = 404, description = "there is none", body = ErrorBody)))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(image): Path<String>,
) -> Result<Json<Image>, ApiError> {
    api.work(move |api| {
        let image = api.inventory.image(&ImageRef::parse(&image)?)?;
        Ok(Json(shown(api, &image)?))
    })
    .await
}

/// Starts to export an image: a job, whose result is the file.
#[utoipa::path(post, path = "/images/{image}/export", tag = "images",
    operation_id = "export_image",
    params(("image" = String, Path, description = "NAME (its current version) or NAME@VERSION")),
    request_body = ExportDisk,
    responses((status = 202, description = "the export, begun", body = Job),
        (status = 400, description = "it cannot be written there", body = ErrorBody),
        (status = 404, description = "there is no such image", body = ErrorBody),
        (status = 409, description = "a file is there already", body = ErrorBody)))]
pub(super) async fn export(
    State(api): State<Api>,
    Path(image): Path<String>,
    Body(body): Body<ExportDisk>,
) -> Result<Begun, ApiError> {
    api.work(move |api| {
        let meant = ImageRef::parse(&image)?;
        let job = api.inventory.export_image(&meant, body.into())?;
        Ok(jobs::begun(api, job))
    })
    .await
}

/// The bytes of an image's disk.
#[utoipa::path(get, path = "/images/{image}/content", tag = "images",
    operation_id = "image_content",
    params(("image" = String, Path, description = "NAME (its current version) or NAME@VERSION")),
    responses((status = 200, description = "the disk, raw",
            content_type = "application/octet-stream"),
        (status = 404, description = "there is none", body = ErrorBody)))]
pub(super) async fn content(
    State(api): State<Api>,
    Path(image): Path<String>,
) -> Result<Response, ApiError> {
    let disk = api
        .work(move |api| {
            let image = api.inventory.image(&ImageRef::parse(&image)?)?;
            Ok(inventory::open_image(&image)?)
        })
        .await?;
    Ok(streams::pour(disk))
}

/// Removes one version of an image, or all. One in use is refused.
#[utoipa::path(delete, path = "/images/{image}", tag = "images", operation_id = "remove_image",
    params(("image" = String, Path, description = "NAME (every version) or NAME@VERSION")),
    responses((status = 200, description = "what was removed", body = Vec<Image>),
        (status = 404, description = "there is none", body = ErrorBody),
        (status = 409, description = "a machine or an overlay uses it", body = ErrorBody)))]
pub(super) async fn remove(
    State(api): State<Api>,
    Path(image): Path<String>,
) -> Result<Json<Vec<Image>>, ApiError> {
    api.work(move |api| {
        let meant = ImageRef::parse(&image)?;
        let before: Vec<Image> = list_of(api, &meant)?;
        let removed = api.inventory.remove_image(&meant)?;
        for image in &removed {
            tracing::info!(%image, "removed");
        }
        let was_removed = |shown: &Image| removed.iter().any(|removed| removed.uuid == shown.uuid);
        Ok(Json(before.into_iter().filter(was_removed).collect()))
    })
    .await
}

/// The versions of an image as they are shown.
fn list_of(api: &Api, meant: &ImageRef) -> Result<Vec<Image>, ApiError> {
    let uses = Uses::of(api)?;
    let images = api.inventory.images();
    let named = images.iter().filter(|image| image.name == meant.name);
    Ok(named.map(|image| uses.shown(api, image)).collect())
}

/// One version of an image as it is shown.
pub(super) fn shown(api: &Api, image: &inventory::Image) -> Result<Image, ApiError> {
    Ok(Uses::of(api)?.shown(api, image))
}

/// Who uses images.
struct Uses {
    machines: Vec<Machine>,
    overlays: Vec<inventory::Overlay>,
}

impl Uses {
    fn of(api: &Api) -> Result<Uses, ApiError> {
        Ok(Uses {
            machines: api.inventory.machines()?,
            overlays: api.inventory.overlays()?,
        })
    }

    fn shown(&self, api: &Api, image: &inventory::Image) -> Image {
        let current = api.inventory.image(&ImageRef {
            name: image.name.clone(),
            version: None,
        });
        let current = current.is_ok_and(|current| current.uuid == image.uuid);
        let boots = |machine: &&Machine| {
            let meant = machine.assignment.as_ref().and_then(Assignment::image);
            meant.is_some_and(|meant| {
                meant.name == image.name
                    && meant
                        .version
                        .map_or(current, |version| version == image.version)
            })
        };
        let above = |overlay: &&inventory::Overlay| {
            overlay.image == image.name && overlay.version == image.version
        };
        Image {
            name: image.name.to_string(),
            version: image.version,
            current,
            uuid: image.uuid,
            size_bytes: image.size_bytes,
            stored_bytes: image.stored_bytes(),
            parent: image.parent,
            sha256: hex(&image.sha256),
            comment: image.comment.clone(),
            created: image.created,
            checked: image.checked(),
            damaged: damaged(&image.damage.ranges()),
            machines: self
                .machines
                .iter()
                .filter(boots)
                .map(|machine| machine.name.to_string())
                .collect(),
            overlays: self.overlays.iter().filter(above).count(),
        }
    }
}
