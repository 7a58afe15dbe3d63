//! Refusals: one sentence and the status code that fits.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{self, FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::inventory;

/// A refused request.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    sentence: String,
}

/// A refusal as it is sent.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = Error)]
pub(crate) struct ErrorBody {
    /// What is wrong and what to do, for people.
    pub(crate) error: String,
}

impl ApiError {
    fn new(status: StatusCode, sentence: impl Into<String>) -> ApiError {
        ApiError {
            status,
            sentence: sentence.into(),
        }
    }

    /// 400.
    pub(super) fn invalid(sentence: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, sentence)
    }

    /// 403.
    pub(super) fn forbidden(sentence: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, sentence)
    }

    /// 404.
    pub(super) fn not_found(sentence: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, sentence)
    }

    /// 409.
    pub(super) fn conflict(sentence: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::CONFLICT, sentence)
    }

    /// 500.
    pub(super) fn internal(sentence: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, sentence)
    }
}

impl From<inventory::Error> for ApiError {
    fn from(error: inventory::Error) -> ApiError {
        let status = match error {
            inventory::Error::Invalid(_) => StatusCode::BAD_REQUEST,
            inventory::Error::NotFound(_) => StatusCode::NOT_FOUND,
            inventory::Error::Conflict(_) => StatusCode::CONFLICT,
            inventory::Error::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::error!("API: {}", self.sentence);
        }
        let body = ErrorBody {
            error: self.sentence,
        };
        (self.status, Json(body)).into_response()
    }
}

macro_rules! refuse_in_our_words {
    ($($rejection:ty),*) => {$(
        impl From<$rejection> for ApiError {
            fn from(rejection: $rejection) -> ApiError {
                ApiError::new(rejection.status(), rejection.body_text())
            }
        }
    )*};
}

refuse_in_our_words!(JsonRejection, PathRejection, QueryRejection);

/// A JSON body; one that is none is refused in our own shape.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let Json(body) = Json::from_request(request, state).await?;
        Ok(Body(body))
    }
}

/// A part of the path, refused likewise.
pub(super) struct Path<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let extract::Path(path) = extract::Path::from_request_parts(parts, state).await?;
        Ok(Path(path))
    }
}

/// The query, refused likewise.
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let extract::Query(query) = extract::Query::from_request_parts(parts, state).await?;
        Ok(Query(query))
    }
}

pub(super) async fn no_such_path(uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        format!(
            "there is nothing at {}: see /api/v1/openapi.json",
            uri.path()
        ),
    )
}

pub(super) async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} cannot be asked to {method}", uri.path()),
    )
}
