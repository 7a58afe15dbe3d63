//! Claims about which signed chain is found and chosen.

use std::fs;
use std::io::Read as _;

use super::sbat::signed;
use super::*;

const DEBIAN_SHIM: &str = "usr/lib/shim/shimx64.efi.signed";
const DEBIAN_GRUB: &str = "usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed";

/// A system's root and a user's own directory.
struct System {
    directory: tempfile::TempDir,
    chains: Chains,
}

impl System {
    fn new() -> System {
        let directory = tempfile::tempdir().unwrap();
        let chains = Chains {
            own: Some(directory.path().join("own/secure")),
            root: directory.path().join("root"),
        };
        System { directory, chains }
    }

    fn put(&self, path: &str, content: &[u8]) {
        let path = self.directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn install_debian(&self, version: &str) {
        self.put(&format!("root/{DEBIAN_SHIM}"), &shim("debian"));
        self.put(&format!("root/{DEBIAN_GRUB}"), &grub("debian", version));
    }

    fn served(&self, name: &str) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        let mut file = self.chains.open(name).ok()?;
        file.read_to_end(&mut content).unwrap();
        Some(content)
    }
}

fn shim(vendor: &str) -> Vec<u8> {
    signed(&format!(
        "sbat,1,SBAT Version,sbat,1,u\nshim,4,UEFI shim,shim,1,u\nshim.{vendor},1,V,shim,16.1,u\n"
    ))
}

fn grub(vendor: &str, version: &str) -> Vec<u8> {
    signed(&format!(
        "sbat,1,SBAT Version,sbat,1,u\ngrub,5,FSF,grub,{version},u\ngrub.{vendor},5,V,grub2,{version}-9,u\n"
    ))
}

#[test]
fn an_installed_chain_is_served_under_the_names_its_shim_asks_for() {
    let system = System::new();
    system.install_debian("2.12");
    let chain = system.chains.choose(Some(("debian", &[])), Way::Http);
    let chain = chain.unwrap();
    assert_eq!(chain.shim, "secure/debian/shimx64.efi");
    assert_eq!(system.served(&chain.shim), Some(shim("debian")));
    for name in ["secure/debian/grubx64.efi", "secure/debian//grubx64.efi"] {
        assert_eq!(system.served(name), Some(grub("debian", "2.12")), "{name}");
    }
    for name in [
        "secure/debian/revocations_sbat.efi",
        "secure/debian/../shimx64.efi",
        "secure/ubuntu/shimx64.efi",
        "secure/debian",
        "shimx64.efi",
        "",
    ] {
        assert_eq!(system.served(name), None, "{name:?}");
    }
}

#[test]
fn grub_2_06_goes_in_full_mode_over_tftp_only() {
    let system = System::new();
    system.install_debian("2.06");
    assert!(system.chains.choose(None, Way::Full).is_ok());
    for way in [Way::Proxy, Way::Http] {
        let words = system.chains.choose(None, way).unwrap_err();
        assert!(words.contains("GRUB 2.06 of debian"), "{words}");
        assert!(words.contains("secure/debian/grubx64.efi"), "{words}");
    }
}

#[test]
fn a_newer_grub_of_the_users_stands_before_the_installed_one() {
    let system = System::new();
    system.install_debian("2.06");
    system.put("own/secure/debian/grubx64.efi", &grub("debian", "2.14~rc1"));
    let chain = system.chains.choose(None, Way::Proxy).unwrap();
    assert_eq!(chain.second, Second::Grub(GrubVersion(2, 14)));
    assert_eq!(system.served(&chain.shim), Some(shim("debian")));
}

#[test]
fn the_chain_is_the_one_of_the_distribution_that_is_installed_inside() {
    let system = System::new();
    system.install_debian("2.12");
    for name in ["fedora", "ubuntu"] {
        system.put(&format!("own/secure/{name}/shimx64.efi"), &shim(name));
        system.put(
            &format!("own/secure/{name}/grubx64.efi"),
            &grub(name, "2.12"),
        );
    }
    let chosen = |id: &str, like: &[&str]| {
        let like: Vec<String> = like.iter().map(|name| (*name).to_owned()).collect();
        let chain = system.chains.choose(Some((id, &like)), Way::Full);
        chain.map(|chain| chain.name)
    };
    assert_eq!(chosen("debian", &[]).unwrap(), "debian");
    assert_eq!(chosen("fedora", &[]).unwrap(), "fedora");
    assert_eq!(chosen("linuxmint", &["ubuntu"]).unwrap(), "ubuntu");
    // Signs its kernels with keys of its own.
    let words = chosen("rocky", &["rhel", "fedora"]).unwrap_err();
    assert!(words.contains("secure/rocky/"), "{words}");
}

#[test]
fn a_signed_ipxe_goes_first_whatever_the_machine_boots() {
    let system = System::new();
    system.install_debian("2.12");
    system.put("own/secure/ipxe/ipxe-shim.efi", b"shim");
    assert_eq!(
        system.chains.choose(None, Way::Full).unwrap().name,
        "debian",
        "a shim alone is no chain"
    );
    system.put("own/secure/ipxe/ipxe.efi", b"ipxe");
    let chain = system.chains.choose(Some(("windows", &[])), Way::Http);
    assert_eq!(chain.unwrap().shim, "secure/ipxe/ipxe-shim.efi");
    assert_eq!(
        system.served("secure/ipxe/ipxe.efi"),
        Some(b"ipxe".to_vec())
    );
}

#[test]
fn what_is_missing_is_named() {
    let system = System::new();
    let words = |system: &System| system.chains.choose(None, Way::Full).unwrap_err();
    assert!(words(&system).contains("shim-signed"), "{}", words(&system));
    system.put(&format!("root/{DEBIAN_GRUB}"), &grub("debian", "2.12"));
    assert!(words(&system).contains("no shim"), "{}", words(&system));
    system.put(&format!("root/{DEBIAN_SHIM}"), &shim("debian"));
    system.put(&format!("root/{DEBIAN_GRUB}"), b"not a loader");
    assert!(
        words(&system).contains("not an EFI program"),
        "{}",
        words(&system)
    );
}

#[test]
fn only_a_uefi_of_64_bits_has_a_way() {
    let full = DhcpMode::Full;
    let pxe = Firmware::UefiPxe(Arch::X64);
    assert_eq!(Way::of(pxe, full), Some(Way::Full));
    assert_eq!(Way::of(pxe, DhcpMode::Proxy), Some(Way::Proxy));
    let http = Firmware::UefiHttp(Arch::X64);
    assert_eq!(Way::of(http, full), Some(Way::Http));
    for firmware in [Firmware::BiosPxe, Firmware::UefiPxe(Arch::Arm64)] {
        assert_eq!(Way::of(firmware, full), None);
    }
}

#[test]
fn versions_are_compared_as_numbers() {
    let version = |text| GrubVersion::parse(text).unwrap();
    assert!(version("2.06") < VERSATILE && version("2.12") >= VERSATILE);
    assert_eq!(version("2.14~git"), GrubVersion(2, 14));
    assert_eq!(version("2.06").to_string(), "2.06");
    assert_eq!(GrubVersion::parse("two"), None);
}
