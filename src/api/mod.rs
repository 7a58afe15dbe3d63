//! REST, one file per noun, described once (`openapi.json`).
//!
//! `/api/v1/machines`, `images`, `jobs`, `overlays`, `disks`, `targets`, `leases`, `models`,
//! `sessions`, `status`. The same types are the bodies here and what the command line reads.
//! A refusal is `{ "error": "one sentence" }` with the status code that fits.
//!
//! Whoever reaches the API may do everything the program may: it stands on a
//! Unix socket (`server`), and on a loopback address where the site asks for it.

pub(crate) mod authority;
pub(crate) mod contents;
pub(crate) mod disks;
mod error;
pub(crate) mod exports;
pub(crate) mod images;
pub(crate) mod jobs;
pub(crate) mod leases;
pub(crate) mod machines;
pub(crate) mod models;
pub(crate) mod overlays;
pub(crate) mod points;
mod server;
pub(crate) mod sessions;
pub(crate) mod status;
mod streams;
pub(crate) mod targets;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use jiff::Timestamp;
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::inventory::{self, Inventory};
use crate::timeline::Timeline;

pub(crate) use error::{ApiError, ErrorBody};
pub(crate) use server::{Listeners, Server};

/// What the API answers from.
#[derive(Clone)]
pub(crate) struct Api {
    /// Facts.
    pub(crate) inventory: Arc<Inventory>,
    /// What happened.
    pub(crate) timeline: Arc<Timeline>,
    /// What is so at this moment.
    pub(crate) live: Arc<dyn Live>,
}

/// What the running services know. Every method may wait for a lock, none for a
/// machine, but for `while_closed`; called on threads that may wait.
pub(crate) trait Live: Send + Sync + 'static {
    /// The server itself.
    fn status(&self) -> LiveStatus;

    /// The iSCSI sessions, oldest first.
    fn sessions(&self) -> Vec<LiveSession>;

    /// Plain targets.
    fn targets(&self) -> &dyn targets::Targets;

    /// Whether a machine has sessions.
    fn machine_in_use(&self, machine: Uuid) -> bool;

    /// The disk a machine's next boot begins with, to be read; or why there is
    /// none.
    fn machine_disk(&self, machine: &inventory::Machine) -> Result<disk::SharedDisk, String>;

    /// Closes an own disk that no machine's session has open; gives the machine
    /// that has.
    fn release_own_disk(&self, disk: Uuid) -> Result<(), String>;

    /// Does `work`, once, with an overlay that its machine has open, or with
    /// none where it is closed: nobody opens it meanwhile.
    fn with_overlay(
        &self,
        overlay: &inventory::Overlay,
        work: &mut dyn FnMut(Option<&disk::Overlay>),
    );

    /// Whether nobody waits for an overlay that somebody with much time has in
    /// hand; merging layers gives way to a login.
    fn is_nobody_waiting(&self) -> bool;

    /// Ends a machine's sessions and closes its disk, also one that stays open
    /// for a while after the last session; does `work`, once, before anyone
    /// can open it again.
    fn while_closed(&self, machine: Uuid, work: &mut dyn FnMut());
}

/// The server itself, as it is now.
#[derive(Clone, Debug)]
pub(crate) struct LiveStatus {
    /// Since it was started.
    pub(crate) uptime: Duration,
    /// Interface served.
    pub(crate) interface: String,
    /// `observe`, `proxy` or `full`.
    pub(crate) dhcp_mode: String,
    /// Where it listens.
    pub(crate) doors: Vec<Door>,
    /// Other DHCP servers that answered on this LAN.
    pub(crate) foreign_dhcp_servers: Vec<Ipv4Addr>,
    /// Packets dropped since the start because they could not be read, by
    /// service.
    pub(crate) malformed: Vec<(&'static str, u64)>,
}

/// One place where the server listens.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    /// `dhcp`, `tftp`, `http`, `iscsi`, `api`.
    pub(crate) service: String,
    /// Address with port, URL, or path of a socket.
    pub(crate) address: String,
}

/// One iSCSI session, as it is now.
#[derive(Clone, Debug)]
pub(crate) struct LiveSession {
    /// Whose.
    pub(crate) machine: Option<Uuid>,
    /// Boot generation it proved.
    pub(crate) generation: Option<u64>,
    /// The plain target's name, where it is none of a machine's.
    pub(crate) plain: Option<String>,
    /// InitiatorName.
    pub(crate) initiator: String,
    /// TargetName.
    pub(crate) target: String,
    /// The machine's address and port.
    pub(crate) peer: String,
    /// When it was established.
    pub(crate) since: Timestamp,
    /// SCSI commands answered.
    pub(crate) commands: u64,
    /// Payload sent to the machine.
    pub(crate) read_bytes: u64,
    /// Payload received from it.
    pub(crate) written_bytes: u64,
}

/// Where the API begins in a URL.
pub(crate) const PREFIX: &str = "/api/v1";

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "diskless",
    description = "Boots PCs that have no disk. What is refused is answered with \
                   `{ \"error\": \"one sentence\" }`."
))]
struct Description;

impl Api {
    /// Every path, with what it answers.
    pub(crate) fn router(self) -> Router {
        let (router, description) = described();
        router
            .route(
                &format!("{PREFIX}/openapi.json"),
                get(|| async { axum::Json(description) }),
            )
            .fallback(error::no_such_path)
            .method_not_allowed_fallback(error::no_such_method)
            .with_state(self)
    }

    /// Runs what waits for a disk or a lock on a thread that may.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Api) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let api = self.clone();
        match tokio::task::spawn_blocking(move || work(&api)).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::error!(%error, "an API call ended without an answer");
                Err(ApiError::internal("the server failed inside: see its log"))
            }
        }
    }
}

/// The paths and their description.
fn described() -> (Router<Api>, OpenApi) {
    let nouns = OpenApiRouter::new()
        .routes(routes!(machines::list, machines::add))
        .routes(routes!(machines::show, machines::set, machines::remove))
        .routes(routes!(machines::timeline))
        .routes(routes!(contents::of_machine))
        .routes(routes!(images::list, images::import))
        .routes(routes!(images::show, images::remove))
        .routes(routes!(images::import_stream))
        .routes(routes!(images::versions))
        .routes(routes!(contents::of_image))
        .routes(routes!(images::roll_back))
        .routes(routes!(images::verify))
        .routes(routes!(images::export))
        .routes(routes!(images::content))
        .routes(routes!(jobs::list))
        .routes(routes!(jobs::show, jobs::cancel))
        .routes(routes!(overlays::list))
        .routes(routes!(overlays::show, overlays::set, overlays::remove))
        .routes(routes!(points::list, points::add))
        .routes(routes!(points::remove))
        .routes(routes!(points::restore))
        .routes(routes!(points::branch))
        .routes(routes!(points::commit))
        .routes(routes!(points::export))
        .routes(routes!(points::content))
        .routes(routes!(disks::list, disks::add))
        .routes(routes!(disks::register))
        .routes(routes!(disks::import))
        .routes(routes!(disks::import_stream))
        .routes(routes!(disks::duplicate))
        .routes(routes!(disks::convert))
        .routes(routes!(disks::export))
        .routes(routes!(disks::content))
        .routes(routes!(disks::show, disks::remove, disks::resize))
        .routes(routes!(targets::list, targets::add))
        .routes(routes!(targets::show, targets::remove))
        .routes(routes!(targets::add_lun))
        .routes(routes!(targets::remove_lun, targets::resize_lun))
        .routes(routes!(targets::rescan_lun))
        .routes(routes!(leases::list))
        .routes(routes!(models::list, models::reset_all))
        .routes(routes!(models::reset))
        .routes(routes!(sessions::list))
        .routes(routes!(status::show))
        .routes(routes!(authority::show));
    let mut router = OpenApiRouter::with_openapi(Description::openapi()).nest(PREFIX, nouns);
    // Changes with every release; the description should not.
    router.get_openapi_mut().info.version = "1".to_owned();
    router.split_for_parts()
}

#[cfg(test)]
mod tests;
