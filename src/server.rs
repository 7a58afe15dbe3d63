//! Builds everything from [`Config`], runs it, drains it.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::api::{self, Api, Door};
use crate::boot::script::Ports;
use crate::check::Served;
use crate::config::{Config, DhcpMode};
use crate::inventory::{Inventory, Limits};
use crate::services::dhcp::Addressing;
use crate::services::iscsi::plain::{KeptTargets, PlainTargets};
use crate::services::iscsi::{MachineDisks, Room, SiteTargets};
use crate::services::tftp::LoaderFiles;
use crate::services::{Addresses, Climbs, Loaders, Site, Systems, http};
use crate::timeline::Timeline;

mod encrypted;
mod files;
mod live;
mod upkeep;

use encrypted::{Encrypted, https};
pub(crate) use files::serve_files;
pub(crate) use live::LiveTargets;
use live::{Counted, LiveFacts};
use upkeep::Upkeep;

/// How long commands in hand may take once the program ends.
const DRAIN: Duration = Duration::from_secs(10);
/// How long `full` mode waits for another DHCP server to answer; dnsmasq takes
/// 3 s to see whether an address is free before it offers it.
const LOOK_FOR_SERVERS: Duration = Duration::from_secs(5);
/// How often the open disks are looked after.
const TENDING: Duration = Duration::from_secs(15);

/// Runs until SIGTERM or SIGINT.
pub(crate) async fn serve(config: Config, served: Vec<Served>) -> anyhow::Result<()> {
    let mut stop = Stop::listen()?;
    allow_open_files();
    let running = Running::start(&config, &served).await?;
    running.announce(&config, &served);
    stop.asked().await;
    tracing::info!("ending; machines that run wait until diskless is back");
    running.stop().await;
    tracing::info!("ended");
    Ok(())
}

/// Everything that runs.
struct Running {
    inventory: Arc<Inventory>,
    timeline: Arc<Timeline>,
    disks: Arc<MachineDisks>,
    kept: Arc<KeptTargets>,
    iscsi: Arc<iscsi::Server>,
    http: http::Server,
    tftp: Option<Arc<tftp::Server>>,
    dhcp: Arc<dhcp::Server>,
    api: api::Server,
    doors: Vec<Door>,
    tending: tokio::task::JoinHandle<()>,
    upkeep: Upkeep,
}

impl Running {
    /// Opens the data, then the doors in the order a machine needs them last
    /// to first: whoever is answered by DHCP finds everything else there.
    async fn start(config: &Config, served: &[Served]) -> anyhow::Result<Running> {
        let limits = Limits {
            pending_machines: config.machines.pending_limit,
        };
        // A second `serve` ends here or at the lock on the data.
        let listeners =
            api::Listeners::bind(config.api.socket.as_deref(), config.api.listen).await?;
        let inventory = Arc::new(Inventory::open(&config.data, limits)?);
        let overlays = config.data.join("overlays");
        disk::overlay::sweep(&overlays)
            .with_context(|| format!("looking through {}", overlays.display()))?;
        let timeline = Arc::new(Timeline::open(Arc::clone(&inventory))?);
        let addresses: Vec<Ipv4Addr> = served.iter().map(|one| one.address).collect();
        let encrypted = Encrypted::open(config, &addresses)?;
        let authority = encrypted.authority.clone();
        let site = Arc::new(site(config, &inventory, &timeline, authority)?);

        let room = Room {
            quota_bytes: config.overlays.quota,
            reserve_bytes: config.overlays.reserve,
        };
        let disks = Arc::new(MachineDisks::new(Arc::clone(&site)).with_room(room));
        let _ = site.disks.set(Arc::downgrade(&disks));
        let on_each = |port: u16| -> Vec<SocketAddr> {
            let sockets = addresses.iter().map(|&address| (address, port).into());
            sockets.collect()
        };
        let portals = on_each(config.iscsi.port);
        let plain = Arc::new(PlainTargets::default());
        let kept = KeptTargets::restore(
            Arc::clone(&inventory),
            Arc::clone(&plain),
            &site.target_prefix,
        )?;
        let kept = Arc::new(kept);
        let targets = Arc::new(SiteTargets {
            machines: Arc::clone(&disks),
            plain,
            kept: Arc::clone(&kept),
        });
        let iscsi = iscsi::Server::bind(&portals, targets, iscsi::Limits::default())
            .with_context(|| format!("opening the iSCSI portals {portals:?}"))?;
        let iscsi = Arc::new(iscsi);

        let http_sockets = on_each(config.http.port);
        let http = http::Server::start(&http_sockets, encrypted.doors, Arc::clone(&site))
            .await
            .context("opening the HTTP port")?;

        let tftp = config.tftp.enabled.then(|| {
            let sockets: Vec<SocketAddrV4> = addresses
                .iter()
                .map(|&address| SocketAddrV4::new(address, config.tftp.port))
                .collect();
            let limits = tftp::Limits {
                max_block_bytes: config.tftp.block_bytes,
                ..tftp::Limits::default()
            };
            tftp::Server::start(&sockets, Arc::new(LoaderFiles(Arc::clone(&site))), limits)
                .with_context(|| format!("opening the TFTP ports {sockets:?}"))
        });
        let tftp = tftp.transpose()?.map(Arc::new);

        if config.dhcp.mode == DhcpMode::Full && !config.dhcp.allow_other_servers {
            refuse_beside_others(served).await?;
        }
        let policy =
            Arc::new(Addressing::new(Arc::clone(&site)).with_options(config.dhcp.machines.clone()));
        policy.watch(iscsi.sessions());
        let interfaces = served
            .iter()
            .map(|one| dhcp::InterfaceConfig {
                name: one.interface.clone(),
                address: one.address,
                netmask: one.netmask,
            })
            .collect();
        let dhcp = dhcp::Server::start(
            interfaces,
            dhcp_settings(config, served),
            Arc::clone(&policy) as Arc<dyn dhcp::Policy>,
            inventory.store(),
        )
        .context("opening the DHCP ports")?;
        let dhcp = Arc::new(dhcp);
        let mut doors = doors(config, &iscsi, &http, tftp.as_deref());
        doors.extend(listeners.doors());
        let live = Arc::new(LiveFacts {
            started: Instant::now(),
            dhcp_mode: word(config.dhcp.mode),
            interface: names(served),
            doors: doors.clone(),
            inventory: Arc::clone(&inventory),
            sessions: iscsi.sessions(),
            disks: Arc::clone(&disks),
            kept: LiveTargets(Arc::clone(&kept)),
            policy,
            counted: Counted {
                dhcp: Arc::downgrade(&dhcp),
                tftp: tftp.as_ref().map(Arc::downgrade).unwrap_or_default(),
                iscsi: Arc::downgrade(&iscsi),
            },
        });
        let facts = Api {
            inventory: Arc::clone(&inventory),
            timeline: Arc::clone(&timeline),
            live,
        };
        let api = listeners.serve(facts);

        let tending = tokio::spawn(tend(Arc::clone(&disks)));
        let keep_points = {
            let (disks, by_calendar) = (Arc::clone(&disks), config.overlays.points);
            move |now| disks.keep_points(by_calendar, now)
        };
        let upkeep = Upkeep::start(Arc::clone(&inventory), config, keep_points)?;
        Ok(Running {
            inventory,
            timeline,
            disks,
            kept,
            iscsi,
            http,
            tftp,
            dhcp,
            api,
            doors,
            tending,
            upkeep,
        })
    }

    /// Says where it listens, one line a door.
    fn announce(&self, config: &Config, served: &[Served]) {
        let version = env!("CARGO_PKG_VERSION");
        let places: Vec<String> = served
            .iter()
            .map(|one| format!("{} ({})", one.interface, one.address))
            .collect();
        println!("diskless {version} on {}", places.join(", "));
        let role = match config.dhcp.mode {
            DhcpMode::Observe => {
                "observe: answers nothing, reports who boots from the network \
                 (to answer: dhcp.mode = \"proxy\" or \"full\")"
            }
            DhcpMode::Proxy => "proxy: boot information beside another DHCP server",
            DhcpMode::Full => "full: addresses and boot information",
        };
        println!("  mode   {role}");
        for door in &self.doors {
            println!("  {:<6} {}", door.service, door.address);
        }
        println!("  data   {}", config.data.display());
        println!("ready");
    }

    /// Closes the doors in the order a machine walks them, then the data.
    async fn stop(self) {
        self.tending.abort();
        let _ = self.tending.await;
        self.api.stop().await;
        if let Some(dhcp) = sole(self.dhcp).await {
            dhcp.stop().await;
        }
        if let Some(tftp) = self.tftp
            && let Some(tftp) = sole(tftp).await
        {
            tftp.stop().await;
        }
        self.http.stop().await;
        let iscsi = sole(self.iscsi).await;
        let (disks, kept) = (self.disks, self.kept);
        let (inventory, timeline) = (self.inventory, self.timeline);
        let upkeep = self.upkeep;
        let closed = tokio::task::spawn_blocking(move || {
            upkeep.stop();
            if let Some(iscsi) = iscsi {
                iscsi.shutdown(DRAIN);
            }
            disks.close_all();
            kept.close_all();
            inventory.stop_jobs();
            if let Err(error) = timeline.save() {
                tracing::error!(%error, "saving the timeline");
            }
        });
        if let Err(error) = closed.await {
            tracing::error!(%error, "closing the disks");
        }
    }
}

/// Lets this process open as many files as its user may: every disk is one,
/// and the usual first limit is 1024.
fn allow_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit on open files stays {:?}", limit.current);
    }
}

/// What is shared with an API that has stopped: an answer cut off may hold it
/// for a moment longer. `None`: it holds it still, and dropping must do.
async fn sole<T>(mut shared: Arc<T>) -> Option<T> {
    const TRIES: usize = 100;
    for _ in 0..TRIES {
        match Arc::try_unwrap(shared) {
            Ok(sole) => return Some(sole),
            Err(held) => shared = held,
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    None
}

fn site(
    config: &Config,
    inventory: &Arc<Inventory>,
    timeline: &Arc<Timeline>,
    authority: Option<String>,
) -> anyhow::Result<Site> {
    let (files, isos) = (config.data.join("files"), config.data.join("isos"));
    for tree in [&files, &isos] {
        std::fs::create_dir_all(tree).with_context(|| format!("making {}", tree.display()))?;
    }
    let addresses = Addresses::default();
    for lease in inventory.leases()? {
        addresses.learn(lease.address, lease.mac);
    }
    Ok(Site {
        inventory: Arc::clone(inventory),
        timeline: Arc::clone(timeline),
        loaders: Loaders::new(config.loaders.directory.as_deref()),
        dhcp_mode: config.dhcp.mode,
        disks: OnceLock::new(),
        systems: Systems::default(),
        addresses,
        climbs: Climbs::default(),
        ports: Ports {
            http: config.http.port,
            iscsi: config.iscsi.port,
            https: https(config),
        },
        target_prefix: config.iscsi.target_prefix.clone(),
        files,
        isos,
        authority,
        serves_images: config.http.images,
        retry: config.boot.retry,
    })
}

fn dhcp_settings(config: &Config, served: &[Served]) -> dhcp::Settings {
    let own: Vec<_> = served
        .iter()
        .map(|one| (one.address, one.netmask))
        .collect();
    dhcp::Settings {
        mode: config.dhcp.mode,
        lease_time: config.dhcp.lease,
        subnets: config.dhcp.networks(&own),
    }
}

/// Asks every LAN at once.
async fn refuse_beside_others(served: &[Served]) -> anyhow::Result<()> {
    let looks: Vec<_> = served
        .iter()
        .map(|one| {
            let interface = one.interface.clone();
            tokio::spawn(async move { refuse_beside_another(&interface).await })
        })
        .collect();
    for look in looks {
        look.await??;
    }
    Ok(())
}

/// The interfaces, for people.
fn names(served: &[Served]) -> String {
    let names: Vec<&str> = served.iter().map(|one| one.interface.as_str()).collect();
    names.join(", ")
}

async fn refuse_beside_another(interface: &str) -> anyhow::Result<()> {
    tracing::info!(interface, "looking for another DHCP server");
    let servers = dhcp::look_for_other_servers(interface, LOOK_FOR_SERVERS)
        .await
        .with_context(|| format!("looking for another DHCP server on {interface}"))?;
    if servers.is_empty() {
        return Ok(());
    }
    let servers: Vec<String> = servers.iter().map(Ipv4Addr::to_string).collect();
    bail!(
        "another DHCP server answers on {interface}: {}. Two of them give machines addresses that \
         clash. Set dhcp.mode = \"proxy\" to serve beside it, or switch it off; if both are meant \
         to be there, set dhcp.allow_other_servers = true",
        servers.join(", ")
    )
}

/// Where machines come in.
fn doors(
    config: &Config,
    iscsi: &iscsi::Server,
    http: &http::Server,
    tftp: Option<&tftp::Server>,
) -> Vec<Door> {
    let door = |service: &str, address: String| Door {
        service: service.to_owned(),
        address,
    };
    let mut doors = Vec::new();
    if config.dhcp.mode != DhcpMode::Observe {
        doors.push(door("dhcp", "ports 67 and 4011".to_owned()));
    }
    for address in tftp.map(tftp::Server::local_addresses).unwrap_or_default() {
        doors.push(door("tftp", address.to_string()));
    }
    for address in http.addresses() {
        doors.push(door("http", address.to_string()));
    }
    for address in http.tls_addresses() {
        doors.push(door("https", address.to_string()));
    }
    for portal in iscsi.portals() {
        doors.push(door("iscsi", portal.to_string()));
    }
    doors
}

fn word(mode: DhcpMode) -> &'static str {
    match mode {
        DhcpMode::Observe => "observe",
        DhcpMode::Proxy => "proxy",
        DhcpMode::Full => "full",
    }
}

async fn tend(disks: Arc<MachineDisks>) {
    loop {
        tokio::time::sleep(TENDING).await;
        let disks = Arc::clone(&disks);
        // Closing writes a checkpoint, and waits for it.
        let _ = tokio::task::spawn_blocking(move || disks.tend(Instant::now())).await;
    }
}

/// The signals that end the program in order.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn listen() -> anyhow::Result<Stop> {
        Ok(Stop {
            terminate: signal(SignalKind::terminate()).context("listening for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("listening for SIGINT")?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
