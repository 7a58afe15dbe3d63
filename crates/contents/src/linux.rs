//! The Linux that a disk boots: which kernel, which initrds, which command
//! line.
//!
//! Asked in this order, as their loaders ask: the configuration of GRUB with
//! what `grubenv` says was chosen; entries by the Boot Loader Specification;
//! and where neither is, the newest kernel that has an initrd.
//!
//! The root file system need not be readable, /boot must: a distribution that
//! puts its root on LVM, XFS or Btrfs often has a /boot of ext4.

use disk::SharedDisk;

use self::distribution::os_release;
use self::entries::{Boot, Found};
use crate::magic::{Content, Format, identify};
use crate::{Error, NodeKind, Partition, Partitions, ReadableFile, Tree};

mod bls;
mod distribution;
mod entries;
mod environment;
mod fstab;
mod grub;
mod version;

pub use distribution::{Distribution, Family};

/// What a disk's Linux boots.
#[derive(Clone, Debug)]
pub struct LinuxBoot {
    /// Which Linux it is.
    pub distribution: Distribution,
    /// What its menu calls the entry.
    pub title: Option<String>,
    /// What named the kernel.
    pub source: Source,
    /// The kernel.
    pub kernel: ReadableFile,
    /// What is handed to it, in order; mostly one.
    pub initrds: Vec<ReadableFile>,
    /// The rest of its command line, without `BOOT_IMAGE=` and `initrd=`.
    pub arguments: String,
    /// The partition it is on, by its number; 0 for a whole disk.
    pub boot_partition: u32,
    /// The partition of its root, where that can be read.
    pub root_partition: Option<u32>,
    /// The signed loaders beside it.
    pub loaders: EspLoaders,
}

/// What named a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A configuration of GRUB, by its path.
    Grub(String),
    /// An entry by the Boot Loader Specification, by its path.
    LoaderEntry(String),
    /// Nothing but its name: it is the newest.
    Newest,
}

/// Loaders in the EFI system partition.
#[derive(Clone, Debug, Default)]
pub struct EspLoaders {
    /// The first link of the signed chain.
    pub shim: Option<ReadableFile>,
    /// The second.
    pub grub: Option<ReadableFile>,
}

/// The largest file of text that is read: a `grub.cfg`, an `fstab`.
const MAX_TEXT_BYTES: u64 = 1 << 20;
/// Vendors' directories in an EFI system partition that are looked into.
const MAX_VENDORS: usize = 64;

/// Finds the Linux that a disk boots; refuses with a sentence that says what is
/// there instead.
pub fn linux_boot(disk: &SharedDisk) -> Result<LinuxBoot, Error> {
    let parts = Parts::look(disk)?;
    let root = parts.root();
    let (boot, boot_part) = parts.boot(root)?;
    let found = match boot.find(parts.esp()) {
        Ok(found) => found,
        Err(error) => return Err(parts.explain(error)),
    };
    let Found {
        entry,
        kernel,
        initrds,
    } = found;
    let distribution = root
        .and_then(|root| root.tree.as_ref())
        .and_then(os_release)
        .or_else(|| parts.vendor(entry.title.as_deref()))
        .unwrap_or_default();
    let arguments = match (entry.arguments, &entry.source, root) {
        // Nobody said one: the least that boots.
        (_, Source::Newest, Some(root)) => root.as_argument(),
        (arguments, ..) => arguments,
    };
    if arguments.is_empty() {
        return Err(Error::Foreign(format!(
            "{} has no command line: neither a boot entry nor a root file system that can be \
             read says one",
            kernel.path()
        )));
    }
    Ok(LinuxBoot {
        loaders: parts.loaders(&distribution),
        distribution,
        title: entry.title,
        source: entry.source,
        kernel,
        initrds,
        arguments,
        boot_partition: boot_part.partition.number,
        root_partition: root.map(|root| root.partition.number),
    })
}

/// A partition, and what is on it.
struct Part {
    partition: Partition,
    content: Content,
    /// Its files, where they can be read.
    tree: Option<Tree>,
    /// Why not, where they should be.
    why_not: Option<Error>,
}

struct Parts {
    list: Vec<Part>,
}

impl Part {
    fn look(disk: &SharedDisk, partition: Partition) -> Result<Part, Error> {
        let volume = partition.volume(disk);
        let content = identify(&volume)?;
        let opened = content.format.is_read().then(|| Tree::open(&volume));
        let (tree, why_not) = match opened {
            Some(Ok(tree)) => (Some(tree), None),
            Some(Err(Error::Disk(error))) => return Err(error.into()),
            Some(Err(error)) => (None, Some(error)),
            None => (None, None),
        };
        Ok(Part {
            partition,
            content,
            tree,
            why_not,
        })
    }

    fn has(&self, path: &str) -> bool {
        let tree = self.tree.as_ref();
        tree.is_some_and(|tree| matches!(tree.kind(path), Ok(Some(_))))
    }

    fn is_root(&self) -> bool {
        let has_release = self.has("/etc/os-release") || self.has("/usr/lib/os-release");
        has_release || self.has("/etc/fstab")
    }

    fn is_boot(&self) -> bool {
        let configured = ["/grub/grub.cfg", "/grub2/grub.cfg", "/loader/entries"];
        configured.iter().any(|path| self.has(path)) || self.has_kernel("/")
    }

    fn has_kernel(&self, directory: &str) -> bool {
        let list = self.tree.as_ref().map(|tree| tree.list(directory));
        let Some(Ok(list)) = list else { return false };
        list.iter()
            .any(|entry| entry.kind != NodeKind::Directory && entries::is_kernel(&entry.name))
    }

    /// The `root=` that finds it.
    fn as_argument(&self) -> String {
        match self.content.uuid.as_str() {
            "" => format!("root=PARTUUID={} ro quiet", self.partition.uuid),
            uuid => format!("root=UUID={uuid} ro quiet"),
        }
    }

    /// What it is, for a sentence.
    fn shown(&self) -> String {
        match self.partition.number {
            0 => "the disk".to_owned(),
            number => format!("partition {number}"),
        }
    }
}

impl Parts {
    fn look(disk: &SharedDisk) -> Result<Parts, Error> {
        let table = Partitions::read(&**disk)?;
        let partitions = table.list.into_iter();
        let list: Result<Vec<Part>, Error> = partitions
            .map(|partition| Part::look(disk, partition))
            .collect();
        Ok(Parts { list: list? })
    }

    fn root(&self) -> Option<&Part> {
        self.list.iter().find(|part| part.is_root())
    }

    fn esp(&self) -> Option<&Tree> {
        let is_esp = |part: &&Part| part.partition.is_esp() || part.has("/EFI");
        let part = self.list.iter().filter(|part| part.tree.is_some());
        part.clone()
            .find(|part| part.partition.is_esp())
            .or_else(|| part.clone().find(is_esp))
            .and_then(|part| part.tree.as_ref())
    }

    /// Where kernels lie: what the root's fstab mounts at /boot, the root's own
    /// directory, or a partition that looks like one.
    fn boot<'a>(&'a self, root: Option<&'a Part>) -> Result<(Boot<'a>, &'a Part), Error> {
        let root_tree = root.and_then(|root| Some((root, root.tree.as_ref()?)));
        if let Some((root, tree)) = root_tree {
            let mounts = fstab::read(tree);
            let mounted = mounts.iter().find(|mount| mount.at == "/boot");
            let part = mounted.and_then(|mount| self.named(&mount.what));
            match part {
                Some(part) => {
                    let Some(boot) = &part.tree else {
                        return Err(part.refuse("/boot"));
                    };
                    return Ok((Boot::partition(boot, Some(tree)), part));
                }
                None if root.has_kernel("/boot") || root.has("/boot/loader/entries") => {
                    return Ok((Boot::directory(tree), root));
                }
                None => {}
            }
        }
        let mut candidates = self.list.iter().filter(|part| part.is_boot());
        if let Some(part) = candidates.next()
            && let Some(tree) = &part.tree
        {
            let root = root_tree.map(|(_, tree)| tree);
            return Ok((Boot::partition(tree, root), part));
        }
        if let Some((root, _)) = root_tree {
            return Err(Error::Foreign(format!(
                "{} holds a Linux, and no kernel in its /boot",
                root.shown()
            )));
        }
        Err(self.refuse())
    }

    /// The partition that a name in an fstab means.
    fn named(&self, name: &fstab::Name) -> Option<&Part> {
        self.list.iter().find(|part| match name {
            fstab::Name::Uuid(uuid) => {
                !uuid.is_empty() && part.content.uuid.eq_ignore_ascii_case(uuid)
            }
            fstab::Name::Label(label) => !label.is_empty() && part.content.label == *label,
            fstab::Name::PartUuid(uuid) => {
                !uuid.is_empty() && part.partition.uuid.eq_ignore_ascii_case(uuid)
            }
            fstab::Name::PartLabel(label) => !label.is_empty() && part.partition.name == *label,
            fstab::Name::Number(number) => part.partition.number == *number,
            fstab::Name::Other => false,
        })
    }

    /// Why there is nothing to boot, by what is there.
    fn refuse(&self) -> Error {
        if let Some(part) = self.list.iter().find(|part| part.why_not.is_some()) {
            return part.refuse("its file system");
        }
        let windows = [Format::Ntfs, Format::BitLocker, Format::ReFs];
        let is_windows = |part: &&Part| windows.contains(&part.content.format);
        if let Some(part) = self.list.iter().find(is_windows) {
            return Error::Foreign(format!(
                "{} holds {}: Windows, perhaps, and no Linux that can be read",
                part.shown(),
                part.content.format.name()
            ));
        }
        // The largest is the one that matters.
        let strange = |part: &&Part| {
            !part.content.format.is_read()
                && !matches!(part.content.format, Format::Unknown | Format::Swap)
        };
        let mut strange: Vec<&Part> = self.list.iter().filter(strange).collect();
        strange.sort_by_key(|part| part.partition.size_bytes);
        match strange.last() {
            Some(part) => part.refuse("/boot"),
            None => Error::Foreign("no partition of the disk holds a Linux".to_owned()),
        }
    }

    /// Adds to what is missing that it may lie where nothing can be read.
    fn explain(&self, error: Error) -> Error {
        let strange = self.list.iter().find(|part| {
            !part.content.format.is_read()
                && !matches!(part.content.format, Format::Unknown | Format::Swap)
        });
        match (error, strange) {
            (Error::Missing { path }, Some(part)) => Error::Foreign(format!(
                "{path} is not there; {} holds {}",
                part.shown(),
                part.content.format.refusal()
            )),
            (error, _) => error,
        }
    }

    /// Which Linux it is, told by its loaders or the title of its entry.
    fn vendor(&self, title: Option<&str>) -> Option<Distribution> {
        let by_title = title.and_then(Distribution::by_title);
        let esp = self.esp()?.list("/EFI");
        let by_esp = || {
            let list = esp.ok()?;
            let names = list.iter().take(MAX_VENDORS);
            names
                .into_iter()
                .find_map(|entry| Distribution::by_esp(&entry.name))
        };
        by_title.or_else(by_esp)
    }

    fn loaders(&self, distribution: &Distribution) -> EspLoaders {
        let Some(esp) = self.esp() else {
            return EspLoaders::default();
        };
        let list = esp.list("/EFI").unwrap_or_default();
        let vendors = list.iter().take(MAX_VENDORS).map(|entry| &entry.name);
        let vendor = vendors
            .clone()
            .find(|name| distribution.is_esp(name))
            .or_else(|| {
                let mut vendors = vendors.filter(|name| !name.eq_ignore_ascii_case("boot"));
                vendors.find(|name| Distribution::by_esp(name).is_some())
            });
        let Some(vendor) = vendor else {
            return EspLoaders::default();
        };
        let first = |names: &[&str]| {
            let mut paths = names.iter().map(|name| format!("/EFI/{vendor}/{name}"));
            paths.find_map(|path| esp.open_file(&path).ok())
        };
        EspLoaders {
            shim: first(&["shimx64.efi", "shim.efi", "shimaa64.efi", "shimia32.efi"]),
            grub: first(&["grubx64.efi", "grub.efi", "grubaa64.efi", "grubia32.efi"]),
        }
    }
}

impl Part {
    /// That what it holds cannot be read.
    fn refuse(&self, what: &str) -> Error {
        match &self.why_not {
            Some(error) => Error::Foreign(format!("{}: {error}", self.shown())),
            None => Error::Foreign(format!(
                "{what} cannot be read: {} holds {}",
                self.shown(),
                self.content.format.refusal()
            )),
        }
    }
}

/// A file of text, of which what is not UTF-8 is replaced; `None` where it is
/// not there or not to be read.
fn text(tree: &Tree, path: &str) -> Option<String> {
    let file = tree.open_file(path).ok()?;
    let bytes = file.read_all(MAX_TEXT_BYTES).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests;
