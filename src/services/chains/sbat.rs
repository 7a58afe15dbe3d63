//! What a signed loader says of itself: the SBAT section of its PE file
//! (rhboot/shim, `SBAT.md`; PE/COFF section 3 and 4).
//!
//! Lines of `component,generation,vendor,package,version,url`. The upstream
//! component (`grub`) carries upstream's version; a vendor's own
//! (`grub.debian`) tells whose key has signed the file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Largest SBAT section that is read, in bytes: real ones have about 400.
const SECTION_BYTES_MAX: u32 = 64 * 1024;
/// Most sections a PE image has (PE/COFF section 3.3).
const SECTIONS_MAX: u16 = 96;
/// Bytes of a section's header.
const SECTION_HEADER_BYTES: usize = 40;
/// Where a file for DOS and EFI says where its PE header lies.
const PE_OFFSET: u64 = 0x3c;
/// `PE\0\0` and the COFF file header.
const PE_HEADER_BYTES: usize = 24;

/// The entries of an SBAT section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sbat(Vec<Entry>);

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    component: String,
    version: String,
}

impl Sbat {
    /// Reads the section of a file; `InvalidData` for one that is no PE file or
    /// has none.
    pub(crate) fn read(path: &Path) -> io::Result<Sbat> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(invalid("not a regular file"));
        }
        Sbat::find(|bytes, offset| file.read_exact_at(bytes, offset))
    }

    fn find(read: impl Fn(&mut [u8], u64) -> io::Result<()>) -> io::Result<Sbat> {
        let mut word = [0; 4];
        read(&mut word[..2], 0)?;
        if word[..2] != *b"MZ" {
            return Err(invalid("not an EFI program"));
        }
        read(&mut word, PE_OFFSET)?;
        let header_offset = u64::from(u32::from_le_bytes(word));
        let mut header = [0; PE_HEADER_BYTES];
        read(&mut header, header_offset)?;
        if header[..4] != *b"PE\0\0" {
            return Err(invalid("not an EFI program"));
        }
        let sections = u16::from_le_bytes([header[6], header[7]]).min(SECTIONS_MAX);
        let optional_bytes = u16::from_le_bytes([header[20], header[21]]);
        let table = header_offset + PE_HEADER_BYTES as u64 + u64::from(optional_bytes);
        for number in 0..u64::from(sections) {
            let mut section = [0; SECTION_HEADER_BYTES];
            read(&mut section, table + number * SECTION_HEADER_BYTES as u64)?;
            if section[..8] != *b".sbat\0\0\0" {
                continue;
            }
            let word = |at: usize| {
                u32::from_le_bytes([
                    section[at],
                    section[at + 1],
                    section[at + 2],
                    section[at + 3],
                ])
            };
            // Of what is loaded and what lies in the file, the smaller counts.
            let bytes = word(8).min(word(16));
            if bytes > SECTION_BYTES_MAX {
                return Err(invalid("its SBAT section is too long"));
            }
            let mut text = vec![0; bytes as usize];
            read(&mut text, u64::from(word(20)))?;
            return Ok(Sbat::parse(&text));
        }
        Err(invalid(
            "it has no SBAT section: it is too old to be trusted",
        ))
    }

    fn parse(bytes: &[u8]) -> Sbat {
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        let entries = String::from_utf8_lossy(text);
        let entries = entries.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            Some(Entry {
                component: (*fields.first()?).to_owned(),
                version: (*fields.get(4)?).to_owned(),
            })
        });
        Sbat(entries.collect())
    }

    /// Upstream's version of a component: `2.12` of `grub`.
    pub(crate) fn version(&self, component: &str) -> Option<&str> {
        let entry = self.0.iter().find(|entry| entry.component == component)?;
        Some(&entry.version)
    }

    /// The vendors that name themselves beside a component: `debian` for
    /// `shim.debian`.
    pub(crate) fn vendors<'a>(&'a self, component: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter_map(move |entry| entry.component.strip_prefix(component)?.strip_prefix('.'))
    }
}

fn invalid(words: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, words)
}

/// A PE file with nothing but this SBAT section, for tests.
#[cfg(test)]
pub(crate) fn signed(text: &str) -> Vec<u8> {
    let mut file = vec![0; 0x200];
    file[..2].copy_from_slice(b"MZ");
    file[0x3c] = 0x40;
    file[0x40..0x44].copy_from_slice(b"PE\0\0");
    file[0x46] = 2;
    let sections = 0x40 + PE_HEADER_BYTES;
    file[sections..sections + 5].copy_from_slice(b".text");
    let sbat = sections + SECTION_HEADER_BYTES;
    file[sbat..sbat + 5].copy_from_slice(b".sbat");
    let bytes = u32::try_from(text.len()).unwrap().to_le_bytes();
    file[sbat + 8..sbat + 12].copy_from_slice(&bytes);
    file[sbat + 16..sbat + 20].copy_from_slice(&0x1000_u32.to_le_bytes());
    file[sbat + 20..sbat + 24].copy_from_slice(&0x200_u32.to_le_bytes());
    file.extend_from_slice(text.as_bytes());
    file.resize(0x1200, 0);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of Debian 13's `grubnetx64.efi.signed`, 2.12-9+deb13u2.
    const DEBIAN_13: &str = "sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md\n\
        grub,5,Free Software Foundation,grub,2.12,https://www.gnu.org/software/grub/\n\
        grub.debian,5,Debian,grub2,2.12-9+deb13u2,https://tracker.debian.org/pkg/grub2\n\
        grub.debian13,1,Debian,grub2,2.12-9+deb13u2,https://tracker.debian.org/pkg/grub2\n";

    fn of(bytes: &[u8]) -> io::Result<Sbat> {
        Sbat::find(|buffer, offset| {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let part = bytes
                .get(start..)
                .and_then(|rest| rest.get(..buffer.len()))
                .ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(part);
            Ok(())
        })
    }

    #[test]
    fn a_signed_grub_tells_its_version_and_whose_it_is() {
        let sbat = of(&signed(DEBIAN_13)).unwrap();
        assert_eq!(sbat.version("grub"), Some("2.12"));
        assert_eq!(sbat.version("shim"), None);
        let vendors: Vec<_> = sbat.vendors("grub").collect();
        assert_eq!(vendors, ["debian", "debian13"]);
    }

    #[test]
    fn a_file_that_is_no_loader_is_refused() {
        for bytes in [&b""[..], b"MZ", b"#!ipxe\n", &[0; 4096]] {
            assert!(of(bytes).is_err(), "{bytes:?}");
        }
        let mut bare = signed(DEBIAN_13);
        bare[0x46] = 1;
        let error = of(&bare).unwrap_err();
        assert!(error.to_string().contains("no SBAT"), "{error}");
    }

    #[test]
    fn no_byte_of_the_headers_can_break_the_reader() {
        let whole = signed(DEBIAN_13);
        for at in 0..0xa0 {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut file = whole.clone();
                file[at] = value;
                let _ = of(&file);
            }
        }
        for length in 0..0x220 {
            let _ = of(&whole[..length]);
        }
    }
}
