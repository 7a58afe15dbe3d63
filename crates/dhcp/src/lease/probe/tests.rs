//! Claims about addresses that somebody has whom we did not lend them.

use super::*;
use crate::lease::tests::{Pool, at, host, mac};

fn ahead(pool: &mut Pool, now: u64) -> Vec<Ipv4Addr> {
    let subnet = pool.subnet.clone();
    pool.leases
        .probe_ahead(&subnet, |_| true, &pool.site, at(now))
}

fn hear(pool: &mut Pool, number: u8, address: Ipv4Addr, now: u64) -> Option<Observation> {
    pool.leases.hear(mac(number), address, &pool.site, at(now))
}

fn wanted(pool: &mut Pool, now: u64) -> Vec<Ipv4Addr> {
    pool.leases.take_wanted_probes(|_| true, at(now))
}

/// A pool that is asked for, with addresses not asked for yet.
fn probing(count: u8) -> Pool {
    let mut pool = Pool::of(count);
    pool.leases.begin_probing();
    pool
}

#[test]
fn an_offered_address_that_somebody_answers_on_is_withdrawn_and_rests() {
    let mut pool = probing(2);
    let address = pool.offer(1, 0).unwrap();
    assert_eq!(wanted(&mut pool, 0), [address]);
    assert!(wanted(&mut pool, 0).is_empty());
    assert_eq!(hear(&mut pool, 1, address, 0), None, "it is its own");
    let conflict = Observation::Conflict {
        address,
        holder: Some(mac(9)),
        offered_to: Some(mac(1)),
    };
    assert_eq!(hear(&mut pool, 9, address, 0), Some(conflict));
    assert_eq!(hear(&mut pool, 9, address, 0), None, "said once");
    assert!(!pool.may_have(1, address, 0));
    let other = pool.offer(1, 0).unwrap();
    assert_ne!(other, address);
    assert_eq!(pool.offer(2, 1), None);
    assert!(!pool.may_have(2, address, 899));
    assert!(pool.may_have(2, address, 900));
}

#[test]
fn an_address_lent_before_the_answer_came_is_lent_no_longer() {
    let mut pool = probing(5);
    let address = pool.lend(1, 0);
    assert_eq!(wanted(&mut pool, 0), [address]);
    assert!(hear(&mut pool, 9, address, 0).is_some());
    assert_eq!(pool.leases.of(mac(1)), None);
    assert!(pool.store.kept.lock().unwrap().is_empty());
}

#[test]
fn what_we_did_not_ask_or_a_session_uses_is_nobodys_to_take_away() {
    let mut pool = probing(5);
    assert_eq!(hear(&mut pool, 9, host(100), 0), None);
    let address = pool.lend(1, 0);
    wanted(&mut pool, 0);
    pool.site.begin_session(address);
    assert_eq!(hear(&mut pool, 9, address, 0), None);
    pool.site.lose_session(address);
    ahead(&mut pool, 2);
    assert_eq!(hear(&mut pool, 9, address, 2), None, "too late: it is lent");
    assert!(pool.leases.of(mac(1)).is_some());
}

#[test]
fn a_newcomer_gets_an_address_that_was_asked_for_ahead() {
    let mut pool = probing(20);
    let first = pool.offer(7, 0).unwrap();
    pool.leases.withdraw(mac(7));
    wanted(&mut pool, 0);
    assert!(hear(&mut pool, 9, first, 0).is_some());
    assert_eq!(ahead(&mut pool, 0).len(), 19, "all but that");
    assert_eq!(ahead(&mut pool, 1).len(), 0);
    let address = pool.offer(7, 1).unwrap();
    assert!(wanted(&mut pool, 1).is_empty(), "{address} was asked for");
    assert!(
        hear(&mut pool, 8, host(101), 2).is_some(),
        "somebody came later"
    );
    assert_eq!(
        ahead(&mut pool, 900).len(),
        20 - 1,
        "they are asked for anew"
    );
}

#[test]
fn who_answers_for_every_address_is_heeded_for_a_few_only() {
    let mut pool = probing(100);
    let asked: Vec<Ipv4Addr> = (0..9).flat_map(|_| ahead(&mut pool, 0)).collect();
    assert_eq!(asked.len(), 100);
    let heeded = asked
        .iter()
        .filter(|&&address| hear(&mut pool, 9, address, 0).is_some());
    assert_eq!(heeded.count(), CONFLICTS_OF_ONE_MAX);
    let mut others = (0..).map(|number| 10 + number);
    let heeded = asked.iter().filter(|&&address| {
        let number = others.next().unwrap_or_default();
        pool.leases
            .hear(mac(number), address, &pool.site, at(0))
            .is_some()
    });
    assert_eq!(heeded.count(), CONFLICTS_MAX - CONFLICTS_OF_ONE_MAX);
}

#[test]
fn a_lease_that_is_renewed_is_not_asked_for() {
    let mut pool = probing(5);
    pool.lend(1, 0);
    wanted(&mut pool, 0);
    pool.lend(1, 100);
    assert!(wanted(&mut pool, 100).is_empty());
}
