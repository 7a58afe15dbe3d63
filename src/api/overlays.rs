//! `/overlays`: machines' private writes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path as FilePath;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::error::Path;
use super::machines::Mode;
use super::{Api, ApiError, ErrorBody};

/// An overlay.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Overlay {
    /// Names its directory.
    #[schema(value_type = String, format = "uuid")]
    pub(crate) uuid: Uuid,
    /// Name of the machine it belongs to.
    pub(crate) machine: String,
    /// Version below, as in "win11@3".
    pub(crate) image: String,
    /// What becomes of it at the next boot.
    pub(crate) mode: Mode,
    /// What it takes of the file system.
    pub(crate) stored_bytes: u64,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) created: Timestamp,
}

/// Lists every overlay, oldest first.
#[utoipa::path(get, path = "/overlays", tag = "overlays", operation_id = "list_overlays",
    responses((status = 200, description = "every overlay", body = Vec<Overlay>)))]
pub(super) async fn list(State(api): State<Api>) -> Result<Json<Vec<Overlay>>, ApiError> {
    api.work(|api| {
        let machines = api.inventory.machines()?;
        let shown = api.inventory.overlays()?.into_iter().map(|overlay| {
            let owner = machines
                .iter()
                .find(|machine| machine.id == overlay.machine);
            Overlay {
                uuid: overlay.uuid,
                machine: owner.map_or_else(String::new, |owner| owner.name.to_string()),
                image: format!("{}@{}", overlay.image, overlay.version),
                mode: overlay.mode.into(),
                stored_bytes: stored_bytes(&api.inventory.overlay_directory(overlay.uuid)),
                created: overlay.created,
            }
        });
        Ok(Json(shown.collect()))
    })
    .await
}

/// Removes an overlay: its machine begins afresh at its next boot. That of a
/// machine that runs is refused.
#[utoipa::path(delete, path = "/overlays/{uuid}", tag = "overlays",
    operation_id = "remove_overlay",
    params(("uuid" = String, Path, format = "uuid")),
    responses((status = 204, description = "removed"),
        (status = 404, description = "there is none", body = ErrorBody),
        (status = 409, description = "its machine runs", body = ErrorBody)))]
pub(super) async fn remove(
    State(api): State<Api>,
    Path(uuid): Path<Uuid>,
) -> Result<StatusCode, ApiError> {
    api.work(move |api| {
        let overlay = api.inventory.overlay(uuid)?;
        if api.live.machine_in_use(overlay.machine) {
            let machine = api.inventory.machine(overlay.machine)?;
            return Err(ApiError::conflict(format!(
                "{} is running: shut it down first",
                machine.name
            )));
        }
        let mut removed = Ok(());
        api.live.while_closed(overlay.machine, &mut || {
            removed = api.inventory.remove_overlay(uuid);
        });
        removed?;
        tracing::info!(overlay = %uuid, "removed");
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

/// What a directory takes of the file system. Files that go meanwhile count
/// nothing.
fn stored_bytes(directory: &FilePath) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    let entries = entries.flatten().filter_map(|entry| {
        let found = entry.metadata().ok()?;
        let below = if found.is_dir() {
            stored_bytes(&entry.path())
        } else {
            0
        };
        Some(found.blocks() * 512 + below)
    });
    entries.sum()
}
