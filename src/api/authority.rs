//! `/ca`: the certificate authority of our own, which HTTPS is proven by.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Api, ApiError};
use crate::inventory::Error;

/// Where the certificate lies in the data directory.
const CERTIFICATE: &str = "tls/ca.pem";

/// The authority, as firmware and people enrol it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Authority {
    /// The file it lies in.
    pub(crate) file: String,
    /// Its certificate, PEM.
    pub(crate) certificate: String,
}

/// Shows the certificate authority that the server has made for HTTPS.
#[utoipa::path(get, path = "/ca", tag = "status", operation_id = "show_authority",
    responses(
        (status = 200, description = "the authority", body = Authority),
        (status = 404, description = "the server has made none")))]
pub(super) async fn show(State(api): State<Api>) -> Result<Json<Authority>, ApiError> {
    api.work(|api| {
        let file = api.inventory.data().join(CERTIFICATE);
        let certificate = std::fs::read_to_string(&file).map_err(|error| {
            Error::NotFound(format!(
                "there is no certificate authority of diskless's own ({}: {error}): set http.tls_port, without a certificate of yours, and start again",
                file.display()
            ))
        })?;
        Ok(Json(Authority {
            file: file.display().to_string(),
            certificate,
        }))
    })
    .await
}
