//! Listens to every write, sync and rename of a disk, so that what a loss of
//! power may leave of them can be remade.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

mod remake;

use remake::{Contents, pages_of};

use crate::doubt::Doubt;

/// A file or directory as an inode: it keeps its number through renames.
pub(crate) type Node = usize;

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
    /// A file's sync that failed: the bytes it was to make durable no later one
    /// will, for the kernel takes the pages for clean. Names and lengths are no
    /// pages: they stay to be synced.
    SyncFailed(Node),
    /// A file read as the device has it, since a sync of it failed.
    Forgotten(Node, Contents),
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
    /// What is noted of files whose syncs failed.
    doubts: BTreeMap<Node, Doubt>,
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

    /// Listens to what happens below `root`; what is there is durable.
    pub(crate) fn over(root: &Path) -> Arc<Recorder> {
        let recorder = Recorder::new(root);
        recorder.state().adopt(0, root, &mut BTreeMap::new());
        recorder
    }

    /// Calls `hook` in the middle of each operation, between its begin and its
    /// end; its error is the operation's, which then is not done.
    pub(crate) fn set_hook(
        &self,
        hook: impl Fn(&Op, &str) -> io::Result<()> + Send + Sync + 'static,
    ) {
        *self.hook.lock().unwrap() = Some(Arc::new(Box::new(hook)));
    }

    /// Whether a sync of a file has failed so far.
    pub(crate) fn has_failed_sync(&self) -> bool {
        !self.state().doubts.is_empty()
    }

    /// What is noted of a file.
    pub(super) fn doubt(&self, path: &Path) -> Doubt {
        let state = self.state();
        if state.doubts.is_empty() {
            return Doubt::default();
        }
        let (dir, name) = state.place(path);
        let node = state.names[&dir].get(&name);
        node.and_then(|node| state.doubts.get(node).copied())
            .unwrap_or_default()
    }

    /// Makes the device speak if a sync of a file has failed: what was lost
    /// then is lost now.
    pub(super) fn settle(self: &Arc<Self>, path: &Path) -> io::Result<Doubt> {
        let doubt = self.doubt(path);
        if doubt.is_open {
            let file = self.open(path);
            let synced = file.begin(Op::Sync).inspect_err(|e| file.doubt(e))?;
            file.ended(synced);
            let mut state = self.state();
            let contents = state.on_the_device(file.node);
            contents.put(&fs::OpenOptions::new().write(true).open(path)?);
            state.done(Op::Forgotten(file.node, contents));
            let settled = Doubt {
                is_open: false,
                ..doubt
            };
            state.doubts.insert(file.node, settled);
        }
        Ok(doubt)
    }

    pub(crate) fn has_hook(&self) -> bool {
        self.hook.lock().unwrap().is_some()
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

    /// Another name for a file; of one that is not there nothing is noted.
    pub(super) fn hard_link(&self, file: &Path, name: &Path) -> io::Result<()> {
        let (node, (dir, name)) = {
            let state = self.state();
            let (dir, old) = state.place(file);
            (state.names[&dir].get(&old).copied(), state.place(name))
        };
        match node {
            Some(node) => self.name_op(vec![(dir, name.clone(), Some(node))], &name),
            None => Ok(()),
        }
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
            let mut state = self.state();
            state.events[event].op = match op {
                // Of a death, which no system said, the kernel knows nothing.
                Op::Sync(node)
                    if error.raw_os_error().is_some() && !state.names.contains_key(&node) =>
                {
                    Op::SyncFailed(node)
                }
                _ => Op::Tick,
            };
            return Err(error);
        }
        Ok(event)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new_node(&mut self) -> Node {
        self.nodes += 1;
        self.nodes - 1
    }

    /// Takes in what lies below a directory.
    fn adopt(&mut self, dir: Node, path: &Path, inodes: &mut BTreeMap<u64, Node>) {
        let mut names: Vec<_> = fs::read_dir(path).unwrap().map(Result::unwrap).collect();
        names.sort_by_key(fs::DirEntry::file_name);
        for entry in names {
            let path = entry.path();
            let inode = entry.metadata().unwrap().ino();
            let is_new = !inodes.contains_key(&inode);
            let node = *inodes.entry(inode).or_insert_with(|| self.new_node());
            let name = entry.file_name().into_string().unwrap();
            self.done(Op::Names(vec![(dir, name.clone(), Some(node))]));
            self.names.get_mut(&dir).unwrap().insert(name, node);
            if path.is_dir() {
                self.names.insert(node, BTreeMap::new());
                self.adopt(node, &path, inodes);
                continue;
            }
            if !is_new {
                continue;
            }
            let file = fs::File::open(&path).unwrap();
            let bytes = file.metadata().unwrap().len();
            self.done(Op::SetLen(node, bytes));
            for (offset, page) in pages_of(&file, bytes) {
                self.done(Op::Write(node, offset, page));
            }
            self.done(Op::Sync(node));
        }
        self.done(Op::Sync(dir));
    }

    fn done(&mut self, op: Op) {
        let ended = Some(self.events.len() + 1);
        self.events.push(Event { op, ended });
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

    /// The system said no to a sync; of a death, which no system said, nobody
    /// hears.
    pub(super) fn doubt(&self, error: &io::Error) {
        if error.raw_os_error().is_some() {
            let mut state = self.recorder.state();
            let doubt = state.doubts.entry(self.node).or_default();
            *doubt = doubt.more();
        }
    }

    /// The operation has ended.
    pub(super) fn ended(&self, event: usize) {
        let mut state = self.recorder.state();
        let now = state.events.len();
        state.events[event].ended = Some(now);
    }
}
