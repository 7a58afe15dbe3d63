//! Disks of other kinds, and what becomes of a machine's writes besides.

use anyhow::{Result, ensure};
use lab::{Deadline, Dhcp, Firmware, Pc, Server, Settings};

use crate::stage::{self, Half, Turn, booted, with_server};

/// Until the server has noticed that a machine is switched off: nobody said
/// goodbye, so it takes an unanswered ping.
const NOTICE_SECONDS: u64 = 300;

#[test]
fn a_machine_boots_a_vhdx_in_place_and_keeps_every_answered_write() {
    let turn = Turn::Pair(3, Half::First);
    with_server(turn, &Settings::new(Dhcp::Full), |lan, server| {
        let tiny = lab::tiny()?.to_string_lossy().into_owned();
        server.cli(&["disk", "import", "first", &tiny, "--format", "vhdx"])?;
        let pc = Pc::new(11, Firmware::Uefi);
        server.cli(&[
            "machine", "add", "pc11", "--mac", &pc.mac, "--disk", "first",
        ])?;
        let mut power = pc.power_on(lan)?;
        let mut guest = booted(&mut power)?;
        let written = stage::killed_under_a_writer(server, &mut guest, "VHDX", 100)?;
        guest.write(7, "KEEP")?;
        guest.command("flush")?;

        power.power_cycle()?;
        let mut guest = booted(&mut power)?;
        ensure!(
            guest.read(7)?.as_deref() == Some("KEEP00000000007"),
            "a write of the boot before is gone"
        );
        guest.verify("VHDX", 100, written)?;
        drop(power);
        noticed(server)?;

        // Anybody else's tools find the same disk whole.
        let file = server.data().join("disks/first.vhdx");
        let file = file.to_string_lossy();
        server.stop()?;
        server
            .host()
            .run(&["qemu-img", "check", "-f", "vhdx", &file])?;
        Ok(())
    });
}

#[test]
fn a_machine_goes_back_to_a_restore_point_which_becomes_an_image_for_others() {
    let turn = Turn::Pair(3, Half::Second);
    with_server(turn, &Settings::new(Dhcp::Full), |lan, server| {
        let golden = stage::import(server)?;
        let pc = Pc::new(12, Firmware::Bios);
        stage::add(server, "pc12", &pc, "keep")?;
        let mut power = pc.power_on(lan)?;
        let mut guest = booted(&mut power)?;
        guest.write(1, "BFOR")?;
        guest.command("flush")?;
        // While it runs and writes.
        guest.start_writer("MEAN", 100)?;
        guest.wait_written(120, Deadline::seconds(120))?;
        server.cli(&["overlay", "point", "pc12", "--comment", "before"])?;
        let written = guest.stop_writer()? - 100;
        guest.verify("MEAN", 100, written)?;
        guest.write(1, "AFTR")?;
        guest.command("flush")?;
        let refused = server.cli(&["overlay", "restore", "pc12", "latest"]);
        ensure!(refused.is_err(), "restored under a running machine");
        drop(power);
        noticed(server)?;

        server.cli(&["overlay", "restore", "pc12", "latest"])?;
        let mut power = pc.power_on(lan)?;
        let mut guest = booted(&mut power)?;
        ensure!(
            guest.read(1)?.as_deref() == Some("BFOR00000000001"),
            "not as it was at the restore point"
        );
        guest.write(2, "MORE")?;
        guest.command("flush")?;
        drop(power);
        noticed(server)?;

        server.cli(&["overlay", "commit", "pc12", "--comment", "with more"])?;
        let other = Pc::new(13, Firmware::Bios);
        stage::add(server, "pc13", &other, "reset")?;
        let mut power = other.power_on(lan)?;
        let mut guest = booted(&mut power)?;
        for (block, content) in [(1, "BFOR00000000001"), (2, "MORE00000000002")] {
            ensure!(
                guest.read(block)?.as_deref() == Some(content),
                "the committed version lacks block {block}"
            );
        }
        golden.is_untouched()
    });
}

/// Waits until the server has noticed that nobody is there any more.
fn noticed(server: &Server<'_>) -> Result<()> {
    Deadline::seconds(NOTICE_SECONDS).wait(|| {
        let sessions = server.json(&["session", "list"])?;
        Ok(sessions.as_array().is_some_and(Vec::is_empty).then_some(()))
    })
}
