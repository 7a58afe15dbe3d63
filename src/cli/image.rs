//! `diskless image`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Subcommand;

use super::client::{Client, part};
use super::export::Target;
use super::show::{Answer, bytes, details, or_dash, table, time};
use super::{contents, file, job, stream};
use crate::api::images::{Image, ImportImage, Rollback, RolledBack, Verified};
use crate::api::jobs::Job;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a disk file, a block device or standard input the next version of an image
    Import {
        /// Image: a new one, or one that gets another version
        name: String,
        /// Raw, ISO, VHD, VHDX or qcow2 file, or block device, on the server's host; a URL, which
        /// the server fetches; or - for standard input
        #[arg(value_name = "FILE|URL|-")]
        file: PathBuf,
        /// What to remember about this version
        #[arg(long, default_value = "")]
        comment: String,
    },
    /// Write an image to a file of another program's, or to standard output
    Export {
        /// NAME or NAME@VERSION
        #[arg(value_name = "NAME[@VERSION]")]
        image: String,
        #[command(flatten)]
        target: Target,
    },
    /// Say what is known of an image, or of any disk file
    Info {
        /// Image, or a file here (with a "/" or "." in its name)
        #[arg(value_name = "NAME[@VERSION]|FILE")]
        what: String,
        /// Directory that a file's parents may lie in, besides its own
        #[arg(long, value_name = "DIRECTORY")]
        parents: Vec<PathBuf>,
    },
    /// Look inside an image: partitions, kernel, command line
    Contents {
        /// NAME or NAME@VERSION
        #[arg(value_name = "NAME[@VERSION]")]
        image: String,
    },
    /// List every version of every image
    List,
    /// List the versions of an image: which is current, who uses them
    Versions {
        /// Image
        name: String,
    },
    /// Make an earlier version the current one: machines boot it from their next boot on
    Rollback {
        /// Image, also as NAME@VERSION
        #[arg(value_name = "NAME[@VERSION]")]
        name: String,
        /// Version, also a later one [default: the one before the current]
        #[arg(value_parser = clap::value_parser!(u32).range(1..))]
        version: Option<u32>,
    },
    /// Read a version from end to end and hold it against its checksums
    Verify {
        /// NAME (its current version) or NAME@VERSION
        #[arg(value_name = "NAME[@VERSION]")]
        image: String,
    },
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
        Verb::Export { image, target } => {
            let noun = format!("/images/{}", part(&image));
            target.fill(client, &noun, &image, json).await
        }
        Verb::Info { what, parents } if what.contains(['/', '.']) => {
            file::info(Path::new(&what), parents)
        }
        Verb::Info { what, .. } => {
            let image: Image = client.show(&format!("/images/{}", part(&what))).await?;
            Answer::new(known(&image), &image)
        }
        Verb::Contents { image } => {
            let found = client
                .show(&format!("/images/{}/contents", part(&image)))
                .await?;
            Answer::new(contents::text(&found), &found)
        }
        Verb::List => {
            let images: Vec<Image> = client.show("/images").await?;
            Answer::new(list(&images), &images)
        }
        Verb::Versions { name } => {
            let path = format!("/images/{}/versions", part(&name));
            let images: Vec<Image> = client.show(&path).await?;
            Answer::new(versions(&images), &images)
        }
        Verb::Rollback { name, version } => {
            let (name, version) = chosen(&name, version)?;
            let path = format!("/images/{}/current", part(name));
            let done: RolledBack = client.put(&path, &Rollback { version }).await?;
            Answer::new(rolled_back(&done), &done)
        }
        Verb::Verify { image } => {
            let path = format!("/images/{}/verification", part(&image));
            let job: Job = client.add(&path, &()).await?;
            let found: Verified = job::follow(client, job, json).await?;
            verified(&found)
        }
        Verb::Remove { image } => {
            let path = format!("/images/{}", part(&image));
            let removed: Vec<Image> = client.remove_shown(&path).await?;
            let named: Vec<String> = removed.iter().map(named).collect();
            Answer::new(format!("removed {}", named.join(", ")), &removed)
        }
    }
}

/// The version meant by `debian 1` and by `debian@1`.
fn chosen(image: &str, version: Option<u32>) -> anyhow::Result<(&str, Option<u32>)> {
    let Some((name, after)) = image.split_once('@') else {
        return Ok((image, version));
    };
    match after.parse().ok().filter(|number| *number > 0) {
        Some(number) if version.is_none_or(|other| other == number) => Ok((name, Some(number))),
        Some(_) => bail!("{image} names a version already: leave the other out"),
        None => bail!("{after:?} is not a version: they count from 1, as in {name}@1"),
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
            standing(image),
            bytes(image.size_bytes),
            bytes(image.stored_bytes),
            time(image.created),
            image.comment.clone(),
        ]
    });
    let header = ["IMAGE", "", "SIZE", "STORED", "CREATED", "COMMENT"];
    table(header, &[2, 3], rows)
}

fn versions(images: &[Image]) -> String {
    let rows = images.iter().map(|image| {
        let users = match (image.machines.len(), image.overlays) {
            (0, 0) => "nobody".to_owned(),
            (machines, 0) => format!("{machines} to boot"),
            (0, overlays) => format!("{overlays} above it"),
            (machines, overlays) => format!("{machines} to boot, {overlays} above it"),
        };
        [
            named(image),
            standing(image),
            or_dash(image.parent.map(|parent| format!("@{parent}"))),
            bytes(image.stored_bytes),
            users,
            time(image.created),
            or_dash(image.checked.map(time)),
            image.comment.clone(),
        ]
    });
    let header = [
        "IMAGE", "", "FROM", "STORED", "USED BY", "CREATED", "CHECKED", "COMMENT",
    ];
    table(header, &[3], rows)
}

/// A damaged image is an error, so that scripts hear of it.
fn verified(found: &Verified) -> anyhow::Result<Answer> {
    let Verified { image, .. } = found;
    if found.sound {
        let mut text = format!("{image} is what was published");
        if !found.checksums_sound {
            text.push_str("; the CRCs beside it are not, so the scrub cannot watch over it");
        }
        return Answer::new(text, found);
    }
    let mib = |offset: u64| offset / (1024 * 1024);
    let places = found.damaged.iter().map(|part| {
        match (
            mib(part.offset),
            mib(part.offset + part.bytes.saturating_sub(1)),
        ) {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first} to {last}"),
        }
    });
    bail!(
        "{image} is damaged in MiB {}: reads there are refused from now on; put it back from a \
         copy, or go to a version that is right with `diskless image rollback`",
        places.collect::<Vec<_>>().join(", ")
    )
}

/// Whether a version is current, and whether it is damaged.
fn standing(image: &Image) -> String {
    let words = [
        image.current.then_some("current"),
        (!image.damaged.is_empty()).then_some("DAMAGED"),
    ];
    words.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn rolled_back(done: &RolledBack) -> String {
    let image = named(&done.image);
    let mut text = match done.was {
        Some(was) if was == done.image.version => format!("{image} is current already"),
        Some(was) => format!(
            "{image} is current, in place of @{was}: machines boot it from their next boot on"
        ),
        None => format!("{image} is current: machines boot it from their next boot on"),
    };
    if !done.staying.is_empty() {
        text.push_str(&format!(
            "\nkept overlays stay on the version they were made from: {} (`diskless overlay reset \
             MACHINE` gives the writes up and moves on)",
            done.staying.join(", ")
        ));
    }
    text
}

fn known(image: &Image) -> String {
    let mut facts = vec![
        ("image", format!("{} {}", named(image), standing(image))),
        (
            "size",
            format!("{} ({} bytes)", bytes(image.size_bytes), image.size_bytes),
        ),
        ("stored", bytes(image.stored_bytes)),
        ("sha256", image.sha256.clone()),
        ("uuid", image.uuid.to_string()),
        ("published", time(image.created)),
    ];
    if let Some(parent) = image.parent {
        facts.push(("made from", format!("{}@{parent}", image.name)));
    }
    if !image.comment.is_empty() {
        facts.push(("comment", image.comment.clone()));
    }
    details(facts)
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
        let source = match file.to_str() {
            Some(url) if is_url(url) => url.to_owned(),
            _ => server_path(&file)?,
        };
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

fn is_url(text: &str) -> bool {
    // Which of them can be fetched is for the server to say.
    text.contains("://")
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
