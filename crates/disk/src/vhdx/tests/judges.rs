//! qemu's opinion of what we write, and ours of what it writes. It knows no
//! differencing VHDX: those are held to bytes in the tests beside this.

use std::process::Command;

use uuid::Uuid;

use super::*;
use crate::tests::qemu;

fn run(program: &str, arguments: &[&str]) -> String {
    qemu::run(Command::new(program).args(arguments))
}

fn qemu_io(disk: &str, commands: &[&str]) -> std::process::Output {
    let mut io = Command::new("qemu-io");
    io.args(["-f", "vhdx"]);
    for command in commands {
        io.args(["-c", command]);
    }
    io.arg(disk).output().unwrap()
}

impl Site {
    /// What qemu finds in a file is what is in `model`, and nothing is wrong.
    fn is_judged_to_hold(&self, name: &str, model: &[u8]) {
        let raw = self.path("model.raw");
        std::fs::write(&raw, model).unwrap();
        let disk = self.path(name);
        let (raw, disk) = (raw.to_str().unwrap(), disk.to_str().unwrap());
        let check = run("qemu-img", &["check", "-f", "vhdx", disk]);
        assert!(check.contains("No errors were found"), "{check}");
        run(
            "qemu-img",
            &["compare", "-f", "vhdx", "-F", "raw", disk, raw],
        );
    }
}

/// Writes here and there, over the ends of blocks of 1 and 8 MiB.
fn scribble(disk: &dyn Disk) {
    for (at, length) in [
        (0, 512),
        (1 << 20, 5000),
        (8_380_000, 99_000),
        (9 << 20, 512),
    ] {
        let byte = u8::try_from(at % 251 + 1).unwrap();
        disk.write(at, &vec![byte; length]).unwrap();
    }
    disk.unmap(1 << 20, 4096).unwrap();
    disk.flush().unwrap();
    disk.unmap(9 << 20, 1 << 20).unwrap();
}

#[test]
fn qemu_reads_what_we_write_and_goes_on() {
    if !qemu::is_here() {
        return;
    }
    let site = Site::new();
    for format in [NewFormat::VhdxDynamic, NewFormat::VhdxFixed] {
        // Sectors of 4096 qemu does not open.
        for block_bytes in [1 << 20, 8 << 20] {
            let size_bytes = 20 * MIB;
            let disk = site.create_in_blocks("disk", &format, size_bytes, 512, block_bytes);
            scribble(&disk);
            let mut model = contents(&disk);
            drop(disk);
            site.is_judged_to_hold("disk", &model);
            let path = site.path("disk");
            let path = path.to_str().unwrap();
            let info = run("qemu-img", &["info", "-f", "vhdx", path]);
            assert!(info.contains(&format!("({size_bytes} bytes)")), "{info}");
            let written = qemu_io(path, &["write -P 0x5a 6M 3000k"]);
            assert!(written.status.success());
            model[6 << 20..][..3000 << 10].fill(0x5a);
            let disk = site.open("disk", Access::ReadWrite);
            assert!(contents(&disk) == model);
            disk.write(7 << 20, &[0x33; 9000]).unwrap();
            model[7 << 20..][..9000].fill(0x33);
            drop(disk);
            site.is_judged_to_hold("disk", &model);
        }
    }
}

#[test]
fn what_qemu_writes_reads_back_right_and_takes_our_writes() {
    if !qemu::is_here() {
        return;
    }
    let site = Site::new();
    for options in [
        "subformat=dynamic",
        "subformat=fixed",
        "subformat=dynamic,block_size=1M,log_size=3M",
        "subformat=dynamic,block_state_zero=off",
    ] {
        let path = site.path("theirs");
        let path = path.to_str().unwrap();
        let _ = std::fs::remove_file(path);
        run(
            "qemu-img",
            &["create", "-q", "-f", "vhdx", "-o", options, path, "20M"],
        );
        let written = qemu_io(path, &["write -P 0x21 3M 512", "write -P 0x42 7M 1500k"]);
        assert!(written.status.success());
        let mut model = vec![0; 20 << 20];
        model[3 << 20..][..512].fill(0x21);
        model[7 << 20..][..1500 << 10].fill(0x42);
        assert!(
            contents(&site.open("theirs", Access::ReadOnly)) == model,
            "{options}"
        );
        let disk = site.open("theirs", Access::ReadWrite);
        disk.write((12 << 20) + 100, &[0x63; 3_000_000]).unwrap();
        model[(12 << 20) + 100..][..3_000_000].fill(0x63);
        assert!(contents(&disk) == model, "{options}");
        drop(disk);
        site.is_judged_to_hold("theirs", &model);
    }
}

#[test]
fn qemu_replays_the_log_of_a_killed_writer_and_finds_what_was_flushed() {
    if !qemu::is_here() {
        return;
    }
    let site = Site::new();
    let disk = site.create("disk", NewFormat::VhdxDynamic, 20 * MIB, 512);
    scribble(&disk);
    disk.flush().unwrap();
    let model = contents(&disk);
    // The entry that counts stands in the log only: in place is the old page.
    let bat = disk.bat.region.offset;
    kill(disk);
    let path = site.path("disk");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], bat).unwrap();
    drop(file);
    assert!(contents(&site.open("disk", Access::ReadOnly)) == model);
    let check = ["check", "-f", "vhdx", "-r", "all", path.to_str().unwrap()];
    let said = run("qemu-img", &check);
    assert!(said.contains("No errors were found"), "{said}");
    site.is_judged_to_hold("disk", &model);
    assert!(contents(&site.open("disk", Access::ReadWrite)) == model);
}

/// Three entries that follow each other in a log of 1 MiB from `tail` on, around
/// its end if need be: the first two change the same page, the second has zeros
/// for another.
fn three_entries(tail: usize, log: Uuid, page: u64, zeros: u64, file_bytes: u64) -> Vec<u8> {
    let mut ring = vec![0; 1 << 20];
    let mut at = tail;
    for (sequence, byte) in (7..).zip([1, 2, 3]) {
        let updates = [(
            page + u64::from(sequence == 9) * 4096,
            Box::new([byte; 4096]),
        )];
        let mut entry = log::emit(log, sequence, 0, file_bytes, &updates.into());
        source::put(&mut entry, 12, &u32::try_from(tail).unwrap().to_le_bytes());
        if sequence == 8 {
            source::put(&mut entry, 24, &2_u32.to_le_bytes());
            source::put(&mut entry, 96, b"zero");
            source::put(&mut entry, 104, &8192_u64.to_le_bytes());
            source::put(&mut entry, 112, &zeros.to_le_bytes());
            source::put(&mut entry, 120, &8_u64.to_le_bytes());
        }
        let crc = source::checksum(&entry);
        source::put(&mut entry, 4, &crc.to_le_bytes());
        for sector in entry.chunks(4096) {
            ring[at..at + 4096].copy_from_slice(sector);
            at = (at + 4096) % ring.len();
        }
    }
    ring
}

/// Makes `disk` with such a log, which changes data, so that all of it is seen;
/// the disk's contents before.
fn with_three_entries(site: &Site, tail: usize, harm: &dyn Fn(&mut [u8])) -> Vec<u8> {
    let disk = site.create("disk", NewFormat::VhdxDynamic, 20 * MIB, 512);
    disk.write(0, &[0x77; 2 << 20]).unwrap();
    disk.close().unwrap();
    let State::Full(block) = disk.bat.state(&disk.layout, 0) else {
        panic!("not stored");
    };
    let (log, file_bytes) = (Uuid::new_v4(), disk.gaps().file_bytes());
    let mut ring = three_entries(tail, log, block + 8192, block + 65_536, file_bytes);
    harm(&mut ring);
    disk.source.file.write_all_at(&ring, MIB).unwrap();
    let headers = &mut disk.journal.log().headers;
    headers
        .update(&disk.source.file, |header| header.log = log)
        .unwrap();
    disk.forsake();
    contents(&disk)
}

#[test]
fn a_log_of_several_entries_is_replayed_as_qemu_replays_it() {
    if !qemu::is_here() {
        return;
    }
    let site = Site::new();
    let mut model = with_three_entries(&site, 0, &|_| {});
    model[8192..12_288].fill(2);
    model[12_288..16_384].fill(3);
    model[65_536..73_728].fill(0);
    std::fs::copy(site.path("disk"), site.path("ours")).unwrap();
    let theirs = site.path("disk");
    let theirs = theirs.to_str().unwrap();
    run("qemu-img", &["check", "-f", "vhdx", "-r", "all", theirs]);
    site.is_judged_to_hold("disk", &model);
    assert!(contents(&site.open("ours", Access::ReadOnly)) == model);
    drop(site.open("ours", Access::ReadWrite));
    site.is_judged_to_hold("ours", &model);
    // Around the end of the log, where qemu 10 finds no sequence.
    with_three_entries(&site, (1 << 20) - 3 * 4096, &|_| {});
    assert!(contents(&site.open("disk", Access::ReadOnly)) == model);
    drop(site.open("disk", Access::ReadWrite));
    site.is_judged_to_hold("disk", &model);
}

#[test]
fn a_log_ends_before_an_entry_that_is_torn() {
    let site = Site::new();
    let last = 4 * 4096;
    let mut model = with_three_entries(&site, 0, &|ring| ring[last + 5000] ^= 1);
    model[8192..12_288].fill(2);
    model[65_536..73_728].fill(0);
    assert!(contents(&site.open("disk", Access::ReadOnly)) == model);
    assert!(contents(&site.open("disk", Access::ReadWrite)) == model);
    // And holds nothing without the entry that the others begin with.
    let model = with_three_entries(&site, 0, &|ring| ring[5000] ^= 1);
    assert!(contents(&site.open("disk", Access::ReadOnly)) == model);
}
