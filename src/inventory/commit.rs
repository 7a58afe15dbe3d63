//! Commits: an overlay, as it was at a restore point, becomes the next version
//! of its image, or the first of a new one.
//!
//! The machine may go on meanwhile: a restore point does not change. On a file
//! system that can, the new version shares the blocks of the old one (reflink),
//! and only what the overlay holds is written. The version appears by one
//! rename, so a commit that fails, is cancelled or dies changes nothing.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use ::disk::overlay::{Origin, PointId, View};
use ::disk::{Allocation, Disk};
use rustix::fs::ioctl_ficlone;
use uuid::Uuid;

use super::image::{Content, Images, Part, VersionWriter};
use super::job::{Job, JobKind, Outcome, Progress};
use super::{Error, Image, Inventory, Name, Result, comment};

/// What to commit.
#[derive(Debug)]
pub(crate) struct CommitRequest {
    /// Of which overlay.
    pub(crate) overlay: Uuid,
    /// As it was then.
    pub(crate) at: PointId,
    /// Another image to become a version of.
    pub(crate) name: Option<Name>,
    /// The operator's words.
    pub(crate) comment: String,
}

impl Inventory {
    /// Starts a commit; what can be refused at once is.
    pub(crate) fn start_commit(&self, request: CommitRequest) -> Result<Job> {
        comment::check(&request.comment)?;
        let overlay = self.overlay(request.overlay)?;
        let (image, view) = self.view(overlay.uuid, request.at)?;
        let name = request.name.unwrap_or_else(|| image.name.clone());
        let images = Arc::clone(&self.images);
        let subject = format!("{image} to {name}");
        let commit = Commit {
            parent: (name == image.name).then_some(image.version),
            name,
            image,
            view,
            comment: request.comment,
        };
        self.start_job(JobKind::Commit, subject, move |progress| {
            Ok(Outcome::Image(commit.run(&images, progress)?))
        })
    }

    /// An overlay, former or not, as it was at a restore point, and the image
    /// below it.
    pub(super) fn view(&self, overlay: Uuid, at: PointId) -> Result<(Arc<Image>, View)> {
        let directory = self.overlay_directory(overlay);
        let refused = |e: ::disk::OpenError| Error::Failed(format!("cannot read it: {e}"));
        // What it lies on is said by the overlay itself.
        let base = ::disk::Overlay::inspect(&directory).map_err(refused)?.base;
        let image = self
            .images()
            .into_iter()
            .find(|image| image.uuid.as_bytes() == &base.uuid)
            .ok_or_else(|| {
                Error::NotFound(format!(
                    "the image below this overlay is not here any more ({base}): put it back"
                ))
            })?;
        let damage = Arc::clone(&image.damage);
        let golden = ::disk::image::open(&image.directory, &base, damage).map_err(refused)?;
        let view =
            ::disk::Overlay::view(&directory, Some(at), Arc::new(golden), base).map_err(refused)?;
        Ok((image, view))
    }
}

/// A commit under way.
struct Commit {
    name: Name,
    parent: Option<u32>,
    /// Below the overlay.
    image: Arc<Image>,
    view: View,
    comment: String,
}

impl Commit {
    fn run(self, images: &Images, progress: &Progress) -> Result<Arc<Image>> {
        progress.begin("committing", Some(self.image.size_bytes));
        let directory = images.temporary_directory()?;
        let committed = self
            .write(&directory, progress)
            .and_then(|content| images.publish(&directory, content));
        if committed.is_err()
            && let Err(e) = fs::remove_dir_all(&directory)
        {
            tracing::warn!("cannot remove {} yet: {e}", directory.display());
        }
        committed
    }

    /// Writes the disk of the new version into `directory`.
    fn write(&self, directory: &Path, progress: &Progress) -> Result<Content> {
        let path = ::disk::image::disk_path(directory);
        let disk = File::create_new(&path)
            .map_err(|e| Error::Failed(format!("cannot write {}: {e}", path.display())))?;
        let below = File::open(self.image.disk_path());
        let shares_blocks = below.is_ok_and(|below| ioctl_ficlone(&disk, &below).is_ok());
        let subject = format!("the commit of {} to {}", self.image, self.name);
        let size_bytes = self.image.size_bytes;
        let mut writer = VersionWriter::new(disk, directory, size_bytes, subject)?;
        let unread = |e: ::disk::DiskError| Error::Failed(format!("cannot read the overlay: {e}"));
        let mut chunk = Vec::new();
        let mut parts = Vec::new();
        loop {
            let (offset, bytes) = (writer.offset(), writer.chunk_bytes());
            if bytes == 0 {
                break;
            }
            chunk.resize(bytes, 0);
            let extent = self.view.extent(offset, bytes as u64).map_err(unread)?;
            let is_hole =
                extent.allocation == Allocation::Deallocated && extent.bytes == bytes as u64;
            if is_hole {
                chunk.fill(0);
            } else {
                self.view.read(offset, &mut chunk).map_err(unread)?;
            }
            parts.clear();
            let mut at = 0;
            while at < bytes {
                let left = (bytes - at) as u64;
                let (origin, run) = self.view.origin(offset + at as u64, left).map_err(unread)?;
                let run = usize::try_from(run.min(left)).unwrap_or(bytes - at);
                let part = match (origin, shares_blocks) {
                    (Origin::Image, true) => Part::There,
                    (Origin::Overlay, true) => Part::Over,
                    (Origin::Zeros, true) => Part::Hole,
                    (_, false) if is_hole => Part::There,
                    (_, false) => Part::Sparse,
                };
                parts.push((part, run));
                at += run;
            }
            writer.push(&chunk, parts.iter().copied())?;
            progress.advance(writer.offset())?;
        }
        let (sha256, checksums) = writer.finish()?;
        Ok(Content {
            name: self.name.clone(),
            size_bytes,
            sha256,
            checksums,
            parent: self.parent,
            comment: self.comment.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use ::disk::Overlay;
    use ::disk::overlay::{Caching, Note, OverlayMode as DiskMode};

    use super::*;
    use crate::inventory::OverlayMode;
    use crate::inventory::tests::Site;

    const SIZE: usize = 1024 * 1024;

    /// An overlay above an image of one MiB of 0x5a, open.
    fn overlay(site: &Site) -> (Uuid, Overlay) {
        let (pc, image) = (site.new_machine("pc07", 7), site.new_image("debian"));
        let fact = site.add_overlay(pc.id, &image, OverlayMode::Keep).unwrap();
        let golden = ::disk::image::open(
            &image.directory,
            &image.base_id(),
            Arc::clone(&image.damage),
        );
        let disk = Overlay::create(
            &site.overlay_directory(fact.uuid),
            Arc::new(golden.unwrap()),
            image.base_id(),
            DiskMode::Keep,
            1,
            Caching::WriteBack,
        );
        (fact.uuid, disk.unwrap())
    }

    fn note() -> Note {
        Note {
            id: PointId(*Uuid::new_v4().as_bytes()),
            created: 0,
            automatic: false,
            comment: String::new(),
        }
    }

    fn commit(site: &Site, overlay: Uuid, at: PointId, name: Option<&str>) -> Job {
        site.start_commit(CommitRequest {
            overlay,
            at,
            name: name.map(|name| Name::parse(name).unwrap()),
            comment: "with the editor".to_owned(),
        })
        .unwrap()
    }

    fn published(site: &Site, job: &Job) -> Arc<Image> {
        match site.ended(job.id).unwrap() {
            Outcome::Image(image) => image,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_commit_is_the_overlay_as_it_was_at_the_point() {
        let site = Site::new();
        let (uuid, overlay) = overlay(&site);
        let mut model = vec![0x5a; SIZE];
        overlay.write(5000, &[7; 9000]).unwrap();
        model[5000..14_000].fill(7);
        overlay.write(65_536, &[0; 8192]).unwrap();
        model[65_536..73_728].fill(0);
        overlay.unmap(131_072, 65_536).unwrap();
        model[131_072..196_608].fill(0);
        let point = overlay.point(note()).unwrap();
        overlay.write(0, &[9; 4096]).unwrap();

        let image = published(&site, &commit(&site, uuid, point.note.id, None));
        assert_eq!((image.version, image.parent), (2, Some(1)));
        assert_eq!(image.comment, "with the editor");
        assert!(fs::read(image.disk_path()).unwrap() == model);
        let raw = site.directory().join("model.raw");
        fs::write(&raw, &model).unwrap();
        let imported = site.import_and_wait("model", &raw).unwrap();
        assert_eq!(imported.sha256, image.sha256);
        // It is what the name alone means from now on, and the overlay goes on.
        let meant = crate::inventory::ImageRef::parse("debian").unwrap();
        assert_eq!(site.image(&meant).unwrap().version, 2);
        let mut seen = [0; 1];
        overlay.read(0, &mut seen).unwrap();
        assert_eq!(seen, [9]);
    }

    #[test]
    fn a_commit_can_begin_another_image() {
        let site = Site::new();
        let (uuid, overlay) = overlay(&site);
        let point = overlay.point(note()).unwrap();
        let image = published(&site, &commit(&site, uuid, point.note.id, Some("office")));
        assert_eq!(image.to_string(), "office@1");
        assert_eq!(image.parent, None);
        assert!(fs::read(image.disk_path()).unwrap() == vec![0x5a; SIZE]);
    }

    #[test]
    fn a_commit_that_died_leaves_nothing_and_can_be_done_again() {
        let mut site = Site::new();
        let (uuid, overlay) = overlay(&site);
        overlay.write(5000, &[7; 9000]).unwrap();
        let point = overlay.point(note()).unwrap().note.id;
        drop(overlay);
        // What it has when it dies in the middle: a view, and half a disk.
        let image = site.images()[0].clone();
        let golden = ::disk::image::open(&image.directory, &image.base_id(), Arc::default());
        let directory = site.overlay_directory(uuid);
        let base = image.base_id();
        let view = Overlay::view(&directory, Some(point), Arc::new(golden.unwrap()), base);
        let _view = view.unwrap();
        let half = site.images.temporary_directory().unwrap();
        fs::write(::disk::image::disk_path(&half), [1; 512]).unwrap();

        site.close();
        let left = Site::new_at_copy_of(&site.data_path());
        // As the server does when it starts.
        ::disk::overlay::sweep(&left.data_path().join("overlays")).unwrap();
        let count = |what: &str| fs::read_dir(left.data_path().join(what)).unwrap().count();
        assert_eq!((count("images"), count("overlays")), (1, 1));
        assert_eq!(left.images().len(), 1);
        let image = published(&left, &commit(&left, uuid, point, None));
        assert_eq!(image.version, 2);
        let disk = fs::read(image.disk_path()).unwrap();
        assert_eq!((disk[4999], disk[5000], disk[14_000]), (0x5a, 7, 0x5a));
    }

    #[test]
    fn a_commit_of_no_point_is_refused_and_leaves_nothing() {
        let site = Site::new();
        let (uuid, _overlay) = overlay(&site);
        let refused = site.start_commit(CommitRequest {
            overlay: uuid,
            at: note().id,
            name: None,
            comment: String::new(),
        });
        assert!(refused.is_err());
        let left = fs::read_dir(site.data_path().join("images")).unwrap();
        let names: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["debian"]);
        let overlays = fs::read_dir(site.data_path().join("overlays")).unwrap();
        assert_eq!(overlays.count(), 1, "a view stayed");
    }
}
