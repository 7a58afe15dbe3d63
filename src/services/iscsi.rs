//! The iSCSI door: which disk a login opens.
//!
//! A login proves its boot generation by CHAP: name `MACHINE.GENERATION`, and
//! the secret that only this generation's script carries. The first login of a
//! prepared generation *switches*: the older generation's sessions end, its
//! secret is void, a `reset` overlay starts afresh. Every further login of the
//! current generation (the operating system's after iPXE's, and after a
//! restart of this program) shares the disk as it stands.
//!
//! A machine's disk is an overlay above a golden image (`overlays`), or an own
//! disk that is written in place (`direct`).
//!
//! Invariant: a machine's disk is open at most once, and never while a
//! session of another generation still touches it. Each machine has a slot
//! whose lock is held while its disk is opened, switched or closed; no other
//! lock is, so that one machine's slow disk holds up nobody else.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use disk::{DiskError, SharedDisk};
use iscsi::{
    Attachment, Authentication, ChapSecrets, Identity, LogicalUnit, Login, LoginRefusal,
    LoginStatus, Refused, Secret, Sessions, Target, Targets,
};
use uuid::Uuid;

use self::direct::{Direct, OwnDisks};
use self::overlays::{Opened, Overlays, Preparation};
use super::Site;
use crate::boot::{BootPlan, plan};
use crate::inventory::{self, Generations, Machine, Overlay, OwnDisk, Prepared};
use crate::timeline::Stage;

pub(crate) use overlays::Room;
pub(crate) use portal::SiteTargets;

mod direct;
mod images;
mod overlays;
pub(crate) mod plain;
mod points;
mod portal;
#[cfg(test)]
mod tests;
mod view;

/// How long a disk without any session stays open: a machine between its
/// loader and its operating system, or one that has just lost its network.
const IDLE_BEFORE_CLOSE: Duration = Duration::from_secs(60);

/// How long nothing must have been written before it is noted durably that
/// nothing is unflushed; the next write pays for that with one `fdatasync`.
const QUIET_BEFORE_SETTLE: Duration = Duration::from_secs(60);

/// How long a login that was ended on its way in may take to let go of a disk.
const LETTING_GO: Duration = Duration::from_secs(5);

/// How long a login waits for one that is opening the same disk. A machine
/// that tries again and again while its disk is slow to open must not fill the
/// pool of login threads, which all machines share.
const TURN: Duration = Duration::from_secs(2);

/// Product name of the disk, as operating systems show it.
const PRODUCT: &str = "VIRTUAL DISK";

/// The disks of all machines, opened at their logins.
pub(crate) struct MachineDisks {
    site: Arc<Site>,
    sessions: OnceLock<Sessions>,
    slots: Mutex<HashMap<Uuid, Arc<Mutex<Slot>>>>,
    /// What is open for readers only, by machine.
    views: Mutex<HashMap<Uuid, view::Place>>,
    /// How many wait for a slot: whoever merges layers meanwhile gives way.
    waiting: AtomicUsize,
    overlays: Overlays,
    own: OwnDisks,
}

/// One who waits for a slot.
struct Waiting<'a>(&'a AtomicUsize);

impl Waiting<'_> {
    fn new(count: &AtomicUsize) -> Waiting<'_> {
        count.fetch_add(1, Ordering::Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A machine's place for its open disk.
#[derive(Default)]
struct Slot {
    open: Option<OpenDisk>,
}

/// A machine's disk, open for one boot generation.
struct OpenDisk {
    generation: u64,
    medium: Medium,
    /// Every session holds it too.
    target: Arc<Target>,
    /// Since when no session has held it, where somebody looked.
    idle_since: Option<Instant>,
    /// Bytes its sessions had written when somebody looked, and since when.
    written: (u64, Option<Instant>),
    /// Whether little space was left to it when somebody looked.
    short_of_space: bool,
}

/// What a machine's open disk is.
enum Medium {
    /// Its private writes above an image.
    Overlay {
        fact: Overlay,
        overlay: Arc<disk::Overlay>,
    },
    /// A disk file, written in place.
    Own { fact: OwnDisk, disk: Arc<Direct> },
}

impl Medium {
    /// For moments of rest: nothing is unflushed afterwards, durably noted.
    fn settle(&self) -> Result<(), DiskError> {
        match self {
            Medium::Overlay { overlay, .. } => overlay.settle(),
            Medium::Own { disk, .. } => disk.settle(),
        }
    }
}

impl From<Opened> for Medium {
    fn from(opened: Opened) -> Medium {
        Medium::Overlay {
            fact: opened.fact,
            overlay: Arc::new(opened.disk),
        }
    }
}

impl OpenDisk {
    fn new(site: &Site, machine: &Machine, generation: u64, medium: Medium) -> OpenDisk {
        // An own disk is recognised wherever it goes.
        let (disk, id) = match &medium {
            Medium::Overlay { overlay, .. } => (Arc::clone(overlay) as SharedDisk, machine.id),
            Medium::Own { fact, disk } => (Arc::clone(disk) as SharedDisk, fact.id),
        };
        let identity = Identity::new(*id.as_bytes(), PRODUCT);
        let unit = Arc::new(LogicalUnit::new(disk, identity));
        OpenDisk {
            generation,
            medium,
            target: Arc::new(Target::of_one(site.target_name(machine), unit)),
            idle_since: None,
            written: (0, None),
            short_of_space: false,
        }
    }

    /// Whether a session holds it, or a login on its way in.
    fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.target) > 1
    }

    /// Waits until nobody else holds it, once its sessions have been ended:
    /// logins that were on their way in let go a moment later.
    fn wait_until_free(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + LETTING_GO;
        while self.is_in_use() {
            if Instant::now() >= deadline {
                bail!("a session of its last boot does not end");
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// The orderly end: everything durable, nothing left to repair.
    fn close(self) {
        let closed = match &self.medium {
            Medium::Overlay { overlay, .. } => overlay.close(),
            Medium::Own { disk, .. } => disk.settle(),
        };
        if let Err(error) = closed {
            tracing::error!(target_name = self.target.name, %error, "closing its disk");
        }
    }

    /// The overlay alone, which nobody else holds; an own disk is closed.
    fn into_overlay(self) -> Option<Opened> {
        match self.medium {
            Medium::Overlay { fact, overlay } => {
                drop(self.target);
                let disk = Arc::into_inner(overlay)?;
                Some(Opened { fact, disk })
            }
            Medium::Own { .. } => {
                self.close();
                None
            }
        }
    }

    /// Whether it is the own disk of an id.
    fn is_own(&self, id: Uuid) -> bool {
        matches!(&self.medium, Medium::Own { fact, .. } if fact.id == id)
    }
}

impl MachineDisks {
    /// No disk is open yet.
    pub(crate) fn new(site: Arc<Site>) -> MachineDisks {
        MachineDisks {
            overlays: Overlays::new(Arc::clone(&site.inventory)),
            own: OwnDisks::new(Arc::clone(&site.inventory)),
            site,
            sessions: OnceLock::new(),
            slots: Mutex::default(),
            views: Mutex::default(),
            waiting: AtomicUsize::new(0),
        }
    }

    /// How overlays are made and opened from now on.
    pub(crate) fn with_room(mut self, room: Room) -> MachineDisks {
        self.overlays.room = room;
        self
    }

    /// Closes disks that nobody has used for a while, and settles those that
    /// are at rest, so that the loss of the host then costs nobody his boot;
    /// to be called now and then.
    pub(crate) fn tend(&self, now: Instant) {
        self.tend_views(now);
        let mut written: HashMap<String, u64> = HashMap::new();
        for session in self.sessions.get().map(Sessions::list).unwrap_or_default() {
            *written.entry(session.target).or_default() += session.bytes_written;
        }
        let slots: Vec<_> = lock(&self.slots).values().cloned().collect();
        for slot in slots {
            // A slot that is locked is in use.
            let Ok(mut slot) = slot.try_lock() else {
                continue;
            };
            let Some(open) = &mut slot.open else { continue };
            let written = written.get(&open.target.name).copied().unwrap_or_default();
            if open.is_in_use() {
                open.idle_since = None;
                let quiet_since = match open.written {
                    (before, Some(since)) if before == written => since,
                    _ => now,
                };
                open.written = (written, Some(quiet_since));
                if now.saturating_duration_since(quiet_since) < QUIET_BEFORE_SETTLE {
                    continue;
                }
            } else if now.saturating_duration_since(*open.idle_since.get_or_insert(now))
                >= IDLE_BEFORE_CLOSE
            {
                if let Some(open) = slot.open.take() {
                    open.close();
                }
                continue;
            }
            if let Err(error) = open.medium.settle() {
                tracing::error!(target_name = open.target.name, %error, "settling its disk");
            }
        }
    }

    /// Closes every disk; for the end of the program, after the sessions'.
    pub(crate) fn close_all(&self) {
        lock(&self.views).clear();
        for (_, slot) in std::mem::take(&mut *lock(&self.slots)) {
            if let Some(open) = lock(&slot).open.take() {
                open.close();
            }
        }
    }

    /// Whether a machine has sessions now.
    pub(crate) fn is_in_use(&self, machine: Uuid) -> bool {
        let slot = lock(&self.slots).get(&machine).cloned();
        slot.is_some_and(|slot| {
            let slot = self.wait_for(&slot);
            slot.open.as_ref().is_some_and(OpenDisk::is_in_use)
        })
    }

    /// Ends a machine's sessions, closes its disk, and does `work` before
    /// anyone can open it again.
    pub(crate) fn while_closed(&self, machine: &Machine, work: &mut dyn FnMut()) {
        let slot = self.slot(machine.id);
        let mut slot = self.wait_for(&slot);
        self.close_view(machine.id);
        self.end_sessions(machine, slot.open.as_ref(), None);
        if let Some(open) = slot.open.take() {
            if let Err(error) = open.wait_until_free() {
                tracing::error!(machine = %machine.name, %error, "closing its disk");
            }
            open.close();
        }
        work();
    }

    /// Does `work` with an overlay that a machine has open, or with none where
    /// it has it closed: nobody opens it meanwhile.
    pub(crate) fn with_overlay(
        &self,
        fact: &Overlay,
        work: &mut dyn FnMut(Option<&disk::Overlay>),
    ) {
        let slot = self.slot(fact.machine);
        let slot = self.wait_for(&slot);
        self.close_view(fact.machine);
        match slot.open.as_ref().map(|open| &open.medium) {
            Some(Medium::Overlay { fact: its, overlay }) if its.uuid == fact.uuid => {
                work(Some(overlay));
            }
            _ => work(None),
        }
    }

    /// Closes an own disk that no session has open any more, whatever machine's
    /// it was; gives who has it open still.
    pub(crate) fn release_own_disk(&self, disk: Uuid) -> Result<(), String> {
        self.close_view_of(disk);
        let slots: Vec<_> = lock(&self.slots).values().cloned().collect();
        for slot in slots {
            // A slot that is locked belongs to who is logging in now: one that
            // begins with this disk is refused, or refuses the asker.
            let Ok(mut slot) = slot.try_lock() else {
                continue;
            };
            match slot.open.take_if(|open| open.is_own(disk)) {
                Some(open) if open.is_in_use() => {
                    let machine = self.site.machine_in(&open.target.name);
                    let user = format!("machine {}", machine.unwrap_or("somebody"));
                    slot.open = Some(open);
                    return Err(user);
                }
                Some(open) => open.close(),
                None => {}
            }
        }
        Ok(())
    }

    /// Locks a slot, unless somebody else is at it for too long.
    fn lock_in_turn<'a>(&self, slot: &'a Mutex<Slot>) -> Option<MutexGuard<'a, Slot>> {
        let _waiting = Waiting::new(&self.waiting);
        let deadline = Instant::now() + TURN;
        loop {
            match slot.try_lock() {
                Ok(slot) => return Some(slot),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return None,
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Locks a slot, however long somebody else is at it.
    fn wait_for<'a>(&self, slot: &'a Mutex<Slot>) -> MutexGuard<'a, Slot> {
        let _waiting = Waiting::new(&self.waiting);
        lock(slot)
    }

    /// Whether nobody waits for what a thread with much time has in hand.
    pub(crate) fn is_nobody_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }

    fn slot(&self, machine: Uuid) -> Arc<Mutex<Slot>> {
        Arc::clone(lock(&self.slots).entry(machine).or_default())
    }

    /// Ends the machine's sessions, but for those of the CHAP name `but`: those
    /// by its name of now, and those of its open disk, which may be by the name
    /// it had.
    fn end_sessions(&self, machine: &Machine, open: Option<&OpenDisk>, but: Option<&str>) {
        let target = self.site.target_name(machine);
        if let Some(sessions) = self.sessions.get() {
            sessions.close_where(|session| {
                let is_its = session.target == target
                    || open.is_some_and(|open| open.target.name == session.target);
                is_its && (but.is_none() || session.chap_name.as_deref() != but)
            });
        }
    }

    fn attach(&self, login: &Login) -> Result<Attachment, LoginRefusal> {
        let chap_name = login
            .chap_name
            .as_deref()
            .ok_or(LoginRefusal::AuthenticationFailure)?;
        let (machine, _) = self.who(login, chap_name)?;
        let slot = self.slot(machine.id);
        let Some(mut slot) = self.lock_in_turn(&slot) else {
            return Err(LoginRefusal::ServiceUnavailable);
        };
        self.close_view(machine.id);
        // Asked again under the lock: another login may have switched, and an
        // operator may have changed the machine.
        let id = machine.id;
        let (machine, generation) = self.who(login, chap_name)?;
        if machine.id != id {
            return Err(LoginRefusal::AuthenticationFailure);
        }
        let generations = self.generations(&machine)?;
        let result = match stands(&generations, generation) {
            Standing::Prepared(prepared) => self.begin(&machine, prepared, chap_name, &mut slot),
            Standing::Current => self.resume(&machine, generation, &mut slot),
            Standing::Void(why) => {
                self.refuse_void(&machine, generation, why);
                return Err(LoginRefusal::AuthenticationFailure);
            }
        };
        let target_error = |error: anyhow::Error| {
            // The target logs it.
            let words = format!("{error:#}");
            let timeline = &self.site.timeline;
            timeline.record_boot(machine.mac, generation, Stage::Problem, words.clone());
            LoginRefusal::TargetError(words)
        };
        let open = result.map_err(target_error)?;
        open.idle_since = None;
        let who = initiator_kind(login);
        tracing::info!(machine = %machine.name, generation, from = who, peer = %login.peer, "logged in");
        self.site
            .timeline
            .record_boot(machine.mac, generation, Stage::LoggedIn, who);
        Ok(Attachment {
            target: Arc::clone(&open.target),
            guard: Box::new(SessionGuard {
                site: Arc::clone(&self.site),
                machine,
                generation,
                who,
            }),
        })
    }

    /// The machine and generation a login names; the target must be its own.
    fn who(&self, login: &Login, chap_name: &str) -> Result<(Machine, u64), LoginRefusal> {
        let (name, generation) =
            inventory::parse_chap_name(chap_name).ok_or(LoginRefusal::AuthenticationFailure)?;
        let target = login.target.as_deref().ok_or(LoginRefusal::NotFound)?;
        if self.site.machine_in(target) != Some(name) {
            return Err(LoginRefusal::AuthorizationFailure);
        }
        match self.site.inventory.machine_by_name(name) {
            Ok(machine) => Ok((machine, generation)),
            Err(inventory::Error::NotFound(_)) => Err(LoginRefusal::AuthenticationFailure),
            Err(error) => Err(LoginRefusal::TargetError(error.to_string())),
        }
    }

    fn generations(&self, machine: &Machine) -> Result<Generations, LoginRefusal> {
        self.site
            .inventory
            .generations(machine.id)
            .map_err(|error| LoginRefusal::TargetError(error.to_string()))
    }

    fn refuse_void(&self, machine: &Machine, generation: u64, why: &str) {
        self.site.timeline.record(
            machine.mac,
            Stage::Refused,
            format!(
                "login of boot generation {generation}, which {why}: the machine must boot again"
            ),
        );
    }

    /// The first login of a prepared generation: switches to it.
    fn begin<'a>(
        &self,
        machine: &Machine,
        prepared: &Prepared,
        chap_name: &str,
        slot: &'a mut Slot,
    ) -> anyhow::Result<&'a mut OpenDisk> {
        let generation = prepared.number;
        // What cannot be served is refused before anybody is hurt.
        let boots = match plan(machine) {
            BootPlan::Clone { image, mode } => {
                let preparation = self.overlays.prepare(machine, &image, mode, prepared)?;
                Boots::Overlay(preparation)
            }
            BootPlan::Direct(disk) => {
                let disk = self.site.inventory.own_disk_of(disk)?;
                // Its own last boot may have it open.
                let is_here = slot.open.as_ref().is_some_and(|open| open.is_own(disk.id));
                if !is_here {
                    self.release_own_disk(disk.id)
                        .map_err(|user| anyhow!("{user} still has disk {} open", disk.name))?;
                    self.own.check(&disk)?;
                }
                Boots::Own(disk)
            }
            BootPlan::Unknown | BootPlan::Unassigned => {
                bail!("nothing is assigned to {} any more", machine.name)
            }
        };
        self.end_sessions(machine, slot.open.as_ref(), Some(chap_name));
        if let Some(open) = &slot.open {
            open.wait_until_free()?;
        }
        let open = slot.open.take().and_then(OpenDisk::into_overlay);
        // The disk first, then the fact: a crash between the two leaves the
        // generation prepared, and its login comes again. Nothing was written
        // meanwhile, so starting afresh twice harms nothing.
        let (medium, words) = match boots {
            Boots::Overlay(preparation) => {
                let (opened, words) = self.overlays.switch(machine, preparation, open)?;
                (Medium::from(opened), words)
            }
            Boots::Own(fact) => {
                if let Some(open) = open {
                    overlays::settle(&open, &machine.name);
                }
                let disk = Arc::new(self.own.begin(machine, &fact, generation)?);
                let words = format!("disk {}, written in place", fact.name);
                (Medium::Own { fact, disk }, words)
            }
        };
        self.site
            .inventory
            .switch_generation(machine.id, generation)?;
        self.site
            .timeline
            .record_boot(machine.mac, generation, Stage::OverlayPrepared, words);
        let disk = OpenDisk::new(&self.site, machine, generation, medium);
        Ok(slot.open.insert(disk))
    }

    /// A further login of the current generation: shares its disk, or opens
    /// it as that generation left it (after a restart of this program).
    fn resume<'a>(
        &self,
        machine: &Machine,
        generation: u64,
        slot: &'a mut Slot,
    ) -> anyhow::Result<&'a mut OpenDisk> {
        // It may have been removed by an operator.
        let inventory = &self.site.inventory;
        let is_its = |open: &OpenDisk| {
            let is_known = match &open.medium {
                Medium::Overlay { fact, .. } => inventory.overlay(fact.uuid).is_ok(),
                Medium::Own { fact, .. } => inventory.own_disk_of(fact.id).is_ok(),
            };
            open.generation == generation && is_known
        };
        let disk = match slot.open.take() {
            Some(open) if is_its(&open) => open,
            stale => {
                if let Some(stale) = stale {
                    self.end_sessions(machine, Some(&stale), None);
                    stale.wait_until_free()?;
                }
                let medium = match self.own.reopen(machine, generation)? {
                    Some((fact, disk)) => Medium::Own {
                        fact,
                        disk: Arc::new(disk),
                    },
                    None => Medium::from(self.overlays.reopen(machine, generation)?),
                };
                OpenDisk::new(&self.site, machine, generation, medium)
            }
        };
        Ok(slot.open.insert(disk))
    }
}

impl Targets for MachineDisks {
    fn serving(&self, sessions: Sessions) {
        let _ = self.sessions.set(sessions);
    }

    fn authentication(&self, _login: &Login) -> Authentication {
        Authentication::Chap
    }

    fn chap_secret(&self, login: &Login, chap_name: &str) -> Option<ChapSecrets> {
        let (name, generation) = inventory::parse_chap_name(chap_name)?;
        if let Some(target) = &login.target
            && self.site.machine_in(target) != Some(name)
        {
            return None;
        }
        let machine = self.site.inventory.machine_by_name(name).ok()?;
        let generations = self.site.inventory.generations(machine.id).ok()?;
        let secret = match stands(&generations, generation) {
            Standing::Prepared(prepared) => &prepared.secret,
            Standing::Current => generations.current_secret.as_ref()?,
            Standing::Void(why) => {
                self.refuse_void(&machine, generation, why);
                return None;
            }
        };
        Some(Secret::new(secret.as_bytes()).into())
    }

    fn open(&self, login: &Login) -> Result<Attachment, LoginRefusal> {
        self.attach(login)
    }

    fn discover(&self, login: &Login) -> Vec<String> {
        // Whoever has proved to be a machine sees its own disk.
        let name = login
            .chap_name
            .as_deref()
            .and_then(inventory::parse_chap_name);
        let machine = name.and_then(|(name, _)| self.site.inventory.machine_by_name(name).ok());
        machine
            .map(|machine| self.site.target_name(&machine))
            .into_iter()
            .collect()
    }

    fn refused(&self, _login: &Login, refused: &Refused<'_>) {
        if refused.status != LoginStatus::AUTHENTICATION_FAILURE {
            return;
        }
        let claimed = refused.claimed_name.and_then(inventory::parse_chap_name);
        let Some((name, generation)) = claimed else {
            return;
        };
        let Ok(machine) = self.site.inventory.machine_by_name(name) else {
            return;
        };
        // Of a generation that is void, `chap_secret` has said so.
        let stands = self
            .generations(&machine)
            .is_ok_and(|all| !matches!(stands(&all, generation), Standing::Void(_)));
        if stands {
            let words = format!("login of boot generation {generation}: {}", refused.reason);
            let timeline = &self.site.timeline;
            timeline.record(machine.mac, Stage::Refused, words);
        }
    }
}

/// What a prepared generation boots from: found, and nothing changed yet.
enum Boots {
    Overlay(Preparation),
    Own(OwnDisk),
}

/// What a generation's number means just now.
enum Standing<'a> {
    Prepared(&'a Prepared),
    Current,
    /// Why nobody logs in with it.
    Void(&'static str),
}

fn stands(generations: &Generations, number: u64) -> Standing<'_> {
    match &generations.prepared {
        Some(prepared) if prepared.number == number => Standing::Prepared(prepared),
        _ if number == generations.current && number > 0 => Standing::Current,
        _ if number < generations.current => Standing::Void("is over"),
        _ => Standing::Void("nobody has prepared"),
    }
}

/// Ends a session in the timeline.
struct SessionGuard {
    site: Arc<Site>,
    machine: Machine,
    generation: u64,
    who: &'static str,
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        tracing::info!(machine = %self.machine.name, from = self.who, "session ended");
        self.site.timeline.record_boot(
            self.machine.mac,
            self.generation,
            Stage::LoggedOut,
            self.who,
        );
    }
}

/// Who logs in, by the naming authority in its ISID (RFC 7143 section
/// 11.12.5): iPXE and open-iscsi each have one of their own.
fn initiator_kind(login: &Login) -> &'static str {
    match login.isid {
        [0x40, 0x00, 0x27, 0x23, ..] => "the loader (iPXE)",
        [0x00, 0x02, 0x3d, ..] => "the operating system (Linux)",
        [0x40, 0x00, 0x01, 0x37, ..] => "the operating system (Windows)",
        _ => "an initiator",
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
