//! `diskless machine`.

use std::net::Ipv4Addr;
use std::str::FromStr;

use clap::{ArgGroup, Args, Subcommand};
use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::client::{Client, part};
use super::contents;
use super::show::{Answer, ago, exact_time, or_dash, table, time};
use crate::api::machines::{AddMachine, Boot, Machine, MachineStateWord, Mode, SetMachine};
use crate::api::overlays::Overlay;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Add a machine, or take in a pending one by its MAC
    Add(Add),
    /// List every machine
    List,
    /// Show one machine
    Show {
        /// Name or MAC
        machine: String,
    },
    /// Change a machine; image and mode count from its next boot
    Set(Set),
    /// Forget a machine, with its overlays
    Remove {
        /// Name or MAC
        machine: String,
        /// End its sessions first, where it runs: like pulling its plug
        #[arg(long)]
        force: bool,
    },
    /// Look inside the disk its next boot begins with: partitions, kernel, command line
    Contents {
        /// Name or MAC
        machine: String,
    },
    /// Show what happened at each of its boots
    Timeline {
        /// Name or MAC
        machine: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// Name: a to z, 0 to 9 and "-"
    name: String,
    /// MAC address of its network card, as in 52:54:00:12:34:56
    #[arg(long)]
    mac: String,
    /// Golden image it boots: NAME (always the current version) or NAME@VERSION
    #[arg(long, value_name = "NAME[@VERSION]")]
    image: Option<String>,
    /// What becomes of its writes at its next boot [default: keep]
    #[arg(long, requires = "image")]
    mode: Option<Mode>,
    /// Own disk it boots in place of an image, and writes
    #[arg(long, value_name = "NAME", conflicts_with = "image")]
    disk: Option<String>,
    /// Fixed address
    #[arg(long)]
    address: Option<Ipv4Addr>,
    /// Loader file in place of the one its firmware would get; "secure": the signed chain
    #[arg(long, value_name = "FILE")]
    loader: Option<String>,
    /// SMBIOS UUID
    #[arg(long, value_parser = super::id::smbios)]
    uuid: Option<Uuid>,
    /// SMBIOS serial number
    #[arg(long)]
    serial: Option<String>,
}

#[derive(Debug, Args)]
#[group(skip)]
#[command(group = ArgGroup::new("changes").required(true).multiple(true).args([
    "name", "mac", "image", "mode", "disk", "address", "loader", "uuid", "serial",
]))]
pub(super) struct Set {
    /// Name or MAC
    machine: String,
    /// Another name
    #[arg(long)]
    name: Option<String>,
    /// MAC address of another network card
    #[arg(long)]
    mac: Option<String>,
    /// Another image: NAME (always the current version), NAME@VERSION, or none
    #[arg(long, value_name = "NAME[@VERSION]")]
    image: Option<Or<String>>,
    /// What becomes of its writes at its next boot
    #[arg(long)]
    mode: Option<Mode>,
    /// Own disk in place of an image, or none
    #[arg(long, value_name = "NAME", conflicts_with_all = ["image", "mode"])]
    disk: Option<Or<String>>,
    /// Fixed address, or none
    #[arg(long)]
    address: Option<Or<Ipv4Addr>>,
    /// Loader file in place of the one its firmware would get; "secure": the signed chain, or none
    #[arg(long, value_name = "FILE")]
    loader: Option<Or<String>>,
    /// SMBIOS UUID, or none
    #[arg(long, value_parser = smbios)]
    uuid: Option<Or<Uuid>>,
    /// SMBIOS serial number, or none
    #[arg(long)]
    serial: Option<Or<String>>,
}

/// A value, or the word `none`.
#[derive(Clone, Debug)]
struct Or<T>(Option<T>);

impl<T> Or<T> {
    fn read<E>(text: &str, parse: impl Fn(&str) -> Result<T, E>) -> Result<Or<T>, E> {
        Ok(Or(match text {
            "none" => None,
            text => Some(parse(text)?),
        }))
    }
}

impl<T: FromStr> FromStr for Or<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Or<T>, T::Err> {
        Or::read(text, str::parse)
    }
}

fn smbios(text: &str) -> Result<Or<Uuid>, String> {
    Or::read(text, super::id::smbios)
}

pub(super) async fn run(client: &Client, verb: Verb) -> anyhow::Result<Answer> {
    match verb {
        Verb::Add(add) => {
            let machine: Machine = client.add("/machines", &add.body()).await?;
            Answer::new(format!("added {}", summary(&machine)), &machine)
        }
        Verb::List => {
            let machines: Vec<Machine> = client.show("/machines").await?;
            Answer::new(list(&machines, jiff::Timestamp::now()), &machines)
        }
        Verb::Show { machine } => {
            let machine: Machine = client.show(&path(&machine)).await?;
            Answer::new(details(&machine), &machine)
        }
        Verb::Set(set) => {
            let machine: Machine = client.set(&path(&set.machine), &set.body()).await?;
            let mut words = summary(&machine);
            let overlays: Vec<Overlay> = client.show("/overlays").await?;
            if is_about_to_lose_writes(&machine, &overlays) {
                words.push_str(&format!(
                    "\nwhat it has kept so far is thrown away at its next boot; \
                     `diskless machine set {} --mode keep` before that keeps it",
                    machine.name
                ));
            }
            Answer::new(words, &machine)
        }
        Verb::Remove { machine, force } => {
            let query = if force { "?force=true" } else { "" };
            client.remove(&format!("{}{query}", path(&machine))).await?;
            Answer::new(format!("removed {machine}"), &json!({ "removed": machine }))
        }
        Verb::Contents { machine } => {
            let found = client.show(&format!("{}/contents", path(&machine))).await?;
            Answer::new(contents::text(&found), &found)
        }
        Verb::Timeline { machine } => {
            let boots: Vec<Boot> = client.show(&format!("{}/timeline", path(&machine))).await?;
            Answer::new(timeline(&machine, &boots), &boots)
        }
    }
}

/// Whether a machine that is set to `reset` has kept writes above that image.
fn is_about_to_lose_writes(machine: &Machine, overlays: &[Overlay]) -> bool {
    let name = |image: &str| image.split('@').next().map(str::to_owned);
    machine.mode == Some(Mode::Reset)
        && overlays.iter().any(|overlay| {
            overlay.machine == machine.name
                && overlay.mode == Mode::Keep
                && name(&overlay.image) == machine.image.as_deref().and_then(name)
        })
}

fn path(machine: &str) -> String {
    format!("/machines/{}", part(machine))
}

impl Add {
    fn body(self) -> AddMachine {
        AddMachine {
            name: self.name,
            mac: self.mac,
            image: self.image,
            mode: self.mode,
            disk: self.disk,
            address: self.address,
            loader: self.loader,
            uuid: self.uuid,
            serial: self.serial,
        }
    }
}

impl Set {
    fn body(&self) -> SetMachine {
        fn said<T: Clone>(value: &Option<Or<T>>) -> Option<Option<T>> {
            value.as_ref().map(|Or(value)| value.clone())
        }
        SetMachine {
            name: self.name.clone(),
            mac: self.mac.clone(),
            image: said(&self.image),
            mode: self.mode,
            disk: said(&self.disk),
            address: said(&self.address),
            loader: said(&self.loader),
            uuid: said(&self.uuid),
            serial: said(&self.serial),
        }
    }
}

fn state(machine: &Machine) -> &'static str {
    match (machine.state, machine.running) {
        (MachineStateWord::Pending, _) => "pending",
        (MachineStateWord::Known, true) => "running",
        (MachineStateWord::Known, false) => "known",
    }
}

fn mode(machine: &Machine) -> Option<&'static str> {
    match (&machine.disk, machine.mode) {
        (Some(_), _) => Some("direct"),
        (None, Some(Mode::Reset)) => Some("reset"),
        (None, Some(Mode::Keep)) => Some("keep"),
        (None, None) => None,
    }
}

/// The image or disk a machine boots.
fn boots(machine: &Machine) -> Option<String> {
    let disk = machine.disk.as_ref().map(|disk| format!("disk {disk}"));
    disk.or_else(|| machine.image.clone())
}

fn summary(machine: &Machine) -> String {
    let boots = match (boots(machine), mode(machine)) {
        (Some(image), Some(mode)) => format!("boots {image}, {mode}"),
        _ => format!(
            "no image yet: `diskless machine set {} --image NAME`",
            machine.name
        ),
    };
    format!("{} ({}): {boots}", machine.name, machine.mac)
}

fn list(machines: &[Machine], now: Timestamp) -> String {
    if machines.is_empty() {
        return "no machines yet: switch one on with network boot, \
                or `diskless machine add NAME --mac MAC`"
            .to_owned();
    }
    let rows = machines.iter().map(|machine| {
        [
            machine.name.clone(),
            machine.mac.clone(),
            state(machine).to_owned(),
            or_dash(boots(machine)),
            or_dash(mode(machine)),
            or_dash(machine.address),
            or_dash(machine.last_seen.map(|at| ago(at, now))),
        ]
    });
    let header = ["NAME", "MAC", "STATE", "BOOTS", "MODE", "ADDRESS", "SEEN"];
    let mut text = table(header, &[], rows);
    let pending = machines
        .iter()
        .find(|machine| machine.state == MachineStateWord::Pending);
    if let Some(pending) = pending {
        text.push_str(&format!(
            "\n\nto take a pending machine in: \
             diskless machine set {} --name NAME --image IMAGE",
            pending.name
        ));
    }
    text
}

fn details(machine: &Machine) -> String {
    let facts = [
        ("name", machine.name.clone()),
        ("MAC", machine.mac.clone()),
        ("state", state(machine).to_owned()),
        ("boots", or_dash(boots(machine))),
        ("mode", or_dash(mode(machine))),
        ("address", or_dash(machine.address)),
        ("loader", or_dash(machine.loader.as_ref())),
        ("UUID", or_dash(machine.uuid)),
        ("serial", or_dash(machine.serial.as_ref())),
        ("boot", machine.generation.to_string()),
        ("added", time(machine.created)),
        ("seen", or_dash(machine.last_seen.map(time))),
        ("id", machine.id.to_string()),
    ];
    facts
        .iter()
        .map(|(fact, value)| format!("{fact:<8} {value}\n"))
        .collect()
}

fn timeline(machine: &str, boots: &[Boot]) -> String {
    if boots.is_empty() {
        return format!("nothing has been heard of {machine} yet");
    }
    let shown: Vec<String> = boots.iter().map(boot).collect();
    shown.join("\n")
}

fn boot(boot: &Boot) -> String {
    let mut text = match boot.generation {
        Some(generation) => format!("{}, boot {generation}\n", exact_time(boot.began)),
        None => format!("{}\n", exact_time(boot.began)),
    };
    for event in &boot.events {
        let since = format!("+{:.1} s", event.since_began_seconds);
        text.push_str(&format!("{since:>11}  {}", event.meaning));
        if !event.detail.is_empty() {
            text.push_str(&format!(" ({})", event.detail));
        }
        if event.count > 1 {
            text.push_str(&format!(", {} times", event.count));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::machines::Event;

    fn machine(name: &str, state: MachineStateWord) -> Machine {
        Machine {
            id: Uuid::nil(),
            name: name.into(),
            mac: "52:54:00:00:00:07".into(),
            uuid: None,
            serial: None,
            state,
            image: Some("debian@1".into()),
            mode: Some(Mode::Keep),
            disk: None,
            address: None,
            loader: None,
            generation: 2,
            running: false,
            created: Timestamp::UNIX_EPOCH,
            last_seen: Some(Timestamp::UNIX_EPOCH),
        }
    }

    #[test]
    fn a_list_says_how_to_take_in_what_is_pending() {
        let now = Timestamp::from_second(600).unwrap();
        let known = machine("pc07", MachineStateWord::Known);
        let text = list(
            &[known.clone(), machine("new-1", MachineStateWord::Pending)],
            now,
        );
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..2],
            [
                "NAME   MAC                STATE    BOOTS     MODE  ADDRESS  SEEN",
                "pc07   52:54:00:00:00:07  known    debian@1  keep  -        10 min ago",
            ]
        );
        assert!(text.contains("diskless machine set new-1 --name"), "{text}");
        assert!(!list(&[known], now).contains("pending"));
    }

    #[test]
    fn kept_writes_are_not_given_up_without_a_word() {
        let overlay = |machine: &str, image: &str, mode| Overlay {
            uuid: Uuid::nil(),
            machine: machine.into(),
            image: image.into(),
            mode,
            former: false,
            quota_bytes: None,
            points: 0,
            stored_bytes: 0,
            created: Timestamp::UNIX_EPOCH,
        };
        let reset = Machine {
            mode: Some(Mode::Reset),
            image: Some("debian".into()),
            ..machine("pc07", MachineStateWord::Known)
        };
        let kept = overlay("pc07", "debian@1", Mode::Keep);
        assert!(is_about_to_lose_writes(&reset, std::slice::from_ref(&kept)));
        let keep = machine("pc07", MachineStateWord::Known);
        assert!(!is_about_to_lose_writes(&keep, &[kept]));
        for other in [
            overlay("pc07", "debian@1", Mode::Reset),
            overlay("pc07", "win11@1", Mode::Keep),
            overlay("pc08", "debian@1", Mode::Keep),
        ] {
            assert!(!is_about_to_lose_writes(&reset, &[other]));
        }
    }

    #[test]
    fn a_timeline_shows_the_time_since_the_first_packet() {
        let event = |seconds, meaning: &str, detail: &str, count| Event {
            at: Timestamp::UNIX_EPOCH,
            since_began_seconds: seconds,
            stage: String::new(),
            meaning: meaning.into(),
            detail: detail.into(),
            count,
        };
        let boots = [Boot {
            generation: Some(2),
            began: Timestamp::UNIX_EPOCH,
            events: vec![
                event(0.0, "its firmware asked for an address", "BIOS PXE", 1),
                event(3.12, "fetched a file", "", 2),
            ],
        }];
        let text = timeline("pc07", &boots);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].ends_with(", boot 2"));
        assert_eq!(
            lines[1],
            "     +0.0 s  its firmware asked for an address (BIOS PXE)"
        );
        assert_eq!(lines[2], "     +3.1 s  fetched a file, 2 times");
    }
}
