//! `/imports`: raw files on their way to becoming images.

use std::path::PathBuf;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::error::{Body, Path};
use super::images::{self, Image};
use super::{Api, ApiError, ErrorBody};
use crate::inventory::{self, ImportRequest, ImportState, Name};

/// What to import.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StartImport {
    /// Image it becomes the next version of.
    pub(crate) name: String,
    /// Raw file or block device on the server, from "/".
    pub(crate) path: String,
    /// The operator's words.
    #[serde(default)]
    pub(crate) comment: String,
}

/// An import, running or ended.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Import {
    /// Its id.
    #[schema(value_type = String, format = "uuid")]
    pub(crate) id: Uuid,
    /// Image it becomes the next version of.
    pub(crate) name: String,
    /// Raw file or block device.
    pub(crate) path: String,
    /// How it stands.
    pub(crate) state: ImportStateWord,
    /// Bytes of the source.
    pub(crate) total_bytes: u64,
    /// Bytes dealt with so far.
    pub(crate) done_bytes: u64,
    /// What became of it, once done.
    pub(crate) image: Option<Image>,
    /// Why it was given up, once failed.
    pub(crate) error: Option<String>,
}

/// How an import stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = ImportState)]
pub(crate) enum ImportStateWord {
    /// At work.
    Running,
    /// Published.
    Done,
    /// Given up; nothing was changed.
    Failed,
}

/// Lists the imports of this run of the server, oldest first.
#[utoipa::path(get, path = "/imports", tag = "images", operation_id = "list_imports",
    responses((status = 200, description = "every import", body = Vec<Import>)))]
pub(super) async fn list(State(api): State<Api>) -> Result<Json<Vec<Import>>, ApiError> {
    api.work(|api| {
        let imports = api.inventory.imports();
        Ok(Json(imports.into_iter().map(|i| shown(api, i)).collect()))
    })
    .await
}

/// Starts an import; it goes on without the asker.
#[utoipa::path(post, path = "/imports", tag = "images", operation_id = "start_import",
    request_body = StartImport,
    responses((status = 202, description = "the import, begun", body = Import),
        (status = 400, description = "not a raw disk image", body = ErrorBody),
        (status = 409, description = "too many are running", body = ErrorBody)))]
pub(super) async fn start(
    State(api): State<Api>,
    Body(body): Body<StartImport>,
) -> Result<(StatusCode, Json<Import>), ApiError> {
    api.work(move |api| {
        let import = api.inventory.start_import(ImportRequest {
            name: Name::parse(&body.name)?,
            source: PathBuf::from(body.path),
            comment: body.comment,
        })?;
        Ok((StatusCode::ACCEPTED, Json(shown(api, import))))
    })
    .await
}

/// Shows how an import stands.
#[utoipa::path(get, path = "/imports/{id}", tag = "images", operation_id = "show_import",
    params(("id" = String, Path, format = "uuid")),
    responses((status = 200, description = "the import as it stands", body = Import),
        (status = 404, description = "there is none", body = ErrorBody)))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(id): Path<Uuid>,
) -> Result<Json<Import>, ApiError> {
    api.work(move |api| Ok(Json(shown(api, api.inventory.import(id)?))))
        .await
}

/// Tells an import to stop; it removes what it has written.
#[utoipa::path(delete, path = "/imports/{id}", tag = "images", operation_id = "cancel_import",
    params(("id" = String, Path, format = "uuid")),
    responses((status = 202, description = "it has been told"),
        (status = 404, description = "there is none", body = ErrorBody)))]
pub(super) async fn cancel(
    State(api): State<Api>,
    Path(id): Path<Uuid>,
) -> Result<StatusCode, ApiError> {
    api.work(move |api| {
        api.inventory.cancel_import(id)?;
        Ok(StatusCode::ACCEPTED)
    })
    .await
}

fn shown(api: &Api, import: inventory::Import) -> Import {
    let (state, image, error) = match import.state {
        ImportState::Running => (ImportStateWord::Running, None, None),
        ImportState::Done(image) => {
            let image = images::shown(api, &image);
            (ImportStateWord::Done, Some(image), None)
        }
        ImportState::Failed(error) => (ImportStateWord::Failed, None, Some(error)),
    };
    Import {
        id: import.id,
        name: import.name.to_string(),
        path: import.source.display().to_string(),
        state,
        total_bytes: import.total_bytes,
        done_bytes: import.done_bytes,
        image,
        error,
    }
}
