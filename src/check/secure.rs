//! Signed chains: which are there, what is missing, and in which modes the
//! GRUB of each gets as far as a kernel.

use super::{Finding, family};
use crate::config::DhcpMode;
use crate::services::chains::{Chain, Second, Way};

/// `chains` are those of which a part is there, with a sentence for one that
/// is not whole; `os_release` is the text of `/etc/os-release` (os-release(5)).
pub(super) fn judge(
    chains: &[Result<Chain, String>],
    mode: DhcpMode,
    os_release: &str,
) -> Vec<Finding> {
    if chains.is_empty() {
        return vec![Finding::note(
            "no signed chain is installed: a machine with Secure Boot switched on refuses the loaders",
            format!(
                "switch Secure Boot off there, or {}",
                install(os_release).unwrap_or(
                    "put a distribution's shimx64.efi and network GRUB (grubx64.efi) into loaders.directory/secure/NAME/"
                )
            ),
        )];
    }
    let findings = chains.iter().map(|chain| match chain {
        Ok(chain) => of_chain(chain, mode),
        Err(words) => Finding::note(
            format!("Secure Boot: {words}"),
            install(os_release).unwrap_or_default(),
        ),
    });
    findings.collect()
}

fn of_chain(chain: &Chain, mode: DhcpMode) -> Finding {
    let name = &chain.name;
    let Second::Grub(version) = chain.second else {
        return Finding::note("Secure Boot: a signed iPXE is there, for every machine", "");
    };
    if chain.goes(Way::Proxy) {
        return Finding::note(
            format!(
                "Secure Boot: shim and GRUB {version} of {name}, in every mode and by HTTP Boot"
            ),
            "",
        );
    }
    let what = format!(
        "Secure Boot: shim and GRUB {version} of {name}, with dhcp.mode = \"full\" and over TFTP only \
         (beside another DHCP server, and after HTTP Boot, it needs 2.12)"
    );
    let newer = format!(
        "put a signed network GRUB of 2.12 or newer into loaders.directory/secure/{name}/grubx64.efi"
    );
    match mode {
        DhcpMode::Full => Finding::note(what, ""),
        _ => Finding::note(what, newer),
    }
}

fn install(os_release: &str) -> Option<&'static str> {
    match family(os_release)? {
        "debian" | "ubuntu" => Some("apt install shim-signed grub-efi-amd64-signed"),
        "fedora" | "rhel" | "centos" => Some("dnf install shim-x64 grub2-efi-x64"),
        "suse" | "opensuse" | "sles" => Some("zypper install shim grub2-x86_64-efi"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "ID=debian\n";

    fn debian(minor: u32) -> Result<Chain, String> {
        Ok(Chain::of_grub("debian", 2, minor))
    }

    fn said(chains: &[Result<Chain, String>], mode: DhcpMode) -> String {
        let findings = judge(chains, mode, DEBIAN);
        assert_eq!(findings.len(), chains.len().max(1));
        findings[0].to_string()
    }

    #[test]
    fn no_chain_is_told_with_the_packages_that_bring_one() {
        let text = said(&[], DhcpMode::Full);
        assert!(
            text.contains("apt install shim-signed grub-efi-amd64-signed"),
            "{text}"
        );
        let other = judge(&[], DhcpMode::Full, "ID=arch\n");
        assert!(other[0].what_to_do.contains("loaders.directory/secure/"));
    }

    #[test]
    fn the_version_of_grub_says_which_modes_it_serves() {
        let text = said(&[debian(12)], DhcpMode::Proxy);
        assert!(
            text.contains("GRUB 2.12 of debian, in every mode"),
            "{text}"
        );
        let text = said(&[debian(6)], DhcpMode::Full);
        assert!(
            text.contains("GRUB 2.06 of debian, with dhcp.mode = \"full\""),
            "{text}"
        );
        assert!(!text.contains("to do"), "{text}");
        let text = said(&[debian(6)], DhcpMode::Proxy);
        assert!(
            text.contains("to do: put a signed network GRUB of 2.12"),
            "{text}"
        );
    }

    #[test]
    fn half_a_chain_is_told_with_what_brings_the_rest() {
        let text = said(
            &[Err("the chain \"debian\" has no shim".into())],
            DhcpMode::Full,
        );
        assert!(text.contains("has no shim"), "{text}");
        assert!(text.contains("shim-signed"), "{text}");
    }
}
