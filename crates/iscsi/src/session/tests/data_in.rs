//! RFC 7143 sections 11.7 and 11.4.5: SCSI Data-In and residuals.

use super::*;

#[test]
fn a_read_is_cut_to_the_initiators_segments_and_bursts_with_status_in_the_last() {
    for is_mapped in [true, false] {
        let mut lab = Lab::shaped(Shape {
            is_mapped,
            ..Shape::default()
        });
        // 20 KiB: a sequence of 16 KiB in two PDUs, and one of 4 KiB.
        let heard = lab.command(&read10(7, 40), 40 * 512, 0xc0, &[]);
        let shape: Vec<_> = heard
            .iter()
            .map(|h| (h.flags, h.data.len(), h.offset, h.data_sn))
            .collect();
        assert_eq!(
            shape,
            [
                (0x00, 8192, 0, 0),
                (0x80, 8192, 8192, 1),
                (0x81, 4096, 16384, 2)
            ]
        );
        let data: Vec<u8> = heard.iter().flat_map(|h| h.data.clone()).collect();
        let expected: Vec<u8> = (7..47).flat_map(block).collect();
        assert_eq!(data, expected);
        // Without status the last StatSN sent, with it the next one.
        let numbers: Vec<_> = heard.iter().map(|h| h.stat_sn).collect();
        assert_eq!(numbers, [100, 100, 101]);
    }
}

#[test]
fn a_disk_that_maps_less_than_it_says_is_read_and_no_byte_made_up() {
    let mut lab = Lab::shaped(Shape {
        withheld: 512,
        ..Shape::default()
    });
    let heard = lab.command(&read10(7, 40), 40 * 512, 0xc0, &[]);
    let data: Vec<u8> = heard.iter().flat_map(|h| h.data.clone()).collect();
    let expected: Vec<u8> = (7..47).flat_map(block).collect();
    assert_eq!(data, expected);
}

#[test]
fn data_that_is_no_multiple_of_four_is_padded() {
    let mut lab = Lab::new();
    let heard = lab.command(&[0x12, 0, 0, 0, 5, 0], 5, 0xc0, &[]);
    assert_eq!((heard[0].data.len(), heard[0].flags), (5, 0x81));
}

#[test]
fn a_read_that_fails_midway_ends_with_sense_and_no_status_before() {
    let mut lab = Lab::shaped(Shape {
        is_mapped: false,
        ..Shape::default()
    });
    let heard = lab.command(&read10(980, 40), 40 * 512, 0xc0, &[]);
    assert_eq!((heard[0].opcode, heard[0].flags & 1), (0x25, 0));
    let last = heard.last().unwrap();
    assert_eq!(last.sense(), (3, 0x11, 0));
    assert_eq!(last.data_sn, 1, "ExpDataSN counts what was sent");
    // The stream is whole: the next command is answered.
    assert!(lab.command(&[0; 6], 0, 0x80, &[])[0].is_good());
}

#[test]
fn a_read_shorter_or_longer_than_expected_says_by_how_much() {
    let mut lab = Lab::new();
    let heard = lab.command(&read10(0, 1), 1000, 0xc0, &[]);
    assert_eq!(
        (heard[0].flags, heard[0].last, heard[0].data.len()),
        (0x83, 488, 512)
    );
    let heard = lab.command(&read10(0, 2), 600, 0xc0, &[]);
    assert_eq!(
        (heard[0].flags, heard[0].last, heard[0].data.len()),
        (0x85, 424, 600)
    );
    let heard = lab.command(&read10(0, 1), 0, 0x80, &[]);
    assert!(heard[0].is_good());
    assert_eq!((heard[0].flags, heard[0].last), (0x84, 512));
}

#[test]
fn a_write_with_a_short_expected_length_writes_whole_blocks_only() {
    let mut lab = Lab::new();
    let data = [9; 1000];
    let heard = lab.command(&write10(3, 2), 1000, 0xa0, &data);
    assert!(heard[0].is_good());
    assert_eq!((heard[0].flags, heard[0].last), (0x84, 24));
    assert_eq!(lab.disk(3, 1), [9; 512]);
    assert_eq!(lab.disk(4, 1), block(4));
}
