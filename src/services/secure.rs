//! The signed chain of a machine, and the Linux in its disk that the chain is
//! chosen by.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use ::dhcp::Firmware;
use contents::{Distribution, LinuxBoot};
use uuid::Uuid;

use super::Site;
use super::chains::Way;
use super::iscsi::MachineDisks;
use crate::boot::{BootPlan, plan};
use crate::inventory::Machine;

/// Machines whose distribution is kept in mind; of further ones the disk is
/// looked at each time.
const SYSTEMS_MAX: usize = 4096;

/// How long an offer waits for a look into a disk, which all DHCP waits with.
const LOOK_WAIT: Duration = Duration::from_secs(1);
/// A look that has come to nothing after this long is begun again.
const LOOK_LASTS: Duration = Duration::from_secs(300);
/// A disk that could not be read is not looked at again for so long.
const UNREADABLE_LASTS: Duration = Duration::from_secs(30);

/// Which distribution each machine's disk was seen to hold, and what it booted
/// then: an offer must not wait for a disk each time, and never for long.
#[derive(Clone, Default)]
pub(crate) struct Systems(Arc<Mutex<HashMap<Uuid, (BootPlan, Seen)>>>);

/// What was seen in a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    /// It is being looked at, since then.
    Looking(Instant),
    Is(Distribution),
    /// It could not be read then.
    Unreadable(Instant),
}

impl Systems {
    /// What is known of a machine's disk; where nothing is, a look is begun.
    fn begin(&self, machine: &Machine, now: Instant) -> Option<Seen> {
        let booted = plan(machine);
        let mut all = self.all();
        let seen = all.get(&machine.id).filter(|(plan, _)| *plan == booted);
        let lasts = |since: Instant, time| now.saturating_duration_since(since) < time;
        let known = seen
            .map(|(_, seen)| seen.clone())
            .filter(|seen| match seen {
                Seen::Looking(since) => lasts(*since, LOOK_LASTS),
                Seen::Is(_) => true,
                Seen::Unreadable(at) => lasts(*at, UNREADABLE_LASTS),
            });
        if known.is_none() {
            Self::put(&mut all, machine, Seen::Looking(now));
        }
        known
    }

    fn learn(&self, machine: &Machine, seen: Seen) {
        Self::put(&mut self.all(), machine, seen);
    }

    fn put(all: &mut HashMap<Uuid, (BootPlan, Seen)>, machine: &Machine, seen: Seen) {
        if all.len() < SYSTEMS_MAX || all.contains_key(&machine.id) {
            all.insert(machine.id, (plan(machine), seen));
        }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Uuid, (BootPlan, Seen)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Site {
    /// The served name of the shim that a machine's firmware, with Secure Boot
    /// switched on, accepts; else a sentence that says why there is none.
    ///
    /// Of a machine whose disk cannot be read any chain will do: its GRUB says
    /// on the screen what is wrong.
    pub(crate) fn signed_chain(
        &self,
        machine: &Machine,
        firmware: Firmware,
    ) -> Result<String, String> {
        let way = Way::of(firmware, self.dhcp_mode)
            .ok_or_else(|| format!("no signed chain is made for {firmware}"))?;
        let distribution = self.distribution_of(machine)?;
        let inside = distribution
            .as_ref()
            .filter(|distribution| !distribution.id.is_empty())
            .map(|distribution| (distribution.id.as_str(), &distribution.like[..]));
        let chain = self.loaders.chains().choose(inside, way)?;
        Ok(chain.shim)
    }

    /// The distribution in a machine's disk, `None` where it cannot be read. A
    /// disk that is slow, or in other hands, is looked at on a thread of its
    /// own: the machine is told to come again, and others do not wait.
    fn distribution_of(&self, machine: &Machine) -> Result<Option<Distribution>, String> {
        match self.systems.begin(machine, Instant::now()) {
            Some(Seen::Is(distribution)) => return Ok(Some(distribution)),
            Some(Seen::Unreadable(_)) => return Ok(None),
            Some(Seen::Looking(_)) => return Err(STILL_LOOKING.to_owned()),
            None => {}
        }
        let (done, looked) = mpsc::sync_channel(1);
        let (disks, systems) = (self.disks.get().cloned(), self.systems.clone());
        let looking = {
            let machine = machine.clone();
            move || {
                let found = linux_in(disks.as_ref(), &machine);
                let distribution = found.ok().map(|linux| linux.distribution);
                let seen = match &distribution {
                    Some(distribution) => Seen::Is(distribution.clone()),
                    None => Seen::Unreadable(Instant::now()),
                };
                systems.learn(&machine, seen);
                let _ = done.send(distribution);
            }
        };
        let began = thread::Builder::new()
            .name("look".to_owned())
            .spawn(looking);
        if let Err(error) = began {
            self.systems
                .learn(machine, Seen::Unreadable(Instant::now()));
            return Err(format!("looking into its disk: {error}"));
        }
        let looked = looked.recv_timeout(LOOK_WAIT);
        looked.map_err(|_| STILL_LOOKING.to_owned())
    }

    /// The Linux that the next boot of a machine finds in its disk; else a
    /// sentence for its screen. Reads the disk.
    pub(crate) fn linux_of(&self, machine: &Machine) -> Result<LinuxBoot, String> {
        let linux = linux_in(self.disks.get(), machine)?;
        let seen = Seen::Is(linux.distribution.clone());
        self.systems.learn(machine, seen);
        Ok(linux)
    }
}

/// For the timeline of a machine that is offered nothing yet.
const STILL_LOOKING: &str = "its disk is slow, or in use by a command: which Linux is in it \
                             is still being looked at; it gets its loader when it asks again";

fn linux_in(disks: Option<&Weak<MachineDisks>>, machine: &Machine) -> Result<LinuxBoot, String> {
    let disks = disks.and_then(Weak::upgrade);
    let disks = disks.ok_or("this server is only starting, or ending")?;
    let disk = disks.view(machine).map_err(|error| format!("{error:#}"))?;
    contents::linux_boot(&disk).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ::dhcp::{Arch, Boot, Client, Mac, Policy};

    use super::*;
    use crate::inventory::{MachineChange, OverlayMode};
    use crate::services::chains::sbat::signed;
    use crate::services::dhcp::Addressing;
    use crate::services::tests::Lab;
    use crate::timeline::Stage;

    /// What a machine whose loader is "secure" is told to load.
    fn told(lab: &Lab, firmware: Firmware) -> Option<Boot> {
        let client = Client {
            mac: Mac([0x52, 0x54, 0, 0, 0, 1]),
            xid: 1,
            uuid: None,
            firmware,
            vendor_class: None,
            host_name: None,
        };
        let policy = Addressing::new(std::sync::Arc::clone(lab.site()));
        policy.boot(&client, [10, 0, 0, 1].into())
    }

    fn lab() -> Lab {
        let lab = Lab::new();
        lab.image("debian", 1);
        let pc = lab.machine("pc1", 1, "debian", OverlayMode::Reset);
        let change = MachineChange {
            loader: Some(Some("secure".into())),
            ..MachineChange::default()
        };
        lab.inventory().set_machine(pc.id, change).unwrap();
        lab
    }

    fn install(lab: &Lab, version: &str) {
        let directory = lab.files().join("secure/debian");
        fs::create_dir_all(&directory).unwrap();
        let shim = signed("shim,4,UEFI shim,shim,1,u\n");
        fs::write(directory.join("shimx64.efi"), shim).unwrap();
        let grub = signed(&format!("grub,5,FSF,grub,{version},u\n"));
        fs::write(directory.join("grubx64.efi"), grub).unwrap();
    }

    #[test]
    fn a_machine_with_secure_boot_gets_the_shim_by_either_door() {
        let lab = lab();
        install(&lab, "2.12");
        let shim = "secure/debian/shimx64.efi".to_owned();
        let pxe = told(&lab, Firmware::UefiPxe(Arch::X64));
        assert!(
            matches!(pxe, Some(Boot::Tftp { file, .. }) if file == shim),
            "another loader than the shim"
        );
        assert_eq!(
            told(&lab, Firmware::UefiHttp(Arch::X64)),
            Some(Boot::Url(format!("http://10.0.0.1/loader/{shim}")))
        );
    }

    #[test]
    fn a_machine_whose_chain_cannot_serve_it_is_told_so_in_its_timeline() {
        let lab = lab();
        install(&lab, "2.06");
        assert_eq!(told(&lab, Firmware::UefiHttp(Arch::X64)), None);
        let pc = lab.inventory().machines().unwrap().remove(0);
        let words = &lab.told(&pc, Stage::Problem)[0];
        assert!(words.contains("GRUB 2.06 of debian"), "{words}");
    }

    #[test]
    fn a_disk_that_is_in_other_hands_holds_up_nobody() {
        let mut lab = lab();
        install(&lab, "2.12");
        lab.image("debian", 2);
        let pc = lab.machine("pc2", 2, "debian", OverlayMode::Keep);
        drop(lab.boot(&pc));
        lab.restart();
        let fact = lab.inventory().overlay_of(pc.id, "debian");
        let fact = fact.unwrap().unwrap();
        let firmware = Firmware::UefiPxe(Arch::X64);
        let began = Instant::now();
        lab.disks().with_overlay(&fact, &mut |_| {
            for _ in 0..5 {
                let told = lab.site().signed_chain(&pc, firmware).unwrap_err();
                assert!(told.contains("when it asks again"), "{told}");
            }
        });
        // A reader waits two seconds for its turn, each time.
        assert!(began.elapsed() < Duration::from_secs(8));
    }

    #[test]
    fn a_disk_that_cannot_be_read_is_looked_at_again_after_a_while() {
        let lab = lab();
        let pc = lab.inventory().machines().unwrap().remove(0);
        assert_eq!(lab.site().distribution_of(&pc), Ok(None));
        let systems = &lab.site().systems;
        let now = Instant::now();
        assert!(matches!(systems.begin(&pc, now), Some(Seen::Unreadable(_))));
        assert_eq!(systems.begin(&pc, now + UNREADABLE_LASTS), None);
        let again = systems.begin(&pc, now + UNREADABLE_LASTS);
        assert!(matches!(again, Some(Seen::Looking(_))), "once only");
    }

    #[test]
    fn a_bios_is_never_given_a_shim() {
        let lab = lab();
        install(&lab, "2.12");
        fs::write(lab.files().join("undionly.kpxe"), b"x").unwrap();
        let given = told(&lab, Firmware::BiosPxe);
        assert!(matches!(given, Some(Boot::Tftp { file, .. }) if file == "undionly.kpxe"));
    }
}
