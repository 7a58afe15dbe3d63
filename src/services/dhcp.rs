//! The DHCP door: what a client boots, what is promised to it, what was seen.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use dhcp::{Boot, Client, Firmware, Mac, Observation, Policy, Promise, Style};

use super::Site;
use super::chains::SECURE;
use super::ladders::fetches_a_loader;
use crate::boot::firmware::{self, Loader};
use crate::boot::ladder::Sign;
use crate::config::MachineOptions;
use crate::inventory::{Machine, MachineState};
use crate::timeline::Stage;

/// Other DHCP servers remembered for `status`.
const FOREIGN_SERVERS_MAX: usize = 16;
/// Machines the operator is told of in one run; strangers can invent more.
const REPORTED_MAX: usize = 1024;

/// Answers [`dhcp::Policy`] for this site.
pub(crate) struct Addressing {
    site: Arc<Site>,
    sessions: OnceLock<iscsi::Sessions>,
    foreign_servers: Mutex<BTreeSet<Ipv4Addr>>,
    /// Whom the operator has been told of.
    reported: Mutex<BTreeSet<Mac>>,
    /// Options of single machines.
    options: Vec<MachineOptions>,
}

impl Addressing {
    /// A policy that knows no sessions yet.
    pub(crate) fn new(site: Arc<Site>) -> Addressing {
        Addressing {
            site,
            sessions: OnceLock::new(),
            foreign_servers: Mutex::default(),
            reported: Mutex::default(),
            options: Vec::new(),
        }
    }

    /// Options of single machines go with what is promised to them.
    pub(crate) fn with_options(mut self, options: Vec<MachineOptions>) -> Addressing {
        self.options = options;
        self
    }

    /// The options of a machine, by its MAC or its name.
    fn options_of(&self, mac: Mac, name: Option<&str>) -> Vec<dhcp::option::Setting> {
        if self.options.is_empty() {
            return Vec::new();
        }
        let mac = mac.to_string();
        let is_meant = |given: &&MachineOptions| {
            given.machine == mac || name.is_some_and(|name| given.machine == name)
        };
        let found = self.options.iter().filter(is_meant);
        found.flat_map(|given| given.options.clone()).collect()
    }

    /// From now on an address with one of these sessions is in use.
    pub(crate) fn watch(&self, sessions: iscsi::Sessions) {
        let _ = self.sessions.set(sessions);
    }

    /// The other DHCP servers seen on this LAN.
    pub(crate) fn foreign_servers(&self) -> Vec<Ipv4Addr> {
        let seen = self
            .foreign_servers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        seen.iter().copied().collect()
    }

    /// Tells the operator, once in a run, that a machine boots from the
    /// network: in `observe` mode that is all one sees of it.
    fn report(&self, client: &Client, machine: &Machine) {
        let mut reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.len() < REPORTED_MAX && reported.insert(client.mac) {
            tracing::info!(
                machine = %machine.name,
                mac = %client.mac,
                firmware = %client.firmware,
                "boots from the network"
            );
        }
    }

    fn asked(&self, client: &Client) {
        if client.firmware == Firmware::System {
            // A machine of ours whose operating system asks is worth an entry;
            // everybody else's laptop is not.
            match self.site.inventory.machine_by_mac(client.mac) {
                Ok(Some(_)) => {}
                _ => return,
            }
        } else {
            match self.site.inventory.enrol(client.mac, client.uuid, None) {
                Ok(machine) => self.report(client, &machine),
                Err(error) => tracing::debug!(mac = %client.mac, %error, "not enrolled"),
            }
        }
        let words = match client.firmware {
            // The stage says it.
            Firmware::System => String::new(),
            firmware => firmware.to_string(),
        };
        self.site
            .timeline
            .record(client.mac, Stage::asked(&client.firmware), words);
    }
}

impl Policy for Addressing {
    fn boot(&self, client: &Client, server: Ipv4Addr) -> Option<Boot> {
        let site = &self.site;
        let doors = site.doors(server);
        let machine = site
            .inventory
            .machine_by_mac(client.mac)
            .unwrap_or_else(|error| {
                tracing::error!(mac = %client.mac, %error, "looking for a machine");
                None
            });
        let chosen = machine.as_ref().and_then(|machine| machine.loader.clone());
        let signed = match (&machine, chosen.as_deref(), client.firmware) {
            (Some(machine), Some(SECURE), Firmware::UefiPxe(_) | Firmware::UefiHttp(_)) => {
                match site.signed_chain(machine, client.firmware) {
                    Ok(shim) => Some(shim),
                    Err(words) => {
                        site.timeline.record(client.mac, Stage::Problem, words);
                        return None;
                    }
                }
            }
            _ => None,
        };
        let chosen = signed
            // A BIOS knows no Secure Boot.
            .or(chosen.filter(|chosen| chosen != SECURE))
            .or_else(|| site.ladder_loader(client));
        let loader = firmware::loader(client.firmware, chosen.as_deref(), |file| {
            site.loaders.is_installed(file)
        });
        match loader {
            Some(Loader::Tftp(file)) => Some(Boot::Tftp {
                server: doors.address,
                file,
            }),
            Some(Loader::Http(file)) => {
                Some(Boot::Url(format!("{}/loader/{file}", doors.firmware)))
            }
            Some(Loader::Script) => Some(Boot::Url(doors.script_url(client.mac))),
            None => {
                if client.firmware != Firmware::System {
                    let words = match firmware::candidates(client.firmware).first() {
                        Some(_) if client.firmware == Firmware::RaspberryPi => {
                            "no files for a Raspberry Pi: put those of its boot partition into \
                             loaders.directory"
                                .to_owned()
                        }
                        Some(file) => format!(
                            "no loader for {}: {file} is not installed (Debian, Ubuntu: package ipxe)",
                            client.firmware
                        ),
                        None => format!("{} is not a firmware we can boot", client.firmware),
                    };
                    site.timeline.record(client.mac, Stage::Problem, words);
                }
                None
            }
        }
    }

    fn style(&self, client: &Client, _server: Ipv4Addr) -> Style {
        self.site.style(client)
    }

    fn promise(&self, mac: Mac) -> Promise {
        match self.site.inventory.machine_by_mac(mac) {
            Ok(Some(machine)) => Promise {
                address: machine.address,
                host_name: Some(machine.name.to_string()),
                is_known: machine.state == MachineState::Known,
                options: self.options_of(mac, Some(&machine.name)),
                ..Promise::default()
            },
            Ok(None) => Promise {
                options: self.options_of(mac, None),
                ..Promise::default()
            },
            Err(error) => {
                tracing::error!(%mac, %error, "looking for what is promised to a machine");
                Promise::default()
            }
        }
    }

    fn promised_to(&self, address: Ipv4Addr) -> Option<Mac> {
        match self.site.inventory.machine_by_address(address) {
            Ok(owner) => owner.map(|machine| machine.mac),
            Err(error) => {
                tracing::error!(%address, %error, "looking for whom an address is promised to");
                None
            }
        }
    }

    fn is_in_use(&self, address: Ipv4Addr) -> bool {
        self.sessions.get().is_some_and(|sessions| {
            sessions
                .list()
                .iter()
                .any(|session| session.peer.ip().to_canonical() == address)
        })
    }

    fn observe(&self, observation: &Observation) {
        let timeline = &self.site.timeline;
        match observation {
            Observation::Asked(client) => {
                self.asked(client);
                match client.firmware {
                    Firmware::Ipxe(_) => self.site.heard(client.mac, Sign::Alive),
                    _ => self.site.firmware_asked(client),
                }
            }
            Observation::BootServerAsked(client) => {
                self.site.heard(client.mac, Sign::BootServer);
                let words = format!("{}, now on port 4011", client.firmware);
                timeline.record(client.mac, Stage::asked(&client.firmware), words);
            }
            Observation::Offered {
                client,
                address,
                boot,
            } => {
                let mut words = match address {
                    Some(address) => address.to_string(),
                    None => "boot information (another server gives the address)".to_owned(),
                };
                match boot {
                    Some(Boot::Tftp { file, .. }) => words.push_str(&format!(", {file}")),
                    Some(Boot::Url(url)) => words.push_str(&format!(", {url}")),
                    None => {}
                }
                timeline.record(client.mac, Stage::Offered, words);
                if boot.is_some() && fetches_a_loader(client.firmware) {
                    self.site.heard(client.mac, Sign::Offered);
                }
            }
            Observation::Bound { client, address } => {
                self.site.addresses.learn(*address, client.mac);
                timeline.record(client.mac, Stage::Bound, address.to_string());
            }
            Observation::ForeignServer { server } => {
                let mut seen = self
                    .foreign_servers
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                if seen.len() < FOREIGN_SERVERS_MAX && seen.insert(*server) {
                    tracing::info!(%server, "another DHCP server answers on this LAN");
                }
            }
            Observation::UuidChanged { mac } => {
                timeline.record(
                    *mac,
                    Stage::Problem,
                    "its UUID has changed under the same MAC (a dock or adapter used by several PCs?)",
                );
            }
            Observation::Declined { mac, address } => {
                tracing::warn!(%mac, %address, "somebody else has this address already");
                timeline.record(
                    *mac,
                    Stage::Problem,
                    format!("{address}: somebody else has it already"),
                );
            }
            Observation::PoolExhausted { mac } => {
                tracing::warn!(%mac, "no address left in dhcp.pool: make the pool larger or the lease shorter");
                timeline.record(*mac, Stage::Problem, "no address left in dhcp.pool");
            }
            Observation::Conflict {
                address,
                holder,
                offered_to,
            } => {
                let who = holder.map_or_else(String::new, |mac| format!(" ({mac})"));
                tracing::warn!(%address, ?holder, "somebody answers on an address that is lent to nobody");
                if let Some(mac) = offered_to.or(*holder) {
                    let words = format!(
                        "{address} is used by somebody it was not lent to{who}: it rests for a while"
                    );
                    timeline.record(mac, Stage::Problem, words);
                }
            }
            Observation::PortLimit { mac, relay } => {
                tracing::warn!(%mac, %relay, "no address: unknown machines hold as many here as they may");
                timeline.record(
                    *mac,
                    Stage::Problem,
                    "no address: unknown machines hold as many at its switch port, or of dhcp.pool, as they may (add this machine, or enlarge the pool)",
                );
            }
            Observation::Malformed { reason } => tracing::debug!(reason, "malformed DHCP packet"),
        }
    }
}
