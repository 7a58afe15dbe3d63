//! What a loss of power may leave.
//!
//! The rule is POSIX's, not a file system's: what was not synced may be there
//! or not, in any combination and torn at every 512 bytes; names that were not
//! synced may be the old or the new ones; what a failed sync was to make
//! durable never is for certain. What is stored through a mapping (the live
//! marks) is not listened to: of that the newest state is kept, as if it had
//! been written back early.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{SeekFrom, seek};

use super::{Event, Node, Op, Recorder, State};

/// Unit in which unsynced writes are torn.
const SECTOR_BYTES: u64 = 512;

const PAGE_BYTES: u64 = 4096;

impl Recorder {
    /// Makes below `target` one state that a loss of power right before event
    /// `moment` may leave. `fate` decides, asked for each thing that was not
    /// durable: is it there?
    pub(crate) fn remake(&self, moment: usize, target: &Path, fate: &mut dyn FnMut() -> bool) {
        let state = self.state();
        let events = &state.events[..moment];
        let syncs = Syncs::until(moment, events);
        let mut files: BTreeMap<Node, Contents> = BTreeMap::new();
        let mut names: BTreeMap<Node, BTreeMap<String, Node>> = BTreeMap::new();
        for (index, event) in events.iter().enumerate() {
            let is_durable = |node: Node| syncs.cover(node, event.ended);
            match &event.op {
                Op::Names(edits) => {
                    if edits.iter().all(|(dir, ..)| is_durable(*dir)) || fate() {
                        for (dir, name, node) in edits {
                            let dir = names.entry(*dir).or_default();
                            match node {
                                Some(node) => dir.insert(name.clone(), *node),
                                None => dir.remove(name),
                            };
                        }
                    }
                }
                op => {
                    if let Some(node) = node_of(op) {
                        let file = files.entry(node).or_default();
                        syncs.replay(file, index, event, fate);
                    }
                }
            }
        }
        let mut world = World {
            linked: BTreeMap::new(),
            dirs: state.names.keys().copied().collect(),
            names,
            files,
        };
        world.make(0, &state.root, target);
    }
}

impl State {
    /// What the device has of a file of which nothing is dirty: of writes that
    /// a failed sync was to make durable perhaps nothing. Not the same luck
    /// each time.
    pub(super) fn on_the_device(&self, node: Node) -> Contents {
        let syncs = Syncs::until(self.events.len(), &self.events);
        let kept_in_4 = [0, 4, 2][self.events.len() % 3];
        let mut asked = self.events.len();
        let mut fate = || {
            asked = asked.wrapping_mul(0x9e37_79b9).wrapping_add(0x7f4a_7c15);
            (asked >> 16) % 4 < kept_in_4
        };
        let mut contents = Contents::default();
        for (index, event) in self.events.iter().enumerate() {
            if node_of(&event.op) == Some(node) {
                syncs.replay(&mut contents, index, event, &mut fate);
            }
        }
        contents
    }
}

/// The file whose contents an operation is about.
fn node_of(op: &Op) -> Option<Node> {
    match op {
        Op::Write(node, ..)
        | Op::Punch(node, ..)
        | Op::SetLen(node, _)
        | Op::Reserve(node, _)
        | Op::Forgotten(node, _) => Some(*node),
        Op::Names(_) | Op::Sync(_) | Op::SyncFailed(_) | Op::WritebackError | Op::Tick => None,
    }
}

/// The syncs of each node, in order.
#[derive(Default)]
struct Syncs {
    /// When those began that had ended.
    done: BTreeMap<Node, Vec<usize>>,
    failed: BTreeMap<Node, Vec<usize>>,
}

impl Syncs {
    fn until(moment: usize, events: &[Event]) -> Syncs {
        let mut syncs = Syncs::default();
        for (begun, event) in events.iter().enumerate() {
            match event.op {
                Op::Sync(node) if event.ended.is_some_and(|ended| ended <= moment) => {
                    syncs.done.entry(node).or_default().push(begun);
                }
                Op::SyncFailed(node) => syncs.failed.entry(node).or_default().push(begun),
                _ => {}
            }
        }
        syncs
    }

    /// The first sync of `node` that began after an operation had ended.
    fn first(&self, node: Node, ended: Option<usize>) -> Option<usize> {
        let (ended, done) = (ended?, self.done.get(&node)?);
        done.get(done.partition_point(|sync| *sync < ended))
            .copied()
    }

    /// Whether an operation on `node` was synced.
    fn cover(&self, node: Node, ended: Option<usize>) -> bool {
        self.first(node, ended).is_some()
    }

    /// Does to a file what is left of an operation on it.
    fn replay(
        &self,
        file: &mut Contents,
        index: usize,
        event: &Event,
        fate: &mut dyn FnMut() -> bool,
    ) {
        let Some(node) = node_of(&event.op) else {
            return;
        };
        let is_durable = self.cover(node, event.ended);
        match &event.op {
            Op::Write(_, offset, bytes) => {
                if is_durable && !self.fail(node, index, event.ended) {
                    file.write(*offset, bytes);
                    return;
                }
                for (at, end) in sectors(*offset, *offset + bytes.len() as u64) {
                    if fate() {
                        file.write(at, &bytes[index_of(at - offset)..index_of(end - offset)]);
                    }
                }
            }
            Op::Punch(_, offset, bytes) => {
                for (at, end) in sectors(*offset, (offset + bytes).min(file.bytes)) {
                    if is_durable || fate() {
                        file.zero(at, end);
                    }
                }
            }
            Op::SetLen(_, bytes) if is_durable || fate() => file.set_len(*bytes),
            Op::Reserve(_, bytes) if is_durable || fate() => {
                file.bytes = file.bytes.max(*bytes);
            }
            Op::Forgotten(_, contents) => file.clone_from(contents),
            _ => {}
        }
    }

    /// Whether a sync of what was written by event `begun` had failed before.
    fn fail(&self, node: Node, begun: usize, ended: Option<usize>) -> bool {
        let first = self.first(node, ended).unwrap_or(usize::MAX);
        let failed = self.failed.get(&node);
        failed.is_some_and(|failed| failed.iter().any(|f| begun < *f && *f < first))
    }
}

/// A range cut where unsynced writes are torn.
fn sectors(offset: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
    pieces(offset, end, SECTOR_BYTES)
}

/// A range cut at each multiple of `unit`.
fn pieces(offset: u64, end: u64, unit: u64) -> impl Iterator<Item = (u64, u64)> {
    let cut = move |at: u64| ((at / unit + 1) * unit).min(end);
    let mut at = offset;
    std::iter::from_fn(move || {
        let piece = (at < end).then(|| (at, cut(at)));
        at = cut(at);
        piece
    })
}

fn index_of(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

/// What a file holds, sparse: files of a disk are long and mostly empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contents {
    pages: BTreeMap<u64, Vec<u8>>,
    bytes: u64,
}

impl Contents {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        self.bytes = self.bytes.max(end);
        for (at, end) in pieces(offset, end, PAGE_BYTES) {
            let page = self.pages.entry(at / PAGE_BYTES);
            let page = page.or_insert_with(|| vec![0; index_of(PAGE_BYTES)]);
            let inner = index_of(at % PAGE_BYTES);
            page[inner..inner + index_of(end - at)]
                .copy_from_slice(&bytes[index_of(at - offset)..index_of(end - offset)]);
        }
    }

    fn zero(&mut self, offset: u64, end: u64) {
        for (at, end) in pieces(offset, end, PAGE_BYTES) {
            if let Some(page) = self.pages.get_mut(&(at / PAGE_BYTES)) {
                let inner = index_of(at % PAGE_BYTES);
                page[inner..inner + index_of(end - at)].fill(0);
            }
        }
    }

    fn set_len(&mut self, bytes: u64) {
        if bytes < self.bytes {
            let last = bytes / PAGE_BYTES;
            self.pages.retain(|page, _| *page <= last);
            self.zero(bytes, (last + 1) * PAGE_BYTES);
        }
        self.bytes = bytes;
    }
}

impl Contents {
    /// Makes them those of a file, in place of what it has.
    pub(super) fn put(&self, file: &fs::File) {
        file.set_len(0).unwrap();
        file.set_len(self.bytes).unwrap();
        for (number, page) in &self.pages {
            if page.iter().any(|&b| b != 0) {
                let at = number * PAGE_BYTES;
                let end = index_of((self.bytes - at).min(PAGE_BYTES));
                file.write_all_at(&page[..end], at).unwrap();
            }
        }
    }
}

/// The pages of a file that hold something.
pub(super) fn pages_of(file: &fs::File, bytes: u64) -> Vec<(u64, Vec<u8>)> {
    let mut pages = Vec::new();
    let mut data = 0;
    while let Ok(start) = seek(file, SeekFrom::Data(data)) {
        data = seek(file, SeekFrom::Hole(start)).unwrap();
        for (at, end) in pieces(start, data.min(bytes), PAGE_BYTES) {
            let mut page = vec![0; index_of(end - at)];
            file.read_exact_at(&mut page, at).unwrap();
            if page.iter().any(|&b| b != 0) {
                pages.push((at, page));
            }
        }
    }
    pages
}

/// What was left.
struct World {
    dirs: Vec<Node>,
    names: BTreeMap<Node, BTreeMap<String, Node>>,
    files: BTreeMap<Node, Contents>,
    /// Files that were made, under one of their names.
    linked: BTreeMap<Node, PathBuf>,
}

impl World {
    fn make(&mut self, dir: Node, real: &Path, target: &Path) {
        for (name, node) in self.names.remove(&dir).into_iter().flatten() {
            let (real, target) = (real.join(&name), target.join(&name));
            if self.dirs.contains(&node) {
                fs::create_dir(&target).unwrap();
                self.make(node, &real, &target);
                continue;
            }
            if let Some(other) = self.linked.get(&node) {
                fs::hard_link(other, &target).unwrap();
                continue;
            }
            self.linked.insert(node, target.clone());
            let file = fs::File::create(&target).unwrap();
            if name == "live"
                && let Ok(marks) = fs::read(&real)
            {
                file.write_all_at(&marks, 0).unwrap();
                continue;
            }
            if let Some(contents) = self.files.get(&node) {
                contents.put(&file);
            }
        }
    }
}
