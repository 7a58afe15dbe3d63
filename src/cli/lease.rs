//! `diskless lease`.

use clap::Subcommand;

use super::client::Client;
use super::show::{Answer, or_dash, table, time};
use crate::api::leases::Lease;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List every lease, by address
    List,
}

pub(super) async fn run(client: &Client, verb: Verb) -> anyhow::Result<Answer> {
    let Verb::List = verb;
    let leases: Vec<Lease> = client.show("/leases").await?;
    Answer::new(list(&leases), &leases)
}

fn list(leases: &[Lease]) -> String {
    if leases.is_empty() {
        return "no leases: addresses are lent in DHCP mode \"full\" only".to_owned();
    }
    let rows = leases.iter().map(|lease| {
        let until = if lease.expired { "ended " } else { "" };
        [
            lease.address.to_string(),
            lease.mac.clone(),
            or_dash(lease.machine.as_ref()),
            format!("{until}{}", time(lease.expires)),
            or_dash(lease.host_name.as_ref()),
        ]
    });
    table(
        ["ADDRESS", "MAC", "MACHINE", "UNTIL", "CALLS ITSELF"],
        &[],
        rows,
    )
}
