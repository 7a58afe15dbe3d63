//! Who is connected, how many at once, and who must leave.
//!
//! There are places for so many connections. One address may take a tenth of
//! them: a classroom behind one address fits in, and ten hosts it takes to
//! fill the house. A connection on which nothing moves for a minute is closed;
//! when places are scarce, so is one that has moved next to nothing in the
//! last moments, whether it reads slowly, asks slowly or only waits.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// Connections served at once, where there are descriptors for them; further
/// ones wait in the listen queue.
pub(crate) const CONNECTIONS_MAX: usize = 10_000;
/// Descriptors of one connection: its socket and the file it is sent.
const FILES_PER_CONNECTION: u64 = 2;
/// Descriptors left to everything else: disks, sessions, the store.
const FILES_RESERVED: u64 = 512;
/// Served in any case.
const CONNECTIONS_MIN: usize = 64;
/// One address may have so many parts of the places, and this many always.
const ADDRESS_SHARE: usize = 10;
const ADDRESS_MIN: usize = 64;
/// How often connections are looked at.
pub(super) const LOOK: Duration = Duration::from_secs(5);
/// After so many looks at which nothing had moved, a connection is closed.
const STILL_LOOKS: u32 = 12;
/// Places are scarce when fewer than this part is free.
const SCARCE_SHARE: usize = 10;
/// Less than this between two looks is slow: 4 KiB/s.
const SLOW_BYTES: u64 = 20 * 1024;
/// After so many slow looks a connection gives way when places are scarce.
const SLOW_LOOKS: u32 = 3;

/// The connections there is room for, with so many descriptors (`None`: no
/// limit).
pub(crate) fn places(open_files: Option<u64>) -> usize {
    let Some(open_files) = open_files else {
        return CONNECTIONS_MAX;
    };
    let files = open_files.saturating_sub(FILES_RESERVED);
    let places = usize::try_from(files / FILES_PER_CONNECTION).unwrap_or(CONNECTIONS_MAX);
    places.clamp(CONNECTIONS_MIN, CONNECTIONS_MAX)
}

/// Everybody who is connected, over all addresses we listen on.
#[derive(Clone)]
pub(super) struct Crowd(Arc<Shared>);

struct Shared {
    all: usize,
    places: Arc<Semaphore>,
    present: Mutex<Present>,
}

#[derive(Default)]
struct Present {
    next: u64,
    guests: HashMap<u64, Watched>,
    of_address: HashMap<IpAddr, usize>,
}

impl Crowd {
    /// As many places as this process has descriptors for.
    pub(super) fn new() -> Crowd {
        Crowd::with_places(places(getrlimit(Resource::Nofile).current))
    }

    pub(super) fn with_places(all: usize) -> Crowd {
        Crowd(Arc::new(Shared {
            all,
            places: Arc::new(Semaphore::new(all)),
            present: Mutex::default(),
        }))
    }

    /// Waits for a free place.
    pub(super) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0.places).acquire_owned().await.ok()
    }

    /// Waits until everybody has left.
    pub(super) async fn empty(&self) {
        let all = u32::try_from(self.0.all).unwrap_or(u32::MAX);
        let _ = self.0.places.acquire_many(all).await;
    }

    /// Takes a place for a connection of this address, until the guest is
    /// dropped; `None` when the address has its share.
    pub(super) fn admit(&self, address: IpAddr, place: OwnedSemaphorePermit) -> Option<Guest> {
        let share = (self.0.all / ADDRESS_SHARE).max(ADDRESS_MIN);
        let mut present = self.present();
        let count = present.of_address.entry(address).or_default();
        if *count >= share {
            return None;
        }
        *count += 1;
        let number = present.next;
        present.next += 1;
        let watched = Watched::default();
        let (moved, leave) = (Arc::clone(&watched.moved), Arc::clone(&watched.leave));
        present.guests.insert(number, watched);
        Some(Guest {
            crowd: self.clone(),
            address,
            number,
            moved,
            leave,
            _place: place,
        })
    }

    /// Looks at every connection, and asks those to leave that must.
    pub(super) fn look(&self) {
        let is_scarce = self.0.places.available_permits() < self.0.all / SCARCE_SHARE;
        for watched in self.present().guests.values_mut() {
            let moved = watched.moved.load(Ordering::Relaxed);
            if watched.must_leave(moved, is_scarce) {
                watched.leave.notify_one();
            }
        }
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        let present = &self.0.present;
        present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection as it is looked at.
#[derive(Default)]
struct Watched {
    moved: Arc<AtomicU64>,
    leave: Arc<Notify>,
    /// What had moved at the last look.
    seen: u64,
    still_looks: u32,
    slow_looks: u32,
}

impl Watched {
    fn must_leave(&mut self, moved: u64, is_scarce: bool) -> bool {
        let since = moved.saturating_sub(self.seen);
        self.seen = moved;
        let count = |looks: u32, is: bool| if is { looks.saturating_add(1) } else { 0 };
        self.still_looks = count(self.still_looks, since == 0);
        self.slow_looks = count(self.slow_looks, since < SLOW_BYTES);
        self.still_looks >= STILL_LOOKS || is_scarce && self.slow_looks >= SLOW_LOOKS
    }
}

/// One connection.
pub(super) struct Guest {
    crowd: Crowd,
    address: IpAddr,
    number: u64,
    moved: Arc<AtomicU64>,
    leave: Arc<Notify>,
    _place: OwnedSemaphorePermit,
}

impl Guest {
    /// Where bytes that move are counted.
    pub(super) fn moved(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.moved)
    }

    /// Returns when the connection must leave.
    pub(super) async fn asked_to_leave(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut present = self.crowd.present();
        present.guests.remove(&self.number);
        if let Some(count) = present.of_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                present.of_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn admit(crowd: &Crowd, last: u8) -> Option<Guest> {
        let place = Arc::clone(&crowd.0.places).try_acquire_owned().unwrap();
        crowd.admit(Ipv4Addr::new(10, 0, 0, last).into(), place)
    }

    fn is_asked(guest: &Guest) -> bool {
        let asked = now(guest.asked_to_leave());
        asked.is_some()
    }

    /// What a future has come to without waiting.
    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::pin!(future).poll(&mut context) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn one_address_takes_a_tenth_and_a_classroom_fits_into_it() {
        let crowd = Crowd::with_places(1000);
        let mut taken: Vec<_> = (0..100).map(|_| admit(&crowd, 1).unwrap()).collect();
        assert!(admit(&crowd, 1).is_none());
        assert!(admit(&crowd, 2).is_some());
        taken.pop();
        assert!(admit(&crowd, 1).is_some());
        drop(taken);
        assert!(crowd.present().of_address.is_empty());
        assert!(crowd.present().guests.is_empty());
        assert_eq!(crowd.0.places.available_permits(), 1000);
    }

    #[test]
    fn places_are_as_many_as_there_are_descriptors_for() {
        assert_eq!(places(None), CONNECTIONS_MAX);
        assert_eq!(places(Some(1 << 20)), CONNECTIONS_MAX);
        assert_eq!(places(Some(4096)), 1792);
        assert_eq!(places(Some(64)), CONNECTIONS_MIN);
    }

    #[test]
    fn a_connection_on_which_nothing_moves_is_closed_after_a_minute() {
        let crowd = Crowd::with_places(1000);
        let (still, moving) = (admit(&crowd, 1).unwrap(), admit(&crowd, 2).unwrap());
        for _ in 0..STILL_LOOKS {
            assert!(!is_asked(&still));
            moving.moved.fetch_add(1, Ordering::Relaxed);
            crowd.look();
        }
        assert!(is_asked(&still));
        assert!(!is_asked(&moving), "slow, and there is room");
    }

    #[test]
    fn who_is_slow_gives_way_when_places_are_scarce() {
        let crowd = Crowd::with_places(100);
        let slow = admit(&crowd, 1).unwrap();
        let quick = admit(&crowd, 2).unwrap();
        let look = |times| {
            for _ in 0..times {
                slow.moved.fetch_add(SLOW_BYTES - 1, Ordering::Relaxed);
                quick.moved.fetch_add(SLOW_BYTES, Ordering::Relaxed);
                crowd.look();
            }
        };
        look(SLOW_LOOKS);
        assert!(!is_asked(&slow), "there is room");
        let _others: Vec<_> = (3..92).map(|last| admit(&crowd, last).unwrap()).collect();
        look(SLOW_LOOKS);
        assert!(is_asked(&slow));
        assert!(!is_asked(&quick));
    }
}
