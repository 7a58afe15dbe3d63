//! Bodies of any length: what a client sends from its standard input, or wants
//! on its standard output.

use std::io;

use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use disk::{Allocation, Disk, DiskError, SharedDisk};
use http_body_util::BodyExt as _;
use http_body_util::channel::Channel;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::{Api, ApiError};
use crate::inventory::{Becomes, Spool};

/// Pieces of a body between the socket and the file.
const PIECES_MAX: usize = 16;

/// Keeps a whole body in a file; a body that breaks off leaves nothing.
pub(super) async fn receive(api: &Api, body: Body, becomes: Becomes) -> Result<Spool, ApiError> {
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    let writing = tokio::spawn({
        let api = api.clone();
        async move { api.work(move |api| write(api, receiver, becomes)).await }
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

/// The bytes of a disk as an answer; a disk that cannot be read breaks it off.
pub(super) fn pour(disk: SharedDisk) -> Response {
    let (mut sender, body) = Channel::<Bytes, io::Error>::new(PIECES_MAX);
    let size_bytes = disk.geometry().size_bytes;
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || {
        let mut at = 0;
        while at < size_bytes {
            let piece = match piece(&*disk, at, size_bytes) {
                Ok(piece) => piece,
                Err(error) => return sender.abort(io::Error::other(error)),
            };
            at += piece.len() as u64;
            if runtime.block_on(sender.send_data(piece)).is_err() {
                // The asker has gone.
                return;
            }
        }
    });
    let headers = [
        (CONTENT_TYPE, "application/octet-stream".to_owned()),
        (CONTENT_LENGTH, size_bytes.to_string()),
    ];
    (headers, Body::new(body)).into_response()
}

/// Bytes of a disk sent at a time.
const PIECE_BYTES: usize = 1 << 20;

/// What is at `at`; where nothing is stored, nothing is read.
fn piece(disk: &dyn Disk, at: u64, size_bytes: u64) -> Result<Bytes, DiskError> {
    static ZEROS: [u8; PIECE_BYTES] = [0; PIECE_BYTES];
    let extent = disk.extent(at, size_bytes - at)?;
    let length = usize::try_from(extent.bytes)
        .unwrap_or(usize::MAX)
        .min(PIECE_BYTES);
    if extent.allocation == Allocation::Deallocated {
        return Ok(Bytes::from_static(&ZEROS[..length]));
    }
    let mut bytes = vec![0; length];
    disk.read(at, &mut bytes)?;
    Ok(bytes.into())
}

fn write(
    api: &Api,
    mut pieces: mpsc::Receiver<Bytes>,
    becomes: Becomes,
) -> Result<Spool, ApiError> {
    let mut spool = api.inventory.spool("standard input", becomes)?;
    while let Some(piece) = pieces.blocking_recv() {
        spool.write(&piece)?;
    }
    spool.finish()?;
    Ok(spool)
}
