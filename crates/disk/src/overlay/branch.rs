//! Other overlays on the same layers: branches, and views that are only read.
//!
//! The files of frozen layers are hard links, so nobody counts who stands on
//! them: what the last one removes is gone.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};

use super::frozen::{Found, Frozen};
use super::head::{Entry, Head, Rest};
use super::layer::{BLOCK_BYTES, Top, layer_dir};
use super::lock::Lock;
use super::map::corrupt;
use super::point::{NOTE_FILE, Note, Point, PointId};
use super::stack::{Place, Stack, Stacked};
use super::store::{Store, opening_failed, parent, put_in_place, stored_bytes};
use super::{Below, Caching, OverlayMode};
use crate::files::Files;
use crate::health::trouble;
use crate::{Access, Disk, DiskError, Durability, Extent, Geometry, OpenError, Segment};

/// How often it is tried to catch the layers of an overlay between two changes
/// of them.
const ATTEMPTS: usize = 100;

/// The restore points of the overlay in `dir`, oldest first. One whose note is
/// damaged is left out: nobody can name it, and the others are there.
pub(super) fn points(dir: &Path) -> Result<Vec<Point>, OpenError> {
    caught(dir, |head| {
        let mut points = Vec::new();
        let mut stored = 0;
        for entry in head.frozen() {
            let layer = layer_dir(dir, entry.number);
            stored += stored_bytes(&layer)?;
            if entry.is_point
                && let Some(note) = Note::read_whole(&layer)?
            {
                points.push(Point {
                    note,
                    stored_bytes: std::mem::take(&mut stored),
                });
            }
        }
        Ok(points)
    })
}

/// Calls `look` with the head of an overlay that may change meanwhile, until
/// nothing it names has gone under its eyes.
fn caught<T>(dir: &Path, mut look: impl FnMut(&Head) -> io::Result<T>) -> Result<T, OpenError> {
    let mut attempt = 1;
    loop {
        match look(&Head::read(dir)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => {
                attempt += 1;
            }
            answer => return answer.map_err(|e| opening_failed(dir, e)),
        }
    }
}

/// The frozen layers up to a restore point, lowest first.
fn up_to(dir: &Path, head: &Head, at: PointId) -> io::Result<Option<Vec<Entry>>> {
    for (index, entry) in head.frozen().iter().enumerate() {
        if entry.is_point
            && let Some(note) = Note::read_whole(&layer_dir(dir, entry.number))?
            && note.id == at
        {
            return Ok(Some(head.frozen()[..=index].to_vec()));
        }
    }
    Ok(None)
}

/// Links the frozen layers of `source` up to a restore point into the new
/// directory `dir`, and answers the head they were found in, with them alone.
fn link_layers(files: &Files, source: &Path, at: PointId, dir: &Path) -> Result<Head, OpenError> {
    let gone = || OpenError::NoPoint {
        path: source.to_owned(),
        id: at,
    };
    let linked = caught(source, |head| {
        let Some(entries) = up_to(source, head, at)? else {
            return Ok(None);
        };
        for entry in &entries {
            files.remove_tree(&layer_dir(dir, entry.number))?;
            link_layer(files, source, dir, *entry)?;
        }
        let layers = entries;
        Ok(Some(Head {
            layers,
            ..head.clone()
        }))
    })?;
    let head = linked.ok_or_else(gone)?;
    // A layer may only be changed once its point was taken away, and from here
    // on it is shared: if the point is still there nothing was changed.
    let still = caught(source, |head| up_to(source, head, at))?;
    still.ok_or_else(gone)?;
    Ok(head)
}

fn link_layer(files: &Files, source: &Path, dir: &Path, entry: Entry) -> io::Result<()> {
    let (from, to) = (
        layer_dir(source, entry.number),
        layer_dir(dir, entry.number),
    );
    files.create_dir(&to)?;
    let link = |name: &str| files.hard_link(&from.join(name), &to.join(name));
    if entry.is_point {
        link(NOTE_FILE)?;
    }
    if !entry.is_empty {
        {
            let data = std::fs::File::open(from.join("data"))?;
            flock(&data, FlockOperation::LockShared)?;
            link("data")?;
        }
        // The newest map with the log that was there when it was the newest:
        // one that was replaced meanwhile is not found.
        let names = files.names(&from)?;
        let has = |name: &str| names.iter().any(|other| other == name);
        let newest = names
            .iter()
            .filter_map(|name| name.strip_prefix("map.")?.parse::<u64>().ok())
            .max();
        if has("live") {
            link("live")?;
        }
        if let Some(newest) = newest {
            link(&format!("map.{newest}"))?;
            let log = format!("log.{newest}");
            if has(&log) {
                link(&log)?;
            }
        } else if !has("live") {
            // Sealed while its names were read: looked at again.
            let what = format!("{} has no checkpoint", from.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, what));
        }
    }
    Ok(())
}

/// Makes in `dir` a new overlay on the layers of another one.
pub(super) fn branch(
    files: &Files,
    source: &Path,
    at: PointId,
    dir: &Path,
    mode: OverlayMode,
    generation: u64,
) -> Result<(), OpenError> {
    let mut refused = None;
    let made = put_in_place(files, dir, |new| {
        let head = match link_layers(files, source, at, new) {
            Ok(head) => head,
            Err(error) => {
                refused = Some(error);
                return Err(io::Error::other("no layers"));
            }
        };
        if mode == OverlayMode::Keep {
            make_durable(files, new, &head)?;
        }
        let mut layers = head.layers.clone();
        layers.push(Entry::new(head.next_number()?));
        let mut head = Head {
            sequence: 0,
            mode,
            rest: Rest::at_birth(mode),
            generation,
            layers,
            is_fresh: true,
            quota_bytes: None,
            ..head
        };
        head.write_first(files, new)?;
        // After the heads: on many file systems their sync is theirs too.
        head.frozen()
            .iter()
            .try_for_each(|entry| files.sync_dir(&layer_dir(new, entry.number)))
    });
    match (made, refused) {
        (Err(_), Some(refused)) => Err(refused),
        (made, _) => made.map(drop),
    }
}

/// Makes layers durable that come from a `reset` overlay.
fn make_durable(files: &Files, dir: &Path, head: &Head) -> io::Result<()> {
    for entry in head.layers.iter().filter(|entry| !entry.is_empty) {
        let names = files.names(&layer_dir(dir, entry.number))?;
        if names.iter().any(|name| name.starts_with("map.")) {
            continue;
        }
        match Frozen::find(files, dir, *entry, head.base.size_bytes)? {
            Found::Whole(layer) => layer.seal()?,
            Found::Void => {
                let path = layer_dir(dir, entry.number);
                return Err(corrupt(
                    &path,
                    "went with its host: there is nothing left of it",
                ));
            }
        }
    }
    Ok(())
}

/// Where the bytes of a stretch of an overlay come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The image below: nothing was written over them.
    Image,
    /// The overlay: they were written.
    Overlay,
    /// Nowhere: they were unmapped, and read as zeros.
    Zeros,
}

/// An overlay as it was at a restore point, or as it is: a disk that is only
/// read.
pub struct View {
    kind: Kind,
}

enum Kind {
    /// The layers up to a point, linked under a name that is swept.
    Point {
        disk: Stacked,
        files: Files,
        _lock: Lock,
    },
    /// The overlay itself, open and locked.
    Whole(Arc<Store>),
}

impl View {
    pub(super) fn open(
        files: Files,
        dir: &Path,
        at: Option<PointId>,
        below: Below,
    ) -> Result<View, OpenError> {
        let Some(at) = at else {
            let store = Store::open(files, dir, below, Caching::WriteBack)?;
            return Ok(View {
                kind: Kind::Whole(store),
            });
        };
        let base = Head::read(dir)?.base;
        if base != below.id {
            return Err(OpenError::OtherBase {
                path: dir.to_owned(),
                expected: base.to_string(),
                offered: below.id.to_string(),
            });
        }
        let place = view_dir(dir);
        let failed = |e| trouble(format!("making a view of {}", dir.display()), e);
        files
            .remove_tree(&place)
            .and_then(|()| files.create_dir(&place))
            .map_err(failed)?;
        let lock = Lock::take(&place)?;
        let opened = link_layers(&files, dir, at, &place).and_then(|head| {
            let find = |entry: &Entry| match Frozen::find(&files, &place, *entry, base.size_bytes) {
                Ok(Found::Whole(layer)) => Ok(Arc::new(layer)),
                Ok(Found::Void) => Err(corrupt(dir, "went with its host")),
                Err(error) => Err(error),
            };
            let frozen: io::Result<Vec<_>> = head.layers.iter().map(find).collect();
            frozen.map_err(|e| opening_failed(dir, e))
        });
        let frozen = match opened {
            Ok(frozen) => frozen,
            Err(error) => {
                let _ = files.remove_tree(&place);
                return Err(error);
            }
        };
        let blocks = base.size_bytes.div_ceil(BLOCK_BYTES);
        let stack = Stack::new(Top::fresh(0), frozen, blocks);
        Ok(View {
            kind: Kind::Point {
                disk: Stacked::new(below.disk, place, base.size_bytes, stack),
                files,
                _lock: lock,
            },
        })
    }

    /// Where the bytes from `offset` on come from, and for how many of at most
    /// `bytes` that is so.
    pub fn origin(&self, offset: u64, bytes: u64) -> Result<(Origin, u64), DiskError> {
        let mut found = (Origin::Image, 0);
        self.disk().runs(offset, bytes, |place, run| {
            let origin = match place {
                Place::Image => Origin::Image,
                Place::Zeros => Origin::Zeros,
                Place::Data(_) => Origin::Overlay,
            };
            found = (origin, run.end - run.start);
            Ok(false) // the first run is all
        })?;
        Ok(found)
    }

    fn disk(&self) -> &Stacked {
        match &self.kind {
            Kind::Point { disk, .. } => disk,
            Kind::Whole(store) => &store.disk,
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let Kind::Point { disk, files, .. } = &self.kind
            && let Err(error) = files.remove_tree(&disk.dir)
        {
            tracing::debug!(dir = %disk.dir.display(), %error, "a view stays until the next sweep");
        }
    }
}

impl Disk for View {
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.disk().size_bytes,
            logical_block_bytes: 512,
            physical_block_bytes: 4096,
        }
    }

    fn access(&self) -> Access {
        Access::ReadOnly
    }

    fn durability(&self) -> Durability {
        Durability::WriteBack
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.disk().read(offset, buffer)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.refuse(offset, data.len() as u64)
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.refuse(offset, bytes)
    }

    fn segments<'a>(
        &'a self,
        offset: u64,
        bytes: u64,
        segments: &mut Vec<Segment<'a>>,
    ) -> Result<bool, DiskError> {
        self.disk().segments(offset, bytes, segments)
    }

    fn extent(&self, offset: u64, bytes: u64) -> Result<Extent, DiskError> {
        self.disk().extent(offset, bytes)
    }

    fn will_need(&self, offset: u64, bytes: u64) {
        self.disk().will_need(offset, bytes);
    }
}

impl View {
    fn refuse(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        crate::range::check(offset, bytes, self.disk().size_bytes)?;
        Err(DiskError::ReadOnly)
    }
}

/// A name beside an overlay that no other view has, and that a sweep removes.
fn view_dir(dir: &Path) -> PathBuf {
    static VIEWS: AtomicU64 = AtomicU64::new(0);
    let number = VIEWS.fetch_add(1, Ordering::Relaxed);
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let name = format!("{name}.view-{}-{number}.new", std::process::id());
    parent(dir).join(name)
}
