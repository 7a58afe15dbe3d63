//! Drives of a CD (700 MB), of a DVD (4.7 GB) and of none, by MMC-6's sections.

use super::*;
use crate::command::Blocks;
use crate::opcodes;
use crate::{Command as Parsed, Device};

/// 0x57800 blocks.
const CD_BYTES: u64 = 358_400 * 2048;
const DVD_BLOCKS: u32 = 2_295_104;

fn loaded(size_bytes: u64) -> Drive {
    Drive {
        disc: Some(Disc::new(size_bytes)),
        tray: Tray::Closed,
        is_locked: false,
    }
}

fn cd() -> Drive {
    loaded(CD_BYTES)
}

fn dvd() -> Drive {
    loaded(u64::from(DVD_BLOCKS) * 2048)
}

fn empty() -> Drive {
    Drive { disc: None, ..cd() }
}

fn parse(cdb: &[u8]) -> Result<Parsed, Sense> {
    Parsed::parse_as(Device::Optical, cdb)
}

/// Runs a command that only a drive knows.
fn ask(drive: Drive, cdb: &[u8]) -> Result<Vec<u8>, Sense> {
    ask_after(MediaEvent::None, drive, cdb)
}

fn ask_after(event: MediaEvent, drive: Drive, cdb: &[u8]) -> Result<Vec<u8>, Sense> {
    match parse(cdb)? {
        Parsed::Optical(command) => answer(&command, &drive, || event),
        Parsed::ModeSense(asked) => mode_sense(&asked, &drive),
        other => panic!("{other:?} is not a drive's own"),
    }
}

/// Asserts 5/24/00 or what else is named by ASC and ASCQ.
fn refused(answer: Result<Vec<u8>, Sense>, asc: u8, ascq: u8) {
    let sense = answer.unwrap_err();
    assert_eq!((sense.asc, sense.ascq), (asc, ascq), "{sense:02x?}");
}

mod read_toc_6_25 {
    use super::*;

    fn toc(msf: u8, format: u8, track: u8) -> [u8; 10] {
        [0x43, msf << 1, format, 0, 0, 0, track, 0xff, 0xff, 0]
    }

    #[test]
    fn the_tracks_are_one_and_the_lead_out() {
        let expected = [
            0, 0x12, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0, 0, 0x14, 0xaa, 0, 0, 5, 0x78, 0,
        ];
        assert_eq!(ask(cd(), &toc(0, 0, 0)).unwrap(), expected);
        assert_eq!(ask(cd(), &toc(0, 0, 1)).unwrap(), expected);
    }

    #[test]
    fn from_track_aa_on_there_is_only_the_lead_out() {
        let data = ask(cd(), &toc(0, 0, 0xaa)).unwrap();
        assert_eq!(data, [0, 10, 1, 1, 0, 0x14, 0xaa, 0, 0, 5, 0x78, 0]);
        refused(ask(cd(), &toc(0, 0, 2)), 0x24, 0);
    }

    #[test]
    fn in_minutes_a_disc_begins_at_second_two() {
        let data = ask(cd(), &toc(1, 0, 0)).unwrap();
        assert_eq!(data[8..12], [0, 0, 2, 0]);
        // 358400 + 150 frames: 79 min 40 s 50 frames.
        assert_eq!(data[16..20], [0, 79, 40, 50]);
    }

    #[test]
    fn what_minutes_cannot_spell_is_the_last_they_can() {
        let data = ask(dvd(), &toc(1, 0, 0)).unwrap();
        assert_eq!(data[16..20], [0, 255, 59, 74]);
        let data = ask(dvd(), &toc(0, 0, 0)).unwrap();
        assert_eq!(data[16..20], DVD_BLOCKS.to_be_bytes());
    }

    #[test]
    fn linux_asks_for_the_session_in_the_control_byte() {
        let data = ask(cd(), &[0x43, 0, 0, 0, 0, 0, 0, 0, 12, 0x40]).unwrap();
        assert_eq!(data, [0, 10, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0]);
        assert_eq!(ask(cd(), &toc(0, 1, 0)).unwrap(), data);
    }

    #[test]
    fn the_raw_table_has_four_points() {
        let data = ask(cd(), &toc(0, 2, 1)).unwrap();
        assert_eq!(data[..4], [0, 0x2e, 1, 1]);
        let points: Vec<_> = data[4..].chunks(11).collect();
        assert_eq!(points[0], [1, 0x14, 0, 0xa0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(points[1], [1, 0x14, 0, 0xa1, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(points[2], [1, 0x14, 0, 0xa2, 0, 0, 0, 0, 79, 40, 50]);
        assert_eq!(points[3], [1, 0x14, 0, 0x01, 0, 0, 0, 0, 0, 2, 0]);
    }

    #[test]
    fn the_length_inside_stays_when_the_allocation_cuts() {
        let mut cdb = toc(0, 0, 0);
        cdb[7..9].copy_from_slice(&[0, 4]);
        assert_eq!(ask(cd(), &cdb).unwrap(), [0, 0x12, 1, 1]);
    }

    #[test]
    fn cd_text_is_refused_and_so_is_an_empty_drive() {
        refused(ask(cd(), &toc(0, 5, 0)), 0x24, 0);
        refused(ask(empty(), &toc(0, 0, 0)), 0x3a, 1);
    }
}

mod get_configuration_6_5 {
    use super::*;

    fn get(drive: Drive, scope: u8, first: u8) -> Vec<u8> {
        ask(drive, &[0x46, scope, 0, first, 0, 0, 0, 0xff, 0xff, 0]).unwrap()
    }

    #[test]
    fn a_dvd_is_said_to_be_one() {
        #[rustfmt::skip]
        let expected = [
            0, 0, 0, 0x38, 0, 0, 0, 0x10,
            0, 0, 3, 8, 0, 0x10, 1, 0, 0, 8, 0, 0,
            0, 1, 0x0b, 8, 0, 0, 0, 1, 1, 0, 0, 0,
            0, 3, 0x0b, 4, 0x39, 0, 0, 0,
            0, 0x10, 1, 8, 0, 0, 8, 0, 0, 0x10, 0, 0,
            0, 0x1e, 0, 0,
            0, 0x1f, 1, 0,
        ];
        assert_eq!(get(dvd(), 0, 0), expected);
    }

    #[test]
    fn only_what_is_current_is_given_when_only_that_is_asked_for() {
        let codes = |drive| -> Vec<u8> {
            let data = get(drive, 1, 3);
            let (mut codes, mut at) = (vec![], 8);
            while at < data.len() {
                codes.push(data[at + 1]);
                at += 4 + usize::from(data[at + 3]);
            }
            codes
        };
        assert_eq!(codes(cd()), [0x03, 0x10, 0x1e]);
        assert_eq!(codes(dvd()), [0x03, 0x10, 0x1f]);
        assert_eq!(codes(empty()), [0x03]);
    }

    #[test]
    fn one_feature_comes_alone_and_an_unknown_one_leaves_the_header() {
        let data = get(cd(), 2, 3);
        assert_eq!(
            data,
            [0, 0, 0, 12, 0, 0, 0, 8, 0, 3, 0x0b, 4, 0x39, 0, 0, 0]
        );
        assert_eq!(get(cd(), 2, 0x2a), [0, 0, 0, 4, 0, 0, 0, 8]);
    }

    #[test]
    fn an_empty_drive_has_no_profile() {
        assert_eq!(
            get(empty(), 2, 0x1f),
            [0, 0, 0, 8, 0, 0, 0, 0, 0, 0x1f, 0, 0]
        );
    }

    #[test]
    fn a_cd_ends_at_99_minutes() {
        let profile = |blocks: u64| get(loaded(blocks * 2048), 2, 0xff)[7];
        assert_eq!(profile(99 * 60 * 75 - 150), 0x08);
        assert_eq!(profile(99 * 60 * 75 - 149), 0x10);
    }
}

mod get_event_status_6_6 {
    use super::*;

    const POLL: [u8; 10] = [0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8, 0];

    #[test]
    fn a_new_disc_is_an_event_with_the_medium_present() {
        let data = ask_after(MediaEvent::NewMedia, cd(), &POLL).unwrap();
        assert_eq!(data, [0, 6, 4, 0x10, 2, 2, 0, 0]);
        assert_eq!(ask(cd(), &POLL).unwrap(), [0, 6, 4, 0x10, 0, 2, 0, 0]);
    }

    #[test]
    fn an_open_tray_is_told_without_a_medium() {
        let drive = Drive {
            disc: None,
            tray: Tray::Open,
            is_locked: false,
        };
        let data = ask_after(MediaEvent::MediaRemoval, drive, &POLL).unwrap();
        assert_eq!(data, [0, 6, 4, 0x10, 3, 1, 0, 0]);
    }

    #[test]
    fn another_class_has_no_event_and_takes_none() {
        let cdb = [0x4a, 1, 0, 0, 0x02, 0, 0, 0, 8, 0];
        let Ok(Parsed::Optical(command)) = parse(&cdb) else {
            panic!();
        };
        let data = answer(&command, &cd(), || panic!("an event was taken"));
        assert_eq!(data, Ok(vec![0, 2, 0x80, 0x10]));
    }

    #[test]
    fn notification_without_polling_is_refused() {
        refused(ask(cd(), &[0x4a, 0, 0, 0, 0x10, 0, 0, 0, 8, 0]), 0x24, 0);
    }
}

mod disc_and_track_information_6_21_6_26 {
    use super::*;

    #[test]
    fn the_disc_is_complete() {
        let data = ask(cd(), &[0x51, 0, 0, 0, 0, 0, 0, 0, 0xff, 0]).unwrap();
        assert_eq!(data[..8], [0, 0x20, 0x0e, 1, 1, 1, 1, 0x20]);
        assert_eq!((data.len(), &data[8..]), (34, &[0u8; 26][..]));
        refused(ask(cd(), &[0x51, 1, 0, 0, 0, 0, 0, 0, 0xff, 0]), 0x24, 0);
        refused(ask(empty(), &[0x51, 0, 0, 0, 0, 0, 0, 0, 0xff, 0]), 0x3a, 1);
    }

    #[test]
    fn the_track_is_the_disc_however_it_is_named() {
        let track = |kind, number| ask(cd(), &[0x52, kind, 0, 0, 0, number, 0, 0, 0xff, 0]);
        let data = track(1, 1).unwrap();
        assert_eq!(data[..8], [0, 0x22, 1, 1, 0, 4, 1, 2]);
        assert_eq!(data[24..32], [0, 5, 0x78, 0, 0, 5, 0x77, 0xff]);
        assert_eq!(data.len(), 36);
        assert_eq!(track(0, 16).unwrap(), data);
        assert_eq!(track(2, 1).unwrap(), data);
        refused(track(1, 2), 0x24, 0);
        refused(track(2, 0), 0x24, 0);
    }

    #[test]
    fn a_block_behind_the_end_is_on_no_track() {
        let track = |lba: u32| {
            let mut cdb = [0x52, 0, 0, 0, 0, 0, 0, 0, 0xff, 0];
            cdb[2..6].copy_from_slice(&lba.to_be_bytes());
            ask(cd(), &cdb)
        };
        assert!(track(358_399).is_ok());
        refused(track(358_400), 0x21, 0);
    }
}

mod mode_sense_7 {
    use super::*;

    #[test]
    fn the_capabilities_say_a_reader_of_cd_and_dvd_with_a_tray() {
        let data = ask(cd(), &[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 128, 0]).unwrap();
        assert_eq!(data[..8], [0, 28, 0, 0, 0, 0, 0, 0]);
        assert_eq!(data[8..16], [0x2a, 0x14, 0x3b, 0, 0x71, 0, 0x29, 0]);
        assert_eq!(data.len(), 30);
        let six = ask(cd(), &[0x1a, 0, 0x2a, 0, 128, 0]).unwrap();
        assert_eq!(six[..4], [25, 0, 0, 0]);
        assert_eq!(six[4..], data[8..]);
    }

    #[test]
    fn a_locked_drive_says_so() {
        let drive = Drive {
            is_locked: true,
            ..cd()
        };
        let data = ask(drive, &[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 128, 0]).unwrap();
        assert_eq!(data[14], 0x2b);
    }

    #[test]
    fn all_pages_come_ascending_without_a_block_descriptor() {
        let data = ask(cd(), &[0x1a, 0, 0x3f, 0, 255, 0]).unwrap();
        assert_eq!((usize::from(data[0]), data[3]), (data.len() - 1, 0));
        let (mut codes, mut at) = (vec![], 4);
        while at < data.len() {
            codes.push(data[at]);
            at += 2 + usize::from(data[at + 1]);
        }
        assert_eq!(codes, [0x01, 0x0e, 0x2a]);
    }

    #[test]
    fn nothing_can_be_changed_and_nothing_saved() {
        let mask = ask(cd(), &[0x1a, 0, 0x6a, 0, 255, 0]).unwrap();
        assert_eq!(mask[6..], [0; 20]);
        refused(ask(cd(), &[0x1a, 0, 0xea, 0, 255, 0]), 0x39, 0);
        refused(ask(cd(), &[0x1a, 0, 0x08, 0, 255, 0]), 0x24, 0);
    }
}

mod dvd_structure_6_22 {
    use super::*;

    fn structure(drive: Drive, layer: u8, format: u8) -> Result<Vec<u8>, Sense> {
        ask(
            drive,
            &[0xad, 0, 0, 0, 0, 0, layer, format, 0xff, 0xff, 0, 0],
        )
    }

    #[test]
    fn the_physical_format_is_one_layer_up_to_the_last_block() {
        let data = structure(dvd(), 0, 0).unwrap();
        assert_eq!(data.len(), 2052);
        assert_eq!(data[..8], [8, 2, 0, 0, 1, 0x0f, 1, 0]);
        assert_eq!(data[8..12], [0, 3, 0, 0]);
        let last = (0x03_0000 + DVD_BLOCKS - 1).to_be_bytes();
        assert_eq!(data[12..16], last);
        assert_eq!(data[16..20], last);
    }

    #[test]
    fn there_is_no_copyright_and_no_burst_cutting_area() {
        assert_eq!(structure(dvd(), 0, 1).unwrap(), [0, 6, 0, 0, 0, 0, 0, 0]);
        refused(structure(dvd(), 0, 3), 0x24, 0);
        refused(structure(dvd(), 1, 0), 0x24, 0);
    }

    #[test]
    fn every_listed_structure_has_its_listed_size() {
        let list = structure(dvd(), 0, 0xff).unwrap();
        assert_eq!(usize::from(list[1]), list.len() - 2);
        for entry in list[4..].chunks(4) {
            let data = structure(dvd(), 0, entry[0]).unwrap();
            assert_eq!(
                data.len(),
                usize::from(u16::from_be_bytes([entry[2], entry[3]]))
            );
            assert_eq!(
                usize::from(u16::from_be_bytes([data[0], data[1]])),
                data.len() - 2
            );
        }
    }

    #[test]
    fn a_cd_has_none() {
        refused(structure(cd(), 0, 0), 0x30, 2);
        refused(structure(empty(), 0, 0), 0x3a, 1);
    }
}

mod small_commands {
    use super::*;

    #[test]
    fn there_is_no_key_and_no_region_6_28() {
        let key = |format| ask(dvd(), &[0xa4, 0, 0, 0, 0, 0, 0, 0, 0, 8, format, 0]);
        refused(key(0), 0x6f, 1);
        refused(key(4), 0x6f, 1);
        assert_eq!(key(8).unwrap(), [0, 6, 0, 0, 0x25, 0xff, 0, 0]);
        refused(key(5), 0x24, 0);
        refused(
            ask(dvd(), &[0xa4, 0, 0, 0, 0, 0, 0, 2, 0, 8, 8, 0]),
            0x24,
            0,
        );
    }

    #[test]
    fn the_mechanism_has_one_slot_and_says_when_it_is_open_6_11() {
        let cdb = [0xbd, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0];
        assert_eq!(ask(cd(), &cdb).unwrap(), [0, 0, 0, 0, 0, 1, 0, 0]);
        let open = Drive {
            disc: None,
            tray: Tray::Open,
            is_locked: false,
        };
        assert_eq!(ask(open, &cdb).unwrap(), [0, 0x10, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn speeds_are_taken_and_change_nothing_6_37_6_41() {
        let speed = [0xbb, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0];
        assert_eq!(ask(cd(), &speed), Ok(vec![]));
        let streaming = [0xb6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 28, 0];
        assert_eq!(ask(cd(), &streaming), Ok(vec![]));
        let Ok(Parsed::Optical(command)) = parse(&streaming) else {
            panic!();
        };
        assert_eq!(command.list_bytes(), 28);
    }

    #[test]
    fn the_disc_is_as_fast_at_its_end_6_8() {
        let get =
            |flags, count, kind| ask(dvd(), &[0xac, flags, 0, 0, 0, 0, 0, 0, 0, count, kind, 0]);
        let data = get(0x10, 4, 0).unwrap();
        assert_eq!(data[..8], [0, 0, 0, 20, 0, 0, 0, 0]);
        let last = (DVD_BLOCKS - 1).to_be_bytes();
        assert_eq!((&data[8..12], &data[16..20]), (&[0; 4][..], &last[..]));
        assert_eq!(data[12..16], data[20..24]);
        assert_eq!(data.len(), 24);
        assert_eq!(get(0x10, 0, 0).unwrap(), [0, 0, 0, 4, 0, 0, 0, 0]);
        assert_eq!(get(0x12, 4, 0).unwrap(), [0, 0, 0, 4, 1, 0, 0, 0]);
        assert_eq!(get(0x14, 4, 0).unwrap(), [0, 0, 0, 4, 2, 0, 0, 0]);
        refused(get(0x10, 4, 1), 0x24, 0);
    }

    #[test]
    fn a_seek_behind_the_end_is_refused_6_36() {
        let seek = |lba: u32| {
            let mut cdb = [0x2b, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            cdb[2..6].copy_from_slice(&lba.to_be_bytes());
            ask(cd(), &cdb)
        };
        assert_eq!(seek(358_399), Ok(vec![]));
        refused(seek(358_400), 0x21, 0);
    }
}

mod read_cd_6_17 {
    use super::*;

    fn read_cd(sector_type: u8, fields: u8) -> Result<Parsed, Sense> {
        let cdb = [0xbe, sector_type << 2, 0, 1, 2, 3, 0, 0, 7, fields, 0, 0];
        parse(&cdb)
    }

    #[test]
    fn user_data_is_read_as_blocks() {
        let read = Ok(Parsed::Read(Blocks {
            lba: 0x1_0203,
            count: 7,
        }));
        assert_eq!(read_cd(0, 0x10), read);
        assert_eq!(read_cd(2, 0x10), read);
    }

    #[test]
    fn audio_is_another_mode_and_headers_are_not_given() {
        assert_eq!(read_cd(1, 0x10), Err(Sense::ILLEGAL_MODE_FOR_THIS_TRACK));
        assert_eq!(read_cd(0, 0xf8), Err(Sense::invalid_cdb_field(9, 7)));
        assert_eq!(
            read_cd(0, 0),
            Ok(Parsed::Optical(Command::Seek { lba: 0x1_0203 }))
        );
    }
}

#[test]
fn what_a_drive_reports_is_what_it_parses() {
    for code in 0..=255u8 {
        for action in 0..=0x1f {
            let reported = OPCODES.iter().filter(|known| known.code == code);
            let has_actions = reported.clone().any(|known| known.service_action.is_some());
            let mut cdb = [0u8; 16];
            cdb[0] = code;
            if has_actions {
                cdb[1] = u8::try_from(action).unwrap();
            }
            let is_reported = reported
                .clone()
                .any(|known| known.service_action.is_none_or(|known| known == action));
            let is_parsed = parse(&cdb) != Err(Sense::INVALID_OPCODE);
            assert_eq!(is_reported, is_parsed, "{code:02x}/{action:02x}");
        }
    }
}

#[test]
fn the_reported_list_ascends_and_has_no_write() {
    let asked = opcodes_all();
    let data = opcodes::report_of(OPCODES, &asked, |_| true).unwrap();
    let codes: Vec<u8> = data[4..].chunks(8).map(|entry| entry[0]).collect();
    assert!(codes.is_sorted() && codes.contains(&0x46));
    for write in [0x0a, 0x2a, 0xaa, 0x8a, 0x2e, 0x41, 0x42, 0x93] {
        assert!(!codes.contains(&write), "{write:02x}");
        assert_eq!(parse(&[write; 16]), Err(Sense::INVALID_OPCODE));
    }
}

fn opcodes_all() -> crate::command::ReportOpcodes {
    crate::command::ReportOpcodes {
        timeouts: false,
        options: 0,
        opcode: 0,
        service_action: 0,
        allocation: 4096,
    }
}

proptest::proptest! {
    #[test]
    fn no_cdb_makes_a_drive_panic(
        cdb in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..20),
        bytes in proptest::prelude::any::<u64>(),
    ) {
        for drive in [loaded(bytes), empty()] {
            if let Ok(Parsed::Optical(command)) = parse(&cdb) {
                let _ = answer(&command, &drive, || MediaEvent::None);
            }
        }
    }
}

/// The drive as a session sees it.
mod as_a_unit {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use disk::Ram;

    use super::*;
    use crate::{DataOut, Identity, LogicalUnit, Nexus, NexusName, Shape};

    /// A disc of so many bytes, each block its number.
    fn iso(bytes: usize) -> Arc<Ram> {
        let contents = (0..bytes).map(|at| u8::try_from(at / 2048 % 256).unwrap());
        Arc::new(Ram::with_contents(contents.collect()).read_only())
    }

    fn unit(bytes: usize) -> LogicalUnit {
        let shape = Shape {
            device: Device::Optical,
            medium: crate::Medium::Removable,
            ..Shape::default()
        };
        LogicalUnit::shaped(iso(bytes), Identity::new([7; 16], "DVD-ROM"), shape)
    }

    fn connect(unit: &LogicalUnit) -> Nexus {
        let nexus = unit.connect(&NexusName {
            initiator: "iqn.2026-01.test:pc".to_owned(),
            isid: [0x80, 0, 0, 0, 0, 1],
        });
        assert!(run(unit, &nexus, &[0, 0, 0, 0, 0, 0]).is_err());
        nexus
    }

    fn run(unit: &LogicalUnit, nexus: &Nexus, cdb: &[u8]) -> Result<Vec<u8>, Sense> {
        let sense = |refusal: crate::Refusal| refusal.sense().unwrap();
        let work = unit.admit(nexus, cdb).map_err(sense)?;
        let list = match work.data_out() {
            DataOut::Gathered(bytes) => vec![0; usize::try_from(bytes).unwrap()],
            _ => vec![],
        };
        if let Some(bytes) = work.read_bytes() {
            let mut data = vec![0; usize::try_from(bytes).unwrap()];
            unit.read(&work, 0, &mut data)?;
            return Ok(data);
        }
        let never = AtomicBool::new(false);
        unit.finish(nexus, &work, &list, &never).map_err(sense)
    }

    #[test]
    fn it_is_a_removable_cd_drive_with_pages_of_its_own() {
        let unit = unit(1 << 20);
        let nexus = connect(&unit);
        let data = run(&unit, &nexus, &[0x12, 0, 0, 0, 96, 0]).unwrap();
        assert_eq!(data[..2], [0x05, 0x80]);
        assert_eq!(data[58..66], [0, 0xa0, 0x09, 0x60, 0x04, 0x60, 0x04, 0xe0]);
        let pages = run(&unit, &nexus, &[0x12, 1, 0, 0, 96, 0]).unwrap();
        assert_eq!(pages[..4], [0x05, 0, 0, 4]);
        for page in &pages[4..] {
            assert!(run(&unit, &nexus, &[0x12, 1, *page, 0, 255, 0]).is_ok());
        }
        assert!(run(&unit, &nexus, &[0x12, 1, 0xb0, 0, 255, 0]).is_err());
    }

    #[test]
    fn it_reads_blocks_of_2048_whatever_lies_below() {
        // Nine blocks, and a rest that is none.
        let unit = unit(9 * 2048 + 512);
        let nexus = connect(&unit);
        let capacity = run(&unit, &nexus, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        assert_eq!(capacity, [0, 0, 0, 8, 0, 0, 8, 0]);
        for cdb in [
            &[0x28, 0, 0, 0, 0, 7, 0, 0, 2, 0][..],
            &[0xa8, 0, 0, 0, 0, 7, 0, 0, 0, 2, 0, 0],
            &[0xbe, 0, 0, 0, 0, 7, 0, 0, 2, 0x10, 0, 0],
        ] {
            let data = run(&unit, &nexus, cdb).unwrap();
            assert_eq!(data, [vec![7; 2048], vec![8; 2048]].concat());
        }
        let behind = run(&unit, &nexus, &[0x28, 0, 0, 0, 0, 8, 0, 0, 2, 0]);
        assert_eq!(behind, Err(Sense::LBA_OUT_OF_RANGE));
    }

    #[test]
    fn it_takes_no_write_and_every_flush() {
        let unit = unit(1 << 20);
        let nexus = connect(&unit);
        let write = run(&unit, &nexus, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(write, Err(Sense::INVALID_OPCODE));
        assert!(run(&unit, &nexus, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_ok());
        let streaming = [0xb6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 28, 0];
        assert!(run(&unit, &nexus, &streaming).is_ok());
    }

    #[test]
    fn another_disc_is_told_to_every_nexus_once_by_attention_and_by_event() {
        let unit = unit(1 << 20);
        let nexuses = [connect(&unit), connect(&unit)];
        let unit = unit.with_disk(iso(2 << 20));
        for nexus in &nexuses {
            let first = run(&unit, nexus, &[0, 0, 0, 0, 0, 0]);
            assert_eq!(first, Err(Sense::MEDIUM_MAY_HAVE_CHANGED));
            assert!(run(&unit, nexus, &[0, 0, 0, 0, 0, 0]).is_ok());
            assert_eq!(run(&unit, nexus, &POLL).unwrap()[4..6], [2, 2]);
            assert_eq!(run(&unit, nexus, &POLL).unwrap()[4..6], [0, 2]);
            let capacity = run(&unit, nexus, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(capacity.unwrap()[..4], [0, 0, 3, 0xff]);
        }
    }

    const READY: [u8; 6] = [0, 0, 0, 0, 0, 0];
    const POLL: [u8; 10] = [0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8, 0];
    const EJECT: [u8; 6] = [0x1b, 0, 0, 0, 0x02, 0];
    const LOAD: [u8; 6] = [0x1b, 0, 0, 0, 0x03, 0];

    #[test]
    fn an_ejected_disc_is_gone_for_every_nexus_until_it_is_loaded() {
        let unit = unit(1 << 20);
        let (mine, other) = (connect(&unit), connect(&unit));
        assert_eq!(run(&unit, &mine, &EJECT), Ok(vec![]));
        for nexus in [&mine, &other] {
            let open = Err(Sense::MEDIUM_NOT_PRESENT_TRAY_OPEN);
            assert_eq!(run(&unit, nexus, &READY), open);
            assert_eq!(run(&unit, nexus, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0]), open);
            assert_eq!(run(&unit, nexus, &[0x43, 0, 0, 0, 0, 0, 0, 0, 12, 0]), open);
            assert_eq!(run(&unit, nexus, &POLL).unwrap()[4..6], [3, 1]);
        }
        assert_eq!(run(&unit, &mine, &LOAD), Ok(vec![]));
        assert_eq!(run(&unit, &mine, &READY), Ok(vec![]));
        let changed = Err(Sense::MEDIUM_MAY_HAVE_CHANGED);
        assert_eq!(run(&unit, &other, &READY), changed);
        assert_eq!(run(&unit, &other, &POLL).unwrap()[4..6], [2, 2]);
    }

    #[test]
    fn a_locked_disc_stays_and_the_drive_says_that_it_is_locked() {
        let unit = unit(1 << 20);
        let (mine, other) = (connect(&unit), connect(&unit));
        assert!(run(&unit, &other, &[0x1e, 0, 0, 0, 1, 0]).is_ok());
        let prevented = run(&unit, &mine, &EJECT);
        assert_eq!(prevented, Err(Sense::MEDIUM_REMOVAL_PREVENTED));
        let lock = |nexus| run(&unit, nexus, &[0x1a, 0, 0x2a, 0, 255, 0]).unwrap()[10] & 2;
        assert_eq!(lock(&mine), 2);
        drop(other);
        assert_eq!(lock(&mine), 0);
        assert_eq!(run(&unit, &mine, &EJECT), Ok(vec![]));
    }

    #[test]
    fn a_drive_without_a_disc_is_closed_and_cannot_load_one() {
        let unit = unit(0);
        let nexus = connect(&unit);
        assert!(run(&unit, &nexus, &LOAD).is_ok());
        let closed = Err(Sense::MEDIUM_NOT_PRESENT_TRAY_CLOSED);
        assert_eq!(run(&unit, &nexus, &READY), closed);
        assert_eq!(
            run(&unit, &nexus, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            closed
        );
        assert_eq!(run(&unit, &nexus, &POLL).unwrap()[4..6], [0, 0]);

        let unit = unit.with_disk(iso(1 << 20));
        let changed = Err(Sense::MEDIUM_MAY_HAVE_CHANGED);
        assert_eq!(run(&unit, &nexus, &READY), changed);
        assert_eq!(run(&unit, &nexus, &READY), Ok(vec![]));

        let unit = unit.with_disk(iso(0));
        assert_eq!(run(&unit, &nexus, &READY), closed);
        assert_eq!(run(&unit, &nexus, &POLL).unwrap()[4..6], [3, 0]);
    }
}
