//! The signed chain of a machine, and the Linux in its disk that the chain is
//! chosen by.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError, Weak};

use ::dhcp::Firmware;
use contents::{Distribution, LinuxBoot};
use uuid::Uuid;

use super::Site;
use super::chains::Way;
use crate::boot::{BootPlan, plan};
use crate::inventory::Machine;

/// Machines whose distribution is kept in mind; of further ones the disk is
/// looked at each time.
const SYSTEMS_MAX: usize = 4096;

/// Which distribution each machine's disk was seen to hold, and what it booted
/// then: an offer must not wait for a disk each time.
#[derive(Default)]
pub(crate) struct Systems(Mutex<HashMap<Uuid, (BootPlan, Distribution)>>);

impl Systems {
    fn of(&self, machine: &Machine) -> Option<Distribution> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (booted, distribution) = seen.get(&machine.id)?;
        (*booted == plan(machine)).then(|| distribution.clone())
    }

    fn learn(&self, machine: &Machine, distribution: &Distribution) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < SYSTEMS_MAX || seen.contains_key(&machine.id) {
            seen.insert(machine.id, (plan(machine), distribution.clone()));
        }
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
        let distribution = match self.systems.of(machine) {
            Some(distribution) => Some(distribution),
            None => self.linux_of(machine).ok().map(|linux| linux.distribution),
        };
        let inside = distribution
            .as_ref()
            .filter(|distribution| !distribution.id.is_empty())
            .map(|distribution| (distribution.id.as_str(), &distribution.like[..]));
        let chain = self.loaders.chains().choose(inside, way)?;
        Ok(chain.shim)
    }

    /// The Linux that the next boot of a machine finds in its disk; else a
    /// sentence for its screen. Reads the disk.
    pub(crate) fn linux_of(&self, machine: &Machine) -> Result<LinuxBoot, String> {
        let disks = self.disks.get().and_then(Weak::upgrade);
        let disks = disks.ok_or("this server is only starting, or ending")?;
        let disk = disks.view(machine).map_err(|error| format!("{error:#}"))?;
        let linux = contents::linux_boot(&disk).map_err(|error| error.to_string())?;
        self.systems.learn(machine, &linux.distribution);
        Ok(linux)
    }
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
    fn a_bios_is_never_given_a_shim() {
        let lab = lab();
        install(&lab, "2.12");
        fs::write(lab.files().join("undionly.kpxe"), b"x").unwrap();
        let given = told(&lab, Firmware::BiosPxe);
        assert!(matches!(given, Some(Boot::Tftp { file, .. }) if file == "undionly.kpxe"));
    }
}
