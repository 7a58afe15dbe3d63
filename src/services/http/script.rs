//! The boot script of a machine.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{Response, StatusCode};
use serde::Deserialize;

use super::{Peer, Reached, text_response};
use crate::boot::ladder::Sign;
use crate::boot::script::{self, Doors, SanBoot, Waiting};
use crate::boot::{BootPlan, plan};
use crate::inventory::{self, Identity, Machine, OverlayMode, parse_mac};
use crate::services::Site;
use crate::timeline::Stage;

/// What a machine says of itself in the script's URL.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Asker {
    mac: Option<String>,
    uuid: Option<String>,
    serial: Option<String>,
}

pub(super) async fn boot_script(
    State(site): State<Arc<Site>>,
    Extension(Peer(peer)): Extension<Peer>,
    Extension(Reached(server)): Extension<Reached>,
    asker: Result<Query<Asker>, QueryRejection>,
) -> Response<Body> {
    let asker = match asker {
        Ok(Query(asker)) => asker,
        Err(rejection) => {
            return text_response(
                StatusCode::BAD_REQUEST,
                format!("{}\n", rejection.body_text()),
            );
        }
    };
    // Enrolling and preparing write to the store, and wait for it.
    let answer =
        tokio::task::spawn_blocking(move || script_for(&site, &site.doors(server), &asker, peer))
            .await;
    match answer {
        Ok(Ok(text)) => text_response(StatusCode::OK, text),
        Ok(Err(error @ inventory::Error::Invalid(_))) => {
            text_response(StatusCode::BAD_REQUEST, format!("{error}\n"))
        }
        Ok(Err(error)) => {
            tracing::error!(%error, "making a boot script");
            text_response(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n"))
        }
        Err(error) => {
            tracing::error!(%error, "making a boot script");
            text_response(
                StatusCode::INTERNAL_SERVER_ERROR,
                "something broke here\n".into(),
            )
        }
    }
}

fn script_for(
    site: &Site,
    doors: &Doors,
    asker: &Asker,
    peer: SocketAddr,
) -> inventory::Result<String> {
    let filled = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
    let mac = filled(&asker.mac)
        .map(|text| parse_mac(&text))
        .transpose()?;
    // iPXE prints what the SMBIOS table holds with the byte order of its first
    // three fields turned, as dmidecode does; option 97 (to which iPXE turns
    // them back) and our facts have it as the table does.
    let uuid = filled(&asker.uuid)
        .and_then(|text| uuid::Uuid::parse_str(&text).ok())
        .map(|uuid| uuid.to_bytes_le());
    let serial = filled(&asker.serial);
    let Some(mac) = mac else {
        let found = site.inventory.find(&Identity {
            mac: None,
            uuid,
            serial,
        })?;
        return match found {
            Some(machine) => script_of(site, doors, &machine),
            None => Ok(script::who_are_you(doors)),
        };
    };
    // Beside another DHCP server this may be the first we know of its address.
    site.addresses.claimed(peer.ip(), mac);
    site.heard(mac, Sign::Alive);
    let made = site
        .inventory
        .enrol(mac, uuid, serial.as_deref())
        .and_then(|machine| script_of(site, doors, &machine));
    match made {
        // It is told, and asks again: iPXE gives up at an HTTP error.
        Err(error) if !matches!(error, inventory::Error::Invalid(_)) => {
            tracing::warn!(%mac, %error, "making a boot script");
            let (mac, again) = (mac.to_string(), doors.script_url(mac));
            let words = error.to_string();
            let pause = with_jitter(site.retry);
            let reason = Waiting::Trouble;
            Ok(script::waiting(reason, &mac, &mac, &words, &again, pause))
        }
        made => made,
    }
}

/// The script of one machine: prepares its next boot generation where it can
/// boot, which harms nothing that runs.
fn script_of(site: &Site, doors: &Doors, machine: &Machine) -> inventory::Result<String> {
    let mac = machine.mac.to_string();
    let again = doors.script_url(machine.mac);
    let wait = |reason, words: &str| {
        let pause = with_jitter(site.retry);
        Ok(script::waiting(
            reason,
            &machine.name,
            &mac,
            words,
            &again,
            pause,
        ))
    };
    let boots = match plan(machine) {
        BootPlan::Unknown => {
            site.timeline.record(
                machine.mac,
                Stage::ScriptSent,
                "it is pending: told so on its screen",
            );
            return wait(Waiting::Unknown, "");
        }
        BootPlan::Unassigned => {
            site.timeline.record(
                machine.mac,
                Stage::ScriptSent,
                "nothing is assigned: told so on its screen",
            );
            return wait(Waiting::Unassigned, "");
        }
        BootPlan::Clone { image, mode } => {
            let mode = match mode {
                OverlayMode::Reset => "reset",
                OverlayMode::Keep => "keep",
            };
            let found = site.inventory.image(&image);
            found.map(|_| format!("{image}, {mode}"))
        }
        BootPlan::Direct(disk) => {
            let found = site.inventory.own_disk_of(disk);
            found.map(|disk| format!("disk {}", disk.name))
        }
    };
    let disk = match boots {
        Ok(disk) => disk,
        Err(error) => {
            let words = error.to_string();
            site.timeline
                .record(machine.mac, Stage::Problem, words.clone());
            return wait(Waiting::Trouble, &words);
        }
    };
    let prepared = site.inventory.prepare_generation(machine.id)?;
    let boot = SanBoot {
        machine: &machine.name,
        disk: &disk,
        target: &site.target_name(machine),
        initiator: &site.initiator_name(machine),
        chap_name: &inventory::chap_name(machine, prepared.number),
        secret: &prepared.secret,
    };
    site.timeline.record(
        machine.mac,
        Stage::ScriptSent,
        format!("{}, boot generation {}", boot.disk, prepared.number),
    );
    Ok(script::san_boot(
        doors,
        &boot,
        &again,
        with_jitter(site.retry),
    ))
}

/// `pause` to twice `pause`, so that a room of PCs does not ask in one voice.
pub(super) fn with_jitter(pause: Duration) -> Duration {
    let share = getrandom::u32().unwrap_or_default();
    pause + pause.mul_f64(f64::from(share) / f64::from(u32::MAX))
}
