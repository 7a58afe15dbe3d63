//! What happened to each machine, and what it means.
//!
//! Doors [`record`](Timeline::record) events by MAC (a packet knows no more);
//! the API reads them back, alone or grouped into [`Boot`]s. Recording touches
//! memory only. A thread saves what is new once a second without an `fsync`, so
//! that nothing a peer sends can make the disk busy: a timeline survives the
//! death of the program, not of the host.

mod boots;
mod stage;

use std::sync::Arc;

use dhcp::Mac;
use jiff::Timestamp;

use crate::inventory::{Inventory, Result};

pub(crate) use boots::Boot;
pub(crate) use stage::Stage;

/// Every machine's recent events.
pub(crate) struct Timeline {
    inventory: Arc<Inventory>,
}

/// Something that happened to a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// Order among all events.
    pub(crate) number: u64,
    /// When it happened first.
    pub(crate) at: Timestamp,
    /// To whom.
    pub(crate) mac: Mac,
    /// Its boot generation, where the door knew it.
    pub(crate) generation: Option<u64>,
    /// What happened.
    pub(crate) stage: Stage,
    /// In a few words: which file, which address, why not.
    pub(crate) detail: String,
    /// How often it happened in a row.
    pub(crate) count: u32,
}

impl Timeline {
    /// Reads back the saved events and starts the thread that saves new ones
    /// (and with them when machines were last seen). Dropping the timeline saves
    /// the rest.
    pub(crate) fn open(inventory: Arc<Inventory>) -> Result<Timeline> {
        todo!()
    }

    /// Records an event. Never blocks on a disk; too many in a short time are
    /// counted, not kept.
    pub(crate) fn record(&self, mac: Mac, stage: Stage, detail: impl Into<String>) {
        todo!()
    }

    /// Records an event of a boot generation.
    pub(crate) fn record_boot(
        &self,
        mac: Mac,
        generation: u64,
        stage: Stage,
        detail: impl Into<String>,
    ) {
        todo!()
    }

    /// A machine's events, oldest first.
    pub(crate) fn events(&self, mac: Mac) -> Vec<Event> {
        todo!()
    }

    /// A machine's events grouped into boots, oldest first.
    pub(crate) fn boots(&self, mac: Mac) -> Vec<Boot> {
        todo!()
    }

    /// Forgets a machine's events.
    pub(crate) fn remove(&self, mac: Mac) {
        todo!()
    }

    /// Saves what is new at once.
    pub(crate) fn save(&self) -> Result<()> {
        todo!()
    }
}
