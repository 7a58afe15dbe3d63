//! Claims about the settings the server starts with, and about how often the
//! site is told what strangers trigger.

use super::*;
use crate::lease::tests::{Memory, SERVER, Site, host, subnet};

fn settings(change: impl FnOnce(&mut Subnet)) -> Settings {
    let mut subnet = subnet(10);
    change(&mut subnet);
    Settings {
        mode: Mode::Full,
        lease_time: Duration::from_secs(600),
        subnets: vec![subnet],
    }
}

fn interface() -> InterfaceConfig {
    InterfaceConfig {
        name: "eth7".into(),
        address: SERVER,
        netmask: Ipv4Addr::new(255, 255, 255, 0),
    }
}

fn refusal(settings: &Settings) -> String {
    check(&[interface()], settings).unwrap_err().to_string()
}

#[test]
fn settings_that_contradict_themselves_are_refused_in_words() {
    assert!(check(&[interface()], &settings(|_| ())).is_ok());
    assert_eq!(
        refusal(&settings(
            |subnet| subnet.netmask = Ipv4Addr::new(255, 0, 255, 0)
        )),
        "255.0.255.0 is no netmask"
    );
    assert_eq!(
        refusal(&settings(|subnet| subnet.ranges = vec![(host(9), host(3))])),
        "the pool 10.0.0.9 to 10.0.0.3 does not lie in 10.0.0.0 / 255.255.255.0"
    );
    assert_eq!(
        refusal(&settings(|subnet| {
            subnet.network = Ipv4Addr::new(10, 9, 0, 0);
            subnet.ranges.clear();
        })),
        "no subnet is declared for 10.0.0.1 of interface eth7"
    );
    assert_eq!(
        check(&[], &settings(|_| ())).unwrap_err().kind(),
        io::ErrorKind::InvalidInput
    );
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    let interface = InterfaceConfig {
        name: "no-such-thing".into(),
        ..interface()
    };
    let error = Server::start(
        vec![interface],
        settings(|_| ()),
        Arc::new(Site::default()),
        Arc::new(Memory::default()),
    )
    .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert!(error.to_string().contains("no-such-thing"), "{error}");
}

fn calm(site: &Arc<Site>) -> Calm {
    Calm {
        policy: site.clone(),
        own: vec![SERVER],
        booting: Mutex::default(),
        foreign: Mutex::default(),
        malformed: Mutex::default(),
        exhausted: Mutex::default(),
    }
}

#[test]
fn the_style_the_site_chose_reaches_the_wire() {
    let site = Arc::new(Site::default());
    *site.style.lock().unwrap() = Style::Menu;
    let client = Client {
        mac: Mac([2, 0, 0, 0, 0, 1]),
        uuid: None,
        firmware: crate::Firmware::BiosPxe,
        vendor_class: None,
        host_name: None,
        xid: 0,
    };
    assert_eq!(calm(&site).style(&client, SERVER), Style::Menu);
}

#[test]
fn what_strangers_trigger_is_told_once_and_our_own_address_never() {
    let site = Arc::new(Site::default());
    let calm = calm(&site);
    let known = Mac([2, 0, 0, 0, 0, 1]);
    let promise = Promise {
        is_known: true,
        ..Promise::default()
    };
    site.promises.lock().unwrap().insert(known, promise);
    for number in 0..100 {
        calm.observe(&Observation::ForeignServer { server: host(2) });
        calm.observe(&Observation::ForeignServer { server: SERVER });
        calm.observe(&Observation::Malformed {
            reason: "rubbish".into(),
        });
        let mac = Mac([2, 0, 0, 0, 1, number]);
        calm.observe(&Observation::PoolExhausted { mac });
    }
    for _ in 0..2 {
        calm.observe(&Observation::PoolExhausted { mac: known });
    }
    assert_eq!(
        site.observations(),
        [
            Observation::ForeignServer { server: host(2) },
            Observation::Malformed {
                reason: "rubbish".into()
            },
            Observation::PoolExhausted {
                mac: Mac([2, 0, 0, 0, 1, 0])
            },
            Observation::PoolExhausted { mac: known },
            Observation::PoolExhausted { mac: known },
        ]
    );
    for number in 0..=255 {
        calm.observe(&Observation::ForeignServer {
            server: host(number),
        });
    }
    assert_eq!(site.observations().len(), MAX_FOREIGN_SERVERS - 1);
}

#[test]
fn a_server_may_be_shared_between_threads() {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Server>();
}
