//! The stages of a boot, in the order a machine walks them, and what each means.

use dhcp::Firmware;

/// What happened, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// The firmware (BIOS or UEFI, not yet iPXE) asked for an address.
    FirmwareAsked,
    /// iPXE asked for an address.
    LoaderAsked,
    /// An operating system asked for an address.
    SystemAsked,
    /// It is helped another way than at its last power-on.
    WayChanged,
    /// What works with its model was found out.
    WayFound,
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
    /// An operator did something to its overlay: went back, branched, committed.
    OverlayChanged,
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
            | Firmware::RaspberryPi
            | Firmware::Other(_) => Stage::FirmwareAsked,
            Firmware::Ipxe(_) => Stage::LoaderAsked,
            Firmware::System => Stage::SystemAsked,
        }
    }

    /// Every stage, in the order of a boot.
    pub(crate) const ALL: [Stage; 16] = [
        Stage::FirmwareAsked,
        Stage::LoaderAsked,
        Stage::SystemAsked,
        Stage::WayChanged,
        Stage::WayFound,
        Stage::Offered,
        Stage::Bound,
        Stage::LoaderSent,
        Stage::ScriptSent,
        Stage::FileSent,
        Stage::OverlayPrepared,
        Stage::OverlayChanged,
        Stage::LoggedIn,
        Stage::LoggedOut,
        Stage::Refused,
        Stage::Problem,
    ];

    /// The stage a word stands for.
    pub(crate) fn of_word(word: &str) -> Option<Stage> {
        Stage::ALL.into_iter().find(|stage| stage.word() == word)
    }

    /// What it means, for people; its detail follows in brackets.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Stage::FirmwareAsked => "its firmware asked for an address",
            Stage::LoaderAsked => "iPXE asked for an address",
            Stage::SystemAsked => "its operating system asked for an address",
            Stage::WayChanged => "is helped another way",
            Stage::WayFound => "showed what works with its model",
            Stage::Offered => "was offered",
            Stage::Bound => "took its address",
            Stage::LoaderSent => "fetched its loader",
            Stage::ScriptSent => "fetched its boot script",
            Stage::FileSent => "fetched a file",
            Stage::OverlayPrepared => "its overlay was made ready",
            Stage::OverlayChanged => "its overlay was changed",
            Stage::LoggedIn => "logged in to its disk",
            Stage::LoggedOut => "left its disk",
            Stage::Refused => "was refused",
            Stage::Problem => "met a problem",
        }
    }

    /// One word, as saved and as the API spells it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Stage::FirmwareAsked => "firmware-asked",
            Stage::LoaderAsked => "loader-asked",
            Stage::SystemAsked => "system-asked",
            Stage::WayChanged => "way-changed",
            Stage::WayFound => "way-found",
            Stage::Offered => "offered",
            Stage::Bound => "bound",
            Stage::LoaderSent => "loader-sent",
            Stage::ScriptSent => "script-sent",
            Stage::FileSent => "file-sent",
            Stage::OverlayPrepared => "overlay-prepared",
            Stage::OverlayChanged => "overlay-changed",
            Stage::LoggedIn => "logged-in",
            Stage::LoggedOut => "logged-out",
            Stage::Refused => "refused",
            Stage::Problem => "problem",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_reads_back_from_its_word() {
        for stage in Stage::ALL {
            assert_eq!(Stage::of_word(stage.word()), Some(stage));
        }
    }
}
