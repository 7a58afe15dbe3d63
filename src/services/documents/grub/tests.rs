//! Claims about what a signed GRUB is given, with real file systems as disks.

use std::fs;
use std::path::Path;
use std::process::Command;

use ::dhcp::Mac;
use axum::http::{Method, StatusCode};

use super::*;
use crate::services::tests::{Lab, PC_ADDRESS as PC};

const PC_MAC: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
const KERNEL: &[u8] = b"a kernel of Debian's";

/// Whether this machine can make file systems; says so where it cannot.
fn can_make_disks() -> bool {
    let found = Command::new("mke2fs").arg("-V").output().is_ok();
    if !found {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "mke2fs is missing (package e2fsprogs)"
        );
        eprintln!("skipped: mke2fs is missing (package e2fsprogs)");
    }
    found
}

/// An ext4 file system with an installed Debian, as far as GRUB is concerned.
fn debian(image: &Path, arguments: &str) {
    let root = tempfile::tempdir().unwrap();
    let put = |path: &str, content: &[u8]| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    put(
        "etc/os-release",
        b"ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_ID=\"12\"\n",
    );
    put("boot/vmlinuz-6.1.0", KERNEL);
    put("boot/initrd.img-6.1.0", &[7; 70_000]);
    let entry = format!("linux /boot/vmlinuz-6.1.0 {arguments}\ninitrd /boot/initrd.img-6.1.0\n");
    put("boot/grub/grub.cfg", entry.as_bytes());
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(root.path())
        .arg(image)
        .arg("4m")
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// A machine whose address is known and whose image holds a Debian.
fn lab() -> (Lab, Machine) {
    let lab = Lab::new();
    let image = lab.files().join("disk.raw");
    debian(&image, "root=UUID=12 ro quiet");
    lab.image_of("debian", &image);
    let pc = lab.machine("pc1", 1, "debian", OverlayMode::Reset);
    lab.site().addresses.learn(PC, PC_MAC);
    (lab, pc)
}

#[test]
fn a_machine_is_given_its_own_kernel_and_the_way_to_its_disk() {
    if !can_make_disks() {
        return;
    }
    let (lab, pc) = lab();
    let text = lab.get("/own/http.cfg").text;
    let prepared = lab.inventory().generations(pc.id).unwrap().prepared;
    let secret = prepared.unwrap().secret;
    for part in [
        "echo 'diskless: pc1 boots debian, reset: Debian GNU/Linux 12'",
        "linux (http,10.0.0.1)/own/kernel/vmlinuz-6.1.0 'root=UUID=12' 'ro' 'quiet' 'ip=dhcp'",
        "'BOOTIF=01-52-54-00-00-00-01'",
        "'iscsi_target_name=iqn.2026-11.net.diskless:pc1' 'iscsi_target_ip=10.0.0.1'",
        "'iscsi_username=pc1.1'",
        &secret,
        "initrd (http,10.0.0.1)/own/initrd0/initrd.img-6.1.0",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert_eq!(lab.get("/own/kernel/vmlinuz-6.1.0").text.as_bytes(), KERNEL);
    let initrd = "/own/initrd0/initrd.img-6.1.0";
    assert_eq!(lab.get(initrd).text.len(), 70_000);
    let head = lab.ask(Method::HEAD, initrd, &[]);
    assert_eq!(head.headers["content-length"], "70000");
    assert_eq!(lab.get("/own/initrd1/x").status, StatusCode::NOT_FOUND);
}

#[test]
fn nobody_else_is_given_a_machines_kernel_or_secret() {
    if !can_make_disks() {
        return;
    }
    let (lab, pc) = lab();
    // Another machine has the address now.
    lab.site()
        .addresses
        .learn(PC, Mac([0x52, 0x54, 0, 0, 0, 9]));
    let text = lab.get("/own/http.cfg").text;
    assert!(text.contains("this PC is not known here yet"), "{text}");
    assert_eq!(
        lab.get("/own/kernel/vmlinuz-6.1.0").status,
        StatusCode::NOT_FOUND
    );
    assert!(
        lab.inventory()
            .generations(pc.id)
            .unwrap()
            .prepared
            .is_none()
    );
}

#[test]
fn an_address_no_packet_has_shown_is_told_so() {
    let lab = Lab::new();
    let text = lab.get("/own/http.cfg").text;
    assert!(
        text.contains("no DHCP packet has shown whose address"),
        "{text}"
    );
    assert_eq!(lab.get("/own/kernel/x").status, StatusCode::NOT_FOUND);
}

#[test]
fn a_disk_without_a_linux_is_told_on_the_screen_and_prepares_nothing() {
    let lab = Lab::new();
    lab.image("debian", 0);
    let pc = lab.machine("pc1", 1, "debian", OverlayMode::Reset);
    lab.site().addresses.learn(PC, PC_MAC);
    let text = lab.get("/own/tftp.cfg").text;
    assert!(text.contains("diskless: pc1 cannot boot now."), "{text}");
    assert!(!text.contains("linux ("), "{text}");
    assert_eq!(lab.told(&pc, Stage::Problem).len(), 1);
    assert!(
        lab.inventory()
            .generations(pc.id)
            .unwrap()
            .prepared
            .is_none()
    );
}

#[test]
fn grub_finds_its_configuration_in_whichever_directory_it_looks() {
    let lab = Lab::new();
    for name in [
        "/grub/grub.cfg",
        "//grub/grub.cfg",
        "/loader/secure/fedora/grub.cfg",
    ] {
        let text = lab.get(name).text;
        assert!(
            text.contains("source (http,10.0.0.1)/own/http.cfg"),
            "{name}: {text}"
        );
    }
    fs::create_dir(lab.files().join("grub")).unwrap();
    fs::write(lab.files().join("grub/grub.cfg"), b"mine").unwrap();
    assert_ne!(lab.get("/grub/grub.cfg").text, lab.get("/x/grub.cfg").text);
}
