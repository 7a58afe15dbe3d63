//! qemu's opinion of what we write, and ours of what it writes.

use super::*;
use crate::tests::qemu;

fn run(program: &str, arguments: &[&str]) -> String {
    qemu::run(Command::new(program).args(arguments))
}

/// Pieces of random places, as any disk of at least 9 MiB can hold them.
fn scribble(disk: &dyn Disk) {
    for (at, length) in [(0, 512), (1 << 20, 5000), (4_190_000, 9000), (9 << 20, 512)] {
        let byte = u8::try_from(at % 251 + 1).unwrap();
        disk.write(at, &vec![byte; length]).unwrap();
    }
    disk.unmap(1 << 20, 4096).unwrap();
    disk.flush().unwrap();
}

/// Its first block begins right behind the table.
#[test]
fn a_dynamic_disk_of_qemus_keeps_its_first_block_when_it_grows() {
    if !qemu::is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qemu.vhd");
    let shown = path.to_str().unwrap();
    let options = "subformat=dynamic,force_size=on";
    let create = ["create", "-f", "vpc", "-o", options, shown, "16M"];
    run("qemu-img", &create);
    run("qemu-io", &["-f", "vpc", "-c", "write -P 0x5a 0 4M", shown]);
    let before = contents(&opened(&path, Access::ReadOnly).unwrap());
    crate::grow(&path, &Opening::new(Access::ReadWrite), 1 << 30).unwrap();
    let disk = opened(&path, Access::ReadOnly).unwrap();
    let mut after = vec![0; before.len()];
    disk.read(0, &mut after).unwrap();
    assert!(after == before);
}

#[test]
fn qemu_reads_what_we_write() {
    if !qemu::is_here() {
        return;
    }
    for format in [NewFormat::VhdFixed, NewFormat::VhdDynamic] {
        let kinds = Kinds::of(format);
        let disk = kinds.fresh();
        scribble(&*disk);
        let raw = kinds.dir.path().join("disk.raw");
        fs::write(&raw, contents(&*disk)).unwrap();
        drop(disk);
        let (vhd, raw) = (kinds.path(), raw.to_str().unwrap().to_owned());
        let vhd = vhd.to_str().unwrap();
        let info = run("qemu-img", &["info", "-f", "vpc", vhd]);
        assert!(info.contains(&format!("({SIZE_BYTES} bytes)")), "{info}");
        run(
            "qemu-img",
            &["compare", "-f", "vpc", "-F", "raw", vhd, &raw],
        );
        // And goes on writing in it.
        let write = "write -P 0x5a 6M 3000k";
        run("qemu-io", &["-f", "vpc", "-c", write, vhd]);
        let disk = kinds.again(Access::ReadWrite);
        let seen = contents(&*disk);
        assert!(seen[6 << 20..][..3000 << 10].iter().all(|&b| b == 0x5a));
        disk.write(7 << 20, &[0x33; 9000]).unwrap();
        drop(disk);
        let check = format!("read -P 0x33 {} 8704", 7 << 20);
        run("qemu-io", &["-f", "vpc", "-c", &check, vhd]);
    }
}

#[test]
fn what_qemu_writes_reads_back_right() {
    if !qemu::is_here() {
        return;
    }
    for (options, size_bytes) in [
        ("subformat=dynamic", 10_514_432),
        ("subformat=fixed", 10_514_432),
        ("subformat=dynamic,force_size=on", 10 << 20),
        ("subformat=fixed,force_size=on", 10 << 20),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.vhd");
        let name = path.to_str().unwrap();
        run(
            "qemu-img",
            &["create", "-q", "-f", "vpc", "-o", options, name, "10M"],
        );
        run(
            "qemu-io",
            &[
                "-f",
                "vpc",
                "-c",
                "write -P 0x21 3M 512",
                "-c",
                "write -P 0x42 8M 70k",
                name,
            ],
        );
        let disk = opened(&path, Access::ReadWrite).unwrap();
        assert_eq!(disk.geometry().size_bytes, size_bytes, "{options}");
        let mut model = vec![0; usize::try_from(size_bytes).unwrap()];
        model[3 << 20..][..512].fill(0x21);
        model[8 << 20..][..70 << 10].fill(0x42);
        assert!(contents(&disk) == model, "{options}");
        // Beside its blocks, ours.
        disk.write((5 << 20) + 100, &[0x63; 3_000_000]).unwrap();
        model[(5 << 20) + 100..][..3_000_000].fill(0x63);
        assert!(contents(&disk) == model, "{options}");
        drop(disk);
        let raw = dir.path().join("disk.raw");
        fs::write(&raw, &model).unwrap();
        run(
            "qemu-img",
            &[
                "compare",
                "-f",
                "vpc",
                "-F",
                "raw",
                name,
                raw.to_str().unwrap(),
            ],
        );
    }
}

/// The structure qemu 10.0.2 leaves after one write of 512 bytes at 3 MiB.
#[test]
fn a_block_of_qemus_is_found_where_it_is() {
    if !qemu::is_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.vhd");
    let name = path.to_str().unwrap();
    run("qemu-img", &["create", "-q", "-f", "vpc", name, "10M"]);
    run("qemu-io", &["-f", "vpc", "-c", "write -P 1 3M 512", name]);
    let disk = opened(&path, Access::ReadOnly).unwrap();
    let place = disk.blocks.as_ref().unwrap().place(3 << 20);
    assert_eq!(place, Place::Stored(2048 + 512 + (1 << 20)));
    assert_eq!(fs::metadata(&path).unwrap().len(), 2_100_224);
}

/// Of the dynamic one, the table moves behind the blocks.
#[test]
fn qemu_reads_and_writes_what_has_grown() {
    if !qemu::is_here() {
        return;
    }
    let size_bytes = 1200 << 20;
    for format in [NewFormat::VhdFixed, NewFormat::VhdDynamic] {
        let kinds = Kinds::of(format);
        let disk = kinds.fresh();
        scribble(&*disk);
        let front = contents(&*disk);
        drop(disk);
        crate::grow(&kinds.path(), &Opening::new(Access::ReadWrite), size_bytes).unwrap();
        let raw = kinds.dir.path().join("disk.raw");
        fs::write(&raw, front).unwrap();
        let file = fs::OpenOptions::new().write(true).open(&raw).unwrap();
        file.set_len(size_bytes).unwrap();
        let (vhd, raw) = (kinds.path(), raw.to_str().unwrap().to_owned());
        let vhd = vhd.to_str().unwrap();
        let compare = ["compare", "-f", "vpc", "-F", "raw", vhd, &raw];
        run("qemu-img", &compare);
        run(
            "qemu-io",
            &["-f", "vpc", "-c", "write -P 0x77 1100M 64k", vhd],
        );
        let disk = kinds.again(Access::ReadWrite);
        let mut seen = vec![0; 64 << 10];
        disk.read(1100 << 20, &mut seen).unwrap();
        assert!(seen.iter().all(|&b| b == 0x77));
    }
}
