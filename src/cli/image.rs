//! `diskless image`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::client::{Client, part};
use super::show::{Answer, bytes, table, time};
use crate::api::images::Image;
use crate::api::imports::{Import, ImportStateWord, StartImport};

/// How often a running import is asked after.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a raw file or block device the next version of an image
    Import {
        /// Image: a new one, or one that gets another version
        name: String,
        /// Raw disk image, or block device, on the server's host
        file: PathBuf,
        /// What to remember about this version
        #[arg(long, default_value = "")]
        comment: String,
    },
    /// List every version of every image
    List,
    /// Remove an image (all its versions), or one version
    Remove {
        /// NAME or NAME@VERSION
        #[arg(value_name = "NAME[@VERSION]")]
        image: String,
    },
}

pub(super) async fn run(client: &Client, verb: Verb, json: bool) -> anyhow::Result<Answer> {
    match verb {
        Verb::Import {
            name,
            file,
            comment,
        } => import(client, name, file, comment, json).await,
        Verb::List => {
            let images: Vec<Image> = client.show("/images").await?;
            Answer::new(list(&images), &images)
        }
        Verb::Remove { image } => {
            let path = format!("/images/{}", part(&image));
            let removed: Vec<Image> = client.remove_shown(&path).await?;
            let named: Vec<String> = removed.iter().map(named).collect();
            Answer::new(format!("removed {}", named.join(", ")), &removed)
        }
    }
}

fn list(images: &[Image]) -> String {
    if images.is_empty() {
        return "no images yet: `diskless image import NAME FILE` makes one of a raw disk image"
            .to_owned();
    }
    let rows = images.iter().map(|image| {
        [
            named(image),
            if image.current { "current" } else { "" }.to_owned(),
            bytes(image.size_bytes),
            bytes(image.stored_bytes),
            time(image.created),
            image.comment.clone(),
        ]
    });
    let header = ["IMAGE", "", "SIZE", "STORED", "CREATED", "COMMENT"];
    table(header, &[2, 3], rows)
}

fn named(image: &Image) -> String {
    format!("{}@{}", image.name, image.version)
}

async fn import(
    client: &Client,
    name: String,
    file: PathBuf,
    comment: String,
    json: bool,
) -> anyhow::Result<Answer> {
    // The server has a working directory of its own.
    let path = std::path::absolute(&file)
        .with_context(|| format!("cannot tell where {} is", file.display()))?;
    let Some(path) = path.to_str() else {
        bail!("the path of {} is not UTF-8: rename it", file.display());
    };
    let asked = StartImport {
        name,
        path: path.to_owned(),
        comment,
    };
    let mut import: Import = client.add("/imports", &asked).await?;
    let progress = progress(&import, json)?;
    let here = format!("/imports/{}", import.id);
    while import.state == ImportStateWord::Running {
        progress.set_position(import.done_bytes);
        tokio::select! {
            () = tokio::time::sleep(POLL_INTERVAL) => {}
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                progress.abandon();
                client.remove(&here).await?;
                bail!("the import was cancelled; nothing was kept");
            }
        }
        import = client.show(&here).await?;
    }
    progress.finish_and_clear();
    match (&import.image, &import.error) {
        (Some(image), _) => {
            let text = format!(
                "{}: {} imported, {} stored, sha256 {}",
                named(image),
                bytes(image.size_bytes),
                bytes(image.stored_bytes),
                image.sha256
            );
            Answer::new(text, image)
        }
        (None, error) => bail!(
            "{}",
            error
                .as_deref()
                .unwrap_or("the import failed: see the server's log")
        ),
    }
}

/// A bar with rate and time left on a terminal, nothing anywhere else.
fn progress(import: &Import, json: bool) -> anyhow::Result<ProgressBar> {
    let shown = std::io::stderr().is_terminal() && !json;
    let target = if shown {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = ProgressStyle::with_template(
        "{prefix}  {wide_bar}  {binary_bytes} of {binary_total_bytes}, \
         {binary_bytes_per_sec}, {eta} left",
    )?;
    let bar = ProgressBar::with_draw_target(Some(import.total_bytes), target).with_style(style);
    bar.set_prefix(import.name.clone());
    Ok(bar)
}
