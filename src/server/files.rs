//! Files served at once, without configuration or state (`target serve`).

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use sha2::{Digest, Sha256};

use super::{Stop, allow_open_files};
use crate::config::ServedFiles;
use crate::inventory::Proof;
use crate::services::iscsi::plain::{PlainTargets, UnitOptions, open_unit, product};

/// How long commands under way may take at the end.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or SIGINT.
pub(crate) async fn serve_files(served: &ServedFiles) -> anyhow::Result<()> {
    let mut stop = Stop::listen()?;
    allow_open_files();
    let options = UnitOptions {
        kind: served.kind,
        block_bytes: served.block_bytes,
        format: served.format,
    };
    let mut units = Vec::with_capacity(served.files.len());
    for file in &served.files {
        let identity = iscsi::Identity::new(lasting_id(file), product(served.kind));
        units.push(Arc::new(open_unit(file, options, identity)?));
    }
    let numbered = (0..).zip(units.iter().map(Arc::clone));
    let target = iscsi::Target::new(served.target.as_str(), numbered)?;
    let targets = PlainTargets::default();
    let proof = served.chap.clone().map(|chap| Proof { chap, mutual: None });
    targets.add(Arc::new(target), proof);
    let server = listen(served, Arc::new(targets))?;
    if served.chap.is_none()
        && served
            .portals
            .iter()
            .any(|portal| !portal.ip().is_loopback())
    {
        tracing::warn!(
            "whoever reaches this address may read{} these files: --chap NAME:SECRET lets in only \
             who knows the secret",
            if served.kind.is_writable() {
                " and write"
            } else {
                ""
            }
        );
    }
    announce(&server, served, units.len()).context("saying where it listens")?;
    stop.asked().await;
    tracing::info!("ending");
    let ended = tokio::task::spawn_blocking(move || {
        server.shutdown(DRAIN);
        for (lun, unit) in units.iter().enumerate() {
            unit.disk()
                .flush()
                .with_context(|| format!("flushing LUN {lun}"))?;
        }
        anyhow::Ok(())
    });
    ended.await.context("ending")?
}

/// One line a LUN and portal, all at once.
fn announce(server: &iscsi::Server, served: &ServedFiles, luns: usize) -> std::io::Result<()> {
    let mut lines = String::new();
    for portal in server.portals() {
        for lun in 0..luns {
            lines.push_str(&format!("iscsi://{portal}/{}/{lun}\n", served.target));
        }
    }
    let mut stdout = std::io::stdout();
    stdout.write_all(lines.as_bytes())?;
    stdout.flush()
}

fn listen(served: &ServedFiles, targets: Arc<PlainTargets>) -> anyhow::Result<iscsi::Server> {
    let limits = iscsi::Limits {
        // There is but one target: it may have them all.
        sessions_per_target: iscsi::Limits::default().sessions,
        ..iscsi::Limits::default()
    };
    iscsi::Server::bind(&served.portals, targets, limits).map_err(|error| {
        // Which of several it was is not said.
        let is_refused = |portal: &&SocketAddr| TcpListener::bind(portal).is_err();
        let culprit = served.portals.iter().find(is_refused);
        let portal = culprit.map_or_else(|| "a portal".to_owned(), ToString::to_string);
        match error.kind() {
            ErrorKind::AddrInUse => anyhow!(
                "{portal} is taken: another iSCSI target, or diskless itself, listens there \
                 (ss -ltnp says who); take another port with --listen, 0 for any free one"
            ),
            ErrorKind::AddrNotAvailable => {
                anyhow!("{portal}: this host has no such address (ip address lists them)")
            }
            _ => anyhow::Error::new(error).context(format!("listening on {portal}")),
        }
    })
}

/// What makes the disk of a file recognisable: its path on this host, so that
/// it is the same disk after a restart, and another one than the file of that
/// name on the next host.
fn lasting_id(file: &Path) -> [u8; 16] {
    let path = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let host = std::fs::read("/etc/machine-id")
        .unwrap_or_else(|_| rustix::system::uname().nodename().to_bytes().to_vec());
    let mut hash = Sha256::new();
    hash.update(host.trim_ascii());
    hash.update([0]);
    hash.update(path.as_os_str().as_encoded_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&hash.finalize()[..16]);
    id
}
