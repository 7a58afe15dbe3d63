//! Holding an image against what was published: by an operator's word
//! (`verify`: CRCs and SHA-256), and a little at a time in the background (the
//! scrub: CRCs).
//!
//! Read from the medium itself where the file system lets us (`O_DIRECT`): the
//! page cache, which machines live on, is neither believed nor washed out. What
//! is found wrong is refused to everybody from that moment on, also to
//! machines that run, and noted beside the version.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::fs::{OFlags, SeekFrom, seek};
use sha2::{Digest, Sha256};

use super::manifest::{CRC_CHUNK_BYTES, ChecksumsReader};
use super::{Image, Images, damage};
use crate::inventory::job::{Job, JobKind, Outcome};
use crate::inventory::{Error, Inventory, Result, held, now, sync_directory};

/// What a verification has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verification {
    /// What is not as it was published, in whole MiB.
    pub(crate) damaged: Vec<Range<u64>>,
    /// Whether the CRCs beside the image could be believed.
    pub(crate) checksums_sound: bool,
    /// Whether the whole has the SHA-256 it was published with.
    pub(crate) sha256_matches: bool,
}

impl Verification {
    /// Whether the image is what was published.
    pub(crate) fn is_sound(&self) -> bool {
        self.sha256_matches
    }
}

/// How a scrub goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ScrubPace {
    /// Each version is read again after so long.
    pub(crate) interval: Duration,
    /// Read at most, per second.
    pub(crate) bytes_per_second: u64,
}

impl Image {
    /// When it was last read from end to end and held against its CRCs.
    pub(crate) fn checked(&self) -> Option<Timestamp> {
        let modified = fs::metadata(self.directory.join(CHECKED_FILE)).ok()?;
        Timestamp::try_from(modified.modified().ok()?).ok()
    }
}

impl Images {
    /// Holds `image` against its SHA-256 and CRCs, and notes what it finds:
    /// also that what was damaged is right again. `heard` hears how many bytes
    /// are done, and ends it with an error.
    pub(super) fn verify(
        &self,
        image: &Image,
        heard: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Verification> {
        let mut sha256 = Sha256::new();
        let checked = check(image, Some(&mut sha256), heard)?;
        let sha256_matches = <[u8; 32]>::from(sha256.finalize()) == image.sha256;
        let damaged = match (&checked, sha256_matches) {
            // Then it is the CRCs that are wrong.
            (_, true) => Vec::new(),
            (Some(damaged), false) if !damaged.is_empty() => damaged.clone(),
            // Something is wrong, and nobody can say where.
            (_, false) => std::iter::once(0..image.size_bytes).collect(),
        };
        self.note(image, &damaged)?;
        Ok(Verification {
            damaged,
            checksums_sound: checked.is_some_and(|damaged| damaged.is_empty() == sha256_matches),
            sha256_matches,
        })
    }

    /// Puts down what was found of `image`, unless it was removed meanwhile.
    fn note(&self, image: &Image, damaged: &[Range<u64>]) -> Result<()> {
        let _changing = held(&self.changing);
        self.hold().require(image)?;
        // Refused first: what cannot be noted is refused all the same.
        image.damage.set(damaged.to_vec());
        damage::write(&image.directory, damaged)?;
        note_checked(&image.directory)
    }
}

impl Inventory {
    /// Starts to verify a version of an image.
    pub(crate) fn start_verification(&self, image: Arc<Image>) -> Result<Job> {
        let images = Arc::clone(&self.images);
        self.start_job(JobKind::Verification, image.to_string(), move |progress| {
            progress.begin("", Some(image.size_bytes));
            let found = images.verify(&image, &mut |done| progress.advance(done))?;
            if !found.is_sound() {
                tracing::error!(%image, damaged = show_ranges(&found.damaged), "{DAMAGED}");
            }
            Ok(Outcome::Verification(image, found))
        })
    }

    /// Reads the version that waits longest, if one is due, at most at the pace
    /// given, and says what it found. `false`: none was due. `stop` is asked
    /// often.
    ///
    /// It only ever finds *more* damage: what is noted stays until a
    /// verification finds it right.
    pub(crate) fn scrub_one(&self, pace: ScrubPace, stop: &dyn Fn() -> bool) -> Result<bool> {
        let now = now();
        let due = |image: &Arc<Image>| {
            let since = image.checked().unwrap_or(image.created);
            let waited = Duration::try_from(now.duration_since(since)).unwrap_or_default();
            (waited >= pace.interval).then_some(waited)
        };
        let images = self.images();
        let waiting = images.iter().filter_map(|image| Some((due(image)?, image)));
        let Some((_, image)) = waiting.max_by_key(|(waited, _)| *waited) else {
            return Ok(false);
        };
        let begun = Instant::now();
        let mut heard = |done_bytes: u64| {
            loop {
                if stop() {
                    return Err(Error::Conflict("the program ends".to_owned()));
                }
                let earned = begun.elapsed().as_millis() * u128::from(pace.bytes_per_second) / 1000;
                if u128::from(done_bytes) <= earned {
                    return Ok(());
                }
                std::thread::sleep(SCRUB_NAP);
            }
        };
        let found = check(image, None, &mut heard)?;
        let Some(mut damaged) = found else {
            tracing::error!(
                %image,
                "its CRCs are not what was published: `diskless image verify {image}` tells \
                 whether the image is"
            );
            note_checked(&image.directory)?;
            return Ok(true);
        };
        if damaged.is_empty() {
            tracing::info!(%image, "scrubbed, nothing wrong");
        } else {
            tracing::error!(
                %image,
                damaged = show_ranges(&damaged),
                "{DAMAGED}"
            );
        }
        damaged.extend(image.damage.ranges());
        damaged.sort_by_key(|range| range.start);
        self.images.note(image, &damaged)?;
        Ok(true)
    }
}

/// What is said of a damaged image.
const DAMAGED: &str = "damaged: reads of it are refused; put it back from a copy, or go to a \
                       version that is right with `diskless image rollback`";

/// How long the scrub sleeps when it is ahead of its pace.
const SCRUB_NAP: Duration = Duration::from_millis(50);

/// Its time of modification says when a version was last checked.
const CHECKED_FILE: &str = "checked";

fn note_checked(directory: &Path) -> Result<()> {
    let path = directory.join(CHECKED_FILE);
    File::create(&path)
        .and_then(|file| file.set_modified(std::time::SystemTime::now()))
        .and_then(|()| sync_directory(directory))
        .map_err(|e| Error::Failed(format!("cannot write {}: {e}", path.display())))
}

/// Ranges of bytes as MiB, as people read them: `MiB 3, 7 to 9`.
fn show_ranges(ranges: &[Range<u64>]) -> String {
    const SHOWN_MAX: usize = 8;
    let mib = CRC_CHUNK_BYTES as u64;
    let shown = ranges.iter().take(SHOWN_MAX).map(|range| {
        match (range.start / mib, range.end.saturating_sub(1) / mib) {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first} to {last}"),
        }
    });
    let mut text = format!("MiB {}", shown.collect::<Vec<_>>().join(", "));
    if ranges.len() > SHOWN_MAX {
        text.push_str(&format!(" and {} more places", ranges.len() - SHOWN_MAX));
    }
    text
}

/// Reads all of `image` and holds each MiB against its CRC; feeds `sha256`.
/// Answers what is wrong; `None` when the CRCs are.
fn check(
    image: &Image,
    mut sha256: Option<&mut Sha256>,
    heard: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Option<Vec<Range<u64>>>> {
    let mut checksums = ChecksumsReader::open(image)?;
    let mut medium = Medium::open(&image.disk_path())?;
    let mut found = damage::Found::default();
    let mut offset = 0;
    while offset < image.size_bytes {
        heard(offset)?;
        let end = image.size_bytes.min(offset + CRC_CHUNK_BYTES as u64);
        let bytes = usize::try_from(end - offset).unwrap_or(CRC_CHUNK_BYTES);
        let read = medium.read(offset, bytes);
        if let Err(error) = &read {
            tracing::error!(%image, offset, %error, "cannot be read");
        }
        // What cannot be read is damaged, and the whole is not what it was.
        let chunk = read.unwrap_or_default();
        if let Some(sha256) = &mut sha256 {
            sha256.update(chunk);
        }
        if let Some(checksums) = &mut checksums {
            let expected = checksums.next()?;
            if chunk.len() != bytes || crc32c::crc32c(chunk) != expected {
                found.add(offset, end);
            }
        }
        offset = end;
    }
    Ok(checksums.map(|_| found.into_ranges()))
}

/// A disk read past the page cache, where that can be.
struct Medium {
    direct: Option<File>,
    cached: File,
    buffer: Vec<u8>,
    /// Where data begins at or after `asked`.
    data: u64,
    asked: u64,
}

/// What `O_DIRECT` wants buffers and offsets to be multiples of, at most.
const ALIGNMENT: usize = 4096;

impl Medium {
    fn open(path: &Path) -> Result<Medium> {
        let unread = |e: io::Error| Error::Failed(format!("cannot read {}: {e}", path.display()));
        let direct = OpenOptions::new()
            .read(true)
            .custom_flags(i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0))
            .open(path);
        Ok(Medium {
            direct: direct.ok(),
            cached: File::open(path).map_err(unread)?,
            buffer: vec![0; CRC_CHUNK_BYTES + ALIGNMENT],
            data: 0,
            asked: 0,
        })
    }

    /// The next `bytes` bytes, at most [`CRC_CHUNK_BYTES`].
    fn read(&mut self, offset: u64, bytes: usize) -> io::Result<&[u8]> {
        let start = self.buffer.as_ptr().align_offset(ALIGNMENT) % ALIGNMENT;
        if self.is_hole(offset, bytes as u64) {
            self.buffer[start..start + bytes].fill(0);
            return Ok(&self.buffer[start..start + bytes]);
        }
        let range = start..start + bytes;
        let direct = self
            .direct
            .as_ref()
            .filter(|_| bytes.is_multiple_of(ALIGNMENT));
        let read = direct.map(|file| file.read_exact_at(&mut self.buffer[range.clone()], offset));
        match read {
            Some(Err(e)) if e.kind() != io::ErrorKind::InvalidInput => return Err(e),
            Some(Ok(())) => {}
            // A file system that knows no such reads, or a rest at the end.
            refused => {
                if refused.is_some() {
                    self.direct = None;
                }
                let chunk = &mut self.buffer[range.clone()];
                self.cached.read_exact_at(chunk, offset)?;
            }
        }
        Ok(&self.buffer[range])
    }

    fn is_hole(&mut self, offset: u64, bytes: u64) -> bool {
        if offset < self.asked || offset >= self.data {
            self.asked = offset;
            self.data = match seek(&self.cached, SeekFrom::Data(offset)) {
                Ok(data) => data,
                Err(rustix::io::Errno::NXIO) => u64::MAX,
                Err(_) => offset,
            };
        }
        self.data >= offset.saturating_add(bytes)
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::inventory::tests::Site;

    const MIB: u64 = 1 << 20;

    /// An image of 3.5 MiB with a hole in it.
    fn image(site: &Site) -> Arc<Image> {
        let source = site.directory().join("large.raw");
        let half: Vec<u8> = (0..=255).cycle().take(CRC_CHUNK_BYTES / 2).collect();
        let hole = vec![0; CRC_CHUNK_BYTES];
        let mut bytes = [&half[..], &half, &hole].concat();
        (0..3).for_each(|_| bytes.extend_from_slice(&half));
        fs::write(&source, bytes).unwrap();
        site.import_and_wait("debian", &source).unwrap()
    }

    fn flip(image: &Image, offset: u64) {
        let path = image.disk_path();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    }

    fn verify(site: &Site, image: &Image) -> Verification {
        site.images.verify(image, &mut |_| Ok(())).unwrap()
    }

    fn scrub(site: &Site) -> bool {
        let pace = ScrubPace {
            interval: Duration::ZERO,
            bytes_per_second: u64::MAX / 1000,
        };
        site.scrub_one(pace, &|| false).unwrap()
    }

    #[test]
    fn a_sound_image_verifies() {
        let site = Site::new();
        let image = image(&site);
        let found = verify(&site, &image);
        assert!(found.is_sound() && found.checksums_sound);
        assert!(image.checked().is_some() && image.damage.is_none());
    }

    #[test]
    fn a_flipped_bit_is_found_in_its_mib_and_refused_until_it_is_right() {
        let mut site = Site::new();
        let image = image(&site);
        for (offset, damaged) in [
            (0, 0..MIB),
            (MIB + 7, MIB..2 * MIB), // in the hole
            (7 * MIB / 2 - 1, 3 * MIB..7 * MIB / 2),
        ] {
            flip(&image, offset);
            let found = verify(&site, &image);
            assert_eq!(
                (found.damaged, found.sha256_matches),
                (vec![damaged.clone()], false)
            );
            assert_eq!(image.damage.ranges(), std::slice::from_ref(&damaged));
            site.restart();
            assert_eq!(site.images()[0].damage.ranges(), [damaged]);
            flip(&image, offset);
            let image = Arc::clone(&site.images()[0]);
            assert!(verify(&site, &image).is_sound() && image.damage.is_none());
            site.restart();
            assert!(site.images()[0].damage.is_none());
        }
    }

    #[test]
    fn wrong_checksums_do_not_condemn_a_sound_image() {
        let site = Site::new();
        let image = image(&site);
        fs::write(image.directory.join("crc32c"), [0; 16]).unwrap();
        let found = verify(&site, &image);
        assert!(found.is_sound() && !found.checksums_sound);
        assert!(scrub(&site) && image.damage.is_none());
        // Nobody can say where a damaged one is wrong then.
        flip(&image, 0);
        assert_eq!(verify(&site, &image).damaged, [0..image.size_bytes]);
    }

    #[test]
    fn a_scrub_finds_damage_and_takes_none_back() {
        let site = Site::new();
        let image = image(&site);
        flip(&image, 5);
        assert!(scrub(&site));
        assert_eq!(image.damage.ranges(), [0..MIB]);
        flip(&image, 5);
        flip(&image, 3 * MIB);
        assert!(scrub(&site));
        assert_eq!(image.damage.ranges(), [0..MIB, 3 * MIB..7 * MIB / 2]);
    }

    #[test]
    fn a_scrub_waits_for_its_interval_and_ends_when_told() {
        let site = Site::new();
        let image = image(&site);
        let week = ScrubPace {
            interval: Duration::from_secs(7 * 24 * 3600),
            bytes_per_second: 1,
        };
        assert!(!site.scrub_one(week, &|| false).unwrap());
        let now = ScrubPace {
            interval: Duration::ZERO,
            ..week
        };
        assert!(site.scrub_one(now, &|| true).is_err());
        assert!(image.checked().is_none());
    }

    #[test]
    fn a_cancelled_verification_notes_nothing() {
        let site = Site::new();
        let image = image(&site);
        flip(&image, 0);
        let mut heard = |done: u64| match done {
            0..MIB => Ok(()),
            _ => Err(Error::Conflict("cancelled".into())),
        };
        assert!(site.images.verify(&image, &mut heard).is_err());
        assert!(image.damage.is_none() && image.checked().is_none());
    }

    #[test]
    fn ranges_are_shown_in_mib() {
        assert_eq!(
            show_ranges(&[3 * MIB..4 * MIB, 7 * MIB..10 * MIB]),
            "MiB 3, 7 to 9"
        );
        let many: Vec<_> = (0..20).map(|n| 2 * n * MIB..(2 * n + 1) * MIB).collect();
        assert!(show_ranges(&many).ends_with("and 12 more places"));
    }
}
