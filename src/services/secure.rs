//! The signed chain of a machine.

use ::dhcp::Firmware;

use super::Site;
use super::chains::Way;

impl Site {
    /// The served name of the shim that a machine's firmware, with Secure Boot
    /// switched on, accepts; else a sentence that says why there is none.
    pub(crate) fn signed_chain(&self, firmware: Firmware) -> Result<String, String> {
        let way = Way::of(firmware, self.dhcp_mode)
            .ok_or_else(|| format!("no signed chain is made for {firmware}"))?;
        let chain = self.loaders.chains().choose(None, way)?;
        Ok(chain.shim)
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
