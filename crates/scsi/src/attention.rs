//! Unit attentions: what happened to a unit while a nexus was not asking
//! (SAM-5 section 5.14), one queue per I_T nexus.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, Weak};

use crate::copy::{Copies, Peers};
use crate::optical::MediaEvent;
use crate::{LogicalUnit, Sense};

/// Most attentions that wait for one nexus; iPXE asks at most ten times
/// whether a unit is ready before it gives up.
const MAX_WAITING: usize = 8;

/// Names an I_T nexus: which initiator port, as far as one target is asked
/// (RFC 7143 section 4.4.2).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NexusName {
    /// InitiatorName.
    pub initiator: String,
    /// The initiator's session identifier.
    pub isid: [u8; 6],
}

/// One initiator session's view of one logical unit.
///
/// Dropping it, or [leaving](Nexus::leave), is an I_T nexus loss.
#[derive(Clone, Debug)]
pub struct Nexus {
    state: Arc<State>,
}

impl Nexus {
    fn new(name: &NexusName, first: Sense) -> Nexus {
        Nexus {
            state: Arc::new(State {
                name: name.clone(),
                is_waiting: AtomicBool::new(true),
                prevents_removal: AtomicBool::new(false),
                queue: Mutex::new(VecDeque::from([first])),
                media_event: AtomicU8::new(MediaEvent::None as u8),
                has_left: AtomicBool::new(false),
                peers: OnceLock::new(),
                copies: Copies::default(),
                ended: AtomicU64::new(0),
                gate: RwLock::new(()),
            }),
        }
    }

    /// Whose view it is.
    pub fn name(&self) -> &NexusName {
        &self.state.name
    }

    /// Keeps the medium in, or no longer (PREVENT ALLOW MEDIUM REMOVAL); ends
    /// with the nexus.
    pub(crate) fn prevent_removal(&self, prevents: bool) {
        let state = &self.state.prevents_removal;
        state.store(prevents, Ordering::Release);
    }

    /// Takes what has happened to the medium since the last call.
    pub(crate) fn take_media_event(&self) -> MediaEvent {
        let none = MediaEvent::None as u8;
        MediaEvent::from(self.state.media_event.swap(none, Ordering::AcqRel))
    }

    /// To be held while a task of this nexus changes the disk, and taken
    /// before it is asked whether the task is void: who ends the tasks waits
    /// for it.
    pub fn hold(&self) -> RwLockReadGuard<'_, ()> {
        self.state
            .gate
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// I_T nexus loss, though tasks of it may still be let go of: what it
    /// held by RESERVE(6) or PREVENT ALLOW is free.
    pub fn leave(&self) {
        self.state.has_left.store(true, Ordering::Release);
        self.prevent_removal(false);
    }

    /// Says where EXTENDED COPY finds the other units of the target. Without
    /// it the unit reaches only itself.
    pub fn join(&self, peers: Weak<dyn Peers>) {
        // A nexus belongs to one target: what is said again is the same.
        let _ = self.state.peers.set(peers);
    }

    /// The units of the target.
    pub(crate) fn peers(&self) -> Vec<Arc<LogicalUnit>> {
        let peers = self.state.peers.get().and_then(Weak::upgrade);
        peers.map_or(vec![], |peers| peers.units())
    }

    /// The copies that were asked for here.
    pub(crate) fn copies(&self) -> &Copies {
        &self.state.copies
    }

    /// How often the tasks of this nexus have been ended by another.
    pub(crate) fn ended(&self) -> u64 {
        self.state.ended.load(Ordering::Acquire)
    }

    /// Tells later whether the nexus is still there.
    pub(crate) fn presence(&self) -> Presence {
        Presence(Arc::downgrade(&self.state))
    }

    /// Raises `sense`: the next command hears of it.
    pub fn raise(&self, sense: Sense) {
        self.state.raise(sense);
    }

    /// Takes `sense` back if it still waits: the initiator knows.
    pub fn withdraw(&self, sense: Sense) {
        if !self.state.is_waiting.load(Ordering::Acquire) {
            return;
        }
        let mut queue = self.state.lock();
        queue.retain(|waiting| *waiting != sense);
        self.state
            .is_waiting
            .store(!queue.is_empty(), Ordering::Release);
    }

    /// How many attentions wait, and the oldest of them.
    pub fn waiting(&self) -> (usize, Option<Sense>) {
        let queue = self.state.lock();
        (queue.len(), queue.front().copied())
    }

    /// Takes the oldest attention, if one waits.
    pub(crate) fn take(&self) -> Option<Sense> {
        if !self.state.is_waiting.load(Ordering::Acquire) {
            return None;
        }
        let mut queue = self.state.lock();
        let sense = queue.pop_front();
        self.state
            .is_waiting
            .store(!queue.is_empty(), Ordering::Release);
        sense
    }
}

/// Whether a nexus is still there.
pub(crate) struct Presence(Weak<State>);

impl Presence {
    pub(crate) fn is_there(&self) -> bool {
        let state = self.0.upgrade();
        state.is_some_and(|state| !state.has_left.load(Ordering::Acquire))
    }
}

/// All nexuses of one unit.
#[derive(Default)]
pub(crate) struct Attentions {
    nexuses: Mutex<Vec<Weak<State>>>,
}

impl Attentions {
    /// A new nexus; its first command will be told so (29/00).
    pub(crate) fn connect(&self, name: &NexusName) -> Nexus {
        let nexus = Nexus::new(name, Sense::RESET_OCCURRED);
        let mut all = self.nexuses.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|known| known.strong_count() > 0);
        all.push(Arc::downgrade(&nexus.state));
        nexus
    }

    /// Whether any nexus keeps the medium in.
    pub(crate) fn prevent_removal(&self) -> bool {
        let all = self.nexuses.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .filter_map(Weak::upgrade)
            .any(|state| state.prevents_removal.load(Ordering::Acquire))
    }

    /// No nexus keeps the medium in any longer.
    pub(crate) fn allow_removal(&self) {
        let all = self.nexuses.lock().unwrap_or_else(PoisonError::into_inner);
        for state in all.iter().filter_map(Weak::upgrade) {
            state.prevents_removal.store(false, Ordering::Release);
        }
    }

    /// Tells every nexus what happened to the medium; an optical drive's asks.
    pub(crate) fn tell(&self, event: MediaEvent) {
        let all = self.nexuses.lock().unwrap_or_else(PoisonError::into_inner);
        for state in all.iter().filter_map(Weak::upgrade) {
            state.media_event.store(event as u8, Ordering::Release);
        }
    }

    /// The nexuses there are.
    pub(crate) fn connected(&self) -> Vec<NexusName> {
        let present = self.present(|_| true);
        present.iter().map(|state| state.name.clone()).collect()
    }

    /// Raises `sense` for one nexus, if it is there.
    pub(crate) fn raise_for(&self, name: &NexusName, sense: Sense) {
        for state in self.present(|present| present == name) {
            state.raise(sense);
        }
    }

    /// Ends the tasks of some nexuses. When it returns, none of them touches
    /// the disk any more.
    pub(crate) fn end_tasks_of(&self, names: &[NexusName]) {
        let states = self.present(|name| names.contains(name));
        for state in &states {
            state.ended.fetch_add(1, Ordering::AcqRel);
        }
        for state in &states {
            drop(state.gate.write());
        }
    }

    fn present(&self, which: impl Fn(&NexusName) -> bool) -> Vec<Arc<State>> {
        let all = self.nexuses.lock().unwrap_or_else(PoisonError::into_inner);
        let present = all.iter().filter_map(Weak::upgrade);
        present.filter(|state| which(&state.name)).collect()
    }

    /// Raises `sense` for every nexus but `except`.
    pub(crate) fn raise(&self, sense: Sense, except: Option<&Nexus>) {
        let all = self.nexuses.lock().unwrap_or_else(PoisonError::into_inner);
        for state in all.iter().filter_map(Weak::upgrade) {
            if except.is_some_and(|nexus| Arc::ptr_eq(&nexus.state, &state)) {
                continue;
            }
            state.raise(sense);
        }
    }
}

#[derive(Debug)]
struct State {
    name: NexusName,
    /// Whether `queue` holds anything; read per command without the lock.
    is_waiting: AtomicBool,
    prevents_removal: AtomicBool,
    queue: Mutex<VecDeque<Sense>>,
    /// The [`MediaEvent`] that waits.
    media_event: AtomicU8,
    has_left: AtomicBool,
    peers: OnceLock<Weak<dyn Peers>>,
    copies: Copies,
    /// How often its tasks have been ended by another.
    ended: AtomicU64,
    /// Held while a task changes the disk.
    gate: RwLock<()>,
}

impl State {
    fn raise(&self, sense: Sense) {
        let mut queue = self.lock();
        if queue.len() < MAX_WAITING && !queue.contains(&sense) {
            queue.push_back(sense);
        }
        self.is_waiting.store(true, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Sense>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> NexusName {
        NexusName {
            initiator: "iqn.2026-01.test:pc".to_owned(),
            isid: [0x80, 0, 0, 0, 0, 1],
        }
    }

    #[test]
    fn a_new_nexus_is_told_once_that_it_is_new() {
        let nexus = Attentions::default().connect(&name());
        assert_eq!(nexus.take(), Some(Sense::RESET_OCCURRED));
        assert_eq!(nexus.take(), None);
    }

    #[test]
    fn an_attention_reaches_the_others_and_not_its_cause() {
        let attentions = Attentions::default();
        let (mine, other) = (attentions.connect(&name()), attentions.connect(&name()));
        mine.take();
        other.take();
        attentions.raise(Sense::DEVICE_RESET_OCCURRED, Some(&mine));
        assert_eq!(mine.take(), None);
        assert_eq!(other.take(), Some(Sense::DEVICE_RESET_OCCURRED));
    }

    #[test]
    fn the_queue_of_a_nexus_that_never_asks_stays_short() {
        let attentions = Attentions::default();
        let nexus = attentions.connect(&name());
        for ascq in 0..=255 {
            attentions.raise(
                Sense {
                    ascq,
                    ..Sense::RESET_OCCURRED
                },
                None,
            );
        }
        let mut told = 0;
        while nexus.take().is_some() {
            told += 1;
        }
        assert_eq!(told, MAX_WAITING);
    }
}
