//! GET CONFIGURATION: what the drive can do, and can do with this disc
//! (MMC-6 sections 5 and 6.5).

use super::command::Scope;
use super::{Disc, Drive, Kind};

/// Profiles (MMC-6 section 5.4).
const CD_ROM: u16 = 0x0008;
const DVD_ROM: u16 = 0x0010;

/// Answers GET CONFIGURATION.
pub(super) fn get(scope: Scope, first: u16, drive: &Drive) -> Vec<u8> {
    let kind = drive.disc().ok().map(Disc::kind);
    let profile = match kind {
        None => 0,
        Some(Kind::CdRom) => CD_ROM,
        Some(Kind::DvdRom) => DVD_ROM,
    };
    let mut data = vec![0u8; 8];
    data[6..8].copy_from_slice(&profile.to_be_bytes());
    for feature in features(kind) {
        let wanted = match scope {
            Scope::All => feature.code >= first,
            Scope::Current => feature.code >= first && feature.is_current,
            Scope::One => feature.code == first,
        };
        if wanted {
            feature.emit(&mut data);
        }
    }
    let length = u32::try_from(data.len() - 4).unwrap_or(u32::MAX);
    data[..4].copy_from_slice(&length.to_be_bytes());
    data
}

struct Feature {
    code: u16,
    version: u8,
    /// Current whatever the disc.
    is_persistent: bool,
    is_current: bool,
    body: Vec<u8>,
}

impl Feature {
    fn emit(&self, data: &mut Vec<u8>) {
        let mut flags = self.version << 2;
        if self.is_persistent {
            flags |= 0x02;
        }
        if self.is_current {
            flags |= 0x01;
        }
        let [high, low] = self.code.to_be_bytes();
        let length = u8::try_from(self.body.len()).unwrap_or(0);
        data.extend_from_slice(&[high, low, flags, length]);
        data.extend_from_slice(&self.body);
    }
}

/// All features, ascending.
fn features(kind: Option<Kind>) -> Vec<Feature> {
    let mut profiles = Vec::new();
    for (profile, of) in [(DVD_ROM, Kind::DvdRom), (CD_ROM, Kind::CdRom)] {
        profiles.extend_from_slice(&profile.to_be_bytes());
        profiles.extend_from_slice(&[u8::from(kind == Some(of)), 0]);
    }
    let persistent = |code, version, body| Feature {
        code,
        version,
        is_persistent: true,
        is_current: true,
        body,
    };
    let of_disc = |code, is_current, body| Feature {
        code,
        version: 0,
        is_persistent: false,
        is_current,
        body,
    };
    vec![
        persistent(0x0000, 0, profiles),
        // Core: SCSI; DBE, it has device busy events.
        persistent(0x0001, 2, vec![0, 0, 0, 1, 1, 0, 0, 0]),
        // Removable medium: tray, can load, eject and lock.
        persistent(0x0003, 2, vec![0x39, 0, 0, 0]),
        // Random readable: blocks of 2048, 16 read at once.
        of_disc(0x0010, kind.is_some(), vec![0, 0, 8, 0, 0, 16, 0, 0]),
        // CD read, DVD read.
        of_disc(0x001e, kind == Some(Kind::CdRom), vec![]),
        of_disc(0x001f, kind == Some(Kind::DvdRom), vec![]),
    ]
}
