//! Plain targets: files and drives served to whoever may open them, apart from
//! any machine.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use disk::probe::{Format, VhdKind};
use jiff::Timestamp;
use uuid::Uuid;

use super::disk::require_servable;
use super::{Error, Inventory, Name, Result, Survives, now};

/// Plain targets of one site.
const TARGETS_MAX: u32 = 4096;
/// Units of one target: what flat addressing has numbers for (SAM-5 section
/// 4.7.7.3).
const UNITS_MAX: u16 = 1 << 14;
/// Shortest CHAP secret (RFC 7143 section 9.2.1: 96 bits where nothing else
/// protects the wire).
const SECRET_MIN_BYTES: usize = 12;
/// Longest CHAP name and secret: a text value of the login phase.
const CHAP_MAX_BYTES: usize = 255;
/// Random bytes of a generated secret, 96 bits. Written with 64 characters they
/// are 16 letters, the most Windows takes.
const GENERATED_BYTES: usize = 12;

/// A target that belongs to no machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlainTarget {
    /// Never changes.
    pub(crate) id: Uuid,
    /// Unique.
    pub(crate) name: Name,
    /// Its iSCSI name; unique.
    pub(crate) iqn: String,
    /// What an initiator must prove; `None`: nothing.
    pub(crate) proof: Option<Proof>,
    /// When it was added.
    pub(crate) created: Timestamp,
    /// Its units, by LUN.
    pub(crate) units: Vec<Unit>,
}

/// A file or drive behind a LUN of a plain target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    /// Never changes; what the unit is recognised by.
    pub(crate) id: Uuid,
    /// Its number.
    pub(crate) lun: u16,
    /// The file or block device, from the root.
    pub(crate) file: PathBuf,
    /// What it is shown as.
    pub(crate) kind: UnitKind,
    /// How many initiators may have it at once.
    pub(crate) sharing: Sharing,
    /// Logical blocks; `None`: what the kind, or the device, has.
    pub(crate) block_bytes: Option<u32>,
    /// What the file is. Looked at when the unit was added: what initiators
    /// have written since is theirs.
    pub(crate) format: UnitFormat,
    /// The own disk whose file it is.
    pub(crate) disk: Option<Uuid>,
    /// When it was added.
    pub(crate) created: Timestamp,
}

/// What the file of a unit is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum UnitFormat {
    /// The bytes of the disk or disc; or a drive.
    #[default]
    Raw,
    /// VHD of any kind.
    Vhd,
    /// A VHD known to be fixed, whatever is written at its front.
    VhdFixed,
    /// VHDX of any kind.
    Vhdx,
    /// qcow2, which is only read.
    Qcow2,
}

impl UnitFormat {
    /// One word, as saved and as the API spells it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            UnitFormat::Raw => "raw",
            UnitFormat::Vhd => "vhd",
            UnitFormat::VhdFixed => "vhd-fixed",
            UnitFormat::Vhdx => "vhdx",
            UnitFormat::Qcow2 => "qcow2",
        }
    }

    /// The format a word stands for.
    pub(crate) fn of_word(word: &str) -> Option<UnitFormat> {
        [
            UnitFormat::Raw,
            UnitFormat::Vhd,
            UnitFormat::VhdFixed,
            UnitFormat::Vhdx,
            UnitFormat::Qcow2,
        ]
        .into_iter()
        .find(|format| format.word() == word)
    }

    /// What a file that was looked at is served as, if it can be.
    pub(crate) fn of_format(format: Format) -> Option<UnitFormat> {
        match format {
            Format::Raw | Format::Iso9660 => Some(UnitFormat::Raw),
            Format::Vhd(VhdKind::Fixed) => Some(UnitFormat::VhdFixed),
            Format::Vhd(_) => Some(UnitFormat::Vhd),
            Format::Vhdx => Some(UnitFormat::Vhdx),
            Format::Qcow2 => Some(UnitFormat::Qcow2),
            _ => None,
        }
    }

    /// As what the file is opened.
    pub(crate) fn format(self) -> Format {
        match self {
            UnitFormat::Raw => Format::Raw,
            UnitFormat::Vhd => Format::Vhd(VhdKind::Unknown),
            UnitFormat::VhdFixed => Format::Vhd(VhdKind::Fixed),
            UnitFormat::Vhdx => Format::Vhdx,
            UnitFormat::Qcow2 => Format::Qcow2,
        }
    }
}

/// How many initiators may have a unit at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// One: two that do not know of each other destroy a file system.
    #[default]
    One,
    /// Several: a cluster's, which keeps them apart by reservations.
    Many,
}

impl Unit {
    /// Whether a second initiator would do harm.
    pub(crate) fn is_exclusive(&self) -> bool {
        self.kind.is_exclusive(self.sharing)
    }
}

/// A unit an operator adds.
#[derive(Clone, Debug)]
pub(crate) struct NewUnit {
    /// Its number; `None`: the lowest that is free.
    pub(crate) lun: Option<u16>,
    /// See [`Unit`].
    pub(crate) file: PathBuf,
    /// See [`Unit`].
    pub(crate) kind: UnitKind,
    /// See [`Unit`].
    pub(crate) sharing: Sharing,
    /// See [`Unit`].
    pub(crate) block_bytes: Option<u32>,
    /// What the file is to be taken as; `None`: it is looked at.
    pub(crate) format: Option<UnitFormat>,
    /// See [`Unit`].
    pub(crate) disk: Option<Uuid>,
}

impl Inventory {
    /// Every plain target, by name.
    pub(crate) fn targets(&self) -> Result<Vec<PlainTarget>> {
        self.store.read(|facts| facts.targets())
    }

    /// The plain target of a name.
    pub(crate) fn target(&self, name: &str) -> Result<PlainTarget> {
        let found = self.store.read(|facts| facts.target_by_name(name))?;
        found.ok_or_else(|| no_target(name))
    }

    /// Adds a target without units.
    pub(crate) fn add_target(
        &self,
        name: Name,
        iqn: String,
        proof: Option<Proof>,
    ) -> Result<PlainTarget> {
        self.store.write(Survives::Power, |facts| {
            if facts.target_count()? >= TARGETS_MAX {
                return Err(Error::Conflict(format!(
                    "there are {TARGETS_MAX} targets already: remove one first"
                )));
            }
            if facts.target_by_name(&name)?.is_some() {
                return Err(Error::Conflict(format!("there is a target {name} already")));
            }
            if let Some(other) = facts.target_by_iqn(&iqn)? {
                return Err(Error::Conflict(format!(
                    "the target {} is called {iqn} already",
                    other.name
                )));
            }
            let target = PlainTarget {
                id: Uuid::new_v4(),
                name,
                iqn,
                proof,
                created: now(),
                units: Vec::new(),
            };
            facts.put_target(&target)?;
            Ok(target)
        })
    }

    /// Forgets a target and its units; their files stay.
    pub(crate) fn remove_target(&self, id: Uuid) -> Result<()> {
        self.store
            .write(Survives::Power, |facts| facts.remove_target(id))
    }

    /// Adds a unit to a target. That its file can be served, and what it is, is
    /// the caller's to make sure of.
    pub(crate) fn add_unit(&self, target: Uuid, new: NewUnit) -> Result<Unit> {
        self.store.write(Survives::Power, |facts| {
            let Some(owner) = facts.target(target)? else {
                return Err(Error::NotFound("this target has been removed".to_owned()));
            };
            let unit = Unit {
                id: Uuid::new_v4(),
                lun: owner.place(new.lun)?,
                file: new.file,
                kind: new.kind,
                sharing: new.sharing,
                block_bytes: new.block_bytes,
                format: new.format.unwrap_or_default(),
                disk: new.disk,
                created: now(),
            };
            if let Some(disk) = unit.disk {
                require_servable(facts, disk, unit.kind)?;
            }
            facts.put_unit(target, &unit)?;
            Ok(unit)
        })
    }

    /// Forgets a unit; its file stays.
    pub(crate) fn remove_unit(&self, id: Uuid) -> Result<()> {
        self.store
            .write(Survives::Power, |facts| facts.remove_unit(id))
    }

    /// Where a unit's reservations outlive the server:
    /// `DATA/reservations/ID`.
    pub(crate) fn reservations_path(&self, unit: Uuid) -> PathBuf {
        self.data.join("reservations").join(unit.to_string())
    }

    /// Whether a file may be a unit of a plain target: nothing of the data
    /// directory that a machine's disk consists of is written by anybody else,
    /// and no secret is read.
    pub(crate) fn check_unit_file(&self, file: &Path, kind: UnitKind) -> Result<()> {
        let refused = |why: &str| {
            Err(Error::Conflict(format!(
                "{} belongs to diskless itself: {why}",
                file.display()
            )))
        };
        const NEVER: &str =
            "a golden image is never written; serve it read-only, or copy it somewhere else";
        // Whatever it is called: a hard link is the same file.
        let is_image = || {
            let id = |path: &Path| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
            let file = id(file);
            let images = self.images();
            file.is_some() && images.iter().any(|image| id(&image.disk_path()) == file)
        };
        if kind.is_writable() && is_image() {
            return refused(NEVER);
        }
        if let Some(disk) = self.own_disk_at(file)? {
            return Err(Error::Conflict(format!(
                "{} is the disk {name}: serve it by that name (--disk {name})",
                file.display(),
                name = disk.name
            )));
        }
        let Ok(inside) = file.strip_prefix(&self.data) else {
            return Ok(());
        };
        match inside.iter().next().and_then(|part| part.to_str()) {
            Some("files") => Ok(()),
            Some("images") if kind.is_writable() => refused(NEVER),
            Some("images") => Ok(()),
            Some("disks") => refused("it is an own disk: serve it by its name (--disk NAME)"),
            _ => refused("keep the files of your targets outside its data directory"),
        }
    }
}

impl PlainTarget {
    /// The unit of a number.
    pub(crate) fn unit(&self, lun: u16) -> Result<&Unit> {
        let found = self.units.iter().find(|unit| unit.lun == lun);
        found.ok_or_else(|| Error::NotFound(format!("{} has no LUN {lun}", self.name)))
    }

    /// The number a new unit gets.
    fn place(&self, wanted: Option<u16>) -> Result<u16> {
        let is_free = |lun: &u16| self.units.iter().all(|unit| unit.lun != *lun);
        match wanted {
            Some(lun) if lun >= UNITS_MAX => Err(Error::Invalid(format!(
                "LUN {lun} is too high: {} is the last",
                UNITS_MAX - 1
            ))),
            Some(lun) if !is_free(&lun) => Err(Error::Conflict(format!(
                "{} has a LUN {lun} already",
                self.name
            ))),
            Some(lun) => Ok(lun),
            None => (0..UNITS_MAX).find(is_free).ok_or_else(|| {
                Error::Conflict(format!("{} has {UNITS_MAX} LUNs: no more fit", self.name))
            }),
        }
    }
}

fn no_target(name: &str) -> Error {
    Error::NotFound(format!("there is no target {name:?}"))
}

/// What a file is shown as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum UnitKind {
    /// A fixed disk, fully provisioned.
    #[default]
    Disk,
    /// A fixed disk whose initiators give space back.
    Thin,
    /// A fixed disk that nobody writes.
    ReadOnly,
    /// A disk whose medium can be ejected.
    Removable,
    /// A CD or DVD drive with the file as its disc.
    Optical,
}

impl UnitKind {
    /// Whether a second initiator would do harm.
    pub(crate) fn is_exclusive(self, sharing: Sharing) -> bool {
        self.is_writable() && sharing == Sharing::One
    }

    /// One word, as saved and as the API spells it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            UnitKind::Disk => "disk",
            UnitKind::Thin => "thin",
            UnitKind::ReadOnly => "read-only",
            UnitKind::Removable => "removable",
            UnitKind::Optical => "cdrom",
        }
    }

    /// The kind a word stands for.
    pub(crate) fn of_word(word: &str) -> Option<UnitKind> {
        [
            UnitKind::Disk,
            UnitKind::Thin,
            UnitKind::ReadOnly,
            UnitKind::Removable,
            UnitKind::Optical,
        ]
        .into_iter()
        .find(|kind| kind.word() == word)
    }

    /// Whether initiators may write it.
    pub(crate) fn is_writable(self) -> bool {
        match self {
            UnitKind::Disk | UnitKind::Thin | UnitKind::Removable => true,
            UnitKind::ReadOnly | UnitKind::Optical => false,
        }
    }
}

/// What opens a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proof {
    /// What an initiator proves.
    pub(crate) chap: Chap,
    /// What the target proves to an initiator that asks (mutual CHAP).
    pub(crate) mutual: Option<Chap>,
}

impl Proof {
    /// Checks that the two sides prove different things (RFC 7143 section
    /// 9.2.1).
    pub(crate) fn new(chap: Chap, mutual: Option<Chap>) -> Result<Proof> {
        if mutual
            .as_ref()
            .is_some_and(|mutual| mutual.secret == chap.secret)
        {
            return Err(Error::Invalid(
                "the secrets of initiator and target must differ".to_owned(),
            ));
        }
        Ok(Proof { chap, mutual })
    }
}

/// A CHAP name with its secret.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Chap {
    /// CHAP_N.
    pub(crate) name: String,
    /// Known to both ends.
    pub(crate) secret: String,
}

impl Chap {
    /// Checks a name and a secret.
    pub(crate) fn new(name: &str, secret: &str) -> Result<Chap> {
        let fits =
            |text: &str| !text.is_empty() && text.bytes().all(|b| (b' '..=b'~').contains(&b));
        if !fits(name) || name.len() > CHAP_MAX_BYTES || name.contains(':') {
            return Err(Error::Invalid(format!(
                "{name:?} is not a CHAP name: use 1 to {CHAP_MAX_BYTES} letters, digits and signs, \
                 without \":\""
            )));
        }
        if !fits(secret) || !(SECRET_MIN_BYTES..=CHAP_MAX_BYTES).contains(&secret.len()) {
            return Err(Error::Invalid(format!(
                "the CHAP secret of {name:?} must have {SECRET_MIN_BYTES} to {CHAP_MAX_BYTES} \
                 letters, digits and signs (Windows takes 12 to 16)"
            )));
        }
        Ok(Chap {
            name: name.to_owned(),
            secret: secret.to_owned(),
        })
    }

    /// A name with a secret nobody has seen.
    pub(crate) fn generate(name: &str) -> Result<Chap> {
        const LETTERS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut bytes = [0; GENERATED_BYTES];
        getrandom::fill(&mut bytes)
            .map_err(|e| Error::Failed(format!("the kernel gives no random bytes: {e}")))?;
        let letters = bytes.chunks(3).flat_map(|three| {
            let bits = three
                .iter()
                .fold(0u32, |bits, byte| bits << 8 | u32::from(*byte));
            [18, 12, 6, 0].map(|shift| char::from(LETTERS[(bits >> shift & 63) as usize]))
        });
        Chap::new(name, &letters.collect::<String>())
    }

    /// Reads `NAME:SECRET`.
    pub(crate) fn parse(text: &str) -> Result<Chap> {
        let (name, secret) = text
            .split_once(':')
            .ok_or_else(|| Error::Invalid("write CHAP as NAME:SECRET".to_owned()))?;
        Chap::new(name, secret)
    }
}

impl fmt::Debug for Chap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chap({:?}, ..)", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests::Site;

    fn add(site: &Site, name: &str, proof: Option<Proof>) -> PlainTarget {
        let iqn = format!("iqn.2026-01.lab:{name}");
        site.add_target(Name::parse(name).unwrap(), iqn, proof)
            .unwrap()
    }

    fn unit(file: &str, lun: Option<u16>) -> NewUnit {
        NewUnit {
            lun,
            file: file.into(),
            kind: UnitKind::Thin,
            sharing: Sharing::Many,
            block_bytes: Some(4096),
            format: None,
            disk: None,
        }
    }

    #[test]
    fn a_target_and_its_units_survive_a_restart_in_order() {
        let mut site = Site::new();
        let chap = |name, secret| Chap::new(name, secret).unwrap();
        let mutual = chap("us", "a secret of ours");
        let proof = Proof::new(chap("me", "a secret of mine"), Some(mutual)).unwrap();
        let data = add(&site, "data", Some(proof.clone()));
        let first = site.add_unit(data.id, unit("/srv/a.img", None)).unwrap();
        site.add_unit(data.id, unit("/srv/b.img", Some(300)))
            .unwrap();
        let third = site.add_unit(data.id, unit("/srv/c.img", None)).unwrap();
        assert_eq!((first.lun, third.lun), (0, 1));
        add(&site, "backup", None);
        site.restart();
        let targets = site.targets().unwrap();
        let names: Vec<&str> = targets.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["backup", "data"]);
        let luns: Vec<u16> = targets[1].units.iter().map(|unit| unit.lun).collect();
        assert_eq!(luns, [0, 1, 300]);
        assert_eq!(targets[1].units[0], first);
        assert_eq!(targets[1].proof, Some(proof));
    }

    #[test]
    fn names_iscsi_names_and_luns_are_unique() {
        let site = Site::new();
        let data = add(&site, "data", None);
        let name = |name| Name::parse(name).unwrap();
        assert!(
            site.add_target(name("data"), "iqn.2026-01.lab:x".into(), None)
                .is_err()
        );
        assert!(
            site.add_target(name("other"), data.iqn.clone(), None)
                .is_err()
        );
        site.add_unit(data.id, unit("/srv/a", Some(7))).unwrap();
        assert!(site.add_unit(data.id, unit("/srv/b", Some(7))).is_err());
        assert!(
            site.add_unit(data.id, unit("/srv/b", Some(UNITS_MAX)))
                .is_err()
        );
        assert!(
            site.add_unit(data.id, unit("/srv/b", Some(UNITS_MAX - 1)))
                .is_ok()
        );
    }

    #[test]
    fn a_target_goes_with_its_units() {
        let site = Site::new();
        let data = add(&site, "data", None);
        let gone = site.add_unit(data.id, unit("/srv/a", None)).unwrap();
        site.add_unit(data.id, unit("/srv/b", None)).unwrap();
        site.remove_unit(gone.id).unwrap();
        assert_eq!(site.target("data").unwrap().units.len(), 1);
        assert!(site.target("data").unwrap().unit(0).is_err());
        site.remove_target(data.id).unwrap();
        assert!(matches!(site.target("data"), Err(Error::NotFound(_))));
        assert_eq!(add(&site, "data", None).units, []);
    }

    #[test]
    fn what_a_machine_boots_from_is_never_written_through_a_target() {
        let site = Site::new();
        let inside = |path: &str| site.data().join(path);
        let may = |path: &str, kind| site.check_unit_file(&inside(path), kind).is_ok();
        assert!(!may("images/debian/v001/disk.raw", UnitKind::Disk));
        assert!(may("images/debian/v001/disk.raw", UnitKind::ReadOnly));
        assert!(!may("overlays/x/data", UnitKind::ReadOnly));
        assert!(!may("state.db", UnitKind::ReadOnly));
        assert!(may("files/debian.iso", UnitKind::Optical));
        assert!(
            site.check_unit_file(Path::new("/srv/a.img"), UnitKind::Disk)
                .is_ok()
        );
    }

    #[test]
    fn both_sides_prove_different_secrets() {
        let chap = |name| Chap::new(name, "one for both of us").unwrap();
        assert!(Proof::new(chap("me"), Some(chap("us"))).is_err());
        assert!(Proof::new(chap("me"), None).is_ok());
    }

    #[test]
    fn a_generated_secret_has_96_bits_in_16_letters() {
        let secrets: std::collections::BTreeSet<String> = (0..100)
            .map(|_| Chap::generate("me").unwrap().secret)
            .collect();
        assert_eq!(secrets.len(), 100);
        assert!(secrets.iter().all(|secret| secret.len() == 16));
        let letters: std::collections::BTreeSet<char> =
            secrets.iter().flat_map(|secret| secret.chars()).collect();
        assert_eq!(letters.len(), 64);
    }

    #[test]
    fn a_chap_secret_has_12_bytes_at_least_and_is_not_shown() {
        let chap = Chap::parse("pc:twelve bytes:").unwrap();
        assert_eq!((&*chap.name, &*chap.secret), ("pc", "twelve bytes:"));
        assert!(!format!("{chap:?}").contains("twelve"));
        for wrong in [
            "pc",
            "pc:",
            ":twelve bytes",
            "pc:eleven byte",
            "p\nc:twelve bytes",
        ] {
            let refusal = Chap::parse(wrong).unwrap_err().to_string();
            assert!(!refusal.contains("eleven"), "{refusal}");
        }
    }
}
