//! FAT12, FAT16 and FAT32 (Microsoft's "FAT: General Overview of On-Disk
//! Format", 1.03), with long names.

use crate::bytes::{text, u16_at, u32_at};
use crate::file::{Bytes, Place, Stretch, add_stretch};
use crate::file_system::{Entry, FileSystem, MAX_DIRECTORY_BYTES, Node, NodeKind, Search};
use crate::{Error, Volume};

/// A FAT file system.
pub(crate) struct Fat {
    volume: Volume,
    kind: Kind,
    cluster_bytes: u64,
    /// Where the first of its tables lies.
    table_at: u64,
    /// Where cluster 2 lies.
    data_at: u64,
    /// Clusters there are; they are numbered from 2.
    clusters: u32,
    root: Root,
    search: Search,
}

/// How many bits an entry of the table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Twelve,
    Sixteen,
    ThirtyTwo,
}

#[derive(Clone, Copy)]
enum Root {
    /// A stretch of its own, before the clusters.
    Fixed { at: u64, bytes: u64 },
    /// A chain of clusters.
    Chain(u32),
}

/// The root directory's node where it is no chain of clusters.
const FIXED_ROOT: u64 = 0;
const SECTOR_BYTES: usize = 512;
const ENTRY_BYTES: usize = 32;
/// Attributes of a directory's entry.
const VOLUME_ID: u8 = 0x08;
const DIRECTORY: u8 = 0x10;
const LONG_NAME: u8 = 0x0f;
/// A directory has at most so many bytes, by its specification.
const MAX_FAT_DIRECTORY_BYTES: u64 = 2 << 20;
/// The table is read in pieces of this length.
const PIECE_BYTES: u64 = 4096;

/// Fields of the first sector that are believed only together.
struct Parameters {
    sector_bytes: u64,
    cluster_sectors: u64,
    reserved: u64,
    tables: u64,
    root_entries: u64,
    sectors: u64,
    table_sectors: u64,
    is_32: bool,
}

impl Parameters {
    fn parse(sector: &[u8]) -> Option<Parameters> {
        if sector.len() < SECTOR_BYTES || sector[510..512] != [0x55, 0xaa] {
            return None;
        }
        let number = |small: usize, large: usize| match u16_at(sector, small) {
            0 => u64::from(u32_at(sector, large)),
            small => u64::from(small),
        };
        let parameters = Parameters {
            sector_bytes: u64::from(u16_at(sector, 11)),
            cluster_sectors: u64::from(sector[13]),
            reserved: u64::from(u16_at(sector, 14)),
            tables: u64::from(sector[16]),
            root_entries: u64::from(u16_at(sector, 17)),
            sectors: number(19, 32),
            table_sectors: number(22, 36),
            is_32: u16_at(sector, 22) == 0,
        };
        let is_jump = matches!(sector[0], 0xeb | 0xe9);
        let is_media = sector[21] == 0xf0 || sector[21] >= 0xf8;
        let is_sound = matches!(parameters.sector_bytes, 512 | 1024 | 2048 | 4096)
            && parameters.cluster_sectors.is_power_of_two()
            && parameters.reserved > 0
            && (1..=2).contains(&parameters.tables)
            && parameters.table_sectors > 0
            && parameters.sectors > 0;
        (is_jump && is_media && is_sound).then_some(parameters)
    }
}

/// UUID and label of a volume that begins like a FAT file system.
pub(crate) fn marks(front: &[u8]) -> Option<(String, String)> {
    let parameters = Parameters::parse(front)?;
    // The extended boot record follows the fields of its size.
    let at = if parameters.is_32 { 64 } else { 36 };
    if !matches!(front[at + 2], 0x28 | 0x29) {
        return Some((String::new(), String::new()));
    }
    let id = u32_at(front, at + 3);
    let label = match front[at + 2] {
        0x29 => text(&front[at + 7..at + 18]),
        _ => String::new(),
    };
    let label = match label.as_str() {
        "NO NAME" => String::new(),
        _ => label,
    };
    Some((format!("{:04X}-{:04X}", id >> 16, id & 0xffff), label))
}

fn damaged(reason: impl Into<String>) -> Error {
    Error::damaged("the FAT file system", reason)
}

impl Fat {
    pub(crate) fn open(volume: &Volume) -> Result<Fat, Error> {
        let mut sector = [0; SECTOR_BYTES];
        volume.read(0, &mut sector)?;
        let fields = Parameters::parse(&sector).ok_or_else(|| damaged("its first sector"))?;
        let root_bytes = fields.root_entries * ENTRY_BYTES as u64;
        let root_sectors = root_bytes.div_ceil(fields.sector_bytes);
        let before_data = fields.reserved + fields.tables * fields.table_sectors + root_sectors;
        let data_sectors = fields
            .sectors
            .checked_sub(before_data)
            .ok_or_else(|| damaged("BPB_TotSec is less than what lies before its data"))?;
        let clusters = u32::try_from(data_sectors / fields.cluster_sectors).unwrap_or(u32::MAX);
        let kind = match clusters {
            _ if fields.is_32 => Kind::ThirtyTwo,
            0..4085 => Kind::Twelve,
            _ => Kind::Sixteen,
        };
        let table_bytes = fields.table_sectors * fields.sector_bytes;
        let table_at = fields.reserved * fields.sector_bytes;
        // No table has entries for more clusters than it has room for.
        let entries = match kind {
            Kind::Twelve => table_bytes * 2 / 3,
            Kind::Sixteen => table_bytes / 2,
            Kind::ThirtyTwo => table_bytes / 4,
        };
        let room = u32::try_from(entries.saturating_sub(2)).unwrap_or(u32::MAX);
        let root = match kind {
            Kind::ThirtyTwo => Root::Chain(u32_at(&sector, 44)),
            _ => Root::Fixed {
                at: table_at + fields.tables * table_bytes,
                bytes: root_bytes,
            },
        };
        Ok(Fat {
            volume: volume.clone(),
            kind,
            cluster_bytes: fields.cluster_sectors * fields.sector_bytes,
            table_at,
            data_at: before_data * fields.sector_bytes,
            clusters: clusters.min(room),
            root,
            search: Search::new(),
        })
    }

    /// Where the bytes of a chain of clusters lie, for at most `bytes` bytes.
    fn chain(&self, first: u32, bytes: u64) -> Result<Vec<Stretch>, Error> {
        let mut stretches = Vec::new();
        let mut table = TablePiece::default();
        let mut cluster = first;
        let mut at = 0;
        while at < bytes {
            if cluster < 2 || cluster - 2 >= self.clusters {
                // An end where more should be, or a number beyond all.
                return Err(damaged(format!(
                    "the chain of cluster {first} ends or leaves it at cluster {cluster}"
                )));
            }
            // No file has more clusters than there are: a ring ends here.
            if at / self.cluster_bytes >= u64::from(self.clusters) {
                return Err(damaged(format!("the chain of cluster {first} is a ring")));
            }
            let next = Stretch {
                at,
                from: self.data_at + u64::from(cluster - 2) * self.cluster_bytes,
                bytes: self.cluster_bytes.min(bytes - at),
            };
            add_stretch(&mut stretches, next)?;
            at += self.cluster_bytes;
            if at < bytes {
                cluster = table.entry(self, cluster)?;
            }
        }
        Ok(stretches)
    }

    /// All of a directory; unlike a file's, its length is its chain's.
    fn directory(&self, directory: Node) -> Result<Vec<u8>, Error> {
        let too_long = || Error::TooMuch {
            what: "bytes of one FAT directory",
            limit: MAX_FAT_DIRECTORY_BYTES,
        };
        let first = match (directory.id, self.root) {
            (FIXED_ROOT, Root::Fixed { at, bytes }) => {
                let length = usize::try_from(bytes).map_err(|_| too_long())?;
                let mut whole = vec![0; length];
                self.search.spend(length)?;
                self.volume.read(at, &mut whole)?;
                return Ok(whole);
            }
            (FIXED_ROOT, Root::Chain(first)) => first,
            (id, _) => u32::try_from(id).unwrap_or(0),
        };
        let mut whole = Vec::new();
        let mut table = TablePiece::default();
        let mut cluster = first;
        while cluster >= 2 && cluster - 2 < self.clusters {
            let from = self.data_at + u64::from(cluster - 2) * self.cluster_bytes;
            let start = whole.len();
            let length = usize::try_from(self.cluster_bytes).map_err(|_| too_long())?;
            if (start + length) as u64 > MAX_FAT_DIRECTORY_BYTES.min(MAX_DIRECTORY_BYTES) {
                return Err(too_long());
            }
            whole.resize(start + length, 0);
            self.search.spend(length)?;
            self.volume.read(from, &mut whole[start..])?;
            // An entry that begins with zero is the last.
            if whole[start..]
                .chunks(ENTRY_BYTES)
                .any(|entry| entry[0] == 0)
            {
                break;
            }
            cluster = table.entry(self, cluster)?;
        }
        Ok(whole)
    }

    fn entries(&self, directory: Node) -> Result<Vec<(String, String, Node)>, Error> {
        if directory.kind != NodeKind::Directory {
            return Err(damaged("something that is no directory is searched"));
        }
        let whole = self.directory(directory)?;
        let mut found = Vec::new();
        let mut long = LongName::default();
        for entry in whole.chunks_exact(ENTRY_BYTES) {
            let attributes = entry[11];
            match entry[0] {
                0 => break,
                0xe5 => {
                    long = LongName::default();
                    continue;
                }
                _ if attributes & 0x3f == LONG_NAME => {
                    long.add(entry);
                    continue;
                }
                _ => {}
            }
            let long_name = std::mem::take(&mut long).whole(&entry[..11]);
            let short = short_name(entry);
            if attributes & VOLUME_ID != 0 || matches!(short.as_str(), "." | "..") {
                continue;
            }
            let high = match self.kind {
                Kind::ThirtyTwo => u64::from(u16_at(entry, 20)),
                _ => 0,
            };
            let node = Node {
                id: high << 16 | u64::from(u16_at(entry, 26)),
                kind: match attributes & DIRECTORY {
                    0 => NodeKind::File,
                    _ => NodeKind::Directory,
                },
                size_bytes: u64::from(u32_at(entry, 28)),
            };
            found.push((long_name.unwrap_or_else(|| short.clone()), short, node));
        }
        Ok(found)
    }
}

impl FileSystem for Fat {
    fn volume(&self) -> &Volume {
        &self.volume
    }

    fn root(&self) -> Result<Node, Error> {
        Ok(Node {
            id: FIXED_ROOT,
            kind: NodeKind::Directory,
            size_bytes: 0,
        })
    }

    /// Names are told apart without case, as every system does.
    fn find(&self, directory: Node, name: &str) -> Result<Option<Node>, Error> {
        let folded = name.to_lowercase();
        let mut entries = self.entries(directory)?.into_iter();
        let found = entries.find(|(long, short, _)| {
            long.to_lowercase() == folded || short.to_lowercase() == folded
        });
        Ok(found.map(|(_, _, node)| node))
    }

    fn list(&self, directory: Node) -> Result<Vec<Entry>, Error> {
        let entries = self.entries(directory)?.into_iter();
        Ok(entries
            .map(|(name, _, node)| Entry {
                name,
                kind: node.kind,
            })
            .collect())
    }

    fn link(&self, _link: Node) -> Result<String, Error> {
        Err(damaged("FAT has no links"))
    }

    fn bytes(&self, file: Node) -> Result<Bytes, Error> {
        let first = u32::try_from(file.id).unwrap_or(0);
        Ok(Bytes {
            size_bytes: file.size_bytes,
            place: Place::Stretches(self.chain(first, file.size_bytes)?),
        })
    }
}

/// The piece of the table that was read last.
#[derive(Default)]
struct TablePiece {
    at: Option<u64>,
    bytes: Vec<u8>,
}

impl TablePiece {
    /// What the table says follows a cluster.
    fn entry(&mut self, fat: &Fat, cluster: u32) -> Result<u32, Error> {
        let number = u64::from(cluster);
        Ok(match fat.kind {
            Kind::Twelve => {
                let at = number * 3 / 2;
                let pair = u32::from(self.byte(fat, at)?) | u32::from(self.byte(fat, at + 1)?) << 8;
                if number % 2 == 0 {
                    pair & 0xfff
                } else {
                    pair >> 4
                }
            }
            Kind::Sixteen => {
                let at = number * 2;
                u32::from(self.byte(fat, at)?) | u32::from(self.byte(fat, at + 1)?) << 8
            }
            Kind::ThirtyTwo => {
                let at = number * 4;
                let piece = self.piece(fat, at)?;
                u32_at(piece, usize::try_from(at % PIECE_BYTES).unwrap_or(0)) & 0x0fff_ffff
            }
        })
    }

    fn byte(&mut self, fat: &Fat, at: u64) -> Result<u8, Error> {
        let piece = self.piece(fat, at)?;
        let within = usize::try_from(at % PIECE_BYTES).unwrap_or(0);
        Ok(piece.get(within).copied().unwrap_or(0))
    }

    fn piece(&mut self, fat: &Fat, at: u64) -> Result<&[u8], Error> {
        let start = at / PIECE_BYTES * PIECE_BYTES;
        if self.at != Some(start) {
            let from = fat.table_at + start;
            let left = fat.volume.size_bytes().saturating_sub(from);
            self.bytes = vec![0; usize::try_from(left.min(PIECE_BYTES)).unwrap_or(0)];
            fat.volume.read(from, &mut self.bytes)?;
            self.at = Some(start);
        }
        Ok(&self.bytes)
    }
}

/// A long name, whose entries come last part first, before the short one's.
#[derive(Default)]
struct LongName {
    /// Units in order; filled from the end.
    units: Vec<u16>,
    /// The part that must come next; 1 before the short entry.
    part: u8,
    checksum: u8,
}

/// Parts of a long name, of 13 units each.
const MAX_PARTS: u8 = 20;

impl LongName {
    fn add(&mut self, entry: &[u8]) {
        let part = entry[0] & 0x3f;
        if entry[0] & 0x40 != 0 {
            *self = LongName {
                units: Vec::new(),
                part: part + 1,
                checksum: entry[13],
            };
        }
        let fits = (1..=MAX_PARTS).contains(&part) && part + 1 == self.part;
        if !fits || entry[13] != self.checksum {
            *self = LongName::default();
            return;
        }
        self.part = part;
        let fields = [&entry[1..11], &entry[14..26], &entry[28..32]].concat();
        let mut units: Vec<u16> = fields.chunks(2).map(|pair| u16_at(pair, 0)).collect();
        units.append(&mut self.units);
        self.units = units;
    }

    /// The name, where all its parts came and are those of the short entry.
    fn whole(self, short: &[u8]) -> Option<String> {
        let sum = short
            .iter()
            .fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
        if self.part != 1 || sum != self.checksum {
            return None;
        }
        let mut units = self.units.split(|unit| *unit == 0);
        let name = String::from_utf16_lossy(units.next().unwrap_or_default());
        let is_name = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
        is_name.then_some(name)
    }
}

/// `NAME.EXT`; the bits of NT's that show a part in lower case are heeded.
fn short_name(entry: &[u8]) -> String {
    let part = |bytes: &[u8], is_lower: bool| {
        let mut shown = String::new();
        for &byte in bytes {
            // Code page 437 and its kin agree on ASCII only.
            shown.push(if byte.is_ascii() {
                char::from(byte)
            } else {
                '\u{fffd}'
            });
        }
        let shown = shown.trim_end().to_owned();
        if is_lower {
            shown.to_lowercase()
        } else {
            shown
        }
    };
    let name = part(&entry[..8], entry[12] & 0x08 != 0);
    let extension = part(&entry[8..11], entry[12] & 0x10 != 0);
    match extension.is_empty() {
        true => name,
        false => format!("{name}.{extension}"),
    }
}
