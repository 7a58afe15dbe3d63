//! The layers of an overlay above its image, and where the bytes of a block
//! are: in the top, in a frozen layer, nowhere (zeros), or in the image.
//!
//! A stack never changes but for what is written to its top. A restore point
//! or a merge of layers puts another in its place; who still reads by the old
//! one reads right, because data of a frozen layer is only changed in blocks
//! that a layer above has covered.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use super::data::Held;
use super::frozen::Frozen;
use super::layer::{BLOCK_BYTES, Top};
use super::live::Mark;
use super::map::corrupt;
use super::owners::{IMAGE, OWNERS_MAX, Owner, Owners, ZEROS};
use crate::health::trouble;
use crate::zeros::zeros;
use crate::{Allocation, DiskError, Extent, Segment, SharedDisk, range};

/// The layers of an overlay as of some moment.
#[derive(Debug)]
pub(super) struct Stack {
    pub(super) top: Arc<Top>,
    /// The newest owner each stands for, lowest first.
    frozen: Vec<(Owner, Arc<Frozen>)>,
    owners: Arc<Owners>,
}

/// Where the bytes of a run of blocks are.
pub(super) enum Place<'s> {
    Image,
    Zeros,
    Data(Held<'s>),
}

impl Stack {
    pub(super) fn new(top: Top, frozen: Vec<Arc<Frozen>>, block_count: u64) -> Stack {
        Stack {
            top: Arc::new(top),
            frozen: (1..).zip(frozen).collect(),
            owners: Arc::new(Owners::new(block_count)),
        }
    }

    /// The frozen layers, lowest first.
    pub(super) fn frozen(&self) -> impl ExactSizeIterator<Item = &Arc<Frozen>> {
        self.frozen.iter().map(|(_, layer)| layer)
    }

    /// The stack above which another top is written.
    pub(super) fn frozen_as(&self, layer: Frozen, top: Top) -> Stack {
        let block_count = layer.block_count;
        let newest = self.frozen.last().map_or(IMAGE, |(owner, _)| *owner);
        let mut frozen = self.frozen.clone();
        if newest >= OWNERS_MAX {
            let mut layers: Vec<_> = frozen.into_iter().map(|(_, layer)| layer).collect();
            layers.push(Arc::new(layer));
            return Stack::new(top, layers, block_count);
        }
        frozen.push((newest + 1, Arc::new(layer)));
        Stack {
            top: Arc::new(top),
            frozen,
            owners: self.owners.clone(),
        }
    }

    /// The stack in which `layer` stands for the frozen layers `lower` and the
    /// one above it.
    pub(super) fn merged(&self, lower: usize, layer: Arc<Frozen>) -> Stack {
        let mut frozen = self.frozen.clone();
        frozen.remove(lower);
        frozen[lower].1 = layer;
        Stack {
            top: self.top.clone(),
            frozen,
            owners: self.owners.clone(),
        }
    }

    /// The frozen layer that stands for `owner`.
    fn layer_of(&self, owner: Owner) -> Option<&Arc<Frozen>> {
        // Where none was merged away each has its place, and needs no search.
        let place = usize::from(owner).checked_sub(1)?;
        match self.frozen.get(place) {
            Some((newest, layer)) if *newest == owner => Some(layer),
            _ => {
                let at = self.frozen.partition_point(|(newest, _)| *newest < owner);
                self.frozen.get(at).map(|(_, layer)| layer)
            }
        }
    }

    /// Where the bytes of `block` are, and where that run of blocks ends, at
    /// most `end`.
    fn run(&self, block: u64, end: u64) -> Result<(Place<'_>, u64), Miss> {
        let (mark, end) = match self.top.layer() {
            Some(top) => top.live.run(block, end),
            None => (Mark::Below, end),
        };
        match (mark, self.top.layer()) {
            (Mark::Own, Some(top)) => return Ok((Place::Data(Held::Open(&top.data)), end)),
            (Mark::Zero, _) => return Ok((Place::Zeros, end)),
            (Mark::Broken, Some(top)) => {
                return Err(corrupt(&top.dir, "holds marks that nobody writes").into());
            }
            _ if self.frozen.is_empty() => return Ok((Place::Image, end)),
            _ => {}
        }
        let (owner, end) = self.owners.run(block, end, &self.frozen)?;
        let place = match owner {
            IMAGE => Place::Image,
            ZEROS => Place::Zeros,
            owner => Place::Data(self.layer_of(owner).ok_or(Miss::Newer)?.data()?),
        };
        Ok((place, end))
    }
}

/// Why a stack did not tell where bytes are.
enum Miss {
    /// In a layer that froze since.
    Newer,
    Io(io::Error),
}

impl From<io::Error> for Miss {
    fn from(error: io::Error) -> Miss {
        Miss::Io(error)
    }
}

/// An image with the layers of an overlay above it, to be read.
pub(super) struct Stacked {
    pub(super) base: SharedDisk,
    pub(super) dir: PathBuf,
    pub(super) size_bytes: u64,
    stack: RwLock<Arc<Stack>>,
}

impl Stacked {
    pub(super) fn new(base: SharedDisk, dir: PathBuf, size_bytes: u64, stack: Stack) -> Stacked {
        Stacked {
            base,
            dir,
            size_bytes,
            stack: RwLock::new(Arc::new(stack)),
        }
    }

    /// The stack as it is now.
    pub(super) fn stack(&self) -> Arc<Stack> {
        let stack = self.stack.read().unwrap_or_else(PoisonError::into_inner);
        stack.clone()
    }

    /// Puts another stack in its place. Who changes the top holds all stripes.
    pub(super) fn replace(&self, stack: Stack) -> Arc<Stack> {
        let mut held = self.stack.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *held, Arc::new(stack))
    }

    /// Calls `part` with each part of a range whose bytes are in one place, in
    /// order, until it answers `false`; that is then the answer.
    pub(super) fn runs(
        &self,
        offset: u64,
        bytes: u64,
        mut part: impl FnMut(Place<'_>, Range<u64>) -> Result<bool, DiskError>,
    ) -> Result<bool, DiskError> {
        range::check(offset, bytes, self.size_bytes)?;
        let end = offset + bytes;
        let last = end.div_ceil(BLOCK_BYTES);
        let mut at = offset;
        let mut stack = self.stack();
        while at < end {
            let (place, run_end) = match stack.run(at / BLOCK_BYTES, last) {
                Ok(found) => found,
                Err(miss) => {
                    // A layer may have frozen, or its files gone in a merge.
                    let now = self.stack();
                    match miss {
                        _ if !Arc::ptr_eq(&now, &stack) => {}
                        Miss::Newer => {
                            let reason = "a block has an owner that never froze";
                            return Err(DiskError::Corrupt(self.context(reason)));
                        }
                        Miss::Io(error) => return Err(self.unread(error)),
                    }
                    stack = now;
                    continue;
                }
            };
            let next = (run_end * BLOCK_BYTES).min(end);
            if !part(place, at..next)? {
                return Ok(false);
            }
            at = next;
        }
        Ok(true)
    }

    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        let mut rest = buffer;
        self.runs(offset, rest.len() as u64, |place, run| {
            let length = usize::try_from(run.end - run.start).unwrap_or(usize::MAX);
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(length);
            rest = behind;
            match place {
                Place::Image => self.base.read(run.start, part)?,
                Place::Zeros => part.fill(0),
                Place::Data(data) => data
                    .file
                    .read_exact_at(part, run.start)
                    .map_err(|error| self.unread(error))?,
            }
            Ok(true)
        })
        .map(|_| ())
    }

    pub(super) fn segments<'a>(
        &'a self,
        offset: u64,
        bytes: u64,
        segments: &mut Vec<Segment<'a>>,
    ) -> Result<bool, DiskError> {
        let before = segments.len();
        let answer = self.runs(offset, bytes, |place, run| match place {
            Place::Image => self.base.segments(run.start, run.end - run.start, segments),
            Place::Data(data) => {
                let Some(start) = data.address(run.start) else {
                    return Ok(false);
                };
                let length = usize::try_from(run.end - run.start).unwrap_or(usize::MAX);
                segments.push(Segment::new(start, length));
                Ok(true)
            }
            Place::Zeros => {
                let mut left = run.end - run.start;
                while left > 0 {
                    let piece = zeros(left);
                    segments.push(Segment::new(piece.as_ptr(), piece.len()));
                    left -= piece.len() as u64;
                }
                Ok(true)
            }
        });
        if !matches!(answer, Ok(true)) {
            segments.truncate(before);
        }
        answer
    }

    pub(super) fn extent(&self, offset: u64, bytes: u64) -> Result<Extent, DiskError> {
        let mut found = Extent {
            bytes: 0,
            allocation: Allocation::Mapped,
        };
        self.runs(offset, bytes, |place, run| {
            let bytes = run.end - run.start;
            found = match place {
                Place::Image => self.base.extent(run.start, bytes)?,
                Place::Data(_) => Extent {
                    bytes,
                    allocation: Allocation::Mapped,
                },
                Place::Zeros => Extent {
                    bytes,
                    allocation: Allocation::Deallocated,
                },
            };
            Ok(false) // the first run is all
        })?;
        Ok(found)
    }

    pub(super) fn will_need(&self, offset: u64, bytes: u64) {
        // A range that leaves the disk is refused when it is read.
        let _ = self.runs(offset, bytes, |place, run| {
            match place {
                Place::Image => self.base.will_need(run.start, run.end - run.start),
                Place::Data(data) => data.will_need(run.start, run.end - run.start),
                Place::Zeros => {}
            }
            Ok(true)
        });
    }

    pub(super) fn context(&self, what: &str) -> String {
        format!("{what} overlay {}", self.dir.display())
    }

    fn unread(&self, error: io::Error) -> DiskError {
        let dir = self.dir.display();
        match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                DiskError::Corrupt(format!("the data of {dir} was cut off"))
            }
            io::ErrorKind::InvalidData | io::ErrorKind::NotFound => {
                DiskError::Corrupt(format!("reading overlay {dir}: {error}"))
            }
            _ => trouble(self.context("reading"), error),
        }
    }
}
