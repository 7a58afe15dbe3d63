//! `/status`: the server itself.

use std::net::Ipv4Addr;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Api, ApiError};
use crate::inventory::MachineState;

/// The server, now.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Status {
    /// Of the program.
    pub(crate) version: String,
    /// Since it was started.
    pub(crate) uptime_seconds: u64,
    /// Data directory.
    pub(crate) data: String,
    /// Interface served.
    pub(crate) interface: String,
    /// "observe", "proxy" or "full".
    pub(crate) dhcp_mode: String,
    /// Other DHCP servers that answered on this LAN.
    #[schema(value_type = Vec<String>)]
    pub(crate) foreign_dhcp_servers: Vec<Ipv4Addr>,
    /// Where it listens.
    pub(crate) listens: Vec<Listens>,
    /// Packets dropped since the start because they could not be read.
    pub(crate) malformed: Vec<Malformed>,
    /// Machines an operator has taken in.
    pub(crate) machines_known: usize,
    /// Machines that wait to be taken in.
    pub(crate) machines_pending: usize,
    /// Names of the machines that have their disk open.
    pub(crate) machines_running: Vec<String>,
    /// Versions of images.
    pub(crate) images: usize,
    /// Plain targets.
    pub(crate) targets: usize,
    /// Sessions.
    pub(crate) sessions: usize,
}

/// One place where the server listens.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Listens {
    /// "dhcp", "tftp", "http", "iscsi" or "api".
    pub(crate) service: String,
    /// Address with port, URL, or path of a socket.
    pub(crate) address: String,
}

/// Packets that one service could not read.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Malformed {
    /// "dhcp", "tftp" or "iscsi".
    pub(crate) service: String,
    /// How many.
    pub(crate) count: u64,
}

/// Shows the server: where it listens, who runs.
#[utoipa::path(get, path = "/status", tag = "status", operation_id = "show_status",
    responses((status = 200, description = "the server now", body = Status)))]
pub(super) async fn show(State(api): State<Api>) -> Result<Json<Status>, ApiError> {
    api.work(|api| {
        let live = api.live.status();
        let machines = api.inventory.machines()?;
        let known = machines
            .iter()
            .filter(|machine| machine.state == MachineState::Known)
            .count();
        let running = machines
            .iter()
            .filter(|machine| api.live.machine_in_use(machine.id))
            .map(|machine| machine.name.to_string());
        Ok(Json(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: live.uptime.as_secs(),
            data: api.inventory.data().display().to_string(),
            interface: live.interface,
            dhcp_mode: live.dhcp_mode,
            foreign_dhcp_servers: live.foreign_dhcp_servers,
            listens: live
                .doors
                .into_iter()
                .map(|door| Listens {
                    service: door.service,
                    address: door.address,
                })
                .collect(),
            malformed: live
                .malformed
                .into_iter()
                .map(|(service, count)| Malformed {
                    service: service.to_owned(),
                    count,
                })
                .collect(),
            machines_known: known,
            machines_pending: machines.len() - known,
            machines_running: running.collect(),
            images: api.inventory.images().len(),
            targets: api.inventory.targets()?.len(),
            sessions: api.live.sessions().len(),
        }))
    })
    .await
}
