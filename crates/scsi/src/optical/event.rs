//! GET EVENT STATUS NOTIFICATION: what has happened to the disc since a nexus
//! last asked (MMC-6 section 6.6).

use super::{Drive, Tray};

/// What happened to the disc, as far as one nexus has not heard of it.
///
/// Only the last of several is told: who hears that there is a new disc needs
/// not hear that the old one went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum MediaEvent {
    /// Nothing.
    None = 0,
    /// There is a disc, another one than before.
    NewMedia = 2,
    /// The disc is gone.
    MediaRemoval = 3,
}

impl From<u8> for MediaEvent {
    fn from(code: u8) -> MediaEvent {
        match code {
            2 => MediaEvent::NewMedia,
            3 => MediaEvent::MediaRemoval,
            _ => MediaEvent::None,
        }
    }
}

/// The one class there is: media.
const MEDIA_CLASS: u8 = 4;
/// NEA: no event available.
const NO_EVENT_AVAILABLE: u8 = 0x80;

/// Answers GET EVENT STATUS NOTIFICATION.
pub(super) fn status(
    classes: u8,
    drive: &Drive,
    take_event: impl FnOnce() -> MediaEvent,
) -> Vec<u8> {
    let supported = 1 << MEDIA_CLASS;
    if classes & supported == 0 {
        return vec![0, 2, NO_EVENT_AVAILABLE, supported];
    }
    let mut status = 0;
    if drive.disc().is_ok() {
        status |= 0x02; // media present
    }
    if drive.tray == Tray::Open {
        status |= 0x01; // door open
    }
    vec![
        0,
        6, // event data length
        MEDIA_CLASS,
        supported,
        take_event() as u8,
        status,
        0, // start and end slot
        0,
    ]
}
