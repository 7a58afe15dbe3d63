//! A whole site in a temporary directory, without sockets, for the tests of
//! every door.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::dhcp::Mac;
use ::iscsi::{Attachment, Login, LoginRefusal, Targets};
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use disk::SharedDisk;
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::iscsi::MachineDisks;
use super::{Addresses, Climbs, Loaders, Site, Systems, http};
use crate::boot::script::{Https, Ports};
use crate::config::DhcpMode;
use crate::inventory::{
    Assignment, Image, ImageRef, ImportRequest, Inventory, Limits, Machine, MachineChange, Name,
    NewMachine, Origin, Outcome, OverlayMode,
};
use crate::timeline::{Stage, Timeline};

/// Size of every image here.
pub(crate) const IMAGE_BYTES: u64 = 256 * 1024;

/// Where requests over HTTP come from.
pub(crate) const PC_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);
/// Our address on the LAN.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// The server, up or down, and its data.
pub(crate) struct Lab {
    directory: tempfile::TempDir,
    pub(crate) site: Option<Arc<Site>>,
    disks: Option<Arc<MachineDisks>>,
}

/// What a machine reads in its script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Script {
    pub(crate) target: String,
    pub(crate) chap_name: String,
    pub(crate) secret: String,
}

/// An answer over HTTP.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Lab {
    pub(crate) fn new() -> Lab {
        let mut lab = Lab {
            directory: tempfile::tempdir().unwrap(),
            site: None,
            disks: None,
        };
        lab.start();
        lab
    }

    /// Ends the program as a kill does (nothing is closed in order) and starts
    /// it again. Attachments must have been dropped.
    pub(crate) fn restart(&mut self) {
        self.disks = None;
        self.site = None;
        self.start();
    }

    fn start(&mut self) {
        let data = self.directory.path().join("data");
        let inventory = Arc::new(Inventory::open(&data, Limits::default()).unwrap());
        let files = self.directory.path().join("files");
        std::fs::create_dir_all(&files).unwrap();
        let site = Arc::new(Site {
            timeline: Arc::new(Timeline::open(Arc::clone(&inventory)).unwrap()),
            inventory,
            loaders: Loaders::new(Some(&files)),
            dhcp_mode: DhcpMode::Full,
            disks: OnceLock::new(),
            systems: Systems::default(),
            addresses: Addresses::among(&self.neighbours()),
            climbs: Climbs::default(),
            ports: Ports {
                http: 80,
                iscsi: 3260,
                https: Https::default(),
            },
            target_prefix: "iqn.2026-11.net.diskless".into(),
            isos: files.join("isos"),
            files,
            authority: None,
            serves_images: false,
            retry: Duration::from_secs(5),
        });
        let disks = Arc::new(MachineDisks::new(Arc::clone(&site)));
        let _ = site.disks.set(Arc::downgrade(&disks));
        self.disks = Some(disks);
        self.site = Some(site);
    }

    /// From now on golden images are served over HTTP.
    pub(crate) fn serve_images(&mut self) {
        self.change(|site| site.serves_images = true);
    }

    /// From now on the system's loaders are not there.
    pub(crate) fn only_own_loaders(&mut self) {
        self.change(|site| site.loaders.only_own());
    }

    /// The ARP table of the server's kernel.
    pub(crate) fn neighbours(&self) -> std::path::PathBuf {
        self.directory.path().join("arp")
    }

    /// From now on there is a certificate authority.
    pub(crate) fn authority(&mut self, certificate: &str) {
        self.change(|site| site.authority = Some(certificate.to_owned()));
    }

    fn change(&mut self, change: impl FnOnce(&mut Site)) {
        self.disks = None;
        let mut site = self.site.take().and_then(Arc::into_inner).unwrap();
        change(&mut site);
        self.site = Some(Arc::new(site));
    }

    pub(crate) fn site(&self) -> &Arc<Site> {
        self.site.as_ref().unwrap()
    }

    pub(crate) fn inventory(&self) -> &Inventory {
        &self.site().inventory
    }

    pub(crate) fn disks(&self) -> &Arc<MachineDisks> {
        self.disks.as_ref().unwrap()
    }

    /// Where `/files/` and the user's loaders lie.
    pub(crate) fn files(&self) -> &std::path::Path {
        &self.site().files
    }

    /// The next version of an image, every byte of it `fill`.
    pub(crate) fn image(&self, name: &str, fill: u8) -> Arc<Image> {
        let source = self.directory.path().join("source.raw");
        let bytes = usize::try_from(IMAGE_BYTES).unwrap();
        std::fs::write(&source, vec![fill; bytes]).unwrap();
        self.image_of(name, &source)
    }

    /// The next version of an image, made of a file.
    pub(crate) fn image_of(&self, name: &str, source: &std::path::Path) -> Arc<Image> {
        let request = ImportRequest {
            name: Name::parse(name).unwrap(),
            origin: Origin::File(source.to_owned()),
            comment: String::new(),
        };
        let id = self.inventory().start_import(request).unwrap().id;
        match self.inventory().ended(id).unwrap() {
            Outcome::Image(image) => image,
            other => panic!("{other:?}"),
        }
    }

    /// A machine that boots `image`; its MAC ends in `last`.
    pub(crate) fn machine(&self, name: &str, last: u8, image: &str, mode: OverlayMode) -> Machine {
        let new = NewMachine {
            name: Name::parse(name).unwrap(),
            mac: Mac([0x52, 0x54, 0, 0, 0, last]),
            uuid: None,
            serial: None,
            assignment: Some(assignment(image, mode)),
            address: None,
            loader: None,
        };
        self.inventory().add_machine(new).unwrap()
    }

    pub(crate) fn assign(&self, machine: &Machine, image: &str, mode: OverlayMode) {
        let change = MachineChange {
            assignment: Some(Some(assignment(image, mode))),
            ..MachineChange::default()
        };
        self.inventory().set_machine(machine.id, change).unwrap();
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, &[])
    }

    /// Asks from [`PC_ADDRESS`].
    pub(crate) fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        request = request.extension(http::Peer(SocketAddr::from((PC_ADDRESS, 40_000))));
        request = request.extension(http::Reached(SERVER));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let answer = http::router(Arc::clone(self.site()))
                .oneshot(request)
                .await
                .unwrap();
            let (parts, body) = answer.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            Answer {
                status: parts.status,
                headers: parts.headers,
                text: String::from_utf8_lossy(&body).into_owned(),
            }
        })
    }

    /// Fetches the machine's boot script, which must boot it.
    pub(crate) fn fetch(&self, machine: &Machine) -> Script {
        let url = self.site().doors(SERVER).script_url(machine.mac);
        let text = self.get(url.strip_prefix("http://10.0.0.1").unwrap()).text;
        let word = |before: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(before));
            line.unwrap_or_else(|| panic!("no {before:?} in {text}"))
                .to_owned()
        };
        let sanboot = word("sanboot iscsi:10.0.0.1::3260:0:");
        Script {
            target: sanboot.strip_suffix(" || goto failed").unwrap().to_owned(),
            chap_name: word("set username "),
            secret: word("set password "),
        }
    }

    /// Logs in as CHAP would let it: the name must have a secret.
    pub(crate) fn log_in(&self, script: &Script) -> Result<Attachment, LoginRefusal> {
        let mut login = login(&script.target, None);
        if self
            .disks()
            .chap_secret(&login, &script.chap_name)
            .is_none()
        {
            return Err(LoginRefusal::AuthenticationFailure);
        }
        login.chap_name = Some(script.chap_name.clone());
        self.disks().open(&login)
    }

    /// Fetches a script and logs in with it.
    pub(crate) fn boot(&self, machine: &Machine) -> (Script, Attachment) {
        let script = self.fetch(machine);
        let attachment = self.log_in(&script).unwrap_or_else(|why| panic!("{why:?}"));
        (script, attachment)
    }

    /// What the timeline says of a stage, newest first.
    pub(crate) fn told(&self, machine: &Machine, stage: Stage) -> Vec<String> {
        let events = self.site().timeline.events(machine.mac);
        let told = events.into_iter().rev().filter(|e| e.stage == stage);
        told.map(|event| event.detail).collect()
    }
}

fn assignment(image: &str, mode: OverlayMode) -> Assignment {
    Assignment::Image {
        image: ImageRef::parse(image).unwrap(),
        mode,
    }
}

/// A login of Linux's, as far as the target's name.
pub(crate) fn login(target: &str, chap_name: Option<&str>) -> Login {
    Login {
        initiator: "iqn.2026-11.net.diskless:any.initiator".into(),
        target: Some(target.to_owned()),
        isid: [0, 2, 0x3d, 0, 0, 1],
        peer: SocketAddr::from(([10, 0, 0, 9], 40000)),
        portal: SocketAddr::from(([10, 0, 0, 1], 3260)),
        chap_name: chap_name.map(str::to_owned),
    }
}

/// The disk of an attachment.
pub(crate) fn disk(attachment: &Attachment) -> SharedDisk {
    attachment.target.unit(0).unwrap().disk().clone()
}

/// Fills block `block` of 4 KiB with `fill`.
pub(crate) fn write(attachment: &Attachment, block: u64, fill: u8) {
    disk(attachment).write(block * 4096, &[fill; 4096]).unwrap();
}

/// The first byte of block `block`.
pub(crate) fn read(attachment: &Attachment, block: u64) -> u8 {
    let mut byte = [0; 512];
    disk(attachment).read(block * 4096, &mut byte).unwrap();
    byte[0]
}
