//! How an open overlay comes to be: created, opened, begun afresh; and how a
//! closed one goes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::super::frozen::{Found, Frozen};
use super::super::head::{Entry, Head, Rest};
use super::super::journal::{Journal, StepError};
use super::super::layer::{BLOCK_BYTES, Layer, Top, layer_dir};
use super::super::lock::Lock;
use super::super::room::Room;
use super::super::rounds::Rounds;
use super::super::stack::{Stack, Stacked};
use super::super::{Below, Caching, HostLoss, OverlayMode};
use super::flush::Pending;
use super::merge::Retired;
use super::{Situation, Store};
use crate::files::Files;
use crate::health::{Health, trouble};
use crate::{DiskError, OpenError};

/// What a store is made of, besides its files and what lies below.
struct Parts {
    lock: Arc<Lock>,
    stack: Stack,
    journal: Journal,
    head: Head,
    loss: HostLoss,
}

impl Store {
    /// A new overlay. Its first layer comes with its first write.
    pub(in crate::overlay) fn create(
        files: Files,
        dir: &Path,
        below: Below,
        mode: OverlayMode,
        generation: u64,
        caching: Caching,
    ) -> Result<Arc<Store>, OpenError> {
        let mut head = Head {
            sequence: 0,
            mode,
            rest: Rest::at_birth(mode),
            generation,
            base: below.id,
            layers: vec![Entry::new(0)],
            is_fresh: true,
            quota_bytes: None,
        };
        let lock = put_in_place(&files, dir, |new| head.write_first(&files, new))?;
        let parts = Parts::fresh(lock.into(), head);
        Ok(Store::over(files, dir, below, caching, parts))
    }

    pub(in crate::overlay) fn open(
        files: Files,
        dir: &Path,
        below: Below,
        caching: Caching,
    ) -> Result<Arc<Store>, OpenError> {
        let lock = Lock::take(dir)?;
        let head = read_head(&files, dir)?;
        if head.base != below.id {
            return Err(OpenError::OtherBase {
                path: dir.to_owned(),
                expected: head.base.to_string(),
                offered: below.id.to_string(),
            });
        }
        let parts = match head.mode {
            OverlayMode::Reset => open_reset(&files, dir, lock.into(), head),
            OverlayMode::Keep => open_keep(&files, dir, lock.into(), head),
        };
        let parts = parts.map_err(|e| opening_failed(dir, e))?;
        let quota_bytes = parts.head.quota_bytes;
        let store = Store::over(files, dir, below, caching, parts);
        store.count_anew(quota_bytes)?;
        Ok(store)
    }

    pub(in crate::overlay) fn restart(
        files: Files,
        dir: &Path,
        below: Below,
        mode: OverlayMode,
        generation: u64,
        caching: Caching,
    ) -> Result<Arc<Store>, OpenError> {
        let lock = Lock::take(dir)?;
        let head = read_head(&files, dir)?;
        let head = Head {
            mode,
            rest: Rest::at_birth(mode),
            generation,
            base: below.id,
            ..head
        };
        let head = empty(&files, dir, head).map_err(|e| opening_failed(dir, e.into()))?;
        let parts = Parts::fresh(lock.into(), head);
        Ok(Store::over(files, dir, below, caching, parts))
    }

    /// No layer but a fresh one, under another generation; retires the handle.
    pub(in crate::overlay) fn reset(
        &self,
        retired: &AtomicBool,
        generation: u64,
    ) -> Result<Arc<Store>, OpenError> {
        self.retire(retired)?;
        // A merge that is under way ends at its next piece.
        let _layers = super::held(&self.layers);
        // No flush and no change of the head is under way, and none will be
        // by anybody who looks at the handle again.
        let _journal = self.journal();
        let head = Head {
            rest: Rest::at_birth(self.mode),
            generation,
            ..self.situation().head.clone()
        };
        let context = || self.context("starting afresh");
        match empty(&self.files, self.dir(), head) {
            Ok(head) => {
                // This store's head is no longer the newest: nobody may write it.
                self.health.close("the overlay was started afresh");
                let below = Below {
                    disk: self.disk.base.clone(),
                    id: self.base_id,
                };
                let parts = Parts::fresh(self.lock.clone(), head);
                let files = self.files.clone();
                Ok(Store::over(files, self.dir(), below, self.caching, parts))
            }
            Err(StepError::Abandoned(error)) => {
                retired.store(false, Ordering::Release);
                Err(trouble(context(), error).into())
            }
            Err(StepError::Failed(error)) => Err(self.health.sync_failed(context(), error).into()),
        }
    }

    fn over(files: Files, dir: &Path, below: Below, caching: Caching, parts: Parts) -> Arc<Store> {
        let head = parts.head;
        // A process that died left marks that are in no log: those of anybody
        // who found the head unsettled may be such.
        let unknown =
            head.mode == OverlayMode::Keep && head.rest != Rest::Settled && !head.is_fresh;
        let size_bytes = below.id.size_bytes;
        let room = Room::new(head.quota_bytes);
        Arc::new(Store {
            files,
            lock: parts.lock,
            base_id: below.id,
            mode: head.mode,
            caching,
            disk: Stacked::new(below.disk, dir.to_owned(), size_bytes, parts.stack),
            layers: Mutex::new(Retired::default()),
            ready: AtomicBool::new(head.rest != Rest::Settled && !head.is_fresh),
            situation: Mutex::new(Situation {
                head,
                loss: parts.loss,
            }),
            stripes: std::array::from_fn(|_| Mutex::new(())),
            unsynced: AtomicBool::new(unknown),
            pending: Mutex::new(Pending {
                runs: Vec::new(),
                everything: unknown,
            }),
            journal: Mutex::new(parts.journal),
            rounds: Rounds::default(),
            health: Health::default(),
            room,
        })
    }
}

impl Parts {
    /// Of an overlay without any layer but a fresh one.
    fn fresh(lock: Arc<Lock>, head: Head) -> Parts {
        let blocks = head.base.size_bytes.div_ceil(BLOCK_BYTES);
        Parts {
            lock,
            stack: Stack::new(Top::fresh(head.top()), Vec::new(), blocks),
            journal: Journal::none(),
            head,
            loss: HostLoss::None,
        }
    }
}

/// Opens the layers of a `keep` overlay.
fn open_keep(files: &Files, dir: &Path, lock: Arc<Lock>, mut head: Head) -> io::Result<Parts> {
    let size_bytes = head.base.size_bytes;
    let mut loss = match head.rest {
        Rest::Lost => HostLoss::LostWrites,
        Rest::Settled | Rest::Written => HostLoss::None,
    };
    let number = head.top();
    let (top, journal) = match head.is_fresh {
        true => (Top::fresh(number), Journal::none()),
        false => {
            let layer = match Layer::open(files, dir, number, size_bytes)? {
                Some(layer) => layer,
                None => {
                    match head.rest {
                        Rest::Settled => loss = HostLoss::Clean,
                        Rest::Lost => {}
                        Rest::Written => {
                            // Noted before the marks become those of this
                            // boot: a death in between must not hide the loss.
                            loss = HostLoss::LostWrites;
                            head.rest = Rest::Lost;
                            head.write(files, dir)?;
                        }
                    }
                    Layer::recover(files, dir, number, size_bytes)?
                }
            };
            let journal = Journal::open(files, &layer.dir)?;
            (Top::found(number, layer), journal)
        }
    };
    let frozen = find_frozen(files, dir, &head)?.ok_or_else(|| {
        let what = "a frozen layer has neither marks of this boot nor a checkpoint";
        io::Error::new(io::ErrorKind::InvalidData, what)
    })?;
    let blocks = size_bytes.div_ceil(BLOCK_BYTES);
    Ok(Parts {
        lock,
        stack: Stack::new(top, frozen, blocks),
        journal,
        head,
        loss,
    })
}

/// Opens the layers of a `reset` overlay, or an empty one in their place when
/// they went with the host.
fn open_reset(files: &Files, dir: &Path, lock: Arc<Lock>, mut head: Head) -> io::Result<Parts> {
    let size_bytes = head.base.size_bytes;
    let number = head.top();
    let top = match head.is_fresh {
        true => Some(Top::fresh(number)),
        false => Layer::open(files, dir, number, size_bytes)?.map(|l| Top::found(number, l)),
    };
    let found = match top {
        None => None,
        Some(top) => find_frozen(files, dir, &head)?.map(|frozen| (top, frozen)),
    };
    let Some((top, frozen)) = found else {
        // Void, and noted so together with the layer that replaces it.
        head.rest = Rest::Lost;
        let head = empty(files, dir, head)?;
        return Ok(Parts {
            loss: HostLoss::LostWrites,
            ..Parts::fresh(lock, head)
        });
    };
    let loss = match head.rest {
        Rest::Lost => HostLoss::LostWrites,
        Rest::Settled | Rest::Written => HostLoss::None,
    };
    let blocks = size_bytes.div_ceil(BLOCK_BYTES);
    Ok(Parts {
        lock,
        stack: Stack::new(top, frozen, blocks),
        journal: Journal::none(),
        head,
        loss,
    })
}

/// The frozen layers that a head names; `None` when one of them is void.
fn find_frozen(files: &Files, dir: &Path, head: &Head) -> io::Result<Option<Vec<Arc<Frozen>>>> {
    let mut layers = Vec::new();
    for entry in head.frozen() {
        match Frozen::find(files, dir, *entry, head.base.size_bytes)? {
            Found::Whole(layer) => layers.push(Arc::new(layer)),
            Found::Void => return Ok(None),
        }
    }
    Ok(Some(layers))
}

/// The head of an overlay that was just locked, once what it says is durable;
/// what it does not name is removed.
fn read_head(files: &Files, dir: &Path) -> Result<Head, OpenError> {
    let head = Head::settled(files, dir)?;
    Head::sync(files, dir)
        .and_then(|()| files.sync_dir(parent(dir)))
        .and_then(|()| remove_orphans(files, dir, &head))
        .map_err(|e| opening_failed(dir, e))?;
    Ok(head)
}

/// Puts one fresh layer in the place of those in `head`, with one write of the
/// head; until then the old ones are valid, afterwards the new one.
fn empty(files: &Files, dir: &Path, mut head: Head) -> Result<Head, StepError> {
    let number = head.next_number().map_err(StepError::Abandoned)?;
    head.layers = vec![Entry::new(number)];
    head.is_fresh = true;
    head.write(files, dir).map_err(StepError::Failed)?;
    if let Err(error) = remove_orphans(files, dir, &head) {
        // Found again and removed at the next opening.
        tracing::debug!(dir = %dir.display(), %error, "old layers stay");
    }
    Ok(head)
}

/// Makes a directory whose contents `fill` writes, durable under its name, and
/// holds its lock. Made under another name, so that what has the name is whole.
pub(in crate::overlay) fn put_in_place(
    files: &Files,
    dir: &Path,
    fill: impl FnOnce(&Path) -> io::Result<()>,
) -> Result<Lock, OpenError> {
    if dir.exists() {
        return Err(OpenError::Exists {
            path: dir.to_owned(),
        });
    }
    let new = beside(dir, "new");
    let failed = |e| trouble(format!("creating {}", dir.display()), e);
    files
        .remove_tree(&new)
        .and_then(|()| files.create_dir(&new))
        .map_err(failed)?;
    let lock = Lock::take(&new)?;
    let made = fill(&new)
        .and_then(|()| files.sync_dir(&new))
        .and_then(|()| files.rename(&new, dir))
        .and_then(|()| files.sync_dir(parent(dir)));
    if let Err(error) = made {
        let _ = files.remove_tree(&new);
        return Err(failed(error).into());
    }
    Ok(lock)
}

/// Removes a closed overlay.
pub(in crate::overlay) fn remove(files: &Files, dir: &Path) -> Result<(), OpenError> {
    let _lock = Lock::take(dir)?;
    let failed = |e| trouble(format!("removing {}", dir.display()), e);
    // First out of its name: what has the name is whole.
    let gone = beside(dir, "gone");
    files
        .remove_tree(&gone)
        .and_then(|()| files.rename(dir, &gone))
        .and_then(|()| files.sync_dir(parent(dir)))
        .and_then(|()| files.remove_tree(&gone))
        .map_err(failed)?;
    Ok(())
}

/// Removes what interrupted creations and removals left, but for what somebody
/// is at.
pub(in crate::overlay) fn sweep(files: &Files, overlays_dir: &Path) -> Result<(), OpenError> {
    let failed = |e| trouble(format!("sweeping {}", overlays_dir.display()), e);
    for name in files.names(overlays_dir).map_err(failed)? {
        if name.ends_with(".new") || name.ends_with(".gone") {
            let path = overlays_dir.join(name);
            let _lock = match Lock::take(&path) {
                Err(OpenError::InUse { .. } | OpenError::Missing { .. }) => continue,
                lock => lock?,
            };
            files.remove_tree(&path).map_err(failed)?;
        }
    }
    Ok(())
}

/// Removes directories of layers that no head names: a layer that did not come
/// to be, or one that was replaced.
pub(super) fn remove_orphans(files: &Files, dir: &Path, head: &Head) -> io::Result<()> {
    for name in files.names(dir)? {
        if let Ok(number) = name.parse::<u32>()
            && !head.layers.iter().any(|layer| layer.number == number)
            && layer_dir(dir, number) == dir.join(&name)
        {
            files.remove_tree(&dir.join(name))?;
        }
    }
    Ok(())
}

pub(in crate::overlay) fn opening_failed(dir: &Path, error: io::Error) -> OpenError {
    let context = format!("opening overlay {}", dir.display());
    OpenError::Disk(match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            DiskError::Corrupt(format!("{context}: {error}"))
        }
        _ => trouble(context, error),
    })
}

/// `NAME.suffix` in the same directory.
pub(in crate::overlay) fn beside(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    dir.with_file_name(name)
}

pub(in crate::overlay) fn parent(dir: &Path) -> &Path {
    match dir.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}
