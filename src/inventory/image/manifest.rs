//! What lies beside the disk of an image's version: its manifest, and the
//! CRC32C of each MiB.
//!
//! `manifest` is JSON. `crc32c` has 4 bytes for each MiB, little-endian, so that
//! a disk of 64 TiB needs no manifest of half a GiB: the CRC, combined (xor)
//! with that of a MiB of zeros, so that what is all zeros is a hole here too.

use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Image, damage, version_of};
use crate::inventory::{Error, Name, Result};

/// How much of the disk one CRC covers.
pub(crate) const CRC_CHUNK_BYTES: usize = 1024 * 1024;

/// Name of the manifest inside a version's directory.
pub(super) const MANIFEST_FILE: &str = "manifest";

/// Name of the file of CRCs inside a version's directory.
const CHECKSUMS_FILE: &str = "crc32c";

/// Format this program writes. In format 1 the CRCs stand in the manifest.
const MANIFEST_FORMAT: u32 = 2;

/// Largest manifest read: in format 1, that of a disk of 4 TiB.
const MANIFEST_MAX_BYTES: u64 = 32 * 1024 * 1024;

/// The manifest as it lies in the file.
#[derive(Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Of this file.
    format: u32,
    name: String,
    version: u32,
    uuid: Uuid,
    size_bytes: u64,
    logical_block_bytes: u32,
    parent: Option<u32>,
    sha256: String,
    crc32c_chunk_bytes: u64,
    /// In format 2 the CRC32C of the file of CRCs, in 1 all CRCs, in hex.
    crc32c: String,
    comment: String,
    created: Timestamp,
    /// What a boot of it in a test machine showed, once there was one.
    boot_test: Option<String>,
}

impl Manifest {
    /// That of an image about to be published.
    pub(super) fn of(image: &Image, checksums: Checksums) -> Manifest {
        Manifest {
            format: MANIFEST_FORMAT,
            name: image.name.to_string(),
            version: image.version,
            uuid: image.uuid,
            size_bytes: image.size_bytes,
            logical_block_bytes: image.logical_block_bytes,
            parent: image.parent,
            sha256: hex(&image.sha256),
            crc32c_chunk_bytes: CRC_CHUNK_BYTES as u64,
            crc32c: format!("{:08x}", checksums.0),
            comment: image.comment.clone(),
            created: image.created,
            boot_test: None,
        }
    }

    /// Writes it, synced, into `directory`.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(MANIFEST_FILE);
        let write = || -> io::Result<()> {
            let mut file = File::create_new(&path)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.write_all(b"\n")?;
            file.sync_all()
        };
        write().map_err(|e| Error::Failed(format!("cannot write {}: {e}", path.display())))
    }

    fn read(directory: &Path) -> Result<Manifest> {
        let path = directory.join(MANIFEST_FILE);
        let read = || -> io::Result<Manifest> {
            let mut text = Vec::new();
            File::open(&path)?
                .take(MANIFEST_MAX_BYTES)
                .read_to_end(&mut text)?;
            Ok(serde_json::from_slice(&text)?)
        };
        read().map_err(|e| Error::Failed(format!("cannot read {}: {e}", path.display())))
    }
}

/// Reads one version's manifest and holds it against what lies there.
pub(super) fn read_image(name: &Name, directory: &Path) -> Result<Image> {
    let path = directory.join(MANIFEST_FILE);
    let manifest = Manifest::read(directory)?;
    let wrong = |what: &str| Error::Failed(format!("{}: {what}", path.display()));
    if !(1..=MANIFEST_FORMAT).contains(&manifest.format) {
        return Err(wrong("written by a newer diskless"));
    }
    if manifest.name != name.as_str() || Some(manifest.version) != version_of(directory) {
        return Err(wrong("is the manifest of another image or version"));
    }
    if manifest.logical_block_bytes == 0
        || !manifest
            .size_bytes
            .is_multiple_of(u64::from(manifest.logical_block_bytes))
    {
        return Err(wrong("the size is no multiple of the block size"));
    }
    if manifest.crc32c_chunk_bytes != CRC_CHUNK_BYTES as u64 {
        return Err(wrong("the CRCs are not of 1 MiB each"));
    }
    let image = Image {
        name: name.clone(),
        version: manifest.version,
        uuid: manifest.uuid,
        size_bytes: manifest.size_bytes,
        logical_block_bytes: manifest.logical_block_bytes,
        parent: manifest.parent,
        sha256: unhex(&manifest.sha256).ok_or_else(|| wrong("the sha256 is not one"))?,
        comment: manifest.comment,
        created: manifest.created,
        directory: directory.to_owned(),
        damage: Arc::new(damage::read(directory, manifest.size_bytes)),
    };
    let disk = image.disk_path();
    let size_bytes = fs::metadata(&disk)
        .map_err(|e| Error::Failed(format!("cannot read {}: {e}", disk.display())))?
        .len();
    if size_bytes != image.size_bytes {
        return Err(wrong(&format!(
            "disk.raw has {size_bytes} bytes, published with {}",
            image.size_bytes
        )));
    }
    Ok(image)
}

/// Of a whole MiB of zeros.
static CRC_OF_ZEROS: LazyLock<u32> = LazyLock::new(|| crc32c::crc32c(&vec![0; CRC_CHUNK_BYTES]));

/// Bytes of CRCs written or left out at once.
const PAGE_BYTES: usize = 4096;

/// The CRCs of an image, as they are being written.
pub(crate) struct ChecksumsWriter {
    path: PathBuf,
    file: File,
    /// What is not written yet; it begins at `offset`.
    page: Vec<u8>,
    offset: u64,
    crc: u32,
}

/// The file of CRCs, written and synced: its own CRC32C.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checksums(u32);

impl ChecksumsWriter {
    /// Begins the file in `directory`.
    pub(crate) fn create(directory: &Path) -> Result<ChecksumsWriter> {
        let path = directory.join(CHECKSUMS_FILE);
        let file = File::create_new(&path).map_err(|e| unwritten(&path, &e))?;
        Ok(ChecksumsWriter {
            path,
            file,
            page: Vec::with_capacity(PAGE_BYTES),
            offset: 0,
            crc: 0,
        })
    }

    /// The next MiB's.
    pub(crate) fn push(&mut self, crc32c: u32) -> Result<()> {
        let stored = crc32c ^ *CRC_OF_ZEROS;
        self.page.extend_from_slice(&stored.to_le_bytes());
        if self.page.len() == PAGE_BYTES {
            self.write_page()?;
        }
        Ok(())
    }

    /// Ends the file, durably.
    pub(crate) fn finish(mut self) -> Result<Checksums> {
        self.write_page()?;
        self.file
            .set_len(self.offset)
            .and_then(|()| self.file.sync_all())
            .map_err(|e| unwritten(&self.path, &e))?;
        Ok(Checksums(self.crc))
    }

    fn write_page(&mut self) -> Result<()> {
        self.crc = crc32c::crc32c_append(self.crc, &self.page);
        if self.page.iter().any(|byte| *byte != 0) {
            self.file
                .write_all_at(&self.page, self.offset)
                .map_err(|e| unwritten(&self.path, &e))?;
        }
        self.offset += self.page.len() as u64;
        self.page.clear();
        Ok(())
    }
}

fn unwritten(path: &Path, error: &io::Error) -> Error {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::Failed(format!(
            "no space left to write {}: nothing was kept",
            path.display()
        )),
        _ => Error::Failed(format!("cannot write {}: {error}", path.display())),
    }
}

/// The CRCs of a published image, one after the other.
pub(super) struct ChecksumsReader {
    path: PathBuf,
    source: Box<dyn Read>,
    /// What is combined with each.
    combined: u32,
}

impl ChecksumsReader {
    /// Opens those of `image`; `None` when they are not what was published.
    pub(super) fn open(image: &Image) -> Result<Option<ChecksumsReader>> {
        let manifest = Manifest::read(&image.directory)?;
        if manifest.format == 1 {
            let crcs: Option<Vec<u8>> = (0..manifest.crc32c.len() / 8)
                .map(|at| manifest.crc32c.get(8 * at..8 * at + 8))
                .map(|text| u32::from_str_radix(text?, 16).ok())
                .flat_map(|crc| match crc {
                    Some(crc) => crc.to_le_bytes().map(Some),
                    None => [None; 4],
                })
                .collect();
            return Ok(crcs.map(|crcs| ChecksumsReader {
                path: image.directory.join(MANIFEST_FILE),
                source: Box::new(io::Cursor::new(crcs)),
                combined: 0,
            }));
        }
        let path = image.directory.join(CHECKSUMS_FILE);
        let unread = |e: io::Error| Error::Failed(format!("cannot read {}: {e}", path.display()));
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(unread(e)),
        };
        if format!("{:08x}", crc_of(&mut file).map_err(unread)?) != manifest.crc32c {
            return Ok(None);
        }
        file.seek(SeekFrom::Start(0)).map_err(unread)?;
        Ok(Some(ChecksumsReader {
            path,
            source: Box::new(BufReader::new(file)),
            combined: *CRC_OF_ZEROS,
        }))
    }

    /// The next MiB's.
    pub(super) fn next(&mut self) -> Result<u32> {
        let mut bytes = [0; 4];
        self.source.read_exact(&mut bytes).map_err(|e| {
            Error::Failed(format!("{}: the CRCs end early: {e}", self.path.display()))
        })?;
        Ok(u32::from_le_bytes(bytes) ^ self.combined)
    }
}

fn crc_of(file: &mut File) -> io::Result<u32> {
    let mut buffer = vec![0; 64 * 1024];
    let mut crc = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(crc),
            bytes => crc = crc32c::crc32c_append(crc, &buffer[..bytes]),
        }
    }
}

/// Bytes as hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// The CRCs of an image, one for each MiB.
#[cfg(test)]
pub(crate) fn crcs(image: &Image) -> Vec<u32> {
    let mut reader = ChecksumsReader::open(image).unwrap().unwrap();
    let count = image.size_bytes.div_ceil(CRC_CHUNK_BYTES as u64);
    (0..count).map(|_| reader.next().unwrap()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::inventory::tests::Site;

    #[test]
    fn checksums_read_back_as_they_were_written() {
        let site = Site::new();
        let image = site.new_image("debian");
        assert_eq!(crcs(&image), [crc32c::crc32c(&[0x5a; CRC_CHUNK_BYTES])]);
    }

    #[test]
    fn checksums_of_zeros_take_no_space() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = ChecksumsWriter::create(directory.path()).unwrap();
        // Those of a disk of 256 GiB with one MiB written.
        for at in 0..256 * 1024 {
            let crc = if at == 70_000 { 1 } else { *CRC_OF_ZEROS };
            writer.push(crc).unwrap();
        }
        writer.finish().unwrap();
        let file = fs::metadata(directory.path().join(CHECKSUMS_FILE)).unwrap();
        assert_eq!(file.len(), 1024 * 1024);
        assert!(file.blocks() * 512 <= 64 * 1024, "{}", file.blocks() * 512);
    }

    #[test]
    fn checksums_that_are_damaged_are_not_believed() {
        let site = Site::new();
        let image = site.new_image("debian");
        fs::write(image.directory.join(CHECKSUMS_FILE), [0; 4]).unwrap();
        assert!(ChecksumsReader::open(&image).unwrap().is_none());
        fs::remove_file(image.directory.join(CHECKSUMS_FILE)).unwrap();
        assert!(ChecksumsReader::open(&image).unwrap().is_none());
    }

    #[test]
    fn a_manifest_of_format_1_has_its_checksums_inside() {
        let mut site = Site::new();
        let image = site.new_image("debian");
        let path = image.directory.join(MANIFEST_FILE);
        let mut manifest = Manifest::read(&image.directory).unwrap();
        manifest.format = 1;
        manifest.crc32c = "0badcafe".into();
        fs::write(&path, serde_json::to_vec(&manifest).unwrap()).unwrap();
        fs::remove_file(image.directory.join(CHECKSUMS_FILE)).unwrap();
        site.restart();
        assert_eq!(crcs(&site.images()[0]), [0x0bad_cafe]);
    }
}
