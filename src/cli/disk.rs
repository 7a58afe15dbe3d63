//! `diskless disk`.

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use serde_json::json;

use super::client::{Client, part};
use super::export::Target;
use super::image::server_path;
use super::show::{Answer, bytes, or_dash, table, time};
use super::size::size;
use super::{job, stream};
use crate::api::disks::{
    AddDisk, CloneDisk, ConvertDisk, Disk, Format, ImportDisk, Kind, PartitionTable, RegisterDisk,
    ResizeDisk, ResizedDisk,
};
use crate::api::jobs::Job;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make an empty disk, or one above another
    Create(Create),
    /// Make a disk of a file or block device, or take it in where it lies
    Import(Import),
    /// Copy a disk that nobody writes; blocks are shared where the file system
    /// can
    Clone {
        /// Name of the disk
        disk: String,
        /// Name of the copy
        name: String,
        /// What to remember about it
        #[arg(long, default_value = "")]
        comment: String,
    },
    /// Make a disk that nobody writes one of another format
    Convert {
        /// Name of the disk
        disk: String,
        /// What its file becomes
        #[arg(long)]
        format: Format,
    },
    /// Make a disk that nobody uses larger; a GPT on it is told
    Resize {
        /// Name of the disk
        disk: String,
        /// New size, as in 64G (GiB), 1.5T or a number of bytes
        #[arg(value_parser = size)]
        size: u64,
    },
    /// Write a disk that nobody writes to a file, or to standard output
    Export {
        /// Name of the disk
        disk: String,
        #[command(flatten)]
        target: Target,
    },
    /// List every own disk
    List,
    /// Show one disk
    Info {
        /// Name of the disk
        disk: String,
    },
    /// Remove a disk with its file; the file of one in place stays
    Remove {
        /// Name of the disk
        disk: String,
    },
}

#[derive(Debug, Args)]
#[group(skip)]
#[command(group = ArgGroup::new("extent").required(true).args(["size", "parent"]))]
pub(super) struct Create {
    /// Name: a to z, 0 to 9 and "-"
    name: String,
    /// Size, as in 32G (GiB), 1.5T or a number of bytes; takes no space until
    /// it is written
    #[arg(long, value_parser = size)]
    size: Option<u64>,
    /// What its file is [default: raw, or what its parent is]
    #[arg(long)]
    format: Option<Format>,
    /// Stand on this disk (VHD or VHDX), hold what it holds, and keep only what
    /// differs; the parent is never written again
    #[arg(long, value_name = "DISK")]
    parent: Option<String>,
    /// What to remember about it
    #[arg(long, default_value = "")]
    comment: String,
}

#[derive(Debug, Args)]
pub(super) struct Import {
    /// Name: a to z, 0 to 9 and "-"
    name: String,
    /// Disk file of any format, or block device, on the server's host; a URL;
    /// or - for standard input
    #[arg(value_name = "FILE|URL|-")]
    file: PathBuf,
    /// What the copy's file is [default: raw]
    #[arg(long, conflicts_with = "in_place")]
    format: Option<Format>,
    /// Copy nothing: write it where it lies (raw, VHD, VHDX or block device)
    #[arg(long)]
    in_place: bool,
    /// What a file in place is [default: the file is asked]
    #[arg(long, requires = "in_place")]
    kind: Option<Kind>,
    /// What to remember about it
    #[arg(long, default_value = "")]
    comment: String,
}

pub(super) async fn run(client: &Client, verb: Verb, json: bool) -> anyhow::Result<Answer> {
    match verb {
        Verb::Create(create) => {
            let add = AddDisk {
                name: create.name,
                size_bytes: create.size,
                format: create.format,
                parent: create.parent,
                comment: create.comment,
            };
            let disk: Disk = client.add("/disks", &add).await?;
            Answer::new(format!("made {}", summary(&disk)), &disk)
        }
        Verb::Import(import) if !import.in_place => {
            let job: Job = if import.file == Path::new("-") {
                let format = match import.format.and_then(|format| format.to_possible_value()) {
                    Some(format) => format!("&format={}", format.get_name()),
                    None => String::new(),
                };
                let comment = part(&import.comment);
                let here = format!("{}/stream?comment={comment}{format}", path(&import.name));
                stream::send(client, &here, &import.name, json).await?
            } else {
                let asked = ImportDisk {
                    name: import.name,
                    source: match import.file.to_str() {
                        Some(url) if url.contains("://") => url.to_owned(),
                        _ => server_path(&import.file)?,
                    },
                    format: import.format,
                    comment: import.comment,
                };
                client.add("/disks/imports", &asked).await?
            };
            let disk: Disk = job::follow(client, job, json).await?;
            Answer::new(format!("imported {}", summary(&disk)), &disk)
        }
        Verb::Clone {
            disk,
            name,
            comment,
        } => {
            let here = format!("{}/clones", path(&disk));
            let job: Job = client.add(&here, &CloneDisk { name, comment }).await?;
            let disk: Disk = job::follow(client, job, json).await?;
            Answer::new(format!("made {}", summary(&disk)), &disk)
        }
        Verb::Convert { disk, format } => {
            let here = format!("{}/conversions", path(&disk));
            let job: Job = client.add(&here, &ConvertDisk { format }).await?;
            let disk: Disk = job::follow(client, job, json).await?;
            let words = format!("{} is a {} file now: {}", disk.name, kind(&disk), disk.file);
            Answer::new(words, &disk)
        }
        Verb::Export { disk, target } => {
            let noun = path(&disk);
            target.fill(client, &noun, &disk, json).await
        }
        Verb::Resize { disk, size } => {
            let resize = ResizeDisk { size_bytes: size };
            let resized: ResizedDisk = client.set(&path(&disk), &resize).await?;
            let table = match resized.partition_table {
                PartitionTable::Moved | PartitionTable::AtTheEnd => {
                    "its GPT knows of all of it; what grows next is a partition, from inside"
                }
                PartitionTable::NoGpt => {
                    "there is no GPT on it: the system that uses it sees to the new space"
                }
            };
            let size = or_dash(resized.disk.size_bytes.map(bytes));
            Answer::new(format!("{disk} has {size}: {table}"), &resized)
        }
        Verb::Import(import) => {
            if is_stream_or_url(&import.file) {
                bail!(
                    "{} has no place to be written in: leave --in-place out, and it is copied",
                    import.file.display()
                );
            }
            let register = RegisterDisk {
                name: import.name,
                file: server_path(&import.file)?,
                kind: import.kind,
                comment: import.comment,
            };
            let disk: Disk = client.add("/disks/in-place", &register).await?;
            Answer::new(format!("took in {}", summary(&disk)), &disk)
        }
        Verb::List => {
            let disks: Vec<Disk> = client.show("/disks").await?;
            Answer::new(list(&disks), &disks)
        }
        Verb::Info { disk } => {
            let disk: Disk = client.show(&path(&disk)).await?;
            Answer::new(details(&disk), &disk)
        }
        Verb::Remove { disk } => {
            client.remove(&path(&disk)).await?;
            Answer::new(format!("removed {disk}"), &json!({ "removed": disk }))
        }
    }
}

fn is_stream_or_url(file: &Path) -> bool {
    file == Path::new("-") || file.to_str().is_some_and(|text| text.contains("://"))
}

fn path(disk: &str) -> String {
    format!("/disks/{}", part(disk))
}

fn kind(disk: &Disk) -> &'static str {
    match disk.kind {
        Kind::Raw => "raw",
        Kind::Vhd => "vhd",
        Kind::Vhdx => "vhdx",
    }
}

fn summary(disk: &Disk) -> String {
    let size = match (&disk.size_bytes, &disk.trouble) {
        (Some(size_bytes), _) => bytes(*size_bytes),
        (None, trouble) => or_dash(trouble.as_ref()),
    };
    format!(
        "{} ({}, {size}): give it to a machine with `diskless machine set MACHINE --disk {}`",
        disk.name,
        kind(disk),
        disk.name
    )
}

fn list(disks: &[Disk]) -> String {
    if disks.is_empty() {
        return "no disks yet: `diskless disk create NAME --size 32G` makes one".to_owned();
    }
    let rows = disks.iter().map(|disk| {
        let users = match &disk.trouble {
            Some(trouble) => trouble.clone(),
            None => disk.users.join(", "),
        };
        [
            disk.name.clone(),
            kind(disk).to_owned(),
            or_dash(disk.size_bytes.map(bytes)),
            or_dash(disk.stored_bytes.map(bytes)),
            if disk.in_place { "in place" } else { "" }.to_owned(),
            users,
        ]
    });
    table(
        ["NAME", "KIND", "SIZE", "STORED", "", "USED BY"],
        &[2, 3],
        rows,
    )
}

fn details(disk: &Disk) -> String {
    let mut facts = vec![
        ("name", disk.name.clone()),
        ("kind", kind(disk).to_owned()),
        ("size", or_dash(disk.size_bytes.map(bytes))),
        ("stored", or_dash(disk.stored_bytes.map(bytes))),
        ("file", disk.file.clone()),
        ("parent", or_dash(disk.parent.as_ref())),
        (
            "used by",
            or_dash(Some(disk.users.join(", ")).filter(|all| !all.is_empty())),
        ),
        ("comment", disk.comment.clone()),
        ("made", time(disk.created)),
        ("id", disk.id.to_string()),
    ];
    if let Some(trouble) = &disk.trouble {
        facts.push(("trouble", trouble.clone()));
    }
    facts
        .iter()
        .map(|(fact, value)| format!("{fact:<8} {value}\n"))
        .collect()
}
