//! Plain targets: files and drives that belong to no machine.
//!
//! Who may open one: whoever proves its CHAP secret, or, where it has none,
//! whoever reaches the portal. A target with a disk that is not made for
//! several initiators lets in one at a time, however many sessions that one
//! has.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use iscsi::{
    Attachment, Authentication, ChapSecrets, Login, LoginRefusal, Secret, Target, Targets,
};

use super::lock;
use crate::inventory::Proof;

pub(crate) use kept::{KeptTargets, UnitState};
pub(crate) use unit::{UnitOptions, open_unit, product};

mod kept;
#[cfg(test)]
mod tests;
mod unit;

/// How often a refused initiator, which tries again and again, is worth a line
/// of the log.
const REFUSALS_APART: Duration = Duration::from_secs(60);

/// Plain targets that can be opened, by iSCSI name.
#[derive(Default)]
pub(crate) struct PlainTargets {
    targets: RwLock<BTreeMap<String, Arc<Plain>>>,
}

/// A target that can be opened.
struct Plain {
    target: Arc<Target>,
    proof: Option<Proof>,
    guests: Mutex<Guests>,
}

/// Who is in.
#[derive(Default)]
struct Guests {
    /// Whether one initiator at a time is let in.
    is_exclusive: bool,
    /// Sessions of each initiator.
    sessions: BTreeMap<String, usize>,
    /// When a refusal was logged last.
    refused: Option<Instant>,
}

impl PlainTargets {
    /// Lets a target be opened from now on, by several initiators at once.
    pub(crate) fn add(&self, target: Arc<Target>, proof: Option<Proof>) {
        let plain = Plain {
            proof,
            guests: Mutex::default(),
            target,
        };
        let mut targets = self.targets.write().unwrap_or_else(PoisonError::into_inner);
        targets.insert(plain.target.name.clone(), Arc::new(plain));
    }

    /// Lets nobody open a target any more.
    pub(crate) fn remove(&self, iqn: &str) {
        let mut targets = self.targets.write().unwrap_or_else(PoisonError::into_inner);
        targets.remove(iqn);
    }

    /// Whether there is such a target.
    pub(crate) fn has(&self, iqn: &str) -> bool {
        self.targets().contains_key(iqn)
    }

    /// Says whether a target lets in one initiator at a time from now on;
    /// refuses, and gives who is in, when there are several already.
    pub(crate) fn set_exclusive(&self, iqn: &str, is_exclusive: bool) -> Result<(), Vec<String>> {
        let Some(plain) = self.targets().get(iqn).cloned() else {
            return Ok(());
        };
        let mut guests = lock(&plain.guests);
        if is_exclusive && guests.sessions.len() > 1 {
            return Err(guests.sessions.keys().cloned().collect());
        }
        guests.is_exclusive = is_exclusive;
        Ok(())
    }

    /// How many sessions a target has.
    pub(crate) fn sessions(&self, iqn: &str) -> usize {
        let plain = self.targets().get(iqn).cloned();
        plain.map_or(0, |plain| lock(&plain.guests).sessions.values().sum())
    }

    fn targets(&self) -> RwLockReadGuard<'_, BTreeMap<String, Arc<Plain>>> {
        self.targets.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, login: &Login) -> Option<Arc<Plain>> {
        self.targets().get(login.target.as_ref()?).cloned()
    }
}

impl Targets for PlainTargets {
    fn authentication(&self, login: &Login) -> Authentication {
        match login.target {
            Some(_) => match self.find(login).is_some_and(|plain| plain.proof.is_some()) {
                true => Authentication::Chap,
                false => Authentication::None,
            },
            // Discovery names none yet, and shows what may be opened: there is
            // something for who proves nothing when one target is for everybody.
            None => match self.targets().values().all(|plain| plain.proof.is_some()) {
                true => Authentication::Chap,
                false => Authentication::Offered,
            },
        }
    }

    fn chap_secret(&self, login: &Login, chap_name: &str) -> Option<ChapSecrets> {
        let secret = |text: &str| Secret::new(text.as_bytes());
        let knows = |plain: &Arc<Plain>| {
            let proof = plain.proof.as_ref();
            let proof = proof.filter(|proof| proof.chap.name == chap_name)?;
            let mutual = proof.mutual.as_ref();
            let mutual = mutual.map(|chap| (chap.name.clone(), secret(&chap.secret)));
            Some(ChapSecrets {
                initiator: secret(&proof.chap.secret),
                target: mutual,
            })
        };
        match login.target {
            Some(_) => knows(&self.find(login)?),
            None => self.targets().values().find_map(knows),
        }
    }

    fn open(&self, login: &Login) -> Result<Attachment, LoginRefusal> {
        let plain = self.find(login).ok_or(LoginRefusal::NotFound)?;
        let guest = Guest::enter(plain, login)?;
        Ok(Attachment {
            target: Arc::clone(&guest.plain.target),
            guard: Box::new(guest),
        })
    }

    fn discover(&self, login: &Login) -> Vec<String> {
        let may_open = |plain: &&Arc<Plain>| match &plain.proof {
            None => true,
            Some(proof) => login.chap_name.as_ref() == Some(&proof.chap.name),
        };
        let targets = self.targets();
        let found = targets.values().filter(may_open);
        found.map(|plain| plain.target.name.clone()).collect()
    }
}

/// One session of an initiator.
struct Guest {
    plain: Arc<Plain>,
    initiator: String,
}

impl Guest {
    fn enter(plain: Arc<Plain>, login: &Login) -> Result<Guest, LoginRefusal> {
        let target_name = &plain.target.name;
        let initiator = &login.initiator;
        let mut guests = lock(&plain.guests);
        let other = guests.sessions.keys().find(|other| *other != initiator);
        if let Some(other) = other.filter(|_| guests.is_exclusive) {
            let now = Instant::now();
            let is_news = guests
                .refused
                .is_none_or(|last| now.duration_since(last) >= REFUSALS_APART);
            if is_news {
                tracing::warn!(
                    target_name,
                    initiator,
                    other,
                    "refused: another initiator has it open, and its disks are not shared"
                );
                guests.refused = Some(now);
            }
            return Err(LoginRefusal::ServiceUnavailable);
        }
        *guests.sessions.entry(initiator.clone()).or_default() += 1;
        tracing::info!(target_name, initiator, peer = %login.peer, "logged in");
        drop(guests);
        Ok(Guest {
            initiator: initiator.clone(),
            plain,
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let target_name = &self.plain.target.name;
        tracing::info!(target_name, initiator = self.initiator, "session ended");
        let mut guests = lock(&self.plain.guests);
        if let Some(sessions) = guests.sessions.get_mut(&self.initiator) {
            *sessions -= 1;
            if *sessions == 0 {
                guests.sessions.remove(&self.initiator);
            }
        }
    }
}
