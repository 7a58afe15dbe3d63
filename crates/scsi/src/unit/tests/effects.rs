//! What commands leave in a file, as another reader of it finds it.

use std::path::Path;

use disk::{Raw, RawOptions};

use super::*;

const FILE_BYTES: usize = 256 << 10;

/// A file of `0x11`s and a unit over it.
pub(super) struct OnFile {
    pub(super) file: tempfile::NamedTempFile,
    pub(super) lab: Lab,
    pub(super) block_bytes: usize,
}

impl OnFile {
    pub(super) fn new(block_bytes: u32) -> OnFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![0x11; FILE_BYTES]).unwrap();
        let disk = open(file.path(), block_bytes);
        OnFile {
            lab: Lab::shaped(disk, Shape::default()),
            file,
            block_bytes: usize::try_from(block_bytes).unwrap(),
        }
    }

    /// Runs `claim` with blocks of 512 and of 4096 bytes.
    pub(super) fn in_both_sizes(claim: impl Fn(OnFile)) {
        [512, 4096].map(OnFile::new).into_iter().for_each(claim);
    }

    fn block(&self, byte: u8) -> Vec<u8> {
        vec![byte; self.block_bytes]
    }

    /// Checks what the file holds: blocks of one byte throughout, of `0x11`
    /// unless `expected` names another.
    pub(super) fn holds(&self, expected: &[(usize, u8)]) {
        let bytes = std::fs::read(self.file.path()).unwrap();
        for (lba, block) in bytes.chunks(self.block_bytes).enumerate() {
            let named = expected.iter().find(|(at, _)| *at == lba);
            let byte = named.map_or(0x11, |(_, byte)| *byte);
            assert!(block.iter().all(|found| *found == byte), "block {lba}");
        }
    }
}

fn open(path: &Path, block_bytes: u32) -> SharedDisk {
    let options = RawOptions {
        access: Access::ReadWrite,
        logical_block_bytes: Some(block_bytes),
    };
    Arc::new(Raw::open_with(path, options).unwrap())
}

/// A CDB of 16 bytes with its LBA and count where most have them.
fn cdb16(opcode: u8, flags: u8, lba: u64, count: u32) -> [u8; 16] {
    let mut cdb = [0u8; 16];
    cdb[..2].copy_from_slice(&[opcode, flags]);
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&count.to_be_bytes());
    cdb
}

#[test]
fn orwrite_sets_bits_and_clears_none() {
    OnFile::in_both_sizes(|on| {
        let data = [on.block(0x80), on.block(0x01)].concat();
        on.lab.command(&cdb16(0x8b, 0, 3, 2), &data).unwrap();
        on.holds(&[(3, 0x91), (4, 0x11)]);
    });
}

#[test]
fn compare_and_write_writes_only_where_it_is_equal() {
    OnFile::in_both_sizes(|on| {
        let cdb = cdb16(0x89, 0, 5, 2);
        let equal = on.block(0x11).repeat(2);
        let wanted = on.block(0x22).repeat(2);
        let mut differs = equal.clone();
        differs[on.block_bytes + 7] = 0;
        let refused = on.lab.command(&cdb, &[differs, wanted.clone()].concat());
        let at = u64::try_from(on.block_bytes).unwrap() + 7;
        assert_eq!(refused, Err(Sense::miscompare_at(at)));
        on.holds(&[]);
        on.lab.command(&cdb, &[equal, wanted].concat()).unwrap();
        on.holds(&[(5, 0x22), (6, 0x22)]);
    });
}

#[test]
fn compare_and_write_takes_twice_its_blocks_and_not_too_many() {
    OnFile::in_both_sizes(|on| {
        let work = |count| on.lab.unit.admit(&on.lab.nexus, &cdb16(0x89, 0, 0, count));
        let two = work(2).unwrap();
        let bytes = u64::try_from(4 * on.block_bytes).unwrap();
        let refusal = Sense::invalid_cdb_field(13, 7);
        assert_eq!(on.lab.unit.fit(&two, bytes), Ok(bytes));
        assert_eq!(on.lab.unit.fit(&two, bytes - 1), Err(refusal));
        assert_eq!(on.lab.unit.fit(&two, bytes + 1), Err(refusal));
        let most = max_compare_blocks(on.lab.unit.geometry.logical_block_bytes);
        assert!(work(most).is_ok());
        if most < 255 {
            assert_eq!(work(most + 1).unwrap_err(), Refusal::from(refusal));
        }
    });
}

#[test]
fn verify_with_data_changes_nothing_whatever_it_finds() {
    OnFile::in_both_sizes(|on| {
        for (flags, data) in [(2, on.block(0x11).repeat(3)), (6, on.block(0x11))] {
            let cdb = cdb16(0x8f, flags, 2, 3);
            on.lab.command(&cdb, &data).unwrap();
            let mut differs = data;
            differs[100] = 0;
            let refused = on.lab.command(&cdb, &differs);
            assert_eq!(refused, Err(Sense::miscompare_at(100)));
        }
        on.holds(&[]);
    });
}

#[test]
fn write_same_and_unmap_reach_the_blocks_named_and_no_others() {
    OnFile::in_both_sizes(|on| {
        let same = cdb16(0x93, 0, 4, 2);
        on.lab.command(&same, &on.block(0x77)).unwrap();
        on.holds(&[(4, 0x77), (5, 0x77)]);
        let unmapping = cdb16(0x93, 8, 5, 1);
        on.lab.command(&unmapping, &on.block(0)).unwrap();
        on.holds(&[(4, 0x77), (5, 0)]);
        let mut list = vec![0, 0x16, 0, 0x10, 0, 0, 0, 0];
        list.extend_from_slice(&9u64.to_be_bytes());
        list.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0]);
        let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
        on.lab.command(&unmap, &list).unwrap();
        on.holds(&[(4, 0x77), (5, 0), (9, 0)]);
    });
}

#[test]
fn no_write_falls_between_a_compare_and_its_write() {
    // Two nexuses count in one block, with nothing but COMPARE AND WRITE.
    const ROUNDS: u32 = 200;
    let on = OnFile::new(512);
    let counter = |lab: &Lab| lab.command(&cdb16(0x88, 0, 0, 1), &[]).unwrap();
    on.lab.command(&cdb16(0x8a, 0, 0, 1), &[0; 512]).unwrap();
    let count = |lab: &Lab| {
        for _ in 0..ROUNDS {
            loop {
                let now = counter(lab);
                let mut next = now.clone();
                let value = u32::from_be_bytes([now[0], now[1], now[2], now[3]]);
                next[..4].copy_from_slice(&(value + 1).to_be_bytes());
                let mut cdb = cdb16(0x89, 0, 0, 0);
                cdb[13] = 1;
                match lab.command(&cdb, &[now, next].concat()) {
                    Ok(_) => break,
                    Err(sense) => assert_eq!(sense.key, 0xe),
                }
            }
        }
    };
    let unit = on.lab.unit.with_disk(on.lab.unit.disk().clone());
    let nexus = unit.connect(&name());
    nexus.take();
    let other = Lab { unit, nexus };
    std::thread::scope(|scope| {
        scope.spawn(|| count(&other));
        count(&on.lab);
    });
    assert_eq!(counter(&on.lab)[..4], (2 * ROUNDS).to_be_bytes());
}

#[test]
fn an_atomic_write_comes_whole_and_only_where_the_disk_promises_it() {
    let ram = |block_bytes| {
        let disk = disk::Ram::new(4 << 20).with_block_bytes(block_bytes, block_bytes);
        Lab::shaped(Arc::new(disk), Shape::default())
    };
    for lab in [ram(512), ram(4096)] {
        let write = |lba, count| {
            let mut cdb = cdb16(0x9c, 0, lba, 0);
            cdb[12..14].copy_from_slice(&u16::to_be_bytes(count));
            cdb
        };
        let admit = |cdb: &[u8]| lab.unit.admit(&lab.nexus, cdb).map_err(sense_of);
        let blocks = lab.unit.block_count();
        assert!(admit(&write(0, 256)).is_ok() && admit(&write(blocks, 0)).is_ok());
        let too_long = admit(&write(0, 257)).unwrap_err();
        assert_eq!(too_long, Sense::invalid_cdb_field(12, 7));
        let outside = admit(&write(blocks - 255, 256)).unwrap_err();
        assert_eq!(outside, Sense::LBA_OUT_OF_RANGE);
        let mut split = write(0, 4);
        split[11] = 2;
        assert!(admit(&split).is_err());
        let data = vec![7; usize::try_from(3 * lab.unit.block_bytes()).unwrap()];
        lab.command(&write(5, 3), &data).unwrap();
        assert_eq!(lab.command(&read10(5, 3), &[]), Ok(data));
    }
    let on = OnFile::new(512);
    let refused = on.lab.command(&cdb16(0x9c, 0, 0, 1), &on.block(1));
    assert_eq!(refused, Err(Sense::INVALID_OPCODE));
}
