//! `diskless target`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use super::client::{Client, part};
use super::show::{Answer, bytes, or_dash, table, time};
use super::size::size;
use crate::api::targets::{AddLun, AddTarget, AddedTarget, ChapSecret, Kind, Lun, SetLun, Target};

pub(super) use serve::Serve;

mod serve;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Serve files as disks at once, without configuration or state, until
    /// Ctrl-C or SIGTERM
    ///
    /// Prints one line iscsi://ADDR:PORT/IQN/LUN for each file and portal once
    /// they can be opened. The log goes to stderr.
    Serve(Serve),
    #[command(flatten)]
    Kept(Kept),
}

/// Targets that the running server keeps.
#[derive(Debug, Subcommand)]
pub(super) enum Kept {
    /// Add a target; `target lun add` gives it disks
    Add(Add),
    /// List every target
    List,
    /// Show one target with its LUNs
    Show {
        /// Name of the target
        target: String,
    },
    /// Forget a target; its files stay
    Remove {
        /// Name of the target
        target: String,
        /// Also while sessions have it open, which lose it
        #[arg(long)]
        force: bool,
    },
    /// The disks of a target
    #[command(subcommand)]
    Lun(LunVerb),
}

#[derive(Debug, Subcommand)]
pub(super) enum LunVerb {
    /// Serve a file or drive as a disk, also to sessions that run
    Add(LunAdd),
    /// Take a LUN away; its file stays
    Remove {
        /// Name of the target
        target: String,
        /// Number
        lun: u16,
        /// Also while sessions have the target open, which lose the disk
        #[arg(long)]
        force: bool,
    },
    /// Make a LUN's file larger; sessions that run hear of it
    Resize {
        /// Name of the target
        target: String,
        /// Number
        lun: u16,
        /// New size, as in 20G (GiB), 1.5T or a number of bytes
        #[arg(value_parser = size)]
        size: u64,
    },
    /// Look at a LUN's file or drive again: whether it has grown, has another
    /// disc, or can be served now
    Rescan {
        /// Name of the target
        target: String,
        /// Number
        lun: u16,
    },
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// Name: a to z, 0 to 9 and "-"
    name: String,
    /// Its iSCSI name [default: one of this site's, ending in :target.NAME]
    #[arg(long, value_name = "NAME")]
    iqn: Option<String>,
    /// Let in only who proves this by CHAP. Other users of this host see
    /// command lines: better --chap-file or --chap-generate
    #[arg(long, value_name = "NAME:SECRET", group = "proof")]
    chap: Option<String>,
    /// The same, from the first line of a file
    #[arg(long, value_name = "FILE", group = "proof")]
    chap_file: Option<PathBuf>,
    /// The same, with a secret that is made and shown this once
    #[arg(long, value_name = "NAME", group = "proof")]
    chap_generate: Option<String>,
    /// Prove this to initiators that ask (mutual CHAP), from the first line of
    /// a file: NAME:SECRET, or NAME alone for a secret that is made
    #[arg(long, value_name = "FILE", requires = "proof")]
    mutual: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct LunAdd {
    /// Name of the target
    target: String,
    /// Disk image (raw, VHD, VHDX; qcow2 with --read-only), ISO or block device
    #[arg(required_unless_present = "disk")]
    file: Option<PathBuf>,
    /// An own disk in place of a file
    #[arg(long, value_name = "NAME", conflicts_with_all = ["file", "raw"])]
    disk: Option<String>,
    /// Its number [default: the lowest that is free]
    #[arg(long, value_name = "NUMBER")]
    lun: Option<u16>,
    #[command(flatten)]
    kind: KindFlags,
    /// Let several initiators have it at once: a cluster's disk, whose members
    /// keep apart by reservations. An ordinary file system is destroyed
    #[arg(long)]
    shared: bool,
    /// Logical blocks of 512 or 4096 bytes [default: 512, a block device's
    /// own, 2048 for --cdrom]
    #[arg(long, value_name = "BYTES", value_parser = block_bytes, conflicts_with = "cdrom")]
    block_size: Option<u32>,
    /// Take the file's bytes as they are, even where it looks like a qcow2,
    /// VHD or compressed image
    #[arg(long)]
    raw: bool,
}

/// What a file is shown as: a fixed, fully provisioned disk, or one of these.
#[derive(Clone, Copy, Debug, Args)]
#[group(multiple = false)]
pub(super) struct KindFlags {
    /// A thinly provisioned disk: initiators give space back, and the file gets
    /// holes
    #[arg(long)]
    thin: bool,
    /// A disk that nobody writes; the file is opened read-only
    #[arg(long)]
    read_only: bool,
    /// A disk whose medium can be ejected
    #[arg(long)]
    removable: bool,
    /// A DVD drive with the file (an ISO) as its disc
    #[arg(long)]
    cdrom: bool,
}

impl KindFlags {
    fn kind(self) -> Kind {
        match self {
            KindFlags { thin: true, .. } => Kind::Thin,
            KindFlags {
                read_only: true, ..
            } => Kind::ReadOnly,
            KindFlags {
                removable: true, ..
            } => Kind::Removable,
            KindFlags { cdrom: true, .. } => Kind::Cdrom,
            _ => Kind::Disk,
        }
    }
}

pub(super) async fn run(client: &Client, kept: Kept) -> anyhow::Result<Answer> {
    match kept {
        Kept::Add(add) => {
            let added: AddedTarget = client.add("/targets", &add.body()?).await?;
            Answer::new(words_of_added(&added), &added)
        }
        Kept::List => {
            let targets: Vec<Target> = client.show("/targets").await?;
            Answer::new(list(&targets), &targets)
        }
        Kept::Show { target } => {
            let target: Target = client.show(&path(&target)).await?;
            Answer::new(details(&target), &target)
        }
        Kept::Remove { target, force } => {
            client
                .remove(&format!("{}{}", path(&target), forced(force)))
                .await?;
            Answer::new(format!("removed {target}"), &json!({ "removed": target }))
        }
        Kept::Lun(verb) => run_lun(client, verb).await,
    }
}

async fn run_lun(client: &Client, verb: LunVerb) -> anyhow::Result<Answer> {
    match verb {
        LunVerb::Add(add) => {
            let target = add.target.clone();
            let lun: Lun = client
                .add(&format!("{}/luns", path(&target)), &add.body()?)
                .await?;
            Answer::new(format!("added to {target}: {}", summary(&lun)), &lun)
        }
        LunVerb::Remove { target, lun, force } => {
            let path = lun_path(&target, lun) + forced(force);
            client.remove(&path).await?;
            let removed = json!({ "removed": { "target": target, "lun": lun } });
            Answer::new(format!("removed LUN {lun} of {target}"), &removed)
        }
        LunVerb::Resize { target, lun, size } => {
            let set = SetLun { size_bytes: size };
            let lun: Lun = client.set(&lun_path(&target, lun), &set).await?;
            Answer::new(summary(&lun), &lun)
        }
        LunVerb::Rescan { target, lun } => {
            let path = format!("{}/rescan", lun_path(&target, lun));
            let lun: Lun = client.add(&path, &json!({})).await?;
            Answer::new(summary(&lun), &lun)
        }
    }
}

fn path(target: &str) -> String {
    format!("/targets/{}", part(target))
}

fn lun_path(target: &str, lun: u16) -> String {
    format!("{}/luns/{lun}", path(target))
}

fn forced(force: bool) -> &'static str {
    if force { "?force=true" } else { "" }
}

impl Add {
    /// Reads the secrets.
    fn body(self) -> anyhow::Result<AddTarget> {
        let chap = match (self.chap, self.chap_file, self.chap_generate) {
            (Some(text), _, _) => Some(whole(&text)?),
            (_, Some(file), _) => {
                let chap = whole(&first_line(&file)?);
                Some(chap.with_context(|| format!("the CHAP file {}", file.display()))?)
            }
            (_, _, Some(name)) => Some(ChapSecret { name, secret: None }),
            (None, None, None) => None,
        };
        let mutual = match self.mutual {
            Some(file) => {
                let line = first_line(&file)?;
                Some(match line.split_once(':') {
                    Some(_) => whole(&line)?,
                    None => ChapSecret {
                        name: line,
                        secret: None,
                    },
                })
            }
            None => None,
        };
        Ok(AddTarget {
            name: self.name,
            iqn: self.iqn,
            chap,
            mutual,
        })
    }
}

impl LunAdd {
    fn body(self) -> anyhow::Result<AddLun> {
        // The server has a working directory of its own.
        let whole = |file: &Path| -> anyhow::Result<String> {
            let path = std::path::absolute(file)
                .with_context(|| format!("the path of {}", file.display()))?;
            let Some(path) = path.to_str() else {
                bail!(
                    "{} is not UTF-8: give the file another name",
                    path.display()
                );
            };
            Ok(path.to_owned())
        };
        Ok(AddLun {
            file: self.file.as_deref().map(whole).transpose()?,
            disk: self.disk,
            lun: self.lun,
            kind: self.kind.kind(),
            shared: self.shared,
            block_bytes: self.block_size,
            raw: self.raw,
        })
    }
}

fn whole(text: &str) -> anyhow::Result<ChapSecret> {
    let (name, secret) = text.split_once(':').context("write it as NAME:SECRET")?;
    Ok(ChapSecret {
        name: name.to_owned(),
        secret: Some(secret.to_owned()),
    })
}

/// The first line of a file that holds a secret.
fn first_line(path: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("reading the CHAP file {}", path.display()))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

fn words_of_added(added: &AddedTarget) -> String {
    let target = &added.target;
    let mut text = format!("added {}: {}\n", target.name, target.iqn);
    let mut secret = |whose: &str, name: &Option<String>, secret: &Option<String>| {
        if let (Some(name), Some(secret)) = (name, secret) {
            text.push_str(&format!(
                "{whose} CHAP name {name}, secret {secret} (it is not shown again)\n"
            ));
        }
    };
    secret("initiators:", &target.chap, &added.secret);
    secret("the target:", &target.mutual, &added.mutual_secret);
    if target.chap.is_none() {
        text.push_str(&format!(
            "whoever reaches {} may open it; `target add --chap-generate NAME` makes a target with \
             a secret\n",
            target.portals.join(", ")
        ));
    }
    text.push_str(&format!(
        "give it a disk: `diskless target lun add {} FILE`",
        target.name
    ));
    text
}

fn list(targets: &[Target]) -> String {
    if targets.is_empty() {
        return "no targets: `diskless target add NAME` adds one".to_owned();
    }
    let rows = targets.iter().map(|target| {
        let troubled = target
            .luns
            .iter()
            .filter(|lun| lun.trouble.is_some())
            .count();
        let luns = match troubled {
            0 => target.luns.len().to_string(),
            _ => format!("{} ({troubled} not served)", target.luns.len()),
        };
        [
            target.name.clone(),
            luns,
            bytes(target.luns.iter().filter_map(|lun| lun.size_bytes).sum()),
            target.sessions.to_string(),
            or_dash(target.chap.as_ref()),
            target.iqn.clone(),
        ]
    });
    table(
        ["NAME", "LUNS", "SIZE", "SESSIONS", "CHAP", "IQN"],
        &[2, 3],
        rows,
    )
}

fn details(target: &Target) -> String {
    let mut text = String::new();
    let mut line = |what: &str, value: &str| text.push_str(&format!("{what:<10} {value}\n"));
    line("name", &target.name);
    line("IQN", &target.iqn);
    line("portals", &target.portals.join(", "));
    let open = "none: whoever reaches a portal may open it";
    line("CHAP", target.chap.as_deref().unwrap_or(open));
    if let Some(mutual) = &target.mutual {
        line("mutual", mutual);
    }
    line("sessions", &target.sessions.to_string());
    line("added", &time(target.created));
    if target.luns.is_empty() {
        line("LUNs", "none");
        return text;
    }
    let rows = target.luns.iter().map(|lun| {
        [
            lun.lun.to_string(),
            word(lun.kind).to_owned() + if lun.shared { ", shared" } else { "" },
            or_dash(lun.size_bytes.map(bytes)),
            match &lun.disk {
                Some(disk) => format!("disk {disk}"),
                None => lun.file.clone(),
            },
            lun.trouble.clone().unwrap_or_default(),
        ]
    });
    text.push('\n');
    text.push_str(&table(["LUN", "KIND", "SIZE", "FILE", ""], &[0, 2], rows));
    text
}

fn summary(lun: &Lun) -> String {
    let state = match (&lun.size_bytes, &lun.trouble) {
        (Some(size), _) => bytes(*size),
        (None, trouble) => format!("not served: {}", or_dash(trouble.as_ref())),
    };
    format!("LUN {} ({}, {state}) {}", lun.lun, word(lun.kind), lun.file)
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Disk => "disk",
        Kind::Thin => "thin",
        Kind::ReadOnly => "read-only",
        Kind::Removable => "removable",
        Kind::Cdrom => "cdrom",
    }
}

fn block_bytes(text: &str) -> Result<u32, String> {
    match text {
        "512" => Ok(512),
        "4096" | "4k" | "4K" => Ok(4096),
        _ => Err("512 or 4096".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_without_chap_says_who_may_open_it() {
        let target = Target {
            id: uuid::Uuid::nil(),
            name: "data".into(),
            iqn: "iqn.2026-01.lab:data".into(),
            portals: vec!["10.0.0.1:3260".into()],
            chap: None,
            mutual: None,
            luns: Vec::new(),
            sessions: 0,
            created: jiff::Timestamp::UNIX_EPOCH,
        };
        let mut added = AddedTarget {
            target,
            secret: None,
            mutual_secret: None,
        };
        let words = words_of_added(&added);
        assert!(words.contains("whoever reaches 10.0.0.1:3260"), "{words}");
        added.target.chap = Some("me".into());
        added.secret = Some("0123456789abcdef".into());
        let words = words_of_added(&added);
        assert!(!words.contains("whoever"), "{words}");
        assert!(
            words.contains("CHAP name me, secret 0123456789abcdef"),
            "{words}"
        );
    }
}
