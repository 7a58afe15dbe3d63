//! Units over disks in memory, served by this process: what no file can be.
//! Such a disk promises atomic writes, and can be as slow as a test needs.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use disk::{Access, Disk, DiskError, Durability, Extent, Geometry, Ram};
use iscsi::{
    Attachment, Authentication, ChapSecrets, Identity, Limits, LogicalUnit, Login, LoginRefusal,
    Target, Targets,
};

const IQN: &str = "iqn.2026-01.lab:memory";

/// Serves a thin disk of `bytes` zeros that writes a MiB in `mib_time`.
pub(crate) fn serve(
    bytes: u64,
    mib_time: Duration,
    portals: &[&str],
) -> (iscsi::Server, Vec<String>) {
    let ram = Ram::new(usize::try_from(bytes).unwrap()).with_block_bytes(512, 512);
    let disk = Memory { ram, mib_time };
    let unit = LogicalUnit::new(Arc::new(disk), Identity::new([9; 16], "MEMORY"));
    let site = Site(Arc::new(Target::of_one(IQN, Arc::new(unit))));
    let portals: Vec<_> = portals
        .iter()
        .map(|portal| portal.parse().unwrap())
        .collect();
    let server = iscsi::Server::bind(&portals, Arc::new(site), Limits::default()).unwrap();
    let url = |portal| format!("iscsi://{portal}/{IQN}/0");
    let urls = server.portals().iter().map(url).collect();
    (server, urls)
}

struct Site(Arc<Target>);

impl Targets for Site {
    fn authentication(&self, _: &Login) -> Authentication {
        Authentication::None
    }
    fn chap_secret(&self, _: &Login, _: &str) -> Option<ChapSecrets> {
        None
    }
    fn open(&self, login: &Login) -> Result<Attachment, LoginRefusal> {
        match login.target.as_deref() {
            Some(IQN) => Ok(Attachment {
                target: self.0.clone(),
                guard: Box::new(()),
            }),
            _ => Err(LoginRefusal::NotFound),
        }
    }
    fn discover(&self, _: &Login) -> Vec<String> {
        vec![IQN.to_owned()]
    }
}

struct Memory {
    ram: Ram,
    mib_time: Duration,
}

impl Memory {
    /// Takes the time that changing `bytes` takes.
    fn work(&self, bytes: u64) {
        if !self.mib_time.is_zero() {
            let mib = u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
            thread::sleep(self.mib_time.saturating_mul(mib));
        }
    }
}

impl Disk for Memory {
    fn geometry(&self) -> Geometry {
        self.ram.geometry()
    }
    fn access(&self) -> Access {
        self.ram.access()
    }
    fn durability(&self) -> Durability {
        Durability::WriteBack // it stands for disks that have these traits
    }
    fn is_thin(&self) -> bool {
        true
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.ram.read(offset, buffer)
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.work(data.len() as u64);
        self.ram.write(offset, data)
    }
    fn flush(&self) -> Result<(), DiskError> {
        self.ram.flush()
    }
    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.work(bytes);
        self.ram.unmap(offset, bytes)
    }
    fn extent(&self, offset: u64, bytes: u64) -> Result<Extent, DiskError> {
        self.ram.extent(offset, bytes)
    }
    fn atomic_write_bytes(&self) -> u64 {
        self.ram.atomic_write_bytes()
    }
}
