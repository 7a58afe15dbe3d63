//! The stages of a boot, in the order a machine walks them, and what each means.

use dhcp::{Arch, Firmware};

/// What happened, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// The firmware (BIOS or UEFI, not yet iPXE) asked for an address.
    FirmwareAsked,
    /// iPXE asked for an address.
    LoaderAsked,
    /// An operating system asked for an address.
    SystemAsked,
    /// It was offered an address, or told what to boot.
    Offered,
    /// An address was acknowledged.
    Bound,
    /// A loader was sent to its end (TFTP or HTTP).
    LoaderSent,
    /// A boot script was sent.
    ScriptSent,
    /// Another file was sent.
    FileSent,
    /// The overlay of this boot was made ready.
    OverlayPrepared,
    /// The first login of a boot generation, or a further one.
    LoggedIn,
    /// A session ended.
    LoggedOut,
    /// We refused something.
    Refused,
    /// Something went wrong.
    Problem,
}

impl Stage {
    /// The stage at which a client of this firmware asks for an address.
    pub(crate) fn asked(firmware: &Firmware) -> Stage {
        match firmware {
            Firmware::BiosPxe
            | Firmware::UefiPxe(_)
            | Firmware::UefiHttp(_)
            | Firmware::Other(_) => Stage::FirmwareAsked,
            Firmware::Ipxe(_) => Stage::LoaderAsked,
            Firmware::System => Stage::SystemAsked,
        }
    }

    /// One word, as saved and as the API spells it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Stage::FirmwareAsked => "firmware-asked",
            Stage::LoaderAsked => "loader-asked",
            Stage::SystemAsked => "system-asked",
            Stage::Offered => "offered",
            Stage::Bound => "bound",
            Stage::LoaderSent => "loader-sent",
            Stage::ScriptSent => "script-sent",
            Stage::FileSent => "file-sent",
            Stage::OverlayPrepared => "overlay-prepared",
            Stage::LoggedIn => "logged-in",
            Stage::LoggedOut => "logged-out",
            Stage::Refused => "refused",
            Stage::Problem => "problem",
        }
    }
}
