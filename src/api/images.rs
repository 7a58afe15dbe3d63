//! `/images`: golden images and their versions.

use std::path::PathBuf;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::error::{Body, Path, Query};
use super::jobs::{self, Begun, Job};
use super::{Api, ApiError, ErrorBody, streams};
use crate::inventory::{self, ImageRef, ImportRequest, Name, Origin, hex};

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
}

/// What to import.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImportImage {
    /// Image it becomes the next version of.
    pub(crate) name: String,
    /// Disk file of any format, or block device, on the server, from "/".
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
        let images = api.inventory.images();
        Ok(Json(images.iter().map(|image| shown(api, image)).collect()))
    })
    .await
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
            origin: Origin::File(PathBuf::from(body.source)),
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
    let spool = streams::receive(&api, body).await?;
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
        Ok(Json(shown(api, &image)))
    })
    .await
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
        let before: Vec<Image> = list_of(api, &meant);
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
fn list_of(api: &Api, meant: &ImageRef) -> Vec<Image> {
    let images = api.inventory.images();
    let named = images.iter().filter(|image| image.name == meant.name);
    named.map(|image| shown(api, image)).collect()
}

pub(super) fn shown(api: &Api, image: &inventory::Image) -> Image {
    let current = api.inventory.image(&ImageRef {
        name: image.name.clone(),
        version: None,
    });
    Image {
        name: image.name.to_string(),
        version: image.version,
        current: current.is_ok_and(|current| current.uuid == image.uuid),
        uuid: image.uuid,
        size_bytes: image.size_bytes,
        stored_bytes: image.stored_bytes(),
        parent: image.parent,
        sha256: hex(&image.sha256),
        comment: image.comment.clone(),
        created: image.created,
    }
}
