//! Boots PCs that have no disk: reads the arguments, runs one command.

mod api;
mod boot;
mod check;
mod cli;
mod config;
mod inventory;
mod server;
mod services;
mod timeline;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Context, bail};
use tracing_subscriber::EnvFilter;

use check::{Findings, Severity};
use cli::{Command, Settings};
use config::{Config, Loaded};
use services::Loaders;

fn main() -> ExitCode {
    match cli::parse().and_then(run) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("diskless: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    match command {
        Command::Ask(ask) => runtime.block_on(cli::run(ask)).map(|()| ExitCode::SUCCESS),
        Command::Check { settings, json } => check(&settings, json),
        Command::ServeFiles(files) => {
            log_to_stderr(&files.log_level)?;
            runtime
                .block_on(server::serve_files(&files))
                .map(|()| ExitCode::SUCCESS)
        }
        Command::Serve(settings) => {
            let loaded = load(&settings)?;
            log_to_stderr(&loaded.config.log.level)?;
            for note in &loaded.notes {
                tracing::warn!("{note}");
            }
            let config = loaded.config;
            heed(&look(&config))?;
            let served = check::interfaces(&config)?;
            runtime
                .block_on(server::serve(config, served))
                .map(|()| ExitCode::SUCCESS)
        }
    }
}

fn load(settings: &Settings) -> anyhow::Result<Loaded> {
    Ok(Config::load(settings.config(), &settings.overrides())?)
}

/// What is wrong before anything is started.
fn look(config: &Config) -> Findings {
    let loaders = Loaders::new(config.loaders.directory.as_deref());
    let is_installed = |name: &str| loaders.is_installed(name);
    let chains = loaders.chains().all();
    check::run(config, &boot::firmware::PC_LOADERS, is_installed, &chains)
}

/// Says what was found; an error is a reason not to start.
fn heed(findings: &Findings) -> anyhow::Result<()> {
    for finding in findings.iter() {
        let to_do = &finding.what_to_do;
        match finding.severity {
            Severity::Error => {}
            Severity::Warning => tracing::warn!(to_do, "{}", finding.what),
            Severity::Note => tracing::info!(to_do, "{}", finding.what),
        }
    }
    if findings.has_errors() {
        let errors = findings
            .iter()
            .filter(|finding| finding.severity == Severity::Error);
        let errors: Vec<String> = errors.map(ToString::to_string).collect();
        bail!("not started\n{}", errors.join("\n"));
    }
    Ok(())
}

fn check(settings: &Settings, json: bool) -> anyhow::Result<ExitCode> {
    let loaded = load(settings)?;
    let findings = look(&loaded.config);
    if json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        for note in &loaded.notes {
            println!("note: {note}");
        }
        match &loaded.file {
            Some(file) => println!("settings: {}", file.display()),
            None => println!(
                "settings: the defaults ({} is not there)",
                config::DEFAULT_FILE
            ),
        }
        if findings.is_empty() {
            println!("nothing is wrong");
        } else {
            println!("{findings}");
        }
    }
    Ok(if findings.has_errors() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn log_to_stderr(level: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(level).with_context(|| format!("log.level = {level:?}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    Ok(())
}
