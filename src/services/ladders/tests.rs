//! Claims about the ladders as the doors climb them: recorded DISCOVERs in,
//! replies and the timeline out.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use ::dhcp::wire::Message;
use ::dhcp::{Boot, Observation, Policy};
use tftp::{Files, Outcome};

use super::*;
use crate::inventory::{MachineChange, OverlayMode};
use crate::services::dhcp::Addressing;
use crate::services::tests::{Lab, PC_ADDRESS};
use crate::services::tftp::LoaderFiles;

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// A PC whose firmware sent a recorded DISCOVER.
struct Pc {
    lab: Lab,
    client: Client,
}

impl Pc {
    fn new(discover: &str, loaders: &[&str]) -> Pc {
        let digits: Vec<u32> = discover.chars().filter_map(|c| c.to_digit(16)).collect();
        let bytes = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]);
        let discover: Vec<u8> = bytes.map(|byte| byte.try_into().unwrap()).collect();
        let lab = Lab::new();
        for loader in loaders {
            std::fs::write(lab.files().join(loader), b"loader").unwrap();
        }
        let client = Client::describe(&Message::parse(&discover).unwrap()).unwrap();
        Pc { lab, client }
    }

    fn edk2() -> Pc {
        let discover = include_str!("../../../crates/dhcp/src/vectors/ovmf-pxe-discover.hex");
        Pc::new(discover, &["snponly.efi", "ipxe.efi"])
    }

    fn policy(&self) -> Addressing {
        Addressing::new(Arc::clone(self.lab.site()))
    }

    /// DISCOVER and OFFER: what it is told, and how.
    fn asks(&mut self) -> (String, Style) {
        let policy = self.policy();
        policy.observe(&Observation::Asked(self.client.clone()));
        let boot = policy.boot(&self.client, SERVER).unwrap();
        let style = policy.style(&self.client, SERVER);
        let told = match &boot {
            Boot::Tftp { file, .. } => file.clone(),
            Boot::Url(url) => url.clone(),
        };
        policy.observe(&Observation::Offered {
            client: self.client.clone(),
            address: Some(PC_ADDRESS),
            boot: Some(boot),
        });
        policy.observe(&Observation::Bound {
            client: self.client.clone(),
            address: PC_ADDRESS,
        });
        (told, style)
    }

    /// Fetches a file by TFTP, to its end.
    fn takes(&self, name: &str) {
        let request = tftp::Request {
            name: name.into(),
            client: SocketAddrV4::new(PC_ADDRESS, 1024),
            local: SocketAddrV4::new(SERVER, 69),
        };
        let files = LoaderFiles(Arc::clone(self.lab.site()));
        files.open(&request).unwrap();
        files.ended(&request, &Outcome::Probed);
        files.ended(&request, &Outcome::Complete { bytes: 6 });
    }

    fn told(&self, stage: Stage) -> Vec<String> {
        let events = self.lab.site().timeline.events(self.client.mac);
        let told = events.into_iter().filter(|event| event.stage == stage);
        told.map(|event| event.detail).collect()
    }
}

#[test]
fn a_loader_that_fell_silent_is_followed_by_the_next_and_the_timeline_says_so() {
    let mut pc = Pc::edk2();
    assert_eq!(pc.asks(), ("snponly.efi".into(), Style::Direct));
    pc.takes("snponly.efi");
    assert_eq!(pc.asks().0, "ipxe.efi");
    assert_eq!(
        pc.told(Stage::WayChanged),
        ["it took snponly.efi and was not heard again; this time it gets ipxe.efi"]
    );
}

#[test]
fn a_script_fetch_proves_the_loader_and_a_pc_of_the_same_model_begins_with_it() {
    let mut pc = Pc::edk2();
    pc.asks();
    pc.takes("snponly.efi");
    pc.asks();
    pc.takes("ipxe.efi");
    let url = pc.lab.site().doors(SERVER).script_url(pc.client.mac);
    pc.lab.get(url.strip_prefix("http://10.0.0.1").unwrap());
    assert_eq!(
        pc.told(Stage::WayFound),
        [
            "UEFI PXE (x64) found its loader when told everything in one packet (direct)",
            "UEFI PXE (x64) runs ipxe.efi"
        ]
    );
    pc.client.mac.0[5] ^= 1;
    assert_eq!(pc.asks().0, "ipxe.efi");
    pc.lab.site().inventory.forget_models(None).unwrap();
    assert_eq!(pc.asks().0, "snponly.efi");
}

#[test]
fn ipxe_that_asks_for_an_address_proves_the_loader_too() {
    let mut pc = Pc::edk2();
    pc.asks();
    pc.takes("snponly.efi");
    let ipxe = Client {
        firmware: Firmware::Ipxe(None),
        ..pc.client.clone()
    };
    pc.policy().observe(&Observation::Asked(ipxe));
    assert_eq!(pc.asks().0, "snponly.efi");
}

#[test]
fn a_loader_an_operator_chose_is_no_ladders_business() {
    let mut pc = Pc::edk2();
    pc.lab.image("debian", 1);
    let machine = pc.lab.machine("pc1", 1, "debian", OverlayMode::Keep);
    let change = MachineChange {
        mac: Some(pc.client.mac),
        loader: Some(Some("ipxe.efi".into())),
        ..MachineChange::default()
    };
    pc.lab.inventory().set_machine(machine.id, change).unwrap();
    for _ in 0..3 {
        assert_eq!(pc.asks().0, "ipxe.efi");
        pc.takes("ipxe.efi");
    }
    assert_eq!(pc.told(Stage::WayChanged), [""; 0]);
}

#[test]
fn http_boot_climbs_by_what_it_fetches_over_http() {
    let discover = include_str!("../../../crates/dhcp/src/vectors/ovmf-http-discover.hex");
    let mut pc = Pc::new(discover, &["snponly.efi", "ipxe.efi"]);
    let loader = |told: (String, Style)| told.0.rsplit('/').next().unwrap().to_owned();
    assert_eq!(loader(pc.asks()), "snponly.efi");
    pc.lab
        .ask(axum::http::Method::HEAD, "/loader/snponly.efi", &[]);
    pc.lab.get("/loader/snponly.efi");
    assert_eq!(loader(pc.asks()), "ipxe.efi");
}
