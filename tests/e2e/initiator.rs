//! Linux as the initiator: its open-iscsi, disk and CD-ROM drivers judge the
//! targets that `diskless target` makes of files.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use lab::{Dhcp, FileServer, Firmware, Guest, Host, Kernel, Pc, Settings};

use crate::stage::{Half, SERVER, Turn, booted, diskless, with_host, with_server};

/// The guest's address and name.
const INITIATOR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 20);
const INITIATOR_NAME: &str = "iqn.2026-01.lab.diskless:linux";
const TARGET: &str = "iqn.2026-01.lab.diskless:files";
/// What the guest proves.
const CHAP_NAME: &str = "linux";
const CHAP_SECRET: &str = "a secret of linux";
/// What the target proves to it.
const MUTUAL_NAME: &str = "diskless";
const MUTUAL_SECRET: &str = "a secret of ours";

/// A thin disk, behind CHAP.
const DISK_BYTES: u64 = 256 << 20;
const GROWN_BYTES: u64 = 320 << 20;
const MEBIBYTE: u64 = 1 << 20;

#[test]
fn linux_keeps_a_file_system_on_a_thin_disk_that_grows_under_it() {
    let settings = Settings::new(Dhcp::Observe);
    with_server(
        Turn::Pair(3, Half::First),
        &settings,
        |lan, server| -> Result<()> {
            let work = lan.lab().work();
            let disk = sparse(&work.join("thin.raw"), DISK_BYTES)?;
            let [chap, mutual] = ["chap", "mutual"].map(|name| work.join(name));
            fs::write(&chap, format!("{CHAP_NAME}:{CHAP_SECRET}\n"))?;
            fs::write(&mutual, format!("{MUTUAL_NAME}:{MUTUAL_SECRET}\n"))?;
            let [disk_name, chap, mutual] =
                [&disk, &chap, &mutual].map(|path| path.to_string_lossy());
            server.cli(&[
                "target",
                "add",
                "files",
                "--iqn",
                TARGET,
                "--chap-file",
                &chap,
                "--mutual",
                &mutual,
            ])?;
            server.cli(&["target", "lun", "add", "files", &disk_name, "--thin"])?;
            let mut power = initiator().and_then(|pc| pc.power_on(lan))?;
            let mut guest = booted(&mut power)?;
            is_let_in_by_the_secrets_alone(&mut guest)?;
            let device = format!("/dev/{}", guest.command(&format!("log_in {TARGET}"))?);
            let digests =
                guest.command("cat /sys/class/iscsi_connection/*/*_digest | tr '\\n' ' '")?;
            ensure!(digests == "1 1", "header and data digest: {digests}");

            // Every block of 8 MiB written and read back, past the page cache.
            guest.command(&format!("badblocks -w -t random -b 4096 {device} 2047"))?;
            guest.command(&format!("mkfs.ext4 -q {device} && mount {device} /mnt"))?;
            // 8 MiB in one piece, then writes in it at random, checked against a copy in memory.
            guest.command("dd if=/dev/urandom of=/tmp/copy bs=1M count=8 status=none")?;
            guest.command("cp /tmp/copy /mnt/file && sync")?;
            guest.command("write_at_random /mnt/file /tmp/copy 2048 24")?;
            guest.command("drop_caches && is_same /mnt/file /tmp/copy")?;

            server.cli(&["target", "lun", "resize", "files", "0", "320M"])?;
            grows_under_its_file_system(&mut guest, &device)?;

            let full = stored(&disk)?;
            guest.command("rm /mnt/file && sync && fstrim /mnt")?;
            let trimmed = stored(&disk)?;
            ensure!(
                trimmed + 7 * MEBIBYTE <= full,
                "8 MiB were given back, and the file went from {full} to {trimmed} bytes"
            );
            guest.command("umount /mnt")?;
            keeps_registrations(&mut guest, &device)?;
            guest.command(&format!("iscsiadm -m node -T {TARGET} --logout"))?;
            // The file system is as Linux left it.
            server.host().run(&["e2fsck", "-f", "-n", &disk_name])?;
            Ok(())
        },
    );
}

/// Discovers, and sets what a login by mutual CHAP with digests needs; who does
/// not know the secrets is told nothing and let in nowhere.
fn is_let_in_by_the_secrets_alone(guest: &mut Guest<'_, '_>) -> Result<()> {
    let discover = format!("iscsiadm -m discoverydb -t st -p {SERVER}");
    guest.command(&format!("{discover} -o new"))?;
    ensure!(
        guest.command(&format!("{discover} --discover")).is_err(),
        "discovery told a stranger of a closed target"
    );
    for (key, value) in [
        ("authmethod", "CHAP"),
        ("username", CHAP_NAME),
        ("password", CHAP_SECRET),
    ] {
        let key = format!("discovery.sendtargets.auth.{key}");
        guest.command(&format!("{discover} -o update -n {key} -v '{value}'"))?;
    }
    guest.command(&format!("{discover} --discover"))?;
    set(guest, "node.conn[0].iscsi.HeaderDigest", "CRC32C")?;
    set(guest, "node.conn[0].iscsi.DataDigest", "CRC32C")?;
    set(guest, "node.session.auth.authmethod", "CHAP")?;
    set(guest, "node.session.auth.username", CHAP_NAME)?;
    set(
        guest,
        "node.session.auth.password",
        "another, guessed, secret",
    )?;
    ensure!(
        guest.command(&format!("log_in {TARGET}")).is_err(),
        "a guessed secret opened the target"
    );
    set(guest, "node.session.auth.password", CHAP_SECRET)?;
    set(guest, "node.session.auth.username_in", MUTUAL_NAME)?;
    set(
        guest,
        "node.session.auth.password_in",
        "what a false target knows",
    )?;
    ensure!(
        guest.command(&format!("log_in {TARGET}")).is_err(),
        "Linux trusted a target that did not prove itself"
    );
    set(guest, "node.session.auth.password_in", MUTUAL_SECRET)
}

/// Linux is told that the disk has grown, sees by how much, and its mounted
/// file system grows after it.
fn grows_under_its_file_system(guest: &mut Guest<'_, '_>, device: &str) -> Result<()> {
    guest.command(&format!("sg_turs {device} || sg_turs {device}"))?;
    guest.command("dmesg | grep -q 'Capacity data has changed'")?;
    let rescan = device.replace("/dev/", "/sys/block/") + "/device/rescan";
    guest.command(&format!(
        "echo 1 >{rescan} && within 20 has_bytes {device} {GROWN_BYTES}"
    ))?;
    guest.command(&format!("resize2fs {device}"))?;
    guest.command("drop_caches && is_same /mnt/file /tmp/copy")?;
    let kibibytes = guest.command("df -k /mnt | awk 'END { print $2 }'")?;
    let kibibytes: u64 = kibibytes.parse().context("df's size")?;
    ensure!(
        kibibytes > 280 * 1024,
        "the file system has {kibibytes} KiB of 320 MiB"
    );
    Ok(())
}

/// Registers, reserves, and lets go again (SPC-4 section 5.7).
fn keeps_registrations(guest: &mut Guest<'_, '_>, device: &str) -> Result<()> {
    let out = |arguments: &str| format!("sg_persist --out {arguments} {device}");
    guest.command(&out("--register --param-sark=0xd15c1e55"))?;
    let exclusive = "--prout-type=3 --param-rk=0xd15c1e55";
    guest.command(&out(&format!("--reserve {exclusive}")))?;
    let shown = format!("sg_persist --in --read-reservation {device} | tr '\\n' ' '");
    let reservation = guest.command(&shown)?;
    ensure!(
        reservation.contains("Key=0xd15c1e55") && reservation.contains("Exclusive Access"),
        "{reservation}"
    );
    guest.command(&out(&format!("--release {exclusive}")))?;
    guest.command(&out("--clear --param-rk=0xd15c1e55"))?;
    let keys = guest.command(&format!("sg_persist --in --read-keys {device}"))?;
    ensure!(keys.contains("NO registered"), "{keys}");
    Ok(())
}

#[test]
fn linux_reads_a_dvd_cannot_eject_it_while_it_does_and_can_afterwards() {
    with_host(Turn::Pair(3, Half::Second), |lan, host| -> Result<()> {
        let work = lan.lab().work();
        let disc = Disc::burn(host, work)?;
        let server = served(host, &["--cdrom"], &disc.iso)?;
        let mut power = initiator().and_then(|pc| pc.power_on(lan))?;
        let mut guest = booted(&mut power)?;
        let outcome = plays(&mut guest, &disc);
        outcome.with_context(|| format!("diskless's last words:\n{}", server.log()))
    });
}

fn plays(guest: &mut Guest<'_, '_>, disc: &Disc) -> Result<()> {
    let discover = format!("iscsiadm -m discovery -t st -p {SERVER}");
    let found = guest.command(&discover)?;
    ensure!(found.contains(TARGET), "{found}");
    let name = guest.command(&format!("log_in {TARGET}"))?;
    ensure!(name == "sr0", "Linux made a {name} of a DVD drive");

    let sectors = guest.command("cat /sys/block/sr0/size")?;
    ensure!(sectors == (disc.bytes / 512).to_string(), "{sectors}");
    guest.command("grep -q 'Can read DVD:.*1' /proc/sys/dev/cdrom/info")?;
    guest.command("sg_get_config --current /dev/sr0 | grep -q 'Current profile: DVD-ROM'")?;
    guest.command("sg_modes --page=0x2a /dev/sr0 | grep -q 'MM capabilities'")?;

    guest.command("mount -t iso9660 -o ro /dev/sr0 /mnt")?;
    disc.is_read(guest)?;
    ensure!(
        guest.command("sg_start --eject /dev/sr0").is_err(),
        "a mounted disc could be ejected"
    );
    disc.is_read(guest)?;
    guest.command("umount /mnt")?;

    // Linux would close the tray of whoever opens the drive.
    guest.command("echo 0 >/proc/sys/dev/cdrom/autoclose && eject /dev/sr0")?;
    ensure!(
        guest.command("sg_turs /dev/sr0").is_err(),
        "an ejected disc is ready"
    );
    ensure!(
        guest
            .command("mount -t iso9660 -o ro /dev/sr0 /mnt")
            .is_err(),
        "an ejected disc could be mounted"
    );
    guest.command("eject -t /dev/sr0")?;
    guest.command("mount -t iso9660 -o ro /dev/sr0 /mnt")?;
    disc.is_read(guest)?;
    guest.command("umount /mnt")?;
    guest.command(&format!("iscsiadm -m node -T {TARGET} --logout"))?;
    Ok(())
}

/// A DVD with one file on it.
struct Disc {
    iso: PathBuf,
    bytes: u64,
    sha256: String,
}

impl Disc {
    /// More than any CD has, so a DVD.
    const BYTES: u64 = 1 << 30;

    fn burn(host: &Host<'_>, work: &Path) -> Result<Disc> {
        let tree = work.join("tree");
        fs::create_dir_all(&tree)?;
        let song = tree.join("song");
        let mut file = File::create(&song)?;
        // Every line another, so that no two blocks are alike.
        for line in 0..200_000 {
            writeln!(file, "line {line} of a long song")?;
        }
        drop(file);
        let iso = work.join("disc.iso");
        let [iso_name, tree_name] = [&iso, &tree].map(|path| path.to_string_lossy());
        host.run(&[
            "xorriso", "-as", "mkisofs", "-quiet", "-R", "-o", &iso_name, &tree_name,
        ])?;
        sparse(&iso, Disc::BYTES)?;
        Ok(Disc {
            iso,
            bytes: Disc::BYTES,
            sha256: lab::sha256(&song)?,
        })
    }

    /// The guest, which has it mounted, reads what was burnt.
    fn is_read(&self, guest: &mut Guest<'_, '_>) -> Result<()> {
        let read = guest.command("drop_caches && sha256sum /mnt/song")?;
        ensure!(read.starts_with(&self.sha256), "not what was burnt: {read}");
        Ok(())
    }
}

fn served(host: &Host<'_>, kind: &[&str], file: &Path) -> Result<FileServer> {
    let portal = format!("{SERVER}:3260");
    let file = file.to_string_lossy();
    let arguments = [kind, &["--iqn", TARGET, &file]].concat();
    FileServer::start(host, diskless(), &portal, &arguments)
}

fn initiator() -> Result<Pc> {
    let kernel = Kernel {
        directory: lab::initiator()?,
        arguments: format!("lab.address={INITIATOR}/24 lab.initiator={INITIATOR_NAME}"),
    };
    Ok(Pc {
        kernel: Some(kernel),
        ..Pc::new(30, Firmware::Bios)
    })
}

/// A setting of open-iscsi's for the target.
fn set(guest: &mut Guest<'_, '_>, key: &str, value: &str) -> Result<()> {
    guest
        .command(&format!("set_node {TARGET} {key} '{value}'"))
        .map(|_| ())
}

/// A file of that size; what there is in it stays.
fn sparse(path: &Path, bytes: u64) -> Result<PathBuf> {
    let file = File::options().create(true).append(true).open(path)?;
    file.set_len(bytes)?;
    Ok(path.to_owned())
}

/// Bytes the file occupies.
fn stored(path: &Path) -> Result<u64> {
    File::open(path)?.sync_all()?;
    Ok(fs::metadata(path)?.blocks() * 512)
}
