//! Claims about `target serve`: files served at once, in the foreground.

use super::*;

/// `diskless target serve`, running.
struct Serving {
    program: Program,
    /// One a LUN and portal.
    urls: Vec<String>,
}

impl Serving {
    fn start(arguments: &[&str], files: &[&Path]) -> Serving {
        let mut command = Command::new(DISKLESS);
        command
            .args(["target", "serve", "--listen", "127.0.0.1:0"])
            .args(arguments)
            .args(files)
            .env_remove("DISKLESS_TARGET_CHAP");
        let mut program = Program::start(&mut command);
        let urls = program.lines(files.len());
        if urls.len() < files.len() {
            let (_, log) = program.end(Signal::TERM);
            panic!("not served: {log}");
        }
        Serving { program, urls }
    }

    fn url(&self) -> &str {
        &self.urls[0]
    }

    /// `ADDR:PORT`.
    fn portal(&self) -> &str {
        self.url().split('/').nth(2).unwrap()
    }
}

/// What the program says instead of serving.
fn refusal(arguments: &[&str]) -> String {
    let output = Command::new(DISKLESS)
        .args(["target", "serve", "--listen", "127.0.0.1:0"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success(), "served: {arguments:?}");
    assert_eq!(output.stdout, b"");
    text(&output)
}

#[test]
fn what_is_written_through_a_served_file_is_in_the_file() {
    let directory = scratch();
    let file = sparse(directory.path(), "a.img", 16);
    let serving = Serving::start(&[], &[&file]);
    let Some(said) = content(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 0xa5 64k 192k",
            "-c",
            "read -P 0xa5 64k 192k",
            serving.url(),
        ],
    ) else {
        return;
    };
    assert!(!said.contains("failed"), "{said}");
    assert_eq!(bytes_at(&file, 64 << 10, 192 << 10), vec![0xa5; 192 << 10]);
    assert_eq!(bytes_at(&file, 256 << 10, 512), vec![0; 512]);
    let (status, log) = serving.program.end(Signal::TERM);
    assert!(status.success(), "{log}");
    assert!(log.contains("logged in"), "{log}");
}

#[test]
fn every_file_is_a_lun_and_every_listed_lun_is_a_file() {
    let directory = scratch();
    let files = [1, 2, 3].map(|mib| sparse(directory.path(), &format!("{mib}.img"), mib));
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let serving = Serving::start(&["--iqn", "iqn.2026-01.lab:three"], &files);
    for (lun, url) in serving.urls.iter().enumerate() {
        let end = format!("/iqn.2026-01.lab:three/{lun}");
        assert!(
            url.starts_with("iscsi://127.0.0.1:") && url.ends_with(&end),
            "{url}"
        );
        assert!(!url.contains(":0/"), "{url}");
        let Some(said) = content("qemu-img", &["info", url]) else {
            return;
        };
        assert!(said.contains(&format!("{} MiB", lun + 1)), "{said}");
    }
    let portal = format!("iscsi://{}", serving.portal());
    let Some(said) = content("iscsi-ls", &["-s", &portal]) else {
        return;
    };
    let luns = said.lines().filter(|line| line.starts_with("Lun:")).count();
    assert_eq!(luns, 3, "{said}");
    // Ctrl-C ends it as well.
    assert!(serving.program.end(Signal::INT).0.success());
}

#[test]
fn a_thin_disk_gives_space_back_and_a_plain_one_offers_none() {
    let directory = scratch();
    for (arguments, is_thin) in [(&["--thin"][..], true), (&[], false)] {
        let file = sparse(directory.path(), "a.img", 8);
        fs::write(&file, vec![7; 8 << 20]).unwrap();
        let before = allocated(&file);
        let serving = Serving::start(arguments, &[&file]);
        let discard = [
            "-f",
            "raw",
            "-d",
            "unmap",
            "-c",
            "discard 1M 4M",
            serving.url(),
        ];
        if judge("qemu-io", &discard).is_none() {
            return;
        }
        // Linux believes READ CAPACITY(16) in this (LBPME).
        let Some(capacity) = content("iscsi-readcapacity16", &[serving.url()]) else {
            return;
        };
        let lbpme = if is_thin { "LBPME:1" } else { "LBPME:0" };
        assert!(capacity.contains(lbpme), "{capacity}");
        let given_back = before.saturating_sub(allocated(&file));
        assert_eq!(given_back >= 4 << 20, is_thin, "{given_back} bytes");
        let kept = if is_thin { 0 } else { 7 };
        assert_eq!(bytes_at(&file, 2 << 20, 512), vec![kept; 512]);
    }
}

#[test]
fn a_read_only_file_is_read_and_not_written() {
    let directory = scratch();
    let file = sparse(directory.path(), "a.img", 4);
    fs::write(&file, vec![9; 4 << 20]).unwrap();
    let serving = Serving::start(&["--read-only"], &[&file]);
    let Some(said) = content(
        "qemu-io",
        &["-r", "-f", "raw", "-c", "read -P 9 0 4M", serving.url()],
    ) else {
        return;
    };
    assert!(said.contains("read 4194304/4194304"), "{said}");
    let write = ["-f", "raw", "-c", "write -P 1 0 4k", serving.url()];
    let (_, said) = judge("qemu-io", &write).unwrap();
    assert!(said.contains("write protected"), "{said}");
    assert_eq!(bytes_at(&file, 0, 4096), vec![9; 4096]);
    // Two may read one file, nobody may write it meanwhile.
    let _beside = Serving::start(&["--read-only"], &[&file]);
    let refused = refusal(&[file.to_str().unwrap()]);
    assert!(refused.contains("--read-only"), "{refused}");
}

#[test]
fn blocks_of_4096_bytes_are_told_and_served() {
    let directory = scratch();
    let file = sparse(directory.path(), "a.img", 4);
    let serving = Serving::start(&["--block-size", "4096"], &[&file]);
    let test = [
        "--dataloss",
        "-t",
        "SCSI.ReadCapacity16.Simple",
        serving.url(),
    ];
    if content("iscsi-test-cu", &test).is_none() {
        return;
    }
    let Some(said) = content("iscsi-readcapacity16", &[serving.url()]) else {
        return;
    };
    assert!(said.contains("4096"), "{said}");
}

#[test]
fn only_who_knows_the_secret_comes_in() {
    const SECRET: &str = "let me in please";
    let directory = scratch();
    let file = sparse(directory.path(), "a.img", 4);
    let secret_file = directory.path().join("chap");
    fs::write(&secret_file, format!("me:{SECRET}\n")).unwrap();
    let serving = Serving::start(&["--chap-file", secret_file.to_str().unwrap()], &[&file]);
    let url = |who: &str| {
        serving
            .url()
            .replace("iscsi://", &format!("iscsi://{who}@"))
    };
    if content("qemu-img", &["info", &url(&format!("me%{SECRET}"))]).is_none() {
        return;
    }
    for wrong in [
        serving.url().to_owned(),
        url("me%another secret"),
        url(&format!("you%{SECRET}")),
    ] {
        let (is_in, _) = judge("qemu-img", &["info", &wrong]).unwrap();
        assert!(!is_in, "{wrong}");
    }
    let portal = format!("iscsi://{}", serving.portal());
    let (sees, said) = judge("iscsi-ls", &[&portal]).unwrap();
    assert!(!sees && !said.contains("Target:"), "{said}");
    let (_, log) = serving.program.end(Signal::TERM);
    assert!(!log.contains(SECRET), "the secret is in the log: {log}");
}

#[test]
fn a_served_file_is_the_same_disk_after_a_restart_and_another_than_its_neighbour() {
    let directory = scratch();
    let [a, b] = ["a.img", "b.img"].map(|name| sparse(directory.path(), name, 4));
    let serials = |files: &[&Path]| -> Option<Vec<String>> {
        let serving = Serving::start(&[], files);
        let urls = serving.urls.iter();
        urls.map(|url| content("iscsi-inq", &["-e", "1", "-c", "128", url]))
            .collect()
    };
    let Some(first) = serials(&[&a, &b]) else {
        return;
    };
    assert_ne!(first[0], first[1]);
    let again = serials(&[&b, &a]).unwrap();
    assert_eq!((&again[1], &again[0]), (&first[0], &first[1]));
}

#[test]
fn what_is_wrong_is_said_with_what_to_do() {
    let directory = scratch();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let said = |name: &str, words: &[&str]| {
        let refused = refusal(&[&path(name)]);
        for word in words {
            assert!(refused.contains(word), "{name}: {refused}");
        }
    };
    said(
        "missing.img",
        &["missing.img does not exist", "truncate -s 10G"],
    );
    said("", &["is a directory"]);
    fs::write(path("empty.img"), b"").unwrap();
    said("empty.img", &["is empty", "truncate -s 10G"]);
    fs::write(path("cut.img"), [0; 1000]).unwrap();
    said("cut.img", &["1000 bytes", "truncate -s %512"]);
    fs::write(path("a.qcow2"), [&b"QFI\xfb"[..], &[0; 1020]].concat()).unwrap();
    said("a.qcow2", &["qcow2", "qemu-img convert"]);
    let fifo = rustix::fs::CWD;
    rustix::fs::mknodat(
        fifo,
        path("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    said("pipe", &["neither a file nor a block device"]);
    let file = sparse(directory.path(), "readable.img", 1);
    if forbid_writing(&file) {
        said("readable.img", &["--read-only"]);
    }
    let refused = refusal(&["--chap", "me:short", &path("readable.img")]);
    assert!(refused.contains("12 to"), "{refused}");
    let refused = refusal(&["--thin", "--read-only", &path("readable.img")]);
    assert!(refused.contains("cannot be used with"), "{refused}");
}

#[test]
fn containers_are_served_as_the_disks_they_hold() {
    let directory = scratch();
    let path = |name: &str| directory.path().join(name);
    for (format, name) in [("vpc", "a.vhd"), ("vhdx", "a.vhdx")] {
        let file = path(name);
        let shown = file.to_str().unwrap();
        let made = content("qemu-img", &["create", "-q", "-f", format, shown, "64M"]);
        if made.is_none() {
            return;
        }
        let serving = Serving::start(&[], &[&file]);
        let write = ["-f", "raw", "-c", "write -P 0xa5 9M 1M", serving.url()];
        let Some(said) = content("qemu-io", &write) else {
            return;
        };
        assert!(!said.contains("failed"), "{said}");
        let (status, log) = serving.program.end(Signal::TERM);
        assert!(status.success(), "{log}");
        let read = ["-f", format, "-c", "read -P 0xa5 9M 1M", shown];
        let said = content("qemu-io", &read).unwrap();
        assert!(
            said.contains("read 1048576") && !said.contains("failed"),
            "{said}"
        );
        if format == "vhdx" {
            content("qemu-img", &["check", "-f", format, shown]).unwrap();
        }
    }
    let (raw, qcow2) = (path("a.raw"), path("a.qcow2"));
    fs::write(&raw, vec![0x5a; 1 << 20]).unwrap();
    let (from, to) = (raw.to_str().unwrap(), qcow2.to_str().unwrap());
    content("qemu-img", &["convert", "-O", "qcow2", from, to]).unwrap();
    assert!(refusal(&[to]).contains("--read-only"));
    let serving = Serving::start(&["--read-only"], &[&qcow2]);
    let read = ["-r", "-f", "raw", "-c", "read -P 0x5a 0 1M", serving.url()];
    let said = content("qemu-io", &read).unwrap();
    assert!(
        said.contains("read 1048576") && !said.contains("failed"),
        "{said}"
    );
}

#[test]
fn a_port_or_a_file_that_is_taken_is_named() {
    let directory = scratch();
    let [a, b] = ["a.img", "b.img"].map(|name| sparse(directory.path(), name, 1));
    let serving = Serving::start(&[], &[&a]);
    let refused = refusal(&[a.to_str().unwrap()]);
    assert!(
        refused.contains("a.img is in use") && refused.contains("--read-only"),
        "{refused}"
    );
    let refused = refusal(&["--listen", serving.portal(), b.to_str().unwrap()]);
    assert!(
        refused.contains(serving.portal()) && refused.contains("is taken"),
        "{refused}"
    );
}

#[test]
fn every_portal_serves_the_same_disk() {
    let directory = scratch();
    let file = sparse(directory.path(), "a.img", 4);
    let mut command = Command::new(DISKLESS);
    command
        .args([
            "target",
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--listen",
            "127.0.0.2:0",
        ])
        .arg(&file);
    let mut program = Program::start(&mut command);
    let urls = program.lines(2);
    assert!(
        urls[0].contains("127.0.0.1:") && urls[1].contains("127.0.0.2:"),
        "{urls:?}"
    );
    let write = ["-f", "raw", "-c", "write -P 3 0 64k", &urls[0]];
    if content("qemu-io", &write).is_none() {
        return;
    }
    let read = ["-f", "raw", "-c", "read -P 3 0 64k", &urls[1]];
    let said = content("qemu-io", &read).unwrap();
    assert!(!said.contains("failed"), "{said}");
    assert!(program.end(Signal::TERM).0.success());
}

#[test]
fn more_files_are_served_than_the_usual_limit_on_open_files() {
    let directory = scratch();
    let files: Vec<PathBuf> = (0..300)
        .map(|number| sparse(directory.path(), &format!("{number}.img"), 1))
        .collect();
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -Sn 200 && exec \"$@\"", "sh", DISKLESS])
        .args(["target", "serve", "--read-only", "--listen", "127.0.0.1:0"])
        .args(&files);
    let mut program = Program::start(&mut command);
    let urls = program.lines(300);
    let (status, log) = program.end(Signal::TERM);
    assert_eq!(urls.len(), 300, "{log}");
    assert!(status.success(), "{log}");
}
