//! All marks of a layer as of some moment, as a file: `map.SEQ`.
//!
//! A head, a table with one CRC32C for each page of 4 KiB of marks, then the
//! pages; pages of zeros are holes. A map of no pages says that nothing is
//! marked. Its layout: docs/overlay-format.md.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::field;
use super::live::PAGE_BLOCKS;
use crate::files::File;

/// Length of the heads of maps and logs.
pub(super) const HEAD_BYTES: usize = 4096;

/// A page of marks.
pub(super) const PAGE_BYTES: usize = 4096;

const MAGIC: &[u8; 8] = b"DLOVMAP1";

/// Bytes of the table that are read at once.
const TABLE_PIECE: usize = 64 << 10;

/// A map that was found whole but for its pages, which are checked when they
/// are read. Holds no file open.
#[derive(Debug)]
pub(super) struct Map {
    path: PathBuf,
    page_count: u64,
    /// One bit a page: whether anything is marked in it.
    marked: Vec<u64>,
}

impl Map {
    /// Opens the map of the given sequence in `dir`, of a layer of so many
    /// blocks.
    pub(super) fn open(dir: &Path, sequence: u64, block_count: u64) -> io::Result<Map> {
        let path = dir.join(format!("map.{sequence}"));
        let file = std::fs::File::open(&path)?;
        let mut head = [0; HEAD_BYTES];
        file.read_exact_at(&mut head, 0)?;
        // Before anything is read or allocated because of it.
        let page_count = u64::from_le_bytes(field(&head, 24));
        if page_count != 0 && page_count != block_count.div_ceil(PAGE_BLOCKS) {
            return Err(corrupt(&path, "has a damaged head"));
        }
        let empty = empty_crc();
        let mut marked = vec![0; index(page_count.div_ceil(64))?];
        let mut table_crc = 0;
        let (mut page, mut piece) = (0, vec![0; TABLE_PIECE]);
        while page < page_count {
            let pages = (page_count - page).min(TABLE_PIECE as u64 / 4);
            let piece = &mut piece[..index(pages * 4)?];
            file.read_exact_at(piece, HEAD_BYTES as u64 + page * 4)?;
            table_crc = crc32c::crc32c_append(table_crc, piece);
            for (page, crc) in (page..).zip(piece.chunks_exact(4)) {
                if crc != empty {
                    marked[index(page / 64)?] |= 1 << (page % 64);
                }
            }
            page += pages;
        }
        if head[..] != emit_head(MAGIC, sequence, block_count, page_count, table_crc) {
            return Err(corrupt(&path, "has a damaged head"));
        }
        Ok(Map {
            path,
            page_count,
            marked,
        })
    }

    /// A page of marks; `None` when nothing is marked in it.
    pub(super) fn page(&self, page: u64) -> io::Result<Option<[u8; PAGE_BYTES]>> {
        let word = self.marked.get(index(page / 64)?).copied().unwrap_or(0);
        if word & (1 << (page % 64)) == 0 {
            return Ok(None);
        }
        let file = std::fs::File::open(&self.path)?;
        let mut crc = [0; 4];
        file.read_exact_at(&mut crc, HEAD_BYTES as u64 + page * 4)?;
        let mut bytes = [0; PAGE_BYTES];
        let start = pages_start(self.page_count) + page * PAGE_BYTES as u64;
        file.read_exact_at(&mut bytes, start)?;
        if crc != crc32c::crc32c(&bytes).to_le_bytes() {
            let what = format!("has a damaged page {page}");
            return Err(corrupt(&self.path, &what));
        }
        Ok(Some(bytes))
    }
}

/// Writes a map of what `page` answers for each page; `None` is a page in
/// which nothing is marked.
pub(super) fn write(
    file: &File,
    sequence: u64,
    block_count: u64,
    mut page: impl FnMut(u64) -> io::Result<Option<Vec<u8>>>,
) -> io::Result<()> {
    let page_count = block_count.div_ceil(PAGE_BLOCKS);
    let pages_start = pages_start(page_count);
    file.set_len(pages_start + page_count * PAGE_BYTES as u64)?;
    let mut table = Vec::new();
    for number in 0..page_count {
        let crc = match page(number)? {
            None => empty_crc(),
            Some(bytes) => {
                file.write_all_at(&bytes, pages_start + number * PAGE_BYTES as u64)?;
                crc32c::crc32c(&bytes).to_le_bytes()
            }
        };
        table.extend(crc);
    }
    let table_crc = crc32c::crc32c(&table);
    file.write_all_at(&table, HEAD_BYTES as u64)?;
    let head = emit_head(MAGIC, sequence, block_count, page_count, table_crc);
    file.write_all_at(&head, 0)
}

/// Writes the map of a layer in which nothing is marked.
pub(super) fn write_empty(file: &File, sequence: u64, block_count: u64) -> io::Result<()> {
    file.write_all_at(&emit_head(MAGIC, sequence, block_count, 0, 0), 0)
}

/// The head of a map or of a log.
pub(super) fn emit_head(
    magic: &[u8; 8],
    sequence: u64,
    block_count: u64,
    page_count: u64,
    table_crc: u32,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES);
    bytes.extend(magic);
    bytes.extend(sequence.to_le_bytes());
    bytes.extend(block_count.to_le_bytes());
    bytes.extend(page_count.to_le_bytes());
    bytes.extend(table_crc.to_le_bytes());
    bytes.resize(HEAD_BYTES - 4, 0);
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

/// Damage, in the words of the file it is in.
pub(super) fn corrupt(path: &Path, what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{} {what}", path.display()),
    )
}

/// CRC of a page in which nothing is marked.
fn empty_crc() -> [u8; 4] {
    static EMPTY: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    let crc = EMPTY.get_or_init(|| crc32c::crc32c(&[0; PAGE_BYTES]));
    crc.to_le_bytes()
}

fn pages_start(page_count: u64) -> u64 {
    HEAD_BYTES as u64 + (page_count * 4).next_multiple_of(PAGE_BYTES as u64)
}

fn index(number: u64) -> io::Result<usize> {
    usize::try_from(number).map_err(io::Error::other)
}
