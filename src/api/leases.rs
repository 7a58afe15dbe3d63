//! `/leases`: addresses lent to MACs.

use std::net::Ipv4Addr;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::machines::name_of;
use super::{Api, ApiError};
use crate::inventory::{now, show_mac};

/// A lease.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Lease {
    /// The address.
    #[schema(value_type = String, format = Ipv4)]
    pub(crate) address: Ipv4Addr,
    /// Whose.
    pub(crate) mac: String,
    /// The machine with that MAC.
    pub(crate) machine: Option<String>,
    /// Host name it gave itself.
    pub(crate) host_name: Option<String>,
    /// When it ends, or ended.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) expires: Timestamp,
    /// Whether it has ended.
    pub(crate) expired: bool,
}

/// Lists every lease, by address.
#[utoipa::path(get, path = "/leases", tag = "leases", operation_id = "list_leases",
    responses((status = 200, description = "every lease", body = Vec<Lease>)))]
pub(super) async fn list(State(api): State<Api>) -> Result<Json<Vec<Lease>>, ApiError> {
    api.work(|api| {
        let machines = api.inventory.machines()?;
        let now = now();
        let shown = api.inventory.leases()?.into_iter().map(|lease| {
            let expires = Timestamp::try_from(lease.expires).unwrap_or(Timestamp::MAX);
            Lease {
                address: lease.address,
                mac: show_mac(lease.mac),
                machine: name_of(&machines, lease.mac),
                host_name: lease.host_name,
                expires,
                expired: expires <= now,
            }
        });
        Ok(Json(shown.collect()))
    })
    .await
}
