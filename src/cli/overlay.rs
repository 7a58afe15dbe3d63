//! `diskless overlay`.

use clap::Subcommand;
use jiff::Timestamp;

use super::client::{Client, part};
use super::export::Target;
use super::job;
use super::show::{Answer, ago, bytes, or_dash, table, time};
use super::size::size;
use crate::api::images::Image;
use crate::api::jobs::Job;
use crate::api::machines::Mode;
use crate::api::overlays::{Overlay, SetOverlay};
use crate::api::points::{Branch, Commit, MakePoint, Point, Restore, Restored};

/// What names an overlay, as the help says it.
const OVERLAY: &str = "MACHINE";

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List every overlay, former ones too
    List,
    /// Show an overlay
    Show {
        /// Its machine, or the UUID that `overlay list` shows
        #[arg(value_name = OVERLAY)]
        overlay: String,
    },
    /// List the moments one can go back to
    Points {
        /// Its machine, or its UUID
        #[arg(value_name = OVERLAY)]
        overlay: String,
    },
    /// Make a restore point, while the machine runs too
    Point {
        /// Its machine, or its UUID
        #[arg(value_name = OVERLAY)]
        overlay: String,
        /// What to remember about it
        #[arg(long, default_value = "")]
        comment: String,
        /// Give this one up instead of making one
        #[arg(long, value_name = "POINT", conflicts_with = "comment")]
        remove: Option<String>,
    },
    /// Go back to a restore point; what was written since is kept aside
    Restore {
        /// The machine, which is switched off
        #[arg(value_name = OVERLAY)]
        overlay: String,
        /// As `overlay points` shows it, or "latest"
        point: String,
    },
    /// Let another machine begin from a restore point
    Branch {
        /// The machine that has the point, or its overlay's UUID
        #[arg(value_name = OVERLAY)]
        overlay: String,
        /// As `overlay points` shows it, or "latest"
        point: String,
        /// The other machine, which is switched off
        #[arg(long, value_name = "MACHINE")]
        to: String,
    },
    /// Make what a machine has on its disk the next version of its image
    Commit {
        /// The machine, which is switched off
        #[arg(value_name = OVERLAY)]
        overlay: String,
        /// Another image, new or not
        #[arg(long = "as", value_name = "IMAGE")]
        image: Option<String>,
        /// What to remember about this version
        #[arg(long, default_value = "")]
        comment: String,
        /// Of a machine that runs: as a loss of power would leave its disk
        #[arg(long)]
        crash_consistent: bool,
    },
    /// Write what it held at a restore point to a file, or to standard output;
    /// while the machine runs too
    Export {
        /// Its machine, or its UUID
        #[arg(value_name = OVERLAY)]
        overlay: String,
        /// As `overlay points` shows it, or "latest"
        point: String,
        #[command(flatten)]
        target: Target,
    },
    /// Limit what an overlay may hold
    Quota {
        /// Its machine, or its UUID
        #[arg(value_name = OVERLAY)]
        overlay: String,
        /// As in 20G; "none": as much as there is room for
        #[arg(value_parser = quota)]
        quota: Quota,
    },
    /// Throw a machine's writes away now, restore points too: it begins afresh
    Reset {
        /// The machine, which is switched off
        machine: String,
    },
    /// Remove an overlay with its restore points, or a former one
    Remove {
        /// Its machine, or the UUID that `overlay list` shows
        #[arg(value_name = OVERLAY)]
        overlay: String,
    },
}

/// A quota; `None`: none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quota(Option<u64>);

fn quota(text: &str) -> Result<Quota, String> {
    match text {
        "none" => Ok(Quota(None)),
        text => size(text).map(|bytes| Quota(Some(bytes))),
    }
}

pub(super) async fn run(client: &Client, verb: Verb, json: bool) -> anyhow::Result<Answer> {
    match verb {
        Verb::List => {
            let overlays: Vec<Overlay> = client.show("/overlays").await?;
            Answer::new(list(&overlays), &overlays)
        }
        Verb::Show { overlay } => {
            let overlay: Overlay = client.show(&at(&overlay, "")).await?;
            Answer::new(show(&overlay), &overlay)
        }
        Verb::Points { overlay } => {
            let points: Vec<Point> = client.show(&at(&overlay, "/points")).await?;
            Answer::new(points_of(&overlay, &points), &points)
        }
        Verb::Point {
            overlay,
            remove: Some(point),
            ..
        } => {
            let path = at(&overlay, &format!("/points/{}", part(&point)));
            client.remove(&path).await?;
            Answer::new(
                format!("removed {point}"),
                &serde_json::json!({ "removed": point }),
            )
        }
        Verb::Point {
            overlay, comment, ..
        } => {
            let asked = MakePoint { comment };
            let made: Point = client.add(&at(&overlay, "/points"), &asked).await?;
            let text = format!(
                "restore point {}; `diskless overlay restore {overlay} {0}` goes back to it",
                short(&made)
            );
            Answer::new(text, &made)
        }
        Verb::Restore { overlay, point } => {
            let asked = Restore { point };
            let done: Restored = client.add(&at(&overlay, "/restoration"), &asked).await?;
            Answer::new(restored(&done), &done)
        }
        Verb::Branch { overlay, point, to } => {
            let asked = Branch { point, to };
            let new: Overlay = client.add(&at(&overlay, "/branches"), &asked).await?;
            let text = format!(
                "{} begins from there at its next boot, above {}, and keeps its writes",
                new.machine, new.image
            );
            Answer::new(text, &new)
        }
        Verb::Commit {
            overlay,
            image,
            comment,
            crash_consistent,
        } => {
            let asked = Commit {
                image,
                comment,
                crash_consistent,
            };
            let job: Job = client.add(&at(&overlay, "/commits"), &asked).await?;
            let image: Image = job::follow(client, job, json).await?;
            Answer::new(committed(&image), &image)
        }
        Verb::Export {
            overlay,
            point,
            target,
        } => {
            let noun = at(&overlay, &format!("/points/{}", part(&point)));
            target.fill(client, &noun, &overlay, json).await
        }
        Verb::Quota { overlay, quota } => {
            let asked = SetOverlay {
                quota_bytes: Some(quota.0),
            };
            let overlay: Overlay = client.set(&at(&overlay, ""), &asked).await?;
            let text = match overlay.quota_bytes {
                None => format!("{} has no quota", overlay.machine),
                Some(quota) => format!(
                    "{} may hold {}, and holds {}",
                    overlay.machine,
                    bytes(quota),
                    bytes(overlay.stored_bytes)
                ),
            };
            Answer::new(text, &overlay)
        }
        Verb::Reset { machine } => {
            client.remove(&at(&machine, "")).await?;
            let text = format!("{machine} begins afresh at its next boot");
            Answer::new(text, &serde_json::json!({ "reset": machine }))
        }
        Verb::Remove { overlay } => {
            client.remove(&at(&overlay, "")).await?;
            Answer::new(
                format!("removed {overlay}"),
                &serde_json::json!({ "removed": overlay }),
            )
        }
    }
}

fn at(overlay: &str, rest: &str) -> String {
    format!("/overlays/{}{rest}", part(overlay))
}

fn list(overlays: &[Overlay]) -> String {
    if overlays.is_empty() {
        return "no overlays: a machine gets one when it boots".to_owned();
    }
    let rows = overlays.iter().map(|overlay| {
        [
            overlay.machine.clone(),
            overlay.image.clone(),
            mode(overlay).to_owned(),
            bytes(overlay.stored_bytes),
            or_dash(overlay.quota_bytes.map(bytes)),
            overlay.points.to_string(),
            time(overlay.created),
            overlay.uuid.to_string(),
        ]
    });
    let header = [
        "MACHINE", "IMAGE", "MODE", "STORED", "QUOTA", "POINTS", "CREATED", "UUID",
    ];
    table(header, &[3, 4, 5], rows)
}

fn mode(overlay: &Overlay) -> &'static str {
    match overlay.mode {
        _ if overlay.former => "former",
        Mode::Reset => "reset",
        Mode::Keep => "keep",
    }
}

fn show(overlay: &Overlay) -> String {
    let rows = [
        ["machine".to_owned(), overlay.machine.clone()],
        ["above".to_owned(), overlay.image.clone()],
        ["mode".to_owned(), mode(overlay).to_owned()],
        ["stored".to_owned(), bytes(overlay.stored_bytes)],
        [
            "quota".to_owned(),
            overlay.quota_bytes.map_or_else(|| "none".to_owned(), bytes),
        ],
        ["points".to_owned(), overlay.points.to_string()],
        ["created".to_owned(), time(overlay.created)],
    ];
    table(["uuid", &overlay.uuid.to_string()], &[], rows)
}

fn points_of(overlay: &str, points: &[Point]) -> String {
    if points.is_empty() {
        return format!(
            "no restore points: `diskless overlay point {overlay} --comment ...` makes one"
        );
    }
    let now = Timestamp::now();
    let rows = points.iter().map(|point| {
        [
            short(point),
            time(point.created),
            ago(point.created, now),
            bytes(point.stored_bytes),
            match (point.former, point.automatic) {
                (true, _) => "former state".to_owned(),
                (false, true) => "automatic".to_owned(),
                (false, false) => "by hand".to_owned(),
            },
            point.comment.clone(),
        ]
    });
    table(
        ["POINT", "CREATED", "AGE", "SIZE", "", "COMMENT"],
        &[3],
        rows,
    )
}

fn committed(image: &Image) -> String {
    let mut text = format!(
        "{}@{} is current: machines boot it from their next boot on; kept overlays stay on their \
         version (`diskless overlay reset MACHINE` moves one on)",
        image.name, image.version
    );
    if let Some(parent) = image.parent
        && parent + 1 < image.version
    {
        text.push_str(&format!(
            "\nit was made from @{parent}: what later versions brought is not in it"
        ));
    }
    text
}

fn restored(done: &Restored) -> String {
    let machine = &done.overlay.machine;
    let mut text = format!(
        "{machine} goes on from {} ({}) at its next boot",
        short(&done.point),
        time(done.point.created)
    );
    if let Some(last) = &done.last {
        let last: String = last.chars().take(SHORT_CHARS).collect();
        text.push_str(&format!(
            "\nwhat it has written since is kept: `diskless overlay restore {machine} {last}` goes \
             back to that"
        ));
    }
    text.push_str(&format!(
        "\n`diskless overlay remove {}` gives the former overlay up",
        done.former.uuid
    ));
    text
}

/// So much of a point's id is the millisecond it was made in.
const SHORT_CHARS: usize = 13;

fn short(point: &Point) -> String {
    point.id.chars().take(SHORT_CHARS).collect()
}
