//! Claims about targets that a running server keeps, in a network namespace of
//! its own.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::*;

/// Time to start, and to come to what a test waits for, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const PORTAL: &str = "iscsi://127.0.0.1:3260";

/// `diskless serve`, running, and its data.
pub(crate) struct Site {
    pub(crate) directory: tempfile::TempDir,
    program: Option<Program>,
}

impl Site {
    /// `None` where this user cannot make a namespace.
    pub(crate) fn start() -> Option<Site> {
        let (is_possible, said) = judge("unshare", &["-rn", "ip", "link", "set", "lo", "up"])?;
        if !is_possible {
            let ci = std::env::var("CI").is_ok_and(|value| value == "true");
            assert!(!ci, "no network namespace: {said}");
            eprintln!("skipped: no network namespace here: {said}");
            return None;
        }
        let mut site = Site {
            directory: scratch(),
            program: None,
        };
        site.restart();
        Some(site)
    }

    /// Ends the server with a kill.
    pub(crate) fn kill(&mut self) {
        self.program = None;
    }

    /// Starts the server, ending the one there is with a kill.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let mut command = Command::new("unshare");
        command
            .args([
                "-rn",
                "sh",
                "-c",
                "ip link set lo up && exec \"$@\"",
                "sh",
                DISKLESS,
            ])
            .args(["serve", "--interface", "lo", "--dhcp-mode", "observe"])
            .args([
                "--set",
                "network.address=127.0.0.1",
                "--set",
                "tftp.enabled=false",
            ])
            .arg("--data")
            .arg(self.directory.path().join("data"))
            .arg("--api")
            .arg(self.socket());
        self.program = Some(Program::start(&mut command));
        let deadline = Instant::now() + PATIENCE;
        while !self.ask("status").0 {
            assert!(Instant::now() < deadline, "it does not start");
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("api")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command line; whether it succeeded, and what it said.
    pub(crate) fn ask(&self, line: &str) -> (bool, String) {
        let output = Command::new(DISKLESS)
            .arg("--api")
            .arg(self.socket())
            .args(line.split_whitespace())
            .output()
            .unwrap();
        (output.status.success(), text(&output))
    }

    /// A command line that is not waited for.
    pub(crate) fn begin(&self, line: &str) -> Child {
        Command::new(DISKLESS)
            .arg("--api")
            .arg(self.socket())
            .args(line.split_whitespace())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    pub(crate) fn run(&self, line: &str) -> String {
        let (is_done, said) = self.ask(line);
        assert!(is_done, "{line}: {said}");
        said
    }

    pub(crate) fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.run(&format!("{line} --json"))).unwrap()
    }

    /// A command inside the server's namespace.
    pub(crate) fn inside(&self, program: &str) -> Command {
        let pid = self.program.as_ref().unwrap().child.id().to_string();
        let mut command = Command::new("nsenter");
        command.args([
            "-t",
            &pid,
            "-U",
            "-n",
            "--preserve-credentials",
            "--",
            program,
        ]);
        command
    }

    /// A judge inside the server's namespace.
    pub(crate) fn judge(&self, program: &str, arguments: &[&str]) -> Option<(bool, String)> {
        // Missing ones are skipped before.
        judge(program, &["--help"])?;
        let output = self.inside(program).args(arguments).output().unwrap();
        Some((output.status.success(), text(&output)))
    }

    pub(crate) fn url(&self, target: &str, lun: u16) -> String {
        let iqn = self.json(&format!("target show {target}"))["iqn"].clone();
        format!("{PORTAL}/{}/{lun}", iqn.as_str().unwrap())
    }

    /// QEMU's I/O tool with these commands on a LUN.
    pub(crate) fn qemu_io(&self, url: &str, commands: &[&str]) -> Option<(bool, String)> {
        let mut arguments = vec!["-f", "raw"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(url);
        let (is_done, said) = self.judge("qemu-io", &arguments)?;
        Some((is_done && !said.contains("failed"), said))
    }
}

#[test]
fn targets_by_the_hundred_with_luns_by_the_hundred_are_kept_and_reported() {
    const MANY: usize = 300;
    let Some(mut site) = Site::start() else {
        return;
    };
    for number in 0..MANY {
        site.run(&format!("target add t{number}"));
    }
    for number in 0..MANY {
        let file = sparse(site.directory.path(), &format!("{number}.img"), 1);
        site.run(&format!("target lun add t7 {} --read-only", file.display()));
    }
    site.restart();
    assert_eq!(site.json("target list").as_array().unwrap().len(), MANY);
    let Some((is_done, said)) = site.judge("iscsi-ls", &["-s", PORTAL]) else {
        return;
    };
    assert!(is_done, "{said}");
    let count = |what: &str| said.lines().filter(|line| line.starts_with(what)).count();
    assert_eq!(count("Target:"), MANY);
    assert_eq!(count("Lun:"), MANY);
    // The last of them is past what 8 bits name: libiscsi takes the number as
    // it was reported, which is flat addressing's (SAM-5 section 4.7.7.3).
    let url = site.url("t7", 0x4000 | 299);
    let (is_done, said) = site.judge("qemu-img", &["info", &url]).unwrap();
    assert!(is_done && said.contains("1 MiB"), "{said}");
}

#[test]
fn a_disk_grows_under_a_session_and_is_as_large_after_a_restart() {
    let Some(mut site) = Site::start() else {
        return;
    };
    let file = sparse(site.directory.path(), "a.img", 16);
    site.run("target add data");
    site.run(&format!("target lun add data {} --thin", file.display()));
    let url = site.url("data", 0);
    let Some((is_done, said)) = site.qemu_io(&url, &["write -P 1 0 1M", "read -P 0 15M 1M"]) else {
        return;
    };
    assert!(is_done, "{said}");
    // A session that lasts: it has the old size, and hears of the new one.
    let mut reader = Program::start(site.inside("sh").args([
        "-c",
        "(echo 'read -P 1 0 1M'; while [ ! -e \"$2\" ]; do sleep 0.05; done; \
         echo 'read -P 1 0 1M'; echo 'write -P 2 15M 1M'; echo quit) | qemu-io -f raw \"$1\"",
        "sh",
        &url,
        site.path("grown").to_str().unwrap(),
    ]));
    let deadline = Instant::now() + PATIENCE;
    while site.json("session list").as_array().unwrap().is_empty() {
        assert!(Instant::now() < deadline, "it does not log in");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(site.json("session list")[0]["plain"], "data");
    assert_eq!(site.json("target show data")["sessions"], 1);
    site.run("target lun resize data 0 32M");
    fs::write(site.path("grown"), "").unwrap();
    let status = reader.child.wait().unwrap();
    assert!(status.success());
    assert_eq!(bytes_at(&file, 15 << 20, 1 << 20), vec![2; 1 << 20]);
    let (is_done, said) = site.qemu_io(&url, &["write -P 3 31M 1M"]).unwrap();
    assert!(is_done, "{said}");
    site.restart();
    let (is_done, said) = site
        .qemu_io(&url, &["read -P 3 31M 1M", "read -P 1 0 1M"])
        .unwrap();
    assert!(is_done, "{said}");
    assert_eq!(site.json("status")["targets"], 1);
}

#[test]
fn a_secret_that_was_made_opens_its_target_and_no_other_does() {
    let Some(site) = Site::start() else {
        return;
    };
    let file = sparse(site.directory.path(), "a.img", 4);
    let added = site.json("target add data --chap-generate me");
    site.run(&format!("target lun add data {}", file.display()));
    let url = site.url("data", 0);
    let with = |who: &str| url.replace("iscsi://", &format!("iscsi://{who}@"));
    let secret = added["secret"].as_str().unwrap();
    let Some((is_in, said)) = site.qemu_io(&with(&format!("me%{secret}")), &["read 0 4k"]) else {
        return;
    };
    assert!(is_in, "{said}");
    for wrong in [url.clone(), with("me%not the secret")] {
        let (is_in, said) = site.qemu_io(&wrong, &["read 0 4k"]).unwrap();
        assert!(!is_in, "{wrong}: {said}");
    }
    // Discovery shows what one may open.
    site.run("target add public");
    let shown = |portal: &str| {
        let (_, said) = site.judge("iscsi-ls", &[portal]).unwrap();
        (
            said.contains(":target.public"),
            said.contains(":target.data"),
        )
    };
    assert_eq!(shown(PORTAL), (true, false));
    let proving = PORTAL.replace("iscsi://", &format!("iscsi://me%{secret}@"));
    assert_eq!(shown(&proving), (true, true));
}

#[test]
fn a_shared_disk_goes_on_with_the_reservations_it_had() {
    let Some(mut site) = Site::start() else {
        return;
    };
    let file = sparse(site.directory.path(), "a.img", 4);
    site.run("target add cluster");
    site.run(&format!(
        "target lun add cluster {} --shared",
        file.display()
    ));
    let url = site.url("cluster", 0);
    let Some((is_done, said)) = site.qemu_io(&url, &["write 0 4k"]) else {
        return;
    };
    assert!(is_done, "{said}");
    // Another member has registered and holds it: write exclusive (type 1).
    let member = "nexus 00000000deadbeef 400027235836 0 iqn.2026-01.lab:other\nheld 1 0\n";
    let saved = format!("diskless-reservations 1\n{member}");
    let saved = format!("{saved}crc32c {:08x}\n", crc32c::crc32c(saved.as_bytes()));
    let id = site.json("target show cluster")["luns"][0]["id"].clone();
    let kept = site.path("data/reservations").join(id.as_str().unwrap());
    fs::write(&kept, &saved).unwrap();
    site.restart();
    let (is_done, said) = site.qemu_io(&url, &["read 0 4k"]).unwrap();
    assert!(is_done, "{said}");
    let (is_done, said) = site.qemu_io(&url, &["write 0 4k"]).unwrap();
    assert!(!is_done, "written under another's reservation: {said}");
    // What cannot be read is not taken for nothing.
    fs::write(&kept, saved.replace("deadbeef", "feedbeef")).unwrap();
    site.restart();
    let lun = site.json("target show cluster")["luns"][0].clone();
    let trouble = lun["trouble"].as_str().unwrap();
    assert!(
        trouble.contains("reservations") && trouble.contains("remove that file"),
        "{trouble}"
    );
    fs::remove_file(&kept).unwrap();
    site.run("target lun rescan cluster 0");
    let (is_done, said) = site.qemu_io(&url, &["write 0 4k"]).unwrap();
    assert!(is_done, "{said}");
}

#[test]
fn a_drive_is_served_as_it_is() {
    let Some(site) = Site::start() else {
        return;
    };
    // There is no optical drive in a test: a loop device is the block device.
    let file = sparse(site.directory.path(), "disc.iso", 4);
    fs::write(&file, vec![5; 4 << 20]).unwrap();
    let Some((is_there, device)) =
        judge("losetup", &["-r", "-f", "--show", file.to_str().unwrap()])
    else {
        return;
    };
    if !is_there {
        eprintln!("skipped: no loop device for this user: {device}");
        return;
    }
    let device = device.trim();
    site.run("target add drive");
    let added = site.ask(&format!("target lun add drive {device} --cdrom"));
    let served = added
        .0
        .then(|| site.qemu_io(&site.url("drive", 0), &["read -P 5 0 4M"]));
    judge("losetup", &["-d", device]).unwrap();
    assert!(added.0, "{}", added.1);
    let Some(Some((is_done, said))) = served else {
        return;
    };
    assert!(
        is_done || said.contains("read-only") || said.contains("write protected"),
        "{said}"
    );
}
