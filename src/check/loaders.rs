//! Loader files that are missing, and the package that brings them.

use super::{Finding, family};

/// One finding for all that is missing; `os_release` is the text of
/// `/etc/os-release` (os-release(5)).
pub(super) fn judge(
    needed: &[&str],
    is_installed: impl Fn(&str) -> bool,
    os_release: &str,
) -> Option<Finding> {
    let missing: Vec<&str> = needed
        .iter()
        .copied()
        .filter(|name| !is_installed(name))
        .collect();
    if missing.is_empty() {
        return None;
    }
    let what = if missing.len() == 1 {
        format!(
            "the loader {} is missing: firmware that wants it cannot boot",
            missing[0]
        )
    } else {
        format!(
            "the loaders {} are missing: firmware that wants them cannot boot",
            missing.join(", ")
        )
    };
    Some(Finding::warning(
        what,
        format!(
            "{}; or put your own into a directory and name it in loaders.directory",
            install(os_release)
        ),
    ))
}

fn install(os_release: &str) -> &'static str {
    match family(os_release) {
        Some("debian" | "ubuntu") => "apt install ipxe",
        Some("fedora" | "rhel" | "centos") => "dnf install ipxe-bootimgs",
        Some("suse" | "opensuse" | "sles") => "zypper install ipxe-bootimgs",
        Some("arch") => "pacman -S ipxe",
        _ => "install iPXE (the package is `ipxe` on Debian, `ipxe-bootimgs` on Fedora)",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [&str; 2] = ["undionly.kpxe", "snponly.efi"];

    #[test]
    fn nothing_missing_is_nothing_to_speak_of() {
        assert_eq!(judge(&BOTH, |_| true, "ID=debian"), None);
    }

    #[test]
    fn only_what_is_missing_is_named() {
        let finding = judge(&BOTH, |name| name == "snponly.efi", "ID=debian").unwrap();
        assert!(
            finding.what.contains("undionly.kpxe") && !finding.what.contains("snponly"),
            "{finding}"
        );
    }

    #[test]
    fn every_family_is_told_its_own_command() {
        for (os_release, command) in [
            (
                "PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\n",
                "apt install ipxe;",
            ),
            (
                "ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n",
                "apt install ipxe;",
            ),
            (
                "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n",
                "dnf install ipxe-bootimgs;",
            ),
            (
                "ID=\"opensuse-tumbleweed\"\nID_LIKE=\"opensuse suse\"\n",
                "zypper install ipxe-bootimgs;",
            ),
            ("ID=arch\n", "pacman -S ipxe;"),
            ("", "`ipxe` on Debian"),
        ] {
            let finding = judge(&BOTH, |_| false, os_release).unwrap();
            assert!(
                finding.what_to_do.contains(command),
                "{os_release}: {finding}"
            );
        }
    }
}
