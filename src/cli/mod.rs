//! The command line, one file per noun.
//!
//! `serve`, `check` and `target serve` are run by the program itself; every
//! other command asks the running server through its API (`client`) and shows
//! the answer, as text or with `--json` as it came.

mod authority;
mod client;
mod contents;
mod disk;
mod export;
mod file;
mod id;
mod image;
mod job;
mod lease;
mod machine;
mod model;
mod overlay;
mod session;
mod settings;
mod show;
mod size;
mod status;
mod stream;
mod target;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config::ServedFiles;
use client::Client;
pub(crate) use settings::Settings;
use show::Answer;

/// Where the server's socket is when nobody says otherwise.
const DEFAULT_SOCKET: &str = "/run/diskless/api.sock";

/// What was asked for on the command line.
#[derive(Debug)]
pub(crate) enum Command {
    /// Run the server.
    Serve(Settings),
    /// Say what would go wrong.
    Check {
        /// Of the server.
        settings: Settings,
        /// As JSON.
        json: bool,
    },
    /// Serve files at once, without the server.
    ServeFiles(ServedFiles),
    /// Ask the running server, see [`run`].
    Ask(Ask),
}

/// A question to the running server.
#[derive(Debug)]
pub(crate) struct Ask {
    socket: PathBuf,
    json: bool,
    noun: Noun,
}

/// Boots PCs that have no disk: DHCP/PXE, TFTP, HTTP and iSCSI in one program.
#[derive(Debug, Parser)]
#[command(name = "diskless", version, arg_required_else_help = true)]
struct Arguments {
    /// Socket of the running server [default: /run/diskless/api.sock]
    #[arg(long, global = true, env = "DISKLESS_API", value_name = "PATH")]
    api: Option<PathBuf>,

    /// Answer in JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the server; Ctrl-C or SIGTERM ends it in order
    Serve(Settings),
    /// Say what is wrong before anything is started
    Check(Settings),
    /// Files and drives served as disks, apart from any machine
    #[command(subcommand)]
    Target(target::Verb),
    #[command(flatten)]
    Noun(Noun),
}

/// What one asks the running server about.
#[derive(Debug, Subcommand)]
enum Noun {
    /// Golden images
    #[command(subcommand)]
    Image(image::Verb),
    /// Computers we boot
    #[command(subcommand)]
    Machine(machine::Verb),
    /// Own disks: disk files that are written in place
    #[command(subcommand)]
    Disk(disk::Verb),
    /// Machines' private writes
    #[command(subcommand)]
    Overlay(overlay::Verb),
    /// Imports, exports and the like
    #[command(subcommand)]
    Job(job::Verb),
    /// Addresses lent
    #[command(subcommand)]
    Lease(lease::Verb),
    /// Models of firmware, and what works with each
    #[command(subcommand)]
    Model(model::Verb),
    /// Who has a disk open
    #[command(subcommand)]
    Session(session::Verb),
    /// Plain targets; `Verb::Target` reads it.
    #[command(skip)]
    Target(target::Kept),
    /// The certificate authority of HTTPS
    #[command(subcommand)]
    Ca(authority::Verb),
    /// Where the server listens, and who runs
    Status,
}

/// Reads the command line. What it does not understand, and `--help`, end the
/// program here.
pub(crate) fn parse() -> anyhow::Result<Command> {
    command(Arguments::parse())
}

fn command(arguments: Arguments) -> anyhow::Result<Command> {
    let Arguments { api, json, verb } = arguments;
    let socket = api.clone();
    let ask = |noun| {
        Command::Ask(Ask {
            socket: socket.unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET)),
            json,
            noun,
        })
    };
    Ok(match verb {
        Verb::Target(target::Verb::Serve(serve)) => Command::ServeFiles(serve.files()?),
        Verb::Target(target::Verb::Kept(kept)) => ask(Noun::Target(kept)),
        Verb::Noun(noun) => ask(noun),
        Verb::Serve(settings) => Command::Serve(settings.with_socket(api)),
        Verb::Check(settings) => Command::Check {
            settings: settings.with_socket(api),
            json,
        },
    })
}

/// Asks the running server and prints its answer. An error is one sentence.
pub(crate) async fn run(ask: Ask) -> anyhow::Result<()> {
    let json = ask.json;
    ask.answer().await?.print(json)
}

impl Ask {
    async fn answer(self) -> anyhow::Result<Answer> {
        let client = Client::new(self.socket);
        match self.noun {
            Noun::Image(verb) => image::run(&client, verb, self.json).await,
            Noun::Machine(verb) => machine::run(&client, verb).await,
            Noun::Disk(verb) => disk::run(&client, verb, self.json).await,
            Noun::Overlay(verb) => overlay::run(&client, verb, self.json).await,
            Noun::Job(verb) => job::run(&client, verb, self.json).await,
            Noun::Lease(verb) => lease::run(&client, verb).await,
            Noun::Model(verb) => model::run(&client, verb).await,
            Noun::Session(verb) => session::run(&client, verb).await,
            Noun::Target(kept) => target::run(&client, kept).await,
            Noun::Ca(verb) => authority::run(&client, verb).await,
            Noun::Status => status::run(&client).await,
        }
    }
}

#[cfg(test)]
mod tests;
