//! Signed chains: what a firmware with Secure Boot accepts.
//!
//! A chain is a distribution's shim, which Microsoft has signed, and the GRUB
//! that this shim accepts and that brings its own network (`grubnetx64`). That
//! GRUB in turn starts kernels of the same distribution only. Where a shim and
//! an iPXE signed for it are installed, those two are a chain as well, and go
//! first: iPXE asks nothing of what the machine boots.
//!
//! A chain is served under `secure/NAME/`, where the shim finds its next file
//! beside itself. The user's own directory goes before what is installed.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use ::dhcp::{Arch, Firmware};

use self::sbat::Sbat;
use crate::config::DhcpMode;

pub(crate) mod sbat;
#[cfg(test)]
mod tests;

pub(crate) use crate::boot::ladder::SECURE;
/// The chain of a shim and an iPXE.
pub(crate) const IPXE: &str = "ipxe";

/// What a shim asks for beside itself, and so the names both are served under.
const SHIM: &str = "shimx64.efi";
const GRUB: &str = "grubx64.efi";

/// Directories in `secure/` of the user's that are looked at.
const OWN_CHAINS_MAX: usize = 32;

/// The first GRUB that finds its server beside another DHCP server and after
/// HTTP Boot (seen with 2.06: it hangs, or stops at its prompt).
const VERSATILE: GrubVersion = GrubVersion(2, 12);

/// A version of GRUB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GrubVersion(u32, u32);

impl GrubVersion {
    fn parse(text: &str) -> Option<GrubVersion> {
        let (major, rest) = text.split_once('.')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit());
        let minor = &rest[..digits.unwrap_or(rest.len())];
        Some(GrubVersion(major.parse().ok()?, minor.parse().ok()?))
    }
}

impl std::fmt::Display for GrubVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:02}", self.0, self.1)
    }
}

/// A shim and what it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Its name: of a distribution as os-release(5) has it in `ID`, or
    /// [`IPXE`].
    pub(crate) name: String,
    /// The name its shim is served under.
    pub(crate) shim: String,
    /// What the shim starts.
    pub(crate) second: Second,
}

/// What a shim starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Second {
    /// GRUB with its network.
    Grub(GrubVersion),
    /// iPXE.
    Ipxe,
}

/// How a machine asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// PXE over TFTP, and we gave the address.
    Full,
    /// PXE over TFTP beside another DHCP server.
    Proxy,
    /// UEFI HTTP Boot.
    Http,
}

impl Way {
    /// The way of a firmware; `None` for one that no chain is for.
    pub(crate) fn of(firmware: Firmware, mode: DhcpMode) -> Option<Way> {
        match firmware {
            Firmware::UefiHttp(Arch::X64) => Some(Way::Http),
            Firmware::UefiPxe(Arch::X64) if mode == DhcpMode::Full => Some(Way::Full),
            Firmware::UefiPxe(Arch::X64) => Some(Way::Proxy),
            _ => None,
        }
    }
}

impl Chain {
    /// A distribution's chain with this version of GRUB.
    #[cfg(test)]
    pub(crate) fn of_grub(name: &str, major: u32, minor: u32) -> Chain {
        Chain {
            name: name.to_owned(),
            shim: format!("{SECURE}/{name}/{SHIM}"),
            second: Second::Grub(GrubVersion(major, minor)),
        }
    }

    /// Whether a machine that asks in this way gets as far as its kernel.
    pub(crate) fn goes(&self, way: Way) -> bool {
        match self.second {
            Second::Ipxe => true,
            Second::Grub(version) => version >= VERSATILE || way == Way::Full,
        }
    }

    /// Whether it starts the kernels of a distribution, as os-release names it
    /// in `ID` and `ID_LIKE`.
    fn starts(&self, id: &str, like: &[String]) -> bool {
        let is_suse = |name: &str| name.starts_with("opensuse") || name.starts_with("sle");
        // Derivatives that take these two's kernels as they are; others
        // (Rocky is "like" Fedora) sign their own.
        let borrowed = |name: &str| matches!(name, "debian" | "ubuntu");
        self.name == id
            || is_suse(&self.name) && is_suse(id)
            || borrowed(&self.name) && like.contains(&self.name)
    }
}

/// The parts of a chain that are there, for whoever looks for what is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    /// The chain's name.
    pub(crate) name: String,
    /// The shim's file.
    pub(crate) shim: Option<PathBuf>,
    /// The file that the shim starts.
    pub(crate) second: Option<PathBuf>,
}

impl Parts {
    /// The chain, where it is whole; else a sentence that says what is not.
    pub(crate) fn chain(&self) -> Result<Chain, String> {
        let name = &self.name;
        let Some(shim) = &self.shim else {
            return Err(format!("the chain \"{name}\" has no shim"));
        };
        let Some(second) = &self.second else {
            return Err(format!(
                "the chain \"{name}\" has a shim ({}) and nothing for it to start",
                shim.display()
            ));
        };
        let (served, second) = match ipxe_names().find(|(file, _)| shim.ends_with(file)) {
            Some((file, _)) if name == IPXE => (file, Second::Ipxe),
            _ => {
                let sbat =
                    Sbat::read(second).map_err(|error| format!("{}: {error}", second.display()))?;
                let version = sbat.version("grub").and_then(GrubVersion::parse);
                let version = version
                    .ok_or_else(|| format!("{} does not say which GRUB it is", second.display()))?;
                (SHIM, Second::Grub(version))
            }
        };
        Ok(Chain {
            name: name.clone(),
            shim: format!("{SECURE}/{name}/{served}"),
            second,
        })
    }
}

/// Where chains are looked for.
#[derive(Clone, Debug)]
pub(crate) struct Chains {
    own: Option<PathBuf>,
    /// The system's root directory.
    root: PathBuf,
}

/// A place where a distribution installs a chain, and the chain's name, where
/// its shim's SBAT section does not say it.
struct Place {
    name: Option<&'static str>,
    shim: &'static str,
    second: &'static str,
}

const fn place(name: Option<&'static str>, shim: &'static str, second: &'static str) -> Place {
    Place { name, shim, second }
}

/// Debian and Ubuntu, SUSE, Fedora and the other Red Hats.
const PLACES: [Place; 8] = [
    place(
        None,
        "usr/lib/shim/shimx64.efi.signed",
        "usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed",
    ),
    place(
        None,
        "usr/share/efi/x86_64/shim.efi",
        "usr/share/efi/x86_64/grub.efi",
    ),
    place(
        Some("fedora"),
        "boot/efi/EFI/fedora/shimx64.efi",
        "boot/efi/EFI/fedora/grubx64.efi",
    ),
    place(
        Some("rhel"),
        "boot/efi/EFI/redhat/shimx64.efi",
        "boot/efi/EFI/redhat/grubx64.efi",
    ),
    place(
        Some("centos"),
        "boot/efi/EFI/centos/shimx64.efi",
        "boot/efi/EFI/centos/grubx64.efi",
    ),
    place(
        Some("rocky"),
        "boot/efi/EFI/rocky/shimx64.efi",
        "boot/efi/EFI/rocky/grubx64.efi",
    ),
    place(
        Some("almalinux"),
        "boot/efi/EFI/almalinux/shimx64.efi",
        "boot/efi/EFI/almalinux/grubx64.efi",
    ),
    place(
        Some(IPXE),
        "usr/share/ipxe/x86_64-sb/snponly-shim.efi",
        "usr/share/ipxe/x86_64-sb/snponly.efi",
    ),
];

/// A shim built for iPXE takes "-shim" out of its own name to find its next
/// file.
fn ipxe_names() -> impl Iterator<Item = (&'static str, &'static str)> {
    [
        ("snponly-shim.efi", "snponly.efi"),
        ("ipxe-shim.efi", "ipxe.efi"),
    ]
    .into_iter()
}

impl Chains {
    /// Those in the user's directory, and those installed on this system.
    pub(crate) fn new(own: Option<&Path>) -> Chains {
        Chains {
            own: own.map(|own| own.join(SECURE)),
            root: PathBuf::from("/"),
        }
    }

    /// Every chain of which a part is there, that of iPXE first. Looked for
    /// anew each time: a package may be installed while we run.
    pub(crate) fn parts(&self) -> Vec<Parts> {
        let mut found: Vec<Parts> = self.own_parts();
        for installed in PLACES.iter().filter_map(|place| self.installed(place)) {
            match found.iter_mut().find(|parts| parts.name == installed.name) {
                // Part by part: a newer GRUB may be put before the system's.
                Some(parts) => {
                    parts.shim = parts.shim.take().or(installed.shim);
                    parts.second = parts.second.take().or(installed.second);
                }
                None => found.push(installed),
            }
        }
        found.sort_by_key(|parts| parts.name != IPXE);
        found
    }

    /// The chains, with a sentence for one that is not whole.
    pub(crate) fn all(&self) -> Vec<Result<Chain, String>> {
        self.parts().iter().map(Parts::chain).collect()
    }

    /// The chain for a machine: of the distribution that it has installed
    /// (`ID` and `ID_LIKE` of its os-release), or any where nobody knows: its
    /// GRUB then says on the screen what is wrong.
    pub(crate) fn choose(
        &self,
        distribution: Option<(&str, &[String])>,
        way: Way,
    ) -> Result<Chain, String> {
        let mut broken = None;
        let mut unfit = None;
        for parts in self.parts() {
            match parts.chain() {
                Err(words) => broken = broken.or(Some(words)),
                Ok(chain) => {
                    let starts = match distribution {
                        Some((id, like)) => chain.second == Second::Ipxe || chain.starts(id, like),
                        None => true,
                    };
                    if starts && chain.goes(way) {
                        return Ok(chain);
                    }
                    if starts {
                        unfit = unfit.or(Some(chain));
                    }
                }
            }
        }
        let own = "loaders.directory/secure/";
        Err(match (unfit, broken, distribution) {
            (Some(chain), _, _) => {
                let Second::Grub(version) = chain.second else {
                    return Ok(chain);
                };
                format!(
                    "the signed GRUB {version} of {} boots in dhcp.mode = \"full\" over TFTP only: \
                     put one of 2.12 or newer into {own}{}/{GRUB}",
                    chain.name, chain.name
                )
            }
            (None, Some(broken), _) => broken,
            (None, None, Some((id, _))) => format!(
                "no signed chain for {id} is installed: put its {SHIM} and {GRUB} into {own}{id}/"
            ),
            (None, None, None) => format!(
                "no signed chain is installed (Debian: packages shim-signed and \
                 grub-efi-amd64-signed), and none is in {own}"
            ),
        })
    }

    /// Opens a part of a chain by its served name.
    pub(crate) fn open(&self, name: &str) -> io::Result<File> {
        let not_found = || io::Error::from(io::ErrorKind::NotFound);
        let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty()).collect();
        let [SECURE, chain, file] = parts[..] else {
            return Err(not_found());
        };
        let found = self.parts().into_iter().find(|parts| parts.name == chain);
        let found = found.ok_or_else(not_found)?;
        let path = match (&found.shim, &found.second) {
            (Some(shim), _) if is_served_as(shim, file, SHIM, chain) => shim,
            (_, Some(second)) if is_served_as(second, file, GRUB, chain) => second,
            _ => return Err(not_found()),
        };
        File::open(path)
    }

    fn own_parts(&self) -> Vec<Parts> {
        let Some(own) = &self.own else {
            return Vec::new();
        };
        let Ok(entries) = std::fs::read_dir(own) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .take(OWN_CHAINS_MAX)
            .collect();
        names.sort_unstable();
        let parts = names.into_iter().map(|name| {
            let file = |part: &str| Some(own.join(&name).join(part)).filter(|path| path.is_file());
            let (shim, second) = match name.as_str() {
                IPXE => ipxe_names()
                    .map(|(shim, second)| (file(shim), file(second)))
                    .find(|(shim, second)| shim.is_some() && second.is_some())
                    .unwrap_or_default(),
                _ => (file(SHIM), file(GRUB)),
            };
            Parts { name, shim, second }
        });
        parts
            .filter(|parts| parts.shim.is_some() || parts.second.is_some())
            .collect()
    }

    fn installed(&self, place: &Place) -> Option<Parts> {
        let file = |path: &str| Some(self.root.join(path)).filter(|path| path.is_file());
        let (shim, second) = (file(place.shim), file(place.second));
        let name = match place.name {
            Some(name) => name.to_owned(),
            None => {
                let vendor = |path: &Option<PathBuf>, component| {
                    let sbat = Sbat::read(path.as_ref()?).ok()?;
                    sbat.vendors(component).next().map(str::to_owned)
                };
                vendor(&shim, "shim").or_else(|| vendor(&second, "grub"))?
            }
        };
        (shim.is_some() || second.is_some()).then_some(Parts { name, shim, second })
    }
}

/// Whether a part of a chain goes by this name: iPXE's parts by their own, the
/// others by the name their shim asks for.
fn is_served_as(path: &Path, name: &str, usual: &str, chain: &str) -> bool {
    match chain {
        IPXE => path.file_name().is_some_and(|own| own == name),
        _ => name == usual,
    }
}
