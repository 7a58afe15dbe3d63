//! Downloads: the body at a URL, over HTTP/1.1 (RFC 9110) or HTTPS, into a spool.
//!
//! A connection that breaks off is taken up where it ended, as long as the
//! server can say that the file is still the same (`If-Range`); a body whose end
//! cannot be told from a broken connection is refused. Certificates are held
//! against those the host trusts.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_RANGE, ETAG, HOST, HeaderValue, IF_RANGE,
    LAST_MODIFIED, LOCATION, RANGE, TRANSFER_ENCODING, USER_AGENT,
};
use hyper::{Request, Response, StatusCode, Uri, http::uri::Scheme};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::job::Progress;
use super::spool::Spool;
use super::{Error, Result};

/// Redirects that are followed.
const REDIRECTS_MAX: usize = 5;

/// Times in a row that a connection is taken up again without a byte more.
const RESUMES_MAX: usize = 5;

/// Between two of them.
const RESUME_PAUSE: Duration = Duration::from_secs(2);

/// How often a wait looks whether the job is to stop.
const LOOK: Duration = Duration::from_millis(250);

/// Looks without an answer after which a peer is given up: a minute.
const LOOKS_MAX: u32 = 240;

/// A URL that can be fetched.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    uri: Uri,
    is_secure: bool,
    host: String,
    port: u16,
}

impl Address {
    /// Reads `http://...` or `https://...`.
    pub(crate) fn parse(text: &str) -> Result<Address> {
        let wrong = |why: &str| Error::Invalid(format!("{text:?} cannot be fetched: {why}"));
        let uri: Uri = text.parse().map_err(|_| wrong("it is no URL"))?;
        let is_secure = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(wrong("only http:// and https:// are")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("a name and password in a URL are not sent"));
        }
        let host = authority.host();
        let port = authority
            .port_u16()
            .unwrap_or(if is_secure { 443 } else { 80 });
        Ok(Address {
            host: host.trim_matches(['[', ']']).to_owned(),
            port,
            is_secure,
            uri,
        })
    }

    /// Where a redirect leads, a URL or a path; never from HTTPS to HTTP.
    fn follow(&self, location: &str) -> Result<Address> {
        let scheme = if self.is_secure { "https" } else { "http" };
        let authority = self
            .uri
            .authority()
            .map_or("", |authority| authority.as_str());
        let text = if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else if location.starts_with('/') {
            format!("{scheme}://{authority}{location}")
        } else if location.contains("://") {
            location.to_owned()
        } else {
            let path = self.uri.path();
            let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
            format!("{scheme}://{authority}{directory}/{location}")
        };
        let next = Address::parse(&text)?;
        if self.is_secure && !next.is_secure {
            return Err(Error::Invalid(format!(
                "{self} leads to {next}, which anyone on the way could change"
            )));
        }
        Ok(next)
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.uri)
    }
}

/// Fetches what is at `address` into `spool`; the thread may wait.
pub(super) fn download(address: &Address, spool: &mut Spool, progress: &Progress) -> Result<()> {
    let download = Download {
        address,
        spool,
        progress,
        trusted: None,
        done_bytes: 0,
        total_bytes: None,
        validator: None,
        looks_max: LOOKS_MAX,
        resume_pause: RESUME_PAUSE,
    };
    download.run()
}

/// A download under way.
struct Download<'a> {
    address: &'a Address,
    spool: &'a mut Spool,
    progress: &'a Progress,
    /// Authorities instead of the host's.
    trusted: Option<Vec<CertificateDer<'static>>>,
    done_bytes: u64,
    total_bytes: Option<u64>,
    /// What the server must still say of the file for a resumption.
    validator: Option<HeaderValue>,
    looks_max: u32,
    resume_pause: Duration,
}

/// Why a transfer ended early.
enum Stop {
    /// Another connection would end the same.
    For(Error),
    /// It may be taken up.
    Broken(String),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::For(error)
    }
}

impl Download<'_> {
    fn run(mut self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::Failed(format!("cannot begin to fetch: {e}")))?;
        self.progress.begin("downloading", None);
        let ended = runtime.block_on(self.fetch());
        // A name that is being looked up is not waited for.
        runtime.shutdown_background();
        ended
    }

    async fn fetch(&mut self) -> Result<()> {
        let mut resumes = 0;
        loop {
            let before = self.done_bytes;
            let why = match self.transfer().await {
                Ok(()) => return Ok(()),
                Err(Stop::For(error)) => return Err(error),
                Err(Stop::Broken(why)) => why,
            };
            if self.done_bytes > before {
                resumes = 0;
            }
            if self.validator.is_none() || resumes == RESUMES_MAX {
                return Err(Error::Failed(format!(
                    "fetching {} ended after {} MiB: {why}; nothing was kept",
                    self.address,
                    self.done_bytes >> 20
                )));
            }
            resumes += 1;
            tracing::info!(url = %self.address, why, "download broke off: taking it up again");
            let pause = sleep(self.resume_pause);
            if let Err(Stop::For(error)) = self.patiently(pause).await {
                return Err(error);
            }
        }
    }

    /// One connection, and those that redirects lead to.
    async fn transfer(&mut self) -> Result<(), Stop> {
        let mut address = self.address.clone();
        for _ in 0..=REDIRECTS_MAX {
            let response = self.ask(&address).await?;
            let status = response.status();
            if !status.is_redirection() {
                return self.take(&address, response).await;
            }
            let location = response.headers().get(LOCATION);
            let location = location.and_then(|l| l.to_str().ok()).ok_or_else(|| {
                Error::Invalid(format!("{address} answers {status} and leads nowhere"))
            })?;
            address = address.follow(location)?;
        }
        Err(Stop::For(Error::Invalid(format!(
            "{} leads on and on: {REDIRECTS_MAX} redirects are followed",
            self.address
        ))))
    }

    /// Connects and asks; answers the head.
    async fn ask(&mut self, address: &Address) -> Result<Response<Incoming>, Stop> {
        let failed = |what: &str, e: &dyn std::fmt::Display| {
            Stop::Broken(format!("{what} {}: {e}", address.host))
        };
        let connecting = TcpStream::connect((address.host.as_str(), address.port));
        let stream = self.patiently(connecting).await?;
        let stream = stream.map_err(|e| failed("cannot connect to", &e))?;
        if !address.is_secure {
            return self.exchange(address, stream).await;
        }
        let name = ServerName::try_from(address.host.clone())
            .map_err(|e| Stop::For(Error::Invalid(format!("{}: {e}", address.host))))?;
        let connector = TlsConnector::from(Arc::new(self.tls()?));
        let stream = self.patiently(connector.connect(name, stream)).await?;
        let stream = stream.map_err(|e| failed("cannot trust", &e))?;
        self.exchange(address, stream).await
    }

    fn tls(&self) -> Result<rustls::ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        match &self.trusted {
            Some(trusted) => roots.add_parsable_certificates(trusted.iter().cloned()),
            None => {
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs)
            }
        };
        if roots.is_empty() {
            return Err(Error::Failed(
                "this host trusts no authority: install ca-certificates".to_owned(),
            ));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::Failed(format!("TLS cannot begin: {e}")))?;
        Ok(config.with_root_certificates(roots).with_no_client_auth())
    }

    async fn exchange(
        &mut self,
        address: &Address,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Response<Incoming>, Stop> {
        let broken = |e: hyper::Error| Stop::Broken(format!("{} broke off: {e}", address.host));
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) = self.patiently(handshake).await?.map_err(broken)?;
        // Ends with the answer's body.
        tokio::spawn(connection);
        let target = address
            .uri
            .path_and_query()
            .map_or("/", |path| path.as_str());
        let authority = address.uri.authority().map_or("", |a| a.as_str());
        let mut request = Request::get(target)
            .header(HOST, authority)
            .header(USER_AGENT, concat!("diskless/", env!("CARGO_PKG_VERSION")))
            .header(ACCEPT_ENCODING, "identity");
        if let Some(validator) = self.validator.as_ref().filter(|_| self.done_bytes > 0) {
            request = request
                .header(RANGE, format!("bytes={}-", self.done_bytes))
                .header(IF_RANGE, validator);
        }
        let request = request
            .body(Empty::<Bytes>::new())
            .map_err(|e| Stop::For(Error::Invalid(format!("{address}: {e}"))))?;
        let asked = sender.send_request(request);
        self.patiently(asked).await?.map_err(broken)
    }

    /// Takes a body that is no redirect's.
    async fn take(&mut self, address: &Address, response: Response<Incoming>) -> Result<(), Stop> {
        let refused = |why: String| Stop::For(Error::Invalid(format!("{address} {why}")));
        let status = response.status();
        match status {
            StatusCode::OK if self.done_bytes == 0 => self.begin(address, &response)?,
            StatusCode::PARTIAL_CONTENT if self.done_bytes > 0 => {
                let range = response.headers().get(CONTENT_RANGE);
                let begins = range.and_then(|range| first_byte(range.to_str().ok()?));
                if begins != Some(self.done_bytes) {
                    return Err(refused("goes on in another place than asked".to_owned()));
                }
            }
            StatusCode::OK | StatusCode::RANGE_NOT_SATISFIABLE if self.done_bytes > 0 => {
                return Err(refused(
                    "broke off, and has changed since or cannot go on: fetch it again".to_owned(),
                ));
            }
            status if status.is_server_error() => {
                return Err(Stop::Broken(format!("{} answers {status}", address.host)));
            }
            status => return Err(refused(format!("answers {status}"))),
        }
        let mut body = response.into_body();
        while let Some(frame) = self.patiently(body.frame()).await? {
            let frame = frame.map_err(|e| Stop::Broken(e.to_string()))?;
            if let Ok(bytes) = frame.into_data() {
                self.spool.write(&bytes)?;
                self.done_bytes += bytes.len() as u64;
                self.progress.advance(self.done_bytes)?;
            }
        }
        match self.total_bytes {
            Some(total) if total != self.done_bytes => Err(Stop::Broken(format!(
                "the connection ended before {total} bytes"
            ))),
            _ => Ok(()),
        }
    }

    /// Looks at the head of the first answer.
    fn begin(&mut self, address: &Address, response: &Response<Incoming>) -> Result<()> {
        let headers = response.headers();
        let is_packed = |coding: &&HeaderValue| coding.as_bytes() != b"identity";
        if headers.get(CONTENT_ENCODING).filter(is_packed).is_some() {
            return Err(Error::Invalid(format!("{address} is sent compressed")));
        }
        self.total_bytes = response.body().size_hint().exact();
        if self.total_bytes.is_none() && !headers.contains_key(TRANSFER_ENCODING) {
            return Err(Error::Invalid(format!(
                "{address} does not say how long it is: nobody could tell whether it is whole"
            )));
        }
        let strong = |tag: &&HeaderValue| !tag.as_bytes().starts_with(b"W/");
        let tag = headers.get(ETAG).filter(strong);
        self.validator = tag.or_else(|| headers.get(LAST_MODIFIED)).cloned();
        if let Some(total) = self.total_bytes {
            self.spool.require_room(total)?;
        }
        self.progress.begin("downloading", self.total_bytes);
        Ok(())
    }

    /// Waits for `what`, for as long as the job goes on and the peer is not
    /// silent for too long.
    async fn patiently<T>(&self, what: impl Future<Output = T>) -> Result<T, Stop> {
        tokio::pin!(what);
        for _ in 0..self.looks_max {
            self.progress.advance(self.done_bytes)?;
            if let Ok(answer) = timeout(LOOK, &mut what).await {
                return Ok(answer);
            }
        }
        let silence = LOOK * self.looks_max;
        Err(Stop::Broken(format!("nothing came for {silence:?}")))
    }
}

/// The first byte of `bytes 7-10/11`.
fn first_byte(range: &str) -> Option<u64> {
    let (first, _) = range.strip_prefix("bytes ")?.split_once('-')?;
    first.trim().parse().ok()
}

#[cfg(test)]
mod tests;
