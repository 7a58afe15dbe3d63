//! Which overlay a boot generation gets, and how it is made ready.
//!
//! The inventory says which overlay is a machine's; what it *is* (mode, image,
//! generation) is said by its own head. The two are written one after the
//! other, so after a crash the fact may be behind: the head decides, and the
//! fact is put right. What may hold writes that must live on is never replaced
//! without being asked: what cannot be opened then is refused, with words.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use disk::overlay::{Caching, HostLoss};
use disk::{BaseId, OpenError, Overlay as OverlayDisk, SharedDisk};
use uuid::Uuid;

use super::images::OpenImages;
use crate::inventory::{Image, ImageRef, Inventory, Machine, Name, Overlay, OverlayMode, Prepared};

/// When a write to a `keep` overlay is answered.
const CACHING: Caching = Caching::WriteBack;

/// The overlays of all machines.
pub(super) struct Overlays {
    inventory: Arc<Inventory>,
    images: OpenImages,
    pub(super) room: Room,
}

/// How much overlays may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Room {
    /// The most each of those made from now on may hold.
    pub(crate) quota_bytes: Option<u64>,
    /// What is to stay free of the file system they lie on.
    pub(crate) reserve_bytes: u64,
}

/// An overlay open for a boot generation.
pub(super) struct Opened {
    pub(super) fact: Overlay,
    pub(super) disk: OverlayDisk,
}

/// What a prepared generation will boot from: found, and nothing changed yet.
pub(super) struct Preparation {
    fact: Option<Overlay>,
    image: Arc<Image>,
    golden: SharedDisk,
    mode: OverlayMode,
    generation: u64,
    step: Step,
}

/// What the next boot of a machine begins with.
pub(super) enum Beginning {
    /// An image as it is.
    Image(SharedDisk),
    /// The writes of the boots before.
    Overlay(Overlay),
}

/// What is to be done with a machine's overlay at a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// There is none yet.
    Create,
    /// Its writes live on.
    Keep,
    /// It starts afresh.
    Restart,
    /// It cannot be read, and nothing in it must live on.
    Replace,
}

impl Overlays {
    pub(super) fn new(inventory: Arc<Inventory>) -> Overlays {
        Overlays {
            inventory,
            images: OpenImages::default(),
            room: Room::default(),
        }
    }

    /// Finds what `machine` boots from in the generation `prepared`; refuses
    /// what cannot be served, before anything has been changed.
    pub(super) fn prepare(
        &self,
        machine: &Machine,
        assigned: &ImageRef,
        mode: OverlayMode,
        prepared: &Prepared,
    ) -> anyhow::Result<Preparation> {
        let fact = self.inventory.overlay_of(machine.id, &assigned.name)?;
        let (step, base) = match &fact {
            None => (Step::Create, None),
            Some(fact) => self.look(machine, fact, mode, prepared)?,
        };
        let image = match base {
            // A kept overlay stays on the version it was made from.
            Some(base) => self.image_of(&assigned.name, base).ok_or_else(|| {
                anyhow!(
                    "the kept overlay of {} lies on a version of image {} that is not here any \
                     more ({base}): put it back{}",
                    machine.name,
                    assigned.name,
                    or_give_up(fact.as_ref()),
                )
            })?,
            None => self.inventory.image(assigned)?,
        };
        let golden = self.images.open(&image)?;
        Ok(Preparation {
            fact,
            image,
            golden,
            mode,
            generation: prepared.number,
            step,
        })
    }

    /// What the next boot of `machine` begins with, as things stand; changes
    /// nothing, and opens no overlay.
    pub(super) fn beginning(
        &self,
        machine: &Machine,
        assigned: &ImageRef,
        mode: OverlayMode,
    ) -> anyhow::Result<Beginning> {
        if let Some(fact) = self.inventory.overlay_of(machine.id, &assigned.name)?
            && mode == OverlayMode::Keep
        {
            let directory = self.inventory.overlay_directory(fact.uuid);
            match OverlayDisk::inspect(&directory) {
                Ok(head) if head.mode == OverlayMode::Keep => return Ok(Beginning::Overlay(fact)),
                Ok(_) => {}
                Err(OpenError::Missing { .. }) if fact.mode == OverlayMode::Reset => {}
                Err(error) => bail!("the overlay of {} cannot be opened: {error}", machine.name),
            }
        }
        let image = self.inventory.image(assigned)?;
        Ok(Beginning::Image(self.images.open(&image)?))
    }

    /// An overlay that nobody has open, to be read.
    pub(super) fn view(&self, fact: &Overlay) -> anyhow::Result<SharedDisk> {
        let directory = self.inventory.overlay_directory(fact.uuid);
        let base = OverlayDisk::inspect(&directory)?.base;
        let image = self.image_of(&fact.image, base).ok_or_else(|| {
            anyhow!(
                "the image below the overlay is not here any more: {}@{} ({base})",
                fact.image,
                fact.version
            )
        })?;
        let golden = self.images.open(&image)?;
        let view = OverlayDisk::view(&directory, None, golden, base)?;
        Ok(Arc::new(view))
    }

    /// What is to be done with an overlay there is, and the image it must stay
    /// on.
    fn look(
        &self,
        machine: &Machine,
        fact: &Overlay,
        mode: OverlayMode,
        prepared: &Prepared,
    ) -> anyhow::Result<(Step, Option<BaseId>)> {
        let must_live_on = mode == OverlayMode::Keep && fact.mode == OverlayMode::Keep;
        // The fact is put down before the files: one made for this very
        // generation, whose files are not there, was cut short in between.
        let is_new = fact.created >= prepared.at;
        let directory = self.inventory.overlay_directory(fact.uuid);
        match OverlayDisk::inspect(&directory) {
            Ok(head) if mode == OverlayMode::Keep && head.mode == OverlayMode::Keep => {
                Ok((Step::Keep, Some(head.base)))
            }
            Ok(_) => Ok((Step::Restart, None)),
            Err(OpenError::Missing { .. }) if !directory.exists() && (is_new || !must_live_on) => {
                Ok((Step::Create, None))
            }
            Err(error) if must_live_on => bail!(
                "the kept overlay of {} cannot be opened ({error}): put it back{}",
                machine.name,
                or_give_up(Some(fact)),
            ),
            Err(error) => {
                tracing::warn!(machine = %machine.name, %error, "its old overlay cannot be read; starting afresh");
                Ok((Step::Replace, None))
            }
        }
    }

    /// Makes it ready and says in words what was done. `open` is the machine's
    /// overlay as the last generation left it, which nobody uses any more.
    ///
    /// May come again for the same generation, after a crash or an error.
    /// Nothing has been written in it then, so starting afresh harms nothing.
    pub(super) fn switch(
        &self,
        machine: &Machine,
        preparation: Preparation,
        open: Option<Opened>,
    ) -> anyhow::Result<(Opened, String)> {
        let Preparation {
            fact,
            image,
            golden,
            mode,
            generation,
            step,
        } = preparation;
        let fact = match fact {
            Some(fact) => fact,
            None => self.inventory.add_overlay(machine.id, &image, mode)?,
        };
        let open = match open {
            Some(open) if open.fact.uuid == fact.uuid => Some(open.disk),
            Some(other) => {
                settle(&other, &machine.name);
                None
            }
            None => None,
        };
        let directory = self.inventory.overlay_directory(fact.uuid);
        let id = image.base_id();
        let create = |golden| {
            OverlayDisk::create(&directory, golden, id, mode, generation, CACHING)
                .and_then(|made| match self.room.quota_bytes {
                    Some(quota) => made.set_quota(Some(quota)).map(|()| made),
                    None => Ok(made),
                })
                .with_context(|| format!("making an overlay for {}", machine.name))
        };
        let (disk, done) = match step {
            Step::Create => (create(golden)?, "a new overlay"),
            Step::Keep => {
                let switched = match open {
                    Some(open) => open.switch(generation),
                    None => OverlayDisk::open(&directory, golden, id, CACHING)
                        .and_then(|overlay| overlay.switch(generation)),
                };
                let disk = switched
                    .with_context(|| format!("opening the kept overlay of {}", machine.name))?;
                (disk, "its writes kept")
            }
            Step::Restart => {
                drop(open); // gives its lock back
                let disk = OverlayDisk::restart(&directory, golden, id, mode, generation, CACHING)
                    .with_context(|| format!("starting the overlay of {} afresh", machine.name))?;
                (disk, "a fresh overlay")
            }
            Step::Replace => {
                drop(open);
                OverlayDisk::remove(&directory)
                    .with_context(|| format!("removing the old overlay of {}", machine.name))?;
                (create(golden)?, "a new overlay")
            }
        };
        let fact = if (fact.version, fact.mode) == (image.version, mode) {
            fact
        } else {
            self.inventory.set_overlay(fact.uuid, image.version, mode)?
        };
        disk.set_reserve(self.room.reserve_bytes);
        Ok((Opened { fact, disk }, format!("{image}, {done}")))
    }

    /// Opens the overlay that the current generation runs on as that generation
    /// left it, whatever is assigned to the machine by now.
    pub(super) fn reopen(&self, machine: &Machine, generation: u64) -> anyhow::Result<Opened> {
        let (fact, base, directory) = self.overlay_of_generation(machine, generation)?;
        let image = self.image_of(&fact.image, base).ok_or_else(|| {
            anyhow!(
                "the image below the overlay of {} is not here any more: {}@{} ({base})",
                machine.name,
                fact.image,
                fact.version
            )
        })?;
        let golden = self.images.open(&image)?;
        let disk = OverlayDisk::open(&directory, golden, base, CACHING)
            .with_context(|| format!("opening the overlay of {}", machine.name))?;
        // What the machine holds in its page cache must still match its disk.
        if disk.host_loss() == HostLoss::LostWrites {
            bail!(
                "the server itself went down under boot generation {generation}, \
                 and writes it had answered are gone; the machine must boot again"
            );
        }
        disk.set_reserve(self.room.reserve_bytes);
        Ok(Opened { fact, disk })
    }

    /// The overlay whose head names the generation, the image it lies on, and
    /// where it is.
    fn overlay_of_generation(
        &self,
        machine: &Machine,
        generation: u64,
    ) -> anyhow::Result<(Overlay, BaseId, PathBuf)> {
        let mut found = Vec::new();
        for fact in self.inventory.overlays()? {
            if fact.machine != machine.id {
                continue;
            }
            let directory = self.inventory.overlay_directory(fact.uuid);
            match OverlayDisk::inspect(&directory) {
                Ok(head) if head.generation == generation => {
                    found.push((fact, head.base, directory));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(machine = %machine.name, %error, "an overlay's head cannot be read");
                }
            }
        }
        // Two: a switch that was cut short, and another image assigned before
        // it was done again. Which one the machine runs on nobody can say.
        match (found.pop(), found.is_empty()) {
            (Some(found), true) => Ok(found),
            (found, _) => bail!(
                "there is {} overlay of boot generation {generation}; the machine must boot again",
                if found.is_some() {
                    "more than one"
                } else {
                    "no"
                }
            ),
        }
    }

    /// The version of an image that an overlay's head names.
    fn image_of(&self, name: &Name, base: BaseId) -> Option<Arc<Image>> {
        let uuid = Uuid::from_bytes(base.uuid);
        let mut images = self.inventory.images().into_iter();
        images.find(|image| image.name == *name && image.uuid == uuid)
    }
}

/// The orderly end: everything durable, nothing left to repair.
pub(super) fn settle(open: &Opened, machine: impl std::fmt::Display) {
    if let Err(error) = open.disk.close() {
        tracing::error!(%machine, %error, "closing its overlay");
    }
}

/// The other way out, for an operator.
fn or_give_up(overlay: Option<&Overlay>) -> String {
    overlay.map_or_else(String::new, |overlay| {
        format!(
            ", or give its writes up with `diskless overlay remove {}`",
            overlay.uuid
        )
    })
}
