//! What was asked of a disk and what it answered, and what it may therefore
//! hold.

/// The unit in which contents are held against the history.
pub(crate) const SECTOR: usize = 512;

/// A stamp tells who wrote a sector last: the image, nobody (zeros), or the
/// write of that number.
pub(crate) type Stamp = u32;
pub(crate) const IMAGE: Stamp = 0;
pub(crate) const ZEROS: Stamp = u32::MAX;

/// What a sector holds that was written by `stamp`.
pub(crate) fn sector_of(stamp: Stamp, sector: usize) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    if stamp != ZEROS {
        let word = (u64::from(stamp) << 32 | sector as u64 | 1 << 31).to_le_bytes();
        for place in bytes.chunks_mut(8) {
            place.copy_from_slice(&word);
        }
    }
    bytes
}

/// Who wrote a sector last; `None` when it is nobody's bytes.
pub(super) fn stamp_of(bytes: &[u8; SECTOR], sector: usize) -> Option<Stamp> {
    let stamp = match word(bytes) {
        0 => ZEROS,
        word => u32::try_from(word >> 32).ok()?,
    };
    (sector_of(stamp, sector) == *bytes).then_some(stamp)
}

fn word(bytes: &[u8; SECTOR]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

fn describe(bytes: &[u8; SECTOR]) -> String {
    if bytes.iter().all(|&b| b == 0) {
        return "zeros".into();
    }
    let word = word(bytes);
    format!("stamp {} of sector {}", word >> 32, word & 0x7fff_ffff)
}

/// One change of one sector: asked for before event `begun`, over before event
/// `ended`, and then perhaps refused.
#[derive(Clone, Copy, Debug)]
struct Version {
    stamp: Stamp,
    begun: usize,
    ended: usize,
    is_answered: bool,
    epoch: u64,
}

impl Version {
    fn is_untouched(&self) -> bool {
        self.ended == 0
    }
}

/// A disk begun afresh, as its `epoch`: asked for and answered before which
/// events.
#[derive(Clone, Copy, Debug)]
struct Start {
    epoch: u64,
    begun: usize,
    answered: usize,
}

/// A moment that was kept: it holds all that was answered before it was asked
/// for, and nothing asked for after it was answered. Given up again, perhaps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    /// Whose bytes it has: this one's, or those of an older one.
    of: usize,
    begun: usize,
    answered: usize,
    leaving: usize,
    left: usize,
}

impl Kept {
    /// Whether it must be there after a loss before event `moment`.
    pub(crate) fn must_be(&self, moment: usize) -> bool {
        self.answered <= moment && self.leaving >= moment
    }

    /// Whether it can be.
    pub(crate) fn may_be(&self, moment: usize) -> bool {
        self.begun < moment && self.left > moment
    }
}

/// Everything that was asked of a disk.
#[derive(Debug)]
pub(crate) struct History {
    /// Of each sector that is worked on.
    sectors: Vec<Vec<Version>>,
    /// Flushes that were answered: begun and answered before which event.
    flushes: Vec<(usize, usize)>,
    starts: Vec<Start>,
    stamps: Stamp,
    kept: Vec<Kept>,
    /// Losses of power that the disk has behind it.
    pub(crate) lives: u64,
}

impl History {
    /// Of a disk whose sectors are as `found`; new stamps follow `newest`.
    pub(super) fn new(found: Vec<Stamp>, newest: Stamp, epoch: u64) -> History {
        let version = |stamp| Version {
            stamp,
            begun: 0,
            ended: 0,
            is_answered: true,
            epoch,
        };
        let start = Start {
            epoch,
            begun: 0,
            answered: 0,
        };
        History {
            sectors: found.into_iter().map(|s| vec![version(s)]).collect(),
            starts: vec![start],
            flushes: Vec::new(),
            stamps: newest,
            kept: Vec::new(),
            lives: 0,
        }
    }

    /// The stamp of the newest write.
    pub(crate) fn newest(&self) -> Stamp {
        self.stamps
    }

    /// A write (or unmap) of some sectors begins; returns its stamp.
    pub(super) fn begin(
        &mut self,
        sectors: std::ops::Range<usize>,
        zeros: bool,
        begun: usize,
    ) -> Stamp {
        self.stamps += 1;
        let stamp = if zeros { ZEROS } else { self.stamps };
        let epoch = self.starts[self.starts.len() - 1].epoch;
        for sector in sectors {
            self.sectors[sector].push(Version {
                stamp,
                begun,
                ended: usize::MAX,
                is_answered: false,
                epoch,
            });
        }
        stamp
    }

    /// The write that began at `begun` is over.
    pub(super) fn end(
        &mut self,
        sectors: std::ops::Range<usize>,
        begun: usize,
        ended: usize,
        is_answered: bool,
    ) {
        for sector in sectors {
            for version in &mut self.sectors[sector] {
                if version.begun == begun {
                    version.ended = ended;
                    version.is_answered = is_answered;
                }
            }
        }
    }

    pub(crate) fn flushed(&mut self, begun: usize, answered: usize) {
        self.flushes.push((begun, answered));
    }

    pub(super) fn started(&mut self, epoch: u64, begun: usize, answered: usize) {
        self.starts.push(Start {
            epoch,
            begun,
            answered,
        });
    }

    /// Somebody asks for a moment to be kept (or for another copy of one that
    /// is); answers its number.
    pub(crate) fn keep(&mut self, begun: usize, of: Option<usize>) -> usize {
        self.kept.push(Kept {
            of: of.unwrap_or(self.kept.len()),
            begun,
            answered: usize::MAX,
            leaving: usize::MAX,
            left: usize::MAX,
        });
        self.kept.len() - 1
    }

    pub(crate) fn is_kept(&mut self, number: usize, answered: usize) {
        self.kept[number].answered = answered;
    }

    pub(crate) fn leave(&mut self, number: usize, begun: usize) {
        self.kept[number].leaving = begun;
    }

    pub(crate) fn has_left(&mut self, number: usize, answered: usize) {
        self.kept[number].left = answered;
    }

    /// The moments that were kept, by their numbers.
    pub(crate) fn kept(&self) -> &[Kept] {
        &self.kept
    }

    /// Holds what a kept moment holds, after a loss before event `moment`,
    /// against what it must.
    pub(crate) fn check_kept(
        &self,
        number: usize,
        moment: usize,
        contents: &[(usize, [u8; SECTOR])],
    ) -> Result<(), String> {
        let kept = self.kept[self.kept[number].of];
        let view = View {
            moment: kept.answered.min(moment),
            floor: kept.begun,
            epoch: self.starts[0].epoch,
            is_volatile: false,
        };
        for (at, (sector, bytes)) in contents.iter().enumerate() {
            self.check_sector(at, bytes, *sector, view)
                .map_err(|error| format!("kept moment {number}: {error}"))?;
        }
        Ok(())
    }

    /// Everything that ended before this event was flushed, if power was lost
    /// before event `moment`.
    fn floor(&self, moment: usize) -> usize {
        let answered = |flush: &&(usize, usize)| flush.1 <= moment;
        let flushes = self.flushes.iter().filter(answered);
        flushes.map(|(begun, _)| *begun).max().unwrap_or(0)
    }

    /// Holds one sector against what was asked until `moment` and cannot have
    /// been lost: all that was answered before `floor`.
    fn check_sector(
        &self,
        at: usize,
        bytes: &[u8; SECTOR],
        number: usize,
        view: View,
    ) -> Result<Stamp, String> {
        let versions = || {
            self.sectors[at].iter().filter(move |v| {
                (v.epoch == view.epoch || v.is_untouched())
                    && (v.begun < view.moment || v.is_untouched())
            })
        };
        let settled = newest_begun(versions(), view.floor);
        let mut allowed = versions().filter(|v| match view.is_volatile {
            true => v.is_untouched(),
            false => v.ended > settled || v.is_untouched() && settled == 0,
        });
        let stamp = stamp_of(bytes, number);
        if let Some(stamp) = stamp
            && allowed.clone().any(|v| v.stamp == stamp)
        {
            return Ok(stamp);
        }
        let stamps: Vec<String> = allowed.by_ref().map(|v| v.stamp.to_string()).collect();
        Err(format!(
            "event {}: sector {number} is {}, allowed are the stamps {}",
            view.moment,
            describe(bytes),
            stamps.join(", ")
        ))
    }

    /// Whether an answered write of a sector that holds `stamp` is gone.
    fn is_lost(&self, at: usize, stamp: Stamp, view: View) -> bool {
        let versions = || {
            self.sectors[at]
                .iter()
                .filter(|v| v.begun < view.moment && (v.epoch == view.epoch || v.is_untouched()))
        };
        let answered = newest_begun(versions(), view.moment);
        answered > 0 && !versions().any(|v| v.ended > answered && v.stamp == stamp)
    }

    /// Holds what was found after a loss of power before event `moment`
    /// against the promise. Answers whether answered writes are gone.
    pub(super) fn check_power_loss(
        &self,
        moment: usize,
        epoch: u64,
        is_volatile: bool,
        contents: &[(usize, [u8; SECTOR])],
    ) -> Result<bool, String> {
        let answered = self.starts.iter().rposition(|s| s.answered <= moment);
        let mut possible = self.starts[answered.unwrap_or(0)..].iter();
        if !possible.any(|s| s.epoch == epoch && s.begun <= moment) {
            return Err(format!("event {moment}: found epoch {epoch}"));
        }
        let view = View {
            moment,
            floor: self.floor(moment),
            epoch,
            is_volatile,
        };
        let mut lost = false;
        for (at, (number, bytes)) in contents.iter().enumerate() {
            let stamp = self.check_sector(at, bytes, *number, view)?;
            lost |= self.is_lost(at, stamp, view);
        }
        Ok(lost)
    }

    /// Everything answered is there now.
    pub(super) fn check_answered(
        &self,
        epoch: u64,
        contents: &[(usize, [u8; SECTOR])],
    ) -> Result<(), String> {
        let view = View {
            moment: usize::MAX,
            floor: usize::MAX - 1,
            epoch,
            is_volatile: false,
        };
        for (at, (number, bytes)) in contents.iter().enumerate() {
            self.check_sector(at, bytes, *number, view)?;
        }
        Ok(())
    }
}

/// From when a sector is looked at.
#[derive(Clone, Copy)]
struct View {
    moment: usize,
    floor: usize,
    epoch: u64,
    is_volatile: bool,
}

/// When the last of the writes began that were answered before `floor`: what
/// had ended by then cannot be seen again. 0 when there was none.
fn newest_begun<'a>(versions: impl Iterator<Item = &'a Version>, floor: usize) -> usize {
    versions
        .filter(|v| v.is_answered && v.ended <= floor)
        .map(|v| v.begun)
        .max()
        .unwrap_or(0)
}
