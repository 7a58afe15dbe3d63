//! `/machines`: the computers we boot.

use std::net::Ipv4Addr;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use dhcp::Mac;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::error::{Body, Path, Query};
use super::{Api, ApiError, ErrorBody};
use crate::inventory::{
    self, Assignment, ImageRef, MachineChange, MachineState, Name, NewMachine, OverlayMode,
    parse_mac, show_mac,
};
use crate::timeline;

/// A machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub(crate) struct Machine {
    /// Never changes.
    #[schema(value_type = String, format = "uuid")]
    pub(crate) id: Uuid,
    /// Unique: a to z, 0 to 9 and "-".
    pub(crate) name: String,
    /// Unique, as in "52:54:00:12:34:56".
    pub(crate) mac: String,
    /// SMBIOS UUID; may be shared.
    #[schema(value_type = Option<String>, format = "uuid")]
    pub(crate) uuid: Option<Uuid>,
    /// SMBIOS serial number; may be shared.
    pub(crate) serial: Option<String>,
    /// Whether an operator has taken it in.
    pub(crate) state: MachineStateWord,
    /// What it boots: "win11" (the current version) or "win11@3".
    pub(crate) image: Option<String>,
    /// What becomes of its writes at its next boot.
    pub(crate) mode: Option<Mode>,
    /// The own disk it boots in place of an image, and writes.
    pub(crate) disk: Option<String>,
    /// Fixed address.
    #[schema(value_type = Option<String>, format = Ipv4)]
    pub(crate) address: Option<Ipv4Addr>,
    /// Loader file served in place of the one its firmware would get.
    pub(crate) loader: Option<String>,
    /// Boot generation: counts its boots.
    pub(crate) generation: u64,
    /// Whether it has its disk open now.
    pub(crate) running: bool,
    /// When it was added or enrolled.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) created: Timestamp,
    /// When it was last heard of.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) last_seen: Option<Timestamp>,
}

/// Whether an operator has taken a machine in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = MachineState)]
pub(crate) enum MachineStateWord {
    /// It asked by itself and waits to be taken in.
    Pending,
    /// An operator added it, or gave it a name or an image.
    Known,
}

/// What becomes of a machine's writes at its next boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// They are thrown away.
    Reset,
    /// They live on.
    Keep,
}

/// A machine to add.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AddMachine {
    /// a to z, 0 to 9 and "-".
    pub(crate) name: String,
    /// As in "52:54:00:12:34:56".
    pub(crate) mac: String,
    /// "win11" (the current version) or "win11@3".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) image: Option<String>,
    /// "keep" when it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mode: Option<Mode>,
    /// An own disk, in place of an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) disk: Option<String>,
    /// Fixed address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Ipv4)]
    pub(crate) address: Option<Ipv4Addr>,
    /// Loader file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) loader: Option<String>,
    /// SMBIOS UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = "uuid")]
    pub(crate) uuid: Option<Uuid>,
    /// SMBIOS serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) serial: Option<String>,
}

/// What to change about a machine: what is left out stays, `null` takes away.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SetMachine {
    /// Another name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// Another network card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mac: Option<String>,
    /// Another image; `null`: none.
    #[serde(
        default,
        deserialize_with = "said",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<String>)]
    pub(crate) image: Option<Option<String>>,
    /// Another mode; needs an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mode: Option<Mode>,
    /// An own disk, in place of an image; `null`: neither.
    #[serde(
        default,
        deserialize_with = "said",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<String>)]
    pub(crate) disk: Option<Option<String>>,
    /// Fixed address.
    #[serde(
        default,
        deserialize_with = "said",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<String>, format = Ipv4)]
    pub(crate) address: Option<Option<Ipv4Addr>>,
    /// Loader file.
    #[serde(
        default,
        deserialize_with = "said",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<String>)]
    pub(crate) loader: Option<Option<String>>,
    /// SMBIOS UUID.
    #[serde(
        default,
        deserialize_with = "said",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<String>, format = "uuid")]
    pub(crate) uuid: Option<Option<Uuid>>,
    /// SMBIOS serial number.
    #[serde(
        default,
        deserialize_with = "said",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<String>)]
    pub(crate) serial: Option<Option<String>>,
}

/// One boot of a machine, as far as it came.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Boot {
    /// Boot generation, once one was prepared.
    pub(crate) generation: Option<u64>,
    /// When its first packet came.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) began: Timestamp,
    /// What happened, oldest first.
    pub(crate) events: Vec<Event>,
}

/// Something that happened to a machine.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Event {
    /// When it happened first.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) at: Timestamp,
    /// Since the first packet of this boot.
    pub(crate) since_began_seconds: f64,
    /// One word, as in "loader-sent".
    pub(crate) stage: String,
    /// The word, for people.
    pub(crate) meaning: String,
    /// Which file, which address, why not.
    pub(crate) detail: String,
    /// How often in a row.
    pub(crate) count: u32,
}

/// How to remove a machine.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct RemoveMachine {
    /// End its sessions first, where it runs.
    #[serde(default)]
    force: bool,
}

/// Lists every machine, by name.
#[utoipa::path(get, path = "/machines", tag = "machines", operation_id = "list_machines",
    responses((status = 200, description = "every machine", body = Vec<Machine>)))]
pub(super) async fn list(State(api): State<Api>) -> Result<Json<Vec<Machine>>, ApiError> {
    api.work(|api| {
        let machines = api.inventory.machines()?;
        let shown = machines.into_iter().map(|machine| shown(api, machine));
        Ok(Json(shown.collect::<Result<_, _>>()?))
    })
    .await
}

/// Adds a machine; one that is pending under this MAC is taken in.
#[utoipa::path(post, path = "/machines", tag = "machines", operation_id = "add_machine",
    request_body = AddMachine,
    responses((status = 201, description = "the machine added", body = Machine),
        (status = 400, description = "it makes no sense", body = ErrorBody),
        (status = 404, description = "no such image", body = ErrorBody),
        (status = 409, description = "name, MAC or address given already", body = ErrorBody)))]
pub(super) async fn add(
    State(api): State<Api>,
    Body(body): Body<AddMachine>,
) -> Result<(StatusCode, Json<Machine>), ApiError> {
    api.work(move |api| {
        let assignment = match (&body.image, body.mode, &body.disk) {
            (Some(_), _, Some(_)) => return Err(image_or_disk()),
            (Some(image), mode, None) => Some(Assignment::Image {
                image: ImageRef::parse(image)?,
                mode: mode.unwrap_or(Mode::Keep).into(),
            }),
            (None, Some(_), _) => return Err(ApiError::invalid("a mode needs an image")),
            (None, None, Some(disk)) => Some(Assignment::Disk(api.inventory.own_disk(disk)?.id)),
            (None, None, None) => None,
        };
        let machine = api.inventory.add_machine(NewMachine {
            name: Name::parse(&body.name)?,
            mac: parse_mac(&body.mac)?,
            uuid: body.uuid.map(|uuid| uuid.to_bytes_le()),
            serial: body.serial,
            assignment,
            address: body.address,
            loader: body.loader,
        })?;
        tracing::info!(machine = %machine.name, mac = %show_mac(machine.mac), "added");
        Ok((StatusCode::CREATED, Json(shown(api, machine)?)))
    })
    .await
}

/// Shows one machine, by name or MAC.
#[utoipa::path(get, path = "/machines/{machine}", tag = "machines", operation_id = "show_machine",
    params(("machine" = String, Path, description = "name or MAC")),
    responses((status = 200, description = "the machine as it is now", body = Machine),
        (status = 404, description = "there is none", body = ErrorBody)))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(machine): Path<String>,
) -> Result<Json<Machine>, ApiError> {
    api.work(move |api| Ok(Json(shown(api, found(api, &machine)?)?)))
        .await
}

/// Changes a machine. Image and mode count from its next boot.
#[utoipa::path(patch, path = "/machines/{machine}", tag = "machines", operation_id = "set_machine",
    params(("machine" = String, Path, description = "name or MAC")),
    request_body = SetMachine,
    responses((status = 200, description = "the machine as it is now", body = Machine),
        (status = 400, description = "it makes no sense", body = ErrorBody),
        (status = 404, description = "no such machine or image", body = ErrorBody),
        (status = 409, description = "name, MAC or address given already, or the machine runs",
            body = ErrorBody)))]
pub(super) async fn set(
    State(api): State<Api>,
    Path(machine): Path<String>,
    Body(body): Body<SetMachine>,
) -> Result<Json<Machine>, ApiError> {
    api.work(move |api| {
        let machine = found(api, &machine)?;
        let name = body.name.as_deref().map(Name::parse).transpose()?;
        let mac = body.mac.as_deref().map(parse_mac).transpose()?;
        let becomes_another = name.as_ref().is_some_and(|name| *name != machine.name)
            || mac.is_some_and(|mac| mac != machine.mac);
        if becomes_another && api.live.machine_in_use(machine.id) {
            return Err(ApiError::conflict(format!(
                "{name} is running, and its disk is known by its name: \
                 shut it down first, then change its name or MAC",
                name = machine.name
            )));
        }
        let change = MachineChange {
            name,
            mac,
            uuid: body.uuid.map(|uuid| uuid.map(|uuid| uuid.to_bytes_le())),
            serial: body.serial,
            assignment: match &body.disk {
                None => assignment(&machine, body.image.as_ref(), body.mode)?,
                Some(_) if body.image.is_some() || body.mode.is_some() => {
                    return Err(image_or_disk());
                }
                Some(Some(disk)) => Some(Some(Assignment::Disk(api.inventory.own_disk(disk)?.id))),
                Some(None) => Some(None),
            },
            address: body.address,
            loader: body.loader,
        };
        let changed = api.inventory.set_machine(machine.id, change)?;
        if changed.mac != machine.mac {
            api.timeline.remove(machine.mac);
        }
        tracing::info!(machine = %changed.name, "changed");
        Ok(Json(shown(api, changed)?))
    })
    .await
}

/// Forgets a machine and removes its overlays. One that runs is refused.
#[utoipa::path(delete, path = "/machines/{machine}", tag = "machines",
    operation_id = "remove_machine",
    params(("machine" = String, Path, description = "name or MAC"), RemoveMachine),
    responses((status = 204, description = "removed"),
        (status = 404, description = "there is none", body = ErrorBody),
        (status = 409, description = "it runs", body = ErrorBody)))]
pub(super) async fn remove(
    State(api): State<Api>,
    Path(machine): Path<String>,
    Query(how): Query<RemoveMachine>,
) -> Result<StatusCode, ApiError> {
    api.work(move |api| {
        let machine = found(api, &machine)?;
        if !how.force && api.live.machine_in_use(machine.id) {
            return Err(ApiError::conflict(format!(
                "{name} is running: shut it down first, or end its sessions with \
                 `diskless machine remove --force {name}`",
                name = machine.name
            )));
        }
        let mut removed = Ok(());
        api.live.while_closed(machine.id, &mut || {
            removed = api.inventory.remove_machine(machine.id);
        });
        removed?;
        api.timeline.remove(machine.mac);
        tracing::info!(machine = %machine.name, "removed");
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

/// Shows what happened at each boot of a machine, oldest first.
#[utoipa::path(get, path = "/machines/{machine}/timeline", tag = "machines",
    operation_id = "show_timeline",
    params(("machine" = String, Path, description = "name or MAC")),
    responses((status = 200, description = "its boots", body = Vec<Boot>),
        (status = 404, description = "there is none", body = ErrorBody)))]
pub(super) async fn timeline(
    State(api): State<Api>,
    Path(machine): Path<String>,
) -> Result<Json<Vec<Boot>>, ApiError> {
    api.work(move |api| {
        let machine = found(api, &machine)?;
        let boots = api.timeline.boots(machine.mac);
        Ok(Json(boots.iter().map(Boot::from).collect()))
    })
    .await
}

/// The machine of a name or a MAC.
pub(super) fn found(api: &Api, text: &str) -> Result<inventory::Machine, ApiError> {
    // A name may look like a MAC without colons: names go first.
    match (api.inventory.machine_by_name(text), parse_mac(text)) {
        (Err(inventory::Error::NotFound(sentence)), Ok(mac)) => {
            let machine = api.inventory.machine_by_mac(mac)?;
            Ok(machine.ok_or(inventory::Error::NotFound(sentence))?)
        }
        (found, _) => Ok(found?),
    }
}

fn shown(api: &Api, machine: inventory::Machine) -> Result<Machine, ApiError> {
    let (image, mode, disk) = match machine.assignment {
        Some(Assignment::Image { image, mode }) => (Some(image), Some(mode), None),
        Some(Assignment::Disk(disk)) => (None, None, Some(api.inventory.own_disk_of(disk)?)),
        None => (None, None, None),
    };
    Ok(Machine {
        id: machine.id,
        name: machine.name.to_string(),
        mac: show_mac(machine.mac),
        uuid: machine.uuid.map(Uuid::from_bytes_le),
        serial: machine.serial,
        state: match machine.state {
            MachineState::Pending => MachineStateWord::Pending,
            MachineState::Known => MachineStateWord::Known,
        },
        image: image.map(|image| image.to_string()),
        mode: mode.map(Mode::from),
        disk: disk.map(|disk| disk.name.to_string()),
        address: machine.address,
        loader: machine.loader,
        generation: api.inventory.generations(machine.id)?.current,
        running: api.live.machine_in_use(machine.id),
        created: machine.created,
        last_seen: machine.last_seen,
    })
}

/// The change of an assignment that a change of image, mode or both is.
fn assignment(
    machine: &inventory::Machine,
    image: Option<&Option<String>>,
    mode: Option<Mode>,
) -> Result<Option<Option<Assignment>>, ApiError> {
    let (old_image, old_mode) = match &machine.assignment {
        Some(Assignment::Image { image, mode }) => (Some(image), Some(*mode)),
        _ => (None, None),
    };
    let mode_or_old = || {
        let said = mode.map(OverlayMode::from);
        said.or(old_mode).unwrap_or(OverlayMode::Keep)
    };
    Ok(match (image, mode) {
        (None, None) => None,
        (Some(None), None) => Some(None),
        (Some(None), Some(_)) => return Err(ApiError::invalid("a mode needs an image")),
        (Some(Some(image)), _) => Some(Some(Assignment::Image {
            image: ImageRef::parse(image)?,
            mode: mode_or_old(),
        })),
        (None, Some(_)) => {
            let Some(image) = old_image else {
                return Err(ApiError::invalid(format!(
                    "{name} has no image yet: name one too \
                     (`diskless machine set {name} --image NAME`)",
                    name = machine.name
                )));
            };
            Some(Some(Assignment::Image {
                image: image.clone(),
                mode: mode_or_old(),
            }))
        }
    })
}

fn image_or_disk() -> ApiError {
    ApiError::invalid("a machine boots an image with a mode, or a disk: name one of the two")
}

impl From<Mode> for OverlayMode {
    fn from(mode: Mode) -> OverlayMode {
        match mode {
            Mode::Reset => OverlayMode::Reset,
            Mode::Keep => OverlayMode::Keep,
        }
    }
}

impl From<OverlayMode> for Mode {
    fn from(mode: OverlayMode) -> Mode {
        match mode {
            OverlayMode::Reset => Mode::Reset,
            OverlayMode::Keep => Mode::Keep,
        }
    }
}

impl From<&timeline::Boot> for Boot {
    fn from(boot: &timeline::Boot) -> Boot {
        let event = |event: &timeline::Event| Event {
            at: event.at,
            since_began_seconds: boot.since_began(event).as_secs_f64(),
            stage: event.stage.word().to_owned(),
            meaning: event.stage.meaning().to_owned(),
            detail: event.detail.clone(),
            count: event.count,
        };
        Boot {
            generation: boot.generation,
            began: boot.began,
            events: boot.events.iter().map(event).collect(),
        }
    }
}

/// The name of the machine with this MAC, for other nouns to show.
pub(super) fn name_of(machines: &[inventory::Machine], mac: Mac) -> Option<String> {
    let machine = machines.iter().find(|machine| machine.mac == mac)?;
    Some(machine.name.to_string())
}

/// `null` is something said, leaving out is not.
pub(super) fn said<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Some)
}
