//! Restore points of overlays: finding them, going back to one, and branching
//! from one.
//!
//! Going back loses nothing: the machine goes on from a branch of the point,
//! and what it wrote on before becomes a *former overlay*, which is kept, with
//! its points, until somebody removes it.

use std::fs;
use std::sync::Arc;

use disk::SharedDisk;
use disk::overlay::{COMMENT_BYTES_MAX, Caching, Note, Point, PointId};
use jiff::Timestamp;
use uuid::Uuid;

use super::disk::unopened;
use super::overlay::{aside_name, no_overlay};
use super::{
    Assignment, Error, Export, ImageRef, Inventory, Job, Machine, MachineState, Overlay,
    OverlayMode, Result, Survives, now, sync_directory,
};

/// A restore point, and the overlay it is found in.
#[derive(Clone, Debug)]
pub(crate) struct FoundPoint {
    /// The point.
    pub(crate) point: Point,
    /// The overlay that has it.
    pub(crate) overlay: Overlay,
    /// Whether that is a former one.
    pub(crate) former: bool,
}

/// A boot generation no machine is ever of: after it went back, it must boot.
const NO_GENERATION: u64 = 0;

impl Inventory {
    /// Opens what an overlay held at a restore point, to be read. The machine
    /// may go on meanwhile: a restore point does not change.
    pub(crate) fn open_point(&self, at: &FoundPoint) -> Result<SharedDisk> {
        let (_, view) = self.view(at.overlay.uuid, at.point.note.id)?;
        Ok(Arc::new(view))
    }

    /// Starts to export what an overlay held at a restore point.
    pub(crate) fn export_point(&self, at: &FoundPoint, export: Export) -> Result<Job> {
        let machine = self.machine(at.overlay.machine)?;
        let subject = format!("{} at {}", machine.name, short(at.point.note.id));
        self.start_export(subject, self.open_point(at)?, None, export)
    }

    /// Opens an overlay that nothing has open.
    pub(crate) fn open_overlay(&self, overlay: &Overlay) -> Result<disk::Overlay> {
        let image = self.image(&ImageRef {
            name: overlay.image.clone(),
            version: Some(overlay.version),
        })?;
        let id = image.base_id();
        let golden = disk::image::open(&image.directory, &id, Arc::clone(&image.damage));
        let golden: SharedDisk = Arc::new(golden.map_err(unopened)?);
        let directory = self.overlay_directory(overlay.uuid);
        disk::Overlay::open(&directory, golden, id, Caching::WriteBack).map_err(unopened)
    }

    /// The restore points of an overlay, and those of its machine's former ones
    /// above the same image that it does not share: oldest first.
    pub(crate) fn points(&self, overlay: &Overlay) -> Result<Vec<FoundPoint>> {
        let formers = self.store.read(|facts| facts.formers_of(overlay.machine))?;
        let formers = formers
            .into_iter()
            .filter(|former| former.image == overlay.image && former.uuid != overlay.uuid);
        let mut found: Vec<FoundPoint> = Vec::new();
        for (overlay, former) in
            std::iter::once((overlay.clone(), false)).chain(formers.map(|f| (f, true)))
        {
            let directory = self.overlay_directory(overlay.uuid);
            let points = match disk::Overlay::points(&directory) {
                Ok(points) => points,
                // A machine that has not booted yet has no files.
                Err(disk::OpenError::Missing { .. }) => continue,
                Err(error) => return Err(unopened(error)),
            };
            for point in points {
                if !found
                    .iter()
                    .any(|other| other.point.note.id == point.note.id)
                {
                    found.push(FoundPoint {
                        point,
                        overlay: overlay.clone(),
                        former,
                    });
                }
            }
        }
        found.sort_by_key(|found| (found.point.note.created, found.point.note.id));
        Ok(found)
    }

    /// The restore point that is meant: `latest`, its id, or the beginning of
    /// one.
    pub(crate) fn point(&self, overlay: &Overlay, meant: &str) -> Result<FoundPoint> {
        let mut points = self.points(overlay)?;
        let meant = meant.trim().to_ascii_lowercase();
        let none = |why: &str| {
            Err(Error::NotFound(format!(
                "{why}: `diskless overlay points {}` shows them",
                overlay.uuid
            )))
        };
        if meant == "latest" {
            points.retain(|found| !found.former);
            return points
                .pop()
                .map_or_else(|| none("there is no restore point"), Ok);
        }
        points.retain(|found| {
            !meant.is_empty() && found.point.note.id.to_string().starts_with(&meant)
        });
        match (points.pop(), points.is_empty()) {
            (Some(found), true) => Ok(found),
            (None, _) => none(&format!("there is no restore point {meant:?}")),
            (Some(_), false) => none(&format!(
                "more than one restore point begins with {meant:?}"
            )),
        }
    }

    /// Lets a machine go on from a restore point; it must boot then. What it
    /// has written since stays, as a former overlay with a restore point of
    /// its last state, which is answered with the new overlay. That the
    /// machine's disk is closed is the caller's to make sure of.
    pub(crate) fn restore(
        &self,
        overlay: &Overlay,
        at: &FoundPoint,
    ) -> Result<(Overlay, Option<PointId>)> {
        let machine = self.machine(overlay.machine)?;
        let keeps = matches!(&machine.assignment, Some(Assignment::Image { image, mode })
            if image.name == overlay.image && *mode == OverlayMode::Keep);
        if !keeps {
            return Err(Error::Conflict(format!(
                "{name} does not boot {image} with a kept overlay, so that the state it goes back \
                 to would be thrown away: `diskless machine set {name} --image {image} --mode \
                 keep` first",
                name = machine.name,
                image = overlay.image
            )));
        }
        let open = self.open_overlay(overlay)?;
        let last = if open.has_changed() {
            let note = note(
                &format!("before it went back to {}", short(at.point.note.id)),
                false,
            )?;
            Some(open.point(note).map_err(unopened)?.note.id)
        } else {
            None
        };
        open.close().map_err(|error| unopened(error.into()))?;
        drop(open);
        let new = self.branch_off(at, machine.id, |facts, new| {
            facts.remove_overlay(overlay.uuid)?;
            facts.put_former(overlay, now())?;
            facts.put_overlay(new)
        })?;
        Ok((new, last))
    }

    /// Lets another machine begin from a restore point: it gets a kept overlay
    /// of its own above the same version, and is assigned the image. That its
    /// disk is closed is the caller's to make sure of.
    pub(crate) fn branch(&self, at: &FoundPoint, to: &Machine) -> Result<Overlay> {
        let image = &at.overlay.image;
        let new = self.branch_off(at, to.id, |facts, new| {
            let others = facts.overlays_of(to.id)?;
            if let Some(other) = others.iter().find(|other| other.image == *image) {
                return Err(Error::Conflict(format!(
                    "{} has an overlay above {image} already: remove it first with \
                     `diskless overlay remove {}`",
                    to.name, other.uuid
                )));
            }
            facts.put_overlay(new)?;
            // Together with it: a crash leaves no overlay that nobody boots.
            let mut machine = facts
                .machine(to.id)?
                .ok_or_else(|| Error::NotFound(format!("{} is not there any more", to.name)))?;
            let keeps = matches!(&machine.assignment, Some(Assignment::Image { image: meant, mode })
                if meant.name == *image && *mode == OverlayMode::Keep);
            if !keeps {
                machine.assignment = Some(Assignment::Image {
                    image: ImageRef {
                        name: image.clone(),
                        version: None,
                    },
                    mode: OverlayMode::Keep,
                });
                machine.state = MachineState::Known;
                facts.put_machine(&machine)?;
            }
            Ok(())
        })?;
        Ok(new)
    }

    /// Makes a branch of a point for a machine, puts it down with `put`, and
    /// gives it its name then: a crash in between leaves both or neither, once
    /// [`Inventory::finish_removals`] has run.
    fn branch_off(
        &self,
        at: &FoundPoint,
        machine: Uuid,
        put: impl FnOnce(&super::store::Facts<'_>, &Overlay) -> Result<()>,
    ) -> Result<Overlay> {
        let new = Overlay {
            uuid: Uuid::new_v4(),
            machine,
            mode: OverlayMode::Keep,
            created: now(),
            ..at.overlay.clone()
        };
        let all = self.data.join("overlays");
        let (aside, directory) = (
            all.join(aside_name(new.uuid)),
            self.overlay_directory(new.uuid),
        );
        let source = self.overlay_directory(at.overlay.uuid);
        // Held to the end: no image is removed under an overlay being made.
        let _found = self.images.hold();
        disk::Overlay::branch(&source, at.point.note.id, &aside, new.mode, NO_GENERATION)
            .map_err(unopened)?;
        if let Err(error) = self.store.write(Survives::Power, |facts| put(facts, &new)) {
            if let Err(e) = disk::Overlay::remove(&aside) {
                tracing::warn!("cannot remove {} yet: {e}", aside.display());
            }
            return Err(error);
        }
        fs::rename(&aside, &directory)
            .and_then(|()| sync_directory(&all))
            .map_err(|e| Error::Failed(format!("cannot make {}: {e}", directory.display())))?;
        Ok(new)
    }

    /// The former overlay of a UUID.
    pub(crate) fn former_overlay(&self, uuid: Uuid) -> Result<Overlay> {
        self.store
            .read(|facts| facts.former(uuid))?
            .ok_or_else(|| no_overlay(uuid))
    }

    /// Every former overlay, the one given up last first.
    pub(crate) fn former_overlays(&self) -> Result<Vec<Overlay>> {
        self.store.read(|facts| facts.formers())
    }

    /// Forgets a former overlay and removes its files.
    pub(crate) fn remove_former(&self, uuid: Uuid) -> Result<()> {
        self.former_overlay(uuid)?;
        self.remove_with_files(&[uuid], |facts| facts.remove_former(uuid))
    }
}

/// A new restore point's note.
pub(crate) fn note(comment: &str, automatic: bool) -> Result<Note> {
    if comment.len() > COMMENT_BYTES_MAX {
        return Err(Error::Invalid(format!(
            "the comment is too long: {COMMENT_BYTES_MAX} bytes at most"
        )));
    }
    Ok(Note {
        id: PointId(Uuid::now_v7().into_bytes()),
        created: Timestamp::now().as_second().unsigned_abs(),
        automatic,
        comment: comment.to_owned(),
    })
}

/// Enough of a point's id to name it: the millisecond it was made in.
pub(crate) fn short(id: PointId) -> String {
    id.to_string().chars().take(13).collect()
}

#[cfg(test)]
mod tests {
    use disk::Disk;

    use super::*;
    use crate::inventory::tests::Site;
    use crate::inventory::{Image, MachineChange, NewMachine};

    const BLOCK: usize = 4096;

    fn keeps(site: &Site, name: &str, last: u8) -> Machine {
        let machine = site.new_machine(name, last);
        let assignment = Assignment::Image {
            image: ImageRef::parse("debian").unwrap(),
            mode: OverlayMode::Keep,
        };
        let change = MachineChange {
            assignment: Some(Some(assignment)),
            ..MachineChange::default()
        };
        site.set_machine(machine.id, change).unwrap()
    }

    /// A machine with an overlay above `debian`.
    fn site() -> (Site, Machine, Overlay) {
        let site = Site::new();
        let image = site.new_image("debian");
        let pc = keeps(&site, "pc1", 1);
        let overlay = site.add_overlay(pc.id, &image, OverlayMode::Keep).unwrap();
        make_files(&site, &image, &overlay);
        (site, pc, overlay)
    }

    fn make_files(site: &Site, image: &Image, overlay: &Overlay) {
        let golden = disk::image::open(&image.directory, &image.base_id(), Arc::default());
        let made = disk::Overlay::create(
            &site.overlay_directory(overlay.uuid),
            Arc::new(golden.unwrap()),
            image.base_id(),
            overlay.mode,
            1,
            Caching::WriteBack,
        );
        made.unwrap().close().unwrap();
    }

    fn write(site: &Site, overlay: &Overlay, byte: u8) {
        let open = site.open_overlay(overlay).unwrap();
        open.write(0, &[byte; BLOCK]).unwrap();
        open.close().unwrap();
    }

    fn point(site: &Site, overlay: &Overlay, comment: &str) -> PointId {
        let open = site.open_overlay(overlay).unwrap();
        let made = open.point(note(comment, false).unwrap()).unwrap();
        open.close().unwrap();
        made.note.id
    }

    fn first_byte(site: &Site, overlay: &Overlay) -> u8 {
        let mut block = [0; BLOCK];
        let open = site.open_overlay(overlay).unwrap();
        open.read(0, &mut block).unwrap();
        block[0]
    }

    #[test]
    fn going_back_and_forth_loses_nothing() {
        let (mut site, pc, overlay) = site();
        write(&site, &overlay, 1);
        let one = point(&site, &overlay, "one");
        write(&site, &overlay, 2);
        let at = site.point(&overlay, &one.to_string()).unwrap();
        let (back, last) = site.restore(&overlay, &at).unwrap();
        assert_eq!(first_byte(&site, &back), 1);
        site.restart();
        assert_eq!(
            site.overlay_of(pc.id, "debian").unwrap(),
            Some(back.clone())
        );
        // What it had written since is a point of the former overlay.
        let points = site.points(&back).unwrap();
        let comments: Vec<_> = points
            .iter()
            .map(|p| (p.point.note.comment.as_str(), p.former))
            .collect();
        let expected = format!("before it went back to {}", short(one));
        assert_eq!(comments, [("one", false), (expected.as_str(), true)]);
        let last = site.point(&back, &last.unwrap().to_string()).unwrap();
        let (forth, none) = site.restore(&back, &last).unwrap();
        assert_eq!((first_byte(&site, &forth), none), (2, None));
        assert_eq!(site.former_overlays().unwrap().len(), 2);
        // Former ones can be removed; the present one stands by itself.
        for former in site.former_overlays().unwrap() {
            site.remove_former(former.uuid).unwrap();
        }
        assert_eq!(first_byte(&site, &forth), 2);
        assert!(
            site.remove_image(&ImageRef::parse("debian").unwrap())
                .is_err()
        );
    }

    #[test]
    fn a_branch_is_another_machines_own() {
        let (site, _, overlay) = site();
        write(&site, &overlay, 1);
        point(&site, &overlay, "one");
        let other = site.new_machine("pc2", 2);
        let at = site.point(&overlay, "latest").unwrap();
        let branch = site.branch(&at, &other).unwrap();
        write(&site, &branch, 7);
        assert_eq!(
            (first_byte(&site, &overlay), first_byte(&site, &branch)),
            (1, 7)
        );
        let other = site.machine(other.id).unwrap();
        assert!(matches!(
            other.assignment,
            Some(Assignment::Image {
                mode: OverlayMode::Keep,
                ..
            })
        ));
        assert!(site.branch(&at, &other).is_err(), "it has one now");
        assert_eq!(
            fs::read_dir(site.data().join("overlays")).unwrap().count(),
            2
        );
    }

    #[test]
    fn a_branch_for_a_machine_that_has_gone_leaves_neither_fact_nor_files() {
        let (site, _, overlay) = site();
        write(&site, &overlay, 1);
        point(&site, &overlay, "one");
        let other = site.new_machine("pc2", 2);
        let at = site.point(&overlay, "latest").unwrap();
        site.remove_machine(other.id).unwrap();
        assert!(site.branch(&at, &other).is_err());
        let left = fs::read_dir(site.data().join("overlays")).unwrap();
        assert_eq!(left.count(), 1);
        assert!(site.overlay_of(other.id, "debian").unwrap().is_none());
    }

    #[test]
    fn a_state_that_would_be_thrown_away_is_not_gone_back_to() {
        let (site, _, overlay) = site();
        write(&site, &overlay, 1);
        point(&site, &overlay, "one");
        let resets = site.add_machine(NewMachine {
            name: crate::inventory::Name::parse("pc3").unwrap(),
            mac: crate::inventory::tests::mac(3),
            uuid: None,
            serial: None,
            assignment: Some(Assignment::Image {
                image: ImageRef::parse("debian").unwrap(),
                mode: OverlayMode::Reset,
            }),
            address: None,
            loader: None,
        });
        let image = site.images()[0].clone();
        let reset = site
            .add_overlay(resets.unwrap().id, &image, OverlayMode::Reset)
            .unwrap();
        make_files(&site, &image, &reset);
        write(&site, &reset, 1);
        point(&site, &reset, "one");
        let at = site.point(&reset, "latest").unwrap();
        let refusal = site.restore(&reset, &at).unwrap_err().to_string();
        assert!(refusal.contains("--mode keep"), "{refusal}");
    }

    #[test]
    fn a_point_is_named_by_its_beginning_or_as_the_latest() {
        let (site, _, overlay) = site();
        write(&site, &overlay, 1);
        let one = point(&site, &overlay, "one");
        write(&site, &overlay, 2);
        let two = point(&site, &overlay, "two");
        let id = |meant: &str| site.point(&overlay, meant).map(|found| found.point.note.id);
        assert_eq!(id("latest").unwrap(), two);
        assert_eq!(id(&one.to_string()).unwrap(), one);
        for bad in ["", "0", "zz", "latest2"] {
            let refusal = id(bad).unwrap_err().to_string();
            assert!(refusal.contains("overlay points"), "{bad}: {refusal}");
        }
    }

    #[test]
    fn a_branch_cut_short_is_undone_or_ended_at_the_next_start() {
        let (mut site, pc, overlay) = site();
        write(&site, &overlay, 1);
        let one = point(&site, &overlay, "one");
        let at = site.point(&overlay, &one.to_string()).unwrap();
        let (back, _) = site.restore(&overlay, &at).unwrap();
        // As a crash after the fact leaves it.
        let aside = site.data().join("overlays").join(aside_name(back.uuid));
        fs::rename(site.overlay_directory(back.uuid), &aside).unwrap();
        site.restart();
        assert_eq!(first_byte(&site, &back), 1);
        // A former one, whose removal was cut short, likewise.
        let aside = site.data().join("overlays").join(aside_name(overlay.uuid));
        fs::rename(site.overlay_directory(overlay.uuid), &aside).unwrap();
        site.restart();
        assert!(site.overlay_directory(overlay.uuid).exists());
        // And with the machine all of it goes.
        site.remove_machine(pc.id).unwrap();
        assert_eq!(
            fs::read_dir(site.data().join("overlays")).unwrap().count(),
            0
        );
    }
}
