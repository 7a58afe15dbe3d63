//! File identifier and the two headers (MS-VHDX 2.2.1 and 2.2.2).
//!
//! Of the two headers the valid one with the greater sequence number counts.
//! An update writes the other one and makes it durable, so that one is whole
//! at any moment.

use uuid::Uuid;

use super::source::{Source, checksum, guid_at, put, u16_at, u32_at, u64_at};
use crate::OpenError;
use crate::files::File;

/// "Signature" of the file identifier.
const FILE_SIGNATURE: &[u8; 8] = b"vhdxfile";

/// Where the two headers lie.
const SLOTS: [u64; 2] = [64 << 10, 128 << 10];

/// Bytes of a header that its checksum covers.
const HEADER_BYTES: usize = 4096;

/// The longest log that is read; every known writer makes one of 1 MiB.
const LOG_BYTES_MAX: u32 = 64 << 20;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) sequence: u64,
    /// Changes whenever somebody begins to write the file.
    pub(super) file_write: Uuid,
    /// Changes before the disk's contents do; children hold it.
    pub(super) data_write: Uuid,
    /// What the log's entries are marked with; nil: no log to replay.
    pub(super) log: Uuid,
    pub(super) log_bytes: u32,
    pub(super) log_offset: u64,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_BYTES]) -> Option<Header> {
        let valid = &bytes[..4] == b"head" && u32_at(bytes, 4) == checksum(bytes);
        valid.then(|| Header {
            sequence: u64_at(bytes, 8),
            file_write: guid_at(bytes, 16),
            data_write: guid_at(bytes, 32),
            log: guid_at(bytes, 48),
            log_bytes: u32_at(bytes, 68),
            log_offset: u64_at(bytes, 72),
        })
    }

    fn emit(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        put(&mut bytes, 0, b"head");
        put(&mut bytes, 8, &self.sequence.to_le_bytes());
        put(&mut bytes, 16, &self.file_write.to_bytes_le());
        put(&mut bytes, 32, &self.data_write.to_bytes_le());
        put(&mut bytes, 48, &self.log.to_bytes_le());
        put(&mut bytes, 64, &0_u16.to_le_bytes()); // log version
        put(&mut bytes, 66, &1_u16.to_le_bytes()); // version
        put(&mut bytes, 68, &self.log_bytes.to_le_bytes());
        put(&mut bytes, 72, &self.log_offset.to_le_bytes());
        let crc = checksum(&bytes);
        put(&mut bytes, 4, &crc.to_le_bytes());
        bytes
    }
}

/// The header that counts, and which of the two it is.
#[derive(Debug)]
pub(super) struct Headers {
    pub(super) current: Header,
    slot: usize,
}

impl Headers {
    /// Reads identifier and headers of a file.
    pub(super) fn open(source: &Source) -> Result<Headers, OpenError> {
        let mut signature = [0; 8];
        source.fetch("file type identifier", 0, &mut signature)?;
        if &signature != FILE_SIGNATURE {
            return Err(source.malformed("file type identifier", 0, "not `vhdxfile`"));
        }
        let mut found: Option<Headers> = None;
        for (slot, offset) in SLOTS.into_iter().enumerate() {
            let mut bytes = [0; HEADER_BYTES];
            source.fetch("header", offset, &mut bytes)?;
            let Some(current) = Header::parse(&bytes) else {
                continue;
            };
            if found
                .as_ref()
                .is_none_or(|f| current.sequence > f.current.sequence)
            {
                let version = u16_at(&bytes, 66);
                let log_version = u16_at(&bytes, 64);
                if version != 1 {
                    return Err(source.unsupported(format!("VHDX version {version}")));
                }
                if log_version != 0 && !current.log.is_nil() {
                    return Err(source.unsupported(format!("VHDX log version {log_version}")));
                }
                found = Some(Headers { current, slot });
            }
        }
        let headers = found.ok_or_else(|| {
            let reason = "neither of the two headers has a valid checksum";
            source.malformed("header", SLOTS[0], reason)
        })?;
        headers.check_log(source)?;
        Ok(headers)
    }

    fn check_log(&self, source: &Source) -> Result<(), OpenError> {
        let header = &self.current;
        let at = SLOTS[self.slot];
        let length = header.log_bytes;
        if length == 0 || !length.is_multiple_of(1 << 20) || length > LOG_BYTES_MAX {
            let reason = format!("{length} is not 1 to 64 MiB");
            return Err(source.malformed("log length", at + 68, reason));
        }
        let offset = header.log_offset;
        let end = offset.checked_add(u64::from(length));
        let fits = end.is_some_and(|end| end <= source.length());
        if offset < 1 << 20 || !offset.is_multiple_of(1 << 20) || !fits {
            let reason = format!("{offset} is no multiple of 1 MiB inside the file");
            return Err(source.malformed("log offset", at + 72, reason));
        }
        Ok(())
    }

    /// Changes the header: writes it, one sequence number on, over the older
    /// copy and makes it durable; then the same over the other.
    pub(super) fn update(
        &mut self,
        file: &File,
        change: impl FnOnce(&mut Header),
    ) -> std::io::Result<()> {
        let mut header = self.current.clone();
        change(&mut header);
        for _ in SLOTS {
            header.sequence = header.sequence.saturating_add(1);
            let slot = 1 - self.slot;
            file.write_all_at(&header.emit(), SLOTS[slot])?;
            file.sync_data()?;
            self.current = header.clone();
            self.slot = slot;
        }
        Ok(())
    }
}

/// The program that made the file, as its identifier says.
pub(super) fn creator(source: &Source) -> Option<String> {
    let mut name = [0; 512];
    source.read_exact_at(&mut name, 8).ok()?;
    let units = name.chunks_exact(2).map(|unit| u16_at(unit, 0));
    let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
    let name = String::from_utf16_lossy(&units);
    // It may say anything, and an operator's terminal is to show it.
    let name: String = name.chars().filter(|c| !c.is_control()).collect();
    (!name.is_empty()).then_some(name)
}

/// Writes identifier and both headers of a new file.
pub(super) fn create(file: &File, header: &Header) -> std::io::Result<()> {
    let mut identifier = [0; 520];
    put(&mut identifier, 0, FILE_SIGNATURE);
    let creator: Vec<u8> = "diskless"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    put(&mut identifier, 8, &creator);
    file.write_all_at(&identifier, 0)?;
    let mut header = header.clone();
    for offset in SLOTS {
        file.write_all_at(&header.emit(), offset)?;
        header.sequence += 1;
    }
    Ok(())
}
