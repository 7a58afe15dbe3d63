//! Which parts of the file hold something, in MiB.

use std::collections::BTreeMap;

use super::source::index;

/// Unit in which everything lies in a VHDX.
const UNIT_BYTES: u64 = 1 << 20;

/// Gaps that are looked at before the file grows instead.
const GAPS_TRIED: usize = 64;

/// What is taken, while a file is being looked at.
#[derive(Debug)]
pub(super) struct Space {
    taken: Vec<u64>,
    units: u64,
}

impl Space {
    /// A file of `file_bytes` of which only the first MiB is taken.
    pub(super) fn new(file_bytes: u64) -> Space {
        let units = file_bytes.div_ceil(UNIT_BYTES);
        let mut space = Space {
            taken: vec![0; index(units.div_ceil(64))],
            units,
        };
        space.take(0, UNIT_BYTES);
        space
    }

    /// Takes a range; `false` when some of it is taken.
    pub(super) fn take(&mut self, offset: u64, bytes: u64) -> bool {
        let first = offset / UNIT_BYTES;
        let end = first + bytes.div_ceil(UNIT_BYTES);
        self.units = self.units.max(end);
        if index(self.units.div_ceil(64)) > self.taken.len() {
            self.taken.resize(index(self.units.div_ceil(64)), 0);
        }
        let mut fresh = true;
        let mut unit = first;
        while unit < end {
            let count = (64 - unit % 64).min(end - unit);
            let mask = (u64::MAX >> (64 - count)) << (unit % 64);
            let word = &mut self.taken[index(unit / 64)];
            fresh &= *word & mask == 0;
            *word |= mask;
            unit += count;
        }
        fresh
    }

    /// What is not taken, to be handed out.
    pub(super) fn gaps(&self) -> Gaps {
        let mut gaps = Gaps {
            free: BTreeMap::new(),
            end: self.units,
        };
        let mut unit = 0;
        while unit < self.units {
            let word = self.taken[index(unit / 64)];
            if word == u64::MAX {
                unit = (unit / 64 + 1) * 64;
            } else {
                if word & (1 << (unit % 64)) == 0 {
                    gaps.give(unit * UNIT_BYTES, UNIT_BYTES);
                }
                unit += 1;
            }
        }
        gaps
    }
}

/// What can be handed out: gaps in the file, then its end.
#[derive(Debug)]
pub(super) struct Gaps {
    /// First unit and number of units of each gap.
    free: BTreeMap<u64, u64>,
    /// The unit at which the file ends.
    end: u64,
}

impl Gaps {
    /// Room for `bytes`: its offset, and whether it is a gap, which may hold
    /// anything. If it is not, the file is to grow to [`Gaps::file_bytes`].
    pub(super) fn take(&mut self, bytes: u64) -> (u64, bool) {
        let units = bytes.div_ceil(UNIT_BYTES);
        let gap = self
            .free
            .iter()
            .take(GAPS_TRIED)
            .find(|(_, length)| **length >= units);
        if let Some((&first, &length)) = gap {
            self.free.remove(&first);
            if length > units {
                self.free.insert(first + units, length - units);
            }
            return (first * UNIT_BYTES, true);
        }
        let first = self.end;
        self.end += units;
        (first * UNIT_BYTES, false)
    }

    /// Gives room back.
    pub(super) fn give(&mut self, offset: u64, bytes: u64) {
        let mut first = offset / UNIT_BYTES;
        let mut units = bytes.div_ceil(UNIT_BYTES);
        if let Some((&before, &length)) = self.free.range(..first).next_back()
            && before + length == first
        {
            self.free.remove(&before);
            (first, units) = (before, units + length);
        }
        if let Some(length) = self.free.remove(&(first + units)) {
            units += length;
        }
        self.free.insert(first, units);
    }

    /// How long the file is with all that was handed out.
    pub(super) fn file_bytes(&self) -> u64 {
        self.end * UNIT_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = UNIT_BYTES;

    #[test]
    fn gaps_are_filled_before_the_file_grows() {
        let mut space = Space::new(8 * MIB);
        assert!(space.take(2 * MIB, MIB) && space.take(5 * MIB, 3 * MIB));
        assert!(!space.take(4 * MIB, 2 * MIB), "the second MiB is taken");
        let mut space = Space::new(8 * MIB);
        assert!(space.take(2 * MIB, MIB) && space.take(5 * MIB, 3 * MIB));
        let mut gaps = space.gaps();
        assert_eq!(gaps.take(2 * MIB), (3 * MIB, true));
        assert_eq!(gaps.take(2 * MIB), (8 * MIB, false));
        assert_eq!(gaps.file_bytes(), 10 * MIB);
        gaps.give(2 * MIB, MIB);
        assert_eq!(gaps.take(2 * MIB), (MIB, true), "neighbours are one gap");
    }
}
