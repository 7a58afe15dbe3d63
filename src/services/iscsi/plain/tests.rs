//! Claims about who may open and see a plain target.

use iscsi::disk::Ram;

use super::*;
use crate::services::tests::login;

const OPEN: &str = "iqn.2026-01.lab:open";
const CLOSED: &str = "iqn.2026-01.lab:closed";

fn target(name: &str) -> Arc<Target> {
    let unit = LogicalUnit::new(
        Arc::new(Ram::new(1 << 20)),
        Identity::new([1; 16], "VIRTUAL DISK"),
    );
    Arc::new(Target::of_one(name, Arc::new(unit)))
}

/// A target for everybody, and one for who knows its secret.
fn targets() -> PlainTargets {
    let targets = PlainTargets::default();
    targets.add(target(OPEN), None);
    let chap = Chap::new("me", "a secret of mine").unwrap();
    targets.add(target(CLOSED), Some(chap));
    targets
}

fn discovery(chap_name: Option<&str>) -> Login {
    Login {
        target: None,
        ..login(OPEN, chap_name)
    }
}

#[test]
fn a_target_asks_for_its_own_secret_and_no_other() {
    let targets = targets();
    let ask = |target: &str| targets.authentication(&login(target, None));
    assert_eq!(ask(OPEN), Authentication::None);
    assert_eq!(ask(CLOSED), Authentication::Chap);
    let secret = |target: &str, name: &str| targets.chap_secret(&login(target, None), name);
    assert!(secret(CLOSED, "me").is_some());
    assert!(secret(CLOSED, "you").is_none());
    assert!(secret(OPEN, "me").is_none());
}

#[test]
fn discovery_shows_what_may_be_opened() {
    let targets = targets();
    assert_eq!(targets.discover(&discovery(None)), [OPEN]);
    assert_eq!(targets.discover(&discovery(Some("me"))), [CLOSED, OPEN]);
    assert_eq!(targets.discover(&discovery(Some("you"))), [OPEN]);
}

#[test]
fn discovery_asks_for_a_secret_where_every_target_has_one() {
    let targets = PlainTargets::default();
    targets.add(
        target(CLOSED),
        Some(Chap::new("me", "a secret of mine").unwrap()),
    );
    assert_eq!(
        targets.authentication(&discovery(None)),
        Authentication::Chap
    );
    assert!(targets.chap_secret(&discovery(None), "me").is_some());
}

#[test]
fn a_target_nobody_added_is_not_found() {
    let refusal = targets().open(&login("iqn.2026-01.lab:none", None)).err();
    assert_eq!(refusal, Some(LoginRefusal::NotFound));
    assert!(targets().open(&login(OPEN, None)).is_ok());
}
