//! `/jobs`: what takes long, begun by other requests.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::error::Path;
use super::{Api, ApiError, ErrorBody, disks, exports, images};
use crate::inventory::{self, JobState, Outcome};

/// A job, running or ended.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Job {
    /// Its id.
    #[schema(value_type = String, format = "uuid")]
    pub(crate) id: Uuid,
    /// What it does: `import`, `export` and so on.
    pub(crate) kind: String,
    /// To what, by the name people know.
    pub(crate) subject: String,
    /// What it is at just now, where it has several steps.
    pub(crate) step: Option<String>,
    /// How it stands.
    pub(crate) state: JobStateWord,
    /// Bytes of this step, once they are known.
    pub(crate) total_bytes: Option<u64>,
    /// Bytes of this step that are done.
    pub(crate) done_bytes: u64,
    /// What it made or found out, once done: for an import, the image.
    #[schema(value_type = Option<Object>)]
    pub(crate) result: Option<Value>,
    /// Why it was given up, once failed or cancelled.
    pub(crate) error: Option<String>,
    /// When it was begun.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) started: Timestamp,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) ended: Option<Timestamp>,
}

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = JobState)]
pub(crate) enum JobStateWord {
    /// At work.
    Running,
    /// Ended as it should.
    Done,
    /// Given up; nothing was changed.
    Failed,
    /// Told to stop; nothing was changed.
    Cancelled,
}

/// A job that has begun, as its starters answer it.
pub(super) type Begun = (StatusCode, Json<Job>);

/// Lists the jobs of this run of the server, oldest first.
#[utoipa::path(get, path = "/jobs", tag = "jobs", operation_id = "list_jobs",
    responses((status = 200, description = "every job", body = Vec<Job>)))]
pub(super) async fn list(State(api): State<Api>) -> Result<Json<Vec<Job>>, ApiError> {
    api.work(|api| {
        let jobs = api.inventory.jobs();
        Ok(Json(jobs.into_iter().map(|job| shown(api, job)).collect()))
    })
    .await
}

/// Shows how a job stands.
#[utoipa::path(get, path = "/jobs/{id}", tag = "jobs", operation_id = "show_job",
    params(("id" = String, Path, format = "uuid")),
    responses((status = 200, description = "the job as it stands", body = Job),
        (status = 404, description = "there is none", body = ErrorBody)))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(id): Path<Uuid>,
) -> Result<Json<Job>, ApiError> {
    api.work(move |api| Ok(Json(shown(api, api.inventory.job(id)?))))
        .await
}

/// Tells a job to stop; it has when it is no longer running.
#[utoipa::path(delete, path = "/jobs/{id}", tag = "jobs", operation_id = "cancel_job",
    params(("id" = String, Path, format = "uuid")),
    responses((status = 202, description = "it has been told"),
        (status = 404, description = "there is none", body = ErrorBody)))]
pub(super) async fn cancel(
    State(api): State<Api>,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, ApiError> {
    api.work(move |api| {
        api.inventory.cancel_job(id)?;
        Ok(StatusCode::ACCEPTED)
    })
    .await
}

/// The answer to a request that began a job.
pub(super) fn begun(api: &Api, job: inventory::Job) -> Begun {
    (StatusCode::ACCEPTED, Json(shown(api, job)))
}

fn shown(api: &Api, job: inventory::Job) -> Job {
    let kind = job.kind.noun();
    let (state, result, error) = match job.state {
        JobState::Running => (JobStateWord::Running, None, None),
        JobState::Done(outcome) => (JobStateWord::Done, Some(result(api, &outcome)), None),
        JobState::Failed(error) => (JobStateWord::Failed, None, Some(error)),
        JobState::Cancelled => {
            let error = format!("the {kind} was cancelled; nothing was kept");
            (JobStateWord::Cancelled, None, Some(error))
        }
    };
    Job {
        id: job.id,
        kind: kind.to_owned(),
        subject: job.subject,
        step: (!job.step.is_empty()).then(|| job.step.to_owned()),
        state,
        total_bytes: job.total_bytes,
        done_bytes: job.done_bytes,
        result,
        error,
        started: job.started,
        ended: job.ended,
    }
}

/// What came of a job, in the shape its noun has everywhere else.
fn result(api: &Api, outcome: &Outcome) -> Value {
    let shown = match outcome {
        Outcome::Exported(exported) => serde_json::to_value(exports::shown(exported)),
        Outcome::Image(image) => serde_json::to_value(images::shown(api, image).ok()),
        Outcome::Disk(disk) => serde_json::to_value(disks::shown(api, disk).ok()),
        Outcome::Verification(image, found) => serde_json::to_value(images::verified(image, found)),
    };
    // Plain facts always have a shape in JSON.
    shown.unwrap_or_default()
}
