//! Metadata region (MS-VHDX 2.6): what the disk is.

use uuid::{Uuid, uuid};

use super::region::Region;
use super::source::{Source, guid_at, index, put, u16_at, u32_at, u64_at};
use crate::OpenError;

/// The largest disk of the format.
pub(super) const SIZE_BYTES_MAX: u64 = 64 << 40;

/// Where the items begin, behind the table of the region.
const ITEMS_AT: u32 = 64 << 10;

const ENTRIES_MAX: u16 = 2047;
const ITEM_BYTES_MAX: u32 = 1 << 20;

const FILE_PARAMETERS: Uuid = uuid!("CAA16737-FA36-4D43-B3B6-33F0AA44E76B");
const VIRTUAL_DISK_SIZE: Uuid = uuid!("2FA54224-CD1B-4876-B211-5DBED83BF4B8");
const VIRTUAL_DISK_ID: Uuid = uuid!("BECA12AB-B2E6-4523-93EF-C309E000C746");
const LOGICAL_SECTOR: Uuid = uuid!("8141BF1D-A96F-4709-BA47-F233A8FAAB5F");
const PHYSICAL_SECTOR: Uuid = uuid!("CDA348C7-445D-4471-9CC9-E9885251C556");
const PARENT_LOCATOR: Uuid = uuid!("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C");

/// The one type of parent locator there is.
const LOCATOR_TYPE: Uuid = uuid!("B04AEFB7-D19E-4A81-B789-25B8E9445913");

/// "IsVirtualDisk" and "IsRequired" of an item.
const VIRTUAL_DISK: u32 = 2;
const REQUIRED: u32 = 4;

/// What the items say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    pub(super) block_bytes: u32,
    /// "LeaveBlocksAllocated": a fixed disk.
    pub(super) is_fixed: bool,
    pub(super) size_bytes: u64,
    pub(super) disk_id: Uuid,
    pub(super) logical_bytes: u32,
    pub(super) physical_bytes: u32,
    /// Of a differencing disk.
    pub(super) parent: Option<Locator>,
    /// Where in the file size and locator stand.
    pub(super) size_at: u64,
    pub(super) locator_at: u64,
}

/// How a differencing disk names its parent (MS-VHDX 2.6.2.6): keys and
/// values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Locator {
    pub(super) entries: Vec<(String, String)>,
}

impl Locator {
    pub(super) fn value(&self, key: &str) -> Option<&str> {
        let found = self.entries.iter().find(|(name, _)| name == key)?;
        Some(&found.1)
    }

    /// The "DataWriteGuid"s that the parent may have.
    pub(super) fn linkages(&self) -> Vec<Uuid> {
        ["parent_linkage", "parent_linkage2"]
            .into_iter()
            .filter_map(|key| Uuid::parse_str(self.value(key)?).ok())
            .filter(|guid| !guid.is_nil())
            .collect()
    }

    /// The paths it gives, in the order in which they are to be tried.
    pub(super) fn paths(&self) -> Vec<String> {
        ["relative_path", "absolute_win32_path", "volume_path"]
            .into_iter()
            .filter_map(|key| self.value(key).map(str::to_owned))
            .collect()
    }

    fn parse(source: &Source, at: u64, bytes: &[u8]) -> Result<Locator, OpenError> {
        let refused = |offset: usize, reason: String| {
            source.malformed("parent locator", at + offset as u64, reason)
        };
        if bytes.len() < 20 {
            return Err(refused(0, format!("{} bytes hold none", bytes.len())));
        }
        let kind = guid_at(bytes, 0);
        if kind != LOCATOR_TYPE {
            let what = format!("the parent locator type {}", kind.braced());
            return Err(source.unsupported(what));
        }
        let count = usize::from(u16_at(bytes, 18));
        if 20 + count * 12 > bytes.len() {
            return Err(refused(18, format!("{count} entries do not fit")));
        }
        let mut entries = Vec::new();
        for entry in 0..count {
            let place = 20 + entry * 12;
            let text = |offset_at: usize, length_at: usize| {
                let offset = index(u32_at(bytes, offset_at).into());
                let length = usize::from(u16_at(bytes, length_at));
                let text = bytes.get(offset..offset.saturating_add(length));
                let text = text.filter(|_| length.is_multiple_of(2)).ok_or_else(|| {
                    let reason = format!("{length} bytes at {offset} of {}", bytes.len());
                    refused(offset_at, reason)
                })?;
                let units: Vec<u16> = text.chunks_exact(2).map(|c| u16_at(c, 0)).collect();
                let reason = |_| refused(offset_at, "no UTF-16".to_owned());
                String::from_utf16(&units).map_err(reason)
            };
            entries.push((text(place, place + 8)?, text(place + 4, place + 10)?));
        }
        Ok(Locator { entries })
    }

    pub(super) fn emit(&self) -> Vec<u8> {
        let mut bytes = vec![0; 20 + self.entries.len() * 12];
        put(&mut bytes, 0, &LOCATOR_TYPE.to_bytes_le());
        let count = u16::try_from(self.entries.len()).unwrap_or(u16::MAX);
        put(&mut bytes, 18, &count.to_le_bytes());
        for (entry, (key, value)) in self.entries.iter().enumerate() {
            let at = 20 + entry * 12;
            for (part, text) in [key, value].into_iter().enumerate() {
                let offset = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                let text: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
                let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
                put(&mut bytes, at + part * 4, &offset.to_le_bytes());
                put(&mut bytes, at + 8 + part * 2, &length.to_le_bytes());
                bytes.extend(text);
            }
        }
        bytes
    }
}

/// An entry of the table: where the item lies in the file, how long it is.
struct Item {
    at: u64,
    bytes: u32,
}

impl Metadata {
    /// Reads the table and the items it names.
    pub(super) fn open(source: &Source, region: Region) -> Result<Metadata, OpenError> {
        let mut table = vec![0; index(ITEMS_AT.into())];
        source.fetch("metadata table", region.offset, &mut table)?;
        if &table[..8] != b"metadata" {
            return Err(source.malformed("metadata table", region.offset, "no signature"));
        }
        let count = u16_at(&table, 10);
        if count > ENTRIES_MAX {
            let reason = format!("{count} entries, at most {ENTRIES_MAX} fit");
            return Err(source.malformed("metadata entry count", region.offset + 10, reason));
        }
        let mut items: [(Uuid, &'static str, Option<Item>); 6] = [
            (FILE_PARAMETERS, "file parameters", None),
            (VIRTUAL_DISK_SIZE, "virtual disk size", None),
            (VIRTUAL_DISK_ID, "virtual disk ID", None),
            (LOGICAL_SECTOR, "logical sector size", None),
            (PHYSICAL_SECTOR, "physical sector size", None),
            (PARENT_LOCATOR, "parent locator", None),
        ];
        for entry in 0..usize::from(count) {
            let at = 32 + entry * 32;
            let place = region.offset + at as u64;
            let id = guid_at(&table, at);
            let (offset, bytes) = (u32_at(&table, at + 16), u32_at(&table, at + 20));
            let flags = u32_at(&table, at + 24);
            let known = items
                .iter_mut()
                .find(|(guid, ..)| *guid == id && flags & 1 == 0);
            let Some((_, name, item)) = known else {
                if flags & REQUIRED != 0 {
                    let what = format!("the required metadata item {}", id.braced());
                    return Err(source.unsupported(what));
                }
                continue;
            };
            let inside = offset >= ITEMS_AT
                && bytes <= ITEM_BYTES_MAX
                && offset
                    .checked_add(bytes)
                    .is_some_and(|end| end <= region.bytes);
            if !inside {
                let reason = format!("{bytes} bytes at {offset} of a region of {}", region.bytes);
                return Err(source.malformed(name, place + 16, reason));
            }
            let found = Item {
                at: region.offset + u64::from(offset),
                bytes,
            };
            if item.replace(found).is_some() {
                return Err(source.malformed(name, place, "the item stands twice"));
            }
        }
        Metadata::read(source, region, items)
    }

    fn read(
        source: &Source,
        region: Region,
        items: [(Uuid, &'static str, Option<Item>); 6],
    ) -> Result<Metadata, OpenError> {
        let [parameters, size, id, logical, physical, parent] = items;
        let fetch = |(_, name, item): &(Uuid, &'static str, Option<Item>), bytes: usize| {
            let Some(item) = item else {
                return Err(source.malformed(name, region.offset, "the item is missing"));
            };
            if index(item.bytes.into()) < bytes {
                let reason = format!("{} bytes, {bytes} are needed", item.bytes);
                return Err(source.malformed(name, item.at, reason));
            }
            let mut value = vec![0; bytes];
            source.fetch(name, item.at, &mut value)?;
            Ok((value, item.at))
        };
        let (value, at) = fetch(&parameters, 8)?;
        let (block_bytes, flags) = (u32_at(&value, 0), u32_at(&value, 4));
        if !block_bytes.is_power_of_two() || !(1 << 20..=256 << 20).contains(&block_bytes) {
            let reason = format!("blocks of {block_bytes} bytes: 1 to 256 MiB, a power of two");
            return Err(source.malformed("file parameters", at, reason));
        }
        let sector = |item| {
            let (value, at) = fetch(item, 4)?;
            match u32_at(&value, 0) {
                bytes @ (512 | 4096) => Ok(bytes),
                other => Err(source.malformed(item.1, at, format!("{other}, not 512 or 4096"))),
            }
        };
        let (logical_bytes, physical_bytes) = (sector(&logical)?, sector(&physical)?);
        let (value, size_at) = fetch(&size, 8)?;
        let size_bytes = u64_at(&value, 0);
        let whole = size_bytes.is_multiple_of(logical_bytes.into());
        if size_bytes == 0 || size_bytes > SIZE_BYTES_MAX || !whole {
            let reason = format!("{size_bytes} bytes: whole sectors, at most 64 TiB");
            return Err(source.malformed("virtual disk size", size_at, reason));
        }
        let (value, _) = fetch(&id, 16)?;
        let disk_id = guid_at(&value, 0);
        let parent_at = parent.2.as_ref().map_or(0, |item| item.at);
        let parent = match (flags & 2 != 0, &parent.2) {
            (false, _) => None,
            (true, item) => {
                let bytes = item.as_ref().map_or(0, |item| index(item.bytes.into()));
                let (value, at) = fetch(&parent, bytes)?;
                Some(Locator::parse(source, at, &value)?)
            }
        };
        Ok(Metadata {
            block_bytes,
            is_fixed: flags & 1 != 0,
            size_bytes,
            disk_id,
            logical_bytes,
            physical_bytes: physical_bytes.max(logical_bytes),
            parent,
            size_at,
            locator_at: parent_at,
        })
    }

    /// The head of a metadata region that says this.
    pub(super) fn emit(&self) -> Vec<u8> {
        let flags = u32::from(self.is_fixed) | u32::from(self.parent.is_some()) << 1;
        let parameters = u64::from(self.block_bytes) | u64::from(flags) << 32;
        let mut items = vec![
            (FILE_PARAMETERS, REQUIRED, parameters.to_le_bytes().to_vec()),
            (
                VIRTUAL_DISK_SIZE,
                VIRTUAL_DISK | REQUIRED,
                self.size_bytes.to_le_bytes().to_vec(),
            ),
            (
                VIRTUAL_DISK_ID,
                VIRTUAL_DISK | REQUIRED,
                self.disk_id.to_bytes_le().to_vec(),
            ),
            (
                LOGICAL_SECTOR,
                VIRTUAL_DISK | REQUIRED,
                self.logical_bytes.to_le_bytes().to_vec(),
            ),
            (
                PHYSICAL_SECTOR,
                VIRTUAL_DISK | REQUIRED,
                self.physical_bytes.to_le_bytes().to_vec(),
            ),
        ];
        if let Some(parent) = &self.parent {
            items.push((PARENT_LOCATOR, REQUIRED, parent.emit()));
        }
        let mut bytes = vec![0; index(ITEMS_AT.into())];
        put(&mut bytes, 0, b"metadata");
        let count = u16::try_from(items.len()).unwrap_or(0);
        put(&mut bytes, 10, &count.to_le_bytes());
        for (entry, (id, flags, value)) in items.into_iter().enumerate() {
            let at = 32 + entry * 32;
            let offset = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
            put(&mut bytes, at, &id.to_bytes_le());
            put(&mut bytes, at + 16, &offset.to_le_bytes());
            put(&mut bytes, at + 20, &length.to_le_bytes());
            put(&mut bytes, at + 24, &flags.to_le_bytes());
            bytes.extend(value);
        }
        bytes
    }
}
