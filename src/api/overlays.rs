//! `/overlays`: machines' private writes.
//!
//! One is named by its UUID, or by its machine: that is the overlay above the
//! image the machine boots.

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

use super::error::{Body, Path};
use super::machines::{Mode, said};
use super::{Api, ApiError, ErrorBody};
use crate::inventory::{self, Assignment, Machine};
use crate::timeline::Stage;

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
    /// Whether its machine went back to a restore point and writes on another
    /// overlay since.
    pub(crate) former: bool,
    /// What it takes of the file system; what it shares with others is counted
    /// with each.
    pub(crate) stored_bytes: u64,
    /// The most it may hold.
    pub(crate) quota_bytes: Option<u64>,
    /// How many restore points it has.
    pub(crate) points: usize,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) created: Timestamp,
}

/// What to change about an overlay.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SetOverlay {
    /// The most it may hold; `null`: as much as there is room for.
    #[serde(
        default,
        deserialize_with = "said",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<u64>)]
    pub(crate) quota_bytes: Option<Option<u64>>,
}

/// Lists every overlay, oldest first, then the former ones.
#[utoipa::path(get, path = "/overlays", tag = "overlays", operation_id = "list_overlays",
    responses((status = 200, description = "every overlay", body = Vec<Overlay>)))]
pub(super) async fn list(State(api): State<Api>) -> Result<Json<Vec<Overlay>>, ApiError> {
    api.work(|api| {
        let machines = api.inventory.machines()?;
        let present = api.inventory.overlays()?.into_iter().map(|o| (o, false));
        let former = api.inventory.former_overlays()?.into_iter();
        let all = present.chain(former.map(|o| (o, true)));
        let shown = all.map(|(overlay, former)| shown(api, &machines, &overlay, former));
        Ok(Json(shown.collect()))
    })
    .await
}

/// Shows an overlay.
#[utoipa::path(get, path = "/overlays/{overlay}", tag = "overlays",
    operation_id = "show_overlay",
    params(("overlay" = String, Path, description = "its UUID, or its machine")),
    responses((status = 200, description = "the overlay", body = Overlay),
        (status = 404, description = "there is none", body = ErrorBody)))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(overlay): Path<String>,
) -> Result<Json<Overlay>, ApiError> {
    api.work(move |api| {
        let (overlay, former) = named(api, &overlay)?;
        let machines = api.inventory.machines()?;
        Ok(Json(shown(api, &machines, &overlay, former)))
    })
    .await
}

/// Sets what an overlay may hold at most, while its machine runs too.
#[utoipa::path(patch, path = "/overlays/{overlay}", tag = "overlays",
    operation_id = "set_overlay",
    params(("overlay" = String, Path, description = "its UUID, or its machine")),
    request_body = SetOverlay,
    responses((status = 200, description = "the overlay", body = Overlay),
        (status = 404, description = "there is none", body = ErrorBody)))]
pub(super) async fn set(
    State(api): State<Api>,
    Path(overlay): Path<String>,
    Body(body): Body<SetOverlay>,
) -> Result<Json<Overlay>, ApiError> {
    api.work(move |api| {
        let overlay = present(api, &overlay)?;
        if let Some(quota_bytes) = body.quota_bytes {
            with(api, &overlay, |open| {
                open.set_quota(quota_bytes).map_err(inventory::unopened)
            })?;
            let words = match quota_bytes {
                Some(bytes) => format!("its quota is {bytes} bytes"),
                None => "it has no quota".to_owned(),
            };
            record(api, &overlay, words);
        }
        let machines = api.inventory.machines()?;
        Ok(Json(shown(api, &machines, &overlay, false)))
    })
    .await
}

/// Removes an overlay with its restore points: its machine begins afresh at its
/// next boot. That of a machine that runs is refused.
#[utoipa::path(delete, path = "/overlays/{overlay}", tag = "overlays",
    operation_id = "remove_overlay",
    params(("overlay" = String, Path, description = "its UUID, or its machine")),
    responses((status = 204, description = "removed"),
        (status = 404, description = "there is none", body = ErrorBody),
        (status = 409, description = "its machine runs", body = ErrorBody)))]
pub(super) async fn remove(
    State(api): State<Api>,
    Path(overlay): Path<String>,
) -> Result<StatusCode, ApiError> {
    api.work(move |api| {
        let (overlay, former) = named(api, &overlay)?;
        if former {
            api.inventory.remove_former(overlay.uuid)?;
        } else {
            closed(api, overlay.machine, || {
                api.inventory.remove_overlay(overlay.uuid)
            })?;
            record(api, &overlay, "its writes and restore points were removed");
        }
        tracing::info!(overlay = %overlay.uuid, former, "removed");
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

/// The overlay that is meant, and whether it is a former one.
pub(super) fn named(api: &Api, meant: &str) -> Result<(inventory::Overlay, bool), ApiError> {
    if let Ok(uuid) = Uuid::parse_str(meant) {
        return Ok(match api.inventory.overlay(uuid) {
            Ok(overlay) => (overlay, false),
            Err(_) => (api.inventory.former_overlay(uuid)?, true),
        });
    }
    let machine = api.inventory.machine_by_name(meant)?;
    let booted = machine.assignment.as_ref().and_then(Assignment::image);
    if let Some(image) = booted
        && let Some(overlay) = api.inventory.overlay_of(machine.id, &image.name)?
    {
        return Ok((overlay, false));
    }
    let mut overlays = api.inventory.overlays()?;
    overlays.retain(|overlay| overlay.machine == machine.id);
    match (overlays.pop(), overlays.is_empty()) {
        (Some(overlay), true) => Ok((overlay, false)),
        (None, _) => Err(ApiError::not_found(format!(
            "{meant} has no overlay: it gets one when it boots an image"
        ))),
        (Some(_), false) => Err(ApiError::conflict(format!(
            "{meant} has more than one overlay: say which, by the UUID that `diskless overlay \
             list` shows"
        ))),
    }
}

/// The overlay that is meant; refuses a former one.
pub(super) fn present(api: &Api, meant: &str) -> Result<inventory::Overlay, ApiError> {
    match named(api, meant)? {
        (overlay, false) => Ok(overlay),
        (_, true) => Err(ApiError::conflict(format!(
            "{meant} is a former overlay: one can only look at its restore points, go back to \
             one, and remove it"
        ))),
    }
}

/// Does `work` with an overlay: as its machine has it open, or opened for this.
pub(super) fn with<T>(
    api: &Api,
    overlay: &inventory::Overlay,
    work: impl Fn(&disk::Overlay) -> inventory::Result<T>,
) -> Result<T, ApiError> {
    let mut done = None;
    api.live.with_overlay(overlay, &mut |open| {
        done = Some(match open {
            Some(open) => work(open),
            None => api.inventory.open_overlay(overlay).and_then(|open| {
                let worked = work(&open)?;
                open.close().map_err(|e| inventory::unopened(e.into()))?;
                Ok(worked)
            }),
        });
    });
    let done = done.ok_or_else(|| ApiError::internal("nothing was done: see the server's log"))?;
    Ok(done?)
}

/// Does `work` while a machine's disk is closed; refused while it runs.
pub(super) fn closed<T>(
    api: &Api,
    machine: Uuid,
    work: impl Fn() -> inventory::Result<T>,
) -> Result<T, ApiError> {
    if api.live.machine_in_use(machine) {
        let machine = api.inventory.machine(machine)?;
        return Err(ApiError::conflict(format!(
            "{} is running: shut it down first",
            machine.name
        )));
    }
    let mut done = None;
    api.live.while_closed(machine, &mut || done = Some(work()));
    let done = done.ok_or_else(|| ApiError::internal("nothing was done: see the server's log"))?;
    Ok(done?)
}

/// Puts into the machine's timeline what was done to its overlay.
pub(super) fn record(api: &Api, overlay: &inventory::Overlay, words: impl Into<String>) {
    let words = words.into();
    tracing::info!(overlay = %overlay.uuid, "{words}");
    if let Ok(machine) = api.inventory.machine(overlay.machine) {
        api.timeline
            .record(machine.mac, Stage::OverlayChanged, words);
    }
}

pub(super) fn shown(
    api: &Api,
    machines: &[Machine],
    overlay: &inventory::Overlay,
    former: bool,
) -> Overlay {
    let owner = machines
        .iter()
        .find(|machine| machine.id == overlay.machine);
    let directory = api.inventory.overlay_directory(overlay.uuid);
    let quota_bytes = disk::Overlay::inspect(&directory).ok();
    Overlay {
        uuid: overlay.uuid,
        machine: owner.map_or_else(String::new, |owner| owner.name.to_string()),
        image: format!("{}@{}", overlay.image, overlay.version),
        mode: overlay.mode.into(),
        former,
        stored_bytes: stored_bytes(&directory),
        quota_bytes: quota_bytes.and_then(|head| head.quota_bytes),
        points: disk::Overlay::points(&directory).map_or(0, |points| points.len()),
        created: overlay.created,
    }
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
