//! `full` mode: ours is the LAN's only DHCP server.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{Deadline, Dhcp, Firmware, Pc, Settings};

use crate::stage::{self, BOOT_SECONDS, Half, IMAGE, SERVER, Turn, booted, with_server};

#[test]
fn an_unknown_bios_machine_is_told_so_then_boots_and_keeps_every_answered_write() {
    with_server(
        Turn::Always,
        &Settings::new(Dhcp::Full),
        |lan, server| -> Result<()> {
            let golden = stage::import(server)?;
            let pc = Pc::new(1, Firmware::Bios);
            let mut power = pc.power_on(lan)?;

            // Pending, and told so on its own screen with its MAC and the command to type.
            let deadline = Deadline::seconds(BOOT_SECONDS);
            power.console().wait_for("not known here yet", deadline)?;
            power.console().wait_for(&pc.mac, deadline)?;
            power.console().wait_for("Trying again in", deadline)?;
            let pending = format!("new-{}", pc.mac.replace(':', ""));
            ensure!(
                power.console().text().contains(&pending),
                "the screen does not name it {pending}"
            );
            let listing = server.cli(&["machine", "list"])?;
            ensure!(
                listing.contains(&pending) && listing.contains("pending"),
                "not enrolled as pending:\n{listing}"
            );

            // As the screen said; it boots at its next try, nobody touches it.
            server.cli(&[
                "machine", "set", &pending, "--name", "pc1", "--image", IMAGE, "--mode", "keep",
            ])?;
            let mut guest = booted(&mut power)?;

            // The old generation's secret must still be good when the guest logs in again.
            stage::script_is_fetched_by_others(server, &mut guest, &pc)?;
            let written = stage::killed_under_a_writer(server, &mut guest, "A001", 100)?;
            guest.write(7, "KEEP")?;

            power.power_cycle()?;
            let mut guest = booted(&mut power)?;
            ensure!(
                guest.read(7)?.as_deref() == Some("KEEP00000000007"),
                "a write of the boot before is gone"
            );
            guest.verify("A001", 100, written)?;
            golden.is_untouched()?;

            let timeline = server.cli(&["machine", "timeline", "pc1"])?;
            ensure!(
                timeline.lines().count() > 3,
                "a timeline of two boots says only:\n{timeline}"
            );
            server.stop().context("SIGTERM while a machine runs")
        },
    );
}

#[test]
fn a_uefi_machine_in_reset_mode_forgets_at_its_next_boot_and_not_before() {
    with_server(
        Turn::Always,
        &Settings::new(Dhcp::Full),
        |lan, server| -> Result<()> {
            let golden = stage::import(server)?;
            let pc = Pc::new(2, Firmware::Uefi);
            stage::add(server, "pc2", &pc, "reset")?;
            let mut power = pc.power_on(lan)?;
            let mut guest = booted(&mut power)?;
            guest.write(7, "GONE")?;
            guest.command("flush")?;

            // Neither a fetched script nor a killed server is a boot.
            stage::script_is_fetched_by_others(server, &mut guest, &pc)?;
            stage::killed_under_a_writer(server, &mut guest, "B002", 100)?;
            ensure!(
                guest.read(7)?.as_deref() == Some("GONE00000000007"),
                "forgotten without a boot"
            );

            power.power_cycle()?;
            let mut guest = booted(&mut power)?;
            ensure!(
                guest.read(7)?.is_none(),
                "a write of the boot before is still there"
            );
            ensure!(
                guest.read(100)?.is_none(),
                "a write of the boot before is still there"
            );
            golden.is_untouched()
        },
    );
}

#[test]
fn a_running_machine_outlives_its_lease_of_two_minutes_and_a_restart() {
    let mut settings = Settings::new(Dhcp::Full);
    settings.lease = "2m".to_owned();
    // One address only: a second machine would be given it, were it free.
    settings.pool.1 = settings.pool.0;
    let turn = Turn::Pair(0, Half::First);
    with_server(turn, &settings, |lan, server| -> Result<()> {
        stage::import(server)?;
        let pc = Pc::new(3, Firmware::Bios);
        stage::add(server, "pc3", &pc, "keep")?;
        let mut power = pc.power_on(lan)?;
        let mut guest = booted(&mut power)?;
        ensure!(
            guest.fact("lease").as_deref() == Some("120"),
            "not lent for two minutes"
        );
        server.stop()?;
        server.restart()?;

        // Linux's ipconfig never renews.
        let stranger = Pc::new(4, Firmware::Bios);
        std::thread::sleep(Duration::from_secs(200));
        let mut other = stranger.power_on(lan)?;
        std::thread::sleep(Duration::from_secs(100));
        guest.write(1, "LIVE")?;
        ensure!(
            guest
                .command("state")?
                .starts_with("LOGGED_IN disk=running"),
            "the session is gone"
        );
        let shown = other.console().text();
        ensure!(
            shown.contains("Configuring (net0"),
            "the second machine did not get so far:\n{shown}"
        );
        let lent = format!("net0: {}/", settings.pool.0);
        ensure!(
            !shown.contains(&lent),
            "the address of a running machine was lent to another:\n{shown}"
        );
        Ok(())
    });
}

#[test]
fn two_machines_on_one_image_never_see_each_others_writes() {
    let turn = Turn::Pair(0, Half::Second);
    with_server(
        turn,
        &Settings::new(Dhcp::Full),
        |lan, server| -> Result<()> {
            let golden = stage::import(server)?;
            let (first, second) = (Pc::new(5, Firmware::Bios), Pc::new(6, Firmware::Uefi));
            stage::add(server, "pc5", &first, "keep")?;
            stage::add(server, "pc6", &second, "reset")?;
            let mut first = first.power_on(lan)?;
            let mut second = second.power_on(lan)?;
            let mut first = booted(&mut first)?;
            let mut second = booted(&mut second)?;
            first.write(1, "FRST")?;
            second.write(1, "SCND")?;
            first.write(2, "FRST")?;
            second.write(3, "SCND")?;
            first.start_writer("FRST", 50)?;
            second.start_writer("SCND", 50)?;
            first.wait_written(90, Deadline::seconds(120))?;
            second.wait_written(90, Deadline::seconds(120))?;
            first.stop_writer()?;
            second.stop_writer()?;
            first.verify("FRST", 1, 2)?;
            second.verify("SCND", 1, 1)?;
            second.verify("SCND", 3, 1)?;
            first.verify("FRST", 50, 40)?;
            second.verify("SCND", 50, 40)?;
            ensure!(
                first.read(3)?.is_none(),
                "the first machine sees the second's write"
            );
            ensure!(
                second.read(2)?.is_none(),
                "the second machine sees the first's write"
            );
            golden.is_untouched()
        },
    );
}

#[test]
fn a_plain_pxe_rom_is_given_undionly_and_boots_from_there() {
    let turn = Turn::Pair(2, Half::First);
    with_server(
        turn,
        &Settings::new(Dhcp::Full),
        |lan, server| -> Result<()> {
            stage::import(server)?;
            let pc = Pc::new(9, Firmware::Bios);
            stage::add(server, "pc9", &pc, "reset")?;
            let mut power = pc.power_on(lan)?;
            // QEMU's boot ROM is an iPXE: at its prompt it does what a ROM that is none is told to do.
            let chain = format!("chain tftp://{SERVER}/undionly.kpxe");
            power.type_to_ipxe(&["dhcp", &chain], Deadline::seconds(BOOT_SECONDS))?;
            power
                .console()
                .wait_for("iPXE initialising devices", Deadline::seconds(BOOT_SECONDS))
                .context("undionly.kpxe")?;
            booted(&mut power)?.write(1, "PXE")
        },
    );
}

#[test]
fn a_machine_boots_by_uefi_http_boot_without_tftp() {
    let turn = Turn::Pair(2, Half::Second);
    with_server(
        turn,
        &Settings::new(Dhcp::Full),
        |lan, server| -> Result<()> {
            stage::import(server)?;
            let pc = Pc::new(10, Firmware::UefiHttp);
            stage::add(server, "pc10", &pc, "reset")?;
            let mut power = pc.power_on(lan)?;
            power
                .console()
                .wait_for("Start HTTP Boot over IPv4", Deadline::seconds(BOOT_SECONDS))?;
            booted(&mut power)?.write(1, "HTTP")
        },
    );
}
