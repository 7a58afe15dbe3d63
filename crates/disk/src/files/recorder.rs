//! Listens to every write, sync and rename of an overlay, and remakes what a
//! loss of power may leave of them.
//!
//! The rule is POSIX's, not a file system's: what was not synced may be there
//! or not, in any combination and torn at every 512 bytes; names that were not
//! synced may be the old or the new ones. What is stored through a mapping
//! (the live marks) is not listened to: of that the newest state is kept, as
//! if it had been written back early.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A file or directory as an inode: it keeps its number through renames.
pub(crate) type Node = usize;

/// Unit in which unsynced writes are torn.
const SECTOR_BYTES: usize = 512;

/// One operation as it was asked for.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// Names that change together: directory, name, what it names then.
    Names(Vec<(Node, String, Option<Node>)>),
    /// Bytes written to a file.
    Write(Node, u64, Vec<u8>),
    /// A hole punched into a file.
    Punch(Node, u64, u64),
    /// A file cut or extended.
    SetLen(Node, u64),
    /// A file extended by reserved space.
    Reserve(Node, u64),
    /// A file's contents, or a directory's names, made durable.
    Sync(Node),
    /// A question about writeback; changes nothing.
    WritebackError,
    /// A moment somebody wants to remember.
    Tick,
}

/// What a hook sees: the operation, and the file name it is about.
pub(crate) type Hook = Box<dyn Fn(&Op, &str) -> io::Result<()> + Send + Sync>;

/// Listens; shared by all files it hands out.
#[derive(Default)]
pub(crate) struct Recorder {
    state: Mutex<State>,
    hook: Mutex<Option<Arc<Hook>>>,
}

#[derive(Default)]
struct State {
    root: PathBuf,
    /// Names as they are now, of each directory.
    names: BTreeMap<Node, BTreeMap<String, Node>>,
    nodes: usize,
    events: Vec<Event>,
}

/// An operation, and the event before which it had ended.
struct Event {
    op: Op,
    ended: Option<usize>,
}

/// A file that is listened to.
#[derive(Clone)]
pub(crate) struct Recorded {
    recorder: Arc<Recorder>,
    node: Node,
    name: String,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recorder")
    }
}

impl std::fmt::Debug for Recorded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recorded({})", self.name)
    }
}

impl Recorder {
    /// Listens to what happens below `root`, which is empty.
    pub(crate) fn new(root: &Path) -> Arc<Recorder> {
        let recorder = Recorder::default();
        {
            let mut state = recorder.state();
            state.root = root.to_owned();
            state.names.insert(0, BTreeMap::new());
            state.nodes = 1;
        }
        Arc::new(recorder)
    }

    /// Calls `hook` in the middle of each operation, between its begin and its
    /// end; its error is the operation's, which then is not done.
    pub(crate) fn set_hook(
        &self,
        hook: impl Fn(&Op, &str) -> io::Result<()> + Send + Sync + 'static,
    ) {
        *self.hook.lock().unwrap() = Some(Arc::new(Box::new(hook)));
    }

    pub(crate) fn clear_hook(&self) {
        *self.hook.lock().unwrap() = None;
    }

    /// How many operations there were: the moments one can crash before.
    pub(crate) fn moment(&self) -> usize {
        self.state().events.len()
    }

    /// A moment unlike any other, even when nothing happens around it.
    pub(crate) fn tick(&self) -> usize {
        let mut state = self.state();
        let (op, ended) = (Op::Tick, None);
        state.events.push(Event { op, ended });
        state.events.len() - 1
    }

    pub(super) fn create(self: &Arc<Self>, path: &Path) -> io::Result<Recorded> {
        let node = self.state().new_node();
        self.link(path, node)
    }

    pub(super) fn create_dir(self: &Arc<Self>, path: &Path) -> io::Result<()> {
        let node = {
            let mut state = self.state();
            let node = state.new_node();
            state.names.insert(node, BTreeMap::new());
            node
        };
        self.link(path, node).map(drop)
    }

    fn link(self: &Arc<Self>, path: &Path, node: Node) -> io::Result<Recorded> {
        let (dir, name) = self.state().place(path);
        self.name_op(vec![(dir, name.clone(), Some(node))], &name)?;
        Ok(Recorded {
            recorder: self.clone(),
            node,
            name,
        })
    }

    pub(super) fn open(self: &Arc<Self>, path: &Path) -> Recorded {
        let mut state = self.state();
        let (dir, name) = state.place(path);
        let node = state.names[&dir].get(&name).copied();
        // A file that is not there: opening it fails, the number is not used.
        let node = node.unwrap_or_else(|| state.new_node());
        drop(state);
        Recorded {
            recorder: self.clone(),
            node,
            name,
        }
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_place, to_place, node) = {
            let state = self.state();
            let (from, to) = (state.place(from), state.place(to));
            let node = state.names[&from.0].get(&from.1).copied();
            (from, to, node)
        };
        let name = to_place.1.clone();
        self.name_op(
            vec![
                (from_place.0, from_place.1, None),
                (to_place.0, to_place.1, node),
            ],
            &name,
        )
    }

    /// Takes a name away; of a file that is not there nothing is noted.
    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.state().place(path);
        if !self.state().names[&dir].contains_key(&name) {
            return Ok(());
        }
        self.name_op(vec![(dir, name.clone(), None)], &name)
    }

    pub(super) fn dir(self: &Arc<Self>, path: &Path) -> Recorded {
        let node = self.state().dir(path);
        Recorded {
            recorder: self.clone(),
            node,
            name: path.file_name().unwrap().to_str().unwrap().to_owned(),
        }
    }

    fn name_op(&self, names: Vec<(Node, String, Option<Node>)>, about: &str) -> io::Result<()> {
        let event = self.note(Op::Names(names.clone()), about)?;
        let mut state = self.state();
        for (dir, name, node) in names {
            let dir = state.names.get_mut(&dir).unwrap();
            match node {
                Some(node) => dir.insert(name, node),
                None => dir.remove(&name),
            };
        }
        state.events[event].ended = Some(event + 1);
        Ok(())
    }

    fn note(&self, op: Op, about: &str) -> io::Result<usize> {
        let hook = self.hook.lock().unwrap().clone();
        let event = {
            let mut state = self.state();
            let (op, ended) = (op.clone(), None);
            state.events.push(Event { op, ended });
            state.events.len() - 1
        };
        // The operation has begun, and ends only after what the hook does.
        if let Some(hook) = hook
            && let Err(error) = hook(&op, about)
        {
            // It is not done, so it has not happened.
            self.state().events[event].op = Op::Tick;
            return Err(error);
        }
        Ok(event)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes below `target` one state that a loss of power right before event
    /// `moment` may leave. `fate` decides, asked for each thing that was not
    /// durable: is it there?
    pub(crate) fn remake(&self, moment: usize, target: &Path, fate: &mut dyn FnMut() -> bool) {
        let state = self.state();
        let events = &state.events[..moment];
        // When the last sync of each node began, of those that had ended.
        let mut synced: BTreeMap<Node, usize> = BTreeMap::new();
        for (begun, event) in events.iter().enumerate() {
            if let Op::Sync(node) = event.op
                && event.ended.is_some_and(|ended| ended <= moment)
            {
                synced.insert(node, begun);
            }
        }
        let is_durable = |index: usize, node: Node| {
            let ended = events[index].ended;
            ended.is_some_and(|ended| synced.get(&node).is_some_and(|begun| ended <= *begun))
        };
        let mut files: BTreeMap<Node, Vec<u8>> = BTreeMap::new();
        let mut names: BTreeMap<Node, BTreeMap<String, Node>> = BTreeMap::new();
        for (index, event) in events.iter().enumerate() {
            match &event.op {
                Op::Names(edits) => {
                    if edits.iter().all(|(dir, ..)| is_durable(index, *dir)) || fate() {
                        for (dir, name, node) in edits {
                            let dir = names.entry(*dir).or_default();
                            match node {
                                Some(node) => dir.insert(name.clone(), *node),
                                None => dir.remove(name),
                            };
                        }
                    }
                }
                Op::Write(node, offset, bytes) => {
                    let durable = is_durable(index, *node);
                    let file = files.entry(*node).or_default();
                    let offset = usize::try_from(*offset).unwrap();
                    let mut at = 0;
                    while at < bytes.len() {
                        let sector_end = ((offset + at) / SECTOR_BYTES + 1) * SECTOR_BYTES - offset;
                        let end = sector_end.min(bytes.len());
                        if durable || fate() {
                            let length = file.len().max(offset + end);
                            file.resize(length, 0);
                            file[offset + at..offset + end].copy_from_slice(&bytes[at..end]);
                        }
                        at = end;
                    }
                }
                Op::Punch(node, offset, bytes) => {
                    let durable = is_durable(index, *node);
                    let file = files.entry(*node).or_default();
                    let start = usize::try_from(*offset).unwrap().min(file.len());
                    let end = usize::try_from(offset + bytes).unwrap().min(file.len());
                    for sector in file[start..end].chunks_mut(SECTOR_BYTES) {
                        if durable || fate() {
                            sector.fill(0);
                        }
                    }
                }
                Op::SetLen(node, bytes) => {
                    if is_durable(index, *node) || fate() {
                        let length = usize::try_from(*bytes).unwrap();
                        files.entry(*node).or_default().resize(length, 0);
                    }
                }
                Op::Reserve(node, bytes) => {
                    if is_durable(index, *node) || fate() {
                        let file = files.entry(*node).or_default();
                        let length = file.len().max(usize::try_from(*bytes).unwrap());
                        file.resize(length, 0);
                    }
                }
                Op::Sync(_) | Op::WritebackError | Op::Tick => {}
            }
        }
        let mut world = World {
            dirs: state.names.keys().copied().collect(),
            names,
            files,
        };
        world.make(0, &state.root, target);
    }
}

/// What was left.
struct World {
    dirs: Vec<Node>,
    names: BTreeMap<Node, BTreeMap<String, Node>>,
    files: BTreeMap<Node, Vec<u8>>,
}

impl World {
    fn make(&mut self, dir: Node, real: &Path, target: &Path) {
        for (name, node) in self.names.get(&dir).cloned().unwrap_or_default() {
            let (real, target) = (real.join(&name), target.join(&name));
            if self.dirs.contains(&node) {
                fs::create_dir(&target).unwrap();
                self.make(node, &real, &target);
                continue;
            }
            let file = fs::File::create(&target).unwrap();
            if name == "live"
                && let Ok(marks) = fs::read(&real)
            {
                file.write_all_at(&marks, 0).unwrap();
                continue;
            }
            let bytes = self.files.get(&node).map_or(&[][..], Vec::as_slice);
            // Sparse: most of a file is zeros.
            file.set_len(bytes.len() as u64).unwrap();
            for (piece, at) in bytes.chunks(4096).zip((0_u64..).step_by(4096)) {
                if piece.iter().any(|&b| b != 0) {
                    file.write_all_at(piece, at).unwrap();
                }
            }
        }
    }
}

impl State {
    fn new_node(&mut self) -> Node {
        self.nodes += 1;
        self.nodes - 1
    }

    /// The directory a path lies in, and its name there.
    fn place(&self, path: &Path) -> (Node, String) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (self.dir(path.parent().unwrap()), name)
    }

    fn dir(&self, path: &Path) -> Node {
        let below = path.strip_prefix(&self.root).expect("outside the root");
        below.iter().fold(0, |dir, name| {
            let name = name.to_str().unwrap();
            *self.names[&dir].get(name).expect("no such directory")
        })
    }
}

impl Recorded {
    /// Notes an operation before it is done; to be [`ended`](Self::ended).
    pub(super) fn begin(&self, op: impl FnOnce(Node) -> Op) -> io::Result<usize> {
        self.recorder.note(op(self.node), &self.name)
    }

    /// The operation has ended.
    pub(super) fn ended(&self, event: usize) {
        let mut state = self.recorder.state();
        let now = state.events.len();
        state.events[event].ended = Some(now);
    }
}
