//! The certificate of our own authority, for whoever enrols it.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::text_response;
use crate::services::Site;

/// `/ca.pem`, and `/ca.cer` as firmware reads it from a stick (DER).
pub(super) async fn authority(State(site): State<Arc<Site>>, request: Request) -> Response<Body> {
    let Some(pem) = &site.authority else {
        return text_response(
            StatusCode::NOT_FOUND,
            "there is no certificate authority of ours here (http.tls_port)\n".into(),
        );
    };
    let bytes = if request.uri().path().ends_with(".cer") {
        match CertificateDer::from_pem_slice(pem.as_bytes()) {
            Ok(der) => Bytes::copy_from_slice(&der),
            Err(error) => {
                tracing::error!(%error, "reading our own authority's certificate");
                return text_response(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the certificate cannot be read\n".into(),
                );
            }
        }
    } else {
        Bytes::copy_from_slice(pem.as_bytes())
    };
    let mut response = Response::new(Body::from(bytes));
    let kind = HeaderValue::from_static("application/x-x509-ca-cert");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
