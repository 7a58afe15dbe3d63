//! What is so at this moment, for the API.

use std::sync::{Arc, Weak};
use std::time::Instant;

use uuid::Uuid;

use crate::api::targets::Targets;
use crate::api::{Door, Live, LiveSession, LiveStatus};
use crate::inventory::{
    self, Inventory, Machine, Name, NewUnit, PlainTarget, Proof, Unit, parse_chap_name,
};
use crate::services::dhcp::Addressing;
use crate::services::iscsi::MachineDisks;
use crate::services::iscsi::plain::{KeptTargets, UnitState};

/// Answers [`Live`] from the services.
pub(super) struct LiveFacts {
    pub(super) started: Instant,
    pub(super) dhcp_mode: &'static str,
    pub(super) interface: String,
    pub(super) doors: Vec<Door>,
    pub(super) inventory: Arc<Inventory>,
    pub(super) sessions: iscsi::Sessions,
    pub(super) disks: Arc<MachineDisks>,
    pub(super) kept: LiveTargets,
    pub(super) policy: Arc<Addressing>,
    pub(super) counted: Counted,
}

/// The servers that count what they drop. They end while this may still be
/// looked at, hence no more than a hint of them.
pub(super) struct Counted {
    pub(super) dhcp: Weak<dhcp::Server>,
    pub(super) tftp: Weak<tftp::Server>,
    pub(super) iscsi: Weak<iscsi::Server>,
}

impl Counted {
    fn malformed(&self) -> Vec<(&'static str, u64)> {
        let dhcp = self
            .dhcp
            .upgrade()
            .map(|server| server.counters().malformed);
        let tftp = self
            .tftp
            .upgrade()
            .map(|server| server.counters().malformed);
        let iscsi = self
            .iscsi
            .upgrade()
            .map(|server| server.counters().malformed_pdus);
        [("dhcp", dhcp), ("tftp", tftp), ("iscsi", iscsi)]
            .into_iter()
            .filter_map(|(service, count)| Some((service, count?)))
            .collect()
    }
}

impl Live for LiveFacts {
    fn status(&self) -> LiveStatus {
        LiveStatus {
            uptime: self.started.elapsed(),
            interface: self.interface.clone(),
            dhcp_mode: self.dhcp_mode.to_owned(),
            doors: self.doors.clone(),
            foreign_dhcp_servers: self.policy.foreign_servers(),
            malformed: self.counted.malformed(),
        }
    }

    fn sessions(&self) -> Vec<LiveSession> {
        self.sessions
            .list()
            .into_iter()
            .map(|session| self.shown(session))
            .collect()
    }

    fn targets(&self) -> &dyn Targets {
        &self.kept
    }

    fn machine_in_use(&self, machine: Uuid) -> bool {
        self.disks.is_in_use(machine)
    }

    fn machine_disk(&self, machine: &Machine) -> Result<disk::SharedDisk, String> {
        self.disks
            .view(machine)
            .map_err(|error| format!("{error:#}"))
    }

    fn release_own_disk(&self, disk: Uuid) -> Result<(), String> {
        self.disks.release_own_disk(disk)
    }

    fn is_nobody_waiting(&self) -> bool {
        self.disks.is_nobody_waiting()
    }

    fn with_overlay(
        &self,
        overlay: &inventory::Overlay,
        work: &mut dyn FnMut(Option<&disk::Overlay>),
    ) {
        self.disks.with_overlay(overlay, work);
    }

    fn while_closed(&self, machine: Uuid, work: &mut dyn FnMut()) {
        match self.inventory.machine(machine) {
            Ok(machine) => self.disks.while_closed(&machine, work),
            // One nobody knows has no disk.
            Err(_) => work(),
        }
    }
}

impl LiveFacts {
    fn shown(&self, session: iscsi::SessionInfo) -> LiveSession {
        let named = session.chap_name.as_deref().and_then(parse_chap_name);
        let machine: Option<Machine> =
            named.and_then(|(name, _)| self.inventory.machine_by_name(name).ok());
        let plain = self.kept.0.name_of(&session.target);
        let (machine, named) = match plain {
            Some(_) => (None, None),
            None => (machine, named),
        };
        LiveSession {
            machine: machine.map(|machine| machine.id),
            generation: named.map(|(_, generation)| generation),
            plain,
            initiator: session.initiator.clone(),
            target: session.target.clone(),
            peer: session.peer.to_string(),
            since: jiff::Timestamp::try_from(session.since).unwrap_or_default(),
            commands: session.commands,
            read_bytes: session.bytes_read,
            written_bytes: session.bytes_written,
        }
    }
}

/// Answers [`Targets`] from the plain targets that are kept.
pub(crate) struct LiveTargets(pub(crate) Arc<KeptTargets>);

impl Targets for LiveTargets {
    fn add(
        &self,
        name: Name,
        iqn: Option<&str>,
        proof: Option<Proof>,
    ) -> inventory::Result<PlainTarget> {
        self.0.add_target(name, iqn, proof)
    }

    fn remove(&self, name: &str, force: bool) -> inventory::Result<()> {
        self.0.remove_target(name, force)
    }

    fn add_unit(&self, target: &str, unit: NewUnit) -> inventory::Result<Unit> {
        self.0.add_unit(target, unit)
    }

    fn remove_unit(&self, target: &str, lun: u16, force: bool) -> inventory::Result<()> {
        self.0.remove_unit(target, lun, force)
    }

    fn resize_unit(&self, target: &str, lun: u16, size_bytes: u64) -> inventory::Result<()> {
        self.0.resize_unit(target, lun, size_bytes)
    }

    fn rescan_unit(&self, target: &str, lun: u16) -> inventory::Result<()> {
        self.0.rescan_unit(target, lun)
    }

    fn unit_size(&self, target: Uuid, lun: u16) -> Result<u64, String> {
        match self.0.unit_state(target, lun) {
            UnitState::Served { size_bytes } => Ok(size_bytes),
            UnitState::Trouble(why) => Err(why),
        }
    }

    fn sessions(&self, target: &PlainTarget) -> usize {
        self.0.sessions(target)
    }
}
