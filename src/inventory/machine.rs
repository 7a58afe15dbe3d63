//! Machines: who they are, what is assigned to them, and how one is found.
//!
//! A machine is known by its MAC. UUIDs and serial numbers come from firmware
//! tables that whole batches of mainboards share, so they only serve where no
//! MAC is at hand, and only when exactly one machine has them.

use std::fmt;
use std::net::Ipv4Addr;

use dhcp::Mac;
use jiff::Timestamp;
use uuid::Uuid;

use super::{Error, Image, ImageRef, Inventory, Name, Result};

/// A computer we boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Ours; never changes.
    pub(crate) id: Uuid,
    /// Unique.
    pub(crate) name: Name,
    /// Unique.
    pub(crate) mac: Mac,
    /// SMBIOS UUID in network order, as option 97 carries it; may be shared.
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
pub(crate) struct Assignment {
    /// The golden image.
    pub(crate) image: ImageRef,
    /// What becomes of its writes.
    pub(crate) mode: OverlayMode,
}

/// What becomes of a machine's writes at its next boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum OverlayMode {
    /// They are thrown away.
    Reset,
    /// They live on.
    Keep,
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

impl OverlayMode {
    /// One word, as saved and as the API spells it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            OverlayMode::Reset => "reset",
            OverlayMode::Keep => "keep",
        }
    }

    /// The mode a word stands for.
    pub(crate) fn of_word(word: &str) -> Option<OverlayMode> {
        [OverlayMode::Reset, OverlayMode::Keep]
            .into_iter()
            .find(|mode| mode.word() == word)
    }
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
        todo!()
    }

    /// The machine of an id.
    pub(crate) fn machine(&self, id: Uuid) -> Result<Machine> {
        todo!()
    }

    /// The machine of a MAC.
    pub(crate) fn machine_by_mac(&self, mac: Mac) -> Result<Option<Machine>> {
        todo!()
    }

    /// The machine of a name; for a name nobody has, a sentence.
    pub(crate) fn machine_by_name(&self, name: &str) -> Result<Machine> {
        todo!()
    }

    /// The machine a client is. A MAC decides alone, found or not; without one
    /// a UUID or a serial number decides when exactly one machine has it.
    pub(crate) fn find(&self, identity: &Identity) -> Result<Option<Machine>> {
        todo!()
    }

    /// Adds a machine. One that was pending under this MAC is taken in and
    /// keeps its id.
    pub(crate) fn add_machine(&self, new: NewMachine) -> Result<Machine> {
        todo!()
    }

    /// The machine of this MAC; one nobody knows becomes a pending machine,
    /// as far as the limits let it. Idempotent; notes that it was seen.
    pub(crate) fn enrol(
        &self,
        mac: Mac,
        uuid: Option<[u8; 16]>,
        serial: Option<&str>,
    ) -> Result<Machine> {
        todo!()
    }

    /// Notes that a machine was heard of now; saved with the next batch.
    pub(crate) fn machine_seen(&self, id: Uuid) {
        todo!()
    }

    /// Changes a machine. A pending one becomes known when it is given a name
    /// or an image.
    pub(crate) fn set_machine(&self, id: Uuid, change: MachineChange) -> Result<Machine> {
        todo!()
    }

    /// Forgets a machine, its generations, its overlays and their files. That
    /// it does not run is the caller's to make sure of.
    pub(crate) fn remove_machine(&self, id: Uuid) -> Result<()> {
        todo!()
    }
}

/// How many machines nobody knows may be enrolled just now.
#[derive(Debug)]
pub(super) struct Enrolments {}

/// Reads a MAC as people write it: six pairs of hex digits, with `:`, `-` or
/// nothing between.
pub(crate) fn parse_mac(text: &str) -> Result<Mac> {
    todo!()
}
