//! Where the API listens: a Unix socket, and a loopback address on request.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use axum::Router;
use axum::extract::Request;
use axum::http::header::{HOST, ORIGIN};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Api, ApiError, Door};

/// How long answers in hand may take once the program ends.
const DRAIN: Duration = Duration::from_secs(2);

/// The API, listening. Dropped, it ends at once; [`Server::stop`] lets answers
/// in hand be sent.
pub(crate) struct Server {
    socket: Option<SocketFile>,
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
}

/// The places where the API will listen, taken before anything is served so
/// that [`Live`](super::Live) can name them.
pub(crate) struct Listeners {
    unix: Option<(UnixListener, SocketFile)>,
    tcp: Option<(TcpListener, SocketAddr)>,
}

impl Listeners {
    /// Takes the socket and the address.
    ///
    /// The socket's directory is made where it is missing. A socket left by a
    /// process that died is taken over; one that answers is not.
    pub(crate) async fn bind(
        socket: Option<&Path>,
        address: Option<SocketAddr>,
    ) -> anyhow::Result<Listeners> {
        let unix = match socket {
            Some(path) => Some(bind_socket(path).await?),
            None => None,
        };
        let tcp = match address {
            Some(address) if !address.ip().is_loopback() => bail!(
                "the API cannot listen on {address}: it asks for no password, \
                 so only a loopback address will do (127.0.0.1:{})",
                address.port()
            ),
            Some(address) => {
                let listener = TcpListener::bind(address)
                    .await
                    .with_context(|| format!("the API cannot listen on {address}"))?;
                let address = listener.local_addr()?;
                Some((listener, address))
            }
            None => None,
        };
        Ok(Listeners { unix, tcp })
    }

    /// Where it will listen.
    pub(crate) fn doors(&self) -> Vec<Door> {
        let unix = self
            .unix
            .as_ref()
            .map(|(_, file)| file.0.display().to_string());
        let tcp = self
            .tcp
            .as_ref()
            .map(|(_, address)| format!("http://{address}"));
        let door = |address| Door {
            service: "api".to_owned(),
            address,
        };
        unix.into_iter().chain(tcp).map(door).collect()
    }

    /// Begins to answer.
    pub(crate) fn serve(self, api: Api) -> Server {
        let router = api.router();
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let asked_to_stop = |mut stopped: watch::Receiver<bool>| async move {
            // An error is the server dropped: stop too.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        let mut socket = None;
        if let Some((listener, file)) = self.unix {
            socket = Some(file);
            let serve = axum::serve(listener, router.clone())
                .with_graceful_shutdown(asked_to_stop(stopped.clone()));
            tasks.spawn(async move { said(serve.await) });
        }
        if let Some((listener, _)) = self.tcp {
            let router: Router = router.layer(from_fn(refuse_browsers));
            let serve =
                axum::serve(listener, router).with_graceful_shutdown(asked_to_stop(stopped));
            tasks.spawn(async move { said(serve.await) });
        }
        Server {
            socket,
            tasks,
            stop,
        }
    }
}

impl Server {
    /// Takes no more requests, and waits a little for answers in hand.
    pub(crate) async fn stop(mut self) {
        // Nobody is led to a socket that no longer answers.
        self.socket = None;
        let _ = self.stop.send(true);
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::debug!("API answers cut off at the end");
        }
    }
}

fn said(ended: std::io::Result<()>) {
    if let Err(error) = ended {
        tracing::error!(%error, "the API ended");
    }
}

/// A socket's file, removed at the end.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

async fn bind_socket(path: &Path) -> anyhow::Result<(UnixListener, SocketFile)> {
    let shown = path.display();
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {} for the API's socket", directory.display()))?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            bail!("{shown} is not a socket: name another file for the API (api.socket)")
        }
        Ok(_) => match UnixStream::connect(path).await {
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path)
                .with_context(|| format!("cannot remove the dead socket {shown}"))?,
            Err(e) => bail!("cannot tell whether {shown} is in use: {e}"),
            Ok(_) => bail!(
                "another diskless answers on {shown}: stop it first, \
                 or give this one a socket of its own (api.socket)"
            ),
        },
        Err(_) => {}
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("the API cannot listen on {shown}"))?;
    let file = SocketFile(path.to_owned());
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))
        .with_context(|| format!("cannot set the mode of {shown}"))?;
    Ok((listener, file))
}

/// Refuses what a web page of somebody else's could make a browser send to a
/// loopback address: requests with an origin, and names that only resolve to
/// loopback (DNS rebinding).
async fn refuse_browsers(request: Request, next: Next) -> Result<Response, ApiError> {
    let headers = request.headers();
    if headers.contains_key(ORIGIN) {
        return Err(ApiError::forbidden("the API answers no web pages"));
    }
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    if !host.is_some_and(is_loopback) {
        return Err(ApiError::forbidden(
            "the API answers on a loopback address only: ask it as 127.0.0.1 or localhost",
        ));
    }
    Ok(next.run(request).await)
}

/// Whether a Host header names this very machine.
fn is_loopback(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        return address.is_loopback();
    }
    host.split(':').next() == Some("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_loopback() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:8080",
            "localhost",
            "localhost:1",
            "[::1]:80",
            "[::1]",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "example.org",
            "10.0.0.1:80",
            "localhost.example.org",
            "127.0.0.1.example.org",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[tokio::test]
    async fn a_dead_socket_is_taken_over_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/api.sock");
        fs::create_dir(path.parent().unwrap()).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "left by a process that died");
        let first = Listeners::bind(Some(&path), None).await.unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let refusal = Listeners::bind(Some(&path), None).await.err().unwrap();
        assert!(
            refusal.to_string().contains("another diskless answers"),
            "{refusal}"
        );
        drop(first);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        fs::write(&path, "data").unwrap();
        assert!(Listeners::bind(Some(&path), None).await.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }

    #[tokio::test]
    async fn only_a_loopback_address_will_do() {
        let everywhere = "0.0.0.0:0".parse().unwrap();
        assert!(Listeners::bind(None, Some(everywhere)).await.is_err());
        let loopback = "127.0.0.1:0".parse().unwrap();
        let bound = Listeners::bind(None, Some(loopback)).await.unwrap();
        assert!(bound.doors()[0].address.starts_with("http://127.0.0.1:"));
    }
}
