//! A DHCP server for one interface, to try firmware against by hand: tells
//! every network boot the same file or URL and prints what it observes.
//!
//! ```text
//! serve MODE INTERFACE ADDRESS NETMASK FIRST LAST
//! ```

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dhcp::{
    Boot, Client, Firmware, InterfaceConfig, Lease, LeaseStore, Mac, Mode, Observation, Policy,
    Promise, Server, Settings, Subnet,
};

struct Site;

impl Policy for Site {
    fn boot(&self, client: &Client, server: Ipv4Addr) -> Option<Boot> {
        let tftp = |file: &str| {
            Some(Boot::Tftp {
                server,
                file: file.into(),
            })
        };
        match client.firmware {
            Firmware::BiosPxe => tftp("undionly.kpxe"),
            Firmware::UefiPxe(_) => tftp("snponly.efi"),
            Firmware::UefiHttp(_) => Some(Boot::Url(format!("http://{server}/snponly.efi"))),
            Firmware::Ipxe(_) => Some(Boot::Url(format!("http://{server}/boot.ipxe"))),
            Firmware::RaspberryPi => tftp("bootcode.bin"),
            Firmware::System | Firmware::Other(_) => None,
        }
    }

    fn promise(&self, _mac: Mac) -> Promise {
        Promise::default()
    }

    fn is_in_use(&self, _address: Ipv4Addr) -> bool {
        false
    }

    fn observe(&self, observation: &Observation) {
        println!("{observation:?}");
    }
}

#[derive(Default)]
struct Memory(Mutex<HashMap<Mac, Lease>>);

impl LeaseStore for Memory {
    fn load(&self) -> Result<Vec<Lease>, String> {
        Ok(self.0.lock().expect("no panic").values().cloned().collect())
    }

    fn save(&self, lease: &Lease) -> Result<(), String> {
        self.0
            .lock()
            .expect("no panic")
            .insert(lease.mac, lease.clone());
        Ok(())
    }

    fn remove(&self, mac: Mac) -> Result<(), String> {
        self.0.lock().expect("no panic").remove(&mac);
        Ok(())
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, name, addresses @ ..] = arguments.as_slice() else {
        panic!("serve MODE INTERFACE ADDRESS NETMASK FIRST LAST");
    };
    let addresses: Vec<Ipv4Addr> = addresses
        .iter()
        .map(|text| text.parse().expect("an address"))
        .collect();
    let [address, netmask, first, last] = addresses[..] else {
        panic!("four addresses are needed");
    };
    let mode = match mode.as_str() {
        "observe" => Mode::Observe,
        "proxy" => Mode::Proxy,
        "full" => Mode::Full,
        other => panic!("{other} is no mode"),
    };
    let subnet = Subnet {
        network: address,
        netmask,
        ranges: vec![(first, last)],
        routers: Vec::new(),
        dns: Vec::new(),
        domain: None,
        ntp: Vec::new(),
        mtu: None,
        lease_time: None,
        options: Vec::new(),
    };
    let settings = Settings {
        mode,
        lease_time: Duration::from_secs(600),
        subnets: vec![subnet],
    };
    let interface = InterfaceConfig {
        name: name.clone(),
        address,
        netmask,
    };
    let server = Server::start(
        vec![interface],
        settings,
        Arc::new(Site),
        Arc::new(Memory::default()),
    )
    .expect("a server");
    println!("serving");
    loop {
        std::thread::park();
        println!("{:?}", server.counters());
    }
}
