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
                source: source.to_owned(),
                comment: String::new(),
            })
            .map_err(|e| e.to_string())?;
        loop {
            match self.import(started.id).unwrap().state {
                ImportState::Running => {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                ImportState::Done(image) => return Ok(image),
                ImportState::Failed(why) => return Err(why),
            }
        }
    }

    /// A directory for sources, beside the data.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
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
