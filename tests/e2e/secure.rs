//! Secure Boot, enforcing, with Microsoft's keys: Debian's shim and GRUB, and
//! the kernel out of the machine's own disk.

use anyhow::{Context as _, Result, ensure};
use lab::{Deadline, Dhcp, Firmware, Lan, Nic, Pc, Power, Server, Settings};

use crate::stage::{
    self, BOOT_SECONDS, DEBIAN, Half, IMAGE, Turn, with_server, with_server_and_neighbour,
};

fn settings(dhcp: Dhcp, grub: &'static str) -> Settings {
    Settings {
        signed_grub: Some(grub),
        ..Settings::new(dhcp)
    }
}

#[test]
fn debian_12_boots_its_own_kernel_by_pxe_with_secure_boot_on() {
    let turn = Turn::Pair(4, Half::First);
    with_server(turn, &settings(Dhcp::Full, "2.06"), |lan, server| {
        let golden = stage::import_debian(server)?;
        let mut power = switched_on(lan, server, "pc20", 20, Firmware::SecureBoot)?;
        is_up(&mut power)?;
        golden.is_untouched()?;
        let timeline = server.cli(&["machine", "timeline", "pc20"])?;
        for sign in ["secure/debian/shimx64.efi", "own/tftp.cfg", "own/kernel/"] {
            ensure!(timeline.contains(sign), "no {sign} in\n{timeline}");
        }
        // Nobody else is given its kernel or its secret.
        for name in ["own/tftp.cfg", "own/kernel/vmlinuz", "own/initrd0/initrd"] {
            let url = format!("http://{}/{name}", stage::SERVER);
            let answer = server.host().run(&["curl", "--silent", &url])?;
            ensure!(
                answer.len() < 1000 && !answer.contains("iscsi_password"),
                "{url} was given to a stranger: {answer}"
            );
        }
        Ok(())
    });
}

#[test]
fn grub_2_12_boots_debian_beside_another_dhcp_server() {
    let turn = Turn::Pair(4, Half::Second);
    let settings = settings(Dhcp::Proxy, "2.12");
    with_server_and_neighbour(turn, &settings, |lan, server, _| {
        stage::import_debian(server)?;
        let mut power = switched_on(lan, server, "pc21", 21, Firmware::SecureBoot)?;
        is_up(&mut power)?;
        by_http(server, "pc21")
    });
}

#[test]
fn grub_2_12_boots_debian_after_uefi_http_boot() {
    let turn = Turn::Pair(5, Half::First);
    with_server(turn, &settings(Dhcp::Full, "2.12"), |lan, server| {
        stage::import_debian(server)?;
        let mut power = switched_on(lan, server, "pc22", 22, Firmware::SecureBootHttp)?;
        is_up(&mut power)?;
        by_http(server, "pc22")
    });
}

#[test]
fn grub_2_12_boots_debian_after_uefi_http_boot_beside_another_dhcp_server() {
    let turn = Turn::Pair(5, Half::Second);
    let settings = settings(Dhcp::Proxy, "2.12");
    with_server_and_neighbour(turn, &settings, |lan, server, _| {
        stage::import_debian(server)?;
        let mut power = switched_on(lan, server, "pc23", 23, Firmware::SecureBootHttp)?;
        is_up(&mut power)?;
        by_http(server, "pc23")
    });
}

#[test]
fn an_unsigned_loader_is_refused_by_the_firmware() {
    let turn = Turn::Pair(6, Half::Second);
    with_server(turn, &Settings::new(Dhcp::Full), |lan, server| {
        stage::import(server)?;
        let pc = Pc::new(24, Firmware::SecureBoot);
        stage::add(server, "pc24", &pc, "reset")?;
        let mut power = pc.power_on(lan)?;
        power
            .console()
            .wait_for("Access Denied", Deadline::seconds(BOOT_SECONDS))
    });
}

#[test]
fn a_disk_that_grub_cannot_boot_is_told_on_the_screen() {
    let turn = Turn::Pair(6, Half::Second);
    with_server(turn, &settings(Dhcp::Full, "2.12"), |lan, server| {
        // No Linux is installed in it: a kernel lies in its EFI partition.
        stage::import(server)?;
        let pc = Pc::new(25, Firmware::SecureBoot);
        server.cli(&[
            "machine", "add", "pc25", "--mac", &pc.mac, "--image", IMAGE, "--mode", "reset",
            "--loader", "secure",
        ])?;
        let mut power = pc.power_on(lan)?;
        let deadline = Deadline::seconds(BOOT_SECONDS);
        power
            .console()
            .wait_for("diskless: pc25 cannot boot now.", deadline)?;
        // And again, for it is asked anew.
        power
            .console()
            .wait_for("diskless: pc25 cannot boot now.", deadline)
    });
}

/// A machine with the signed chain that was just switched on.
fn switched_on<'a>(
    lan: &'a Lan<'a>,
    server: &Server<'_>,
    name: &str,
    number: u8,
    firmware: Firmware,
) -> Result<Power<'a>> {
    let pc = Pc {
        nic: Nic::Virtio,
        memory_mebibytes: 1024,
        ..Pc::new(number, firmware)
    };
    server.cli(&[
        "machine", "add", name, "--mac", &pc.mac, "--image", DEBIAN, "--mode", "reset", "--loader",
        "secure",
    ])?;
    pc.power_on(lan)
}

/// Debian is up on its own disk, and its kernel knows that Secure Boot is on.
fn is_up(power: &mut Power<'_>) -> Result<()> {
    let deadline = Deadline::seconds(BOOT_SECONDS);
    let console = power.console();
    console.wait_for("boots debian", deadline).context("GRUB")?;
    console
        .wait_for("UEFI Secure Boot is enabled", deadline)
        .context("the kernel")?;
    // On a busy machine systemd gives the serial console up before udev has
    // found it, and no prompt is shown there.
    console
        .wait_for_any(&[" login:", "Reached target multi-user"], deadline)
        .map(|_| ())
        .context("Debian")
}

/// The kernel came over HTTP.
fn by_http(server: &Server<'_>, machine: &str) -> Result<()> {
    let timeline = server.cli(&["machine", "timeline", machine])?;
    let kernel = timeline.lines().find(|line| line.contains("own/kernel/"));
    ensure!(
        kernel.is_some_and(|line| line.contains("over HTTP")),
        "the kernel did not come over HTTP:\n{timeline}"
    );
    Ok(())
}
