//! `diskless overlay`.

use clap::Subcommand;
use serde_json::json;
use uuid::Uuid;

use super::client::Client;
use super::show::{Answer, bytes, table, time};
use crate::api::machines::Mode;
use crate::api::overlays::Overlay;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List every overlay
    List,
    /// Remove an overlay: its machine begins afresh at its next boot
    Remove {
        /// As `diskless overlay list` shows it
        uuid: Uuid,
    },
}

pub(super) async fn run(client: &Client, verb: Verb) -> anyhow::Result<Answer> {
    match verb {
        Verb::List => {
            let overlays: Vec<Overlay> = client.show("/overlays").await?;
            Answer::new(list(&overlays), &overlays)
        }
        Verb::Remove { uuid } => {
            client.remove(&format!("/overlays/{uuid}")).await?;
            Answer::new(format!("removed {uuid}"), &json!({ "removed": uuid }))
        }
    }
}

fn list(overlays: &[Overlay]) -> String {
    if overlays.is_empty() {
        return "no overlays: a machine gets one when it boots".to_owned();
    }
    let rows = overlays.iter().map(|overlay| {
        let mode = match overlay.mode {
            Mode::Reset => "reset",
            Mode::Keep => "keep",
        };
        [
            overlay.machine.clone(),
            overlay.image.clone(),
            mode.to_owned(),
            bytes(overlay.stored_bytes),
            time(overlay.created),
            overlay.uuid.to_string(),
        ]
    });
    let header = ["MACHINE", "IMAGE", "MODE", "STORED", "CREATED", "UUID"];
    table(header, &[3], rows)
}
