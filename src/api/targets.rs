//! `/targets`: files and drives served as disks, apart from any machine.

use std::path::PathBuf;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::disks::require_closed;
use super::error::{Body, Path, Query};
use super::{Api, ApiError, ErrorBody};
use crate::inventory::{
    self, Chap, Name, NewUnit, PlainTarget, Proof, Sharing, Unit, UnitFormat, UnitKind,
};

/// What the running services do with plain targets. Every method may wait for a
/// file system.
pub(crate) trait Targets: Send + Sync + 'static {
    /// Adds a target without units.
    fn add(
        &self,
        name: Name,
        iqn: Option<&str>,
        proof: Option<Proof>,
    ) -> inventory::Result<PlainTarget>;

    /// Forgets a target; with `force` under its sessions.
    fn remove(&self, name: &str, force: bool) -> inventory::Result<()>;

    /// Adds a unit.
    fn add_unit(&self, target: &str, unit: NewUnit) -> inventory::Result<Unit>;

    /// Forgets a unit; with `force` under its target's sessions.
    fn remove_unit(&self, target: &str, lun: u16, force: bool) -> inventory::Result<()>;

    /// Makes a unit's file larger.
    fn resize_unit(&self, target: &str, lun: u16, size_bytes: u64) -> inventory::Result<()>;

    /// Looks at a unit's file again.
    fn rescan_unit(&self, target: &str, lun: u16) -> inventory::Result<()>;

    /// The size of a unit's disk, or why it is not served.
    fn unit_size(&self, target: Uuid, lun: u16) -> Result<u64, String>;

    /// How many sessions a target has.
    fn sessions(&self, target: &PlainTarget) -> usize;
}

/// A target that belongs to no machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Target {
    /// Never changes.
    #[schema(value_type = String, format = "uuid")]
    pub(crate) id: Uuid,
    /// Unique: a to z, 0 to 9 and "-".
    pub(crate) name: String,
    /// Its iSCSI name.
    pub(crate) iqn: String,
    /// Addresses and ports where it is opened.
    pub(crate) portals: Vec<String>,
    /// CHAP name an initiator proves; without it, whoever reaches a portal may
    /// open the target.
    pub(crate) chap: Option<String>,
    /// CHAP name the target itself proves to who asks.
    pub(crate) mutual: Option<String>,
    /// Its disks, by LUN.
    pub(crate) luns: Vec<Lun>,
    /// How many sessions it has.
    pub(crate) sessions: usize,
    /// When it was added.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) created: Timestamp,
}

/// A file or drive behind a LUN.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Lun {
    /// Its number.
    pub(crate) lun: u16,
    /// What initiators recognise the disk by.
    #[schema(value_type = String, format = "uuid")]
    pub(crate) id: Uuid,
    /// The file or block device.
    pub(crate) file: String,
    /// What the file is: `raw`, `vhd`, `vhdx` or `qcow2`.
    pub(crate) format: String,
    /// The own disk whose file it is.
    pub(crate) disk: Option<String>,
    /// What it is shown as.
    pub(crate) kind: Kind,
    /// Whether several initiators may have it at once.
    pub(crate) shared: bool,
    /// Size, where it is served.
    pub(crate) size_bytes: Option<u64>,
    /// Why it is not served.
    pub(crate) trouble: Option<String>,
    /// When it was added.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) created: Timestamp,
}

/// What a file is shown as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[schema(as = LunKind)]
pub(crate) enum Kind {
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
    Cdrom,
}

/// A target to add.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AddTarget {
    /// Unique: a to z, 0 to 9 and "-".
    pub(crate) name: String,
    /// Its iSCSI name; without it, it gets one.
    pub(crate) iqn: Option<String>,
    /// What initiators must prove; without it, whoever reaches a portal may
    /// open the target.
    pub(crate) chap: Option<ChapSecret>,
    /// What the target proves to initiators that ask. Needs `chap`.
    pub(crate) mutual: Option<ChapSecret>,
}

/// A CHAP name and its secret.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ChapSecret {
    /// CHAP_N.
    pub(crate) name: String,
    /// 12 to 255 characters; without it, one is made.
    pub(crate) secret: Option<String>,
}

impl std::fmt::Debug for ChapSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChapSecret({:?}, ..)", self.name)
    }
}

/// A target that was added, with the secrets that were made: they are shown
/// this once.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct AddedTarget {
    /// As it is listed.
    pub(crate) target: Target,
    /// The initiators' secret, where it was made.
    pub(crate) secret: Option<String>,
    /// The target's own secret, where it was made.
    pub(crate) mutual_secret: Option<String>,
}

/// A file or drive to add.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AddLun {
    /// The file or block device, from the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<String>,
    /// In place of a file: an own disk, by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) disk: Option<String>,
    /// Its number; without it, the lowest that is free.
    pub(crate) lun: Option<u16>,
    /// What it is shown as.
    #[serde(default)]
    pub(crate) kind: Kind,
    /// Whether several initiators may have it at once: a cluster, whose members
    /// keep apart by reservations.
    #[serde(default)]
    pub(crate) shared: bool,
    /// Logical blocks, 512 or 4096; without it, what the kind or device has.
    pub(crate) block_bytes: Option<u32>,
    /// Take the file's bytes as they are, even where it looks like a qcow2, VHD
    /// or compressed image.
    #[serde(default)]
    pub(crate) raw: bool,
}

/// A change of a LUN.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SetLun {
    /// Make its file so large: more than it is.
    pub(crate) size_bytes: u64,
}

/// How it is removed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Removal {
    /// Also while sessions have it open, which lose it.
    #[serde(default)]
    force: bool,
}

impl From<UnitKind> for Kind {
    fn from(kind: UnitKind) -> Kind {
        match kind {
            UnitKind::Disk => Kind::Disk,
            UnitKind::Thin => Kind::Thin,
            UnitKind::ReadOnly => Kind::ReadOnly,
            UnitKind::Removable => Kind::Removable,
            UnitKind::Optical => Kind::Cdrom,
        }
    }
}

impl From<Kind> for UnitKind {
    fn from(kind: Kind) -> UnitKind {
        match kind {
            Kind::Disk => UnitKind::Disk,
            Kind::Thin => UnitKind::Thin,
            Kind::ReadOnly => UnitKind::ReadOnly,
            Kind::Removable => UnitKind::Removable,
            Kind::Cdrom => UnitKind::Optical,
        }
    }
}

/// Lists every target, by name.
#[utoipa::path(get, path = "/targets", tag = "targets", operation_id = "list_targets",
    responses((status = 200, description = "every target", body = Vec<Target>)))]
pub(super) async fn list(State(api): State<Api>) -> Result<Json<Vec<Target>>, ApiError> {
    api.work(|api| {
        let targets = api.inventory.targets()?;
        let portals = portals(api);
        Ok(Json(
            targets
                .iter()
                .map(|target| shown(api, target, &portals))
                .collect(),
        ))
    })
    .await
}

/// Adds a target without LUNs.
#[utoipa::path(post, path = "/targets", tag = "targets", operation_id = "add_target",
    request_body = AddTarget,
    responses((status = 201, description = "added", body = AddedTarget),
        (status = 400, description = "not possible", body = ErrorBody),
        (status = 409, description = "the name is taken", body = ErrorBody)))]
pub(super) async fn add(
    State(api): State<Api>,
    Body(add): Body<AddTarget>,
) -> Result<(StatusCode, Json<AddedTarget>), ApiError> {
    api.work(move |api| {
        let name = Name::parse(&add.name)?;
        let (chap, secret) = chap(add.chap)?;
        let (mutual, mutual_secret) = self::chap(add.mutual)?;
        let proof = match chap {
            Some(chap) => Some(Proof::new(chap, mutual)?),
            None if mutual.is_some() => {
                return Err(ApiError::invalid(
                    "the target proves itself only to who proves himself: give a CHAP name and \
                     secret for initiators as well",
                ));
            }
            None => None,
        };
        let target = api.live.targets().add(name, add.iqn.as_deref(), proof)?;
        let added = AddedTarget {
            target: shown(api, &target, &portals(api)),
            secret,
            mutual_secret,
        };
        Ok((StatusCode::CREATED, Json(added)))
    })
    .await
}

/// Shows one target.
#[utoipa::path(get, path = "/targets/{target}", tag = "targets", operation_id = "show_target",
    params(("target" = String, Path, description = "name")),
    responses((status = 200, description = "the target", body = Target),
        (status = 404, description = "there is none", body = ErrorBody)))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<Target>, ApiError> {
    api.work(move |api| answer(api, &name)).await
}

/// Forgets a target; its files stay. One that is in use is refused.
#[utoipa::path(delete, path = "/targets/{target}", tag = "targets",
    operation_id = "remove_target",
    params(("target" = String, Path, description = "name"), Removal),
    responses((status = 204, description = "removed"),
        (status = 404, description = "there is none", body = ErrorBody),
        (status = 409, description = "sessions have it open", body = ErrorBody)))]
pub(super) async fn remove(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(removal): Query<Removal>,
) -> Result<StatusCode, ApiError> {
    api.work(move |api| {
        api.live.targets().remove(&name, removal.force)?;
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

/// Adds a file or drive to a target, also while it has sessions.
#[utoipa::path(post, path = "/targets/{target}/luns", tag = "targets",
    operation_id = "add_lun", request_body = AddLun,
    params(("target" = String, Path, description = "name")),
    responses((status = 201, description = "added", body = Lun),
        (status = 400, description = "not possible", body = ErrorBody),
        (status = 404, description = "there is no such target", body = ErrorBody),
        (status = 409, description = "the number is taken, or the file cannot be served",
            body = ErrorBody)))]
pub(super) async fn add_lun(
    State(api): State<Api>,
    Path(name): Path<String>,
    Body(add): Body<AddLun>,
) -> Result<(StatusCode, Json<Lun>), ApiError> {
    api.work(move |api| {
        let disk = match (&add.disk, &add.file) {
            (Some(disk), None) => {
                let disk = api.inventory.own_disk(disk)?;
                require_closed(api, &disk)?;
                Some(disk.id)
            }
            (None, Some(_)) => None,
            _ => return Err(ApiError::invalid("name a file, or a disk")),
        };
        let file = add.file.unwrap_or_default();
        if disk.is_none() && !file.starts_with('/') {
            return Err(ApiError::invalid(format!(
                "{file:?} does not begin at the root: the server has another working directory",
            )));
        }
        if !matches!(add.block_bytes, None | Some(512 | 4096)) {
            return Err(ApiError::invalid("blocks have 512 or 4096 bytes"));
        }
        let new = NewUnit {
            lun: add.lun,
            file: PathBuf::from(file),
            kind: add.kind.into(),
            sharing: match add.shared {
                true => Sharing::Many,
                false => Sharing::One,
            },
            block_bytes: add.block_bytes,
            format: add.raw.then_some(UnitFormat::Raw),
            disk,
        };
        let unit = api.live.targets().add_unit(&name, new)?;
        let target = api.inventory.target(&name)?;
        Ok((StatusCode::CREATED, Json(shown_lun(api, &target, &unit))))
    })
    .await
}

/// Takes a LUN away; its file stays. One of a target in use is refused.
#[utoipa::path(delete, path = "/targets/{target}/luns/{lun}", tag = "targets",
    operation_id = "remove_lun",
    params(("target" = String, Path, description = "name"), ("lun" = u16, Path), Removal),
    responses((status = 204, description = "removed"),
        (status = 404, description = "there is none", body = ErrorBody),
        (status = 409, description = "sessions have its target open", body = ErrorBody)))]
pub(super) async fn remove_lun(
    State(api): State<Api>,
    Path((name, lun)): Path<(String, u16)>,
    Query(removal): Query<Removal>,
) -> Result<StatusCode, ApiError> {
    api.work(move |api| {
        api.live.targets().remove_unit(&name, lun, removal.force)?;
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

/// Makes a LUN larger, also while it has sessions.
#[utoipa::path(patch, path = "/targets/{target}/luns/{lun}", tag = "targets",
    operation_id = "resize_lun", request_body = SetLun,
    params(("target" = String, Path, description = "name"), ("lun" = u16, Path)),
    responses((status = 200, description = "the LUN as it is now", body = Lun),
        (status = 400, description = "not possible", body = ErrorBody),
        (status = 404, description = "there is none", body = ErrorBody),
        (status = 409, description = "its file does not grow", body = ErrorBody)))]
pub(super) async fn resize_lun(
    State(api): State<Api>,
    Path((name, lun)): Path<(String, u16)>,
    Body(set): Body<SetLun>,
) -> Result<Json<Lun>, ApiError> {
    api.work(move |api| {
        api.live.targets().resize_unit(&name, lun, set.size_bytes)?;
        lun_answer(api, &name, lun)
    })
    .await
}

/// Looks at a LUN's file again: whether it has grown, or can be served now.
#[utoipa::path(post, path = "/targets/{target}/luns/{lun}/rescan", tag = "targets",
    operation_id = "rescan_lun",
    params(("target" = String, Path, description = "name"), ("lun" = u16, Path)),
    responses((status = 200, description = "the LUN as it is now", body = Lun),
        (status = 404, description = "there is none", body = ErrorBody),
        (status = 409, description = "its file cannot be served", body = ErrorBody)))]
pub(super) async fn rescan_lun(
    State(api): State<Api>,
    Path((name, lun)): Path<(String, u16)>,
) -> Result<Json<Lun>, ApiError> {
    api.work(move |api| {
        api.live.targets().rescan_unit(&name, lun)?;
        lun_answer(api, &name, lun)
    })
    .await
}

fn answer(api: &Api, name: &str) -> Result<Json<Target>, ApiError> {
    let target = api.inventory.target(name)?;
    Ok(Json(shown(api, &target, &portals(api))))
}

fn lun_answer(api: &Api, name: &str, lun: u16) -> Result<Json<Lun>, ApiError> {
    let target = api.inventory.target(name)?;
    Ok(Json(shown_lun(api, &target, target.unit(lun)?)))
}

/// A name with its secret, and the secret once more where it was made here.
fn chap(given: Option<ChapSecret>) -> Result<(Option<Chap>, Option<String>), ApiError> {
    Ok(match given {
        None => (None, None),
        Some(ChapSecret {
            name,
            secret: Some(secret),
        }) => (Some(Chap::new(&name, &secret)?), None),
        Some(ChapSecret { name, secret: None }) => {
            let chap = Chap::generate(&name)?;
            let secret = chap.secret.clone();
            (Some(chap), Some(secret))
        }
    })
}

fn portals(api: &Api) -> Vec<String> {
    let doors = api.live.status().doors.into_iter();
    let iscsi = doors.filter(|door| door.service == "iscsi");
    iscsi.map(|door| door.address).collect()
}

fn shown(api: &Api, target: &PlainTarget, portals: &[String]) -> Target {
    let proof = target.proof.as_ref();
    Target {
        id: target.id,
        name: target.name.to_string(),
        iqn: target.iqn.clone(),
        portals: portals.to_vec(),
        chap: proof.map(|proof| proof.chap.name.clone()),
        mutual: proof.and_then(|proof| Some(proof.mutual.as_ref()?.name.clone())),
        luns: target
            .units
            .iter()
            .map(|unit| shown_lun(api, target, unit))
            .collect(),
        sessions: api.live.targets().sessions(target),
        created: target.created,
    }
}

fn shown_lun(api: &Api, target: &PlainTarget, unit: &Unit) -> Lun {
    let size = api.live.targets().unit_size(target.id, unit.lun);
    let disk = unit
        .disk
        .and_then(|disk| api.inventory.own_disk_of(disk).ok());
    let file = match &disk {
        Some(disk) => api.inventory.own_disk_path(disk),
        None => unit.file.clone(),
    };
    Lun {
        lun: unit.lun,
        id: unit.disk.unwrap_or(unit.id),
        file: file.display().to_string(),
        format: unit.format.word().to_owned(),
        disk: disk.map(|disk| disk.name.to_string()),
        kind: unit.kind.into(),
        shared: unit.sharing == Sharing::Many,
        size_bytes: size.as_ref().ok().copied(),
        trouble: size.err(),
        created: unit.created,
    }
}
