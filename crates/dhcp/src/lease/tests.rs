//! Claims about leases. The site and the store of these tests are in memory
//! and say what they are set to.

use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;

use super::*;
use crate::{Boot, Firmware, Observation, Promise, Style};

/// A site in memory.
#[derive(Default)]
pub(crate) struct Site {
    pub(crate) boots: Mutex<Vec<(Firmware, Boot)>>,
    pub(crate) style: Mutex<Style>,
    pub(crate) promises: Mutex<BTreeMap<Mac, Promise>>,
    pub(crate) in_use: Mutex<HashSet<Ipv4Addr>>,
    pub(crate) observed: Mutex<Vec<Observation>>,
}

impl Site {
    pub(crate) fn with_boots(boots: &[(Firmware, Boot)]) -> Site {
        Site {
            boots: Mutex::new(boots.to_vec()),
            ..Site::default()
        }
    }

    pub(crate) fn fix(&self, mac: Mac, address: Ipv4Addr) {
        let promise = Promise {
            address: Some(address),
            ..Promise::default()
        };
        self.promises.lock().unwrap().insert(mac, promise);
    }

    pub(crate) fn begin_session(&self, address: Ipv4Addr) {
        self.in_use.lock().unwrap().insert(address);
    }

    pub(crate) fn lose_session(&self, address: Ipv4Addr) {
        self.in_use.lock().unwrap().remove(&address);
    }

    pub(crate) fn observations(&self) -> Vec<Observation> {
        std::mem::take(&mut self.observed.lock().unwrap())
    }
}

impl Policy for Site {
    fn boot(&self, client: &Client, _server: Ipv4Addr) -> Option<Boot> {
        let boots = self.boots.lock().unwrap();
        boots
            .iter()
            .find(|(firmware, _)| *firmware == client.firmware)
            .map(|(_, boot)| boot.clone())
    }

    fn style(&self, _client: &Client, _server: Ipv4Addr) -> Style {
        *self.style.lock().unwrap()
    }

    fn promise(&self, mac: Mac) -> Promise {
        self.promises
            .lock()
            .unwrap()
            .get(&mac)
            .cloned()
            .unwrap_or_default()
    }

    fn promised_to(&self, address: Ipv4Addr) -> Option<Mac> {
        let promises = self.promises.lock().unwrap();
        promises
            .iter()
            .find(|(_, promise)| promise.address == Some(address))
            .map(|(mac, _)| *mac)
    }

    fn is_in_use(&self, address: Ipv4Addr) -> bool {
        self.in_use.lock().unwrap().contains(&address)
    }

    fn observe(&self, observation: &Observation) {
        self.observed.lock().unwrap().push(observation.clone());
    }
}

/// A store in memory, which can break.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) kept: Mutex<BTreeMap<Mac, Lease>>,
    pub(crate) saves: Mutex<usize>,
    pub(crate) is_broken: Mutex<bool>,
}

impl Memory {
    pub(crate) fn break_down(&self) {
        *self.is_broken.lock().unwrap() = true;
    }
}

impl LeaseStore for Memory {
    fn load(&self) -> Result<Vec<Lease>, String> {
        Ok(self.kept.lock().unwrap().values().cloned().collect())
    }

    fn save(&self, lease: &Lease) -> Result<(), String> {
        if *self.is_broken.lock().unwrap() {
            return Err("disk full".into());
        }
        *self.saves.lock().unwrap() += 1;
        self.kept.lock().unwrap().insert(lease.mac, lease.clone());
        Ok(())
    }

    fn remove(&self, mac: Mac) -> Result<(), String> {
        self.kept.lock().unwrap().remove(&mac);
        Ok(())
    }
}

pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// 10.0.0.0/24 with a pool of `count` addresses from 10.0.0.100 on.
pub(crate) fn subnet(count: u8) -> Subnet {
    Subnet {
        ranges: vec![(host(100), host(99 + count))],
        routers: vec![host(254)],
        dns: vec![host(253)],
        domain: Some("lan".into()),
        ..Subnet::new(Ipv4Addr::new(10, 0, 0, 0), Ipv4Addr::new(255, 255, 255, 0))
    }
}

pub(crate) fn host(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

pub(crate) fn mac(number: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, number])
}

pub(crate) fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + seconds)
}

const LEASE_TIME: Duration = Duration::from_secs(3600);

/// Leases in a pool, with what they ask and where they are kept.
pub(crate) struct Pool {
    pub(crate) site: Site,
    pub(crate) store: Arc<Memory>,
    pub(crate) leases: Leases,
    pub(crate) subnet: Subnet,
}

impl Pool {
    pub(crate) fn of(count: u8) -> Pool {
        let store = Arc::new(Memory::default());
        let leases = Leases::open(store.clone(), at(0)).unwrap();
        Pool {
            site: Site::default(),
            store,
            leases,
            subnet: subnet(count),
        }
    }

    fn restart(&mut self, now: u64) {
        self.leases = Leases::open(self.store.clone(), at(now)).unwrap();
    }

    pub(crate) fn offer(&mut self, number: u8, now: u64) -> Option<Ipv4Addr> {
        self.offer_requested(number, None, now)
    }

    fn offer_requested(
        &mut self,
        number: u8,
        requested: Option<Ipv4Addr>,
        now: u64,
    ) -> Option<Ipv4Addr> {
        let place = Place {
            subnet: &self.subnet,
            server: SERVER,
            policy: &self.site,
            promise: &self.site.promise(mac(number)),
            now: at(now),
        };
        self.leases.offer(mac(number), requested, place)
    }

    pub(crate) fn may_have(&self, number: u8, address: Ipv4Addr, now: u64) -> bool {
        let place = Place {
            subnet: &self.subnet,
            server: SERVER,
            policy: &self.site,
            promise: &self.site.promise(mac(number)),
            now: at(now),
        };
        self.leases.may_have(mac(number), address, place)
    }

    pub(crate) fn lend(&mut self, number: u8, now: u64) -> Ipv4Addr {
        let address = self.offer(number, now).expect("an address");
        self.leases
            .lend(&client(number), address, LEASE_TIME, at(now))
            .unwrap();
        address
    }

    fn expires(&self, number: u8) -> SystemTime {
        self.leases.of(mac(number)).unwrap().expires
    }
}

fn client(number: u8) -> Client {
    Client {
        mac: mac(number),
        uuid: None,
        firmware: Firmware::System,
        vendor_class: None,
        host_name: None,
        xid: 0,
    }
}

#[test]
fn a_mac_gets_the_same_address_again_and_again() {
    let mut pool = Pool::of(50);
    let address = pool.lend(1, 0);
    pool.lend(2, 1);
    for now in [10, 100, 3_000, 1_000_000] {
        assert_eq!(pool.lend(1, now), address);
    }
}

#[test]
fn a_mac_finds_its_address_even_when_the_store_was_lost() {
    let first = Pool::of(50).lend(7, 0);
    assert_eq!(Pool::of(50).lend(7, 0), first);
}

#[test]
fn no_two_clients_share_an_address_and_the_whole_pool_is_lent() {
    let mut pool = Pool::of(20);
    let addresses: HashSet<Ipv4Addr> = (1..=20).map(|number| pool.lend(number, 0)).collect();
    assert_eq!(addresses.len(), 20);
    assert!(addresses.iter().all(|&address| pool.subnet.lends(address)));
    assert_eq!(pool.offer(21, 1), None);
}

#[test]
fn an_offered_address_is_held_for_a_while() {
    let mut pool = Pool::of(1);
    assert_eq!(pool.offer(1, 0), Some(host(100)));
    assert_eq!(pool.offer(1, 1), Some(host(100)), "a repeated DISCOVER");
    assert_eq!(pool.offer(2, 10), None);
    assert_eq!(pool.offer(2, 17), Some(host(100)));
}

#[test]
fn a_withdrawn_offer_is_free_at_once() {
    let mut pool = Pool::of(1);
    pool.offer(1, 0);
    pool.leases.withdraw(mac(1));
    assert_eq!(pool.offer(2, 1), Some(host(100)));
}

#[test]
fn the_longest_unused_address_goes_to_a_newcomer_first() {
    let mut pool = Pool::of(2);
    let older = pool.lend(1, 0);
    let younger = pool.lend(2, 100);
    assert_eq!(pool.offer(3, 3_599), None);
    assert_eq!(pool.offer(3, 3_800), Some(older));
    assert_ne!(older, younger);
    pool.leases
        .lend(&client(3), older, LEASE_TIME, at(3_800))
        .unwrap();
    assert_eq!(
        pool.leases.of(mac(1)),
        None,
        "its lease is somebody else's now"
    );
    assert_eq!(pool.store.kept.lock().unwrap().len(), 2);
}

#[test]
fn a_wish_is_granted_when_nobody_ever_had_the_address() {
    let mut pool = Pool::of(50);
    assert_eq!(pool.offer_requested(1, Some(host(120)), 0), Some(host(120)));
    pool.leases
        .lend(&client(1), host(120), LEASE_TIME, at(0))
        .unwrap();
    assert_ne!(pool.offer_requested(2, Some(host(120)), 0), Some(host(120)));
    assert_ne!(
        pool.offer_requested(3, Some(host(99)), 0),
        Some(host(99)),
        "outside the pool"
    );
    assert_ne!(
        pool.offer_requested(4, Some(Ipv4Addr::new(10, 1, 0, 120)), 0),
        Some(Ipv4Addr::new(10, 1, 0, 120))
    );
}

#[test]
fn a_fixed_address_goes_to_its_mac_only_and_may_lie_outside_the_pool() {
    let mut pool = Pool::of(1);
    pool.site.fix(mac(1), host(9));
    pool.site.fix(mac(2), host(100));
    assert_eq!(pool.offer(1, 0), Some(host(9)));
    assert_eq!(
        pool.offer(3, 0),
        None,
        "the only address of the pool is promised"
    );
    assert_eq!(pool.offer(2, 0), Some(host(100)));
}

#[test]
fn our_own_address_routers_and_the_edges_of_the_network_are_never_lent() {
    let mut pool = Pool::of(1);
    pool.subnet.ranges = vec![(host(0), host(1)), (host(254), host(255))];
    assert_eq!(pool.offer(1, 0), None);
}

#[test]
fn a_short_lease_is_held_ten_minutes_all_the_same() {
    let mut pool = Pool::of(1);
    pool.offer(1, 0);
    pool.leases
        .lend(&client(1), host(100), Duration::from_secs(120), at(0))
        .unwrap();
    assert_eq!(pool.offer(2, 599), None);
    assert_eq!(pool.offer(2, 601), Some(host(100)));
}

#[test]
fn a_live_session_renews_its_lease_and_its_loss_leaves_ten_minutes() {
    let mut pool = Pool::of(1);
    let address = pool.lend(1, 0);
    pool.site.begin_session(address);
    let mut now = 0;
    while now < 10_000 {
        pool.leases.renew_in_use(&pool.site, at(now)).unwrap();
        now += RENEW_INTERVAL.as_secs();
        assert!(pool.expires(1) >= at(now) + MIN_HOLD, "at {now} s");
    }
    pool.site.lose_session(address);
    for later in [0, 300, 599] {
        pool.leases
            .renew_in_use(&pool.site, at(now + later))
            .unwrap();
        assert_eq!(pool.offer(2, now + later), None, "{later} s after the loss");
    }
    assert_eq!(pool.offer(2, now + 1_000), Some(address));
    assert!(
        *pool.store.saves.lock().unwrap() < 50,
        "the store is not written at every turn"
    );
}

#[test]
fn an_address_in_use_is_lent_to_nobody_else_even_if_its_lease_ended_or_is_unknown() {
    let mut pool = Pool::of(2);
    let address = pool.lend(1, 0);
    pool.site.begin_session(address);
    let other = pool.lend(2, 50_000);
    assert_ne!(other, address);
    assert_eq!(pool.offer(3, 50_001), None);
    assert_eq!(pool.lend(1, 50_002), address, "but its own machine gets it");

    let mut pool = Pool::of(1);
    pool.site.begin_session(host(100));
    assert_eq!(
        pool.offer(1, 0),
        None,
        "a session whose lease nobody remembers"
    );
    pool.site.fix(mac(2), host(100));
    assert_eq!(
        pool.offer(2, 0),
        Some(host(100)),
        "the machine it is promised to"
    );
}

#[test]
fn the_address_of_a_live_session_stays_when_another_is_promised_meanwhile() {
    let mut pool = Pool::of(5);
    let address = pool.lend(1, 0);
    pool.site.begin_session(address);
    pool.site.fix(mac(1), host(9));
    assert_eq!(pool.lend(1, 10), address);
    pool.site.lose_session(address);
    assert_eq!(pool.lend(1, 20), host(9));
}

#[test]
fn a_released_address_is_free_and_remembered() {
    let mut pool = Pool::of(2);
    let address = pool.lend(1, 0);
    assert_eq!(
        pool.leases.release(mac(1), address, &pool.site, at(5)),
        Ok(true)
    );
    assert_eq!(pool.expires(1), at(5));
    assert_eq!(pool.store.kept.lock().unwrap()[&mac(1)].expires, at(5));
    assert_eq!(pool.lend(1, 6), address);
    assert_eq!(
        pool.leases.release(mac(2), address, &pool.site, at(7)),
        Ok(false),
        "not its own"
    );
    assert_eq!(
        pool.leases.release(mac(1), host(101), &pool.site, at(7)),
        Ok(false),
        "not this one"
    );
}

#[test]
fn a_release_does_not_free_the_address_of_a_live_or_just_lost_session() {
    let mut pool = Pool::of(1);
    let address = pool.lend(1, 0);
    pool.site.begin_session(address);
    assert_eq!(
        pool.leases.release(mac(1), address, &pool.site, at(5)),
        Ok(false)
    );
    pool.leases.renew_in_use(&pool.site, at(10)).unwrap();
    pool.site.lose_session(address);
    assert_eq!(
        pool.leases.release(mac(1), address, &pool.site, at(20)),
        Ok(false)
    );
    assert_eq!(pool.offer(2, 21), None);
    assert_eq!(
        pool.leases.release(mac(1), address, &pool.site, at(700)),
        Ok(true)
    );
}

#[test]
fn a_declined_address_rests() {
    let mut pool = Pool::of(2);
    let address = pool.lend(1, 0);
    assert_eq!(
        pool.leases.decline(mac(2), address, &pool.site, at(1)),
        Ok(false),
        "not its own"
    );
    assert_eq!(
        pool.leases.decline(mac(1), address, &pool.site, at(1)),
        Ok(true)
    );
    let other = pool.lend(1, 2);
    assert_ne!(other, address);
    assert_eq!(pool.offer(2, 3), None);
    assert_eq!(pool.offer(2, 1 + DECLINE_REST.as_secs()), Some(address));
}

#[test]
fn the_address_of_a_live_session_cannot_be_declined_away() {
    let mut pool = Pool::of(1);
    let address = pool.lend(1, 0);
    pool.site.begin_session(address);
    assert_eq!(
        pool.leases.decline(mac(1), address, &pool.site, at(1)),
        Ok(false)
    );
    assert_eq!(pool.lend(1, 2), address);
}

#[test]
fn leases_survive_a_restart() {
    let mut pool = Pool::of(5);
    let addresses: Vec<Ipv4Addr> = (1..=5).map(|number| pool.lend(number, 0)).collect();
    let before = pool.leases.all();
    pool.restart(60);
    assert_eq!(pool.leases.all(), before);
    for (number, address) in (1..=5).zip(addresses) {
        assert_eq!(pool.lend(number, 61), address);
    }
}

#[test]
fn after_a_restart_an_ended_lease_waits_for_its_session_to_come_back() {
    let mut pool = Pool::of(1);
    let address = pool.lend(1, 0);
    pool.restart(8_000); // the lease ended at 3600
    assert_eq!(pool.offer(2, 8_001), None);
    assert_eq!(
        pool.leases.release(mac(1), address, &pool.site, at(8_002)),
        Ok(false)
    );
    pool.site.begin_session(address);
    pool.leases.renew_in_use(&pool.site, at(8_010)).unwrap();
    assert!(pool.expires(1) >= at(8_010) + MIN_HOLD);
    assert_eq!(pool.offer(2, 8_600), None);
}

#[test]
fn a_lease_that_ended_days_before_a_restart_waits_for_nothing() {
    let mut pool = Pool::of(1);
    let address = pool.lend(1, 0);
    pool.restart(300_000);
    assert_eq!(pool.offer(2, 300_001), Some(address));
}

#[test]
fn what_cannot_be_kept_is_not_lent() {
    let mut pool = Pool::of(1);
    let address = pool.offer(1, 0).unwrap();
    pool.store.break_down();
    assert!(
        pool.leases
            .lend(&client(1), address, LEASE_TIME, at(0))
            .is_err()
    );
    assert_eq!(pool.leases.all(), []);
    assert_eq!(pool.offer(2, 60), Some(address));
}

#[test]
fn a_uuid_that_changes_under_a_mac_is_noticed_once_and_harms_nothing() {
    let mut pool = Pool::of(1);
    let with = |uuid| Client { uuid, ..client(1) };
    let mut lend = |uuid| {
        pool.leases
            .lend(&with(uuid), host(100), LEASE_TIME, at(0))
            .unwrap()
    };
    assert_eq!(lend(Some([1; 16])), Lent::Plainly);
    assert_eq!(lend(None), Lent::Plainly, "an operating system has none");
    assert_eq!(lend(Some([1; 16])), Lent::Plainly);
    assert_eq!(lend(Some([2; 16])), Lent::UuidChanged);
    assert_eq!(lend(Some([2; 16])), Lent::Plainly);
}

#[test]
fn a_renewal_never_shortens_a_lease() {
    let mut pool = Pool::of(1);
    pool.lend(1, 0);
    pool.leases
        .lend(&client(1), host(100), Duration::from_secs(60), at(1))
        .unwrap();
    assert_eq!(pool.expires(1), at(3_600));
}

#[test]
fn a_client_may_have_what_it_would_be_offered_and_nothing_else() {
    let mut pool = Pool::of(10);
    let address = pool.offer(1, 0).unwrap();
    let other = pool.lend(2, 0);
    assert!(pool.may_have(1, address, 1));
    assert!(!pool.may_have(1, other, 1));
    assert!(!pool.may_have(1, host(3), 1), "outside the pool");
    assert!(!pool.may_have(3, address, 1), "held for another");
}

#[test]
fn a_pool_of_several_ranges_is_walked_through_all_of_them() {
    let mut ranges = subnet(1);
    ranges.ranges = vec![(host(10), host(12)), (host(20), host(21))];
    for seed in [0, 3, 4, u32::MAX] {
        let mut walked: Vec<Ipv4Addr> = ranges.pool_from(seed).collect();
        walked.sort();
        assert_eq!(
            walked,
            [host(10), host(11), host(12), host(20), host(21)],
            "seed {seed}"
        );
    }
    ranges.ranges.clear();
    assert_eq!(ranges.pool_from(5).count(), 0);
}

#[test]
fn a_batch_reaches_the_store_together_or_nothing_of_it_was_lent() {
    let mut pool = Pool::of(10);
    pool.leases.begin_batch();
    let (one, two) = (pool.lend(1, 0), pool.lend(2, 0));
    assert_eq!(*pool.store.saves.lock().unwrap(), 0);
    assert_ne!(one, two);
    pool.leases.commit().unwrap();
    assert_eq!(*pool.store.saves.lock().unwrap(), 2);

    pool.store.break_down();
    pool.leases.begin_batch();
    pool.lend(3, 1);
    pool.lend(1, 9);
    pool.leases.commit().unwrap_err();
    assert_eq!(pool.leases.of(mac(3)), None);
    assert_eq!(pool.expires(1), at(0) + LEASE_TIME);
    assert_eq!(pool.leases.all().len(), 2);
}

/// A store that notes what it is told.
#[derive(Default)]
struct Noted(Mutex<Vec<Change>>);

impl LeaseStore for Noted {
    fn load(&self) -> Result<Vec<Lease>, String> {
        Ok(Vec::new())
    }

    fn save(&self, _: &Lease) -> Result<(), String> {
        Ok(())
    }

    fn remove(&self, _: Mac) -> Result<(), String> {
        Ok(())
    }

    fn apply(&self, changes: &[Change]) -> Result<(), String> {
        self.0.lock().unwrap().extend_from_slice(changes);
        Ok(())
    }
}

#[test]
fn a_lease_that_had_ended_is_lent_again_as_durably_as_a_new_one() {
    let store = Arc::new(Noted::default());
    let mut leases = Leases::open(store.clone(), at(0)).unwrap();
    let mut is_durable = |now: u64| {
        let client = client(1);
        leases
            .lend(&client, host(100), LEASE_TIME, at(now))
            .unwrap();
        let last = store.0.lock().unwrap().pop().unwrap();
        matches!(last, Change::Bind(_))
    };
    let hour = LEASE_TIME.as_secs();
    assert!(is_durable(0), "new");
    assert!(!is_durable(hour / 2), "in good time");
    assert!(is_durable(hour + hour / 2 - 1), "in the last moment");
    assert!(is_durable(10 * hour), "it had ended");
}
