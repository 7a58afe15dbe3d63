//! Events grouped into boots.
//!
//! No packet says "power on". A boot begins when the firmware asks for an
//! address after the last boot had come further than that, or after a silence;
//! when iPXE in the card's own ROM asks after a login (nothing asked before it);
//! and when a door knows of a newer boot generation. What comes in between
//! belongs to the boot that runs.

use std::time::Duration;

use jiff::Timestamp;

use super::{Event, Stage};

/// One boot of a machine, as far as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Boot {
    /// Its boot generation, once a door knew it.
    pub(crate) generation: Option<u64>,
    /// When the first packet came.
    pub(crate) began: Timestamp,
    /// What happened, oldest first.
    pub(crate) events: Vec<Event>,
}

/// Silence after which a firmware that asks has been powered on again. Longer
/// than a PXE ROM's last pause (32 s) between two tries.
const SILENCE: Duration = Duration::from_secs(60);

impl Boot {
    /// Time from the first packet to an event of this boot.
    pub(crate) fn since_began(&self, event: &Event) -> Duration {
        Duration::try_from(event.at.duration_since(self.began)).unwrap_or_default()
    }

    /// Whether `next` begins another boot.
    fn ends_before(&self, next: &Event) -> bool {
        let newer = matches!((self.generation, next.generation),
            (Some(mine), Some(its)) if its > mine);
        let reached = |stages: &[Stage]| self.events.iter().any(|e| stages.contains(&e.stage));
        let silent = self.events.last().is_some_and(|last| {
            Duration::try_from(next.at.duration_since(last.at)).is_ok_and(|d| d > SILENCE)
        });
        match next.stage {
            Stage::FirmwareAsked => {
                silent
                    || reached(&[
                        Stage::LoaderSent,
                        Stage::LoaderAsked,
                        Stage::ScriptSent,
                        Stage::LoggedIn,
                        Stage::SystemAsked,
                    ])
            }
            Stage::LoaderAsked => reached(&[Stage::LoggedIn, Stage::SystemAsked]),
            _ => newer,
        }
    }
}

/// Groups events, oldest first, into boots.
pub(super) fn group(events: Vec<Event>) -> Vec<Boot> {
    let mut boots: Vec<Boot> = Vec::new();
    for event in events {
        match boots.last_mut() {
            Some(boot) if !boot.ends_before(&event) => {
                boot.generation = boot.generation.max(event.generation);
                boot.events.push(event);
            }
            _ => boots.push(Boot {
                generation: event.generation,
                began: event.at,
                events: vec![event],
            }),
        }
    }
    boots
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::inventory::tests::mac;

    /// Events from (seconds, stage, generation).
    fn events(list: &[(i64, Stage, Option<u64>)]) -> Vec<Event> {
        let start = Timestamp::from_second(1_700_000_000).unwrap();
        list.iter()
            .zip(1..)
            .map(|(&(seconds, stage, generation), number)| Event {
                number,
                at: start + SignedDuration::from_millis(seconds * 1000 + 50),
                mac: mac(1),
                generation,
                stage,
                detail: String::new(),
                count: 1,
            })
            .collect()
    }

    fn sizes(list: &[(i64, Stage, Option<u64>)]) -> Vec<usize> {
        let boots = group(events(list));
        boots.iter().map(|boot| boot.events.len()).collect()
    }

    use Stage::*;

    #[test]
    fn one_boot_is_one_boot_however_often_it_logs_in() {
        let boot = [
            (0, FirmwareAsked, None),
            (1, Offered, None),
            (2, Bound, None),
            (3, LoaderSent, None),
            (4, LoaderAsked, None),
            (5, Bound, None),
            (6, ScriptSent, Some(1)),
            (7, LoggedIn, Some(1)),
            (20, SystemAsked, None),
            (21, LoggedIn, Some(1)),
            (22, LoggedOut, Some(1)),
            (23, LoggedIn, Some(1)),
        ];
        assert_eq!(sizes(&boot), [12]);
        assert_eq!(group(events(&boot))[0].generation, Some(1));
    }

    #[test]
    fn a_firmware_that_asks_after_a_loader_was_sent_boots_again() {
        let boots = [
            (0, FirmwareAsked, None),
            (3, LoaderSent, None),
            (20, FirmwareAsked, None),
            (23, LoaderSent, None),
        ];
        assert_eq!(sizes(&boots), [2, 2]);
    }

    #[test]
    fn a_firmware_that_repeats_itself_is_one_boot_until_it_was_silent() {
        let boots = [
            (0, FirmwareAsked, None),
            (1, Offered, None),
            (32, FirmwareAsked, None),
            (33, Offered, None),
            (99, FirmwareAsked, None),
        ];
        assert_eq!(sizes(&boots), [4, 1]);
    }

    #[test]
    fn ipxe_in_the_rom_begins_a_boot_once_the_last_one_had_logged_in() {
        let boots = [
            (0, LoaderAsked, None),
            (1, ScriptSent, Some(1)),
            (30, LoaderAsked, None),
            (31, ScriptSent, Some(1)),
            (32, LoggedIn, Some(1)),
            (60, LoaderAsked, None),
            (61, ScriptSent, Some(2)),
        ];
        assert_eq!(sizes(&boots), [5, 2]);
    }

    #[test]
    fn a_newer_generation_is_another_boot_even_without_dhcp() {
        let boots = [
            (0, ScriptSent, Some(1)),
            (1, LoggedIn, Some(1)),
            (2, LoggedOut, Some(1)),
            (60, ScriptSent, Some(2)),
            (61, LoggedIn, Some(2)),
        ];
        assert_eq!(sizes(&boots), [3, 2]);
    }

    #[test]
    fn an_event_has_the_time_since_the_first_packet_of_its_boot() {
        let boots = group(events(&[
            (0, FirmwareAsked, None),
            (3, LoaderSent, None),
            (20, FirmwareAsked, None),
            (24, LoaderSent, None),
        ]));
        let since: Vec<Vec<u64>> = boots
            .iter()
            .map(|boot| {
                let of = |event| boot.since_began(event).as_secs();
                boot.events.iter().map(of).collect()
            })
            .collect();
        assert_eq!(since, [[0, 3], [0, 4]]);
    }
}
