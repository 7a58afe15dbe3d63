//! `diskless model`.

use clap::Subcommand;

use super::client::Client;
use super::show::{Answer, or_dash, table, time};
use crate::api::models::Model;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List the models of firmware that were booted, and what works with each
    List,
    /// Forget what was found out: the next power-on tries everything anew
    Reset {
        /// Its number, as `model list` shows it
        #[arg(required_unless_present = "all")]
        model: Option<u64>,
        /// Every model
        #[arg(long, conflicts_with = "model")]
        all: bool,
    },
}

pub(super) async fn run(client: &Client, verb: Verb) -> anyhow::Result<Answer> {
    match verb {
        Verb::List => {
            let models: Vec<Model> = client.show("/models").await?;
            Answer::new(list(&models), &models)
        }
        Verb::Reset { model, .. } => {
            let path = model.map_or_else(|| "/models".to_owned(), |n| format!("/models/{n}"));
            let forgotten: Vec<Model> = client.remove_shown(&path).await?;
            let words = match &forgotten[..] {
                [] => "nothing was known".to_owned(),
                [one] => format!("forgot what works with {} of {}", one.firmware, one.maker),
                all => format!("forgot what works with {} models", all.len()),
            };
            Answer::new(words, &forgotten)
        }
    }
}

fn list(models: &[Model]) -> String {
    if models.is_empty() {
        return "no firmware has fetched its loader here yet".to_owned();
    }
    let rows = models.iter().map(|model| {
        [
            model.number.to_string(),
            model.firmware.clone(),
            model.maker.clone(),
            model.class.clone(),
            model.role.clone(),
            or_dash(model.style.as_ref()),
            or_dash(model.loader.as_ref()),
            time(model.learned),
        ]
    });
    table(
        [
            "MODEL",
            "FIRMWARE",
            "MAKER",
            "CALLS ITSELF",
            "ROLE",
            "REPLY",
            "LOADER",
            "SINCE",
        ],
        &[0],
        rows,
    )
}
