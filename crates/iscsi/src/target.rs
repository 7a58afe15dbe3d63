//! A target: the logical units behind one name, and their numbers.
//!
//! Units come and go under sessions that go on. A session works on one
//! [`Units`], the units as they were at a moment, and points at what they
//! have mapped; between two receives it moves on to the next. So a command
//! pays nothing for it, and a unit that was detached is let go of at once by
//! a session that is quiet, with its next receive by one that is busy, and
//! within seconds by any other. Longest takes one whose peer reads nothing: as
//! long as it may ([`Limits::send_timeout`](crate::Limits)).

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use scsi::{LogicalUnit, Lun, Peers};

/// The highest number flat addressing knows (SAM-5 section 4.7.4).
const MAX_LUN: u16 = 0x3fff;

/// The logical units behind one target name.
pub struct Target {
    /// The target's IQN.
    pub name: String,
    units: Mutex<Arc<Units>>,
    /// The generation of `units`, read without the lock.
    generation: AtomicU64,
    bells: Mutex<Vec<Weak<dyn Bell>>>,
}

/// Why a unit cannot be attached or replaced at a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LunError {
    /// Numbers go from 0 to 16383.
    OutOfRange(u16),
    /// Another unit has this number.
    Taken(u16),
    /// No unit has this number.
    Absent(u16),
}

impl fmt::Display for LunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LunError::OutOfRange(lun) => write!(f, "LUN {lun} is too high: {MAX_LUN} is the last"),
            LunError::Taken(lun) => write!(f, "LUN {lun} is taken: detach its unit first"),
            LunError::Absent(lun) => write!(f, "there is no LUN {lun}"),
        }
    }
}

impl std::error::Error for LunError {}

impl Target {
    /// A target called `name` with these units by number.
    pub fn new(
        name: impl Into<String>,
        units: impl IntoIterator<Item = (u16, Arc<LogicalUnit>)>,
    ) -> Result<Target, LunError> {
        let mut all = Units::none();
        for (lun, unit) in units {
            all.insert(lun, unit)?;
        }
        Ok(Target {
            name: name.into(),
            units: Mutex::new(Arc::new(all)),
            generation: AtomicU64::new(0),
            bells: Mutex::default(),
        })
    }

    /// A target called `name` with one unit, LUN 0.
    pub fn of_one(name: impl Into<String>, unit: Arc<LogicalUnit>) -> Target {
        let units = Units {
            list: vec![(0, unit)],
            generation: 0,
        };
        Target {
            name: name.into(),
            units: Mutex::new(Arc::new(units)),
            generation: AtomicU64::new(0),
            bells: Mutex::default(),
        }
    }

    /// Adds a unit. Every session hears that there is another one (6/3F/0E).
    pub fn attach(&self, lun: u16, unit: Arc<LogicalUnit>) -> Result<(), LunError> {
        self.change(|units| units.insert(lun, unit))
    }

    /// Takes a unit away and gives it back. Writes that wait for data fail
    /// (5/25/00), commands on a worker end; once every session has moved on,
    /// within seconds, the unit given back is the last hold on its disk.
    pub fn detach(&self, lun: u16) -> Option<Arc<LogicalUnit>> {
        self.change(|units| units.remove(lun)).ok()
    }

    /// Puts `unit` in the place of the one with this number, and gives that
    /// back. When `unit` was made of it
    /// ([`with_disk`](LogicalUnit::with_disk): it has grown, or has another
    /// medium), sessions keep what they know of it, and commands under way
    /// end over the disk they began with. Any other unit is a new one.
    pub fn replace(&self, lun: u16, unit: Arc<LogicalUnit>) -> Result<Arc<LogicalUnit>, LunError> {
        self.change(|units| {
            let before = units.remove(lun)?;
            units.insert(lun, unit)?;
            Ok(before)
        })
    }

    /// The unit with this number.
    pub fn unit(&self, lun: u16) -> Option<Arc<LogicalUnit>> {
        let units = self.snapshot();
        units.find(lun).map(|(_, unit)| unit.clone())
    }

    /// The units by number, in ascending order.
    pub fn units(&self) -> Vec<(u16, Arc<LogicalUnit>)> {
        self.snapshot().list.clone()
    }

    /// The units as they are now.
    pub(crate) fn snapshot(&self) -> Arc<Units> {
        self.lock().clone()
    }

    /// Whether `units` are not the target's any more.
    pub(crate) fn has_changed_since(&self, units: &Units) -> bool {
        self.generation.load(Ordering::Acquire) != units.generation
    }

    /// Rings `bell` whenever the units change, as long as it is there.
    pub(crate) fn attend(&self, bell: Weak<dyn Bell>) {
        let mut bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        bells.retain(|bell| bell.strong_count() > 0);
        bells.push(bell);
    }

    fn change<T>(
        &self,
        change: impl FnOnce(&mut Units) -> Result<T, LunError>,
    ) -> Result<T, LunError> {
        let result = {
            let mut current = self.lock();
            let mut units = Units {
                list: current.list.clone(),
                generation: current.generation + 1,
            };
            let result = change(&mut units)?;
            self.generation.store(units.generation, Ordering::Release);
            *current = Arc::new(units);
            result
        };
        let bells = self.bells.lock().unwrap_or_else(PoisonError::into_inner);
        for bell in bells.iter().filter_map(Weak::upgrade) {
            bell.ring();
        }
        Ok(result)
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Units>> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peers for Target {
    fn units(&self) -> Vec<Arc<LogicalUnit>> {
        let units = self.snapshot();
        units.list.iter().map(|(_, unit)| unit.clone()).collect()
    }
}

/// What wakes a session that waits.
pub(crate) trait Bell: Send + Sync {
    /// Wakes it.
    fn ring(&self);
}

/// The units of a target at a moment.
pub(crate) struct Units {
    /// By number, ascending.
    list: Vec<(u16, Arc<LogicalUnit>)>,
    generation: u64,
}

impl Units {
    /// None at all: what a discovery session has.
    pub(crate) const fn none() -> Units {
        Units {
            list: Vec::new(),
            generation: 0,
        }
    }

    /// The unit with this number, and its place in [`list`](Units::list).
    pub(crate) fn find(&self, lun: u16) -> Option<(usize, &Arc<LogicalUnit>)> {
        // Without gaps, as in most targets, the number is the place.
        let place = usize::from(lun);
        let place = match self.list.get(place) {
            Some((number, _)) if *number == lun => place,
            _ => self.list.binary_search_by_key(&lun, |(n, _)| *n).ok()?,
        };
        self.list.get(place).map(|(_, unit)| (place, unit))
    }

    /// All of them.
    pub(crate) fn list(&self) -> &[(u16, Arc<LogicalUnit>)] {
        &self.list
    }

    /// Their numbers.
    pub(crate) fn luns(&self) -> impl Iterator<Item = Lun> {
        self.list.iter().map(|(lun, _)| Lun(*lun))
    }

    fn insert(&mut self, lun: u16, unit: Arc<LogicalUnit>) -> Result<(), LunError> {
        if lun > MAX_LUN {
            return Err(LunError::OutOfRange(lun));
        }
        match self.list.binary_search_by_key(&lun, |(number, _)| *number) {
            Ok(_) => Err(LunError::Taken(lun)),
            Err(place) => {
                self.list.insert(place, (lun, unit));
                Ok(())
            }
        }
    }

    fn remove(&mut self, lun: u16) -> Result<Arc<LogicalUnit>, LunError> {
        match self.list.binary_search_by_key(&lun, |(number, _)| *number) {
            Ok(place) => Ok(self.list.remove(place).1),
            Err(_) => Err(LunError::Absent(lun)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scsi::Identity;
    use scsi::disk::Ram;
    use std::sync::atomic::AtomicUsize;

    fn unit() -> Arc<LogicalUnit> {
        let disk = Arc::new(Ram::new(1 << 20));
        Arc::new(LogicalUnit::new(disk, Identity::new([1; 16], "TEST")))
    }

    fn luns(target: &Target) -> Vec<u16> {
        target.units().iter().map(|(lun, _)| *lun).collect()
    }

    #[test]
    fn numbers_are_sparse_sorted_and_at_most_16383() {
        let target = Target::new("iqn.t", [(300, unit()), (0, unit())]).unwrap();
        target.attach(7, unit()).unwrap();
        target.attach(16383, unit()).unwrap();
        assert_eq!(luns(&target), [0, 7, 300, 16383]);
        let refused = target.attach(16384, unit());
        assert_eq!(refused, Err(LunError::OutOfRange(16384)));
        assert_eq!(target.attach(7, unit()), Err(LunError::Taken(7)));
        let refused = Target::new("iqn.t", [(3, unit()), (3, unit())]);
        assert_eq!(refused.err(), Some(LunError::Taken(3)));
    }

    #[test]
    fn a_unit_is_found_by_its_number_with_gaps_and_without() {
        let all: Vec<_> = [0, 1, 2, 5, 300].map(|lun| (lun, unit())).to_vec();
        let target = Target::new("iqn.t", all.clone()).unwrap();
        for (lun, unit) in &all {
            assert!(Arc::ptr_eq(&target.unit(*lun).unwrap(), unit), "{lun}");
        }
        assert!(target.unit(3).is_none() && target.unit(301).is_none());
    }

    #[test]
    fn what_is_detached_or_replaced_is_given_back_as_the_last_hold() {
        let (first, second) = (unit(), unit());
        let target = Target::of_one("iqn.t", first.clone());
        let before = target.replace(0, second.clone()).unwrap();
        assert!(Arc::ptr_eq(&before, &first));
        assert_eq!(Arc::strong_count(&first), 2);
        assert!(Arc::ptr_eq(&target.detach(0).unwrap(), &second));
        assert_eq!(Arc::strong_count(&second), 1);
        assert!(target.detach(0).is_none());
        let refused = target.replace(0, unit());
        assert_eq!(refused.err(), Some(LunError::Absent(0)));
    }

    #[test]
    fn every_change_rings_and_makes_older_units_old() {
        #[derive(Default)]
        struct Rings(AtomicUsize);
        impl Bell for Rings {
            fn ring(&self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let target = Target::of_one("iqn.t", unit());
        let rings = Arc::new(Rings::default());
        let bell: Arc<dyn Bell> = rings.clone();
        target.attend(Arc::downgrade(&bell));
        let before = target.snapshot();
        assert!(!target.has_changed_since(&before));
        target.attach(1, unit()).unwrap();
        assert!(target.has_changed_since(&before));
        assert!(target.attach(1, unit()).is_err());
        target.detach(1).unwrap();
        assert_eq!(rings.0.load(Ordering::Relaxed), 2);
    }
}
