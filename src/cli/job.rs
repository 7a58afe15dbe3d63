//! `diskless job`, and the bar beside everything that takes long.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::client::Client;
use super::show::{Answer, bytes, table, time};
use crate::api::jobs::{Job, JobStateWord};

/// How often a running job is asked after.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The first question comes sooner: small things are done at once.
const FIRST_POLL: Duration = Duration::from_millis(10);

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List imports, exports and the like, of this run of the server
    List,
    /// Tell one to stop; it keeps nothing
    Cancel {
        /// Its id, as `job list` shows it
        #[arg(value_parser = super::id::job)]
        job: Uuid,
    },
}

pub(super) async fn run(client: &Client, verb: Verb, json: bool) -> anyhow::Result<Answer> {
    match verb {
        Verb::List => {
            let jobs: Vec<Job> = client.show("/jobs").await?;
            Answer::new(list(&jobs), &jobs)
        }
        Verb::Cancel { job } => {
            let job: Job = client.show(&format!("/jobs/{job}")).await?;
            if job.state != JobStateWord::Running {
                bail!("the {} of {} has ended already", job.kind, job.subject);
            }
            let job = stop(client, job, json).await?;
            Answer::new(job.error.clone().unwrap_or_default(), &job)
        }
    }
}

fn list(jobs: &[Job]) -> String {
    if jobs.is_empty() {
        return "no jobs in this run of the server".to_owned();
    }
    let rows = jobs.iter().map(|job| {
        [
            job.id.to_string(),
            job.kind.clone(),
            job.subject.clone(),
            state(job),
            time(job.started),
            job.error.clone().unwrap_or_default(),
        ]
    });
    let header = ["JOB", "KIND", "OF", "STATE", "BEGUN", ""];
    table(header, &[], rows)
}

fn state(job: &Job) -> String {
    match (job.state, job.total_bytes) {
        (JobStateWord::Running, Some(total)) => {
            format!("{} of {}", bytes(job.done_bytes), bytes(total))
        }
        (JobStateWord::Running, None) => "running".to_owned(),
        (JobStateWord::Done, _) => "done".to_owned(),
        (JobStateWord::Failed, _) => "failed".to_owned(),
        (JobStateWord::Cancelled, _) => "cancelled".to_owned(),
    }
}

/// Waits for a job, beside a bar with rate and time left on a terminal, and
/// nothing anywhere else; answers what it made. Ctrl-C cancels it.
pub(super) async fn follow<T: DeserializeOwned>(
    client: &Client,
    job: Job,
    json: bool,
) -> anyhow::Result<T> {
    let here = format!("/jobs/{}", job.id);
    let bar = Bar::new(&job.subject, json)?;
    let mut job = job;
    let mut pause = FIRST_POLL;
    while job.state == JobStateWord::Running {
        bar.show(&job);
        tokio::select! {
            () = tokio::time::sleep(pause) => job = client.show(&here).await?,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                bar.clear();
                job = stop(client, job, json).await?;
            }
        }
        pause = (2 * pause).min(POLL_INTERVAL);
    }
    bar.clear();
    match (job.state, job.result) {
        (JobStateWord::Done, Some(result)) => serde_json::from_value(result)
            .context("the server's answer is not understood: is it as new as this program?"),
        _ => Err(anyhow!(job.error.unwrap_or_else(|| {
            format!("the {} failed: see the server's log", job.kind)
        }))),
    }
}

/// Cancels a job and waits until it has ended; it may have been done first.
async fn stop(client: &Client, mut job: Job, json: bool) -> anyhow::Result<Job> {
    let here = format!("/jobs/{}", job.id);
    client.remove(&here).await?;
    if std::io::stderr().is_terminal() && !json {
        eprintln!("stopping the {} of {}", job.kind, job.subject);
    }
    while job.state == JobStateWord::Running {
        tokio::time::sleep(FIRST_POLL).await;
        job = client.show(&here).await?;
    }
    Ok(job)
}

/// A progress bar; hidden unless somebody looks.
pub(super) struct Bar {
    bar: ProgressBar,
    subject: String,
}

const BYTES_TEMPLATE: &str = "{prefix}  {wide_bar}  {binary_bytes} of {binary_total_bytes}, \
                              {binary_bytes_per_sec}, {eta} left";

/// For what has no known end.
const COUNT_TEMPLATE: &str = "{prefix}  {spinner}  {binary_bytes}, {binary_bytes_per_sec}";

impl Bar {
    pub(super) fn new(subject: &str, json: bool) -> anyhow::Result<Bar> {
        let shown = std::io::stderr().is_terminal() && !json;
        let target = if shown {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let style = ProgressStyle::with_template(COUNT_TEMPLATE)?;
        let bar = ProgressBar::with_draw_target(None, target).with_style(style);
        bar.set_prefix(subject.to_owned());
        Ok(Bar {
            bar,
            subject: subject.to_owned(),
        })
    }

    fn show(&self, job: &Job) {
        let step = job.step.as_deref().unwrap_or_default();
        self.step(step, job.total_bytes);
        self.at(job.done_bytes);
    }

    /// Begins a step, where it is another one; rate and time left begin anew.
    pub(super) fn step(&self, step: &str, total_bytes: Option<u64>) {
        let prefix = match step {
            "" => self.subject.clone(),
            step => format!("{}: {step}", self.subject),
        };
        if self.bar.prefix() == prefix && self.bar.length() == total_bytes {
            return;
        }
        let template = match total_bytes {
            Some(_) => BYTES_TEMPLATE,
            None => COUNT_TEMPLATE,
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        match total_bytes {
            Some(total) => self.bar.set_length(total),
            None => self.bar.unset_length(),
        }
        self.bar.set_prefix(prefix);
        self.bar.reset();
    }

    /// How much of the step is done.
    pub(super) fn at(&self, done_bytes: u64) {
        self.bar.set_position(done_bytes);
    }

    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
