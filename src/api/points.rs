//! `/overlays/{overlay}/points`: restore points, going back to one, branching
//! from one, and committing.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::error::{Body, Path};
use super::exports::ExportDisk;
use super::jobs::{self, Begun, Job};
use super::overlays::{Overlay, closed, named, present, record, shown as shown_overlay, with};
use super::{Api, ApiError, ErrorBody, streams};
use crate::inventory::{CommitRequest, FoundPoint, Name, note, short, unopened};

/// A moment of an overlay one can go back to.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Point {
    /// Its id; its beginning does, where it is the only one.
    pub(crate) id: String,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) created: Timestamp,
    /// Made by the schedule, so that it is given up in time.
    pub(crate) automatic: bool,
    /// What its maker said of it.
    pub(crate) comment: String,
    /// What was written between the point before and this one.
    pub(crate) stored_bytes: u64,
    /// The overlay that has it.
    #[schema(value_type = String, format = "uuid")]
    pub(crate) overlay: Uuid,
    /// Whether that is a former one: of a state the machine went back from.
    pub(crate) former: bool,
}

/// A restore point to make.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MakePoint {
    /// What to remember about it.
    #[serde(default)]
    pub(crate) comment: String,
}

/// Which restore point to go back to.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Restore {
    /// Its id, the beginning of one, or "latest".
    pub(crate) point: String,
}

/// What became of going back.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Restored {
    /// What the machine goes on with.
    pub(crate) overlay: Overlay,
    /// The point it went back to.
    pub(crate) point: Point,
    /// The overlay it had, which is kept.
    pub(crate) former: Overlay,
    /// The point of its last state, where it had written since the last one.
    pub(crate) last: Option<String>,
}

/// Where another machine begins.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Branch {
    /// The point's id, the beginning of one, or "latest".
    pub(crate) point: String,
    /// The other machine.
    pub(crate) to: String,
}

/// What to commit, and as what.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Commit {
    /// Another image, new or not; its own when it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) image: Option<String>,
    /// What to remember about the version.
    #[serde(default)]
    pub(crate) comment: String,
    /// Of a machine that runs, too: as a loss of power would leave its disk.
    #[serde(default)]
    pub(crate) crash_consistent: bool,
}

/// Lists the restore points of an overlay and of its machine's former ones,
/// oldest first.
#[utoipa::path(get, path = "/overlays/{overlay}/points", tag = "overlays",
    operation_id = "list_points",
    params(("overlay" = String, Path, description = "its UUID, or its machine")),
    responses((status = 200, description = "its points", body = Vec<Point>),
        (status = 404, description = "there is none", body = ErrorBody)))]
pub(super) async fn list(
    State(api): State<Api>,
    Path(overlay): Path<String>,
) -> Result<Json<Vec<Point>>, ApiError> {
    api.work(move |api| {
        let (overlay, _) = named(api, &overlay)?;
        let points = api.inventory.points(&overlay)?;
        Ok(Json(points.iter().map(shown).collect()))
    })
    .await
}

/// Makes a restore point, while the machine runs too.
#[utoipa::path(post, path = "/overlays/{overlay}/points", tag = "overlays",
    operation_id = "make_point",
    params(("overlay" = String, Path, description = "its UUID, or its machine")),
    request_body = MakePoint,
    responses((status = 201, description = "the point", body = Point),
        (status = 404, description = "there is no such overlay", body = ErrorBody),
        (status = 409, description = "there are too many points", body = ErrorBody)))]
pub(super) async fn add(
    State(api): State<Api>,
    Path(overlay): Path<String>,
    Body(body): Body<MakePoint>,
) -> Result<(StatusCode, Json<Point>), ApiError> {
    api.work(move |api| {
        let overlay = present(api, &overlay)?;
        let note = note(&body.comment, false)?;
        let point = with(api, &overlay, |open| {
            open.point(note.clone()).map_err(unopened)
        })?;
        record(
            api,
            &overlay,
            format!("restore point {}", short(point.note.id)),
        );
        let found = FoundPoint {
            point,
            overlay,
            former: false,
        };
        Ok((StatusCode::CREATED, Json(shown(&found))))
    })
    .await
}

/// Gives a restore point up; what it alone holds goes.
#[utoipa::path(delete, path = "/overlays/{overlay}/points/{point}", tag = "overlays",
    operation_id = "remove_point",
    params(("overlay" = String, Path, description = "its UUID, or its machine"),
        ("point" = String, Path, description = "its id, or the beginning of one")),
    responses((status = 204, description = "removed"),
        (status = 404, description = "there is none", body = ErrorBody),
        (status = 409, description = "it is of a former overlay", body = ErrorBody)))]
pub(super) async fn remove(
    State(api): State<Api>,
    Path((overlay, point)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    api.work(move |api| {
        let overlay = present(api, &overlay)?;
        let found = api.inventory.point(&overlay, &point)?;
        let id = found.point.note.id;
        if found.former {
            return Err(ApiError::conflict(format!(
                "{} is of a former overlay: `diskless overlay remove {}` removes that whole",
                short(id),
                found.overlay.uuid
            )));
        }
        with(api, &overlay, |open| {
            open.forget_points(&[id])
                .and_then(|()| open.tend_while(&|| api.live.is_nobody_waiting()))
                .map_err(unopened)
        })?;
        record(
            api,
            &overlay,
            format!("restore point {} removed", short(id)),
        );
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

/// Lets a machine go on from a restore point, from its next boot on. What it
/// has written since is kept, as a former overlay. Refused while it runs.
#[utoipa::path(post, path = "/overlays/{overlay}/restoration", tag = "overlays",
    operation_id = "restore_overlay",
    params(("overlay" = String, Path, description = "its UUID, or its machine")),
    request_body = Restore,
    responses((status = 200, description = "what the machine goes on with", body = Restored),
        (status = 404, description = "there is no such point", body = ErrorBody),
        (status = 409, description = "the machine runs, or keeps nothing", body = ErrorBody)))]
pub(super) async fn restore(
    State(api): State<Api>,
    Path(overlay): Path<String>,
    Body(body): Body<Restore>,
) -> Result<Json<Restored>, ApiError> {
    api.work(move |api| {
        let overlay = present(api, &overlay)?;
        let at = api.inventory.point(&overlay, &body.point)?;
        let (new, last) = closed(api, overlay.machine, || {
            api.inventory.restore(&overlay, &at)
        })?;
        let words = format!("went back to restore point {}", short(at.point.note.id));
        record(api, &new, words);
        let machines = api.inventory.machines()?;
        Ok(Json(Restored {
            overlay: shown_overlay(api, &machines, &new, false),
            point: shown(&at),
            former: shown_overlay(api, &machines, &overlay, true),
            last: last.map(|id| id.to_string()),
        }))
    })
    .await
}

/// Lets another machine begin from a restore point, with a kept overlay of its
/// own. Refused while that one runs.
#[utoipa::path(post, path = "/overlays/{overlay}/branches", tag = "overlays",
    operation_id = "branch_overlay",
    params(("overlay" = String, Path, description = "its UUID, or its machine")),
    request_body = Branch,
    responses((status = 201, description = "the other machine's overlay", body = Overlay),
        (status = 404, description = "there is no such point or machine", body = ErrorBody),
        (status = 409, description = "the other one runs, or has an overlay", body = ErrorBody)))]
pub(super) async fn branch(
    State(api): State<Api>,
    Path(overlay): Path<String>,
    Body(body): Body<Branch>,
) -> Result<(StatusCode, Json<Overlay>), ApiError> {
    api.work(move |api| {
        let (overlay, _) = named(api, &overlay)?;
        let at = api.inventory.point(&overlay, &body.point)?;
        let to = api.inventory.machine_by_name(&body.to)?;
        let new = closed(api, to.id, || api.inventory.branch(&at, &to))?;
        let from = api.inventory.machine(overlay.machine)?;
        let point = short(at.point.note.id);
        record(
            api,
            &new,
            format!("begins from restore point {point} of {}", from.name),
        );
        let machines = api.inventory.machines()?;
        let shown = shown_overlay(api, &machines, &new, false);
        Ok((StatusCode::CREATED, Json(shown)))
    })
    .await
}

/// Writes what an overlay held at a restore point to a file of another
/// program's: a job, whose result is the file. The machine may run meanwhile.
#[utoipa::path(post, path = "/overlays/{overlay}/points/{point}/export", tag = "overlays",
    operation_id = "export_point",
    params(("overlay" = String, Path, description = "its UUID, or its machine"),
        ("point" = String, Path, description = "its id, the beginning of one, or \"latest\"")),
    request_body = ExportDisk,
    responses((status = 202, description = "the export, begun", body = Job),
        (status = 404, description = "there is no such point", body = ErrorBody),
        (status = 409, description = "the file is there", body = ErrorBody)))]
pub(super) async fn export(
    State(api): State<Api>,
    Path((overlay, point)): Path<(String, String)>,
    Body(body): Body<ExportDisk>,
) -> Result<Begun, ApiError> {
    api.work(move |api| {
        let (overlay, _) = named(api, &overlay)?;
        let at = api.inventory.point(&overlay, &point)?;
        Ok(jobs::begun(
            api,
            api.inventory.export_point(&at, body.into())?,
        ))
    })
    .await
}

/// The bytes of what an overlay held at a restore point.
#[utoipa::path(get, path = "/overlays/{overlay}/points/{point}/content", tag = "overlays",
    operation_id = "point_content",
    params(("overlay" = String, Path, description = "its UUID, or its machine"),
        ("point" = String, Path, description = "its id, the beginning of one, or \"latest\"")),
    responses((status = 200, description = "the disk, raw",
            content_type = "application/octet-stream"),
        (status = 404, description = "there is no such point", body = ErrorBody)))]
pub(super) async fn content(
    State(api): State<Api>,
    Path((overlay, point)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let disk = api
        .work(move |api| {
            let (overlay, _) = named(api, &overlay)?;
            let at = api.inventory.point(&overlay, &point)?;
            Ok(api.inventory.open_point(&at)?)
        })
        .await?;
    Ok(streams::pour(disk))
}

/// Makes what a machine has on its disk the next version of its image, or of
/// another: a restore point, and then a job, whose result is the image. One
/// that runs is refused, unless a state as after a loss of power will do.
#[utoipa::path(post, path = "/overlays/{overlay}/commits", tag = "overlays",
    operation_id = "commit_overlay",
    params(("overlay" = String, Path, description = "its UUID, or its machine")),
    request_body = Commit,
    responses((status = 202, description = "the commit, begun", body = Job),
        (status = 404, description = "there is no such overlay", body = ErrorBody),
        (status = 409, description = "the machine runs", body = ErrorBody)))]
pub(super) async fn commit(
    State(api): State<Api>,
    Path(overlay): Path<String>,
    Body(body): Body<Commit>,
) -> Result<Begun, ApiError> {
    api.work(move |api| {
        let overlay = present(api, &overlay)?;
        let name = body.image.as_deref().map(Name::parse).transpose()?;
        if !body.crash_consistent && api.live.machine_in_use(overlay.machine) {
            let machine = api.inventory.machine(overlay.machine)?;
            return Err(ApiError::conflict(format!(
                "{} is running: shut it down first, or take its disk as a loss of power would \
                 leave it, with --crash-consistent",
                machine.name
            )));
        }
        let note = note("committed", false)?;
        let point = with(api, &overlay, |open| {
            open.point(note.clone()).map_err(unopened)
        })?;
        let job = api.inventory.start_commit(CommitRequest {
            overlay: overlay.uuid,
            at: point.note.id,
            name,
            comment: body.comment,
        })?;
        let point = short(point.note.id);
        record(
            api,
            &overlay,
            format!("is being committed, as of restore point {point}"),
        );
        Ok(jobs::begun(api, job))
    })
    .await
}

pub(super) fn shown(found: &FoundPoint) -> Point {
    let note = &found.point.note;
    Point {
        id: note.id.to_string(),
        created: i64::try_from(note.created)
            .ok()
            .and_then(|seconds| Timestamp::from_second(seconds).ok())
            .unwrap_or_default(),
        automatic: note.automatic,
        comment: note.comment.clone(),
        stored_bytes: found.point.stored_bytes,
        overlay: found.overlay.uuid,
        former: found.former,
    }
}
