//! Which loader each firmware is given.
//!
//! A firmware that is not iPXE gets iPXE; iPXE gets its script. The names are
//! those of the iPXE project's binaries, which distributions keep.

use dhcp::{Arch, Firmware};

/// What the firmware loads next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Loader {
    /// A loader file, over TFTP.
    Tftp(String),
    /// A loader file, over HTTP.
    Http(String),
    /// It is iPXE: it gets the machine's boot script.
    Script,
}

/// The loaders of a firmware, best first: the first one that is installed is
/// served. Empty: we cannot boot it.
///
/// UEFI prefers `snponly.efi`, which drives the network card through the
/// firmware that has just used it; `ipxe.efi` brings drivers of its own.
pub(crate) fn candidates(firmware: Firmware) -> &'static [&'static str] {
    match firmware {
        Firmware::BiosPxe => &["undionly.kpxe", "ipxe.pxe"],
        Firmware::UefiPxe(arch) | Firmware::UefiHttp(arch) => match arch {
            Arch::X64 => &[
                "snponly.efi",
                "ipxe.efi",
                "x86_64-efi/snponly.efi",
                "x86_64-efi/ipxe.efi",
            ],
            Arch::X86 => &[
                "snponly-i386.efi",
                "ipxe-i386.efi",
                "i386-efi/snponly.efi",
                "i386-efi/ipxe.efi",
            ],
            Arch::Arm64 => &[
                "snponly-arm64.efi",
                "ipxe-arm64.efi",
                "arm64-efi/snponly.efi",
                "arm64-efi/ipxe.efi",
            ],
            Arch::Arm32 => &[
                "snponly-arm32.efi",
                "arm32-efi/snponly.efi",
                "arm32-efi/ipxe.efi",
            ],
            Arch::Riscv64 => &["riscv64-efi/snponly.efi", "riscv64-efi/ipxe.efi"],
            Arch::Loongarch64 => &["loong64-efi/snponly.efi", "loong64-efi/ipxe.efi"],
        },
        // It asks for the files it knows, whatever it is told: those of the Pi 3,
        // the Pi 4 and all of them.
        Firmware::RaspberryPi => &["bootcode.bin", "start4.elf", "config.txt"],
        Firmware::Ipxe(_) | Firmware::System | Firmware::Other(_) => &[],
    }
}

/// Every loader `check` looks for: those of the firmware found in PCs.
pub(crate) const PC_LOADERS: [&str; 2] = ["undionly.kpxe", "snponly.efi"];

/// The loader for `firmware`. `chosen` is the machine's own choice, which
/// goes before the ladder; `is_installed` tells which files are there.
///
/// `None`: not ours to boot, or no loader is installed for it.
pub(crate) fn loader(
    firmware: Firmware,
    chosen: Option<&str>,
    is_installed: impl Fn(&str) -> bool,
) -> Option<Loader> {
    if let Firmware::Ipxe(_) = firmware {
        return Some(Loader::Script);
    }
    let ladder = candidates(firmware);
    if ladder.is_empty() {
        return None;
    }
    let file = match chosen {
        Some(file) => file.to_owned(),
        None => ladder.iter().find(|file| is_installed(file))?.to_string(),
    };
    Some(match firmware {
        Firmware::UefiHttp(_) => Loader::Http(file),
        _ => Loader::Tftp(file),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bios_gets_undionly_over_tftp() {
        let loader = loader(Firmware::BiosPxe, None, |_| true);
        assert_eq!(loader, Some(Loader::Tftp("undionly.kpxe".into())));
    }

    #[test]
    fn http_boot_gets_its_loader_over_http() {
        let loader = loader(Firmware::UefiHttp(Arch::X64), None, |_| true);
        assert_eq!(loader, Some(Loader::Http("snponly.efi".into())));
    }

    #[test]
    fn ipxe_gets_its_script_and_never_a_loader() {
        for arch in [None, Some(Arch::X64)] {
            let loader = loader(Firmware::Ipxe(arch), Some("undionly.kpxe"), |_| true);
            assert_eq!(loader, Some(Loader::Script));
        }
    }

    #[test]
    fn the_next_loader_of_the_ladder_stands_in_for_a_missing_one() {
        let loader = loader(Firmware::UefiPxe(Arch::X64), None, |file| {
            file == "ipxe.efi"
        });
        assert_eq!(loader, Some(Loader::Tftp("ipxe.efi".into())));
    }

    #[test]
    fn a_machines_own_choice_goes_before_the_ladder() {
        let loader = loader(Firmware::UefiPxe(Arch::X64), Some("ipxe.efi"), |_| true);
        assert_eq!(loader, Some(Loader::Tftp("ipxe.efi".into())));
    }

    #[test]
    fn every_uefi_has_a_ladder_and_no_loader_is_on_two() {
        let archs = [
            Arch::X64,
            Arch::X86,
            Arch::Arm64,
            Arch::Arm32,
            Arch::Riscv64,
            Arch::Loongarch64,
        ];
        let mut all = candidates(Firmware::BiosPxe).to_vec();
        for arch in archs {
            let ladder = candidates(Firmware::UefiPxe(arch));
            assert!(!ladder.is_empty(), "{arch:?}");
            assert_eq!(ladder, candidates(Firmware::UefiHttp(arch)));
            all.extend(ladder);
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn no_loader_installed_is_none() {
        assert_eq!(loader(Firmware::BiosPxe, None, |_| false), None);
    }

    #[test]
    fn an_operating_system_gets_nothing_to_boot() {
        assert_eq!(loader(Firmware::System, Some("ipxe.efi"), |_| true), None);
        assert_eq!(loader(Firmware::Other(12), None, |_| true), None);
    }
}
