//! The persistent reservation of one unit and who is registered for it (SPC-4
//! section 5.12): what each service action of PERSISTENT RESERVE OUT does,
//! and whom it concerns.
//!
//! Pure: a change makes a new state out of the old one, so that it can be
//! kept safe before anybody sees it.

use super::transport_id::TransportId;
use crate::attention::NexusName;
use crate::{Refusal, Sense};

/// Most I_T nexuses registered with one unit.
pub(crate) const MAX_REGISTRATIONS: usize = 256;

/// Who is registered with a unit, and who holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Persistent {
    /// PRGENERATION.
    pub(crate) generation: u32,
    /// In the order of their coming.
    pub(crate) registrations: Vec<Registration>,
    pub(crate) reservation: Option<Reservation>,
    /// APTPL: whether all this is kept when the server ends.
    pub(crate) is_kept: bool,
}

/// One registered I_T nexus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registration {
    pub(crate) nexus: NexusName,
    pub(crate) key: u64,
    /// ALL_TG_PT: asked for through every target port. A unit has one.
    pub(crate) all_target_ports: bool,
}

/// A persistent reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reservation {
    pub(crate) kind: Kind,
    /// Who holds it; nobody in particular when all registrants do.
    pub(crate) holder: Option<NexusName>,
}

/// The type of a persistent reservation (SPC-4 table 48).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// 1h.
    WriteExclusive,
    /// 3h.
    ExclusiveAccess,
    /// 5h.
    WriteExclusiveRegistrantsOnly,
    /// 6h.
    ExclusiveAccessRegistrantsOnly,
    /// 7h.
    WriteExclusiveAllRegistrants,
    /// 8h.
    ExclusiveAccessAllRegistrants,
}

impl Kind {
    /// All of them, with their codes.
    pub(crate) const ALL: [(u8, Kind); 6] = [
        (1, Kind::WriteExclusive),
        (3, Kind::ExclusiveAccess),
        (5, Kind::WriteExclusiveRegistrantsOnly),
        (6, Kind::ExclusiveAccessRegistrantsOnly),
        (7, Kind::WriteExclusiveAllRegistrants),
        (8, Kind::ExclusiveAccessAllRegistrants),
    ];

    pub(crate) fn parse(code: u8) -> Option<Kind> {
        let found = Kind::ALL.iter().find(|(known, _)| *known == code);
        found.map(|(_, kind)| *kind)
    }

    pub(crate) fn code(self) -> u8 {
        let found = Kind::ALL.iter().find(|(_, known)| *known == self);
        found.map_or(0, |(code, _)| *code)
    }

    /// Whether others may not even read.
    fn excludes_readers(self) -> bool {
        matches!(self.code(), 3 | 6 | 8)
    }

    /// Whether it lets in whoever is registered.
    fn admits_registrants(self) -> bool {
        self.code() >= 5
    }

    /// Whether every registrant is its holder.
    pub(crate) fn is_of_all_registrants(self) -> bool {
        self.code() >= 7
    }
}

/// What a command does, as far as reservations ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Goes beside any reservation, RESERVE(6)'s too.
    Always,
    /// Goes beside any persistent reservation.
    Free,
    /// PERSISTENT RESERVE IN and OUT: they go beside persistent reservations
    /// and have their own rules; RESERVE(6) shuts even its holder out.
    Persistent,
    /// Reads, or shows what only readers need.
    Read,
    /// Changes the medium or the unit.
    Write,
}

/// What PERSISTENT RESERVE OUT asks for, past the checks of its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// REGISTER.
    Register {
        key: u64,
        new_key: u64,
        /// SPEC_I_PT: whom to register with it.
        others: Option<Vec<TransportId>>,
        all_target_ports: bool,
        is_kept: bool,
    },
    /// REGISTER AND IGNORE EXISTING KEY.
    RegisterAndIgnore {
        new_key: u64,
        all_target_ports: bool,
        is_kept: bool,
    },
    /// RESERVE.
    Reserve { key: u64, kind: Kind },
    /// RELEASE.
    Release { key: u64, kind: Kind },
    /// CLEAR.
    Clear { key: u64 },
    /// PREEMPT; with `aborts`, PREEMPT AND ABORT.
    Preempt {
        key: u64,
        victim: u64,
        kind: Kind,
        aborts: bool,
    },
    /// REGISTER AND MOVE.
    Move {
        key: u64,
        new_key: u64,
        to: NexusName,
        unregisters: bool,
        is_kept: bool,
    },
}

/// What a change has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) next: Persistent,
    /// Who is told what.
    pub(crate) attentions: Vec<(NexusName, Sense)>,
    /// Whose tasks end.
    pub(crate) ended: Vec<NexusName>,
}

impl Outcome {
    fn quiet(next: Persistent) -> Outcome {
        Outcome {
            next,
            attentions: vec![],
            ended: vec![],
        }
    }
}

impl Persistent {
    /// The key of a nexus that is registered.
    pub(crate) fn key_of(&self, nexus: &NexusName) -> Option<u64> {
        let found = self.registrations.iter().find(|r| r.nexus == *nexus);
        found.map(|registration| registration.key)
    }

    /// Whether a nexus holds the reservation, alone or with all others.
    pub(crate) fn is_holder(&self, nexus: &NexusName) -> bool {
        match &self.reservation {
            None => false,
            Some(Reservation { holder, .. }) => match holder {
                Some(holder) => holder == nexus,
                None => self.key_of(nexus).is_some(),
            },
        }
    }

    /// Whether RESERVE(6) and RELEASE(6) of this nexus are answered as if
    /// they had been done (CRH, SPC-4 section 5.12.3).
    pub(crate) fn humours(&self, nexus: &NexusName) -> bool {
        let Some(reservation) = &self.reservation else {
            return false;
        };
        let is_registered = self.key_of(nexus).is_some();
        self.is_holder(nexus) || (reservation.kind.admits_registrants() && is_registered)
    }

    /// Whether the reservation lets a command through (SPC-4 tables 46 and
    /// 47).
    pub(crate) fn allows(&self, nexus: &NexusName, class: Class) -> bool {
        let Some(reservation) = &self.reservation else {
            return true;
        };
        let kind = reservation.kind;
        let has_access =
            || self.is_holder(nexus) || (kind.admits_registrants() && self.key_of(nexus).is_some());
        match class {
            Class::Always | Class::Free | Class::Persistent => true,
            Class::Read => !kind.excludes_readers() || has_access(),
            Class::Write => has_access(),
        }
    }

    /// The state after a change that `by` asked for. `connected` are the
    /// nexuses logged in now.
    pub(crate) fn changed(
        &self,
        by: &NexusName,
        change: &Change,
        connected: &[NexusName],
    ) -> Result<Outcome, Refusal> {
        match change {
            Change::Register { .. } => self.register(by, change, connected),
            Change::RegisterAndIgnore {
                new_key,
                all_target_ports,
                is_kept,
            } => {
                let registration = Registration {
                    nexus: by.clone(),
                    key: *new_key,
                    all_target_ports: *all_target_ports,
                };
                self.set(&registration, *is_kept)
            }
            Change::Reserve { key, kind } => {
                self.check_key(by, *key)?;
                self.reserve(by, *kind)
            }
            Change::Release { key, kind } => {
                self.check_key(by, *key)?;
                self.release(by, *kind)
            }
            Change::Clear { key } => {
                self.check_key(by, *key)?;
                let others = self.registrations.iter().filter(|r| r.nexus != *by);
                let told = others.map(|r| (r.nexus.clone(), Sense::RESERVATIONS_PREEMPTED));
                Ok(Outcome {
                    attentions: told.collect(),
                    ended: vec![],
                    next: Persistent {
                        generation: self.generation.wrapping_add(1),
                        is_kept: self.is_kept,
                        ..Persistent::default()
                    },
                })
            }
            Change::Preempt {
                key,
                victim,
                kind,
                aborts,
            } => {
                self.check_key(by, *key)?;
                self.preempt(by, *victim, *kind, *aborts)
            }
            Change::Move { .. } => self.hand_over(by, change),
        }
    }

    /// Refuses whoever is not registered with this key.
    fn check_key(&self, nexus: &NexusName, key: u64) -> Result<(), Refusal> {
        match self.key_of(nexus) == Some(key) {
            true => Ok(()),
            false => Err(Refusal::ReservationConflict),
        }
    }

    fn register(
        &self,
        by: &NexusName,
        change: &Change,
        connected: &[NexusName],
    ) -> Result<Outcome, Refusal> {
        let Change::Register {
            key,
            new_key,
            others,
            all_target_ports,
            is_kept,
        } = change
        else {
            return Err(Sense::INTERNAL_TARGET_FAILURE.into());
        };
        let present = self.key_of(by);
        if present.unwrap_or(0) != *key {
            return Err(Refusal::ReservationConflict);
        }
        let registration = |nexus: &NexusName| Registration {
            nexus: nexus.clone(),
            key: *new_key,
            all_target_ports: *all_target_ports,
        };
        let Some(others) = others else {
            return self.set(&registration(by), *is_kept);
        };
        if present.is_some() {
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.into());
        }
        if *new_key == 0 {
            return Ok(Outcome::quiet(self.clone()));
        }
        let mut next = self.clone();
        let mut add = |nexus: &NexusName| {
            if next.key_of(nexus).is_none() {
                next.registrations.push(registration(nexus));
            }
        };
        add(by);
        for other in others {
            match other {
                TransportId::Port(nexus) => add(nexus),
                TransportId::Device(initiator) => {
                    let mut ports = connected.iter().filter(|n| n.initiator == *initiator);
                    let Some(first) = ports.next() else {
                        return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.into());
                    };
                    add(first);
                    ports.for_each(&mut add);
                }
            }
        }
        next.is_kept = *is_kept;
        next.generation = next.generation.wrapping_add(1);
        next.fitting().map(Outcome::quiet)
    }

    /// Registers a nexus, gives it another key, or with key 0 takes its
    /// registration away.
    fn set(&self, wanted: &Registration, is_kept: bool) -> Result<Outcome, Refusal> {
        let is_registered = self.key_of(&wanted.nexus).is_some();
        if wanted.key == 0 && !is_registered {
            return Ok(Outcome::quiet(self.clone()));
        }
        let mut next = self.clone();
        next.is_kept = is_kept;
        next.generation = next.generation.wrapping_add(1);
        if wanted.key == 0 {
            let attentions = next.unregister(&wanted.nexus);
            return Ok(Outcome {
                next,
                attentions,
                ended: vec![],
            });
        }
        let present = next.registrations.iter_mut();
        match present.into_iter().find(|r| r.nexus == wanted.nexus) {
            Some(registration) => *registration = wanted.clone(),
            None => next.registrations.push(wanted.clone()),
        }
        next.fitting().map(Outcome::quiet)
    }

    /// Takes a registration away, and with it the reservation that hangs on
    /// it (SPC-4 section 5.12.11.2.3).
    fn unregister(&mut self, nexus: &NexusName) -> Vec<(NexusName, Sense)> {
        let was_holder = self.is_holder(nexus);
        self.registrations.retain(|r| r.nexus != *nexus);
        let Some(reservation) = &self.reservation else {
            return vec![];
        };
        let kind = reservation.kind;
        let ends = match kind.is_of_all_registrants() {
            true => self.registrations.is_empty(),
            false => was_holder,
        };
        if !ends {
            return vec![];
        }
        self.reservation = None;
        match kind.admits_registrants() {
            true => self.told(Sense::RESERVATIONS_RELEASED, nexus),
            false => vec![],
        }
    }

    /// Everybody registered but `except` is told.
    fn told(&self, sense: Sense, except: &NexusName) -> Vec<(NexusName, Sense)> {
        let others = self.registrations.iter().filter(|r| r.nexus != *except);
        others.map(|r| (r.nexus.clone(), sense)).collect()
    }

    fn fitting(self) -> Result<Persistent, Refusal> {
        match self.registrations.len() > MAX_REGISTRATIONS {
            true => Err(Sense::INSUFFICIENT_REGISTRATION_RESOURCES.into()),
            false => Ok(self),
        }
    }

    fn reserve(&self, by: &NexusName, kind: Kind) -> Result<Outcome, Refusal> {
        match &self.reservation {
            Some(present) if present.kind == kind && self.is_holder(by) => {
                Ok(Outcome::quiet(self.clone()))
            }
            Some(_) => Err(Refusal::ReservationConflict),
            None => Ok(Outcome::quiet(Persistent {
                reservation: Some(Reservation::new(kind, by)),
                ..self.clone()
            })),
        }
    }

    fn release(&self, by: &NexusName, kind: Kind) -> Result<Outcome, Refusal> {
        let mut next = self.clone();
        if !self.is_holder(by) {
            return Ok(Outcome::quiet(next));
        }
        if self.reservation.as_ref().is_some_and(|r| r.kind != kind) {
            return Err(Sense::INVALID_RELEASE_OF_PERSISTENT_RESERVATION.into());
        }
        next.reservation = None;
        let attentions = match kind.admits_registrants() {
            true => next.told(Sense::RESERVATIONS_RELEASED, by),
            false => vec![],
        };
        Ok(Outcome {
            next,
            attentions,
            ended: vec![],
        })
    }

    /// SPC-4 section 5.12.11.2.6.
    fn preempt(
        &self,
        by: &NexusName,
        victim: u64,
        kind: Kind,
        aborts: bool,
    ) -> Result<Outcome, Refusal> {
        let is_of_all = matches!(&self.reservation, Some(r) if r.holder.is_none());
        let holder = self.reservation.as_ref().and_then(|r| r.holder.as_ref());
        let takes_over = match is_of_all {
            true => victim == 0,
            false => victim != 0 && holder.is_some_and(|h| self.key_of(h) == Some(victim)),
        };
        if victim == 0 && !is_of_all {
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.into());
        }
        // Who preempts may name its own key; it keeps its registration when
        // it becomes the holder.
        let goes = |r: &Registration| match (takes_over, is_of_all) {
            (true, true) => r.nexus != *by,
            (true, false) => r.key == victim && r.nexus != *by,
            (false, _) => r.key == victim,
        };
        let (gone, stay): (Vec<_>, Vec<_>) = self.registrations.iter().cloned().partition(goes);
        if gone.is_empty() && !takes_over {
            return Err(Refusal::ReservationConflict);
        }
        let mut next = Persistent {
            generation: self.generation.wrapping_add(1),
            registrations: stay,
            ..self.clone()
        };
        let mut attentions: Vec<_> = gone
            .iter()
            .filter(|r| r.nexus != *by)
            .map(|r| (r.nexus.clone(), Sense::REGISTRATIONS_PREEMPTED))
            .collect();
        if takes_over {
            if self.reservation.as_ref().is_some_and(|r| r.kind != kind) {
                attentions.extend(next.told(Sense::RESERVATIONS_RELEASED, by));
            }
            next.reservation = Some(Reservation::new(kind, by));
        } else if next.registrations.is_empty() {
            next.reservation = None; // the last registrant has gone
        }
        let ended = match aborts {
            // The command that asks for it is not ended itself.
            true => gone
                .into_iter()
                .map(|r| r.nexus)
                .filter(|n| n != by)
                .collect(),
            false => vec![],
        };
        Ok(Outcome {
            next,
            attentions,
            ended,
        })
    }

    /// REGISTER AND MOVE (SPC-4 section 5.12.8).
    fn hand_over(&self, by: &NexusName, change: &Change) -> Result<Outcome, Refusal> {
        let Change::Move {
            key,
            new_key,
            to,
            unregisters,
            is_kept,
        } = change
        else {
            return Err(Sense::INTERNAL_TARGET_FAILURE.into());
        };
        self.check_key(by, *key)?;
        let Some(reservation) = &self.reservation else {
            return Err(Sense::INVALID_FIELD_IN_CDB.into());
        };
        if reservation.holder.as_ref() != Some(by) {
            return Err(Refusal::ReservationConflict);
        }
        if *new_key == 0 || to == by {
            return Err(Sense::INVALID_FIELD_IN_PARAMETER_LIST.into());
        }
        let mut next = self.clone();
        next.is_kept = *is_kept;
        next.generation = next.generation.wrapping_add(1);
        match next.registrations.iter_mut().find(|r| r.nexus == *to) {
            Some(registration) => registration.key = *new_key,
            None => next.registrations.push(Registration {
                nexus: to.clone(),
                key: *new_key,
                all_target_ports: false,
            }),
        }
        next.reservation = Some(Reservation::new(reservation.kind, to));
        if *unregisters {
            next.registrations.retain(|r| r.nexus != *by);
        }
        next.fitting().map(Outcome::quiet)
    }
}

impl Reservation {
    fn new(kind: Kind, by: &NexusName) -> Reservation {
        Reservation {
            kind,
            holder: (!kind.is_of_all_registrants()).then(|| by.clone()),
        }
    }
}

#[cfg(test)]
#[path = "persistent/tests.rs"]
mod tests;
