//! How much more an overlay may take: its own quota, and what the pool it
//! shares with others keeps back.
//!
//! Only blocks that lie nowhere yet in the top layer take room; overwriting
//! goes on when there is none.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::DiskError;

/// No quota.
const UNLIMITED: u64 = u64::MAX;

/// What is taken, at most, before the pool is asked again what it has free.
const UNASKED_BYTES_MAX: u64 = 16 << 20;

/// One overlay takes such a part of what the pool has above its reserve before
/// it asks again, so that many of them do not take more than there is.
const UNASKED_PART: u64 = 64;

/// What an overlay may take.
#[derive(Debug)]
pub(super) struct Room {
    quota_bytes: AtomicU64,
    /// What its layers hold; counted only while there is a quota.
    used_bytes: AtomicU64,
    reserve_bytes: AtomicU64,
    /// What may be taken before the pool is asked again.
    unasked_bytes: AtomicU64,
}

impl Room {
    pub(super) fn new(quota_bytes: Option<u64>) -> Room {
        Room {
            quota_bytes: AtomicU64::new(quota_bytes.unwrap_or(UNLIMITED)),
            used_bytes: AtomicU64::new(0),
            reserve_bytes: AtomicU64::new(0),
            unasked_bytes: AtomicU64::new(0),
        }
    }

    pub(super) fn quota_bytes(&self) -> Option<u64> {
        let quota = self.quota_bytes.load(Ordering::Relaxed);
        (quota != UNLIMITED).then_some(quota)
    }

    /// Sets the quota and what is held already; no write is under way.
    pub(super) fn set_quota(&self, quota_bytes: Option<u64>, used_bytes: u64) {
        self.used_bytes.store(used_bytes, Ordering::Relaxed);
        let quota = quota_bytes.unwrap_or(UNLIMITED);
        self.quota_bytes.store(quota, Ordering::Relaxed);
    }

    pub(super) fn set_reserve(&self, reserve_bytes: u64) {
        self.reserve_bytes.store(reserve_bytes, Ordering::Relaxed);
        self.unasked_bytes.store(0, Ordering::Relaxed);
    }

    /// Whether anything is to be asked before a block is taken.
    pub(super) fn is_limited(&self) -> bool {
        self.quota_bytes.load(Ordering::Relaxed) != UNLIMITED
            || self.reserve_bytes.load(Ordering::Relaxed) != 0
    }

    /// What is left of `pool_free_bytes` and the quota.
    pub(super) fn left(&self, pool_free_bytes: u64) -> u64 {
        let reserve = self.reserve_bytes.load(Ordering::Relaxed);
        let quota = self.quota_bytes.load(Ordering::Relaxed);
        let used = self.used_bytes.load(Ordering::Relaxed);
        pool_free_bytes
            .saturating_sub(reserve)
            .min(quota.saturating_sub(used))
    }

    /// Takes room for `bytes`, or says that there is none. `pool_free_bytes`
    /// asks what the pool has; `None` when it cannot say.
    pub(super) fn take(
        &self,
        bytes: u64,
        pool_free_bytes: impl FnOnce() -> Option<u64>,
    ) -> Result<(), DiskError> {
        self.ask_pool(bytes, pool_free_bytes)?;
        let quota = self.quota_bytes.load(Ordering::Relaxed);
        let fits = |used: u64| used.checked_add(bytes).filter(|used| *used <= quota);
        let (relaxed, counted) = (Ordering::Relaxed, quota != UNLIMITED);
        match !counted || self.used_bytes.fetch_update(relaxed, relaxed, fits).is_ok() {
            true => Ok(()),
            false => Err(self.no_quota(quota)),
        }
    }

    /// Whether there is room for `bytes`, without taking it.
    pub(super) fn check(
        &self,
        bytes: u64,
        pool_free_bytes: impl FnOnce() -> Option<u64>,
    ) -> Result<(), DiskError> {
        let quota = self.quota_bytes.load(Ordering::Relaxed);
        let used = self.used_bytes.load(Ordering::Relaxed);
        if quota != UNLIMITED && used.saturating_add(bytes) > quota {
            return Err(self.no_quota(quota));
        }
        let reserve = self.reserve_bytes.load(Ordering::Relaxed);
        if reserve == 0 || self.unasked_bytes.load(Ordering::Relaxed) >= bytes {
            return Ok(());
        }
        match pool_free_bytes() {
            Some(free) if free.saturating_sub(reserve) < bytes => Err(no_pool(free, reserve)),
            _ => Ok(()),
        }
    }

    /// Gives room back that was taken.
    pub(super) fn give_back(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        let relaxed = Ordering::Relaxed;
        let _ = self.used_bytes.fetch_update(relaxed, relaxed, less);
    }

    fn ask_pool(
        &self,
        bytes: u64,
        pool_free_bytes: impl FnOnce() -> Option<u64>,
    ) -> Result<(), DiskError> {
        let reserve = self.reserve_bytes.load(Ordering::Relaxed);
        let relaxed = Ordering::Relaxed;
        let less = |unasked: u64| unasked.checked_sub(bytes);
        if reserve == 0
            || self
                .unasked_bytes
                .fetch_update(relaxed, relaxed, less)
                .is_ok()
        {
            return Ok(());
        }
        let Some(free) = pool_free_bytes() else {
            return Ok(());
        };
        let above = free.saturating_sub(reserve);
        if above < bytes {
            return Err(no_pool(free, reserve));
        }
        let unasked = ((above - bytes) / UNASKED_PART).min(UNASKED_BYTES_MAX);
        self.unasked_bytes.store(unasked, relaxed);
        Ok(())
    }

    fn no_quota(&self, quota: u64) -> DiskError {
        let used = self.used_bytes.load(Ordering::Relaxed);
        DiskError::NoSpace(format!(
            "the overlay holds {used} of the {quota} bytes of its quota"
        ))
    }
}

fn no_pool(free: u64, reserve: u64) -> DiskError {
    DiskError::NoSpace(format!(
        "the file system has {free} bytes left, {reserve} of them kept in reserve"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_taken_up_to_its_last_byte_and_comes_back() {
        let room = Room::new(Some(10_000));
        let nobody = || panic!("without a reserve the pool is not asked");
        room.take(9000, nobody).unwrap();
        assert!(matches!(
            room.take(1001, nobody),
            Err(DiskError::NoSpace(_))
        ));
        assert!(room.check(1001, nobody).is_err());
        room.take(1000, nobody).unwrap();
        assert_eq!(room.left(1 << 40), 0);
        room.give_back(4000);
        room.take(4000, nobody).unwrap();
        assert!(room.take(1, nobody).is_err());
        room.set_quota(None, 0);
        assert!(!room.is_limited());
        room.take(1 << 40, nobody).unwrap();
    }

    #[test]
    fn the_reserve_of_the_pool_is_never_touched() {
        let room = Room::new(None);
        room.set_reserve(1 << 30);
        let free = AtomicU64::new(3 << 30);
        let mut asked = 0;
        loop {
            let mut this = 0;
            let answer = room.take(4096, || {
                this = 1;
                Some(free.load(Ordering::Relaxed))
            });
            asked += this;
            match answer {
                Ok(()) => free.fetch_sub(4096, Ordering::Relaxed),
                Err(DiskError::NoSpace(_)) => break,
                Err(other) => panic!("{other}"),
            };
        }
        assert!(free.into_inner() >= 1 << 30);
        // Seldom while there is much, often only at the end.
        assert!(asked < 2000, "asked {asked} times for 524,288 blocks");
    }
}
