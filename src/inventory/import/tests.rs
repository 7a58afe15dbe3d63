//! Tests of `import`.

use std::os::unix::fs::{FileExt, MetadataExt};

use sha2::{Digest, Sha256};

use super::*;
use crate::inventory::image::{HOLE_BYTES, crcs, write_sparse};
use crate::inventory::tests::Site;

/// A file in the site's directory.
fn source(site: &Site, name: &str, bytes: &[u8]) -> PathBuf {
    let path = site.directory().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn refusal(site: &Site, source: &Path) -> String {
    let refusal = site.import_and_wait("debian", source).unwrap_err();
    assert!(site.images().is_empty());
    let left = fs::read_dir(site.data().join("images")).unwrap().count();
    assert_eq!(left, 0, "nothing is left");
    refusal
}

#[test]
fn an_import_has_the_bytes_the_sha256_and_the_mode_it_should() {
    let site = Site::new();
    let bytes: Vec<u8> = (0..3_000_000_u32)
        .flat_map(u32::to_le_bytes)
        .take(2_500_096)
        .collect();
    let image = site
        .import_and_wait("debian", &source(&site, "a.raw", &bytes))
        .unwrap();
    assert_eq!(fs::read(image.disk_path()).unwrap(), bytes);
    assert_eq!(image.size_bytes, 2_500_096);
    assert_eq!(image.sha256, <[u8; 32]>::from(Sha256::digest(&bytes)));
    let mode = fs::metadata(image.disk_path()).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o444);
}

#[test]
fn an_image_has_a_crc_for_each_mebibyte() {
    let site = Site::new();
    let bytes = [
        vec![1; CRC_CHUNK_BYTES],
        vec![0; CRC_CHUNK_BYTES],
        vec![2; 512],
    ]
    .concat();
    let image = site
        .import_and_wait("debian", &source(&site, "a.raw", &bytes))
        .unwrap();
    let expected: Vec<u32> = bytes.chunks(CRC_CHUNK_BYTES).map(crc32c::crc32c).collect();
    assert_eq!(crcs(&image), expected);
}

#[test]
fn a_size_that_is_no_multiple_of_512_is_filled_up_with_zeros() {
    let site = Site::new();
    let image = site
        .import_and_wait("debian", &source(&site, "a.raw", &[7; 700]))
        .unwrap();
    let bytes = fs::read(image.disk_path()).unwrap();
    assert_eq!(bytes.len(), 1024);
    assert_eq!(bytes[..700], [7; 700]);
    assert_eq!(bytes[700..], [0; 324]);
    assert_eq!(image.sha256, <[u8; 32]>::from(Sha256::digest(&bytes)));
}

#[test]
fn zeros_take_no_space_whether_holes_or_written() {
    let site = Site::new();
    let path = site.directory().join("a.raw");
    let file = File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(&[1; 4096], 20 << 20).unwrap();
    file.write_all_at(&vec![0; 8 << 20], 40 << 20).unwrap();
    drop(file);
    let image = site.import_and_wait("debian", &path).unwrap();
    assert_eq!(image.size_bytes, 64 << 20);
    let mut bytes = vec![0; 64 << 20];
    bytes[20 << 20..(20 << 20) + 4096].fill(1);
    assert_eq!(image.sha256, <[u8; 32]>::from(Sha256::digest(&bytes)));
    assert!(fs::read(image.disk_path()).unwrap() == bytes);
    // Where blocks are shared with the source, so are its written zeros.
    let stored_bytes = image.stored_bytes();
    assert!(stored_bytes < 9 << 20, "{stored_bytes}");
}

#[test]
fn runs_of_data_between_zeros_land_where_they_belong() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let mut chunk = vec![0_u8; 10 * HOLE_BYTES + 100];
    for block in [0, 1, 4, 9, 10] {
        let end = chunk.len().min((block + 1) * HOLE_BYTES);
        chunk[block * HOLE_BYTES..end].fill(0xa0 + u8::try_from(block).unwrap());
    }
    let disk = File::create_new(&path).unwrap();
    disk.set_len(3 * HOLE_BYTES as u64 + chunk.len() as u64)
        .unwrap();
    let written = write_sparse(&disk, 3 * HOLE_BYTES as u64, &chunk).unwrap();
    assert_eq!(written, 4 * HOLE_BYTES as u64 + 100);
    assert!(fs::read(&path).unwrap()[3 * HOLE_BYTES..] == chunk[..]);
}

#[test]
fn a_format_that_is_not_read_is_refused_with_the_command_that_converts_it() {
    let site = Site::new();
    let refusal = refusal(&site, &source(&site, "a.vmdk", b"KDMV and more of it"));
    assert!(
        refusal.contains("qemu-img convert -f vmdk -O raw"),
        "{refusal}"
    );
}

#[test]
fn a_damaged_disk_file_is_refused_with_what_is_wrong_in_it() {
    let site = Site::new();
    let mut qcow2 = vec![0; 4096];
    qcow2[..4].copy_from_slice(b"QFI\xfb");
    let refusal = refusal(&site, &source(&site, "a.qcow2", &qcow2));
    assert!(
        refusal.contains("a.qcow2: version (at byte 4)"),
        "{refusal}"
    );
}

/// Bytes of a disk of 12 MiB with data, and nothing, in many places.
fn some_disk() -> (Vec<u8>, disk::Ram) {
    let mut bytes = vec![0; 12 << 20];
    for (at, length) in [
        (0, 512),
        (70_000, 3000),
        (5 << 20, 2 << 20),
        (11 << 20, 512),
    ] {
        bytes[at..at + length].fill(0x5a);
    }
    (bytes.clone(), disk::Ram::with_contents(bytes))
}

fn not_stopped(_done: u64) -> std::ops::ControlFlow<()> {
    std::ops::ControlFlow::Continue(())
}

#[test]
fn every_format_becomes_the_disk_it_holds() {
    let site = Site::new();
    let (bytes, ram) = some_disk();
    let formats = [
        disk::NewFormat::VhdFixed,
        disk::NewFormat::VhdDynamic,
        disk::NewFormat::VhdxDynamic,
    ];
    let mut sources = Vec::new();
    for (number, format) in formats.into_iter().enumerate() {
        let path = site.directory().join(format!("{number}"));
        let new = disk::NewDisk {
            format,
            size_bytes: 12 << 20,
            logical_block_bytes: 512,
        };
        let made = disk::create(&path, &new).unwrap();
        disk::copy(&ram, &*made, &mut not_stopped).unwrap();
        sources.push(path);
    }
    sources.push(site.directory().join("a.qcow2"));
    disk::export_qcow2(&ram, &sources[3], &mut not_stopped).unwrap();
    for path in sources {
        let image = site.import_and_wait("debian", &path).unwrap();
        assert!(fs::read(image.disk_path()).unwrap() == bytes, "{path:?}");
        assert_eq!(image.sha256, <[u8; 32]>::from(Sha256::digest(&bytes)));
        assert!(image.stored_bytes() < 4 << 20, "{}", image.stored_bytes());
    }
}

#[test]
fn a_disk_with_other_blocks_than_an_image_has_is_refused() {
    let site = Site::new();
    let path = site.directory().join("a.vhdx");
    let new = disk::NewDisk {
        format: disk::NewFormat::VhdxDynamic,
        size_bytes: 12 << 20,
        logical_block_bytes: 4096,
    };
    drop(disk::create(&path, &new).unwrap());
    assert!(refusal(&site, &path).contains("blocks of 4096 bytes"));
}

/// Imports a stream that came in pieces.
fn import_stream(site: &Site, pieces: &[&[u8]]) -> Result<Arc<Image>, String> {
    let said = |e: Error| e.to_string();
    let mut spool = site.spool("standard input", Becomes::Image).map_err(said)?;
    for piece in pieces {
        spool.write(piece).map_err(said)?;
    }
    spool.finish().map_err(said)?;
    let request = ImportRequest {
        name: Name::parse("debian").unwrap(),
        origin: Origin::Stream(spool),
        comment: String::new(),
    };
    let job = site.start_import(request).map_err(said)?;
    match site.ended(job.id)? {
        Outcome::Image(image) => Ok(image),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_stream_becomes_an_image_and_leaves_nothing_else() {
    let site = Site::new();
    let (bytes, _) = some_disk();
    let pieces: Vec<&[u8]> = bytes.chunks(777_777).collect();
    let image = import_stream(&site, &pieces).unwrap();
    assert!(fs::read(image.disk_path()).unwrap() == bytes);
    assert!(image.stored_bytes() < 4 << 20, "{}", image.stored_bytes());
    let mode = fs::metadata(image.disk_path()).unwrap().mode();
    assert_eq!(mode & 0o777, 0o444);
    // The image's directory is all there is.
    assert_eq!(fs::read_dir(site.data().join("images")).unwrap().count(), 1);
}

#[test]
fn a_stream_of_another_format_becomes_the_disk_it_holds() {
    let site = Site::new();
    let (bytes, ram) = some_disk();
    let path = site.directory().join("a.qcow2");
    disk::export_qcow2(&ram, &path, &mut not_stopped).unwrap();
    let image = import_stream(&site, &[&fs::read(&path).unwrap()]).unwrap();
    assert!(fs::read(image.disk_path()).unwrap() == bytes);
    assert_eq!(fs::read_dir(site.data().join("images")).unwrap().count(), 1);
}

#[test]
fn a_stream_that_is_no_disk_leaves_nothing() {
    let site = Site::new();
    let gzip = [b"\x1f\x8b\x08".as_slice(), &[7; 2 << 20]].concat();
    for (pieces, what) in [
        (
            &[gzip.as_slice()][..],
            "`zcat FILE.gz | diskless image import NAME -`",
        ),
        (&[][..], "standard input is empty"),
        (&[b"KDMV".as_slice()][..], "VMDK"),
    ] {
        let refusal = import_stream(&site, pieces).unwrap_err();
        assert!(refusal.contains(what), "{refusal}");
        assert_eq!(fs::read_dir(site.data().join("images")).unwrap().count(), 0);
    }
}

#[test]
fn a_stream_there_is_no_room_for_is_refused() {
    let site = Site::new();
    let spool = site.spool("standard input", Becomes::Image).unwrap();
    let refusal = spool.require_room(1 << 60).unwrap_err().to_string();
    assert!(
        refusal.contains("no space left for standard input"),
        "{refusal}"
    );
    spool.require_room(1).unwrap();
}

#[test]
fn what_is_no_disk_image_is_refused_by_one_sentence() {
    let site = Site::new();
    let empty = source(&site, "empty.raw", b"");
    assert!(refusal(&site, &empty).contains("is empty"));
    assert!(refusal(&site, site.directory()).contains("neither a file nor a block device"));
    assert!(refusal(&site, Path::new("/nowhere/a.raw")).contains("No such file"));
    assert!(refusal(&site, Path::new("a.raw")).contains("must begin with"));
    assert!(refusal(&site, Path::new("/dev/null")).contains("neither"));
}

#[test]
fn a_source_that_changes_meanwhile_is_refused() {
    let site = Site::new();
    let path = source(&site, "a.raw", &[1; 4096]);
    let open = Source::open(&path).unwrap();
    open.require_unchanged().unwrap();
    fs::write(&path, [2; 8192]).unwrap();
    let refusal = open.require_unchanged().unwrap_err().to_string();
    assert!(refusal.contains("changed while it was read"), "{refusal}");
    fs::write(&path, [2; 100]).unwrap();
    assert!(open.read(0, &mut [0; 4096]).is_err());
}

#[test]
fn a_cancelled_import_leaves_nothing() {
    let site = Site::new();
    let path = site.directory().join("a.raw");
    let file = File::create(&path).unwrap();
    file.set_len(64 << 30).unwrap();
    let started = site
        .start_import(ImportRequest {
            name: Name::parse("debian").unwrap(),
            origin: Origin::File(path),
            comment: String::new(),
        })
        .unwrap();
    site.cancel_job(started.id).unwrap();
    assert_eq!(site.ended(started.id).unwrap_err(), "cancelled");
    assert_eq!(fs::read_dir(site.data().join("images")).unwrap().count(), 0);
}

#[test]
fn an_interrupted_import_is_cleared_away_at_the_next_start() {
    let mut site = Site::new();
    let left = site.data().join("images/.tmp-1");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("disk.raw"), [1; 512]).unwrap();
    site.restart();
    assert!(!left.exists());
}

#[test]
fn an_image_survives_a_restart_with_its_facts() {
    let mut site = Site::new();
    let image = site.new_image("debian");
    site.restart();
    assert_eq!(site.images(), [image]);
}

#[test]
fn imports_of_one_name_at_once_become_versions_one_after_the_other() {
    let site = Site::new();
    let sources = [
        source(&site, "a.raw", &[1; 4096]),
        source(&site, "b.raw", &[2; 4096]),
    ];
    std::thread::scope(|scope| {
        for source in &sources {
            scope.spawn(|| site.import_and_wait("debian", source).unwrap());
        }
    });
    let versions: Vec<u32> = site.images().iter().map(|image| image.version).collect();
    assert_eq!(versions, [1, 2]);
    assert_ne!(site.images()[0].sha256, site.images()[1].sha256);
}
