//! `diskless image`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Subcommand;

use super::client::{Client, part};
use super::show::{Answer, bytes, table, time};
use super::{job, stream};
use crate::api::images::{Image, ImportImage};
use crate::api::jobs::Job;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a disk file, a block device or standard input the next version of an image
    Import {
        /// Image: a new one, or one that gets another version
        name: String,
        /// Raw, ISO, VHD, VHDX or qcow2 file, or block device, on the server's host; - is standard input
        #[arg(value_name = "FILE|-")]
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
    let job: Job = if file == Path::new("-") {
        let path = format!("/images/{}/stream?comment={}", part(&name), part(&comment));
        stream::send(client, &path, &name, json).await?
    } else {
        let source = server_path(&file)?;
        let asked = ImportImage {
            name,
            source,
            comment,
        };
        client.add("/images", &asked).await?
    };
    let image: Image = job::follow(client, job, json).await?;
    let text = format!(
        "{}: {} imported, {} stored, sha256 {}",
        named(&image),
        bytes(image.size_bytes),
        bytes(image.stored_bytes),
        image.sha256
    );
    Answer::new(text, &image)
}

/// A file's path from the root, in letters the API can carry: the server has a
/// working directory of its own.
pub(super) fn server_path(file: &Path) -> anyhow::Result<String> {
    let path = std::path::absolute(file)
        .with_context(|| format!("cannot tell where {} is", file.display()))?;
    match path.to_str() {
        Some(path) => Ok(path.to_owned()),
        None => bail!("the path of {} is not UTF-8: rename it", file.display()),
    }
}
