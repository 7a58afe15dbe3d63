//! Claims about own disks, through the command line of a running server.

use super::kept::Site;
use super::*;

#[test]
fn an_own_disk_is_made_served_grown_copied_and_removed() {
    let Some(mut site) = Site::start() else {
        return;
    };
    if judge("qemu-io", &["--version"]).is_none() || judge("sfdisk", &["--version"]).is_none() {
        return;
    }
    let refused = |site: &Site, line: &str, words: &str| {
        let (is_done, said) = site.ask(line);
        assert!(!is_done && said.contains(words), "{line}: {said}");
    };
    // A disk with a GPT, from somewhere else.
    let source = sparse(site.directory.path(), "source.raw", 64);
    let mut sfdisk = Command::new("sfdisk");
    let mut child = sfdisk
        .args(["-q", source.to_str().unwrap()])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let script = b"label: gpt\n,,\n";
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), script).unwrap();
    assert!(child.wait().unwrap().success());
    let source = source.display();
    site.run(&format!("disk import win {source} --format vhdx"));
    site.run("disk create empty --size 40T --format vhdx");
    site.run("target add data");
    site.run("target lun add data --disk win");
    refused(&site, "disk remove win", "LUN 0 of data");
    refused(&site, "disk resize win 128M", "in use");
    site.restart();
    let url = site.url("data", 0);
    let Some((is_done, said)) = site.qemu_io(&url, &["write -P 0xa5 30M 1M", "flush"]) else {
        return;
    };
    assert!(is_done, "{said}");
    site.run("target lun remove data 0");

    for line in ["disk clone win copy", "disk convert win --format raw"] {
        site.run(line);
    }
    let said = site.run("disk resize win 128M");
    assert!(said.contains("GPT"), "{said}");
    let shown = site.json("disk info win");
    assert_eq!(shown["size_bytes"], 128 << 20, "{shown}");
    let file = shown["file"].as_str().unwrap().to_owned();
    assert_eq!(
        bytes_at(Path::new(&file), 30 << 20, 1 << 20),
        vec![0xa5; 1 << 20]
    );
    let said = content("sfdisk", &["--verify", &file]).unwrap();
    assert!(said.contains("No errors detected"), "{said}");
    if let Some(said) = content("sgdisk", &["-v", &file]) {
        assert!(said.contains("No problems found"), "{said}");
    }
    let copy = site.json("disk info copy")["file"]
        .as_str()
        .unwrap()
        .to_owned();
    content("qemu-img", &["check", "-q", "-f", "vhdx", &copy]).unwrap();
    let read = ["-r", "-f", "vhdx", "-c", "read -P 0xa5 30M 1M", &copy];
    let said = content("qemu-io", &read).unwrap();
    assert!(
        said.contains("read 1048576") && !said.contains("failed"),
        "{said}"
    );

    let machine = "machine add pc1 --mac 52:54:00:00:00:01 --disk win";
    let said = site.run(machine);
    assert!(said.contains("disk win, direct"), "{said}");
    refused(
        &site,
        "machine add pc2 --mac 52:54:00:00:00:02 --disk win",
        "machine pc1",
    );
    refused(&site, "disk remove win", "machine pc1");
    site.run("machine remove pc1");
    for disk in ["win", "copy", "empty"] {
        site.run(&format!("disk remove {disk}"));
    }
    let left = fs::read_dir(site.directory.path().join("data/disks")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
fn a_second_server_on_a_data_directory_is_refused() {
    let Some(site) = Site::start() else {
        return;
    };
    let mut second = site.inside(DISKLESS);
    second
        .args(["serve", "--interface", "lo", "--dhcp-mode", "observe"])
        .args(["--set", "network.address=127.0.0.1"])
        .args(["--set", "tftp.enabled=false"])
        .args(["--set", "http.port=8081", "--set", "iscsi.port=3261"])
        .arg("--data")
        .arg(site.directory.path().join("data"))
        .arg("--api")
        .arg(site.directory.path().join("second"));
    let output = second.output().unwrap();
    assert!(!output.status.success());
    let said = text(&output);
    assert!(said.contains("is in use by process"), "{said}");
    site.run("status");
}

/// A block device over a file, while it lives.
struct Loop(String);

impl Loop {
    /// `None` where there are no loop devices for this user.
    fn over(file: &Path, sector_bytes: u32) -> Option<Loop> {
        let sector_size = format!("--sector-size={sector_bytes}");
        let (is_there, said) = judge(
            "losetup",
            &[&sector_size, "-f", "--show", file.to_str().unwrap()],
        )?;
        if !is_there {
            eprintln!("skipped: no loop device for this user: {said}");
            return None;
        }
        Some(Loop(said.trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        judge("losetup", &["-d", &self.0]);
    }
}

#[test]
fn a_drive_is_imported_with_the_blocks_it_has() {
    let Some(site) = Site::start() else {
        return;
    };
    let file = sparse(site.directory.path(), "drive", 8);
    let mut bytes = vec![0; 8 << 20];
    bytes[..4096].fill(1);
    bytes[5 << 20..6 << 20].fill(0xa5);
    fs::write(&file, &bytes).unwrap();

    let Some(old) = Loop::over(&file, 512) else {
        return;
    };
    site.run(&format!("image import old {}", old.0));
    let image = site.directory.path().join("data/images/old/v001/disk.raw");
    assert!(fs::read(image).unwrap() == bytes);
    site.run(&format!("disk import old {}", old.0));
    let disk = site.directory.path().join("data/disks/old.raw");
    assert!(fs::read(disk).unwrap() == bytes);

    drop(old);

    let Some(new) = Loop::over(&file, 4096) else {
        return;
    };
    let device = &new.0;
    for line in [
        format!("image import new {device}"),
        format!("disk import new {device}"),
        format!("disk import new {device} --format vhd"),
    ] {
        let (is_done, said) = site.ask(&line);
        assert!(
            !is_done && said.contains("blocks of 4096"),
            "{line}: {said}"
        );
        assert!(said.contains("--format vhdx"), "{line}: {said}");
    }
    site.run(&format!("disk import new {device} --format vhdx"));
    site.run("target add data");
    site.run("target lun add data --disk new");
    let url = site.url("data", 0);
    let Some((is_done, said)) = site.qemu_io(&url, &["read -P 1 0 4k", "read -P 0xa5 5M 1M"])
    else {
        return;
    };
    assert!(is_done, "{said}");
    let Some((_, said)) = site.judge("iscsi-readcapacity16", &[&url]) else {
        return;
    };
    assert!(said.contains("BYTES:4096"), "{said}");
}
