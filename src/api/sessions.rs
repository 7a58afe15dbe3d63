//! `/sessions`: who has a disk open.

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Api, ApiError};

/// An iSCSI session.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Session {
    /// Name of the machine, where the disk is a machine's.
    pub(crate) machine: Option<String>,
    /// Boot generation it proved.
    pub(crate) generation: Option<u64>,
    /// Name of the target, where the disk is no machine's.
    pub(crate) plain: Option<String>,
    /// InitiatorName.
    pub(crate) initiator: String,
    /// TargetName.
    pub(crate) target: String,
    /// The machine's address and port.
    pub(crate) peer: String,
    /// When it was established.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) since: Timestamp,
    /// SCSI commands answered.
    pub(crate) commands: u64,
    /// Payload sent to the machine.
    pub(crate) read_bytes: u64,
    /// Payload received from it.
    pub(crate) written_bytes: u64,
}

/// Lists the sessions, oldest first. A machine may have several.
#[utoipa::path(get, path = "/sessions", tag = "sessions", operation_id = "list_sessions",
    responses((status = 200, description = "every session", body = Vec<Session>)))]
pub(super) async fn list(State(api): State<Api>) -> Result<Json<Vec<Session>>, ApiError> {
    api.work(|api| {
        let machines = api.inventory.machines()?;
        let shown = api.live.sessions().into_iter().map(|session| Session {
            machine: machines
                .iter()
                .find(|machine| Some(machine.id) == session.machine)
                .map(|machine| machine.name.to_string()),
            generation: session.generation,
            plain: session.plain,
            initiator: session.initiator,
            target: session.target,
            peer: session.peer,
            since: session.since,
            commands: session.commands,
            read_bytes: session.read_bytes,
            written_bytes: session.written_bytes,
        });
        Ok(Json(shown.collect()))
    })
    .await
}
