//! Every firmware's dialogue on the wire, from DISCOVER to the last byte of
//! what it was told to fetch, with the real program: alone, and beside
//! somebody else's DHCP server.
//!
//! The clients are made of recorded packets (`packets`) and keep the rules of
//! each firmware (`roms`): what EDK2 drops, they drop. They cost seconds, where
//! a PC that boots costs a minute, and there are clients of machines that no
//! emulator has.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use dhcp::wire::Message;
use lab::{Dhcp, Host, Lan, Settings};

use crate::stage::{NEIGHBOUR, SERVER, Turn, with_server, with_server_and_neighbour};
use fetch::Answer;
use nic::Nic;
use roms::{Journey, Rules};

mod fetch;
mod nic;
mod packets;
mod roms;

/// A client and what it is to come to.
struct Client {
    name: &'static str,
    rules: Rules,
    discover: Message,
    mac: [u8; 6],
    end: End,
}

/// Where a client's way ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// An address; the boot server is silent to it.
    Address,
    /// A loader that begins so and is no script.
    Loader(&'static [u8]),
    /// A boot script of iPXE's.
    Script,
    /// A name of its own, looked for by TFTP: so many bytes, or refused at once.
    OwnName(Option<usize>, &'static str),
}

fn clients() -> Result<Vec<Client>> {
    let efi = End::Loader(b"MZ");
    // What BIOS jumps to.
    let bios = End::Loader(b"");
    let all = [
        ("Intel boot agent", Rules::Rom, packets::intel_rom(), bios),
        (
            "EDK2 PXE, arch 7",
            Rules::Edk2Pxe,
            packets::edk2_pxe(7)?,
            efi,
        ),
        (
            "EDK2 PXE, arch 9",
            Rules::Edk2Pxe,
            packets::edk2_pxe(9)?,
            efi,
        ),
        (
            "EDK2 HTTP Boot",
            Rules::Edk2Http,
            packets::edk2_http()?,
            efi,
        ),
        (
            "iPXE, BIOS",
            Rules::Ipxe,
            packets::ipxe_bios()?,
            End::Script,
        ),
        ("iPXE, UEFI", Rules::Ipxe, packets::ipxe_efi()?, End::Script),
        ("gPXE", Rules::Ipxe, packets::gpxe()?, bios),
        (
            "Raspberry Pi 3",
            Rules::RaspberryPi,
            packets::raspberry_pi(),
            End::OwnName(Some(52_480), "bootcode.bin"),
        ),
        (
            "Linux ipconfig",
            Rules::System,
            packets::ipconfig(),
            End::Address,
        ),
        (
            "busybox udhcpc",
            Rules::System,
            packets::udhcpc(),
            End::Address,
        ),
        (
            "U-Boot",
            Rules::UBoot,
            packets::u_boot(),
            End::OwnName(None, "pxelinux.cfg/default"),
        ),
    ];
    let client = |(last, (name, rules, discover, end)): (u8, (_, _, Message, _))| {
        let mac = match rules {
            Rules::RaspberryPi => [0xb8, 0x27, 0xeb, 0xc1, 0x1e, last],
            _ => [0x52, 0x54, 0x00, 0xc1, 0x1e, last],
        };
        Client {
            name,
            rules,
            discover: of(&discover, mac, u32::from(last)),
            mac,
            end,
        }
    };
    Ok((1..).zip(all).map(client).collect())
}

/// A recorded packet as another machine sends it.
fn of(recorded: &Message, mac: [u8; 6], nth: u32) -> Message {
    let mut discover = recorded.clone();
    discover.xid = 0xc11e_0000 + nth;
    discover.chaddr[..6].copy_from_slice(&mac);
    if discover.options.get(dhcp::wire::code::CLIENT_ID).is_some() {
        let id = [&[1][..], &mac].concat();
        discover.options.set(dhcp::wire::code::CLIENT_ID, id);
    }
    discover
}

#[test]
fn every_client_walks_its_dialogue_with_the_server_alone() {
    let loaders = loaders().unwrap();
    let settings = settings(Dhcp::Full, &loaders);
    with_server(Turn::Always, &settings, |lan, _server| {
        all_walk(lan, SERVER)
    });
}

#[test]
fn every_client_walks_its_dialogue_beside_another_dhcp_server() {
    let loaders = loaders().unwrap();
    let settings = settings(Dhcp::Proxy, &loaders);
    with_server_and_neighbour(Turn::Always, &settings, |lan, _server, _neighbour| {
        all_walk(lan, NEIGHBOUR)
    });
}

/// A directory with what no package brings: a Raspberry Pi's first file.
fn loaders() -> Result<tempfile::TempDir> {
    let directory = tempfile::tempdir()?;
    std::fs::write(directory.path().join("bootcode.bin"), [0x52; 52_480])?;
    Ok(directory)
}

fn settings(dhcp: Dhcp, loaders: &tempfile::TempDir) -> Settings {
    Settings {
        loaders: Some(loaders.path().to_owned()),
        ..Settings::new(dhcp)
    }
}

#[test]
fn a_machine_has_one_address_from_its_rom_to_its_system() {
    with_server(Turn::Always, &Settings::new(Dhcp::Full), |lan, _server| {
        let pc = lan.add_host("pc", Ipv4Addr::new(10, 77, 0, 60))?;
        let mac = [0x52, 0x54, 0x00, 0xc1, 0x1e, 0x77];
        let stages = [
            (Rules::Edk2Pxe, packets::edk2_pxe(7)?),
            (Rules::Ipxe, packets::ipxe_efi()?),
            (Rules::System, packets::ipconfig()),
            (Rules::System, packets::udhcpc()),
        ];
        let mut addresses = Vec::new();
        for (nth, (rules, recorded)) in (1..).zip(stages) {
            let journey = walked(&pc, rules, &of(&recorded, mac, 0x7700 + nth), mac, |_| {
                Ok(())
            })?;
            addresses.push(journey.address);
        }
        let first = addresses[0];
        ensure!(
            addresses.iter().all(|address| *address == first),
            "{addresses:?}"
        );
        Ok(())
    });
}

/// Every client in turn; prints the matrix, and fails with every cell that is
/// not as it should be.
fn all_walk(lan: &Lan<'_>, lender: Ipv4Addr) -> Result<()> {
    let pc = lan.add_host("pc", Ipv4Addr::new(10, 77, 0, 60))?;
    let (mut matrix, mut failures) = (String::new(), String::new());
    for client in clients()? {
        let begun = Instant::now();
        let cell = match client.walk(&pc, lender) {
            Ok(said) => said,
            Err(error) => {
                let _ = writeln!(failures, "{}: {error:#}", client.name);
                format!("FAILED: {error:#}")
            }
        };
        let took = begun.elapsed().as_secs_f64();
        let _ = writeln!(matrix, "{:<18} {took:>5.1} s  {cell}", client.name);
    }
    eprintln!("{matrix}");
    if !failures.is_empty() {
        bail!("{failures}");
    }
    Ok(())
}

impl Client {
    /// The whole way; what came of it, in words.
    fn walk(&self, pc: &Host<'_>, lender: Ipv4Addr) -> Result<String> {
        let mut end = String::new();
        let journey = walked(pc, self.rules, &self.discover, self.mac, |journey| {
            end = self.arrive(journey)?;
            Ok(())
        })?;
        ensure!(
            journey.lender == lender,
            "its address is from {}",
            journey.lender
        );
        let wants_nothing = matches!(self.rules, Rules::System | Rules::UBoot);
        if lender != SERVER && wants_nothing {
            let is_silent = !journey.offered_by.contains(&SERVER);
            ensure!(is_silent, "we answered who does not boot from us");
        }
        let way = match journey.asked_twice {
            true => ", at 4011",
            false => "",
        };
        Ok(format!("{}{way}, {end}", journey.address))
    }

    /// Fetches what it was told of.
    fn arrive(&self, journey: &Journey) -> Result<String> {
        let named = || journey.file.as_ref().map_or("", |(_, name)| name.as_str());
        match self.end {
            End::Address => {
                ensure!(journey.file.is_none(), "it was told to boot {}", named());
                Ok("no loader".to_owned())
            }
            End::OwnName(expected, name) => {
                let said = journey.file.as_ref().map(|(server, _)| *server);
                let server = said.unwrap_or(SERVER);
                ensure!(server == SERVER, "it would fetch from {server}");
                match (fetch::tftp(server, name, fetch::PLAIN)?, expected) {
                    (Answer::File(bytes), Some(expected)) if bytes.len() == expected => {
                        Ok(format!("{name}: {expected} bytes"))
                    }
                    (Answer::Refused(1), None) => Ok(format!("{name} is not there")),
                    (answer, _) => bail!("{name}: {answer:?}"),
                }
            }
            End::Loader(magic) => {
                let bytes = roms::fetched(self.rules, journey)?;
                let is_script = bytes.starts_with(b"#!");
                ensure!(
                    bytes.starts_with(magic) && !is_script,
                    "{} is no loader",
                    named()
                );
                ensure!(
                    bytes.len() > 50_000,
                    "{} has {} bytes",
                    named(),
                    bytes.len()
                );
                Ok(format!("{}: {} bytes", named(), bytes.len()))
            }
            End::Script => {
                let bytes = roms::fetched(self.rules, journey)?;
                let text = String::from_utf8_lossy(&bytes);
                ensure!(
                    text.starts_with("#!ipxe"),
                    "{} is no script: {text}",
                    named()
                );
                Ok(format!("{}: a script", named()))
            }
        }
    }
}

/// One client's way on a host that becomes its machine.
fn walked(
    pc: &Host<'_>,
    rules: Rules,
    discover: &Message,
    mac: [u8; 6],
    then: impl FnOnce(&Journey) -> Result<()> + Send,
) -> Result<Journey> {
    nic::prepare(pc, mac)?;
    pc.within(|| {
        let nic = Nic::open(mac)?;
        let journey = roms::walk(rules, &nic, pc, discover)?;
        then(&journey).context("after it had its address")?;
        Ok(journey)
    })
}
