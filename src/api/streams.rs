//! Bodies of any length: what a client sends from its standard input.

use axum::body::{Body, Bytes};
use http_body_util::BodyExt as _;
use tokio::sync::mpsc;

use super::{Api, ApiError};
use crate::inventory::Spool;

/// Pieces of a body between the socket and the file.
const PIECES_MAX: usize = 16;

/// Keeps a whole body in a file; a body that breaks off leaves nothing.
pub(super) async fn receive(api: &Api, body: Body) -> Result<Spool, ApiError> {
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    let writing = tokio::spawn({
        let api = api.clone();
        async move { api.work(move |api| write(api, receiver)).await }
    });
    let sent = send(body, sender).await;
    let written = writing
        .await
        .unwrap_or_else(|_| Err(ApiError::internal("the server failed inside: see its log")))?;
    sent?;
    Ok(written)
}

async fn send(mut body: Body, sender: mpsc::Sender<Bytes>) -> Result<(), ApiError> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| ApiError::invalid(format!("the stream broke off: {e}")))?;
        if let Ok(bytes) = frame.into_data()
            && sender.send(bytes).await.is_err()
        {
            // The writer has ended, and says why.
            break;
        }
    }
    Ok(())
}

fn write(api: &Api, mut pieces: mpsc::Receiver<Bytes>) -> Result<Spool, ApiError> {
    let mut spool = api.inventory.spool("standard input")?;
    while let Some(piece) = pieces.blocking_recv() {
        spool.write(&piece)?;
    }
    spool.finish()?;
    Ok(spool)
}
