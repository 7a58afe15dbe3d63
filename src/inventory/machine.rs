//! Machines: who they are, what is assigned to them, and how one is found.
//!
//! A machine is known by its MAC. UUIDs and serial numbers come from firmware
//! tables that whole batches of mainboards share, so they only serve where no
//! MAC is at hand, and only when exactly one machine has them.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dhcp::Mac;
use disk::overlay::OverlayMode;
use jiff::Timestamp;
use uuid::Uuid;

use super::disk::require_writer;
use super::store::Facts;
use super::{Error, ImageRef, Inventory, Name, Result, Survives, held, now};

/// A computer we boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Ours; never changes.
    pub(crate) id: Uuid,
    /// Unique.
    pub(crate) name: Name,
    /// Unique.
    pub(crate) mac: Mac,
    /// SMBIOS UUID as the table and option 97 have it: its first three fields
    /// in the other byte order than its text; may be shared.
    pub(crate) uuid: Option<[u8; 16]>,
    /// SMBIOS serial number; may be shared.
    pub(crate) serial: Option<String>,
    /// Whether an operator has taken it in.
    pub(crate) state: MachineState,
    /// What it boots.
    pub(crate) assignment: Option<Assignment>,
    /// Fixed address; unique.
    pub(crate) address: Option<Ipv4Addr>,
    /// Loader file served to it instead of the one its firmware would get.
    pub(crate) loader: Option<String>,
    /// When it was added or enrolled.
    pub(crate) created: Timestamp,
    /// When it was last heard of.
    pub(crate) last_seen: Option<Timestamp>,
}

/// Whether an operator has taken a machine in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MachineState {
    /// It asked by itself and waits to be taken in.
    Pending,
    /// An operator added it, or gave it a name or an image.
    Known,
}

/// What a machine boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Assignment {
    /// A golden image, through an overlay of the machine's own.
    Image {
        /// Which.
        image: ImageRef,
        /// What becomes of the machine's writes.
        mode: OverlayMode,
    },
    /// An own disk, written in place.
    Disk(Uuid),
}

impl Assignment {
    /// The golden image, where it is one.
    pub(crate) fn image(&self) -> Option<&ImageRef> {
        match self {
            Assignment::Image { image, .. } => Some(image),
            Assignment::Disk(_) => None,
        }
    }
}

impl MachineState {
    /// One word, as saved and as the API spells it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            MachineState::Pending => "pending",
            MachineState::Known => "known",
        }
    }

    /// The state a word stands for.
    pub(crate) fn of_word(word: &str) -> Option<MachineState> {
        [MachineState::Pending, MachineState::Known]
            .into_iter()
            .find(|state| state.word() == word)
    }
}

/// A mode's one word, as saved and as the API spells it.
pub(crate) fn mode_word(mode: OverlayMode) -> &'static str {
    match mode {
        OverlayMode::Reset => "reset",
        OverlayMode::Keep => "keep",
    }
}

/// The mode a word stands for.
pub(crate) fn mode_of_word(word: &str) -> Option<OverlayMode> {
    [OverlayMode::Reset, OverlayMode::Keep]
        .into_iter()
        .find(|mode| mode_word(*mode) == word)
}

/// How a client says who it is; what it did not say is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Its MAC: decides alone when it is there.
    pub(crate) mac: Option<Mac>,
    /// Its SMBIOS UUID.
    pub(crate) uuid: Option<[u8; 16]>,
    /// Its SMBIOS serial number.
    pub(crate) serial: Option<String>,
}

/// A machine an operator adds.
#[derive(Clone, Debug)]
pub(crate) struct NewMachine {
    /// See [`Machine`].
    pub(crate) name: Name,
    /// See [`Machine`].
    pub(crate) mac: Mac,
    /// See [`Machine`].
    pub(crate) uuid: Option<[u8; 16]>,
    /// See [`Machine`].
    pub(crate) serial: Option<String>,
    /// See [`Machine`].
    pub(crate) assignment: Option<Assignment>,
    /// See [`Machine`].
    pub(crate) address: Option<Ipv4Addr>,
    /// See [`Machine`].
    pub(crate) loader: Option<String>,
}

/// What an operator changes about a machine. The outer `None` leaves a fact as
/// it is; an inner `None` takes it away.
#[derive(Clone, Debug, Default)]
pub(crate) struct MachineChange {
    /// A new name.
    pub(crate) name: Option<Name>,
    /// Another network card.
    pub(crate) mac: Option<Mac>,
    /// SMBIOS UUID.
    pub(crate) uuid: Option<Option<[u8; 16]>>,
    /// SMBIOS serial number.
    pub(crate) serial: Option<Option<String>>,
    /// Image and mode.
    pub(crate) assignment: Option<Option<Assignment>>,
    /// Fixed address.
    pub(crate) address: Option<Option<Ipv4Addr>>,
    /// Loader file.
    pub(crate) loader: Option<Option<String>>,
}

impl Inventory {
    /// Every machine, by name.
    pub(crate) fn machines(&self) -> Result<Vec<Machine>> {
        let machines = self.store.read(|facts| facts.machines())?;
        Ok(machines.into_iter().map(|m| self.with_seen(m)).collect())
    }

    /// The machine of an id.
    pub(crate) fn machine(&self, id: Uuid) -> Result<Machine> {
        let machine = self.store.read(|facts| facts.machine(id))?;
        machine
            .map(|m| self.with_seen(m))
            .ok_or_else(|| Error::NotFound(format!("there is no machine {id}")))
    }

    /// The machine of a MAC.
    pub(crate) fn machine_by_mac(&self, mac: Mac) -> Result<Option<Machine>> {
        let machine = self.store.machine_by_mac(mac)?;
        Ok(machine.map(|m| self.with_seen(m)))
    }

    /// The machine this address is promised to.
    pub(crate) fn machine_by_address(&self, address: Ipv4Addr) -> Result<Option<Machine>> {
        let machine = self.store.machine_by_address(address)?;
        Ok(machine.map(|m| self.with_seen(m)))
    }

    /// The machine of a name; for a name nobody has, a sentence.
    pub(crate) fn machine_by_name(&self, name: &str) -> Result<Machine> {
        let machine = self.store.read(|facts| facts.machine_by_name(name))?;
        if let Some(machine) = machine {
            return Ok(self.with_seen(machine));
        }
        let names = self.store.read(|facts| facts.machines())?;
        let near = nearest(name, names.iter().map(|m| m.name.as_str()));
        Err(Error::NotFound(format!(
            "there is no machine {name:?}{}",
            near.map_or_else(
                || ": `diskless machine list` shows them".to_owned(),
                |near| format!("; did you mean {near}?")
            )
        )))
    }

    /// The machine a client is. A MAC decides alone, found or not; without one
    /// a UUID or a serial number decides when exactly one machine has it.
    pub(crate) fn find(&self, identity: &Identity) -> Result<Option<Machine>> {
        if let Some(mac) = identity.mac {
            return self.machine_by_mac(mac);
        }
        if let Some(uuid) = identity.uuid.filter(|uuid| !is_empty_uuid(uuid)) {
            let mut machines = self.store.read(|facts| facts.machines_by_uuid(uuid))?;
            if machines.len() == 1 {
                return Ok(machines.pop().map(|m| self.with_seen(m)));
            }
        }
        if let Some(serial) = identity.serial.as_deref().and_then(clean_serial) {
            let mut machines = self.store.read(|facts| facts.machines_by_serial(&serial))?;
            if machines.len() == 1 {
                return Ok(machines.pop().map(|m| self.with_seen(m)));
            }
        }
        Ok(None)
    }

    /// Adds a machine. One that was pending under this MAC is taken in and
    /// keeps its id.
    pub(crate) fn add_machine(&self, new: NewMachine) -> Result<Machine> {
        check_mac(new.mac)?;
        let images = self.images.hold();
        if let Some(image) = new.assignment.as_ref().and_then(Assignment::image) {
            images.resolve(image)?;
        }
        self.store.write(Survives::Power, |facts| {
            let pending = match facts.machine_by_mac(new.mac)? {
                Some(other) if other.state == MachineState::Known => {
                    return Err(mac_taken(&other));
                }
                pending => pending,
            };
            let machine = Machine {
                id: pending.as_ref().map_or_else(Uuid::new_v4, |p| p.id),
                name: new.name,
                mac: new.mac,
                uuid: new.uuid.or(pending.as_ref().and_then(|p| p.uuid)),
                serial: match new.serial {
                    Some(serial) => Some(require_serial(&serial)?),
                    None => pending.as_ref().and_then(|p| p.serial.clone()),
                },
                state: MachineState::Known,
                assignment: new.assignment,
                address: new.address,
                loader: new.loader.map(|file| require_loader(&file)).transpose()?,
                created: pending.as_ref().map_or_else(now, |p| p.created),
                last_seen: pending.and_then(|p| p.last_seen),
            };
            require_unique(facts, &machine)?;
            require_writer(facts, &machine)?;
            facts.put_machine(&machine)?;
            Ok(machine)
        })
    }

    /// The machine of this MAC; one nobody knows becomes a pending machine,
    /// as far as the limits let it. Idempotent; notes that it was seen.
    pub(crate) fn enrol(
        &self,
        mac: Mac,
        uuid: Option<[u8; 16]>,
        serial: Option<&str>,
    ) -> Result<Machine> {
        let uuid = uuid.filter(|uuid| !is_empty_uuid(uuid));
        let serial = serial.and_then(clean_serial);
        if let Some(machine) = self.machine_by_mac(mac)? {
            self.machine_seen(machine.id);
            let learns = (machine.uuid.is_none() && uuid.is_some())
                || (machine.serial.is_none() && serial.is_some());
            if !learns {
                return Ok(self.with_seen(machine));
            }
            return self.store.write(Survives::Process, |facts| {
                let mut machine = facts.machine(machine.id)?.unwrap_or(machine);
                machine.uuid = machine.uuid.or(uuid);
                machine.serial = machine.serial.or(serial);
                facts.put_machine(&machine)?;
                Ok(machine)
            });
        }
        check_mac(mac)?;
        if self.limits.pending_machines == 0 {
            return Err(Error::Conflict(format!(
                "{} is not enrolled: this site keeps no pending machines",
                show_mac(mac)
            )));
        }
        if !held(&self.enrolments).admit(Instant::now()) {
            return Err(Error::Conflict(format!(
                "{} is not enrolled: too many machines nobody knows ask at once; it may ask again",
                show_mac(mac)
            )));
        }
        let at = now();
        // A peer causes this: it survives the process, and costs no fsync.
        self.store.write(Survives::Process, |facts| {
            if let Some(machine) = facts.machine_by_mac(mac)? {
                return Ok(machine);
            }
            let pending = facts.pending_machines()?;
            let room = self.limits.pending_machines - 1;
            for old in pending.iter().take(pending.len().saturating_sub(room)) {
                facts.remove_machine(old.id)?;
            }
            let machine = Machine {
                id: Uuid::new_v4(),
                name: pending_name(facts, mac)?,
                mac,
                uuid,
                serial,
                state: MachineState::Pending,
                assignment: None,
                address: None,
                loader: None,
                created: at,
                last_seen: Some(at),
            };
            facts.put_machine(&machine)?;
            Ok(machine)
        })
    }

    /// Notes that a machine was heard of now; saved with the next batch.
    pub(crate) fn machine_seen(&self, id: Uuid) {
        held(&self.seen).insert(id, now());
    }

    /// Changes a machine. A pending one becomes known when it is given a name
    /// or an image.
    pub(crate) fn set_machine(&self, id: Uuid, change: MachineChange) -> Result<Machine> {
        let images = self.images.hold();
        if let Some(Some(Assignment::Image { image, .. })) = &change.assignment {
            images.resolve(image)?;
        }
        let machine = self.store.write(Survives::Power, |facts| {
            let mut machine = facts
                .machine(id)?
                .ok_or_else(|| Error::NotFound(format!("there is no machine {id}")))?;
            if let Some(mac) = change.mac.filter(|mac| *mac != machine.mac) {
                check_mac(mac)?;
                match facts.machine_by_mac(mac)? {
                    // The machine's new card has asked already.
                    Some(other) if other.state == MachineState::Pending => {
                        facts.remove_machine(other.id)?;
                    }
                    Some(other) => return Err(mac_taken(&other)),
                    None => {}
                }
                machine.mac = mac;
            }
            if change.name.is_some() || matches!(change.assignment, Some(Some(_))) {
                machine.state = MachineState::Known;
            }
            if let Some(name) = change.name {
                machine.name = name;
            }
            if let Some(uuid) = change.uuid {
                machine.uuid = uuid;
            }
            if let Some(serial) = change.serial {
                machine.serial = serial.map(|serial| require_serial(&serial)).transpose()?;
            }
            if let Some(assignment) = change.assignment {
                machine.assignment = assignment;
            }
            if let Some(address) = change.address {
                machine.address = address;
            }
            if let Some(loader) = change.loader {
                machine.loader = loader.map(|file| require_loader(&file)).transpose()?;
            }
            require_unique(facts, &machine)?;
            require_writer(facts, &machine)?;
            facts.put_machine(&machine)?;
            Ok(machine)
        })?;
        Ok(self.with_seen(machine))
    }

    /// Forgets a machine, its generations, its overlays and their files. That
    /// it does not run is the caller's to make sure of.
    pub(crate) fn remove_machine(&self, id: Uuid) -> Result<()> {
        self.machine(id)?;
        let all_of = |facts: &Facts<'_>| {
            let present = facts.overlays_of(id)?;
            Ok(present.into_iter().chain(facts.formers_of(id)?))
        };
        let overlays = self.store.read(all_of)?;
        let uuids: Vec<Uuid> = overlays.map(|overlay| overlay.uuid).collect();
        self.remove_with_files(&uuids, |facts| {
            if all_of(facts)?.count() != uuids.len() {
                return Err(Error::Conflict(
                    "the machine has just got a new overlay: it is booting; \
                     switch it off and try again"
                        .to_owned(),
                ));
            }
            facts.remove_machine(id)
        })?;
        held(&self.seen).remove(&id);
        Ok(())
    }

    /// A machine as saved, with what is only noted in memory.
    fn with_seen(&self, mut machine: Machine) -> Machine {
        if let Some(at) = held(&self.seen).get(&machine.id) {
            machine.last_seen = Some(*at);
        }
        machine
    }
}

#[cfg(test)]
impl Inventory {
    /// From now on nobody new is enrolled: too many have asked.
    pub(crate) fn use_up_enrolments(&self) {
        *held(&self.enrolments) = Enrolments::used_up();
    }
}

/// How many machines nobody knows may be enrolled just now: a bucket that fills
/// again, so that a peer that makes up MACs neither keeps the store busy nor
/// washes the real pending machines out at once.
#[derive(Debug)]
pub(super) struct Enrolments {
    tokens: u32,
    filled: Option<Instant>,
}

/// Machines nobody knows that may ask for the first time at once.
const ENROLMENT_BURST: u32 = 64;

/// Time until one more may.
const ENROLMENT_INTERVAL: Duration = Duration::from_millis(250);

impl Default for Enrolments {
    fn default() -> Self {
        Enrolments {
            tokens: ENROLMENT_BURST,
            filled: None,
        }
    }
}

impl Enrolments {
    /// None left, and none for an hour, however slow the machine under test is.
    #[cfg(test)]
    fn used_up() -> Enrolments {
        Enrolments {
            tokens: 0,
            filled: Some(Instant::now() + Duration::from_secs(60 * 60)),
        }
    }

    fn admit(&mut self, now: Instant) -> bool {
        let filled = *self.filled.get_or_insert(now);
        let intervals = now.duration_since(filled).as_nanos() / ENROLMENT_INTERVAL.as_nanos();
        if let Ok(intervals) = u32::try_from(intervals) {
            self.filled = Some(filled + ENROLMENT_INTERVAL * intervals);
            self.tokens = ENROLMENT_BURST.min(self.tokens.saturating_add(intervals));
        } else {
            *self = Enrolments::default();
        }
        if self.tokens == 0 {
            return false;
        }
        self.tokens -= 1;
        true
    }
}

/// Longest serial number kept; SMBIOS strings of real boards are shorter.
const SERIAL_MAX_BYTES: usize = 64;

/// What firmware says in place of a serial number.
const PLACEHOLDER_SERIALS: &[&str] = &[
    "to be filled by o.e.m.",
    "default string",
    "system serial number",
    "not specified",
    "none",
    "n/a",
    "0",
    "123456789",
];

/// Longest path of a loader.
const LOADER_MAX_BYTES: usize = 255;

/// Reads a MAC as people write it: six pairs of hex digits, with `:`, `-` or
/// nothing between.
pub(crate) fn parse_mac(text: &str) -> Result<Mac> {
    let refused = || {
        let shown: String = text.chars().take(40).collect();
        Error::Invalid(format!(
            "{shown:?} is not a MAC address: it has six pairs of hex digits, \
             as in 52:54:00:12:34:56"
        ))
    };
    let digits: Vec<u8> = match text.len() {
        12 => text.bytes().collect(),
        17 => {
            let separator = text.as_bytes()[2];
            let separated = text
                .bytes()
                .skip(2)
                .step_by(3)
                .all(|byte| byte == separator);
            if !matches!(separator, b':' | b'-') || !separated {
                return Err(refused());
            }
            text.bytes()
                .enumerate()
                .filter(|(at, _)| at % 3 != 2)
                .map(|(_, byte)| byte)
                .collect()
        }
        _ => return Err(refused()),
    };
    let mut mac = [0; 6];
    for (byte, pair) in mac.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16).ok_or_else(refused);
        *byte = u8::try_from(digit(0)? * 16 + digit(1)?).map_err(|_| refused())?;
    }
    Ok(Mac(mac))
}

/// A MAC as people read it: `52:54:00:12:34:56`.
pub(crate) fn show_mac(mac: Mac) -> String {
    mac.0.map(|byte| format!("{byte:02x}")).join(":")
}

/// The name of `names` that is most like `name`, when one is like it.
pub(super) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|other| (strsim::jaro_winkler(name, other), other))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, other)| other)
}

fn check_mac(mac: Mac) -> Result<()> {
    let reserved = if mac.0 == [0; 6] {
        "nobody's"
    } else if mac.0[0] & 1 == 1 {
        "a group's"
    } else {
        return Ok(());
    };
    Err(Error::Invalid(format!(
        "{} is {reserved} address, not that of one network card",
        show_mac(mac)
    )))
}

fn mac_taken(other: &Machine) -> Error {
    Error::Conflict(format!(
        "{mac} is machine {name} already: change that one with `diskless machine set {name}`, \
         or remove it with `diskless machine remove {name}`",
        mac = show_mac(other.mac),
        name = other.name
    ))
}

/// Refuses a name or a fixed address that another machine has.
fn require_unique(facts: &Facts<'_>, machine: &Machine) -> Result<()> {
    if let Some(other) = facts.machine_by_name(&machine.name)?
        && other.id != machine.id
    {
        return Err(Error::Conflict(format!(
            "there is a machine {name} already ({mac}): choose another name, or change that one \
             with `diskless machine set {name}`",
            name = other.name,
            mac = show_mac(other.mac)
        )));
    }
    let Some(address) = machine.address else {
        return Ok(());
    };
    if address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_broadcast()
    {
        return Err(Error::Invalid(format!(
            "{address} cannot be a machine's address"
        )));
    }
    match facts.machine_by_address(address)? {
        Some(other) if other.id != machine.id => Err(Error::Conflict(format!(
            "{address} is promised to machine {name}: choose another address, or take it from \
             that one with `diskless machine set {name} --address none`",
            name = other.name
        ))),
        _ => Ok(()),
    }
}

/// A free name for a pending machine: `new-525400123456`.
fn pending_name(facts: &Facts<'_>, mac: Mac) -> Result<Name> {
    let plain = format!("new-{}", show_mac(mac).replace(':', ""));
    let mut name = plain.clone();
    // An operator may have given that name to another machine, and so on; there
    // are fewer machines than numbers.
    let mut number = 1_u64;
    loop {
        let name_free = Name::parse(&name)?;
        if facts.machine_by_name(&name_free)?.is_none() {
            return Ok(name_free);
        }
        number += 1;
        name = format!("{plain}-{number}");
    }
}

fn is_empty_uuid(uuid: &[u8; 16]) -> bool {
    *uuid == [0; 16] || *uuid == [0xff; 16]
}

/// A serial number from firmware, unless it says nothing.
fn clean_serial(serial: &str) -> Option<String> {
    require_serial(serial)
        .ok()
        .filter(|serial| !PLACEHOLDER_SERIALS.contains(&serial.to_ascii_lowercase().as_str()))
}

/// A serial number as kept: printable ASCII, trimmed.
fn require_serial(serial: &str) -> Result<String> {
    let serial = serial.trim();
    let printable = serial.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    if serial.is_empty() || serial.len() > SERIAL_MAX_BYTES || !printable {
        return Err(Error::Invalid(format!(
            "a serial number is 1 to {SERIAL_MAX_BYTES} printable ASCII characters"
        )));
    }
    Ok(serial.to_owned())
}

/// A loader's path as kept: relative, inside the loader directories.
fn require_loader(file: &str) -> Result<String> {
    let inside = file
        .split('/')
        .all(|part| !part.is_empty() && part != "." && part != "..");
    let printable = file.bytes().all(|b| b.is_ascii_graphic());
    if file.len() > LOADER_MAX_BYTES || !inside || !printable {
        return Err(Error::Invalid(format!(
            "{file:?} is not a loader file: name one inside the loader directories, \
             as in \"snponly.efi\""
        )));
    }
    Ok(file.to_owned())
}

#[cfg(test)]
mod tests;
