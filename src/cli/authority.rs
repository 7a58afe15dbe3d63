//! `diskless ca`.

use clap::Subcommand;

use super::client::Client;
use super::show::Answer;
use crate::api::authority::Authority;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show the certificate to enrol: diskless ca show > ca.pem
    Show,
}

pub(super) async fn run(client: &Client, verb: Verb) -> anyhow::Result<Answer> {
    let Verb::Show = verb;
    let authority: Authority = client.show("/ca").await?;
    Answer::new(authority.certificate.trim_end().to_owned(), &authority)
}
