//! Restore points by the calendar, and what must be looked after in overlays
//! that are open: layers to merge, space that runs out.

use std::sync::Arc;

use disk::Disk;
use disk::overlay::{OverlayMode, thinning};

use super::{MachineDisks, Medium, OpenDisk, lock};
use crate::inventory::{Overlay, note};
use crate::timeline::Stage;

/// The finest stretch of the calendar: a point, where anything was written
/// since the last, after so many seconds.
const POINT_SECONDS: u64 = 600;

/// Space is short when less than this part of it is left, as SCSI's threshold
/// warning has it.
const SHORT_PART: u64 = 10;

impl MachineDisks {
    /// Makes and gives up automatic restore points of kept overlays whose
    /// machines run, where `by_calendar`, and looks after all that are open; to
    /// be called once a minute, on a thread that may wait. `now` is in seconds
    /// since 1970.
    pub(crate) fn keep_points(&self, by_calendar: bool, now: u64) {
        let slots: Vec<_> = lock(&self.slots).values().cloned().collect();
        for slot in slots {
            // A slot that is locked is in use; its turn comes again.
            let Ok(mut slot) = slot.try_lock() else {
                continue;
            };
            let Some(open) = &mut slot.open else { continue };
            let Medium::Overlay { fact, overlay } = &open.medium else {
                continue;
            };
            let (fact, overlay) = (fact.clone(), Arc::clone(overlay));
            let is_short = is_short(&overlay);
            if is_short != std::mem::replace(&mut open.short_of_space, is_short) && is_short {
                self.say_short(&fact, &overlay);
            }
            let running = open.is_in_use() && overlay.mode() == OverlayMode::Keep;
            if by_calendar && running && !is_short {
                self.keep_calendar(open, &fact, &overlay, now);
            }
            if let Err(error) = overlay.tend_while(&|| self.is_nobody_waiting()) {
                tracing::warn!(overlay = %fact.uuid, %error, "looking after an overlay");
            }
        }
    }

    fn keep_calendar(&self, open: &OpenDisk, fact: &Overlay, overlay: &disk::Overlay, now: u64) {
        let kept = || -> anyhow::Result<()> {
            let directory = self.site.inventory.overlay_directory(fact.uuid);
            let points = disk::Overlay::points(&directory)?;
            let newest = points.iter().map(|point| point.note.created).max();
            let due = newest.is_none_or(|newest| now >= newest + POINT_SECONDS);
            let mut made = Ok(());
            if due && overlay.has_changed() {
                let mut note = note("", true)?;
                note.created = now;
                made = overlay.point(note).map(drop);
                tracing::debug!(target_name = open.target.name, ?made, "restore point");
            }
            // Also when there were too many: the next one finds room then.
            let given_up = thinning(&disk::Overlay::points(&directory)?, now);
            if !given_up.is_empty() {
                overlay.forget_points(&given_up)?;
            }
            Ok(made?)
        };
        if let Err(error) = kept() {
            tracing::warn!(overlay = %fact.uuid, %error, "keeping restore points by the calendar");
        }
    }

    fn say_short(&self, fact: &Overlay, overlay: &disk::Overlay) {
        let left_bytes = overlay.space().map_or(0, |space| space.free_bytes);
        let words = format!(
            "its overlay has {} MiB left: writes are refused when none is; give it room (`diskless \
             overlay quota`, or space under the data directory)",
            left_bytes >> 20
        );
        tracing::warn!(overlay = %fact.uuid, "{words}");
        if let Ok(machine) = self.site.inventory.machine(fact.machine) {
            let timeline = &self.site.timeline;
            timeline.record(machine.mac, Stage::Problem, words);
        }
    }
}

fn is_short(overlay: &disk::Overlay) -> bool {
    overlay.space().is_some_and(|space| {
        space.free_bytes < space.used_bytes.saturating_add(space.free_bytes) / SHORT_PART
    })
}

#[cfg(test)]
mod tests {
    use iscsi::LoginRefusal;

    use super::*;
    use crate::inventory::Machine;
    use crate::services::tests::{Lab, read, write};

    /// Noon of a day.
    const NOON: u64 = 1_800_014_400;

    fn lab(mode: OverlayMode) -> (Lab, Machine) {
        let lab = Lab::new();
        lab.image("debian", 1);
        let pc = lab.machine("pc1", 1, "debian", mode);
        (lab, pc)
    }

    fn fact(lab: &Lab, pc: &Machine) -> Overlay {
        let overlay = lab.inventory().overlay_of(pc.id, "debian").unwrap();
        overlay.unwrap()
    }

    /// When its automatic points were made.
    fn points(lab: &Lab, pc: &Machine) -> Vec<u64> {
        let points = lab.inventory().points(&fact(lab, pc)).unwrap();
        let automatic = points.iter().filter(|found| found.point.note.automatic);
        automatic.map(|found| found.point.note.created).collect()
    }

    #[test]
    fn a_machine_that_writes_gets_a_point_every_ten_minutes() {
        let (lab, pc) = lab(OverlayMode::Keep);
        let (_, session) = lab.boot(&pc);
        lab.disks().keep_points(true, NOON);
        assert!(points(&lab, &pc).is_empty(), "nothing was written");
        write(&session, 3, 7);
        lab.disks().keep_points(false, NOON);
        assert!(points(&lab, &pc).is_empty(), "it is off");
        lab.disks().keep_points(true, NOON);
        write(&session, 3, 8);
        lab.disks().keep_points(true, NOON + 599);
        assert_eq!(points(&lab, &pc), [NOON]);
        lab.disks().keep_points(true, NOON + 600);
        lab.disks().keep_points(true, NOON + 1200);
        assert_eq!(points(&lab, &pc), [NOON, NOON + 600], "nothing was written");
        assert_eq!(read(&session, 3), 8);
        // Hours later one of them is given up; the newest never is.
        lab.disks().keep_points(true, NOON + 7200);
        assert_eq!(points(&lab, &pc), [NOON, NOON + 600]);
        write(&session, 4, 9);
        lab.disks().keep_points(true, NOON + 7800);
        assert_eq!(points(&lab, &pc), [NOON, NOON + 7800]);
        assert_eq!((read(&session, 3), read(&session, 4)), (8, 9));
    }

    #[test]
    fn a_calendar_makes_room_where_there_are_as_many_points_as_can_be() {
        let (lab, pc) = lab(OverlayMode::Keep);
        let (_, session) = lab.boot(&pc);
        for minutes in [0, 10, 20] {
            write(&session, 3, 7);
            lab.disks().keep_points(true, NOON + minutes * 60);
        }
        lab.disks().with_overlay(&fact(&lab, &pc), &mut |open| {
            while open.unwrap().point(note("", false).unwrap()).is_ok() {}
        });
        write(&session, 3, 8);
        lab.disks().keep_points(true, NOON + 7800);
        lab.disks().keep_points(true, NOON + 7860);
        assert_eq!(points(&lab, &pc), [NOON, NOON + 7860]);
    }

    #[test]
    fn what_is_thrown_away_and_what_does_not_run_gets_no_points() {
        let (resets, pc) = lab(OverlayMode::Reset);
        let (_, session) = resets.boot(&pc);
        write(&session, 3, 7);
        resets.disks().keep_points(true, NOON);
        assert!(points(&resets, &pc).is_empty());
        let (keeps, pc) = lab(OverlayMode::Keep);
        let (_, session) = keeps.boot(&pc);
        write(&session, 3, 7);
        drop(session);
        keeps.disks().keep_points(true, NOON);
        assert!(points(&keeps, &pc).is_empty());
    }

    #[test]
    fn a_machine_that_went_back_must_boot_and_finds_the_state_it_went_back_to() {
        let (lab, pc) = lab(OverlayMode::Keep);
        let (script, session) = lab.boot(&pc);
        write(&session, 3, 7);
        let mut made = None;
        lab.disks().with_overlay(&fact(&lab, &pc), &mut |open| {
            let note = note("good", false).unwrap();
            made = Some(open.unwrap().point(note).unwrap());
        });
        write(&session, 3, 8);
        drop(session);
        let at = lab.inventory().point(&fact(&lab, &pc), "latest").unwrap();
        assert_eq!(Some(&at.point.note), made.as_ref().map(|point| &point.note));
        lab.disks().while_closed(&pc, &mut || {
            lab.inventory().restore(&fact(&lab, &pc), &at).unwrap();
        });
        // Its page cache is of another state.
        let refused = lab.log_in(&script);
        assert!(matches!(refused, Err(LoginRefusal::TargetError(_))));
        let (_, session) = lab.boot(&pc);
        assert_eq!(read(&session, 3), 7);
        write(&session, 3, 9);
        assert_eq!(read(&session, 3), 9);
    }
}
