//! Writes and unmaps of one block: in place where it is all there, else with
//! a change of the metadata that is noted after the data is written.

use std::ops::Range;

use super::Vhdx;
use super::bat::{BITMAP_BYTES, State, ZERO};
use super::source::index;
use super::volatile::Change;
use crate::DiskError;
use crate::zeros::zeros;

/// What a range of the disk is to hold.
#[derive(Clone, Copy)]
pub(super) enum Content<'a> {
    Bytes(&'a [u8]),
    Zeros(u64),
}

impl Content<'_> {
    fn len(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Zeros(count) => *count,
        }
    }

    fn part(&self, range: Range<u64>) -> Self {
        match self {
            Content::Bytes(bytes) => Content::Bytes(&bytes[index(range.start)..index(range.end)]),
            Content::Zeros(_) => Content::Zeros(range.end - range.start),
        }
    }

    fn copy_to(&self, target: &mut [u8]) {
        match self {
            Content::Bytes(bytes) => target.copy_from_slice(bytes),
            Content::Zeros(_) => target.fill(0),
        }
    }
}

impl Vhdx {
    /// Makes `block` hold `content` from byte `within` on.
    pub(super) fn put(
        &self,
        block: u64,
        within: u64,
        content: Content<'_>,
    ) -> Result<(), DiskError> {
        {
            let _shared = self.shared(block);
            if let Some(at) = self.in_place(block, within, content.len())? {
                return self.store(at + within, content);
            }
        }
        let _room = self.room()?;
        let _alone = self.alone(block);
        match self.bat.state(&self.layout, block) {
            State::Full(at) => self.store(at + within, content),
            State::Partial(at) => {
                let sectors = self.put_sectors(block, at, within, content)?;
                self.set_bits(sectors, true)
            }
            State::NotPresent if self.parent.is_some() => self.put_fresh(block, within, content),
            State::NotPresent | State::Zero => match content {
                Content::Zeros(_) => Ok(()),
                Content::Bytes(_) => self.put_whole(block, within, content),
            },
        }
    }

    /// Where a block lies of which a range can be written without a word.
    fn in_place(&self, block: u64, within: u64, bytes: u64) -> Result<Option<u64>, DiskError> {
        match self.bat.state(&self.layout, block) {
            State::Full(at) => Ok(Some(at)),
            State::Partial(at) => {
                let sectors = self.sectors(block, within, bytes);
                let (is_here, end) = self.bits(sectors.clone())?;
                Ok((is_here && end == sectors.end).then_some(at))
            }
            State::NotPresent | State::Zero => Ok(None),
        }
    }

    /// Gives a block of zeros a place that holds all of it.
    fn put_whole(&self, block: u64, within: u64, content: Content<'_>) -> Result<(), DiskError> {
        let bytes = self.layout.block_bytes;
        let at = self.place(bytes)?;
        self.store(at + within, content)
            .inspect_err(|_| self.gaps().give(at, bytes))?;
        self.enter(self.layout.entry_of(block), State::Full(at).emit(), None)
    }

    /// Gives a block that is all in the parent a place of its own.
    fn put_fresh(&self, block: u64, within: u64, content: Content<'_>) -> Result<(), DiskError> {
        if within == 0 && content.len() == self.layout.bytes_of(block) {
            return match content {
                Content::Bytes(_) => self.put_whole(block, within, content),
                Content::Zeros(_) => self.enter(self.layout.entry_of(block), ZERO, None),
            };
        }
        self.place_bitmap(block / self.layout.ratio())?;
        let bytes = self.layout.block_bytes;
        let at = self.place(bytes)?;
        let sectors = self
            .put_sectors(block, at, within, content)
            .inspect_err(|_| self.gaps().give(at, bytes))?;
        let all = self.sectors(block, 0, self.layout.bytes_of(block));
        if self.bits(all.clone())? != (false, all.end) {
            self.set_bits(all, false)?;
        }
        self.enter(self.layout.entry_of(block), State::Partial(at).emit(), None)?;
        self.set_bits(sectors, true)
    }

    /// Makes a whole block zeros, which take no space.
    pub(super) fn drop_block(&self, block: u64) -> Result<(), DiskError> {
        let is_zero = |state| match state {
            State::Zero => true,
            State::NotPresent => self.parent.is_none(),
            State::Full(_) | State::Partial(_) => false,
        };
        if is_zero(self.bat.state(&self.layout, block)) {
            return Ok(());
        }
        let _room = self.room()?;
        let _alone = self.alone(block);
        let state = self.bat.state(&self.layout, block);
        let frees = match state {
            State::Full(at) | State::Partial(at) => Some((at, self.layout.block_bytes)),
            _ if is_zero(state) => return Ok(()),
            State::NotPresent | State::Zero => None,
        };
        self.enter(self.layout.entry_of(block), ZERO, frees)
    }

    /// Writes `content` and what is missing of the sectors it begins and ends
    /// in; which sectors are whole then. The block is held alone.
    fn put_sectors(
        &self,
        block: u64,
        at: u64,
        within: u64,
        content: Content<'_>,
    ) -> Result<Range<u64>, DiskError> {
        let sector_bytes = self.layout.sector_bytes;
        let end = within + content.len();
        let mut here = within;
        while here < end {
            let sector = here / sector_bytes * sector_bytes;
            if here == sector && end - here >= sector_bytes {
                let stop = end / sector_bytes * sector_bytes;
                self.store(at + here, content.part(here - within..stop - within))?;
                here = stop;
                continue;
            }
            let stop = end.min(sector + sector_bytes);
            let mut whole = [0; 4096];
            let whole = &mut whole[..index(sector_bytes)];
            self.read_block(block, sector, whole)?;
            let part = &mut whole[index(here - sector)..index(stop - sector)];
            content.part(here - within..stop - within).copy_to(part);
            self.store(at + sector, Content::Bytes(whole))?;
            here = stop;
        }
        Ok(self.sectors(block, within, content.len()))
    }

    fn store(&self, at: u64, content: Content<'_>) -> Result<(), DiskError> {
        let file = &self.source.file;
        let stored = match content {
            Content::Bytes(bytes) => file.write_all_at(bytes, at),
            Content::Zeros(bytes) => self.zero(at, bytes),
        };
        stored.map_err(|e| self.write_failed("writing", e))
    }

    /// Makes a range of the file zeros, giving its space back if that can be.
    pub(super) fn zero(&self, at: u64, bytes: u64) -> std::io::Result<()> {
        let file = &self.source.file;
        if bytes == 0 || file.punch_hole(at, bytes)? {
            return Ok(());
        }
        let mut done = 0;
        while done < bytes {
            let piece = zeros(bytes - done);
            file.write_all_at(piece, at + done)?;
            done += piece.len() as u64;
        }
        Ok(())
    }

    /// Room for `bytes` zeros in the file.
    pub(super) fn place(&self, bytes: u64) -> Result<u64, DiskError> {
        let file = &self.source.file;
        let (at, is_gap, long_enough) = {
            let mut gaps = self.gaps();
            let (at, is_gap) = gaps.take(bytes);
            // Under the lock: the file never becomes shorter again.
            let long_enough = file.inner().metadata().and_then(|metadata| {
                if metadata.len() < at + bytes {
                    file.set_len(gaps.file_bytes())?;
                }
                Ok(())
            });
            (at, is_gap, long_enough)
        };
        let made = match is_gap {
            true => long_enough.and_then(|()| self.zero(at, bytes)),
            false => long_enough,
        };
        made.map_err(|e| {
            self.gaps().give(at, bytes);
            self.write_failed("growing", e)
        })?;
        Ok(at)
    }

    /// Gives the sector bitmaps of a chunk a place, all of them zeros.
    fn place_bitmap(&self, chunk: u64) -> Result<(), DiskError> {
        let _one = self.bitmap_placing.lock();
        if self.bat.bitmap_at(&self.layout, chunk).is_some() {
            return Ok(());
        }
        let at = self.place(BITMAP_BYTES)?;
        let entry = self.layout.bitmap_entry_of(chunk);
        self.enter(entry, State::Full(at).emit(), None)
    }

    /// Notes and makes an entry of the BAT.
    fn enter(&self, entry: u64, value: u64, frees: Option<(u64, u64)>) -> Result<(), DiskError> {
        self.note(Change::Entry { entry, value }, frees)?;
        self.bat.store(entry, value);
        Ok(())
    }

    fn set_bits(&self, sectors: Range<u64>, value: bool) -> Result<(), DiskError> {
        let (first, count) = (sectors.start, sectors.end - sectors.start);
        self.note(
            Change::Bits {
                first,
                count,
                value,
            },
            None,
        )?;
        self.mark(sectors, value)
            .map_err(|e| self.write_failed("reading the sector bitmap of", e))
    }
}
