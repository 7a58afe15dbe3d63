//! `diskless session`.

use clap::Subcommand;
use jiff::Timestamp;

use super::client::Client;
use super::show::{Answer, ago, bytes, or_dash, table};
use crate::api::sessions::Session;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List the sessions, oldest first; a machine may have several
    List,
}

pub(super) async fn run(client: &Client, verb: Verb) -> anyhow::Result<Answer> {
    let Verb::List = verb;
    let sessions: Vec<Session> = client.show("/sessions").await?;
    Answer::new(list(&sessions, jiff::Timestamp::now()), &sessions)
}

fn list(sessions: &[Session], now: Timestamp) -> String {
    if sessions.is_empty() {
        return "no sessions: nobody has a disk open".to_owned();
    }
    let rows = sessions.iter().map(|session| {
        [
            or_dash(session.machine.as_ref()),
            or_dash(session.generation),
            or_dash(session.plain.as_ref()),
            session.peer.clone(),
            ago(session.since, now),
            session.commands.to_string(),
            bytes(session.read_bytes),
            bytes(session.written_bytes),
        ]
    });
    let header = [
        "MACHINE", "BOOT", "TARGET", "FROM", "SINCE", "COMMANDS", "READ", "WRITTEN",
    ];
    table(header, &[1, 5, 6, 7], rows)
}
