//! Configurations by MAC, for those who chain PXELINUX or GRUB to us
//! (`pxelinux.cfg/01-52-54-00-12-34-56`, `grub/grub.cfg-01-52-54-00-12-34-56`).
//!
//! What is made here loads iPXE, which goes on to the machine's script. Where
//! iPXE is a kernel it takes `autoexec.ipxe` along: the DHCP server of whoever
//! chains would send it back to where it came from.

use ::dhcp::Mac;

use super::{Asker, Document, Site, last_part};

/// iPXE as a kernel, which both load on a BIOS.
const KERNEL: &str = "ipxe.lkrn";
/// iPXE as a PXE program, which PXELINUX loads on a BIOS.
const PROGRAM: &str = "undionly.kpxe";
/// The script for [`KERNEL`].
const SCRIPT: &str = "autoexec.ipxe";

/// PXELINUX's directory of configurations.
const PXELINUX: &str = "pxelinux.cfg/";
/// PXELINUX's last configuration.
const DEFAULT: &str = "default";
/// How GRUB's configurations by MAC and by address begin.
const GRUB: &str = "grub.cfg-";

/// Whether a loader goes on to the next name without this configuration.
pub(super) fn is_tried_only(name: &str) -> bool {
    match name.strip_prefix(PXELINUX) {
        Some(file) => file != DEFAULT,
        None => last_part(name).is_some_and(|last| last.starts_with(GRUB)),
    }
}

pub(super) fn find(site: &Site, asker: &Asker, name: &str) -> Option<Document> {
    let text = match name.strip_prefix(PXELINUX) {
        Some(file) => {
            mac_in(file)?;
            pxelinux(site)?
        }
        None => {
            mac_in(last_part(name)?.strip_prefix(GRUB)?)?;
            grub(site, asker)?
        }
    };
    Some(text.into())
}

/// The MAC behind the type of its hardware (1, Ethernet).
fn mac_in(file: &str) -> Option<Mac> {
    let mac = file.strip_prefix("01-").filter(|mac| mac.contains('-'))?;
    mac.parse().ok()
}

fn pxelinux(site: &Site) -> Option<String> {
    let entry = if site.loaders.is_installed(KERNEL) {
        format!("KERNEL {KERNEL}\n  INITRD {SCRIPT}")
    } else if site.loaders.is_installed(PROGRAM) {
        format!("PXE {PROGRAM}")
    } else {
        return None;
    };
    Some(format!("DEFAULT diskless\nLABEL diskless\n  {entry}\n"))
}

/// On UEFI that GRUB goes on to the last name of its own search: below GRUB 2.06
/// `snponly.efi` finds no network card, and `ipxe.efi` hangs.
fn grub(site: &Site, asker: &Asker) -> Option<String> {
    let door = format!("(tftp,{})", asker.server);
    site.loaders.is_installed(KERNEL).then(|| {
        format!(
            "if [ \"$grub_platform\" = pc ]; then\n  \
             linux16 {door}/{KERNEL}\n  initrd16 {door}/{SCRIPT}\n  boot\n\
             else\n  configfile \"$prefix/grub.cfg\"\nfi\n"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::tests::{Lab, PC_ADDRESS, SERVER};

    const OF_PXELINUX: &str = "pxelinux.cfg/01-52-54-00-00-00-01";
    const OF_GRUB: &str = "grub/grub.cfg-01-52-54-00-00-00-01";

    /// A server whose loaders are these.
    fn lab(loaders: &[&str]) -> Lab {
        let mut lab = Lab::new();
        lab.only_own_loaders();
        for loader in loaders {
            std::fs::write(lab.files().join(loader), b"x").unwrap();
        }
        lab
    }

    fn made(lab: &Lab, name: &str) -> Option<String> {
        let asker = Asker::at(lab.site(), PC_ADDRESS.into(), SERVER);
        match super::super::find(lab.site(), &asker, name)? {
            Document::Bytes(bytes) => Some(String::from_utf8(bytes.to_vec()).unwrap()),
            Document::Readable(_) => panic!("{name} is no text"),
        }
    }

    #[test]
    fn pxelinux_is_sent_on_to_the_ipxe_that_is_installed() {
        let kernel = "DEFAULT diskless\nLABEL diskless\n  KERNEL ipxe.lkrn\n  \
                      INITRD autoexec.ipxe\n";
        let program = "DEFAULT diskless\nLABEL diskless\n  PXE undionly.kpxe\n";
        for (loaders, text) in [
            (&["ipxe.lkrn", "undionly.kpxe"][..], Some(kernel)),
            (&["undionly.kpxe"], Some(program)),
            (&["ipxe.efi"], None),
        ] {
            let lab = lab(loaders);
            assert_eq!(made(&lab, OF_PXELINUX).as_deref(), text, "{loaders:?}");
        }
    }

    #[test]
    fn what_names_no_mac_is_no_configuration_of_ours() {
        let lab = lab(&["ipxe.lkrn", "ipxe.efi"]);
        for (name, is_tried) in [
            ("pxelinux.cfg/default", false),
            ("pxelinux.cfg/C0A80105", true),
            ("pxelinux.cfg/01-52-54-00-00-00", true),
            ("pxelinux.cfg/01-525400000001", true),
            ("pxelinux.cfg/20-52-54-00-00-00-01", true),
            ("grub/grub.cfg-C0A80105", true),
            ("grub/grub.cfg-01-52-54-00-00-00-0g", true),
            ("ipxe.efi", false),
        ] {
            assert_eq!(made(&lab, name), None, "{name}");
            assert_eq!(is_tried_only(name), is_tried, "{name}");
        }
    }

    #[test]
    fn grub_is_sent_on_to_ipxe_on_a_bios_and_else_goes_on() {
        assert_eq!(
            made(&lab(&["ipxe.lkrn"]), OF_GRUB).unwrap(),
            "if [ \"$grub_platform\" = pc ]; then\n  \
             linux16 (tftp,10.0.0.1)/ipxe.lkrn\n  \
             initrd16 (tftp,10.0.0.1)/autoexec.ipxe\n  boot\n\
             else\n  configfile \"$prefix/grub.cfg\"\nfi\n"
        );
        assert_eq!(made(&lab(&["ipxe.efi"]), OF_GRUB), None);
    }

    #[test]
    fn the_users_own_configuration_goes_before() {
        let lab = lab(&["ipxe.efi", "ipxe.lkrn"]);
        for name in [OF_GRUB, OF_PXELINUX] {
            assert!(made(&lab, name).is_some());
            let path = lab.files().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "# mine").unwrap();
            assert_eq!(made(&lab, name), None);
            assert_eq!(lab.get(&format!("/loader/{name}")).text, "# mine");
        }
    }
}
