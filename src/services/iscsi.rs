//! The iSCSI door: which disk a login opens.
//!
//! A login proves its boot generation by CHAP: name `MACHINE.GENERATION`, and
//! the secret that only this generation's script carries. The first login of a
//! prepared generation *switches*: the older generation's sessions end, its
//! secret is void, a `reset` overlay starts afresh. Every further login of the
//! current generation (the operating system's after iPXE's, and after a
//! restart of this program) shares the disk as it stands.
//!
//! Invariant: a machine's overlay is open at most once, and never while a
//! session of another generation still touches it. Each machine has a slot
//! whose lock is held while its disk is opened, switched or closed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use disk::overlay::{Caching, HostLoss, OverlayMode as Mode};
use disk::{BaseId, Disk, Overlay as OverlayDisk, SharedDisk};
use iscsi::{
    Attachment, Authentication, Identity, LogicalUnit, Login, LoginRefusal, Secret, Sessions,
    Target, Targets,
};
use uuid::Uuid;

use super::Site;
use crate::boot::{BootPlan, plan};
use crate::inventory::{
    self, Assignment, Generations, Image, ImageRef, Machine, Overlay, OverlayMode,
};
use crate::timeline::Stage;

/// How long a disk without any session stays open: a machine between its
/// loader and its operating system, or one that has just lost its network.
const IDLE_BEFORE_CLOSE: Duration = Duration::from_secs(60);

/// Product name of the disk, as operating systems show it.
const PRODUCT: &str = "VIRTUAL DISK";

/// The disks of all machines, opened at their logins.
pub(crate) struct MachineDisks {
    site: Arc<Site>,
    sessions: OnceLock<Sessions>,
    slots: Mutex<HashMap<Uuid, Arc<Mutex<Slot>>>>,
    /// Golden images in use, by the UUID of their version.
    images: Mutex<HashMap<Uuid, Weak<dyn Disk>>>,
}

/// A machine's place for its open disk.
#[derive(Default)]
struct Slot {
    open: Option<OpenDisk>,
}

/// A machine's disk, open for one boot generation.
struct OpenDisk {
    generation: u64,
    fact: Overlay,
    overlay: Arc<OverlayDisk>,
    target: Arc<Target>,
    /// Sessions that hold the target.
    users: Arc<AtomicUsize>,
    /// Since when nobody has, where somebody looked.
    idle_since: Option<Instant>,
}

impl OpenDisk {
    /// The orderly end: everything durable, nothing left to repair.
    fn settle(&self, machine: impl std::fmt::Display) {
        if let Err(error) = self.overlay.close() {
            tracing::error!(%machine, %error, "closing its overlay");
        }
    }
}

impl MachineDisks {
    /// No disk is open yet.
    pub(crate) fn new(site: Arc<Site>) -> MachineDisks {
        MachineDisks {
            site,
            sessions: OnceLock::new(),
            slots: Mutex::default(),
            images: Mutex::default(),
        }
    }

    /// Closes disks that nobody has used for a while; to be called now and
    /// then.
    pub(crate) fn close_idle(&self) {
        let slots: Vec<_> = lock(&self.slots).values().cloned().collect();
        for slot in slots {
            // A slot that is locked is in use.
            let Ok(mut slot) = slot.try_lock() else {
                continue;
            };
            let Some(open) = &mut slot.open else { continue };
            if open.users.load(Ordering::Acquire) > 0 {
                open.idle_since = None;
                continue;
            }
            let since = *open.idle_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= IDLE_BEFORE_CLOSE {
                open.settle(open.fact.machine);
                slot.open = None;
            }
        }
    }

    /// Closes every disk; for the end of the program, after the sessions'.
    pub(crate) fn close_all(&self) {
        for (_, slot) in lock(&self.slots).drain() {
            if let Some(open) = lock(&slot).open.take() {
                open.settle(open.fact.machine);
            }
        }
    }

    /// Whether a machine has sessions now.
    pub(crate) fn is_in_use(&self, machine: Uuid) -> bool {
        let slot = lock(&self.slots).get(&machine).cloned();
        slot.is_some_and(|slot| {
            lock(&slot)
                .open
                .as_ref()
                .is_some_and(|open| open.users.load(Ordering::Acquire) > 0)
        })
    }

    /// Ends a machine's sessions and closes its disk.
    pub(crate) fn close(&self, machine: &Machine) {
        let slot = self.slot(machine.id);
        let mut slot = lock(&slot);
        self.end_sessions(machine, None);
        if let Some(open) = slot.open.take() {
            open.settle(&machine.name);
        }
    }

    fn slot(&self, machine: Uuid) -> Arc<Mutex<Slot>> {
        Arc::clone(lock(&self.slots).entry(machine).or_default())
    }

    /// Ends the machine's sessions, but for those of the CHAP name `but`.
    fn end_sessions(&self, machine: &Machine, but: Option<&str>) {
        let target = self.site.target_name(machine);
        if let Some(sessions) = self.sessions.get() {
            sessions.close_where(|session| {
                session.target == target && (but.is_none() || session.chap_name.as_deref() != but)
            });
        }
    }

    fn attach(&self, login: &Login) -> Result<Attachment, LoginRefusal> {
        let chap_name = login
            .chap_name
            .as_deref()
            .ok_or(LoginRefusal::AuthenticationFailure)?;
        let (machine, generation) = self.who(login, chap_name)?;
        let slot = self.slot(machine.id);
        let mut slot = lock(&slot);
        // Asked again under the lock: another login may have switched.
        let generations = self.generations(&machine)?;
        let result = match stands(&generations, generation) {
            Standing::Prepared => self.begin(&machine, generation, chap_name, &mut slot),
            Standing::Current => self.resume(&machine, generation, &mut slot),
            Standing::Void => {
                self.site.timeline.record(
                    machine.mac,
                    Stage::Refused,
                    format!("login of boot generation {generation}, which is over: the machine must boot again"),
                );
                return Err(LoginRefusal::AuthenticationFailure);
            }
        };
        match result {
            Ok(()) => {}
            Err(error) => {
                let words = format!("{error:#}");
                tracing::error!(machine = %machine.name, error = words, "opening its disk");
                self.site.timeline.record_boot(
                    machine.mac,
                    generation,
                    Stage::Problem,
                    words.clone(),
                );
                return Err(LoginRefusal::TargetError(words));
            }
        }
        let Some(open) = &slot.open else {
            return Err(LoginRefusal::TargetError("the disk is not open".into()));
        };
        open.users.fetch_add(1, Ordering::AcqRel);
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
                users: Arc::clone(&open.users),
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
        let machine = self
            .site
            .inventory
            .machine_by_name(name)
            .map_err(|_| LoginRefusal::AuthenticationFailure)?;
        Ok((machine, generation))
    }

    fn generations(&self, machine: &Machine) -> Result<Generations, LoginRefusal> {
        self.site
            .inventory
            .generations(machine.id)
            .map_err(|error| LoginRefusal::TargetError(error.to_string()))
    }

    /// The first login of a prepared generation: switches to it.
    fn begin(
        &self,
        machine: &Machine,
        generation: u64,
        chap_name: &str,
        slot: &mut Slot,
    ) -> anyhow::Result<()> {
        let BootPlan::Clone(assignment) = plan(machine) else {
            bail!("nothing is assigned to {} any more", machine.name);
        };
        self.end_sessions(machine, Some(chap_name));
        // The overlay first, then the fact: a crash between the two leaves the
        // generation prepared, and its login comes again. Nothing was written
        // meanwhile, so starting afresh twice harms nothing.
        let (fact, overlay, words) =
            self.ready(machine, &assignment, generation, slot.open.take())?;
        self.site
            .inventory
            .switch_generation(machine.id, generation)?;
        self.site
            .timeline
            .record_boot(machine.mac, generation, Stage::OverlayPrepared, words);
        slot.open = Some(self.open_disk(machine, generation, fact, overlay));
        Ok(())
    }

    /// The overlay a new generation boots from, ready, and what was done, in
    /// words. `open` is the machine's disk as the last generation left it.
    fn ready(
        &self,
        machine: &Machine,
        assignment: &Assignment,
        generation: u64,
        open: Option<OpenDisk>,
    ) -> anyhow::Result<(Overlay, OverlayDisk, String)> {
        let inventory = &self.site.inventory;
        let known = inventory.overlay_of(machine.id, &assignment.image.name)?;
        let (mode, kept) = match (assignment.mode, &known) {
            (OverlayMode::Keep, Some(known)) if known.mode == OverlayMode::Keep => {
                (Mode::Keep, Some(known.version))
            }
            (OverlayMode::Keep, _) => (Mode::Keep, None),
            (OverlayMode::Reset, _) => (Mode::Reset, None),
        };
        // A kept overlay stays on the version it was made from.
        let version = kept.or(assignment.image.version);
        let image = inventory.image(&ImageRef {
            name: assignment.image.name.clone(),
            version,
        })?;
        let golden = self.golden(&image)?;
        let id = base_id(&image);
        let (name, version) = (&image.name, image.version);
        let open = open.filter(|open| {
            let same = known
                .as_ref()
                .is_some_and(|known| known.uuid == open.fact.uuid);
            if !same {
                open.settle(&machine.name);
            }
            same
        });
        let Some(known) = known else {
            let fact = inventory.add_overlay(machine.id, &image, assignment.mode)?;
            let directory = inventory.overlay_directory(fact.uuid);
            let overlay =
                OverlayDisk::create(&directory, golden, id, mode, generation, Caching::WriteBack)
                    .with_context(|| format!("making an overlay for {}", machine.name))?;
            return Ok((fact, overlay, format!("{name}@{version}, a new overlay")));
        };
        let directory = inventory.overlay_directory(known.uuid);
        if !directory.exists() {
            // Put down, but never made: the program died between the two.
            if kept.is_some() {
                tracing::warn!(machine = %machine.name, path = %directory.display(), "its kept overlay is not there; it starts on a new one");
            }
            let overlay =
                OverlayDisk::create(&directory, golden, id, mode, generation, Caching::WriteBack)
                    .with_context(|| format!("making an overlay for {}", machine.name))?;
            let fact = inventory.set_overlay(known.uuid, version, assignment.mode)?;
            return Ok((fact, overlay, format!("{name}@{version}, a new overlay")));
        }
        let unchanged = known.version == version && known.mode == assignment.mode;
        if unchanged {
            let switched = match open {
                Some(open) => open.overlay.switch(generation),
                None => OverlayDisk::open(&directory, Arc::clone(&golden), id, Caching::WriteBack)
                    .and_then(|overlay| overlay.switch(generation)),
            };
            match (switched, mode) {
                (Ok(overlay), Mode::Reset) => {
                    return Ok((known, overlay, format!("{name}@{version}, a fresh overlay")));
                }
                (Ok(overlay), Mode::Keep) => {
                    return Ok((known, overlay, format!("{name}@{version}, its writes kept")));
                }
                // What it holds is thrown away anyway.
                (Err(error), Mode::Reset) => {
                    tracing::warn!(machine = %machine.name, %error, "its old overlay cannot be opened; starting afresh");
                }
                (Err(error), Mode::Keep) => {
                    return Err(error)
                        .with_context(|| format!("opening the overlay of {}", machine.name));
                }
            }
        } else {
            drop(open);
        }
        let overlay =
            OverlayDisk::restart(&directory, golden, id, mode, generation, Caching::WriteBack)
                .with_context(|| format!("starting the overlay of {} afresh", machine.name))?;
        let fact = inventory.set_overlay(known.uuid, version, assignment.mode)?;
        Ok((fact, overlay, format!("{name}@{version}, a fresh overlay")))
    }

    /// A further login of the current generation: shares its disk, or opens
    /// it as that generation left it (after a restart of this program).
    fn resume(&self, machine: &Machine, generation: u64, slot: &mut Slot) -> anyhow::Result<()> {
        if slot
            .open
            .as_ref()
            .is_some_and(|open| open.generation == generation)
        {
            return Ok(());
        }
        slot.open = None;
        let (fact, directory) = self.overlay_of_generation(machine, generation)?.ok_or_else(|| {
            anyhow!("there is no overlay of boot generation {generation}; the machine must boot again")
        })?;
        let version = ImageRef {
            name: fact.image.clone(),
            version: Some(fact.version),
        };
        let image = self.site.inventory.image(&version)?;
        let golden = self.golden(&image)?;
        let overlay = OverlayDisk::open(&directory, golden, base_id(&image), Caching::WriteBack)
            .with_context(|| format!("opening the overlay of {}", machine.name))?;
        // What the machine holds in its page cache must still match its disk.
        if overlay.host_loss() == HostLoss::LostWrites {
            bail!(
                "the server itself went down under boot generation {generation}, \
                 and writes it had answered are gone; the machine must boot again"
            );
        }
        slot.open = Some(self.open_disk(machine, generation, fact, overlay));
        Ok(())
    }

    /// The overlay the machine's current generation booted from, whatever is
    /// assigned to it now.
    fn overlay_of_generation(
        &self,
        machine: &Machine,
        generation: u64,
    ) -> anyhow::Result<Option<(Overlay, std::path::PathBuf)>> {
        for fact in self.site.inventory.overlays()? {
            if fact.machine != machine.id {
                continue;
            }
            let directory = self.site.inventory.overlay_directory(fact.uuid);
            match OverlayDisk::inspect(&directory) {
                Ok(found) if found.generation == generation => return Ok(Some((fact, directory))),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(machine = %machine.name, %error, "an overlay's head cannot be read")
                }
            }
        }
        Ok(None)
    }

    fn open_disk(
        &self,
        machine: &Machine,
        generation: u64,
        fact: Overlay,
        overlay: OverlayDisk,
    ) -> OpenDisk {
        let overlay = Arc::new(overlay);
        let identity = Identity::new(*machine.id.as_bytes(), PRODUCT);
        let disk: SharedDisk = Arc::clone(&overlay) as SharedDisk;
        OpenDisk {
            generation,
            fact,
            overlay,
            target: Arc::new(Target {
                name: self.site.target_name(machine),
                units: vec![Arc::new(LogicalUnit::new(disk, identity))],
            }),
            users: Arc::default(),
            idle_since: None,
        }
    }

    /// A golden image, opened once for all machines.
    fn golden(&self, image: &Image) -> anyhow::Result<SharedDisk> {
        let mut images = lock(&self.images);
        if let Some(open) = images.get(&image.uuid).and_then(Weak::upgrade) {
            return Ok(open);
        }
        let raw = disk::image::open(&image.directory, &base_id(image))
            .with_context(|| format!("opening image {}@{}", image.name, image.version))?;
        let open: SharedDisk = Arc::new(raw);
        images.retain(|_, weak| weak.strong_count() > 0);
        images.insert(image.uuid, Arc::downgrade(&open));
        Ok(open)
    }
}

impl Targets for MachineDisks {
    fn serving(&self, sessions: Sessions) {
        let _ = self.sessions.set(sessions);
    }

    fn authentication(&self, _login: &Login) -> Authentication {
        Authentication::Chap
    }

    fn chap_secret(&self, login: &Login, chap_name: &str) -> Option<Secret> {
        let (name, generation) = inventory::parse_chap_name(chap_name)?;
        if let Some(target) = &login.target
            && self.site.machine_in(target) != Some(name)
        {
            return None;
        }
        let machine = self.site.inventory.machine_by_name(name).ok()?;
        let generations = self.site.inventory.generations(machine.id).ok()?;
        let secret = match stands(&generations, generation) {
            Standing::Prepared => generations.prepared?.secret,
            Standing::Current => generations.current_secret?,
            Standing::Void => {
                self.site.timeline.record(
                    machine.mac,
                    Stage::Refused,
                    format!("login of boot generation {generation}, which is over: the machine must boot again"),
                );
                return None;
            }
        };
        Some(Secret::new(secret.into_bytes()))
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
}

/// What a generation's number means just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Prepared,
    Current,
    Void,
}

fn stands(generations: &Generations, number: u64) -> Standing {
    match &generations.prepared {
        Some(prepared) if prepared.number == number => Standing::Prepared,
        _ if number == generations.current && number > 0 => Standing::Current,
        _ => Standing::Void,
    }
}

/// Ends a session in the timeline.
struct SessionGuard {
    site: Arc<Site>,
    machine: Machine,
    generation: u64,
    who: &'static str,
    users: Arc<AtomicUsize>,
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.users.fetch_sub(1, Ordering::AcqRel);
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

fn base_id(image: &Image) -> BaseId {
    BaseId {
        uuid: *image.uuid.as_bytes(),
        sha256: image.sha256,
        size_bytes: image.size_bytes,
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
