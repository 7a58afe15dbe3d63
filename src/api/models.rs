//! `/models`: what was found to work with each model of firmware.

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Path;
use super::{Api, ApiError, ErrorBody};
use crate::inventory::{self, style_word};

/// A model of firmware that was booted.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Model {
    /// Short, to name it by.
    pub(crate) number: u64,
    /// Kind of firmware, as in `UEFI PXE (x64)`.
    pub(crate) firmware: String,
    /// What it calls itself (DHCP option 60).
    pub(crate) class: String,
    /// Maker of its network card: the first half of the MAC.
    pub(crate) maker: String,
    /// The server's role then: `full` or `proxy`.
    pub(crate) role: String,
    /// Form of the reply that brought it to its loader: `direct`, `plain`,
    /// `binl`, `class-only` or `menu`.
    pub(crate) style: Option<String>,
    /// Loader that was heard of again.
    pub(crate) loader: Option<String>,
    /// When it was found out.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) learned: Timestamp,
}

/// Lists the models, by number.
#[utoipa::path(get, path = "/models", tag = "models", operation_id = "list_models",
    responses((status = 200, description = "every model", body = Vec<Model>)))]
pub(super) async fn list(State(api): State<Api>) -> Result<Json<Vec<Model>>, ApiError> {
    api.work(|api| Ok(Json(shown(api.inventory.models()))))
        .await
}

/// Forgets what was found out of one model: it begins at the first rung of both
/// ladders at its next power-on.
#[utoipa::path(delete, path = "/models/{number}", tag = "models", operation_id = "reset_model",
    params(("number" = u64, Path, description = "as the list shows it")),
    responses((status = 200, description = "what was forgotten", body = Vec<Model>),
        (status = 404, description = "there is none", body = ErrorBody)))]
pub(super) async fn reset(
    State(api): State<Api>,
    Path(number): Path<u64>,
) -> Result<Json<Vec<Model>>, ApiError> {
    api.work(move |api| Ok(Json(shown(api.inventory.forget_models(Some(number))?))))
        .await
}

/// Forgets what was found out of every model.
#[utoipa::path(delete, path = "/models", tag = "models", operation_id = "reset_models",
    responses((status = 200, description = "what was forgotten", body = Vec<Model>)))]
pub(super) async fn reset_all(State(api): State<Api>) -> Result<Json<Vec<Model>>, ApiError> {
    api.work(|api| Ok(Json(shown(api.inventory.forget_models(None)?))))
        .await
}

fn shown(models: Vec<inventory::Model>) -> Vec<Model> {
    let shown = models.into_iter().map(|model| Model {
        number: model.number,
        firmware: model.key.firmware().to_owned(),
        class: model.key.class().to_owned(),
        maker: model
            .key
            .maker()
            .map(|byte| format!("{byte:02x}"))
            .join(":"),
        role: model.role.word().to_owned(),
        style: model.style.map(|style| style_word(style).to_owned()),
        loader: model.loader,
        learned: model.learned,
    });
    shown.collect()
}
