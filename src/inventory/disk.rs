//! Own disks: disk files that are written in place, under nobody's overlay.
//!
//! One lies in `DATA/disks`, or stays where the operator has it (`in place`).
//! What it is (raw, VHD, VHDX) is put down when it is made or taken in, and the
//! file is not asked again: a machine may write whatever it likes at the front
//! of a raw disk. One machine or one LUN writes it, and nobody at all while it
//! is the parent of another.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use disk::gpt::{Followed, GptError};
use disk::probe::{Format, VhdKind};
use disk::{Access, DiskError, NewDisk, NewFormat, OpenError, Opening, SharedDisk};
use jiff::Timestamp;
use uuid::Uuid;

use super::machine::nearest;
use super::source::named;
use super::store::Facts;
use super::{Assignment, Error, Inventory, Machine, Name, Result, Survives, UnitKind, comment};

pub(super) use files::Disks;
pub(crate) use files::stored_bytes;

mod copying;
mod files;
#[cfg(test)]
mod tests;

/// Own disks of one site.
const DISKS_MAX: u32 = 16_384;
/// The largest disk: what VHDX holds.
const SIZE_MAX_BYTES: u64 = 64 << 40;
/// The smallest: room for partition tables.
const SIZE_MIN_BYTES: u64 = 1 << 20;
/// Sizes are whole numbers of these: of every block there is.
const SIZE_STEP_BYTES: u64 = 4096;
/// Blocks of a new disk; what every firmware boots from.
const LOGICAL_BLOCK_BYTES: u32 = 512;
/// How deep parents may stand on parents.
const PARENTS_MAX: usize = 32;
/// A disk file that is written in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnDisk {
    /// Never changes; what initiators recognise the disk by.
    pub(crate) id: Uuid,
    /// Unique.
    pub(crate) name: Name,
    /// A file name in `DATA/disks`, or the path of a file in place.
    pub(crate) file: PathBuf,
    /// What the file is.
    pub(crate) kind: DiskKind,
    /// The disk below, which nobody writes any more.
    pub(crate) parent: Option<Uuid>,
    /// The operator's words.
    pub(crate) comment: String,
    /// When it was made or taken in.
    pub(crate) created: Timestamp,
}

impl OwnDisk {
    /// Whether it lies where the operator has it, and not in `DATA/disks`.
    pub(crate) fn is_in_place(&self) -> bool {
        self.file.is_absolute()
    }
}

/// What the file of an own disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskKind {
    /// The bytes of the disk; or a block device.
    Raw,
    /// Fixed, dynamic or differencing: the file says.
    Vhd,
    /// A VHD known to be fixed, whatever is written at its front.
    VhdFixed,
    /// The same.
    Vhdx,
}

impl DiskKind {
    /// One word, as saved.
    pub(crate) fn word(self) -> &'static str {
        match self {
            DiskKind::VhdFixed => "vhd-fixed",
            other => other.suffix(),
        }
    }

    /// What its file's name ends in; kinds that can stand on each other share
    /// it.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            DiskKind::Raw => "raw",
            DiskKind::Vhd | DiskKind::VhdFixed => "vhd",
            DiskKind::Vhdx => "vhdx",
        }
    }

    /// The kind a word stands for.
    pub(crate) fn of_word(word: &str) -> Option<DiskKind> {
        let kinds = [
            DiskKind::Raw,
            DiskKind::Vhd,
            DiskKind::VhdFixed,
            DiskKind::Vhdx,
        ];
        kinds.into_iter().find(|kind| kind.word() == word)
    }

    /// The kind of a format that can be written in place.
    pub(crate) fn of_format(format: Format) -> Option<DiskKind> {
        match format {
            Format::Raw => Some(DiskKind::Raw),
            Format::Vhd(VhdKind::Fixed) => Some(DiskKind::VhdFixed),
            Format::Vhd(_) => Some(DiskKind::Vhd),
            Format::Vhdx => Some(DiskKind::Vhdx),
            _ => None,
        }
    }

    /// As what a file of this kind is opened.
    pub(crate) fn format(self) -> Format {
        match self {
            DiskKind::Raw => Format::Raw,
            DiskKind::Vhd => Format::Vhd(VhdKind::Unknown),
            DiskKind::VhdFixed => Format::Vhd(VhdKind::Fixed),
            DiskKind::Vhdx => Format::Vhdx,
        }
    }
}

/// What a new disk file is made as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum DiskFormat {
    /// Bytes as they are, sparse.
    #[default]
    Raw,
    /// Allocated as it is written; above a parent where there is one.
    Vhd,
    /// All space at its place.
    VhdFixed,
    /// Allocated as it is written; above a parent where there is one.
    Vhdx,
    /// All space at its place.
    VhdxFixed,
}

impl DiskFormat {
    /// The kind of its file.
    pub(crate) fn kind(self) -> DiskKind {
        match self {
            DiskFormat::Raw => DiskKind::Raw,
            DiskFormat::Vhd => DiskKind::Vhd,
            DiskFormat::VhdFixed => DiskKind::VhdFixed,
            DiskFormat::Vhdx | DiskFormat::VhdxFixed => DiskKind::Vhdx,
        }
    }

    fn alone(self) -> NewFormat {
        match self {
            DiskFormat::Raw => NewFormat::Raw,
            DiskFormat::Vhd => NewFormat::VhdDynamic,
            DiskFormat::VhdFixed => NewFormat::VhdFixed,
            DiskFormat::Vhdx => NewFormat::VhdxDynamic,
            DiskFormat::VhdxFixed => NewFormat::VhdxFixed,
        }
    }

    fn above(self, parent: PathBuf) -> Result<NewFormat> {
        match self {
            DiskFormat::Vhd => Ok(NewFormat::VhdDifferencing { parent }),
            DiskFormat::Vhdx => Ok(NewFormat::VhdxDifferencing { parent }),
            _ => Err(Error::Invalid(
                "only a VHD stands on a VHD, and a VHDX on a VHDX: leave the format to the parent"
                    .to_owned(),
            )),
        }
    }
}

/// An own disk an operator makes or takes in.
#[derive(Clone, Debug)]
pub(crate) struct NewOwnDisk {
    /// Unique.
    pub(crate) name: Name,
    /// The operator's words.
    pub(crate) comment: String,
}

/// What a machine's boot writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DirectBoot {
    /// The own disk.
    pub(crate) disk: Uuid,
    /// The boot generation.
    pub(crate) generation: u64,
    /// The boot of the host's kernel in which it may have answered writes that
    /// are not flushed; `None`: everything it answered is durable.
    pub(crate) unflushed_in: Option<[u8; 16]>,
}

/// Facts about own disks.
impl Inventory {
    /// Every own disk, by name.
    pub(crate) fn own_disks(&self) -> Result<Vec<OwnDisk>> {
        self.store.read(|facts| facts.disks())
    }

    /// The own disk of a name; for a name nobody has, a sentence.
    pub(crate) fn own_disk(&self, name: &str) -> Result<OwnDisk> {
        if let Some(disk) = self.store.read(|facts| facts.disk_by_name(name))? {
            return Ok(disk);
        }
        let disks = self.own_disks()?;
        let near = nearest(name, disks.iter().map(|disk| disk.name.as_str()));
        Err(Error::NotFound(format!(
            "there is no disk {name:?}{}",
            near.map_or_else(
                || ": `diskless disk list` shows them".to_owned(),
                |near| format!("; did you mean {near}?")
            )
        )))
    }

    /// The own disk of an id.
    pub(crate) fn own_disk_of(&self, id: Uuid) -> Result<OwnDisk> {
        let disk = self.store.read(|facts| facts.disk(id))?;
        disk.ok_or_else(no_disk)
    }

    /// The own disk whose file lies there, whatever the file is called.
    pub(crate) fn own_disk_at(&self, path: &Path) -> Result<Option<OwnDisk>> {
        let mut disks = self.own_disks()?.into_iter();
        Ok(disks.find(|disk| same_file(&self.disks.path(disk), path)))
    }

    /// Where an own disk's file lies.
    pub(crate) fn own_disk_path(&self, disk: &OwnDisk) -> PathBuf {
        self.disks.path(disk)
    }

    /// Who boots from an own disk, serves it, or stands on it, in words.
    pub(crate) fn own_disk_users(&self, disk: Uuid) -> Result<Vec<String>> {
        self.store.read(|facts| users(facts, disk))
    }

    /// Makes a disk that nobody has open larger, and lets its partition table
    /// know. Asked for the size it has, it still looks after the table.
    pub(crate) fn resize_own_disk(&self, disk: &OwnDisk, size_bytes: u64) -> Result<Followed> {
        check_size(size_bytes)?;
        let open = || self.open_own_disk(disk, Access::ReadWrite);
        let before = open()?.geometry().size_bytes;
        if size_bytes < before {
            return Err(Error::Invalid(format!(
                "{} has {before} bytes: it can grow, and not shrink, for what is at its end \
                 would be lost",
                disk.name
            )));
        }
        if size_bytes > before {
            let opening = self.own_disk_opening(disk, Access::ReadWrite)?;
            disk::grow(&self.disks.path(disk), &opening, size_bytes).map_err(uncreated)?;
        }
        disk::gpt::follow_end(&*open()?).map_err(|error| {
            let words = format!("disk {} has {size_bytes} bytes now, but {error}", disk.name);
            match error {
                GptError::Damaged { .. } => Error::Conflict(words),
                GptError::Disk(_) => Error::Failed(words),
            }
        })
    }

    /// Opens an own disk: for one writer, and only while nothing stands on it.
    pub(crate) fn open_own_disk(&self, disk: &OwnDisk, access: Access) -> Result<SharedDisk> {
        if access == Access::ReadWrite
            && let Some(above) = self.store.read(|facts| facts.disks_above(disk.id))?.first()
        {
            return Err(has_child(disk, above));
        }
        let opening = self.own_disk_opening(disk, access)?;
        disk::open(&self.disks.path(disk), &opening).map_err(|error| match error {
            OpenError::Missing { path } => Error::Failed(format!(
                "the file of disk {} is not there: put {} back",
                disk.name,
                path.display()
            )),
            other => match unopened(other) {
                Error::Conflict(words) => self.in_use(disk, words),
                other => other,
            },
        })
    }

    /// What it means that somebody has a disk open; `words` where nobody here
    /// is known to.
    fn in_use(&self, disk: &OwnDisk, words: String) -> Error {
        let users = self.store.read(|facts| writers(facts, disk.id));
        match users.unwrap_or_default().first() {
            Some(user) => Error::Conflict(format!(
                "disk {} is in use by {user}: shut that down or take the disk away there first",
                disk.name
            )),
            None => Error::Conflict(words),
        }
    }

    fn own_disk_opening(&self, disk: &OwnDisk, access: Access) -> Result<Opening> {
        Ok(Opening {
            format: Some(disk.kind.format()),
            access,
            // One that is being taken in is not known yet, and has no parent.
            parent_roots: match disk.parent {
                Some(_) => self.own_disk_parents(disk.id)?,
                None => Vec::new(),
            },
        })
    }

    /// Where the disks below an own disk lie.
    pub(crate) fn own_disk_parents(&self, disk: Uuid) -> Result<Vec<PathBuf>> {
        let mut parent_roots = Vec::new();
        let mut below = self.own_disk_of(disk)?.parent;
        while let Some(id) = below.filter(|_| parent_roots.len() < PARENTS_MAX) {
            let parent = self.own_disk_of(id)?;
            parent_roots.extend(self.disks.path(&parent).parent().map(Path::to_owned));
            below = parent.parent;
        }
        Ok(parent_roots)
    }

    /// How large a disk is; `None` while somebody has it open, where that
    /// hides it.
    pub(crate) fn own_disk_size(&self, disk: &OwnDisk) -> Result<Option<u64>> {
        if disk.kind == DiskKind::Raw {
            return self.disks.length(disk).map(Some);
        }
        match self.open_own_disk(disk, Access::ReadOnly) {
            Ok(opened) => Ok(Some(opened.geometry().size_bytes)),
            Err(Error::Conflict(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes an empty disk; above `parent` it has the parent's size, and what
    /// the parent holds.
    pub(crate) fn create_own_disk(
        &self,
        new: NewOwnDisk,
        format: DiskFormat,
        size_bytes: u64,
    ) -> Result<OwnDisk> {
        check_size(size_bytes)?;
        self.check_new(&new)?;
        let made = NewDisk {
            format: format.alone(),
            size_bytes,
            logical_block_bytes: LOGICAL_BLOCK_BYTES,
        };
        self.make(new, format.kind(), None, &made)
    }

    /// Makes a disk above another, which nobody writes from then on.
    pub(crate) fn create_own_disk_above(
        &self,
        new: NewOwnDisk,
        format: Option<DiskFormat>,
        parent: &OwnDisk,
    ) -> Result<OwnDisk> {
        self.check_new(&new)?;
        let format = format.unwrap_or(match parent.kind {
            DiskKind::Raw | DiskKind::Vhd | DiskKind::VhdFixed => DiskFormat::Vhd,
            DiskKind::Vhdx => DiskFormat::Vhdx,
        });
        if format.kind().suffix() != parent.kind.suffix() {
            return Err(Error::Invalid(format!(
                "{} is a {} file: only a VHD stands on a VHD, and a VHDX on a VHDX; \
                 `diskless disk convert {}` makes one of it",
                parent.name,
                parent.kind.suffix(),
                parent.name
            )));
        }
        let writers = self.store.read(|facts| writers(facts, parent.id))?;
        if let Some(writer) = writers.first() {
            return Err(Error::Conflict(format!(
                "{writer} writes {}: a disk that another stands on is never written again, \
                 so take it away there first",
                parent.name
            )));
        }
        let opened = self.open_own_disk(parent, Access::ReadOnly)?;
        let geometry = opened.geometry();
        drop(opened);
        let made = NewDisk {
            format: format.above(self.disks.path(parent))?,
            size_bytes: geometry.size_bytes,
            logical_block_bytes: geometry.logical_block_bytes,
        };
        self.make(new, format.kind(), Some(parent), &made)
    }

    fn make(
        &self,
        new: NewOwnDisk,
        kind: DiskKind,
        parent: Option<&OwnDisk>,
        made: &NewDisk,
    ) -> Result<OwnDisk> {
        let disk = self.disks.draft(new, kind, parent.map(|parent| parent.id));
        let path = self.disks.unfinished_path(disk.id);
        if let Err(error) = disk::create(&path, made) {
            self.disks.discard(disk.id);
            return Err(unmade(error, &path, &disk.name));
        }
        self.disks.publish(&disk, parent)?;
        Ok(disk)
    }

    /// Takes in a file or block device where it lies. One that lies in
    /// `DATA/disks` already is ours from then on.
    pub(crate) fn register_own_disk(
        &self,
        new: NewOwnDisk,
        path: &Path,
        kind: Option<DiskKind>,
    ) -> Result<OwnDisk> {
        self.check_new(&new)?;
        let shown = path.display();
        if !path.is_absolute() {
            return Err(Error::Invalid(format!(
                "{shown} must begin with \"/\": the server has a working directory of its own"
            )));
        }
        let path = fs::canonicalize(path)
            .map_err(|e| Error::Invalid(format!("cannot open {shown}: {e}")))?;
        let file = match path.strip_prefix(self.disks.root()) {
            Ok(inside) if inside.components().count() == 1 => inside.to_owned(),
            _ => path.clone(),
        };
        if let Some(other) = self.own_disk_at(&path)? {
            return Err(Error::Conflict(format!(
                "{shown} is the disk {} already",
                other.name
            )));
        }
        if file.is_absolute() {
            self.check_unit_file(&path, UnitKind::Disk)?;
        }
        files::require_free(&path)?;
        let kind = match kind {
            Some(kind) => kind,
            None => kind_of(&path)?,
        };
        let disk = OwnDisk {
            file,
            ..self.disks.draft(new, kind, None)
        };
        // It must be one that can be written.
        let opened = self.open_own_disk(&disk, Access::ReadWrite)?;
        if opened.geometry().size_bytes == 0 {
            return Err(Error::Invalid(format!(
                "{shown} is empty: to make it a disk of 10 GiB, truncate -s 10G {shown}"
            )));
        }
        drop(opened);
        self.disks.put_new(&disk, None)?;
        Ok(disk)
    }

    /// Forgets a disk, and removes its file where that lies in `DATA/disks`.
    /// Refused while anybody uses it, by name.
    pub(crate) fn remove_own_disk(&self, id: Uuid) -> Result<()> {
        let disk = self.own_disk_of(id)?;
        self.store.read(|facts| require_unused(facts, &disk))?;
        // Nobody has it open, and nobody opens it from here on.
        let _lock = self.disks.lock(&disk)?;
        self.disks.remove(&disk)
    }

    /// What the current generation of a machine is known to write.
    pub(crate) fn direct_boot(&self, machine: Uuid) -> Result<Option<DirectBoot>> {
        self.store.read(|facts| facts.direct_boot(machine))
    }

    /// Puts down, durably, what a machine's boot writes. That of another
    /// machine which wrote the same disk is void then.
    pub(crate) fn put_direct_boot(&self, machine: Uuid, boot: &DirectBoot) -> Result<()> {
        self.store.write(Survives::Power, |facts| {
            if facts.disk(boot.disk)?.is_none() {
                return Err(no_disk());
            }
            facts.put_direct_boot(machine, boot)
        })
    }

    /// Refuses a disk that cannot be made, before anything of it is there.
    pub(crate) fn check_new(&self, new: &NewOwnDisk) -> Result<()> {
        comment::check(&new.comment)?;
        // Asked again when it is put down; here before anything is written.
        self.store.read(|facts| require_new(facts, &new.name))
    }
}

/// Refuses a name that is taken, and one disk too many.
fn require_new(facts: &Facts<'_>, name: &Name) -> Result<()> {
    if facts.disk_by_name(name)?.is_some() {
        return Err(Error::Conflict(format!("there is a disk {name} already")));
    }
    if facts.disk_count()? >= DISKS_MAX {
        return Err(Error::Conflict(format!(
            "there are {DISKS_MAX} disks already: remove one first"
        )));
    }
    Ok(())
}

/// Who boots a disk or serves it, in words.
fn writers(facts: &Facts<'_>, disk: Uuid) -> Result<Vec<String>> {
    let machine = facts.machine_of_disk(disk)?;
    let machine = machine.map(|machine| format!("machine {}", machine.name));
    let mut writers: Vec<String> = machine.into_iter().collect();
    writers.extend(facts.units_of_disk(disk)?);
    Ok(writers)
}

/// Refuses a LUN over a disk that a machine boots, or whose writing would harm
/// what stands on it.
pub(super) fn require_servable(facts: &Facts<'_>, id: Uuid, kind: UnitKind) -> Result<()> {
    let disk = facts.disk(id)?.ok_or_else(no_disk)?;
    if let Some(machine) = facts.machine_of_disk(id)? {
        return Err(Error::Conflict(format!(
            "disk {} is the disk of machine {}, which alone writes it: \
             `diskless disk clone {} NEW` makes another",
            disk.name, machine.name, disk.name
        )));
    }
    match facts.disks_above(id)?.first() {
        Some(above) if kind.is_writable() => Err(has_child(&disk, above)),
        _ => Ok(()),
    }
}

/// Who uses a disk, in words.
fn users(facts: &Facts<'_>, disk: Uuid) -> Result<Vec<String>> {
    let mut users = writers(facts, disk)?;
    let above = facts.disks_above(disk)?;
    users.extend(above.iter().map(|above| format!("disk {}", above.name)));
    Ok(users)
}

/// Refuses a disk that somebody uses, by name.
fn require_unused(facts: &Facts<'_>, disk: &OwnDisk) -> Result<()> {
    match users(facts, disk.id)?.first() {
        Some(user) => Err(Error::Conflict(format!(
            "disk {} is in use by {user}: take it away there first",
            disk.name
        ))),
        None => Ok(()),
    }
}

/// Refuses a machine whose disk somebody else writes, or stands on.
pub(super) fn require_writer(facts: &Facts<'_>, machine: &Machine) -> Result<()> {
    let Some(Assignment::Disk(id)) = &machine.assignment else {
        return Ok(());
    };
    let disk = facts.disk(*id)?.ok_or_else(no_disk)?;
    if let Some(above) = facts.disks_above(*id)?.first() {
        return Err(has_child(&disk, above));
    }
    if let Some(unit) = facts.units_of_disk(*id)?.first() {
        return Err(Error::Conflict(format!(
            "disk {} is {unit}: remove that first, for one machine or one LUN writes a disk",
            disk.name
        )));
    }
    match facts.machine_of_disk(*id)? {
        Some(other) if other.id != machine.id => Err(Error::Conflict(format!(
            "disk {} is the disk of machine {} already, and one machine writes a disk: \
             `diskless disk clone {} NEW` makes another",
            disk.name, other.name, disk.name
        ))),
        _ => Ok(()),
    }
}

fn has_child(disk: &OwnDisk, above: &OwnDisk) -> Error {
    Error::Conflict(format!(
        "disk {} stands on {}, which is therefore never written again",
        above.name, disk.name
    ))
}

fn no_disk() -> Error {
    Error::NotFound("this disk has been removed".to_owned())
}

/// What a file in place is, as far as it can be written.
fn kind_of(path: &Path) -> Result<DiskKind> {
    let format = disk::probe::probe(path).map_err(|e| Error::Invalid(e.to_string()))?;
    DiskKind::of_format(format).ok_or_else(|| {
        let shown = path.display();
        Error::Invalid(match format {
            Format::Iso9660 => format!(
                "{shown} is the image of a CD or DVD, which nobody writes: serve it with \
                 `diskless target lun add TARGET {shown} --cdrom`"
            ),
            _ => format!(
                "{shown} cannot be written in place: raw, VHD and VHDX files can; \
                 `diskless disk import NAME {shown}` makes a disk of it"
            ),
        })
    })
}

fn check_size(size_bytes: u64) -> Result<()> {
    if !(SIZE_MIN_BYTES..=SIZE_MAX_BYTES).contains(&size_bytes) {
        return Err(Error::Invalid(
            "a disk has 1 MiB to 64 TiB: write the size as in 32G or 1.5T".to_owned(),
        ));
    }
    if !size_bytes.is_multiple_of(SIZE_STEP_BYTES) {
        return Err(Error::Invalid(format!(
            "{size_bytes} bytes are no whole number of blocks of {SIZE_STEP_BYTES}"
        )));
    }
    Ok(())
}

/// Whether two paths lead to one file or one device.
fn same_file(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| {
        let found = fs::metadata(path).ok()?;
        Some(match found.rdev() {
            0 => (found.dev(), found.ino()),
            device => (u64::MAX, device),
        })
    };
    id(one).is_some_and(|one| Some(one) == id(other))
}

/// What a disk file's refusal to be opened means here.
pub(crate) fn unopened(error: OpenError) -> Error {
    let words = error.to_string();
    match error {
        OpenError::InUse { .. } | OpenError::Exists { .. } | OpenError::TooMany { .. } => {
            Error::Conflict(words)
        }
        OpenError::Missing { .. } | OpenError::NoPoint { .. } => Error::NotFound(words),
        OpenError::Malformed { .. }
        | OpenError::Foreign { .. }
        | OpenError::Unsupported { .. }
        | OpenError::OtherBase { .. } => Error::Invalid(words),
        OpenError::Disk(DiskError::Io { source, .. })
            if source.kind() == ErrorKind::ResourceBusy =>
        {
            Error::Conflict(words)
        }
        OpenError::Disk(DiskError::Io { source, .. })
            if source.kind() == ErrorKind::InvalidInput =>
        {
            Error::Invalid(words)
        }
        OpenError::Disk(DiskError::Corrupt(_)) => Error::Invalid(words),
        OpenError::Disk(_) => Error::Failed(words),
    }
}

/// What it means that the disk `name` cannot be made in `path`, a name that
/// nobody knows.
fn unmade(error: OpenError, path: &Path, name: &Name) -> Error {
    let shown = format!("disk {name}");
    uncreated(error).reworded(|words| named(&words, path, &shown))
}

/// What it means that a disk file cannot be made.
fn uncreated(error: OpenError) -> Error {
    match &error {
        OpenError::Disk(DiskError::Io { source, .. })
            if source.kind() == ErrorKind::FileTooLarge =>
        {
            Error::Invalid(
                "the file system of the data directory has no files so large (ext4: 16 TiB): \
                 make it smaller, as a VHDX, or keep the data on XFS"
                    .to_owned(),
            )
        }
        _ => unopened(error),
    }
}
