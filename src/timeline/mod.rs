//! What happened to each machine, and what it means.
//!
//! Doors [`record`](Timeline::record) events by MAC (a packet knows no more);
//! the API reads them back, alone or grouped into [`Boot`]s. Recording touches
//! memory only. A thread saves what is new once a second without an `fsync`, so
//! that nothing a peer sends can make the disk busy: a timeline survives the
//! death of the program, not of the host.

mod boots;
mod stage;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dhcp::Mac;
use jiff::Timestamp;

use crate::inventory::{Error, Inventory, Result, SavedEvent, Survives, now};

pub(crate) use boots::Boot;
pub(crate) use stage::Stage;

/// Something that happened to a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// Order among all events.
    pub(crate) number: u64,
    /// When it happened first.
    pub(crate) at: Timestamp,
    /// To whom.
    pub(crate) mac: Mac,
    /// Its boot generation, where the door knew it.
    pub(crate) generation: Option<u64>,
    /// What happened.
    pub(crate) stage: Stage,
    /// In a few words: which file, which address, why not.
    pub(crate) detail: String,
    /// How often it happened in a row.
    pub(crate) count: u32,
}

/// Events kept of one machine: a dozen boots.
const EVENTS_MAX: usize = 256;

/// Machines (MACs) whose events are kept.
const MACS_MAX: usize = 1024;

/// Longest detail; the rest is cut off.
const DETAIL_MAX_BYTES: usize = 200;

/// Events one machine may have at once.
const EVENT_BURST: u32 = 64;

/// Time until it may have one more.
const EVENT_INTERVAL: Duration = Duration::from_millis(250);

/// Time between two batches.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// Every machine's recent events.
pub(crate) struct Timeline {
    shared: Arc<Shared>,
    saver: Option<JoinHandle<()>>,
}

impl Timeline {
    /// Reads back the saved events and starts the thread that saves new ones
    /// (and with them when machines were last seen). Dropping the timeline saves
    /// the rest.
    pub(crate) fn open(inventory: Arc<Inventory>) -> Result<Timeline> {
        let mut tracks = Tracks::default();
        for saved in inventory.store().read(|facts| facts.events())? {
            tracks.restore(saved);
        }
        let shared = Arc::new(Shared {
            inventory,
            tracks: Mutex::new(tracks),
            saving: Mutex::new(()),
            stopped: Mutex::new(false),
            stop: Condvar::new(),
        });
        let saver = thread::Builder::new()
            .name("timeline".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.save_regularly()
            })
            .map_err(|e| Error::Failed(format!("cannot start the timeline's thread: {e}")))?;
        Ok(Timeline {
            shared,
            saver: Some(saver),
        })
    }

    /// Records an event. Never waits for a disk; too many in a short time are
    /// counted, not kept.
    pub(crate) fn record(&self, mac: Mac, stage: Stage, detail: impl Into<String>) {
        let mut tracks = held(&self.shared.tracks);
        tracks.record(mac, None, stage, detail.into(), now(), Instant::now());
    }

    /// Records an event of a boot generation.
    pub(crate) fn record_boot(
        &self,
        mac: Mac,
        generation: u64,
        stage: Stage,
        detail: impl Into<String>,
    ) {
        let mut tracks = held(&self.shared.tracks);
        tracks.record(
            mac,
            Some(generation),
            stage,
            detail.into(),
            now(),
            Instant::now(),
        );
    }

    /// A machine's events, oldest first.
    pub(crate) fn events(&self, mac: Mac) -> Vec<Event> {
        let tracks = held(&self.shared.tracks);
        let track = tracks.by_mac.get(&mac);
        track.map_or_else(Vec::new, |track| track.events.iter().cloned().collect())
    }

    /// A machine's events grouped into boots, oldest first.
    pub(crate) fn boots(&self, mac: Mac) -> Vec<Boot> {
        boots::group(self.events(mac))
    }

    /// Forgets a machine's events.
    pub(crate) fn remove(&self, mac: Mac) {
        let mut tracks = held(&self.shared.tracks);
        if tracks.by_mac.remove(&mac).is_some() {
            tracks.gone.insert(mac);
        }
    }

    /// Saves what is new at once.
    pub(crate) fn save(&self) -> Result<()> {
        self.shared.save()
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        *held(&self.shared.stopped) = true;
        self.shared.stop.notify_all();
        if let Some(saver) = self.saver.take()
            && saver.join().is_err()
        {
            tracing::error!("the timeline's thread panicked");
        }
    }
}

/// What the timeline shares with its thread.
struct Shared {
    inventory: Arc<Inventory>,
    tracks: Mutex<Tracks>,
    /// Held while a batch is saved, so that batches land in order.
    saving: Mutex<()>,
    stopped: Mutex<bool>,
    stop: Condvar,
}

impl Shared {
    /// Saves a batch a second until it is stopped, and the rest then.
    fn save_regularly(&self) {
        let mut failing = false;
        loop {
            let stopped = {
                let stopped = held(&self.stopped);
                let waited = self
                    .stop
                    .wait_timeout_while(stopped, SAVE_INTERVAL, |stopped| !*stopped);
                *waited.unwrap_or_else(PoisonError::into_inner).0
            };
            match self.save() {
                Ok(()) => failing = false,
                // Said once, not every second.
                Err(error) if !failing => {
                    tracing::error!("the timeline is not saved: {error}");
                    failing = true;
                }
                Err(_) => {}
            }
            if stopped {
                return;
            }
        }
    }

    /// Saves what is new. After an error it is new still.
    fn save(&self) -> Result<()> {
        let _saving = held(&self.saving);
        self.inventory.save_seen()?;
        let batch = held(&self.tracks).take_batch();
        if batch.gone.is_empty() && batch.changed.is_empty() {
            return Ok(());
        }
        let saved = self.inventory.store().write(Survives::Process, |facts| {
            for mac in &batch.gone {
                facts.remove_events(*mac, u64::MAX)?;
            }
            for (mac, oldest, events) in &batch.changed {
                facts.remove_events(*mac, *oldest)?;
                for event in events {
                    facts.put_event(event)?;
                }
            }
            Ok(())
        });
        if saved.is_err() {
            held(&self.tracks).put_back(batch);
        }
        saved
    }
}

/// What is in memory.
#[derive(Default)]
struct Tracks {
    by_mac: HashMap<Mac, Track>,
    last_number: u64,
    /// MACs whose saved events are to be removed.
    gone: BTreeSet<Mac>,
}

/// One machine's events.
struct Track {
    events: VecDeque<Event>,
    /// Numbers from here on are not saved as they are.
    unsaved_from: u64,
    tokens: u32,
    filled: Instant,
    /// Events that were not kept since the last that was.
    lost: u32,
}

impl Track {
    fn new(now: Instant) -> Track {
        Track {
            events: VecDeque::new(),
            unsaved_from: u64::MAX,
            tokens: EVENT_BURST,
            filled: now,
            lost: 0,
        }
    }

    fn admit(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.filled);
        let intervals = passed.as_nanos() / EVENT_INTERVAL.as_nanos();
        if let Ok(intervals) = u32::try_from(intervals) {
            self.filled += EVENT_INTERVAL * intervals;
            self.tokens = EVENT_BURST.min(self.tokens.saturating_add(intervals));
        } else {
            (self.filled, self.tokens) = (now, EVENT_BURST);
        }
        if self.tokens == 0 {
            return false;
        }
        self.tokens -= 1;
        true
    }

    fn push(&mut self, event: Event) {
        self.unsaved_from = self.unsaved_from.min(event.number);
        self.events.push_back(event);
        while self.events.len() > EVENTS_MAX {
            self.events.pop_front();
        }
    }

    /// Whether it went further than anyone who makes up a MAC can.
    fn has_logged_in(&self) -> bool {
        self.events.iter().any(|e| e.stage == Stage::LoggedIn)
    }
}

impl Tracks {
    fn record(
        &mut self,
        mac: Mac,
        generation: Option<u64>,
        stage: Stage,
        detail: String,
        at: Timestamp,
        now: Instant,
    ) {
        let detail = plain(&detail);
        if !self.by_mac.contains_key(&mac) && self.by_mac.len() >= MACS_MAX {
            self.evict();
        }
        self.gone.remove(&mac);
        let fresh = self.last_number + 1;
        let track = self.by_mac.entry(mac).or_insert_with(|| Track::new(now));
        if let Some(last) = track.events.back_mut()
            && (last.generation, last.stage) == (generation, stage)
            && last.detail == detail
        {
            last.count = last.count.saturating_add(1);
            track.unsaved_from = track.unsaved_from.min(last.number);
            return;
        }
        if !track.admit(now) {
            track.lost = track.lost.saturating_add(1);
            return;
        }
        self.last_number = fresh;
        let mut event = Event {
            number: fresh,
            at,
            mac,
            generation,
            stage,
            detail,
            count: 1,
        };
        let lost = std::mem::take(&mut track.lost);
        if lost > 0 {
            let mut gap = event.clone();
            gap.stage = Stage::Problem;
            gap.detail = format!("{lost} events left out: too many at once");
            gap.generation = None;
            track.push(gap);
            event.number += 1;
            self.last_number += 1;
        }
        track.push(event);
    }

    /// Forgets the machine that was silent longest; one that never logged in
    /// (a MAC anyone may have made up) before one that did.
    fn evict(&mut self) {
        let silent = self.by_mac.iter().min_by_key(|(_, track)| {
            let last = track.events.back().map_or(0, |event| event.number);
            (track.has_logged_in(), last)
        });
        if let Some(mac) = silent.map(|(mac, _)| *mac) {
            self.by_mac.remove(&mac);
            self.gone.insert(mac);
        }
    }

    fn restore(&mut self, saved: SavedEvent) {
        self.last_number = self.last_number.max(saved.number);
        // A stage that only another version of the program knew.
        let Some(stage) = Stage::of_word(&saved.stage) else {
            return;
        };
        let now = Instant::now();
        let track = self
            .by_mac
            .entry(saved.mac)
            .or_insert_with(|| Track::new(now));
        track.push(Event {
            number: saved.number,
            at: saved.at,
            mac: saved.mac,
            generation: saved.generation,
            stage,
            detail: saved.detail,
            count: saved.count,
        });
        track.unsaved_from = u64::MAX;
    }

    fn take_batch(&mut self) -> Batch {
        let mut batch = Batch {
            gone: std::mem::take(&mut self.gone),
            changed: Vec::new(),
        };
        for (mac, track) in &mut self.by_mac {
            let from = std::mem::replace(&mut track.unsaved_from, u64::MAX);
            if from == u64::MAX {
                continue;
            }
            let events = track.events.iter().filter(|e| e.number >= from);
            let oldest = track.events.front().map_or(u64::MAX, |e| e.number);
            batch
                .changed
                .push((*mac, oldest, events.map(saved).collect()));
        }
        batch
    }

    fn put_back(&mut self, batch: Batch) {
        for mac in batch.gone {
            if !self.by_mac.contains_key(&mac) {
                self.gone.insert(mac);
            }
        }
        for (mac, _, events) in batch.changed {
            if let (Some(track), Some(first)) = (self.by_mac.get_mut(&mac), events.first()) {
                track.unsaved_from = track.unsaved_from.min(first.number);
            }
        }
    }
}

/// What is saved at once.
struct Batch {
    gone: BTreeSet<Mac>,
    /// MAC, number of its oldest event, events to put down.
    changed: Vec<(Mac, u64, Vec<SavedEvent>)>,
}

fn saved(event: &Event) -> SavedEvent {
    SavedEvent {
        mac: event.mac,
        number: event.number,
        at: event.at,
        generation: event.generation,
        stage: event.stage.word().to_owned(),
        detail: event.detail.clone(),
        count: event.count,
    }
}

/// A detail without control characters (it may come from a packet and is shown
/// on a terminal), cut to its longest.
fn plain(detail: &str) -> String {
    let mut plain = String::new();
    for character in detail.chars() {
        let character = if character.is_control() {
            '?'
        } else {
            character
        };
        if plain.len() + character.len_utf8() > DETAIL_MAX_BYTES {
            break;
        }
        plain.push(character);
    }
    plain
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests::{Site, mac};

    fn timeline() -> (Timeline, Arc<Inventory>, tempfile::TempDir) {
        let (inventory, directory) = Site::new().shared();
        let timeline = Timeline::open(Arc::clone(&inventory)).unwrap();
        (timeline, inventory, directory)
    }

    fn mac_of(number: usize) -> Mac {
        let [a, b, ..] = number.to_le_bytes();
        Mac([2, 0, 0, 0, b, a])
    }

    #[test]
    fn events_survive_a_restart_of_the_program() {
        let (timeline, inventory, _directory) = timeline();
        timeline.record(mac(1), Stage::FirmwareAsked, "BIOS PXE");
        timeline.record_boot(mac(1), 3, Stage::ScriptSent, "/boot.ipxe");
        timeline.record_boot(mac(1), 3, Stage::ScriptSent, "/boot.ipxe");
        let before = timeline.events(mac(1));
        drop(timeline);
        let timeline = Timeline::open(inventory).unwrap();
        let after = timeline.events(mac(1));
        assert_eq!(after.len(), 2);
        for (after, before) in after.iter().zip(&before) {
            let at = before.at;
            assert_eq!(
                &Event {
                    at,
                    ..after.clone()
                },
                before
            );
        }
        timeline.record(mac(1), Stage::Bound, "10.0.0.7");
        assert_eq!(timeline.events(mac(1))[2].number, after[1].number + 1);
    }

    #[test]
    fn the_same_event_in_a_row_is_one_event_with_a_count() {
        let (timeline, _inventory, _directory) = timeline();
        for _ in 0..500 {
            timeline.record(mac(1), Stage::FileSent, "vmlinuz");
        }
        timeline.save().unwrap();
        timeline.record(mac(1), Stage::FileSent, "vmlinuz");
        let events = timeline.events(mac(1));
        assert_eq!((events.len(), events[0].count), (1, 501));
        timeline.save().unwrap();
        let saved = timeline
            .shared
            .inventory
            .store()
            .read(|f| f.events())
            .unwrap();
        assert_eq!((saved.len(), saved[0].count), (1, 501));
    }

    #[test]
    fn a_machine_that_floods_is_cut_short_and_the_gap_is_said() {
        let mut tracks = Tracks::default();
        let (at, now) = (now(), Instant::now());
        for n in 0..1000 {
            tracks.record(mac(1), None, Stage::FileSent, n.to_string(), at, now);
        }
        assert_eq!(tracks.by_mac[&mac(1)].events.len(), EVENT_BURST as usize);
        let later = now + EVENT_INTERVAL;
        tracks.record(mac(1), None, Stage::LoggedIn, String::new(), at, later);
        let details: Vec<&str> = tracks.by_mac[&mac(1)]
            .events
            .iter()
            .map(|e| e.detail.as_str())
            .collect();
        assert_eq!(details[64], "936 events left out: too many at once");
        assert_eq!(details.len(), 66);
    }

    #[test]
    fn a_machine_keeps_its_latest_events_only_also_in_the_store() {
        let (timeline, _inventory, _directory) = timeline();
        {
            let mut tracks = held(&timeline.shared.tracks);
            let mut now = Instant::now();
            for n in 0..EVENTS_MAX + 10 {
                now += EVENT_INTERVAL;
                let detail = n.to_string();
                tracks.record(mac(1), None, Stage::FileSent, detail, super::now(), now);
            }
        }
        timeline.save().unwrap();
        assert_eq!(timeline.events(mac(1)).len(), EVENTS_MAX);
        let saved = timeline
            .shared
            .inventory
            .store()
            .read(|f| f.events())
            .unwrap();
        assert_eq!(saved.len(), EVENTS_MAX);
        assert_eq!(saved[0].detail, "10");
    }

    #[test]
    fn made_up_macs_do_not_wash_out_a_machine_that_logged_in() {
        let (timeline, _inventory, _directory) = timeline();
        timeline.record_boot(mac(1), 1, Stage::LoggedIn, "");
        for number in 0..MACS_MAX + 50 {
            timeline.record(mac_of(number), Stage::FirmwareAsked, "BIOS PXE");
        }
        assert_eq!(held(&timeline.shared.tracks).by_mac.len(), MACS_MAX);
        assert_eq!(timeline.events(mac(1)).len(), 1);
        assert_eq!(timeline.events(mac_of(0)), []);
        timeline.save().unwrap();
        let saved = timeline
            .shared
            .inventory
            .store()
            .read(|f| f.events())
            .unwrap();
        assert_eq!(saved.len(), MACS_MAX);
    }

    #[test]
    fn a_removed_machine_has_no_events_left_in_the_store() {
        let (timeline, inventory, _directory) = timeline();
        timeline.record(mac(1), Stage::FirmwareAsked, "BIOS PXE");
        timeline.save().unwrap();
        timeline.remove(mac(1));
        drop(timeline);
        assert_eq!(inventory.store().read(|f| f.events()).unwrap(), []);
    }

    #[test]
    fn what_a_packet_says_is_made_plain_and_cut() {
        let (timeline, _inventory, _directory) = timeline();
        timeline.record(
            mac(1),
            Stage::Refused,
            format!("\x1b[2J{}", "ä".repeat(500)),
        );
        let detail = &timeline.events(mac(1))[0].detail;
        assert!(detail.starts_with("?[2Jä"), "{detail}");
        assert!(detail.len() <= DETAIL_MAX_BYTES);
    }

    #[test]
    fn when_machines_were_seen_is_saved_with_the_batch() {
        let (timeline, inventory, _directory) = timeline();
        let pc = inventory.enrol(mac(1), None, None).unwrap();
        inventory.machine_seen(pc.id);
        let seen = inventory.machine(pc.id).unwrap().last_seen.unwrap();
        timeline.save().unwrap();
        inventory.save_seen().unwrap();
        let found = inventory.machine(pc.id).unwrap().last_seen.unwrap();
        assert_eq!(found, seen);
    }
}
