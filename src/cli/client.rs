//! HTTP to the running server, over its Unix socket.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::api::{ErrorBody, PREFIX};

/// Time for one answer. Removing a large overlay takes a while.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Longest answer read: thousands of machines take a few MiB.
const ANSWER_MAX_BYTES: usize = 256 * 1024 * 1024;

/// A body that is sent as it comes; aborted, it is none.
pub(super) type Stream = Channel<Bytes, io::Error>;

/// Asks the server, one connection for each question.
pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the server on `socket`.
    pub(super) fn new(socket: PathBuf) -> Client {
        Client { socket }
    }

    /// GET; `path` begins after `/api/v1`.
    pub(super) async fn show<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        read(&self.ask(Method::GET, path, Vec::new()).await?)
    }

    /// POST.
    pub(super) async fn add<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        read(
            &self
                .ask(Method::POST, path, serde_json::to_vec(body)?)
                .await?,
        )
    }

    /// PATCH.
    pub(super) async fn set<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        read(
            &self
                .ask(Method::PATCH, path, serde_json::to_vec(body)?)
                .await?,
        )
    }

    /// PUT.
    pub(super) async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        read(
            &self
                .ask(Method::PUT, path, serde_json::to_vec(body)?)
                .await?,
        )
    }

    /// DELETE, of something that answers nothing.
    pub(super) async fn remove(&self, path: &str) -> anyhow::Result<()> {
        self.ask(Method::DELETE, path, Vec::new()).await?;
        Ok(())
    }

    /// DELETE, of something that says what it removed.
    pub(super) async fn remove_shown<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        read(&self.ask(Method::DELETE, path, Vec::new()).await?)
    }

    /// POST of a stream that takes as long as it takes.
    pub(super) async fn send<T: DeserializeOwned>(
        &self,
        path: &str,
        stream: Stream,
    ) -> anyhow::Result<T> {
        let kind = "application/octet-stream";
        read(
            &self
                .ask_at_leisure(Method::POST, path, kind, stream)
                .await?,
        )
    }

    /// GET of a body of any length: `piece` hears how long it is, where that is
    /// known, and each part of it. An error is a body that broke off.
    pub(super) async fn receive(
        &self,
        path: &str,
        mut piece: impl FnMut(Option<u64>, &[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let empty = Full::new(Bytes::new());
        let response = self.request(Method::GET, path, "application/json", empty);
        let mut body = response.await?.into_body();
        let total_bytes = body.size_hint().exact();
        while let Some(frame) = body.frame().await {
            if let Ok(bytes) = frame.map_err(|e| self.broken(e))?.into_data() {
                piece(total_bytes, &bytes)?;
            }
        }
        Ok(())
    }

    async fn ask(&self, method: Method, path: &str, body: Vec<u8>) -> anyhow::Result<Bytes> {
        let body = Full::new(Bytes::from(body));
        let asked = self.ask_at_leisure(method, path, "application/json", body);
        tokio::time::timeout(TIMEOUT, asked)
            .await
            .map_err(|_| anyhow!("diskless has not answered for {} s", TIMEOUT.as_secs()))?
    }

    async fn ask_at_leisure<B>(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: B,
    ) -> anyhow::Result<Bytes>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        let response = self.request(method, path, kind, body).await?;
        self.whole(response).await
    }

    /// Asks; answers what was not refused, its body still to come.
    async fn request<B>(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: B,
    ) -> anyhow::Result<Response<Incoming>>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
    {
        let socket = self.socket.display();
        let stream = match UnixStream::connect(&self.socket).await {
            Ok(stream) => stream,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                bail!(
                    "the server is not running here (no answer on {socket}); \
                     start it with `diskless serve`"
                )
            }
            Err(e) if e.kind() == ErrorKind::PermissionDenied => {
                bail!("you may not ask the diskless on {socket}: try it with sudo")
            }
            Err(e) => bail!("cannot reach {socket}: {e}"),
        };
        let broken = || format!("the diskless on {socket} broke off");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .with_context(broken)?;
        // Ends with the sender, or with the answer's body.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(format!("{PREFIX}{path}"))
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, kind)
            .body(body)?;
        let response = sender.send_request(request).await.with_context(broken)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        match serde_json::from_slice::<ErrorBody>(&self.whole(response).await?) {
            Ok(refusal) => Err(anyhow!(refusal.error)),
            Err(_) => Err(unexpected(status)),
        }
    }

    async fn whole(&self, response: Response<Incoming>) -> anyhow::Result<Bytes> {
        let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES);
        let whole = body.collect().await.map_err(|e| self.broken(e))?;
        Ok(whole.to_bytes())
    }

    fn broken(&self, e: impl std::fmt::Display) -> anyhow::Error {
        anyhow!("the diskless on {} broke off: {e}", self.socket.display())
    }
}

fn unexpected(status: StatusCode) -> anyhow::Error {
    anyhow!("what answers there is not diskless (HTTP status {status})")
}

fn read<T: DeserializeOwned>(body: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(body)
        .context("the server's answer is not understood: is it as new as this program?")
}

/// One part of a path, with what would end it escaped.
pub(super) fn part(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'@' | b':') {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}
