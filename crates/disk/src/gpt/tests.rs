//! Claims about partition tables, judged by sfdisk and sgdisk.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::*;
use crate::{Access, Ram, Raw};

const MIB: u64 = 1 << 20;

/// Runs a judge with `input`; `None` where it is not installed.
fn judge(program: &str, arguments: &[&str], input: &str) -> Option<(bool, String)> {
    let child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let ci = std::env::var("CI").is_ok_and(|value| value == "true");
            assert!(!ci, "{program} is missing: install what lab/setup.sh names");
            eprintln!("skipped: {program} is not installed");
            return None;
        }
        child => child.unwrap(),
    };
    // One that wants no input may have ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    Some((output.status.success(), said))
}

fn partitioned(directory: &Path, label: &str) -> Option<PathBuf> {
    let path = directory.join("disk.raw");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(64 * MIB)
        .unwrap();
    let script = format!("label: {label}\n,20MiB\n,\n");
    let (done, said) = judge("sfdisk", &["-q", path.to_str().unwrap()], &script)?;
    assert!(done, "{said}");
    Some(path)
}

fn grow(path: &Path, size_bytes: u64) -> Raw {
    let raw = Raw::open(path, Access::ReadWrite).unwrap();
    raw.grown(size_bytes).unwrap()
}

fn judges_are_content(path: &Path) {
    let shown = path.to_str().unwrap();
    if let Some((content, said)) = judge("sfdisk", &["--verify", shown], "") {
        assert!(content && said.contains("No errors detected"), "{said}");
    }
    if let Some((content, said)) = judge("sgdisk", &["-v", shown], "") {
        assert!(content && said.contains("No problems found"), "{said}");
    }
}

/// The partitions as sfdisk dumps them.
fn partitions(path: &Path) -> Vec<String> {
    let (_, dump) = judge("sfdisk", &["-d", path.to_str().unwrap()], "").unwrap();
    let lines = dump.lines().filter(|line| line.contains("start="));
    lines.map(str::to_owned).collect()
}

#[test]
fn the_copy_follows_the_end_and_partitions_stay() {
    let directory = tempfile::tempdir().unwrap();
    let Some(path) = partitioned(directory.path(), "gpt") else {
        return;
    };
    let before = partitions(&path);
    assert_eq!(before.len(), 2);
    for size_bytes in [64 * MIB + 4096, 65 * MIB, 200 * MIB, 3 << 40] {
        let disk = grow(&path, size_bytes);
        assert_eq!(follow_end(&disk).unwrap(), Followed::Moved);
        assert_eq!(follow_end(&disk).unwrap(), Followed::AtTheEnd);
        drop(disk);
        judges_are_content(&path);
        assert_eq!(partitions(&path), before);
    }
    // The new space can be used.
    let (done, said) = judge("sfdisk", &["-q", "-N", "2", path.to_str().unwrap()], ",+\n").unwrap();
    assert!(done, "{said}");
    judges_are_content(&path);
}

#[test]
fn a_table_in_blocks_of_4096_follows_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.raw");
    let size_bytes = 64 * MIB;
    std::fs::write(&path, []).unwrap();
    let mut disk = vec![0; usize::try_from(size_bytes).unwrap()];
    write_table(&mut disk, 4096);
    std::fs::write(&path, disk).unwrap();
    let grown = grow(&path, 100 * MIB);
    assert_eq!(follow_end(&grown).unwrap(), Followed::Moved);
    let last = 100 * MIB / 4096 - 1;
    let backup = Header::read(&grown, 4096, last).unwrap();
    assert_eq!(backup.alternate_lba(), 1);
    let primary = Header::read(&grown, 4096, 1).unwrap();
    assert_eq!(
        (primary.alternate_lba(), primary.last_usable_lba()),
        (last, last - 5)
    );
    let mut entries = vec![0; 16384];
    grown.read((last - 4) * 4096, &mut entries).unwrap();
    assert_eq!(entries, primary.entries(&grown).unwrap());
}

#[test]
fn every_step_leaves_a_whole_table() {
    // The disk as it is after each write, as if power had gone there.
    let size_bytes = usize::try_from(4 * MIB).unwrap();
    let mut bytes = vec![0; size_bytes];
    write_table(&mut bytes, 512);
    bytes.resize(2 * size_bytes, 0);
    for steps in 0..6 {
        let disk = Ending {
            disk: Ram::with_contents(bytes.clone()),
            left: std::sync::atomic::AtomicUsize::new(steps),
        };
        let followed = follow_end(&disk);
        assert_eq!(followed.is_ok(), steps >= 5, "{steps}");
        let primary = Header::read(&disk.disk, 512, 1).unwrap();
        let entries = primary.entries(&disk.disk).unwrap();
        let backup = Header::read(&disk.disk, 512, primary.alternate_lba()).unwrap();
        let mut copy = vec![0; entries.len()];
        disk.disk
            .read(backup.u64(ENTRY_LBA) * 512, &mut copy)
            .unwrap();
        assert!(copy == entries);
        // Done again, it comes to its end.
        follow_end(&disk.disk).unwrap();
        assert_eq!(follow_end(&disk.disk).unwrap(), Followed::AtTheEnd);
    }
}

#[test]
fn what_is_no_gpt_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let empty = Ram::new(1 << 20);
    assert_eq!(follow_end(&empty).unwrap(), Followed::NoGpt);
    assert_eq!(follow_end(&Ram::new(512)).unwrap(), Followed::NoGpt);
    let Some(path) = partitioned(directory.path(), "dos") else {
        return;
    };
    let before = std::fs::read(&path).unwrap();
    let disk = Raw::open(&path, Access::ReadWrite).unwrap();
    assert_eq!(follow_end(&disk).unwrap(), Followed::NoGpt);
    assert!(std::fs::read(&path).unwrap() == before);
}

#[test]
fn a_damaged_table_is_left_as_it_is_and_named() {
    let size_bytes = usize::try_from(4 * MIB).unwrap();
    let mut whole = vec![0; size_bytes];
    write_table(&mut whole, 512);
    whole.resize(2 * size_bytes, 0);
    // A field, its new value, and whether the header is sealed again.
    let cases: [(usize, &[u8], bool, &str); 10] = [
        (HEADER_CRC32, &[9], false, "HeaderCRC32"),
        (0, b"efi part", false, "Signature"),
        (HEADER_SIZE, &[0, 0, 0, 0x80], false, "HeaderSize"),
        (HEADER_SIZE, &[91, 0, 0, 0], false, "HeaderSize"),
        (MY_LBA, &[2], true, "MyLBA"),
        (ALTERNATE_LBA, &[0xff; 8], true, "AlternateLBA"),
        (ENTRY_SIZE, &[0xff; 4], true, "SizeOfPartitionEntry"),
        (ENTRY_LBA, &[0xff; 8], true, "PartitionEntryLBA"),
        (LAST_USABLE_LBA, &[0xff; 8], true, "AlternateLBA"),
        (ENTRIES_CRC32, &[0xff; 4], true, "PartitionEntryArrayCRC32"),
    ];
    for (field, value, sealed, what) in cases {
        let mut bytes = whole.clone();
        bytes[512 + field..512 + field + value.len()].copy_from_slice(value);
        if sealed {
            let mut header = Header {
                block: bytes[512..1024].to_vec(),
                lba: 1,
            };
            header.seal();
            bytes[512..1024].copy_from_slice(&header.block);
        }
        let disk = Ram::with_contents(bytes.clone());
        let refusal = follow_end(&disk).unwrap_err().to_string();
        assert!(refusal.contains(what), "{what}: {refusal}");
        let mut now = vec![0; bytes.len()];
        disk.read(0, &mut now).unwrap();
        assert!(now == bytes, "{what}: something was written");
    }
}

#[test]
fn the_crc_is_that_of_the_standard() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
}

/// Writes an ordinary table of 128 entries, one in use, with its copy.
fn write_table(disk: &mut [u8], block_bytes: usize) {
    let last = (disk.len() / block_bytes - 1) as u64;
    let entry_blocks = (16384 / block_bytes) as u64;
    disk[RECORDS_AT + 4] = PROTECTIVE;
    disk[RECORDS_AT + 8] = 1;
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let mut entries = vec![0; 16384];
    entries[..16].fill(0x11);
    entries[16..32].fill(0x22);
    let mut put = |lba: u64, other: u64, entry_lba: u64| {
        let mut header = Header {
            block: vec![0; block_bytes],
            lba,
        };
        header.block[..8].copy_from_slice(&SIGNATURE);
        header.block[10] = 1; // revision 1.0
        header.block[HEADER_SIZE] = 92;
        header.put_u64(MY_LBA, lba);
        header.put_u64(ALTERNATE_LBA, other);
        header.put_u64(FIRST_USABLE_LBA, 2 + entry_blocks);
        header.put_u64(LAST_USABLE_LBA, last - entry_blocks - 1);
        header.put_u64(ENTRY_LBA, entry_lba);
        header.block[ENTRY_COUNT] = 128;
        header.block[ENTRY_SIZE] = 128;
        header.block[ENTRIES_CRC32..ENTRIES_CRC32 + 4]
            .copy_from_slice(&crc32(&entries).to_le_bytes());
        header.seal();
        let place = |lba: u64| usize::try_from(lba).unwrap() * block_bytes;
        disk[place(lba)..place(lba) + block_bytes].copy_from_slice(&header.block);
        disk[place(entry_lba)..place(entry_lba) + entries.len()].copy_from_slice(&entries);
    };
    put(1, last, 2);
    put(last, 1, last - entry_blocks);
}

/// A disk that takes so many writes and then refuses.
struct Ending {
    disk: Ram,
    left: std::sync::atomic::AtomicUsize,
}

impl Disk for Ending {
    fn geometry(&self) -> crate::Geometry {
        self.disk.geometry()
    }

    fn access(&self) -> Access {
        Access::ReadWrite
    }

    fn durability(&self) -> crate::Durability {
        self.disk.durability()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.disk.read(offset, buffer)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        use std::sync::atomic::Ordering::Relaxed;
        match self
            .left
            .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1))
        {
            Ok(_) => self.disk.write(offset, data),
            Err(_) => Err(DiskError::Failed("power".to_owned())),
        }
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.disk.flush()
    }

    fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.disk.unmap(offset, bytes)
    }
}
