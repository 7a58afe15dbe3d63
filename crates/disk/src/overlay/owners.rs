//! The owner table of an open overlay: which frozen layer a block's bytes are
//! in, so that a read costs the same below any number of restore points.
//!
//! Built a page at a time from the marks of the frozen layers, when a read
//! first comes to it, and brought up to date when another layer freezes.
//! Memory is bounded: two bytes a block in at most [`PAGES_MAX`] pages; a page
//! that has one owner throughout takes none.

use std::io;
use std::sync::{PoisonError, RwLock};

use super::frozen::{Frozen, words};
use super::live::PAGE_BLOCKS;

/// Pages of the table that are held at once, of 32 KiB each: 32 MiB, which is
/// all of a disk of 64 GiB. Pages of larger disks take turns.
const PAGES_MAX: u64 = if cfg!(test) { 2 } else { 1024 };

/// Who has the bytes of a block: the image, nobody, or the layer that froze as
/// the so-manieth of this opening, counted from 1.
pub(super) type Owner = u16;
pub(super) const IMAGE: Owner = 0;
pub(super) const ZEROS: Owner = Owner::MAX;

/// Layers that can freeze before they are counted anew (in tests soon).
pub(super) const OWNERS_MAX: Owner = if cfg!(test) { 12 } else { Owner::MAX - 1 };

/// Blocks of a word of marks.
const WORD_BLOCKS: usize = 32;

/// The table.
#[derive(Debug)]
pub(super) struct Owners {
    slots: Box<[RwLock<Slot>]>,
}

/// The place of a page, shared by all that leave the same rest.
#[derive(Debug)]
struct Slot {
    page: u64,
    /// Up to which owner the layers are in it.
    newest: Owner,
    owners: Page,
}

#[derive(Debug)]
enum Page {
    All(Owner),
    Each(Box<[Owner]>),
}

impl Owners {
    pub(super) fn new(block_count: u64) -> Owners {
        let slots = block_count.div_ceil(PAGE_BLOCKS).clamp(1, PAGES_MAX);
        let slot = |_| {
            RwLock::new(Slot {
                page: u64::MAX,
                newest: IMAGE,
                owners: Page::All(IMAGE),
            })
        };
        Owners {
            slots: (0..slots).map(slot).collect(),
        }
    }

    /// Whose the bytes of `block` are, and where that run ends, at most `end`
    /// or the end of the page. `layers` are the frozen ones with the newest
    /// owner each stands for, lowest first.
    ///
    /// May know of layers that froze since `layers` was asked for; whoever
    /// does not know the owner then asks again.
    pub(super) fn run(
        &self,
        block: u64,
        end: u64,
        layers: &[(Owner, std::sync::Arc<Frozen>)],
    ) -> io::Result<(Owner, u64)> {
        let page = block / PAGE_BLOCKS;
        let end = end.min((page + 1) * PAGE_BLOCKS);
        let newest = layers.last().map_or(IMAGE, |(owner, _)| *owner);
        let slot = &self.slots[usize::try_from(page % self.slots.len() as u64).unwrap_or(0)];
        {
            let slot = slot.read().unwrap_or_else(PoisonError::into_inner);
            if slot.page == page && slot.newest >= newest {
                return Ok(slot.owners.run(block, end));
            }
        }
        let mut slot = slot.write().unwrap_or_else(PoisonError::into_inner);
        if slot.page != page {
            *slot = Slot {
                page,
                newest: IMAGE,
                owners: Page::All(IMAGE),
            };
        }
        for (owner, layer) in layers {
            if *owner <= slot.newest {
                continue;
            }
            // After an error the page is up to date with the layers below.
            if let Some(marks) = layer.page(page)? {
                slot.owners.cover(&marks, *owner, &layer.dir)?;
            }
            slot.newest = *owner;
        }
        slot.owners.shrink();
        Ok(slot.owners.run(block, end))
    }
}

impl Page {
    fn run(&self, block: u64, end: u64) -> (Owner, u64) {
        match self {
            Page::All(owner) => (*owner, end),
            Page::Each(owners) => {
                let place = |block: u64| usize::try_from(block % PAGE_BLOCKS).unwrap_or(0);
                let first = place(block);
                let wanted = usize::try_from(end - block).unwrap_or(usize::MAX);
                let owner = owners[first];
                let run = owners[first..].iter().take(wanted);
                let same = run.take_while(|&&other| other == owner).count();
                (owner, block + same as u64)
            }
        }
    }

    /// Lays the marks of the next layer over what is known.
    fn cover(
        &mut self,
        marks: &[u8; super::map::PAGE_BYTES],
        owner: Owner,
        dir: &std::path::Path,
    ) -> io::Result<()> {
        if words(marks).any(|word| word & (word >> 1) & super::live::Live::LOW_BITS != 0) {
            return Err(super::map::corrupt(dir, "holds marks that nobody writes"));
        }
        if let Page::All(all) = *self {
            let blocks = usize::try_from(PAGE_BLOCKS).unwrap_or(0);
            *self = Page::Each(vec![all; blocks].into_boxed_slice());
        }
        let Page::Each(owners) = self else {
            return Ok(());
        };
        for (word, owners) in words(marks).zip(owners.chunks_mut(WORD_BLOCKS)) {
            let mut rest = word;
            while rest != 0 {
                let at = rest.trailing_zeros() / 2;
                let bits = (rest >> (2 * at)) & 3;
                owners[at as usize] = if bits == 1 { owner } else { ZEROS };
                rest &= !(3 << (2 * at));
            }
        }
        Ok(())
    }

    /// Gives the memory of a page back that has one owner throughout.
    fn shrink(&mut self) {
        if let Page::Each(owners) = self
            && let Some(&first) = owners.first()
            && owners.iter().all(|&owner| owner == first)
        {
            *self = Page::All(first);
        }
    }
}
