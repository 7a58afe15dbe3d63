//! What a signed GRUB asks for: its configuration, and the kernel and the
//! initrds out of the disk of the machine that asks.
//!
//! A machine is known here by its address alone: nobody gets another's kernel
//! or secret by naming it. The disk is looked at anew at each request, so a
//! kernel that was installed inside is the one that boots next.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use contents::{Family, ReadableFile};

use super::{Asker, Document, Site, last_part};
use crate::boot::grub::{self, Door, OWN};
use crate::boot::script::Waiting;
use crate::boot::{BootPlan, plan};
use crate::inventory::{self, Machine, OverlayMode};
use crate::timeline::Stage;

/// The name of GRUB's configuration; GRUBs ask for it in several directories.
const CONFIGURATION: &str = "grub.cfg";

/// What a name asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Configuration,
    Boot(Door),
    Kernel,
    Initrd(usize),
}

impl Asked {
    fn parse(name: &str) -> Option<Asked> {
        let parts: Vec<&str> = name.split('/').collect();
        match parts[..] {
            [OWN, file] => {
                let door = Door::ALL
                    .into_iter()
                    .find(|door| file.strip_suffix(".cfg") == Some(door.word()))?;
                Some(Asked::Boot(door))
            }
            [OWN, "kernel", _] => Some(Asked::Kernel),
            [OWN, initrd, _] => {
                let number = initrd.strip_prefix("initrd")?.parse().ok()?;
                Some(Asked::Initrd(number))
            }
            _ => (last_part(name) == Some(CONFIGURATION)).then_some(Asked::Configuration),
        }
    }
}

pub(super) fn stage_of(name: &str) -> Option<Stage> {
    Some(match Asked::parse(name)? {
        Asked::Boot(_) => Stage::ScriptSent,
        Asked::Configuration | Asked::Kernel | Asked::Initrd(_) => Stage::FileSent,
    })
}

pub(super) fn find(site: &Site, asker: &Asker, name: &str) -> Option<Document> {
    match Asked::parse(name)? {
        Asked::Configuration => Some(configuration(site, asker.server).into()),
        Asked::Boot(door) => Some(boot(site, asker, door).into()),
        Asked::Kernel => file(site, asker, None),
        Asked::Initrd(number) => file(site, asker, Some(number)),
    }
}

fn configuration(site: &Site, server: Ipv4Addr) -> String {
    // GRUB's device for HTTP has no port.
    let doors = match site.ports.http {
        80 => &Door::ALL[..],
        _ => &[Door::Tftp],
    };
    grub::configuration(server, doors, site.retry)
}

fn boot(site: &Site, asker: &Asker, door: Door) -> String {
    let Some(mac) = asker.mac else {
        return grub::stranger(asker.address);
    };
    let machine = match site.inventory.enrol(mac, None, None) {
        Ok(machine) => machine,
        Err(error) => {
            tracing::warn!(%mac, %error, "making a configuration for GRUB");
            let mac = mac.to_string();
            return grub::waiting(Waiting::Trouble, &mac, &mac, &error.to_string());
        }
    };
    let wait = |reason, words: &str| {
        let mac = mac.to_string();
        grub::waiting(reason, &machine.name, &mac, words)
    };
    match plan(&machine) {
        BootPlan::Unknown => wait(Waiting::Unknown, ""),
        BootPlan::Unassigned => wait(Waiting::Unassigned, ""),
        plan => own_kernel(site, asker.server, &machine, &plan, door).unwrap_or_else(|words| {
            site.timeline.record(mac, Stage::Problem, words.clone());
            wait(Waiting::Trouble, &words)
        }),
    }
}

/// The script that boots the kernel in a machine's disk; prepares its next boot
/// generation. An error is a sentence for its screen.
fn own_kernel(
    site: &Site,
    server: Ipv4Addr,
    machine: &Machine,
    plan: &BootPlan,
    door: Door,
) -> Result<String, String> {
    let disk = disk_of(site, plan).map_err(|error| error.to_string())?;
    let inside = site.linux_of(machine)?;
    if !matches!(
        inside.distribution.family(),
        Family::Debian | Family::Ubuntu
    ) {
        return Err(format!(
            "{} in its disk: only the initramfs of Debian and Ubuntu finds the disk without iPXE; \
             switch Secure Boot off, or use a signed iPXE",
            inside.distribution.name
        ));
    }
    let initrds: Vec<String> = inside
        .initrds
        .iter()
        .map(|file| file.path().to_owned())
        .collect();
    let prepared = site
        .inventory
        .prepare_generation(machine.id)
        .map_err(|error| error.to_string())?;
    let boot = grub::LinuxBoot {
        machine: &machine.name,
        disk: &format!("{disk}: {}", inside.distribution.name),
        kernel: inside.kernel.path(),
        initrds: &initrds,
        arguments: &inside.arguments,
        mac: machine.mac,
        portal: (server, site.ports.iscsi),
        target: &site.target_name(machine),
        initiator: &site.initiator_name(machine),
        chap_name: &inventory::chap_name(machine, prepared.number),
        secret: &prepared.secret,
    };
    grub::boot(door, server, &boot)
}

/// What a machine boots, for its screen.
fn disk_of(site: &Site, plan: &BootPlan) -> inventory::Result<String> {
    Ok(match plan {
        BootPlan::Unknown | BootPlan::Unassigned => String::new(),
        BootPlan::Clone { image, mode } => {
            site.inventory.image(image)?;
            let mode = match mode {
                OverlayMode::Reset => "reset",
                OverlayMode::Keep => "keep",
            };
            format!("{image}, {mode}")
        }
        BootPlan::Direct(disk) => format!("disk {}", site.inventory.own_disk_of(*disk)?.name),
    })
}

/// The kernel or an initrd of the machine that asks.
fn file(site: &Site, asker: &Asker, initrd: Option<usize>) -> Option<Document> {
    let machine = site.inventory.machine_by_mac(asker.mac?).ok()??;
    let inside = match site.linux_of(&machine) {
        Ok(inside) => inside,
        Err(words) => {
            site.timeline.record(machine.mac, Stage::Problem, words);
            return None;
        }
    };
    let file = match initrd {
        None => inside.kernel,
        Some(number) => inside.initrds.into_iter().nth(number)?,
    };
    Some(Document::Readable(Arc::new(Inner(file))))
}

/// A file inside a disk, as the doors read it.
struct Inner(ReadableFile);

impl tftp::Readable for Inner {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read_at(&self, offset_bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
        let read = self.0.read_at(offset_bytes, buffer);
        match read.map_err(io::Error::other)? {
            bytes if bytes == buffer.len() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

#[cfg(test)]
mod tests;
