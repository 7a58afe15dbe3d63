//! A site in a temporary directory, for the tests of every noun.

use std::fs;
use std::ops::Deref;
use std::sync::Arc;

use dhcp::Mac;

use super::*;

/// An inventory that goes with its directory.
pub(crate) struct Site {
    inventory: Option<Inventory>,
    directory: tempfile::TempDir,
}

impl Site {
    /// An empty site.
    pub(crate) fn new() -> Site {
        Site::limited(Limits::default())
    }

    /// The inventory, shared.
    pub(crate) fn shared(self) -> (Arc<Inventory>, tempfile::TempDir) {
        (Arc::new(self.inventory.unwrap()), self.directory)
    }

    /// An empty site with limits.
    pub(crate) fn limited(limits: Limits) -> Site {
        let directory = tempfile::tempdir().unwrap();
        let inventory = Inventory::open(&directory.path().join("data"), limits).unwrap();
        Site {
            inventory: Some(inventory),
            directory,
        }
    }

    /// A site on a copy of a data directory.
    pub(crate) fn new_at_copy_of(data: &Path) -> Site {
        let directory = tempfile::tempdir().unwrap();
        copy_tree(data, &directory.path().join("data"));
        let mut site = Site {
            inventory: None,
            directory,
        };
        site.restart();
        site
    }

    /// Closes the inventory, where it is open, and opens it again.
    pub(crate) fn restart(&mut self) {
        let limits = self
            .inventory
            .as_ref()
            .map_or(Limits::default(), |i| i.limits);
        self.close();
        self.inventory = Some(Inventory::open(&self.data_path(), limits).unwrap());
    }

    /// Closes the inventory.
    pub(crate) fn close(&mut self) {
        self.inventory = None;
    }

    /// The data directory, open or not.
    pub(crate) fn data_path(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// A known machine whose MAC ends in `last`.
    pub(crate) fn new_machine(&self, name: &str, last: u8) -> Machine {
        self.add_machine(NewMachine {
            name: Name::parse(name).unwrap(),
            mac: mac(last),
            uuid: None,
            serial: None,
            assignment: None,
            address: None,
            loader: None,
        })
        .unwrap()
    }

    /// The next version of an image, of 1 MiB.
    pub(crate) fn new_image(&self, name: &str) -> Arc<Image> {
        let source = self.directory.path().join("source.raw");
        fs::write(&source, vec![0x5a; 1024 * 1024]).unwrap();
        self.import_and_wait(name, &source).unwrap()
    }

    /// Imports and waits; the sentence of a failure.
    pub(crate) fn import_and_wait(&self, name: &str, source: &Path) -> Result<Arc<Image>, String> {
        let started = self
            .start_import(ImportRequest {
                name: Name::parse(name).unwrap(),
                origin: Origin::File(source.to_owned()),
                comment: String::new(),
            })
            .map_err(|e| e.to_string())?;
        match self.ended(started.id)? {
            Outcome::Image(image) => Ok(image),
            other => panic!("{other:?}"),
        }
    }

    /// A directory for sources, beside the data.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Inventory {
    /// What a job has made, once it has ended; why not, when it failed.
    pub(crate) fn ended(&self, job: Uuid) -> Result<Outcome, String> {
        loop {
            match self.job(job).unwrap().state {
                JobState::Running => std::thread::sleep(std::time::Duration::from_millis(1)),
                JobState::Done(outcome) => return Ok(outcome),
                JobState::Failed(why) => return Err(why),
                JobState::Cancelled => return Err("cancelled".to_owned()),
            }
        }
    }
}

impl Deref for Site {
    type Target = Inventory;
    fn deref(&self) -> &Inventory {
        self.inventory.as_ref().unwrap()
    }
}

/// A MAC that ends in `last`.
pub(crate) fn mac(last: u8) -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, last])
}

#[test]
fn what_was_answered_is_in_the_data_directory_when_the_process_dies() {
    let site = Site::new();
    let pc = site.new_machine("pc07", 7);
    let pending = site.enrol(mac(8), None, None).unwrap();
    let prepared = site.prepare_generation(pc.id).unwrap();
    let image = site.new_image("debian");
    let overlay = site.add_overlay(pc.id, &image, OverlayMode::Keep).unwrap();
    // What the kernel holds at this moment is what a kill -9 leaves behind.
    let copied = Site::new_at_copy_of(&site.data_path());
    let machines: Vec<_> = copied.machines().unwrap().iter().map(|m| m.id).collect();
    assert!(machines.contains(&pc.id) && machines.contains(&pending.id));
    assert!(copied.generations(pc.id).unwrap().prepared == Some(prepared));
    assert_eq!(copied.overlays().unwrap(), [overlay]);
    assert_eq!(copied.images()[0].sha256, image.sha256);
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
