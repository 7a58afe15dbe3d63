//! Differencing disks: what is theirs, what is their parent's, and which file
//! that is.

use super::super::footer::{Footer, checksum};
use super::super::header::{HEADER_BYTES, Header};
use super::*;
use crate::files::recorder::Recorder;
use crate::tests::crash;

const BLOCK: u64 = 2 << 20;

/// `base.vhd`, with something in it, and what stands above.
struct Family {
    dir: tempfile::TempDir,
    contents: Vec<u8>,
}

impl Family {
    fn new(format: NewFormat) -> Family {
        let dir = tempfile::tempdir().unwrap();
        let base = make(&dir.path().join("base.vhd"), format, SIZE_BYTES).unwrap();
        for (at, length) in [(100, 5000), (BLOCK - 700, 9000), (3 * BLOCK, 1 << 20)] {
            base.write(at, &vec![0xba; length]).unwrap();
        }
        let contents = contents(&base);
        Family { dir, contents }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn make(&self, name: &str, parent: &str) -> Vhd {
        let _ = fs::remove_file(self.path(name));
        let parent = self.path(parent);
        make(&self.path(name), NewFormat::VhdDifferencing { parent }, 0).unwrap()
    }

    fn open(&self, name: &str) -> Result<Vhd, OpenError> {
        opened(&self.path(name), Access::ReadWrite)
    }

    /// As after a loss of power right after a sync of everything.
    fn open_in_another_boot(&self, name: &str) -> Vhd {
        let files = Files::real().unwrap().in_another_boot();
        open_on(&files, &self.path(name), &Opening::new(Access::ReadWrite)).unwrap()
    }

    /// Why a child is not opened.
    fn refusal(&self, name: &str) -> String {
        self.open(name).err().unwrap().to_string()
    }

    /// Changes the header of a file, with its checksum.
    fn with_header(&self, name: &str, change: impl Fn(&mut Header)) {
        let bytes = fs::read(self.path(name)).unwrap();
        let mut header = header_of(&bytes);
        change(&mut header);
        patch(&self.path(name), 512, &header.emit());
    }
}

fn header_of(bytes: &[u8]) -> Header {
    let front: &[u8; HEADER_BYTES] = bytes[512..][..HEADER_BYTES].try_into().unwrap();
    Header::parse(front).unwrap()
}

#[test]
fn a_differencing_disk_keeps_the_contract() {
    let family = Family::new(NewFormat::VhdFixed);
    let base = fs::read(family.path("base.vhd")).unwrap();
    let fresh = || Arc::new(family.make("child.vhd", "base.vhd")) as SharedDisk;
    let again = |access| Arc::new(opened(&family.path("child.vhd"), access).unwrap());
    Subject::new(fresh)
        .reopened_by(|| again(Access::ReadWrite))
        .check();
    Subject::new(|| again(Access::ReadOnly)).check();
    assert!(base == fs::read(family.path("base.vhd")).unwrap());
}

#[test]
fn a_chain_reads_the_newest_of_each_sector() {
    let family = Family::new(NewFormat::VhdDynamic);
    let mut model = family.contents.clone();
    let mut write = |disk: &Vhd, at: usize, bytes: &[u8]| {
        disk.write(at as u64, bytes).unwrap();
        model[at..at + bytes.len()].copy_from_slice(bytes);
        assert!(contents(disk) == model);
    };
    let middle = family.make("middle.vhd", "base.vhd");
    write(&middle, 1000, &[1; 3000]);
    write(&middle, 6_500_000, &[2; 100]);
    drop(middle);
    let top = family.make("top.vhd", "middle.vhd");
    write(&top, 2000, &[3; 700]);
    write(&top, 5_000_000, &[4; 9000]);
    drop(top);
    let top = family.open("top.vhd").unwrap();
    assert!(contents(&top) == model);
    drop(top);
    let opening = Opening::new(Access::ReadOnly);
    let description = crate::describe(&family.path("top.vhd"), &opening).unwrap();
    let parents = ["middle.vhd", "base.vhd"].map(|name| family.path(name));
    assert_eq!(description.parents, parents);
    assert_eq!(description.name, "differencing VHD");
    assert_eq!(description.allocated_bytes, Some(2 * BLOCK));
}

#[test]
fn what_is_unmapped_hides_the_parent_for_good() {
    let family = Family::new(NewFormat::VhdDynamic);
    let child = family.make("child.vhd", "base.vhd");
    child.unmap(0, SIZE_BYTES).unwrap();
    child.flush().unwrap();
    drop(child);
    let child = family.open_in_another_boot("child.vhd");
    assert!(contents(&child).iter().all(|&b| b == 0));
    // Where the parent has nothing, nothing is hidden.
    assert_eq!(child.describe().allocated_bytes, Some(3 * BLOCK));
}

/// Unflushed bits count as long as the page cache that holds their data.
#[test]
fn an_unflushed_write_survives_the_process_and_a_flushed_one_the_host() {
    let family = Family::new(NewFormat::VhdDynamic);
    let mut model = family.contents.clone();
    let child = family.make("child.vhd", "base.vhd");
    child.write(512, &[1; 1024]).unwrap();
    child.flush().unwrap();
    model[512..1536].fill(1);
    let flushed = model.clone();
    child.write(2048, &[2; 512]).unwrap();
    model[2048..2560].fill(2);
    drop(child);
    let child = opened(&family.path("child.vhd"), Access::ReadOnly).unwrap();
    assert!(contents(&child) == model, "a reader sees it too");
    drop(child);
    let child = family.open_in_another_boot("child.vhd");
    assert!(contents(&child) == flushed);
    drop(child);
    // A flush of the next process makes it durable, though it touched nothing.
    let child = family.open("child.vhd").unwrap();
    child.flush().unwrap();
    drop(child);
    let child = family.open_in_another_boot("child.vhd");
    assert!(contents(&child) == model);
}

#[test]
fn the_file_is_what_the_specification_says() {
    let family = Family::new(NewFormat::VhdDynamic);
    let child = family.make("child.vhd", "base.vhd");
    child.write(BLOCK + 3 * 512, &[7; 1024]).unwrap();
    child.flush().unwrap();
    drop(child);
    let bytes = fs::read(family.path("child.vhd")).unwrap();
    let base = fs::read(family.path("base.vhd")).unwrap();
    let footer = Footer::parse(&bytes[..512]).unwrap();
    assert_eq!(footer.kind, Kind::Differencing);
    assert_eq!(footer.current_bytes, SIZE_BYTES);
    let header = header_of(&bytes);
    assert_eq!(
        header.parent_uuid,
        Footer::parse(&base[..512]).unwrap().uuid
    );
    assert_eq!(header.parent_name, "base.vhd");
    assert_eq!(bytes[512 + 64..][..4], *b"\0b\0a", "UTF-16, big-endian");
    let path_of = |at: usize| {
        let locator = header.locators[at];
        let start = usize::try_from(locator.offset).unwrap();
        let length = usize::try_from(locator.length_bytes).unwrap();
        assert_eq!(locator.space as usize, length.div_ceil(512));
        let units: Vec<u16> = bytes[start..start + length]
            .chunks(2)
            .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
            .collect();
        (locator.code, String::from_utf16(&units).unwrap())
    };
    assert_eq!(path_of(0), (*b"W2ru", r".\base.vhd".into()));
    let whole = fs::canonicalize(family.path("base.vhd")).unwrap();
    let whole = whole.to_str().unwrap().replace('/', "\\");
    assert_eq!(path_of(1), (*b"W2ku", whole));
    // One block: its bitmap has the highest bit for the first sector, and its
    // data is aligned.
    let table = usize::try_from(header.bat_offset).unwrap();
    let entry = |at: usize| u32::from_be_bytes(bytes[table + 4 * at..][..4].try_into().unwrap());
    assert_eq!((entry(0), entry(2)), (u32::MAX, u32::MAX));
    let start = entry(1) as usize * 512;
    assert_eq!((start + 512) % 4096, 0);
    assert_eq!(bytes[start..][..2], [0b0001_1000, 0]);
    assert_eq!(bytes[start + 512 + 3 * 512..][..1024], [7; 1024]);
    let front = &bytes[start - 1024..start];
    assert!(front[..512].iter().all(|&b| b == 0), "the shadow is void");
    assert_eq!(
        checksum(&bytes[512..1536], 36).to_be_bytes(),
        bytes[548..552]
    );
}

/// A child of `base.vhd` with one block as others place it: right behind the
/// table, with no room for a shadow. Its first sector is the child's.
fn tight(family: &Family) -> Vec<u8> {
    drop(family.make("child.vhd", "base.vhd"));
    let bytes = fs::read(family.path("child.vhd")).unwrap();
    let table = usize::try_from(header_of(&bytes).bat_offset).unwrap();
    let mut made = bytes[..table + 512].to_vec();
    let sector = u32::try_from(made.len() / 512).unwrap();
    made[table..table + 4].copy_from_slice(&sector.to_be_bytes());
    let mut bitmap = [0; 512];
    bitmap[0] = 0x80;
    made.extend(bitmap);
    made.extend(vec![0xcc; usize::try_from(BLOCK).unwrap()]);
    made.extend(&bytes[..512]);
    made
}

#[test]
fn a_block_without_room_is_filled_up_when_it_is_written_in() {
    let family = Family::new(NewFormat::VhdDynamic);
    let made = tight(&family);
    fs::write(family.path("child.vhd"), &made).unwrap();
    let mut model = family.contents.clone();
    model[..512].fill(0xcc);
    let child = family.open("child.vhd").unwrap();
    assert!(contents(&child) == model);
    child.write(1_000_000, &[5; 700]).unwrap();
    model[1_000_000..1_000_700].fill(5);
    assert!(contents(&child) == model);
    drop(child);
    let table = usize::try_from(header_of(&made).bat_offset).unwrap();
    let made = fs::read(family.path("child.vhd")).unwrap();
    assert_eq!(made[table + 512..][..512], [0xff; 512]);
    let child = family.open_in_another_boot("child.vhd");
    assert!(contents(&child) == model);
}

#[test]
fn a_filling_up_that_was_cut_off_shows_nothing_that_was_not_written() {
    let family = Family::new(NewFormat::VhdDynamic);
    let home = crash::scratch();
    let recorder = Recorder::new(home.path());
    let files = Files::real().unwrap().recorded_by(&recorder);
    let path = home.path().join("child.vhd");
    let file = files.create_file(&path).unwrap();
    file.write_all_at(&tight(&family), 0).unwrap();
    file.sync_data().unwrap();
    files.sync_dir(home.path()).unwrap();
    let opening = Opening {
        parent_roots: vec![family.dir.path().to_owned()],
        ..Opening::new(Access::ReadWrite)
    };
    let mut before = family.contents[..usize::try_from(BLOCK).unwrap()].to_vec();
    before[..512].fill(0xcc);
    let mut after = before.clone();
    after[1_000_448..1_001_472].fill(5);
    let child = open_on(&files, &path, &opening).unwrap();
    let begun = recorder.moment();
    child.write(1_000_448, &[5; 1024]).unwrap();
    drop(child);
    for moment in begun..=recorder.moment() {
        for fates in 0..4 {
            let left = crash::scratch();
            let mut dice = crash::Dice(fates);
            recorder.remake(moment, left.path(), &mut || dice.below(2) == 0);
            let child = open_on(
                &files.in_another_boot(),
                &left.path().join("child.vhd"),
                &opening,
            );
            let mut seen = vec![0; before.len()];
            child.unwrap().read(0, &mut seen).unwrap();
            for (at, seen) in seen.chunks(512).enumerate() {
                let place = at * 512..at * 512 + 512;
                let is_known = seen == &before[place.clone()] || seen == &after[place];
                assert!(is_known, "event {moment}: sector {at}");
            }
        }
    }
}

#[test]
fn a_parent_that_is_another_disk_is_refused_by_both_names() {
    let family = Family::new(NewFormat::VhdDynamic);
    drop(family.make("child.vhd", "base.vhd"));
    fs::remove_file(family.path("base.vhd")).unwrap();
    let refusal = family.refusal("child.vhd");
    assert!(
        refusal.contains("base.vhd") && refusal.contains("child.vhd"),
        "{refusal}"
    );
    make(&family.path("base.vhd"), NewFormat::VhdDynamic, SIZE_BYTES).unwrap();
    let error = family.open("child.vhd").err().unwrap();
    let refusal = error.to_string();
    assert!(
        refusal.contains("base.vhd") && refusal.contains("child.vhd"),
        "{refusal}"
    );
    let field = "Parent Unique ID";
    let is_it = |e| matches!(e, OpenError::Malformed { field: f, offset: 552, .. } if f == field);
    assert!(is_it(error));
}

#[test]
fn a_parent_is_found_by_its_last_name_too_and_its_time_is_noted() {
    let family = Family::new(NewFormat::VhdFixed);
    drop(family.make("child.vhd", "base.vhd"));
    assert!(family.open("child.vhd").unwrap().notes.is_empty());
    family.with_header("child.vhd", |header| {
        header.locators = Default::default();
        header.parent_name = r"C:\Users\me\base.vhd".into();
        header.parent_timestamp -= 100;
    });
    let child = family.open("child.vhd").unwrap();
    assert!(contents(&child) == family.contents);
    assert!(child.notes[0].contains("base.vhd"), "{:?}", child.notes);
}

#[test]
fn a_parent_elsewhere_needs_a_root() {
    let family = Family::new(NewFormat::VhdDynamic);
    for name in ["images", "pool"] {
        fs::create_dir(family.path(name)).unwrap();
    }
    fs::rename(family.path("base.vhd"), family.path("images/base.vhd")).unwrap();
    let child = family.make("pool/child.vhd", "images/base.vhd");
    assert!(contents(&child) == family.contents);
    drop(child);
    let refusal = family.refusal("pool/child.vhd");
    assert!(refusal.contains("outside"), "{refusal}");
    let opening = Opening {
        parent_roots: vec![family.path("images")],
        ..Opening::new(Access::ReadWrite)
    };
    let child = open(&family.path("pool/child.vhd"), &opening).unwrap();
    assert!(contents(&child) == family.contents);
}

#[test]
fn cycles_and_lies_about_the_parent_are_refused() {
    let family = Family::new(NewFormat::VhdDynamic);
    drop(family.make("a.vhd", "base.vhd"));
    let own = Footer::parse(&fs::read(family.path("a.vhd")).unwrap()[..512]).unwrap();
    family.with_header("a.vhd", |header| {
        header.locators = Default::default();
        header.parent_name = "a.vhd".into();
        header.parent_uuid = own.uuid;
    });
    let refusal = family.refusal("a.vhd");
    assert!(refusal.contains("its own ancestor"), "{refusal}");

    for (length, offset) in [
        (u32::MAX, 1536),
        (20, u64::MAX - 5),
        (20, 1 << 40),
        (70_000, 0),
        (20, 1500),
    ] {
        drop(family.make("b.vhd", "base.vhd"));
        family.with_header("b.vhd", |header| {
            header.locators[0].length_bytes = length;
            header.locators[0].offset = offset;
        });
        let error = family.open("b.vhd").err().unwrap();
        let OpenError::Malformed { field, offset, .. } = error else {
            panic!("{error}");
        };
        assert_eq!((field, offset), ("Parent Locator", 512 + 576));
    }

    // One that nobody follows says nothing about where blocks may lie.
    drop(family.make("b.vhd", "base.vhd"));
    family.with_header("b.vhd", |header| {
        header.locators[5].code = *b"MacX";
        header.locators[5].length_bytes = u32::MAX;
    });
    for at in [0, BLOCK] {
        family.open("b.vhd").unwrap().write(at, &[1; 512]).unwrap();
    }

    // A child that is smaller than what it stands on.
    drop(family.make("c.vhd", "base.vhd"));
    let mut footer = Footer::parse(&fs::read(family.path("c.vhd")).unwrap()[..512]).unwrap();
    footer.current_bytes -= 512;
    patch(&family.path("c.vhd"), 0, &footer.emit());
    let length = fs::metadata(family.path("c.vhd")).unwrap().len();
    patch(&family.path("c.vhd"), length - 512, &footer.emit());
    let refusal = family.refusal("c.vhd");
    assert!(refusal.contains("base.vhd"), "{refusal}");
}

#[test]
fn a_parent_is_never_written_under_its_child() {
    let family = Family::new(NewFormat::VhdDynamic);
    let child = family.make("child.vhd", "base.vhd");
    assert!(matches!(
        family.open("base.vhd"),
        Err(OpenError::InUse { .. })
    ));
    let _other_child = family.make("other.vhd", "base.vhd");
    drop(child);
}
