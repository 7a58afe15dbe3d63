//! Who may use a unit: persistent reservations (SPC-4 section 5.12) and
//! RESERVE/RELEASE (SPC-2 section 5.5.1).
//!
//! A unit that nobody has reserved pays one load per command. Persistent
//! reservations belong to names and outlive sessions; the hold of RESERVE(6)
//! ends with its session.
//!
//! Invariant: a change that is to be kept (APTPL) is safe before anybody
//! sees it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::attention::{Attentions, Nexus, NexusName, Presence};
use crate::{Refusal, Sense, truncated};

mod access;
mod command;
mod file;
mod persistent;
mod report;
mod saved;
mod transport_id;

pub use command::{Action, Asked, ReservationCommand};
pub use file::ReservationFile;
pub(crate) use persistent::Class;
use persistent::{Change, Persistent};

/// Where a unit's reservations outlive the server.
pub trait ReservationKeeper: Send + Sync {
    /// Makes `saved` durable, in place of what was saved before. May take its
    /// time: the command that asks for it waits, no other does.
    fn save(&self, saved: &[u8]) -> Result<(), String>;
}

/// The reservations of one unit.
#[derive(Default)]
pub(crate) struct Reservations {
    /// Whether a command can meet a conflict; read per command, without a
    /// lock.
    is_reserved: AtomicBool,
    /// Held from looking at the state to changing it, saving included.
    changing: Mutex<()>,
    held: Mutex<Held>,
    keeper: OnceLock<Arc<dyn ReservationKeeper>>,
}

#[derive(Default)]
struct Held {
    persistent: Persistent,
    /// RESERVE(6).
    hold: Option<Hold>,
}

/// The hold of one session.
struct Hold {
    by: NexusName,
    presence: Presence,
}

impl Held {
    /// Who holds the unit by RESERVE(6), unless its session is over.
    fn holder(&self) -> Option<&NexusName> {
        let hold = self.hold.as_ref().filter(|hold| hold.presence.is_there());
        hold.map(|hold| &hold.by)
    }

    fn allows(&self, nexus: &NexusName, class: Class) -> bool {
        match (self.holder(), class) {
            (None, _) => self.persistent.allows(nexus, class),
            (Some(_), Class::Always) => true,
            (Some(_), Class::Persistent) => false,
            (Some(holder), _) => holder == nexus,
        }
    }
}

impl Reservations {
    /// Keeps what is to outlive the server, and goes on from what was saved.
    pub(crate) fn keep(
        &self,
        keeper: Arc<dyn ReservationKeeper>,
        saved: Option<&[u8]>,
    ) -> Result<(), String> {
        let persistent = match saved {
            Some(saved) => saved::parse(saved)?,
            None => Persistent::default(),
        };
        let mut held = self.lock();
        if held.persistent != Persistent::default() || self.keeper.set(keeper).is_err() {
            return Err("a unit in use gets no other keeper".to_owned());
        }
        held.persistent = persistent;
        self.publish(&held);
        Ok(())
    }

    /// Refuses a command that a reservation forbids.
    pub(crate) fn admit(&self, nexus: &Nexus, cdb: &[u8]) -> Result<(), Refusal> {
        if !self.is_reserved.load(Ordering::Acquire) {
            return Ok(());
        }
        match self.allows(nexus.name(), access::class_of(cdb)) {
            true => Ok(()),
            false => Err(Refusal::ReservationConflict),
        }
    }

    /// Whether a nexus may do what a command of this class does.
    pub(crate) fn allows(&self, nexus: &NexusName, class: Class) -> bool {
        !self.is_reserved.load(Ordering::Acquire) || self.lock().allows(nexus, class)
    }

    /// Whether a command may wait: for a file, or for tasks that end.
    pub(crate) fn is_slow(&self, command: ReservationCommand) -> bool {
        match command {
            ReservationCommand::In { .. } => false,
            _ => command.ends_tasks() || self.keeper.get().is_some(),
        }
    }

    /// Does a command; `list` is its parameter list.
    pub(crate) fn perform(
        &self,
        nexus: &Nexus,
        command: ReservationCommand,
        list: &[u8],
        attentions: &Attentions,
    ) -> Result<Vec<u8>, Refusal> {
        match command {
            ReservationCommand::Reserve => self.hold(nexus)?,
            ReservationCommand::Release => self.release(nexus)?,
            ReservationCommand::In { asked, allocation } => {
                let held = self.lock();
                if held.holder().is_some() {
                    return Err(Refusal::ReservationConflict);
                }
                let can_keep = self.keeper.get().is_some();
                let data = report::answer(&held.persistent, asked, can_keep);
                return Ok(truncated(data, u32::from(allocation)));
            }
            ReservationCommand::Out { action, kind, .. } => {
                let change = Change::parse(action, kind, list)?;
                self.change(nexus, &change, attentions)?;
            }
        }
        Ok(vec![])
    }

    /// Logical unit reset: RESERVE(6) ends, what is persistent stays.
    pub(crate) fn reset(&self) {
        self.drop_hold(|_| true);
    }

    /// A nexus begins anew: what the old one held is free.
    pub(crate) fn lose(&self, nexus: &NexusName) {
        self.drop_hold(|hold| hold.by == *nexus);
    }

    fn drop_hold(&self, which: impl Fn(&Hold) -> bool) {
        if self.is_reserved.load(Ordering::Acquire) {
            let mut held = self.lock();
            held.hold.take_if(|hold| which(hold));
            self.publish(&held);
        }
    }

    /// RESERVE(6).
    fn hold(&self, nexus: &Nexus) -> Result<(), Refusal> {
        let _changing = lock(&self.changing);
        let mut held = self.lock();
        if !held.persistent.registrations.is_empty() {
            return humoured(&held.persistent, nexus.name());
        }
        if held.holder().is_some_and(|holder| holder != nexus.name()) {
            return Err(Refusal::ReservationConflict);
        }
        held.hold = Some(Hold {
            by: nexus.name().clone(),
            presence: nexus.presence(),
        });
        self.publish(&held);
        Ok(())
    }

    /// RELEASE(6).
    fn release(&self, nexus: &Nexus) -> Result<(), Refusal> {
        let _changing = lock(&self.changing);
        let mut held = self.lock();
        if !held.persistent.registrations.is_empty() {
            return humoured(&held.persistent, nexus.name());
        }
        if held.holder().is_none_or(|holder| holder == nexus.name()) {
            held.hold = None;
            self.publish(&held);
        }
        Ok(())
    }

    /// PERSISTENT RESERVE OUT.
    fn change(
        &self,
        nexus: &Nexus,
        change: &Change,
        attentions: &Attentions,
    ) -> Result<(), Refusal> {
        let changing = lock(&self.changing);
        let (before, outcome) = {
            let held = self.lock();
            if held.holder().is_some() {
                return Err(Refusal::ReservationConflict);
            }
            let connected = attentions.connected();
            let outcome = held.persistent.changed(nexus.name(), change, &connected)?;
            (saved::emit(&held.persistent), outcome)
        };
        if change.is_kept() == Some(true) && self.keeper.get().is_none() {
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.into());
        }
        let after = saved::emit(&outcome.next);
        if after != before
            && let Some(keeper) = self.keeper.get()
            && let Err(error) = keeper.save(&after)
        {
            tracing::warn!(%error, "a reservation could not be kept, so it is refused");
            return Err(Sense::INTERNAL_TARGET_FAILURE.into());
        }
        let mut held = self.lock();
        held.persistent = outcome.next;
        self.publish(&held);
        drop(held);
        for (name, sense) in &outcome.attentions {
            attentions.raise_for(name, *sense);
        }
        // Others need not wait for tasks that are slow to end.
        drop(changing);
        attentions.end_tasks_of(&outcome.ended);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        lock(&self.held)
    }

    /// Says to every session whether it has to look.
    fn publish(&self, held: &Held) {
        let is_reserved = held.hold.is_some() || held.persistent.reservation.is_some();
        self.is_reserved.store(is_reserved, Ordering::Release);
    }
}

/// What RESERVE(6) and RELEASE(6) get where nexuses are registered.
fn humoured(persistent: &Persistent, nexus: &NexusName) -> Result<(), Refusal> {
    match persistent.humours(nexus) {
        true => Ok(()),
        false => Err(Refusal::ReservationConflict),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
